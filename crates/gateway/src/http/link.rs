//! Connections in HTTP/2 to one instance, of one thread. Each carries many requests: as many at once
//! as the instance bears. There is another one as soon as those there are carry so many.

use super::stream::Stream;
use crate::socket;
use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

/// Requests at once on one connection, also where the instance bears more: what one of them loses all
/// lose.
const STREAMS_MAX: usize = 100;
/// What an instance may send of one answer before the client takes it.
const STREAM_WINDOW: u32 = 64 << 10;
/// A client that takes nothing must not keep others from their answers.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX as u32;
const HEAD_MAX: u32 = 16 << 10;
const SEND_MAX: usize = 256 << 10;
/// To connect, and to hear how many requests the instance bears.
const OPENS_WITHIN: Duration = Duration::from_secs(1);
/// As with HTTP/1.
const IDLE_FOR: Duration = Duration::from_secs(4);
/// Of an instance that owes answers and has said nothing for so long it is asked whether it is there.
const SILENT_FOR: Duration = Duration::from_secs(10);
const PONG_WITHIN: Duration = Duration::from_secs(5);
/// Servers of gRPC end a connection for a third ping within five minutes in which nothing else was
/// said.
const PING_AGAIN: Duration = Duration::from_secs(300);
/// A pong on the wire.
const PONG_BYTES: u64 = 17;

/// Those to one instance.
pub struct Links {
    address: SocketAddr,
    all: RefCell<Vec<Rc<Link>>>,
    /// Whoever finds no room waits for the one that is being opened.
    opening: RefCell<Option<watch::Receiver<Option<Opened>>>>,
}

type Opened = Result<(), io::ErrorKind>;

/// One connection.
struct Link {
    send: SendRequest<Bytes>,
    streams: Cell<usize>,
    /// It has carried requests before.
    used: Cell<bool>,
    /// Since when it carries none.
    idle: Cell<Instant>,
    heard: Rc<Cell<u64>>,
    pulse: RefCell<Pulse>,
    driver: AbortHandle,
}

/// Whether somebody is there.
struct Pulse {
    ping: Option<PingPong>,
    heard: u64,
    since: Instant,
    /// When it was asked, and how much had been heard by then.
    asked: Option<(Instant, u64)>,
}

/// A request's place on a connection, for as long as this lives.
pub struct Place {
    link: Rc<Link>,
    /// The connection had been idle.
    pub was_idle: bool,
}

impl Place {
    fn new(link: &Rc<Link>) -> Place {
        let was_idle = link.streams.get() == 0 && link.used.replace(true);
        link.streams.set(link.streams.get() + 1);
        Place { link: link.clone(), was_idle }
    }

    pub fn sender(&self) -> SendRequest<Bytes> {
        self.link.send.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.link.streams.set(self.link.streams.get() - 1);
        self.link.idle.set(Instant::now());
    }
}

impl Links {
    pub fn new(address: SocketAddr) -> Rc<Links> {
        Rc::new(Links { address, all: RefCell::default(), opening: RefCell::default() })
    }

    /// A stream on one that has room; the first of them, so that the others may become idle.
    pub fn reuse(&self) -> Option<Stream> {
        let mut all = self.all.borrow_mut();
        // It has closed, or says that it will.
        all.retain(|link| link.is_open());
        let link = all.iter().find(|link| link.has_room())?;
        Some(Stream::of_instance(Place::new(link), self.address))
    }

    /// A stream on one that has room by then.
    pub async fn connect(self: &Rc<Links>) -> io::Result<Stream> {
        loop {
            let mut opening = self.opening();
            let opened = match opening.wait_for(Option::is_some).await {
                Ok(opened) => *opened,
                Err(_) => None,
            };
            opened.unwrap_or(Err(io::ErrorKind::ConnectionAborted))?;
            if let Some(stream) = self.reuse() {
                return Ok(stream);
            }
        }
    }

    /// The one that is being opened; nobody's going away ends that for the others.
    fn opening(self: &Rc<Links>) -> watch::Receiver<Option<Opened>> {
        let mut opening = self.opening.borrow_mut();
        if let Some(opening) = &*opening {
            return opening.clone();
        }
        let (tell, told) = watch::channel(None);
        *opening = Some(told.clone());
        let links = self.clone();
        tokio::task::spawn_local(async move {
            let opened = timeout(OPENS_WITHIN, Link::open(links.address)).await;
            let opened = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let opened = opened.map(|link| links.all.borrow_mut().push(Rc::new(link)));
            *links.opening.borrow_mut() = None;
            tell.send_replace(Some(opened.map_err(|error| error.kind())));
        });
        told
    }

    /// Closes those that were idle for too long, and those at whose end nobody is.
    pub fn sweep(&self, now: Instant) {
        self.all.borrow_mut().retain(|link| {
            if link.streams.get() == 0 {
                return now.saturating_duration_since(link.idle.get()) <= IDLE_FOR;
            }
            let there = link.pulse.borrow_mut().beats(link.heard.get(), now);
            if !there {
                tracing::debug!(address = %self.address, "nobody answers a ping");
                link.driver.abort();
            }
            there
        });
    }
}

impl Link {
    async fn open(address: SocketAddr) -> io::Result<Link> {
        let socket = socket::connect(address).await?;
        let heard = Rc::new(Cell::new(0));
        let io = Heard { socket, bytes: heard.clone() };
        let none = |_| io::Error::from(io::ErrorKind::InvalidData);
        let (send, mut connection) = Builder::new()
            .enable_push(false)
            // A request more than it bears would be refused: none before it has said how many.
            .initial_max_send_streams(0)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEAD_MAX)
            .max_send_buffer_size(SEND_MAX)
            .handshake::<_, Bytes>(io)
            .await
            .map_err(none)?;
        poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(_) => Poll::Ready(Err(io::ErrorKind::InvalidData)),
            Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await?;
        let now = Instant::now();
        let pulse = Pulse { ping: connection.ping_pong(), heard: 0, since: now, asked: None };
        let driver = tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "a connection to an instance ended");
            }
        });
        Ok(Link {
            send,
            streams: Cell::new(0),
            used: Cell::new(false),
            idle: Cell::new(now),
            heard,
            pulse: RefCell::new(pulse),
            driver: driver.abort_handle(),
        })
    }

    fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.send.clone().poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    fn has_room(&self) -> bool {
        self.streams.get() < self.send.current_max_send_streams().min(STREAMS_MAX)
    }
}

impl Pulse {
    /// `false`: it was asked and nothing came.
    fn beats(&mut self, heard: u64, now: Instant) -> bool {
        if heard != self.heard {
            (self.heard, self.since) = (heard, now);
        }
        if let Some((at, by_then)) = self.asked {
            if heard == by_then {
                return now.saturating_duration_since(at) < PONG_WITHIN;
            }
            let waited = now.saturating_duration_since(at) >= PING_AGAIN;
            if waited || heard > by_then + PONG_BYTES {
                self.asked = None;
            }
        }
        if self.asked.is_none()
            && now.saturating_duration_since(self.since) >= SILENT_FOR
            && let Some(ping) = &mut self.ping
        {
            // The answer to the last one is still there to be taken.
            let _ = ping.poll_pong(&mut Context::from_waker(Waker::noop()));
            if ping.send_ping(Ping::opaque()).is_ok() {
                self.asked = Some((now, heard));
            }
        }
        true
    }
}

/// A socket that counts what came.
struct Heard {
    socket: TcpStream,
    bytes: Rc<Cell<u64>>,
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = room.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, room))?;
        let came = (room.filled().len() - before) as u64;
        self.bytes.set(self.bytes.get() + came);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
