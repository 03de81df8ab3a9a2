//! Terms: who leads, which synchronous sets may be in force, which branches of history exist.
//!
//! The rules of cover, of history and of choice stand here and nowhere else. They are sections 2.1
//! and 2.6 of the failover protocol; the model check runs these very functions.

use crate::ids::{Epoch, Lsn, Member, Tli};
use crate::spread::Domains;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A synchronous set: a commit is acknowledged when the leader and `k` of `members` flushed it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Set {
    pub leader: Member,
    pub members: BTreeSet<Member>,
    pub k: u32,
}

impl Set {
    /// The leader acknowledges by itself.
    pub fn is_alone(&self) -> bool {
        self.k == 0
    }

    /// Too few members to acknowledge anything: writes block.
    pub fn is_closed(&self) -> bool {
        (self.members.len() as u32) < self.k
    }

    /// What must be in force while walsenders go from `self` to `to` one by one: each mixture of
    /// the two acknowledges only what this one may.
    pub fn envelope(&self, to: &Set) -> Set {
        Set {
            leader: to.leader.clone(),
            members: self.members.union(&to.members).cloned().collect(),
            k: self.k.min(to.k),
        }
    }

    /// Sealed members without which the set could still acknowledge, or could have acknowledged
    /// something that no sealed node holds: n − k + 1.
    pub fn cover_needed(&self) -> u32 {
        (self.members.len() as u32 + 1).saturating_sub(self.k)
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.members.iter().map(Member::to_string).collect();
        write!(f, "{}+{} of ({})", self.leader, self.k, names.join(","))
    }
}

/// A branch of history. Timeline numbers alone collide after a failed promotion, so a branch is
/// known by number and epoch together; the numbers are reserved in the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Branch {
    pub tli: Tli,
    pub epoch: Epoch,
    /// The timeline it left; 0 for the first one.
    pub parent: Tli,
    /// Where it left it.
    pub fork: Lsn,
}

/// What identifies a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BranchId {
    /// First, so that ids order by epoch.
    pub epoch: Epoch,
    pub tli: Tli,
}

impl Branch {
    pub fn id(&self) -> BranchId {
        BranchId { epoch: self.epoch, tli: self.tli }
    }
}

/// Epoch, leader and synchronous sets together: the record a leader leads by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    pub epoch: Epoch,
    pub leader: Member,
    /// A record of the new branch has been acknowledged: clients may come.
    pub open: bool,
    /// Every set that may be in force, oldest first; the last one is the leader's own.
    pub inforce: Vec<Set>,
    /// Where a change of the set is going. Equal to the last of `inforce` when none is under way.
    pub target: Set,
    /// All published branches, promoted or not, oldest first.
    pub branches: Vec<Branch>,
    /// PostgreSQL's system identifier.
    pub sysid: u64,
}

impl Term {
    /// The branch the leader writes on: each publication appends one.
    pub fn branch(&self) -> Option<&Branch> {
        self.branches.last()
    }

    /// The leader's path through the tree of branches, root first.
    pub fn line(&self) -> Vec<Branch> {
        self.branch().map(|tip| line_to(&self.branches, tip.tli)).unwrap_or_default()
    }

    /// `line` is the leader's path.
    pub fn is_along(&self, line: &[Branch]) -> bool {
        let tip = self.branch().map_or(0, |tip| tip.tli);
        path(&self.branches, tip).eq(line.iter().rev())
    }

    /// The set the leader works with.
    pub fn current(&self) -> &Set {
        self.inforce.last().unwrap_or(&self.target)
    }

    /// A change of the set is recorded and not finished.
    pub fn is_changing(&self) -> bool {
        self.inforce.len() != 1 || self.inforce[0] != self.target
    }

    /// The node stands in a set that may be in force, in whatever incarnation.
    pub fn names(&self, node: &str) -> bool {
        self.inforce
            .iter()
            .any(|set| set.leader.node == node || set.members.iter().any(|m| m.node == node))
    }
}

impl Term {
    /// The highest incarnation of the node in any set.
    pub fn newest_incarnation(&self, node: &str) -> Option<u32> {
        let sets = self.inforce.iter().chain([&self.target]);
        let all = sets.flat_map(|set| set.members.iter().chain([&set.leader]));
        all.filter(|member| member.node == node).map(|member| member.incarnation).max()
    }
}

