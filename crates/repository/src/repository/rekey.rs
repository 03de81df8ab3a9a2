//! A repository copied into a new one with a master key of its own: what others may have read the
//! old key of is replaced so.
//!
//! Until it is whole the new place says that it is a copy, and of what, and is no repository that
//! anybody opens. A run may be killed at any moment; the next one goes on with what is missing, also
//! when the copy is whole and the old one has got more since. Nothing is changed in the old one.
//!
//! A pack comes before the manifests that name it. Where the copy is in use already it may be pruned
//! at the same time: a pack that a prune has condemned is not relied on, and after the manifests
//! stand the packs are looked at again. A prune that begins later sees the manifests.

use super::{
    FORMAT_OF_COPY, Found, IDENTITY, Identity, Repository, SEALED, at_once, identity, is_shared,
    json, keys, malformed, put_in, unpack,
};
use crate::RepositoryError;
use crate::backup::manifest::{self, Standing};
use crate::backup::pack::{self, PackId};
use crate::backup::{Progress, Watch, condemned};
use crate::key::Password;
use crate::log::{ANEW_MAX, Piece, contested, is_unbroken};
use crate::place::{Existing, Place, PlaceConfig};
use crate::seal::Master;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What says of a place that it is a copy, and of what. In the clear.
pub const WORD: &str = "copy.json";
/// Objects that are copied at once.
const COPIERS: usize = 4;
/// The old one is listed anew so often, as long as it changes meanwhile.
const ROUNDS_MAX: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Word {
    /// What it becomes when it is whole.
    identity: Identity,
    /// The repository of which it is a copy.
    of: String,
}

/// A repository and the place that it is copied to.
pub struct Rekey<'r> {
    from: &'r Repository,
    to: Repository,
    whole: bool,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rekeyed {
    pub objects: usize,
    pub bytes: u64,
    /// Objects that no place has whole, and backups that need such a one. They are left out.
    pub damaged: BTreeSet<String>,
    /// The copy is a repository now.
    pub whole: bool,
}

/// What an object is to a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pack,
    Manifest,
    Other,
    /// Word of log that was dropped: it may come only when all was copied that was there before it.
    Dropped,
}

/// An error if the place is a copy that is not whole.
pub fn is_no_copy(place: &Place) -> Result<(), RepositoryError> {
    match place.get(WORD)? {
        Some(_) => Err(RepositoryError::HalfCopied { place: place.name().to_string() }),
        None => Ok(()),
    }
}

