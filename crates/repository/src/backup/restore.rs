//! Writes a backup's files back, into an empty directory or over what a stopped server left.
//!
//! A marker stands in the directory from before the first change until everything lasts, and
//! `global/pg_control`, without which no server starts, is written last. Each page is checked against
//! its hash, in the end as it was read from the repository.

use super::leaf::{BLOCK, BLOCKS, Block};
use super::manifest::{Entry, Manifest};
use super::pack::{PackId, Reader, malformed, worker_ended};
use super::page::{self, PAGE};
use super::store::read_leaf;
use super::tree::{CONTROL, MARKER, PID_FILE, WAL};
use super::{Info, Progress, Watch};
use crate::RepositoryError;
use crate::log::Log;
use crate::repository::Repository;
use crate::seal::Master;
use everhold_core::ids::{Lsn, Tli};
use everhold_core::term::Branch;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, fchown, lchown};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Threads that wait for the disk while workers go on, and files that wait for them.
const SYNCERS: usize = 4;
const SYNC_QUEUE: usize = 16;

/// How it is to be done.
pub struct Restore<'a> {
    /// Over the files of a stopped server: what is as it should be stays. Otherwise the directory
    /// has to be empty, or not to be there.
    pub over: bool,
    /// User and group of the files.
    pub owner: Option<(u32, u32)>,
    pub threads: usize,
    /// Files to write before the directory counts as whole: settings and signals of the recovery.
    pub files: &'a [(&'a str, &'a [u8])],
    /// The line of history to follow from the backup on, and up to where: that part of the log is
    /// there before the directory counts as whole.
    pub log: Option<(&'a [Branch], Lsn)>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub info: Info,
    /// Bytes of files that had to be written.
    pub bytes_written: u64,
    /// The timeline on which the log ends that came with it.
    pub tli: Tli,
}

/// Makes `dest` the data directory that was backed up.
pub fn restore(
    repository: &Repository,
    service: &str,
    id: &str,
    dest: &Path,
    how: &Restore<'_>,
    watch: &Watch<'_>,
) -> Result<Restored, RepositoryError> {
    let manifest = Manifest::read(repository, service, id)?;
    let site = Site { root: dest, owner: how.owner };
    // What an earlier one left may be gone over in any case.
    let over = how.over || dest.join(MARKER).exists();
    site.prepare(over)?;
    site.write(MARKER, id.as_bytes())?;
    site.sync(Path::new(""))?;
    if over {
        site.remove(Path::new(CONTROL))?;
        site.sync(Path::new("global"))?;
        site.clean(&manifest)?;
    }
    for dir in &manifest.files.dirs {
        site.make_dir(dir)?;
    }
    let (control, files): (Vec<&Entry>, Vec<&Entry>) =
        manifest.files.files.iter().partition(|file| file.path == CONTROL);
    let run = Run {
        repository,
        service,
        hashed_by: manifest.files.hashed_by.as_ref().unwrap_or(repository.master()),
        packs: &manifest.packs,
        site: &site,
        over,
        watch,
        done: AtomicU64::new(0),
        total: manifest.info.bytes,
    };
    let mut bytes_written = run.write_all(&files, how.threads.max(1))?;
    let about = &manifest.info.about;
    site.write("backup_label", about.backup_label.as_bytes())?;
    if let Some(map) = &about.tablespace_map {
        site.write("tablespace_map", map.as_bytes())?;
    }
    for (path, content) in how.files {
        site.write(path, content)?;
    }
    let mut tli = about.tli;
    if let Some((line, end)) = how.log {
        let log = Log::new(repository, service, about.sysid);
        let wal = dest.join(WAL);
        let range = about.start..end;
        let segments = log.segments(line, range, about.segment_bytes, &wal)?;
        site.own_files(WAL)?;
        tli = segments.tli;
    }
    for dir in &manifest.files.dirs {
        site.sync(Path::new(dir))?;
    }
    bytes_written += run.write_all(&control, 1)?;
    site.sync(Path::new("global"))?;
    site.sync(Path::new(""))?;
    site.remove(Path::new(MARKER))?;
    site.sync(Path::new(""))?;
    Ok(Restored { info: manifest.info, bytes_written, tli })
}

