//! One direction of a message: head and body from one side to the other, with back-pressure: nothing
//! is read before what was read is written.

use super::body::{Decoder, Framing, Malformed, Step};
use super::buf::{Buf, SIZE};
use super::cache::Fill;
use super::io::Io;
use super::trailers;
use std::io;
use std::task::{Context, Poll, ready};

/// Why a body did not get across.
#[derive(Debug)]
pub enum FlowError {
    /// Who says it broke off.
    From,
    Malformed(Malformed),
    /// Who it is for does not take it.
    To(io::Error),
}

/// A message on its way.
pub struct Flow {
    decoder: Decoder,
    /// It goes out in chunks.
    chunks: bool,
    /// Goes out before anything else: the head, and what is encoded.
    pub out: Vec<u8>,
    at: usize,
    /// The last chunk is in `out`.
    ended: bool,
    /// Bytes of the body that were written, or are in `out`.
    pub bytes: u64,
    flushed: bool,
    /// What is written stays in the buffer, while there is room: the request may be sent again.
    pub hold: bool,
    held: usize,
    /// Something of the body was taken.
    touched: bool,
    /// It waits for who says it, not for who it is for.
    starved: bool,
    /// Gets a copy of the body.
    pub fill: Option<Box<Fill>>,
}

impl Default for Flow {
    fn default() -> Flow {
        Flow {
            decoder: Decoder::new(Framing::None),
            chunks: false,
            out: Vec::new(),
            at: 0,
            ended: true,
            bytes: 0,
            flushed: true,
            hold: false,
            held: 0,
            touched: false,
            starved: false,
            fill: None,
        }
    }
}

impl Flow {
    /// Begins with a body of that framing; `out` is what goes before it.
    pub fn begin(&mut self, framing: Framing, chunks: bool) {
        self.decoder = Decoder::new(framing);
        self.chunks = chunks;
        self.out.clear();
        (self.at, self.bytes, self.held) = (0, 0, 0);
        (self.touched, self.starved) = (false, false);
        (self.ended, self.flushed, self.hold) = (false, false, false);
    }

    /// Nothing is on its way, and its memory is kept.
    pub fn clear(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        *self = Flow { out, ..Flow::default() };
    }

    /// Everything was handed over.
    pub fn is_over(&self) -> bool {
        self.ended && self.flushed && self.at == self.out.len()
    }

    /// Who says it has nothing to say for now.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// All of the body that came is still where it came in.
    pub fn is_whole(&self) -> bool {
        !self.touched
    }

    /// Some of what goes out before anything else was written, and not all of it.
    pub fn is_halfway(&self) -> bool {
        self.at > 0
    }

    /// Nothing of the body came.
    pub fn is_untouched(&self) -> bool {
        self.bytes == 0 && !self.touched
    }

    /// Others than who it is for wait for all of it.
    pub fn is_followed(&self) -> bool {
        self.fill.as_ref().is_some_and(|fill| fill.is_followed())
    }

    /// Who says it has said all.
    pub fn is_read(&self) -> bool {
        self.decoder.is_over()
    }

    /// Carries what there is, until all is across.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: (&mut Io, &mut Buf),
        to: &mut Io,
    ) -> Poll<Result<(), FlowError>> {
        let (from_io, from_buf) = from;
        self.starved = false;
        loop {
            if self.at < self.out.len() && (self.ended || self.out.len() >= SIZE) {
                ready!(self.poll_out(cx, to))?;
                continue;
            }
            if self.ended {
                if !self.flushed {
                    ready!(to.poll_finish(cx)).map_err(FlowError::To)?;
                    self.flushed = true;
                }
                return Poll::Ready(Ok(()));
            }
            // A step may be taken once only: what delimits is read by it.
            match self.step(from_buf)? {
                // What goes out as it came in is written from where it came in.
                Step::Data(count) if !self.chunks => {
                    let head = &self.out[self.at..];
                    let body = &from_buf.data()[self.held..][..count];
                    to.ends_with_next(self.decoder.left() == Some(count as u64));
                    let written = ready!(to.poll_write(cx, head, body)).map_err(FlowError::To)?;
                    let of_head = written.min(head.len());
                    self.wrote(of_head);
                    self.take(from_buf, written - of_head);
                }
                Step::Data(count) => {
                    self.out.extend_from_slice(format!("{count:x}\r\n").as_bytes());
                    self.out.extend_from_slice(&from_buf.data()[self.held..][..count]);
                    self.out.extend_from_slice(b"\r\n");
                    self.take(from_buf, count);
                }
                Step::Drop(count) => {
                    self.touched = true;
                    from_buf.consume(count);
                }
                Step::Trailers(count) => {
                    self.end(&from_buf.data()[..count - 2], to);
                    from_buf.consume(count);
                }
                Step::Over => self.end(&from_io.trailers(), to),
                Step::More => {
                    // Before waiting, what is there goes out.
                    if self.at < self.out.len() {
                        ready!(self.poll_out(cx, to))?;
                        continue;
                    }
                    if from_buf.is_full() {
                        self.let_go(from_buf);
                        self.touched = true;
                    }
                    let read = from_io.poll_read(cx, from_buf).map_err(|_| FlowError::From)?;
                    let Poll::Ready(count) = read else {
                        ready!(to.poll_flush(cx)).map_err(FlowError::To)?;
                        self.starved = true;
                        return Poll::Pending;
                    };
                    if count == 0 {
                        self.decoder.end().map_err(FlowError::Malformed)?;
                    }
                }
            }
        }
    }

    fn poll_out(&mut self, cx: &mut Context<'_>, to: &mut Io) -> Poll<Result<(), FlowError>> {
        let written =
            ready!(to.poll_write(cx, &self.out[self.at..], &[])).map_err(FlowError::To)?;
        self.wrote(written);
        Poll::Ready(Ok(()))
    }

    fn step(&mut self, from: &Buf) -> Result<Step, FlowError> {
        self.decoder.step(&from.data()[self.held..]).map_err(FlowError::Malformed)
    }

    fn wrote(&mut self, count: usize) {
        self.at += count;
        if self.at == self.out.len() {
            self.out.clear();
            self.at = 0;
        }
    }

    fn take(&mut self, from: &mut Buf, count: usize) {
        if let Some(fill) = &mut self.fill
            && !fill.add(&from.data()[self.held..][..count])
        {
            self.fill = None;
        }
        self.decoder.took(count);
        self.bytes += count as u64;
        match self.hold {
            true => self.held += count,
            false => {
                self.touched = true;
                from.consume(count);
            }
        }
    }

    /// What was held is not sent again.
    pub fn let_go(&mut self, from: &mut Buf) {
        from.consume(std::mem::take(&mut self.held));
        self.hold = false;
    }

    fn end(&mut self, trailers: &[u8], to: &mut Io) {
        self.ended = true;
        // They would not be given again.
        if let Some(fill) = self.fill.take_if(|_| !trailers.is_empty()) {
            fill.give_up();
        }
        if self.chunks {
            self.out.extend_from_slice(b"0\r\n");
            trailers::append(&mut self.out, trailers);
            self.out.extend_from_slice(b"\r\n");
        } else {
            to.trail(trailers);
        }
    }
}

impl From<io::Error> for FlowError {
    fn from(error: io::Error) -> FlowError {
        FlowError::To(error)
    }
}
