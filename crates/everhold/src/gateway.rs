//! The role `gateway`: hears all agents, makes route tables, hands them to the data plane.
//!
//! It needs no store to serve: the last table is kept on disk and used until agents say otherwise.

mod degraded;
pub mod draining;
mod handover;
mod peers;
pub mod purges;

use crate::facts::{self, facts};
use crate::layout::Layout;
use crate::link::{self, Hold, Report, Tls};
use crate::links::Links;
use crate::machine;
use crate::names::Names;
use crate::node_file::NodeFile;
use crate::own_socket::OwnSocket;
use crate::spec::record;
use crate::{clock, disk, keeper, log, plain, requests, secrets, spec_store, web};
use anyhow::Context;
use draining::{Draining, Mark};
use everhold_core::http::HttpTable;
use everhold_core::http::cache::purge::Purged;
use everhold_core::http::probe::Health;
use everhold_core::kv::Txn;
use everhold_core::records::{decode, encode};
use everhold_core::route::{self, RouteTable};
use everhold_core::spec::{Address, Spec};
use everhold_core::status::Status;
use everhold_gateway::{Config, Found, Gateway, InstanceSnapshot, Limits};
use everhold_store::{Etcd, Store};
use handover::Taken;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Facts grow old without a message, so the table is made anew this often.
const REMAKE: Duration = Duration::from_millis(500);
/// Between two tries to open the access log.
const LOG_AGAIN: Duration = Duration::from_secs(5);
/// Listeners are opened without the addresses that had no answer by then.
const NAMES_WITHIN: Duration = Duration::from_secs(2);
/// A gateway that is gone leaves the list of gateways after this.
const LEASE: Duration = Duration::from_secs(6);
/// Between two words of a gateway about itself.
const TELL: Duration = Duration::from_secs(2);
/// Sooner if it has left an instance, or has nothing on its way there any more: whoever ends it waits
/// for that word.
const TELL_LOOK: Duration = Duration::from_millis(250);

/// Before a process serves in place of another it hears all agents and checks all instances, unless
/// that takes longer: a node that is down is not heard, and an instance may hang.
const WARM_UP_MAX: Duration = Duration::from_secs(5);
const WARM_UP_LOOK: Duration = Duration::from_millis(20);
/// What has not ended by then is cut off. Pools replace their connections within half an hour, long
/// jobs mostly end; it bounds for how long an old program carries traffic.
const DRAIN_MAX: Duration = Duration::from_secs(3600);
/// Who drains and hears no agent for so long would not learn of a new leader either: newer agents may
/// speak what an old program doesn't understand.
const DEAF_MAX: Duration = Duration::from_secs(60);
/// Between two looks at what has not ended.
const DRAIN_LOOK: Duration = Duration::from_millis(500);

/// What a gateway says about itself in the store.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Presence {
    pub pid: u32,
    pub snapshot: serde_json::Value,
    /// What it waits for.
    #[serde(default)]
    pub holds: Vec<Hold>,
    /// Processes that it succeeded, and that still have clients.
    #[serde(default)]
    pub draining: Vec<Draining>,
    /// Up to which purge it has carried out all; `None`: it can't say.
    #[serde(default)]
    pub purged: Option<Purged>,
}

/// The prefix under which gateways say that they are there.
pub fn presence_prefix(cluster: &str) -> String {
    format!("/everhold/{cluster}/gateway/")
}

