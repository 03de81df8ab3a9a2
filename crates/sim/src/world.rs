//! A cluster in virtual time: the queue of what happens, and the agents that are driven by it.

use crate::clients::Clients;
use crate::declared;
use crate::faults::{CrashOn, Plan};
use crate::invariants::Ghost;
use crate::network::Net;
use crate::queue::Queue;
use crate::random::Random;
use crate::rot::{self, Rot};
use crate::server::{Proc, Server, Who};
use crate::steps::Task;
use crate::store::{Store, Watch};
use crate::wal::Dir;
use everhold_core::agent::{Agent, Command, Id, Identity, Input};
use everhold_core::durable::Durable;
use everhold_core::ids::{Epoch, Time};
use everhold_core::kv::Txn;
use everhold_core::policy::{HEARTBEAT_MS, Policy};
use everhold_core::status::Status;
use everhold_core::view::Guard;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Virtual time counts in microseconds.
pub const MS: u64 = 1_000;
pub const S: u64 = 1_000_000;

/// An agent's own tick.
const TICK: u64 = 50 * MS;
/// Events of one seed: far above what any takes, so that a loop without progress ends.
const EVENTS_MAX: u64 = 20_000_000;

#[derive(Debug)]
pub enum ForAgent {
    Tick,
    Wake,
    Input(Box<Input>),
    /// It reads the spec as it stands then.
    Spec,
    Die {
        whole: bool,
    },
    /// A look at the server is taken now and told a moment later.
    Look,
    /// The next stage of an action.
    Step(Id),
    /// A record of the node reaches its disk.
    Persist(Id),
    StoreRead {
        session: u32,
    },
    StoreRetry {
        session: u32,
    },
    Watched {
        session: u32,
        key: String,
        kv: Option<everhold_core::kv::Kv>,
    },
    WatchLost {
        session: u32,
    },
}

#[derive(Debug)]
pub enum ForServer {
    Started {
        at_recovery: bool,
    },
    /// The setting reaches one walsender, or the checkpointer.
    Reload {
        conn: u64,
    },
    ReloadCheckpointer,
    TakeSource,
    Retry,
    Connect {
        conn: u64,
    },
    Flush {
        conn: u64,
        upto: usize,
        /// The sender's, when it was sent.
        replaced: u32,
    },
    Reply {
        conn: u64,
        flush: u64,
    },
    ReceiverLost {
        conn: u64,
    },
    RowGone {
        conn: u64,
    },
    Replay,
    ChildrenEnd {
        stuck: bool,
    },
    Commit {
        who: Who,
    },
}

#[derive(Debug)]
pub enum Event {
    Agent { node: usize, gen_: u32, what: ForAgent },
    Server { node: usize, life: u32, what: ForServer },
    Message { from: usize, to: usize, status: Arc<Status> },
    Gateway { from: usize, status: Arc<Status> },
    StoreApply { node: usize, gen_: u32, id: Id, txn: Box<Txn>, answer: bool },
    ClientNext { writer: usize },
    ClientAnswer { writer: usize, attempt: u64, acked: bool },
    Read { again: bool },
    Kill { node: usize },
    Minder { node: usize },
    AgentStarts { node: usize },
    Thaw { node: usize },
    ServerThaw { node: usize },
    Fault { at: usize },
    Heal { at: usize },
    Second,
}

/// The process that stops PostgreSQL when nobody vouches for it.
#[derive(Clone, Debug)]
pub struct Minder {
    pub until: Time,
    pub k: u32,
    pub members: Vec<String>,
    /// A record of its own: written at, ending at.
    pub proof: Option<(Time, u64)>,
}

