//! One look at the server: what a session that is kept open tells in one exchange.

use super::error::PgError;
use super::functions::Functions;
use super::session::{ANSWER_MS_MAX, Row, Session, within};
use super::settings;
use super::{Site, leader, postmaster, tool};
use everhold_core::ids::{Lsn, Member, Tli};
use everhold_core::postgres::{PgFacts, Process, Receiver, Walsender};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What changes rarely, and housekeeping, are looked at this often.
const SLOW: Duration = Duration::from_secs(5);
/// How long a directory that was seen without processes isn't searched again.
const DOWN: Duration = Duration::from_secs(1);
/// A disk with less than this is full: it holds no further WAL segment of PostgreSQL's own size.
const FULL_BYTES: u64 = 16 << 20;

/// Asked in this order: first what new sessions would see, then the rows, then the position.
const QUESTIONS: &str = "\
SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names'), \
 current_setting('primary_conninfo'), current_setting('primary_slot_name'), \
 (SELECT timeline_id FROM pg_control_checkpoint());
SELECT r.application_name, r.state = 'streaming', r.sync_priority, r.flush_lsn, \
 coalesce(s.active_pid = r.pid, false) FROM pg_stat_replication r \
 LEFT JOIN pg_replication_slots s ON s.slot_name = r.application_name \
 WHERE r.application_name NOT LIKE 'everhold %' ORDER BY r.application_name, r.pid;
SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary \
 AND slot_name <> 'everhold_log' AND wal_status IN ('reserved', 'extended', 'unreserved') ORDER BY slot_name;
SELECT status = 'streaming', \
 (extract(epoch FROM clock_timestamp() - last_msg_receipt_time) * 1000)::bigint, flushed_lsn \
 FROM pg_stat_wal_receiver;
SELECT pg_is_in_recovery(), \
 CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, \
 CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_flush_lsn()) END, \
 pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn(), \
 (extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000)::bigint";

/// Settings that roles, databases and the server may have weakened.
const OVERRIDES: &str = "\
SELECT concat_ws(' ', 'ROLE ' || rolname, 'DATABASE ' || datname), unnest(setconfig) \
 FROM pg_db_role_setting LEFT JOIN pg_roles r ON r.oid = setrole \
 LEFT JOIN pg_database d ON d.oid = setdatabase ORDER BY 1, 2;
SELECT name, setting FROM pg_settings WHERE (name, setting) IN (('fsync', 'off'), \
 ('full_page_writes', 'off'), ('restart_after_crash', 'on'), ('synchronous_commit', 'off'), \
 ('synchronous_commit', 'local'), ('synchronous_commit', 'remote_write'), \
 ('zero_damaged_pages', 'on'), ('ignore_checksum_failure', 'on'), ('data_checksums', 'off'));
SELECT name, setting FROM pg_settings WHERE name IN ('max_connections', 'max_worker_processes', \
 'max_prepared_transactions', 'max_locks_per_transaction');
SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'";

/// What is kept from one look to the next.
#[derive(Default)]
pub struct Look {
    live: Option<Live>,
    down: Option<Down>,
}

/// Of a running server, as long as its session lasts.
struct Live {
    pid: i32,
    session: Session,
    sysid: Option<u64>,
    overrides: Vec<String>,
    log_from: Option<Lsn>,
    /// Of a primary: on a standby the same functions are there and acknowledge nothing.
    functions: Option<Functions>,
    slow_at: Option<Instant>,
}

/// Of a directory without a postmaster.
struct Down {
    at: Instant,
    deaths: u64,
    process: Process,
    sysid: Option<u64>,
    checkpoint_tli: Tli,
    said: Option<String>,
}

/// Looks at the server and its disk. Bounded by little more than [`ANSWER_MS_MAX`].
pub async fn observe(site: &Site, look: &mut Look, me: &Member) -> PgFacts {
    let dir = site.config.data_dir.parent().unwrap_or(&site.config.data_dir).to_path_buf();
    let full = site.blocking(move || Ok(is_full(&dir))).await.unwrap_or(false);
    PgFacts { full, ..look_at(site, look, me).await }
}

/// For the server's user: what is kept for root is no room for it.
fn is_full(dir: &Path) -> bool {
    rustix::fs::statvfs(dir)
        .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < FULL_BYTES)
}

