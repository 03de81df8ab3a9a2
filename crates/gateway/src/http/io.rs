//! What a message's bytes come from and go to: a socket, TLS over one, or a stream of HTTP/2.

use super::stream::Stream;
use crate::socket;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::buf::Buf;

pub enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Stream(Box<Stream>),
    /// Nobody is there any more: all is taken, and nothing said.
    Nobody,
}

impl Io {
    /// Reads what there is room for. `Ready(0)`: the other side says no more.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut Buf) -> Poll<io::Result<usize>> {
        debug_assert!(!buf.is_full(), "nothing can be read into a full buffer");
        let mut room = ReadBuf::new(buf.room());
        let read = match self {
            Io::Plain(io) => Pin::new(io).poll_read(cx, &mut room),
            Io::Tls(io) => Pin::new(io).poll_read(cx, &mut room),
            Io::Stream(io) => io.poll_read(cx, &mut room),
            Io::Nobody => Poll::Pending,
        };
        let count = room.filled().len();
        // Also when nothing came: an idle connection has no buffer.
        buf.filled(count);
        read.map_ok(|()| count)
    }

    /// Writes what it takes of both, the first one first.
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        first: &[u8],
        then: &[u8],
    ) -> Poll<io::Result<usize>> {
        let both = [io::IoSlice::new(first), io::IoSlice::new(then)];
        let written = match (self, first, then) {
            (Io::Stream(io), [], then) => io.poll_write(cx, then),
            (Io::Stream(io), first, _) => io.poll_write(cx, first),
            (Io::Nobody, first, then) => Poll::Ready(Ok(first.len() + then.len())),
            (Io::Plain(io), [], one) | (Io::Plain(io), one, []) => Pin::new(io).poll_write(cx, one),
            (Io::Plain(io), _, _) => Pin::new(io).poll_write_vectored(cx, &both),
            (Io::Tls(io), [], one) | (Io::Tls(io), one, []) => Pin::new(io).poll_write(cx, one),
            (Io::Tls(io), _, _) => Pin::new(io).poll_write_vectored(cx, &both),
        };
        match written {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            other => other,
        }
    }

    /// Whether what is written next is all that is left: a stream ends with it.
    pub fn ends_with_next(&mut self, ends: bool) {
        match self {
            Io::Plain(_) | Io::Tls(_) | Io::Nobody => {}
            Io::Stream(io) => io.last = ends,
        }
    }

    /// What was written is on its way. Only TLS holds anything back.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Plain(_) | Io::Stream(_) | Io::Nobody => Poll::Ready(Ok(())),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    /// A message is over: a socket carries on, a stream ends, with the fields it was given.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Plain(_) | Io::Tls(_) | Io::Nobody => self.poll_flush(cx),
            Io::Stream(io) => Poll::Ready(io.finish()),
        }
    }

    /// Fields that came after the body, beside it.
    pub fn trailers(&self) -> Vec<u8> {
        match self {
            Io::Plain(_) | Io::Tls(_) | Io::Nobody => Vec::new(),
            Io::Stream(io) => io.trailers(),
        }
    }

    /// Fields that go after the body, where they don't go with it.
    pub fn trail(&mut self, trailers: &[u8]) {
        match self {
            Io::Plain(_) | Io::Tls(_) | Io::Nobody => {}
            Io::Stream(io) => io.trail(trailers),
        }
    }

    /// Says that no more comes.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
            Io::Stream(io) => Poll::Ready(io.finish()),
            Io::Nobody => Poll::Ready(Ok(())),
        }
    }

    /// Ready when the client has ended its side, or is gone, while it waits for an answer. What it says
    /// meanwhile is kept.
    pub fn poll_left(&mut self, cx: &mut Context<'_>, buf: &mut Buf) -> Poll<io::Result<()>> {
        if let Io::Plain(io) = self {
            // Without a buffer for nothing.
            ready!(io.poll_read_ready(cx))?;
        }
        while !buf.is_full() {
            if ready!(self.poll_read(cx, buf))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Pending
    }

    /// Makes the coming close one that can't be taken for an end.
    pub fn break_off(&mut self) {
        match self {
            Io::Plain(io) => socket::reset_on_close(io),
            Io::Tls(io) => socket::reset_on_close(io.get_ref().0),
            Io::Stream(io) => io.reset(),
            Io::Nobody => {}
        }
    }

    /// Whether anything came, or an end, while nobody was to say anything.
    /// `surely`: the kernel is asked, at the price of a system call, and not what it said last.
    pub fn has_spoken(&self, surely: bool) -> bool {
        let io = match self {
            Io::Plain(io) => io,
            Io::Tls(io) => io.get_ref().0,
            Io::Stream(_) | Io::Nobody => return false,
        };
        if surely {
            return socket::has_spoken(io);
        }
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if io.poll_read_ready(&mut cx).is_pending() {
            return false;
        }
        // Readiness may be left over from what was read.
        !matches!(io.try_read(&mut [0; 1]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}
