//! A standby's copy that makes way for a new copy of the leader, once nothing hangs on it: it has bad
//! pages, or the log that it lacks is gone.

use super::node::leader_source;
use super::{Verdict, Write, rejoin, rot};
use crate::ids::{Lsn, Member, Time};
use crate::postgres::PgAction;
use crate::status::{State, Status};
use crate::view::{Guard, View};

/// Why the copy is of no use any more.
struct Reason {
    /// Of the hold, while it can't be replaced.
    rule: &'static str,
    why: String,
}

/// `end`: up to where it has the log.
fn reason(view: &View, now: Time, end: Lsn) -> Option<Reason> {
    if let Some(bad) = view.bad_pages() {
        return Some(Reason { rule: "bad-pages", why: rot::told(bad) });
    }
    // No segment comes back that was removed.
    let from = view.leader_status(now)?.log_from.filter(|from| *from > end)?;
    let why = format!("it has the log up to {end}, and the leader only from {from} on");
    Some(Reason { rule: "log-gone", why })
}

/// What a standby does that is to follow the leader.
pub fn standby(view: &View, now: Time) -> Option<Verdict> {
    // A server asks for more once it has replayed all that it has itself. Before that it may have more.
    let asked = view.pg.received > Lsn(0);
    let end = if asked { view.pg.lsn.max(view.pg.received) } else { Lsn(u64::MAX) };
    let Reason { rule, why } = reason(view, now, end)?;
    Some(match waits(view, now) {
        // It acknowledges nothing more before it is certain that nothing hangs on it.
        None => {
            let why = format!("{why}: a new copy of the leader");
            Verdict::pg("repair", why, PgAction::SetSource { source: None })
        }
        Some((wait, unblocks, operator)) => {
            let why = format!("{why}; no client reads here; {wait}");
            match operator {
                true => Verdict::hold_for_operator(rule, why, unblocks),
                false => Verdict::hold(rule, why, unblocks),
            }
        }
    })
}

/// The same once it receives nothing any more. It was told of a set without it, and that this is
/// still the newest one is asked of the store: a leader may have taken it back meanwhile.
pub fn parked(view: &View, now: Time) -> Option<Verdict> {
    let (end, _) = view.parked?;
    let Reason { why, .. } = reason(view, now, end).filter(|_| waits(view, now).is_none())?;
    let term_rev = view.store.term.as_ref()?.rev;
    if view.confirmed != Some(term_rev) && view.has(Guard::NeededStays) {
        let why = "no set in force names it";
        return Some(Verdict::store("repair", why, Write::Confirm { term_rev }));
    }
    Some(rejoin::repair(view, format!("{why}: a new copy of the leader")))
}

/// Why the repair can't begin now, what ends that, and whether only a person does.
fn waits(view: &View, now: Time) -> Option<(String, String, bool)> {
    let wait = |why: &str, unblocks: &str| Some((why.to_string(), unblocks.to_string(), false));
    if view.store.maintenance {
        return wait("the service is in maintenance", "its end: `everhold maintenance`");
    }
    let Some((term, _)) = leader_source(view, now) else {
        return wait("the leader is not heard", "a running leader");
    };
    if view.leader_status(now).is_none_or(|leader| leader.bad_pages > 0) {
        let why = "the leader has bad pages too, and this copy may have them whole";
        let unblocks = "a leader without bad pages: `everhold switchover`, or a restore";
        return Some((why.to_string(), unblocks.to_string(), true));
    }
    let called = view.others().any(|node| view.fresh(node, now).is_some_and(|s| s.call.is_some()));
    if !term.open || term.is_changing() || view.campaign.is_some() || called {
        return wait("the term is not settled", "a term that is open");
    }
    if !view.has(Guard::NeededStays) {
        return None;
    }
    if term.names(&view.me) {
        // With as many nodes as a commit needs, there is never another.
        let ever = view.others().count() > term.target.k as usize;
        let why = "it is needed to acknowledge commits".to_string();
        let unblocks = "another standby that streams and acknowledges in its place";
        return Some((why, unblocks.to_string(), !ever));
    }
    let streams = |m: &&Member| view.fresh(&m.node, now).is_some_and(|s| s.streaming);
    if let Some(gone) = term.target.members.iter().find(|m| !streams(m)) {
        return wait(&format!("{} of the set does not stream", gone.node), "it streams");
    }
    let before = view.policy.nodes.iter().take_while(|node| **node != view.me);
    let first = before.map(String::as_str).find(|node| {
        view.fresh(node, now).is_some_and(|s| s.bad_pages > 0 && s.primary.is_none())
            && !term.names(node)
    });
    let copies = |node: &&str| view.fresh(node, now).is_some_and(is_a_copy_being_made);
    let busy = first.or_else(|| view.others().find(copies));
    busy.and_then(|node| wait(&format!("{node} is being copied first"), &format!("{node} follows")))
}

fn is_a_copy_being_made(status: &Status) -> bool {
    matches!(status.state, State::Cloning | State::Rewinding | State::CatchingUp)
        || status.data != crate::durable::Data::Ok
}
