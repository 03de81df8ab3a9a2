//! Requests that wait for one another, and answers that are given although they are stale.

use super::cache::{counting, get, keeping, keeping_with, keeps, says, set_up};
use super::fixture::{A_WHILE, Client, Fixture, Instance, Line, eventually, reset};
use super::links::frame;
use super::raw::{DATA, END_HEADERS, END_STREAM, GET, HEADERS, Raw, block};
use super::second::{connect, request, run};
use everhold_core::http::cache::CacheSpec;
use everhold_core::http::queue::{Bulkhead, Limit};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::sleep;

const KEPT: &str = "Cache-Control: max-age=60";
const OK: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok";
/// It is older than it is fresh as it comes.
const STALE: &str = "Cache-Control: max-age=10|Age: 60|ETag: \"a\"";

/// What holds an instance back: it answers when it may.
#[derive(Clone, Default)]
struct Gate {
    asked: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Gate {
    fn wait(&self) -> usize {
        let index = self.asked.fetch_add(1, SeqCst);
        eventually("it may answer", || self.open.load(SeqCst) > 0);
        index
    }

    fn asked(&self, count: usize) {
        eventually("asked", || self.asked.load(SeqCst) >= count);
    }

    fn open(&self) {
        self.open.store(1, SeqCst);
    }
}

fn held(answer: &'static str) -> (Instance, Gate) {
    let gate = Gate::default();
    let own = gate.clone();
    let instance = Instance::start(move |line| {
        while line.request().is_some() {
            own.wait();
            line.say(answer);
        }
    });
    (instance, gate)
}

fn ask_together(gateway: &Fixture, count: usize, gate: &Gate) -> Vec<Client> {
    ask_with(gateway, count, gate, ["", ""])
}

/// So many that have asked for the same, the first of them before the others, and with other fields.
fn ask_with(gateway: &Fixture, count: usize, gate: &Gate, fields: [&str; 2]) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| gateway.client()).collect();
    clients[0].say(get("/", fields[0]));
    gate.asked(1);
    clients[1..].iter_mut().for_each(|client| client.say(get("/", fields[1])));
    // Long enough to be at the instance, if they went there.
    sleep(A_WHILE);
    clients
}

#[test]
fn of_many_that_miss_one_asks() {
    let (instance, gate) = held(OK);
    let gateway = keeping(&[instance.address]);
    let mut clients = ask_together(&gateway, 20, &gate);
    gate.open();
    let answers: Vec<_> = clients.iter_mut().map(Client::answer).collect();
    assert!(answers.iter().all(|it| it.status == 200 && it.text() == "ok"));
    assert_eq!(instance.seen().len(), 1);
    let collapsed = answers.iter().filter(|it| it.head.contains("; collapsed")).count();
    assert_eq!(collapsed, 19);
}

/// One after the other they would wait for each other.
#[test]
fn of_what_is_not_kept_all_ask_at_once() {
    const COUNT: usize = 12;
    let gate = Gate::default();
    let own = gate.clone();
    let instance = Instance::start(move |line| {
        while line.request().is_some() {
            if own.wait() > 0 {
                eventually("all others ask", || own.asked.load(SeqCst) == COUNT);
            }
            line.say(says("Cache-Control: private", "ok"));
        }
    });
    let gateway = keeping(&[instance.address]);
    let mut clients = ask_together(&gateway, COUNT, &gate);
    assert_eq!(gate.asked.load(SeqCst), 1, "they wait");
    gate.open();
    assert!(clients.iter_mut().all(|it| it.answer().text() == "ok"));
    // And for a while nobody waits for it.
    gate.open.store(0, SeqCst);
    gate.asked.store(COUNT, SeqCst);
    let mut others: Vec<Client> = (0..2).map(|_| gateway.client()).collect();
    others.iter_mut().for_each(|it| it.say(get("/", "")));
    gate.asked(COUNT + 2);
    gate.asked.store(COUNT, SeqCst);
    gate.open();
    assert!(others.iter_mut().all(|it| it.answer().text() == "ok"));
}

