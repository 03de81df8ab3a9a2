//! A leader's agent and the minder of its PostgreSQL in virtual time: who keeps the primary running,
//! and when it ends.

use super::{Agent, Command, Identity, Input};
use crate::decide::{Action, Verdict, upkeep};
use crate::durable::{Data, Durable, Grant};
use crate::ids::{Lsn, Member, Time};
use crate::journal::Event;
use crate::minder::{self, Right, State};
use crate::policy::Policy;
use crate::postgres::{PgAction, PgFacts, PgOutcome, Process, Walsender, sync_names};
use crate::spread::Domains;
use crate::term::{Branch, Redundancy, Set, Term};
use crate::view::Record;
use std::collections::BTreeMap;

/// The first look at the clock; nothing begins at zero.
const BEGIN: u64 = 1_000_000;
const TICK_MS: u64 = 50;
const LOOK_MS: u64 = 200;
/// Its own question is answered, and proves nothing: the agent's news stand alone.
const MINDER_ROUND_MS: u64 = 100;

/// What a case sets, as `lease flush=5 lag=5 freeze=10000+5000`.
#[derive(Default)]
struct Setting {
    /// The store answers each renewal at once.
    lease: bool,
    alone: bool,
    /// Both standbys are waited for.
    both: bool,
    flush_ms: u64,
    lag_ms: u64,
    /// A leader that is slow for so long hands over.
    slow_after_ms: Option<u64>,
    /// Nobody acts between these, neither agent nor minder; PostgreSQL goes on.
    freeze: Option<(u64, u64)>,
    /// The same for the agent alone.
    hang: Option<(u64, u64)>,
}

impl Setting {
    fn read(text: &str) -> Setting {
        let mut setting = Setting::default();
        for word in text.split_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, "0"));
            let number = |text: &str| text.parse::<u64>().unwrap();
            let span = |text: &str| {
                let (from, for_ms) = text.split_once('+').unwrap();
                (number(from), number(from) + number(for_ms))
            };
            match name {
                "lease" => setting.lease = true,
                "alone" => setting.alone = true,
                "both" => setting.both = true,
                "flush" => setting.flush_ms = number(value),
                "lag" => setting.lag_ms = number(value),
                "slow" => setting.slow_after_ms = Some(number(value)),
                "freeze" => setting.freeze = Some(span(value)),
                "hang" => setting.hang = Some(span(value)),
                other => panic!("{other}?"),
            }
        }
        setting
    }
}

struct Scene {
    setting: Setting,
    agent: Agent,
    minder: State,
    /// Records of the primary: flushed here at, ending at.
    records: Vec<(u64, Lsn)>,
    /// Under way: the command, and when it ends.
    evidence: Option<(u64, u64)>,
    asked: Option<u64>,
    told: Vec<Right>,
    probes: usize,
}

fn leader(setting: &Setting) -> Agent {
    let nodes: Vec<String> = ["a", "b", "c"].map(str::to_string).to_vec();
    let policy = Policy {
        nodes,
        redundancy: Redundancy { wanted: 1 + u32::from(setting.both), floor: 1 },
        preferences: BTreeMap::new(),
        domains: Domains::default(),
        duties: BTreeMap::new(),
        slow_after_ms: setting.slow_after_ms,
    };
    let branch = Branch { tli: 2, epoch: 7, parent: 1, fork: Lsn(100) };
    let root = Branch { tli: 1, epoch: 0, parent: 0, fork: Lsn(0) };
    let durable = Durable {
        promise: 7,
        incarnation: 1,
        data: Data::Ok,
        sysid: Some(1),
        line: vec![root.clone(), branch.clone()],
        grant: Some(Grant { epoch: 7, tli: 2 }),
        ..Durable::default()
    };
    let members = ["b", "c"].map(|node| Member::new(node, 1));
    let (members, k) = match setting.alone {
        true => (Vec::new(), 0),
        false => (members.to_vec(), 1 + u32::from(setting.both)),
    };
    let set = Set { leader: Member::new("a", 1), members: members.into_iter().collect(), k };
    let term = Term {
        epoch: 7,
        leader: Member::new("a", 1),
        open: true,
        inforce: vec![set.clone()],
        target: set,
        branches: vec![root, branch],
        sysid: 1,
    };
    let identity = Identity {
        cluster: "shop".to_string(),
        service: "main".to_string(),
        node: "a".to_string(),
        host: "127.0.0.1".to_string(),
        port: 5432,
    };
    let mut agent = Agent::new(identity, policy, durable, Time(BEGIN));
    // The store was read and is never written to: renewals of the lease are the scene's.
    agent.view.store.read = true;
    agent.view.store.term = Some(Record { value: term, rev: 1, seen: Time(BEGIN) });
    agent.view.leading.leased = Some(Time(BEGIN));
    agent
}

