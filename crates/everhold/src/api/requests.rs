//! What became of one HTTP request.

use super::input::Name;
use super::{ApiError, Code, Shared};
use crate::agent::Ask;
use axum::Json;
use axum::extract::State;
use everhold_gateway::http::id;
use serde_json::Value;
use tokio::task::JoinSet;

/// Asks every gateway; the newest request of that name is told, since clients may name two the same.
pub async fn find(State(api): State<Shared>, Name(request): Name) -> Result<Json<Value>, ApiError> {
    if !id::is_id(request.as_bytes()) {
        let text = "a request's name is 1 to 64 letters, digits and -_.:+/=";
        return Err(ApiError::new(Code::Malformed, text));
    }
    let cluster = &api.cluster;
    let spec = cluster.spec();
    // On one machine there is one gateway, of which every agent there knows.
    let nodes = if spec.is_spread() { spec.gateway.nodes.clone() } else { cluster.nodes() };
    let mut asked = JoinSet::new();
    for node in nodes {
        let (cluster, ask) = (cluster.clone(), Ask::Request { id: request.clone() });
        asked.spawn(async move { (cluster.ask(&node, &ask).await, node) });
    }
    let (mut found, mut unheard) = (Vec::new(), Vec::new());
    while let Some(Ok((answer, node))) = asked.join_next().await {
        match answer {
            Ok(Value::Null) => {}
            Ok(record) => found.push(record),
            Err(error) => unheard.push(format!("{node}: {error}")),
        }
    }
    let at = |record: &Value| record["at"].as_str().map(str::to_string);
    found.into_iter().max_by_key(at).map(Json).ok_or_else(|| {
        let mut text = format!("no gateway remembers a request {request}");
        if !unheard.is_empty() {
            text += &format!(" (not known: {})", unheard.join("; "));
        }
        ApiError::new(Code::UnknownName, text).next(
            "x-request-id in the answer names it; a gateway remembers the last 4096 of each thread",
        )
    })
}
