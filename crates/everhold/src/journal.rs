//! The journal file: append-only lines of JSON, each with the hash of the one before it.
//!
//! A thread of its own writes, so that a stalled disk never holds up a heartbeat. An entry is handed
//! over before the action it announces begins. The chain begins with the cluster's name.

mod care;

pub use care::{mirror_head, watch};

use crate::clock;
use everhold_core::journal::Event;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A file is closed at this size.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// So many closed files are kept: months of quiet, days of torture.
const FILES_MAX: usize = 16;
/// Entries waiting for a stalled disk. Beyond it entries are lost and the loss is noted.
const WAITING_MAX: usize = 4_096;
/// Between two tries to write a line.
const REWRITE: Duration = Duration::from_millis(500);

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// NODE-SEQ
    pub id: String,
    pub at: String,
    pub service: String,
    pub event: Event,
    /// Hash of the entry before; of the cluster's name for the first one.
    pub prev: String,
    /// Of all the above.
    pub hash: String,
}

impl Entry {
    fn seal(mut self) -> Entry {
        self.hash.clear();
        let text = serde_json::to_string(&self).unwrap_or_default();
        self.hash = hex(&text);
        self
    }
}

/// What every version reads of a line: enough to follow the chain.
#[derive(Deserialize)]
struct Chained {
    id: String,
    at: String,
    service: String,
    prev: String,
    hash: String,
}

impl Chained {
    /// The line is as it was written. Judged by its text: another version's facts, read and written
    /// again by this one, would look different.
    fn seals(&self, line: &str) -> bool {
        let end = format!("\"hash\":\"{}\"}}", self.hash);
        line.strip_suffix(&end)
            .is_some_and(|head| hex(&format!("{head}\"hash\":\"\"}}")) == self.hash)
    }

    /// An entry whose facts have another shape than this version's.
    fn foreign(self) -> Entry {
        let text = "written by another version of Everhold, which can show it".to_string();
        let Chained { id, at, service, prev, hash } = self;
        Entry { id, at, service, event: Event::Noted { text }, prev, hash }
    }
}

