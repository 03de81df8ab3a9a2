//! What bad pages lead to, as tables. Node `a` leads epoch 7 over `b` and `c`; a case says what
//! differs from a healthy cluster, and the verdict is its rule and the first words of its reason.

use super::*;
use crate::agent::{Command, Input};
use crate::decide::bed::{self, NOW, term};
use crate::decide::{Action, campaign, leader, node};
use crate::detector::Detector;
use crate::durable::{Data, Durable, Grant};
use crate::ids::{Lsn, Time};
use crate::policy::HEARTBEAT_MS;
use crate::postgres::{PgAction, PgFacts, Process, Receiver, Source, Walsender, sync_names};
use crate::spread::Domains;
use crate::status::{Call, State, Status, Summons};
use crate::term::{BranchId, Report};
use crate::view::{Campaign, CampaignRecord, Cause, Peer, Record};
use std::sync::Arc;

/// The view of `me`; `bad`: letters of those with bad pages.
fn view(me: &str, bad: &str, term: Term, wanted: u32, nodes: &[&str]) -> View {
    let policy = bed::policy(nodes, wanted);
    let leads = me == "a";
    let grant = leads.then_some(Grant { epoch: 7, tli: 2 });
    let durable = Durable { grant, ..bed::durable(7) };
    let bare = |node: &str| bed::agent(node, &policy, &durable);
    let names = sync_names(&term.target, false);
    let mut view = bare(me).view;
    for node in nodes.iter().filter(|node| **node != me) {
        let mut status = Status::clone(&bare(node).status());
        let primary = *node == "a";
        status.term = 7;
        status.state = if primary { State::Open } else { State::Streaming };
        status.streaming = !primary;
        (status.primary, status.serving) = (primary.then_some(2), primary.then_some(7));
        status.bad_pages = u64::from(bad.contains(node));
        let mut detector = Detector::new(HEARTBEAT_MS);
        detector.heard(NOW);
        view.peers.insert(node.to_string(), Peer { status: Some(Arc::new(status)), detector });
    }
    view.store.read = true;
    view.store.reachable = true;
    view.store.term = Some(Record { value: term, rev: 5, seen: Time(0) });
    if bad.contains(me) {
        view.rot = Some(BadPages { incarnation: 1, pages: 3, first: "page 1".to_string() });
    }
    view.pg = PgFacts {
        process: Process::Running,
        in_recovery: Some(!leads),
        tli: 2,
        lsn: Lsn(1_000),
        checkpoint_tli: 2,
        sync_names: Some(names),
        ..PgFacts::default()
    };
    if leads {
        let row = |node: &&&str| Walsender {
            name: Member::new(**node, 1).slot(),
            streaming: true,
            priority: 1,
            flush: Lsn(1_000),
            owns_slot: true,
        };
        view.pg.walsenders = nodes.iter().filter(|node| **node != "a").map(|n| row(&n)).collect();
        view.leading.barrier = Some(7);
    } else {
        let source = Member::new("a", 1);
        let (host, slot) = ("127.0.0.1".to_string(), view.member().slot());
        view.pg.source = Some(Source { member: source, host, port: 5432, slot });
        view.pg.receiver =
            Some(Receiver { streaming: true, message_ms_ago: Some(5), flushed: Lsn(1_000) });
    }
    view
}

fn shown(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Steady => "steady".to_string(),
        Verdict::Hold { rule, why, operator, .. } => {
            let why = why.rsplit("; ").next().unwrap_or_default();
            format!("{}{rule}: {why}", if *operator { "you: " } else { "" })
        }
        Verdict::Act { rule, actions, .. } => {
            let names: Vec<&str> = actions.iter().map(Action::name).collect();
            format!("{rule}: {}", names.join(" "))
        }
    }
}

const THREE: [&str; 3] = ["a", "b", "c"];

