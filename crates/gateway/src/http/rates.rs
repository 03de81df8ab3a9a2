//! Rate limits of routes, exact over all threads of a gateway, and over all gateways that tell each other.

use super::exchange::Client;
use super::from::From;
use super::request::Request;
use super::world::Route;
use everhold_core::http::HttpTable;
use everhold_core::http::rate::word::{BadWord, KEYS_MAX, LIMITS_MAX, Section, Word};
use everhold_core::http::rate::{Answer, Rate, RateKey, RateLimit, Table};
use everhold_core::spec::masked;
use siphasher::sip::SipHasher13;
use std::collections::BTreeMap;
use std::hash::Hasher;
use std::io::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Clients that are counted at once, of one limit: about 24 bytes each.
const CLIENTS_MAX: usize = 1 << 20;
/// Parts of a limit, each with a lock of its own. Chosen by the upper bits of a client's hash, so that
/// one part after the other is in order.
const SHARDS: usize = 1 << SHARD_BITS;
const SHARD_BITS: u32 = 5;
/// Anybody can make up values of a header, a cookie or a token: what is in a new one counts for its address
/// too, which thus gets so many limits in all. One alone would be little for an office behind one address.
const NEWCOMERS: u64 = 16;
/// Messages to a gateway that begins.
const PIECES_MAX: usize = 64;

/// Those of all routes.
pub struct Rates {
    begun: Instant,
    /// Of what all gateways have in common, so that they have the same hashes and nobody else does.
    key: (u64, u64),
    limiters: Mutex<BTreeMap<String, Arc<Limiter>>>,
    shared: AtomicBool,
    /// Which limit is told of first.
    turn: AtomicUsize,
}

/// That of one route.
pub struct Limiter {
    limit: RateLimit,
    /// The route's name, hashed.
    id: u64,
    key: (u64, u64),
    shards: Vec<Mutex<Table>>,
    /// Requests over the limit, since it is as it is.
    refused: AtomicU64,
}

/// What a limit is like, for who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    /// That are counted now.
    pub clients: usize,
    pub refused: u64,
}

impl Rates {
    pub fn new(secret: [u8; 32]) -> Rates {
        let half = |at: usize| secret[at..].first_chunk().map_or(0, |it| u64::from_le_bytes(*it));
        Rates {
            begun: Instant::now(),
            key: (half(0), half(8)),
            limiters: Mutex::default(),
            shared: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
        }
    }

    /// A limit that stays as it is keeps its count.
    pub fn apply(&self, table: &HttpTable) {
        let mut limiters = lock(&self.limiters);
        let before = std::mem::take(&mut *limiters);
        for route in table.listeners.values().flat_map(|it| &it.routes) {
            let Some(limit) = &route.rate_limit else { continue };
            let known = before.get(&route.name).filter(|it| it.limit == *limit).cloned();
            let limiter = known.unwrap_or_else(|| Arc::new(self.limiter(&route.name, limit)));
            limiters.insert(route.name.clone(), limiter);
        }
    }

    fn limiter(&self, name: &str, limit: &RateLimit) -> Limiter {
        let table = || {
            let mut table = Table::new(Rate::new(limit), CLIENTS_MAX / SHARDS);
            table.share(self.shared.load(Relaxed));
            Mutex::new(table)
        };
        Limiter {
            limit: limit.clone(),
            id: hash(self.key, 0, name.as_bytes()),
            key: self.key,
            shards: (0..SHARDS).map(|_| table()).collect(),
            refused: AtomicU64::new(0),
        }
    }

    pub fn of(&self, route: &str) -> Option<Arc<Limiter>> {
        lock(&self.limiters).get(route).cloned()
    }

