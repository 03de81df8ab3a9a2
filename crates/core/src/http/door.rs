//! Who is let in: decided when a connection is accepted, before a byte of it is read.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::spec::Net;

/// Many ranges of addresses, made ready to be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nets(Vec<(IpAddr, IpAddr)>);

impl Nets {
    pub fn new(nets: &[Net]) -> Nets {
        let mut ranges: Vec<(IpAddr, IpAddr)> = nets.iter().map(Net::ends).collect();
        // Of one that lies within another nothing is left.
        ranges.sort_by_key(|(first, last)| (*first, Reverse(*last)));
        ranges.dedup_by(|inner, outer| inner.1 <= outer.1);
        Nets(ranges)
    }

    pub fn contain(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let after = self.0.partition_point(|(first, _)| *first <= ip);
        after.checked_sub(1).is_some_and(|at| ip <= self.0[at].1)
    }
}

/// Who a connection is of: an address of IPv4, or a network of 64 bits, as which any client of IPv6 has
/// addresses at will.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client(u128);

impl Client {
    pub fn of(ip: IpAddr) -> Client {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Client(ip.to_ipv6_mapped().into()),
            IpAddr::V6(ip) => Client(u128::from(ip) >> 64 << 64),
        }
    }
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It is on the listener's list.
    Denied,
    /// It had to be stopped too often of late.
    Struck,
    /// It has as many connections as one client may have.
    TooMany,
    /// What is left is kept for those who asked something of late and got it.
    Crowded,
}

/// The last part of all connections is kept for known clients.
const KEPT_FOR_KNOWN: usize = 8;
/// Somebody stays known for so long after it was served last: a user who comes back after a meeting.
const KNOWN_FOR_MS: u64 = 3_600_000;
/// Whoever is served on one connection for long is told of again so often: soon enough to stay known.
pub const TELL_SERVED_EVERY_MS: u64 = KNOWN_FOR_MS / 6;
/// So many connections stopped within so long,
const STRIKES: u32 = 3;
const STRIKES_WITHIN_MS: u64 = 60_000;
/// and nobody is let in from there for this long. Many may share an address.
const STRUCK_FOR_MS: u64 = 60_000;

/// How full it is.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    pub all: usize,
    pub all_max: usize,
    /// Of one client; `None`: as many as there are.
    pub each_max: Option<u32>,
    /// Many clients are behind it: it is let in as long as there is room at all.
    pub trusted: bool,
}

/// What is known of clients. Its size is bounded: by connections, and what is remembered of those that
/// have none by `remembered_max`.
#[derive(Debug, Clone, Default)]
pub struct Book {
    clients: BTreeMap<Client, Seen>,
    remembered_max: usize,
    /// Those in `clients` that have no connection.
    away: usize,
}

#[derive(Debug, Clone, Default)]
struct Seen {
    connections: u32,
    known_until: u64,
    strikes: u32,
    /// When the first of them was.
    struck_at: u64,
    refused_until: u64,
}

impl Seen {
    fn is_worth_remembering(&self, now_ms: u64) -> bool {
        let strikes = self.strikes > 0 && now_ms < self.struck_at + STRIKES_WITHIN_MS;
        now_ms < self.known_until || now_ms < self.refused_until || strikes
    }
}

impl Book {
    pub fn new(remembered_max: usize) -> Book {
        Book { remembered_max, ..Book::default() }
    }

    /// Lets one connection in, which has to leave.
    pub fn enter(&mut self, client: Client, crowd: Crowd, now_ms: u64) -> Result<(), Why> {
        let seen = self.clients.get(&client);
        let full = crowd.all >= crowd.all_max - crowd.all_max / KEPT_FOR_KNOWN;
        match seen {
            _ if crowd.trusted => {}
            Some(seen) if now_ms < seen.refused_until => return Err(Why::Struck),
            Some(seen) if crowd.each_max.is_some_and(|most| seen.connections >= most) => {
                return Err(Why::TooMany);
            }
            Some(seen) if full && now_ms >= seen.known_until => return Err(Why::Crowded),
            None if full => return Err(Why::Crowded),
            Some(_) | None => {}
        }
        if seen.is_some_and(|seen| seen.connections == 0) {
            self.away -= 1;
        }
        self.clients.entry(client).or_default().connections += 1;
        Ok(())
    }

