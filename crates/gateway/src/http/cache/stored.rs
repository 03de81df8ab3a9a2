//! One answer that is kept, and the heads with which it is given.

use super::purge::Names;
use super::store::Asked;
use crate::http::request::{lines, push, value};
use bytes::Bytes;
use everhold_core::http::cache::{Life, Marks, Part, Said};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Tags of one answer by which it is purged.
const TAGS_MAX: usize = 64;

pub struct Stored {
    pub status: u16,
    /// Status line and fields, ready to go out before what is said of one time alone.
    pub head: Vec<u8>,
    pub body: Bytes,
    pub life: Life,
    /// When it came, as the store counts.
    pub came_ms: u64,
    pub marks: Marks,
    pub asked: Asked,
    /// The last purge that is known not to have taken it.
    pub seen: AtomicU64,
    pub names: Names,
    /// When it was asked for anew, in the background.
    pub tried_ms: AtomicU64,
    count: Arc<Count>,
}

/// What is kept of one route, for who looks.
pub struct Count {
    pub route: Arc<str>,
    pub answers: AtomicU64,
    pub bytes: AtomicU64,
}

/// What of an answer is known by its head.
pub struct Draft {
    pub status: u16,
    pub head: Vec<u8>,
    pub life: Life,
    pub came_ms: u64,
    pub marks: Marks,
    /// What it varies by.
    pub vary: Vec<String>,
    pub asked: Asked,
    pub names: Names,
    count: Arc<Count>,
}

impl Draft {
    /// `head`: as it came, `count`: of its route, `host` and `path`: for which it
    /// was asked.
    pub fn new(
        (said, head): (&Said<'_>, &[u8]),
        life: Life,
        (count, host, path): (&Arc<Count>, &str, &[u8]),
        (asked, came_ms): (Asked, u64),
    ) -> Draft {
        let mut kept = Vec::with_capacity(head.len());
        kept.extend_from_slice(status_line(head));
        for (name, value) in lines(head).filter(|(name, _)| is_kept(name)) {
            push(&mut kept, name, value);
        }
        let names = Names {
            route: count.route.clone(),
            host: host.to_string(),
            path: String::from_utf8_lossy(path).into_owned(),
            tags: tags(head),
        };
        Draft {
            status: said.status,
            head: kept,
            life,
            came_ms,
            marks: marks(said),
            vary: said.vary.clone(),
            asked,
            names,
            count: count.clone(),
        }
    }

    /// With its body it is whole.
    pub fn with(mut self, body: Bytes) -> Stored {
        // To one that has none no length is said, by RFC 9110 section 8.6.
        if self.status != 204 {
            push(&mut self.head, b"Content-Length", body.len().to_string().as_bytes());
        }
        let Draft { status, head, life, came_ms, marks, vary: _, asked, names, count } = self;
        let stored = Stored {
            status,
            head,
            body,
            life,
            came_ms,
            marks,
            asked,
            seen: AtomicU64::new(asked.purges),
            names,
            tried_ms: AtomicU64::new(0),
            count,
        };
        stored.count.answers.fetch_add(1, Relaxed);
        stored.count.bytes.fetch_add(stored.bytes(), Relaxed);
        stored
    }
}

/// It is neither kept nor on its way to anybody any more.
impl Drop for Stored {
    fn drop(&mut self) {
        self.count.answers.fetch_sub(1, Relaxed);
        self.count.bytes.fetch_sub(self.bytes(), Relaxed);
    }
}

impl Stored {
    pub fn bytes(&self) -> u64 {
        let tags: usize = self.names.tags.iter().map(|it| it.len() + 24).sum();
        let names = self.names.host.len() + self.names.path.len() + tags;
        (self.head.len() + self.body.len() + names) as u64
    }

