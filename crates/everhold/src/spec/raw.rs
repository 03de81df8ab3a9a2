//! What was written, with places. Types are right, keys are known; nothing else is checked yet.

mod http;
mod protect;

use std::collections::btree_map::Entry;

use toml_edit::Document;

pub(super) use http::{RawBackend, RawHttp, RawRoute, RawTls};
pub(super) use protect::{RawBreaker, RawBulkhead, RawCache, RawMode, RawRate};

use super::fault::{Code, Faults};
use super::reader::{Again, Part, Placed, Reader, a, place};

pub(super) type Text = Part<Placed<String>>;
pub(super) type Number = Part<Placed<i64>>;
pub(super) type Names = Part<Placed<Vec<Placed<String>>>>;
/// Named tables; one that is not a table was reported and keeps its name only.
pub(super) type Named<T> = Part<Placed<Vec<(Placed<String>, Option<T>)>>>;

pub(super) struct RawSpec {
    pub schema: Number,
    pub cluster: Text,
    pub nodes: Named<RawNode>,
    pub services: Named<RawService>,
    pub gateway: RawGateway,
    pub listeners: Named<RawListener>,
    pub api_bind: Text,
    pub store: Part<RawStore>,
    pub repositories: Named<RawRepository>,
    pub routes: Named<RawRoute>,
}

pub(super) struct RawGateway {
    pub nodes: Names,
    pub access_log: Part<Placed<bool>>,
    pub cache: Text,
}

pub(super) enum RawService {
    Postgres(Box<RawPostgres>),
    Http(Box<RawHttp>),
}

impl RawService {
    pub fn kind(&self) -> &'static str {
        match self {
            RawService::Postgres(_) => "postgres",
            RawService::Http(_) => "http",
        }
    }
}

pub(super) struct RawRepository {
    pub url: Text,
    pub region: Text,
    pub endpoint: Text,
    pub credentials_file: Text,
    pub key_file: Text,
}

