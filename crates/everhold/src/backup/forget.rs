//! Backups and log that nothing needs any more are forgotten: once a day and after each full backup,
//! and when somebody asks. `core/src/backup/keep.rs` says what stays, a process of its own removes
//! the rest; this is who starts it and writes down what it does.

pub mod worker;

use super::shown::time;
use crate::cluster::Cluster;
use crate::spec::record;
use crate::{clock, helper, nodes};
use anyhow::{Context, anyhow};
use everhold_core::backup::Kind;
use everhold_core::backup::keep::{self, Reason, Run};
use everhold_core::ids::Lsn;
use everhold_core::spec::BackupSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::Notify;
use tokio::time::timeout;

/// Between two looks whether it is time.
const LOOK: Duration = Duration::from_secs(10);
/// And whether another has stood back.
const GLANCE: Duration = Duration::from_millis(100);
/// What a run does last, as it says it.
const LEVELS: &str = "copies";
const WHO: &str = "the retention of backups";
/// So many ids are named in an entry of the journal.
const NAMED_MAX: usize = 20;
/// A run that only makes places level is over within this when somebody asks for another.
const STANDS_BACK: Duration = Duration::from_secs(20);
/// The process says where it is more often; one that doesn't hangs, and is ended.
const DEAF: Duration = Duration::from_secs(60);

/// What is to be done. No secret is in it: passwords stand in files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// As a record.
    pub spec: String,
    pub service: String,
    /// Backups that go whatever the rules say.
    pub drop: Vec<String>,
    /// Backups that were announced and that nobody makes any more.
    pub dead: Vec<String>,
    pub dry_run: bool,
}

/// What the process says on its stdout, a line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    Planned(Plan),
    Progress {
        what: String,
        done: u64,
        of: u64,
    },
    /// It gets on.
    Here,
    Done(Done),
    Failed {
        why: String,
        /// Only a person ends it.
        operator: bool,
    },
}

/// What goes and what stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// By system identifier.
    pub databases: Vec<Database>,
    /// Ids of all that goes, also of what can't be read.
    pub gone: Vec<String>,
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
    /// Objects brought to places that lacked them, and those for which there was no time.
    pub copied: usize,
    pub left: usize,
    /// Why a place goes on lacking what backups need.
    #[serde(default)]
    pub unlevel: Option<String>,
    pub waiting_for: Vec<String>,
}

/// How the last run of a service ended, as it stands in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Forgotten {
    /// When it began, by which it is told from others.
    pub run: u64,
    pub at_s: u64,
    pub dropped: usize,
    pub packs: usize,
    pub bytes: u64,
    pub log_pieces: usize,
    /// Objects brought to places that lacked them, and those for which there was no time.
    pub copied: usize,
    pub left: usize,
    pub waiting_for: Vec<String>,
    pub error: Option<String>,
    /// Only a person ends it.
    pub operator: bool,
    /// Since when runs have failed.
    pub failing_s: Option<u64>,
}

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Running {
    pub run: u64,
    /// `plan`, `packs`, `log` (in objects) or `copies` (in bytes).
    pub what: String,
    pub done: u64,
    pub of: u64,
}

/// The runs of this process, by service: one at a time. Each is told by its own word that it is enough.
#[derive(Clone, Default)]
pub struct Forgetting(Arc<Mutex<Runs>>);

type Runs = BTreeMap<String, (Running, Arc<Notify>)>;

impl Forgetting {
    fn all(&self) -> MutexGuard<'_, Runs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs now, by service.
    pub fn running(&self) -> BTreeMap<String, Running> {
        self.all()
            .iter()
            .map(|(service, (running, _))| (service.clone(), running.clone()))
            .collect()
    }

    /// Tells a run that only makes places level, which takes hours, to be over soon; whether it is one.
    fn hurry(&self, service: &str) -> bool {
        let all = self.all();
        let levels = all.get(service).filter(|(running, _)| running.what == LEVELS);
        levels.inspect(|(_, enough)| enough.notify_one()).is_some()
    }

    /// `None`: one runs already.
    fn begin(&self, service: &str) -> Option<Turn> {
        let mut all = self.all();
        if all.contains_key(service) {
            return None;
        }
        let run = clock::now().0;
        let running = Running { run, what: "plan".to_string(), ..Running::default() };
        let enough = Arc::new(Notify::new());
        all.insert(service.to_string(), (running, enough.clone()));
        Some(Turn { of: self.clone(), service: service.to_string(), run, enough })
    }
}

/// The right to run for a service, given back when dropped.
pub struct Turn {
    of: Forgetting,
    service: String,
    pub run: u64,
    /// Somebody waits for the turn.
    enough: Arc<Notify>,
}

