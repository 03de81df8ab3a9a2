//! The actions on a server, in stages, so that an agent can die between any two of them.

use crate::say;
use crate::server::{Proc, Receiver, Row, Who};
use crate::wal::{Dir, History, Rec, START};
use crate::world::{Event, ForAgent, ForServer, MS, S, World};
use everhold_core::agent::{Id, Input};
use everhold_core::ids::{Epoch, Lsn, Member};
use everhold_core::postgres::{
    PgAction, PgFacts, PgOutcome, Process, Receiver as Receiving, Source, StopMode, Walsender,
};
use everhold_core::term::{Branch, Set};
use std::collections::BTreeMap;

/// A session that gets no answer gives up.
const QUERY: u64 = S;
/// A park that can't be proven gives up.
const PARK: u64 = 5 * S;
const POLL: u64 = 5 * MS;
const SYSID: u64 = 7_000_001;

/// An action under way.
#[derive(Clone, Debug)]
pub struct Task {
    pub action: PgAction,
    pub stage: u32,
    pub began: u64,
    /// The server's life at its begin.
    pub life: u32,
    /// Where the copy will begin to be consistent, and what it will hold.
    pub copy: Option<Box<Dir>>,
    pub end: u64,
}

/// What comes next.
enum Next {
    In(u64),
    /// The same stage, later.
    Again(u64),
    Done(PgOutcome),
    Failed(&'static str),
}

impl World {
    pub fn begin_action(&mut self, n: usize, id: Id, action: PgAction) {
        if !matches!(action, PgAction::Observe | PgAction::Evidence) {
            say!(self, "{n} runs {action:?}");
        }
        let life = self.nodes[n].server.life;
        let task = Task { action, stage: 0, began: self.now, life, copy: None, end: 0 };
        let stop = matches!(task.action, PgAction::Stop { .. });
        self.nodes[n].tasks.insert(id, task);
        let delay = if stop { 0 } else { self.rng.between(300, 2 * MS) };
        self.tell_agent(n, delay, ForAgent::Step(id));
    }

    pub fn step(&mut self, n: usize, id: Id) {
        let Some(mut task) = self.nodes[n].tasks.remove(&id) else { return };
        let next = self.advance(n, id, &mut task);
        let result = match next {
            Next::In(delay) | Next::Again(delay) => {
                task.stage += u32::from(matches!(next, Next::In(_)));
                self.nodes[n].tasks.insert(id, task);
                self.tell_agent(n, delay, ForAgent::Step(id));
                return;
            }
            Next::Done(outcome) => Ok(outcome),
            Next::Failed(why) => Err(why.to_string()),
        };
        if !matches!(task.action, PgAction::Observe | PgAction::Evidence) {
            say!(self, "{n} {}: {result:?}", everhold_core::decide::pg_name(&task.action));
        }
        let facts = self.facts(n);
        self.give(n, Input::PgDone { id, result, facts });
    }

    /// One stage. Whatever is asked of a frozen server waits, but for the signal that ends it.
    fn advance(&mut self, n: usize, id: Id, task: &mut Task) -> Next {
        let own = matches!(
            task.action,
            PgAction::Stop { .. }
                | PgAction::Rewind { .. }
                | PgAction::Clone { .. }
                | PgAction::PutBack { .. }
        );
        if self.nodes[n].server.frozen && !own {
            let observes = matches!(task.action, PgAction::Observe);
            let over = self.now - task.began > if observes { QUERY } else { 10 * S };
            return match (over, observes) {
                (true, true) => Next::Done(PgOutcome::Done),
                (true, false) => Next::Failed("no answer"),
                (false, _) => Next::Again(50 * MS),
            };
        }
        match task.action.clone() {
            PgAction::Bootstrap => self.bootstrap(n, task),
            PgAction::Stop { mode } => self.stop(n, mode, task),
            PgAction::Start { line, source } => self.start(n, &line, source, task),
            PgAction::SetSource { source } => self.set_source(n, source, task),
            PgAction::Park => self.park(n, task),
            PgAction::Trim { line } => self.trim(n, &line, task),
            PgAction::Promote { branch, reserved, slots } => {
                self.promote(n, &branch, &reserved, &slots, task)
            }
            PgAction::SetSync { names } => self.set_sync(n, &names, task),
            PgAction::Barrier { .. } => self.barrier(n, id, task),
            PgAction::Evidence => self.evidence(n, task),
            PgAction::Checkpoint => self.checkpoint(n, task),
            PgAction::Slots { names, .. } => self.slots(n, &names),
            PgAction::Rewind { source, fork, .. } => self.copy(n, &source, Some(fork), task),
            PgAction::Clone { source, .. } => self.copy(n, &source, None, task),
            PgAction::PutBack { id, .. } => self.put_back(n, &id, task),
            PgAction::Observe => Next::Done(PgOutcome::Done),
        }
    }

