//! The gateway's plain port: its metrics.

use super::metric as m;
use super::page::Page;
use super::{certificates, is_read, process, serve, tell_metrics, wrong_method};
use crate::api::{ApiError, Code};
use crate::clock;
use crate::link::Hold;
use crate::node_file::NodeFile;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use everhold_core::route::RouteTable;
use everhold_core::spec::{NodeSpec, Role, Spec};
use everhold_gateway::{Gateway, ListenerState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// The rule of the hold while the port can't be opened.
const RULE: &str = "metrics-port";

/// What the port tells of.
pub struct Desk {
    pub node: NodeFile,
    pub gateway: Arc<Gateway>,
    pub tables: watch::Receiver<Arc<RouteTable>>,
}

/// What keeps the port from being opened.
#[derive(Clone, Default)]
pub struct Trouble(Arc<Mutex<Option<Hold>>>);

impl Trouble {
    /// As `status` shows it.
    pub fn hold(&self) -> Option<Hold> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, fault: Option<String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().map(|hold| &hold.why) == fault.as_ref() {
            return;
        }
        let text = fault.as_ref().map_or("metrics are served", |why| why.as_str());
        tracing::warn!("{text}");
        *known = fault.map(|why| Hold {
            service: None,
            rule: RULE.to_string(),
            why,
            unblocks: "the port is free; nothing else waits for it".to_string(),
            operator: true,
            since: clock::wall(),
            recheck_at: None,
            journal: None,
        });
    }
}

/// The node whose port a gateway has: its own, or the first where one gateway is for all.
pub fn node_of<'a>(name: &str, spec: &'a Spec) -> Option<&'a NodeSpec> {
    let own = name.split_once('.').and_then(|(_, node)| spec.nodes.get(node));
    own.or_else(|| spec.nodes.values().next())
}

/// Serves until the process ends.
pub fn start(address: SocketAddr, desk: Desk) -> Trouble {
    let trouble = Trouble::default();
    let noted = trouble.clone();
    let router = Router::new().fallback(handle).with_state(Arc::new(desk));
    serve(address, router, move |fault| noted.note(fault));
    trouble
}

async fn handle(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    match path {
        _ if !is_read(method) => wrong_method(method, path),
        "/metrics" => tell_metrics(method, desk.page()),
        _ => {
            let text = format!("there is nothing at {path}");
            ApiError::new(Code::UnknownPath, text).next("GET /metrics").into_response()
        }
    }
}

impl Desk {
    fn page(&self) -> Page {
        let name = self.node.name.rsplit('.').next().unwrap_or_default();
        let mut page = Page::new(&[("cluster", &self.node.cluster), ("gateway", name)]);
        let version = env!("CARGO_PKG_VERSION");
        page.put(&m::BUILD, &[("role", "gateway"), ("version", version)], 1.0);
        page.put(&m::PID, &[], f64::from(std::process::id()));
        certificates(&mut page, &self.node.cert);
        let (snapshot, table) = (self.gateway.snapshot(), self.tables.borrow().clone());
        page.put(&m::GATEWAY_REVISION, &[], snapshot.table_revision as f64);
        for (name, it) in &snapshot.listeners {
            let only = [("listener", name.as_str())];
            if let Some(route) = table.listeners.get(name) {
                let role = match route.role {
                    Role::Primary => "primary",
                    Role::Standby => "standby",
                };
                let labels = [only[0], ("service", &*route.service), ("role", role)];
                let open = if it.state == ListenerState::Open { 1.0 } else { 0.0 };
                page.put(&m::LISTENER_OPEN, &labels, open);
                page.put(&m::LISTENER_EPOCH, &only, route.epoch as f64);
            }
            page.put(&m::LISTENER_CONNECTIONS, &only, it.connections as f64);
            page.put(&m::LISTENER_WAITING, &only, it.waiting as f64);
            page.put(&m::LISTENER_ACCEPTED, &only, it.accepted as f64);
            page.put(&m::LISTENER_REFUSED, &only, it.refused as f64);
            page.put(&m::LISTENER_CUT, &only, it.cut as f64);
            page.put(&m::LISTENER_IN, &only, it.bytes_in as f64);
            page.put(&m::LISTENER_OUT, &only, it.bytes_out as f64);
            for backend in &it.to {
                page.put(&m::LISTENER_BACKEND, &[only[0], ("backend", backend)], 1.0);
            }
        }
        for (backend, connections) in &snapshot.backends {
            page.put(&m::BACKEND_CONNECTIONS, &[("backend", backend)], *connections as f64);
        }
        process::put(&mut page);
        page
    }
}
