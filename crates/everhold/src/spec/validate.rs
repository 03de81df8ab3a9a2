//! From what was written to what is true: names, references, ranges, ports, defaults.
//!
//! Goes through everything once and reports each fault where it stands. What follows from a fault
//! that was reported already is not reported again; the spec that comes out counts only if nothing
//! was reported.

mod backup;
mod collisions;
mod http;
mod protect;
mod route;
mod service;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use everhold_core::spec::{
    self, Address, ApiSpec, GatewaySpec, HttpListener, ListenerSpec, NODE_NAMES_RESERVED, NodeSpec,
    PostgresListener, PostgresSpec, Protocol, Role, SERVICE_NAMES_RESERVED, ServiceSpec, Spec,
    TlsFiles, check_name,
};

use super::fault::{Code, Faults};
use super::raw::{Named, Number, RawGateway, RawListener, RawNode, RawService, RawSpec, Text};
use super::reader::{Part, Placed, nearest};

/// Where the embedded store listens on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorePorts {
    pub client: u16,
    pub peer: u16,
}

impl Default for StorePorts {
    fn default() -> Self {
        StorePorts { client: spec::STORE_CLIENT_PORT, peer: spec::STORE_PEER_PORT }
    }
}

/// The names that may be referred to; `None` when their table could not be read, so that a
/// reference to one of them is not judged.
type Known = Option<BTreeSet<String>>;

pub(super) fn validate(raw: &RawSpec, store: StorePorts, faults: &mut Faults<'_>) -> Spec {
    schema(&raw.schema, faults);
    let cluster = cluster(&raw.cluster, faults);
    let nodes = nodes(&raw.nodes, faults);
    let known_nodes = known(&raw.nodes, spec::NODES.as_slice());
    let known_repositories = known(&raw.repositories, &[]);
    let kinds = kinds(&raw.services);
    let services = services(raw, &nodes, &known_nodes, &known_repositories, &kinds, faults);
    let gateway = gateway(&raw.gateway, &nodes, &known_nodes, faults);
    let listeners = listeners(&raw.listeners, &kinds, faults);
    let routes = route::routes(raw, &kinds, faults);
    let api = api(&raw.api_bind, faults);
    let etcd = store::store(&raw.store, faults);
    let repositories = backup::repositories(&raw.repositories, faults);
    let mut spec = Spec {
        schema: spec::SCHEMA,
        cluster,
        nodes,
        services,
        gateway,
        listeners,
        api,
        store: etcd,
        repositories,
        routes,
    };
    spec.assign_ports();
    spec.place();
    collisions::check(&spec, raw, store, faults);
    http::check_reach(&spec, raw, faults);
    if let (true, Some((name, count))) = (faults.is_empty(), spec.unplaced()) {
        let at = service_place(raw, name);
        let message = format!("{name} has ports for {count} instances only");
        faults.add(Code::Count, at, message).next =
            "give its nodes larger ranges of ports, or declare fewer instances".into();
    }
    spec
}

/// Of everything that was declared under a name its kind, or `None` for one that isn't known; as
/// a whole `None` when the table could not be read.
type Kinds = Option<BTreeMap<String, Option<&'static str>>>;

fn kinds(raw: &Named<RawService>) -> Kinds {
    match raw {
        Part::Absent => Some(BTreeMap::new()),
        Part::Faulty => None,
        Part::Is(list) => {
            let kind = |it: &Option<RawService>| it.as_ref().map(RawService::kind);
            Some(list.value.iter().map(|(name, it)| (name.value.clone(), kind(it))).collect())
        }
    }
}

/// Reports a service that isn't there, or is of another kind.
fn of_kind(kind: &str, name: &Placed<String>, place: &str, known: &Kinds, faults: &mut Faults<'_>) {
    kind_of("service", kind, name, place, known, faults);
}

/// The same of anything that has kinds.
fn kind_of(
    what: &str,
    kind: &str,
    name: &Placed<String>,
    place: &str,
    known: &Kinds,
    faults: &mut Faults<'_>,
) {
    let fits = |is: &Option<&str>| is.is_none_or(|is| is == kind);
    let fitting = known.as_ref().map(|known| {
        known.iter().filter(|(_, is)| fits(is)).map(|(name, _)| name.clone()).collect()
    });
    let is = known.as_ref().and_then(|known| known.get(&name.value).copied().flatten());
    match is.filter(|is| *is != kind) {
        None => drop(reference(what, name, place, &fitting, faults)),
        Some(is) => {
            let message =
                format!("{what} `{}` (in {place}) is of kind {is}, not {kind}", name.value);
            faults.add(Code::WrongKind, name.at, message);
        }
    }
}

