//! What all threads of a gateway know of the instances: counted by each, judged by one.

use super::cache::{self, Store};
use super::guards::Guards;
use super::rates::Rates;
use super::strain::Told;
use super::tls::Certificates;
use crate::door::Door;
use everhold_core::http::outlier::{Counts, RUN, Run};
use everhold_core::http::route::{Backend, HttpService};
use everhold_core::http::usable::Why;
use everhold_core::http::{HttpTable, probe::Health};
use ring::hmac;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::Notify;

/// One instance of one service.
pub struct Live {
    pub address: SocketAddr,
    /// Whether requests go there.
    pub usable: AtomicBool,
    /// Its share in thousandths: its weight, less while it is new.
    pub weight: AtomicU32,
    /// What its node tells of its load, in thousandths.
    pub load: AtomicU32,
    /// Requests on their way, over all threads.
    pub active: AtomicU32,
    /// Connections that have changed to another protocol: they are no work to balance by.
    pub tunnels: AtomicU32,
    /// Answers, and tries that failed, of which the judge has not heard.
    succeeded: AtomicU32,
    failed: AtomicU32,
    /// Failures since the last success, and those of them that found no connection.
    run: AtomicU32,
    unreachable: AtomicU32,
    /// Since the start, for who looks.
    pub requests: AtomicU64,
    pub failures: AtomicU64,
}

impl Live {
    fn new(address: SocketAddr, usable: bool) -> Live {
        Live {
            address,
            usable: AtomicBool::new(usable),
            weight: AtomicU32::new(1_000),
            load: AtomicU32::new(0),
            active: AtomicU32::new(0),
            tunnels: AtomicU32::new(0),
            succeeded: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            run: AtomicU32::new(0),
            unreachable: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    pub fn succeed(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.succeeded.fetch_add(1, Relaxed);
        if self.run.load(Relaxed) > 0 {
            self.run.store(0, Relaxed);
            self.unreachable.store(0, Relaxed);
        }
    }

    /// A try failed. `true`: so many in a row that it should be judged at once.
    pub fn fail(&self, reached: bool) -> bool {
        self.requests.fetch_add(1, Relaxed);
        self.failures.fetch_add(1, Relaxed);
        self.failed.fetch_add(1, Relaxed);
        if !reached {
            self.unreachable.fetch_add(1, Relaxed);
        }
        self.run.fetch_add(1, Relaxed) + 1 >= RUN
    }

    /// What there was since it was asked last.
    pub fn counts(&self) -> Counts {
        let length = self.run.load(Relaxed);
        Counts {
            succeeded: self.succeeded.swap(0, Relaxed),
            failed: self.failed.swap(0, Relaxed),
            run: Run { length, unreachable: self.unreachable.load(Relaxed) >= length },
        }
    }

    /// What is on its way to it, or goes on.
    pub fn under_way(&self) -> u32 {
        self.active.load(Relaxed) + self.tunnels.load(Relaxed)
    }

    /// It begins anew.
    pub fn forgive(&self) {
        self.run.store(0, Relaxed);
        self.unreachable.store(0, Relaxed);
    }
}

/// By service and name of the instance.
type Lives = BTreeMap<(String, String), Arc<Live>>;

/// How busy instances are, by service and name: of what each may have of cpu or memory, whichever is
/// nearer its end, so many thousandths.
pub type Loads = BTreeMap<String, BTreeMap<String, u32>>;

/// How an instance is judged, for who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub health: Health,
    pub ejected: bool,
    /// Requests go there.
    pub used: bool,
}

/// How the instances of a service are judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub why: Why,
    pub backends: BTreeMap<String, Verdict>,
}

/// What threads share.
pub struct Shared {
    lives: Mutex<Lives>,
    judged: Mutex<BTreeMap<String, Judged>>,
    /// Rises when it changes who is used.
    version: AtomicU64,
    pub certificates: Certificates,
    /// Who waits for which service, and which are asked at all.
    pub guards: Guards,
    /// From the first table on that keeps answers.
    pub cache: OnceLock<Arc<Store>>,
    /// Signs what clients keep for the gateway.
    secret: [u8; 32],
    /// Somebody fails so often that it should be judged at once.
    pub alarm: Notify,
    pub rates: Rates,
    pub door: Arc<Door>,
    /// Of each thread that carries requests.
    strains: Mutex<Vec<Arc<Told>>>,
}

impl Shared {
    pub fn new(secret: [u8; 32]) -> Shared {
        Shared {
            lives: Mutex::default(),
            judged: Mutex::default(),
            version: AtomicU64::new(0),
            certificates: Certificates::default(),
            guards: Guards::default(),
            cache: OnceLock::new(),
            secret,
            alarm: Notify::new(),
            rates: Rates::new(sign(&secret, b"rate limits")),
            door: Arc::default(),
            strains: Mutex::default(),
        }
    }

    /// HMAC-SHA-256 with the secret that all gateways have.
    pub fn sign(&self, text: &[u8]) -> [u8; 32] {
        sign(&self.secret, text)
    }

    pub fn strains(&self) -> MutexGuard<'_, Vec<Arc<Told>>> {
        self.strains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lives(&self) -> MutexGuard<'_, Lives> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judged_now(&self) -> MutexGuard<'_, BTreeMap<String, Judged>> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn version(&self) -> u64 {
        self.version.load(std::sync::atomic::Ordering::Acquire)
    }

    /// After who is used has changed.
    pub fn changed(&self) {
        self.version.fetch_add(1, std::sync::atomic::Ordering::Release);
    }

    pub fn judged(&self) -> BTreeMap<String, Judged> {
        self.judged_now().clone()
    }