pub(super) struct RawBackup {
    pub at: usize,
    pub repositories: Names,
    pub copies: Number,
    pub full: Text,
    pub incremental: Text,
    /// Days, and how many of each period.
    pub keep: Vec<(&'static str, Number)>,
    pub prove_schedule: Text,
    pub prove_checks: Text,
    pub clone_from: Text,
}

pub(super) struct RawStore {
    pub at: usize,
    pub etcd: Names,
    pub ca: Text,
    pub cert: Text,
    pub key: Text,
}

pub(super) struct RawNode {
    pub at: usize,
    pub address: Text,
    pub region: Text,
    pub zone: Text,
    pub ports: Text,
}

pub(super) struct RawPostgres {
    pub nodes: Names,
    pub version: Number,
    pub database: Text,
    pub owner: Text,
    pub number: Number,
    pub durability: Text,
    pub spread: Text,
    pub switchover_when_slow: Text,
    pub scrub_every: Text,
    pub instances: Vec<(Placed<String>, Option<RawInstance>)>,
    /// The value as text, as PostgreSQL would read it.
    pub parameters: Vec<(Placed<String>, Placed<String>)>,
    pub backup: Part<RawBackup>,
}

pub(super) struct RawInstance {
    pub priority: Number,
    pub failover: Part<Placed<bool>>,
}

pub(super) struct RawListener {
    pub bind: Text,
    pub protocol: Text,
    pub service: Text,
    pub role: Text,
    pub max_lag: Text,
    pub deny: Names,
    pub connections_per_client: Number,
    pub tls: Part<RawTls>,
    pub trusted_proxies: Part<Placed<Vec<Placed<String>>>>,
}

/// A document, and the keys in it that were given before.
pub(super) struct Parsed {
    document: Document<String>,
    again: Again,
}

/// So many keys given twice are reported at once.
const DUPLICATES_MAX: usize = 32;
/// So many spare names are tried for one of them.
const SPARE_NAMES_MAX: usize = 64;

/// Parses the text. A key given twice is renamed to a spare name of the same length, so that the
/// rest of the document, and what stands below that key, can still be read, with every place as it
/// was. Anything else that is not TOML ends the reading: after it, nothing is sure to be where it
/// seems.
pub(super) fn document(text: &str, faults: &mut Faults<'_>) -> Option<Parsed> {
    let mut text = text.to_owned();
    let mut again = Again::new();
    for attempt in 0..DUPLICATES_MAX * SPARE_NAMES_MAX {
        let error = match Document::parse(text.clone()) {
            Ok(document) => return Some(Parsed { document, again }),
            Err(error) => error,
        };
        let span = error.span().unwrap_or(0..0);
        if error.message() != "duplicate key" || span.is_empty() {
            let message = error.message().replace('\n', ", ");
            faults.add(Code::Syntax, span.start, format!("not TOML: {message}"));
            return None;
        }
        let key = faults.written(span.clone()).trim_matches(['"', '\'']).to_owned();
        if let Entry::Vacant(place) = again.entry(span.start) {
            faults.add(Code::DuplicateKey, span.start, format!("`{key}` is given twice"));
            place.insert(key);
        }
        if again.len() > DUPLICATES_MAX {
            return None;
        }
        text.replace_range(span.clone(), &spare_name(span.len(), attempt));
    }
    None
}

/// A key of exactly `length` bytes that nobody is likely to have written.
fn spare_name(length: usize, attempt: usize) -> String {
    const LETTERS: &[u8; 64] = b"QZXJVKWYqzxjvkwyABCDEFGHILMNOPRSTUabcdefghilmnoprstu0123456789_-";
    let mut rest = attempt;
    let letter = |_| {
        let letter = LETTERS[rest % LETTERS.len()];
        rest /= LETTERS.len();
        char::from(letter)
    };
    (0..length).map(letter).collect()
}

/// Reads the whole document.
pub(super) fn read(parsed: &Parsed, faults: &mut Faults<'_>) -> RawSpec {
    let mut top = Reader::new("", 0, parsed.document.as_table(), &parsed.again);
    let schema = top.integer("schema", faults);
    let cluster = top.string("cluster", faults);
    let nodes = named(&mut top, "node", faults, node);
    let services = named(&mut top, "service", faults, service);
    let gateway = gateway(&mut top, faults);
    let listeners = named(&mut top, "listener", faults, listener);
    let api_bind = one_key(&mut top, "api", faults, |it, faults| it.string("bind", faults));
    let store = match top.table("store", faults) {
        Part::Absent => Part::Absent,
        Part::Faulty => Part::Faulty,
        Part::Is(table) => Part::Is(store(table, faults)),
    };
    let routes = named(&mut top, "route", faults, http::route);
    let repositories = named(&mut top, "repository", faults, repository);
    top.finish(faults);
    RawSpec {
        schema,
        cluster,
        nodes,
        services,
        gateway,
        listeners,
        api_bind,
        store,
        repositories,
        routes,
    }
}

fn named<'d, T>(
    top: &mut Reader<'d>,
    key: &'static str,
    faults: &mut Faults<'_>,
    read: impl Fn(Reader<'d>, &mut Faults<'_>) -> Option<T>,
) -> Named<T> {
    match top.table(key, faults) {
        Part::Absent => Part::Absent,
        Part::Faulty => Part::Faulty,
        Part::Is(table) => {
            let at = table.at;
            let mut value = Vec::new();
            for found in table.tables(faults) {
                let entry = match found.table {
                    Part::Is(reader) => read(reader, faults),
                    Part::Absent | Part::Faulty => None,
                };
                if !found.again {
                    value.push((found.name, entry));
                }
            }
            Part::Is(Placed { value, at })
        }
    }
}

fn one_key<'d, T>(
    top: &mut Reader<'d>,
    key: &'static str,
    faults: &mut Faults<'_>,
    read: impl Fn(&mut Reader<'d>, &mut Faults<'_>) -> Part<T>,
) -> Part<T> {
    match top.table(key, faults) {
        Part::Absent => Part::Absent,
        Part::Faulty => Part::Faulty,
        Part::Is(mut table) => {
            let value = read(&mut table, faults);
            table.finish(faults);
            value
        }
    }
}

fn gateway(top: &mut Reader<'_>, faults: &mut Faults<'_>) -> RawGateway {
    match top.table("gateway", faults) {
        Part::Absent => {
            RawGateway { nodes: Part::Absent, access_log: Part::Absent, cache: Part::Absent }
        }
        Part::Faulty => {
            RawGateway { nodes: Part::Faulty, access_log: Part::Faulty, cache: Part::Faulty }
        }
        Part::Is(mut table) => {
            let nodes = table.strings("nodes", faults);
            let access_log = table.boolean("access_log", faults);
            let cache = table.string("cache", faults);
            table.finish(faults);
            RawGateway { nodes, access_log, cache }
        }
    }
}

fn store(mut table: Reader<'_>, faults: &mut Faults<'_>) -> RawStore {
    let store = RawStore {
        at: table.at,
        etcd: table.strings("etcd", faults),
        ca: table.string("ca", faults),
        cert: table.string("cert", faults),
        key: table.string("key", faults),
    };
    if store.etcd == Part::Absent {
        table.missing("etcd", "[\"https://10.0.1.1:2379\"]", faults);
    }
    table.finish(faults);
    store
}

