//! HTTP services in the answer of `status`. Pure.

use crate::link::Report;
use everhold_core::run::{Instance, RunState};
use everhold_core::spec::{HttpSpec, Placed, Source};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// An HTTP service, from what nodes tell and its gateways find. `reports`: of all nodes that are heard;
/// `gateways`: their snapshots; `silent`: gateways that should be there and tell nothing.
pub fn service(
    name: &str,
    http: &HttpSpec,
    maintenance: Option<bool>,
    reports: &BTreeMap<&str, &Report>,
    gateways: &[&Value],
    silent: &[String],
) -> Value {
    let mut instances: BTreeMap<String, Value> = BTreeMap::new();
    let mut running = BTreeSet::new();
    for (id, placed) in http.placed() {
        let told = reports.get(placed.node.as_str()).map(|report| {
            report.instances.get(name).and_then(|all| all.get(id)).cloned().unwrap_or_default()
        });
        let runs = told.as_ref().is_some_and(|it| it.state == RunState::Running);
        if runs && !http.drained.contains(id) {
            running.insert(placed.node.as_str());
        }
        instances.insert(id.clone(), instance(placed, told));
    }
    // One that is placed elsewhere by now, or nowhere, and still here.
    for report in reports.values() {
        for (id, told) in report.instances.get(name).into_iter().flatten() {
            let placed = Placed { node: report.node.clone(), port: told.port };
            instances.entry(id.clone()).or_insert_with(|| instance(&placed, Some(told.clone())));
        }
    }
    if let Source::Addresses(backends) = &http.source {
        for backend in backends {
            let address = backend.name();
            // Nobody here supervises it: gateways alone know how it is.
            let shown = json!({
                "node": null, "role": null, "state": "unknown", "health": "unknown",
                "address": address, "port": backend.port, "in_route": null, "detail": {},
            });
            instances.insert(address, shown);
        }
    }
    for (id, shown) in &mut instances {
        let found: Vec<&Value> =
            gateways.iter().filter_map(|of| of["services"][name].get(id.as_str())).collect();
        let requests: u64 = found.iter().filter_map(|it| it["requests"].as_u64()).sum();
        if http.drained.contains(id) {
            let used = found.iter().any(|it| it["is"] != "left");
            let state = if used || requests > 0 || !silent.is_empty() { "leaving" } else { "out" };
            shown["in_route"] = used.into();
            shown["drain"] = json!({ "state": state, "requests": requests, "silent": silent });
        }
        if found.is_empty() {
            continue;
        }
        shown["in_route"] = found.iter().any(|it| it["in_route"] == true).into();
        // Who supervises it knows more of its process, gateways of what it does.
        let of_others = shown["node"].is_null();
        let best = ["healthy", "ejected", "unhealthy"];
        let best = best.into_iter().find(|is| found.iter().any(|it| it["is"] == *is));
        match (best, shown["health"].as_str()) {
            (Some("healthy"), _) if of_others => shown["health"] = "up".into(),
            (Some("unhealthy"), _) if of_others => shown["health"] = "down".into(),
            (Some("ejected"), _) if of_others => shown["health"] = "suspect".into(),
            (Some("ejected" | "unhealthy"), Some("up")) => shown["health"] = "suspect".into(),
            // It runs, and nobody has asked it yet.
            (None, Some("up")) if !http.drained.contains(id) => shown["health"] = "degraded".into(),
            _ => {}
        }
        shown["detail"]["gateways"] = best.unwrap_or("unknown").into();
        shown["detail"]["requests"] = requests.into();
    }
    let wanted = match &http.source {
        Source::Run(run) => run.instances as usize,
        Source::Addresses(backends) => backends.len(),
    };
    let is = |wanted: &str| instances.values().filter(|it| it["health"] == wanted).count();
    let (up, unknown) = (is("up"), is("unknown"));
    let used = instances.values().filter(|it| it.get("drain").is_none());
    let used = used.filter(|it| it["health"] == "up").count();
    let (health, serving) = match up {
        // None are wanted, so nothing is wrong.
        0 if instances.is_empty() => ("up", Some(false)),
        _ if used == 0 && up > 0 => ("down", Some(false)),
        _ if up == instances.len() => ("up", Some(true)),
        0 if unknown > 0 => ("unknown", None),
        0 => ("down", Some(false)),
        _ => ("degraded", Some(true)),
    };
    json!({
        "kind": "http",
        "health": health,
        "serving": serving,
        "maintenance": maintenance,
        "tolerates": running.len().saturating_sub(1),
        "last_failover": null,
        "wanted": wanted,
        "instances": instances,
    })
}

/// A state in the words of `status`.
pub fn word(state: RunState) -> &'static str {
    match state {
        RunState::Starting => "starting",
        RunState::Running => "running",
        RunState::Backoff => "backoff",
        RunState::Stopping => "stopping",
        RunState::Stopped => "stopped",
    }
}

