//! One request and its response, over as many tries as it takes.

use super::backend::Conn;
use super::body::{Decoder, Framing};
use super::buf::Buf;
use super::cache::Visit;
use super::flow::{Flow, FlowError};
use super::io::Io;
use super::ledger::Trail;
use super::request::{Method, Request, lines, tokens};
use super::response::Response;
use super::stream::{NotAsked, Stream, broken};
use super::timer::Timer;
use everhold_core::http::pace::Pace;
use everhold_core::http::retry::Body;
use h2::Reason;
use rustix::io::Errno;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// A client that has ended its side may have closed both: it is waited for so long that one that only
/// had no more to say, as scripts do, gets what an instance answers at once. nginx and HAProxy don't
/// wait.
pub const HALF_CLOSED_FOR: Duration = Duration::from_secs(1);
/// Interim answers to one request: a client that takes none must not have them pile up.
const INTERIM_MAX: u32 = 16;

/// A client's connection, or its stream, and the memory of what it is doing.
pub struct Client {
    pub io: Io,
    pub buf: Buf,
    pub request: Request,
    pub response: Response,
    pub up: Flow,
    pub down: Flow,
    pub timer: Timer,
    pub trail: Trail,
    pub visit: Visit,
    /// Bytes a second that it brings of a body, or takes of an answer.
    pub rate_min: u32,
}

impl Client {
    /// What it sends and gets is not read by others on its way here.
    pub fn is_secure(&self) -> bool {
        self.request.secure.unwrap_or(match &self.io {
            Io::Plain(_) | Io::Nobody => false,
            Io::Tls(_) => true,
            Io::Stream(stream) => stream.secure,
        })
    }

    /// What is left of the request's body, after a try.
    pub fn body(&self) -> Body {
        match self.request.framing {
            Framing::None | Framing::Length(0) => Body::None,
            _ if self.up.is_whole() => Body::Held,
            _ => Body::Consumed,
        }
    }

    /// Memory for a stream.
    pub fn take(&mut self, stream: Stream) {
        match &mut self.io {
            Io::Stream(io) => **io = stream,
            io @ (Io::Plain(_) | Io::Tls(_) | Io::Nobody) => *io = Io::Stream(Box::new(stream)),
        }
    }

    /// The same for another one, without anything of this one.
    pub fn clear(&mut self) {
        self.take(Stream::default());
        self.buf.consume(self.buf.data().len());
        self.up.clear();
        self.down.clear();
    }

    pub fn new(io: Io) -> Client {
        Client {
            io,
            buf: Buf::default(),
            request: Request::default(),
            response: Response::default(),
            up: Flow::default(),
            down: Flow::default(),
            timer: Timer::default(),
            trail: Trail::default(),
            visit: Visit::default(),
            rate_min: 0,
        }
    }
}

/// Whether a client that waits is still there.
#[derive(Default)]
pub struct Leaving(Option<Instant>);

impl Leaving {
    /// From when on it is gone, if it has ended its side or more.
    pub fn look(&mut self, cx: &mut Context<'_>, io: &mut Io, buf: &mut Buf) -> Option<Instant> {
        if let Io::Stream(stream) = io {
            return stream.poll_given_up(cx).is_ready().then(Instant::now);
        }
        if self.0.is_none() {
            self.0 = match io.poll_left(cx, buf) {
                Poll::Pending => None,
                Poll::Ready(Ok(())) => Some(Instant::now() + HALF_CLOSED_FOR),
                Poll::Ready(Err(_)) => Some(Instant::now()),
            };
        }
        self.0
    }
}

/// Why a try came to nothing.
#[derive(Debug)]
pub enum Failure {
    /// No connection: nothing was sent.
    Connect(io::Error),
    /// It says that it did nothing with the request; `leaving`: as it takes no more on that connection.
    Refused {
        leaving: bool,
    },
    /// The connection broke before an answer came.
    Broken(io::Error),
    /// What came is no answer.
    Bad(&'static str),
    Timeout,
    /// The client went away, or sent what is no body: nobody waits for an answer.
    Client {
        malformed: Option<&'static str>,
    },
    /// The client does not send what it has announced, or takes no interim answer.
    Slow,
}

impl Failure {
    /// It has nothing to do with who was asked.
    pub fn is_ours(&self) -> bool {
        let Failure::Connect(error) = self else { return false };
        matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
    }

