//! Answers that gateways keep, taken out of all of them.

use super::input::{Body, Who};
use super::{ApiError, Code, Shared};
use crate::cluster::Cluster;
use crate::cluster::purges::{Spread, spread};
use axum::Json;
use axum::extract::State;
use everhold_core::http::cache::purge::{NAMES_MAX, Of, Purged, What};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// For all gateways to say that they have purged: who is there says so at once, and who is cut off is
/// taken for gone within this.
const PURGED_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at what they say.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurgeBody {
    route: Option<String>,
    host: Option<String>,
    #[serde(default)]
    paths: Vec<String>,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    all: bool,
}

impl PurgeBody {
    fn what(self) -> Result<Vec<What>, String> {
        let PurgeBody { route, host, paths, prefixes, tags, all } = self;
        let paths = paths.into_iter().map(Of::Path);
        let prefixes = prefixes.into_iter().map(Of::Prefix);
        let named = paths.chain(prefixes).chain(tags.into_iter().map(Of::Tag));
        let named: Vec<Of> = named.take(NAMES_MAX + 1).collect();
        let of = match (all, named.is_empty()) {
            (true, true) => vec![Of::All],
            (false, false) => named,
            (true, false) => return Err("all, or paths, prefixes and tags".to_string()),
            (false, true) => {
                return Err("nothing is named: paths, prefixes, tags, or all".to_string());
            }
        };
        if of.len() > NAMES_MAX {
            return Err(format!("one purge names at most {NAMES_MAX} things"));
        }
        let what = |of| What { route: route.clone(), host: host.clone(), of };
        let what: Vec<What> = of.into_iter().map(what).collect();
        what.iter().find_map(What::fault).map_or(Ok(what), Err)
    }
}

/// Answers when every gateway has purged it, or says which have not.
pub async fn purge(
    State(api): State<Shared>,
    Who(who): Who,
    Body(body): Body<PurgeBody>,
) -> Result<Json<Value>, ApiError> {
    let cluster = &api.cluster;
    let spec = cluster.spec();
    let mut service = String::new();
    if let Some(name) = &body.route {
        let route = spec.routes.get(name).ok_or_else(|| {
            let names: Vec<&str> = spec.routes.keys().map(String::as_str).collect();
            let error = ApiError::new(Code::UnknownName, format!("no route is named {name}"));
            error.next(format!("there is: {}", names.join(", ")))
        })?;
        service.clone_from(&route.service);
    }
    let what = body.what().map_err(|why| ApiError::new(Code::Malformed, why))?;
    let begun = Instant::now();
    let text: Vec<String> = what.iter().map(What::to_string).collect();
    let journal = cluster.note(&service, &who, &format!("purge: {}", text.join("; "))).await;
    let purged = cluster.purge(&who, &what).await?;
    let Spread { done, missing } = carried_out(cluster, &purged, begun + PURGED_WITHIN).await;
    if missing.is_empty() {
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        return Ok(Json(json!({
            "purge": purged.number, "gateways": done, "took_ms": took_ms, "journal": journal,
        })));
    }
    let said: Vec<String> = missing.iter().map(|(name, why)| format!("{name} ({why})")).collect();
    let text = format!("purge {} is not done by {}", purged.number, said.join(", "));
    let next = "`everhold status` shows these gateways; each purges as soon as it reaches the \
                store, and until then may give what it has kept, if it runs";
    let error = ApiError::new(Code::NotInTime, text).next(next);
    let error = error.with("purge", purged.number).with("gateways", done);
    Err(error.with("missing", json!(missing)).with("journal", journal))
}

async fn carried_out(cluster: &Cluster, purged: &Purged, until: Instant) -> Spread {
    loop {
        let spread = spread(&cluster.spec(), &cluster.word(), purged);
        if spread.missing.is_empty() || Instant::now() > until {
            return spread;
        }
        tokio::time::sleep(LOOK).await;
    }
}
