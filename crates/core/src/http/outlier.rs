//! Passive ejection: a backend whose requests fail is left alone for a while.
//!
//! Right for few backends: what is left is counted after the ejection, among those that the checks
//! leave. At least half of them stay, and never none: one of two may go, one of three, two of five.
//! Where all are equally ill, nobody goes: ejecting helps only if somebody else does better.

use super::hash::below;

/// Failures in a row that eject, as with Envoy and linkerd.
pub const RUN: u32 = 5;
/// The failure rate is that of the last 10 s, in buckets of one.
const BUCKETS: usize = 10;
const BUCKET_MS: u64 = 1_000;
/// Fewer requests make no rate; at five a second a backend has them in time.
pub const REQUESTS_MIN: u32 = 20;
/// This rate ejects, in percent.
pub const RATE_PERCENT: u32 = 50;
/// The first ejection; the second in a row is twice as long, and so on.
pub const EJECTED_MS: u64 = 10_000;
pub const EJECTED_MS_MAX: u64 = 300_000;
/// After being back for so long one ejection is forgotten.
const FORGIVEN_MS: u64 = 60_000;

/// Failures since the last success.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Run {
    pub length: u32,
    /// All of them found no connection.
    pub unreachable: bool,
}

/// What became of a backend's requests since the last step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub succeeded: u32,
    pub failed: u32,
    /// As of now, over all steps.
    pub run: Run,
}

/// Why a backend was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// [`RUN`] requests in a row found no connection.
    Unreachable,
    /// [`RUN`] requests in a row failed.
    Run,
    /// [`RATE_PERCENT`] of at least [`REQUESTS_MIN`] requests failed within 10 s.
    Rate,
    /// It was back, and what it was tried with failed.
    Trial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Ejected {
        backend: usize,
        cause: Cause,
        until_ms: u64,
    },
    /// It is back on trial: its slow start and the count of its run begin anew, and if the first
    /// that it is tried with fails, it is ejected again.
    Back {
        backend: usize,
    },
}

/// The judge of one service's backends, which are known by their index in the table.
#[derive(Debug, Clone, Default)]
pub struct Judge {
    backends: Vec<Record>,
}

#[derive(Debug, Clone, Default)]
struct Record {
    state: State,
    /// Ejections that aren't forgiven.
    times: u64,
    run: Run,
    window: Window,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    In,
    Trial {
        since_ms: u64,
    },
    /// It has shown that it works.
    Back {
        since_ms: u64,
    },
    Out {
        since_ms: u64,
        until_ms: u64,
        cause: Cause,
    },
}

/// Successes and failures of the last seconds, each with the second that it is of.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    buckets: [(u64, u32, u32); BUCKETS],
}

impl Judge {
    pub fn new(backends: usize) -> Judge {
        Judge { backends: vec![Record::default(); backends] }
    }

    /// The judge of a new table: `from[i]` is the index that its backend `i` had in the old one.
    pub fn moved(&self, from: &[Option<usize>]) -> Judge {
        let old = |i: &Option<usize>| i.and_then(|i| self.backends.get(i)).cloned();
        Judge { backends: from.iter().map(|i| old(i).unwrap_or_default()).collect() }
    }

    pub fn ejected(&self, backend: usize) -> bool {
        self.backends.get(backend).is_some_and(Record::out)
    }

    /// Since when and why a backend is ejected.
    pub fn ejection(&self, backend: usize) -> Option<(u64, Cause)> {
        match self.backends.get(backend)?.state {
            State::Out { since_ms, cause, .. } => Some((since_ms, cause)),
            State::In | State::Trial { .. } | State::Back { .. } => None,
        }
    }