fn node(mut table: Reader<'_>, faults: &mut Faults<'_>) -> Option<RawNode> {
    let node = RawNode {
        at: table.at,
        address: table.string("address", faults),
        region: table.string("region", faults),
        zone: table.string("zone", faults),
        ports: table.string("ports", faults),
    };
    if node.address == Part::Absent {
        table.missing("address", "\"10.0.1.1\"", faults);
    }
    table.finish(faults);
    Some(node)
}

/// Kinds of service that the schema has and this version has not.
const KINDS_LATER: [&str; 2] = ["redis", "chain"];

fn service(mut table: Reader<'_>, faults: &mut Faults<'_>) -> Option<RawService> {
    match table.string("kind", faults) {
        Part::Absent => table.missing("kind", "\"postgres\"", faults),
        Part::Faulty => {}
        Part::Is(kind) if kind.value == "postgres" => {}
        Part::Is(kind) if kind.value == "http" => {
            return Some(RawService::Http(Box::new(http::service(table, faults))));
        }
        // The keys of another kind are not this kind's; nothing below can be judged.
        Part::Is(kind) if KINDS_LATER.contains(&kind.value.as_str()) => {
            let message = format!(
                "kind \"{}\" of {} is known but not supported by this version",
                kind.value, table.path
            );
            faults.add(Code::NotYet, kind.at, message);
            return None;
        }
        Part::Is(kind) => {
            let message = format!(
                "`kind` in {} must be \"postgres\" or \"http\", not \"{}\"",
                table.path, kind.value
            );
            faults.add(Code::OutOfRange, kind.at, message);
            return None;
        }
    }
    Some(RawService::Postgres(Box::new(postgres(table, faults))))
}

fn postgres(mut table: Reader<'_>, faults: &mut Faults<'_>) -> RawPostgres {
    let nodes = table.strings("nodes", faults);
    let version = table.integer("version", faults);
    let database = table.string("database", faults);
    let owner = table.string("owner", faults);
    let (number, durability, spread) = synchronous(&mut table, faults);
    let switchover_when_slow = table.string("switchover_when_slow", faults);
    let scrub_every = table.string("scrub_every", faults);
    let instances = match named(&mut table, "instance", faults, instance) {
        Part::Is(instances) => instances.value,
        Part::Absent | Part::Faulty => Vec::new(),
    };
    let parameters = match table.table("parameters", faults) {
        Part::Is(table) => parameters(table, faults),
        Part::Absent | Part::Faulty => Vec::new(),
    };
    let backup = match table.table("backup", faults) {
        Part::Absent => Part::Absent,
        Part::Faulty => Part::Faulty,
        Part::Is(table) => Part::Is(backup(table, faults)),
    };
    table.finish(faults);
    RawPostgres {
        nodes,
        version,
        database,
        owner,
        number,
        durability,
        spread,
        switchover_when_slow,
        scrub_every,
        instances,
        parameters,
        backup,
    }
}

fn backup(mut table: Reader<'_>, faults: &mut Faults<'_>) -> RawBackup {
    let at = table.at;
    let repositories = table.strings("repositories", faults);
    if repositories == Part::Absent {
        table.missing("repositories", "[\"vault\"]", faults);
    }
    let copies = table.integer("copies", faults);
    let full = table.string("full", faults);
    let incremental = table.string("incremental", faults);
    let mut keep = Vec::new();
    if let Part::Is(mut table) = table.table("keep", faults) {
        for key in ["days", "hourly", "daily", "weekly", "monthly", "yearly"] {
            keep.push((key, table.integer(key, faults)));
        }
        table.finish(faults);
    }
    let (mut prove_schedule, mut prove_checks) = (Part::Absent, Part::Absent);
    if let Part::Is(mut table) = table.table("prove", faults) {
        prove_schedule = table.string("schedule", faults);
        prove_checks = table.string("checks", faults);
        table.finish(faults);
    }
    let clone_from = table.string("clone_from", faults);
    table.finish(faults);
    RawBackup {
        at,
        repositories,
        copies,
        full,
        incremental,
        keep,
        prove_schedule,
        prove_checks,
        clone_from,
    }
}

fn repository(mut table: Reader<'_>, faults: &mut Faults<'_>) -> Option<RawRepository> {
    let repository = RawRepository {
        url: table.string("url", faults),
        region: table.string("region", faults),
        endpoint: table.string("endpoint", faults),
        credentials_file: table.string("credentials_file", faults),
        key_file: table.string("key_file", faults),
    };
    if repository.url == Part::Absent {
        table.missing("url", "\"file:///var/backups/everhold\"", faults);
    }
    if repository.key_file == Part::Absent {
        table.missing("key_file", "\"/etc/everhold/vault.key\"", faults);
    }
    table.finish(faults);
    Some(repository)
}