fn service_place(raw: &RawSpec, name: &str) -> usize {
    let list = raw.services.is().map(|list| &list.value);
    let found = list.and_then(|list| list.iter().find(|(it, _)| it.value == name));
    found.map_or(0, |(name, _)| name.at)
}

fn schema(raw: &Number, faults: &mut Faults<'_>) {
    match raw {
        Part::Absent => {
            let fault = faults.add(Code::Missing, 0, "`schema` is missing at top level".into());
            fault.next = format!("begin the document with schema = {}", spec::SCHEMA);
        }
        Part::Is(it) if it.value != i64::from(spec::SCHEMA) => {
            let message = format!(
                "schema {} is not known to this version, it knows {}",
                it.value,
                spec::SCHEMA
            );
            faults.add(Code::NewerSchema, it.at, message);
        }
        Part::Faulty | Part::Is(_) => {}
    }
}

fn cluster(raw: &Text, faults: &mut Faults<'_>) -> String {
    if *raw == Part::Absent {
        let fault = faults.add(Code::Missing, 0, "`cluster` is missing at top level".into());
        fault.next = "add cluster = \"NAME\"; every data directory will carry it".into();
    }
    let Some(name) = raw.is() else { return spec::CLUSTER.into() };
    name_fault("cluster", name, &[], faults);
    name.value.clone()
}

/// Reports a name that is not allowed or not free.
fn name_fault(
    what: &str,
    name: &Placed<String>,
    reserved: &[&str],
    faults: &mut Faults<'_>,
) -> bool {
    if let Err(why) = check_name(&name.value) {
        let shown = name.value.escape_debug();
        faults.add(Code::BadName, name.at, format!("{what} name `{shown}` {why}"));
        true
    } else if reserved.contains(&name.value.as_str()) {
        let message = format!("{what} name `{}` is taken by Everhold itself", name.value);
        faults.add(Code::NameTaken, name.at, message);
        true
    } else {
        false
    }
}

fn known<T>(raw: &Named<T>, default: &[&str]) -> Known {
    match raw {
        Part::Absent => Some(default.iter().map(|&name| name.to_owned()).collect()),
        Part::Faulty => None,
        Part::Is(list) => Some(list.value.iter().map(|(name, _)| name.value.clone()).collect()),
    }
}

/// Whether the count is one that can be run; reported at the last name if it is too high.
fn count<T>(what: &str, list: &[(Placed<String>, T)], max: usize, faults: &mut Faults<'_>) {
    if let (true, Some((name, _))) = (list.len() > max, list.last()) {
        let message = format!("{} {what} are declared, {max} are the most", list.len());
        faults.add(Code::Count, name.at, message);
    }
}

fn nodes(raw: &Named<RawNode>, faults: &mut Faults<'_>) -> BTreeMap<String, NodeSpec> {
    let Part::Is(Placed { value: list, at }) = raw else { return Spec::default_nodes() };
    count("nodes", list, spec::NODES_MAX, faults);
    if list.is_empty() {
        let fault = faults.add(Code::Count, *at, "[node] is empty".into());
        fault.next = "declare a node, or leave [node] out for three on this machine".into();
    }
    let mut slots: BTreeMap<String, &str> = BTreeMap::new();
    let mut nodes = BTreeMap::new();
    for (name, node) in list {
        if !name_fault("node", name, &NODE_NAMES_RESERVED, faults) {
            // Replication slots have no `-`; see `Member::slot`.
            if let Some(other) = slots.insert(name.value.replace('-', "_"), &name.value) {
                let message =
                    format!("nodes `{other}` and `{}` would share a replication slot", name.value);
                faults.add(Code::NameTaken, name.at, message);
            }
        }
        if let Some(node) = node.as_ref().and_then(|node| one_node(&name.value, node, faults)) {
            nodes.insert(name.value.clone(), node);
        }
    }
    nodes
}

/// `None` when it is not known where it is, so that nothing is said to collide with it.
fn one_node(name: &str, raw: &RawNode, faults: &mut Faults<'_>) -> Option<NodeSpec> {
    let place = |what: &str, raw: &Text, faults: &mut Faults<'_>| {
        let name = raw.is()?;
        name_fault(what, name, &[], faults);
        Some(name.value.clone())
    };
    let address = parsed::<Address>(&format!("address of node {name}"), &raw.address, faults);
    let region = place("region", &raw.region, faults);
    let zone = place("zone", &raw.zone, faults);
    let ports = match &raw.ports {
        Part::Absent => Some(spec::PORTS),
        Part::Faulty | Part::Is(_) => parsed(&format!("ports of node {name}"), &raw.ports, faults),
    };
    let (address, ports) = (address?, ports?);
    Some(NodeSpec {
        address,
        region,
        zone,
        ports,
        duty: spec::Duty::Active,
        lost: None,
        back: None,
    })
}

