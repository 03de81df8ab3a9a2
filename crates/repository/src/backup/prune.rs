//! Drops backups and removes packs that no backup needs. Safe beside backups and other prunes, and
//! after a kill at any moment.
//!
//! The invariant: *a pack is deleted only by a run that (1) condemned it by a mark in every place,
//! (2) then saw no backup announced, and (3) then saw no manifest that names it.* A backup announces
//! itself, then reads the marks and lists the packs, and uses no pack that is condemned or gone. So
//! one that was announced before the mark is seen by (2), or has put its manifest and is seen by
//! (3); any other knows of the mark. A mark outlives its run's deletions, and only a later run that
//! has deleted by itself all that is still unneeded takes a dead one's away.
//!
//! A backup that died leaves its announcement. When that is old it is given up: word of it is put in
//! the place of its manifest, in every place and only where nothing is, so that it can't be finished
//! any more; a manifest that is there already counts. Clocks decide when that is tried, not whether
//! it is safe.

use super::Watch;
use super::manifest::{self, Standing};
use super::pack::{self, PackId, enough};
use crate::RepositoryError;
use crate::place::Existing;
use crate::repository::{Held, Repository};
use std::collections::{BTreeMap, BTreeSet};

/// A backup that was announced so long ago and is not finished is given up: two days.
pub const GIVEN_UP_S: u64 = 48 * 3_600;
/// How long word that a backup is gone stays where its manifest was: a week.
const REMEMBERED_S: u64 = 7 * 86_400;

/// What a process began to put so long ago and did not end is cleared away: a day.
const UNFINISHED_S: u64 = 86_400;

/// What is asked for.
pub struct Prune<'a> {
    pub service: &'a str,
    /// Ids of backups to drop.
    pub drop: &'a [String],
    /// Announced backups that are known to have died, however young.
    pub dead: &'a [String],
    /// Only says what would be done.
    pub dry_run: bool,
    /// Seconds since 1970.
    pub now_s: u64,
}

/// What was done, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub dropped: Vec<String>,
    /// Packs that nothing needs, and their bytes in all places.
    pub packs: usize,
    pub bytes: u64,
    /// Backups under way: packs stay until a run that sees none.
    pub waiting_for: Vec<String>,
}

pub fn prune(
    repository: &Repository,
    asked: &Prune<'_>,
    watch: &Watch<'_>,
) -> Result<Pruned, RepositoryError> {
    // A place that is not seen may hold the manifest or the announcement that matters.
    repository.all_there()?;
    let service = asked.service;
    let marks = repository.list(&format!("{service}/prune/"))?;
    let manifests = repository.list(&manifest::object(service, ""))?;
    for id in asked.drop {
        let name = manifest::object(service, id);
        if !manifests.contains_key(&name) {
            return Err(RepositoryError::Missing { name });
        }
    }
    let dropped = asked.drop.to_vec();
    let mut seen = Seen::default();
    if asked.dry_run {
        let waiting_for = announced(repository, service)?;
        seen.look(repository, service, asked.drop)?;
        let unneeded = seen.unneeded(repository.held_surely(&pack::prefix(service))?);
        return Ok(pruned(dropped, &unneeded, waiting_for));
    }
    let before_s = asked.now_s.saturating_sub(UNFINISHED_S);
    for place in repository.all_places() {
        let cleared = place.clear_unfinished(before_s)?;
        if cleared > 0 {
            tracing::info!(place = place.name(), cleared, "left by processes that were killed");
        }
    }
    for id in asked.drop {
        drop_backup(repository, service, id, asked.now_s)?;
    }
    give_up_the_dead(repository, asked)?;
    let waiting_for = announced(repository, service)?;
    if !waiting_for.is_empty() {
        return Ok(pruned(dropped, &BTreeMap::new(), waiting_for));
    }
    seen.look(repository, service, &[])?;
    let condemned = seen.unneeded(repository.held_surely(&pack::prefix(service))?);
    let (unneeded, waiting_for) = remove(repository, asked, watch, &mut seen, condemned)?;
    if waiting_for.is_empty() {
        marks.keys().try_for_each(|name| repository.delete(name))?;
        let old = seen.gone.iter().filter(|(_, at_s)| asked.now_s > **at_s + REMEMBERED_S);
        old.into_iter().try_for_each(|(name, _)| repository.delete(name))?;
    }
    Ok(pruned(dropped, &unneeded, waiting_for))
}

