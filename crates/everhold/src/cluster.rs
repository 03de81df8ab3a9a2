//! The whole cluster as one process sees it: the last report of each agent, the gateways, the store.
//! The API answers from it, and passes acts on to the agent they are meant for.

use crate::agent::{Ask, dial_others};
use crate::gateway::{Presence, presence_prefix};
use crate::layout::Layout;
use crate::link::{Link, Report, Tls};
use crate::node_file::NodeFile;
use crate::{clock, spec_store};
use everhold_core::journal::Event;
use everhold_core::kv::{Expect, Txn, TxnOutcome};
use everhold_core::records::{Keys, decode, encode};
use everhold_core::spec::Spec;
use everhold_store::{Etcd, Store};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// Between two looks at the store.
const LOOK: Duration = Duration::from_secs(1);

/// The newest report of each node, and when it came (ms on this machine's clock).
pub type Reports = BTreeMap<String, (Arc<Report>, u64)>;

/// How a service came to its present leader, for `status`. Written to the store by whoever saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastFailover {
    pub at: String,
    pub kind: String,
    pub from: String,
    pub to: String,
    pub epoch: u64,
    pub rule: String,
    pub outage_ms: u64,
    pub journal: Option<String>,
}

/// What the store says that agents don't.
#[derive(Clone, Debug, Default)]
pub struct StoreWord {
    /// Revision, while it answers.
    pub revision: Option<u64>,
    pub gateways: BTreeMap<String, Presence>,
    pub last_failover: BTreeMap<String, LastFailover>,
    pub maintenance: BTreeMap<String, bool>,
    pub terms: BTreeMap<String, everhold_core::term::Term>,
}

/// Everything together.
pub struct Cluster {
    pub name: String,
    pub layout: Layout,
    pub store: Etcd,
    spec: Mutex<Spec>,
    links: BTreeMap<String, Link>,
    reports: Mutex<Reports>,
    word: Mutex<StoreWord>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// Dials all agents and follows the store.
    pub async fn connect(
        own: &NodeFile,
        layout: &Layout,
        spec: Spec,
        store: Etcd,
    ) -> anyhow::Result<Arc<Cluster>> {
        let tls = Tls::load(&own.ca, &own.cert, &own.key)?;
        let (told, mut hear) = mpsc::channel(1_024);
        let links = dial_others(&own.name, &spec, &tls, told);
        let cluster = Arc::new(Cluster {
            name: own.cluster.clone(),
            layout: layout.clone(),
            store: store.clone(),
            spec: Mutex::new(spec),
            links: links.into_iter().map(|link| (link.node.clone(), link)).collect(),
            reports: Mutex::new(BTreeMap::new()),
            word: Mutex::new(StoreWord::default()),
        });
        let hearing = cluster.clone();
        tokio::spawn(async move {
            while let Some((node, report)) = hear.recv().await {
                lock(&hearing.reports).insert(node, (report, clock::now().0));
            }
        });
        let copy = layout.supervisor().join("spec.json");
        let mut specs = spec_store::follow(&own.cluster, store, copy);
        let following = cluster.clone();
        tokio::spawn(async move {
            while let Some(spec) = specs.recv().await {
                *lock(&following.spec) = spec;
            }
        });
        let looking = cluster.clone();
        tokio::spawn(async move {
            loop {
                looking.look().await;
                tokio::time::sleep(LOOK).await;
            }
        });
        Ok(cluster)
    }

    pub fn spec(&self) -> Spec {
        lock(&self.spec).clone()
    }

    pub fn reports(&self) -> Reports {
        lock(&self.reports).clone()
    }

    pub fn word(&self) -> StoreWord {
        lock(&self.word).clone()
    }

    /// The agent is heard now.
    pub fn hears(&self, node: &str) -> bool {
        self.links.get(node).and_then(Link::silent_ms).is_some_and(|ms| ms < 1_000)
    }

    pub async fn ask(&self, node: &str, ask: &Ask) -> anyhow::Result<serde_json::Value> {
        let link =
            self.links.get(node).ok_or_else(|| anyhow::anyhow!("no node is named {node}"))?;
        Ok(link.ask(serde_json::to_value(ask)?).await?)
    }

    /// The node that leads a service, as far as anybody says so.
    pub fn leader(&self, service: &str) -> Option<String> {
        let reports = self.reports();
        let serving = reports.iter().filter_map(|(node, (report, _))| {
            Some((report.services.get(service)?.serving?, node.clone()))
        });
        serving.max().map(|(_, node)| node)
    }

