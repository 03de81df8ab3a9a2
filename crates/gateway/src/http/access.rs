//! The access log: a line of JSON for each request, in files that are turned over. A disk that is slow
//! costs lines, which are counted, and no request its time.

use super::ledger::{End, Record};
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// So much of one thread goes to the writer at once.
const BATCH: usize = 32 << 10;
/// Batches on their way to the disk.
const BATCHES_MAX: usize = 64;
/// Then the file is turned over.
const FILE_BYTES: u64 = 100 << 20;
/// Files beside the one that is written.
const FILES: usize = 9;

/// Whole lines of one thread, on their way to the disk.
pub struct Batch {
    text: Vec<u8>,
    /// Counts those that don't get there.
    lost: Arc<AtomicU64>,
}

impl Batch {
    /// So much of it was written.
    fn lose_after(&self, written: usize) {
        let left = &self.text[written..];
        self.lost.fetch_add(memchr::memchr_iter(b'\n', left).count() as u64, Relaxed);
    }
}

/// What one thread has to say.
pub struct Lines {
    text: Vec<u8>,
    to: SyncSender<Batch>,
    lost: Arc<AtomicU64>,
}

/// Begins a log at that path, with a thread that writes it.
pub fn open(path: &Path) -> std::io::Result<SyncSender<Batch>> {
    let file = Turned::open(path)?;
    let (to, batches) = sync_channel(BATCHES_MAX);
    std::thread::Builder::new()
        .name("gateway-log".to_owned())
        .spawn(move || write(file, &batches))?;
    Ok(to)
}

impl Lines {
    /// `lost` counts what the disk is too slow for, or does not take.
    pub fn new(to: SyncSender<Batch>, lost: Arc<AtomicU64>) -> Lines {
        Lines { text: Vec::with_capacity(BATCH + 1_024), to, lost }
    }

    pub fn add(&mut self, record: &Record) {
        line(&mut self.text, record);
        if self.text.len() >= BATCH {
            self.flush();
        }
    }

    pub fn flush(&mut self) {
        if self.text.is_empty() {
            return;
        }
        let text = std::mem::replace(&mut self.text, Vec::with_capacity(BATCH + 1_024));
        let batch = Batch { text, lost: self.lost.clone() };
        if let Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) =
            self.to.try_send(batch)
        {
            batch.lose_after(0);
        }
    }
}

/// In the names of OpenTelemetry where it has one.
fn line(out: &mut Vec<u8>, record: &Record) {
    let at = i64::try_from(record.at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let answered = record.tries.iter().find(|it| it.end == End::Answered);
    let backend = answered.or(record.tries.iter().last()).map_or("", |it| &it.backend);
    // Writing to memory can't fail.
    let _ = write!(out, "{{\"@timestamp\":\"{:.3}\",\"request_id\":", at.unwrap_or_default());
    quoted(out, record.id.as_bytes());
    let _ = write!(out, ",\"client.address\":\"{}\",\"listener\":", record.peer);
    quoted(out, record.listener.as_bytes());
    out.extend_from_slice(b",\"http.request.method\":");
    quoted(out, record.method.name().as_bytes());
    out.extend_from_slice(b",\"server.address\":");
    quoted(out, record.host.as_bytes());
    out.extend_from_slice(b",\"url.path\":");
    quoted(out, record.path.as_bytes());
    out.extend_from_slice(b",\"http.route\":");
    quoted(out, record.route.as_bytes());
    out.extend_from_slice(b",\"service\":");
    quoted(out, record.service.as_bytes());
    out.extend_from_slice(b",\"backend\":");
    quoted(out, backend.as_bytes());
    let _ = write!(
        out,
        ",\"tries\":{},\"http.response.status_code\":{},\"request_bytes\":{},\
         \"response_bytes\":{},\"duration_us\":{},\"outcome\":\"{}\"",
        record.tries.count(),
        record.status,
        record.bytes_in,
        record.bytes_out,
        record.took_us,
        record.outcome
    );
    if record.waited_us > 0 {
        let _ = write!(out, ",\"waited_us\":{}", record.waited_us);
    }
    if !record.cache.is_empty() {
        let _ = write!(out, ",\"cache\":\"{}\"", record.cache);
    }
    out.push(b'}');
    out.push(b'\n');
}

fn quoted(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b' '..=b'~' => out.push(*byte),
            _ => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
    }
    out.push(b'"');
}

fn write(mut file: Turned, batches: &Receiver<Batch>) {
    let mut failing = false;
    while let Ok(batch) = batches.recv() {
        match file.write(&batch.text) {
            Ok(()) => failing = false,
            Err((written, error)) => {
                batch.lose_after(written);
                if !failing {
                    tracing::error!(path = %file.path.display(), %error, "cannot write the access log");
                }
                failing = true;
            }
        }
    }
}

/// A process that drains writes to the same one as who succeeded it.
struct Turned {
    path: PathBuf,
    file: File,
    /// Its last line was not written to its end.
    torn: bool,
}

