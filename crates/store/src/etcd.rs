//! The store in etcd (3.4 and later), over mutual TLS; one of the operator's own also without.

mod link;
mod maintenance;
mod members;
mod watcher;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    CompactionOptions, Compare, CompareOp, GetOptions, KeyValue, PutOptions, TxnOp, TxnOpResponse,
};
use everhold_core::kv::{
    Expect, Guard, Invalid, Kv, Lease, Op, Snapshot, Txn, TxnOutcome, validate,
};

use crate::{Health, Store, StoreError, Watch};
use link::{Kind, Link};
pub use maintenance::Server;
pub use members::Member;

/// How long a call may take unless the configuration says otherwise. An election takes 1 to 2 s;
/// whoever needs to know sooner that the store is slow sets a shorter one.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// The largest answer taken. Everhold's own records are some megabytes at most, and etcd's limit
/// for a request is 1.5 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// `HOST:PORT` or URLs, one or more, of the same cluster. The first is called while it answers.
    pub endpoints: Vec<String>,
    /// `None`: in the clear.
    pub tls: Option<TlsFiles>,
    /// Of one call.
    pub deadline: Duration,
}

/// PEM files: the authority of the server, and what this client proves itself with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Etcd {
    link: Arc<Link>,
}

impl Etcd {
    /// Prepares a client. It connects with the first call, so the server need not be there yet.
    pub async fn new(config: EtcdConfig) -> Result<Self, StoreError> {
        Ok(Etcd { link: Link::start(config).await? })
    }

    /// Where to call from now on, most wanted first. A connection to another one is kept until that
    /// one has answered.
    pub fn set_endpoints(&self, endpoints: Vec<String>) {
        self.link.set_endpoints(endpoints);
    }

    /// The endpoint that is called now: the first, or where a fault of it led.
    pub fn nearest(&self) -> String {
        self.link.nearest()
    }

    /// Forgets the history up to and including `rev`, and the server called has done so when this
    /// returns. etcd does so by itself when it is configured
    /// to, as Everhold's own member is.
    pub async fn compact(&self, rev: u64) -> Result<(), StoreError> {
        let what = "compact the history";
        let rev = signed(rev);
        let call = |mut client: etcd_client::Client| async move {
            let physical = CompactionOptions::new().with_physical();
            client.compact(rev, Some(physical)).await
        };
        self.link.call(what, Kind::Write, call).await.map(drop)
    }

    fn kvs(&self, kvs: &[KeyValue]) -> Result<Vec<Kv>, StoreError> {
        kvs.iter().map(|kv| self.kv(kv)).collect()
    }

    fn kv(&self, kv: &KeyValue) -> Result<Kv, StoreError> {
        match (kv.key_str(), kv.value_str()) {
            (Ok(key), Ok(value)) => Ok(Kv {
                key: key.to_owned(),
                value: value.to_owned(),
                rev: unsigned(kv.mod_revision()),
            }),
            _ => Err(StoreError::NotText {
                whom: self.link.whom(),
                key: String::from_utf8_lossy(kv.key()).into_owned(),
            }),
        }
    }
}

impl Store for Etcd {
    async fn get_prefix(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let call = |client: etcd_client::Client| async move {
            let mut kv = client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
            kv.get(prefix, Some(GetOptions::new().with_prefix())).await
        };
        let answer = self.link.call("read", Kind::Read, call).await?;
        let rev = unsigned(answer.header().map_or(0, |header| header.revision()));
        Ok(Snapshot { rev, kvs: self.kvs(answer.kvs())? })
    }

