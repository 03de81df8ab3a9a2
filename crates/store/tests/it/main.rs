//! The store's suite, run for the in-memory store and for a real etcd over mutual TLS, and what
//! only etcd has.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bed;
mod etcd;
mod suite;

use bed::{EtcdBed, MemoryBed};

macro_rules! for_both {
    ($($case:ident),* $(,)?) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $case() {
                super::suite::$case(&mut super::MemoryBed::new()).await;
            })*
        }
        mod in_etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::suite::$case(&mut super::EtcdBed::new().await).await;
            })*
        }
    };
}

for_both!(
    revisions_rise_and_snapshots_agree,
    guards_hold_or_nothing_is_written,
    impossible_transactions_are_named,
    leases_take_their_keys_along,
    watches_miss_and_repeat_nothing,
    watches_from_compacted_revisions_start_anew,
    a_stalled_server_hangs_nobody,
    increments_by_eight_lose_nothing,
);
