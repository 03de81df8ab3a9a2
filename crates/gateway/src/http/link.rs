//! Connections in HTTP/2 to one instance, of one thread. Each carries many requests: as many at once
//! as the instance bears. There is another one as soon as those there are carry so many.

use super::backend::{FRESH, IDLE_FOR, Need};
use super::stream::Stream;
use crate::socket;
use bytes::Bytes;
use everhold_core::http::pulse::{Beat, Heard, Pulse};
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong, Reason};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
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
    came: Rc<Came>,
    /// How much had come when it was last called in doubt: it was taken after a rest, or left a request
    /// without a word. What comes then proves it.
    doubted: Cell<Option<u64>>,
    said: Cell<u64>,
    pongs: Cell<u64>,
    pulse: Cell<Pulse>,
    ping: RefCell<Option<PingPong>>,
    driver: AbortHandle,
    /// The driver's.
    socket: Weak<RefCell<TcpStream>>,
}

/// What came on a connection, and when the last of it did.
struct Came {
    bytes: Cell<u64>,
    at: Cell<Instant>,
}

/// A request's place on a connection, for as long as this lives.
pub struct Place {
    link: Rc<Link>,
    /// How much had come on the connection when this began.
    came: u64,
    /// The connection was in doubt then: it may have been closed already.
    pub in_doubt: bool,
}

impl Place {
    fn new(link: &Rc<Link>) -> Place {
        let came = link.came.bytes.get();
        if link.streams.get() == 0 && link.used.replace(true) {
            link.doubted.set(Some(came));
        }
        link.streams.set(link.streams.get() + 1);
        Place { link: link.clone(), came, in_doubt: !link.is_proven() }
    }

    pub fn sender(&self) -> SendRequest<Bytes> {
        self.link.send.clone()
    }

    /// A head of an answer came, or a piece of one.
    pub fn said(&self) {
        self.link.said.set(self.link.said.get() + 1);
    }

    /// The instance ended the connection since too much was asked on it. Servers of gRPC say that of
    /// pings, others of requests that are given up: what it was to answer tells nothing of how it does.
    pub fn is_calmed(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Err(error)) = self.sender().poll_ready(&mut cx) else { return false };
        let calm = error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
        error.is_go_away() && error.is_remote() && calm
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Link { streams, came, doubted, .. } = &*self.link;
        streams.set(streams.get() - 1);
        if came.bytes.get() == self.came {
            doubted.set(Some(self.came));
        }
    }
}

impl Links {
    pub fn new(address: SocketAddr) -> Rc<Links> {
        Rc::new(Links { address, all: RefCell::default(), opening: RefCell::default() })
    }

    /// A stream on one that has room; the first of them, so that the others may become idle.
    pub fn reuse(&self, need: Need, now: Instant) -> Option<Stream> {
        let mut found = None;
        self.all.borrow_mut().retain(|link| {
            let open = link.is_open();
            if found.is_none() && open && link.has_room() && link.is_fit(need, now) {
                found = Some(Place::new(link));
            }
            // One that says that it will close still owes what it has begun.
            open || link.streams.get() > 0
        });
        Some(Stream::of_instance(found?, self.address))
    }

