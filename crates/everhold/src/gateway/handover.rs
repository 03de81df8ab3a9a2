//! The listening sockets of a gateway, from the process that has them to the one that succeeds it.
//!
//! They talk over a socket beside the node file, which only the gateway's own user may open. Each word
//! is a length (32 bits, big endian) and JSON:
//!
//! ```text
//! new: take       old: offer, with its table, and then its sockets
//!                 new: hears the agents and checks the instances; the old one serves
//! new: ready      old: stops accepting, and says last, its newest table
//! new: serving, and accepts
//!                 old: leaves its clients
//! ```
//!
//! The sockets are the same ones in both processes, so at no moment is there none, and what is queued
//! on them is lost with neither. A connection that ends before `serving` means that the other one came
//! to nothing: the old one goes on; the new one only if the old one's process is gone. An old one that
//! does not answer is ended by the new one.

use super::draining::{Mark, others};
use crate::children::{end_process, gateways};
use crate::layout::HANDOVER;
use crate::own_socket::OwnSocket;
use crate::plain::gateway::Port;
use everhold_core::records::{decode, encode};
use everhold_core::route::RouteTable;
use everhold_gateway::Gateway;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown as Ends, recv, recvmsg, sendmsg, shutdown, sockopt,
};
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// For the next word of a process that has nothing to wait for. It has a thread of its own for it.
const WORD_WITHIN: Duration = Duration::from_secs(5);
/// For a new process to be ready: it takes [`super::WARM_UP_MAX`] and its start.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// A table of ten thousand instances is two of these.
const WORD_BYTES_MAX: u32 = 64 << 20;
/// Descriptors of one message; the kernel takes 253.
const AT_ONCE: usize = 64;
/// No gateway has so many listeners.
const SOCKETS_MAX: usize = 10_000;
/// For another new process, which the old one is occupied with, to be ready or to come to nothing.
const FREE_WITHIN: Duration = Duration::from_secs(40);
const AGAIN: Duration = Duration::from_millis(200);
/// For a process that serves to have its own socket open.
const OPENS_WITHIN: Duration = Duration::from_secs(1);
/// For a process that was killed to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Take,
    Offer { sockets: usize, table: String },
    Ready,
    Last { table: String },
    Serving,
}

/// What a process has to hand over.
pub struct Desk {
    pub gateway: Arc<Gateway>,
    pub tables: watch::Receiver<Arc<RouteTable>>,
    pub port: Port,
}

/// Where successors will ask. It is found when it is opened.
pub fn bind(dir: &Path) -> io::Result<OwnSocket> {
    OwnSocket::bind(&dir.join(HANDOVER))
}

/// Waits on a thread of its own for a successor. The answer comes when one serves: this process is
/// marked as draining then, and accepts nothing any more.
pub fn wait(listener: UnixListener, dir: &Path, desk: Desk) -> io::Result<oneshot::Receiver<Mark>> {
    let (over, told) = oneshot::channel();
    let dir = dir.to_path_buf();
    let has = Arc::new(Mutex::new(Some((desk, over))));
    let listener = Arc::new(listener);
    let run = move || {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                // All is given away.
                Err(error) if error.kind() == ErrorKind::InvalidInput => return,
                Err(_) => {
                    std::thread::sleep(AGAIN);
                    continue;
                }
            };
            // Who comes while another is served tries again later.
            let Some((desk, over)) = lock(&has).take() else { continue };
            let (dir, has, listener) = (dir.clone(), has.clone(), listener.clone());
            std::thread::spawn(move || match hand_over(stream, &dir, &desk) {
                Ok(mark) => {
                    // Who asks here from now on is to learn at once that nobody serves.
                    if let Err(error) = shutdown(&*listener, Ends::Both) {
                        tracing::warn!(%error, "its socket stays open");
                    }
                    // Nobody hears it only if the process ends.
                    drop(over.send(mark));
                }
                Err(error) => {
                    tracing::warn!(%error, "nobody took over; this process goes on");
                    while let Err(error) = desk.gateway.accept() {
                        tracing::error!(%error, "it can't go on yet");
                        std::thread::sleep(AGAIN);
                    }
                    *lock(&has) = Some((desk, over));
                }
            });
        }
    };
    std::thread::Builder::new().name("handover".into()).spawn(run)?;
    Ok(told)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hand_over(mut stream: UnixStream, dir: &Path, desk: &Desk) -> io::Result<Mark> {
    if sockopt::socket_peercred(&stream)?.uid != rustix::process::geteuid() {
        return Err(ErrorKind::PermissionDenied.into());
    }
    stream.set_write_timeout(Some(WORD_WITHIN))?;
    let Word::Take = hear(&mut stream, WORD_WITHIN)? else { return Err(unexpected()) };
    let mut sockets = desk.gateway.sockets()?;
    sockets.extend(desk.port.socket());
    let table = || encode(&**desk.tables.borrow());
    say(&mut stream, &Word::Offer { sockets: sockets.len(), table: table() })?;
    sockets.chunks(AT_ONCE).try_for_each(|some| send(&stream, some))?;
    drop(sockets);
    let Word::Ready = hear(&mut stream, READY_WITHIN)? else { return Err(unexpected()) };
    let mark = Mark::new(dir, desk.gateway.connections())?;
    desk.gateway.pause();
    say(&mut stream, &Word::Last { table: table() })?;
    let word = hear(&mut stream, WORD_WITHIN).or_else(|_| {
        // It can't say it any more from here on, but it may have said it until now.
        stream.shutdown(Shutdown::Read)?;
        hear(&mut stream, WORD_WITHIN)
    });
    let Word::Serving = word? else { return Err(unexpected()) };
    Ok(mark)
}

