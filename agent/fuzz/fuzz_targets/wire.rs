//! Any bytes as what an API server sends in protobuf, and any objects in both encodings, as `proxyd_tests::wild` has it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxyd_tests::wild::encodings;

fuzz_target!(|bytes: &[u8]| encodings::check(bytes));
