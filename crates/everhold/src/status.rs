//! The answer of `everhold status`: one shape for command line, API and console. Pure.

use crate::backup::forget::Running;
use crate::backup::shown;
use crate::cluster::{Reports, StoreWord};
use crate::instances::shown as shown_http;
use crate::link::{Hold, Report};
use crate::{gateways_word, hung, lost_nodes, nodes};
use everhold_core::durable::Data;
use everhold_core::duty::Step;
use everhold_core::ids::Epoch;
use everhold_core::spec::{Durability, PostgresSpec, Spec};
use everhold_core::status::{State, Status};
use everhold_core::term::Term;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An agent silent for longer is not up: of a large cluster's it is heard twice a second.
const SUSPECT_MS: u64 = 1_200;
const DOWN_MS: u64 = 2_000;

/// Everything that status is made from.
pub struct Sources<'a> {
    pub cluster: &'a str,
    pub at: String,
    pub answered_by: &'a str,
    pub now_ms: u64,
    pub spec: &'a Spec,
    pub reports: &'a Reports,
    pub word: &'a StoreWord,
    /// What this process is forgetting, by service.
    pub forgetting: &'a BTreeMap<String, Running>,
}

/// A state in the words of `status`.
pub fn word(state: &State) -> String {
    serde_json::to_value(state)
        .ok()
        .and_then(|v| v.as_str().map(str::to_string))
        .unwrap_or_default()
}

/// The whole answer.
pub fn status(from: &Sources<'_>) -> Value {
    let databases = from.spec.databases().map(|(name, it)| (name, service(from, name, it)));
    let heard = |node: &str| {
        let (report, at) = from.reports.get(node)?;
        (from.now_ms.saturating_sub(*at) <= DOWN_MS).then_some(&**report)
    };
    let found: Vec<&Value> = from.word.gateways.values().map(|it| &it.snapshot).collect();
    let reports: BTreeMap<&str, &Report> =
        from.spec.nodes.keys().filter_map(|name| Some((name.as_str(), heard(name)?))).collect();
    let silent = silent_gateways(from);
    let of_http = from.spec.http_services().map(|(name, it)| {
        let maintenance = in_maintenance(from, name);
        (name, shown_http::service(name, it, maintenance, &reports, &found, &silent))
    });
    let services: BTreeMap<&String, Value> = databases.chain(of_http).collect();
    let nodes: BTreeMap<&String, Value> =
        from.spec.nodes.keys().map(|name| (name, node(from, name))).collect();
    let all = services.values().chain(nodes.values());
    let healths: Vec<&str> = all.filter_map(|value| value["health"].as_str()).collect();
    let health = if services.values().any(|s| s["health"] == "down") {
        "down"
    } else if healths.iter().all(|health| *health == "up") && from.word.revision.is_some() {
        "up"
    } else {
        "degraded"
    };
    let mut status = json!({
        "schema": 1,
        "cluster": from.cluster,
        "at": from.at,
        "answered_by": from.answered_by,
        "health": health,
        "store": {
            "kind": "etcd",
            "health": if from.word.revision.is_some() { "up" } else { "down" },
            "revision": from.word.revision,
        },
        "nodes": nodes,
        "services": services,
        "gateways": gateways(from),
        "holds": holds(from),
    });
    if let Some(node) = &from.word.coordinator {
        status["coordinator"] = json!(node);
    }
    if let Some(copied) = &from.word.copied {
        status["copies"] = copied.shown();
    }
    if let Some((rollout, _)) = &from.word.rollout {
        status["rollout"] = json!(rollout);
    }
    if let Some(members) = &from.word.members {
        status["store"]["members"] = json!(members);
    }
    status
}

/// Gateways that should be there and say nothing of themselves: nobody knows what they do.
fn silent_gateways(from: &Sources<'_>) -> Vec<String> {
    let wanted = gateways_word::expected(from.spec);
    wanted.into_iter().filter(|name| !from.word.gateways.contains_key(name)).collect()
}

fn silent_ms(from: &Sources<'_>, node: &str) -> Option<u64> {
    from.reports.get(node).map(|(_, at)| from.now_ms.saturating_sub(*at))
}

