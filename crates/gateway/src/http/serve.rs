//! A client's connection in HTTP/1: one request after the other.

use super::Open;
use super::admit::{AGAIN_AFTER_S, Halt, Pass, admit};
use super::backend::Conn;
use super::body::Framing;
use super::cache::{self, Answered};
use super::degrade;
use super::exchange::{Carried, Client, Failure, answer, carry};
use super::from::From;
use super::hedge::{self, Raced};
use super::id::Short;
use super::io::Io;
use super::ledger::{End, Met, Record};
use super::live::Live;
use super::rates::admits;
use super::request::Refusal;
use super::strain;
use super::streams::{self, Begun};
use super::tries::{Course, Plan, Tried, one_try, slow_at};
use super::tunnel;
use super::world::{Picked, Route, Seat, World};
use everhold_core::http::flood::PREFACE;
use everhold_core::http::retry::{Body, Failed, Sent, Verdict, Why, may_retry};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// A connection on which nothing is asked is closed after this, as nginx does.
const IDLE: Duration = Duration::from_secs(75);
/// A head has to be whole within this of its first byte.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// A client that takes nothing for so long of what is there for it is given up.
pub const STALLED: Duration = Duration::from_secs(60);
/// What the gateway says itself is taken within this.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// What a client still sends after it was told that nobody reads it.
const LINGER_FOR: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 << 10;

/// Serves a client until it or the gateway wants no more.
pub async fn serve(
    io: Io,
    peer: SocketAddr,
    (listener, open): (Arc<str>, &Open),
    world: Rc<World>,
) {
    let mut seat = world.seat(&listener, &open.0);
    let from = From::of(peer, matches!(io, Io::Tls(_)), seat.port(&world));
    let mut client = Client::new(io);
    // Until when the first head has to be whole.
    let mut until = None;
    if !matches!(client.io, Io::Tls(_)) {
        if speaks_http2(&mut client, &mut until).await {
            let Client { io, buf, .. } = client;
            return streams::serve(Begun { io, buf }, peer, (listener, open), world).await;
        }
        if client.buf.is_empty() {
            return;
        }
    }
    loop {
        match next(&mut client, &mut seat, &from, &world, until.take()).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(refusal) => {
                turn_away(&mut client, &seat, &world, &from, refusal).await;
                return linger(&mut client).await;
            }
        }
        match exchange(&mut client, &mut seat, &world, &from).await {
            After::Next => {}
            After::Close => return linger(&mut client).await,
            After::Drop => return,
            After::Tunnel(conn, live) => return tunnel::run(client, conn, &live).await,
        }
    }
}

/// Whether a connection begins as one of HTTP/2 that was agreed on beforehand. `until`: from its first
/// byte on, when there has to be more of it.
async fn speaks_http2(client: &mut Client, until: &mut Option<Instant>) -> bool {
    let Client { io, buf, timer, .. } = client;
    let idle = Instant::now() + IDLE;
    poll_fn(|cx| {
        loop {
            let seen = buf.data();
            let common = seen.len().min(PREFACE.len());
            if seen[..common] != PREFACE[..common] {
                return Poll::Ready(false);
            }
            if common == PREFACE.len() {
                return Poll::Ready(true);
            }
            match io.poll_read(cx, buf) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    until.get_or_insert_with(|| Instant::now() + HEAD_WITHIN);
                }
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return timer.poll(cx, until.unwrap_or(idle)).map(|()| false),
            }
        }
    })
    .await
}

/// What becomes of the client's connection.
pub enum After {
    Next,
    /// It was told so.
    Close,
    /// It can't be told anything.
    Drop,
    Tunnel(Conn, Arc<Live>),
}

/// Answers by itself; what becomes of the connection.
pub async fn refuse(client: &mut Client, status: u16, why: &str) -> After {
    match answer(client, status, why, Instant::now() + ANSWER_WITHIN).await {
        true if client.request.keep_alive => After::Next,
        true => After::Close,
        false => After::Drop,
    }
}

/// What can't be taken as a request is told of, too.
pub async fn turn_away(
    client: &mut Client,
    seat: &Seat,
    world: &World,
    from: &From,
    refusal: Refusal,
) -> After {
    let begun = Instant::now();
    client.request.forget();
    client.response.added.clear();
    client.request.id = world.ids.borrow_mut().request();
    client.trail.begin(&world.nothing);
    client.trail.outcome = refusal.why;
    let after = refuse(client, refusal.status, refusal.why).await;
    world.ledger.write(client.record(seat, world, from, begun));
    after
}

