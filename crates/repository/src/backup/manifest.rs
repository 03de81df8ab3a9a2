//! A backup's manifest: what it is, which packs it needs, and its files.
//!
//! An object in three sealed parts, so that the first two can be read without the files. Each
//! manifest names all packs its backup needs, so any backup can go alone. In the place of a manifest
//! there may be word that the backup was given up or dropped: a late manifest is refused then, and
//! one that was dropped does not come back.

use super::leaf::Spot;
use super::pack::{PackId, malformed};
use super::{About, BadPage};
use crate::RepositoryError;
use crate::place::Place;
use crate::repository::{Found, Repository};
use crate::seal::{HEAD, Master, TAG, random};
use everhold_core::backup::Kind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::io::Read;

/// What is read at first: mostly enough for the first two parts.
const FIRST: usize = 64 << 10;
/// Bytes of one part; files of a petabyte are less.
const PART_BYTES_MAX: u64 = 1 << 30;
const LEVEL: i32 = 3;
const PARTS: usize = 3;
/// Behind the object's head: the sealed lengths of the first two parts.
const LENGTHS: usize = 8;

/// Parts of a manifest, opened: the info, the packs, the files.
type Parts = Vec<Vec<u8>>;

/// What is known of a backup without its files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    pub id: String,
    pub kind: Kind,
    /// What it was compared with. It may be gone.
    pub base: Option<String>,
    pub about: About,
    pub files: u64,
    /// Of all its files, read of them, and added to the repository (each copy has so many).
    pub bytes: u64,
    pub bytes_read: u64,
    pub bytes_added: u64,
    /// Pages that failed their checksums, if that was allowed.
    pub bad_pages: Vec<BadPage>,
    /// Places that hold the manifest, which is put when enough have everything else. Filled in when
    /// listed.
    #[serde(skip)]
    pub manifests: usize,
    /// Places, at least, that hold each object it needs. Filled in when listed.
    #[serde(skip)]
    pub copies: usize,
}

impl Info {
    /// With what only who sees the manifest's object knows.
    pub(super) fn stored(mut self, manifests: usize, copies: usize, manifest_bytes: u64) -> Info {
        (self.manifests, self.copies) = (manifests, copies);
        self.bytes_added += manifest_bytes;
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub info: Info,
    pub packs: Vec<PackId>,
    pub files: Files,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    pub dirs: Vec<String>,
    pub files: Vec<Entry>,
    /// What the pages' hashes in the leaves were made with, if not with the repository's master key:
    /// that of the repository from which the backup was copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashed_by: Option<Master>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub path: String,
    pub size: u64,
    pub stamp: Stamp,
    pub leaves: Vec<Leaf>,
}

/// By which a file that was not touched is told: the kernel sets the last two at every write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub inode: u64,
    pub modified_ns: i64,
    pub changed_ns: i64,
}

/// Where a leaf lies, and what is needed to read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    pub at: Spot,
    /// The whole leaf from which it says the difference, and how many of the packs are that one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<(Spot, usize)>,
    /// The packs that the leaf counts from zero.
    pub packs: Vec<u32>,
}

impl Leaf {
    /// All packs that are needed for what the leaf describes, some more than once.
    pub fn needs(&self) -> impl Iterator<Item = u32> + '_ {
        let own = [Some(self.at), self.base.map(|(at, _)| at)];
        own.into_iter().flatten().map(|spot| spot.pack).chain(self.packs.iter().copied())
    }
}

/// What stands at a manifest's name.
pub enum Standing<T> {
    Backup(T),
    /// Since then, in seconds since 1970.
    Gone {
        at_s: u64,
    },
}

/// The first part.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Head {
    Backup(Box<Info>),
    Gone { at_s: u64 },
}

pub fn object(service: &str, id: &str) -> String {
    format!("{service}/backups/{id}")
}

/// A new id: the time, and four digits that tell two of one second apart.
pub fn new_id(began_s: u64) -> Result<String, RepositoryError> {
    let seconds = i64::try_from(began_s).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_second(seconds)
        .map_err(|error| malformed("the time", &error.to_string()))?;
    Ok(format!("{}-{}", time.strftime("%Y%m%dT%H%M%SZ"), crate::key::hex(&random::<2>()?)))
}

