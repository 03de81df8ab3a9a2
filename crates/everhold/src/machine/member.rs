//! This machine's member of the store: begun when the others have added it, kept running, and begun
//! anew when it was taken out or its data is gone.

use super::url;
use crate::agent;
use crate::layout::Layout;
use crate::spec::StorePorts;
use crate::spec::local::Search;
use everhold_adapters::etcd::{Beginning, Etcd as Server, EtcdConfig, QUOTA_BYTES};
use everhold_adapters::pki::CertPair;
use everhold_core::spec::NodeSpec;
use everhold_store::Etcd;
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Between two tries to start, and two looks at whether it was added.
const AGAIN: Duration = Duration::from_millis(500);

/// How this machine's member runs.
#[derive(Clone)]
pub struct Config {
    server: EtcdConfig,
    peer_url: String,
}

pub fn config(
    layout: &Layout,
    me: &str,
    node: &NodeSpec,
    certs: &CertPair,
) -> anyhow::Result<Config> {
    let ports = StorePorts::default();
    let host = node.address.to_string();
    let binary = Search::from_env().etcd().map_err(|fault| anyhow::anyhow!("{fault}"))?;
    let server = EtcdConfig {
        name: me.to_string(),
        data_dir: layout.etcd(),
        client_addr: agent::resolve(&host, ports.client)?,
        peer_addr: agent::resolve(&host, ports.peer)?,
        beginning: Beginning::Alone,
        quota_bytes: QUOTA_BYTES,
        certs: certs.clone(),
        binary: Some(binary),
    };
    Ok(Config { server, peer_url: url(&node.address, ports.peer) })
}

impl Config {
    /// The member as it runs, for those that begin a store.
    pub fn server(&self) -> &EtcdConfig {
        &self.server
    }
}

/// A member that is kept running.
pub struct Kept {
    config: Config,
    task: JoinHandle<()>,
}

impl Kept {
    /// Ends it cleanly, for as long as nobody keeps it again.
    pub async fn stop(self, within: Duration) -> anyhow::Result<()> {
        self.task.abort();
        let _ = self.task.await;
        if Server::has_data(&self.config.server.data_dir) {
            Server::start(&self.config.server).await?.stop(within).await?;
        }
        Ok(())
    }
}

/// Keeps the member running. Returns when it listens, if it has data; else at once.
pub async fn keep(config: Config, store: Etcd) -> Kept {
    let mut running = None;
    if Server::has_data(&config.server.data_dir) {
        running = start(&config.server).await;
    }
    let task = tokio::spawn(go_on(config.clone(), store, running));
    Kept { config, task }
}

async fn go_on(mut config: Config, store: Etcd, mut running: Option<Server>) {
    loop {
        if let Some(mut server) = running.take() {
            let ended = server.wait_exit().await;
            tracing::warn!(?ended, "the store's member ended; it is started again");
            set_aside_if_removed(&config, &store).await;
        }
        if !Server::has_data(&config.server.data_dir) {
            match added(&config, &store).await {
                Some(beginning) => config.server.beginning = beginning,
                None => {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
        }
        running = start(&config.server).await;
        if running.is_none() {
            tokio::time::sleep(AGAIN).await;
            set_aside_if_removed(&config, &store).await;
        }
    }
}

async fn start(config: &EtcdConfig) -> Option<Server> {
    match Server::start(config).await {
        Ok(server) => Some(server),
        Err(error) => {
            tracing::error!(%error, "cannot start the store's member");
            None
        }
    }
}

/// How to begin, if the members have added this machine's and it never ran. One that ran and whose
/// data is gone has forgotten its votes: it is taken out, to be added anew.
async fn added(config: &Config, store: &Etcd) -> Option<Beginning> {
    let members = store.members().await.ok()?;
    let mine = members.iter().find(|member| member.peer_urls.contains(&config.peer_url))?;
    if !mine.name.is_empty() {
        tracing::warn!("the data of the store's member is gone; it is taken out and begins anew");
        if let Err(error) = store.remove_member(mine.id).await {
            tracing::warn!(%error, "it can't be taken out yet");
        }
        return None;
    }
    let name = |member: &everhold_store::Member| match member.id == mine.id {
        true => config.server.name.clone(),
        false => member.name.clone(),
    };
    let all =
        members.iter().map(|it| (name(it), it.peer_urls.first().cloned().unwrap_or_default()));
    Some(Beginning::Added(all.collect()))
}

/// Moves the data of a member that was taken out away: it may never vote again.
async fn set_aside_if_removed(config: &Config, store: &Etcd) {
    let Ok(members) = store.members().await else { return };
    if members.iter().any(|member| member.peer_urls.contains(&config.peer_url)) {
        return;
    }
    let data = config.server.data_dir.join("data");
    let aside = free_name(&config.server.data_dir);
    if data.is_dir() {
        tracing::warn!(kept = %aside.display(), "the store's member was taken out; its data is kept aside");
        if let Err(error) = std::fs::rename(&data, &aside) {
            tracing::error!(%error, "it can't be moved");
        }
    }
}

fn free_name(dir: &Path) -> std::path::PathBuf {
    let mut names = (1..).map(|n| dir.join(format!("removed-{n}")));
    names.find(|path| !path.exists()).unwrap_or_else(|| dir.join("removed"))
}