/// Runs the gateway until it is ended, or succeeded by another process and done with its clients.
pub async fn run(file: &Path, threads: Option<NonZeroUsize>) -> anyhow::Result<()> {
    let node = NodeFile::read(file)?;
    log::name(&node.name);
    let tls = Tls::follow(&node.ca, &node.cert, &node.key)?;
    let store = Etcd::new(node.store_config()).await.context("prepare the store's client")?;
    // What a gateway keeps stands beside its node file.
    let dir = file.parent().unwrap_or(Path::new("."));
    let copy = dir.join("spec.json");
    let kept = dir.join("table.json");
    let spec = find_spec(&node.cluster, &store, &copy).await?;
    let on = plain::gateway::node_of(&node.name, &spec).context("E221 the spec has no node")?;
    let (address, port) = (on.address.with_port(on.gateway_port()), on.gateway_port());
    let mut taken = handover::take(dir).await;
    let (sockets, last) = match &mut taken {
        Some(taken) => (std::mem::take(&mut taken.sockets), taken.table.take()),
        None => (Vec::new(), None),
    };
    let last = last.or_else(|| last_table(&kept));
    let routed =
        |at: &SocketAddr| last.as_ref().is_some_and(|last| last.binds().any(|it| it == *at));
    let is_port =
        |it: &TcpListener| it.local_addr().is_ok_and(|at| at.port() == port && !routed(&at));
    let (mut ports, sockets): (Vec<_>, Vec<_>) = sockets.into_iter().partition(is_port);
    let table = route::build(&spec.listeners, &BTreeMap::new(), last.as_ref());
    let names = Names::default();
    for (host, address) in last.iter().flat_map(|last| web::known(&spec, last)) {
        names.seed(host, address);
    }
    look_up(&spec, &names);
    web_table(&spec, &web::Told::new(), &node.name, &names);
    names.settle(NAMES_WITHIN).await;
    let table = Arc::new(table.with_http(web_table(&spec, &web::Told::new(), &node.name, &names)));
    let threads =
        threads.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let secret = secret(&node)?;
    let limits = Limits::default();
    let config = Config { table: table.clone(), threads, limits, secret };
    let gateway = Gateway::succeed(config, sockets).context("E223 open the listeners")?;
    let gateway = Arc::new(gateway);
    let (told, hear) = mpsc::channel(1_024);
    // Not one of its duties: who drains gives what it has kept, too.
    let (done, purged) = watch::channel(None);
    tokio::spawn(purges::follow(node.cluster.clone(), store.clone(), gateway.clone(), done));
    let mut links = Links::new(tls.clone(), told);
    links.follow(&spec, link::show_every(spec.nodes.len()), |_| true);
    // Two processes would write over each other's copies.
    let in_charge = Arc::new(AtomicBool::new(taken.is_none()));
    let keeps = in_charge.clone();
    let keeps = move || keeps.load(Ordering::Relaxed);
    let new_spec = spec_store::follow(&node.cluster, store.clone(), copy.clone(), keeps);
    let (tables, to_keep) = watch::channel(table.clone());
    let (logs, wants_log) = watch::channel(spec.gateway.access_log);
    let (specs, known_spec) = watch::channel(spec.clone());
    let limits = on.address.with_port(on.limits_port());
    let trouble = plain::gateway::Trouble::default();
    let mut router = Router {
        me: node.name.clone(),
        store: store.clone(),
        gateway: gateway.clone(),
        kept: tables,
        links,
        spec,
        table,
        words: BTreeMap::new(),
        told: web::Told::new(),
        names,
        logs,
        specs,
        open: false,
        heard: Instant::now(),
        trouble: trouble.clone(),
        hear,
        new_spec,
        remake: tokio::time::interval(REMAKE),
    };
    // Before it serves: who serves and can't be found could not be succeeded.
    let door = handover::bind(dir);
    match taken {
        None => {
            gateway.set_table(to_keep.borrow().clone()).context("E223 open the listeners")?;
            gateway.accept().context("E223 open the listeners")?;
        }
        Some(taken) => {
            router.take_over(taken).await.context("E223 take over the listeners")?;
            in_charge.store(true, Ordering::Relaxed);
            let text = record::to_json(&router.spec)?;
            tokio::task::spawn_blocking(move || {
                if let Err(error) = disk::write_whole(&copy, &text) {
                    tracing::warn!(%error, "cannot keep a copy of the spec");
                }
            });
        }
    }
    let door = door.and_then(OwnSocket::open);

    let desk = plain::gateway::Desk {
        node: node.clone(),
        gateway: gateway.clone(),
        tables: to_keep.clone(),
    };
    let port = plain::gateway::start(address, ports.pop(), desk, trouble.clone());
    let asked = Layout::new(&node.data)?.requests();
    if let Err(error) = requests::serve(&asked, &node.name, gateway.clone(), to_keep.clone()) {
        tracing::warn!(%error, path = %asked.display(), "`explain request` will know of nothing");
    }
    let mut duties = JoinSet::new();
    let peers = (node.name.clone(), limits, tls, gateway.clone());
    duties.spawn(peers::run(peers.0, peers.1, peers.2, peers.3, known_spec, trouble.clone()));
    let word = Word { dir: dir.to_path_buf(), trouble: trouble.clone(), purged: purged.clone() };
    duties.spawn(tell_presence(node, store, gateway.clone(), word));
    duties.spawn(keep_tables(kept, to_keep.clone()));
    // It writes down its last request, too.
    tokio::spawn(write_down(gateway.clone(), dir.join("access.log"), wants_log, trouble));
    let desk = handover::Desk { gateway, tables: to_keep, port };
    let mark = match door.and_then(|door| handover::wait(door, dir, desk)) {
        Ok(mut over) => loop {
            tokio::select! {
                Ok(mark) = &mut over => break mark,
                () = router.step() => {}
            }
        },
        Err(error) => {
            tracing::error!(%error, "no other process can take over from this one");
            loop {
                router.step().await;
            }
        }
    };
    in_charge.store(false, Ordering::Relaxed);
    duties.shutdown().await;
    let here = dir.to_path_buf();
    tokio::task::spawn_blocking(move || draining::bound(&here));
    router.drain(mark, purged).await;
    Ok(())
}