    /// A connection of it has ended.
    pub fn leave(&mut self, client: Client, now_ms: u64) {
        let Some(seen) = self.clients.get_mut(&client) else { return };
        seen.connections = seen.connections.saturating_sub(1);
        if seen.connections > 0 {
            return;
        }
        if !seen.is_worth_remembering(now_ms) {
            self.clients.remove(&client);
            return;
        }
        self.away += 1;
        if self.away > self.remembered_max {
            self.forget(now_ms);
        }
    }

    /// It asked for something and got it.
    pub fn served(&mut self, client: Client, now_ms: u64) {
        if let Some(seen) = self.clients.get_mut(&client) {
            seen.known_until = now_ms + KNOWN_FOR_MS;
        }
    }

    /// It was served within the last hour.
    pub fn knows(&self, client: Client, now_ms: u64) -> bool {
        self.clients.get(&client).is_some_and(|seen| now_ms < seen.known_until)
    }

    /// One of its connections had to be stopped.
    pub fn strike(&mut self, client: Client, now_ms: u64) {
        let Some(seen) = self.clients.get_mut(&client) else { return };
        if now_ms >= seen.struck_at + STRIKES_WITHIN_MS {
            (seen.strikes, seen.struck_at) = (0, now_ms);
        }
        seen.strikes += 1;
        if seen.strikes >= STRIKES {
            (seen.strikes, seen.refused_until) = (0, now_ms + STRUCK_FOR_MS);
        }
    }

