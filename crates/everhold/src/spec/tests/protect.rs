//! What keeps services from being overrun, and answers for others to have.

use everhold_core::http::breaker::BreakerSpec;
use everhold_core::http::cache::CacheSpec;
use everhold_core::http::degrade::{Cause, Mode, Page, Rule};
use everhold_core::http::queue::{Bulkhead, Limit, Priority, WAIT_MS};
use everhold_core::http::rate::{RateKey, RateLimit};
use everhold_core::spec::{HttpSpec, RouteSpec, ServiceSpec};

use super::*;

/// A document with these keys of a service, from line 8 on, and of a route, behind six lines more.
fn web(service: &str, route: &str) -> String {
    format!(
        "{HEAD}[service.api]\nkind = \"http\"\naddresses = [\"h:1\"]\n{service}\n[listener]\n\
         web = {{ bind = \"0.0.0.0:8080\", protocol = \"http\" }}\n[route.api]\n\
         listener = \"web\"\nservice = \"api\"\n{route}\n"
    )
}

fn read(service: &str, route: &str) -> (HttpSpec, RouteSpec) {
    let mut spec = load(&web(service, route), "f").expect("valid");
    let Some(ServiceSpec::Http(http)) = spec.services.remove("api") else { panic!("a service") };
    (http, spec.routes.remove("api").expect("a route"))
}

#[test]
fn nothing_is_limited_unless_it_is_asked_for() {
    let (service, route) = read("", "");
    assert_eq!(service.concurrency, None);
    assert_eq!(service.breaker, Some(BreakerSpec::default()));
    assert_eq!((route.priority, route.concurrency), (Priority::Normal, None));
    assert_eq!((route.rate_limit, route.cache, route.degraded), (None, None, None));
}

#[test]
fn all_keys() {
    let (service, route) = read(
        "concurrency = { limit = 100, queue = 0, wait = \"2s\" }\n\
         breaker = { failures = 5, rate = 50, open = \"2s\", open_max = \"1m\" }",
        "priority = \"critical\"\nconcurrency = {}\n\
         rate_limit = { by = \"header:X-Key\", per_minute = 30, burst = 5 }\n\
         cache = { ttl = \"1m\", stale_while_revalidate = \"2s\", stale_if_error = \"1h\", \
         object_max = \"8MiB\", headers = [\"X-Tenant\", \"x-tenant\"] }",
    );
    let places = Bulkhead { limit: Limit::Most(100), queue: Some(0), wait_ms: 2_000 };
    assert_eq!(service.concurrency, Some(places));
    let breaker =
        BreakerSpec { run: 5, rate_percent: Some(50), open_ms: 2_000, open_ms_max: 60_000 };
    assert_eq!(service.breaker, Some(breaker));
    assert_eq!(route.priority, Priority::Critical);
    let found_out = Bulkhead { limit: Limit::Auto, queue: None, wait_ms: WAIT_MS };
    assert_eq!(route.concurrency, Some(found_out));
    let by = RateKey::Header("x-key".into());
    let rate = RateLimit { by, requests: 30, per_s: 60, burst: 5 };
    assert_eq!(route.rate_limit, Some(rate));
    let cache = CacheSpec {
        ttl_ms: Some(60_000),
        stale_while_revalidate_ms: 2_000,
        stale_if_error_ms: 3_600_000,
        object_bytes_max: 8 << 20,
        key_headers: vec!["x-tenant".into()],
    };
    assert_eq!(route.cache, Some(cache));

    assert_eq!(read("breaker = { failures = 0 }", "").0.breaker, None);
    let rate = read("breaker = { failures = 0, rate = 50 }", "").0.breaker;
    assert_eq!(rate.map(|it| (it.run, it.rate_percent)), Some((u32::MAX, Some(50))));
    let rate = |text: &str| {
        let limit = read("", &format!("rate_limit = {{ {text} }}")).1.rate_limit;
        let RateLimit { by, requests, per_s, burst } = limit.expect("a limit");
        (by, requests, per_s, burst)
    };
    assert_eq!(rate("per_second = 7"), (RateKey::ADDRESS, 7, 1, 7));
    assert_eq!(rate("by = \"token\", per_hour = 9"), (RateKey::Token, 9, 3_600, 1));
    let networks = RateKey::ClientIp { v4_bits: 24, v6_bits: 64 };
    assert_eq!(rate("per_minute = 120, v4_prefix = 24"), (networks, 120, 60, 2));
}

