//! What HTTP routes and their services do at this moment.

use super::Shared;
use crate::agent::Ask;
use crate::cluster::Cluster;
use crate::routes::{self, Told};
use axum::Json;
use axum::extract::State;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinSet;

/// Gateways count since their start: how often things happen is seen in so much time.
const BETWEEN: Duration = Duration::from_secs(1);

/// Asks every gateway twice.
pub async fn list(State(api): State<Shared>) -> Json<Value> {
    let cluster = &api.cluster;
    let (before, _) = told(cluster).await;
    tokio::time::sleep(BETWEEN).await;
    let (now, unheard) = told(cluster).await;
    Json(routes::shown(&cluster.spec(), (&before, &now), &unheard))
}

/// What gateways tell, by name, and why others don't.
async fn told(cluster: &std::sync::Arc<Cluster>) -> (Vec<Told>, BTreeMap<String, String>) {
    let spec = cluster.spec();
    // On one machine there is one gateway, of which every agent there knows.
    let nodes = if spec.is_spread() { spec.gateway.nodes.clone() } else { cluster.nodes() };
    let mut asked = JoinSet::new();
    for node in nodes {
        let cluster = cluster.clone();
        asked.spawn(async move { (cluster.ask(&node, &Ask::Routes).await, node) });
    }
    let (mut found, mut unheard) = (BTreeMap::new(), BTreeMap::new());
    while let Some(Ok((answer, node))) = asked.join_next().await {
        let read = answer.map(serde_json::from_value::<Told>);
        match read {
            Ok(Ok(told)) => drop(found.insert(told.gateway.clone(), told)),
            Ok(Err(error)) => drop(unheard.insert(node, error.to_string())),
            Err(error) => drop(unheard.insert(node, error.to_string())),
        }
    }
    if !spec.is_spread() && !found.is_empty() {
        unheard.clear();
    }
    (found.into_values().collect(), unheard)
}