/// Takes the log of a restored directory away and writes it again as it is up to `end` on `line`, and
/// no further: whoever starts there finds nothing beyond. Returns the last timeline of it.
pub fn cut_log(
    repository: &Repository,
    info: &Info,
    dest: &Path,
    owner: Option<(u32, u32)>,
    (line, end): (&[Branch], Lsn),
) -> Result<Tli, RepositoryError> {
    let about = &info.about;
    let (site, wal) = (Site { root: dest, owner }, dest.join(WAL));
    let entries = fs::read_dir(&wal).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    for entry in entries.map_err(RepositoryError::file("look into", &wal))? {
        if entry.path().is_file() {
            site.remove(&Path::new(WAL).join(entry.file_name()))?;
        }
    }
    let log = Log::new(repository, &about.service, about.sysid);
    let segments = log.segments(line, about.start..end, about.segment_bytes, &wal)?;
    site.own_files(WAL)?;
    site.sync(Path::new(WAL))?;
    Ok(segments.tli)
}

/// The directory that is written.
struct Site<'a> {
    root: &'a Path,
    owner: Option<(u32, u32)>,
}

impl Site<'_> {
    /// Makes sure of a directory that nobody uses.
    fn prepare(&self, over: bool) -> Result<(), RepositoryError> {
        let occupied = |said: &str| RepositoryError::Occupied {
            path: self.root.to_path_buf(),
            said: said.to_string(),
        };
        match fs::read_dir(self.root) {
            Ok(mut entries) => {
                if entries.next().is_some() && !over {
                    return Err(occupied("there are files in it"));
                }
                match self.server() {
                    Some(pid) => Err(occupied(&format!("server {pid} runs in it"))),
                    None => Ok(()),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(RepositoryError::file("list", self.root)(error)),
        }?;
        self.make_dir("")
    }

    /// The server that runs in the directory: it is where that works.
    fn server(&self) -> Option<String> {
        let pid = fs::read_to_string(self.root.join(PID_FILE)).ok()?;
        let pid = pid.lines().next()?.trim().to_string();
        let at = match fs::read_link(Path::new("/proc").join(&pid).join("cwd")) {
            Ok(at) => at,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(_) => return Some(pid),
        };
        (fs::canonicalize(self.root).ok()? == at).then_some(pid)
    }

    fn make_dir(&self, path: &str) -> Result<(), RepositoryError> {
        let path = self.root.join(path);
        let attempt = || {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
                made => made?,
            }
            fs::set_permissions(&path, Permissions::from_mode(0o700))?;
            self.owner.map_or(Ok(()), |(uid, gid)| lchown(&path, Some(uid), Some(gid)))
        };
        attempt().map_err(RepositoryError::file("make", &path))
    }

    /// A file, open for writing, of its size.
    fn open(&self, path: &str, size: u64, over: bool) -> Result<File, RepositoryError> {
        let path = self.root.join(path);
        let attempt = || {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).mode(0o600);
            let file = if over { options.create(true) } else { options.create_new(true) };
            let file = file.open(&path)?;
            file.set_len(size)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            self.owner.map_or(Ok(()), |(uid, gid)| fchown(&file, Some(uid), Some(gid)))?;
            Ok(file)
        };
        attempt().map_err(RepositoryError::file("write", &path))
    }

    fn write(&self, path: &str, content: &[u8]) -> Result<(), RepositoryError> {
        let mut file = self.open(path, 0, true)?;
        let written = file.write_all(content).and_then(|()| file.sync_all());
        written.map_err(RepositoryError::file("write", &self.root.join(path)))
    }

    /// Gives what stands in a directory to the owner of the rest.
    fn own_files(&self, dir: &str) -> Result<(), RepositoryError> {
        let path = self.root.join(dir);
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        let own = || -> io::Result<()> {
            for entry in fs::read_dir(&path)? {
                lchown(entry?.path(), Some(uid), Some(gid))?;
            }
            Ok(())
        };
        own().map_err(RepositoryError::file("give away", &path))
    }

    fn sync(&self, dir: &Path) -> Result<(), RepositoryError> {
        let path = self.root.join(dir);
        match File::open(&path).and_then(|dir| dir.sync_all()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced.map_err(RepositoryError::file("sync", &path)),
        }
    }

    /// Removes a file, or a directory with all that is in it; no link is followed.
    fn remove(&self, path: &Path) -> Result<(), RepositoryError> {
        let path = self.root.join(path);
        let removed = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(RepositoryError::file("remove", &path)),
        }
    }

    /// Removes all that the backup does not have. A log directory elsewhere stays where it is, empty.
    fn clean(&self, manifest: &Manifest) -> Result<(), RepositoryError> {
        let dirs: BTreeSet<&str> = manifest.files.dirs.iter().map(String::as_str).collect();
        let files: BTreeSet<&str> =
            manifest.files.files.iter().map(|file| file.path.as_str()).collect();
        let mut open = vec![String::new()];
        while let Some(dir) = open.pop() {
            let path = self.root.join(&dir);
            let failed = || RepositoryError::file("list", &path);
            for entry in fs::read_dir(&path).map_err(failed())? {
                let entry = entry.map_err(failed())?;
                let name = entry.file_name();
                let at = Path::new(&dir).join(&name);
                let shown = at.to_str().unwrap_or_default();
                let kind = entry.file_type().map_err(failed())?;
                let is_dir = kind.is_dir() || shown == WAL && entry.path().is_dir();
                if is_dir && dirs.contains(shown) {
                    open.push(shown.to_string());
                } else if shown != MARKER && !(kind.is_file() && files.contains(shown)) {
                    self.remove(&at)?;
                }
            }
        }
        Ok(())
    }
}

