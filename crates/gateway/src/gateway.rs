//! The gateway as its owner sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use everhold_core::http::cache::purge::What;
use everhold_core::http::probe::Health;
use everhold_core::http::rate::word::BadWord;
use everhold_core::http::route::{Backend, HttpListener};
use everhold_core::route::{Instance, RouteTable};
use tokio::runtime::{Builder, Handle, LocalOptions};
use tokio::sync::{mpsc, oneshot, watch};

use crate::accept::{self, ARRIVALS_MAX, Arrival, Protocol, Thread};
use crate::door::Refused;
use crate::http;
use crate::limits::Limits;
use crate::snapshot::{Found, InstanceSnapshot, ListenerSnapshot, ListenerState, Snapshot};
use crate::socket;
use crate::worker::{self, Shared, Worker};

/// Between two looks whether a socket was let go, and how many there are.
const LET_GO_LOOK: Duration = Duration::from_millis(2);
const LET_GO_LOOKS: u32 = 50;

/// How a gateway is set up.
#[derive(Clone)]
pub struct Config {
    /// The first table; its listeners are opened at the start, whether or not they have backends.
    pub table: Arc<RouteTable>,
    /// Threads that carry connections.
    pub threads: NonZeroUsize,
    pub limits: Limits,
    /// What gateways of one cluster have in common, and nobody else: it signs what clients keep.
    pub secret: [u8; 32],
}

/// What stops a gateway from doing what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error(
        "cannot listen on {address} for listener \"{listener}\"; see who has the port with \
         `ss -ltnp`, or change its bind address"
    )]
    Listen { listener: String, address: SocketAddr, source: io::Error },
    #[error("cannot write the access log {}", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error("cannot start a thread of the gateway")]
    Thread { source: io::Error },
}

/// A running gateway. Dropping it closes its listeners and connections.
pub struct Gateway {
    tables: watch::Sender<Arc<RouteTable>>,
    leaving: watch::Sender<bool>,
    open: Mutex<Open>,
    workers: Vec<Arc<Worker>>,
    senders: Arc<[Thread]>,
    shared: Arc<Shared>,
    /// Of the first thread, which accepts.
    runtime: Handle,
    threads: Vec<JoinHandle<()>>,
    access_log: Mutex<Option<PathBuf>>,
}

struct Open {
    listeners: BTreeMap<String, OpenListener>,
    stage: Stage,
}

/// What is done with the listening sockets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing: connections wait in the kernel, or go to another process that has the same sockets.
    Quiet,
    Accepting,
    /// They are closed, and none is opened again.
    Leaving,
}

struct OpenListener {
    bind: SocketAddr,
    protocol: Protocol,
    /// What the kernel made of `bind`: the same, unless it asked for any port.
    bound: SocketAddr,
    socket: TcpListener,
    /// Dropped, it ends the task that accepts.
    acceptor: Option<oneshot::Sender<()>>,
}

impl Config {
    /// One thread for each core that this process may use.
    pub fn new(table: Arc<RouteTable>) -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Config { table, threads, limits: Limits::default(), secret: [0; 32] }
    }
}

impl Gateway {
    /// Opens all listeners, then serves. If one cannot be opened, none is.
    pub fn start(config: Config) -> Result<Gateway, GatewayError> {
        let table = Arc::clone(&config.table);
        let gateway = Gateway::succeed(config, Vec::new())?;
        gateway.set_table(table)?;
        gateway.accept()?;
        Ok(gateway)
    }

