//! The processes of a data directory: which they are, and how all of them are ended.

use super::error::PgError;
use crate::proc;
pub use crate::proc::Handle;
use rustix::process::Signal;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where to look for processes of one server.
#[derive(Clone, Debug)]
pub struct Directory {
    pub data_dir: PathBuf,
    /// Copies under way next to it, which tools of a killed agent may still be writing.
    pub copies: Vec<PathBuf>,
}

/// Programs that write to a data directory, wherever they are installed.
const PROGRAMS: [&str; 4] = ["postgres", "initdb", "pg_rewind", "pg_basebackup"];

/// What a directory is, under whatever name.
type Place = (u64, u64);

/// What PostgreSQL notes of itself in postmaster.pid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PidFile {
    pub pid: i32,
    pub starting: bool,
}

impl Directory {
    /// Numbers of all live processes: servers (a backend outlives a killed postmaster, and works in
    /// the data directory) and tools that were told to write there. A shell that somebody left
    /// there is none: only PostgreSQL's programs count. Takes a few milliseconds.
    pub fn pids(&self) -> Vec<i32> {
        let places = self.places();
        let mut found: Vec<i32> = proc::numbers().filter(|pid| self.owns(*pid, &places)).collect();
        found.sort_unstable();
        found
    }

    fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        self.copies.iter().chain([&self.data_dir])
    }

    fn places(&self) -> Vec<Place> {
        self.dirs().filter_map(|dir| place(dir)).collect()
    }

    fn owns(&self, pid: i32, places: &[Place]) -> bool {
        let Some(program) = proc::program(pid) else { return false };
        if !PROGRAMS.iter().any(|name| program.ends_with(name)) {
            return false;
        }
        if place(Path::new(&format!("/proc/{pid}/cwd"))).is_some_and(|at| places.contains(&at)) {
            return true;
        }
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments
            .split(|byte| *byte == 0)
            .any(|argument| self.dirs().any(|dir| argument == dir.as_os_str().as_bytes()))
    }

    /// The postmaster of this directory, if it lives. The clock isn't asked when it started, since
    /// clocks jump: a process with this number, PostgreSQL's program, this working directory and no
    /// title of a child can only be the postmaster.
    pub fn postmaster(&self) -> Option<Handle> {
        let noted = self.pid_file()?;
        // The handle first: what is asked afterwards is about the same process.
        let handle = Handle::open(noted.pid)?;
        let title = fs::read(format!("/proc/{}/cmdline", noted.pid)).ok()?;
        let is_child = title.starts_with(b"postgres: ");
        (self.owns(noted.pid, &self.places()) && !is_child && !handle.ended()).then_some(handle)
    }

    /// `None` if there is none, or it is of a single-user server.
    pub fn pid_file(&self) -> Option<PidFile> {
        parse_pid_file(&fs::read_to_string(self.data_dir.join("postmaster.pid")).ok()?)
    }

    /// Ends all processes and proves them gone: `signal` to the postmaster, after `patience`
    /// SIGKILL to everything, again and again for at most `bound`. Blocks.
    pub fn end(&self, signal: Signal, patience: Duration, bound: Duration) -> Result<(), PgError> {
        let begun = Instant::now();
        if let Some(postmaster) = self.postmaster() {
            postmaster.signal(signal);
            let rest: Vec<Handle> = self.pids().into_iter().filter_map(Handle::open).collect();
            await_end(&[postmaster], begun + patience);
            await_end(&rest, begun + patience);
        }
        loop {
            // The postmaster is gone or about to be, so nothing new is forked after it is killed.
            let places = self.places();
            let left = proc::handles(|pid| self.owns(pid, &places));
            if left.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > patience + bound {
                let pids = left.iter().map(|process| process.pid).collect();
                return Err(PgError::Remains { dir: self.data_dir.clone(), pids });
            }
            left.iter().for_each(|process| process.signal(Signal::KILL));
            await_end(&left, Instant::now() + Duration::from_millis(250));
        }
    }
}

fn place(dir: &Path) -> Option<Place> {
    fs::metadata(dir).ok().map(|found| (found.dev(), found.ino()))
}

/// Waits until all have ended, or `until`.
fn await_end(processes: &[Handle], until: Instant) {
    for process in processes {
        if !process.ends_within(until.saturating_duration_since(Instant::now())) {
            return;
        }
    }
}

fn parse_pid_file(text: &str) -> Option<PidFile> {
    let mut lines = text.lines();
    let pid: i32 = lines.next()?.trim().parse().ok()?;
    // The eighth line: starting, stopping, ready, standby. Absent at first.
    let status = lines.nth(6).map_or("starting", str::trim);
    (pid > 0).then_some(PidFile { pid, starting: status == "starting" })
}

/// How often the process gave up its processor to wait for something.
pub fn waits(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

/// The program behind a path, as /proc will name it.
pub fn resolved(path: &Path) -> Result<PathBuf, PgError> {
    fs::canonicalize(path).map_err(PgError::file("find", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_file_is_read_as_postgresql_writes_it() {
        let full = "812\n/d\n1763616000\n5432\n/run\n*\n  1 2\nready   \n";
        assert_eq!(parse_pid_file(full), Some(PidFile { pid: 812, starting: false }));
        let early = "812\n/d\n1763616000\n5432\n";
        assert_eq!(parse_pid_file(early), Some(PidFile { pid: 812, starting: true }));
        let single = "-812\n/d\n1763616000\n5432\n";
        assert_eq!(parse_pid_file(single), None);
        assert_eq!(parse_pid_file("x"), None);
    }

    #[test]
    fn waits_are_counted() {
        let me = std::process::id() as i32;
        let before = waits(me).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        assert!(waits(me).unwrap() >= before);
        assert_eq!(waits(-1), None);
    }
}
