//! Takes a backup: announces it, stores the files, and at last puts the manifest.
//!
//! Nothing counts before the manifest stands, and it is put when all its packs are in as many places
//! as asked. What `prune.rs` relies on: a backup announces itself before it looks which packs are
//! there and condemned, uses none of the condemned, and takes its announcement back when it is over.

use super::leaf::LEAF;
use super::manifest::{self, Entry, Files, Info, Manifest};
use super::pack::{self, PackId, Reader, enough, worker_ended};
use super::store::{Made, Shared, Worker, read_leaf};
use super::tree::{self, CONTROL, Found, Tree};
use super::{About, BadPage, Watch, prune};
use crate::RepositoryError;
use crate::repository::Repository;
use everhold_core::backup::Kind;
use everhold_core::ids::Lsn;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// A file that was touched within so long before the base began is read again: a later write may
/// have got the same time stamp.
const MARGIN_NS: i64 = 10_000_000_000;

/// What is asked for.
pub struct Plan<'a> {
    pub service: &'a str,
    pub kind: Kind,
    /// The backup to compare with; an incremental one needs it. If it can't be read, that is an
    /// error: another may serve, or none for a full one. With one that was copied from a repository
    /// with another key nothing can be compared: the new one is a full one that stores everything.
    pub base: Option<&'a str>,
    pub data_dir: &'a Path,
    /// Seconds since 1970, by this machine's clock, before any file was looked at.
    pub began_s: u64,
    /// Where the backup starts, as the server said.
    pub start: Lsn,
    /// Whether the cluster's pages have checksums.
    pub checksums: bool,
    /// Pages that fail their checksums are listed, and no error.
    pub allow_bad_pages: bool,
    pub threads: usize,
    /// Places that have to hold all of it.
    pub copies: usize,
}

/// A backup whose files are stored, and that doesn't count yet.
pub struct Backup<'a> {
    repository: &'a Repository,
    service: String,
    id: String,
    copies: usize,
    allow_bad_pages: bool,
    unsound: Vec<(BadPage, Lsn)>,
    manifest: Option<Stored>,
}

struct Stored {
    kind: Kind,
    base: Option<String>,
    packs: Vec<PackId>,
    files: Files,
    bytes_read: u64,
    bytes_added: u64,
}

impl<'a> Backup<'a> {
    /// Stores the files of a data directory, while its server is in backup mode (or stopped).
    pub fn begin(
        repository: &'a Repository,
        plan: &Plan<'_>,
        watch: &Watch<'_>,
    ) -> Result<Backup<'a>, RepositoryError> {
        let id = manifest::new_id(plan.began_s)?;
        // From here on dropping it takes the announcement back.
        let mut backup = Backup {
            repository,
            service: plan.service.to_string(),
            id,
            copies: plan.copies,
            allow_bad_pages: plan.allow_bad_pages,
            unsound: Vec::new(),
            manifest: None,
        };
        let announced = repository.put(&backup.announcement(), plan.service.as_bytes())?;
        enough(&backup.announcement(), announced, plan.copies)?;
        let (stored, unsound) = store(repository, plan, watch)?;
        backup.unsound = unsound;
        backup.check_pages(plan.start, None)?;
        backup.manifest = Some(stored);
        Ok(backup)
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Makes it a backup, with what the server said when backup mode ended.
    pub fn finish(mut self, about: About) -> Result<Info, RepositoryError> {
        let bad_pages = self.check_pages(about.start, Some(about.stop))?;
        let stored = self.manifest.take().ok_or_else(worker_ended)?;
        let info = Info {
            id: self.id.clone(),
            kind: stored.kind,
            base: stored.base,
            files: stored.files.files.len() as u64,
            bytes: stored.files.files.iter().map(|file| file.size).sum(),
            bytes_read: stored.bytes_read,
            bytes_added: stored.bytes_added,
            bad_pages,
            manifests: 0,
            copies: 0,
            about,
        };
        let manifest = Manifest { info, packs: stored.packs, files: stored.files };
        let name = manifest::object(&self.service, &self.id);
        let master = self.repository.master();
        let sealed = manifest.seal(master, &name)?;
        let same = |there: &[u8]| manifest::state(master, &name, there).map(|_| there == sealed);
        let put = match self.repository.put_sealed(&name, &sealed, same) {
            Err(RepositoryError::Conflict { .. }) => {
                return Err(RepositoryError::GivenUp { id: self.id.clone() });
            }
            put => put?,
        };
        let copies = put.copies;
        enough(&name, put, self.copies)?;
        Ok(manifest.info.stored(copies, copies, sealed.len() as u64))
    }

    fn announcement(&self) -> String {
        prune::announcement(&self.service, &self.id)
    }

