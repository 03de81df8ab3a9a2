//! Acts that go on after their answer, carried out by the coordinator: drained nodes, nodes that
//! leave, rollouts.

use super::input::{Body, Name, Who};
use super::look::{known, known_node};
use super::{ApiError, Code, Shared};
use crate::cluster::Cluster;
use crate::{clock, nodes, rollout};
use axum::Json;
use axum::extract::State;
use everhold_core::rollout::{Rollout, State as Is};
use everhold_core::spec::Duty;
use serde::Deserialize;
use serde_json::{Value, json};

type Answer = Result<Json<Value>, ApiError>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DutyBody {
    duty: Duty,
}

/// Says what is expected of a node from now on. `status` shows how far it is.
pub async fn duty(
    State(api): State<Shared>,
    Name(node): Name,
    Who(who): Who,
    Body(body): Body<DutyBody>,
) -> Answer {
    let cluster = &api.cluster;
    cluster.read_again().await?;
    known_node(cluster, None, &node)?;
    let (mut spec, rev) = cluster.spec_and_rev();
    if let Some(why) = nodes::refusal(&spec, &node, body.duty) {
        return Err(ApiError::new(Code::Refused, format!("{node} is needed: {why}")));
    }
    let journal = cluster.note("", &who, &nodes::act(&node, body.duty)).await;
    spec.set_duty(&node, body.duty);
    let revision = cluster.apply(&spec, rev).await?;
    Ok(Json(json!({
        "node": node, "duty": body.duty, "revision": revision, "journal": journal,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutBody {
    service: Option<String>,
}

/// Begins a rollout of a service, or of Everhold itself.
pub async fn roll_out(
    State(api): State<Shared>,
    Who(who): Who,
    Body(body): Body<RolloutBody>,
) -> Answer {
    let cluster = &api.cluster;
    if let Some(service) = &body.service {
        known(cluster, service)?;
    }
    cluster.read_again().await?;
    let word = cluster.word();
    if word.rollout.as_ref().is_some_and(|(rollout, _)| rollout.state == Is::Running) {
        let error = ApiError::new(Code::Refused, "a rollout runs already");
        return Err(error.next("wait for it, or `everhold rollout --stop`"));
    }
    let concerned = |name: &&String| body.service.as_ref().is_none_or(|it| it == *name);
    let (spec, reports) = (cluster.spec(), cluster.reports());
    let services: Vec<&String> = spec.databases().map(|(name, _)| name).filter(concerned).collect();
    if let Some(name) = services.iter().find(|name| word.maintenance.contains_key(**name)) {
        let error = ApiError::new(Code::Refused, format!("{name} is in maintenance"));
        return Err(error.next(format!("`everhold maintenance {name} off`")));
    }
    let service = body.service.as_deref();
    let nodes = rollout::look(service, &spec, &reports, &word, clock::now().0);
    let nodes = nodes.unwrap_or_default();
    // What nobody is served by has nothing to lose, and may be what is to be mended.
    let mut others = nodes.iter().filter(|(_, it)| !it.broken);
    if let Some((name, unwell)) = others.find_map(|(n, it)| Some((n, it.unwell.as_ref()?))) {
        let text = format!("it would begin with a doubt: {name}: {unwell}");
        return Err(ApiError::new(Code::Refused, text).next("wait until all is well"));
    }
    let what = match service {
        Some(service) => format!("rollout of {service}"),
        None => "rollout of Everhold".to_string(),
    };
    let epochs = services
        .iter()
        .filter_map(|name| Some(((*name).clone(), word.terms.get(*name).map(|term| term.epoch)?)));
    let begun = Rollout {
        service: body.service.clone(),
        by: who.clone(),
        at: clock::wall(),
        before: nodes.iter().map(|(name, node)| (name.clone(), node.pid)).collect(),
        epochs: epochs.collect(),
        doing: Default::default(),
        broken: nodes.iter().filter(|(_, it)| it.broken).map(|(name, _)| name.clone()).collect(),
        state: Is::Running,
        journal: cluster.note(service.unwrap_or_default(), &who, &what).await,
    };
    if !rollout::begin(cluster, &begun).await? {
        return Err(ApiError::new(Code::Refused, "another rollout began meanwhile"));
    }
    Ok(Json(json!({ "rollout": begun })))
}

/// Stops the rollout that runs: what is done stays done, nothing more is begun.
pub async fn stop_rollout(State(api): State<Shared>, Who(who): Who) -> Answer {
    let cluster = &api.cluster;
    cluster.read_again().await?;
    let Some(running) = running(cluster) else {
        return Err(ApiError::new(Code::Refused, "no rollout runs"));
    };
    cluster.note("", &who, "stop the rollout").await;
    let state = Is::Stopped { why: format!("{who} stopped it") };
    let stopped = Rollout { state, ..running };
    if !rollout::begin(cluster, &stopped).await? {
        return Err(ApiError::new(Code::Refused, "it went on meanwhile; try again"));
    }
    Ok(Json(json!({ "rollout": stopped })))
}

fn running(cluster: &Cluster) -> Option<Rollout> {
    let (rollout, _) = cluster.word().rollout?;
    (rollout.state == Is::Running).then_some(rollout)
}
