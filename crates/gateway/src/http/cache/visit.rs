//! What one request has to do with answers that are kept.

use super::store::{Asked as AskedAt, Fate, Found, Join, Key, Leader, Store};
use super::stored::{Draft, Stored};
use super::{Cached, Fill, Given, How, give};
use crate::http::admit::{Waited, wait};
use crate::http::backend::Conn;
use crate::http::body::Framing;
use crate::http::degrade;
use crate::http::exchange::Client;
use crate::http::io::Io;
use crate::http::request::{Method, Request, lines, push, value};
use crate::http::serve::{After, STALLED, along, refuse};
use crate::http::world::{Listener, Route, Seat, World};
use everhold_core::http::cache::{
    Asked, Control, OBJECT_PART, Part, Said, Use, Why, is_like, part, weakly,
};
use everhold_core::http::deadline;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Once an answer has begun it is there soon, unless the client that it goes to is slow, or it has no end:
/// then the others ask for themselves.
const COMES_WITHIN: Duration = Duration::from_secs(2);
/// A request waits for others so often: one more time than its answer may turn out to vary.
const ROUNDS: usize = 3;
/// In the background the same is not asked for more often.
const AGAIN_MS: u64 = 1_000;
/// What the gateway takes from requests, so that no key can have it.
const UNKEYED: [&str; 3] = ["te", deadline::GRPC, deadline::EXPECTED];

/// What becomes of the answer to the request that a client has made last.
#[derive(Default)]
pub struct Visit {
    /// `None`: it has nothing to do with the cache.
    cached: Option<Rc<Cached>>,
    key: Key,
    /// Its answer may be kept.
    fills: bool,
    /// What may be given in its place; and whether the instance is asked if it is still so.
    stored: Option<Arc<Stored>>,
    asks: bool,
    /// What the client has asked for, where something else is sent.
    head: Option<Vec<u8>>,
    leader: Option<Leader>,
    begun: Option<Instant>,
    at: AskedAt,
    /// It changes what its path leads to, on that listener.
    spoils: Option<(Rc<Listener>, Arc<Store>)>,
    /// It has waited for another request.
    pub waited: bool,
    /// `fwd` of RFC 9211.
    forwarded: &'static str,
}

impl Visit {
    fn begin(&mut self, begun: Instant) {
        let key = std::mem::take(&mut self.key);
        *self = Visit { key, begun: Some(begun), ..Visit::default() };
    }

    /// Nothing is to be done with the answer, nor in its place.
    pub fn is_over(&self) -> bool {
        self.cached.is_none() && self.spoils.is_none()
    }
}

/// Serves a request on a listener of which some routes keep answers.
pub async fn serve(
    client: &mut Client,
    seat: &mut Seat,
    route: &Route,
    world: &World,
    begun: Instant,
) -> After {
    client.visit.begin(begun);
    client.trail.route = route.name.clone();
    client.trail.service = route.service.name.clone();
    client.rate_min = route.rate_min;
    let keeps = matches!(client.request.method, Method::Get | Method::Head);
    let Some(cached) = route.cache.clone().filter(|_| keeps) else {
        let safe = keeps || client.request.method == Method::Options;
        if let (false, Some(listener)) = (safe, seat.listener(world))
            && let Some(store) = world.shared.cache.get()
        {
            client.visit.spoils = Some((listener.clone(), store.clone()));
        }
        let after = along(client, route, world, begun).await;
        client.visit.begin(begun);
        return after;
    };
    let after = match look(client, &cached, route, world, begun).await {
        Next::Given(given) => gave(client, given).await,
        Next::Refused => refuse(client, 504, "nothing of it is kept").await,
        Next::Left => {
            client.response.status = 0;
            client.trail.outcome = "client gone";
            After::Drop
        }
        Next::Asks => along(client, route, world, begun).await,
    };
    // Whoever leads and is here has nothing more to say.
    client.visit.begin(begun);
    after
}

enum Next {
    Given(Given),
    Asks,
    Refused,
    Left,
}

