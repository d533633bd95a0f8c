//! The snapshot → the tables that the kernel should hold.

use std::cell::RefCell;

use divan::Bencher;
use divan::counter::ItemsCount;
use proxyd::model::Scope;
use proxyd::plan;

use crate::cluster::{ENDPOINTS, FAMILY, SIZES, change, config, parse_slice, slice_json, snapshot};

/// Every Service.
#[divan::bench(args = SIZES)]
fn full(bencher: Bencher<'_, '_>, services: usize) {
    let (snapshot, config) = (snapshot(services), config());
    bencher
        .counter(ItemsCount::new(services))
        .bench_local(|| plan::tables(&snapshot, &config, FAMILY, &Scope::All));
}

/// What one endpoint touches.
#[divan::bench(args = SIZES)]
fn one_change(bencher: Bencher<'_, '_>, services: usize) {
    let (mut snapshot, config) = (snapshot(services), config());
    let scope = change(&mut snapshot, services);
    let planned = plan::tables(&snapshot, &config, FAMILY, &scope);
    assert_eq!(planned.rules.len(), 1, "one front end is touched");
    bencher.bench_local(|| plan::tables(&snapshot, &config, FAMILY, &scope));
}

/// Taking note of the change itself: the join of Services and slices.
#[divan::bench(args = SIZES)]
fn note_one_change(bencher: Bencher<'_, '_>, services: usize) {
    let snapshot = RefCell::new(snapshot(services));
    let versions = [1, 2].map(|version| parse_slice(&slice_json(1, ENDPOINTS, version)));
    let mut turn = 0;
    bencher
        .with_inputs(|| {
            turn += 1;
            versions[turn % 2].clone()
        })
        .bench_local_values(|slice| {
            let mut snapshot = snapshot.borrow_mut();
            snapshot.put_slice(slice);
            snapshot.take_touched(FAMILY)
        });
}
