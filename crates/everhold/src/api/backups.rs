//! Backups: asked for, and what there is.

use super::input::{Body, Name, Params, Who};
use super::look::known;
use super::{ApiError, Code, Shared};
use crate::agent::Ask;
use crate::backup::{self, MENDED, forget, proving, tend};
use crate::clock;
use axum::Json;
use axum::extract::State;
use everhold_core::backup::{Kind, Proving, schedule};
use everhold_core::spec::BackupSpec;
use everhold_repository::backup::{Info, proof_of};
use serde::Deserialize;
use serde_json::{Value, json};

type Answer = Result<Json<Value>, ApiError>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupBody {
    kind: Kind,
}

/// Begins a backup on the node that is best for it. `status` shows how far it is.
pub async fn begin(
    State(api): State<Shared>,
    Name(service): Name,
    Who(who): Who,
    Body(body): Body<BackupBody>,
) -> Answer {
    let cluster = &api.cluster;
    asked_for(&api, &service)?;
    let reports = cluster.reports();
    let places = tend::places(&service, &cluster.spec(), &reports, &cluster.word(), clock::now().0);
    if let Some(node) = tend::making(&reports, &service) {
        let error = ApiError::new(Code::Refused, format!("{node} makes a backup of {service}"));
        return Err(error.next("wait for it; `everhold status` shows how far it is"));
    }
    let Some(node) = schedule::choose(&places) else {
        if let Some(why) = tend::unsound(&service, &reports, &places) {
            return Err(ApiError::new(Code::Refused, why).next(MENDED));
        }
        let error = ApiError::new(Code::Refused, format!("no instance of {service} streams"));
        return Err(error.next("`everhold status` says what it waits for"));
    };
    let ask = Ask::BackUp { service: service.clone(), kind: body.kind, who };
    let answer = cluster.ask(node, &ask).await?;
    Ok(Json(json!({
        "service": service, "node": node, "kind": body.kind, "journal": answer["journal"],
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofBody {
    /// The newest one, if none is named.
    #[serde(default)]
    backup: Option<String>,
}

/// Begins to prove a backup on the node that is best for it. `status` shows how far it is.
pub async fn prove(
    State(api): State<Shared>,
    Name(service): Name,
    Who(who): Who,
    Body(body): Body<ProofBody>,
) -> Answer {
    let cluster = &api.cluster;
    asked_for(&api, &service)?;
    let reports = cluster.reports();
    let busy = |text: String| {
        let error = ApiError::new(Code::Refused, text);
        Err(error.next("wait for it; `everhold status` shows how far it is"))
    };
    if let Some(node) = tend::making(&reports, &service) {
        return busy(format!("{node} makes a backup of {service}"));
    }
    if let Some((node, id)) = proving::proving(&reports, &service) {
        return busy(format!("{node} proves backup {id}"));
    }
    let newest = || cluster.word().backups.get(&service).and_then(|it| it.newest.clone());
    let Some(id) = body.backup.or_else(newest) else {
        return Err(ApiError::new(Code::NoBackup, format!("no backup of {service} is known yet")));
    };
    let places = tend::places(&service, &cluster.spec(), &reports, &cluster.word(), clock::now().0);
    let Some(node) = schedule::choose(&places) else {
        let error = ApiError::new(Code::Refused, format!("no instance of {service} streams"));
        return Err(error.next("`everhold status` says what it waits for"));
    };
    let ask =
        Ask::ProveBackup { service: service.clone(), id: id.clone(), why: Proving::Asked, who };
    let answer = cluster.ask(node, &ask).await?;
    Ok(Json(json!({
        "service": service, "node": node, "backup": id, "journal": answer["journal"],
    })))
}

/// The backups of a service, the newest first, and the repositories that don't answer.
pub async fn list(State(api): State<Shared>, Name(service): Name) -> Answer {
    let (spec, backup) = (api.cluster.spec(), asked_for(&api, &service)?);
    let opened = api.cluster.opened.clone();
    let read = move || -> anyhow::Result<Value> {
        let repository = opened.open(&spec, &backup.repositories)?;
        let none = Default::default();
        let held = backup::held(&repository, &service, &mut Default::default(), &none)?;
        let shown = |it: &Info| backup::shown(it, proof_of(&held.proofs, &it.id));
        let absent = repository
            .absent()
            .iter()
            .map(|(name, error)| json!({ "repository": name, "error": error.to_string() }));
        Ok(json!({
            "service": service,
            "copies_wanted": backup.copies,
            "backups": held.infos.iter().rev().map(shown).collect::<Vec<_>>(),
            "absent": absent.collect::<Vec<_>>(),
        }))
    };
    let read = tokio::task::spawn_blocking(read).await;
    let read = read.map_err(|error| ApiError::new(Code::Internal, error.to_string()))?;
    read.map(Json).map_err(|error| ApiError::of_text(&format!("{error:#}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneParams {
    /// Ids, with commas between.
    #[serde(default)]
    drop: String,
}

/// What would be forgotten now, and why the rest stays.
pub async fn plan(
    State(api): State<Shared>,
    Name(service): Name,
    Params(params): Params<PruneParams>,
) -> Answer {
    let backup = asked_for(&api, &service)?;
    let drop = params.drop.split(',').filter(|id| !id.is_empty()).map(str::to_string).collect();
    let plan = forget::plan(&api.cluster, &service, drop).await;
    let plan = plan.map_err(|error| ApiError::of_text(&format!("{error:#}")))?;
    let mut shown = forget::shown(&plan, &backup);
    shown["service"] = json!(service);
    Ok(Json(shown))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneBody {
    #[serde(default)]
    drop: Vec<String>,
}

/// Begins to forget what nothing needs. `status` shows how far it is and how it ended.
pub async fn prune(
    State(api): State<Shared>,
    Name(service): Name,
    Who(who): Who,
    Body(body): Body<PruneBody>,
) -> Answer {
    asked_for(&api, &service)?;
    let Some(run) = forget::begin(&api.cluster, &service, body.drop, who).await else {
        let error =
            ApiError::new(Code::Refused, format!("backups of {service} are being forgotten"));
        return Err(error.next("wait for it; `everhold status --json` shows how far it is"));
    };
    Ok(Json(json!({ "service": service, "run": run })))
}

fn asked_for(api: &Shared, service: &str) -> Result<BackupSpec, ApiError> {
    known(&api.cluster, service)?;
    let spec = api.cluster.spec();
    spec.postgres(service).and_then(|it| it.backup.clone()).ok_or_else(|| {
        let error = ApiError::new(Code::Refused, format!("no backups of {service} are declared"));
        error.next(format!("add [service.{service}.backup] and `everhold apply`"))
    })
}