fn node(from: &Sources<'_>, name: &str) -> Value {
    let seen = silent_ms(from, name);
    let health = match seen {
        Some(ms) if ms <= SUSPECT_MS => "up",
        Some(ms) if ms <= DOWN_MS => "suspect",
        Some(_) => "down",
        None => "unknown",
    };
    let report = from.reports.get(name).map(|(report, _)| report);
    let spec = from.spec.nodes.get(name);
    let mut value = json!({
        "health": health,
        "region": spec.and_then(|n| n.region.clone()),
        "zone": spec.and_then(|n| n.zone.clone()),
        "address": spec.map(|n| n.address.to_string()),
        "agent_pid": report.map(|r| r.pid),
        "version": report.map(|r| r.version.clone()),
        "seen_ms_ago": seen,
        "maintenance": node_in_maintenance(from, name),
        "duty": from.spec.duty(name),
    });
    if let Some(since) = spec.and_then(|it| it.lost.as_ref()) {
        value["lost_since"] = json!(since);
    }
    if let Some(since) = spec.and_then(|it| it.back.as_ref()) {
        value["back_since"] = json!(since);
    }
    value
}

/// Nothing is done by itself on a node whose services are all in maintenance, and nobody needs one
/// that was drained.
fn node_in_maintenance(from: &Sources<'_>, name: &str) -> Option<bool> {
    let here = from.spec.databases().filter(|(_, it)| it.nodes.iter().any(|node| node == name));
    let mut services = here.peekable();
    let some = services.peek().is_some();
    let all = services.all(|(service, _)| in_maintenance(from, service) == Some(true));
    let drained = !from.spec.duty(name).is_active();
    from.word.is_known().then_some(drained || (some && all))
}

/// `None`: the store was never read.
fn in_maintenance(from: &Sources<'_>, service: &str) -> Option<bool> {
    let on = from.word.maintenance.get(service).copied().unwrap_or(false);
    from.word.is_known().then_some(on)
}

fn statuses(from: &Sources<'_>, service: &str) -> BTreeMap<String, (Arc<Status>, u64)> {
    let told = from.reports.iter().filter_map(|(node, (report, at))| {
        let status = report.services.get(service)?;
        Some((node.clone(), (status.clone(), from.now_ms.saturating_sub(*at))))
    });
    told.collect()
}

fn service(from: &Sources<'_>, name: &str, declared: &PostgresSpec) -> Value {
    let statuses = statuses(from, name);
    let leader = statuses
        .iter()
        .filter_map(|(node, (status, ms))| Some((status.serving?, node.clone(), *ms)))
        .max();
    let term = from.word.terms.get(name);
    let serving = serving(leader.as_ref().map(|(_, _, ms)| *ms), &statuses);
    let lead_lsn =
        leader.as_ref().and_then(|(_, node, _)| statuses.get(node)).map(|(s, _)| s.lsn.0);
    let instances: BTreeMap<&String, Value> = declared
        .nodes
        .iter()
        .map(|node| {
            let port = declared.port(node);
            let told = statuses.get(node).filter(|(_, ms)| {
                // Of a leader that is silent, its standbys tell that it is still there.
                let leads = leader.as_ref().is_some_and(|(_, name, _)| name == node);
                *ms <= DOWN_MS || (leads && serving == Some(true))
            });
            let epoch = leader.as_ref().map(|(epoch, ..)| *epoch);
            let mut shown = instance(node, port, told, epoch, lead_lsn);
            let word = from.reports.get(node).and_then(|(report, _)| report.scrubs.get(name));
            if let Some(word) = word.filter(|_| told.is_some()) {
                shown["detail"]["scrub"] = json!(word);
            }
            (node, shown)
        })
        .collect();
    let up = instances.values().filter(|i| i["health"] == "up").count();
    let health = match (serving, up == declared.nodes.len()) {
        (Some(true), true) => "up",
        (Some(true), false) => "degraded",
        (Some(false), _) => "down",
        (None, _) => "unknown",
    };
    let durability = match declared.synchronous.durability {
        Durability::Required => "required",
        Durability::Preferred => "preferred",
    };
    let mut value = json!({
        "kind": "postgres",
        "health": health,
        "serving": serving,
        "epoch": term.map(|term| term.epoch).max(leader.as_ref().map(|(epoch, ..)| *epoch)),
        "leader": leader.as_ref().map(|(_, node, _)| node),
        "maintenance": in_maintenance(from, name),
        "synchronous": term.map(|term| json!({
            "number": term.target.k,
            "members": term.target.members.iter().map(|m| m.node.clone()).collect::<Vec<_>>(),
            "durability": durability,
            "changing_to": term.is_changing().then(|| term.target.to_string()),
        })),
        "tolerates": term.map(|term| tolerates(term, durability == "preferred")),
        "last_failover": from.word.last_failover.get(name),
        "instances": instances,
    });
    if let Some(recovery) = shown::recovery(name, from.reports) {
        value["recovery"] = recovery;
    }
    if let Some(backup) = backup(from, name, leader.as_ref().map(|(_, node, _)| node)) {
        value["backup"] = backup;
    }
    value
}

