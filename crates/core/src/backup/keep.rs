//! Which backups and which log are kept.
//!
//! A backup is whole by itself, so each may go alone. The window is reckoned back from the newest
//! sound backup when that is older than now: no clock that runs ahead, and no month without a
//! backup, makes the last ones go.

use super::Backup;
use super::cron::date;
use crate::ids::Lsn;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

const DAY_S: u64 = 86_400;
/// Days kept when nothing is said.
pub const DAYS: u32 = 30;
/// Ten years: longer is an archive, which wants a repository of its own.
pub const COUNT_MAX: u32 = 3_660;

/// What is to be kept: all of the last days, and of the time before one for each of so many hours,
/// days, weeks (from Monday), months and years in which there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    pub days: u32,
    #[serde(default)]
    pub hourly: u32,
    #[serde(default)]
    pub daily: u32,
    #[serde(default)]
    pub weekly: u32,
    #[serde(default)]
    pub monthly: u32,
    #[serde(default)]
    pub yearly: u32,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep { days: DAYS, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0 }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} days", self.days)?;
        let rules = [
            ("hourly", self.hourly),
            ("daily", self.daily),
            ("weekly", self.weekly),
            ("monthly", self.monthly),
            ("yearly", self.yearly),
        ];
        let rules = rules.into_iter().filter(|(_, count)| *count > 0);
        rules.into_iter().try_for_each(|(name, count)| write!(f, ", {count} {name}"))
    }
}

/// Why a backup is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is of the last days.
    Window,
    /// The first points of the window need it.
    Base,
    /// The newest sound one.
    Newest,
    /// The newest that was proven.
    Proven,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

/// After a run that came to nothing, or waited for a backup under way.
const AGAIN_S: u64 = 600;
/// While some place lacks what another has.
const UNEVEN_S: u64 = 3_600;

/// How the last run that forgets ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub at_s: u64,
    /// It did all that there was to do.
    pub whole: bool,
    /// It copied for as long as it may at once, and there is more.
    pub goes_on: bool,
}

/// Whether it is time to forget: a day after the last time, and after each full backup, which may be
/// what the last run waited for; sooner while the places are `uneven`, since each run also makes them
/// level.
pub fn is_due(last: Option<Run>, newest_full_s: Option<u64>, uneven: bool, now_s: u64) -> bool {
    let Some(Run { at_s, whole, goes_on }) = last else { return true };
    // One of the future was a wrong clock's.
    let at_s = at_s.min(now_s);
    let wait = match (whole, uneven) {
        (_, _) if goes_on => 0,
        (false, _) => AGAIN_S,
        (true, true) => UNEVEN_S,
        (true, false) => DAY_S,
    };
    now_s >= at_s + wait || newest_full_s.is_some_and(|full| (at_s..=now_s).contains(&full))
}

/// Why each backup is kept; without a reason it may go.
pub fn judge(backups: &[Backup], keep: &Keep, now_s: u64) -> BTreeMap<String, BTreeSet<Reason>> {
    let mut kept: BTreeMap<String, BTreeSet<Reason>> =
        backups.iter().map(|it| (it.id.clone(), BTreeSet::new())).collect();
    let mut mark = |backup: Option<&Backup>, reason| {
        let reasons = backup.and_then(|backup| kept.get_mut(&backup.id));
        reasons.map(|reasons| reasons.insert(reason));
    };
    let from = window(backups, keep, now_s);
    for backup in backups.iter().filter(|it| it.ended_s >= from) {
        mark(Some(backup), Reason::Window);
    }
    let sound = || backups.iter().filter(|it| it.is_sound());
    let age = |it: &&Backup| (it.ended_s, it.id.clone());
    mark(sound().max_by_key(age), Reason::Newest);
    mark(sound().filter(|it| it.ended_s < from).max_by_key(age), Reason::Base);
    let proven = |it: &&Backup| matches!(it.proof, super::Proof::Proven { .. });
    mark(sound().filter(proven).max_by_key(age), Reason::Proven);

    type Period = fn(u64) -> u64;
    let month: Period = |at_s| {
        let (year, month, _) = date(at_s / DAY_S);
        year * 12 + month
    };
    // Days since 1970 begin on a Thursday.
    let periods: [(u32, Reason, Period); 5] = [
        (keep.hourly, Reason::Hourly, |at_s| at_s / 3_600),
        (keep.daily, Reason::Daily, |at_s| at_s / DAY_S),
        (keep.weekly, Reason::Weekly, |at_s| (at_s / DAY_S + 3) / 7),
        (keep.monthly, Reason::Monthly, month),
        (keep.yearly, Reason::Yearly, |at_s| date(at_s / DAY_S).0),
    ];
    for (count, reason, period) in periods {
        let mut newest: BTreeMap<u64, &Backup> = BTreeMap::new();
        for backup in sound() {
            let of = newest.entry(period(backup.ended_s)).or_insert(backup);
            if age(&backup) > age(&&**of) {
                *of = backup;
            }
        }
        newest.values().rev().take(count as usize).for_each(|backup| mark(Some(*backup), reason));
    }
    kept
}