impl Scene {
    fn new(text: &str) -> Scene {
        let setting = Setting::read(text);
        let agent = leader(&setting);
        Scene {
            setting,
            agent,
            minder: State::default(),
            records: vec![(0, Lsn(1_000))],
            evidence: None,
            asked: None,
            told: Vec::new(),
            probes: 0,
        }
    }

    fn facts(&self, at: u64) -> PgFacts {
        let newest = |until: u64| {
            let known = self.records.iter().filter(|(flushed, _)| *flushed <= until);
            known.map(|(_, end)| *end).max().unwrap_or_default()
        };
        let flush = newest(at.saturating_sub(self.setting.lag_ms));
        let term = self.agent.view.term().unwrap();
        let rows = term.target.members.iter().map(|member| Walsender {
            name: member.slot(),
            streaming: true,
            priority: 1,
            flush,
            owns_slot: true,
        });
        PgFacts {
            process: Process::Running,
            pid: Some(9),
            in_recovery: Some(false),
            sysid: Some(1),
            tli: 2,
            lsn: newest(at),
            sync_names: Some(sync_names(&term.target, false)),
            walsenders: rows.collect(),
            checkpoint_tli: 2,
            slots: term.target.members.iter().map(Member::slot).collect(),
            ..PgFacts::default()
        }
    }

    fn give(&mut self, at: u64, input: Input) {
        for command in self.agent.step(Time(BEGIN + at), input) {
            match command {
                Command::Run { id, action: PgAction::Evidence } => {
                    self.evidence = Some((id, at + self.setting.flush_ms));
                }
                Command::Run { id, action: _ } => {
                    let facts = self.facts(at);
                    self.give(at, Input::PgDone { id, result: Ok(PgOutcome::Done), facts });
                }
                Command::Mind { epoch, until, k, members } => {
                    let right = Right { epoch, until, k, members };
                    self.told.push(right.clone());
                    self.minder.told(Some(right), Time(BEGIN + at));
                }
                _ => {}
            }
        }
    }

    fn agent_acts(&mut self, at: u64) {
        if self.setting.lease && at.is_multiple_of(1_000) {
            self.agent.view.leading.leased = Some(Time(BEGIN + at));
        }
        if let Some((id, _)) = self.evidence.take_if(|(_, ends)| *ends <= at) {
            let end = self.records.last().unwrap().1;
            let (result, facts) = (Ok(PgOutcome::Evidence { end }), self.facts(at));
            self.give(at, Input::PgDone { id, result, facts });
        }
        if at.is_multiple_of(LOOK_MS) {
            let (generation, facts) = (self.agent.generation(), self.facts(at));
            self.give(at, Input::Pg { generation, facts });
        }
        if at.is_multiple_of(TICK_MS) {
            self.give(at, Input::Tick);
        }
    }

    /// True: the server is stopped.
    fn minder_acts(&mut self, at: u64) -> bool {
        let now = Time(BEGIN + at);
        if self.asked.take_if(|asked| *asked + MINDER_ROUND_MS <= at).is_some() {
            self.minder.answered(None);
        }
        match minder::decide(&self.minder, now) {
            minder::Verdict::Wait { .. } => false,
            minder::Verdict::Stop { .. } => true,
            minder::Verdict::Probe => {
                self.probes += 1;
                self.asked = Some(at);
                self.minder.asks(now);
                false
            }
        }
    }

    /// What becomes of it within a minute.
    fn run(&mut self) -> String {
        let within = |span: Option<(u64, u64)>, at| span.is_some_and(|(a, b)| (a..b).contains(&at));
        for at in (0..60_000).step_by(10) {
            if self.evidence.is_some_and(|(_, ends)| ends == at) {
                let next = Lsn(self.records.last().unwrap().1.0 + 64);
                self.records.push((at, next));
            }
            if within(self.setting.freeze, at) {
                continue;
            }
            if !within(self.setting.hang, at) {
                self.agent_acts(at);
            }
            if self.minder_acts(at) {
                return format!("stopped at {at}");
            }
        }
        if self.probes == 0 { "runs".to_string() } else { "runs, and the minder asks".to_string() }
    }
}

