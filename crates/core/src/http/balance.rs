//! Which backend gets the next request.

use super::hash::{below, mix};
use super::ring::Ring;
use crate::spec::Balance;

/// Of all that it has in the end, one that has just come gets this much, in thousandths: less, and
/// nothing would ever show whether it works.
const SLOW_START_MIN: u64 = 100;
/// A backend that says it is idle counts as this busy, in thousandths: below it a load is noise.
const LOAD_MIN: u32 = 50;

/// What a gateway sees of a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// Its [`share`], in thousandths.
    pub weight: u32,
    /// Requests it has now.
    pub active: u32,
    /// [`PeakEwma::cost`](super::ewma::PeakEwma::cost).
    pub cost_us: f64,
    /// The greater of cpu and memory as its node tells it, in thousandths.
    pub load: u32,
}

/// What is kept from one pick to the next: of one thread, for one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turn {
    /// The next turn begins behind it.
    last: usize,
    /// How far each is ahead of its share (below zero) or behind it.
    due: Vec<i64>,
}

impl Turn {
    /// For a service with that many backends.
    pub fn new(backends: usize) -> Turn {
        Turn { last: backends.saturating_sub(1), due: vec![0; backends] }
    }
}

/// The index of the backend that gets a request, or `None` if none is usable.
///
/// `usable` are indices of the table's backends, ascending. `random` is new for each request, `key`
/// the hash of what the request is known by. Only a consistent hash looks at `key` and `ring`.
pub fn pick(
    balance: &Balance,
    usable: &[usize],
    ring: &Ring,
    get: impl Fn(usize) -> Seen,
    turn: &mut Turn,
    random: u64,
    key: u64,
) -> Option<usize> {
    let picked = match balance {
        Balance::RoundRobin => in_turn(usable, get, turn.last, random)?,
        Balance::Weighted => weighted(usable, get, &mut turn.due)?,
        Balance::LeastRequests => least(usable, turn.last, |i| per_weight(1.0, get(i)))?,
        // A node tells its load now and then: taken alone it would send everything to one backend
        // until the next word, so it is weighed with the requests that each has by now.
        Balance::LeastLoad => least(usable, turn.last, |i| {
            let seen = get(i);
            per_weight(f64::from(seen.load.max(LOAD_MIN)), seen)
        })?,
        Balance::PeakEwma => of_two(usable, get, random)?,
        Balance::ConsistentHash(_) => ring.pick(usable, get, key)?,
    };
    turn.last = picked;
    Some(picked)
}

/// What a backend should get beside others, in thousandths: of what is declared for it, as much as
/// its slow start lets through. Each in turn is each once, whatever it weighs.
pub fn share(balance: &Balance, declared: u32, slow_start: u32) -> u32 {
    match balance {
        Balance::RoundRobin => slow_start,
        Balance::Weighted
        | Balance::LeastRequests
        | Balance::LeastLoad
        | Balance::PeakEwma
        | Balance::ConsistentHash(_) => declared.saturating_mul(slow_start),
    }
    .max(1)
}

/// How much of its share a backend gets that is there since `since_ms`, in thousandths: it rises in
/// a line, and is never nothing.
pub fn slow_start(since_ms: u64, now_ms: u64, length_ms: u64) -> u32 {
    let there_ms = now_ms.saturating_sub(since_ms);
    if there_ms >= length_ms {
        return 1_000;
    }
    // Below 1,000, as the time is below the length.
    let risen = u128::from(there_ms) * 1_000 / u128::from(length_ms);
    (risen as u32).max(SLOW_START_MIN as u32)
}

/// The position behind the backend that came last.
fn behind(usable: &[usize], last: usize) -> usize {
    match usable.partition_point(|i| *i <= last) {
        end if end == usable.len() => 0,
        position => position,
    }
}

