//! Backups and log that nothing needs any more are forgotten: once a day and after each full backup,
//! and when somebody asks. `core/src/backup/keep.rs` says what stays, a process of its own removes
//! the rest; this is who starts it and writes down what it does.

pub mod worker;

use super::shown::time;
use crate::cluster::Cluster;
use crate::spec::record;
use crate::{clock, log};
use anyhow::{Context, anyhow};
use everhold_core::backup::Kind;
use everhold_core::backup::keep::{self, Reason, Run};
use everhold_core::ids::Lsn;
use everhold_core::spec::{BackupSpec, ServiceSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Between two looks whether it is time.
const LOOK: Duration = Duration::from_secs(10);
const WHO: &str = "the retention of backups";
/// So many ids are named in an entry of the journal.
const NAMED_MAX: usize = 20;

/// What is to be done. No secret is in it: passwords stand in files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// As a record.
    pub spec: String,
    pub service: String,
    /// Backups that go whatever the rules say.
    pub drop: Vec<String>,
    pub dry_run: bool,
}

/// What the process says on its stdout, a line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    Planned(Plan),
    Progress { what: String, done: u64, of: u64 },
    Done(Done),
    Failed { why: String },
}

/// What goes and what stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// By system identifier.
    pub databases: Vec<Database>,
    /// Packs that would go, and their bytes in all places; only of a dry run.
    pub packs: Option<usize>,
    pub bytes: Option<u64>,
    /// Backups under way, for whose sake packs stay.
    pub waiting_for: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Database {
    pub sysid: u64,
    pub backups: Vec<Kept>,
    /// From here on all of the log stays; `None`: all of it.
    pub log_from: Option<Lsn>,
    /// Of the log, what goes.
    pub log_pieces: usize,
    pub log_bytes: u64,
}

/// A backup, and why it stays; without a reason it goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    pub id: String,
    pub kind: Kind,
    pub ended_s: u64,
    pub why: BTreeSet<Reason>,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub dropped: Vec<String>,
    pub packs: usize,
    pub bytes: u64,
    pub log_pieces: usize,
    pub waiting_for: Vec<String>,
}

/// How the last run of a service ended, as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// When it began, by which it is told from others.
    pub run: u64,
    pub at_s: u64,
    pub dropped: usize,
    pub packs: usize,
    pub bytes: u64,
    pub log_pieces: usize,
    pub waiting_for: Vec<String>,
    pub error: Option<String>,
    /// Since when runs have failed.
    pub failing_s: Option<u64>,
}

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Running {
    pub run: u64,
    /// `plan`, `packs` or `log`.
    pub what: String,
    pub done: u64,
    pub of: u64,
}

/// The runs of this process, by service: one at a time.
#[derive(Clone, Default)]
pub struct Forgetting(Arc<Mutex<BTreeMap<String, Running>>>);

impl Forgetting {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs now, by service.
    pub fn running(&self) -> BTreeMap<String, Running> {
        self.all().clone()
    }

    /// `None`: one runs already.
    fn begin(&self, service: &str) -> Option<Turn> {
        let mut all = self.all();
        if all.contains_key(service) {
            return None;
        }
        let run = clock::now().0;
        let running = Running { run, what: "plan".to_string(), ..Running::default() };
        all.insert(service.to_string(), running);
        Some(Turn { of: self.clone(), service: service.to_string(), run })
    }
}

/// The right to run for a service, given back when dropped.
pub struct Turn {
    of: Forgetting,
    service: String,
    pub run: u64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.of.all().remove(&self.service);
    }
}

/// Tends all services for as long as this node coordinates.
pub async fn tend(cluster: &Cluster) {
    loop {
        tokio::time::sleep(LOOK).await;
        let (spec, word) = (cluster.spec(), cluster.word());
        for (service, declared) in &spec.services {
            let ServiceSpec::Postgres(postgres) = declared;
            let (Some(_), Some(summary)) = (&postgres.backup, word.backups.get(service)) else {
                continue;
            };
            let last = word.forgotten.get(service).map(Forgotten::as_run);
            let due = keep::is_due(last, summary.full_s, clock::unix_s());
            if summary.count == 0 || summary.error.is_some() || !due {
                continue;
            }
            if let Some(turn) = cluster.forgetting.begin(service) {
                run(cluster, turn, Vec::new(), WHO).await;
            }
        }
    }
}

