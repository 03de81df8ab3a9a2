//! What the operator declared: the validated spec, its defaults and the reasons for them.
//!
//! A value of these types is true in itself (names are legal, references resolve, ports do not
//! overlap); what only a machine can know (binaries, directories, ports in use) is not in it.

mod address;
mod backup;
mod diff;
mod http;
mod names;
mod net;
pub mod parameters;
mod place;
mod ports;
mod scale;
mod tour;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::run::DRAIN_MAX_MS;
use serde::{Deserialize, Serialize};

pub use address::Address;
pub use backup::{
    BackupSpec, CloneFrom, FULL, INCREMENTAL, Location, PROVE, ProveSpec, REPOSITORIES_MAX,
    RepositorySpec,
};
pub use diff::{Change, TakesEffect, diff};
pub(crate) use http::idle_timeout_ms;
pub use http::{
    ADDRESSES_MAX, Affinity, BackendSpec, Balance, GRACE_MS, GRACE_MS_MAX, HEALTH_INTERVAL_MS,
    HEALTH_TIMEOUT_MS, HEALTHY_THRESHOLD, HashKey, HealthSpec, HttpSpec, IDLE_TIMEOUT_MS,
    INSTANCES, INSTANCES_MAX, LimitsSpec, Match, PathMatch, Placed, RETRIES, RETRIES_MAX,
    ROUTES_MAX, RouteSpec, RunSpec, SLOW_START_MS, Source, StopSignal, StopSpec, TIMEOUT_MS,
    TlsFiles, UNHEALTHY_THRESHOLD, Version,
};
pub use names::{
    DATABASE_NAMES_RESERVED, NAME_LENGTH_MAX, NODE_NAMES_RESERVED, OWNER_NAMES_RESERVED,
    SERVICE_NAMES_RESERVED, check_name, check_name_free,
};
pub use net::{Net, masked};
pub use ports::PortRange;
pub use tour::{SAMPLE, SAMPLE_BIND};

/// The version of the document a person writes; raised when a key changes its meaning.
pub const SCHEMA: u32 = 1;
/// The version of the record in the store; a newer one is refused, so that an old agent never acts
/// on half of what was asked.
pub const RECORD_VERSION: u32 = 3;
/// Without HTTP a record is what those know that have backups.
pub const RECORD_VERSION_BACKUPS: u32 = 2;
/// Without backups it is what older ones know too.
pub const RECORD_VERSION_PLAIN: u32 = 1;

/// The cluster's name when none is declared: it says what it is to someone who finds the directory.
pub const CLUSTER: &str = "local";
/// The nodes when none are declared: three is the least that survives the loss of one and still
/// has a synchronous standby.
pub const NODES: [&str; 3] = ["a", "b", "c"];
/// Where undeclared nodes and listeners live: loopback, so that nothing is reachable from outside
/// unless somebody asks for it.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// A node's ports when it declares none. Above 1024 (no privilege needed), below 32768 (where Linux
/// takes outgoing ports from) and away from PostgreSQL's own 5432.
pub const PORTS: PortRange = PortRange { first: 15400, last: 15499 };
/// How far apart the ranges of undeclared nodes start: one range each on one address.
pub const PORTS_STEP: u16 = 100;
/// Where clients reach the embedded etcd, below the first node's range. A flag changes it.
pub const STORE_CLIENT_PORT: u16 = 15300;
/// Where members of the embedded etcd reach each other.
pub const STORE_PEER_PORT: u16 = 15301;

/// The service when none is declared.
pub const SERVICE: &str = "main";
/// The PostgreSQL major version: the one that Debian 12 ships, and the only one tested so far.
pub const POSTGRES_VERSION: u32 = 15;
/// Major versions that this Everhold can run.
pub const POSTGRES_VERSIONS: [u32; 1] = [15];
/// The database made at bootstrap: short, and not `postgres`, which tools expect to be empty.
pub const DATABASE: &str = "app";
/// The role that owns it, never a superuser.
pub const OWNER: &str = "app";