/// What was taken over from a process that still serves.
pub struct Taken {
    stream: UnixStream,
    dir: PathBuf,
    /// The process that serves.
    pid: i32,
    pub sockets: Vec<TcpListener>,
    /// `None`: its form is newer than this version.
    pub table: Option<RouteTable>,
}

/// Takes over what a process that serves from that directory has. `None`: there is nobody any more.
pub async fn take(dir: &Path) -> Option<Taken> {
    Mark::forget(dir);
    let began = Instant::now();
    while began.elapsed() < FREE_WITHIN {
        let here = dir.to_path_buf();
        let taken = tokio::task::spawn_blocking(move || ask(here)).await;
        match taken.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(taken) => return Some(taken),
            Err(error) => match error.kind() {
                // One that has just succeeded another opens its own at once.
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    if began.elapsed() < OPENS_WITHIN && !others(dir).is_empty() => {}
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => break,
                ErrorKind::WouldBlock | ErrorKind::TimedOut => break,
                // The path is too long for a socket: nobody can wait there.
                ErrorKind::InvalidInput => break,
                _ => tracing::info!(%error, "the process that serves can't be succeeded yet"),
            },
        }
        tokio::time::sleep(AGAIN).await;
    }
    // It has the ports, and doesn't give them: frozen, or from before there was such a thing.
    for pid in others(dir) {
        tracing::warn!(pid, "the process that served does not hand over; it is ended");
        if tokio::time::timeout(GONE_WITHIN, end_process(pid, Duration::ZERO)).await.is_err() {
            tracing::error!(pid, "it does not end");
        }
    }
    None
}

fn ask(dir: PathBuf) -> io::Result<Taken> {
    let mut stream = UnixStream::connect(dir.join(HANDOVER))?;
    let pid = sockopt::socket_peercred(&stream)?.pid.as_raw_nonzero().get();
    stream.set_write_timeout(Some(WORD_WITHIN))?;
    say(&mut stream, &Word::Take)?;
    let Word::Offer { sockets: count, table } = hear(&mut stream, WORD_WITHIN)? else {
        return Err(unexpected());
    };
    if count > SOCKETS_MAX {
        return Err(unexpected());
    }
    let mut sockets = Vec::new();
    while sockets.len() < count {
        receive(&stream, &mut sockets)?;
    }
    Ok(Taken { stream, dir, pid, sockets, table: read(&table) })
}

impl Taken {
    /// The old process stops accepting; its last table.
    pub fn ready(&mut self) -> io::Result<Option<RouteTable>> {
        say(&mut self.stream, &Word::Ready)?;
        let Word::Last { table } = hear(&mut self.stream, WORD_WITHIN)? else {
            return Err(unexpected());
        };
        Ok(read(&table))
    }

    /// The old process may go.
    pub fn serving(&mut self) -> io::Result<()> {
        say(&mut self.stream, &Word::Serving)
    }

    /// Whether the old process has ended, so that nobody serves. An error: it goes on without this
    /// one.
    pub fn is_alone(&self) -> io::Result<bool> {
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(&self.stream, &mut byte, flags) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Ok((_, 1..)) => Ok(false),
            // Its sockets are closed after its memory is given back, with which its name goes.
            Ok(_) | Err(_) if gateways(&self.dir).contains(&self.pid) => {
                Err(io::Error::other("the process that serves has given this one up"))
            }
            Ok(_) | Err(_) => Ok(true),
        }
    }
}

