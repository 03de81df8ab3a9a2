//! Carries bytes between a client and a backend until one of them ends.
//!
//! Written as one future over both directions instead of two tasks: a message then costs one wake,
//! one read and one write. All relays of a thread read into the same buffer and write from it at
//! once, so that an idle connection holds none; only what the other side would not take is kept.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::snapshot::Counters;
use crate::socket;

/// Large enough for bulk transfers to be few system calls, small enough to stay in the cache.
const BUFFER: usize = 64 * 1024;

thread_local! {
    static BUFFER_OF_THREAD: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// A connected pair. Dropped before its end (a cut), it resets the backend's side and closes the
/// client's; what was already sent to the client still arrives.
pub struct Relay {
    client: TcpStream,
    backend: TcpStream,
    up: Direction,
    down: Direction,
    counters: Arc<Counters>,
    ended: bool,
}

#[derive(Default)]
struct Direction {
    /// Read, but not taken by the other side: from `sent` on.
    rest: Vec<u8>,
    sent: usize,
    /// The source has ended.
    ended: bool,
    /// The end was passed on.
    closed: bool,
}

impl Relay {
    /// `first` is what was already read from the client.
    pub fn new(
        client: TcpStream,
        backend: TcpStream,
        first: Vec<u8>,
        counters: Arc<Counters>,
    ) -> Self {
        counters.bytes_in.fetch_add(first.len() as u64, Ordering::Relaxed);
        let up = Direction { rest: first, ..Direction::default() };
        Relay { client, backend, up, down: Direction::default(), counters, ended: false }
    }
}

impl Future for Relay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        BUFFER_OF_THREAD.with_borrow_mut(|buffer| {
            let up = this.up.carry(
                cx,
                buffer,
                &mut this.client,
                &mut this.backend,
                &this.counters.bytes_in,
            );
            let down = this.down.carry(
                cx,
                buffer,
                &mut this.backend,
                &mut this.client,
                &this.counters.bytes_out,
            );
            match (up, down) {
                // A server process that has closed its side is gone: nothing can reach it any more,
                // and a client that does not notice must not keep its place here.
                (_, Poll::Ready(Ok(()))) => {
                    this.ended = true;
                    Poll::Ready(())
                }
                // Broken on either side: dropping closes both.
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => Poll::Ready(()),
                // A client may end its side and still want the answer.
                (Poll::Ready(Ok(())) | Poll::Pending, Poll::Pending) => Poll::Pending,
            }
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.ended {
            socket::reset_on_close(&self.backend);
        }
    }
}

impl Direction {
    /// Moves what can be moved now. Ready when the source has ended and the sink knows, or when
    /// either is broken. Fair to other connections: tokio ends a task's turn after some operations.
    fn carry(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        source: &mut TcpStream,
        sink: &mut TcpStream,
        carried: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        loop {
            while self.sent < self.rest.len() {
                let taken = ready!(Pin::new(&mut *sink).poll_write(cx, &self.rest[self.sent..]))?;
                if taken == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.sent += taken;
            }
            if self.ended {
                if !self.closed {
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx))?;
                    self.closed = true;
                }
                return Poll::Ready(Ok(()));
            }
            self.rest.clear();
            self.sent = 0;

            let mut room = ReadBuf::new(buffer);
            match Pin::new(&mut *source).poll_read(cx, &mut room) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    // Idle again: what bulk needed is given back.
                    self.rest = Vec::new();
                    return Poll::Pending;
                }
            }
            let read = room.filled();
            if read.is_empty() {
                self.ended = true;
                continue;
            }
            carried.fetch_add(read.len() as u64, Ordering::Relaxed);
            match Pin::new(&mut *sink).poll_write(cx, read) {
                Poll::Ready(Ok(taken)) => self.rest.extend_from_slice(&read[taken..]),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => self.rest.extend_from_slice(read),
            }
        }
    }
}
