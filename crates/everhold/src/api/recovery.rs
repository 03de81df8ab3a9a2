//! A service put back to how it was: asked for, twice where something is given up.

use super::input::{Body, Name, Who};
use super::look::{known, known_node};
use super::{ApiError, Code, Shared};
use crate::agent::Ask;
use crate::backup::prepare::Point;
use crate::backup::restore::Until;
use crate::backup::tend;
use crate::clock;
use axum::Json;
use axum::extract::State;
use everhold_core::backup::schedule;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoverBody {
    /// In RFC 3339; one of these, or none for the latest there is.
    time: Option<String>,
    lsn: Option<String>,
    name: Option<String>,
    backup: Option<String>,
    node: Option<String>,
    /// Also if not every node that may acknowledge can be reached.
    #[serde(default)]
    force: bool,
    token: Option<String>,
}

/// Begins it on a node, which leads afterwards. `status` shows how far it is.
pub async fn begin(
    State(api): State<Shared>,
    Name(service): Name,
    Who(who): Who,
    Body(body): Body<RecoverBody>,
) -> Result<Json<Value>, ApiError> {
    let cluster = &api.cluster;
    known(cluster, &service)?;
    let spec = cluster.spec();
    if spec.postgres(&service).is_none_or(|it| it.backup.is_none()) {
        let error = ApiError::new(Code::Refused, format!("no backups of {service} are declared"));
        return Err(error.next(format!("add [service.{service}.backup] and `everhold apply`")));
    }
    if let Some(node) = &body.node {
        known_node(cluster, Some(&service), node)?;
    }
    let until = Until::parse(body.time.as_deref(), body.lsn.as_deref(), body.name.as_deref());
    let until = until.map_err(|why| {
        ApiError::new(Code::TargetUnknown, why).next("write it as `everhold recover --help` shows")
    })?;
    cluster.read_again().await?;
    let (word, reports) = (cluster.word(), cluster.reports());
    if let Some(term) = word.terms.get(&service) {
        let forced = if body.force { ":force" } else { "" };
        let token = format!("{}:{until}{forced}", term.epoch);
        if body.token.as_ref() != Some(&token) {
            let first = match body.token {
                Some(_) => "the token is not for how things stand now: ",
                None => "",
            };
            let unreached = match body.force {
                true => {
                    "; nodes that can't be reached may go on with what they have until they can"
                }
                false => "",
            };
            let text = format!(
                "{first}all that {service} acknowledged after the point `{until}` is given up; \
                 clients are sent away meanwhile, and every other node follows from there{unreached}"
            );
            let error = ApiError::new(Code::NeedsToken, text).with("token", token);
            return Err(error.with("epoch", term.epoch));
        }
    }
    let places = tend::places(&service, &spec, &reports, &word, clock::now().0);
    let first = spec.postgres(&service).and_then(|it| it.nodes.first().cloned());
    let chosen = schedule::choose(&places).map(str::to_string);
    let Some(node) = body.node.or(chosen).or(first) else {
        return Err(ApiError::new(Code::Refused, format!("{service} has no node")));
    };
    let point = Point { until, backup: body.backup, force: body.force };
    let ask = Ask::Recover { service: service.clone(), point, who };
    let answer = cluster.ask(&node, &ask).await?;
    Ok(Json(json!({ "service": service, "node": node, "journal": answer["journal"] })))
}
