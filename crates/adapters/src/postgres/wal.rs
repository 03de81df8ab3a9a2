//! The WAL of a primary as it stands in its files: how far it is on disk, and its bytes up to there.

use super::error::PgError;
use super::history::{self, Segment};
use super::session::Session;
use everhold_core::ids::{Lsn, Tli};
use everhold_core::term::Branch;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const QUESTION: &str = "\
SELECT f.lsn, pg_walfile_name(f.lsn), \
 CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() END, s.system_identifier, \
 pg_size_bytes(current_setting('wal_segment_size')), current_setting('wal_block_size') \
 FROM pg_control_system() s, \
 (SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END AS lsn) f \
 WHERE f.lsn IS NOT NULL";

/// The head of a page, and of the first page of a segment.
const PAGE_HEAD: u64 = 24;
const SEGMENT_HEAD: u64 = 40;

/// A primary that is asked again and again how far it is, over one session.
pub struct WalSource {
    run_dir: PathBuf,
    port: u16,
    pg_wal: PathBuf,
    session: Option<Session>,
}

/// What of its WAL is on disk.
#[derive(Clone, Debug)]
pub struct Flushed {
    pub sysid: u64,
    pub tli: Tli,
    pub lsn: Lsn,
    /// Where the last record ends that was begun, on disk or not.
    pub written: Lsn,
    pub files: WalFiles,
}

/// Where it is.
#[derive(Clone, Debug)]
pub struct WalFiles {
    pg_wal: PathBuf,
    segment_bytes: u64,
    page_bytes: u64,
}

impl WalSource {
    pub fn new(run_dir: &Path, port: u16, data_dir: &Path) -> WalSource {
        let (run_dir, pg_wal) = (run_dir.to_path_buf(), data_dir.join("pg_wal"));
        WalSource { run_dir, port, pg_wal, session: None }
    }

    /// `None`: it is no primary.
    pub async fn flushed(&mut self) -> Result<Option<Flushed>, PgError> {
        let session = match self.session.take().filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => Session::open_at(&self.run_dir, self.port, "archive").await?,
        };
        let answers = session.ask_soon("ask for the WAL's end", QUESTION).await?;
        self.session = Some(session);
        let Some(row) = answers.first().and_then(|rows| rows.first()) else { return Ok(None) };
        let read = || {
            let [lsn, file, written, sysid, segment, page] = row.as_slice() else { return None };
            let files = WalFiles {
                pg_wal: self.pg_wal.clone(),
                segment_bytes: segment.as_ref()?.parse().ok()?,
                page_bytes: page.as_ref()?.parse().ok()?,
            };
            Some(Flushed {
                sysid: sysid.as_ref()?.parse().ok()?,
                tli: Tli::from_str_radix(file.as_ref()?.get(..8)?, 16).ok()?,
                lsn: lsn.as_ref()?.parse().ok()?,
                written: files.record_end(written.as_ref()?.parse().ok()?),
                files,
            })
        };
        let said = || PgError::Answer { doing: "ask for the WAL's end", said: format!("{row:?}") };
        read().ok_or_else(said).map(Some)
    }
}

impl WalFiles {
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Where the last record ended, by where the next one will begin: a place just behind the head of
    /// a page says that the last one ended where the page begins. One that goes on behind the head
    /// ends further on.
    fn record_end(&self, at: Lsn) -> Lsn {
        let page = at.0 - at.0 % self.page_bytes.max(1);
        let head = if page == self.begin(at).0 { SEGMENT_HEAD } else { PAGE_HEAD };
        if at.0 - page == head { Lsn(page) } else { at }
    }

    /// From where on there is all of `line` up to `end`, in whole segments.
    pub fn oldest(&self, line: &[Branch], end: Lsn) -> Result<Lsn, PgError> {
        let present = history::segments(&self.pg_wal)?;
        let begins: BTreeSet<Lsn> = present
            .iter()
            .map(|segment| (segment.tli, segment.begin(self.segment_bytes)))
            .filter(|(tli, begin)| self.holders(line, *begin).contains(tli))
            .map(|(_, begin)| begin)
            .collect();
        let mut oldest = self.begin(end);
        while let Some(before) = oldest.0.checked_sub(self.segment_bytes).map(Lsn)
            && begins.contains(&before)
        {
            oldest = before;
        }
        Ok(oldest)
    }

    fn begin(&self, at: Lsn) -> Lsn {
        Lsn(at.0 - at.0 % self.segment_bytes)
    }

