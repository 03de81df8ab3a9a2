//! The gateway's plain port: its metrics.

use super::metric as m;
use super::page::Page;
use super::{Socket, certificates, is_read, process, serve, tell_metrics, wrong_method};
use crate::api::{ApiError, Code};
use crate::clock;
use crate::link::Hold;
use crate::node_file::NodeFile;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use everhold_core::http::probe::Health;
use everhold_core::route::RouteTable;
use everhold_core::spec::{NodeSpec, Role, Spec};
use everhold_gateway::http::{BOUNDS_S, End, GateState, Hedge, Histogram, Judged};
use everhold_gateway::{Gateway, ListenerState, Refused};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{oneshot, watch};

/// The rule of the hold while the port can't be opened.
const RULE: &str = "metrics-port";

/// What the port tells of.
pub struct Desk {
    pub node: NodeFile,
    pub gateway: Arc<Gateway>,
    pub tables: watch::Receiver<Arc<RouteTable>>,
}

/// What can't be opened, by its rule.
#[derive(Clone, Default)]
pub struct Trouble(Arc<Mutex<BTreeMap<&'static str, Hold>>>);

impl Trouble {
    /// As `status` shows it.
    pub fn holds(&self) -> Vec<Hold> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// `None`: it is open.
    pub fn note(&self, rule: &'static str, fault: Option<String>, unblocks: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(rule).map(|hold| &hold.why) == fault.as_ref() {
            return;
        }
        let Some(why) = fault else {
            tracing::info!(rule, "it is open");
            known.remove(rule);
            return;
        };
        tracing::warn!(rule, "{why}");
        let hold = Hold {
            service: None,
            rule: rule.to_string(),
            why,
            unblocks: unblocks.to_string(),
            operator: true,
            since: clock::wall(),
            recheck_at: None,
            journal: None,
        };
        known.insert(rule, hold);
    }
}

/// The node whose port a gateway has: its own, or the first where one gateway is for all.
pub fn node_of<'a>(name: &str, spec: &'a Spec) -> Option<&'a NodeSpec> {
    let own = name.split_once('.').and_then(|(_, node)| spec.nodes.get(node));
    own.or_else(|| spec.nodes.values().next())
}

/// The port. Dropped, it is closed.
pub struct Port {
    socket: Socket,
    _serves: oneshot::Sender<()>,
}

impl Port {
    /// The listening socket, if it could be opened.
    pub fn socket(&self) -> Option<TcpListener> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.as_ref()?.try_clone().ok()
    }
}

#[cfg(test)]
impl Port {
    /// One that could not be opened.
    pub fn closed() -> Port {
        Port { socket: Socket::default(), _serves: oneshot::channel().0 }
    }
}

/// Serves `HOST:PORT` until the port is dropped, on a `socket` that was taken over if there is one.
pub fn start(address: String, socket: Option<TcpListener>, desk: Desk, trouble: Trouble) -> Port {
    let socket = Arc::new(Mutex::new(socket));
    let router = Router::new().fallback(handle).with_state(Arc::new(desk));
    let (_serves, ends) = oneshot::channel();
    let ends = async { drop(ends.await) };
    let note =
        move |fault| trouble.note(RULE, fault, "the port is free; nothing else waits for it");
    serve(address, socket.clone(), router, note, ends);
    Port { socket, _serves }
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
        self.put_http(&mut page);
        process::put(&mut page);
        page
    }

    fn put_http(&self, page: &mut Page) {
        let sums = self.gateway.sums();
        for (series, took) in &sums.requests {
            let status = series.status.to_string();
            let labels = [
                ("http_route", &*series.route),
                ("http_request_method", series.method.name()),
                ("http_response_status_code", &status),
            ];
            put_took(page, &m::HTTP_SERVER, &labels, took);
        }
        for (of, took) in &sums.tries {
            let outcome = match of.end {
                End::Answered => "ok",
                End::Failed => "failed",
                End::Left => "left",
            };
            let labels =
                [("service", &*of.service), ("backend", &*of.backend), ("outcome", outcome)];
            put_took(page, &m::HTTP_CLIENT, &labels, took);
        }
        page.put(&m::ACCESS_LOST, &[], sums.lines_lost as f64);
        for (turned, waited) in &sums.turned {
            let labels = [("http_route", &*turned.route), ("met", turned.met.word())];
            put_took(page, &m::HTTP_WAITED, &labels, waited);
        }
        for ((service, hedge), count) in &sums.hedged {
            let answered = match hedge {
                Hedge::First => "first",
                Hedge::Second => "second",
                Hedge::Neither => "neither",
            };
            let labels = [("service", &**service), ("answered", answered)];
            page.put(&m::HTTP_HEDGED, &labels, *count as f64);
        }
        for ((route, word), count) in &sums.cached {
            page.put(&m::HTTP_CACHED, &[("http_route", route), ("cache", word)], *count as f64);
        }
        if let Some(kept) = self.gateway.kept() {
            page.put(&m::CACHE_ANSWERS, &[], kept.answers as f64);
            page.put(&m::CACHE_BYTES, &[], kept.bytes as f64);
            page.put(&m::CACHE_BYTES_MAX, &[], kept.bytes_max as f64);
        }
        let Refused { denied, struck, too_many, crowded } = self.gateway.refused();
        let refused = [("denied", denied), ("struck", struck), ("too_many", too_many)];
        for (reason, count) in refused.into_iter().chain([("crowded", crowded)]) {
            page.put(&m::HTTP_REFUSED, &[("reason", reason)], count as f64);
        }
        self.put_guarded(page);
        for (service, judged) in self.gateway.judged() {
            put_judged(page, &service, &judged);
        }
    }

    fn put_guarded(&self, page: &mut Page) {
        let guarded = self.gateway.guarded();
        for (service, gate) in guarded.services {
            put_places(page, (&service, ""), gate);
        }
        for ((_, route), gate) in guarded.routes {
            put_places(page, ("", &route), gate);
        }
        for (service, probe_in) in guarded.breakers {
            let open = if probe_in.is_some() { 1.0 } else { 0.0 };
            page.put(&m::BREAKER_OPEN, &[("service", &service)], open);
        }
        for ((_, route), modes) in guarded.modes {
            for it in modes {
                let labels = [("http_route", route.as_str()), ("mode", it.mode.word())];
                page.put(&m::DEGRADED, &labels, if it.on.is_some() { 1.0 } else { 0.0 });
            }
        }
        for (thread, state) in self.gateway.threads().into_iter().enumerate() {
            let thread = thread.to_string();
            let labels = [("thread", thread.as_str())];
            page.put(&m::THREAD_BUSY, &labels, f64::from(state.busy) / 1e3);
            page.put(&m::THREAD_WAIT, &labels, f64::from(state.wait_us) / 1e6);
            page.put(&m::THREAD_REFUSED, &labels, f64::from(state.refused) / 1e3);
        }
    }
}

