//! What a forced failover may lose, said before it is done. Pure.

use crate::cluster::Reports;
use everhold_core::durable::Data;
use everhold_core::status::Status;
use everhold_core::term::{BranchId, Report, Reports as Seals, Set, Term, covered};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is known to stand between an operator and the loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Names the epoch and the sets that nobody who is there covers. Whoever repeats it has seen
    /// exactly this.
    pub token: String,
    /// For people.
    pub text: String,
    pub uncovered: Vec<String>,
}

/// The nodes of a service that are there now and hold whole data: those who can take part.
pub fn heard(
    reports: &Reports,
    service: &str,
    hears: impl Fn(&str) -> bool,
) -> BTreeMap<String, Arc<Status>> {
    let told = reports.iter().filter(|(node, _)| hears(node)).filter_map(|(node, (report, _))| {
        let status = report.services.get(service)?;
        (status.data == Data::Ok).then(|| (node.clone(), status.clone()))
    });
    told.collect()
}

/// The sets in force that could have acknowledged, or still could, what no node of `heard` has.
pub fn loss(term: &Term, heard: &BTreeMap<String, Arc<Status>>) -> Loss {
    // As if each of them were sealed: the most that a campaign can come to.
    let seals: Seals = heard
        .iter()
        .map(|(node, status)| {
            let seal = Report {
                member: status.member.clone(),
                epoch: term.epoch + 1,
                sysid: term.sysid,
                last: BranchId { epoch: term.epoch, tli: status.checkpoint },
                end: status.lsn,
            };
            (node.clone(), seal)
        })
        .collect();
    let uncovered: Vec<String> =
        term.inforce.iter().filter(|set| !covered(set, &seals)).map(Set::to_string).collect();
    let there: Vec<&str> = heard.keys().map(String::as_str).collect();
    let there = if there.is_empty() { "nobody".to_string() } else { there.join(", ") };
    let (epoch, sets) = (term.epoch, uncovered.join("; "));
    let text = match uncovered.is_empty() {
        true => format!(
            "{there} together hold everything that epoch {epoch} acknowledged: nothing would be \
             lost, and a failover without force will do"
        ),
        false => format!(
            "commits that epoch {epoch} acknowledged may be lost: {there} can't cover {sets} \
             (LEADER+ACKNOWLEDGEMENTS of STANDBYS)"
        ),
    };
    let named = if uncovered.is_empty() { "none".to_string() } else { uncovered.join(";") };
    Loss { token: format!("{epoch}:{}", named.replace(' ', "")), text, uncovered }
}

/// Whose agent is to campaign: the node wanted, or else the one that has most.
pub fn campaigner(heard: &BTreeMap<String, Arc<Status>>, to: Option<&str>) -> Option<String> {
    if let Some(to) = to {
        return heard.contains_key(to).then(|| to.to_string());
    }
    let most = heard
        .iter()
        .max_by_key(|(node, status)| (status.term, status.lsn, std::cmp::Reverse((*node).clone())));
    most.map(|(node, _)| node.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::ids::{Lsn, Member};
    use everhold_core::status::State;

    fn set(leader: &str, members: &[&str], k: u32) -> Set {
        let members = members.iter().map(|name| Member::new(*name, 1)).collect();
        Set { leader: Member::new(leader, 1), members, k }
    }

    fn term(inforce: Vec<Set>) -> Term {
        let target = inforce.last().expect("a set").clone();
        let leader = target.leader.clone();
        Term { epoch: 7, leader, open: true, inforce, target, branches: Vec::new(), sysid: 1 }
    }

    fn there(nodes: &[(&str, u64)]) -> BTreeMap<String, Arc<Status>> {
        let status = |name: &str, lsn| Status {
            member: Member::new(name, 1),
            host: "127.0.0.1".into(),
            port: 1,
            pid: None,
            state: State::Streaming,
            data: Data::Ok,
            promise: 7,
            sysid: Some(1),
            term: 7,
            report: None,
            misses: None,
            fell: None,
            primary: None,
            serving: None,
            checkpoint: 1,
            lsn: Lsn(lsn),
            tli: 1,
            seen_tli: 0,
            streaming: true,
            lag_ms: None,
            call: None,
            overrides: Vec::new(),
            full: false,
            bad_pages: 0,
            log_from: None,
        };
        nodes.iter().map(|(name, lsn)| (name.to_string(), Arc::new(status(name, *lsn)))).collect()
    }

    #[test]
    fn tokens_name_epoch_and_the_sets_nobody_covers() {
        let check = |inforce: Vec<Set>, nodes: &[(&str, u64)], token: &str| {
            assert_eq!(loss(&term(inforce), &there(nodes)).token, token);
        };
        let wide = || set("a", &["b", "c"], 1);
        check(vec![wide()], &[("b", 5), ("c", 5)], "7:none");
        check(vec![wide()], &[("c", 5)], "7:a.1+1of(b.1,c.1)");
        check(vec![wide()], &[("a", 5)], "7:none");
        check(vec![wide()], &[], "7:a.1+1of(b.1,c.1)");
        check(vec![wide(), set("a", &["b"], 1)], &[("c", 5)], "7:a.1+1of(b.1,c.1);a.1+1of(b.1)");
        check(vec![set("a", &[], 0)], &[("b", 5), ("c", 5)], "7:a.1+0of()");
    }

    #[test]
    fn the_one_with_most_campaigns_unless_another_is_wanted() {
        let nodes = there(&[("a", 5), ("b", 9), ("c", 9)]);
        assert_eq!(campaigner(&nodes, None).as_deref(), Some("b"));
        assert_eq!(campaigner(&nodes, Some("a")).as_deref(), Some("a"));
        assert_eq!(campaigner(&nodes, Some("x")), None);
    }
}
