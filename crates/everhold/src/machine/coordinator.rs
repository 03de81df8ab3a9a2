//! What one machine does for all: the coordinator, which is whoever holds a lease of the store.
//!
//! Nothing that failover needs is done here. Two coordinators at a time would do no harm either:
//! each change of the members is checked by the store itself.

use super::{joined_prefix, url};
use crate::cluster::Cluster;
use crate::spec::{StorePorts, record};
use crate::store::upkeep;
use crate::{backup, hung, lost_nodes, nodes, rollout, spec_store};
use everhold_adapters::etcd::QUOTA_BYTES;
use everhold_core::kv::{Expect, Txn, TxnOutcome};
use everhold_core::members::{self, Member, Step, View};
use everhold_core::records::encode;
use everhold_core::spec::Spec;
use everhold_store::{Etcd, Store, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// A coordinator that is gone is succeeded after this.
const LEASE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(1);

/// Under this key stands the name of the node that coordinates.
pub fn key(cluster: &str) -> String {
    format!("/everhold/{cluster}/coordinator")
}

/// Under this key stands who keeps the store, as the coordinator last saw it.
pub fn members_key(cluster: &str) -> String {
    format!("/everhold/{cluster}/members")
}

/// The members of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    pub voters: BTreeSet<String>,
    /// They copy and don't vote yet.
    pub learners: BTreeSet<String>,
}

impl Members {
    fn of(members: &[Member]) -> Members {
        let named = |learner: bool| {
            let of = members.iter().filter(move |member| member.learner == learner);
            of.map(|member| member.node.clone().unwrap_or_else(|| format!("{:x}", member.id)))
        };
        Members { voters: named(false).collect(), learners: named(true).collect() }
    }
}

/// The store's servers that the coordinator tends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// One, and it stays the only one.
    Alone,
    /// A member on each of some nodes, which follow the spec.
    Members,
}

/// Coordinates whenever nobody else does, for ever. `servers`: the store's, if it is Everhold's own.
pub async fn run(cluster: Arc<Cluster>, me: String, store: Etcd, servers: Option<Servers>) {
    loop {
        if let Err(error) = term(&cluster, &me, &store, servers).await {
            tracing::debug!(%error, "cannot coordinate now");
            // A full store grants no lease, so nobody would begin who makes room.
            if servers.is_some() {
                upkeep::free(&cluster.name, &store, QUOTA_BYTES).await;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Coordinates for as long as the lease lasts.
async fn term(
    cluster: &Arc<Cluster>,
    me: &str,
    store: &Etcd,
    servers: Option<Servers>,
) -> Result<(), StoreError> {
    let key = key(&cluster.name);
    if store.get_prefix(&key).await?.get(&key).is_some() {
        return Ok(());
    }
    let lease = store.lease_grant(LEASE).await?;
    let txn = Txn::new().guard(&key, Expect::Absent).put_leased(&key, me, lease.id);
    let TxnOutcome::Done { rev } = store.txn(&txn).await? else {
        return store.lease_revoke(lease.id).await;
    };
    tracing::info!("this node coordinates");
    let mut told = None;
    // They wait for others, which the lease doesn't; with the term they end.
    let mut tasks = JoinSet::new();
    if servers.is_some() {
        tasks.spawn(upkeep::run(cluster.name.clone(), store.clone(), QUOTA_BYTES));
    }
    let (nodes, rollouts, backups) = (cluster.clone(), cluster.clone(), cluster.clone());
    let (old_backups, copies, instances) = (cluster.clone(), cluster.clone(), cluster.clone());
    tasks.spawn(async move { backup::copies::tend(&copies).await });
    tasks.spawn(async move { backup::forget::tend(&old_backups).await });
    tasks.spawn(async move { backup::tend::tend(&backups).await });
    tasks.spawn(async move { nodes::tend(&nodes).await });
    let ours = (key, Expect::Rev(rev));
    tasks.spawn(async move { lost_nodes::tend(&instances, ours).await });
    tasks.spawn(async move { rollout::tend(&rollouts).await });
    let all = cluster.clone();
    tasks.spawn(async move { hung::tend(&all).await });
    while store.lease_keep_alive(lease.id).await?.is_some() {
        if servers == Some(Servers::Members)
            && let Err(error) = tend_members(&cluster.name, store, &mut told).await
        {
            tracing::info!(%error, "the store's members are not as wanted yet");
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Makes the next change of the members, and tells who they are when that has changed.
async fn tend_members(
    cluster: &str,
    store: &Etcd,
    told: &mut Option<Members>,
) -> Result<(), StoreError> {
    let spec_key = spec_store::key(cluster);
    let snapshot = store.get_prefix(&spec_key).await?;
    let Some(spec) = snapshot.get(&spec_key).and_then(|kv| record::from_json(&kv.value).ok())
    else {
        return Ok(());
    };
    let prefix = joined_prefix(cluster);
    let joined = store.get_prefix(&prefix).await?;
    let joined = joined.kvs.iter().filter_map(|kv| kv.key.strip_prefix(&prefix));
    let joined = joined.map(str::to_string).collect();
    let urls = peer_urls(&spec);
    let listed = store.members().await?;
    let member = |it: everhold_store::Member| Member {
        id: it.id,
        node: it.peer_urls.first().and_then(|url| urls.get(url)).cloned(),
        started: !it.name.is_empty(),
        learner: it.learner,
    };
    let wanted: BTreeSet<String> = spec.store_nodes().map(|(name, _)| name.to_string()).collect();
    let members: Vec<Member> = listed.into_iter().map(member).collect();
    let now = Members::of(&members);
    if told.as_ref() != Some(&now) {
        store.txn(&Txn::new().put(members_key(cluster), encode(&now))).await?;
        *told = Some(now);
    }
    let Some(step) = members::next(&View { wanted, joined, members }) else { return Ok(()) };
    match &step {
        Step::Add { node } => {
            let url = urls.iter().find(|(_, name)| *name == node).map(|(url, _)| url.clone());
            store.add_learner(&url.unwrap_or_default()).await?;
        }
        Step::Promote { id, .. } => store.promote(*id).await?,
        Step::Remove { id } => store.remove_member(*id).await?,
    }
    tracing::info!(?step, "the store's members have changed");
    Ok(())
}

/// Where members of the nodes reach each other, and whose address it is.
fn peer_urls(spec: &Spec) -> BTreeMap<String, String> {
    let peer = StorePorts::default().peer;
    spec.nodes.iter().map(|(name, node)| (url(&node.address, peer), name.clone())).collect()
}