/// One request: where it goes, what comes of it, and a record of that.
pub async fn exchange(client: &mut Client, seat: &mut Seat, world: &World, from: &From) -> After {
    let begun = Instant::now();
    client.trail.begin(&world.nothing);
    client.response.status = 0;
    client.response.added.clear();
    // To close while nothing is asked would meet the next request on its way; so it is answered, and
    // told that it was the last.
    client.request.keep_alive &= !world.is_leaving();
    let found = seat.listener(world).map(|it| it.route(&client.request).cloned());
    if let Some(Some(route)) = &found {
        degrade::tell(client, route);
    }
    let after = match found {
        _ if client.request.is_last => refuse(client, 204, "").await,
        Some(Some(route)) if strain::refuses(world, &route, from) => {
            client.trail.route = route.name.clone();
            client.trail.service = route.service.name.clone();
            client.trail.met = Some(Met::Cpu);
            client.trail.outcome = "turned away: the gateway is short of cpu";
            client.response.again_after_s = Some(AGAIN_AFTER_S);
            refuse(client, 503, "the gateway is overloaded").await
        }
        Some(Some(route)) if !admits(client, &route, from, &world.shared.rates, begun) => {
            refuse(client, 429, "too many requests").await
        }
        Some(Some(route)) if route.caches => cache::serve(client, seat, &route, world, begun).await,
        Some(Some(route)) => along(client, &route, world, begun).await,
        Some(None) => refuse(client, 404, "no route leads there").await,
        None => {
            client.request.keep_alive = false;
            refuse(client, 503, "this listener is closing").await
        }
    };
    seat.counters.bytes_in.fetch_add(client.up.bytes, Ordering::Relaxed);
    seat.counters.bytes_out.fetch_add(client.down.bytes, Ordering::Relaxed);
    world.ledger.write(client.record(seat, world, from, begun));
    if matches!(client.response.status, 200..=399) && from.served(begun) {
        world.shared.door.served(from.client);
    }
    after
}

