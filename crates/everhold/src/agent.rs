//! The role `agent`: one node's part in every service that has an instance on it.

use crate::archive::{self, Heard, Tender, tend_slot};
use crate::backup::cloner::Cloner;
use crate::backup::desk::{Desk, Work};
use crate::backup::origin::Origin;
use crate::backup::prepare::Point;
use crate::backup::recovery::Recoveries;
use crate::instances::Instances;
use crate::journal::{self, Journal};
use crate::keeper::{Keeper, Parts};
use crate::layout::Layout;
use crate::link::{self, Hold, Question, Report, Tls};
use crate::links::{Links, shares_a_service};
use crate::losses::Losses;
use crate::machine;
use crate::minder::{Feed, Office};
use crate::node_file::NodeFile;
use crate::spec::local::{RunAs, Search};
use crate::supervisor::Renewal;
use crate::{clock, disk, log, plain, requests, scrub, spec_store};
use anyhow::Context;
use everhold_adapters::pki::CertPair;
use everhold_adapters::postgres::{PgConfig, Postgres};
use everhold_core::agent::{Agent, Identity};
use everhold_core::backup::{Kind, Proving};
use everhold_core::durable::Durable;
use everhold_core::journal::Event;
use everhold_core::policy::Policy;
use everhold_core::spec::{Address, Durability, NodeSpec, PostgresSpec, Spec, Spread};
use everhold_core::spread::Domains;
use everhold_core::term::{Preference, Redundancy};
use everhold_core::view::Cause;
use everhold_store::Etcd;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Questions waiting for an answer.
const QUESTIONS_MAX: usize = 64;
/// The node's copy of the spec.
pub const SPEC_COPY: &str = "spec.json";
/// Reports of other nodes not yet handed on.
const REPORTS_MAX: usize = 1_024;
/// The journal's thread writes its last entry meanwhile.
const RESTART_AFTER: Duration = Duration::from_millis(100);
/// Entries of one answer: with the facts in them some megabytes, well below a frame's bound.
const PAGE_MAX: usize = 1_000;
/// Between two looks at what is damaged.
const MENDED_EVERY: Duration = Duration::from_secs(2);

/// What an agent can be asked over its link.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Ask {
    /// Facts and verdicts of a service.
    View {
        service: String,
    },
    Switchover {
        service: String,
        to: Option<String>,
        who: String,
    },
    Force {
        service: String,
        to: Option<String>,
        who: String,
    },
    /// The newest entries of this node's journal.
    Journal {
        limit: usize,
    },
    Entry {
        id: String,
    },
    Verify,
    /// Start the standby of a service anew, if it is still this process.
    Restart {
        service: String,
        pid: i32,
        who: String,
    },
    /// Start everything of Everhold on this machine anew, by the program that is installed now, if
    /// its agent is still this process. An older version's coordinator names none.
    Renew {
        pid: Option<i32>,
        who: String,
    },
    /// Make a backup of a service, if none is being made here.
    BackUp {
        service: String,
        kind: Kind,
        who: String,
    },
    /// Put a service back to how it was, from its repositories, and lead it.
    Recover {
        service: String,
        point: Point,
        who: String,
    },
    /// What the kept tails of a service hold.
    Losses {
        service: String,
    },
    /// Prove a backup of a service, if nothing else is done with its backups here.
    ProveBackup {
        service: String,
        id: String,
        why: Proving,
        who: String,
    },
    /// Start an instance of an HTTP service anew by what the spec says now, if it is still this
    /// process, or whatever it is.
    RestartInstance {
        service: String,
        instance: String,
        pid: Option<i32>,
        who: String,
    },
    /// The newest lines that a service's instances said here, behind a time if one is given.
    Logs {
        service: String,
        instance: Option<String>,
        limit: usize,
        after: Option<String>,
    },
    /// What became of an HTTP request, if a gateway of this machine remembers it.
    Request {
        id: String,
    },
    /// What HTTP routes and their services do at the gateway of this machine.
    Routes,
    /// End the instances of HTTP services, and start none again.
    StopInstances,
    /// Stop PostgreSQL of every service, cleanly, and decide nothing any more.
    Halt,
    /// For the journal only.
    Note {
        service: String,
        who: String,
        what: String,
    },
}

