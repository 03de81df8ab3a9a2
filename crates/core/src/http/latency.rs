//! How long a service takes to answer, over the last minute: how long a try is waited for by that, and
//! from when on another one is made beside it.

/// Four to each doubling, which is exact to a fifth: from 64 microseconds to more than a minute.
pub const BUCKETS: usize = 84;
const FIRST_BITS: u32 = 6;
const SLOTS: usize = 6;
const SLOT_MS: u64 = 10_000;
/// Fewer make no percentile that says anything.
const ANSWERS_MIN: u64 = 100;
/// A try is given up after so many times what 99 of 100 take, and never sooner than this: an instance
/// that stops for a moment to collect its garbage is well.
const TIMES: u64 = 3;
pub const PATIENCE_US_MIN: u64 = 250_000;

pub fn bucket(took_us: u64) -> usize {
    let took_us = took_us.max(1 << FIRST_BITS);
    let octave = took_us.ilog2() - FIRST_BITS;
    let quarter = (took_us >> (octave + FIRST_BITS - 2)) as usize & 3;
    (octave as usize * 4 + quarter).min(BUCKETS - 1)
}

/// What is in a bucket took less.
pub fn below_us(bucket: usize) -> u64 {
    let quarter_us = 1_u64 << (bucket / 4 + FIRST_BITS as usize - 2);
    quarter_us * (bucket as u64 % 4 + 5)
}

/// By ten seconds, each with the ten that it is of.
#[derive(Debug, Clone)]
pub struct Latencies {
    slots: [(u64, [u32; BUCKETS]); SLOTS],
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { slots: [(0, [0; BUCKETS]); SLOTS] }
    }
}

impl Latencies {
    /// Takes what was counted since the last time.
    pub fn add(&mut self, now_ms: u64, counts: &[u32; BUCKETS]) {
        let number = now_ms / SLOT_MS;
        let slot = &mut self.slots[(number % SLOTS as u64) as usize];
        if slot.0 != number {
            *slot = (number, [0; BUCKETS]);
        }
        for (sum, count) in slot.1.iter_mut().zip(counts) {
            *sum = sum.saturating_add(*count);
        }
    }

    /// What so many of 100 take less than; `None`: too few were asked.
    pub fn percentile_us(&self, percent: u32, now_ms: u64) -> Option<u64> {
        let oldest = (now_ms / SLOT_MS + 1).saturating_sub(SLOTS as u64);
        let fresh = || self.slots.iter().filter(|(number, _)| *number >= oldest);
        let sum = |bucket: usize| fresh().map(|(_, counts)| u64::from(counts[bucket])).sum::<u64>();
        let all: u64 = (0..BUCKETS).map(sum).sum();
        let mut above = all * u64::from(100_u32.saturating_sub(percent)) / 100;
        let found = (0..BUCKETS).rev().find(|bucket| {
            let count = sum(*bucket);
            let is_it = count > above;
            above = above.saturating_sub(count);
            is_it
        });
        found.filter(|_| all >= ANSWERS_MIN).map(below_us)
    }

    /// How long a try is waited for where another instance may be asked.
    pub fn patience_us(&self, now_ms: u64) -> Option<u64> {
        self.percentile_us(99, now_ms).map(|p99_us| (TIMES * p99_us).max(PATIENCE_US_MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_so_long_is_below_the_end_of_its_bucket_and_not_by_more_than_a_fifth() {
        for took_us in (64..5_000).chain((1..60_000).map(|it| it * 1_000)) {
            let below_us = below_us(bucket(took_us));
            assert!(took_us < below_us && below_us <= took_us * 5 / 4 + 1, "{took_us}: {below_us}");
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
    }

    /// How many took how many milliseconds in which second; the p99 and the patience in a second.
    fn check(said: &[(u64, u32, u64)], second: u64, p99_ms: Option<u64>, patience_ms: Option<u64>) {
        let mut latencies = Latencies::default();
        for (second, count, ms) in said {
            let mut counts = [0; BUCKETS];
            counts[bucket(ms * 1_000)] = *count;
            latencies.add(second * 1_000, &counts);
        }
        let now_ms = second * 1_000;
        let is = |found: Option<u64>, expected_ms: Option<u64>, what| match (found, expected_ms) {
            (Some(found), Some(ms)) => {
                assert!((ms * 1_000..=ms * 1_260).contains(&found), "{what}: {said:?}: {found}");
            }
            (found, expected) => assert_eq!(found, expected, "{what}: {said:?}"),
        };
        is(latencies.percentile_us(99, now_ms), p99_ms, "p99");
        is(latencies.patience_us(now_ms), patience_ms, "patience");
    }

    #[test]
    fn a_try_is_waited_for_by_what_nearly_all_took_in_the_last_minute() {
        check(&[], 0, None, None);
        check(&[(0, 99, 100)], 0, None, None);
        check(&[(0, 100, 100)], 0, Some(100), Some(300));
        check(&[(0, 99, 100), (1, 1, 9_000)], 1, Some(100), Some(300));
        check(&[(0, 98, 100), (1, 2, 9_000)], 1, Some(9_000), Some(27_000));
        // Never too short.
        check(&[(0, 1_000, 1)], 0, Some(1), Some(250));
        // Of the last minute.
        check(&[(0, 900, 2_000), (30, 100, 100)], 59, Some(2_000), Some(6_000));
        check(&[(0, 900, 2_000), (30, 100, 100)], 60, Some(100), Some(300));
        check(&[(0, 900, 2_000)], 60, None, None);
        check(&[(0, 900, 2_000), (61, 100, 100)], 61, Some(100), Some(300));
    }

    #[test]
    fn a_percentile_is_what_so_many_of_100_take_less_than() {
        #[rustfmt::skip]
        let cases = [
            // Of so many, so many took a second and the others 10 ms; the percentile and what it is.
            (1_000,  49, 95, Some(10)),
            (1_000,  50, 95, Some(10)),
            (1_000,  51, 95, Some(1_000)),
            (1_000, 200, 80, Some(10)),
            (1_000, 201, 80, Some(1_000)),
            (  100,   6, 95, Some(1_000)),
            (   99,   6, 95, None),
        ];
        for (all, slow, percent, expected_ms) in cases {
            let mut counts = [0; BUCKETS];
            (counts[bucket(10_000)], counts[bucket(1_000_000)]) = (all - slow, slow);
            let mut latencies = Latencies::default();
            latencies.add(0, &counts);
            let found = latencies.percentile_us(percent, 0);
            let expected = expected_ms.map(|ms: u64| below_us(bucket(ms * 1_000)));
            assert_eq!(found, expected, "p{percent} with {slow} slow of {all}");
        }
    }

    /// Who is left when its time is over is counted with what it had taken till then: that it is left
    /// does not bring the time down.
    #[test]
    fn who_is_left_for_being_slow_still_counts_as_slow() {
        let mut latencies = Latencies::default();
        let mut counts = [0; BUCKETS];
        (counts[bucket(10_000)], counts[bucket(500_000)]) = (960, 40);
        latencies.add(0, &counts);
        let after_us = latencies.percentile_us(95, 0).unwrap();
        let mut counts = [0; BUCKETS];
        (counts[bucket(10_000)], counts[bucket(after_us)]) = (960, 40);
        for second in 1..60 {
            latencies.add(second * 1_000, &counts);
            assert_eq!(latencies.percentile_us(95, second * 1_000), Some(after_us));
        }
    }
}
