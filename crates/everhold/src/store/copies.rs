//! Copies of the store on this machine's disk: what is left when all its servers have lost theirs.
//!
//! Each is a file as `etcdctl snapshot save` makes it: the server's file and the SHA-256 of it.

use super::Problem;
use crate::layout::Layout;
use crate::machine::joined_prefix;
use crate::secrets::private_dir;
use crate::spec::record;
use crate::spec_store;
use crate::troubles::Troubles;
use anyhow::{Context as _, bail};
use everhold_core::records::Keys;
use everhold_store::{Etcd, Store, StoreError, Watch, WatchEvent};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The store changes with failovers and specs, and what a copy lacks is told by the nodes' disks.
const EVERY: Duration = Duration::from_secs(600);
/// Not sooner after the one before, however often the spec changes.
const PAUSE: Duration = Duration::from_secs(5);
/// After one that failed.
const AGAIN: Duration = Duration::from_secs(30);
/// One that is damaged, or of a moment when something was wrong, has two others beside it.
const KEPT: usize = 3;
/// For one copy of a file at its quota.
const COPY: Duration = Duration::from_secs(300);
/// The store's file is of whole pages; then comes its hash.
const PAGE_BYTES: u64 = 512;
const HASH_BYTES: usize = 32;

const FAILS: Problem = Problem {
    name: "store-copy",
    unblocks: "room on the disk of the data directory, or the store; it is tried again by itself",
};

/// Keeps copies for ever: each interval, and when the spec changes or a machine joins.
pub async fn keep(cluster: String, store: Etcd, layout: Layout, troubles: Troubles) {
    let dir = layout.store_copies();
    let spec = spec_store::key(&cluster);
    let joined = joined_prefix(&cluster);
    let (mut specs, mut machines) = (store.watch(&spec, 0), store.watch(&joined, 0));
    loop {
        let taken = match begun(&store, &cluster, &dir).await {
            Ok(()) => take(&store, &dir).await,
            Err(error) => Err(error),
        };
        let wait = match &taken {
            Ok(path) => {
                tracing::debug!(copy = %path.display(), "a copy of the store");
                troubles.clear(FAILS.name);
                EVERY
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the store can't be copied");
                if age_ms(&layout).is_none_or(|ms| u128::from(ms) > 2 * EVERY.as_millis()) {
                    troubles.hold(FAILS, format!("the store can't be copied: {error:#}"));
                }
                AGAIN
            }
        };
        tokio::time::sleep(PAUSE).await;
        let changed = async {
            tokio::select! {
                () = changed(&mut specs) => {}
                () = changed(&mut machines) => {}
            }
        };
        let _ = tokio::time::timeout(wait.saturating_sub(PAUSE), changed).await;
    }
}

async fn changed(watch: &mut Watch) {
    loop {
        match watch.next().await {
            Some(WatchEvent::Changed(_)) => return,
            Some(WatchEvent::Reset(_) | WatchEvent::Progress | WatchEvent::Lost(_)) => {}
            // The interval does without it.
            Some(WatchEvent::Ended(_)) | None => std::future::pending().await,
        }
    }
}

/// Whether each service has a term, once there are copies: a store that began anew on old data has
/// none, and its copies would take the places of the good ones.
async fn begun(store: &Etcd, cluster: &str, dir: &Path) -> anyhow::Result<()> {
    if all(dir).is_empty() {
        return Ok(());
    }
    let found = store.get_prefix(&format!("/everhold/{cluster}/")).await?;
    let spec = found.get(&spec_store::key(cluster)).context("it holds no spec")?;
    for (service, _) in record::from_json(&spec.value)?.databases() {
        let term = format!("{}term", Keys::new(cluster, service).prefix);
        if found.get(&term).is_none() {
            bail!("service {service} has no term in it; earlier copies are kept");
        }
    }
    Ok(())
}

/// Takes one, checks what is on disk, and only then gives it its name.
pub async fn take(store: &Etcd, dir: &Path) -> anyhow::Result<PathBuf> {
    private_dir(dir)?;
    let new = dir.join("new");
    let mut open = std::fs::OpenOptions::new();
    let file = open.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    let mut to = tokio::fs::File::from_std(file);
    let endpoint = store.nearest();
    store
        .only(&endpoint, COPY)
        .await?
        .copy_to(&mut to)
        .await
        .map_err(|error: StoreError| anyhow::anyhow!("{}", crate::keeper::chain(&error)))?;
    to.sync_all().await?;
    let dir = dir.to_path_buf();
    let placed = tokio::task::spawn_blocking(move || {
        check(&new)?;
        let last = all(&dir).last().and_then(|path| number(path)).unwrap_or(0);
        let path = dir.join(format!("{:08}.db", last + 1));
        std::fs::rename(&new, &path)?;
        File::open(&dir)?.sync_all()?;
        let known = all(&dir);
        for old in known.iter().take(known.len().saturating_sub(KEPT)) {
            std::fs::remove_file(old)?;
        }
        Ok(path)
    });
    placed.await?
}

/// The copies in a directory, oldest first.
pub fn all(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| number(path).is_some()).collect();
    found.sort_by_key(|path| number(path));
    found
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".db")?.parse().ok()
}

/// How old the newest copy on this machine is.
pub fn age_ms(layout: &Layout) -> Option<u64> {
    let newest = all(&layout.store_copies()).pop()?;
    let made = std::fs::metadata(newest).ok()?.modified().ok()?;
    Some(u64::try_from(made.elapsed().unwrap_or_default().as_millis()).unwrap_or(u64::MAX))
}

/// Whether the file is a whole copy: its end is the hash of the rest.
pub fn check(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let mut file = File::open(path).with_context(|| format!("open {shown}"))?;
    let bytes = file.metadata()?.len();
    let mut left = bytes.saturating_sub(HASH_BYTES as u64);
    if left == 0 || left % PAGE_BYTES != 0 {
        bail!("{shown} is not a whole copy of the store: it has {bytes} bytes");
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = file.read(&mut buffer[..want])?;
        if read == 0 {
            bail!("{shown} was cut off while it was read");
        }
        hash.update(&buffer[..read]);
        left -= read as u64;
    }
    let mut told = [0; HASH_BYTES];
    file.read_exact(&mut told)?;
    if hash.finalize()[..] != told {
        bail!("{shown} is damaged: its SHA-256 is another one");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_copies_pass_the_check() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("copy");
        let content = vec![7_u8; 2_048];
        let whole = [&content[..], &Sha256::digest(&content)[..]].concat();
        let check = |bytes: &[u8], fault: &str| {
            std::fs::write(&path, bytes).expect("written");
            match check(&path) {
                Ok(()) => assert_eq!(fault, ""),
                Err(error) => {
                    let text = error.to_string();
                    assert!(!fault.is_empty() && text.contains(fault), "{fault}: {text}");
                }
            }
        };
        check(&whole, "");
        check(&whole[..whole.len() - 1], "not a whole copy");
        check(&whole[512..], "damaged");
        check(&[], "not a whole copy");
        let mut flipped = whole.clone();
        flipped[100] ^= 1;
        check(&flipped, "damaged");
    }

    #[test]
    fn copies_are_found_oldest_first() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["00000010.db", "00000009.db", "new", "x.db"] {
            std::fs::write(dir.path().join(name), "").expect("written");
        }
        let names: Vec<PathBuf> = all(dir.path());
        assert_eq!(names, ["00000009.db", "00000010.db"].map(|name| dir.path().join(name)));
    }
}