/// The next one; one in slow start is passed over as often as its share lacks.
fn in_turn(
    usable: &[usize],
    get: impl Fn(usize) -> Seen,
    last: usize,
    random: u64,
) -> Option<usize> {
    let (before, from) = usable.split_at(behind(usable, last));
    let ready = |(position, i): &(usize, &usize)| {
        let weight = get(**i).weight as usize;
        weight >= 1_000 || below(1_000, mix(random ^ *position as u64)) < weight
    };
    let found = from.iter().chain(before).enumerate().find(ready).map(|(_, i)| *i);
    found.or_else(|| from.first().copied())
}

/// Smooth weighted round robin, as in nginx: all are credited their weight, who has most goes and
/// pays for all. It is linear in their number, and weights may change at any time.
fn weighted(usable: &[usize], get: impl Fn(usize) -> Seen, due: &mut Vec<i64>) -> Option<usize> {
    if usable.last()? >= &due.len() {
        due.resize(usable.last()? + 1, 0);
    }
    let mut total = 0;
    for i in usable {
        let weight = i64::from(get(*i).weight.max(1));
        due[*i] += weight;
        total += weight;
    }
    let picked = usable.iter().copied().reduce(|a, b| if due[b] > due[a] { b } else { a })?;
    due[picked] -= total;
    Some(picked)
}

/// The one with the least cost; of several, the next behind the last.
fn least(usable: &[usize], last: usize, cost: impl Fn(usize) -> f64) -> Option<usize> {
    let (before, from) = usable.split_at(behind(usable, last));
    let costs = from.iter().chain(before).map(|i| (*i, cost(*i)));
    costs.reduce(|a, b| if b.1 < a.1 { b } else { a }).map(|(i, _)| i)
}

/// The better of two different ones taken at random (Mitzenmacher, "The power of two choices", 2001).
fn of_two(usable: &[usize], get: impl Fn(usize) -> Seen, random: u64) -> Option<usize> {
    if usable.len() < 2 {
        return usable.first().copied();
    }
    let one = below(usable.len(), random);
    let other = below(usable.len() - 1, mix(random));
    let other = if other < one { other } else { other + 1 };
    let cost = |position: usize| {
        let seen = get(usable[position]);
        per_weight(seen.cost_us, seen)
    };
    Some(usable[if cost(other) < cost(one) { other } else { one }])
}

