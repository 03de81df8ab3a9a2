//! Who waits for a place, in which order, and who is told at once that it is no use.
//!
//! Classes come first. Within one it is first come, first served, until somebody has been waiting all
//! the time for [`STANDING_US`]: such a queue is no burst that passes but a standing delay, and from
//! then on the newest goes first, as at Facebook (Maurer, "Fail at Scale", ACM Queue 2015: controlled
//! delay and adaptive LIFO). First come, first served would have everybody wait until just before they
//! give up, and the places would be spent on those who do.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// As long as the interval of CoDel (RFC 8289).
pub const STANDING_US: u64 = 100_000;

/// For how long somebody waits, where the spec says nothing: longer, and who asked has mostly gone on.
pub const WAIT_MS: u64 = 1_000;

/// How many places there are for requests, and who may wait for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bulkhead {
    pub limit: Limit,
    /// How many may wait; `None`: as many as there are places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// For how long one of them waits at most.
    pub wait_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// So many that its instances do as much as they can, and not many more.
    Auto,
    Most(u32),
}

/// Whose requests come first where not all can be served.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Critical,
    High,
    #[default]
    Normal,
    Low,
}

impl Priority {
    pub const ALL: [Priority; 4] =
        [Priority::Critical, Priority::High, Priority::Normal, Priority::Low];

    pub fn is_normal(&self) -> bool {
        *self == Priority::Normal
    }
}

/// Why nobody waits, or no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Denied {
    /// As many wait as may, none of them less important or, in a standing queue, older.
    Full,
    /// Its turn would come, or has come, when it is no use any more.
    Late,
}

/// How a queue is to be kept, as of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// How many may wait.
    pub most: usize,
    /// How many are served at once, and for how long each.
    pub places: u32,
    pub service_us: u64,
}

/// Of what each answer took so much goes into the average: an eighth, as TCP's.
const SHARE: u64 = 8;
/// What the first one says at most.
const FIRST_US: u64 = 1_000_000;

/// How long an answer takes on average, after one more of that. One that took a minute at most doubles it:
/// it must not have everybody told that they come too late.
pub fn average_us(average_us: u64, took_us: u64) -> u64 {
    match average_us {
        0 => took_us.min(FIRST_US),
        _ => {
            average_us - average_us / SHARE + took_us.min(average_us.saturating_mul(SHARE)) / SHARE
        }
    }
}

/// By this a waiter is found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    class: Priority,
    number: u64,
}

/// Those who wait. `T` is what is needed to tell one of them.
#[derive(Debug)]
pub struct Queue<T> {
    classes: [VecDeque<Waiter<T>>; Priority::ALL.len()],
    waiting: usize,
    /// Since when it has not been empty.
    since_us: u64,
    tickets: u64,
}

#[derive(Debug)]
struct Waiter<T> {
    number: u64,
    /// From then on its turn is no use to it.
    latest_us: u64,
    it: T,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        let classes = [const { VecDeque::new() }; Priority::ALL.len()];
        Queue { classes, waiting: 0, since_us: 0, tickets: 0 }
    }
}

impl<T> Queue<T> {
    pub fn len(&self) -> usize {
        self.waiting
    }

    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// The newest goes first.
    fn stands(&self, now_us: u64) -> bool {
        self.waiting > 0 && now_us.saturating_sub(self.since_us) >= STANDING_US
    }

    /// Lets one more wait. Where that is one too many, it is the one whose turn would come last: it is
    /// handed back to be told.
    pub fn enter(
        &mut self,
        class: Priority,
        latest_us: u64,
        room: Room,
        it: T,
        now_us: u64,
    ) -> Result<(Ticket, Option<T>), Denied> {
        let stands = self.stands(now_us);
        // Of its own class those go first that have been here longer, unless the newest goes first.
        let first = class as usize + usize::from(!stands);
        let ahead: usize = self.classes[..first].iter().map(VecDeque::len).sum();
        let places = u64::from(room.places.max(1));
        let turn_us = (ahead as u64 + 1).saturating_mul(room.service_us) / places;
        if now_us.saturating_add(turn_us) > latest_us {
            return Err(Denied::Late);
        }
        let out = match self.waiting < room.most {
            true => None,
            false => Some(self.last_but(class, stands).ok_or(Denied::Full)?),
        };
        if self.waiting == 0 && out.is_none() {
            self.since_us = now_us;
        }
        self.tickets += 1;
        let number = self.tickets;
        self.classes[class as usize].push_back(Waiter { number, latest_us, it });
        self.waiting += 1;
        Ok((Ticket { class, number }, out))
    }

