//! What every supervisor does: holds the lock of its data directory, describes its processes, and
//! ends them in an order that loses nothing.

use crate::agent::Ask;
use crate::children::{Child, Supervised};
use crate::cluster::Cluster;
use crate::layout::{ClusterRecord, Layout};
use crate::node_file::NodeFile;
use crate::spec::Fault;
use crate::{disk, secrets};
use anyhow::{Context as _, bail};
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// For a clean stop of everything.
pub const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Between two looks at how long certificates last: they have a month left when they are renewed.
const RENEW_EVERY: Duration = Duration::from_secs(6 * 3_600);

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
    })
}

/// Clients first, then leaders (their standbys get all they have), then standbys, then agents.
pub async fn stop(cluster: &Cluster, supervised: &Supervised, nodes: &[String]) {
    supervised.end(GATEWAY, STOP_WITHIN).await;
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

/// Returns when somebody asks this process to end.
pub async fn asked_to_end() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Renews certificates while this runs, and at once when `asked`: `issue` gives out those that are
/// missing or have little time left.
pub async fn renew(issue: impl Fn() -> anyhow::Result<()>, mut asked: Option<Signal>) {
    loop {
        let asked = async {
            match &mut asked {
                Some(signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        };
        let _ = tokio::time::timeout(RENEW_EVERY, asked).await;
        if let Err(error) = issue() {
            tracing::error!(error = format!("{error:#}"), "certificates can't be renewed");
        }
    }
}
