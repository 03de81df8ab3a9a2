//! Chance from a seed: splitmix64, one stream for each purpose so that they don't disturb another.

#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Stream `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0xD134_2543_DE82_EF95) ^ stream << 56);
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        everhold_core::http::hash::next(&mut self.0)
    }

    /// 0 up to `n`, without `n`; 0 if that is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    /// `from` up to and with `to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// An index into something of this length.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// Between the two, short ones as often as long ones: each doubling is as likely as the next.
    pub fn spread(&mut self, from: u64, to: u64) -> u64 {
        let mut top = from.max(1);
        let mut doublings = 0;
        while top < to {
            top *= 2;
            doublings += 1;
        }
        let high = (from.max(1) << self.below(doublings + 1)).min(to);
        self.between(from, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_and_repeat() {
        let draw = |seed, stream| {
            let mut random = Random::new(seed, stream);
            (0..8).map(|_| random.between(3, 9)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 1), draw(1, 1));
        assert_ne!(draw(1, 1), draw(1, 2));
        assert_ne!(draw(1, 1), draw(2, 1));
        assert!(draw(7, 0).iter().all(|n| (3..=9).contains(n)));
    }
}
