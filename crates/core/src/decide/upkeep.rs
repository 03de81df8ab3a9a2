//! What goes on all the time beside the decisions: probes, slots, checkpoints, evidence, the lease.

use super::{Action, Verdict, Write};
use crate::ids::{Lsn, Member, Time};
use crate::minder::Right;
use crate::policy;
use crate::postgres::PgAction;
use crate::term::Term;
use crate::view::{LeaseRecord, View};
use std::collections::BTreeMap;

/// Decides what is due. Never anything that another controller waits for.
pub fn decide(view: &View, now: Time) -> Verdict {
    let mut actions = Vec::new();
    if let Some(node) = probe_due(view, now) {
        actions.push(Action::Probe { node });
    }
    // Standbys have them too: making them is no part of a promotion then, and none is forgotten.
    let mut wanted = members_wanted(view);
    let order = member_ordered(view, now);
    wanted.extend(order);
    let slots = &view.pg.slots;
    let missing = wanted.iter().any(|member| !slots.iter().any(|slot| member.has_slot(slot)));
    let extra = slots.iter().any(|slot| !wanted.iter().any(|member| member.has_slot(slot)));
    let stale = view.is_standby()
        && view.slots_kept.is_none_or(|at| now.since(at) >= policy::SLOTS_EVERY_MS);
    let settled = view.is_primary()
        || (view.is_standby() && view.parked.is_none() && view.pg.source.is_some());
    let ordered = view.is_standby() && order.is_some();
    if (settled || ordered) && (missing || extra || stale) && view.retry_at("slots", now).is_none()
    {
        let (names, needed) = (slots_of(wanted), slots_needed(view, now));
        actions.push(Action::Pg { action: PgAction::Slots { names, needed } });
    }
    // What its slots hold back begins at its last restartpoint: without one it holds back all that
    // a rewind towards it would have to copy.
    if stale && settled && view.retry_at("checkpoint", now).is_none() {
        actions.push(Action::Pg { action: PgAction::Checkpoint });
    }
    if let Some(term) = view.led_term() {
        leading(view, now, term, &mut actions);
    }
    if actions.is_empty() {
        return Verdict::Steady;
    }
    Verdict::Act { rule: "upkeep".to_string(), why: "due".to_string(), actions }
}

/// A slot for each other member known, under its newest incarnation.
pub fn slots_wanted(view: &View) -> Vec<String> {
    slots_of(members_wanted(view))
}

/// Where the others are, as they said last: who is behind may have to follow this node next. Who can't
/// say may be anywhere: for them nothing is moved on. Whoever was not heard of for long is cloned then.
fn slots_needed(view: &View, now: Time) -> BTreeMap<String, Lsn> {
    let lately = view.others().filter_map(|node| {
        let peer = view.peers.get(node)?;
        let heard = peer.detector.last()?;
        (now.since(heard) <= policy::SLOTS_KEPT_MS).then_some(peer.status.as_deref()).flatten()
    });
    let told = lately.filter(|status| status.member.incarnation > 0);
    told.map(|status| (status.member.slot(), status.lsn)).collect()
}

fn slots_of(members: Vec<&Member>) -> Vec<String> {
    let mut slots: Vec<String> = members.into_iter().map(Member::slot).collect();
    slots.sort();
    slots.dedup();
    slots
}

fn members_wanted(view: &View) -> Vec<&Member> {
    let told = view.others().filter_map(|node| {
        let status = view.peers.get(node)?.status.as_deref()?;
        (status.member.incarnation > 0).then_some(&status.member)
    });
    let mut members: Vec<&Member> = told.collect();
    // A member that was not heard of since this agent began keeps its slot.
    if let Some(term) = view.term() {
        let named = term.inforce.iter().flat_map(|set| &set.members);
        for member in named.filter(|m| m.node != view.me) {
            if !members.iter().any(|newer| newer.node == member.node) {
                members.push(member);
            }
        }
    }
    members
}

/// A node that a campaign lets stream from this sealed one.
fn member_ordered(view: &View, now: Time) -> Option<&Member> {
    let own = view.campaign.as_ref().and_then(|c| c.fast_forward.as_ref());
    let told =
        view.others().find_map(|node| view.fresh(node, now)?.call.as_ref()?.fast_forward.as_ref());
    let order = own.or(told).filter(|order| order.from == view.me)?;
    let status = view.peers.get(&order.node)?.status.as_deref()?;
    Some(&status.member)
}

/// The leader is silent: its PostgreSQL is asked, before it is suspected.
fn probe_due(view: &View, now: Time) -> Option<String> {
    let term = view.term()?;
    let node = &term.leader.node;
    if *node == view.me {
        return None;
    }
    let heard = view.peers.get(node).and_then(|p| p.detector.last()).unwrap_or(view.awake);
    let silent = now.since(heard.max(view.awake)) >= policy::PROBE_AFTER_MS;
    let waited = view.probe.asked.is_none_or(|at| now.since(at) >= policy::PROBE_EVERY_MS);
    (silent && waited).then(|| node.clone())
}

