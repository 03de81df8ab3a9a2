//! Whom a thread of the gateway refuses while it has too little processor time for all.
//!
//! What is refused costs a part of what is served, so there is a share of all requests without which
//! those that are served wait no longer than they should. It is found by how long what is due waits for
//! the thread: while that is too long and does not shrink, more are refused; while it is short, fewer,
//! slowly, and faster the more the thread idles; in between nothing changes, so that it comes to rest
//! and no dip comes round.
//!
//! The lowest class goes first, in each class clients that are not known before those that are, and all
//! of one before any of the next. The highest class is never refused.

use super::queue::Priority;

/// What waits for so long waits too long: three passes of a request make a third of a second of it.
/// A thread that is merely busy, with a thousand requests at once, is far below.
const WAIT_US: u64 = 100_000;
/// Below that there is room for more.
const WAIT_US_MIN: u64 = 25_000;
/// A thread that idles more than this is not short of time, whatever it waited for: it may have stood
/// still as a whole. The rest of a full one's time goes to the kernel's word of what is ready.
const BUSY_MIN: u32 = 750;
/// From here on it idles.
const BUSY_FULL: u32 = 900;
/// With fewer requests than these between two looks nobody is too many: others keep the thread from its
/// work, and to refuse those few would bring it nothing.
const REQUESTS_MIN: u32 = 100;
/// Of those that are served, so many fewer or more in a second, at the bounds above; further off it is
/// faster.
const UP: f64 = 0.25;
const UP_MAX: f64 = 1.0;
const DOWN: f64 = 0.1;
const DOWN_IDLE: f64 = 6.0;
/// Between two looks this is the most that counts.
const STEP_MS_MAX: u64 = 500;
/// Nobody is shut out for good: one in twenty gets through.
const SHARE_MAX: f64 = 0.95;
/// Of what was offered of each kind, so much of the last look goes into the average.
const LAST: f64 = 0.2;
/// Who may be refused, and who is not: classes, each by clients that are not known and that are.
const KINDS: usize = 7;

/// What there was of a thread since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Strain {
    /// Of its time it was at work, in thousandths.
    pub busy: u32,
    /// For so long something that was due waited.
    pub wait_us: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Shedding {
    /// Of all requests.
    share: f64,
    /// Of those of each kind.
    shares: [f64; KINDS],
    /// What was offered since the last look, and on average.
    offered: [u32; KINDS],
    usual: [f64; KINDS],
    /// All of them, since the last look.
    requests: u32,
    last: Strain,
    at_ms: u64,
}

impl Shedding {
    /// Of all requests that share is refused.
    pub fn share(&self) -> f64 {
        self.share
    }

    /// A request came. Whether any are refused: while none is, nothing need be known of it.
    pub fn comes(&mut self) -> bool {
        self.requests = self.requests.saturating_add(1);
        self.share > 0.0
    }

    pub fn step(&mut self, now_ms: u64, seen: Strain) {
        let for_s = now_ms.saturating_sub(self.at_ms).min(STEP_MS_MAX) as f64 / 1_000.0;
        // Once is a burst.
        let wait_us = seen.wait_us.min(self.last.wait_us);
        let shrinks = seen.wait_us < self.last.wait_us - self.last.wait_us / 20;
        let crowded = std::mem::take(&mut self.requests) >= REQUESTS_MIN;
        let rate = if crowded && seen.busy >= BUSY_MIN && wait_us >= WAIT_US {
            let far = wait_us as f64 / WAIT_US as f64;
            if shrinks { 0.0 } else { (UP * far).min(UP_MAX) }
        } else if seen.wait_us < WAIT_US_MIN {
            let idle = f64::from(BUSY_FULL.saturating_sub(seen.busy)) / f64::from(BUSY_FULL);
            -(DOWN + idle * DOWN_IDLE)
        } else {
            0.0
        };
        let most = SHARE_MAX * self.may_be_refused();
        // In parts of what is served, so that much overload is met with the same calm as little.
        let served = (1.0 - self.share) * (1.0 - rate * for_s);
        self.share = (1.0 - served).clamp(0.0, most);
        (self.last, self.at_ms) = (seen, now_ms);
        self.share_out();
    }

    /// The part of all requests that are not of the highest class, as far as that is known.
    fn may_be_refused(&self) -> f64 {
        let all: f64 = self.usual.iter().sum();
        if all > 0.0 { 1.0 - self.usual[KINDS - 1] / all } else { 1.0 }
    }

