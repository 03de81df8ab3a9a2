//! What came out when a backup was restored and looked at, kept beside the backups.
//!
//! `SERVICE/proofs/BACKUP/TIME`: one object per proof. The newest of a backup counts.

use super::Listed;
use crate::RepositoryError;
use crate::repository::{Put, Repository};
use everhold_core::backup::{Proof, Proving};
use everhold_core::ids::Lsn;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// So many of a backup are kept.
const KEPT: usize = 4;

/// What was done to a backup, and what was seen. Times in seconds since 1970, by the node's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofRecord {
    pub backup: String,
    pub why: Proving,
    pub node: String,
    pub began_s: u64,
    pub ended_s: u64,
    /// The instant that it was recovered to, and where the log was then.
    pub to_s: Option<u64>,
    pub to_lsn: Option<Lsn>,
    /// What was looked at and found well, in order; and what could not be looked at.
    pub passed: Vec<String>,
    pub skipped: Vec<String>,
    /// What is wrong. `None`: nothing.
    pub failed: Option<String>,
    /// It is what is stored of the backup that is wrong: others may share it.
    pub damaged: bool,
    /// From the first byte read to the first write taken.
    pub rto_ms: Option<u64>,
    /// How much later than on the leader's disk the newest commit was in the repository.
    pub rpo_ms: Option<u64>,
    pub bytes: u64,
}

/// The proofs of a service, by name of their objects. Objects never change, so those read before
/// need not be read again.
pub type Proofs = BTreeMap<String, ProofRecord>;

fn prefix(service: &str) -> String {
    format!("{service}/proofs/")
}

fn name(service: &str, backup: &str, ended_s: u64) -> String {
    format!("{}{backup}/{ended_s:016X}", prefix(service))
}

impl ProofRecord {
    pub fn put(&self, repository: &Repository, service: &str) -> Result<Put, RepositoryError> {
        // Numbers and texts only.
        let text = serde_json::to_vec(self).expect("plain data");
        repository.put(&name(service, &self.backup, self.ended_s), &text)
    }
}

/// The newest proof of each backup. One that can't be read is as none.
pub fn read_proofs(
    repository: &Repository,
    service: &str,
    known: &Proofs,
) -> Result<Proofs, RepositoryError> {
    let mut newest: BTreeMap<String, String> = BTreeMap::new();
    for name in repository.list(&prefix(service))?.into_keys() {
        if let Some((backup, _)) = name.rsplit_once('/') {
            // In order, so that the last one stays.
            newest.insert(backup.to_string(), name);
        }
    }
    let mut proofs = Proofs::new();
    for name in newest.into_values() {
        let record = match known.get(&name) {
            Some(record) => record.clone(),
            None => match read(repository, &name) {
                Ok(record) => record,
                Err(error @ (RepositoryError::Remote { .. } | RepositoryError::File { .. })) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(object = name, %error, "a proof can't be read");
                    continue;
                }
            },
        };
        proofs.insert(name, record);
    }
    Ok(proofs)
}

fn read(repository: &Repository, name: &str) -> Result<ProofRecord, RepositoryError> {
    let malformed = |said: String| RepositoryError::Malformed { what: name.to_string(), said };
    let record: ProofRecord = serde_json::from_slice(&repository.get(name)?)
        .map_err(|error| malformed(error.to_string()))?;
    match name.split('/').rev().nth(1) {
        Some(backup) if backup == record.backup => Ok(record),
        _ => Err(malformed(format!("it is of {}", record.backup))),
    }
}

/// The newest proof of that backup.
pub fn proof_of<'p>(proofs: &'p Proofs, backup: &str) -> Option<&'p ProofRecord> {
    proofs.values().find(|it| it.backup == backup)
}

/// When the last backup was found damaged: what was stored before may rest on the same objects, so
/// no new backup is to be compared with it.
pub fn damaged_s(proofs: &Proofs) -> Option<u64> {
    proofs.values().filter(|it| it.damaged).map(|it| it.ended_s).max()
}

/// As decisions see it.
pub fn judged(record: Option<&ProofRecord>) -> Proof {
    match record {
        None => Proof::Unproven,
        Some(record) if record.failed.is_some() => Proof::Failed { at_s: record.ended_s },
        Some(record) => Proof::Proven { at_s: record.ended_s },
    }
}

/// Removes the proofs of backups that are gone, and all but the last ones of each. `listed` has to
/// be of all places.
pub fn drop_proofs(
    repository: &Repository,
    service: &str,
    listed: &Listed,
) -> Result<usize, RepositoryError> {
    let is_there = |backup: &str| {
        listed.backups.iter().any(|it| it.id == backup)
            || listed.unreadable.iter().any(|(id, _)| id == backup)
    };
    let prefix = prefix(service);
    let mut of: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in repository.list(&prefix)?.into_keys() {
        let backup = name.strip_prefix(&prefix).and_then(|rest| rest.split('/').next());
        of.entry(backup.unwrap_or_default().to_string()).or_default().push(name);
    }
    let mut gone = 0;
    for (backup, names) in of {
        let kept = if is_there(&backup) { KEPT } else { 0 };
        for name in &names[..names.len().saturating_sub(kept)] {
            repository.delete(name)?;
            gone += 1;
        }
    }
    Ok(gone)
}
