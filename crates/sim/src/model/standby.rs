//! The steps of a standby: seal, report, fast-forward, follow, rewind, promote.

use super::plan::{Plan, Switch};
use super::real::Real;
use super::state::{Link, List, Log, NOBODY, Role, Row, State};
use super::steps::{Name, Step, Steps};

pub fn steps(plan: &Plan, real: &mut Real, state: &State, node: usize, steps: &mut Steps) {
    if state.nodes[node].role != Role::Standby {
        return;
    }
    if plan.has(Switch::NoSeal) {
        report_unsealed(state, node, steps);
    } else {
        seal(plan, state, node, steps);
        report(plan, state, node, steps);
    }
    if state.nodes[node].follows != NOBODY {
        return;
    }
    if plan.has(Switch::FastForward) {
        fast_forward(plan, state, node, steps);
    }
    follow(plan, real, state, node, steps);
    rewind(plan, real, state, node, steps);
    promote(plan, real, state, node, steps);
}

fn report_unsealed(state: &State, node: usize, steps: &mut Steps) {
    for epoch in state.term.epoch + 1..=state.epoch {
        if !state.reports[epoch as usize][node].told {
            let mut after = *state;
            after.report(node, epoch);
            steps.push((Step::Report { node: Name(node), epoch }, after));
        }
    }
}

fn seal(plan: &Plan, state: &State, node: usize, steps: &mut Steps) {
    for epoch in state.nodes[node].promise + 1..=state.epoch {
        let mut after = *state;
        after.nodes[node].promise = epoch;
        if plan.has(Switch::EarlyReport) {
            after.report(node, epoch);
        } else if !plan.has(Switch::TwoStepSeal) {
            after.disconnect(node);
            after.report(node, epoch);
        }
        steps.push((Step::Seal { node: Name(node), epoch }, after));
    }
}

/// The receiver is proven gone, then the report; also again, after a restart.
fn report(plan: &Plan, state: &State, node: usize, steps: &mut Steps) {
    let it = &state.nodes[node];
    let epoch = it.promise;
    let asked = epoch > state.term.epoch && epoch <= state.epoch;
    let told = state.reports[epoch as usize][node].told;
    let early = plan.has(Switch::EarlyReport);
    let still_receives = it.follows != NOBODY;
    let due = if early {
        told && still_receives
    } else {
        !told && (plan.has(Switch::TwoStepSeal) || !still_receives)
    };
    if asked && due {
        let mut after = *state;
        after.disconnect(node);
        if !early {
            after.report(node, epoch);
        }
        steps.push((Step::Report { node: Name(node), epoch }, after));
    }
}

/// Streams the missing tail from another node sealed in the same campaign, then reports again.
fn fast_forward(plan: &Plan, state: &State, node: usize, steps: &mut Steps) {
    let it = &state.nodes[node];
    let reports = &state.reports[it.promise as usize];
    if it.promise <= state.term.epoch || !reports[node].told {
        return;
    }
    for (from, source) in state.nodes[..plan.bounds.nodes].iter().enumerate() {
        let sealed = source.role == Role::Standby
            && source.follows == NOBODY
            && source.promise == it.promise
            && reports[from].told;
        let behind = it.log.len() < source.log.len() && it.log.is_prefix_of(source.log);
        if from != node && sealed && behind {
            let mut after = *state;
            after.nodes[node].log = source.log;
            if !plan.has(Switch::FastForwardKeepsLine) {
                after.nodes[node].line = source.line;
            }
            after.report(node, it.promise);
            steps.push((Step::FastForward { node: Name(node), from: Name(from) }, after));
        }
    }
}

fn follow(plan: &Plan, real: &mut Real, state: &State, node: usize, steps: &mut Steps) {
    let it = &state.nodes[node];
    for epoch in 1..=state.epoch {
        let past = state.past[epoch as usize];
        let leader = past.set.leader();
        let known = past.tli != 0 && leader != node;
        if !known || (epoch < it.promise && !plan.has(Switch::FollowBelowPromise)) {
            continue;
        }
        let primary = &state.nodes[leader];
        if primary.role != Role::Primary || primary.branch != past.tli {
            continue;
        }
        let mut after = *state;
        let fits = real.follows(state, node, past)
            || plan.has(Switch::TimelineNumbersOnly)
                && numbers(state, it.log).is_prefix_of(numbers(state, primary.log));
        if !fits {
            if !plan.has(Switch::NoHistoryCheck) {
                continue;
            }
            let common = it.log.common(primary.log);
            after.nodes[node].log = it.log.cut(common);
        }
        connect(plan, &mut after, node, leader);
        let follower = &mut after.nodes[node];
        if !plan.has(Switch::NoRaiseOnFollow) {
            follower.promise = follower.promise.max(epoch);
        }
        follower.line = past.tli;
        steps.push((Step::Follow { node: Name(node), leader: Name(leader), epoch }, after));
    }
}

