//! Backups of a data directory: taken, listed, restored, verified, pruned.
//!
//! A file is stored by blocks of 256 KB. A block's pages are compared by hash with those of an
//! older backup, and only what differs is stored, as a difference. Blobs lie in packs; a leaf says
//! where the pages of 16 MB are; a manifest names leaves and packs. Each backup names all it needs.
//! `docs/decisions/2026-11-20-backup-format.md` has the reasons.

mod copy;
mod leaf;
mod level;
mod list;
pub(crate) mod manifest;
pub(crate) mod pack;
mod page;
mod proof;
mod prune;
mod restore;
mod store;
mod take;
mod tree;
mod verify;

pub use copy::copy;
pub use level::{Leveled, level};
pub use list::{Known, Listed, list, list_surely};
pub use manifest::Info;
pub(crate) use manifest::{began_s as time_of, new_id};
pub use proof::{ProofRecord, Proofs, damaged_s, drop_proofs, judged, proof_of, read_proofs};
pub use prune::{GIVEN_UP_S, Prune, Pruned, prune};
pub(crate) use prune::{announced, condemned};
pub use restore::{Restore, Restored, cut_log, restore};
pub use take::{Backup, Plan};
pub use tree::MARKER;
pub use verify::{Harm, Verified, verify};

use crate::RepositoryError;
use crate::log::Log;
use crate::repository::Repository;
use everhold_core::ids::{Lsn, Tli};
use everhold_core::term::Branch;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

/// Workers where nothing is said: a backup shares its machine with a server.
pub const THREADS: usize = 2;

/// What PostgreSQL and whoever asked for it say of a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub cluster: String,
    pub service: String,
    pub node: String,
    pub pg_version: String,
    /// Of a segment of its log.
    pub segment_bytes: u64,
    pub sysid: u64,
    /// Seconds since 1970, by the clock of the machine that made it.
    pub began_s: u64,
    pub ended_s: u64,
    /// From where the log is needed, and to where to be consistent.
    pub start: Lsn,
    pub stop: Lsn,
    pub tli: Tli,
    /// The branches that lead to it, oldest first.
    pub line: Vec<Branch>,
    /// Files that PostgreSQL wants beside the data.
    pub backup_label: String,
    pub tablespace_map: Option<String>,
}

/// A page that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BadPage {
    pub path: String,
    /// In the file, from zero.
    pub page: u64,
}

/// How far it is, in bytes of files; where objects are removed, in objects; where they are looked at,
/// in bytes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

/// How a long run is watched and stopped.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Called by each worker after each block; while it sleeps, that worker reads and writes nothing.
    pub progress: &'a (dyn Fn(Progress) + Sync),
    /// Once true, the run ends soon with an error.
    pub stop: &'a AtomicBool,
}

impl Watch<'_> {
    pub(crate) fn check(&self) -> Result<(), RepositoryError> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(RepositoryError::Stopped),
            false => Ok(()),
        }
    }
}

/// The newest line of each database of a service, by system identifier.
pub type Lines = BTreeMap<u64, Vec<Branch>>;

/// Reads those of these backups' databases; one whose log was never archived has none.
pub fn lines(
    repository: &Repository,
    service: &str,
    backups: &[Info],
) -> Result<Lines, RepositoryError> {
    let sysids: BTreeSet<u64> = backups.iter().map(|it| it.about.sysid).collect();
    let mut lines = Lines::new();
    for sysid in sysids {
        if let Some((_, line)) = Log::new(repository, service, sysid).newest_line()? {
            lines.insert(sysid, line);
        }
    }
    Ok(lines)
}

/// The same up to a timeline, also one that was given up, of each database that has it.
pub fn lines_to(
    repository: &Repository,
    service: &str,
    backups: &[Info],
    tli: Tli,
) -> Result<Lines, RepositoryError> {
    let sysids: BTreeSet<u64> = backups.iter().map(|it| it.about.sysid).collect();
    let mut lines = Lines::new();
    for sysid in sysids {
        if let Some(line) = Log::new(repository, service, sysid).line_to(tli)? {
            lines.insert(sysid, line);
        }
    }
    Ok(lines)
}

impl About {
    /// It is of the history that its database has now: the newest line leads through it. Of what a
    /// recovery gave up, only the backup's own line leads on.
    pub fn is_current(&self, lines: &Lines) -> bool {
        lines.get(&self.sysid).is_none_or(|line| {
            let after = line.iter().skip_while(|it| it.tli != self.tli).nth(1);
            let own = self.line.last().map(Branch::id);
            line.iter().any(|it| Some(it.id()) == own)
                && after.is_none_or(|next| self.stop <= next.fork)
        })
    }

    /// The line of history to follow from the backup on.
    pub fn line_onwards(&self, lines: &Lines) -> Vec<Branch> {
        let newest = lines.get(&self.sysid).filter(|_| self.is_current(lines));
        newest.unwrap_or(&self.line).clone()
    }
}

impl Info {
    /// As decisions see it.
    pub fn backup(
        &self,
        copies_wanted: usize,
        proof: everhold_core::backup::Proof,
        lines: &Lines,
    ) -> everhold_core::backup::Backup {
        everhold_core::backup::Backup {
            id: self.id.clone(),
            kind: self.kind,
            began_s: self.about.began_s,
            ended_s: self.about.ended_s,
            start: self.about.start,
            stop: self.about.stop,
            tli: self.about.tli,
            good: self.copies >= copies_wanted && self.about.is_current(lines),
            proof,
        }
    }
}
