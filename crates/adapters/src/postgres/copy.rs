//! Making the directory a copy of another server's: by pg_rewind, or by a whole base backup.

use super::config::RESTORED;
use super::error::PgError;
use super::settings::{self, Paths};
use super::{Site, files, kept, lifecycle, tool};
use everhold_core::ids::{Epoch, Lsn};
use everhold_core::postgres::{PgOutcome, Source};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// While it lives, tools at work in the directory aren't taken for what a server left.
struct Copying<'a>(&'a Site);

impl<'a> Copying<'a> {
    fn begin(site: &'a Site) -> Self {
        site.copying.store(true, Ordering::Relaxed);
        Copying(site)
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        self.0.copying.store(false, Ordering::Relaxed);
    }
}

/// Rewinds the stopped server to `source`, keeping first what it has past `fork`. After a failure
/// the directory is garbage and has to be cloned.
pub async fn rewind(
    site: &Site,
    source: &Source,
    fork: Lsn,
    epoch: Epoch,
) -> Result<PgOutcome, PgError> {
    let config = &site.config;
    require_stopped(site).await?;
    lifecycle::shut_down_cleanly(site).await?;
    require_known_branch(site).await?;
    let _copying = Copying::begin(site);
    kept::keep(site, fork, epoch).await?;
    write_proofs(site).await?;
    let mut command = tool::command(config, "pg_rewind", &[]);
    command.arg("--target-pgdata").arg(&config.data_dir);
    let from = settings::tool_conninfo(source, config, "everhold rewind");
    command.arg("--source-server").arg(from).arg("--config-file").arg(&Paths::of(config).main);
    // Recovery has been done above, by a server that can't acknowledge anything.
    command.args(["--no-ensure-shutdown", "--progress"]);
    let output = tool::run("pg_rewind", command, None).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    let (bytes, of) = rewound(&said);
    tracing::info!(node = %config.node, bytes, of, "rewound");
    Ok(PgOutcome::Copied { bytes, of })
}

/// What becomes of the directory that a clone takes the place of.
pub struct Old {
    /// Its WAL past this place is kept.
    pub fork: Option<Lsn>,
    /// Of the term that made it a copy.
    pub epoch: Epoch,
    pub keep: bool,
}

/// Takes a base backup beside the directory and puts it in its place. Only then the old one is
/// removed, or set aside if it is to be kept.
pub async fn clone(
    site: &Site,
    source: &Source,
    old: Old,
    bad_pages_too: bool,
) -> Result<PgOutcome, PgError> {
    let config = &site.config;
    let Old { fork, epoch, keep } = old;
    require_stopped(site).await?;
    let _copying = Copying::begin(site);
    if let Some(fork) = fork
        && let Err(error) = kept::keep(site, fork, epoch).await
    {
        // A directory that a broken rewind left may not be readable; its WAL was kept then.
        tracing::warn!(node = %config.node, %error, "diverging WAL not kept before a clone");
    }
    write_proofs(site).await?;
    let dir = config.clone_dir();
    let (fresh, owner) = (dir.clone(), config.run_as);
    site.blocking(move || {
        files::remove(&fresh)?;
        files::private_dir(&fresh, owner)
    })
    .await?;
    let mut command = tool::command(config, "pg_basebackup", &[]);
    command.arg("--pgdata").arg(&dir);
    command.arg("--dbname").arg(settings::tool_conninfo(source, config, "everhold clone"));
    command.args(["--checkpoint=fast", "--wal-method=stream", "--progress", "--no-password"]);
    if bad_pages_too {
        command.arg("--no-verify-checksums");
    }
    let output = tool::run("pg_basebackup", command, None).await?;
    let (bytes, of) = progress(&String::from_utf8_lossy(&output.stderr));
    let config = site.config.clone();
    site.blocking(move || {
        files::write(&dir.join("standby.signal"), b"", config.run_as, files::Keep::Synced)?;
        let to = &config.data_dir;
        if keep {
            set_aside(to, epoch)?;
        }
        if to.exists() {
            let swapped = renameat_with(CWD, &dir, CWD, to, RenameFlags::EXCHANGE);
            swapped
                .map_err(|error| PgError::file("put the clone in place of", to)(error.into()))?;
        } else {
            fs::rename(&dir, to).map_err(PgError::file("put the clone in place of", to))?;
        }
        files::sync_parent(to)?;
        files::remove(&dir)
    })
    .await?;
    Ok(PgOutcome::Copied { bytes, of })
}

