//! What core's leader would do with its term in a state: its own decision, asked of a view made
//! from the state.

use super::acknowledge::has_acknowledged;
use super::names::{Names, Set, letter};
use super::plan::{Plan, Switch};
use super::real::{Real, from_term, member, to_set, to_term};
use super::state::{Link, NODES, Row, State, Term};
use everhold_core::decide::leader::{self, rows_follow};
use everhold_core::decide::{Action, Verdict, Write};
use everhold_core::durable::{Data, Durable, Grant};
use everhold_core::ids::{Lsn, Time};
use everhold_core::policy::Policy;
use everhold_core::postgres::{PgFacts, Process, Walsender};
use everhold_core::spread::Domains;
use everhold_core::term::{self, Redundancy};
use everhold_core::view::{Guard, Leading as Memory, Peer, Probe, Record, StoreView, View};
use std::collections::{BTreeMap, BTreeSet};

/// What the leader makes of what it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leading {
    /// All walsenders show the names.
    pub follow: bool,
    /// The change ends, or the term opens.
    pub settles: bool,
}

/// What the leader sees, as far as it matters to its next step.
struct Sight {
    term: Term,
    names: Names,
    /// A record of this epoch's branch was acknowledged.
    barrier: bool,
    checkpointed: bool,
    observed: Option<u8>,
    rows: Vec<Seen>,
}

/// A row of pg_stat_replication.
#[derive(Clone, Copy)]
struct Seen {
    node: usize,
    incarnation: u8,
    priority: i32,
    flush: u8,
    owns_slot: bool,
}

impl Real {
    /// Asks core about the primary `node`, which leads the store's term.
    pub fn leading(&mut self, plan: &Plan, state: &State, node: usize) -> Leading {
        let sight = sight(plan, state, node);
        let key = key(&sight);
        if let Some(known) = self.leading.get(&key) {
            return *known;
        }
        let view = view(plan, &sight, self.text(sight.names));
        let target = to_set(sight.term.target);
        let raising = u32::from(sight.term.current().k()) < target.k;
        let settled = term::settled(&to_term(&sight.term));
        let settles = match leader::decide(&view, Time(0)) {
            Verdict::Act { actions, .. } => actions.iter().any(|action| match action {
                Action::Store { write } => match &**write {
                    Write::Lead { term, .. } => {
                        assert_eq!(*term, settled, "the leader begins no change by itself");
                        true
                    }
                    _ => false,
                },
                _ => false,
            }),
            Verdict::Steady | Verdict::Hold { .. } => false,
        };
        let leading = Leading { follow: rows_follow(&view, &target, raising), settles };
        self.leading.insert(key, leading);
        leading
    }

    /// The term with its target alone in force.
    pub fn settled(&self, term: &Term) -> Term {
        from_term(&term::settled(&to_term(term)), term)
    }
}

fn sight(plan: &Plan, state: &State, node: usize) -> Sight {
    let primary = &state.nodes[node];
    let mut term = state.term;
    if primary.before != Set::NONE {
        // The store doesn't say where the change came from; the leader remembers.
        let union = (0..NODES).filter_map(|n| Some((n, primary.before.member(n)?)));
        let wide = union.fold(term.target, |all, (n, incarnation)| all.with(n, incarnation));
        if let Some(last) = term.inforce.last_mut() {
            *last = wide.with_k(term.target.k().min(primary.before.k()));
        }
    }
    let proven = if plan.has(Switch::OldProof) {
        primary.proven == primary.names
    } else {
        primary.defined == primary.names.defined()
    };
    Sight {
        term,
        names: primary.names,
        barrier: has_acknowledged(state, node) || plan.has(Switch::NoBarrier),
        checkpointed: proven,
        observed: primary.observed.checked_sub(1),
        rows: seen(plan, &term, primary.names, &state.rows[node]),
    }
}

/// Everything in the sight that the answer may hang on.
fn key(sight: &Sight) -> u128 {
    let mut key = 1_u128;
    let mut add = |value: u16, bits: u32| key = key << bits | u128::from(value);
    add(sight.term.open.into(), 1);
    add((sight.term.inforce.as_slice().len() > 1).into(), 1);
    add(sight.term.current().0 & 0x3ff, 10);
    add(sight.term.target.0 & 0x3fff, 14);
    add(sight.names.0, 11);
    add(sight.barrier.into(), 1);
    add(sight.checkpointed.into(), 1);
    add(sight.observed.map_or(7, u16::from), 3);
    for row in &sight.rows {
        let name = (row.node as u16) << 2 | u16::from(row.incarnation);
        let priority = row.priority.min(2) as u16;
        let flush = u16::from(row.flush);
        add(name << 6 | priority << 4 | flush << 1 | u16::from(row.owns_slot), 10);
    }
    key
}

