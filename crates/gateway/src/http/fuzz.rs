//! Random heads and bodies against what reads them: nothing panics, what is accepted is read one way
//! only, and pieces are read as the whole is. A failure prints its seed.

use super::body::{Decoder, Framing, Step, lines_are_whole};
use super::from::From;
use super::id::{Ids, RequestId};
use super::request::{Method, Request, lines};
use super::response::Response;
use super::trailers;
use everhold_core::spec::Net;
use std::time::{Duration, Instant};

/// Seeds of each plain run.
const SEEDS: u64 = 30_000;

/// Chance from a seed: SplitMix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Once in so many times.
    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn one_of<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        texts[self.below(texts.len())]
    }
}

const NAMES: &[&str] = &[
    "Content-Length",
    "content-length",
    "Transfer-Encoding",
    "TRANSFER-ENCODING",
    "Host",
    "Connection",
    "Upgrade",
    "X-One",
    "x-two",
    "TE",
    "Keep-Alive",
    "Expect",
    "Cookie",
    "Trailer",
    "Via",
    "traceparent",
    "tracestate",
    "X-Request-Id",
    "X-Forwarded-For",
    "Content_Length",
    "Transfer_Encoding",
    "Content-Length ",
    " Host",
    "Transfer-Encoding\t",
    "X",
    "",
    "Set-Cookie",
];
const VALUES: &[&str] = &[
    "0",
    "5",
    "05",
    "5, 5",
    "+5",
    "18446744073709551615",
    "chunked",
    "Chunked",
    "chunked, identity",
    "gzip, chunked",
    "identity",
    "\x0bchunked",
    "a",
    "a.org:80",
    "[::1]:8",
    "close",
    "keep-alive",
    "Upgrade",
    "X-One, x-two",
    "content-length",
    "websocket",
    "h2c",
    "",
    " ",
    "é",
    "a\tb",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "a\rb",
    "a\nb",
    "a\r\n b",
    "a\0b",
];
const ENDS: &[&str] = &["\n", "\r", "\r\r\n", "\n\r\n", " \r\n", "\r\n\r\n", "", "\0\r\n", "\r\n "];
const BYTES: &[u8] = b"\r\n\0 \t:;,/.%0x5\x7f\x80\xff\x0b#?@";

fn end(chance: &mut Chance) -> &'static str {
    if chance.once_in(60) { chance.one_of(ENDS) } else { "\r\n" }
}

fn fields(chance: &mut Chance, out: &mut String) {
    for _ in 0..chance.below(6) {
        out.push_str(chance.one_of(NAMES));
        out.push_str(chance.one_of(&[":", ": ", ": ", ": ", ":\t ", " :"]));
        out.push_str(chance.one_of(VALUES));
        out.push_str(end(chance));
    }
}

/// Some bytes are others, or gone, or twice there.
fn mutate(chance: &mut Chance, text: &mut Vec<u8>) {
    for _ in 0..chance.below(6).saturating_sub(2) {
        let at = chance.below(text.len().max(1));
        let byte = BYTES[chance.below(BYTES.len())];
        match chance.below(4) {
            _ if text.is_empty() => {}
            0 => text[at] = byte,
            1 => text.insert(at, byte),
            2 => drop(text.remove(at)),
            _ => {
                let piece = text[at..text.len().min(at + chance.below(40))].to_vec();
                let to = chance.below(text.len());
                text.splice(to..to, piece);
            }
        }
    }
}

