//! A client's connection in HTTP/2: its streams, each a request of its own.

use super::Open;
use super::buf::Buf;
use super::exchange::Client;
use super::from::From;
use super::io::Io;
use super::meter::{Calm, Metered};
use super::serve::{After, exchange, turn_away};
use super::stream::Stream;
use super::world::{Seat, World};
use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// As Envoy advises for an edge, and twice what nginx takes.
const STREAMS_MAX: u32 = 256;
/// What one stream may send before it is taken; as nginx, and as Envoy advises for an edge.
const STREAM_WINDOW: u32 = 64 << 10;
/// Uploads that instances don't take must not hold up others, so all streams can have full windows: a
/// client that sends as much may cost 16 MB, one that doesn't costs nothing.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX;
const HEAD_MAX: u32 = 16 << 10;
/// Of the answer to one stream that the client has not taken.
const SEND_MAX: usize = 64 << 10;
/// Streams of one connection that are worked on, also if the client has given them up.
const RUNNING_MAX: usize = 2 * STREAMS_MAX as usize;
/// Streams given up before they were taken, of a connection of a trusted proxy: the users of several
/// pages that are left in one moment. The library's own bound, 20, is for one client.
const SHARED_RESETS_MAX: usize = 1024;
/// Tasks that are kept for coming streams, of one thread.
const DESKS_MAX: usize = 128;
/// A connection on which nothing is asked is closed after this, as with HTTP/1.
const IDLE: Duration = Duration::from_secs(75);
const BEGINS_WITHIN: Duration = Duration::from_secs(10);
/// Who is told to calm down takes that within this.
const CALMED_WITHIN: Duration = Duration::from_secs(2);
/// Clients of a gateway that leaves are told so one after the other, within this: told in one moment
/// they would come back in one, with a handshake each.
const TOLD_WITHIN: Duration = Duration::from_secs(3);

/// Serves a client until it or the gateway wants no more.
pub async fn serve(
    io: Begun,
    peer: SocketAddr,
    (listener, open): (Arc<str>, &Open),
    world: Rc<World>,
) {
    let mut seat = world.seat(&listener, &open.0);
    let from = Rc::new(From::of(peer, matches!(io.io, Io::Tls(_)), seat.port(&world)));
    // As it is now: what it was begun with can't be changed.
    let shared = from.trusted(&mut seat, &world).is_some();
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD_MAX)
        .max_send_buffer_size(SEND_MAX);
    let calm = Rc::new(Calm::default());
    if shared {
        builder.max_pending_accept_reset_streams(SHARED_RESETS_MAX);
    }
    let io = Metered::new(io, shared, calm.clone());
    let handshake = tokio::time::timeout(BEGINS_WITHIN, builder.handshake::<_, Bytes>(io)).await;
    let Ok(Ok(mut connection)) = handshake else { return };
    let goes = async {
        world.leaves().await;
        let share = world.ids.borrow_mut().random() as u32;
        tokio::time::sleep(TOLD_WITHIN.mul_f64(f64::from(share) / f64::from(u32::MAX))).await;
    };
    let mut goes = std::pin::pin!(goes);
    let (mut told, mut calmed) = (false, false);
    loop {
        // Each stream holds one, too.
        let streams = Rc::strong_count(&from) - 1;
        if streams > RUNNING_MAX && !shared {
            // Requests are given up as soon as they are made: it only wants the work done.
            calm.want();
        }
        if calm.is_wanted() && !calmed {
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            world.shared.door.strike(&listener, from.ip);
            calmed = true;
        }
        let within = if calmed { CALMED_WITHIN } else { IDLE };
        let asked = tokio::select! {
            asked = tokio::time::timeout(within, connection.accept()) => asked,
            () = calm.wanted(), if !calmed => continue,
            () = &mut goes, if !told => {
                // Streams that are begun till the client knows are still served.
                connection.graceful_shutdown();
                told = true;
                continue;
            }
        };
        let (request, respond) = match asked {
            Ok(Some(Ok(_))) if calmed => continue,
            _ if calmed => return,
            Ok(Some(Ok(asked))) => asked,
            Ok(Some(Err(error))) => {
                // What the library bounds by itself.
                if !error.is_remote() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
                    world.shared.door.strike(&listener, from.ip);
                }
                return;
            }
            Ok(None) => return,
            // It was told already, and says nothing to that either.
            Err(_) if streams == 0 && told => return,
            Err(_) => {
                if streams == 0 {
                    connection.graceful_shutdown();
                    told = true;
                }
                continue;
            }
        };
        let seat = world.seat(&listener, &open.0);
        serve_one(Job { request, respond, from: from.clone(), seat }, &world);
    }
}

