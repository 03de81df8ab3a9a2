//! Lists a service's backups.

use super::manifest::{self, Info, Standing};
use super::pack::{self, PackId};
use crate::RepositoryError;
use crate::repository::{Held, Repository};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Listed {
    /// By age, the oldest first.
    pub backups: Vec<Info>,
    /// Manifests that can't be read in any place, and why.
    pub unreadable: Vec<(String, RepositoryError)>,
}

/// What was listed before. As long as every pack is in as many places as it was, a manifest that did
/// not change says the same.
#[derive(Clone, Debug, Default)]
pub struct Known {
    packs: BTreeMap<String, Held>,
    backups: BTreeMap<String, (Held, Info)>,
}

/// All backups of a service, from the places that answer. How many of these have all of each is told
/// by what they list; whether it is whole, only [`super::verify`] reads.
pub fn list(repository: &Repository, service: &str) -> Result<Listed, RepositoryError> {
    let packs = repository.held(&pack::prefix(service))?;
    let manifests = repository.held(&manifest::object(service, ""))?;
    listed(repository, service, manifests, &mut Known { packs, ..Known::default() })
}

/// The same; an error if a place that is open does not answer. What is `known` is not read again.
pub fn list_surely(
    repository: &Repository,
    service: &str,
    known: &mut Known,
) -> Result<Listed, RepositoryError> {
    let packs = repository.held_surely(&pack::prefix(service))?;
    if known.packs.iter().any(|(name, held)| packs.get(name) != Some(held)) {
        known.backups.clear();
    }
    known.packs = packs;
    let manifests = repository.held_surely(&manifest::object(service, ""))?;
    listed(repository, service, manifests, known)
}

fn listed(
    repository: &Repository,
    service: &str,
    manifests: BTreeMap<String, Held>,
    known: &mut Known,
) -> Result<Listed, RepositoryError> {
    let mut listed = Listed::default();
    let has = |packs: &BTreeMap<String, Held>, id: &PackId| {
        packs.get(&id.object(service)).map_or(0, |held| held.copies)
    };
    known.backups.retain(|name, _| manifests.contains_key(name));
    for (name, held) in manifests {
        // Word that it is gone is much shorter.
        if let Some((_, info)) = known.backups.get(&name).filter(|(before, _)| *before == held) {
            listed.backups.push(info.clone());
            continue;
        }
        known.backups.remove(&name);
        match manifest::read_with_packs(repository, &name) {
            Ok(Standing::Backup((info, needs))) => {
                let manifest_bytes = held.bytes / held.copies.max(1) as u64;
                let copies = needs.iter().map(|id| has(&known.packs, id)).chain([held.copies]);
                let info = info.stored(held.copies, copies.min().unwrap_or(0), manifest_bytes);
                known.backups.insert(name, (held, info.clone()));
                listed.backups.push(info);
            }
            // Dropped since, or given up before it was one.
            Ok(Standing::Gone { .. }) | Err(RepositoryError::Missing { .. }) => {}
            Err(error) => {
                let id = name.rsplit('/').next().unwrap_or(&name).to_string();
                listed.unreadable.push((id, error));
            }
        }
    }
    Ok(listed)
}
