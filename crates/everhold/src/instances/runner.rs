//! The role `runner`: keeps one instance running and writes down what it says. It has a session of its
//! own and outlives its agent; when it is killed itself, the next one goes on with the same process.
//!
//! It has one order, which stands in a file, and is told one thing: to end, by SIGTERM; by SIGINT when
//! everything here ends. One that was started to end what an earlier one left does only that.

use super::child::{self, Family, Process};
use super::order::Order;
use super::output::Output;
use super::place::Place;
use super::state::State;
use crate::{clock, helper, log, secrets};
use anyhow::Context;
use everhold_adapters::cgroup::{Cgroup, Limits};
use everhold_adapters::proc::{self, End, Handle};
use everhold_core::run::{Exit, RunState, SETTLED_MS, backoff_ms, failures};
use everhold_core::spec::StopSignal;
use rustix::process::Signal;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::signal::unix::{Signal as Heard, SignalKind, signal};

/// When everything ends, nobody is given more: a supervisor waits for 20 s.
const HALT_GRACE_MS: u64 = 10_000;
/// The signal that nothing survives.
const KILLED: i32 = 9;
/// How much of a token names the instance's control group.
const NAMED: usize = 8;

/// The arguments of the role.
#[derive(clap::Args, Clone, Debug)]
pub struct Seat {
    /// The instance's directory
    #[arg(long)]
    pub dir: PathBuf,
    /// Start nothing: end what is left of it
    #[arg(long)]
    pub end: bool,
}

/// Runs until it is told to end the instance.
pub async fn run(seat: Seat) -> anyhow::Result<()> {
    helper::own_session();
    // First of all: whoever finds this runner may tell it.
    let mut orders = Orders::listen()?;
    let place = Place { dir: seat.dir };
    let Some(_held) = place.take().context("take the place")? else { return Ok(()) };
    let order = Order::read(&place.order())?;
    log::name(&order.instance);
    let mut runner = Runner::new(place, order)?;
    let grace_max = match seat.end {
        true => u64::MAX,
        false => runner.keep(&mut orders).await,
    };
    runner.stop(grace_max, &mut orders).await;
    runner.output.close();
    Ok(())
}

/// What it is told.
struct Orders {
    end: Heard,
    halt: Heard,
    /// Not for it.
    _hangup: Heard,
}

