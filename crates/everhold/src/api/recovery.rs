//! A service put back to how it was: asked for, twice where something is given up.

use super::input::{Body, Name, Who};
use super::look::{known, known_node};
use super::{ApiError, Code, Shared};
use crate::agent::Ask;
use crate::backup::prepare::Point;
use crate::backup::restore::{Aim, Until};
use crate::backup::tend;
use crate::clock;
use crate::cluster::Reports;
use crate::link::Report;
use axum::Json;
use axum::extract::State;
use everhold_core::backup::schedule;
use everhold_core::durable::Data;
use everhold_core::ids::Tli;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// A node that tells nothing for so long may be gone with its recovery.
const SILENT_MS: u64 = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoverBody {
    /// In RFC 3339; one of these, or none for the latest there is.
    time: Option<String>,
    lsn: Option<String>,
    name: Option<String>,
    /// The history ends with it; without it: the one in force.
    timeline: Option<Tli>,
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
    let aim = Aim { until, timeline: body.timeline, backup: body.backup };
    if let Some(node) = under_way(&service, &reports, clock::now().0) {
        let text = format!("a recovery of {service} is under way on {node}");
        return Err(ApiError::new(Code::Refused, text).next("wait for its end; `everhold status`"));
    }
    let epoch = word.terms.get(&service).map(|term| term.epoch);
    let held = holders(&reports, &service);
    if epoch.is_none() && !held.is_empty() && !body.force {
        let text = format!("the store has no term of {service}, and {held} holds data of it");
        let next = "`everhold store restore` brings the store back; `--force` gives that data up";
        return Err(ApiError::new(Code::Refused, text).next(next));
    }
    if epoch.is_some() || !held.is_empty() {
        let epoch = epoch.unwrap_or(0);
        let forced = if body.force { ":force" } else { "" };
        let token = format!("{epoch}:{aim}{forced}");
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
                "{first}all that {service} acknowledged after the point `{aim}` is given up; \
                 clients are sent away meanwhile, and every other node follows from there{unreached}"
            );
            let error = ApiError::new(Code::NeedsToken, text).with("token", token);
            return Err(error.with("epoch", epoch));
        }
    }
    // It leads afterwards.
    let fit = |node: &String| {
        let declared = spec.postgres(&service).and_then(|it| it.instances.get(node));
        declared.is_none_or(|it| it.failover) && spec.duty(node).is_active()
    };
    let mut places = tend::places(&service, &spec, &reports, &word, clock::now().0);
    places.retain(|node, _| fit(node));
    let nodes = spec.postgres(&service).map(|it| it.nodes.as_slice()).unwrap_or_default();
    let first = nodes.iter().find(|node| fit(node)).cloned();
    let chosen = schedule::choose(&places).map(str::to_string);
    let Some(node) = body.node.or(chosen).or(first) else {
        return Err(ApiError::new(Code::Refused, format!("{service} has no node")));
    };
    let point = Point { aim, force: body.force };
    let ask = Ask::Recover { service: service.clone(), point, who };
    let answer = cluster.ask(&node, &ask).await?;
    Ok(Json(json!({ "service": service, "node": node, "journal": answer["journal"] })))
}

/// The node that recovers the service now. One that is silent may be gone, and does not count.
fn under_way<'r>(service: &str, reports: &'r Reports, now_ms: u64) -> Option<&'r str> {
    let under_way = |(report, at): &(Arc<Report>, u64)| {
        let begun = report.recoveries.get(service);
        now_ms.saturating_sub(*at) <= SILENT_MS && begun.is_some_and(|it| it.ended.is_none())
    };
    reports.iter().find(|(_, told)| under_way(told)).map(|(node, _)| node.as_str())
}

/// The nodes that tell of data of the service, as a list for people.
fn holders(reports: &Reports, service: &str) -> String {
    let told = reports.iter().filter_map(|(node, (report, _))| {
        let status = report.services.get(service)?;
        (status.data != Data::Empty).then_some(node.as_str())
    });
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::recovery::{Ended, Recovery};

    #[test]
    fn one_recovery_at_a_time_on_all_nodes() {
        #[rustfmt::skip]
        let cases = [
            // of      ended  heard, of 20_000  expected
            ("main",   false, 19_000,           Some("b")),
            ("main",   true,  19_000,           None),
            ("other",  false, 19_000,           None),
            // Its machine is gone.
            ("main",   false, 1_000,            None),
        ];
        for (of, ended, heard, expected) in cases {
            let ended = ended.then(|| Ended { at_s: 2, result: Err("a reason".to_string()) });
            let step = "restore".to_string();
            let begun = Recovery { journal: "b-1".to_string(), began_s: 1, step, end: None, ended };
            let mut report = Report::default();
            report.recoveries.insert(of.to_string(), begun);
            let reports = Reports::from([
                ("a".to_string(), (Arc::default(), 19_999)),
                ("b".to_string(), (Arc::new(report), heard)),
            ]);
            assert_eq!(under_way("main", &reports, 20_000), expected, "{of} {heard}");
        }
    }
}
