//! The passwords of a place, and what proves a master key to be its repository's.

use super::{Identity, SEALED, json, malformed};
use crate::RepositoryError;
use crate::copies;
use crate::key::{Password, Wrapped, hex};
use crate::place::{Existing, Place};
use crate::seal::{Master, random};

pub const KEYS: &str = "keys/";
/// A place has so many passwords at most; each that is tried costs a tenth of a second.
const MOST: usize = 32;
/// Of the objects that prove a master key where [`SEALED`] is damaged, so many are read.
const WITNESSES: usize = 4;

/// The passwords of a place. One that can't be used keeps none of the others from opening.
#[derive(Default)]
struct Keys {
    readable: Vec<(String, Wrapped)>,
    /// What is wrong with the first that is no record of ours any more.
    damaged: Option<String>,
    /// Why the first that could not be read was not.
    unread: Option<RepositoryError>,
}

fn read(place: &Place) -> Result<Keys, RepositoryError> {
    let mut keys = Keys::default();
    for object in place.list(KEYS)?.into_iter().take(MOST) {
        let text = match place.get(&object.name) {
            Ok(Some(text)) => text,
            Ok(None) => continue,
            Err(error) => {
                keys.unread.get_or_insert(error);
                continue;
            }
        };
        match serde_json::from_slice(&text) {
            Ok(wrapped) => keys.readable.push((object.name, wrapped)),
            Err(error) => {
                keys.damaged.get_or_insert(malformed(&object.name, &error).to_string());
            }
        }
    }
    Ok(keys)
}

impl Keys {
    /// What this password opens: the objects, and the master key.
    fn open(
        &mut self,
        place: &Place,
        by: &Password,
    ) -> Result<(Vec<&str>, Master), RepositoryError> {
        let mut found: Option<(Vec<&str>, Master)> = None;
        let mut damaged = self.damaged.take();
        for (name, wrapped) in &self.readable {
            match (wrapped.open(by), &mut found) {
                (Ok(Some(master)), None) => found = Some((vec![name], master)),
                (Ok(Some(_)), Some((names, _))) => names.push(name),
                (Ok(None), _) => {}
                (Err(error), _) => {
                    damaged.get_or_insert_with(|| format!("{name}: {error}"));
                }
            }
        }
        let unread = self.unread.take();
        found.ok_or_else(|| {
            let place = place.name().to_string();
            match (unread, damaged) {
                (Some(error), _) => error,
                (None, Some(said)) => RepositoryError::DamagedPassword { place, said },
                (None, None) => RepositoryError::WrongPassword { place },
            }
        })
    }
}

/// The master key, by a password.
pub fn unlock(place: &Place, password: &Password) -> Result<Master, RepositoryError> {
    Ok(read(place)?.open(place, password)?.1)
}

pub fn add(place: &Place, master: &Master, password: &Password) -> Result<(), RepositoryError> {
    if place.list(KEYS)?.len() >= MOST {
        return Err(RepositoryError::ManyPasswords { place: place.name().to_string(), most: MOST });
    }
    let wrapped = Wrapped::new(master, password)?;
    let name = format!("{KEYS}{}.json", hex(&random::<8>()?));
    place.put(&name, json(&wrapped).as_bytes(), Existing::Keep).map(|_| ())
}

/// The master key of a place that is being made: what the password opens there already, left by a
/// try that was killed or put by one at the same time, or else `fresh`.
pub fn first(
    place: &Place,
    fresh: &Master,
    password: &Password,
) -> Result<Master, RepositoryError> {
    if place.list(KEYS)?.is_empty() {
        let wrapped = Wrapped::new(fresh, password)?;
        // Of two that make it at once one's stays.
        place.put(&format!("{KEYS}first.json"), json(&wrapped).as_bytes(), Existing::Keep)?;
    }
    unlock(place, password)
}

/// The id of a place that is being made: what was sealed there already, or else `fresh`.
pub fn claim(place: &Place, master: &Master, fresh: &str) -> Result<String, RepositoryError> {
    place.put(SEALED, &master.seal(SEALED, fresh.as_bytes())?, Existing::Keep)?;
    let sealed = place.get(SEALED)?.unwrap_or_default();
    let id = master.open(SEALED, &sealed).and_then(|id| String::from_utf8(id).ok());
    id.ok_or_else(|| RepositoryError::Damaged { name: SEALED.to_string() })
}

/// The last one that is readable stays.
pub fn remove(place: &Place, password: &Password) -> Result<(), RepositoryError> {
    let mut keys = read(place)?;
    let all = keys.readable.len();
    let (opened, _) = keys.open(place, password)?;
    if opened.len() == all {
        return Err(RepositoryError::LastPassword { place: place.name().to_string() });
    }
    opened.into_iter().try_for_each(|name| place.delete(name))
}

/// Whether a master key is this repository's: it opens what was sealed for that, or, where this is
/// damaged, one of the newest copies of the spec.
pub fn proves(
    place: &Place,
    identity: &Identity,
    master: &Master,
) -> Result<bool, RepositoryError> {
    let sealed = place.get(SEALED)?.unwrap_or_default();
    if let Some(id) = master.open(SEALED, &sealed) {
        return Ok(id == identity.id.as_bytes());
    }
    let mut copies = place.list(&format!("{}spec/", copies::PREFIX))?;
    copies.sort_by(|a, b| b.name.cmp(&a.name));
    for object in copies.into_iter().take(WITNESSES) {
        let sealed = place.get(&object.name)?.unwrap_or_default();
        if master.open(&object.name, &sealed).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}
