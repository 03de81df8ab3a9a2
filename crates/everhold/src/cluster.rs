//! The whole cluster as one process sees it: the last report of each agent, the gateways, the store.
//! The API answers from it, and passes acts on to the agent they are meant for.

pub mod purges;
mod refusals;
mod word;

pub use word::StoreWord;

use crate::agent::Ask;
use crate::backup::copies::Content;
use crate::backup::forget::Forgetting;
use crate::backup::opened::Opened;
use crate::backup::shown::Summary;
use crate::failovers::{self, Change, LastFailover, Leaders};
use crate::journal::{self, Entry};
use crate::layout::Layout;
use crate::link::{self, Link, LinkError, Report, Tls};
use crate::links::Links;
use crate::machine;
use crate::machine::join::{self, InviteError};
use crate::node_file::NodeFile;
use crate::spec::StorePorts;
use crate::{clock, spec_store};
use everhold_core::kv::{Expect, Kv, Snapshot, Txn, TxnOutcome};
use everhold_core::records::{Keys, encode};
use everhold_core::spec::{Duty, Spec};
#[cfg(test)]
use everhold_store::MemoryStore;
use everhold_store::{Etcd, Store, StoreError, Watch, WatchEvent};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// Between two tries to write who leads since when.
const RECORD_EVERY: Duration = Duration::from_secs(2);
/// So often it is tried: a minute. A later failover writes its own record anyway.
const RECORD_TRIES: u32 = 30;
/// The journal writes aside, so that the entry wanted may come a moment later.
const ENTRY_TRIES: u32 = 5;
const ENTRY_EVERY: Duration = Duration::from_millis(100);
/// An old leader is looked after for ten minutes; a clone of a large one may take longer.
const LOSS_TRIES: u32 = 300;
/// Among so many entries of each node the beginning of a campaign is looked for.
const ENTRIES_LOOKED_AT: usize = 100;
/// An agent that is there takes a note at once.
const NOTED_WITHIN: Duration = Duration::from_secs(1);
/// An agent that was heard so lately is there.
const HEARD_MS: u64 = 1_000;

/// The newest report of each node, and when it came (ms on this machine's clock).
pub type Reports = BTreeMap<String, (Arc<Report>, u64)>;

/// Why an act or a question came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("no node is named {node}")]
    UnknownNode { node: String },
    /// Nobody was reached; nothing was done.
    #[error("{0}")]
    Unreached(String),
    /// It was reached, and nobody knows what it did.
    #[error("{node} did not answer in time")]
    NoAnswer { node: String },
    /// The agent's own words.
    #[error("{node}: {why}")]
    Refused { node: String, why: String },
    #[error("the store is out of reach: {}", crate::keeper::chain(.0))]
    Store(#[from] StoreError),
    #[error("the spec was changed meanwhile")]
    Changed,
    /// What stands there can't be read, so nothing is written over it.
    #[error("{0}")]
    Unreadable(String),
    #[error("the spec can't be written as a record: {0}")]
    Record(#[from] crate::spec::record::RecordError),
}

/// The store as the cluster uses it; in memory in tests.
#[derive(Clone)]
pub enum Agreed {
    Etcd(Etcd),
    #[cfg(test)]
    Memory(MemoryStore),
}

impl Agreed {
    async fn get_prefix(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        match self {
            Agreed::Etcd(store) => store.get_prefix(prefix).await,
            #[cfg(test)]
            Agreed::Memory(store) => store.get_prefix(prefix).await,
        }
    }

    pub async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        match self {
            Agreed::Etcd(store) => store.txn(txn).await,
            #[cfg(test)]
            Agreed::Memory(store) => store.txn(txn).await,
        }
    }

    fn watch(&self, prefix: &str) -> Watch {
        match self {
            Agreed::Etcd(store) => store.watch(prefix, 0),
            #[cfg(test)]
            Agreed::Memory(store) => store.watch(prefix, 0),
        }
    }
}

/// What a cluster is made from.
pub struct Parts {
    pub name: String,
    /// The node of this machine; `None` where all nodes are on one.
    pub here: Option<String>,
    pub layout: Layout,
    pub spec: Spec,
    pub store: Agreed,
    pub store_ports: StorePorts,
    pub tls: Tls,
}

