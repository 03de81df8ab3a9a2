//! Processes of this machine, as /proc tells of them, and handles that stay with them.
//!
//! Nothing here looks at another file system, so that no stalled disk can hold it up.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A live process, which keeps its identity when its number is used again.
#[derive(Debug)]
pub struct Handle {
    pub pid: i32,
    pub fd: OwnedFd,
}

impl Handle {
    pub fn open(pid: i32) -> Option<Handle> {
        // A number that was read from a file may be any.
        let known = (pid > 0).then(|| Pid::from_raw(pid)).flatten()?;
        let fd = pidfd_open(known, PidfdFlags::empty()).ok()?;
        Some(Handle { pid, fd })
    }

    /// A process that is gone already is no error.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.fd, signal) {
            tracing::debug!(pid = self.pid, %error, "signal not delivered");
        }
    }

    /// It has ended and let go of its files.
    pub fn ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Waits for its end, for at most so long.
    pub fn ends_within(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            // A pidfd is readable once its process has ended.
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// Readable once the process has ended.
impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The numbers of all processes.
pub fn numbers() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Handles of the processes wanted. Opening one takes a number, so each is asked for twice: the number
/// may be another's by then.
pub fn handles(wanted: impl Fn(i32) -> bool) -> Vec<Handle> {
    let found = numbers().filter(|pid| wanted(*pid)).filter_map(Handle::open);
    found.filter(|process| wanted(process.pid)).collect()
}

/// When a process began, in ticks since boot.
pub fn started(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything; the last bracket ends it.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The program that a process runs, under the name it was started by: an upgrade replaces that of a
/// running one. A zombie has none any more.
pub fn program(pid: i32) -> Option<PathBuf> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let text = exe.to_string_lossy();
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text)))
}

/// The directory that a process works in.
pub fn works_in(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_found_by_what_it_is_and_known_when_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("600").current_dir(dir.path()).spawn().unwrap();
        let pid = child.id() as i32;
        let place = fs::canonicalize(dir.path()).unwrap();
        let there = |pid: i32| works_in(pid).is_some_and(|cwd| cwd == place);
        let until = Instant::now() + Duration::from_secs(30);
        let is_sleep = || program(pid).is_some_and(|program| program.ends_with("sleep"));
        while !(is_sleep() && there(pid)) {
            assert!(Instant::now() < until, "{:?} in {:?}", program(pid), works_in(pid));
        }
        let found = handles(there);
        assert_eq!(found.iter().map(|it| it.pid).collect::<Vec<_>>(), [pid]);
        assert!(started(pid).is_some() && !found[0].ended());
        found[0].signal(Signal::KILL);
        assert!(found[0].ends_within(Duration::from_secs(30)));
        // A zombie until it is waited for: neither program nor directory.
        assert_eq!((program(pid), handles(there).len()), (None, 0));
        child.wait().unwrap();
        assert_eq!(started(pid), None);
        found[0].signal(Signal::KILL);
        assert!(Handle::open(-1).is_none() && started(-1).is_none());
    }
}
