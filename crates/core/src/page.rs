//! PostgreSQL's pages: which files have them, and whether one is as it was written.

use crate::ids::Lsn;

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

/// The number of a file's first page, if it is one of a relation: its pages have checksums.
pub fn first_page(path: &str) -> Option<u32> {
    let (dir, name) = path.rsplit_once('/')?;
    if !(dir == "global" || dir.starts_with("base/") || dir.starts_with("pg_tblspc/")) {
        return None;
    }
    let (relation, segment) = name.split_once('.').unwrap_or((name, "0"));
    relation.split('_').next()?.parse::<u32>().ok()?;
    segment.parse::<u32>().ok()?.checked_mul(SEGMENT_PAGES)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_pages() {
        #[rustfmt::skip]
        let cases = [
            ("base/5/16384", Some(0)), ("base/5/16384.2", Some(262_144)), ("global/1262", Some(0)),
            ("base/5/16384_fsm", Some(0)), ("base/5/16384_init", Some(0)),
            ("pg_tblspc/16400/PG_15_202209061/5/16384.1", Some(131_072)),
            ("global/pg_control", None), ("base/5/PG_VERSION", None), ("pg_xact/0000", None),
            ("base/5/pg_filenode.map", None), ("16384", None), ("base/5/1.x", None),
        ];
        for (path, expected) in cases {
            assert_eq!(first_page(path), expected, "{path}");
        }
    }

    #[test]
    fn a_changed_bit_or_place_is_seen() {
        let mut page = [0; PAGE];
        assert!(is_sound(&page, 7), "one that was never written");
        page[100] = 1;
        assert!(!is_sound(&page, 7), "zeros with a bit among them");
        (page[14], page[15]) = (0x20, 0x1f);
        let sum = checksum(&page, 7).to_le_bytes();
        page[8..10].copy_from_slice(&sum);
        assert!(is_sound(&page, 7) && !is_sound(&page, 8));
        for at in [0, 100, PAGE - 1] {
            page[at] ^= 0x10;
            assert!(!is_sound(&page, 7), "byte {at}");
            page[at] ^= 0x10;
        }
    }
}