/// What there is for a request; if nothing, what its answer is for.
async fn look(
    client: &mut Client,
    cached: &Rc<Cached>,
    route: &Route,
    world: &World,
    begun: Instant,
) -> Next {
    let store = &cached.store;
    let secure = client.is_secure();
    let Client { request, visit, trail, .. } = client;
    let asked = Asked::of(lines(&request.head));
    let control = asked.control;
    let conditional = asked.is_conditional();
    let is_bare = matches!(request.framing, Framing::None | Framing::Length(0));
    visit.forwarded = "bypass";
    trail.cache = "bypass";
    if asked.odd || !is_bare || request.upgrade || control.no_store {
        if control.only_if_cached {
            return Next::Refused;
        }
        visit.cached = Some(cached.clone());
        return Next::Asks;
    }
    let [host, told, port] = asked_at(&request.head);
    visit.key.begin(&cached.prefix, secure, [host, told, port, request.target()]);
    visit.cached = Some(cached.clone());
    let unix_s = (world.unix_ms(begun) / 1_000) as i64;
    let patience = client.request.patience().and_then(|it| begun.checked_add(it));
    let allowed = begun + route.timeout;
    let deadline = patience.map_or(allowed, |it| it.min(allowed));
    let gives_stale = degrade::gives_stale(route);
    let mut how = How::Hit;
    for round in 0..ROUNDS {
        let Client { request, visit, trail, .. } = client;
        visit.at = store.asked();
        let now_ms = store.ms(if round == 0 { begun } else { Instant::now() });
        let found = store.find(&mut visit.key, &request.head, now_ms);
        let is_get = request.method == Method::Get;
        let mut together = is_get;
        match found {
            Found::One(stored) => {
                let since_ms = now_ms.saturating_sub(stored.came_ms);
                let age_ms = stored.life.age_ms + since_ms;
                let give = |how| {
                    let part = match conditional {
                        true => part_of(request, Asked::of(lines(&request.head)), &stored, unix_s),
                        false => Part::Whole,
                    };
                    Next::Given(Given { stored: stored.clone(), part, age_ms, how })
                };
                // What has come since it was asked for is as new as can be.
                let wanted = match round > 0 && stored.came_ms >= store.ms(begun) {
                    true => Control { max_age: None, min_fresh: None, ..control },
                    false => control,
                };
                match stored.life.now(&wanted, since_ms) {
                    Use::Fresh => return give(how),
                    Use::Borne => return give(How::Stale),
                    Use::Meanwhile => {
                        let given = give(How::Stale);
                        refresh(client, route, world, &stored, now_ms);
                        return given;
                    }
                    // To whom it is given doesn't wait to hear whether it is still so.
                    Use::Ask if gives_stale && stored.life.serves_degraded(since_ms) => {
                        let given = give(How::Degraded);
                        refresh(client, route, world, &stored, now_ms);
                        return given;
                    }
                    Use::Ask => {
                        (visit.forwarded, trail.cache) = ("stale", "miss");
                        // What must always be asked for can't be waited for.
                        let life = &stored.life;
                        together &= life.age_ms < life.fresh_ms && !life.no_cache;
                        together &= !control.no_cache;
                        visit.asks = is_get;
                        visit.stored = Some(stored);
                    }
                }
            }
            Found::Nothing => {
                (visit.forwarded, trail.cache) = ("uri-miss", "miss");
                // What it gets may be less than others need.
                together &= !conditional;
            }
            Found::Pass => {
                (visit.forwarded, trail.cache) = ("uri-miss", "pass");
                together = false;
            }
        }
        if control.only_if_cached {
            return Next::Refused;
        }
        visit.fills = is_get;
        if !together || round == ROUNDS - 1 {
            break;
        }
        match store.join(&visit.key) {
            Join::Alone => break,
            Join::Leads(leader) => {
                visit.leader = Some(leader);
                break;
            }
            Join::Follows(mut fate) => match follow(client, &mut fate, deadline).await {
                None => return Next::Left,
                Some(Fate::Kept | Fate::Gone) => how = How::Collapsed,
                Some(Fate::Coming(since)) => {
                    let now = Instant::now();
                    // Else it is this client that waits no longer.
                    if now >= since + COMES_WITHIN {
                        let key = &client.visit.key;
                        store.leave(key, &fate);
                        store.pass(key, false, store.ms(now));
                    }
                    break;
                }
                Some(Fate::Alone | Fate::Asking) => break,
            },
        }
        (client.visit.stored, client.visit.asks) = (None, false);
    }
    if client.visit.asks {
        ask_anew(client);
    }
    Next::Asks
}