    pub fn now_ns(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.begun).as_nanos() as u64
    }

    /// By route.
    pub fn state(&self) -> BTreeMap<String, Limited> {
        let limiters = lock(&self.limiters).clone();
        let of = |it: &Limiter| Limited {
            clients: it.shards.iter().map(|shard| lock(shard).len()).sum(),
            refused: it.refused.load(Relaxed),
        };
        limiters.iter().map(|(route, it)| (route.clone(), of(it))).collect()
    }

    /// By hash, as words name them.
    fn by_id(&self) -> BTreeMap<u64, Arc<Limiter>> {
        lock(&self.limiters).values().map(|it| (it.id, it.clone())).collect()
    }

    /// Whether there are other gateways that are to be told.
    pub fn share(&self, shared: bool) {
        let limiters = lock(&self.limiters);
        if self.shared.swap(shared, Relaxed) != shared {
            for shard in limiters.values().flat_map(|it| &it.shards) {
                lock(shard).share(shared);
            }
        }
    }

    /// What other gateways are to be told now, if anything.
    pub fn tell(&self) -> Option<Vec<u8>> {
        let mut limiters: Vec<(u64, Arc<Limiter>)> = self.by_id().into_iter().collect();
        limiters.retain(|(_, limiter)| limiter.shards.iter().any(|it| lock(it).untold() > 0));
        // Another one is first each time: no limit is left out for ever.
        let turn = self.turn.fetch_add(1, Relaxed) % limiters.len().max(1);
        limiters.rotate_left(turn);
        limiters.truncate(LIMITS_MAX);
        let (mut sections, mut left) = (Vec::new(), KEYS_MAX);
        let count = limiters.len();
        for (index, (id, limiter)) in limiters.into_iter().enumerate() {
            // What one does not need goes on to the next.
            let mut share = left.div_ceil(count - index);
            let mut clients = Vec::new();
            for (index, shard) in limiter.shards.iter().enumerate() {
                let told = lock(shard).tell(share.div_ceil(SHARDS - index));
                share -= told.len();
                left -= told.len();
                clients.extend(told);
            }
            if !clients.is_empty() {
                sections.push((id, clients));
            }
        }
        sections.sort_unstable_by_key(|(id, _)| *id);
        (!sections.is_empty()).then(|| Word::Admitted(sections).write())
    }

    /// What a gateway that begins is to be told by the others.
    pub fn debts(&self) -> Vec<Vec<u8>> {
        let now = self.now_ns(Instant::now());
        let mut pieces = Vec::new();
        for (id, limiter) in self.by_id() {
            let of = |shard: &Mutex<Table>| lock(shard).debts(now).collect::<Vec<_>>();
            let clients: Vec<(u64, u64)> = limiter.shards.iter().flat_map(of).collect();
            let piece = |clients: &[(u64, u64)]| Word::Owed(vec![(id, clients.to_vec())]).write();
            pieces.extend(clients.chunks(KEYS_MAX).map(piece).take(PIECES_MAX - pieces.len()));
        }
        pieces
    }

    /// Another gateway has told that. What it says of limits that are unknown here is left: the tables of
    /// the two are not the same yet.
    pub fn absorb(&self, word: &[u8]) -> Result<(), BadWord> {
        let now = self.now_ns(Instant::now());
        match Word::read(word)? {
            Word::Admitted(sections) => {
                self.each(sections, |table, key, count| table.absorb(key, count, now));
            }
            Word::Owed(sections) => {
                self.each(sections, |table, key, debt| table.owes(key, debt, now));
            }
        }
        Ok(())
    }

    fn each<T>(&self, sections: Vec<Section<T>>, then: impl Fn(&mut Table, u64, T)) {
        let limiters = self.by_id();
        for (id, clients) in sections {
            let Some(limiter) = limiters.get(&id) else { continue };
            for (key, number) in clients {
                then(&mut lock(limiter.shard(key)), key, number);
            }
        }
    }
}

impl Limiter {
    fn shard(&self, key: u64) -> &Mutex<Table> {
        &self.shards[(key >> (u64::BITS - SHARD_BITS)) as usize]
    }