fn read(table: &str) -> Option<RouteTable> {
    let table = decode(table);
    table.inspect_err(|why| tracing::warn!(%why, "the table of the old process can't be used")).ok()
}

fn unexpected() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "another word was expected")
}

fn say(stream: &mut UnixStream, word: &Word) -> io::Result<()> {
    let text = serde_json::to_vec(word)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    // At once: who stops hearing has all of it or nothing.
    stream.write_all(&[&length.to_be_bytes(), &text[..]].concat())
}

fn hear(stream: &mut UnixStream, within: Duration) -> io::Result<Word> {
    stream.set_read_timeout(Some(within))?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > WORD_BYTES_MAX {
        return Err(unexpected());
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// A byte that carries the sockets.
fn send(stream: &UnixStream, sockets: &[TcpListener]) -> io::Result<()> {
    let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("too many sockets for one message"));
    }
    sendmsg(stream, &[IoSlice::new(b".")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(stream: &UnixStream, sockets: &mut Vec<TcpListener>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut room = [IoSliceMut::new(&mut byte)];
    let message = recvmsg(stream, &mut room, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let before = sockets.len();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            for descriptor in descriptors {
                if !sockopt::socket_acceptconn(&descriptor)? {
                    return Err(unexpected());
                }
                sockets.push(TcpListener::from(descriptor));
            }
        }
    }
    if message.bytes == 0 || sockets.len() == before {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::route::ListenerRoute;
    use everhold_core::spec::Role;
    use everhold_gateway::Config;

    /// A gateway with one listener that waits for a successor, and where the listener is.
    fn serving(dir: &Path) -> (Arc<Gateway>, oneshot::Receiver<Mark>, std::net::SocketAddr) {
        let listener = ListenerRoute {
            bind: "127.0.0.1:0".parse().expect("an address"),
            service: "main".to_string(),
            role: Role::Primary,
            max_lag_ms: 0,
            epoch: 0,
            backends: Vec::new(),
            primary: None,
            all: Vec::new(),
        };
        let listeners = [("main".to_string(), listener)].into();
        let table = Arc::new(RouteTable { revision: 1, listeners, ..RouteTable::default() });
        let gateway = Gateway::start(Config::new(table.clone())).expect("a gateway");
        let gateway = Arc::new(gateway);
        let port = Port::closed();
        let desk = Desk { gateway: gateway.clone(), tables: watch::channel(table).1, port };
        let listener = bind(dir).and_then(OwnSocket::open).expect("a socket");
        let over = wait(listener, dir, desk).expect("it waits");
        let at = gateway.snapshot().listeners["main"].bind;
        (gateway, over, at)
    }

    fn accepts(gateway: &Gateway, at: std::net::SocketAddr) -> bool {
        let before = gateway.snapshot().listeners["main"].accepted;
        let _client = std::net::TcpStream::connect(at).expect("a socket is there");
        let until = Instant::now() + WORD_WITHIN;
        while gateway.snapshot().listeners["main"].accepted == before {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    #[test]
    fn who_has_given_all_away_can_not_be_asked_any_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let (gateway, over, _) = serving(dir.path());
        let mut taken = ask(dir.path().to_path_buf()).expect("taken");
        assert_eq!(taken.sockets.len(), 1);
        assert!(!taken.is_alone().expect("it is there"));
        assert!(taken.ready().expect("a last word").is_some());
        taken.serving().expect("said");
        let _mark = over.blocking_recv().expect("it is over");
        gateway.leave();
        // The successor died before it could be asked itself: the next one is not kept waiting.
        let asked = ask(dir.path().to_path_buf()).err().expect("nobody");
        assert_eq!(asked.kind(), ErrorKind::ConnectionRefused, "{asked}");
        // The process has ended, as far as who has its sockets can know.
        assert!(taken.is_alone().expect("nobody serves"));
    }

    #[test]
    fn who_is_too_late_does_not_serve_beside_the_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let (gateway, mut over, at) = serving(dir.path());
        let mut taken = ask(dir.path().to_path_buf()).expect("taken");
        taken.ready().expect("a last word");
        std::thread::sleep(WORD_WITHIN + Duration::from_secs(1));
        assert!(taken.serving().is_err(), "the old one serves again");
        assert!(accepts(&gateway, at));
        assert!(over.try_recv().is_err());
        assert!(ask(dir.path().to_path_buf()).is_ok(), "it can be asked again");
    }
}
