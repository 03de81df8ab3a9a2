//! Phi-accrual failure detection, as a pure state machine.
//!
//! After Hayashibara and others, "The φ accrual failure detector" (2004): phi is the negative
//! decimal logarithm of the probability that a heartbeat is still to come, given the intervals
//! seen so far, taken as normally distributed. Unlike a fixed timeout it widens by itself on a
//! machine that is busy.

use crate::ids::Time;
use serde::{Deserialize, Serialize};

/// Intervals remembered: 10 s of heartbeats, long enough to know a load, short enough to forget it.
const WINDOW: usize = 100;
/// Less spread than this is never assumed, in ms: a quiet past must not make a detector nervous.
const DEVIATION_MIN_MS: f64 = 60.0;

/// A longer silence was an outage and says nothing about the rhythm: one of 20 s, learned as it is,
/// would hide the next one for 10 s.
const INTERVAL_MS_MAX: u64 = 1_000;

/// What is known about the heartbeats of one peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detector {
    last: Option<Time>,
    /// Of the last [`WINDOW`] intervals, exponentially weighted: mean and mean square, in ms.
    mean: f64,
    square: f64,
    seen: usize,
}

impl Detector {
    /// `expected_ms` is assumed until intervals have been seen.
    pub fn new(expected_ms: u64) -> Self {
        let mean = expected_ms as f64;
        Detector { last: None, mean, square: mean * mean, seen: 0 }
    }

    /// A heartbeat came.
    pub fn heard(&mut self, now: Time) {
        if let Some(last) = self.last {
            let interval = now.since(last).min(INTERVAL_MS_MAX) as f64;
            self.seen = (self.seen + 1).min(WINDOW);
            let weight = 1.0 / self.seen as f64;
            self.mean += (interval - self.mean) * weight;
            self.square += (interval * interval - self.square) * weight;
        }
        self.last = Some(now);
    }

    /// Starts the silence anew without learning from it: the observer itself was away.
    pub fn forgive(&mut self, now: Time) {
        if self.last.is_some() {
            self.last = Some(now);
        }
    }

    /// When the last heartbeat came.
    pub fn last(&self) -> Option<Time> {
        self.last
    }

    /// Suspicion at `now`; 0 before the first heartbeat.
    pub fn phi(&self, now: Time) -> f64 {
        let Some(last) = self.last else { return 0.0 };
        let deviation = (self.square - self.mean * self.mean).max(0.0).sqrt().max(DEVIATION_MIN_MS);
        let y = (now.since(last) as f64 - self.mean) / deviation;
        // Logistic approximation of the normal tail, as Akka and Cassandra use it.
        let e = (-y * (1.5976 + 0.070566 * y * y)).exp();
        let tail = if y > 0.0 { e / (1.0 + e) } else { 1.0 - 1.0 / (1.0 + e) };
        -tail.max(f64::MIN_POSITIVE).log10()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(interval_ms: &[u64]) -> (Detector, Time) {
        let mut detector = Detector::new(100);
        let mut now = Time(1_000);
        detector.heard(now);
        for ms in interval_ms.iter().cycle().take(100) {
            now = now.plus(*ms);
            detector.heard(now);
        }
        (detector, now)
    }

    /// The silence in ms at which phi passes 8, in steps of 10 ms.
    fn patience(interval_ms: &[u64]) -> u64 {
        let (detector, now) = after(interval_ms);
        (0..1_000).map(|i| i * 10).find(|ms| detector.phi(now.plus(*ms)) >= 8.0).unwrap_or(u64::MAX)
    }

    #[test]
    fn a_jittery_peer_gets_more_patience() {
        let steady = patience(&[100]);
        let jittery = patience(&[100, 100, 100, 400]);
        assert!((300..700).contains(&steady), "{steady}");
        assert!(jittery > steady * 3 / 2, "{jittery} against {steady}");
    }

    #[test]
    fn an_outage_is_not_learned_as_a_rhythm() {
        let (mut detector, now) = after(&[100]);
        let back = now.plus(20_000);
        detector.heard(back);
        assert!(detector.phi(back.plus(1_000)) >= 8.0, "{}", detector.phi(back.plus(1_000)));
    }

    #[test]
    fn unheard_is_not_suspected_and_forgiven_starts_anew() {
        assert_eq!(Detector::new(100).phi(Time(1_000_000)), 0.0);
        let (mut detector, now) = after(&[100]);
        let later = now.plus(5_000);
        assert!(detector.phi(later) > 8.0);
        detector.forgive(later);
        assert!(detector.phi(later.plus(50)) < 1.0);
    }
}
