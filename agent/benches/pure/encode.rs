//! What changes → the bytes for the kernel.

use divan::Bencher;
use divan::counter::ItemsCount;
use proxyd::dataplane::nft::batch;

use crate::cluster::{FAMILY, SIZES};
use crate::diff::{delta_of_one_change, delta_of_start};

/// Everything, for an empty table.
#[divan::bench(args = SIZES)]
fn start(bencher: Bencher<'_, '_>, services: usize) {
    let delta = delta_of_start(services);
    bencher
        .counter(ItemsCount::new(delta.len()))
        .bench_local(|| batch::encoded(FAMILY, &delta));
}

/// One endpoint of one Service.
#[divan::bench]
fn one_change(bencher: Bencher<'_, '_>) {
    let delta = delta_of_one_change(SIZES[0]);
    bencher.bench_local(|| batch::encoded(FAMILY, &delta));
}
