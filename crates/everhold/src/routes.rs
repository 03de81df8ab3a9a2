//! What HTTP routes and their services do at this moment: each gateway tells its own, and here it is
//! added up over all of them.

use everhold_core::http::route::HttpRoute;
use everhold_core::ids::Time;
use everhold_core::route::RouteTable;
use everhold_core::spec::Spec;
use everhold_gateway::http::{End, GateState};
use everhold_gateway::{Found, Gateway};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What one gateway tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub gateway: String,
    /// Counters begin anew with another process.
    pub pid: u32,
    /// On the clock of its machine, in milliseconds.
    pub at_ms: u64,
    #[serde(default)]
    pub routes: BTreeMap<String, Route>,
    #[serde(default)]
    pub services: BTreeMap<String, Service>,
    /// `None`: nothing was ever kept.
    pub cache: Option<Kept>,
}

/// A route. What it doesn't have is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Since the start; and those answered with 5xx, or whose client was gone.
    pub requests: u64,
    pub failed: u64,
    /// Requests that waited for a place or were turned away, by what they met.
    pub met: BTreeMap<String, u64>,
    pub places: Option<Places>,
    pub rate_limit: Option<Limited>,
    pub cache: Option<Kept>,
    /// By what the cache did for them.
    pub cached: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Tries at its instances since the start, and those that failed.
    pub tries: u64,
    pub failed: u64,
    pub places: Option<Places>,
    pub breaker: Option<Breaker>,
    /// How they are found.
    pub instances: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    pub limit: u64,
    /// The limit finds itself.
    pub auto: bool,
    pub taken: u64,
    pub waiting: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breaker {
    pub open: bool,
    /// Until the next probe.
    pub probe_in_ms: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limited {
    pub clients: u64,
    pub refused: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub answers: u64,
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
}

impl Told {
    pub fn of(name: &str, gateway: &Gateway, table: &RouteTable, now: Time) -> Told {
        let mut routes = own_routes(gateway, table);
        let mut services = own_services(gateway, table);
        let sums = gateway.sums();
        for (series, took) in &sums.requests {
            let Some(route) = routes.get_mut(&*series.route) else { continue };
            let failed = series.status >= 500 || series.status == 0;
            route.requests += took.count;
            route.failed += if failed { took.count } else { 0 };
        }
        for (turned, waited) in &sums.turned {
            let Some(route) = routes.get_mut(&*turned.route) else { continue };
            *route.met.entry(turned.met.word().to_string()).or_default() += waited.count;
        }
        for ((route, word), count) in &sums.cached {
            let Some(route) = routes.get_mut(&**route) else { continue };
            *route.cached.entry((*word).to_string()).or_default() += count;
        }
        for (of, took) in &sums.tries {
            let Some(service) = services.get_mut(&*of.service) else { continue };
            service.tries += took.count;
            service.failed += if of.end == End::Failed { took.count } else { 0 };
        }
        let cache = gateway.kept().map(|it| Kept {
            answers: it.answers as u64,
            bytes: it.bytes,
            bytes_max: Some(it.bytes_max),
        });
        let pid = std::process::id();
        Told { gateway: name.to_string(), pid, at_ms: now.0, routes, services, cache }
    }
}

fn own_routes(gateway: &Gateway, table: &RouteTable) -> BTreeMap<String, Route> {
    let (guarded, kept, limited) = (gateway.guarded(), gateway.kept_by_route(), gateway.limited());
    let of = |listener: &String, it: &HttpRoute| {
        let places = guarded.routes.get(&(listener.clone(), it.name.clone()));
        let limit = |it: &everhold_gateway::http::Limited| Limited {
            clients: it.clients as u64,
            refused: it.refused,
        };
        let cache = it.cache.as_ref().map(|_| {
            let (answers, bytes) = kept.get(&it.name).copied().unwrap_or_default();
            Kept { answers, bytes, bytes_max: None }
        });
        Route {
            places: places.map(Places::of),
            rate_limit: limited.get(&it.name).map(limit),
            cache,
            ..Route::default()
        }
    };
    let all = table.http.listeners.iter();
    let all = all.flat_map(|(name, http)| http.routes.iter().map(move |it| (name, it)));
    all.map(|(listener, it)| (it.name.clone(), of(listener, it))).collect()
}

fn own_services(gateway: &Gateway, table: &RouteTable) -> BTreeMap<String, Service> {
    let (guarded, found) = (gateway.guarded(), gateway.services());
    let of = |name: &String| {
        let instances = found.get(name).into_iter().flatten();
        let instances = instances.filter_map(|(id, it)| Some((id.clone(), word(it.is)?)));
        let breaker = guarded.breakers.get(name).map(|probe_in| Breaker {
            open: probe_in.is_some(),
            probe_in_ms: probe_in.map(|it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX)),
        });
        Service {
            places: guarded.services.get(name).map(Places::of),
            breaker,
            instances: instances.map(|(id, is)| (id, is.to_string())).collect(),
            ..Service::default()
        }
    };
    table.http.services.keys().map(|name| (name.clone(), of(name))).collect()
}

