//! What goes wrong, when, for how long: drawn from the seed alone.

use crate::declared;
use crate::random::Random;
use crate::say;
use crate::server::{Proc, Receiver, Who};
use crate::world::{Event, ForAgent, ForServer, MS, S, World};
use everhold_core::agent::{Command, Input};
use everhold_core::decide::pg_name;
use everhold_core::kv::Txn;
use everhold_core::postgres::PgAction;
use everhold_core::term::Redundancy;
use everhold_core::view::Cause;

/// The cluster is made by then.
const READY: u64 = 15 * S;
/// No fault begins later, and none lasts longer than this after it.
const LAST: u64 = 232 * S;
const LONGEST: u64 = 12 * S;
/// Less faults than this in a seed is none worth running.
pub const FAULTS_MIN: usize = 20;

/// A moment at which an agent is killed: right after this command.
pub struct CrashOn;

impl CrashOn {
    /// The name of a command that something can be lost in.
    pub fn of(command: &Command) -> Option<&'static str> {
        match command {
            Command::Persist { .. } => Some("persist"),
            Command::Write { .. } => Some("write"),
            Command::Run { action, .. } => match action {
                PgAction::Observe | PgAction::Evidence | PgAction::Slots { .. } => None,
                action => Some(pg_name(action)),
            },
            Command::Cancel { .. }
            | Command::Read
            | Command::Probe { .. }
            | Command::Mind { .. }
            | Command::Tell
            | Command::WishEnded { .. }
            | Command::Journal { .. }
            | Command::Wake { .. } => None,
        }
    }
}

/// Where an agent can be killed.
const MOMENTS: [&str; 13] = [
    "persist",
    "write",
    "stop",
    "start",
    "set-source",
    "park",
    "trim",
    "promote",
    "set-sync",
    "barrier",
    "checkpoint",
    "rewind",
    "clone",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    KillPg,
    KillAgent,
    KillNode,
    FreezeNode,
    FreezePg,
    CutNode,
    CutAgents,
    CutOut,
    CutIn,
    CutServers,
    ResetConnection,
    SlowNet,
    Lossy,
    StoreStall,
    StoreCut,
    StoreFlaky,
    SlowWatch,
    ClockJump,
    SlowDisk,
    StalledDisk,
    FullDisk,
    CrashOn(&'static str, u32, bool),
    Switchover,
    Maintenance,
    AllDown,
    Respec,
    Wipe,
    Conflict,
    SlowReload,
    TwoLosses,
    /// The spec asks for so many acknowledgements, at least so many, at once.
    RespecTo(u32, u32),
    /// The next node that is promoted is lost so many µs later.
    KillPromoted(u64),
    /// The node's agent dies when a campaign opens, before it can hear of it; PostgreSQL runs on.
    KillCalled,
    /// The next publication of a term takes so many µs to the store, and nobody hears of it.
    LatePublish(u64),
    /// The source of the next copy is lost so many µs after the copy has ended.
    KillSource(u64),
    /// A client writes megabytes at once.
    Bulk,
    /// Everything but one node is lost, and the operator forces that one, to lead or to be put back.
    Force,
    /// Data of another cluster is put in place of a standby's.
    Foreign,
    /// The service is put back to an older state, on this node.
    Restore,
    /// A record of a newer version stands in the store, until all agents are of it.
    Newer,
}

#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub node: usize,
    pub other: usize,
    pub lasts: u64,
}

/// The faults of a seed.
pub struct Plan {
    pub rng: Random,
    /// Of which nodes are told to leave; a stream of its own.
    leaves: Random,
    /// Of restores, the same.
    pub restores: Random,
    pub faults: Vec<Fault>,
    active: Vec<bool>,
    touched: Vec<u32>,
    calm: Option<u64>,
    next: u64,
    stray: bool,
    /// The leader follows a standby into the dark: when, and which.
    second_loss: Option<(u64, usize)>,
    /// Of three nodes one is left: writes are to flow at this time, if the policy allows.
    survives: Option<u64>,
    force: Option<(u64, usize)>,
    pub kill_promoted: Option<u64>,
    pub late_publish: Option<u64>,
    pub kill_called: Option<usize>,
    pub kill_source: Option<u64>,
    pub ready: bool,
}

