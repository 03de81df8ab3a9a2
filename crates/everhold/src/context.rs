//! How a command finds the running cluster: a pointer that the last `up` of this user left, or the
//! data directory that is named.

use crate::disk;
use crate::layout::Layout;
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where the API is and what opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    pub cluster: String,
    pub data: PathBuf,
    /// `http://127.0.0.1:7070`
    pub api: String,
    pub token_file: PathBuf,
}

/// The data directory when none is named.
pub fn default_data() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/everhold");
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    base.unwrap_or_else(|| home.join(".local/share")).join("everhold")
}

/// Names another place for the pointer, for stacks beside the one that commands shall find.
const POINTER: &str = "EVERHOLD_POINTER";

/// Where the pointer stands: a directory that only this user can write.
fn pointer() -> PathBuf {
    let named = std::env::var_os(POINTER).filter(|path| !path.is_empty());
    if let Some(path) = named.and_then(|path| std::path::absolute(path).ok()) {
        return path;
    }
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/everhold/up.json");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) => PathBuf::from(dir).join("everhold/up.json"),
        None => std::env::temp_dir().join(format!("everhold-{}/up.json", uid.as_raw())),
    }
}

impl Context {
    /// Leaves word for commands: in the data directory, and where they look without being told.
    pub fn publish(&self, layout: &Layout) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        disk::write_whole(&layout.supervisor().join("context.json"), &text)
            .context("write context.json")?;
        let pointer = pointer();
        let dir = pointer.parent().unwrap_or(Path::new("/"));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        if std::fs::metadata(dir)?.uid() != rustix::process::geteuid().as_raw() {
            bail!("{} belongs to somebody else", dir.display());
        }
        disk::write_whole(&pointer, &text).with_context(|| format!("write {}", pointer.display()))
    }

    /// Takes the word back, unless another cluster has left its own since.
    pub fn withdraw(&self) {
        let pointer = pointer();
        let text = std::fs::read_to_string(&pointer).unwrap_or_default();
        if serde_json::from_str::<Context>(&text).is_ok_and(|found| found == *self) {
            let _ = std::fs::remove_file(&pointer);
        }
    }

    /// The cluster of `data`, or the one that was started last.
    pub fn find(data: Option<&Path>) -> anyhow::Result<Context> {
        let path = match data {
            Some(data) => Layout::new(data)?.supervisor().join("context.json"),
            None => pointer(),
        };
        let text = std::fs::read_to_string(&path).map_err(|_| {
            anyhow::anyhow!(
                "E230 no running cluster found ({} is not there); next step: `everhold up`, or name \
                 its directory with --data",
                path.display()
            )
        })?;
        serde_json::from_str(&text).with_context(|| format!("E230 {} is torn", path.display()))
    }
}
