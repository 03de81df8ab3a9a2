//! Active checks: what is asked of a backend again and again, and what its answers mean.
//!
//! Nothing is known of a new backend, which is not the same as healthy. Its first check decides: one
//! success, and it is used; one failure, and it is not. From then on it takes `unhealthy_threshold`
//! failures in a row to take it out and `healthy_threshold` successes in a row to bring it back.
//!
//! Requests that find no connection have the next check made at once, and if that fails too, it is
//! enough: of three, two of which are killed, only one can be ejected, and nobody should wait for
//! the other's third check.
//!
//! A check ends an ejection only if what it shows is what failed: the backend was ejected because no
//! connection was found, and since then `healthy_threshold` checks in a row have succeeded. Requests
//! that were answered, but badly, outweigh a check: they are what clients see, and a check that found
//! it healthy all the while would bring it back each second.

use super::hash::below;
use super::outlier::Cause;
use crate::spec::HealthSpec;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not checked yet.
    Unknown,
    Healthy,
    Unhealthy,
}

/// The checks of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    health: Health,
    /// Successes in a row, and when the first of them was; or failures in a row.
    succeeded: u32,
    since_ms: u64,
    failed: u32,
    due_ms: u64,
    /// Until then no further suspicion brings a check forward.
    trusted_ms: u64,
}

impl Probe {
    /// The first check is due at once.
    pub fn new(now_ms: u64) -> Probe {
        Probe {
            health: Health::Unknown,
            succeeded: 0,
            since_ms: now_ms,
            failed: 0,
            due_ms: now_ms,
            trusted_ms: 0,
        }
    }

    pub fn health(&self) -> Health {
        self.health
    }

    /// When to check next.
    pub fn due_ms(&self) -> u64 {
        self.due_ms
    }

    /// A check ended; says whether that changed what is held of the backend. The next is due an
    /// interval later, a tenth more or less, so that gateways don't check in step.
    pub fn checked(&mut self, ok: bool, spec: &HealthSpec, now_ms: u64, random: u64) -> bool {
        self.due_ms =
            now_ms + spec.interval_ms.saturating_mul(900 + below(201, random) as u64) / 1_000;
        if ok {
            if self.succeeded == 0 {
                self.since_ms = now_ms;
            }
            (self.succeeded, self.failed) = (self.succeeded.saturating_add(1), 0);
        } else {
            (self.succeeded, self.failed) = (0, self.failed.saturating_add(1));
        }
        let before = self.health;
        self.health = match before {
            Health::Unknown if ok => Health::Healthy,
            Health::Unknown => Health::Unhealthy,
            Health::Healthy if self.failed >= spec.unhealthy_threshold.max(1) => Health::Unhealthy,
            Health::Unhealthy if self.succeeded >= spec.healthy_threshold.max(1) => Health::Healthy,
            Health::Healthy | Health::Unhealthy => before,
        };
        self.health != before
    }

    /// [`RUN`](super::outlier::RUN) requests in a row found no connection. At most once in an interval
    /// that makes the next check due now, and the one that decides.
    pub fn suspected(&mut self, spec: &HealthSpec, now_ms: u64) {
        if self.health == Health::Healthy && now_ms >= self.trusted_ms {
            self.failed = self.failed.max(spec.unhealthy_threshold.saturating_sub(1));
            (self.succeeded, self.due_ms) = (0, now_ms);
            self.trusted_ms = now_ms.saturating_add(spec.interval_ms);
        }
    }

