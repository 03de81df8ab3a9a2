//! The HTTP API: JSON on loopback behind a bearer token. Commands, console and scripts use it.

mod acts;
mod backups;
mod cache;
mod error;
mod guard;
mod input;
mod instances;
mod look;
mod losses;
mod operations;
mod parse;
mod recovery;
mod requests;
mod routes;
#[cfg(test)]
mod tests;

pub use crate::code::Code;
pub use error::ApiError;

use crate::children::Supervised;
use crate::cluster::Cluster;
use crate::fault::Injector;
use crate::layout::Layout;
use anyhow::Context;
use axum::extract::Request;
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};
use axum::{Router, middleware};
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at a time: consoles and scripts of one machine. The next one waits to be accepted.
const CONNECTIONS_MAX: usize = 128;
/// Whoever sends a head slower than this, or nothing on an idle connection, is dropped.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 32 << 10;
const HEADERS_MAX: usize = 64;
/// After an error of accept(2), such as too many open files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What faults need: only a supervisor can kill and freeze.
pub struct Faults {
    pub supervised: Arc<Supervised>,
    pub layout: Layout,
}

/// What handlers share.
pub struct Api {
    pub cluster: Arc<Cluster>,
    token: String,
    /// Absent where no supervisor runs: faults are refused there.
    faults: Option<Arc<Injector>>,
}

type Shared = Arc<Api>;

/// Serves until the process ends.
pub async fn serve(
    bind: SocketAddr,
    token: String,
    cluster: Arc<Cluster>,
    faults: Option<Faults>,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(bind)
        .await
        .with_context(|| format!("E233 cannot listen on {bind} for the API"))?;
    if let Err(error) = crate::dsn::write_passfiles(&cluster.layout, &cluster.spec()) {
        tracing::warn!(error = format!("{error:#}"), "`everhold dsn` will not work as printed");
    }
    let faults = faults.map(|faults| Injector::new(faults.supervised, faults.layout));
    let api = Arc::new(Api { cluster, token, faults });
    tokio::spawn(accept(listener, router(api)));
    Ok(())
}

/// Every route there is. The OpenAPI document names the same ones; a test compares them.
fn paths() -> Vec<(Method, &'static str, MethodRouter<Shared>)> {
    vec![
        (Method::GET, "/healthz", get(look::healthz)),
        (Method::GET, "/openapi.json", get(openapi)),
        (Method::GET, "/v1/status", get(look::tell_status)),
        (Method::GET, "/v1/spec", get(look::tell_spec)),
        (Method::POST, "/v1/spec", post(acts::apply)),
        (Method::GET, "/v1/journal", get(look::journal)),
        (Method::GET, "/v1/journal/verify", get(look::verify)),
        (Method::GET, "/v1/journal/{id}", get(look::entry)),
        (Method::GET, "/v1/explain/{id}", get(look::explain)),
        (Method::GET, "/v1/requests/{id}", get(requests::find)),
        (Method::GET, "/v1/routes", get(routes::list)),
        (Method::POST, "/v1/cache/purge", post(cache::purge)),
        (Method::GET, "/v1/services/{service}/dsn", get(look::dsn)),
        (Method::POST, "/v1/services/{service}/switchover", post(acts::switchover)),
        (Method::POST, "/v1/services/{service}/failover", post(acts::failover)),
        (Method::POST, "/v1/services/{service}/maintenance", post(acts::maintenance)),
        (Method::GET, "/v1/services/{service}/backups", get(backups::list)),
        (Method::POST, "/v1/services/{service}/backups", post(backups::begin)),
        (Method::POST, "/v1/services/{service}/recovery", post(recovery::begin)),
        (Method::POST, "/v1/services/{service}/notes", post(acts::note)),
        (Method::GET, "/v1/services/{service}/losses", get(losses::losses)),
        (Method::GET, "/v1/services/{service}/backups/prune", get(backups::plan)),
        (Method::POST, "/v1/services/{service}/backups/prune", post(backups::prune)),
        (Method::POST, "/v1/services/{service}/proofs", post(backups::prove)),
        (Method::GET, "/v1/services/{service}/instances", get(instances::list)),
        (
            Method::POST,
            "/v1/services/{service}/instances/{instance}/restart",
            post(instances::restart),
        ),
        (Method::POST, "/v1/services/{service}/instances/{instance}/drain", post(instances::drain)),
        (Method::GET, "/v1/services/{service}/logs", get(instances::logs)),
        (Method::POST, "/v1/services/{service}/scale", post(instances::scale)),
        (Method::POST, "/v1/nodes/{node}/duty", post(operations::duty)),
        (Method::POST, "/v1/rollouts", post(operations::roll_out)),
        (Method::POST, "/v1/rollouts/stop", post(operations::stop_rollout)),
        (Method::POST, "/v1/tokens", post(acts::token)),
        (Method::GET, "/v1/faults", get(look::faults)),
        (Method::POST, "/v1/faults", post(acts::fault)),
    ]
}

fn router(api: Shared) -> Router {
    let paths = paths().into_iter();
    paths
        .fold(Router::new(), |router, (_, path, method)| router.route(path, method))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(api.clone(), guard::guard))
        .with_state(api)
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError::new(Code::UnknownPath, format!("there is nothing at {}", request.uri().path()))
}

async fn wrong_method(request: Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    ApiError::new(Code::WrongMethod, format!("{path} does not take {method}"))
}

async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], include_str!("openapi.json"))
}

/// Serves HTTP within the bounds above, until it is dropped.
pub async fn accept(listener: TcpListener, router: Router) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .max_buf_size(HEAD_BYTES_MAX)
                .max_headers(HEADERS_MAX)
                .serve_connection(parse::Wire::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended");
            }
            drop(permit);
        });
    }
}
