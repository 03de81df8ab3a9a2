//! Room on a disk, looked at before something is restored there: a full disk in the middle is worse than
//! a refusal, and a server may have to go on beside it.

use anyhow::{Context, bail};
use rustix::fs::statvfs;
use std::path::Path;

/// What stays free whatever is restored: a twentieth of the disk, within these.
const RESERVE_BYTES: std::ops::RangeInclusive<u64> = 512 << 20..=20 << 30;
/// For what is written beside the files: a checkpoint, the server's own log.
const SPARE_BYTES: u64 = 128 << 20;

/// An error, without a code, unless the disk of `at`, which need not be there yet, has room for
/// `bytes` more and a reserve.
pub fn require(at: &Path, bytes: u64) -> anyhow::Result<()> {
    let there = at.ancestors().find(|it| it.exists()).unwrap_or(Path::new("/"));
    let disk = statvfs(there).with_context(|| format!("look at {}", there.display()))?;
    let (free, all) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
    let (least, most) = RESERVE_BYTES.into_inner();
    let reserve = (all / 20).clamp(least, most);
    let wanted = bytes + SPARE_BYTES;
    if free < wanted + reserve {
        bail!(
            "{} has {} MB free; the restore takes {} MB, and {} MB stay free for servers",
            there.display(),
            free >> 20,
            wanted >> 20,
            reserve >> 20
        );
    }
    Ok(())
}
