//! Answers that are kept, of one gateway: all its threads have the same.

use super::Kept;
use super::purge::Purges;
use super::stored::{Count, Stored};
use crate::http::request::lines;
use everhold_core::http::cache::purge::What;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::time::Instant;

/// Each has its lock and its part of the memory: few enough that the largest answer fits in one.
const SHARDS: usize = 16;
/// What an answer is taken to have, to reckon how many there are.
const USUAL_BYTES: u64 = 4 << 10;
/// What one costs beside its bytes: a place in the table, and counts.
const OVERHEAD: u64 = 256;
/// Of the memory so much may be taken by answers that are on their way here: a fourth.
const FILLING_PART: u64 = 4;
/// Requests that others wait for. Beyond that nobody waits.
const FLIGHTS_MAX: usize = 10_000;
/// For so long nobody waits for an answer that was not kept: the next one isn't, either.
const PASS_MS: u64 = 10_000;
/// Times of invalidation, by a hash of the key.
const SPOILS: usize = 4_096;

/// What is kept under a key.
#[derive(Clone)]
pub enum Slot {
    One(Arc<Stored>),
    /// Under this key and what the request says of these fields.
    Varies(Arc<Varies>),
    /// It was not kept; nobody waits for it.
    Pass {
        until_ms: u64,
    },
}

pub struct Varies {
    /// What is kept under another one is never found again.
    id: u64,
    names: Vec<String>,
}

/// What there is for a request.
pub enum Found {
    Nothing,
    Pass,
    One(Arc<Stored>),
}

/// Under which key an answer is kept.
#[derive(Default, Clone)]
pub struct Key {
    text: Vec<u8>,
    /// Up to there it says nothing of what the answer varies by.
    base: usize,
}

impl Key {
    /// Begins anew. What is in it can't hold a 0: it comes from heads.
    pub fn begin(&mut self, prefix: &[u8], secure: bool, parts: [&[u8]; 4]) {
        self.text.clear();
        self.text.extend_from_slice(prefix);
        self.text.push(if secure { b's' } else { b'p' });
        for part in parts {
            self.text.extend_from_slice(part);
            self.text.push(0);
        }
        self.base = self.text.len();
    }

    fn vary(&mut self, varies: &Varies, head: &[u8]) {
        self.text.truncate(self.base);
        self.text.extend_from_slice(&varies.id.to_le_bytes());
        varies.names.iter().for_each(|name| push_values(&mut self.text, head, name));
    }

    fn base(&self) -> &[u8] {
        &self.text[..self.base]
    }
}

/// No field and an empty one are not the same.
fn push_values(out: &mut Vec<u8>, head: &[u8], name: &str) {
    for (_, value) in lines(head).filter(|(it, _)| it.eq_ignore_ascii_case(name.as_bytes())) {
        out.push(1);
        out.extend_from_slice(value);
    }
    out.push(0);
}

#[derive(Clone)]
struct Bytes;

impl Weighter<Box<[u8]>, Slot> for Bytes {
    fn weight(&self, key: &Box<[u8]>, slot: &Slot) -> u64 {
        let of_slot = match slot {
            Slot::One(stored) => stored.bytes(),
            Slot::Varies(varies) => varies.names.iter().map(|it| it.len() as u64 + 32).sum(),
            Slot::Pass { .. } => 0,
        };
        key.len() as u64 + of_slot + OVERHEAD
    }
}

/// What is asked for at this moment, by key, and who tells those that wait.
type Flights = HashMap<Box<[u8]>, Arc<watch::Sender<Fate>>>;

pub struct Store {
    begun: Instant,
    slots: Cache<Box<[u8]>, Slot, Bytes, RandomState>,
    bytes_max: AtomicU64,
    /// Bytes of answers that are on their way.
    filling: AtomicU64,
    flights: Mutex<Flights>,
    purges: Purges,
    /// Counts what changed answers that are kept; and when that was last, by key.
    changes: AtomicU64,
    spoils: Box<[AtomicU64]>,
    hasher: RandomState,
    ids: AtomicU64,
    counts: Mutex<BTreeMap<String, Arc<Count>>>,
}

/// When an answer was asked for, as invalidations and purges are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    pub purges: u64,
    changes: u64,
}

/// What becomes of a request that others wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Asking,
    /// It will be kept if all of it comes; since when it does.
    Coming(Instant),
    Kept,
    /// It is for one alone.
    Alone,
    /// Who asked is gone, and somebody else has to.
    Gone,
}

/// Who asks for others, too. Dropped, it is gone.
pub struct Leader {
    store: Arc<Store>,
    key: Box<[u8]>,
    fate: Arc<watch::Sender<Fate>>,
    last: Fate,
}

/// Asking for what others may be asking for.
pub enum Join {
    Leads(Leader),
    Follows(watch::Receiver<Fate>),
    /// So many are followed that nobody else is.
    Alone,
}

