//! Making, starting and stopping a server.

use super::error::PgError;
use super::files::{self, Keep};
use super::session::Session;
use super::settings::{self, REPLICATION_ROLE, SUPERUSER, literal, name};
use super::{Site, history, postmaster, tool};
use everhold_core::ids::Tli;
use everhold_core::postgres::{PgOutcome, Source, StopMode};
use everhold_core::term::Branch;
use rustix::process::Signal;
use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

/// PostgreSQL gets this long to end by itself before everything is killed.
const IMMEDIATE_PATIENCE: Duration = Duration::from_millis(200);
/// The same for a stop in which standbys receive the shutdown checkpoint.
const FAST_PATIENCE: Duration = Duration::from_secs(5);
/// How long killed processes may take to be gone. One that waits for a stalled disk takes longer.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Crash recovery of a busy server takes minutes, and a copy that isn't whole waits for its leader:
/// whoever asked for the start decides again after this.
const START_PATIENCE: Duration = Duration::from_secs(3);
/// Where nothing can be done before it is up. The next attempt waits for it again.
const START_SECONDS_MAX: u64 = 600;
/// How long a server that was just started is looked at closely.
const START_CLOSE_LOOK: Duration = Duration::from_millis(500);

/// Stands in a directory from before the first change of a restore until all of it lasts.
pub(super) const RESTORING: &str = "everhold.restoring";

/// Megabytes of a WAL segment. PostgreSQL's own 16 cost a promotion 30 ms and a rewind of an idle
/// server 64 MB more; below 4 a busy server makes dozens of files a second.
const SEGMENT_MB: &str = "4";