/// Everything together.
pub struct Cluster {
    pub name: String,
    /// The node of this machine; `None` where all nodes are on one.
    pub here: Option<String>,
    pub layout: Layout,
    pub store_ports: StorePorts,
    /// The runs of this process that forget backups.
    pub forgetting: Forgetting,
    pub opened: Opened,
    store: Agreed,
    links: Mutex<Links>,
    seen: Mutex<Seen>,
}

struct Seen {
    spec: Spec,
    reports: Reports,
    word: StoreWord,
    leaders: Leaders,
}

impl Seen {
    fn take_spec(&mut self, spec: Option<&Spec>) {
        let Some(spec) = spec else { return };
        self.reports.retain(|node, _| spec.nodes.contains_key(node));
        self.spec = spec.clone();
    }
}

impl Cluster {
    /// Dials all agents and follows the store.
    pub async fn connect(
        own: &NodeFile,
        here: Option<String>,
        layout: &Layout,
        spec: Spec,
        store: Etcd,
    ) -> anyhow::Result<Arc<Cluster>> {
        let port = |endpoint: &String| endpoint.rsplit(':').next()?.parse().ok();
        let store_ports = match own.store.first().and_then(port) {
            Some(client) => StorePorts { client, peer: client + 1 },
            None => StorePorts::default(),
        };
        Ok(Cluster::start(Parts {
            name: own.cluster.clone(),
            here,
            layout: layout.clone(),
            spec,
            store: Agreed::Etcd(store),
            store_ports,
            tls: Tls::follow(&own.ca, &own.cert, &own.key)?,
        }))
    }

    /// The same from its parts.
    pub fn start(parts: Parts) -> Arc<Cluster> {
        let (told, hear) = mpsc::channel(1_024);
        let mut links = Links::new(parts.tls, told);
        links.follow(&parts.spec, link::show_every(parts.spec.nodes.len()), |_| true);
        let cluster = Arc::new(Cluster {
            name: parts.name,
            here: parts.here,
            layout: parts.layout,
            store_ports: parts.store_ports,
            forgetting: Forgetting::default(),
            opened: Opened::default(),
            store: parts.store,
            links: Mutex::new(links),
            seen: Mutex::new(Seen {
                spec: parts.spec,
                reports: BTreeMap::new(),
                word: StoreWord::default(),
                leaders: Leaders::default(),
            }),
        });
        tokio::spawn(listen(cluster.clone(), hear));
        tokio::spawn(follow(cluster.clone()));
        cluster
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> std::sync::MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, node: &str) -> Option<Link> {
        self.links().get(node)
    }

    /// A new spec: other nodes to hear, other places of the store.
    /// Hears the nodes of the spec that was taken.
    fn follow(&self) {
        let mut links = self.links();
        // Whoever comes last goes by the newest.
        let spec = &self.spec();
        links.follow(spec, link::show_every(spec.nodes.len()), |_| true);
        drop(links);
        if let (Agreed::Etcd(store), Some(here), true) = (&self.store, &self.here, spec.is_spread())
        {
            store.set_endpoints(machine::endpoints(spec, here));
        }
    }

    pub fn spec(&self) -> Spec {
        self.seen().spec.clone()
    }

    /// The spec with its revision: what is changed under this guard is nobody else's word.
    pub fn spec_and_rev(&self) -> (Spec, u64) {
        let seen = self.seen();
        (seen.spec.clone(), seen.word.spec_rev)
    }

    pub fn reports(&self) -> Reports {
        self.seen().reports.clone()
    }

    pub fn word(&self) -> StoreWord {
        self.seen().word.clone()
    }

    /// The names of all nodes that have an agent.
    pub fn nodes(&self) -> Vec<String> {
        self.links().nodes()
    }

    /// The nodes that are not heard because of a certificate.
    pub fn refusals(&self) -> Vec<serde_json::Value> {
        let links = self.nodes().into_iter().filter_map(|node| self.link(&node));
        let refused = links.filter_map(|link| {
            let (refusal, since) = link.refusal()?;
            Some(refusals::hold(&link, refusal, &since))
        });
        refused.collect()
    }