impl Plan {
    pub fn new(seed: u64) -> Plan {
        let mut rng = Random::new(seed, 2);
        let stray = rng.chance(80);
        Plan {
            rng,
            leaves: Random::new(seed, 4),
            restores: Random::new(seed, 5),
            faults: Vec::new(),
            active: Vec::new(),
            touched: vec![0; 5],
            calm: None,
            next: READY,
            stray,
            second_loss: None,
            survives: None,
            force: None,
            kill_promoted: None,
            late_publish: None,
            kill_called: None,
            kill_source: None,
            ready: false,
        }
    }

    /// A foreign history file turns up, as out of an archive.
    pub fn stray_history(&mut self) -> bool {
        let stray = self.stray && self.ready && self.rng.chance(100);
        if stray {
            // What that node has is lost, one more loss than the two. Once is enough.
            self.stray = false;
            self.survives = None;
            self.second_loss = None;
        }
        stray
    }

    /// Two losses are to be survived: bad pages would be a third.
    pub fn is_counting(&self) -> bool {
        self.second_loss.is_some() || self.survives.is_some() || self.force.is_some()
    }

    /// Since when there has been no fault; `None`: there is one.
    pub fn calm_since(&self) -> Option<u64> {
        self.calm
    }

    pub fn kind(&mut self) -> Kind {
        let moment = MOMENTS[self.rng.index(MOMENTS.len())];
        let (nth, both) = (self.rng.below(3) as u32, self.rng.chance(300));
        #[rustfmt::skip]
        let kinds = [
            (10, Kind::KillPg), (8, Kind::KillAgent), (8, Kind::KillNode), (6, Kind::FreezeNode),
            (3, Kind::FreezePg), (6, Kind::CutNode), (3, Kind::CutAgents), (3, Kind::CutOut),
            (3, Kind::CutIn), (4, Kind::CutServers), (5, Kind::ResetConnection), (3, Kind::SlowNet),
            (3, Kind::Lossy), (3, Kind::StoreStall), (3, Kind::StoreCut), (3, Kind::StoreFlaky),
            (2, Kind::SlowWatch), (2, Kind::ClockJump), (3, Kind::SlowDisk), (2, Kind::StalledDisk), (2, Kind::FullDisk),
            (14, Kind::CrashOn(moment, nth, both)), (8, Kind::Switchover), (2, Kind::Maintenance),
            (3, Kind::AllDown), (4, Kind::Respec), (4, Kind::Conflict), (4, Kind::SlowReload),
        ];
        let total: u64 = kinds.iter().map(|(weight, _)| weight).sum();
        let mut at = self.rng.below(total);
        for (weight, kind) in kinds {
            if at < weight {
                return kind;
            }
            at -= weight;
        }
        Kind::KillPg
    }
}

