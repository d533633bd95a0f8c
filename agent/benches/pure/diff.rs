//! What the kernel holds, and what it should → what changes.

use divan::Bencher;
use divan::counter::ItemsCount;
use proxyd::diff::{Delta, Held, diff};
use proxyd::model::{Scope, Snapshot};
use proxyd::plan::{self, Tables};

use crate::cluster::{FAMILY, SIZES, change, config, snapshot};

/// The kernel holds nothing: the first start.
#[divan::bench(args = SIZES)]
fn start(bencher: Bencher<'_, '_>, services: usize) {
    let tables = tables(&snapshot(services), &Scope::All);
    let held = Held::default();
    bencher
        .counter(ItemsCount::new(services))
        .bench_local(|| diff(&held, &tables, &Scope::All));
}

/// The kernel holds all of it: a restart.
#[divan::bench(args = SIZES)]
fn restart(bencher: Bencher<'_, '_>, services: usize) {
    let tables = tables(&snapshot(services), &Scope::All);
    let held = held(&first_delta(&tables));
    assert!(
        diff(&held, &tables, &Scope::All).is_empty(),
        "nothing changes"
    );
    bencher
        .counter(ItemsCount::new(services))
        .bench_local(|| diff(&held, &tables, &Scope::All));
}

/// One endpoint of one Service is another.
#[divan::bench(args = SIZES)]
fn one_change(bencher: Bencher<'_, '_>, services: usize) {
    let Changed {
        held,
        tables,
        scope,
    } = Changed::of(services);
    bencher.bench_local(|| diff(&held, &tables, &scope));
}

/// A cluster that the kernel has, and a change of one endpoint that it does not have.
struct Changed {
    held: Held,
    tables: Tables,
    scope: Scope,
}

impl Changed {
    fn of(services: usize) -> Self {
        let mut snapshot = snapshot(services);
        let held = held(&first_delta(&tables(&snapshot, &Scope::All)));
        let scope = change(&mut snapshot, services);
        Self {
            held,
            tables: tables(&snapshot, &scope),
            scope,
        }
    }
}

/// All that a cluster of so many Services puts into the kernel.
pub(crate) fn delta_of_start(services: usize) -> Delta {
    first_delta(&tables(&snapshot(services), &Scope::All))
}

/// What one other endpoint changes in the kernel.
pub(crate) fn delta_of_one_change(services: usize) -> Delta {
    let changed = Changed::of(services);
    let delta = diff(&changed.held, &changed.tables, &changed.scope);
    assert_eq!(
        delta.len(),
        1,
        "one endpoint takes another's place: {delta}"
    );
    delta
}

fn tables(snapshot: &Snapshot, scope: &Scope) -> Tables {
    plan::tables(snapshot, &config(), FAMILY, scope)
}

fn first_delta(tables: &Tables) -> Delta {
    diff(&Held::default(), tables, &Scope::All)
}

fn held(delta: &Delta) -> Held {
    let mut held = Held::default();
    held.apply(delta);
    held
}
