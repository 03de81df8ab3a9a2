//! The role `gateway`: hears all agents, makes route tables, hands them to the data plane.
//!
//! It needs no store to serve: the last table is kept on disk and used until agents say otherwise.

use crate::agent;
use crate::facts::{Word, facts};
use crate::link::{self, Hold, Report, Tls};
use crate::links::Links;
use crate::machine;
use crate::node_file::NodeFile;
use crate::spec::record;
use crate::{clock, disk, log, plain, spec_store};
use anyhow::Context;
use everhold_core::kv::Txn;
use everhold_core::records::{decode, encode};
use everhold_core::route::{self, RouteTable};
use everhold_core::spec::Spec;
use everhold_core::status::Status;
use everhold_gateway::{Config, Gateway, Limits};
use everhold_store::{Etcd, Store};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Facts grow old without a message, so the table is made anew this often.
const REMAKE: Duration = Duration::from_millis(500);
/// A gateway that is gone leaves the list of gateways after this.
const LEASE: Duration = Duration::from_secs(6);
/// Between two words of a gateway about itself.
const TELL: Duration = Duration::from_secs(2);

/// What a gateway says about itself in the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Presence {
    pub pid: u32,
    pub snapshot: serde_json::Value,
    /// What it waits for.
    #[serde(default)]
    pub holds: Vec<Hold>,
}

/// The prefix under which gateways say that they are there.
pub fn presence_prefix(cluster: &str) -> String {
    format!("/everhold/{cluster}/gateway/")
}

/// Runs the gateway until it is ended.
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
    let last = last_table(&kept);
    let table = Arc::new(route::build(&spec.listeners, &BTreeMap::new(), last.as_ref()));
    let threads =
        threads.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let config = Config { table: table.clone(), threads, limits: Limits::default() };
    let gateway = Arc::new(Gateway::start(config).context("E223 open the listeners")?);
    let (told, hear) = mpsc::channel(1_024);
    let mut links = Links::new(tls, told);
    links.follow(&spec, link::show_every(spec.nodes.len()), |_| true);
    let new_spec = spec_store::follow(&node.cluster, store.clone(), copy);
    let (tables, to_keep) = watch::channel(table.clone());
    let desk = plain::gateway::Desk {
        node: node.clone(),
        gateway: gateway.clone(),
        tables: to_keep.clone(),
    };
    let on = plain::gateway::node_of(&node.name, &spec).context("E221 the spec has no node")?;
    let address = agent::resolve(&on.address.to_string(), on.gateway_port())?;
    let trouble = plain::gateway::start(address, desk);
    tokio::spawn(tell_presence(node.clone(), store.clone(), gateway.clone(), trouble));
    tokio::spawn(keep_tables(kept, to_keep));
    route_traffic(
        Router {
            me: node.name,
            store,
            gateway,
            kept: tables,
            links,
            spec,
            table,
            words: BTreeMap::new(),
        },
        hear,
        new_spec,
    )
    .await;
    Ok(())
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
}

async fn route_traffic(
    mut router: Router,
    mut hear: mpsc::Receiver<(String, Arc<Report>)>,
    mut new_spec: mpsc::Receiver<Spec>,
) {
    let mut remake = tokio::time::interval(REMAKE);
    loop {
        tokio::select! {
            Some((node, report)) = hear.recv() => {
                let mut news = false;
                for (service, status) in &report.services {
                    let words = router.words.entry(service.clone()).or_default();
                    let old = words.insert(node.clone(), (status.clone(), clock::now().0));
                    news |= old.is_none_or(|(old, _)| old != *status);
                }
                if news {
                    router.remake();
                }
            }
            Some(spec) = new_spec.recv() => {
                router.take_spec(spec);
                router.remake();
            }
            _ = remake.tick() => router.remake(),
        }
    }
}

impl Router {
    fn take_spec(&mut self, spec: Spec) {
        self.links.follow(&spec, link::show_every(spec.nodes.len()), |_| true);
        if spec.is_spread() {
            let here = self.me.strip_prefix("gateway.").unwrap_or(&self.me);
            self.store.set_endpoints(machine::endpoints(&spec, here));
        }
        for words in self.words.values_mut() {
            words.retain(|node, _| spec.nodes.contains_key(node));
        }
        self.spec = spec;
    }

    fn remake(&mut self) {
        let now = clock::now().0;
        let known = self.words.iter().filter_map(|(service, words)| {
            let words = words.iter().map(|(node, (status, at))| {
                let ms_ago = now.saturating_sub(*at);
                (node.clone(), Word { status: status.clone(), ms_ago })
            });
            let resolve = |status: &Status| agent::resolve(&status.host, status.port).ok();
            let mut known = facts(&words.collect(), resolve)?;
            // Who was drained is not read from.
            known.standbys.retain(|standby| self.spec.duty(&standby.instance.name).is_active());
            Some((service.clone(), known))
        });
        let known: BTreeMap<_, _> = known.collect();
        let table = route::build(&self.spec.listeners, &known, Some(&self.table));
        if table == *self.table {
            return;
        }
        self.table = Arc::new(table);
        if let Err(error) = self.gateway.set_table(self.table.clone()) {
            tracing::error!(%error, "a listener can't be opened; the others serve");
        }
        self.kept.send_replace(self.table.clone());
        tracing::info!(
            revision = self.table.revision,
            agents = self.links.nodes().len(),
            "new route table"
        );
    }
}

/// Says in the store what this gateway does, for `status`, for as long as it lives.
async fn tell_presence(
    node: NodeFile,
    store: Etcd,
    gateway: Arc<Gateway>,
    trouble: plain::gateway::Trouble,
) {
    let key = format!("{}{}", presence_prefix(&node.cluster), node.name);
    loop {
        let Ok(lease) = store.lease_grant(LEASE).await else {
            tokio::time::sleep(TELL).await;
            continue;
        };
        loop {
            let snapshot = serde_json::to_value(gateway.snapshot()).unwrap_or_default();
            let holds = trouble.hold().into_iter().collect();
            let presence = Presence { pid: std::process::id(), snapshot, holds };
            let txn = Txn::new().put_leased(&key, encode(&presence), lease.id);
            let told = store.txn(&txn).await.is_ok();
            let kept = store.lease_keep_alive(lease.id).await;
            if !told || !matches!(kept, Ok(Some(_))) {
                break;
            }
            tokio::time::sleep(TELL).await;
        }
    }
}
