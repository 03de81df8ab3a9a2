//! `everhold run`: one machine of a cluster of many.
//!
//! `everhold init` makes the first machine, `everhold join` each other one; both leave a node file,
//! certificates and the spec on disk, and this runs from them: a member of the store if the spec
//! wants one here, the node's agent, a gateway, the API, and the port where machines join.

pub mod coordinator;
pub mod init;
pub mod join;
mod member;

use crate::api;
use crate::children::{Supervised, leftovers};
use crate::cluster::Cluster;
use crate::context::Context;
use crate::layout::Layout;
use crate::node_file::NodeFile;
use crate::spec::local::{Local, RunAs, Search, check_local};
use crate::spec::{StorePorts, record};
use crate::supervisor::{
    self, Faults, GATEWAY, STOP_WITHIN, asked_to_end, child, say, stop, take_lock,
};
use crate::{agent, notify, secrets, spec_store};
use anyhow::{Context as _, bail};
use everhold_adapters::pki::{Authority, CertPair, Host, Usage};
use everhold_core::spec::{Address, NodeSpec, Spec};
use everhold_store::Etcd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Where the node file of a machine stands unless another place is named.
pub const NODE_FILE: &str = "/etc/everhold/node.toml";

/// The record that a machine has joined as this node.
pub fn joined_key(cluster: &str, node: &str) -> String {
    format!("{}{node}", joined_prefix(cluster))
}

pub fn joined_prefix(cluster: &str) -> String {
    format!("/everhold/{cluster}/node/")
}

/// The machine's copy of the spec, for when the store is out of reach.
fn spec_copy(layout: &Layout) -> PathBuf {
    layout.supervisor().join("spec.json")
}

/// Where the store's members are, this node's own first: the loss of another machine then does not
/// cost this one a call.
fn endpoints(spec: &Spec, me: &str) -> Vec<String> {
    let mut nodes: Vec<(&str, &NodeSpec)> = spec.store_nodes().collect();
    nodes.sort_by_key(|(name, _)| *name != me);
    nodes.into_iter().map(|(_, node)| url(&node.address, StorePorts::default().client)).collect()
}

/// `https://HOST:PORT`
fn url(address: &Address, port: u16) -> String {
    format!("https://{}", agent::host_and_port(address, port))
}

/// A certificate for each process of this machine.
struct Certs {
    agent: CertPair,
    gateway: CertPair,
    api: CertPair,
    etcd: CertPair,
}

fn certify(authority: &Authority, me: &str, node: &NodeSpec) -> anyhow::Result<Certs> {
    let at = match &node.address {
        Address::Ip(ip) => Host::Ip(*ip),
        Address::Host(host) => Host::Dns(host.clone()),
    };
    let hosts = [Host::Dns(me.to_string()), at];
    let client = |what: &str| authority.issue(&format!("{what}.{me}"), &[], Usage::Client);
    Ok(Certs {
        agent: authority.issue(me, &hosts, Usage::Both)?,
        gateway: client(GATEWAY)?,
        api: client("api")?,
        etcd: authority.issue(&format!("etcd.{me}"), &hosts, Usage::Both)?,
    })
}

fn node_file(name: &str, of: &NodeFile, pair: &CertPair, store: &[String]) -> NodeFile {
    NodeFile {
        name: name.to_string(),
        store: store.to_vec(),
        ca: pair.ca.clone(),
        cert: pair.cert.clone(),
        key: pair.key.clone(),
        ..of.clone()
    }
}

/// Everything wrong with this machine for its part of the spec.
fn check(spec: &Spec, layout: &Layout, me: &str) -> anyhow::Result<()> {
    let run_as = RunAs::discover().map_err(|fault| Faults(vec![fault]))?;
    let search = Search::from_env();
    let local = Local {
        layout,
        run_as: &run_as,
        search: &search,
        nodes: vec![me.to_string()],
        gateway: spec.gateway.nodes.iter().any(|node| node == me),
        store: spec.store_nodes().any(|(name, _)| name == me).then(StorePorts::default),
    };
    let faults = check_local(spec, &local);
    if faults.is_empty() { Ok(()) } else { Err(Faults(faults).into()) }
}

