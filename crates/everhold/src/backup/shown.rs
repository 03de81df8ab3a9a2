//! What `status` says of a service's backups.

use super::desk::{Ended, Making, Outcome, Tried};
use super::proving::Held;
use crate::cluster::Reports;
use everhold_core::backup::schedule::OVERDUE_S;
use everhold_core::backup::{Kind, Proof, schedule};
use everhold_core::spec::BackupSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How the key of a service ends under which its [`Summary`] stands in the store.
pub const KEY: &str = "/backups";
/// So many of those that failed are named.
const FAILED_MAX: usize = 16;

/// What the coordinator last read in the repositories, as it stands in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// The newest sound one.
    pub newest: Option<String>,
    pub newest_s: Option<u64>,
    /// When the newest full one ended.
    #[serde(default)]
    pub full_s: Option<u64>,
    /// Of all its files, and what it added.
    pub newest_bytes: Option<u64>,
    pub newest_added_bytes: Option<u64>,
    /// When a proof last ended well, and how long its restore took.
    pub proven_s: Option<u64>,
    pub rto_ms: Option<u64>,
    /// Sound ones that nobody looked at yet.
    pub unproven: usize,
    /// The newest of those that failed their proof.
    pub failed: Vec<String>,
    /// How many that are in all.
    pub failures: usize,
    pub count: usize,
    /// Places that hold the newest.
    pub copies: usize,
    /// Some place lacks what another has.
    pub uneven: bool,
    /// What should have been made by now.
    pub overdue: Vec<String>,
    /// Why they could not be read.
    pub error: Option<String>,
}

impl Summary {
    /// Of what was read.
    pub fn new(held: &Held, spec: &BackupSpec, now_s: u64) -> Summary {
        let backups = &held.backups(spec.copies as usize);
        let newest = backups.iter().filter(|it| it.is_sound()).max_by_key(|it| it.ended_s);
        let proven = backups.iter().filter_map(|it| match it.proof {
            Proof::Proven { at_s } => Some(at_s),
            Proof::Unproven | Proof::Failed { .. } => None,
        });
        let full = backups.iter().filter(|it| it.kind == Kind::Full && it.good);
        let info = newest.and_then(|newest| held.infos.iter().find(|it| it.id == newest.id));
        let failed = backups.iter().rev().filter(|it| matches!(it.proof, Proof::Failed { .. }));
        let unproven = backups.iter().filter(|it| it.good && it.proof == Proof::Unproven);
        let (kind, due_s) = schedule::due(&spec.plan, backups, None, now_s);
        // One that never was is due since the beginning of time, and shown when it can't be made.
        let late = due_s > 0 && now_s > due_s + OVERDUE_S;
        let mut overdue: Vec<String> =
            late.then(|| super::word(kind).to_string()).into_iter().collect();
        overdue.extend(held.is_overdue(backups, spec, now_s).then(|| "proof".to_string()));
        Summary {
            newest: newest.map(|it| it.id.clone()),
            newest_s: newest.map(|it| it.ended_s),
            full_s: full.map(|it| it.ended_s).max(),
            newest_bytes: info.map(|it| it.bytes),
            newest_added_bytes: info.map(|it| it.bytes_added),
            proven_s: proven.max(),
            rto_ms: held.rto_ms(),
            unproven: unproven.count(),
            failures: failed.clone().count(),
            failed: failed.take(FAILED_MAX).map(|it| it.id.clone()).collect(),
            count: backups.len(),
            copies: held.infos.last().map_or(0, |it| it.copies),
            uneven: held.infos.iter().any(|it| it.copies < spec.repositories.len()),
            overdue,
            error: None,
        }
    }
}

/// What all nodes tell of their making backups of a service.
pub fn makings<'r>(
    reports: &'r Reports,
    service: &str,
) -> impl Iterator<Item = (&'r String, &'r Making)> {
    let service = service.to_string();
    reports
        .iter()
        .filter_map(move |(node, (report, _))| Some((node, report.backups.get(&service)?)))
}

/// `services.NAME.backup`.
pub fn status(service: &str, reports: &Reports, summary: Option<&Summary>) -> Value {
    let running = makings(reports, service).find_map(|(node, making)| {
        let running = making.running.as_ref()?;
        Some(json!({
            "node": node, "kind": running.kind, "began_at": time(running.began_s),
            "done_bytes": running.done_bytes, "of_bytes": running.of_bytes,
        }))
    });
    let ended = makings(reports, service).filter_map(|(node, it)| Some((node, it.ended.as_ref()?)));
    let last = ended.max_by_key(|(_, ended)| ended.at_s).map(|(node, ended)| last(node, ended));
    let proving = makings(reports, service).find_map(|(node, making)| {
        let trial = making.proving.as_ref()?;
        Some(json!({
            "node": node, "id": trial.id, "began_at": time(trial.began_s), "step": trial.step,
            "done_bytes": trial.done_bytes, "of_bytes": trial.of_bytes,
        }))
    });
    let tried =
        makings(reports, service).filter_map(|(node, it)| Some((node, it.proved.as_ref()?)));
    let tried = tried.max_by_key(|(_, it)| it.at_s).map(|(node, it)| proved(node, it));
    let of = |get: fn(&Summary) -> Option<u64>| summary.and_then(get).map(time);
    json!({
        "newest": summary.and_then(|it| it.newest.clone()),
        "newest_at": of(|it| it.newest_s),
        "proven_at": of(|it| it.proven_s),
        "rto_ms": summary.and_then(|it| it.rto_ms),
        "unproven": summary.map(|it| it.unproven),
        "failed": summary.map(|it| it.failed.clone()),
        "count": summary.map(|it| it.count),
        "copies": summary.map(|it| it.copies),
        "overdue": summary.map(|it| it.overdue.clone()),
        "error": summary.and_then(|it| it.error.clone()),
        "running": running,
        "last": last,
        "proving": proving,
        "last_proof": tried,
    })
}

fn proved(node: &str, tried: &Tried) -> Value {
    let (rto_ms, failed, not_done) = match &tried.outcome {
        Outcome::Proven { rto_ms } => (Some(rto_ms), None, None),
        Outcome::Failed { why } => (None, Some(why), None),
        Outcome::NotDone { why } => (None, None, Some(why)),
    };
    json!({
        "node": node, "at": time(tried.at_s), "id": tried.id, "rto_ms": rto_ms, "failed": failed,
        "not_done": not_done,
    })
}

fn last(node: &str, ended: &Ended) -> Value {
    json!({
        "node": node, "at": time(ended.at_s),
        "id": ended.result.as_ref().ok(), "failed": ended.result.as_ref().err(),
    })
}

/// `services.NAME.recovery`: the last that was begun; `None`: none since the agents started.
pub fn recovery(service: &str, reports: &Reports) -> Option<Value> {
    let begun = reports
        .iter()
        .filter_map(|(node, (report, _))| Some((node, report.recoveries.get(service)?)));
    let (node, last) = begun.max_by_key(|(_, recovery)| recovery.began_s)?;
    let ended = last.ended.as_ref();
    Some(json!({
        "node": node, "journal": last.journal, "began_at": time(last.began_s), "step": last.step,
        "end": last.end.map(|end| end.to_string()),
        "ended_at": ended.map(|it| time(it.at_s)),
        "backup": ended.and_then(|it| it.result.as_ref().ok()),
        "failed": ended.and_then(|it| it.result.as_ref().err()),
    }))
}

/// Seconds since 1970 in RFC 3339.
pub fn time(unix_s: u64) -> String {
    let second = i64::try_from(unix_s).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(second).map(|it| it.to_string()).unwrap_or_default()
}
