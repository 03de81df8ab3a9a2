//! What tables of decisions begin with: node `a` leads epoch 7, whose branch left the first one at 100.

use crate::agent::{Agent, Identity};
use crate::durable::{Data, Durable};
use crate::ids::{Lsn, Member, Time, Tli};
use crate::policy::Policy;
use crate::spread::Domains;
use crate::term::{Branch, Redundancy, Set, Term};
use std::collections::BTreeMap;

pub const NOW: Time = Time(1_000_000);

pub fn branches() -> Vec<Branch> {
    let branch = |tli: Tli, epoch, parent, fork| Branch { tli, epoch, parent, fork: Lsn(fork) };
    vec![branch(1, 0, 0, 0), branch(2, 7, 1, 100)]
}

/// `members` of the set in force, by letter.
pub fn term(members: &str, k: u32) -> Term {
    let members = members.chars().map(|node| Member::new(node, 1)).collect();
    let set = Set { leader: Member::new("a", 1), members, k };
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

pub fn policy(nodes: &[&str], wanted: u32) -> Policy {
    Policy {
        nodes: nodes.iter().map(ToString::to_string).collect(),
        redundancy: Redundancy { wanted, floor: 1 },
        preferences: BTreeMap::new(),
        domains: Domains::default(),
        duties: BTreeMap::new(),
        slow_after_ms: None,
    }
}

/// Whole, on the newest branch.
pub fn durable(promise: u64) -> Durable {
    Durable {
        promise,
        incarnation: 1,
        data: Data::Ok,
        sysid: Some(1),
        line: branches(),
        ..Durable::default()
    }
}

/// Of that node, before it has seen anything.
pub fn agent(node: &str, policy: &Policy, durable: &Durable) -> Agent {
    let identity = Identity {
        cluster: "shop".to_string(),
        service: "main".to_string(),
        node: node.to_string(),
        host: "127.0.0.1".to_string(),
        port: 5432,
    };
    Agent::new(identity, policy.clone(), durable.clone(), NOW)
}
