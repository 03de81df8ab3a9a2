//! The same objects in one place or several.

mod keys;
mod rekey;

pub use rekey::{Rekey, Rekeyed};

use crate::RepositoryError;
use crate::backup::{Progress, Watch};
use crate::key::{Kit, Password, hex};
use crate::place::{self, Existing, Object, Place, PlaceConfig};
use crate::seal::{Master, random};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The version of all that is described here; a newer one is refused.
const FORMAT: u32 = 1;
/// Of a copy of another repository, whose manifests say what their hashes were made with.
const FORMAT_OF_COPY: u32 = 2;
const IDENTITY: &str = "everhold.json";
/// The repository's id, sealed: what proves that a master key is this repository's.
const SEALED: &str = "sealed";
/// For objects that are read whole: manifests and pieces of the log.
const PLAIN_BYTES_MAX: u64 = 4 << 30;
/// Objects that are removed at once: each takes an S3 store some ten milliseconds.
const DELETERS: usize = 8;
/// What compresses well at a gigabyte a second and core.
const LEVEL: i32 = 3;

/// What says of a place that it is a repository, and whose. In the clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub format: u32,
    pub id: String,
    pub cluster: String,
    pub created: String,
}

/// A repository in the places that could be opened.
pub struct Repository {
    identity: Identity,
    master: Master,
    places: Vec<Arc<Place>>,
    /// Places that did not answer or are not what they should be, and why.
    absent: Vec<(String, RepositoryError)>,
}

/// An object as each place of its repository gets it: compressed and sealed once.
pub struct Sealed {
    name: String,
    bytes: Vec<u8>,
}

/// What became of a put.
#[derive(Debug, Default)]
pub struct Put {
    /// Places that hold the object now.
    pub copies: usize,
    pub failed: Vec<(String, RepositoryError)>,
}

impl Identity {
    fn new(format: u32, cluster: &str) -> Result<Identity, RepositoryError> {
        Ok(Identity {
            format,
            id: hex(&random::<8>()?),
            cluster: cluster.to_string(),
            created: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        })
    }
}

impl Repository {
    /// Makes a repository in an empty place. What a try that was killed left there is gone on with.
    pub fn create(
        config: &PlaceConfig,
        password: &Password,
        cluster: &str,
    ) -> Result<Repository, RepositoryError> {
        let place = empty(config)?;
        let fresh = Identity::new(FORMAT, cluster)?;
        let master = keys::first(&place, &Master::random()?, password)?;
        let id = keys::claim(&place, &master, &fresh.id)?;
        let identity = Identity { id, ..fresh };
        let mut repository =
            Repository { identity, master, places: Vec::new(), absent: Vec::new() };
        repository.take_in(place)?;
        Ok(repository)
    }

    /// Makes an empty place another one of this repository. What is stored already comes with
    /// [`Repository::level`].
    pub fn extend(
        &mut self,
        config: &PlaceConfig,
        password: &Password,
    ) -> Result<(), RepositoryError> {
        let place = empty(config)?;
        let master = keys::first(&place, &self.master, password)?;
        let id = &self.identity.id;
        if master != self.master || keys::claim(&place, &master, id)? != *id {
            // Whose that is only an operator knows.
            return Err(RepositoryError::Foreign {
                place: config.name.clone(),
                found: "(begun and not finished)".to_string(),
                cluster: self.identity.cluster.clone(),
                expected: id.clone(),
            });
        }
        self.take_in(place)
    }

    /// Says of a place that has a password and the id that it is this repository's. Last, so that one
    /// that says so opens.
    fn take_in(&mut self, place: Place) -> Result<(), RepositoryError> {
        let text = json(&self.identity);
        if !place.put(IDENTITY, text.as_bytes(), Existing::Keep)?
            && identity(&place)?.is_none_or(|found| {
                (&found.id, &found.cluster) != (&self.identity.id, &self.identity.cluster)
            })
        {
            return Err(RepositoryError::Conflict { name: IDENTITY.to_string() });
        }
        self.places.push(Arc::new(place));
        Ok(())
    }

