//! An HTTP service: what is run or where it is, how requests are shared out, what is healthy.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use everhold_core::spec::{
    self, Address, Affinity, BackendSpec, Balance, HashKey, HealthSpec, HttpSpec, LimitsSpec,
    RunSpec, Source, Spec, StopSignal, StopSpec, Version,
};

use super::super::fault::{Code, Faults};
use super::super::raw::{Number, RawBackend, RawHttp, Text};
use super::super::reader::{Part, Placed};
use super::{
    Kinds, Known, RawSpec, absolute, bounded, duration, kind_of, name_fault, names, protect,
    service_place, word,
};
use crate::instances::named_listeners;

const HEALTH_INTERVAL_MS: (RangeInclusive<u64>, &str) = (100..=3_600_000, "100ms to 1h");
const HEALTH_TIMEOUT_MS: (RangeInclusive<u64>, &str) = (10..=60_000, "10ms to 1m");
const START_WITHIN_MS: (RangeInclusive<u64>, &str) = (1_000..=3_600_000, "1s to 1h");
const RESTART_AFTER_MS: (RangeInclusive<u64>, &str) = (0..=3_600_000, "0s to 1h");
const THRESHOLD_MAX: u32 = 100;
const SLOW_START_MS: (RangeInclusive<u64>, &str) = (0..=600_000, "0s to 10m");
const TIMEOUT_MS: (RangeInclusive<u64>, &str) = (1..=86_400_000, "1ms to 24h");
const IDLE_TIMEOUT_MS: (RangeInclusive<u64>, &str) = (1_000..=86_400_000, "1s to 24h");
/// What is slow is so at most for as many as there may be further tries of.
const HEDGE: RangeInclusive<u32> = 80..=99;
const WEIGHT_MAX: u32 = 1_000;
/// Thousandths of a core; as many cores as no machine has.
const CPU_MILLI: RangeInclusive<f64> = 10.0..=1_024_000.0;
/// Less than any process starts with, and more than any machine has.
const MEMORY_BYTES: (RangeInclusive<u64>, &str) = (1 << 20..=1 << 50, "1MiB to 1024TiB");

/// What a service may refer to.
pub(super) struct Declared<'d> {
    pub nodes: &'d Known,
    pub kinds: &'d Kinds,
    pub listeners: &'d Kinds,
}

/// `None` when it isn't known what is run, or where it is.
pub(super) fn http(
    name: &str,
    raw: &RawHttp,
    known: &Declared<'_>,
    faults: &mut Faults<'_>,
) -> Option<HttpSpec> {
    let place = format!("[service.{name}]");
    let source = source(&place, raw, known, faults);
    let time = |key: &str, raw: &Text, range, default: u64, faults: &mut Faults<'_>| {
        raw.is().and_then(|raw| duration(key, &place, raw, range, faults)).unwrap_or(default)
    };
    let timeout_ms = time("timeout", &raw.timeout, TIMEOUT_MS, spec::TIMEOUT_MS, faults);
    let slow_start =
        time("slow_start", &raw.slow_start, SLOW_START_MS, spec::SLOW_START_MS, faults);
    let try_timeout_auto = raw.try_timeout.is().is_some_and(|it| it.value == "auto");
    let try_timeout_ms = raw.try_timeout.is().filter(|_| !try_timeout_auto).and_then(|raw| {
        let ms = duration("try_timeout", &place, raw, TIMEOUT_MS, faults)?;
        if ms > timeout_ms {
            let message = format!("`try_timeout` in {place} is longer than all tries may take");
            faults.add(Code::OutOfRange, raw.at, message).next =
                format!("lower it below `timeout` ({timeout_ms}ms), or raise that");
        }
        Some(ms)
    });
    let idle_timeout_ms =
        time("idle_timeout", &raw.idle_timeout, IDLE_TIMEOUT_MS, spec::IDLE_TIMEOUT_MS, faults);
    let versions = [("1.1", Version::Http1), ("2", Version::Http2)];
    let retries =
        bounded("retries", &place, &raw.retries, 0..=spec::RETRIES_MAX, spec::RETRIES, faults);
    Some(HttpSpec {
        balance: balance(&place, raw, faults),
        version: word("version", &place, &raw.version, &versions, faults).unwrap_or_default(),
        affinity: affinity(&place, raw, faults),
        health: health(&place, raw, faults),
        slow_start_ms: slow_start,
        timeout_ms,
        try_timeout_ms,
        try_timeout_auto,
        hedge_percentile: hedge(&place, raw, retries, faults),
        idle_timeout_ms,
        retries,
        concurrency: protect::bulkhead(&place, raw.concurrency.as_ref(), faults),
        breaker: protect::breaker(&place, raw.breaker.as_ref(), faults),
        source: source?,
        drained: Default::default(),
    })
}

