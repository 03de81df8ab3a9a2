//! What keeps services from being overrun, and answers for others to have, as it was written.

use super::super::fault::Faults;
use super::super::reader::{Part, Reader};
use super::http::below;
use super::{Names, Number, Text};
use everhold_core::http::degrade::Mode;

/// Of a service or a route.
pub(in super::super) struct RawBulkhead {
    pub limit: Number,
    pub queue: Number,
    pub wait: Text,
}

pub(in super::super) struct RawBreaker {
    pub failures: Number,
    pub rate: Number,
    pub open: Text,
    pub open_max: Text,
}

pub(in super::super) struct RawRate {
    pub at: usize,
    pub by: Text,
    pub v4_prefix: Number,
    pub v6_prefix: Number,
    /// By the key's name, and of how many seconds it is.
    pub rates: [(&'static str, u32, Number); 3],
    pub burst: Number,
}

pub(in super::super) struct RawCache {
    pub ttl: Text,
    pub stale_while_revalidate: Text,
    pub stale_if_error: Text,
    pub object_max: Text,
    pub headers: Names,
}

/// A mode in which a route is served while something is wrong.
pub(in super::super) struct RawMode {
    pub at: usize,
    pub when: Names,
    pub enter: Text,
    pub leave: Text,
    /// Of `static` only.
    pub status: Number,
    pub content_type: Text,
    pub body: Text,
}

pub(super) fn bulkhead(table: &mut Reader<'_>, faults: &mut Faults<'_>) -> Option<RawBulkhead> {
    below(table, "concurrency", faults, |it, faults| RawBulkhead {
        limit: it.integer("limit", faults),
        queue: it.integer("queue", faults),
        wait: it.string("wait", faults),
    })
}

pub(super) fn breaker(table: &mut Reader<'_>, faults: &mut Faults<'_>) -> Option<RawBreaker> {
    below(table, "breaker", faults, |it, faults| RawBreaker {
        failures: it.integer("failures", faults),
        rate: it.integer("rate", faults),
        open: it.string("open", faults),
        open_max: it.string("open_max", faults),
    })
}

pub(super) fn rate(table: &mut Reader<'_>, faults: &mut Faults<'_>) -> Option<RawRate> {
    let keys = [("per_second", 1), ("per_minute", 60), ("per_hour", 3_600)];
    below(table, "rate_limit", faults, |it, faults| RawRate {
        at: it.at,
        by: it.string("by", faults),
        v4_prefix: it.integer("v4_prefix", faults),
        v6_prefix: it.integer("v6_prefix", faults),
        rates: keys.map(|(key, seconds)| (key, seconds, it.integer(key, faults))),
        burst: it.integer("burst", faults),
    })
}

pub(super) fn cache(table: &mut Reader<'_>, faults: &mut Faults<'_>) -> Option<RawCache> {
    below(table, "cache", faults, |it, faults| RawCache {
        ttl: it.string("ttl", faults),
        stale_while_revalidate: it.string("stale_while_revalidate", faults),
        stale_if_error: it.string("stale_if_error", faults),
        object_max: it.string("object_max", faults),
        headers: it.strings("headers", faults),
    })
}

pub(super) fn degraded(table: &mut Reader<'_>, faults: &mut Faults<'_>) -> Vec<(Mode, RawMode)> {
    let all = below(table, "degraded", faults, |it, faults| {
        Mode::ALL.map(|mode| Some((mode, self::mode(mode, it, faults)?)))
    });
    all.into_iter().flatten().flatten().collect()
}

fn mode(mode: Mode, table: &mut Reader<'_>, faults: &mut Faults<'_>) -> Option<RawMode> {
    below(table, mode.word(), faults, |it, faults| {
        let (at, when) = (it.at, it.strings("when", faults));
        let [enter, leave] = ["enter", "leave"].map(|key| it.string(key, faults));
        let (mut status, mut content_type, mut body) = (Part::Absent, Part::Absent, Part::Absent);
        if mode == Mode::Static {
            status = it.integer("status", faults);
            [content_type, body] = ["content_type", "body"].map(|key| it.string(key, faults));
        }
        RawMode { at, when, enter, leave, status, content_type, body }
    })
}
