//! Recoveries of services on this node: what was restored beside its data takes their place, and the
//! others follow.

use super::prepare::{Point, Said};
use crate::clock;
use crate::journal::Journal;
use crate::keeper::Keeper;
use crate::layout::Layout;
use crate::link::Report;
use crate::seat::Seat;
use everhold_core::ids::Lsn;
use everhold_core::journal::Event;
use everhold_core::postgres::Restored;
use everhold_core::view::{Cause, View};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::watch;

/// How a recovery of a service goes, as its node tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// The entry of the journal about it, by which it is known.
    #[serde(default)]
    pub journal: String,
    pub began_s: u64,
    /// What is being done, or was last.
    pub step: String,
    /// Where the log ends that it replayed, once it has.
    #[serde(default)]
    pub end: Option<Lsn>,
    pub ended: Option<Ended>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub at_s: u64,
    /// Of which backup it is now, or why nothing has changed.
    pub result: Result<String, String>,
}

/// Recovers services, one at a time each.
#[derive(Clone)]
pub struct Recoveries {
    node_file: PathBuf,
    layout: Layout,
    node: String,
    journal: Journal,
    report: watch::Sender<Arc<Report>>,
    turn: Arc<Mutex<()>>,
}

impl Recoveries {
    pub fn new(
        node_file: &Path,
        (layout, node): (&Layout, &str),
        journal: Journal,
        report: watch::Sender<Arc<Report>>,
    ) -> Recoveries {
        let node_file = std::path::absolute(node_file).unwrap_or_else(|_| node_file.to_path_buf());
        let (layout, node) = (layout.clone(), node.to_string());
        Recoveries { node_file, layout, node, journal, report, turn: Arc::default() }
    }

    /// Begins one; the entry of the journal about it.
    pub fn begin(
        &self,
        service: &str,
        point: &Point,
        who: String,
        keeper: Keeper,
    ) -> Result<String, String> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.report.borrow().recoveries.get(service).cloned();
        if known.is_some_and(|it| it.ended.is_none()) {
            return Err(format!("a recovery of {service} is under way on this node"));
        }
        let what = format!("recovery to {}", point.aim);
        let id = self.journal.append(service, Event::Asked { who, what });
        let child = self.spawn(service, point).map_err(|why| format!("cannot begin it: {why}"))?;
        let step = "looking for a backup".to_string();
        let began_s = clock::unix_s();
        let begun = Recovery { journal: id.clone(), began_s, step, end: None, ended: None };
        self.report.send_modify(|report| {
            Arc::make_mut(report).recoveries.insert(service.to_string(), begun);
        });
        tokio::spawn(self.clone().follow(service.to_string(), child, keeper, point.force));
        Ok(id)
    }

    fn spawn(&self, service: &str, point: &Point) -> std::io::Result<Child> {
        let mut command = Seat::command("restorer", &self.node_file, service);
        command.arg("--point").arg(serde_json::to_string(point)?).spawn()
    }

    async fn follow(self, service: String, mut child: Child, keeper: Keeper, force: bool) {
        let made = self.hear(&service, &mut child).await;
        let result = match made {
            Ok((restored, backup)) => {
                self.step(&service, &format!("putting it in place, as of {}", restored.end));
                self.change(&service, |recovery| recovery.end = Some(restored.end));
                keeper.wish(Cause::Restore { restored, force }).await.map(|()| backup)
            }
            Err(why) => Err(why),
        };
        if result.is_err() {
            self.clear(&service, &keeper).await;
        }
        let text = match &result {
            Ok(backup) => format!("the service is put back, from backup {backup}"),
            Err(why) => format!("no recovery: {why}"),
        };
        self.journal.append(&service, Event::Noted { text });
        let ended = Ended { at_s: clock::unix_s(), result };
        self.change(&service, |recovery| recovery.ended = Some(ended));
    }

    async fn hear(&self, service: &str, child: &mut Child) -> Result<(Restored, String), String> {
        let stdin = child.stdin.take();
        let mut result = None;
        if let Some(stdout) = child.stdout.take() {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    Ok(Said::Step(step)) => self.step(service, &step),
                    Ok(Said::Made { restored, backup }) => result = Some(Ok((restored, backup))),
                    Ok(Said::Failed { why }) => result = Some(Err(why)),
                    Err(_) => {}
                }
            }
        }
        let status = child.wait().await;
        drop(stdin);
        result.unwrap_or_else(|| match status {
            Ok(status) => Err(format!("its process ended ({status})")),
            Err(error) => Err(format!("its process is lost: {error}")),
        })
    }

    /// Nothing stays of one that has failed, unless its campaign or its node still goes on with it.
    async fn clear(&self, service: &str, keeper: &Keeper) {
        let needs = |view: &View| view.campaign.is_some() || view.durable.put_back.is_some();
        if keeper.view().await.is_none_or(|(view, ..)| needs(&view)) {
            return;
        }
        let run_dir = self.layout.recovering(&self.node, service);
        let cleared = match keeper.drop_restored(false).await {
            Ok(()) => tokio::fs::remove_dir_all(&run_dir).await.or_else(|error| {
                let gone = error.kind() == std::io::ErrorKind::NotFound;
                if gone { Ok(()) } else { Err(format!("{}: {error}", run_dir.display())) }
            }),
            Err(error) => Err(error),
        };
        if let Err(error) = cleared {
            tracing::warn!(service, error, "what was restored stays, until the next recovery");
        }
    }

    fn step(&self, service: &str, step: &str) {
        self.change(service, |recovery| recovery.step = step.to_string());
    }

    fn change(&self, service: &str, change: impl FnOnce(&mut Recovery)) {
        self.report.send_modify(|report| {
            if let Some(recovery) = Arc::make_mut(report).recoveries.get_mut(service) {
                change(recovery);
            }
        });
    }
}
