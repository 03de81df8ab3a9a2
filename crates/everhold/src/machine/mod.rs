//! `everhold run`: one machine of a cluster of many.
//!
//! `everhold init` makes the first machine, `everhold join` each other one; both leave a node file,
//! certificates and the spec on disk, and this runs from them: a member of the store if the spec
//! wants one here, the node's agent, a gateway, the API, and the port where machines join.

pub mod coordinator;
pub mod init;
pub mod join;
mod leave;
mod member;
mod place;

use crate::api;
use crate::children::{Child, Supervised, end_leftover, leftovers};
use crate::cluster::Cluster;
use crate::context::Context;
use crate::keeper::chain;
use crate::layout::Layout;
use crate::node_file::NodeFile;
use crate::spec::local::{Local, RunAs, Search, check_local};
use crate::spec::{StorePorts, record};
use crate::supervisor::{self, Faults, GATEWAY, STOP_WITHIN, Signals, child, say, stop, take_lock};
use crate::{agent, disk, notify, secrets, spec_store, store as care};
use anyhow::{Context as _, bail};
use everhold_adapters::pki::{Authority, CertPair, Host, Usage};
use everhold_core::spec::{Address, NodeSpec, Spec};
use everhold_store::{Etcd, Store};
use leave::Leaving;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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
pub fn spec_copy(layout: &Layout) -> PathBuf {
    layout.supervisor().join("spec.json")
}

/// Where the store's servers are, this node's own first: the loss of another machine then does not
/// cost this one a call.
pub fn endpoints(spec: &Spec, me: &str) -> Vec<String> {
    if let Some(store) = &spec.store {
        return store.etcd.clone();
    }
    let mut nodes: Vec<(&str, &NodeSpec)> = spec.store_nodes().collect();
    nodes.sort_by_key(|(name, _)| *name != me);
    nodes.into_iter().map(|(_, node)| url(&node.address, StorePorts::default().client)).collect()
}

/// `https://HOST:PORT`
pub fn url(address: &Address, port: u16) -> String {
    format!("https://{}", agent::host_and_port(address, port))
}

