//! The listening sockets of a gateway, from the process that has them to the one that succeeds it.
//!
//! They talk over a socket beside the node file, which only the gateway's own user may open. Each word
//! is a length (32 bits, big endian) and JSON:
//!
//! ```text
//! new: take       old: offer, with its table, and then its sockets
//!                 new: hears the agents and checks the instances; the old one serves
//! new: ready      old: stops accepting, and says last, its newest table
//! new: accepts, and says serving
//!                 old: leaves its clients
//! ```
//!
//! The sockets are the same ones in both processes, so at no moment is there none, and what is queued
//! on them is lost with neither. A connection that ends before `serving` means that the new one came
//! to nothing: the old one goes on. An old one that does not answer is ended by the new one.

use super::draining::{Mark, others};
use crate::children::end_process;
use crate::plain::gateway::Port;
use everhold_core::records::{decode, encode};
use everhold_core::route::RouteTable;
use everhold_gateway::Gateway;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Of the socket, beside the node file.
const SOCKET: &str = "handover";
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

/// Waits on a thread of its own for a successor. The answer comes when one serves: this process is
/// marked as draining then, and accepts nothing any more.
pub fn wait(dir: &Path, desk: Desk) -> io::Result<oneshot::Receiver<Mark>> {
    let (path, new) = (dir.join(SOCKET), dir.join(format!("{SOCKET}.new")));
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    let (over, told) = oneshot::channel();
    let dir = dir.to_path_buf();
    let has = Arc::new(Mutex::new(Some((desk, over))));
    let run = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(AGAIN);
                continue;
            };
            // Who comes while another is served, or once all is given away, tries again later.
            let Some((desk, over)) = lock(&has).take() else { continue };
            let (dir, has) = (dir.clone(), has.clone());
            std::thread::spawn(move || match hand_over(stream, &dir, &desk) {
                // Nobody hears it only if the process ends.
                Ok(mark) => drop(over.send(mark)),
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
    let Word::Serving = hear(&mut stream, WORD_WITHIN)? else { return Err(unexpected()) };
    Ok(mark)
}

/// What was taken over from a process that still serves.
pub struct Taken {
    stream: UnixStream,
    pub sockets: Vec<TcpListener>,
    /// `None`: its form is newer than this version.
    pub table: Option<RouteTable>,
}

/// Takes over what a process that serves from that directory has. `None`: there is nobody any more.
pub async fn take(dir: &Path) -> Option<Taken> {
    let until = Instant::now() + FREE_WITHIN;
    while Instant::now() < until {
        let path = dir.join(SOCKET);
        let taken = tokio::task::spawn_blocking(move || ask(&path)).await;
        match taken.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(taken) => return Some(taken),
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => break,
                ErrorKind::WouldBlock | ErrorKind::TimedOut => break,
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

fn ask(path: &Path) -> io::Result<Taken> {
    let mut stream = UnixStream::connect(path)?;
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
    Ok(Taken { stream, sockets, table: read(&table) })
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
    pub fn serving(mut self) -> io::Result<()> {
        say(&mut self.stream, &Word::Serving)
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
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&text)
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
