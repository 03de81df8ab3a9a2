//! `[route.NAME]`: which requests of an HTTP listener go to which service.

use std::collections::{BTreeMap, BTreeSet};

use everhold_core::http::route::{self, HttpRoute};
use everhold_core::spec::{self, Address, Match, PathMatch, RouteSpec};

use super::super::fault::{Code, Faults};
use super::super::raw::{RawRoute, RawSpec};
use super::super::reader::{Part, Placed};
use super::http::token;
use super::{Kinds, count, duration, name_fault, of_kind, protect};

pub(super) fn routes(
    raw: &RawSpec,
    services: &Kinds,
    faults: &mut Faults<'_>,
) -> BTreeMap<String, RouteSpec> {
    let listeners = listeners(raw);
    let mut led = BTreeSet::new();
    let mut found: Vec<(&Placed<String>, RouteSpec)> = Vec::new();
    if let Part::Is(list) = &raw.routes {
        count("routes", &list.value, spec::ROUTES_MAX, faults);
        for (name, route) in &list.value {
            name_fault("route", name, &[], faults);
            let Some(route) = route else { continue };
            led.extend(route.listener.is().map(|it| it.value.clone()));
            if let Some(route) = one(&name.value, route, &listeners, services, faults) {
                found.push((name, route));
            }
        }
    }
    ties(&found, faults);
    unled(raw, &led, faults);
    found.into_iter().map(|(name, route)| (name.value.clone(), route)).collect()
}

/// The listeners there are, and what they speak.
pub(super) fn listeners(raw: &RawSpec) -> Kinds {
    let list = match &raw.listeners {
        Part::Absent => return Some(BTreeMap::new()),
        Part::Faulty => return None,
        Part::Is(list) => &list.value,
    };
    let protocol = |text: &str| ["postgres", "http"].into_iter().find(|it| *it == text);
    let kind = |it: &super::RawListener| protocol(&it.protocol.is()?.value);
    let one = |(name, it): &(Placed<String>, Option<super::RawListener>)| {
        (name.value.clone(), it.as_ref().and_then(kind))
    };
    Some(list.iter().map(one).collect())
}

fn one(
    name: &str,
    raw: &RawRoute,
    listeners: &Kinds,
    services: &Kinds,
    faults: &mut Faults<'_>,
) -> Option<RouteSpec> {
    let place = format!("[route.{name}]");
    if let Some(listener) = raw.listener.is() {
        super::kind_of("listener", "http", listener, &place, listeners, faults);
    }
    if let Some(service) = raw.service.is() {
        of_kind("http", service, &place, services, faults);
    }
    let range = (1..=86_400_000, "1ms to 24h");
    let timeout = raw.timeout.is();
    let timeout_ms = timeout.and_then(|raw| duration("timeout", &place, raw, range, faults));
    let priority = protect::priority(&place, &raw.priority, faults);
    let concurrency = protect::bulkhead(&place, raw.concurrency.as_ref(), faults);
    let rate_limit = protect::rate(&place, raw.rate_limit.as_ref(), faults);
    let least = raw.body_rate_min.is();
    let least = least.map(|_| protect::body_rate(&place, &raw.body_rate_min, faults));
    let cache = protect::cache(&place, raw.cache.as_ref(), faults);
    let degraded = protect::degraded(&place, &raw.degraded, raw.cache.is_some(), faults);
    let faultless = faults.count();
    let when = Match {
        host: raw.host.is().and_then(|host| self::host(&place, host, faults)),
        path: path(&place, raw, faults),
        methods: methods(&place, raw, faults),
        headers: headers(&place, raw, faults),
    };
    // What it matches isn't known: no other one can be said to tie with it.
    if faults.count() > faultless {
        return None;
    }
    Some(RouteSpec {
        listener: raw.listener.is()?.value.clone(),
        service: raw.service.is()?.value.clone(),
        when,
        timeout_ms,
        priority,
        concurrency,
        rate_limit,
        body_rate_min: least,
        cache,
        degraded,
    })
}

fn host(place: &str, raw: &Placed<String>, faults: &mut Faults<'_>) -> Option<String> {
    let lower = raw.value.to_ascii_lowercase();
    let good = match lower.strip_prefix("*.") {
        Some(below) => matches!(below.parse(), Ok(Address::Host(_))),
        None => !lower.contains(':') && lower.parse::<Address>().is_ok(),
    };
    if good {
        return Some(lower);
    }
    let shown = raw.value.escape_debug();
    let message = format!("`match.host` in {place} is not a host: \"{shown}\"");
    faults.add(Code::OutOfRange, raw.at, message).next =
        "write a name without a port, as in \"api.example.org\" or \"*.example.org\"".into();
    None
}

