//! Core's own functions on the model's values: each call converts, asks core, converts back, and is
//! remembered, since the same question comes up millions of times.

use super::names::{Names, Set, letter};
use super::plan::{Plan, Switch};
use super::search::Mixing;
use super::state::{Branch, EPOCHS, List, NODES, Past, Report, State, Term};
use everhold_core::ids::{Lsn, Member};
use everhold_core::postgres::sync_names;
use everhold_core::spread::Domains;
use everhold_core::term::{self, BranchId, Choice, Preference, Redundancy, Reports};
use std::collections::{BTreeMap, BTreeSet, HashMap};

pub(super) type Memo<K, V> = HashMap<K, V, Mixing>;

/// Core, with what it answered before.
#[derive(Default)]
pub struct Real {
    names: Memo<(u16, bool), Names>,
    /// The text behind a value of [`Names`], as core wrote it.
    texts: BTreeMap<Names, String>,
    changes: Memo<[u64; 3], (List<Set>, Set)>,
    lies_on: Memo<[u64; 2], bool>,
    last: Memo<[u64; 2], u8>,
    published: Memo<[u64; 6], Vec<Term>>,
    pub(super) leading: Memo<u128, super::leading::Leading>,
}

pub(super) fn member(node: usize, incarnation: u8) -> Member {
    Member::new(letter(node).to_string(), u32::from(incarnation))
}

fn node_of(member: &Member) -> usize {
    usize::from(member.node.as_bytes()[0] - b'a')
}

pub(super) fn to_set(set: Set) -> term::Set {
    let members = (0..NODES).filter_map(|node| Some(member(node, set.member(node)?)));
    term::Set {
        leader: member(set.leader(), set.leader_incarnation()),
        members: members.collect::<BTreeSet<Member>>(),
        k: u32::from(set.k()),
    }
}

fn from_set(set: &term::Set) -> Set {
    let first =
        Set::new(node_of(&set.leader), set.leader.incarnation as u8, set.k.try_into().unwrap_or(3));
    set.members.iter().fold(first, |all, m| all.with(node_of(m), m.incarnation as u8))
}

fn to_branches(branches: &[Branch]) -> Vec<term::Branch> {
    let each = branches.iter().enumerate().map(|(at, branch)| term::Branch {
        tli: at as u32 + 1,
        epoch: u64::from(branch.epoch),
        parent: u32::from(branch.parent),
        fork: Lsn(u64::from(branch.fork)),
    });
    each.collect()
}

pub(super) fn to_term(term: &Term) -> term::Term {
    term::Term {
        epoch: u64::from(term.epoch),
        leader: member(term.leader(), term.target.leader_incarnation()),
        open: term.open,
        inforce: term.inforce.as_slice().iter().map(|set| to_set(*set)).collect(),
        target: to_set(term.target),
        branches: to_branches(term.branches.as_slice()),
        sysid: 1,
    }
}

/// `old` keeps what the model knows beyond core: the numbers PostgreSQL would have given.
pub(super) fn from_term(term: &term::Term, old: &Term) -> Term {
    let mut inforce = List::default();
    term.inforce.iter().for_each(|set| inforce.push(from_set(set)));
    let mut branches = List::default();
    for (at, branch) in term.branches.iter().enumerate() {
        let number = old.branches.as_slice().get(at).map_or(branch.tli as u8, |b| b.number);
        branches.push(Branch {
            epoch: branch.epoch as u8,
            parent: branch.parent as u8,
            fork: branch.fork.0 as u8,
            number,
        });
    }
    let target = from_set(&term.target);
    assert_eq!(node_of(&term.leader), target.leader(), "a term's leader leads its target");
    Term { epoch: term.epoch as u8, open: term.open, inforce, target, branches }
}

fn branches_key(branches: &[Branch]) -> u64 {
    branches.iter().fold(1, |key, b| {
        key << 9 | u64::from(b.epoch) << 6 | u64::from(b.parent) << 3 | u64::from(b.fork)
    })
}

fn line(branches: &[Branch], tip: u8) -> Vec<term::Branch> {
    term::line_to(&to_branches(branches), u32::from(tip))
}

