//! What the API tells: nothing here changes anything.

use super::input::{Name, Params};
use super::{ApiError, Code, Shared};
use crate::cluster::Cluster;
use crate::journal::Entry;
use crate::store::copies;
use crate::{clock, dsn, explain, status};
use axum::Json;
use axum::extract::State;
use everhold_core::journal::Event;
use everhold_core::spec::Role;
use serde::Deserialize;
use serde_json::{Value, json};

/// Entries of the journal when nothing is said, and at most.
const JOURNAL: usize = 50;
const JOURNAL_MAX: usize = 1_000;

type Answer = Result<Json<Value>, ApiError>;

pub async fn healthz() -> Json<Value> {
    Json(json!({ "ok": true, "version": env!("CARGO_PKG_VERSION") }))
}

pub async fn tell_status(State(api): State<Shared>) -> Json<Value> {
    let mut status = status_of(&api.cluster);
    status["store"]["snapshot_ms_ago"] = json!(copies::age_ms(&api.cluster.layout));
    if let Some(holds) = status["holds"].as_array_mut() {
        holds.extend(api.cluster.refusals());
    }
    if let (Some(here), Some(holds)) = (&api.faults, status["holds"].as_array_mut()) {
        holds.extend(here.holds());
    }
    Json(status)
}

/// The answer of `everhold status --json`.
pub fn status_of(cluster: &Cluster) -> Value {
    status::status(&status::Sources {
        cluster: &cluster.name,
        at: clock::wall(),
        answered_by: cluster.here.as_deref().unwrap_or("up"),
        now_ms: clock::now().0,
        spec: &cluster.spec(),
        reports: &cluster.reports(),
        word: &cluster.word(),
        forgetting: &cluster.forgetting.running(),
    })
}

