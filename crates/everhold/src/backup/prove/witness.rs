//! Up to where a backup is recovered, and who says what has to be there then.
//!
//! A server recovers without a word up to the first record that it can't read. So the instant is
//! taken from outside the recovery: from a mark that the leader left when all of its log was archived
//! up to there, or from the end of the next backup.

use super::End;
use crate::backup::shown::time;
use everhold_core::backup::keep::{Keep, judge, log as needed};
use everhold_core::ids::Lsn;
use everhold_core::term::Branch;
use everhold_repository::backup::{Info, Lines, Proofs, judged, proof_of};
use everhold_repository::log::{Log, Mark, MarkName, coverage, is_on, missing};
use everhold_repository::{Repository, RepositoryError};

/// Marks of a leader that was deposed lie before each other: so many are looked at.
const MARKS_MAX: usize = 64;

/// What is to be restored of the log, and what has to be there then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    pub line: Vec<Branch>,
    /// Up to there the log is restored: to the witness's place, or, of the newest, all of it.
    pub end: Lsn,
    pub witness: Witness,
}

/// Somebody who knew, when it was so, how far the database was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    pub by: String,
    pub at_ms: u64,
    pub lsn: Lsn,
    /// How long it took from the leader's disk to the repository.
    pub rpo_ms: Option<u64>,
}

/// What the decision rests on.
pub struct Known<'a> {
    pub backups: &'a [Info],
    pub proofs: &'a Proofs,
    pub lines: &'a Lines,
    pub keep: &'a Keep,
    pub copies: usize,
    pub now_s: u64,
}

impl Known<'_> {
    /// Of older ones that are kept only the log is there that they need themselves; also if the window
    /// has grown since, or begins earlier as what was newer has failed: `dropped` is up to where log
    /// ever went.
    fn has_log_onwards(&self, backup: &Info, dropped: Lsn) -> bool {
        let proof = |it: &Info| judged(proof_of(self.proofs, &it.id));
        let one = |it: &Info| it.backup(self.copies, proof(it), self.lines);
        let all: Vec<_> = self.backups.iter().map(one).collect();
        let log = needed(&all, &judge(&all, self.keep, self.now_s));
        log.from.is_none_or(|from| from <= backup.about.start) && dropped <= backup.about.start
    }

    /// The one whose end ends the backup's window.
    fn next(&self, backup: &Info, line: &[Branch]) -> Option<&Info> {
        let later = |it: &&Info| {
            let tip = it.about.line.last();
            it.about.sysid == backup.about.sysid
                && it.about.stop > backup.about.stop
                && tip.is_some_and(|tip| is_on(line, tip.id(), it.about.stop))
        };
        self.backups.iter().filter(later).min_by_key(|it| it.about.stop)
    }
}

/// Chooses the instant by `random`, of the time up to the next backup; the newest backup is
/// recovered to the end. A log that lacks something before it is a failure.
pub fn choose(
    repository: &Repository,
    service: &str,
    backup: &Info,
    known: &Known<'_>,
    random: u64,
) -> Result<Course, End> {
    let about = &backup.about;
    let log = Log::new(repository, service, about.sysid);
    let of = |error| End::of_repository(error, repository);
    let line = about.line_onwards(known.lines);
    let covered = coverage(&log.pieces(1).map_err(of)?, &line);
    // Read after the pieces: what goes meanwhile is known to go.
    let onwards = known.has_log_onwards(backup, log.dropped_before().map_err(of)?);
    let next = known.next(backup, &line);
    let (from_ms, to_ms) = (about.ended_s * 1_000, next.map(|it| it.about.ended_s * 1_000));
    let instant = to_ms.map_or(u64::MAX, |to| from_ms + random % (to.max(from_ms) - from_ms + 1));
    let own = Witness {
        by: format!("backup {}", backup.id),
        at_ms: from_ms,
        lsn: about.stop,
        rpo_ms: None,
    };
    let mut witness = own;
    if onwards {
        let marks = log.marks().map_err(of)?;
        let read = |name| log.mark(name);
        if let Some(mark) = marked(&marks, (from_ms, instant), &line, about.stop, read) {
            witness = Witness {
                by: "its leader".to_string(),
                at_ms: mark.at_ms,
                lsn: mark.lsn,
                rpo_ms: Some(mark.archived_ms.saturating_sub(mark.at_ms)),
            };
        } else if let Some(next) = next {
            let (by, at_ms) = (format!("backup {}", next.id), next.about.ended_s * 1_000);
            witness = Witness { by, at_ms, lsn: next.about.stop, rpo_ms: None };
        }
    }
    let hole = missing(&covered, about.start, Lsn(u64::MAX));
    let end = hole.map_or(Lsn(u64::MAX), |hole| hole.start);
    if end < witness.lsn {
        let gap = missing(&covered, about.start, witness.lsn);
        let to = gap.map_or(witness.lsn, |gap| gap.end);
        // A place that does not answer may have it.
        return Err(End::of_repository(RepositoryError::NotArchived { from: end, to }, repository)
            .because(&witness));
    }
    let end = if onwards && next.is_none() { end } else { witness.lsn };
    Ok(Course { line, end, witness })
}

