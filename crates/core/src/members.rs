//! Which change the store's own members need next, as a pure decision.
//!
//! One step at a time, as Raft wants it (Ongaro, "Consensus: Bridging Theory and Practice", 4): a
//! newcomer copies as a learner before it votes, the new comes before the old goes, and an even
//! number of votes, which survives no more losses than one vote less, is never rested at.

use std::collections::BTreeSet;

/// A member as the store lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    /// The node whose peer address it has; `None`: nobody's in the spec.
    pub node: Option<String>,
    /// It has run once. One that was only added may still begin.
    pub started: bool,
    pub learner: bool,
}

/// What is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Nodes that are to run a member.
    pub wanted: BTreeSet<String>,
    /// Nodes whose machine has joined the cluster.
    pub joined: BTreeSet<String>,
    pub members: Vec<Member>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Add the node's member, as a learner.
    Add { node: String },
    /// Let the learner vote.
    Promote { id: u64, node: String },
    /// Take the member out for good.
    Remove { id: u64 },
}

/// The next change; `None`: nothing is to be done now.
pub fn next(view: &View) -> Option<Step> {
    let wanted = |member: &&Member| member.node.as_ref().is_some_and(|n| view.wanted.contains(n));
    let is_member = |node: &&String| view.members.iter().any(|m| m.node.as_ref() == Some(node));
    let surplus = view.members.iter().find(|member| !wanted(member));
    let mut waiting =
        view.wanted.iter().filter(|node| view.joined.contains(*node) && !is_member(node));

    if let Some(learner) = view.members.iter().find(|member| member.learner) {
        let Some(node) = learner.node.clone().filter(|_| wanted(&learner)) else {
            return Some(Step::Remove { id: learner.id });
        };
        let votes = view.members.iter().filter(|member| !member.learner).count() + 1;
        let goes_on = surplus.is_some() || waiting.next().is_some();
        let promote = learner.started && (votes % 2 == 1 || goes_on);
        return promote.then_some(Step::Promote { id: learner.id, node });
    }
    if let Some(node) = waiting.next() {
        return Some(Step::Add { node: node.clone() });
    }
    // The old goes only when every place is taken by the new.
    let complete = view.wanted.iter().all(|node| is_member(&node));
    surplus.filter(|_| complete).map(|member| Step::Remove { id: member.id })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> BTreeSet<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Members as words: `a` votes, `b?` learns, `c!` was added and has not run, `-` is nobody's.
    fn view(wanted: &str, joined: &str, members: &str) -> View {
        let member = |(id, word): (u64, &str)| Member {
            id,
            node: Some(word.trim_end_matches(['?', '!']).to_owned()).filter(|name| name != "-"),
            started: !word.ends_with('!'),
            learner: word.ends_with(['?', '!']),
        };
        let members = (1..).zip(members.split_whitespace()).map(member).collect();
        View { wanted: names(wanted), joined: names(joined), members }
    }

    #[test]
    fn one_step_at_a_time() {
        let add = |node: &str| Some(Step::Add { node: node.to_owned() });
        let promote = |id, node: &str| Some(Step::Promote { id, node: node.to_owned() });
        let remove = |id| Some(Step::Remove { id });
        for (wanted, joined, members, expected) in [
            ("a", "a", "a", None),
            ("a b c", "a", "a", None),
            ("a b c", "a b", "a", add("b")),
            ("a b c", "a b", "a b!", None),
            // Two votes survive no loss, so b waits for c.
            ("a b c", "a b", "a b?", None),
            ("a b c", "a b c", "a b?", promote(2, "b")),
            ("a b c", "a b c", "a b", add("c")),
            ("a b c", "a b c", "a b c?", promote(3, "c")),
            ("a b c", "a b c", "a b c", None),
            // c is replaced by d: the new first, then the old.
            ("a b d", "a b c", "a b c", None),
            ("a b d", "a b d", "a b c", add("d")),
            ("a b d", "a b d", "a b c d!", None),
            ("a b d", "a b d", "a b c d?", promote(4, "d")),
            ("a b d", "a b d", "a b c d", remove(3)),
            ("a b d", "a b d", "a b - d", remove(3)),
            // A learner that is wanted no more makes way.
            ("a b c", "a b c", "a b c d?", remove(4)),
        ] {
            let found = next(&view(wanted, joined, members));
            assert_eq!(found, expected, "{wanted} / {joined} / {members}");
        }
    }

    /// Whatever is wanted of five nodes, each step is a legal one, and the end is what was wanted.
    #[test]
    fn every_change_ends_where_it_should() {
        let nodes = ["a", "b", "c", "d", "e"];
        let subset = |bits: u32| -> BTreeSet<String> {
            let chosen = nodes.iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0);
            chosen.map(|(_, name)| (*name).to_owned()).collect()
        };
        let odd = |bits: &u32| bits.count_ones() % 2 == 1;
        for from in (1..32).filter(odd) {
            for to in (1..32).filter(odd) {
                let mut view = View { wanted: subset(to), joined: subset(31), members: Vec::new() };
                view.members = (1..)
                    .zip(subset(from))
                    .map(|(id, node)| Member {
                        id,
                        node: Some(node),
                        started: true,
                        learner: false,
                    })
                    .collect();
                let mut steps = 0;
                while let Some(step) = next(&view) {
                    steps += 1;
                    assert!(steps < 30, "{from} to {to} goes on for ever: {step:?}");
                    match step {
                        Step::Add { node } => view.members.push(Member {
                            id: 100 + steps,
                            node: Some(node),
                            started: true,
                            learner: true,
                        }),
                        Step::Promote { id, .. } => {
                            let found = view.members.iter_mut().find(|m| m.id == id);
                            found.expect("a member").learner = false;
                        }
                        Step::Remove { id } => view.members.retain(|m| m.id != id),
                    }
                    assert!(view.members.iter().filter(|m| m.learner).count() <= 1);
                    assert!(view.members.iter().any(|m| !m.learner));
                }
                let voting: BTreeSet<String> = view
                    .members
                    .iter()
                    .filter(|m| !m.learner)
                    .filter_map(|m| m.node.clone())
                    .collect();
                assert_eq!(voting, view.wanted, "from {from} to {to}");
            }
        }
    }
}
