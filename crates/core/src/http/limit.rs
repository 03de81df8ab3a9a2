//! How many requests a service's instances are given at once where nobody says it.
//!
//! The more they are given at once, the more they do, up to the point from which on requests only wait
//! there: latency grows then in proportion, and throughput no longer. The limit is held a little above
//! that point, as FAST TCP (Wei, Jin, Low and Hegde, 2006) holds its window: `limit · base / latency` is
//! what is worked on rather than waiting, and some room is added to that, so that it finds out when more
//! is possible.
//!
//! All hangs on `base`, the latency without a queue. A minimum that is kept forgets nothing; one that is
//! forgotten after a while takes its own queue for normal and rises for ever (Netflix's Gradient2); and
//! going down to nearly nothing every minute to measure it (Envoy's) is a periodic dip. So it is looked
//! at every few seconds from just below that point, where next to nothing is lost, and also at once
//! when latency rises: if it falls as the limit does, there was a queue; if not, the instances have become
//! slower.

/// Where nothing is known; Netflix's.
pub const LIMIT_FIRST: u32 = 20;
pub const LIMIT_MAX: u32 = 100_000;
/// What a window needs: as many answers as there are places, which is one latency, and not fewer than
/// these, or so much time.
const ANSWERS_MIN: u32 = 40;
const WINDOW_MS_MAX: u64 = 2_000;
/// Room above what is worked on: so many places, and this part of all.
const ROOM: f64 = 2.0;
const ROOM_PART: f64 = 0.2;
/// Of the way to where the limit should be, so much in each window.
const GAIN: f64 = 0.5;
/// Between two looks at the base while the limit is reached.
const LOOK_EVERY_MS: u64 = 5_000;
/// How far below the point that is looked from; further each time that it turns out to lie lower.
const LOOK_FROM: f64 = 0.9;
const LOOK_FROM_MIN: f64 = 0.5;
/// Latency of so many times the base, in two windows, is looked into at once.
const DOUBT: f64 = 1.6;
/// This part of tries that found a full or silent instance is too much.
const DROPPED_PART: f64 = 0.2;
const DROPPED_CUT: f64 = 0.9;
/// Without an answer for two latencies and this, the instances stand still.
const STILL_MS: u64 = 100;

/// What there was since the last step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Answers, and the sum of what they took.
    pub answers: u32,
    pub sum_us: u64,
    /// Tries that were refused or not answered in time.
    pub dropped: u32,
    /// Somebody found no place.
    pub full: bool,
    /// As of now.
    pub in_flight: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Limiter {
    limit: f64,
    /// Microseconds; 0: nothing is known.
    base_us: f64,
    /// Of the last window.
    latency_us: f64,
    window: Seen,
    since_ms: u64,
    answered_ms: u64,
    /// So many answers are of requests from before, and say nothing of now.
    stale: u32,
    look: Option<Look>,
    looked_ms: Option<u64>,
    look_from: f64,
    doubts: u32,
}

/// The base is looked at; what was before.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Look {
    limit: f64,
    latency_us: f64,
}

impl Limiter {
    pub fn new(now_ms: u64) -> Limiter {
        Limiter {
            limit: f64::from(LIMIT_FIRST),
            base_us: 0.0,
            latency_us: 0.0,
            window: Seen::default(),
            since_ms: now_ms,
            answered_ms: now_ms,
            stale: 0,
            look: None,
            looked_ms: None,
            look_from: LOOK_FROM,
            doubts: 0,
        }
    }

    pub fn limit(&self) -> u32 {
        (self.limit.round() as u32).clamp(1, LIMIT_MAX)
    }

    /// The latency without a queue, as far as it is known.
    pub fn base_us(&self) -> u64 {
        self.base_us as u64
    }

