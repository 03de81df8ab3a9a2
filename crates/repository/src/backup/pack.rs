//! Packs: objects of about 16 MB that hold sealed blobs, and at the end a checksum of all.
//!
//! A blob is sealed with its offset as nonce, so it can be read alone. The checksum lets a pack be
//! judged without knowing what is in it.

use super::leaf::{BLOCK, Spot};
use crate::repository::{Found, Repository};
use crate::seal::{HEAD, Master, ObjectKey, TAG, random};
use crate::{RepositoryError, key};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// A pack is put when it holds so much.
const FULL_AT: usize = 16 << 20;
const CHECK: usize = 16;
/// What compresses well at a gigabyte a second and core.
const LEVEL: i32 = 3;
/// What is read behind a blob at once: the next ones are mostly wanted next.
const AHEAD: usize = 256 << 10;
/// Of a blob whose length is not known so much is looked at first, and then so much more each time.
const PEEK: usize = 1 << 10;
const PEEK_MORE: usize = 4;
/// Packs that are read by turns: a block's pieces lie in several.
const WINDOWS: usize = 8;

/// A pack's name: 16 random bytes, so never used twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackId(String);

impl PackId {
    fn random() -> Result<PackId, RepositoryError> {
        Ok(PackId(key::hex(&random::<16>()?)))
    }

    pub fn object(&self, service: &str) -> String {
        format!("{}{}/{}", prefix(service), self.0.get(..2).unwrap_or("00"), self.0)
    }
}

impl From<&str> for PackId {
    fn from(name: &str) -> PackId {
        PackId(name.to_string())
    }
}

/// How all names of packs begin.
pub fn prefix(service: &str) -> String {
    format!("{service}/packs/")
}

/// Whether a pack is as it was put.
pub fn is_whole(master: &Master, name: &str, sealed: &[u8]) -> bool {
    sealed
        .split_last_chunk::<CHECK>()
        .is_some_and(|(body, check)| master.check(name, body) == *check)
}

/// The same pack under another master key, each blob where it was; `None`: it is damaged.
pub fn anew(
    from: &Master,
    to: &Master,
    name: &str,
    sealed: &[u8],
) -> Result<Option<Vec<u8>>, RepositoryError> {
    let body = sealed.split_last_chunk::<CHECK>().map(|(body, _)| body);
    let Some(body) = body.filter(|_| is_whole(from, name, sealed)) else { return Ok(None) };
    let Some(old) = from.of(name, body) else { return Ok(None) };
    let (head, new) = to.begin(name)?;
    let mut made = Vec::with_capacity(sealed.len());
    made.extend_from_slice(&head);
    while made.len() < body.len() {
        let (at, rest) = (made.len() as u64, &body[made.len()..]);
        let Some(len) = blob_len(&old, at, rest) else { return Ok(None) };
        let mut blob = rest[..len].to_vec();
        let Some(plain) = old.open(at, &mut blob) else { return Ok(None) };
        new.seal(plain, &mut made);
    }
    let check = to.check(name, &made);
    made.extend_from_slice(&check);
    Ok(Some(made))
}

/// How long the sealed blob is that `rest` of a pack begins with: what is compressed says where it
/// ends.
fn blob_len(key: &ObjectKey, at: u64, rest: &[u8]) -> Option<usize> {
    let most = rest.len().checked_sub(TAG)?;
    let mut looked = PEEK.min(most);
    loop {
        let plain = key.peek(at, &rest[..looked]);
        match zstd::zstd_safe::find_frame_compressed_size(&plain) {
            Ok(len) => return Some(len + TAG),
            Err(_) if looked < most => looked = (looked * PEEK_MORE).min(most),
            Err(_) => return None,
        }
    }
}

/// One worker's packs, one after the other.
pub struct Writer<'a> {
    repository: &'a Repository,
    service: &'a str,
    /// All packs of the backup; learns each new one.
    packs: &'a Mutex<Vec<PackId>>,
    copies: usize,
    open: Option<(u32, String, ObjectKey)>,
    content: Vec<u8>,
    zstd: zstd::bulk::Compressor<'static>,
    packed: Vec<u8>,
    pub written: u64,
}

