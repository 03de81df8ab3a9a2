//! Rollouts: every instance of a service, or Everhold itself on every node, starts anew, one at a
//! time, leaders last, and nothing goes on at the first doubt.
//!
//! What has been done is seen in what runs (another process than when the rollout began), so a
//! rollout goes on after its coordinator was lost, itself renewed perhaps.
//!
//! Instances that nobody is served by when it begins start anew first: nothing is lost with them, and
//! a rollout of what is mended must not wait for what is broken.

use crate::ids::{Epoch, Time};
use crate::run::WATCH_MS;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One that started anew is back within this, or the rollout stops: a large standby recovers for
/// minutes after a restart, and more is a reason to look.
pub const BACK_WITHIN_MS: u64 = 300_000;
/// A doubt that goes by itself so soon is none: a heartbeat that came late.
pub const DOUBT_MS: u64 = 5_000;

/// The record in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The service whose instances start anew; `None`: Everhold on each node.
    pub service: Option<String>,
    pub by: String,
    /// On the wall clock of whoever asked.
    pub at: String,
    /// The process of each node, or of each instance of an HTTP service, when it began.
    pub before: BTreeMap<String, Option<i32>>,
    /// The epoch of each service concerned when it began.
    pub epochs: BTreeMap<String, Epoch>,
    /// Nodes that may be unwell on its account: the last ones it did something to.
    pub doing: BTreeSet<String>,
    /// Instances that ran when it began, and that no gateway found well.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub broken: BTreeSet<String>,
    pub state: State,
    /// The journal's entry of the request.
    pub journal: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum State {
    Running,
    /// Somebody has to look; what is done stays done.
    Stopped {
        why: String,
    },
    Done,
}

/// A node as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Of what starts anew: the instance's server, or the agent.
    pub pid: Option<i32>,
    /// It leads what is rolled out, or anything if that is Everhold.
    pub leads: bool,
    /// It could take over now.
    pub fit: bool,
    /// All of it is as it should be; else what isn't.
    pub unwell: Option<String>,
    /// What runs was started by what the spec said before: another process alone doesn't count.
    pub outdated: bool,
    /// It runs, and nobody is served by it: that it starts anew takes nothing from anybody.
    pub broken: bool,
    /// So long it may take to be well after it was asked to start anew.
    pub back_within_ms: u64,
}

impl Default for Node {
    /// Nothing runs there, as far as is known.
    fn default() -> Node {
        Node {
            pid: None,
            leads: false,
            fit: false,
            unwell: None,
            outdated: false,
            broken: false,
            back_within_ms: BACK_WITHIN_MS,
        }
    }
}

/// Since when those that start anew have been well. Whoever carries out a rollout begins with nothing.
#[derive(Debug, Default)]
pub struct Watch {
    since: BTreeMap<String, (Option<i32>, Time)>,
}