/// Runs the agent until it is ended.
pub async fn run(file: &Path) -> anyhow::Result<()> {
    let node = NodeFile::read(file)?;
    log::name(&node.name);
    let layout = Layout::new(&node.data)?;
    let tls = Tls::follow(&node.ca, &node.cert, &node.key)?;
    let store = Etcd::new(node.store_config()).await.context("prepare the store's client")?;
    let copy = layout.node(&node.name).join(SPEC_COPY);
    let spec = spec_store::find(&node.cluster, &store, &copy, |_| true).await?;
    let own = spec.nodes.get(&node.name).with_context(|| {
        format!("E221 {} is not a node of the spec; next step: add it and apply", node.name)
    })?;
    let address = resolve(&own.address.to_string(), own.agent_port())?;
    let journal =
        Journal::open(&layout.node(&node.name).join("journal"), &node.name, &node.cluster)
            .context("open the journal")?;
    journal.append("", Event::Noted { text: format!("agent started, pid {}", std::process::id()) });

    let (report, reports) = watch::channel(Arc::new(Report {
        node: node.name.clone(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        ..Report::default()
    }));
    let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
    link::serve(address, tls.clone(), reports, questions).await?;

    let heard = Heard::default();
    let mut keepers = BTreeMap::new();
    for (name, service) in spec.databases().filter(|(_, it)| it.nodes.contains(&node.name)) {
        let site = Site { node: &node, layout: &layout, spec: &spec };
        let told = Told { report: &report, heard: &heard, file };
        match keep(site, name, service, &store, &journal, told, &tls).await {
            Ok(keeper) => {
                let (dir, of) = (layout.service(&node.name, name), keeper.clone());
                scrub::start(file, &dir, name, of, journal.clone(), report.clone()).await;
                keepers.insert(name.clone(), keeper);
            }
            Err(error) => {
                let why = format!("{error:#}");
                tracing::error!(service = name, error = why, "cannot keep it");
                let text = format!("cannot keep it: {why}");
                let hold = Hold {
                    service: Some(name.clone()),
                    rule: "cannot-keep".to_string(),
                    why,
                    unblocks: "the error's next step; the agent tries again by itself".to_string(),
                    operator: true,
                    since: clock::wall(),
                    recheck_at: None,
                    journal: Some(journal.append(name, Event::Noted { text })),
                };
                report.send_modify(|report| Arc::make_mut(report).holds.push(hold));
                let site = (node.clone(), layout.clone(), spec.clone());
                tokio::spawn(await_mended(site, name.clone(), service.clone(), journal.clone()));
            }
        }
    }
    if spec.is_spread() {
        store.set_endpoints(machine::endpoints(&spec, &node.name));
        tokio::spawn(take_up_renewed(node.cert.clone(), journal.clone()));
    }
    let (tells, gateways_say) = (report.clone(), store.clone());
    let instances = Instances::start(&node, &layout, &spec, journal.clone(), tells, gateways_say)
        .context("start the thread that tends instances")?;
    let kept = spec.databases().filter(|(_, it)| it.nodes.contains(&node.name));
    let desk = plain::agent::Desk {
        node: node.clone(),
        layout: layout.clone(),
        services: kept.map(|(name, _)| (name.clone(), keepers.get(name).cloned())).collect(),
        report: report.clone(),
        journal: journal.clone(),
        spec: instances.spec(),
    };
    plain::agent::start(SocketAddr::new(address.ip(), own.health_port()), desk);
    tokio::spawn(journal::watch(layout.node(&node.name).join("journal"), report.clone()));
    let (told, hear) = mpsc::channel(REPORTS_MAX);
    let mut links = Links::new(tls.clone(), told);
    links.follow(&spec, link::JUDGE_EVERY, |other| shares_a_service(&spec, &node.name, other));
    tokio::spawn(listen(hear, keepers.clone(), heard));
    tokio::spawn(journal::mirror_head(journal.clone(), store.clone(), node.clone()));
    let specs = spec_store::follow(&node.cluster, store.clone(), copy, || true);
    let followers = (keepers.clone(), instances.clone());
    tokio::spawn(follow_spec(node.name.clone(), specs, spec, journal.clone(), followers));
    let clerk = Clerk {
        keepers,
        backups: Desk::new(file, (&layout, &node.name), journal.clone(), report.clone()),
        recoveries: Recoveries::new(file, (&layout, &node.name), journal.clone(), report.clone()),
        losses: Losses::new(file),
        instances,
        journal,
        dir: layout.node(&node.name).join("journal"),
        requests: layout.requests(),
        renewal: Renewal::default(),
    };
    answer(asked, Arc::new(clerk)).await;
    drop(links);
    Ok(())
}

/// Where an agent's instance is described.
pub struct Site<'a> {
    pub node: &'a NodeFile,
    pub layout: &'a Layout,
    pub spec: &'a Spec,
}