/// The host that is asked for, and host and port as instances are told them: those that a proxy says, if
/// it is believed.
fn asked_at(head: &[u8]) -> [&[u8]; 3] {
    let mut at = [&b""[..]; 3];
    for (name, value) in lines(head) {
        match name {
            b"Host" => at[0] = value,
            b"X-Forwarded-Host" => at[1] = value,
            b"X-Forwarded-Port" => at[2] = value,
            _ => {}
        }
    }
    at
}

/// Waits for what another request brings. `None`: the client is gone.
async fn follow(
    client: &mut Client,
    fate: &mut watch::Receiver<Fate>,
    deadline: Instant,
) -> Option<Fate> {
    client.visit.waited = true;
    let mut is = Fate::Asking;
    loop {
        let until = match is {
            Fate::Coming(since) => deadline.min(since + COMES_WITHIN),
            Fate::Asking | Fate::Kept | Fate::Alone | Fate::Gone => deadline,
        };
        let mut becomes = pin!(fate.wait_for(move |it| *it != is));
        let told = wait(client, until, |cx| {
            becomes.as_mut().poll(cx).map(|it| it.map_or(Fate::Gone, |it| *it))
        });
        match told.await {
            Waited::Told(it @ Fate::Coming(_)) => is = it,
            Waited::Told(it) => return Some(it),
            Waited::Late => return Some(is),
            Waited::Gone => return None,
        }
    }
}

/// Has the request ask whether what is kept is still so, in place of what the client asked for.
fn ask_anew(client: &mut Client) {
    let Client { request, visit, .. } = client;
    let Some(stored) = &visit.stored else { return };
    let etag = stored.marks.etag.as_deref();
    let changed = value(&stored.head, "last-modified");
    visit.asks = etag.is_some() || changed.is_some();
    let of_part = ["if-none-match", "if-modified-since", "if-range", "range"];
    let mut original = std::mem::take(&mut request.head);
    // Also what is said of one try: that stands after `end`, and is written anew for each.
    original.truncate(request.end);
    let first = memchr::memchr(b'\n', &original).map_or(original.len(), |at| at + 1);
    let mut head = Vec::with_capacity(original.len() + 128);
    head.extend_from_slice(&original[..first]);
    for (name, value) in lines(&original) {
        if !of_part.iter().any(|it| is_like(name, it)) {
            push(&mut head, name, value);
        }
    }
    if let Some(etag) = etag {
        push(&mut head, b"If-None-Match", etag);
    }
    if let Some(changed) = changed {
        push(&mut head, b"If-Modified-Since", changed);
    }
    request.end = head.len();
    request.head = head;
    visit.head = Some(original);
}

/// Has it ask again as the client did: of what is kept nothing is known any more.
fn ask_plainly(client: &mut Client) {
    let Client { request, visit, .. } = client;
    (visit.stored, visit.asks) = (None, false);
    if let Some(original) = visit.head.take() {
        request.end = original.len();
        request.head = original;
    }
}

/// Asks for it anew, for who comes next.
fn refresh(client: &Client, route: &Route, world: &World, stored: &Arc<Stored>, now_ms: u64) {
    let tried_ms = stored.tried_ms.load(Relaxed);
    if tried_ms > 0 && now_ms < tried_ms + AGAIN_MS {
        return;
    }
    let visit = &client.visit;
    if client.request.method != Method::Get {
        return;
    }
    let (Some(cached), Some(world)) = (&visit.cached, world.me.upgrade()) else { return };
    let Join::Leads(leader) = cached.store.join(&visit.key) else { return };
    stored.tried_ms.store(now_ms.max(1), Relaxed);
    let begun = Instant::now();
    let mut own = Client::new(Io::Nobody);
    own.request = client.request.clone();
    // A client that is in a hurry has its answer already.
    (own.request.grpc_timeout, own.request.expected) = (None, None);
    own.visit = Visit {
        cached: Some(cached.clone()),
        key: visit.key.clone(),
        fills: true,
        stored: Some(stored.clone()),
        asks: true,
        leader: Some(leader),
        begun: Some(begun),
        at: cached.store.asked(),
        ..Visit::default()
    };
    ask_anew(&mut own);
    let route = route.clone();
    tokio::task::spawn_local(async move { along(&mut own, &route, &world, begun).await });
}

/// What becomes of the answer of an instance.
pub enum Answered {
    /// It goes to the client, and is kept if it may be.
    Goes,
    /// This is given in its place.
    Given(Given),
    /// It is of no use, and asked for once more.
    Again,
}

