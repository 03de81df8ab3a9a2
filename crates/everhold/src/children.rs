//! Processes of Everhold itself under `up`: started in sessions of their own, seen to end, started
//! again; found again after a supervisor was killed.

use crate::layout::Layout;
use crate::troubles::{Troubles, last_words};
use crate::{log, notify};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::process::Command;

/// The first restart comes at once: an agent that died is missed within a second.
const BACKOFF: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A process that ran for so long failed for a new reason: one that can't start ends sooner.
const HEALTHY: Duration = Duration::from_secs(2);
/// For one of an earlier supervisor, once it is told to.
const LEFTOVER_ENDS: Duration = Duration::from_secs(5);
/// Between two looks whether a process has ended that was started by an earlier program.
const LOOK: Duration = Duration::from_secs(1);
/// A log is moved aside at a start when it is larger.
const LOG_BYTES_MAX: u64 = 8 << 20;

/// One process to keep running.
#[derive(Clone, Debug)]
pub struct Child {
    pub name: String,
    pub arguments: Vec<String>,
    /// For its log and the file with its pid.
    pub dir: PathBuf,
    /// It succeeds by itself whoever runs there, which is not ended before.
    pub succeeds: bool,
}

/// The running children by name.
pub struct Supervised {
    pids: Arc<Mutex<BTreeMap<String, Running>>>,
    troubles: Troubles,
}

#[derive(Clone, Debug)]
struct Running {
    dir: PathBuf,
    pid: Option<i32>,
    /// Not to be started again.
    ending: bool,
}

/// Processes of an earlier supervisor that still run: name and pid.
pub fn leftovers(layout: &Layout, names: &[String]) -> Vec<(String, i32)> {
    let found = names.iter().flat_map(|name| {
        let dir = layout.node(name);
        let mut pids = gateways(&dir);
        pids.extend(read_pid(&dir).filter(|pid| is_ours(*pid, &dir) && !pids.contains(pid)));
        pids.into_iter().map(|pid| (name.clone(), pid))
    });
    found.collect()
}

/// The gateways that run with the node file of that directory: one that serves, and those that were
/// succeeded and still have clients.
pub fn gateways(dir: &Path) -> Vec<i32> {
    let is_gateway = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"gateway") && is_ours(*pid, dir)
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_gateway).collect()
}

/// Lets what an earlier supervisor left of that name end by itself, and ends it when it takes too
/// long.
pub async fn end_leftover(layout: &Layout, name: &str, within: Duration) {
    let name = [name.to_string()];
    let until = Instant::now() + within;
    while !leftovers(layout, &name).is_empty() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for (_, pid) in leftovers(layout, &name) {
        end_process(pid, LEFTOVER_ENDS).await;
    }
}

fn pid_file(dir: &Path) -> PathBuf {
    dir.join("process.pid")
}

fn read_pid(dir: &Path) -> Option<i32> {
    std::fs::read_to_string(pid_file(dir)).ok()?.trim().parse().ok()
}

/// The process is an Everhold that was given this directory's node file: a pid alone may have been
/// reused.
fn is_ours(pid: i32, dir: &Path) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let node_file = dir.join("node.toml");
    let wanted = node_file.as_os_str().as_encoded_bytes();
    line.split(|byte| *byte == 0).any(|argument| argument == wanted)
}

impl Supervised {
    /// Starts all of them. What an earlier supervisor left is ended first: agents and gateways keep
    /// nothing that a new one doesn't find.
    pub async fn start(children: Vec<Child>) -> Supervised {
        let pids = Arc::new(Mutex::new(BTreeMap::new()));
        let supervised = Supervised { pids, troubles: Troubles::default() };
        for child in children {
            supervised.add(child).await;
        }
        supervised
    }

    /// One more to keep running.
    pub async fn add(&self, child: Child) {
        match read_pid(&child.dir).filter(|pid| is_ours(*pid, &child.dir)) {
            _ if child.succeeds => {
                for pid in gateways(&child.dir) {
                    tokio::spawn(see_to_end(pid));
                }
            }
            Some(pid) => end_process(pid, LEFTOVER_ENDS).await,
            None => {}
        }
        let running = Running { dir: child.dir.clone(), pid: None, ending: false };
        lock(&self.pids).insert(child.name.clone(), running);
        tokio::spawn(keep(child, self.pids.clone(), self.troubles.clone()));
    }

