//! Faults on purpose: killing and freezing the processes of a node, as the supervisor of one machine
//! can. Each fault that lasts has its undo written to disk first and ends by itself.

mod process;

use crate::children::Supervised;
use crate::layout::Layout;
use crate::{clock, disk};
use process::{Process, all_in, belonging, snapshot};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a node stays frozen when nothing else is said.
pub const FREEZE: Duration = Duration::from_secs(20);
/// Longer freezes are forgotten by the people who asked for them.
pub const FREEZE_MAX: Duration = Duration::from_secs(600);
/// A server forks while it is being looked at, so it is looked at again until nothing is new.
const ROUNDS_MAX: usize = 10;

/// Killed processes are gone within this; together with the next it is five seconds.
const KILLED_WITHIN: Duration = Duration::from_millis(50);
const KILL_ROUNDS_MAX: usize = 100;

/// A process that must not be mistaken for another one that got its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    pub pid: i32,
    /// Since boot, in clock ticks, as in /proc/PID/stat.
    pub started: u64,
}

/// A freeze and how to undo it: DATA/run/faults/NODE.json.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    pub node: String,
    pub at: String,
    pub for_ms: u64,
    /// Who was found; whoever else belongs to the node is woken too.
    pub targets: Vec<Target>,
}

#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    #[error("{node} is frozen already")]
    Already { node: String },
    #[error("no process of {node} runs")]
    NothingRuns { node: String },
    #[error("the process {pid} is no PostgreSQL of {node} any more")]
    Gone { node: String, pid: i32 },
    #[error("cannot {what}: {source}")]
    Io { what: String, source: std::io::Error },
}

/// Does faults, one at a time.
pub struct Injector {
    supervised: Arc<Supervised>,
    layout: Layout,
    turn: tokio::sync::Mutex<()>,
}

impl Injector {
    pub fn new(supervised: Arc<Supervised>, layout: Layout) -> Arc<Injector> {
        Arc::new(Injector { supervised, layout, turn: tokio::sync::Mutex::new(()) })
    }

    /// Processes that don't stay, as holds.
    pub fn holds(&self) -> Vec<serde_json::Value> {
        self.supervised.troubles().holds()
    }

    /// Kills a postmaster. Its backends find out by themselves, as after the kernel's own kill.
    pub async fn kill_postgres(&self, node: &str, pid: i32) -> Result<(), FaultError> {
        let _turn = self.turn.lock().await;
        let dir = self.layout.node(node);
        let found = snapshot().into_iter().find(|process| process.target.pid == pid);
        let postgres = found.filter(|process| process.is_postgres_in(&dir));
        let gone = || FaultError::Gone { node: node.to_string(), pid };
        signal(postgres.ok_or_else(gone)?.target, Signal::KILL);
        Ok(())
    }

    /// Kills the agent of a node and everything it runs. The supervisor starts the agent again.
    pub async fn kill_node(&self, node: &str) -> Result<usize, FaultError> {
        let _turn = self.turn.lock().await;
        let targets = self.strike(node, Signal::KILL, &mut |_| Ok(()))?;
        // A frozen process is dead as well by now, so there is nothing left to undo.
        let _ = std::fs::remove_file(record_path(&self.layout, node));
        Ok(targets.len())
    }

