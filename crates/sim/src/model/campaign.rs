//! The campaign's last step: cover, choice and publication in one guarded write of the store.

use super::plan::{Plan, Switch};
use super::real::Real;
use super::state::{Past, State};
use super::steps::{Step, Steps};

pub fn steps(plan: &Plan, real: &mut Real, state: &State, steps: &mut Steps) {
    let unguarded = plan.has(Switch::PublishUnguarded);
    let lowest = if unguarded { 2 } else { state.epoch };
    for epoch in lowest..=state.epoch {
        let decided = epoch <= state.term.epoch && !unguarded;
        if decided || state.past[epoch as usize] != Past::default() {
            continue;
        }
        for term in real.published(plan, state, epoch) {
            let mut after = *state;
            after.term = term;
            let tli = term.tip();
            after.past[epoch as usize] = Past { set: term.target, tli };
            steps.push((Step::Publish { epoch, set: term.target }, after));
        }
    }
}
