//! What an instance says, from its pipe into files: each line with the time before it, a bounded
//! number of files of bounded size. A disk that stalls costs lines, never the instance its breath.
//!
//! The pipe has a name. The instance holds both of its ends, so it can be left without a reader: a
//! runner that was killed costs nothing, and the next one reads on.

use super::place::Place;
use crate::clock;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};
use tokio::net::unix::pipe;

/// A file is closed at this size, and so many are kept.
const FILE_BYTES_MAX: u64 = 10 << 20;
const FILES_MAX: u32 = 5;
/// A longer line is cut into pieces.
const LINE_BYTES_MAX: usize = 16 << 10;
/// What the pipe holds.
const READ_BYTES: usize = 64 << 10;
/// Reads that wait for the disk: 2 MB.
const WAITING_MAX: usize = 32;
/// A disk that takes nothing for so long is stalled.
const STALLED: Duration = Duration::from_secs(1);
const TRY: Duration = Duration::from_millis(5);
/// How much of the files is looked at for the newest lines.
const TAIL_BYTES_MAX: u64 = 4 << 20;

enum Piece {
    Bytes(Vec<u8>),
    /// The runner's own word, on a line of its own.
    Said(String),
}

pub struct Output {
    pipe: pipe::Receiver,
    /// `None`: it is over.
    writer: Option<SyncSender<Piece>>,
    thread: Option<std::thread::JoinHandle<()>>,
    stuck: Option<(Piece, Instant)>,
    lost: u64,
}

impl Output {
    /// The pipe becomes that user's, who may open it again by /dev/stdout.
    pub fn open(place: &Place, owner: Option<(u32, u32)>) -> io::Result<Output> {
        let path = place.pipe();
        if !std::fs::symlink_metadata(&path).is_ok_and(|it| it.file_type().is_fifo()) {
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        }
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
        }
        let pipe = pipe::OpenOptions::new().read_write(true).open_receiver(&path)?;
        let (writer, pieces) = sync_channel(WAITING_MAX);
        let files = Files::new(place.log());
        let thread = std::thread::Builder::new()
            .name("output".to_string())
            .spawn(move || write_all(files, &pieces))?;
        let (writer, thread) = (Some(writer), Some(thread));
        Ok(Output { pipe, writer, thread, stuck: None, lost: 0 })
    }

    /// Reads on, for ever.
    pub async fn pump(&mut self) -> Infallible {
        loop {
            if self.stuck.is_some() {
                self.push();
                tokio::time::sleep(TRY).await;
            } else if self.pipe.readable().await.is_ok() {
                self.take();
            }
        }
    }

    fn take(&mut self) {
        let mut buffer = vec![0; READ_BYTES];
        // What can't be read now is read when there is more.
        if let Ok(length @ 1..) = self.pipe.try_read(&mut buffer) {
            buffer.truncate(length);
            self.send(Piece::Bytes(buffer));
        }
    }

    fn send(&mut self, piece: Piece) {
        self.stuck.get_or_insert((piece, Instant::now()));
        self.push();
    }

    /// Hands on what the writer has had no room for.
    fn push(&mut self) {
        let Some((piece, since)) = self.stuck.take() else { return };
        let Some(writer) = &self.writer else { return };
        if self.lost > 0 {
            let text = format!("{} pieces of output were lost: the disk stalled", self.lost);
            if writer.try_send(Piece::Said(text)).is_ok() {
                self.lost = 0;
            }
        }
        match writer.try_send(piece) {
            Err(TrySendError::Full(_)) if since.elapsed() > STALLED => self.lost += 1,
            Err(TrySendError::Full(piece)) => self.stuck = Some((piece, since)),
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// The runner's own word, after all that was said before it.
    pub async fn say(&mut self, text: String) {
        let until = Instant::now() + STALLED;
        while Instant::now() < until {
            if self.stuck.is_some() {
                self.push();
                tokio::time::sleep(TRY).await;
            } else if tokio::time::timeout(TRY, self.pipe.readable()).await.is_ok() {
                self.take();
            } else {
                break;
            }
        }
        if self.stuck.is_none() {
            self.send(Piece::Said(text));
        }
    }

    /// Waits until all of it is in the files.
    pub fn close(mut self) {
        self.writer = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the writer is in this process's own log.
            let _ = thread.join();
        }
    }
}

fn write_all(mut files: Files, pieces: &Receiver<Piece>) {
    let mut line = Vec::new();
    while let Ok(piece) = pieces.recv() {
        let at = clock::wall();
        let bytes = match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Said(text) => {
                if !line.is_empty() {
                    files.write(&at, &line);
                    line.clear();
                }
                format!("everhold: {text}\n").into_bytes()
            }
        };
        for byte in bytes {
            if byte == b'\n' || line.len() >= LINE_BYTES_MAX {
                files.write(&at, &line);
                line.clear();
            }
            if byte != b'\n' {
                line.push(byte);
            }
        }
        files.flush();
    }
    if !line.is_empty() {
        files.write(&clock::wall(), &line);
    }
    files.flush();
}

/// `log`, and older ones beside it: `log.1` is the newest of them.
struct Files {
    path: PathBuf,
    open: Option<(io::BufWriter<File>, u64)>,
    bytes_max: u64,
}

