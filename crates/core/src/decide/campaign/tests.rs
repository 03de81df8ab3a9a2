//! What a campaign publishes, as tables. Node `b` campaigns for epoch 8 and holds what `a` led with.

use super::*;
use crate::agent::{Agent, Command, Input};
use crate::decide::bed::{self, NOW, branches};
use crate::ids::{Lsn, Member, Tli};
use crate::postgres::{PgAction, PgFacts, PgOutcome, Process};
use crate::term::{Branch, BranchId};
use crate::view::Record;

/// `me`, sealed at epoch 8, with the report of itself and of `with`.
fn agent(me: &str, open: bool, highest: Tli, with: &str) -> Agent {
    let mut policy = bed::policy(&["a", "b", "c"], 1);
    for (place, node) in (0..).zip(["c", "b", "a"]) {
        policy.preferences.insert(node.into(), Preference { priority: place, failover: true });
    }
    let mut agent = bed::agent(me, &policy, &bed::durable(8));
    let view = &mut agent.view;
    (view.store.read, view.store.reachable) = (true, true);
    let mut term = bed::term("bc", 1);
    term.open = open;
    let more = |tli| Branch { tli, epoch: 7, parent: 1, fork: Lsn(100) };
    term.branches.extend((3..=highest).map(more));
    view.store.term = Some(Record { value: term, rev: 5, seen: Time(0) });
    view.store.epoch = Some(Record { value: 8, rev: 6, seen: NOW });
    let record = CampaignRecord { epoch: 8, owner: me.to_string(), beat: 0 };
    view.store.campaign = Some(Record { value: record, rev: 7, seen: NOW });
    let report = |node: char| {
        let last = BranchId { epoch: 7, tli: 2 };
        let member = Member::new(node, 1);
        (node.to_string(), Report { member, epoch: 8, sysid: 1, last, end: Lsn(500) })
    };
    view.campaign = Some(Campaign {
        epoch: 8,
        cause: Cause::LeaderFell,
        opened: NOW,
        covered: Some(NOW),
        fenced: None,
        renewed: NOW,
        beat: 0,
        summons: Summons::All,
        reports: with.chars().map(report).collect(),
        fast_forward: None,
    });
    agent
}

/// Who leads the term that is published, and on which timeline.
fn published_by(view: &View) -> String {
    let verdict = decide(view, NOW);
    let Verdict::Act { actions, .. } = &verdict else { return verdict.rule().to_string() };
    let [Action::Store { write }] = actions.as_slice() else { return verdict.rule().to_string() };
    let Write::Publish { term, .. } = &**write else { return verdict.rule().to_string() };
    format!("{} on {}", term.leader.node, term.branch().map_or(0, |branch| branch.tli))
}

#[test]
fn a_number_that_somebody_may_be_on_is_not_published_again() {
    #[rustfmt::skip]
    let cases = [
        // open,  highest published, seen here, told of c    published
        (true,    4,                 0,         (0, 0),      "a on 5"),
        // Its leader may have gone astray to 5, and nobody is left who says so.
        (false,   4,                 0,         (0, 0),      "a on 6"),
        (false,   4,                 5,         (0, 0),      "a on 6"),
        (false,   4,                 7,         (0, 0),      "a on 8"),
        (true,    4,                 0,         (7, 0),      "a on 8"),
        // It was stopped for it, and remembers.
        (true,    4,                 0,         (0, 7),      "a on 8"),
    ];
    for (open, highest, seen, (tli, told), expected) in cases {
        let mut view = agent("b", open, highest, "ab").view;
        view.seen_tli = seen;
        let mut status = Status::clone(&bed::agent("c", &view.policy, &bed::durable(7)).status());
        (status.tli, status.seen_tli) = (tli, told);
        view.peers.get_mut("c").expect("a peer").status = Some(std::sync::Arc::new(status));
        assert_eq!(published_by(&view), expected, "{open} {highest} {seen} {tli} {told}");
    }
}

