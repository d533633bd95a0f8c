//! API objects made of any bytes: translated, planned and printed, as the laws of `proxyd_tests::wild` have it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxyd_tests::wild::laws;

fuzz_target!(|bytes: &[u8]| laws::check(bytes));
