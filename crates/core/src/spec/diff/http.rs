//! What changes of HTTP services and routes.

use super::super::http::{
    Affinity, Balance, HashKey, HttpSpec, PathMatch, RouteSpec, RunSpec, Source, Version,
};
use super::protect::{breaker, cache, degraded, places, rate};
use super::{AtOnce, Changes, Restart, both};
use crate::http::degrade::Mode;

impl Changes {
    pub(super) fn http(&mut self, path: &str, old: &HttpSpec, new: &HttpSpec) {
        let mut of = |key: &str, get: fn(&HttpSpec) -> Option<String>| {
            self.push(&format!("{path}.{key}"), get(old), get(new), AtOnce);
        };
        of("instances", |it| Some(it.run()?.instances.to_string()));
        of("nodes", |it| Some(it.run()?.nodes.join(", ")).filter(|nodes| !nodes.is_empty()));
        of("stop.signal", |it| Some(format!("{:?}", it.run()?.stop.signal).to_uppercase()));
        of("stop.grace", |it| Some(ms(it.run()?.stop.grace_ms)));
        of("addresses", addresses);
        of("balance", |it| Some(balance(&it.balance).to_owned()));
        of("hash", |it| match &it.balance {
            Balance::ConsistentHash(key) => Some(hash(key)),
            Balance::RoundRobin
            | Balance::Weighted
            | Balance::LeastRequests
            | Balance::LeastLoad
            | Balance::PeakEwma => None,
        });
        of("affinity", |it| it.affinity.as_ref().map(affinity));
        of("version", |it| {
            let version = match it.version {
                Version::Http1 => "1.1",
                Version::Http2 => "2",
            };
            Some(version.to_owned())
        });
        of("health.path", |it| it.health.path.clone());
        of("health.interval", |it| Some(ms(it.health.interval_ms)));
        of("health.timeout", |it| Some(ms(it.health.timeout_ms)));
        of("health.healthy_threshold", |it| Some(it.health.healthy_threshold.to_string()));
        of("health.unhealthy_threshold", |it| Some(it.health.unhealthy_threshold.to_string()));
        of("health.start_within", |it| Some(ms(it.health.start_within_ms)));
        of("health.restart_after", |it| Some(ms(it.health.restart_after_ms)));
        of("slow_start", |it| Some(ms(it.slow_start_ms)));
        of("timeout", |it| Some(ms(it.timeout_ms)));
        of("try_timeout", |it| match it.try_timeout_auto {
            true => Some("auto".to_owned()),
            false => it.try_timeout_ms.map(ms),
        });
        of("hedge", |it| it.hedge_percentile.map(|percentile| format!("p{percentile}")));
        of("idle_timeout", |it| Some(ms(it.idle_timeout_ms)));
        of("retries", |it| Some(it.retries.to_string()));
        of("concurrency", |it| it.concurrency.as_ref().map(places));
        of("breaker", |it| it.breaker.as_ref().map(breaker));
        self.process(path, old.run(), new.run());
    }

    /// What a process has from its start.
    fn process(&mut self, path: &str, old: Option<&RunSpec>, new: Option<&RunSpec>) {
        let when = match (old, new) {
            (Some(_), Some(_)) => Restart,
            (Some(_) | None, Some(_) | None) => AtOnce,
        };
        let mut of = |key: &str, get: fn(&RunSpec) -> Option<String>| {
            let (old, new) = (old.and_then(get), new.and_then(get));
            self.push(&format!("{path}.{key}"), old, new, when.clone());
        };
        of("command", |it| {
            Some(it.command.iter().map(|it| word(it)).collect::<Vec<_>>().join(" "))
        });
        of("user", |it| it.user.clone());
        of("directory", |it| it.directory.clone());
        of("limits.cpu", |it| it.limits.cpu_milli.map(cores));
        of("limits.memory", |it| it.limits.memory_bytes.map(|bytes| format!("{bytes} bytes")));
        let none = Default::default();
        let env = |run: Option<&RunSpec>| run.map_or_else(|| &none, |run| &run.env).clone();
        for (name, old, new) in both(&env(old), &env(new)) {
            let path = format!("{path}.env.{name}");
            self.push(&path, old.cloned(), new.cloned(), when.clone());
        }
    }

