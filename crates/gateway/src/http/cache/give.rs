//! What is kept goes to a client, from where it is: its body is not copied.

use super::stored::Stored;
use crate::http::body::Framing;
use crate::http::exchange::{Client, Slow, begin};
use crate::http::io::Io;
use crate::http::request::{Method, push};
use bytes::{Buf, Bytes};
use everhold_core::http::cache::Part;
use std::future::poll_fn;
use std::io::{self, Write};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// An answer that is given in place of an instance's.
pub struct Given {
    pub stored: Arc<Stored>,
    pub part: Part,
    pub age_ms: u64,
    /// What `Cache-Status` says of it: RFC 9211.
    pub how: How,
}

/// Why it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Hit,
    /// It is stale, and asked for anew meanwhile, or the client bears that.
    Stale,
    /// It is stale, and nobody can say whether it is still so.
    OnError,
    /// It is stale, and its route is degraded.
    Degraded,
    /// Another client's request brought it.
    Collapsed,
    /// It is still so.
    Revalidated,
}

impl How {
    /// As records and metrics have it.
    pub fn word(self) -> &'static str {
        match self {
            How::Hit => "hit",
            How::Stale => "stale",
            How::OnError => "stale on error",
            How::Degraded => "stale, degraded",
            How::Collapsed => "collapsed",
            How::Revalidated => "revalidated",
        }
    }

    fn push(self, head: &mut Vec<u8>, ttl_ms: i64) {
        let how = match self {
            How::Hit => "hit",
            How::Stale => "hit; detail=stale",
            How::OnError => "hit; detail=stale-if-error",
            How::Degraded => "hit; detail=degraded",
            How::Collapsed => "fwd=uri-miss; collapsed",
            How::Revalidated => "fwd=stale; fwd-status=304",
        };
        let ttl = ttl_ms.div_euclid(1_000);
        // Writing to memory can't fail.
        let _ = write!(head, "Cache-Status: everhold; {how}; ttl={ttl}\r\n");
    }
}

/// Gives it; `false`: the client can't be told any more.
pub async fn give(client: &mut Client, given: &Given, stalled: Duration) -> bool {
    let Client { io, request, response, up, down, timer, trail, rate_min, .. } = client;
    let Given { stored, part, age_ms, how } = given;
    trail.cache = how.word();
    let (status, range) = stored.begin(&mut response.head, *part);
    (response.status, response.keep_alive) = (status, true);
    let head = &mut response.head;
    let _ = write!(head, "Age: {}\r\n", age_ms / 1_000);
    how.push(head, stored.life.fresh_ms as i64 - *age_ms as i64);
    push(head, b"X-Request-Id", request.id.as_bytes());
    let mut body = match request.method {
        Method::Head => Bytes::new(),
        _ => stored.body.slice(range),
    };
    response.framing = match body.len() {
        0 => Framing::None,
        length => Framing::Length(length as u64),
    };
    // A body that is still there is not the next request.
    request.keep_alive &= up.is_read();
    if down.is_halfway() || begin(io, request, response, down, response.framing).is_err() {
        return false;
    }
    let length = body.len() as u64;
    let (mut at, mut left, mut since) = (0, usize::MAX, Instant::now());
    let mut slow = Slow::new(*rate_min);
    let whole = poll_fn(|cx| {
        let result = match io {
            Io::Stream(stream) => match stream.poll_given_up(cx) {
                Poll::Ready(()) => return Poll::Ready(false),
                Poll::Pending => stream.poll_give(cx, &mut body),
            },
            Io::Plain(_) | Io::Tls(_) | Io::Nobody => {
                poll_both(cx, io, &down.out, &mut at, &mut body)
            }
        };
        match result {
            Poll::Ready(result) => Poll::Ready(result.is_ok()),
            Poll::Pending => {
                let now_left = down.out.len() - at + body.len();
                if now_left < left {
                    (left, since) = (now_left, Instant::now());
                }
                let most = since + stalled;
                let slow_at = slow.at(true, length - body.len() as u64, request);
                timer.poll(cx, slow_at.map_or(most, |it| it.min(most))).map(|()| false)
            }
        }
    })
    .await;
    down.clear();
    down.bytes = length - body.len() as u64;
    whole
}

/// Writes what is left of the head, and then of the body.
fn poll_both(
    cx: &mut Context<'_>,
    io: &mut Io,
    head: &[u8],
    at: &mut usize,
    body: &mut Bytes,
) -> Poll<io::Result<()>> {
    while *at < head.len() || !body.is_empty() {
        let left = &head[*at..];
        let count = ready!(io.poll_write(cx, left, body))?;
        let of_head = count.min(left.len());
        *at += of_head;
        body.advance(count - of_head);
    }
    io.poll_finish(cx)
}
