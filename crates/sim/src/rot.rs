//! Bad pages: they turn up, are found, and end with a new copy. An operator stands by, who hands a
//! leader over that asks for it, and mends by hand what nobody else can.

use crate::random::Random;
use crate::say;
use crate::server::Receiver;
use crate::world::{S, World};
use everhold_core::agent::Input;
use everhold_core::durable::{Data, Durable};
use everhold_core::policy;
use everhold_core::postgres::BadPages;
use everhold_core::term::Term;
use everhold_core::view::Cause;

/// None turn up later: what is left of the time is for the repair.
const LAST: u64 = 220 * S;
/// The operator hands over a leader that has asked for it so long, and again after as long.
const HANDS_OVER: u64 = 5 * S;
/// And takes what is still not repaired for hopeless: other faults are in the way of it.
const MENDS: u64 = 60 * S;
/// A standby that is not needed is repaired in this time without faults.
const REPAIRED: u64 = 25 * S;

/// Of the whole cluster; a stream of its own, so that seeds mean what they meant.
pub struct Plan {
    rng: Random,
    handed: u64,
}

impl Plan {
    pub fn new(seed: u64) -> Plan {
        Plan { rng: Random::new(seed, 6), handed: 0 }
    }
}

/// Of one node's disk.
#[derive(Clone, Debug, Default)]
pub struct Rot {
    /// Since when its data has bad pages.
    pub since: Option<u64>,
    /// What its scrubber has found; it outlives the agent.
    pub found: Option<BadPages>,
    /// No set in force named it after it had last received anything: since then it has
    /// acknowledged nothing that anybody counted.
    pub let_go: bool,
    needed: u64,
}

impl World {
    pub fn is_rotten(&self, n: usize) -> bool {
        self.nodes[n].rot.since.is_some()
    }

    /// Once a second.
    pub fn rot(&mut self) {
        if self.plan.ready && self.now < LAST && self.rot_plan.rng.chance(25) {
            let count = self.nodes.len();
            let n = match self.rot_plan.rng.chance(300) {
                true => self.leader().unwrap_or(0),
                false => self.rot_plan.rng.index(count),
            };
            self.begin_to_rot(n);
        }
        for n in 0..self.nodes.len() {
            self.scrub(n);
            self.check_repaired(n);
        }
        self.operate();
    }

    fn begin_to_rot(&mut self, n: usize) {
        let rotten = (0..self.nodes.len()).filter(|m| self.is_rotten(*m)).count();
        let most = self.nodes.len() - 2;
        let able = |m: &usize| {
            let node = &self.nodes[*m];
            let fit = self.policy.preferences[&node.name].failover;
            *m != n && fit && node.disk.data == Data::Ok && !self.is_rotten(*m)
        };
        let others = (0..self.nodes.len()).any(|m| able(&m));
        let whole = self.nodes[n].disk.data == Data::Ok;
        if rotten < most && others && whole && !self.is_rotten(n) && !self.plan.is_counting() {
            say!(self, "{n} has bad pages");
            self.nodes[n].rot.since = Some(self.now);
        }
    }

    /// The scrubber of a node comes by the bad pages, or reads that they are gone.
    fn scrub(&mut self, n: usize) {
        let node = &self.nodes[n];
        let incarnation = node.disk.incarnation;
        let known = node.rot.found.as_ref().is_some_and(|bad| bad.incarnation == incarnation);
        if known == self.is_rotten(n) || node.disk.data != Data::Ok || node.agent.is_none() {
            return;
        }
        let bad = BadPages { incarnation, pages: u64::from(!known), first: "base/5/1".to_string() };
        self.nodes[n].rot.found = (!known).then(|| bad.clone());
        say!(self, "{n} finds {} bad pages", bad.pages);
        self.give(n, Input::Scrubbed { bad });
    }

    /// A copy takes the place of what was there.
    pub fn copied(&mut self, n: usize, rotten: bool) {
        self.nodes[n].rot = Rot { since: rotten.then_some(self.now), ..Rot::default() };
    }