/// As a node's gateway is called.
pub fn gateway_name(node: &str) -> String {
    format!("{GATEWAY}.{node}")
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
    let issue = |name: &str, hosts: &[Host], usage| {
        let issued = authority.issue(name, hosts, usage);
        issued.map_err(|error| anyhow::anyhow!("E210 {}", chain(&error)))
    };
    let gateway = gateway_name(me);
    let client = |what: &str| issue(&format!("{what}.{me}"), &[], Usage::Client);
    Ok(Certs {
        agent: issue(me, &hosts, Usage::Both)?,
        gateway: issue(&gateway, &[Host::Dns(gateway.clone())], Usage::Both)?,
        api: client("api")?,
        etcd: issue(&format!("etcd.{me}"), &hosts, Usage::Both)?,
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
    let mut signals = Signals::listen()?;
    // At once: the manager watches already if this was another version before.
    tokio::spawn(notify::live());
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
    let authority = Authority::load(&layout.pki())
        .map_err(|error| anyhow::anyhow!("E210 {}", chain(&error)))?;
    let certs = certify(&authority, &me, own)?;
    let store_at = endpoints(&spec, &me);
    let api = node_file(&format!("api.{me}"), &node, &certs.api, &store_at);
    let store = Etcd::new(api.store_config()).await?;

    // Before anything is written there. A store that is away now was claimed by `init`.
    if spec.store.is_some() && store.health().await.is_ok() {
        care::identity::claim(&store, &node.cluster, &layout, false).await?;
    }
    let place = place::Place::new(&node.cluster, &me, &layout)?;
    place.take(&store).await?;
    // One that isn't to keep the store today may be the next one to, if it has the program.
    let keeps = spec.store_nodes().any(|(name, _)| name == me);
    let member = match member::config(&layout, &me, own, &certs.etcd) {
        _ if spec.store.is_some() => None,
        Ok(config) => Some(member::keep(config, store.clone()).await),
        Err(_) if !keeps => None,
        Err(error) => return Err(error),
    };
    if keeps {
        say("· a member of the store");
    }
    // The copy stays one in which this is a node: at the next start it says how to leave.
    let is_node = |spec: &Spec| spec.nodes.contains_key(&me);
    let spec = spec_store::find(&node.cluster, &store, &copy, is_node).await?;
    let leaving = Leaving { me: &me, layout: &layout, node: own, store: &store };
    if !is_node(&spec) {
        notify::ready();
        end_leftover(&layout, GATEWAY, Duration::ZERO).await;
        end_leftover(&layout, &me, STOP_WITHIN).await;
        return leaving.leave(member, &mut signals).await;
    }
    secrets::make_all(&layout, &spec).context("make the secrets")?;

    let machine = Machine { me: me.clone(), layout: layout.clone(), node: node.clone(), certs };
    let supervised = Arc::new(Supervised::start(Vec::new()).await);
    say(format_args!("· agent {me}"));
    supervised.add(machine.agent(&spec)?).await;
    if machine.has_gateway(&spec) {
        say("· gateway");
        supervised.add(machine.gateway(&spec)?).await;
    }
    let cluster =
        Cluster::connect(&api, Some(me.clone()), &layout, spec.clone(), store.clone()).await?;
    let token = secrets::read(&layout.api_token()).context("read the API's token")?;
    let faults = api::Faults { supervised: supervised.clone(), layout: layout.clone() };
    api::serve(spec.api.bind, token, cluster.clone(), Some(faults)).await?;
    let knock = agent::resolve(&own.address.to_string(), own.join_port())?;
    let host =
        join::Host { cluster: node.cluster.clone(), layout: layout.clone(), store: store.clone() };
    join::serve(knock, machine.certs.agent.clone(), host).await?;
    if spec.store.is_none() {
        care::care(&node.cluster, &store, &layout, supervised.troubles());
    }
    let servers = spec.store.is_none().then_some(coordinator::Servers::Members);
    tokio::spawn(coordinator::run(cluster.clone(), me.clone(), store.clone(), servers));
    let (at, of) = (own.clone(), me.clone());
    let Certs { agent, gateway, api, etcd } = &machine.certs;
    let paths = [agent, gateway, api, etcd].map(|pair| pair.cert.clone()).to_vec();
    let issue = move || certify(&authority, &of, &at).map(drop);
    tokio::spawn(supervisor::renew(issue, paths, supervised.troubles().clone()));
    let context = Context {
        cluster: node.cluster.clone(),
        data: layout.root().to_path_buf(),
        api: format!("http://{}", spec.api.bind),
        token_file: layout.api_token(),
    };
    context.publish(&layout)?;
    notify::ready();
    println!("running");
    say(format_args!("  api    http://{}; `everhold status`", spec.api.bind));

    let end = tokio::select! {
        () = signals.end() => End::Asked,
        () = machine.follow(&cluster, &supervised, spec) => End::NoNode,
        why = place.keep(&store, supervised.troubles()) => End::Replaced(why),
    };
    say("· stopping");
    let replaced = match end {
        End::Asked => None,
        End::Replaced(why) => Some(why),
        End::NoNode => {
            supervised.end(GATEWAY, STOP_WITHIN).await;
            // It stops everything by itself.
            supervised.let_end(&me, STOP_WITHIN).await;
            context.withdraw();
            return leaving.leave(member, &mut signals).await;
        }
    };
    notify::stopping();
    let known = cluster.spec();
    // At another address it is the other machine's agent that would be told to stop.
    if replaced.is_none() || known.nodes.get(&me).is_some_and(|it| it.address == own.address) {
        stop(&cluster, &supervised, std::slice::from_ref(&me)).await;
    } else {
        supervised.end(GATEWAY, STOP_WITHIN).await;
        supervised.end(&me, STOP_WITHIN).await;
    }
    if let Some(member) = member {
        match (member.stop(STOP_WITHIN).await, &replaced) {
            // One that was taken out doesn't start to be stopped.
            (Err(error), Some(_)) => tracing::info!(%error, "the store's member has ended"),
            (stopped, _) => stopped?,
        }
    }
    context.withdraw();
    say("· stopped; the data stays");
    replaced.map_or(Ok(()), |why| bail!("{why}"))
}

/// Why a machine ends.
enum End {
    Asked,
    /// Its node is none of the spec any more.
    NoNode,
    /// Another machine is its node.
    Replaced(String),
}

/// What this machine runs of its node.
struct Machine {
    me: String,
    layout: Layout,
    node: NodeFile,
    certs: Certs,
}

impl Machine {
    fn agent(&self, spec: &Spec) -> anyhow::Result<Child> {
        let store = endpoints(spec, &self.me);
        let file = node_file(&self.me, &self.node, &self.certs.agent, &store);
        child(&self.layout, "agent", &self.me, &file)
    }

    fn has_gateway(&self, spec: &Spec) -> bool {
        spec.gateway.nodes.contains(&self.me)
    }

    fn gateway(&self, spec: &Spec) -> anyhow::Result<Child> {
        let store = endpoints(spec, &self.me);
        let name = gateway_name(&self.me);
        let file = node_file(&name, &self.node, &self.certs.gateway, &store);
        child(&self.layout, "gateway", GATEWAY, &file)
    }

    /// Keeps what runs here in step with the spec. Returns when this node is none any more.
    async fn follow(&self, cluster: &Cluster, supervised: &Supervised, known: Spec) {
        let take_up = async |known: &Spec, spec: &Spec| {
            if !spec.nodes.contains_key(&self.me) {
                return Ok(ControlFlow::Break(()));
            }
            self.take_up(supervised, known, spec).await.map(ControlFlow::Continue)
        };
        supervisor::follow(cluster, known, take_up).await
    }

    async fn take_up(
        &self,
        supervised: &Supervised,
        known: &Spec,
        spec: &Spec,
    ) -> anyhow::Result<()> {
        secrets::make_all(&self.layout, spec).context("make the secrets")?;
        disk::write_whole(&spec_copy(&self.layout), &record::to_json(spec)?)?;
        // For their next start: they follow the store by themselves.
        self.agent(spec)?;
        match (self.has_gateway(known), self.has_gateway(spec)) {
            (false, true) => supervised.add(self.gateway(spec)?).await,
            (true, false) => supervised.end(GATEWAY, STOP_WITHIN).await,
            (true, true) => drop(self.gateway(spec)?),
            (false, false) => {}
        }
        Ok(())
    }
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
