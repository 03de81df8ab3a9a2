//! The server that is minded: a postmaster and everything it ever forked. No path of a file system is
//! looked at, so that no disk can hold this up.

use everhold_adapters::proc::{self, Handle};
use everhold_core::minder::Postmaster;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

/// Rounds of killing and looking. A process that waits for a stalled disk ends after it.
const ROUNDS_MAX: u32 = 2_400;
/// How long killed processes are waited for in a round.
const ROUND: Duration = Duration::from_millis(250);
/// The unit of start times in /proc, on every architecture PostgreSQL is packaged for.
const TICKS_PER_SECOND: u64 = 100;

pub struct Server {
    handle: Handle,
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
        let handle = Handle::open(postmaster.pid)?;
        let same = proc::started(postmaster.pid) == Some(postmaster.started);
        let program = proc::program(postmaster.pid)?;
        let server = Server { handle, program, cwd: proc::works_in(postmaster.pid)? };
        (same && !server.ended()).then_some(server)
    }

    /// Readable once the postmaster has ended.
    pub fn end_fd(&self) -> &OwnedFd {
        &self.handle.fd
    }

    pub fn ended(&self) -> bool {
        self.handle.ended()
    }

    /// Looks for all processes, as a stop does, and leaves them alone.
    pub fn rehearse(&self) {
        let found = self.processes(u64::MAX);
        let _ = (self.ended(), found.len(), ticks());
    }

    /// Ends all processes, stopped and stuck ones too, and waits until they are gone.
    pub fn end(&self) -> Ended {
        let begun = ticks_ms();
        let mut seen = vec![self.handle.pid];
        self.handle.signal(Signal::KILL);
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
            for process in &left {
                process.signal(Signal::KILL);
                if !seen.contains(&process.pid) {
                    seen.push(process.pid);
                }
            }
            let died_now = self.handle.ends_within(ROUND);
            left.iter().for_each(|process| {
                process.ends_within(ROUND);
            });
            if !dead {
                last_fork = died_now.then(ticks);
            }
        }
        let left = self.processes(u64::MAX).len();
        Ended { processes: seen.len(), took_ms: ticks_ms() - begun, left }
    }

    /// All live processes of the server that began no later than `until`, in ticks since boot.
    fn processes(&self, until: u64) -> Vec<Handle> {
        proc::handles(|pid| {
            proc::program(pid).is_some_and(|program| program == self.program)
                && proc::works_in(pid).is_some_and(|cwd| cwd == self.cwd)
                && proc::started(pid).is_some_and(|started| started <= until)
        })
    }
}

fn ticks_ms() -> u64 {
    let at = clock_gettime(ClockId::Boottime);
    at.tv_sec as u64 * 1_000 + at.tv_nsec as u64 / 1_000_000
}

fn ticks() -> u64 {
    ticks_ms() * TICKS_PER_SECOND / 1_000
}
