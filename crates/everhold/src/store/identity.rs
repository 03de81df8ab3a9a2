//! Whose store it is: a record with the cluster's id, which follows from its authority and is
//! therefore known to all its machines and to no other cluster of the same name.

use crate::layout::Layout;
use crate::secrets::hex;
use anyhow::{Context as _, bail};
use everhold_core::kv::{Expect, Txn, TxnOutcome};
use everhold_core::records::{decode, encode};
use everhold_store::{Etcd, Store};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

/// The oldest etcd that is known to do.
const OLDEST: (u32, u32) = (3, 4);
/// For an etcd that has just been started to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// One that was there before answers sooner.
const THERE_WITHIN: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(100);
/// Of the authority's SHA-256.
const ID_BYTES: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    id: String,
}

/// The cluster's id by what is on this disk.
fn id(layout: &Layout) -> anyhow::Result<String> {
    let path = layout.pki().join("ca.pem");
    let authority = CertificateDer::from_pem_file(&path)
        .with_context(|| format!("E210 cannot use {}", path.display()))?;
    Ok(hex(&Sha256::digest(&authority)[..ID_BYTES]))
}

/// Makes sure that the store is this cluster's, or nobody's yet; then it is this cluster's. Another
/// one's stays as it is. `own`: Everhold runs it, so that what is in it is nobody else's.
pub async fn claim(store: &Etcd, cluster: &str, layout: &Layout, own: bool) -> anyhow::Result<()> {
    wait_for(store, if own { ANSWERS_WITHIN } else { THERE_WITHIN }).await?;
    let id = id(layout)?;
    let prefix = format!("/everhold/{cluster}/");
    let key = format!("{prefix}identity");
    let another = |what: &str| {
        anyhow::anyhow!(
            "E245 the store holds {what} under {prefix}; next step: name another cluster in the \
             spec, or another etcd; if what is there is of no use any more: `etcdctl del --prefix \
             {prefix}`"
        )
    };
    let found = store.get_prefix(&prefix).await?;
    if let Some(kv) = found.get(&key) {
        return match decode::<Identity>(&kv.value) {
            Ok(known) if known.id == id => Ok(()),
            // The authority was made anew, by hand.
            Ok(_) if own => put(store, Expect::Rev(kv.rev), &key, id).await,
            Ok(_) => Err(another(&format!("another cluster {cluster}"))),
            Err(why) => Err(another(&format!("an identity that can't be read ({why})"))),
        };
    }
    if !own && !found.kvs.is_empty() {
        return Err(another("records that are not of this cluster"));
    }
    put(store, Expect::Absent, &key, id).await
}

async fn put(store: &Etcd, expect: Expect, key: &str, id: String) -> anyhow::Result<()> {
    let txn = Txn::new().guard(key, expect).put(key, encode(&Identity { id }));
    match store.txn(&txn).await? {
        TxnOutcome::Done { .. } => Ok(()),
        TxnOutcome::Refused { .. } => {
            bail!("E245 another cluster has just taken {key}; next step: name another cluster")
        }
    }
}

/// Waits for an answer, of a version that will do.
async fn wait_for(store: &Etcd, within: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + within;
    let health = loop {
        match store.health().await {
            Ok(health) => break health,
            Err(error) if Instant::now() > until => bail!(
                "E254 {}; next step: see that it runs, and that the endpoints and files of \
                 [store] are right",
                crate::keeper::chain(&error)
            ),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    };
    if too_old(&health.version) {
        bail!(
            "E250 the etcd has version {}, {}.{} or later is needed; next step: upgrade it, or \
             leave [store] out",
            health.version,
            OLDEST.0,
            OLDEST.1
        );
    }
    Ok(())
}

fn too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < OLDEST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (version, expected) in [
            ("3.4.0", false),
            ("3.10.1", false),
            ("4.0.0", false),
            ("3.3.27", true),
            ("2.99.0", true),
            ("", true),
        ] {
            assert_eq!(too_old(version), expected, "{version}");
        }
    }
}
