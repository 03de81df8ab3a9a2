//! When what was restored may take a node's place, as tables. Node `b` follows `a` in epoch 7; it
//! campaigns for epoch 8 to put back what ends at 60, before the newest fork at 100.

use super::*;
use crate::agent::{Agent, Command, Input};
use crate::check;
use crate::decide::bed::{self, NOW, branches, term};
use crate::decide::{Action, Write, campaign, node};
use crate::ids::{Lsn, Member};
use crate::kv::{Kv, TxnOutcome};
use crate::postgres::{PgFacts, PgOutcome, Process};
use crate::records::encode;
use crate::status::{Status, Summons};
use crate::term::{Branch, BranchId, Report, Reports, Set};
use crate::view::{CampaignRecord, LeaseRecord, Record, StoreView, Wish};
use std::collections::BTreeSet;
use std::sync::Arc;

const REV: u64 = 5;

fn restored() -> Restored {
    let line = branches()[..1].to_vec();
    Restored { id: "x".to_string(), sysid: 1, line, end: Lsn(60), epoch: 7, tli: 2 }
}

/// `b`, sealed at epoch 8 and parked, in its own campaign.
fn view(fenced: Option<u64>) -> View {
    let mut view = bed::agent("b", &bed::policy(&["a", "b", "c"], 1), &bed::durable(8)).view;
    view.store.read = true;
    view.store.reachable = true;
    view.store.term = Some(Record { value: term("bc", 1), rev: REV, seen: Time(0) });
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

/// What the record says once it is begun, under the term of that revision.
fn plan(rev: u64) -> Option<PutBack> {
    Some(PutBack {
        restored: restored(),
        force: false,
        term: Some((rev, 7)),
        epoch: 8,
        was: Some(1),
    })
}

/// Put back, recorded, started and parked.
fn done(fenced: Option<u64>) -> View {
    let mut view = view(fenced);
    view.durable.incarnation = 2;
    view.durable.line = restored().line;
    view.durable.put_back = plan(fenced.unwrap_or(REV));
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
        view.durable.put_back = plan(REV);
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
    let stale = done(Some(REV - 1));
    assert_eq!(shown(&campaign::decide(&stale, NOW)), "hold cover");
    assert!(check::action(&stale, &actions[0]).is_err(), "and the checker knows");
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
    assert_eq!(unfit(&term("bc", 1), &restored()), None);
    let of_another = Restored { sysid: 2, ..restored() };
    assert!(unfit(&term("bc", 1), &of_another).is_some_and(|why| why.contains("system 2")));
    let mut line = branches();
    line[1].epoch = 6;
    let unknown = Restored { line, end: Lsn(200), ..restored() };
    assert!(
        unfit(&term("bc", 1), &unknown).is_some_and(|why| why.contains("timeline 2 of epoch 6"))
    );
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
    persist(&mut view);
    assert_eq!((view.durable.data, view.durable.incarnation), (Data::Destroying, 1));
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
    // Another agent goes on with it.
    let mut other = view.clone();
    (other.wish, other.put_back) = (None, None);
    assert_eq!(shown(&campaign::decide(&other, NOW)), "bootstrap store");
    // It came to nothing.
    view.parked = None;
    let after = NOW.plus(crate::policy::RESTORE_MS + 1);
    assert_eq!(shown(&campaign::decide(&view, after)), "wish-ended end-wish");
}

/// The record that the node writes next is on its disk.
fn persist(view: &mut View) {
    let verdict = node::decide(view, NOW);
    let Verdict::Act { actions, .. } = &verdict else { panic!("{verdict:?}") };
    let Action::Persist { durable, .. } = &actions[0] else { panic!("{verdict:?}") };
    assert_eq!(check::action(view, &actions[0]), Ok(()));
    view.durable = (**durable).clone();
}

/// A new agent on the disk of one that was putting back.
fn restarted(data: Data, rev: u64) -> Agent {
    let line = if data == Data::Ok { restored().line } else { branches() };
    let durable = Durable { data, incarnation: 2, line, put_back: plan(rev), ..bed::durable(8) };
    let mut agent = bed::agent("b", &bed::policy(&["a", "b", "c"], 1), &durable);
    let before = view(None);
    agent.view.store = StoreView { campaign: None, ..before.store };
    agent.view.pg = PgFacts { process: Process::Down, ..PgFacts::default() };
    agent.view.reason = campaign::reason(&agent.view, NOW).map(|cause| (cause, NOW));
    agent
}

#[test]
fn it_goes_on_after_a_crash_at_any_point_while_the_term_is_the_same() {
    #[rustfmt::skip]
    let cases = [
        // data,            term then  campaign           server
        (Data::Destroying,  REV,       "restore store",   "hold put-back"),
        (Data::Ok,          REV,       "restore store",   "start start"),
        // Somebody did without: it comes back as after any failover.
        (Data::Destroying,  REV - 1,   "steady",          "hold clone"),
        (Data::Ok,          REV - 1,   "steady",          "start start"),
    ];
    for (data, rev, campaigns, server) in cases {
        let agent = restarted(data, rev);
        assert_eq!(shown(&campaign::decide(&agent.view, NOW)), campaigns, "{data:?} {rev}");
        assert_eq!(shown(&node::decide(&agent.view, NOW)), server, "{data:?} {rev}");
    }
    // Copied anew it holds what all others have, and nothing is put back there any more.
    let mut view = restarted(Data::Destroying, REV - 1).view;
    view.durable.promise = 7;
    let mut leader = Status::clone(&bed::agent("a", &view.policy, &bed::durable(7)).status());
    leader.primary = Some(2);
    let peer = view.peers.get_mut("a").expect("a peer");
    peer.status = Some(Arc::new(leader));
    peer.detector.heard(NOW);
    let Some(Action::Persist { durable, .. }) = rejoin::copied(&view, NOW) else {
        panic!("a leader to copy")
    };
    assert_eq!(durable.put_back, None);
    // What was covered then is covered still: those who did have promised more than the term.
    let mut agent = restarted(Data::Destroying, REV);
    let prefix = agent.keys().prefix.clone();
    let kv = |name: &str, value, rev| Kv { key: format!("{prefix}{name}"), value, rev };
    let kvs = vec![kv("term", encode(&term("bc", 1)), REV), kv("epoch", encode(&8_u64), 6)];
    let commands = agent.step(NOW, Input::Store { kvs });
    let write = commands.iter().find_map(|it| match it {
        Command::Write { id, .. } => Some(*id),
        _ => None,
    });
    let id = write.expect("it opens an epoch");
    let result = Ok(TxnOutcome::Done { rev: 9 });
    agent.step(NOW, Input::Written { id, result });
    let campaign = agent.view.campaign.clone().expect("a campaign");
    assert_eq!((campaign.epoch, campaign.fenced), (9, Some(REV)));
    let mut view = agent.view;
    view.durable.promise = 9;
    assert_eq!(shown(&node::decide(&view, NOW)), "put-back put-back");
    let action = PgAction::PutBack { id: "x".to_string(), epoch: 8 };
    assert_eq!(check::action(&view, &Action::Pg { action }), Ok(()));
    view.put_back = Some("x".to_string());
    persist(&mut view);
    assert_eq!(view.durable.data, Data::Ok);
    stands(&mut view, 60);
    let report = view.report().expect("parked");
    let campaign = view.campaign.as_mut().expect("a campaign");
    campaign.reports.insert("b".to_string(), report);
    // It alone covers the sets: nobody else has reported.
    assert_eq!(shown(&campaign::decide(&view, NOW)), "publish store");
}

#[test]
fn what_can_not_take_its_place_leaves_the_data_as_it_was() {
    let mut agent = bed::agent("b", &bed::policy(&["a", "b", "c"], 1), &bed::durable(8));
    agent.view = view(Some(REV));
    let cause = Cause::Restore { restored: restored(), force: false };
    agent.view.wish = Some(Wish { cause, epoch: 7, since: NOW });
    persist(&mut agent.view);
    agent.view.pg = PgFacts { process: Process::Down, ..PgFacts::default() };
    agent.view.parked = None;
    let commands = agent.step(NOW, Input::Tick);
    let run = commands.iter().find_map(|it| match it {
        Command::Run { id, action: PgAction::PutBack { .. } } => Some(*id),
        _ => None,
    });
    let why = "no such directory".to_string();
    let down = || PgFacts { process: Process::Down, ..PgFacts::default() };
    let result = Ok(PgOutcome::NotPutBack { why });
    let id = run.expect("it is put back");
    let commands = agent.step(NOW, Input::PgDone { id, result, facts: down() });
    let record = commands.iter().find_map(|it| match it {
        Command::Persist { id, durable } => Some((*id, durable.clone())),
        _ => None,
    });
    let (id, durable) = record.expect("a record");
    assert_eq!(*durable, bed::durable(8), "it is what it was");
    agent.step(NOW, Input::Persisted { id, result: Ok(()) });
    let mut view = agent.view;
    assert_eq!(shown(&campaign::decide(&view, NOW)), "restore store", "it is given up");
    assert_eq!(shown(&node::decide(&view, NOW)), "start start");
    view.campaign = None;
    let verdict = campaign::decide(&view, NOW);
    assert!(told(&verdict).contains("nothing was put back: no such directory"), "{verdict:?}");
}

/// What the operator is told of his wish.
fn told(verdict: &Verdict) -> String {
    let Verdict::Act { actions, .. } = verdict else { return shown(verdict) };
    let [Action::EndWish { refused }] = actions.as_slice() else { return shown(verdict) };
    refused.clone().unwrap_or_else(|| "done".to_string())
}

#[test]
fn without_a_term_no_node_s_data_is_given_up_unasked() {
    let none = "put-back persist";
    #[rustfmt::skip]
    let cases = [
        // own data, of a,           force   node              campaign
        (Data::Empty, Data::Empty,   false,  none,             "steady"),
        (Data::Empty, Data::Ok,      false,  "hold store-lost", "and a holds data"),
        (Data::Empty, Data::Ok,      true,   none,             "steady"),
        (Data::Ok,    Data::Empty,   false,  "hold sealed",    "and b holds data"),
        (Data::Ok,    Data::Ok,      false,  "hold sealed",    "and b, a holds data"),
        (Data::Ok,    Data::Ok,      true,   none,             "steady"),
    ];
    for (own, other, force, node, campaign) in cases {
        let mut view = view(None);
        view.store = StoreView { read: true, reachable: true, ..StoreView::default() };
        view.campaign = None;
        if own == Data::Empty {
            view.durable = Durable::default();
            view.pg = PgFacts { process: Process::Down, ..PgFacts::default() };
            view.parked = None;
        }
        let mut status = Status::clone(&bed::agent("a", &view.policy, &bed::durable(7)).status());
        status.data = other;
        view.peers.get_mut("a").expect("a peer").status = Some(Arc::new(status));
        let cause = Cause::Restore { restored: restored(), force };
        view.wish = Some(Wish { cause, epoch: 0, since: NOW });
        let of = format!("{own:?} {other:?} {force}");
        assert_eq!(shown(&node::decide(&view, NOW)), node, "{of}");
        let wish = told(&campaign::decide(&view, NOW));
        assert!(wish.contains(campaign), "{of}: {wish}");
        // The checker by itself.
        view.durable.data = Data::Destroying;
        view.durable.put_back = Some(PutBack { force, term: None, ..plan(REV).expect("a plan") });
        let action = PgAction::PutBack { id: "x".to_string(), epoch: 8 };
        let passed = check::action(&view, &Action::Pg { action }).is_ok();
        assert_eq!(passed, force || other == Data::Empty, "{of}");
    }
}

#[test]
fn a_wish_is_fulfilled_by_what_was_put_back_alone() {
    let first = "nothing was put back";
    #[rustfmt::skip]
    let cases = [
        // led by, incarnation here, put back     told
        ("b.2",    2,                Some("x"),   "done"),
        // It was granted a higher epoch, or elected, with what it had.
        ("b.1",    1,                None,        first),
        ("b.1",    2,                Some("x"),   first),
        ("b.2",    2,                Some("y"),   first),
        ("c.1",    1,                None,        first),
        ("c.1",    2,                Some("x"),   first),
    ];
    for (leader, incarnation, put_back, expected) in cases {
        let mut view = view(None);
        view.campaign = None;
        view.durable.incarnation = incarnation;
        view.put_back = put_back.map(str::to_string);
        let cause = Cause::Restore { restored: restored(), force: false };
        view.wish = Some(Wish { cause, epoch: 7, since: NOW });
        let leader: Member = leader.parse().expect("a member");
        let next = Term { epoch: 8, leader: leader.clone(), ..term("bc", 1) };
        view.store.term = Some(Record { value: next, rev: REV + 1, seen: NOW });
        let wish = told(&campaign::decide(&view, NOW));
        assert!(wish.contains(expected), "{leader} {incarnation} {put_back:?}: {wish}");
    }
}
