//! HTTP services: what is run or where it is, how requests are shared out, what counts as healthy;
//! and the routes that lead to them.

use super::Address;
use crate::http::breaker::BreakerSpec;
use crate::http::cache::CacheSpec;
use crate::http::degrade::Degraded;
use crate::http::queue::{Bulkhead, Priority};
use crate::http::rate::RateLimit;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How many instances of a service there are when none are declared: the least that survives the loss
/// of one and still shares its load.
pub const INSTANCES: u32 = 3;
pub const INSTANCES_MAX: u32 = 200;
/// Most addresses of a service that others run.
pub const ADDRESSES_MAX: usize = 200;
pub const ROUTES_MAX: usize = 1_000;
/// Between asking an instance to end and ending it.
pub const GRACE_MS: u64 = 10_000;
pub const GRACE_MS_MAX: u64 = 3_600_000;
/// Active checks: as HAProxy's `fall 3 rise 2`, but each second.
pub const HEALTH_INTERVAL_MS: u64 = 1_000;
pub const HEALTH_TIMEOUT_MS: u64 = 500;
pub const UNHEALTHY_THRESHOLD: u32 = 3;
pub const HEALTHY_THRESHOLD: u32 = 2;
/// What takes longer to start is rare, and says so.
pub const START_WITHIN_MS: u64 = 60_000;
/// Far above what a busy instance misses of its checks.
pub const RESTART_AFTER_MS: u64 = 60_000;
/// From the first byte of a request to the last of its response's head, over all tries: as nginx's
/// `proxy_read_timeout`.
pub const TIMEOUT_MS: u64 = 60_000;
/// An answer that has begun and goes on to be silent: as HAProxy's manual has it for tunnels. Events and
/// watches may have nothing to say for long, and who died is found otherwise.
pub const IDLE_TIMEOUT_MS: u64 = 3_600_000;
/// How long an instance that is new, or is back, takes to get its full share.
pub const SLOW_START_MS: u64 = 10_000;
/// Tries of one request beyond the first.
pub const RETRIES: u32 = 2;
pub const RETRIES_MAX: u32 = 10;

/// An HTTP service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpSpec {
    #[serde(flatten)]
    pub source: Source,
    #[serde(default)]
    pub balance: Balance,
    /// What instances speak.
    #[serde(default)]
    pub version: Version,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    pub health: HealthSpec,
    /// 0: an instance that is back has its full share at once.
    pub slow_start_ms: u64,
    pub timeout_ms: u64,
    /// One try; `None`: as long as all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub try_timeout_ms: Option<u64>,
    /// It follows from how long answers take, where another try may follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub try_timeout_auto: bool,
    /// A try that takes longer than so many of 100 gets another one beside it, elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge_percentile: Option<u32>,
    /// Between two pieces of an answer.
    #[serde(default = "idle_timeout_ms")]
    pub idle_timeout_ms: u64,
    /// Further tries of a request that may be repeated.
    pub retries: u32,
    /// Places for requests at its instances; `None`: without bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Bulkhead>,
    /// `None`: however much it fails, it is asked.
    #[serde(default = "breaker")]
    pub breaker: Option<BreakerSpec>,
    /// Instances, by their names, that commands took out of use. A document doesn't say it, and
    /// doesn't change it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drained: BTreeSet<String>,
}

/// Of records from before there was such a key.
pub(crate) fn idle_timeout_ms() -> u64 {
    IDLE_TIMEOUT_MS
}

fn breaker() -> Option<BreakerSpec> {
    Some(BreakerSpec::default())
}

impl HttpSpec {
    /// As a document has it that says nothing else.
    pub fn of(source: Source) -> HttpSpec {
        HttpSpec {
            source,
            balance: Balance::default(),
            version: Version::default(),
            affinity: None,
            health: HealthSpec::default(),
            slow_start_ms: SLOW_START_MS,
            timeout_ms: TIMEOUT_MS,
            try_timeout_ms: None,
            try_timeout_auto: false,
            hedge_percentile: None,
            idle_timeout_ms: IDLE_TIMEOUT_MS,
            retries: RETRIES,
            concurrency: None,
            breaker: breaker(),
            drained: BTreeSet::new(),
        }
    }

    /// What Everhold runs of it.
    pub fn run(&self) -> Option<&RunSpec> {
        match &self.source {
            Source::Run(run) => Some(run),
            Source::Addresses(_) => None,
        }
    }

    /// Its instances that Everhold runs, by their ids.
    pub fn placed(&self) -> impl Iterator<Item = (&String, &Placed)> {
        self.run().into_iter().flat_map(|run| &run.placed)
    }

    /// The places that are its own: where instances are, and where they go back to.
    pub(super) fn held(&self) -> impl Iterator<Item = &Placed> {
        let back = self.run().into_iter().flat_map(|run| &run.home);
        self.placed().chain(back).map(|(_, place)| place)
    }

    /// Whether there is an instance of that name, or will be when a lost node is back.
    pub fn has(&self, instance: &str) -> bool {
        match &self.source {
            Source::Run(run) => {
                run.placed.contains_key(instance) || run.home.contains_key(instance)
            }
            Source::Addresses(all) => all.iter().any(|it| it.name() == instance),
        }
    }

