//! The gates, breakers and degraded modes of a gateway, by what they are of. They outlive tables: what
//! was learned and who is inside stays.

use super::degrade::{ModeState, Modes};
use super::gate::{Gate, GateState};
use super::latency::Latency;
use super::switch::Switch;
use everhold_core::http::HttpTable;
use everhold_core::http::breaker::BreakerSpec;
use everhold_core::http::degrade::Cause;
use everhold_core::http::queue::Bulkhead;
use everhold_core::http::route::HttpRoute;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

pub struct Guards {
    begun: Instant,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    services: BTreeMap<String, Arc<Gate>>,
    /// By listener and route.
    routes: BTreeMap<(String, String), Arc<Gate>>,
    switches: BTreeMap<String, Arc<Switch>>,
    latencies: BTreeMap<String, Arc<Latency>>,
    /// By listener and route.
    modes: BTreeMap<(String, String), Arc<Modes>>,
}

/// What gates and breakers are like, for who looks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guarded {
    pub services: BTreeMap<String, GateState>,
    /// By listener and route.
    pub routes: BTreeMap<(String, String), GateState>,
    /// Of each breaker: until its next probe, if it is open.
    pub breakers: BTreeMap<String, Option<Duration>>,
    /// The modes that a route may be served in, by listener and route.
    pub modes: BTreeMap<(String, String), Vec<ModeState>>,
}

impl Default for Guards {
    fn default() -> Guards {
        Guards { begun: Instant::now(), known: Mutex::default() }
    }
}

impl Guards {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time by which breakers go.
    pub fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.begun).as_millis() as u64
    }

    /// Begins what a table names and changes what it has changed, before any thread hears of it.
    pub fn adopt(&self, table: &HttpTable) {
        let now = Instant::now();
        let mut known = self.known();
        let mut before = std::mem::take(&mut *known);
        let gate = |old: Option<Arc<Gate>>, spec: &Bulkhead| match old {
            Some(gate) => {
                gate.set(spec, now);
                gate
            }
            None => Gate::new(spec, now),
        };
        for (name, service) in &table.services {
            if let Some(spec) = &service.bulkhead {
                let gate = gate(before.services.remove(name), spec);
                known.services.insert(name.clone(), gate);
            }
            if let Some(spec) = &service.breaker {
                let switch = before.switches.remove(name).unwrap_or_default();
                switch.set(spec);
                known.switches.insert(name.clone(), switch);
            }
            if service.measures() {
                let latency = before.latencies.remove(name).unwrap_or_default();
                latency.set(service.hedge_percentile);
                known.latencies.insert(name.clone(), latency);
            }
        }
        for (listener, it) in &table.listeners {
            for route in &it.routes {
                let key = (listener.clone(), route.name.clone());
                if let Some(spec) = &route.degraded {
                    let old = before.modes.remove(&key);
                    let old = old.filter(|old| old.is(&route.service, spec));
                    let modes = old.unwrap_or_else(|| Modes::new(&route.service, spec));
                    known.modes.insert(key.clone(), modes);
                }
                let Some(spec) = &route.bulkhead else { continue };
                let gate = gate(before.routes.remove(&key), spec);
                known.routes.insert(key, gate);
            }
        }
    }

    /// Who is late and asks for one that a newer table has forgotten gets one of its own.
    pub fn of_service(&self, name: &str, spec: &Option<Bulkhead>) -> Option<Arc<Gate>> {
        let spec = spec.as_ref()?;
        let known = self.known().services.get(name).cloned();
        Some(known.unwrap_or_else(|| Gate::new(spec, Instant::now())))
    }

    pub fn of_route(
        &self,
        listener: &str,
        route: &str,
        spec: &Option<Bulkhead>,
    ) -> Option<Arc<Gate>> {
        let spec = spec.as_ref()?;
        let known = self.known().routes.get(&(listener.to_owned(), route.to_owned())).cloned();
        Some(known.unwrap_or_else(|| Gate::new(spec, Instant::now())))
    }

    pub fn modes(&self, listener: &str, route: &HttpRoute) -> Option<Arc<Modes>> {
        let spec = route.degraded.as_ref()?;
        let known = self.known().modes.get(&(listener.to_owned(), route.name.clone())).cloned();
        Some(known.unwrap_or_else(|| Modes::new(&route.service, spec)))
    }

    pub fn switch(&self, name: &str, spec: &Option<BreakerSpec>) -> Option<Arc<Switch>> {
        spec.as_ref()?;
        Some(self.known().switches.get(name).cloned().unwrap_or_default())
    }

    pub fn latency(&self, name: &str, is_on: bool) -> Option<Arc<Latency>> {
        is_on.then(|| self.known().latencies.get(name).cloned().unwrap_or_default())
    }

    /// Adapts limits and timeouts to what there was since the last time; now and then.
    pub fn adapt(&self) {
        let now = Instant::now();
        let known = self.known();
        known.services.values().chain(known.routes.values()).for_each(|gate| gate.step(now));
        known.latencies.values().for_each(|latency| latency.step(self.ms(now)));
    }

    /// Judges breakers, also when one of them asks for it.
    pub fn judge(&self, mut random: impl FnMut() -> u64) {
        let now_ms = self.ms(Instant::now());
        for (service, switch) in &self.known().switches {
            switch.step(service, now_ms, random());
        }
    }

    /// Says which routes are served in which mode; now and then. `down`: no instance of that service is
    /// healthy, `short`: of processor time.
    pub fn degrade(&self, down: impl Fn(&str) -> bool, short: bool) {
        let now_ms = self.ms(Instant::now());
        let known = self.known();
        for (key, modes) in &known.modes {
            let service = modes.service();
            modes.step(&key.1, now_ms, |cause| match cause {
                Cause::Breaker => {
                    known.switches.get(service).is_some_and(|it| it.open_for(now_ms).is_some())
                }
                Cause::Down => down(service),
                Cause::Queue => {
                    let gates = [known.services.get(service), known.routes.get(key)];
                    gates.into_iter().flatten().any(|gate| gate.is_crowded())
                }
                Cause::Cpu => short,
            });
        }
    }

    pub fn state(&self) -> Guarded {
        let now_ms = self.ms(Instant::now());
        let known = self.known();
        Guarded {
            services: known.services.iter().map(|(name, it)| (name.clone(), it.state())).collect(),
            routes: known.routes.iter().map(|(key, it)| (key.clone(), it.state())).collect(),
            breakers: known
                .switches
                .iter()
                .map(|(name, it)| (name.clone(), it.open_for(now_ms)))
                .collect(),
            modes: known.modes.iter().map(|(key, it)| (key.clone(), it.state(now_ms))).collect(),
        }
    }
}