/// The newest mark in that time which is on the line, behind the backup's own end.
fn marked(
    marks: &[MarkName],
    (from_ms, to_ms): (u64, u64),
    line: &[Branch],
    stop: Lsn,
    read: impl Fn(MarkName) -> Result<Mark, RepositoryError>,
) -> Option<Mark> {
    let within = |it: &&MarkName| (from_ms..=to_ms).contains(&it.at_ms);
    let newest = marks.iter().rev().filter(within).take(MARKS_MAX);
    newest
        .filter_map(|name| read(*name).ok())
        .find(|mark| mark.lsn >= stop && is_on(line, mark.branch, mark.lsn))
}

impl Witness {
    /// What it says.
    pub fn word(&self) -> String {
        format!("{} had all up to {} at {}", self.by, self.lsn, time(self.at_ms / 1_000))
    }

    /// What is wrong with a recovery that ended there.
    pub fn judge(&self, recovered: Lsn) -> Option<String> {
        (recovered < self.lsn).then(|| {
            format!(
                "the recovery ended at {recovered}, and {}: the last {} bytes of the log are not \
                 what was archived",
                self.word(),
                self.lsn.0 - recovered.0
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::term::BranchId;
    use everhold_repository::backup::About;

    /// Weeks ago log went behind a weekly backup that was kept. Now the window begins with it: more
    /// days are kept, or all that is newer has failed. That is no fault of the backup.
    #[test]
    fn log_that_was_forgotten_is_not_missed_when_the_window_grows() {
        let about = About { start: Lsn(100), stop: Lsn(110), ended_s: 1_000, ..About::default() };
        let id = "weekly".to_string();
        let backup = Info { id, about, manifests: 1, copies: 1, ..Info::default() };
        let known = Known {
            backups: std::slice::from_ref(&backup),
            proofs: &Proofs::default(),
            lines: &Lines::default(),
            keep: &Keep::default(),
            copies: 1,
            now_s: 2_000,
        };
        assert!(known.has_log_onwards(&backup, Lsn(0)));
        assert!(known.has_log_onwards(&backup, Lsn(100)), "up to its own beginning");
        assert!(!known.has_log_onwards(&backup, Lsn(101)));
    }

    #[test]
    fn the_newest_mark_on_the_line_is_the_witness() {
        let branch =
            |tli, parent, fork| Branch { tli, epoch: u64::from(tli), parent, fork: Lsn(fork) };
        let line = [branch(1, 0, 0), branch(2, 1, 100)];
        // TIME:TIMELINE:PLACE, `?` can't be read.
        #[rustfmt::skip]
        let cases = [
            // marks                       from to    stop expected
            ("",                           0,  99,    10,  None),
            ("5:1:20 7:1:40",              0,  99,    10,  Some(7)),
            ("5:1:20 7:1:40",              0,  6,     10,  Some(5)),
            ("5:1:20 7:1:40",              6,  6,     10,  None),
            ("5:1:20 7:?",                 0,  99,    10,  Some(5)),
            // Of the old leader, beyond the fork.
            ("5:1:20 7:1:140 8:2:120",     0,  99,    10,  Some(8)),
            ("5:1:20 7:1:140",             0,  99,    10,  Some(5)),
            // Its clock says it came after the backup, its place says before.
            ("5:1:20",                     0,  99,    30,  None),
        ];
        for (text, from, to, stop, expected) in cases {
            let parts = |word: &str| -> Vec<Option<u64>> {
                word.split(':').map(|part| part.parse().ok()).collect()
            };
            let all: Vec<Vec<Option<u64>>> = text.split_whitespace().map(parts).collect();
            let names: Vec<MarkName> =
                all.iter().map(|it| MarkName { at_ms: it[0].expect("a time"), epoch: 1 }).collect();
            let read = |name: MarkName| {
                let it = all.iter().find(|it| it[0] == Some(name.at_ms)).expect("it is there");
                let Some(tli) = it[1] else {
                    return Err(RepositoryError::Damaged { name: "a mark".to_string() });
                };
                let branch = BranchId { epoch: tli, tli: tli as u32 };
                let lsn = Lsn(it[2].expect("a place"));
                Ok(Mark { at_ms: name.at_ms, archived_ms: name.at_ms, branch, lsn })
            };
            let got = marked(&names, (from, to), &line, Lsn(stop), read);
            assert_eq!(got.map(|it| it.at_ms), expected, "{text}");
        }
    }
}
