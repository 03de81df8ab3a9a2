//! The HTTP part of a route table, and which of a listener's routes a request takes.
//!
//! The most specific route that matches wins, as in the Gateway API: first by host (the name, then the
//! longest `*.` suffix, then none), then by path (the path, then the longest prefix, then none), then
//! one that names methods, then the number of headers.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::breaker::BreakerSpec;
use super::cache::CacheSpec;
use super::degrade::Degraded;
use super::queue::{Bulkhead, Priority};
use super::rate::RateLimit;
use crate::spec::{
    Affinity, Balance, HealthSpec, Match, Net, PathMatch, RouteSpec, TlsFiles, Version,
};

/// All that a gateway needs to know of HTTP, immutable and swapped whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpTable {
    pub listeners: BTreeMap<String, HttpListener>,
    pub services: BTreeMap<String, HttpService>,
    /// The gateway's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// How many gateways each zone has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gateways: BTreeMap<String, u32>,
    /// What each gateway may keep of answers; `None`: see [`crate::http::cache::BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
}

impl HttpTable {
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.services.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpListener {
    pub bind: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// Nobody is let in from there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Net>,
    /// Connections of one client, at each gateway; `None`: as many as there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_client_max: Option<u32>,
    /// See [`forwarded`](super::forwarded).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<Net>,
    pub routes: Vec<HttpRoute>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRoute {
    pub name: String,
    #[serde(rename = "match")]
    pub when: Match,
    pub service: String,
    /// In place of the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Places of its own, before those of its service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bulkhead: Option<Bulkhead>,
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// `None`: no answer is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Bytes a second that a client brings of a body, or takes of an answer, on average; `None`: as
    /// [`RATE_MIN`](super::pace::RATE_MIN) says, 0: none at all will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_rate_min: Option<u32>,
    /// How it is served while something is wrong; `None`: as ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<Degraded>,
}

impl HttpRoute {
    pub fn of(name: &str, spec: &RouteSpec) -> HttpRoute {
        HttpRoute {
            name: name.to_string(),
            when: spec.when.clone(),
            service: spec.service.clone(),
            timeout_ms: spec.timeout_ms,
            bulkhead: spec.concurrency.clone(),
            priority: spec.priority,
            cache: spec.cache.clone(),
            rate_limit: spec.rate_limit.clone(),
            body_rate_min: spec.body_rate_min,
            degraded: spec.degraded.clone(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpService {
    pub balance: Balance,
    pub version: Version,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    pub health: HealthSpec,
    pub slow_start_ms: u64,
    pub timeout_ms: u64,
    /// One try; `None`: as long as all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub try_timeout_ms: Option<u64>,
    /// A try is given up when it takes longer than nearly all, if another instance may be asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub try_timeout_auto: bool,
    /// A try that takes longer than so many of 100 gets another one beside it, elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge_percentile: Option<u32>,
    /// Between two pieces of an answer.
    #[serde(default = "crate::spec::idle_timeout_ms")]
    pub idle_timeout_ms: u64,
    /// Tries beyond the first.
    pub retries: u32,
    /// Places at its instances, over all of them; `None`: without bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bulkhead: Option<Bulkhead>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerSpec>,
    /// By name.
    pub backends: Vec<Backend>,
}

impl HttpService {
    /// How long its answers take is of use.
    pub fn measures(&self) -> bool {
        self.try_timeout_auto || self.hedge_percentile.is_some()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub name: String,
    pub address: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Its share beside the others'.
    pub weight: u32,
}

/// What of a request decides its route.
pub struct Asked<'a> {
    /// In small letters, without port and final dot.
    pub host: &'a str,
    /// Without the query.
    pub path: &'a str,
    pub method: &'a str,
    /// The value of a header, by its name in small letters.
    pub header: &'a dyn Fn(&str) -> Option<&'a [u8]>,
}

/// The routes of one listener, made ready to be asked. What is searched grows with the length of
/// the longest declared host and path, not with the number of routes, nor with what clients send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matcher {
    rules: Vec<Rule>,
    hosts: BTreeMap<String, Paths>,
    /// `*.example.org` as `example.org`.
    below: BTreeMap<String, Paths>,
    /// Length of the longest key of `below`.
    below_max: usize,
    any: Paths,
}

/// What a route asks for beyond host and path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    methods: Vec<String>,
    headers: Vec<(String, String)>,
}

/// Indices of routes of one host, by path. Each list is in the order in which it is tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Paths {
    exact: BTreeMap<String, Vec<usize>>,
    /// Without slashes at the end, so `/` is the empty one.
    prefix: BTreeMap<String, Vec<usize>>,
    /// Length of the longest key of `prefix`.
    prefix_max: usize,
    any: Vec<usize>,
}

impl Matcher {
    pub fn new(routes: &[HttpRoute]) -> Matcher {
        let rules = routes.iter().map(|route| Rule {
            methods: route.when.methods.clone(),
            headers: route.when.headers.clone().into_iter().collect(),
        });
        let mut matcher = Matcher { rules: rules.collect(), ..Matcher::default() };
        // Of equals the first of the list wins: `check` refuses them, and a gateway must not waver.
        let mut order: Vec<usize> = (0..routes.len()).collect();
        order.sort_by_key(|i| {
            let rule = &matcher.rules[*i];
            (rule.methods.is_empty(), usize::MAX - rule.headers.len())
        });
        for i in order {
            let when = &routes[i].when;
            let paths = match when.host.as_deref().map(|host| (host, host.strip_prefix("*."))) {
                None => &mut matcher.any,
                Some((_, Some(suffix))) => {
                    matcher.below_max = matcher.below_max.max(suffix.len());
                    matcher.below.entry(suffix.to_string()).or_default()
                }
                Some((host, None)) => matcher.hosts.entry(host.to_string()).or_default(),
            };
            paths.add(when.path.as_ref(), i);
        }
        matcher
    }

    /// The index of the route that a request takes.
    pub fn find(&self, asked: &Asked<'_>) -> Option<usize> {
        let exact = self.hosts.get(asked.host).and_then(|paths| self.find_in(paths, asked));
        exact.or_else(|| self.find_below(asked)).or_else(|| self.find_in(&self.any, asked))
    }

    fn find_below(&self, asked: &Asked<'_>) -> Option<usize> {
        if self.below.is_empty() {
            return None;
        }
        // A dot that has a name before it; nothing longer than the longest suffix can be one.
        let from = asked.host.len().saturating_sub(self.below_max + 1).max(1);
        let dots = (from..asked.host.len()).filter(|at| asked.host.as_bytes()[*at] == b'.');
        dots.filter_map(|at| self.below.get(&asked.host[at + 1..]))
            .find_map(|paths| self.find_in(paths, asked))
    }

    fn find_in(&self, paths: &Paths, asked: &Asked<'_>) -> Option<usize> {
        let first = |list: &Vec<usize>| list.iter().copied().find(|i| self.rules[*i].fits(asked));
        if let Some(found) = paths.exact.get(asked.path).and_then(first) {
            return Some(found);
        }
        // What is asked of all of a host goes where the rest of it goes, as with HAProxy.
        let path = if asked.path == "*" { "/" } else { asked.path };
        let (text, path) = (path, path.as_bytes());
        if !paths.prefix.is_empty() && path.first() == Some(&b'/') {
            let ends = (0..=path.len().min(paths.prefix_max)).rev();
            let found = ends
                .filter(|end| path.get(*end).is_none_or(|byte| *byte == b'/'))
                .filter_map(|end| paths.prefix.get(&text[..end]))
                .find_map(first);
            if found.is_some() {
                return found;
            }
        }
        first(&paths.any)
    }
}

impl Paths {
    fn add(&mut self, path: Option<&PathMatch>, route: usize) {
        let list = match path {
            None => &mut self.any,
            Some(PathMatch::Exact(path)) => self.exact.entry(path.clone()).or_default(),
            Some(PathMatch::Prefix(prefix)) => {
                let prefix = prefix.trim_end_matches('/');
                self.prefix_max = self.prefix_max.max(prefix.len());
                self.prefix.entry(prefix.to_string()).or_default()
            }
        };
        list.push(route);
    }
}

impl Rule {
    fn fits(&self, asked: &Asked<'_>) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|method| method == asked.method))
            && self
                .headers
                .iter()
                .all(|(name, value)| (asked.header)(name) == Some(value.as_bytes()))
    }
}

/// Routes that are equally specific and could match one and the same request: each with the first
/// route before it with which that is so, as (earlier, later).
pub fn ties(routes: &[HttpRoute]) -> Vec<(usize, usize)> {
    // Equally specific hosts that share a name are the same host, and so it is with paths.
    let mut alike: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    let mut ties = Vec::new();
    for (later, route) in routes.iter().enumerate() {
        let path = route.when.path.as_ref().map(|path| match path {
            PathMatch::Exact(path) => (true, path.as_str()),
            PathMatch::Prefix(prefix) => (false, prefix.trim_end_matches('/')),
        });
        let before = alike.entry((route.when.host.as_deref(), path)).or_default();
        let tied = before.iter().find(|earlier| tied(&routes[**earlier].when, &route.when));
        ties.extend(tied.map(|earlier| (*earlier, later)));
        before.push(later);
    }
    ties
}

/// Of two matches of the same host and path.
fn tied(one: &Match, other: &Match) -> bool {
    let methods = match (one.methods.is_empty(), other.methods.is_empty()) {
        (true, true) => true,
        (false, false) => one.methods.iter().any(|method| other.methods.contains(method)),
        (true, false) | (false, true) => false,
    };
    methods
        && one.headers.len() == other.headers.len()
        && one.headers.iter().all(|(name, value)| {
            other.headers.get(name).is_none_or(|other_value| other_value == value)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::chance::Chance;
    use crate::http::degrade::{Cause, Mode, Page, Rule};
    use crate::http::rate::RateKey;

    /// A route as words: `example.org`, `=/exact`, `/prefix`, `GET,PUT`, `name:value`.
    fn route(words: &str) -> HttpRoute {
        let mut when = Match::default();
        for word in words.split_whitespace() {
            if let Some(path) = word.strip_prefix('=') {
                when.path = Some(PathMatch::Exact(path.to_string()));
            } else if word.starts_with('/') {
                when.path = Some(PathMatch::Prefix(word.to_string()));
            } else if let Some((name, value)) = word.split_once(':') {
                when.headers.insert(name.to_string(), value.to_string());
            } else if word.starts_with(|c: char| c.is_ascii_uppercase()) {
                when.methods = word.split(',').map(str::to_string).collect();
            } else {
                when.host = Some(word.to_string());
            }
        }
        let (name, service) = (words.to_string(), "s".to_string());
        HttpRoute { name, when, service, ..HttpRoute::default() }
    }

    /// A request as words: host, path, method, then `name:value`.
    fn ask<T>(words: &str, then: impl FnOnce(&Asked<'_>) -> T) -> T {
        let words: Vec<&str> = words.split_whitespace().collect();
        let header = |wanted: &str| {
            let mut pairs = words[3..].iter().filter_map(|word| word.split_once(':'));
            pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value.as_bytes())
        };
        then(&Asked { host: words[0], path: words[1], method: words[2], header: &header })
    }

    #[test]
    fn the_most_specific_route_wins() {
        type Case = (&'static [&'static str], &'static str, &'static str);
        #[rustfmt::skip]
        let cases: &[Case] = &[
            // Host before path before method before headers.
            (&["a.org", "/v1"],                              "a.org /v1 GET",       "a.org"),
            (&["*.a.org", "a.org"],                          "a.org / GET",         "a.org"),
            (&["*.a.org", "b.a.org"],                        "b.a.org / GET",       "b.a.org"),
            (&["*.a.org", "*.b.a.org"],                      "c.b.a.org / GET",     "*.b.a.org"),
            (&["*.a.org", "*.b.a.org"],                      "c.d.a.org / GET",     "*.a.org"),
            (&["/v1", "=/v1"],                               "x /v1 GET",           "=/v1"),
            (&["/v1", "=/v1"],                               "x /v1/ GET",          "/v1"),
            (&["/v1 GET", "/v1/users"],                      "x /v1/users/7 GET",   "/v1/users"),
            (&["/v1", "/v1 GET"],                            "x /v1 GET",           "/v1 GET"),
            (&["/v1", "/v1 GET"],                            "x /v1 PUT",           "/v1"),
            (&["GET", "k:v l:w"],                            "x / GET k:v l:w",     "GET"),
            (&["k:v", "k:v l:w", "m:x"],                     "x / GET k:v l:w m:x", "k:v l:w"),
            // A less specific one takes what the more specific ones don't.
            (&["a.org /v1", "/"],                            "a.org /v2 GET",       "/"),
            (&["b.a.org PUT", "*.a.org GET"],                "b.a.org / GET",       "*.a.org GET"),
            (&["=/v1 PUT", "/ k:v", "POST"],                 "x /v1 POST k:w",      "POST"),
            (&["/a/b/c PUT", "/a"],                          "x /a/b/c/d GET",      "/a"),
            // Prefixes are of whole segments, with or without a slash at the end.
            (&["/v1"],                                       "x /v10 GET",          "-"),
            (&["/v1"],                                       "x /v1 GET",           "/v1"),
            (&["/v1/"],                                      "x /v1 GET",           "/v1/"),
            (&["/v1"],                                       "x /v1//y GET",        "/v1"),
            (&["/"],                                         "x /any GET",          "/"),
            // All of a host is where nothing else is.
            (&["/v1", "=/", "/"],                            "x * OPTIONS",         "/"),
            (&["/v1", "=/"],                                 "x * OPTIONS",         "-"),
            (&["/ GET", "OPTIONS"],                          "x * OPTIONS",         "OPTIONS"),
            (&["x"],                                         "x * OPTIONS",         "x"),
            (&["/é"],                                        "x /éa/b GET",         "-"),
            // A name below is a name.
            (&["*.a.org"],                                   "a.org / GET",         "-"),
            (&["*.a.org"],                                   ".a.org / GET",        "-"),
            (&["*.a.org"],                                   "ba.org / GET",        "-"),
            (&["*.a.org"],                                   "c.b.a.org / GET",     "*.a.org"),
            // Methods are case-sensitive, header values whole.
            (&["GET"],                                       "x / get",             "-"),
            (&["k:v"],                                       "x / GET k:vv",        "-"),
            (&[],                                            "x / GET",             "-"),
        ];
        for (routes, asked, expected) in cases {
            let routes: Vec<HttpRoute> = routes.iter().map(|words| route(words)).collect();
            let found = ask(asked, |asked| Matcher::new(&routes).find(asked));
            let name = found.map_or("-", |i| routes[i].name.as_str());
            assert_eq!(name, *expected, "{asked}");
        }
    }

    #[test]
    fn ties_are_what_one_request_could_not_decide() {
        type Case = (&'static [&'static str], &'static [(usize, usize)]);
        #[rustfmt::skip]
        let cases: &[Case] = &[
            (&["a.org", "b.org", "*.org", ""],       &[]),
            (&["a.org", "a.org"],                    &[(0, 1)]),
            (&["/v1", "/v1/", "=/v1", "/v2"],        &[(0, 1)]),
            (&["GET", "PUT", "GET,PUT", ""],         &[(0, 2)]),
            (&["k:v", "k:w", "l:v", "k:v l:v"],      &[(0, 2)]),
            (&["", "", ""],                          &[(0, 1), (0, 2)]),
            (&["/v1 GET k:v", "/v1 GET l:v", "GET"], &[(0, 1)]),
        ];
        for (routes, expected) in cases {
            let routes: Vec<HttpRoute> = routes.iter().map(|words| route(words)).collect();
            assert_eq!(ties(&routes), *expected, "{routes:?}");
        }
    }

    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum HostRank {
        Any,
        Below(usize),
        Exact,
    }

    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum PathRank {
        Any,
        Prefix(usize),
        Exact,
    }

    /// How specific a route that matches is, said once more and plainly.
    fn rank(when: &Match, asked: &Asked<'_>) -> Option<(HostRank, PathRank, bool, usize)> {
        let host = match &when.host {
            None => HostRank::Any,
            Some(host) if host == asked.host => HostRank::Exact,
            Some(host) => {
                let suffix = host.strip_prefix('*')?;
                let label = asked.host.strip_suffix(suffix)?;
                (!label.is_empty()).then_some(HostRank::Below(suffix.len()))?
            }
        };
        let path = match &when.path {
            None => PathRank::Any,
            Some(PathMatch::Exact(path)) => (path == asked.path).then_some(PathRank::Exact)?,
            Some(PathMatch::Prefix(prefix)) => {
                let prefix = prefix.trim_end_matches('/');
                let covers = match asked.path {
                    "*" => prefix.is_empty(),
                    path => path == prefix || path.starts_with(&format!("{prefix}/")),
                };
                covers.then_some(PathRank::Prefix(prefix.len()))?
            }
        };
        let method = when.methods.is_empty() || when.methods.iter().any(|m| m == asked.method);
        let headers = when.headers.iter().all(|(name, value)| {
            (asked.header)(name).is_some_and(|found| found == value.as_bytes())
        });
        (method && headers).then_some((host, path, !when.methods.is_empty(), when.headers.len()))
    }

    #[test]
    fn find_is_what_a_search_over_all_routes_finds() {
        let hosts = ["", "a", "b.a", "*.a", "*.b.a", "*.c.b.a"];
        let paths = ["", "/", "=/", "/v", "=/v", "/v/", "/v/w", "=/v/w", "/v/w/x", "/vv"];
        let methods = ["", "", "GET", "PUT", "GET,PUT"];
        let headers = ["", "", "k:1", "k:2", "l:1", "k:1 l:1"];
        let asked_hosts = ["a", "b.a", "c.b.a", "d.c.b.a", "ba", ".a", "..a", "z"];
        let asked_paths = ["/", "/v", "/v/", "/v/w", "/v/w/x/y", "/vv", "/vw", "//", "*", "/v//w"];
        let asked_headers = ["", "k:1", "k:2", "l:1", "k:1 l:1", "k:2 l:1"];
        let mut chance = Chance(1);
        let mut found_some = 0;
        for round in 0..2_000 {
            let routes: Vec<HttpRoute> = (0..chance.below(16))
                .map(|_| {
                    let part = |chance: &mut Chance, of: &[&str]| chance.one_of(of).to_string();
                    let words = [
                        part(&mut chance, &hosts),
                        part(&mut chance, &paths),
                        part(&mut chance, &methods),
                        part(&mut chance, &headers),
                    ];
                    route(&words.join(" "))
                })
                .collect();
            let matcher = Matcher::new(&routes);
            let untied = ties(&routes).is_empty();
            for _ in 0..20 {
                let words = format!(
                    "{} {} {} {}",
                    chance.one_of(&asked_hosts),
                    chance.one_of(&asked_paths),
                    chance.one_of(&["GET", "PUT", "HEAD"]),
                    chance.one_of(&asked_headers)
                );
                ask(&words, |asked| {
                    let ranks: Vec<_> = routes.iter().map(|r| rank(&r.when, asked)).collect();
                    let best = ranks.iter().flatten().max();
                    let first = best.and_then(|b| ranks.iter().position(|r| r.as_ref() == Some(b)));
                    assert_eq!(matcher.find(asked), first, "round {round}: {words} {routes:#?}");
                    let equals = ranks.iter().flatten().filter(|rank| Some(*rank) == best).count();
                    assert!(!untied || equals <= 1, "a tie unseen: {words} {routes:#?}");
                    found_some += usize::from(first.is_some());
                });
            }
        }
        assert!(found_some > 5_000, "{found_some}: the test asks for what is there");
    }

    #[test]
    fn a_table_is_the_same_after_its_way_over_a_link() {
        let service = HttpService {
            balance: Balance::default(),
            version: Version::default(),
            affinity: Some(Affinity::Cookie("s".to_string())),
            health: HealthSpec::default(),
            slow_start_ms: 10_000,
            timeout_ms: 60_000,
            try_timeout_ms: None,
            try_timeout_auto: false,
            hedge_percentile: None,
            idle_timeout_ms: 3_600_000,
            retries: 2,
            bulkhead: None,
            breaker: Some(BreakerSpec::default()),
            backends: vec![Backend {
                name: "a.1".to_string(),
                address: ([127, 0, 0, 1], 15_410).into(),
                zone: None,
                weight: 1,
            }],
        };
        let listener = HttpListener {
            bind: ([0, 0, 0, 0], 8_443).into(),
            tls: None,
            trusted_proxies: vec!["10.0.0.0/8".parse().expect("a range")],
            deny: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            per_client_max: Some(100),
            routes: vec![HttpRoute {
                cache: Some(CacheSpec { ttl_ms: Some(1), ..CacheSpec::default() }),
                rate_limit: Some(RateLimit {
                    by: RateKey::Header("x-key".to_string()),
                    requests: 1000,
                    per_s: 1,
                    burst: 200,
                }),
                body_rate_min: Some(0),
                degraded: Some(Degraded {
                    modes: BTreeMap::from([(
                        Mode::Static,
                        Rule { when: vec![Cause::Down], enter_ms: 1, leave_ms: 2 },
                    )]),
                    page: Some(Page { status: 503, content_type: "a/b".into(), body: "c".into() }),
                }),
                ..route("a.org /v1 GET k:v")
            }],
        };
        let table = HttpTable {
            zone: None,
            gateways: BTreeMap::new(),
            cache_bytes: Some(1 << 20),
            listeners: BTreeMap::from([("web".to_string(), listener)]),
            services: BTreeMap::from([("api".to_string(), service)]),
        };
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<HttpTable>(&text).unwrap(), table);
    }
}