#[test]
fn an_agent_that_is_well_keeps_the_minder_quiet_and_one_that_is_not_extends_nothing() {
    #[rustfmt::skip]
    let cases = [
        ("lease flush=10 lag=10",                      "runs"),
        ("lease flush=10 lag=5000",                    "runs"),
        ("lease alone flush=10",                       "runs"),
        // The store is gone: evidence alone.
        ("flush=10 lag=10",                            "runs"),
        ("flush=10 lag=250",                           "runs"),
        ("flush=400 lag=10",                           "runs, and the minder asks"),
        ("flush=10 lag=1900",                          "runs, and the minder asks"),
        ("flush=1400 lag=10",                          "runs, and the minder asks"),
        // Evidence that is older than it counts is none; the last lease was given at 0.
        ("flush=10 lag=3000",                          "stopped at 4500"),
        ("alone flush=10",                             "stopped at 4500"),
        // The last record that proved anything was begun at 9500.
        ("flush=10 lag=10 hang=10000+50000",           "stopped at 12500"),
        ("flush=10 lag=10 hang=10000+2000",            "runs, and the minder asks"),
        // A freeze ends what the news of before it would give.
        ("flush=10 lag=10 freeze=10000+2000",          "runs, and the minder asks"),
        ("flush=10 lag=10 freeze=10000+9000",          "stopped at 19000"),
        ("flush=10 lag=600 freeze=10000+9000",         "stopped at 19000"),
        ("lease flush=10 lag=10 freeze=10000+9010",    "stopped at 19010"),
    ];
    for (text, expected) in cases {
        assert_eq!(Scene::new(text).run(), expected, "{text}");
    }
}

#[test]
fn a_slow_leader_says_so_and_hands_over_where_that_helps_and_is_wanted() {
    #[rustfmt::skip]
    let cases = [
        ("lease flush=10 lag=10 slow=7000",             "redundancy, stays"),
        ("lease flush=390 lag=10 slow=7000",            "redundancy, stays"),
        ("lease flush=600 lag=10",                      "slow, stays"),
        ("lease flush=600 lag=10 slow=7000",            "slow, asked for another"),
        // Who is no faster wins nothing; who is not heard of is not known to be.
        ("lease flush=600 lag=700 slow=7000",           "slow, stays"),
        ("lease alone flush=600 slow=7000",             "slow, stays"),
        // What was slow because nobody acted is not slow.
        ("lease flush=10 lag=10 slow=7000 hang=10000+8000", "redundancy, stays"),
    ];
    for (text, expected) in cases {
        let mut scene = Scene::new(text);
        scene.run();
        let rule = scene.agent.verdicts()["leader"].rule().to_string();
        let rule = if rule == "steady" { "redundancy".to_string() } else { rule };
        let asked = scene.agent.view.leading.handed.is_some();
        let told = if asked { "asked for another" } else { "stays" };
        assert_eq!(format!("{rule}, {told}"), expected, "{text}");
    }
}

#[test]
fn the_minder_is_told_at_once_and_only_what_is_new() {
    for text in ["lease flush=10 lag=10", "flush=10 lag=10", "flush=10 lag=900"] {
        let mut scene = Scene::new(text);
        scene.run();
        let told = &scene.told;
        assert!(told.windows(2).all(|two| two[0] != two[1]), "{text}: told twice");
        assert!(told.windows(2).all(|two| two[0].until < two[1].until), "{text}: {told:?}");
        assert!(told.len() > 50, "{text}: {}", told.len());
    }
}

#[test]
fn a_proof_of_before_counts_for_nothing_once_it_leads_alone() {
    #[rustfmt::skip]
    let cases = [
        // setting  leased        proven        until
        ("",        None,         None,         None),
        ("",        Some(1_000),  None,         Some(5_500)),
        ("",        Some(1_000),  Some(2_500),  Some(5_500)),
        ("",        Some(1_000),  Some(3_000),  Some(6_000)),
        ("",        None,         Some(3_000),  Some(6_000)),
        ("alone",   Some(1_000),  Some(3_000),  Some(5_500)),
        ("alone",   None,         Some(3_000),  None),
    ];
    for (text, leased, proven, until) in cases {
        let mut agent = leader(&Setting::read(text));
        agent.view.leading.leased = leased.map(Time);
        agent.view.leading.proven = proven.map(Time);
        let right = upkeep::right(&agent.view, agent.view.term().unwrap());
        assert_eq!(right.map(|right| right.until), until.map(Time), "{text} {leased:?} {proven:?}");
    }
}