    /// The checks end an ejection that began at `ejected_ms`.
    pub fn clears(&self, cause: Cause, ejected_ms: u64, spec: &HealthSpec) -> bool {
        match cause {
            Cause::Unreachable => {
                // Those of the run that came before the ejection say nothing; with all of it after
                // it, it's enough to count.
                self.since_ms > ejected_ms && self.succeeded >= spec.healthy_threshold.max(1)
            }
            Cause::Run | Cause::Rate | Cause::Trial => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: HealthSpec = HealthSpec {
        path: None,
        interval_ms: 1_000,
        timeout_ms: 500,
        healthy_threshold: 2,
        unhealthy_threshold: 3,
        start_within_ms: 60_000,
        restart_after_ms: 60_000,
    };

    #[test]
    fn thresholds_are_met_in_a_row() {
        // Answers of checks, `!` for a suspicion, and what is held of the backend after each.
        #[rustfmt::skip]
        let cases: &[(&str, &str)] = &[
            ("+",         "H"),
            ("-",         "D"),
            ("+--",       "HHH"),
            ("+---",      "HHHD"),
            ("+--+--",    "HHHHHH"),
            ("+---+",     "HHHDD"),
            ("+---++",    "HHHDDH"),
            ("+---+-++",  "HHHDDDDH"),
            ("-+",        "DD"),
            ("-++",       "DDH"),
            ("-++--+---", "DDHHHHHHD"),
            ("+!-",       "HHD"),
            ("+!+--",     "HHHHH"),
            ("+!-++",     "HHDDH"),
            ("!+",        "UH"),
            ("-!++",      "DDDH"),
        ];
        for (answers, expected) in cases {
            let mut probe = Probe::new(0);
            assert_eq!((probe.health(), probe.due_ms()), (Health::Unknown, 0));
            let mut held = String::new();
            for answer in answers.chars() {
                let before = probe.health();
                if answer == '!' {
                    probe.suspected(&SPEC, 0);
                } else {
                    let changed = probe.checked(answer == '+', &SPEC, 0, 0);
                    assert_eq!(changed, probe.health() != before);
                }
                held.push(match probe.health() {
                    Health::Unknown => 'U',
                    Health::Healthy => 'H',
                    Health::Unhealthy => 'D',
                });
            }
            assert_eq!(held, *expected, "{answers}");
        }
    }

    #[test]
    fn the_next_check_is_an_interval_later_more_or_less() {
        for (random, due_ms) in [(0, 5_900), (u64::MAX / 2, 6_000), (u64::MAX, 6_100)] {
            let mut probe = Probe::new(0);
            probe.checked(true, &SPEC, 5_000, random);
            assert_eq!(probe.due_ms(), due_ms);
        }
    }

    #[test]
    fn a_suspicion_brings_one_check_in_an_interval_forward() {
        let mut probe = Probe::new(0);
        probe.checked(true, &SPEC, 5_000, 0);
        for (now_ms, due_ms) in [(5_200, 5_200), (5_300, 6_210), (5_900, 6_210), (6_205, 6_205)] {
            probe.suspected(&SPEC, now_ms);
            assert_eq!(probe.due_ms(), due_ms, "at {now_ms}");
            if now_ms == 5_200 {
                assert!(!probe.checked(true, &SPEC, 5_310, 0));
            }
        }
        assert!(probe.checked(false, &SPEC, 6_206, 0));
        assert_eq!(probe.health(), Health::Unhealthy);
    }

    #[test]
    fn checks_end_an_ejection_only_if_they_show_what_failed() {
        // Answers, one a second from 1 s on; ejected at so many seconds.
        #[rustfmt::skip]
        let cases: &[(&str, Cause, u64, bool)] = &[
            ("+---++", Cause::Unreachable, 1, true),
            ("+---++", Cause::Unreachable, 4, true),
            ("+---++", Cause::Unreachable, 5, false),
            ("+---+",  Cause::Unreachable, 1, false),
            // It succeeded all the while that clients found no connection.
            ("++++++", Cause::Unreachable, 3, false),
            ("+---++", Cause::Run,         1, false),
            ("+---++", Cause::Rate,        1, false),
            ("+---++", Cause::Trial,       1, false),
        ];
        for (answers, cause, ejected, expected) in cases {
            let mut probe = Probe::new(0);
            for (answer, second) in answers.chars().zip(1..) {
                probe.checked(answer == '+', &SPEC, second * 1_000, 0);
            }
            let clears = probe.clears(*cause, ejected * 1_000, &SPEC);
            assert_eq!(clears, *expected, "{answers} {cause:?} at {ejected}");
        }
    }
}