    pub(super) fn route(&mut self, path: &str, old: Option<&RouteSpec>, new: Option<&RouteSpec>) {
        let (Some(old), Some(new)) = (old, new) else {
            let service = |route: &RouteSpec| route.service.clone();
            return self.push(path, old.map(service), new.map(service), AtOnce);
        };
        let mut of = |key: &str, get: fn(&RouteSpec) -> Option<String>| {
            self.push(&format!("{path}.{key}"), get(old), get(new), AtOnce);
        };
        of("listener", |it| Some(it.listener.clone()));
        of("service", |it| Some(it.service.clone()));
        of("timeout", |it| it.timeout_ms.map(ms));
        of("priority", |it| Some(format!("{:?}", it.priority).to_lowercase()));
        of("concurrency", |it| it.concurrency.as_ref().map(places));
        of("rate_limit", |it| it.rate_limit.as_ref().map(rate));
        of("body_rate_min", |it| it.body_rate_min.map(|rate| rate.to_string()));
        of("cache", |it| it.cache.as_ref().map(cache));
        of("match.host", |it| it.when.host.clone());
        of("match.path", |it| match it.when.path.as_ref()? {
            PathMatch::Exact(path) => Some(path.clone()),
            PathMatch::Prefix(_) => None,
        });
        of("match.path_prefix", |it| match it.when.path.as_ref()? {
            PathMatch::Prefix(path) => Some(path.clone()),
            PathMatch::Exact(_) => None,
        });
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let methods = |it: &RouteSpec| some(it.when.methods.join(", "));
        let headers = |it: &RouteSpec| {
            let all =
                it.when.headers.iter().map(|(name, value)| format!("{name}: {}", word(value)));
            some(all.collect::<Vec<_>>().join(", "))
        };
        self.push(&format!("{path}.match.methods"), methods(old), methods(new), AtOnce);
        self.push(&format!("{path}.match.headers"), headers(old), headers(new), AtOnce);
        for mode in Mode::ALL {
            let words = |it: &RouteSpec| it.degraded.as_ref().and_then(|it| degraded(it, mode));
            let path = format!("{path}.degraded.{}", mode.word());
            self.push(&path, words(old), words(new), AtOnce);
        }
    }
}

/// As it is, unless it could be taken for more than one.
fn word(text: &str) -> String {
    match text.is_empty() || text.contains([' ', ',', '"', '\\']) {
        true => format!("{text:?}"),
        false => text.to_owned(),
    }
}

pub(super) fn ms(ms: u64) -> String {
    format!("{ms}ms")
}

fn cores(milli: u32) -> String {
    format!("{}.{:03}", milli / 1000, milli % 1000)
}

fn addresses(http: &HttpSpec) -> Option<String> {
    let Source::Addresses(all) = &http.source else { return None };
    let one = |it: &super::super::BackendSpec| {
        let zone = it.zone.as_ref().map(|zone| format!(" in {zone}")).unwrap_or_default();
        let weight = if it.weight == 1 { String::new() } else { format!(" × {}", it.weight) };
        format!("{}:{}{zone}{weight}", it.address, it.port)
    };
    Some(all.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn balance(balance: &Balance) -> &'static str {
    match balance {
        Balance::RoundRobin => "round_robin",
        Balance::Weighted => "weighted",
        Balance::LeastRequests => "least_requests",
        Balance::LeastLoad => "least_load",
        Balance::PeakEwma => "peak_ewma",
        Balance::ConsistentHash(_) => "consistent_hash",
    }
}

fn hash(key: &HashKey) -> String {
    match key {
        HashKey::ClientIp => "client_ip".to_owned(),
        HashKey::Path => "path".to_owned(),
        HashKey::Header(name) => format!("header:{name}"),
        HashKey::Cookie(name) => format!("cookie:{name}"),
    }
}

fn affinity(affinity: &Affinity) -> String {
    match affinity {
        Affinity::Cookie(name) => format!("cookie {name}"),
        Affinity::Header(name) => format!("header {name}"),
    }
}
