//! A standby's copy out of the repositories: the newest backup of the leader's history, with the log
//! that is archived behind it. An agent has it made beside its data directory by the role `cloner`,
//! and what it lacks comes from the leader. Where none can be made, all of it does.

use super::open;
use super::restore::{Aim, Files, Order, Until, files};
use crate::helper;
use crate::journal::Journal;
use crate::seat::Seat;
use crate::spec::record;
use anyhow::Context;
use everhold_adapters::postgres::{AsideConfig, COPIED};
use everhold_core::ids::Epoch;
use everhold_core::journal::Event;
use everhold_core::spec::CloneFrom;
use everhold_core::term::{Branch, Term};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// It says each tenth of the way. One that takes longer for it hangs with its repository, or is of no
/// use: the leader is asked instead.
const DEAF: Duration = Duration::from_secs(1_800);
/// A line of history of thousands of failovers.
const ORDER_BYTES_MAX: u64 = 4 << 20;

/// What a copy is to be a part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub epoch: Epoch,
    pub sysid: u64,
    pub line: Vec<Branch>,
}

impl Wanted {
    pub fn of(term: &Term) -> Wanted {
        Wanted { epoch: term.epoch, sysid: term.sysid, line: term.line() }
    }
}

/// What the role says on its stdout, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Step(String),
    Made { backup: String, bytes: u64 },
    Failed { why: String },
}

/// The agent's side of it.
#[derive(Clone)]
pub struct Cloner {
    node_file: PathBuf,
    spec_copy: PathBuf,
    service: String,
    journal: Journal,
    /// One that could not go on from the leader's log is not made twice.
    tried: Arc<AtomicU64>,
}

impl Cloner {
    /// `spec_copy`: this node's, where it is followed.
    pub fn new(node_file: &Path, spec_copy: PathBuf, service: &str, journal: &Journal) -> Cloner {
        Cloner {
            node_file: node_file.to_path_buf(),
            spec_copy,
            service: service.to_string(),
            journal: journal.clone(),
            tried: Arc::default(),
        }
    }

    fn is_asked_for(&self) -> bool {
        let text = std::fs::read_to_string(&self.spec_copy).unwrap_or_default();
        let spec = record::from_json(&text).ok();
        let service = spec.as_ref().and_then(|spec| spec.postgres(&self.service));
        let backup = service.and_then(|it| it.backup.as_ref());
        backup.is_some_and(|it| it.clone_from == CloneFrom::Repository)
    }

    /// Makes one where it is taken from, if that is asked for and it can. It ends with the future.
    pub async fn make(&self, wanted: Wanted) {
        if !self.is_asked_for() || self.tried.swap(wanted.epoch, Ordering::Relaxed) == wanted.epoch
        {
            return;
        }
        let text = match self.order(&wanted).await {
            Ok((backup, bytes)) => {
                format!("a copy from backup {backup}, {} MB, goes on from the leader", bytes >> 20)
            }
            Err(why) => format!("no copy from the repositories, but of the leader: {why}"),
        };
        self.journal.append(&self.service, Event::Noted { text });
    }

    async fn order(&self, wanted: &Wanted) -> Result<(String, u64), String> {
        let failed = |error: std::io::Error| format!("its process: {error}");
        let mut command = Seat::command("cloner", &self.node_file, &self.service);
        let mut child = command.spawn().map_err(failed)?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (mut stdin, stdout) = pipes.ok_or("its process has no pipes")?;
        let mut order = serde_json::to_string(wanted).map_err(|error| error.to_string())?;
        order.push('\n');
        stdin.write_all(order.as_bytes()).await.map_err(failed)?;
        let mut lines = BufReader::new(stdout).lines();
        let mut result = None;
        let silent = |_| format!("it said nothing for {} s", DEAF.as_secs());
        while let Ok(Some(line)) =
            tokio::time::timeout(DEAF, lines.next_line()).await.map_err(silent)?
        {
            match serde_json::from_str(&line) {
                Ok(Said::Step(step)) => tracing::info!(service = self.service, step, "copying"),
                Ok(Said::Made { backup, bytes }) => result = Some(Ok((backup, bytes))),
                Ok(Said::Failed { why }) => result = Some(Err(why)),
                Err(_) => {}
            }
        }
        let status = child.wait().await.map_err(failed)?;
        result.unwrap_or_else(|| Err(format!("its process ended ({status})")))
    }
}

/// Makes it and says so; what failed is said too, and is no error of this process.
pub async fn run(seat: Seat) -> anyhow::Result<()> {
    helper::own_session();
    let mut order = String::new();
    std::io::stdin().lock().take(ORDER_BYTES_MAX).read_line(&mut order)?;
    // What it leaves lacks its last file, so nobody takes it.
    helper::when_left(|| std::process::exit(1));
    let made = tokio::task::spawn_blocking(move || make(&seat, &order)).await?;
    helper::say(&made.unwrap_or_else(|error| Said::Failed { why: format!("{error:#}") }));
    Ok(())
}

fn make(seat: &Seat, order: &str) -> anyhow::Result<Said> {
    let wanted: Wanted = serde_json::from_str(order).context("read the order")?;
    let ground = seat.open()?;
    let declared = ground.declared()?.backup.as_ref();
    let declared = declared.context("no backups of the service are declared")?;
    let (_, config) = ground.instance()?;
    let to = config.clone_dir();
    super::prepare::remove(&to)?;
    let repository = open(&ground.spec, &declared.repositories)?;
    let order = Order {
        service: seat.service.clone(),
        to: to.clone(),
        aim: Aim { until: Until::Latest, timeline: None, backup: None },
        along: Some((wanted.sysid, wanted.line)),
        before: None,
        over: false,
        throwaway: false,
    };
    let aside = AsideConfig {
        bin_dir: config.bin_dir.clone(),
        data_dir: to.clone(),
        run_dir: config.run_dir.clone(),
        run_as: config.run_as,
        tli: 1,
        throwaway: false,
    };
    let step = |text: &str| helper::say(&Said::Step(text.to_string()));
    let made = files(&repository, &order, &to, &aside, "standby.signal", &step)?;
    let Files { backup, log_end, bytes_written, .. } = made;
    let marker = format!("{} {log_end} {bytes_written}\n", wanted.epoch);
    super::prepare::mark(&to.join(COPIED), &marker, config.run_as)?;
    Ok(Said::Made { backup: backup.id, bytes: bytes_written })
}
