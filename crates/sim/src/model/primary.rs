//! The steps of a primary: what its server does, and what its agent does with the term.

use super::acknowledge::{has_acknowledged, note_up_to};
use super::names::Set;
use super::plan::{Plan, Switch};
use super::real::Real;
use super::state::{Link, List, Past, Role, Row, State};
use super::steps::{Name, Step, Steps};

pub fn steps(plan: &Plan, real: &mut Real, state: &State, node: usize, steps: &mut Steps) {
    let it = &state.nodes[node];
    if it.role != Role::Primary {
        return;
    }
    if it.log.len() < plan.bounds.records {
        let mut after = *state;
        after.nodes[node].log.push(state.term.branch(it.branch).epoch);
        steps.push((Step::Write { node: Name(node) }, after));
    }
    for standby in 0..plan.bounds.nodes {
        walsender(plan, state, node, standby, steps);
    }
    if it.defined != it.names.defined() {
        let mut after = *state;
        after.nodes[node].defined = it.names.defined();
        steps.push((Step::CheckpointerReloads { node: Name(node) }, after));
    }
    if state.epoch > it.leads {
        stop(plan, state, node, steps);
    }
    if state.leads_the_term(node) {
        regrant(plan, real, state, node, steps);
        begin_change(plan, real, state, node, steps);
        prove(plan, state, node, steps);
        observe(plan, real, state, node, steps);
        settle(plan, real, state, node, steps);
    }
    // The agent applies what it wrote to the store, however late.
    if it.names != it.wanted {
        let mut after = *state;
        after.nodes[node].names = it.wanted;
        after.nodes[node].observed = 0;
        if !plan.has(Switch::OldProof) {
            after.nodes[node].proven = Default::default();
        }
        steps.push((Step::SetNames { node: Name(node) }, after));
    }
}

fn walsender(plan: &Plan, state: &State, node: usize, standby: usize, steps: &mut Steps) {
    let it = &state.nodes[node];
    let row = state.rows[node][standby];
    let (primary, name) = (Name(node), Name(standby));
    if row.link == Link::Live && state.nodes[standby].log.len() < it.log.len() {
        let mut after = *state;
        let follower = &mut after.nodes[standby];
        follower.log.push(it.log.at(follower.log.len()));
        after.rows[node][standby].flush = after.nodes[standby].log.len();
        steps.push((Step::Flush { standby: name, primary }, after));
    }
    if row.link == Link::Live && state.cuts < plan.bounds.cuts {
        let mut after = *state;
        after.cuts += 1;
        after.disconnect(standby);
        steps.push((Step::Cut { standby: name, primary }, after));
    }
    if row.link != Link::Gone && row.copy != it.names {
        let mut after = *state;
        after.rows[node][standby].copy = it.names;
        steps.push((Step::WalsenderReloads { primary, standby: name }, after));
    }
    // One that lingers with the newest names hinders nothing: its end would change nothing.
    if row.link == Link::Lingering && row.copy != it.names {
        let mut after = *state;
        let (stale, stale_copy) = (row.stale, row.stale_copy);
        after.rows[node][standby] = Row { stale, stale_copy, ..Row::default() };
        steps.push((Step::WalsenderExits { primary, standby: name }, after));
    }
    if row.stale > 0 {
        let mut after = *state;
        after.rows[node][standby].stale = 0;
        after.rows[node][standby].stale_copy = Default::default();
        steps.push((Step::StaleWalsenderExits { primary, standby: name }, after));
    }
}

/// Sealed or superseded, the leader comes back as a standby without source.
fn stop(plan: &Plan, state: &State, node: usize, steps: &mut Steps) {
    let mut after = *state;
    after.stop_primary(node);
    after.nodes[node].role = Role::Standby;
    steps.push((Step::Stop { node: Name(node) }, after));
    let epoch = state.epoch;
    if plan.has(Switch::RunningLeaderSealed) && state.nodes[node].promise < epoch {
        let mut after = *state;
        after.nodes[node].promise = epoch;
        after.report(node, epoch);
        steps.push((Step::SealRunning { node: Name(node), epoch }, after));
    }
}

