//! One machine for each node: who runs as a node says so in the store, under a lease.
//!
//! Whoever holds a copy of a node's data directory keeps the same promises, and neither copy knows
//! what the other one promised. What tells two copies on one or two machines apart is where they
//! are: the running system, and the directory's own place in its file system.

use super::init::{Joined, machine};
use super::joined_key;
use crate::clock;
use crate::layout::Layout;
use crate::secrets::hex;
use crate::store::Problem;
use crate::troubles::Troubles;
use anyhow::{Context as _, bail};
use everhold_core::kv::{Expect, Snapshot, Txn, TxnOutcome};
use everhold_core::records::{decode, encode};
use everhold_store::{Etcd, Store, StoreError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// A machine that is gone is forgotten after this.
const LEASE: Duration = Duration::from_secs(6);
const RENEW: Duration = Duration::from_secs(2);
/// A new leader of the store begins leases anew.
const WAIT: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(500);
/// A store that isn't there must not hold up a start: it is asked again later.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// What is shown when another one came while this one could not be heard.
const TWO: Problem = Problem {
    name: "two-machines",
    unblocks: "one of the two is ended; a copied data directory is no second node",
};

/// Who runs as a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Running {
    owner: String,
    /// For people.
    data: String,
    since: String,
}

/// What the store says of a claim; otherwise why.
enum Claim {
    Ours,
    /// Another process has it now; one of the two is a copy.
    Contested(String),
    /// Another machine was let in as this node, for good.
    Lost(String),
}

/// This process's claim to be its node.
pub struct Place {
    key: String,
    joined: String,
    node: String,
    machine: String,
    running: Running,
}

impl Place {
    pub fn new(cluster: &str, node: &str, layout: &Layout) -> anyhow::Result<Place> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("read the id of the running system")?;
        let at = std::fs::metadata(layout.root())?;
        let owner = format!("{} {} {}", boot.trim(), at.dev(), at.ino());
        Ok(Place {
            key: format!("/everhold/{cluster}/run/{node}"),
            joined: joined_key(cluster, node),
            node: node.to_string(),
            machine: machine(layout)?,
            running: Running {
                owner: hex(&Sha256::digest(owner)[..16]),
                data: layout.root().display().to_string(),
                since: clock::wall(),
            },
        })
    }

    /// Claims the node. Without a store nothing can be said; [`Place::keep`] does it later.
    pub async fn take(&self, store: &Etcd) -> anyhow::Result<()> {
        let until = Instant::now() + WAIT;
        loop {
            let Ok(Ok(known)) = timeout(ANSWERS_WITHIN, self.read(store)).await else {
                return Ok(());
            };
            if let Some(why) = self.replaced(&known) {
                bail!("{why}");
            }
            match self.other(&known) {
                None => {
                    let _ = self.put(store, &known).await;
                    return Ok(());
                }
                Some(other) if Instant::now() > until => bail!(
                    "E255 another process runs as {}, since {}, with its data in {}; next step: \
                     end the one that is too many; a copied data directory is no second node",
                    self.node,
                    other.since,
                    other.data
                ),
                Some(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Keeps the claim, and shows if somebody else has it. Returns when the store says that another
    /// machine has taken the place of this one, and why: a store that does not answer says nothing.
    pub async fn keep(&self, store: &Etcd, troubles: &Troubles) -> String {
        let mut lease = None;
        loop {
            match self.renew(store, &mut lease).await {
                Ok(Claim::Ours) => troubles.clear(TWO.name),
                Ok(Claim::Contested(why)) => troubles.hold(TWO, why),
                Ok(Claim::Lost(why)) => return why,
                Err(error) => tracing::debug!(%error, "the claim to this node waits"),
            }
            tokio::time::sleep(RENEW).await;
        }
    }

    async fn renew(&self, store: &Etcd, lease: &mut Option<u64>) -> Result<Claim, StoreError> {
        let known = self.read(store).await?;
        if let Some(why) = self.replaced(&known) {
            return Ok(Claim::Lost(why));
        }
        if let Some(other) = self.other(&known) {
            let (node, since, data) = (&self.node, &other.since, &other.data);
            let why = format!("another process runs as {node}, since {since}, data in {data}");
            return Ok(Claim::Contested(why));
        }
        if let Some(id) = *lease
            && known.get(&self.key).is_some()
            && store.lease_keep_alive(id).await?.is_some()
        {
            return Ok(Claim::Ours);
        }
        *lease = self.put(store, &known).await?;
        Ok(Claim::Ours)
    }

    /// The claim and the record of who joined; their keys don't begin alike.
    async fn read(&self, store: &Etcd) -> Result<Snapshot, StoreError> {
        let mut known = store.get_prefix(&self.key).await?;
        known.kvs.extend(store.get_prefix(&self.joined).await?.kvs);
        Ok(known)
    }

    /// Another machine has joined as this node.
    fn replaced(&self, known: &Snapshot) -> Option<String> {
        let joined = decode::<Joined>(&known.get(&self.joined)?.value).ok()?;
        (joined.machine != self.machine).then(|| {
            format!(
                "E247 another machine has taken the place of {} since {}; next step: move this \
                 data directory away; a machine that is needed joins as another node",
                self.node, joined.at
            )
        })
    }

    fn other(&self, known: &Snapshot) -> Option<Running> {
        let running = decode::<Running>(&known.get(&self.key)?.value).ok()?;
        (running.owner != self.running.owner).then_some(running)
    }

    /// The lease under which the claim stands now; `None`: somebody was quicker.
    async fn put(&self, store: &Etcd, known: &Snapshot) -> Result<Option<u64>, StoreError> {
        let lease = store.lease_grant(LEASE).await?.id;
        let expect = known.get(&self.key).map_or(Expect::Absent, |kv| Expect::Rev(kv.rev));
        let txn =
            Txn::new().guard(&self.key, expect).put_leased(&self.key, encode(&self.running), lease);
        match store.txn(&txn).await? {
            TxnOutcome::Done { .. } => Ok(Some(lease)),
            TxnOutcome::Refused { .. } => {
                store.lease_revoke(lease).await?;
                Ok(None)
            }
        }
    }
}
