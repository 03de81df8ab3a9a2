//! What the API does: each act is checked, journaled, and answered when its outcome is known.

use super::input::{Body, Name, Params, Text, Who};
use super::look::{known, known_node};
use super::{Api, ApiError, Code, Shared};
use crate::agent::{self, Ask};
use crate::apply::refused;
use crate::cluster::{Cluster, ClusterError};
use crate::fault::{FREEZE, FREEZE_MAX, FaultError, Frozen, Injector};
use crate::machine::join::InviteError;
use crate::{dsn, force, spec, status};
use axum::Json;
use axum::extract::State;
use everhold_core::spec::diff;
use everhold_core::status::State as InstanceState;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A leader that has much to write out takes a while to stop.
const SWITCHED_WITHIN: Duration = Duration::from_secs(25);
/// The old leader's lease (5 s), then a campaign.
const FORCED_WITHIN: Duration = Duration::from_secs(35);
/// Time to go to the other machine; a token that was left lying about is worth nothing.
const TOKEN_LASTS: Duration = Duration::from_secs(3_600);
/// How a refusal ends that is over in a moment; so long it is asked again, so often.
const MOMENTARY: &str = "; try again";
const MOMENT: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Between two looks at who serves.
const LOOK: Duration = Duration::from_millis(10);
/// How it came about is found out after the fact: from the journal of the campaigner.
const RECORDED_WITHIN: Duration = Duration::from_secs(1);

type Answer = Result<Json<Value>, ApiError>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyQuery {
    #[serde(default)]
    dry_run: bool,
}

