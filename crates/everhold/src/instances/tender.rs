//! The thread of an agent that tends the instances of its node.

use super::leave::Leaving;
use super::order::{Order, Site};
use super::place::Place;
use super::state::State;
use crate::gateways_word::Said;
use crate::journal::Journal;
use crate::layout::Layout;
use crate::link::{Hold, Report};
use crate::node_file::NodeFile;
use crate::{clock, disk};
use everhold_adapters::proc::{self, Handle, Machine, Usage};
use everhold_core::journal::Event;
use everhold_core::records::encode;
use everhold_core::run::{
    Host, Instance, RunState, Seen, Verdict, WATCH_MS, decide, is_stuck, is_told, load,
};
use everhold_core::spec::{LimitsSpec, Spec, TIMEOUT_MS};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Between two looks: what a runner writes down is told that soon.
const LOOK: Duration = Duration::from_millis(100);
/// Passwords that go into an environment may have changed; the spec tells of itself.
const ORDERS_EVERY: Duration = Duration::from_secs(5);
/// What it uses is counted over so long.
const USAGE_EVERY: Duration = Duration::from_secs(2);
/// Between two starts of a runner that ends at once.
const BEGIN_EVERY: Duration = Duration::from_secs(1);
/// Runners give at most 10 s of grace when everything ends.
const HALTED_WITHIN: Duration = Duration::from_secs(17);

const RULE: &str = "cannot-run";

/// Service and instance.
type Key = (String, String);

/// What the thread is told.
pub enum Word {
    Renew { key: Key, pid: Option<i32>, answer: oneshot::Sender<Result<(), String>> },
    Halt { done: oneshot::Sender<()> },
}

/// What the thread knows of an instance.
struct Known {
    place: Place,
    runner: Option<Handle>,
    /// The runner, if this process started it: to be waited for.
    child: Option<Child>,
    begun: Option<Instant>,
    leaving: Option<Leaving>,
    /// How long requests may be on their way to it when it goes, as the spec last said.
    drain_ms: u64,
    renew: bool,
    state: State,
    used: Option<(Instant, Usage)>,
    cpu_milli: Option<u64>,
    failed: Option<String>,
    /// Why its state is not known: `state` is what it was.
    unread: Option<String>,
}

impl Known {
    fn new(place: Place) -> Known {
        let mut known = Known {
            place,
            runner: None,
            child: None,
            begun: None,
            leaving: None,
            drain_ms: TIMEOUT_MS,
            renew: false,
            state: State::default(),
            used: None,
            cpu_milli: None,
            failed: None,
            unread: None,
        };
        known.read();
        known
    }

    /// Takes in what its runner wrote down.
    fn read(&mut self) {
        match State::read(&self.place.state()) {
            Ok(state) => (self.state, self.unread) = (state, None),
            Err(error) => self.unread = Some(error.to_string()),
        }
    }

    /// Looks for its runner. One that was just started has not taken its place yet.
    fn has_runner(&mut self) -> bool {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait().transpose()
        {
            self.child = None;
            if self.runner.is_none()
                && let Some(status) = status.ok().filter(|it| !it.success())
            {
                let text = format!("its runner ended, {status}; the agent's log says why");
                self.failed = Some(text);
            }
        }
        if self.runner.as_ref().is_none_or(Handle::ended) {
            self.runner = self.place.runner();
        }
        if self.runner.is_some() {
            self.failed = None;
        }
        self.runner.is_some() || self.child.is_some()
    }

    /// Once in a while.
    fn begin(&mut self, begin: impl FnOnce(&mut Known) -> Result<(), String>) {
        if self.begun.is_none_or(|at| at.elapsed() > BEGIN_EVERY) {
            self.begun = Some(Instant::now());
            if let Err(error) = begin(self) {
                self.failed = Some(error);
            }
        }
    }

    /// Nothing of it runs, and nothing starts it.
    fn is_over(&self) -> bool {
        let nobody = self.runner.is_none() && self.child.is_none() && self.unread.is_none();
        nobody && self.state.is_over()
    }

    fn alive(&self) -> bool {
        self.state.alive().is_some()
    }

    fn measure(&mut self) {
        if self.used.is_some_and(|(at, _)| at.elapsed() < USAGE_EVERY) {
            return;
        }
        let now = Instant::now();
        let usage = self.state.alive().and_then(|(process, _)| proc::usage(process.pid));
        self.cpu_milli = usage.zip(self.used).map(|(now_used, (at, used))| {
            let elapsed = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
            now_used.cpu_ms.saturating_sub(used.cpu_ms) * 1_000 / elapsed
        });
        self.used = usage.map(|usage| (now, usage));
    }
}