/// A value that parses itself and says why not.
fn parsed<T: FromStr<Err = String>>(what: &str, raw: &Text, faults: &mut Faults<'_>) -> Option<T> {
    let text = raw.is()?;
    match text.value.parse() {
        Ok(value) => Some(value),
        Err(why) => {
            faults.add(Code::BadAddress, text.at, format!("{what}: {why}"));
            None
        }
    }
}

fn services(
    raw: &RawSpec,
    nodes: &BTreeMap<String, NodeSpec>,
    known_nodes: &Known,
    known_repositories: &Known,
    kinds: &Kinds,
    faults: &mut Faults<'_>,
) -> BTreeMap<String, ServiceSpec> {
    let list = match &raw.services {
        Part::Faulty => return BTreeMap::new(),
        Part::Is(list) if !list.value.is_empty() => &list.value,
        Part::Absent | Part::Is(_) => {
            let fault = faults.add(Code::Count, 0, "no service is declared".into());
            fault.next = "add [service.main] with kind = \"postgres\"".into();
            return BTreeMap::new();
        }
    };
    count("services", list, spec::SERVICES_MAX, faults);
    let listeners = route::listeners(raw);
    let mut services = BTreeMap::new();
    for (name, service) in list {
        name_fault("service", name, &SERVICE_NAMES_RESERVED, faults);
        let service = match service {
            Some(RawService::Postgres(raw)) => {
                let backup = backup::of_service(&name.value, raw, known_repositories, faults);
                let service = service::postgres(&name.value, raw, nodes, known_nodes, faults);
                Some(ServiceSpec::Postgres(PostgresSpec { backup, ..service }))
            }
            Some(RawService::Http(raw)) => {
                let known = http::Declared { nodes: known_nodes, kinds, listeners: &listeners };
                http::http(&name.value, raw, &known, faults).map(ServiceSpec::Http)
            }
            None => None,
        };
        if let Some(service) = service {
            services.insert(name.value.clone(), service);
        }
    }
    services
}

/// Names in a list: declared ones, each once.
fn names(
    kind: &str,
    place: &str,
    list: &[Placed<String>],
    known: &Known,
    faults: &mut Faults<'_>,
) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in list {
        if names.contains(&name.value) {
            let message = format!("{kind} `{}` stands twice in {place}", name.value);
            faults.add(Code::Repeated, name.at, message);
        } else if reference(kind, name, place, known, faults) {
            names.push(name.value.clone());
        }
    }
    names
}

/// A path that is the same on every machine.
fn absolute(key: &str, place: &str, raw: &Text, faults: &mut Faults<'_>) -> Option<String> {
    let path = raw.is()?;
    if path.value.starts_with('/') {
        return Some(path.value.clone());
    }
    let shown = path.value.escape_debug();
    let message = format!("`{key}` in {place} must be an absolute path, not \"{shown}\"");
    faults.add(Code::OutOfRange, path.at, message).next =
        "begin it with /; it is the same on every machine".into();
    None
}

/// Whether the name is declared; reports it otherwise.
fn reference(
    kind: &str,
    name: &Placed<String>,
    place: &str,
    known: &Known,
    faults: &mut Faults<'_>,
) -> bool {
    let Some(known) = known else { return true };
    if known.contains(&name.value) {
        return true;
    }
    let hint = match nearest(&name.value, known.iter().map(String::as_str)) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => String::new(),
    };
    let shown = name.value.escape_debug();
    let message = format!("no {kind} `{shown}` is declared (in {place}){hint}");
    let fault = faults.add(Code::UnknownReference, name.at, message);
    let names: Vec<&str> = known.iter().map(String::as_str).collect();
    if !names.is_empty() {
        fault.next = format!("declare it under [{kind}], or name one of {}", names.join(", "));
    }
    false
}

/// Less is no use, and more has no machine.
const CACHE_BYTES: (RangeInclusive<u64>, &str) = (1 << 20..=1 << 40, "1MiB to 1TiB");