fn path(place: &str, raw: &RawRoute, faults: &mut Faults<'_>) -> Option<PathMatch> {
    for (key, path) in [("path", &raw.path), ("path_prefix", &raw.path_prefix)] {
        if let Some(path) = path.is() {
            path_fault(&format!("`match.{key}` in {place}"), path, false, faults);
        }
    }
    match (raw.path.is(), raw.path_prefix.is()) {
        (None, None) => None,
        (Some(path), None) => Some(PathMatch::Exact(path.value.clone())),
        (None, Some(prefix)) => Some(PathMatch::Prefix(prefix.value.clone())),
        (Some(_), Some(prefix)) => {
            let message = format!("`match.path_prefix` in {place} has no meaning beside `path`");
            faults.add(Code::NotApplicable, prefix.at, message);
            None
        }
    }
}

/// Reports what can't be the path of a request.
pub(super) fn path_fault(what: &str, raw: &Placed<String>, query: bool, faults: &mut Faults<'_>) {
    let odd = |c: char| !c.is_ascii_graphic() || c == '#' || (c == '?' && !query);
    if raw.value.starts_with('/') && !raw.value.contains(odd) {
        return;
    }
    let shown = raw.value.escape_debug();
    let message = format!("{what} is not a path: \"{shown}\"");
    faults.add(Code::OutOfRange, raw.at, message).next =
        "begin it with /, and write what is not ASCII as %XX, as requests do".into();
}

fn methods(place: &str, raw: &RawRoute, faults: &mut Faults<'_>) -> Vec<String> {
    let Some(list) = raw.methods.is() else { return Vec::new() };
    if list.value.is_empty() {
        let message = format!("`match.methods` in {place} is empty");
        faults.add(Code::Count, list.at, message).next =
            "name a method, or leave `methods` out for all of them".into();
    }
    let mut methods: Vec<String> = Vec::new();
    for method in &list.value {
        if methods.contains(&method.value) {
            let message = format!("method `{}` stands twice in {place}", method.value);
            faults.add(Code::Repeated, method.at, message);
        } else if method.value.contains(|c: char| c.is_ascii_lowercase()) {
            let message = format!("no client asks with the method `{}` ({place})", method.value);
            faults.add(Code::OutOfRange, method.at, message).next =
                format!("write \"{}\"", method.value.to_ascii_uppercase());
        } else if token(&format!("a method in {place}"), method, faults) {
            methods.push(method.value.clone());
        }
    }
    methods
}

fn headers(place: &str, raw: &RawRoute, faults: &mut Faults<'_>) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::new();
    for (name, value) in &raw.headers {
        if !token(&format!("a header in {place}"), name, faults) {
            continue;
        }
        if value.value.contains(|c: char| c.is_control()) || value.value.trim() != value.value {
            let shown = value.value.escape_debug();
            let message =
                format!("header `{}` in {place} never has the value \"{shown}\"", name.value);
            faults.add(Code::OutOfRange, value.at, message).next =
                "take control characters, and spaces at its ends, out".into();
        }
        if headers.insert(name.value.to_ascii_lowercase(), value.value.clone()).is_some() {
            let message = format!("header `{}` stands twice in {place}", name.value);
            faults.add(Code::Repeated, name.at, message);
        }
    }
    headers
}

/// Routes of one listener that could match one request, neither more closely.
fn ties(routes: &[(&Placed<String>, RouteSpec)], faults: &mut Faults<'_>) {
    let listeners: BTreeSet<&str> = routes.iter().map(|(_, it)| it.listener.as_str()).collect();
    for listener in listeners {
        let of: Vec<_> = routes.iter().filter(|(_, it)| it.listener == listener).collect();
        let known = of.iter().map(|(name, route)| HttpRoute::of(&name.value, route));
        for (earlier, later) in route::ties(&known.collect::<Vec<_>>()) {
            let (earlier, later) = (of[earlier].0, of[later].0);
            let message = format!(
                "routes {} ({}) and {} can match the same request, neither more closely",
                earlier.value,
                faults.line(earlier.at),
                later.value
            );
            faults.add(Code::TiedRoutes, later.at, message);
        }
    }
}

/// HTTP listeners that nothing leads from.
fn unled(raw: &RawSpec, led: &BTreeSet<String>, faults: &mut Faults<'_>) {
    let (Part::Is(listeners), false) = (&raw.listeners, matches!(raw.routes, Part::Faulty)) else {
        return;
    };
    for (name, listener) in &listeners.value {
        let protocol = listener.as_ref().and_then(|it| it.protocol.is());
        if protocol.is_some_and(|it| it.value == "http") && !led.contains(&name.value) {
            let message = format!("listener {} has no route", name.value);
            faults.add(Code::Count, name.at, message).next =
                format!("add [route.NAME] with listener = \"{}\"", name.value);
        }
    }
}
