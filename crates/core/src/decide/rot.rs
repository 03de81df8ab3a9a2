//! What follows from bad pages: a copy that has some neither leads nor acknowledges where another
//! can, and makes way for a new copy of the leader once nothing hangs on it.
//!
//! Its log is as good as any other's, so it is a full witness: no seal and no cover is lost by it.
//! It leads only when nobody without bad pages may, or can get what it holds.

use super::node::leader_source;
use super::{Verdict, Write, rejoin};
use crate::ids::{Member, Time};
use crate::postgres::{BadPages, PgAction};
use crate::status::{State, Status};
use crate::term::{Preference, Reports, Term};
use crate::view::{Guard, View};
use std::collections::{BTreeMap, BTreeSet};

/// What a following standby with bad pages does.
pub fn standby(view: &View, now: Time) -> Option<Verdict> {
    let bad = view.bad_pages()?;
    Some(match waits(view, now) {
        // It acknowledges nothing more before it is certain that nothing hangs on it.
        None => {
            let why = format!("{}: a new copy of the leader", told(bad));
            Verdict::pg("repair", why, PgAction::SetSource { source: None })
        }
        Some((why, unblocks, operator)) => {
            let why = format!("{}; no client reads here; {why}", told(bad));
            match operator {
                true => Verdict::hold_for_operator("bad-pages", why, unblocks),
                false => Verdict::hold("bad-pages", why, unblocks),
            }
        }
    })
}

/// The same once it receives nothing any more. It was told of a set without it, and that this is
/// still the newest one is asked of the store: a leader may have taken it back meanwhile.
pub fn parked(view: &View, now: Time) -> Option<Verdict> {
    let bad = view.bad_pages().filter(|_| waits(view, now).is_none())?;
    let term_rev = view.store.term.as_ref()?.rev;
    if view.confirmed != Some(term_rev) && view.has(Guard::NeededStays) {
        let why = "no set in force names it";
        return Some(Verdict::store("repair", why, Write::Confirm { term_rev }));
    }
    Some(rejoin::repair(view, format!("{}: a new copy of the leader", told(bad))))
}

/// What a leader with bad pages says. It never goes by itself: what it has, the standbys may lack
/// in the same places, and clients that don't read these pages are served.
pub fn leader(view: &View, term: &Term) -> Option<Verdict> {
    let why = told(view.bad_pages()?);
    let better = term.target.members.iter().any(|member| view.may_take_over(member));
    let unblocks = match better {
        true => "a switchover, then this copy is replaced: `everhold switchover SERVICE`",
        false => "a member of the set without bad pages that may lead; then a switchover to it",
    };
    Some(Verdict::hold_for_operator("bad-pages", why, unblocks))
}

fn told(bad: &BadPages) -> String {
    let pages = if bad.pages == 1 { "page is" } else { "pages are" };
    format!("E205 {} {pages} not as written, {}", bad.pages, bad.first)
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

/// The members without those that have bad pages, if as many as wanted are left, and still in two
/// domains where they were.
pub fn without(view: &View, leader: &str, members: BTreeSet<Member>) -> BTreeSet<Member> {
    let sound: BTreeSet<Member> =
        members.iter().filter(|member| !view.is_rotten(member)).cloned().collect();
    let apart = |set: &BTreeSet<Member>| {
        set.iter().any(|member| view.policy.domains.apart(leader, &member.node))
    };
    let enough = sound.len() >= view.policy.redundancy.wanted.max(1) as usize;
    if enough && (apart(&sound) || !apart(&members)) { sound } else { members }
}

/// Those with bad pages don't lead while one without may, if need be after streaming what it lacks.
/// Whom an operator names stays what he is.
pub fn prefer_sound(
    view: &View,
    able: &Reports,
    wanted: Option<&str>,
    preferences: &mut BTreeMap<String, Preference>,
) {
    if !view.has(Guard::SoundLeads) || !able.values().any(|r| view.may_take_over(&r.member)) {
        return;
    }
    for report in able.values().filter(|report| view.is_rotten(&report.member)) {
        let node = &report.member.node;
        if wanted == Some(node.as_str()) {
            continue;
        }
        let none = Preference { priority: 0, failover: true };
        preferences.entry(node.clone()).or_insert(none).failover = false;
    }
}

#[cfg(test)]
mod tests;
