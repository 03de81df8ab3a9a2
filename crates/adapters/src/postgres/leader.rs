//! Steps on a leader: whom it waits for, records that prove its place, slots.

use super::Site;
use super::error::PgError;
use super::files::{self, Keep};
use super::session::{APPLICATION, Session, within};
use super::settings::Dynamic;
use everhold_core::ids::{Epoch, Lsn};
use everhold_core::postgres::PgOutcome;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Until a new session shows a new setting. The postmaster reads it within a millisecond.
const SETTING_MS_MAX: u64 = 2_000;
/// How long a barrier is waited for before the caller looks again.
const BARRIER_MS_MAX: u64 = 10_000;
/// A flush that takes longer counts as no progress.
const EVIDENCE_MS_MAX: u64 = 5_000;
/// A checkpoint writes all of shared_buffers.
const CHECKPOINT_MS_MAX: u64 = 600_000;

/// synchronous_standby_names as the last new session showed it, and of which postmaster. A session
/// that is older may have read a file that the postmaster hasn't.
#[derive(Clone, Default)]
pub struct Proven(Arc<Mutex<Option<(i32, String)>>>);

impl Proven {
    pub fn is(&self, postmaster: i32, names: &str) -> bool {
        let proven = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        proven.as_ref().is_some_and(|(pid, shown)| *pid == postmaster && shown == names)
    }

