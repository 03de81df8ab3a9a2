//! Breadth first through every state, each once. States are known by a 64-bit fingerprint, the
//! least over all renamings of nodes that begin alike.

use super::acknowledge;
use super::invariants;
use super::names::Renaming;
use super::plan::{Plan, Switch};
use super::real::{Real, fits};
use super::state::{EPOCHS, NOBODY, NODES, Role, State};
use super::steps::{Step, successors};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub states: u64,
    pub transitions: u64,
    pub depth: u32,
    /// States in which a later leader than the first is open: how far the run really got.
    pub reopened: u64,
    /// False: the limit of states was reached first.
    pub complete: bool,
    pub violation: Option<Violation>,
}

#[derive(Clone, Debug)]
pub struct Violation {
    pub text: String,
    fingerprint: u64,
}

/// Explores the plan until a violation, the end, or more than `limit` states. The second value
/// holds what [`trace`] needs.
pub fn explore(plan: &Plan, limit: u64) -> (Outcome, Seen) {
    assert!(fits(plan), "the bounds of {} are beyond the arrays", plan.name);
    let mut world = World::new(plan);
    let first = world.first();
    let mut seen = Seen::default();
    let renamings = renamings(plan);
    seen.insert(fingerprint(plan, &first, &renamings), 0);
    let mut frontier = vec![first];
    let mut outcome = Outcome { states: 1, complete: true, ..Outcome::default() };
    let mut steps = Vec::new();
    while !frontier.is_empty() {
        let mut next = Vec::with_capacity(frontier.len() * 2);
        for state in frontier.drain(..) {
            let parent = fingerprint(plan, &state, &renamings);
            world.successors(&state, &mut steps);
            for (_, after) in steps.drain(..) {
                outcome.transitions += 1;
                let own = fingerprint(plan, &after, &renamings);
                let Entry::Vacant(place) = seen.entry(own) else { continue };
                place.insert(parent);
                outcome.states += 1;
                outcome.reopened += u64::from(after.term.open && after.term.tip() > 1);
                if let Some(text) = invariants::broken(plan, &after) {
                    outcome.violation = Some(Violation { text, fingerprint: own });
                    return (outcome, seen);
                }
                next.push(after);
            }
            if outcome.states > limit {
                outcome.complete = false;
                return (outcome, seen);
            }
        }
        frontier = next;
        outcome.depth += 1;
    }
    (outcome, seen)
}

/// A shortest way to the violation: each step with the state after it.
pub fn trace(plan: &Plan, seen: &Seen, violation: &Violation) -> Vec<(Step, State)> {
    let mut chain = vec![violation.fingerprint];
    while let Some(parent) = chain.last().and_then(|own| seen.get(own)).filter(|p| **p != 0) {
        chain.push(*parent);
    }
    chain.reverse();
    let mut world = World::new(plan);
    let renamings = renamings(plan);
    let mut state = world.first();
    let mut way = Vec::new();
    for wanted in &chain[1..] {
        let mut steps = Vec::new();
        world.successors(&state, &mut steps);
        let step = steps.into_iter().find(|(_, s)| fingerprint(plan, s, &renamings) == *wanted);
        let (step, after) = step.expect("each fingerprint but the first has a way to it");
        way.push((step, after));
        state = after;
    }
    way
}

struct World<'a> {
    plan: &'a Plan,
    real: Real,
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan) -> World<'a> {
        World { plan, real: Real::default() }
    }

    fn first(&mut self) -> State {
        let mut state = State::first(&self.plan.bounds, super::names::Names::default());
        let names = self.real.names(state.term.target, false);
        state = State::first(&self.plan.bounds, names);
        state
    }

    fn successors(&mut self, state: &State, steps: &mut Vec<(Step, State)>) {
        successors(self.plan, &mut self.real, state, steps);
        for (_, after) in steps {
            acknowledge::note(self.plan, after);
            forget(self.plan, &mut self.real, after);
        }
    }
}

/// Takes out of a state what nobody can ever use again, so that equal states look equal.
fn forget(plan: &Plan, real: &mut Real, state: &mut State) {
    let nodes = plan.bounds.nodes;
    if !plan.has(Switch::PublishUnguarded) {
        let decided = if state.term.epoch == state.epoch { state.epoch + 1 } else { state.epoch };
        state.reports[..decided as usize].fill(Default::default());
    }
    let promised = state.nodes[..nodes].iter().map(|node| node.promise).min().unwrap_or(0);
    if !plan.has(Switch::FollowBelowPromise) {
        let usable = promised.min(state.term.epoch) as usize;
        state.past[..usable].fill(Default::default());
    }
    if plan.keeps_lines() {
        return;
    }
    // A line matters only up to its last record, until it is written anew.
    let term = state.term;
    let reports = &mut state.reports[state.epoch as usize];
    for (node, report) in state.nodes[..nodes].iter_mut().zip(reports) {
        let quiet = node.role != Role::Primary && node.follows == NOBODY;
        if quiet && term.branch(node.line).epoch != node.log.last() {
            let branches = term.branches.as_slice();
            node.line = real.last_timeline(branches, node.line, node.log.len());
        }
        let same = report.incarnation == node.incarnation && report.end == node.log.len();
        if quiet && report.told && same && node.promise == state.epoch {
            report.line = node.line;
        }
    }
}