    fn running(&self, n: usize, task: &Task) -> bool {
        let server = &self.nodes[n].server;
        server.life == task.life && server.proc == Proc::Running
    }

    fn bootstrap(&mut self, n: usize, task: &Task) -> Next {
        if task.stage == 0 {
            return Next::In(self.rng.between(200 * MS, 600 * MS));
        }
        let uid = self.ghost.next_uid();
        let first = Rec { uid, tli: 1, epoch: 0, end: START + 4_000 };
        self.nodes[n].dir = Dir {
            wal: vec![first],
            replayed: 1,
            tli: 1,
            sysid: SYSID,
            checkpoint_tli: 1,
            ..Dir::default()
        };
        Next::Done(PgOutcome::Bootstrapped { sysid: SYSID })
    }

    fn stop(&mut self, n: usize, mode: StopMode, task: &Task) -> Next {
        let fast = mode == StopMode::Fast && !self.nodes[n].server.frozen;
        if task.stage == 0 && fast && self.nodes[n].server.proc == Proc::Running {
            let primary = self.nodes[n].server.is_primary();
            let waiting = std::mem::take(&mut self.nodes[n].server.waiting);
            for commit in waiting {
                // The wait ends with a warning: not an acknowledgement.
                self.server_gone_for(ForServer::Commit { who: commit.who });
            }
            if primary {
                self.append(n, Who::Nobody);
                self.nodes[n].dir.checkpoint_tli = self.nodes[n].dir.tli;
            }
            self.nodes[n].server.closing = true;
            return Next::In(self.rng.spread(10 * MS, 200 * MS));
        }
        if task.stage == 0 {
            // The signals go out at once; the proof takes a moment.
            if self.rng.chance(700) {
                self.end_server(n);
            }
            return Next::In(self.rng.between(2 * MS, 20 * MS));
        }
        self.end_server(n);
        Next::Done(PgOutcome::Done)
    }

    fn start(&mut self, n: usize, line: &[Branch], source: Option<Source>, task: &Task) -> Next {
        let node = &mut self.nodes[n];
        match task.stage {
            0 => {
                if node.full {
                    return Next::Failed("no space left on device");
                }
                if node.dir.garbage {
                    return Next::Failed("no data directory");
                }
                if node.server.proc != Proc::Down {
                    return Next::Failed("something runs there");
                }
                for tli in node.dir.foreign(line) {
                    node.dir.history.remove(&tli);
                }
                let closed = everhold_core::postgres::CLOSED;
                node.server.shown = std::rc::Rc::new(crate::server::Names::parse(closed));
                node.server.defined = true;
                node.server.life += 1;
                node.server.pid += 1;
                node.server.proc = Proc::Starting;
                node.server.recovery = true;
                node.server.source = source;
                let delay = self.rng.spread(20 * MS, 300 * MS);
                self.tell_server(n, delay, ForServer::Started { at_recovery: true });
                Next::In(delay + MS)
            }
            _ if node.server.proc == Proc::Running => Next::Done(PgOutcome::Done),
            _ if node.server.proc != Proc::Starting => Next::Failed("it did not come up"),
            _ if task.stage < 200 => Next::In(POLL),
            // It recovers for longer.
            _ => Next::Done(PgOutcome::Done),
        }
    }

