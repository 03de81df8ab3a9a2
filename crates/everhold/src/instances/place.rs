//! The place of an instance on its node: its files, and its one runner.
//!
//! ```text
//! DATA/NODE/SERVICE/INSTANCE/order.json   what it is to be run as
//!                            state.json   what its runner knows of it
//!                            runner.lock  locked by the runner; says who it is
//!                            out          the pipe that its output goes through
//!                            log, log.1…  its output
//!                            work/        where it starts, unless the spec says otherwise
//! ```

use crate::layout::Layout;
use everhold_adapters::proc::{self, Handle};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub dir: PathBuf,
}

/// Who runs it, as the lock file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    pid: i32,
    started: u64,
}

impl Place {
    pub fn new(layout: &Layout, node: &str, service: &str, instance: &str) -> Place {
        Place { dir: layout.service(node, service).join(instance) }
    }

    /// Passed through by the instance's user on the way to its own directory.
    pub fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o711).create(&self.dir)
    }

    pub fn order(&self) -> PathBuf {
        self.dir.join("order.json")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    pub fn pipe(&self) -> PathBuf {
        self.dir.join("out")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    pub fn authority(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    fn lock(&self) -> PathBuf {
        self.dir.join("runner.lock")
    }

    /// For as long as the file is open. `None`: somebody else runs it.
    pub fn take(&self) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(self.lock())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let pid = std::process::id().cast_signed();
        let record = Record { pid, started: proc::started(pid).unwrap_or(0) };
        file.set_len(0)?;
        file.write_all(serde_json::to_string(&record)?.as_bytes())?;
        Ok(Some(file))
    }

    /// The runner that is there. The file outlives its writer, whose number may be another's now.
    pub fn runner(&self) -> Option<Handle> {
        let record: Record = serde_json::from_slice(&std::fs::read(self.lock()).ok()?).ok()?;
        let handle = Handle::open(record.pid)?;
        let same = proc::started(record.pid) == Some(record.started);
        (same && !handle.ended()).then_some(handle)
    }

    /// All on a node that have an order: service, instance, place.
    pub fn all(node: &Path) -> Vec<(String, String, Place)> {
        let of = |service: String| {
            let places = Place::of(&node.join(&service)).into_iter();
            places.map(move |(instance, place)| (service.clone(), instance, place))
        };
        let all = names(node).into_iter().flat_map(of);
        all.filter(|(.., place)| place.order().exists()).collect()
    }

    /// All of a service, from its directory, those that are gone too.
    pub fn of(service: &Path) -> Vec<(String, Place)> {
        let place = |instance: String| (instance.clone(), Place { dir: service.join(instance) });
        names(service).into_iter().map(place).collect()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_runner_at_a_time_and_a_record_of_the_dead_is_nobody() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place { dir: dir.path().join("a/api/a.1") };
        place.make().expect("made");
        assert!(place.runner().is_none());
        let held = place.take().expect("no error").expect("free");
        assert!(place.take().expect("no error").is_none(), "taken");
        assert_eq!(place.runner().expect("ourselves").pid, std::process::id() as i32);
        drop(held);
        assert!(place.take().expect("no error").is_some());
        let me = Record { pid: std::process::id() as i32, started: 1 };
        std::fs::write(place.lock(), serde_json::to_string(&me).expect("text")).expect("written");
        assert!(place.runner().is_none(), "another process of that number");
        assert!(Place::all(&dir.path().join("a")).is_empty());
        std::fs::write(place.order(), "{}").expect("written");
        let all = Place::all(&dir.path().join("a"));
        assert_eq!(all, [("api".to_string(), "a.1".to_string(), place)]);
    }
}
