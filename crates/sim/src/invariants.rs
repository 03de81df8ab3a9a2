//! What must be true at each step, judged by somebody who sees everything.

use crate::say;
use crate::server::{Proc, Waiting, Who};
use crate::wal::Rec;
use crate::world::{ForAgent, MS, S, World};
use everhold_core::decide::Verdict;
use everhold_core::durable::Data;
use everhold_core::ids::Epoch;
use everhold_core::kv::Kv;
use everhold_core::policy::Policy;
use everhold_core::records::decode;
use everhold_core::spec::Duty;
use everhold_core::term::Term;
use everhold_core::view::{CampaignRecord, Cause};
use std::collections::BTreeMap;

/// Without a fault for so long, writes flow.
const HEALS: u64 = 20 * S;
/// And so long without one is too long then.
const FLOWS: u64 = 6 * S;
/// A superseded primary that isn't frozen is stopped within this: lease, then a look.
const STALE: u64 = 9 * S;
/// One that was frozen has heard what it missed, and its minder has judged, within this.
const AWAKE: u64 = 50 * MS;
/// A node counts as healthy after so long without a fault.
const SETTLED: u64 = 3 * S;

/// What is known beyond what any node knows.
#[derive(Default)]
pub struct Ghost {
    pub violation: Option<String>,
    uids: u32,
    conns: u64,
    /// Records that clients were told of, or saw.
    acked: Vec<Rec>,
    seen: Vec<bool>,
    /// Who serves at the highest epoch so far.
    leader: Option<(usize, Epoch)>,
    /// When each epoch was first served.
    began: BTreeMap<Epoch, u64>,
    /// The barrier acknowledged last, by server.
    barriers: BTreeMap<usize, Rec>,
    stale_since: BTreeMap<usize, u64>,
    /// Where reading went up to, by server and life.
    read_upto: BTreeMap<usize, u32>,
    pub excused: bool,
    /// The campaign in which a node was put back to an older state, which, and how often its data
    /// had been replaced then: who serves on that branch, or with that data, may lack what was
    /// acknowledged before.
    pub restored: Option<(Epoch, usize, u32)>,
    pub lost: u64,
    pub campaigns: u64,
    /// Rules that fired, and how often.
    pub fired: BTreeMap<String, u64>,
}

impl Ghost {
    pub fn next_uid(&mut self) -> u32 {
        self.uids += 1;
        self.uids
    }

    pub fn next_conn(&mut self) -> u64 {
        self.conns += 1;
        self.conns
    }

    fn keep(&mut self, rec: Rec) {
        let at = rec.uid as usize;
        if self.seen.len() <= at {
            self.seen.resize(at + 1, false);
        }
        if !std::mem::replace(&mut self.seen[at], true) {
            self.acked.push(rec);
        }
    }
}

impl World {
    pub fn violated(&mut self, what: String) {
        if self.ghost.violation.is_none() {
            say!(self, "VIOLATION {what}");
            self.ghost.violation = Some(format!("at {:.3} s: {what}", self.now as f64 / 1e6));
        }
    }

    /// After each step of an agent.
    pub fn watch_agent(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(agent) = &mut node.agent else { return };
        if let Some(refused) = agent.refused.first() {
            let what = format!("{n} was refused: {refused}");
            self.violated(what);
            return;
        }
        let serving = agent.status().serving;
        if serving != node.serving {
            node.serving = serving;
            say!(self, "{n} serves {serving:?}");
            if let Some(epoch) = serving {
                self.begins_to_serve(n, epoch);
            }
        }
    }