    /// What a second or so brought. `counts` and `alive` are in the table's order; `alive` are those
    /// that would be used if nobody was ejected: see [`alive`](super::usable::alive).
    pub fn step(
        &mut self,
        now_ms: u64,
        alive: &[bool],
        counts: &[Counts],
        random: u64,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for (record, counts) in self.backends.iter_mut().zip(counts) {
            record.count(now_ms, counts);
        }
        let mut accused: Vec<(u32, usize, Cause)> = Vec::new();
        for (backend, counts) in (0..self.backends.len()).zip(counts) {
            let record = &mut self.backends[backend];
            match record.state {
                State::Out { until_ms, .. } if until_ms <= now_ms => {
                    changes.extend(self.lift(backend, now_ms));
                    continue;
                }
                State::Out { .. } => continue,
                State::Trial { since_ms } if counts.succeeded > counts.failed => {
                    record.state = State::Back { since_ms };
                }
                State::In | State::Trial { .. } | State::Back { .. } => {}
            }
            if let Some(cause) = self.backends[backend].cause(now_ms, counts.failed > 0) {
                accused.push((self.backends[backend].window.rate(now_ms), backend, cause));
            }
        }
        // The worst first: not all of them may go.
        accused.sort_by_key(|(rate, backend, _)| (u32::MAX - rate, *backend));
        for (_, backend, cause) in accused {
            changes.extend(self.eject(backend, cause, now_ms, alive, random));
        }
        changes
    }

    /// Ends an ejection, because its time is over or a check clears it.
    pub fn lift(&mut self, backend: usize, now_ms: u64) -> Option<Change> {
        let record = self.backends.get_mut(backend).filter(|record| record.out())?;
        record.state = State::Trial { since_ms: now_ms };
        // What it did before says nothing about now.
        (record.run, record.window) = (Run::default(), Window::default());
        Some(Change::Back { backend })
    }

    /// Its checks brought a dead backend back: what was counted is of another life.
    pub fn revived(&mut self, backend: usize) {
        if let Some(record) = self.backends.get_mut(backend) {
            (record.run, record.window) = (Run::default(), Window::default());
        }
    }

    fn eject(
        &mut self,
        backend: usize,
        cause: Cause,
        now_ms: u64,
        alive: &[bool],
        random: u64,
    ) -> Option<Change> {
        let is_alive = |i: usize| alive.get(i).copied().unwrap_or(false);
        if !is_alive(backend)
            || self.backends[backend].out()
            || !self.better(backend, cause, now_ms, alive)
        {
            return None;
        }
        let candidates = (0..self.backends.len()).filter(|i| is_alive(*i));
        let (mut of, mut left) = (0, 0);
        for i in candidates {
            of += 1;
            left += usize::from(i != backend && !self.backends[i].out());
        }
        if left * 2 < of {
            return None;
        }
        let record = &mut self.backends[backend];
        let forgiven = match record.state {
            State::Trial { since_ms } | State::Back { since_ms } => {
                now_ms.saturating_sub(since_ms) / FORGIVEN_MS
            }
            State::In | State::Out { .. } => 0,
        };
        record.times = record.times.saturating_sub(forgiven) + 1;
        let length_ms = EJECTED_MS.saturating_mul(record.times).min(EJECTED_MS_MAX);
        // A tenth more or less, so that not all gateways try it in one moment.
        let until_ms = now_ms + length_ms * (900 + below(201, random) as u64) / 1_000;
        record.state = State::Out { since_ms: now_ms, until_ms, cause };
        Some(Change::Ejected { backend, cause, until_ms })
    }

    /// Somebody who is used does better: is not in such a run, or fails at most half as often.
    fn better(&self, backend: usize, cause: Cause, now_ms: u64, alive: &[bool]) -> bool {
        let rate = self.backends[backend].window.rate(now_ms);
        let others = self.backends.iter().zip(alive).enumerate();
        let mut others =
            others.filter(|(i, (other, alive))| **alive && *i != backend && !other.out());
        others.any(|(_, (other, _))| match cause {
            Cause::Unreachable | Cause::Run | Cause::Trial => other.run.length < RUN,
            Cause::Rate => other.window.rate(now_ms) <= rate / 2,
        })
    }
}

impl Record {
    fn out(&self) -> bool {
        matches!(self.state, State::Out { .. })
    }

    fn count(&mut self, now_ms: u64, counts: &Counts) {
        // What was under way when it was ejected comes in late.
        if !self.out() {
            self.run = counts.run;
            self.window.add(now_ms, counts.succeeded, counts.failed);
        }
    }

