//! Which backups are to be proven by a restore.

use super::schedule::{Failed, Place, by_preference};
use super::{Backup, Cron, Kind, Proof};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A round that is not through after this is shown.
pub const ROUND_OVERDUE_S: u64 = 6 * 3_600;

/// Why a backup is proven now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proving {
    /// A full one that was not proven yet.
    Full,
    /// The newest incremental one.
    Newest,
    /// Any older one: what lies long may rot.
    Older,
    /// Somebody asked for it.
    Asked,
}

/// What of the round that began last is still to be proven, and when that began: found from what the
/// repositories hold, so whoever decides may be lost at any moment. `older_s`: when one was last
/// proven as [`Proving::Older`].
pub fn owed<'b>(
    schedule: &Cron,
    backups: &'b [Backup],
    older_s: Option<u64>,
    now_s: u64,
) -> (u64, Vec<(&'b Backup, Proving)>) {
    let Some(round_s) = schedule.last_before(now_s) else { return (0, Vec::new()) };
    let at_s = |it: &Backup| match it.proof {
        Proof::Unproven => None,
        Proof::Proven { at_s } | Proof::Failed { at_s } => Some(at_s),
    };
    let of_round = |it: &&Backup| it.ended_s <= round_s && at_s(it).is_none_or(|at| at < round_s);
    let of_round: Vec<Backup> = backups.iter().filter(of_round).cloned().collect();
    // The same for all who ask in this round, and another one in the next.
    let random = (round_s / 60).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let was_older = older_s.is_some_and(|at| at >= round_s);
    let newest = backups.iter().filter(|it| it.good && it.ended_s <= round_s);
    let newest = newest.filter(|it| it.kind == Kind::Incremental).max_by_key(|it| it.ended_s);
    let round = to_prove(&of_round, random).into_iter().filter(|(it, why)| match why {
        // With the newest one tried, the one before it is not the newest.
        Proving::Newest => newest.is_some_and(|newest| newest.id == it.id),
        Proving::Older => !was_older,
        Proving::Full | Proving::Asked => true,
    });
    let round = round
        .filter_map(|(it, why)| Some((backups.iter().find(|backup| backup.id == it.id)?, why)));
    (round_s, round.collect())
}

/// A proof to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next<'b> {
    pub backup: &'b Backup,
    pub why: Proving,
    pub node: &'b str,
}

/// The proof that begins now, of those that are owed. `busy`: a backup is made or proven. What could
/// not be done is tried on another node, and after all of them another backup is: the one may be too
/// large for every disk.
pub fn next_proof<'b>(
    owed: &[(&'b Backup, Proving)],
    busy: bool,
    failed: Failed,
    places: &'b BTreeMap<String, Place>,
    now_s: u64,
) -> Option<Next<'b>> {
    let nodes = by_preference(places);
    if busy || nodes.is_empty() || owed.is_empty() || now_s < failed.retry_s(now_s) {
        return None;
    }
    let times = failed.times as usize;
    let (backup, why) = owed[times / nodes.len() % owed.len()];
    Some(Next { backup, why, node: nodes[times % nodes.len()] })
}

