//! Timeline history files: which are there, which may stay, which numbers have to be kept unused.

use super::error::PgError;
use super::files::{self, Keep, Owner};
use everhold_core::ids::{Lsn, Tli};
use everhold_core::term::Branch;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Lower than any real fork, so that no standby ever adopts the number: PostgreSQL writes nothing
/// into the first segment, however large segments are, and 0/0 would mean no place at all.
const PLACEHOLDER_FORK: &str = "0/28";

pub fn file_name(tli: Tli) -> String {
    format!("{tli:08X}.history")
}

/// The numbers with a history file in `pg_wal`.
pub fn present(pg_wal: &Path) -> Result<BTreeSet<Tli>, PgError> {
    let entries = fs::read_dir(pg_wal).map_err(PgError::file("list", pg_wal))?;
    let number = |name: &str| Tli::from_str_radix(name.strip_suffix(".history")?, 16).ok();
    Ok(entries.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect())
}

/// The files that would lead a server astray that is on `line` and nowhere else: the numbers above
/// all that are its own. `control` is the timeline of its last checkpoint. Those below stay,
/// although they may belong to others: PostgreSQL looks for its newest timeline by counting upwards
/// and stops at the first gap. Of an unknown line nothing is foreign.
pub fn foreign(present: &BTreeSet<Tli>, line: &[Branch], control: Tli) -> Vec<Tli> {
    if line.is_empty() {
        return Vec::new();
    }
    let own = line.iter().map(|branch| branch.tli).filter(|tli| present.contains(tli));
    let top = own.max().unwrap_or(0).max(control);
    present.iter().copied().filter(|tli| *tli > top).collect()
}

/// Numbers between `control` and the newest own file of `line` that have no file: the gaps at
/// which PostgreSQL would stop counting.
pub fn gaps(present: &BTreeSet<Tli>, line: &[Branch], control: Tli) -> Vec<Tli> {
    let own = line.iter().map(|branch| branch.tli);
    let top = own.filter(|tli| present.contains(tli)).max().unwrap_or(control);
    (control + 1..top).filter(|tli| !present.contains(tli)).collect()
}

/// The timelines of which there is WAL, as far as it tells the line the directory is on.
pub fn written(pg_wal: &Path) -> Result<Vec<Branch>, PgError> {
    let mut tlis: Vec<Tli> = segments(pg_wal)?.into_iter().map(|segment| segment.tli).collect();
    tlis.sort_unstable();
    tlis.dedup();
    Ok(tlis.into_iter().map(|tli| Branch { tli, epoch: 0, parent: 0, fork: Lsn(0) }).collect())
}

/// A file of WAL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    pub tli: Tli,
    /// High and low half of its place, as in its name.
    pub place: (u32, u32),
    pub name: String,
}

impl Segment {
    fn parse(name: &str) -> Option<Segment> {
        let hex = |at: usize| u32::from_str_radix(name.get(at..at + 8)?, 16).ok();
        let (tli, high, low) = (hex(0)?, hex(8)?, hex(16)?);
        (name.len() == 24).then(|| Segment { tli, place: (high, low), name: name.to_string() })
    }

    /// The file name of the one that begins there.
    pub fn name(tli: Tli, begin: Lsn, segment_bytes: u64) -> String {
        let (per_id, number) = ((1 << 32) / segment_bytes, begin.0 / segment_bytes);
        format!("{tli:08X}{:08X}{:08X}", number / per_id, number % per_id)
    }

    /// Where its first byte is.
    pub fn begin(&self, segment_bytes: u64) -> Lsn {
        Lsn((u64::from(self.place.0) << 32) + u64::from(self.place.1) * segment_bytes)
    }
}

/// The complete and current segments, in order of timeline and place.
pub fn segments(pg_wal: &Path) -> Result<Vec<Segment>, PgError> {
    let entries = fs::read_dir(pg_wal).map_err(PgError::file("list", pg_wal))?;
    let mut found: Vec<Segment> =
        entries.flatten().filter_map(|entry| Segment::parse(entry.file_name().to_str()?)).collect();
    found.sort();
    Ok(found)
}

