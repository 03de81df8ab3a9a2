//! One thread of the gateway: its table, its connections, and what a new table does to them.
//!
//! The state is behind a mutex only because a snapshot is taken from outside; it is never held
//! across an await, and the thread that owns it is the only one that uses it in earnest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use everhold_core::balance::least_connections;
use everhold_core::route::{Fate, Instance, ListenerRoute, RouteTable, fate};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::accept::{Arrival, Protocol};
use crate::http::{self, World};
use crate::limits::Limits;
use crate::relay::Relay;
use crate::session;
use crate::snapshot::Counters;
use crate::socket;

/// What all threads share.
pub struct Shared {
    pub limits: Limits,
    /// Connections on their way to a backend, over all threads: see [`Limits::waiting_max`].
    pub unplaced: Arc<AtomicUsize>,
    /// Clients of HTTP.
    pub served: Arc<AtomicUsize>,
    /// Connections to each backend, over all threads. Locked only to choose and to connect.
    loads: Mutex<BTreeMap<SocketAddr, Arc<AtomicUsize>>>,
    turn: AtomicUsize,
    pub http: Arc<http::Shared>,
}

/// One thread.
pub struct Worker {
    pub shared: Arc<Shared>,
    /// Connections handed to this thread and not yet ended.
    pub load: Arc<AtomicUsize>,
    /// Woken when it may be worth choosing a backend again.
    pub changed: Notify,
    relays_started: AtomicU64,
    state: Mutex<State>,
    /// What became of this thread's HTTP requests.
    pub ledger: Arc<http::Ledger>,
}

struct State {
    table: Arc<RouteTable>,
    counters: BTreeMap<String, Arc<Counters>>,
    relays: BTreeMap<u64, Entry>,
    /// Backends that did not answer: one prober asks them again, everybody else waits for it.
    suspects: BTreeSet<SocketAddr>,
}

/// A running relay.
struct Entry {
    listener: String,
    backend: SocketAddr,
    abort: AbortHandle,
    /// It is cut then, unless a table brings its backend back before.
    cut_at: Option<Instant>,
    /// It was cut, and is about to end.
    cut: bool,
    counters: Arc<Counters>,
}

impl Entry {
    fn cut(&mut self) {
        if !self.cut {
            self.counters.cut.fetch_add(1, Ordering::Relaxed);
        }
        self.cut = true;
        self.abort.abort();
    }
}

/// Raises a number for as long as it lives.
pub struct Held(Arc<AtomicUsize>);

