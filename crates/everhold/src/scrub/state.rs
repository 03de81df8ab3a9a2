//! How far a scrubber is and what it has found: on disk, so that a restart goes on from there, and
//! in part told to all.

use crate::disk;
use everhold_core::postgres::BadPages;
use everhold_core::records::{decode, encode};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Listed one by one; all are counted.
pub const LISTED_MAX: usize = 20;
/// Remembered, to be read again; more than this is a disk that is going.
pub const BAD_MAX: usize = 1_000;

/// A page that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bad {
    /// Of the file, in the data directory.
    pub path: String,
    /// In that file.
    pub page: u64,
    /// `NAME of DATABASE`, if the server could say.
    pub relation: Option<String>,
    /// What is wrong with it.
    pub why: String,
}

impl Bad {
    pub fn told(&self) -> String {
        let Bad { path, page, relation, why } = self;
        let of = relation.as_ref().map(|name| format!("{name}, ")).unwrap_or_default();
        format!("page {page} of {of}{path}: {why}")
    }
}

/// What stands in `scrub.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Of the data that was read: of other data nothing is known.
    pub incarnation: u32,
    pub began_s: u64,
    /// The file and page to go on at; `None`: the round is over.
    pub next: Option<(String, u64)>,
    pub done_bytes: u64,
    pub of_bytes: u64,
    /// The last whole round: when it ended, and how long it was read for.
    pub ended_s: Option<u64>,
    pub took_s: u64,
    /// Time spent in this round, over all starts.
    pub spent_s: u64,
    pub bad: Vec<Bad>,
}

/// What a node tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    pub began_s: u64,
    pub running: bool,
    pub done_bytes: u64,
    pub of_bytes: u64,
    pub ended_s: Option<u64>,
    pub took_s: u64,
    pub bad_pages: u64,
    /// The first of them.
    pub bad: Vec<Bad>,
}

impl State {
    /// What was kept for this incarnation; else nothing is known yet.
    pub fn load(path: &Path, incarnation: u32) -> State {
        State::read(path)
            .filter(|state| state.incarnation == incarnation)
            .unwrap_or(State { incarnation, ..State::default() })
    }

    /// A file that can't be read is a round that begins anew.
    pub fn read(path: &Path) -> Option<State> {
        decode(&std::fs::read_to_string(path).ok()?).ok()
    }

    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        disk::write_whole(path, &encode(self))
    }

    pub fn word(&self) -> Word {
        Word {
            began_s: self.began_s,
            running: self.next.is_some(),
            done_bytes: self.done_bytes,
            of_bytes: self.of_bytes,
            ended_s: self.ended_s,
            took_s: self.took_s,
            bad_pages: self.bad.len() as u64,
            bad: self.bad.iter().take(LISTED_MAX).cloned().collect(),
        }
    }

    /// What decisions go by.
    pub fn bad_pages(&self) -> BadPages {
        let first = self.bad.first().map(Bad::told).unwrap_or_default();
        BadPages { incarnation: self.incarnation, pages: self.bad.len() as u64, first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_goes_on_where_it_was_unless_the_data_is_other_data() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("scrub.json");
        assert_eq!(State::load(&path, 3), State { incarnation: 3, ..State::default() });
        let bad = Bad { path: "base/5/1".into(), page: 7, relation: None, why: "torn".into() };
        let next = Some(("base/5/1".to_string(), 64));
        let state = State { incarnation: 3, next, bad: vec![bad; 30], ..State::default() };
        state.save(&path).expect("saved");
        assert_eq!(State::load(&path, 3), state);
        let bad = state.bad_pages();
        assert_eq!((bad.incarnation, bad.pages), (3, 30));
        assert_eq!(bad.first, "page 7 of base/5/1: torn");
        let word = state.word();
        assert_eq!((word.bad_pages, word.bad.len(), word.running), (30, LISTED_MAX, true));
        assert_eq!(State::load(&path, 4), State { incarnation: 4, ..State::default() });
        std::fs::write(&path, "{\"version\":1,\"rec").expect("torn");
        assert_eq!(State::load(&path, 3), State { incarnation: 3, ..State::default() });
    }
}
