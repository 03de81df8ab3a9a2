//! A second try beside a slow one: who answers, whom it is never made of, and what is left behind.

use super::fixture::{A_WHILE, FINE, Fixture, Instance, Line, eventually};
use super::second::{self, Server, ask, connect, request, run};
use bytes::Bytes;
use everhold_core::http::breaker::BreakerSpec;
use everhold_core::http::queue::{Bulkhead, Limit};
use everhold_core::http::route::HttpService;
use everhold_core::spec::Version;
use everhold_gateway::http::{End, Hedge, Record};
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, Response};
use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

const ERROR: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

fn get(path: &str, id: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n\r\n")
}

/// Says so at once below `/`, and below `/slow` does as the script says.
fn at_slow(script: impl Fn(&mut Line) + Send + Sync + 'static) -> Instance {
    Instance::start(move |line| {
        while let Some(seen) = line.request() {
            match seen.target().starts_with("/slow") {
                true => script(line),
                false => line.say(FINE),
            }
        }
    })
}

/// Answers nothing below `/slow`; how many of those connections have ended.
fn silent() -> (Instance, Arc<AtomicUsize>) {
    let ended = Arc::new(AtomicUsize::new(0));
    let count = ended.clone();
    let instance = at_slow(move |line| {
        let ends = line.some().is_empty();
        count.fetch_add(usize::from(ends), SeqCst);
    });
    (instance, ended)
}

fn late() -> Instance {
    at_slow(|line| {
        thread::sleep(A_WHILE);
        line.say(FINE);
    })
}

/// A gateway that knows how long its instances take.
fn warm(addresses: &[SocketAddr], change: impl FnOnce(&mut HttpService)) -> Fixture {
    let gateway = Fixture::with(addresses, |service| {
        service.hedge_percentile = Some(95);
        change(service);
    });
    warm_up(&gateway);
    gateway
}

const WARM: usize = 200;

