//! The minder: a small process beside each postmaster that stops it when its right to run has ended
//! and nobody else is there to do so.
//!
//! It has a session of its own and outlives agent and supervisor. Its loop is one thread that waits
//! for news, for the postmaster's end and for an instant of CLOCK_BOOTTIME; it touches no disk and
//! waits for nothing else. SQL is another thread's. What it judges by is `core::minder`.

mod feed;
mod place;
mod prober;
mod server;

pub use feed::{Feed, Office};

use crate::{clock, disk, helper, log};
use anyhow::Context;
use everhold_core::ids::Time;
use everhold_core::minder::{Order, Postmaster, State, Verdict, Why, decide};
use place::Place;
use prober::Prober;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use server::Server;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// News taken in before it is judged again. A socket holds fewer.
const NEWS_MAX: usize = 64;
/// An order names at most a few members.
const ORDER_BYTES_MAX: usize = 8 << 10;

/// Which postmaster, and where to speak with it and with the agent.
#[derive(clap::Args, Clone, Debug)]
pub struct Seat {
    /// The directory of the service on this node
    #[arg(long)]
    pub dir: PathBuf,
    /// The postmaster
    #[arg(long)]
    pub pid: i32,
    /// When it began, as /proc says it
    #[arg(long)]
    pub started: u64,
    /// Where its socket is
    #[arg(long)]
    pub run_dir: PathBuf,
    #[arg(long)]
    pub port: u16,
}

/// Whether a minder of that directory runs, by its own record.
pub fn is_there(dir: &Path) -> bool {
    place::holder(dir).is_some()
}

/// Minds until the postmaster is gone.
pub fn run(seat: &Seat) -> ExitCode {
    match mind(seat) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be reading any more.
            log::line(&format!("minder of process {}: {error:#}", seat.pid));
            ExitCode::FAILURE
        }
    }
}

fn mind(seat: &Seat) -> anyhow::Result<()> {
    helper::own_session();
    rustix::process::umask(Mode::from_raw_mode(0o177));
    rustix::process::chdir("/").context("leave the working directory")?;
    let postmaster = Postmaster { pid: seat.pid, started: seat.started };
    let Some(server) = Server::find(postmaster) else { return Ok(()) };
    let Some(place) = Place::take(&seat.dir, postmaster).context("take the minder's place")? else {
        return Ok(());
    };
    let socket = place.listen().context("listen for the agent")?;
    let prober = Prober::start(&seat.run_dir, seat.port).context("start the prober")?;
    // What a stop needs is run once: its pages are in memory then, and stay there.
    server.rehearse();
    prober.rehearse();
    harden();
    let alarm =
        timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .context("make a timer")?;
    let watch = Watch { postmaster, server, socket, prober, alarm };
    if let Some(why) = watch.until_over()? {
        let ended = watch.server.end();
        // Only now: the disk may be what everything waits for.
        note(seat, &why, &ended);
    }
    Ok(())
}

/// Keeps this process running when memory or processors are short, as far as it is permitted.
fn harden() {
    // Pages are locked once they were touched: the program is far larger than what runs here.
    let locked = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let tries = [
        ("stay in memory", mlockall(locked).map_err(std::io::Error::from)),
        ("be the last one killed", std::fs::write("/proc/self/oom_score_adj", "-1000")),
        ("run first", rustix::process::setpriority_process(None, -20).map_err(Into::into)),
    ];
    for (what, done) in tries {
        if let Err(error) = done {
            log::line(&format!("the minder can't {what}: {error}"));
        }
    }
}

struct Watch {
    postmaster: Postmaster,
    server: Server,
    socket: UnixDatagram,
    prober: Prober,
    /// Fires on CLOCK_BOOTTIME, so at once when a machine wakes after the instant: a timeout of
    /// poll(2) would go on waiting for what was left of it.
    alarm: OwnedFd,
}

impl Watch {
    /// Returns why the server has to be stopped; `None`: it has ended.
    fn until_over(&self) -> anyhow::Result<Option<Why>> {
        let mut state = State::default();
        let mut buffer = vec![0; ORDER_BYTES_MAX];
        loop {
            // News first: they take no time, and they count from when they were true, so that a
            // freeze makes none of them newer.
            self.take_news(&mut state, &mut buffer);
            if self.server.ended() {
                return Ok(None);
            }
            let now = clock::now();
            match decide(&state, now) {
                Verdict::Stop { why } => return Ok(Some(why)),
                Verdict::Probe => {
                    if let Some(right) = state.right.clone()
                        && self.prober.ask(right)
                    {
                        state.asks(now);
                    } else {
                        // Tried again; the deadline stands.
                        state.asked = Some(now);
                    }
                }
                Verdict::Wait { until } => self.wait(until)?,
            }
        }
    }

    fn take_news(&self, state: &mut State, buffer: &mut [u8]) {
        while let Some(proven) = self.prober.answer() {
            state.answered(proven);
        }
        for _ in 0..NEWS_MAX {
            let Ok(length) = self.socket.recv(buffer) else { return };
            match serde_json::from_slice::<Order>(&buffer[..length]) {
                Ok(order) if order.postmaster == self.postmaster => {
                    state.told(order.right, clock::now());
                }
                // Meant for the server before or after this one, or for nobody.
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn wait(&self, until: Option<Time>) -> anyhow::Result<()> {
        let at = until.map_or(0, |at| at.0.max(1));
        let setting = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: (at / 1_000) as i64,
                tv_nsec: (at % 1_000 * 1_000_000) as i64,
            },
        };
        timerfd_settime(&self.alarm, TimerfdTimerFlags::ABSTIME, &setting)
            .context("set a timer")?;
        let mut fds = [
            PollFd::new(&self.alarm, PollFlags::IN),
            PollFd::new(&self.socket, PollFlags::IN),
            PollFd::new(self.server.end_fd(), PollFlags::IN),
            PollFd::new(self.prober.answered_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("wait"),
        }
    }
}

/// Leaves word for the agent, whenever one comes.
fn note(seat: &Seat, why: &Why, ended: &server::Ended) {
    let text = format!(
        "{}: the minder stopped PostgreSQL, process {}: {why}; {ended}",
        clock::wall(),
        seat.pid
    );
    log::line(&text);
    if let Err(error) = disk::write_whole(&place::note(&seat.dir), &text) {
        log::line(&format!("the minder can't leave a note: {error}"));
    }
}
