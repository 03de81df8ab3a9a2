//! What follows a change of protocol: bytes, until both sides have said all, or one of them is gone.

use super::backend::Conn;
use super::body::Framing;
use super::exchange::Client;
use super::live::Live;
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::task::Poll;

pub async fn run(client: Client, mut conn: Conn, live: &Live) {
    let _open = Open::new(live);
    let Client { mut io, mut buf, mut up, mut down, .. } = client;
    up.begin(Framing::End, false);
    down.begin(Framing::End, false);
    // Who has said all is told to the other side once.
    let (mut up_said, mut down_said) = (false, false);
    poll_fn(|cx| {
        if !up.is_over() && up.poll(cx, (&mut io, &mut buf), &mut conn.io)?.is_pending() {
            // Nothing to carry that way.
        } else if !up_said {
            up_said = conn.io.poll_shutdown(cx)?.is_ready();
        }
        if !down.is_over() && down.poll(cx, (&mut conn.io, &mut conn.buf), &mut io)?.is_pending() {
            // Nor this way.
        } else if !down_said {
            down_said = io.poll_shutdown(cx)?.is_ready();
        }
        match up_said && down_said {
            true => Poll::Ready(Ok::<(), super::flow::FlowError>(())),
            false => Poll::Pending,
        }
    })
    .await
    .unwrap_or_else(|error| tracing::debug!(?error, "a tunnel ended"));
}

/// One of the tunnels to an instance, for as long as this lives.
struct Open<'l>(&'l Live);

impl Open<'_> {
    fn new(live: &Live) -> Open<'_> {
        live.tunnels.fetch_add(1, Ordering::Relaxed);
        Open(live)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}