impl World {
    /// Once a second: the next volley of faults, when it is time.
    pub fn plan_ahead(&mut self) {
        if !self.plan.ready {
            self.plan.ready = self.unhealthy().is_none();
            if self.now > 2 * READY && !self.plan.ready {
                let why =
                    format!("the cluster was not made: {:?}{}", self.unhealthy(), self.describe());
                self.violated(why);
            }
            self.plan.calm = self.plan.ready.then_some(self.now);
            return;
        }
        self.second_loss();
        if self.now < self.plan.next || self.now > LAST {
            return;
        }
        let healthy = self.plan.calm.is_some() && self.unhealthy().is_none();
        let count = self.nodes.len();
        let leader = self.leader().unwrap_or(0);
        let due = (FAULTS_MIN as u64 + 3) * self.now / LAST;
        let behind = (self.plan.faults.len() as u64) < due;
        let single = self.plan.rng.chance(600) && !behind;
        let volley = if behind { 6 } else { self.plan.rng.between(2, 4) };
        let mut last = 0;
        let scripted = self.plan.rng.chance(650) && self.now + 45 * S < LAST;
        if healthy && self.plan.restores.chance(80) && self.now + 60 * S < LAST {
            last = self.restore_some(count);
        } else if healthy && single && scripted {
            last = self.script(leader);
        } else if healthy && single {
            let rng = &mut self.plan.rng;
            let kind = match rng.below(15) {
                0..5 => Kind::KillPg,
                5..8 => Kind::KillNode,
                8..10 => Kind::Wipe,
                10..12 => Kind::TwoLosses,
                12 => Kind::Force,
                13 => Kind::Foreign,
                _ => Kind::Newer,
            };
            let other = (leader + 1 + rng.index(count - 1)) % count;
            let long = rng.spread(100 * MS, LONGEST);
            let node = match kind {
                Kind::Wipe => (leader + rng.index(count)) % count,
                Kind::Foreign => other,
                _ => leader,
            };
            let slow = matches!(kind, Kind::TwoLosses | Kind::Force);
            let lasts = if slow { 32 * S } else { long };
            if !slow || self.now + 45 * S < LAST {
                last = lasts;
                self.add(0, Fault { kind, node, other, lasts });
            }
        } else {
            for _ in 0..volley {
                let rng = &mut self.plan.rng;
                let begins = rng.spread(MS, 4 * S);
                let lasts = rng.spread(50 * MS, LONGEST);
                let kind = self.plan.kind();
                let rng = &mut self.plan.rng;
                let node = if rng.chance(450) { leader } else { rng.index(count) };
                let other = (node + 1 + rng.index(count - 1)) % count;
                let lasts = if kind == Kind::StalledDisk { 22 * S } else { lasts };
                last = last.max(begins + lasts);
                self.add(begins, Fault { kind, node, other, lasts });
            }
        }
        let rest =
            if self.plan.rng.chance(350) { 24 * S } else { self.plan.rng.between(2 * S, 9 * S) };
        self.plan.next = self.now + last + rest;
    }

    /// Two losses some seconds apart: what is left goes on, where the policy lets it.
    fn second_loss(&mut self) {
        if let Some((at, n)) = self.plan.second_loss
            && self.now >= at
        {
            self.plan.second_loss = None;
            say!(self, "the second loss: {n}");
            self.kill_node(n);
            let redundancy = self.policy.redundancy;
            // One of those that are there leads; who is told to leave acknowledges nothing.
            let there = self.nodes.iter().filter(|it| it.agent.is_some() && !self.leaves(&it.name));
            let left = (there.count() as u32).saturating_sub(1);
            let may_lead = |node: &crate::world::Node| {
                node.agent.is_some() && self.policy.preferences[&node.name].failover
            };
            let rotten = (0..self.nodes.len()).any(|n| self.is_rotten(n));
            let able = !rotten && left >= redundancy.floor && self.nodes.iter().any(may_lead);
            self.plan.survives = able.then_some(self.now + 15 * S);
        }
        if let Some((at, n)) = self.plan.force
            && self.now >= at
        {
            self.plan.force = None;
            if self.plan.restores.chance(400) {
                self.restore(n, true);
            } else {
                self.ghost.excused = true;
                self.give(n, Input::Wished { cause: Cause::Force { to: None } });
            }
        }
        if self.plan.survives.is_some_and(|at| self.now >= at) {
            self.plan.survives = None;
            if self.now > self.clients.last_ack + 5 * S {
                let state = self.describe();
                self.violated(format!("two losses, and no write since{state}"));
            }
        }
    }

    pub fn add(&mut self, begins: u64, fault: Fault) {
        let at = self.plan.faults.len();
        self.plan.faults.push(fault);
        self.plan.active.push(false);
        self.after(begins, Event::Fault { at });
    }

    /// The node that leads by the store.
    pub fn leader(&self) -> Option<usize> {
        let term = self.store.read_term()?;
        self.nodes.iter().position(|node| node.name == term.leader.node)
    }

    pub fn fault(&mut self, at: usize) {
        let fault = self.plan.faults[at].clone();
        say!(
            self,
            "FAULT {:?} of {} ({}) for {} ms",
            fault.kind,
            fault.node,
            fault.other,
            fault.lasts / MS
        );
        let alone = self.plan.calm.is_some() && self.unhealthy().is_none();
        let leads = self.leader() == Some(fault.node);
        self.plan.active[at] = true;
        self.plan.calm = None;
        self.clients.outage = None;
        for n in self.touches(&fault) {
            self.plan.touched[n] += 1;
            self.nodes[n].calm_since = u64::MAX / 2;
        }
        if alone && leads {
            let life = self.nodes[fault.node].server.life;
            self.clients.outage = match fault.kind {
                Kind::KillPg => Some(("kill PostgreSQL", self.now, fault.node, life)),
                Kind::KillNode => Some(("kill node", self.now, fault.node, life)),
                Kind::FreezeNode => Some(("freeze node", self.now, fault.node, life)),
                Kind::Switchover => Some(("switchover", self.now, fault.node, life)),
                _ => None,
            };
        }
        self.strike(&fault);
        self.after(fault.lasts, Event::Heal { at });
    }