impl Places {
    fn of(gate: &GateState) -> Places {
        Places {
            limit: gate.limit.into(),
            auto: gate.auto,
            taken: gate.in_flight.into(),
            waiting: gate.waiting.into(),
        }
    }
}

/// `None`: it is no instance of the service any more.
fn word(found: Found) -> Option<&'static str> {
    match found {
        Found::Healthy => Some(FIT),
        Found::Unknown => Some("unknown"),
        Found::Ejected => Some("ejected"),
        Found::Unhealthy => Some("unhealthy"),
        Found::Left => None,
    }
}

const FIT: &str = "healthy";
/// How instances are found, the best first: over all gateways the worst word counts.
const WORDS: [&str; 4] = [FIT, "unknown", "ejected", "unhealthy"];
/// What the cache did for requests that no instance was asked for.
const HITS: [&str; 4] = ["hit", "stale", "stale on error", "collapsed"];

/// All of them together, as it is told `now`; how often things happen is what came since they told it
/// `before`. `unheard`: gateways that tell nothing, and why.
pub fn shown(
    spec: &Spec,
    (before, now): (&[Told], &[Told]),
    unheard: &BTreeMap<String, String>,
) -> Value {
    let routes = spec.routes.iter().map(|(name, route)| {
        let all: Vec<&Route> = now.iter().filter_map(|it| it.routes.get(name)).collect();
        let count = |of: fn(&Route) -> u64| all.iter().map(|it| of(it)).sum::<u64>();
        let per_s = |of: fn(&Route) -> u64| rate(before, now, |it| it.routes.get(name).map(of));
        let mut met = BTreeMap::<&String, u64>::new();
        for (what, count) in all.iter().flat_map(|it| &it.met) {
            *met.entry(what).or_default() += count;
        }
        let shown = json!({
            "listener": route.listener, "service": route.service,
            "requests": count(|it| it.requests), "failed": count(|it| it.failed),
            "requests_per_s": per_s(|it| it.requests), "failed_per_s": per_s(|it| it.failed),
            "places": places(all.iter().filter_map(|it| it.places.as_ref())),
            "met": met,
            "rate_limit": limit(all.iter().filter_map(|it| it.rate_limit.as_ref())),
            "cache": cache(&all),
        });
        (name.clone(), shown)
    });
    let services = spec.http_services().map(|(name, _)| {
        let all: Vec<(&str, &Service)> =
            now.iter().filter_map(|it| Some((&*it.gateway, it.services.get(name)?))).collect();
        let per_s = |of: fn(&Service) -> u64| rate(before, now, |it| it.services.get(name).map(of));
        let shown = json!({
            "tries_per_s": per_s(|it| it.tries), "failed_per_s": per_s(|it| it.failed),
            "places": places(all.iter().filter_map(|(_, it)| it.places.as_ref())),
            "breaker": breaker(&all),
            "instances": instances(&all),
        });
        (name.clone(), shown)
    });
    let (routes, services): (serde_json::Map<_, _>, serde_json::Map<_, _>) =
        (routes.collect(), services.collect());
    let gateways: Vec<&str> = now.iter().map(|it| &*it.gateway).collect();
    let kept: Vec<&Kept> = now.iter().filter_map(|it| it.cache.as_ref()).collect();
    let sum = |of: fn(&Kept) -> u64| kept.iter().map(|it| of(it)).sum::<u64>();
    json!({
        "gateways": gateways, "unheard": unheard, "routes": routes, "services": services,
        "cache": (!kept.is_empty()).then(|| json!({
            "answers": sum(|it| it.answers), "bytes": sum(|it| it.bytes),
            "bytes_max": sum(|it| it.bytes_max.unwrap_or(0)),
        })),
    })
}