/// Has what was restored beside the directory take its place; the old one is kept.
pub async fn put_back(site: &Site, id: &str, epoch: Epoch) -> Result<PgOutcome, PgError> {
    require_stopped(site).await?;
    let (config, id) = (site.config.clone(), id.to_string());
    site.blocking(move || {
        let (to, from) = (&config.data_dir, config.restored_dir());
        let is_it =
            |dir: &Path| fs::read_to_string(dir.join(RESTORED)).is_ok_and(|text| text.trim() == id);
        if !from.exists() && is_it(to) {
            return Ok(PgOutcome::Done);
        }
        if !is_it(&from) || from.join(lifecycle::RESTORING).exists() {
            let from = from.display();
            return Err(PgError::refused(format!(
                "{from} is not the whole restored directory {id}"
            )));
        }
        // What no server was ever started in holds nothing to keep.
        if to.exists() && !to.join("PG_VERSION").exists() {
            files::remove(to)?;
        }
        set_aside(to, epoch)?;
        if to.exists() {
            let to = to.display();
            return Err(PgError::refused(format!("{to}: one of epoch {epoch} is kept already")));
        }
        fs::rename(&from, to).map_err(PgError::file("put what was restored in place of", to))?;
        files::sync_parent(to)?;
        Ok(PgOutcome::Done)
    })
    .await
}

/// Moves a data directory beside its place. One that was set aside at this epoch already was the one
/// to keep: what stands in its place since is a copy that never became whole.
fn set_aside(data_dir: &Path, epoch: Epoch) -> Result<(), PgError> {
    let aside = files::beside(data_dir, &format!(".kept-{epoch}"));
    if aside.exists() || !data_dir.exists() {
        return Ok(());
    }
    tracing::warn!(at = %aside.display(), "the old data directory is kept");
    fs::rename(data_dir, &aside).map_err(PgError::file("set aside", data_dir))?;
    files::sync_parent(data_dir)
}

/// No server may run, and what a killed agent's tools still do is ended.
async fn require_stopped(site: &Site) -> Result<(), PgError> {
    if site.look_for_postmaster().await?.is_some() {
        return Err(PgError::refused("PostgreSQL is running: stop it first"));
    }
    lifecycle::end_processes(site, Signal::KILL, Duration::ZERO).await
}

/// Up to version 15, pg_rewind takes the last checkpoint's timeline for the one a server is on, and
/// loses its way on a server that was promoted or changed its branch since.
async fn require_known_branch(site: &Site) -> Result<(), PgError> {
    let control = tool::control(&site.config).await?;
    let (checkpoint, newest) = (control.checkpoint_tli()?, control.newest_tli()?);
    let path = site.config.data_dir.join("PG_VERSION");
    let text = fs::read_to_string(&path).map_err(PgError::file("read", &path))?;
    let follows = text.trim().parse::<u32>().is_ok_and(|version| version > 15);
    if follows || checkpoint == newest {
        return Ok(());
    }
    Err(PgError::refused(format!(
        "it went to timeline {newest} after its last checkpoint on {checkpoint}, which pg_rewind \
         can't follow: clone it"
    )))
}

async fn write_proofs(site: &Site) -> Result<(), PgError> {
    let config = site.config.clone();
    site.blocking(move || {
        settings::write_certificates(&config)?;
        settings::write_passfile(&config)
    })
    .await
}

/// Bytes copied and the size of the whole source, from pg_rewind's words.
fn rewound(said: &str) -> (u64, u64) {
    let (copied, _) = progress(said);
    let total = said.split_once("total source directory size is ").map(|(_, rest)| rest);
    let megabytes = total.and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    (copied, megabytes.unwrap_or(0) << 20)
}

/// The last `DONE/ALL kB` of a tool's progress, in bytes.
fn progress(said: &str) -> (u64, u64) {
    let pair = |line: &str| {
        let (numbers, _) = line.split_once(" kB")?;
        let (done, all) = numbers.trim().split_once('/')?;
        Some((done.trim().parse::<u64>().ok()? << 10, all.trim().parse::<u64>().ok()? << 10))
    };
    said.split(['\n', '\r']).filter_map(pair).next_back().unwrap_or((0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_the_tools() {
        let said = "pg_rewind: servers diverged at WAL location 0/3000060 on timeline 1\n\
                    pg_rewind: need to copy 49 MB (total source directory size is 70 MB)\n \
                    1024/50560 kB (2%) copied\r50560/50560 kB (100%) copied\n";
        assert_eq!(rewound(said), (50560 << 10, 70 << 20));
        assert_eq!(rewound("pg_rewind: no rewind required\n"), (0, 0));
        let said = "    0/31254 kB (0%), 0/1 tablespace\r31264/31264 kB (100%), 1/1 tablespace\n";
        assert_eq!(progress(said), (31264 << 10, 31264 << 10));
    }
}
