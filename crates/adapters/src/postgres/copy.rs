//! Making the directory a copy of another server's: by pg_rewind, or by a whole base backup.

use super::aside::Aside;
use super::config::{COPIED, PgConfig, RESTORED};
use super::error::PgError;
use super::settings::{self, Paths};
use super::{Site, files, kept, lifecycle, memory, tool};
use everhold_core::ids::{Epoch, Lsn};
use everhold_core::postgres::{PgOutcome, Source};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A leader makes the slot of whoever it hears of well within that.
const SLOT_WITHIN: Duration = Duration::from_secs(30);

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

/// Makes a copy beside the directory and puts it in its place. Only then the old one is removed, or
/// set aside if it is to be kept. One that stands there already for this epoch serves if the leader
/// has the log from its end on, by `slot`, this node's own; else a base backup is taken.
pub async fn clone(
    site: &Site,
    source: &Source,
    slot: &str,
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
    let (bytes, of) = match made_elsewhere(site, source, slot, epoch).await? {
        Some(bytes) => (bytes, bytes),
        None => base_backup(site, source, bad_pages_too).await?,
    };
    let (dir, config) = (config.clone_dir(), site.config.clone());
    site.blocking(move || {
        files::write(&dir.join("standby.signal"), b"", config.run_as, files::Keep::Synced)?;
        let to = &config.data_dir;
        free_memory(&config);
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

async fn base_backup(
    site: &Site,
    source: &Source,
    bad_pages_too: bool,
) -> Result<(u64, u64), PgError> {
    let config = &site.config;
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
    Ok(progress(&String::from_utf8_lossy(&output.stderr)))
}

/// The bytes of the copy that was made from elsewhere, if it can go on from the leader's log.
async fn made_elsewhere(
    site: &Site,
    source: &Source,
    slot: &str,
    epoch: Epoch,
) -> Result<Option<u64>, PgError> {
    let marker = site.config.clone_dir().join(COPIED);
    let text = fs::read_to_string(&marker).unwrap_or_default();
    let mut words = text.split_whitespace();
    let made_in = words.next().and_then(|word| word.parse::<Epoch>().ok());
    let end = words.next().and_then(|word| word.parse::<Lsn>().ok());
    let bytes = words.next().and_then(|word| word.parse::<u64>().ok());
    let (Some(end), Some(bytes), true) = (end, bytes, made_in == Some(epoch)) else {
        return Ok(None);
    };
    let until = Instant::now() + SLOT_WITHIN;
    let kept_from = loop {
        let kept_from = slot_start(&site.config, source, slot).await?;
        if kept_from.is_some() || Instant::now() > until {
            break kept_from;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    if kept_from.is_none_or(|from| from > end) {
        let (node, from) = (&site.config.node, kept_from.map(|from| from.to_string()));
        tracing::warn!(%node, %end, from, "the leader lacks the log after a copy from elsewhere");
        return Ok(None);
    }
    site.blocking(move || files::remove(&marker)).await?;
    Ok(Some(bytes))
}

/// From where on the leader keeps the log for that slot.
async fn slot_start(
    config: &PgConfig,
    source: &Source,
    slot: &str,
) -> Result<Option<Lsn>, PgError> {
    let mut command = tool::command(config, "psql", &[]);
    command.args(["-X", "-A", "-t", "-w", "-d"]).arg(settings::tool_conninfo(
        source,
        config,
        "everhold clone",
    ));
    let sql = format!(
        "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = {}",
        settings::literal(slot)
    );
    let output = tool::run("psql", command, Some(&sql)).await?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse().ok())
}

/// Has what was restored beside the directory take its place; the old one is kept. Where that can't
/// be, the old one stands in its place as it was.
pub async fn put_back(site: &Site, id: &str, epoch: Epoch) -> Result<PgOutcome, PgError> {
    require_stopped(site).await?;
    let (config, id) = (site.config.clone(), id.to_string());
    site.blocking(move || {
        free_memory(&config);
        swap(&config.data_dir, &config.restored_dir(), &id, epoch)
    })
    .await
}

/// Of the directory that never starts again. What it can't do is no reason to hold.
fn free_memory(config: &PgConfig) {
    if let Err(error) = memory::free_memory(&config.bin_dir, &config.data_dir, config.run_as) {
        tracing::warn!(node = %config.node, %error, "a killed server's shared memory stays");
    }
}

/// Each of its steps may be the last one of this process: the next one finds how far it is.
fn swap(to: &Path, from: &Path, id: &str, epoch: Epoch) -> Result<PgOutcome, PgError> {
    let is_it =
        |dir: &Path| fs::read_to_string(dir.join(RESTORED)).is_ok_and(|text| text.trim() == id);
    if is_it(to) {
        files::sync_parent(to)?;
        return Ok(PgOutcome::Done);
    }
    let Err(error) = replace(to, from, is_it(from), epoch) else { return Ok(PgOutcome::Done) };
    let aside = aside_of(to, epoch);
    if !to.exists() && aside.exists() {
        fs::rename(&aside, to).map_err(PgError::file("put the old directory back as", to))?;
        files::sync_parent(to)?;
    }
    if !to.join("PG_VERSION").exists() {
        return Err(error);
    }
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    Ok(PgOutcome::NotPutBack { why: format!("{error}{}", cause.unwrap_or_default()) })
}

fn replace(to: &Path, from: &Path, is_whole: bool, epoch: Epoch) -> Result<(), PgError> {
    if !is_whole || from.join(lifecycle::RESTORING).exists() {
        let why = format!("{} is not the whole restored directory", from.display());
        return Err(PgError::refused(why));
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
    fs::rename(from, to).map_err(PgError::file("put what was restored in place of", to))?;
    files::sync_parent(to)
}

fn aside_of(data_dir: &Path, epoch: Epoch) -> std::path::PathBuf {
    files::beside(data_dir, &format!(".kept-{epoch}"))
}

/// Removes what was restored and is not to take the directory's place; with `unfinished` only what
/// never became whole. It goes by another name first: what is taken meanwhile is whole. Blocks for
/// as long as it takes to remove a data directory.
pub fn drop_restored(config: &PgConfig, unfinished: bool) -> Result<(), PgError> {
    let (dir, gone) = (config.restored_dir(), config.dropped_dir());
    let remove = || -> Result<(), PgError> {
        Aside::clear(&gone)?;
        files::remove(&gone)
    };
    remove()?;
    if dir.exists() && !(unfinished && dir.join(RESTORED).exists()) {
        fs::rename(&dir, &gone).map_err(PgError::file("set aside", &dir))?;
    }
    remove()
}

/// Moves a data directory beside its place. One that was set aside at this epoch already was the one
/// to keep: what stands in its place since is a copy that never became whole.
fn set_aside(data_dir: &Path, epoch: Epoch) -> Result<(), PgError> {
    let aside = aside_of(data_dir, epoch);
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

    /// `data` and `restored`, as `old`, `new`, `torn`, `-`; what stands where after a swap.
    #[test]
    fn a_swap_goes_on_from_any_point_or_leaves_the_old_one_where_it_was() {
        #[rustfmt::skip]
        let cases = [
            // data, restored, kept    said        data,  kept
            ("old",  "new",    "-",    "done",     "new", "old"),
            ("-",    "new",    "old",  "done",     "new", "old"),
            ("new",  "-",      "old",  "done",     "new", "old"),
            ("-",    "new",    "-",    "done",     "new", "-"),
            // Another recovery has begun beside it.
            ("new",  "torn",   "old",  "done",     "new", "old"),
            // What was restored is gone, or not whole.
            ("old",  "-",      "-",    "not done", "old", "-"),
            ("old",  "torn",   "-",    "not done", "old", "-"),
            ("-",    "-",      "old",  "not done", "old", "-"),
            // The name is taken.
            ("old",  "new",    "old",  "not done", "old", "old"),
            ("-",    "-",      "-",    "failed",   "-",   "-"),
        ];
        for (data, restored, kept, said, then, beside) in cases {
            let dir = tempfile::tempdir().unwrap();
            let (to, from) = (dir.path().join("pgdata"), dir.path().join("pgdata.restored"));
            let aside = aside_of(&to, 8);
            for (path, what) in [(&to, data), (&from, restored), (&aside, kept)] {
                if what == "-" {
                    continue;
                }
                fs::create_dir(path).unwrap();
                fs::write(path.join("PG_VERSION"), "15").unwrap();
                if what != "old" {
                    fs::write(path.join(RESTORED), if what == "new" { "x" } else { "y" }).unwrap();
                }
            }
            let shown = |path: &Path| match fs::read_to_string(path.join(RESTORED)) {
                Ok(id) if id == "x" => "new",
                Ok(_) => "torn",
                Err(_) if path.exists() => "old",
                Err(_) => "-",
            };
            let told = match swap(&to, &from, "x", 8) {
                Ok(PgOutcome::Done) => "done",
                Ok(_) => "not done",
                Err(_) => "failed",
            };
            let of = format!("{data} {restored} {kept}");
            assert_eq!((told, shown(&to), shown(&aside)), (said, then, beside), "{of}");
        }
    }

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
