//! One worker: reads steps of files and stores what of them is new.

use super::leaf::{self, BLOCK, BLOCKS, Block, LEAF, PIECES_MAX, Piece};
use super::manifest::{Entry, Leaf};
use super::pack::{PackId, Reader, Writer, worker_ended};
use super::page::{self, PAGE};
use super::take::Plan;
use super::tree::{CONTROL, Found};
use super::{BadPage, Progress, Watch};
use crate::RepositoryError;
use crate::repository::Repository;
use everhold_core::ids::Lsn;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// A page is read again so often, while a write of it may be under way.
const READS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(5);

/// What all workers share.
pub struct Shared<'a> {
    pub repository: &'a Repository,
    pub plan: &'a Plan<'a>,
    pub watch: &'a Watch<'a>,
    /// Files as found, and the steps: a file and a leaf of it.
    pub files: &'a [Found],
    pub steps: &'a [(usize, usize)],
    pub next: AtomicUsize,
    /// The base's files.
    pub old: HashMap<&'a str, &'a Entry>,
    /// The base's packs that may be used, by number.
    pub usable: Vec<bool>,
    /// The base's packs and, behind them, new ones.
    pub packs: Mutex<Vec<PackId>>,
    pub known: &'a [PackId],
    /// Files that were gone when they were to be read.
    pub vanished: Vec<AtomicBool>,
    pub read: AtomicU64,
    pub total: u64,
}

impl Shared<'_> {
    pub fn is_usable(&self, pack: u32) -> bool {
        self.usable.get(pack as usize) == Some(&true)
    }
}

pub struct Worker<'a> {
    shared: &'a Shared<'a>,
    writer: Writer<'a>,
    reader: Reader<'a>,
    block: Vec<u8>,
    base: Vec<u8>,
    delta: Vec<u8>,
    /// What was stored: the file, the number of the leaf in it, and the leaf.
    leaves: Vec<(usize, usize, Leaf)>,
    /// Pages whose checksums fail, and up to where they say that the log has changed them.
    unsound: Vec<(BadPage, Lsn)>,
}

/// What a worker made.
pub struct Made {
    pub leaves: Vec<(usize, usize, Leaf)>,
    pub unsound: Vec<(BadPage, Lsn)>,
    pub bytes_added: u64,
}

/// An older backup's leaf, read.
struct Old {
    blocks: Vec<Block>,
    /// The whole leaf behind it, which is itself if it is whole.
    base: Vec<Block>,
}