fn regrant(plan: &Plan, real: &Real, state: &State, node: usize, steps: &mut Steps) {
    let old = plan.has(Switch::RegrantFromOldEpoch);
    let lowest = if old { state.term.epoch + 1 } else { state.epoch + 1 };
    if state.epoch <= state.term.epoch {
        return;
    }
    for epoch in lowest..=(state.epoch + 1).min(plan.bounds.epochs) {
        if epoch <= state.nodes[node].promise {
            continue;
        }
        let mut after = *state;
        after.epoch = epoch;
        after.term = real.regranted(&state.term, epoch);
        if plan.has(Switch::RegrantDropsOldSets) {
            after.term.inforce = List::one(after.term.current());
        }
        let tli = state.nodes[node].branch;
        after.past[epoch as usize] = Past { set: state.term.target, tli };
        let leader = &mut after.nodes[node];
        leader.leads = epoch;
        leader.promise = epoch;
        leader.granted = epoch;
        steps.push((Step::Regrant { node: Name(node), epoch }, after));
    }
}

/// A change is under way.
fn is_changing(state: &State, node: usize) -> bool {
    let target = state.term.target;
    state.nodes[node].before != Set::NONE || state.term.current() != target
}

fn begin_change(plan: &Plan, real: &mut Real, state: &State, node: usize, steps: &mut Steps) {
    let it = &state.nodes[node];
    let guarded = plan.has(Switch::ChangesGuardEpoch) && state.epoch != state.term.epoch;
    let full = plan.has(Switch::JointList) && state.term.inforce.is_full();
    let changing = is_changing(state, node);
    if changing && !plan.has(Switch::ChangeAnew)
        || state.changes >= plan.bounds.changes
        || guarded
        || full
    {
        return;
    }
    let from = state.term.target;
    for to in wanted_sets(plan, state, node) {
        let in_vain = (0..plan.bounds.nodes)
            .any(|n| from.member(n).is_some() && from.member(n) != to.member(n));
        if changing && !in_vain {
            continue;
        }
        let raising = state.term.current().k() < to.k();
        // A rise is seen by priorities of 2 and more: none may be left from the last one, but
        // those of a rise under way that goes as high.
        let unsettled = state.rows[node].iter().enumerate().any(|(standby, row)| {
            row.link != Link::Gone && row.copy.priority(standby, row.incarnation) > 1
        });
        let higher = !changing || to.k() > from.k();
        let unsettled = unsettled && higher && !plan.has(Switch::RaiseUnfinished);
        if raising && (unsettled || !changing && it.names != it.wanted) {
            continue;
        }
        let mut after = *state;
        after.changes += 1;
        let stored = store_change(plan, real, state, to);
        after.term = stored;
        let leader = &mut after.nodes[node];
        leader.observed = 0;
        leader.before = if forgets(plan) { from } else { Set::NONE };
        let visible = raising && !plan.has(Switch::NothingObserved);
        leader.wanted = real.names(to, visible);
        steps.push((Step::BeginChange { node: Name(node), to }, after));
    }
}

/// The ways of changing in which the store doesn't hold the envelope.
fn forgets(plan: &Plan) -> bool {
    [Switch::JointList, Switch::StoreOnly, Switch::NamesOnly].iter().any(|way| plan.has(*way))
}

/// The term while the change is under way.
fn store_change(plan: &Plan, real: &mut Real, state: &State, to: Set) -> super::state::Term {
    let mut term = state.term;
    term.target = to;
    if plan.has(Switch::JointList) {
        term.inforce.push(to);
    } else if plan.has(Switch::StoreOnly) {
        if let Some(last) = term.inforce.last_mut() {
            *last = to;
        }
    } else if !plan.has(Switch::NamesOnly) {
        return real.change_begun(&state.term, to);
    }
    term
}

/// All sets that a leader might want next.
fn wanted_sets(plan: &Plan, state: &State, node: usize) -> Vec<Set> {
    let mut sets = if plan.has(Switch::AnyChange) {
        any_set(plan, state, node)
    } else {
        next_sets(plan, state, node)
    };
    let from = state.term.target;
    let all = |holds: &dyn Fn(usize) -> bool| (0..plan.bounds.nodes).all(holds);
    if !plan.has(Switch::SwapInOneStep) {
        // A new incarnation is a new member: the old one leaves first.
        sets.retain(|to| {
            all(&|n| {
                from.member(n).is_none() || to.member(n).is_none() || from.member(n) == to.member(n)
            })
        });
    }
    if plan.has(Switch::KeepK) {
        sets.retain(|to| to.k() == from.k() || to.same_members(from));
    }
    if !plan.has(Switch::JoinsBeforeStreaming) {
        let streams = |n: usize, incarnation: u8| {
            let row = &state.rows[node][n];
            row.link == Link::Live && row.incarnation == incarnation
        };
        sets.retain(|to| {
            all(&|n| to.member(n).is_none_or(|own| from.member(n) == Some(own) || streams(n, own)))
        });
    }
    sets
}