/// A stream that is to be served.
struct Job {
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
    from: Rc<From>,
    seat: Seat,
}

/// Tasks of a thread that wait for their next stream: a task for each, and its memory, would be made
/// and lost with each request.
#[derive(Default)]
pub struct Desks(RefCell<Vec<Rc<Desk>>>);

impl Desks {
    /// False: enough wait already.
    fn wait(&self, desk: &Rc<Desk>) -> bool {
        let mut waiting = self.0.borrow_mut();
        let room = waiting.len() < DESKS_MAX;
        if room {
            waiting.push(desk.clone());
        }
        room
    }
}

#[derive(Default)]
struct Desk {
    job: RefCell<Option<Job>>,
    waker: RefCell<Option<Waker>>,
}

fn serve_one(job: Job, world: &Rc<World>) {
    match world.desks.0.borrow_mut().pop() {
        Some(desk) => {
            *desk.job.borrow_mut() = Some(job);
            if let Some(waker) = desk.waker.borrow_mut().take() {
                waker.wake();
            }
        }
        None => drop(tokio::task::spawn_local(work(job, world.clone()))),
    }
}

/// One stream after the other, of whatever connection.
async fn work(mut job: Job, world: Rc<World>) {
    let mut client = Client::new(Io::Stream(Box::default()));
    let desk = Rc::new(Desk::default());
    loop {
        stream(job, &mut client, &world).await;
        client.clear();
        if !world.desks.wait(&desk) {
            return;
        }
        job = poll_fn(|cx| match desk.job.borrow_mut().take() {
            Some(job) => Poll::Ready(job),
            None => {
                *desk.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await;
    }
}

async fn stream(job: Job, client: &mut Client, world: &World) {
    let Job { request, respond, from, mut seat } = job;
    let (parts, receive) = request.into_parts();
    let over = receive.is_end_stream();
    client.take(Stream::of_client(receive, respond, from.tls));
    let listener = from.trusted(&mut seat, world);
    let trusted = listener.as_ref().map(|it| it.trusted.as_slice()).unwrap_or_default();
    let sender = (&*from, trusted);
    let taken = client.request.take(&parts, over, sender, &mut world.ids.borrow_mut());
    let after = match taken {
        Ok(()) => {
            client.up.begin(client.request.framing, false);
            exchange(client, &mut seat, world, &from).await
        }
        Err(refusal) => turn_away(client, &seat, world, &from, refusal).await,
    };
    if let (After::Drop, Io::Stream(stream)) = (after, &mut client.io) {
        stream.reset();
    }
}

/// A connection of which the first bytes were read.
pub struct Begun {
    pub io: Io,
    pub buf: Buf,
}

impl AsyncRead for Begun {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Begun { io, buf } = self.get_mut();
        if buf.is_empty() {
            ready!(io.poll_read(cx, buf))?;
        }
        let count = buf.data().len().min(room.remaining());
        room.put_slice(&buf.data()[..count]);
        buf.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().io.poll_write(cx, data, &[])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut parts = data.iter().filter(|it| !it.is_empty());
        let first: &[u8] = parts.next().map_or(&[], |it| it);
        let then: &[u8] = parts.next().map_or(&[], |it| it);
        self.get_mut().io.poll_write(cx, first, then)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().io.poll_shutdown(cx)
    }
}
