//! How late the archive is: since when the oldest byte is on disk that it lacks. Pure.

use everhold_core::ids::{Lsn, Time};
use std::collections::VecDeque;

/// Looks that are remembered: beyond that, several count as the oldest of them.
const LOOKS_MAX: usize = 1_024;

/// How far the server was, and when.
#[derive(Clone, Debug, Default)]
pub struct Late {
    looks: VecDeque<(Time, Lsn)>,
}

impl Late {
    /// The server was seen to have all up to `at` on its disk.
    pub fn seen(&mut self, now: Time, at: Lsn) {
        if self.looks.back().is_some_and(|(_, last)| *last == at) && self.looks.len() > 1 {
            // Nothing came: what comes next came after this look.
            self.looks.pop_back();
        } else if self.looks.len() >= LOOKS_MAX
            && let Some((_, last)) = self.looks.back_mut()
        {
            *last = at;
            return;
        }
        self.looks.push_back((now, at));
    }

    /// All up to `archived` is in the archive: looks before that are forgotten but one.
    pub fn reached(&mut self, archived: Lsn) {
        while self.looks.get(1).is_some_and(|(_, at)| *at <= archived) {
            self.looks.pop_front();
        }
    }

    /// Milliseconds since the oldest byte beyond `archived` came, at most; `None`: never looked.
    pub fn behind(&self, archived: Lsn, now: Time) -> Option<u64> {
        let (_, newest) = self.looks.back()?;
        if archived >= *newest {
            return Some(0);
        }
        let clean = self.looks.iter().rev().find(|(_, at)| *at <= archived);
        let (since, _) = clean.or_else(|| self.looks.front())?;
        Some(now.since(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_byte_that_is_missing_counts() {
        #[rustfmt::skip]
        let cases = [
            // looks (instant:position)   archived  now    behind
            ("",                          0,        1_000, None),
            ("100:50",                    50,       1_000, Some(0)),
            ("100:50",                    60,       1_000, Some(0)),
            ("100:50 600:70",             50,       1_000, Some(900)),
            ("100:50 600:70 1100:90",     70,       1_200, Some(600)),
            ("100:50 600:70 1100:90",     89,       1_200, Some(600)),
            // Idle, then a write: it came after the last look that showed nothing new.
            ("100:50 600:50 1100:50 1600:60", 50,   1_700, Some(600)),
            // Behind since before the first look.
            ("100:50 600:70",             40,       1_000, Some(900)),
        ];
        for (looks, archived, now, expected) in cases {
            let mut late = Late::default();
            for look in looks.split_whitespace() {
                let (at, lsn) = look.split_once(':').expect("a look");
                late.seen(Time(at.parse().expect("at")), Lsn(lsn.parse().expect("a place")));
            }
            assert_eq!(late.behind(Lsn(archived), Time(now)), expected, "{looks} {archived}");
            late.reached(Lsn(archived));
            assert_eq!(late.behind(Lsn(archived), Time(now)), expected, "{looks} {archived}");
        }
    }

    #[test]
    fn a_long_absence_is_never_made_shorter() {
        let mut late = Late::default();
        for i in 0..10_000 {
            late.seen(Time(i * 500), Lsn(i));
        }
        assert!(late.looks.len() <= LOOKS_MAX);
        let behind = |archived| late.behind(Lsn(archived), Time(5_000_000)).expect("known");
        assert_eq!(behind(0), 5_000_000);
        assert!(behind(5_000) >= 2_500_000 && behind(9_999) == 0);
    }
}
