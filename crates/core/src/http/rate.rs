//! How often each client may ask: exactly, and over all gateways together.
//!
//! By the generic cell rate algorithm (ITU-T I.371). Of each client one number is kept, the time at
//! which it is even again if it asks no more: what lies ahead of now is its *debt*. A request adds one
//! interval to it, and is refused if more than the burst would lie ahead. A client that is even needs no
//! number.
//!
//! Gateways tell each other what they admitted ([`Table::tell`]), and each adds the others' to its own
//! ([`Table::absorb`]), also beyond the burst: what was too much till then is paid back, and over time
//! the rate is kept exactly, however clients spread over gateways. One that begins takes over what
//! clients owe ([`Table::owes`]). One that ends leaves nothing to do.
//!
//! Times are in nanoseconds since any moment, which is each gateway's own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub mod word;

#[cfg(test)]
mod tests;

/// The limit of a route, for each of its clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    pub by: RateKey,
    /// So many
    pub requests: u32,
    /// in so many seconds,
    pub per_s: u32,
    /// and so many at once, if there were none for a while.
    pub burst: u32,
}

/// What one client is. Who has no such header, cookie or token is counted by its address: to leave it
/// out must not be the way around.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateKey {
    /// An address, of which so many bits count.
    ClientIp {
        v4_bits: u8,
        v6_bits: u8,
    },
    Header(String),
    Cookie(String),
    /// `Authorization: Bearer`.
    Token,
}

impl RateKey {
    /// One address of IPv4. Of IPv6 each client has a network of 64 bits at least (RFC 6177).
    pub const ADDRESS: RateKey = RateKey::ClientIp { v4_bits: 32, v6_bits: 64 };
}

/// A limit as it is reckoned with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    interval_ns: u64,
    burst_ns: u64,
}

const SECOND_NS: u64 = 1_000_000_000;

/// Debts beyond the burst come of what others admitted meanwhile: of this many gateways, each with a
/// full burst, and of so long. More than that is an error somewhere, and must not lock a client out for
/// ever.
const GATEWAYS_MAX: u64 = 64;
const BEHIND_MAX_NS: u64 = 10 * SECOND_NS;

impl Rate {
    /// Rounded to the strict side by less than a nanosecond for each request.
    pub fn new(limit: &RateLimit) -> Rate {
        let per_ns = u64::from(limit.per_s.max(1)) * SECOND_NS;
        let interval_ns = per_ns.div_ceil(u64::from(limit.requests.max(1)));
        Rate { interval_ns, burst_ns: interval_ns.saturating_mul(u64::from(limit.burst.max(1))) }
    }

    fn debt_max_ns(&self) -> u64 {
        self.burst_ns.saturating_mul(GATEWAYS_MAX).saturating_add(BEHIND_MAX_NS)
    }
}

/// What is said to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub admitted: bool,
    /// How many more would be, at once.
    pub remaining: u32,
    /// How long till one more is.
    pub wait_ns: u64,
    /// How long till the whole burst is there again.
    pub even_ns: u64,
}

/// The clients of one limit, by a hash that nobody outside can foresee; of those whose hash belongs in
/// this table.
///
/// Its size is bounded. When it is full of clients that owe, those that owe least are forgotten, and
/// whoever is not in it is taken to owe as much as the most indebted of these, but for one request: who
/// is new gets that also where others have filled it, and who was forgotten gets one too much at most.
#[derive(Debug, Clone)]
pub struct Table {
    rate: Rate,
    /// When each is even again.
    even_at: BTreeMap<u64, u64>,
    keys_max: usize,
    /// With so many, those that are even are looked for.
    sweep_at: usize,
    /// When whoever was forgotten is even at the latest.
    strangers_even_at: u64,
    /// What was admitted here and not told yet; `None`: there is nobody to tell.
    untold: Option<BTreeMap<u64, u32>>,
}

/// Fewer are not worth looking through.
const SWEEP_MIN: usize = 1024;
/// Clients whose requests are not told yet. Those of others count at this gateway alone: to be told of
/// each of so many, who thus ask seldom, would be more work than what they ask for.
const UNTOLD_MAX: usize = 8192;

impl Table {
    pub fn new(rate: Rate, keys_max: usize) -> Table {
        Table {
            rate,
            even_at: BTreeMap::new(),
            keys_max: keys_max.max(4),
            sweep_at: SWEEP_MIN.min(keys_max.max(4)),
            strangers_even_at: 0,
            untold: None,
        }
    }

    /// Whether there is anybody to tell.
    pub fn share(&mut self, shared: bool) {
        match shared {
            true => drop(self.untold.get_or_insert_default()),
            false => self.untold = None,
        }
    }