/// The same by several standards of what is good: what any of them keeps is kept. With a place lost,
/// or more copies wanted, every older backup falls short: that is a reason to make copies of those
/// that are left, and none to give them up.
pub fn judge_by(
    standards: &[Vec<Backup>],
    keep: &Keep,
    now_s: u64,
) -> BTreeMap<String, BTreeSet<Reason>> {
    let mut kept: BTreeMap<String, BTreeSet<Reason>> = BTreeMap::new();
    for (id, reasons) in standards.iter().flat_map(|it| judge(it, keep, now_s)) {
        kept.entry(id).or_default().extend(reasons);
    }
    kept
}

/// From when on every point can be restored, in seconds since 1970.
pub fn window(backups: &[Backup], keep: &Keep, now_s: u64) -> u64 {
    let newest = backups.iter().filter(|it| it.is_sound()).map(|it| it.ended_s).max();
    let until = newest.map_or(now_s, |newest| newest.min(now_s));
    until.saturating_sub(u64::from(keep.days) * DAY_S)
}

/// The log that what is kept needs: from a position on, and before it some pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// `None`: all of it, since no sound backup says otherwise.
    pub from: Option<Lsn>,
    /// From the start of an older backup to where it is consistent.
    pub pieces: Vec<(Lsn, Lsn)>,
}

impl Log {
    /// Whether any byte from `start` to before `end` is needed.
    pub fn needs(&self, start: Lsn, end: Lsn) -> bool {
        self.from.is_none_or(|from| end > from)
            || self.pieces.iter().any(|(from, to)| end > *from && start < *to)
    }
}