/// How many standbys confirm a commit: one, so that no acknowledged commit is ever on a single
/// disk, and the loss of one standby out of two does not stop writes.
pub const SYNCHRONOUS_NUMBER: u32 = 1;
/// What happens when too few standbys are left: writes wait, since nothing may be acknowledged
/// that only one disk holds unless somebody asked for that.
pub const DURABILITY: Durability = Durability::Required;
/// An instance's priority in an election between equals: all the same, the name decides.
pub const PRIORITY: u32 = 1;
/// The highest priority; three digits leave room between any two without inviting fine tuning.
pub const PRIORITY_MAX: u32 = 1000;
/// Whether an instance may become primary: yes, a standby that may not is a choice.
pub const FAILOVER: bool = true;

/// The write address when none is declared: the number PgBouncer made known for "not the server".
pub const WRITE_BIND: SocketAddr = SocketAddr::new(ADDRESS, 6432);
/// The read address when none is declared: next to the write address.
pub const READ_BIND: SocketAddr = SocketAddr::new(ADDRESS, 6433);
/// How old a standby's data may be before reads leave it: far above the lag of a healthy standby
/// (milliseconds), below what a person notices.
pub const MAX_LAG_MS: u64 = 1_000;
/// The longest lag bound: with a day of lag a standby is an archive, not a replica.
pub const MAX_LAG_MS_MAX: u64 = 86_400_000;
/// The API and console: loopback only, since its bearer token crosses the wire in the clear.
pub const API_BIND: SocketAddr = SocketAddr::new(ADDRESS, 7070);

/// A leader is slow for at least this long before it hands over: shorter is a burst.
pub const SLOW_AFTER_MS_MIN: u64 = 5_000;
/// See [`SLOW_AFTER_MS_MIN`]. Who would wait longer wants a person to do it.
pub const SLOW_AFTER_MS_MAX: u64 = 3_600_000;

/// All pages are read once in so long: rot that is older than the oldest backup can't be mended
/// from one, and a day is far below that.
pub const SCRUB_EVERY_MS: u64 = 24 * 3_600_000;
pub const SCRUB_EVERY_MS_MIN: u64 = 1_000;
/// See [`SCRUB_EVERY_MS`]: 90 days.
pub const SCRUB_EVERY_MS_MAX: u64 = 2_160 * 3_600_000;

/// The most nodes of one cluster; each one's gateway and API hear every agent.
pub const NODES_MAX: usize = 100;
/// The most services of one cluster.
pub const SERVICES_MAX: usize = 64;

/// Everything that was declared, with the defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// [`SCHEMA`] of the document it was written in.
    pub schema: u32,
    pub cluster: String,
    pub nodes: BTreeMap<String, NodeSpec>,
    pub services: BTreeMap<String, ServiceSpec>,
    pub gateway: GatewaySpec,
    pub listeners: BTreeMap<String, ListenerSpec>,
    pub api: ApiSpec,
    /// An etcd that is there already; without it Everhold runs its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreSpec>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub repositories: BTreeMap<String, RepositorySpec>,
    /// Which requests of HTTP listeners go where.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<String, RouteSpec>,
}

/// An etcd that is there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSpec {
    /// URLs, all with one scheme.
    pub etcd: Vec<String>,
    /// `None`: in the clear, on loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<StoreTls>,
}

/// Files on each machine: the authority of that etcd, and what its clients prove themselves with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreTls {
    pub ca: String,
    pub cert: String,
    pub key: String,
}

/// A machine (or, on one machine, one third of it).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    pub address: Address,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    pub ports: PortRange,
    /// What commands made of it. A document doesn't say it, and doesn't change it.
    #[serde(default, skip_serializing_if = "Duty::is_active")]
    pub duty: Duty,
    /// Since when it is lost, on the coordinator's wall clock: other nodes run its instances of HTTP
    /// services until it is back. A document doesn't say it, and doesn't change it. Older versions
    /// don't know it, and find where instances are all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
    /// Since when it is back and runs its instances again, while those that stood in for them run on:
    /// until its own are found well. Never beside [`NodeSpec::lost`]; the rest as there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<String>,
}

/// What is expected of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    #[default]
    Active,
    /// It leads nothing and is not read from; it acknowledges as long as it is there.
    Drained,
    /// The same, it acknowledges nothing either, and then it is no node any more.
    Leaving,
}

