//! The place of a service's minder on a node: one at a time holds it, and whoever comes finds out
//! which.
//!
//! ```text
//! DIR/minder.lock   locked by the minder; says who it is and whom it minds
//! DIR/minder.sock   where it hears its agent
//! DIR/minder.note   why it stopped a server, until an agent has read it
//! ```

use everhold_adapters::proc::Handle;
use everhold_core::minder::{Postmaster, VERSION};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A minder whose postmaster has ended makes way within a millisecond; one that is frozen doesn't,
/// and is ended.
const TRIES_MAX: u32 = 200;
const TRY_EVERY: Duration = Duration::from_millis(5);
/// A killed minder is gone by then.
const END: Duration = Duration::from_secs(1);

/// What the lock file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    pub pid: i32,
    pub postmaster: Postmaster,
}

/// Held as long as this lives.
pub struct Place {
    dir: PathBuf,
    _lock: File,
}

/// A running minder.
pub struct Holder {
    pub record: Record,
    pub handle: Handle,
}

pub fn socket(dir: &Path) -> PathBuf {
    dir.join("minder.sock")
}

pub fn note(dir: &Path) -> PathBuf {
    dir.join("minder.note")
}

fn lock(dir: &Path) -> PathBuf {
    dir.join("minder.lock")
}

impl Place {
    /// `None`: that postmaster has a minder.
    pub fn take(dir: &Path, postmaster: Postmaster) -> io::Result<Option<Place>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(lock(dir))?;
        for attempt in 0.. {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(error) if error != rustix::io::Errno::WOULDBLOCK => return Err(error.into()),
                Err(error) if attempt > TRIES_MAX + TRIES_MAX => return Err(error.into()),
                Err(_) => {}
            }
            if let Some(holder) = holder(dir) {
                if holder.record.postmaster == postmaster && holder.record.version == VERSION {
                    return Ok(None);
                }
                if attempt == TRIES_MAX {
                    holder.end();
                }
            }
            std::thread::sleep(TRY_EVERY);
        }
        let pid = std::process::id().cast_signed();
        let text = serde_json::to_string(&Record { version: VERSION, pid, postmaster })?;
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
        Ok(Some(Place { dir: dir.to_path_buf(), _lock: file }))
    }

    /// The socket; what an earlier minder left of it is replaced.
    pub fn listen(&self) -> io::Result<UnixDatagram> {
        let path = socket(&self.dir);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Mode 0600 by the mask of this process.
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

impl Holder {
    pub fn ended(&self) -> bool {
        self.handle.ended()
    }

    /// Ends it, frozen or not.
    pub fn end(&self) {
        self.handle.signal(Signal::KILL);
        self.handle.ends_within(END);
    }
}

/// The minder of this directory that runs, whatever it minds.
pub fn holder(dir: &Path) -> Option<Holder> {
    let record: Record = serde_json::from_slice(&std::fs::read(lock(dir)).ok()?).ok()?;
    let handle = Handle::open(record.pid)?;
    // The file outlives its writer, whose number may be another's now.
    let line = std::fs::read(format!("/proc/{}/cmdline", record.pid)).ok()?;
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let ours = words.contains(&&b"minder"[..]) && words.contains(&dir.as_os_str().as_bytes());
    let holder = Holder { record, handle };
    (ours && !holder.ended()).then_some(holder)
}