/// What this node tells, what it heard of archives, and the file that it is described in.
struct Told<'a> {
    report: &'a watch::Sender<Arc<Report>>,
    heard: &'a Heard,
    file: &'a Path,
}

/// What has to be sound before a service can be kept: the node's record, programs, addresses.
pub fn open(
    site: &Site<'_>,
    name: &str,
    service: &PostgresSpec,
) -> anyhow::Result<(Durable, PgConfig, String)> {
    let Site { node, layout, spec } = site;
    let record = layout.service(&node.name, name).join("record.json");
    let durable = disk::load(&record, &layout.pgdata(&node.name, name))?;
    let address = spec.nodes.get(&node.name).context("the node's address")?.address.to_string();
    let port = service.instances.get(&node.name).context("the instance's port")?.port;
    let config = pg_config(site, name, service, &address, port)?;
    Ok((durable, config, address))
}

/// Waits until a service that could not be kept can be. Then the agent ends: whoever supervises it
/// starts it again, and PostgreSQL doesn't notice.
async fn await_mended(
    site: (NodeFile, Layout, Spec),
    name: String,
    service: PostgresSpec,
    journal: Journal,
) {
    let site = Site { node: &site.0, layout: &site.1, spec: &site.2 };
    loop {
        tokio::time::sleep(MENDED_EVERY).await;
        let Ok((_, config, _)) = open(&site, &name, &service) else { continue };
        if Postgres::open(config).await.is_err() {
            continue;
        }
        let text = "what kept this agent from keeping the service is mended; it starts again";
        journal.append(&name, Event::Noted { text: text.to_string() });
        tracing::info!(service = name, "{text}");
        tokio::time::sleep(RESTART_AFTER).await;
        std::process::exit(0);
    }
}

/// PostgreSQL serves with the node's certificate: when that is renewed the agent starts again, which
/// hands it over at a reload.
async fn take_up_renewed(cert: PathBuf, journal: Journal) {
    let seen = link::modified(&cert);
    loop {
        tokio::time::sleep(link::RENEWED_WITHIN).await;
        if link::modified(&cert) != seen {
            let text = "the node's certificate was renewed; the agent starts again";
            journal.append("", Event::Noted { text: text.to_string() });
            tokio::time::sleep(RESTART_AFTER).await;
            std::process::exit(0);
        }
    }
}

/// Begins to keep one service on this node.
async fn keep(
    site: Site<'_>,
    name: &str,
    service: &PostgresSpec,
    store: &Etcd,
    journal: &Journal,
    told: Told<'_>,
    tls: &Tls,
) -> anyhow::Result<Keeper> {
    let Told { report, heard, file } = told;
    let Site { node, layout, .. } = site;
    let dir = layout.service(&node.name, name);
    let record = dir.join("record.json");
    let (durable, config, address) = open(&site, name, service)?;
    let port = config.port;
    let config_tls = config.tls.is_some();
    let office = archive::Office {
        cluster: node.cluster.clone(),
        service: name.to_string(),
        dir: dir.clone(),
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        port,
        places: BTreeMap::new(),
        copies: 0,
    };
    let archive = archive::Office::of(site.spec, service, office)
        .map(|office| Tender::start(office, journal.clone(), report.clone()));
    let postgres = Arc::new(Postgres::open(config).await?);
    let slot = (name.to_string(), service.backup.is_some(), heard.clone(), report.subscribe());
    tokio::spawn(tend_slot(slot.0, slot.1, postgres.clone(), slot.2, slot.3));
    let identity = Identity {
        cluster: node.cluster.clone(),
        service: name.to_string(),
        node: node.name.clone(),
        host: address,
        port,
    };
    let (sender, service_name) = (report.clone(), name.to_string());
    let journal_of = journal.clone();
    let parts = Parts {
        agent: Agent::new(identity, policy(site.spec, service), durable, clock::now()),
        service: name.to_string(),
        postgres,
        store: store.clone(),
        journal: journal.clone(),
        record,
        replication_password: replication_password(layout, name),
        probe_tls: config_tls.then(|| tls.client()),
        minder: feed(&site, name, &dir, port, journal)?,
        archive,
        cloner: Cloner::new(file, layout.node(&node.name).join(SPEC_COPY), name, journal),
        origin: service.backup.as_ref().map(|_| Origin::new(site.spec, name)),
        tell: Box::new(move |status, holds, at_once| {
            sender.send_if_modified(|report| {
                let of_service = |hold: &&Hold| hold.service.as_ref() == Some(&service_name);
                let known = report.holds.iter().filter(of_service);
                let held = !known.eq(&holds);
                if held || report.services.get(&service_name) != Some(&status) {
                    let report = Arc::make_mut(report);
                    report.services.insert(service_name.clone(), status);
                    report.journal_head = journal_of.head();
                    report.holds.retain(|hold| !of_service(&hold));
                    report.holds.extend(holds);
                }
                at_once
            });
        }),
    };
    Ok(Keeper::start(parts))
}

