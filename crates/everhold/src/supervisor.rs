//! What every supervisor does: holds the lock of its data directory, describes its processes, and
//! ends them in an order that loses nothing.

use crate::agent::Ask;
use crate::children::{Child, Supervised};
use crate::cluster::Cluster;
use crate::layout::{ClusterRecord, Layout};
use crate::node_file::NodeFile;
use crate::spec::Fault;
use crate::store::Problem;
use crate::troubles::Troubles;
use crate::{disk, installed, log, secrets};
use anyhow::{Context as _, bail};
use everhold_adapters::pki;
use everhold_core::spec::Spec;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// For a clean stop of everything.
pub const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Between two looks at how long certificates last. They have a month left when they are renewed;
/// one that could not be is, as soon as it can.
const RENEW_EVERY: Duration = Duration::from_secs(30);

/// Between two looks at what is to run here.
const LOOK: Duration = Duration::from_secs(1);

/// The name of the gateway's directory on each machine, and of its process and certificate where
/// there is only one.
pub const GATEWAY: &str = "gateway";

/// Faults of spec or machine: printed one per line, exit 2.
#[derive(Debug)]
pub struct Faults(pub Vec<Fault>);

impl std::fmt::Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Fault::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Faults {}

/// To the terminal of whoever started this.
pub fn say(text: impl std::fmt::Display) {
    if log::format() == log::Format::Json {
        let text = text.to_string();
        return tracing::info!("{}", text.trim_start_matches("· ").trim());
    }
    eprintln!("{text}");
}

/// The lock of the data directory, if that exists: two supervisors would fight over everything.
pub fn lock(layout: &Layout) -> anyhow::Result<Option<std::fs::File>> {
    let path = layout.supervisor().join("up.lock");
    if !path.exists() {
        return Ok(None);
    }
    take_lock(&path).map(Some)
}

/// Takes the lock, or says who has it.
pub fn take_lock(path: &Path) -> anyhow::Result<std::fs::File> {
    let file = std::fs::File::create(path).with_context(|| format!("open {}", path.display()))?;
    let flag = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    if rustix::fs::flock(&file, flag).is_err() {
        bail!(
            "E231 another `everhold up` or `everhold run` runs on this data directory ({} is locked); next step: \
             `everhold status`, or end it with Ctrl-C",
            path.display()
        );
    }
    Ok(file)
}

/// The directories, the record of whose they are, and the secrets.
pub fn prepare(layout: &Layout, cluster: &str) -> anyhow::Result<std::fs::File> {
    use std::os::unix::fs::DirBuilderExt;
    // PostgreSQL's own user passes through here to its directories, and sees nothing else.
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(layout.root())?;
    secrets::private_dir(&layout.supervisor())?;
    let lock = take_lock(&layout.supervisor().join("up.lock"))?;
    let text = serde_json::to_string(&ClusterRecord::of(cluster))?;
    disk::write_whole(&layout.cluster_record(), &text).context("write cluster.json")?;
    Ok(lock)
}

/// A process of this program with a role and a node file, in the directory of that name.
pub fn child(layout: &Layout, role: &str, name: &str, file: &NodeFile) -> anyhow::Result<Child> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = layout.node(name);
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&dir)?;
    let path = dir.join("node.toml");
    file.write(&path).with_context(|| format!("write {}", path.display()))?;
    Ok(Child {
        name: name.to_string(),
        arguments: vec![role.to_string(), "--node-file".to_string(), path.display().to_string()],
        dir,
        succeeds: role == GATEWAY,
    })
}

/// Clients first: gateways, then instances; then leaders (their standbys get all they have), then
/// standbys, then agents.
pub async fn stop(cluster: &Arc<Cluster>, supervised: &Supervised, nodes: &[String]) {
    supervised.end(GATEWAY, STOP_WITHIN).await;
    stop_instances(cluster, nodes).await;
    let leaders: Vec<String> = cluster
        .reports()
        .iter()
        .filter(|(_, (report, _))| report.services.values().any(|s| s.primary.is_some()))
        .map(|(node, _)| node.clone())
        .collect();
    let (first, then): (Vec<_>, Vec<_>) = nodes.iter().partition(|node| leaders.contains(node));
    for node in first.into_iter().chain(then) {
        let halted = tokio::time::timeout(STOP_WITHIN, cluster.ask(node, &Ask::Halt)).await;
        if let Ok(Err(error)) = halted {
            say(format_args!("· {node}: {error}"));
        }
        supervised.end(node, STOP_WITHIN).await;
    }
}

/// Side by side, since each is given its grace.
async fn stop_instances(cluster: &Arc<Cluster>, nodes: &[String]) {
    let reports = cluster.reports();
    let some =
        |node: &&String| reports.get(*node).is_some_and(|(report, _)| !report.instances.is_empty());
    let mut asked = JoinSet::new();
    for node in nodes.iter().filter(some) {
        let (cluster, node) = (cluster.clone(), node.clone());
        asked.spawn(async move {
            let stopped = cluster.ask(&node, &Ask::StopInstances);
            if let Ok(Err(error)) = tokio::time::timeout(STOP_WITHIN, stopped).await {
                say(format_args!("· {node}: {error}"));
            }
        });
    }
    asked.join_all().await;
}