/// Takes a number out of use: PostgreSQL picks the first one without a file.
pub fn reserve(
    pg_wal: &Path,
    tli: Tli,
    parent: Tli,
    why: &str,
    owner: Owner,
) -> Result<(), PgError> {
    let content = format!("{parent}\t{PLACEHOLDER_FORK}\t{why}\n");
    files::write(&pg_wal.join(file_name(tli)), content.as_bytes(), owner, Keep::Synced)
}

/// Parent and fork of timeline `tli`, as its history file says in the last line.
pub fn origin(pg_wal: &Path, tli: Tli) -> Result<(Tli, Lsn), PgError> {
    let path = pg_wal.join(file_name(tli));
    let text = fs::read_to_string(&path).map_err(PgError::file("read", &path))?;
    parse_origin(&text).ok_or_else(|| PgError::Answer {
        doing: "read a timeline's history",
        said: format!("{} says `{}`", path.display(), text.trim_end()),
    })
}

fn parse_origin(text: &str) -> Option<(Tli, Lsn)> {
    let is_entry = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let mut words = text.lines().rfind(is_entry)?.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(tlis: &[Tli]) -> Vec<Branch> {
        let branch = |tli: &Tli| Branch { tli: *tli, epoch: 0, parent: 0, fork: Lsn(0) };
        tlis.iter().map(branch).collect()
    }

    #[test]
    fn only_numbers_above_the_own_ones_are_foreign() {
        let check = |present: &[Tli], own: &[Tli], control: Tli, removed: &[Tli]| {
            let present = present.iter().copied().collect();
            assert_eq!(foreign(&present, &line(own), control), removed, "{present:?} on {own:?}");
        };
        check(&[], &[1], 1, &[]);
        check(&[2], &[1, 2], 1, &[]);
        check(&[2], &[1], 1, &[2]);
        // A reserved number below the own one keeps PostgreSQL counting.
        check(&[2, 3], &[1, 3], 1, &[]);
        check(&[2, 3, 4], &[1, 3], 1, &[4]);
        // The own branch isn't known here yet, only a foreign one.
        check(&[2], &[1, 3], 1, &[2]);
        // A copy came without the file of its own branch.
        check(&[2], &[1, 3], 3, &[]);
        // Nothing is known of the line: nothing is touched.
        check(&[2, 3], &[], 1, &[]);
    }

    #[test]
    fn gaps_end_at_the_newest_own_file() {
        let check = |present: &[Tli], own: &[Tli], control: Tli, expected: &[Tli]| {
            let present = present.iter().copied().collect();
            assert_eq!(gaps(&present, &line(own), control), expected, "{present:?} on {own:?}");
        };
        check(&[3], &[1, 3], 1, &[2]);
        check(&[2, 3], &[1, 3], 1, &[]);
        check(&[3], &[1, 3], 3, &[]);
        check(&[2], &[1, 3], 1, &[]);
        check(&[], &[], 1, &[]);
    }

    #[test]
    fn segments_know_their_place() {
        let segment = Segment::parse("000000020000000100000003").unwrap();
        assert_eq!((segment.tli, segment.begin(16 << 20)), (2, Lsn(0x1_0300_0000)));
        assert_eq!(Segment::name(2, Lsn(0x1_0300_0000), 16 << 20), segment.name);
        for name in ["00000002.history", "000000020000000100000003.partial", "archive_status"] {
            assert_eq!(Segment::parse(name), None, "{name}");
        }
    }

    #[test]
    fn the_last_line_of_a_history_names_the_origin() {
        let text = "1\t0/1000028\treserved\n\n2\t0/50A8\tno recovery target specified\n";
        assert_eq!(parse_origin(text), Some((2, Lsn(0x50A8))));
        assert_eq!(parse_origin("# nothing\n"), None);
        assert_eq!(parse_origin("one two"), None);
    }
}