fn put_places(page: &mut Page, (service, route): (&str, &str), gate: GateState) {
    let labels = [("service", service), ("http_route", route)];
    page.put(&m::PLACES_MAX, &labels, gate.limit.into());
    page.put(&m::PLACES_TAKEN, &labels, gate.in_flight.into());
    page.put(&m::PLACES_WAITING, &labels, gate.waiting.into());
}

fn put_took(
    page: &mut Page,
    metric: &'static m::Metric,
    labels: &[(&str, &str)],
    took: &Histogram,
) {
    page.histogram(metric, labels, &BOUNDS_S, &took.buckets, took.sum_us as f64 / 1e6);
}

fn put_judged(page: &mut Page, service: &str, judged: &Judged) {
    let number = |is| if is { 1.0 } else { 0.0 };
    for (backend, verdict) in &judged.backends {
        let labels = [("service", service), ("backend", backend.as_str())];
        let healthy = match verdict.health {
            Health::Unknown => None,
            Health::Healthy => Some(1.0),
            Health::Unhealthy => Some(0.0),
        };
        page.maybe(&m::BACKEND_HEALTHY, &labels, healthy);
        page.put(&m::BACKEND_EJECTED, &labels, number(verdict.ejected));
        page.put(&m::BACKEND_USED, &labels, number(verdict.used));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::http::usable::Why;
    use everhold_gateway::http::Verdict;

    #[test]
    fn instances_are_told_as_they_are_judged() {
        let of = |health, ejected: bool| {
            let used = health == Health::Healthy && !ejected;
            Verdict { health, ejected, used }
        };
        let judged = Judged {
            why: Why::Healthy,
            backends: [
                ("a.1".to_string(), of(Health::Healthy, false)),
                ("b.1".to_string(), of(Health::Healthy, true)),
                ("c.1".to_string(), of(Health::Unhealthy, false)),
                ("d.1".to_string(), of(Health::Unknown, false)),
            ]
            .into(),
        };
        let mut page = Page::new(&[]);
        put_judged(&mut page, "api", &judged);
        let text = page.text();
        let of = |what: &str| -> Vec<String> {
            let start = format!("everhold_gateway_instance_{what}{{service=\"api\",backend=\"");
            let lines = text.lines().filter_map(|line| line.strip_prefix(start.as_str()));
            lines.map(|line| line.replace("\"}", "")).collect()
        };
        assert_eq!(of("healthy"), ["a.1 1", "b.1 1", "c.1 0"]);
        assert_eq!(of("ejected"), ["a.1 0", "b.1 1", "c.1 0", "d.1 0"]);
        assert_eq!(of("used"), ["a.1 1", "b.1 0", "c.1 0", "d.1 0"]);
    }
}