impl<'r> Rekey<'r> {
    /// Makes an empty place ready for a copy, or goes on with one that was begun. The password must
    /// not be one of the old repository.
    pub fn begin(
        from: &'r Repository,
        config: &PlaceConfig,
        password: &Password,
    ) -> Result<Rekey<'r>, RepositoryError> {
        for place in &from.places {
            match keys::unlock(place, password) {
                Ok(_) => {
                    let place = place.name().to_string();
                    return Err(RepositoryError::OldPassword { place });
                }
                Err(
                    RepositoryError::WrongPassword { .. } | RepositoryError::DamagedPassword { .. },
                ) => {}
                Err(error) => return Err(error),
            }
        }
        let place = Place::open(config)?;
        let Word { identity, of } = word(&place, from)?;
        if (&of, &identity.cluster) != (&from.identity.id, &from.identity.cluster) {
            return Err(RepositoryError::Foreign {
                place: config.name.clone(),
                found: format!("{} (a copy of {of})", identity.id),
                cluster: identity.cluster,
                expected: format!("a copy of {}", from.identity.id),
            });
        }
        let whole = match super::identity(&place)? {
            Some(found) if found == identity => true,
            Some(found) => return Err(taken(&place, found)),
            None => false,
        };
        let master = keys::first(&place, &Master::random()?, password)?;
        place.put(SEALED, &master.seal(SEALED, identity.id.as_bytes())?, Existing::Keep)?;
        if !keys::proves(&place, &identity, &master)? {
            return Err(RepositoryError::Damaged { name: SEALED.to_string() });
        }
        let places = vec![place.into()];
        Ok(Rekey { from, to: Repository { identity, master, places, absent: Vec::new() }, whole })
    }

    /// What it becomes.
    pub fn identity(&self) -> &Identity {
        &self.to.identity
    }

    /// Copies what the new place lacks, and makes it a repository when it has all. With damage in the
    /// old one only if that is accepted. Progress is in bytes of the old one's objects.
    pub fn run(
        &self,
        without_damaged: bool,
        watch: &Watch<'_>,
    ) -> Result<Rekeyed, RepositoryError> {
        let mut done = Rekeyed { whole: self.whole, ..Rekeyed::default() };
        let mut anew = 0;
        for _ in 0..ROUNDS_MAX {
            let round = self.round(&mut done, watch)?;
            // What went while it was looked at may have come back gathered in something larger, and
            // packs may have been pruned before their manifest stood.
            if round.gone || round.backups {
                continue;
            }
            if !round.unbroken && anew < ANEW_MAX {
                anew += 1;
                continue;
            }
            if !done.whole && (done.damaged.is_empty() || without_damaged) {
                self.finish()?;
                done.whole = true;
            }
            return Ok(done);
        }
        let said = "the old repository, or the copy, changed all the time".to_string();
        Err(RepositoryError::NotWhole { said })
    }

    fn finish(&self) -> Result<(), RepositoryError> {
        let (place, ours) = (&self.to.places[0], &self.to.identity);
        place.put(IDENTITY, json(ours).as_bytes(), Existing::Keep)?;
        match identity(place)? {
            Some(found) if found == *ours => Ok(()),
            Some(found) => Err(taken(place, found)),
            None => Err(RepositoryError::Missing { name: IDENTITY.to_string() }),
        }
    }

    /// Copies what the old one lists and the new one lacks, once.
    fn round(&self, done: &mut Rekeyed, watch: &Watch<'_>) -> Result<Round, RepositoryError> {
        let mut condemned = BTreeSet::new();
        let listed = self.from.held_surely("")?;
        // Before the packs are listed: what is condemned later is judged by the manifests.
        for service in services(listed.keys()) {
            condemned.extend(self::condemned(&self.to, service)?);
        }
        let mut there: BTreeSet<String> = self.to.held_surely("")?.into_keys().collect();
        let bytes = |name: &str| listed.get(name).map_or(0, |held| held.bytes / held.copies as u64);
        let of = |wanted: Kind| {
            let names = listed.keys().filter(move |name| kind(name) == Some(wanted));
            names.cloned().collect::<Vec<String>>()
        };
        let manifests = self.needs(of(Kind::Manifest), &there, done)?;
        let needed: BTreeSet<&String> = manifests.values().flatten().collect();
        if let Some(name) = needed.iter().find(|name| condemned.contains(**name)) {
            let said = format!("{name} is about to be pruned from it");
            return Err(RepositoryError::NotWhole { said });
        }
        let lacking = |names: Vec<String>, there: &BTreeSet<String>| -> Vec<String> {
            names.into_iter().filter(|name| !there.contains(name)).collect()
        };
        let packs = lacking(needed.into_iter().cloned().collect(), &there);
        let new: Vec<String> = lacking(manifests.keys().cloned().collect(), &there);
        let mut rest = lacking(of(Kind::Other), &there);
        let disputed: BTreeSet<String> = listed.keys().filter_map(|it| contested(it)).collect();
        rest.retain(|name| !disputed.contains(name));
        done.damaged.extend(disputed);
        let dropped = lacking(of(Kind::Dropped), &there);
        let total = [&packs, &new, &rest, &dropped].into_iter().flatten();
        let count = Count {
            read: AtomicU64::new(0),
            total: total.map(|name| bytes(name)).sum(),
            bytes: &bytes,
            watch,
        };
        let mut round = Round::default();
        let gone = self.copy_all(&packs, done, &count)?;
        there.extend(packs);
        let stands = |name: &String| -> Result<bool, RepositoryError> {
            match manifest::read_with_packs(self.from, name) {
                Ok(Standing::Backup(_)) => Ok(true),
                Ok(Standing::Gone { .. }) | Err(RepositoryError::Missing { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        let mut ready = Vec::new();
        for (name, needs) in &manifests {
            // A backup that was dropped meanwhile takes its packs along; one that stands has lost
            // them.
            let lost: Vec<&String> = needs.iter().filter(|name| gone.contains(*name)).collect();
            if !lost.is_empty() && !stands(name)? {
                round.gone = true;
                continue;
            }
            done.damaged.extend(lost.into_iter().cloned());
            if needs.iter().any(|name| done.damaged.contains(name)) {
                done.damaged.insert(name.clone());
            } else if new.contains(name) {
                ready.push(name.clone());
            }
        }
        let objects = done.objects;
        round.gone |= !self.copy_all(&ready, done, &count)?.is_empty();
        round.backups = done.objects > objects;
        round.gone |= !self.copy_all(&rest, done, &count)?.is_empty();
        round.gone |= !self.copy_all(&dropped, done, &count)?.is_empty();
        there.extend(rest);
        round.unbroken = is_whole_log(&there);
        Ok(round)
    }

    /// The backups that are to be in the copy, and the objects of the packs that each needs.
    fn needs(
        &self,
        manifests: Vec<String>,
        there: &BTreeSet<String>,
        done: &mut Rekeyed,
    ) -> Result<BTreeMap<String, Vec<String>>, RepositoryError> {
        let mut needs = BTreeMap::new();
        for name in manifests {
            // One that was dropped from the copy since stays away.
            let is_there = there.contains(&name);
            if is_there
                && matches!(
                    manifest::read_info(&self.to, &name),
                    Ok(Standing::Gone { .. }) | Err(RepositoryError::Missing { .. })
                )
            {
                continue;
            }
            match manifest::read_with_packs(self.from, &name) {
                Ok(Standing::Backup((_, packs))) => {
                    let service = name.split('/').next().unwrap_or_default();
                    let objects = packs.iter().map(|id: &PackId| id.object(service)).collect();
                    needs.insert(name, objects);
                }
                Ok(Standing::Gone { .. }) | Err(RepositoryError::Missing { .. }) => {}
                Err(RepositoryError::Damaged { .. } | RepositoryError::Malformed { .. }) => {
                    done.damaged.insert(name);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(needs)
    }

    /// Copies these, several at once, in no order. Which of them the old one has no more.
    fn copy_all(
        &self,
        names: &[String],
        done: &mut Rekeyed,
        count: &Count<'_>,
    ) -> Result<BTreeSet<String>, RepositoryError> {
        let names: Vec<&String> = names.iter().filter(|it| !done.damaged.contains(*it)).collect();
        let next = AtomicUsize::new(0);
        let made = Mutex::new((BTreeSet::new(), done));
        let work = || -> Result<(), RepositoryError> {
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                count.watch.check()?;
                let copied = self.copy(name)?;
                let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
                let (gone, done) = &mut *made;
                match copied {
                    Found::Whole(bytes) => {
                        (done.objects, done.bytes) = (done.objects + 1, done.bytes + bytes);
                    }
                    Found::Damaged => drop(done.damaged.insert(name.to_string())),
                    Found::Nothing => drop(gone.insert(name.to_string())),
                }
                drop(made);
                count.add(name);
            }
            Ok(())
        };
        at_once(names.len().min(COPIERS), work)?;
        Ok(made.into_inner().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Copies one; the bytes that were put.
    fn copy(&self, name: &str) -> Result<Found<u64>, RepositoryError> {
        // What can't be told otherwise is passed out of the search.
        let failed = Cell::new(None);
        let found = self.from.find(name, |place| {
            let Some(sealed) = place.get(name)? else { return Ok(Found::Nothing) };
            Ok(match self.anew(name, &sealed) {
                Ok(found) => found,
                Err(error) => {
                    failed.set(Some(error));
                    Found::Damaged
                }
            })
        });
        let sealed = match (found, failed.take()) {
            (Ok((sealed, _)), _) => sealed,
            (Err(_), Some(error)) => return Err(error),
            (Err(RepositoryError::Damaged { .. }), None) => return Ok(Found::Damaged),
            (Err(RepositoryError::Missing { .. }), None) => return Ok(Found::Nothing),
            (Err(error), None) => return Err(error),
        };
        let master = self.to.master();
        let same = |there: &[u8]| match kind(name) {
            // A name is never used for another one.
            Some(Kind::Pack) => pack::is_whole(master, name, there).then_some(true),
            // Dropped since it was looked for: so it stays.
            Some(Kind::Manifest) => manifest::state(master, name, there).map(|_| true),
            Some(Kind::Other | Kind::Dropped) | None => {
                let content = |sealed: &[u8]| unpack(name, &master.open(name, sealed)?).ok();
                content(there).map(|there| content(&sealed) == Some(there))
            }
        };
        put_in(&self.to.places[0], name, &sealed, same)?;
        Ok(Found::Whole(sealed.len() as u64))
    }

    /// The object as it stands in the copy.
    fn anew(&self, name: &str, sealed: &[u8]) -> Result<Found<Vec<u8>>, RepositoryError> {
        let (from, to) = (self.from.master(), self.to.master());
        let made = match kind(name) {
            Some(Kind::Pack) => pack::anew(from, to, name, sealed)?,
            Some(Kind::Manifest) => match manifest::anew(from, to, name, sealed)? {
                Some(Standing::Backup(sealed)) => Some(sealed),
                Some(Standing::Gone { .. }) => return Ok(Found::Nothing),
                None => None,
            },
            Some(Kind::Other | Kind::Dropped) | None => {
                from.open(name, sealed).map(|packed| to.seal(name, &packed)).transpose()?
            }
        };
        Ok(made.map_or(Found::Damaged, Found::Whole))
    }
}

/// What a round found.
#[derive(Default)]
struct Round {
    /// Something was listed and then not there any more.
    gone: bool,
    /// Backups were copied.
    backups: bool,
    /// No log of the copy has a hole.
    unbroken: bool,
}

/// How far a round is.
struct Count<'a> {
    read: AtomicU64,
    total: u64,
    bytes: &'a (dyn Fn(&str) -> u64 + Sync),
    watch: &'a Watch<'a>,
}

impl Count<'_> {
    fn add(&self, name: &str) {
        let bytes = (self.bytes)(name);
        let done = self.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.watch.progress)(Progress { done, total: self.total });
    }
}

/// `None`: it stays where it is.
fn kind(name: &str) -> Option<Kind> {
    if !is_shared(name) {
        return None;
    }
    let words: Vec<&str> = name.split('/').collect();
    match words[..] {
        // Of a backup or a prune under way there.
        [_, "running" | "prune", ..] => None,
        // Word of what two have written, which does not come along.
        [_, "log", _, "contested", ..] => None,
        [_, "packs", ..] => Some(Kind::Pack),
        [_, "backups", ..] => Some(Kind::Manifest),
        [_, "log", _, "dropped", ..] => Some(Kind::Dropped),
        _ => Some(Kind::Other),
    }
}

fn services<'n>(names: impl Iterator<Item = &'n String>) -> BTreeSet<&'n str> {
    let manifests = names.filter(|name| kind(name) == Some(Kind::Manifest));
    manifests.filter_map(|name| name.split('/').next()).collect()
}

/// Whether no branch of a log has a hole.
fn is_whole_log(names: &BTreeSet<String>) -> bool {
    let mut logs: BTreeMap<&str, Vec<Piece>> = BTreeMap::new();
    for name in names {
        let Some((at, _)) = name.match_indices('/').nth(2) else { continue };
        let (log, rest) = name.split_at(at);
        if let Some(piece) = Piece::parse(&rest[1..]) {
            logs.entry(log).or_default().push(piece);
        }
    }
    logs.values_mut().all(|pieces| {
        pieces.sort_unstable();
        is_unbroken(pieces)
    })
}

fn taken(place: &Place, by: Identity) -> RepositoryError {
    RepositoryError::Taken { place: place.name().to_string(), id: by.id, cluster: by.cluster }
}

/// What the place says that it is; an empty one says from now on that it is a copy of `from`.
fn word(place: &Place, from: &Repository) -> Result<Word, RepositoryError> {
    let read = || -> Result<Option<Word>, RepositoryError> {
        let text = place.get(WORD)?;
        let word = text.map(|text| serde_json::from_slice(&text)).transpose();
        word.map_err(|error| malformed(&format!("{WORD} of {}", place.name()), &error))
    };
    if let Some(word) = read()? {
        return Ok(word);
    }
    if let Some(found) = identity(place)? {
        return Err(taken(place, found));
    }
    let refused = |said: &str| RepositoryError::NoRoomForCopy {
        place: place.name().to_string(),
        said: said.to_string(),
    };
    if !place.is_empty()? {
        return Err(refused("it is not empty, and no copy was begun there"));
    }
    place.prepare()?;
    place.probe()?;
    let identity = Identity::new(FORMAT_OF_COPY, &from.identity.cluster)?;
    let word = Word { identity, of: from.identity.id.clone() };
    place.put(WORD, json(&word).as_bytes(), Existing::Keep)?;
    let inside = |name: &String| name.strip_suffix(WORD).is_some_and(|rest| rest.ends_with('/'));
    if from.held_surely("")?.keys().any(inside) {
        place.delete(WORD)?;
        return Err(refused("it lies in the repository that is to be copied"));
    }
    // Of two that begin at once one's stays.
    read()?.ok_or_else(|| refused("it does not keep what is put there"))
}