impl<'a> Writer<'a> {
    /// Each pack has to reach `copies` places.
    pub fn new(
        repository: &'a Repository,
        service: &'a str,
        packs: &'a Mutex<Vec<PackId>>,
        copies: usize,
    ) -> Result<Writer<'a>, RepositoryError> {
        let zstd = zstd::bulk::Compressor::new(LEVEL)
            .map_err(|error| malformed("the compressor", &error.to_string()))?;
        Ok(Writer {
            repository,
            service,
            packs,
            copies,
            open: None,
            content: Vec::with_capacity(FULL_AT + 2 * BLOCK),
            zstd,
            packed: Vec::new(),
            written: 0,
        })
    }

    /// Compresses what may be added next; how long it is then.
    pub fn compress(&mut self, plain: &[u8]) -> Result<usize, RepositoryError> {
        self.packed.resize(zstd::zstd_safe::compress_bound(plain.len()), 0);
        let len = self.zstd.compress_to_buffer(plain, &mut self.packed[..]);
        let len = len.map_err(|error| malformed("what is read", &error.to_string()))?;
        self.packed.truncate(len);
        Ok(len + TAG)
    }

    /// Adds what was compressed last.
    pub fn add(&mut self) -> Result<Spot, RepositoryError> {
        if self.open.is_none() {
            let id = PackId::random()?;
            let name = id.object(self.service);
            let (head, key) = self.repository.master().begin(&name)?;
            self.content.extend_from_slice(&head);
            let mut packs = self.packs.lock().map_err(|_| worker_ended())?;
            self.open = Some((packs.len() as u32, name, key));
            packs.push(id);
        }
        let Some((pack, _, key)) = &self.open else { return Err(worker_ended()) };
        let offset = self.content.len();
        key.seal(&self.packed, &mut self.content);
        let len = (self.content.len() - offset) as u32;
        let spot = Spot { pack: *pack, offset: offset as u32, len };
        if self.content.len() >= FULL_AT {
            self.flush()?;
        }
        Ok(spot)
    }

    /// Puts what was added so far; it lasts then.
    pub fn flush(&mut self) -> Result<(), RepositoryError> {
        let Some((_, name, _)) = self.open.take() else { return Ok(()) };
        let master = self.repository.master();
        let check = master.check(&name, &self.content);
        self.content.extend_from_slice(&check);
        let same = |there: &[u8]| is_whole(master, &name, there).then(|| there == self.content);
        let put = self.repository.put_sealed(&name, &self.content, same)?;
        self.written += self.content.len() as u64;
        self.content.clear();
        enough(&name, put, self.copies)
    }
}

/// Whether a put reached as many places as asked for.
pub fn enough(name: &str, put: crate::Put, wanted: usize) -> Result<(), RepositoryError> {
    if put.copies >= wanted {
        return Ok(());
    }
    let failed = put.failed.iter().map(|(place, error)| format!("{place}: {error}"));
    let said = failed.collect::<Vec<_>>().join("; ");
    let name = name.to_string();
    Err(RepositoryError::FewCopies { name, copies: put.copies, wanted, said })
}

/// Reads blobs; one for each worker.
pub struct Reader<'a> {
    repository: &'a Repository,
    service: &'a str,
    /// The newest last.
    windows: Vec<Window>,
    keys: BTreeMap<PackId, ObjectKey>,
    /// Packs that were mended, or can't be.
    mended: BTreeSet<PackId>,
    zstd: zstd::bulk::Decompressor<'static>,
    sealed: Vec<u8>,
}