#[test]
fn a_standby_is_copied_anew_only_where_nothing_hangs_on_it() {
    type Change = fn(&mut View);
    let status = |view: &mut View, node: &str, change: fn(&mut Status)| {
        let peer = view.peers.get_mut(node).and_then(|peer| peer.status.as_mut());
        change(Arc::make_mut(peer.expect("a peer")));
    };
    let check = |bad: &str, members: &str, nodes: &[&str], change: &dyn Fn(&mut View), expected| {
        let mut view = view("b", bad, term(members, 1), 1, nodes);
        change(&mut view);
        assert_eq!(shown(&node::decide(&view, NOW)), expected, "{bad} {members} {nodes:?}");
    };
    let same: Change = |_| {};
    check("", "c", &THREE, &same, "steady");
    check("b", "c", &THREE, &same, "repair: set-source");
    check("b", "bc", &THREE, &same, "bad-pages: it is needed to acknowledge commits");
    // With two nodes there is never another.
    check("b", "b", &["a", "b"], &same, "you: bad-pages: it is needed to acknowledge commits");
    let leader_too =
        "you: bad-pages: the leader has bad pages too, and this copy may have them whole";
    check("ab", "c", &THREE, &same, leader_too);
    let other: Change = |view| view.rot.as_mut().expect("found").incarnation = 9;
    check("b", "c", &THREE, &other, "steady");
    let maintenance: Change = |view| view.store.maintenance = true;
    check("b", "c", &THREE, &maintenance, "bad-pages: the service is in maintenance");
    let closed: Change = |view| view.store.term.as_mut().expect("a term").value.open = false;
    check("b", "c", &THREE, &closed, "bad-pages: the term is not settled");
    let gone = |view: &mut View| status(view, "c", |it| it.streaming = false);
    check("b", "c", &THREE, &gone, "bad-pages: c of the set does not stream");
    let called = |view: &mut View| {
        status(view, "c", |it| {
            it.call = Some(Call { epoch: 8, summons: Summons::Leader, fast_forward: None });
        });
    };
    check("b", "c", &THREE, &called, "bad-pages: the term is not settled");
    // One after the other, in the order of the spec.
    let five = ["a", "c", "b", "d"];
    check("bc", "d", &five, &same, "bad-pages: c is being copied first");
    check("bd", "c", &five, &same, "repair: set-source");
    let copies = |view: &mut View| status(view, "d", |it| it.state = State::Cloning);
    check("b", "c", &five, &copies, "bad-pages: d is being copied first");

    // It has the log up to 1,000; what the leader removed nobody sends any more.
    let from = |at: u64| {
        move |view: &mut View| {
            let leader = view.peers.get_mut("a").and_then(|peer| peer.status.as_mut());
            Arc::make_mut(leader.expect("a peer")).log_from = Some(Lsn(at));
        }
    };
    let asks = |at: u64, received: u64| {
        move |view: &mut View| {
            from(at)(view);
            view.pg.received = Lsn(received);
        }
    };
    check("", "c", &THREE, &asks(1_000, 900), "steady");
    check("", "c", &THREE, &asks(1_001, 900), "repair: set-source");
    check("", "bc", &THREE, &asks(1_001, 900), "log-gone: it is needed to acknowledge commits");
    // What it has to replay yet it has, also when it just started and has asked for nothing.
    check("", "c", &THREE, &asks(1_001, 1_001), "steady");
    check("", "c", &THREE, &asks(1_001, 0), "steady");
}

#[test]
fn one_that_lacks_log_is_parked_before_its_data_is_given_up() {
    let mut view = view("b", "", term("c", 1), 1, &THREE);
    (view.pg.source, view.pg.receiver, view.parked) = (None, None, Some((Lsn(1_000), 2)));
    view.trimmed = Some(term("c", 1).line());
    let leader_has = |view: &mut View, from: u64| {
        let leader = view.peers.get_mut("a").and_then(|peer| peer.status.as_mut());
        Arc::make_mut(leader.expect("a peer")).log_from = Some(Lsn(from));
    };
    leader_has(&mut view, 1_000);
    assert_eq!(shown(&node::decide(&view, NOW)), "follow: set-source", "it is all there");
    leader_has(&mut view, 1_001);
    assert_eq!(shown(&node::decide(&view, NOW)), "repair: store");
    view.confirmed = Some(5);
    let verdict = node::decide(&view, NOW);
    let Verdict::Act { actions, .. } = &verdict else { panic!("{verdict:?}") };
    let Action::Persist { durable, .. } = &actions[0] else { panic!("{verdict:?}") };
    assert_eq!((durable.data, durable.incarnation), (Data::Destroying, 2));
    // Named by a set again, it stays.
    view.store.term.as_mut().expect("a term").value = term("bc", 1);
    assert_eq!(shown(&node::decide(&view, NOW)), "follow: set-source");
}

