//! Upkeep of the embedded store's servers: defragmentation, and the way out when a file is full.
//!
//! What is to be done next says `everhold_core::defrag`. Rounds of different coordinators are kept
//! apart by a record that ends with its lease: whoever puts it there has the round.

use super::Problem;
use crate::troubles::Troubles;
use everhold_core::defrag::{self, Size, Step};
use everhold_core::kv::{Expect, Txn, TxnOutcome};
use everhold_store::{Etcd, Store, StoreError};
use std::collections::BTreeSet;
use std::time::Duration;

const LOOK: Duration = Duration::from_secs(10);
/// Whether it is full is shown as soon as somebody may have noticed.
const LOOK_FULL: Duration = Duration::from_secs(2);
/// For one server's state.
const STATE: Duration = Duration::from_secs(2);
/// For one defragmentation: a file at its quota on a slow disk.
const DEFRAGMENT: Duration = Duration::from_secs(120);

/// What is shown while nothing can be written.
pub const FULL: Problem = Problem {
    name: "store-full",
    unblocks: "its coordinator compacts and defragments it and ends the alarm by itself; if it \
               stays full, something fills the store: `etcdctl get --prefix /everhold/` shows what",
};

/// Tends the servers for ever.
pub async fn run(cluster: String, store: Etcd, quota: u64) {
    loop {
        if let Err(error) = tend(&cluster, &store, quota).await {
            tracing::debug!(%error, "the store's upkeep waits");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Makes room in a store that is full. Whoever finds it so may: what two do at a time is done twice.
pub async fn free(cluster: &str, store: &Etcd, quota: u64) {
    if store.without_space().await.is_ok_and(|full| !full.is_empty()) {
        if let Err(error) = tend(cluster, store, quota).await {
            tracing::debug!(%error, "the store's upkeep waits");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Shows on this machine whether the store is full.
pub async fn watch(store: Etcd, troubles: Troubles) {
    loop {
        match store.without_space().await {
            Ok(full) if full.is_empty() => troubles.clear(FULL.name),
            Ok(full) => {
                let why =
                    format!("{} of the store's files are full: nothing can be written", full.len());
                troubles.hold(FULL, why);
            }
            // Whether it is reachable is shown elsewhere.
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_FULL).await;
    }
}

/// One look, and one round if it is time. True: it is still full.
async fn tend(cluster: &str, store: &Etcd, quota: u64) -> Result<bool, StoreError> {
    let mut done = BTreeSet::new();
    let mut in_round = false;
    loop {
        let full: BTreeSet<u64> = store.without_space().await?.into_iter().collect();
        if !full.is_empty() && !in_round {
            tracing::error!(members = full.len(), "the store is full; it is compacted");
            let now = store.get_prefix("/everhold/").await?.rev;
            compact(store, now).await?;
        }
        let servers = servers(store, &full, &done).await?;
        match defrag::next(&servers, quota) {
            None => return Ok(false),
            Some(Step::Full) => {
                tracing::error!("the store is full of what is in use; nothing can be written");
                return Ok(true);
            }
            Some(Step::Disarm) => {
                for id in full {
                    store.disarm(id).await?;
                }
                tracing::warn!("the store has room again");
                return Ok(false);
            }
            Some(Step::Defragment { id }) => {
                if full.is_empty() && !in_round && !begins(cluster, store).await? {
                    return Ok(false);
                }
                in_round = true;
                let Some(endpoint) = endpoint(store, id).await? else { return Ok(false) };
                tracing::info!(endpoint, "defragments this server of the store");
                store.only(&endpoint, DEFRAGMENT).await?.defragment().await?;
                done.insert(id);
            }
        }
    }
}

/// A revision compacted already is fine.
async fn compact(store: &Etcd, rev: u64) -> Result<(), StoreError> {
    match store.compact(rev).await {
        Err(StoreError::Refused { .. }) => Ok(()),
        compacted => compacted,
    }
}

/// Whether a round may begin: none began within the interval.
async fn begins(cluster: &str, store: &Etcd) -> Result<bool, StoreError> {
    let key = format!("/everhold/{cluster}/defragmented");
    if store.get_prefix(&key).await?.get(&key).is_some() {
        return Ok(false);
    }
    let lease = store.lease_grant(Duration::from_millis(defrag::INTERVAL_MS)).await?.id;
    let txn = Txn::new().guard(&key, Expect::Absent).put_leased(&key, crate::clock::wall(), lease);
    if matches!(store.txn(&txn).await?, TxnOutcome::Done { .. }) {
        return Ok(true);
    }
    store.lease_revoke(lease).await?;
    Ok(false)
}

async fn servers(
    store: &Etcd,
    full: &BTreeSet<u64>,
    done: &BTreeSet<u64>,
) -> Result<Vec<defrag::Server>, StoreError> {
    let mut servers = Vec::new();
    for member in store.members().await? {
        let state = match member.client_urls.first() {
            Some(endpoint) => store.only(endpoint, STATE).await?.server().await.ok(),
            None => None,
        };
        // One that knows no leader is not whole.
        let state = state.filter(|state| state.leader > 0);
        servers.push(defrag::Server {
            id: member.id,
            size: state.as_ref().map(|it| Size { bytes: it.db_bytes, used: it.used_bytes }),
            leads: state.is_some_and(|state| state.leader == member.id),
            learner: member.learner,
            full: full.contains(&member.id),
            done: done.contains(&member.id),
        });
    }
    Ok(servers)
}

async fn endpoint(store: &Etcd, id: u64) -> Result<Option<String>, StoreError> {
    let members = store.members().await?;
    let member = members.into_iter().find(|member| member.id == id);
    Ok(member.and_then(|member| member.client_urls.into_iter().next()))
}

#[cfg(test)]
mod tests;
