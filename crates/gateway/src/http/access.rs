//! The access log: a line of JSON for each request, in files that are turned over. A disk that is slow
//! costs lines, which are counted, and no request its time.

use super::ledger::Record;
use jiff::Timestamp;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// So much of one thread goes to the writer at once.
const BATCH: usize = 32 << 10;
/// Batches on their way to the disk.
const BATCHES_MAX: usize = 64;
/// Then the file is turned over.
const FILE_BYTES: u64 = 100 << 20;
/// Files beside the one that is written.
const FILES: usize = 9;

/// What one thread has to say.
pub struct Lines {
    text: Vec<u8>,
    lines: u64,
    to: SyncSender<Vec<u8>>,
    lost: u64,
}

/// Begins a log at that path, with a thread that writes it.
pub fn open(path: &Path) -> std::io::Result<SyncSender<Vec<u8>>> {
    let file = Turned::open(path)?;
    let (to, batches) = sync_channel(BATCHES_MAX);
    std::thread::Builder::new()
        .name("gateway-log".to_owned())
        .spawn(move || write(file, &batches))?;
    Ok(to)
}

impl Lines {
    pub fn new(to: SyncSender<Vec<u8>>) -> Lines {
        Lines { text: Vec::with_capacity(BATCH + 1_024), lines: 0, to, lost: 0 }
    }

    pub fn add(&mut self, record: &Record) {
        line(&mut self.text, record);
        self.lines += 1;
        if self.text.len() >= BATCH {
            self.flush();
        }
    }

    pub fn flush(&mut self) {
        if self.text.is_empty() {
            return;
        }
        let batch = std::mem::replace(&mut self.text, Vec::with_capacity(BATCH + 1_024));
        let lines = std::mem::take(&mut self.lines);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.to.try_send(batch)
        {
            self.lost += lines;
        }
    }

    pub fn lost(&self) -> u64 {
        self.lost
    }
}

/// In the names of OpenTelemetry where it has one.
fn line(out: &mut Vec<u8>, record: &Record) {
    let at = i64::try_from(record.at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let backend = record.tries.iter().last().map_or("", |it| &it.backend);
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
         \"response_bytes\":{},\"duration_us\":{},\"outcome\":\"{}\"}}",
        record.tries.count(),
        record.status,
        record.bytes_in,
        record.bytes_out,
        record.took_us,
        record.outcome
    );
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

fn write(mut file: Turned, batches: &Receiver<Vec<u8>>) {
    let mut failing = false;
    while let Ok(batch) = batches.recv() {
        match file.write(&batch) {
            Ok(()) => failing = false,
            Err(error) => {
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
}

impl Turned {
    fn open(path: &Path) -> std::io::Result<Turned> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Turned { path: path.to_path_buf(), file })
    }

    fn write(&mut self, batch: &[u8]) -> std::io::Result<()> {
        let own = self.file.metadata()?;
        let there = std::fs::metadata(&self.path);
        let is_own = there.is_ok_and(|it| (it.dev(), it.ino()) == (own.dev(), own.ino()));
        if is_own && own.len() >= FILE_BYTES {
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
                // The other one was faster.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                Err(_) | Ok(()) => {}
            }
        }
        // Somebody else turned it over, or took it away: a new one has begun, or begins.
        if !is_own || own.len() >= FILE_BYTES {
            *self = Turned::open(&self.path)?;
        }
        self.file.write_all(batch)
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

    #[test]
    fn what_is_quoted_is_one_string() {
        let mut out = Vec::new();
        quoted(&mut out, b"a\"b\\c\n\xff ");
        assert_eq!(String::from_utf8(out).expect("UTF-8"), r#""a\"b\\c\u000a\u00ff ""#);
    }
}
