//! Nodes that were drained or are to leave: what is seen of their services, and the coordinator's
//! steps, which `core/src/duty.rs` decides.

use crate::agent::{self, Ask};
use crate::cluster::{Cluster, Reports, StoreWord};
use crate::link::Report;
use everhold_core::duty::{self, Service, Step};
use everhold_core::spec::{Duty, HttpSpec, Spec};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// A handover that was refused is asked for again after this.
const AGAIN: Duration = Duration::from_secs(5);
/// The word of an agent that is older says nothing about now.
const FRESH_MS: u64 = 1_000;

/// What a node's agent says about now, if it is heard.
pub fn fresh<'a>(reports: &'a Reports, node: &str, now_ms: u64) -> Option<&'a Report> {
    let (report, at) = reports.get(node)?;
    (now_ms.saturating_sub(*at) <= FRESH_MS).then_some(report)
}

/// The nodes that could take a service over now: of its set, streaming, and allowed to lead.
pub fn takers(
    service: &str,
    spec: &Spec,
    reports: &Reports,
    word: &StoreWord,
    now_ms: u64,
) -> BTreeSet<String> {
    let (Some(declared), Some(term)) = (spec.postgres(service), word.terms.get(service)) else {
        return BTreeSet::new();
    };
    let policy = agent::policy(spec, declared);
    let may = |node: &String| {
        let status = fresh(reports, node, now_ms).and_then(|report| report.services.get(service));
        let set = &term.target.members;
        status.is_some_and(|it| it.streaming && it.bad_pages == 0 && set.contains(&it.member))
            && policy.preferences.get(node).is_some_and(|it| it.failover)
    };
    declared.nodes.iter().filter(|node| may(node)).cloned().collect()
}

/// What is to be done about nodes that aren't active, and what is waited for.
pub fn steps(spec: &Spec, reports: &Reports, word: &StoreWord, now_ms: u64) -> Vec<Step> {
    let duties = spec.nodes.iter().map(|(name, node)| (name.clone(), node.duty));
    let services = spec
        .databases()
        .map(|(name, _)| (name.clone(), service(name, spec, reports, word, now_ms)));
    duty::next(&duties.collect(), &services.collect())
}

fn service(name: &str, spec: &Spec, reports: &Reports, word: &StoreWord, now_ms: u64) -> Service {
    let declared = spec.postgres(name);
    let of = reports.iter();
    let of = of.filter_map(|(node, (report, _))| Some((report.services.get(name)?.serving?, node)));
    let term = word.terms.get(name);
    let named = term.map(|term| {
        let sets = term.inforce.iter().chain([&term.target]);
        sets.flat_map(|set| set.members.iter().chain([&set.leader]))
            .map(|it| it.node.clone())
            .collect()
    });
    Service {
        nodes: declared.map(|it| it.nodes.iter().cloned().collect()).unwrap_or_default(),
        leader: of.max().map(|(_, node)| node.clone()),
        takers: takers(name, spec, reports, word, now_ms),
        named,
    }
}

/// Carries the steps out, for ever. Asked for by two at once, nothing happens twice: a handover is
/// refused while another is under way, and the spec is changed under guard.
pub async fn tend(cluster: &Cluster) {
    let mut asked: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let word = cluster.word();
        if word.revision.is_none() {
            continue;
        }
        let now = crate::clock::now().0;
        for step in steps(&cluster.spec(), &cluster.reports(), &word, now) {
            match step {
                Step::HandOver { service, node } => {
                    let key = format!("{service}@{node}");
                    if asked.get(&key).is_some_and(|at| at.elapsed() < AGAIN) {
                        continue;
                    }
                    asked.insert(key, Instant::now());
                    let who = "coordinator, since the node is drained".to_string();
                    let ask = Ask::Switchover { service: service.clone(), to: None, who };
                    if let Err(error) = cluster.ask(&node, &ask).await {
                        tracing::warn!(service, node, %error, "not handed over yet");
                    }
                }
                Step::Forget { node } => match cluster.forget(&node).await {
                    Ok(()) => tracing::info!(node, "is no node any more"),
                    Err(error) => tracing::warn!(node, %error, "not forgotten yet"),
                },
                Step::Wait { .. } => {}
            }
        }
    }
}

/// Why a node can't be given that duty now; `None`: it can.
pub fn refusal(spec: &Spec, node: &str, duty: Duty) -> Option<String> {
    match duty {
        Duty::Active => None,
        Duty::Leaving => {
            spec.without(node).err().or_else(|| stuck(spec, node, duty).map(none_left))
        }
        Duty::Drained => {
            let led = spec.databases().find(|(_, service)| {
                let others = service.nodes.iter().filter(|other| *other != node);
                let on = service.nodes.iter().any(|it| it == node);
                on && !others.into_iter().any(|other| spec.duty(other).is_active())
            });
            let led = led.map(|(name, _)| name.clone());
            led.or_else(|| stuck(spec, node, duty)).map(none_left)
        }
    }
}

fn none_left(service: String) -> String {
    format!("no other active node is left for {service}")
}