/// The rows as the leader sees them.
fn seen(plan: &Plan, term: &Term, names: Names, rows: &[Row; NODES]) -> Vec<Seen> {
    let mut seen = Vec::with_capacity(NODES);
    for (node, row) in rows.iter().enumerate() {
        let kept = term.target.member(node).is_some();
        // Rows that a broken leader doesn't look at seem right to it.
        let blind = plan.has(Switch::OnlyRemovedObserved) && kept
            || plan.has(Switch::OnlyMembersObserved) && !kept;
        let incarnation = if plan.has(Switch::NameWithoutIncarnation) {
            term.target.member(node).unwrap_or(row.incarnation)
        } else {
            row.incarnation
        };
        let mut push = |copy: Names, flush: u8, owns_slot: bool| {
            let copy = if blind { names } else { copy };
            let priority = copy.priority(node, incarnation);
            seen.push(Seen { node, incarnation, priority, flush, owns_slot });
        };
        if row.link != Link::Gone {
            push(row.copy, row.flush, true);
        }
        if row.stale > 0 {
            push(row.stale_copy, row.stale - 1, false);
        }
    }
    seen
}

fn walsender(row: &Seen) -> Walsender {
    Walsender {
        name: member(row.node, row.incarnation).slot(),
        streaming: true,
        priority: row.priority,
        flush: Lsn(u64::from(row.flush)),
        owns_slot: row.owns_slot,
    }
}

fn without(plan: &Plan) -> Option<Guard> {
    let switches = [
        (Switch::NothingObserved, Guard::Observed),
        (Switch::NoFlush, Guard::Flushed),
        (Switch::CheckpointerUnproven, Guard::Checkpointed),
        (Switch::NoBarrier, Guard::Barrier),
    ];
    switches.iter().find(|(switch, _)| plan.has(*switch)).map(|(_, guard)| *guard)
}

/// A view in which no other change is wanted, so that what is decided is the end of this one.
fn view(plan: &Plan, sight: &Sight, shown: String) -> View {
    let term = to_term(&sight.term);
    let me = letter(sight.term.leader()).to_string();
    let epoch = term.epoch;
    let tli = term.branch().map_or(1, |branch| branch.tli);
    let k = term.target.k;
    let members = term.target.members.len() as u32;
    let floor = if members < k { k } else { 0 };
    let record = |value| Record { value, rev: 1, seen: Time(0) };
    let sets = term.inforce.iter().chain([&term.target]);
    let named: BTreeSet<String> =
        sets.flat_map(|set| &set.members).map(|member| member.node.clone()).collect();
    View {
        me: me.clone(),
        host: String::new(),
        port: 0,
        policy: Policy {
            nodes: named.into_iter().chain([me]).collect(),
            redundancy: Redundancy { wanted: k, floor },
            preferences: BTreeMap::new(),
            domains: Domains::default(),
            duties: BTreeMap::new(),
            slow_after_ms: None,
        },
        durable: Durable {
            promise: epoch,
            incarnation: term.leader.incarnation,
            data: Data::Ok,
            sysid: Some(1),
            line: term.line(),
            grant: Some(Grant { epoch, tli }),
            put_back: None,
        },
        pg: PgFacts {
            process: Process::Running,
            in_recovery: Some(false),
            sync_names: Some(shown.clone()),
            walsenders: sight.rows.iter().map(walsender).collect(),
            ..PgFacts::default()
        },
        pg_alive: Time(0),
        parked: None,
        trimmed: None,
        promoting: None,
        seen_tli: 0,
        slots_kept: None,
        misbranched: false,
        rejoin: None,
        put_back: None,
        restart: false,
        rot: None,
        confirmed: None,
        store: StoreView {
            reachable: true,
            read: true,
            term: Some(record(term)),
            ..StoreView::default()
        },
        peers: BTreeMap::<String, Peer>::new(),
        probe: Probe::default(),
        campaign: None,
        reason: None,
        campaign_pause: None,
        leading: Memory {
            barrier: sight.barrier.then_some(epoch),
            observed: sight.observed.map(|end| (shown.clone(), Lsn(u64::from(end)))),
            checkpointed: sight.checkpointed.then_some(shown),
            ..Memory::default()
        },
        wish: None,
        failures: BTreeMap::new(),
        awake: Time(0),
        without: without(plan),
    }
}