/// The log needed with what [`judge`] keeps.
pub fn log(backups: &[Backup], kept: &BTreeMap<String, BTreeSet<Reason>>) -> Log {
    let whole = [Reason::Window, Reason::Base, Reason::Newest];
    let of_window = |it: &&Backup| {
        kept.get(&it.id).is_some_and(|reasons| whole.iter().any(|why| reasons.contains(why)))
    };
    let from = backups.iter().filter(of_window).map(|it| it.start).min();
    let sound = backups.iter().any(Backup::is_sound);
    let is_kept = |it: &&Backup| kept.get(&it.id).is_some_and(|reasons| !reasons.is_empty());
    let older = backups.iter().filter(is_kept).filter(|it| !of_window(it));
    Log { from: from.filter(|_| sound), pieces: older.map(|it| (it.start, it.stop)).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Proof};
    use super::*;

    /// 2026-11-20 00:00, a Friday.
    const NOW: u64 = 20_777 * DAY_S;

    /// One per word: AGE in days and hours ("3d", "2d5h", "-1d" is tomorrow's), then `!` failed its
    /// proof, `+` proven, `?` not enough copies.
    fn backups(text: &str) -> Vec<Backup> {
        let one = |word: &str| {
            let age = word.trim_end_matches(['!', '+', '?']);
            let (days, hours) = age.split_once('d').expect("days");
            let hours: i64 = hours.trim_end_matches('h').parse().unwrap_or(0);
            let days: i64 = days.parse().expect("days");
            let at = NOW.saturating_add_signed(-(days * 24 + hours) * 3_600);
            Backup {
                id: age.to_string(),
                kind: Kind::Full,
                began_s: at - 60,
                ended_s: at,
                start: Lsn(at - 60),
                stop: Lsn(at),
                tli: 1,
                good: !word.ends_with('?'),
                proof: match word.chars().last() {
                    Some('!') => Proof::Failed { at_s: at },
                    Some('+') => Proof::Proven { at_s: at },
                    _ => Proof::Unproven,
                },
            }
        };
        text.split_whitespace().map(one).collect()
    }

    fn kept(text: &str, keep: &Keep) -> String {
        let backups = backups(text);
        let kept = judge(&backups, keep, NOW);
        stay(&backups, &kept)
    }

    fn stay(backups: &[Backup], kept: &BTreeMap<String, BTreeSet<Reason>>) -> String {
        let stay = backups.iter().filter(|it| !kept[&it.id].is_empty());
        stay.map(|it| it.id.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_stays() {
        let keep =
            |days, daily, weekly, monthly| Keep { days, daily, weekly, monthly, ..Keep::default() };
        #[rustfmt::skip]
        let cases = [
            // backups                       keep                 what stays
            ("0d 1d 2d 3d 4d",               keep(2, 0, 0, 0),    "0d 1d 2d 3d"),
            // The base of the window is the newest sound one before it.
            ("0d 1d 3d! 4d 5d",              keep(2, 0, 0, 0),    "0d 1d 4d"),
            ("0d 1d 3d? 4d 5d",              keep(2, 0, 0, 0),    "0d 1d 4d"),
            // Never the last sound one, nor the window before it, however old.
            ("90d 91d 99d",                  keep(2, 0, 0, 0),    "90d 91d 99d"),
            ("90d 91d 99d 100d",             keep(2, 0, 0, 0),    "90d 91d 99d"),
            ("0d! 50d 60d",                  keep(2, 0, 0, 0),    "0d! 50d 60d"),
            // The newest proven one stays until another is.
            ("0d 1d 40d+ 50d+",              keep(2, 0, 0, 0),    "0d 1d 40d"),
            ("0d 1d 40d 50d+ 60d+",          keep(2, 0, 0, 0),    "0d 1d 40d 50d"),
            // From a clock that ran ahead.
            ("-400d 0d 1d 9d 10d",           keep(2, 0, 0, 0),    "-400d 0d 1d 9d"),
            // Fridays back from now, and one for each month.
            ("0d 7d 8d 14d 15d 21d 28d",     keep(1, 0, 3, 0),    "0d 7d 14d"),
            // Weeks begin on Monday, which is 4 days ago.
            ("0d 3d 4d 5d 6d 11d 12d",       keep(0, 0, 3, 0),    "0d 3d 5d 12d"),
            ("0d 30d 31d 60d 90d 100d",      keep(1, 0, 0, 3),    "0d 30d 60d"),
            ("0d 0d5h 1d 1d5h 2d 2d5h 3d",   keep(0, 2, 0, 0),    "0d 0d5h"),
            ("0d1h 0d5h 1d1h 1d5h 2d 2d5h",  keep(0, 2, 0, 0),    "0d1h 0d5h 1d1h"),
            // A failed one does not stand for its week.
            ("0d 8d! 9d 16d",                keep(1, 0, 2, 0),    "0d 9d"),
            ("",                             keep(1, 1, 1, 1),    ""),
        ];
        for (text, keep, stay) in cases {
            assert_eq!(kept(text, &keep), stay.replace('!', ""), "{text} {keep:?}");
        }
    }

    #[test]
    fn what_only_lacks_copies_stays_beside_what_has_them() {
        let keep = Keep { days: 2, weekly: 3, ..Keep::default() };
        #[rustfmt::skip]
        let cases = [
            // backups                    what stays
            ("0d? 1d? 8d? 15d? 22d?",     "0d 1d 8d 15d"),
            // The newest has its copies since a place was made anew, the older ones not yet.
            ("0d 1d? 8d? 15d? 22d?",      "0d 1d 8d 15d"),
            ("0d 1d 8d? 9d 15d? 22d",     "0d 1d 8d 9d 15d 22d"),
            ("0d 1d 8d 15d 22d",          "0d 1d 8d 15d"),
            ("0d 1d 8d! 9d? 15d?",        "0d 1d 9d 15d"),
        ];
        for (text, expected) in cases {
            let standards = [backups(text), backups(&text.replace('?', ""))];
            let kept = judge_by(&standards, &keep, NOW);
            assert_eq!(stay(&standards[0], &kept), expected, "{text}");
            let log = log(&standards[0], &kept);
            for it in standards[0].iter().filter(|it| !kept[&it.id].is_empty()) {
                assert!(log.needs(it.start, it.stop), "{text} {}", it.id);
            }
        }
    }

    #[test]
    fn what_it_stays_for() {
        let keep = Keep { days: 2, weekly: 2, ..Keep::default() };
        let backups = backups("0d 1d 9d 10d+ 40d");
        let kept = judge(&backups, &keep, NOW);
        let told = |id: &str| kept[id].iter().map(|why| format!("{why:?}")).collect::<Vec<_>>();
        #[rustfmt::skip]
        let cases = [
            ("0d", "Window Newest Weekly"), ("1d", "Window"), ("9d", "Base Weekly"),
            ("10d", "Proven"), ("40d", ""),
        ];
        for (id, why) in cases {
            assert_eq!(told(id).join(" "), why, "{id}");
        }
    }

    #[test]
    fn when_it_is_time() {
        let run = |ago: i64, whole| {
            Some(Run { at_s: NOW.saturating_add_signed(-ago), whole, goes_on: false })
        };
        #[rustfmt::skip]
        let cases = [
            // last run             newest full       due
            (None,                  None,             true),
            (run(86_399, true),     None,             false),
            (run(86_400, true),     None,             true),
            (run(60, true),         Some(NOW - 61),   false),
            (run(60, true),         Some(NOW - 30),   true),
            (run(599, false),       Some(NOW - 600),  false),
            (run(599, false),       Some(NOW - 30),   true),
            (run(600, false),       None,             true),
            // Clocks that ran ahead.
            (run(-900_000, true),   None,             false),
            (run(-900_000, true),   Some(NOW),        true),
            (run(60, true),         Some(NOW + 500),  false),
        ];
        for (last, full, due) in cases {
            assert_eq!(is_due(last, full, false, NOW), due, "{last:?} {full:?}");
        }
        #[rustfmt::skip]
        let uneven = [
            (run(3_599, true),                                            false),
            (run(3_600, true),                                            true),
            (run(599, false),                                             false),
            (run(0, true).map(|it| Run { goes_on: true, ..it }),          true),
        ];
        for (last, due) in uneven {
            assert_eq!(is_due(last, None, true, NOW), due, "{last:?}");
        }
    }

    #[test]
    fn every_point_of_the_window_can_be_restored() {
        // Whatever fails its proof or lacks copies: some sound kept backup ended before each point.
        let keep = Keep { days: 5, ..Keep::default() };
        for pattern in 0..1_u32 << 12 {
            let word =
                |day: u32| format!("{day}d{}", if pattern >> day & 1 == 1 { "!" } else { "" });
            let text: Vec<String> = (0..12).map(word).collect();
            let backups = backups(&text.join(" "));
            let kept = judge(&backups, &keep, NOW);
            let from = window(&backups, &keep, NOW);
            let sound = || backups.iter().filter(|it| it.is_sound());
            let ended_before = |at: u64| sound().filter(move |it| it.ended_s < at);
            let log = log(&backups, &kept);
            if let Some(base) = ended_before(from).max_by_key(|it| it.ended_s) {
                assert!(!kept[&base.id].is_empty(), "{text:?}");
                assert!(log.needs(base.start, Lsn(base.start.0 + 1)), "{text:?}");
            }
            if let Some(newest) = sound().max_by_key(|it| it.ended_s) {
                assert!(!kept[&newest.id].is_empty(), "{text:?}");
                assert!(log.needs(newest.start, newest.stop), "{text:?}");
            } else {
                assert!(log.needs(Lsn(0), Lsn(1)), "nothing sound: all of the log stays");
            }
        }
    }

    #[test]
    fn an_older_one_keeps_its_own_piece_of_the_log() {
        let backups = backups("0d 1d 7d 14d 15d");
        let keep = Keep { days: 0, weekly: 3, ..Keep::default() };
        let kept = judge(&backups, &keep, NOW);
        let at = |days: u64| Lsn(NOW - days * DAY_S);
        let log = log(&backups, &kept);
        assert_eq!(log.from, Some(Lsn(at(1).0 - 60)), "the base of the window");
        assert_eq!(log.pieces.len(), 2);
        assert!(log.needs(at(1), Lsn(at(1).0 + 1)) && log.needs(at(0), at(0)));
        assert!(log.needs(Lsn(at(7).0 - 1), at(7)), "until the older one is consistent");
        assert!(!log.needs(at(7), Lsn(at(7).0 + 1)), "and not after it");
        assert!(!log.needs(Lsn(at(15).0 - 1), at(15)), "what goes takes its log along");
    }
}