    /// One that is there no more, or is another one by now, is not out of use.
    pub(super) fn forget_drained(&mut self) {
        let drained = std::mem::take(&mut self.drained);
        self.drained = drained.into_iter().filter(|name| self.has(name)).collect();
    }
}

/// Whose processes they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Everhold runs them.
    Run(RunSpec),
    /// Others run them, at these addresses.
    Addresses(Vec<BackendSpec>),
}

/// An instance that others run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendSpec {
    pub address: Address,
    pub port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Its share beside the others'; with [`Balance::Weighted`] and all that weigh loads.
    pub weight: u32,
}

impl BackendSpec {
    pub fn name(&self) -> String {
        self.address.with_port(self.port)
    }
}

/// What Everhold runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    /// How many are wanted.
    pub instances: u32,
    /// Program and arguments, without a shell. `{port}`, `{instance}`, `{node}`, and `{dsn:SERVICE}` stand for what
    /// they say.
    pub command: Vec<String>,
    /// The same words stand for the same here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where it starts; `None`: a directory of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    pub stop: StopSpec,
    #[serde(default, skip_serializing_if = "LimitsSpec::is_empty")]
    pub limits: LimitsSpec,
    /// Nodes that may run it, in the declared order; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// Where each instance is: by its id, NODE.N. Given when the spec is accepted, and kept.
    pub placed: BTreeMap<String, Placed>,
    /// Where each would be if no node was lost: where they go back to. Empty: where they are. While
    /// stand-ins wait for instances of a node that is back, these are placed as well.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub home: BTreeMap<String, Placed>,
}

impl RunSpec {
    /// Where each is when no node is lost.
    pub fn homes(&self) -> &BTreeMap<String, Placed> {
        if self.home.is_empty() { &self.placed } else { &self.home }
    }

    /// Instances of nodes that are lost, and have no stand-in: the others lack ports for them.
    pub fn missing(&self) -> usize {
        self.home.len().saturating_sub(self.placed.len())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    pub node: String,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopSpec {
    pub signal: StopSignal,
    pub grace_ms: u64,
}

/// What asks a process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StopSignal {
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
}

/// What one instance may take, where its machine can hold it to that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsSpec {
    /// Thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

impl LimitsSpec {
    pub fn is_empty(&self) -> bool {
        *self == LimitsSpec::default()
    }
}

/// Who gets the next request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Each in turn.
    RoundRobin,
    /// Each in turn, as often as it weighs.
    Weighted,
    /// The fewest requests for its weight.
    LeastRequests,
    /// The least of cpu and memory, as its node tells it.
    LeastLoad,
    /// Of two, the one that should answer sooner: latency times requests in flight.
    #[default]
    PeakEwma,
    /// The same instance for the same key, unless it has more than its share.
    ConsistentHash(HashKey),
}

/// What of a request decides where it goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashKey {
    ClientIp,
    Path,
    Header(String),
    Cookie(String),
}

/// What keeps a session on its instance while that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Affinity {
    /// A cookie of that name, signed by Everhold.
    Cookie(String),
    /// A header of that name, which names the session.
    Header(String),
}

/// What instances speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Version {
    #[default]
    #[serde(rename = "1.1")]
    Http1,
    /// HTTP/2 in the clear, known beforehand.
    #[serde(rename = "2")]
    Http2,
}

/// What is asked of each instance, again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSpec {
    /// `None`: a connection is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub interval_ms: u64,
    pub timeout_ms: u64,
    pub healthy_threshold: u32,
    pub unhealthy_threshold: u32,
    /// How long an instance that Everhold runs may take from its start until it is healthy.
    #[serde(default = "start_within_ms")]
    pub start_within_ms: u64,
    /// One that has been unhealthy for so long is started anew. 0: none is.
    #[serde(default = "restart_after_ms")]
    pub restart_after_ms: u64,
}

fn start_within_ms() -> u64 {
    START_WITHIN_MS
}

fn restart_after_ms() -> u64 {
    RESTART_AFTER_MS
}

impl Default for HealthSpec {
    fn default() -> HealthSpec {
        HealthSpec {
            path: None,
            interval_ms: HEALTH_INTERVAL_MS,
            timeout_ms: HEALTH_TIMEOUT_MS,
            healthy_threshold: HEALTHY_THRESHOLD,
            unhealthy_threshold: UNHEALTHY_THRESHOLD,
            start_within_ms: START_WITHIN_MS,
            restart_after_ms: RESTART_AFTER_MS,
        }
    }
}

/// Certificate and key of a listener: files on each gateway's machine, read anew when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFiles {
    pub cert: String,
    pub key: String,
}

/// Which requests of a listener go to a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteSpec {
    pub listener: String,
    #[serde(rename = "match")]
    pub when: Match,
    pub service: String,
    /// In place of the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Whose requests come first where not all can be served.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// Places of its own, before those of its service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Bulkhead>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Bytes a second of bodies, on average; see [`HttpRoute`](crate::http::route::HttpRoute).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_rate_min: Option<u32>,
    /// `None`: no answer is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSpec>,
    /// How it is served while something is wrong; `None`: as ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<Degraded>,
}

/// Requests; what is absent matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Match {
    /// In small letters, without a port; `*.example.org`: any name below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Names in small letters, and the value each must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    Exact(String),
    /// Whole segments: `/v1` is not a prefix of `/v10`.
    Prefix(String),
}