/// An HTTP service that could not be run without the node: the others may not, or are lost.
fn stuck(spec: &Spec, node: &str, duty: Duty) -> Option<String> {
    let mut after = spec.clone();
    after.set_duty(node, duty);
    let on = |http: &HttpSpec| http.placed().any(|(_, it)| it.node == node);
    let lost = |http: &HttpSpec| http.placed().any(|(_, it)| spec.is_lost(&it.node));
    let had = |name: &str| spec.http(name).is_some_and(on);
    let stays = |name: &str, http: &HttpSpec| on(http) || (had(name) && lost(http));
    let mut services = after.http_services();
    let stays = services.find(|(name, http)| stays(name, http)).map(|(name, _)| name.clone());
    stays.or_else(|| after.unplaced().map(|(name, _)| name.to_string()))
}

/// What the journal says that was asked for.
pub fn act(node: &str, duty: Duty) -> String {
    match duty {
        Duty::Active => format!("resume {node}"),
        Duty::Drained => format!("drain {node}"),
        Duty::Leaving => format!("remove {node}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::durable::Data;
    use everhold_core::ids::{Lsn, Member};
    use everhold_core::status::{State, Status};
    use everhold_core::term::{Set, Term};
    use std::sync::Arc;

    const NOW_MS: u64 = 60_000;

    fn report(incarnation: u32, streaming: bool) -> Report {
        let status = Status {
            member: Member::new("b", incarnation),
            host: "127.0.0.1".into(),
            port: 1,
            pid: Some(1),
            state: State::Streaming,
            data: Data::Ok,
            promise: 1,
            sysid: Some(1),
            term: 1,
            report: None,
            misses: None,
            fell: None,
            primary: None,
            serving: None,
            checkpoint: 1,
            lsn: Lsn(1),
            tli: 1,
            seen_tli: 0,
            streaming,
            lag_ms: None,
            call: None,
            overrides: Vec::new(),
            full: false,
            bad_pages: 0,
            log_from: None,
        };
        let services = [("main".to_string(), Arc::new(status))].into();
        Report { services, ..Report::default() }
    }

    #[test]
    fn a_node_that_a_service_needs_stays() {
        let spec = |keys: &str| {
            let text = format!(
                "schema = 1\ncluster = \"shop\"\n[service.main]\nkind = \"postgres\"\n\
                 [service.api]\nkind = \"http\"\ncommand = [\"x\"]\n{keys}"
            );
            crate::spec::load_with(&text, "f", Default::default()).expect("valid")
        };
        let check = |keys: &str, node: &str, duty, expected: Option<&str>| {
            let spec = spec(keys);
            assert_eq!(refusal(&spec, node, duty).as_deref(), expected, "{keys}");
        };
        let none = "no other active node is left for api";
        check("", "a", Duty::Drained, None);
        check("", "a", Duty::Leaving, None);
        check("nodes = [\"a\"]", "a", Duty::Drained, Some(none));
        check("nodes = [\"a\"]", "a", Duty::Leaving, Some("no other node may run api"));
        check("nodes = [\"a\"]", "b", Duty::Drained, None);
        check("nodes = [\"a\"]", "a", Duty::Active, None);
        check("nodes = [\"a\"]\ninstances = 0", "a", Duty::Drained, None);
        // As many as two nodes can hold, and one more.
        check("instances = 188", "a", Duty::Drained, None);
        check("instances = 189", "a", Duty::Drained, Some(none));
        let why = "api would be left with 188 instances";
        check("instances = 189", "a", Duty::Leaving, Some(why));
        // A node that is lost takes over nothing.
        let mut spec = spec("nodes = [\"a\", \"b\"]");
        spec.set_lost("b", Some("then".to_string()));
        for duty in [Duty::Drained, Duty::Leaving] {
            assert_eq!(refusal(&spec, "a", duty).as_deref(), Some(none));
            assert_eq!(refusal(&spec, "b", duty), None);
            assert_eq!(refusal(&spec, "c", duty), None);
        }
    }

    /// Drains and rollouts go by the same.
    #[test]
    fn who_may_take_over_is_heard_streams_and_is_of_the_set() {
        let spec = Spec::default_for_one_machine();
        let members = [Member::new("b", 2)].into();
        let set = Set { leader: Member::new("a", 1), members, k: 1 };
        let (inforce, target) = (vec![set.clone()], set.clone());
        let (leader, branches) = (set.leader, Vec::new());
        let term = Term { epoch: 1, leader, open: true, inforce, target, branches, sysid: 1 };
        let terms = [("main".to_string(), term)].into();
        let word = StoreWord { terms, ..StoreWord::default() };
        let check = |incarnation, streaming, ms_ago, expected: bool| {
            let heard = (Arc::new(report(incarnation, streaming)), NOW_MS - ms_ago);
            let reports = [("b".to_string(), heard)].into();
            let drained = service("main", &spec, &reports, &word, NOW_MS).takers;
            assert_eq!(drained.contains("b"), expected, "{incarnation} {streaming} {ms_ago}");
            let rolled = crate::rollout::look(Some("main"), &spec, &reports, &word, NOW_MS);
            assert_eq!(rolled.expect("a service")["b"].fit, expected);
        };
        check(2, true, FRESH_MS, true);
        check(2, true, FRESH_MS + 1, false);
        check(2, false, 0, false);
        // What it was before it was cloned anew is not in the set.
        check(1, true, 0, false);
    }
}
