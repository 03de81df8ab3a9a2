//! What the leader does with its term: names, barrier, open, changes of the synchronous set.
//!
//! A change is never remembered: `inforce`, `target` and the names that PostgreSQL shows say how far
//! it is. While it is under way the envelope of old and new set is in force (section 2.7, general).

use super::{Verdict, Write, backing_off, rot, slow};
use crate::ids::{Lsn, Member, Time};
use crate::policy::{self, Policy};
use crate::postgres::{PgAction, sync_names};
use crate::term::{Set, Term, change_begun, regranted, settled};
use crate::view::{Guard, View};
use std::collections::BTreeSet;

/// Decides the next step of the leader; steady on any node that doesn't lead.
pub fn decide(view: &View, now: Time) -> Verdict {
    let Some(term) = view.led_term() else { return Verdict::Steady };
    let Some(rev) = view.store.term.as_ref().map(|record| record.rev) else {
        return Verdict::Steady;
    };
    // Before anything that may wait for those who wait for this.
    if let Some(verdict) = regrant(view, now, term, rev) {
        return verdict;
    }
    let names = wanted_names(view, term);
    if view.pg.sync_names.as_ref() != Some(&names) {
        if let Some(hold) = backing_off(view, now, "set-sync", "set-change") {
            return hold;
        }
        let why = format!("acknowledged by {names:?}");
        return Verdict::pg("set-change", why, PgAction::SetSync { names });
    }
    if !term.open && view.leading.barrier != Some(term.epoch) {
        if let Some(verdict) = change(view, now, term, rev) {
            return verdict;
        }
        if term.target.is_closed() {
            return blocked(view, term);
        }
        let why = format!("a record of epoch {} before any client", term.epoch);
        return Verdict::pg("barrier", why, PgAction::Barrier { epoch: term.epoch });
    }
    if term.is_changing() || !term.open {
        if let Some(verdict) = change(view, now, term, rev).or_else(|| settle(view, term, rev)) {
            return verdict;
        }
    } else if let Some(verdict) = change(view, now, term, rev) {
        return verdict;
    }
    if term.target.is_closed() || acknowledging(view, term) < term.target.k {
        return blocked(view, term);
    }
    let slow = slow::decide(view, now, term);
    let bad = rot::leader(view, term);
    // What only a person ends is shown first, and holds nothing up that needs nobody.
    let more = match slow {
        Some(Verdict::Act { .. }) => slow,
        Some(Verdict::Hold { .. } | Verdict::Steady) | None => bad.or(slow),
    };
    more.or_else(|| lacking(view, term)).unwrap_or(Verdict::Steady)
}

/// What the set lacks of what was declared, though writes go on.
fn lacking(view: &View, term: &Term) -> Option<Verdict> {
    let Policy { domains, redundancy, .. } = &view.policy;
    let leader = term.leader.node.as_str();
    let others = view.others().filter(|node| !view.policy.leaves(node));
    let all: BTreeSet<Member> = others.map(|node| Member::new(node, 0)).collect();
    let k = redundancy.k_for(all.len());
    let wanted = domains.spread(leader, all, &BTreeSet::new(), k).len();
    let here = &term.target.members;
    let apart = here.iter().any(|member| domains.apart(leader, &member.node));
    if !domains.0.is_empty() && !term.target.is_alone() && !apart {
        let why = "the standbys that acknowledge are all in the leader's own zone or region";
        return Some(Verdict::hold("spread", why, "one of another streams"));
    }
    (here.len() < wanted).then(|| {
        let why = format!("{} of {wanted} standbys in the synchronous set", here.len());
        Verdict::hold("redundancy", why, "the others stream again")
    })
}

/// The names to show. While k rises, the form that makes each walsender's own copy visible.
fn wanted_names(view: &View, term: &Term) -> String {
    let changing = *term.current() != term.target;
    let raising = changing && term.current().k < term.target.k && view.has(Guard::Observed);
    sync_names(&term.target, raising)
}

/// Members that can acknowledge now.
fn acknowledging(view: &View, term: &Term) -> u32 {
    term.target.members.iter().filter(|m| view.walsender(m).is_some()).count() as u32
}

fn blocked(view: &View, term: &Term) -> Verdict {
    let names: Vec<&str> = view.others().collect();
    Verdict::hold(
        "no-standby",
        format!(
            "writes wait: {} of {} acknowledgements possible",
            acknowledging(view, term),
            term.target.k
        ),
        format!("one of {} streams", names.join(", ")),
    )
}

/// Ends a change, or opens the term: all walsenders are seen with the new names, and k of the new
/// set hold everything up to a place read after that.
fn settle(view: &View, term: &Term, rev: u64) -> Option<Verdict> {
    let target = &term.target;
    let raising = term.current().k < target.k;
    if view.has(Guard::Observed) && !rows_follow(view, target, raising) {
        return Some(look("not all walsenders show the new names yet"));
    }
    let was_alone = term.current().is_alone() && !target.is_alone();
    let names = view.pg.sync_names.as_ref();
    if was_alone && view.has(Guard::Checkpointed) && view.leading.checkpointed.as_ref() != names {
        return Some(Verdict::pg("set-change", "proves the checkpointer", PgAction::Checkpoint));
    }
    let Some((_, from)) = view.leading.observed.as_ref().filter(|(n, _)| Some(n) == names) else {
        return Some(look("the place to be flushed up to is read"));
    };
    let holding = target.members.iter().filter(|m| flushed(view, m) >= Some(*from)).count() as u32;
    if view.has(Guard::Flushed) && (target.is_closed() || holding < target.k) {
        return (!target.is_closed()).then(|| look("the new set has not flushed everything yet"));
    }
    let next = settled(term);
    let (rule, why) = if term.open {
        ("set-change", format!("in force: {target}"))
    } else {
        ("open", format!("epoch {} is open: {target}", term.epoch))
    };
    Some(Verdict::store(rule, why, Write::Lead { term: next, term_rev: rev }))
}