impl<'a> Worker<'a> {
    pub fn new(shared: &'a Shared<'a>) -> Result<Worker<'a>, RepositoryError> {
        let (repository, service) = (shared.repository, shared.plan.service);
        Ok(Worker {
            shared,
            writer: Writer::new(repository, service, &shared.packs, shared.plan.copies)?,
            reader: Reader::new(repository, service)?,
            block: vec![0; BLOCK],
            base: Vec::new(),
            delta: Vec::new(),
            leaves: Vec::new(),
            unsound: Vec::new(),
        })
    }

    /// Takes steps until there are none.
    pub fn run(&mut self) -> Result<(), RepositoryError> {
        let shared = self.shared;
        while let Some((file, leaf)) = shared.steps.get(shared.next.fetch_add(1, Ordering::Relaxed))
        {
            self.step(*file, *leaf)?;
        }
        Ok(())
    }

    /// Puts what is not in a full pack yet.
    pub fn end(mut self) -> Result<Made, RepositoryError> {
        self.writer.flush()?;
        let Worker { leaves, unsound, writer, .. } = self;
        Ok(Made { leaves, unsound, bytes_added: writer.written })
    }

    /// Reads one leaf's part of a file and stores what is new in it.
    pub fn step(&mut self, number: usize, leaf: usize) -> Result<(), RepositoryError> {
        let shared = self.shared;
        let found = &shared.files[number];
        let path = shared.plan.data_dir.join(&found.path);
        let failed = RepositoryError::file("read", &path);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                shared.vanished[number].store(true, Ordering::Relaxed);
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        };
        let old_leaf = shared.old.get(found.path.as_str()).and_then(|old| old.leaves.get(leaf));
        let old = old_leaf.and_then(|leaf| self.read_leaf(leaf));
        // Nothing is said by what stands on a pack that may go.
        let old_leaf = old_leaf.filter(|leaf| leaf.needs().all(|pack| shared.is_usable(pack)));
        let mut blocks = Vec::new();
        let from = leaf as u64 * LEAF;
        for at in (from..found.size.min(from + LEAF)).step_by(BLOCK) {
            shared.watch.check()?;
            let len = (found.size - at).min(BLOCK as u64) as usize;
            let mut bytes = std::mem::take(&mut self.block);
            self.read(&file, found, at, &mut bytes[..len])?;
            let hash = |page| page::hash(shared.repository.master(), page);
            let pages = bytes[..len].chunks(PAGE).map(hash).collect();
            let before = old.as_ref().and_then(|old| old.blocks.get(blocks.len()));
            let stored = self.store(&bytes[..len], pages, before);
            self.block = bytes;
            blocks.push(stored?);
            let done = shared.read.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
            (shared.watch.progress)(Progress { done, total: shared.total });
        }
        let stored = match (old, old_leaf) {
            (Some(old), Some(leaf)) if old.blocks == blocks => leaf.clone(),
            (Some(old), Some(leaf)) => self.store_leaf(&blocks, Some((&old, leaf)))?,
            (_, _) => self.store_leaf(&blocks, None)?,
        };
        self.leaves.push((number, leaf, stored));
        Ok(())
    }

    /// An older leaf; nothing if it can't be read, whatever the reason: all is stored anew then.
    fn read_leaf(&mut self, leaf: &Leaf) -> Option<Old> {
        let read = read_leaf(&mut self.reader, self.shared.known, leaf);
        let warn = |error: &RepositoryError| {
            tracing::warn!(%error, "an older backup's leaf can't be read: its pages are stored anew");
        };
        let (blocks, base) = read.inspect_err(warn).ok()?;
        Some(Old { blocks, base })
    }

    /// Fills `bytes` from the file at `at`: zeros behind its end, and each page of a relation as it
    /// was written, if it has a checksum to tell.
    fn read(
        &mut self,
        file: &File,
        found: &Found,
        at: u64,
        bytes: &mut [u8],
    ) -> Result<(), RepositoryError> {
        let plan = self.shared.plan;
        let path = plan.data_dir.join(&found.path);
        let failed = || RepositoryError::file("read", &path);
        // A file cut short meanwhile is cut in recovery too; till then zeros stand for pages that
        // the log writes whole.
        let ended = fill(file, at, bytes).map_err(failed())?;
        if found.path == CONTROL {
            return settle(file, at, bytes).map_err(failed());
        }
        let Some(first) = page::first_page(&found.path).filter(|_| plan.checksums) else {
            return Ok(());
        };
        for (n, page) in bytes[..ended].chunks_exact_mut(PAGE).enumerate() {
            let in_file = at / PAGE as u64 + n as u64;
            let number = first.wrapping_add(in_file as u32);
            let mut reads = 1;
            while !page::is_sound(page, number) {
                // One that was changed since the backup began is written whole by the log.
                if reads == READS || page::lsn(page) >= plan.start {
                    let bad = BadPage { path: found.path.clone(), page: in_file };
                    self.unsound.push((bad, page::lsn(page)));
                    break;
                }
                sleep(PAUSE);
                fill(file, in_file * PAGE as u64, page).map_err(failed())?;
                reads += 1;
            }
        }
        Ok(())
    }

    /// Stores what of a block is not in the repository, and says where all of it lies.
    fn store(
        &mut self,
        bytes: &[u8],
        pages: Vec<u64>,
        before: Option<&Block>,
    ) -> Result<Block, RepositoryError> {
        let all = leaf::bits(pages.len());
        let usable = |piece: &Piece| self.shared.is_usable(piece.spot.pack);
        let before =
            before.filter(|block| !block.pieces.is_empty() && block.pieces.iter().all(usable));
        if let Some(before) = before {
            let same = |page: &usize| before.pages.get(*page) == Some(&pages[*page]);
            let kept = (0..pages.len()).filter(same).fold(0_u32, |bits, page| bits | 1 << page);
            let mut pieces = before.pieces.clone();
            pieces.iter_mut().for_each(|piece| piece.take &= kept);
            // The first one stays: the others stand on it.
            let mut n = 0;
            pieces.retain(|piece| {
                n += 1;
                n == 1 || piece.take != 0
            });
            if kept == all || self.store_delta(bytes, all & !kept, &mut pieces)? {
                return Ok(Block { pieces, pages });
            }
        }
        self.writer.compress(bytes)?;
        let piece = Piece { spot: self.writer.add()?, holds: all, take: all };
        Ok(Block { pieces: vec![piece], pages })
    }

    /// Adds a piece for the changed pages. False if a whole block is better: when the pieces cost as
    /// much as what they stand on, or that can't be read.
    fn store_delta(
        &mut self,
        bytes: &[u8],
        changed: u32,
        pieces: &mut Vec<Piece>,
    ) -> Result<bool, RepositoryError> {
        let Some(Piece { spot: first, take, .. }) = pieces.first().cloned() else {
            return Ok(false);
        };
        // Many make one: whole blocks in their stead would come in waves.
        let changed = match pieces.len() > PIECES_MAX {
            true => leaf::bits(bytes.len().div_ceil(PAGE)) & !take,
            false => changed,
        };
        if pieces.len() > PIECES_MAX {
            pieces.truncate(1);
        }
        let pack = &self.shared.known[first.pack as usize];
        if let Err(error) = self.reader.get(pack, first, &mut self.base) {
            tracing::warn!(%error, "an older backup's block can't be read: it is stored anew");
            return Ok(false);
        }
        self.delta.clear();
        for (n, page) in bytes.chunks(PAGE).enumerate() {
            if changed >> n & 1 == 1 {
                let at = self.delta.len();
                self.delta.extend_from_slice(page);
                let old = self.base.get(n * PAGE..).unwrap_or(&[]);
                self.delta[at..].iter_mut().zip(old).for_each(|(byte, old)| *byte ^= old);
            }
        }
        let len = self.writer.compress(&self.delta)?;
        let spent: usize = pieces.iter().skip(1).map(|piece| piece.spot.len as usize).sum();
        if spent + len >= first.len as usize {
            return Ok(false);
        }
        let spot = self.writer.add()?;
        pieces.push(Piece { spot, holds: changed, take: changed });
        Ok(true)
    }

    /// Stores a leaf: as what differs from the whole one behind the older, if that is much less.
    fn store_leaf(
        &mut self,
        blocks: &[Block],
        old: Option<(&Old, &Leaf)>,
    ) -> Result<Leaf, RepositoryError> {
        debug_assert!(blocks.len() <= BLOCKS);
        let mut packs = Vec::new();
        let whole = leaf::encode(blocks, &[], &mut packs);
        if let Some((old, leaf)) = old {
            let count = leaf.base.map_or(leaf.packs.len(), |(_, count)| count);
            let mut longer: Vec<u32> = leaf.packs.iter().take(count).copied().collect();
            let less = leaf::encode(blocks, &old.base, &mut longer);
            if less.len() * 2 < whole.len() {
                self.writer.compress(&less)?;
                let at = leaf.base.map_or(leaf.at, |(at, _)| at);
                return Ok(Leaf { at: self.writer.add()?, base: Some((at, count)), packs: longer });
            }
        }
        self.writer.compress(&whole)?;
        Ok(Leaf { at: self.writer.add()?, base: None, packs })
    }
}

