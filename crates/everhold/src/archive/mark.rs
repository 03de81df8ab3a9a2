//! When a mark is left of how far the log was. Pure.

use everhold_core::ids::Lsn;
use everhold_core::term::BranchId;
use everhold_repository::log::Mark;

/// Between two marks: a hundredth of what is put under load.
const EVERY_MS: u64 = 10_000;
/// Where nothing is written: a time behind the last commit can be restored as well, since the log is known
/// to have nothing else.
const IDLE_MS: u64 = 600_000;

#[derive(Clone, Debug, Default)]
pub struct Marker {
    /// Left, or about to be.
    last: Option<(u64, Lsn)>,
    pending: Option<Mark>,
}

impl Marker {
    /// The server said at `asked_ms` that it had begun all up to there; all up to `archived` is in
    /// the archive now. The mark that is to be left, once.
    pub fn due(
        &mut self,
        asked_ms: u64,
        (branch, lsn): (BranchId, Lsn),
        archived: Lsn,
        now_ms: u64,
    ) -> Option<Mark> {
        let due = self.last.is_none_or(|(at, known)| {
            asked_ms.abs_diff(at) >= if known == lsn { IDLE_MS } else { EVERY_MS }
        });
        if self.pending.is_none() && due {
            self.last = Some((asked_ms, lsn));
            self.pending = Some(Mark { at_ms: asked_ms, archived_ms: asked_ms, branch, lsn });
        }
        let mark = self.pending.take_if(|mark| mark.lsn <= archived)?;
        Some(Mark { archived_ms: now_ms.max(mark.at_ms), ..mark })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_left_when_all_of_it_is_archived() {
        #[rustfmt::skip]
        let cases = [
            // asked, begun, archived   mark
            (1_000,   50,    40,        None),
            (1_500,   60,    49,        None),
            // The first one, by the time of its question.
            (2_000,   70,    60,        Some((1_000, 50))),
            (9_000,   90,    90,        None),
            (11_000,  95,    95,        Some((11_000, 95))),
            // Nothing came.
            (40_000,  95,    95,        None),
            (41_000,  99,    99,        Some((41_000, 99))),
            (640_000, 99,    99,        None),
            (641_000, 99,    99,        Some((641_000, 99))),
            // A clock that was set back.
            (11_000,  110,   110,       Some((11_000, 110))),
        ];
        let mut marker = Marker::default();
        for (asked, lsn, archived, expected) in cases {
            let at = (BranchId { epoch: 1, tli: 1 }, Lsn(lsn));
            let mark = marker.due(asked, at, Lsn(archived), asked + 5);
            assert_eq!(mark.map(|it| (it.at_ms, it.lsn.0)), expected, "{asked} {lsn}");
            assert!(mark.is_none_or(|it| it.archived_ms == asked + 5));
        }
    }
}
