//! The places of a service or a route, over all threads. While there is room a request costs two atomic
//! additions; the queue behind it is locked only where somebody has to wait, and never across an await.

use everhold_core::http::limit::{LIMIT_FIRST, Limiter, Seen};
use everhold_core::http::queue::{
    Bulkhead, Denied, Limit, Priority, Queue, Room, Ticket, average_us,
};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// One of those that wait, in the word of a gate.
const WAITS: u64 = 1 << 32;
/// Who waits is told by this. Dropped untaken, the place is free again.
type Told = Result<Permit, Denied>;

pub struct Gate {
    begun: Instant,
    /// How many wait, above; how many places are taken, below. One word, so that who leaves sees in the
    /// same moment whether anybody waits.
    word: AtomicU64,
    limit: AtomicU32,
    /// `u32::MAX`: as many as there are places.
    queue_max: AtomicU32,
    wait_us: AtomicU64,
    /// How long an answer takes to begin, on average.
    service_us: AtomicU64,
    queue: Mutex<Queue<oneshot::Sender<Told>>>,
    /// `None`: the limit is given.
    limiter: Mutex<Option<Limiter>>,
    adapts: AtomicBool,
    /// What the limiter has not seen.
    answers: AtomicU32,
    sum_us: AtomicU64,
    dropped: AtomicU32,
    full: AtomicBool,
    /// Somebody was turned away since the last look; and whether it was too much as of that look.
    turned: AtomicBool,
    crowded: AtomicBool,
}

/// What a gate is like now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateState {
    pub limit: u32,
    /// The limit finds itself.
    pub auto: bool,
    pub in_flight: u32,
    pub waiting: u32,
}

/// A place, for as long as this lives.
pub struct Permit {
    gate: Arc<Gate>,
}

impl Permit {
    /// Of a limit that finds itself.
    pub fn is_found(&self) -> bool {
        self.gate.adapts.load(Relaxed)
    }
}

/// What becomes of who asks for a place.
pub enum Entry {
    In(Permit),
    Waits(Waiting),
    Denied(Denied),
}

/// Somebody who waits; dropped, it waits no longer.
pub struct Waiting {
    gate: Arc<Gate>,
    ticket: Ticket,
    told: oneshot::Receiver<Told>,
    /// Its turn is no use to it afterwards.
    pub until: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn taken(word: u64) -> u32 {
    word as u32
}

fn waiting(word: u64) -> u32 {
    (word >> 32) as u32
}

impl Gate {
    pub fn new(spec: &Bulkhead, begun: Instant) -> Arc<Gate> {
        let gate = Arc::new(Gate {
            begun,
            word: AtomicU64::new(0),
            limit: AtomicU32::new(LIMIT_FIRST),
            queue_max: AtomicU32::new(0),
            wait_us: AtomicU64::new(0),
            service_us: AtomicU64::new(0),
            queue: Mutex::default(),
            limiter: Mutex::default(),
            adapts: AtomicBool::new(false),
            answers: AtomicU32::new(0),
            sum_us: AtomicU64::new(0),
            dropped: AtomicU32::new(0),
            full: AtomicBool::new(false),
            turned: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
        });
        gate.set(spec, begun);
        gate
    }

    /// What is learned and who is in it stays.
    pub fn set(self: &Arc<Gate>, spec: &Bulkhead, now: Instant) {
        self.queue_max.store(spec.queue.unwrap_or(u32::MAX), Relaxed);
        self.wait_us.store(spec.wait_ms.saturating_mul(1_000), Relaxed);
        let mut limiter = lock(&self.limiter);
        let limit = match spec.limit {
            Limit::Most(limit) => {
                *limiter = None;
                limit.max(1)
            }
            Limit::Auto => {
                limiter.get_or_insert_with(|| Limiter::new(self.us(now) / 1_000)).limit()
            }
        };
        self.adapts.store(limiter.is_some(), Relaxed);
        drop(limiter);
        self.set_limit(limit, now);
    }

    fn set_limit(self: &Arc<Gate>, limit: u32, now: Instant) {
        if self.limit.swap(limit, SeqCst) < limit {
            self.call(now);
        }
    }

    pub fn state(&self) -> GateState {
        let word = self.word.load(Relaxed);
        GateState {
            limit: self.limit.load(Relaxed),
            auto: self.adapts.load(Relaxed),
            in_flight: taken(word),
            waiting: waiting(word),
        }
    }

    fn us(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.begun).as_micros() as u64
    }

    /// Takes a place if there is one and nobody waits for it.
    fn take(&self) -> bool {
        let limit = self.limit.load(SeqCst);
        let free = |word: u64| (waiting(word) == 0 && taken(word) < limit).then_some(word + 1);
        self.word.fetch_update(SeqCst, SeqCst, free).is_ok()
    }

    fn permit(self: &Arc<Gate>) -> Permit {
        Permit { gate: self.clone() }
    }