#[test]
fn a_parked_one_asks_the_store_before_it_gives_its_data_up() {
    let mut view = view("b", "b", term("c", 1), 1, &THREE);
    (view.pg.source, view.pg.receiver, view.parked) = (None, None, Some((Lsn(1_000), 2)));
    assert_eq!(shown(&node::decide(&view, NOW)), "repair: store");
    view.confirmed = Some(4);
    assert_eq!(shown(&node::decide(&view, NOW)), "repair: store", "of an older term");
    view.confirmed = Some(5);
    let verdict = node::decide(&view, NOW);
    assert_eq!(shown(&verdict), "repair: persist");
    let Verdict::Act { actions, .. } = verdict else { panic!("an act") };
    let [Action::Persist { durable, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!((durable.data, durable.incarnation), (Data::Destroying, 2));
    // Named again meanwhile: it follows.
    view.store.term.as_mut().expect("a term").value = term("bc", 1);
    assert_ne!(node::decide(&view, NOW).rule(), "repair");
}

#[test]
fn what_was_asked_of_the_store_is_asked_again_after_a_start() {
    // It may start with a source, and be taken into the set, before it sees the term that says so.
    let mut agent = bed::agent("b", &bed::policy(&THREE, 1), &bed::durable(7));
    agent.view = view("b", "b", term("c", 1), 1, &THREE);
    agent.view.confirmed = Some(5);
    let down = PgFacts { process: Process::Down, ..PgFacts::default() };
    let input = Input::Pg { generation: agent.generation(), facts: down };
    agent.step(NOW, input);
    let commands = agent.step(NOW.plus(50), Input::Tick);
    let starts = |it: &Command| matches!(it, Command::Run { action: PgAction::Start { .. }, .. });
    assert!(commands.iter().any(starts), "{commands:?}");
    assert_eq!(agent.view.confirmed, None);
}

#[test]
fn a_leader_says_so_and_does_nothing() {
    let verdict = |bad: &str| leader::decide(&view("a", bad, term("bc", 1), 1, &THREE), NOW);
    assert_eq!(shown(&verdict("")), "steady");
    let Verdict::Hold { rule, why, unblocks, operator, .. } = verdict("a") else {
        panic!("a hold")
    };
    assert_eq!((rule.as_str(), operator), ("bad-pages", true));
    assert!(why.starts_with("E205 3 pages") && unblocks.contains("everhold switchover"), "{why}");
    let Verdict::Hold { unblocks, .. } = verdict("abc") else { panic!("a hold") };
    assert!(unblocks.starts_with("a member of the set without bad pages"), "{unblocks}");
}

#[test]
fn bad_pages_hold_no_handing_over_up() {
    // Since when each record is slow, and whether that is to be acted upon.
    #[rustfmt::skip]
    let cases = [
        // bad, slow for, acts        verdict
        ("",    9_000,    Some(7_000), "slow-leader: hand-over"),
        ("a",   9_000,    Some(7_000), "slow-leader: hand-over"),
        ("",    9_000,    None,        "slow: "),
        // What only a person ends is shown first.
        ("a",   9_000,    None,        "you: bad-pages: "),
        ("a",   0,        Some(7_000), "you: bad-pages: "),
        // Nobody without bad pages is faster.
        ("abc", 9_000,    Some(7_000), "you: bad-pages: "),
    ];
    for (bad, slow, acts, expected) in cases {
        let mut view = view("a", bad, term("bc", 1), 1, &THREE);
        view.awake = Time(0);
        view.policy.slow_after_ms = acts;
        view.leading.slow = (slow > 0).then_some(Time(NOW.0 - slow));
        let rows = view.pg.walsenders.iter().map(|row| (row.name.clone(), (row.flush, 10)));
        view.leading.follows = rows.collect();
        let verdict = shown(&leader::decide(&view, NOW));
        assert!(verdict.starts_with(expected), "{bad} {slow} {acts:?}: {verdict}");
    }
}

#[test]
fn the_set_does_without_those_that_are_not_missed() {
    #[rustfmt::skip]
    let cases = [
        // bad, wanted, nodes, in the set
        ("",   1, "abc",   "bc"), ("b",  1, "abc",   "c"), ("bc", 1, "abc",  "bc"),
        ("b",  2, "abc",   "bc"), ("b",  2, "abcd",  "cd"), ("b", 1, "ab",   "b"),
    ];
    for (bad, wanted, nodes, expected) in cases {
        let nodes: Vec<String> = nodes.chars().map(String::from).collect();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let view = view("a", bad, term(&nodes[1..].concat(), wanted), wanted, &nodes);
        let term = view.term().expect("a term");
        let set = leader::wanted_set(&view, NOW, term);
        let members: String = set.members.iter().map(|m| m.node.as_str()).collect();
        assert_eq!(members, expected, "{bad} {wanted} {nodes:?}");
    }
    // Not where all that are left are beside the leader.
    let mut view = view("a", "c", term("bc", 1), 1, &THREE);
    let zones = [("a", "east"), ("b", "east"), ("c", "west")];
    view.policy.domains =
        Domains(zones.iter().map(|(n, z)| (n.to_string(), z.to_string())).collect());
    let all = term("bc", 1).target.members;
    assert_eq!(without(&view, "a", all.clone()), all);
}

/// A campaign of `c` for epoch 8, over the set {b, c}; reports as `b:1000`.
fn campaigns(bad: &str, reports: &str, cause: Cause, age_ms: u64) -> Verdict {
    let mut view = view("c", bad, term("bc", 2), 2, &THREE);
    let report = |text: &str| {
        let (node, end) = text.split_once(':').expect("NODE:END");
        let last = BranchId { epoch: 7, tli: 2 };
        let end = Lsn(end.parse().expect("a place"));
        (node.to_string(), Report { member: Member::new(node, 1), epoch: 8, sysid: 1, last, end })
    };
    let opened = Time(NOW.0 - age_ms);
    view.durable.promise = 8;
    view.store.campaign = Some(Record {
        value: CampaignRecord { epoch: 8, owner: "c".to_string(), beat: 1 },
        rev: 6,
        seen: NOW,
    });
    view.campaign = Some(Campaign {
        epoch: 8,
        cause,
        opened,
        covered: Some(opened),
        fenced: None,
        renewed: NOW,
        beat: 1,
        summons: Summons::All,
        reports: reports.split_whitespace().map(report).collect(),
        fast_forward: None,
    });
    campaign::decide(&view, NOW)
}

#[test]
fn one_without_bad_pages_leads_if_it_can_hold_what_was_acknowledged() {
    let fell = || Cause::LeaderFell;
    let check = |bad: &str, reports: &str, cause: Cause, age_ms: u64, expected: &str| {
        let verdict = campaigns(bad, reports, cause, age_ms);
        let Verdict::Act { why, .. } = &verdict else {
            return assert_eq!(shown(&verdict), expected, "{bad} {reports}");
        };
        assert!(why.starts_with(expected), "{bad} {reports}: {why}, not {expected}");
    };
    check("", "b:1000 c:1000", fell(), 100, "b.1 leads epoch 8:");
    check("b", "b:1000 c:1000", fell(), 100, "c.1 leads epoch 8:");
    // It streams what it lacks first.
    check("b", "b:1000 c:900", fell(), 100, "c shall lead and lacks what b holds");
    // That didn't come about: rather this one than none, and rather this one than a loss.
    check("b", "b:1000 c:900", fell(), 5_000, "b.1 leads epoch 8, with bad pages");
    // Nobody else is there, and b will be in a moment.
    check("c", "c:1000", fell(), 100, "late-report: b is alive and not sealed yet");
    check("c", "c:1000", fell(), 5_000, "c.1 leads epoch 8, with bad pages");
    check("bc", "b:1000 c:1000", fell(), 100, "b.1 leads epoch 8, with bad pages");
    let to = |node: &str| Some(node.to_string());
    check("b", "b:1000 c:1000", Cause::Force { to: to("b") }, 100, "b.1 leads epoch 8, with bad");
}