/// How often in a second. `None`: no gateway told it twice.
fn rate(before: &[Told], now: &[Told], of: impl Fn(&Told) -> Option<u64>) -> Option<f64> {
    let one = |now: &Told| {
        let same = |it: &&Told| it.gateway == now.gateway && it.pid == now.pid;
        let before = before.iter().find(same)?;
        let ms = now.at_ms.checked_sub(before.at_ms).filter(|ms| *ms > 0)?;
        let count = of(now)?.saturating_sub(of(before).unwrap_or(0));
        Some(count as f64 * 1e3 / ms as f64)
    };
    let rates: Vec<f64> = now.iter().filter_map(one).collect();
    (!rates.is_empty()).then(|| (rates.iter().sum::<f64>() * 10.0).round() / 10.0)
}

fn places<'p>(all: impl Iterator<Item = &'p Places>) -> Option<Places> {
    all.cloned().reduce(|a, b| Places {
        limit: a.limit + b.limit,
        auto: a.auto || b.auto,
        taken: a.taken + b.taken,
        waiting: a.waiting + b.waiting,
    })
}

/// Gateways tell each other of their clients, so that each counts all of them.
fn limit<'l>(all: impl Iterator<Item = &'l Limited>) -> Option<Limited> {
    all.cloned().reduce(|a, b| Limited {
        clients: a.clients.max(b.clients),
        refused: a.refused + b.refused,
    })
}

fn cache(all: &[&Route]) -> Option<Value> {
    let kept: Vec<&Kept> = all.iter().filter_map(|it| it.cache.as_ref()).collect();
    if kept.is_empty() {
        return None;
    }
    let sum = |of: fn(&Kept) -> u64| kept.iter().map(|it| of(it)).sum::<u64>();
    let cached = || all.iter().flat_map(|it| &it.cached);
    let hits = cached().filter(|(word, _)| HITS.contains(&word.as_str()));
    Some(json!({
        "answers": sum(|it| it.answers), "bytes": sum(|it| it.bytes),
        "requests": cached().map(|(_, count)| count).sum::<u64>(),
        "hits": hits.map(|(_, count)| count).sum::<u64>(),
    }))
}

/// Where it is open, and when the next probe goes out.
fn breaker(all: &[(&str, &Service)]) -> Option<Value> {
    let has: Vec<(&str, &Breaker)> =
        all.iter().filter_map(|(gateway, it)| Some((*gateway, it.breaker.as_ref()?))).collect();
    let open: Vec<&str> = has.iter().filter(|(_, it)| it.open).map(|(name, _)| *name).collect();
    let probe_in_ms = has.iter().filter_map(|(_, it)| it.probe_in_ms).min();
    (!has.is_empty()).then(|| json!({ "open_at": open, "probe_in_ms": probe_in_ms }))
}