#[test]
fn a_leader_that_went_astray_remembers_where_when_it_is_stopped() {
    let mut agent = agent("b", false, 4, "bc");
    let view = &mut agent.view;
    view.campaign = None;
    let mut term = bed::term("c", 1);
    term.leader = Member::new("b", 1);
    (term.epoch, term.open) = (8, false);
    term.branches.push(Branch { tli: 4, epoch: 8, parent: 2, fork: Lsn(500) });
    (term.target.leader, term.inforce[0].leader) = (term.leader.clone(), term.leader.clone());
    let line = term.line();
    let prefix = agent.keys().prefix.clone();
    let view = &mut agent.view;
    view.durable.line = branches();
    view.pg = PgFacts {
        process: Process::Running,
        in_recovery: Some(true),
        tli: 2,
        lsn: Lsn(500),
        ..PgFacts::default()
    };
    view.parked = Some((Lsn(500), 2));
    view.trimmed = Some(branches());
    let text = crate::records::encode(&term);
    let kv = crate::kv::Kv { key: format!("{prefix}term"), value: text, rev: 9 };
    let run = |commands: &[Command]| {
        commands.iter().find_map(|it| match it {
            Command::Run { id, action } => Some((*id, action.clone())),
            _ => None,
        })
    };
    let commands = agent.step(NOW, Input::Store { kvs: vec![kv] });
    let id = commands.iter().find_map(|it| match it {
        Command::Persist { id, .. } => Some(*id),
        _ => None,
    });
    let commands = agent.step(NOW, Input::Persisted { id: id.expect("a grant"), result: Ok(()) });
    let Some((id, PgAction::Promote { .. })) = run(&commands) else { panic!("{commands:?}") };
    assert_eq!(agent.view.durable.line, line);
    let result = Ok(PgOutcome::Promoted { tli: 5, parent: 2, fork: Lsn(500) });
    let facts = PgFacts { in_recovery: Some(false), tli: 5, ..agent.view.pg.clone() };
    let commands = agent.step(NOW, Input::PgDone { id, result, facts });
    let Some((_, PgAction::Stop { .. })) = run(&commands) else { panic!("{commands:?}") };
    assert_eq!(agent.view.pg.tli, 0, "its server is as good as gone");
    assert_eq!(agent.view.highest_timeline(), 5);
    assert_eq!(agent.status().seen_tli, 5);
}

#[test]
fn a_leader_that_may_not_lead_leads_on_where_it_alone_can() {
    #[rustfmt::skip]
    let cases = [
        // a may lead, open,  set, reports  who leads
        (true,         true,  "bc", "abc", "a on 3"),
        (false,        true,  "bc", "abc", "b on 3"),
        (false,        true,  "bc", "a",   "nobody-may-lead"),
        // It acknowledged alone.
        (false,        true,  "",   "a",   "a on 3"),
        // Nobody else may have what it was to lead with; of those who do it is the last.
        (false,        false, "bc", "a",   "a on 4"),
        (false,        false, "bc", "abc", "b on 4"),
    ];
    for (fit, open, set, reports, expected) in cases {
        let mut view = agent("b", open, 2, reports).view;
        let term = &mut view.store.term.as_mut().expect("a term").value;
        let k = u32::from(!set.is_empty());
        term.target = bed::term(set, k).target;
        term.inforce = vec![term.target.clone()];
        view.policy.preferences.get_mut("a").expect("declared").failover = fit;
        assert_eq!(published_by(&view), expected, "{fit} {open} {set} {reports}");
    }
    // What it has and another lacks goes to the other, which then leads.
    let mut view = agent("b", false, 2, "ab").view;
    view.policy.preferences.get_mut("a").expect("declared").failover = false;
    let campaign = view.campaign.as_mut().expect("a campaign");
    campaign.reports.get_mut("a").expect("a report").end = Lsn(600);
    let verdict = decide(&view, NOW);
    assert_eq!(verdict.rule(), "fast-forward", "{verdict:?}");
}