    /// The agent is heard now.
    pub fn hears(&self, node: &str) -> bool {
        self.link(node).as_ref().and_then(Link::silent_ms).is_some_and(|ms| ms < HEARD_MS)
    }

    pub async fn ask(&self, node: &str, ask: &Ask) -> Result<serde_json::Value, ClusterError> {
        let link = self.link(node);
        let link = link.ok_or_else(|| ClusterError::UnknownNode { node: node.to_string() })?;
        let question = serde_json::to_value(ask).unwrap_or_default();
        let node = node.to_string();
        link.ask(question).await.map_err(|error| match error {
            LinkError::NoAnswer { .. } => ClusterError::NoAnswer { node },
            LinkError::Refused(why) => ClusterError::Refused { node, why },
            other => ClusterError::Unreached(other.to_string()),
        })
    }

    /// The node that serves a service and its epoch, as far as anybody says so.
    pub fn serving(&self, service: &str) -> Option<(u64, String)> {
        let seen = self.seen();
        let serving = seen.reports.iter().filter_map(|(node, (report, _))| {
            Some((report.services.get(service)?.serving?, node.clone()))
        });
        serving.max()
    }

    /// Switches automatic acts for a service off or on.
    pub async fn maintain(&self, service: &str, on: bool) -> Result<(), ClusterError> {
        let key = Keys::new(&self.name, service).maintenance();
        let txn = Txn::new();
        let txn = if on { txn.put(&key, encode(&clock::wall())) } else { txn.delete(&key) };
        self.store.txn(&txn).await?;
        self.read_again().await
    }

    /// Tells every API what the repositories hold of a service.
    pub async fn put_backups(&self, service: &str, summary: &Summary) -> Result<(), ClusterError> {
        self.put_of(service, "backups", summary).await
    }

    /// Tells every API something of the whole cluster, under a name that `word` knows.
    pub async fn put_word(
        &self,
        name: &str,
        value: &impl serde::Serialize,
    ) -> Result<(), ClusterError> {
        let key = format!("{}{name}", self.prefix());
        self.store.txn(&Txn::new().put(&key, encode(value))).await?;
        Ok(())
    }

    /// All that the store holds of this cluster.
    pub async fn content(&self) -> Result<Content, ClusterError> {
        let snapshot = self.store.get_prefix(&self.prefix()).await?;
        let keys = snapshot.kvs.into_iter().map(|kv| (kv.key, kv.value));
        Ok(Content::new(&self.name, snapshot.rev, keys.collect()))
    }

    /// Tells every API something of a service, under a name that `word` knows.
    pub async fn put_of(
        &self,
        service: &str,
        name: &str,
        value: &impl serde::Serialize,
    ) -> Result<(), ClusterError> {
        let key = format!("{}{name}", Keys::new(&self.name, service).prefix);
        self.store.txn(&Txn::new().put(&key, encode(value))).await?;
        Ok(())
    }

    /// A token with which one machine can join as `node`.
    pub async fn invite(
        &self,
        node: &str,
        lasts: Duration,
        replace: bool,
    ) -> Result<String, InviteError> {
        match &self.store {
            Agreed::Etcd(store) => {
                join::invite(store, &self.layout, &self.name, node, lasts, replace).await
            }
            #[cfg(test)]
            Agreed::Memory(store) => {
                join::invite(store, &self.layout, &self.name, node, lasts, replace).await
            }
        }
    }

    /// The word of the store as it is now, not as it was last told.
    pub async fn read_again(&self) -> Result<(), ClusterError> {
        let before = self.seen().word.newest;
        let snapshot = self.store.get_prefix(&self.prefix()).await?;
        self.take_all(&snapshot, before);
        Ok(())
    }

    fn prefix(&self) -> String {
        format!("/everhold/{}/", self.name)
    }

    /// Puts a new spec where all find it, unless somebody else did so since revision `rev`.
    pub async fn apply(&self, spec: &Spec, rev: u64) -> Result<u64, ClusterError> {
        let text = crate::spec::record::to_json(spec)?;
        let key = spec_store::key(&self.name);
        let txn = Txn::new().guard(&key, Expect::Rev(rev)).put(&key, text);
        match self.store.txn(&txn).await? {
            TxnOutcome::Done { rev } => {
                self.read_again().await?;
                Ok(rev)
            }
            TxnOutcome::Refused { .. } => Err(self.spec_changed()),
        }
    }

