//! The places of one gateway, and its breakers, in the time of records: one after the other what
//! gateways do with many threads.

use crate::http::breaker::{Breaker, BreakerSpec, Change, Said, Tries};
use crate::http::limit::{Limiter, Seen};
use crate::http::queue::{Bulkhead, Denied, Limit, Priority, Queue, Room, Ticket};

/// Of the time that a place is held, so much of each one goes into the average, as at gateways.
const SHARE: u64 = 8;
/// In the middle of the jitter of breakers.
const RANDOM: u64 = u64::MAX / 2;

#[derive(Debug)]
pub struct Places {
    queue: Queue<u64>,
    taken: u32,
    limit: u32,
    /// `None`: as many as there are places.
    queue_max: Option<u32>,
    wait_us: u64,
    /// How long a place is held, on average.
    service_us: u64,
    /// `None`: the limit is given.
    limiter: Option<Limiter>,
    seen: Seen,
}

/// Somebody who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiter {
    ticket: Ticket,
    /// Its turn is no use to it afterwards.
    pub until_us: u64,
}

pub enum Entry {
    In,
    /// `out`: who waits no longer for that.
    Waits {
        waiter: Waiter,
        out: Option<u64>,
    },
    Denied(Denied),
}

impl Places {
    pub fn new(spec: &Bulkhead, now_us: u64) -> Places {
        let limiter = match spec.limit {
            Limit::Auto => Some(Limiter::new(now_us / 1_000)),
            Limit::Most(_) => None,
        };
        let limit = match spec.limit {
            Limit::Auto => limiter.as_ref().map_or(1, Limiter::limit),
            Limit::Most(limit) => limit.max(1),
        };
        Places {
            queue: Queue::default(),
            taken: 0,
            limit,
            queue_max: spec.queue,
            wait_us: spec.wait_ms.saturating_mul(1_000),
            service_us: 0,
            limiter,
            seen: Seen::default(),
        }
    }

    /// A place, or one in the queue. `deadline_us`: when the answer has to be there.
    pub fn enter(&mut self, class: Priority, now_us: u64, deadline_us: u64, it: u64) -> Entry {
        if self.queue.is_empty() && self.taken < self.limit {
            self.taken += 1;
            return Entry::In;
        }
        self.seen.full = true;
        let most = self.queue_max.unwrap_or(self.limit) as usize;
        let room = Room { most, places: self.limit, service_us: self.service_us };
        let done_us = deadline_us.saturating_sub(self.service_us);
        let until_us = done_us.min(now_us.saturating_add(self.wait_us));
        match self.queue.enter(class, until_us, room, it, now_us) {
            Ok((ticket, out)) => Entry::Waits { waiter: Waiter { ticket, until_us }, out },
            Err(denied) => Entry::Denied(denied),
        }
    }

    /// Whose turn it is, with a place if it comes in time.
    pub fn next(&mut self, now_us: u64) -> Option<(u64, Result<(), Denied>)> {
        if self.taken >= self.limit {
            return None;
        }
        let (it, told) = self.queue.next(now_us)?;
        self.taken += u32::from(told.is_ok());
        Some((it, told))
    }

    /// It waits no longer.
    pub fn leave(&mut self, waiter: Waiter) {
        self.queue.leave(waiter.ticket);
    }

    /// A place that was held for so long is free.
    pub fn free(&mut self, held_us: u64) {
        self.taken = self.taken.saturating_sub(1);
        self.service_us = match self.service_us {
            0 => held_us,
            average => average - average / SHARE + held_us / SHARE,
        };
    }

    pub fn answered(&mut self, status: u16, took_us: u64) {
        match status {
            429 | 503 | 504 => self.seen.dropped = self.seen.dropped.saturating_add(1),
            500.. => {}
            _ => {
                self.seen.answers = self.seen.answers.saturating_add(1);
                self.seen.sum_us = self.seen.sum_us.saturating_add(took_us);
            }
        }
    }

    /// Adapts the limit; `true`: there are more places.
    pub fn step(&mut self, now_ms: u64) -> bool {
        let Some(limiter) = &mut self.limiter else { return false };
        let seen = Seen { in_flight: self.taken, ..std::mem::take(&mut self.seen) };
        limiter.step(now_ms, seen);
        let before = std::mem::replace(&mut self.limit, limiter.limit());
        self.limit > before
    }
}

/// Whom a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    All,
    Probe,
    Nobody,
}

/// The breaker of a service.
#[derive(Debug)]
pub struct Switch {
    breaker: Breaker,
    spec: BreakerSpec,
    /// Until when nobody passes, and how often one does then, while it is open.
    open: Option<(u64, u64)>,
    tries: Tries,
}

impl Switch {
    pub fn new(spec: &BreakerSpec) -> Switch {
        let (breaker, tries) = (Breaker::default(), Tries::default());
        Switch { breaker, spec: spec.clone(), open: None, tries }
    }

    pub fn look(&self, now_ms: u64) -> Passage {
        match self.open {
            None => Passage::All,
            Some((until_ms, _)) if until_ms <= now_ms => Passage::Probe,
            Some(_) => Passage::Nobody,
        }
    }

    /// The same for one who goes.
    pub fn pass(&mut self, now_ms: u64) -> Passage {
        let passage = self.look(now_ms);
        if let (Passage::Probe, Some((until_ms, every_ms))) = (passage, &mut self.open) {
            *until_ms = now_ms + (*every_ms).max(1);
        }
        passage
    }

    pub fn count(&mut self, said: Said, probe: bool) {
        let Tries { successes, errors, failures, run, .. } = &mut self.tries;
        let count = match said {
            Said::Success => successes,
            Said::Error => errors,
            Said::Failure => failures,
        };
        *count = count.saturating_add(1);
        *run = if said == Said::Failure { run.saturating_add(1) } else { 0 };
        if probe {
            self.tries.probe = Some(said);
        }
    }

    pub fn step(&mut self, now_ms: u64) {
        let run = self.tries.run;
        let tries = std::mem::replace(&mut self.tries, Tries { run, ..Tries::default() });
        match self.breaker.step(now_ms, &self.spec, &tries, RANDOM) {
            None => {}
            Some(Change::Opened { until_ms, every_ms, cause: _ }) => {
                self.open = Some((until_ms, every_ms));
            }
            Some(Change::Closed) => (self.open, self.tries.run) = (None, 0),
        }
    }
}