fn gateway(
    raw: &RawGateway,
    nodes: &BTreeMap<String, NodeSpec>,
    known_nodes: &Known,
    faults: &mut Faults<'_>,
) -> GatewaySpec {
    let access_log = raw.access_log.is().is_some_and(|it| it.value);
    let cache_bytes = http::size("cache", "[gateway]", &raw.cache, CACHE_BYTES, faults);
    let Some(list) = raw.nodes.is() else {
        return GatewaySpec { nodes: nodes.keys().cloned().collect(), access_log, cache_bytes };
    };
    if list.value.is_empty() {
        let fault = faults.add(Code::Count, list.at, "`nodes` in [gateway] is empty".into());
        fault.next = "name a node, or leave `nodes` out for all of them".into();
    }
    let nodes = names("node", "[gateway]", &list.value, known_nodes, faults);
    GatewaySpec { nodes, access_log, cache_bytes }
}

fn listeners(
    raw: &Named<RawListener>,
    kinds: &Kinds,
    faults: &mut Faults<'_>,
) -> BTreeMap<String, ListenerSpec> {
    // What can't be told from a database may be one.
    let databases = kinds.iter().flatten().filter(|(_, kind)| **kind != Some("http"));
    let databases: Vec<&String> = databases.map(|(name, _)| name).collect();
    let list = match (raw, &databases[..]) {
        (Part::Is(list), _) => &list.value,
        (Part::Absent, [name]) => return Spec::default_listeners(name),
        (Part::Absent, [_, _, ..]) => {
            let count = databases.len();
            let message = format!("no listener is declared, and {count} services have no default");
            faults.add(Code::Count, 0, message).next =
                "add [listener] with an entry per address".into();
            return BTreeMap::new();
        }
        (Part::Absent | Part::Faulty, _) => return BTreeMap::new(),
    };
    let mut listeners = BTreeMap::new();
    for (name, listener) in list {
        name_fault("listener", name, &[], faults);
        let listener =
            listener.as_ref().and_then(|raw| one_listener(&name.value, raw, kinds, faults));
        if let Some(listener) = listener {
            listeners.insert(name.value.clone(), listener);
        }
    }
    listeners
}

/// `None` when it has no usable address; its other faults are reported all the same.
fn one_listener(
    name: &str,
    raw: &RawListener,
    kinds: &Kinds,
    faults: &mut Faults<'_>,
) -> Option<ListenerSpec> {
    let place = format!("[listener.{name}]");
    let bind = bind(&raw.bind, &format!("bind of listener {name}"), faults);
    let protocols = [("postgres", false), ("http", true)];
    if word("protocol", &place, &raw.protocol, &protocols, faults) == Some(true) {
        let protocol = Protocol::Http(http_listener(&place, raw, faults)?);
        return Some(ListenerSpec { bind: bind?, protocol });
    }
    if let Some(service) = raw.service.is() {
        of_kind("postgres", service, &place, kinds, faults);
    }
    let roles = [("primary", Role::Primary), ("standby", Role::Standby)];
    let role = word("role", &place, &raw.role, &roles, faults);
    let max_lag_ms = match (role, &raw.max_lag) {
        (Some(Role::Primary), Part::Is(lag)) => {
            let message = format!("`max_lag` in {place} has no meaning with role \"primary\"");
            faults.add(Code::NotApplicable, lag.at, message);
            None
        }
        (_, Part::Is(lag)) => {
            duration("max_lag", &place, lag, (1..=spec::MAX_LAG_MS_MAX, "1ms to 24h"), faults)
        }
        (Some(Role::Standby), Part::Absent) => Some(spec::MAX_LAG_MS),
        (_, Part::Absent | Part::Faulty) => None,
    };
    if let Part::Is(trusted) = &raw.trusted_proxies {
        let message =
            format!("`trusted_proxies` in {place} has no meaning with protocol \"postgres\"");
        faults.add(Code::NotApplicable, trusted.at, message);
    }
    let service = raw.service.is().map(|it| it.value.clone()).unwrap_or_default();
    Some(ListenerSpec {
        bind: bind?,
        protocol: Protocol::Postgres(PostgresListener {
            service,
            role: role.unwrap_or(Role::Primary),
            max_lag_ms,
        }),
    })
}