impl Duty {
    pub fn is_active(&self) -> bool {
        *self == Duty::Active
    }
}

/// A thing that is kept up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ServiceSpec {
    Postgres(PostgresSpec),
    Http(HttpSpec),
}

/// A PostgreSQL cluster: one primary and its standbys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresSpec {
    /// In the declared order; the first one is bootstrapped, the others are cloned from it.
    pub nodes: Vec<String>,
    /// The major version.
    pub version: u32,
    pub database: String,
    pub owner: String,
    pub synchronous: SynchronousSpec,
    /// A leader whose disk is slow for so long hands over to a faster one. `None`: it is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_after_ms: Option<u64>,
    /// One entry per node of the service.
    pub instances: BTreeMap<String, InstanceSpec>,
    /// The user's settings, in PostgreSQL's own spelling; none of them weakens a guarantee.
    pub parameters: BTreeMap<String, String>,
    /// All pages are read from disk so often, or as fast as that goes. `None`: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub_every_ms: Option<u64>,
    /// `None`: nobody asked for backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupSpec>,
}

/// Which standbys must have flushed a commit before it is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SynchronousSpec {
    /// The k of `ANY k (…)`. Zero: none, a failover may lose commits.
    pub number: u32,
    pub durability: Durability,
    /// Over which failure domain the synchronous standbys are to be spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
}

/// What to do when fewer standbys than declared are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Writes wait until a standby is back.
    Required,
    /// The primary goes on alone, by a committed and loudly shown change.
    Preferred,
}

/// A failure domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    Zone,
    Region,
}

/// One process of a service on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Higher is preferred, among candidates that hold the same history.
    pub priority: u32,
    /// Whether it may become primary.
    pub failover: bool,
    /// Where it listens. Given when the spec is accepted and kept by [`Spec::keep`].
    pub port: u16,
}

/// Where gateways run, and what they write down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewaySpec {
    pub nodes: Vec<String>,
    /// A line for each HTTP request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub access_log: bool,
    /// What each gateway may keep of answers; `None`: see [`crate::http::cache::BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
}

/// An address that clients connect to, on every gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerSpec {
    pub bind: SocketAddr,
    #[serde(flatten)]
    pub protocol: Protocol,
}

/// What is spoken on a listener, and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "protocol", rename_all = "snake_case")]
pub enum Protocol {
    Postgres(PostgresListener),
    Http(HttpListener),
}

/// It leads to one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresListener {
    pub service: String,
    pub role: Role,
    /// For [`Role::Standby`]: standbys further behind leave the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lag_ms: Option<u64>,
}

/// It leads where the routes say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpListener {
    /// `None`: in the clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// Nobody is let in from there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Net>,
    /// Of one client, at each gateway; `None`: as many as there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_per_client: Option<u32>,
    /// Who is believed in whom requests are from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<Net>,
}

/// Whom a PostgreSQL listener leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Primary,
    /// A standby within the lag, or the primary when there is none.
    Standby,
}

/// The HTTP API and console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiSpec {
    pub bind: SocketAddr,
}

impl Spec {
    /// What `everhold up` runs when it is told nothing: one PostgreSQL service on three nodes.
    pub fn default_for_one_machine() -> Spec {
        let mut spec = Spec {
            schema: SCHEMA,
            cluster: CLUSTER.into(),
            nodes: Spec::default_nodes(),
            services: BTreeMap::from([(
                SERVICE.into(),
                ServiceSpec::Postgres(PostgresSpec::default_on(
                    NODES.iter().map(|&node| node.into()).collect(),
                )),
            )]),
            gateway: GatewaySpec {
                nodes: NODES.iter().map(|&node| node.into()).collect(),
                access_log: false,
                cache_bytes: None,
            },
            listeners: Spec::default_listeners(SERVICE),
            api: ApiSpec { bind: API_BIND },
            store: None,
            repositories: BTreeMap::new(),
            routes: BTreeMap::new(),
        };
        spec.assign_ports();
        spec
    }

