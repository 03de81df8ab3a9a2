//! Records are written when requests are over, of several threads and gateways: here they are put in
//! the order in which requests came.

use super::Recorded;
use std::collections::BTreeMap;

/// Those that others may come before. Their number is bounded: beyond it the earliest goes on.
#[derive(Debug)]
pub struct Order {
    held: BTreeMap<(u64, u64), Recorded>,
    most: usize,
    count: u64,
}

impl Order {
    pub fn new(most: usize) -> Order {
        Order { held: BTreeMap::new(), most, count: 0 }
    }

    pub fn put(&mut self, it: Recorded) {
        self.count += 1;
        self.held.insert((it.at_us, self.count), it);
    }

    /// The earliest, if it came before `until_us`, before which nobody is to be put any more.
    pub fn next(&mut self, until_us: u64) -> Option<Recorded> {
        let held = self.held.len();
        let first = self.held.first_entry()?;
        let is_due = first.key().0 < until_us || held > self.most;
        is_due.then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::what_if::Fate;

    #[test]
    fn what_comes_late_is_put_in_its_place_while_there_is_room() {
        // Times as they are put, `<T`: what came before T goes on.
        #[rustfmt::skip]
        let cases: &[(usize, &str, &str)] = &[
            (9, "3 1 2 <9",        "1 2 3"),
            (9, "3 1 <3 2 <4",     "1 2 3"),
            (9, "3 1 2 <3",        "1 2"),
            (9, "5 <6 1 <6",       "5 1"),
            // More than may be held.
            (2, "3 4 1 2 <9",      "1 2 3 4"),
            (2, "3 4 5 1 <9",      "3 1 4 5"),
        ];
        for (most, script, expected) in cases {
            let (mut order, mut came) = (Order::new(*most), Vec::new());
            let mut next = |order: &mut Order, until_us| {
                while let Some(it) = order.next(until_us) {
                    came.push(it.at_us.to_string());
                }
            };
            for word in script.split(' ') {
                if let Some(until_us) = word.strip_prefix('<') {
                    next(&mut order, until_us.parse().unwrap());
                    continue;
                }
                order.put(Recorded {
                    at_us: word.parse().unwrap(),
                    gateway: 0,
                    client: [127, 0, 0, 1].into(),
                    route: String::new(),
                    waited_us: 0,
                    fate: Fate::Kept,
                });
                next(&mut order, 0);
            }
            assert_eq!(came.join(" "), *expected, "{script}");
        }
    }
}