    /// Nothing came in the time that there was.
    pub fn is_late(&self) -> bool {
        match self {
            Failure::Connect(error) => error.kind() == io::ErrorKind::TimedOut,
            Failure::Timeout => true,
            Failure::Refused { .. }
            | Failure::Broken(_)
            | Failure::Bad(_)
            | Failure::Client { .. }
            | Failure::Slow => false,
        }
    }

    /// Something of the request was sent, and not taken back.
    pub fn has_reached(&self) -> bool {
        !matches!(self, Failure::Connect(_) | Failure::Refused { .. })
    }

    /// The client is why.
    pub fn is_of_client(&self) -> bool {
        matches!(self, Failure::Client { .. } | Failure::Slow)
    }

    /// As `explain` says it.
    pub fn word(&self) -> &'static str {
        match self {
            Failure::Connect(error) if error.kind() == io::ErrorKind::TimedOut => {
                "no connection in time"
            }
            Failure::Connect(error) if error.kind() == io::ErrorKind::InvalidData => {
                "it does not speak HTTP/2"
            }
            Failure::Connect(_) => "no connection",
            Failure::Refused { leaving: true } => "it closes the connection",
            Failure::Refused { leaving: false } => "it refused the stream",
            Failure::Broken(error) if error.kind() == io::ErrorKind::UnexpectedEof => "it closed",
            Failure::Broken(_) => "it broke off",
            Failure::Bad(why) => why,
            Failure::Timeout => "no answer in time",
            Failure::Slow => "the client does not go on",
            Failure::Client { malformed: Some(why) } => why,
            Failure::Client { malformed: None } => "the client is gone",
        }
    }
}

/// How far a response got.
#[derive(Debug, PartialEq, Eq)]
pub enum Carried {
    /// All of it. The instance's connection can be used again.
    Whole { reusable: bool },
    /// It broke off after its head: the client can only be told by closing.
    Cut,
    /// Both sides go on in another protocol.
    Upgraded,
}

/// Sends the request and reads the head of its answer; nothing has gone to the client yet, but for
/// interim responses.
pub async fn ask(client: &mut Client, conn: &mut Conn, deadline: Instant) -> Result<(), Failure> {
    let Client { io, request, up, .. } = client;
    // What was given up as soon as it was made is no work for anybody else.
    if let Io::Stream(stream) = io
        && poll_fn(|cx| Poll::Ready(stream.poll_given_up(cx).is_ready())).await
    {
        return Err(Failure::Client { malformed: None });
    }
    let framing = as_read(io, request.framing);
    send(request, conn, up, framing)?;
    hear(client, conn, deadline, false).await
}