    /// Says which routes are served in which mode, by what is known now.
    pub fn degrade(&self) {
        let judged = self.judged_now();
        let down =
            |service: &str| judged.get(service).is_some_and(|it| it.why == Why::NobodyHealthy);
        let short = self.strains().iter().any(|told| told.state().refused > 0);
        self.guards.degrade(down, short);
    }

    pub fn tell(&self, judged: BTreeMap<String, Judged>) {
        // Whoever looks is not kept waiting for what stayed as it is.
        *self.judged_now() = judged;
    }

    /// Begins what a table names, and forgets what it doesn't and nothing is on its way to. Whoever puts tables in force does it
    /// before anybody hears of them, so that all have the same of an instance.
    pub fn adopt(&self, table: &HttpTable) {
        self.certificates.apply(table);
        self.guards.adopt(table);
        match (cache::wanted(table), self.cache.get()) {
            (0, None) => {}
            (0, Some(store)) => store.clear(),
            (bytes, _) => self.cache.get_or_init(|| Store::new(bytes)).resize(bytes),
        }
        self.rates.apply(table);
        self.door.apply(table);
        let mut lives = self.lives();
        let before = std::mem::take(&mut *lives);
        for (service, spec) in &table.services {
            let known = |it: &Backend| {
                let live = before.get(&(service.clone(), it.name.clone()));
                live.filter(|live| live.address == it.address)
            };
            // Where all are new they are used before they are judged, or there would be nobody.
            let first = spec.backends.iter().all(|it| known(it).is_none());
            for it in &spec.backends {
                let live = known(it).cloned();
                let live = live.unwrap_or_else(|| Arc::new(Live::new(it.address, first)));
                lives.insert((service.clone(), it.name.clone()), live);
            }
        }
        for (key, live) in before.into_iter().filter(|(_, live)| live.under_way() > 0) {
            lives.entry(key).or_insert(live);
        }
    }

    /// Of a service's instances, in the table's order. Who is late and asks for one that a newer table
    /// has forgotten gets one that nobody uses: it is about to hear of that table.
    pub fn lives_of(&self, service: &str, spec: &HttpService) -> Vec<Arc<Live>> {
        let lives = self.lives();
        let one = |it: &Backend| {
            let live = lives.get(&(service.to_string(), it.name.clone()));
            let live = live.filter(|live| live.address == it.address).cloned();
            live.unwrap_or_else(|| Arc::new(Live::new(it.address, false)))
        };
        spec.backends.iter().map(one).collect()
    }

    /// What is on its way to each instance, also to those that no table names any more.
    pub fn under_way(&self) -> BTreeMap<(String, String), u32> {
        self.lives().iter().map(|(key, live)| (key.clone(), live.under_way())).collect()
    }

    /// What is told of their load. Who is not told of is taken to be as busy as the others: to be
    /// silent is not to be idle.
    pub fn take_loads(&self, loads: &Loads) {
        for ((service, name), live) in self.lives().iter() {
            let told = loads.get(service).filter(|told| !told.is_empty());
            let mean = |told: &BTreeMap<String, u32>| {
                let sum: u64 = told.values().map(|load| u64::from(*load)).sum();
                (sum / told.len() as u64) as u32
            };
            let load = told.map(|told| told.get(name).copied().unwrap_or_else(|| mean(told)));
            live.load.store(load.unwrap_or(0), Relaxed);
        }
    }
}

fn sign(secret: &[u8; 32], text: &[u8]) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut signature = [0; 32];
    signature.copy_from_slice(hmac::sign(&key, text).as_ref());
    signature
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::spec::{Balance, HealthSpec, Version};

    fn table(backends: &[(&str, u16)]) -> HttpTable {
        let backends = backends.iter().map(|(name, port)| Backend {
            name: name.to_string(),
            address: SocketAddr::from(([127, 0, 0, 1], *port)),
            zone: None,
            weight: 1,
        });
        let service = HttpService {
            backends: backends.collect(),
            balance: Balance::RoundRobin,
            version: Version::Http1,
            affinity: None,
            health: HealthSpec::default(),
            slow_start_ms: 0,
            timeout_ms: 1_000,
            try_timeout_ms: None,
            try_timeout_auto: false,
            hedge_percentile: None,
            idle_timeout_ms: 3_600_000,
            retries: 0,
            bulkhead: None,
            breaker: None,
        };
        HttpTable { services: [("s".to_string(), service)].into(), ..HttpTable::default() }
    }

    /// Threads and the judge hear of tables at different moments, and some of them never.
    #[test]
    fn all_have_the_same_of_an_instance() {
        let shared = Shared::new([0; 32]);
        let lives = |table: &HttpTable| shared.lives_of("s", &table.services["s"]);
        let (one, two) = (table(&[("a", 1)]), table(&[("a", 1), ("x", 2)]));
        shared.adopt(&one);
        let first = lives(&one);
        assert!(first[0].usable.load(Relaxed), "there is nobody else");
        shared.adopt(&two);
        let early = lives(&two);
        assert!(Arc::ptr_eq(&early[0], &first[0]) && !early[1].usable.load(Relaxed));
        // The judge is at the first table still.
        lives(&one);
        assert!(Arc::ptr_eq(&early[1], &lives(&two)[1]));
        // Who is late changes nothing for the others.
        shared.adopt(&table(&[("a", 1), ("x", 3)]));
        assert!(!Arc::ptr_eq(&early[1], &lives(&two)[1]));
        assert_eq!(lives(&table(&[("x", 3)]))[0].address.port(), 3);
        // All others: somebody must be asked.
        shared.adopt(&table(&[("y", 4), ("z", 5)]));
        assert!(lives(&table(&[("y", 4), ("z", 5)])).iter().all(|it| it.usable.load(Relaxed)));
    }
}