    /// Makes an empty place one of the same repository, and opens it by itself.
    pub fn alone(
        &self,
        config: &PlaceConfig,
        password: &Password,
    ) -> Result<Repository, RepositoryError> {
        let (identity, master) = (self.identity.clone(), self.master.clone());
        let mut alone = Repository { identity, master, places: Vec::new(), absent: Vec::new() };
        alone.extend(config, password)?;
        Ok(alone)
    }

    /// Brings an object as it is to the places of another opening of the same repository. Returns
    /// its bytes.
    pub(crate) fn send(&self, name: &str, to: &Repository) -> Result<u64, RepositoryError> {
        for place in &self.places {
            let Some(sealed) = place.get(name)? else { continue };
            for other in &to.places {
                other.put(name, &sealed, Existing::Keep)?;
            }
            return Ok(sealed.len() as u64);
        }
        Err(RepositoryError::Missing { name: name.to_string() })
    }

    /// Opens the places that answer; an error if none does. All have to be the same repository,
    /// that of the first that opens.
    pub fn open(
        places: &[(PlaceConfig, Password)],
        cluster: &str,
    ) -> Result<Repository, RepositoryError> {
        let places = places.iter().map(|(config, password)| (config, Ok(password.clone())));
        Repository::open_those(places, cluster)
    }

    /// The same where some passwords may not be had: those places are absent.
    pub fn open_those<'p>(
        places: impl IntoIterator<Item = (&'p PlaceConfig, Result<Password, String>)>,
        cluster: &str,
    ) -> Result<Repository, RepositoryError> {
        let mut opened: Option<Repository> = None;
        let mut absent = Vec::new();
        // All at once: one that does not answer takes its time.
        let unlocked: Vec<_> = std::thread::scope(|scope| {
            let one = |config: &PlaceConfig, password: Result<Password, String>| {
                let name = || config.name.clone();
                let none = |said| RepositoryError::NoPassword { place: name(), said };
                password.map_err(none).and_then(|password| unlock(config, &password, cluster))
            };
            let running = places
                .into_iter()
                .map(|(config, password)| (config, scope.spawn(move || one(config, password))));
            let running: Vec<_> = running.collect();
            let ended = running.into_iter().map(|(config, thread)| {
                (config, thread.join().unwrap_or_else(|_| Err(lost_thread())))
            });
            ended.collect()
        });
        for (config, unlocked) in unlocked {
            match (unlocked, &mut opened) {
                (Ok((identity, master, place)), None) => {
                    let places = vec![Arc::new(place)];
                    opened = Some(Repository { identity, master, places, absent: Vec::new() });
                }
                (Ok((identity, _, place)), Some(repository)) => {
                    if identity.id == repository.identity.id {
                        repository.places.push(Arc::new(place));
                    } else {
                        let error = RepositoryError::Foreign {
                            place: config.name.clone(),
                            found: identity.id,
                            cluster: identity.cluster,
                            expected: repository.identity.id.clone(),
                        };
                        absent.push((config.name.clone(), error));
                    }
                }
                (Err(error), _) => absent.push((config.name.clone(), error)),
            }
        }
        match opened {
            Some(repository) => Ok(Repository { absent, ..repository }),
            None if absent.len() == 1 => Err(absent.remove(0).1),
            None => Err(unreachable(&absent)),
        }
    }