/// The path from the root to timeline `tli`, root first; empty if `tli` isn't registered.
pub fn line_to(branches: &[Branch], tli: Tli) -> Vec<Branch> {
    let mut line: Vec<Branch> = path(branches, tli).cloned().collect();
    line.reverse();
    line
}

/// The same from `tli` back to the root.
fn path(branches: &[Branch], tli: Tli) -> impl Iterator<Item = &Branch> {
    let mut next = tli;
    // Each step goes to a branch that stands earlier, so a malformed record cannot loop.
    branches.iter().rev().filter(move |branch| {
        let found = branch.tli == next;
        if found {
            next = branch.parent;
        }
        found
    })
}

/// The branch that wrote the last record before `end` on `line`: the newest with a fork below it.
pub fn last_written(line: &[Branch], end: Lsn) -> Option<&Branch> {
    line.iter().rev().find(|branch| branch.fork < end || branch.parent == 0)
}

/// A history that ends at `end` with a record of branch `last` is a part of `line`.
pub fn lies_on(last: BranchId, end: Lsn, line: &[Branch]) -> bool {
    match line.iter().position(|branch| branch.id() == last) {
        Some(at) => line.get(at + 1).is_none_or(|next| end <= next.fork),
        None => false,
    }
}

/// What a sealed node says about itself: it acknowledges nothing older than `epoch` any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub member: Member,
    pub epoch: Epoch,
    pub sysid: u64,
    /// The branch of its last record.
    pub last: BranchId,
    /// The parked replay position: all it has, and all it can have.
    pub end: Lsn,
}

/// Reports of one campaign by node.
pub type Reports = BTreeMap<String, Report>;

/// No commit that `set` acknowledged, or still could, is unknown to the reporting nodes together.
pub fn covered(set: &Set, reports: &Reports) -> bool {
    covered_but(0, set, reports)
}

/// The same with `fewer` seals than needed: 0, but in tests that show what the rule is good for.
pub fn covered_but(fewer: u32, set: &Set, reports: &Reports) -> bool {
    let reported = |m: &Member| reports.get(&m.node).is_some_and(|report| report.member == *m);
    if reported(&set.leader) {
        return true;
    }
    if set.is_alone() {
        return false;
    }
    let sealed = set.members.iter().filter(|m| reported(m)).count() as u32;
    set.is_closed() || sealed + fewer >= set.cover_needed()
}

/// A set that isn't covered, and who could still cover it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uncovered {
    pub set: Set,
    /// So many of `waiting_for` members, or the set's leader.
    pub missing: u32,
    pub waiting_for: Vec<Member>,
}

impl fmt::Display for Uncovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.waiting_for.iter().map(Member::to_string).collect();
        write!(f, "{}", self.set.leader)?;
        if self.missing > 0 {
            write!(f, ", or {} of {}", self.missing, names.join(" "))?;
        }
        Ok(())
    }
}

/// The first set in force that isn't covered.
pub fn first_uncovered(inforce: &[Set], reports: &Reports) -> Option<Uncovered> {
    inforce.iter().find(|set| !covered(set, reports)).map(|set| {
        let (sealed, waiting): (Vec<&Member>, Vec<&Member>) = set
            .members
            .iter()
            .partition(|m| reports.get(&m.node).is_some_and(|report| report.member == **m));
        Uncovered {
            set: set.clone(),
            missing: if set.is_alone() {
                0
            } else {
                set.cover_needed().saturating_sub(sealed.len() as u32)
            },
            waiting_for: waiting.into_iter().cloned().collect(),
        }
    })
}

/// What an operator prefers in a leader. Compared only between nodes that hold the same history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preference {
    pub priority: i32,
    /// False: it votes and acknowledges, but never leads.
    pub failover: bool,
}

/// The nodes among `reports` that hold everything any of them holds.
pub fn most_advanced(reports: &Reports) -> Vec<&Report> {
    let best = reports.values().map(|r| (r.last.epoch, r.end)).max();
    reports.values().filter(|r| Some((r.last.epoch, r.end)) == best).collect()
}

/// Who should lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    Lead(&'a Report),
    /// The node wanted lacks a tail that `from` has: it streams it first.
    FastForward {
        node: &'a Report,
        from: &'a Report,
    },
    /// Nobody among the reports may lead.
    Nobody,
}

