//! `everhold up`: the whole stack on one machine, in the foreground.
//!
//! A supervisor: etcd, each node's agent and the gateway are processes of their own that run the
//! same code as `everhold agent` and `everhold gateway`. They outlive a killed supervisor, and the
//! next one takes them over.

use crate::api;
use crate::children::Supervised;
use crate::cluster::Cluster;
use crate::context::Context;
use crate::keeper::chain;
use crate::layout::Layout;
use crate::link::Tls;
use crate::machine::{coordinator, spec_copy};
use crate::node_file::{NodeFile, StoreTls};
use crate::spec::local::{Local, RunAs, Search, check_local};
use crate::spec::{self, StorePorts, record};
use crate::supervisor::{
    self, Faults, GATEWAY, STOP_WITHIN, Signals, child, lock, prepare, say, stop,
};
use crate::troubles::Troubles;
use crate::{disk, installed, secrets, spec_store, store as care};
use anyhow::{Context as _, bail};
use everhold_adapters::etcd::{Beginning, Etcd, EtcdConfig, QUOTA_BYTES};
use everhold_adapters::pki::{Authority, CertPair, Host, PkiError, Usage};
use everhold_core::kv::{Expect, Txn, TxnOutcome};
use everhold_core::run::RunState;
use everhold_core::spec::{ADDRESS, ListenerSpec, Protocol, SAMPLE, SAMPLE_BIND, Spec};
use everhold_store::Store;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    pub spec: Option<PathBuf>,
    pub data: PathBuf,
    pub store: StorePorts,
}

/// The API's own certificate.
const API: &str = "api";
/// A clone of an empty database takes seconds; one of a large one goes on after the ready line.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// Between two starts of an etcd that doesn't start.
const ETCD_AGAIN: Duration = Duration::from_secs(1);

/// Runs until SIGINT or SIGTERM.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut signals = Signals::listen()?;
    let (spec, taken) = match &options.spec {
        Some(path) => (spec::load_file(path, options.store).map_err(Faults)?, None),
        None => unasked()?,
    };
    let layout = Layout::new(&options.data)?;
    let spec = same_store(&layout, spec, options.spec.is_some())?;
    let data = options.data.display();
    // The lock first: another `up` would make every port look taken.
    let lock = lock(&layout)?;
    let left = crate::children::leftovers(&layout, &names(&spec));
    if left.is_empty() {
        check(&spec, &layout, options.store)?;
    } else {
        say(format_args!("· {} processes of an earlier start are taken over", left.len()));
    }
    say(format_args!("· data directory {data}, cluster {}", spec.cluster));
    let lock = match lock {
        Some(lock) => lock,
        None => prepare(&layout, &spec.cluster)?,
    };
    let certs = certify(&layout, &spec)?;
    let store_at = match &spec.store {
        Some(store) => store.etcd.clone(),
        None => vec![format!("127.0.0.1:{}", options.store.client)],
    };
    say(format_args!("· etcd on {}", store_at.join(", ")));
    let member = match &spec.store {
        Some(_) => None,
        None => Some(etcd_config(&layout, &spec, &certs, options.store)?),
    };
    let etcd = match &member {
        Some(member) => Some(Etcd::start(member).await?),
        None => None,
    };
    let cluster_name = spec.cluster.clone();
    let store_tls = StoreTls::of(&spec);
    let node_file = |name: &str, pair: &CertPair| NodeFile {
        name: name.to_string(),
        cluster: cluster_name.clone(),
        data: layout.root().to_path_buf(),
        store: store_at.clone(),
        ca: pair.ca.clone(),
        cert: pair.cert.clone(),
        key: pair.key.clone(),
        store_tls: store_tls.clone(),
    };
    let own = node_file(API, &certs.api);
    let store = everhold_store::Etcd::new(own.store_config()).await?;
    care::identity::claim(&store, &spec.cluster, &layout, member.is_some()).await?;
    let spec = put_spec(&store, spec, options.spec.is_some()).await?;
    if let Some(at) = taken.filter(|_| spec.http(SAMPLE).is_none()) {
        say(format_args!("· {at} is taken, so the sample service {SAMPLE} is left out"));
    }
    // The store's may have other nodes than the one it began with.
    let certs = certify(&layout, &spec)?;
    if spec.store.is_some() {
        // Without it a start without a spec would not find the store.
        disk::write_whole(&spec_copy(&layout), &record::to_json(&spec)?)?;
    }

    let mut children = Vec::new();
    for (name, pair) in &certs.nodes {
        say(format_args!("· agent {name}"));
        children.push(child(&layout, "agent", name, &node_file(name, pair))?);
    }
    say("· gateway");
    children.push(child(&layout, "gateway", GATEWAY, &node_file(GATEWAY, &certs.gateway))?);
    for node in crate::fault::heal_leftovers(&layout) {
        say(format_args!("· {node} was still frozen by a fault; it is woken"));
    }
    let supervised = Arc::new(Supervised::start(children).await);
    let cluster = Cluster::connect(&own, None, &layout, spec.clone(), store.clone()).await?;
    if member.is_some() {
        care::care(&spec.cluster, &store, &layout, supervised.troubles());
    }
    let servers = member.is_some().then_some(coordinator::Servers::Alone);
    tokio::spawn(coordinator::run(cluster.clone(), "up".to_string(), store, servers));
    let token_file = layout.api_token();
    let token = secrets::read(&token_file).context("read the API's token")?;
    let faults = api::Faults { supervised: supervised.clone(), layout: layout.clone() };
    api::serve(spec.api.bind, token, cluster.clone(), Some(faults)).await?;
    let of = (layout.clone(), cluster.clone());
    let pairs = [&certs.etcd, &certs.gateway, &certs.api].into_iter();
    let paths = pairs.chain(certs.nodes.iter().map(|(_, pair)| pair));
    let paths = paths.map(|pair| pair.cert.clone()).collect();
    let issue = move || certify(&of.0, &of.1.spec()).map(drop);
    tokio::spawn(supervisor::renew(issue, paths, supervised.troubles().clone()));
    let context = Context {
        cluster: spec.cluster.clone(),
        data: layout.root().to_path_buf(),
        api: format!("http://{}", spec.api.bind),
        token_file,
    };
    context.publish(&layout)?;
    wait_ready(&cluster, &spec).await;
    greet(&spec, began);

    let troubles = supervised.troubles().clone();
    let server = etcd.zip(member.clone());
    let etcd = server.map(|(etcd, member)| tokio::spawn(keep_etcd(etcd, member, troubles)));
    tokio::select! {
        () = signals.end() => {}
        never = follow_spec(&cluster, &supervised, &layout, node_file, spec.clone()) => match never {},
    }
    say("· stopping");
    stop(&cluster, &supervised, &cluster.nodes()).await;
    if let (Some(kept), Some(member)) = (etcd, member) {
        kept.abort();
        if let Ok(running) = Etcd::start(&member).await {
            running.stop(STOP_WITHIN).await?;
        }
    }
    drop(lock);
    context.withdraw();
    say("· stopped; the data stays");
    Ok(())
}

