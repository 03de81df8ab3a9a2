//! A thread of its own that checks instances and judges who is used. It goes on while those that carry
//! requests have no time.

use super::check;
use super::id::Ids;
use super::live::{Judged, Live, Shared, Verdict};
use everhold_core::http::balance::{share, slow_start};
use everhold_core::http::outlier::{Change, Judge, RUN};
use everhold_core::http::probe::{Health, Probe};
use everhold_core::http::route::HttpService;
use everhold_core::http::usable::{alive, usable};
use everhold_core::route::RouteTable;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Between two looks at what was counted.
const STEP: Duration = Duration::from_millis(100);
/// Between two looks whether certificates have changed.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// Results of checks on their way.
const RESULTS_MAX: usize = 1_024;

/// A check that has ended.
struct Checked {
    service: String,
    name: String,
    live: Arc<Live>,
    ok: bool,
}

struct Service {
    spec: HttpService,
    judge: Judge,
    backends: Vec<Backend>,
    usable: Vec<usize>,
}

struct Backend {
    name: String,
    live: Arc<Live>,
    probe: Probe,
    checking: bool,
    /// When it was first used, or was back.
    since_ms: u64,
}

struct Court {
    shared: Arc<Shared>,
    services: BTreeMap<String, Service>,
    begun: Instant,
    ids: Ids,
    results: mpsc::Sender<Checked>,
}

/// Judges until the gateway is dropped.
pub async fn run(shared: Arc<Shared>, mut tables: watch::Receiver<Arc<RouteTable>>) {
    let (results, mut checked) = mpsc::channel(RESULTS_MAX);
    let begun = Instant::now();
    let mut court = Court {
        shared: shared.clone(),
        services: BTreeMap::new(),
        begun,
        ids: Ids::begin(),
        results,
    };
    let first = tables.borrow_and_update().clone();
    court.apply(&first);
    let mut step = tokio::time::interval(STEP);
    step.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut renew = tokio::time::interval(RENEW_EVERY);
    let mut reading: Option<JoinHandle<()>> = None;
    loop {
        tokio::select! {
            changed = tables.changed() => {
                if changed.is_err() {
                    return;
                }
                let table = tables.borrow_and_update().clone();
                court.apply(&table);
                renew.reset_immediately();
            }
            Some(result) = checked.recv() => court.heard(&result),
            () = shared.alarm.notified() => {}
            _ = step.tick() => {
                court.check();
                shared.guards.adapt();
                shared.degrade();
            }
            // A disk that hangs holds up no check.
            _ = renew.tick(), if reading.as_ref().is_none_or(JoinHandle::is_finished) => {
                let certificates = shared.certificates.clone();
                reading = Some(tokio::task::spawn_blocking(move || certificates.renew()));
            }
        }
        court.judge();
        shared.guards.judge(|| court.ids.random());
    }
}

impl Court {
    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// What is known of an instance outlives the table, as long as it is at the same address.
    fn apply(&mut self, table: &RouteTable) {
        let (now_ms, first) = (self.now_ms(), self.services.is_empty());
        let mut before = std::mem::take(&mut self.services);
        for (name, spec) in &table.http.services {
            let old = before.remove(name);
            let mut old_backends: Vec<Option<Backend>> = Vec::new();
            let judge = old.map(|old| {
                old_backends = old.backends.into_iter().map(Some).collect();
                old.judge
            });
            let (mut backends, mut from) = (Vec::new(), Vec::new());
            for (it, live) in spec.backends.iter().zip(self.shared.lives_of(name, spec)) {
                let known = old_backends
                    .iter()
                    .position(|old| old.as_ref().is_some_and(|old| Arc::ptr_eq(&old.live, &live)));
                from.push(known);
                let kept = known.and_then(|known| old_backends[known].take());
                backends.push(kept.unwrap_or_else(|| Backend {
                    name: it.name.clone(),
                    live,
                    probe: Probe::new(now_ms),
                    checking: false,
                    // Where all are new nobody is spared for it.
                    since_ms: if first { 0 } else { now_ms },
                }));
            }
            let judge = judge.map_or_else(|| Judge::new(backends.len()), |it| it.moved(&from));
            let service = Service { spec: spec.clone(), judge, backends, usable: Vec::new() };
            self.services.insert(name.clone(), service);
        }
        // Threads have new lists, whoever is on them.
        self.shared.changed();
    }