    /// Several that were opened by themselves as one; `None`: there are none, or they are not one
    /// repository.
    pub fn join<'r>(parts: impl IntoIterator<Item = &'r Repository>) -> Option<Repository> {
        let mut joined: Option<Repository> = None;
        for part in parts {
            let joined = joined.get_or_insert_with(|| Repository {
                identity: part.identity.clone(),
                master: part.master.clone(),
                places: Vec::new(),
                absent: Vec::new(),
            });
            if joined.identity.id != part.identity.id {
                return None;
            }
            joined.places.extend(part.places.iter().cloned());
        }
        joined
    }

    /// Opens one place of whichever cluster it is.
    pub fn open_any(
        config: &PlaceConfig,
        password: &Password,
    ) -> Result<Repository, RepositoryError> {
        let cluster = known(&Place::open(config)?)?.cluster;
        Repository::open(&[(config.clone(), password.clone())], &cluster)
    }

    /// Opens one place with the recovery kit, without a password.
    pub fn open_with_kit(config: &PlaceConfig, kit: &Kit) -> Result<Repository, RepositoryError> {
        let place = Place::open(config)?;
        let identity = known(&place)?;
        if identity.id != kit.id {
            return Err(RepositoryError::Foreign {
                place: config.name.clone(),
                found: identity.id,
                cluster: identity.cluster,
                expected: kit.id.clone(),
            });
        }
        // Checked before anything is written by it: a password for another key would open nothing.
        let master = kit.master().clone();
        if !keys::proves(&place, &identity, &master)? {
            return Err(RepositoryError::WrongKit { place: config.name.clone() });
        }
        Ok(Repository { identity, master, places: vec![Arc::new(place)], absent: Vec::new() })
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Proves that each place can tell a second write of an object from the first.
    pub fn probe(&self) -> Result<(), RepositoryError> {
        self.places.iter().try_for_each(|place| place.probe())
    }

    pub fn kit(&self) -> Kit {
        Kit::new(&self.identity.id, &self.identity.cluster, &self.master)
    }

    /// Places that are open.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|place| place.name())
    }

    /// Places that could not be opened, and why.
    pub fn absent(&self) -> &[(String, RepositoryError)] {
        &self.absent
    }

    /// Lets another password open a place.
    pub fn add_password(&self, place: &str, password: &Password) -> Result<(), RepositoryError> {
        keys::add(self.place(place)?, &self.master, password)
    }

    /// No longer lets this password open a place; the last one stays.
    pub fn remove_password(&self, place: &str, password: &Password) -> Result<(), RepositoryError> {
        keys::remove(self.place(place)?, password)
    }

    fn place(&self, name: &str) -> Result<&Place, RepositoryError> {
        let place = self.places.iter().find(|place| place.name() == name).map(AsRef::as_ref);
        place.ok_or_else(|| RepositoryError::NoRepository { place: name.to_string() })
    }

    pub(crate) fn master(&self) -> &Master {
        &self.master
    }

    /// Compresses, seals and stores an object in every place. One that is there with the same
    /// content counts; with another content it is a conflict, and nothing is changed.
    pub fn put(&self, name: &str, plain: &[u8]) -> Result<Put, RepositoryError> {
        self.put_object(&self.seal(name, plain)?)
    }

    /// Compresses and seals an object.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Result<Sealed, RepositoryError> {
        let packed = zstd::bulk::compress(plain, LEVEL).map_err(|error| malformed(name, &error))?;
        Ok(Sealed { name: name.to_string(), bytes: self.master.seal(name, &packed)? })
    }

    /// Stores what was sealed by this or by another opening of the repository, as [`Repository::put`].
    pub fn put_object(&self, Sealed { name, bytes }: &Sealed) -> Result<Put, RepositoryError> {
        let content = |packed: &Vec<u8>| unpack(name, packed).ok();
        self.put_sealed(name, bytes, |there| {
            let there = content(&self.master.open(name, there)?);
            let ours = self.master.open(name, bytes);
            Some(there.is_some() && there == ours.as_ref().and_then(content))
        })
    }

    /// Whether what one of them has sealed the other opens.
    pub fn is_one_with(&self, other: &Repository) -> bool {
        self.identity.id == other.identity.id && self.master.0 == other.master.0
    }

    /// Stores what is sealed already. `same`: whether what is there has the same content; `None`: it
    /// is damaged, and is replaced.
    pub(crate) fn put_sealed(
        &self,
        name: &str,
        sealed: &[u8],
        same: impl Fn(&[u8]) -> Option<bool> + Sync,
    ) -> Result<Put, RepositoryError> {
        let one = |place: &Place| put_in(place, name, sealed, &same);
        let results: Vec<_> = std::thread::scope(|scope| {
            let asked: Vec<_> =
                self.places.iter().map(|place| (place, scope.spawn(|| one(place)))).collect();
            asked
                .into_iter()
                .map(|(place, thread)| (place.name().to_string(), thread.join()))
                .collect()
        });
        let mut put = Put::default();
        for (place, result) in results {
            match result {
                Ok(Ok(())) => put.copies += 1,
                Ok(Err(error @ RepositoryError::Conflict { .. })) => return Err(error),
                Ok(Err(error)) => put.failed.push((place, error)),
                Err(_) => put.failed.push((place, lost_thread())),
            }
        }
        match put.copies {
            0 if put.failed.len() == 1 => Err(put.failed.remove(0).1),
            0 => Err(unreachable(&put.failed)),
            _ => Ok(put),
        }
    }

    /// The content of an object, from the first place that has it whole. Where it is damaged or
    /// gone it is put back.
    pub fn get(&self, name: &str) -> Result<Vec<u8>, RepositoryError> {
        let sealed = self.find(name, |place| {
            let Some(sealed) = place.get(name)? else { return Ok(Found::Nothing) };
            Ok(match self.master.open(name, &sealed) {
                Some(packed) => Found::Whole((sealed, packed)),
                None => Found::Damaged,
            })
        })?;
        let ((sealed, packed), harmed) = sealed;
        for place in harmed {
            // Whoever may only read, or finds the place full, has the content all the same.
            match place.put(name, &sealed, Existing::Replace) {
                Ok(_) => {
                    tracing::warn!(place = place.name(), object = name, "put back from another");
                }
                Err(error) => {
                    tracing::warn!(place = place.name(), object = name, %error, "can't put back");
                }
            }
        }
        unpack(name, &packed)
    }

    /// Looks in each place in turn until one has it whole; with it come those that don't.
    pub(crate) fn find<T>(
        &self,
        name: &str,
        look: impl Fn(&Place) -> Result<Found<T>, RepositoryError>,
    ) -> Result<(T, Vec<&Place>), RepositoryError> {
        let mut harmed = Vec::new();
        let mut damaged = false;
        let mut unreachable = None;
        for place in self.places.iter().map(AsRef::as_ref) {
            match look(place) {
                Ok(Found::Whole(found)) => return Ok((found, harmed)),
                Ok(Found::Damaged) => {
                    damaged = true;
                    harmed.push(place);
                }
                Ok(Found::Nothing) => harmed.push(place),
                Err(error) => unreachable = Some(error),
            }
        }
        let name = name.to_string();
        Err(match (damaged, unreachable) {
            (_, Some(error)) => error,
            (true, None) => RepositoryError::Damaged { name },
            (false, None) => RepositoryError::Missing { name },
        })
    }

    /// Puts an object back where it is damaged, or gone, if some place has it whole. What
    /// `is_final` says of stays as it is. In how many places it is whole now, and what was wrong.
    pub(crate) fn mend(
        &self,
        name: &str,
        is_whole: impl Fn(&[u8]) -> bool,
        is_final: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Mended, RepositoryError> {
        let mut mended = Mended::default();
        let mut whole = None;
        let mut harmed = Vec::new();
        for place in &self.places {
            match place.get(name) {
                Ok(there) => {
                    mended.bytes += there.as_ref().map_or(0, |it| it.len() as u64);
                    match there {
                        Some(there) if is_whole(&there) => {
                            mended.copies += 1;
                            whole = Some(there);
                        }
                        Some(there) if is_final(&there) => {}
                        there => harmed.push((place, there.is_some())),
                    }
                }
                Err(error) => mended.unreachable.push((place.name().to_string(), error)),
            }
        }
        for (place, damaged) in harmed {
            mended.harmed.push(place.name().to_string());
            let Some(whole) = &whole else { continue };
            // Only what is damaged is written over: what was taken away since stays away.
            let existing = if damaged { Existing::Replace } else { Existing::Keep };
            if place.put(name, whole, existing)? {
                if damaged {
                    tracing::warn!(place = place.name(), object = name, "put back from another");
                }
                mended.copies += 1;
            }
        }
        Ok(mended)
    }

    /// All objects whose names begin so in the places that answer; an error if none does.
    pub(crate) fn held(&self, prefix: &str) -> Result<BTreeMap<String, Held>, RepositoryError> {
        let listed: Vec<_> = self.places.iter().map(|place| place.list(prefix)).collect();
        if listed.iter().any(Result::is_ok) {
            return Ok(merge(listed.into_iter().flatten()));
        }
        self.held_surely(prefix)
    }

    /// The same; an error if a place does not answer: what it has is not known then.
    pub(crate) fn held_surely(
        &self,
        prefix: &str,
    ) -> Result<BTreeMap<String, Held>, RepositoryError> {
        let listed = self.places.iter().map(|place| place.list(prefix));
        Ok(merge(listed.collect::<Result<Vec<_>, _>>()?))
    }

    /// An error if a place was not opened, or is not there any more: a directory that is no longer
    /// mounted looks like an empty one.
    pub fn all_there(&self) -> Result<(), RepositoryError> {
        let absent = |place: &str, said: String| RepositoryError::PlaceAbsent {
            place: place.to_string(),
            said,
        };
        if let Some((place, error)) = self.absent.first() {
            return Err(absent(place, error.to_string()));
        }
        for place in &self.places {
            let found = known(place).map_err(|error| absent(place.name(), error.to_string()))?;
            if found.id != self.identity.id {
                return Err(absent(place.name(), format!("it holds repository {}", found.id)));
            }
        }
        Ok(())
    }

    pub(crate) fn all_places(&self) -> &[Arc<Place>] {
        &self.places
    }

    /// All objects whose names begin so, with how many places have each. An error if a place does
    /// not answer: what it has is not known then.
    pub fn list(&self, prefix: &str) -> Result<BTreeMap<String, usize>, RepositoryError> {
        let held = self.held_surely(prefix)?;
        Ok(held.into_iter().map(|(name, held)| (name, held.copies)).collect())
    }

    /// Removes an object from every place.
    pub fn delete(&self, name: &str) -> Result<(), RepositoryError> {
        self.places.iter().try_for_each(|place| place.delete(name))
    }

    /// Removes many, several at once, in no order.
    pub(crate) fn delete_all(
        &self,
        names: &[String],
        watch: &Watch<'_>,
    ) -> Result<(), RepositoryError> {
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        let total = names.len() as u64;
        let work = || -> Result<(), RepositoryError> {
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                watch.check()?;
                self.delete(name)?;
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                (watch.progress)(Progress { done, total });
            }
            Ok(())
        };
        at_once(names.len().min(DELETERS), work)
    }
}

