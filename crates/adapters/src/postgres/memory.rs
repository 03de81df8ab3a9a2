//! Shared memory that a killed server left behind.
//!
//! PostgreSQL frees it at its next start in that very directory, which it knows by the number of its
//! inode. A directory that a copy takes the place of, or that is removed, never starts again: its
//! segment would stay until the machine is restarted, and a kernel has room for 4096 of them.

use super::error::PgError;
use super::files::Owner;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SEGMENTS: &str = "/proc/sysvipc/shm";
/// Who waits for this has a server to bring back.
const CHECKED_WITHIN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);

/// Frees what a killed server of that directory left; no server may run there. True: there was
/// something. PostgreSQL does it itself: with `--check` a start ends before anything is read or
/// recovered. Blocks for some tens of milliseconds.
pub fn free_memory(bin_dir: &Path, data_dir: &Path, run_as: Owner) -> Result<bool, PgError> {
    let Ok(found) = fs::metadata(data_dir) else { return Ok(false) };
    // As PostgreSQL makes a key of it; a number that is taken by others is a rare loss.
    let key = found.ino() as i32;
    let segments = fs::read_to_string(SEGMENTS).unwrap_or_default();
    if !keys(&segments).any(|it| it == key) {
        return Ok(false);
    }
    super::files::remove(&data_dir.join("postmaster.pid"))?;
    let mut command = Command::new(bin_dir.join("postgres"));
    command.args(["--check", "-F", "-c", "shared_buffers=1MB", "-c", "huge_pages=off", "-D"]);
    command.arg(data_dir).env_clear().env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    if let Some((uid, gid)) = run_as {
        command.uid(uid).gid(gid);
    }
    let failed = |status: String, said: String| PgError::Tool { tool: "postgres", status, said };
    let not_run = |error: io::Error| failed("no start".into(), error.to_string());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(not_run)?;
    let until = Instant::now() + CHECKED_WITHIN;
    while Instant::now() < until {
        match child.try_wait().map_err(not_run)? {
            Some(status) if status.success() => return Ok(true),
            Some(status) => return Err(failed(status.to_string(), String::new())),
            None => std::thread::sleep(LOOK),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(failed("no end".into(), format!("in {} s", CHECKED_WITHIN.as_secs())))
}

fn keys(segments: &str) -> impl Iterator<Item = i32> {
    segments.lines().skip(1).filter_map(|line| line.split_whitespace().next()?.parse().ok())
}
