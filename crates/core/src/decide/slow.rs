//! A leader that is alive and slow: its own disk takes each record only after long.
//!
//! Seen from outside such a leader is well, so it judges itself, by how long its own records take
//! to reach its own disk. Standbys get a record only after that: how much longer each takes says
//! how fast its disk is. Whether a slow leader hands over is the operator's choice; it never does
//! to a standby that is not known to be faster.

use super::{Action, Verdict};
use crate::ids::{Member, Time};
use crate::policy;
use crate::term::Term;
use crate::view::View;

/// What the slowness of this leader calls for, if it lasts.
pub fn decide(view: &View, now: Time, term: &Term) -> Option<Verdict> {
    let since = slow_since(view, now)?.max(view.awake);
    let lasts = now.since(since);
    if lasts < policy::SLOW_SHOWN_MS {
        return None;
    }
    let over = policy::SLOW_FLUSH_MS;
    let why = format!("each record takes over {over} ms to reach the leader's disk");
    let hold = |ends: &str| Some(Verdict::hold("slow", why.clone(), ends));
    let Some(after) = view.policy.slow_after_ms else {
        return hold("a faster disk, or a switchover: `switchover_when_slow` would have done it");
    };
    let again = view.leading.handed.is_some_and(|at| now.since(at) < policy::SLOW_AGAIN_MS);
    let busy = view.wish.is_some() || view.campaign.is_some() || view.store.maintenance;
    if lasts < after || again || busy {
        return hold("a faster disk, or a switchover when it lasts");
    }
    match faster(view, term) {
        Some(to) => {
            let to = Some(to.node.clone());
            Some(Verdict::act("slow-leader", why, Action::HandOver { to }))
        }
        None => hold("a standby that may lead, acknowledges, and is known to be faster"),
    }
}

/// Since when every record was slow, the one that is on its way included.
fn slow_since(view: &View, now: Time) -> Option<Time> {
    let on_its_way = view.leading.evidence.filter(|(_, end)| end.0 == 0).map(|(at, _)| at);
    let late = on_its_way.filter(|at| now.since(*at) >= policy::SLOW_FLUSH_MS);
    view.leading.slow.or(late)
}

/// The fastest of the members that may lead, among those that lately were much faster.
fn faster<'a>(view: &View, term: &'a Term) -> Option<&'a Member> {
    let fit = |m: &&Member| view.may_take_over(m);
    let took = |m: &Member| {
        let (_, ms) = view.leading.follows.get(&view.walsender(m)?.name)?;
        (*ms < policy::SLOW_FLUSH_MS).then_some(*ms)
    };
    let known = term.target.members.iter().filter(fit).filter_map(|m| Some((took(m)?, m)));
    known.min().map(|(_, member)| member)
}
