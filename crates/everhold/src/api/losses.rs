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

/// Entries of the journal that are looked through for forced failovers.
const JOURNAL: usize = 1_000;

/// Of each node that answers its tails, the newest first; those that don't are named.
pub async fn losses(
    State(api): State<Shared>,
    Name(service): Name,
) -> Result<Json<Value>, ApiError> {
    let cluster = &api.cluster;
    known(cluster, &service)?;
    let spec = cluster.spec();
    let nodes = spec.services.get(&service).map(|it| it.nodes().to_vec()).unwrap_or_default();
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
    let forced = forced(cluster, &service).await;
    let tails: Vec<Value> = tails.iter().map(|tail| shown(tail, &forced)).collect();
    Ok(Json(json!({ "service": service, "tails": tails, "absent": absent })))
}

/// A leader is chosen among nodes that hold every acknowledged commit, so what others hold beyond it
/// nobody was told of. Who forces one does without: then nobody knows.
fn shown(tail: &Tail, forced: &BTreeSet<Epoch>) -> Value {
    let forced: Vec<&Epoch> = forced.iter().filter(|epoch| **epoch <= tail.epoch).collect();
    let mut shown = json!(tail);
    shown["acknowledged"] = if forced.is_empty() { json!(0) } else { Value::Null };
    shown["forced_epochs"] = json!(forced);
    shown
}

/// The epochs that an operator forced, as far as journals reach back.
async fn forced(cluster: &Cluster, service: &str) -> BTreeSet<Epoch> {
    let entries = cluster.journal(JOURNAL, Some(service)).await;
    let opened = entries.iter().filter_map(|entry| match &entry.event {
        Event::Decided(decision) => match &decision.verdict {
            Verdict::Act { rule, actions, .. } if rule == "force" => {
                actions.iter().find_map(epoch_of)
            }
            Verdict::Act { .. } | Verdict::Hold { .. } | Verdict::Steady => None,
        },
        Event::Ended { .. }
        | Event::Released { .. }
        | Event::Asked { .. }
        | Event::Noted { .. } => None,
    });
    let last = cluster.word().last_failover.get(service).cloned();
    let last = last.filter(|it| it.rule.as_deref() == Some("force")).map(|it| it.epoch);
    opened.chain(last).collect()
}

fn epoch_of(action: &Action) -> Option<Epoch> {
    let Action::Store { write } = action else { return None };
    let Write::Open { record, .. } = &**write else { return None };
    Some(record.epoch)
}