/// Keeps the agents in step with the nodes of the spec, for ever.
async fn follow_spec(
    cluster: &Cluster,
    supervised: &Supervised,
    layout: &Layout,
    node_file: impl Fn(&str, &CertPair) -> NodeFile,
    known: Spec,
) -> Infallible {
    let take_up = async |known: &Spec, spec: &Spec| {
        // What can fail comes first: tried again, the rest happens once.
        let certs = certify(layout, spec)?;
        let agents = certs
            .nodes
            .iter()
            .map(|(name, pair)| child(layout, "agent", name, &node_file(name, pair)));
        let agents = agents.collect::<anyhow::Result<Vec<_>>>()?;
        for gone in known.nodes.keys().filter(|name| !spec.nodes.contains_key(*name)) {
            say(format_args!("· {gone} is no node any more; its data stays"));
            supervised.let_end(gone, STOP_WITHIN).await;
        }
        for agent in agents.into_iter().filter(|it| !known.nodes.contains_key(&it.name)) {
            say(format_args!("· agent {}", agent.name));
            supervised.add(agent).await;
        }
        Ok(ControlFlow::Continue(()))
    };
    supervisor::follow(cluster, known, take_up).await
}

/// What runs if nobody says what: with the sample, unless one of its addresses is taken.
fn unasked() -> anyhow::Result<(Spec, Option<SocketAddr>)> {
    let program = installed::path().context("find this program")?;
    // Nobody else may be let into the directory that it was built in.
    let open =
        |dir: &Path| std::fs::metadata(dir).is_ok_and(|it| it.permissions().mode() & 0o001 != 0);
    let root = rustix::process::geteuid().is_root();
    let user = (root && !program.ancestors().all(open)).then_some("root");
    let program = program.to_str().context("the path of this program is not UTF-8")?;
    let tour = Spec::tour(program, user);
    let placed = tour.http_services().flat_map(|(_, http)| http.placed());
    let addresses = placed.map(|(_, it)| SocketAddr::new(ADDRESS, it.port));
    let taken = addresses.chain([SAMPLE_BIND]).find(|at| TcpListener::bind(at).is_err());
    let spec = if taken.is_none() { tour } else { Spec::default_for_one_machine() };
    Ok((spec, taken))
}