fn synchronous(table: &mut Reader<'_>, faults: &mut Faults<'_>) -> (Number, Text, Text) {
    match table.table("synchronous", faults) {
        Part::Absent => (Part::Absent, Part::Absent, Part::Absent),
        Part::Faulty => (Part::Faulty, Part::Faulty, Part::Faulty),
        Part::Is(mut table) => {
            let number = table.integer("number", faults);
            let durability = table.string("durability", faults);
            let spread = table.string("spread", faults);
            table.finish(faults);
            (number, durability, spread)
        }
    }
}

fn instance(mut table: Reader<'_>, faults: &mut Faults<'_>) -> Option<RawInstance> {
    let instance = RawInstance {
        priority: table.integer("priority", faults),
        failover: table.boolean("failover", faults),
    };
    table.finish(faults);
    Some(instance)
}

/// PostgreSQL's settings, as it would read them from its own file.
fn parameters(table: Reader<'_>, faults: &mut Faults<'_>) -> Vec<(Placed<String>, Placed<String>)> {
    let mut found = Vec::new();
    settings("", &table, faults, &mut found);
    found
}

fn settings(
    prefix: &str,
    table: &Reader<'_>,
    faults: &mut Faults<'_>,
    found: &mut Vec<(Placed<String>, Placed<String>)>,
) {
    for (key, item) in table.entries() {
        let name = Placed { value: format!("{prefix}{}", key.value), at: key.at };
        let at = place(item, key.at);
        let value = match item.as_value() {
            Some(toml_edit::Value::String(text)) => text.value().clone(),
            Some(toml_edit::Value::Integer(number)) => number.value().to_string(),
            Some(toml_edit::Value::Float(number)) => number.value().to_string(),
            Some(toml_edit::Value::Boolean(flag)) => {
                if *flag.value() { "on" } else { "off" }.into()
            }
            _ => {
                // `auto_explain.log_min_duration` is a table to TOML and one name to PostgreSQL.
                if let (Some(below), "") = (item.as_table_like(), prefix) {
                    let below = table.below(&key, below);
                    settings(&format!("{}.", key.value), &below, faults, found);
                } else {
                    let kind = a(item.type_name());
                    let message = format!(
                        "setting `{}` must be a string, a number or true or false, not {kind}",
                        name.value
                    );
                    faults.add(Code::WrongType, at, message);
                }
                continue;
            }
        };
        found.push((name, Placed { value, at }));
    }
}

/// Protocols that the schema has and this version has not.
const PROTOCOLS_LATER: [&str; 3] = ["tcp", "redis", "jsonrpc"];

fn listener(mut table: Reader<'_>, faults: &mut Faults<'_>) -> Option<RawListener> {
    let protocol = table.string("protocol", faults);
    if let Part::Is(protocol) = &protocol
        && PROTOCOLS_LATER.contains(&protocol.value.as_str())
    {
        let message = format!(
            "protocol \"{}\" of {} is known but not supported by this version",
            protocol.value, table.path
        );
        faults.add(Code::NotYet, protocol.at, message);
        return None;
    }
    let http = protocol.is().is_some_and(|it| it.value == "http");
    let tls = match http {
        true => http::tls(&mut table, faults),
        false => {
            table.later("tls", "TLS for clients of PostgreSQL", faults);
            Part::Absent
        }
    };
    // Of PostgreSQL's they are unknown keys.
    let (deny, connections_per_client) = match http {
        true => (table.strings("deny", faults), table.integer("connections_per_client", faults)),
        false => (Part::Absent, Part::Absent),
    };
    let listener = RawListener {
        bind: table.string("bind", faults),
        protocol,
        service: table.string("service", faults),
        role: table.string("role", faults),
        max_lag: table.string("max_lag", faults),
        deny,
        connections_per_client,
        tls,
        trusted_proxies: table.strings("trusted_proxies", faults),
    };
    let required = [
        ("bind", &listener.bind, "\"127.0.0.1:6432\""),
        ("protocol", &listener.protocol, "\"postgres\""),
        ("service", &listener.service, "\"main\""),
        ("role", &listener.role, "\"primary\" or \"standby\""),
    ];
    for (key, part, example) in &required[..if http { 1 } else { required.len() }] {
        if **part == Part::Absent {
            table.missing(key, example, faults);
        }
    }
    table.finish(faults);
    Some(listener)
}
