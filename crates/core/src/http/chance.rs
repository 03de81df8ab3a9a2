//! Chance from a seed, for tests.

use super::hash;

pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        hash::next(&mut self.0)
    }

    /// 0 up to `n`, without `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn one_of<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[self.below(things.len())]
    }
}