impl Turn {
    fn tell(&self, what: String, done: u64, of: u64) {
        if let Some((running, _)) = self.of.all().get_mut(&self.service) {
            *running = Running { run: self.run, what, done, of };
        }
    }
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
        for (service, postgres) in spec.databases() {
            let (Some(_), Some(summary)) = (&postgres.backup, word.backups.get(service)) else {
                continue;
            };
            let last = word.forgotten.get(service).map(Forgotten::as_run);
            let due = keep::is_due(last, summary.full_s, summary.uneven, clock::unix_s());
            if summary.count == 0 || summary.error.is_some() || !due {
                continue;
            }
            if let Some(turn) = cluster.forgetting.begin(service) {
                run(cluster, turn, Vec::new(), WHO).await;
            }
        }
    }
}

/// Begins a run, if none runs in this process; one that only makes places level gives way.
pub async fn begin(
    cluster: &Arc<Cluster>,
    service: &str,
    drop: Vec<String>,
    who: String,
) -> Option<u64> {
    let until = Instant::now() + STANDS_BACK;
    let turn = loop {
        match cluster.forgetting.begin(service) {
            Some(turn) => break turn,
            None if Instant::now() < until && cluster.forgetting.hurry(service) => {
                tokio::time::sleep(GLANCE).await;
            }
            None => return None,
        }
    };
    let (run, cluster) = (turn.run, cluster.clone());
    tokio::spawn(async move { self::run(&cluster, turn, drop, &who).await });
    Some(run)
}

/// What a run would do.
pub async fn plan(cluster: &Cluster, service: &str, drop: Vec<String>) -> anyhow::Result<Plan> {
    Forgetter::start(cluster, service, drop, true).await?.plan().await.map_err(|it| it.error)
}