fn source(
    place: &str,
    raw: &RawHttp,
    known: &Declared<'_>,
    faults: &mut Faults<'_>,
) -> Option<Source> {
    match &raw.addresses {
        Part::Absent => run(place, raw, known, faults).map(Source::Run),
        Part::Faulty => None,
        Part::Is(list) => {
            for (key, at) in &raw.of_run {
                let message = format!("`{key}` in {place} has no meaning beside `addresses`");
                faults.add(Code::NotApplicable, *at, message).next =
                    "take it out, or take `addresses` out if Everhold is to run the service".into();
            }
            addresses(place, list, faults).map(Source::Addresses)
        }
    }
}

fn addresses(
    place: &str,
    list: &Placed<Vec<RawBackend>>,
    faults: &mut Faults<'_>,
) -> Option<Vec<BackendSpec>> {
    let count = list.value.len();
    if !(1..=spec::ADDRESSES_MAX).contains(&count) {
        let message = format!("`addresses` in {place} lists {count}");
        faults.add(Code::Count, list.at, message).next =
            format!("list 1 to {}", spec::ADDRESSES_MAX);
    }
    let mut found: Vec<BackendSpec> = Vec::new();
    for raw in &list.value {
        let zone = raw.zone.is().map(|zone| {
            name_fault("zone", zone, &[], faults);
            zone.value.clone()
        });
        let weight = bounded("weight", place, &raw.weight, 1..=WEIGHT_MAX, 1, faults);
        let Some(text) = raw.address.is() else { continue };
        let Some((address, port)) = host_and_port(&text.value) else {
            let shown = text.value.escape_debug();
            let message =
                format!("`{shown}` in `addresses` of {place} is not of the form HOST:PORT");
            faults.add(Code::BadAddress, text.at, message).next =
                "write an address and a port, as in \"10.0.9.1:8080\"".into();
            continue;
        };
        if found.iter().any(|it| it.address == address && it.port == port) {
            let message = format!("address `{}` stands twice in {place}", text.value);
            faults.add(Code::Repeated, raw.at, message);
        }
        found.push(BackendSpec { address, port, zone, weight });
    }
    Some(found)
}

fn host_and_port(text: &str) -> Option<(Address, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    Some((host.parse().ok()?, port.parse().ok().filter(|port| *port > 0)?))
}

fn run(
    place: &str,
    raw: &RawHttp,
    known: &Declared<'_>,
    faults: &mut Faults<'_>,
) -> Option<RunSpec> {
    if raw.command == Part::Absent {
        let message = format!("`command` is missing in {place}");
        faults.add(Code::Missing, raw.at, message).next =
            "add command = [\"/opt/api/serve\", \"--port\", \"{port}\"], \
             or `addresses` if others run the service"
                .into();
    }
    let command = raw.command.is();
    if let Some(command) = command {
        program(place, command, faults);
    }
    for (name, _) in &raw.env {
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !name.value.chars().all(letter)
            || name.value.starts_with(|c: char| !letter(c) || c.is_ascii_digit())
            || name.value.is_empty()
        {
            let shown = name.value.escape_debug();
            let message = format!("`{shown}` in `env` of {place} is not the name of a variable");
            faults.add(Code::OutOfRange, name.at, message).next =
                "write letters, digits and `_`, with no digit first".into();
        }
    }
    let texts = command.iter().flat_map(|it| &it.value).chain(raw.env.iter().map(|(_, it)| it));
    for text in texts {
        words(place, text, known, faults);
    }
    let nodes = raw.nodes.is().map(|list| {
        if list.value.is_empty() {
            let message = format!("`nodes` in {place} is empty");
            faults.add(Code::Count, list.at, message).next =
                "name a node, or leave `nodes` out for all of them".into();
        }
        names("node", place, &list.value, known.nodes, faults)
    });
    let directory = absolute("directory", place, &raw.directory, faults);
    Some(RunSpec {
        instances: bounded(
            "instances",
            place,
            &raw.instances,
            0..=spec::INSTANCES_MAX,
            spec::INSTANCES,
            faults,
        ),
        env: raw.env.iter().map(|(name, it)| (name.value.clone(), it.value.clone())).collect(),
        user: user(place, &raw.user, faults),
        directory,
        stop: stop(place, raw, faults),
        limits: limits(place, raw, faults),
        nodes: nodes.unwrap_or_default(),
        placed: BTreeMap::new(),
        home: BTreeMap::new(),
        command: command?.value.iter().map(|it| it.value.clone()).collect(),
    })
}

