//! How fast a proof reads and writes: it shares its disk with a server.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A terabyte in two and a half hours, and little for a disk of today.
const BYTES_PER_S: u64 = 128 << 20;
/// Nobody sleeps longer at once, so that it ends soon when it has to.
const SLEEP_MAX: Duration = Duration::from_millis(500);

/// The budget of one step.
pub struct Budget {
    begun: Instant,
    /// Until then somebody sleeps already, and what all have slept, without counting twice.
    slept: Mutex<(Instant, Duration)>,
}

impl Budget {
    pub fn begin() -> Budget {
        let begun = Instant::now();
        Budget { begun, slept: Mutex::new((begun, Duration::ZERO)) }
    }

    /// Sleeps while more than the budget is done.
    pub fn keep(&self, done_bytes: u64) {
        let due = Duration::from_secs_f64(done_bytes as f64 / BYTES_PER_S as f64);
        let now = Instant::now();
        let pause = (self.begun + due).saturating_duration_since(now).min(SLEEP_MAX);
        if pause.is_zero() {
            return;
        }
        if let Ok(mut slept) = self.slept.lock() {
            let (until, all) = *slept;
            let end = until.max(now + pause);
            *slept = (end, all + end.saturating_duration_since(until.max(now)));
        }
        std::thread::sleep(pause);
    }

    /// What it would not have taken without the budget.
    pub fn slept(&self) -> Duration {
        self.slept.lock().map_or(Duration::ZERO, |slept| slept.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_budget_and_no_sleep_counts_twice() {
        let budget = Budget::begin();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..4).for_each(|_| budget.keep(BYTES_PER_S / 5)));
            }
        });
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(195), "{took:?}");
        let slept = budget.slept();
        assert!(slept >= Duration::from_millis(195) && slept <= took, "{slept:?} of {took:?}");
        budget.keep(BYTES_PER_S / 100);
        assert_eq!(budget.slept(), slept, "what is late does not sleep");
    }
}