pub async fn tell_spec(State(api): State<Shared>) -> Json<Value> {
    let revision = api.cluster.word().spec_rev;
    Json(json!({ "revision": revision, "spec": api.cluster.spec() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalQuery {
    limit: Option<usize>,
    service: Option<String>,
}

pub async fn journal(State(api): State<Shared>, Params(query): Params<JournalQuery>) -> Answer {
    let limit = query.limit.unwrap_or(JOURNAL);
    if !(1..=JOURNAL_MAX).contains(&limit) {
        let text = format!("limit is {limit}; it can be 1 to {JOURNAL_MAX}");
        return Err(ApiError::new(Code::Malformed, text));
    }
    if let Some(service) = &query.service {
        known(&api.cluster, service)?;
    }
    let entries = api.cluster.journal(limit, query.service.as_deref()).await;
    let lines: Vec<Value> = entries.iter().map(line).collect();
    Ok(Json(json!({ "entries": lines })))
}

/// An entry without the facts, which are large.
fn line(entry: &Entry) -> Value {
    let mut line = json!({
        "id": entry.id, "at": entry.at, "service": entry.service,
        "kind": explain::kind(&entry.event), "text": explain::line(&entry.event),
    });
    if let Event::Decided(decision) = &entry.event {
        line["controller"] = json!(decision.controller);
        line["rule"] = json!(decision.verdict.rule());
        line["epoch"] = json!(decision.epoch);
    }
    line
}

/// Whether each chain is whole, and still holds the entry whose hash stands in the store.
pub async fn verify(State(api): State<Shared>) -> Json<Value> {
    let cluster = &api.cluster;
    let mut nodes = serde_json::Map::new();
    let mut whole = true;
    for node in cluster.nodes() {
        let found = match cluster.verify(&node).await {
            Ok(Ok(entries)) => match lost_head(cluster, &node).await {
                None => json!({ "ok": true, "entries": entries }),
                Some(fault) => json!({ "ok": false, "entries": entries, "fault": fault }),
            },
            Ok(Err(fault)) => json!({ "ok": false, "fault": fault }),
            Err(error) => json!({ "ok": null, "fault": error.to_string() }),
        };
        whole &= found["ok"] == json!(true);
        nodes.insert(node, found);
    }
    Json(json!({ "ok": whole, "nodes": nodes }))
}

/// A chain that was cut off at its end is whole in itself; only the mirrored head shows it.
async fn lost_head(cluster: &Cluster, node: &str) -> Option<String> {
    let word = cluster.word();
    let (id, hash) = word.heads.get(node)?.split_once(' ')?;
    // The head of a journal without an entry.
    if id.ends_with("-0") {
        return None;
    }
    match cluster.entry(id).await {
        Ok(Some((entry, true))) if entry.hash == hash => None,
        Ok(Some(_)) => Some(format!("{id} is not the entry whose hash stands in the store")),
        Ok(None) => Some(format!("{id} is missing, and its hash stands in the store")),
        Err(error) => Some(error.to_string()),
    }
}

async fn find(cluster: &Cluster, id: &str) -> Result<(Entry, bool), ApiError> {
    let entry = cluster.entry(id).await?;
    entry.ok_or_else(|| {
        let text = format!("the journal holds no entry {id}");
        ApiError::new(Code::UnknownName, text).next("`everhold journal` names the newest entries")
    })
}

pub async fn entry(State(api): State<Shared>, Name(id): Name) -> Answer {
    let (entry, intact) = find(&api.cluster, &id).await?;
    Ok(Json(json!({ "intact": intact, "entry": entry })))
}

pub async fn explain(State(api): State<Shared>, Name(id): Name) -> Answer {
    let (entry, intact) = find(&api.cluster, &id).await?;
    Ok(Json(explain::explain(&entry, intact)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DsnQuery {
    #[serde(default)]
    read: bool,
}

pub async fn dsn(
    State(api): State<Shared>,
    Name(name): Name,
    Params(query): Params<DsnQuery>,
) -> Answer {
    known(&api.cluster, &name)?;
    let spec = api.cluster.spec();
    let not_sql = || ApiError::new(Code::Refused, format!("{name} is no PostgreSQL service"));
    let service = spec.postgres(&name).ok_or_else(not_sql)?;
    let role = if query.read { Role::Standby } else { Role::Primary };
    let passfile = dsn::passfile(&api.cluster.layout, &name).display().to_string();
    let ca = api.cluster.layout.pki().join("ca.pem").display().to_string();
    let url = dsn::url(&spec, &name, service, role, Some(&passfile), &ca).ok_or_else(|| {
        let wanted = if query.read { "standby" } else { "primary" };
        ApiError::new(Code::Refused, format!("no listener leads to {name} with role {wanted}"))
            .next("declare one under [listener] and `everhold apply`")
    })?;
    let hosts = dsn::addresses(&spec, &name, role);
    let hosts: Vec<Value> =
        hosts.iter().map(|(host, port)| json!({ "host": host, "port": port })).collect();
    Ok(Json(json!({
        "dsn": url, "hosts": hosts, "passfile": passfile, "user": service.owner,
        "database": service.database,
    })))
}

pub async fn faults(State(api): State<Shared>) -> Json<Value> {
    let active = api.faults.as_ref().map(|faults| faults.active()).unwrap_or_default();
    Json(json!({ "active": active.iter().map(super::acts::frozen).collect::<Vec<_>>() }))
}

/// An error that names the services there are, unless this is one.
pub fn known(cluster: &Cluster, service: &str) -> Result<(), ApiError> {
    let spec = cluster.spec();
    if spec.services.contains_key(service) {
        return Ok(());
    }
    let names: Vec<&str> = spec.services.keys().map(String::as_str).collect();
    let text = format!("no service is named {service}");
    Err(ApiError::new(Code::UnknownName, text).next(format!("there is: {}", names.join(", "))))
}

/// The same for a node, of a service if one is named.
pub fn known_node(cluster: &Cluster, service: Option<&str>, node: &str) -> Result<(), ApiError> {
    let spec = cluster.spec();
    let names: Vec<&str> = match service.and_then(|name| spec.services.get(name)) {
        Some(service) => service.nodes(),
        None => spec.nodes.keys().map(String::as_str).collect(),
    };
    if names.contains(&node) {
        return Ok(());
    }
    let of = service.map(|name| format!(" of {name}")).unwrap_or_default();
    let text = format!("no node{of} is named {node}");
    Err(ApiError::new(Code::UnknownName, text).next(format!("there is: {}", names.join(", "))))
}