/// What workers share.
struct Run<'a> {
    repository: &'a Repository,
    service: &'a str,
    /// What the pages' hashes were made with.
    hashed_by: &'a Master,
    packs: &'a [PackId],
    site: &'a Site<'a>,
    over: bool,
    watch: &'a Watch<'a>,
    done: AtomicU64,
    total: u64,
}

impl Run<'_> {
    /// Writes files and makes them last; how many bytes had to be written.
    fn write_all(&self, files: &[&Entry], threads: usize) -> Result<u64, RepositoryError> {
        // The largest first, so that all workers end together.
        let mut order: Vec<&Entry> = files.to_vec();
        order.sort_by_key(|file| std::cmp::Reverse(file.size));
        let mut steps = Vec::new();
        let mut left = Vec::new();
        for (at, file) in order.iter().enumerate() {
            self.site.open(&file.path, file.size, self.over)?;
            let count = file.leaves.len().max(1);
            steps.extend((0..count).map(|leaf| (at, leaf)));
            left.push(AtomicUsize::new(count));
        }
        let next = AtomicUsize::new(0);
        let (written, to_sync) = sync_channel::<File>(SYNC_QUEUE);
        let to_sync = Mutex::new(to_sync);
        std::thread::scope(|scope| {
            let syncers: Vec<_> =
                (0..SYNCERS).map(|_| scope.spawn(|| self.sync_all(&to_sync))).collect();
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    let (order, steps, left, next) = (&order, &steps, &left, &next);
                    let written = written.clone();
                    scope.spawn(move || self.work(order, steps, left, next, &written))
                })
                .collect();
            drop(written);
            let ended = workers.into_iter().map(|it| it.join().map_err(|_| worker_ended())?);
            let bytes: Vec<Result<u64, RepositoryError>> = ended.collect();
            let synced = syncers.into_iter().map(|it| it.join().map_err(|_| worker_ended())?);
            let synced: Vec<Result<(), RepositoryError>> = synced.collect();
            // The disk's error is the cause of what workers say.
            synced.into_iter().collect::<Result<(), RepositoryError>>()?;
            bytes.into_iter().sum()
        })
    }

    fn sync_all(&self, files: &Mutex<Receiver<File>>) -> Result<(), RepositoryError> {
        let mut result = Ok(());
        loop {
            let file = files.lock().map_err(|_| worker_ended())?.recv();
            let Ok(file) = file else { return result };
            // Goes on after an error, so that no worker waits for it.
            if let Err(error) = file.sync_all() {
                result = Err(RepositoryError::file("sync the files of", self.site.root)(error));
            }
        }
    }

    fn work(
        &self,
        files: &[&Entry],
        steps: &[(usize, usize)],
        left: &[AtomicUsize],
        next: &AtomicUsize,
        written: &SyncSender<File>,
    ) -> Result<u64, RepositoryError> {
        let mut worker = Worker {
            run: self,
            reader: Reader::new(self.repository, self.service)?,
            first: Vec::new(),
            other: Vec::new(),
            block: Vec::new(),
        };
        let mut bytes = 0;
        while let Some((at, leaf)) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
            let entry = files[*at];
            let path = self.site.root.join(&entry.path);
            let file = OpenOptions::new().read(true).write(true).open(&path);
            let file = file.map_err(RepositoryError::file("write", &path))?;
            bytes += worker.step(entry, *leaf, &file)?;
            // The last step's sync covers the whole file; earlier ones only keep the disk busy.
            if left[*at].fetch_sub(1, Ordering::AcqRel) == 1 {
                written.send(file).map_err(|_| worker_ended())?;
            } else {
                let _ = written.try_send(file);
            }
        }
        Ok(bytes)
    }
}

