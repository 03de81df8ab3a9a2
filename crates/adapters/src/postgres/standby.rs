//! Steps on a standby: whom it streams from, the proof that it receives nothing, promotion.

use super::config::RESTORED;
use super::error::PgError;
use super::process::{self, Handle};
use super::session::{APPLICATION, Row, Session, within};
use super::settings::{self, Dynamic};
use super::{Site, files, history, leader};
use everhold_core::ids::{Lsn, Tli};
use everhold_core::postgres::{CLOSED, PgOutcome, Source};
use everhold_core::term::Branch;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// The whole proof. The caller tries again after it.
const PARK_MS_MAX: u64 = 900;
/// Replay that isn't parked after this long is held up by a client's query or by a pause: the
/// sessions of the standby are ended, again after each such time.
const PARK_UNDISTURBED: Duration = Duration::from_millis(50);
/// Between two looks, after the first ones.
const LOOK: Duration = Duration::from_millis(1);
/// For so long one question follows the other, since a pause takes longer than most answers.
const CLOSE_LOOK: Duration = Duration::from_millis(20);
/// A promotion writes an end-of-recovery record and no checkpoint, so it takes milliseconds; a slow
/// disk gets time.
const PROMOTE_MS_MAX: u64 = 30_000;
/// A few rows, and a flush of a disk that may be slow.
const ROLES_MS_MAX: u64 = 30_000;
/// The sleeps of the startup process between two looks that prove a whole round in between: the one
/// it may just have been falling into, one that an unrelated signal may have broken, and a real one.
const SLEEPS_OF_A_ROUND: u64 = 3;

/// Writes where to stream from and has the server read it.
pub async fn set_source(site: &Site, source: Option<&Source>) -> Result<PgOutcome, PgError> {
    let (config, source) = (site.config.clone(), source.cloned());
    site.blocking(move || Dynamic { source, ..Dynamic::read(&config) }.write(&config)).await?;
    site.reload().await?;
    Ok(PgOutcome::Done)
}

/// Proves that nothing is received and that nothing is left to replay, and says where that is.
pub async fn park(site: &Site) -> Result<PgOutcome, PgError> {
    if Dynamic::read(&site.config).source.is_some() {
        return Err(PgError::refused("it has a source to stream from: take that away first"));
    }
    let mut why = "no answer from the server".to_string();
    let begun = Instant::now();
    let bound = Duration::from_millis(PARK_MS_MAX);
    match tokio::time::timeout(bound, prove_parked(site, begun, &mut why)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(PgError::NotParked { ms: PARK_MS_MAX, why }),
    }
}

async fn prove_parked(site: &Site, begun: Instant, why: &mut String) -> Result<PgOutcome, PgError> {
    let session = loop {
        // A new session has the postmaster's settings: no receiver forked from now on has a source.
        let session = Session::open(&site.config, "park", "").await?;
        let sql = "SELECT pg_is_in_recovery(), \
                   current_setting('primary_conninfo') || current_setting('restore_command')";
        let answers = session.ask("read the settings", sql).await?;
        match first(&answers) {
            [Some(standby), _] if standby == "f" => {
                return Err(PgError::refused("it is a primary"));
            }
            [_, Some(source)] if source.is_empty() => break session,
            _ => *why = "the server hasn't read that it has no source".to_string(),
        }
        pause(begun).await;
    };
    await_idle(&session, begun, why).await?;
    let end = session.value("read the replay position", "SELECT pg_last_wal_replay_lsn()").await?;
    let end: Lsn = end.and_then(|end| end.parse().ok()).ok_or_else(|| PgError::Answer {
        doing: "read the replay position",
        said: "the server has none".to_string(),
    })?;
    let tli = site.timeline.ask(&site.config).await?;
    Ok(PgOutcome::Parked { end, tli })
}

/// Waits until the startup process has tried everything in vain and there is no WAL receiver.
///
/// One look at it waiting isn't enough. When a receiver has died twice within the retry interval, it
/// waits *before* it reads what the receiver left in pg_wal; and under load the postmaster's signal
/// to read the settings may not have reached it. So it is signalled from here, and has to be seen
/// waiting again after a round of attempts, which its count of sleeps proves.
pub(super) async fn await_idle(
    session: &Session,
    begun: Instant,
    why: &mut String,
) -> Result<(), PgError> {
    let sql = "SELECT backend_type, pid, wait_event FROM pg_stat_activity \
               WHERE backend_type IN ('startup', 'walreceiver') ORDER BY backend_type";
    let mut first_seen: Option<(i32, u64)> = None;
    let mut disturbed = begun;
    loop {
        let slept = first_seen.and_then(|(pid, _)| process::waits(pid));
        let answers = session.ask("look at the startup process", sql).await?;
        let rows = answers.first().map(Vec::as_slice).unwrap_or_default();
        let mut waiting = None;
        let mut receiving = false;
        for row in rows {
            match row.as_slice() {
                [Some(kind), Some(pid), event] => {
                    let pid: i32 = pid.parse().unwrap_or(0);
                    if kind == "walreceiver" {
                        receiving = true;
                        signal(pid, Signal::TERM);
                        *why = format!("its WAL receiver, process {pid}, is still there");
                    } else if event.as_deref() == Some("RecoveryRetrieveRetryInterval") {
                        waiting = Some(pid);
                    } else {
                        let event = event.as_deref().unwrap_or("nothing");
                        *why = format!("its startup process waits for {event}");
                    }
                }
                _ => *why = "the server doesn't show its processes".to_string(),
            }
        }
        if let (Some(pid), false) = (waiting, receiving) {
            match (first_seen, slept) {
                (Some((seen, before)), Some(now))
                    if seen == pid && now >= before + SLEEPS_OF_A_ROUND =>
                {
                    return Ok(());
                }
                (Some((seen, _)), Some(_)) if seen == pid => {}
                _ => first_seen = process::waits(pid).map(|sleeps| (pid, sleeps)),
            }
            signal(pid, Signal::HUP);
            *why = "its startup process hasn't made a whole round of attempts".to_string();
        } else if disturbed.elapsed() > PARK_UNDISTURBED {
            disturbed = Instant::now();
            end_sessions(session).await?;
        }
        pause(begun).await;
    }
}

