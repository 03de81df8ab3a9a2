//! What a gateway is doing, for `status`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::Serialize;

/// A gateway at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// The revision of the table in force.
    pub table_revision: u64,
    pub listeners: BTreeMap<String, ListenerSnapshot>,
    /// How this gateway finds the instances of HTTP services, by service.
    pub services: BTreeMap<String, BTreeMap<String, InstanceSnapshot>>,
    /// Connections that are with the instances of each node, or on their way there.
    #[serde(skip)]
    pub backends: BTreeMap<String, usize>,
}

/// An instance of an HTTP service, as one gateway finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct InstanceSnapshot {
    pub in_route: bool,
    pub is: Found,
    /// Requests and tunnels on their way to it.
    pub requests: u32,
}

/// See [`InstanceSnapshot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// It was not checked yet.
    Unknown,
    Healthy,
    /// Its checks fail.
    Unhealthy,
    /// Its checks succeed, its requests don't: it is left alone for a while.
    Ejected,
    /// No table in force names it any more; what is on its way to it goes on.
    Left,
}

/// A listener at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListenerSnapshot {
    pub bind: SocketAddr,
    pub state: ListenerState,
    /// Connections that are with a backend.
    pub connections: usize,
    /// Connections that wait for one.
    pub waiting: usize,
    /// Bytes carried from clients to backends since the start.
    pub bytes_in: u64,
    /// Bytes carried from backends to clients since the start.
    pub bytes_out: u64,
    /// The names of the instances that new connections go to.
    pub to: Vec<String>,
    /// Connections accepted, refused and cut since the start.
    #[serde(skip)]
    pub accepted: u64,
    #[serde(skip)]
    pub refused: u64,
    #[serde(skip)]
    pub cut: u64,
}

/// Whether new connections are carried at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerState {
    Open,
    /// There is nobody to carry them to.
    Waiting,
}

/// The counters of one listener on one thread: written by that thread, read by anyone.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub connections: AtomicUsize,
    pub waiting: AtomicUsize,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub accepted: AtomicU64,
    pub refused: AtomicU64,
    pub cut: AtomicU64,
}

impl ListenerSnapshot {
    /// Adds what one thread counted.
    pub(crate) fn add(&mut self, counters: &Counters) {
        self.connections += counters.connections.load(Ordering::Relaxed);
        self.waiting += counters.waiting.load(Ordering::Relaxed);
        self.bytes_in += counters.bytes_in.load(Ordering::Relaxed);
        self.bytes_out += counters.bytes_out.load(Ordering::Relaxed);
        self.accepted += counters.accepted.load(Ordering::Relaxed);
        self.refused += counters.refused.load(Ordering::Relaxed);
        self.cut += counters.cut.load(Ordering::Relaxed);
    }
}