impl Turned {
    fn open(path: &Path) -> std::io::Result<Turned> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Turned { path: path.to_path_buf(), file, torn: false })
    }

    /// Writes whole lines; an error comes with how many bytes of them were written.
    fn write(&mut self, lines: &[u8]) -> Result<(), (usize, std::io::Error)> {
        let mut written = 0;
        self.turn()
            .and_then(|()| self.append(lines, &mut written))
            .map_err(|error| (written, error))
    }

    fn append(&mut self, lines: &[u8], written: &mut usize) -> std::io::Result<()> {
        if self.torn {
            // The next line is none of it.
            self.file.write_all(b"\n")?;
            self.torn = false;
        }
        while *written < lines.len() {
            match self.file.write(&lines[*written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => *written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.torn = *written > 0 && lines[*written - 1] != b'\n';
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Goes on with a new file where this one is full, or is there no more: somebody else turned it over,
    /// or took it away.
    fn turn(&mut self) -> std::io::Result<()> {
        if !self.is_there()? {
            *self = Turned::open(&self.path)?;
        } else if self.file.metadata()?.len() >= FILE_BYTES {
            self.turn_over()?;
        }
        Ok(())
    }

    fn turn_over(&mut self) -> std::io::Result<()> {
        let within = self.path.parent().filter(|it| !it.as_os_str().is_empty());
        let directory = File::open(within.unwrap_or(Path::new(".")))?;
        // One process at a time, until this handle is closed. What another one is doing is not waited for:
        // it may have been stopped. Where there are no such locks a log without end would be worse.
        if flock(&directory, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Ok(());
        }
        // It may have been done just before.
        if self.is_there()? {
            self.rename()?;
        }
        *self = Turned::open(&self.path)?;
        Ok(())
    }

    fn is_there(&self) -> std::io::Result<bool> {
        let (own, there) = (self.file.metadata()?, std::fs::metadata(&self.path));
        Ok(there.is_ok_and(|it| (it.dev(), it.ino()) == (own.dev(), own.ino())))
    }

    fn rename(&self) -> std::io::Result<()> {
        let numbered = |number: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..FILES).rev() {
            // There may be fewer yet.
            let _ = std::fs::rename(numbered(number), numbered(number + 1));
        }
        match std::fs::rename(&self.path, numbered(1)) {
            // Another program took it away.
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            Err(_) | Ok(()) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_turned_over_and_the_oldest_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.log");
        for turn in 0..FILES + 3 {
            let mut file = Turned::open(&path).expect("opened");
            let text = format!("{turn}\n");
            // What an earlier gateway wrote is gone on with.
            file.write(text.as_bytes()).expect("written");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
            file.file.set_len(FILE_BYTES).expect("a hole");
        }
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .expect("a directory")
            .map(|it| it.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        let wanted = (1..=FILES).map(|number| format!("access.log.{number}"));
        assert_eq!(
            names,
            std::iter::once("access.log".to_string()).chain(wanted).collect::<Vec<_>>()
        );
        let oldest = std::fs::read(dir.path().join(format!("access.log.{FILES}"))).expect("read");
        assert_eq!(oldest[..2], *b"2\n");
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn two_that_write_to_one_log_turn_it_over_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.log");
        let mut one = Turned::open(&path).expect("opened");
        let mut other = Turned::open(&path).expect("opened");
        one.write(b"one\n").expect("written");
        other.write(b"other\n").expect("written");
        one.file.set_len(FILE_BYTES).expect("a hole");
        other.write(b"first\n").expect("written");
        one.write(b"second\n").expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "first\nsecond\n");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 2);
        // And so it is where another program takes it away.
        std::fs::rename(&path, dir.path().join("away")).expect("moved");
        other.write(b"third\n").expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "third\n");
    }

    /// Whoever comes late finds it done, and whoever comes meanwhile goes on with what it has.
    #[test]
    fn who_turns_it_over_is_alone_in_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.log");
        let mut one = Turned::open(&path).expect("opened");
        let mut two = Turned::open(&path).expect("opened");
        one.file.set_len(FILE_BYTES).expect("a hole");
        let other = File::open(dir.path()).expect("opened");
        flock(&other, FlockOperation::LockExclusive).expect("locked");
        one.write(b"one\n").expect("written");
        let there = || std::fs::read_dir(dir.path()).expect("a directory").count();
        assert_eq!((there(), one.file.metadata().expect("there").len()), (1, FILE_BYTES + 4));
        drop(other);
        one.write(b"two\n").expect("written");
        assert_eq!((there(), std::fs::read(&path).expect("read")), (2, b"two\n".to_vec()));

        // One that finds it full at the same moment, and comes after it.
        two.turn_over().expect("turned");
        two.write(b"three\n").expect("written");
        assert_eq!((there(), std::fs::read(&path).expect("read")), (2, b"two\nthree\n".to_vec()));
    }

    /// A disk that is full takes a part of what it is given.
    #[test]
    fn lines_that_are_not_written_are_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut file = Turned::open(Path::new("/dev/full")).expect("opened");
        let (written, _) = file.write(b"one\ntwo\n").expect_err("it is full");
        assert_eq!((written, file.torn), (0, false));
        let batch = Batch { text: b"one\ntwo\nthree\n".to_vec(), lost: Arc::default() };
        // The second one was torn.
        batch.lose_after(6);
        assert_eq!(batch.lost.load(Relaxed), 2);
        let mut file = Turned::open(&dir.path().join("access.log")).expect("opened");
        file.write(b"one\ntw").expect("written");
        file.torn = true;
        file.write(b"four\n").expect("written");
        assert_eq!(std::fs::read(&file.path).expect("read"), b"one\ntw\nfour\n");
    }

    #[test]
    fn what_is_quoted_is_one_string() {
        let mut out = Vec::new();
        quoted(&mut out, b"a\"b\\c\n\xff ");
        assert_eq!(String::from_utf8(out).expect("UTF-8"), r#""a\"b\\c\u000a\u00ff ""#);
    }
}
