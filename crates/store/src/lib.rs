//! What must survive and be agreed, behind one trait: compare-and-swap over several keys, leases,
//! watches that resume. [`Etcd`] is the real store, [`MemoryStore`] the one for tests; both pass
//! the same suite. What is written and read is plain data of `everhold_core::kv`.
//!
//! Nothing safe may hang on a lease alone. A lease shorter than 2 s becomes 2 s; a new etcd leader
//! and a restarted member start every lease anew at full length; after a stall leases may end at
//! once. Whoever lives by a lease counts its time from *before* the call that granted or renewed
//! it, on a clock of his own.

mod error;
mod etcd;
mod memory;
mod watch;

use std::future::Future;
use std::time::Duration;

use everhold_core::kv::{Lease, Snapshot, Txn, TxnOutcome};

pub use error::StoreError;
pub use etcd::{DEADLINE, Etcd, EtcdConfig, Member, Server, TlsFiles};
pub use memory::MemoryStore;
pub use watch::{Watch, WatchEvent};

/// The agreed store. Every call ends within the store's deadline, whatever the server does. A
/// clone is cheap and shares the connection.
pub trait Store: Clone + Send + Sync + 'static {
    /// All keys that begin with `prefix` (all keys, if it is empty) at one revision, no older than
    /// the moment of the call.
    fn get_prefix(&self, prefix: &str)
    -> impl Future<Output = Result<Snapshot, StoreError>> + Send;

    /// Does the writes at once if all guards hold.
    ///
    /// After [`StoreError::Unknown`] the writes may have been done, or may still be done later, by
    /// a server that thaws. Reading again shows whether they have been; that they can't happen any
    /// more is only sure once one of the guards can't hold any more, which is why every write that
    /// matters has one.
    fn txn(&self, txn: &Txn) -> impl Future<Output = Result<TxnOutcome, StoreError>> + Send;

    /// Grants a lease of `ttl`, in whole seconds and not under 2 s; what was granted is returned.
    /// A lease of unknown outcome ends by itself.
    fn lease_grant(&self, ttl: Duration) -> impl Future<Output = Result<Lease, StoreError>> + Send;

    /// Starts the lease anew and returns how long it lasts; `None` if it has ended.
    fn lease_keep_alive(
        &self,
        id: u64,
    ) -> impl Future<Output = Result<Option<Duration>, StoreError>> + Send;

    /// Ends a lease and deletes its keys. One that has ended already is no error.
    fn lease_revoke(&self, id: u64) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Tells what changes under `prefix` from `from_rev` on: the revision of a snapshot plus one.
    /// From 0 it begins with a [`WatchEvent::Reset`].
    fn watch(&self, prefix: &str, from_rev: u64) -> Watch;

    /// Proves by a read that the store answers now.
    fn health(&self) -> impl Future<Output = Result<Health, StoreError>> + Send;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub version: String,
    pub rev: u64,
    pub db_bytes: u64,
    /// What the server complains of, such as a database that has reached its quota.
    pub alarms: Vec<String>,
}