/// Looks at the answer of an instance, before any of it goes to the client.
pub fn answered(client: &mut Client, conn: &Conn, world: &World) -> Answered {
    let Some(cached) = client.visit.cached.clone() else {
        changed(client);
        return Answered::Goes;
    };
    let status = client.response.status;
    let now = Instant::now();
    let store = &cached.store;
    let now_ms = store.ms(now);
    let unix_s = (world.unix_ms(now) / 1_000) as i64;
    if matches!(status, 500 | 502 | 503 | 504)
        && let Some(given) = stale(client, world, now)
    {
        alone(client, now);
        return Answered::Given(given);
    }
    let Client { request, response, visit, .. } = client;
    let delay = visit.begun.map_or(Duration::ZERO, |it| now.saturating_duration_since(it));
    let original = visit.head.as_deref().unwrap_or(&request.head);
    let asked = Asked::of(lines(original));
    let said = said_of(&cached, status, &response.head, unix_s);
    let draft_of = |life| {
        let names = (&cached.count, request.host.as_str(), request.path());
        Draft::new((&said, &response.head), life, names, (visit.at, now_ms))
    };
    if status == 304
        && visit.asks
        && let Some(stored) = visit.stored.take()
    {
        let known = stored.marks.etag.as_deref().map(weakly);
        if said.etag.is_some_and(|it| known != Some(weakly(it))) {
            store.forget(&visit.key);
            ask_plainly(client);
            return Answered::Again;
        }
        let mut given = stored.clone();
        let merged = stored.freshened(&response.head);
        let fresh = said_of(&cached, stored.status, &merged, unix_s);
        // The one that is kept is of nobody's conditions.
        let plain = Asked { if_none_match: None, if_modified_since: None, range: None, ..asked };
        match fresh.life(&plain, &cached.spec, delay.as_millis() as u64, unix_s) {
            Ok(life) => {
                let names = (&cached.count, request.host.as_str(), request.path());
                let draft = Draft::new((&fresh, &merged), life, names, (visit.at, now_ms));
                given = Arc::new(draft.with(stored.body.clone()));
                store.keep(&mut visit.key, original, &fresh.vary, given.clone());
                end(visit.leader.take(), Fate::Kept);
            }
            Err(why) => {
                if why.is_for_all() {
                    store.forget(&visit.key);
                }
                end(visit.leader.take(), Fate::Alone);
            }
        }
        let is_cookie = |name: &[u8]| name.eq_ignore_ascii_case(b"set-cookie");
        for (name, value) in lines(&response.head).filter(|(name, _)| is_cookie(name)) {
            push(&mut response.added, name, value);
        }
        let part = part_of(request, asked, &given, unix_s);
        let age_ms = given.life.age_ms + now_ms.saturating_sub(given.came_ms);
        let how = How::Revalidated;
        return Answered::Given(Given { stored: given, part, age_ms, how });
    }
    let mut stored = "";
    if visit.fills {
        let bytes_max = cached.spec.object_bytes_max.min(store.bytes_max() / OBJECT_PART);
        let length = match response.framing {
            Framing::Length(length) => length,
            Framing::None | Framing::Chunked | Framing::End => 0,
        };
        // By the end of a connection it can't be told from one that is cut.
        let ends = response.framing != Framing::End || matches!(conn.io, Io::Stream(_));
        let keyed = !said.vary.iter().any(|name| UNKEYED.contains(&name.as_str()));
        match said.life(&asked, &cached.spec, delay.as_millis() as u64, unix_s) {
            Ok(life) if length <= bytes_max && ends && keyed => {
                // Of what is stale as it comes others get nothing.
                let lasts = life.age_ms < life.fresh_ms && !life.no_cache;
                let leader = visit.leader.take();
                let leader = if lasts { leader } else { end(leader, Fate::Alone) };
                let of = (visit.key.clone(), original.to_vec());
                let most = usize::try_from(bytes_max).unwrap_or(usize::MAX);
                let fill = Fill::new(store, (draft_of(life), most), of, leader);
                client.down.fill = Some(Box::new(fill));
                stored = "; stored";
            }
            Err(Why::Status) => {
                // What is wrong now, or with this request, may be right soon with another; what is gone
                // is gone.
                if matches!(status, 404 | 410) && !asked.authorized {
                    store.forget(&visit.key);
                }
                alone(client, now);
            }
            kept => {
                store.pass(&visit.key, kept.err().is_none_or(Why::is_for_all), now_ms);
                end(visit.leader.take(), Fate::Alone);
            }
        }
    }
    let line = format!("everhold; fwd={}{stored}", client.visit.forwarded);
    push(&mut client.response.head, b"Cache-Status", line.as_bytes());
    Answered::Goes
}