#[test]
fn a_client_that_leaves_takes_nothing_from_those_that_wait() {
    // Before the answer, and in the middle of it.
    for half in [false, true] {
        let gate = Gate::default();
        let own = gate.clone();
        let instance = Instance::start(move |line: &mut Line| {
            while line.request().is_some() {
                if half {
                    line.say("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 300000\r\n\r\n");
                    line.say([b'x'; 1_000]);
                }
                own.wait();
                match half {
                    true => line.say(vec![b'x'; 299_000]),
                    false => line.say(says(KEPT, "ok")),
                }
            }
        });
        let gateway = keeping(&[instance.address]);
        let mut clients = ask_together(&gateway, 4, &gate);
        let leader = clients.remove(0);
        reset(&leader.socket);
        drop(leader);
        if !half {
            // Somebody else asks.
            gate.asked(2);
        }
        gate.open();
        for client in &mut clients {
            let answer = client.answer();
            assert_eq!((answer.status, answer.whole), (200, true));
            assert_eq!(answer.body.len(), if half { 300_000 } else { 2 });
        }
        // What has begun goes on without its client.
        assert_eq!(instance.seen().len(), if half { 1 } else { 2 });
    }
}

#[test]
fn a_stream_that_is_given_up_takes_nothing_from_those_that_wait() {
    let (instance, gate) = held(OK);
    let gateway = keeping(&[instance.address]);
    let address = gateway.address;
    let mut client = gateway.client();
    run(async {
        let send = connect(address).await;
        let (answer, mut stream) =
            send.clone().ready().await.unwrap().send_request(request("GET", "/"), true).unwrap();
        let asked = gate.asked.clone();
        while asked.load(SeqCst) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(asked.load(SeqCst), 1, "it waits");
        stream.send_reset(h2::Reason::CANCEL);
        drop(answer);
    });
    gate.asked(2);
    gate.open();
    assert_eq!(client.answer().text(), "ok");
    drop(instance);
}

#[test]
fn who_leaves_waits_no_longer() {
    let (instance, gate) = held(OK);
    let gateway = keeping(&[instance.address]);
    let mut clients = ask_with(&gateway, 2, &gate, ["", "X-Request-Id: left"]);
    let left = clients.pop().unwrap();
    reset(&left.socket);
    drop(left);
    let outcome = || gateway.gateway.request("left").map(|it| it.outcome);
    eventually("it is noticed", || outcome() == Some("client gone"));
    gate.open();
    assert_eq!(clients[0].answer().text(), "ok");
}

#[test]
fn a_client_in_a_hurry_takes_nothing_from_those_that_wait() {
    let (instance, gate) = held(OK);
    let gateway = keeping(&[instance.address]);
    let hurry = ["X-Envoy-Expected-Rq-Timeout-Ms: 2000", ""];
    let mut clients = ask_with(&gateway, 5, &gate, hurry);
    assert_eq!(clients.remove(0).answer().status, 504);
    // One of the others asks for them.
    gate.asked(2);
    sleep(A_WHILE);
    assert_eq!(gate.asked.load(SeqCst), 2);
    gate.open();
    assert!(clients.iter_mut().all(|it| it.answer().text() == "ok"));
    assert_eq!(instance.seen().len(), 2);
}

#[test]
fn who_wants_it_anew_takes_what_came_since() {
    for fields in ["Cache-Control: max-age=0", "Cache-Control: min-fresh=600"] {
        let (instance, gate) = held(OK);
        let gateway = keeping(&[instance.address]);
        let mut clients = ask_with(&gateway, 8, &gate, ["", fields]);
        gate.open();
        assert!(clients.iter_mut().all(|it| it.answer().text() == "ok"));
        assert_eq!(instance.seen().len(), 1, "{fields}");
        // But not what was there before.
        gateway.ask(&get("/", fields));
        assert_eq!(instance.seen().len(), 2, "{fields}");
    }
}