    /// Pages that the log does not write whole: changed last before the start, or, by what they say,
    /// after the stop.
    fn check_pages(&self, start: Lsn, stop: Option<Lsn>) -> Result<Vec<BadPage>, RepositoryError> {
        let is_bad = |lsn: Lsn| lsn < start || stop.is_some_and(|stop| lsn > stop);
        let bad = self.unsound.iter().filter(|(_, lsn)| is_bad(*lsn));
        let bad: BTreeSet<BadPage> = bad.map(|(page, _)| page.clone()).collect();
        match bad.first() {
            Some(first) if !self.allow_bad_pages => Err(RepositoryError::BadPages {
                pages: bad.len(),
                count: bad.iter().map(|it| &it.path).collect::<BTreeSet<_>>().len(),
                first: format!("{} page {}", first.path, first.page),
            }),
            Some(_) | None => Ok(bad.into_iter().collect()),
        }
    }
}

impl Drop for Backup<'_> {
    fn drop(&mut self) {
        // Left behind, it holds up pruning until it is old enough to be given up.
        if let Err(error) = self.repository.delete(&self.announcement()) {
            tracing::warn!(backup = self.id, %error, "cannot take back a backup's announcement");
        }
    }
}

fn store(
    repository: &Repository,
    plan: &Plan<'_>,
    watch: &Watch<'_>,
) -> Result<(Stored, Vec<(BadPage, Lsn)>), RepositoryError> {
    let service = plan.service;
    if plan.data_dir.join(tree::MARKER).exists() {
        let said = "a restore into it is not complete".to_string();
        return Err(RepositoryError::Malformed { what: plan.data_dir.display().to_string(), said });
    }
    let base = plan.base.map(|base| Manifest::read(repository, service, base)).transpose()?;
    // One from a copied repository: what its pages look equal by, others may have the key to.
    let base = base.filter(|base| base.files.hashed_by.is_none());
    let known = base.as_ref().map(|base| base.packs.clone()).unwrap_or_default();
    let usable = usable(repository, plan, base.as_ref(), watch)?;
    let tree = tree::walk(plan.data_dir)?;
    let old: HashMap<&str, &Entry> = base
        .iter()
        .flat_map(|base| base.files.files.iter().map(|file| (file.path.as_str(), file)))
        .collect();
    let began_s = base.as_ref().and_then(|base| manifest::began_s(&base.info.id)).unwrap_or(0);
    let settled_ns = i64::try_from(began_s).unwrap_or(0) * 1_000_000_000 - MARGIN_NS;
    // What was not touched since the base read it is as the base has it.
    let untouched = |found: &Found| {
        let old = old.get(found.path.as_str()).filter(|old| {
            plan.kind == Kind::Incremental
                && found.path != CONTROL
                && old.size == found.size
                && old.stamp == found.stamp
                && found.stamp.changed_ns.max(found.stamp.modified_ns) < settled_ns
        })?;
        let mut needed = old.leaves.iter().flat_map(manifest::Leaf::needs);
        needed.all(|pack| usable.get(pack as usize) == Some(&true)).then(|| old.leaves.clone())
    };
    let kept: Vec<Option<Vec<manifest::Leaf>>> = tree.files.iter().map(untouched).collect();
    let to_read: Vec<usize> = (0..tree.files.len()).filter(|at| kept[*at].is_none()).collect();
    let steps_of = |file: usize| {
        let leaves = tree.files[file].size.div_ceil(LEAF) as usize;
        (0..leaves).map(move |leaf| (file, leaf))
    };
    let (last, first): (Vec<usize>, Vec<usize>) =
        to_read.into_iter().partition(|file| tree.files[*file].path == CONTROL);
    let steps: Vec<(usize, usize)> = first.iter().copied().flat_map(steps_of).collect();
    let total = first.iter().chain(&last).map(|file| tree.files[*file].size).sum();
    let shared = Shared {
        repository,
        plan,
        watch,
        files: &tree.files,
        steps: &steps,
        next: AtomicUsize::new(0),
        old: old.clone(),
        usable: usable.clone(),
        packs: Mutex::new(known.clone()),
        known: &known,
        vanished: tree.files.iter().map(|_| AtomicBool::new(false)).collect(),
        read: AtomicU64::new(0),
        total,
    };
    let last: Vec<(usize, usize)> = last.into_iter().flat_map(steps_of).collect();
    let made = work(&shared, &last)?;
    let mut leaves: BTreeMap<(usize, usize), manifest::Leaf> = BTreeMap::new();
    let (mut unsound, mut bytes_added) = (Vec::new(), 0);
    for made in made {
        leaves.extend(made.leaves.into_iter().map(|(file, leaf, at)| ((file, leaf), at)));
        unsound.extend(made.unsound);
        bytes_added += made.bytes_added;
    }
    let vanished = |file: usize| shared.vanished[file].load(Ordering::Relaxed);
    let mut files = Vec::new();
    for (number, (found, kept)) in tree.files.iter().zip(kept).enumerate() {
        if vanished(number) {
            continue;
        }
        let stored = || leaves.range((number, 0)..(number + 1, 0)).map(|(_, leaf)| leaf.clone());
        files.push(Entry {
            path: found.path.clone(),
            size: found.size,
            stamp: found.stamp,
            leaves: kept.unwrap_or_else(|| stored().collect()),
        });
    }
    let bytes_read = shared.read.load(Ordering::Relaxed);
    let packs = shared.packs.into_inner().map_err(|_| worker_ended())?;
    let packs = number_anew(&mut files, &packs);
    let Tree { dirs, .. } = tree;
    let stored = Stored {
        kind: if base.is_some() { plan.kind } else { Kind::Full },
        base: base.as_ref().map(|base| base.info.id.clone()),
        packs,
        files: Files { dirs, files, hashed_by: None },
        bytes_read,
        bytes_added,
    };
    Ok((stored, unsound))
}