    fn set_source(&mut self, n: usize, source: Option<Source>, task: &Task) -> Next {
        if !self.running(n, task) {
            return Next::Failed("not running");
        }
        if task.stage == 0 {
            self.nodes[n].rot.let_go &= source.is_none();
            self.nodes[n].server.source = source;
            let delay = self.rng.spread(MS, 20 * MS);
            self.tell_server(n, delay, ForServer::TakeSource);
            return Next::In(self.rng.between(MS, 3 * MS));
        }
        Next::Done(PgOutcome::Done)
    }

    fn park(&mut self, n: usize, task: &Task) -> Next {
        if !self.running(n, task) || !self.nodes[n].server.recovery {
            return Next::Failed("not a running standby");
        }
        if self.now - task.began > PARK {
            return Next::Failed("not quiet");
        }
        if self.now - task.began > 50 * MS {
            self.nodes[n].server.conflict_until = 0;
            self.tell_server(n, 0, ForServer::TakeSource);
            self.tell_server(n, 0, ForServer::Replay);
        }
        let (server, dir) = (&self.nodes[n].server, &self.nodes[n].dir);
        let quiet = server.source.is_none()
            && server.taken.is_none()
            && server.receiver == Receiver::None
            && server.conflict_until <= self.now
            && dir.replayed == dir.wal.len();
        if !quiet {
            return Next::In(POLL);
        }
        let (end, tli) = (Lsn(dir.end()), dir.tli);
        self.is_let_go(n);
        Next::Done(PgOutcome::Parked { end, tli })
    }

    fn trim(&mut self, n: usize, line: &[Branch], task: &mut Task) -> Next {
        if task.stage > 0 {
            return match self.nodes[n].server.proc {
                Proc::Running => Next::Done(PgOutcome::Trimmed { restarted: true }),
                Proc::Starting if task.stage < 200 => Next::In(POLL),
                _ => Next::Failed("it did not come up"),
            };
        }
        if !self.running(n, task) {
            return Next::Failed("not running");
        }
        let foreign = self.nodes[n].dir.foreign(line);
        if foreign.is_empty() {
            return Next::Done(PgOutcome::Trimmed { restarted: false });
        }
        self.end_server(n);
        let node = &mut self.nodes[n];
        for tli in foreign {
            node.dir.history.remove(&tli);
        }
        node.dir.tli = node.dir.last_tli();
        node.server.proc = Proc::Starting;
        node.server.pid += 1;
        let delay = self.rng.spread(20 * MS, 300 * MS);
        self.tell_server(n, delay, ForServer::Started { at_recovery: true });
        Next::In(delay + MS)
    }

    fn promote(
        &mut self,
        n: usize,
        branch: &Branch,
        reserved: &[u32],
        slots: &[String],
        task: &Task,
    ) -> Next {
        if !self.running(n, task) {
            return Next::Failed("not running");
        }
        // Where nobody else could lead after it, only an operator can help: not this simulation.
        let others = self.can_do_without(n);
        let stray = task.stage == 1 && others && self.plan.stray_history();
        let node = &mut self.nodes[n];
        match task.stage {
            0 => {
                node.dir.slots.extend(slots.iter().cloned());
                Next::In(self.rng.between(MS, 5 * MS))
            }
            1 => {
                let parent = node.dir.last_tli();
                for tli in reserved {
                    let file = History { parent, fork: 0x28, reserved: true };
                    node.dir.history.entry(*tli).or_insert(file);
                }
                if stray {
                    let file = History { parent, fork: 0x28, reserved: true };
                    node.dir.history.insert(branch.tli, file);
                }
                Next::In(self.rng.between(5 * MS, 30 * MS))
            }
            _ if !node.server.recovery => Next::Failed("it was promoted before"),
            _ => {
                let (tli, parent, fork) = self.become_primary(n, branch.epoch);
                Next::Done(PgOutcome::Promoted { tli, parent, fork: Lsn(fork) })
            }
        }
    }

