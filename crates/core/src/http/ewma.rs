//! How long a backend takes to answer: a moving average that believes the worst at once and forgets
//! it slowly.

/// Assumed of a backend that was never asked while nothing is known of others; tower's and linkerd's.
pub const EXPECTED_US: f64 = 30_000.0;
/// In this time an observation loses all but 1/e of its weight; linkerd's.
pub const DECAY_MS: f64 = 10_000.0;

/// Peak EWMA, as in Finagle, tower and linkerd2-proxy.
///
/// Unlike theirs, reading doesn't write: the estimate that decays while nothing is observed is
/// computed from the last observation, which comes to the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeakEwma {
    estimate_us: f64,
    at_ms: u64,
}

impl PeakEwma {
    /// `expected_us`: what its neighbours take, or [`EXPECTED_US`].
    pub fn new(expected_us: f64, now_ms: u64) -> PeakEwma {
        PeakEwma { estimate_us: expected_us, at_ms: now_ms }
    }

    /// An answer came after `took_us`. A refusal is no answer: it comes fast and would draw more.
    pub fn observe(&mut self, took_us: f64, now_ms: u64) {
        let kept = self.kept(now_ms);
        self.estimate_us = match took_us > self.estimate_us {
            true => took_us,
            false => self.estimate_us * kept + took_us * (1.0 - kept),
        };
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// The estimate in microseconds. It falls while nobody asks, so that whoever was slow once is
    /// asked again.
    pub fn cost(&self, now_ms: u64) -> f64 {
        self.estimate_us * self.kept(now_ms)
    }

    fn kept(&self, now_ms: u64) -> f64 {
        (-(now_ms.saturating_sub(self.at_ms) as f64) / DECAY_MS).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_believed_at_once_and_forgotten_in_seconds() {
        // What was observed when, asked when: microseconds, milliseconds.
        type Case = (&'static [(f64, u64)], u64, f64);
        #[rustfmt::skip]
        let cases: &[Case] = &[
            (&[],                                            0, 30_000.0),
            (&[],                                       10_000, 11_036.4),
            (&[(50_000.0, 0)],                               0, 50_000.0),
            (&[(50_000.0, 0), (1_000.0, 0)],                 0, 50_000.0),
            (&[(50_000.0, 0), (1_000.0, 10_000)],       10_000, 19_026.1),
            (&[(50_000.0, 0), (1_000.0, 100_000)],     100_000,  1_002.2),
            (&[(50_000.0, 0), (60_000.0, 1)],                1, 60_000.0),
            (&[(50_000.0, 0)],                          20_000,  6_766.8),
            // A clock that was read earlier changes nothing.
            (&[(50_000.0, 9_000), (1_000.0, 8_000)],     7_000, 50_000.0),
        ];
        for (observed, now_ms, expected) in cases {
            let mut ewma = PeakEwma::new(EXPECTED_US, 0);
            for (took_us, at_ms) in *observed {
                ewma.observe(*took_us, *at_ms);
            }
            let cost = ewma.cost(*now_ms);
            assert!((cost - expected).abs() < 0.1, "{observed:?} at {now_ms}: {cost}");
        }
    }
}