/// Tries instance after instance.
pub async fn along(client: &mut Client, route: &Route, world: &World, begun: Instant) -> After {
    let service = &route.service;
    client.trail.route = route.name.clone();
    client.trail.service = service.name.clone();
    client.rate_min = route.rate_min;
    if let Some(stand_in) = degrade::instead(client, route, world) {
        return degrade::give(client, stand_in).await;
    }
    // Longer than a clock goes is for ever.
    let patience = client.request.patience().and_then(|it| begun.checked_add(it));
    let allowed = begun + route.timeout;
    let deadline = patience.map_or(allowed, |patience| patience.min(allowed));
    // It may have waited for an answer that others asked for.
    let came = if client.visit.waited { Instant::now() } else { begun };
    let mut pass = match admit(client, route, world, (came, deadline)).await {
        Ok(pass) => pass,
        Err(Halt::Turned { why, again_after_s }) => {
            client.response.again_after_s = Some(again_after_s);
            return unserved(client, route, world, None, (503, why)).await;
        }
        Err(Halt::Gone) => return gone(client),
    };
    service.budget.borrow_mut().request(world.ms(pass.at));
    let mut tried = Tried::default();
    // The instance that is asked again over a new connection, and whether one was.
    let (mut again, mut anew) = (None, false);
    let mut last = (503, "no instance is there");
    while tried.has_room() {
        let now = if tried.indices().is_empty() { pass.at } else { Instant::now() };
        if deadline <= now {
            client.trail.outcome = "no time was left";
            let last = (504, "the client waits no longer");
            return unserved(client, route, world, Some(pass), last).await;
        }
        let now_ms = world.ms(now);
        let picked = match again.take() {
            Some(picked) => Some(picked),
            None => service.pick(world, &client.request, tried.indices(), now_ms),
        };
        let Some(picked) = picked else {
            return unserved(client, route, world, Some(pass), last).await;
        };
        let plan = Plan::new((client, route, picked), &mut tried, (now, deadline), world.ms(now));
        let slow_at = slow_at(client, service, &tried, &plan);
        let (plan, ending, other) = match one_try(client, plan, anew, slow_at, begun).await {
            Course::Ended(plan, ending) => (plan, ending, None),
            Course::Slow(first) => {
                let times = (begun, deadline);
                let going = hedge::go_on(client, *first, &mut tried, (&pass, world), times);
                let Raced { plan, ending, other } = Box::pin(going).await;
                (plan, ending, other)
            }
        };
        let ended = Instant::now();
        let (end, outcome) = match &ending {
            Ok(_) => (End::Answered, "answered"),
            Err(failed) => (End::Failed, failed.failure.word()),
        };
        let other = other.map(|it| it.count(world, &pass, begun));
        client.trail.tried([Some(plan.told(begun, ended, end, outcome)), other]);
        let backend = plan.backend;
        let failed = match ending {
            Ok((mut conn, active)) => {
                plan.answered(world, &pass, client.response.status, ended);
                let is_bare = client.response.framing == Framing::None && conn.buf.is_empty();
                let reusable = is_bare && client.response.keep_alive && client.up.is_over();
                match cache::answered(client, &conn, world) {
                    Answered::Goes => {}
                    Answered::Given(given) => {
                        if reusable {
                            backend.keep(conn, ended);
                        }
                        // The service has done its part: how slowly it is taken is nothing to it.
                        drop((active, pass));
                        return cache::gave(client, given).await;
                    }
                    Answered::Again => {
                        if reusable {
                            backend.keep(conn, ended);
                        }
                        let why = "it said of another one that it is still so";
                        tried.forget(plan.place);
                        again = Some(Picked { why, ..plan.picked });
                        continue;
                    }
                }
                pass.begun();
                let Picked { index, set_cookie, .. } = plan.picked;
                if set_cookie && let Some(field) = service.set_cookie(index, client.is_secure()) {
                    client.response.head.extend_from_slice(field.as_bytes());
                }
                let idle = Duration::from_millis(service.spec.idle_timeout_ms);
                let carried = carry(client, &mut conn, STALLED, idle).await;
                let fill = client.down.fill.take();
                return match carried {
                    Carried::Whole { reusable } => {
                        if let Some(fill) = fill {
                            fill.keep();
                        }
                        if reusable {
                            backend.keep(conn, Instant::now());
                        }
                        match client.request.keep_alive {
                            _ if matches!(client.io, Io::Nobody) => After::Drop,
                            true => After::Next,
                            false => After::Close,
                        }
                    }
                    Carried::Upgraded => After::Tunnel(conn, backend.live.clone()),
                    Carried::Cut => {
                        client.trail.outcome = "cut";
                        After::Drop
                    }
                };
            }
            Err(failed) => failed,
        };
        let sent;
        (sent, last) = match failed.failure {
            Failure::Client { malformed: Some(why) } => {
                client.request.keep_alive = false;
                return refuse(client, 400, why).await;
            }
            Failure::Slow => {
                client.request.keep_alive = false;
                return refuse(client, 408, "the body took too long").await;
            }
            Failure::Client { malformed: None } => return gone(client),
            Failure::Connect(_) => (Sent::Nothing, (502, "the instance can't be reached")),
            Failure::Refused { .. } => (Sent::Nothing, (503, "the instance takes no more")),
            Failure::Broken(_) => (Sent::Request, (502, "the instance broke off")),
            Failure::Bad(_) => (Sent::Response, (502, "the instance's answer is none")),
            Failure::Timeout => (Sent::Request, (504, "the instance does not answer in time")),
        };
        // An idle connection that was closed says nothing of the instance, which has seen nothing, nor
        // does one that was ended for what others did on it: it is asked again, over a new one, and the
        // first time this is no further try.
        let stale = failed.stale && !anew;
        if failed.stale {
            tried.forget(plan.place);
            anew = true;
        } else {
            plan.failed(world, &pass, &failed.failure, ended);
        }
        tried.tries += u32::from(!stale);
        let left = deadline.saturating_duration_since(ended).as_millis() as u64;
        let method = String::from_utf8_lossy(client.request.method_name());
        let failed = Failed {
            method: &method,
            sent,
            body: client.body(),
            stale,
            tries: tried.tries,
            retries: service.spec.retries,
            remaining_ms: left,
        };
        let verdict = may_retry(&failed, &mut service.budget.borrow_mut(), world.ms(ended));
        if let Verdict::No(why) = verdict {
            drop(method);
            client.trail.outcome = not_again(why);
            return unserved(client, route, world, Some(pass), last).await;
        }
        if stale {
            again = Some(Picked { why: "its idle connection had closed", ..plan.picked });
        }
    }
    unserved(client, route, world, Some(pass), last).await
}