/// When a backup of that id began.
pub fn began_s(id: &str) -> Option<u64> {
    let (time, _) = id.split_once('-')?;
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    u64::try_from(time.timestamp().as_second()).ok()
}

impl Manifest {
    pub fn seal(&self, master: &Master, name: &str) -> Result<Vec<u8>, RepositoryError> {
        let info = pack(&Head::Backup(Box::new(self.info.clone())))?;
        seal(master, name, [info, pack(&self.packs)?, pack(&self.files)?])
    }

    /// The whole manifest of a backup; an error if it is none, or gone.
    pub fn read(
        repository: &Repository,
        service: &str,
        id: &str,
    ) -> Result<Manifest, RepositoryError> {
        let name = object(service, id);
        match read(repository, &name, PARTS)? {
            Standing::Backup((info, parts)) => Ok(Manifest {
                info,
                packs: unpack(&name, part(&parts, 1))?,
                files: unpack(&name, part(&parts, 2))?,
            }),
            Standing::Gone { .. } => Err(RepositoryError::Missing { name }),
        }
    }
}

/// What a backup is, without its files.
pub fn read_info(repository: &Repository, name: &str) -> Result<Standing<Info>, RepositoryError> {
    Ok(match read(repository, name, 1)? {
        Standing::Backup((info, _)) => Standing::Backup(info),
        Standing::Gone { at_s } => Standing::Gone { at_s },
    })
}

/// What a backup is, and the packs that it needs.
pub fn read_with_packs(
    repository: &Repository,
    name: &str,
) -> Result<Standing<(Info, Vec<PackId>)>, RepositoryError> {
    Ok(match read(repository, name, 2)? {
        Standing::Backup((info, parts)) => Standing::Backup((info, unpack(name, part(&parts, 1))?)),
        Standing::Gone { at_s } => Standing::Gone { at_s },
    })
}

/// What is put in a manifest's place.
pub fn gone(master: &Master, name: &str, at_s: u64) -> Result<Vec<u8>, RepositoryError> {
    seal(master, name, [pack(&Head::Gone { at_s })?, Vec::new(), Vec::new()])
}

/// The same backup as it stands under another master key; `None`: it is damaged. Its leaves stay as
/// they are, so it says what their hashes were made with.
pub fn anew(
    from: &Master,
    to: &Master,
    name: &str,
    sealed: &[u8],
) -> Result<Option<Standing<Vec<u8>>>, RepositoryError> {
    let Ok(parts) = open(from, name, sealed, PARTS) else { return Ok(None) };
    let [head, packs, files] = &parts[..] else { return Ok(None) };
    if let Head::Gone { at_s } = unpack(name, head)? {
        return Ok(Some(Standing::Gone { at_s }));
    }
    let mut files: Files = unpack(name, files)?;
    files.hashed_by.get_or_insert_with(|| from.clone());
    let sealed = seal(to, name, [head.clone(), packs.clone(), pack(&files)?])?;
    Ok(Some(Standing::Backup(sealed)))
}

/// Whether the object opens to its end, and is a backup's or word that it is gone.
pub fn state(master: &Master, name: &str, sealed: &[u8]) -> Option<Standing<()>> {
    let parts = open(master, name, sealed, PARTS).ok()?;
    Some(match unpack(name, part(&parts, 0)).ok()? {
        Head::Backup(_) => Standing::Backup(()),
        Head::Gone { at_s } => Standing::Gone { at_s },
    })
}

/// The first `count` parts from the first place that has them whole. A manifest in any place counts
/// for more than word in another that it is gone: that word holds when it stands in all of them.
fn read(
    repository: &Repository,
    name: &str,
    count: usize,
) -> Result<Standing<(Info, Parts)>, RepositoryError> {
    let master = repository.master();
    let (gone, damaged) = (Cell::new(None), Cell::new(false));
    let found = repository.find(name, |place| {
        let Some(parts) = parts_of(master, place, name, count)? else { return Ok(Found::Nothing) };
        let Some(parts) = parts else {
            damaged.set(true);
            return Ok(Found::Damaged);
        };
        Ok(match unpack(name, part(&parts, 0))? {
            Head::Backup(info) => Found::Whole((*info, parts)),
            Head::Gone { at_s } => {
                gone.set(Some(at_s));
                Found::Damaged
            }
        })
    });
    let (found, _) = match (found, gone.get()) {
        (Ok(found), _) => found,
        (Err(RepositoryError::Damaged { .. }), Some(at_s)) => return Ok(Standing::Gone { at_s }),
        (Err(error), _) => return Err(error),
    };
    // Where it is missing, so may be what it needs: that goes there before it, see `level`.
    if damaged.get() {
        let is_whole =
            |sealed: &[u8]| matches!(state(master, name, sealed), Some(Standing::Backup(())));
        let is_gone =
            |sealed: &[u8]| matches!(state(master, name, sealed), Some(Standing::Gone { .. }));
        // It can be read whatever becomes of it.
        if let Err(error) = repository.mend(name, is_whole, &is_gone) {
            tracing::warn!(object = name, %error, "cannot put a damaged manifest back");
        }
    }
    Ok(Standing::Backup(found))
}