    /// Whether one more request is within it.
    fn ask(&self, request: &Request, from: &From, now: u64) -> Answer {
        // Behind a proxy that is believed it is not the proxy's.
        let ip = request.client.unwrap_or(from.ip);
        let key = match self.key(request, ip) {
            Key::Address(key) => key,
            Key::Said(key) => {
                if let Some(answer) = lock(self.shard(key)).ask_known(key, now) {
                    return answer;
                }
                let from = self.newcomer(ip, key);
                let answer = lock(self.shard(from)).ask(from, now);
                if !answer.admitted {
                    return answer;
                }
                key
            }
        };
        lock(self.shard(key)).ask(key, now)
    }

    fn key(&self, request: &Request, ip: IpAddr) -> Key {
        let value = match &self.limit.by {
            RateKey::ClientIp { v4_bits, v6_bits } => {
                return Key::Address(self.address(ip, *v4_bits, *v6_bits));
            }
            RateKey::Header(name) => only(request.values(name)),
            RateKey::Cookie(name) => only(request.cookies(name)),
            RateKey::Token => only(request.values("authorization")).and_then(token),
        };
        match value.filter(|it| !it.is_empty()) {
            Some(value) => Key::Said(hash(self.key, 1, value)),
            None => Key::Address(self.address(ip, 32, 64)),
        }
    }

    /// By what a value counts that nobody has said so far: an address has [`NEWCOMERS`] such counts.
    fn newcomer(&self, ip: IpAddr, said: u64) -> u64 {
        let which = [self.address(ip, 32, 64), said % NEWCOMERS].map(u64::to_le_bytes);
        hash(self.key, 4, which.as_flattened())
    }

    fn address(&self, ip: IpAddr, v4_bits: u8, v6_bits: u8) -> u64 {
        let bits = if ip.is_ipv4() { v4_bits } else { v6_bits };
        match masked(ip, bits).unwrap_or(ip) {
            IpAddr::V4(ip) => hash(self.key, 2, &ip.octets()),
            IpAddr::V6(ip) => hash(self.key, 3, &ip.octets()),
        }
    }

    /// What is said of it by draft-ietf-httpapi-ratelimit-headers-09.
    fn say(&self, route: &str, answer: Answer, added: &mut Vec<u8>) {
        let Answer { admitted, remaining, wait_ns, even_ns } = answer;
        let seconds = |ns: u64| ns.div_ceil(1_000_000_000);
        // To memory, which takes all.
        let _ = write!(added, "RateLimit: \"{route}\";r={remaining};t={}\r\n", seconds(even_ns));
        if !admitted {
            let RateLimit { requests, per_s, .. } = self.limit;
            let _ = write!(
                added,
                "RateLimit-Policy: \"{route}\";q={requests};w={per_s}\r\nRetry-After: {}\r\n",
                seconds(wait_ns)
            );
        }
    }
}

/// Whether a request is within its route's limit; what is said of that goes with its answer.
pub fn admits(client: &mut Client, route: &Route, from: &From, rates: &Rates, at: Instant) -> bool {
    let Some(limiter) = &route.limiter else { return true };
    let answer = limiter.ask(&client.request, from, rates.now_ns(at));
    limiter.say(&route.name, answer, &mut client.response.added);
    if !answer.admitted {
        limiter.refused.fetch_add(1, Relaxed);
        client.trail.route = route.name.clone();
        client.trail.service = route.service.name.clone();
        client.trail.outcome = "over the route's rate limit";
    }
    answer.admitted
}

/// By what a request counts.
enum Key {
    Address(u64),
    /// The client says it.
    Said(u64),
}

/// Of several, an instance may go by another one than the gateway.
fn only<T>(mut all: impl Iterator<Item = T>) -> Option<T> {
    all.next().filter(|_| all.next().is_none())
}

/// Of RFC 6750 section 2.1.
fn token(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// `kind` keeps an address from being the same as a header of these bytes.
fn hash(key: (u64, u64), kind: u8, bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(key.0, key.1);
    hasher.write_u8(kind);
    hasher.write(bytes);
    hasher.finish()
}

/// Nothing that holds this lock can leave it half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