fn request(chance: &mut Chance) -> Vec<u8> {
    let mut head = String::new();
    if chance.once_in(10) {
        head.push_str(chance.one_of(&["\r\n", "\n", "\r\n\r\n", " "]));
    }
    head.push_str(chance.one_of(&["GET", "POST", "PUT", "HEAD", "OPTIONS", "get", "M", "CONNECT"]));
    head.push_str(chance.one_of(&[" ", " ", " ", " ", " ", "  ", "\t"]));
    let targets =
        ["/", "/a", "/a?b", "*", "http://b/c", "http://b", "/a/../b", "/%2e%2e/", "//a", "é"];
    head.push_str(chance.one_of(&targets));
    head.push_str(chance.one_of(&[
        " HTTP/1.1",
        " HTTP/1.1",
        " HTTP/1.1",
        " HTTP/1.0",
        " HTTP/2.0",
    ]));
    head.push_str(end(chance));
    if !chance.once_in(8) {
        head.push_str("Host: a.org\r\n");
    }
    fields(chance, &mut head);
    head.push_str(end(chance));
    let mut head = head.into_bytes();
    mutate(chance, &mut head);
    if chance.once_in(2) {
        head.extend_from_slice(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    head
}

/// One request as it is known by: what a reader of its head takes it for.
type Known = (Vec<u8>, Vec<u8>, String, Framing, bool, Vec<(Vec<u8>, Vec<u8>)>);

fn known(request: &Request) -> Known {
    let added = [
        "host",
        "x-request-id",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-port",
        "forwarded",
        "via",
    ];
    let own = |name: &[u8]| added.iter().any(|it| name.eq_ignore_ascii_case(it.as_bytes()));
    let fields = lines(&request.head).filter(|(name, _)| !own(name));
    // What an upgrade is asked with moves to the end.
    let mut fields: Vec<_> = fields.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    fields.sort();
    let (method, target) = (request.method_name().to_vec(), request.target().to_vec());
    (method, target, request.host.clone(), request.framing, request.upgrade, fields)
}

/// What is sent of it, up to the empty line.
fn canonical(head: &[u8], framing: Framing) -> Vec<u8> {
    let coding: &[u8] =
        if framing == Framing::Chunked { b"Transfer-Encoding: chunked\r\n" } else { b"" };
    [head, coding, b"\r\n"].concat()
}

/// Lines as the laxest of readers takes them: any end will do, and names in any dress.
fn lax_names(input: &[u8]) -> Vec<String> {
    let lines = input.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|line| !line.is_empty());
    let name = |line: &[u8]| {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        String::from_utf8_lossy(name).trim().to_ascii_lowercase()
    };
    lines.skip(1).map(name).collect()
}

fn requests(seed: u64) -> bool {
    let mut chance = Chance(seed);
    let input = request(&mut chance);
    let shown = String::from_utf8_lossy(&input).into_owned();
    let from = From::of(([127, 0, 0, 1], 1).into(), false, 80);
    let proxies: Vec<Net> =
        ["127.0.0.0/8", "10.0.0.0/8"].iter().flat_map(|it| it.parse()).collect();
    let from = (&from, if chance.once_in(2) { &*proxies } else { &[] });
    let (mut ids, mut first) = (Ids::begin(), Request::default());
    let Ok(Some(length)) = first.read(&input, from, &mut ids) else { return false };
    let names = lax_names(&input[..length]);
    let times = |name: &str| names.iter().filter(|it| *it == name).count();
    let framings = (times("content-length"), times("transfer-encoding"));
    match first.framing {
        Framing::None => assert_eq!(framings, (0, 0), "{shown:?}"),
        Framing::Length(_) => assert_eq!(framings, (1, 0), "{shown:?}"),
        Framing::Chunked => assert_eq!(framings, (0, 1), "{shown:?}"),
        Framing::End => panic!("a request has an end: {shown:?}"),
    }
    assert!(times("host") <= 1, "{shown:?}");

    let sent = canonical(&first.head, first.framing);
    let sent_shown = String::from_utf8_lossy(&sent).into_owned();
    assert!(lines_are_whole(&sent) && !sent.contains(&0), "{shown:?} as {sent_shown:?}");
    assert_eq!(memchr::memmem::find(&sent, b"\r\n\r\n"), Some(sent.len() - 4), "{sent_shown:?}");
    assert_eq!(
        sent.split(|byte| *byte == b'\r')
            .next()
            .map(|it| it.iter().filter(|b| **b == b' ').count()),
        Some(2)
    );
    let mut second = Request::default();
    let again = second.read(&sent, from, &mut ids);
    assert_eq!(again, Ok(Some(sent.len())), "{shown:?} as {sent_shown:?}");
    assert_eq!(known(&second), known(&first), "{shown:?} as {sent_shown:?}");
    // In pieces it is the same: nothing before its end, and no other view of it at the end.
    for _ in 0..4 {
        let part = chance.below(length);
        let read = second.read(&input[..part], from, &mut ids);
        assert_eq!(read, Ok(None), "{part} bytes of {shown:?}");
    }
    let read = second.read(&input[..length], from, &mut ids);
    assert_eq!(read, Ok(Some(length)), "without what follows: {shown:?}");
    true
}

fn responses(seed: u64) -> bool {
    let mut chance = Chance(seed);
    let mut head = chance
        .one_of(&["HTTP/1.1 ", "HTTP/1.1 ", "HTTP/1.0 ", "HTTP/2.0 ", "\r\nHTTP/1.1 "])
        .to_owned();
    let lines =
        ["200 OK", "200", "204 No", "304 Not", "101 S", "103 E", "099 X", "500 é", "20 O", "999 "];
    head.push_str(chance.one_of(&lines));
    head.push_str(end(&mut chance));
    fields(&mut chance, &mut head);
    head.push_str(end(&mut chance));
    let mut input = head.into_bytes();
    mutate(&mut chance, &mut input);
    let shown = String::from_utf8_lossy(&input).into_owned();
    let method = if chance.once_in(4) { Method::Head } else { Method::Get };
    let (id, mut first) = (RequestId::of(b"id"), Response::default());
    let Ok(Some(length)) = first.read(&input, method, &id) else { return false };
    let sent = canonical(&first.head, first.framing);
    assert!(lines_are_whole(&sent) && !sent.contains(&0), "{shown:?}");
    assert_eq!(memchr::memmem::find(&sent, b"\r\n\r\n"), Some(sent.len() - 4), "{shown:?}");
    let mut second = Response::default();
    assert_eq!(second.read(&sent, method, &id), Ok(Some(sent.len())), "{shown:?}");
    assert_eq!((second.status, second.framing), (first.status, first.framing), "{shown:?}");
    assert_eq!(second.head, first.head, "{shown:?}");
    for _ in 0..4 {
        let part = chance.below(length);
        assert_eq!(second.read(&input[..part], method, &id), Ok(None), "{part} bytes of {shown:?}");
    }
    true
}

/// Data, fields after it and what is left; or that it is no body.
type Decoded = Result<(Vec<u8>, Vec<u8>, Vec<u8>), ()>;

/// Fed in pieces of that many bytes, of which not all that may be are taken at once.
fn decode(text: &[u8], mut piece: impl FnMut() -> usize) -> Decoded {
    let mut decoder = Decoder::new(Framing::Chunked);
    let (mut data, mut after, mut held, mut rest) = (Vec::new(), Vec::new(), Vec::new(), text);
    loop {
        match decoder.step(&held).map_err(drop)? {
            Step::Data(count) => {
                let count = count.min(piece());
                data.extend(held.drain(..count));
                decoder.took(count);
            }
            Step::Drop(count) => drop(held.drain(..count)),
            Step::Trailers(count) => {
                after.extend_from_slice(&held[..count - 2]);
                held.drain(..count);
            }
            Step::More if rest.is_empty() => return Err(()),
            Step::More => {
                let (now, later) = rest.split_at(piece().min(rest.len()));
                held.extend_from_slice(now);
                rest = later;
            }
            Step::Over => return Ok((data, after, [&held, rest].concat())),
        }
    }
}

fn bodies(seed: u64) -> bool {
    let mut chance = Chance(seed);
    let (mut text, mut data, mut after) = (Vec::new(), Vec::new(), String::new());
    for _ in 0..chance.below(5) {
        let count = 1 + chance.below(40);
        let chunk: Vec<u8> = (0..count).map(|_| BYTES[chance.below(BYTES.len())]).collect();
        let extension = chance.one_of(&["", "", "", ";a", ";a=b;c", ";a=\"b;\\\" c\""]);
        let zeros = chance.one_of(&["", "", "0", "00"]);
        text.extend_from_slice(format!("{zeros}{count:x}{extension}\r\n").as_bytes());
        text.extend_from_slice(&chunk);
        text.extend_from_slice(b"\r\n");
        data.extend(chunk);
    }
    text.extend_from_slice(b"0\r\n");
    for _ in 0..chance.below(4).saturating_sub(1) {
        after.push_str(chance.one_of(&[
            "A: b\r\n",
            "C:d\r\n",
            "Content-Length: 5\r\n",
            "X-Y: \r\n",
        ]));
    }
    text.extend_from_slice(after.as_bytes());
    text.extend_from_slice(b"\r\n");
    let next = b"GET / HTTP/1.1\r\n";
    let proper = [text.as_slice(), next].concat();
    let whole = decode(&proper, || usize::MAX);
    assert_eq!(whole, Ok((data, after.clone().into_bytes(), next.to_vec())), "{proper:?}");

    let mut mutated = proper;
    mutate(&mut chance, &mut mutated);
    let whole = decode(&mutated, || usize::MAX);
    for most in [1, 3, 50] {
        let pieces = decode(&mutated, || 1 + chance.below(most));
        assert_eq!(pieces, whole, "{:?}", String::from_utf8_lossy(&mutated));
    }
    let Ok((_, after, _)) = whole else { return false };
    let mut passed = Vec::new();
    trailers::append(&mut passed, &after);
    let shown = String::from_utf8_lossy(&passed).to_ascii_lowercase();
    let own = shown.lines().any(|line| line.starts_with("content-length:"));
    assert!(lines_are_whole(&passed) && !own, "{shown:?}");
    true
}

/// Says which seed it was if the test ends here.
struct Told(&'static str, u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "{} with seed {}; again: make fuzz SECONDS=0 SEED={}",
                self.0, self.1, self.1
            );
        }
    }
}

/// Of a seed; whether what came of it is accepted.
type Check = fn(u64) -> bool;

const ALL: [(&str, Check); 3] =
    [("requests", requests), ("responses", responses), ("bodies", bodies)];

#[test]
fn what_is_accepted_is_read_one_way_only() {
    for (name, check) in ALL {
        let mut accepted = 0;
        for seed in 0..SEEDS {
            let _told = Told(name, seed);
            accepted += u64::from(check(seed));
        }
        let share = accepted * 100 / SEEDS;
        assert!((3..97).contains(&share), "{name}: {share} % accepted: the test tests little");
    }
}

/// From any seed for a second; with `make fuzz` for so many seconds, from that seed or any.
#[test]
fn for_long() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds = number("EVERHOLD_FUZZ_SECONDS").unwrap_or(1);
    let from = number("EVERHOLD_FUZZ_SEED").unwrap_or_else(|| Ids::begin().random() >> 16);
    let (begun, mut seed) = (Instant::now(), from);
    loop {
        for (name, check) in ALL {
            let _told = Told(name, seed);
            check(seed);
        }
        seed += 1;
        if begun.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
    }
    println!("{} seeds from {from}, none failed", seed - from);
}
