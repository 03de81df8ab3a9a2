//! Rollouts: every instance of a service, or Everhold itself on every node, starts anew, one at a
//! time, leaders last, and nothing goes on at the first doubt.
//!
//! What has been done is seen in what runs (another process than when the rollout began), so a
//! rollout goes on after its coordinator was lost, itself renewed perhaps.

use crate::ids::{Epoch, Time};
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
    let unwell = ours().find_map(|(name, node)| Some((name, node.unwell.as_ref()?)));
    if let Some((name, unwell)) = unwell {
        let patience = if rollout.doing.contains(name) { BACK_WITHIN_MS } else { DOUBT_MS };
        let why = format!("{name}: {unwell}");
        return if waited > patience { Step::Stop { why } } else { Step::Wait { why } };
    }
    let left = ours().filter(|(name, node)| !rollout.renewed(name, node));
    let Some((name, node)) = left.min_by_key(|(name, node)| (node.leads, *name)) else {
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

    /// `NODE:PID[:leads][:fit][:UNWELL]`; every process was 1 before.
    fn check(service: bool, doing: &str, nodes: &str, waited_ms: u64, expected: &str) {
        let nodes: BTreeMap<String, Node> = nodes
            .split_whitespace()
            .map(|text| {
                let mut parts = text.split(':');
                let name = parts.next().expect("a name").to_string();
                let pid = parts.next().and_then(|pid| pid.parse().ok());
                let mut node =
                    Node { pid, leads: false, fit: false, unwell: None, outdated: false };
                for part in parts {
                    match part {
                        "leads" => node.leads = true,
                        "fit" => node.fit = true,
                        "outdated" => node.outdated = true,
                        unwell => node.unwell = Some(unwell.to_string()),
                    }
                }
                (name, node)
            })
            .collect();
        let rollout = Rollout {
            service: service.then(|| "main".to_string()),
            by: "me".to_string(),
            at: String::new(),
            before: ["a", "b", "c"].map(|node| (node.to_string(), Some(1))).into(),
            epochs: BTreeMap::new(),
            doing: doing.chars().map(String::from).collect(),
            state: State::Running,
            journal: None,
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
    fn nothing_goes_on_over_a_doubt() {
        // Somebody else's trouble is not waited for as long as one's own.
        check(true, "b", "a:1:leads b:2 c:1:down", DOUBT_MS, "wait, c: down");
        check(true, "b", "a:1:leads b:2 c:1:down", DOUBT_MS + 1, "stop, c: down");
        check(true, "b", "a:1:leads b:2:down c:1", DOUBT_MS + 1, "wait, b: down");
        check(true, "b", "a:1:leads b:2:down c:1", BACK_WITHIN_MS + 1, "stop, b: down");
        check(true, "", "a:1:leads b:1", 0, "stop, c is no node any more");
        let rollout = Rollout {
            service: None,
            by: String::new(),
            at: String::new(),
            before: BTreeMap::new(),
            epochs: BTreeMap::new(),
            doing: BTreeSet::new(),
            state: State::Running,
            journal: None,
        };
        let doubt = Some("a failover".to_string());
        let step = next(&rollout, &BTreeMap::new(), doubt, None, None, Time(0));
        assert_eq!(step, Step::Stop { why: "a failover".to_string() });
    }

    #[test]
    fn a_step_without_effect_is_a_doubt_and_sooner_when_it_is_refused() {
        let rollout = Rollout {
            service: None,
            by: String::new(),
            at: String::new(),
            before: [("a".to_string(), Some(1)), ("b".to_string(), Some(1))].into(),
            epochs: BTreeMap::new(),
            doing: BTreeSet::new(),
            state: State::Running,
            journal: None,
        };
        let well = Node { pid: Some(1), leads: false, fit: true, unwell: None, outdated: false };
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