/// What became of an object that may be damaged.
#[derive(Debug, Default)]
pub(crate) struct Mended {
    /// Places that hold it whole now.
    pub copies: usize,
    /// Places where it was damaged or gone.
    pub harmed: Vec<String>,
    pub unreachable: Vec<(String, RepositoryError)>,
    /// Read, in all places together.
    pub bytes: u64,
}

/// How places hold an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub copies: usize,
    /// In all places together.
    pub bytes: u64,
}

/// Stores what is sealed in one place, as [`Repository::put_sealed`].
fn put_in(
    place: &Place,
    name: &str,
    sealed: &[u8],
    same: impl Fn(&[u8]) -> Option<bool>,
) -> Result<(), RepositoryError> {
    if place.put(name, sealed, Existing::Keep)? {
        return Ok(());
    }
    let there = place.get(name)?;
    match there.as_deref().map(same) {
        Some(Some(true)) => Ok(()),
        Some(Some(false)) => Err(RepositoryError::Conflict { name: name.to_string() }),
        Some(None) | None => place.put(name, sealed, Existing::Replace).map(|_| ()),
    }
}

/// What a place has of an object.
pub(crate) enum Found<T> {
    Whole(T),
    Damaged,
    Nothing,
}

/// Runs it in so many threads, and waits for all of them.
pub(crate) fn at_once(
    threads: usize,
    work: impl Fn() -> Result<(), RepositoryError> + Copy + Send,
) -> Result<(), RepositoryError> {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = running.into_iter().map(|thread| thread.join());
        let ended: Vec<_> = ended.map(|it| it.unwrap_or_else(|_| Err(lost_thread()))).collect();
        ended.into_iter().collect()
    })
}