/// As a stream of events on a route that keeps what says nothing of itself.
#[test]
fn what_has_no_end_is_waited_for_once() {
    let instance =
        Instance::says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n");
    let spec = CacheSpec { ttl_ms: Some(60_000), ..CacheSpec::default() };
    let gateway = keeping_with(&[instance.address], spec, None);
    let mut clients: Vec<Client> = (0..3).map(|_| gateway.client()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.say(get("/", &format!("X-Request-Id: {index}")));
        assert!(client.exactly(20).is_some());
    }
    assert_eq!(instance.seen().len(), 3);
    drop(instance);
    let record = |id: &str| gateway.gateway.request(id).map(|it| it.cache);
    eventually("all are over", || (0..3).all(|id| record(&id.to_string()).is_some()));
    assert_eq!(["0", "1", "2"].map(record), [Some("miss"), Some("miss"), Some("pass")]);
}

/// However slowly it is taken.
#[test]
fn what_is_given_in_an_instances_place_holds_no_place_at_it() {
    let fails = [
        "HTTP/1.1 304 Same\r\nETag: \"a\"\r\n\r\n",
        "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
        "",
    ];
    for fails in fails {
        let fields = "Cache-Control: max-age=10, stale-if-error=600|Age: 60|ETag: \"a\"";
        let (count, big) = (AtomicUsize::new(0), says(fields, &"x".repeat(100_000)));
        let instance = Instance::start(move |line| {
            while line.request().is_some() {
                match count.fetch_add(1, SeqCst) {
                    0 => line.say(&big),
                    _ if fails.is_empty() => return,
                    _ => line.say(fails),
                }
            }
        });
        let one = Bulkhead { limit: Limit::Most(1), queue: Some(0), wait_ms: 60_000 };
        let gateway = set_up(
            &[instance.address],
            |service| service.bulkhead = Some(one),
            |http| {
                keeps(http);
                let routes = http.listeners.values_mut().flat_map(|it| &mut it.routes);
                routes.for_each(|route| route.body_rate_min = Some(0));
            },
        );
        let taken = || gateway.gateway.guarded().services["main"].in_flight;
        assert_eq!(gateway.ask(&get("/fine", "")).body.len(), 100_000);
        eventually("the first one is over", || taken() == 0);
        let mut slow = Raw::connect(gateway.address, 10);
        slow.say(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(GET)));
        while slow.next().unwrap().0 != DATA {}
        eventually("its place is free", || taken() == 0);
    }
}

#[test]
fn what_is_stale_is_asked_for_anew() {
    let count = AtomicUsize::new(0);
    let instance = Instance::start(move |line| {
        while let Some(seen) = line.request() {
            let index = count.fetch_add(1, SeqCst);
            match (index, seen.values("if-none-match")[..] == ["\"a\""]) {
                (0, false) => line.say(says(STALE, "first")),
                (1, true) => line.say("HTTP/1.1 304 Same\r\nCache-Control: max-age=10\r\nAge: 30\r\nX-New: 1\r\nETag: \"a\"\r\n\r\n"),
                (2, true) => line.say("HTTP/1.1 304 Same\r\nCache-Control: max-age=60\r\nETag: \"a\"\r\n\r\n"),
                _ => line.say("HTTP/1.1 500 Unasked\r\nContent-Length: 0\r\n\r\n"),
            }
        }
    });
    let gateway = keeping(&[instance.address]);
    assert_eq!(gateway.ask(&get("/", "")).text(), "first");
    // Also where the client has asked for less, or for another one.
    let answer = gateway.ask(&get("/", "Range: bytes=0-1|If-None-Match: \"b\""));
    assert_eq!((answer.status, &*answer.text()), (206, "fi"));
    let said = answer.values("cache-status").concat();
    assert!(said.starts_with("everhold; fwd=stale; fwd-status=304; ttl=-2"), "{said}");
    let second = &instance.seen()[1];
    assert!(second.values("range").is_empty(), "{:?}", second.head);
    let answer = gateway.ask(&get("/", ""));
    assert_eq!((answer.status, &*answer.text()), (200, "first"));
    assert_eq!(answer.values("x-new"), ["1"], "what was said meanwhile stays");
    // Now it is fresh.
    assert_eq!(gateway.ask(&get("/", "")).text(), "first");
    assert_eq!(gateway.ask(&get("/", "If-None-Match: \"a\"")).status, 304);
    assert_eq!(instance.seen().len(), 3);
}

