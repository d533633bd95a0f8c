//! What the tests' API server does, and kube-apiserver with it.
//!
//! A behaviour is a function of a [`Tier`]. Those listed in [`behaviours`] hold for both: each is a test on the
//! server of `proxyd_tests::apiserver`, and all run one after the other on a real kube-apiserver where there is one.
//! Faults are tested on our server alone.

#![expect(
    clippy::unwrap_used,
    reason = "behaviours are tests, though the macro makes the #[test] functions"
)]

mod client_go;
mod faults;
mod kube_rs;
mod lists;
mod tier;
mod watches;
mod writes;

use proxyd_tests::envtest::Envtest;

use crate::tier::Tier;

/// Declares the behaviours that hold for both servers.
macro_rules! behaviours {
    ($($module:ident::$name:ident,)*) => {
        mod ours {
            $(#[tokio::test]
            async fn $name() {
                crate::$module::$name(crate::Tier::ours().await).await;
            })*
        }

        #[tokio::test]
        async fn real_kube_apiserver_behaves_the_same() {
            let Some(real) = Envtest::start().await else { return };
            $(
                eprintln!("{}", stringify!($name));
                $module::$name(Tier::real(&real, stringify!($name)).await).await;
            )*
        }
    };
}

behaviours! {
    lists::list_has_the_version_of_the_last_write,
    lists::pages_of_a_list_show_one_snapshot,
    lists::exact_list_shows_an_old_version,
    lists::list_of_a_version_to_come_times_out,
    lists::list_is_selected_by_labels,
    lists::list_is_selected_by_fields,
    lists::unsupported_field_is_a_bad_request,
    lists::contradicting_list_options_are_invalid,
    writes::created_object_has_identity_and_version,
    writes::second_creation_of_a_name_conflicts,
    writes::stale_replacement_conflicts,
    writes::unchanged_replacement_makes_no_version,
    writes::merge_patch_changes_what_it_names,
    writes::deleted_object_is_not_found,
    writes::misplaced_object_is_a_bad_request,
    writes::unknown_patch_format_is_refused,
    watches::watch_after_a_list_tells_every_change,
    watches::watch_without_version_begins_with_what_there_is,
    watches::streaming_list_ends_with_a_bookmark,
    watches::contradicting_watch_options_are_invalid,
    watches::object_enters_and_leaves_a_selected_watch,
    watches::watch_by_name_is_told_of_one_object,
    watches::watch_ends_after_its_timeout,
    kube_rs::watcher_lists_in_pages_then_watches,
    kube_rs::watcher_streams_the_list_then_watches,
    kube_rs::watcher_sees_an_object_leave_its_selector,
}