/// Begins a run, if none runs in this process.
pub fn begin(cluster: &Arc<Cluster>, service: &str, drop: Vec<String>, who: String) -> Option<u64> {
    let turn = cluster.forgetting.begin(service)?;
    let (run, cluster) = (turn.run, cluster.clone());
    tokio::spawn(async move { self::run(&cluster, turn, drop, &who).await });
    Some(run)
}

/// What a run would do.
pub async fn plan(cluster: &Cluster, service: &str, drop: Vec<String>) -> anyhow::Result<Plan> {
    let mut child = Forgetter::start(cluster, service, drop, true).await?;
    match child.next().await? {
        Said::Planned(plan) => Ok(plan),
        other => Err(other.unexpected()),
    }
}

async fn run(cluster: &Cluster, turn: Turn, drop: Vec<String>, who: &str) {
    let service = &turn.service;
    let result = forget(cluster, &turn, drop, who).await;
    let known = cluster.word().forgotten.get(service).cloned();
    let now_s = clock::unix_s();
    let done = match &result {
        Ok(done) => done.clone(),
        Err(error) => {
            tracing::warn!(service, error = format!("{error:#}"), "old backups are not forgotten");
            Done::default()
        }
    };
    let failing = || known.and_then(|it| it.failing_s).unwrap_or(now_s);
    let forgotten = Forgotten {
        run: turn.run,
        at_s: now_s,
        dropped: done.dropped.len(),
        packs: done.packs,
        bytes: done.bytes,
        log_pieces: done.log_pieces,
        waiting_for: done.waiting_for,
        error: result.as_ref().err().map(|error| format!("{error:#}")),
        failing_s: result.is_err().then(failing),
    };
    if let Err(error) = cluster.put_of(service, "forgotten", &forgotten).await {
        tracing::warn!(service, %error, "what was forgotten is not written down");
    }
}

async fn forget(
    cluster: &Cluster,
    turn: &Turn,
    drop: Vec<String>,
    who: &str,
) -> anyhow::Result<Done> {
    let service = &turn.service;
    let mut child = Forgetter::start(cluster, service, drop, false).await?;
    let plan = match child.next().await? {
        Said::Planned(plan) => plan,
        other => return Err(other.unexpected()),
    };
    let spec = cluster.spec();
    let keep = spec.postgres(service).and_then(|it| it.backup.as_ref()).map(|it| it.keep.clone());
    if let Some(what) = plan.told(&keep.unwrap_or_default()) {
        cluster.note(service, who, &what).await;
    }
    child.go().await?;
    loop {
        match child.next().await? {
            Said::Progress { what, done, of } => {
                let running = Running { run: turn.run, what, done, of };
                turn.of.all().insert(service.clone(), running);
            }
            Said::Done(done) => {
                if let Some(what) = done.told() {
                    cluster.note(service, who, &what).await;
                }
                return Ok(done);
            }
            other => return Err(other.unexpected()),
        }
    }
}

/// The process, which ends when this is dropped.
struct Forgetter {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Forgetter {
    async fn start(
        cluster: &Cluster,
        service: &str,
        drop: Vec<String>,
        dry_run: bool,
    ) -> anyhow::Result<Forgetter> {
        let spec = record::to_json(&cluster.spec())?;
        let order = Order { spec, service: service.to_string(), drop, dry_run };
        // This very program, also after its file was replaced.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("everhold").arg("forget").current_dir("/").process_group(0);
        command.env(log::VARIABLE, log::format().as_str());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("start the process that forgets backups")?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.context("its pipes")?;
        let mut child = Forgetter { _child: child, stdin, lines: BufReader::new(stdout).lines() };
        let mut text = serde_json::to_string(&order)?;
        text.push('\n');
        child.stdin.write_all(text.as_bytes()).await?;
        Ok(child)
    }