    /// The nodes that can't be called healthy while it lasts.
    fn touches(&self, fault: &Fault) -> Vec<usize> {
        match fault.kind {
            Kind::Lossy
            | Kind::AllDown
            | Kind::Force
            | Kind::Restore
            | Kind::Newer
            | Kind::SlowReload
            | Kind::Respec
            | Kind::Maintenance => (0..self.nodes.len()).collect(),
            Kind::StoreStall
            | Kind::StoreFlaky
            | Kind::SlowWatch
            | Kind::StoreCut
            | Kind::LatePublish(_) => Vec::new(),
            Kind::CutServers | Kind::TwoLosses => vec![fault.node, fault.other],
            _ => vec![fault.node],
        }
    }

    fn strike(&mut self, fault: &Fault) {
        let (n, other) = (fault.node, fault.other);
        let most = fault.lasts;
        match fault.kind {
            Kind::KillPg => self.kill_postmaster(n),
            Kind::KillAgent => self.kill_agent(n),
            Kind::KillNode => self.kill_node(n),
            Kind::FreezeNode => self.freeze(n, most),
            Kind::FreezePg => self.freeze_server(n, most),
            Kind::CutNode => self.cut(n, true, true, true),
            Kind::CutAgents => {
                for m in 0..self.nodes.len() {
                    self.net.agents[n][m] = true;
                    self.net.agents[m][n] = true;
                }
            }
            Kind::CutOut => self.cut(n, true, false, false),
            Kind::CutIn => self.cut(n, false, true, false),
            Kind::CutServers => {
                self.net.servers[n][other] = true;
                self.net.servers[other][n] = true;
            }
            Kind::ResetConnection => {
                if let Receiver::Streaming { conn, .. } = self.nodes[n].server.receiver {
                    self.receiver_lost(n, conn);
                }
            }
            Kind::SlowNet => self.net.slow[n] = self.plan.rng.spread(5 * MS, 300 * MS),
            Kind::Lossy => self.net.loss_per_mille = self.plan.rng.between(50, 500),
            Kind::StoreStall => self.store.stalled_until = self.now + most,
            Kind::StoreCut => {
                self.net.store[n] = true;
                if self.nodes[n].watch.alive {
                    self.break_watch(n);
                }
            }
            Kind::StoreFlaky => self.store.flaky = 300,
            Kind::SlowWatch => self.store.watch = S,
            Kind::ClockJump => self.nodes[n].offset_ms += most / MS,
            Kind::SlowDisk => self.nodes[n].fsync = self.plan.rng.spread(20 * MS, 800 * MS),
            Kind::StalledDisk => self.nodes[n].fsync = 40 * S,
            Kind::FullDisk => self.nodes[n].full = true,
            // A server that runs is not started.
            Kind::CrashOn("start", ..) => {
                self.nodes[n].crash_on = Some(("start", 0));
                self.kill_postmaster(n);
            }
            Kind::CrashOn(moment, nth, _) => self.nodes[n].crash_on = Some((moment, nth)),
            Kind::Switchover => self.wish(n, other),
            Kind::Maintenance => {
                let txn = Txn::new().put(self.store.keys.maintenance(), "{}");
                self.store_put(&txn);
            }
            Kind::AllDown => (0..self.nodes.len()).for_each(|n| self.kill_node(n)),
            Kind::Respec => self.respec(),
            Kind::RespecTo(wanted, floor) => {
                self.policy.redundancy = Redundancy { wanted, floor };
                self.tell_spec(MS);
            }
            Kind::KillPromoted(delay) => self.plan.kill_promoted = Some(delay),
            Kind::LatePublish(delay) => self.plan.late_publish = Some(delay),
            Kind::KillCalled => self.plan.kill_called = Some(n),
            Kind::KillSource(delay) => self.plan.kill_source = Some(delay),
            Kind::Bulk => {
                let who = Who::Client { writer: 3, attempt: 0 };
                self.tell_server(n, MS, ForServer::Commit { who });
            }
            Kind::Wipe => self.wipe(n),
            Kind::Conflict => self.nodes[n].server.conflict_until = self.now + most,
            Kind::SlowReload => {
                self.net.reload = 2 * S;
                self.net.connect = 400 * MS;
                self.net.lingers = 800;
            }
            Kind::Force => self.leave_only(other),
            Kind::Foreign => self.foreign(n),
            Kind::Restore => self.restore(n, false),
            Kind::Newer => {
                let key = format!("{}lease", self.store.keys.prefix);
                self.store_put(&Txn::new().put(key, "{\"version\":99,\"record\":{\"new\":1}}"));
            }
            Kind::TwoLosses => {
                self.kill_node(other);
                self.plan.second_loss = Some((self.now + self.plan.rng.between(4 * S, 6 * S), n));
            }
        }
    }

