//! When a commit counts as acknowledged: PostgreSQL's own rule, as early as it allows.
//!
//! Each walsender takes k from its own copy of the names and counts every walsender whose own copy
//! lists it. `FIRST k` is counted as `ANY k`, which acknowledges earlier, never later.

use super::plan::{Plan, Switch};
use super::state::{Link, NODES, State};

/// The end of what the primary may acknowledge. `None`: nobody could acknowledge anything.
/// With `only_live` it tells about records still to be written, which a lingering walsender can't
/// have flushed.
pub fn acknowledged(plan: &Plan, state: &State, primary: usize, only_live: bool) -> Option<u8> {
    let node = &state.nodes[primary];
    if !node.defined {
        return Some(node.log.len());
    }
    // (k of its own copy, flush) of each row that counts.
    let mut counted = [(0_u8, 0_u8); 2 * NODES];
    let mut rows = 0;
    for (standby, row) in state.rows[primary].iter().enumerate() {
        let named = |copy: super::names::Names| {
            copy.lists(standby).is_some_and(|incarnation| {
                incarnation == row.incarnation || plan.has(Switch::NameWithoutIncarnation)
            })
        };
        let here = row.link == Link::Live || row.link == Link::Lingering && !only_live;
        if here && named(row.copy) {
            counted[rows] = (row.copy.k(), row.flush);
            rows += 1;
        }
        if row.stale > 0 && !only_live && named(row.stale_copy) {
            counted[rows] = (row.stale_copy.k(), row.stale - 1);
            rows += 1;
        }
    }
    let counted = &counted[..rows];
    let held_by = |end: u8| counted.iter().filter(|(_, flush)| *flush >= end).count();
    let released = |k: u8| {
        let enough = |end: &u8| held_by(*end) >= k as usize;
        counted.iter().map(|(_, flush)| *flush).filter(enough).max()
    };
    counted.iter().filter(|(k, _)| *k > 0).filter_map(|(k, _)| released(*k)).max()
}

/// Notes what clients may have been told.
pub fn note(plan: &Plan, state: &mut State) {
    for primary in 0..plan.bounds.nodes {
        if state.nodes[primary].role != super::state::Role::Primary {
            continue;
        }
        let Some(end) = acknowledged(plan, state, primary, false) else { continue };
        let node = state.nodes[primary];
        let end = end.min(node.log.len());
        let own = state.term.branch(node.branch).epoch;
        // A client is told of records that this leadership wrote, with everything before them.
        let inherited = end == 0 || node.log.at(end - 1) != own;
        if !inherited || plan.has(Switch::ReadsBeforeOpen) {
            note_up_to(state, primary, end);
        }
    }
}

/// A record of the primary's own branch was acknowledged: its barrier.
pub fn has_acknowledged(state: &State, primary: usize) -> bool {
    let own = state.term.branch(state.nodes[primary].branch).epoch;
    state.acked[own as usize] != Default::default()
}

/// All records of the primary's log up to `end` are known to clients.
pub fn note_up_to(state: &mut State, primary: usize, end: u8) {
    let node = state.nodes[primary];
    for place in 0..end {
        state.acknowledge(node.log.at(place), place, node.leads);
    }
}