    async fn go(&mut self) -> anyhow::Result<()> {
        Ok(self.stdin.write_all(b"go\n").await?)
    }

    async fn next(&mut self) -> anyhow::Result<Said> {
        let line = self.lines.next_line().await?;
        let line = line.context(
            "E290 the process that forgets backups has ended; next step: none, \
                                 nothing that is needed is gone, and it is tried again",
        )?;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Said {
    fn unexpected(self) -> anyhow::Error {
        match self {
            Said::Failed { why } => anyhow!(why),
            Said::Planned(_) | Said::Progress { .. } | Said::Done(_) => {
                anyhow!("the process that forgets backups says what nobody asked for")
            }
        }
    }
}

impl Plan {
    /// For the journal; `None`: all stays.
    fn told(&self, keep: &keep::Keep) -> Option<String> {
        let gone = self.databases.iter().flat_map(|it| &it.backups).filter(|it| it.why.is_empty());
        let ids: Vec<&str> = gone.map(|it| it.id.as_str()).collect();
        let pieces: usize = self.databases.iter().map(|it| it.log_pieces).sum();
        (!ids.is_empty() || pieces > 0).then(|| {
            let more = ids.len().saturating_sub(NAMED_MAX);
            let named = ids.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!(
                "forget {} backups ({named}{more}) and {pieces} pieces of the log; kept: {keep}",
                ids.len()
            )
        })
    }
}

impl Done {
    fn told(&self) -> Option<String> {
        let Done { dropped, packs, bytes, log_pieces, waiting_for } = self;
        (dropped.len() + packs + log_pieces > 0).then(|| {
            let waits = match waiting_for.first() {
                Some(id) => format!("; packs and log wait for backup {id} to end"),
                None => String::new(),
            };
            format!(
                "forgotten: {} backups, {packs} packs ({bytes} bytes), {log_pieces} pieces of the \
                 log{waits}",
                dropped.len()
            )
        })
    }
}

impl Forgotten {
    fn as_run(&self) -> Run {
        Run { at_s: self.at_s, whole: self.error.is_none() && self.waiting_for.is_empty() }
    }

    /// As `status` shows it.
    pub fn shown(&self) -> Value {
        json!({
            "run": self.run, "at": time(self.at_s), "dropped": self.dropped, "packs": self.packs,
            "bytes": self.bytes, "log_pieces": self.log_pieces, "waiting_for": self.waiting_for,
            "error": self.error,
        })
    }

    /// While it fails.
    pub fn hold(&self, service: &str) -> Option<Value> {
        let why = self.error.as_ref()?;
        Some(json!({
            "service": service, "rule": "retention",
            "why": format!("old backups and log are not forgotten: {why}"),
            "since": self.failing_s.map(time), "recheck_at": null, "evidence": [],
            "unblocks": "all repositories of the service; it is tried again every ten minutes",
            "needs_operator": false, "journal": null,
        }))
    }
}

/// What goes and why the rest stays, as the API shows it.
pub fn shown(plan: &Plan, spec: &BackupSpec) -> Value {
    let backup = |it: &Kept| {
        json!({
            "id": it.id, "kind": it.kind, "ended_at": time(it.ended_s), "kept_for": it.why,
            "goes": it.why.is_empty(),
        })
    };
    let database = |it: &Database| {
        json!({
            "sysid": it.sysid.to_string(),
            "backups": it.backups.iter().rev().map(backup).collect::<Vec<_>>(),
            "log_from": it.log_from, "log_pieces": it.log_pieces, "log_bytes": it.log_bytes,
        })
    };
    json!({
        "keep": spec.keep.to_string(),
        "databases": plan.databases.iter().map(database).collect::<Vec<_>>(),
        "packs": plan.packs, "bytes": plan.bytes, "waiting_for": plan.waiting_for,
    })
}