/// What signs cookies: it follows from the cluster's secret, which every machine has.
fn secret(node: &NodeFile) -> anyhow::Result<[u8; 32]> {
    let cluster = secrets::read(&Layout::new(&node.data)?.cluster_secret());
    let text =
        cluster.and_then(|it| secrets::derived(&it, "gateway")).context("read the secret")?;
    let mut secret = [0; 32];
    let length = text.len().min(secret.len());
    secret[..length].copy_from_slice(&text.as_bytes()[..length]);
    Ok(secret)
}

/// The copy first: traffic must not wait for the store.
async fn find_spec(cluster: &str, store: &Etcd, copy: &Path) -> anyhow::Result<Spec> {
    match std::fs::read_to_string(copy).ok().and_then(|text| record::from_json(&text).ok()) {
        Some(spec) => Ok(spec),
        None => spec_store::find(cluster, store, copy, |_| true).await,
    }
}

fn last_table(path: &Path) -> Option<RouteTable> {
    let text = std::fs::read_to_string(path).ok()?;
    match decode(&text) {
        Ok(table) => Some(table),
        Err(why) => {
            tracing::warn!(%why, "the kept route table can't be used; it is made anew");
            None
        }
    }
}

/// Writes each table aside: a stalled disk must not hold up the next one.
async fn keep_tables(path: PathBuf, mut tables: watch::Receiver<Arc<RouteTable>>) {
    while tables.changed().await.is_ok() {
        let (path, text) = (path.clone(), encode(&**tables.borrow_and_update()));
        let written = tokio::task::spawn_blocking(move || disk::write_whole(&path, &text)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "cannot keep the route table");
        }
    }
}

/// Makes tables of what it hears.
struct Router {
    me: String,
    store: Etcd,
    gateway: Arc<Gateway>,
    kept: watch::Sender<Arc<RouteTable>>,
    links: Links,
    spec: Spec,
    table: Arc<RouteTable>,
    /// By service and node.
    words: BTreeMap<String, BTreeMap<String, (Arc<Status>, u64)>>,
    told: web::Told,
    names: Names,
    /// Whether requests are to be written down.
    logs: watch::Sender<bool>,
    specs: watch::Sender<Spec>,
    /// All listeners of the table are.
    open: bool,
    /// An agent, the last time.
    heard: Instant,
    trouble: plain::gateway::Trouble,
    hear: mpsc::Receiver<(String, Arc<Report>)>,
    new_spec: mpsc::Receiver<Spec>,
    remake: tokio::time::Interval,
}

impl Router {
    /// The next thing that is heard, or that is due.
    async fn step(&mut self) {
        tokio::select! {
            Some((node, report)) = self.hear.recv() => {
                self.heard = Instant::now();
                let mut news = false;
                for (service, status) in &report.services {
                    let words = self.words.entry(service.clone()).or_default();
                    let old = words.insert(node.clone(), (status.clone(), clock::now().0));
                    news |= old.is_none_or(|(old, _)| old != *status);
                }
                let old = self.told.insert(node, report.instances.clone());
                news |= old.is_none_or(|old| !web::same(&old, &report.instances));
                if news {
                    self.remake();
                }
            }
            Some(spec) = self.new_spec.recv() => {
                self.take_spec(spec);
                self.remake();
            }
            () = self.names.changed() => self.remake(),
            _ = self.remake.tick() => self.remake(),
        }
    }