#[test]
fn degraded_modes() {
    let (_, route) = read(
        "",
        "cache = {}\n[route.api.degraded]\nstale = { when = [\"breaker\", \"down\", \"down\"] }\n\
         read_only = { when = [\"queue\", \"cpu\"], enter = \"0s\", leave = \"1m\" }\n\
         static = { when = [\"down\"], status = 200, content_type = \"a/b\", body = \"c\" }",
    );
    let degraded = route.degraded.expect("modes");
    let rule =
        |when: &[Cause], enter_ms, leave_ms| Rule { when: when.to_vec(), enter_ms, leave_ms };
    let expected = [
        (Mode::Stale, rule(&[Cause::Breaker, Cause::Down], 1_000, 10_000)),
        (Mode::Static, rule(&[Cause::Down], 1_000, 10_000)),
        (Mode::ReadOnly, rule(&[Cause::Queue, Cause::Cpu], 0, 60_000)),
    ];
    assert_eq!(degraded.modes, expected.into());
    let page = Page { status: 200, content_type: "a/b".into(), body: "c".into() };
    assert_eq!(degraded.page, Some(page));
    let (_, route) = read("", "degraded.static = { when = [\"down\"] }");
    let page = route.degraded.and_then(|it| it.page).expect("a page");
    assert_eq!((page.status, page.content_type.as_str()), (503, "text/plain; charset=utf-8"));
    let (_, route) = read("", "degraded.shed = { when = [\"cpu\"] }");
    assert_eq!(route.degraded.map(|it| (it.modes.len(), it.page)), Some((1, None)));
}

#[test]
#[rustfmt::skip]
fn faults() {
    let check = |service: &str, route: &str, expected: &[&str]| {
        super::check(&web(service, route), expected);
    };
    check("concurrency = { limit = 0, queue = -1, wait = \"2m\", most = 1 }\nbreaker = { failures = 10001, rate = 0, open = \"1ms\" }", "", &[
        "8:25 E007 `concurrency.limit` in [service.api] must be from 1 to 1000000, not 0",
        "8:36 E007 `concurrency.queue` in [service.api] must be from 0 to 1000000, not -1",
        "8:47 E007 `concurrency.wait` in [service.api] must be from 0s to 1m, not \"2m\"",
        "8:53 E003 unknown key `most` in [service.api.concurrency]",
        "9:24 E007 `breaker.failures` in [service.api] must be from 0 to 10000, not 10001",
        "9:38 E007 `breaker.rate` in [service.api] must be from 1 to 100, not 0",
        "9:48 E007 `breaker.open` in [service.api] must be from 100ms to 1h, not \"1ms\"",
    ]);
    check("breaker = { open = \"10s\", open_max = \"5s\" }", "", &[
        "8:38 E007 `breaker.open_max` in [service.api] is shorter than `breaker.open`",
    ]);
    check("", "priority = \"hihg\"\nrate_limit = { by = \"ip\" }\ncache = { object_max = \"8\", headers = [\"a b\"], ttl = \"-1s\" }", &[
        "14:12 E007 `priority` in [route.api] must be \"critical\" or \"high\" or \"normal\" or \"low\", not \"hihg\"",
        "15:21 E007 `rate_limit.by` in [route.api] names no client: \"ip\"",
        "16:24 E007 `cache.object_max` in [route.api] must be from 1KiB to 1GiB, not \"8\"",
        "16:40 E007 a header of `cache` in [route.api] is not a name that HTTP allows: \"a b\"",
        "16:54 E010 `cache.ttl` in [route.api]: \"-1s\" is not a whole number with a unit (ms, s, m or h)",
    ]);
    check("", "rate_limit = {}", &["14:1 E019 `rate_limit` in [route.api] needs one of `per_second`, `per_minute`, `per_hour`"]);
    check("", "rate_limit = { by = \"token\", per_second = 0, burst = 0, v6_prefix = 56 }", &[
        "14:43 E007 `rate_limit.per_second` in [route.api] must be from 1 to 10000000, not 0",
        "14:54 E007 `rate_limit.burst` in [route.api] must be from 1 to 10000000, not 0",
        "14:69 E026 `rate_limit.v6_prefix` in [route.api] has a meaning with \"client_ip\" only",
    ]);
    check("", "rate_limit = { per_second = 1, per_hour = 1 }", &["14:1 E019 `rate_limit` in [route.api] needs one of `per_second`, `per_minute`, `per_hour`"]);
    let faulty = "degraded.stale = { when = [\"breaker\"] }\ndegraded.shed = {}\ndegraded.read_only = { when = [\"braker\"], enter = \"1h\", status = 200 }\n\
        degraded.static = { when = [\"down\"], leave = \"0s\", status = 204, content_type = \"é\" }\ndegraded.gone = {}";
    check("", faulty, &[
        "14:10 E026 `degraded.stale` in [route.api] has no meaning without `cache`",
        "15:10 E019 `degraded.shed.when` in [route.api] does not say when",
        "16:32 E007 `degraded.read_only.when` in [route.api] must be \"breaker\" or \"down\" or \"queue\" or \"cpu\", not \"braker\"",
        "16:51 E007 `degraded.read_only.enter` in [route.api] must be from 0s to 10m, not \"1h\"",
        "16:57 E003 unknown key `status` in [route.api.degraded.read_only]",
        "17:46 E007 `degraded.static.leave` in [route.api] must be from 1s to 1h, not \"0s\"",
        "17:61 E007 `degraded.static.status` in [route.api] is one without a body: 204",
        "17:81 E007 `degraded.static.content_type` in [route.api] is not ASCII in one line",
        "18:10 E003 unknown key `gone` in [route.api.degraded]",
    ]);
    let long = format!("degraded.static = {{ when = [\"down\"], body = \"{}\" }}", "x".repeat(8_193));
    check("", &long, &["14:45 E007 `degraded.static.body` in [route.api] may have 8192 bytes, not 8193"]);
}