    /// Freezes a node until the time is over or somebody heals it.
    pub async fn freeze_node(
        self: &Arc<Self>,
        node: &str,
        lasts: Duration,
    ) -> Result<Frozen, FaultError> {
        let _turn = self.turn.lock().await;
        let path = record_path(&self.layout, node);
        if path.exists() {
            return Err(FaultError::Already { node: node.to_string() });
        }
        let mut frozen = Frozen {
            node: node.to_string(),
            at: clock::wall(),
            for_ms: u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX),
            targets: Vec::new(),
        };
        let struck = self.strike(node, Signal::STOP, &mut |targets| {
            frozen.targets = targets.iter().copied().collect();
            write_record(&path, &frozen)
        });
        if let Err(error) = struck {
            thaw(&self.layout, &frozen);
            return Err(error);
        }
        let (this, node, at) = (self.clone(), frozen.node.clone(), frozen.at.clone());
        tokio::spawn(async move {
            tokio::time::sleep(lasts).await;
            let _turn = this.turn.lock().await;
            // Healed and frozen again meanwhile: that one has a timer of its own.
            if records(&this.layout).iter().any(|f| f.node == node && f.at == at) {
                heal_all(&this.layout, |frozen| frozen.node == node);
            }
        });
        Ok(frozen)
    }

    /// Undoes every fault that lasts.
    pub async fn heal(&self) -> Vec<Frozen> {
        let _turn = self.turn.lock().await;
        heal_all(&self.layout, |_| true)
    }

    /// The faults that last.
    pub fn active(&self) -> Vec<Frozen> {
        records(&self.layout)
    }

    /// Signals the agent first, so that it can't repair what happens to its server, then the rest.
    /// `before` is told of all targets before those found in a round are signalled.
    fn strike(
        &self,
        node: &str,
        with: Signal,
        before: &mut dyn FnMut(&BTreeSet<Target>) -> Result<(), FaultError>,
    ) -> Result<BTreeSet<Target>, FaultError> {
        let dir = self.layout.node(node);
        let agent = self.supervised.pid(node);
        let mut struck = BTreeSet::new();
        let mut began = None;
        for _ in 0..ROUNDS_MAX {
            let processes = snapshot();
            let newest = processes.iter().map(|process| process.target.started).max();
            let found = belonging(&processes, &dir, agent);
            // A successor that the supervisor has started meanwhile is no part of this fault.
            let began = *began.get_or_insert(newest.unwrap_or(0));
            let new: Vec<&Process> = found
                .into_iter()
                .filter(|process| !struck.contains(&process.target))
                .filter(|process| process.is_postgres_in(&dir) || process.target.started <= began)
                .collect();
            if new.is_empty() {
                break;
            }
            struck.extend(new.iter().map(|process| process.target));
            before(&struck)?;
            let (first, rest): (Vec<&Process>, Vec<&Process>) =
                new.into_iter().partition(|process| Some(process.target.pid) == agent);
            for process in first.into_iter().chain(rest) {
                signal(process.target, with);
            }
        }
        match struck.is_empty() {
            true => Err(FaultError::NothingRuns { node: node.to_string() }),
            false => Ok(struck),
        }
    }
}

/// Kills whatever still runs on a data directory that is thrown away. How many are left: none, but
/// for a disk that holds them.
pub fn kill_all(data: &Path) -> usize {
    for _ in 0..KILL_ROUNDS_MAX {
        let left = all_in(&snapshot(), data);
        if left.is_empty() {
            return 0;
        }
        left.into_iter().for_each(|target| signal(target, Signal::KILL));
        std::thread::sleep(KILLED_WITHIN);
    }
    all_in(&snapshot(), data).len()
}

/// Undoes what an earlier supervisor left. To be called before its processes are taken over, since
/// a frozen one can't be asked to end.
pub fn heal_leftovers(layout: &Layout) -> Vec<String> {
    heal_all(layout, |_| true).into_iter().map(|frozen| frozen.node).collect()
}

fn directory(layout: &Layout) -> PathBuf {
    layout.supervisor().join("faults")
}

fn record_path(layout: &Layout, node: &str) -> PathBuf {
    directory(layout).join(format!("{node}.json"))
}

fn write_record(path: &Path, frozen: &Frozen) -> Result<(), FaultError> {
    let failed = |source| FaultError::Io { what: format!("write {}", path.display()), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let text = serde_json::to_string(frozen).map_err(|error| failed(error.into()))?;
    disk::write_whole(path, &text).map_err(failed)
}

/// What is recorded. A torn record still names its node, and that is enough to undo it.
fn records(layout: &Layout) -> Vec<Frozen> {
    let entries = std::fs::read_dir(directory(layout)).into_iter().flatten().flatten();
    let found = entries.map(|entry| entry.path()).filter_map(|path| {
        let node = path.file_name()?.to_str()?.strip_suffix(".json")?.to_string();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        Some(serde_json::from_str(&text).unwrap_or(Frozen {
            node,
            at: String::new(),
            for_ms: 0,
            targets: Vec::new(),
        }))
    });
    let by_node: BTreeMap<String, Frozen> = found.map(|f| (f.node.clone(), f)).collect();
    by_node.into_values().collect()
}

fn heal_all(layout: &Layout, which: impl Fn(&Frozen) -> bool) -> Vec<Frozen> {
    let healed: Vec<Frozen> = records(layout).into_iter().filter(which).collect();
    for frozen in &healed {
        thaw(layout, frozen);
        let path = record_path(layout, &frozen.node);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%error, path = %path.display(), "cannot remove the record of a fault");
        }
    }
    healed
}

/// Wakes everything of the node that is stopped, recorded or not.
fn thaw(layout: &Layout, frozen: &Frozen) {
    let processes = snapshot();
    let dir = layout.node(&frozen.node);
    let recorded = processes.iter().filter(|process| frozen.targets.contains(&process.target));
    for process in belonging(&processes, &dir, None).into_iter().chain(recorded) {
        signal(process.target, Signal::CONT);
    }
}

/// Signals a process if it is still the one that was looked at.
fn signal(target: Target, signal: Signal) {
    if process::started(target.pid) != Some(target.started) {
        return;
    }
    if let Some(pid) = Pid::from_raw(target.pid) {
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests;