impl Held {
    pub fn new(number: &Arc<AtomicUsize>) -> Self {
        number.fetch_add(1, Ordering::Relaxed);
        Held(Arc::clone(number))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A chosen backend, counted as used from the choice on, so that a burst spreads.
pub struct Choice {
    pub backend: SocketAddr,
    pub held: Held,
}

impl Shared {
    /// No more clients of HTTP are let in.
    pub fn is_full(&self) -> bool {
        self.served.load(Ordering::Relaxed) >= self.limits.http_max
    }

    pub fn new(limits: Limits, secret: [u8; 32]) -> Self {
        Shared {
            limits,
            unplaced: Arc::default(),
            served: Arc::default(),
            loads: Mutex::default(),
            turn: AtomicUsize::new(0),
            http: Arc::new(http::Shared::new(secret)),
        }
    }

    fn choose(&self, backends: &[Instance], suspects: &BTreeSet<SocketAddr>) -> Option<Choice> {
        let mut loads = lock(&self.loads);
        let connections: Vec<Option<usize>> = backends
            .iter()
            .map(|backend| {
                let load = loads.get(&backend.address);
                (!suspects.contains(&backend.address))
                    .then(|| load.map_or(0, |load| load.load(Ordering::Relaxed)))
            })
            .collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let backend = backends[least_connections(&connections, turn)?].address;
        let held = Held::new(loads.entry(backend).or_default());
        Some(Choice { backend, held })
    }

    /// Connections to a backend.
    pub fn load(&self, backend: SocketAddr) -> usize {
        lock(&self.loads).get(&backend).map_or(0, |load| load.load(Ordering::Relaxed))
    }

    /// Forgets backends that no table names and no connection uses.
    fn forget_unused(&self, table: &RouteTable) {
        lock(&self.loads).retain(|address, load| {
            load.load(Ordering::Relaxed) > 0
                || table.listeners.values().any(|route| names(route, *address))
        });
    }
}

impl Worker {
    pub fn new(shared: Arc<Shared>, table: Arc<RouteTable>) -> Self {
        let state = State {
            table,
            counters: BTreeMap::new(),
            relays: BTreeMap::new(),
            suspects: BTreeSet::new(),
        };
        Worker {
            shared,
            load: Arc::default(),
            changed: Notify::new(),
            relays_started: AtomicU64::new(0),
            state: Mutex::new(state),
            ledger: Arc::default(),
        }
    }

    /// The table in force on this thread.
    pub fn table(&self) -> Arc<RouteTable> {
        Arc::clone(&lock(&self.state).table)
    }

    /// The route of a listener in the table in force.
    pub fn route<T>(&self, listener: &str, read: impl FnOnce(&ListenerRoute) -> T) -> Option<T> {
        lock(&self.state).table.listeners.get(listener).map(read)
    }

    /// The backend for the next connection of a listener, or `None`: wait for [`Self::changed`].
    pub fn choose(&self, listener: &str) -> Option<Choice> {
        let state = lock(&self.state);
        let route = state.table.listeners.get(listener)?;
        self.shared.choose(&route.backends, &state.suspects)
    }

    /// Whether the table in force still sends connections of a listener to a backend.
    pub fn still_routed(&self, listener: &str, backend: SocketAddr) -> bool {
        self.route(listener, |route| route.backends.iter().any(|b| b.address == backend))
            .unwrap_or(false)
    }

    pub fn counters(&self, listener: &str) -> Arc<Counters> {
        lock(&self.state).counters(listener)
    }

    /// Starts a relay, unless the route has changed while it was being connected: then the client
    /// is handed back. Nothing awaits between the check and the entry, and [`Self::apply`] runs on
    /// the same thread, so that no connection escapes a cut.
    pub fn start_relay(
        self: &Arc<Self>,
        listener: &str,
        choice: Choice,
        client: TcpStream,
        backend: TcpStream,
        first: Vec<u8>,
    ) -> Result<(), (TcpStream, Vec<u8>)> {
        if !self.still_routed(listener, choice.backend) {
            return Err((client, first));
        }
        let counters = self.counters(listener);
        counters.connections.fetch_add(1, Ordering::Relaxed);
        let id = self.relays_started.fetch_add(1, Ordering::Relaxed);
        let relay = Relay::new(client, backend, first, Arc::clone(&counters));
        let entered = Entered {
            worker: Arc::clone(self),
            id,
            counters: Arc::clone(&counters),
            _backend: choice.held,
            _thread: Held::new(&self.load),
        };
        // A task of its own: the one that placed the connection was larger, and ends now.
        let task = tokio::spawn(async move {
            let _entered = entered;
            relay.await;
        });
        let entry = Entry {
            listener: listener.to_owned(),
            backend: choice.backend,
            abort: task.abort_handle(),
            cut_at: None,
            cut: false,
            counters,
        };
        lock(&self.state).relays.insert(id, entry);
        Ok(())
    }

    /// Puts a table in force: cuts what it cuts, wakes who waits.
    pub fn apply(&self, new: Arc<RouteTable>, now: Instant) {
        let mut state = lock(&self.state);
        let old = std::mem::replace(&mut state.table, Arc::clone(&new));
        for entry in state.relays.values_mut() {
            // A relay whose listener has gone was cut then, and is about to end.
            let Some(before) = old.listeners.get(&entry.listener) else { continue };
            match fate(before, new.listeners.get(&entry.listener), entry.backend) {
                Fate::Keep => entry.cut_at = None,
                // The first end stands: a stream of tables must not put it off for ever.
                Fate::CutAfterGrace => {
                    entry.cut_at.get_or_insert(now + self.shared.limits.lag_grace);
                }
                Fate::Cut => entry.cut(),
            }
        }
        state.counters.retain(|listener, _| {
            new.listeners.contains_key(listener) || new.http.listeners.contains_key(listener)
        });
        // A prober ends by itself when its backend is not named any more.
        state.suspects.retain(|address| new.listeners.values().any(|r| names(r, *address)));
        drop(state);
        self.shared.forget_unused(&new);
        self.changed.notify_waiters();
    }

    /// Cuts the sessions whose grace is over; returns when the next one's is.
    pub fn cut_overdue(&self, now: Instant) -> Option<Instant> {
        let mut state = lock(&self.state);
        let mut next = None;
        for entry in state.relays.values_mut() {
            let Some(cut_at) = entry.cut_at else { continue };
            if cut_at <= now {
                entry.cut();
            } else {
                next = Some(next.map_or(cut_at, |next: Instant| next.min(cut_at)));
            }
        }
        next
    }

    /// A connect to a backend failed: nobody tries it until a prober got through. Ten thousand
    /// waiting clients would otherwise try it together, fifty times a second.
    pub fn suspect(self: &Arc<Self>, backend: SocketAddr) {
        if lock(&self.state).suspects.insert(backend) {
            let worker = Arc::clone(self);
            tokio::spawn(async move { worker.probe(backend).await });
        }
    }

    async fn probe(&self, backend: SocketAddr) {
        let Limits { retry_every, connect_max, .. } = self.shared.limits;
        loop {
            tokio::time::sleep(retry_every).await;
            if !lock(&self.state).suspects.contains(&backend) {
                return;
            }
            // Closed without a byte, which PostgreSQL does not log.
            if let Ok(Ok(_)) = tokio::time::timeout(connect_max, socket::connect(backend)).await {
                lock(&self.state).suspects.remove(&backend);
                self.changed.notify_waiters();
                return;
            }
        }
    }

    /// Adds this thread's counters of a listener to the sums of all.
    pub fn read_counters(&self, listener: &str, mut read: impl FnMut(&Counters)) {
        if let Some(counters) = lock(&self.state).counters.get(listener) {
            read(counters);
        }
    }
}

impl State {
    fn counters(&mut self, listener: &str) -> Arc<Counters> {
        match self.counters.get(listener) {
            Some(counters) => Arc::clone(counters),
            None => {
                let counters = Arc::<Counters>::default();
                self.counters.insert(listener.to_owned(), Arc::clone(&counters));
                counters
            }
        }
    }
}

/// Takes a relay out of the books when it ends, however it ends.
struct Entered {
    worker: Arc<Worker>,
    id: u64,
    counters: Arc<Counters>,
    _backend: Held,
    _thread: Held,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.counters.connections.fetch_sub(1, Ordering::Relaxed);
        lock(&self.worker.state).relays.remove(&self.id);
    }
}

/// What a thread does until the gateway is dropped: it takes tables and connections.
pub async fn run(
    worker: Arc<Worker>,
    mut arrivals: mpsc::Receiver<Arrival>,
    (mut tables, mut leaves): (watch::Receiver<Arc<RouteTable>>, watch::Receiver<bool>),
) {
    let mut next_cut: Option<Instant> = None;
    let world = World::new(Arc::clone(&worker.shared.http), Arc::clone(&worker.ledger));
    world.apply(&tables.borrow().http);
    loop {
        let cut = async {
            match next_cut {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Tables first: a connection that arrived before one is judged by it.
            biased;
            changed = tables.changed() => {
                if changed.is_err() {
                    return;
                }
                let table = Arc::clone(&tables.borrow_and_update());
                world.apply(&table.http);
                worker.apply(table, Instant::now());
                next_cut = worker.cut_overdue(Instant::now());
            }
            () = cut => next_cut = worker.cut_overdue(Instant::now()),
            Ok(()) = leaves.changed() => world.leave(),
            arrival = arrivals.recv() => match arrival {
                Some(arrival) => match arrival.protocol {
                    Protocol::Postgres => session::start(&worker, arrival),
                    Protocol::Http => http::start(&world, worker.counters(&arrival.listener), arrival),
                },
                None => return,
            },
        }
    }
}

fn names(route: &ListenerRoute, address: SocketAddr) -> bool {
    route.backends.iter().any(|instance| instance.address == address)
}

/// A panic elsewhere leaves counters at worst, never a half-made table.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use everhold_core::spec::Role;

    use super::*;

    fn table(epoch: u64, backends: Vec<Instance>) -> Arc<RouteTable> {
        let route = ListenerRoute {
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            service: "main".to_owned(),
            role: Role::Primary,
            max_lag_ms: 0,
            epoch,
            primary: backends.first().map(|instance| instance.address),
            backends,
            all: Vec::new(),
        };
        let listeners = BTreeMap::from([("write".to_owned(), route)]);
        Arc::new(RouteTable { revision: epoch, listeners, ..RouteTable::default() })
    }

    /// The instant between the end of a connect and the start of the relay is too short to hit
    /// from outside.
    #[tokio::test]
    async fn a_connection_made_under_an_older_table_is_not_carried() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let a = Instance { name: "a".to_owned(), address };
        let shared = Arc::new(Shared::new(Limits::default(), [0; 32]));
        let worker = Arc::new(Worker::new(shared, table(5, vec![a])));
        let choice = worker.choose("write").unwrap();
        let client = TcpStream::connect(address).await.unwrap();
        let backend = TcpStream::connect(address).await.unwrap();
        worker.apply(table(6, Vec::new()), Instant::now());
        let started = worker.start_relay("write", choice, client, backend, vec![1]);
        assert_eq!(started.map_err(|(_, first)| first), Err(vec![1]));
    }
}
