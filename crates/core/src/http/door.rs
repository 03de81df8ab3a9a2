//! Who is let in: decided when a connection is accepted, before a byte of it is read.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Addresses that begin alike, as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    ip: IpAddr,
    bits: u8,
}

/// Why a prefix is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPrefix {
    #[error("an address, or a network as 10.0.0.0/8")]
    Malformed,
    #[error("there are bits set beyond the prefix")]
    BitsBeyond,
}

impl FromStr for Prefix {
    type Err = BadPrefix;

    fn from_str(text: &str) -> Result<Prefix, BadPrefix> {
        let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let ip: IpAddr = ip.parse().map_err(|_| BadPrefix::Malformed)?;
        let all = if ip.is_ipv4() { 32 } else { 128 };
        let digits = |bits: &str| bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = match bits {
            None => all,
            Some(bits) if digits(bits) => bits.parse().map_err(|_| BadPrefix::Malformed)?,
            Some(_) => return Err(BadPrefix::Malformed),
        };
        let prefix = Prefix { ip, bits };
        match bits <= all && number(ip) == prefix.range().0 {
            true => Ok(prefix),
            false if bits > all => Err(BadPrefix::Malformed),
            false => Err(BadPrefix::BitsBeyond),
        }
    }
}

impl TryFrom<String> for Prefix {
    type Error = BadPrefix;

    fn try_from(text: String) -> Result<Prefix, BadPrefix> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.bits)
    }
}

impl Prefix {
    /// The first and the last address.
    fn range(&self) -> (u128, u128) {
        let bits = if self.ip.is_ipv4() { 96 + u32::from(self.bits) } else { self.bits.into() };
        let rest = u128::MAX.checked_shr(bits).unwrap_or(0);
        let first = number(self.ip) & !rest;
        (first, first | rest)
    }
}

/// An address of IPv4 is the one of IPv6 that stands for it.
fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// Many prefixes, made ready to be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefixes(Vec<(u128, u128)>);

impl Prefixes {
    pub fn new(prefixes: &[Prefix]) -> Prefixes {
        let mut ranges: Vec<(u128, u128)> = prefixes.iter().map(Prefix::range).collect();
        // Of one that lies within another nothing is left.
        ranges.sort_by_key(|(first, last)| (*first, u128::MAX - last));
        ranges.dedup_by(|inner, outer| inner.1 <= outer.1);
        Prefixes(ranges)
    }

    pub fn contain(&self, ip: IpAddr) -> bool {
        let ip = number(ip);
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
    fn prefixes_are_what_they_say() {
        #[rustfmt::skip]
        let cases = [
            ("10.0.0.0/8",           Ok("10.0.0.0/8")),
            ("10.1.2.3",             Ok("10.1.2.3/32")),
            ("0.0.0.0/0",            Ok("0.0.0.0/0")),
            ("::/0",                 Ok("::/0")),
            ("2001:db8::/32",        Ok("2001:db8::/32")),
            ("2001:db8::1",          Ok("2001:db8::1/128")),
            ("10.0.0.1/8",           Err(BadPrefix::BitsBeyond)),
            ("2001:db8::1/64",       Err(BadPrefix::BitsBeyond)),
            ("10.0.0.0/33",          Err(BadPrefix::Malformed)),
            ("10.0.0.0/+8",          Err(BadPrefix::Malformed)),
            ("10.0.0.0/",            Err(BadPrefix::Malformed)),
            ("10.0.0/8",             Err(BadPrefix::Malformed)),
            ("example.org",          Err(BadPrefix::Malformed)),
        ];
        for (text, expected) in cases {
            let read = text.parse::<Prefix>().map(|it| it.to_string());
            assert_eq!(read.as_deref().map_err(|it| *it), expected, "{text}");
        }
    }

    #[test]
    fn an_address_is_in_one_of_many_prefixes_or_in_none() {
        let texts = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7", "2001:db8::/32", "11.0.0.0/8"];
        let prefixes: Vec<Prefix> = texts.iter().map(|it| it.parse().unwrap()).collect();
        let prefixes = Prefixes::new(&prefixes);
        #[rustfmt::skip]
        let cases = [
            ("10.0.0.0", true), ("10.1.2.3", true), ("10.255.255.255", true), ("11.0.0.0", true),
            ("12.0.0.0", false), ("9.255.255.255", false), ("192.0.2.7", true), ("192.0.2.6", false),
            ("192.0.2.8", false), ("2001:db8:ffff::1", true), ("2001:db9::", false), ("::", false),
            // However it is said.
            ("::ffff:10.1.2.3", true), ("::10.1.2.3", false),
        ];
        for (ip, expected) in cases {
            assert_eq!(prefixes.contain(ip.parse().unwrap()), expected, "{ip}");
        }
        assert!(!Prefixes::default().contain("10.0.0.1".parse().unwrap()));
        let all = Prefixes::new(&["0.0.0.0/0".parse().unwrap()]);
        assert!(all.contain("1.2.3.4".parse().unwrap()) && !all.contain("2001::".parse().unwrap()));
    }

    /// Steps of clients by their last number: `+` enters, `-` leaves, `!` is served, `x` is stopped;
    /// with `@`, seconds go by. What is said to those that enter.
    fn play(steps: &str, all_max: usize, each_max: Option<u32>) -> String {
        let mut book = Book::new(100);
        let (mut all, mut now, mut said) = (0, 10_000_000, Vec::new());
        for step in steps.split_whitespace() {
            let (what, number) = step.split_at(1);
            let number: u64 = number.parse().unwrap();
            let client = Client::of(IpAddr::from([10, 0, 0, number as u8]));
            match what {
                "+" => said.push(match book.enter(client, Crowd { all, all_max, each_max }, now) {
                    Ok(()) => {
                        all += 1;
                        "in"
                    }
                    Err(Why::Struck) => "struck",
                    Err(Why::TooMany) => "many",
                    Err(Why::Crowded) => "crowded",
                    Err(Why::Denied) => "denied",
                }),
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
        let crowd = Crowd { all: 0, all_max: 1000, each_max: None };
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
