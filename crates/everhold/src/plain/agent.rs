//! The agent's plain port: health paths of the services that its node keeps, and its metrics.

use super::health;
use super::metric as m;
use super::page::Page;
use super::{Socket, answer, certificates, is_read, process, serve, tell_metrics, wrong_method};
use crate::api::{ApiError, Code};
use crate::backup::shown::Summary;
use crate::clock;
use crate::journal::Journal;
use crate::keeper::{Keeper, Measured};
use crate::layout::Layout;
use crate::link::{Hold, Report};
use crate::minder;
use crate::node_file::NodeFile;
use crate::status::{data_word, is_up, role, tolerates, word};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use everhold_core::durable::Data;
use everhold_core::health::{Check, Query, passes};
use everhold_core::journal::Event;
use everhold_core::spec::Spec;
use everhold_core::status;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A keeper that is alive answers in microseconds.
const MEASURED_WITHIN: Duration = Duration::from_secs(1);
/// The rule of the hold while the port can't be opened.
const RULE: &str = "health-port";

/// What the port tells of.
pub struct Desk {
    pub node: NodeFile,
    pub layout: Layout,
    /// Every service of this node; `None`: it can't be kept now.
    pub services: BTreeMap<String, Option<Keeper>>,
    pub report: watch::Sender<Arc<Report>>,
    pub journal: Journal,
    pub spec: watch::Receiver<Spec>,
}

/// Serves until the process ends.
pub fn start(address: SocketAddr, desk: Desk) {
    let (report, journal) = (desk.report.clone(), desk.journal.clone());
    let router = Router::new().fallback(handle).with_state(Arc::new(desk));
    let told = move |fault| show(&report, &journal, fault);
    serve(address.to_string(), Socket::default(), router, told, std::future::pending());
}

/// A port that can't be opened is a hold until it is.
fn show(report: &watch::Sender<Arc<Report>>, journal: &Journal, fault: Option<String>) {
    let known = report.borrow().holds.iter().find(|hold| hold.rule == RULE).cloned();
    if known.as_ref().map(|hold| &hold.why) == fault.as_ref() {
        return;
    }
    let text = fault.as_ref().map_or("health paths and metrics are served", |why| why.as_str());
    tracing::warn!("{text}");
    let entry = journal.append("", Event::Noted { text: text.to_string() });
    let hold = fault.map(|why| Hold {
        service: None,
        rule: RULE.to_string(),
        why,
        unblocks: "the port is free; load balancers see this node as down until then, and nothing \
                   else waits for it"
            .to_string(),
        operator: true,
        since: known.map_or_else(clock::wall, |known| known.since),
        recheck_at: None,
        journal: Some(entry),
    });
    report.send_modify(|report| {
        let holds = &mut Arc::make_mut(report).holds;
        holds.retain(|hold| hold.rule != RULE);
        holds.extend(hold);
    });
}

async fn handle(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    if !is_read(method) {
        return wrong_method(method, path);
    }
    if path == "/metrics" {
        return tell_metrics(method, desk.page().await);
    }
    let query = match Query::parse(request.uri().query().unwrap_or_default()) {
        Ok(query) => query,
        Err(why) => {
            let error = ApiError::new(Code::Malformed, why);
            return error.next("write the bound of `lag` as one of these").into_response();
        }
    };
    // Whoever restarts a dead agent asks about the agent, whatever it keeps.
    if path == "/liveness" {
        let now = clock::now();
        let mut kept = desk.services.values().flatten();
        let live = kept.all(|keeper| passes(&keeper.health(), Check::Liveness, &query, now));
        return answer(method, code(live), "application/json", String::new());
    }
    let services: Vec<&str> = desk.services.keys().map(String::as_str).collect();
    let (service, check) = match health::find(path, &services) {
        Ok(found) => found,
        Err(why) => {
            let error = ApiError::new(Code::UnknownPath, why);
            return error.next("docs/health.md has the paths").into_response();
        }
    };
    let Some(keeper) = desk.services.get(service).and_then(Option::as_ref) else {
        let text = r#"{"state":"unknown"}"#.to_string();
        let up = matches!(check, Check::Liveness | Check::Status);
        return answer(method, code(up), "application/json", text);
    };
    let (facts, now) = (keeper.health(), clock::now());
    let passed = passes(&facts, check, &query, now);
    let body = health::document(service, &desk.node.name, &facts, now).to_string();
    answer(method, code(passed), "application/json", body)
}