fn look(why: &str) -> Verdict {
    Verdict::pg("observe", why, PgAction::Observe)
}

fn flushed(view: &View, member: &Member) -> Option<Lsn> {
    view.walsender(member).map(|row| row.flush)
}

/// Each walsender's own copy of the names is the new one, as far as its priority can show it.
pub fn rows_follow(view: &View, target: &Set, raising: bool) -> bool {
    let listed = |name: &str| target.members.iter().any(|member| member.has_slot(name));
    let least = if raising { 2 } else { 1 };
    view.pg.walsenders.iter().all(|row| {
        if listed(&row.name) && !target.is_alone() && !target.is_closed() {
            row.priority >= least
        } else {
            row.priority == 0
        }
    })
}

/// The next change of the set, if one is wanted.
fn change(view: &View, now: Time, term: &Term, rev: u64) -> Option<Verdict> {
    if view.store.maintenance {
        return None;
    }
    let target = wanted_set(view, now, term);
    // A change under way ends first, unless somebody it waits for is gone. What is in force is an
    // envelope already, and the next one holds it.
    let waits_in_vain = term.target.members.iter().any(|m| !target.members.contains(m));
    if target == term.target || (*term.current() != term.target && !waits_in_vain) {
        return None;
    }
    if still_raising(view, term, &target) {
        return Some(look("walsenders still show the form of the last rise"));
    }
    let why = format!("{} becomes {target}", term.target);
    let next = if view.has(Guard::Envelope) {
        change_begun(term, &target)
    } else {
        Term { target, ..term.clone() }
    };
    Some(Verdict::store("set-change", why, Write::Lead { term: next, term_rev: rev }))
}

/// A row that was left at the form of an earlier rise would count as one that follows the next: no
/// rise begins before all show ANY again, unless it goes no higher than the one under way.
fn still_raising(view: &View, term: &Term, target: &Set) -> bool {
    let rises = target.k > term.current().k;
    let anew = *term.current() != term.target && target.k <= term.target.k;
    let left = view.pg.walsenders.iter().any(|row| row.priority > 1);
    rises && !anew && left && view.has(Guard::Observed)
}

/// The members that stream stay or join, those gone for long leave; k follows the policy.
pub fn wanted_set(view: &View, now: Time, term: &Term) -> Set {
    let target = &term.target;
    let policy = &view.policy;
    let leaves = |node: &str| policy.leaves(node) || !policy.nodes.iter().any(|it| it == node);
    let stays = |m: &&Member| {
        if leaves(&m.node) {
            return false;
        }
        // One that has not come yet is waited for as long as one that went.
        let seen = view.leading.streamed.get(&m.slot()).copied();
        let seen = seen.or(view.leading.began).unwrap_or(now);
        now.since(seen.max(view.awake)) < policy::GONE_MS || !view.has(Guard::GoneLeaves)
    };
    let mut members: BTreeSet<Member> = target.members.iter().filter(stays).cloned().collect();
    let joins = view.others().filter_map(|node| {
        let status = view.fresh(node, now)?;
        let row = view.walsender(&status.member)?;
        let near = row.flush.0 + policy::JOIN_LAG_BYTES >= view.pg.lsn.0;
        let old = members.iter().any(|m| m.node == node);
        // It follows this very term: a standby that streamed on through a promotion nobody told it
        // of would say, when sealed, that its last record is of an older branch.
        let follows = status.promise == term.epoch && status.data == crate::durable::Data::Ok;
        (near && !old && follows && !leaves(node)).then(|| status.member.clone())
    });
    let joins: Vec<Member> = joins.collect();
    members.extend(joins);
    let members = rot::without(view, &target.leader.node, members);
    let redundancy = view.policy.redundancy;
    if members.is_empty() && redundancy.floor > 0 {
        // Nothing acknowledges either way; those named may come back and then do.
        return target.clone();
    }
    let k = redundancy.k_for(members.len());
    let leader = target.leader.clone();
    let members = view.policy.domains.spread(&leader.node, members, &target.members, k);
    Set { leader, members, k }
}

/// Followers were sealed above this running leader and no campaign lives: a higher epoch for the
/// same leader takes them back.
fn regrant(view: &View, now: Time, term: &Term, rev: u64) -> Option<Verdict> {
    if !view.has(Guard::Regrant) || view.rival(now).is_some() || view.campaign.is_some() {
        return None;
    }
    let highest = view.highest_promise().max(view.store_epoch());
    if highest <= term.epoch {
        return None;
    }
    let why = format!("epoch {highest} was promised, and no campaign is under way");
    let epoch_rev = view.store.epoch.as_ref().map_or(0, |record| record.rev);
    let campaign_rev = view.store.campaign.as_ref().map_or(0, |record| record.rev);
    let term = regranted(term, highest + 1);
    let write = Write::Regrant { term, term_rev: rev, epoch_rev, campaign_rev };
    Some(Verdict::store("re-grant", why, write))
}