/// One member or k more or less.
fn next_sets(plan: &Plan, state: &State, node: usize) -> Vec<Set> {
    let from = state.term.target;
    let mut sets = Vec::new();
    for other in (0..plan.bounds.nodes).filter(|other| *other != node) {
        let incarnation = state.nodes[other].incarnation;
        if from.member(other) != Some(incarnation) {
            let to = from.with(other, incarnation);
            sets.push(to.with_k(to.k().max(1)));
        }
        if from.member(other).is_some() {
            let to = from.without(other);
            if to.size() > 0 {
                sets.push(to.with_k(to.k().min(to.size())));
            } else {
                sets.push(to);
                if plan.has(Switch::Alone) {
                    sets.push(to.with_k(0));
                }
            }
        }
    }
    if plan.has(Switch::ChangeOfK) {
        let others = (1..=from.size().min(3)).filter(|k| *k != from.k());
        sets.extend(others.map(|k| from.with_k(k)));
    }
    sets.retain(|to| *to != from);
    sets
}

/// Any set of the nodes as they are now, with any k.
fn any_set(plan: &Plan, state: &State, node: usize) -> Vec<Set> {
    let empty = Set::new(node, state.nodes[node].incarnation, 0);
    let mut sets = Vec::new();
    for members in 0..1_usize << plan.bounds.nodes {
        let chosen = |n: &usize| members >> n & 1 == 1;
        if chosen(&node) {
            continue;
        }
        let nodes = (0..plan.bounds.nodes).filter(chosen);
        let set = nodes.fold(empty, |set, n| set.with(n, state.nodes[n].incarnation));
        let least = u8::from(set.size() > 0 || !plan.has(Switch::Alone));
        for k in least..=set.size().max(least).min(3) {
            sets.push(set.with_k(k));
        }
    }
    sets.retain(|to| *to != state.term.target);
    sets
}

/// A checkpoint begun with these names has ended; kept only where it may count later.
fn prove(plan: &Plan, state: &State, node: usize, steps: &mut Steps) {
    let it = &state.nodes[node];
    let reloaded = it.defined == it.names.defined();
    if plan.has(Switch::OldProof) && it.names.defined() && reloaded && it.proven != it.names {
        let mut after = *state;
        after.nodes[node].proven = it.names;
        steps.push((Step::Prove { node: Name(node) }, after));
    }
}

/// All walsenders show the names: the place that the new set must have flushed is read.
fn observe(plan: &Plan, real: &mut Real, state: &State, node: usize, steps: &mut Steps) {
    let it = &state.nodes[node];
    let pending = !state.term.open || is_changing(state, node);
    if it.observed != 0 || it.names != it.wanted || !pending {
        return;
    }
    let written = state.term.open || has_acknowledged(state, node) || plan.has(Switch::NoBarrier);
    let early = [Switch::CheckpointerUnproven, Switch::FlushPlaceBeforeProof];
    let proven = if plan.has(Switch::OldProof) {
        it.proven == it.names || !it.names.defined()
    } else {
        it.defined == it.names.defined() || early.iter().any(|switch| plan.has(*switch))
    };
    let follow = plan.has(Switch::NothingObserved) || real.leading(plan, state, node).follow;
    if written && proven && follow {
        let end = it.log.len();
        let mut after = *state;
        after.nodes[node].observed = end + 1;
        steps.push((Step::Observe { node: Name(node), end }, after));
    }
}

/// The change ends, or the term opens, when core's leader says so.
fn settle(plan: &Plan, real: &mut Real, state: &State, node: usize, steps: &mut Steps) {
    let it = &state.nodes[node];
    let pending = !state.term.open || is_changing(state, node);
    let guarded = plan.has(Switch::ChangesGuardEpoch) && state.epoch != state.term.epoch;
    if it.observed == 0 || !pending || guarded || !real.leading(plan, state, node).settles {
        return;
    }
    let mut after = *state;
    after.term = real.settled(&state.term);
    let target = after.term.target;
    let leader = &mut after.nodes[node];
    leader.observed = 0;
    leader.before = Set::NONE;
    leader.wanted = real.names(target, false);
    if plan.has(Switch::ReadsFromOpen) {
        note_up_to(&mut after, node, it.observed - 1);
    }
    steps.push((Step::Settle { node: Name(node), set: target }, after));
}