    /// The sets in force are covered, and somebody can lead, without what this server and those who
    /// stream from it hold.
    fn can_do_without(&self, n: usize) -> bool {
        let Some(term) = self.store.read_term() else { return false };
        let there = |m: &&Member| {
            let node = self.nodes.iter().position(|node| node.name == m.node);
            let member = node.map(|node| self.nodes[node].disk.member(&m.node));
            let streams = |row: &Row| row.live && Some(row.standby) == node;
            let away = node == Some(n) || self.nodes[n].server.rows.iter().any(streams);
            !away && member.as_ref() == Some(*m)
        };
        let fit = |m: &Member| self.policy.preferences[&m.node].failover;
        let covered = |set: &Set| {
            let members = set.members.iter().filter(there).count() as u32;
            there(&&set.leader) || (!set.is_alone() && members >= set.cover_needed())
        };
        let named = term.inforce.iter().flat_map(|set| set.members.iter().chain([&set.leader]));
        term.inforce.iter().all(covered) && named.filter(there).any(fit)
    }

    /// PostgreSQL takes the next free number and writes its first record on it.
    fn become_primary(&mut self, n: usize, epoch: Epoch) -> (u32, u32, u64) {
        let node = &mut self.nodes[n];
        let parent = node.dir.target();
        let newest = node.dir.history.keys().last().copied().unwrap_or(1);
        let tli = newest.max(node.dir.tli) + 1;
        let fork = node.dir.end();
        node.dir.history.insert(tli, History { parent, fork, reserved: false });
        node.dir.tli = tli;
        node.server.recovery = false;
        node.server.epoch = epoch;
        node.server.inherited = node.dir.wal.len();
        self.cut_receiver(n);
        self.append(n, Who::Nobody);
        if let Some(delay) = self.plan.kill_promoted.take() {
            self.after(delay, Event::Kill { node: n });
        }
        (tli, parent, fork)
    }

    fn set_sync(&mut self, n: usize, names: &str, task: &Task) -> Next {
        if !self.running(n, task) {
            return Next::Failed("not running");
        }
        if task.stage == 0 {
            self.reload_names(n, names);
            return Next::In(self.rng.between(MS, 4 * MS));
        }
        Next::Done(PgOutcome::Done)
    }

    fn barrier(&mut self, n: usize, id: Id, task: &Task) -> Next {
        if !self.running(n, task) || self.nodes[n].server.recovery {
            return Next::Failed("the server went away");
        }
        if task.stage == 0 {
            let delay = self.flush_delay(n);
            let who = Who::Barrier { gen_: self.nodes[n].gen_, id };
            self.tell_server(n, delay, ForServer::Commit { who });
        } else if task.end > 0 {
            return Next::Done(PgOutcome::Done);
        }
        // Its acknowledgement wakes it; this only notices that the server went away.
        Next::In(100 * MS)
    }

    fn evidence(&mut self, n: usize, task: &mut Task) -> Next {
        if !self.running(n, task) || self.nodes[n].server.recovery {
            return Next::Failed("the server went away");
        }
        if task.stage == 0 {
            return Next::In(self.flush_delay(n));
        }
        match self.append(n, Who::Nobody) {
            Some(end) => Next::Done(PgOutcome::Evidence { end: Lsn(end) }),
            None => Next::Failed("no space left on device"),
        }
    }