/// The first word of a command: a path, or a name to be looked for in `PATH`.
fn program(place: &str, command: &Placed<Vec<Placed<String>>>, faults: &mut Faults<'_>) {
    let Some(program) = command.value.first() else {
        let message = format!("`command` in {place} is empty");
        faults.add(Code::Count, command.at, message).next =
            "name a program and its arguments, or take the service out".into();
        return;
    };
    let is_path = program.value.starts_with('/') && !program.value.ends_with('/');
    if program.value.is_empty() || (program.value.contains('/') && !is_path) {
        let shown = program.value.escape_debug();
        let message = format!("\"{shown}\" in `command` of {place} is not a program");
        faults.add(Code::OutOfRange, program.at, message).next =
            "write an absolute path, or a name that is in PATH on every machine".into();
    }
}

/// Reports words in braces that stand for nothing. Braces around anything that is no word, as in
/// JSON, are text.
fn words(place: &str, text: &Placed<String>, known: &Declared<'_>, faults: &mut Faults<'_>) {
    if text.value.contains('\0') {
        let message = format!("a text of `command` or `env` in {place} holds a zero byte");
        faults.add(Code::OutOfRange, text.at, message);
    }
    let within = text.value.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
    for (word, _) in within {
        let letter = |c: char| c.is_ascii_alphanumeric() || "_-:.".contains(c);
        let is_word =
            word.starts_with(|c: char| c.is_ascii_alphabetic()) && word.chars().all(letter);
        let place_of = format!("`{{{word}}}` of {place}");
        let name = |name: &str| Placed { value: name.to_owned(), at: text.at };
        match word.split_once(':') {
            Some(("dsn", of)) => {
                kind_of("service", "postgres", &name(of), &place_of, known.kinds, faults);
            }
            Some(("url", of)) => {
                kind_of("listener", "http", &name(of), &place_of, known.listeners, faults);
            }
            _ if is_word && !["port", "instance", "node"].contains(&word) => {
                let message = format!("`{{{word}}}` in {place} stands for nothing");
                faults.add(Code::UnknownWord, text.at, message);
            }
            _ => {}
        }
    }
}

/// Reports instances that are to reach a listener at their own machine where no gateway may be.
pub(super) fn check_reach(spec: &Spec, raw: &RawSpec, faults: &mut Faults<'_>) {
    for (name, service) in spec.http_services() {
        let Source::Run(run) = &service.source else { continue };
        let inside = |it: &&str| {
            let listener = spec.listeners.get(*it);
            listener.is_some_and(|it| it.bind.ip().is_unspecified() || it.bind.ip().is_loopback())
        };
        let without = |it: &&String| !spec.gateway.nodes.contains(it);
        let nodes: Vec<&String> = match run.nodes.is_empty() {
            true => spec.nodes.keys().collect(),
            false => run.nodes.iter().collect(),
        };
        if let Some(listener) = named_listeners(run).find(inside)
            && let Some(node) = nodes.into_iter().find(without)
            && spec.is_spread()
        {
            let message =
                format!("`{{url:{listener}}}` in [service.{name}]: node {node} runs no gateway");
            faults.add(Code::NotApplicable, service_place(raw, name), message).next =
                "add the node to `nodes` of [gateway], or name others in `nodes` of the service"
                    .into();
        }
    }
}

fn user(place: &str, raw: &Text, faults: &mut Faults<'_>) -> Option<String> {
    let user = raw.is()?;
    let odd = |c: char| c.is_whitespace() || c.is_control() || ":/,".contains(c);
    if user.value.is_empty() || user.value.contains(odd) {
        let shown = user.value.escape_debug();
        let message = format!("`user` in {place} must be the name of a user, not \"{shown}\"");
        faults.add(Code::OutOfRange, user.at, message);
    }
    Some(user.value.clone())
}