/// The log by PostgreSQL's timeline numbers: all that it compares itself.
fn numbers(state: &State, log: Log) -> Log {
    let number = |epoch: u8| {
        let branches = state.term.branches.as_slice();
        branches.iter().find(|branch| branch.epoch == epoch).map_or(0, |branch| branch.number)
    };
    let mut numbers = Log::default();
    (0..log.len()).for_each(|place| numbers.push(number(log.at(place))));
    numbers
}

/// A new walsender inherits the names of the server. Its predecessor ends, since the slot has room
/// for one, unless there are no slots.
fn connect(plan: &Plan, state: &mut State, node: usize, leader: usize) {
    let old = state.rows[leader][node];
    let mut row = Row {
        link: Link::Live,
        incarnation: state.nodes[node].incarnation,
        copy: state.nodes[leader].names,
        flush: state.nodes[node].log.len(),
        stale: old.stale,
        stale_copy: old.stale_copy,
    };
    if plan.has(Switch::SecondWalsender) && old.link == Link::Lingering && old.stale == 0 {
        row.stale = old.flush + 1;
        row.stale_copy = old.copy;
    }
    state.rows[leader][node] = row;
    state.nodes[node].follows = leader as u8;
}

/// Back to where its history left the leader's: a new incarnation, durable before the first
/// destructive byte. How much of the leader's own it then copies is left to `Flush`.
fn rewind(plan: &Plan, real: &mut Real, state: &State, node: usize, steps: &mut Steps) {
    let it = &state.nodes[node];
    let term = &state.term;
    let leader = term.leader();
    let primary = &state.nodes[leader];
    let runs = primary.role == Role::Primary && primary.leads == term.epoch;
    let allowed = term.open || plan.has(Switch::RewindBeforeOpen);
    if !runs || !allowed || leader == node || term.epoch < it.promise || it.incarnation >= 2 {
        return;
    }
    let past = super::state::Past { set: term.target, tli: primary.branch };
    if real.follows(state, node, past) {
        return;
    }
    let mut after = *state;
    let common = it.log.common(primary.log);
    let rewound = &mut after.nodes[node];
    rewound.log = it.log.cut(common);
    rewound.line = primary.branch;
    rewound.incarnation += u8::from(!plan.has(Switch::SameIncarnation));
    rewound.promise = it.promise.max(term.epoch);
    steps.push((Step::Rewind { node: Name(node), to: common }, after));
}

fn promote(plan: &Plan, real: &mut Real, state: &State, node: usize, steps: &mut Steps) {
    let it = &state.nodes[node];
    for epoch in 1..=state.epoch {
        let past = state.past[epoch as usize];
        let named = past.tli != 0
            && past.set.leader() == node
            && past.set.leader_incarnation() == it.incarnation;
        let promised = it.promise == epoch || plan.has(Switch::PromoteAnyway);
        // A late wake-up may find that the end isn't the published fork any more.
        let place = named && state.term.branch(past.tli).fork == it.log.len();
        if !named || !promised || it.granted >= epoch || !place && !plan.has(Switch::NoSeal) {
            continue;
        }
        let mut after = *state;
        let number = state.term.branch(it.line).number + 1;
        let names = real.names(past.set, false);
        let promoted = &mut after.nodes[node];
        promoted.role = Role::Primary;
        promoted.leads = epoch;
        promoted.granted = epoch;
        promoted.branch = past.tli;
        promoted.line = past.tli;
        promoted.names = names;
        promoted.wanted = names;
        promoted.defined = names.defined();
        if plan.has(Switch::TimelineNumbersOnly) {
            after.term.branches.as_mut_slice()[past.tli as usize - 1].number = number;
        }
        if plan.has(Switch::PromoteDropsOldSets) && state.term.epoch == epoch {
            after.term.inforce = List::one(past.set);
        }
        steps.push((Step::Promote { node: Name(node), epoch }, after));
    }
}
