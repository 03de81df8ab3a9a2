//! Rollouts as the coordinator carries them out; `core/src/rollout.rs` decides each step.

use crate::agent::{self, Ask};
use crate::cluster::{Cluster, ClusterError, Reports, StoreWord};
use crate::failovers::Kind;
use crate::link::Report;
use crate::{clock, gateways_word, nodes};
use everhold_core::finds::Finds;
use everhold_core::ids::Time;
use everhold_core::kv::{Expect, Txn};
use everhold_core::records::encode;
use everhold_core::rollout::{Node, Rollout, State, Step, Tried, Watch, next};
use everhold_core::run::{DRAIN_MS, RunState, WATCH_MS};
use everhold_core::spec::{HttpSpec, Spec};
use everhold_core::status::State as InstanceState;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// A step whose effect isn't seen is asked for again.
const AGAIN: Duration = Duration::from_secs(5);

/// The key of the newest rollout.
pub fn key(cluster: &str) -> String {
    format!("/everhold/{cluster}/rollout")
}

/// What a rollout is about, as it is now: nodes, or the instances of an HTTP service. `None`: no such
/// service.
pub fn look(
    service: Option<&str>,
    spec: &Spec,
    reports: &Reports,
    word: &StoreWord,
    now_ms: u64,
) -> Option<BTreeMap<String, Node>> {
    if let Some((service, http)) = service.and_then(|name| Some((name, spec.http(name)?))) {
        return Some(of_http((service, http), spec, reports, word, now_ms));
    }
    let names: Vec<String> = match service {
        Some(name) => spec.postgres(name)?.nodes.clone(),
        None => spec.nodes.keys().cloned().collect(),
    };
    let services: Vec<&String> = spec
        .databases()
        .map(|(name, _)| name)
        .filter(|name| service.is_none_or(|it| it == *name))
        .collect();
    let takers = services.iter().flat_map(|name| nodes::takers(name, spec, reports, word, now_ms));
    let takers: BTreeSet<String> = takers.collect();
    let nodes = names.into_iter().map(|node| {
        let Some(report) = nodes::fresh(reports, &node, now_ms) else {
            let unwell = Some("its agent is not heard".to_string());
            return (node, Node { unwell, ..Node::default() });
        };
        let on: Vec<Instance> =
            services.iter().filter_map(|name| instance(spec, word, report, name, &node)).collect();
        let pid = match service {
            Some(_) => on.first().and_then(|instance| instance.pid),
            None => i32::try_from(report.pid).ok(),
        };
        let found = Node {
            pid,
            leads: on.iter().any(|instance| instance.leads),
            fit: takers.contains(&node),
            unwell: on.into_iter().find_map(|instance| instance.unwell),
            ..Node::default()
        };
        (node, found)
    });
    Some(nodes.collect())
}

/// The instances of an HTTP service: none leads. One that runs is well when all gateways that tell of
/// the service find it so; who is out of use, or gets no requests, is well when it runs.
fn of_http(
    (service, http): (&str, &HttpSpec),
    spec: &Spec,
    reports: &Reports,
    word: &StoreWord,
    now_ms: u64,
) -> BTreeMap<String, Node> {
    let judged = gateways_word::judge(spec, service, http);
    let grace_ms = http.run().map_or(0, |run| run.stop.grace_ms);
    let drain_ms = spec.drain_ms(service).max(DRAIN_MS);
    let back_within_ms = drain_ms + grace_ms + http.health.start_within_ms + WATCH_MS;
    let instances = http.placed().map(|(id, placed)| {
        let told = nodes::fresh(reports, &placed.node, now_ms)
            .map(|report| report.instances.get(service).and_then(|all| all.get(id)));
        let judged = judged && !http.drained.contains(id);
        let finds = judged.then(|| gateways_word::finds(word, service, id));
        let unwell = match told {
            None => Some("the agent of its node is not heard".to_string()),
            Some(None) => Some("nothing is known of it yet".to_string()),
            Some(Some(it)) => match it.state {
                RunState::Running => finds.as_ref().and_then(Finds::doubt),
                state => Some(format!("is {}", crate::instances::shown::word(state))),
            },
        };
        let told = told.flatten();
        // What has just begun is not judged yet, and may hear its clients in a moment.
        let broken = told.is_some_and(|it| it.settled) && finds.is_some_and(|it| it.is_broken());
        let (pid, outdated) = (told.and_then(|it| it.pid), told.is_some_and(|it| it.outdated));
        (
            id.clone(),
            Node { pid, fit: true, unwell, outdated, broken, back_within_ms, ..Node::default() },
        )
    });
    instances.collect()
}