fn instances<'s>(all: &[(&str, &'s Service)]) -> BTreeMap<&'s String, &'static str> {
    let mut worst = BTreeMap::<&String, usize>::new();
    for (id, is) in all.iter().flat_map(|(_, it)| &it.instances) {
        let at = WORDS.iter().position(|word| word == is).unwrap_or(1);
        let known = worst.entry(id).or_default();
        *known = at.max(*known);
    }
    worst.into_iter().map(|(id, at)| (id, WORDS[at])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(gateway: &str, at_ms: u64, requests: u64) -> Told {
        let places = |taken| Some(Places { limit: 10, auto: false, taken, waiting: 1 });
        let route = Route {
            requests,
            failed: 2,
            met: [("queue".to_string(), 3)].into(),
            places: places(4),
            rate_limit: Some(Limited { clients: requests, refused: 5 }),
            cache: Some(Kept { answers: 6, bytes: 700, bytes_max: None }),
            cached: [("hit".to_string(), 8), ("miss".to_string(), 1), ("stale".to_string(), 1)]
                .into(),
        };
        let is = if gateway == "a" { "healthy" } else { "ejected" };
        let service = Service {
            tries: requests / 2,
            failed: 0,
            places: places(5),
            breaker: Some(Breaker { open: gateway == "a", probe_in_ms: Some(20) }),
            instances: [("i.1".to_string(), is.to_string()), ("i.2".to_string(), "healthy".into())]
                .into(),
        };
        Told {
            gateway: gateway.to_string(),
            pid: 1,
            at_ms,
            routes: [("web".to_string(), route)].into(),
            services: [("web".to_string(), service)].into(),
            cache: Some(Kept { answers: 6, bytes: 700, bytes_max: Some(1_000) }),
        }
    }

    fn spec() -> Spec {
        let text = "schema = 1\ncluster = \"shop\"\n\
                    [node]\na = { address = \"127.0.0.1\", ports = \"15400-15499\" }\n\
                    [service.web]\nkind = \"http\"\naddresses = [\"127.0.0.1:1\"]\n\
                    [listener]\nweb = { bind = \"127.0.0.1:8080\", protocol = \"http\" }\n\
                    [route.web]\nlistener = \"web\"\nservice = \"web\"\n";
        crate::spec::load_with(text, "test", Default::default()).expect("a spec")
    }

    #[test]
    fn what_gateways_tell_is_added_up() {
        let spec = spec();
        let unheard = [("c".to_string(), "it is gone".to_string())].into();
        let before = [told("a", 1_000, 100), told("b", 7_000, 10)];
        let now = [told("a", 2_000, 150), told("b", 9_000, 30)];
        let shown = shown(&spec, (&before, &now), &unheard);
        let expected = json!({
            "listener": "web", "service": "web",
            "requests": 180, "failed": 4, "requests_per_s": 60.0, "failed_per_s": 0.0,
            "places": { "limit": 20, "auto": false, "taken": 8, "waiting": 2 },
            "met": { "queue": 6 },
            "rate_limit": { "clients": 150, "refused": 10 },
            "cache": { "answers": 12, "bytes": 1_400, "requests": 20, "hits": 18 },
        });
        assert_eq!(shown["routes"]["web"], expected);
        let expected = json!({
            "tries_per_s": 30.0, "failed_per_s": 0.0,
            "places": { "limit": 20, "auto": false, "taken": 10, "waiting": 2 },
            "breaker": { "open_at": ["a"], "probe_in_ms": 20 },
            "instances": { "i.1": "ejected", "i.2": "healthy" },
        });
        assert_eq!(shown["services"]["web"], expected);
        assert_eq!(shown["cache"], json!({ "answers": 12, "bytes": 1_400, "bytes_max": 2_000 }));
        let heard = (&shown["gateways"], &shown["unheard"]);
        assert_eq!(heard, (&json!(["a", "b"]), &json!({ "c": "it is gone" })));
    }

    #[test]
    fn what_nobody_tells_is_not_made_up() {
        let spec = spec();
        let shown = shown(&spec, (&[], &[]), &BTreeMap::new());
        let web = &shown["routes"]["web"];
        for key in ["requests_per_s", "places", "rate_limit", "cache"] {
            assert_eq!(web[key], Value::Null, "{key}");
        }
        // A process that has just begun has no rate yet.
        let mut later = told("a", 2_000, 150);
        later.pid = 2;
        let before = [told("a", 1_000, 100)];
        assert_eq!(rate(&before, &[later], |it| Some(it.routes["web"].requests)), None);
    }
}
