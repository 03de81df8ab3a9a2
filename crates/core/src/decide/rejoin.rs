//! How a node whose history is not a part of the leader's comes back: rewind, else clone; and how a
//! new node gets its data.

use super::node::leader_source;
use super::{Action, Intent, Verdict, backing_off, put_back};
use crate::durable::{Data, Durable};
use crate::ids::{Lsn, Time, Tli};
use crate::policy;
use crate::postgres::PgAction;
use crate::term::{Branch, Term};
use crate::view::{Guard, Rejoin, View};

/// The next step of a rewind, a clone, or the first one.
pub fn decide(view: &View, now: Time) -> Verdict {
    match view.durable.data {
        Data::Empty => empty(view, now),
        Data::Destroying => copy(view, now),
        Data::Ok | Data::CatchUp { .. } => begin(view, now),
    }
}

/// A copy that never became whole is thrown away for a new one.
pub fn again(view: &View, why: &str) -> Verdict {
    let plan = Rejoin::Clone { fork: None };
    Verdict::persist("re-clone", why, destroying(view), Intent::Rejoin(plan))
}

/// A copy that is whole but for its bad pages makes way for a new one.
pub fn repair(view: &View, why: impl Into<String>) -> Verdict {
    let plan = Rejoin::Clone { fork: None };
    Verdict::persist("repair", why, destroying(view), Intent::Rejoin(plan))
}

/// This node was promoted to a timeline that nobody granted. No name can tell what it wrote there
/// from what another wrote under the same number, so a clone replaces it once another leads.
pub fn astray(view: &View, now: Time, tli: Tli) -> Verdict {
    if view.term().is_some_and(|term| term.leader.node != view.me) {
        return begin(view, now);
    }
    Verdict::hold_for_operator(
        "wrong-branch",
        format!("this node was promoted to timeline {tli}, which was not granted"),
        "another node leads, or this data directory is moved away",
    )
}

/// The record before the first destructive byte. A node that lost its record with its disk finds
/// in the term which incarnations it had: none of them may come back with other data.
pub(super) fn destroying(view: &View) -> Durable {
    let raise = u32::from(view.has(Guard::Incarnation));
    let named = view.term().and_then(|term| term.newest_incarnation(&view.me)).unwrap_or(0);
    Durable {
        data: Data::Destroying,
        incarnation: view.durable.incarnation.max(named) + raise,
        promise: view.durable.promise.max(view.term().map_or(0, |term| term.epoch)),
        put_back: None,
        ..view.durable.clone()
    }
}

/// Nothing there yet: the first node of the spec makes the cluster, the others clone it.
fn empty(view: &View, now: Time) -> Verdict {
    if !view.store.read {
        return Verdict::hold("store-unread", "the store was not read yet", "a reachable store");
    }
    if view.term().is_some() {
        let Some((_, source)) = leader_source(view, now) else {
            return Verdict::hold("clone", "no running leader to clone", "a running leader");
        };
        let why = format!("a new node: a clone of {}", source.member);
        let intent = Intent::Rejoin(Rejoin::Clone { fork: None });
        return Verdict::persist("clone", why, destroying(view), intent);
    }
    if view.highest_promise() > 0 {
        return Verdict::hold_for_operator(
            "store-lost",
            "the store has no term, but nodes have promised epochs: its content is gone",
            "restore the store, or move all data directories but the best away and force a term",
        );
    }
    if view.policy.nodes.first() != Some(&view.me) {
        let first = view.policy.nodes.first().map_or("", String::as_str);
        return Verdict::hold("bootstrap", format!("{first} makes the cluster"), "its first term");
    }
    if let Some(hold) = backing_off(view, now, "bootstrap", "bootstrap") {
        return hold;
    }
    Verdict::pg("bootstrap", "no term and no data: the first node begins", PgAction::Bootstrap)
}

