//! Nodes that are lost: what agents and gateways tell of each, and the coordinator's word in the spec,
//! by which all nodes and gateways go. `core/src/lost_nodes.rs` decides.

use crate::cluster::{Cluster, ClusterError, Reports, StoreWord};
use crate::{clock, gateways_word};
use everhold_core::finds::Word;
use everhold_core::ids::Time;
use everhold_core::kv::Expect;
use everhold_core::lost_nodes::{BREAK_MS, Found, HEARD_MS, Is, Node, SILENT_MS, Verdict, Watch};
use everhold_core::spec::{HttpSpec, NodeSpec, RunSpec, Spec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Who asks, in the journal.
const BY: &str = "coordinator";
/// The key under which stands who is held, behind the cluster's prefix.
pub const HELD: &str = "nodes-held";

/// A node that isn't heard, and is not lost; or that is back, and others still stand in for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub node: String,
    pub why: String,
    pub unblocks: String,
    /// On the coordinator's wall clock.
    pub since: String,
}

/// What is known of each node at `now_ms`.
pub fn look(
    spec: &Spec,
    reports: &Reports,
    word: &StoreWord,
    now_ms: u64,
) -> BTreeMap<String, Node> {
    let node = |(name, it): (&String, &NodeSpec)| {
        let heard = reports.get(name).map(|(_, at)| *at);
        // Of a node that speaks nobody asks others.
        let speaks = heard.is_some_and(|at| now_ms.saturating_sub(at) <= BREAK_MS);
        let found = if speaks { Found::Unknown } else { found(name, spec, word) };
        let is = match (&it.lost, &it.back) {
            (Some(_), _) => Is::Lost,
            (None, Some(_)) => Is::Back,
            (None, None) => Is::Here,
        };
        let unready = (is == Is::Back).then(|| unready(name, spec, word)).flatten();
        (name.clone(), Node { heard: heard.map(Time), is, found, unready })
    };
    spec.nodes.iter().map(node).collect()
}

/// The instances placed on a node, with their services. Those out of use nobody would miss.
fn instances<'s>(node: &str, spec: &'s Spec) -> impl Iterator<Item = (&'s String, &'s String)> {
    let here = move |(service, http): (&'s String, &'s HttpSpec)| {
        let all =
            http.placed().filter(move |(id, it)| it.node == node && !http.drained.contains(*id));
        all.map(move |(id, _)| (service, id))
    };
    spec.http_services().flat_map(here)
}

/// An instance of a node that is not known to be well, in words. Of what gateways can't judge there is
/// only its process, which began.
fn unready(node: &str, spec: &Spec, word: &StoreWord) -> Option<String> {
    let unready = |(service, id): (&String, &String)| {
        let judged = gateways_word::judge(spec, service, spec.http(service)?);
        let doubt = judged.then(|| gateways_word::finds(word, service, id).doubt()).flatten()?;
        Some(format!("{id} of {service}: {doubt}"))
    };
    instances(node, spec).find_map(unready)
}

/// What gateways find of the instances placed on a node. A table that doesn't name one is no reason to
/// wait.
fn found(node: &str, spec: &Spec, word: &StoreWord) -> Found {
    let mut unknown = false;
    for (service, id) in instances(node, spec) {
        let finds = gateways_word::finds(word, service, id).0;
        unknown |= finds.is_empty();
        for (gateway, word) in finds {
            match word {
                // Checks succeed with one that is ejected, too.
                Word::Healthy | Word::Ejected => {
                    return Found::Well { instance: id.clone(), gateway };
                }
                Word::Unhealthy | Word::Unnamed => {}
                Word::Unknown => unknown = true,
            }
        }
    }
    if unknown { Found::Unknown } else { Found::Nothing }
}

/// Who is lost, and who is held, in the answer of `status`.
pub fn holds(spec: &Spec, held: &[Held]) -> Vec<Value> {
    let hold = |why: String, since: &str, unblocks: &str| {
        json!({
            "service": null, "rule": "lost-node", "why": why, "since": since, "recheck_at": null,
            "needs_operator": false, "evidence": [], "unblocks": unblocks, "journal": null,
        })
    };
    let back = format!("its agent is heard for {} s without a break", HEARD_MS / 1_000);
    let missing = |(name, http): (&String, &HttpSpec)| match http.run().map_or(0, RunSpec::missing)
    {
        0 => None,
        count => Some(format!("; there are no ports for {count} of {name}")),
    };
    let missing: String = spec.http_services().filter_map(missing).collect();
    let lost = spec.nodes.iter().filter_map(|(node, it)| {
        let why = format!("{node} is lost, and others run its instances{missing}");
        Some(hold(why, it.lost.as_ref()?, &back))
    });
    let held =
        held.iter().map(|it| hold(format!("{} {}", it.node, it.why), &it.since, &it.unblocks));
    lost.chain(held).collect()
}

