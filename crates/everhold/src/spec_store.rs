//! The spec in the store, and a process's own copy of it for when the store is gone.

use crate::disk;
use crate::spec::record::{self, RecordError};
use everhold_core::kv::Change;
use everhold_core::spec::Spec;
use everhold_store::{Etcd, Store, WatchEvent};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// Between two tries to find the spec.
const RETRY: Duration = Duration::from_millis(200);

/// The key of the spec in the store.
pub fn key(cluster: &str) -> String {
    format!("/everhold/{cluster}/spec")
}

/// The spec from the store; from `copy` while the store is gone. Waits for one of the two. What the
/// store has becomes the copy if it `is_kept`.
pub async fn find(
    cluster: &str,
    store: &Etcd,
    copy: &Path,
    is_kept: impl Fn(&Spec) -> bool,
) -> anyhow::Result<Spec> {
    let key = key(cluster);
    loop {
        match store.get_prefix(&key).await {
            Ok(snapshot) => {
                if let Some(kv) = snapshot.get(&key) {
                    let spec = match record::from_json(&kv.value) {
                        Ok(spec) => spec,
                        Err(error) => return earlier(copy, error),
                    };
                    if is_kept(&spec)
                        && let Err(error) = disk::write_whole(copy, &kv.value)
                    {
                        tracing::warn!(%error, "cannot keep a copy of the spec");
                    }
                    return Ok(spec);
                }
            }
            Err(error) => {
                if let Ok(text) = std::fs::read_to_string(copy) {
                    tracing::warn!(%error, "the store is out of reach; the copy of the spec is used");
                    return Ok(record::from_json(&text)?);
                }
                tracing::warn!(%error, "the store is out of reach, and there is no copy of the spec");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// What can't be read, as by a version older than the one that wrote it, changes nothing for a
/// process that runs, nor for one that starts again.
fn earlier(copy: &Path, error: RecordError) -> anyhow::Result<Spec> {
    let text = std::fs::read_to_string(copy).ok();
    let Some(spec) = text.and_then(|text| record::from_json(&text).ok()) else {
        return Err(error.into());
    };
    tracing::error!(%error, "the spec can't be used; the copy of an earlier one is");
    Ok(spec)
}

/// Each new revision of the spec, kept as a copy while that `is_kept`. One that can't be used changes
/// nothing.
pub fn follow(
    cluster: &str,
    store: Etcd,
    copy: PathBuf,
    is_kept: impl Fn() -> bool + Send + 'static,
) -> mpsc::Receiver<Spec> {
    let (specs, told) = mpsc::channel(4);
    let key = key(cluster);
    tokio::spawn(async move {
        let mut watch = store.watch(&key, 0);
        while let Some(event) = watch.next().await {
            let text = match event {
                WatchEvent::Reset(snapshot) => snapshot.get(&key).map(|kv| kv.value.clone()),
                WatchEvent::Changed(changes) => {
                    changes.changes.into_iter().rev().find_map(|change| match change {
                        Change::Put(kv) if kv.key == key => Some(kv.value),
                        Change::Put(_) | Change::Deleted { .. } => None,
                    })
                }
                WatchEvent::Progress | WatchEvent::Lost(_) | WatchEvent::Ended(_) => None,
            };
            let Some(text) = text else { continue };
            match record::from_json(&text) {
                Ok(spec) => {
                    if is_kept()
                        && let Err(error) = disk::write_whole(&copy, &text)
                    {
                        tracing::warn!(%error, "cannot keep a copy of the spec");
                    }
                    if specs.send(spec).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the new spec can't be used; the old one stays");
                }
            }
        }
    });
    told
}
