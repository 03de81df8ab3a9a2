//! What pieces there are, and what they hold of a line of history. Pure.

use everhold_core::backup::keep;
use everhold_core::ids::{Epoch, Lsn};
use everhold_core::term::{Branch, BranchId};
use std::ops::Range;

/// Pieces up to here are gathered first, so that no byte is copied often.
const SMALL: u64 = 256 << 10;
/// The largest piece.
pub const PIECE_BYTES_MAX: u64 = 16 << 20;
/// So many pieces in a row are made into larger ones: about a minute of an idle server's.
const GATHER: usize = 64;

/// The bytes from `start` to before `end` of a branch, as the leader of `epoch` had them.
///
/// One leader per epoch, so no two write the same name; and what an old one writes beyond a fork is
/// on no line that leaves its branch there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    pub branch: BranchId,
    pub start: Lsn,
    pub end: Lsn,
    pub epoch: Epoch,
}

impl Piece {
    pub fn bytes(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// `TLI.EPOCH/START-END.EPOCH`, first the branch's epoch and last the writer's. Sorts by place.
    pub fn name(&self) -> String {
        let Piece { branch, start, end, epoch } = self;
        format!(
            "{:08X}.{:016X}/{:016X}-{:016X}.{epoch:016X}",
            branch.tli, branch.epoch, start.0, end.0
        )
    }

    pub fn parse(name: &str) -> Option<Piece> {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let (branch, place) = name.split_once('/')?;
        let (tli, branch_epoch) = branch.split_once('.')?;
        let (start, rest) = place.split_once('-')?;
        let (end, epoch) = rest.split_once('.')?;
        let branch =
            BranchId { tli: u32::from_str_radix(tli, 16).ok()?, epoch: hex(branch_epoch)? };
        let (start, end) = (Lsn(hex(start)?), Lsn(hex(end)?));
        let piece = Piece { branch, start, end, epoch: hex(epoch)? };
        (start < end && piece.name() == name).then_some(piece)
    }

    fn holds(&self, other: &Piece) -> bool {
        self.branch == other.branch && self.start <= other.start && other.end <= self.end
    }
}

/// The branches of `line`, each with the part of the log that is its own.
pub fn extents(line: &[Branch]) -> impl Iterator<Item = (&Branch, Range<Lsn>)> {
    line.iter().enumerate().map(|(at, branch)| {
        let end = line.get(at + 1).map_or(Lsn(u64::MAX), |next| next.fork);
        (branch, branch.fork..end)
    })
}

/// A piece of the line, and the part of it that is.
type Part<'p> = (&'p Piece, Range<Lsn>);

fn parts<'p>(pieces: &'p [Piece], line: &[Branch]) -> Vec<Part<'p>> {
    let mut parts: Vec<Part<'_>> = extents(line)
        .flat_map(|(branch, extent)| {
            let of_branch = pieces.iter().filter(|piece| piece.branch == branch.id());
            of_branch.map(move |it| (it, it.start.max(extent.start)..it.end.min(extent.end)))
        })
        .filter(|(_, part)| part.start < part.end)
        .collect();
    parts.sort_by_key(|(piece, part)| (part.start, part.end, **piece));
    parts
}

/// What the pieces hold of `line`: ranges in order, with a hole between any two.
pub fn coverage(pieces: &[Piece], line: &[Branch]) -> Vec<Range<Lsn>> {
    joined(parts(pieces, line).into_iter().map(|(_, part)| part))
}

/// Whether no branch has a hole, of pieces in order.
pub fn is_unbroken(pieces: &[Piece]) -> bool {
    let mut end: Option<(BranchId, Lsn)> = None;
    pieces.iter().all(|piece| match end {
        Some((branch, at)) if branch == piece.branch => {
            end = Some((branch, at.max(piece.end)));
            piece.start <= at
        }
        _ => {
            end = Some((piece.branch, piece.end));
            true
        }
    })
}

/// Adds a range to such ranges.
pub fn cover(covered: &mut Vec<Range<Lsn>>, range: Range<Lsn>) {
    covered.push(range);
    covered.sort_by_key(|range| range.start);
    *covered = joined(std::mem::take(covered));
}