/// Makes the data directory beside its place, then moves it there: a crash at any point leaves
/// either nothing of it or all.
pub async fn bootstrap(site: &Site) -> Result<PgOutcome, PgError> {
    let config = &site.config;
    if config.data_dir.join("PG_VERSION").exists() {
        let sysid = tool::control(config).await?.sysid()?;
        return Ok(PgOutcome::Bootstrapped { sysid });
    }
    let sql = bootstrap_sql(site)?;
    end_processes(site, Signal::KILL, Duration::ZERO).await?;
    let dir = config.bootstrap_dir();
    let fresh = dir.clone();
    let owner = config.run_as;
    site.blocking(move || {
        files::remove(&fresh)?;
        files::private_dir(&fresh, owner)
    })
    .await?;
    let mut command = tool::command(config, "initdb", &[]);
    command.arg("-D").arg(&dir).args(["--username", SUPERUSER, "--data-checksums"]);
    // A promotion copies the last segment, and a rewind copies segments whole.
    command.args(["--wal-segsize", SEGMENT_MB]);
    command.args(["--auth=reject", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"]);
    tool::run("initdb", command, None).await?;
    // A single-user server: nobody can connect, and it ends with a checkpoint.
    let mut command = tool::command(config, "postgres", &[]);
    command.args(["--single", "-j", "-D"]).arg(&dir);
    for setting in [
        "exit_on_error=on",
        "password_encryption=scram-sha-256",
        "log_min_error_statement=panic",
        "log_statement=none",
        "log_checkpoints=off",
    ] {
        command.args(["-c", setting]);
    }
    for limit in settings::first_limits(config) {
        command.args(["-c", &limit]);
    }
    command.arg("postgres");
    tool::run("postgres --single", command, Some(&sql)).await?;
    let (from, to) = (dir.clone(), config.data_dir.clone());
    site.blocking(move || {
        // An empty directory in its place is replaced by the rename.
        fs::rename(&from, &to).map_err(PgError::file("put in place", &to))?;
        files::sync_parent(&to)
    })
    .await?;
    let sysid = tool::control(config).await?.sysid()?;
    Ok(PgOutcome::Bootstrapped { sysid })
}

/// The statements a new server begins with, each ended by an empty line as the single-user server
/// wants it.
fn bootstrap_sql(site: &Site) -> Result<String, PgError> {
    let config = &site.config;
    let owner_password = settings::read_password(&config.owner_password_file)?;
    let replication_password = settings::read_password(&config.replication_password_file)?;
    let (owner, database) = (name(&config.owner), name(&config.database));
    if [&config.owner, &config.database].iter().any(|text| text.contains(['\n', '\0'])) {
        return Err(PgError::refused("a database or its owner has a line's end in its name"));
    }
    let mut sql = String::new();
    let mut add = |statement: String| {
        let _ = write!(sql, "{statement};\n\n");
    };
    add(format!(
        "CREATE ROLE {REPLICATION_ROLE} LOGIN REPLICATION PASSWORD {}",
        literal(&replication_password)
    ));
    for function in [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ] {
        add(format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {REPLICATION_ROLE}"));
    }
    add(format!("GRANT CONNECT ON DATABASE postgres TO {REPLICATION_ROLE}"));
    add("CREATE SCHEMA everhold".into());
    add("CREATE TABLE everhold.barrier (epoch bigint NOT NULL, at timestamptz NOT NULL)".into());
    add(format!("CREATE ROLE {owner} LOGIN PASSWORD {}", literal(&owner_password)));
    if config.database == "postgres" {
        add(format!("ALTER DATABASE postgres OWNER TO {owner}"));
    } else {
        add(format!("CREATE DATABASE {database} OWNER {owner}"));
    }
    Ok(sql)
}

/// Ends every process of the directory and proves it.
pub async fn stop(site: &Site, mode: StopMode) -> Result<PgOutcome, PgError> {
    let mut deaths = site.watch.deaths();
    if mode == StopMode::Fast
        && let Some(running) = site.look_for_postmaster().await?
    {
        running.signal(Signal::INT);
        let ended =
            async { while site.watch.alive().is_some() && deaths.changed().await.is_ok() {} };
        if tokio::time::timeout(FAST_PATIENCE, ended).await.is_err() {
            tracing::warn!(node = %site.config.node, "PostgreSQL did not stop in order: killing it");
        }
    }
    end_processes(site, Signal::QUIT, IMMEDIATE_PATIENCE).await?;
    Ok(PgOutcome::Done)
}

/// Ends servers and tools of the directory.
pub async fn end_processes(site: &Site, signal: Signal, patience: Duration) -> Result<(), PgError> {
    let directory = site.directory.clone();
    site.blocking(move || directory.end(signal, patience, GONE_WITHIN)).await
}

/// Starts as a standby, whatever it was, and waits a moment for it to be up: one that recovers for
/// longer is seen to. One that runs as a standby already is waited for.
pub async fn start(
    site: &Site,
    line: &[Branch],
    source: Option<&Source>,
) -> Result<PgOutcome, PgError> {
    let config = &site.config;
    let log_from = postmaster::log_bytes(&config.log_file);
    if site.look_for_postmaster().await?.is_some() {
        await_start(site, log_from).await?;
        if foreign_histories(site, line).await?.is_empty() {
            return super::standby::set_source(site, source).await;
        }
        stop(site, StopMode::Fast).await?;
    }
    let directory = site.directory.clone();
    let pids = site.blocking(move || Ok(directory.pids())).await?;
    if !pids.is_empty() {
        return Err(PgError::Remains { dir: config.data_dir.clone(), pids });
    }
    if config.data_dir.join(RESTORING).exists() {
        return Err(PgError::refused(format!(
            "{} was not restored to its end: {RESTORING} says so",
            config.data_dir.display()
        )));
    }
    let control = tool::control(config).await?;
    let (owned, line, source) = (site.clone(), line.to_vec(), source.cloned());
    let control_tli = control.newest_tli()?;
    site.blocking(move || prepare(&owned, &line, control_tli, source.as_ref())).await?;
    postmaster::spawn(config, &site.watch).await?;
    let up = await_start(site, log_from);
    tokio::time::timeout(START_PATIENCE, up).await.unwrap_or(Ok(()))?;
    Ok(PgOutcome::Done)
}

/// The same, and waits until it is up.
async fn start_and_wait(site: &Site, line: &[Branch]) -> Result<(), PgError> {
    let log_from = postmaster::log_bytes(&site.config.log_file);
    start(site, line, None).await?;
    await_start(site, log_from).await
}

/// Brings the directory into the state every start begins from.
fn prepare(
    site: &Site,
    line: &[Branch],
    control_tli: Tli,
    source: Option<&Source>,
) -> Result<(), PgError> {
    let config = &site.config;
    let pg_wal = config.pg_wal();
    let present = history::present(&pg_wal)?;
    for tli in history::foreign(&present, line, control_tli) {
        tracing::info!(node = %config.node, tli, "removing a foreign timeline's history");
        files::remove(&pg_wal.join(history::file_name(tli)))?;
    }
    for tli in history::gaps(&present, line, control_tli) {
        history::reserve(&pg_wal, tli, 1, "a number in use elsewhere", config.run_as)?;
    }
    files::sync_dir(&pg_wal)?;
    // Nothing of the directory lives, so a number in these can only mislead.
    let socket = config.run_dir.join(format!(".s.PGSQL.{}", config.port));
    for stale in [
        config.data_dir.join("postmaster.pid"),
        config.data_dir.join("recovery.signal"),
        files::beside(&socket, ".lock"),
        socket,
    ] {
        files::remove(&stale)?;
    }
    let signal = config.data_dir.join("standby.signal");
    files::write(&signal, b"", config.run_as, Keep::Synced)?;
    files::private_dir(&config.run_dir, config.run_as)?;
    settings::write_all(config, &site.local_names, source)
}

async fn await_start(site: &Site, log_from: u64) -> Result<(), PgError> {
    let begun = Instant::now();
    let said = || postmaster::logged_since(&site.config.log_file, log_from);
    loop {
        if site.watch.alive().is_none() {
            return Err(PgError::DidNotStart { said: said() });
        }
        let ready = site.directory.pid_file().is_some_and(|file| !file.starting);
        if ready && let Ok(session) = Session::open(&site.config, "start", "").await {
            return require_standby(&session).await;
        }
        if begun.elapsed() > Duration::from_secs(START_SECONDS_MAX) {
            return Err(PgError::StillStarting { seconds: START_SECONDS_MAX, said: said() });
        }
        let pause = if begun.elapsed() < START_CLOSE_LOOK { 2 } else { 20 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn require_standby(session: &Session) -> Result<(), PgError> {
    let doing = "ask whether it is a standby";
    match session.value(doing, "SELECT pg_is_in_recovery()").await?.as_deref() {
        Some("t") => Ok(()),
        _ => Err(PgError::refused("it is running as a primary: stop it first")),
    }
}

/// Histories in pg_wal above the server's own and not of `line`.
pub async fn foreign_histories(site: &Site, line: &[Branch]) -> Result<Vec<Tli>, PgError> {
    let control_tli = tool::control(&site.config).await?.newest_tli()?;
    let (pg_wal, line) = (site.config.pg_wal(), line.to_vec());
    site.blocking(move || Ok(history::foreign(&history::present(&pg_wal)?, &line, control_tli)))
        .await
}

/// Removes foreign histories, which the server has in memory too, and parks it again.
pub async fn trim(site: &Site, line: &[Branch]) -> Result<PgOutcome, PgError> {
    if foreign_histories(site, line).await?.is_empty() {
        return Ok(PgOutcome::Trimmed { restarted: false });
    }
    stop(site, StopMode::Fast).await?;
    start_and_wait(site, line).await?;
    super::standby::park(site).await?;
    Ok(PgOutcome::Trimmed { restarted: true })
}

/// Recovers a directory whose server was killed, and shuts it down, so that tools may read it. As a
/// standby without a source: nothing can be written or acknowledged meanwhile.
pub async fn shut_down_cleanly(site: &Site) -> Result<(), PgError> {
    if tool::control(&site.config).await?.is_clean() {
        return Ok(());
    }
    let pg_wal = site.config.pg_wal();
    let line = site.blocking(move || history::written(&pg_wal)).await?;
    start_and_wait(site, &line).await?;
    stop(site, StopMode::Fast).await?;
    match tool::control(&site.config).await?.is_clean() {
        true => Ok(()),
        false => Err(PgError::refused("the server can't be shut down in order")),
    }
}