/// One that was started anew and ended again.
fn crashed(rollout: &Rollout, spec: &Spec, reports: &Reports) -> Option<String> {
    let service = rollout.service.as_ref()?;
    let http = spec.http(service)?;
    http.placed().filter(|(id, _)| rollout.doing.contains(*id)).find_map(|(id, placed)| {
        let told = reports.get(&placed.node)?.0.instances.get(service)?.get(id)?;
        let old = told.outdated || rollout.before.get(id).is_some_and(|pid| *pid == told.pid);
        let ended = match told.state {
            RunState::Backoff => true,
            RunState::Starting | RunState::Running => told.restarts > 0,
            // The old one is on its way out.
            RunState::Stopping | RunState::Stopped => false,
        };
        let exit = told.last_exit.as_ref().filter(|_| ended && !old)?;
        Some(format!("{id} ended again: {}", exit.reason))
    })
}

struct Instance {
    pid: Option<i32>,
    leads: bool,
    unwell: Option<String>,
}

fn instance(
    spec: &Spec,
    word: &StoreWord,
    report: &Report,
    service: &str,
    node: &str,
) -> Option<Instance> {
    let declared = spec.postgres(service).filter(|it| it.nodes.iter().any(|n| n == node))?;
    let policy = agent::policy(spec, declared);
    let Some(status) = report.services.get(service) else {
        let unwell = Some(format!("nothing is known of its {service}"));
        return Some(Instance { pid: None, leads: false, unwell });
    };
    let term = word.terms.get(service);
    let leader = term.map(|term| term.leader.node.clone()).unwrap_or_default();
    let leads = status.serving.is_some() && leader == node;
    let member = term.is_some_and(|term| term.target.members.contains(&status.member));
    // Beside the leader, where the set is spread, and on the way out it need not acknowledge.
    let excused = policy.leaves(node)
        || (!policy.domains.0.is_empty() && !policy.domains.apart(&leader, node));
    let unwell = match status.state {
        InstanceState::Open if leads => None,
        InstanceState::Streaming if member || excused => None,
        InstanceState::Streaming => Some(format!("its {service} does not acknowledge yet")),
        state => Some(format!("its {service} is {}", crate::status::word(&state))),
    };
    Some(Instance { pid: status.pid, leads, unwell })
}

/// A failover that happened since, in words: no rollout makes one.
fn doubt(rollout: &Rollout, word: &StoreWord) -> Option<String> {
    let changes = word.last_failover.iter().filter(|(service, change)| {
        let since = rollout.epochs.get(*service).is_some_and(|epoch| change.epoch > *epoch);
        // Without the entry that began it nobody knows what it was.
        since && change.kind == Kind::Failover && change.rule.is_some()
    });
    let (service, change) = changes.into_iter().next()?;
    Some(format!("{service} failed over to {} at epoch {}", change.to, change.epoch))
}

/// Carries out the rollout of the store, whenever there is one that runs. Two at a time would ask
/// for the same steps, which name the process they are meant for.
pub async fn tend(cluster: &Cluster) {
    let mut waiting: Option<Time> = None;
    let mut asked: Option<Instant> = None;
    let mut tried: Option<Tried> = None;
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let word = cluster.word();
        let Some((rollout, rev)) = word.rollout.clone().filter(|_| word.revision.is_some()) else {
            continue;
        };
        if rollout.state != State::Running {
            (waiting, asked, tried) = (None, None, None);
            watch = Watch::default();
            continue;
        }
        let now = clock::now();
        let service = rollout.service.as_deref();
        let (spec, reports) = (cluster.spec(), cluster.reports());
        let nodes = look(service, &spec, &reports, &word, now.0);
        let mut nodes = nodes.unwrap_or_default();
        if service.is_some_and(|name| spec.http(name).is_some()) {
            watch.take(&rollout, &mut nodes, now);
        }
        let doubt = doubt(&rollout, &word).or_else(|| crashed(&rollout, &spec, &reports));
        let step = next(&rollout, &nodes, doubt, waiting, tried.as_ref(), now);
        waiting = match &step {
            Step::Wait { .. } => waiting.or(Some(now)),
            _ => None,
        };
        if tried.as_ref().is_none_or(|tried| tried.step != step) {
            (asked, tried) = (None, Some(Tried { step: step.clone(), since: now, refused: None }));
        }
        if asked.is_some_and(|at| at.elapsed() < AGAIN) {
            continue;
        }
        let done = carry_out(cluster, &rollout, rev, &nodes, &step).await;
        asked = matches!(done, Ok(true)).then(Instant::now);
        if let Some(tried) = &mut tried {
            tried.refused = match &done {
                Err(ClusterError::Refused { why, .. }) => Some(why.clone()),
                Ok(_) | Err(_) => None,
            };
        }
        if let Err(error) = done {
            tracing::warn!(%error, ?step, "the rollout's step is tried again");
        }
    }
}