/// `None` when it is to have a certificate and it isn't known which.
fn http_listener(place: &str, raw: &RawListener, faults: &mut Faults<'_>) -> Option<HttpListener> {
    for (key, text) in [("service", &raw.service), ("role", &raw.role), ("max_lag", &raw.max_lag)] {
        if let Some(text) = text.is() {
            let message = format!("`{key}` in {place} has no meaning with protocol \"http\"");
            faults.add(Code::NotApplicable, text.at, message).next =
                "take it out; [route.NAME] says which service gets a request".into();
        }
    }
    let trusted_proxies = protect::nets("trusted_proxies", place, &raw.trusted_proxies, faults);
    let deny = protect::nets("deny", place, &raw.deny, faults);
    let each = protect::connections(place, &raw.connections_per_client, faults);
    let place = format!("{place} tls");
    let tls = match &raw.tls {
        Part::Absent => None,
        Part::Faulty => return None,
        Part::Is(raw) => {
            let cert = absolute("cert", &place, &raw.cert, faults);
            let key = absolute("key", &place, &raw.key, faults);
            Some(TlsFiles { cert: cert?, key: key? })
        }
    };
    Some(HttpListener { tls, deny, connections_per_client: each, trusted_proxies })
}

/// A duration in milliseconds within a range, which is also given in words.
fn duration(
    key: &str,
    place: &str,
    raw: &Placed<String>,
    (range, words): (RangeInclusive<u64>, &str),
    faults: &mut Faults<'_>,
) -> Option<u64> {
    match duration_ms(&raw.value) {
        Ok(ms) if range.contains(&ms) => return Some(ms),
        Ok(_) => {
            let message = format!("`{key}` in {place} must be from {words}, not \"{}\"", raw.value);
            faults.add(Code::OutOfRange, raw.at, message);
        }
        Err(why) => {
            faults.add(Code::BadDuration, raw.at, format!("`{key}` in {place}: {why}"));
        }
    }
    None
}

/// A whole number with a unit, in milliseconds.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let shown = text.escape_debug();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let one = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" if !digits.is_empty() => return Err(format!("\"{shown}\" has no unit (ms, s, m or h)")),
        _ => return Err(format!("\"{shown}\" is not a whole number with a unit (ms, s, m or h)")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("\"{shown}\" is not a duration"))?;
    number.checked_mul(one).ok_or_else(|| format!("\"{shown}\" is too long"))
}

fn api(raw: &Text, faults: &mut Faults<'_>) -> ApiSpec {
    let bind = bind(raw, "bind of [api]", faults).unwrap_or(spec::API_BIND);
    if let (Some(raw), false) = (raw.is(), bind.ip().is_loopback()) {
        let message = format!(
            "[api] bind {bind} is reachable from other machines, and its token unencrypted"
        );
        faults.add(Code::ApiExposed, raw.at, message);
    }
    ApiSpec { bind }
}

fn bind(raw: &Text, what: &str, faults: &mut Faults<'_>) -> Option<SocketAddr> {
    let text = raw.is()?;
    match text.value.parse::<SocketAddr>() {
        Ok(bind) if bind.port() != 0 && !bind.ip().is_multicast() => return Some(bind),
        Ok(_) => {
            let message = format!("{what}: `{}` cannot be listened on", text.value);
            faults.add(Code::BadAddress, text.at, message);
        }
        Err(_) => {
            let shown = text.value.escape_debug();
            let message = format!("{what}: `{shown}` is not of the form IP:PORT");
            faults.add(Code::BadAddress, text.at, message).next =
                "write an IP address and a port, as in \"127.0.0.1:6432\"".into();
        }
    }
    None
}

/// One of a few words.
fn word<T: Copy>(
    key: &str,
    place: &str,
    raw: &Text,
    words: &[(&str, T)],
    faults: &mut Faults<'_>,
) -> Option<T> {
    let text = raw.is()?;
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text.value) {
        return Some(*value);
    }
    let all: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let shown = text.value.escape_debug();
    let message = format!("`{key}` in {place} must be {}, not \"{shown}\"", all.join(" or "));
    let near = nearest(&text.value, words.iter().map(|(word, _)| *word));
    let fault = faults.add(Code::OutOfRange, text.at, message);
    if let Some(near) = near {
        fault.next = format!("write \"{near}\"");
    }
    None
}

/// A whole number within bounds.
fn bounded(
    key: &str,
    place: &str,
    raw: &Number,
    range: RangeInclusive<u32>,
    default: u32,
    faults: &mut Faults<'_>,
) -> u32 {
    let Some(number) = raw.is() else { return default };
    match u32::try_from(number.value) {
        Ok(value) if range.contains(&value) => value,
        Ok(_) | Err(_) => {
            let (least, most) = (range.start(), range.end());
            let message =
                format!("`{key}` in {place} must be from {least} to {most}, not {}", number.value);
            faults.add(Code::OutOfRange, number.at, message);
            default
        }
    }
}
