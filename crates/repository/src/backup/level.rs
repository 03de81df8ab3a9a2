//! Brings what backups need to the places that lack it: one that is new, or was lost and made anew.

use super::manifest::{self, Standing};
use super::{Progress, Watch, pack};
use crate::RepositoryError;
use crate::repository::{Held, Repository};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

/// What was done of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leveled {
    /// Objects that all places have now, and were lacking in some.
    pub objects: usize,
    /// Objects for which there was no time, and manifests of which a pack could not be copied.
    pub left: usize,
    /// Objects that no place has whole any more.
    pub lost: usize,
    /// Why the first of those that could not be copied could not.
    pub failed: Option<String>,
}

/// After so many in a row: a place where nothing can be put is not tried with all that it lacks.
const FAILURES_MAX: usize = 8;

/// Copies what some place lacks of a service's backups, the newest first, and then of their proofs
/// and log. A manifest comes after all that it needs. Ends when it is stopped, and goes on from there
/// the next time. Progress is in bytes.
pub fn level(
    repository: &Repository,
    service: &str,
    watch: &Watch<'_>,
) -> Result<Leveled, RepositoryError> {
    // A directory that is not mounted would be filled beneath its mount.
    repository.all_there()?;
    let lacking = lacking(repository, service)?;
    let total = lacking.iter().map(|it| it.bytes).sum();
    let (mut leveled, mut done, mut failures) = (Leveled::default(), 0, 0);
    let mut failed: BTreeSet<&str> = BTreeSet::new();
    for (at, it) in lacking.iter().enumerate() {
        if watch.stop.load(Ordering::Relaxed) || failures == FAILURES_MAX {
            leveled.left += lacking.len() - at;
            break;
        }
        let copied = match it.needs.iter().any(|name| failed.contains(name.as_str())) {
            true => None,
            false => Some(copy(repository, service, &it.name)),
        };
        // What no place has whole is missing everywhere alike.
        if !matches!(copied, Some(Ok(_))) {
            failed.insert(&it.name);
        }
        match copied {
            Some(Ok(true)) => (leveled.objects, failures) = (leveled.objects + 1, 0),
            Some(Ok(false)) => leveled.lost += 1,
            // One that can't be read keeps no other from being copied; a place that is gone does.
            Some(Err(error)) => {
                repository.all_there()?;
                failures += 1;
                leveled.failed.get_or_insert_with(|| format!("{}: {error}", it.name));
            }
            None => leveled.left += 1,
        }
        done += it.bytes;
        (watch.progress)(Progress { done, total });
    }
    Ok(leveled)
}

/// What some place has and another has not.
struct Lacking {
    name: String,
    bytes: u64,
    /// What of that has to be there before it.
    needs: Vec<String>,
}

/// In order.
fn lacking(repository: &Repository, service: &str) -> Result<Vec<Lacking>, RepositoryError> {
    let all = repository.all_places().len();
    let held = |prefix: &str| -> Result<BTreeMap<String, Held>, RepositoryError> {
        let mut held = repository.held_surely(prefix)?;
        held.retain(|_, held| held.copies < all);
        Ok(held)
    };
    let bytes = |held: &Held| held.bytes / held.copies.max(1) as u64;
    let packs = held(&pack::prefix(service))?;
    let manifests = repository.held_surely(&manifest::object(service, ""))?;
    let (mut lacking, mut seen) = (Vec::new(), BTreeSet::new());
    let uneven = !packs.is_empty() || manifests.values().any(|held| held.copies < all);
    for (name, held) in manifests.iter().rev().filter(|_| uneven) {
        let needs = match manifest::read_with_packs(repository, name) {
            Ok(Standing::Backup((_, needs))) => needs,
            Ok(Standing::Gone { .. }) | Err(RepositoryError::Missing { .. }) => continue,
            Err(error) => return Err(error),
        };
        let mut needs: Vec<String> = needs.iter().map(|id| id.object(service)).collect();
        needs.retain(|name| packs.contains_key(name));
        for name in &needs {
            if seen.insert(name.clone()) {
                let bytes = bytes(&packs[name]);
                lacking.push(Lacking { name: name.clone(), bytes, needs: Vec::new() });
            }
        }
        if held.copies < all {
            lacking.push(Lacking { name: name.clone(), bytes: bytes(held), needs });
        }
    }
    for prefix in ["proofs", "log"] {
        let held = held(&format!("{service}/{prefix}/"))?;
        lacking.extend(held.iter().map(|(name, held)| Lacking {
            name: name.clone(),
            bytes: bytes(held),
            needs: Vec::new(),
        }));
    }
    Ok(lacking)
}

/// False: no place has it whole. What went in between was not needed any more.
fn copy(repository: &Repository, service: &str, name: &str) -> Result<bool, RepositoryError> {
    let master = repository.master();
    let state = |sealed: &[u8]| manifest::state(master, name, sealed);
    let is_gone = |sealed: &[u8]| matches!(state(sealed), Some(Standing::Gone { .. }));
    let mended = if name.starts_with(&pack::prefix(service)) {
        repository.mend(name, |sealed| pack::is_whole(master, name, sealed), &|_| false)
    } else if name.starts_with(&manifest::object(service, "")) {
        let is_backup = |sealed: &[u8]| matches!(state(sealed), Some(Standing::Backup(())));
        repository.mend(name, is_backup, &is_gone)
    } else {
        repository.mend(name, |sealed| master.open(name, sealed).is_some(), &|_| false)
    }?;
    if let Some((_, error)) = mended.unreachable.into_iter().next() {
        return Err(error);
    }
    Ok(mended.copies > 0 || repository.held_surely(name)?.is_empty())
}