/// The thread's own.
pub struct Tender {
    node: NodeFile,
    layout: Layout,
    spec: watch::Receiver<Spec>,
    journal: Journal,
    report: watch::Sender<Arc<Report>>,
    /// What gateways say, while it is wanted.
    said: watch::Receiver<Said>,
    wanted: watch::Sender<bool>,
    known: BTreeMap<Key, Known>,
    /// What the spec says of each that is placed here, or why that can't be.
    orders: BTreeMap<Key, Result<Order, String>>,
    ordered: Option<Instant>,
    /// When the machine was looked at last, what it told, and how busy it was until then.
    machine: Option<(Instant, Machine)>,
    host: Option<Host>,
    /// Everything ends: since when, and who waits for it.
    halt: Option<(Instant, Vec<oneshot::Sender<()>>)>,
}

impl Tender {
    pub fn new(
        node: NodeFile,
        layout: Layout,
        mut spec: watch::Receiver<Spec>,
        journal: Journal,
        report: watch::Sender<Arc<Report>>,
        (said, wanted): (watch::Receiver<Said>, watch::Sender<bool>),
    ) -> Tender {
        spec.mark_changed();
        // What earlier agents left.
        let known = Place::all(&layout.node(&node.name)).into_iter();
        let known =
            known.map(|(service, instance, place)| ((service, instance), Known::new(place)));
        let (known, orders) = (known.collect(), BTreeMap::new());
        Tender {
            node,
            layout,
            spec,
            journal,
            report,
            said,
            wanted,
            known,
            orders,
            ordered: None,
            machine: None,
            host: None,
            halt: None,
        }
    }