/// The steps of the invariant. What was deleted, or who is waited for.
fn remove(
    repository: &Repository,
    asked: &Prune<'_>,
    watch: &Watch<'_>,
    seen: &mut Seen,
    condemned: BTreeMap<String, Held>,
) -> Result<(BTreeMap<String, Held>, Vec<String>), RepositoryError> {
    let mark = mark(repository, asked, &condemned)?;
    let waiting_for = announced(repository, asked.service)?;
    if !waiting_for.is_empty() {
        repository.delete(&mark)?;
        return Ok((BTreeMap::new(), waiting_for));
    }
    seen.look(repository, asked.service, &[])?;
    let unneeded = seen.unneeded(condemned);
    let names: Vec<String> = unneeded.keys().cloned().collect();
    repository.delete_all(&names, watch)?;
    repository.delete(&mark)?;
    Ok((unneeded, Vec::new()))
}

fn pruned(
    dropped: Vec<String>,
    packs: &BTreeMap<String, Held>,
    waiting_for: Vec<String>,
) -> Pruned {
    let bytes = packs.values().map(|held| held.bytes).sum();
    Pruned { dropped, packs: packs.len(), bytes, waiting_for }
}

/// What manifests were seen to say.
#[derive(Default)]
struct Seen {
    read: BTreeSet<String>,
    needed: BTreeSet<PackId>,
    /// Word of what is gone, and since when.
    gone: BTreeMap<String, u64>,
}

