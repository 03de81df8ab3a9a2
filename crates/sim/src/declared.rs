//! What the operator declared, and declares anew.

use crate::random::Random;
use everhold_core::policy::Policy;
use everhold_core::spec::Duty;
use everhold_core::spread::Domains;
use everhold_core::term::{Preference, Redundancy};
use std::collections::BTreeMap;

pub fn policy(rng: &mut Random) -> Policy {
    let count = [3, 3, 3, 3, 3, 3, 4, 4, 5][rng.index(9)];
    let nodes: Vec<String> =
        ["a", "b", "c", "d", "e"][..count].iter().map(|s| s.to_string()).collect();
    let mut preferences = BTreeMap::new();
    for node in &nodes {
        let failover = !rng.chance(60);
        let priority = rng.below(3) as i32;
        preferences.insert(node.clone(), Preference { priority, failover });
    }
    if let Some(first) = preferences.values_mut().next() {
        first.failover = true;
    }
    if let Some(second) = preferences.values_mut().nth(1) {
        second.failover = true;
    }
    // Drawn from nothing, as the zones are.
    let slow_after_ms = (preferences.len() + preferences.values().filter(|it| it.failover).count())
        .is_multiple_of(2)
        .then_some(7_000);
    let domains = domains(&nodes, &preferences);
    Policy {
        redundancy: redundancy(rng, count),
        nodes,
        preferences,
        domains,
        duties: BTreeMap::new(),
        slow_after_ms,
    }
}

pub fn redundancy(rng: &mut Random, nodes: usize) -> Redundancy {
    let wanted = if rng.chance(if nodes > 3 { 500 } else { 250 }) { 2 } else { 1 };
    Redundancy { wanted, floor: rng.below(2) as u32 }
}

/// Some larger clusters are spread over two zones. No random number is drawn for it, so that seeds
/// mean what they meant.
fn domains(nodes: &[String], preferences: &BTreeMap<String, Preference>) -> Domains {
    let sum: i32 = preferences.values().map(|preference| preference.priority).sum();
    if nodes.len() < 4 || sum % 2 == 0 {
        return Domains::default();
    }
    let zone = |at: usize| if at % 3 == 2 { "west" } else { "east" }.to_string();
    Domains((0..).zip(nodes).map(|(at, node)| (node.clone(), zone(at))).collect())
}

/// Of four nodes and more one may be on its way out.
pub fn duties(rng: &mut Random, nodes: &[String]) -> BTreeMap<String, Duty> {
    let leaves = rng.chance(400) && nodes.len() > 3;
    leaves.then(|| (nodes[rng.index(nodes.len())].clone(), Duty::Leaving)).into_iter().collect()
}
