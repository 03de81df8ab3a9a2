//! What must hold in every state.

use super::acknowledge::acknowledged;
use super::names::letter;
use super::plan::{Expect, Plan};
use super::state::{EPOCHS, Link, NOBODY, Role, State};

/// What is wrong with the state, if anything.
pub fn broken(plan: &Plan, state: &State) -> Option<String> {
    let primaries = (0..plan.bounds.nodes).filter(|n| state.nodes[*n].role == Role::Primary);
    let mut acknowledging = 0;
    for primary in primaries.clone() {
        let lost = lost(state, primary);
        let foreign = foreign(plan, state, primary);
        if lost.is_some() || foreign.is_some() {
            return lost.or(foreign);
        }
        acknowledging += u8::from(acknowledged(plan, state, primary, true).is_some());
        let epoch = state.nodes[primary].leads;
        if primaries.clone().any(|other| other < primary && state.nodes[other].leads == epoch) {
            return Some(format!("TWO PRIMARIES of epoch {epoch}"));
        }
    }
    if acknowledging > 1 {
        return Some("SPLIT: two primaries can acknowledge a new commit".to_string());
    }
    // A broken rule is to be found by what it loses, not by this.
    let strict = plan.expect == Expect::Safe && !plan.keeps_lines();
    (0..plan.bounds.nodes).find_map(|node| mistaken(state, node)).filter(|_| strict)
}

/// A node without source whose recorded branches say something else than its log about who wrote
/// its last record. The line was brought up to date by core's `last_written`.
fn mistaken(state: &State, index: usize) -> Option<String> {
    let node = &state.nodes[index];
    let quiet = node.role != Role::Primary && node.follows == NOBODY && !node.log.is_empty();
    let said = state.term.branch(node.line).epoch;
    let wrong = quiet && said != node.log.last();
    wrong.then(|| format!("MISTAKEN: {} takes its last record for branch {said}'s", letter(index)))
}

/// A record acknowledged below the primary's epoch that its log doesn't hold.
fn lost(state: &State, primary: usize) -> Option<String> {
    let node = &state.nodes[primary];
    for branch in 1..EPOCHS as u8 {
        let acked = state.acked[branch as usize];
        for place in 0..acked.len() {
            let at = acked.at(place);
            if at != 0 && at < node.leads && node.log.at(place) != branch {
                let name = letter(primary);
                return Some(format!(
                    "LOST: record {branch}.{place}, acknowledged in epoch {at}, \
                     is not in {name}, primary of epoch {}",
                    node.leads
                ));
            }
        }
    }
    None
}

/// A standby that streams what doesn't continue its own history.
fn foreign(plan: &Plan, state: &State, primary: usize) -> Option<String> {
    let strays = |standby: &usize| {
        let live = state.rows[primary][*standby].link == Link::Live;
        live && !state.nodes[*standby].log.is_prefix_of(state.nodes[primary].log)
    };
    let standby = (0..plan.bounds.nodes).find(strays)?;
    let (standby, primary) = (letter(standby), letter(primary));
    Some(format!("DIVERGED: {standby} streams from {primary} what isn't its own history"))
}