/// The first parts as one place has them. The outer `None`: nothing; the inner: damaged.
fn parts_of(
    master: &Master,
    place: &Place,
    name: &str,
    count: usize,
) -> Result<Option<Option<Parts>>, RepositoryError> {
    if count == PARTS {
        let sealed = place.get(name)?;
        return Ok(sealed.map(|sealed| open(master, name, &sealed, count).ok()));
    }
    let Some(first) = place.read(name, 0, FIRST)? else { return Ok(None) };
    match open(master, name, &first, count) {
        Err(Short { needed }) if first.len() == FIRST && (needed as u64) < PART_BYTES_MAX => {
            let more = place.read(name, 0, needed)?;
            Ok(more.map(|sealed| open(master, name, &sealed, count).ok()))
        }
        opened => Ok(Some(opened.ok())),
    }
}

/// The bytes do not hold the parts asked for; with so many they might.
struct Short {
    needed: usize,
}

fn seal(master: &Master, name: &str, parts: [Vec<u8>; PARTS]) -> Result<Vec<u8>, RepositoryError> {
    let (head, key) = master.begin(name)?;
    let mut sealed = head.to_vec();
    for part in &parts[..PARTS - 1] {
        let len = u32::try_from(part.len() + TAG)
            .map_err(|_| malformed(name, "it has too many packs"))?;
        sealed.extend_from_slice(&len.to_le_bytes());
    }
    parts.iter().for_each(|part| key.seal(part, &mut sealed));
    Ok(sealed)
}

fn open(master: &Master, name: &str, sealed: &[u8], count: usize) -> Result<Parts, Short> {
    let damaged = Short { needed: usize::MAX };
    let length = |at: usize| {
        let (len, _) = sealed.get(HEAD + 4 * at..)?.split_first_chunk()?;
        Some(u32::from_le_bytes(*len) as usize)
    };
    let (Some(key), Some(info), Some(packs)) = (master.of(name, sealed), length(0), length(1))
    else {
        return Err(damaged);
    };
    let start = HEAD + LENGTHS;
    let rest = sealed.len().saturating_sub(start + info + packs);
    let mut at = start;
    let mut parts = Vec::new();
    for len in [info, packs, rest].into_iter().take(count) {
        let Some(part) = sealed.get(at..at + len) else {
            return Err(Short { needed: start + info + packs });
        };
        let mut part = part.to_vec();
        let plain = key.open(at as u64, &mut part).map(<[u8]>::len);
        part.truncate(plain.ok_or(Short { needed: usize::MAX })?);
        parts.push(part);
        at += len;
    }
    Ok(parts)
}

fn part(parts: &[Vec<u8>], at: usize) -> &[u8] {
    parts.get(at).map_or(&[], Vec::as_slice)
}

fn pack(part: &impl Serialize) -> Result<Vec<u8>, RepositoryError> {
    let json =
        serde_json::to_vec(part).map_err(|error| malformed("a manifest", &error.to_string()))?;
    zstd::bulk::compress(&json, LEVEL).map_err(|error| malformed("a manifest", &error.to_string()))
}

fn unpack<T: DeserializeOwned>(name: &str, part: &[u8]) -> Result<T, RepositoryError> {
    let malformed = |said: &dyn std::fmt::Display| malformed(name, &said.to_string());
    let decoder = zstd::stream::read::Decoder::new(part).map_err(|error| malformed(&error))?;
    let mut json = Vec::new();
    decoder.take(PART_BYTES_MAX).read_to_end(&mut json).map_err(|error| malformed(&error))?;
    serde_json::from_slice(&json).map_err(|error| malformed(&error))
}
