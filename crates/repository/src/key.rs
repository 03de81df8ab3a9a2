//! The master key behind passwords: each password opens it by itself, so one can be added or taken
//! away without touching what is stored.

use crate::RepositoryError;
use crate::seal::{Master, ObjectKey, TAG, random};
use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Memory in KiB, passes and lanes of Argon2id: the second recommended set of RFC 9106, for where
/// 2 GiB are too much. About a tenth of a second.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// A record of ours asks for no more: one that does was not written by us.
const MEMORY_KIB_MAX: u32 = 4 * 1024 * 1024;

/// What opens a repository. Shown nowhere.
#[derive(Clone)]
pub struct Password(String);

impl Password {
    /// Spaces and line ends around it don't count, so that a file may end with one.
    pub fn new(text: &str) -> Password {
        Password(text.trim().to_string())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// The master key as one password wraps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrapped {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
    pub salt: String,
    /// Sealed with what Argon2id makes of the password and the salt.
    pub master: String,
}

impl Wrapped {
    pub fn new(master: &Master, password: &Password) -> Result<Wrapped, RepositoryError> {
        let salt: [u8; 32] = random()?;
        let key = derive(password, &salt, MEMORY_KIB, PASSES, LANES)?;
        let mut sealed = Vec::new();
        key.seal(&master.0, &mut sealed);
        Ok(Wrapped {
            memory_kib: MEMORY_KIB,
            passes: PASSES,
            lanes: LANES,
            salt: hex(&salt),
            master: hex(&sealed),
        })
    }

    /// The master key, if it is this password.
    pub fn open(&self, password: &Password) -> Result<Option<Master>, RepositoryError> {
        let malformed = || RepositoryError::Malformed {
            what: "a repository's key".to_string(),
            said: "it was changed".to_string(),
        };
        if self.memory_kib > MEMORY_KIB_MAX || self.passes > 100 || self.lanes > 64 {
            return Err(malformed());
        }
        let salt = unhex(&self.salt).ok_or_else(malformed)?;
        let mut sealed = unhex(&self.master).ok_or_else(malformed)?;
        if sealed.len() != 32 + TAG {
            return Err(malformed());
        }
        let key = derive(password, &salt, self.memory_kib, self.passes, self.lanes)?;
        let plain = key.open(0, &mut sealed);
        Ok(plain.and_then(|plain| plain.try_into().ok()).map(Master))
    }
}

fn derive(
    password: &Password,
    salt: &[u8],
    memory_kib: u32,
    passes: u32,
    lanes: u32,
) -> Result<ObjectKey, RepositoryError> {
    // One at a time: the memory of one, however many places are opened at once.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut key = [0; 32];
    Params::new(memory_kib, passes, lanes, Some(key.len()))
        .and_then(|params| {
            let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            argon.hash_password_into(password.0.as_bytes(), salt, &mut key)
        })
        .map_err(|error| RepositoryError::Malformed {
            what: "a repository's key".to_string(),
            said: error.to_string(),
        })?;
    Ok(ObjectKey::new(&key))
}

/// What is needed to restore with every machine gone: where the repository lies and its master key,
/// as a text to be printed and locked away.
#[derive(Clone)]
pub struct Kit {
    pub id: String,
    pub cluster: String,
    master: Master,
}

impl Kit {
    pub(crate) fn new(id: &str, cluster: &str, master: &Master) -> Kit {
        Kit { id: id.to_string(), cluster: cluster.to_string(), master: master.clone() }
    }

    /// One line, with a checksum that notices a letter copied wrongly.
    pub fn text(&self) -> String {
        let body = format!("everhold-kit-1 {} {} {}", self.cluster, self.id, hex(&self.master.0));
        let sum = blake3::hash(body.as_bytes()).to_hex();
        format!("{body} {}", &sum[..8])
    }

    pub fn parse(text: &str) -> Result<Kit, RepositoryError> {
        let malformed = |said: &str| RepositoryError::Malformed {
            what: "the recovery kit".to_string(),
            said: said.to_string(),
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let ["everhold-kit-1", cluster, id, master, sum] = words[..] else {
            return Err(malformed("it has five words, of which the first is everhold-kit-1"));
        };
        let master = unhex(master).and_then(|bytes| bytes.try_into().ok());
        let master = Master(master.ok_or_else(|| malformed("its fourth word is not a key"))?);
        let kit = Kit { id: id.to_string(), cluster: cluster.to_string(), master };
        match kit.text().ends_with(sum) {
            true => Ok(kit),
            false => Err(malformed("a letter was copied wrongly")),
        }
    }

    pub(crate) fn master(&self) -> &Master {
        &self.master
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).ok()?;
        pair.iter().all(u8::is_ascii_hexdigit).then(|| u8::from_str_radix(text, 16).ok())?
    };
    text.len().is_multiple_of(2).then(|| text.as_bytes().chunks(2).map(digits).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_opens_it_and_no_other_does() {
        let master = Master::random().expect("randomness");
        let wrapped = Wrapped::new(&master, &Password::new("correct\n")).expect("wrapped");
        let open = |text: &str| wrapped.open(&Password::new(text)).expect("readable");
        assert_eq!(open("correct").map(|it| it.0), Some(master.0));
        assert!(open("wrong").is_none() && open("").is_none());
        let json = serde_json::to_string(&wrapped).expect("text");
        assert!(!json.contains(&hex(&master.0)), "{json}");
        let greedy = Wrapped { memory_kib: u32::MAX, ..wrapped };
        assert!(greedy.open(&Password::new("correct")).is_err(), "no record takes all memory");
    }

    #[test]
    fn a_kit_is_copied_letter_by_letter() {
        let kit = Kit::new("abcd", "shop", &Master::random().expect("randomness"));
        let text = kit.text();
        assert_eq!(Kit::parse(&format!(" {text}\n")).expect("a kit").master.0, kit.master.0);
        let at = text.len() - 20;
        let wrong = if &text[at..=at] == "0" { "1" } else { "0" };
        let copied = format!("{}{wrong}{}", &text[..at], &text[at + 1..]);
        for bad in [copied.as_str(), "everhold-kit-1 shop abcd", "", &text[1..]] {
            assert!(Kit::parse(bad).is_err(), "{bad}");
        }
        assert!(!format!("{:?}", kit.master).contains(&hex(&kit.master.0)));
    }
}