/// Runs the workers, and after all of them the `last` steps.
fn work(shared: &Shared<'_>, last: &[(usize, usize)]) -> Result<Vec<Made>, RepositoryError> {
    let threads = shared.plan.threads.max(1);
    let mut workers: Vec<Worker<'_>> = std::thread::scope(|scope| {
        let run = || {
            let mut worker = Worker::new(shared)?;
            worker.run()?;
            Ok(worker)
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let ended = running.into_iter().map(|it| it.join().map_err(|_| worker_ended())?);
        // All are waited for, also when the first has failed.
        let ended: Vec<Result<Worker<'_>, RepositoryError>> = ended.collect();
        ended.into_iter().collect::<Result<Vec<_>, RepositoryError>>()
    })?;
    if let Some(worker) = workers.first_mut() {
        last.iter().try_for_each(|(file, leaf)| worker.step(*file, *leaf))?;
    }
    workers.into_iter().map(Worker::end).collect()
}

/// Which of the base's packs may be used: there in as many places as asked, and not condemned. One
/// that is in too few places is copied from where it is. A full backup leaves those behind of which
/// little is needed, so that they can go one day: nothing else ever empties a pack.
fn usable(
    repository: &Repository,
    plan: &Plan<'_>,
    base: Option<&Manifest>,
    watch: &Watch<'_>,
) -> Result<Vec<bool>, RepositoryError> {
    let condemned = prune::condemned(repository, plan.service)?;
    let Some(base) = base else { return Ok(Vec::new()) };
    let held = repository.held(&pack::prefix(plan.service))?;
    let live = match plan.kind {
        Kind::Full => Some(live_bytes(repository, plan.service, base, watch)?),
        Kind::Incremental => None,
    };
    let judge = |(number, id): (usize, &PackId)| {
        let name = id.object(plan.service);
        let held = held.get(&name).copied().unwrap_or_default();
        let bytes = held.bytes / held.copies.max(1) as u64;
        let little = live.as_ref().is_some_and(|live| live[number] * 2 < bytes);
        if condemned.contains(&name) || little {
            return false;
        }
        if held.copies >= plan.copies {
            return true;
        }
        let is_whole = |sealed: &[u8]| pack::is_whole(repository.master(), &name, sealed);
        let mended = repository.mend(&name, is_whole, &|_| false);
        mended.is_ok_and(|mended| mended.copies >= plan.copies)
    };
    Ok(base.packs.iter().enumerate().map(judge).collect())
}

/// How many bytes of each pack a backup needs. What can't be read is stored anew, so needs none.
fn live_bytes(
    repository: &Repository,
    service: &str,
    base: &Manifest,
    watch: &Watch<'_>,
) -> Result<Vec<u64>, RepositoryError> {
    let mut live = vec![0; base.packs.len()];
    let mut reader = Reader::new(repository, service)?;
    for leaf in base.files.files.iter().flat_map(|file| &file.leaves) {
        watch.check()?;
        let Ok((blocks, _)) = read_leaf(&mut reader, &base.packs, leaf) else { continue };
        let pieces = blocks.iter().flat_map(|block| &block.pieces).map(|piece| piece.spot);
        let own = [Some(leaf.at), leaf.base.map(|(at, _)| at)];
        for spot in pieces.chain(own.into_iter().flatten()) {
            live[spot.pack as usize] += u64::from(spot.len);
        }
    }
    Ok(live)
}

/// Leaves out packs that nothing needs any more.
fn number_anew(files: &mut [Entry], packs: &[PackId]) -> Vec<PackId> {
    let mut needed = BTreeMap::new();
    let leaves = files.iter().flat_map(|file| &file.leaves);
    leaves.flat_map(manifest::Leaf::needs).for_each(|pack| {
        needed.insert(pack, 0);
    });
    let left = needed.keys().filter_map(|pack| packs.get(*pack as usize).cloned()).collect();
    needed.values_mut().enumerate().for_each(|(place, number)| *number = place as u32);
    for leaf in files.iter_mut().flat_map(|file| &mut file.leaves) {
        leaf.at.pack = needed[&leaf.at.pack];
        if let Some((base, _)) = &mut leaf.base {
            base.pack = needed[&base.pack];
        }
        leaf.packs.iter_mut().for_each(|pack| *pack = needed[pack]);
    }
    left
}