    /// It has parked, or a term was written while it was.
    pub fn is_let_go(&mut self, n: usize) {
        let node = &self.nodes[n];
        let named = self.store.read_term().is_some_and(|term| term.names(&node.name));
        let quiet = node.server.source.is_none() && node.server.receiver == Receiver::None;
        self.nodes[n].rot.let_go |= quiet && !named;
    }

    fn operate(&mut self) {
        let asks = |n: &usize| {
            let agent = self.nodes[*n].agent.as_ref();
            let verdict = agent.and_then(|agent| agent.verdicts().get("leader"));
            verdict.is_some_and(|verdict| verdict.rule() == "bad-pages")
        };
        let asking = (0..self.nodes.len()).find(asks);
        if let Some(n) = asking
            && self.now > self.rot_plan.handed + HANDS_OVER
        {
            self.rot_plan.handed = self.now;
            self.give(n, Input::Wished { cause: Cause::Switchover { to: None } });
        }
        for n in 0..self.nodes.len() {
            let hopeless = self.nodes[n].rot.since.is_some_and(|at| self.now > at + MENDS);
            if hopeless {
                say!(self, "{n} is mended by hand");
                self.nodes[n].rot.since = None;
                self.scrub(n);
            }
        }
    }

    /// Without faults, a standby that nobody needs doesn't keep its bad pages.
    fn check_repaired(&mut self, n: usize) {
        let Some(since) = self.nodes[n].rot.since else { return };
        let Some(calm) = self.plan.calm_since() else { return };
        let leader = self.leader().unwrap_or(n);
        let named = self.store.read_term().is_some_and(|term| term.names(&self.nodes[n].name));
        let others = (0..self.nodes.len()).filter(|m| *m != n);
        let alone = others.clone().all(|m| !self.is_rotten(m));
        if leader == n || named || !alone {
            self.nodes[n].rot.needed = self.now;
        }
        if self.now > calm.max(since).max(self.nodes[n].rot.needed) + REPAIRED {
            let state = self.describe();
            self.violated(format!("{n} has bad pages and is not repaired{state}"));
        }
    }

    /// A term is about to be published: nobody with bad pages leads where one without could.
    pub fn check_sound(&mut self, writer: usize, term: &Term) {
        let Some(agent) = self.nodes.get(writer).and_then(|node| node.agent.as_ref()) else {
            return;
        };
        let (view, now) = (&agent.view, self.local(writer));
        let Some(campaign) = view.campaign.as_ref().filter(|it| it.epoch == term.epoch) else {
            return;
        };
        let known = |node: &str| {
            let told = view.peers.get(node).and_then(|peer| peer.status.as_deref());
            match node == view.me {
                true => view.rot.as_ref().is_some_and(|bad| {
                    bad.pages > 0 && bad.incarnation == view.durable.incarnation
                }),
                false => told.is_some_and(|status| status.bad_pages > 0),
            }
        };
        let fit = |node: &str| view.policy.preferences[node].failover && !known(node);
        let better = term.target.members.iter().find(|member| fit(&member.node));
        let asked = matches!(campaign.cause, Cause::Force { .. });
        let early = now.since(campaign.opened) < policy::CAMPAIGN_GIVE_UP_MS;
        if let Some(better) = better.filter(|_| known(&term.leader.node) && early && !asked) {
            let what = format!("{} leads with bad pages, not {better}", term.leader);
            self.violated(what);
        }
    }

    /// A following standby is given up for a new copy: no set in force may name it.
    pub fn check_unneeded(&mut self, n: usize, next: &Durable) {
        let node = &self.nodes[n];
        let gives_up = next.data == Data::Destroying && node.disk.data == Data::Ok;
        let member = node.disk.member(&node.name);
        let rotten = node
            .rot
            .found
            .as_ref()
            .is_some_and(|bad| bad.pages > 0 && bad.incarnation == node.disk.incarnation);
        let named = self.store.read_term().is_some_and(|term| {
            let repairs = term.epoch == node.disk.promise && term.is_along(&node.disk.line);
            repairs && term.inforce.iter().any(|set| set.members.contains(&member))
        });
        let parked = node.agent.as_ref().is_some_and(|agent| agent.view.parked.is_some());
        if gives_up && rotten && named && parked && !node.rot.let_go {
            self.violated(format!("{member} is given up and stands in a set in force"));
        }
    }
}