fn unreachable(errors: &[(String, RepositoryError)]) -> RepositoryError {
    let said: Vec<_> = errors.iter().map(|(_, error)| error.to_string()).collect();
    RepositoryError::Unreachable { said: said.join("; ") }
}

fn lost_thread() -> RepositoryError {
    RepositoryError::Unreachable { said: "its thread ended".to_string() }
}

fn merge(listed: impl IntoIterator<Item = Vec<Object>>) -> BTreeMap<String, Held> {
    let mut objects: BTreeMap<String, Held> = BTreeMap::new();
    for object in listed.into_iter().flatten() {
        let held = objects.entry(object.name).or_default();
        held.copies += 1;
        held.bytes += object.bytes;
    }
    objects
}

/// Passwords and identity are each place's own.
pub(crate) fn is_shared(name: &str) -> bool {
    name != IDENTITY
        && name != SEALED
        && name != rekey::WORD
        && !name.starts_with(keys::KEYS)
        && !name.starts_with(place::PROBE)
}

fn identity(place: &Place) -> Result<Option<Identity>, RepositoryError> {
    let Some(text) = place.get(IDENTITY)? else { return Ok(None) };
    let malformed =
        |error: serde_json::Error| malformed(&format!("{IDENTITY} of {}", place.name()), &error);
    #[derive(Deserialize)]
    struct Form {
        format: u32,
    }
    // A newer form may look different everywhere else.
    let Form { format } = serde_json::from_slice(&text).map_err(malformed)?;
    if format > FORMAT_OF_COPY {
        return Err(RepositoryError::Newer { place: place.name().to_string(), format });
    }
    serde_json::from_slice(&text).map(Some).map_err(malformed)
}