fn instance(placed: &Placed, told: Option<Instance>) -> Value {
    let Some(told) = told else {
        return json!({
            "node": placed.node, "role": null, "state": "unknown", "health": "unknown",
            "pid": null, "port": placed.port, "in_route": null, "detail": {},
        });
    };
    let health = match told.state {
        RunState::Running => "up",
        RunState::Starting | RunState::Stopping => "degraded",
        RunState::Backoff | RunState::Stopped => "down",
    };
    let mut shown = json!({
        "node": placed.node, "role": null, "state": word(told.state), "health": health,
        "pid": told.pid, "port": placed.port, "in_route": null,
        "detail": {
            "restarts": told.restarts,
            "last_exit": told.last_exit,
            "restart_pending": told.outdated,
            "cpu_milli": told.cpu_milli,
            "memory_bytes": told.memory_bytes,
            "load": told.load,
        },
    });
    if !told.unenforced.is_empty() {
        shown["detail"]["unenforced"] = json!(told.unenforced);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::spec::{LimitsSpec, RunSpec, StopSignal, StopSpec};

    fn run() -> HttpSpec {
        let placed = [("a.1", "a"), ("b.1", "b"), ("c.1", "c")];
        let placed = placed
            .map(|(id, node)| (id.to_string(), Placed { node: node.to_string(), port: 15410 }));
        let source = Source::Run(RunSpec {
            instances: 3,
            command: vec!["serve".to_string()],
            env: BTreeMap::new(),
            user: None,
            directory: None,
            stop: StopSpec { signal: StopSignal::Term, grace_ms: 1 },
            limits: LimitsSpec::default(),
            nodes: Vec::new(),
            placed: placed.into(),
            home: BTreeMap::new(),
        });
        HttpSpec::of(source)
    }

    /// `NODE:STATE`; a node that isn't there is not heard.
    fn check(nodes: &str, health: &str, serving: Option<bool>, tolerates: u64) {
        let reports: BTreeMap<String, Report> = nodes
            .split_whitespace()
            .map(|text| {
                let (node, state) = text.split_once(':').expect("a state");
                let state = serde_json::from_value(json!(state)).expect("a state");
                let told = Instance { state, ..Instance::default() };
                let of = [(format!("{node}.1"), told)].into();
                let instances = [("api".to_string(), of)].into();
                let node = node.to_string();
                (node.clone(), Report { node, instances, ..Report::default() })
            })
            .collect();
        let heard = reports.iter().map(|(node, it)| (node.as_str(), it)).collect();
        let shown = service("api", &run(), Some(false), &heard, &[], &[]);
        let found = (shown["health"].as_str(), shown["serving"].as_bool());
        assert_eq!(found, (Some(health), serving), "{nodes}");
        assert_eq!(shown["tolerates"], tolerates, "{nodes}");
        assert_eq!(shown["instances"].as_object().map(|it| it.len()), Some(3));
    }

    #[test]
    fn a_service_is_as_well_as_its_instances() {
        check("a:running b:running c:running", "up", Some(true), 2);
        check("a:running b:running c:backoff", "degraded", Some(true), 1);
        check("a:running b:running", "degraded", Some(true), 1);
        check("a:running b:stopping c:starting", "degraded", Some(true), 0);
        check("a:backoff b:stopped c:backoff", "down", Some(false), 0);
        check("a:backoff b:stopped", "unknown", None, 0);
        check("", "unknown", None, 0);
    }

    #[test]
    fn the_last_one_that_leaves_a_node_is_shown() {
        let told = Instance { state: RunState::Stopping, port: 15411, ..Instance::default() };
        let instances = [("api".to_string(), [("d.2".to_string(), told)].into())].into();
        let report = Report { node: "d".to_string(), instances, ..Report::default() };
        let shown = service("api", &run(), Some(false), &[("d", &report)].into(), &[], &[]);
        let leaving = &shown["instances"]["d.2"];
        assert_eq!(
            (&leaving["node"], &leaving["state"], &leaving["port"]),
            (&json!("d"), &json!("stopping"), &json!(15411))
        );
    }

    #[test]
    fn what_gateways_find_is_shown() {
        let running = Instance { state: RunState::Running, ..Instance::default() };
        let report = |node: &str| {
            let of = [(format!("{node}.1"), running.clone())].into();
            let instances = [("api".to_string(), of)].into();
            Report { node: node.to_string(), instances, ..Report::default() }
        };
        let reports = ["a", "b", "c"].map(report);
        let heard = reports.iter().map(|it| (it.node.as_str(), it)).collect();
        let found = |in_route: bool, is: &str| json!({ "in_route": in_route, "is": is });
        let one = json!({ "services": { "api": {
            "a.1": found(true, "healthy"), "b.1": found(false, "unhealthy"),
        } } });
        let other = json!({ "services": { "api": { "a.1": found(false, "ejected") } } });
        let shown = service("api", &run(), Some(false), &heard, &[&one, &other], &[]);
        let of = |id: &str| {
            let it = &shown["instances"][id];
            (it["in_route"].clone(), it["health"].as_str().unwrap_or_default().to_string())
        };
        assert_eq!(of("a.1"), (true.into(), "up".to_string()));
        assert_eq!(of("b.1"), (false.into(), "suspect".to_string()));
        assert_eq!(of("c.1"), (Value::Null, "up".to_string()), "no gateway tells");
        assert_eq!(shown["health"], "degraded");
        let third = json!({ "services": { "api": { "c.1": found(false, "unknown") } } });
        let health = |http: &HttpSpec, third: &Value| {
            let shown = service("api", http, Some(false), &heard, &[&one, &other, third], &[]);
            shown["instances"]["c.1"]["health"].clone()
        };
        assert_eq!(health(&run(), &third), "degraded", "nobody has asked it yet");
        // Nobody is to ask one that is out of use.
        let drained = HttpSpec { drained: ["c.1".to_string()].into(), ..run() };
        let left = json!({ "services": { "api": { "c.1": found(false, "left") } } });
        assert_eq!(health(&drained, &left), "up");
    }
}