    /// What doesn't stay, and why.
    pub fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// The pid of a child, if it runs.
    pub fn pid(&self, name: &str) -> Option<i32> {
        lock(&self.pids).get(name).and_then(|running| running.pid)
    }

    /// Lets a child end by itself, for good; ends it when it takes too long.
    pub async fn let_end(&self, name: &str, within: Duration) {
        if let Some(running) = lock(&self.pids).get_mut(name) {
            running.ending = true;
        }
        let until = Instant::now() + within;
        while self.pid(name).is_some() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.end(name, within).await;
    }

    /// Ends a child for good, and those that it succeeded.
    pub async fn end(&self, name: &str, within: Duration) {
        let Some(running) = lock(&self.pids).get_mut(name).map(|running| {
            running.ending = true;
            running.clone()
        }) else {
            return;
        };
        if let Some(pid) = running.pid {
            end_process(pid, within).await;
        }
        for pid in gateways(&running.dir) {
            end_process(pid, within).await;
        }
    }
}

fn lock(
    pids: &Mutex<BTreeMap<String, Running>>,
) -> std::sync::MutexGuard<'_, BTreeMap<String, Running>> {
    pids.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keep(child: Child, pids: Arc<Mutex<BTreeMap<String, Running>>>, troubles: Troubles) {
    let mut backoff = BACKOFF;
    let log = child.dir.join("log");
    loop {
        match spawn(&child) {
            Ok(mut process) => {
                let pid = process.id().and_then(|pid| i32::try_from(pid).ok());
                if let (Some(pid), Some(running)) = (pid, lock(&pids).get_mut(&child.name)) {
                    running.pid = Some(pid);
                    let _ = std::fs::write(pid_file(&child.dir), pid.to_string());
                }
                let early = tokio::time::timeout(HEALTHY, process.wait()).await;
                let healthy = early.is_err();
                if healthy {
                    troubles.clear(&child.name);
                    backoff = BACKOFF;
                }
                let ended = match early {
                    Ok(ended) => ended,
                    Err(_) => process.wait().await,
                };
                if let Some(running) = lock(&pids).get_mut(&child.name) {
                    running.pid = None;
                    if running.ending {
                        let _ = std::fs::remove_file(pid_file(&child.dir));
                        return;
                    }
                }
                tracing::warn!(name = child.name, ?ended, log = %log.display(), "ended; it is started again");
                if !healthy {
                    troubles.note(&child.name, last_words(&log));
                }
            }
            Err(error) => {
                tracing::error!(name = child.name, %error, "cannot start it");
                troubles.note(&child.name, format!("cannot start it: {error}"));
            }
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 4).min(BACKOFF_MAX);
    }
}

fn spawn(child: &Child) -> std::io::Result<tokio::process::Child> {
    let log = child.dir.join("log");
    if std::fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        std::fs::rename(&log, child.dir.join("log.1"))?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log)?;
    // This very program, also after its file was replaced by a newer version. In a group of its own,
    // so that Ctrl-C in the terminal reaches the supervisor alone.
    let mut command = Command::new("/proc/self/exe");
    for name in notify::VARIABLES {
        command.env_remove(name);
    }
    command
        .arg0("everhold")
        .args(&child.arguments)
        .env(log::VARIABLE, log::format().as_str())
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
}

/// Ends a process, by force if it takes longer.
pub async fn end_process(pid: i32, within: Duration) {
    let Some(target) = rustix::process::Pid::from_raw(pid) else { return };
    let until = Instant::now() + within;
    let _ = rustix::process::kill_process(target, rustix::process::Signal::TERM);
    while rustix::process::test_kill_process(target).is_ok() && !is_zombie(pid) {
        if Instant::now() > until {
            let _ = rustix::process::kill_process(target, rustix::process::Signal::KILL);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It is this process's own child if the supervisor became another program meanwhile.
    let _ = rustix::process::waitpid(Some(target), rustix::process::WaitOptions::NOHANG);
}

/// Takes notice of the end of a process that this one started before it became another program.
async fn see_to_end(pid: i32) {
    let Some(target) = rustix::process::Pid::from_raw(pid) else { return };
    while let Ok(None) =
        rustix::process::waitpid(Some(target), rustix::process::WaitOptions::NOHANG)
    {
        tokio::time::sleep(LOOK).await;
    }
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}