/// This node's history left the leader's line.
fn begin(view: &View, now: Time) -> Verdict {
    let (Some(term), Some((end, _))) = (view.term(), view.parked) else {
        return Verdict::hold("rejoin", "not parked", "the proof that nothing is received");
    };
    let Some(leader) = view.leader_status(now) else {
        return Verdict::hold("rejoin", "the leader is not heard", "a running leader");
    };
    let needed = is_witness(view, term);
    if needed && !gave_up_waiting(view, term, now) {
        let seen = view.store.term.as_ref().map_or(now, |record| record.seen);
        return Verdict::hold(
            "witness",
            "this node's history may be needed until the term is open",
            format!("{} opens epoch {}", term.leader, term.epoch),
        )
        .until(seen.plus(policy::WITNESS_MS), now);
    }
    let Some(branch) = term.branch() else { return Verdict::Steady };
    if leader.primary != Some(branch.tli) || leader.checkpoint != branch.tli {
        return Verdict::hold(
            "rejoin",
            format!("{} has made no checkpoint on timeline {}", term.leader, branch.tli),
            "its first checkpoint after the promotion",
        );
    }
    let fork = divergence(&view.durable.line, end, &term.line());
    let last = view.durable.last_record(end);
    let registered = last.is_some_and(|id| term.branches.iter().any(|b| b.id() == id));
    let collides = last.is_some_and(|id| id.tli == branch.tli) || view.unknown_branch().is_some();
    let plan = match fork {
        // A rewind leaves every page that both have as it is, the bad ones too.
        Some(fork) if registered && !collides && !needed && view.bad_pages().is_none() => {
            Rejoin::Rewind { fork }
        }
        fork => Rejoin::Clone { fork },
    };
    let why = format!("its history ends at {end}, off the line of {}", term.leader);
    Verdict::persist("rejoin", why, destroying(view), Intent::Rejoin(plan))
}

/// The history of this node, in whatever incarnation, may be needed to cover a set in force.
fn is_witness(view: &View, term: &Term) -> bool {
    term.names(&view.me) && !term.open && view.has(Guard::Incarnation)
}

/// A leader that runs and can't open needs a standby more than a witness.
fn gave_up_waiting(view: &View, term: &Term, now: Time) -> bool {
    let waited = view.store.term.as_ref().is_some_and(|r| now.since(r.seen) > policy::WITNESS_MS);
    waited && view.leader_status(now).is_some_and(|s| s.primary.is_some() && s.term == term.epoch)
}

/// Where a history that ends at `end` on `mine` leaves `theirs`; `None`: they share nothing.
pub fn divergence(mine: &[Branch], end: Lsn, theirs: &[Branch]) -> Option<Lsn> {
    let shared = mine.iter().zip(theirs).take_while(|(a, b)| a.id() == b.id()).count();
    let my_fork = mine.get(shared).map(|branch| branch.fork);
    let their_fork = theirs.get(shared).map(|branch| branch.fork);
    (shared > 0).then(|| [my_fork, their_fork].into_iter().flatten().fold(end, Lsn::min))
}

/// The copy itself, begun again from its start after any interruption.
fn copy(view: &View, now: Time) -> Verdict {
    if let Some(verdict) = put_back::take_place(view, now) {
        return verdict;
    }
    let Some((term, source)) = leader_source(view, now) else {
        return Verdict::hold("clone", "no running leader to copy from", "a running leader");
    };
    let plan = view.rejoin.unwrap_or(Rejoin::Clone { fork: None });
    if let Some(hold) = backing_off(view, now, "clone", "clone") {
        return hold;
    }
    let epoch = term.epoch;
    match plan {
        Rejoin::Rewind { fork } => {
            let why = format!("back to {fork}, then along {}", source.member);
            Verdict::pg("rewind", why, PgAction::Rewind { source, fork, epoch })
        }
        Rejoin::Clone { fork } => {
            let why = format!("a new copy of {}", source.member);
            // What it held may still be all that is left of a commit.
            let keep = is_witness(view, term);
            // Commits need a second disk more than this copy needs every page: it says itself which
            // are bad, and is made anew once there is a better one to copy.
            let bad_pages_too = view.leader_status(now).is_some_and(|s| s.bad_pages > 0);
            let clone = PgAction::Clone { source, fork, epoch, keep, bad_pages_too };
            Verdict::pg("clone", why, clone)
        }
    }
}

/// What the record becomes when a copy of the leader has ended: whole once it has replayed to where
/// the leader is now.
pub fn copied(view: &View, now: Time) -> Option<Action> {
    let (term, _) = leader_source(view, now)?;
    let until = view.leader_status(now)?.lsn;
    let durable = Durable {
        data: Data::CatchUp { until },
        line: term.line(),
        sysid: Some(term.sysid),
        promise: view.durable.promise.max(term.epoch),
        grant: None,
        // What was to be put back here came to nothing.
        put_back: None,
        ..view.durable.clone()
    };
    Some(Action::Persist { durable: Box::new(durable), intent: Intent::Plain })
}