/// All renamings that keep the first state: of the members of the first set, and of the others.
fn renamings(plan: &Plan) -> Vec<Renaming> {
    let kind = |node: usize| match node {
        0 => 0,
        _ if node <= plan.bounds.standbys => 1,
        _ if node < plan.bounds.nodes => 2,
        _ => 2 + node,
    };
    let mut all = Vec::new();
    for bits in 0..256_usize {
        let to: [u8; NODES] = std::array::from_fn(|node| (bits >> (2 * node) & 3) as u8);
        let distinct = (0..NODES).all(|new| to.contains(&(new as u8)));
        if distinct && (0..NODES).all(|old| kind(old) == kind(usize::from(to[old]))) {
            all.push(Renaming::new(to));
        }
    }
    all
}

fn fingerprint(plan: &Plan, state: &State, renamings: &[Renaming]) -> u64 {
    renamings.iter().map(|renaming| renamed(plan, state, renaming)).min().unwrap_or(0)
}

fn renamed(plan: &Plan, state: &State, renaming: &Renaming) -> u64 {
    let mut mix = Mix(0x9e37_79b9_7f4a_7c15);
    let used = [state.crashes, state.cuts, state.changes, state.wipes];
    let used = used.iter().fold(0, |all, n| all << 2 | u64::from(*n));
    let term = &state.term;
    let open = u64::from(term.open);
    mix.add(used | u64::from(state.epoch) << 8 | u64::from(term.epoch) << 12 | open << 16);
    mix.add(term.target.renamed(renaming));
    for sets in [&term.inforce, &state.at_open] {
        mix.add(sets.as_slice().len() as u64);
        for part in sets.as_slice().chunks(4) {
            mix.add(part.iter().fold(0, |all, set| all << 16 | set.renamed(renaming)));
        }
    }
    let branches = term.branches.as_slice();
    mix.add(branches.iter().fold(1, |all, b| {
        let number = if plan.has(Switch::TimelineNumbersOnly) { u64::from(b.number) } else { 0 };
        let fork = u64::from(b.fork);
        all << 12 | number << 9 | u64::from(b.epoch) << 6 | u64::from(b.parent) << 3 | fork
    }));
    for epoch in 1..EPOCHS.min(plan.bounds.epochs as usize + 1) {
        let past = state.past[epoch];
        let acked = u64::from(state.acked[epoch].0);
        mix.add(past.set.renamed(renaming) | u64::from(past.tli) << 16 | acked << 24);
        let reports = &state.reports[epoch];
        mix.add(renaming.from.iter().fold(0, |all, old| {
            let it = &reports[*old as usize];
            let place = u64::from(it.line) << 8 | u64::from(it.end) << 4;
            all << 12 | place | u64::from(it.incarnation) << 1 | u64::from(it.told)
        }));
    }
    for old in renaming.from.iter().filter(|old| usize::from(**old) < plan.bounds.nodes) {
        mix_node(state, usize::from(*old), renaming, &mut mix);
    }
    mix.end()
}

fn mix_node(state: &State, old: usize, renaming: &Renaming, mix: &mut Mix) {
    let it = &state.nodes[old];
    let disk = u64::from(it.log.0)
        | u64::from(it.promise) << 16
        | u64::from(it.incarnation) << 20
        | u64::from(it.line) << 22
        | u64::from(it.granted) << 25;
    mix.add(disk | (it.role as u64) << 30 | renaming.node(it.follows) << 32);
    if it.role != Role::Primary {
        return;
    }
    let runs = u64::from(it.leads)
        | u64::from(it.branch) << 4
        | u64::from(it.defined) << 8
        | u64::from(it.observed) << 9;
    mix.add(runs | it.names.renamed(renaming) << 16 | it.wanted.renamed(renaming) << 32);
    mix.add(it.proven.renamed(renaming) | it.before.renamed(renaming) << 16);
    for standby in &renaming.from {
        let row = &state.rows[old][*standby as usize];
        if *row != Default::default() {
            let copies = row.copy.renamed(renaming) << 16 | row.stale_copy.renamed(renaming) << 32;
            let flushed = u64::from(row.flush) << 4 | u64::from(row.stale) << 8;
            let link = row.link as u64 | u64::from(row.incarnation) << 2;
            mix.add(link | flushed | copies | (renaming.node(*standby) + 1) << 48);
        }
    }
}

/// 128-bit multiplication folded: well mixed, and quick.
struct Mix(u64);

impl Mix {
    fn add(&mut self, value: u64) {
        let wide = u128::from(self.0 ^ value) * 0xe703_7ed1_a0b4_28db_u128;
        self.0 = (wide as u64) ^ (wide >> 64) as u64 ^ value.rotate_left(23);
        self.0 = self.0.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ self.0 >> 29;
    }

    fn end(mut self) -> u64 {
        self.0 = (self.0 ^ self.0 >> 32).wrapping_mul(0x94d0_49bb_1331_11eb);
        // 0 stands for "no parent".
        (self.0 ^ self.0 >> 29).max(1)
    }
}

/// Fingerprint by fingerprint of the state before.
pub type Seen = HashMap<u64, u64, Mixing>;

/// Hashes keys that are fingerprints already, or a few numbers.
pub type Mixing = BuildHasherDefault<Quick>;

#[derive(Default)]
pub struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        let wide = u128::from(self.0 ^ value ^ 0x2545_f491_4f6c_dd1d) * 0x9e37_79b9_7f4a_7c15_u128;
        self.0 = (wide as u64) ^ (wide >> 64) as u64;
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_u128(&mut self, value: u128) {
        self.write_u64(value as u64);
        self.write_u64((value >> 64) as u64);
    }
}