    /// What would eject it, if there were failures just now: what succeeds now is left in peace.
    fn cause(&self, now_ms: u64, failed: bool) -> Option<Cause> {
        if !failed {
            return None;
        }
        if matches!(self.state, State::Trial { .. }) {
            return Some(Cause::Trial);
        }
        if self.run.length >= RUN {
            return Some(if self.run.unreachable { Cause::Unreachable } else { Cause::Run });
        }
        let enough = self.window.requests(now_ms) >= REQUESTS_MIN;
        (enough && self.window.rate(now_ms) >= RATE_PERCENT * 10).then_some(Cause::Rate)
    }
}

impl Window {
    pub(super) fn add(&mut self, now_ms: u64, succeeded: u32, failed: u32) {
        let second = now_ms / BUCKET_MS;
        let bucket = &mut self.buckets[(second % BUCKETS as u64) as usize];
        if bucket.0 != second {
            *bucket = (second, 0, 0);
        }
        bucket.1 = bucket.1.saturating_add(succeeded);
        bucket.2 = bucket.2.saturating_add(failed);
    }

    /// Successes and failures.
    fn sums(&self, now_ms: u64) -> (u64, u64) {
        let oldest = (now_ms / BUCKET_MS + 1).saturating_sub(BUCKETS as u64);
        let fresh = self.buckets.iter().filter(|(second, ..)| *second >= oldest);
        fresh.fold((0, 0), |(good, bad), (_, succeeded, failed)| {
            (good + u64::from(*succeeded), bad + u64::from(*failed))
        })
    }

    pub(super) fn requests(&self, now_ms: u64) -> u32 {
        let (succeeded, failed) = self.sums(now_ms);
        u32::try_from(succeeded + failed).unwrap_or(u32::MAX)
    }