/// What it would cost to be there too.
fn per_weight(cost: f64, seen: Seen) -> f64 {
    cost * (f64::from(seen.active) + 1.0) / f64::from(seen.weight.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::chance::Chance;
    use crate::spec::HashKey;

    const IDLE: Seen = Seen { weight: 1_000, active: 0, cost_us: 1_000.0, load: 0 };

    fn all() -> Vec<Balance> {
        vec![
            Balance::RoundRobin,
            Balance::Weighted,
            Balance::LeastRequests,
            Balance::LeastLoad,
            Balance::PeakEwma,
            Balance::ConsistentHash(HashKey::ClientIp),
        ]
    }

    /// Backends as letters from a on: `WEIGHT/ACTIVE/COST/LOAD`, weights in whole ones, `-` for one
    /// that is not usable; and who is picked one after another, nothing else changing.
    fn check(balance: Balance, backends: &str, expected: &str) {
        let seen: Vec<Option<Seen>> = backends
            .split_whitespace()
            .map(|words| {
                let mut parts = words.split('/').map(|part| part.parse::<f64>().ok());
                let mut next = || parts.next().flatten();
                Some(Seen {
                    weight: (next()? * 1_000.0) as u32,
                    active: next().unwrap_or(0.0) as u32,
                    cost_us: next().unwrap_or(1_000.0),
                    load: next().unwrap_or(0.0) as u32,
                })
            })
            .collect();
        let usable: Vec<usize> = (0..seen.len()).filter(|i| seen[*i].is_some()).collect();
        let mut turn = Turn::new(seen.len());
        let mut chance = Chance(3);
        let picked: String = expected
            .chars()
            .map(|_| {
                let get = |i: usize| seen[i].unwrap();
                let ring = Ring::default();
                pick(&balance, &usable, &ring, get, &mut turn, chance.next(), 0)
                    .map_or('.', |i| (b'a' + i as u8) as char)
            })
            .collect();
        assert_eq!(picked, expected, "{balance:?} of {backends}");
    }

    #[test]
    fn each_algorithm_picks_as_it_should() {
        check(Balance::RoundRobin, "1 1 1", "abcabc");
        check(Balance::RoundRobin, "1 - 5 1", "acdacd");
        check(Balance::RoundRobin, "- -", "..");
        check(Balance::Weighted, "5 1 1", "aabacaaaabacaa");
        check(Balance::Weighted, "- 2 - 1", "bdbbdb");
        check(Balance::Weighted, "1 1 1", "abcabc");
        check(Balance::Weighted, "", ".");
        check(Balance::LeastRequests, "1/4 1/2 1/3", "bb");
        check(Balance::LeastRequests, "1/4 - 1/3", "cc");
        check(Balance::LeastRequests, "1 1 1/9", "abab");
        check(Balance::LeastRequests, "- 1 1/5 1", "bdbd");
        // A third of the requests for a third of the weight.
        check(Balance::LeastRequests, "1/1 3/5", "abab");
        check(Balance::LeastRequests, "1/1 3/4", "bb");
        check(Balance::LeastLoad, "1/0/0/900 1/0/0/300", "bb");
        check(Balance::LeastLoad, "1/0/0/900 1/5/0/300", "aa");
        check(Balance::LeastLoad, "1/0/0/3 1/0/0/1", "abab");
        check(Balance::PeakEwma, "1/0/9000 1/0/2000", "bbbb");
        check(Balance::PeakEwma, "1/0/9000 1/5/2000", "aaaa");
        check(Balance::PeakEwma, "4/0/9000 1/1/2000", "aaaa");
        check(Balance::PeakEwma, "- 1", "bb");
        check(Balance::PeakEwma, "-", ".");
    }

    #[test]
    fn whoever_is_picked_is_usable() {
        let mut chance = Chance(11);
        let names: Vec<String> = (0..20).map(|i| format!("n{i}")).collect();
        let ring = Ring::new(names.iter().map(|name| (name.as_str(), 1)));
        for balance in all() {
            // It is kept while all about it changes, and starts too small.
            let mut turn = Turn::new(3);
            for _ in 0..20_000 {
                let usable: Vec<usize> = (0..20).filter(|_| chance.below(3) == 0).collect();
                let odd = [0.0, 1.0, 1e12, f64::NAN, f64::INFINITY];
                let (weight, active) = (chance.next() as u32, chance.next() as u32);
                let get = |i: usize| Seen {
                    weight: weight.rotate_left(i as u32) >> (i % 32),
                    active: active.rotate_left(i as u32),
                    cost_us: odd[i % 5],
                    load: weight,
                };
                let (random, key) = (chance.next(), chance.next());
                match pick(&balance, &usable, &ring, get, &mut turn, random, key) {
                    Some(picked) => assert!(usable.contains(&picked), "{balance:?}"),
                    None => assert!(usable.is_empty(), "{balance:?} {usable:?}"),
                }
            }
        }
    }

    /// Requests that last equally long, 48 at a time.
    fn shares(balance: &Balance, weights: &[u32]) -> Vec<f64> {
        let usable: Vec<usize> = (0..weights.len()).collect();
        let names: Vec<String> = usable.iter().map(|i| format!("n{i}")).collect();
        let ring = Ring::new(names.iter().map(String::as_str).zip(weights.iter().copied()));
        let mut turn = Turn::new(weights.len());
        let (mut chance, mut active) = (Chance(5), vec![0; weights.len()]);
        let (mut picked, mut running) = (vec![0.0; weights.len()], Vec::new());
        for request in 0..60_000 {
            let get = |i: usize| Seen {
                weight: share(balance, weights[i], 1_000),
                active: active[i],
                ..IDLE
            };
            let (random, key) = (chance.next(), chance.next());
            let one = pick(balance, &usable, &ring, get, &mut turn, random, key).unwrap();
            picked[one] += 1.0 / 60_000.0;
            active[one] += 1;
            running.push(one);
            if request >= 48 {
                let done = running.swap_remove(chance.below(running.len()));
                active[done] -= 1;
            }
        }
        picked
    }

    #[test]
    fn each_gets_its_share() {
        for balance in all() {
            for weights in [&[1, 1, 1][..], &[1, 2, 3], &[5, 5, 5, 5, 10]] {
                let total: u32 = weights.iter().sum();
                let shares = shares(&balance, weights);
                for (i, got) in shares.iter().enumerate() {
                    let due = match balance {
                        Balance::RoundRobin => 1.0 / weights.len() as f64,
                        _ => f64::from(weights[i]) / f64::from(total),
                    };
                    let off = match balance {
                        // Two at random don't always have the best among them.
                        Balance::PeakEwma => 0.10,
                        // The request to come counts too, which favours the heavy.
                        Balance::LeastRequests | Balance::LeastLoad => 0.05,
                        // The smallest meets its bound most often.
                        Balance::ConsistentHash(_) => 0.06,
                        Balance::RoundRobin | Balance::Weighted => 0.001,
                    };
                    assert!((got / due - 1.0).abs() < off, "{balance:?} {weights:?}: {shares:?}");
                }
            }
        }
    }

    #[test]
    fn a_slow_start_rises_in_a_line_and_is_never_nothing() {
        #[rustfmt::skip]
        let cases: &[(u64, u64, u64, u32)] = &[
            // since, now, length
            (1_000,  1_000, 10_000,   100),
            (1_000,  1_500, 10_000,   100),
            (1_000,  3_000, 10_000,   200),
            (1_000,  6_000, 10_000,   500),
            (1_000, 10_999, 10_000,   999),
            (1_000, 11_000, 10_000, 1_000),
            (1_000, 99_000, 10_000, 1_000),
            (1_000,  1_000,      0, 1_000),
            // A clock that was read earlier.
            (1_000,      0, 10_000,   100),
            (0, u64::MAX - 1, u64::MAX, 999),
        ];
        for (since_ms, now_ms, length_ms, expected) in cases {
            assert_eq!(slow_start(*since_ms, *now_ms, *length_ms), *expected, "{now_ms}");
        }
        let rise: Vec<u32> = (0..12_000).map(|now_ms| slow_start(500, now_ms, 10_000)).collect();
        assert!(rise.is_sorted());
    }

    #[test]
    fn one_in_slow_start_gets_its_part_whatever_the_algorithm() {
        for balance in [Balance::RoundRobin, Balance::Weighted] {
            let mut turn = Turn::new(3);
            let mut chance = Chance(2);
            let mut picked = [0_u32; 3];
            for _ in 0..30_000 {
                let slow = |i: usize| if i == 1 { 200 } else { 1_000 };
                let get = |i: usize| Seen { weight: share(&balance, 1, slow(i)), ..IDLE };
                let ring = Ring::default();
                let one = pick(&balance, &[0, 1, 2], &ring, get, &mut turn, chance.next(), 0);
                picked[one.unwrap()] += 1;
            }
            let due = 30_000 * 200 / 2_200;
            assert!(picked[1].abs_diff(due) < due / 20, "{balance:?}: {picked:?} for {due}");
        }
        // When all of them start, they share evenly.
        let get = |_| Seen { weight: 100, ..IDLE };
        let mut turn = Turn::new(3);
        let mut picked = [0_u32; 3];
        let mut chance = Chance(9);
        for _ in 0..30_000 {
            let random = chance.next();
            let ring = Ring::default();
            let one = pick(&Balance::RoundRobin, &[0, 1, 2], &ring, get, &mut turn, random, 0);
            picked[one.unwrap()] += 1;
        }
        assert!(picked.iter().all(|n| n.abs_diff(10_000) < 500), "{picked:?}");
    }
}
