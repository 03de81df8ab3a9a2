//! The instants and counts that failover goes by, each with its reason.

use crate::spec::Duty;
use crate::spread::Domains;
use crate::term::{Preference, Redundancy};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Heartbeats: ten a second tell a lost machine within a second and cost nothing.
pub const HEARTBEAT_MS: u64 = 100;
/// A wait shorter than this is a moment of a plan, not a hold: nobody could do anything about it.
pub const HOLD_MS: u64 = HEARTBEAT_MS;
/// A status older than this says nothing about now: three heartbeats and a scheduler's hiccup.
pub const FRESH_MS: u64 = 500;
/// Phi-accrual threshold: one false suspicion in 10^8 intervals of the observed distribution.
pub const PHI: f64 = 8.0;
/// Silence shorter than this is never suspected, whatever phi says: a busy machine stalls so long.
pub const SILENCE_MS: u64 = 650;
/// From this silence on the leader's PostgreSQL is asked directly.
pub const PROBE_AFTER_MS: u64 = 250;
/// Between two probes of a silent leader.
pub const PROBE_EVERY_MS: u64 = 100;
/// A gap this long in the agent's own tick makes its suspicions worthless: it forgets them.
pub const OWN_GAP_MS: u64 = 300;
/// A running PostgreSQL that answers no query for so long is frozen.
pub const FROZEN_MS: u64 = 1_500;
/// A flush that takes longer is a stalled disk. Far above a slow one.
pub const FLUSH_STALLED_MS: u64 = 15_000;
/// Between campaigners of neighbouring rank, so that they don't duel.
pub const RANK_MS: u64 = 120;
/// A campaign record unchanged for so long is dead: its owner renews it three times in between.
pub const CAMPAIGN_TTL_MS: u64 = 1_000;
pub const CAMPAIGN_RENEW_MS: u64 = 300;
/// A fallen leader's start waits so long for the others to do without it.
pub const MAKE_WAY_MS: u64 = 400;
/// Slots on standbys are advanced this often, so that they hold back little WAL.
pub const SLOTS_EVERY_MS: u64 = 30_000;
/// Standbys keep the WAL for a member that is silent for so long, as the leader does up to
/// [`log_kept_bytes`].
pub const SLOTS_KEPT_MS: u64 = 600_000;
/// A campaign that finds no cover in this time gives way.
pub const CAMPAIGN_GIVE_UP_MS: u64 = 4_000;
/// An operator's switchover or forced failover is given up after this: a lease and a stop fit in.
pub const WISH_MS: u64 = 15_000;
/// The same for putting back what was restored: a stop, a rename and a start fit in, and the recovery
/// from the last checkpoint.
pub const RESTORE_MS: u64 = 120_000;
/// With cover reached, so long is waited for nodes that are alive, so that they stand in the set.
pub const LATE_REPORT_MS: u64 = 60;
/// A published term that isn't open after this, without a running leader, needs a new campaign.
pub const UNOPENED_MS: u64 = 2_000;
/// A standby that hasn't streamed for so long leaves the synchronous set.
pub const GONE_MS: u64 = 2_000;
/// The leader's right to go on without quorum evidence, counted from before its renewal was sent.
pub const LEASE_MS: u64 = 5_000;
pub const LEASE_RENEW_MS: u64 = 1_000;
/// Taken off the lease by its holder and added by whoever waits for its end: clock drift and the
/// time a stop takes.
pub const LEASE_MARGIN_MS: u64 = 500;
/// Quorum evidence counts so long from before its record was written.
pub const EVIDENCE_MS: u64 = 3_000;
pub const EVIDENCE_EVERY_MS: u64 = 1_000;
/// The same while the lease isn't renewed and evidence alone gives the right to run: each round
/// reaches the minder before that begins to prove by itself.
pub const EVIDENCE_ALONE_EVERY_MS: u64 = 500;
/// Records that a slow standby may still come to hold: more are begun in no [`EVIDENCE_MS`].
pub const EVIDENCE_RECORDS_MAX: usize = 8;
/// How far a standby may be behind to join the set, in bytes: the join itself waits for the rest.
pub const JOIN_LAG_BYTES: u64 = 1 << 20;
/// A failed action is tried again after this, doubled each time up to the most.
pub const RETRY_MS: u64 = 100;
pub const RETRY_MS_MAX: u64 = 30_000;
/// A server that ends by itself this soon after its start has not started.
pub const STARTED_MS: u64 = 10_000;
/// A witness of a term that doesn't open gives its directory up for a clone after this; the old
/// directory is kept.
pub const WITNESS_MS: u64 = 10_000;

/// A record that takes longer to reach the leader's own disk makes it a slow leader: clients notice.
pub const SLOW_FLUSH_MS: u64 = 400;
/// Slowness that lasts so long is shown; a checkpoint's burst is over before.
pub const SLOW_SHOWN_MS: u64 = 5_000;
/// A slow leader that asked for a successor in vain asks again after this.
pub const SLOW_AGAIN_MS: u64 = 60_000;

/// A leader keeps log for who is away in this part of its disk: the data needs the rest.
pub const LOG_KEPT_PART: u64 = 10;
/// PostgreSQL lets its log grow by so much between two checkpoints anyway.
pub const LOG_KEPT_BYTES_MIN: u64 = 1 << 30;
/// More takes longer to fetch and replay, at a hundred megabytes a second, than anybody waits for a
/// standby: about ten minutes.
pub const LOG_KEPT_BYTES_MAX: u64 = 64 << 30;

/// How much log a leader keeps for who is away, standbys and repositories, on a disk of that size.
pub fn log_kept_bytes(disk_bytes: u64) -> u64 {
    (disk_bytes / LOG_KEPT_PART).clamp(LOG_KEPT_BYTES_MIN, LOG_KEPT_BYTES_MAX)
}

/// What the operator declared, as far as failover needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// In the order of the spec; the first one bootstraps.
    pub nodes: Vec<String>,
    pub redundancy: Redundancy,
    pub preferences: BTreeMap<String, Preference>,
    /// Over what the synchronous set is spread.
    #[serde(default)]
    pub domains: Domains,
    /// Of the nodes that are not active. That they don't lead, their preference says.
    #[serde(default)]
    pub duties: BTreeMap<String, Duty>,
    /// A leader that is slow for so long hands over. `None`: that is only shown.
    #[serde(default)]
    pub slow_after_ms: Option<u64>,
}

impl Policy {
    pub fn duty(&self, node: &str) -> Duty {
        self.duties.get(node).copied().unwrap_or_default()
    }

    /// It leaves the synchronous set and doesn't come back.
    pub fn leaves(&self, node: &str) -> bool {
        self.duty(node) == Duty::Leaving
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_is_kept_in_a_part_of_the_disk() {
        const GB: u64 = 1 << 30;
        #[rustfmt::skip]
        let cases = [
            // disk      kept
            (0,          GB),
            (5 * GB,     GB),
            (10 * GB,    GB),
            (50 * GB,    5 * GB),
            (500 * GB,   50 * GB),
            (640 * GB,   64 * GB),
            (8_000 * GB, 64 * GB),
            (u64::MAX,   64 * GB),
        ];
        for (disk, kept) in cases {
            assert_eq!(log_kept_bytes(disk), kept, "{disk}");
        }
    }
}
