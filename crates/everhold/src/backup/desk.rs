//! Backups that this node makes and proves, each by a process of its own: a node busy with one judges as
//! quickly as before, and a backup can be ended at any moment.

use super::prove::sandbox;
use crate::clock;
use crate::journal::Journal;
use crate::layout::Layout;
use crate::link::Report;
use crate::seat::Seat;
use everhold_core::backup::{Kind, Proving};
use everhold_core::journal::Event;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::watch;

/// What a node tells about the backups of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Making {
    /// The one that is being made.
    pub running: Option<Running>,
    /// How the last one of this agent ended.
    pub ended: Option<Ended>,
    /// The one that is being proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proving: Option<OnTrial>,
    /// How the last proof of this agent ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proved: Option<Tried>,
}

impl Making {
    pub fn is_busy(&self) -> bool {
        self.running.is_some() || self.proving.is_some()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    pub kind: Kind,
    pub began_s: u64,
    pub done_bytes: u64,
    pub of_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub at_s: u64,
    /// Its id, or why there is none.
    pub result: Result<String, String>,
    /// Failures in a row.
    pub failures: u32,
}

/// A backup while it is proven.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnTrial {
    pub id: String,
    pub began_s: u64,
    pub step: String,
    /// Of the restore.
    pub done_bytes: u64,
    pub of_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    pub id: String,
    pub at_s: u64,
    pub outcome: Outcome,
    /// So often in a row it could not be done.
    pub failures: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Proven {
        rto_ms: u64,
    },
    Failed {
        why: String,
    },
    /// It could not be looked at.
    NotDone {
        why: String,
    },
}

/// What a worker is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    BackUp { kind: Kind },
    Prove { id: String, why: Proving },
}

/// What the worker says on its stdout, a line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    Progress {
        done_bytes: u64,
        of_bytes: u64,
    },
    /// What a proof does now.
    Step {
        what: String,
    },
    Made {
        id: String,
    },
    Proven {
        rto_ms: u64,
    },
    /// The backup failed its proof.
    Disproven {
        why: String,
    },
    /// What was asked for could not be done.
    Failed {
        why: String,
    },
}

/// Begins backups and proofs, one at a time for each service.
#[derive(Clone)]
pub struct Desk {
    node_file: PathBuf,
    layout: Layout,
    node: String,
    journal: Journal,
    report: watch::Sender<Arc<Report>>,
    turn: Arc<Mutex<()>>,
}

impl Desk {
    /// Also removes what a proof left that was killed with its agent: before that is done nothing
    /// begins.
    pub fn new(
        node_file: &Path,
        (layout, node): (&Layout, &str),
        journal: Journal,
        report: watch::Sender<Arc<Report>>,
    ) -> Desk {
        let node_file = std::path::absolute(node_file).unwrap_or_else(|_| node_file.to_path_buf());
        let (layout, node, turn) = (layout.clone(), node.to_string(), Arc::default());
        let desk = Desk { node_file, layout, node, journal, report, turn };
        let of = desk.clone();
        std::thread::spawn(move || of.clear());
        desk
    }