    /// What its head becomes where it is said to be so still: RFC 9111 section 3.2. Of the body nothing
    /// is said anew.
    pub fn freshened(&self, head: &[u8]) -> Vec<u8> {
        let of_body: [&[u8]; 4] =
            [b"content-length", b"content-encoding", b"content-type", b"content-range"];
        // Its age is not kept, but counts for how long it is fresh.
        let is_new = |name: &[u8]| {
            (is_kept(name) || name.eq_ignore_ascii_case(b"age"))
                && !of_body.iter().any(|it| name.eq_ignore_ascii_case(it))
        };
        let mut merged = status_line(&self.head).to_vec();
        for (name, said) in lines(&self.head) {
            let text = std::str::from_utf8(name).unwrap_or_default();
            if !(is_new(name) && value(head, text).is_some()) {
                push(&mut merged, name, said);
            }
        }
        for (name, said) in lines(head).filter(|(name, _)| is_new(name)) {
            push(&mut merged, name, said);
        }
        merged
    }

    /// Begins the head with which that part of it is given; says which bytes are the body, and the
    /// status.
    pub fn begin(&self, out: &mut Vec<u8>, part: Part) -> (u16, std::ops::Range<usize>) {
        out.clear();
        out.reserve(self.head.len() + 256);
        let length = self.body.len();
        let but = |out: &mut Vec<u8>, skip: &[&[u8]]| {
            for (name, value) in lines(&self.head) {
                if !skip.iter().any(|it| name.eq_ignore_ascii_case(it)) {
                    push(out, name, value);
                }
            }
        };
        match part {
            Part::Whole => {
                out.extend_from_slice(&self.head);
                (self.status, 0..length)
            }
            Part::Nothing => {
                out.extend_from_slice(b"HTTP/1.1 304 Not Modified\r\n");
                but(
                    out,
                    &[b"content-length", b"content-type", b"content-encoding", b"content-language"],
                );
                (304, 0..0)
            }
            Part::Bytes { first, last } => {
                out.extend_from_slice(b"HTTP/1.1 206 Partial Content\r\n");
                but(out, &[b"content-length"]);
                push(out, b"Content-Range", format!("bytes {first}-{last}/{length}").as_bytes());
                let range = first as usize..last as usize + 1;
                push(out, b"Content-Length", range.len().to_string().as_bytes());
                (206, range)
            }
            Part::Beyond => {
                out.extend_from_slice(b"HTTP/1.1 416 Range Not Satisfiable\r\n");
                push(out, b"Content-Range", format!("bytes */{length}").as_bytes());
                push(out, b"Content-Length", b"0");
                (416, 0..0)
            }
        }
    }
}

fn marks(said: &Said<'_>) -> Marks {
    Marks { etag: said.etag.map(Into::into), last_modified: said.last_modified, date: said.date }
}

fn status_line(head: &[u8]) -> &[u8] {
    &head[..memchr::memchr(b'\n', head).map_or(head.len(), |at| at + 1)]
}

/// What of a head is of the answer, and not of one time that it was given: RFC 9111 section 3.1.
fn is_kept(name: &[u8]) -> bool {
    let not: [&[u8]; 10] = [
        b"age",
        b"trailer",
        b"x-request-id",
        b"content-length",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-authentication-info",
        // What the gateway itself says to one client.
        b"ratelimit",
        b"ratelimit-policy",
        b"everhold-degraded",
    ];
    !not.iter().any(|it| name.eq_ignore_ascii_case(it))
}

fn tags(head: &[u8]) -> Vec<String> {
    let of = |(name, value): (&[u8], &[u8])| {
        let text = || String::from_utf8_lossy(value).into_owned();
        if name.eq_ignore_ascii_case(b"surrogate-key") {
            text().split_ascii_whitespace().map(str::to_string).collect()
        } else if name.eq_ignore_ascii_case(b"cache-tag") {
            text().split(',').map(|it| it.trim().to_string()).collect()
        } else {
            Vec::new()
        }
    };
    lines(head).flat_map(of).filter(|it| !it.is_empty()).take(TAGS_MAX).collect()
}
