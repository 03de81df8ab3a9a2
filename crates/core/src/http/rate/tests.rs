//! Limits in virtual time: one gateway by the letter, several by what they admit together.

use super::word::{BadWord, KEYS_MAX, LENGTH_MAX, Section, Word};
use super::*;
use crate::http::chance::Chance;

const MS: u64 = 1_000_000;

fn rate(requests: u32, per_s: u32, burst: u32) -> Rate {
    Rate::new(&RateLimit { by: RateKey::ADDRESS, requests, per_s, burst })
}

#[test]
fn each_request_is_answered_by_the_letter() {
    // Requests at these milliseconds: `+remaining` or `-milliseconds to wait`.
    type Case = ((u32, u32, u32), &'static [u64], &'static str);
    #[rustfmt::skip]
    let cases: &[Case] = &[
        // All of the burst at once, then one for each interval.
        ((1000, 1, 3),  &[0, 0, 0, 0, 1, 1, 3],           "+2 +1 +0 -1 +0 -1 +1"),
        // Who was away has the burst and no more.
        ((1000, 1, 2),  &[0, 0, 0, 5000, 5000, 5000],     "+1 +0 -1 +1 +0 -1"),
        // Refused ones cost nothing.
        ((10, 1, 1),    &[0, 10, 20, 99, 100, 101],       "+0 -90 -80 -1 +0 -99"),
        // Less than one in a second.
        ((2, 60, 1),    &[0, 29_999, 30_000, 30_001],     "+0 -1 +0 -29999"),
        // Even is even, to the instant.
        ((1, 1, 2),     &[0, 0, 999, 1000, 1999, 2000],   "+1 +0 -1 +0 -1 +0"),
        // Nothing at all is not what a limit is for.
        ((1000, 1, 0),  &[0, 0, 1],                       "+0 -1 +0"),
    ];
    for ((requests, per_s, burst), times, expected) in cases {
        let mut table = Table::new(rate(*requests, *per_s, *burst), 100);
        let answers = times.iter().map(|ms| {
            let answer = table.ask(7, 1_000_000 * MS + ms * MS);
            match answer.admitted {
                true => format!("+{}", answer.remaining),
                false => format!("-{}", answer.wait_ns / MS),
            }
        });
        let answers: Vec<String> = answers.collect();
        assert_eq!(answers.join(" "), *expected, "{requests} in {per_s} s, {burst} at once");
    }
}

#[test]
fn who_waits_as_long_as_it_is_told_is_admitted() {
    let mut chance = Chance(3);
    for (requests, per_s, burst) in [(1, 1, 1), (3, 1, 5), (7, 60, 2), (1_000_000, 1, 3)] {
        let mut table = Table::new(rate(requests, per_s, burst), 100);
        let mut now = 5 * SECOND_NS;
        for _ in 0..10_000 {
            let answer = table.ask(1, now);
            if !answer.admitted {
                assert!(!table.ask(1, now + answer.wait_ns - 1).admitted);
                now += answer.wait_ns;
                assert!(table.ask(1, now).admitted);
            }
            now += chance.next() % (SECOND_NS * u64::from(per_s) / u64::from(requests));
        }
    }
}

/// In no time that one could look at is there more than the rate and one burst.
#[test]
fn no_window_has_more_than_the_rate_and_one_burst() {
    let mut chance = Chance(5);
    let mut table = Table::new(rate(1000, 1, 20), 100);
    let (mut now, mut admitted) = (0, Vec::new());
    for _ in 0..200_000 {
        now += match chance.below(1000) {
            0 => 50 * MS,
            _ => chance.next() % (MS / 2),
        };
        if table.ask(1, now).admitted {
            admitted.push(now);
        }
    }
    for (first, from) in admitted.iter().enumerate() {
        for count in [20, 50, 500, 5_000] {
            if let Some(to) = admitted.get(first + count) {
                assert!(to - from >= (count as u64 - 20 + 1) * MS, "{count} from {from}");
            }
        }
    }
}

