//! How busy this thread is, how long what is due waits for it, and whom it refuses for that.
//! `everhold_core::http::shed` decides.

use super::from::From;
use super::world::{Route, World};
use everhold_core::http::shed::{Shedding, Strain};
use std::cell::RefCell;
use std::rc::Weak;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// Between two looks. An idle thread is woken for it, so no more often than is needed.
const EVERY: Duration = Duration::from_millis(50);

/// Of one thread, its own.
#[derive(Default)]
pub struct Strained {
    shedding: RefCell<Shedding>,
    told: Arc<Told>,
}

/// What others see of it.
#[derive(Default)]
pub struct Told {
    busy: AtomicU32,
    wait_us: AtomicU32,
    /// In thousandths.
    share: AtomicU32,
}

/// A thread that carries requests, for who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadState {
    /// Of its time it was at work, in thousandths.
    pub busy: u32,
    /// For so long what was due waited for it.
    pub wait_us: u32,
    /// Of its requests it refuses that share, in thousandths.
    pub refused: u32,
}

impl Told {
    pub fn state(&self) -> ThreadState {
        ThreadState {
            busy: self.busy.load(Relaxed),
            wait_us: self.wait_us.load(Relaxed),
            refused: self.share.load(Relaxed),
        }
    }
}

impl Strained {
    pub fn told(&self) -> &Arc<Told> {
        &self.told
    }

    fn step(&self, now_ms: u64, seen: Strain) {
        let mut shedding = self.shedding.borrow_mut();
        shedding.step(now_ms, seen);
        self.told.busy.store(seen.busy, Relaxed);
        self.told.wait_us.store(u32::try_from(seen.wait_us).unwrap_or(u32::MAX), Relaxed);
        // Anything at all is seen.
        self.told.share.store((shedding.share() * 1_000.0).ceil() as u32, Relaxed);
    }
}

/// Whether a request is refused because the thread has no time for it.
pub fn refuses(world: &World, route: &Route, from: &From) -> bool {
    let mut shedding = world.strain.shedding.borrow_mut();
    if !shedding.comes() {
        return false;
    }
    let known = from.was_served() || world.shared.door.knows(from.client);
    shedding.refuses(route.priority, known, world.ids.borrow_mut().random())
}

/// Looks at the thread that this runs on until its world is gone.
pub async fn watch(world: Weak<World>) {
    let metrics = Handle::current().metrics();
    let (mut looked, mut busy) = (Instant::now(), metrics.worker_total_busy_duration(0));
    loop {
        let due = Instant::now() + EVERY;
        tokio::time::sleep_until(due).await;
        let Some(world) = world.upgrade() else { return };
        let (now, busy_now) = (Instant::now(), metrics.worker_total_busy_duration(0));
        let all_us = (now - looked).as_micros().max(1);
        let part = (busy_now - busy).as_micros() * 1_000 / all_us;
        let seen = Strain {
            busy: u32::try_from(part).unwrap_or(u32::MAX).min(1_000),
            wait_us: (now - due).as_micros() as u64,
        };
        world.strain.step(world.ms(now), seen);
        (looked, busy) = (now, busy_now);
    }
}