/// The spec to start with: its store is the one that the cluster of this directory began with.
fn same_store(layout: &Layout, spec: Spec, given: bool) -> anyhow::Result<Spec> {
    let known = std::fs::read_to_string(spec_copy(layout)).ok();
    let known = known.map(|text| record::from_json(&text)).transpose()?;
    match known {
        Some(known) if !given => Ok(known),
        Some(known) => {
            let mut new = spec.clone();
            new.keep(&known);
            crate::apply::refuse_impossible(&known, &new)?;
            Ok(spec)
        }
        None if spec.store.is_some() && Etcd::has_data(&layout.etcd()) => bail!(
            "E234 a running cluster can't make this change: store.etcd: what was agreed is in the \
             store of this data directory; next step: leave [store] out, or choose another \
             directory with --data"
        ),
        None => Ok(spec),
    }
}

fn names(spec: &Spec) -> Vec<String> {
    spec.nodes.keys().cloned().chain([GATEWAY.to_string()]).collect()
}

/// Everything wrong with spec and machine at once, before anything is touched.
pub fn check(spec: &Spec, layout: &Layout, store: StorePorts) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    match RunAs::discover() {
        Ok(run_as) => {
            let search = Search::from_env();
            let local = Local::all(spec, layout, &run_as, &search, store);
            faults.extend(check_local(spec, &local));
        }
        Err(fault) => faults.push(fault),
    }
    if faults.is_empty() { Ok(()) } else { Err(Faults(faults).into()) }
}

struct Certs {
    etcd: CertPair,
    nodes: Vec<(String, CertPair)>,
    gateway: CertPair,
    api: CertPair,
}

/// The cluster's own authority and a certificate for each process.
fn certify(layout: &Layout, spec: &Spec) -> anyhow::Result<Certs> {
    secrets::make_all(layout, spec).context("make the secrets")?;
    let unusable = |error: PkiError| anyhow::anyhow!("E210 {}", chain(&error));
    let authority = Authority::open(&layout.pki()).map_err(unusable)?;
    let local = || Host::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let issue =
        |name: &str, hosts: &[Host], usage| authority.issue(name, hosts, usage).map_err(unusable);
    // A node that can't use its own stands still and says so; the others go on.
    let for_node = |name: &str, hosts: &[Host], usage| match authority.issue(name, hosts, usage) {
        Err(error @ (PkiError::Invalid { .. } | PkiError::Missing { .. })) => {
            say(format_args!("· {}", unusable(error)));
            Ok(authority.pair(name))
        }
        issued => issued.map_err(unusable),
    };
    let nodes = spec.nodes.keys().map(|name| {
        let hosts = [Host::Dns(name.clone()), local()];
        Ok((name.clone(), for_node(name, &hosts, Usage::Both)?))
    });
    Ok(Certs {
        etcd: issue("etcd", &[Host::Dns("localhost".to_string()), local()], Usage::Both)?,
        nodes: nodes.collect::<anyhow::Result<_>>()?,
        gateway: for_node(GATEWAY, &[], Usage::Client)?,
        api: issue(API, &[], Usage::Client)?,
    })
}

fn etcd_config(
    layout: &Layout,
    spec: &Spec,
    certs: &Certs,
    ports: StorePorts,
) -> anyhow::Result<EtcdConfig> {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let binary = Search::from_env().etcd().map_err(|fault| Faults(vec![fault]))?;
    let (name, _) = spec.store_node().context("a spec has nodes")?;
    Ok(EtcdConfig {
        name: name.to_string(),
        data_dir: layout.etcd(),
        client_addr: SocketAddr::new(local, ports.client),
        peer_addr: SocketAddr::new(local, ports.peer),
        beginning: Beginning::Alone,
        quota_bytes: QUOTA_BYTES,
        certs: certs.etcd.clone(),
        binary: Some(binary),
    })
}

