//! Which term a service goes on with when the store was lost and comes back from an older copy, as a
//! pure decision.
//!
//! The copy's own term is not believed: sets and leaders may have changed since, and a campaign that
//! covers its sets could miss commits that later ones acknowledged. What is believed is what the
//! nodes themselves know, and therefore all of them have to tell it. Either the leader still runs
//! and has its term in memory: it acts on nothing else, so that is the term. Or the newest grant
//! that any disk holds says who led last; its node alone, or all others together, then hold every
//! acknowledged commit, and the term is made so that a campaign needs exactly these.

use crate::durable::{Data, Durable};
use crate::ids::{Epoch, Member};
use crate::term::{Branch, Redundancy, Set, Term};
use std::collections::{BTreeMap, BTreeSet};

/// What one node tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub durable: Durable,
    /// The newest term its agent has seen, if it ran since before the store was lost.
    pub term: Option<Term>,
    /// The highest epoch it has seen in the store.
    pub epoch: Epoch,
    /// Its PostgreSQL runs as a primary now.
    pub leads: bool,
}

/// What the copy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied<'a> {
    pub epoch: Epoch,
    pub term: Option<&'a Term>,
}

/// What to put into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    pub epoch: Epoch,
    /// `None`: the service has not begun.
    pub term: Option<Term>,
    /// Who led last, and why that is sure.
    pub why: String,
}

/// Judges one service by what its `nodes` told. An error says what can't be proven.
///
/// Of the nodes in `lost` an operator says that they are gone for good. What they held can't be
/// known: unless the leader runs, the term waits for them, and an operator has to force a leader.
pub fn judge(
    nodes: &[String],
    lost: &BTreeSet<String>,
    told: &BTreeMap<String, Told>,
    copied: Copied<'_>,
    redundancy: Redundancy,
) -> Result<Seed, String> {
    let silent = nodes.iter().filter(|node| !told.contains_key(*node) && !lost.contains(*node));
    let silent: Vec<&str> = silent.map(String::as_str).collect();
    if !silent.is_empty() {
        return Err(format!(
            "{} did not tell what is on disk there, and it may be newer than this copy",
            silent.join(", ")
        ));
    }
    let told: BTreeMap<&str, &Told> =
        told.iter().filter(|(n, _)| nodes.contains(n)).map(|(n, it)| (n.as_str(), it)).collect();
    let epochs = told.values().map(|it| it.durable.promise.max(it.epoch));
    let epoch = epochs.chain([copied.epoch]).max().unwrap_or(0);
    if copied.term.is_none() && told.values().all(|it| it.durable.is_new()) {
        return Ok(Seed { epoch, term: None, why: "it has not begun".to_owned() });
    }
    let empty: Vec<&str> =
        told.iter().filter(|(_, it)| it.durable.data == Data::Empty).map(|(n, _)| *n).collect();
    let granted = |it: &Told| it.durable.grant.map(|grant| grant.epoch);
    let last = told.iter().filter(|(_, it)| it.durable.data == Data::Ok);
    let last = last.filter_map(|(node, it)| Some((granted(it)?, *node, *it))).max_by_key(|it| it.0);
    let Some((led, node, leader)) = last else {
        return Err("no node's disk holds the right to lead that it was given last".to_owned());
    };
    let seen = told.values().filter_map(|it| it.term.as_ref()).max_by_key(|term| term.epoch);
    if seen.is_some_and(|term| term.epoch > led) {
        return Err(format!("a newer epoch than {led}, which {node} led, was published"));
    }
    let me = leader.durable.member(node);
    if leader.leads
        && let Some(term) = leader.term.as_ref().filter(|it| it.epoch == led && it.leader == me)
    {
        let why = format!("{node} leads epoch {led} and goes on");
        return Ok(Seed { epoch, term: Some(term.clone()), why });
    }
    if !empty.is_empty() {
        return Err(format!("{} has no data, and what it held can't be known", empty.join(", ")));
    }
    let mut term = last_led(led, node, leader, &told, copied, redundancy)?;
    let mut why = format!("{node} led last, epoch {led}");
    for gone in nodes.iter().filter(|node| !told.contains_key(node.as_str())).rev() {
        // Nobody has this incarnation, so nobody covers what it may have acknowledged.
        let alone = Member::new(gone, u32::MAX);
        term.inforce.insert(0, Set { leader: alone, members: BTreeSet::new(), k: 0 });
        why = format!("{why}, unless {gone} did: a leader has to be forced");
    }
    Ok(Seed { epoch, why, term: Some(term) })
}

