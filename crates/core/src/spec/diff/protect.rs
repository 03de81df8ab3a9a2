//! What keeps services from being overrun, and answers for others to have, in words.

use super::http::ms;
use crate::http::breaker::BreakerSpec;
use crate::http::cache::CacheSpec;
use crate::http::degrade::{Degraded, Mode};
use crate::http::hash::hash;
use crate::http::queue::{Bulkhead, Limit};
use crate::http::rate::{RateKey, RateLimit};

pub(super) fn places(of: &Bulkhead) -> String {
    let limit = match of.limit {
        Limit::Auto => "limit found out".to_owned(),
        Limit::Most(most) => format!("limit {most}"),
    };
    let queue = of.queue.map(|queue| format!(", queue {queue}")).unwrap_or_default();
    format!("{limit}{queue}, wait {}", ms(of.wait_ms))
}

pub(super) fn breaker(of: &BreakerSpec) -> String {
    // The spec says 0 for "however many".
    let run = match of.run {
        u32::MAX => String::new(),
        run => format!("{run} failures, "),
    };
    let rate = of.rate_percent.map(|rate| format!("rate {rate} %, ")).unwrap_or_default();
    let (open, most) = (ms(of.open_ms), ms(of.open_ms_max));
    format!("{run}{rate}open {open} to {most}")
}

pub(super) fn rate(of: &RateLimit) -> String {
    let by = match &of.by {
        RateKey::ClientIp { v4_bits, v6_bits } => format!("client_ip /{v4_bits} /{v6_bits}"),
        RateKey::Header(name) => format!("header:{name}"),
        RateKey::Cookie(name) => format!("cookie:{name}"),
        RateKey::Token => "token".to_owned(),
    };
    format!("{} in {} s by {by}, burst {}", of.requests, of.per_s, of.burst)
}

pub(super) fn cache(of: &CacheSpec) -> String {
    let ttl = of.ttl_ms.map(|ttl| format!("ttl {}, ", ms(ttl))).unwrap_or_default();
    let by = match of.key_headers.is_empty() {
        true => String::new(),
        false => format!(", by {}", of.key_headers.join(" ")),
    };
    format!(
        "{ttl}stale {} while asked anew, {} while that fails, up to {} bytes{by}",
        ms(of.stale_while_revalidate_ms),
        ms(of.stale_if_error_ms),
        of.object_bytes_max
    )
}

pub(super) fn degraded(of: &Degraded, mode: Mode) -> Option<String> {
    let rule = of.modes.get(&mode)?;
    let when: Vec<&str> = rule.when.iter().map(|cause| cause.word()).collect();
    let page = of.page.as_ref().filter(|_| mode == Mode::Static).map_or_else(String::new, |page| {
        // One that is as long as another is another all the same.
        let (status, length, of) = (page.status, page.body.len(), hash(page.body.as_bytes()));
        format!(", {status} with {length} bytes of {} ({of:016x})", page.content_type)
    });
    let (enter, leave) = (ms(rule.enter_ms), ms(rule.leave_ms));
    Some(format!("when {} for {enter}, until well for {leave}{page}", when.join(" or ")))
}