    /// All nodes but one are lost at once.
    fn leave_only(&mut self, n: usize) {
        for m in (0..self.nodes.len()).filter(|m| *m != n) {
            self.kill_node(m);
        }
        self.plan.force = Some((self.now + 9 * S, n));
    }

    fn foreign(&mut self, n: usize) {
        self.kill_node(n);
        self.nodes[n].dir.sysid += 1;
        self.nodes[n].disk.sysid = Some(self.nodes[n].dir.sysid);
        self.restart(n);
    }

    pub fn kill_node(&mut self, n: usize) {
        self.kill_agent(n);
        if self.nodes[n].server.proc != Proc::Down {
            self.end_server(n);
        }
    }

    fn cut(&mut self, n: usize, out: bool, back: bool, clients: bool) {
        for m in (0..self.nodes.len()).filter(|m| *m != n) {
            self.net.agents[n][m] |= out;
            self.net.servers[n][m] |= out;
            self.net.agents[m][n] |= back;
            self.net.servers[m][n] |= back;
        }
        if self.plan.rng.chance(500) {
            self.net.store[n] = true;
            self.break_watch(n);
        }
        self.net.clients[n] |= clients && self.plan.rng.chance(500);
    }

    fn wish(&mut self, n: usize, other: usize) {
        let to = self.plan.rng.chance(500).then(|| self.nodes[other].name.clone());
        let asked = if self.plan.rng.chance(900) { self.leader().unwrap_or(n) } else { n };
        self.give(asked, Input::Wished { cause: Cause::Switchover { to } });
    }

    fn respec(&mut self) {
        let count = self.nodes.len();
        self.policy.redundancy = declared::redundancy(&mut self.plan.rng, count);
        // Some standby starts anew, as a rollout has it.
        let standby = self.plan.leaves.index(count);
        self.give(standby, Input::Restart);
        self.policy.duties = declared::duties(&mut self.plan.leaves, &self.policy.nodes);
        self.tell_spec(3 * S);
    }

    fn tell_spec(&mut self, within: u64) {
        say!(self, "spec: {:?}, {:?}", self.policy.redundancy, self.policy.duties);
        for n in 0..self.nodes.len() {
            let delay = self.plan.rng.spread(MS, within);
            self.tell_agent(n, delay, ForAgent::Spec);
        }
    }

    /// Kills the agent with the command it was waited for.
    pub fn crash_if_due(&mut self, n: usize, moment: &'static str) {
        let Some((waited, left)) = &mut self.nodes[n].crash_on else { return };
        if *waited != moment {
            return;
        }
        if *left > 0 {
            *left -= 1;
            return;
        }
        self.nodes[n].crash_on = None;
        say!(self, "{n} crashes after {moment}");
        let whole = self.plan.rng.chance(300);
        if self.plan.rng.chance(500) {
            // What it had to say with that still goes out.
            let delay = self.plan.rng.between(1, 10 * MS);
            self.tell_agent(n, delay, ForAgent::Die { whole });
        } else {
            self.crash(n, whole);
        }
        // Back at once, it finds its server starting.
        let quick = moment == "start" && self.plan.rng.chance(600);
        let most = if quick { 40 * MS } else { 4 * S };
        let delay = self.plan.rng.spread(12 * MS, most);
        self.after(delay, Event::AgentStarts { node: n });
    }