#[test]
fn what_is_stale_is_given_while_it_is_asked_for_anew() {
    let gate = Gate::default();
    let own = gate.clone();
    let instance = Instance::start(move |line| {
        while line.request().is_some() {
            if own.asked.fetch_add(1, SeqCst) == 0 {
                line.say(says(
                    "Cache-Control: max-age=10, stale-while-revalidate=600|Age: 60",
                    "old",
                ));
                continue;
            }
            eventually("it may answer", || own.open.load(SeqCst) > 0);
            line.say(says(KEPT, "new"));
        }
    });
    let gateway = keeping(&[instance.address]);
    gateway.ask(&get("/", ""));
    // The instance answers nobody, and all are answered; one asks it.
    for _ in 0..5 {
        let answer = gateway.ask(&get("/", ""));
        assert_eq!(answer.text(), "old");
        assert!(
            answer.values("cache-status")[0].starts_with("everhold; hit; detail=stale; ttl=-5")
        );
    }
    assert!(instance.seen().len() <= 2, "{}", instance.seen().len());
    gate.open();
    eventually("the new one is there", || gateway.ask(&get("/", "")).text() == "new");
    assert_eq!(instance.seen().len(), 2);
}

#[test]
fn what_is_stale_is_given_where_nobody_answers_if_it_may_be() {
    // What is said of it, what the spec adds in seconds, whether it is given.
    #[rustfmt::skip]
    let cases = [
        ("Cache-Control: max-age=10, stale-if-error=600|Age: 60|ETag: \"a\"",                  0,   true),
        ("Cache-Control: max-age=10, stale-if-error=20|Age: 60|ETag: \"a\"",                   0,   false),
        ("Cache-Control: max-age=10|Age: 60|ETag: \"a\"",                                      0,   false),
        ("Cache-Control: max-age=10|Age: 60|ETag: \"a\"",                                      600, true),
        ("Cache-Control: max-age=10, must-revalidate, stale-if-error=600|Age: 60|ETag: \"a\"", 600, false),
        ("Cache-Control: no-cache, stale-if-error=600|ETag: \"a\"",                            600, false),
    ];
    for (fields, seconds, given) in cases {
        for fails in ["HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", ""] {
            let count = AtomicUsize::new(0);
            let instance = Instance::start(move |line| {
                if line.request().is_some() {
                    match count.fetch_add(1, SeqCst) {
                        0 => line.say(says(&format!("Connection: close|{fields}"), "old")),
                        _ => line.say(fails),
                    }
                }
            });
            let spec = CacheSpec { stale_if_error_ms: seconds * 1_000, ..CacheSpec::default() };
            let gateway = keeping_with(&[instance.address], spec, None);
            assert_eq!(gateway.ask(&get("/", "")).text(), "old");
            let answer = gateway.ask(&get("/", ""));
            let expected = match (given, fails) {
                (true, _) => (200, "everhold; hit; detail=stale-if-error; ttl=-5"),
                (false, "") => (502, ""),
                (false, _) => (503, "everhold; fwd=stale"),
            };
            assert_eq!(answer.status, expected.0, "{fields} {fails:?}");
            let said = answer.values("cache-status").concat();
            assert!(said.starts_with(expected.1), "{fields} {fails:?} {said}");
        }
    }
}

/// A service of which no instance is left.
#[test]
fn what_is_fresh_is_given_where_no_instance_is() {
    let instance = counting(KEPT);
    let gateway = keeping(&[instance.address]);
    gateway.ask(&get("/", ""));
    drop(instance);
    assert_eq!(gateway.ask(&get("/", "")).text(), "answer 0");
    // Who wants it anew gets what there is rather than nothing, unless he says otherwise.
    assert_eq!(gateway.ask(&get("/", "Cache-Control: max-age=0")).text(), "answer 0");
    assert_eq!(gateway.ask(&get("/", "Cache-Control: no-cache")).status, 502);
}
