//! What became of requests, counted.

use super::{Rule, network};
use crate::http::latency::{BUCKETS, below_us, bucket};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Requests of one route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub requests: u64,
    /// Those that went on to the service.
    pub admitted: u64,
    /// Those that the gateway had the answer of.
    pub kept: u64,
    pub refused: BTreeMap<Rule, u64>,
    /// How long those waited that were admitted and did not go on at once.
    pub waits: Waits,
    pub worst: Worst,
}

impl Tally {
    pub fn admit(&mut self, waited_us: u64) {
        self.admitted += 1;
        if waited_us > 0 {
            self.waits.add(waited_us);
        }
    }

    pub fn refuse(&mut self, rule: Rule, client: IpAddr) {
        *self.refused.entry(rule).or_default() += 1;
        self.worst.refuse(client);
    }

    pub fn refused_by(&self, rule: Rule) -> u64 {
        self.refused.get(&rule).copied().unwrap_or(0)
    }
}

/// How long things took, exact to a fifth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    counts: [u64; BUCKETS],
}

impl Default for Waits {
    fn default() -> Waits {
        Waits { counts: [0; BUCKETS] }
    }
}

impl Waits {
    pub fn add(&mut self, took_us: u64) {
        self.counts[bucket(took_us)] += 1;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What so many of a hundred took less than; `None`: there was none.
    pub fn percentile_us(&self, percent: u64) -> Option<u64> {
        let count = self.count();
        let wanted = (count * percent).div_ceil(100).max(1);
        let mut below = 0;
        let found = self.counts.iter().position(|it| {
            below += it;
            below >= wanted
        });
        found.map(below_us)
    }
}

/// The clients that are refused most: an address of IPv4, or a network of 64 bits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Worst {
    refused: BTreeMap<IpAddr, u64>,
}

/// When there are so many, the half that was refused least is forgotten.
const WORST_MAX: usize = 1 << 13;

impl Worst {
    fn refuse(&mut self, client: IpAddr) {
        *self.refused.entry(network(client, (32, 64))).or_default() += 1;
        if self.refused.len() >= WORST_MAX {
            let keep = self.first(WORST_MAX / 2);
            self.refused = keep.into_iter().collect();
        }
    }

    /// How often a client was refused.
    pub fn of(&self, client: IpAddr) -> u64 {
        self.refused.get(&network(client, (32, 64))).copied().unwrap_or(0)
    }

    /// So many, the worst first.
    pub fn first(&self, most: usize) -> Vec<(IpAddr, u64)> {
        let mut all: Vec<(IpAddr, u64)> = self.refused.iter().map(|(ip, it)| (*ip, *it)).collect();
        all.sort_by_key(|(ip, count)| (u64::MAX - count, *ip));
        all.truncate(most);
        all
    }
}
