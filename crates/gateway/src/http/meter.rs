//! Looks at the frames of a client's connection of HTTP/2 as they pass, and says when it has had too
//! much done for nothing.

use super::streams::Begun;
use everhold_core::http::flood::Score;
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Whether a connection is to be ended.
#[derive(Default)]
pub struct Calm {
    wanted: Cell<bool>,
    told: Notify,
}

impl Calm {
    pub fn want(&self) {
        if !self.wanted.replace(true) {
            self.told.notify_one();
        }
    }

    pub fn is_wanted(&self) -> bool {
        self.wanted.get()
    }

    /// Returns when it is.
    pub async fn wanted(&self) {
        if !self.is_wanted() {
            self.told.notified().await;
        }
    }
}

pub struct Metered {
    io: Begun,
    /// Of many clients, of whom one must not end it for all.
    shared: bool,
    score: Score,
    begun: Instant,
    calm: Rc<Calm>,
}

impl Metered {
    /// A connection before its preface.
    pub fn new(io: Begun, shared: bool, calm: Rc<Calm>) -> Metered {
        Metered { io, shared, score: Score::new(0), begun: Instant::now(), calm }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Metered { io, shared, score, begun, calm } = self.get_mut();
        // Whoever ends it was told.
        if calm.is_wanted() {
            return Poll::Pending;
        }
        let before = room.filled().len();
        ready!(Pin::new(io).poll_read(cx, room))?;
        if !*shared
            && score.asked(&room.filled()[before..])
            && score.is_too_much(begun.elapsed().as_millis() as u64)
        {
            calm.want();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Metered { io, score, .. } = self.get_mut();
        let written = ready!(Pin::new(io).poll_write(cx, data))?;
        score.said(&data[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Metered { io, score, .. } = self.get_mut();
        let written = ready!(Pin::new(io).poll_write_vectored(cx, data))?;
        let mut left = written;
        for part in data {
            let count = left.min(part.len());
            score.said(&part[..count]);
            left -= count;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
