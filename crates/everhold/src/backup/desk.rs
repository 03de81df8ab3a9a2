//! Backups that this node makes, each by a process of its own: a node busy with one judges as
//! quickly as before, and a backup can be ended at any moment.

use crate::journal::Journal;
use crate::link::Report;
use crate::{clock, log};
use everhold_core::backup::Kind;
use everhold_core::journal::Event;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// What a node tells about the backups of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Making {
    /// The one that is being made.
    pub running: Option<Running>,
    /// How the last one of this agent ended.
    pub ended: Option<Ended>,
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

/// What the worker says on its stdout, a line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    Progress { done_bytes: u64, of_bytes: u64 },
    Made { id: String },
    Failed { why: String },
}

/// Begins backups, one at a time for each service.
#[derive(Clone)]
pub struct Desk {
    node_file: PathBuf,
    journal: Journal,
    report: watch::Sender<Arc<Report>>,
    turn: Arc<Mutex<()>>,
}

impl Desk {
    pub fn new(node_file: &Path, journal: Journal, report: watch::Sender<Arc<Report>>) -> Desk {
        let node_file = std::path::absolute(node_file).unwrap_or_else(|_| node_file.to_path_buf());
        Desk { node_file, journal, report, turn: Arc::default() }
    }

    /// Begins one; the entry of the journal about it.
    pub fn begin(&self, service: &str, kind: Kind, who: String) -> Result<String, String> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let runs =
            |report: &Report| report.backups.get(service).is_some_and(|it| it.running.is_some());
        if runs(&self.report.borrow()) {
            return Err(format!("a backup of {service} is being made on this node"));
        }
        let what = format!("backup, {}", super::word(kind));
        let id = self.journal.append(service, Event::Asked { who, what });
        let child =
            self.spawn(service, kind).map_err(|error| format!("cannot begin it: {error}"))?;
        let running = Running { kind, began_s: clock::unix_s(), done_bytes: 0, of_bytes: 0 };
        self.tell(service, |making| making.running = Some(running));
        tokio::spawn(self.clone().follow(service.to_string(), child));
        Ok(id)
    }

    fn spawn(&self, service: &str, kind: Kind) -> std::io::Result<Child> {
        // This very program, also after its file was replaced.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("everhold").arg("worker").arg("--node-file").arg(&self.node_file);
        command.env(log::VARIABLE, log::format().as_str()).current_dir("/").process_group(0);
        command.arg("--service").arg(service);
        if kind == Kind::Full {
            command.arg("--full");
        }
        // It ends when its stdin does: with this agent.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        command.spawn()
    }

    async fn follow(self, service: String, mut child: Child) {
        let stdin = child.stdin.take();
        let mut result = None;
        if let Some(stdout) = child.stdout.take() {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    Ok(Said::Progress { done_bytes, of_bytes }) => self.tell(&service, |making| {
                        if let Some(running) = &mut making.running {
                            (running.done_bytes, running.of_bytes) = (done_bytes, of_bytes);
                        }
                    }),
                    Ok(Said::Made { id }) => result = Some(Ok(id)),
                    Ok(Said::Failed { why }) => result = Some(Err(why)),
                    Err(_) => {}
                }
            }
        }
        let status = child.wait().await;
        drop(stdin);
        let result = result.unwrap_or_else(|| {
            Err(match status {
                Ok(status) => format!("its process ended ({status})"),
                Err(error) => format!("its process is lost: {error}"),
            })
        });
        let text = match &result {
            Ok(id) => format!("backup {id} is made"),
            Err(why) => format!("no backup: {why}"),
        };
        self.journal.append(&service, Event::Noted { text });
        self.tell(&service, |making| {
            let before = making.ended.as_ref().map_or(0, |ended| ended.failures);
            let failures = if result.is_ok() { 0 } else { before + 1 };
            making.running = None;
            making.ended = Some(Ended { at_s: clock::unix_s(), result, failures });
        });
    }

    fn tell(&self, service: &str, change: impl FnOnce(&mut Making)) {
        self.report.send_modify(|report| {
            change(Arc::make_mut(report).backups.entry(service.to_string()).or_default());
        });
    }
}