    fn set(&self, value: Option<(i32, String)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

/// Up to where the owners of slots have the log, as it was told last.
#[derive(Clone, Default)]
pub struct Needed(Arc<Mutex<Option<BTreeMap<String, Lsn>>>>);

impl Needed {
    fn get(&self) -> Option<BTreeMap<String, Lsn>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, needed: BTreeMap<String, Lsn>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(needed);
    }
}

/// Asks a new session.
pub async fn show_sync(site: &Site) -> Result<Option<String>, PgError> {
    let Some(postmaster) = site.look_for_postmaster().await? else { return Ok(None) };
    let session = Session::open(&site.config, "settings", "").await?;
    let shown = session.value("read a setting", "SHOW synchronous_standby_names").await?;
    site.proven.set(shown.clone().map(|names| (postmaster.pid, names)));
    Ok(shown)
}

/// Sets whom commits wait for and returns once a new session shows it: the postmaster has read it,
/// so that every later walsender has it from its start.
pub async fn set_sync(site: &Site, names: &str) -> Result<PgOutcome, PgError> {
    let (config, wanted) = (site.config.clone(), names.to_string());
    site.proven.set(None);
    site.blocking(move || Dynamic { names: wanted, ..Dynamic::read(&config) }.write(&config))
        .await?;
    site.reload().await?;
    within("have synchronous_standby_names read", SETTING_MS_MAX, async {
        loop {
            if show_sync(site).await?.as_deref() == Some(names) {
                return Ok(PgOutcome::Done);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
}

/// Writes a record of `epoch` and waits until the standbys have acknowledged it.
pub async fn barrier(site: &Site, epoch: Epoch) -> Result<PgOutcome, PgError> {
    let session = Session::open(&site.config, "barrier", "-c synchronous_commit=on").await?;
    // An earlier attempt may still be waiting for acknowledgements, with nobody listening.
    let end_others = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE application_name = '{APPLICATION} barrier' AND pid <> pg_backend_pid()"
    );
    session.ask_soon("end earlier barriers", &end_others).await?;
    session.take_warnings();
    let sql = format!(
        "WITH old AS (DELETE FROM everhold.barrier WHERE epoch <= {epoch}) \
         INSERT INTO everhold.barrier (epoch, at) VALUES ({epoch}, now())"
    );
    within("write a barrier", BARRIER_MS_MAX, session.ask("write a barrier", &sql)).await?;
    // A commit whose wait was cancelled ends with success and a warning.
    match session.take_warnings().into_iter().next() {
        Some(warning) => Err(PgError::Unacknowledged { warning }),
        None => Ok(PgOutcome::Done),
    }
}

/// Writes a record and flushes it here, waiting for nobody; `kept` is the session used for it.
pub async fn evidence(site: &Site, kept: &mut Option<Session>) -> Result<PgOutcome, PgError> {
    let session = match kept.take().filter(|session| !session.is_closed()) {
        Some(session) => session,
        None => Session::open(&site.config, "evidence", "-c synchronous_commit=local").await?,
    };
    let doing = "write evidence";
    // Part of a transaction, since only a commit flushes it at once.
    let sql = "SELECT pg_logical_emit_message(true, 'everhold', '')";
    let answers = within(doing, EVIDENCE_MS_MAX, session.ask(doing, sql)).await?;
    let end = answers.first().and_then(|rows| rows.first()).and_then(|row| row.first());
    let end: Option<Lsn> = end.and_then(Option::as_deref).and_then(|end| end.parse().ok());
    let end = end.ok_or(PgError::Answer { doing, said: "no position".to_string() })?;
    *kept = Some(session);
    Ok(PgOutcome::Evidence { end })
}

pub async fn checkpoint(site: &Site) -> Result<PgOutcome, PgError> {
    let session = Session::open(&site.config, "checkpoint", "").await?;
    within("checkpoint", CHECKPOINT_MS_MAX, session.ask("checkpoint", "CHECKPOINT")).await?;
    Ok(PgOutcome::Done)
}

/// Makes the slots exist and drops others that Everhold made.
pub async fn slots(
    site: &Site,
    names: &[String],
    needed: &BTreeMap<String, Lsn>,
) -> Result<PgOutcome, PgError> {
    let session = Session::open(&site.config, "slots", "").await?;
    make_slots(site, &session, names).await?;
    drop_other_slots(site, &session, names).await?;
    site.needed.set(needed.clone());
    advance_slots(site, &session).await?;
    Ok(PgOutcome::Done)
}

/// Makes the slots that are missing or lost, each reserving WAL from the last checkpoint on.
pub async fn make_slots(site: &Site, session: &Session, names: &[String]) -> Result<(), PgError> {
    let doing = "look at the slots";
    let sql = "SELECT slot_name, wal_status IS NOT DISTINCT FROM 'lost' OR restart_lsn IS NULL \
               FROM pg_replication_slots WHERE NOT temporary";
    let answers = session.ask_soon(doing, sql).await?;
    let rows = answers.first().map(Vec::as_slice).unwrap_or_default();
    let state = |name: &str| {
        let row = rows.iter().find(|row| row.first().and_then(Option::as_deref) == Some(name));
        row.map(|row| row.get(1).and_then(Option::as_deref) == Some("t"))
    };
    let missing: Vec<&String> = names.iter().filter(|name| state(name) != Some(false)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    note_made(site, names).await?;
    for name in missing {
        let literal = literal(name);
        if state(name) == Some(true) {
            let sql = format!("SELECT pg_drop_replication_slot({literal})");
            session.ask_soon("drop a lost slot", &sql).await?;
        }
        let sql = format!("SELECT pg_create_physical_replication_slot({literal}, true)");
        session.ask_soon("make a slot", &sql).await?;
    }
    Ok(())
}

async fn drop_other_slots(site: &Site, session: &Session, names: &[String]) -> Result<(), PgError> {
    let path = made_slots(site);
    let made: BTreeSet<String> = site
        .blocking(move || {
            Ok(fs::read_to_string(path).unwrap_or_default().lines().map(str::to_string).collect())
        })
        .await?;
    for name in made.iter().filter(|name| !names.contains(name)) {
        // One in use is dropped another time.
        let sql = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = {} AND NOT active",
            literal(name)
        );
        session.ask_soon("drop a slot", &sql).await?;
    }
    Ok(())
}

/// On a standby nobody uses the slots, and what they reserve would grow for ever: they are moved on to
/// its last restartpoint. A member that is behind that may be told to take the rest from here, or to
/// follow this node as the next leader, so what it lacks stays.
pub async fn advance_slots(site: &Site, session: &Session) -> Result<(), PgError> {
    let Some(needed) = site.needed.get() else { return Ok(()) };
    let needed: Vec<String> =
        needed.iter().map(|(slot, end)| format!("({}, '{end}'::pg_lsn)", literal(slot))).collect();
    let needed = match needed.is_empty() {
        true => "(NULL, NULL::pg_lsn)".to_string(),
        false => needed.join(", "),
    };
    let sql = format!(
        "SELECT pg_replication_slot_advance(slot_name, least(redo_lsn, needed)) \
         FROM pg_replication_slots CROSS JOIN pg_control_checkpoint() \
         LEFT JOIN (VALUES {needed}) AS owner (slot, needed) ON slot = slot_name \
         WHERE pg_is_in_recovery() AND slot_type = 'physical' AND NOT temporary \
         AND NOT active AND slot_name <> 'everhold_log' \
         AND restart_lsn < least(redo_lsn, needed)"
    );
    session.ask_soon("advance the slots", &sql).await.map(drop)
}

/// What becomes of the slot `everhold_log`, which keeps WAL that isn't archived yet: on every member,
/// since any may be the next leader. No member has that name, so nobody streams by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSlot {
    Gone,
    /// Up to there nothing is needed any more, as far as that is known.
    Kept {
        archived: Option<Lsn>,
    },
}

/// Makes the slot for the log, moves it on, or drops it.
pub async fn log_slot(site: &Site, wanted: LogSlot) -> Result<(), PgError> {
    let session = Session::open(&site.config, "log slot", "").await?;
    let of = "FROM pg_replication_slots WHERE slot_name = 'everhold_log' AND NOT active";
    let remove = |which: &str| format!("SELECT pg_drop_replication_slot(slot_name) {of} {which}");
    let LogSlot::Kept { archived } = wanted else {
        return session.ask_soon("drop the log's slot", &remove("")).await.map(drop);
    };
    let lost = "AND (restart_lsn IS NULL OR wal_status = 'lost')";
    session.ask_soon("drop the log's lost slot", &remove(lost)).await?;
    let make = "SELECT pg_create_physical_replication_slot('everhold_log', true) WHERE NOT EXISTS \
                (SELECT FROM pg_replication_slots WHERE slot_name = 'everhold_log')";
    session.ask_soon("make the log's slot", make).await?;
    let Some(archived) = archived else { return Ok(()) };
    let advance = format!(
        "SELECT pg_replication_slot_advance(slot_name, '{archived}') {of} \
         AND restart_lsn < '{archived}'"
    );
    session.ask_soon("move the log's slot on", &advance).await.map(drop)
}

/// Where the names of slots that Everhold made stand: in the data directory, so that the list goes
/// where the slots go.
fn made_slots(site: &Site) -> PathBuf {
    site.config.data_dir.join("everhold.slots")
}

/// Adds names to that list, before the slots are made.
async fn note_made(site: &Site, names: &[String]) -> Result<(), PgError> {
    let (path, names, owner) = (made_slots(site), names.to_vec(), site.config.run_as);
    site.blocking(move || {
        let old = fs::read_to_string(&path).unwrap_or_default();
        let all: BTreeSet<&str> = old.lines().chain(names.iter().map(String::as_str)).collect();
        let text: String = all.iter().map(|name| format!("{name}\n")).collect();
        if text == old { Ok(()) } else { files::write(&path, text.as_bytes(), owner, Keep::Synced) }
    })
    .await
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