    fn checkpoint(&mut self, n: usize, task: &Task) -> Next {
        if !self.running(n, task) {
            return Next::Failed("not running");
        }
        if task.stage == 0 {
            // The checkpointer reads its configuration before it begins.
            self.for_server(n, ForServer::ReloadCheckpointer);
            return Next::In(self.rng.spread(5 * MS, 200 * MS));
        }
        self.nodes[n].dir.checkpoint_tli = self.nodes[n].dir.tli;
        Next::Done(PgOutcome::Done)
    }

    fn slots(&mut self, n: usize, names: &[String]) -> Next {
        if self.nodes[n].server.proc != Proc::Running {
            return Next::Failed("not running");
        }
        let node = &mut self.nodes[n];
        let rows = &node.server.rows;
        node.dir.slots.retain(|slot| {
            names.contains(slot) || rows.iter().any(|row| row.name == *slot && row.owns_slot)
        });
        node.dir.slots.extend(names.iter().cloned());
        Next::Done(PgOutcome::Done)
    }

    /// A rewind (with a fork) or a clone.
    fn copy(&mut self, n: usize, source: &Source, fork: Option<Lsn>, task: &mut Task) -> Next {
        let Some(from) = self.nodes.iter().position(|node| node.name == source.member.node) else {
            return Next::Failed("unknown host");
        };
        if self.nodes[n].server.proc != Proc::Down {
            return Next::Failed("something runs there");
        }
        let other = &self.nodes[from];
        let cut = self.net.servers[n][from] || self.net.servers[from][n];
        let reached = !cut && !other.frozen && !other.server.frozen;
        if !reached || other.server.proc != Proc::Running || other.server.recovery {
            return Next::Failed("the source went away");
        }
        if self.nodes[n].full {
            return Next::Failed("no space left on device");
        }
        if task.stage == 0 {
            if self.nodes[n].disk.data != everhold_core::durable::Data::Destroying {
                self.violated(format!("{n} destroys data that its record calls whole"));
                return Next::Failed("violated");
            }
            task.life = other.server.life;
            let kept = self.nodes[n].dir.clone();
            let mut copy = other.dir.clone();
            if fork.is_some() {
                if kept.garbage {
                    return Next::Failed("nothing to rewind");
                }
                if kept.last_tli() != copy.tli {
                    let mut own = kept;
                    own.rewind_to(&copy);
                    copy.wal = own.wal;
                } else {
                    // "no rewind required"
                    copy.wal = kept.wal;
                }
                copy.tli = copy.wal.last().map_or(1, |rec| rec.tli);
            }
            copy.replayed = copy.wal.len();
            copy.slots.clear();
            task.copy = Some(Box::new(copy));
            self.nodes[n].dir.garbage = true;
            let most = if fork.is_some() { S } else { 3 * S };
            return Next::In(self.rng.spread(200 * MS, most));
        }
        if other.server.life != task.life {
            return Next::Failed("the source went away");
        }
        let Some(copy) = task.copy.take() else { return Next::Failed("nothing was copied") };
        let rotten = fork.is_none() && self.is_rotten(from);
        let told = matches!(task.action, PgAction::Clone { bad_pages_too: true, .. });
        if rotten && !told {
            return Next::Failed("a page of the source is not as it was written");
        }
        self.nodes[n].dir = *copy;
        self.nodes[n].stands = None;
        self.nodes[n].replaced += 1;
        if fork.is_none() {
            self.copied(n, rotten);
        }
        if let Some(delay) = self.plan.kill_source.take() {
            self.after(delay, Event::Kill { node: from });
        }
        Next::Done(PgOutcome::Copied { bytes: 1, of: 2 })
    }

