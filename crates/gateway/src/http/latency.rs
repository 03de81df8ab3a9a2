//! How long a service takes to answer, as all threads count it: how long a try is waited for by that, and
//! from when on it is a slow one.

use everhold_core::http::latency::{BUCKETS, Latencies, bucket};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub struct Latency {
    counts: [AtomicU32; BUCKETS],
    /// 0: not known.
    patience_us: AtomicU64,
    /// The same.
    slow_us: AtomicU64,
    /// What takes longer than so many of 100 is slow; 0: nothing is.
    percent: AtomicU32,
    /// The judge's own.
    minute: Mutex<Latencies>,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency {
            counts: [const { AtomicU32::new(0) }; BUCKETS],
            patience_us: AtomicU64::new(0),
            slow_us: AtomicU64::new(0),
            percent: AtomicU32::new(0),
            minute: Mutex::default(),
        }
    }
}

impl Latency {
    /// `None`: nothing is slow.
    pub fn set(&self, percent: Option<u32>) {
        self.percent.store(percent.unwrap_or(0), Relaxed);
    }

    /// A try was answered after so long, or given up: what is given up took longer than most, and would
    /// else never be seen.
    pub fn took(&self, took: Duration) {
        self.counts[bucket(took.as_micros() as u64)].fetch_add(1, Relaxed);
    }

    /// How long a try is waited for where another one may follow, if that is known.
    pub fn patience(&self) -> Option<Duration> {
        known(&self.patience_us)
    }

    /// From when on a try is slow, if that is known.
    pub fn slow_after(&self) -> Option<Duration> {
        known(&self.slow_us)
    }

    /// Judges what was counted since the last time.
    pub fn step(&self, now_ms: u64) {
        let counts = std::array::from_fn(|bucket| self.counts[bucket].swap(0, Relaxed));
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        minute.add(now_ms, &counts);
        self.patience_us.store(minute.patience_us(now_ms).unwrap_or(0), Relaxed);
        let slow_us = match self.percent.load(Relaxed) {
            0 => None,
            percent => minute.percentile_us(percent, now_ms),
        };
        self.slow_us.store(slow_us.unwrap_or(0), Relaxed);
    }
}

fn known(us: &AtomicU64) -> Option<Duration> {
    let us = us.load(Relaxed);
    (us > 0).then(|| Duration::from_micros(us))
}
