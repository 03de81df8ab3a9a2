//! How slowly a client may send a body, or take an answer.
//!
//! Only the time counts in which the client alone was waited for: an instance that takes or says little
//! makes no client slow. As with Apache's mod_reqtimeout it is an average, and what came fast at first
//! is to its credit.

/// Bytes a second, if a route says nothing else: as mod_reqtimeout, and twice what Kestrel asks for.
pub const RATE_MIN: u32 = 500;
/// Before that nobody is slow: a lost packet or two, a phone in a tunnel.
const GRACE_MS: u64 = 5_000;

/// Of one body. Times are in milliseconds since any moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    waited_ms: u64,
    since: Option<u64>,
}

impl Pace {
    /// Whether the client is waited for, from now on.
    pub fn waits(&mut self, waits: bool, now: u64) {
        match (waits, self.since) {
            (true, None) => self.since = Some(now),
            (false, Some(since)) => {
                self.waited_ms += now.saturating_sub(since);
                self.since = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// From when on a client that has brought so many bytes is too slow, if nothing more comes. `None`:
    /// it isn't waited for.
    pub fn ends_at(&self, bytes: u64, rate_min: u32) -> Option<u64> {
        let allowed = GRACE_MS + bytes.saturating_mul(1000) / u64::from(rate_min.max(1));
        self.since.map(|since| since + allowed.saturating_sub(self.waited_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_waited_for_is_slow() {
        type Case = (&'static [(u64, bool, u64)], Option<u64>);
        // At a millisecond: waited for or not, with so many bytes; when that is too slow, at 500 a second.
        #[rustfmt::skip]
        let cases: &[Case] = &[
            (&[(0, true, 0)],                                          Some(5_000)),
            (&[(100, true, 0)],                                        Some(5_100)),
            (&[(0, false, 0)],                                         None),
            // Drops don't put it off by more than they are worth.
            (&[(0, true, 0), (4_000, true, 1)],                        Some(5_002)),
            (&[(0, true, 0), (4_000, true, 500)],                      Some(6_000)),
            // What was sent at once is to its credit.
            (&[(0, true, 1_000_000)],                                  Some(2_005_000)),
            // While others are waited for no time goes by.
            (&[(0, true, 0), (1_000, false, 0), (60_000, true, 0)],    Some(64_000)),
            (&[(0, true, 0), (1_000, false, 0), (60_000, false, 0)],   None),
        ];
        for (steps, expected) in cases {
            let mut pace = Pace::default();
            let mut ends_at = None;
            for (now, waits, bytes) in *steps {
                pace.waits(*waits, *now);
                ends_at = pace.ends_at(*bytes, 500);
            }
            assert_eq!(ends_at, *expected, "{steps:?}");
        }
    }
}