    async fn look(&self) {
        let prefix = format!("/everhold/{}/", self.name);
        let Ok(snapshot) = self.store.get_prefix(&prefix).await else {
            lock(&self.word).revision = None;
            return;
        };
        let mut word = StoreWord { revision: Some(snapshot.rev), ..StoreWord::default() };
        let gateways = presence_prefix(&self.name);
        for kv in &snapshot.kvs {
            if let Some(name) = kv.key.strip_prefix(&gateways)
                && let Ok(presence) = decode(&kv.value)
            {
                word.gateways.insert(name.to_string(), presence);
            }
            let Some(rest) = kv.key.strip_prefix(&format!("{prefix}service/")) else { continue };
            match rest.split_once('/') {
                Some((service, "maintenance")) => {
                    word.maintenance.insert(service.to_string(), true);
                }
                Some((service, "last-failover")) => {
                    if let Ok(last) = decode(&kv.value) {
                        word.last_failover.insert(service.to_string(), last);
                    }
                }
                Some((service, "term")) => {
                    if let Ok(term) = decode(&kv.value) {
                        word.terms.insert(service.to_string(), term);
                    }
                }
                Some(_) | None => {}
            }
        }
        *lock(&self.word) = word;
    }

    /// Switches automatic acts for a service off or on.
    pub async fn maintain(&self, service: &str, on: bool) -> anyhow::Result<()> {
        let key = Keys::new(&self.name, service).maintenance();
        let txn = Txn::new();
        let txn = if on { txn.put(&key, encode(&clock::wall())) } else { txn.delete(&key) };
        self.store.txn(&txn).await?;
        self.look().await;
        Ok(())
    }

    /// Puts a new spec where all find it.
    pub async fn apply(&self, spec: &Spec, rev: u64) -> anyhow::Result<u64> {
        let text = crate::spec::record::to_json(spec)?;
        let key = spec_store::key(&self.name);
        let txn = Txn::new().guard(&key, Expect::Rev(rev)).put(&key, text);
        match self.store.txn(&txn).await? {
            TxnOutcome::Done { rev } => Ok(rev),
            TxnOutcome::Refused { .. } => {
                anyhow::bail!("E232 the spec was changed meanwhile; next step: try again")
            }
        }
    }

    /// Notes an operator's act in the journal of the first agent that is heard.
    pub async fn note(&self, service: &str, who: &str, what: &str) {
        let ask = Ask::Note {
            service: service.to_string(),
            who: who.to_string(),
            what: what.to_string(),
        };
        for node in self.links.keys() {
            if self.ask(node, &ask).await.is_ok() {
                return;
            }
        }
    }

    /// The newest entries of all journals, oldest first.
    pub async fn journal(&self, limit: usize) -> Vec<crate::journal::Entry> {
        let mut all = Vec::new();
        for node in self.links.keys() {
            if let Ok(value) = self.ask(node, &Ask::Journal { limit }).await
                && let Ok(mut entries) = serde_json::from_value::<Vec<_>>(value)
            {
                all.append(&mut entries);
            } else {
                let dir = self.layout.node(node).join("journal");
                all.append(&mut crate::journal::newest(&dir, limit));
            }
        }
        all.sort_by(|a: &crate::journal::Entry, b| (&a.at, &a.id).cmp(&(&b.at, &b.id)));
        let skip = all.len().saturating_sub(limit);
        all.split_off(skip)
    }

    /// An entry by its id NODE-SEQ.
    pub async fn entry(&self, id: &str) -> Option<crate::journal::Entry> {
        let (node, _) = id.rsplit_once('-')?;
        let ask = Ask::Entry { id: id.to_string() };
        match self.ask(node, &ask).await {
            Ok(value) => serde_json::from_value(value).ok().flatten(),
            Err(_) => crate::journal::find(&self.layout.node(node).join("journal"), id),
        }
    }
}

/// One line about an entry, for people.
pub fn describe(event: &Event) -> String {
    match event {
        Event::Decided(decision) => {
            let what: Vec<&str> = match &decision.verdict {
                everhold_core::decide::Verdict::Act { actions, .. } => {
                    actions.iter().map(everhold_core::decide::Action::name).collect()
                }
                everhold_core::decide::Verdict::Steady
                | everhold_core::decide::Verdict::Hold { .. } => Vec::new(),
            };
            let why = match &decision.verdict {
                everhold_core::decide::Verdict::Act { why, .. }
                | everhold_core::decide::Verdict::Hold { why, .. } => why.as_str(),
                everhold_core::decide::Verdict::Steady => "",
            };
            format!("{}: {} — {why}", decision.verdict.rule(), what.join(", "))
        }
        Event::Ended { action, ok: true, .. } => format!("{action} works again"),
        Event::Ended { action, ok: false, text } => format!("{action} failed: {text}"),
        Event::Asked { who, what } => format!("{who} asks: {what}"),
        Event::Noted { text } => text.clone(),
    }
}