/// How well it is backed up; `None`: nobody asked for it. How far the log is, only a leader that is
/// heard knows.
fn backup(from: &Sources<'_>, name: &str, leader: Option<&String>) -> Option<Value> {
    from.spec.postgres(name)?.backup.as_ref()?;
    let leader = leader.filter(|node| silent_ms(from, node).is_some_and(|ms| ms <= DOWN_MS));
    let word = leader.and_then(|node| from.reports.get(node)?.0.archives.get(name));
    let mut value = shown::status(name, from.reports, from.word.backups.get(name));
    value["rpo_ms"] = json!(word.and_then(|word| word.behind_ms));
    value["log_lsn"] = json!(word.and_then(|word| word.archived));
    value["forgotten"] = json!(from.word.forgotten.get(name).map(|it| it.shown()));
    value["forgetting"] = json!(from.forgetting.get(name));
    Some(value)
}

/// Whether clients are served. `None`: nobody is there who could know. An agent that is gone says
/// nothing about its PostgreSQL, but a standby that streams from it does.
fn serving(
    leader_ms_ago: Option<u64>,
    statuses: &BTreeMap<String, (Arc<Status>, u64)>,
) -> Option<bool> {
    let fresh = statuses.values().filter(|(_, ms)| *ms <= DOWN_MS);
    let fresh: Vec<&Status> = fresh.map(|(status, _)| &**status).collect();
    match leader_ms_ago {
        Some(ms) if ms <= DOWN_MS => Some(true),
        _ if fresh.is_empty() => None,
        Some(_) => Some(fresh.iter().any(|status| status.streaming)),
        None => Some(false),
    }
}

/// Nodes that may still be lost, one after the other, without stopping writes for good.
pub fn tolerates(term: &Term, alone: bool) -> usize {
    if !term.open {
        return 0;
    }
    // Each loss leaves a leader that needs one standby, unless it may go on alone.
    let members = term.target.members.len();
    if alone { members } else { members.saturating_sub(1) }
}

fn instance(
    node: &str,
    port: Option<u16>,
    told: Option<&(Arc<Status>, u64)>,
    epoch: Option<Epoch>,
    lead_lsn: Option<u64>,
) -> Value {
    let Some((status, ms)) = told else {
        return json!({
            "node": node, "role": null, "state": "unknown", "health": "unknown", "pid": null,
            "port": port, "lag_bytes": null, "lag_ms": null, "in_route": false, "detail": {},
        });
    };
    let role = role(status);
    let known = *ms <= DOWN_MS;
    let up = is_up(status.state);
    let health = match (known, up, role) {
        (false, ..) => "unknown",
        (true, true, _) => "up",
        (true, false, Some(_)) => "degraded",
        (true, false, None) => "down",
    };
    let lag =
        lead_lsn.filter(|_| known && role.is_some()).map(|lsn| lsn.saturating_sub(status.lsn.0));
    json!({
        "node": node,
        "role": role,
        "state": word(&status.state),
        "health": health,
        "pid": status.pid,
        "port": status.port,
        "lag_bytes": lag,
        "lag_ms": status.lag_ms.filter(|_| known),
        "in_route": (status.serving.is_some() && status.serving == epoch)
            || (status.streaming && status.bad_pages == 0 && known),
        "detail": {
            "timeline": status.primary.unwrap_or(status.checkpoint),
            "flush_lsn": status.lsn.to_string(),
            "promise": status.promise,
            "incarnation": status.member.incarnation,
            "data": data_word(status.data),
            "overrides": status.overrides,
            "bad_pages": status.bad_pages,
        },
    })
}

/// What an instance is, as far as that is settled.
pub fn role(status: &Status) -> Option<&'static str> {
    match (status.primary, status.state) {
        (Some(_), _) => Some("primary"),
        (None, State::Streaming | State::Sealed | State::Connecting | State::Parking) => {
            Some("standby")
        }
        (None, _) => None,
    }
}

/// It does its part.
pub fn is_up(state: State) -> bool {
    matches!(state, State::Open | State::Streaming)
}

pub fn data_word(data: Data) -> &'static str {
    match data {
        Data::Empty => "empty",
        Data::Ok => "ok",
        Data::Destroying => "being_replaced",
        Data::CatchUp { .. } => "catching_up",
    }
}