/// A part of a pack, as a place has it.
struct Window {
    pack: PackId,
    offset: u64,
    bytes: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub fn new(
        repository: &'a Repository,
        service: &'a str,
    ) -> Result<Reader<'a>, RepositoryError> {
        Ok(Reader {
            repository,
            service,
            windows: Vec::new(),
            keys: BTreeMap::new(),
            mended: BTreeSet::new(),
            zstd: zstd::bulk::Decompressor::new()
                .map_err(|error| malformed("the compressor", &error.to_string()))?,
            sealed: Vec::new(),
        })
    }

    /// The blob at `spot` of `pack`. A place where it is damaged gets the pack from another.
    pub fn get(
        &mut self,
        pack: &PackId,
        spot: Spot,
        plain: &mut Vec<u8>,
    ) -> Result<(), RepositoryError> {
        if !self.opened_from_window(pack, spot) {
            self.fetch(pack, spot)?;
            if !self.opened_from_window(pack, spot) {
                return Err(RepositoryError::Damaged { name: pack.object(self.service) });
            }
        }
        plain.resize(BLOCK, 0);
        let packed = &self.sealed[..self.sealed.len() - TAG];
        let len = self.zstd.decompress_to_buffer(packed, &mut plain[..]);
        let len = len.map_err(|error| malformed(&pack.object(self.service), &error.to_string()))?;
        plain.truncate(len);
        Ok(())
    }

    /// Opens it in `sealed`, if it is in a window.
    fn opened_from_window(&mut self, pack: &PackId, spot: Spot) -> bool {
        let (offset, len) = (u64::from(spot.offset), spot.len as usize);
        let found = self.windows.iter().find_map(|window| {
            let from = offset.checked_sub(window.offset).filter(|_| window.pack == *pack)?;
            window.bytes.get(from as usize..)?.get(..len)
        });
        let (Some(bytes), Some(key)) = (found, self.keys.get(pack)) else { return false };
        self.sealed.clear();
        self.sealed.extend_from_slice(bytes);
        key.open(offset, &mut self.sealed).is_some()
    }

    /// Takes a window that begins with the blob from the first place where the blob opens.
    fn fetch(&mut self, pack: &PackId, spot: Spot) -> Result<(), RepositoryError> {
        let name = pack.object(self.service);
        let (offset, len) = (u64::from(spot.offset), spot.len as usize);
        let master = self.repository.master();
        let known = self.keys.get(pack);
        let ((key, bytes), harmed) = self.repository.find(&name, |place| {
            let Some(bytes) = place.read(&name, offset, len.max(AHEAD))? else {
                return Ok(Found::Nothing);
            };
            let Some(blob) = bytes.get(..len) else { return Ok(Found::Damaged) };
            if known.is_some_and(|key| key.open(offset, &mut blob.to_vec()).is_some()) {
                return Ok(Found::Whole((None, bytes)));
            }
            let head = place.read(&name, 0, HEAD)?.unwrap_or_default();
            let key = master.of(&name, &head);
            let key = key.filter(|key| key.open(offset, &mut blob.to_vec()).is_some());
            Ok(key.map_or(Found::Damaged, |key| Found::Whole((Some(key), bytes))))
        })?;
        if !harmed.is_empty() && self.mended.insert(pack.clone()) {
            let is_whole = |sealed: &[u8]| is_whole(master, &name, sealed);
            // The blob is read whatever becomes of it.
            if let Err(error) = self.repository.mend(&name, is_whole, &|_| false) {
                tracing::warn!(object = name, %error, "cannot put a damaged pack back");
            }
        }
        if let Some(key) = key {
            self.keys.insert(pack.clone(), key);
        }
        self.windows.retain(|window| window.pack != *pack);
        if self.windows.len() >= WINDOWS {
            self.windows.remove(0);
        }
        self.windows.push(Window { pack: pack.clone(), offset, bytes });
        Ok(())
    }
}

pub fn malformed(what: &str, said: &str) -> RepositoryError {
    RepositoryError::Malformed { what: what.to_string(), said: said.to_string() }
}

/// A panic in a thread of ours, which has told of itself.
pub fn worker_ended() -> RepositoryError {
    malformed("a worker's result", "its thread ended")
}