    /// Takes the share from the lowest kinds, by what is offered of each.
    fn share_out(&mut self) {
        let offered = std::mem::take(&mut self.offered);
        if self.share == 0.0 {
            (self.usual, self.shares) = ([0.0; KINDS], [0.0; KINDS]);
            return;
        }
        for (usual, offered) in self.usual.iter_mut().zip(offered) {
            *usual += LAST * (f64::from(offered) - *usual);
        }
        let all: f64 = self.usual.iter().sum();
        let mut left = self.share * all;
        for (kind, share) in self.shares.iter_mut().enumerate() {
            let most = if kind < KINDS - 1 { SHARE_MAX } else { 0.0 };
            let usual = self.usual[kind];
            // What is rare is refused with what comes before it.
            *share = if usual > 0.0 { (left / usual).clamp(0.0, most) } else { 0.0 };
            left -= *share * usual;
        }
    }

    /// Whether one that came is refused, while some are. `known`: its client was served of late.
    pub fn refuses(&mut self, class: Priority, known: bool, random: u64) -> bool {
        let kind = match class {
            Priority::Critical => KINDS - 1,
            Priority::High => 4 + usize::from(known),
            Priority::Normal => 2 + usize::from(known),
            Priority::Low => usize::from(known),
        };
        self.offered[kind] += 1;
        let dice = (random >> 11) as f64 / (1_u64 << 53) as f64;
        dice < self.shares[kind]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::chance::Chance;
    use std::collections::VecDeque;

    const EVERY_US: u64 = 50_000;
    const COST_US: u64 = 100;
    const REFUSAL_US: u64 = 20;

    /// Who asks: class, whether it is known, and its share of all in percent.
    type Mix = [(Priority, bool, usize)];

    #[derive(Default, Clone)]
    struct Second {
        served: usize,
        offered: Vec<usize>,
        refused: Vec<usize>,
        share: f64,
        /// Longest that one of those that were served had waited.
        longest_us: u64,
    }

    /// A thread that serves what comes, one after the other; `load`: from each second on, so many
    /// percent of what it could serve are offered.
    fn run(load: &[(u64, u64)], mix: &Mix, seconds: u64, seed: u64) -> Vec<Second> {
        let (mut chance, mut shedding) = (Chance(seed), Shedding::default());
        let mut queue: VecDeque<(u64, Option<usize>)> = VecDeque::new();
        let mut told: Vec<Second> = Vec::new();
        let (mut now_us, mut next_us, mut busy_us, mut looked_us) = (0, 0, 0, 0);
        let mut due_us = EVERY_US;
        let mut looks = false;
        while now_us < seconds * 1_000_000 {
            let second = (now_us / 1_000_000) as usize;
            if told.len() <= second {
                let none = vec![0; mix.len()];
                let new = Second { offered: none.clone(), refused: none, ..Second::default() };
                told.push(new);
            }
            let this = &mut told[second];
            while next_us <= now_us {
                let percent = load.iter().rev().find(|it| it.0 * 1_000_000 <= next_us).unwrap().1;
                let mut dice = chance.below(100);
                let who = mix.iter().position(|(_, _, share)| {
                    let is = dice < *share;
                    dice = dice.saturating_sub(*share);
                    is
                });
                if percent > 0 {
                    // A listening socket and its clients hold only so many.
                    if queue.len() < 20_000 {
                        queue.push_back((next_us, who));
                    }
                }
                next_us += 1 + chance.below(2 * (COST_US * 100 / percent.max(1)) as usize) as u64;
            }
            if now_us >= due_us && !looks {
                (looks, due_us) = (true, now_us);
                queue.push_back((now_us, None));
            }
            match queue.pop_front() {
                None => now_us += 10,
                Some((_, None)) => {
                    let all_us = (now_us - looked_us).max(1);
                    let busy = (busy_us * 1_000 / all_us) as u32;
                    shedding.step(now_us / 1_000, Strain { busy, wait_us: now_us - due_us });
                    this.share = shedding.share();
                    (busy_us, looked_us) = (0, now_us);
                    (looks, due_us) = (false, now_us + EVERY_US);
                }
                Some((came_us, Some(who))) => {
                    let (class, known, _) = mix[who];
                    let refused = shedding.comes() && shedding.refuses(class, known, chance.next());
                    this.offered[who] += 1;
                    let cost = if refused { REFUSAL_US } else { COST_US };
                    (now_us, busy_us) = (now_us + cost, busy_us + cost);
                    this.served += usize::from(!refused);
                    this.refused[who] += usize::from(refused);
                    if !refused {
                        this.longest_us = this.longest_us.max(now_us - came_us);
                    }
                }
            }
        }
        told
    }

    const ALIKE: &Mix = &[(Priority::Normal, true, 100)];
    const MIXED: &Mix = &[
        (Priority::Low, false, 10),
        (Priority::Low, true, 10),
        (Priority::Normal, false, 25),
        (Priority::Normal, true, 25),
        (Priority::High, true, 20),
        (Priority::Critical, false, 10),
    ];

    #[test]
    fn nobody_is_refused_while_there_is_time_for_all() {
        for (percent, seed) in [(10, 1), (70, 2), (95, 3)] {
            let told = run(&[(0, percent)], MIXED, 20, seed);
            assert!(told.iter().all(|it| it.refused.iter().sum::<usize>() == 0), "{percent}");
        }
    }

    #[test]
    fn in_overload_as_many_are_served_as_can_be_and_no_dip_comes_round() {
        for (percent, mix, seed) in
            [(150, ALIKE, 1), (200, MIXED, 2), (300, ALIKE, 4), (300, MIXED, 5)]
        {
            let told = run(&[(0, percent)], mix, 60, seed);
            // What is left for those that are served, when all others are refused.
            let (all, cost) = (percent as f64 * 100.0, COST_US as f64);
            let refusal = REFUSAL_US as f64;
            let best = (1e6 - all * refusal) / (cost - refusal);
            let mut all = 0.0;
            for (second, it) in told.iter().enumerate().skip(10) {
                let part = it.served as f64 / best;
                assert!(part > 0.7, "{percent} {second}: {part:.2} {:.2}", it.share);
                assert!(it.longest_us < 600_000, "{percent} {second}: {} us", it.longest_us);
                all += part / 50.0;
            }
            assert!(all > 0.9, "{percent}: {all:.2}");
        }
    }

    #[test]
    fn the_lowest_goes_first_and_the_highest_never() {
        let told = run(&[(0, 200)], MIXED, 30, 7);
        for (second, it) in told.iter().enumerate() {
            let part = |who: usize| it.refused[who] as f64 / it.offered[who].max(1) as f64;
            assert_eq!(it.refused[5], 0);
            for who in 1..5 {
                assert!(part(who - 1) + 0.05 > part(who), "{second} {who}: {:?}", it.refused);
            }
        }
        assert!(told.last().unwrap().refused[0] > 0);
    }

    #[test]
    fn it_is_over_soon_after_the_overload_is() {
        for (percent, mix) in [(300, ALIKE), (300, MIXED)] {
            let told = run(&[(0, percent), (20, 50)], mix, 30, 9);
            assert!(told[19].share > 0.5);
            let refused = |it: &Second| it.refused.iter().sum::<usize>();
            assert!(told[24..].iter().all(|it| refused(it) == 0), "{:?}", told[24].share);
        }
    }

    fn come(shedding: &mut Shedding, requests: u32) {
        for _ in 0..requests {
            shedding.comes();
        }
    }

    /// A machine that stood still, a burst, and few requests are no want of time.
    #[test]
    fn what_waited_once_or_in_an_idle_thread_or_for_few_changes_nothing() {
        let mut shedding = Shedding::default();
        for step in 0..100 {
            come(&mut shedding, REQUESTS_MIN);
            let wait_us = if step % 10 == 0 { 900_000 } else { 1_000 };
            shedding.step(step * 50, Strain { busy: 1_000, wait_us });
            assert_eq!(shedding.share(), 0.0);
        }
        for step in 100..200 {
            come(&mut shedding, REQUESTS_MIN);
            shedding.step(step * 50, Strain { busy: 600, wait_us: 900_000 });
            assert_eq!(shedding.share(), 0.0);
        }
        for step in 200..300 {
            come(&mut shedding, REQUESTS_MIN - 1);
            shedding.step(step * 50, Strain { busy: 1_000, wait_us: 900_000 });
            assert_eq!(shedding.share(), 0.0);
        }
        for step in 300..303 {
            come(&mut shedding, REQUESTS_MIN);
            shedding.step(step * 50, Strain { busy: 1_000, wait_us: 900_000 });
        }
        assert!(shedding.share() > 0.0);
    }
}
