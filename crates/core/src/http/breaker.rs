//! A service that answers nothing is asked no more, but for a probe now and then: those who wait for it
//! in vain would hold places, connections and retries that others need.
//!
//! Ejection takes single instances out and never the last ones; this is for when all are ill. Refusing
//! must not be worse than asking: a service of which some requests succeed is better served than
//! refused, so by default it opens only where nothing has succeeded for a while, and the first success
//! closes it. A rate opens it only where the user says which.

use serde::{Deserialize, Serialize};

use super::hash::below;
use super::outlier::{REQUESTS_MIN, Window};

/// Failures in a row, over all instances.
pub const RUN: u32 = 20;
/// Over at least so long: an instance that dies with many requests on it fails them in one moment.
const RUN_MS: u64 = 1_000;
/// The first time between two probes; it doubles with each that fails.
pub const OPEN_MS: u64 = 1_000;
pub const OPEN_MS_MAX: u64 = 30_000;

/// When it opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerSpec {
    /// Failures in a row.
    pub run: u32,
    /// Percent of at least [`REQUESTS_MIN`] tries within 10 s; `None`: at no rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_percent: Option<u32>,
    /// Until the first probe, and at most between two of them.
    pub open_ms: u64,
    pub open_ms_max: u64,
}

impl Default for BreakerSpec {
    fn default() -> BreakerSpec {
        BreakerSpec { run: RUN, rate_percent: None, open_ms: OPEN_MS, open_ms_max: OPEN_MS_MAX }
    }
}

/// What a try says of its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    Success,
    /// An answer that says that something went wrong: it works, if badly. Counts in the rate.
    Error,
    /// No answer, or one of who can't reach another: 502, 503, 504.
    Failure,
}

impl Said {
    pub fn by(status: u16) -> Said {
        match status {
            502..=504 => Said::Failure,
            500.. => Said::Error,
            _ => Said::Success,
        }
    }
}

/// What became of tries since the last step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tries {
    pub successes: u32,
    pub errors: u32,
    pub failures: u32,
    /// Failures since anything else, as of now.
    pub run: u32,
    /// What the last probe of them came to.
    pub probe: Option<Said>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// So many failed in a row, over a second or more.
    Run,
    Rate,
    /// So did the probe.
    Probe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nobody is let through; from `until_ms` on one request is, as a probe, and one more each
    /// `every_ms` while it is not known what came of it.
    Opened {
        cause: Cause,
        until_ms: u64,
        every_ms: u64,
    },
    Closed,
}

#[derive(Debug, Clone, Default)]
pub struct Breaker {
    /// How long it is open at a time, while it is.
    open_ms: Option<u64>,
    window: Window,
    /// Since when there have only been failures.
    run_since_ms: Option<u64>,
}

impl Breaker {
    pub fn is_open(&self) -> bool {
        self.open_ms.is_some()
    }

    pub fn step(
        &mut self,
        now_ms: u64,
        spec: &BreakerSpec,
        tries: &Tries,
        random: u64,
    ) -> Option<Change> {
        if let Some(open_ms) = self.open_ms {
            return match tries.probe? {
                Said::Success => {
                    *self = Breaker::default();
                    Some(Change::Closed)
                }
                Said::Error if self.opened_by_run_alone(spec) => {
                    *self = Breaker::default();
                    Some(Change::Closed)
                }
                Said::Error | Said::Failure => {
                    let open_ms = open_ms.saturating_mul(2).min(spec.open_ms_max);
                    Some(self.open(Cause::Probe, open_ms, now_ms, random))
                }
            };
        }
        let Tries { successes, errors, failures, run, .. } = *tries;
        self.window.add(now_ms, successes, errors.saturating_add(failures));
        if run == 0 || successes > 0 || errors > 0 {
            self.run_since_ms = None;
        }
        if run > 0 {
            self.run_since_ms.get_or_insert(now_ms);
        }
        // What succeeds now is left in peace.
        if errors == 0 && failures == 0 {
            return None;
        }
        let for_ms = self.run_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
        let enough = self.window.requests(now_ms) >= REQUESTS_MIN;
        let rate = |percent: u32| enough && self.window.rate(now_ms) >= percent.saturating_mul(10);
        let cause = match () {
            () if run >= spec.run && for_ms >= RUN_MS => Cause::Run,
            () if spec.rate_percent.is_some_and(rate) => Cause::Rate,
            () => return None,
        };
        Some(self.open(cause, spec.open_ms, now_ms, random))
    }

    /// An answer, of whatever kind, is what was missing.
    fn opened_by_run_alone(&self, spec: &BreakerSpec) -> bool {
        spec.rate_percent.is_none()
    }

