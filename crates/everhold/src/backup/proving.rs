//! Proofs as the coordinator has them made: rounds by schedule, of which `core/src/backup/choice.rs`
//! says what is still owed.

use super::desk::{Making, Outcome, Tried};
use crate::agent::Ask;
use crate::cluster::{Cluster, Reports};
use everhold_core::backup::schedule::{Failed, Place};
use everhold_core::backup::{Backup, Proving, ROUND_OVERDUE_S, next_proof, owed};
use everhold_core::spec::BackupSpec;
use everhold_repository::backup::{Info, Lines, Proofs, judged, proof_of};
use std::collections::BTreeMap;

/// What the repositories say of a service's backups.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// The oldest first.
    pub infos: Vec<Info>,
    pub proofs: Proofs,
    pub lines: Lines,
}

impl Held {
    /// As decisions see it.
    pub fn backups(&self, copies_wanted: usize) -> Vec<Backup> {
        let proof = |it: &Info| judged(proof_of(&self.proofs, &it.id));
        let one = |it: &Info| it.backup(copies_wanted, proof(it), &self.lines);
        self.infos.iter().map(one).collect()
    }

    /// The same while a place is away: what it had counts as it did.
    pub fn beside(mut self, before: Held) -> Held {
        let mut infos: BTreeMap<String, Info> =
            before.infos.into_iter().map(|it| (it.id.clone(), it)).collect();
        for mut info in self.infos {
            if let Some(known) = infos.get(&info.id) {
                info.copies = info.copies.max(known.copies);
                info.manifests = info.manifests.max(known.manifests);
            }
            infos.insert(info.id.clone(), info);
        }
        for (name, record) in before.proofs {
            if proof_of(&self.proofs, &record.backup).is_none() {
                self.proofs.insert(name, record);
            }
        }
        for (sysid, line) in before.lines {
            self.lines.entry(sysid).or_insert(line);
        }
        Held { infos: infos.into_values().collect(), ..self }
    }

    /// When one was last proven that lay there for long.
    pub fn older_s(&self) -> Option<u64> {
        let older = self.proofs.values().filter(|it| it.why == Proving::Older);
        older.map(|it| it.ended_s).max()
    }

    /// How long the newest of those restores took that ended well.
    pub fn rto_ms(&self) -> Option<u64> {
        let well = self.proofs.values().filter(|it| it.failed.is_none());
        well.max_by_key(|it| it.ended_s)?.rto_ms
    }

    /// A round should have been through by now.
    pub fn is_overdue(&self, backups: &[Backup], spec: &BackupSpec, now_s: u64) -> bool {
        let (round_s, owed) = owed(&spec.prove.schedule, backups, self.older_s(), now_s);
        !owed.is_empty() && now_s > round_s + ROUND_OVERDUE_S
    }
}

/// Begins the next one that is owed, on the node that is best for it.
pub async fn tend(
    cluster: &Cluster,
    service: &str,
    spec: &BackupSpec,
    (held, backups): (&Held, &[Backup]),
    (makings, places): (&[&Making], &BTreeMap<String, Place>),
    now_s: u64,
) -> anyhow::Result<bool> {
    let (_, owed) = owed(&spec.prove.schedule, backups, held.older_s(), now_s);
    let busy = makings.iter().any(|making| making.is_busy());
    let Some(next) = next_proof(&owed, busy, failed(makings), places, now_s) else {
        return Ok(false);
    };
    let (id, why, node) = (next.backup.id.clone(), next.why, next.node);
    let who = "the schedule of proofs".to_string();
    let ask = Ask::ProveBackup { service: service.to_string(), id, why, who };
    cluster.ask(node, &ask).await?;
    Ok(true)
}

/// What could not be done since a proof was.
fn failed(makings: &[&Making]) -> Failed {
    let tried = || makings.iter().filter_map(|it| it.proved.as_ref());
    let is_done = |it: &&Tried| !matches!(it.outcome, Outcome::NotDone { .. });
    let done = tried().filter(is_done).map(|it| it.at_s).max();
    let since = tried().filter(|it| !is_done(it) && Some(it.at_s) > done);
    let times = since.clone().map(|it| it.failures).sum();
    Failed { times, last_s: since.map(|it| it.at_s).max().unwrap_or(0) }
}

/// The node that proves one of the service now, and which.
pub fn proving<'r>(reports: &'r Reports, service: &str) -> Option<(&'r String, &'r str)> {
    super::shown::makings(reports, service)
        .find_map(|(node, it)| Some((node, it.proving.as_ref()?.id.as_str())))
}