/// Begins to send the request; `framing`: of its body, as it is read.
pub fn send(
    request: &Request,
    conn: &mut Conn,
    up: &mut Flow,
    framing: Framing,
) -> Result<(), Failure> {
    if let Io::Stream(stream) = &mut conn.io {
        stream.ask(request, is_bare(request.framing)).map_err(|why| match why {
            NotAsked::Unfit => {
                Failure::Client { malformed: Some("a target or host that HTTP/2 can't carry") }
            }
            NotAsked::Closed => Failure::Refused { leaving: true },
        })?;
        up.begin(framing, false);
    } else {
        let chunks = matches!(request.framing, Framing::Chunked | Framing::End);
        up.begin(framing, chunks);
        up.out.extend_from_slice(&request.head);
        if chunks {
            up.out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        up.out.extend_from_slice(b"\r\n");
    }
    // Pieces of a body in chunks are not held: what delimits them would have to be, too.
    up.hold = matches!(framing, Framing::Length(_) | Framing::End);
    Ok(())
}

/// Sends what is left of the request and reads the head of its answer; `said`: it is there already.
pub async fn hear(
    client: &mut Client,
    conn: &mut Conn,
    deadline: Instant,
    mut said: bool,
) -> Result<(), Failure> {
    let Client { io, buf, request, response, up, down, timer, rate_min, .. } = client;
    let mut interim = 0;
    // Whoever waits for leave to send owes nothing before it was given.
    let mut waits = request.expects;
    let mut broken = None;
    // While the client sends the instance owes nothing: its time begins anew with each piece.
    let window = deadline.saturating_duration_since(Instant::now());
    let (mut seen, mut until, mut left) = (0, deadline, None);
    let mut slow = Slow::new(*rate_min);
    poll_fn(|cx| {
        if let Io::Stream(stream) = io
            && stream.poll_given_up(cx).is_ready()
        {
            return Poll::Ready(Err(Failure::Client { malformed: None }));
        }
        loop {
            if !down.is_over() {
                // An interim response goes out before the next thing is done.
                match down.poll(cx, (&mut conn.io, &mut conn.buf), io) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => {
                        return Poll::Ready(Err(Failure::Client { malformed: None }));
                    }
                    Poll::Pending => break,
                }
            }
            if broken.is_none() && !up.is_over() {
                match up.poll(cx, (io, buf), &mut conn.io) {
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                    // It may have answered before it closed.
                    Poll::Ready(Err(FlowError::To(error))) => broken = Some(error),
                    Poll::Ready(Err(FlowError::From)) => {
                        return Poll::Ready(Err(Failure::Client { malformed: None }));
                    }
                    Poll::Ready(Err(FlowError::Malformed(why))) => {
                        return Poll::Ready(Err(Failure::Client { malformed: Some(why.0) }));
                    }
                }
            }
            if up.is_over() && left.is_none() && !matches!(io, Io::Stream(_)) {
                left = match io.poll_left(cx, buf) {
                    Poll::Pending => None,
                    Poll::Ready(Ok(())) => Some(Instant::now() + HALF_CLOSED_FOR),
                    Poll::Ready(Err(_)) => {
                        return Poll::Ready(Err(Failure::Client { malformed: None }));
                    }
                };
            }
            let heard = match std::mem::take(&mut said) {
                true => Poll::Ready(Ok(())),
                false => head(cx, conn, request, response),
            };
            match heard {
                Poll::Pending => break,
                Poll::Ready(Err(failure)) => {
                    let failure = match (failure, broken.take()) {
                        (Failure::Broken(_), Some(error)) => Failure::Broken(error),
                        (failure, _) => failure,
                    };
                    return Poll::Ready(Err(failure));
                }
                Poll::Ready(Ok(())) if (100..=199).contains(&response.status) => {
                    if response.status == 101 {
                        let unasked = Failure::Bad("it changes the protocol unasked");
                        let agreed = request.upgrade && is_of(&response.head, &request.head);
                        return Poll::Ready(if agreed { Ok(()) } else { Err(unasked) });
                    }
                    waits &= response.status != 100;
                    interim += 1;
                    if interim > INTERIM_MAX {
                        return Poll::Ready(Err(Failure::Bad("it does not come to its answer")));
                    }
                    if let Io::Stream(stream) = io {
                        stream.inform(response.status, &response.head);
                    } else if !request.old {
                        down.begin(Framing::None, false);
                        down.out.extend_from_slice(&response.head);
                        down.out.extend_from_slice(b"\r\n");
                    }
                }
                Poll::Ready(Ok(())) => {
                    // While nothing of it has gone out, it can still be said that it is none.
                    let sound = Decoder::new(response.framing).look(conn.buf.data());
                    return Poll::Ready(sound.map_err(|why| Failure::Bad(why.0)));
                }
            }
        }
        if up.bytes != seen {
            (seen, until) = (up.bytes, Instant::now() + window);
        }
        let gone = left.filter(|left| *left < until);
        let owes = !up.is_over() && up.is_starved() && !(waits && up.is_untouched());
        if let Some(slow_at) = slow.at(owes, up.bytes, request)
            && slow_at < gone.unwrap_or(until)
        {
            return timer.poll(cx, slow_at).map(|()| Err(Failure::Slow));
        }
        timer.poll(cx, gone.unwrap_or(until)).map(|()| {
            Err(match gone {
                Some(_) => Failure::Client { malformed: None },
                // It does not take what the instance has said.
                None if !down.is_over() => Failure::Slow,
                None if up.is_starved() && !(waits && up.is_untouched()) => Failure::Slow,
                None => Failure::Timeout,
            })
        })
    })
    .await
}

/// Holds a client to the least rate of its route.
pub struct Slow {
    pace: Pace,
    /// When it was waited for first.
    begun: Option<Instant>,
    rate_min: u32,
}

impl Slow {
    pub fn new(rate_min: u32) -> Slow {
        Slow { pace: Pace::default(), begun: None, rate_min }
    }