    /// Of those that are away half stay at most: those that are refused, then those that are known for
    /// longest to come.
    fn forget(&mut self, now_ms: u64) {
        self.clients.retain(|_, it| it.connections > 0 || it.is_worth_remembering(now_ms));
        let rank = |it: &Seen| (it.refused_until.max(now_ms), it.known_until);
        let away = self.clients.values().filter(|it| it.connections == 0);
        let mut ranks: Vec<(u64, u64)> = away.map(rank).collect();
        let most = self.remembered_max / 2;
        if ranks.len() > most {
            let (_, last, _) = ranks.select_nth_unstable_by(most, |one, other| other.cmp(one));
            let last = *last;
            self.clients.retain(|_, it| it.connections > 0 || rank(it) > last);
        }
        self.away = self.clients.values().filter(|it| it.connections == 0).count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_one_of_many_ranges_or_in_none() {
        let texts = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7", "2001:db8::/32", "11.0.0.0/8"];
        let nets: Vec<Net> = texts.iter().map(|it| it.parse().unwrap()).collect();
        let nets = Nets::new(&nets);
        #[rustfmt::skip]
        let cases = [
            ("10.0.0.0", true), ("10.1.2.3", true), ("10.255.255.255", true), ("11.0.0.0", true),
            ("12.0.0.0", false), ("9.255.255.255", false), ("192.0.2.7", true), ("192.0.2.6", false),
            ("192.0.2.8", false), ("2001:db8:ffff::1", true), ("2001:db9::", false), ("::", false),
            // However it is said.
            ("::ffff:10.1.2.3", true), ("::10.1.2.3", false),
        ];
        for (ip, expected) in cases {
            assert_eq!(nets.contain(ip.parse().unwrap()), expected, "{ip}");
        }
        assert!(!Nets::default().contain("10.0.0.1".parse().unwrap()));
        let all = Nets::new(&["0.0.0.0/0".parse().unwrap()]);
        assert!(all.contain("1.2.3.4".parse().unwrap()) && !all.contain("2001::".parse().unwrap()));
        let all = Nets::new(&["::/0".parse().unwrap()]);
        assert!(all.contain("2001::".parse().unwrap()) && !all.contain("1.2.3.4".parse().unwrap()));
    }

    /// Steps of clients by their last number: `+` enters, `-` leaves, `!` is served, `x` is stopped;
    /// with `@`, seconds go by. Those from 100 on are trusted. What is said to those that enter.
    fn play(steps: &str, all_max: usize, each_max: Option<u32>) -> String {
        let mut book = Book::new(100);
        let (mut all, mut now, mut said) = (0, 10_000_000, Vec::new());
        for step in steps.split_whitespace() {
            let (what, number) = step.split_at(1);
            let number: u64 = number.parse().unwrap();
            let client = Client::of(IpAddr::from([10, 0, 0, number as u8]));
            match what {
                "+" => {
                    let crowd = Crowd { all, all_max, each_max, trusted: number >= 100 };
                    said.push(match book.enter(client, crowd, now) {
                        Ok(()) => {
                            all += 1;
                            "in"
                        }
                        Err(Why::Struck) => "struck",
                        Err(Why::TooMany) => "many",
                        Err(Why::Crowded) => "crowded",
                        Err(Why::Denied) => "denied",
                    });
                }
                "-" => {
                    book.leave(client, now);
                    all -= 1;
                }
                "!" => book.served(client, now),
                "x" => book.strike(client, now),
                _ => now += number * 1000,
            }
        }
        said.join(" ")
    }

    #[test]
    fn who_gets_in() {
        #[rustfmt::skip]
        let cases: &[(&str, usize, Option<u32>, &str)] = &[
            // Each has its own bound.
            ("+1 +1 +1 +2 -1 +1",             100, Some(2), "in in many in in"),
            ("+1 +1 +1 +1",                   100, None,    "in in in in"),
            // What is left when it is nearly full is for known clients, for a while.
            ("+1 !1 -1 +2 +2 +2 +2 +2 +2 +2 +3 +1",       8, None, "in in in in in in in in crowded in"),
            ("+1 !1 -1 +2 +2 +2 +2 +2 +2 +2 @3599 +1",    8, None, "in in in in in in in in in"),
            ("+1 !1 -1 +2 +2 +2 +2 +2 +2 +2 @3600 +1",    8, None, "in in in in in in in in crowded"),
            // To have come is not to be known.
            ("+2 +2 +2 +2 +2 +2 +2 +2",       8,   None,    "in in in in in in in crowded"),
            ("+1",                            1,   None,    "in"),
            // Stopped three times in a minute.
            ("+1 x1 x1 +1 x1 +1 +2",          100, None,    "in in struck in"),
            ("+1 x1 -1 +1 x1 -1 +1 x1 -1 +1", 100, None,    "in in in struck"),
            ("+1 x1 x1 x1 @59 +1 @1 +1",      100, None,    "in struck in"),
            ("+1 x1 x1 @60 x1 +1",            100, None,    "in in"),
            // Also a known one.
            ("+1 !1 x1 x1 x1 +1",             100, None,    "in struck"),
            // Many are behind a proxy that is trusted.
            ("+100 +100 +100 x100 x100 x100 +100",         100, Some(2), "in in in in"),
            ("+2 +2 +2 +2 +2 +2 +2 +2 +100",  8, None,      "in in in in in in in crowded in"),
        ];
        for (steps, all_max, each_max, expected) in cases {
            assert_eq!(play(steps, *all_max, *each_max), *expected, "{steps}");
        }
    }

    #[test]
    fn a_network_of_64_bits_is_one_client() {
        let of = |ip: &str| Client::of(ip.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::9"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut book = Book::new(100);
        let crowd = Crowd { all: 0, all_max: 1000, each_max: None, trusted: false };
        let client = |number: u32| Client::of(IpAddr::from(number.to_be_bytes()));
        book.enter(client(0), crowd, 0).unwrap();
        (0..3).for_each(|_| book.strike(client(0), 0));
        book.leave(client(0), 0);
        for number in 1..10_000 {
            let now = u64::from(number);
            book.enter(client(number), crowd, now).unwrap();
            book.served(client(number), now);
            if number % 100 > 0 {
                book.leave(client(number), now);
            }
            let away = book.clients.values().filter(|it| it.connections == 0).count();
            assert_eq!(away, book.away);
            assert!(away <= 100, "{away} are remembered");
        }
        assert_eq!(book.clients.len() - book.away, 99, "who is there is in the book");
        assert_eq!(
            book.enter(client(0), crowd, 9_999),
            Err(Why::Struck),
            "the worst stays longest"
        );
        // Of who did nothing nothing is kept.
        let before = book.clients.len();
        book.enter(client(20_000), crowd, 9_999).unwrap();
        book.leave(client(20_000), 9_999);
        assert_eq!(book.clients.len(), before);
    }
}
