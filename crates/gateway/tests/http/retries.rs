//! What is tried again, where, and what never is.

use super::fixture::{A_WHILE, FINE, Fixture, Instance, eventually, nobody};
use everhold_core::http::probe::Health;
use everhold_gateway::http::Verdict;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
const CHUNKS: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";

/// Where nothing was sent, anything can be sent elsewhere.
#[test]
fn who_refuses_connections_costs_nothing() {
    let good = Instance::says(FINE);
    let gateway = Fixture::start(&[nobody(), good.address, nobody()]);
    for request in [GET, POST, CHUNKS, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"] {
        for _ in 0..6 {
            let answer = gateway.ask(request);
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{request:?}");
        }
    }
    assert_eq!(good.seen().len(), 24);
    assert!(good.seen()[6..18].iter().all(|it| it.body == b"hello"));
    assert_eq!(good.faults(), [] as [&str; 0]);
}

/// Reads a request and closes without an answer.
fn silent() -> Instance {
    Instance::start(|line| drop(line.request()))
}

#[test]
fn what_may_have_been_done_is_done_again_only_if_that_does_no_harm() {
    #[rustfmt::skip]
    let cases: &[(&str, bool)] = &[
        (GET, true),
        ("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("OPTIONS / HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", true),
        (POST, false),
        (CHUNKS, false),
        ("PATCH / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", false),
        ("get / HTTP/1.1\r\nHost: a\r\n\r\n", false),
        ("MOVE / HTTP/1.1\r\nHost: a\r\n\r\n", false),
    ];
    for (request, again) in cases {
        let (bad, good) = (silent(), Instance::says(FINE));
        let gateway = Fixture::start(&[bad.address, good.address]);
        let mut statuses: Vec<u16> = (0..4).map(|_| gateway.ask(request).status).collect();
        statuses.sort_unstable();
        let bad_seen = bad.seen().len();
        assert!(bad_seen >= 1, "{request:?}: the balancer never chose it");
        match again {
            true => assert_eq!(statuses, [200; 4], "{request:?}"),
            false => assert_eq!(
                statuses.iter().filter(|it| **it == 502).count(),
                bad_seen,
                "{request:?}"
            ),
        }
        let served = if *again { 4 } else { 4 - bad_seen };
        assert_eq!(good.seen().len(), served, "{request:?}: nothing is done twice there");
    }
}

#[test]
fn nobody_gets_a_request_twice() {
    let bad = [silent(), silent()];
    let gateway = Fixture::with(&[bad[0].address, bad[1].address], |service| service.retries = 10);
    for round in 1..=5 {
        let answer = gateway.ask(GET);
        assert!(answer.is_own() && answer.status == 502, "{answer:?}");
        assert_eq!((bad[0].seen().len(), bad[1].seen().len()), (round, round));
    }
    let lone = silent();
    let gateway = Fixture::with(&[lone.address], |service| service.retries = 10);
    assert_eq!(gateway.ask(GET).status, 502);
    assert_eq!(lone.seen().len(), 1);
    let four = [silent(), silent(), silent(), silent()];
    let gateway =
        Fixture::with(&four.each_ref().map(|it| it.address), |service| service.retries = 2);
    assert_eq!(gateway.ask(GET).status, 502);
    assert_eq!(four.iter().map(|it| it.seen().len()).sum::<usize>(), 3, "a try and two more");
}

/// A PUT that is tried again arrives whole.
#[test]
fn a_body_that_is_sent_again_is_the_same() {
    let (bad, good) = (silent(), Instance::says(FINE));
    let gateway = Fixture::start(&[bad.address, good.address]);
    let body = "0123456789".repeat(500);
    let request = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n{body}");
    let mut client = gateway.client();
    for _ in 0..4 {
        // With the next one behind it.
        client.say([request.as_str(), GET].concat());
        assert_eq!(client.answer().status, 200);
        assert_eq!(client.answer().status, 200);
    }
    let puts: Vec<_> = good.seen().into_iter().filter(|it| it.plain().starts_with("PUT")).collect();
    assert_eq!(puts.len(), 4);
    assert!(puts.iter().all(|it| it.body == body.as_bytes()));
    assert!(!bad.seen().is_empty() && [good.faults(), bad.faults()].concat().is_empty());
}

/// An instance that closes idle connections, after a while or the moment it has answered.
#[test]
fn idle_connections_that_are_closed_fail_nobody() {
    for idle in [Duration::ZERO, A_WHILE / 10] {
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let instance = Instance::start(move |line| {
            count.fetch_add(1, Ordering::SeqCst);
            if line.request().is_some() {
                line.say(FINE);
                sleep(idle);
            }
        });
        let gateway = Fixture::before(&instance);
        for round in 1..=10 {
            assert_eq!(gateway.ask(if round % 2 == 0 { GET } else { POST }).status, 200);
            sleep(A_WHILE / 5);
        }
        assert_eq!(instance.seen().len(), 10);
        assert!(connections.load(Ordering::SeqCst) >= 10);
    }
}

/// An instance that reads the second request of a connection and closes: like one that was closing it
/// at that moment, or one that died over it.
#[test]
fn a_reused_connection_that_breaks_loses_no_get_and_doubles_no_post() {
    let fickle = Instance::start(|line| {
        if line.request().is_some() {
            line.say(FINE);
            line.request();
        }
    });
    let good = Instance::says(FINE);
    let gateway = Fixture::start(&[fickle.address, good.address]);
    let seen = || fickle.seen().len() + good.seen().len();
    for _ in 0..12 {
        assert_eq!(gateway.ask(GET).status, 200);
    }
    assert!(seen() > 12, "none was tried again");
    let mut lost = 0;
    for _ in 0..12 {
        let before = seen();
        let status = gateway.ask(POST).status;
        assert!(matches!(status, 200 | 502), "{status}");
        lost += u64::from(status == 502);
        assert_eq!(seen() - before, 1, "it is sent once, whatever comes of it");
    }
    assert!(lost > 0, "none was lost: the test does not test it");
}

/// The only instance there is closes each connection over the second request: a new one serves it.
#[test]
fn a_lone_instance_is_asked_again_over_a_new_connection() {
    let instance = Instance::start(|line| {
        if line.request().is_some() {
            line.say(FINE);
            line.request();
        }
    });
    let gateway = Fixture::before(&instance);
    for _ in 0..10 {
        assert_eq!(gateway.ask(GET).status, 200);
    }
    assert!(instance.seen().len() > 10, "none was tried again");
}

/// Retries are for requests that an instance has seen: this one never did.
#[test]
fn an_idle_connection_that_had_closed_is_no_try() {
    let fickle = || {
        Instance::start(|line| {
            if line.request().is_some() {
                line.say(FINE);
                line.request();
            }
        })
    };
    let (one, other) = (fickle(), fickle());
    let gateway = Fixture::with(&[one.address, other.address], |service| service.retries = 0);
    // More often than the budget would allow.
    for _ in 0..60 {
        assert_eq!(gateway.ask(GET).status, 200);
    }
    assert!(one.seen().len() + other.seen().len() > 100, "few connections had closed");
    let request = format!("{}X-Request-Id: again\r\n\r\n", &GET[..GET.len() - 2]);
    assert_eq!(gateway.ask(&request).status, 200);
    eventually("it is remembered", || gateway.gateway.request("again").is_some());
    let record = gateway.gateway.request("again").unwrap();
    let tries: Vec<_> = record.tries.iter().map(|it| (&*it.backend, it.why)).collect();
    let [(first, "its turn"), (second, "its idle connection had closed")] = tries[..] else {
        panic!("{tries:?}");
    };
    assert_eq!(first, second, "the same instance");
    // Once only.
    let first = AtomicBool::new(true);
    let dies = Instance::start(move |line| {
        if line.request().is_some() && first.swap(false, Ordering::Relaxed) {
            line.say(FINE);
            line.request();
        }
    });
    let gateway = Fixture::with(&[dies.address], |service| service.retries = 0);
    assert_eq!(gateway.ask(GET).status, 200);
    assert_eq!(gateway.ask(GET).status, 502);
    assert_eq!(dies.seen().len(), 3);
    // And not what must not be done twice.
    let gateway = Fixture::with(&[one.address], |service| service.retries = 0);
    assert_eq!(gateway.ask(GET).status, 200);
    let before = one.seen().len();
    assert_eq!(gateway.ask(POST).status, 502);
    assert_eq!(one.seen().len() - before, 1);
}

#[test]
fn silence_is_504() {
    let mute = || Instance::start(|line| while line.request().is_some() {});
    let (one, other) = (mute(), mute());
    let gateway = Fixture::with(&[one.address, other.address], |service| service.timeout_ms = 400);
    let begun = Instant::now();
    for request in [GET, POST] {
        let answer = gateway.ask(request);
        assert!(answer.is_own() && answer.status == 504, "{answer:?}");
    }
    assert!(begun.elapsed() >= Duration::from_millis(800), "each had its time");
    // One instance that is slow is not waited for, where one try has less time than all.
    let good = Instance::says(FINE);
    let gateway = Fixture::with(&[one.address, good.address], |service| {
        service.try_timeout_ms = Some(200);
    });
    for _ in 0..4 {
        assert_eq!(gateway.ask(GET).status, 200);
    }
}

/// Half a head is not an answer, and the request may be tried elsewhere.
#[test]
fn half_an_answer_is_none() {
    let bad = Instance::says_and_closes("HTTP/1.1 200 OK\r\nContent-Le");
    let good = Instance::says(FINE);
    let gateway = Fixture::start(&[bad.address, good.address]);
    for _ in 0..4 {
        let answer = gateway.ask(GET);
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    }
    assert!(!bad.seen().is_empty());
}

#[test]
fn nobody_at_all_is_503_or_502() {
    let answer = Fixture::start(&[]).ask(GET);
    assert!(answer.is_own() && answer.status == 503, "{answer:?}");
    let answer = Fixture::start(&[nobody(), nobody()]).ask(POST);
    assert!(answer.is_own() && answer.status == 502, "{answer:?}");
}

/// Only one of three may be ejected for what requests find: of two that die the checks take out the
/// other, at once.
#[test]
fn two_of_three_that_die_are_out_before_their_checks_would_say_so() {
    let mut instances: Vec<Instance> = (0..3).map(|_| Instance::says(FINE)).collect();
    let addresses: Vec<_> = instances.iter().map(|it| it.address).collect();
    let gateway = Fixture::with(&addresses, |service| service.health.interval_ms = 4_000);
    let all = |is: fn(&Verdict) -> bool| {
        let judged = gateway.gateway.judged();
        let of = |name| judged.get("main").and_then(|it| it.backends.get(name));
        ["i0", "i1", "i2"].map(|name| of(name).is_some_and(is))
    };
    eventually("all are checked", || all(|it| it.health == Health::Healthy) == [true; 3]);
    instances.drain(..2);
    let begun = Instant::now();
    eventually("two are out", || {
        assert_eq!(gateway.ask(GET).status, 200);
        all(|it| it.used) == [false, false, true]
    });
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[test]
fn each_try_says_why_there() {
    let good = Instance::says(FINE);
    let gateway = Fixture::start(&[nobody(), good.address]);
    let mut told = Vec::new();
    for id in ["one", "two"] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n\r\n");
        assert_eq!(gateway.ask(&request).status, 200);
        eventually("it is remembered", || gateway.gateway.request(id).is_some());
        let record = gateway.gateway.request(id).unwrap();
        told.push(record.tries.iter().map(|it| it.why).collect::<Vec<_>>());
    }
    assert!(told.contains(&vec!["its turn", "others had been tried"]), "{told:?}");
}
