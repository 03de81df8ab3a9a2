//! The store as a pure state machine: time comes in as an argument, counted from any fixed moment.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::{
    Change, Changes, Compacted, Expect, Guard, Invalid, Kv, LEASE_TTL_MIN, Lease, Op, Snapshot,
    Txn, TxnOutcome, validate,
};

/// How many revisions the history keeps before the oldest are compacted away, as Everhold's own
/// etcd member does.
const HISTORY_REVISIONS_MAX: usize = 10_000;

#[derive(Clone, Debug)]
pub struct Memory {
    rev: u64,
    compacted: u64,
    keys: BTreeMap<String, Entry>,
    history: VecDeque<Changes>,
    leases: BTreeMap<u64, Term>,
    last_lease: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    value: String,
    rev: u64,
    lease: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Term {
    ttl: Duration,
    ends_at: Duration,
}

impl Default for Memory {
    fn default() -> Self {
        Memory::new()
    }
}

impl Memory {
    /// An empty store, at revision 1 as a new etcd is.
    pub fn new() -> Self {
        Memory {
            rev: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            history: VecDeque::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
        }
    }

    pub fn rev(&self) -> u64 {
        self.rev
    }

    /// Judges the guards and, if all hold, does all writes at one new revision.
    pub fn apply(&mut self, txn: &Txn) -> Result<TxnOutcome, Invalid> {
        validate(txn)?;
        if !txn.guards.iter().all(|guard| self.holds(guard)) {
            return Ok(TxnOutcome::Refused { current: self.current(&txn.guards) });
        }
        if let Some(lease) = txn.ops.iter().find_map(|op| self.missing_lease(op)) {
            return Err(Invalid::NoLease { lease });
        }
        let rev = self.rev + 1;
        let changes = txn.ops.iter().filter_map(|op| self.write(op, rev)).collect();
        self.record(changes);
        Ok(TxnOutcome::Done { rev: self.rev })
    }

    /// All keys that begin with `prefix`; the empty prefix means all keys.
    pub fn range(&self, prefix: &str) -> Snapshot {
        let under = self.keys.range(prefix.to_owned()..);
        let kvs = under.take_while(|(key, _)| key.starts_with(prefix));
        Snapshot { rev: self.rev, kvs: kvs.map(|(key, entry)| kv(key, entry)).collect() }
    }

    /// What changed under `prefix` at `from_rev` and later, oldest first.
    pub fn changes_since(&self, prefix: &str, from_rev: u64) -> Result<Vec<Changes>, Compacted> {
        if from_rev <= self.compacted {
            return Err(Compacted { rev: self.compacted });
        }
        let begin = self.history.partition_point(|at| at.rev < from_rev);
        let under = self.history.range(begin..).map(|at| Changes {
            rev: at.rev,
            changes: at.changes.iter().filter(|c| c.key().starts_with(prefix)).cloned().collect(),
        });
        Ok(under.filter(|at| !at.changes.is_empty()).collect())
    }

    /// Forgets the changes up to and including `rev`; the keys themselves stay.
    pub fn compact(&mut self, rev: u64) {
        self.compacted = self.compacted.max(rev.min(self.rev));
        while self.history.front().is_some_and(|at| at.rev <= self.compacted) {
            self.history.pop_front();
        }
    }

    pub fn grant(&mut self, ttl: Duration, now: Duration) -> Lease {
        let whole = Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0));
        let ttl = whole.max(LEASE_TTL_MIN);
        self.last_lease += 1;
        self.leases.insert(self.last_lease, Term { ttl, ends_at: now.saturating_add(ttl) });
        Lease { id: self.last_lease, ttl }
    }

    /// Starts the lease anew at full length and returns that; `None` if it has ended.
    pub fn keep_alive(&mut self, id: u64, now: Duration) -> Option<Duration> {
        self.expire(now);
        let term = self.leases.get_mut(&id)?;
        term.ends_at = now.saturating_add(term.ttl);
        Some(term.ttl)
    }

    /// Ends a lease and deletes its keys at one revision. False if there was none.
    pub fn revoke(&mut self, id: u64) -> bool {
        if self.leases.remove(&id).is_none() {
            return false;
        }
        let held = self.keys.iter().filter(|(_, entry)| entry.lease == Some(id));
        let held: Vec<String> = held.map(|(key, _)| key.clone()).collect();
        for key in &held {
            self.keys.remove(key);
        }
        self.record(held.into_iter().map(|key| Change::Deleted { key }).collect());
        true
    }

    /// Ends the leases whose time is over at `now`, oldest first, and returns them.
    pub fn expire(&mut self, now: Duration) -> Vec<u64> {
        let over = self.leases.iter().filter(|(_, term)| term.ends_at <= now);
        let mut over: Vec<(Duration, u64)> = over.map(|(id, term)| (term.ends_at, *id)).collect();
        over.sort_unstable();
        let over: Vec<u64> = over.into_iter().map(|(_, id)| id).collect();
        for id in &over {
            self.revoke(*id);
        }
        over
    }

    /// When the next lease ends.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.leases.values().map(|term| term.ends_at).min()
    }

    /// Starts every lease anew at full length, as a new etcd leader or a restarted member does.
    pub fn restart_leases(&mut self, now: Duration) {
        for term in self.leases.values_mut() {
            term.ends_at = now.saturating_add(term.ttl);
        }
    }

    fn holds(&self, guard: &Guard) -> bool {
        let entry = self.keys.get(&guard.key);
        match &guard.expect {
            Expect::Absent => entry.is_none(),
            Expect::Rev(rev) => entry.map_or(0, |entry| entry.rev) == *rev,
            Expect::Value(value) => entry.is_some_and(|entry| entry.value == *value),
        }
    }

    fn current(&self, guards: &[Guard]) -> Vec<Kv> {
        let keys: BTreeSet<&str> = guards.iter().map(|guard| guard.key.as_str()).collect();
        keys.into_iter().filter_map(|key| Some(kv(key, self.keys.get(key)?))).collect()
    }

    fn missing_lease(&self, op: &Op) -> Option<u64> {
        match op {
            Op::Put { lease: Some(id), .. } if !self.leases.contains_key(id) => Some(*id),
            Op::Put { .. } | Op::Delete { .. } => None,
        }
    }

    fn write(&mut self, op: &Op, rev: u64) -> Option<Change> {
        match op {
            Op::Put { key, value, lease } => {
                let entry = Entry { value: value.clone(), rev, lease: *lease };
                let change = Change::Put(kv(key, &entry));
                self.keys.insert(key.clone(), entry);
                Some(change)
            }
            Op::Delete { key } => {
                self.keys.remove(key).map(|_| Change::Deleted { key: key.clone() })
            }
        }
    }

    /// Only what changed something makes a revision.
    fn record(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        self.rev += 1;
        self.history.push_back(Changes { rev: self.rev, changes });
        if self.history.len() > HISTORY_REVISIONS_MAX {
            self.compact(self.history[0].rev);
        }
    }
}

fn kv(key: &str, entry: &Entry) -> Kv {
    Kv { key: key.to_owned(), value: entry.value.clone(), rev: entry.rev }
}
