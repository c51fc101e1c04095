//! Both stores under one test suite, and tests of features that only one of them has.
//!
//! Each test has a store of its own: an etcd on free ports of loopback, or a
//! temporary directory.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod backend;
mod chaos;
mod etcd;
mod follow;
mod ops;
mod suite;

/// Makes a test of each case on each backend.
macro_rules! for_both {
    ($($(#[$meta:meta])* $case:path => $name:ident,)+) => {
        mod on_etcd {
            $(
                $(#[$meta])*
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    $case(crate::backend::Etcd::start().await).await;
                }
            )+
        }

        mod on_file {
            $(
                $(#[$meta])*
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    $case(crate::backend::File::start().await).await;
                }
            )+
        }
    };
}

for_both! {
    crate::suite::a_snapshot_is_of_one_prefix_in_key_order => a_snapshot_is_of_one_prefix_in_key_order,
    crate::suite::a_large_snapshot_is_whole => a_large_snapshot_is_whole,
    crate::suite::compares_mean_what_they_say => compares_mean_what_they_say,
    crate::suite::a_conflict_writes_nothing => a_conflict_writes_nothing,
    crate::suite::a_transaction_without_effect_is_no_revision => a_transaction_without_effect_is_no_revision,
    crate::suite::a_malformed_transaction_is_refused => a_malformed_transaction_is_refused,
    crate::suite::a_key_never_has_two_owners => a_key_never_has_two_owners,
    crate::suite::no_increment_is_lost => no_increment_is_lost,
    crate::suite::a_watch_tells_revisions_in_order_and_whole => a_watch_tells_revisions_in_order_and_whole,
    crate::suite::a_write_is_known_by_its_revision => a_write_is_known_by_its_revision,
    crate::suite::a_watch_keeps_up_with_many_writers => a_watch_keeps_up_with_many_writers,
    crate::suite::a_watch_catches_up_with_a_long_history => a_watch_catches_up_with_a_long_history,
    crate::suite::a_compacted_revision_cannot_be_watched_from => a_compacted_revision_cannot_be_watched_from,
    crate::suite::a_lease_takes_its_keys_with_it => a_lease_takes_its_keys_with_it,
    crate::suite::a_lease_that_is_gone_is_named => a_lease_that_is_gone_is_named,
    crate::suite::a_lease_survives_a_restart => a_lease_survives_a_restart,
    crate::suite::a_restart_keeps_what_is_committed => a_restart_keeps_what_is_committed,
    crate::follow::the_first_update_is_the_whole => the_first_update_is_the_whole,
    crate::follow::a_follower_sees_every_revision_once_across_a_restart => a_follower_sees_every_revision_once_across_a_restart,
    crate::follow::after_compaction_the_difference_is_told => after_compaction_the_difference_is_told,
    crate::follow::a_gap_that_nothing_proves_deletes_nothing => a_gap_that_nothing_proves_deletes_nothing,
    crate::follow::a_store_that_is_gone_deletes_nothing => a_store_that_is_gone_deletes_nothing,
    crate::follow::a_wiped_store_deletes_nothing_until_accepted => a_wiped_store_deletes_nothing_until_accepted,
    crate::follow::a_store_known_from_an_earlier_run_is_recognized => a_store_known_from_an_earlier_run_is_recognized,
    crate::ops::networks_made_at_once_never_overlap => networks_made_at_once_never_overlap,
    crate::ops::endpoints_made_at_once_never_share_an_address => endpoints_made_at_once_never_share_an_address,
    crate::ops::a_network_is_not_removed_from_under_an_endpoint => a_network_is_not_removed_from_under_an_endpoint,
    crate::ops::a_plan_from_an_old_view_is_made_anew => a_plan_from_an_old_view_is_made_anew,
    crate::ops::a_node_leaves_with_all_its_endpoints => a_node_leaves_with_all_its_endpoints,
}
