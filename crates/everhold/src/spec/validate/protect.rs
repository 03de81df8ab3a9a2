//! What keeps services from being overrun, and answers for others to have.

use std::ops::RangeInclusive;

use everhold_core::http::breaker::{self, BreakerSpec};
use everhold_core::http::cache::{self, CacheSpec};
use everhold_core::http::degrade::{Cause, Degraded, ENTER_MS, LEAVE_MS, Mode, Page, Rule};
use everhold_core::http::pace::RATE_MIN;
use everhold_core::http::queue::{Bulkhead, Limit, Priority, WAIT_MS};
use everhold_core::http::rate::{RateKey, RateLimit};
use everhold_core::spec::Net;

use super::super::fault::{Code, Faults};
use super::super::raw::{Names, Number, RawBreaker, RawBulkhead, RawCache, RawMode, RawRate, Text};
use super::super::reader::{Part, Placed};
use super::http::{is_token, size, token};
use super::{bounded, duration, word};

/// As many as no instance serves at once.
const PLACES_MAX: u32 = 1_000_000;
const WAIT: (RangeInclusive<u64>, &str) = (0..=60_000, "0s to 1m");
const RUN_MAX: u32 = 10_000;
const OPEN: (RangeInclusive<u64>, &str) = (100..=3_600_000, "100ms to 1h");
const RATE_MAX: u32 = 10_000_000;
const CONNECTIONS_MAX: u32 = 1_000_000;
const BODY_RATE_MAX: u32 = 1_000_000_000;
const TTL: (RangeInclusive<u64>, &str) = (0..=31_536_000_000, "0s to 8760h");
/// Less than any answer has, and more than belongs into memory.
const OBJECT_BYTES: (RangeInclusive<u64>, &str) = (1 << 10..=1 << 30, "1KiB to 1GiB");

const ENTER: (RangeInclusive<u64>, &str) = (0..=600_000, "0s to 10m");
/// Not so short that it comes and goes all the time.
const LEAVE: (RangeInclusive<u64>, &str) = (1_000..=3_600_000, "1s to 1h");
/// A page that says sorry; it is in the spec, and with each table.
const PAGE_BYTES_MAX: usize = 8 << 10;
const PAGE_STATUS: u16 = 503;
const PAGE_TYPE: &str = "text/plain; charset=utf-8";
/// By these an answer has no body.
const BODILESS: [u16; 3] = [204, 205, 304];

pub(super) fn bulkhead(
    place: &str,
    raw: Option<&RawBulkhead>,
    faults: &mut Faults<'_>,
) -> Option<Bulkhead> {
    let raw = raw?;
    let number = |key: &str, raw, least, faults: &mut Faults<'_>| {
        let raw: &Number = raw;
        raw.is().map(|_| bounded(key, place, raw, least..=PLACES_MAX, least, faults))
    };
    let limit = number("concurrency.limit", &raw.limit, 1, faults);
    let queue = number("concurrency.queue", &raw.queue, 0, faults);
    let wait = raw.wait.is();
    let wait = wait.and_then(|raw| duration("concurrency.wait", place, raw, WAIT, faults));
    Some(Bulkhead {
        limit: limit.map_or(Limit::Auto, Limit::Most),
        queue,
        wait_ms: wait.unwrap_or(WAIT_MS),
    })
}

/// `None`: it never opens.
pub(super) fn breaker(
    place: &str,
    raw: Option<&RawBreaker>,
    faults: &mut Faults<'_>,
) -> Option<BreakerSpec> {
    let default = BreakerSpec::default();
    let Some(raw) = raw else { return Some(default) };
    let run = bounded("breaker.failures", place, &raw.failures, 0..=RUN_MAX, breaker::RUN, faults);
    let rate = raw.rate.is();
    let rate = rate.map(|_| bounded("breaker.rate", place, &raw.rate, 1..=100, 100, faults));
    let mut time = |key: &str, raw: &Text, default| {
        raw.is().and_then(|raw| duration(key, place, raw, OPEN, faults)).unwrap_or(default)
    };
    let open_ms = time("breaker.open", &raw.open, default.open_ms);
    let most = time("breaker.open_max", &raw.open_max, default.open_ms_max.max(open_ms));
    if let Some(raw) = raw.open_max.is()
        && most < open_ms
    {
        let message = format!("`breaker.open_max` in {place} is shorter than `breaker.open`");
        faults.add(Code::OutOfRange, raw.at, message);
    }
    let never = run == 0 && rate.is_none();
    let run = if run == 0 { u32::MAX } else { run };
    (!never).then_some(BreakerSpec { run, rate_percent: rate, open_ms, open_ms_max: most })
}