/// The minders of the service's postmasters, one after the other.
fn feed(
    site: &Site<'_>,
    name: &str,
    dir: &Path,
    port: u16,
    journal: &Journal,
) -> anyhow::Result<Feed> {
    let office = Office {
        dir: dir.to_path_buf(),
        run_dir: site.layout.run(&site.node.name, name),
        port,
        // The running program itself, also when its file was replaced.
        program: PathBuf::from("/proc/self/exe"),
        now: clock::now,
    };
    let (journal, service) = (journal.clone(), name.to_string());
    let note = move |text| {
        tracing::warn!(service, text, "minder");
        journal.append(&service, Event::Noted { text });
    };
    Feed::start(office, note).context("start the thread that tends the minder")
}

fn pg_config(
    site: &Site<'_>,
    name: &str,
    service: &PostgresSpec,
    address: &str,
    port: u16,
) -> anyhow::Result<PgConfig> {
    let Site { node, layout, .. } = site;
    let run_as = RunAs::discover().map_err(|fault| anyhow::anyhow!("{fault}"))?;
    let bin_dir =
        Search::from_env().postgres(service.version).map_err(|fault| anyhow::anyhow!("{fault}"))?;
    let listen: IpAddr = resolve(address, port)?.ip();
    Ok(PgConfig {
        node: node.name.clone(),
        bin_dir,
        data_dir: layout.pgdata(&node.name, name),
        run_dir: layout.run(&node.name, name),
        kept_dir: layout.diverged(&node.name, name),
        log_file: layout.service(&node.name, name).join("postgres.log"),
        listen,
        port,
        run_as: run_as.is_other().then(|| (run_as.uid, run_as.gids[0])),
        database: service.database.clone(),
        owner: service.owner.clone(),
        owner_password_file: owner_password(layout, name),
        replication_password_file: replication_password(layout, name),
        // On one machine nothing leaves it.
        tls: (!listen.is_loopback()).then(|| CertPair {
            ca: node.ca.clone(),
            cert: node.cert.clone(),
            key: node.key.clone(),
        }),
        parameters: service.parameters.clone(),
    })
}

pub fn owner_password(layout: &Layout, service: &str) -> PathBuf {
    layout.secrets().join(format!("{service}.owner"))
}

pub fn replication_password(layout: &Layout, service: &str) -> PathBuf {
    layout.secrets().join(format!("{service}.replication"))
}

/// What failover needs to know of the spec.
pub fn policy(spec: &Spec, service: &PostgresSpec) -> Policy {
    let wanted = service.synchronous.number;
    let floor = match service.synchronous.durability {
        Durability::Required => wanted.min(1),
        Durability::Preferred => 0,
    };
    let preferences = service.instances.iter().map(|(node, instance)| {
        let priority = i32::try_from(instance.priority).unwrap_or(i32::MAX);
        let failover = instance.failover && spec.duty(node).is_active();
        (node.clone(), Preference { priority, failover })
    });
    let domains = service.nodes.iter().filter_map(|name| {
        let node = spec.nodes.get(name)?;
        let domain = match service.synchronous.spread? {
            Spread::Zone => node.zone.clone(),
            Spread::Region => node.region.clone(),
        };
        Some((name.clone(), domain?))
    });
    let duties = service.nodes.iter().map(|node| (node.clone(), spec.duty(node)));
    Policy {
        nodes: service.nodes.clone(),
        redundancy: Redundancy { wanted, floor },
        preferences: preferences.collect(),
        domains: Domains(domains.collect()),
        duties: duties.filter(|(_, duty)| !duty.is_active()).collect(),
        slow_after_ms: service.slow_after_ms,
    }
}