fn warm_up(gateway: &Fixture) {
    let mut client = gateway.client();
    for _ in 0..WARM {
        client.say("GET /quick HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer().status, 200);
    }
    // It is looked at ten times a second.
    thread::sleep(A_WHILE);
}

fn record(gateway: &Fixture, id: &str) -> Record {
    eventually("it is remembered", || gateway.gateway.request(id).is_some());
    gateway.gateway.request(id).unwrap()
}

/// Where it was tried, and what became of that.
fn tries(record: &Record) -> Vec<(&str, End, &str)> {
    record.tries.iter().map(|it| (&*it.backend, it.end, it.outcome)).collect()
}

/// What is on its way to any instance.
fn under_way(gateway: &Fixture) -> u32 {
    let services = gateway.gateway.services();
    services["main"].values().map(|it| it.requests).sum()
}

fn hedged(gateway: &Fixture, by: Hedge) -> u64 {
    let sums = gateway.gateway.sums();
    sums.hedged.iter().filter(|((_, hedge), _)| *hedge == by).map(|(_, count)| count).sum()
}

const LEFT: &str = "left: another one was sooner";

#[test]
fn what_one_instance_is_slow_with_another_one_answers() {
    let (slow, ended) = silent();
    let others = [Instance::says(FINE), Instance::says(FINE)];
    let addresses = [slow.address, others[0].address, others[1].address];
    let gateway = warm(&addresses, |service| {
        service.timeout_ms = 5_000;
        service.breaker =
            Some(BreakerSpec { run: 5, rate_percent: None, open_ms: 60_000, open_ms_max: 60_000 });
    });
    // An instance that is quick may be found slow, too, where the machine is.
    let (mut first, mut asked) = (0, 0);
    for index in 0..60 {
        let id = format!("r{index}");
        assert_eq!(gateway.ask(&get("/slow", &id)).status, 200);
        let record = record(&gateway, &id);
        let told = tries(&record);
        asked += told.iter().filter(|it| it.0 == "i0").count();
        assert_eq!(told.iter().filter(|it| it.1 == End::Answered).count(), 1, "{told:?}");
        if told[0].0 != "i0" {
            continue;
        }
        let [("i0", End::Left, LEFT), (other, End::Answered, "answered")] = told[..] else {
            panic!("{told:?}")
        };
        assert_ne!(other, "i0");
        let why: Vec<_> = record.tries.iter().map(|it| it.why).collect();
        assert_eq!(why, ["its turn", "another one was slow"]);
        assert_eq!(record.hedge, Some(Hedge::Second));
        first += 1;
    }
    assert_eq!(first, 20, "a second try takes nobody's turn");
    assert!(hedged(&gateway, Hedge::Second) >= 20);
    // Whoever is left sees that at once.
    eventually("its connections are gone", || ended.load(SeqCst) == asked);
    let seen = slow.targets().iter().filter(|it| *it == "/slow").count();
    assert_eq!(seen, asked, "it was asked once each time");
    // That it was slow is no failure.
    let judged = gateway.gateway.judged();
    assert!(judged["main"].backends.values().all(|it| it.used && !it.ejected), "{judged:?}");
    assert_eq!(gateway.gateway.guarded().breakers["main"], None);
    eventually("nothing is on its way", || under_way(&gateway) == 0);
    let sums = gateway.gateway.sums();
    assert!(sums.tries.keys().all(|of| of.end != End::Failed), "{:?}", sums.tries.keys());
}

#[test]
fn what_must_not_be_done_twice_is_not() {
    let (slow, other) = (late(), late());
    let gateway = warm(&[slow.address, other.address], |_| {});
    #[rustfmt::skip]
    let cases: &[(&str, bool)] = &[
        ("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("DELETE /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", true),
        ("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", false),
        ("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", false),
        ("PATCH /slow HTTP/1.1\r\nHost: a\r\n\r\n", false),
        ("PUT /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", false),
        ("PUT /slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false),
        ("GET /slow HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", false),
        ("get /slow HTTP/1.1\r\nHost: a\r\n\r\n", false),
    ];
    for (request, twice) in cases {
        let seen = || slow.seen().len() + other.seen().len();
        let before = seen();
        assert_eq!(gateway.ask(request).status, 200);
        assert_eq!(seen() - before, if *twice { 2 } else { 1 }, "{request:?}");
    }
}

/// An answer that has begun is that one's.
#[test]
fn who_has_said_anything_is_waited_for() {
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    for first in [hint, "HTTP/1.1 2"] {
        let slow = || {
            at_slow(move |line| {
                line.say(first);
                thread::sleep(A_WHILE);
                let whole = String::from_utf8_lossy(FINE).into_owned();
                line.say(whole.strip_prefix(first).unwrap_or(&whole));
            })
        };
        let (one, other) = (slow(), slow());
        let gateway = warm(&[one.address, other.address], |_| {});
        let mut index = 0;
        // Where the machine is slow, so may its first word be.
        eventually("one alone is asked", || {
            index += 1;
            let id = format!("r{index}");
            let answer = gateway.ask(&get("/slow", &id));
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
            assert_eq!(answer.interim.len(), usize::from(first == hint));
            record(&gateway, &id).tries.count() == 1
        });
    }
}

/// All are slow with all there is, and as much is asked as can be.
#[test]
fn there_are_never_more_of_them_than_the_budget_has() {
    const ASKED: usize = 200;
    let may = Arc::new(AtomicBool::new(false));
    let held = || {
        let leave = may.clone();
        at_slow(move |line| {
            eventually("it may answer", || leave.load(SeqCst));
            line.say(FINE);
        })
    };
    let all = [held(), held(), held()];
    let gateway = warm(&all.each_ref().map(|it| it.address), |_| {});
    let counted = || {
        let by = [Hedge::First, Hedge::Second, Hedge::Neither].map(|by| hedged(&gateway, by));
        by.iter().sum::<u64>()
    };
    let before = counted();
    let seen = || all.iter().flat_map(Instance::targets).filter(|it| it == "/slow").count();
    let mut clients: Vec<_> = (0..ASKED).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.say(get("/slow", "many"));
    }
    // What there is in any case.
    eventually("some are asked twice", || seen() >= ASKED + 30);
    thread::sleep(A_WHILE);
    may.store(true, SeqCst);
    assert!(clients.iter_mut().all(|client| client.answer().status == 200));
    let added = seen() - ASKED;
    assert!(added <= (WARM + ASKED) / 5, "{added} beside {ASKED}");
    eventually("they are counted", || counted() - before == added as u64);
    eventually("nothing is on its way", || under_way(&gateway) == 0);
}

/// It takes what nobody else wants, and gives it back.
#[test]
fn a_second_try_takes_a_place_of_its_own_if_one_is_free() {
    for (limit, tries_made) in [(1, 1), (2, 2)] {
        let may = Arc::new(AtomicBool::new(false));
        let held = || {
            let leave = may.clone();
            at_slow(move |line| {
                eventually("it may answer", || leave.load(SeqCst));
                line.say(FINE);
            })
        };
        let (one, other) = (held(), held());
        let gateway = warm(&[one.address, other.address], |service| {
            service.bulkhead =
                Some(Bulkhead { limit: Limit::Most(limit), queue: Some(9), wait_ms: 60_000 });
        });
        let places = || gateway.gateway.guarded().services["main"].in_flight;
        let seen = || {
            let all = [one.targets(), other.targets()].concat();
            all.iter().filter(|it| *it == "/slow").count()
        };
        for _ in 0..3 {
            let before = seen();
            may.store(false, SeqCst);
            let mut client = gateway.client();
            client.say(get("/slow", "x"));
            eventually("it is asked", || seen() == before + tries_made);
            thread::sleep(A_WHILE);
            assert_eq!((places(), seen()), (limit, before + tries_made));
            may.store(true, SeqCst);
            assert_eq!(client.answer().status, 200);
            eventually("all places are free", || places() == 0);
        }
    }
}

/// The one request that a breaker lets through is one.
#[test]
fn a_probe_is_not_made_twice() {
    let broken = Arc::new(AtomicBool::new(false));
    let instance = || {
        let is_broken = broken.clone();
        Instance::start(move |line| {
            while let Some(seen) = line.request() {
                if is_broken.load(SeqCst) {
                    return;
                }
                if seen.target() == "/slow" {
                    thread::sleep(A_WHILE);
                }
                line.say(FINE);
            }
        })
    };
    let all = [instance(), instance()];
    let gateway = warm(&all.each_ref().map(|it| it.address), |service| {
        service.breaker =
            Some(BreakerSpec { run: 5, rate_percent: None, open_ms: 1_000, open_ms_max: 60_000 });
    });
    let breaker = || gateway.gateway.guarded().breakers["main"];
    broken.store(true, SeqCst);
    eventually("it opens", || {
        gateway.ask(&get("/broken", "x"));
        breaker().is_some()
    });
    broken.store(false, SeqCst);
    eventually("a probe succeeds", || gateway.ask(&get("/slow", "probe")).status == 200);
    let slow = all.iter().flat_map(Instance::targets).filter(|it| it == "/slow").count();
    assert_eq!(slow, 1);
}

#[test]
fn an_error_of_the_second_is_not_taken_while_the_first_may_do_better() {
    let slow = late();
    let bad = at_slow(|line| line.say(ERROR));
    let gateway = warm(&[slow.address, bad.address], |_| {});
    let mut both = 0;
    for index in 0..4 {
        let id = format!("r{index}");
        let status = gateway.ask(&get("/slow", &id)).status;
        let record = record(&gateway, &id);
        match tries(&record)[..] {
            // What the first one says is taken.
            [("i1", End::Answered, "answered"), ..] => assert_eq!(status, 503),
            [("i0", End::Answered, _), ("i1", End::Left, why)] => {
                assert_eq!((status, why), (200, "an error: the other one may do better"));
                assert_eq!(record.hedge, Some(Hedge::First));
                both += 1;
            }
            _ => panic!("{:?}", record.tries),
        }
    }
    assert!(both > 0);
}

/// Of two that break the last one's failure is told; who is left of two that break one by one answers.
#[test]
fn what_one_of_two_fails_with_the_other_answers() {
    let breaks = || {
        at_slow(|line| {
            thread::sleep(A_WHILE);
            // The connection closes with the next thing that is read.
            let _ = line.socket.shutdown(std::net::Shutdown::Both);
        })
    };
    let slow = at_slow(|line| {
        thread::sleep(A_WHILE * 3);
        line.say(FINE);
    });
    let bad = breaks();
    let gateway = warm(&[bad.address, slow.address], |_| {});
    for id in ["one", "two"] {
        assert_eq!(gateway.ask(&get("/slow", id)).status, 200);
        let record = record(&gateway, id);
        let mut told = tries(&record);
        told.sort();
        assert_eq!(told, [("i0", End::Failed, "it closed"), ("i1", End::Answered, "answered")]);
    }
    let both = [breaks(), breaks()];
    let gateway = warm(&both.each_ref().map(|it| it.address), |_| {});
    let answer = gateway.ask(&get("/slow", "x"));
    assert!(answer.is_own() && answer.status == 502, "{answer:?}");
    assert_eq!(record(&gateway, "x").hedge, Some(Hedge::Neither));
    eventually("nothing is on its way", || under_way(&gateway) == 0);
}

#[test]
fn a_client_that_leaves_takes_both_with_it() {
    let ((one, one_ended), (other, other_ended)) = (silent(), silent());
    let gateway = warm(&[one.address, other.address], |service| {
        service.bulkhead =
            Some(Bulkhead { limit: Limit::Most(9), queue: Some(9), wait_ms: 60_000 });
    });
    let asked = || [one.targets(), other.targets()].concat().contains(&"/slow".to_owned());
    let both_asked = || {
        let of = |it: &Instance| it.targets().contains(&"/slow".to_owned());
        of(&one) && of(&other)
    };
    assert!(!asked());
    let mut client = gateway.client();
    client.say(get("/slow", "x"));
    eventually("both are asked", both_asked);
    assert_eq!(under_way(&gateway), 2);
    drop(client);
    eventually("both are left", || (one_ended.load(SeqCst), other_ended.load(SeqCst)) == (1, 1));
    let record = record(&gateway, "x");
    assert_eq!((record.status, record.outcome, record.tries.count()), (0, "client gone", 2));
    eventually("nothing is on its way", || under_way(&gateway) == 0);
    assert_eq!(gateway.gateway.guarded().services["main"].in_flight, 0);
    let judged = gateway.gateway.judged();
    assert!(judged["main"].backends.values().all(|it| it.used), "{judged:?}");
}

/// An instance whose machine is gone: nobody says that it can't be reached.
#[test]
fn who_does_not_even_connect_is_slow() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let accepts = Arc::new(AtomicBool::new(true));
    let goes_on = accepts.clone();
    let served = thread::spawn(move || {
        while goes_on.load(SeqCst) {
            use std::io::{Read, Write};
            let (mut socket, _) = listener.accept().unwrap();
            if !goes_on.load(SeqCst) {
                break;
            }
            let _ = socket.read(&mut [0; 4096]);
            let _ = socket
                .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        }
        listener
    });
    let other = Instance::says(FINE);
    let gateway = warm(&[address, other.address], |service| service.retries = 1);
    accepts.store(false, SeqCst);
    let mut fills = vec![TcpStream::connect(address).unwrap()];
    let _listens = served.join().unwrap();
    while let Ok(one) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        fills.push(one);
    }
    let mut twice = 0;
    for index in 0..6 {
        let id = format!("r{index}");
        assert_eq!(gateway.ask(&get("/slow", &id)).status, 200);
        let record = record(&gateway, &id);
        match tries(&record)[..] {
            [("i1", ..), ..] => {}
            [("i0", End::Left, LEFT), ("i1", End::Answered, _)] => twice += 1,
            _ => panic!("{:?}", record.tries),
        }
    }
    assert!(twice >= 2, "{twice}");
}