pub(super) fn priority(place: &str, raw: &Text, faults: &mut Faults<'_>) -> Priority {
    let all = [
        ("critical", Priority::Critical),
        ("high", Priority::High),
        ("normal", Priority::Normal),
        ("low", Priority::Low),
    ];
    word("priority", place, raw, &all, faults).unwrap_or_default()
}

/// Addresses, and ranges of them.
pub(super) fn nets(key: &str, place: &str, raw: &Names, faults: &mut Faults<'_>) -> Vec<Net> {
    let mut found = Vec::new();
    for text in raw.is().into_iter().flat_map(|list| &list.value) {
        match text.value.parse::<Net>() {
            Ok(net) => found.push(net),
            Err(why) => {
                let what = format!("\"{}\" of `{key}` in {place}", text.value.escape_debug());
                faults.add(Code::OutOfRange, text.at, format!("{what} {why}"));
            }
        }
    }
    found
}

pub(super) fn connections(place: &str, raw: &Number, faults: &mut Faults<'_>) -> Option<u32> {
    raw.is()?;
    Some(bounded("connections_per_client", place, raw, 1..=CONNECTIONS_MAX, 1, faults))
}

/// Bytes a second.
pub(super) fn body_rate(place: &str, raw: &Number, faults: &mut Faults<'_>) -> u32 {
    bounded("body_rate_min", place, raw, 0..=BODY_RATE_MAX, RATE_MIN, faults)
}

/// How often each client may ask.
pub(super) fn rate(
    place: &str,
    raw: Option<&RawRate>,
    faults: &mut Faults<'_>,
) -> Option<RateLimit> {
    let raw = raw?;
    let by = client(place, raw, faults)?;
    let mut given = raw.rates.iter().filter(|(_, _, number)| *number != Part::Absent);
    let (Some((key, per_s, number)), None) = (given.next(), given.next()) else {
        let message =
            format!("`rate_limit` in {place} needs one of `per_second`, `per_minute`, `per_hour`");
        faults.add(Code::Count, raw.at, message).next =
            "write rate_limit = { by = \"client_ip\", per_second = 100 }".into();
        return None;
    };
    let key = format!("rate_limit.{key}");
    let requests = bounded(&key, place, number, 1..=RATE_MAX, 1, faults);
    // What comes in a second, if that is more than one at all.
    let usual = (requests / per_s).max(1);
    let burst = bounded("rate_limit.burst", place, &raw.burst, 1..=RATE_MAX, usual, faults);
    Some(RateLimit { by, requests, per_s: *per_s, burst })
}

/// What one client is.
fn client(place: &str, raw: &RawRate, faults: &mut Faults<'_>) -> Option<RateKey> {
    let RateKey::ClientIp { v4_bits, v6_bits } = RateKey::ADDRESS else { return None };
    let bits = |key: &str, raw: &Number, most: u8, usual: u8, faults: &mut Faults<'_>| {
        let bits = bounded(key, place, raw, 1..=u32::from(most), u32::from(usual), faults);
        u8::try_from(bits).unwrap_or(usual)
    };
    let by_address = RateKey::ClientIp {
        v4_bits: bits("rate_limit.v4_prefix", &raw.v4_prefix, 32, v4_bits, faults),
        v6_bits: bits("rate_limit.v6_prefix", &raw.v6_prefix, 128, v6_bits, faults),
    };
    let Some(text) = raw.by.is() else { return Some(by_address) };
    let key = match text.value.split_once(':') {
        None if text.value == "client_ip" => return Some(by_address),
        None if text.value == "token" => RateKey::Token,
        Some(("header", name)) if is_token(name) => RateKey::Header(name.to_lowercase()),
        Some(("cookie", name)) if is_token(name) => RateKey::Cookie(name.to_owned()),
        None | Some(_) => {
            let shown = text.value.escape_debug();
            let message = format!("`rate_limit.by` in {place} names no client: \"{shown}\"");
            faults.add(Code::OutOfRange, text.at, message).next =
                "write \"client_ip\", \"token\", \"header:NAME\" or \"cookie:NAME\"".into();
            return None;
        }
    };
    for (name, raw) in [("v4_prefix", &raw.v4_prefix), ("v6_prefix", &raw.v6_prefix)] {
        if let Some(raw) = raw.is() {
            let message =
                format!("`rate_limit.{name}` in {place} has a meaning with \"client_ip\" only");
            faults.add(Code::NotApplicable, raw.at, message);
        }
    }
    Some(key)
}