/// The blocks of a leaf, and those of the whole leaf behind it.
pub fn read_leaf(
    reader: &mut Reader<'_>,
    packs: &[PackId],
    leaf: &Leaf,
) -> Result<(Vec<Block>, Vec<Block>), RepositoryError> {
    let mut bytes = Vec::new();
    let mut read = |spot: leaf::Spot, base: &[Block]| -> Result<Vec<Block>, RepositoryError> {
        let pack = packs.get(spot.pack as usize).ok_or_else(worker_ended)?;
        reader.get(pack, spot, &mut bytes)?;
        let decoded = leaf::decode(&bytes, base, &leaf.packs);
        decoded.ok_or_else(|| super::pack::malformed("a leaf of a backup", "it ends early"))
    };
    let Some((base, _)) = leaf.base else {
        let blocks = read(leaf.at, &[])?;
        return Ok((blocks.clone(), blocks));
    };
    let base = read(base, &[])?;
    Ok((read(leaf.at, &base)?, base))
}

/// Reads until `bytes` are full or the file ends; zeros behind that. Where it ended.
fn fill(file: &File, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes[done..].fill(0);
    Ok(done)
}

/// Reads until two reads agree: the server writes the file in place.
fn settle(file: &File, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    let mut before = bytes.to_vec();
    for _ in 0..READS {
        sleep(PAUSE);
        fill(file, at, bytes)?;
        if bytes == before {
            return Ok(());
        }
        before.copy_from_slice(bytes);
    }
    Err(io::Error::other("it changes with every read"))
}
