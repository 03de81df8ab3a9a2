//! A leaf says of 16 MB of a file where each page lies in the packs, and what its hash is.
//!
//! It lies in a pack itself, so a backup's manifest holds one line per leaf and stays small however
//! large the database is. A leaf may be stored as what differs from another one that is whole; no
//! chain is longer than that.

use serde::{Deserialize, Serialize};

/// A file's unit of storage: what is read from a pack at once.
pub const BLOCK: usize = 256 << 10;
pub const PAGES: usize = BLOCK / super::page::PAGE;
/// Blocks of one leaf, which is also one step of a worker.
pub const BLOCKS: usize = 64;
pub const LEAF: u64 = (BLOCKS * BLOCK) as u64;
/// Differences beside a block's first piece; more are made one.
pub const PIECES_MAX: usize = 8;

/// Where a blob lies: the number of a pack in a list, and the bytes in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(u32, u32, u32)", from = "(u32, u32, u32)")]
pub struct Spot {
    pub pack: u32,
    pub offset: u32,
    pub len: u32,
}

/// A blob that holds pages of a block. A block's first piece holds them as they are, every other
/// one as their difference (xor) to the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub spot: Spot,
    /// Pages that the blob holds, as bits, and those of them that still stand.
    pub holds: u32,
    pub take: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub pieces: Vec<Piece>,
    pub pages: Vec<u64>,
}

/// The first `n` bits.
pub fn bits(n: usize) -> u32 {
    u32::MAX.checked_shr(32_u32.saturating_sub(n as u32)).unwrap_or(0)
}

/// A leaf as bytes; blocks that equal `base`'s are left out. Packs are written as places in `table`,
/// which grows by those that it lacks.
pub fn encode(blocks: &[Block], base: &[Block], table: &mut Vec<u32>) -> Vec<u8> {
    let (mut out, mut hashes) = (Vec::new(), Vec::new());
    let own: Vec<usize> =
        (0..blocks.len()).filter(|at| base.get(*at) != Some(&blocks[*at])).collect();
    put(&mut out, blocks.len());
    put(&mut out, own.len());
    for at in own {
        let block = &blocks[at];
        put(&mut out, at);
        put(&mut out, block.pieces.len());
        for piece in &block.pieces {
            let place = table.iter().position(|pack| *pack == piece.spot.pack);
            put(&mut out, place.unwrap_or(table.len()));
            if place.is_none() {
                table.push(piece.spot.pack);
            }
            let Spot { pack: _, offset, len } = piece.spot;
            let numbers = [offset, len, piece.holds, piece.holds ^ piece.take];
            numbers.into_iter().for_each(|number| put(&mut out, number as usize));
        }
        // Only pages that differ bring their hash.
        let was = base.get(at).map_or(&[][..], |block| &block.pages);
        let new = (0..block.pages.len())
            .filter(|page| was.get(*page) != Some(&block.pages[*page]))
            .fold(0_u32, |all, page| all | 1 << page);
        put(&mut out, block.pages.len());
        put(&mut out, new as usize);
        for (page, hash) in block.pages.iter().enumerate() {
            if new >> page & 1 == 1 {
                hashes.extend_from_slice(&hash.to_le_bytes());
            }
        }
    }
    out.extend(hashes);
    out
}

/// The blocks of a leaf; `None`: it is none, or stands on another base.
pub fn decode(bytes: &[u8], base: &[Block], table: &[u32]) -> Option<Vec<Block>> {
    let mut bytes = bytes;
    let from = &mut bytes;
    let count = get(from, BLOCKS)?;
    let mut blocks: Vec<Block> = base.iter().take(count).cloned().collect();
    blocks.resize(count, Block::default());
    let mut changed = Vec::new();
    for _ in 0..get(from, BLOCKS)? {
        let block = get(from, BLOCKS)?;
        let mut pieces = Vec::new();
        for _ in 0..get(from, PIECES_MAX + 1)? {
            let pack = *table.get(get(from, table.len())?)?;
            let mut number = || get(from, u32::MAX as usize).map(|number| number as u32);
            let spot = Spot { pack, offset: number()?, len: number()? };
            let holds = number()?;
            pieces.push(Piece { spot, holds, take: holds ^ number()? });
        }
        let pages = get(from, PAGES)?;
        changed.push((block, pages, get(from, u32::MAX as usize)?));
        blocks.get_mut(block)?.pieces = pieces;
    }
    for (block, pages, new) in changed {
        let block = blocks.get_mut(block)?;
        block.pages.resize(pages, 0);
        for (page, hash) in block.pages.iter_mut().enumerate() {
            if new >> page & 1 == 1 {
                let (first, rest) = from.split_first_chunk()?;
                *hash = u64::from_le_bytes(*first);
                *from = rest;
            }
        }
    }
    from.is_empty().then_some(blocks)
}

/// Seven bits a byte, the lowest first.
fn put(out: &mut Vec<u8>, mut number: usize) {
    while number >= 128 {
        out.push(number as u8 | 128);
        number >>= 7;
    }
    out.push(number as u8);
}

fn get(from: &mut &[u8], max: usize) -> Option<usize> {
    let mut number = 0;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= usize::from(byte & 127) << shift;
        if byte & 128 == 0 {
            return (number <= max).then_some(number);
        }
    }
    None
}

impl From<(u32, u32, u32)> for Spot {
    fn from((pack, offset, len): (u32, u32, u32)) -> Spot {
        Spot { pack, offset, len }
    }
}

impl From<Spot> for (u32, u32, u32) {
    fn from(spot: Spot) -> (u32, u32, u32) {
        (spot.pack, spot.offset, spot.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(seed: u32, pages: usize) -> Block {
        let spot = |n: u32| Spot { pack: 7 + n % 3, offset: 1 << (seed % 24), len: seed + 1 };
        let whole = bits(pages);
        let pieces = (0..1 + seed % 3).map(|n| Piece {
            spot: spot(n),
            holds: if n == 0 { whole } else { whole & seed },
            take: whole & seed,
        });
        let hash = |page: usize| u64::from(seed).wrapping_mul(0x9E37_79B9) << 20 | page as u64;
        Block { pieces: pieces.collect(), pages: (0..pages).map(hash).collect() }
    }

    #[test]
    fn a_leaf_comes_back_whole_and_as_a_difference() {
        let base: Vec<Block> = (0..60).map(|seed| block(seed, PAGES)).collect();
        let mut table = Vec::new();
        let bytes = encode(&base, &[], &mut table);
        assert_eq!(decode(&bytes, &[], &table), Some(base.clone()));
        assert_eq!(table, [7, 8, 9]);
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len], &[], &table), None, "cut to {len}");
        }
        let mut next = base.clone();
        next[3] = block(99, PAGES);
        next[5].pages[4] ^= 1;
        next.extend([block(1, 3), block(2, 0)]);
        let less = encode(&next, &base, &mut table);
        assert!(less.len() * 5 < bytes.len());
        assert_eq!(decode(&less, &base, &table), Some(next.clone()));
        let shorter = next[..10].to_vec();
        let less = encode(&shorter, &base, &mut table);
        assert_eq!(decode(&less, &base, &table), Some(shorter));
    }

    #[test]
    fn bits_of_a_block() {
        assert_eq!([bits(0), bits(1), bits(31), bits(32)], [0, 1, u32::MAX >> 1, u32::MAX]);
    }
}