    /// Puts a spec in the place of `old`, while the guard holds too. False: nothing was changed.
    pub async fn change(
        &self,
        (key, expect): (String, Expect),
        old: &Spec,
        new: &Spec,
    ) -> Result<bool, ClusterError> {
        let spec_key = spec_store::key(&self.name);
        // The revision is that of the very spec that is compared.
        let snapshot = self.store.get_prefix(&spec_key).await?;
        let Some(kv) = snapshot.get(&spec_key) else { return Ok(false) };
        if crate::spec::record::from_json(&kv.value)? != *old {
            return Ok(false);
        }
        let text = crate::spec::record::to_json(new)?;
        let txn = Txn::new().guard(&spec_key, Expect::Rev(kv.rev)).guard(key, expect);
        self.write(&txn.put(&spec_key, text)).await
    }

    /// Takes a node out of the spec, and out of those that have joined.
    pub async fn forget(&self, node: &str) -> Result<(), ClusterError> {
        self.read_again().await?;
        let (spec, rev) = self.spec_and_rev();
        if spec.duty(node) != Duty::Leaving {
            return Ok(());
        }
        let refused = |why| ClusterError::Refused { node: node.to_string(), why };
        let text = crate::spec::record::to_json(&spec.without(node).map_err(refused)?)?;
        let key = spec_store::key(&self.name);
        let joined = machine::joined_key(&self.name, node);
        let txn = Txn::new().guard(&key, Expect::Rev(rev)).put(&key, text).delete(&joined);
        if self.write(&txn).await? { Ok(()) } else { Err(self.spec_changed()) }
    }

    fn spec_changed(&self) -> ClusterError {
        let mut unreadable = self.word().unreadable;
        let unreadable = unreadable.remove(&spec_store::key(&self.name));
        unreadable.map_or(ClusterError::Changed, |it| ClusterError::Unreadable(it.why))
    }

    /// Writes, and learns what stands there then. False: a guard refused it.
    pub async fn write(&self, txn: &Txn) -> Result<bool, ClusterError> {
        let done = matches!(self.store.txn(txn).await?, TxnOutcome::Done { .. });
        self.read_again().await?;
        Ok(done)
    }

    /// Notes an operator's act in the journal of the first agent that is heard; the entry's id.
    pub async fn note(&self, service: &str, who: &str, what: &str) -> Option<String> {
        let ask = Ask::Note {
            service: service.to_string(),
            who: who.to_string(),
            what: what.to_string(),
        };
        for node in &self.nodes() {
            // One that was just frozen still counts as heard; the next one notes it instead.
            if let Ok(Ok(answer)) = tokio::time::timeout(NOTED_WITHIN, self.ask(node, &ask)).await {
                return answer["journal"].as_str().map(str::to_string);
            }
        }
        tracing::warn!(service, who, what, "no agent is heard: this is in no journal");
        None
    }

    /// The newest entries of all journals, oldest first.
    pub async fn journal(&self, limit: usize, service: Option<&str>) -> Vec<Entry> {
        let mut all = Vec::new();
        for node in &self.nodes() {
            let entries = match self.local_journal(node) {
                Some(dir) => blocking(move || journal::newest(&dir, limit)).await,
                None => match self.ask(node, &Ask::Journal { limit }).await {
                    // One at a time: a newer version's may have another shape.
                    Ok(serde_json::Value::Array(all)) => Some(
                        all.iter().filter_map(|it| journal::entry_of(&it.to_string())).collect(),
                    ),
                    Ok(_) | Err(_) => None,
                },
            };
            all.extend(entries.unwrap_or_default());
        }
        all.retain(|entry: &Entry| service.is_none_or(|name| entry.service == name));
        all.sort_by(|a: &Entry, b| (&a.at, sequence(&a.id)).cmp(&(&b.at, sequence(&b.id))));
        let skip = all.len().saturating_sub(limit);
        all.split_off(skip)
    }

    /// The journal of a node on this machine is read where it lies: an agent that is busy, frozen
    /// or gone is no reason not to know what it did.
    fn local_journal(&self, node: &str) -> Option<std::path::PathBuf> {
        let dir = self.layout.node(node).join("journal");
        dir.is_dir().then_some(dir)
    }