struct Worker<'a> {
    run: &'a Run<'a>,
    reader: Reader<'a>,
    first: Vec<u8>,
    other: Vec<u8>,
    block: Vec<u8>,
}

impl Worker<'_> {
    /// Writes one leaf's part of a file.
    fn step(&mut self, entry: &Entry, leaf: usize, file: &File) -> Result<u64, RepositoryError> {
        let Some(at) = entry.leaves.get(leaf) else { return Ok(0) };
        let run = self.run;
        let path = run.site.root.join(&entry.path);
        let (blocks, _) = read_leaf(&mut self.reader, run.packs, at)?;
        let mut bytes = 0;
        for (number, block) in blocks.iter().enumerate() {
            run.watch.check()?;
            let offset = ((leaf * BLOCKS + number) * BLOCK) as u64;
            let len = entry.size.saturating_sub(offset).min(BLOCK as u64) as usize;
            self.block.resize(len, 0);
            let there = run.over && file.read_exact_at(&mut self.block, offset).is_ok();
            if !(there && self.is_it(block)) {
                self.read(entry, block)?;
                if !self.is_it(block) {
                    return Err(RepositoryError::Differs { path: entry.path.clone() });
                }
                let written = file.write_all_at(&self.block, offset);
                written.map_err(RepositoryError::file("write", &path))?;
                bytes += len as u64;
            }
            let done = run.done.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
            (run.watch.progress)(Progress { done, total: run.total });
        }
        Ok(bytes)
    }

    /// Whether all pages of the block are what the leaf says.
    fn is_it(&self, block: &Block) -> bool {
        let hashes = self.block.chunks(PAGE).map(|page| page::hash(self.run.hashed_by, page));
        hashes.eq(block.pages.iter().copied())
    }

    /// Puts the block together from its pieces.
    fn read(&mut self, entry: &Entry, block: &Block) -> Result<(), RepositoryError> {
        let short = || malformed(&entry.path, "a piece of it is too short");
        for (n, piece) in block.pieces.iter().enumerate() {
            let blob = if n == 0 { &mut self.first } else { &mut self.other };
            let pack = self.run.packs.get(piece.spot.pack as usize).ok_or_else(short)?;
            self.reader.get(pack, piece.spot, blob)?;
            let blob = if n == 0 { &self.first } else { &self.other };
            let mut pages = blob.chunks(PAGE);
            for (number, to) in self.block.chunks_mut(PAGE).enumerate() {
                if piece.holds >> number & 1 == 0 {
                    continue;
                }
                let page = pages.next().ok_or_else(short)?;
                if piece.take >> number & 1 == 0 {
                    continue;
                }
                to.copy_from_slice(page.get(..to.len()).ok_or_else(short)?);
                if n > 0 {
                    let old = self.first.get(number * PAGE..).unwrap_or(&[]);
                    to.iter_mut().zip(old).for_each(|(byte, old)| *byte ^= old);
                }
            }
        }
        Ok(())
    }
}
