//! Marks: word from outside the log of how far it went. A recovery ends without an error at the first
//! record that it can't read, so only what was known before it tells whether something is missing.

use super::Log;
use crate::RepositoryError;
use everhold_core::ids::{Epoch, Lsn};
use everhold_core::term::{Branch, BranchId};
use serde::{Deserialize, Serialize};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
/// Older marks go: what is proven of that time is proven up to where the next backup ended.
const KEPT_MS: u64 = 92 * DAY_MS;

/// What a leader said of its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// All that was committed before ended at `lsn`, by the leader's clock, since 1970.
    pub at_ms: u64,
    /// By then all of that was archived.
    pub archived_ms: u64,
    pub branch: BranchId,
    /// The end of a record.
    pub lsn: Lsn,
}

/// What is known of a mark by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MarkName {
    pub at_ms: u64,
    pub epoch: Epoch,
}

impl MarkName {
    fn parse(name: &str) -> Option<MarkName> {
        let (at, epoch) = name.split_once('.')?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        Some(MarkName { at_ms: hex(at)?, epoch: hex(epoch)? })
    }
}

/// Whether that place is on the line, and on that branch of it.
pub fn is_on(line: &[Branch], branch: BranchId, lsn: Lsn) -> bool {
    let Some(at) = line.iter().position(|it| it.id() == branch) else { return false };
    let begins = line[at].parent == 0 || line[at].fork <= lsn;
    begins && line.get(at + 1).is_none_or(|next| lsn <= next.fork)
}

impl Log<'_> {
    fn mark_name(&self, name: MarkName) -> String {
        format!("{}marks/{:016X}.{:016X}", self.prefix, name.at_ms, name.epoch)
    }

    pub fn put_mark(&self, mark: &Mark) -> Result<(), RepositoryError> {
        let name = MarkName { at_ms: mark.at_ms, epoch: mark.branch.epoch };
        // Numbers only.
        let text = serde_json::to_vec(mark).expect("plain data");
        self.repository.put(&self.mark_name(name), &text).map(|_| ())
    }

    /// All marks there are, the oldest first.
    pub fn marks(&self) -> Result<Vec<MarkName>, RepositoryError> {
        let prefix = format!("{}marks/", self.prefix);
        let listed = self.repository.list(&prefix)?.into_keys();
        let mut marks: Vec<MarkName> =
            listed.filter_map(|name| MarkName::parse(name.strip_prefix(&prefix)?)).collect();
        marks.sort_unstable();
        Ok(marks)
    }

    pub fn mark(&self, name: MarkName) -> Result<Mark, RepositoryError> {
        let name = self.mark_name(name);
        serde_json::from_slice(&self.repository.get(&name)?)
            .map_err(|error| RepositoryError::Malformed { what: name, said: error.to_string() })
    }

    /// Of older marks few are kept. Returns how many went.
    pub fn thin_marks(&self, now_ms: u64) -> Result<usize, RepositoryError> {
        if !self.repository.absent().is_empty() {
            return Ok(0);
        }
        let gone = thinned(&self.marks()?, now_ms);
        gone.iter().try_for_each(|name| self.repository.delete(&self.mark_name(*name)))?;
        Ok(gone.len())
    }
}

/// What goes: of the last hour all stay, of the day one a minute, then one an hour.
fn thinned(marks: &[MarkName], now_ms: u64) -> Vec<MarkName> {
    let mut last = None;
    let goes = |mark: &&MarkName| {
        let age = now_ms.saturating_sub(mark.at_ms);
        let step = match age {
            0..HOUR_MS => return false,
            HOUR_MS..DAY_MS => MINUTE_MS,
            DAY_MS..KEPT_MS => HOUR_MS,
            KEPT_MS.. => return true,
        };
        let slot = Some((step, mark.at_ms / step));
        std::mem::replace(&mut last, slot) == slot
    };
    marks.iter().filter(goes).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_old_marks_stay() {
        let now = 400 * DAY_MS;
        let every = |step: u64| (1..now / step).map(move |n| n * step);
        let mut marks: Vec<MarkName> =
            every(10 * 60_000).map(|at_ms| MarkName { at_ms, epoch: 1 }).collect();
        marks.extend((0..8_640).map(|n| MarkName { at_ms: now - n * 10_000, epoch: 1 }));
        marks.sort_unstable();
        marks.dedup();
        let gone = thinned(&marks, now);
        let stay = || marks.iter().filter(|it| !gone.contains(it));
        let between = |from: u64, to: u64| {
            stay().filter(|it| (from..to).contains(&(now - it.at_ms))).count() as u64
        };
        assert_eq!(between(0, HOUR_MS), 360, "all of the last hour");
        assert!(between(HOUR_MS, DAY_MS).abs_diff(23 * 60) <= 1, "one a minute");
        let hours = between(DAY_MS, KEPT_MS);
        assert!(hours.abs_diff(91 * 24) <= 1, "one an hour: {hours}");
        assert_eq!(between(KEPT_MS, now), 0);
        let stay: Vec<MarkName> = stay().copied().collect();
        assert!(thinned(&stay, now).is_empty(), "what stays, stays");
    }

    #[test]
    fn what_is_on_a_line() {
        let branch =
            |tli, parent, fork| Branch { tli, epoch: u64::from(tli), parent, fork: Lsn(fork) };
        let line = [branch(1, 0, 0), branch(2, 1, 100), branch(4, 2, 200)];
        let cases = [
            (1, 50, true),
            (1, 100, true),
            // Written by an old leader that went on.
            (1, 101, false),
            (2, 99, false),
            (2, 150, true),
            (3, 150, false),
            (4, 9_999, true),
        ];
        for (tli, lsn, expected) in cases {
            let id = BranchId { epoch: u64::from(tli), tli };
            assert_eq!(is_on(&line, id, Lsn(lsn)), expected, "{tli} {lsn}");
        }
        assert!(!is_on(&line, BranchId { epoch: 9, tli: 1 }, Lsn(50)), "another's timeline 1");
    }
}