pub fn resolve(host: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let found = (host, port).to_socket_addrs().ok().and_then(|mut addrs| addrs.next());
    found.with_context(|| format!("E222 cannot resolve {host}; next step: use an IP address"))
}

/// `HOST:PORT`, with brackets where they are needed.
pub fn host_and_port(address: &Address, port: u16) -> String {
    address.with_port(port)
}

async fn listen(
    mut hear: mpsc::Receiver<(String, Arc<Report>)>,
    keepers: BTreeMap<String, Keeper>,
    heard: Heard,
) {
    while let Some((node, report)) = hear.recv().await {
        heard.hear(&report);
        for (service, status) in &report.services {
            if let Some(keeper) = keepers.get(service) {
                keeper.heard(node.clone(), status.clone());
            }
        }
    }
}

/// A changed spec changes how failover judges at once. What only a start of the agent takes up
/// (settings of PostgreSQL, addresses, new services) makes it end: whoever supervises it starts it
/// again, and PostgreSQL doesn't notice.
async fn follow_spec(
    me: String,
    mut specs: mpsc::Receiver<Spec>,
    mut known: Spec,
    journal: Journal,
    (keepers, instances): (BTreeMap<String, Keeper>, Instances),
) {
    while let Some(spec) = specs.recv().await {
        if !spec.nodes.contains_key(&me) {
            let text = format!("{me} is no node any more; everything stops here, the data stays");
            journal.append("", Event::Noted { text });
            instances.halt().await;
            for (name, keeper) in &keepers {
                if let Err(error) = keeper.halt().await {
                    tracing::error!(service = name, error, "cannot stop it");
                }
            }
            tokio::time::sleep(RESTART_AFTER).await;
            std::process::exit(0);
        }
        let settings = |spec: &Spec| {
            let of = |(name, postgres): (&String, &PostgresSpec)| {
                let ports: Vec<u16> = postgres.instances.values().map(|i| i.port).collect();
                let backup = postgres.backup.as_ref();
                let backup = backup.map(|it| (it.repositories.clone(), it.copies));
                (name.clone(), postgres.parameters.clone(), ports, backup)
            };
            let place = |(name, node): (&String, &NodeSpec)| {
                (name.clone(), node.address.clone(), node.ports)
            };
            let nodes: Vec<_> = spec.nodes.iter().map(place).collect();
            let services: Vec<_> = spec.databases().map(of).collect();
            (nodes, services, spec.repositories.clone())
        };
        if settings(&spec) != settings(&known) {
            let text = "the spec changed what only a new agent takes up; it starts again";
            journal.append("", Event::Noted { text: text.to_string() });
            tracing::info!("{text}");
            tokio::time::sleep(RESTART_AFTER).await;
            std::process::exit(0);
        }
        instances.follow(&spec);
        known = spec;
        for (name, keeper) in &keepers {
            if let Some(service) = known.postgres(name) {
                keeper.policy(policy(&known, service)).await;
            }
        }
    }
}

async fn answer(mut asked: mpsc::Receiver<Question>, clerk: Arc<Clerk>) {
    while let Some(question) = asked.recv().await {
        let clerk = clerk.clone();
        tokio::spawn(async move {
            let answer = match serde_json::from_value(question.body) {
                Ok(ask) => reply(ask, &clerk).await,
                Err(error) => Err(format!("the question is not understood: {error}")),
            };
            let _ = question.answer.send(answer);
        });
    }
}

/// What answers come from.
struct Clerk {
    keepers: BTreeMap<String, Keeper>,
    journal: Journal,
    /// The journal's.
    dir: PathBuf,
    renewal: Renewal,
    backups: Desk,
    recoveries: Recoveries,
    losses: Losses,
    instances: Instances,
    /// The socket of this machine's gateway.
    requests: PathBuf,
}