/// The store's spec wins over the built-in one; a file given by hand is a new revision.
async fn put_spec(store: &everhold_store::Etcd, spec: Spec, given: bool) -> anyhow::Result<Spec> {
    let key = spec_store::key(&spec.cluster);
    let until = Instant::now() + READY_WITHIN;
    let snapshot = loop {
        match store.get_prefix(&key).await {
            Ok(snapshot) => break snapshot,
            Err(error) if Instant::now() > until => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let (expect, wanted) = match snapshot.get(&key) {
        None => (Expect::Absent, spec),
        Some(kv) => {
            let old = record::from_json(&kv.value)?;
            if !given {
                return Ok(old);
            }
            let mut new = spec;
            new.keep(&old);
            if new == old {
                return Ok(old);
            }
            crate::apply::refuse_impossible(&old, &new)?;
            (Expect::Rev(kv.rev), new)
        }
    };
    let txn = Txn::new().guard(&key, expect).put(&key, record::to_json(&wanted)?);
    match store.txn(&txn).await? {
        TxnOutcome::Done { .. } => Ok(wanted),
        TxnOutcome::Refused { .. } => bail!("E232 the spec was changed meanwhile; try again"),
    }
}

async fn wait_ready(cluster: &Cluster, spec: &Spec) {
    let until = Instant::now() + READY_WITHIN;
    let mut said = String::new();
    while Instant::now() < until {
        let reports = cluster.reports();
        let mut words = Vec::new();
        let mut ready = true;
        for (service, declared) in spec.databases() {
            let of: Vec<_> = declared
                .nodes
                .iter()
                .map(|node| {
                    let status =
                        reports.get(node).and_then(|(report, _)| report.services.get(service));
                    (node, status.cloned())
                })
                .collect();
            ready &= of.iter().any(|(_, s)| s.as_ref().is_some_and(|s| s.serving.is_some()));
            for (node, status) in of {
                let state = status.map_or("…".to_string(), |s| crate::status::word(&s.state));
                words.push(format!("{node} {state}"));
            }
        }
        for (service, http) in spec.http_services() {
            for (id, placed) in http.placed() {
                let all = reports.get(&placed.node).map(|(report, _)| &report.instances);
                let state = all.and_then(|it| it.get(service)?.get(id)).map(|it| it.state);
                // One that ends by itself is not waited for.
                ready &= state.is_some_and(|it| it != RunState::Starting);
                let state = state.map_or("…", crate::instances::shown::word);
                words.push(format!("{service} {id} {state}"));
            }
        }
        let line = words.join(", ");
        if line != said {
            say(format_args!("· {line}"));
            said = line;
        }
        if ready {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    say("· not everything serves yet; `everhold status` says what is waited for");
}

fn greet(spec: &Spec, began: Instant) {
    for (name, bind, listener) in spec.postgres_listeners() {
        say(format_args!(
            "  {name:<6} {bind}  ({} {})",
            listener.service,
            match listener.role {
                everhold_core::spec::Role::Primary => "primary",
                everhold_core::spec::Role::Standby => "standbys",
            }
        ));
    }
    let http = |(name, it): (_, &ListenerSpec)| {
        let scheme = if it.tls().is_some() { "https" } else { "http" };
        matches!(it.protocol, Protocol::Http(_)).then(|| (name, format!("{scheme}://{}/", it.bind)))
    };
    let http: Vec<(&String, String)> = spec.listeners.iter().filter_map(http).collect();
    for (name, url) in &http {
        say(format_args!("  {name:<6} {url}"));
    }
    say(format_args!("  api    http://{}", spec.api.bind));
    println!("ready in {:.1} s", began.elapsed().as_secs_f64());
    let service = spec.databases().next().map_or("main", |(name, _)| name);
    say("Try, in another terminal:");
    say("  everhold status");
    say(format_args!("  everhold psql {service} -c 'select now()'"));
    say(format_args!("  everhold fault kill-postgres {service}     (and `everhold journal`)"));
    if let Some((_, url)) = http.first() {
        say(format_args!(
            "  curl {url}     (and `kill -9` of an instance, by its pid in `status`)"
        ));
    }
}

/// Restarts etcd whenever it ends, and says why it can't.
async fn keep_etcd(mut etcd: Etcd, config: EtcdConfig, troubles: Troubles) {
    loop {
        let ended = etcd.wait_exit().await;
        tracing::warn!(?ended, "etcd ended; it is started again");
        loop {
            match Etcd::start(&config).await {
                Ok(again) => {
                    etcd = again;
                    troubles.clear("etcd");
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot start etcd");
                    // etcd itself names neither file nor next step.
                    let CertPair { ca, cert, key } = &config.certs;
                    let certs = Tls::load(ca, cert, key).err().map(|unusable| unusable.to_string());
                    troubles.note("etcd", certs.unwrap_or_else(|| chain(&error)));
                    tokio::time::sleep(ETCD_AGAIN).await;
                }
            }
        }
    }
}