fn last_on(branches: &[Branch], tip: u8, end: u8) -> BranchId {
    let line = line(branches, tip);
    let last = term::last_written(&line, Lsn(u64::from(end))).map(term::Branch::id);
    last.expect("a recorded line begins at the root, which wrote the first record")
}

impl Real {
    /// What core wants PostgreSQL to show for the set.
    pub fn names(&mut self, set: Set, raising: bool) -> Names {
        if let Some(names) = self.names.get(&(set.0, raising)) {
            return *names;
        }
        let text = sync_names(&to_set(set), raising);
        let names = read_names(&text);
        self.names.insert((set.0, raising), names);
        self.texts.insert(names, text);
        names
    }

    pub fn text(&self, names: Names) -> String {
        self.texts.get(&names).cloned().expect("all names in the model come from core")
    }

    /// The term once a change of its set to `to` has begun.
    pub fn change_begun(&mut self, term: &Term, to: Set) -> Term {
        let (low, high) = sets_key(&term.inforce);
        let key = [low, high, u64::from(term.target.0) << 16 | u64::from(to.0)];
        let (inforce, target) = *self.changes.entry(key).or_insert_with(|| {
            let next = from_term(&term::change_begun(&to_term(term), &to_set(to)), term);
            (next.inforce, next.target)
        });
        Term { inforce, target, ..*term }
    }

    pub fn regranted(&self, term: &Term, epoch: u8) -> Term {
        from_term(&term::regranted(&to_term(term), u64::from(epoch)), term)
    }

    /// The history of a node, as the node knows it, is a part of the line of that term's leader.
    pub fn follows(&mut self, state: &State, node: usize, past: Past) -> bool {
        let it = &state.nodes[node];
        let branches = state.term.branches.as_slice();
        let place = u64::from(it.line) << 8 | u64::from(it.log.len()) << 4 | u64::from(past.tli);
        *self.lies_on.entry([branches_key(branches), place]).or_insert_with(|| {
            let end = it.log.len();
            let last = last_on(branches, it.line, end);
            term::lies_on(last, Lsn(u64::from(end)), &line(branches, past.tli))
        })
    }

    /// The timeline of the last record of a history that ends at `end`.
    pub fn last_timeline(&mut self, branches: &[Branch], tip: u8, end: u8) -> u8 {
        let place = u64::from(tip) << 8 | u64::from(end);
        let key = [branches_key(branches), place];
        *self.last.entry(key).or_insert_with(|| last_on(branches, tip, end).tli as u8)
    }

    /// Every term that the campaign for `epoch` may publish now: one for each node that may be
    /// chosen, so that nothing hangs on how equals are told apart.
    pub fn published(&mut self, plan: &Plan, state: &State, epoch: u8) -> Vec<Term> {
        let told = &state.reports[epoch as usize];
        if told.iter().all(|report| !report.told) {
            return Vec::new();
        }
        let key = published_key(state, told, epoch);
        if let Some(terms) = self.published.get(&key) {
            return terms.clone();
        }
        let terms = published(plan, state, told, epoch);
        self.published.insert(key, terms.clone());
        terms
    }
}

fn sets_key(list: &List<Set>) -> (u64, u64) {
    let pack = |part: &[Set]| part.iter().fold(1_u64, |key, set| key << 16 | u64::from(set.0));
    let (low, high) = list.as_slice().split_at(list.as_slice().len().min(3));
    (pack(low), pack(high))
}

fn published_key(state: &State, told: &[Report; NODES], epoch: u8) -> [u64; 6] {
    let reports = told.iter().fold(u64::from(epoch), |key, r| {
        let place = u64::from(r.line) << 3 | u64::from(r.end);
        key << 9 | u64::from(r.told) << 8 | u64::from(r.incarnation) << 6 | place
    });
    let term = u64::from(state.term.epoch) << 1 | u64::from(state.term.open);
    let (low, high) = sets_key(&state.term.inforce);
    let (open_low, open_high) = sets_key(&state.at_open);
    let at_open = open_low ^ open_high.rotate_left(17);
    [reports, term | branches_key(state.term.branches.as_slice()) << 8, low, high, at_open, 0]
}

