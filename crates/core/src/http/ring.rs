//! The same backend for the same key, as long as that is there and has no more than its share.
//!
//! A Maglev table (Eisenbud and others, 2016) and not a ring of points: a pick is one look-up, and
//! each backend has its share of the slots to within one, where a ring of 160 points each is off by
//! a tenth. The price, some keys more that move when backends are declared or taken away, is paid
//! rarely: the table is of all backends, whether they can be used or not, so that health moves only
//! the keys of who is ill.

use super::balance::Seen;
use super::hash::{below, hash, mix};

/// Prime, and more than a hundred for each of the most backends that a service may have.
const SLOTS: usize = 65_537;
/// No backend has more requests than 5/4 of its share, rounded up (Mirrokni, Thorup and
/// Zadimoghaddam, "Consistent hashing with bounded loads", 2016); HAProxy advises 125 to 200 %.
const BOUND: (u128, u128) = (5, 4);
/// After this many slots for each backend there is another way: a walk has to end. Of those that
/// look for one of 200, one in 3,000 comes that far.
const WALK: usize = 8;
const NOBODY: u16 = u16::MAX;

/// The slots of one service, walked round from where a key falls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ring {
    slots: Vec<u16>,
    backends: usize,
}

/// How one backend goes through the slots.
struct Walk {
    at: usize,
    skip: usize,
    weight: u64,
    /// What it has earned; a slot costs the greatest weight.
    credit: u64,
}