async fn reply(ask: Ask, clerk: &Clerk) -> Result<serde_json::Value, String> {
    let Clerk { keepers, journal, renewal, backups, .. } = clerk;
    let keeper = |service: &str| {
        keepers.get(service).ok_or_else(|| format!("{service} is not kept on this node"))
    };
    let dir = clerk.dir.clone();
    let text = |error: serde_json::Error| error.to_string();
    match ask {
        Ask::View { service } => {
            let view = keeper(&service)?.view().await.ok_or("the agent is stopping")?;
            serde_json::to_value(view).map_err(text)
        }
        Ask::Switchover { service, to, who } => {
            let what = format!("switchover to {}", to.as_deref().unwrap_or("the best standby"));
            let id = journal.append(&service, Event::Asked { who, what });
            keeper(&service)?.wish(Cause::Switchover { to }).await?;
            Ok(serde_json::json!({ "journal": id }))
        }
        Ask::Force { service, to, who } => {
            let what = format!("forced failover to {}", to.as_deref().unwrap_or("the best left"));
            let id = journal.append(&service, Event::Asked { who, what });
            keeper(&service)?.wish(Cause::Force { to }).await?;
            Ok(serde_json::json!({ "journal": id }))
        }
        Ask::Journal { limit } => {
            let read =
                tokio::task::spawn_blocking(move || journal::newest(&dir, limit.min(PAGE_MAX)));
            serde_json::to_value(read.await.map_err(|e| e.to_string())?).map_err(text)
        }
        Ask::Entry { id } => {
            let read = tokio::task::spawn_blocking(move || journal::find(&dir, &id));
            serde_json::to_value(read.await.map_err(|e| e.to_string())?).map_err(text)
        }
        Ask::Verify => {
            let read = tokio::task::spawn_blocking(move || journal::verify(&dir));
            let count = read.await.map_err(|e| e.to_string())??;
            Ok(serde_json::json!({ "entries": count }))
        }
        Ask::Restart { service, pid, who } => {
            let what = format!("restart of the standby, pid {pid}");
            let id = journal.append(&service, Event::Asked { who, what });
            keeper(&service)?.restart(pid).await?;
            Ok(serde_json::json!({ "journal": id }))
        }
        Ask::Renew { pid, who } => {
            let asked = || {
                let of = pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
                let what = format!("a new start of Everhold on this machine{of}");
                journal.append("", Event::Asked { who, what })
            };
            let copy = dir.with_file_name(SPEC_COPY);
            Ok(serde_json::json!({ "journal": renewal.ask(pid, &copy, asked).await? }))
        }
        Ask::BackUp { service, kind, who } => {
            keeper(&service)?;
            let id = backups.begin(&service, Work::BackUp { kind }, who)?;
            Ok(serde_json::json!({ "journal": id }))
        }
        Ask::ProveBackup { service, id, why, who } => {
            keeper(&service)?;
            let id = backups.begin(&service, Work::Prove { id, why }, who)?;
            Ok(serde_json::json!({ "journal": id }))
        }
        Ask::Recover { service, point, who } => {
            let keeper = keeper(&service)?.clone();
            let id = clerk.recoveries.begin(&service, &point, who, keeper)?;
            Ok(serde_json::json!({ "journal": id }))
        }
        Ask::Losses { service } => {
            keeper(&service)?;
            serde_json::to_value(clerk.losses.read(&service).await?).map_err(text)
        }
        Ask::RestartInstance { service, instance, pid, who } => {
            clerk.instances.renew(&service, &instance, pid).await?;
            let what = format!("restart of {instance}");
            let id = journal.append(&service, Event::Asked { who, what });
            Ok(serde_json::json!({ "journal": id }))
        }
        Ask::Logs { service, instance, limit, after } => {
            let lines = clerk.instances.logs(&service, instance.as_deref(), limit, after).await?;
            serde_json::to_value(lines).map_err(text)
        }
        Ask::Request { id } => requests::ask(&clerk.requests, &id).await,
        Ask::Routes => requests::ask_routes(&clerk.requests).await,
        Ask::StopInstances => {
            clerk.instances.halt().await;
            Ok(serde_json::json!({}))
        }
        Ask::Halt => {
            journal.append("", Event::Noted { text: "asked to stop everything".to_string() });
            clerk.instances.halt().await;
            for keeper in keepers.values() {
                keeper.halt().await?;
            }
            Ok(serde_json::json!({}))
        }
        Ask::Note { service, who, what } => {
            let id = journal.append(&service, Event::Asked { who, what });
            Ok(serde_json::json!({ "journal": id }))
        }
    }
}
