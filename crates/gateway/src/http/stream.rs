//! One stream of HTTP/2 as something that is read and written: its data alone. Heads go beside it.

use super::link::Place;
use super::request::{Request, push};
use super::{heads, trailers};
use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, response};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::ReadBuf;

/// Why an instance was asked nothing.
pub enum NotAsked {
    /// The request can't be said in HTTP/2.
    Unfit,
    /// The connection takes no more.
    Closed,
}

/// The data of both directions, and what comes after it.
#[derive(Default)]
pub struct Stream {
    /// Of a client's stream, before its answer has begun.
    respond: Option<SendResponse<Bytes>>,
    /// Of an instance's, before the head of its answer.
    answer: Option<ResponseFuture>,
    /// Where it is sent, of an instance's.
    place: Option<(Place, SocketAddr)>,
    /// `None`: nothing comes.
    receive: Option<RecvStream>,
    left: Bytes,
    /// `None`: its head has not gone out, or it said that nothing follows.
    send: Option<SendStream<Bytes>>,
    received: Option<HeaderMap>,
    to_send: Option<HeaderMap>,
    finished: bool,
    /// What is written next is all that is left.
    pub last: bool,
    /// Over TLS.
    pub secure: bool,
}

impl Stream {
    pub fn of_client(receive: RecvStream, respond: SendResponse<Bytes>, secure: bool) -> Stream {
        Stream { respond: Some(respond), receive: Some(receive), secure, ..Stream::default() }
    }

    /// One on which nothing was asked yet.
    pub fn of_instance(place: Place, address: SocketAddr) -> Stream {
        Stream { place: Some((place, address)), ..Stream::default() }
    }

    /// Its connection has carried others before and had rested: it may have been closed meanwhile.
    pub fn was_in_doubt(&self) -> bool {
        self.place.as_ref().is_some_and(|(place, _)| place.in_doubt)
    }

    /// The instance ended its connection since too much was asked on it.
    pub fn is_calmed(&self) -> bool {
        self.place.as_ref().is_some_and(|(place, _)| place.is_calmed())
    }

    /// Asks an instance; `bare`: no body follows.
    pub fn ask(&mut self, asked: &Request, bare: bool) -> Result<(), NotAsked> {
        let Some((place, address)) = &self.place else { return Err(NotAsked::Unfit) };
        let asked = heads::request(asked, *address).map_err(|_| NotAsked::Unfit)?;
        let (answer, send) =
            place.sender().send_request(asked, bare).map_err(|_| NotAsked::Closed)?;
        (self.answer, self.send, self.finished) = (Some(answer), Some(send), bare);
        Ok(())
    }

    /// The head of an instance's answer, or an interim one, and whether that is all.
    pub fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(response::Parts, bool), h2::Error>> {
        let Some(answer) = &mut self.answer else { return Poll::Pending };
        let said = || self.place.iter().for_each(|(place, _)| place.said());
        if let Poll::Ready(Some(interim)) = answer.poll_informational(cx) {
            said();
            return Poll::Ready(interim.map(|it| (it.into_parts().0, false)));
        }
        let (head, receive) = ready!(Pin::new(answer).poll(cx))?.into_parts();
        said();
        let over = receive.is_end_stream();
        (self.answer, self.receive) = (None, Some(receive));
        Poll::Ready(Ok((head, over)))
    }

    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.left.is_empty() {
            let Some(receive) = &mut self.receive else { return Poll::Ready(Ok(())) };
            match ready!(receive.poll_data(cx)) {
                Some(data) => {
                    self.left = data.map_err(broken)?;
                    self.place.iter().for_each(|(place, _)| place.said());
                }
                None => {
                    let trailers = ready!(receive.poll_trailers(cx)).map_err(broken)?;
                    self.received = trailers;
                    self.receive = None;
                }
            }
        }
        let data = self.left.split_to(self.left.len().min(room.remaining()));
        room.put_slice(&data);
        if let Some(receive) = &mut self.receive {
            // What is in our hands may be sent again: that is the back-pressure.
            receive.flow_control().release_capacity(data.len()).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Some(send) = &mut self.send else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let count = ready!(poll_room(cx, send, data.len()))?;
        self.finished = self.last && count == data.len();
        let data = Bytes::copy_from_slice(&data[..count]);
        send.send_data(data, self.finished).map_err(broken)?;
        Poll::Ready(Ok(count))
    }

    /// Writes all of what nobody writes to any more, without a copy, and ends with it.
    pub fn poll_give(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        while let Some(send) = self.send.as_mut().filter(|_| !data.is_empty()) {
            let count = ready!(poll_room(cx, send, data.len()))?;
            let part = data.split_to(count);
            self.finished = data.is_empty();
            send.send_data(part, self.finished).map_err(broken)?;
        }
        Poll::Ready(self.finish())
    }

    /// Tells an interim answer. One that can't be is no loss.
    pub fn inform(&mut self, status: u16, head: &[u8]) {
        if let Some(respond) = &mut self.respond {
            let _ = respond.send_informational(heads::response(status, head));
        }
    }

    /// Begins the answer with a canonical head; `bare`: nothing follows it.
    pub fn answer(&mut self, status: u16, head: &[u8], bare: bool) -> io::Result<()> {
        let Some(mut respond) = self.respond.take() else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let response = heads::response(status, head);
        let send = respond.send_response(response, bare).map_err(broken)?;
        self.finished = bare;
        self.send = Some(send);
        Ok(())
    }

    /// Says that this was all.
    pub fn finish(&mut self) -> io::Result<()> {
        let Some(send) = self.send.as_mut().filter(|_| !self.finished) else { return Ok(()) };
        self.finished = true;
        match self.to_send.take().filter(|it| !it.is_empty()) {
            Some(trailers) => send.send_trailers(trailers),
            None => send.send_data(Bytes::new(), true),
        }
        .map_err(broken)
    }

    /// The fields after what was received, as lines.
    pub fn trailers(&self) -> Vec<u8> {
        let mut lines = Vec::new();
        for (name, value) in self.received.iter().flatten() {
            push(&mut lines, name.as_str().as_bytes(), value.as_bytes());
        }
        lines
    }

    /// What goes after the data.
    pub fn trail(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let mut map = HeaderMap::new();
        trailers::each(lines, |name, value| {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
                map.append(name, value);
            }
        });
        self.to_send = Some(map);
    }

    /// Whether the other side wants no answer any more.
    pub fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match (&mut self.respond, &mut self.send) {
            (Some(respond), _) => respond.poll_reset(cx).map(drop),
            (None, Some(send)) if !self.finished => send.poll_reset(cx).map(drop),
            (None, _) => Poll::Pending,
        }
    }

    /// Ends without having said all.
    pub fn reset(&mut self) {
        if let Some(respond) = &mut self.respond {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
        }
        if let Some(send) = self.send.as_mut().filter(|_| !self.finished) {
            send.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    }
}

/// How much of so much the other side takes now.
fn poll_room(
    cx: &mut Context<'_>,
    send: &mut SendStream<Bytes>,
    length: usize,
) -> Poll<io::Result<usize>> {
    send.reserve_capacity(length);
    while send.capacity() == 0 {
        match ready!(send.poll_capacity(cx)) {
            Some(granted) => granted.map(drop).map_err(broken)?,
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
    Poll::Ready(Ok(send.capacity().min(length)))
}

pub fn broken(error: h2::Error) -> io::Error {
    match error.is_io() {
        true => error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
        false => io::Error::new(io::ErrorKind::ConnectionReset, error),
    }
}