/// A place that holds no repository and no copy of one, ready to become one.
fn empty(config: &PlaceConfig) -> Result<Place, RepositoryError> {
    let place = Place::open(config)?;
    if let Some(identity) = identity(&place)? {
        return Err(RepositoryError::Taken {
            place: config.name.clone(),
            id: identity.id,
            cluster: identity.cluster,
        });
    }
    rekey::is_no_copy(&place)?;
    place.prepare()?;
    place.probe()?;
    Ok(place)
}

fn known(place: &Place) -> Result<Identity, RepositoryError> {
    let none = || RepositoryError::NoRepository { place: place.name().to_string() };
    match identity(place)? {
        Some(identity) => Ok(identity),
        None => rekey::is_no_copy(place).and(Err(none())),
    }
}

fn unlock(
    config: &PlaceConfig,
    password: &Password,
    cluster: &str,
) -> Result<(Identity, Master, Place), RepositoryError> {
    let place = Place::open(config)?;
    let identity = known(&place)?;
    if identity.cluster != cluster {
        return Err(RepositoryError::Foreign {
            place: config.name.clone(),
            found: identity.id,
            cluster: identity.cluster,
            expected: format!("one of cluster {cluster}"),
        });
    }
    let master = keys::unlock(&place, password)?;
    Ok((identity, master, place))
}

fn unpack(name: &str, packed: &[u8]) -> Result<Vec<u8>, RepositoryError> {
    let mut plain = Vec::new();
    zstd::stream::read::Decoder::new(packed)
        .and_then(|decoder| decoder.take(PLAIN_BYTES_MAX).read_to_end(&mut plain))
        .map_err(|error| malformed(name, &error))?;
    Ok(plain)
}

fn json(value: &impl Serialize) -> String {
    // Strings and numbers only.
    serde_json::to_string_pretty(value).expect("plain data")
}

fn malformed(what: &str, error: &dyn std::fmt::Display) -> RepositoryError {
    RepositoryError::Malformed { what: what.to_string(), said: error.to_string() }
}

#[cfg(test)]
mod tests;
