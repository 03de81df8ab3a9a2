//! What one thread knows of HTTP: its compiled table, its connections to instances.

use super::backend::Backend;
use super::cache::{self, Cached};
use super::degrade::Modes;
use super::gate::Gate;
use super::id::Ids;
use super::latency::Latency;
use super::ledger::Ledger;
use super::live::Shared;
use super::rates::Limiter;
use super::request::Request;
use super::strain::{self, Strained};
use super::streams::Desks;
use super::switch::Switch;
use crate::snapshot::Counters;
use everhold_core::http::affinity::{Cookies, Stick, by_header};
use everhold_core::http::balance::{Seen, Turn, pick};
use everhold_core::http::ewma::{EXPECTED_US, PeakEwma};
use everhold_core::http::hash::mix;
use everhold_core::http::pace::RATE_MIN;
use everhold_core::http::queue::Priority;
use everhold_core::http::retry::Budget;
use everhold_core::http::ring::Ring;
use everhold_core::http::route::{Asked, HttpService, HttpTable, Matcher};
use everhold_core::http::zone::{Place, Tier, choose, tiers};
use everhold_core::spec::{Affinity, Balance, HashKey, Net};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Between two looks for connections that were idle for too long.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// One thread's.
pub struct World {
    /// Itself, for what goes on without a client.
    pub me: Weak<World>,
    begun: Instant,
    /// When that was, in milliseconds since 1970, by a clock that may be set meanwhile.
    begun_ms: Cell<u64>,
    pub ledger: Arc<Ledger>,
    /// The name of what isn't there.
    pub nothing: Arc<str>,
    pub shared: Arc<Shared>,
    pub ids: RefCell<Ids>,
    leaving: (Cell<bool>, Notify),
    table: RefCell<Rc<Table>>,
    /// Rises with each table, so that connections notice.
    generation: Cell<u64>,
    /// They outlive tables as long as nothing of them changes.
    services: RefCell<BTreeMap<String, Rc<Service>>>,
    /// Who serves streams, while it has none.
    pub desks: Desks,
    pub strain: Strained,
}

#[derive(Default)]
struct Table {
    listeners: BTreeMap<String, Rc<Listener>>,
}

/// Where the requests of a listener go.
pub struct Listener {
    routes: Vec<Route>,
    matcher: Matcher,
    /// Who is believed in whom a request is from.
    pub trusted: Vec<Net>,
    pub port: u16,
}

#[derive(Clone)]
pub struct Route {
    pub name: Arc<str>,
    pub service: Rc<Service>,
    pub timeout: Duration,
    /// Its own places.
    pub gate: Option<Arc<Gate>>,
    pub priority: Priority,
    /// `None`: it keeps no answers.
    pub cache: Option<Rc<Cached>>,
    /// Some route of its listener does.
    pub caches: bool,
    pub limiter: Option<Arc<Limiter>>,
    /// Bytes a second of a body.
    pub rate_min: u32,
    /// In which it may be served; `None`: as ever.
    pub modes: Option<Arc<Modes>>,
}

pub struct Service {
    pub name: Arc<str>,
    pub spec: HttpService,
    pub backends: Vec<Rc<Backend>>,
    zones: Vec<Option<String>>,
    /// Of this gateway, and of all.
    here: (Option<String>, BTreeMap<String, u32>),
    /// By which keys are shared out; empty if none are.
    ring: Ring,
    hash: Option<HashKey>,
    /// The cookie that keeps a session where it is, by its name.
    cookies: Option<(String, Cookies)>,
    usable: RefCell<Usable>,
    turn: RefCell<Turn>,
    pub budget: RefCell<Budget>,
    pub gate: Option<Arc<Gate>>,
    pub switch: Option<Arc<Switch>>,
    pub latency: Option<Arc<Latency>>,
}

/// Who is used, as of a version of [`Shared`].
#[derive(Default)]
struct Usable {
    version: Option<u64>,
    tiers: Vec<Tier>,
    /// Wherever they are, ascending.
    all: Vec<usize>,
}

/// Who gets a try, and what the client is to be told for that.
pub struct Picked {
    pub index: usize,
    /// Its session has no place yet.
    pub set_cookie: bool,
    pub why: &'static str,
}

/// A connection's own view of its listener.
pub struct Seat {
    pub name: Arc<str>,
    pub counters: Arc<Counters>,
    seen: u64,
    found: Option<Rc<Listener>>,
}