    /// The agent dies, or the whole node with it.
    pub fn crash(&mut self, n: usize, whole: bool) {
        if whole {
            self.kill_node(n);
        } else {
            self.kill_agent(n);
        }
    }

    pub fn heal(&mut self, at: usize) {
        let fault = self.plan.faults[at].clone();
        say!(self, "HEAL {:?} of {}", fault.kind, fault.node);
        let (n, count) = (fault.node, self.nodes.len());
        match fault.kind {
            Kind::KillPg
            | Kind::FreezeNode
            | Kind::FreezePg
            | Kind::ResetConnection
            | Kind::ClockJump
            | Kind::Switchover
            | Kind::Respec
            | Kind::RespecTo(..)
            | Kind::Bulk
            | Kind::Conflict => {}
            Kind::KillPromoted(_) | Kind::KillSource(_) => {
                self.plan.kill_promoted = None;
                self.plan.kill_source = None;
                (0..count).for_each(|n| self.restart(n));
            }
            Kind::LatePublish(_) => self.plan.late_publish = None,
            Kind::KillCalled => {
                self.plan.kill_called = None;
                self.restart(n);
            }
            Kind::KillAgent | Kind::KillNode | Kind::Wipe => self.restart(n),
            Kind::CutNode | Kind::CutAgents | Kind::CutOut | Kind::CutIn | Kind::CutServers => {
                for m in 0..count {
                    for (a, b) in [(n, m), (m, n)] {
                        self.net.agents[a][b] = false;
                        self.net.servers[a][b] = false;
                    }
                }
                self.net.clients[n] = false;
                self.net.store[n] = false;
            }
            Kind::SlowNet => self.net.slow[n] = 0,
            Kind::Lossy => self.net.loss_per_mille = 0,
            Kind::StoreStall | Kind::Restore => {}
            Kind::StoreCut => self.net.store[n] = false,
            Kind::StoreFlaky => self.store.flaky = 0,
            Kind::SlowWatch => self.store.watch = 10 * MS,
            Kind::SlowDisk | Kind::StalledDisk => {
                self.nodes[n].fsync = 2 * MS;
                // What hung in the disk is done now.
                if let Some(id) = self.nodes[n].persisting.as_ref().map(|(id, _)| *id) {
                    self.tell_agent(n, 2 * MS, ForAgent::Persist(id));
                }
            }
            Kind::FullDisk => self.nodes[n].full = false,
            Kind::CrashOn(..) => {
                self.nodes[n].crash_on = None;
                self.restart(n);
            }
            Kind::Maintenance => {
                let txn = Txn::new().delete(self.store.keys.maintenance());
                self.store_put(&txn);
            }
            Kind::AllDown => {
                for n in 0..count {
                    let delay = self.plan.rng.spread(MS, 5 * S);
                    self.after(delay, Event::AgentStarts { node: n });
                }
            }
            Kind::SlowReload => {
                let calm = crate::network::Net::new(count);
                self.net.reload = calm.reload;
                self.net.connect = calm.connect;
                self.net.lingers = calm.lingers;
            }
            Kind::Force => (0..count).for_each(|n| self.restart(n)),
            Kind::Foreign => {
                self.wipe(n);
                self.restart(n);
            }
            Kind::Newer => {
                let key = format!("{}lease", self.store.keys.prefix);
                self.store_put(&Txn::new().delete(key));
                for n in 0..count {
                    self.kill_agent(n);
                    self.restart(n);
                }
            }
            Kind::TwoLosses => {
                self.restart(fault.other);
                self.restart(n);
            }
        }
        for n in self.touches(&fault) {
            self.plan.touched[n] -= 1;
            if self.plan.touched[n] == 0 {
                self.nodes[n].calm_since = self.now;
            }
        }
        self.plan.active[at] = false;
        if !self.plan.active.contains(&true) {
            self.plan.calm = Some(self.now);
        }
    }

    fn restart(&mut self, n: usize) {
        self.after(0, Event::AgentStarts { node: n });
    }
}