    fn open(&mut self, cause: Cause, open_ms: u64, now_ms: u64, random: u64) -> Change {
        *self = Breaker { open_ms: Some(open_ms), ..Breaker::default() };
        // A tenth more or less, so that not all gateways try it in one moment.
        let until_ms = now_ms + open_ms * (900 + below(201, random) as u64) / 1_000;
        Change::Opened { cause, until_ms, every_ms: open_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps as `MS: WORDS`, one after another. `+9` succeeded, `e9` answered an error, `-9` failed, so
    /// often each; `probe+`, `probee`, `probe-` is what a probe came to. What came of it: `open CAUSE MS`,
    /// for so long, and `closed`.
    fn check(rate_percent: Option<u32>, script: &str, expected: &str) {
        let spec = BreakerSpec { rate_percent, ..BreakerSpec::default() };
        let (mut breaker, mut run, mut told) = (Breaker::default(), 0, Vec::new());
        for step in script.split(';') {
            let (ms, words) = step.split_once(':').unwrap();
            let now_ms = ms.trim().parse().unwrap();
            let mut tries = Tries::default();
            for word in words.split_whitespace() {
                if let Some(result) = word.strip_prefix("probe") {
                    tries.probe = Some(match result {
                        "+" => Said::Success,
                        "e" => Said::Error,
                        _ => Said::Failure,
                    });
                    continue;
                }
                let count: u32 = word[1..].parse().unwrap();
                match &word[..1] {
                    "+" => (tries.successes, run) = (count, 0),
                    "e" => (tries.errors, run) = (count, 0),
                    _ => (tries.failures, run) = (count, run + count),
                }
            }
            tries.run = run;
            // In the middle of the jitter.
            match breaker.step(now_ms, &spec, &tries, u64::MAX / 2) {
                None => {}
                Some(Change::Closed) => told.push("closed".to_owned()),
                Some(Change::Opened { cause, until_ms, every_ms }) => {
                    assert_eq!(until_ms, now_ms + every_ms, "{script}");
                    told.push(format!("open {cause:?} {every_ms}"));
                }
            }
            assert_eq!(breaker.is_open(), told.last().is_some_and(|it| it.starts_with("open")));
        }
        assert_eq!(told.join(", "), expected, "{script}");
    }

    #[test]
    fn it_opens_where_nothing_succeeds() {
        check(None, "0: -10; 500: -9; 1000: -1", "open Run 1000");
        check(None, "0: -10; 500: -11; 1000: -0", "");
        // Many in one moment are those of one instance.
        check(None, "0: -1000; 900: -1000", "");
        check(None, "0: -1000; 900: +1 -1000; 1800: -9", "");
        check(None, "0: -1000; 500: -0; 1000: -0; 1100: -1", "open Run 1000");
        // Half of them, and even one of twenty: it is better served than refused.
        check(None, "0: +10 -10; 1000: +10 -10; 2000: +10 -10; 3000: +10 -10", "");
        check(None, "0: -19; 1000: +1; 1001: -19; 2000: +1; 2001: -19; 3000: +1", "");
        // It answers, if badly.
        check(None, "0: e1000; 1000: e1000; 2000: e1000", "");
    }

    #[test]
    fn it_opens_at_a_rate_where_that_is_said() {
        check(Some(50), "0: +10 -9; 100: -1", "open Rate 1000");
        check(Some(50), "0: +10 e9; 100: e1", "open Rate 1000");
        check(Some(50), "0: +10 -9; 100: +1 -1", "");
        check(Some(50), "0: +9 -9; 100: -0", "");
        check(Some(50), "0: -9; 100: -1", "");
        // Of the last 10 s.
        check(Some(50), "0: +1000; 9000: -30; 10000: -1", "open Run 1000");
        check(Some(100), "0: -18; 100: e2", "open Rate 1000");
    }

    #[test]
    fn a_probe_closes_it_or_keeps_it_open_for_longer() {
        let open = "0: -20; 1000: -1;";
        check(None, &format!("{open} 2000: probe+; 2100: -19"), "open Run 1000, closed");
        check(None, &format!("{open} 2000: probee"), "open Run 1000, closed");
        check(Some(50), &format!("{open} 2000: probee"), "open Rate 1000, open Probe 2000");
        // What was on its way when it opened says nothing.
        check(None, &format!("{open} 1500: +9 -9"), "open Run 1000");
        check(
            None,
            &format!(
                "{open} 2000: probe-; 4000: probe-; 8000: probe-; 16000: probe-; 32000: probe-; \
                 62000: probe-; 92000: probe+; 93000: -20; 94000: -1"
            ),
            "open Run 1000, open Probe 2000, open Probe 4000, open Probe 8000, open Probe 16000, \
             open Probe 30000, open Probe 30000, closed, open Run 1000",
        );
    }
}