/// A million clients of which nobody is forgotten while it owes, and many more of which none gets more
/// than the limit, but for one request each time that it is forgotten.
#[test]
fn its_size_is_bounded_and_nobody_gets_more_by_that() {
    const MAX: usize = 10_000;
    let mut table = Table::new(rate(10, 60, 5), MAX);
    let mut chance = Chance(9);
    // Those that are even go.
    for client in 0..500_000 {
        table.ask(client, client * 100 * MS);
    }
    assert!(table.len() <= 2 * SWEEP_MIN, "{} clients, of which 60 owe", table.len());
    assert_eq!(table.strangers_even_at, 0, "nobody had to be forgotten");
    // Four times as many as there is room for, each of whom owes; what each was admitted when.
    let begin = 100_000 * SECOND_NS;
    let mut admitted: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut forgotten: BTreeMap<u64, u64> = BTreeMap::new();
    for step in 0..1_000_000 {
        let (client, now) = (chance.next() % 40_000, begin + step * MS / 10);
        if admitted.contains_key(&client) && !table.even_at.contains_key(&client) {
            *forgotten.entry(client).or_default() += 1;
        }
        if table.ask(client, now).admitted {
            admitted.entry(client).or_default().push(now);
        }
        assert!(table.len() <= MAX, "{} clients", table.len());
    }
    assert!(table.strangers_even_at > 0, "it was full");
    for (client, times) in &admitted {
        let forgiven = forgotten.get(client).copied().unwrap_or_default();
        for (first, from) in times.iter().enumerate() {
            for (more, to) in times[first..].iter().enumerate() {
                let allowed = 5 + (to - from) / (6 * SECOND_NS) + forgiven;
                assert!((more as u64) < allowed, "{} in {} ms", more + 1, (to - from) / MS);
            }
        }
    }
    // And once they have gone, strangers are strangers.
    let later = begin + 2_000 * SECOND_NS;
    assert_eq!(table.ask(1 << 40, later).remaining, 4);
}

fn word<T>(limit: u64, clients: Vec<(u64, T)>, kind: impl Fn(Vec<Section<T>>) -> Word) -> Vec<u8> {
    kind(if clients.is_empty() { Vec::new() } else { vec![(limit, clients)] }).write()
}

/// Gateways with clocks of their own that tell each other what they admitted.
struct Cluster {
    gates: Vec<Gate>,
    /// When it arrives, at which gateway, and what.
    on_its_way: Vec<(u64, usize, Vec<u8>)>,
    tell_every: u64,
    chance: Chance,
    rate: Rate,
}

struct Gate {
    table: Table,
    /// What its clock is ahead.
    ahead: u64,
    told_at: u64,
    up: bool,
}

impl Cluster {
    fn new(rate: Rate, tell_every: u64) -> Cluster {
        let chance = Chance(17);
        Cluster { gates: Vec::new(), on_its_way: Vec::new(), tell_every, chance, rate }
    }

    /// One begins: it hears what clients owe from each that is there.
    fn join(&mut self, now: u64) {
        let mut table = Table::new(self.rate, 1000);
        table.share(true);
        let told_at = now + self.chance.next() % self.tell_every;
        let index = self.gates.len();
        for gate in self.gates.iter().filter(|it| it.up) {
            let debts = gate.table.debts(now + gate.ahead).collect();
            self.on_its_way.push((now + MS, index, word(0, debts, Word::Owed)));
        }
        let ahead = self.chance.next() % (1000 * SECOND_NS);
        self.gates.push(Gate { table, ahead, told_at, up: true });
    }

    /// What has arrived is counted, and what is due told.
    fn turn(&mut self, now: u64) {
        let (arrived, still) =
            std::mem::take(&mut self.on_its_way).into_iter().partition(|(at, ..)| *at <= now);
        self.on_its_way = still;
        let arrived: Vec<(u64, usize, Vec<u8>)> = arrived;
        for (_, to, message) in arrived {
            let gate = &mut self.gates[to];
            let now = now + gate.ahead;
            match Word::read(&message).unwrap() {
                Word::Admitted(sections) => {
                    for (key, count) in sections.into_iter().flat_map(|it| it.1) {
                        gate.table.absorb(key, count, now);
                    }
                }
                Word::Owed(sections) => {
                    for (key, debt) in sections.into_iter().flat_map(|it| it.1) {
                        gate.table.owes(key, debt, now);
                    }
                }
            }
        }
        for index in 0..self.gates.len() {
            if !self.gates[index].up || self.gates[index].told_at > now {
                continue;
            }
            self.gates[index].told_at += self.tell_every;
            let message = word(0, self.gates[index].table.tell(KEYS_MAX), Word::Admitted);
            for to in (0..self.gates.len()).filter(|to| *to != index && self.gates[*to].up) {
                let arrives = now + MS + self.chance.next() % (4 * MS);
                self.on_its_way.push((arrives, to, message.clone()));
            }
        }
    }
}