fn hex(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where entries are handed over.
#[derive(Clone)]
pub struct Journal {
    node: String,
    lines: SyncSender<Vec<u8>>,
    head: Arc<Mutex<Head>>,
}

struct Head {
    seq: u64,
    hash: String,
    lost: u64,
}

impl Journal {
    /// Opens the journal of a node and goes on with its chain.
    pub fn open(dir: &Path, node: &str, cluster: &str) -> std::io::Result<Journal> {
        std::fs::create_dir_all(dir)?;
        let files = files(dir);
        // The newest file may have been begun by a crash, or on a full disk, and hold nothing.
        let last = files.iter().rev().find_map(|path| last_entry(path));
        let newest = files.last();
        let torn = newest.is_some_and(|path| is_torn(path));
        let (seq, hash) = match last {
            Some(entry) => (sequence(&entry.id), entry.hash),
            None => (0, hex(cluster)),
        };
        // A line that a crash cut off stays as it is; the chain goes on in a new file.
        let number = newest.map_or(1, |path| file_number(path)) + u64::from(torn);
        let (lines, waiting) = sync_channel(WAITING_MAX);
        let dir = dir.to_path_buf();
        std::thread::Builder::new()
            .name("journal".to_string())
            .spawn(move || write_lines(&dir, number, &waiting))?;
        let head = Arc::new(Mutex::new(Head { seq, hash, lost: 0 }));
        Ok(Journal { node: node.to_string(), lines, head })
    }

    /// Hands an entry over and returns its id.
    pub fn append(&self, service: &str, event: Event) -> String {
        let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry {
            id: format!("{}-{}", self.node, head.seq + 1),
            at: clock::wall(),
            service: service.to_string(),
            event,
            prev: head.hash.clone(),
            hash: String::new(),
        };
        let entry = entry.seal();
        let mut line = serde_json::to_vec(&entry).unwrap_or_default();
        line.push(b'\n');
        if self.lines.try_send(line).is_err() {
            head.lost += 1;
            if head.lost == 1 {
                tracing::error!("the journal's disk is stalled or full: entries are lost");
            }
            return entry.id;
        }
        head.lost = 0;
        head.seq += 1;
        head.hash.clone_from(&entry.hash);
        entry.id
    }

    /// Id and hash of the newest entry.
    pub fn head(&self) -> String {
        let head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{}-{} {}", self.node, head.seq, head.hash)
    }
}

/// The newest `limit` entries, oldest first.
pub fn newest(dir: &Path, limit: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    for path in files(dir).iter().rev() {
        let mut older = entries_of(path);
        older.append(&mut entries);
        entries = older;
        if entries.len() >= limit {
            break;
        }
    }
    let skip = entries.len().saturating_sub(limit);
    entries.split_off(skip)
}

/// The entry of that id, and whether it is as it was written.
pub fn find(dir: &Path, id: &str) -> Option<(Entry, bool)> {
    let wanted = format!("{{\"id\":\"{id}\",");
    let mut lines = files(dir).into_iter().rev().flat_map(|path| lines_of(&path));
    let line = lines.find(|line| line.starts_with(&wanted))?;
    let chained: Chained = serde_json::from_str(&line).ok()?;
    let intact = chained.seals(&line);
    Some((entry_of(&line)?, intact))
}

/// How many entries there are, or the first that is not as it was written, or doesn't follow the one
/// before it. A line that a crash cut off is at the end of its file.
pub fn verify(dir: &Path) -> Result<usize, String> {
    let mut prev: Option<Chained> = None;
    let mut count = 0;
    for path in files(dir) {
        let mut lines = lines_of(&path).into_iter().peekable();
        while let Some(line) = lines.next() {
            let Ok(chained) = serde_json::from_str::<Chained>(&line) else {
                if lines.peek().is_none() {
                    continue;
                }
                let after = prev.map_or("the beginning".to_string(), |prev| prev.id);
                return Err(format!("the line after {after} can't be read"));
            };
            if !chained.seals(&line) {
                return Err(format!("{} was changed after it was written", chained.id));
            }
            if prev.is_some_and(|prev| prev.hash != chained.prev) {
                return Err(format!("an entry before {} is missing", chained.id));
            }
            prev = Some(chained);
            count += 1;
        }
    }
    Ok(count)
}

fn write_lines(dir: &Path, mut number: u64, waiting: &Receiver<Vec<u8>>) {
    let mut file: Option<(File, u64)> = None;
    while let Ok(line) = waiting.recv() {
        let mut said = false;
        while let Err(error) = write_line(dir, &mut number, &mut file, &line) {
            if !said {
                tracing::error!(%error, "cannot write the journal; it goes on when that is mended");
                said = true;
            }
            std::thread::sleep(REWRITE);
        }
    }
}

/// Writes a line whole or not at all: the chain must not have a gap, and no line half of another.
fn write_line(
    dir: &Path,
    number: &mut u64,
    file: &mut Option<(File, u64)>,
    line: &[u8],
) -> std::io::Result<()> {
    let full = file.as_ref().is_some_and(|(_, size)| *size > FILE_BYTES_MAX);
    if full {
        *file = Some(open(dir, *number + 1)?);
        *number += 1;
        prune(dir);
    }
    let (into, size) = match file {
        Some(file) => file,
        None => file.insert(open(dir, *number)?),
    };
    let Err(error) = into.write_all(line) else {
        *size += line.len() as u64;
        return Ok(());
    };
    if into.set_len(*size).is_err() {
        *number += 1;
        *file = None;
    }
    Err(error)
}

fn open(dir: &Path, number: u64) -> std::io::Result<(File, u64)> {
    let path = dir.join(format!("journal-{number:08}.jsonl"));
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn prune(dir: &Path) {
    let all = files(dir);
    for old in all.iter().take(all.len().saturating_sub(FILES_MAX)) {
        if let Err(error) = std::fs::remove_file(old) {
            tracing::warn!(%error, "cannot remove an old journal file");
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "jsonl"))
        .collect();
    paths.sort();
    paths
}

fn file_number(path: &Path) -> u64 {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    name.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn sequence(id: &str) -> u64 {
    id.rsplit('-').next().and_then(|seq| seq.parse().ok()).unwrap_or(0)
}

/// Every line, also those that aren't text: what follows garbage is told too.
fn lines_of(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let lines = bytes.strip_suffix(b"\n").unwrap_or(&bytes).split(|byte| *byte == b'\n');
    lines.filter(|line| !line.is_empty()).map(|l| String::from_utf8_lossy(l).into_owned()).collect()
}

/// An entry from its text, whichever version wrote it.
pub fn entry_of(line: &str) -> Option<Entry> {
    let foreign = |_| serde_json::from_str::<Chained>(line).map(Chained::foreign);
    serde_json::from_str(line).or_else(foreign).ok()
}

fn entries_of(path: &Path) -> Vec<Entry> {
    lines_of(path).iter().filter_map(|line| entry_of(line)).collect()
}

fn last_entry(path: &Path) -> Option<Entry> {
    entries_of(path).pop()
}

fn is_torn(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| bytes.last().is_some_and(|last| *last != b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path, expected: usize) -> Vec<Entry> {
        for _ in 0..200 {
            let entries = newest(dir, 100);
            if entries.len() == expected {
                return entries;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        newest(dir, 100)
    }

    fn noted(text: &str) -> Event {
        Event::Noted { text: text.to_string() }
    }

    #[test]
    fn the_chain_goes_on_after_a_restart_and_a_torn_line_and_shows_tampering() {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = Journal::open(dir.path(), "a", "shop").expect("opened");
        assert_eq!(journal.append("main", noted("one")), "a-1");
        assert_eq!(journal.append("main", noted("two")), "a-2");
        written(dir.path(), 2);
        drop(journal);
        let first = files(dir.path()).remove(0);
        let mut file = OpenOptions::new().append(true).open(&first).expect("there");
        file.write_all(b"{\"id\":\"a-3\",\"at").expect("torn");
        let journal = Journal::open(dir.path(), "a", "shop").expect("opened again");
        assert_eq!(journal.append("main", noted("three")), "a-3");
        written(dir.path(), 3);
        assert_eq!(verify(dir.path()), Ok(3));
        let written = std::fs::read_to_string(&first).expect("readable");
        let tampered = |text: String, fault: &str| {
            std::fs::write(&first, text).expect("tampered");
            assert_eq!(verify(dir.path()), Err(fault.to_string()));
        };
        tampered(written.replace("two", "too"), "a-2 was changed after it was written");
        assert_eq!(
            find(dir.path(), "a-2").map(|(entry, intact)| (entry.id, intact)),
            Some(("a-2".into(), false))
        );
        assert_eq!(find(dir.path(), "a-1").map(|(_, intact)| intact), Some(true));
        let (one, rest) = written.split_once('\n').expect("lines");
        tampered(format!("{one}\n"), "an entry before a-3 is missing");
        tampered(format!("x\n{one}\n{rest}"), "the line after the beginning can't be read");
    }

    #[test]
    fn garbage_hides_nothing_and_an_empty_file_begins_no_other_chain() {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = Journal::open(dir.path(), "a", "shop").expect("opened");
        journal.append("main", noted("one"));
        journal.append("main", noted("two"));
        written(dir.path(), 2);
        drop(journal);
        let first = files(dir.path()).remove(0);
        let mut text = std::fs::read(&first).expect("there");
        let end = text.iter().position(|byte| *byte == b'\n').expect("a line");
        text.splice(end + 1..end + 1, *b"\xff\xfe not a line\n");
        std::fs::write(&first, text).expect("garbage");
        std::fs::write(dir.path().join("journal-00000002.jsonl"), "").expect("empty");
        let journal = Journal::open(dir.path(), "a", "shop").expect("opened again");
        assert_eq!(journal.append("main", noted("three")), "a-3");
        let ids: Vec<String> = written(dir.path(), 3).into_iter().map(|entry| entry.id).collect();
        assert_eq!(ids, ["a-1", "a-2", "a-3"]);
        assert_eq!(verify(dir.path()), Err("the line after a-1 can't be read".to_string()));
    }

    #[test]
    fn what_another_version_wrote_keeps_its_place_in_the_chain() {
        let dir = tempfile::tempdir().expect("a directory");
        let begin = hex("shop");
        let head = format!(
            "{{\"id\":\"a-1\",\"at\":\"2026-01-01T00:00:00Z\",\"service\":\"main\",\
             \"event\":{{\"unheard\":0.1000}},\"prev\":\"{begin}\","
        );
        let hash = hex(&format!("{head}\"hash\":\"\"}}"));
        let line = format!("{head}\"hash\":\"{hash}\"}}\n");
        std::fs::write(dir.path().join("journal-00000001.jsonl"), line).expect("written");
        let journal = Journal::open(dir.path(), "a", "shop").expect("opened");
        assert_eq!(journal.append("main", noted("next")), "a-2");
        assert_eq!(written(dir.path(), 2)[0].id, "a-1");
        assert_eq!(verify(dir.path()), Ok(2));
        assert!(find(dir.path(), "a-1").is_some_and(|(_, intact)| intact));
    }
}
