//! Reads one file page by page, and makes sure of what looks bad.

use super::state::Bad;
use crate::clock;
use everhold_adapters::postgres::scrub::{self, CHUNK_PAGES, Pages};
use everhold_adapters::postgres::{PgConfig, PgError};
use everhold_core::page::{PAGE, first_page, is_sound};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// So much is read in a second at most: a tenth of a slow disk, a terabyte in 18 hours.
const BYTES_PER_S: u64 = 16 << 20;
/// And of one processor core so much is taken at most.
const CORE_SHARE: u64 = 5;
/// A page that is written meanwhile may be read half old and half new: it is read again after these.
const AGAIN: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];
/// Of one file no more are made sure of at a time.
const SUSPECTS_MAX: usize = 64;

/// Keeps to the rate, over all that is read.
pub struct Pace {
    since: Instant,
    cpu_us: u64,
    bytes: u64,
}

impl Pace {
    pub fn new() -> Pace {
        Pace { since: Instant::now(), cpu_us: clock::thread_us(), bytes: 0 }
    }

    /// So many more were read: waits as long as that is too much.
    fn spend(&mut self, bytes: u64) {
        self.bytes += bytes;
        let cpu = Duration::from_micros(clock::thread_us().saturating_sub(self.cpu_us));
        let least = Duration::from_micros(self.bytes.saturating_mul(1_000_000) / BYTES_PER_S);
        let least = least.max(cpu * (100 / CORE_SHARE) as u32);
        std::thread::sleep(least.saturating_sub(self.since.elapsed()));
        // What was not used is not saved up.
        if self.bytes >= BYTES_PER_S {
            *self = Pace::new();
        }
    }
}

/// What came of a piece of a file.
pub struct Piece {
    /// Pages read; less than asked for at its end.
    pub pages: u64,
    pub suspects: Vec<u64>,
}

/// A relation file.
pub struct Source<'a> {
    pub data_dir: &'a Path,
    pub path: &'a str,
    pub checksums: bool,
}

impl Source<'_> {
    /// `None`: it is gone. An error is the disk's: nothing of the file is read.
    pub fn open(&self) -> io::Result<Option<Pages>> {
        match Pages::open(&self.data_dir.join(self.path)) {
            Ok(pages) => Ok(Some(pages)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the next pages.
    pub fn piece(&self, pages: &mut Pages, from: u64, pace: &mut Pace) -> Piece {
        let piece = match pages.read(from, CHUNK_PAGES) {
            Ok(bytes) => {
                let found = bytes.chunks_exact(PAGE).zip(from..);
                let bad = found.filter(|(page, at)| !self.is_sound(page, *at)).map(|(_, at)| at);
                Piece { suspects: bad.collect(), pages: (bytes.len() / PAGE) as u64 }
            }
            // One of them can't be read: which, is found one by one.
            Err(_) => {
                let each = from..from + CHUNK_PAGES;
                let bad = each.filter(|at| self.fault(pages, *at).is_some()).collect();
                Piece { suspects: bad, pages: CHUNK_PAGES }
            }
        };
        pace.spend((piece.pages * PAGE as u64).max(PAGE as u64));
        piece
    }

    fn is_sound(&self, page: &[u8], at: u64) -> bool {
        let first = first_page(self.path).unwrap_or(0);
        !self.checksums || is_sound(page, first.wrapping_add(at as u32))
    }

    /// What is wrong with a page now. One that is gone is not bad.
    fn fault(&self, pages: &mut Pages, at: u64) -> Option<String> {
        match pages.read(at, 1) {
            Ok([]) => None,
            Ok(page) if self.is_sound(page, at) => None,
            Ok(_) => Some("its checksum is wrong".to_string()),
            Err(error) => Some(format!("it can't be read: {error}")),
        }
    }

    /// Which of the suspects are bad for certain: still bad when they are read again, and when the
    /// server has written everything that it held better in memory.
    pub async fn certain(&self, config: &PgConfig, suspects: &[u64]) -> Result<Vec<Bad>, PgError> {
        let mut left: Vec<u64> = suspects.iter().take(SUSPECTS_MAX).copied().collect();
        for wait in AGAIN {
            tokio::time::sleep(wait).await;
            left = self.still(&left).into_iter().map(|(page, _)| page).collect();
            if left.is_empty() {
                return Ok(Vec::new());
            }
        }
        scrub::written_out(config).await?;
        let bad = self.still(&left);
        let relation = match bad.is_empty() {
            true => None,
            false => scrub::relation_of(config, self.path).await,
        };
        let told = |(page, why)| Bad {
            path: self.path.to_string(),
            page,
            relation: relation.clone(),
            why,
        };
        Ok(bad.into_iter().map(told).collect())
    }

    /// Opened anew: the file may be another by now.
    pub fn still(&self, pages: &[u64]) -> Vec<(u64, String)> {
        let file = Pages::open(&self.data_dir.join(self.path));
        match file {
            Ok(mut file) => {
                let faults = pages.iter().filter_map(|at| Some((*at, self.fault(&mut file, *at)?)));
                faults.collect()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let why = format!("its file can't be opened: {error}");
                pages.iter().map(|at| (*at, why.clone())).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_wrong_or_can_not_be_read_is_suspected_and_what_is_gone_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let data_dir = dir.path();
        let file = data_dir.join("base/5/16384");
        fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        let mut bytes = vec![0; 70 * PAGE];
        // A page that was never written is all zeros.
        bytes[66 * PAGE + 100] = 1;
        fs::write(&file, &bytes).expect("written");
        let mut source = Source { data_dir, path: "base/5/16384", checksums: true };
        let mut pages = source.open().expect("opened").expect("there");
        let mut pace = Pace::new();
        let first = source.piece(&mut pages, 0, &mut pace);
        assert_eq!((first.pages, first.suspects.len()), (CHUNK_PAGES, 0));
        let second = source.piece(&mut pages, CHUNK_PAGES, &mut pace);
        assert_eq!((second.pages, second.suspects), (6, vec![66]));
        let found: Vec<u64> = source.still(&[65, 66, 500]).into_iter().map(|(at, _)| at).collect();
        assert_eq!(found, [66], "500 lies behind the end");
        source.checksums = false;
        assert!(source.still(&[66]).is_empty());
        // Reading a directory fails, as reading a broken disk does.
        fs::remove_file(&file).expect("removed");
        assert!(source.still(&[66]).is_empty(), "it is gone");
        fs::create_dir(&file).expect("made");
        let unread = source.still(&[0]);
        assert!(unread.len() == 1 && unread[0].1.starts_with("it can't be read"), "{unread:?}");
        // One that can't be opened is not as one that is gone: a link to itself is never opened.
        fs::remove_dir(&file).expect("removed");
        assert!(source.open().is_ok_and(|found| found.is_none()), "it is gone");
        std::os::unix::fs::symlink("16384", &file).expect("linked");
        assert!(source.open().is_err());
        let unread = source.still(&[0]);
        assert!(unread.len() == 1 && unread[0].1.contains("can't be opened"), "{unread:?}");
    }

    #[test]
    fn the_rate_is_kept() {
        let mut pace = Pace::new();
        let began = Instant::now();
        (0..8).for_each(|_| pace.spend(BYTES_PER_S / 64));
        assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
    }
}