    /// Begins the checks that are due.
    fn check(&mut self) {
        let now_ms = self.now_ms();
        for (name, service) in &mut self.services {
            for backend in &mut service.backends {
                if backend.checking || backend.probe.due_ms() > now_ms {
                    continue;
                }
                backend.checking = true;
                let (results, spec) = (self.results.clone(), service.spec.clone());
                let (live, service, name) =
                    (backend.live.clone(), name.clone(), backend.name.clone());
                tokio::spawn(async move {
                    let ok = check::is_well(live.address, &spec.health, spec.version).await;
                    // Nobody hears it only if the gateway is being dropped.
                    let _ = results.send(Checked { service, name, live, ok }).await;
                });
            }
        }
    }

    fn heard(&mut self, result: &Checked) {
        let (now_ms, random) = (self.now_ms(), self.ids.random());
        let Some(service) = self.services.get_mut(&result.service) else { return };
        let Service { spec, judge, backends, .. } = service;
        let found = backends.iter_mut().enumerate().find(|(_, it)| it.name == result.name);
        let Some((index, backend)) = found else { return };
        if !Arc::ptr_eq(&backend.live, &result.live) {
            return;
        }
        backend.checking = false;
        let before = backend.probe.health();
        backend.probe.checked(result.ok, &spec.health, now_ms, random);
        match (before, backend.probe.health()) {
            (Health::Unhealthy, Health::Healthy) => {
                judge.revived(index);
                backend.live.forgive();
                backend.since_ms = now_ms;
            }
            (Health::Unknown, Health::Healthy) if backend.since_ms > 0 => {
                backend.since_ms = now_ms;
            }
            _ => {}
        }
        if let Some((since_ms, cause)) = judge.ejection(index)
            && backend.probe.clears(cause, since_ms, &spec.health)
            && judge.lift(index, now_ms).is_some()
        {
            backend.live.forgive();
            backend.since_ms = now_ms;
        }
    }

    /// Says who is used, with which share.
    fn judge(&mut self) {
        let now_ms = self.now_ms();
        let mut changed = false;
        for (name, service) in &mut self.services {
            let Service { spec, judge, backends, usable: used } = service;
            let health: Vec<Health> = backends.iter().map(|it| it.probe.health()).collect();
            let counts: Vec<_> = backends.iter().map(|it| it.live.counts()).collect();
            for (backend, counts) in backends.iter_mut().zip(&counts) {
                // Only one of three may be ejected: of two that were killed a check finds the other.
                if counts.run.unreachable && counts.run.length >= RUN {
                    backend.probe.suspected(&spec.health, now_ms);
                }
            }
            let random = self.ids.random();
            for change in judge.step(now_ms, &alive(&health), &counts, random) {
                match change {
                    Change::Ejected { backend, cause, until_ms } => {
                        let (backend, for_ms) = (&backends[backend].name, until_ms - now_ms);
                        tracing::warn!(service = name, backend, ?cause, for_ms, "ejected");
                    }
                    Change::Back { backend } => {
                        let backend = &mut backends[backend];
                        backend.live.forgive();
                        backend.since_ms = now_ms;
                        tracing::info!(service = name, backend = backend.name, "back on trial");
                    }
                }
            }
            let now = usable(&health, |i| judge.ejected(i));
            for (i, (backend, declared)) in backends.iter().zip(&spec.backends).enumerate() {
                let slow = slow_start(backend.since_ms, now_ms, spec.slow_start_ms);
                let slow = if backend.since_ms == 0 { 1_000 } else { slow };
                let weight = share(&spec.balance, declared.weight, slow);
                // Zones share out by weight.
                changed |= backend.live.weight.swap(weight, Relaxed) != weight;
                backend.live.usable.store(now.backends.binary_search(&i).is_ok(), Relaxed);
            }
            if now.backends != *used {
                tracing::info!(
                    service = name,
                    used = now.backends.len(),
                    of = backends.len(),
                    why = ?now.why,
                    "instances in use"
                );
                used.clone_from(&now.backends);
                changed = true;
            }
        }
        if changed {
            self.shared.changed();
        }
        self.tell();
    }

    fn tell(&self) {
        let judged = self.services.iter().map(|(name, service)| {
            let health: Vec<Health> = service.backends.iter().map(|it| it.probe.health()).collect();
            let why = usable(&health, |i| service.judge.ejected(i)).why;
            let verdict = |(i, it): (usize, &Backend)| {
                let verdict = Verdict {
                    health: it.probe.health(),
                    ejected: service.judge.ejected(i),
                    used: service.usable.binary_search(&i).is_ok(),
                };
                (it.name.clone(), verdict)
            };
            let backends = service.backends.iter().enumerate().map(verdict).collect();
            (name.clone(), Judged { why, backends })
        });
        self.shared.tell(judged.collect());
    }
}
