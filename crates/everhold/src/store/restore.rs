//! `everhold store restore`: the way back when no server of the store has its data any more.
//!
//! The copy is restored aside, every node is asked what it knows, `everhold_core::restore` judges
//! with which term each service goes on, and only then the result takes the place of the data that
//! was lost. Until then nothing has changed, and PostgreSQL notices none of it.

use super::copies;
use crate::agent::{self, Ask};
use crate::gateway::purges;
use crate::layout::Layout;
use crate::link::{self, Tls};
use crate::links::Links;
use crate::machine;
use crate::node_file::NodeFile;
use crate::spec::local::Search;
use crate::spec::{StorePorts, record};
use crate::supervisor::{say, take_lock};
use crate::{clock, disk, secrets, spec_store};
use anyhow::{Context as _, bail};
use everhold_adapters::etcd::{Beginning, Etcd as Server, EtcdConfig, QUOTA_BYTES};
use everhold_adapters::pki::{Authority, CertPair};
use everhold_core::durable::Durable;
use everhold_core::http::cache::purge::{Purges, What};
use everhold_core::kv::{Snapshot, Txn};
use everhold_core::records::{Keys, decode, encode};
use everhold_core::restore::{Copied, Seed, Told, judge};
use everhold_core::spec::{Address, Spec};
use everhold_core::term::Term;
use everhold_store::{Etcd, Store, TlsFiles};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::mpsc;

/// For agents to be reached and to answer.
const HEARD_WITHIN: Duration = Duration::from_secs(5);
/// A store that is there answers within this.
const STORE_WITHIN: Duration = Duration::from_secs(3);
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Reports of agents not yet taken.
const REPORTS_MAX: usize = 1_024;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// `None`: the newest copy of this machine.
    pub copy: Option<PathBuf>,
    /// Nodes whose machines are gone for good.
    pub lost: Vec<String>,
    /// Where there is none, the data directory of `everhold up`.
    pub file: PathBuf,
    pub data: PathBuf,
}

/// The machine that gets the store's first server, and how it reaches the others.
struct Site {
    layout: Layout,
    cluster: String,
    /// The name of the server to be, and where other servers will reach it.
    member: String,
    peer_url: String,
    /// Where it may listen meanwhile.
    here: IpAddr,
    certs: CertPair,
    client: CertPair,
    /// Where servers may still be.
    endpoints: Vec<String>,
    /// The node of this machine; `None`: all are.
    node: Option<String>,
}

/// Restores the store, or says why not and changes nothing.
pub async fn restore(options: Options) -> anyhow::Result<()> {
    let site = site(&options)?;
    // `up` would begin an empty store meanwhile; `run` waits for what appears here.
    let _lock = match site.node {
        None => Some(take_lock(&site.layout.supervisor().join("up.lock"))?),
        Some(_) => None,
    };
    let copy = match &options.copy {
        Some(path) => path.clone(),
        None => copies::all(&site.layout.store_copies()).pop().with_context(|| {
            format!(
                "E251 there is no copy of the store in {}; next step: name one of another machine",
                site.layout.store_copies().display()
            )
        })?,
    };
    copies::check(&copy).map_err(|why| {
        anyhow::anyhow!("E251 {why:#}; next step: name an older copy, or one of another machine")
    })?;
    none_is_left(&site).await?;
    say(format_args!("· copy {}", copy.display()));
    let aside = site.layout.etcd().join("restoring");
    if aside.exists() {
        std::fs::remove_dir_all(&aside)?;
    }
    unpack(&site, &copy, &aside).await?;
    let seeded = seed(&site, &options.lost, &aside).await;
    if seeded.is_err() {
        let _ = std::fs::remove_dir_all(&aside);
    }
    let said = seeded?;
    place(&site.layout, &aside)?;
    said.iter().for_each(say);
    println!("restored the store of {}", site.cluster);
    match site.node {
        Some(_) => {
            say("Next: `everhold run` here, if it does not run; then on the other machines, after \
             their DATA/etcd/data was moved away")
        }
        None => say("Next: `everhold up`"),
    }
    Ok(())
}

