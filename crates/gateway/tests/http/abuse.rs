//! Who is not let in, and who is stopped: floods of frames, and drops instead of bodies.

use super::cache::{get, keeping, says};
use super::fixture::{Client, FINE, Fixture, Instance, PATIENCE, client_from, eventually};
use super::links::frame;
use super::raw::{
    Came, END_HEADERS, END_STREAM, GET, HEADERS, PING, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE,
    block,
};
use everhold_core::http::HttpTable;
use everhold_core::http::route::HttpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

const ASK: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
/// Longer than nobody is slow.
const LONG: Duration = Duration::from_secs(7);
const ENHANCE_YOUR_CALM: u32 = 11;

fn web(table: &mut HttpTable) -> &mut HttpListener {
    table.listeners.get_mut("web").unwrap()
}

/// Whether it gets an answer; else the connection has ended without one.
fn is_in(client: &mut Client) -> bool {
    client.say(ASK);
    match client.answer_or_end("GET") {
        Some(answer) => answer.status == 200,
        None => false,
    }
}

fn from(last: u8, gateway: &Fixture) -> Client {
    client_from([127, 0, 0, last], gateway.address)
}

#[test]
fn who_is_denied_is_not_let_in() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    let mut before = from(9, &gateway);
    assert!(is_in(&mut before));
    let deny = ["127.0.0.8/31", "10.0.0.0/8"].map(|it| it.parse().unwrap());
    gateway.change(|table| web(table).deny = deny.to_vec());
    assert!(!is_in(&mut from(8, &gateway)) && !is_in(&mut from(9, &gateway)));
    assert!(is_in(&mut from(7, &gateway)) && is_in(&mut from(10, &gateway)));
    assert!(is_in(&mut before), "who is in stays");
    assert_eq!(gateway.gateway.refused().denied, 2);
    gateway.change(|_| {});
    assert!(is_in(&mut from(8, &gateway)));
}

#[test]
fn a_client_has_so_many_connections() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    gateway.change(|table| web(table).per_client_max = Some(2));
    let (mut one, mut two) = (from(1, &gateway), from(1, &gateway));
    assert!(is_in(&mut one) && is_in(&mut two));
    assert!(!is_in(&mut from(1, &gateway)));
    assert!(is_in(&mut from(2, &gateway)), "others are others");
    assert_eq!(gateway.gateway.refused().too_many, 1);
    drop(one);
    eventually("its place is free", || is_in(&mut from(1, &gateway)));
    assert!(is_in(&mut two));
}

#[test]
fn what_is_left_is_for_those_who_are_known() {
    let instance = Instance::says(FINE);
    let most = |config: &mut everhold_gateway::Config| config.limits.http_max = 8;
    let gateway = Fixture::set_up(&[instance.address], |_| {}, most);
    let mut known = from(1, &gateway);
    assert!(is_in(&mut known));
    let strangers: Vec<Client> = (0..6).map(|_| from(2, &gateway)).collect();
    // Connections are let in one after the other: till the last of these, all were.
    assert!(!is_in(&mut from(3, &gateway)));
    assert!(!is_in(&mut from(2, &gateway)), "to have come is not to be known");
    assert!(is_in(&mut from(1, &gateway)));
    assert_eq!(gateway.gateway.refused().crowded, 2);
    drop(strangers);
    eventually("there is room again", || is_in(&mut from(3, &gateway)));
}

/// Many are behind a trusted proxy: what one of them does is not held against all.
#[test]
fn a_trusted_proxy_is_let_in_while_there_is_room_and_its_connection_is_kept() {
    let instance = Instance::says(FINE);
    let most = |config: &mut everhold_gateway::Config| config.limits.http_max = 8;
    let gateway = Fixture::set_up(&[instance.address], |_| {}, most);
    gateway.change(|table| {
        let trusted = ["127.0.0.1", "127.0.0.3"].map(|it| it.parse().unwrap());
        web(table).trusted_proxies = trusted.to_vec();
    });
    let mut raw = Raw::connect(gateway.address, 1 << 16);
    let floods = [
        frame(PING, 0, 0, &[0; 8]).repeat(1500),
        frame(SETTINGS, 0, 0, &[]).repeat(1000),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(3000),
    ];
    for (flood, stream) in floods.into_iter().zip([1, 3, 5]) {
        raw.say(flood);
        assert!(matches!(raw.get(stream), Came::Answer { status: 200, .. }));
    }
    // Users who leave: many at once, over and over.
    let mut stream = 7;
    for _ in 0..30 {
        let mut given_up = Vec::new();
        for _ in 0..60 {
            given_up.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(GET)));
            given_up.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
            stream += 2;
        }
        raw.say(given_up);
        // An instance may not take so many connections in one moment.
        let came = raw.get(stream);
        assert!(matches!(came, Came::Answer { .. }), "{stream}: {came:?}");
        stream += 2;
    }
    let strangers: Vec<Client> = (0..6).map(|_| from(2, &gateway)).collect();
    assert!(!is_in(&mut from(4, &gateway)), "it is full for strangers");
    eventually("it is let in", || is_in(&mut from(3, &gateway)));
    drop(strangers);
}

/// How a connection comes to its end.
fn end_of(mut raw: Raw) -> Came {
    // There is no such stream.
    raw.until(u32::MAX)
}