fn to_reports(state: &State, told: &[Report; NODES], epoch: u8) -> Reports {
    let branches = state.term.branches.as_slice();
    let each = told.iter().enumerate().filter(|(_, report)| report.told);
    each.map(|(node, report)| {
        let member = member(node, report.incarnation);
        let last = last_on(branches, report.line, report.end);
        let end = Lsn(u64::from(report.end));
        (member.node.clone(), term::Report { member, epoch: epoch.into(), sysid: 1, last, end })
    })
    .collect()
}

fn published(plan: &Plan, state: &State, told: &[Report; NODES], epoch: u8) -> Vec<Term> {
    let reports = to_reports(state, told, epoch);
    let old = to_term(&state.term);
    let at_open: Vec<term::Set> = state.at_open.as_slice().iter().map(|set| to_set(*set)).collect();
    let inforce = if plan.has(Switch::SetsReadAtOpen) { &at_open } else { &old.inforce };
    let covered = if plan.has(Switch::CoverOffByOne) {
        inforce.iter().all(|set| term::covered_but(1, set, &reports))
    } else {
        term::first_uncovered(inforce, &reports).is_none()
    };
    if !covered || state.term.inforce.is_full() || state.term.branches.is_full() {
        return Vec::new();
    }
    // Below one member writes block; the model goes alone only by a change.
    let redundancy = Redundancy { wanted: u32::from(plan.bounds.k), floor: 1 };
    let mut terms = Vec::new();
    for node in 0..plan.bounds.nodes {
        let Some(chosen) = chosen(plan, told, &reports, node) else { continue };
        let mut term = term::published(
            Some(&old),
            epoch.into(),
            chosen,
            &reports,
            redundancy,
            &Domains::default(),
        );
        if plan.has(Switch::PublishDropsOldSets) {
            term.inforce = vec![term.target.clone()];
        }
        terms.push(from_term(&term, &state.term));
    }
    terms
}

/// The node's report, if it may be chosen.
fn chosen<'a>(
    plan: &Plan,
    told: &[Report; NODES],
    reports: &'a Reports,
    node: usize,
) -> Option<&'a term::Report> {
    let name = letter(node).to_string();
    let report = reports.get(&name)?;
    let best = |rank: &dyn Fn(&Report) -> (u8, u8)| {
        let all = told.iter().filter(|report| report.told).map(rank);
        (all.max() == Some(rank(&told[node]))).then_some(report)
    };
    if plan.has(Switch::ChooseByLsn) {
        return best(&|report| (0, report.end));
    }
    if plan.has(Switch::ChooseByTimeline) {
        return best(&|report| (report.line, report.end));
    }
    let preferences = BTreeMap::from([(name.clone(), Preference { priority: 1, failover: true })]);
    match term::choose(reports, &preferences, None) {
        Choice::Lead(leader) if leader.member.node == name => {
            let best = term::most_advanced(reports);
            assert!(best.contains(&leader), "only the most advanced lead");
            Some(report)
        }
        Choice::Lead(_) | Choice::FastForward { .. } | Choice::Nobody => None,
    }
}

/// Reads the setting as PostgreSQL would, as far as core writes it.
fn read_names(text: &str) -> Names {
    if text.is_empty() {
        return Names::new(0, false);
    }
    let (head, rest) = text.split_once(" (").expect("METHOD k (names)");
    let (method, k) = head.split_once(' ').expect("METHOD k");
    let k = k.parse().expect("k is a number");
    let list: Vec<&str> = rest.trim_end_matches(')').split(", ").collect();
    let first = method == "FIRST";
    assert!(first && list[0] == "\"-\"" || method == "ANY", "a form this model knows: {text}");
    let mut names = Names::new(k, first);
    for name in list.iter().map(|name| name.trim_matches('"')).filter(|name| *name != "-") {
        let (node, incarnation) = name.split_once('_').expect("NODE_INCARNATION");
        let node = usize::from(node.as_bytes()[0] - b'a');
        names = names.with(node, incarnation.parse().expect("incarnation"));
    }
    names
}

/// Terms and epochs that a plan may reach fit the arrays.
pub fn fits(plan: &Plan) -> bool {
    (plan.bounds.epochs as usize) < EPOCHS
        && plan.bounds.nodes <= NODES
        && plan.bounds.standbys < plan.bounds.nodes
        && plan.bounds.records <= 4
}