impl Ring {
    /// Of names and weights in the table's order. What lies beyond 65,535 gets nothing.
    pub fn new<'a>(backends: impl IntoIterator<Item = (&'a str, u32)>) -> Ring {
        let walk = |(name, weight): (&str, u32)| {
            let hash = hash(name.as_bytes());
            Walk {
                at: (hash % SLOTS as u64) as usize,
                skip: (mix(hash) % (SLOTS as u64 - 1)) as usize + 1,
                weight: u64::from(weight.max(1)),
                credit: 0,
            }
        };
        let mut walks: Vec<Walk> = backends.into_iter().take(NOBODY.into()).map(walk).collect();
        let Some(price) = walks.iter().map(|walk| walk.weight).max() else {
            return Ring::default();
        };
        let mut slots = vec![NOBODY; SLOTS];
        let mut free = SLOTS;
        // Each round the heaviest takes a slot, so there are no more rounds than slots.
        while free > 0 {
            for (backend, walk) in walks.iter_mut().enumerate() {
                walk.credit += walk.weight;
                if walk.credit < price || free == 0 {
                    continue;
                }
                walk.credit -= price;
                while slots[walk.at] != NOBODY {
                    walk.at = (walk.at + walk.skip) % SLOTS;
                }
                slots[walk.at] = backend as u16;
                free -= 1;
            }
        }
        Ring { slots, backends: walks.len() }
    }

    /// Of `usable` backends, ascending, the first from the key's slot on that has room.
    pub fn pick(&self, usable: &[usize], get: impl Fn(usize) -> Seen, key: u64) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let (mut active, mut weight) = (1_u64, 0_u64);
        for seen in usable.iter().map(|backend| get(*backend)) {
            active += u64::from(seen.active);
            weight += u64::from(seen.weight.max(1));
        }
        let room = |seen: Seen| {
            let share = u128::from(active) * BOUND.0 * u128::from(seen.weight.max(1));
            u128::from(seen.active) < share.div_ceil(u128::from(weight) * BOUND.1)
        };
        let found = self
            .walk(key)
            .find(|backend| usable.binary_search(backend).is_ok() && room(get(*backend)));
        found.or_else(|| {
            // The least for its weight is never above the mean, so it has room.
            let least = |backend: &&usize| {
                let seen = get(**backend);
                (u128::from(seen.active) << 64) / u128::from(seen.weight.max(1))
            };
            usable.iter().min_by_key(least).copied()
        })
    }

    /// The first of `usable`, ascending, from the key's slot on, whatever it has to do: for a session,
    /// which must stay where it is.
    pub fn owner(&self, usable: &[usize], key: u64) -> Option<usize> {
        let found = self.walk(key).find(|backend| usable.binary_search(backend).is_ok());
        found.or_else(|| usable.get(below(usable.len(), key)).copied())
    }

    /// The backends of some slots from the key's on.
    fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let start = key % self.slots.len().max(1) as u64;
        let (before, from) = self.slots.split_at(start as usize);
        let steps = WALK * self.backends;
        from.iter().chain(before).take(steps).map(|backend| usize::from(*backend))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::chance::Chance;

    const IDLE: Seen = Seen { weight: 1_000, active: 0, cost_us: 0.0, load: 0 };

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("node-{}.{}", i / 2, i % 2)).collect()
    }

    fn ring(names: &[String], weights: &[u32]) -> Ring {
        let weights = weights.iter().copied().cycle();
        Ring::new(names.iter().map(String::as_str).zip(weights))
    }

    fn owner<'a>(ring: &Ring, names: &'a [String], key: u64) -> &'a str {
        let all: Vec<usize> = (0..names.len()).collect();
        &names[ring.pick(&all, |_| IDLE, key).unwrap()]
    }

    #[test]
    fn each_has_its_weight_of_the_keys() {
        for (n, weights) in [(1, &[1][..]), (3, &[1]), (3, &[1, 2, 5]), (7, &[100, 3]), (200, &[1])]
        {
            let names = names(n);
            let ring = ring(&names, weights);
            let of = |i: usize| weights[i % weights.len()] as f64;
            let total: f64 = (0..n).map(of).sum();
            for i in 0..n {
                let slots = ring.slots.iter().filter(|slot| usize::from(**slot) == i).count();
                let due = SLOTS as f64 * of(i) / total;
                assert!((slots as f64 - due).abs() <= 2.0, "{n} {weights:?}: {slots} for {due}");
            }
        }
    }

    #[test]
    fn a_backend_that_comes_or_goes_moves_little_but_its_own_keys() {
        for n in [2, 3, 5, 10, 50, 200] {
            let names = names(n);
            let full = ring(&names, &[1]);
            for gone in [0, n / 2, n - 1] {
                let mut rest = names.clone();
                rest.remove(gone);
                let less = ring(&rest, &[1]);
                let mut chance = Chance(n as u64);
                let keys: Vec<u64> = (0..20_000).map(|_| chance.next()).collect();
                let moved = keys
                    .iter()
                    .filter(|key| owner(&full, &names, **key) != owner(&less, &rest, **key))
                    .count();
                // Its own, and one in fifty at most; chance in the keys is a part of that.
                let most = keys.len() / n + keys.len() / 50;
                assert!(moved <= most, "{n} without {gone}: {moved} of {}", keys.len());
            }
        }
    }

    #[test]
    fn one_that_is_ill_moves_its_own_keys_and_no_others() {
        let names = names(5);
        let ring = ring(&names, &[1]);
        let mut chance = Chance(1);
        for _ in 0..20_000 {
            let key = chance.next();
            let well = ring.pick(&[0, 1, 2, 3, 4], |_| IDLE, key).unwrap();
            let without = ring.pick(&[0, 1, 3, 4], |_| IDLE, key).unwrap();
            assert_ne!(without, 2);
            assert!(well == 2 || well == without, "{key}: {well}, then {without}");
        }
    }

    #[test]
    fn nobody_has_more_than_five_quarters_of_its_share() {
        let mut chance = Chance(7);
        let mut at_the_bound = 0;
        for round in 0..300 {
            let n = 1 + chance.below(12);
            let names = names(n);
            let weights: Vec<u32> = (0..n).map(|_| 1 + chance.below(4) as u32).collect();
            let ring = ring(&names, &weights);
            let usable: Vec<usize> = (0..n).filter(|_| chance.below(4) > 0).collect();
            let weight: u64 = usable.iter().map(|i| u64::from(weights[*i])).sum();
            let mut active = vec![0_u64; n];
            for request in 1..=500_u64 {
                // Half of all requests have the same key: who owns it would drown.
                let key = if chance.below(2) == 0 { 42 } else { chance.next() };
                let get = |i: usize| Seen {
                    weight: weights[i] * 1_000,
                    active: active[i] as u32,
                    ..IDLE
                };
                let Some(picked) = ring.pick(&usable, get, key) else {
                    assert!(usable.is_empty(), "round {round}");
                    break;
                };
                assert!(usable.contains(&picked));
                active[picked] += 1;
                let bound = (request * 5 * u64::from(weights[picked])).div_ceil(4 * weight);
                assert!(active[picked] <= bound, "round {round}: {active:?} of {weights:?}");
                at_the_bound += usize::from(usable.len() > 1 && active[picked] == bound);
            }
        }
        assert!(at_the_bound > 10_000, "{at_the_bound}: the bound is what is tested");
    }

    #[test]
    fn nothing_is_picked_of_nothing() {
        assert_eq!(Ring::new([]).pick(&[0], |_| IDLE, 7), None);
        assert_eq!(Ring::new([("a", 1)]).pick(&[], |_| IDLE, 7), None);
    }
}
