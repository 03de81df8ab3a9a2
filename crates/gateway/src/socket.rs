//! Socket options, and opening sockets with them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, sockopt};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpStream;

/// As many as can come back at once after a failover; the kernel caps it at `somaxconn`.
const BACKLOG: i32 = 4096;
/// A peer that vanished without a word is found after 30 + 3 × 10 s of silence: below the minutes
/// after which firewalls forget a connection, and rare enough to cost nothing.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Raises this process's bound on open files as far as it may: a connection takes two, and the
/// usual 1024 would end the service at five hundred.
/// How many there may be.
pub fn allow_many() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the number of open files");
    }
    let allowed = getrlimit(Resource::Nofile).current;
    allowed.map_or(usize::MAX, |it| usize::try_from(it).unwrap_or(usize::MAX))
}

/// Opens a listening socket. Without SO_REUSEPORT: with it a second gateway of the same user would
/// take half of the connections instead of getting "address in use".
pub fn listen(bind: SocketAddr) -> io::Result<TcpListener> {
    let family = if bind.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // A restarted gateway finds connections of its predecessor in TIME_WAIT.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &bind)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// For both sides of a connection: no delay for small messages, and a dead peer is found.
pub fn tune(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    sockopt::set_socket_keepalive(socket, true)?;
    Ok(())
}

/// Connects to a backend. The caller bounds the time.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // A connect to a port of this machine on which nobody listens can meet itself.
    if stream.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    tune(&stream)?;
    Ok(stream)
}

/// Makes the coming close a reset that also drops what the peer has not taken yet. To a frozen
/// primary that wakes up later, nothing of a cut session may still arrive.
pub fn reset_on_close(stream: impl AsFd) {
    // It can fail only for a socket that is already closed, which is what is wanted.
    let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

/// Whether anything came, or an end. The kernel is asked, and not what it said last.
pub fn has_spoken(socket: &TcpStream) -> bool {
    let seen = recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    seen != Err(Errno::AGAIN)
}
