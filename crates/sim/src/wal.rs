//! A data directory: the write-ahead log as a list of records, and the history files beside it.

use everhold_core::ids::{Epoch, Lsn, Tli};
use everhold_core::term::Branch;
use std::collections::{BTreeMap, BTreeSet};

/// Where the first record begins.
pub const START: u64 = 0x100_0000;

/// A record. The same `uid` is the same content, whatever the place says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rec {
    pub uid: u32,
    pub tli: Tli,
    /// The epoch of the branch it was written on: what PostgreSQL doesn't know.
    pub epoch: Epoch,
    /// The place just past it.
    pub end: u64,
}

/// A history file: the timeline left its parent there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    pub parent: Tli,
    pub fork: u64,
    /// A number kept unused: no timeline of it exists.
    pub reserved: bool,
}

/// What is on the disk below PGDATA.
#[derive(Clone, Debug, Default)]
pub struct Dir {
    pub wal: Vec<Rec>,
    /// Bytes of a record that came in half, past the last whole one.
    pub partial: u64,
    pub replayed: usize,
    /// The timeline it is on.
    pub tli: Tli,
    pub history: BTreeMap<Tli, History>,
    pub sysid: u64,
    pub slots: BTreeSet<String>,
    pub checkpoint_tli: Tli,
    /// Nothing, or the rubbish of a copy that did not end.
    pub garbage: bool,
}

impl Dir {
    pub fn end(&self) -> u64 {
        self.wal.last().map_or(START, |rec| rec.end)
    }

    pub fn replayed_to(&self) -> u64 {
        self.replayed.checked_sub(1).map_or(START, |at| self.wal[at].end)
    }

    /// The record is there, at the place it was written to.
    pub fn holds(&self, rec: &Rec) -> bool {
        let at = self.wal.partition_point(|other| other.end < rec.end);
        self.wal.get(at).is_some_and(|other| other.uid == rec.uid)
    }

    /// Those of `recs` that it does not hold. Most stand here in the order in which they come: each
    /// is looked for behind the one before first.
    pub fn lacks<'a>(&self, recs: &'a [Rec]) -> Vec<&'a Rec> {
        let mut next = 0;
        let mut found = |rec: &Rec| {
            while self.wal.get(next).is_some_and(|other| other.end < rec.end) {
                next += 1;
            }
            let here = self.wal.get(next).is_some_and(|other| other.uid == rec.uid);
            here || self.holds(rec)
        };
        recs.iter().filter(|rec| !found(rec)).collect()
    }

    /// All of it is the beginning of `other`.
    pub fn is_prefix_of(&self, other: &Dir) -> bool {
        self.wal.len() <= other.wal.len() && self.wal[..] == other.wal[..self.wal.len()]
    }

    /// The timeline of its last record.
    pub fn last_tli(&self) -> Tli {
        self.wal.last().map_or(self.tli, |rec| rec.tli)
    }

    /// The timeline a server started here would follow: the newest one with a history file.
    pub fn target(&self) -> Tli {
        let newest = self.history.iter().rev().find(|(_, file)| !file.reserved);
        newest.map_or(1, |(tli, _)| *tli).max(self.last_tli())
    }

    /// The path to `tli` by the history files: each timeline and where the next leaves it.
    pub fn line(&self, tli: Tli) -> Vec<(Tli, u64)> {
        let mut line = vec![(tli, u64::MAX)];
        let mut at = tli;
        while let Some(file) = self.history.get(&at).filter(|file| file.parent < at) {
            line.push((file.parent, file.fork));
            at = file.parent;
        }
        line.reverse();
        line
    }

    /// History files above the last record's timeline that aren't of `line`.
    pub fn foreign(&self, line: &[Branch]) -> Vec<Tli> {
        let last = self.last_tli();
        let on_line = |tli: &Tli| line.iter().any(|branch| branch.tli == *tli);
        self.history.keys().filter(|tli| **tli > last && !on_line(tli)).copied().collect()
    }

    /// Cuts it where it leaves `other`, by content.
    pub fn rewind_to(&mut self, other: &Dir) {
        let shared = self.wal.iter().zip(&other.wal).take_while(|(a, b)| a == b).count();
        self.wal.truncate(shared);
        self.partial = 0;
        self.replayed = self.replayed.min(shared);
    }

    pub fn lsn(&self) -> Lsn {
        Lsn(self.end())
    }
}
