//! HTTP services, routes and TLS of listeners as they were written.

use super::super::fault::{Code, Faults};
use super::super::reader::{Part, Placed, Reader, a};
use super::protect::{self, RawBreaker, RawBulkhead, RawCache, RawMode, RawRate};
use super::{Names, Number, Text};
use everhold_core::http::degrade::Mode;

pub(in super::super) struct RawHttp {
    pub at: usize,
    pub instances: Number,
    pub nodes: Names,
    pub command: Names,
    pub env: Vec<(Placed<String>, Placed<String>)>,
    pub user: Text,
    pub directory: Text,
    pub stop_signal: Text,
    pub stop_grace: Text,
    pub cpu: Part<Placed<f64>>,
    pub memory: Text,
    pub addresses: Part<Placed<Vec<RawBackend>>>,
    pub balance: Text,
    pub hash: Text,
    pub version: Text,
    pub affinity: Part<RawAffinity>,
    pub health_path: Text,
    pub health_interval: Text,
    pub health_timeout: Text,
    pub health_start_within: Text,
    pub health_restart_after: Text,
    pub healthy_threshold: Number,
    pub unhealthy_threshold: Number,
    pub slow_start: Text,
    pub timeout: Text,
    pub try_timeout: Text,
    pub hedge: Text,
    pub idle_timeout: Text,
    pub retries: Number,
    pub concurrency: Option<RawBulkhead>,
    pub breaker: Option<RawBreaker>,
    /// Keys that say how Everhold runs it, and where they stand.
    pub of_run: Vec<(&'static str, usize)>,
}

pub(in super::super) struct RawAffinity {
    pub at: usize,
    pub cookie: Text,
    pub header: Text,
}

pub(in super::super) struct RawBackend {
    pub at: usize,
    pub address: Text,
    pub zone: Text,
    pub weight: Number,
}

pub(in super::super) struct RawTls {
    pub cert: Text,
    pub key: Text,
}

pub(in super::super) struct RawRoute {
    pub listener: Text,
    pub service: Text,
    pub timeout: Text,
    pub host: Text,
    pub path: Text,
    pub path_prefix: Text,
    pub methods: Names,
    pub headers: Vec<(Placed<String>, Placed<String>)>,
    pub priority: Text,
    pub concurrency: Option<RawBulkhead>,
    pub rate_limit: Option<RawRate>,
    pub body_rate_min: Number,
    pub cache: Option<RawCache>,
    pub degraded: Vec<(Mode, RawMode)>,
}

/// What has no meaning for what others run.
const OF_RUN: [&str; 8] =
    ["instances", "nodes", "command", "env", "user", "directory", "stop", "limits"];

pub(super) fn service(mut table: Reader<'_>, faults: &mut Faults<'_>) -> RawHttp {
    let of_run = OF_RUN.into_iter().filter_map(|key| Some((key, table.given(key)?))).collect();
    let stop = below(&mut table, "stop", faults, |it, faults| {
        (it.string("signal", faults), it.string("grace", faults))
    });
    let limits = below(&mut table, "limits", faults, |it, faults| {
        (it.number("cpu", faults), it.string("memory", faults))
    });
    let (stop_signal, stop_grace) = stop.unwrap_or((Part::Absent, Part::Absent));
    let (cpu, memory) = limits.unwrap_or((Part::Absent, Part::Absent));
    let affinity = below(&mut table, "affinity", faults, |it, faults| RawAffinity {
        at: it.at,
        cookie: it.string("cookie", faults),
        header: it.string("header", faults),
    });
    let health = below(&mut table, "health", faults, |it, faults| {
        let texts = ["path", "interval", "timeout", "start_within", "restart_after"];
        let texts = texts.map(|key| it.string(key, faults));
        (texts, ["healthy_threshold", "unhealthy_threshold"].map(|key| it.integer(key, faults)))
    });
    let (texts, [healthy_threshold, unhealthy_threshold]) =
        health.unwrap_or_else(|| ([(); 5].map(|()| Part::Absent), [Part::Absent, Part::Absent]));
    let [health_path, health_interval, health_timeout, within, after] = texts;
    let http = RawHttp {
        at: table.at,
        instances: table.integer("instances", faults),
        nodes: table.strings("nodes", faults),
        command: table.strings("command", faults),
        env: table.texts("env", faults),
        user: table.string("user", faults),
        directory: table.string("directory", faults),
        stop_signal,
        stop_grace,
        cpu,
        memory,
        addresses: addresses(&mut table, faults),
        balance: table.string("balance", faults),
        hash: table.string("hash", faults),
        version: table.string("version", faults),
        affinity: affinity.map_or(Part::Absent, Part::Is),
        health_path,
        health_interval,
        health_timeout,
        health_start_within: within,
        health_restart_after: after,
        healthy_threshold,
        unhealthy_threshold,
        slow_start: table.string("slow_start", faults),
        timeout: table.string("timeout", faults),
        try_timeout: table.string("try_timeout", faults),
        hedge: table.string("hedge", faults),
        idle_timeout: table.string("idle_timeout", faults),
        retries: table.integer("retries", faults),
        concurrency: protect::bulkhead(&mut table, faults),
        breaker: protect::breaker(&mut table, faults),
        of_run,
    };
    table.finish(faults);
    http
}

/// What is in a table below; `None` if there is none.
pub(super) fn below<'d, T>(
    table: &mut Reader<'d>,
    key: &'static str,
    faults: &mut Faults<'_>,
    read: impl FnOnce(&mut Reader<'d>, &mut Faults<'_>) -> T,
) -> Option<T> {
    let Part::Is(mut below) = table.table(key, faults) else { return None };
    let value = read(&mut below, faults);
    below.finish(faults);
    Some(value)
}