/// Chooses the next leader among covering reports: history first, then preference, then name.
/// `wanted` is an operator's choice.
pub fn choose<'a>(
    reports: &'a Reports,
    preferences: &BTreeMap<String, Preference>,
    wanted: Option<&str>,
) -> Choice<'a> {
    let may_lead = |r: &Report| preferences.get(&r.member.node).is_none_or(|p| p.failover);
    let rank = |r: &Report| {
        let priority = preferences.get(&r.member.node).map_or(0, |p| p.priority);
        let asked = wanted == Some(r.member.node.as_str());
        (r.last.epoch, r.end, asked, priority, Reverse(r.member.node.clone()))
    };
    let best = most_advanced(reports);
    let Some(source) = best.iter().max_by_key(|r| rank(r)) else { return Choice::Nobody };
    if let Some(name) = wanted
        && let Some(node) = reports.get(name)
        && may_lead(node)
    {
        return if best.contains(&node) {
            Choice::Lead(node)
        } else {
            Choice::FastForward { node, from: source }
        };
    }
    if let Some(leader) = best.iter().filter(|r| may_lead(r)).max_by_key(|r| rank(r)) {
        return Choice::Lead(leader);
    }
    match reports.values().filter(|r| may_lead(r)).max_by_key(|r| rank(r)) {
        Some(node) => Choice::FastForward { node, from: source },
        None => Choice::Nobody,
    }
}

/// How many acknowledgements an operator asks for, and the least that may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redundancy {
    pub wanted: u32,
    /// 0: with no standby left the leader goes on alone. 1 or more: writes block below it.
    pub floor: u32,
}

impl Redundancy {
    /// The k for a set of `members`: as many as wanted and there, but never below the floor.
    pub fn k_for(self, members: usize) -> u32 {
        let members = members as u32;
        if members < self.floor { self.wanted.max(self.floor) } else { self.wanted.min(members) }
    }
}

/// The term a campaign publishes: the chosen node leads with those whose history is a part of its
/// own, and every older set stays in force until the open is recorded.
pub fn published(
    old: Option<&Term>,
    epoch: Epoch,
    chosen: &Report,
    reports: &Reports,
    redundancy: Redundancy,
    domains: &Domains,
) -> Term {
    let mut branches = old.map_or_else(
        || vec![Branch { tli: 1, epoch: 0, parent: 0, fork: Lsn(0) }],
        |term| term.branches.clone(),
    );
    let reserved = branches.iter().map(|branch| branch.tli).max().unwrap_or(1);
    branches.push(Branch { tli: reserved + 1, epoch, parent: chosen.last.tli, fork: chosen.end });
    let line = line_to(&branches, reserved + 1);
    let members: BTreeSet<Member> = reports
        .values()
        .filter(|r| r.member != chosen.member && lies_on(r.last, r.end, &line))
        .map(|r| r.member.clone())
        .collect();
    let k = redundancy.k_for(members.len());
    let members = domains.spread(&chosen.member.node, members, &BTreeSet::new(), k);
    let set = Set { leader: chosen.member.clone(), members, k };
    let mut inforce = old.map(|term| term.inforce.clone()).unwrap_or_default();
    inforce.push(set.clone());
    Term {
        epoch,
        leader: chosen.member.clone(),
        open: false,
        inforce,
        target: set,
        branches,
        sysid: chosen.sysid,
    }
}

/// The same leader under a higher epoch: sets, branches and openness unchanged.
pub fn regranted(term: &Term, epoch: Epoch) -> Term {
    Term { epoch, ..term.clone() }
}

/// A change of the leader's own set begun: the envelope is in force until all walsenders follow.
pub fn change_begun(term: &Term, to: &Set) -> Term {
    let mut next = term.clone();
    let envelope = term.current().envelope(to);
    if let Some(last) = next.inforce.last_mut() {
        *last = envelope;
    }
    next.target = to.clone();
    next
}

/// The term once its target alone is in force: the end of a change, and the open.
pub fn settled(term: &Term) -> Term {
    Term { open: true, inforce: vec![term.target.clone()], ..term.clone() }
}

#[cfg(test)]
mod tests;
