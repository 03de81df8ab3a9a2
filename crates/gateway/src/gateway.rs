//! The gateway as its owner sees it.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use everhold_core::route::{Instance, RouteTable};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::accept::{self, ARRIVALS_MAX, Thread};
use crate::limits::Limits;
use crate::snapshot::{ListenerSnapshot, ListenerState, Snapshot};
use crate::socket;
use crate::worker::{self, Shared, Worker};

/// How a gateway is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// The first table; its listeners are opened at the start, whether or not they have backends.
    pub table: Arc<RouteTable>,
    /// Threads that carry connections.
    pub threads: NonZeroUsize,
    pub limits: Limits,
}

/// What stops a gateway from doing what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error(
        "cannot listen on {address} for listener \"{listener}\"; see who has the port with \
         `ss -ltnp`, or change its bind address"
    )]
    Listen { listener: String, address: SocketAddr, source: io::Error },
    #[error("cannot start a thread of the gateway")]
    Thread { source: io::Error },
}

/// A running gateway. Dropping it closes its listeners and connections.
pub struct Gateway {
    tables: watch::Sender<Arc<RouteTable>>,
    open: Mutex<BTreeMap<String, OpenListener>>,
    workers: Vec<Arc<Worker>>,
    senders: Arc<[Thread]>,
    shared: Arc<Shared>,
    /// Of the first thread, which accepts.
    runtime: Handle,
    threads: Vec<JoinHandle<()>>,
}

struct OpenListener {
    bind: SocketAddr,
    /// What the kernel made of `bind`: the same, unless it asked for any port.
    bound: SocketAddr,
    socket: TcpListener,
    acceptor: AbortHandle,
}

impl Config {
    /// One thread for each core that this process may use.
    pub fn new(table: Arc<RouteTable>) -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Config { table, threads, limits: Limits::default() }
    }
}

impl Gateway {
    /// Opens all listeners, then serves. If one cannot be opened, none is.
    pub fn start(config: Config) -> Result<Gateway, GatewayError> {
        socket::allow_many();
        let shared = Arc::new(Shared::new(config.limits));
        let (tables, seen) = watch::channel(Arc::clone(&config.table));
        let runtimes: Vec<Runtime> =
            (0..config.threads.get()).map(|_| runtime()).collect::<Result<_, _>>()?;
        let runtime = runtimes[0].handle().clone();
        let (mut workers, mut senders, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for (index, runtime) in runtimes.into_iter().enumerate() {
            let worker = Arc::new(Worker::new(Arc::clone(&shared), Arc::clone(&config.table)));
            let (arrivals, queue) = mpsc::channel(ARRIVALS_MAX);
            senders.push(Thread { load: Arc::clone(&worker.load), arrivals });
            workers.push(Arc::clone(&worker));
            let seen = seen.clone();
            let thread = std::thread::Builder::new()
                .name(format!("gateway-{index}"))
                .spawn(move || runtime.block_on(worker::run(worker, queue, seen)))
                .map_err(|source| GatewayError::Thread { source })?;
            threads.push(thread);
        }
        let gateway = Gateway {
            tables,
            open: Mutex::default(),
            workers,
            senders: senders.into(),
            shared,
            runtime,
            threads,
        };
        gateway.set_listeners(&config.table)?;
        Ok(gateway)
    }

    /// Puts a table in force on all threads: wakes the connections that wait, cuts those that lead
    /// to a deposed primary, opens and closes listeners. A listener that stays keeps its socket, so
    /// that no connection is refused.
    ///
    /// If a new listener cannot be opened, the table is in force for the others, nothing is closed,
    /// and the next table tries again.
    pub fn set_table(&self, table: Arc<RouteTable>) -> Result<(), GatewayError> {
        // Before the sockets: to cut and to reroute is urgent, and cannot fail.
        self.tables.send_replace(Arc::clone(&table));
        self.set_listeners(&table)
    }

    /// What the gateway is doing now.
    pub fn snapshot(&self) -> Snapshot {
        let table = Arc::clone(&self.tables.borrow());
        let open = lock(&self.open);
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
                worker.read_counters(name, |counters| {
                    listener.connections += counters.connections.load(Ordering::Relaxed);
                    listener.waiting += counters.waiting.load(Ordering::Relaxed);
                    listener.bytes_in += counters.bytes_in.load(Ordering::Relaxed);
                    listener.bytes_out += counters.bytes_out.load(Ordering::Relaxed);
                    listener.accepted += counters.accepted.load(Ordering::Relaxed);
                    listener.refused += counters.refused.load(Ordering::Relaxed);
                    listener.cut += counters.cut.load(Ordering::Relaxed);
                });
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
        Snapshot { table_revision: table.revision, listeners: listeners.collect(), backends }
    }

    /// Opens all sockets that are missing, and only if that went well serves on them and closes
    /// those that are not in the table.
    fn set_listeners(&self, table: &RouteTable) -> Result<(), GatewayError> {
        let mut open = lock(&self.open);
        let stays = |name: &String, listener: &OpenListener| {
            table.listeners.get(name).is_some_and(|route| route.bind == listener.bind)
        };
        let leaving: Vec<&OpenListener> =
            open.iter().filter(|(name, listener)| !stays(name, listener)).map(|(_, l)| l).collect();
        let mut fresh = Vec::new();
        for (name, route) in &table.listeners {
            if open.get(name).is_some_and(|listener| stays(name, listener)) {
                continue;
            }
            // A listener that was only renamed keeps the socket, and the connections queued on it.
            let renamed = leaving.iter().find(|l| l.bind == route.bind && l.bind.port() != 0);
            let socket = match renamed {
                Some(listener) => listener.socket.try_clone(),
                None => socket::listen(route.bind),
            };
            let opened = socket.and_then(|s| Ok((s.local_addr()?, s.try_clone()?, s)));
            let (bound, accepting, socket) = opened.map_err(|source| GatewayError::Listen {
                listener: name.clone(),
                address: route.bind,
                source,
            })?;
            fresh.push((name.clone(), route.bind, bound, accepting, socket));
        }
        open.retain(|name, listener| {
            let stays = stays(name, listener);
            if !stays {
                listener.acceptor.abort();
            }
            stays
        });
        for (name, bind, bound, accepting, socket) in fresh {
            let accepting = accept::run(
                accepting,
                Arc::from(name.as_str()),
                Arc::clone(&self.shared),
                Arc::clone(&self.senders),
            );
            let acceptor = self.runtime.spawn(accepting).abort_handle();
            open.insert(name, OpenListener { bind, bound, socket, acceptor });
        }
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

fn runtime() -> Result<Runtime, GatewayError> {
    let built = Builder::new_current_thread().enable_io().enable_time().build();
    built.map_err(|source| GatewayError::Thread { source })
}

/// Nothing that holds this lock can leave it half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