    /// The same with `sockets` of a gateway that it succeeds, for listeners at their addresses. It
    /// checks instances already, and takes no connection before [`Gateway::accept`]. Other listeners
    /// are opened if they can be: [`Gateway::set_table`] tries again, and says why not.
    pub fn succeed(config: Config, sockets: Vec<TcpListener>) -> Result<Gateway, GatewayError> {
        socket::allow_many();
        let shared = Arc::new(Shared::new(config.limits, config.secret));
        shared.http.adopt(&config.table.http);
        shared.http.certificates.renew();
        let (tables, seen) = watch::channel(Arc::clone(&config.table));
        let (leaving, leaves) = watch::channel(false);
        let (mut workers, mut senders, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        let (told, begun) = std::sync::mpsc::channel();
        for index in 0..config.threads.get() {
            let worker = Worker::new(Arc::clone(&shared), Arc::clone(&config.table));
            let worker = Arc::new(worker);
            let (arrivals, queue) = mpsc::channel(ARRIVALS_MAX);
            senders.push(Thread { load: Arc::clone(&worker.load), arrivals });
            workers.push(Arc::clone(&worker));
            let (seen, leaves, told) = (seen.clone(), leaves.clone(), told.clone());
            let thread = std::thread::Builder::new()
                .name(format!("gateway-{index}"))
                .spawn(move || run(worker, queue, (seen, leaves), &told))
                .map_err(|source| GatewayError::Thread { source })?;
            threads.push(thread);
        }
        let (court, seen) = (Arc::clone(&shared.http), seen.clone());
        let judge = std::thread::Builder::new()
            .name("gateway-judge".to_owned())
            .spawn(move || match Builder::new_current_thread().enable_io().enable_time().build() {
                Ok(runtime) => runtime.block_on(http::judge(court, seen)),
                Err(error) => tracing::error!(%error, "no instance is checked"),
            })
            .map_err(|source| GatewayError::Thread { source })?;
        drop(told);
        let mut runtime = None;
        for _ in 0..workers.len() {
            let ended = || io::Error::other("it ended as it began");
            let started = begun.recv().unwrap_or_else(|_| Err(ended()));
            runtime = Some(started.map_err(|source| GatewayError::Thread { source })?);
        }
        threads.push(judge);
        let runtime =
            runtime.ok_or(GatewayError::Thread { source: io::ErrorKind::InvalidInput.into() })?;
        let gateway = Gateway {
            tables,
            leaving,
            open: Mutex::new(Open { listeners: BTreeMap::new(), stage: Stage::Quiet }),
            workers,
            senders: senders.into(),
            shared,
            runtime,
            threads,
            access_log: Mutex::default(),
        };
        if let Err(error) = gateway.set_listeners(&config.table, sockets) {
            tracing::debug!(%error, "a listener is missing yet");
        }
        Ok(gateway)
    }

    /// Takes connections, also those that waited meanwhile.
    pub fn accept(&self) -> Result<(), GatewayError> {
        let mut open = lock(&self.open);
        if open.stage == Stage::Leaving {
            return Ok(());
        }
        open.stage = Stage::Accepting;
        for (name, listener) in &mut open.listeners {
            self.serve(name, listener)?;
        }
        Ok(())
    }

    /// Takes no connection until [`Gateway::accept`]; those that come wait in the kernel.
    pub fn pause(&self) {
        let mut open = lock(&self.open);
        open.stage = Stage::Quiet;
        open.listeners.values_mut().for_each(|listener| listener.acceptor = None);
    }

    /// Gives the listening sockets up for good, and leaves its clients as soon as they lose nothing by
    /// it: after the next answer in HTTP/1, after the streams that are open in HTTP/2, at the end of a
    /// session otherwise. Tables go on being heard.
    pub fn leave(&self) {
        let mut open = lock(&self.open);
        open.stage = Stage::Leaving;
        open.listeners.clear();
        self.leaving.send_replace(true);
    }

    /// Its listening sockets, for who succeeds it. They are the same sockets, not others beside them: a
    /// connection that is queued on one is taken by whoever accepts next.
    pub fn sockets(&self) -> io::Result<Vec<TcpListener>> {
        lock(&self.open).listeners.values().map(|listener| listener.socket.try_clone()).collect()
    }

    /// Connections that have not ended, of whatever kind.
    pub fn connections(&self) -> usize {
        self.workers.iter().map(|worker| worker.load.load(Ordering::Relaxed)).sum()
    }

    /// Puts a table in force on all threads: wakes the connections that wait, cuts those that lead
    /// to a deposed primary, opens and closes listeners. A listener that stays keeps its socket, so
    /// that no connection is refused.
    ///
    /// If a new listener cannot be opened, the table is in force for the others; the one that it is to
    /// replace stays open, and the next call tries again.
    pub fn set_table(&self, table: Arc<RouteTable>) -> Result<(), GatewayError> {
        // Before the sockets: to cut and to reroute is urgent, and cannot fail.
        self.shared.http.adopt(&table.http);
        self.tables.send_replace(Arc::clone(&table));
        self.set_listeners(&table, Vec::new())
    }

    /// From now on a line of JSON for each HTTP request goes there, or nowhere. What is there is gone
    /// on with. If it can't be opened, everything stays as it was.
    pub fn set_access_log(&self, path: Option<&Path>) -> Result<(), GatewayError> {
        let mut known = lock(&self.access_log);
        if known.as_deref() == path {
            return Ok(());
        }
        let opened = path.map(|path| {
            http::open_log(path).map_err(|source| GatewayError::Log { path: path.into(), source })
        });
        let to = opened.transpose()?;
        for worker in &self.workers {
            worker.ledger.turn_log(to.clone());
        }
        *known = path.map(Path::to_path_buf);
        Ok(())
    }

    /// What the gateway is doing now.
    pub fn snapshot(&self) -> Snapshot {
        let table = Arc::clone(&self.tables.borrow());
        let open = &lock(&self.open).listeners;
        let listeners = table.listeners.iter().map(|(name, route)| {
            let mut listener = ListenerSnapshot {
                bind: open.get(name).map_or(route.bind, |listener| listener.bound),
                state: match route.backends.is_empty() {
                    true => ListenerState::Waiting,
                    false => ListenerState::Open,
                },
                connections: 0,
                waiting: 0,
                bytes_in: 0,
                bytes_out: 0,
                to: route.backends.iter().map(|backend| backend.name.clone()).collect(),
                accepted: 0,
                refused: 0,
                cut: 0,
            };
            for worker in &self.workers {
                worker.read_counters(name, |counters| listener.add(counters));
            }
            (name.clone(), listener)
        });
        // Listeners share instances, and a node may have instances of several services.
        let routed: BTreeMap<SocketAddr, &Instance> = table
            .listeners
            .values()
            .flat_map(|route| &route.backends)
            .map(|backend| (backend.address, backend))
            .collect();
        let mut backends = BTreeMap::new();
        for (address, backend) in routed {
            *backends.entry(backend.name.clone()).or_default() += self.shared.load(address);
        }
        let mut listeners: BTreeMap<_, _> = listeners.collect();
        listeners.extend(self.http_listeners(&table, open));
        let services = self.services();
        Snapshot { table_revision: table.revision, listeners, services, backends }
    }

    /// The instances of HTTP services: those that are judged, those that a thread may still send to,
    /// and those that something is on its way to.
    pub fn services(&self) -> BTreeMap<String, BTreeMap<String, InstanceSnapshot>> {
        let under_way = self.shared.http.under_way();
        let requests = |service: &String, name: &String| {
            under_way.get(&(service.clone(), name.clone())).copied().unwrap_or(0)
        };
        let mut services: BTreeMap<String, BTreeMap<String, InstanceSnapshot>> = BTreeMap::new();
        for (service, judged) in self.judged() {
            let found = judged.backends.into_iter().map(|(name, verdict)| {
                let is = match (verdict.ejected, verdict.health) {
                    // Who has died after it was ejected is dead first of all.
                    (_, Health::Unhealthy) => Found::Unhealthy,
                    (true, _) => Found::Ejected,
                    (false, Health::Unknown) => Found::Unknown,
                    (false, Health::Healthy) => Found::Healthy,
                };
                let requests = requests(&service, &name);
                (name, InstanceSnapshot { in_route: verdict.used, is, requests })
            });
            let found = found.collect();
            services.insert(service, found);
        }
        for table in self.workers.iter().map(|worker| worker.table()) {
            for (service, spec) in &table.http.services {
                let known = services.entry(service.clone()).or_default();
                for Backend { name, .. } in &spec.backends {
                    let requests = requests(service, name);
                    let found = InstanceSnapshot { in_route: true, is: Found::Unknown, requests };
                    known.entry(name.clone()).or_insert(found);
                }
            }
        }
        for ((service, name), requests) in under_way.into_iter().filter(|(_, it)| *it > 0) {
            let found = InstanceSnapshot { in_route: false, is: Found::Left, requests };
            services.entry(service).or_default().entry(name).or_insert(found);
        }
        services
    }

    /// What became of HTTP requests so far.
    pub fn sums(&self) -> http::Sums {
        let mut sums = http::Sums::default();
        self.workers.iter().for_each(|worker| worker.ledger.add_to(&mut sums));
        sums
    }

    /// The newest request of that name that is remembered.
    pub fn request(&self, id: &str) -> Option<http::Record> {
        let found = self.workers.iter().filter_map(|worker| worker.ledger.find(id.as_bytes()));
        found.max_by_key(|record| record.at_ms)
    }

    /// How busy the instances of HTTP services are, as told now; it holds until it is told anew. Told
    /// of none, all are alike.
    pub fn set_loads(&self, loads: &http::Loads) {
        self.shared.http.take_loads(loads);
    }

    /// Takes out of the cache what that names: whatever was asked for before this returns is not given
    /// again.
    pub fn purge(&self, what: What) {
        if let Some(store) = self.shared.http.cache.get() {
            store.purge(what);
        }
    }

    /// What the cache has; `None`: no table has asked for one.
    pub fn kept(&self) -> Option<http::Kept> {
        self.shared.http.cache.get().map(|store| store.kept())
    }

    /// Answers that are kept and their bytes, by route.
    pub fn kept_by_route(&self) -> BTreeMap<String, (u64, u64)> {
        self.shared.http.cache.get().map(|store| store.kept_by_route()).unwrap_or_default()
    }

    /// The rate limits of routes, by route.
    pub fn limited(&self) -> BTreeMap<String, http::Limited> {
        self.shared.http.rates.state()
    }

    /// Whether there are other gateways: from then on what is admitted by rate limits is kept for
    /// [`Gateway::tell_rates`].
    pub fn share_rates(&self, shared: bool) {
        self.shared.http.rates.share(shared);
    }

    /// What each of the other gateways is to be told now of rate limits, once, if anything. With a
    /// word of this each 20 ms limits are kept within 1 %.
    pub fn tell_rates(&self) -> Option<Vec<u8>> {
        self.shared.http.rates.tell()
    }

    /// What a gateway that begins, or was away, is to be told first.
    pub fn rate_debts(&self) -> Vec<Vec<u8>> {
        self.shared.http.rates.debts()
    }

    /// Another gateway has told one of these.
    pub fn absorb_rates(&self, word: &[u8]) -> Result<(), BadWord> {
        self.shared.http.rates.absorb(word)
    }

    /// Connections of HTTP that were not let in.
    pub fn refused(&self) -> Refused {
        self.shared.http.door.refused()
    }

    /// How the instances of HTTP services are judged, by service.
    pub fn judged(&self) -> BTreeMap<String, http::Judged> {
        self.shared.http.judged()
    }

    /// What is let through to HTTP services and by routes, where that is bounded.
    pub fn guarded(&self) -> http::Guarded {
        self.shared.http.guards.state()
    }

    /// How busy the threads are that carry requests, in no order.
    pub fn threads(&self) -> Vec<http::ThreadState> {
        self.shared.http.strains().iter().map(|told| told.state()).collect()
    }

    fn http_listeners(
        &self,
        table: &RouteTable,
        open: &BTreeMap<String, OpenListener>,
    ) -> BTreeMap<String, ListenerSnapshot> {
        let one = |(name, listener): (&String, &HttpListener)| {
            // Without a certificate it can't say anything.
            let serves = !matches!(self.shared.http.certificates.of(name), Some(None));
            let to: BTreeSet<&String> = listener.routes.iter().map(|it| &it.service).collect();
            let mut snapshot = ListenerSnapshot {
                bind: open.get(name).map_or(listener.bind, |listener| listener.bound),
                state: if serves { ListenerState::Open } else { ListenerState::Waiting },
                connections: 0,
                waiting: 0,
                bytes_in: 0,
                bytes_out: 0,
                to: to.into_iter().cloned().collect(),
                accepted: 0,
                refused: 0,
                cut: 0,
            };
            for worker in &self.workers {
                worker.read_counters(name, |counters| snapshot.add(counters));
            }
            (name.clone(), snapshot)
        };
        table.http.listeners.iter().map(one).collect()
    }

    /// Opens all sockets that are missing, unless one of `inherited` is it, serves on them and closes
    /// those that are not in the table. One that can't be opened keeps none of the others from it.
    fn set_listeners(
        &self,
        table: &RouteTable,
        inherited: Vec<TcpListener>,
    ) -> Result<(), GatewayError> {
        let mut open = lock(&self.open);
        let Open { listeners, stage } = &mut *open;
        if *stage == Stage::Leaving {
            return Ok(());
        }
        let wanted = wanted(table);
        let stays = |name: &String, listener: &OpenListener| {
            wanted.get(name).is_some_and(|(bind, protocol)| {
                *bind == listener.bind && *protocol == listener.protocol
            })
        };
        let leaving = listeners.iter().filter(|(name, listener)| !stays(name, listener));
        // A listener that was only renamed keeps the socket, and the connections queued on it.
        let mut there: BTreeMap<SocketAddr, io::Result<TcpListener>> =
            leaving.map(|(_, it)| (it.bind, it.socket.try_clone())).collect();
        let at = |socket: TcpListener| Some((socket.local_addr().ok()?, Ok(socket)));
        there.extend(inherited.into_iter().filter_map(at));
        let (mut fresh, mut failed) = (Vec::new(), BTreeMap::new());
        let free = |it: &OpenListener| wanted.values().all(|(bind, _)| *bind != it.bind);
        for (name, (bind, protocol)) in &wanted {
            let (bind, protocol) = (*bind, *protocol);
            if listeners.get(*name).is_some_and(|listener| stays(name, listener)) {
                continue;
            }
            let known = there.remove(&bind).filter(|_| bind.port() != 0);
            let mut socket = known.unwrap_or_else(|| socket::listen(bind));
            let in_use = |it: &io::Error| it.kind() == io::ErrorKind::AddrInUse;
            if socket.as_ref().is_err_and(in_use) {
                // One of ours that leaves, on all addresses or on one of them, is in the way.
                let way = |it: &OpenListener| free(it) && overlap(it.bind, bind);
                let count = listeners.len();
                there.retain(|at, _| !overlap(*at, bind) || wanted.values().any(|it| it.0 == *at));
                listeners.retain(|_, it| !way(it));
                if listeners.len() < count {
                    socket = listen_soon(bind);
                }
            }
            let opened = socket.and_then(|socket| Ok((socket.local_addr()?, socket)));
            match opened {
                Ok((bound, socket)) => {
                    let listener = OpenListener { bind, protocol, bound, socket, acceptor: None };
                    fresh.push((name.to_string(), listener));
                }
                Err(source) => {
                    let listener = name.to_string();
                    failed.insert(
                        listener.clone(),
                        GatewayError::Listen { listener, address: bind, source },
                    );
                }
            }
        }
        listeners.retain(|name, it| stays(name, it) || (failed.contains_key(name) && free(it)));
        listeners.extend(fresh);
        if *stage == Stage::Accepting {
            for (name, listener) in listeners {
                self.serve(name, listener)?;
            }
        }
        failed.into_values().next().map_or(Ok(()), Err)
    }

    /// Accepts on it, unless that is done already.
    fn serve(&self, name: &str, listener: &mut OpenListener) -> Result<(), GatewayError> {
        if listener.acceptor.is_some() {
            return Ok(());
        }
        let socket = listener.socket.try_clone().map_err(|source| GatewayError::Listen {
            listener: name.to_owned(),
            address: listener.bind,
            source,
        })?;
        let (acceptor, ends) = oneshot::channel();
        self.runtime.spawn(accept::run(
            (socket, ends),
            (Arc::from(name), listener.protocol),
            Arc::clone(&self.shared),
            Arc::clone(&self.senders),
        ));
        listener.acceptor = Some(acceptor);
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // A thread ends when nobody can hand it tables any more.
        drop(std::mem::replace(&mut self.tables, watch::channel(Arc::default()).0));
        for thread in self.threads.drain(..) {
            // A thread that panicked has ended too.
            let _ = thread.join();
        }
    }
}

/// Whether the kernel takes one of them only while the other isn't there.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let all = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (all || one.ip() == other.ip())
}

