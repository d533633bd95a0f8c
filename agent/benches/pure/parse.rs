//! An API object's JSON → the model's own type.

use divan::Bencher;
use divan::counter::BytesCount;
use proxyd::model::{Service, Slice};

use crate::cluster::{parse_service, parse_slice, service_json, slice_json};

#[divan::bench]
fn service(bencher: Bencher<'_, '_>) {
    let json = service_json(1);
    bencher
        .counter(BytesCount::of_slice(&json))
        .bench_local(|| -> Service { parse_service(&json) });
}

/// By its number of endpoints; 100 are as many as a slice of Kubernetes' own has.
#[divan::bench(args = [1, 10, 100])]
fn slice(bencher: Bencher<'_, '_>, endpoints: usize) {
    let json = slice_json(1, endpoints, 0);
    bencher
        .counter(BytesCount::of_slice(&json))
        .bench_local(|| -> Slice { parse_slice(&json) });
}