/// Keeps what runs here in step with the spec: `take_up` is given the spec that is in force here and
/// the new one, again and again until it succeeds. Returns when it says so.
pub async fn follow<End>(
    cluster: &Cluster,
    mut known: Spec,
    take_up: impl AsyncFn(&Spec, &Spec) -> anyhow::Result<ControlFlow<End>>,
) -> End {
    let mut said = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let spec = cluster.spec();
        if spec == known {
            continue;
        }
        match take_up(&known, &spec).await {
            Ok(ControlFlow::Break(end)) => return end,
            Ok(ControlFlow::Continue(())) => {
                known = spec;
                said.clear();
            }
            Err(error) => {
                let error = format!("{error:#}");
                if error != said {
                    say(format_args!("· the new spec is not in force here yet: {error}"));
                    said = error;
                }
            }
        }
    }
}

/// Where signals arrive. Made first of all: one that came earlier would end the process without
/// stopping anything.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub fn listen() -> anyhow::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when this process is asked to end, or was already. Asked to renew, it becomes the
    /// program that is installed now, or says why it can't and goes on.
    pub async fn end(&mut self) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = self.hangup.recv() => say(format_args!("· {:#}", become_new())),
            }
        }
    }
}

/// Becomes the program that is installed now, with the same arguments and pid. PostgreSQL and the
/// store run on; agents are started anew by the new one, and gateways are succeeded. Returns only on failure, and
/// then everything is as before.
fn become_new() -> anyhow::Error {
    use std::os::unix::process::CommandExt;
    let program = match installed::path() {
        Ok(path) => path,
        Err(error) => return error.into(),
    };
    say(format_args!("· goes on as {}", program.display()));
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new(&program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).exec();
    anyhow::Error::from(error).context(format!("start {}", program.display()))
}

/// A supervisor that could not become the installed program goes on as it was, and is asked again
/// no sooner. Asked while it begins anew, it would end for good: nobody listens for signals yet.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What an agent remembers of asking its supervisor to renew everything, itself too.
#[derive(Default)]
pub struct Renewal(Mutex<Option<Instant>>);

impl Renewal {
    /// Asks it, if `pid` is this process (or nobody is named), it wasn't asked lately, and the
    /// program that is installed can go on with the `copy` of the spec; `note` is called before that.
    pub async fn ask<N>(
        &self,
        pid: Option<i32>,
        copy: &Path,
        note: impl FnOnce() -> N,
    ) -> Result<Option<N>, String> {
        let own = std::process::id();
        if let Some(pid) = pid.filter(|pid| i64::from(*pid) != i64::from(own)) {
            return Err(format!("this agent is process {own}, not {pid}"));
        }
        let mut asked = self.0.lock().await;
        let supervisor = supervisor()?;
        if asked.is_some_and(|at| at.elapsed() < ASKED_AGAIN_AFTER) {
            return Ok(None);
        }
        installed::fits(copy).await?;
        let noted = note();
        let sent = rustix::process::kill_process(supervisor, rustix::process::Signal::HUP);
        sent.map_err(|error| format!("the supervisor can't be told: {error}"))?;
        *asked = Some(Instant::now());
        Ok(Some(noted))
    }
}

/// The supervisor that started this process.
fn supervisor() -> Result<rustix::process::Pid, String> {
    let parent = rustix::process::getppid();
    let is_one = |parent: &rustix::process::Pid| {
        let line = std::fs::read(format!("/proc/{}/cmdline", parent.as_raw_nonzero()));
        let line = line.unwrap_or_default();
        line.split(|byte| *byte == 0).skip(1).any(|word| word == b"run" || word == b"up")
    };
    let nobody = || "no `everhold run` or `everhold up` supervises this agent".to_string();
    parent.filter(is_one).ok_or_else(nobody)
}

/// Certificates of this machine that can't be renewed.
const NOT_RENEWED: Problem = Problem {
    name: "certificate-not-renewed",
    unblocks: "what the error names is mended; it is tried again twice a minute",
};

/// One of them ended: others don't believe it any more.
const ENDED: Problem = Problem {
    name: "certificate-ended",
    unblocks: "it is renewed, which this machine does by itself unless another hold says why not; \
               or its clock is set right",
};

/// Renews certificates while this runs: `issue` gives out those that have little time left.
pub async fn renew(
    issue: impl Fn() -> anyhow::Result<()>,
    certs: Vec<PathBuf>,
    troubles: Troubles,
) {
    loop {
        match issue() {
            Ok(()) => troubles.clear(NOT_RENEWED.name),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "certificates can't be renewed");
                troubles.hold(NOT_RENEWED, format!("{error:#}"));
            }
        }
        let ended =
            certs.iter().find(|cert| pki::ends(cert).is_ok_and(|at| at < SystemTime::now()));
        match ended {
            Some(cert) => {
                let why = format!("the certificate {} has ended", cert.display());
                troubles.hold(ENDED, why);
            }
            None => troubles.clear(ENDED.name),
        }
        tokio::time::sleep(RENEW_EVERY).await;
    }
}