    fn begins_to_serve(&mut self, n: usize, epoch: Epoch) {
        if !self.nodes[n].server.is_primary() {
            return;
        }
        if let Some((other, highest)) = self.ghost.leader
            && (highest > epoch || (highest == epoch && other != n))
        {
            if highest > epoch && self.overslept(n, epoch, other) {
                return;
            }
            self.violated(format!("{n} serves epoch {epoch} after {other} served {highest}"));
        }
        self.ghost.leader = Some((n, epoch));
        self.ghost.began.entry(epoch).or_insert(self.now);
        let dir = &self.nodes[n].dir;
        let line = self.store.read_term().map(Term::line).unwrap_or_default();
        let replaced = self.nodes[n].replaced;
        let put_back = self.ghost.restored.take().is_some_and(|(campaign, node, times)| {
            line.iter().any(|b| b.epoch == campaign) || (node == n && times == replaced)
        });
        if self.ghost.excused || put_back {
            let before = self.ghost.acked.len();
            self.ghost.acked.retain(|rec| dir.holds(rec));
            self.ghost.lost += (before - self.ghost.acked.len()) as u64;
            self.ghost.excused = false;
            return;
        }
        let missing = dir.lacks(&self.ghost.acked);
        if let Some(first) = missing.first() {
            let what = format!(
                "LOST: {n} serves epoch {epoch} without {} acknowledged or read records, the first {first:?}",
                missing.len()
            );
            self.violated(what);
        }
    }

    /// `n` slept while the epoch after its own began to be served by `leader`, or by somebody before
    /// it, and has not heard of it yet. What it serves on is a barrier that enough nodes had flushed
    /// before they gave their word for the newer epoch: then the newer leader holds it, and whatever
    /// shows at `n` until it is stopped was settled before it slept. Without sleep, or on any other
    /// barrier, nothing of this is promised.
    fn overslept(&self, n: usize, epoch: Epoch, leader: usize) -> bool {
        let node = &self.nodes[n];
        let next = self.ghost.began.range(epoch + 1..).next();
        let slept = next.is_some_and(|(_, at)| (node.froze..node.thawed).contains(at));
        let barrier = self.ghost.barriers.get(&n).filter(|rec| rec.epoch == epoch);
        let holds = |rec: &Rec| self.nodes[leader].dir.holds(rec);
        slept && self.now < node.thawed + AWAKE && barrier.is_some_and(holds)
    }

    /// A commit was acknowledged on `n`.
    pub fn check_acknowledged(&mut self, n: usize, commit: Waiting) {
        let wal = &self.nodes[n].dir.wal;
        let at = wal.partition_point(|rec| rec.end < commit.end);
        let Some(rec) = wal.get(at).copied().filter(|rec| rec.uid == commit.uid) else { return };
        self.ghost.keep(rec);
        if matches!(commit.who, Who::Barrier { .. }) {
            self.ghost.barriers.insert(n, rec);
        }
        let granted = self.nodes[n].disk.grant.map_or(0, |grant| grant.epoch);
        if let Some((leader, epoch)) = self.ghost.leader
            && leader != n
            && granted < epoch
            && self.nodes[leader].server.is_primary()
            && self.nodes[leader].serving == Some(epoch)
            && !self.nodes[leader].dir.holds(&rec)
            && !self.ghost.excused
        {
            self.violated(format!("LOST: {n} acknowledges {rec:?}, which {leader} that serves epoch {epoch} does not hold"));
        }
    }

    /// Somebody read at `n`: records from before its promotion show, acknowledged or not.
    pub fn saw(&mut self, n: usize) {
        let (life, inherited) = (self.nodes[n].server.life, self.nodes[n].server.inherited);
        if self.ghost.read_upto.get(&n) == Some(&life) {
            return;
        }
        self.ghost.read_upto.insert(n, life);
        for at in 0..inherited.min(self.nodes[n].dir.wal.len()) {
            let rec = self.nodes[n].dir.wal[at];
            self.ghost.keep(rec);
        }
    }

    /// A standby receives: it has not reported that it receives nothing any more.
    pub fn check_quiet(&mut self, n: usize) {
        let reported = self.nodes[n].agent.as_ref().is_some_and(|a| a.status().report.is_some());
        if reported {
            self.violated(format!("{n} receives after its report"));
        }
    }

