//! When what was restored may take a node's place, as tables. Node `b` follows `a` in epoch 7; it
//! campaigns for epoch 8 to put back what ends at 60, before the newest fork at 100.

use super::*;
use crate::agent::{Agent, Identity};
use crate::check;
use crate::decide::{Action, Write, campaign, node};
use crate::ids::{Lsn, Member, Tli};
use crate::policy::Policy;
use crate::postgres::{PgFacts, Process};
use crate::spread::Domains;
use crate::status::Summons;
use crate::term::{Branch, BranchId, Redundancy, Report, Reports, Set};
use crate::view::{CampaignRecord, LeaseRecord, Record, Wish};
use std::collections::{BTreeMap, BTreeSet};

const NOW: Time = Time(1_000_000);
const REV: u64 = 5;

fn branches() -> Vec<Branch> {
    let branch = |tli: Tli, epoch, parent, fork| Branch { tli, epoch, parent, fork: Lsn(fork) };
    vec![branch(1, 0, 0, 0), branch(2, 7, 1, 100)]
}

fn restored() -> Restored {
    let line = branches()[..1].to_vec();
    Restored { id: "x".to_string(), sysid: 1, line, end: Lsn(60), epoch: 7, tli: 2 }
}

fn term() -> Term {
    let members = ["b", "c"].map(|node| Member::new(node, 1)).into();
    let set = Set { leader: Member::new("a", 1), members, k: 1 };
    Term {
        epoch: 7,
        leader: set.leader.clone(),
        open: true,
        inforce: vec![set.clone()],
        target: set,
        branches: branches(),
        sysid: 1,
    }
}

/// `b`, sealed at epoch 8 and parked, in its own campaign.
fn view(fenced: Option<u64>) -> View {
    let policy = Policy {
        nodes: ["a", "b", "c"].map(str::to_string).to_vec(),
        redundancy: Redundancy { wanted: 1, floor: 1 },
        preferences: BTreeMap::new(),
        domains: Domains::default(),
        duties: BTreeMap::new(),
        slow_after_ms: None,
    };
    let identity = Identity {
        cluster: "shop".to_string(),
        service: "main".to_string(),
        node: "b".to_string(),
        host: "127.0.0.1".to_string(),
        port: 5432,
    };
    let durable = Durable {
        promise: 8,
        incarnation: 1,
        data: Data::Ok,
        sysid: Some(1),
        line: branches(),
        grant: None,
    };
    let mut view = Agent::new(identity, policy, durable, NOW).view;
    view.store.read = true;
    view.store.reachable = true;
    view.store.term = Some(Record { value: term(), rev: REV, seen: Time(0) });
    view.store.epoch = Some(Record { value: 8, rev: 6, seen: NOW });
    let record = CampaignRecord { epoch: 8, owner: "b".to_string(), beat: 0 };
    view.store.campaign = Some(Record { value: record, rev: 7, seen: NOW });
    view.campaign = Some(Campaign {
        epoch: 8,
        cause: Cause::Restore { restored: restored(), force: false },
        opened: NOW,
        covered: fenced.map(|_| NOW),
        fenced,
        renewed: NOW,
        beat: 0,
        summons: Summons::All,
        reports: Reports::new(),
        fast_forward: None,
    });
    stands(&mut view, 1_000);
    view
}

fn stands(view: &mut View, end: u64) {
    view.pg = PgFacts {
        process: Process::Running,
        in_recovery: Some(true),
        tli: view.durable.line.last().map_or(1, |branch| branch.tli),
        lsn: Lsn(end),
        ..PgFacts::default()
    };
    view.parked = Some((Lsn(end), view.pg.tli));
}

/// Put back, recorded, started and parked.
fn done(fenced: Option<u64>) -> View {
    let mut view = view(fenced);
    view.durable.incarnation = 2;
    view.durable.line = restored().line;
    view.rejoin = Some(Rejoin::PutBack);
    view.put_back = Some("x".to_string());
    stands(&mut view, 60);
    let report = Report {
        member: Member::new("b", 2),
        epoch: 8,
        sysid: 1,
        last: BranchId { epoch: 0, tli: 1 },
        end: Lsn(60),
    };
    if let Some(campaign) = &mut view.campaign {
        campaign.reports.insert("b".to_string(), report);
    }
    view
}

fn shown(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Steady => "steady".to_string(),
        Verdict::Hold { rule, .. } => format!("hold {rule}"),
        Verdict::Act { rule, actions, .. } => format!("{rule} {}", actions[0].name()),
    }
}

#[test]
fn nothing_goes_before_everybody_is_fenced() {
    #[rustfmt::skip]
    let cases: [(Option<u64>, &str); 3] = [
        (None,          "hold sealed"),
        // The sets changed after they were covered.
        (Some(REV - 1), "hold sealed"),
        (Some(REV),     "put-back persist"),
    ];
    for (fenced, expected) in cases {
        assert_eq!(shown(&node::decide(&view(fenced), NOW)), expected, "{fenced:?}");
        // And the checker refuses what a wrong decision would do.
        let mut view = view(fenced);
        view.durable.data = Data::Destroying;
        view.durable.incarnation = 2;
        let action = PgAction::PutBack { id: "x".to_string(), epoch: 8 };
        let passed = check::action(&view, &Action::Pg { action }).is_ok();
        assert_eq!(passed, fenced == Some(REV), "{fenced:?}");
    }
    // Sealed, but not yet proven to have nothing more.
    let mut unparked = view(Some(REV));
    unparked.parked = None;
    assert_eq!(shown(&node::decide(&unparked, NOW)), "park park");
}

