//! What the coordinator does about nodes that were drained or are to leave.
//!
//! It is decided from what is seen, again and again, so it goes on after a coordinator was lost in
//! the middle. A node that leaves is forgotten only when no record names it any more: until then
//! its history may be needed to elect a leader.

use crate::spec::Duty;
use std::collections::{BTreeMap, BTreeSet};

/// What is known of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The nodes that have an instance.
    pub nodes: BTreeSet<String>,
    /// Who serves, if anybody is known to.
    pub leader: Option<String>,
    /// Standbys that could take over now, without loss and at once.
    pub takers: BTreeSet<String>,
    /// Nodes that a set in force names, or the set it is going to. `None`: no record was read.
    pub named: Option<BTreeSet<String>>,
}

/// What is to be done, or waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another node is to lead the service.
    HandOver {
        service: String,
        node: String,
    },
    /// Nothing needs the node any more: the spec goes on without it.
    Forget {
        node: String,
    },
    Wait {
        service: String,
        node: String,
        why: String,
        unblocks: String,
    },
}

/// The next steps; empty: every node is as it is to be.
pub fn next(duties: &BTreeMap<String, Duty>, services: &BTreeMap<String, Service>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (node, duty) in duties.iter().filter(|(_, duty)| !duty.is_active()) {
        let on = services.iter().filter(|(_, service)| service.nodes.contains(node));
        let mut open: Vec<Step> =
            on.filter_map(|(name, service)| of_service(node, *duty, name, service)).collect();
        if open.is_empty() && *duty == Duty::Leaving {
            open.push(Step::Forget { node: node.clone() });
        }
        steps.extend(open);
    }
    steps
}

fn of_service(node: &str, duty: Duty, name: &str, service: &Service) -> Option<Step> {
    let wait = |why: String, unblocks: &str| {
        let (service, node) = (name.to_string(), node.to_string());
        Some(Step::Wait { service, node, why, unblocks: unblocks.to_string() })
    };
    let Some(named) = &service.named else {
        let why = format!("{node} is to leave, and who holds the commits of {name} is not known");
        let leaves = duty == Duty::Leaving;
        return leaves.then(|| wait(why, "the service's term in the store is read")).flatten();
    };
    let needed = duty == Duty::Leaving && named.contains(node);
    match service.leader.as_deref() {
        Some(leader) if leader == node => {
            if service.takers.iter().any(|taker| taker != node) {
                return Some(Step::HandOver { service: name.to_string(), node: node.to_string() });
            }
            let why = format!("{node} leads {name}, and no other node could take over now");
            wait(why, "a standby in the synchronous set that may lead")
        }
        None if needed => wait(format!("{node} is to leave, and nobody leads {name}"), "a leader"),
        Some(_) if needed => {
            let why = format!("{node} is to leave, and commits of {name} may still rest on it");
            wait(why, "the leader's next change of the synchronous set")
        }
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `SERVICE:NODES:LEADER:TAKERS:NAMED`, nodes as letters, `-` for none.
    fn check(duties: &str, services: &str, expected: &str) {
        let duties = duties.split_whitespace().map(|text| {
            let (node, duty) = text.split_once(':').expect("NODE:DUTY");
            let duty = match duty {
                "drained" => Duty::Drained,
                "leaving" => Duty::Leaving,
                _ => Duty::Active,
            };
            (node.to_string(), duty)
        });
        let names = |text: &str| -> BTreeSet<String> {
            text.chars().filter(|c| *c != '-').map(String::from).collect()
        };
        let services = services.split_whitespace().map(|text| {
            let parts: Vec<&str> = text.split(':').collect();
            let service = Service {
                nodes: names(parts[1]),
                leader: names(parts[2]).into_iter().next(),
                takers: names(parts[3]),
                named: (parts[4] != "?").then(|| names(parts[4])),
            };
            (parts[0].to_string(), service)
        });
        let steps = next(&duties.collect(), &services.collect());
        let shown: Vec<String> = steps
            .iter()
            .map(|step| match step {
                Step::HandOver { service, node } => format!("hand {service} over from {node}"),
                Step::Forget { node } => format!("forget {node}"),
                Step::Wait { service, node, .. } => format!("wait for {service} of {node}"),
            })
            .collect();
        assert_eq!(shown.join(", "), expected, "{steps:?}");
    }

    #[test]
    fn drained_and_leaving() {
        check("a:active b:active", "main:abc:a:bc:abc", "");
        // A drained node leads nothing; it may acknowledge.
        check("a:drained b:active", "main:abc:a:bc:abc", "hand main over from a");
        check("a:drained b:active", "main:abc:a:-:a", "wait for main of a");
        check("a:drained b:active", "main:abc:b:a:abc", "");
        check("a:drained", "main:abc:-:-:abc", "");
        // One that leaves is in no set before it is forgotten.
        check("a:leaving", "main:abc:a:bc:abc", "hand main over from a");
        check("a:leaving", "main:abc:b:c:abc", "wait for main of a");
        check("a:leaving", "main:abc:-:-:abc", "wait for main of a");
        check("a:leaving", "main:abc:b:c:bc", "forget a");
        check("a:leaving", "main:abc:b:c:?", "wait for main of a");
        check("a:leaving", "main:bc:b:c:?", "forget a");
        // Each service counts, and those without the node don't.
        check("a:leaving", "main:abc:b:c:bc side:ab:b:-:ab", "wait for side of a");
        check("a:leaving", "main:abc:b:c:bc side:bc:b:c:bc", "forget a");
        check("a:leaving c:drained", "main:abc:c:b:bc", "forget a, hand main over from c");
    }
}
