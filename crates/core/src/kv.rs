//! What is asked of the store and what it answers, as plain data: snapshots of keys, transactions
//! that compare and swap several keys at once, changes in the order of their revisions, leases.
//!
//! [`Memory`] is the same store as a pure state machine. The simulator drives it directly and the
//! in-memory store wraps it; the etcd client has to behave as it does.

mod memory;
#[cfg(test)]
mod tests;

pub use memory::Memory;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The shortest lease. etcd with its default timers raises anything shorter to 2 s, so the
/// in-memory store does too: nothing may be built on a shorter one.
pub const LEASE_TTL_MIN: Duration = Duration::from_secs(2);

/// A key as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kv {
    pub key: String,
    pub value: String,
    /// Revision of the store at which this value was written.
    pub rev: u64,
}

/// All keys under a prefix at one revision, in the order of the keys.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    pub rev: u64,
    pub kvs: Vec<Kv>,
}

impl Snapshot {
    pub fn get(&self, key: &str) -> Option<&Kv> {
        self.kvs.iter().find(|kv| kv.key == key)
    }
}

/// Writes that happen all at once, at one revision, if every guard holds, and else not at all.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Txn {
    pub guards: Vec<Guard>,
    pub ops: Vec<Op>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    pub key: String,
    pub expect: Expect,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key was last written at this revision. 0 is the revision of an absent key.
    Rev(u64),
    /// The key exists and has this value.
    Value(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Writes the key. It vanishes with `lease`; without one an earlier lease lets go of it.
    Put { key: String, value: String, lease: Option<u64> },
    /// Deletes the key. An absent key is no error and no change.
    Delete { key: String },
}

impl Op {
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

impl Txn {
    pub fn new() -> Self {
        Txn::default()
    }

    #[must_use]
    pub fn guard(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.guards.push(Guard { key: key.into(), expect });
        self
    }

    #[must_use]
    pub fn put(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.op(Op::Put { key: key.into(), value: value.into(), lease: None })
    }

    #[must_use]
    pub fn put_leased(self, key: impl Into<String>, value: impl Into<String>, lease: u64) -> Self {
        self.op(Op::Put { key: key.into(), value: value.into(), lease: Some(lease) })
    }

    #[must_use]
    pub fn delete(self, key: impl Into<String>) -> Self {
        self.op(Op::Delete { key: key.into() })
    }

    fn op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }
}

/// The store's verdict on a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnOutcome {
    /// Every guard held. `rev` is the revision of the writes, or the store's own revision if
    /// nothing had to be written.
    Done { rev: u64 },
    /// A guard did not hold; nothing was written. `current` has the guarded keys as they stood at
    /// that very moment, in the order of the keys, without the absent ones, so that the loser
    /// need not read again.
    Refused { current: Vec<Kv> },
}

/// A transaction that no state of the store could accept, or that names a lease that has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Invalid {
    #[error("the key {key} is written more than once in one transaction")]
    WrittenTwice { key: String },
    #[error("a key is empty")]
    EmptyKey,
    #[error("the lease {lease} does not exist or has ended")]
    NoLease { lease: u64 },
}

/// Finds what makes a transaction wrong whatever the state of the store.
pub fn validate(txn: &Txn) -> Result<(), Invalid> {
    let keys = txn.guards.iter().map(|guard| guard.key.as_str()).chain(txn.ops.iter().map(Op::key));
    if keys.into_iter().any(str::is_empty) {
        return Err(Invalid::EmptyKey);
    }
    let mut written = std::collections::BTreeSet::new();
    match txn.ops.iter().find(|op| !written.insert(op.key())) {
        Some(op) => Err(Invalid::WrittenTwice { key: op.key().to_owned() }),
        None => Ok(()),
    }
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Put(Kv),
    Deleted { key: String },
}

impl Change {
    pub fn key(&self) -> &str {
        match self {
            Change::Put(kv) => &kv.key,
            Change::Deleted { key } => key,
        }
    }
}

/// Everything that changed at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    pub rev: u64,
    pub changes: Vec<Change>,
}

/// The changes asked for are no longer known: those up to and including `rev` are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the history up to revision {rev} was compacted")]
pub struct Compacted {
    pub rev: u64,
}

/// A right that ends by itself unless it is kept alive, and takes its keys with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub id: u64,
    /// What was granted: whole seconds, [`LEASE_TTL_MIN`] at least, whatever was asked for.
    pub ttl: Duration,
}