impl Orders {
    fn listen() -> std::io::Result<Orders> {
        Ok(Orders {
            end: signal(SignalKind::terminate())?,
            halt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when the instance is to end, and what its grace is at most.
    async fn end(&mut self) -> u64 {
        tokio::select! {
            _ = self.end.recv() => u64::MAX,
            _ = self.halt.recv() => HALT_GRACE_MS,
        }
    }
}

/// The process under watch.
struct Running {
    process: Process,
    handle: Handle,
    end: End,
    /// `None`: another runner started it, so how it ends is not told.
    child: Option<Child>,
    /// Of the control group, when it began.
    memory_kills: u64,
}

struct Runner {
    place: Place,
    order: Order,
    state: State,
    group: Cgroup,
    output: Output,
    running: Option<Running>,
}

impl Runner {
    fn new(place: Place, order: Order) -> anyhow::Result<Runner> {
        let mut state = State::read(&place.state())?;
        if state.token.is_empty() {
            state.token = secrets::fresh()?;
        }
        if state.boot != proc::boot() {
            let me = std::process::id().cast_signed();
            state.since = proc::started(me).context("read /proc")?;
        }
        let owner = child::owner(&order).ok().flatten();
        let owner = owner.and_then(|it| Some((it.uid, *it.gids.first()?)));
        let output = Output::open(&place, owner).context("open the pipe")?;
        let group = Cgroup::find(&group_name(&order, &state.token));
        let mut runner = Runner { place, order, state, group, output, running: None };
        if let Some((process, handle)) = runner.state.alive() {
            let end = End::of(&handle).context("watch it")?;
            let memory_kills = runner.group.memory_kills();
            runner.running = Some(Running { process, handle, end, child: None, memory_kills });
        } else if runner.state.given_ms != runner.order.given_ms {
            runner.state.given_ms = runner.order.given_ms;
            (runner.state.failures, runner.state.restarts) = (0, 0);
            runner.state.last_exit = None;
        }
        Ok(runner)
    }

    /// Keeps it running until it is to end.
    async fn keep(&mut self, orders: &mut Orders) -> u64 {
        match &self.running {
            Some(running) => {
                let pid = running.process.pid;
                self.output.say(format!("a new runner goes on with process {pid}")).await;
            }
            None => self.look_for_rest().await,
        }
        loop {
            if self.running.is_none()
                && let Err(error) = self.start().await
            {
                // What was begun and can't be watched would run beside the next one.
                let left = self.family(None).end();
                self.complain_of(left).await;
                self.ended(format!("not started: {error:#}"), 0).await;
            }
            if let Some(running) = &self.running {
                let starting = self.state.is == RunState::Starting;
                tokio::select! {
                    never = self.output.pump() => match never {},
                    () = running.end.reached() => {
                        let (reason, ran_ms) = self.bury().await;
                        self.ended(reason, ran_ms).await;
                    }
                    () = tokio::time::sleep(Duration::from_millis(SETTLED_MS)), if starting => {
                        self.now(RunState::Running);
                        continue;
                    }
                    grace_max = orders.end() => return grace_max,
                }
            }
            let pause = backoff_ms(self.state.failures, clock::now().0);
            tokio::select! {
                never = self.output.pump() => match never {},
                () = tokio::time::sleep(Duration::from_millis(pause)) => self.state.restarts += 1,
                grace_max = orders.end() => return grace_max,
            }
        }
    }

    /// One that ended while nobody was looking has left no word of how, and its children perhaps.
    async fn look_for_rest(&mut self) {
        let gone = self.state.process.take();
        let left = self.family(None).end();
        if gone.is_some() && self.state.is != RunState::Stopped {
            let text = "it ended while nobody supervised it";
            self.output.say(text.to_string()).await;
            let at = clock::wall();
            self.state.last_exit = Some(Exit { at, reason: text.to_string(), ran_ms: 0 });
            self.state.restarts += 1;
        }
        self.complain_of(left).await;
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        let limits = &self.order.limits;
        let limits = Limits {
            cpu_milli: limits.cpu_milli.map(u64::from),
            memory_bytes: limits.memory_bytes,
        };
        let name = group_name(&self.order, &self.state.token);
        let (group, unenforced) = Cgroup::make(&name, &limits);
        for why in unenforced.iter().filter(|why| !self.state.unenforced.contains(why)) {
            self.output.say(format!("a limit is not enforced: {why}")).await;
        }
        (self.group, self.state.unenforced) = (group, unenforced);
        self.state.boot = proc::boot().to_string();
        self.state.fingerprint.clone_from(&self.order.fingerprint);
        self.state.is = RunState::Starting;
        // On disk before there is anything that is known by its token; what stands there of an
        // earlier start will do, on a disk that is full.
        let path = self.place.state();
        if let Err(error) = self.state.save(&path) {
            let known = |was: State| (was.token, was.boot);
            let wanted = (self.state.token.clone(), self.state.boot.clone());
            if State::read(&path).map(known).ok() != Some(wanted) {
                return Err(error).context("write its state");
            }
        }
        let memory_kills = self.group.memory_kills();
        let child = child::spawn(&self.place, &self.order, &self.group, &self.state.token)?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).context("it is gone")?;
        // A child that isn't waited for keeps its number, so these are about this very process.
        let process = Process::of(pid).context("it is gone")?;
        let handle = Handle::open(pid).context("it is gone")?;
        let end = End::of(&handle).context("watch it")?;
        self.state.process = Some(process);
        self.state.began_ms = clock::unix_ms();
        self.running = Some(Running { process, handle, end, child: Some(child), memory_kills });
        self.now(RunState::Starting);
        self.output.say(format!("process {pid} started")).await;
        Ok(())
    }

    /// Ends what is left of the process that has ended, and answers how that was and how long it ran.
    async fn bury(&mut self) -> (String, u64) {
        let Some(mut running) = self.running.take() else { return (String::new(), 0) };
        // Until it is waited for, its number is nobody else's.
        let left = self.family(Some(running.process)).end();
        self.complain_of(left).await;
        self.state.process = None;
        let ran_ms = clock::unix_ms().saturating_sub(self.state.began_ms);
        let short_of_memory = self.group.memory_kills() > running.memory_kills;
        let killed = "killed: it took more memory than its limit".to_string();
        let reason = match &mut running.child {
            Some(child) => match child.wait().await {
                // The kernel may have ended a child of it, and it went on.
                Ok(status) if short_of_memory && status.signal() == Some(KILLED) => killed,
                Ok(status) => told(status),
                Err(error) => format!("ended: {error}"),
            },
            None if short_of_memory => killed,
            None => {
                "ended; it was started by an earlier runner, which alone is told how".to_string()
            }
        };
        (reason, ran_ms)
    }

    /// Writes down that it ended, and begins the wait for the next start.
    async fn ended(&mut self, reason: String, ran_ms: u64) {
        self.state.failures = failures(self.state.failures, ran_ms);
        self.output.say(format!("{reason}, after {} s", ran_ms / 1_000)).await;
        self.state.last_exit = Some(Exit { at: clock::wall(), reason, ran_ms });
        self.now(RunState::Backoff);
    }

    /// Asks it to end, and ends what is left after its grace, which is shorter when everything is to
    /// end meanwhile.
    async fn stop(&mut self, grace_max: u64, orders: &mut Orders) {
        self.now(RunState::Stopping);
        // What the spec says of stopping changes without a new start.
        let stop = Order::read(&self.place.order()).map_or(self.order.stop.clone(), |it| it.stop);
        if let Some(running) = &mut self.running {
            running.handle.signal(number(stop.signal));
            let begun = Instant::now();
            let mut grace_ms = stop.grace_ms.min(grace_max);
            let ended = loop {
                let grace = Duration::from_millis(grace_ms).saturating_sub(begun.elapsed());
                tokio::select! {
                    never = self.output.pump() => match never {},
                    () = running.end.reached() => break true,
                    () = tokio::time::sleep(grace) => break false,
                    _ = orders.halt.recv(), if grace_ms > HALT_GRACE_MS => {
                        let so_far = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                        grace_ms = grace_ms.min(so_far.saturating_add(HALT_GRACE_MS));
                    }
                }
            };
            if !ended {
                let after_s = begun.elapsed().as_secs();
                self.output.say(format!("did not end in {after_s} s: killed")).await;
                // Not the kernel does it.
                running.memory_kills = self.group.memory_kills();
                running.handle.signal(Signal::KILL);
                running.handle.ends_within(Duration::from_secs(1));
            }
            let (reason, ran_ms) = self.bury().await;
            self.output.say(format!("stopped: {reason}")).await;
            self.state.last_exit = Some(Exit { at: clock::wall(), reason, ran_ms });
        }
        let left = self.family(None).end();
        self.complain_of(left).await;
        self.group.remove();
        self.now(RunState::Stopped);
    }

    fn family(&self, first: Option<Process>) -> Family<'_> {
        let State { token, since, .. } = &self.state;
        Family { token, since: *since, first, group: &self.group }
    }

    async fn complain_of(&mut self, left: usize) {
        if left > 0 {
            tracing::error!(left, "processes of the instance can't be ended");
            self.output.say(format!("{left} of its processes can't be ended")).await;
        }
    }

    /// Tells the agent. A disk that takes nothing is no reason to stop an instance.
    fn now(&mut self, is: RunState) {
        self.state.is = is;
        if let Err(error) = self.state.save(&self.place.state()) {
            tracing::warn!(%error, instance = self.order.instance, "cannot write its state");
        }
    }
}

fn group_name(order: &Order, token: &str) -> String {
    let token = token.get(..NAMED).unwrap_or(token);
    format!("{}.{}.{token}", order.service, order.instance)
}

fn told(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(number)) => format!("ended by signal {number}"),
        (None, None) => "ended".to_string(),
    }
}

fn number(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::TERM,
        StopSignal::Int => Signal::INT,
        StopSignal::Quit => Signal::QUIT,
        StopSignal::Hup => Signal::HUP,
        StopSignal::Usr1 => Signal::USR1,
        StopSignal::Usr2 => Signal::USR2,
    }
}