async fn look_at(site: &Site, look: &mut Look, me: &Member) -> PgFacts {
    let postmaster = match site.look_for_postmaster().await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%me, %error, "can't look for the postmaster");
            return PgFacts::default();
        }
    };
    let Some(postmaster) = postmaster else {
        look.live = None;
        return observe_down(site, look).await;
    };
    look.down = None;
    let starting = site.directory.pid_file().is_none_or(|file| file.starting);
    let process = if starting { Process::Starting } else { Process::Running };
    let known = PgFacts { process, pid: Some(postmaster.pid), ..PgFacts::default() };
    if starting {
        look.live = None;
        return known;
    }
    let live = look.live.take().filter(|live| live.pid == postmaster.pid);
    let asked = within("observe", ANSWER_MS_MAX, ask(site, postmaster.pid, live)).await;
    match asked {
        Ok((live, facts)) => {
            look.live = Some(live);
            PgFacts { process, pid: Some(postmaster.pid), ..facts }
        }
        Err(error) => {
            tracing::debug!(%me, %error, "no answer");
            known
        }
    }
}

async fn observe_down(site: &Site, look: &mut Look) -> PgFacts {
    let deaths = *site.watch.deaths().borrow();
    let fresh = |down: &Down| down.deaths == deaths && down.at.elapsed() < DOWN;
    if site.copying.load(Ordering::Relaxed) {
        return PgFacts { process: Process::Down, ..PgFacts::default() };
    }
    if !look.down.as_ref().is_some_and(|down| down.process == Process::Down && fresh(down)) {
        let directory = site.directory.clone();
        let left = site.blocking(move || Ok(directory.pids())).await;
        let process = match left {
            Ok(pids) if pids.is_empty() => Process::Down,
            Ok(_) | Err(_) => Process::Remains,
        };
        let control = match site.config.data_dir.join("PG_VERSION").exists() {
            true => tool::control(&site.config).await.ok(),
            false => None,
        };
        let log = site.config.log_file.clone();
        let from = site.watch.log_from();
        let said = site.blocking(move || Ok(postmaster::logged_since(&log, from))).await;
        look.down = Some(Down {
            said: said.ok().filter(|said| !said.is_empty()),
            at: Instant::now(),
            deaths,
            process,
            sysid: control.as_ref().and_then(|control| control.sysid().ok()),
            checkpoint_tli: control.and_then(|c| c.checkpoint_tli().ok()).unwrap_or(0),
        });
    }
    let Some(down) = &look.down else { return PgFacts::default() };
    PgFacts {
        process: down.process,
        sysid: down.sysid,
        checkpoint_tli: down.checkpoint_tli,
        said: down.said.clone(),
        ..PgFacts::default()
    }
}

/// Asks everything. The sessions are gone if that is given up.
async fn ask(site: &Site, pid: i32, live: Option<Live>) -> Result<(Live, PgFacts), PgError> {
    let mut live = match live {
        Some(live) if !live.session.is_closed() => live,
        _ => connect(site, pid).await?,
    };
    let mut answers = live.session.ask("observe", QUESTIONS).await?;
    if promoted_between(&answers) {
        answers = live.session.ask("observe", QUESTIONS).await?;
    }
    let mut facts = read(&answers).ok_or_else(|| PgError::Answer {
        doing: "observe",
        said: format!("{} answers", answers.len()),
    })?;
    facts.sysid = live.sysid;
    if facts.in_recovery == Some(true) {
        facts.tli = site.timeline.ask(&site.config).await?;
    } else {
        site.timeline.close().await;
    }
    // A value that no new session has shown yet proves nothing.
    if !facts.sync_names.as_ref().is_some_and(|names| site.proven.is(pid, names)) {
        facts.sync_names = leader::show_sync(site).await?;
    }
    if live.slow_at.is_none_or(|at| at.elapsed() > SLOW) {
        (live.overrides, live.log_from) = look_closely(site, &live.session).await?;
        live.slow_at = Some(Instant::now());
    }
    match facts.in_recovery {
        Some(false) if live.functions.is_none() => {
            live.functions = Some(Functions::watch(site.config.clone()));
        }
        Some(true) => live.functions = None,
        Some(false) | None => {}
    }
    facts.overrides.clone_from(&live.overrides);
    // Of some seconds ago: it begins later now, if anything.
    facts.log_from = live.log_from.filter(|_| facts.in_recovery == Some(false));
    facts.overrides.extend(live.functions.iter().flat_map(Functions::found));
    Ok((live, facts))
}

async fn connect(site: &Site, pid: i32) -> Result<Live, PgError> {
    let session = Session::open(&site.config, "observe", "").await?;
    let sql = "SELECT system_identifier FROM pg_control_system()";
    let sysid = session.value("read the system identifier", sql).await?;
    Ok(Live {
        pid,
        session,
        sysid: sysid.and_then(|sysid| sysid.parse().ok()),
        overrides: Vec::new(),
        log_from: None,
        functions: None,
        slow_at: None,
    })
}