/// Answers at once, but nothing below `/slow`; why those streams ended.
fn silent_server(ended: &Arc<AtomicUsize>) -> Server {
    let ended = ended.clone();
    Server::start(100, move |_, asked, mut respond: SendResponse<Bytes>| {
        let ended = ended.clone();
        Box::pin(async move {
            if asked.uri().path() == "/slow" {
                let reason = poll_fn(|cx| respond.poll_reset(cx)).await.ok()?;
                assert_eq!(reason, Reason::CANCEL);
                ended.fetch_add(1, SeqCst);
                return Some(());
            }
            let mut send = respond.send_response(Response::new(()), false).ok()?;
            send.send_data("ok".into(), true).ok()
        })
    })
}

#[test]
fn in_http2_the_stream_alone_is_reset() {
    let ended = Arc::new(AtomicUsize::new(0));
    let slow = silent_server(&ended);
    let other = Server::start(100, second::echo);
    let gateway = warm(&[slow.address, other.address], |service| service.version = Version::Http2);
    let asked = || slow.targets().iter().filter(|it| it.ends_with("/slow")).count();
    run(async {
        let send = connect(gateway.address).await;
        for _ in 0..10 {
            let got = ask(&send, request("GET", "/slow"), &[], HeaderMap::new()).await.unwrap();
            assert_eq!(got.status, 200);
        }
    });
    assert!(asked() >= 5, "{}", asked());
    eventually("each is reset", || ended.load(SeqCst) == asked());
    assert_eq!(slow.connections.load(SeqCst), 1, "its connection goes on");
    assert!(hedged(&gateway, Hedge::Second) >= 5);
    eventually("nothing is on its way", || under_way(&gateway) == 0);
}

