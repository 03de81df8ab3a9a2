//! What follows from bad pages: a copy that has some neither leads nor acknowledges where another
//! can, and makes way for a new copy of the leader once nothing hangs on it ([`super::replace`]).
//!
//! Its log is as good as any other's, so it is a full witness: no seal and no cover is lost by it.
//! It leads only when nobody without bad pages may, or can get what it holds.

use super::Verdict;
use crate::ids::Member;
use crate::postgres::BadPages;
use crate::term::{Preference, Reports, Term};
use crate::view::{Guard, View};
use std::collections::{BTreeMap, BTreeSet};

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

pub(super) fn told(bad: &BadPages) -> String {
    let pages = if bad.pages == 1 { "page is" } else { "pages are" };
    format!("E205 {} {pages} not as written, {}", bad.pages, bad.first)
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
