//! Reads all objects of a backup in all places, and puts back what is damaged in some.

use super::manifest::{self, Manifest, Standing};
use super::pack::{self, PackId, worker_ended};
use super::{Progress, Watch};
use crate::RepositoryError;
use crate::repository::{Mended, Repository};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    pub objects: usize,
    /// In how many places each of them is whole now.
    pub copies: usize,
    /// Objects that were damaged or gone somewhere, by name.
    pub harmed: Vec<Harm>,
    /// Places that did not answer, and what they said.
    pub unreachable: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Harm {
    pub object: String,
    pub places: Vec<String>,
    /// Places where it is whole now; with none it is lost, and the backup with it.
    pub copies: usize,
}

/// Every byte of a backup is read where it lies and compared with its seal or checksum. Whether it
/// can be restored, only a restore says. Progress is in bytes read, in all places together; how many
/// there are is not known before.
pub fn verify(
    repository: &Repository,
    service: &str,
    id: &str,
    threads: usize,
    watch: &Watch<'_>,
) -> Result<Verified, RepositoryError> {
    let master = repository.master();
    let name = manifest::object(service, id);
    let state = |sealed: &[u8]| manifest::state(master, &name, sealed);
    let is_whole = |sealed: &[u8]| matches!(state(sealed), Some(Standing::Backup(())));
    let is_gone = |sealed: &[u8]| matches!(state(sealed), Some(Standing::Gone { .. }));
    let first = repository.mend(&name, is_whole, &is_gone)?;
    let read = AtomicU64::new(first.bytes);
    let mut objects = vec![(name.clone(), first)];
    let manifest = Manifest::read(repository, service, id)?;
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(String, Mended)>, RepositoryError> {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(pack) = manifest.packs.get(at) else { return Ok(done) };
            watch.check()?;
            let looked = look(repository, service, pack)?;
            let before = read.fetch_add(looked.1.bytes, Ordering::Relaxed);
            (watch.progress)(Progress { done: before + looked.1.bytes, total: 0 });
            done.push(looked);
        }
    };
    let ended: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|it| it.join().map_err(|_| worker_ended())?).collect()
    });
    for done in ended {
        objects.extend(done?);
    }
    let mut verified =
        Verified { objects: objects.len(), copies: usize::MAX, ..Verified::default() };
    for (object, Mended { copies, harmed, unreachable, bytes: _ }) in objects {
        verified.copies = verified.copies.min(copies);
        let unreachable = unreachable.into_iter().map(|(place, error)| format!("{place}: {error}"));
        verified.unreachable.extend(unreachable);
        if !harmed.is_empty() {
            verified.harmed.push(Harm { object, places: harmed, copies });
        }
    }
    verified.harmed.sort();
    verified.unreachable.sort();
    verified.unreachable.dedup();
    Ok(verified)
}

fn look(
    repository: &Repository,
    service: &str,
    pack: &PackId,
) -> Result<(String, Mended), RepositoryError> {
    let name = pack.object(service);
    let is_whole = |sealed: &[u8]| pack::is_whole(repository.master(), &name, sealed);
    let mended = repository.mend(&name, is_whole, &|_| false)?;
    Ok((name, mended))
}