    /// Takes out whose turn would come last, if that is not the newcomer of that class.
    fn last_but(&mut self, newcomer: Priority, stands: bool) -> Option<T> {
        let last = self.classes.iter().rposition(|class| !class.is_empty())?;
        let goes = last > newcomer as usize || (last == newcomer as usize && stands);
        let class = self.classes.get_mut(last).filter(|_| goes)?;
        let out = if stands { class.pop_front() } else { class.pop_back() }?;
        self.waiting -= 1;
        Some(out.it)
    }

    /// Whose turn it is, and whether it comes in time.
    pub fn next(&mut self, now_us: u64) -> Option<(T, Result<(), Denied>)> {
        let stands = self.stands(now_us);
        let class = self.classes.iter_mut().find(|class| !class.is_empty())?;
        let next = if stands { class.pop_back() } else { class.pop_front() }?;
        self.waiting -= 1;
        let in_time = if next.latest_us >= now_us { Ok(()) } else { Err(Denied::Late) };
        Some((next.it, in_time))
    }

    /// It waits no longer; `None`: it had its turn, or was told that it has none.
    pub fn leave(&mut self, ticket: Ticket) -> Option<T> {
        let class = &mut self.classes[ticket.class as usize];
        let at = class.binary_search_by_key(&ticket.number, |it| it.number).ok()?;
        let left = class.remove(at)?;
        self.waiting -= 1;
        Some(left.it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::chance::Chance;

    /// Words, each at `MS:`. `n7` is number 7 of class normal (`c`, `h`, `n`, `l`) who waits 1 s, `n7<20`
    /// until 20 ms; `next` calls one; `-n7` leaves. What came of it: `7` was called, `7 out`, `7 late`,
    /// `7 full`. Three may wait; two are served at once, 10 ms each.
    fn check(script: &str, expected: &str) {
        let room = Room { most: 3, places: 2, service_us: 10_000 };
        let mut queue = Queue::default();
        let (mut tickets, mut told) = (Vec::new(), Vec::new());
        let mut now_us = 0;
        for word in script.split_whitespace() {
            if let Some(ms) = word.strip_suffix(':') {
                now_us = ms.parse::<u64>().unwrap() * 1_000;
                continue;
            }
            if word == "next" {
                told.push(match queue.next(now_us) {
                    None => "nobody".to_owned(),
                    Some((it, Ok(()))) => format!("{it}"),
                    Some((it, Err(_))) => format!("{it} late"),
                });
                continue;
            }
            let (word, leaves) = word.strip_prefix('-').map_or((word, false), |it| (it, true));
            let (word, latest) = word.split_once('<').unwrap_or((word, ""));
            let class = Priority::ALL["chnl".find(&word[..1]).unwrap()];
            let it: u64 = word[1..].parse().unwrap();
            if leaves {
                let (_, ticket) = tickets.iter().find(|(known, _)| *known == it).unwrap();
                let left = queue.leave(*ticket);
                told.extend(left.is_none().then(|| format!("{it} is gone")));
                continue;
            }
            let latest_us = latest.parse().map_or(now_us + 1_000_000, |ms: u64| ms * 1_000);
            match queue.enter(class, latest_us, room, it, now_us) {
                Ok((ticket, out)) => {
                    tickets.push((it, ticket));
                    told.extend(out.map(|out| format!("{out} out")));
                }
                Err(Denied::Full) => told.push(format!("{it} full")),
                Err(Denied::Late) => told.push(format!("{it} late")),
            }
        }
        assert_eq!(told.join(", "), expected, "{script}");
    }

    #[test]
    fn classes_come_first_then_the_first_and_in_a_standing_queue_the_newest() {
        check("0: n1 n2 n3 next next next next", "1, 2, 3, nobody");
        check("0: l1 n2 c3 next next next", "3, 2, 1");
        check("0: n1 h2 n3 next next next", "2, 1, 3");
        // Not empty for 100 ms.
        check("0: n1 n2 n3 99: next", "1");
        check("0: n1 n2 n3 100: next next next", "3, 2, 1");
        check("0: n1 l2 n3 100: next next next", "3, 1, 2");
        // It was empty in between.
        check("0: n1 90: next n2 n3 150: next next", "1, 2, 3");
        check("0: n1 90: n2 next 150: n3 next", "1, 3");
        check("0: n1 n2 -n1 next next", "2, nobody");
        check("0: n1 next -n1", "1, 1 is gone");
    }

    #[test]
    fn who_is_one_too_many_is_whose_turn_would_come_last() {
        check("0: n1 n2 n3 n4", "4 full");
        check("0: n1 n2 n3 l4", "4 full");
        check("0: n1 n2 n3 h4 next next next", "3 out, 4, 1, 2");
        check("0: l1 n2 l3 c4 h5 n6", "3 out, 1 out, 6 full");
        check("0: c1 c2 c3 c4", "4 full");
        // The oldest, where the newest goes first.
        check("0: n1 n2 n3 100: n4 next next next", "1 out, 4, 3, 2");
        check("0: l1 l2 n3 100: l4 h5 next next next", "1 out, 2 out, 5, 3, 4");
        check("0: h1 h2 h3 100: n4", "4 full");
    }

    /// One who takes the place of another is no queue that was empty.
    #[test]
    fn a_queue_of_one_stands_too() {
        let room = Room { most: 1, places: 1, service_us: 0 };
        let mut queue = Queue::default();
        for (it, now_us) in [(1, 0), (2, STANDING_US), (3, STANDING_US + 1)] {
            let entered = queue.enter(Priority::Normal, u64::MAX, room, it, now_us);
            let out = entered.map(|(_, out)| out);
            assert_eq!(out, Ok(if it == 1 { None } else { Some(it - 1) }));
        }
    }

    /// Two served at once, 10 ms each: the n-th of them begins when n halves of that are over.
    #[test]
    fn whose_turn_would_come_too_late_does_not_wait() {
        check("0: n1<4", "1 late");
        check("0: n1<5", "");
        check("0: n1 n2<9", "2 late");
        check("0: n1 n2<10", "");
        check("0: n1 h2<5", "");
        check("0: n1 n2 100: n3<105 n4<104", "4 late");
        // Its turn came later than was to be expected.
        check("0: n1<5 n2 6: next next", "1 late, 2");
        check("0: n1<5 5: next", "1");
    }

    #[test]
    fn one_long_answer_says_little_of_the_others() {
        #[rustfmt::skip]
        let cases: &[(&[u64], u64)] = &[
            (&[5_000],                          5_000),
            (&[60_000_000],                     1_000_000),
            (&[8_000, 16_000],                  9_000),
            (&[8_000, 0],                       7_000),
            (&[8_000, 60_000_000],              15_000),
            (&[8_000, 60_000_000, 60_000_000],  28_125),
            (&[8_000, u64::MAX],                15_000),
        ];
        for (took, expected) in cases {
            let average = took.iter().fold(0, |average, took| average_us(average, *took));
            assert_eq!(average, *expected, "{took:?}");
        }
    }

    #[test]
    fn whatever_happens_nobody_is_lost_and_never_more_wait_than_may() {
        let mut chance = Chance(7);
        for _ in 0..200 {
            let mut queue = Queue::default();
            let (mut now_us, mut there, mut tickets) = (0, Vec::new(), Vec::new());
            for it in 0..300_u32 {
                now_us += chance.below(20_000) as u64;
                let room = Room { most: chance.below(9), places: 2, service_us: 100 };
                match chance.below(5) {
                    0 => {
                        let next = queue.next(now_us);
                        assert_eq!(next.is_none(), there.is_empty());
                        there.retain(|it| next.is_none_or(|(next, _)| next != *it));
                    }
                    1 if !tickets.is_empty() => {
                        let (it, ticket) = tickets[chance.below(tickets.len())];
                        assert_eq!(queue.leave(ticket).is_some(), there.contains(&it));
                        there.retain(|other| *other != it);
                    }
                    _ => {
                        let class = *chance.one_of(&Priority::ALL);
                        let before = queue.len();
                        let entered = queue.enter(class, now_us + 50_000, room, it, now_us);
                        if let Ok((ticket, out)) = entered {
                            tickets.push((it, ticket));
                            there.retain(|it| out != Some(*it));
                            there.push(it);
                            assert!(queue.len() <= room.most.max(before));
                        }
                    }
                }
                assert_eq!(queue.len(), there.len());
            }
        }
    }
}