#[test]
fn a_flood_of_frames_ends_a_connection_and_three_the_next_ones() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    let floods = [
        frame(PING, 0, 0, &[0; 8]).repeat(1500),
        frame(SETTINGS, 0, 0, &[]).repeat(1000),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(3000),
    ];
    for flood in floods {
        let mut raw = Raw::connect(gateway.address, 1 << 16);
        assert!(matches!(raw.get(1), Came::Answer { status: 200, .. }));
        raw.say(flood);
        // Without it there is no end.
        assert_eq!(end_of(raw), Came::End(Some(ENHANCE_YOUR_CALM)));
    }
    // HTTP/1 is the same address.
    eventually("it is noticed", || {
        gateway.gateway.refused().struck > 0 || !is_in(&mut from(1, &gateway))
    });
    assert!(!is_in(&mut from(1, &gateway)));
    assert!(is_in(&mut from(2, &gateway)), "others are not");
}

/// In steps, so that no bound of what waits to be taken stops it before.
#[test]
fn streams_given_up_as_soon_as_they_are_begun_end_a_connection() {
    // It never answers.
    let instance = Instance::start(|line| while line.request().is_some() {});
    let gateway = Fixture::before(&instance);
    let mut raw = Raw::connect(gateway.address, 1 << 16);
    let mut stream = 1;
    let ended = loop {
        for _ in 0..3 {
            raw.say(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(GET)));
            raw.say(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
            stream += 2;
        }
        raw.say(frame(PING, 0, 0, &[7; 8]));
        let ended = loop {
            match raw.next() {
                None => break Some(None),
                Some((super::raw::GOAWAY, _, _, payload)) => break Some(Some(payload[7])),
                Some((PING, 1, ..)) => break None,
                Some(_) => {}
            }
        };
        if let Some(ended) = ended {
            break ended;
        }
        assert!(stream < 2 * 3000, "it goes on and on");
    };
    assert_eq!(ended, Some(ENHANCE_YOUR_CALM as u8));
    assert!(stream > 2 * 500, "a browser may give up hundreds: {stream}");
}

#[test]
fn a_head_of_http2_has_so_many_fields() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    let mut raw = Raw::connect(gateway.address, 1 << 16);
    let mut ask = |stream: u32, name: &str, count: usize| {
        let fields = GET.iter().copied().chain((0..count).map(|_| (name, "1")));
        let fields: Vec<(&str, &str)> = fields.collect();
        raw.say(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields)));
        match raw.until(stream) {
            Came::Answer { status, .. } => status,
            came => panic!("{came:?}"),
        }
    };
    assert_eq!(ask(1, "x", 100), 200);
    assert_eq!(ask(3, "x", 101), 431);
    assert_eq!(ask(5, "cookie", 150), 200);
}

/// Says a byte again and again, until that is over.
fn drip(client: &Client, what: &[u8], over: &AtomicBool) {
    let begun = Instant::now();
    let mut socket = &client.socket;
    while !over.load(Ordering::SeqCst) && begun.elapsed() < PATIENCE {
        if std::io::Write::write_all(&mut socket, what).is_err() {
            return;
        }
        sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_body_in_drops_is_not_waited_for() {
    for (framing, drop) in
        [("Content-Length: 100000", &b"x"[..]), ("Transfer-Encoding: chunked", b"1\r\nx\r\n")]
    {
        let instance = Instance::says(FINE);
        let gateway = Fixture::before(&instance);
        let mut client = gateway.client();
        client.say(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
        let drips = Client::of(client.socket.try_clone().unwrap());
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| drip(&drips, drop, &over));
            assert_eq!(client.answer_to("POST").status, 408);
            over.store(true, Ordering::SeqCst);
        });
    }
}

#[test]
fn an_answer_taken_in_drops_is_given_up() {
    // From an instance, and from what is kept.
    let big = says("Cache-Control: max-age=60", &"x".repeat(100_000));
    let instance = Instance::says(big);
    let gateways = [Fixture::before(&instance), keeping(&[instance.address])];
    gateways[1].ask(&get("/fine", ""));
    gateways.iter().for_each(in_drops);
    assert_eq!(instance.seen().len(), 2);
}

fn in_drops(gateway: &Fixture) {
    let mut raw = Raw::connect(gateway.address, 10);
    raw.say(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(GET)));
    let drips = Client::of(raw.socket.try_clone().unwrap());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let wider = frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]);
        let over = &over;
        scope.spawn(move || drip(&drips, &wider, over));
        let begun = Instant::now();
        let came = raw.until(1);
        over.store(true, Ordering::SeqCst);
        assert!(matches!(came, Came::Reset(_)), "{came:?}");
        assert!(begun.elapsed() < PATIENCE, "only the end of the drops ended it");
    });
}

#[test]
fn who_is_slow_for_others_or_in_a_dialog_is_not_too_slow() {
    let instance = Instance::start(|line| {
        while let Some(head) = line.head() {
            if head.contains("Expect") {
                sleep(LONG);
                line.say("HTTP/1.1 100 Continue\r\n\r\n");
            }
            if line.rest(head).is_some() {
                line.say(FINE);
            }
        }
    });
    let gateway = Fixture::before(&instance);
    let mut waits = gateway.client();
    waits.say("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    let mut talks = gateway.client();
    talks.say(
        "POST /s/m HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc+proto\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
    );
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        talks.say("1\r\nx\r\n");
        sleep(Duration::from_millis(500));
    }
    talks.say("0\r\n\r\n");
    // In gRPC each answer is a success, also one of the gateway's own.
    assert_eq!(talks.answer_to("POST").text(), "ok");
    // It was given leave by now.
    waits.say("ok");
    assert_eq!(waits.answer_to("POST").status, 200);
}