impl Store {
    pub fn new(bytes_max: u64) -> Arc<Store> {
        let mut options = OptionsBuilder::new();
        let items = usize::try_from(bytes_max / USUAL_BYTES).unwrap_or(usize::MAX);
        options
            .shards(SHARDS)
            .weight_capacity(bytes_max)
            .estimated_items_capacity(items.max(SHARDS * 32));
        let slots = match options.build() {
            Ok(options) => {
                Cache::with_options(options, Bytes, RandomState::new(), DefaultLifecycle::default())
            }
            // Both numbers are there; with neither of the two it would be this.
            Err(_) => Cache::with(
                items,
                bytes_max,
                Bytes,
                RandomState::new(),
                DefaultLifecycle::default(),
            ),
        };
        Arc::new(Store {
            begun: Instant::now(),
            slots,
            bytes_max: AtomicU64::new(bytes_max),
            filling: AtomicU64::new(0),
            flights: Mutex::default(),
            purges: Purges::default(),
            changes: AtomicU64::new(0),
            spoils: (0..SPOILS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
            ids: AtomicU64::new(0),
            counts: Mutex::default(),
        })
    }

    /// From now on it has so many bytes; with none nothing is kept.
    pub fn resize(&self, bytes_max: u64) {
        // Those of routes that are no more, when their last answer is gone.
        self.counts().retain(|_, it| Arc::strong_count(it) > 1);
        if self.bytes_max.swap(bytes_max, Relaxed) != bytes_max {
            self.slots.set_capacity(bytes_max);
        }
    }

    pub fn clear(&self) {
        self.slots.clear();
    }

    pub fn kept(&self) -> Kept {
        let (answers, bytes) = (self.slots.len(), self.slots.weight());
        Kept { answers, bytes, bytes_max: self.bytes_max() }
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Count>>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is counted of that route, by all threads together.
    pub fn count_of(&self, route: &str) -> Arc<Count> {
        let mut counts = self.counts();
        let count = counts.entry(route.to_owned()).or_insert_with(|| {
            let (answers, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
            Arc::new(Count { route: Arc::from(route), answers, bytes })
        });
        count.clone()
    }

    /// Answers that are kept and their bytes, by route.
    pub fn kept_by_route(&self) -> BTreeMap<String, (u64, u64)> {
        let counts = self.counts();
        let of = |it: &Count| (it.answers.load(Relaxed), it.bytes.load(Relaxed));
        counts.iter().map(|(route, it)| (route.clone(), of(it))).collect()
    }

    pub fn bytes_max(&self) -> u64 {
        self.bytes_max.load(Relaxed)
    }

    /// The time by which answers age, in milliseconds.
    pub fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.begun).as_millis() as u64
    }

    /// What is asked for from now on has seen all changes so far.
    pub fn asked(&self) -> Asked {
        Asked {
            purges: self.purges.now(),
            changes: self.changes.load(std::sync::atomic::Ordering::Acquire),
        }
    }

    /// What is there for that request; the key is then the one under which its answer is kept.
    pub fn find(&self, key: &mut Key, head: &[u8], now_ms: u64) -> Found {
        key.text.truncate(key.base);
        let slot = match self.slots.get(key.base()) {
            Some(Slot::Varies(varies)) => {
                key.vary(&varies, head);
                self.slots.get(&*key.text)
            }
            slot => slot,
        };
        match slot {
            Some(Slot::One(stored)) if self.is_there(&stored) => Found::One(stored),
            Some(Slot::Pass { until_ms }) if now_ms < until_ms => Found::Pass,
            Some(Slot::One(_) | Slot::Pass { .. } | Slot::Varies(_)) | None => Found::Nothing,
        }
    }

    /// No purge has taken it. That is looked for once after each.
    fn is_there(&self, stored: &Stored) -> bool {
        let now = self.purges.now();
        if stored.seen.load(Relaxed) == now {
            return true;
        }
        let there = !self.purges.is_gone(stored.asked.purges, &stored.names);
        if there {
            stored.seen.store(now, Relaxed);
        }
        there
    }

    /// Keeps an answer to that request, unless what it says was changed while it came. `names`: what it
    /// varies by.
    pub fn keep(&self, key: &mut Key, head: &[u8], names: &[String], stored: Arc<Stored>) {
        let asked = stored.asked;
        let known = match self.slots.peek(key.base()) {
            Some(Slot::Varies(varies)) => Some(varies),
            Some(Slot::One(_) | Slot::Pass { .. }) | None => None,
        };
        let covers = |it: &&Arc<Varies>| names.iter().all(|name| it.names.contains(name));
        let varies = match known.as_ref().filter(covers) {
            Some(varies) => Some(varies.clone()),
            None if names.is_empty() => None,
            None => {
                let mut names = names.to_vec();
                names.extend(known.iter().flat_map(|it| it.names.iter().cloned()));
                names.sort_unstable();
                names.dedup();
                let varies = Arc::new(Varies { id: self.ids.fetch_add(1, Relaxed), names });
                self.slots.insert(key.base().into(), Slot::Varies(varies.clone()));
                Some(varies)
            }
        };
        match varies {
            Some(varies) => key.vary(&varies, head),
            None => key.text.truncate(key.base),
        }
        self.slots.insert(key.text.as_slice().into(), Slot::One(stored));
        if self.spoil_of(key.base()).load(Relaxed) > asked.changes {
            self.slots.remove(&*key.text);
        }
    }

    /// Notes that an answer was not kept. What is kept stays, if it is not so `for_all`.
    pub fn pass(&self, key: &Key, for_all: bool, now_ms: u64) {
        let known = || self.slots.peek(&*key.text);
        if !for_all && matches!(known(), Some(Slot::One(_) | Slot::Varies(_))) {
            return;
        }
        let slot = Slot::Pass { until_ms: now_ms + PASS_MS };
        self.slots.insert(key.text.as_slice().into(), slot);
    }

    /// Forgets the one that is kept under exactly that key.
    pub fn forget(&self, key: &Key) {
        self.slots.remove(&*key.text);
    }

    /// What the key is for has changed: whatever was asked for up to now is not kept, or no more.
    pub fn invalidate(&self, key: &Key) {
        let now = self.changes.fetch_add(1, std::sync::atomic::Ordering::AcqRel) + 1;
        self.spoil_of(key.base()).fetch_max(now, Relaxed);
        // With what it varies by, all of them are lost.
        self.slots.remove(key.base());
    }

    fn spoil_of(&self, key: &[u8]) -> &AtomicU64 {
        &self.spoils[self.hasher.hash_one(key) as usize % SPOILS]
    }

    pub fn purge(&self, what: What) {
        if what == What::ALL {
            self.slots.clear();
        }
        self.purges.purge(what);
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for it, or waits for who does.
    pub fn join(self: &Arc<Store>, key: &Key) -> Join {
        let mut flights = self.flights();
        if let Some(fate) = flights.get(&*key.text) {
            return Join::Follows(fate.subscribe());
        }
        if flights.len() >= FLIGHTS_MAX {
            return Join::Alone;
        }
        let fate = Arc::new(watch::Sender::new(Fate::Asking));
        let key: Box<[u8]> = key.text.as_slice().into();
        flights.insert(key.clone(), fate.clone());
        Join::Leads(Leader { store: self.clone(), key, fate, last: Fate::Gone })
    }

    /// From now on nobody joins whom that is the fate of.
    pub fn leave(&self, key: &Key, fate: &watch::Receiver<Fate>) {
        let mut flights = self.flights();
        if flights.get(&*key.text).is_some_and(|it| it.subscribe().same_channel(fate)) {
            flights.remove(&*key.text);
        }
    }

    /// Takes so much more of what may be on its way; `false`: that is too much.
    pub fn reserve(&self, bytes: u64) -> bool {
        let most = self.bytes_max() / FILLING_PART;
        let fits = self.filling.fetch_add(bytes, Relaxed) + bytes <= most;
        if !fits {
            self.release(bytes);
        }
        fits
    }

    pub fn release(&self, bytes: u64) {
        self.filling.fetch_sub(bytes, Relaxed);
    }
}

impl Leader {
    /// Its answer is of a kind that is kept.
    pub fn comes(&mut self) {
        self.fate.send_replace(Fate::Coming(Instant::now()));
    }

    /// Says what came of it.
    pub fn ends(mut self, fate: Fate) {
        self.last = fate;
    }

    pub fn is_followed(&self) -> bool {
        self.fate.receiver_count() > 0
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // Nobody joins any more, and then those that have are told.
        let mut flights = self.store.flights();
        // Another one may lead by now.
        if flights.get(&self.key).is_some_and(|it| Arc::ptr_eq(it, &self.fate)) {
            flights.remove(&self.key);
        }
        drop(flights);
        self.fate.send_replace(self.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_nobody_joins_any_more_another_one_follows() {
        let store = Store::new(1 << 20);
        let mut key = Key::default();
        key.begin(b"", false, [b"a", b"a", b"80", b"/"]);
        let Join::Leads(first) = store.join(&key) else { panic!("nobody leads yet") };
        let Join::Follows(fate) = store.join(&key) else { panic!("the first one leads") };
        store.leave(&key, &fate);
        let Join::Leads(second) = store.join(&key) else { panic!("nobody joins the first one") };
        // What is said of the first one says nothing of the second one.
        store.leave(&key, &fate);
        drop(first);
        assert!(matches!(store.join(&key), Join::Follows(_)));
        drop(second);
        assert!(matches!(store.join(&key), Join::Leads(_)));
    }
}
