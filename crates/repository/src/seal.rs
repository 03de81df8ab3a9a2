//! Sealing: AES-256-GCM under a key made for each object.
//!
//! An object's key follows from the master key, its name and 32 random bytes that stand at its
//! beginning. So no key is used for two objects, an object under another's name does not open, and
//! within one a blob's offset is a nonce that comes once.

use crate::RepositoryError;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

/// How an object begins: what it is, the version of its form, and its random bytes.
pub const HEAD: usize = MAGIC.len() + SALT;
/// How much longer a sealed blob is.
pub const TAG: usize = 16;
const MAGIC: &[u8; 8] = b"everh\0\0\x01";
const SALT: usize = 32;
/// Separates these keys from any other use of the master key.
const CONTEXT: &str = "everhold 2026 key of a repository's object";

/// What everything is sealed with. It never leaves memory but wrapped, or sealed by another.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master(pub(crate) [u8; 32]);

impl std::fmt::Debug for Master {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Master(..)")
    }
}

/// The key of one object.
pub struct ObjectKey(LessSafeKey);

/// Random bytes of the system.
pub fn random<const N: usize>() -> Result<[u8; N], RepositoryError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| RepositoryError::NoRandomness)?;
    Ok(bytes)
}

impl Master {
    pub fn random() -> Result<Master, RepositoryError> {
        random().map(Master)
    }

    /// A keyed hash under this master: who lacks it can't find two contents that look equal.
    pub fn hash(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, bytes)
    }

    /// A checksum of an object's bytes that holds under its name only.
    pub fn check(&self, name: &str, bytes: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(bytes).update(name.as_bytes());
        let mut check = [0; 16];
        hasher.finalize_xof().fill(&mut check);
        check
    }

    /// The beginning of a new object of that name, and its key.
    pub fn begin(&self, name: &str) -> Result<([u8; HEAD], ObjectKey), RepositoryError> {
        let mut head = [0; HEAD];
        head[..MAGIC.len()].copy_from_slice(MAGIC);
        head[MAGIC.len()..].copy_from_slice(&random::<SALT>()?);
        Ok((head, self.object_key(name, &head)))
    }

    /// The key of an object, from its beginning. `None`: it is none of ours.
    pub fn of(&self, name: &str, head: &[u8]) -> Option<ObjectKey> {
        let head = head.get(..HEAD)?;
        head.starts_with(MAGIC).then(|| self.object_key(name, head))
    }

    fn object_key(&self, name: &str, head: &[u8]) -> ObjectKey {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&self.0).update(head).update(name.as_bytes());
        ObjectKey::new(hasher.finalize().as_bytes())
    }

    /// Seals a whole object.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, RepositoryError> {
        let (head, key) = self.begin(name)?;
        let mut sealed = Vec::with_capacity(HEAD + plain.len() + TAG);
        sealed.extend_from_slice(&head);
        key.seal(plain, &mut sealed);
        Ok(sealed)
    }

    /// The content of a whole object; `None`: it is damaged, or another's.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let key = self.of(name, sealed)?;
        key.open(HEAD as u64, &mut sealed.get(HEAD..)?.to_vec()).map(<[u8]>::to_vec)
    }
}

impl ObjectKey {
    pub(crate) fn new(key: &[u8; 32]) -> ObjectKey {
        // The length is that of the algorithm, which is all that is checked.
        let key = UnboundKey::new(&AES_256_GCM, key).expect("a key of 32 bytes");
        ObjectKey(LessSafeKey::new(key))
    }

    /// Seals a blob behind what the object holds already: the place is its nonce.
    pub fn seal(&self, plain: &[u8], object: &mut Vec<u8>) {
        let at = object.len();
        object.extend_from_slice(plain);
        let sealed =
            self.0.seal_in_place_separate_tag(nonce(at as u64), Aad::empty(), &mut object[at..]);
        // It fails only beyond 64 GB.
        object.extend_from_slice(sealed.expect("a blob in memory").as_ref());
    }

    /// Opens a blob that lies at `offset`; `None`: it is damaged, or lay elsewhere.
    pub fn open<'b>(&self, offset: u64, sealed: &'b mut [u8]) -> Option<&'b [u8]> {
        self.0.open_in_place(nonce(offset), Aad::empty(), sealed).ok().map(|plain| &*plain)
    }

    /// What a blob at `offset` begins with, whoever wrote it: enough to see where it ends. Nothing
    /// counts before [`ObjectKey::open`] has opened it.
    pub fn peek(&self, offset: u64, sealed: &[u8]) -> Vec<u8> {
        // The mode is a stream: zeros sealed are what every byte is mixed with.
        let mut plain = vec![0; sealed.len()];
        let mixed = self.0.seal_in_place_separate_tag(nonce(offset), Aad::empty(), &mut plain);
        // It fails only beyond 64 GB.
        let _ = mixed.expect("a blob in memory");
        plain.iter_mut().zip(sealed).for_each(|(byte, sealed)| *byte ^= sealed);
        plain
    }
}

fn nonce(offset: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&offset.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_and_nothing_else_does() {
        let master = Master::random().expect("randomness");
        let sealed = master.seal("a/1", b"content").expect("sealed");
        assert_eq!(master.open("a/1", &sealed).as_deref(), Some(&b"content"[..]));
        assert_eq!(master.open("a/2", &sealed), None, "under another name");
        let other = Master::random().expect("randomness");
        assert_eq!(other.open("a/1", &sealed), None, "with another key");
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(master.open("a/1", &flipped), None, "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(master.open("a/1", &sealed[..len]), None, "cut to {len}");
        }
        assert_ne!(sealed, master.seal("a/1", b"content").expect("sealed"), "the key is new");
    }
}
