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
use everhold_core::term::Branch;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Entries of the journal that are looked through for how epochs began.
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
    let began = began(cluster, &service).await;
    let branches = cluster.word().terms.get(&service).map(|it| it.branches.clone());
    let branches = branches.unwrap_or_default();
    let tails: Vec<Value> = tails.iter().map(|tail| shown(tail, &branches, &began)).collect();
    Ok(Json(json!({ "service": service, "tails": tails, "absent": absent })))
}

/// By which rule an epoch was opened.
type Began = BTreeMap<Epoch, String>;

/// A leader is chosen among nodes that hold every acknowledged commit, so what others hold beyond it
/// nobody was told of. Who forces one does without: then nobody knows. A recovery gives up what was
/// acknowledged, on purpose. Of an epoch of which no journal tells, it may have been either.
fn shown(tail: &Tail, branches: &[Branch], began: &Began) -> Value {
    // What left the tail's history where the tail begins, or further on.
    let over = |it: &&Branch| it.epoch <= tail.epoch && it.fork >= tail.fork && it.parent != 0;
    let over: BTreeSet<Epoch> = branches.iter().filter(over).map(|it| it.epoch).collect();
    let of = |rule: Option<&str>| -> Vec<Epoch> {
        let is_it = |epoch: &&Epoch| began.get(*epoch).map(String::as_str) == rule;
        over.iter().filter(is_it).copied().collect()
    };
    let (forced, recovered, untold) = (of(Some("force")), of(Some("restore")), of(None));
    let unknown = match untold.as_slice() {
        [] if over.is_empty() => Some("the store knows of no history that left it".to_string()),
        [] => None,
        untold => {
            let untold: Vec<String> = untold.iter().map(Epoch::to_string).collect();
            let untold = untold.join(", ");
            Some(format!("no journal that can be read tells how epoch {untold} began"))
        }
    };
    let none = forced.is_empty() && recovered.is_empty() && unknown.is_none();
    let mut shown = json!(tail);
    shown["acknowledged"] = if none { json!(0) } else { Value::Null };
    shown["forced_epochs"] = json!(forced);
    shown["recovered_epochs"] = json!(recovered);
    shown["unknown"] = json!(unknown);
    shown
}

/// As far as journals reach back, of the nodes that answer.
async fn began(cluster: &Cluster, service: &str) -> Began {
    let mut began = Began::new();
    for entry in cluster.journal(JOURNAL, Some(service)).await {
        match &entry.event {
            Event::Decided(decision) => match &decision.verdict {
                Verdict::Act { rule, actions, .. } => {
                    let opened = actions.iter().find_map(epoch_of);
                    began.extend(opened.map(|epoch| (epoch, rule.to_string())));
                }
                Verdict::Hold { .. } | Verdict::Steady => {}
            },
            Event::Ended { .. }
            | Event::Released { .. }
            | Event::Asked { .. }
            | Event::Noted { .. } => {}
        }
    }
    if let Some(last) = cluster.word().last_failover.get(service) {
        began.extend(last.rule.clone().map(|rule| (last.epoch, rule)));
    }
    began
}

fn epoch_of(action: &Action) -> Option<Epoch> {
    let Action::Store { write } = action else { return None };
    let Write::Open { record, .. } = &**write else { return None };
    Some(record.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::ids::Lsn;

    #[test]
    fn what_no_journal_tells_is_not_known() {
        let branch = |tli, epoch, parent, fork| Branch { tli, epoch, parent, fork: Lsn(fork) };
        // By failovers at 2, 5 and 8; at 6 one that came to nothing.
        let line = [
            branch(1, 1, 0, 0),
            branch(2, 2, 1, 100),
            branch(3, 5, 2, 500),
            branch(4, 6, 3, 900),
            branch(5, 8, 3, 900),
        ];
        #[rustfmt::skip]
        let cases = [
            // epoch fork  began                                 acknowledged, forced, recovered, unknown
            (5,     500,  "2:force 5:down",                      "0 [] []"),
            (5,     500,  "2:down 5:force",                      "null [5] []"),
            (5,     500,  "5:restore",                           "null [] [5]"),
            // Silent: lost with its machine, or longer ago than what is read.
            (5,     500,  "2:down",                              "null [] [] of 5"),
            (5,     500,  "",                                    "null [] [] of 5"),
            // Of a node that was away for long: each that came to lead since counts.
            (8,     500,  "5:down 6:down 8:down",                "0 [] []"),
            (8,     500,  "5:force 6:down 8:down",               "null [5] []"),
            (8,     500,  "5:force 8:down",                      "null [5] [] of 6"),
            (8,     500,  "",                                    "null [] [] of 5, 6, 8"),
            (8,     900,  "6:down 8:down",                       "0 [] []"),
            // What came later has nothing to do with it.
            (5,     500,  "5:down 8:force",                      "0 [] []"),
            // Of a term that the store does not know.
            (5,     950,  "5:down",                              "null [] [] of none"),
            (1,     500,  "5:down",                              "null [] [] of none"),
        ];
        for (epoch, fork, began, expected) in cases {
            let tail = Tail {
                node: "a".to_string(),
                epoch,
                tli: 2,
                fork: Lsn(fork),
                end: Lsn(fork + 50),
                bytes: 50,
                commits: 1,
                transactions: Vec::new(),
                uncommitted: 0,
                unlisted: 0,
                untold: 0,
                note: None,
            };
            let opened = began.split_whitespace().filter_map(|it| it.split_once(':'));
            let opened = opened.map(|(at, rule)| (at.parse().expect("one"), rule.to_string()));
            let shown = shown(&tail, &line, &opened.collect());
            let mut told = format!(
                "{} {} {}",
                shown["acknowledged"], shown["forced_epochs"], shown["recovered_epochs"]
            );
            if let Some(why) = shown["unknown"].as_str() {
                let of = why.rsplit_once(" epoch ").map_or("none", |(_, of)| of);
                told += &format!(" of {}", of.trim_end_matches(" began"));
            }
            assert_eq!(told, expected, "{epoch} {fork} {began}");
        }
    }
}
