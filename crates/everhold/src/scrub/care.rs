//! The agent's side of the scrubber: one process for each service, and what it says.

use super::state::{Bad, State};
use crate::journal::Journal;
use crate::keeper::Keeper;
use crate::link::Report;
use crate::seat::Seat;
use everhold_core::journal::Event;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::watch;

/// Between two starts of one that ends.
const BACKOFF: Duration = Duration::from_secs(2);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// One service whose data is read.
struct Care {
    node_file: PathBuf,
    service: String,
    keeper: Keeper,
    journal: Journal,
    report: watch::Sender<Arc<Report>>,
    known: Vec<Bad>,
    rounds: Option<u64>,
}

/// Has the data of a service read as long as the agent runs. What was found before stands from the
/// start, so that nobody reads or leads in the meantime.
pub async fn start(
    node_file: &Path,
    dir: &Path,
    service: &str,
    keeper: Keeper,
    journal: Journal,
    report: watch::Sender<Arc<Report>>,
) {
    let mut care = Care {
        node_file: std::path::absolute(node_file).unwrap_or_else(|_| node_file.to_path_buf()),
        service: service.to_string(),
        keeper,
        journal,
        report,
        known: Vec::new(),
        rounds: None,
    };
    let file = dir.join("scrub.json");
    if let Ok(Some(state)) = tokio::task::spawn_blocking(move || State::read(&file)).await {
        care.known.clone_from(&state.bad);
        care.rounds = state.ended_s;
        care.tell(state).await;
    }
    tokio::spawn(care.run());
}

impl Care {
    async fn run(mut self) {
        let mut backoff = BACKOFF;
        loop {
            match self.spawn() {
                Ok(mut child) => {
                    // It ends with this.
                    let stdin = child.stdin.take();
                    if let Some(stdout) = child.stdout.take() {
                        let mut lines = BufReader::new(stdout).lines();
                        while let Ok(Some(line)) = lines.next_line().await {
                            if let Ok(state) = serde_json::from_str::<State>(&line) {
                                backoff = BACKOFF;
                                self.tell(state).await;
                            }
                        }
                    }
                    drop(stdin);
                    let _ = child.wait().await;
                }
                Err(error) => {
                    tracing::warn!(service = self.service, %error, "no scrubber");
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        Seat::command("scrub", &self.node_file, &self.service).spawn()
    }

    /// Hands on what decisions go by, keeps the rest for those who ask, journals what is new.
    async fn tell(&mut self, state: State) {
        let note = |text: String| drop(self.journal.append(&self.service, Event::Noted { text }));
        for bad in state.bad.iter().filter(|bad| !self.known.contains(bad)) {
            note(format!("bad page: {}", bad.told()));
        }
        let gone = self.known.iter().filter(|bad| !state.bad.contains(bad)).count();
        if gone > 0 {
            note(format!("{gone} pages that were bad are not any more, {} are", state.bad.len()));
        }
        if state.ended_s.is_some() && state.ended_s != self.rounds {
            let (mb, s) = (state.done_bytes >> 20, state.took_s);
            note(format!("all pages were read: {mb} MB in {s} s, {} are bad", state.bad.len()));
            self.rounds = state.ended_s;
        }
        self.known.clone_from(&state.bad);
        self.keeper.scrubbed(state.bad_pages()).await;
        let word = state.word();
        self.report.send_if_modified(|report| {
            if report.scrubs.get(&self.service) != Some(&word) {
                Arc::make_mut(report).scrubs.insert(self.service.clone(), word);
            }
            // It goes out with the next heartbeat.
            false
        });
    }
}
