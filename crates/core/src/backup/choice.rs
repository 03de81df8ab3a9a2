//! Which backups are to be proven by a restore.

use super::{Backup, Kind, Proof};

/// Why a backup is proven now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proving {
    /// A full one that was not proven yet.
    Full,
    /// The newest incremental one.
    Newest,
    /// Any older one: what lies long may rot.
    Older,
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