    /// An entry by its id NODE-SEQ, and whether it is as it was written.
    pub async fn entry(&self, id: &str) -> Result<Option<(Entry, bool)>, ClusterError> {
        let Some((node, _)) = id.rsplit_once('-').filter(|(n, _)| self.link(n).is_some()) else {
            return Ok(None);
        };
        if let Some(dir) = self.local_journal(node) {
            let id = id.to_string();
            return Ok(blocking(move || journal::find(&dir, &id)).await.flatten());
        }
        let value = self.ask(node, &Ask::Entry { id: id.to_string() }).await?;
        Ok(serde_json::from_value(value).ok().flatten())
    }

    /// Whether a node's journal is whole: the number of its entries, or what is wrong.
    pub async fn verify(&self, node: &str) -> Result<Result<u64, String>, ClusterError> {
        if let Some(dir) = self.local_journal(node) {
            let counted = blocking(move || journal::verify(&dir)).await;
            let counted = counted.unwrap_or_else(|| Err("it can't be read".to_string()));
            return Ok(counted.map(|count| count as u64));
        }
        match self.ask(node, &Ask::Verify).await {
            Ok(value) => Ok(Ok(value["entries"].as_u64().unwrap_or_default())),
            Err(ClusterError::Refused { why, .. }) => Ok(Err(why)),
            Err(other) => Err(other),
        }
    }

    fn hear(&self, node: String, report: Arc<Report>) -> Vec<Change> {
        let now = clock::now().0;
        let mut seen = self.seen();
        let seen = &mut *seen;
        let mut changes = Vec::new();
        for (service, status) in &report.services {
            changes.extend(seen.leaders.hear(service, &node, status.serving, now));
        }
        seen.reports.insert(node, (report, now));
        changes
    }

    fn take(&self, key: &str, kv: Option<&Kv>) {
        let mut seen = self.seen();
        let spec = seen.word.learn(&self.prefix(), key, kv);
        seen.take_spec(spec.as_ref());
        drop(seen);
        if spec.is_some() {
            self.follow();
        }
    }

    /// Takes in a snapshot; `before`: the newest revision that was known when its reading began.
    fn take_all(&self, snapshot: &Snapshot, before: u64) {
        let mut seen = self.seen();
        if seen.word.outruns(snapshot.rev, before) {
            return;
        }
        let (word, spec) = StoreWord::of(&self.prefix(), snapshot, &seen.word);
        seen.word = word;
        seen.take_spec(spec.as_ref());
        drop(seen);
        if spec.is_some() {
            self.follow();
        }
    }

    /// Finds out how the change came about, shows it, and writes it down.
    async fn record(&self, change: Change) {
        let at = clock::wall();
        let mut entry = None;
        for _ in 0..ENTRY_TRIES {
            let entries = self.journal(ENTRIES_LOOKED_AT, Some(&change.service)).await;
            entry = failovers::beginning(&entries, &change.service, change.epoch).cloned();
            if entry.is_some() {
                break;
            }
            tokio::time::sleep(ENTRY_EVERY).await;
        }
        let record = failovers::record(&change, entry.as_ref(), at);
        if self.write_down(&change.service, &record).await {
            self.add_loss(&change, record).await;
        }
    }

    /// When the old leader has been made good again, it is known what it alone had.
    async fn add_loss(&self, change: &Change, mut record: LastFailover) {
        let Some(from) = &change.from else { return };
        for _ in 0..LOSS_TRIES {
            tokio::time::sleep(RECORD_EVERY).await;
            // Looked at before the files: who streams again has kept what there was to keep.
            let follows = self.follows(&change.service, from, change.epoch);
            let kept = self.layout.diverged(from, &change.service).join(change.epoch.to_string());
            let bytes = blocking(move || kept_bytes(&kept)).await.flatten();
            if let Some(bytes) = bytes {
                record.lost.unacknowledged_bytes = Some(bytes);
                record.lost.kept_at = Some(format!("{from}:diverged/{}", change.epoch));
            } else if follows {
                record.lost.unacknowledged_bytes = Some(0);
            } else {
                continue;
            }
            self.write_down(&change.service, &record).await;
            return;
        }
    }

