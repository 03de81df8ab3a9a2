//! Instances that Everhold runs on this node: an agent sees to it that what the spec places here
//! runs, and nothing else. `core/src/run.rs` decides.
//!
//! Each instance has a runner, a process of its own that outlives the agent. The agent writes its
//! order, starts it, tells it to end, and reads what it writes down. A thread does all that, so that
//! no stalled disk holds up a heartbeat.

pub mod child;
mod leave;
mod order;
mod output;
mod place;
pub mod runner;
pub mod shown;
mod state;
mod tender;

pub use order::named_listeners;

use crate::gateways_word::Said;
use crate::journal::Journal;
use crate::layout::Layout;
use crate::link::Report;
use crate::node_file::NodeFile;
use everhold_core::spec::Spec;
use everhold_store::Etcd;
use place::Place;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;
use tender::{Tender, Word};
use tokio::sync::{oneshot, watch};

/// Words for the thread that it hasn't taken in yet.
const WORDS_MAX: usize = 64;
/// Between two tries to say one more.
const TRY: Duration = Duration::from_millis(50);
/// Lines of one answer.
const LINES_MAX: usize = 10_000;
/// An answer fits a frame of a link.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Where the agent tells the thread what to do.
#[derive(Clone)]
pub struct Instances {
    words: SyncSender<Word>,
    spec: Arc<watch::Sender<Spec>>,
    node: String,
    layout: Layout,
}

/// A line of output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub at: String,
    pub instance: String,
    pub text: String,
}

impl Instances {
    pub fn start(
        node: &NodeFile,
        layout: &Layout,
        spec: &Spec,
        journal: Journal,
        report: watch::Sender<Arc<Report>>,
        store: Etcd,
    ) -> std::io::Result<Instances> {
        let (words, heard) = sync_channel(WORDS_MAX);
        let (told, spec) = watch::channel(spec.clone());
        let ((saying, said), (wanted, wants)) =
            (watch::channel(Said::default()), watch::channel(false));
        let gateways = (said, wanted);
        let tender = Tender::new(node.clone(), layout.clone(), spec, journal, report, gateways);
        tokio::spawn(leave::ask(node.cluster.clone(), store, wants, saying));
        std::thread::Builder::new().name("instances".into()).spawn(move || tender.run(&heard))?;
        let (spec, node) = (Arc::new(told), node.name.clone());
        Ok(Instances { words, spec, node, layout: layout.clone() })
    }

    /// What is placed here from now on.
    pub fn follow(&self, spec: &Spec) {
        self.spec.send_replace(spec.clone());
    }

    /// What it follows.
    pub fn spec(&self) -> watch::Receiver<Spec> {
        self.spec.subscribe()
    }

    /// Starts an instance anew, by the spec as it is now, if it is still this process.
    pub async fn renew(
        &self,
        service: &str,
        instance: &str,
        pid: Option<i32>,
    ) -> Result<(), String> {
        let (answer, told) = oneshot::channel();
        let key = (service.to_string(), instance.to_string());
        let busy = |_| "the agent is busy with its instances; try again".to_string();
        self.words.try_send(Word::Renew { key, pid, answer }).map_err(busy)?;
        told.await.unwrap_or_else(|_| Err("the agent is stopping".to_string()))
    }

    /// Ends all of them, and starts none again.
    pub async fn halt(&self) {
        let (done, told) = oneshot::channel();
        let mut word = Word::Halt { done };
        // Whoever asks has a limit of its own.
        while let Err(TrySendError::Full(back)) = self.words.try_send(word) {
            word = back;
            tokio::time::sleep(TRY).await;
        }
        // Without an answer there is nobody who could start one any more.
        let _ = told.await;
    }

    /// The newest lines of a service's instances on this node, oldest first; those behind `after`
    /// if that is given.
    pub async fn logs(
        &self,
        service: &str,
        instance: Option<&str>,
        limit: usize,
        after: Option<String>,
    ) -> Result<Vec<Line>, String> {
        let limit = limit.min(LINES_MAX);
        let service = self.layout.service(&self.node, service);
        let instance = instance.map(str::to_string);
        let read = tokio::task::spawn_blocking(move || {
            let mut lines = Vec::new();
            for (id, place) in Place::of(&service) {
                if instance.as_ref().is_none_or(|it| *it == id) {
                    let newest = output::newest(&place.log(), limit, after.as_deref());
                    lines.extend(newest.into_iter().map(|line| {
                        let (at, text) = line.split_once(' ').unwrap_or(("", &line));
                        Line { at: at.into(), instance: id.clone(), text: text.into() }
                    }));
                }
            }
            merged(lines, limit)
        });
        read.await.map_err(|error| error.to_string())
    }
}

/// In the order of time, the newest of them, as far as they fit an answer.
pub fn merged(mut lines: Vec<Line>, limit: usize) -> Vec<Line> {
    lines.sort_by(|a, b| a.at.cmp(&b.at));
    let mut bytes = 0;
    let fits = lines.iter().rev().take(limit).take_while(|line| {
        bytes += line.text.len() + 100;
        bytes <= ANSWER_BYTES_MAX
    });
    let skip = lines.len() - fits.count();
    lines.split_off(skip)
}
