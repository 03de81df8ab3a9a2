//! Nodes that were drained or are to leave: what is seen of their services, and the coordinator's
//! steps, which `core/src/duty.rs` decides.

use crate::agent::{self, Ask};
use crate::cluster::{Cluster, Reports, StoreWord};
use everhold_core::duty::{self, Service, Step};
use everhold_core::spec::{Duty, Spec};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// A handover that was refused is asked for again after this.
const AGAIN: Duration = Duration::from_secs(5);
/// The word of an agent that is older says nothing about now.
const FRESH_MS: u64 = 1_000;

/// What is to be done about nodes that aren't active, and what is waited for.
pub fn steps(spec: &Spec, reports: &Reports, word: &StoreWord, now_ms: u64) -> Vec<Step> {
    let duties = spec.nodes.iter().map(|(name, node)| (name.clone(), node.duty));
    let services =
        spec.services.keys().map(|name| (name.clone(), service(name, spec, reports, word, now_ms)));
    duty::next(&duties.collect(), &services.collect())
}

fn service(name: &str, spec: &Spec, reports: &Reports, word: &StoreWord, now_ms: u64) -> Service {
    let declared = spec.postgres(name);
    let of = reports.iter().filter_map(|(node, (report, at))| {
        Some((node, report.services.get(name)?, now_ms.saturating_sub(*at)))
    });
    let leader = of.clone().filter_map(|(node, s, _)| Some((s.serving?, node.clone()))).max();
    let term = word.terms.get(name);
    let policy = declared.map(|declared| agent::policy(spec, declared));
    let fit = |node: &String| {
        policy.as_ref().and_then(|p| p.preferences.get(node)).is_some_and(|p| p.failover)
    };
    let member = |node: &String| {
        term.is_some_and(|term| term.target.members.iter().any(|it| it.node == *node))
    };
    let takers = of
        .filter(|(node, status, ms)| {
            *ms <= FRESH_MS && status.streaming && fit(node) && member(node)
        })
        .map(|(node, ..)| node.clone());
    let named = term.map(|term| {
        let sets = term.inforce.iter().chain([&term.target]);
        sets.flat_map(|set| set.members.iter().chain([&set.leader]))
            .map(|it| it.node.clone())
            .collect()
    });
    Service {
        nodes: declared.map(|it| it.nodes.iter().cloned().collect()).unwrap_or_default(),
        leader: leader.map(|(_, node)| node),
        takers: takers.collect(),
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
        Duty::Leaving => spec.without(node).err(),
        Duty::Drained => {
            let led = spec.services.iter().find(|(_, service)| {
                let others = service.nodes().iter().filter(|other| *other != node);
                let on = service.nodes().iter().any(|it| it == node);
                on && !others.into_iter().any(|other| spec.duty(other).is_active())
            });
            led.map(|(name, _)| format!("no other active node is left for {name}"))
        }
    }
}

/// What the journal says that was asked for.
pub fn act(node: &str, duty: Duty) -> String {
    match duty {
        Duty::Active => format!("resume {node}"),
        Duty::Drained => format!("drain {node}"),
        Duty::Leaving => format!("remove {node}"),
    }
}