    /// A stream on one that has room by then.
    pub async fn connect(self: &Rc<Links>, need: Need) -> io::Result<Stream> {
        loop {
            let mut opening = self.opening();
            let opened = match opening.wait_for(Option::is_some).await {
                Ok(opened) => *opened,
                Err(_) => None,
            };
            opened.unwrap_or(Err(io::ErrorKind::ConnectionAborted))?;
            if let Some(stream) = self.reuse(need, Instant::now()) {
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

    /// Closes those that were idle for too long, and those at whose end nobody is: a look at their
    /// [`Pulse`].
    pub fn sweep(&self, now: Instant) {
        self.all.borrow_mut().retain(|link| {
            if link.streams.get() == 0 {
                return link.is_open() && link.is_fit(Need::Good, now);
            }
            let mut pulse = link.pulse.get();
            let beat = pulse.look(link.heard());
            match beat {
                Beat::Steady => {}
                Beat::Ask => link.ask(),
                Beat::Gone => {
                    tracing::debug!(address = %self.address, "nobody answers a ping");
                    link.driver.abort();
                }
            }
            link.pulse.set(pulse);
            beat != Beat::Gone
        });
    }
}

impl Link {
    async fn open(address: SocketAddr) -> io::Result<Link> {
        let socket = Rc::new(RefCell::new(socket::connect(address).await?));
        let came = Rc::new(Came { bytes: Cell::new(0), at: Cell::new(Instant::now()) });
        let of_link = Rc::downgrade(&socket);
        let io = Counted { socket, came: came.clone() };
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
        let ping = RefCell::new(connection.ping_pong());
        let driver = tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "a connection to an instance ended");
            }
        });
        Ok(Link {
            send,
            streams: Cell::new(0),
            used: Cell::new(false),
            came,
            doubted: Cell::new(None),
            said: Cell::new(0),
            pongs: Cell::new(0),
            pulse: Cell::default(),
            ping,
            driver: driver.abort_handle(),
            socket: of_link,
        })
    }

    fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.send.clone().poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    fn has_room(&self) -> bool {
        self.streams.get() < self.send.current_max_send_streams().min(STREAMS_MAX)
    }

    /// Whether it is as good as that. One that carries requests is, unless it is in doubt: what ends it
    /// ends those, too. Any other is as good as what was last heard of it is new.
    fn is_fit(&self, need: Need, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.came.at.get());
        self.streams.get() > 0 && self.is_proven()
            || match (need, self.used.get()) {
                (Need::Good, _) => age <= IDLE_FOR,
                (Need::Fresh, true) => age <= FRESH && !self.has_spoken(),
                (Need::New, true) => false,
                // What it says now belongs to its greeting.
                (Need::Fresh | Need::New, false) => age <= FRESH,
            }
    }

    fn is_proven(&self) -> bool {
        self.doubted.get().is_none_or(|by_then| self.came.bytes.get() > by_then)
    }

    /// Whether anything came that was not looked at, as an end or a word that it will.
    fn has_spoken(&self) -> bool {
        self.socket.upgrade().is_none_or(|it| socket::has_spoken(&it.borrow()))
    }

    /// All that came so far; takes the answer to a question, or there could not be another one.
    fn heard(&self) -> Heard {
        let mut cx = Context::from_waker(Waker::noop());
        let answered = self.ping.borrow_mut().as_mut().map(|ping| ping.poll_pong(&mut cx));
        if let Some(Poll::Ready(Ok(_))) = answered {
            self.pongs.set(self.pongs.get() + 1);
        }
        Heard { bytes: self.came.bytes.get(), said: self.said.get(), pongs: self.pongs.get() }
    }

    /// Asks whether anybody is there.
    fn ask(&self) {
        if let Some(ping) = &mut *self.ping.borrow_mut() {
            // It can't only if the connection has ended, and then it says nothing either.
            let _ = ping.send_ping(Ping::opaque());
        }
    }
}

/// A socket that counts what came.
struct Counted {
    socket: Rc<RefCell<TcpStream>>,
    came: Rc<Came>,
}

impl AsyncRead for Counted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = room.filled().len();
        ready!(Pin::new(&mut *self.socket.borrow_mut()).poll_read(cx, room))?;
        let count = (room.filled().len() - before) as u64;
        if count > 0 {
            self.came.bytes.set(self.came.bytes.get() + count);
            self.came.at.set(Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.socket.borrow_mut()).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.socket.borrow_mut()).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.socket.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.socket.borrow_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener};
    use std::sync::mpsc;
    use std::thread;
    use tokio::runtime::Builder;
    use tokio::task::LocalSet;

    /// An instance that agrees to each connection, and at the word closes it; then it says so.
    fn instance(word: mpsc::Receiver<()>, closed: mpsc::Sender<()>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                socket.read_exact(&mut [0; 24]).unwrap();
                socket.write_all(b"\0\0\0\x04\0\0\0\0\0").unwrap();
                let Ok(()) = word.recv() else { return };
                socket.shutdown(Shutdown::Write).unwrap();
                closed.send(()).unwrap();
            }
        });
        address
    }

    /// The end is there, and the connection's task has not come to see it.
    #[test]
    fn what_must_not_be_repeated_takes_no_connection_that_has_just_ended() {
        let ((say, word), (tell, closed)) = (mpsc::channel(), mpsc::channel());
        let address = instance(word, tell);
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let links = Links::new(address);
            drop(links.connect(Need::Fresh).await.unwrap());
            // What its greeting came with.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = Instant::now();
            assert!(links.reuse(Need::Fresh, now).is_some());
            assert!(links.reuse(Need::New, now).is_none(), "it has been idle");
            assert!(links.reuse(Need::Good, now + FRESH * 2).is_some());
            assert!(links.reuse(Need::Fresh, now + FRESH * 2).is_none());
            assert!(links.reuse(Need::Good, now + IDLE_FOR * 2).is_none());
            say.send(()).unwrap();
            closed.recv().unwrap();
            assert!(links.reuse(Need::Good, now).is_some(), "nobody has looked");
            assert!(links.reuse(Need::Fresh, now).is_none());
        });
    }
}