    /// What a tenth of a second or so brought.
    pub fn step(&mut self, now_ms: u64, seen: Seen) {
        let Seen { answers, sum_us, dropped, full, in_flight } = seen;
        // What is refused or given up counts also where nothing is answered at all.
        self.window.dropped = self.window.dropped.saturating_add(dropped);
        self.window.full |= full;
        let silent_ms = now_ms.saturating_sub(self.answered_ms);
        if answers > 0 || in_flight == 0 {
            self.answered_ms = now_ms;
        } else if silent_ms >= STILL_MS + 2 * (self.latency_us / 1_000.0) as u64 {
            // They stand still: what comes afterwards has waited for that.
            self.stale = in_flight;
            (self.window.answers, self.window.sum_us) = (0, 0);
        }
        if answers > 0 && self.stale > 0 {
            // Who takes long for each request does not stand still in between.
            self.latency_us = sum_us as f64 / f64::from(answers);
            self.stale = self.stale.saturating_sub(answers.saturating_add(dropped));
            return self.begin_window(now_ms);
        }
        self.window.answers = self.window.answers.saturating_add(answers);
        self.window.sum_us = self.window.sum_us.saturating_add(sum_us);
        let Seen { answers, dropped, .. } = self.window;
        let enough = answers.max(dropped) >= self.limit().max(ANSWERS_MIN);
        if enough || now_ms.saturating_sub(self.since_ms) >= WINDOW_MS_MAX {
            self.judge(now_ms);
            self.begin_window(now_ms);
        }
    }

    fn begin_window(&mut self, now_ms: u64) {
        (self.window, self.since_ms) = (Seen::default(), now_ms);
    }

    fn judge(&mut self, now_ms: u64) {
        let Seen { answers, sum_us, dropped, full, .. } = self.window;
        if answers > 0 {
            self.latency_us = (sum_us as f64 / f64::from(answers)).max(1.0);
        }
        if f64::from(dropped) > DROPPED_PART * f64::from(answers.saturating_add(dropped)) {
            self.look = None;
            self.limit = (self.limit * DROPPED_CUT).max(1.0);
            return;
        }
        if answers == 0 {
            return;
        }
        let latency_us = self.latency_us;
        if self.base_us == 0.0 {
            self.base_us = latency_us;
        }
        if let Some(look) = self.look.take() {
            return self.looked(look, latency_us, now_ms);
        }
        if !full {
            // Nobody was kept waiting here, so there is nothing to hold back; faster is faster.
            self.base_us += 0.2 * (latency_us - self.base_us).min(0.0);
            self.doubts = 0;
            return;
        }
        self.doubts = if latency_us > DOUBT * self.base_us { self.doubts + 1 } else { 0 };
        let due = self.looked_ms.is_none_or(|it| now_ms.saturating_sub(it) >= LOOK_EVERY_MS);
        if due || self.doubts >= 2 {
            return self.begin_look(latency_us);
        }
        self.base_us += 0.2 * (latency_us - self.base_us).min(0.0);
        let target = self.target(self.limit, latency_us);
        self.limit = (self.limit + GAIN * (target - self.limit)).clamp(1.0, f64::from(LIMIT_MAX));
    }

    fn target(&self, limit: f64, latency_us: f64) -> f64 {
        limit * (self.base_us / latency_us).min(1.0) + ROOM + ROOM_PART * limit
    }

    /// Goes to just below the point for one window.
    fn begin_look(&mut self, latency_us: f64) {
        let limit = self.limit;
        self.look = Some(Look { limit, latency_us });
        self.stale = self.limit();
        let worked_on = limit * (self.base_us / latency_us).min(1.0);
        self.limit = (worked_on * self.look_from).max(limit * LOOK_FROM_MIN).max(1.0);
    }

    fn looked(&mut self, look: Look, latency_us: f64, now_ms: u64) {
        let fell_to = latency_us / look.latency_us;
        // As the limit did, give or take a tenth: all that was taken away had been waiting.
        let queue_alone = fell_to <= 1.1 * self.limit / look.limit;
        let before_us = self.base_us;
        self.base_us = match queue_alone {
            true => self.base_us.min(latency_us),
            // What is about the same is chance for the most part.
            false if (latency_us / before_us - 1.0).abs() < 0.25 => {
                before_us + 0.3 * (latency_us - before_us)
            }
            false => latency_us,
        };
        let lower = queue_alone && self.base_us < 0.95 * before_us;
        self.look_from = match lower {
            true => (self.look_from * self.look_from).max(LOOK_FROM_MIN),
            false => LOOK_FROM,
        };
        // It may lie lower still.
        self.looked_ms = if lower { None } else { Some(now_ms) };
        self.limit = self.target(look.limit, look.latency_us).clamp(1.0, f64::from(LIMIT_MAX));
        self.doubts = 0;
    }
}

#[cfg(test)]
mod tests;