    /// Admits one request, or says how long to wait.
    pub fn ask(&mut self, key: u64, now: u64) -> Answer {
        let before = self.even_at(key, now);
        let Rate { interval_ns, burst_ns } = self.rate;
        let ahead = (before - now).saturating_add(interval_ns);
        if ahead > burst_ns {
            let wait_ns = ahead - burst_ns;
            return Answer { admitted: false, remaining: 0, wait_ns, even_ns: before - now };
        }
        self.put(key, now + ahead, now);
        if let Some(untold) = &mut self.untold
            && (untold.len() < UNTOLD_MAX || untold.contains_key(&key))
        {
            *untold.entry(key).or_default() += 1;
        }
        let left = burst_ns - ahead;
        Answer {
            admitted: true,
            remaining: u32::try_from(left / interval_ns).unwrap_or(u32::MAX),
            wait_ns: interval_ns.saturating_sub(left),
            even_ns: ahead,
        }
    }

    /// The same of a client that is in the table; `None`: it isn't.
    pub fn ask_known(&mut self, key: u64, now: u64) -> Option<Answer> {
        self.even_at.contains_key(&key).then(|| self.ask(key, now))
    }

    /// Another gateway has admitted so many.
    pub fn absorb(&mut self, key: u64, count: u16, now: u64) {
        let more = self.rate.interval_ns.saturating_mul(u64::from(count));
        let even_at = self.even_at(key, now).saturating_add(more);
        self.put(key, even_at.min(now.saturating_add(self.rate.debt_max_ns())), now);
    }

    /// To another gateway it owes so much: what is the same debt is counted once.
    pub fn owes(&mut self, key: u64, debt_ns: u64, now: u64) {
        let there = now.saturating_add(debt_ns.min(self.rate.debt_max_ns()));
        let even_at = self.even_at(key, now).max(there);
        self.put(key, even_at, now);
    }

    /// Of so many clients something is to be told.
    pub fn untold(&self) -> usize {
        self.untold.as_ref().map_or(0, BTreeMap::len)
    }

    /// Takes out what was admitted here since it was told last, by key: at most so many keys, those with
    /// most requests first.
    pub fn tell(&mut self, most: usize) -> Vec<(u64, u16)> {
        let Some(untold) = &mut self.untold else { return Vec::new() };
        if most == 0 {
            return Vec::new();
        }
        let mut told: Vec<(u64, u32)> = untold.iter().map(|(key, count)| (*key, *count)).collect();
        if told.len() > most {
            told.select_nth_unstable_by_key(most, |(key, count)| (u32::MAX - count, *key));
            told.truncate(most);
            told.sort_unstable();
        }
        let take = |(key, count): (u64, u32)| {
            let said = u16::try_from(count).unwrap_or(u16::MAX);
            match untold.get_mut(&key).filter(|it| **it > u32::from(said)) {
                Some(left) => *left -= u32::from(said),
                None => drop(untold.remove(&key)),
            }
            (key, said)
        };
        told.into_iter().map(take).collect()
    }

    /// What clients owe, by key. Little debts are not worth telling.
    pub fn debts(&self, now: u64) -> impl Iterator<Item = (u64, u64)> {
        let least = self.rate.burst_ns / 4;
        let all = self.even_at.iter().map(move |(key, at)| (*key, at.saturating_sub(now)));
        all.filter(move |(_, debt)| *debt > least)
    }

    pub fn len(&self) -> usize {
        self.even_at.len()
    }

    pub fn is_empty(&self) -> bool {
        self.even_at.is_empty()
    }

    /// Not before now.
    fn even_at(&self, key: u64, now: u64) -> u64 {
        let but_one_ns = self.rate.burst_ns - self.rate.interval_ns;
        let stranger = || self.strangers_even_at.min(now.saturating_add(but_one_ns));
        self.even_at.get(&key).copied().unwrap_or_else(stranger).max(now)
    }

    fn put(&mut self, key: u64, at: u64, now: u64) {
        if self.even_at.insert(key, at).is_none() && self.even_at.len() >= self.sweep_at {
            self.sweep(now);
        }
    }

    /// Forgets who is even, and if that is too few of them those that are next.
    fn sweep(&mut self, now: u64) {
        self.even_at.retain(|_, at| *at > now);
        if self.even_at.len() > self.keys_max / 4 * 3 {
            let mut times: Vec<u64> = self.even_at.values().copied().collect();
            let middle = times.len() / 2;
            let (_, least_kept, _) = times.select_nth_unstable(middle);
            let least_kept = *least_kept;
            self.even_at.retain(|_, at| *at > least_kept);
            self.strangers_even_at = self.strangers_even_at.max(least_kept);
        }
        self.sweep_at = (self.even_at.len() * 2).clamp(SWEEP_MIN.min(self.keys_max), self.keys_max);
    }
}
