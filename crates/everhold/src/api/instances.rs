//! Instances of HTTP services: where they are, what they say, new starts.

use super::input::{Body, Name, Params, Who};
use super::look::status_of;
use super::{ApiError, Code, Shared};
use crate::agent::{Ask, host_and_port};
use crate::cluster::Cluster;
use crate::instances::{self, Line};
use axum::Json;
use axum::RequestPartsExt;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use everhold_core::spec::HttpSpec;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Lines when nothing is said, and at most.
const LINES: usize = 100;
const LINES_MAX: usize = 10_000;

type Answer = Result<Json<Value>, ApiError>;

/// The service and the instance in the path.
pub struct Names(String, String);

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let read = parts.extract::<Path<(String, String)>>().await;
        let read = read.map(|Path((service, instance))| Names(service, instance));
        read.map_err(|error| ApiError::new(Code::Malformed, error.body_text()))
    }
}

/// The HTTP service of that name.
fn http(cluster: &Cluster, service: &str) -> Result<HttpSpec, ApiError> {
    super::look::known(cluster, service)?;
    let spec = cluster.spec();
    let none = || ApiError::new(Code::Refused, format!("{service} is no HTTP service"));
    spec.http(service).cloned().ok_or_else(none)
}

/// The registry: every instance with its address and health.
pub async fn list(State(api): State<Shared>, Name(service): Name) -> Answer {
    super::look::known(&api.cluster, &service)?;
    let (status, spec) = (status_of(&api.cluster), api.cluster.spec());
    let of = status["services"][&service]["instances"].as_object().cloned().unwrap_or_default();
    let shown = of.into_iter().map(|(id, instance)| {
        let node = instance["node"].as_str().and_then(|name| spec.nodes.get(name));
        let port = instance["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        let address = node.zip(port).map(|(node, port)| host_and_port(&node.address, port));
        let address = address.map_or(instance["address"].clone(), Value::from);
        json!({
            "id": id, "address": address, "port": port, "node": instance["node"],
            "zone": node.and_then(|node| node.zone.clone()),
            "region": node.and_then(|node| node.region.clone()),
            "role": instance["role"], "state": instance["state"], "health": instance["health"],
            "in_route": instance["in_route"], "drained": instance.get("drain").is_some(),
        })
    });
    Ok(Json(json!({ "service": service, "instances": shown.collect::<Vec<_>>() })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsQuery {
    instance: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

/// What instances said, from all their nodes, in the order of time.
pub async fn logs(
    State(api): State<Shared>,
    Name(service): Name,
    Params(query): Params<LogsQuery>,
) -> Answer {
    let cluster = &api.cluster;
    let limit = query.limit.unwrap_or(LINES);
    if !(1..=LINES_MAX).contains(&limit) {
        let text = format!("limit is {limit}; it can be 1 to {LINES_MAX}");
        return Err(ApiError::new(Code::Malformed, text));
    }
    let http = http(cluster, &service)?;
    // Also from nodes that have none any more: what ended there left its last words.
    let mut asked = JoinSet::new();
    for node in cluster.nodes() {
        let ask = Ask::Logs {
            service: service.clone(),
            instance: query.instance.clone(),
            limit,
            after: query.after.clone(),
        };
        let cluster = cluster.clone();
        asked.spawn(async move { (cluster.ask(&node, &ask).await, node) });
    }
    let (mut lines, mut unheard) = (Vec::new(), Vec::new());
    while let Some(Ok((answer, node))) = asked.join_next().await {
        match answer.map(serde_json::from_value::<Vec<Line>>) {
            Ok(Ok(told)) => {
                // At once: all that nodes may answer is much.
                lines.extend(told);
                lines = instances::merged(lines, limit);
            }
            Ok(Err(error)) => unheard.push(json!({ "node": node, "why": error.to_string() })),
            Err(error) => unheard.push(json!({ "node": node, "why": error.to_string() })),
        }
    }
    if let Some(instance) = query.instance.filter(|_| lines.is_empty() && unheard.is_empty()) {
        // One that is gone has its last words still.
        placed(&http, &service, &instance)?;
    }
    // In one order, whoever was first: whoever follows sees when it changes.
    unheard.sort_by_key(Value::to_string);
    Ok(Json(json!({ "service": service, "lines": lines, "unheard": unheard })))
}

/// Where an instance is, or that there is none of that name.
fn placed(http: &HttpSpec, service: &str, instance: &str) -> Result<String, ApiError> {
    let found = http.placed().find(|(id, _)| *id == instance);
    let ids: Vec<&str> = http.placed().map(|(id, _)| id.as_str()).collect();
    let none = || {
        let text = format!("{service} has no instance {instance} that Everhold runs");
        ApiError::new(Code::UnknownName, text).next(format!("there are: {}", ids.join(", ")))
    };
    found.map(|(_, placed)| placed.node.clone()).ok_or_else(none)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleBody {
    instances: u32,
}

/// More or fewer instances: a revision of the spec.
pub async fn scale(
    State(api): State<Shared>,
    Name(service): Name,
    Who(who): Who,
    Body(body): Body<ScaleBody>,
) -> Answer {
    let cluster = &api.cluster;
    cluster.read_again().await?;
    let was = http(cluster, &service)?.run().map(|run| run.instances);
    let (spec, rev) = cluster.spec_and_rev();
    let scaled = spec.scaled(&service, body.instances);
    let spec = scaled.map_err(|why| ApiError::new(Code::Refused, why))?;
    let what = format!("scale to {}", body.instances);
    let journal = cluster.note(&service, &who, &what).await;
    let revision = cluster.apply(&spec, rev).await?;
    Ok(Json(json!({
        "service": service, "instances": body.instances, "was": was, "revision": revision,
        "journal": journal,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartBody {}

/// Starts one instance anew, by what the spec says now.
pub async fn restart(
    State(api): State<Shared>,
    Names(service, instance): Names,
    Who(who): Who,
    Body(RestartBody {}): Body<RestartBody>,
) -> Answer {
    let cluster = &api.cluster;
    let node = placed(&http(cluster, &service)?, &service, &instance)?;
    let pid = cluster
        .reports()
        .get(&node)
        .and_then(|(report, _)| report.instances.get(&service)?.get(&instance)?.pid);
    let ask = Ask::RestartInstance { service, instance: instance.clone(), pid, who };
    let told = cluster.ask(&node, &ask).await?;
    Ok(Json(json!({ "instance": instance, "node": node, "pid": pid, "journal": told["journal"] })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainBody {
    drained: bool,
    /// Also if nobody is left.
    #[serde(default)]
    force: bool,
}

/// Takes one instance out of use, or back into it. `status` shows how far it is.
pub async fn drain(
    State(api): State<Shared>,
    Names(service, instance): Names,
    Who(who): Who,
    Body(body): Body<DrainBody>,
) -> Answer {
    let cluster = &api.cluster;
    cluster.read_again().await?;
    // What is judged now is what is changed.
    let (spec, rev) = cluster.spec_and_rev();
    let http = http(cluster, &service)?;
    if !http.has(&instance) {
        let text = format!("{service} has no instance {instance}");
        return Err(ApiError::new(Code::UnknownName, text));
    }
    let status = status_of(cluster);
    let others = status["services"][&service]["instances"].as_object().into_iter().flatten();
    let serves =
        |it: &Value| it.get("drain").is_none() && it["health"] == "up" && it["in_route"] != false;
    let left = others.filter(|(id, it)| **id != instance && serves(it)).count();
    if body.drained && left == 0 && !body.force {
        let text = format!("without {instance} nobody would serve {service} now");
        let error = ApiError::new(Code::Refused, text);
        return Err(error.next("wait until another instance is well, or add `--force`"));
    }
    let spec = spec.with_drained(&service, &instance, body.drained);
    let what = match body.drained {
        true => format!("drain {instance}"),
        false => format!("use {instance} again"),
    };
    let journal = cluster.note(&service, &who, &what).await;
    let revision = cluster.apply(&spec, rev).await?;
    Ok(Json(json!({
        "service": service, "instance": instance, "drained": body.drained, "left": left,
        "revision": revision, "journal": journal,
    })))
}
