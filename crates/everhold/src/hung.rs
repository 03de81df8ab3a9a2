//! Instances that hang: what is seen of each, and the coordinator's new starts, which `core/src/hung.rs`
//! decides.

use crate::agent::Ask;
use crate::cluster::{Cluster, Reports, StoreWord};
use crate::{clock, gateways_word, nodes};
use everhold_core::hung::{Instance, Is, Service, Verdict, Watch};
use everhold_core::rollout::State;
use everhold_core::run::RunState;
use everhold_core::spec::{HttpSpec, Spec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// The key under which stands who is held, behind the cluster's prefix.
pub const HELD: &str = "instances-held";

/// An instance that has been unhealthy for long, and is not started anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub service: String,
    pub instance: String,
    pub why: String,
    pub unblocks: String,
    /// On the coordinator's wall clock.
    pub since: String,
}

/// A service as it is seen now. `None`: nothing of it is started anew for that reason.
fn look(
    name: &str,
    http: &HttpSpec,
    spec: &Spec,
    reports: &Reports,
    word: &StoreWord,
    now_ms: u64,
) -> Option<Service> {
    let off = http.run().is_none() || http.health.restart_after_ms == 0;
    // A rollout starts instances anew itself, and judges what comes of it.
    let rolls = word.rollout.as_ref().is_some_and(|(rollout, _)| {
        rollout.state == State::Running && rollout.service.as_deref().is_none_or(|it| it == name)
    });
    if off || rolls || !gateways_word::judge(spec, name, http) {
        return None;
    }
    let used = http.placed().filter(|(id, _)| !http.drained.contains(*id));
    let instances = used.map(|(id, placed)| {
        let told = nodes::fresh(reports, &placed.node, now_ms)
            .and_then(|report| report.instances.get(name)?.get(id));
        let pid = told.filter(|it| it.state == RunState::Running).and_then(|it| it.pid);
        let finds = gateways_word::finds(word, name, id);
        let is = match pid {
            Some(_) if finds.doubt().is_none() => Is::Well,
            Some(_) if finds.is_dead() => Is::Dead,
            Some(_) | None => Is::Unsure,
        };
        (id.clone(), Instance { pid, is })
    });
    Some(Service {
        instances: instances.collect(),
        restart_after_ms: http.health.restart_after_ms,
        start_within_ms: http.health.start_within_ms,
    })
}

/// Who is held, in the answer of `status`.
pub fn holds(held: &[Held]) -> Vec<Value> {
    let holds = held.iter().map(|it| {
        let why = format!("{} is unhealthy and is not started anew: {}", it.instance, it.why);
        json!({
            "service": it.service, "rule": "hung", "why": why, "since": it.since,
            "recheck_at": null, "needs_operator": false, "evidence": [], "unblocks": it.unblocks,
            "journal": null,
        })
    });
    holds.collect()
}

/// Judges again and again, and starts anew what hangs. Two at a time would do no harm: each names the
/// process that is meant.
pub async fn tend(cluster: &Cluster) {
    let mut watches: BTreeMap<String, Watch> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let (spec, reports, word) = (cluster.spec(), cluster.reports(), cluster.word());
        // Without the store nobody knows what gateways find.
        if word.revision.is_none() {
            continue;
        }
        watches.retain(|name, _| spec.http(name).is_some());
        let mut held = Vec::new();
        for (service, http) in spec.http_services() {
            let now = clock::now();
            let Some(seen) = look(service, http, &spec, &reports, &word, now.0) else { continue };
            let watch = watches.entry(service.clone()).or_default();
            for (instance, verdict) in watch.look(&seen, now) {
                match verdict {
                    Verdict::Restart { pid, for_ms } => {
                        if restart(cluster, http, (service, &instance), pid, for_ms).await {
                            watch.restarted(&instance, now);
                        }
                    }
                    Verdict::Hold(why) => {
                        let known = word.held_instances.iter();
                        let mut known =
                            known.filter(|it| it.service == *service && it.instance == instance);
                        let since = known.next().map_or_else(clock::wall, |it| it.since.clone());
                        let unblocks = why.unblocks().to_string();
                        let (service, why) = (service.clone(), why.to_string());
                        held.push(Held { service, instance, why, unblocks, since });
                    }
                }
            }
        }
        if held != word.held_instances
            && let Err(error) = cluster.put_word(HELD, &held).await
        {
            tracing::warn!(%error, "cannot tell why instances are not started anew");
        }
    }
}