    /// From when on the client is too slow, if it is waited for. A call of gRPC may be a dialog that goes
    /// on for days.
    pub fn at(&mut self, waits: bool, bytes: u64, request: &Request) -> Option<Instant> {
        if self.rate_min == 0 || (self.begun.is_none() && !waits) {
            return None;
        }
        let begun = *self.begun.get_or_insert_with(Instant::now);
        self.pace.waits(waits, begun.elapsed().as_millis() as u64);
        let ends_at = self.pace.ends_at(bytes, self.rate_min)?;
        if request.is_grpc() {
            self.rate_min = 0;
            return None;
        }
        Some(begun + Duration::from_millis(ends_at))
    }
}

/// Whether the protocol that is changed to is one of those that were asked for.
fn is_of(said: &[u8], asked: &[u8]) -> bool {
    let protocols = |head| {
        lines(head)
            .filter(|(name, _)| name.eq_ignore_ascii_case(b"upgrade"))
            .flat_map(|(_, value)| tokens(value))
    };
    protocols(said).next().is_some()
        && protocols(said).all(|it| protocols(asked).any(|asked| asked.eq_ignore_ascii_case(it)))
}

/// A stream ends before the head of its answer: what that says of what was done. By RFC 9113 sections
/// 5.1.1 and 8.7 nothing was, where it is refused or beyond the last one of a GOAWAY.
fn broken_off(error: h2::Error) -> Failure {
    match error.reason() {
        Some(_) if error.is_remote() && error.is_go_away() => Failure::Refused { leaving: true },
        Some(Reason::REFUSED_STREAM) if error.is_remote() => Failure::Refused { leaving: false },
        Some(_) if !error.is_remote() && error.is_reset() => Failure::Bad("its head is malformed"),
        Some(_) | None => Failure::Broken(broken(error)),
    }
}

/// A body's framing as it is read: of a stream only its end says where that is, and its frames were
/// held against the length that it gives.
fn as_read(from: &Io, framing: Framing) -> Framing {
    match (from, framing) {
        (Io::Stream(_), Framing::Length(_)) => Framing::End,
        (Io::Stream(_) | Io::Plain(_) | Io::Tls(_) | Io::Nobody, framing) => framing,
    }
}

fn is_bare(framing: Framing) -> bool {
    matches!(framing, Framing::None | Framing::Length(0))
}

/// Reads the head of a response.
pub fn head(
    cx: &mut Context<'_>,
    conn: &mut Conn,
    request: &Request,
    response: &mut Response,
) -> Poll<Result<(), Failure>> {
    if let Io::Stream(stream) = &mut conn.io {
        let (parts, over) = ready!(stream.poll_answer(cx)).map_err(broken_off)?;
        let taken = response.take(&parts, over, request.method, &request.id);
        return Poll::Ready(taken.map_err(|why| Failure::Bad(why.0)));
    }
    loop {
        if !conn.buf.is_empty() {
            match response.read(conn.buf.data(), request.method, &request.id) {
                Ok(Some(length)) => {
                    conn.buf.consume(length);
                    return Poll::Ready(Ok(()));
                }
                Ok(None) if conn.buf.is_full() => {
                    return Poll::Ready(Err(Failure::Bad("its head is too long")));
                }
                Ok(None) => {}
                Err(why) => return Poll::Ready(Err(Failure::Bad(why.0))),
            }
        }
        match conn.io.poll_read(cx, &mut conn.buf) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => {
                let error = io::ErrorKind::UnexpectedEof.into();
                return Poll::Ready(Err(Failure::Broken(error)));
            }
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Broken(error))),
        }
    }
}