#[test]
fn what_was_put_back_leads_and_the_older_sets_are_given_up() {
    let verdict = campaign::decide(&done(Some(REV)), NOW);
    let Verdict::Act { actions, .. } = &verdict else { panic!("{verdict:?}") };
    assert_eq!(check::action(&done(Some(REV)), &actions[0]), Ok(()));
    let Action::Store { write } = &actions[0] else { panic!("{verdict:?}") };
    let Write::Publish { term, term_rev, guarded: true } = &**write else { panic!("{write:?}") };
    assert_eq!((term.epoch, &term.leader, *term_rev), (8, &Member::new("b", 2), REV));
    assert_eq!(term.branch(), Some(&Branch { tli: 3, epoch: 8, parent: 1, fork: Lsn(60) }));
    let alone = Set { leader: Member::new("b", 2), members: BTreeSet::new(), k: 0 };
    assert_eq!(term.inforce, [alone, term.target.clone()], "only b has what it leads with");
    assert!(term.target.is_closed() && !term.open);

    // The sets changed in between: nobody can say any more that they were covered.
    assert_eq!(shown(&campaign::decide(&done(Some(REV - 1)), NOW)), "restore store");
    // It does not come up in time.
    let mut late = view(Some(REV));
    let after = NOW.plus(crate::policy::RESTORE_MS);
    assert_eq!(shown(&campaign::decide(&late, NOW)), "hold restore");
    if let Some(campaign) = &mut late.campaign {
        campaign.renewed = after;
    }
    assert_eq!(shown(&campaign::decide(&late, after)), "restore store");
}

#[test]
fn who_can_not_be_reached_is_given_up_only_by_force_and_after_his_lease() {
    let beat = LeaseRecord { epoch: 7, beat: 9 };
    let after = |ms: u64| NOW.plus(ms);
    #[rustfmt::skip]
    let cases = [
        // forced, later, lease last seen   given up
        (true,  10_000,   0,                true),
        (true,  10_000,   9_000,            false),
        // The others get their time to be sealed.
        (true,  1_000,    0,                false),
        (false, 10_000,   0,                false),
    ];
    for (force, later, seen, expected) in cases {
        let mut view = view(None);
        let seen = if seen == 0 { Time(0) } else { after(seen) };
        view.awake = Time(0);
        view.store.lease = Some(Record { value: beat.clone(), rev: 4, seen });
        if let Some(campaign) = &mut view.campaign {
            campaign.cause = Cause::Restore { restored: restored(), force };
        }
        assert_eq!(is_forced(&view, after(later)), expected, "{force} {later}");
    }
}

#[test]
fn what_does_not_belong_here_is_refused() {
    assert_eq!(unfit(&term(), &restored()), None);
    let of_another = Restored { sysid: 2, ..restored() };
    assert!(unfit(&term(), &of_another).is_some_and(|why| why.contains("system 2")));
    let mut line = branches();
    line[1].epoch = 6;
    let unknown = Restored { line, end: Lsn(200), ..restored() };
    assert!(unfit(&term(), &unknown).is_some_and(|why| why.contains("timeline 2 of epoch 6")));
}

#[test]
fn a_service_begins_again_above_all_that_was_written() {
    let mut view = view(None);
    view.store.term = None;
    view.store.epoch = None;
    view.store.campaign = None;
    view.campaign = None;
    view.durable = Durable::default();
    view.pg = PgFacts { process: Process::Down, ..PgFacts::default() };
    view.parked = None;
    let restored = Restored { epoch: 60, tli: 9, ..restored() };
    let cause = Cause::Restore { restored, force: false };
    view.wish = Some(Wish { cause, epoch: 0, since: NOW });
    assert_eq!(shown(&node::decide(&view, NOW)), "put-back persist");
    view.durable.data = Data::Destroying;
    view.durable.incarnation = 1;
    view.rejoin = Some(Rejoin::PutBack);
    assert_eq!(shown(&node::decide(&view, NOW)), "put-back put-back");
    view.put_back = Some("x".to_string());
    let verdict = node::decide(&view, NOW);
    let Verdict::Act { actions, .. } = &verdict else { panic!("{verdict:?}") };
    let Action::Persist { durable, .. } = &actions[0] else { panic!("{verdict:?}") };
    assert_eq!((durable.promise, durable.data), (61, Data::Ok));
    view.durable = (**durable).clone();
    stands(&mut view, 60);
    let verdict = campaign::decide(&view, NOW);
    let Verdict::Act { actions, .. } = &verdict else { panic!("{verdict:?}") };
    assert_eq!(check::action(&view, &actions[0]), Ok(()));
    let Action::Store { write } = &actions[0] else { panic!("{verdict:?}") };
    let Write::Publish { term, term_rev: 0, .. } = &**write else { panic!("{write:?}") };
    assert_eq!(term.epoch, 61);
    assert_eq!(term.branch(), Some(&Branch { tli: 10, epoch: 61, parent: 1, fork: Lsn(60) }));
    assert_eq!(term.branches[0], branches()[0]);
    // It came to nothing.
    view.parked = None;
    let after = NOW.plus(crate::policy::RESTORE_MS + 1);
    assert_eq!(shown(&campaign::decide(&view, after)), "wish-ended end-wish");
}