impl World {
    pub fn new(shared: Arc<Shared>, ledger: Arc<Ledger>) -> Rc<World> {
        let world = Rc::new_cyclic(|me| World {
            me: me.clone(),
            begun: Instant::now(),
            begun_ms: Cell::new(unix_ms()),
            ledger,
            nothing: Arc::from(""),
            shared,
            ids: RefCell::new(Ids::begin()),
            leaving: (Cell::new(false), Notify::new()),
            table: RefCell::default(),
            generation: Cell::new(0),
            services: RefCell::default(),
            desks: Desks::default(),
            strain: Strained::default(),
        });
        world.shared.strains().push(world.strain.told().clone());
        tokio::task::spawn_local(strain::watch(Rc::downgrade(&world)));
        let weak = Rc::downgrade(&world);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                let Some(world) = weak.upgrade() else { return };
                let now = Instant::now();
                world.begun_ms.set(unix_ms().saturating_sub(world.ms(now)));
                world.ledger.flush();
                let services = world.services.borrow();
                let backends = services.values().flat_map(|service| &service.backends);
                backends.for_each(|backend| backend.close_idle(now));
            }
        });
        world
    }

    /// Puts a table in force: requests that are on their way end as they began.
    pub fn apply(&self, table: &HttpTable) {
        let now_ms = self.ms(Instant::now());
        let mut services = self.services.borrow_mut();
        let before = std::mem::take(&mut *services);
        for (name, spec) in &table.services {
            let old = before.get(name);
            let known = old.map(|old| old.backends.as_slice()).unwrap_or_default();
            // A new one is not cheaper than the others because it has done nothing yet.
            let costs = known.iter().map(|it| it.cost.get().cost(now_ms));
            let cost = costs.reduce(f64::max).unwrap_or(EXPECTED_US);
            let lives = self.shared.lives_of(name, spec);
            let backends = spec.backends.iter().zip(lives).map(|(it, live)| {
                let stays = known.iter().find(|known| known.is(&live, spec.version)).cloned();
                stays.unwrap_or_else(|| {
                    let cost = PeakEwma::new(cost, now_ms);
                    Rc::new(Backend::new(&it.name, live, spec.version, cost))
                })
            });
            let service = Service::new(name, spec, backends.collect(), table, &self.shared, old);
            services.insert(name.clone(), service);
        }
        let store = self.shared.cache.get().filter(|_| cache::wanted(table) > 0);
        let listeners = table.listeners.iter().map(|(name, listener)| {
            let caches = store.is_some() && listener.routes.iter().any(|it| it.cache.is_some());
            let (mut routes, mut known) = (Vec::new(), Vec::new());
            for route in &listener.routes {
                let Some(service) = services.get(&route.service) else { continue };
                let timeout_ms = route.timeout_ms.unwrap_or(service.spec.timeout_ms);
                routes.push(Route {
                    name: Arc::from(route.name.as_str()),
                    service: service.clone(),
                    timeout: Duration::from_millis(timeout_ms),
                    gate: self.shared.guards.of_route(name, &route.name, &route.bulkhead),
                    priority: route.priority,
                    cache: route.cache.as_ref().zip(store).map(|(spec, store)| {
                        let (route, service) = (&route.name, &route.service);
                        Rc::new(Cached::new(spec, store.clone(), route, service))
                    }),
                    caches,
                    limiter: self.shared.rates.of(&route.name),
                    rate_min: route.body_rate_min.unwrap_or(RATE_MIN),
                    modes: self.shared.guards.modes(name, route),
                });
                known.push(route.clone());
            }
            let matcher = Matcher::new(&known);
            let (trusted, port) = (listener.trusted_proxies.clone(), listener.bind.port());
            (name.clone(), Rc::new(Listener { routes, matcher, trusted, port }))
        });
        *self.table.borrow_mut() = Rc::new(Table { listeners: listeners.collect() });
        self.generation.set(self.generation.get() + 1);
    }

    /// From now on each connection ends as soon as its client loses nothing by it.
    pub fn leave(&self) {
        self.leaving.0.set(true);
        self.leaving.1.notify_waiters();
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.0.get()
    }

    /// Returns when it is.
    pub async fn leaves(&self) {
        if !self.is_leaving() {
            self.leaving.1.notified().await;
        }
    }

    /// The time by which costs decay, in milliseconds.
    pub fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.begun).as_millis() as u64
    }

    /// The wall clock's time, in milliseconds since 1970.
    pub fn unix_ms(&self, at: Instant) -> u64 {
        self.begun_ms.get() + self.ms(at)
    }

    /// Of the table in force.
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }

    pub fn seat(&self, listener: &Arc<str>, counters: &Arc<Counters>) -> Seat {
        Seat { name: listener.clone(), counters: counters.clone(), seen: 0, found: None }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

impl Seat {
    /// The listener as it is now; `None`: it is gone.
    pub fn listener(&mut self, world: &World) -> Option<&Rc<Listener>> {
        if self.seen != world.generation.get() {
            self.seen = world.generation.get();
            self.found = world.table.borrow().listeners.get(&*self.name).cloned();
        }
        self.found.as_ref()
    }

    /// Where clients come to.
    pub fn port(&mut self, world: &World) -> u16 {
        self.listener(world).map_or(0, |it| it.port)
    }
}

impl Listener {
    pub fn route(&self, request: &Request) -> Option<&Route> {
        self.route_of(request, request.method_name(), request.path())
    }

    /// Where the same goes with another method and path.
    pub fn route_of(&self, request: &Request, method: &[u8], path: &[u8]) -> Option<&Route> {
        let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
        let index = self.matcher.find(&Asked {
            host: &request.host,
            path: text(path),
            method: text(method),
            header: &|name| request.value(name),
        })?;
        self.routes.get(index)
    }
}

impl Service {
    /// The old one if it is the same; else what was spent of its budget goes over.
    fn new(
        name: &str,
        spec: &HttpService,
        backends: Vec<Rc<Backend>>,
        table: &HttpTable,
        shared: &Shared,
        old: Option<&Rc<Service>>,
    ) -> Rc<Service> {
        let here = (table.zone.clone(), table.gateways.clone());
        let gate = shared.guards.of_service(name, &spec.bulkhead);
        let switch = shared.guards.switch(name, &spec.breaker);
        let latency = shared.guards.latency(name, spec.measures());
        let is_same = |old: &Service| {
            let same = |(one, other): (&Rc<Backend>, &Rc<Backend>)| Rc::ptr_eq(one, other);
            old.spec == *spec
                && old.here == here
                && old.gate.as_ref().map(Arc::as_ptr) == gate.as_ref().map(Arc::as_ptr)
                && old.switch.as_ref().map(Arc::as_ptr) == switch.as_ref().map(Arc::as_ptr)
                && old.latency.as_ref().map(Arc::as_ptr) == latency.as_ref().map(Arc::as_ptr)
                && old.backends.iter().zip(&backends).all(same)
        };
        if let Some(old) = old.filter(|old| is_same(old)) {
            return old.clone();
        }
        let hash = match (&spec.affinity, &spec.balance) {
            // Of requests without the header, too.
            (_, Balance::ConsistentHash(key)) => Some(key.clone()),
            (Some(Affinity::Header(name)), _) => Some(HashKey::Header(name.clone())),
            _ => None,
        };
        let cookies = match &spec.affinity {
            Some(Affinity::Cookie(cookie)) => {
                let names = spec.backends.iter().map(|it| it.name.as_str());
                Some((cookie.clone(), Cookies::new(name, names, |text| shared.sign(text))))
            }
            Some(Affinity::Header(_)) | None => None,
        };
        let weights = || spec.backends.iter().map(|it| (it.name.as_str(), it.weight));
        Rc::new(Service {
            name: Arc::from(name),
            spec: spec.clone(),
            zones: spec.backends.iter().map(|it| it.zone.clone()).collect(),
            here,
            ring: if hash.is_some() { Ring::new(weights()) } else { Ring::default() },
            hash,
            cookies,
            usable: RefCell::default(),
            turn: RefCell::new(Turn::new(backends.len())),
            budget: RefCell::new(old.map(|old| old.budget.borrow().clone()).unwrap_or_default()),
            backends,
            gate,
            switch,
            latency,
        })
    }

    /// Who gets the next try: none of those that had one, while there is another.
    pub fn pick(
        &self,
        world: &World,
        request: &Request,
        tried: &[usize],
        now_ms: u64,
    ) -> Option<Picked> {
        let version = world.shared.version();
        if self.usable.borrow().version != Some(version) {
            let (tiers, all) = self.tiers();
            *self.usable.borrow_mut() = Usable { version: Some(version), tiers, all };
        }
        let usable = self.usable.borrow();
        let set_cookie = match &self.cookies {
            Some((name, cookies)) => match cookies.stick(request.cookie(name), &usable.all) {
                Stick::To(index) if !tried.contains(&index) => {
                    return Some(Picked { index, set_cookie: false, why: "its session is there" });
                }
                Stick::To(_) | Stick::SetAnew => true,
                Stick::Free => false,
            },
            None => false,
        };
        if let Some(Affinity::Header(name)) = &self.spec.affinity
            && let Stick::To(index) = by_header(request.value(name), &self.ring, &usable.all)
            && !tried.contains(&index)
        {
            return Some(Picked { index, set_cookie: false, why: "its session is there" });
        }
        let random = world.ids.borrow_mut().random();
        let keyed = Balance::ConsistentHash(HashKey::ClientIp);
        let key = self.hash.as_ref().and_then(|hash| request.key(hash));
        let balance = match (&self.spec.balance, key) {
            (_, Some(_)) => &keyed,
            // There is nothing to hash: as good as any.
            (Balance::ConsistentHash(_), None) => &Balance::PeakEwma,
            (balance, None) => balance,
        };
        let get = |i: usize| {
            let backend = &self.backends[i];
            Seen {
                weight: backend.live.weight.load(Ordering::Relaxed),
                active: backend.live.active.load(Ordering::Relaxed),
                cost_us: backend.cost.get().cost(now_ms),
                load: backend.live.load.load(Ordering::Relaxed),
            }
        };
        let mut turn = self.turn.borrow_mut();
        // A further try takes nobody's turn, or who is spared one leaves it to who is slow or failing.
        let before = (!tried.is_empty()).then(|| turn.clone());
        let mut among = |indices: &[usize]| {
            let random = mix(random);
            pick(balance, indices, &self.ring, get, &mut turn, random, key.unwrap_or(0))
        };
        let index = match tried {
            [] => among(&choose(&usable.tiers, random)?.backends),
            // Then anybody else, wherever.
            tried => {
                let left = usable.all.iter().copied().filter(|index| !tried.contains(index));
                among(&left.collect::<Vec<_>>())
            }
        };
        if let Some(before) = before {
            *turn = before;
        }
        let why = match (tried, balance) {
            ([_, ..], _) => "others had been tried",
            ([], Balance::RoundRobin) => "its turn",
            ([], Balance::Weighted) => "its turn by weight",
            ([], Balance::LeastRequests) => "it had the fewest requests for its weight",
            ([], Balance::LeastLoad) => "it had the least load",
            ([], Balance::PeakEwma) => "of two it should answer sooner",
            ([], Balance::ConsistentHash(_)) => "the request's key is there",
        };
        index.map(|index| Picked { index, set_cookie, why })
    }

    /// Whether anybody is there who was not tried.
    pub fn has_others(&self, tried: &[usize]) -> bool {
        self.usable.borrow().all.iter().any(|index| !tried.contains(index))
    }

    /// The field that keeps a session with an instance.
    pub fn set_cookie(&self, index: usize, tls: bool) -> Option<String> {
        let (name, cookies) = self.cookies.as_ref()?;
        let secure = if tls { "; Secure" } else { "" };
        let value = cookies.value(index);
        Some(format!("Set-Cookie: {name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}\r\n"))
    }

    /// Where first tries go; and everybody, since a session is where it is, and who fails is
    /// succeeded by whoever is left.
    fn tiers(&self) -> (Vec<Tier>, Vec<usize>) {
        let all = self.backends.iter().zip(&self.zones).enumerate();
        let usable = all.filter(|(_, (it, _))| it.live.usable.load(Ordering::Relaxed));
        let keyed = self.hash.is_some();
        let places: Vec<Place<'_>> = usable
            .map(|(backend, (it, zone))| Place {
                backend,
                zone: zone.as_deref(),
                weight: it.live.weight.load(Ordering::Relaxed),
            })
            .collect();
        let (here, gateways) = &self.here;
        let gateways = gateways.iter().map(|(zone, count)| (zone.as_str(), *count)).collect();
        // A key goes to the same instance from everywhere.
        let tiers = tiers(here.as_deref().filter(|_| !keyed), &gateways, &places);
        (tiers, places.iter().map(|place| place.backend).collect())
    }
}