impl Watch {
    /// One that the rollout started anew is unwell until it has been well for [`WATCH_MS`] without a
    /// break, as one process: the next one's turn comes only then.
    pub fn take(&mut self, rollout: &Rollout, nodes: &mut BTreeMap<String, Node>, now: Time) {
        self.since.retain(|name, _| rollout.doing.contains(name));
        for (name, node) in nodes.iter_mut().filter(|(name, _)| rollout.doing.contains(*name)) {
            if node.unwell.is_some() || !rollout.renewed(name, node) {
                self.since.remove(name);
                continue;
            }
            let known = self.since.entry(name.clone()).or_insert((node.pid, now));
            if known.0 != node.pid {
                *known = (node.pid, now);
            }
            if now.since(known.1) < WATCH_MS {
                node.unwell = Some(format!("is watched for {} s", WATCH_MS / 1_000));
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The standby's server, or Everhold on the node, starts anew.
    Renew {
        node: String,
    },
    /// The service is handed over to one that started anew; its leader starts anew in the course.
    HandOver {
        from: String,
        to: String,
    },
    Wait {
        why: String,
    },
    Stop {
        why: String,
    },
    Done,
}

/// A step that was asked for, and whose effect is not seen yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    pub step: Step,
    pub since: Time,
    /// Why it was refused the last time.
    pub refused: Option<String>,
}

impl Rollout {
    /// The node has started anew since.
    pub fn renewed(&self, name: &str, node: &Node) -> bool {
        let another = self.before.get(name).is_some_and(|before| *before != node.pid);
        node.pid.is_some() && !node.outdated && another
    }
}

/// The next step. `doubt` is what happened that no rollout does, `waiting` since when it waits,
/// `tried` what was asked for last.
///
/// A step may be given again and again until its effect is seen: who starts anew is told which
/// process is meant.
pub fn next(
    rollout: &Rollout,
    nodes: &BTreeMap<String, Node>,
    doubt: Option<String>,
    waiting: Option<Time>,
    tried: Option<&Tried>,
    now: Time,
) -> Step {
    if let Some(why) = doubt {
        return Step::Stop { why };
    }
    let step = wanted(rollout, nodes, waiting, now);
    let Some(Tried { since, refused, .. }) = tried.filter(|tried| tried.step == step) else {
        return step;
    };
    let Some(node) = step.asks() else { return step };
    let (patience, why) = match refused {
        Some(why) => (DOUBT_MS, why.as_str()),
        None => (BACK_WITHIN_MS, "it was asked to, and nothing has begun"),
    };
    if now.since(*since) <= patience {
        return step;
    }
    Step::Stop { why: format!("{node}: {why}") }
}

impl Step {
    /// The node that is asked for it.
    fn asks(&self) -> Option<&str> {
        match self {
            Step::Renew { node } | Step::HandOver { from: node, .. } => Some(node),
            Step::Wait { .. } | Step::Stop { .. } | Step::Done => None,
        }
    }
}

fn wanted(
    rollout: &Rollout,
    nodes: &BTreeMap<String, Node>,
    waiting: Option<Time>,
    now: Time,
) -> Step {
    if let Some(gone) = rollout.before.keys().find(|name| !nodes.contains_key(*name)) {
        return Step::Stop { why: format!("{gone} is no node any more") };
    }
    let ours = || nodes.iter().filter(|(name, _)| rollout.before.contains_key(*name));
    let waited = waiting.map_or(0, |since| now.since(since));
    let begins = |name: &String, node: &Node| {
        node.broken && rollout.broken.contains(name) && !rollout.renewed(name, node)
    };
    let others = ours().filter(|(name, node)| !begins(name, node));
    let unwell = others.into_iter().find_map(|(name, it)| Some((name, it, it.unwell.as_ref()?)));
    if let Some((name, node, unwell)) = unwell {
        let asked = rollout.doing.contains(name);
        let patience = if asked { node.back_within_ms } else { DOUBT_MS };
        let why = format!("{name}: {unwell}");
        return if waited > patience { Step::Stop { why } } else { Step::Wait { why } };
    }
    let left = ours().filter(|(name, node)| !rollout.renewed(name, node));
    let turn = |name: &String, node: &Node| (node.leads, !rollout.broken.contains(name));
    let Some((name, node)) = left.min_by_key(|(name, node)| (turn(name, node), *name)) else {
        return Step::Done;
    };
    if rollout.service.is_none() || !node.leads {
        return Step::Renew { node: name.clone() };
    }
    match ours().find(|(_, node)| !node.leads && node.fit) {
        Some((to, _)) => Step::HandOver { from: name.clone(), to: to.clone() },
        None => Step::Stop { why: format!("{name} leads, and no other node may take over") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(pid: Option<i32>) -> Node {
        Node { pid, ..Node::default() }
    }

    /// One of `api` that has just begun.
    fn rollout(before: &[&str]) -> Rollout {
        Rollout {
            service: Some("api".to_string()),
            by: String::new(),
            at: String::new(),
            before: before.iter().map(|node| (node.to_string(), Some(1))).collect(),
            epochs: BTreeMap::new(),
            doing: BTreeSet::new(),
            broken: BTreeSet::new(),
            state: State::Running,
            journal: None,
        }
    }

    /// `NODE:PID[:leads][:fit][:broken][:UNWELL]`; every process was 1 before. `broken` already was when
    /// it began, `fails` is since.
    fn check(service: bool, doing: &str, nodes: &str, waited_ms: u64, expected: &str) {
        let mut broken = BTreeSet::new();
        let nodes: BTreeMap<String, Node> = nodes
            .split_whitespace()
            .map(|text| {
                let mut parts = text.split(':');
                let name = parts.next().expect("a name").to_string();
                let mut node = node(parts.next().and_then(|pid| pid.parse().ok()));
                for part in parts {
                    match part {
                        "leads" => node.leads = true,
                        "fit" => node.fit = true,
                        "outdated" => node.outdated = true,
                        "was-broken" => drop(broken.insert(name.clone())),
                        "soon" => node.back_within_ms = 100,
                        unwell => node.unwell = Some(unwell.to_string()),
                    }
                    node.broken |= ["broken", "fails"].contains(&part);
                    if part == "broken" {
                        broken.insert(name.clone());
                    }
                }
                (name, node)
            })
            .collect();
        let rollout = Rollout {
            service: service.then(|| "main".to_string()),
            doing: doing.chars().map(String::from).collect(),
            broken,
            ..rollout(&["a", "b", "c"])
        };
        let step = next(&rollout, &nodes, None, Some(Time(0)), None, Time(waited_ms));
        let shown = match step {
            Step::Renew { node } => format!("renew {node}"),
            Step::HandOver { from, to } => format!("{from} to {to}"),
            Step::Wait { why } => format!("wait, {why}"),
            Step::Stop { why } => format!("stop, {why}"),
            Step::Done => "done".to_string(),
        };
        assert_eq!(shown, expected, "{nodes:?}");
    }

    #[test]
    fn standbys_first_then_the_leader_by_way_of_a_handover() {
        check(true, "", "a:1:leads b:1:fit c:1:fit", 0, "renew b");
        check(true, "b", "a:1:leads b:1:stopped c:1:fit", 100, "wait, b: stopped");
        check(true, "b", "a:1:leads b:2:fit c:1:fit", 0, "renew c");
        check(true, "c", "a:1:leads b:2:fit c:2", 0, "a to b");
        check(true, "ab", "a:2 b:2:leads c:2", 0, "done");
        // Whoever leads now is asked, whoever led when it began.
        check(true, "", "a:1 b:1:leads c:1:fit", 0, "renew a");
        check(true, "", "a:2 b:1:leads c:2", 0, "stop, b leads, and no other node may take over");
    }

    #[test]
    fn everhold_itself_goes_without_a_handover_and_leaders_are_last() {
        check(false, "", "a:1:leads b:1 c:1", 0, "renew b");
        check(false, "", "a:1:leads b:2 c:2", 0, "renew a");
        check(false, "", "a:2:leads b:2 c:2", 0, "done");
    }

    #[test]
    fn instances_go_one_by_one_and_one_that_crashed_meanwhile_is_not_done() {
        check(true, "", "a:1:outdated b:1:outdated c:1:outdated", 0, "renew a");
        check(true, "a", "a:2:young b:1:outdated c:1:outdated", 4_000, "wait, a: young");
        check(true, "a", "a:2 b:3:outdated c:1:outdated", 0, "renew b");
        check(true, "b", "a:2 b:4 c:2", 0, "done");
    }

    #[test]
    fn what_is_broken_goes_first_and_holds_up_nothing_but_what_serves() {
        check(true, "", "a:1 b:1:broken c:1", 0, "renew b");
        check(true, "", "a:1 b:1:broken c:1:broken", 0, "renew b");
        // It has to be well before the next one's turn, broken or not.
        check(true, "b", "a:1 b:2:was-broken:young c:1:broken", 0, "wait, b: young");
        check(true, "b", "a:1 b:2:was-broken c:1:broken", 0, "renew c");
        check(true, "c", "a:1 b:2:was-broken c:2:was-broken", 0, "renew a");
        check(true, "", "a:1 b:1:was-broken c:1", 0, "renew b");
        check(true, "b", "a:1 b:2:broken c:1", BACK_WITHIN_MS + 1, "stop, b: broken");
        // On its way out.
        check(true, "b", "a:1 b:1:was-broken:stopping c:1", 0, "wait, b: stopping");
        // Who fails since is a doubt.
        check(true, "b", "a:1 b:2:was-broken c:1:fails", 0, "wait, c: fails");
        check(true, "b", "a:1 b:2:was-broken c:1:fails", DOUBT_MS + 1, "stop, c: fails");
        check(true, "a", "a:2:fails b:1 c:1", DOUBT_MS + 1, "wait, a: fails");
    }

    #[test]
    fn each_has_its_own_time_to_be_well() {
        check(true, "a", "a:2:soon:young b:1 c:1", 100, "wait, a: young");
        check(true, "a", "a:2:soon:young b:1 c:1", 101, "stop, a: young");
        check(true, "a", "a:2 b:1:soon:down c:1", DOUBT_MS, "wait, b: down");
    }

    #[test]
    fn one_that_started_anew_is_watched_as_one_process() {
        let rollout = Rollout { doing: ["a".to_string()].into(), ..rollout(&["a", "b"]) };
        let mut watch = Watch::default();
        let mut check = |ms: u64, pid: i32, sick: bool, well: bool| {
            let mut a = node(Some(pid));
            a.unwell = sick.then(|| "sick".to_string());
            let mut nodes = [("a".to_string(), a), ("b".to_string(), node(Some(1)))].into();
            watch.take(&rollout, &mut nodes, Time(ms));
            assert_eq!(nodes["a"].unwell.is_none(), well, "{ms}");
            assert_eq!(nodes["b"].unwell, None, "nobody watches it");
        };
        // Still the old one: it is to be asked, and not waited for.
        check(0, 1, false, true);
        check(1_000, 2, false, false);
        check(999 + WATCH_MS, 2, false, false);
        check(1_000 + WATCH_MS, 2, false, true);
        // Another process, or one that was sick meanwhile, begins anew.
        check(1_001 + WATCH_MS, 3, false, false);
        check(10_000, 3, true, false);
        check(10_500, 3, false, false);
        check(10_499 + WATCH_MS, 3, false, false);
        check(10_500 + WATCH_MS, 3, false, true);
    }

    #[test]
    fn nothing_goes_on_over_a_doubt() {
        // Somebody else's trouble is not waited for as long as one's own.
        check(true, "b", "a:1:leads b:2 c:1:down", DOUBT_MS, "wait, c: down");
        check(true, "b", "a:1:leads b:2 c:1:down", DOUBT_MS + 1, "stop, c: down");
        check(true, "b", "a:1:leads b:2:down c:1", DOUBT_MS + 1, "wait, b: down");
        check(true, "b", "a:1:leads b:2:down c:1", BACK_WITHIN_MS + 1, "stop, b: down");
        check(true, "", "a:1:leads b:1", 0, "stop, c is no node any more");
        let rollout = Rollout { service: None, ..rollout(&[]) };
        let doubt = Some("a failover".to_string());
        let step = next(&rollout, &BTreeMap::new(), doubt, None, None, Time(0));
        assert_eq!(step, Step::Stop { why: "a failover".to_string() });
    }

    #[test]
    fn a_step_without_effect_is_a_doubt_and_sooner_when_it_is_refused() {
        let rollout = Rollout { service: None, ..rollout(&["a", "b"]) };
        let well = node(Some(1));
        let nodes: BTreeMap<_, _> =
            rollout.before.keys().cloned().map(|n| (n, well.clone())).collect();
        let renew = |node: &str| Step::Renew { node: node.to_string() };
        let check = |asked: &str, refused: Option<&str>, ms: u64, expected: Step| {
            let refused = refused.map(str::to_string);
            let tried = Tried { step: renew(asked), since: Time(1_000), refused };
            let now = Time(1_000 + ms);
            assert_eq!(next(&rollout, &nodes, None, None, Some(&tried), now), expected);
        };
        let stop = |why: &str| Step::Stop { why: why.to_string() };
        check("a", Some("no"), DOUBT_MS, renew("a"));
        check("a", Some("no"), DOUBT_MS + 1, stop("a: no"));
        check("a", None, BACK_WITHIN_MS, renew("a"));
        let nothing = stop("a: it was asked to, and nothing has begun");
        check("a", None, BACK_WITHIN_MS + 1, nothing);
        // Of another step it says nothing.
        check("b", Some("no"), DOUBT_MS + 1, renew("a"));
    }
}