pub async fn apply(
    State(api): State<Shared>,
    Params(query): Params<ApplyQuery>,
    Who(who): Who,
    Text(text): Text,
) -> Answer {
    let cluster = &api.cluster;
    let mut new =
        spec::load_with(&text, "everhold.toml", cluster.store_ports).map_err(|faults| {
            let text = format!("the spec has {} faults", faults.len());
            let faults = serde_json::to_value(faults).unwrap_or_default();
            ApiError::new(Code::SpecFaults, text).with("faults", faults)
        })?;
    cluster.read_again().await?;
    let (old, rev) = cluster.spec_and_rev();
    new.keep(&old);
    // Where nodes are drained there are fewer ports than the file says.
    if let Some((service, count)) = new.unplaced() {
        let text =
            format!("{service} has ports for {count} instances only on the nodes that are active");
        let next = "declare fewer instances, or `everhold node resume` one of its nodes";
        return Err(ApiError::new(Code::Refused, text).next(next));
    }
    if let Some((service, node)) = new.portless() {
        let text = format!("instances that run on {node} have all its ports; {service} needs one");
        let next = format!("give {node} a larger range, or run fewer instances there");
        return Err(ApiError::new(Code::Refused, text).next(next));
    }
    let changes = diff(&old, &new);
    let told = serde_json::to_value(&changes).unwrap_or_default();
    let refused = refused(&changes);
    if query.dry_run || changes.is_empty() {
        let possible = refused.is_empty();
        return Ok(Json(json!({ "applied": false, "possible": possible, "changes": told })));
    }
    if !refused.is_empty() {
        return Err(ApiError::new(Code::SpecChange, refused.join("; ")).with("changes", told));
    }
    let paths: Vec<&str> = changes.iter().map(|change| change.path.as_str()).collect();
    let journal = cluster.note("", &who, &format!("apply: {}", paths.join(", "))).await;
    let revision = cluster.apply(&new, rev).await?;
    if let Err(error) = dsn::write_passfiles(&cluster.layout, &new) {
        tracing::warn!(error = format!("{error:#}"), "the password files are as before");
    }
    Ok(Json(json!({
        "applied": true, "possible": true, "revision": revision, "changes": told,
        "journal": journal,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBody {
    node: String,
    #[serde(default)]
    replace: bool,
}

/// A token for one machine to join as a node.
pub async fn token(
    State(api): State<Shared>,
    Who(who): Who,
    Body(body): Body<TokenBody>,
) -> Answer {
    let cluster = &api.cluster;
    let TokenBody { node, replace } = body;
    known_node(cluster, None, &node)?;
    let what = format!("token for {node}{}", if replace { ", to replace its machine" } else { "" });
    let own = cluster.here.as_ref().and_then(|here| cluster.spec().nodes.get(here).cloned());
    let Some(own) = own else {
        let text = "this is one machine with all nodes on it, which others can't join";
        return Err(ApiError::new(Code::Refused, text).next("begin with `everhold init`"));
    };
    let at = agent::host_and_port(&own.address, own.join_port());
    let token = cluster.invite(&node, TOKEN_LASTS, replace).await.map_err(|error| {
        let code = match &error {
            InviteError::HasJoined { .. } => Code::Refused,
            InviteError::Store(_) => Code::OutOfReach,
            InviteError::Local(_) => Code::Internal,
        };
        let next = format!("`everhold token {node} --replace`, if its machine is gone for good");
        match code {
            Code::Refused => ApiError::new(code, error.to_string()).next(next),
            _ => ApiError::new(code, error.to_string()),
        }
    })?;
    let journal = cluster.note("", &who, &what).await;
    let expires_in_ms = u64::try_from(TOKEN_LASTS.as_millis()).unwrap_or(u64::MAX);
    Ok(Json(json!({
        "node": node, "token": format!("{token}@{at}"), "expires_in_ms": expires_in_ms,
        "journal": journal,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoteBody {
    text: String,
}

/// Longer is no note.
const NOTE_BYTES_MAX: usize = 4_096;

/// Something for the journal: what a person or a script did about the service.
pub async fn note(
    State(api): State<Shared>,
    Name(service): Name,
    Who(who): Who,
    Body(body): Body<NoteBody>,
) -> Answer {
    known(&api.cluster, &service)?;
    if body.text.is_empty() || body.text.len() > NOTE_BYTES_MAX {
        let text = format!("a note has 1 to {NOTE_BYTES_MAX} bytes");
        return Err(ApiError::new(Code::Malformed, text));
    }
    let journal = api.cluster.note(&service, &who, &body.text).await;
    Ok(Json(json!({ "service": service, "journal": journal })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchoverBody {
    to: Option<String>,
}

pub async fn switchover(
    State(api): State<Shared>,
    Name(service): Name,
    Who(who): Who,
    Body(body): Body<SwitchoverBody>,
) -> Answer {
    let cluster = &api.cluster;
    known(cluster, &service)?;
    let (epoch, leader) = cluster.serving(&service).ok_or_else(|| {
        ApiError::new(Code::Refused, format!("nobody leads {service}, so nobody can hand over"))
    })?;
    if let Some(to) = &body.to {
        known_node(cluster, Some(&service), to)?;
        if *to == leader {
            let text = format!("{to} leads {service} already");
            return Err(ApiError::new(Code::Refused, text).next("nothing is to be done"));
        }
    }
    let ask = Ask::Switchover { service: service.clone(), to: body.to.clone(), who };
    let moved = carry_out(cluster, &leader, &ask, epoch, SWITCHED_WITHIN).await?;
    if body.to.is_some_and(|to| to != moved.leader) {
        let text = format!("{} leads epoch {} instead", moved.leader, moved.epoch);
        return Err(ApiError::new(Code::Refused, text));
    }
    Ok(Json(outcome(cluster, &service, &leader, moved).await))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverBody {
    to: Option<String>,
    #[serde(default)]
    force: bool,
    token: Option<String>,
}

/// A failover that may lose acknowledged commits, asked for twice: the first answer names what.
pub async fn failover(
    State(api): State<Shared>,
    Name(service): Name,
    Who(who): Who,
    Body(body): Body<FailoverBody>,
) -> Answer {
    let cluster = &api.cluster;
    known(cluster, &service)?;
    if let Some(to) = &body.to {
        known_node(cluster, Some(&service), to)?;
    }
    if !body.force {
        let text = "a failover that loses nothing happens by itself";
        return Err(ApiError::new(Code::Refused, text)
            .next("use switchover while the leader runs, or force if a loss is accepted"));
    }
    cluster.read_again().await?;
    let (word, reports) = (cluster.word(), cluster.reports());
    let term = word.terms.get(&service).ok_or_else(|| {
        ApiError::new(Code::Refused, format!("{service} has no term yet: it never had a leader"))
    })?;
    let heard = force::heard(&reports, &service, |node| cluster.hears(node));
    let loss = force::loss(term, &heard);
    if body.token.as_deref() != Some(&loss.token) {
        let first = match body.token {
            Some(_) => "the token is not for how things stand now: ",
            None => "",
        };
        return Err(ApiError::new(Code::NeedsToken, format!("{first}{}", loss.text))
            .with("token", loss.token)
            .with("epoch", term.epoch)
            .with("uncovered", loss.uncovered));
    }
    let through = force::campaigner(&heard, body.to.as_deref()).ok_or_else(|| {
        let text = match &body.to {
            Some(to) => format!("{to} is not there, or its data is not whole"),
            None => format!("no node of {service} with whole data is heard"),
        };
        ApiError::new(Code::OutOfReach, text)
    })?;
    let old = term.leader.node.clone();
    cluster.note(&service, &who, &format!("force, accepting: {}", loss.text)).await;
    let ask = Ask::Force { service: service.clone(), to: body.to.clone(), who };
    let moved = carry_out(cluster, &through, &ask, term.epoch, FORCED_WITHIN).await?;
    Ok(Json(outcome(cluster, &service, &old, moved).await))
}

struct Moved {
    epoch: u64,
    leader: String,
    journal: Option<String>,
}

/// Asks an agent for a leader of a higher epoch, and waits until one serves. The agent's own yes
/// is not waited for: what counts is who serves.
async fn carry_out(
    cluster: &Cluster,
    through: &str,
    ask: &Ask,
    before: u64,
    within: Duration,
) -> Result<Moved, ApiError> {
    let service = match ask {
        Ask::Switchover { service, .. } | Ask::Force { service, .. } => service,
        _ => return Err(ApiError::new(Code::Internal, "this is no change of leader")),
    };
    let until = Instant::now() + within;
    let soon = Instant::now() + MOMENT;
    let mut asking = std::pin::pin!(cluster.ask(through, ask));
    let mut journal = None;
    let mut answered = false;
    loop {
        if let Some((epoch, leader)) = cluster.serving(service).filter(|(e, _)| *e > before) {
            return Ok(Moved { epoch, leader, journal });
        }
        if Instant::now() > until {
            let text = format!("{service} has no new leader after {} s", within.as_secs());
            return Err(ApiError::new(Code::NotInTime, text));
        }
        tokio::select! {
            answer = &mut asking, if !answered => {
                answered = true;
                match answer {
                    Ok(value) => journal = value["journal"].as_str().map(str::to_string),
                    // A change of the set ends in a moment: nobody has to ask again for that.
                    Err(ClusterError::Refused { why, .. })
                        if why.ends_with(MOMENTARY) && Instant::now() < soon =>
                    {
                        tokio::time::sleep(ASK_AGAIN).await;
                        answered = false;
                        asking.set(cluster.ask(through, ask));
                    }
                    // It may be carried out all the same.
                    Err(ClusterError::NoAnswer { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn outcome(cluster: &Cluster, service: &str, from: &str, moved: Moved) -> Value {
    let until = Instant::now() + RECORDED_WITHIN;
    let mut last = None;
    while last.is_none() && Instant::now() < until {
        let word = cluster.word();
        let known = word.last_failover.get(service).filter(|it| it.epoch == moved.epoch);
        last = known.cloned();
        tokio::time::sleep(LOOK).await;
    }
    json!({
        "service": service, "epoch": moved.epoch, "leader": moved.leader, "from": from,
        "outage_ms": last.as_ref().and_then(|last| last.outage_ms),
        "journal": last.and_then(|last| last.journal).or(moved.journal),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceBody {
    on: bool,
}

pub async fn maintenance(
    State(api): State<Shared>,
    Name(service): Name,
    Who(who): Who,
    Body(body): Body<MaintenanceBody>,
) -> Answer {
    known(&api.cluster, &service)?;
    if api.cluster.spec().postgres(&service).is_none() {
        let text = format!("{service} is no PostgreSQL service: nothing is decided for it");
        return Err(ApiError::new(Code::Refused, text).next(format!(
            "`everhold rollout --stop` ends a rollout, `everhold scale {service} N` says how many run"
        )));
    }
    let what = if body.on { "maintenance on" } else { "maintenance off" };
    let journal = api.cluster.note(&service, &who, what).await;
    api.cluster.maintain(&service, body.on).await?;
    Ok(Json(json!({ "service": service, "maintenance": body.on, "journal": journal })))
}

/// The faults there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    KillPostgres,
    KillNode,
    FreezeNode,
    Heal,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultBody {
    kind: FaultKind,
    service: Option<String>,
    node: Option<String>,
    /// For a freeze: how long, as "20s".
    #[serde(rename = "for")]
    lasts: Option<String>,
    #[serde(default)]
    force: bool,
}

pub async fn fault(
    State(api): State<Shared>,
    Who(who): Who,
    Body(body): Body<FaultBody>,
) -> Answer {
    let faults = api.faults.clone().ok_or_else(|| {
        let text = "only the supervisor of one machine does faults, and this is an agent";
        ApiError::new(Code::Refused, text).next("use `everhold up` for rehearsals")
    })?;
    match body.kind {
        FaultKind::KillPostgres => kill_postgres(&api, &faults, &who, &body).await,
        FaultKind::KillNode => {
            let node = the_node(&api.cluster, &body)?;
            survivable(&api.cluster, None, &node, body.force)?;
            let journal = api.cluster.note("", &who, &format!("fault: kill node {node}")).await;
            let ended = faults.kill_node(&node).await.map_err(broken)?;
            Ok(Json(json!({
                "kind": "kill-node", "node": node, "processes": ended, "journal": journal,
            })))
        }
        FaultKind::FreezeNode => {
            let node = the_node(&api.cluster, &body)?;
            let lasts = lasts(body.lasts.as_deref())?;
            survivable(&api.cluster, None, &node, body.force)?;
            let what = format!("fault: freeze node {node} for {} ms", lasts.as_millis());
            let journal = api.cluster.note("", &who, &what).await;
            let done = faults.freeze_node(&node, lasts).await.map_err(broken)?;
            let mut answer = frozen(&done);
            answer["journal"] = json!(journal);
            Ok(Json(answer))
        }
        FaultKind::Heal => {
            let healed = faults.heal().await;
            let names: Vec<&str> = healed.iter().map(|frozen| frozen.node.as_str()).collect();
            let what = match names.is_empty() {
                true => "heal: nothing was broken".to_string(),
                false => format!("heal: {}", names.join(", ")),
            };
            let journal = api.cluster.note("", &who, &what).await;
            Ok(Json(json!({ "kind": "heal", "healed": names, "journal": journal })))
        }
    }
}

/// A fault that lasts, as it is told.
pub fn frozen(frozen: &Frozen) -> Value {
    json!({
        "kind": "freeze-node", "node": frozen.node, "at": frozen.at, "for_ms": frozen.for_ms,
        "processes": frozen.targets.len(),
    })
}

async fn kill_postgres(api: &Api, faults: &Injector, who: &str, body: &FaultBody) -> Answer {
    let cluster = &api.cluster;
    let service = body.service.as_deref().ok_or_else(|| {
        ApiError::new(Code::Malformed, "kill-postgres needs the name of a service")
    })?;
    known(cluster, service)?;
    let node = match &body.node {
        Some(node) => {
            known_node(cluster, Some(service), node)?;
            node.clone()
        }
        None => cluster.serving(service).map(|(_, node)| node).ok_or_else(|| {
            ApiError::new(Code::Refused, format!("nobody leads {service}"))
                .next("name the node whose PostgreSQL is to be killed")
        })?,
    };
    survivable(cluster, Some(service), &node, body.force)?;
    let reports = cluster.reports();
    let told = reports.get(&node).and_then(|(report, _)| report.services.get(service));
    let pid = told.and_then(|status| status.pid).ok_or_else(|| {
        ApiError::new(Code::Refused, format!("no PostgreSQL of {service} runs on {node}"))
    })?;
    let what = format!("fault: kill the PostgreSQL of {node}, pid {pid}");
    let journal = cluster.note(service, who, &what).await;
    faults.kill_postgres(&node, pid).await.map_err(broken)?;
    Ok(Json(json!({
        "kind": "kill-postgres", "service": service, "node": node, "pid": pid,
        "journal": journal,
    })))
}

fn broken(error: FaultError) -> ApiError {
    let code = match error {
        FaultError::Already { .. } | FaultError::NothingRuns { .. } | FaultError::Gone { .. } => {
            Code::Refused
        }
        FaultError::Io { .. } => Code::Internal,
    };
    ApiError::new(code, error.to_string())
}

fn the_node(cluster: &Cluster, body: &FaultBody) -> Result<String, ApiError> {
    let node = body.node.as_deref();
    let node = node.ok_or_else(|| ApiError::new(Code::Malformed, "this fault needs a node"))?;
    known_node(cluster, None, node)?;
    Ok(node.to_string())
}

fn lasts(text: Option<&str>) -> Result<Duration, ApiError> {
    let Some(text) = text else { return Ok(FREEZE) };
    let wrong = |why: String| ApiError::new(Code::Malformed, format!("`for`: {why}"));
    let lasts = Duration::from_millis(spec::duration_ms(text).map_err(wrong)?);
    if lasts.is_zero() || lasts > FREEZE_MAX {
        return Err(wrong(format!("it can be 1ms to {}s", FREEZE_MAX.as_secs())));
    }
    Ok(lasts)
}

/// Refuses a fault that would take more nodes of a service than it can spare.
fn survivable(
    cluster: &Cluster,
    service: Option<&str>,
    node: &str,
    force: bool,
) -> Result<(), ApiError> {
    if force {
        return Ok(());
    }
    let (spec, reports) = (cluster.spec(), cluster.reports());
    for (name, declared) in spec.databases() {
        let nodes = &declared.nodes;
        if service.is_some_and(|wanted| wanted != name) || !nodes.iter().any(|n| n == node) {
            continue;
        }
        let well = |other: &String| {
            let told = reports.get(other).and_then(|(report, _)| report.services.get(name));
            let runs = told.is_some_and(|status| {
                matches!(status.state, InstanceState::Open | InstanceState::Streaming)
            });
            runs && cluster.hears(other)
        };
        let others = nodes.iter().filter(|other| *other != node);
        let unwell: Vec<String> = others
            .filter(|other| !well(other))
            .map(|other| {
                let told = reports.get(other).filter(|_| cluster.hears(other));
                let told = told.and_then(|(report, _)| report.services.get(name));
                let state = told.map_or("not heard".to_string(), |s| status::word(&s.state));
                format!("{other} ({state})")
            })
            .collect();
        // A minority may be gone; of two nodes one, since the other serves on or waits for it.
        let spare = (nodes.len().saturating_sub(1) / 2).max(1);
        if !unwell.is_empty() && unwell.len() + 1 > spare {
            let text = format!("{name} would lose {node} while it lacks {}", unwell.join(", "));
            return Err(ApiError::new(Code::NeedsForce, text));
        }
    }
    Ok(())
}