impl Seen {
    /// Reads manifests that were not seen yet. An error if one can't be read: what it needs is not
    /// known then, and an operator has to drop it by its name.
    fn look(
        &mut self,
        repository: &Repository,
        service: &str,
        without: &[String],
    ) -> Result<(), RepositoryError> {
        let prefix = manifest::object(service, "");
        for name in repository.list(&prefix)?.into_keys() {
            let dropped = without.iter().any(|id| name.strip_prefix(&prefix) == Some(id));
            if dropped || self.read.contains(&name) {
                continue;
            }
            match manifest::read_with_packs(repository, &name) {
                Ok(Standing::Backup((_, packs))) => {
                    self.needed.extend(packs);
                    self.read.insert(name);
                }
                Ok(Standing::Gone { at_s }) => {
                    self.gone.insert(name, at_s);
                }
                Err(RepositoryError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn unneeded(&self, mut packs: BTreeMap<String, Held>) -> BTreeMap<String, Held> {
        let id = |name: &str| PackId::from(name.rsplit('/').next().unwrap_or(name));
        packs.retain(|name, _| !self.needed.contains(&id(name)));
        packs
    }
}

pub fn announcement(service: &str, id: &str) -> String {
    format!("{service}/running/{id}")
}

/// Objects of packs that a backup must not use.
pub fn condemned(
    repository: &Repository,
    service: &str,
) -> Result<BTreeSet<String>, RepositoryError> {
    let mut condemned = BTreeSet::new();
    for name in repository.held(&format!("{service}/prune/"))?.into_keys() {
        let list = match repository.get(&name) {
            Ok(list) => list,
            // Its run is over: what it deleted is gone when the packs are listed.
            Err(RepositoryError::Missing { .. }) => continue,
            Err(error) => return Err(error),
        };
        let list: Vec<String> = serde_json::from_slice(&list)
            .map_err(|error| pack::malformed(&name, &error.to_string()))?;
        condemned.extend(list);
    }
    Ok(condemned)
}

/// Backups under way, or dead.
pub fn announced(repository: &Repository, service: &str) -> Result<Vec<String>, RepositoryError> {
    let prefix = announcement(service, "");
    let names = repository.list(&prefix)?.into_keys();
    Ok(names.filter_map(|name| name.strip_prefix(&prefix).map(str::to_string)).collect())
}

/// Says in every place which packs are condemned.
fn mark(
    repository: &Repository,
    asked: &Prune<'_>,
    condemned: &BTreeMap<String, Held>,
) -> Result<String, RepositoryError> {
    let name = format!("{}/prune/{}", asked.service, manifest::new_id(asked.now_s)?);
    let list: Vec<&String> = condemned.keys().collect();
    let list =
        serde_json::to_vec(&list).map_err(|error| pack::malformed(&name, &error.to_string()))?;
    let put = repository.put(&name, &list)?;
    enough(&name, put, repository.all_places().len())?;
    Ok(name)
}

/// Puts word that it is gone in its manifest's place. One place after the other: as long as one has
/// the manifest, it is a backup.
fn drop_backup(
    repository: &Repository,
    service: &str,
    id: &str,
    now_s: u64,
) -> Result<(), RepositoryError> {
    let name = manifest::object(service, id);
    let word = manifest::gone(repository.master(), &name, now_s)?;
    for place in repository.all_places() {
        place.put(&name, &word, Existing::Replace)?;
    }
    Ok(())
}

/// Takes back announcements of backups that are finished, or gone everywhere, and gives up those
/// that are too old.
fn give_up_the_dead(repository: &Repository, asked: &Prune<'_>) -> Result<(), RepositoryError> {
    let Prune { service, now_s, .. } = *asked;
    for id in announced(repository, service)? {
        let name = manifest::object(service, &id);
        let over = match manifest::read_info(repository, &name) {
            Ok(Standing::Backup(_)) => true,
            Ok(Standing::Gone { .. }) => give_up(repository, &name, now_s)?,
            Err(RepositoryError::Missing { .. }) => {
                let began_s = manifest::began_s(&id).unwrap_or(0);
                let dead = now_s > began_s + GIVEN_UP_S || asked.dead.contains(&id);
                dead && give_up(repository, &name, now_s)?
            }
            Err(error) => return Err(error),
        };
        if over {
            repository.delete(&announcement(service, &id))?;
        }
    }
    Ok(())
}

/// Whether no place will ever take its manifest, or one has it: it is over both ways.
fn give_up(repository: &Repository, name: &str, now_s: u64) -> Result<bool, RepositoryError> {
    let master = repository.master();
    let word = manifest::gone(master, name, now_s)?;
    let same = |there: &[u8]| {
        manifest::state(master, name, there).map(|state| matches!(state, Standing::Gone { .. }))
    };
    match repository.put_sealed(name, &word, same) {
        Ok(put) => Ok(put.copies == repository.all_places().len()),
        Err(RepositoryError::Conflict { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{About, Backup, Plan, verify};
    use super::*;
    use crate::{Password, PlaceConfig};
    use everhold_core::backup::Kind;
    use everhold_core::ids::Lsn;
    use everhold_core::spec::Location;
    use std::sync::atomic::AtomicBool;

    /// One that begins after the manifests were read, and is over when the announcements are.
    #[test]
    fn a_quick_backup_between_two_looks() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("PG_VERSION"), "15").unwrap();
        let place = PlaceConfig {
            name: "east".to_string(),
            location: Location::Directory(dir.path().join("east").display().to_string()),
            region: None,
            endpoint: None,
            credentials_file: None,
        };
        let repository = Repository::create(&place, &Password::new("e"), "shop").unwrap();
        let watch = Watch { progress: &|_| {}, stop: &AtomicBool::new(false) };
        let plan = Plan {
            service: "main",
            kind: Kind::Full,
            base: None,
            data_dir: &data,
            began_s: 1,
            start: Lsn(1),
            checksums: false,
            allow_bad_pages: false,
            threads: 1,
            copies: 1,
        };
        let about = About { service: "main".to_string(), tli: 1, ..About::default() };
        let asked = Prune { service: "main", drop: &[], dead: &[], dry_run: false, now_s: 3 };
        let mut seen = Seen::default();
        seen.look(&repository, "main", &[]).unwrap();
        let backup = Backup::begin(&repository, &plan, &watch).unwrap();
        let condemned = seen.unneeded(repository.held_surely(&pack::prefix("main")).unwrap());
        assert_eq!(condemned.len(), 1);
        // Still under way: nothing is deleted, and nothing stays condemned.
        let (deleted, waiting) =
            remove(&repository, &asked, &watch, &mut seen, condemned.clone()).unwrap();
        assert_eq!((deleted.len(), waiting.len()), (0, 1));
        let id = backup.finish(about).unwrap().id;
        let (deleted, waiting) = remove(&repository, &asked, &watch, &mut seen, condemned).unwrap();
        assert_eq!((deleted.len(), waiting.len()), (0, 0));
        assert_eq!(verify(&repository, "main", &id, 1, &watch).unwrap().copies, 1);
    }
}