    async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        validate(txn)?;
        let request = &request(txn);
        let call = |client: etcd_client::Client| async move {
            let mut kv = client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
            kv.txn(request.clone()).await
        };
        let answer = match self.link.call("write a transaction", Kind::Write, call).await {
            Err(StoreError::Refused { source, .. }) if link::is_not_found(&*source) => {
                // etcd doesn't say which, and a transaction seldom names more than one.
                let lease = txn.ops.iter().find_map(lease_of).unwrap_or_default();
                return Err(Invalid::NoLease { lease }.into());
            }
            answer => answer?,
        };
        if answer.succeeded() {
            let rev = unsigned(answer.header().map_or(0, |header| header.revision()));
            return Ok(TxnOutcome::Done { rev });
        }
        let mut current = vec![];
        for response in answer.op_responses() {
            if let TxnOpResponse::Get(found) = response {
                current.extend(self.kvs(found.kvs())?);
            }
        }
        Ok(TxnOutcome::Refused { current })
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let secs = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let call = |mut client: etcd_client::Client| async move {
            client.lease_grant(signed(secs), None).await
        };
        let granted = self.link.call("grant a lease", Kind::Write, call).await?;
        let ttl = Duration::from_secs(unsigned(granted.ttl()));
        Ok(Lease { id: unsigned(granted.id()), ttl })
    }

    async fn lease_keep_alive(&self, id: u64) -> Result<Option<Duration>, StoreError> {
        let call = |mut client: etcd_client::Client| async move {
            // The client checks the first answer but keeps its time to itself, so a second one is
            // asked for: neither goes through the server's log, which makes them cheap.
            let (mut keeper, mut answers) = match client.lease_keep_alive(signed(id)).await {
                Err(etcd_client::Error::LeaseKeepAliveError(_)) => return Ok(None),
                opened => opened?,
            };
            keeper.keep_alive().await?;
            let answer = answers.message().await?.map(|answer| answer.ttl());
            Ok(answer.filter(|ttl| *ttl > 0))
        };
        let secs = self.link.call("renew a lease", Kind::Read, call).await?;
        Ok(secs.map(|secs| Duration::from_secs(unsigned(secs))))
    }

    async fn lease_revoke(&self, id: u64) -> Result<(), StoreError> {
        let call =
            |mut client: etcd_client::Client| async move { client.lease_revoke(signed(id)).await };
        match self.link.call("revoke a lease", Kind::Write, call).await {
            Err(StoreError::Refused { source, .. }) if link::is_not_found(&*source) => Ok(()),
            answer => answer.map(drop),
        }
    }

    fn watch(&self, prefix: &str, from_rev: u64) -> Watch {
        Watch::spawn(|tx| watcher::run(self.clone(), prefix.to_owned(), from_rev, tx))
    }

    async fn health(&self) -> Result<Health, StoreError> {
        let call = |mut client: etcd_client::Client| async move {
            // The status alone comes from one member's memory; the read goes through all.
            let read = client.get("health", Some(GetOptions::new().with_count_only())).await?;
            Ok((read, client.status().await?))
        };
        let (read, status) = self.link.call("read", Kind::Read, call).await?;
        Ok(Health {
            version: status.version().to_owned(),
            rev: unsigned(read.header().map_or(0, |header| header.revision())),
            db_bytes: unsigned(status.db_size()),
            alarms: status.errors().to_vec(),
        })
    }
}

fn request(txn: &Txn) -> etcd_client::Txn {
    let guarded: BTreeSet<&str> = txn.guards.iter().map(|guard| guard.key.as_str()).collect();
    let current: Vec<TxnOp> = guarded.into_iter().map(|key| TxnOp::get(key, None)).collect();
    etcd_client::Txn::new()
        .when(txn.guards.iter().map(compare).collect::<Vec<_>>())
        .and_then(txn.ops.iter().map(operation).collect::<Vec<_>>())
        .or_else(current)
}

fn compare(guard: &Guard) -> Compare {
    let key = guard.key.as_str();
    match &guard.expect {
        Expect::Absent => Compare::mod_revision(key, CompareOp::Equal, 0),
        Expect::Rev(rev) => Compare::mod_revision(key, CompareOp::Equal, signed(*rev)),
        Expect::Value(value) => Compare::value(key, CompareOp::Equal, value.as_str()),
    }
}

fn operation(op: &Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(signed(lease)));
            TxnOp::put(key.as_str(), value.as_str(), options)
        }
        Op::Delete { key } => TxnOp::delete(key.as_str(), None),
    }
}

fn lease_of(op: &Op) -> Option<u64> {
    match op {
        Op::Put { lease, .. } => *lease,
        Op::Delete { .. } => None,
    }
}

/// etcd's numbers are signed and never negative.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