/// Judges again and again, and writes down who is lost and who is held. `ours` guards what is written:
/// it holds while nobody else coordinates.
pub async fn tend(cluster: &Cluster, ours: (String, Expect)) {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let (spec, word) = (cluster.spec(), cluster.word());
        // Without the store nobody knows what gateways find, and nothing can be written.
        if word.revision.is_none() {
            continue;
        }
        let runs = spec.http_services().any(|(_, http)| http.run().is_some());
        let now = clock::now();
        let nodes = look(&spec, &cluster.reports(), &word, now.0);
        let mut verdicts = match runs {
            true => watch.look(&nodes, now),
            // Nothing runs anywhere, so nobody is missed.
            false => nodes.iter().filter(|it| it.1.is != Is::Here).map(settled).collect(),
        };
        let held = held(&verdicts, &word.held);
        if held != word.held
            && let Err(error) = cluster.put_word(HELD, &held).await
        {
            tracing::warn!(%error, "cannot tell why nodes are not given up");
        }
        verdicts.retain(|_, it| !matches!(it, Verdict::Stay | Verdict::Hold(_)));
        if verdicts.is_empty() {
            continue;
        }
        match carry_out(cluster, &ours, &spec, &verdicts).await {
            Ok(true) => {}
            Ok(false) => tracing::info!("the spec has changed meanwhile; nodes are judged anew"),
            Err(error) => tracing::warn!(%error, "who is lost can't be written down yet"),
        }
    }
}

fn settled((name, _): (&String, &Node)) -> (String, Verdict) {
    (name.clone(), Verdict::Settle)
}

/// Whose wait goes on keeps its beginning.
fn held(verdicts: &BTreeMap<String, Verdict>, before: &[Held]) -> Vec<Held> {
    let held = verdicts.iter().filter_map(|(node, verdict)| {
        let Verdict::Hold(why) = verdict else { return None };
        let since = before.iter().find(|it| it.node == *node).map(|it| it.since.clone());
        let since = since.unwrap_or_else(clock::wall);
        let unblocks = why.unblocks().to_string();
        Some(Held { node: node.clone(), why: why.to_string(), unblocks, since })
    });
    held.collect()
}

/// False: the spec is another one by now, or somebody else coordinates.
async fn carry_out(
    cluster: &Cluster,
    (key, expect): &(String, Expect),
    old: &Spec,
    verdicts: &BTreeMap<String, Verdict>,
) -> Result<bool, ClusterError> {
    let mut new = old.clone();
    for (node, verdict) in verdicts {
        let before = new.clone();
        let what = match verdict {
            Verdict::Lose => {
                new.set_lost(node, Some(clock::wall()));
                format!("{node} is lost: not heard for {} s", SILENT_MS / 1_000)
            }
            Verdict::Return => {
                new.set_back(node, clock::wall());
                format!("{node} is back")
            }
            Verdict::Settle => {
                new.set_lost(node, None);
                format!("{node} is back, and what it runs is well")
            }
            Verdict::Stay | Verdict::Hold(_) => continue,
        };
        let moves = moves(&before, &new);
        tracing::warn!(what, ?moves, "who runs instances changes");
        for (service, moves) in &moves {
            cluster.note(service, BY, &format!("{what}; {moves}")).await;
        }
        if moves.is_empty() {
            cluster.note("", BY, &what).await;
        }
    }
    let done = cluster.change((key.clone(), expect.clone()), old, &new).await;
    if !matches!(done, Ok(true)) {
        let nodes: Vec<&str> = verdicts.keys().map(String::as_str).collect();
        let what = format!("{}: not known to be written, judged anew", nodes.join(", "));
        cluster.note("", BY, &what).await;
    }
    done
}

/// What moves, by service: `b.1 ends; a.2 begins`.
fn moves(old: &Spec, new: &Spec) -> BTreeMap<String, String> {
    let services = new.http_services().filter_map(|(name, http)| {
        let was = old.http(name)?;
        let not_in = |one: &HttpSpec, other: &HttpSpec| -> Vec<String> {
            let ids = one.placed().map(|(id, _)| id);
            ids.filter(|id| !other.placed().any(|(it, _)| it == *id)).cloned().collect()
        };
        let (goes, comes) = (not_in(was, http), not_in(http, was));
        let told =
            [("ends", goes), ("begins", comes)].into_iter().filter(|(_, ids)| !ids.is_empty());
        let told: Vec<String> = told.map(|(is, ids)| format!("{} {is}", ids.join(", "))).collect();
        (!told.is_empty()).then(|| (name.clone(), told.join("; ")))
    });
    services.collect()
}

#[cfg(test)]
mod tests;