    /// Failures in thousandths of requests.
    pub(super) fn rate(&self, now_ms: u64) -> u32 {
        let (succeeded, failed) = self.sums(now_ms);
        (failed * 1_000).checked_div(succeeded + failed).unwrap_or(0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::chance::Chance;
    use std::fmt::Write;

    /// Backends a, b, c, …; steps as `SECOND: WORDS`, one after another. `a+9` succeeded and `a-9`
    /// failed that often, `a!9` found no connection that often, `~a` is dead from then on, as its
    /// checks say, and `^a` is back. What came of it: `a out CAUSE SECONDS`, `a back`.
    fn check(backends: &str, script: &str, expected: &str) {
        let n = backends.len();
        let mut judge = Judge::new(n);
        let mut alive = vec![true; n];
        let mut runs = vec![Run::default(); n];
        let mut text = String::new();
        for step in script.split(';') {
            let (second, words) = step.split_once(':').unwrap();
            let now_ms = second.trim().parse::<u64>().unwrap() * 1_000;
            let mut counts = vec![Counts::default(); n];
            for word in words.split_whitespace() {
                let (first, rest) = word.split_at(1);
                if let "~" | "^" = first {
                    let i = backends.find(rest).unwrap();
                    alive[i] = first == "^";
                    if alive[i] {
                        judge.revived(i);
                        runs[i] = Run::default();
                    }
                    continue;
                }
                let i = backends.find(first).unwrap();
                let (kind, number) = rest.split_at(1);
                let number: u32 = number.parse().unwrap();
                match kind {
                    "+" => (counts[i].succeeded, runs[i]) = (number, Run::default()),
                    _ => {
                        counts[i].failed += number;
                        let unreachable =
                            kind == "!" && (runs[i].length == 0 || runs[i].unreachable);
                        runs[i] = Run { length: runs[i].length + number, unreachable };
                    }
                }
            }
            for i in 0..n {
                counts[i].run = runs[i];
            }
            for change in judge.step(now_ms, &alive, &counts, u64::MAX / 2) {
                let name = |i: usize| backends.chars().nth(i).unwrap();
                let separator = if text.is_empty() { "" } else { ", " };
                match change {
                    Change::Ejected { backend, cause, until_ms } => {
                        runs[backend] = Run::default();
                        let length = (until_ms - now_ms) / 1_000;
                        let name = name(backend);
                        write!(text, "{separator}{name} out {cause:?} {length}").unwrap();
                    }
                    Change::Back { backend } => {
                        write!(text, "{separator}{} back", name(backend)).unwrap();
                    }
                }
            }
        }
        assert_eq!(text, expected, "{backends}: {script}");
    }

    /// Of a backend that failed so often that it is ejected for that.
    fn in_a_row(unreachable: bool) -> Counts {
        Counts { succeeded: 0, failed: RUN, run: Run { length: RUN, unreachable } }
    }

    #[test]
    fn whoever_fails_is_ejected() {
        // In a row, over steps; a success in between begins anew.
        check("abc", "1: a-5", "a out Run 10");
        check("abc", "1: a-2; 2: a-3", "a out Run 10");
        check("abc", "1: a-4; 2: a+1 a-4; 3: a-1", "a out Run 10");
        check("abc", "1: a-4; 2: a+1; 3: a-4", "");
        check("abc", "1: a!5", "a out Unreachable 10");
        check("abc", "1: a-2 a!3", "a out Run 10");
        // The rate of ten seconds, of twenty requests.
        check("abc", "1: a-4 a+6; 2: a-4 a+4; 3: a-4 a+1", "a out Rate 10");
        check("abc", "1: a-4 a+5; 2: a-4 a+4", "");
        check("abc", "1: a-4 a+6; 2: a-4 a+4; 12: a-4 a+1", "");
        check("abc", "1: a-4 a+20; 2: a-4 a+20", "");
    }

    #[test]
    fn half_of_those_alive_stay_and_never_none() {
        check("a", "1: a-50; 2: a!50", "");
        check("ab", "1: a-5; 2: b-5", "a out Run 10");
        check("abc", "1: a-5; 2: b-5", "a out Run 10");
        check("abcd", "1: a-5; 2: b-5; 3: c-5", "a out Run 10, b out Run 10");
        check("abcde", "1: a-5; 2: b-5; 3: c-5", "a out Run 10, b out Run 10");
        check("abcdef", "1: a-5 b-5 c-5 d-5", "a out Run 10, b out Run 10, c out Run 10");
        // Those that the checks know to be dead don't count, and need no ejection.
        check("abc", "1: ~b ~c; 2: a-5", "");
        check("abc", "1: ~c; 2: a-5; 3: b-5", "a out Run 10");
        check("abcde", "1: ~d ~e; 2: a-5; 3: b-5", "a out Run 10");
        check("abc", "1: ~a a-9", "");
        check("abc", "1: ~a a-30; 3: ^a; 4: a+1 a-4; 5: a-1", "a out Run 10");
        check("abc", "1: ~a a-30; 3: ^a a-4; 4: a+1", "");
        // One that may not go goes as soon as it may.
        check(
            "abc",
            "1: a-5; 2: b-5; 11: a+1; 12: a+9 b-1; 13: b-1",
            "a out Run 10, a back, b out Run 10",
        );
        // The worst goes first.
        check("abc", "1: a+9 b+9; 2: a-5 b-9", "b out Run 10");
    }

    #[test]
    fn nobody_goes_where_all_are_equally_ill() {
        check("ab", "1: a-5 b-5", "");
        check("abc", "1: a-9 b-9 c-9; 2: a-9 b-9 c-9", "");
        check("abc", "1: a-9 b-9 c-9; 2: a-9 b-9 c+1", "a out Run 10");
        check("ab", "1: a-12 a+1 a-3 b-12 b+1 b-3; 2: a-3 a+1 b-3 b+1", "");
    }

    #[test]
    fn it_comes_back_on_trial() {
        check("abc", "1: a-5; 10: b+1; 11: b+1", "a out Run 10, a back");
        check(
            "abc",
            "1: a-5; 11: b+1; 12: a-1; 31: b+1; 32: b+1",
            "a out Run 10, a back, a out Trial 20, a back",
        );
        check(
            "abc",
            "1: a-5; 11: b+1; 12: a+3; 13: a-4; 14: a-1",
            "a out Run 10, a back, a out Run 20",
        );
        // What fails late doesn't count against it.
        check("abc", "1: a-5; 2: a-9; 11: b+1; 12: a+1; 13: a+1", "a out Run 10, a back");
        // A minute forgives one; five minutes are the most.
        check("abc", "1: a-5; 11: b+1; 12: a+1; 72: a-5", "a out Run 10, a back, a out Run 10");
        let mut judge = Judge::new(2);
        let mut now_ms = 0;
        for times in 1..40 {
            let counts = [in_a_row(false), Counts::default()];
            let changes = judge.step(now_ms, &[true, true], &counts, u64::MAX / 2);
            let length_ms = (times * EJECTED_MS).min(EJECTED_MS_MAX);
            let until_ms = now_ms + length_ms;
            assert!(matches!(changes[..], [Change::Ejected { until_ms: u, .. }] if u == until_ms));
            assert_eq!(judge.ejection(0).map(|(since_ms, _)| since_ms), Some(now_ms));
            now_ms = until_ms;
            assert_eq!(judge.lift(0, now_ms), Some(Change::Back { backend: 0 }));
            assert_eq!(judge.lift(0, now_ms), None);
        }
    }

    #[test]
    fn a_new_table_keeps_what_is_known() {
        let mut judge = Judge::new(3);
        let counts = [Counts::default(), Counts::default(), in_a_row(true)];
        assert_eq!(judge.step(5_000, &[true; 3], &counts, 0).len(), 1);
        let moved = judge.moved(&[Some(2), None, Some(0), Some(9)]);
        let ejected: Vec<bool> = (0..5).map(|i| moved.ejected(i)).collect();
        assert_eq!(ejected, [true, false, false, false, false]);
        assert_eq!(moved.ejection(0), Some((5_000, Cause::Unreachable)));
    }

    #[test]
    fn whatever_happens_an_ejection_leaves_half_of_those_alive() {
        let mut chance = Chance(3);
        let (mut ejections, mut returns) = (0, 0);
        for _ in 0..400 {
            let n = 1 + chance.below(7);
            let mut judge = Judge::new(n);
            let mut alive = vec![true; n];
            let mut now_ms = 0;
            for _ in 0..200 {
                now_ms += chance.below(3_000) as u64;
                let flip = chance.below(n);
                alive[flip] = chance.below(4) > 0;
                let run = |chance: &mut Chance| Run {
                    length: chance.below(8) as u32,
                    unreachable: chance.below(2) == 0,
                };
                let before: Vec<bool> = (0..n).map(|i| judge.ejected(i)).collect();
                // At times of one alone, as when it fails so often that nobody waits for the next step.
                let only = (chance.below(2) == 0).then(|| chance.below(n));
                let counts: Vec<Counts> = (0..n)
                    .map(|i| match only {
                        Some(only) if only != i => Counts::default(),
                        Some(_) | None => Counts {
                            succeeded: chance.below(20) as u32,
                            failed: chance.below(20) as u32,
                            run: run(&mut chance),
                        },
                    })
                    .collect();
                let changes = judge.step(now_ms, &alive, &counts, chance.next());
                for change in &changes {
                    match change {
                        Change::Ejected { backend, until_ms, .. } => {
                            ejections += 1;
                            assert!(alive[*backend] && !before[*backend]);
                            assert!((now_ms + 9_000..=now_ms + 330_000).contains(until_ms));
                        }
                        Change::Back { backend } => {
                            returns += 1;
                            assert!(before[*backend]);
                        }
                    }
                }
                if changes.iter().any(|change| matches!(change, Change::Ejected { .. })) {
                    let of = alive.iter().filter(|alive| **alive).count();
                    let left = (0..n).filter(|i| alive[*i] && !judge.ejected(*i)).count();
                    assert!(left >= 1 && left * 2 >= of, "{left} of {of}, {changes:?}");
                }
            }
        }
        assert!(ejections > 1_000 && returns > 1_000, "{ejections} {returns}");
    }
}