async fn run(cluster: &Cluster, turn: Turn, drop: Vec<String>, who: &str) {
    let service = &turn.service;
    let result = forget(cluster, &turn, drop, who).await;
    let known = cluster.word().forgotten.get(service).cloned();
    let now_s = clock::unix_s();
    let done = match &result {
        Ok(done) => done.clone(),
        Err(Failed { error, .. }) => {
            tracing::warn!(service, error = format!("{error:#}"), "old backups are not forgotten");
            Done::default()
        }
    };
    let failing = || known.and_then(|it| it.failing_s).unwrap_or(now_s);
    let unlevel = || Some(format!("a repository lacks what the others have: {}", done.unlevel?));
    let error = result.as_ref().err().map(|it| format!("{:#}", it.error)).or_else(unlevel);
    let forgotten = Forgotten {
        run: turn.run,
        at_s: now_s,
        dropped: done.dropped.len(),
        packs: done.packs,
        bytes: done.bytes,
        log_pieces: done.log_pieces,
        copied: done.copied,
        left: done.left,
        waiting_for: done.waiting_for,
        failing_s: error.is_some().then(failing),
        error,
        operator: result.as_ref().is_err_and(|it| it.operator),
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
) -> Result<Done, Failed> {
    let service = &turn.service;
    let mut child = Forgetter::start(cluster, service, drop, false).await?;
    let plan = child.plan().await?;
    let spec = cluster.spec();
    let keep = spec.postgres(service).and_then(|it| it.backup.as_ref()).map(|it| it.keep.clone());
    if let Some(what) = plan.told(&keep.unwrap_or_default()) {
        cluster.note(service, who, &what).await;
    }
    child.go().await?;
    loop {
        let said = tokio::select! {
            said = child.next() => said?,
            () = turn.enough.notified() => {
                // One that has ended says so next.
                let _ = child.stdin.write_all(b"enough\n").await;
                continue;
            }
        };
        match said {
            Said::Progress { what, done, of } => turn.tell(what, done, of),
            Said::Here => {}
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
        let dead = dead(cluster, service);
        let order = Order { spec, service: service.to_string(), drop, dead, dry_run };
        let mut child =
            helper::command("forget").spawn().context("start the process that forgets backups")?;
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

    async fn plan(&mut self) -> Result<Plan, Failed> {
        loop {
            match self.next().await? {
                Said::Here => {}
                Said::Planned(plan) => return Ok(plan),
                other => return Err(other.unexpected()),
            }
        }
    }

    async fn next(&mut self) -> anyhow::Result<Said> {
        next(&mut self.lines, DEAF).await
    }
}

async fn next<R>(lines: &mut Lines<R>, deaf: Duration) -> anyhow::Result<Said>
where
    R: AsyncBufRead + Unpin,
{
    let line = timeout(deaf, lines.next_line()).await.ok().with_context(|| {
        format!(
            "E290 the process that forgets backups has said nothing for {} s and is ended; next \
             step: see which repository does not answer; it is tried again",
            deaf.as_secs()
        )
    })??;
    let line = line.context(
        "E290 the process that forgets backups has ended; next step: none, nothing that is needed \
         is gone, and it is tried again",
    )?;
    Ok(serde_json::from_str(&line)?)
}

/// Why a run came to nothing, and whether only a person ends that.
struct Failed {
    error: anyhow::Error,
    operator: bool,
}

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Failed {
        Failed { error: error.into(), operator: false }
    }
}

impl Said {
    fn unexpected(self) -> Failed {
        match self {
            Said::Failed { why, operator } => Failed { error: anyhow!(why), operator },
            Said::Planned(_) | Said::Progress { .. } | Said::Here | Said::Done(_) => {
                anyhow!("the process that forgets backups says what nobody asked for").into()
            }
        }
    }
}

/// Backups that the last run waited for, when all nodes are heard and none makes one: their machine
/// died. One that is wrongly given up can't be finished any more, and nothing else is lost.
fn dead(cluster: &Cluster, service: &str) -> Vec<String> {
    let (spec, word, reports) = (cluster.spec(), cluster.word(), cluster.reports());
    let now = clock::now().0;
    let idle = |node: &String| {
        let report = reports.get(node).filter(|_| nodes::fresh(&reports, node, now).is_some());
        report.is_some_and(|(it, _)| it.backups.get(service).is_none_or(|it| it.running.is_none()))
    };
    match spec.postgres(service).is_some_and(|it| it.nodes.iter().all(idle)) {
        true => word.forgotten.get(service).map_or(Vec::new(), |it| it.waiting_for.clone()),
        false => Vec::new(),
    }
}

impl Plan {
    /// For the journal; `None`: all stays.
    fn told(&self, keep: &keep::Keep) -> Option<String> {
        let ids: Vec<&str> = self.gone.iter().map(String::as_str).collect();
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
        let Done { dropped, packs, bytes, log_pieces, copied, left, waiting_for, .. } = self;
        (dropped.len() + packs + log_pieces + copied > 0).then(|| {
            let copies = match (copied, left) {
                (0, 0) => String::new(),
                (_, 0) => format!("; {copied} objects are copied to repositories that lacked them"),
                (_, _) => format!(
                    "; {copied} objects are copied to repositories that lacked them, \
                                   {left} come next"
                ),
            };
            let waits = match waiting_for.first() {
                Some(id) => format!("; packs and log wait for backup {id} to end"),
                None => String::new(),
            };
            format!(
                "forgotten: {} backups, {packs} packs ({bytes} bytes), {log_pieces} pieces of the \
                 log{copies}{waits}",
                dropped.len()
            )
        })
    }
}

impl Forgotten {
    fn as_run(&self) -> Run {
        let whole = self.error.is_none() && self.waiting_for.is_empty();
        Run { at_s: self.at_s, whole, goes_on: self.left > 0 }
    }

    /// As `status` shows it.
    pub fn shown(&self) -> Value {
        json!({
            "run": self.run, "at": time(self.at_s), "dropped": self.dropped, "packs": self.packs,
            "bytes": self.bytes, "log_pieces": self.log_pieces, "copied": self.copied,
            "left": self.left, "waiting_for": self.waiting_for, "error": self.error,
        })
    }

    /// While it fails.
    pub fn hold(&self, service: &str) -> Option<Value> {
        let why = self.error.as_ref()?;
        Some(json!({
            "service": service, "rule": "retention",
            "why": format!("the care of its backups fails: {why}"),
            "since": self.failing_s.map(time), "recheck_at": null, "evidence": [],
            "unblocks": match self.operator {
                true => "what the error names; it is tried again every ten minutes",
                false => "all repositories of the service; it is tried again every ten minutes",
            },
            "needs_operator": self.operator, "journal": null,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_makes_places_level_gives_way() {
        let forgetting = Forgetting::default();
        assert!(!forgetting.hurry("main"), "none runs");
        let turn = forgetting.begin("main").expect("a turn");
        turn.tell("packs".to_string(), 1, 2);
        assert!(!forgetting.hurry("main"), "it removes what nothing needs");
        turn.tell(LEVELS.to_string(), 1, 2);
        assert!(forgetting.hurry("main") && forgetting.begin("main").is_none());
        turn.enough.notified().await;
        drop(turn);
        assert!(forgetting.begin("main").is_some());
    }

    #[tokio::test]
    async fn one_that_falls_silent_is_not_waited_for() {
        let (mut stdout, heard) = tokio::io::duplex(4 << 10);
        let mut lines = BufReader::new(heard).lines();
        stdout.write_all(b"\"here\"\n").await.expect("written");
        let within = Duration::from_millis(200);
        assert!(matches!(next(&mut lines, within).await, Ok(Said::Here)));
        let waited = tokio::time::timeout(Duration::from_secs(20), next(&mut lines, within)).await;
        let error = waited.expect("an end of the wait").expect_err("nothing was said").to_string();
        assert!(error.contains("E290") && error.contains("said nothing"), "{error}");
        drop(stdout);
        let error = next(&mut lines, within).await.expect_err("it ended").to_string();
        assert!(error.contains("has ended"), "{error}");
    }
}