/// Listens as soon as the task that accepted there has let its socket go.
fn listen_soon(bind: SocketAddr) -> io::Result<TcpListener> {
    for _ in 0..LET_GO_LOOKS {
        match socket::listen(bind) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            listens => return listens,
        }
        std::thread::sleep(LET_GO_LOOK);
    }
    socket::listen(bind)
}

/// All listeners of a table: a name is one only once.
fn wanted(table: &RouteTable) -> BTreeMap<&String, (SocketAddr, Protocol)> {
    let postgres = table.listeners.iter().map(|(name, it)| (name, (it.bind, Protocol::Postgres)));
    let http = table.http.listeners.iter().map(|(name, it)| (name, (it.bind, Protocol::Http)));
    postgres.chain(http).collect()
}

/// One thread, until the gateway is dropped. Its runtime can't be moved: what it runs needs no locks.
fn run(
    worker: Arc<Worker>,
    queue: mpsc::Receiver<Arrival>,
    seen: (watch::Receiver<Arc<RouteTable>>, watch::Receiver<bool>),
    told: &std::sync::mpsc::Sender<io::Result<Handle>>,
) {
    let built = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build_local(LocalOptions::default());
    match built {
        Ok(runtime) => {
            // Nobody hears it only if the gateway is being dropped.
            let _ = told.send(Ok(runtime.handle().clone()));
            runtime.block_on(worker::run(worker, queue, seen));
        }
        Err(error) => drop(told.send(Err(error))),
    }
}

/// Nothing that holds this lock can leave it half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