/// `"HOST:PORT"`, or a table with that and more.
fn addresses(table: &mut Reader<'_>, faults: &mut Faults<'_>) -> Part<Placed<Vec<RawBackend>>> {
    let list = match table.list("addresses", faults) {
        Part::Absent => return Part::Absent,
        Part::Faulty => return Part::Faulty,
        Part::Is(list) => list,
    };
    let mut value = Vec::new();
    for entry in list.value {
        let at = entry.span().map_or(list.at, |span| span.start);
        if let Some(text) = entry.as_str() {
            let address = Part::Is(Placed { value: text.to_owned(), at });
            value.push(RawBackend { at, address, zone: Part::Absent, weight: Part::Absent });
        } else if let Some(inline) = entry.as_inline_table() {
            let name = Placed { value: "addresses".to_owned(), at };
            let mut table = table.below(&name, inline);
            let backend = RawBackend {
                at,
                address: table.string("address", faults),
                zone: table.string("zone", faults),
                weight: table.integer("weight", faults),
            };
            if backend.address == Part::Absent {
                table.missing("address", "\"10.0.9.1:8080\"", faults);
            }
            table.finish(faults);
            value.push(backend);
        } else {
            let kind = a(entry.type_name());
            let message =
                format!("`addresses` in {} lists strings or tables, not {kind}", table.path);
            faults.add(Code::WrongType, at, message);
        }
    }
    Part::Is(Placed { value, at: list.at })
}

pub(super) fn tls(table: &mut Reader<'_>, faults: &mut Faults<'_>) -> Part<RawTls> {
    let mut table = match table.table("tls", faults) {
        Part::Absent => return Part::Absent,
        Part::Faulty => return Part::Faulty,
        Part::Is(table) => table,
    };
    let (cert, key) = (table.string("cert", faults), table.string("key", faults));
    for (name, file) in [("cert", &cert), ("key", &key)] {
        if *file == Part::Absent {
            let example = format!("\"/etc/everhold/web.{name}\"");
            table.missing(name, &example, faults);
        }
    }
    table.finish(faults);
    Part::Is(RawTls { cert, key })
}

pub(super) fn route(mut table: Reader<'_>, faults: &mut Faults<'_>) -> Option<RawRoute> {
    let (listener, service) = (table.string("listener", faults), table.string("service", faults));
    for (key, text, example) in
        [("listener", &listener, "\"web\""), ("service", &service, "\"api\"")]
    {
        if *text == Part::Absent {
            table.missing(key, example, faults);
        }
    }
    let timeout = table.string("timeout", faults);
    let priority = table.string("priority", faults);
    let concurrency = protect::bulkhead(&mut table, faults);
    let rate_limit = protect::rate(&mut table, faults);
    let body_rate_min = table.integer("body_rate_min", faults);
    let cache = protect::cache(&mut table, faults);
    let degraded = protect::degraded(&mut table, faults);
    let when = below(&mut table, "match", faults, |it, faults| {
        let texts = ["host", "path", "path_prefix"].map(|key| it.string(key, faults));
        (texts, it.strings("methods", faults), it.texts("headers", faults))
    });
    let absent = ([Part::Absent, Part::Absent, Part::Absent], Part::Absent, Vec::new());
    let ([host, path, path_prefix], methods, headers) = when.unwrap_or(absent);
    table.finish(faults);
    Some(RawRoute {
        listener,
        service,
        timeout,
        host,
        path,
        path_prefix,
        methods,
        headers,
        priority,
        concurrency,
        rate_limit,
        body_rate_min,
        cache,
        degraded,
    })
}