/// So many requests a second from one client that is allowed 1000 and 200 at once, for `shares` of
/// them at each gateway; the third is there from 20 s on, the second one till 40 s. When each was
/// admitted.
fn run(shares: [u64; 3], offered: u64, tell_every: u64, changes: bool) -> Vec<u64> {
    let mut cluster = Cluster::new(rate(1000, 1, 200), tell_every);
    cluster.join(0);
    cluster.join(0);
    let mut admitted = Vec::new();
    let sum: u64 = shares.iter().sum();
    let mut now = 0;
    while now < 61 * SECOND_NS {
        if changes && now > 20 * SECOND_NS && cluster.gates.len() == 2 {
            cluster.join(now);
        }
        cluster.gates[1].up = !(changes && now > 40 * SECOND_NS);
        cluster.turn(now);
        let mut at = cluster.chance.next() % sum;
        let chosen = shares.iter().position(|share| {
            let here = at < *share;
            at = at.wrapping_sub(*share);
            here
        });
        let up = chosen.filter(|it| cluster.gates.get(*it).is_some_and(|gate| gate.up));
        let gate = &mut cluster.gates[up.unwrap_or(0)];
        if gate.table.ask(42, now + gate.ahead).admitted {
            admitted.push(now);
        }
        now += cluster.chance.next() % (2 * SECOND_NS / offered);
    }
    admitted
}

/// The most and the fewest in any window that begins at a tenth of a second.
fn windows(admitted: &[u64], length_s: u64) -> (u64, u64) {
    let starts = (0..=(61 - length_s) * 10).map(|tenth| tenth * SECOND_NS / 10);
    let counts = starts.map(|from| {
        let before = |at: u64| admitted.partition_point(|it| *it < at) as u64;
        before(from + length_s * SECOND_NS) - before(from)
    });
    let counts: Vec<u64> = counts.collect();
    (counts.iter().copied().max().unwrap(), counts.iter().copied().min().unwrap())
}

#[test]
fn several_gateways_keep_one_rate() {
    #[rustfmt::skip]
    let cases = [
        ("even",                    [1, 1, 0],  false),
        ("90 and 10",               [9, 1, 0],  false),
        ("all at one",              [1, 0, 0],  false),
        ("even, with changes",      [1, 1, 1],  true),
        ("90 and 10, with changes", [90, 5, 5], true),
        ("all at who ends",         [0, 1, 0],  true),
        ("all at who begins",       [0, 0, 1],  true),
    ];
    for (what, shares, changes) in cases {
        for (offered, tell_every) in [(2000, 20), (5000, 20), (2000, 100), (5000, 100)] {
            let admitted = run(shares, offered, tell_every * MS, changes);
            let told = format!("{what}, {offered}/s, told every {tell_every} ms");
            for length_s in [10, 60] {
                let (most, fewest) = windows(&admitted, length_s);
                let due = length_s * 1000;
                println!("{told}, {length_s} s: {fewest} to {most}");
                assert!(most <= due + due / 100 + 200, "{told}: {most} in {length_s} s");
                // What one window has too much the next one lacks.
                let late = if tell_every > 20 { 200 } else { 0 };
                assert!(fewest + late >= due - due / 100, "{told}: {fewest} in {length_s} s");
            }
        }
    }
}

/// The simulation sees it when gateways don't hear of each other.
#[test]
fn gateways_that_are_not_told_admit_too_much() {
    let admitted = run([1, 1, 0], 5000, 1000 * SECOND_NS, false);
    let (most, _) = windows(&admitted, 10);
    assert!(most > 19_000, "{most} of 10000");
}

/// Others have filled the table: who is new has one request, and then what each of these has.
#[test]
fn a_stranger_has_one_request_also_where_it_is_full() {
    let mut table = Table::new(rate(10, 60, 5), 100);
    for client in 0..1_000 {
        while table.ask(client, 0).admitted {}
    }
    assert!(table.strangers_even_at > 4 * 6 * SECOND_NS, "it was full");
    let answers = [0, 0, 5_999, 6_000].map(|ms| table.ask(1 << 40, ms * MS).admitted);
    assert_eq!(answers, [true, false, false, true]);
    // With bursts of one there is nothing else.
    let mut table = Table::new(rate(10, 60, 1), 100);
    for client in 0..1_000 {
        assert!(table.ask(client, 0).admitted, "client {client}");
    }
    assert!(table.ask_known(1 << 40, 0).is_none() && table.ask(1 << 40, 0).admitted);
    assert!(table.ask_known(1 << 40, 0).is_some_and(|it| !it.admitted));
}

