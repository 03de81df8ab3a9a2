//! The server that is minded: a postmaster and everything it ever forked, found by what /proc says
//! and ended by pidfd. No path of a file system is looked at, so that no disk can hold this up.

use everhold_core::minder::Postmaster;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Rounds of killing and looking. A process that waits for a stalled disk ends after it.
const ROUNDS_MAX: u32 = 2_400;
/// How long killed processes are waited for in a round.
const ROUND: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// The unit of start times in /proc, on every architecture PostgreSQL is packaged for.
const TICKS_PER_SECOND: u64 = 100;

pub struct Server {
    postmaster: Postmaster,
    handle: OwnedFd,
    /// PostgreSQL's program, which children share: they are forked, not executed.
    program: PathBuf,
    /// The data directory, in which all of them work.
    cwd: PathBuf,
}

/// How it went.
pub struct Ended {
    processes: usize,
    took_ms: u64,
    left: usize,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} processes ended in {} ms", self.processes, self.took_ms)?;
        if self.left > 0 { write!(f, ", {} are left", self.left) } else { Ok(()) }
    }
}

impl Server {
    /// `None`: it has ended.
    pub fn find(postmaster: Postmaster) -> Option<Server> {
        // The handle first: what is asked afterwards is about the same process.
        let handle = open(postmaster.pid)?;
        let same = started(postmaster.pid) == Some(postmaster.started);
        let link = |name: &str| fs::read_link(format!("/proc/{}/{name}", postmaster.pid)).ok();
        let server =
            Server { postmaster, handle, program: program(&link("exe")?), cwd: link("cwd")? };
        (same && !server.ended()).then_some(server)
    }

    /// Readable once the postmaster has ended.
    pub fn end_fd(&self) -> &OwnedFd {
        &self.handle
    }

    pub fn ended(&self) -> bool {
        ends_within(&self.handle, &Timespec { tv_sec: 0, tv_nsec: 0 })
    }

    /// Looks for all processes, as a stop does, and leaves them alone.
    pub fn rehearse(&self) {
        let found = self.processes(u64::MAX);
        let _ = (self.ended(), found.len(), ticks());
    }

    /// Ends all processes, stopped and stuck ones too, and waits until they are gone.
    pub fn end(&self) -> Ended {
        let begun = ticks_ms();
        let mut seen = vec![self.postmaster.pid];
        kill(&self.handle);
        // Once the postmaster is dead nothing more is forked. Whoever began later belongs to a
        // server that the agent has started since, after it saw all of these gone.
        let mut last_fork = None;
        for _ in 0..ROUNDS_MAX {
            let dead = self.ended();
            let until = *last_fork.get_or_insert_with(ticks);
            let left = self.processes(until);
            if dead && left.is_empty() {
                return Ended { processes: seen.len(), took_ms: ticks_ms() - begun, left: 0 };
            }
            for (pid, handle) in &left {
                kill(handle);
                if !seen.contains(pid) {
                    seen.push(*pid);
                }
            }
            let died_now = ends_within(&self.handle, &ROUND);
            left.iter().for_each(|(_, handle)| {
                ends_within(handle, &ROUND);
            });
            if !dead {
                last_fork = died_now.then(ticks);
            }
        }
        let left = self.processes(u64::MAX).len();
        Ended { processes: seen.len(), took_ms: ticks_ms() - begun, left }
    }

    /// All live processes of the server that began no later than `until`, in ticks since boot.
    fn processes(&self, until: u64) -> Vec<(i32, OwnedFd)> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let found = pids.filter_map(|pid| {
            if !self.owns(pid) {
                return None;
            }
            let handle = open(pid)?;
            // Asked again: the number may have been another's.
            let old = started(pid).is_some_and(|started| started <= until);
            (old && self.owns(pid)).then_some((pid, handle))
        });
        found.collect()
    }

    fn owns(&self, pid: i32) -> bool {
        // A zombie has no program any more.
        let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) else { return false };
        program(&exe) == self.program
            && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == self.cwd)
    }
}

/// When a process began, in ticks since boot.
pub fn started(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything; the last bracket ends it.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A handle that stays with the process.
pub fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// A process that is gone already is no error.
pub fn kill(handle: &OwnedFd) {
    let _ = pidfd_send_signal(handle, Signal::KILL);
}

/// A handle is readable once its process has ended.
pub fn ends_within(handle: &OwnedFd, patience: &Timespec) -> bool {
    matches!(poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(patience)), Ok(1))
}

/// An upgrade replaces the program of a running server.
fn program(exe: &std::path::Path) -> PathBuf {
    let text = exe.to_string_lossy();
    PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text))
}

fn ticks_ms() -> u64 {
    let at = clock_gettime(ClockId::Boottime);
    at.tv_sec as u64 * 1_000 + at.tv_nsec as u64 / 1_000_000
}

fn ticks() -> u64 {
    ticks_ms() * TICKS_PER_SECOND / 1_000
}
