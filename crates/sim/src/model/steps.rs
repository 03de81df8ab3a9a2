//! Everything that can happen next in a state. What an agent or a coordinator may do, it may do
//! at any later time or never: so a freeze, a slow disk, a partition and an outage of the store are
//! all in here without steps of their own.

use super::names::{Set, letter};
use super::plan::{Plan, Switch};
use super::real::Real;
use super::state::State;
use super::{campaign, primary, standby};
use std::fmt;

/// A node, shown as a letter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name(pub usize);

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", letter(self.0))
    }
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub enum Step {
    // The store and its coordinators.
    OpenEpoch { epoch: u8 },
    Publish { epoch: u8, set: Set },
    // Faults.
    Crash { node: Name },
    Restart { node: Name },
    Cut { standby: Name, primary: Name },
    Wipe { node: Name },
    // A standby.
    Seal { node: Name, epoch: u8 },
    Report { node: Name, epoch: u8 },
    FastForward { node: Name, from: Name },
    Follow { node: Name, leader: Name, epoch: u8 },
    Rewind { node: Name, to: u8 },
    Promote { node: Name, epoch: u8 },
    // A primary, its walsenders and checkpointer, its agent.
    Write { node: Name },
    Flush { standby: Name, primary: Name },
    WalsenderReloads { primary: Name, standby: Name },
    WalsenderExits { primary: Name, standby: Name },
    StaleWalsenderExits { primary: Name, standby: Name },
    CheckpointerReloads { node: Name },
    Stop { node: Name },
    SealRunning { node: Name, epoch: u8 },
    Regrant { node: Name, epoch: u8 },
    BeginChange { node: Name, to: Set },
    SetNames { node: Name },
    Prove { node: Name },
    Observe { node: Name, end: u8 },
    Settle { node: Name, set: Set },
}

/// Steps with the states after them, before what clients were told is noted.
pub type Steps = Vec<(Step, State)>;

/// Fills `steps`, which is emptied first.
pub fn successors(plan: &Plan, real: &mut Real, state: &State, steps: &mut Steps) {
    steps.clear();
    if state.epoch < plan.bounds.epochs {
        let mut after = *state;
        after.epoch += 1;
        if plan.has(Switch::SetsReadAtOpen) {
            after.at_open = state.term.inforce;
        }
        steps.push((Step::OpenEpoch { epoch: after.epoch }, after));
    }
    for node in 0..plan.bounds.nodes {
        faults(plan, state, node, steps);
        standby::steps(plan, real, state, node, steps);
        primary::steps(plan, real, state, node, steps);
    }
    campaign::steps(plan, real, state, steps);
}

fn faults(plan: &Plan, state: &State, index: usize, steps: &mut Steps) {
    use super::state::Role;
    let node = &state.nodes[index];
    let name = Name(index);
    if node.role != Role::Down && state.crashes < plan.bounds.crashes {
        let mut after = *state;
        after.crashes += 1;
        if node.role == Role::Primary {
            after.stop_primary(index);
        } else {
            after.disconnect(index);
        }
        after.nodes[index].role = Role::Down;
        if plan.has(Switch::VolatilePromise) {
            after.nodes[index].promise = 1;
        }
        steps.push((Step::Crash { node: name }, after));
    }
    if node.role == Role::Down {
        let mut after = *state;
        after.nodes[index].role = Role::Standby;
        steps.push((Step::Restart { node: name }, after));
    }
    let idle = node.role != Role::Primary && node.follows == super::state::NOBODY;
    if idle && state.wipes < plan.bounds.wipes && node.incarnation < 2 {
        let mut after = *state;
        after.wipes += 1;
        let wiped = &mut after.nodes[index];
        wiped.log = Default::default();
        wiped.line = 1;
        wiped.incarnation += u8::from(!plan.has(Switch::SameIncarnation));
        steps.push((Step::Wipe { node: name }, after));
    }
}