    pub fn check_split(&mut self) {
        let can = |n: &usize| self.nodes[*n].server.can_acknowledge();
        let primaries = (0..self.nodes.len()).filter(|n| self.nodes[*n].server.is_primary());
        if primaries.count() < 2 || self.ghost.excused {
            return;
        }
        let able: Vec<usize> = (0..self.nodes.len()).filter(can).collect();
        if able.len() > 1 {
            self.violated(format!("SPLIT: {able:?} can acknowledge new commits"));
        }
    }

    /// A campaign record is written: was there a need?
    pub fn check_campaign(&mut self, writer: usize, kv: &Kv) {
        let Ok(record) = decode::<CampaignRecord>(&kv.value) else { return };
        if record.beat > 0 || writer >= self.nodes.len() {
            return;
        }
        self.ghost.campaigns += 1;
        if let Some(n) = self.plan.kill_called.take_if(|n| *n != writer) {
            self.tell_agent(n, 0, ForAgent::Die { whole: false });
        }
        let agent = self.nodes[writer].agent.as_ref();
        let cause = agent.and_then(|agent| agent.view.reason.as_ref()).map(|(cause, _)| cause);
        say!(self, "campaign of {writer} for {}: {cause:?}", record.epoch);
        match cause {
            Some(Cause::Switchover { .. } | Cause::Force { .. } | Cause::Restore { .. }) | None => {
                return;
            }
            Some(
                Cause::LeaderFell
                | Cause::LeaderMissed
                | Cause::LeaderReplaced
                | Cause::NeverOpened,
            ) => {}
        }
        let Some(term) = self.store.read_term() else { return };
        let Some(leader) = self.nodes.iter().position(|n| n.name == term.leader.node) else {
            return;
        };
        let settled = |n: usize| self.nodes[n].calm_since + SETTLED < self.now;
        let node = &self.nodes[leader];
        let serves = node.agent.is_some()
            && node.server.is_primary()
            && node.server.proc == Proc::Running
            && node.serving == Some(term.epoch);
        let streams = |name: &str| {
            node.server.rows.iter().any(|row| row.name == name && row.live && settled(row.standby))
        };
        let standbys = term.target.members.iter().filter(|m| streams(&m.slot())).count() as u32;
        if serves && settled(leader) && standbys >= term.target.k.max(1) {
            self.violated(format!(
                "{writer} campaigns against {leader}, which is healthy: {cause:?}"
            ));
        }
    }

    /// Once a second: writes flow when they should, superseded primaries end.
    pub fn check_second(&mut self) {
        if let Some(since) = self.plan.calm_since()
            && self.now > since + HEALS
            && self.now > self.clients.last_ack + FLOWS
        {
            let state = self.describe();
            self.violated(format!(
                "no write for {} s: {state}",
                (self.now - self.clients.last_ack) / S
            ));
        }
        self.check_forgotten();
        for n in 0..self.nodes.len() {
            let node = &self.nodes[n];
            let superseded = self.ghost.leader.is_some_and(|(leader, epoch)| {
                leader != n
                    && self.nodes[leader].serving == Some(epoch)
                    && node.disk.grant.is_some_and(|grant| grant.epoch < epoch)
            });
            let runs = node.server.is_primary() && !node.frozen && !node.server.frozen;
            if !superseded || !runs {
                self.ghost.stale_since.remove(&n);
                continue;
            }
            let since = *self.ghost.stale_since.entry(n).or_insert(self.now);
            if self.now > since + STALE {
                self.violated(format!(
                    "{n} is superseded and still a primary after {} s",
                    STALE / S
                ));
            }
        }
    }