/// Why there was no further try, as `explain` says it.
fn not_again(why: Why) -> &'static str {
    match why {
        Why::Answered => "not tried again: an answer had begun",
        Why::BodyGone => "not tried again: its body was gone",
        Why::Method => "not tried again: the method may not be repeated",
        Why::Tries => "not tried again: so many tries were all",
        Why::Deadline => "not tried again: no time was left",
        Why::Budget => "not tried again: no retries were left in the budget",
    }
}

impl Client {
    fn record(&mut self, seat: &Seat, world: &World, from: &From, begun: Instant) -> Record {
        let Client { request, response, up, down, trail, .. } = self;
        Record {
            at_ms: world.unix_ms(begun),
            id: request.id,
            peer: request.client.unwrap_or(from.ip),
            listener: seat.name.clone(),
            method: request.method,
            host: Short::of(request.host.as_bytes()),
            path: Short::of(request.path()),
            route: trail.route.clone(),
            service: trail.service.clone(),
            tries: std::mem::take(&mut trail.tries),
            status: response.status,
            bytes_in: up.bytes,
            bytes_out: down.bytes,
            took_us: begun.elapsed().as_micros() as u64,
            outcome: trail.outcome,
            met: trail.met,
            waited_us: trail.waited_us,
            hedge: trail.hedge,
            cache: trail.cache,
        }
    }
}

fn gone(client: &mut Client) -> After {
    client.response.status = 0;
    client.trail.outcome = "client gone";
    After::Drop
}

/// Nobody answers the client but the gateway, and what it holds of the service others may have.
async fn unserved(
    client: &mut Client,
    route: &Route,
    world: &World,
    pass: Option<Pass<'_>>,
    (status, why): (u16, &str),
) -> After {
    drop(pass);
    if let Some(given) = cache::instead(client, world) {
        client.response.again_after_s = None;
        return cache::gave(client, given).await;
    }
    // What of the body was read is gone, what wasn't is still to come.
    client.request.keep_alive &= client.body() == Body::None;
    if let Some(stand_in) = degrade::stand_in(client, route) {
        return degrade::give(client, stand_in).await;
    }
    refuse(client, status, why).await
}

/// The next request; `false`: the client has no more. `until`: when its head has to be whole, if it has
/// begun already.
async fn next(
    client: &mut Client,
    seat: &mut Seat,
    from: &From,
    world: &World,
    mut until: Option<Instant>,
) -> Result<bool, Refusal> {
    let Client { io, buf, request, up, timer, .. } = client;
    loop {
        if !buf.is_empty() {
            let listener = from.trusted(seat, world);
            let trusted = listener.as_ref().map(|it| it.trusted.as_slice()).unwrap_or_default();
            let input = buf.data();
            let read = request.read(input, (from, trusted), &mut world.ids.borrow_mut())?;
            if let Some(length) = read {
                buf.consume(length);
                // Whoever answers before the body is read knows by this that it isn't.
                up.begin(request.framing, false);
                return Ok(true);
            }
            if buf.is_full() {
                // RFC 9112 section 3.
                let line = buf.data().strip_prefix(b"\r\n").unwrap_or(buf.data());
                return Err(match memchr::memchr(b'\n', line) {
                    None => Refusal { status: 414, why: "the target is too long" },
                    Some(_) => Refusal { status: 431, why: "the head is too long" },
                });
            }
            until.get_or_insert_with(|| Instant::now() + HEAD_WITHIN);
        }
        let deadline = until.unwrap_or_else(|| Instant::now() + IDLE);
        let read = poll_fn(|cx| match io.poll_read(cx, buf) {
            Poll::Ready(read) => Poll::Ready(Some(read)),
            Poll::Pending => timer.poll(cx, deadline).map(|()| None),
        });
        match read.await {
            Some(Ok(0)) | Some(Err(_)) => return Ok(false),
            Some(Ok(_)) => {}
            None if until.is_some() => {
                return Err(Refusal { status: 408, why: "the head took too long" });
            }
            None => return Ok(false),
        }
    }
}

/// Lets the client read what it was told before the connection is reset for what it still sends.
async fn linger(client: &mut Client) {
    let Client { io, buf, timer, .. } = client;
    let until = Instant::now() + LINGER_FOR;
    let mut left = LINGER_BYTES;
    poll_fn(|cx| {
        if io.poll_shutdown(cx).is_pending() {
            return timer.poll(cx, until);
        }
        loop {
            buf.consume(buf.data().len());
            match io.poll_read(cx, buf) {
                Poll::Ready(Ok(count)) if count > 0 && count <= left => left -= count,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return timer.poll(cx, until),
            }
        }
    })
    .await;
}