fn site(options: &Options) -> anyhow::Result<Site> {
    if options.file.exists() {
        let file = NodeFile::read(&options.file)?;
        let layout = Layout::new(&file.data)?;
        let spec = machine::spec_copy(&layout);
        let spec = std::fs::read_to_string(&spec)
            .with_context(|| format!("E240 cannot read {}", spec.display()))?;
        let spec = record::from_json(&spec)?;
        if spec.store.is_some() {
            bail!(
                "E244 {} runs no member of the store: [store] names another etcd; next step: that \
                 one's own tools",
                file.name
            );
        }
        let own = spec.nodes.get(&file.name).with_context(|| {
            format!("E221 {} is not a node of the spec; next step: add it and apply", file.name)
        })?;
        if !spec.store_nodes().any(|(name, _)| name == file.name) {
            let wanted: Vec<&str> = spec.store_nodes().map(|(name, _)| name).collect();
            bail!(
                "E244 {} runs no member of the store; next step: restore on one of {wanted:?}",
                file.name
            );
        }
        let authority = Authority::load(&layout.pki())?;
        return Ok(Site {
            cluster: file.cluster.clone(),
            peer_url: machine::url(&own.address, StorePorts::default().peer),
            here: agent::resolve(&own.address.to_string(), 0)?.ip(),
            certs: authority.pair(&format!("etcd.{}", file.name)),
            client: authority.pair(&format!("api.{}", file.name)),
            endpoints: file.store.clone(),
            member: file.name.clone(),
            node: Some(file.name),
            layout,
        });
    }
    let layout = Layout::new(&options.data)?;
    let record = std::fs::read_to_string(layout.cluster_record()).with_context(|| {
        format!(
            "E230 {} is no data directory, and there is no {}; next step: name one with --data or \
             --node-file",
            layout.root().display(),
            options.file.display()
        )
    })?;
    let record: crate::layout::ClusterRecord = serde_json::from_str(&record)?;
    let authority = Authority::load(&layout.pki())?;
    let node = NodeFile::read(&layout.node(crate::supervisor::GATEWAY).join("node.toml"))?;
    let at = node.store.first().and_then(|at| at.parse::<SocketAddr>().ok());
    let at = at.context("the store's address in the gateway's node file")?;
    let nodes = std::fs::read_dir(layout.root())?.flatten();
    let mut nodes: Vec<String> = nodes
        .filter(|entry| entry.path().join("spec.json").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    nodes.sort();
    Ok(Site {
        cluster: record.cluster,
        member: nodes.first().cloned().context("a node's directory")?,
        peer_url: format!("https://{}", SocketAddr::new(at.ip(), at.port() + 1)),
        here: IpAddr::V4(Ipv4Addr::LOCALHOST),
        certs: authority.pair("etcd"),
        client: authority.pair("api"),
        endpoints: node.store,
        node: None,
        layout,
    })
}

fn tls(pair: &CertPair) -> TlsFiles {
    TlsFiles { ca: pair.ca.clone(), cert: pair.cert.clone(), key: pair.key.clone() }
}

async fn client(site: &Site, endpoint: String) -> anyhow::Result<Etcd> {
    Ok(Etcd::new(everhold_store::EtcdConfig {
        endpoints: vec![endpoint],
        tls: Some(tls(&site.client)),
        deadline: STORE_WITHIN,
    })
    .await?)
}

/// A server that runs has newer data than any copy, even without the others.
async fn none_is_left(site: &Site) -> anyhow::Result<()> {
    for endpoint in &site.endpoints {
        if client(site, endpoint.clone()).await?.server().await.is_ok() {
            bail!(
                "E252 the store's server at {endpoint} has its data: nothing is to be restored; next \
                 step: see what it waits for in `everhold status`; if the other servers are gone \
                 for good, end `everhold run` on its machine, move DATA/etcd/data there away, and \
                 restore again"
            );
        }
    }
    Ok(())
}

/// The copy as the data of a store with one server.
async fn unpack(site: &Site, copy: &Path, aside: &Path) -> anyhow::Result<()> {
    let search = Search::from_env();
    let tool = search.program("etcdutl").or_else(|| search.program("etcdctl")).context(
        "E109 neither etcdutl nor etcdctl is in PATH; next step: apt install etcd-client",
    )?;
    secrets::private_dir(aside)?;
    let output = Command::new(&tool)
        .env("ETCDCTL_API", "3")
        .args(["snapshot", "restore"])
        .arg(copy)
        .args(["--name", &site.member, "--initial-advertise-peer-urls", &site.peer_url])
        .arg(format!("--initial-cluster={}={}", site.member, site.peer_url))
        .arg(format!("--initial-cluster-token={}-{}", site.cluster, secrets::fresh()?))
        .arg("--data-dir")
        .arg(aside.join("data"))
        .output()
        .await
        .with_context(|| format!("run {}", tool.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        bail!(
            "E251 {} can't restore {}: {last}; next step: name an older copy, or one of another \
             machine",
            tool.display(),
            copy.display()
        );
    }
    Ok(())
}

/// Puts what the nodes know into the restored store, before anybody sees it.
async fn seed(site: &Site, lost: &[String], aside: &Path) -> anyhow::Result<Vec<String>> {
    let free = || -> anyhow::Result<SocketAddr> {
        Ok(TcpListener::bind(SocketAddr::new(site.here, 0))?.local_addr()?)
    };
    let config = EtcdConfig {
        name: site.member.clone(),
        data_dir: aside.to_path_buf(),
        client_addr: free()?,
        peer_addr: free()?,
        beginning: Beginning::Alone,
        quota_bytes: QUOTA_BYTES,
        certs: site.certs.clone(),
        binary: Some(Search::from_env().etcd().map_err(|fault| anyhow::anyhow!("{fault}"))?),
    };
    let server = Server::start(&config).await?;
    let store = client(site, format!("https://{}", config.client_addr)).await?;
    let seeded = write(site, lost, &store).await;
    server.stop(STOP_WITHIN).await?;
    seeded
}

async fn write(site: &Site, lost: &[String], store: &Etcd) -> anyhow::Result<Vec<String>> {
    let prefix = format!("/everhold/{}/", site.cluster);
    let mut read = store.get_prefix(&prefix).await;
    for _ in 0..20 {
        if read.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        read = store.get_prefix(&prefix).await;
    }
    let copied = read?;
    let key = spec_store::key(&site.cluster);
    let spec = copied.get(&key).with_context(|| {
        format!(
            "E251 the copy is not of cluster {}; next step: name a copy of this cluster",
            site.cluster
        )
    })?;
    let spec = record::from_json(&spec.value)?;
    let (all, silent) = ask_all(site, &spec).await?;
    let lost: BTreeSet<String> = lost.iter().cloned().collect();
    let mut txn = Txn::new().delete(machine::coordinator::members_key(&site.cluster));
    let mut said = Vec::new();
    let mut unproven = Vec::new();
    let silent: Vec<&str> =
        silent.iter().filter(|node| !lost.contains(*node)).map(String::as_str).collect();
    if !silent.is_empty() {
        unproven.push(format!("{} is not heard, and may keep the store itself", silent.join(", ")));
    }
    for (name, service) in spec.databases() {
        let told = all.get(name).cloned().unwrap_or_default();
        match judged(site, name, &service.nodes, &lost, &spec, &copied, &told)? {
            Ok(seed) => {
                said.push(format!("· service {name}: {}", seed.why));
                txn = seeds(txn, &Keys::new(&site.cluster, name), &seed);
            }
            Err(why) => unproven.push(format!("service {name}: {why}")),
        }
    }
    if !unproven.is_empty() {
        bail!(
            "E253 it can't be proven that nothing would be lost: {}; next step: start `everhold \
             run` on every machine, and restore again; for one that is gone for good, with --lost NODE",
            unproven.join("; ")
        );
    }
    store.txn(&purge_all(txn, &site.cluster, &copied)?).await?;
    Ok(said)
}

/// The copy may lack what was purged since: no gateway gives what it kept.
fn purge_all(txn: Txn, cluster: &str, copied: &Snapshot) -> anyhow::Result<Txn> {
    let key = purges::key(cluster);
    let known = copied.get(&key).and_then(|kv| decode::<Purges>(&kv.value).ok());
    let mut purges = known.unwrap_or_default();
    let by = ("store restore".to_string(), clock::wall());
    purges.add(secrets::fresh()?, by, vec![What::ALL]);
    Ok(txn.put(&key, encode(&purges)))
}

fn judged(
    site: &Site,
    service: &str,
    nodes: &[String],
    lost: &BTreeSet<String>,
    spec: &Spec,
    copied: &Snapshot,
    told: &BTreeMap<String, Told>,
) -> anyhow::Result<Result<Seed, String>> {
    let prefix = Keys::new(&site.cluster, service).prefix;
    let value = |name: &str| copied.get(&format!("{prefix}{name}")).map(|kv| kv.value.as_str());
    let term: Option<Term> = value("term").map(decode).transpose()?;
    let epoch = value("epoch").map(decode).transpose()?.unwrap_or(0);
    let postgres = spec.postgres(service).context("a PostgreSQL service")?;
    let redundancy = agent::policy(spec, postgres).redundancy;
    Ok(judge(nodes, lost, told, Copied { epoch, term: term.as_ref() }, redundancy))
}

fn seeds(txn: Txn, keys: &Keys, seed: &Seed) -> Txn {
    let key = |name: &str| format!("{}{name}", keys.prefix);
    let txn = txn.delete(key("campaign")).delete(key("lease"));
    match &seed.term {
        Some(term) => txn.put(key("epoch"), encode(&seed.epoch)).put(key("term"), encode(term)),
        None => txn,
    }
}

/// What nodes tell, by service.
type All = BTreeMap<String, BTreeMap<String, Told>>;

/// What each node tells of each service: its agent if it runs, else this machine's disk. And the
/// nodes of other machines whose agents are not heard.
async fn ask_all(site: &Site, spec: &Spec) -> anyhow::Result<(All, Vec<String>)> {
    let CertPair { ca, cert, key } = &site.client;
    let tls = Tls::follow(ca, cert, key)?;
    let (told, mut hear) = mpsc::channel(REPORTS_MAX);
    let mut links = Links::new(tls, told);
    links.follow(spec, link::JUDGE_EVERY, |_| true);
    tokio::spawn(async move { while hear.recv().await.is_some() {} });
    let until = tokio::time::Instant::now() + HEARD_WITHIN;
    let mut silent = Vec::new();
    for link in links.nodes().iter().filter_map(|node| links.get(node)) {
        while link.silent_ms().is_none() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let here = site.node.as_ref().is_none_or(|here| *here == link.node);
        if link.silent_ms().is_none() && !here {
            silent.push(link.node.clone());
        }
    }
    let mut all = All::new();
    for (name, service) in spec.databases() {
        for node in &service.nodes {
            let Some(link) = links.get(node) else { continue };
            let ask = serde_json::to_value(Ask::View { service: name.clone() })?;
            let told = match link.ask(ask).await {
                Ok(seen) => Some(from_agent(seen)?),
                Err(_) if site.node.as_ref().is_none_or(|here| here == node) => {
                    from_disk(site, spec, node, name)?
                }
                Err(_) => None,
            };
            if let Some(told) = told {
                all.entry(name.clone()).or_default().insert(node.clone(), told);
            }
        }
    }
    Ok((all, silent))
}

fn from_agent(seen: serde_json::Value) -> anyhow::Result<Told> {
    let (view, ..): (everhold_core::view::View, serde_json::Value, serde_json::Value) =
        serde_json::from_value(seen).context("understand what an agent knows")?;
    Ok(Told {
        epoch: view.store_epoch(),
        term: view.term().cloned(),
        leads: view.is_primary(),
        durable: view.durable,
    })
}

/// Of a node whose agent does not run; its PostgreSQL may.
fn from_disk(site: &Site, spec: &Spec, node: &str, service: &str) -> anyhow::Result<Option<Told>> {
    // A node at another address may run there with another disk.
    let here = spec.nodes.get(node).is_some_and(|it| match &it.address {
        Address::Ip(ip) => site.node.is_some() || ip.is_loopback(),
        Address::Host(_) => site.node.is_some(),
    });
    if !here {
        return Ok(None);
    }
    let record = site.layout.service(node, service).join("record.json");
    let durable: Durable = disk::load(&record, &site.layout.pgdata(node, service))?;
    Ok(Some(Told { durable, term: None, epoch: 0, leads: false }))
}

/// Under its name at once; what was there is kept.
fn place(layout: &Layout, aside: &Path) -> anyhow::Result<()> {
    let data = layout.etcd().join("data");
    if data.exists() {
        let mut names = (1..).map(|n| layout.etcd().join(format!("lost-{n}")));
        let kept = names.find(|path| !path.exists()).unwrap_or_else(|| layout.etcd().join("lost"));
        std::fs::rename(&data, &kept)?;
        say(format_args!("· the data that was there is kept in {}", kept.display()));
    }
    std::fs::rename(aside.join("data"), &data)?;
    std::fs::File::open(layout.etcd())?.sync_all()?;
    std::fs::remove_dir_all(aside)?;
    Ok(())
}