/// Looks of a leader at its walsenders: `AT:b,c` says who streams then. What the journal gets of it.
fn journaled(setting: &str, looks: &str) -> Vec<String> {
    let mut scene = Scene::new(&format!("{setting} lease flush=10 lag=10"));
    let mut told = Vec::new();
    let mut looks: Vec<(u64, &str)> = looks
        .split_whitespace()
        .map(|look| look.split_once(':').unwrap())
        .map(|(at, who)| (at.parse().unwrap(), who))
        .collect();
    looks.push((0, "b,c"));
    looks.sort_unstable_by(|a, b| b.cmp(a));
    for at in (0..6_000).step_by(10) {
        let input = match looks.pop_if(|(due, _)| *due <= at) {
            Some((_, who)) => {
                let mut facts = scene.facts(at);
                facts
                    .walsenders
                    .retain(|row| who.split(',').any(|name| row.name.starts_with(name)));
                Input::Pg { generation: scene.agent.generation(), facts }
            }
            None => Input::Tick,
        };
        // Its disk is not what this is about.
        scene.agent.view.leading.evidence = Some((Time(BEGIN + at), Lsn(1)));
        for command in scene.agent.step(Time(BEGIN + at), input) {
            let Command::Journal { event } = command else { continue };
            match *event {
                Event::Decided(decision) => {
                    assert_eq!(decision.replay().as_ref(), Some(&decision.verdict), "at {at}");
                    let Verdict::Hold { rule, why, .. } = &decision.verdict else { continue };
                    let since = decision.since.unwrap().0 - BEGIN;
                    let held = scene.agent.holds().find(|(name, _)| *name == decision.controller);
                    assert_eq!(held.map(|(_, held)| held.since), decision.since);
                    told.push(format!("{at} {rule} since {since}: {why}"));
                }
                Event::Released { rule, held_ms, .. } => {
                    assert_eq!(scene.agent.holds().count(), 0);
                    told.push(format!("{at} {rule} over after {held_ms}"));
                }
                Event::Ended { .. } | Event::Asked { .. } | Event::Noted { .. } => {}
            }
        }
    }
    told
}

#[test]
fn a_hold_is_journaled_when_it_begins_changes_and_ends_and_never_between() {
    #[rustfmt::skip]
    let cases: [(&str, &str, &[&str]); 6] = [
        ("", "",                                &[]),
        // Shorter than a moment: nothing is told of it.
        ("", "1000:- 1090:b,c",                 &[]),
        ("", "1000:- 5000:b,c", &[
            "1100 no-standby since 1000: writes wait: 0 of 1 acknowledgements possible",
            "5000 no-standby over after 4000",
        ]),
        // It comes again: another one.
        ("", "1000:- 1200:b,c 1400:- 1600:b,c", &[
            "1100 no-standby since 1000: writes wait: 0 of 1 acknowledgements possible",
            "1200 no-standby over after 200",
            "1500 no-standby since 1400: writes wait: 0 of 1 acknowledgements possible",
            "1600 no-standby over after 200",
        ]),
        // Another reason for the same one; the short one between is passed over.
        ("both", "1000:b 1500:- 1550:b 1800:- 2000:b,c", &[
            "1100 no-standby since 1000: writes wait: 1 of 2 acknowledgements possible",
            "1900 no-standby since 1000: writes wait: 0 of 2 acknowledgements possible",
            "2000 no-standby over after 1000",
        ]),
        ("", "1000:-", &[
            "1100 no-standby since 1000: writes wait: 0 of 1 acknowledgements possible",
        ]),
    ];
    for (setting, looks, expected) in cases {
        assert_eq!(journaled(setting, looks), expected, "{setting} {looks}");
    }
}

#[test]
fn what_is_done_all_the_time_ends_no_hold() {
    let mut agent = leader(&Setting::default());
    let mut told = Vec::new();
    let hold = Verdict::hold("cover", "not covered", "a node more");
    let act = Verdict::act("campaign", "still under way", Action::EndCampaign);
    for (at, verdict, routine) in [
        (0, &hold, false),
        (100, &hold, false),
        (300, &act, true),
        (310, &hold, false),
        (600, &act, true),
        (610, &hold, false),
        (700, &act, false),
    ] {
        let mut out = Vec::new();
        agent.note_hold(Time(BEGIN + at), "campaign", verdict, routine, &mut out);
        told.extend(out.iter().map(|_| at));
    }
    assert_eq!(told, [100, 700]);
}
