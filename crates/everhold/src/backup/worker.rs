//! The role `worker`: makes one backup, or proves one, and ends. An agent starts it, hears of it on its stdout, and
//! ends it by closing its stdin.

use super::desk::Said;
use super::prove::{self, Task};
use super::{list, open, told};
use crate::seat::{Ground, Seat};
use crate::{clock, helper};
use anyhow::Context;
use everhold_adapters::postgres::{BackupMode, PgConfig};
use everhold_core::backup::{Kind, Proving};
use everhold_core::ids::Lsn;
use everhold_core::term::{Branch, line_to};
use everhold_repository::Repository;
use everhold_repository::backup::{
    About, Backup, Info, Plan, Progress, ProofRecord, Proofs, THREADS, Watch, damaged_s,
    read_proofs,
};
use everhold_repository::log::{Log, coverage, missing};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Whoever is asked to end takes its announcement back, and is ended when that takes longer.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
/// Between two words on how far it is.
const TELL_EVERY_MS: u64 = 500;
/// What a leader has of its log is archived within this, also from the beginning.
const LOG_WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(1);

/// What to back up, or to prove.
#[derive(clap::Args)]
pub struct Worker {
    #[command(flatten)]
    seat: Seat,
    #[arg(long)]
    full: bool,
    /// Prove that backup instead
    #[arg(long, value_name = "ID")]
    prove: Option<String>,
    /// Why it is proven
    #[arg(long, default_value = "asked", value_parser = why)]
    why: Proving,
}

fn why(word: &str) -> Result<Proving, serde_json::Error> {
    serde_json::from_value(word.into())
}

/// Does it and says so; what failed is said too, and is no error of this process.
pub async fn run(worker: Worker) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let left = stop.clone();
    helper::when_left(move || {
        left.store(true, Ordering::Relaxed);
        std::thread::sleep(ENDS_WITHIN);
        std::process::exit(1);
    });
    helper::stand_back();
    let done = match &worker.prove {
        None => make(&worker, stop).await.map(|info| Said::Made { id: info.id }),
        Some(id) => prove(&worker, id, stop).await.map(|record| match record.failed {
            None => Said::Proven { rto_ms: record.rto_ms.unwrap_or(0) },
            Some(why) => Said::Disproven { why },
        }),
    };
    helper::say(&done.unwrap_or_else(|error| Said::Failed { why: format!("{error:#}") }));
    Ok(())
}

async fn prove(worker: &Worker, id: &str, stop: Arc<AtomicBool>) -> anyhow::Result<ProofRecord> {
    let Ground { node, layout, spec, service } = worker.seat.open()?;
    // Also of what it starts. Without the program, or where it is not allowed, it is as it was.
    let own = std::process::id().to_string();
    let _ = std::process::Command::new("ionice").args(["-c", "3", "-t", "-p", &own]).status();
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let dir = layout.sandbox(&node.name, &service);
    let (backup, why, random) = (id.to_string(), worker.why, u64::from_ne_bytes(random));
    prove::prove(&Task { spec, service, node: node.name, dir, backup, why, random, stop }).await
}

async fn make(worker: &Worker, stop: Arc<AtomicBool>) -> anyhow::Result<Info> {
    let ground = worker.seat.open()?;
    let wanted = ground.declared()?.backup.clone();
    let wanted = wanted.context("no backups of the service are declared")?;
    let (durable, config) = ground.instance()?;
    let (of, names) = (ground.spec.clone(), wanted.repositories.clone());
    let repository = tokio::task::spawn_blocking(move || open(&of, &names)).await??;
    if let (true, Some((_, error))) =
        (repository.places().count() < wanted.copies as usize, repository.absent().first())
    {
        anyhow::bail!(
            "E280 {} copies are wanted and only {} repositories are there: {error}; next step: mend \
             what is named; the schedule tries again",
            wanted.copies,
            repository.places().count()
        );
    }
    let repository = Arc::new(repository);

    let mode = BackupMode::begin(&config).await.context("E289 begin a backup")?;
    let began_s = clock::unix_s();
    let job = Job {
        service: ground.service.clone(),
        kind: if worker.full { Kind::Full } else { Kind::Incremental },
        copies: wanted.copies as usize,
        began_s,
        stop,
        sysid: durable.sysid.context("this node's system identifier is not known")?,
        line: durable.line,
    };
    let (files, pg) = (repository.clone(), (config.clone(), mode.start, mode.checksums));
    // The session that holds backup mode is attended to meanwhile. The files' worker waits for how
    // backup mode ended and writes the manifest.
    let (ended, end) = std::sync::mpsc::channel::<anyhow::Result<About>>();
    let (stored, is_stored) = tokio::sync::oneshot::channel();
    let worker_thread = tokio::task::spawn_blocking(move || -> anyhow::Result<Info> {
        let backup = job.store(&files, &pg.0, pg.1, pg.2)?;
        let _ = stored.send(());
        let about = end.recv().context("backup mode was not ended")??;
        job.check_log(&files, &about)?;
        backup.finish(about).map_err(told)
    });
    if is_stored.await.is_ok() {
        let about = about(mode, &ground, began_s).await;
        let _ = ended.send(about);
    }
    worker_thread.await?
}