pub(super) fn cache(
    place: &str,
    raw: Option<&RawCache>,
    faults: &mut Faults<'_>,
) -> Option<CacheSpec> {
    let raw = raw?;
    let mut time =
        |key: &str, raw: &Text| raw.is().and_then(|raw| duration(key, place, raw, TTL, faults));
    let ttl_ms = time("cache.ttl", &raw.ttl);
    let revalidate = time("cache.stale_while_revalidate", &raw.stale_while_revalidate);
    let error = time("cache.stale_if_error", &raw.stale_if_error);
    let most = size("cache.object_max", place, &raw.object_max, OBJECT_BYTES, faults);
    let mut key_headers = Vec::new();
    for name in raw.headers.is().into_iter().flat_map(|list| &list.value) {
        let lower = name.value.to_ascii_lowercase();
        if token(&format!("a header of `cache` in {place}"), name, faults)
            && !key_headers.contains(&lower)
        {
            key_headers.push(lower);
        }
    }
    Some(CacheSpec {
        ttl_ms,
        stale_while_revalidate_ms: revalidate.unwrap_or(0),
        stale_if_error_ms: error.unwrap_or(0),
        object_bytes_max: most.unwrap_or(cache::OBJECT_BYTES),
        key_headers,
    })
}

/// How a route is served while something is wrong.
pub(super) fn degraded(
    place: &str,
    raw: &[(Mode, RawMode)],
    keeps: bool,
    faults: &mut Faults<'_>,
) -> Option<Degraded> {
    let mut degraded = Degraded::default();
    for (mode, raw) in raw {
        let key = format!("degraded.{}", mode.word());
        let when = causes(&key, place, raw, faults);
        let mut time = |name: &str, raw: &Text, range, usual| {
            let ms = raw
                .is()
                .and_then(|raw| duration(&format!("{key}.{name}"), place, raw, range, faults));
            ms.unwrap_or(usual)
        };
        let enter_ms = time("enter", &raw.enter, ENTER, ENTER_MS);
        let leave_ms = time("leave", &raw.leave, LEAVE, LEAVE_MS);
        degraded.modes.insert(*mode, Rule { when, enter_ms, leave_ms });
        match mode {
            Mode::Stale if !keeps => {
                let message = format!("`{key}` in {place} has no meaning without `cache`");
                faults.add(Code::NotApplicable, raw.at, message);
            }
            Mode::Static => degraded.page = Some(page(place, raw, faults)),
            Mode::Stale | Mode::Shed | Mode::ReadOnly => {}
        }
    }
    (!degraded.modes.is_empty()).then_some(degraded)
}

fn causes(key: &str, place: &str, raw: &RawMode, faults: &mut Faults<'_>) -> Vec<Cause> {
    let words = Cause::ALL.map(|cause| (cause.word(), cause));
    if raw.when.is().is_none_or(|list| list.value.is_empty()) && raw.when != Part::Faulty {
        let message = format!("`{key}.when` in {place} does not say when");
        faults.add(Code::Count, raw.at, message).next =
            "name what has to be wrong: when = [\"breaker\", \"down\", \"queue\", \"cpu\"]".into();
    }
    let mut found = Vec::new();
    for text in raw.when.is().into_iter().flat_map(|list| &list.value) {
        let text = Part::Is(Placed { value: text.value.clone(), at: text.at });
        let cause = word(&format!("{key}.when"), place, &text, &words, faults);
        found.extend(cause.filter(|cause| !found.contains(cause)));
    }
    found
}

fn page(place: &str, raw: &RawMode, faults: &mut Faults<'_>) -> Page {
    let key = "degraded.static.status";
    let status = bounded(key, place, &raw.status, 200..=599, u32::from(PAGE_STATUS), faults);
    let status = u16::try_from(status).unwrap_or(PAGE_STATUS);
    if let Some(raw) = raw.status.is().filter(|_| BODILESS.contains(&status)) {
        let message = format!("`{key}` in {place} is one without a body: {status}");
        faults.add(Code::OutOfRange, raw.at, message);
    }
    let of_field = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if let Some(raw) = raw.content_type.is().filter(|it| !of_field(&it.value)) {
        let message = format!("`degraded.static.content_type` in {place} is not ASCII in one line");
        faults.add(Code::OutOfRange, raw.at, message);
    }
    if let Some(raw) = raw.body.is().filter(|it| it.value.len() > PAGE_BYTES_MAX) {
        let length = raw.value.len();
        let message = format!(
            "`degraded.static.body` in {place} may have {PAGE_BYTES_MAX} bytes, not {length}"
        );
        faults.add(Code::OutOfRange, raw.at, message);
    }
    let text = |raw: &Text, usual: &str| raw.is().map_or(usual, |it| &it.value).to_owned();
    Page { status, content_type: text(&raw.content_type, PAGE_TYPE), body: text(&raw.body, "") }
}
