//! Over which failure domains the synchronous set is spread.
//!
//! A commit is to be on disk in two zones (or regions) before it is acknowledged. With `k`
//! acknowledgements from a set that holds at most `k - 1` members beside the leader in its own
//! domain, at least one comes from another. When nobody of another domain is there, those that are
//! there acknowledge: the loss of a domain must not stop what the loss of two nodes wouldn't, and
//! `status` says that it is so.

use crate::ids::Member;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The failure domain of each node. Empty: nothing is spread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domains(pub BTreeMap<String, String>);

impl Domains {
    /// The node is in another domain than the leader.
    pub fn apart(&self, leader: &str, node: &str) -> bool {
        self.0.get(leader) != self.0.get(node)
    }

    /// Of `members` those that should acknowledge for `leader`, when `k` of them do. Those of
    /// `before` are kept where there is a choice.
    pub fn spread(
        &self,
        leader: &str,
        members: BTreeSet<Member>,
        before: &BTreeSet<Member>,
        k: u32,
    ) -> BTreeSet<Member> {
        let (apart, beside): (BTreeSet<Member>, BTreeSet<Member>) =
            members.into_iter().partition(|member| self.apart(leader, &member.node));
        if self.0.is_empty() || apart.is_empty() {
            return apart.into_iter().chain(beside).collect();
        }
        let (old, new): (Vec<Member>, Vec<Member>) =
            beside.into_iter().partition(|member| before.contains(member));
        let spare = k.saturating_sub(1) as usize;
        apart.into_iter().chain(old.into_iter().chain(new).take(spare)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes as NAME:ZONE, the leader first; members and those before by name.
    fn check(nodes: &str, members: &str, before: &str, k: u32, expected: &str) {
        let pairs: Vec<(&str, &str)> =
            nodes.split_whitespace().filter_map(|node| node.split_once(':')).collect();
        let domains = Domains(
            pairs
                .iter()
                .filter(|(_, z)| *z != "-")
                .map(|(n, z)| (n.to_string(), z.to_string()))
                .collect(),
        );
        let set = |names: &str| names.chars().map(|c| Member::new(c.to_string(), 1)).collect();
        let chosen = domains.spread(pairs[0].0, set(members), &set(before), k);
        let names: String = chosen.iter().map(|member| member.node.as_str()).collect();
        assert_eq!(names, expected, "{nodes}, {members} of which {before}, k {k}");
    }

    #[test]
    fn an_acknowledged_commit_is_in_two_domains() {
        // Nothing is spread.
        check("a:- b:- c:-", "bc", "", 1, "bc");
        // Three zones: all are apart.
        check("a:1 b:2 c:3", "bc", "", 1, "bc");
        // A standby beside the leader doesn't acknowledge for it, unless another must as well.
        check("a:1 b:1 c:2", "bc", "bc", 1, "c");
        check("a:1 b:1 c:2", "bc", "", 2, "bc");
        check("a:1 b:1 c:2 d:2", "bcd", "", 1, "cd");
        check("a:1 b:1 c:1 d:2", "bcd", "", 2, "bd");
        // Whoever acknowledges already goes on.
        check("a:1 b:1 c:1 d:2", "bcd", "cd", 2, "cd");
        // Nobody is apart: those that are there.
        check("a:1 b:1 c:2", "b", "bc", 1, "b");
        check("a:1 b:1 c:2", "", "c", 1, "");
    }

    #[test]
    fn whatever_is_there_any_k_of_the_set_are_not_all_beside_the_leader() {
        let zones = ["x", "y", "z"];
        for zone_of in 0..3_u32.pow(4) {
            let zone = |i: u32| zones[(zone_of / 3_u32.pow(i) % 3) as usize].to_string();
            let nodes = ["b", "c", "d", "e"];
            let mut domains =
                Domains((0..4).zip(nodes).map(|(i, node)| (node.to_string(), zone(i))).collect());
            domains.0.insert("a".to_string(), "x".to_string());
            for there in 0..16_u32 {
                let members: BTreeSet<Member> = (0..4)
                    .filter(|i| there >> i & 1 == 1)
                    .map(|i| Member::new(nodes[i as usize], 1))
                    .collect();
                let some_apart = members.iter().any(|m| domains.apart("a", &m.node));
                for k in 1..=members.len() as u32 {
                    let set = domains.spread("a", members.clone(), &BTreeSet::new(), k);
                    assert!(set.is_subset(&members));
                    assert!(set.len() as u32 >= k, "still {k} of {members:?} can acknowledge");
                    let beside = set.iter().filter(|m| !domains.apart("a", &m.node)).count() as u32;
                    assert!(!some_apart || beside < k, "{domains:?} {set:?} {k}");
                }
            }
        }
    }
}