    fn clear(&self) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let services = std::fs::read_dir(self.layout.node(&self.node)).into_iter().flatten();
        for entry in services.flatten() {
            let Some(service) = entry.file_name().to_str().map(str::to_string) else { continue };
            self.clear_one(&service);
        }
    }

    fn clear_one(&self, service: &str) {
        let dir = self.layout.sandbox(&self.node, service);
        if let Err(error) = sandbox::clear_left(&dir) {
            tracing::warn!(service, error = format!("{error:#}"), "the sandbox is not removed");
        }
    }

    /// Begins it; the entry of the journal about it.
    pub fn begin(&self, service: &str, work: Work, who: String) -> Result<String, String> {
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err("another one begins on this node; try again soon".to_string());
            }
        };
        let report = self.report.borrow().clone();
        match report.backups.get(service) {
            Some(Making { running: Some(_), .. }) => {
                return Err(format!("a backup of {service} is being made on this node"));
            }
            Some(Making { proving: Some(trial), .. }) => {
                return Err(format!("backup {} of {service} is being proven on it", trial.id));
            }
            Some(Making { running: None, proving: None, .. }) | None => {}
        }
        let what = match &work {
            Work::BackUp { kind } => format!("backup, {}", super::word(*kind)),
            Work::Prove { id, .. } => format!("proof of backup {id}"),
        };
        let entry = self.journal.append(service, Event::Asked { who, what });
        let child =
            self.spawn(service, &work).map_err(|error| format!("cannot begin it: {error}"))?;
        let began_s = clock::unix_s();
        self.tell(service, |making| match &work {
            Work::BackUp { kind } => {
                making.running = Some(Running { kind: *kind, began_s, done_bytes: 0, of_bytes: 0 });
            }
            Work::Prove { id, .. } => {
                let (id, step) = (id.clone(), "begin".to_string());
                making.proving = Some(OnTrial { id, began_s, step, done_bytes: 0, of_bytes: 0 });
            }
        });
        tokio::spawn(self.clone().follow(service.to_string(), work, child));
        Ok(entry)
    }

    fn spawn(&self, service: &str, work: &Work) -> std::io::Result<Child> {
        let mut command = Seat::command("worker", &self.node_file, service);
        match work {
            Work::BackUp { kind: Kind::Full } => {
                command.arg("--full");
            }
            Work::BackUp { kind: Kind::Incremental } => {}
            Work::Prove { id, why } => {
                command.args(["--prove", id, "--why", super::why(*why)]);
            }
        }
        command.spawn()
    }

    async fn follow(self, service: String, work: Work, mut child: Child) {
        let stdin = child.stdin.take();
        let mut last = None;
        if let Some(stdout) = child.stdout.take() {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    Ok(Said::Progress { done_bytes, of_bytes }) => {
                        self.progress(&service, done_bytes, of_bytes);
                    }
                    Ok(Said::Step { what }) => self.tell(&service, |making| {
                        if let Some(trial) = &mut making.proving {
                            trial.step = what;
                        }
                    }),
                    Ok(said) => last = Some(said),
                    Err(_) => {}
                }
            }
        }
        let status = child.wait().await;
        drop(stdin);
        let why = match status {
            Ok(status) => format!("its process ended ({status})"),
            Err(error) => format!("its process is lost: {error}"),
        };
        match work {
            Work::BackUp { .. } => self.made(&service, last, why),
            Work::Prove { id, why: Proving::Asked } => {
                self.tried(service, id, false, (last, why)).await;
            }
            Work::Prove { id, .. } => self.tried(service, id, true, (last, why)).await,
        }
    }

    fn progress(&self, service: &str, done: u64, of: u64) {
        self.tell(service, |making| {
            if let Some(running) = &mut making.running {
                (running.done_bytes, running.of_bytes) = (done, of);
            }
            if let Some(trial) = &mut making.proving {
                (trial.done_bytes, trial.of_bytes) = (done, of);
            }
        });
    }

    /// `lost`: why there is no word of its end.
    fn made(&self, service: &str, last: Option<Said>, lost: String) {
        let result = match last {
            Some(Said::Made { id }) => Ok(id),
            Some(Said::Failed { why }) => Err(why),
            _ => Err(lost),
        };
        let text = match &result {
            Ok(id) => format!("backup {id} is made"),
            Err(why) => format!("no backup: {why}"),
        };
        self.journal.append(service, Event::Noted { text });
        self.tell(service, |making| {
            let before = making.ended.as_ref().map_or(0, |ended| ended.failures);
            let failures = if result.is_ok() { 0 } else { before + 1 };
            making.running = None;
            making.ended = Some(Ended { at_s: clock::unix_s(), result, failures });
        });
    }

    /// What somebody asked for is not tried again, and is no failure of the schedule's.
    async fn tried(
        &self,
        service: String,
        id: String,
        scheduled: bool,
        (last, lost): (Option<Said>, String),
    ) {
        let (desk, of) = (self.clone(), service.clone());
        let _ = tokio::task::spawn_blocking(move || desk.clear_one(&of)).await;
        let (outcome, text) = match last {
            Some(Said::Proven { rto_ms }) => {
                let text = format!("backup {id} is proven, restored in {rto_ms} ms");
                (Outcome::Proven { rto_ms }, text)
            }
            Some(Said::Disproven { why }) => {
                let text = format!("E291 backup {id} failed its proof: {why}");
                (Outcome::Failed { why }, text)
            }
            Some(Said::Failed { why }) => {
                let text = format!("no proof of backup {id}: {why}");
                (Outcome::NotDone { why }, text)
            }
            _ => {
                let text = format!("no proof of backup {id}: {lost}");
                (Outcome::NotDone { why: lost }, text)
            }
        };
        self.journal.append(&service, Event::Noted { text });
        self.tell(&service, |making| {
            let before = making.proved.as_ref().map_or(0, |it| it.failures);
            let failures = match outcome {
                Outcome::NotDone { .. } => before + u32::from(scheduled),
                Outcome::Proven { .. } | Outcome::Failed { .. } => 0,
            };
            making.proving = None;
            making.proved = Some(Tried { id, at_s: clock::unix_s(), outcome, failures });
        });
    }

    fn tell(&self, service: &str, change: impl FnOnce(&mut Making)) {
        self.report.send_modify(|report| {
            change(Arc::make_mut(report).backups.entry(service.to_string()).or_default());
        });
    }
}