    /// Timelines of `line` whose file of the segment that begins there has something of the line.
    fn holders(&self, line: &[Branch], begin: Lsn) -> Vec<Tli> {
        let before = |lsn: Lsn| lsn.0 < begin.0 + self.segment_bytes;
        let of = line.iter().enumerate().filter(|(at, branch)| {
            let end = line.get(at + 1).map_or(Lsn(u64::MAX), |next| next.fork);
            (branch.parent == 0 || before(branch.fork)) && end > begin
        });
        of.map(|(_, branch)| branch.tli).collect()
    }

    /// The bytes in `range`, which is all of one branch of `line` and on disk. A file that was put to
    /// another use meanwhile, or is of another history, is an error.
    pub fn read(&self, line: &[Branch], range: &Range<Lsn>) -> Result<Vec<u8>, PgError> {
        let mut bytes = Vec::with_capacity((range.end.0 - range.start.0) as usize);
        let mut at = range.start;
        while at < range.end {
            let begin = self.begin(at);
            let end = range.end.min(Lsn(begin.0 + self.segment_bytes));
            self.read_segment(line, begin, at..end, &mut bytes)?;
            at = end;
        }
        Ok(bytes)
    }

    fn read_segment(
        &self,
        line: &[Branch],
        begin: Lsn,
        part: Range<Lsn>,
        into: &mut Vec<u8>,
    ) -> Result<(), PgError> {
        // A file of a later timeline has what came before its fork too. Not the other way round.
        let owner = line.iter().rev().find(|it| it.fork <= part.start || it.parent == 0);
        let owner = owner.map_or(0, |branch| branch.tli);
        let holders = self.holders(line, begin).into_iter().skip_while(|tli| *tli != owner);
        let paths =
            holders.map(|tli| self.pg_wal.join(Segment::name(tli, begin, self.segment_bytes)));
        let mut absent = None;
        for path in paths {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    absent = Some((path, error));
                    continue;
                }
                Err(error) => return Err(PgError::file("read", &path)(error)),
            };
            let from = into.len();
            into.resize(from + (part.end.0 - part.start.0) as usize, 0);
            let mut attempt = || {
                file.read_exact_at(&mut into[from..], part.start.0 - begin.0)?;
                // PostgreSQL gives a segment that is no longer needed the name of one to come.
                Ok(fs::metadata(&path)?.ino() == file.metadata()?.ino())
            };
            let same = attempt().map_err(PgError::file("read", &path))?;
            if !same || !self.pages_fit(line, part.start, &into[from..]) {
                let said = format!("{} is not what its name says", path.display());
                return Err(PgError::Answer { doing: "read WAL", said });
            }
            return Ok(());
        }
        let (path, error) = absent.unwrap_or_else(|| {
            (self.pg_wal.clone(), std::io::Error::from(std::io::ErrorKind::NotFound))
        });
        Err(PgError::file("read", &path)(error))
    }

    /// Each page says where it is and on which timeline it was written. Behind a switch to the next
    /// segment there is nothing but zeros.
    fn pages_fit(&self, line: &[Branch], start: Lsn, bytes: &[u8]) -> bool {
        let first = start.0.next_multiple_of(self.page_bytes);
        let from = bytes.get((first - start.0) as usize..).unwrap_or_default();
        let pages = from.chunks(self.page_bytes as usize).zip(0..);
        pages.into_iter().all(|(page, number)| {
            // A head that is cut off is whole in the next piece.
            let Some(head) = page.first_chunk::<16>() else { return true };
            let word = |at: usize| {
                u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            let place = u64::from(word(8)) | u64::from(word(12)) << 32;
            let fits = place == first + number * self.page_bytes
                && line.iter().any(|branch| branch.tli == word(4));
            fits || page.iter().all(|byte| *byte == 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 64 << 10;
    const PAGE: u64 = 8 << 10;

    fn files(dir: &Path) -> WalFiles {
        WalFiles { pg_wal: dir.to_path_buf(), segment_bytes: SEGMENT, page_bytes: PAGE }
    }

    /// Timeline 1, which 3 left in the middle of the third segment.
    fn line() -> Vec<Branch> {
        let fork = Lsn(SEGMENT * 2 + PAGE * 3 + 100);
        vec![
            Branch { tli: 1, epoch: 0, parent: 0, fork: Lsn(0) },
            Branch { tli: 3, epoch: 2, parent: 1, fork },
        ]
    }

    /// A segment as PostgreSQL writes it: pages up to `fork` are of timeline 1.
    fn write(dir: &Path, tli: Tli, number: u64, fork: u64) {
        let mut bytes = vec![tli as u8; SEGMENT as usize];
        for page in (0..SEGMENT).step_by(PAGE as usize) {
            let place = number * SEGMENT + page;
            let of = if place < fork { 1 } else { tli };
            let end = (fork.saturating_sub(place)).min(PAGE) as usize;
            bytes[page as usize..][..end].fill(1);
            bytes[page as usize + 4..][..4].copy_from_slice(&of.to_le_bytes());
            bytes[page as usize + 8..][..8].copy_from_slice(&place.to_le_bytes());
        }
        let name = Segment::name(tli, Lsn(number * SEGMENT), SEGMENT);
        fs::write(dir.join(name), bytes).expect("written");
    }

    #[test]
    fn a_mark_stands_where_a_record_ended() {
        let files = files(Path::new("/none"));
        #[rustfmt::skip]
        let cases = [
            // page     behind its begin  expected
            (PAGE * 3,    0,              0),
            // The next record begins here, and the last one ended before the page.
            (PAGE * 3,    0x18,           0),
            // The last one went on behind the head, by 8 bytes and by 16.
            (PAGE * 3,    0x20,           0x20),
            (PAGE * 3,    0x28,           0x28),
            (PAGE * 3,    0x30,           0x30),
            // The head of a segment is longer.
            (SEGMENT * 2, 0x28,           0),
            (SEGMENT * 2, 0x30,           0x30),
        ];
        for (page, behind, expected) in cases {
            let end = files.record_end(Lsn(page + behind));
            assert_eq!(end, Lsn(page + expected), "{behind:#x} behind {page:#x}");
        }
    }

    #[test]
    fn a_line_is_read_from_the_files_that_have_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (files, line) = (files(dir.path()), line());
        let fork = line[1].fork.0;
        (1..=2).for_each(|number| write(dir.path(), 1, number, u64::MAX));
        (2..=4).for_each(|number| write(dir.path(), 3, number, fork));
        // Of another history, and one to come on a timeline that was left.
        write(dir.path(), 2, 0, 0);
        write(dir.path(), 1, 3, u64::MAX);
        let end = Lsn(SEGMENT * 4 + 1_000);
        assert_eq!(files.oldest(&line, end).expect("listed"), Lsn(SEGMENT));

        let read = |from: u64, to: u64| files.read(&line, &(Lsn(from)..Lsn(to)));
        let old = read(SEGMENT + 10, fork).expect("read");
        assert_eq!(old.len() as u64, fork - SEGMENT - 10);
        assert_eq!(*old.last().expect("a byte"), 1);
        let new = read(fork, end.0).expect("read");
        assert!(new.len() as u64 == end.0 - fork && new[0] == 3);
        // The old timeline's file is gone: the new one's has its bytes.
        let third = Segment::name(1, Lsn(SEGMENT * 2), SEGMENT);
        fs::remove_file(dir.path().join(third)).expect("removed");
        assert_eq!(read(SEGMENT + 10, fork).expect("read"), old);
        // The other way round there is nothing.
        let third = Segment::name(3, Lsn(SEGMENT * 2), SEGMENT);
        write(dir.path(), 1, 2, u64::MAX);
        fs::remove_file(dir.path().join(third)).expect("removed");
        assert!(read(fork, end.0).is_err());
        assert!(read(0, 10).is_err(), "not there");
    }

    #[test]
    fn a_file_that_is_not_what_its_name_says_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let (files, line) = (files(dir.path()), line());
        write(dir.path(), 1, 1, u64::MAX);
        let from = dir.path().join(Segment::name(1, Lsn(SEGMENT), SEGMENT));
        let to = dir.path().join(Segment::name(1, Lsn(0), SEGMENT));
        fs::rename(from, to).expect("recycled");
        assert!(files.read(&line, &(Lsn(0)..Lsn(SEGMENT))).is_err(), "another place");
        // Behind a switch: zeros to the segment's end.
        write(dir.path(), 1, 1, u64::MAX);
        let path = dir.path().join(Segment::name(1, Lsn(SEGMENT), SEGMENT));
        let mut bytes = fs::read(&path).expect("read");
        bytes[(PAGE + 100) as usize..].fill(0);
        fs::write(&path, &bytes).expect("written");
        assert!(files.read(&line, &(Lsn(SEGMENT + 10)..Lsn(SEGMENT * 2))).is_ok());
        bytes[(PAGE * 2 + 50) as usize] = 1;
        fs::write(&path, &bytes).expect("written");
        assert!(files.read(&line, &(Lsn(SEGMENT + 10)..Lsn(SEGMENT * 2))).is_err(), "not zeros");
        fs::remove_file(&path).expect("removed");
        write(dir.path(), 7, 1, 0);
        let from = dir.path().join(Segment::name(7, Lsn(SEGMENT), SEGMENT));
        fs::rename(from, dir.path().join(Segment::name(1, Lsn(SEGMENT), SEGMENT)))
            .expect("renamed");
        assert!(files.read(&line, &(Lsn(SEGMENT)..Lsn(SEGMENT + 9_000))).is_err(), "a timeline");
    }
}