    /// A node sealed for a campaign that came to nothing is taken back by the leader.
    fn check_forgotten(&mut self) {
        let calm = self.plan.calm_since().is_some_and(|since| self.now > since + HEALS);
        let (Some((_, serving)), true) = (self.ghost.leader, calm) else { return };
        let forgotten = (0..self.nodes.len()).find(|n| self.nodes[*n].disk.promise > serving);
        if let Some(n) = forgotten
            && self.store.read_term().is_none_or(|term| term.epoch <= serving)
        {
            self.violated(format!(
                "{n} was sealed above the serving epoch {serving} and forgotten"
            ));
        }
    }

    /// Why not everything is as it should be when no fault is left; `None`: all is well.
    pub fn unhealthy(&self) -> Option<String> {
        let Some(term) = self.store.read_term() else { return Some("no term".to_string()) };
        if !term.open || term.is_changing() {
            return Some("the term is not settled".to_string());
        }
        for (n, node) in self.nodes.iter().enumerate() {
            let Some(agent) = &node.agent else { return Some(format!("{n} has no agent")) };
            let status = agent.status();
            let member = agent.view.member();
            if node.disk.data != Data::Ok {
                return Some(format!("{n} has data {:?}", node.disk.data));
            }
            if node.name == term.leader.node {
                if status.serving != Some(term.epoch) {
                    return Some(format!("{n} leads and does not serve"));
                }
            } else if !status.streaming {
                return Some(format!("{n} does not stream"));
            } else if !term.target.members.contains(&member) && !self.left_out(term, &node.name) {
                return Some(format!("{n} is not a member"));
            } else if term.target.members.contains(&member) && self.leaves(&node.name) {
                return Some(format!("{n} does not leave"));
            }
        }
        self.beside_only(term).then(|| "the set is not spread".to_string())
    }

    /// A standby that need not acknowledge: it is on its way out, or beside the leader where the
    /// set is spread.
    fn left_out(&self, term: &Term, node: &str) -> bool {
        let Policy { domains, .. } = &self.policy;
        self.leaves(node) || (!domains.0.is_empty() && !domains.apart(&term.leader.node, node))
    }

    /// Read from what was declared: core's own function is judged here.
    pub fn leaves(&self, node: &str) -> bool {
        self.policy.duties.get(node) == Some(&Duty::Leaving)
    }

    /// Those beside the leader alone could acknowledge, though somebody is elsewhere.
    fn beside_only(&self, term: &Term) -> bool {
        let Policy { domains, nodes, .. } = &self.policy;
        let apart = |node: &String| domains.apart(&term.leader.node, node);
        let elsewhere = nodes.iter().any(|node| apart(node) && !self.leaves(node));
        let beside = term.target.members.iter().filter(|m| !apart(&m.node)).count() as u32;
        !domains.0.is_empty() && elsewhere && !term.target.is_alone() && beside >= term.target.k
    }

    /// The nodes in a line each.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let disk = &node.disk;
            text += &format!(
                "\n  {n} {:?} promise {} incarnation {} {:?} grant {:?}",
                node.server.proc, disk.promise, disk.incarnation, disk.data, disk.grant
            );
            let Some(agent) = &node.agent else { continue };
            text += &format!(" {:?}", agent.status().state);
            for verdict in agent.verdicts().values().filter(|v| **v != Verdict::Steady) {
                let why = match verdict {
                    Verdict::Steady => "",
                    Verdict::Hold { why, .. } | Verdict::Act { why, .. } => why,
                };
                text += &format!("; {}: {why}", verdict.rule());
            }
        }
        if let Some(term) = self.store.read_term() {
            text += &format!("\n  {}", crate::store::show(term));
        }
        text
    }

    pub fn tally(&mut self) {
        for n in 0..self.nodes.len() {
            if let Some(agent) = &mut self.nodes[n].agent {
                for (rule, times) in std::mem::take(&mut agent.fired) {
                    *self.ghost.fired.entry(rule).or_default() += times;
                }
            }
        }
    }
}