    fn put_back(&mut self, n: usize, id: &str, task: &Task) -> Next {
        if self.nodes[n].server.proc != Proc::Down {
            return Next::Failed("something runs there");
        }
        if self.nodes[n].disk.data != everhold_core::durable::Data::Destroying {
            self.violated(format!("{n} replaces data that its record calls whole"));
            return Next::Failed("violated");
        }
        if task.stage == 0 {
            return Next::In(self.rng.spread(5 * MS, S));
        }
        if self.nodes[n].stands.as_deref() == Some(id) {
            return Next::Done(PgOutcome::Done);
        }
        if self.plan.restores.chance(60) {
            return Next::Failed("no space left on device");
        }
        let refused = self.plan.restores.chance(60);
        let restored = self.nodes[n].restored.take_if(|(own, _)| own == id && !refused);
        let Some((_, dir)) = restored else {
            let why = "nothing of that name was restored".to_string();
            return Next::Done(PgOutcome::NotPutBack { why });
        };
        self.nodes[n].dir = dir;
        self.nodes[n].stands = Some(id.to_string());
        self.nodes[n].replaced += 1;
        let campaign = self.nodes[n].agent.as_ref().and_then(|agent| agent.view.campaign.as_ref());
        let replaced = self.nodes[n].replaced;
        self.ghost.restored = campaign.map(|campaign| (campaign.epoch, n, replaced));
        Next::Done(PgOutcome::Done)
    }

    /// The agent that had begun these is gone. What was sent to the server goes on there.
    pub fn interrupted(&mut self, n: usize, tasks: BTreeMap<Id, Task>) {
        for task in tasks.into_values() {
            let stopping = matches!(task.action, PgAction::Stop { .. }) && task.stage > 0;
            if stopping && self.rng.chance(500) {
                self.end_server(n);
            }
            self.nodes[n].server.closing = false;
            if let PgAction::Promote { branch, .. } = &task.action
                && task.stage > 1
                && self.running(n, &task)
                && self.nodes[n].server.recovery
                && self.rng.chance(500)
            {
                self.become_primary(n, branch.epoch);
            }
        }
    }

    /// A look begins now and is told in a moment.
    pub fn look(&mut self, n: usize) {
        let Some(agent) = &self.nodes[n].agent else { return };
        let generation = agent.generation();
        let facts = self.facts(n);
        let delay = if self.nodes[n].server.frozen { QUERY } else { self.rng.between(300, 4 * MS) };
        let input = Box::new(Input::Pg { generation, facts });
        self.tell_agent(n, delay, ForAgent::Input(input));
    }

    fn facts(&self, n: usize) -> PgFacts {
        let node = &self.nodes[n];
        let (server, dir) = (&node.server, &node.dir);
        let process = match server.proc {
            Proc::Down => Process::Down,
            Proc::Remains => Process::Remains,
            Proc::Starting => Process::Starting,
            Proc::Running => Process::Running,
        };
        let mut facts = PgFacts { process, pid: Some(server.pid), ..PgFacts::default() };
        if server.proc != Proc::Running || server.frozen {
            return facts;
        }
        facts.in_recovery = Some(server.recovery);
        facts.sysid = Some(dir.sysid);
        facts.tli = dir.tli;
        facts.lsn = Lsn(if server.recovery { dir.replayed_to() } else { dir.end() });
        facts.source = server.source.clone();
        facts.receiver = match server.receiver {
            Receiver::Streaming { .. } => Some(Receiving {
                streaming: true,
                message_ms_ago: Some((self.now - server.message) / MS),
                flushed: dir.lsn(),
            }),
            Receiver::None | Receiver::Connecting { .. } => None,
        };
        facts.replay_lag_ms = Some(if dir.replayed == dir.wal.len() { 0 } else { 100 });
        facts.sync_names = Some(server.shown.text.clone());
        let rows = server.rows.iter().map(|row| Walsender {
            name: row.name.clone(),
            streaming: row.streaming,
            priority: row.priority as i32,
            flush: Lsn(row.flush),
            owns_slot: row.owns_slot,
        });
        facts.walsenders = rows.collect();
        facts.checkpoint_tli = dir.checkpoint_tli;
        facts.slots = dir.slots.iter().cloned().collect();
        facts
    }
}