async fn pause(begun: Instant) {
    if begun.elapsed() > CLOSE_LOOK {
        tokio::time::sleep(LOOK).await;
    }
}

fn signal(pid: i32, signal: Signal) {
    if let Some(process) = Handle::open(pid) {
        process.signal(signal);
    }
}

/// Ends what may hold up replay: clients' sessions, and a pause.
async fn end_sessions(session: &Session) -> Result<(), PgError> {
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
         AND application_name NOT LIKE '{APPLICATION} %'; \
         SELECT pg_wal_replay_resume()"
    );
    session.ask("end the sessions that hold up replay", &sql).await.map(drop)
}

/// Promotes to `branch`, keeping `reserved` numbers unused, with a slot for each of `slots`.
pub async fn promote(
    site: &Site,
    branch: &Branch,
    reserved: &[Tli],
    slots: &[String],
) -> Result<PgOutcome, PgError> {
    let session = Session::open(&site.config, "promote", "").await?;
    let sql = "SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names')";
    let answers = session.ask_soon("look at the server", sql).await?;
    if let [Some(standby), Some(names)] = first(&answers)
        && standby == "t"
    {
        if names != CLOSED {
            leader::set_sync(site, CLOSED).await?;
        }
        leader::make_slots(site, &session, slots).await?;
        let own = site.timeline.ask(&site.config).await?;
        reserve(site, own, branch, reserved).await?;
        session.value("promote", "SELECT pg_promote(false)").await?;
    }
    let begun = Instant::now();
    within("promote", PROMOTE_MS_MAX, async {
        loop {
            let sql = "SELECT pg_is_in_recovery()";
            if session.value("see the promotion", sql).await?.as_deref() == Some("f") {
                return Ok(());
            }
            pause(begun).await;
        }
    })
    .await?;
    let sql = "SELECT pg_walfile_name(pg_current_wal_lsn())";
    let name = session.value("read the timeline", sql).await?.unwrap_or_default();
    let tli = name.get(..8).and_then(|hex| Tli::from_str_radix(hex, 16).ok());
    let tli = tli.ok_or(PgError::Answer { doing: "read the timeline", said: name })?;
    let pg_wal = site.config.pg_wal();
    let (parent, fork) = site.blocking(move || history::origin(&pg_wal, tli)).await?;
    Ok(PgOutcome::Promoted { tli, parent, fork })
}

/// What was restored has the passwords of its time, and perhaps of another cluster: without this
/// cluster's no standby gets in. Owed for as long as the marker stands. Whether there was anything
/// to do.
pub async fn renew_roles(site: &Site) -> Result<bool, PgError> {
    let marker = site.config.data_dir.join(RESTORED);
    if !marker.exists() {
        return Ok(false);
    }
    let session = Session::open(&site.config, "roles", "").await?;
    let standby = session.ask_soon("look at the server", "SELECT pg_is_in_recovery()").await?;
    if first(&standby) != [Some("f".to_string())] {
        return Ok(false);
    }
    let config = site.config.clone();
    let sql = site.blocking(move || settings::roles_sql(&config)).await?;
    let doing = "give roles this cluster's passwords";
    within(doing, ROLES_MS_MAX, session.ask(doing, &sql)).await?;
    site.blocking(move || {
        files::remove(&marker)?;
        files::sync_parent(&marker)
    })
    .await?;
    Ok(true)
}

/// Puts placeholders where PostgreSQL would otherwise find a free number below the branch's, and
/// where a follower would ask for a history that isn't there.
async fn reserve(site: &Site, own: Tli, branch: &Branch, reserved: &[Tli]) -> Result<(), PgError> {
    let (config, branch, reserved) = (site.config.clone(), branch.clone(), reserved.to_vec());
    site.blocking(move || {
        let pg_wal = config.pg_wal();
        let present = history::present(&pg_wal)?;
        if let Some(tli) = present.iter().find(|tli| **tli >= branch.tli) {
            return Err(PgError::refused(format!("timeline {tli} has a history here: trim first")));
        }
        let below = reserved.iter().copied().filter(|tli| (2..branch.tli).contains(tli));
        for tli in (own + 1..branch.tli).chain(below).filter(|tli| !present.contains(tli)) {
            let parent = if tli > own { own } else { 1 };
            let why = format!("reserved by epoch {}", branch.epoch);
            history::reserve(&pg_wal, tli, parent, &why, config.run_as)?;
        }
        Ok(())
    })
    .await
}

fn first(answers: &[Vec<Row>]) -> &[Option<String>] {
    answers.first().and_then(|rows| rows.first()).map(Vec::as_slice).unwrap_or_default()
}