/// False: it was not asked.
async fn restart(
    cluster: &Cluster,
    http: &HttpSpec,
    (service, instance): (&str, &str),
    pid: i32,
    for_ms: u64,
) -> bool {
    let Some((_, placed)) = http.placed().find(|(id, _)| *id == instance) else { return false };
    let for_s = for_ms / 1_000;
    let who = format!("coordinator, since all gateways have found it unhealthy for {for_s} s");
    let (service, instance) = (service.to_string(), instance.to_string());
    tracing::warn!(service, instance, for_s, "it hangs, and is started anew");
    let ask = Ask::RestartInstance { service, instance, pid: Some(pid), who };
    let asked = cluster.ask(&placed.node, &ask).await;
    asked.inspect_err(|error| tracing::warn!(%error, "it is not started anew yet")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Presence;
    use crate::link::Report;
    use everhold_core::rollout::Rollout;
    use everhold_core::run::Instance as Told;
    use std::sync::Arc;

    /// Instances as their nodes tell: `ID:STATE`; what the gateway finds: `ID:FOUND`.
    fn seen(keys: &str, told: &str, finds: &str, rollout: Option<&str>) -> Option<String> {
        let text = format!(
            "schema = 1\ncluster = \"shop\"\n[service.main]\nkind = \"postgres\"\n\
             [service.api]\nkind = \"http\"\ncommand = [\"x\"]\n{keys}"
        );
        let mut spec = crate::spec::load_with(&text, "f", Default::default()).expect("valid");
        spec = spec.with_drained("api", "c.1", true);
        let reports = told.split_whitespace().map(|text| {
            let (id, state) = text.split_once(':').expect("a state");
            let state = serde_json::from_value(json!(state)).expect("a state");
            let told = Told { state, pid: Some(7), ..Told::default() };
            let of = [("api".to_string(), [(id.to_string(), told)].into())].into();
            let node = id.split('.').next().unwrap_or_default().to_string();
            let report = Report { node: node.clone(), instances: of, ..Report::default() };
            (node, (Arc::new(report), 1_000))
        });
        let found = finds.split_whitespace().filter_map(|it| it.split_once(':'));
        let found: BTreeMap<&str, Value> =
            found.map(|(id, is)| (id, json!({ "is": is }))).collect();
        let snapshot = json!({ "services": { "api": found } });
        let presence = Presence { pid: 1, snapshot, ..Presence::default() };
        let rollout = rollout.map(|service| Rollout {
            service: Some(service.to_string()),
            by: String::new(),
            at: String::new(),
            before: BTreeMap::new(),
            epochs: BTreeMap::new(),
            doing: Default::default(),
            broken: Default::default(),
            state: State::Running,
            journal: None,
        });
        let word = StoreWord {
            gateways: [("g".to_string(), presence)].into(),
            rollout: rollout.map(|it| (it, 1)),
            ..StoreWord::default()
        };
        let http = spec.http("api").expect("api");
        let service = look("api", http, &spec, &reports.collect(), &word, 1_000)?;
        let shown =
            service.instances.iter().map(|(id, it)| format!("{id} {:?} {:?}", it.pid, it.is));
        Some(shown.collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn what_runs_and_is_in_use_is_judged_by_what_gateways_find() {
        let path = "health = { path = \"/\" }";
        let told = "a.1:running b.1:running c.1:running";
        let found = "a.1:healthy b.1:unhealthy c.1:unhealthy";
        let shown = |text: &str| Some(text.to_string());
        let whole = seen(path, told, found, None);
        assert_eq!(whole, shown("a.1 Some(7) Well, b.1 Some(7) Dead"), "c.1 is out of use");
        // Its checks succeed; one that ends, or whose agent is silent, is no business of this.
        let other = seen(path, "a.1:stopping", "a.1:unhealthy b.1:unhealthy", None);
        assert_eq!(other, shown("a.1 None Unsure, b.1 None Unsure"));
        let ejected = seen(path, "a.1:running b.1:running", "a.1:ejected", None);
        assert_eq!(ejected, shown("a.1 Some(7) Unsure, b.1 Some(7) Unsure"));
        assert!(seen(path, told, found, Some("web")).is_some());
        assert_eq!(seen(path, told, found, Some("api")), None, "a rollout judges itself");
        let off = "health = { path = \"/\", restart_after = \"0s\" }";
        assert_eq!(seen(off, told, found, None), None);
        assert_eq!(seen("", told, found, None), None, "it may listen nowhere");
    }
}