    fn follows(&self, service: &str, node: &str, epoch: u64) -> bool {
        let seen = self.seen();
        let told = seen.reports.get(node).and_then(|(report, _)| report.services.get(service));
        told.is_some_and(|status| {
            status.term >= epoch && (status.streaming || status.serving.is_some())
        })
    }

    /// True when this record stands in the store: none of a later epoch was there.
    async fn write_down(&self, service: &str, record: &LastFailover) -> bool {
        let key = format!("{}last-failover", Keys::new(&self.name, service).prefix);
        for _ in 0..RECORD_TRIES {
            let (known, rev) = match self.recorded(&key, service).await {
                Ok(found) => found,
                Err(_) => {
                    tokio::time::sleep(RECORD_EVERY).await;
                    continue;
                }
            };
            // Somebody else who watched may have written the same, or less, of this epoch.
            let better = known.is_none_or(|known| {
                let same = known.epoch == record.epoch;
                let more = |lost: &failovers::Lost| lost.unacknowledged_bytes.is_some();
                known.epoch < record.epoch || (same && more(&record.lost) && !more(&known.lost))
            });
            if !better {
                return false;
            }
            self.seen().word.last_failover.insert(service.to_string(), record.clone());
            let txn = Txn::new().guard(&key, Expect::Rev(rev)).put(&key, encode(record));
            if matches!(self.store.txn(&txn).await, Ok(TxnOutcome::Done { .. })) {
                return true;
            }
            tokio::time::sleep(RECORD_EVERY).await;
        }
        false
    }

    async fn recorded(
        &self,
        key: &str,
        service: &str,
    ) -> Result<(Option<LastFailover>, u64), ClusterError> {
        let snapshot = self.store.get_prefix(key).await?;
        self.seen().word.relearn_failover(service, snapshot.get(key));
        let known = self.seen().word.last_failover.get(service).cloned();
        Ok((known, snapshot.get(key).map_or(0, |kv| kv.rev)))
    }
}

/// What the rewind of an old leader kept aside, in bytes of WAL.
fn kept_bytes(place: &std::path::Path) -> Option<u64> {
    let text = std::fs::read_to_string(place.join("summary.json")).ok()?;
    let kept: everhold_adapters::postgres::KeptWal = serde_json::from_str(&text).ok()?;
    Some(kept.bytes)
}

async fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(read).await.ok()
}

/// The number in NODE-SEQ, so that a-10 comes after a-9 within one millisecond.
fn sequence(id: &str) -> u64 {
    id.rsplit('-').next().and_then(|seq| seq.parse().ok()).unwrap_or(0)
}

async fn listen(cluster: Arc<Cluster>, mut hear: mpsc::Receiver<(String, Arc<Report>)>) {
    while let Some((node, report)) = hear.recv().await {
        for change in cluster.hear(node, report) {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.record(change).await });
        }
    }
}

async fn follow(cluster: Arc<Cluster>) {
    loop {
        let mut watch = cluster.store.watch(&cluster.prefix());
        while let Some(event) = watch.next().await {
            match event {
                // It was read before something that is known by now, or the store was restored from
                // a copy.
                WatchEvent::Reset(snapshot) if snapshot.rev < cluster.seen().word.newest => {
                    if cluster.read_again().await.is_err() {
                        break;
                    }
                }
                WatchEvent::Reset(snapshot) => cluster.take_all(&snapshot, snapshot.rev),
                // All of it was read already, and maybe what came after it.
                WatchEvent::Changed(changes) if changes.rev < cluster.seen().word.newest => {}
                WatchEvent::Changed(changes) => {
                    for change in &changes.changes {
                        let kv = match change {
                            everhold_core::kv::Change::Put(kv) => Some(kv),
                            everhold_core::kv::Change::Deleted { .. } => None,
                        };
                        cluster.take(change.key(), kv);
                    }
                    cluster.seen().word.reached(changes.rev);
                }
                WatchEvent::Progress => {
                    let newest = cluster.seen().word.newest;
                    cluster.seen().word.reached(newest);
                }
                WatchEvent::Lost(_) | WatchEvent::Ended(_) => cluster.seen().word.revision = None,
            }
        }
        tokio::time::sleep(RECORD_EVERY).await;
    }
}
