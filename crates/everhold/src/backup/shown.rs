//! What `status` says of a service's backups.

use super::desk::{Ended, Making};
use crate::cluster::Reports;
use everhold_core::backup::schedule::OVERDUE_S;
use everhold_core::backup::{Backup, Kind, Proof, schedule};
use everhold_core::spec::BackupSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What the coordinator last read in the repositories, as it stands in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The newest sound one.
    pub newest: Option<String>,
    pub newest_s: Option<u64>,
    /// When the newest full one ended.
    #[serde(default)]
    pub full_s: Option<u64>,
    pub proven_s: Option<u64>,
    pub count: usize,
    /// Places that hold the newest.
    pub copies: usize,
    /// What should have been made by now.
    pub overdue: Vec<String>,
    /// Why they could not be read.
    pub error: Option<String>,
}

impl Summary {
    /// Of what was read. `copies`: of the newest one.
    pub fn new(backups: &[Backup], copies: usize, spec: &BackupSpec, now_s: u64) -> Summary {
        let newest = backups.iter().filter(|it| it.is_sound()).max_by_key(|it| it.ended_s);
        let proven = backups.iter().filter_map(|it| match it.proof {
            Proof::Proven { at_s } => Some(at_s),
            Proof::Unproven | Proof::Failed { .. } => None,
        });
        let full = backups.iter().filter(|it| it.kind == Kind::Full && it.good);
        let (kind, due_s) = schedule::due(&spec.plan, backups, None, now_s);
        // One that never was is due since the beginning of time, and shown when it can't be made.
        let late = due_s > 0 && now_s > due_s + OVERDUE_S;
        Summary {
            newest: newest.map(|it| it.id.clone()),
            newest_s: newest.map(|it| it.ended_s),
            full_s: full.map(|it| it.ended_s).max(),
            proven_s: proven.max(),
            count: backups.len(),
            copies,
            overdue: late.then(|| super::word(kind).to_string()).into_iter().collect(),
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
    let of = |get: fn(&Summary) -> Option<u64>| summary.and_then(get).map(time);
    json!({
        "newest": summary.and_then(|it| it.newest.clone()),
        "newest_at": of(|it| it.newest_s),
        "proven_at": of(|it| it.proven_s),
        "count": summary.map(|it| it.count),
        "copies": summary.map(|it| it.copies),
        "overdue": summary.map(|it| it.overdue.clone()),
        "error": summary.and_then(|it| it.error.clone()),
        "running": running,
        "last": last,
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
        "node": node, "began_at": time(last.began_s), "step": last.step,
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