/// What one round proves: every full one that was not tried yet (the newest first), the newest
/// incremental one, and of those tried before one that `random` picks.
pub fn to_prove(backups: &[Backup], random: u64) -> Vec<(&Backup, Proving)> {
    let mut good: Vec<&Backup> = backups.iter().filter(|it| it.good).collect();
    good.sort_by_key(|it| std::cmp::Reverse((it.ended_s, &it.id)));
    let untried = |it: &&&Backup| it.proof == Proof::Unproven;
    let full = good.iter().filter(|it| it.kind == Kind::Full).filter(untried);
    let mut round: Vec<(&Backup, Proving)> = full.map(|it| (*it, Proving::Full)).collect();
    let newest = good.iter().find(|it| it.kind == Kind::Incremental).filter(untried);
    round.extend(newest.map(|it| (*it, Proving::Newest)));
    let older: Vec<&&Backup> =
        good.iter().filter(|it| !round.iter().any(|(other, _)| other.id == it.id)).collect();
    if let Some(place) = random.checked_rem(older.len() as u64) {
        round.push((older[place as usize], Proving::Older));
    }
    round
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Lsn;

    #[test]
    fn what_a_round_still_owes() {
        const DAY: u64 = 20_777 * 86_400;
        let hour = |text: &str| DAY + text.parse::<u64>().expect("an hour") * 3_600;
        // KIND, hour of its end, then `+` or `!` and the hour of its proof.
        let backup = |word: &str| {
            let (end, proof) = match word.find(['+', '!']) {
                Some(at) => (&word[1..at], Some((&word[at..=at], hour(&word[at + 1..])))),
                None => (&word[1..], None),
            };
            Backup {
                id: word[..=end.len()].to_string(),
                kind: if word.starts_with('f') { Kind::Full } else { Kind::Incremental },
                began_s: hour(end) - 60,
                ended_s: hour(end),
                start: Lsn(1),
                stop: Lsn(2),
                tli: 1,
                good: true,
                proof: match proof {
                    Some(("+", at_s)) => Proof::Proven { at_s },
                    Some((_, at_s)) => Proof::Failed { at_s },
                    None => Proof::Unproven,
                },
            }
        };
        let schedule: Cron = "0 4 * * *".parse().expect("a schedule");
        #[rustfmt::skip]
        let cases = [
            // backups, older one proven at, now                 owed
            ("f2 i3",                None,       "3",  ""),
            ("f2 i3",                None,       "4",  "Full f2, Newest i3"),
            ("f2+4 i3",              None,       "9",  "Newest i3"),
            // Older: what this round did not touch.
            ("f2+4 i3+5",            None,       "9",  ""),
            ("f1+3 f2+4 i3+5",       None,       "9",  "Older f1"),
            ("f1+6 f2+4 i3+5",       Some("6"),  "9",  ""),
            ("f1+3 i0 f2+4 i3+5",    Some("6"),  "9",  ""),
            // Failed is tried.
            ("f2!4 i3!5",            None,       "9",  ""),
            // Made since: of the next round.
            ("f2+4 i3+5 f6 i7",      None,       "9",  ""),
            ("f2+4 i3+5 f6 i7",      None,       "28", "Full f6, Newest i7, Older i3"),
            // Before the newest one was tried another one came: only that is the newest.
            ("f2+4 i1 i3+5",         Some("5"),  "9",  ""),
        ];
        for (text, older, now, expected) in cases {
            let backups: Vec<Backup> = text.split_whitespace().map(backup).collect();
            let (round_s, owed) = owed(&schedule, &backups, older.map(hour), hour(now));
            assert!(round_s <= hour(now) && round_s % 86_400 == 4 * 3_600);
            let owed = owed.iter().map(|(it, why)| format!("{why:?} {}", it.id));
            assert_eq!(owed.collect::<Vec<_>>().join(", "), expected, "{text} at {now}");
        }
    }

    #[test]
    fn which_proof_begins_and_where() {
        let backup = |id: &str| Backup {
            id: id.to_string(),
            kind: Kind::Full,
            began_s: 1,
            ended_s: 2,
            start: Lsn(1),
            stop: Lsn(2),
            tli: 1,
            good: true,
            proof: Proof::Unproven,
        };
        let (f, g) = (backup("f"), backup("g"));
        let owed = [(&f, Proving::Full), (&g, Proving::Older)];
        let able = |leads, able| Place { leads, synchronous: false, able };
        let places = BTreeMap::from([
            ("a".to_string(), able(true, true)),
            ("b".to_string(), able(false, true)),
            ("c".to_string(), able(false, false)),
        ]);
        #[rustfmt::skip]
        let cases = [
            // busy, failures, seconds since, proof
            (false, 0, 0,      "f b"),
            (true,  0, 0,      ""),
            (false, 1, 59,     ""),
            (false, 1, 60,     "f a"),
            (false, 2, 120,    "g b"),
            (false, 3, 999,    "g a"),
            (false, 4, 999,    "f b"),
        ];
        for (busy, times, since, expected) in cases {
            let failed = Failed { times, last_s: 1_000 };
            let next = next_proof(&owed, busy, failed, &places, 1_000 + since);
            let got = next.map_or(String::new(), |it| format!("{} {}", it.backup.id, it.node));
            assert_eq!(got, expected, "{busy} {times} {since}");
        }
        assert_eq!(next_proof(&[], false, Failed::default(), &places, 9), None);
        assert_eq!(next_proof(&owed, false, Failed::default(), &BTreeMap::new(), 9), None);
    }

    #[test]
    fn a_round() {
        let backup = |word: &str| Backup {
            id: word[..2].to_string(),
            kind: if word.starts_with('f') { Kind::Full } else { Kind::Incremental },
            began_s: 0,
            ended_s: word[1..2].parse().expect("an age"),
            start: Lsn(1),
            stop: Lsn(2),
            tli: 1,
            good: !word.ends_with('?'),
            proof: match &word[2..] {
                "+" => Proof::Proven { at_s: 0 },
                "!" => Proof::Failed { at_s: 0 },
                _ => Proof::Unproven,
            },
        };
        #[rustfmt::skip]
        let cases = [
            ("",                    0, ""),
            ("f1",                  0, "f1"),
            ("f1+",                 0, "f1"),
            ("f1+ i2 i3",           0, "i3 i2"),
            ("f1+ i2 i3",           1, "i3 f1"),
            ("f1+ i2 i3+",          1, "i2"),
            ("f1 i2 i3 f4 i5 i6",   2, "f4 f1 i6 i2"),
            ("f1! i2? f3?",         7, "f1"),
        ];
        for (text, random, expected) in cases {
            let backups: Vec<Backup> = text.split_whitespace().map(backup).collect();
            let got: Vec<&str> =
                to_prove(&backups, random).into_iter().map(|(it, _)| it.id.as_str()).collect();
            assert_eq!(got.join(" "), expected, "{text}");
        }
    }
}