    /// A place that is free, for what nobody waits with.
    pub fn spare(self: &Arc<Gate>) -> Option<Permit> {
        self.take().then(|| self.permit())
    }

    /// Takes a place, or a place in the queue. `deadline`: when the answer has to be there.
    pub fn enter(self: &Arc<Gate>, class: Priority, now: Instant, deadline: Instant) -> Entry {
        if self.take() {
            return Entry::In(self.permit());
        }
        self.full.store(true, Relaxed);
        let mut queue = lock(&self.queue);
        if self.take() {
            return Entry::In(self.permit());
        }
        let room = self.room();
        // What is let in so late that it can't be answered in time takes a place for nothing.
        let done = deadline.checked_sub(Duration::from_micros(room.service_us)).unwrap_or(now);
        let until = done.min(now + Duration::from_micros(self.wait_us.load(Relaxed)));
        let (tell, told) = oneshot::channel();
        let (ticket, out) = match queue.enter(class, self.us(until), room, tell, self.us(now)) {
            Ok(entered) => entered,
            Err(denied) => {
                self.turned.store(true, Relaxed);
                return Entry::Denied(denied);
            }
        };
        // Who took the place of another changes nothing of how many wait.
        let before = if out.is_none() { self.word.fetch_add(WAITS, SeqCst) } else { u64::MAX };
        drop(queue);
        if let Some(out) = out {
            // It may be leaving by itself.
            let _ = out.send(Err(Denied::Full));
        }
        // Whoever left before this one was seen to wait has called nobody.
        if taken(before) < self.limit.load(SeqCst) {
            self.call(now);
        }
        Entry::Waits(Waiting { gate: self.clone(), ticket, told, until })
    }

    fn room(&self) -> Room {
        let places = self.limit.load(Relaxed);
        let most = match self.queue_max.load(Relaxed) {
            u32::MAX => places,
            most => most,
        };
        Room { most: most as usize, places, service_us: self.service_us.load(Relaxed) }
    }

    /// Calls those whose turn it is.
    fn call(self: &Arc<Gate>, now: Instant) {
        let now_us = self.us(now);
        loop {
            let mut queue = lock(&self.queue);
            if taken(self.word.load(SeqCst)) >= self.limit.load(SeqCst) {
                return;
            }
            let Some((tell, in_time)) = queue.next(now_us) else { return };
            // While somebody waits only this takes places, under its lock.
            self.word.fetch_sub(if in_time.is_ok() { WAITS - 1 } else { WAITS }, SeqCst);
            drop(queue);
            // Who has gone meanwhile drops what it is told, and the place with it.
            let _ = tell.send(in_time.map(|()| self.permit()));
        }
    }

    /// Some wait all the time, or were turned away.
    pub fn is_crowded(&self) -> bool {
        self.crowded.load(Relaxed)
    }

    /// Adapts the limit to what there was since the last time.
    pub fn step(self: &Arc<Gate>, now: Instant) {
        let waits = waiting(self.word.load(Relaxed)) > 0;
        self.crowded.store(self.turned.swap(false, Relaxed) || waits, Relaxed);
        if !self.adapts.load(Relaxed) {
            return;
        }
        let seen = Seen {
            answers: self.answers.swap(0, Relaxed),
            sum_us: self.sum_us.swap(0, Relaxed),
            dropped: self.dropped.swap(0, Relaxed),
            full: self.full.swap(false, Relaxed),
            in_flight: taken(self.word.load(Relaxed)),
        };
        let mut limiter = lock(&self.limiter);
        let Some(adapting) = limiter.as_mut() else { return };
        adapting.step(self.us(now) / 1_000, seen);
        let limit = adapting.limit();
        drop(limiter);
        self.set_limit(limit, now);
    }

    /// An instance answered after `took`.
    pub fn answered(&self, took: Duration) {
        let took_us = took.as_micros() as u64;
        // Two that end in one moment may lose one of both: it is an average.
        let average = average_us(self.service_us.load(Relaxed), took_us);
        self.service_us.store(average, Relaxed);
        if self.adapts.load(Relaxed) {
            self.answers.fetch_add(1, Relaxed);
            self.sum_us.fetch_add(took_us, Relaxed);
        }
    }

    /// It did not in time, or said that it takes no more.
    pub fn dropped(&self) {
        if self.adapts.load(Relaxed) {
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let gate = &self.gate;
        let before = gate.word.fetch_sub(1, SeqCst);
        if waiting(before) > 0 {
            gate.call(Instant::now());
        }
    }
}

impl Waiting {
    /// Ready when its turn has come, or never will.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Told> {
        // Nobody forgets a waiter without a word.
        Pin::new(&mut self.told).poll(cx).map(|told| told.unwrap_or(Err(Denied::Late)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut queue = lock(&self.gate.queue);
        let left = queue.leave(self.ticket);
        if left.is_some() {
            self.gate.word.fetch_sub(WAITS, SeqCst);
        }
    }
}