fn gateways(from: &Sources<'_>) -> Value {
    let told = from.word.gateways.iter().map(|(name, presence)| {
        let (pid, draining) = (presence.pid, &presence.draining);
        let mut value = json!({ "health": "up", "pid": pid, "draining": draining });
        if let (Some(into), Some(of)) = (value.as_object_mut(), presence.snapshot.as_object()) {
            into.extend(of.clone());
        }
        (name.clone(), value)
    });
    Value::Object(told.collect())
}

fn holds(from: &Sources<'_>) -> Value {
    let unreadable = from.word.unreadable.iter().map(|(key, it)| {
        json!({
            "service": null, "rule": "unreadable-record", "why": format!("{key}: {}", it.why),
            "since": it.since, "recheck_at": null, "needs_operator": true, "evidence": [],
            "unblocks": "the version of Everhold that wrote it; nothing was touched",
            "journal": null,
        })
    });
    // Of a node that isn't heard, nobody knows what it waits for.
    let told = from
        .reports
        .iter()
        .filter(|(node, _)| silent_ms(from, node).is_some_and(|ms| ms <= DOWN_MS));
    let gateways = from.word.gateways.iter().flat_map(|(name, presence)| {
        presence.holds.iter().map(move |it| hold(name, &Report::default(), it, 0))
    });
    let told = told.flat_map(|(node, (report, at))| {
        let ms = from.now_ms.saturating_sub(*at);
        report.holds.iter().map(move |it| hold(node, report, it, ms))
    });
    let steps = nodes::steps(from.spec, from.reports, from.word, from.now_ms);
    let leaving = steps.into_iter().filter_map(of_a_node);
    let backed_up = |name: &&String| from.spec.postgres(name).is_some_and(|it| it.backup.is_some());
    let old = from.word.forgotten.iter().filter(|(name, _)| backed_up(name));
    let old = old.filter_map(|(name, forgotten)| forgotten.hold(name));
    let copies = from.word.copied.as_ref().and_then(|copied| copied.hold());
    let lost = lost_nodes::holds(from.spec, &from.word.held);
    let hung = hung::holds(&from.word.held_instances);
    let of_nodes = told.chain(gateways).chain(leaving).chain(lost).chain(hung);
    Value::Array(unreadable.chain(of_nodes).chain(old).chain(copies).collect())
}

/// What a node waits for that was drained or is to leave.
fn of_a_node(step: Step) -> Option<Value> {
    let Step::Wait { service, node, why, unblocks } = step else { return None };
    Some(json!({
        "service": service, "rule": "duty", "why": format!("{node}: {why}"), "since": null,
        "recheck_at": null, "needs_operator": false, "evidence": [], "unblocks": unblocks,
        "journal": null,
    }))
}

fn hold(node: &str, report: &Report, hold: &Hold, ms_ago: u64) -> Value {
    let status = hold.service.as_ref().and_then(|name| report.services.get(name));
    let evidence = status.map(|status| {
        json!({
            "fact": format!("{node}.instance={}", word(&status.state)),
            "by": node, "first_hand": true, "ms_ago": ms_ago,
        })
    });
    json!({
        "service": hold.service, "rule": hold.rule, "why": format!("{node}: {}", hold.why),
        "since": hold.since, "recheck_at": hold.recheck_at,
        "evidence": evidence.into_iter().collect::<Vec<_>>(),
        "unblocks": hold.unblocks, "needs_operator": hold.operator, "journal": hold.journal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maintenance_is_what_the_store_says_and_unknown_before_it_was_read() {
        let spec = Spec::default_for_one_machine();
        let check = |newest: u64, on: bool, expected: Value| {
            let maintenance = on.then(|| ("main".to_string(), true)).into_iter().collect();
            let word = StoreWord { newest, maintenance, ..StoreWord::default() };
            let from = Sources {
                cluster: "shop",
                at: String::new(),
                answered_by: "up",
                now_ms: 0,
                spec: &spec,
                reports: &Reports::new(),
                word: &word,
                forgetting: &BTreeMap::new(),
            };
            let status = status(&from);
            assert_eq!(status["services"]["main"]["maintenance"], expected);
            for node in ["a", "b", "c"] {
                assert_eq!(status["nodes"][node]["maintenance"], expected, "{node}");
            }
        };
        check(0, false, Value::Null);
        check(7, false, json!(false));
        check(7, true, json!(true));
    }
}