/// What is known of the backup once its files are stored.
async fn about(mode: BackupMode, ground: &Ground, began_s: u64) -> anyhow::Result<About> {
    let (pg_version, segment_bytes) = (mode.server_version.clone(), mode.segment_bytes);
    let ends = mode.end().await.context("E289 end a backup")?;
    // The line can only have got longer since.
    let (durable, _) = ground.instance()?;
    let line = line_to(&durable.line, ends.tli);
    anyhow::ensure!(!line.is_empty(), "E289 timeline {} is not on this node's line", ends.tli);
    Ok(About {
        cluster: ground.spec.cluster.clone(),
        service: ground.service.clone(),
        node: ground.node.name.clone(),
        pg_version,
        segment_bytes,
        sysid: durable.sysid.context("this node's system identifier is not known")?,
        began_s,
        ended_s: clock::unix_s(),
        start: ends.start,
        stop: ends.stop,
        tli: ends.tli,
        line,
        backup_label: ends.label,
        tablespace_map: ends.tablespace_map,
    })
}

struct Job {
    service: String,
    kind: Kind,
    copies: usize,
    began_s: u64,
    stop: Arc<AtomicBool>,
    sysid: u64,
    line: Vec<Branch>,
}

impl Job {
    /// Waits until the log is archived from where the backup starts: without it the backup would be
    /// worth nothing. A standby's backup starts at its last checkpoint, which may be old.
    fn await_log(&self, repository: &Repository, start: Lsn) -> anyhow::Result<()> {
        let until = Instant::now() + LOG_WITHIN;
        let log = Log::new(repository, &self.service, self.sysid);
        loop {
            let covered = coverage(&log.pieces(self.copies).map_err(told)?, &self.line);
            if missing(&covered, start, Lsn(start.0 + 1)).is_none() {
                return Ok(());
            }
            if Instant::now() > until || self.stop.load(Ordering::Relaxed) {
                anyhow::bail!(
                    "E289 the log is not archived from {start} on, where this backup would start; \
                     next step: none, after the next checkpoint it starts later"
                );
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether the log is still there from where the backup starts: what no other needed may have
    /// been dropped meanwhile. Its end may be on its way yet.
    fn check_log(&self, repository: &Repository, about: &About) -> anyhow::Result<()> {
        let log = Log::new(repository, &self.service, self.sysid);
        let covered = coverage(&log.pieces(self.copies).map_err(told)?, &about.line);
        let hole = missing(&covered, about.start, about.stop);
        let end = covered.last().map(|range| range.end);
        if let Some(hole) = hole.filter(|hole| end.is_none_or(|end| hole.start < end)) {
            anyhow::bail!(
                "E289 the log from {} to {} is not archived any more, which this backup needs; next \
                 step: none, the schedule tries again",
                hole.start,
                hole.end
            );
        }
        Ok(())
    }

    fn store<'r>(
        &self,
        repository: &'r Repository,
        config: &PgConfig,
        start: Lsn,
        checksums: bool,
    ) -> anyhow::Result<Backup<'r>> {
        self.await_log(repository, start)?;
        let listed = list(repository, &self.service)?;
        let known = Proofs::new();
        let damaged_s = damaged_s(&read_proofs(repository, &self.service, &known).map_err(told)?);
        // What it lacks somewhere is copied there when it is used.
        let sound = |it: &&Info| {
            it.manifests >= self.copies && damaged_s.is_none_or(|at| it.about.began_s > at)
        };
        let base = listed.iter().rev().find(sound).map(|it| it.id.clone());
        // Without anything to compare with every byte is read.
        let kind = if base.is_none() { Kind::Full } else { self.kind };
        let last_told = AtomicU64::new(0);
        let progress = |progress: Progress| {
            let now = clock::now().0;
            let before = last_told.load(Ordering::Relaxed);
            let late = now >= before + TELL_EVERY_MS;
            let mine = || {
                let swapped = (Ordering::Relaxed, Ordering::Relaxed);
                last_told.compare_exchange(before, now, swapped.0, swapped.1).is_ok()
            };
            if late && mine() {
                helper::say(&Said::Progress {
                    done_bytes: progress.done,
                    of_bytes: progress.total,
                });
            }
        };
        let plan = Plan {
            service: &self.service,
            kind,
            base: base.as_deref(),
            data_dir: &config.data_dir,
            began_s: self.began_s,
            start,
            checksums,
            allow_bad_pages: false,
            threads: THREADS,
            copies: self.copies,
        };
        let watch = Watch { progress: &progress, stop: &self.stop };
        Backup::begin(repository, &plan, &watch).map_err(told)
    }
}