fn stop(place: &str, raw: &RawHttp, faults: &mut Faults<'_>) -> StopSpec {
    let signals = [
        ("TERM", StopSignal::Term),
        ("INT", StopSignal::Int),
        ("QUIT", StopSignal::Quit),
        ("HUP", StopSignal::Hup),
        ("USR1", StopSignal::Usr1),
        ("USR2", StopSignal::Usr2),
    ];
    let signal = word("stop.signal", place, &raw.stop_signal, &signals, faults);
    let range = (0..=spec::GRACE_MS_MAX, "0s to 1h");
    let grace = raw.stop_grace.is();
    let grace = grace.and_then(|raw| duration("stop.grace", place, raw, range, faults));
    StopSpec {
        signal: signal.unwrap_or(StopSignal::Term),
        grace_ms: grace.unwrap_or(spec::GRACE_MS),
    }
}

fn limits(place: &str, raw: &RawHttp, faults: &mut Faults<'_>) -> LimitsSpec {
    let cpu_milli = raw.cpu.is().and_then(|cpu| {
        let milli = (cpu.value * 1_000.0).round();
        if CPU_MILLI.contains(&milli) {
            return Some(milli as u32);
        }
        let message =
            format!("`limits.cpu` in {place} must be from 0.01 to 1024 cores, not {}", cpu.value);
        faults.add(Code::OutOfRange, cpu.at, message);
        None
    });
    let memory_bytes = size("limits.memory", place, &raw.memory, MEMORY_BYTES, faults);
    LimitsSpec { cpu_milli, memory_bytes }
}

/// So many bytes, within bounds.
pub(super) fn size(
    key: &str,
    place: &str,
    raw: &Text,
    (range, words): (RangeInclusive<u64>, &str),
    faults: &mut Faults<'_>,
) -> Option<u64> {
    let text = raw.is()?;
    let bytes = bytes(&text.value).filter(|bytes| range.contains(bytes));
    if bytes.is_none() {
        let shown = text.value.escape_debug();
        let message = format!("`{key}` in {place} must be from {words}, not \"{shown}\"");
        faults.add(Code::OutOfRange, text.at, message).next =
            "write a whole number with a unit: KiB, MiB, GiB or TiB, as in \"256MiB\"".into();
    }
    bytes
}