fn joined(ranges: impl IntoIterator<Item = Range<Lsn>>) -> Vec<Range<Lsn>> {
    let mut joined: Vec<Range<Lsn>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// What at least so many of these hold, each of which has ranges in order.
pub fn at_least(all: &[&[Range<Lsn>]], copies: usize) -> Vec<Range<Lsn>> {
    let mut edges: Vec<(Lsn, bool)> = Vec::new();
    for range in all.iter().flat_map(|ranges| ranges.iter()) {
        edges.extend([(range.start, false), (range.end, true)]);
    }
    // Of two at one place the beginning comes first: ranges that touch are one.
    edges.sort_unstable();
    let (mut deep, mut start, mut found) = (0, Lsn(0), Vec::new());
    for (at, ends) in edges {
        match ends {
            false => {
                deep += 1;
                if deep == copies {
                    start = at;
                }
            }
            true => {
                if deep == copies && start < at {
                    found.push(start..at);
                }
                deep -= 1;
            }
        }
    }
    joined(found)
}

/// The first bytes at or after `from` and before `to` that are not covered.
pub fn missing(covered: &[Range<Lsn>], from: Lsn, to: Lsn) -> Option<Range<Lsn>> {
    let mut start = from;
    for range in covered {
        if range.start > start {
            break;
        }
        start = start.max(range.end);
    }
    let next = covered.iter().map(|range| range.start).find(|it| *it > start);
    let end = next.map_or(to, |next| next.min(to));
    (start < end).then_some(start..end)
}

/// Which pieces to read, and from where to where, for the bytes of `line` in `wanted`; or what is
/// missing first.
pub fn plan(
    pieces: &[Piece],
    line: &[Branch],
    wanted: Range<Lsn>,
) -> Result<Vec<(Piece, Range<Lsn>)>, Range<Lsn>> {
    let parts = parts(pieces, line);
    let mut plan = Vec::new();
    let mut at = wanted.start;
    let mut next = 0;
    let mut best: Option<&Part<'_>> = None;
    while at < wanted.end {
        while let Some(part) = parts.get(next).filter(|(_, part)| part.start <= at) {
            if best.is_none_or(|(_, best)| part.1.end > best.end) {
                best = Some(part);
            }
            next += 1;
        }
        match best.filter(|(_, part)| part.end > at) {
            Some((piece, part)) => {
                let end = part.end.min(wanted.end);
                plan.push((**piece, at..end));
                at = end;
            }
            None => {
                let end = parts.get(next).map_or(wanted.end, |(_, part)| part.start);
                return Err(at..end.min(wanted.end));
            }
        }
    }
    Ok(plan)
}

/// Pieces in a row that are to be one, oldest first.
pub fn gatherings(pieces: &[Piece]) -> Vec<Vec<Piece>> {
    let mut pieces = pieces.to_vec();
    pieces.sort_by_key(|piece| (piece.epoch, *piece));
    // Sizes, when a group is full, and what it may not exceed.
    let tiers =
        [(1..SMALL, SMALL, 2 * SMALL), (SMALL..PIECE_BYTES_MAX, PIECE_BYTES_MAX, PIECE_BYTES_MAX)];
    let mut found = Vec::new();
    for (sizes, full, most) in tiers {
        let follows = |a: &Piece, b: &Piece| {
            let in_a_row = (a.branch, a.epoch, a.end) == (b.branch, b.epoch, b.start);
            in_a_row && sizes.contains(&a.bytes()) && sizes.contains(&b.bytes())
        };
        for row in pieces.chunk_by(follows).filter(|row| row.len() >= GATHER) {
            let mut group: Vec<Piece> = Vec::new();
            for piece in row {
                let sum: u64 = group.iter().map(Piece::bytes).sum();
                if sum >= full || sum + piece.bytes() > most {
                    found.push(std::mem::take(&mut group));
                }
                group.push(*piece);
            }
            found.push(group);
        }
    }
    found.retain(|group| group.len() > 1);
    found
}

/// What a group becomes.
pub fn gathered(group: &[Piece]) -> Option<Piece> {
    let (first, last) = (group.first()?, group.last()?);
    Some(Piece { end: last.end, ..*first })
}

/// Pieces that a larger one of the same writer holds too: what a gathering left that was cut off.
pub fn doubled(pieces: &[Piece]) -> Vec<Piece> {
    let mut pieces = pieces.to_vec();
    pieces.sort_by_key(|piece| {
        (piece.branch, piece.epoch, piece.start, std::cmp::Reverse(piece.end))
    });
    let mut doubled = Vec::new();
    let mut widest: Option<Piece> = None;
    for piece in pieces {
        match widest.filter(|wide| wide.epoch == piece.epoch && wide.holds(&piece)) {
            Some(_) => doubled.push(piece),
            None => widest = Some(piece),
        }
    }
    doubled
}

/// Pieces that nothing kept needs. Whole segments are restored, so the first one is kept whole.
pub fn unneeded(pieces: &[Piece], needed: &keep::Log, segment_bytes: u64) -> Vec<Piece> {
    let begin = |at: Lsn| Lsn(at.0 - at.0 % segment_bytes.max(1));
    let needed = keep::Log {
        from: needed.from.map(begin),
        pieces: needed.pieces.iter().map(|(start, stop)| (begin(*start), *stop)).collect(),
    };
    pieces.iter().filter(|piece| !needed.needs(piece.start, piece.end)).copied().collect()
}

#[cfg(test)]
mod tests;
