//! `everhold init`: the cluster's authority, its secret, its store, and its first machine.

use super::{begin, certify, check, endpoints, finish, joined_key, member, node_file, spec_copy};
use crate::layout::Layout;
use crate::node_file::{NodeFile, StoreTls};
use crate::spec::{self, StorePorts, record};
use crate::supervisor::{Faults, STOP_WITHIN, say};
use crate::{clock, disk, secrets, spec_store, store as care};
use anyhow::{Context as _, bail};
use everhold_adapters::etcd::Etcd as Server;
use everhold_adapters::pki::{Authority, CertPair};
use everhold_core::kv::{Expect, Txn, TxnOutcome};
use everhold_core::records::encode;
use everhold_store::{Etcd, Store};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    pub spec: PathBuf,
    pub node: String,
    pub data: PathBuf,
    pub file: PathBuf,
}

/// That a machine has joined as a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// RFC 3339.
    pub at: String,
    /// Made by the machine: the same one may ask again when it lost the answer.
    pub machine: String,
}

/// Makes the first machine. Done again after a crash, it goes on where it was.
pub async fn init(options: Options) -> anyhow::Result<()> {
    let spec = spec::load_file(&options.spec, StorePorts::default()).map_err(Faults)?;
    let me = options.node.as_str();
    let Some(own) = spec.nodes.get(me) else {
        let known: Vec<&String> = spec.nodes.keys().collect();
        bail!("E243 the spec has no node {me}; next step: choose one of {known:?} with --node");
    };
    if spec.store.is_none() && !spec.store_nodes().any(|(name, _)| name == me) {
        let wanted: Vec<&str> = spec.store_nodes().map(|(name, _)| name).collect();
        bail!("E244 {me} runs no member of the store; next step: begin with one of {wanted:?}");
    }
    let layout = Layout::new(&options.data)?;
    if !layout.cluster_record().exists() {
        check(&spec, &layout, me)?;
    }
    let _lock = begin(&layout, &spec.cluster, &options.file)?;
    say(format_args!("· cluster {}, node {me}, data in {}", spec.cluster, layout.root().display()));
    secrets::make_all(&layout, &spec).context("make the secrets")?;
    let authority = Authority::open(&layout.pki())?;
    let certs = certify(&authority, me, own)?;
    say("· authority and certificates");
    disk::write_whole(&spec_copy(&layout), &record::to_json(&spec)?)?;
    let node = |name: &str, pair: &CertPair| NodeFile {
        name: name.to_string(),
        cluster: spec.cluster.clone(),
        data: layout.root().to_path_buf(),
        store: endpoints(&spec, me),
        ca: pair.ca.clone(),
        cert: pair.cert.clone(),
        key: pair.key.clone(),
        store_tls: StoreTls::of(&spec),
    };

    let own_file = node(me, &certs.agent);
    let server = match &spec.store {
        None => {
            say("· the store's first member");
            let member = member::config(&layout, me, own, &certs.etcd)?;
            Some(Server::start(member.server()).await?)
        }
        Some(_) => None,
    };
    let first = if server.is_some() { &own_file.store[..1] } else { &own_file.store };
    let here = node_file(me, &own_file, &certs.api, first);
    let store = Etcd::new(here.store_config()).await?;
    let put = put_first(&store, &spec, me, &layout).await;
    if let Some(server) = server {
        server.stop(STOP_WITHIN).await?;
    }
    put?;
    finish(&own_file, &options.file)?;
    say(format_args!("· node file {}", options.file.display()));
    println!("initialised {}", spec.cluster);
    say("Next: `everhold run` (or `systemctl enable --now everhold`), then here");
    for name in spec.nodes.keys().filter(|name| *name != me) {
        say(format_args!("  everhold token {name}     and on its machine what it prints"));
    }
    Ok(())
}

/// The spec and this node, unless an earlier try has put them there.
async fn put_first(
    store: &Etcd,
    spec: &everhold_core::spec::Spec,
    me: &str,
    layout: &Layout,
) -> anyhow::Result<()> {
    care::identity::claim(store, &spec.cluster, layout, spec.store.is_none()).await?;
    let (spec_key, joined) = (spec_store::key(&spec.cluster), joined_key(&spec.cluster, me));
    let record = Joined { at: clock::wall(), machine: machine(layout)? };
    let txn = Txn::new()
        .guard(&spec_key, Expect::Absent)
        .put(&spec_key, record::to_json(spec)?)
        .put(&joined, encode(&record));
    match store.txn(&txn).await? {
        TxnOutcome::Done { .. } => Ok(()),
        TxnOutcome::Refused { .. } => {
            let known = store.get_prefix(&joined).await?;
            let known = known
                .get(&joined)
                .and_then(|kv| everhold_core::records::decode::<Joined>(&kv.value).ok());
            match known.is_some_and(|known| known.machine == record.machine) {
                true => Ok(()),
                false => bail!("E245 the store holds another cluster {} already", spec.cluster),
            }
        }
    }
}

/// What this machine calls itself, made once.
pub fn machine(layout: &Layout) -> anyhow::Result<String> {
    let path = layout.supervisor().join("machine");
    secrets::make_once(&path)?;
    Ok(secrets::read(&path)?)
}