pub struct Node {
    pub name: String,
    pub offset_ms: u64,
    pub agent: Option<Agent>,
    /// Rises with each start and end of the agent: what was under way for an older one is void.
    pub gen_: u32,
    pub disk: Durable,
    pub persisting: Option<(Id, Box<Durable>)>,
    pub tasks: BTreeMap<Id, Task>,
    pub watch: Watch,
    pub server: Server,
    pub dir: Dir,
    /// What was restored beside it, and its name.
    pub restored: Option<(String, Dir)>,
    /// The name of what was restored and stands in its place.
    pub stands: Option<String>,
    /// So often the directory was replaced: what was sent from an earlier one is not in this one.
    pub replaced: u32,
    pub minder: Option<Minder>,
    pub frozen: bool,
    /// When it last froze, and when it last resumed.
    pub froze: u64,
    pub thawed: u64,
    deferred: Vec<Event>,
    server_deferred: Vec<Event>,
    /// How long a flush takes at most.
    pub fsync: u64,
    pub full: bool,
    pub rot: Rot,
    pub crash_on: Option<(&'static str, u32)>,
    pub serving: Option<Epoch>,
    pub ticks: u64,
    /// No fault has touched it or its links since.
    pub calm_since: u64,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub without: Option<Guard>,
    pub trace: bool,
}

pub struct World {
    pub now: u64,
    queue: Queue<Event>,
    pub rng: Random,
    pub policy: Policy,
    pub nodes: Vec<Node>,
    pub net: Net,
    pub store: Store,
    pub clients: Clients,
    pub ghost: Ghost,
    pub plan: Plan,
    pub rot_plan: rot::Plan,
    pub options: Options,
    pub events: u64,
    pub ends_at: u64,
}

#[macro_export]
macro_rules! say {
    ($world:expr, $($arg:tt)*) => {
        if $world.options.trace {
            println!("{:>10.3} {}", $world.now as f64 / 1000.0, format_args!($($arg)*));
        }
    };
}

impl World {
    pub fn new(options: Options) -> World {
        let mut plan = Plan::new(options.seed);
        let policy = declared::policy(&mut plan.rng);
        let count = policy.nodes.len();
        let mut rng = Random::new(options.seed, 1);
        let nodes = policy.nodes.iter().map(|name| node(name, rng.between(10_000, 99_000_000)));
        let nodes = nodes.collect();
        let mut world = World {
            now: 0,
            queue: Queue::new(),
            rng,
            policy,
            nodes,
            net: Net::new(count),
            store: Store::new(),
            clients: Clients::new(options.seed),
            ghost: Ghost::default(),
            plan,
            rot_plan: rot::Plan::new(options.seed),
            options,
            events: 0,
            ends_at: 300 * S,
        };
        for n in 0..count {
            let at = world.rng.between(1, 20 * MS);
            world.at(at, Event::AgentStarts { node: n });
        }
        world.at(1, Event::Second);
        for writer in 0..world.clients.writers.len() {
            world.at(S, Event::ClientNext { writer });
        }
        world.at(S, Event::Read { again: true });
        world
    }

    /// Runs to the end, or to the first violation.
    pub fn run(&mut self) {
        while let Some((at, event)) = self.queue.pop() {
            if at > self.ends_at || self.ghost.violation.is_some() {
                break;
            }
            self.now = at;
            self.events += 1;
            if self.events > EVENTS_MAX {
                self.violated("the simulation makes no progress".to_string());
                break;
            }
            self.happen(event);
        }
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.queue.push(at, event);
    }

    pub fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    pub fn tell_agent(&mut self, node: usize, delay: u64, what: ForAgent) {
        let gen_ = self.nodes[node].gen_;
        self.after(delay, Event::Agent { node, gen_, what });
    }

    pub fn tell_server(&mut self, node: usize, delay: u64, what: ForServer) {
        let life = self.nodes[node].server.life;
        self.after(delay, Event::Server { node, life, what });
    }

    pub fn local(&self, node: usize) -> Time {
        Time(self.now / MS + self.nodes[node].offset_ms)
    }

