//! The directory in which a backup is proven: beside the node's data, and never there for longer than
//! the proof.

use crate::backup::room;
use crate::spec::local::{RunAs, Search};
use anyhow::{Context, anyhow};
use everhold_adapters::postgres::{Aside, AsideConfig};
use everhold_core::ids::Tli;
use everhold_core::spec::PostgresSpec;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Where it is and as whom its server runs. Its files are there once something is restored.
pub struct Sandbox {
    pub dir: PathBuf,
    pub server: AsideConfig,
    /// For as long as it is somebody's.
    _lock: File,
}

impl Sandbox {
    /// Of a service, in `dir`, which is made anew.
    pub fn make(dir: &Path, service: &PostgresSpec) -> anyhow::Result<Sandbox> {
        let lock = lock(dir, FlockOperation::NonBlockingLockExclusive).context(
            "E292 an earlier proof has not ended yet; next step: none, it is tried again",
        )?;
        clear(dir)?;
        let fault = |fault: crate::spec::Fault| anyhow!("{fault}");
        let run_as = RunAs::discover().map_err(fault)?;
        let server = AsideConfig {
            bin_dir: Search::from_env().postgres(service.version).map_err(fault)?,
            data_dir: data_dir(dir),
            run_dir: dir.to_path_buf(),
            run_as: run_as.is_other().then(|| (run_as.uid, run_as.gids[0])),
            tli: 1,
            throwaway: true,
        };
        server.make_run_dir().with_context(|| format!("make {}", dir.display()))?;
        Ok(Sandbox { dir: dir.to_path_buf(), server, _lock: lock })
    }

    /// The same, to follow a line that ends with that timeline.
    pub fn on(&self, tli: Tli) -> AsideConfig {
        AsideConfig { tli, ..self.server.clone() }
    }

    /// Whether the disk has room for `bytes` more, and a reserve.
    pub fn room(&self, bytes: u64) -> anyhow::Result<()> {
        room::require(&self.dir, bytes)
            .map_err(|error| anyhow!("E292 {error:#}; next step: make room, or more disk"))
    }
}

fn data_dir(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// Removes what a process left that was killed; one that is still there ends first. Blocks.
pub fn clear_left(dir: &Path) -> anyhow::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let _lock = lock(dir, FlockOperation::LockExclusive).context("wait for its owner")?;
    clear(dir)
}

/// On the directory in which it lies, so that nothing of the lock is left.
fn lock(dir: &Path, how: FlockOperation) -> io::Result<File> {
    let beside = File::open(dir.parent().unwrap_or(Path::new("/")))?;
    flock(&beside, how)?;
    Ok(beside)
}

/// Removes a sandbox with all that is in it; the server that runs there ends first. Blocks.
pub fn clear(dir: &Path) -> anyhow::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    Aside::clear(&data_dir(dir)).context("end what runs in the sandbox")?;
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
