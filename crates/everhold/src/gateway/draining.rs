//! Gateways that were succeeded and still have connections: each leaves a mark beside the node file, by
//! which the one that serves tells of them.

use crate::children::gateways;
use crate::clock;
use everhold_core::http::cache::purge::Purged;
use everhold_gateway::Gateway;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Processes of one gateway that drain at a time; the oldest ends for the next one. Each takes some ten
/// megabytes, and with a WebSocket open may take its full time. HAProxy has `mworker-max-reloads`
/// for it.
const AT_ONCE_MAX: usize = 16;
/// Between two words of how many connections are left.
const TELL: Duration = Duration::from_millis(500);

/// One of them, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    pub pid: i32,
    pub since: String,
    /// That have not ended.
    pub connections: usize,
    /// What it has on its way to instances, by service and instance. `None`: it doesn't tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
    /// Up to which purge it has carried out all; `None`: it doesn't tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purged: Option<Purged>,
}

type Requests = BTreeMap<String, BTreeMap<String, u32>>;

impl Draining {
    /// It says that nothing is on its way to that instance.
    pub fn has_left(&self, service: &str, instance: &str) -> bool {
        let on_its_way =
            |all: &Requests| all.get(service).is_some_and(|it| it.contains_key(instance));
        self.connections == 0 || self.requests.as_ref().is_some_and(|all| !on_its_way(all))
    }
}

/// This process's own; it goes with it.
pub struct Mark {
    path: PathBuf,
    told: Draining,
}

impl Mark {
    pub fn new(dir: &Path, connections: usize) -> io::Result<Mark> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let dir = dir.join("draining");
        std::fs::create_dir_all(&dir)?;
        let told =
            Draining { pid, since: clock::wall(), connections, requests: None, purged: None };
        let mark = Mark { path: dir.join(pid.to_string()), told };
        mark.write()?;
        Ok(mark)
    }

    /// Takes away what an earlier process with this one's number left.
    pub fn forget(dir: &Path) {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let _ = std::fs::remove_file(dir.join("draining").join(own.to_string()));
    }

    /// Tells what is left for as long as it is polled. A disk that hangs holds up nobody else.
    pub async fn follow(mut self, gateway: Arc<Gateway>, purged: watch::Receiver<Option<Purged>>) {
        loop {
            tokio::time::sleep(TELL).await;
            let (connections, requests) = (gateway.connections(), Some(on_their_way(&gateway)));
            let purged = purged.borrow().clone();
            let told = Draining { connections, requests, purged, ..self.told.clone() };
            if self.told == told {
                continue;
            }
            self.told = told;
            let write = move || {
                // One that is missed is told of in the next.
                let _ = self.write();
                self
            };
            match tokio::task::spawn_blocking(write).await {
                Ok(mark) => self = mark,
                Err(_) => return,
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        let new = self.path.with_extension("new");
        std::fs::write(&new, serde_json::to_string(&self.told)?)?;
        std::fs::rename(new, &self.path)
    }
}

fn on_their_way(gateway: &Gateway) -> Requests {
    let services = gateway.services().into_iter().map(|(service, all)| {
        let some = all.into_iter().filter(|(_, it)| it.requests > 0);
        (service, some.map(|(name, it)| (name, it.requests)).collect::<BTreeMap<_, _>>())
    });
    services.filter(|(_, some)| !some.is_empty()).collect()
}

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Those that are still there, the one that began first in front. Marks of others are taken away.
pub fn list(dir: &Path) -> Vec<Draining> {
    let (alive, dir) = (gateways(dir), dir.join("draining"));
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let told = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.split('.').next()?.parse().ok()?;
        if !alive.contains(&pid) {
            let _ = std::fs::remove_file(entry.path());
            return None;
        }
        let text = std::fs::read_to_string(entry.path()).ok()?;
        serde_json::from_str(&text).ok().filter(|_| entry.path().extension().is_none())
    });
    let mut all: Vec<Draining> = told.collect();
    all.sort_by(|a, b| (&a.since, a.pid).cmp(&(&b.since, b.pid)));
    all
}

/// Processes of this gateway that don't drain, but for this one.
pub fn others(dir: &Path) -> Vec<i32> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let draining = list(dir);
    let is_other = |pid: &i32| *pid != own && draining.iter().all(|it| it.pid != *pid);
    gateways(dir).into_iter().filter(is_other).collect()
}

/// Ends those that are too many.
pub fn bound(dir: &Path) {
    let all = list(dir);
    for old in &all[..all.len().saturating_sub(AT_ONCE_MAX)] {
        tracing::warn!(pid = old.pid, connections = old.connections, "too many drain; it is ended");
        if let Some(pid) = Pid::from_raw(old.pid) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}
