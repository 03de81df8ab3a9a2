//! When a backup begins, of which kind, on which node.
//!
//! Decided from what is seen, again and again: whoever decides may be lost at any moment.

use super::{Backup, Cron, Kind};
use crate::ids::Lsn;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A backup from so far in the future was made by a clock that was wrong: nothing is reckoned from
/// it, or none would be made until then.
const AHEAD_S: u64 = 3_600;
/// After a failure the next attempt waits, each time twice as long.
const RETRY_S: u64 = 60;
const RETRY_S_MAX: u64 = 3_600;
/// A backup that should have begun this long ago is shown.
pub const OVERDUE_S: u64 = 900;

/// When backups are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub full: Cron,
    pub incremental: Cron,
}

/// A node that has an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub leads: bool,
    /// Commits wait for it.
    pub synchronous: bool,
    /// It streams, or leads, and nobody took it out.
    pub able: bool,
}

/// Attempts in a row that came to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failed {
    pub times: u32,
    pub last_s: u64,
}

impl Failed {
    /// When it may be tried again.
    pub fn retry_s(&self, now_s: u64) -> u64 {
        let pause = RETRY_S.checked_shl(self.times.saturating_sub(1)).unwrap_or(RETRY_S_MAX);
        // A failure of the future is as good as one of now.
        match self.times {
            0 => 0,
            _ => self.last_s.min(now_s) + pause.min(RETRY_S_MAX),
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing before then, in seconds since 1970.
    Rest {
        until_s: u64,
    },
    Begin {
        kind: Kind,
        node: String,
    },
    Wait {
        why: String,
    },
}

/// The next backup. `hole`: where the newest hole of the log ends. `running`: one is being made.
pub fn next(
    plan: &Plan,
    backups: &[Backup],
    hole: Option<Lsn>,
    running: bool,
    failed: Failed,
    places: &BTreeMap<String, Place>,
    now_s: u64,
) -> Next {
    if running {
        return Next::Wait { why: "one is being made".to_string() };
    }
    let (kind, due_s) = due(plan, backups, hole, now_s);
    let from_s = due_s.max(failed.retry_s(now_s));
    if now_s < from_s {
        return Next::Rest { until_s: from_s };
    }
    match choose(places) {
        Some(node) => Next::Begin { kind, node: node.to_string() },
        None => Next::Wait { why: "no instance streams or leads".to_string() },
    }
}

/// The node that makes it: away from the leader, and from whom its commits wait for.
pub fn choose(places: &BTreeMap<String, Place>) -> Option<&str> {
    by_preference(places).first().copied()
}

/// All that are able, the best first.
pub fn by_preference(places: &BTreeMap<String, Place>) -> Vec<&str> {
    let mut able: Vec<_> = places.iter().filter(|(_, place)| place.able).collect();
    able.sort_by_key(|(name, place)| (place.leads, place.synchronous, Reverse(*name)));
    able.into_iter().map(|(node, _)| node.as_str()).collect()
}

/// The kind that is due first, and when, in seconds since 1970. Behind a hole in the log no point
/// can be restored before there is a backup that begins there: it is due at once.
pub fn due(plan: &Plan, backups: &[Backup], hole: Option<Lsn>, now_s: u64) -> (Kind, u64) {
    let begins_behind = |end: Lsn| backups.iter().any(|it| it.good && it.start >= end);
    if hole.is_some_and(|end| !begins_behind(end)) {
        return (Kind::Full, 0);
    }
    let known = || backups.iter().filter(|it| it.good && it.began_s <= now_s + AHEAD_S);
    let newest = |kind: Option<Kind>| {
        known().filter(|it| kind.is_none_or(|kind| it.kind == kind)).map(|it| it.began_s).max()
    };
    // The first one is due at once.
    let after = |cron: &Cron, last: Option<u64>| match last {
        Some(last) => cron.next_after(last).unwrap_or(u64::MAX),
        None => 0,
    };
    let full = after(&plan.full, newest(Some(Kind::Full)));
    let incremental = after(&plan.incremental, newest(None));
    // A full one that is due stands for both.
    match full > now_s && incremental < full {
        true => (Kind::Incremental, incremental),
        false => (Kind::Full, full),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Proof;
    use super::*;

    /// 2026-11-20 00:00.
    const DAY: u64 = 20_777 * 86_400;
    const HOUR: u64 = 3_600;

    fn backup(kind: Kind, began_s: u64) -> Backup {
        Backup {
            id: began_s.to_string(),
            kind,
            began_s,
            ended_s: began_s + 60,
            start: Lsn(1),
            stop: Lsn(2),
            tli: 1,
            good: true,
            proof: Proof::Unproven,
        }
    }

    #[test]
    fn what_is_due() {
        let plan = Plan {
            full: "0 2 * * *".parse().expect("a schedule"),
            incremental: "0 * * * *".parse().expect("a schedule"),
        };
        let full = |at| backup(Kind::Full, at);
        let incremental = |at| backup(Kind::Incremental, at);
        let rest = |until_s| Next::Rest { until_s };
        let begin = |kind| Next::Begin { kind, node: "c".to_string() };
        let none = Failed::default();
        let failed = |times, last_s| Failed { times, last_s };
        let at = |hours: u64| DAY + hours * HOUR;
        #[rustfmt::skip]
        let cases = [
            (vec![],                                         none, at(0),       begin(Kind::Full)),
            (vec![full(at(0) + 5)],                          none, at(0) + 99,  rest(at(1))),
            (vec![full(at(0) + 5)],                          none, at(1),       begin(Kind::Incremental)),
            (vec![full(at(0) + 5), incremental(at(1))],      none, at(1) + 99,  rest(at(2))),
            // Both are due: the full one stands for the other.
            (vec![full(at(0) + 5), incremental(at(1))],      none, at(2),       begin(Kind::Full)),
            // Machines were off for a day.
            (vec![full(at(0) + 5)],                          none, at(30),      begin(Kind::Full)),
            // Its clock ran ahead.
            (vec![full(at(0) + 5), incremental(at(9_000))],  none, at(1),       begin(Kind::Incremental)),
            (vec![full(at(9_000))],                          none, at(1),       begin(Kind::Full)),
            // After failures.
            (vec![],                                         failed(1, at(0)), at(0) + 59, rest(at(0) + 60)),
            (vec![],                                         failed(3, at(0)), at(0) + 60, rest(at(0) + 240)),
            (vec![],                                         failed(90, at(0)), at(0) + 60, rest(at(1))),
            (vec![],                                         failed(1, at(9)), at(0), rest(at(0) + 60)),
        ];
        let able = |leads, synchronous| Place { leads, synchronous, able: true };
        let places = BTreeMap::from([
            ("a".to_string(), able(true, false)),
            ("b".to_string(), able(false, true)),
            ("c".to_string(), able(false, false)),
        ]);
        for (backups, failed, now_s, expected) in cases {
            let got = next(&plan, &backups, None, false, failed, &places, now_s);
            assert_eq!(got, expected, "{backups:?} at {now_s}");
        }
    }

    #[test]
    fn a_hole_in_the_log_wants_a_backup_that_begins_behind_it() {
        let cron: Cron = "0 2 * * *".parse().expect("a schedule");
        let plan = Plan { full: cron.clone(), incremental: cron };
        let at = |start: u64, good| Backup {
            start: Lsn(start),
            good,
            ..backup(Kind::Incremental, DAY + 3 * HOUR)
        };
        let rest = (Kind::Full, DAY + 26 * HOUR);
        #[rustfmt::skip]
        let cases = [
            // backups                           hole        due
            (vec![at(50, true)],                 None,       rest),
            (vec![at(50, true)],                 Some(100),  (Kind::Full, 0)),
            (vec![at(50, true), at(100, false)], Some(100),  (Kind::Full, 0)),
            (vec![at(50, true), at(100, true)],  Some(100),  rest),
        ];
        for (mut backups, hole, expected) in cases {
            backups.push(Backup { start: Lsn(1), ..backup(Kind::Full, DAY + 3 * HOUR) });
            let got = due(&plan, &backups, hole.map(Lsn), DAY + 4 * HOUR);
            assert_eq!(got, expected, "{backups:?} {hole:?}");
        }
    }

    #[test]
    fn who_makes_it() {
        let cron: Cron = "0 2 * * *".parse().expect("a schedule");
        let plan = Plan { full: cron.clone(), incremental: cron };
        let place = |word: &str| {
            let (name, what) = word.split_once(':').expect("a word");
            let has = |letter: char| what.contains(letter);
            let place = Place { leads: has('l'), synchronous: has('s'), able: !has('-') };
            (name.to_string(), place)
        };
        #[rustfmt::skip]
        let cases = [
            ("a:l b:s c:",    Some("c")),
            ("a:l b:s c:s",   Some("c")),
            ("a:l b:s- c:-",  Some("a")),
            ("a:l b:s c:-",   Some("b")),
            ("a:l- b:- c:-",  None),
        ];
        for (text, node) in cases {
            let places = text.split_whitespace().map(place).collect();
            let got = next(&plan, &[], None, false, Failed::default(), &places, DAY);
            let got = match &got {
                Next::Begin { node, .. } => Some(node.as_str()),
                Next::Rest { .. } | Next::Wait { .. } => None,
            };
            assert_eq!(got, node, "{text}");
            let busy = next(&plan, &[], None, true, Failed::default(), &BTreeMap::new(), DAY);
            assert!(matches!(busy, Next::Wait { .. }));
        }
    }
}