fn code(passed: bool) -> StatusCode {
    if passed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

impl Desk {
    async fn page(&self) -> Page {
        let mut page = Page::new(&[("cluster", &self.node.cluster), ("node", &self.node.name)]);
        let version = env!("CARGO_PKG_VERSION");
        page.put(&m::BUILD, &[("role", "agent"), ("version", version)], 1.0);
        page.put(&m::PID, &[], f64::from(std::process::id()));
        certificates(&mut page, &self.node.cert);
        let head = self.journal.head();
        let entries = head.split(' ').next().and_then(|id| id.rsplit('-').next()?.parse().ok());
        page.maybe(&m::JOURNAL_ENTRIES, &[], entries);
        self.holds(&mut page);
        for (name, node) in &self.spec.borrow().nodes {
            page.put(&m::NODE_LOST, &[("peer", name)], flag(node.lost.is_some()));
        }
        let mut silence: BTreeMap<String, u64> = BTreeMap::new();
        for (service, keeper) in &self.services {
            let Some(keeper) = keeper else { continue };
            let asked = tokio::time::timeout(MEASURED_WITHIN, keeper.measure()).await;
            let Ok(Some(measured)) = asked else { continue };
            for (peer, ms) in &measured.silence_ms {
                let known = silence.entry(peer.clone()).or_insert(*ms);
                *known = (*known).min(*ms);
            }
            of_service(&mut page, service, &measured);
            of_instance(&mut page, service, &measured);
            if let Some(word) = self.report.borrow().archives.get(service) {
                let only = [("service", service.as_str())];
                page.maybe(&m::LOG_ARCHIVED, &only, word.archived.map(|lsn| lsn.0 as f64));
                page.maybe(&m::LOG_BEHIND, &only, word.behind_ms.map(seconds));
            }
            if let Some(word) = self.report.borrow().scrubs.get(service) {
                let only = [("service", service.as_str())];
                page.put(&m::BAD_PAGES, &only, word.bad_pages as f64);
                page.maybe(&m::SCRUBBED_AT, &only, word.ended_s.map(|at| at as f64));
                page.maybe(&m::SCRUB_TOOK, &only, word.ended_s.map(|_| word.took_s as f64));
            }
            if let Some(summary) = &measured.backups {
                of_backups(&mut page, service, summary);
            }
            if let Some(making) = self.report.borrow().backups.get(service) {
                let running =
                    [("backup", making.running.is_some()), ("proof", making.proving.is_some())];
                for (what, runs) in running {
                    let labels = [("service", service.as_str()), ("what", what)];
                    page.put(&m::BACKUP_RUNNING, &labels, flag(runs));
                }
            }
            if measured.facts.status.pid.is_some() {
                let dir = self.layout.service(&self.node.name, service);
                page.put(&m::MINDER, &[("service", service)], flag(minder::is_there(&dir)));
            }
        }
        for (peer, ms) in silence {
            page.put(&m::PEER_SILENCE, &[("peer", &peer)], seconds(ms));
        }
        process::put(&mut page);
        page
    }

    fn holds(&self, page: &mut Page) {
        let mut counts: BTreeMap<(String, String, bool), u64> = BTreeMap::new();
        for hold in &self.report.borrow().holds {
            let service = hold.service.clone().unwrap_or_default();
            *counts.entry((service, hold.rule.clone(), hold.operator)).or_default() += 1;
        }
        for ((service, rule, operator), count) in counts {
            let operator = if operator { "true" } else { "false" };
            let labels = [("service", &*service), ("rule", &*rule), ("operator", operator)];
            page.put(&m::HOLDS, &labels, count as f64);
        }
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

/// What the agent knows of the service as a whole.
fn of_service(page: &mut Page, service: &str, measured: &Measured) {
    let only = [("service", service)];
    page.put(&m::STORE_REACHABLE, &only, flag(measured.store_reachable));
    page.put(&m::STORE_REVISION, &only, measured.store_revision as f64);
    for (rule, times) in &measured.fired {
        page.put(&m::DECISIONS, &[("service", service), ("rule", rule)], *times as f64);
    }
    page.put(&m::REFUSALS, &only, measured.refused as f64);
    page.put(&m::SERVICE_MAINTENANCE, &only, flag(measured.facts.maintenance));
    page.put(&m::SYNC_WANTED, &only, f64::from(measured.redundancy.wanted));
    if let Some(term) = &measured.term {
        page.put(&m::SERVICE_EPOCH, &only, term.epoch as f64);
        page.put(&m::SERVICE_OPEN, &only, flag(term.open));
        let leader = [("service", service), ("leader", term.leader.node.as_str())];
        page.put(&m::SERVICE_LEADER, &leader, 1.0);
        page.put(&m::SYNC_NUMBER, &only, f64::from(term.target.k));
        for member in &term.target.members {
            page.put(&m::SYNC_MEMBER, &[("service", service), ("member", &member.node)], 1.0);
        }
        let alone = measured.redundancy.floor == 0 && measured.redundancy.wanted > 0;
        page.put(&m::TOLERATES, &only, tolerates(term, alone) as f64);
    }
    if let Some(last) = &measured.last_failover {
        let kind = [("service", service), ("kind", last.kind.as_str())];
        page.put(&m::FAILOVER_EPOCH, &kind, last.epoch as f64);
        let at: Option<jiff::Timestamp> = last.at.parse().ok();
        page.maybe(&m::FAILOVER_AT, &only, at.map(|at| at.as_millisecond() as f64 / 1_000.0));
        page.maybe(&m::FAILOVER_OUTAGE, &only, last.outage_ms.map(seconds));
    }
}

/// What the coordinator last read of its backups.
fn of_backups(page: &mut Page, service: &str, summary: &Summary) {
    // It could not be read: nothing is known.
    if summary.error.is_some() {
        return;
    }
    let only = [("service", service)];
    let number = |count: u64| count as f64;
    page.put(&m::BACKUP_COUNT, &only, summary.count as f64);
    page.maybe(&m::BACKUP_NEWEST_AT, &only, summary.newest_s.map(number));
    page.maybe(&m::BACKUP_SIZE, &only, summary.newest_bytes.map(number));
    page.maybe(&m::BACKUP_ADDED, &only, summary.newest_added_bytes.map(number));
    page.put(&m::BACKUP_COPIES, &only, summary.copies as f64);
    page.maybe(&m::BACKUP_PROVEN_AT, &only, summary.proven_s.map(number));
    page.maybe(&m::BACKUP_RTO, &only, summary.rto_ms.map(seconds));
    page.put(&m::BACKUP_UNPROVEN, &only, summary.unproven as f64);
    page.put(&m::BACKUP_FAILED, &only, summary.failures as f64);
    page.put(&m::BACKUP_OVERDUE, &only, summary.overdue.len() as f64);
}

/// What it knows of its own instance.
fn of_instance(page: &mut Page, service: &str, measured: &Measured) {
    let only = [("service", service)];
    let (facts, now) = (&measured.facts, clock::now());
    let status = &facts.status;
    let serving = facts.leads(now);
    page.put(&m::INSTANCE_UP, &only, flag(is_up(status.state)));
    page.put(&m::INSTANCE_SERVING, &only, flag(serving));
    let read = status.streaming && status.bad_pages == 0;
    page.put(&m::INSTANCE_IN_ROUTE, &only, flag(serving || read));
    let right = facts.until.map(|until| seconds(until.since(now)));
    page.maybe(&m::INSTANCE_RIGHT, &only, right);
    for name in ["primary", "standby", "none"] {
        let has = role(status).unwrap_or("none") == name;
        page.put(&m::INSTANCE_ROLE, &[("service", service), ("role", name)], flag(has));
    }
    for state in status::State::ALL {
        let labels = [("service", service), ("state", &*word(&state))];
        page.put(&m::INSTANCE_STATE, &labels, flag(state == status.state));
    }
    for data in [Data::Empty, Data::Ok, Data::Destroying, Data::CatchUp { until: status.lsn }] {
        let name = data_word(data);
        let labels = [("service", service), ("data", name)];
        page.put(&m::INSTANCE_DATA, &labels, flag(data_word(status.data) == name));
    }
    let known = role(status).is_some();
    let lag = facts.lag(false).filter(|_| known);
    page.maybe(&m::INSTANCE_LAG_BYTES, &only, lag.map(|lag| lag as f64));
    page.maybe(&m::INSTANCE_LAG_SECONDS, &only, status.lag_ms.map(seconds));
    page.put(&m::INSTANCE_LSN, &only, status.lsn.0 as f64);
    page.put(&m::INSTANCE_TIMELINE, &only, f64::from(status.tli));
    page.put(&m::INSTANCE_PROMISE, &only, status.promise as f64);
    page.put(&m::INSTANCE_INCARNATION, &only, status.member.incarnation as f64);
    page.maybe(&m::INSTANCE_PID, &only, status.pid.map(f64::from));
    page.put(&m::INSTANCE_OVERRIDES, &only, status.overrides.len() as f64);
    page.put(&m::INSTANCE_FULL, &only, flag(status.full));
}