/// The term of the node that led last, not open: whoever leads next needs this node, or all others.
fn last_led(
    led: Epoch,
    node: &str,
    leader: &Told,
    told: &BTreeMap<&str, &Told>,
    copied: Copied<'_>,
    redundancy: Redundancy,
) -> Result<Term, String> {
    let me = leader.durable.member(node);
    let known = told.values().flat_map(|it| {
        it.durable.line.iter().chain(it.term.iter().flat_map(|term| &term.branches))
    });
    let known = known.chain(copied.term.iter().flat_map(|term| &term.branches));
    let mut branches: Vec<Branch> = known.cloned().collect::<BTreeSet<_>>().into_iter().collect();
    branches.sort_by_key(|branch| (branch.epoch, branch.tli));
    let tip = leader.durable.grant.map(|grant| grant.tli);
    let Some(tip) = leader.durable.line.iter().find(|it| Some(it.tli) == tip).cloned() else {
        return Err(format!("the disk of {node} does not say on which branch it led"));
    };
    // The leader's own branch stands last.
    branches.retain(|branch| *branch != tip);
    branches.push(tip);
    let others = told.iter().filter(|(name, it)| **name != node && it.durable.data == Data::Ok);
    let members: BTreeSet<Member> = others.map(|(name, it)| it.durable.member(name)).collect();
    let target = Set { leader: me.clone(), k: redundancy.k_for(members.len()), members };
    // It may have gone on alone; then nobody else can stand in for it.
    let k = redundancy.wanted.min(redundancy.floor).min(1);
    let inforce = vec![Set { k, ..target.clone() }];
    let sysid = leader.durable.sysid.ok_or(format!("{node} does not know its own database"))?;
    Ok(Term { epoch: led, leader: me, open: false, inforce, target, branches, sysid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::Grant;
    use crate::ids::Lsn;
    use crate::term::{Report, Reports, covered};

    const NODES: [&str; 3] = ["a", "b", "c"];
    const REQUIRED: Redundancy = Redundancy { wanted: 1, floor: 1 };
    const PREFERRED: Redundancy = Redundancy { wanted: 1, floor: 0 };

    fn line(branches: &[(u32, Epoch)]) -> Vec<Branch> {
        let branch = |(tli, epoch): &(u32, Epoch)| Branch {
            tli: *tli,
            epoch: *epoch,
            parent: tli - 1,
            fork: Lsn(100 * u64::from(*tli - 1)),
        };
        branches.iter().map(branch).collect()
    }

    /// Words: node and incarnation, then promise, grant (0: none) and newest timeline;
    /// `*` runs as a primary, `-` has no data.
    fn told(text: &str) -> BTreeMap<String, Told> {
        let one = |word: &str| {
            let (name, rest) = word.split_once(':').expect("a colon");
            let numbers: Vec<u64> = rest
                .trim_end_matches(['*', '-'])
                .split('/')
                .map(|it| it.parse().expect("a number"))
                .collect();
            let [promise, grant, tli] = numbers[..] else { panic!("three numbers: {word}") };
            let tli = u32::try_from(tli).expect("small");
            let durable = Durable {
                promise,
                incarnation: name[1..].parse().expect("an incarnation"),
                data: if word.ends_with('-') { Data::Empty } else { Data::Ok },
                sysid: Some(9),
                line: line(&[(1, 0), (2, 1), (3, 5)])[..tli as usize].to_vec(),
                grant: (grant > 0).then_some(Grant { epoch: grant, tli }),
                ..Durable::default()
            };
            let leads = word.ends_with('*');
            (name[..1].to_owned(), Told { durable, term: None, epoch: 0, leads })
        };
        text.split_whitespace().map(one).collect()
    }

    fn old() -> Term {
        let set = Set { leader: Member::new("a", 1), members: [Member::new("b", 1)].into(), k: 1 };
        Term {
            epoch: 1,
            leader: Member::new("a", 1),
            open: true,
            inforce: vec![set.clone()],
            target: set,
            branches: line(&[(1, 0), (2, 1)]),
            sysid: 9,
        }
    }

    fn judged(text: &str, redundancy: Redundancy) -> Result<Seed, String> {
        let term = old();
        let copied = Copied { epoch: 1, term: Some(&term) };
        judge(&NODES.map(str::to_owned), &BTreeSet::new(), &told(text), copied, redundancy)
    }

    #[test]
    fn who_led_last_is_read_from_the_disks_and_not_from_the_copy() {
        for (text, expected) in [
            ("a1:1/1/2 b1:1/0/2 c1:1/0/2", Ok("a led last, epoch 1")),
            // The copy says a; since then b led, and a was cloned anew.
            ("a2:5/0/3 b1:6/5/3 c1:5/0/3", Ok("b led last, epoch 5")),
            ("a1:1/1/2 b1:5/5/3 c1:5/0/3", Ok("b led last, epoch 5")),
            ("a1:1/1/2 b1:1/0/2", Err("c did not tell")),
            ("a1:1/1/2 b1:1/0/2 c0:0/0/0-", Err("c has no data")),
            ("a0:0/0/0- b0:0/0/0- c0:0/0/0-", Err("no node's disk")),
            ("a2:5/0/3 b1:5/0/3 c1:5/0/3", Err("no node's disk")),
        ] {
            let found = judged(text, REQUIRED).map(|seed| seed.why);
            match (&found, expected) {
                (Ok(why), Ok(expected)) => assert_eq!(why, expected, "{text}"),
                (Err(why), Err(expected)) => assert!(why.starts_with(expected), "{text}: {why}"),
                _ => panic!("{text}: {found:?}"),
            }
        }
    }

    /// b led epoch 5 with c, which the copy knows nothing of: a and c are not enough without b, nor
    /// is what the copy's set would take for a cover.
    #[test]
    fn a_campaign_needs_who_led_last_or_all_others() {
        let seed = |redundancy| judged("a2:5/0/3 b1:6/5/3 c1:5/0/3", redundancy).expect("a seed");
        let reports = |names: &[(&str, u32)]| -> Reports {
            let report = |(name, incarnation): &(&str, u32)| Report {
                member: Member::new(*name, *incarnation),
                epoch: 7,
                sysid: 9,
                last: line(&[(3, 5)])[0].id(),
                end: Lsn(300),
            };
            names.iter().map(|it| (it.0.to_owned(), report(it))).collect()
        };
        let covers = |redundancy, names: &[(&str, u32)]| {
            let term = seed(redundancy).term.expect("a term");
            term.inforce.iter().all(|set| covered(set, &reports(names)))
        };
        assert_eq!(seed(REQUIRED).epoch, 6);
        assert!(covers(REQUIRED, &[("b", 1)]));
        assert!(covers(REQUIRED, &[("a", 2), ("c", 1)]));
        assert!(!covers(REQUIRED, &[("a", 2)]) && !covers(REQUIRED, &[("c", 1)]));
        assert!(!covers(REQUIRED, &[("a", 1), ("c", 1)]), "an older incarnation is no witness");
        assert!(!covers(PREFERRED, &[("a", 2), ("c", 1)]), "b may have gone on alone");
        let term = seed(REQUIRED).term.expect("a term");
        assert!(!term.open && term.branch().is_some_and(|branch| branch.tli == 3));
        assert_eq!(term.line(), line(&[(1, 0), (2, 1), (3, 5)]));
    }

    /// c is gone for good: whatever the others hold, it may have held more.
    #[test]
    fn what_a_lost_node_held_nobody_covers() {
        let term = old();
        let copied = Copied { epoch: 1, term: Some(&term) };
        let (nodes, lost) = (NODES.map(str::to_owned), BTreeSet::from(["c".to_owned()]));
        let told = told("a1:1/1/2 b1:1/0/2");
        let seed = judge(&nodes, &lost, &told, copied, REQUIRED).expect("a seed");
        assert!(seed.why.contains("unless c did"), "{}", seed.why);
        let term = seed.term.expect("a term");
        let report = |name: &str| Report {
            member: Member::new(name, 1),
            epoch: 2,
            sysid: 9,
            last: line(&[(2, 1)])[0].id(),
            end: Lsn(200),
        };
        let all = ["a", "b", "c"].map(|name| (name.to_owned(), report(name))).into();
        assert!(!term.inforce.iter().all(|set| covered(set, &all)));
        assert!(covered(term.current(), &all));
    }

    /// Who leads with its term in memory goes on with that, also beside a node without data.
    #[test]
    fn a_leader_that_runs_goes_on() {
        let mut all = told("a2:6/0/3 b1:5/5/3* c0:0/0/0-");
        let now = Term { epoch: 5, leader: Member::new("b", 1), ..old() };
        let judge = |all: &BTreeMap<String, Told>| {
            let term = old();
            let copied = Copied { epoch: 1, term: Some(&term) };
            judge(&NODES.map(str::to_owned), &BTreeSet::new(), all, copied, REQUIRED)
        };
        assert!(judge(&all).is_err(), "its agent has forgotten the term");
        all.get_mut("b").expect("b").term = Some(now.clone());
        let seed = judge(&all).expect("a seed");
        assert_eq!((seed.epoch, seed.term.as_ref()), (6, Some(&now)));
        // Somebody has seen a newer one.
        all.get_mut("a").expect("a").term = Some(Term { epoch: 6, ..now });
        assert!(judge(&all).is_err());
    }
}
