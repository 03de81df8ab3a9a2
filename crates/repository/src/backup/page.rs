//! PostgreSQL's pages: their checksum, and the hash by which a changed one is told.

use crate::seal::Master;
use everhold_core::ids::Lsn;

pub const PAGE: usize = 8192;
/// Pages of a whole segment file of a relation.
pub const SEGMENT_PAGES: u32 = 131_072;

const LANES: usize = 32;
/// Where each of the 32 sums starts, as PostgreSQL's `checksum_impl.h` lays down.
#[rustfmt::skip]
const START: [u32; LANES] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// Whether a whole page of a relation is as it was written. One that never was (its `pd_upper` is
/// zero) must be all zeros.
pub fn is_sound(page: &[u8], number: u32) -> bool {
    if page[14] == 0 && page[15] == 0 {
        return page.iter().all(|byte| *byte == 0);
    }
    checksum(page, number) == u16::from_le_bytes([page[8], page[9]])
}

/// Up to where the log has changed the page.
pub fn lsn(page: &[u8]) -> Lsn {
    let half = |at: usize| {
        u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]))
    };
    Lsn(half(0) << 32 | half(4))
}

/// 64 bits of a keyed hash: who lacks the key can't make two pages that look equal.
pub fn hash(master: &Master, page: &[u8]) -> u64 {
    let hash = master.hash(page);
    let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    u64::from_le_bytes(*first)
}

fn checksum(page: &[u8], number: u32) -> u16 {
    let mut sums = START;
    let mut rows = page.chunks_exact(LANES * 4);
    let mut first = row(rows.next().unwrap_or(&[]));
    // The checksum itself counts as zero.
    first[2] &= 0xffff_0000;
    mix(&mut sums, &first);
    rows.for_each(|bytes| mix(&mut sums, &row(bytes)));
    mix(&mut sums, &[0; LANES]);
    mix(&mut sums, &[0; LANES]);
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ number;
    (folded % 65_535 + 1) as u16
}

fn mix(sums: &mut [u32; LANES], row: &[u32; LANES]) {
    for (sum, word) in sums.iter_mut().zip(row) {
        let mixed = *sum ^ word;
        *sum = mixed.wrapping_mul(16_777_619) ^ (mixed >> 17);
    }
}

fn row(bytes: &[u8]) -> [u32; LANES] {
    let mut row = [0; LANES];
    for (word, at) in row.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([at[0], at[1], at[2], at[3]]);
    }
    row
}
