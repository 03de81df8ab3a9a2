//! A service's breaker as all threads see it: they count, the judge's thread says what follows.

use everhold_core::http::breaker::{Breaker, BreakerSpec, Change, Said, Tries};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What the last probe came to: not known, or one of these.
const PROBE_FAILED: u8 = 1;
const PROBE_ERRED: u8 = 2;
const PROBE_SUCCEEDED: u8 = 3;

#[derive(Default)]
pub struct Switch {
    /// 0: closed. Else nobody passes before; then one does, and it is put off by `every_ms`.
    until_ms: AtomicU64,
    every_ms: AtomicU64,
    successes: AtomicU32,
    errors: AtomicU32,
    failures: AtomicU32,
    /// Failures since anything else.
    run: AtomicU32,
    probe: AtomicU8,
    /// The judge's own.
    judged: Mutex<(Breaker, BreakerSpec)>,
}

/// Whom a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    All,
    /// This one alone: what comes of it decides. Others are put off until then.
    Probe {
        until_ms: u64,
    },
    /// Nobody; the next probe is due then.
    Nobody {
        for_ms: u64,
    },
}

impl Switch {
    pub fn set(&self, spec: &BreakerSpec) {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner).1 = spec.clone();
    }

    /// Whether one would be let through now.
    pub fn look(&self, now_ms: u64) -> Passage {
        match self.until_ms.load(Relaxed) {
            0 => Passage::All,
            until_ms if until_ms <= now_ms => Passage::Probe { until_ms },
            until_ms => Passage::Nobody { for_ms: until_ms - now_ms },
        }
    }

    /// The same for one who goes.
    pub fn pass(&self, now_ms: u64) -> Passage {
        loop {
            let until_ms = self.until_ms.load(Relaxed);
            match self.look(now_ms) {
                Passage::Probe { .. } => {}
                passage @ (Passage::All | Passage::Nobody { .. }) => return passage,
            }
            // What becomes of it may never be known: another one follows after a while.
            let next_ms = now_ms + self.every_ms.load(Relaxed).max(1);
            if self.until_ms.compare_exchange(until_ms, next_ms, Relaxed, Relaxed).is_ok() {
                return Passage::Probe { until_ms: next_ms };
            }
        }
    }

    /// Nothing came of a probe: the next one is due at once, unless there was one meanwhile.
    pub fn give_back(&self, until_ms: u64) {
        // Any time that is over.
        let _ = self.until_ms.compare_exchange(until_ms, 1, Relaxed, Relaxed);
    }

    /// `true`: it should be judged at once.
    pub fn count(&self, said: Said, probe: bool) -> bool {
        match said {
            Said::Success => self.successes.fetch_add(1, Relaxed),
            Said::Error => self.errors.fetch_add(1, Relaxed),
            Said::Failure => self.failures.fetch_add(1, Relaxed),
        };
        match said {
            Said::Failure => drop(self.run.fetch_add(1, Relaxed)),
            Said::Success | Said::Error if self.run.load(Relaxed) > 0 => self.run.store(0, Relaxed),
            Said::Success | Said::Error => {}
        }
        if probe {
            let result = match said {
                Said::Success => PROBE_SUCCEEDED,
                Said::Error => PROBE_ERRED,
                Said::Failure => PROBE_FAILED,
            };
            self.probe.store(result, Relaxed);
        }
        probe
    }

    /// Judges what was counted since the last time.
    pub fn step(&self, service: &str, now_ms: u64, random: u64) {
        let tries = Tries {
            successes: self.successes.swap(0, Relaxed),
            errors: self.errors.swap(0, Relaxed),
            failures: self.failures.swap(0, Relaxed),
            run: self.run.load(Relaxed),
            probe: match self.probe.swap(0, Relaxed) {
                PROBE_SUCCEEDED => Some(Said::Success),
                PROBE_ERRED => Some(Said::Error),
                PROBE_FAILED => Some(Said::Failure),
                _ => None,
            },
        };
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let (breaker, spec) = &mut *judged;
        match breaker.step(now_ms, spec, &tries, random) {
            None => {}
            Some(Change::Opened { cause, until_ms, every_ms }) => {
                tracing::warn!(service, ?cause, for_ms = until_ms - now_ms, "breaker open");
                self.every_ms.store(every_ms, Relaxed);
                self.until_ms.store(until_ms, Relaxed);
            }
            Some(Change::Closed) => {
                tracing::info!(service, "breaker closed");
                self.run.store(0, Relaxed);
                self.until_ms.store(0, Relaxed);
            }
        }
    }

    /// When the next probe is due, if it is open.
    pub fn open_for(&self, now_ms: u64) -> Option<Duration> {
        let until_ms = self.until_ms.load(Relaxed);
        (until_ms > 0).then(|| Duration::from_millis(until_ms.saturating_sub(now_ms)))
    }
}