/// True if somebody was asked.
async fn carry_out(
    cluster: &Cluster,
    rollout: &Rollout,
    rev: u64,
    nodes: &BTreeMap<String, Node>,
    step: &Step,
) -> Result<bool, ClusterError> {
    let who = format!("rollout of {}", rollout.by);
    // On record before it is asked: whoever coordinates next knows who may be unwell, and why.
    let doing = |nodes: &[&String]| -> Rollout {
        let doing: BTreeSet<String> = nodes.iter().map(|node| (*node).clone()).collect();
        Rollout { doing, ..rollout.clone() }
    };
    match step {
        Step::Wait { .. } => Ok(false),
        Step::Renew { node } => {
            if !record(cluster, rollout, doing(&[node]), rev).await? {
                return Ok(false);
            }
            let pid = nodes.get(node).and_then(|it| it.pid);
            let spec = cluster.spec();
            let http = rollout.service.as_ref().and_then(|name| Some((name, spec.http(name)?)));
            if let Some((service, http)) = http {
                let placed = http.placed().find(|(id, _)| *id == node);
                let Some((_, placed)) = placed else { return Ok(false) };
                let (service, instance) = (service.clone(), node.clone());
                let ask = Ask::RestartInstance { service, instance, pid, who };
                return cluster.ask(&placed.node, &ask).await.map(|_| true);
            }
            let Some(pid) = pid else { return Ok(false) };
            let ask = match &rollout.service {
                Some(service) => Ask::Restart { service: service.clone(), pid, who },
                None => Ask::Renew { pid: Some(pid), who },
            };
            cluster.ask(node, &ask).await.map(|_| true)
        }
        Step::HandOver { from, to } => {
            if !record(cluster, rollout, doing(&[from, to]), rev).await? {
                return Ok(false);
            }
            let service = rollout.service.clone().unwrap_or_default();
            let ask = Ask::Switchover { service, to: Some(to.clone()), who };
            cluster.ask(from, &ask).await.map(|_| true)
        }
        Step::Stop { why } => {
            tracing::warn!(why, "the rollout stops");
            let state = State::Stopped { why: why.clone() };
            record(cluster, rollout, Rollout { state, ..rollout.clone() }, rev).await.map(|_| false)
        }
        Step::Done => {
            let state = State::Done;
            record(cluster, rollout, Rollout { state, ..rollout.clone() }, rev).await.map(|_| false)
        }
    }
}

/// Writes the record under guard, if it says something new. False: somebody else changed it.
async fn record(
    cluster: &Cluster,
    old: &Rollout,
    new: Rollout,
    rev: u64,
) -> Result<bool, ClusterError> {
    if new == *old {
        return Ok(true);
    }
    let key = key(&cluster.name);
    let txn = Txn::new().guard(&key, Expect::Rev(rev)).put(&key, encode(&new));
    cluster.write(&txn).await
}

/// Begins a rollout, unless one runs. False: another one began meanwhile.
pub async fn begin(cluster: &Cluster, rollout: &Rollout) -> Result<bool, ClusterError> {
    let key = key(&cluster.name);
    let expect = match cluster.word().rollout {
        Some((_, rev)) => Expect::Rev(rev),
        None => Expect::Absent,
    };
    cluster.write(&Txn::new().guard(&key, expect).put(&key, encode(rollout))).await
}
