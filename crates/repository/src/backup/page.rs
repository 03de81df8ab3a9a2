//! The hash by which a changed page is told.

use crate::seal::Master;
pub use everhold_core::page::{PAGE, first_page, is_sound, lsn};

/// 64 bits of a keyed hash: who lacks the key can't make two pages that look equal.
pub fn hash(master: &Master, page: &[u8]) -> u64 {
    let hash = master.hash(page);
    let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    u64::from_le_bytes(*first)
}