#[test]
fn little_is_told_first_of_who_asks_most() {
    let mut table = Table::new(rate(1000, 1, 100), 1000);
    table.share(true);
    for (client, count) in [(1, 3), (2, 9), (3, 1), (4, 5)] {
        (0..count).for_each(|_| assert!(table.ask(client, 0).admitted));
    }
    assert_eq!(table.tell(2), [(2, 9), (4, 5)]);
    assert_eq!(table.tell(2), [(1, 3), (3, 1)]);
    assert_eq!(table.tell(2), []);
    // Of more clients than that no more is kept.
    for client in 0..2 * UNTOLD_MAX as u64 {
        table.ask(client, 0);
    }
    assert_eq!(table.untold.as_ref().map(BTreeMap::len), Some(UNTOLD_MAX));
    table.share(false);
    assert_eq!(table.tell(2), []);
}

#[test]
fn a_debt_is_taken_over_once_and_has_an_end() {
    let mut table = Table::new(rate(10, 1, 5), 1000);
    table.owes(1, 700 * MS, 0);
    table.owes(1, 600 * MS, 0);
    assert_eq!(table.ask(1, 0).wait_ns, 300 * MS);
    // Whatever is said, there is an end to it.
    table.owes(2, u64::MAX, 0);
    table.absorb(3, u16::MAX, 0);
    table.absorb(3, u16::MAX, 0);
    for client in [2, 3] {
        assert!(!table.ask(client, 0).admitted);
        assert!(table.ask(client, 64 * 500 * MS + 10 * SECOND_NS).admitted, "client {client}");
    }
}

#[test]
fn words_are_read_as_they_were_written_or_not_at_all() {
    let admitted = Word::Admitted(vec![(3, vec![(1, 1), (9, u16::MAX)]), (4, vec![(1, 2)])]);
    let owed = Word::Owed(vec![(u64::MAX, vec![(u64::MAX, u64::MAX)])]);
    let full = Word::Owed(vec![(1, (0..KEYS_MAX as u64).map(|key| (key, 1)).collect())]);
    for word in [&admitted, &owed, &full, &Word::Admitted(Vec::new())] {
        let message = word.write();
        assert!(message.len() <= LENGTH_MAX);
        assert_eq!(Word::read(&message).as_ref(), Ok(word));
        for length in 0..message.len().min(100) {
            assert_eq!(Word::read(&message[..length]), Err(BadWord::Malformed), "{length}");
        }
        assert_eq!(Word::read(&[&message[..], &[0]].concat()), Err(BadWord::Malformed));
    }
    #[rustfmt::skip]
    let bad = [
        ("twice the same client",  Word::Admitted(vec![(1, vec![(2, 1), (2, 1)])])),
        ("clients out of order",   Word::Admitted(vec![(1, vec![(2, 1), (1, 1)])])),
        ("twice the same limit",   Word::Admitted(vec![(1, vec![(2, 1)]), (1, vec![(3, 1)])])),
        ("nothing",                Word::Admitted(vec![(1, vec![(2, 0)])])),
        ("no debt",                Word::Owed(vec![(1, vec![(2, 0)])])),
        ("too many",               Word::Owed((0..2).map(|limit| (limit, (1..KEYS_MAX as u64).map(|key| (key, 1)).collect())).collect())),
    ];
    for (what, word) in bad {
        assert!(Word::read(&word.write()).is_err(), "{what}");
    }
    assert_eq!(Word::read(&[2, 1]), Err(BadWord::Version));
    assert_eq!(Word::read(&vec![1; LENGTH_MAX + 1]), Err(BadWord::Long));
    // What is read is what would be written of it; nothing else is read.
    let mut chance = Chance(23);
    for round in 0..200_000 {
        let mut message: Vec<u8> = admitted.write();
        match round % 3 {
            0 => message = (0..chance.below(64)).map(|_| chance.next() as u8).collect(),
            1 => message.truncate(chance.below(message.len())),
            _ => {}
        }
        for _ in 0..chance.below(4) {
            if !message.is_empty() {
                let at = chance.below(message.len());
                message[at] = chance.next() as u8;
            }
        }
        if let Ok(word) = Word::read(&message) {
            assert_eq!(word.write(), message);
        }
    }
}