/// Carries the response to the client, and what is left of the request to the instance, until the client
/// has taken nothing for `stalled`, or nobody has said anything for `idle`.
pub async fn carry(
    client: &mut Client,
    conn: &mut Conn,
    stalled: Duration,
    idle: Duration,
) -> Carried {
    let Client { io, buf, request, response, up, down, timer, rate_min, .. } = client;
    up.let_go(buf);
    let upgraded = response.status == 101;
    let unsaid = matches!(response.framing, Framing::Chunked | Framing::End);
    // Who answers before all is sent wants no more of it; the client learns that by the close.
    request.keep_alive &= up.is_read() && !(unsaid && request.old);
    let read = as_read(&conn.io, response.framing);
    if begin(io, request, response, down, read).is_err() {
        return Carried::Cut;
    }
    let mut deaf = false;
    let (mut seen, mut since) = (0, Instant::now());
    let mut slow = Slow::new(*rate_min);
    let whole = poll_fn(|cx| {
        if let Io::Stream(stream) = io
            && stream.poll_given_up(cx).is_ready()
        {
            if !down.is_followed() {
                return Poll::Ready(false);
            }
            *io = Io::Nobody;
        }
        if matches!(io, Io::Nobody) && down.fill.is_none() {
            return Poll::Ready(false);
        }
        if !deaf && !up.is_over() {
            match up.poll(cx, (io, buf), &mut conn.io) {
                Poll::Ready(Ok(())) | Poll::Pending => {}
                Poll::Ready(Err(_)) => deaf = true,
            }
        }
        let mut carried = down.poll(cx, (&mut conn.io, &mut conn.buf), io);
        if matches!(carried, Poll::Ready(Err(FlowError::To(_)))) && down.is_followed() {
            // It goes on for the others.
            *io = Io::Nobody;
            carried = down.poll(cx, (&mut conn.io, &mut conn.buf), io);
        }
        match carried {
            Poll::Ready(result) => Poll::Ready(result.is_ok()),
            Poll::Pending => {
                let bytes = down.bytes + up.bytes;
                if bytes != seen {
                    (seen, since) = (bytes, Instant::now());
                }
                let most = since + if down.is_starved() { idle } else { stalled };
                let slow_at = slow.at(!down.is_starved(), down.bytes, request);
                timer.poll(cx, slow_at.map_or(most, |it| it.min(most))).map(|()| false)
            }
        }
    })
    .await;
    match whole {
        false => {
            // To who takes the end of the connection for that of the body, a close would be one.
            if unsaid && request.old {
                io.break_off();
            }
            Carried::Cut
        }
        true if upgraded => Carried::Upgraded,
        true => {
            let reusable = response.keep_alive && up.is_over() && conn.buf.is_empty();
            Carried::Whole { reusable }
        }
    }
}

/// Begins the answer: its head goes out before its body, which is of that framing as it is read.
pub fn begin(
    io: &mut Io,
    request: &Request,
    response: &mut Response,
    down: &mut Flow,
    read: Framing,
) -> io::Result<()> {
    // Said to this client alone: what is kept of the answer has none of it.
    response.head.extend_from_slice(&response.added);
    if let Io::Stream(stream) = io {
        down.begin(read, false);
        return stream.answer(response.status, &response.head, is_bare(response.framing));
    }
    let unsaid = matches!(response.framing, Framing::Chunked | Framing::End);
    let chunks = unsaid && !request.old;
    down.begin(read, chunks);
    down.out.extend_from_slice(&response.head);
    if chunks {
        down.out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    down.out.extend_from_slice(match (response.status, request.keep_alive, request.old) {
        (101, _, _) => b"Connection: Upgrade\r\n\r\n",
        (_, false, _) => b"Connection: close\r\n\r\n",
        (_, true, true) => b"Connection: keep-alive\r\n\r\n",
        (_, true, false) => b"\r\n",
    });
    Ok(())
}

/// Answers by itself, and reads no more of the request; `false`: that can't be said.
pub async fn answer(client: &mut Client, status: u16, why: &str, deadline: Instant) -> bool {
    let body = client.response.own(status, why, &client.request);
    say(client, status, body, deadline).await
}

/// The same where the head is there already.
pub async fn say(client: &mut Client, status: u16, mut body: Vec<u8>, deadline: Instant) -> bool {
    let Client { io, buf, request, response, up, down, timer, .. } = client;
    // A body that is still there is not the next request.
    up.let_go(buf);
    if request.method == Method::Head {
        body.clear();
    }
    if down.is_halfway() {
        // In the middle of an interim answer this one would be a field of it.
        return false;
    }
    request.keep_alive &= up.is_read() || request.framing == Framing::None;
    response.framing = Framing::Length(body.len() as u64);
    let read = response.framing;
    let begun = begin(io, request, response, down, read);
    // What went wrong is remembered as such, also where gRPC has it said in a success.
    response.status = status;
    if begun.is_err() {
        return false;
    }
    // What was read of the request is not read as the answer's body.
    let mut own = Buf::default();
    own.room()[..body.len()].copy_from_slice(&body);
    own.filled(body.len());
    let mut nobody = Io::Stream(Box::default());
    poll_fn(|cx| match down.poll(cx, (&mut nobody, &mut own), io) {
        Poll::Ready(result) => Poll::Ready(result.is_ok()),
        Poll::Pending => timer.poll(cx, deadline).map(|()| false),
    })
    .await
}