#[test]
fn a_stream_that_is_given_up_takes_both_with_it() {
    let ended = Arc::new(AtomicUsize::new(0));
    let servers = [silent_server(&ended), silent_server(&ended)];
    let gateway = warm(&servers.each_ref().map(|it| it.address), |service| {
        service.version = Version::Http2;
    });
    let both = || servers.iter().all(|it| it.targets().iter().any(|it| it.ends_with("/slow")));
    run(async {
        let send = connect(gateway.address).await;
        let mut send = send.clone().ready().await.unwrap();
        let asked = send.send_request(request("GET", "/slow"), true).unwrap();
        while !both() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(asked);
        while ended.load(SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    eventually("nothing is on its way", || under_way(&gateway) == 0);
    assert_eq!(hedged(&gateway, Hedge::Neither), 1);
}

/// What nobody asked for, or what is known of too few, is tried once.
#[test]
fn without_the_key_or_enough_answers_there_is_one_try() {
    for (percentile, asked) in [(None, WARM), (Some(95), 50)] {
        let (one, other) = (late(), late());
        let gateway = Fixture::with(&[one.address, other.address], |service| {
            service.hedge_percentile = percentile;
        });
        let mut client = gateway.client();
        for _ in 0..asked {
            client.say(get("/quick", "x"));
            assert_eq!(client.answer().status, 200);
        }
        thread::sleep(A_WHILE);
        assert_eq!(gateway.ask(&get("/slow", "y")).status, 200);
        assert_eq!(one.seen().len() + other.seen().len(), asked + 1, "{percentile:?}");
    }
}