    /// [`NODES`] on [`ADDRESS`], each with a range of its own.
    pub fn default_nodes() -> BTreeMap<String, NodeSpec> {
        let node = |step: u16| NodeSpec {
            address: Address::Ip(ADDRESS),
            region: None,
            zone: None,
            ports: PORTS.shifted(step * PORTS_STEP),
            duty: Duty::Active,
            lost: None,
            back: None,
        };
        (0..).zip(NODES).map(|(step, name)| (name.to_owned(), node(step))).collect()
    }

    /// One address for writes and one for reads of `service`.
    pub fn default_listeners(service: &str) -> BTreeMap<String, ListenerSpec> {
        let listener = |bind, role, max_lag_ms| ListenerSpec {
            bind,
            protocol: Protocol::Postgres(PostgresListener {
                service: service.to_owned(),
                role,
                max_lag_ms,
            }),
        };
        BTreeMap::from([
            ("write".to_owned(), listener(WRITE_BIND, Role::Primary, None)),
            ("read".to_owned(), listener(READ_BIND, Role::Standby, Some(MAX_LAG_MS))),
        ])
    }

    /// On one machine: the node that runs the embedded store's only member, the first by name.
    pub fn store_node(&self) -> Option<(&str, &NodeSpec)> {
        if self.store.is_some() {
            return None;
        }
        self.nodes.first_key_value().map(|(name, node)| (name.as_str(), node))
    }

    /// On many machines: the nodes that run the embedded store's members, the first one, three or five by
    /// name. An even number would need one more vote for the same safety.
    pub fn store_nodes(&self) -> impl Iterator<Item = (&str, &NodeSpec)> {
        let count = match self.nodes.len() {
            _ if self.store.is_some() => 0,
            0..=2 => 1,
            3..=4 => 3,
            _ => 5,
        };
        self.nodes.iter().take(count).map(|(name, node)| (name.as_str(), node))
    }

    /// Whether nodes are on machines of their own, so that what they say crosses a network.
    pub fn is_spread(&self) -> bool {
        let away = |node: &NodeSpec| match &node.address {
            Address::Ip(ip) => !ip.is_loopback(),
            Address::Host(_) => true,
        };
        self.nodes.values().any(away)
    }

    /// What is expected of a node of it.
    pub fn duty(&self, node: &str) -> Duty {
        self.nodes.get(node).map_or(Duty::Active, |it| it.duty)
    }

    /// A node of it is lost.
    pub fn is_lost(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|it| it.lost.is_some())
    }

    /// The spec without a node and its instances; why that can't be, if it can't.
    pub fn without(&self, node: &str) -> Result<Spec, String> {
        let mut spec = self.clone();
        spec.nodes.remove(node).ok_or_else(|| format!("{node} is not a node"))?;
        for (name, service) in &mut spec.services {
            let ServiceSpec::Postgres(postgres) = service else { continue };
            if !postgres.nodes.iter().any(|it| it == node) {
                continue;
            }
            postgres.nodes.retain(|it| it != node);
            postgres.instances.remove(node);
            let standbys = postgres.nodes.len().saturating_sub(1);
            if !postgres.instances.values().any(|instance| instance.failover) {
                return Err(format!("no other node of {name} may lead it"));
            }
            if (standbys as u64) < u64::from(postgres.synchronous.number) {
                let number = postgres.synchronous.number;
                return Err(format!(
                    "{name} wants {number} synchronous standbys and would be left with {standbys}"
                ));
            }
        }
        spec.gateway.nodes.retain(|it| it != node);
        if spec.gateway.nodes.is_empty() {
            return Err("it has the only gateway".to_string());
        }
        for (name, service) in &mut spec.services {
            let ServiceSpec::Http(HttpSpec { source: Source::Run(run), .. }) = service else {
                continue;
            };
            run.nodes.retain(|it| it != node);
            let anywhere =
                self.http(name).and_then(HttpSpec::run).is_some_and(|it| it.nodes.is_empty());
            if run.nodes.is_empty() && !anywhere {
                return Err(format!("no other node may run {name}"));
            }
        }
        spec.place_beside(&self.http_ports());
        match spec.unplaced() {
            Some((name, count)) => Err(format!("{name} would be left with {count} instances")),
            None => Ok(spec),
        }
    }

    /// The PostgreSQL service of that name.
    pub fn postgres(&self, service: &str) -> Option<&PostgresSpec> {
        match self.services.get(service)? {
            ServiceSpec::Postgres(postgres) => Some(postgres),
            ServiceSpec::Http(_) => None,
        }
    }

    /// The PostgreSQL services.
    pub fn databases(&self) -> impl Iterator<Item = (&String, &PostgresSpec)> {
        self.services.keys().filter_map(|name| Some((name, self.postgres(name)?)))
    }

    /// The HTTP service of that name.
    pub fn http(&self, service: &str) -> Option<&HttpSpec> {
        match self.services.get(service)? {
            ServiceSpec::Http(http) => Some(http),
            ServiceSpec::Postgres(_) => None,
        }
    }

    /// The HTTP services.
    pub fn http_services(&self) -> impl Iterator<Item = (&String, &HttpSpec)> {
        self.services.keys().filter_map(|name| Some((name, self.http(name)?)))
    }

    /// How long requests may be on their way to an instance of an HTTP service that goes: as long as
    /// any of them may take.
    pub fn drain_ms(&self, service: &str) -> u64 {
        let routes = self.routes.values().filter(|route| route.service == service);
        let own = self.http(service).map(|it| it.timeout_ms);
        let all = routes.filter_map(|route| route.timeout_ms).chain(own);
        all.max().unwrap_or(0).min(DRAIN_MAX_MS)
    }

    /// What says where the connections of PostgreSQL clients go: by name, with the address.
    pub fn postgres_listeners(
        &self,
    ) -> impl Iterator<Item = (&String, SocketAddr, &PostgresListener)> {
        self.listeners.iter().filter_map(|(name, listener)| match &listener.protocol {
            Protocol::Postgres(postgres) => Some((name, listener.bind, postgres)),
            Protocol::Http(_) => None,
        })
    }
}

