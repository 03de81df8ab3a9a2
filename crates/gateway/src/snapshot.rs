//! What a gateway is doing, for `status`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use serde::Serialize;

/// A gateway at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// The revision of the table in force.
    pub table_revision: u64,
    pub listeners: BTreeMap<String, ListenerSnapshot>,
    /// Connections that are with the instances of each node, or on their way there.
    #[serde(skip)]
    pub backends: BTreeMap<String, usize>,
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