impl Files {
    fn new(path: PathBuf) -> Files {
        Files { path, open: None, bytes_max: FILE_BYTES_MAX }
    }

    /// A line that can't be written is lost: there is nowhere else to put it.
    fn write(&mut self, at: &str, line: &[u8]) {
        let bytes = (at.len() + line.len() + 2) as u64;
        if self.open.as_ref().is_some_and(|(_, size)| size + bytes > self.bytes_max) {
            self.open = None;
            rotate(&self.path);
        }
        if self.open.is_none() {
            self.open = open(&self.path).ok();
        }
        let Some((file, size)) = &mut self.open else { return };
        let written = file
            .write_all(at.as_bytes())
            .and_then(|()| file.write_all(b" "))
            .and_then(|()| file.write_all(line))
            .and_then(|()| file.write_all(b"\n"));
        match written {
            Ok(()) => *size += bytes,
            Err(_) => self.forget(),
        }
    }

    fn flush(&mut self) {
        if self.open.as_mut().is_some_and(|(file, _)| file.flush().is_err()) {
            self.forget();
        }
    }

    /// Without another try to write what could not be written.
    fn forget(&mut self) {
        if let Some((file, _)) = self.open.take() {
            drop(file.into_parts());
        }
    }
}

fn open(path: &Path) -> io::Result<(io::BufWriter<File>, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((io::BufWriter::with_capacity(READ_BYTES, file), size))
}

fn older(path: &Path, number: u32) -> PathBuf {
    match number {
        0 => path.to_path_buf(),
        _ => path.with_file_name(format!("log.{number}")),
    }
}

fn rotate(path: &Path) {
    for number in (0..FILES_MAX - 1).rev() {
        // Most of them are not there yet.
        let _ = std::fs::rename(older(path, number), older(path, number + 1));
    }
}

/// The newest lines, oldest first: those behind `after`, a line's time, if that is given.
pub fn newest(path: &Path, limit: usize, after: Option<&str>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut left = TAIL_BYTES_MAX;
    for number in 0..FILES_MAX {
        let Ok(text) = tail(&older(path, number), left) else { break };
        left = left.saturating_sub(text.len() as u64);
        let found = text.lines().map(str::to_string);
        let found = found.filter(|line| after.is_none_or(|after| time(line) > after));
        lines.splice(0..0, found.collect::<Vec<_>>());
        if lines.len() >= limit || left == 0 {
            break;
        }
    }
    let skip = lines.len().saturating_sub(limit);
    lines.split_off(skip)
}

/// The time before a line.
pub fn time(line: &str) -> &str {
    line.split_once(' ').map_or("", |(at, _)| at)
}

/// The end of a file, from the beginning of a line on.
fn tail(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(bytes_max);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = match from {
        0 => &text,
        _ => text.split_once('\n').map_or("", |(_, rest)| rest),
    };
    Ok(whole.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_whole_in_a_bounded_number_of_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut files = Files { bytes_max: 200, ..Files::new(path.clone()) };
        for number in 0..1_000 {
            files.write(&format!("t{number:04}"), format!("line {number}").as_bytes());
        }
        files.flush();
        let mut kept = 0;
        for number in 0..=FILES_MAX {
            let Ok(text) = std::fs::read_to_string(older(&path, number)) else {
                assert_eq!(number, FILES_MAX, "five files");
                break;
            };
            assert!(text.len() <= 200 && text.ends_with('\n'));
            for line in text.lines() {
                let (at, line) = line.split_once(' ').expect("a time");
                assert_eq!(format!("line {}", at[1..].parse::<u32>().expect("it")), line);
                kept += 1;
            }
        }
        assert!(kept > 30);
        let found = newest(&path, 15, None);
        assert_eq!((found.len(), found[14].as_str()), (15, "t0999 line 999"));
        assert_eq!(newest(&path, 15, Some("t0997")), ["t0998 line 998", "t0999 line 999"]);
        assert_eq!(newest(&path, 1_000, None).len(), kept);
    }

    #[test]
    fn output_is_read_on_and_long_lines_are_cut() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place { dir: dir.path().to_path_buf() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let mut output = Output::open(&place, None).expect("open");
            let mut says =
                OpenOptions::new().read(true).write(true).open(place.pipe()).expect("it");
            says.write_all(b"one\ntwo\nhalf").expect("written");
            output.say("it ended".to_string()).await;
            let long = vec![b'x'; LINE_BYTES_MAX + 10];
            says.write_all(&long).expect("written");
            says.write_all(b"\n").expect("written");
            output.say("over".to_string()).await;
            output.close();
            // Nobody reads, and nobody is hurt; the next one finds it.
            says.write_all(b"meanwhile\n").expect("written");
            let mut output = Output::open(&place, None).expect("open");
            output.say("back".to_string()).await;
            output.close();
        });
        let lines = newest(&place.log(), 100, None);
        let words: Vec<&str> =
            lines.iter().map(|line| line.split_once(' ').expect("a time").1).collect();
        assert_eq!(words[..4], ["one", "two", "half", "everhold: it ended"]);
        assert_eq!((words[4].len(), words[5]), (LINE_BYTES_MAX, "xxxxxxxxxx"));
        assert_eq!(words[6..], ["everhold: over", "meanwhile", "everhold: back"]);
    }
}