    fn happen(&mut self, event: Event) {
        let (node, server) = match &event {
            Event::Agent { node, .. } | Event::Minder { node } => (Some(*node), false),
            Event::Message { to, .. } => (Some(*to), false),
            Event::Server { node, .. } => (Some(*node), true),
            Event::AgentStarts { node } => (Some(*node), false),
            Event::Gateway { .. }
            | Event::StoreApply { .. }
            | Event::ClientNext { .. }
            | Event::ClientAnswer { .. }
            | Event::Read { .. }
            | Event::Kill { .. }
            | Event::Thaw { .. }
            | Event::ServerThaw { .. }
            | Event::Fault { .. }
            | Event::Heal { .. }
            | Event::Second => (None, false),
        };
        if let Some(n) = node {
            let node = &mut self.nodes[n];
            if node.frozen {
                // One tick is enough to begin again with.
                let tick = matches!(event, Event::Agent { what: ForAgent::Tick, .. });
                let known = node.deferred.iter().any(is_tick);
                if !(tick && known) {
                    node.deferred.push(event);
                }
                return;
            }
            if server && node.server.frozen {
                node.server_deferred.push(event);
                return;
            }
        }
        match event {
            Event::Agent { node, gen_, what } => {
                if self.nodes[node].gen_ == gen_ {
                    self.for_agent(node, what);
                }
            }
            Event::Server { node, life, what } => {
                if self.nodes[node].server.life == life {
                    self.for_server(node, what);
                    self.check_split();
                } else {
                    self.server_gone_for(what);
                }
            }
            Event::Message { from, to, status } => {
                let name = self.nodes[from].name.clone();
                self.give(to, Input::Heard { node: name, status });
            }
            Event::Gateway { from, status } => self.gateway_heard(from, &status),
            Event::StoreApply { node, gen_, id, txn, answer } => {
                self.store_apply(node, gen_, id, &txn, answer);
            }
            Event::ClientNext { writer } => self.client_next(writer),
            Event::ClientAnswer { writer, attempt, acked } => {
                self.client_answer(writer, attempt, acked);
            }
            Event::Read { again } => self.read(again),
            Event::Kill { node } => self.kill_node(node),
            Event::Minder { node } => self.mind(node),
            Event::AgentStarts { node } => self.start_agent(node),
            Event::Thaw { node } => self.thaw(node),
            Event::ServerThaw { node } => self.thaw_server(node),
            Event::Fault { at } => self.fault(at),
            Event::Heal { at } => self.heal(at),
            Event::Second => {
                self.after(S, Event::Second);
                self.sweep();
                self.rot();
                self.check_second();
                self.plan_ahead();
            }
        }
    }

    fn for_agent(&mut self, n: usize, what: ForAgent) {
        match what {
            ForAgent::Tick => {
                self.tell_agent(n, TICK, ForAgent::Tick);
                self.nodes[n].ticks += 1;
                let beat = self.nodes[n].ticks.is_multiple_of(HEARTBEAT_MS * MS / TICK);
                self.give(n, Input::Tick);
                if beat && self.nodes[n].agent.is_some() {
                    self.send_status(n);
                    let delay = self.rng.between(0, 20 * MS);
                    self.tell_agent(n, delay, ForAgent::Look);
                }
            }
            ForAgent::Wake => self.give(n, Input::Tick),
            ForAgent::Input(input) => self.give(n, *input),
            ForAgent::Spec => self.give(n, Input::Policy { policy: self.policy.clone() }),
            ForAgent::Die { whole } => self.crash(n, whole),
            ForAgent::Look => self.look(n),
            ForAgent::Step(id) => self.step(n, id),
            ForAgent::Persist(id) => self.persist(n, id),
            ForAgent::StoreRead { session } => self.store_read(n, session),
            ForAgent::StoreRetry { session } => self.store_retry(n, session),
            ForAgent::Watched { session, key, kv } => {
                if self.nodes[n].watch.session == session {
                    self.give(n, Input::StoreChanged { key, kv });
                }
            }
            ForAgent::WatchLost { session } => self.watch_lost(n, session),
        }
    }