/// Overrides, where the log begins, and what has to be done from time to time.
async fn look_closely(
    site: &Site,
    session: &Session,
) -> Result<(Vec<String>, Option<Lsn>), PgError> {
    let answers = session.ask("look for overrides", OVERRIDES).await?;
    leader::advance_slots(site, session).await?;
    let config = site.config.clone();
    let (mut found, segment) = site
        .blocking(move || {
            postmaster::bound_log(&config.log_file)?;
            let mut found = settings::ignored(&config);
            found.extend(settings::altered(&config));
            Ok((found, oldest_segment(&config.data_dir.join("pg_wal"))))
        })
        .await?;
    let [roles, server, limits, size] = answers.as_slice() else { return Ok((found, None)) };
    let size: Option<u64> = size.first().and_then(|row| number(row.first()?));
    let log_from = segment.zip(size).map(|((log, number), size)| Lsn((log << 32) + number * size));
    for row in roles {
        if let [Some(whose), Some(setting)] = row.as_slice()
            && settings::weakens(setting)
        {
            found.push(format!("ALTER {whose}: {setting}"));
        }
    }
    for row in server {
        if let [Some(name), Some(value)] = row.as_slice() {
            found.push(format!("server: {name}={value}"));
        }
    }
    for row in limits {
        if let [Some(name), Some(value)] = row.as_slice() {
            found.extend(settings::not_lowered(&site.config, name, value));
        }
    }
    Ok((found, log_from))
}

/// Of the log's files, whatever their timeline: which 4 GB the oldest is of, and its number there.
fn oldest_segment(dir: &Path) -> Option<(u64, u64)> {
    let names =
        std::fs::read_dir(dir).ok()?.flatten().filter_map(|it| it.file_name().into_string().ok());
    let number = |name: String| {
        let hex = |from, to| u64::from_str_radix(name.get(from..to)?, 16).ok();
        (name.len() == 24).then_some(())?;
        hex(0, 8)?;
        Some((hex(8, 16)?, hex(16, 24)?))
    };
    names.filter_map(number).min()
}

fn promoted_between(answers: &[Vec<Row>]) -> bool {
    let state = |answer: Option<&Vec<Row>>| answer.and_then(|rows| rows.first()?.first().cloned());
    state(answers.first()) != state(answers.last())
}

/// What [`QUESTIONS`] were answered.
fn read(answers: &[Vec<Row>]) -> Option<PgFacts> {
    let [settings, walsenders, slots, receiver, position] = answers else { return None };
    let [recovery, names, conninfo, slot, checkpoint_tli] = settings.first()?.as_slice() else {
        return None;
    };
    let [_, lsn, file, replayed_all, received, age] = position.first()?.as_slice() else {
        return None;
    };
    let in_recovery = is_true(recovery);
    let receiver = receiver.first().and_then(|row| match row.as_slice() {
        [streaming, age, flushed] => Some(Receiver {
            streaming: is_true(streaming),
            message_ms_ago: number(age).map(|ms: i64| ms.max(0) as u64),
            flushed: number(flushed).unwrap_or_default(),
        }),
        _ => None,
    });
    let lag = match (in_recovery && receiver.is_some(), replayed_all.as_deref()) {
        (true, Some("t")) => Some(0),
        (true, _) => number(age).map(|ms: i64| ms.max(0) as u64),
        (false, _) => None,
    };
    let tli = |name: &Option<String>| Tli::from_str_radix(name.as_deref()?.get(..8)?, 16).ok();
    Some(PgFacts {
        in_recovery: Some(in_recovery),
        tli: tli(file).unwrap_or(0),
        lsn: number(lsn).unwrap_or_default(),
        source: settings::parse_conninfo(conninfo.as_deref()?, slot.as_deref()?),
        receiver,
        received: number(received).unwrap_or_default(),
        replay_lag_ms: lag,
        sync_names: names.clone(),
        walsenders: walsenders.iter().filter_map(walsender).collect(),
        checkpoint_tli: number(checkpoint_tli).unwrap_or(0),
        slots: slots.iter().filter_map(|row| row.first()?.clone()).collect(),
        ..PgFacts::default()
    })
}

fn walsender(row: &Row) -> Option<Walsender> {
    let [name, streaming, priority, flush, owns_slot] = row.as_slice() else { return None };
    Some(Walsender {
        name: name.clone()?,
        streaming: is_true(streaming),
        priority: number(priority).unwrap_or(0),
        // Nothing is known to be flushed before the standby's first reply.
        flush: number(flush).unwrap_or(Lsn(0)),
        owns_slot: is_true(owns_slot),
    })
}

fn is_true(value: &Option<String>) -> bool {
    value.as_deref() == Some("t")
}

fn number<T: std::str::FromStr>(value: &Option<String>) -> Option<T> {
    value.as_deref()?.parse().ok()
}