/// A whole number with a unit.
fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(end);
    let shift = match unit {
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn balance(place: &str, raw: &RawHttp, faults: &mut Faults<'_>) -> Balance {
    #[derive(Clone, Copy, PartialEq)]
    enum By {
        Turns,
        Weights,
        Requests,
        Load,
        Latency,
        Hash,
    }
    let all = [
        ("round_robin", By::Turns),
        ("weighted", By::Weights),
        ("least_requests", By::Requests),
        ("least_load", By::Load),
        ("peak_ewma", By::Latency),
        ("consistent_hash", By::Hash),
    ];
    let by = word("balance", place, &raw.balance, &all, faults);
    if let (true, Some(hash)) = (by != Some(By::Hash) && raw.balance != Part::Faulty, raw.hash.is())
        && (by.is_some() || raw.balance == Part::Absent)
    {
        let message =
            format!("`hash` in {place} has a meaning with balance \"consistent_hash\" only");
        faults.add(Code::NotApplicable, hash.at, message);
    }
    match by {
        None => Balance::default(),
        Some(By::Turns) => Balance::RoundRobin,
        Some(By::Weights) => Balance::Weighted,
        Some(By::Requests) => Balance::LeastRequests,
        Some(By::Load) => Balance::LeastLoad,
        Some(By::Latency) => Balance::PeakEwma,
        Some(By::Hash) => {
            if let (Part::Absent, Some(balance)) = (&raw.hash, raw.balance.is()) {
                let message = format!("`hash` is missing in {place}");
                faults.add(Code::Missing, balance.at, message).next =
                    "say what of a request decides, as in hash = \"client_ip\"".into();
            }
            let key = raw.hash.is().and_then(|text| hash(place, text, faults));
            Balance::ConsistentHash(key.unwrap_or(HashKey::ClientIp))
        }
    }
}

fn hash(place: &str, text: &Placed<String>, faults: &mut Faults<'_>) -> Option<HashKey> {
    let key = match text.value.split_once(':') {
        None if text.value == "client_ip" => Some(HashKey::ClientIp),
        None if text.value == "path" => Some(HashKey::Path),
        Some(("header", name)) if is_token(name) => Some(HashKey::Header(name.to_lowercase())),
        Some(("cookie", name)) if is_token(name) => Some(HashKey::Cookie(name.to_owned())),
        None | Some(_) => None,
    };
    if key.is_none() {
        let shown = text.value.escape_debug();
        let message = format!("`hash` in {place} names no part of a request: \"{shown}\"");
        faults.add(Code::OutOfRange, text.at, message).next =
            "write \"client_ip\", \"path\", \"header:NAME\" or \"cookie:NAME\"".into();
    }
    key
}

fn affinity(place: &str, raw: &RawHttp, faults: &mut Faults<'_>) -> Option<Affinity> {
    let raw = raw.affinity.is()?;
    let both = |key: &str| format!("`affinity.{key}` in {place}");
    match (&raw.cookie, &raw.header) {
        (Part::Is(cookie), Part::Absent) => {
            token(&both("cookie"), cookie, faults).then(|| Affinity::Cookie(cookie.value.clone()))
        }
        (Part::Absent, Part::Is(header)) => token(&both("header"), header, faults)
            .then(|| Affinity::Header(header.value.to_lowercase())),
        (Part::Faulty, _) | (_, Part::Faulty) => None,
        (Part::Absent, Part::Absent) | (Part::Is(_), Part::Is(_)) => {
            let message = format!("`affinity` in {place} needs either `cookie` or `header`");
            faults.add(Code::Count, raw.at, message).next =
                "write affinity = { cookie = \"NAME\" } or { header = \"NAME\" }".into();
            None
        }
    }
}

/// `"p95"`, and the like.
fn hedge(place: &str, raw: &RawHttp, retries: u32, faults: &mut Faults<'_>) -> Option<u32> {
    let text = raw.hedge.is()?;
    let digits = text.value.strip_prefix('p').filter(|it| it.len() == 2);
    let percentile = digits.and_then(|it| it.parse().ok()).filter(|it| HEDGE.contains(it));
    if percentile.is_none() {
        let shown = text.value.escape_debug();
        let message =
            format!("`hedge` in {place} must be from \"p80\" to \"p99\", not \"{shown}\"");
        faults.add(Code::OutOfRange, text.at, message).next =
            "write hedge = \"p95\": what takes longer than 95 of 100 do is tried elsewhere, too"
                .into();
    }
    let against = match raw.affinity {
        Part::Is(_) => Some("`affinity` keeps requests where they are"),
        Part::Absent | Part::Faulty => (retries == 0).then_some("`retries` allows no further try"),
    };
    if let Some(why) = against {
        let message = format!("`hedge` in {place} has no meaning: {why}");
        faults.add(Code::NotApplicable, text.at, message).next = "take one of them out".into();
    }
    percentile
}

fn health(place: &str, raw: &RawHttp, faults: &mut Faults<'_>) -> HealthSpec {
    let default = HealthSpec::default();
    let path = raw.health_path.is().map(|path| {
        super::route::path_fault(&format!("`health.path` in {place}"), path, true, faults);
        path.value.clone()
    });
    let mut time = |key: &str, raw: &Text, range, default| {
        raw.is().and_then(|raw| duration(key, place, raw, range, faults)).unwrap_or(default)
    };
    let interval_ms =
        time("health.interval", &raw.health_interval, HEALTH_INTERVAL_MS, default.interval_ms);
    let timeout_ms =
        time("health.timeout", &raw.health_timeout, HEALTH_TIMEOUT_MS, default.timeout_ms);
    let within = (&raw.health_start_within, START_WITHIN_MS, default.start_within_ms);
    let start_within_ms = time("health.start_within", within.0, within.1, within.2);
    let after = (&raw.health_restart_after, RESTART_AFTER_MS, default.restart_after_ms);
    let restart_after_ms = time("health.restart_after", after.0, after.1, after.2);
    let mut times = |key: &str, raw: &Number, default| {
        bounded(key, place, raw, 1..=THRESHOLD_MAX, default, faults)
    };
    HealthSpec {
        path,
        interval_ms,
        timeout_ms,
        healthy_threshold: times(
            "health.healthy_threshold",
            &raw.healthy_threshold,
            default.healthy_threshold,
        ),
        unhealthy_threshold: times(
            "health.unhealthy_threshold",
            &raw.unhealthy_threshold,
            default.unhealthy_threshold,
        ),
        start_within_ms,
        restart_after_ms,
    }
}

/// A name of a header, cookie or method, as RFC 9110 has it.
pub(super) fn is_token(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !text.is_empty() && text.chars().all(letter)
}

/// Whether it is one; reports it otherwise.
pub(super) fn token(what: &str, text: &Placed<String>, faults: &mut Faults<'_>) -> bool {
    let is = is_token(&text.value);
    if !is {
        let shown = text.value.escape_debug();
        let message = format!("{what} is not a name that HTTP allows: \"{shown}\"");
        faults.add(Code::OutOfRange, text.at, message).next =
            "write letters, digits, `-` and `_`".into();
    }
    is
}