    /// Steps an agent and carries out what it says.
    pub fn give(&mut self, n: usize, input: Input) {
        let now = self.local(n);
        let Some(agent) = &mut self.nodes[n].agent else { return };
        let commands = agent.step(now, input);
        self.watch_agent(n);
        for command in commands {
            if self.nodes[n].agent.is_none() {
                return;
            }
            let kind = CrashOn::of(&command);
            self.obey(n, command);
            if let Some(kind) = kind {
                self.crash_if_due(n, kind);
            }
        }
    }

    fn obey(&mut self, n: usize, command: Command) {
        match command {
            Command::Persist { id, durable } => {
                let delay = self.flush_delay(n);
                self.nodes[n].persisting = Some((id, durable));
                self.tell_agent(n, delay, ForAgent::Persist(id));
            }
            Command::Run { id, action } => self.begin_action(n, id, action),
            Command::Cancel { id } => {
                self.nodes[n].tasks.remove(&id);
            }
            Command::Write { id, txn } => self.store_write(n, id, txn),
            Command::Read => self.store_again(n),
            Command::Probe { node, epoch } => self.probe(n, &node, epoch),
            Command::Mind { until, k, members, .. } => self.told_to_mind(n, until, k, members),
            Command::Tell => self.send_status(n),
            Command::WishEnded { refused } => say!(self, "{} wish ended: {refused:?}", n),
            Command::Journal { .. } => {}
            Command::Wake { at } => {
                let delay = at.since(self.local(n)) * MS;
                self.tell_agent(n, delay, ForAgent::Wake);
            }
        }
    }

    /// A flush on this node's disk.
    pub fn flush_delay(&mut self, n: usize) -> u64 {
        let most = self.nodes[n].fsync;
        self.rng.between(most / 4, most)
    }

    fn persist(&mut self, n: usize, id: Id) {
        let Some((own, durable)) = self.nodes[n].persisting.take() else { return };
        if own != id {
            self.nodes[n].persisting = Some((own, durable));
            return;
        }
        let result = if self.nodes[n].full {
            Err("no space left on device".to_string())
        } else {
            self.write_disk(n, *durable);
            Ok(())
        };
        self.give(n, Input::Persisted { id, result });
    }

    pub fn write_disk(&mut self, n: usize, durable: Durable) {
        if durable.promise < self.nodes[n].disk.promise {
            self.violated(format!("{} lowers its promise", self.nodes[n].name));
        }
        self.check_unneeded(n, &durable);
        say!(self, "{n} disk {durable:?}");
        self.nodes[n].disk = durable;
    }

    /// The heartbeat, to all others and to the gateway.
    fn send_status(&mut self, n: usize) {
        let Some(agent) = &self.nodes[n].agent else { return };
        let status = agent.status();
        if status.report.as_ref().is_some_and(|report| report.epoch > self.nodes[n].disk.promise) {
            self.violated(format!("{n} reports an epoch that its disk does not hold"));
        }
        for to in 0..self.nodes.len() {
            if to == n || self.nodes[to].agent.is_none() || self.lost(n, to) {
                continue;
            }
            let delay = self.delay(n, to);
            self.after(delay, Event::Message { from: n, to, status: status.clone() });
        }
        if !self.net.clients[n] {
            let delay = self.rng.between(200, 1000);
            self.after(delay, Event::Gateway { from: n, status });
        }
    }

    fn start_agent(&mut self, n: usize) {
        if self.nodes[n].agent.is_some() {
            return;
        }
        say!(self, "{n} agent starts with {:?}", self.nodes[n].disk);
        let now = self.local(n);
        let node = &mut self.nodes[n];
        let identity = Identity {
            cluster: "sim".to_string(),
            service: "main".to_string(),
            node: node.name.clone(),
            host: "10.0.0.1".to_string(),
            port: 5432,
        };
        let mut agent = Agent::new(identity, self.policy.clone(), node.disk.clone(), now);
        agent.journals = false;
        if let Some(guard) = self.options.without {
            agent = agent.without(guard);
        }
        node.gen_ += 1;
        node.agent = Some(agent);
        node.serving = None;
        node.watch = Watch::default();
        self.tell_agent(n, 0, ForAgent::Tick);
        let delay = self.rng.between(MS, 20 * MS);
        self.tell_agent(n, delay, ForAgent::Look);
        if let Some(bad) = self.nodes[n].rot.found.clone() {
            let found = Box::new(Input::Scrubbed { bad });
            self.tell_agent(n, 1, ForAgent::Input(found));
        }
        self.store_again(n);
    }

