//! The store in this process: the state machine of `everhold_core::kv` with a clock and faults.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use everhold_core::kv::{Lease, Memory, Snapshot, Txn, TxnOutcome};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::NoAnswer;
use crate::{DEADLINE, Health, Store, StoreError, Watch, WatchEvent};

const WHOM: &str = "the in-memory store";
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    memory: Mutex<Memory>,
    started: Instant,
    /// Told of every call, so that watches look again.
    touched: watch::Sender<()>,
    stalled: watch::Sender<bool>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore::new()
    }
}

impl MemoryStore {
    pub fn new() -> Self {
        MemoryStore {
            shared: Arc::new(Shared {
                memory: Mutex::new(Memory::new()),
                started: Instant::now(),
                touched: watch::Sender::new(()),
                stalled: watch::Sender::new(false),
            }),
        }
    }

    /// A stalled store answers nothing; calls made meanwhile are done when it goes on, unless
    /// their deadline has passed.
    pub fn stall(&self, stalled: bool) {
        self.shared.stalled.send_replace(stalled);
    }

    /// Forgets the history up to and including `rev`.
    pub fn compact(&self, rev: u64) {
        self.with_memory(|memory, _| memory.compact(rev));
    }

    /// What a restarted server does to leases.
    pub fn restart_leases(&self) {
        self.with_memory(|memory, now| memory.restart_leases(now));
    }

    async fn call<T>(
        &self,
        unanswered: impl FnOnce(NoAnswer) -> StoreError,
        f: impl FnOnce(&mut Memory, Duration) -> T,
    ) -> Result<T, StoreError> {
        let mut stalled = self.shared.stalled.subscribe();
        let thawed = timeout(DEADLINE, stalled.wait_for(|stalled| !stalled)).await.is_ok();
        if !thawed {
            return Err(unanswered(NoAnswer(DEADLINE)));
        }
        let answer = self.with_memory(f);
        self.shared.touched.send_replace(());
        Ok(answer)
    }

    fn with_memory<T>(&self, f: impl FnOnce(&mut Memory, Duration) -> T) -> T {
        let now = self.shared.started.elapsed();
        let mut memory: MutexGuard<'_, Memory> =
            self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.expire(now);
        f(&mut memory, now)
    }

    async fn tell(self, prefix: String, from_rev: u64, tx: mpsc::Sender<WatchEvent>) {
        let mut next_rev = from_rev;
        let mut touched = self.shared.touched.subscribe();
        let mut stalled = self.shared.stalled.subscribe();
        let mut progress_at = Instant::now() + PROGRESS_EVERY;
        loop {
            if *stalled.borrow_and_update() {
                let lost = unavailable("watch")(NoAnswer(PROGRESS_EVERY));
                if tx.send(WatchEvent::Lost(lost)).await.is_err()
                    || stalled.wait_for(|stalled| !stalled).await.is_err()
                    || tx.send(WatchEvent::Progress).await.is_err()
                {
                    return;
                }
            }
            let (mut events, expiry) = self.with_memory(|memory, _| {
                let events = match memory.changes_since(&prefix, next_rev) {
                    Ok(told) => told.into_iter().map(WatchEvent::Changed).collect(),
                    Err(_) => vec![WatchEvent::Reset(memory.range(&prefix))],
                };
                (events, memory.next_expiry())
            });
            if events.is_empty() && Instant::now() >= progress_at {
                events.push(WatchEvent::Progress);
            }
            for event in events {
                next_rev = match &event {
                    WatchEvent::Changed(changes) => changes.rev + 1,
                    WatchEvent::Reset(snapshot) => snapshot.rev + 1,
                    WatchEvent::Progress | WatchEvent::Lost(_) | WatchEvent::Ended(_) => next_rev,
                };
                progress_at = Instant::now() + PROGRESS_EVERY;
                if tx.send(event).await.is_err() {
                    return;
                }
            }
            let expiry = expiry.map_or(progress_at, |at| self.shared.started + at);
            tokio::select! {
                changed = touched.changed() => if changed.is_err() { return },
                changed = stalled.changed() => if changed.is_err() { return },
                () = sleep_until(expiry.min(progress_at)) => {}
            }
        }
    }
}

impl Store for MemoryStore {
    async fn get_prefix(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.call(unavailable("read"), |memory, _| memory.range(prefix)).await
    }

    async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        Ok(self.call(unknown("transaction"), |memory, _| memory.apply(txn)).await??)
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.call(unknown("grant of a lease"), |memory, now| memory.grant(ttl, now)).await
    }

    async fn lease_keep_alive(&self, id: u64) -> Result<Option<Duration>, StoreError> {
        self.call(unknown("renewal of a lease"), |memory, now| memory.keep_alive(id, now)).await
    }

    async fn lease_revoke(&self, id: u64) -> Result<(), StoreError> {
        self.call(unknown("revocation of a lease"), |memory, _| memory.revoke(id)).await.map(drop)
    }

    fn watch(&self, prefix: &str, from_rev: u64) -> Watch {
        Watch::spawn(|tx| self.clone().tell(prefix.to_owned(), from_rev, tx))
    }

    async fn health(&self) -> Result<Health, StoreError> {
        let rev = self.call(unavailable("read"), |memory, _| memory.rev()).await?;
        Ok(Health { version: "memory".to_owned(), rev, db_bytes: 0, alarms: vec![] })
    }
}

fn unavailable(what: &'static str) -> impl FnOnce(NoAnswer) -> StoreError {
    move |source| StoreError::Unavailable { what, whom: WHOM.to_owned(), source: source.into() }
}

fn unknown(what: &'static str) -> impl FnOnce(NoAnswer) -> StoreError {
    move |source| StoreError::Unknown { what, whom: WHOM.to_owned(), source: source.into() }
}