    /// Becomes as wise as the process that serves, then serves in its place.
    async fn take_over(&mut self, mut taken: Taken) -> anyhow::Result<()> {
        let until = Instant::now() + WARM_UP_MAX;
        let mut alone = false;
        while !alone && !self.is_warm() && Instant::now() < until {
            let _ = tokio::time::timeout(WARM_UP_LOOK, self.step()).await;
            alone = taken.is_alone()?;
        }
        if !alone {
            // Who hears nobody would never learn of the next leader.
            let hears = self.links.nodes().is_empty() || !self.told.is_empty();
            anyhow::ensure!(hears, "no agent was heard in {} s", WARM_UP_MAX.as_secs());
            let last;
            (last, taken) = tokio::task::spawn_blocking(move || (taken.ready(), taken)).await?;
            match last {
                Ok(Some(last)) => self.publish((*self.table).clone().at_least(&last)),
                Ok(None) => {}
                Err(error) => alone = gone(&taken, error)?,
            }
        }
        // It is said first: the old one can't come back to its sockets then.
        if !alone && let Err(error) = taken.serving() {
            alone = gone(&taken, error)?;
        }
        self.gateway.accept()?;
        tracing::info!(warm = self.is_warm(), alone, "this process serves in place of another");
        Ok(())
    }

    /// All agents were heard, and all instances of HTTP services checked.
    fn is_warm(&self) -> bool {
        let judged = self.gateway.judged();
        let is_checked = |service: &String| {
            let known = judged.get(service).map(|judged| judged.backends.values());
            known.is_some_and(|mut all| all.all(|verdict| verdict.health != Health::Unknown))
        };
        self.links.nodes().iter().all(|node| self.told.contains_key(node))
            && self.table.http.services.keys().all(is_checked)
    }

    /// Stays with its clients until they are gone. It goes on hearing who leads, since a client that
    /// is left with a deposed leader would be worse off than one that is cut.
    async fn drain(&mut self, mark: Mark, purged: watch::Receiver<Option<Purged>>) {
        self.gateway.leave();
        tracing::info!(connections = self.gateway.connections(), "succeeded; it drains");
        tokio::spawn(mark.follow(self.gateway.clone(), purged));
        let until = Instant::now() + DRAIN_MAX;
        let mut look = tokio::time::interval(DRAIN_LOOK);
        let left = loop {
            tokio::select! {
                () = self.step() => {}
                _ = look.tick() => {
                    let left = self.gateway.connections();
                    let deaf = !self.links.nodes().is_empty() && self.heard.elapsed() > DEAF_MAX;
                    if left == 0 || deaf || Instant::now() > until {
                        break left;
                    }
                }
            }
        };
        tracing::info!(connections = left, "drained");
        self.logs.send_replace(false);
        tokio::time::sleep(DRAIN_LOOK).await;
    }

    fn take_spec(&mut self, spec: Spec) {
        look_up(&spec, &self.names);
        self.logs.send_if_modified(|wants| {
            std::mem::replace(wants, spec.gateway.access_log) != spec.gateway.access_log
        });
        self.links.follow(&spec, link::show_every(spec.nodes.len()), |_| true);
        if spec.is_spread() {
            let here = self.me.strip_prefix("gateway.").unwrap_or(&self.me);
            self.store.set_endpoints(machine::endpoints(&spec, here));
        }
        for words in self.words.values_mut() {
            words.retain(|node, _| spec.nodes.contains_key(node));
        }
        self.told.retain(|node, _| spec.nodes.contains_key(node));
        self.specs.send_replace(spec.clone());
        self.spec = spec;
    }

    fn remake(&mut self) {
        let now = clock::now().0;
        let known = self.words.iter().filter_map(|(service, words)| {
            let words = words.iter().map(|(node, (status, at))| {
                let ms_ago = now.saturating_sub(*at);
                (node.clone(), facts::Word { status: status.clone(), ms_ago })
            });
            let resolve = |status: &Status| self.names.find(&status.host, status.port);
            let mut known = facts(&words.collect(), resolve)?;
            // Who was drained is not read from.
            known.standbys.retain(|standby| self.spec.duty(&standby.instance.name).is_active());
            Some((service.clone(), known))
        });
        let known: BTreeMap<_, _> = known.collect();
        let table = route::build(&self.spec.listeners, &known, Some(&self.table));
        let table = table.with_http(web_table(&self.spec, &self.told, &self.me, &self.names));
        self.publish(table);
        self.gateway.set_loads(&web::loads(&self.told));
    }

