//! What failovers lost: the tails that nodes kept of histories nobody follows any more.

use super::input::Name;
use super::look::known;
use super::{ApiError, Code, Shared};
use crate::agent::Ask;
use crate::cluster::Cluster;
use axum::Json;
use axum::extract::State;
use everhold_adapters::postgres::lost::Tail;
use everhold_core::decide::{Action, Verdict, Write};
use everhold_core::ids::Epoch;
use everhold_core::journal::Event;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Entries of the journal that are looked through for forced failovers and recoveries.
const JOURNAL: usize = 1_000;

/// Of each node that answers its tails, the newest first; those that don't are named.
pub async fn losses(
    State(api): State<Shared>,
    Name(service): Name,
) -> Result<Json<Value>, ApiError> {
    let cluster = &api.cluster;
    known(cluster, &service)?;
    let spec = cluster.spec();
    let nodes = spec.postgres(&service).map(|it| it.nodes.clone()).unwrap_or_default();
    let (mut tails, mut absent) = (Vec::new(), Vec::new());
    for node in nodes {
        let ask = Ask::Losses { service: service.clone() };
        match cluster.ask(&node, &ask).await {
            Ok(answer) => {
                let read = serde_json::from_value::<Vec<Tail>>(answer);
                tails.extend(read.map_err(|e| ApiError::new(Code::Internal, e.to_string()))?);
            }
            Err(error) => absent.push(json!({ "node": node, "error": error.to_string() })),
        }
    }
    tails.sort_by_key(|tail| std::cmp::Reverse(tail.epoch));
    let given_up = given_up(cluster, &service).await;
    let tails: Vec<Value> = tails.iter().map(|tail| shown(tail, &given_up)).collect();
    Ok(Json(json!({ "service": service, "tails": tails, "absent": absent })))
}

/// A leader is chosen among nodes that hold every acknowledged commit, so what others hold beyond it
/// nobody was told of. Who forces one does without: then nobody knows. A recovery gives up what was
/// acknowledged, on purpose.
fn shown(tail: &Tail, given_up: &GivenUp) -> Value {
    let before = |epochs: &BTreeSet<Epoch>| -> Vec<Epoch> {
        epochs.iter().filter(|epoch| **epoch <= tail.epoch).copied().collect()
    };
    let (forced, recovered) = (before(&given_up.forced), before(&given_up.recovered));
    let mut shown = json!(tail);
    let none = forced.is_empty() && recovered.is_empty();
    shown["acknowledged"] = if none { json!(0) } else { Value::Null };
    shown["forced_epochs"] = json!(forced);
    shown["recovered_epochs"] = json!(recovered);
    shown
}

/// Epochs that an operator opened to give acknowledged commits up, or to risk that.
#[derive(Default)]
struct GivenUp {
    forced: BTreeSet<Epoch>,
    recovered: BTreeSet<Epoch>,
}

impl GivenUp {
    fn add(&mut self, rule: &str, epoch: Epoch) {
        match rule {
            "force" => drop(self.forced.insert(epoch)),
            "restore" => drop(self.recovered.insert(epoch)),
            _ => {}
        }
    }
}

/// As far as journals reach back.
async fn given_up(cluster: &Cluster, service: &str) -> GivenUp {
    let mut given_up = GivenUp::default();
    for entry in cluster.journal(JOURNAL, Some(service)).await {
        match &entry.event {
            Event::Decided(decision) => match &decision.verdict {
                Verdict::Act { rule, actions, .. } => {
                    let opened = actions.iter().find_map(epoch_of);
                    opened.into_iter().for_each(|epoch| given_up.add(rule, epoch));
                }
                Verdict::Hold { .. } | Verdict::Steady => {}
            },
            Event::Ended { .. }
            | Event::Released { .. }
            | Event::Asked { .. }
            | Event::Noted { .. } => {}
        }
    }
    let word = cluster.word();
    // What was opened and came to nothing gave nothing up.
    if let Some(term) = word.terms.get(service) {
        let led = |epoch: &Epoch| term.branches.iter().any(|branch| branch.epoch == *epoch);
        given_up.forced.retain(led);
        given_up.recovered.retain(led);
    }
    if let Some(last) = word.last_failover.get(service) {
        given_up.add(last.rule.as_deref().unwrap_or_default(), last.epoch);
    }
    given_up
}

fn epoch_of(action: &Action) -> Option<Epoch> {
    let Action::Store { write } = action else { return None };
    let Write::Open { record, .. } = &**write else { return None };
    Some(record.epoch)
}