/// A request that changes what is there was answered.
fn changed(client: &mut Client) {
    if let Some((listener, store)) = client.visit.spoils.take()
        && (200..400).contains(&client.response.status)
    {
        invalidate(client, &listener, &store);
    }
}

/// What an answer says, with what the spec adds to it.
fn said_of<'h>(cached: &Cached, status: u16, head: &'h [u8], unix_s: i64) -> Said<'h> {
    let mut said = Said::of(status, lines(head), unix_s);
    said.vary.extend(cached.spec.key_headers.iter().cloned());
    said
}

fn end(leader: Option<Leader>, fate: Fate) -> Option<Leader> {
    if let Some(leader) = leader {
        leader.ends(fate);
    }
    None
}

/// Those that wait for it ask for themselves; where it failed because its own client was in a hurry, one
/// of them asks for all.
fn alone(client: &mut Client, now: Instant) {
    let Client { request, response, visit, .. } = client;
    let ended =
        |it| visit.begun.and_then(|begun| begun.checked_add(it)).is_some_and(|it| it <= now);
    let hurried = request.patience().is_some_and(|it| response.status == 504 || ended(it));
    end(visit.leader.take(), if hurried { Fate::Gone } else { Fate::Alone });
}

/// What is given where no instance answers.
pub fn instead(client: &mut Client, world: &World) -> Option<Given> {
    if client.visit.is_over() {
        return None;
    }
    let now = Instant::now();
    let given = stale(client, world, now);
    alone(client, now);
    given
}

/// What is kept, if it may be given although nobody says that it is still so.
fn stale(client: &Client, world: &World, now: Instant) -> Option<Given> {
    let Client { request, visit, .. } = client;
    let (cached, stored) = (visit.cached.as_ref()?, visit.stored.as_ref()?);
    let since_ms = cached.store.ms(now).saturating_sub(stored.came_ms);
    let head = visit.head.as_deref().unwrap_or(&request.head);
    let asked = Asked::of(lines(head));
    if !stored.life.serves_on_error(&asked.control, since_ms) {
        return None;
    }
    let unix_s = (world.unix_ms(now) / 1_000) as i64;
    let part = part_of(request, asked, stored, unix_s);
    let (stored, age_ms) = (stored.clone(), stored.life.age_ms + since_ms);
    Some(Given { stored, part, age_ms, how: How::OnError })
}

/// How much of it a client gets that has asked so.
fn part_of(request: &Request, mut asked: Asked<'_>, stored: &Stored, unix_s: i64) -> Part {
    // RFC 9110 section 14.2: of GET alone.
    if request.method != Method::Get {
        asked.range = None;
    }
    part(&asked, stored.status, &stored.marks, stored.body.len() as u64, unix_s)
}

/// Gives it; what becomes of the client's connection.
pub async fn gave(client: &mut Client, given: Given) -> After {
    match give(client, &given, STALLED).await {
        true if client.request.keep_alive => After::Next,
        true => After::Close,
        false => {
            client.trail.outcome = "cut";
            After::Drop
        }
    }
}

/// What was asked for changes what is there: RFC 9111 section 4.4.
fn invalidate(client: &mut Client, listener: &Listener, store: &Store) {
    let secure = client.is_secure();
    let Client { request, response, visit, .. } = client;
    let [host, told, port] = asked_at(&request.head);
    let mut forget = |target: &[u8]| {
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
        let Some(cached) = listener.route_of(request, b"GET", path).and_then(|it| it.cache.clone())
        else {
            return;
        };
        visit.key.begin(&cached.prefix, secure, [host, told, port, target]);
        store.invalidate(&visit.key);
    };
    forget(request.target());
    for name in ["location", "content-location"] {
        let Some(named) = value(&response.head, name) else { continue };
        // Of the same origin only.
        let scheme: &[u8] = if secure { b"https://" } else { b"http://" };
        let target = match named.strip_prefix(scheme) {
            Some(rest) => rest.strip_prefix(told),
            None => Some(named),
        };
        if let Some(target) = target.filter(|it| it.starts_with(b"/") && !it.starts_with(b"//")) {
            let end = memchr::memchr(b'#', target).unwrap_or(target.len());
            forget(&target[..end]);
        }
    }
}