/// Runs until SIGINT or SIGTERM.
pub async fn run(path: &Path) -> anyhow::Result<()> {
    let node = NodeFile::read(path)?;
    let me = node.name.clone();
    let layout = Layout::new(&node.data)?;
    let _lock = take_lock(&layout.supervisor().join("up.lock"))?;
    let copy = spec_copy(&layout);
    let text = std::fs::read_to_string(&copy).with_context(|| {
        format!(
            "E240 there is no copy of the spec, {}; next step: `everhold join` again",
            copy.display()
        )
    })?;
    let spec = record::from_json(&text)?;
    let own = spec.nodes.get(&me).with_context(|| {
        format!("E221 {me} is not a node of the spec; next step: add it and apply")
    })?;
    if leftovers(&layout, &[me.clone(), GATEWAY.to_string()]).is_empty() {
        check(&spec, &layout, &me)?;
    }
    say(format_args!("· node {me} of cluster {}, data in {}", node.cluster, node.data.display()));
    secrets::make_all(&layout, &spec).context("make the secrets")?;
    let authority = Authority::load(&layout.pki())?;
    let certs = certify(&authority, &me, own)?;
    let store_at = endpoints(&spec, &me);
    let api = node_file(&format!("api.{me}"), &node, &certs.api, &store_at);
    let store = Etcd::new(api.store_config()).await?;

    let member = match spec.store_nodes().any(|(name, _)| name == me) {
        true => {
            say("· a member of the store");
            Some(member::keep(member::config(&layout, &me, own, &certs.etcd)?, store.clone()).await)
        }
        false => None,
    };
    let spec = spec_store::find(&node.cluster, &store, &copy).await?;
    secrets::make_all(&layout, &spec).context("make the secrets")?;

    say(format_args!("· agent {me}"));
    let mut children =
        vec![child(&layout, "agent", &me, &node_file(&me, &node, &certs.agent, &store_at))?];
    if spec.gateway.nodes.contains(&me) {
        say("· gateway");
        let file = node_file(&format!("{GATEWAY}.{me}"), &node, &certs.gateway, &store_at);
        children.push(child(&layout, "gateway", GATEWAY, &file)?);
    }
    let supervised = Arc::new(Supervised::start(children).await);
    let cluster =
        Cluster::connect(&api, Some(me.clone()), &layout, spec.clone(), store.clone()).await?;
    let token = secrets::read(&layout.api_token()).context("read the API's token")?;
    let faults = api::Faults { supervised: supervised.clone(), layout: layout.clone() };
    api::serve(spec.api.bind, token, cluster.clone(), Some(faults)).await?;
    let knock = agent::resolve(&own.address.to_string(), own.join_port())?;
    let host =
        join::Host { cluster: node.cluster.clone(), layout: layout.clone(), store: store.clone() };
    join::serve(knock, certs.agent.clone(), host).await?;
    tokio::spawn(coordinator::run(node.cluster.clone(), me.clone(), store));
    let place = own.clone();
    let of = me.clone();
    let reload = signal(SignalKind::hangup())?;
    let issue = move || certify(&authority, &of, &place).map(drop);
    tokio::spawn(supervisor::renew(issue, Some(reload)));
    let context = Context {
        cluster: node.cluster.clone(),
        data: layout.root().to_path_buf(),
        api: format!("http://{}", spec.api.bind),
        token_file: layout.api_token(),
    };
    context.publish(&layout)?;
    notify::ready();
    tokio::spawn(notify::live());
    println!("running");
    say(format_args!("  api    http://{}; `everhold status`", spec.api.bind));

    asked_to_end().await?;
    notify::stopping();
    say("· stopping");
    stop(&cluster, &supervised, &[me]).await;
    if let Some(member) = member {
        member.stop(STOP_WITHIN).await?;
    }
    context.withdraw();
    say("· stopped; the data stays");
    Ok(())
}

/// The directory of a machine that begins: fresh, or begun by an earlier try for this cluster.
fn begin(layout: &Layout, cluster: &str, file: &Path) -> anyhow::Result<std::fs::File> {
    if file.exists() {
        bail!(
            "E241 this machine is part of a cluster already, by {}; next step: `everhold run`",
            file.display()
        );
    }
    if let Ok(text) = std::fs::read_to_string(layout.cluster_record()) {
        let record: crate::layout::ClusterRecord = serde_json::from_str(&text)
            .with_context(|| format!("{} is torn", layout.cluster_record().display()))?;
        if record.cluster != cluster {
            bail!(
                "E242 {} holds data of cluster {}; next step: choose another directory with --data",
                layout.root().display(),
                record.cluster
            );
        }
    }
    supervisor::prepare(layout, cluster)
}

/// The node file, written last: what has one is complete.
fn finish(node: &NodeFile, file: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = file.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    node.write(file).with_context(|| format!("write {}", file.display()))
}