    fn publish(&mut self, table: RouteTable) {
        let same = table == *self.table;
        if same && self.open {
            return;
        }
        self.table = Arc::new(table);
        let opened = self.gateway.set_table(self.table.clone());
        self.open = opened.is_ok();
        let fault = opened.err().map(|error| keeper::chain(&error));
        self.trouble.note("listener", fault, "the address is free; the others serve");
        if same {
            return;
        }
        self.kept.send_replace(self.table.clone());
        tracing::info!(
            revision = self.table.revision,
            agents = self.links.nodes().len(),
            "new route table"
        );
    }
}

/// After a word that did not come through.
fn gone(taken: &Taken, error: std::io::Error) -> anyhow::Result<bool> {
    anyhow::ensure!(taken.is_alone()?, error);
    Ok(true)
}

/// Writes requests down while that is wanted; a log that can't be opened is tried again.
async fn write_down(
    gateway: Arc<Gateway>,
    path: PathBuf,
    mut wanted: watch::Receiver<bool>,
    trouble: plain::gateway::Trouble,
) {
    loop {
        let (gateway, log) = (gateway.clone(), wanted.borrow_and_update().then(|| path.clone()));
        let set = move || gateway.set_access_log(log.as_deref());
        let Ok(set) = tokio::task::spawn_blocking(set).await else { return };
        let fault = set.err().map(|error| keeper::chain(&error));
        let again = if fault.is_some() { LOG_AGAIN } else { Duration::MAX };
        let unblocks = "what the error names is mended; requests are carried all the same";
        trouble.note("access-log", fault, unblocks);
        if let Ok(Err(_)) = tokio::time::timeout(again, wanted.changed()).await {
            return;
        }
    }
}

/// Asks for what agents will speak of, before they do.
fn look_up(spec: &Spec, names: &Names) {
    for node in spec.nodes.values() {
        names.find(&node.address.to_string(), 0);
    }
}

fn web_table(spec: &Spec, told: &web::Told, me: &str, names: &Names) -> HttpTable {
    let resolve = |address: &Address, port| match address {
        Address::Ip(ip) => Some(SocketAddr::new(*ip, port)),
        Address::Host(host) => names.find(host, port),
    };
    web::table(spec, told, me.strip_prefix("gateway.").unwrap_or(me), resolve)
}

/// What a gateway tells of itself beside what it carries.
struct Word {
    dir: PathBuf,
    trouble: plain::gateway::Trouble,
    purged: watch::Receiver<Option<Purged>>,
}

/// Says in the store what this gateway does, for `status`, for as long as it lives.
async fn tell_presence(node: NodeFile, store: Etcd, gateway: Arc<Gateway>, mut word: Word) {
    let key = format!("{}{}", presence_prefix(&node.cluster), node.name);
    loop {
        let Ok(lease) = store.lease_grant(LEASE).await else {
            tokio::time::sleep(TELL).await;
            continue;
        };
        loop {
            let seen = leaves(&gateway);
            let purged = word.purged.borrow_and_update().clone();
            let snapshot = serde_json::to_value(gateway.snapshot()).unwrap_or_default();
            let mut holds = word.trouble.holds();
            holds.extend(degraded::holds(&gateway.guarded(), clock::now()));
            let draining = list_draining(&word.dir).await;
            let told = draining.clone();
            let pid = std::process::id();
            let presence = Presence { pid, snapshot, holds, draining, purged };
            let txn = Txn::new().put_leased(&key, encode(&presence), lease.id);
            let written = store.txn(&txn).await.is_ok();
            let kept = store.lease_keep_alive(lease.id).await;
            if !written || !matches!(kept, Ok(Some(_))) {
                break;
            }
            let until = Instant::now() + TELL;
            while Instant::now() < until
                && leaves(&gateway) == seen
                && list_draining(&word.dir).await == told
            {
                // Whoever purges waits for the word of it.
                let purged = tokio::time::timeout(TELL_LOOK, word.purged.changed()).await;
                if let Ok(Ok(())) = purged {
                    break;
                }
            }
        }
    }
}

async fn list_draining(dir: &Path) -> Vec<Draining> {
    let dir = dir.to_path_buf();
    tokio::task::spawn_blocking(move || draining::list(&dir)).await.unwrap_or_default()
}

/// By service and instance, whether it was left and something is on its way there still.
fn leaves(gateway: &Gateway) -> BTreeMap<String, BTreeMap<String, bool>> {
    let of = |all: BTreeMap<String, InstanceSnapshot>| {
        all.into_iter().map(|(name, it)| (name, it.is == Found::Left)).collect()
    };
    gateway.services().into_iter().map(|(service, all)| (service, of(all))).collect()
}