impl ListenerSpec {
    pub fn postgres(&self) -> Option<&PostgresListener> {
        match &self.protocol {
            Protocol::Postgres(postgres) => Some(postgres),
            Protocol::Http(_) => None,
        }
    }

    /// What it proves itself with to HTTP clients.
    pub fn tls(&self) -> Option<&TlsFiles> {
        self.http()?.tls.as_ref()
    }

    pub fn http(&self) -> Option<&HttpListener> {
        match &self.protocol {
            Protocol::Http(http) => Some(http),
            Protocol::Postgres(_) => None,
        }
    }
}

impl ServiceSpec {
    pub fn kind(&self) -> &'static str {
        match self {
            ServiceSpec::Postgres(_) => "postgres",
            ServiceSpec::Http(_) => "http",
        }
    }

    /// The nodes that have an instance of it, each once.
    pub fn nodes(&self) -> Vec<&str> {
        match self {
            ServiceSpec::Postgres(postgres) => postgres.nodes.iter().map(String::as_str).collect(),
            ServiceSpec::Http(http) => {
                let nodes: BTreeSet<&str> = http.placed().map(|(_, it)| it.node.as_str()).collect();
                nodes.into_iter().collect()
            }
        }
    }
}

impl PostgresSpec {
    /// The port of its instance on `node`.
    pub fn port(&self, node: &str) -> Option<u16> {
        self.instances.get(node).map(|it| it.port)
    }

    /// A service with every default, on `nodes`; its instances have no port yet.
    pub fn default_on(nodes: Vec<String>) -> PostgresSpec {
        let instances = nodes.iter().map(|node| (node.clone(), InstanceSpec::default())).collect();
        PostgresSpec {
            nodes,
            version: POSTGRES_VERSION,
            database: DATABASE.into(),
            owner: OWNER.into(),
            synchronous: SynchronousSpec::default(),
            slow_after_ms: None,
            instances,
            parameters: BTreeMap::new(),
            scrub_every_ms: None,
            backup: None,
        }
    }
}

impl Default for SynchronousSpec {
    fn default() -> Self {
        SynchronousSpec { number: SYNCHRONOUS_NUMBER, durability: DURABILITY, spread: None }
    }
}

impl Default for InstanceSpec {
    fn default() -> Self {
        InstanceSpec { priority: PRIORITY, failover: FAILOVER, port: ports::UNASSIGNED }
    }
}

#[cfg(test)]
mod tests;
