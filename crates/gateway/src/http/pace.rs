//! How long a service takes to answer, as all threads count it, and how long a try is waited for by that.

use everhold_core::http::latency::{BUCKETS, Latencies, bucket};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub struct Pace {
    counts: [AtomicU32; BUCKETS],
    /// 0: not known.
    patience_us: AtomicU64,
    /// The judge's own.
    minute: Mutex<Latencies>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            counts: [const { AtomicU32::new(0) }; BUCKETS],
            patience_us: AtomicU64::new(0),
            minute: Mutex::default(),
        }
    }
}

impl Pace {
    /// A try was answered after so long, or given up: what is given up took longer than most, and would
    /// else never be seen.
    pub fn took(&self, took: Duration) {
        self.counts[bucket(took.as_micros() as u64)].fetch_add(1, Relaxed);
    }

    /// How long a try is waited for where another one may follow, if that is known.
    pub fn patience(&self) -> Option<Duration> {
        let patience_us = self.patience_us.load(Relaxed);
        (patience_us > 0).then(|| Duration::from_micros(patience_us))
    }

    /// Judges what was counted since the last time.
    pub fn step(&self, now_ms: u64) {
        let counts = std::array::from_fn(|bucket| self.counts[bucket].swap(0, Relaxed));
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        minute.add(now_ms, &counts);
        self.patience_us.store(minute.patience_us(now_ms).unwrap_or(0), Relaxed);
    }
}