    /// SIGKILL: what was under way may have reached the disk or not.
    pub fn kill_agent(&mut self, n: usize) {
        if self.nodes[n].agent.is_none() {
            return;
        }
        self.tally();
        let node = &mut self.nodes[n];
        node.agent = None;
        node.gen_ += 1;
        node.serving = None;
        node.watch = Watch::default();
        let tasks = std::mem::take(&mut node.tasks);
        say!(self, "{n} agent dies");
        if let Some((_, durable)) = self.nodes[n].persisting.take()
            && !self.nodes[n].full
            && self.rng.chance(500)
        {
            self.write_disk(n, *durable);
        }
        self.interrupted(n, tasks);
    }

    fn store_again(&mut self, n: usize) {
        let session = self.nodes[n].watch.session;
        self.tell_agent(n, 0, ForAgent::StoreRetry { session });
    }

    pub fn freeze(&mut self, n: usize, on: u64) {
        if self.nodes[n].frozen {
            return;
        }
        say!(self, "{n} freezes");
        self.nodes[n].frozen = true;
        self.nodes[n].froze = self.now;
        self.after(on, Event::Thaw { node: n });
    }

    fn thaw(&mut self, n: usize) {
        say!(self, "{n} resumes");
        self.nodes[n].frozen = false;
        self.nodes[n].thawed = self.now;
        let deferred = std::mem::take(&mut self.nodes[n].deferred);
        self.give_back(deferred);
        // The deadline comes first, whatever else there is to do.
        let delay = self.rng.between(0, 5 * MS);
        self.after(delay, Event::Minder { node: n });
    }

    fn thaw_server(&mut self, n: usize) {
        if !std::mem::take(&mut self.nodes[n].server.frozen) {
            return;
        }
        say!(self, "{n} PostgreSQL resumes");
        let deferred = std::mem::take(&mut self.nodes[n].server_deferred);
        self.give_back(deferred);
    }

    /// In the order in which it came, within a few milliseconds.
    fn give_back(&mut self, deferred: Vec<Event>) {
        let mut delay = 0;
        for event in deferred {
            delay += self.rng.between(0, 400);
            self.after(delay, event);
        }
    }

    pub fn freeze_server(&mut self, n: usize, on: u64) {
        if self.nodes[n].server.proc == Proc::Running && !self.nodes[n].server.frozen {
            say!(self, "{n} PostgreSQL freezes");
            self.nodes[n].server.frozen = true;
            self.after(on, Event::ServerThaw { node: n });
        }
    }
}

fn is_tick(event: &Event) -> bool {
    matches!(event, Event::Agent { what: ForAgent::Tick, .. })
}

fn node(name: &str, offset_ms: u64) -> Node {
    Node {
        name: name.to_string(),
        offset_ms,
        agent: None,
        gen_: 0,
        disk: Durable::default(),
        persisting: None,
        tasks: BTreeMap::new(),
        watch: Watch::default(),
        server: Server::new(),
        dir: Dir { garbage: true, ..Dir::default() },
        restored: None,
        stands: None,
        replaced: 0,
        minder: None,
        frozen: false,
        froze: 0,
        thawed: 0,
        deferred: Vec::new(),
        server_deferred: Vec::new(),
        fsync: 2 * MS,
        full: false,
        rot: Rot::default(),
        crash_on: None,
        serving: None,
        ticks: 0,
        calm_since: 0,
    }
}