    pub fn run(mut self, heard: &Receiver<Word>) {
        loop {
            self.look();
            match heard.recv_timeout(LOOK) {
                Ok(word) => self.take(word),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn take(&mut self, word: Word) {
        match word {
            Word::Renew { key, pid, answer } => {
                let _ = answer.send(self.renew(&key, pid));
            }
            Word::Halt { done } => {
                let halt = self.halt.get_or_insert_with(|| (Instant::now(), Vec::new()));
                halt.1.push(done);
            }
        }
    }

    fn renew(&mut self, key: &Key, pid: Option<i32>) -> Result<(), String> {
        if self.halt.is_some() {
            return Err("everything is stopping here".to_string());
        }
        if let Some(Err(why)) = self.orders.get(key) {
            return Err(why.clone());
        }
        let known = self.known.get_mut(key).filter(|_| self.orders.contains_key(key));
        let known = known.ok_or_else(|| format!("{} is not placed on this node", key.1))?;
        let now = known.state.process.map(|process| process.pid);
        if pid.is_some() && pid != now {
            return Err(format!("{} is another process by now", key.1));
        }
        known.renew = true;
        Ok(())
    }

    fn measure(&mut self) {
        if self.machine.is_some_and(|(at, _)| at.elapsed() < USAGE_EVERY) {
            return;
        }
        let Some(machine) = proc::machine() else { return };
        if let Some((_, before)) = self.machine.replace((Instant::now(), machine)) {
            self.host = Some(host(&before, &machine));
        }
    }

    fn look(&mut self) {
        self.measure();
        let changed = self.spec.has_changed().unwrap_or(false);
        if changed || self.ordered.is_none_or(|at| at.elapsed() > ORDERS_EVERY) {
            self.ordered = Some(Instant::now());
            self.orders = self.make_orders();
            let spec = self.spec.borrow();
            for (key, known) in &mut self.known {
                if spec.http(&key.0).is_none() {
                    continue;
                }
                let goes = known.leaving.is_some() || known.renew || !self.orders.contains_key(key);
                // Requests that are on their way to one that goes began when it was so.
                let least = if goes { known.drain_ms } else { 0 };
                known.drain_ms = spec.drain_ms(&key.0).max(least);
            }
            drop(spec);
            for (key, order) in &self.orders {
                if let (Some(known), Ok(order)) = (self.known.get(key), order) {
                    take_up_stop(known, order);
                }
            }
        }
        for key in self.orders.keys() {
            if !self.known.contains_key(key) && self.halt.is_none() {
                let (service, instance) = key;
                let place = Place::new(&self.layout, &self.node.name, service, instance);
                self.known.insert(key.clone(), Known::new(place));
            }
        }
        let keys: Vec<Key> = self.known.keys().cloned().collect();
        for key in keys {
            self.tend(&key);
        }
        let goes = self.known.values().any(|it| it.leaving.is_some());
        self.wanted.send_if_modified(|wanted| std::mem::replace(wanted, goes) != goes);
        self.tell();
        let over = |(since, _): &(Instant, _)| {
            since.elapsed() > HALTED_WITHIN || self.known.values().all(Known::is_over)
        };
        if self.halt.as_ref().is_some_and(over)
            && let Some((_, waiting)) = &mut self.halt
        {
            waiting.drain(..).for_each(|done| {
                // Who asked may have given up.
                let _ = done.send(());
            });
        }
    }

    fn make_orders(&mut self) -> BTreeMap<Key, Result<Order, String>> {
        let spec = self.spec.borrow_and_update().clone();
        let site = Site { node: &self.node, layout: &self.layout, spec: &spec };
        let mut orders = BTreeMap::new();
        for (service, http) in spec.http_services() {
            let Some(run) = http.run() else { continue };
            let here = run.placed.iter().filter(|(_, it)| it.node == self.node.name);
            for (instance, _) in here {
                let order = Order::of(&site, service, run, instance);
                let order = order.map_err(|error| format!("{error:#}"));
                orders.insert((service.clone(), instance.clone()), order);
            }
        }
        orders
    }

    fn tend(&mut self, key: &Key) {
        let order = self.orders.get(key);
        let Some(known) = self.known.get_mut(key) else { return };
        let was = known.state.clone();
        known.read();
        note(&self.journal, key, &was, &known.state);
        known.measure();
        let runner = known.has_runner();
        // One that can't be served by what it runs with has nothing to lose.
        let outdated = matches!(order, Some(Ok(it)) if it.fingerprint != known.state.fingerprint);
        if outdated && known.state.is == RunState::Backoff && is_stuck(known.state.failures) {
            known.renew = true;
        }
        if !runner && known.unread.is_some() {
            // A process may live that nobody knows of.
            return;
        }
        let wanted = order.is_some() && self.halt.is_none();
        let left = known
            .leaving
            .as_mut()
            .is_some_and(|it| it.look(&self.said.borrow(), &self.spec.borrow(), (&key.0, &key.1)));
        let seen = Seen {
            runner,
            alive: known.alive(),
            over: known.state.is_over(),
            leaving: known.leaving.map(|it| it.since),
            left,
            drain_ms: if self.halt.is_some() { 0 } else { known.drain_ms },
            renew: known.renew,
        };
        let now = clock::now();
        match decide(wanted, &seen, now) {
            Verdict::Steady => known.leaving = None,
            Verdict::Begin { kept } => {
                known.begin(|known| {
                    if !kept && let Some(order) = order {
                        give(known, order, &self.node)?;
                    }
                    spawn(known, &[])
                });
            }
            Verdict::Sweep => known.begin(|known| spawn(known, &["--end"])),
            Verdict::Leave => known.leaving = Some(Leaving::new(now)),
            Verdict::Wait { .. } => {}
            Verdict::End => {
                // Said again at each look: a runner hears it once, and one that begins hears it too.
                let signal = if self.halt.is_some() { Signal::INT } else { Signal::TERM };
                if let Some(runner) = &known.runner {
                    runner.signal(signal);
                }
            }
            Verdict::Forget if self.halt.is_some() => {}
            Verdict::Forget => {
                // Its data and its output stay.
                let _ = std::fs::remove_file(known.place.order());
                self.known.remove(key);
            }
        }
    }

    /// Tells all who listen; at once if an instance came or went.
    fn tell(&self) {
        let mut told: BTreeMap<String, BTreeMap<String, Instance>> = BTreeMap::new();
        let mut holds = Vec::new();
        for ((service, id), known) in &self.known {
            let order = self.orders.get(&(service.clone(), id.clone()));
            let why = match order {
                Some(Err(why)) => Some(why),
                Some(Ok(_)) | None => known.unread.as_ref().or(known.failed.as_ref()),
            };
            holds.extend(why.map(|why| self.hold(service, id, why)));
            let instance = instance(known, order.and_then(|order| order.as_ref().ok()), self.host);
            told.entry(service.clone()).or_default().insert(id.clone(), instance);
        }
        let ours = |hold: &&Hold| hold.rule == RULE;
        self.report.send_if_modified(|report| {
            let same_holds = report
                .holds
                .iter()
                .filter(ours)
                .map(|it| &it.why)
                .eq(holds.iter().map(|it| &it.why));
            if report.instances == told && same_holds {
                return false;
            }
            let at_once = standing(&report.instances) != standing(&told) || !same_holds;
            let report = Arc::make_mut(report);
            report.instances = told;
            if !same_holds {
                report.holds.retain(|hold| !ours(&hold));
                report.holds.append(&mut holds);
            }
            at_once
        });
    }

    fn hold(&self, service: &str, id: &str, why: &str) -> Hold {
        Hold {
            service: Some(service.to_string()),
            rule: RULE.to_string(),
            why: format!("{id} can't be run: {why}"),
            unblocks: "what the error names is mended; it is tried again".to_string(),
            operator: true,
            since: clock::wall(),
            recheck_at: None,
            journal: None,
        }
    }
}

/// The machine between two looks.
fn host(before: &Machine, now: &Machine) -> Host {
    let busy = now.busy_ms.saturating_sub(before.busy_ms);
    let all = busy + now.idle_ms.saturating_sub(before.idle_ms);
    let cores = std::thread::available_parallelism().map_or(1, |it| it.get() as u64);
    let cpu_milli = cores * 1_000;
    Host {
        cpu_milli,
        cpu_milli_used: (cpu_milli * busy).checked_div(all).unwrap_or(0),
        memory_bytes: now.memory_bytes,
        memory_bytes_used: now.memory_bytes_used,
    }
}

/// What gateways go by.
fn standing(
    told: &BTreeMap<String, BTreeMap<String, Instance>>,
) -> Vec<(&String, RunState, Option<i32>, u16)> {
    let all = told.values().flatten();
    all.map(|(id, it)| (id, it.state, it.pid, it.port)).collect()
}

fn instance(known: &Known, order: Option<&Order>, host: Option<Host>) -> Instance {
    let Known { state, leaving, .. } = known;
    let alive = known.alive();
    let told = match (state.is, alive) {
        (RunState::Starting | RunState::Running, true) if leaving.is_some() => RunState::Stopping,
        // Its runner was killed with it, and another one is on its way.
        (RunState::Running, false) => RunState::Backoff,
        (is, _) => is,
    };
    let written = order.map(|order| order.port);
    let usage = known.cpu_milli.zip(known.used.map(|(_, usage)| usage.memory_bytes));
    let limits = order.map_or(LimitsSpec::default(), |order| order.limits);
    let port = written.or_else(|| Some(Order::read(&known.place.order()).ok()?.port));
    Instance {
        port: port.unwrap_or(0),
        pid: state.process.filter(|_| alive).map(|process| process.pid),
        state: told,
        restarts: state.restarts,
        last_exit: state.last_exit.clone(),
        fingerprint: state.fingerprint.clone(),
        outdated: order.is_some_and(|order| order.fingerprint != state.fingerprint),
        settled: told == RunState::Running
            && clock::unix_ms().saturating_sub(state.began_ms) >= WATCH_MS,
        cpu_milli: known.cpu_milli,
        memory_bytes: known.used.map(|(_, usage)| usage.memory_bytes),
        load: host.zip(usage).map(|(host, (cpu, memory))| load(cpu, memory, limits, host)),
        unenforced: state.unenforced.clone(),
    }
}

/// Writes a new order.
fn give(known: &mut Known, order: &Result<Order, String>, node: &NodeFile) -> Result<(), String> {
    let order = order.as_ref().map_err(String::clone)?;
    let order = Order { given_ms: clock::unix_ms(), ..order.clone() };
    if let Err(error) = order.write(&known.place, &node.ca) {
        // On a disk that is full the same one will do.
        let written = Order::read(&known.place.order());
        if !written.is_ok_and(|it| it.fingerprint == order.fingerprint) {
            return Err(format!("{error:#}"));
        }
    }
    (known.renew, known.leaving) = (false, None);
    Ok(())
}

/// Starts a runner: this very program, also after its file was replaced.
fn spawn(known: &mut Known, more: &[&str]) -> Result<(), String> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("everhold").arg("runner").arg("--dir").arg(&known.place.dir).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
    let child = command.spawn().map_err(|error| format!("start a runner: {error}"))?;
    known.child = Some(child);
    Ok(())
}

/// How it is stopped takes no new process, so a changed order says it at once.
fn take_up_stop(known: &Known, order: &Order) {
    let path = known.place.order();
    let Ok(written) = Order::read(&path) else { return };
    if written.fingerprint == order.fingerprint && written.stop != order.stop {
        let written = Order { stop: order.stop.clone(), ..written };
        let _ = disk::write_whole(&path, &encode(&written));
    }
}

/// What happened to it since, in the journal: of a crash loop the first few ends, then ever fewer.
fn note(journal: &Journal, (service, id): &Key, was: &State, is: &State) {
    let note = |text: String| drop(journal.append(service, Event::Noted { text }));
    let stopped = matches!(is.is, RunState::Stopping | RunState::Stopped);
    let told = stopped || is_told(is.restarts);
    if let Some(exit) = is.last_exit.as_ref().filter(|it| Some(*it) != was.last_exit.as_ref())
        && told
    {
        let again = match stopped {
            true => "it was told to stop".to_string(),
            false => format!("it is started again, restart {}", is.restarts + 1),
        };
        note(format!("{id}: {}, after {} s; {again}", exit.reason, exit.ran_ms / 1_000));
    }
    if let Some(process) = is.process.filter(|it| Some(*it) != was.process)
        && told
    {
        note(format!("{id}: process {} started", process.pid));
    }
    for why in is.unenforced.iter().filter(|why| !was.unenforced.contains(why)) {
        note(format!("{id}: a limit is not enforced: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(dir: &tempfile::TempDir) -> Known {
        Known::new(Place { dir: dir.path().to_path_buf() })
    }

    #[test]
    fn one_whose_runner_begins_or_whose_state_is_unknown_is_not_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut known = known(&dir);
        assert!(known.is_over(), "it never began");
        let left = State { token: "t".to_string(), is: RunState::Running, ..State::default() };
        left.save(&known.place.state()).expect("saved");
        known.read();
        assert!(!known.is_over(), "children of it may be left");
        std::fs::write(known.place.state(), "{").expect("written");
        known.read();
        assert!(!known.is_over() && known.unread.is_some());
        assert_eq!(known.state, left, "what it was");
        State { is: RunState::Stopped, ..left }.save(&known.place.state()).expect("saved");
        known.read();
        assert!(known.is_over());
        known.child = Some(Command::new("sleep").arg("600").spawn().expect("a child"));
        assert!(known.has_runner() && !known.is_over(), "a runner begins");
        let mut child = known.child.take().expect("it");
        child.kill().expect("killed");
        child.wait().expect("ended");
    }

    #[test]
    fn a_runner_that_can_t_run_is_told_of_until_one_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut known = known(&dir);
        let after = |command: &mut Command, known: &mut Known| {
            known.child = Some(command.spawn().expect("a child"));
            let until = Instant::now() + Duration::from_secs(60);
            while known.has_runner() && known.runner.is_none() {
                assert!(Instant::now() < until);
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        after(&mut Command::new("true"), &mut known);
        assert_eq!(known.failed, None, "another one has the place");
        after(&mut Command::new("false"), &mut known);
        let failed = "its runner ended, exit status: 1; the agent's log says why";
        assert_eq!(known.failed.as_deref(), Some(failed));
        let _held = known.place.take().expect("no error").expect("free");
        assert!(known.has_runner() && known.failed.is_none());
        // One that ran was killed: another one follows.
        after(&mut Command::new("false"), &mut known);
        assert_eq!(known.failed, None);
    }

    #[test]
    fn on_a_full_disk_the_same_order_will_do() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut known = known(&dir);
        let order = |fingerprint: &str| {
            let order = serde_json::json!({
                "cluster": "test", "service": "api", "instance": "a.1", "node": "a", "port": 1,
                "command": ["serve"], "stop": { "signal": "TERM", "grace_ms": 1 },
                "fingerprint": fingerprint,
            });
            serde_json::from_value::<Order>(order).map_err(|error| error.to_string())
        };
        let node = NodeFile {
            name: "a".to_string(),
            cluster: "test".to_string(),
            data: dir.path().to_path_buf(),
            store: Vec::new(),
            ca: dir.path().join("ca"),
            cert: dir.path().join("cert"),
            key: dir.path().join("key"),
            store_tls: crate::node_file::StoreTls::Own,
        };
        give(&mut known, &order("f1"), &node).expect("written");
        // Nothing can be written under that name.
        let new = format!("order.json.{}.new", std::process::id());
        std::fs::create_dir(dir.path().join(new)).expect("made");
        known.renew = true;
        give(&mut known, &order("f1"), &node).expect("it is there");
        assert!(!known.renew);
        assert!(give(&mut known, &order("f2"), &node).is_err());
    }
}