fn leading(view: &View, now: Time, term: &Term, actions: &mut Vec<Action>) {
    let branch = term.branch().map(|branch| branch.tli);
    // Not in the way of the barrier; but where that waits for a standby, one may wait for this.
    let seen = view.store.term.as_ref().map_or(now, |record| record.seen);
    if (term.open || now.since(seen) > policy::UNOPENED_MS)
        && branch != Some(view.pg.checkpoint_tli)
        && view.retry_at("checkpoint", now).is_none()
    {
        actions.push(Action::Pg { action: PgAction::Checkpoint });
    }
    let every = evidence_every_ms(view, now);
    if view.leading.evidence.is_none_or(|(at, _)| now.since(at) >= every) {
        actions.push(Action::Pg { action: PgAction::Evidence });
    }
    let leased = view.leading.leased;
    if view.store.reachable && leased.is_none_or(|at| now.since(at) >= policy::LEASE_RENEW_MS) {
        let record = LeaseRecord { epoch: term.epoch, beat: view.leading.lease_beat + 1 };
        let term_rev = view.store.term.as_ref().map_or(0, |record| record.rev);
        actions.push(Action::Store { write: Box::new(Write::Lease { record, term_rev }) });
    }
    // Whatever it was told holds until it is told something else: neither sooner nor again.
    if let Some(Right { epoch, until, k, members }) =
        right(view, term).filter(|right| view.leading.minded.as_ref() != Some(right))
    {
        actions.push(Action::Mind { epoch, until, k, members });
    }
}

/// A lease that was renewed lately reaches further than any evidence.
fn evidence_every_ms(view: &View, now: Time) -> u64 {
    let renewed = |at: Time| now.since(at) < 2 * policy::LEASE_RENEW_MS;
    match view.leading.leased.is_some_and(renewed) {
        true => policy::EVIDENCE_EVERY_MS,
        false => policy::EVIDENCE_ALONE_EVERY_MS,
    }
}

/// Until when this leader may run without news, and who can vouch for it.
pub fn right(view: &View, term: &Term) -> Option<Right> {
    let until = running_until(view, term)?;
    Some(Right { until, ..vouching(term) })
}

/// Who can vouch for the leader of a term, and no right yet.
pub fn vouching(term: &Term) -> Right {
    let members = term.target.members.iter().map(Member::slot).collect();
    Right { epoch: term.epoch, until: Time(0), k: term.target.k, members }
}

/// The later of two deadlines: the lease, and the evidence that k acknowledge. Alone, only the
/// lease counts.
fn running_until(view: &View, term: &Term) -> Option<Time> {
    let lease = view.leading.leased.map(|at| at.plus(policy::LEASE_MS - policy::LEASE_MARGIN_MS));
    let proof = view.leading.proven.map(|at| at.plus(policy::EVIDENCE_MS));
    if term.target.is_alone() { lease } else { lease.max(proof) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::bed::{self, NOW};
    use crate::detector::Detector;
    use crate::status::Status;
    use crate::view::Peer;
    use std::sync::Arc;

    /// A standby keeps what the others lack, as long as they were heard of lately.
    #[test]
    fn the_log_is_kept_for_who_is_behind() {
        let policy = bed::policy(&["a", "b", "c", "d"], 1);
        let mut view = bed::agent("b", &policy, &bed::durable(7)).view;
        let tell = |view: &mut View, node: &str, lsn, heard| {
            let mut status = Status::clone(&bed::agent(node, &policy, &bed::durable(7)).status());
            status.lsn = Lsn(lsn);
            let mut detector = Detector::new(policy::HEARTBEAT_MS);
            detector.heard(heard);
            view.peers.insert(node.to_string(), Peer { status: Some(Arc::new(status)), detector });
        };
        let heard = |ms| Time(NOW.0 - ms);
        tell(&mut view, "a", 900, heard(100));
        tell(&mut view, "c", 500, heard(policy::SLOTS_KEPT_MS));
        tell(&mut view, "d", 500, heard(policy::SLOTS_KEPT_MS + 1));
        let kept = [("a_1", Lsn(900)), ("c_1", Lsn(500))];
        let kept = kept.map(|(slot, lsn)| (slot.to_string(), lsn));
        assert_eq!(slots_needed(&view, NOW), BTreeMap::from(kept));
        // Its PostgreSQL is down: who can't say where it is may be anywhere.
        tell(&mut view, "a", 0, heard(100));
        assert_eq!(slots_needed(&view, NOW)["a_1"], Lsn(0));
    }
}
