//! Who waits for a place at a service, who is turned away, and what is not asked at all.

use super::fixture::{A_WHILE, FINE, Fixture, Instance, Line, PATIENCE, eventually, reset};
use super::second::{self, connect, request, run};
use everhold_core::http::breaker::BreakerSpec;
use everhold_core::http::queue::{Bulkhead, Limit, Priority};
use everhold_core::http::route::HttpRoute;
use everhold_core::spec::PathMatch;
use everhold_gateway::Config;
use everhold_gateway::http::{GateState, Met, Sums};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

fn most(limit: u32, queue: u32) -> Option<Bulkhead> {
    Some(Bulkhead { limit: Limit::Most(limit), queue: Some(queue), wait_ms: 60_000 })
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

/// Answers when it may, `/now` at once.
struct Held {
    instance: Instance,
    may: Arc<AtomicBool>,
}

impl Held {
    fn start() -> Held {
        let may = Arc::new(AtomicBool::new(false));
        let leave = may.clone();
        let script = move |line: &mut Line| {
            while let Some(seen) = line.request() {
                if seen.target() != "/now" {
                    eventually("it may answer", || leave.load(SeqCst));
                }
                line.say(FINE);
            }
        };
        Held { instance: Instance::start(script), may }
    }

    fn go_on(&self) {
        self.may.store(true, SeqCst);
    }
}

fn state(gateway: &Fixture) -> GateState {
    gateway.gateway.guarded().services["main"]
}

fn eventually_waiting(gateway: &Fixture, count: u32) {
    eventually("so many wait", || state(gateway).waiting == count);
}

/// All that waits and all that is on its way is over.
fn eventually_empty(gateway: &Fixture) {
    eventually("all places are free", || {
        let GateState { in_flight, waiting, .. } = state(gateway);
        (in_flight, waiting) == (0, 0)
    });
}

/// What requests met, and how often.
fn met(gateway: &Fixture) -> Vec<(Met, u64)> {
    let Sums { turned, .. } = gateway.gateway.sums();
    turned.iter().map(|(turned, histogram)| (turned.met, histogram.count)).collect()
}

/// The route of everything is followed by one of that path and class.
fn with_route(config: &mut Config, path: &str, change: impl FnOnce(&mut HttpRoute)) {
    let table = Arc::make_mut(&mut config.table);
    let routes = &mut table.http.listeners.get_mut("web").unwrap().routes;
    let mut route = routes[0].clone();
    route.name = path.to_owned();
    route.when.path = Some(PathMatch::Prefix(path.to_owned()));
    change(&mut route);
    routes.push(route);
}

#[test]
fn as_many_as_may_are_on_their_way_others_wait_and_who_is_too_many_is_told() {
    let held = Held::start();
    let gateway = Fixture::with(&[held.instance.address], |service| service.bulkhead = most(1, 1));
    let (mut first, mut second) = (gateway.client(), gateway.client());
    first.say(get("/1", ""));
    eventually("it is asked", || held.instance.seen().len() == 1);
    second.say(get("/2", ""));
    eventually_waiting(&gateway, 1);
    let third = gateway.ask(&get("/3", "X-Request-Id: third\r\n"));
    assert!(third.is_own() && third.status == 503, "{third:?}");
    assert_eq!(third.values("retry-after"), ["1"]);
    eventually("it is remembered", || gateway.gateway.request("third").is_some());
    let record = gateway.gateway.request("third").unwrap();
    assert_eq!(record.outcome, "turned away: as many wait as may");
    assert_eq!((record.tries.count(), record.met), (0, Some(Met::QueueFull)));
    assert_eq!(held.instance.targets(), ["/1"], "who waits has not been passed on");
    held.go_on();
    assert_eq!((first.answer().status, second.answer().status), (200, 200));
    assert_eq!(held.instance.targets(), ["/1", "/2"]);
    eventually_empty(&gateway);
    eventually("it is counted", || met(&gateway) == [(Met::Queue, 1), (Met::QueueFull, 1)]);
}

#[test]
fn the_limit_is_that_of_all_threads_together() {
    let (now, highest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (at_once, most_at_once) = (now.clone(), highest.clone());
    let instance = Instance::start(move |line| {
        while line.request().is_some() {
            most_at_once.fetch_max(at_once.fetch_add(1, SeqCst) + 1, SeqCst);
            thread::sleep(Duration::from_millis(1));
            at_once.fetch_sub(1, SeqCst);
            line.say(FINE);
        }
    });
    let gateway = Fixture::set_up(
        &[instance.address],
        |service| service.bulkhead = most(2, 100),
        |config| config.threads = NonZeroUsize::new(3).unwrap(),
    );
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut client = gateway.client();
                for _ in 0..30 {
                    client.say(get("/", ""));
                    assert_eq!(client.answer().status, 200);
                }
            });
        }
    });
    assert_eq!(highest.load(SeqCst), 2);
    eventually_empty(&gateway);
}

#[test]
fn what_is_more_important_goes_first_and_takes_the_place_of_what_is_less() {
    let held = Held::start();
    let gateway = Fixture::set_up(
        &[held.instance.address],
        |service| service.bulkhead = most(1, 2),
        |config| {
            with_route(config, "/low", |route| route.priority = Priority::Low);
            with_route(config, "/critical", |route| route.priority = Priority::Critical);
        },
    );
    let mut clients: Vec<_> = (0..4).map(|_| gateway.client()).collect();
    clients[0].say(get("/0", ""));
    eventually("it is asked", || held.instance.seen().len() == 1);
    clients[1].say(get("/low", ""));
    eventually_waiting(&gateway, 1);
    clients[2].say(get("/normal", ""));
    eventually_waiting(&gateway, 2);
    clients[3].say(get("/critical", ""));
    let displaced = clients[1].answer();
    assert_eq!((displaced.status, displaced.values("retry-after")), (503, vec!["1"]));
    assert_eq!(gateway.ask(&get("/low", "")).status, 503, "and there is no place for another");
    held.go_on();
    for client in [0, 2, 3] {
        assert_eq!(clients[client].answer().status, 200);
    }
    assert_eq!(held.instance.targets(), ["/0", "/critical", "/normal"]);
    eventually_empty(&gateway);
}

#[test]
fn a_route_that_is_full_is_so_alone() {
    let held = Held::start();
    let gateway = Fixture::set_up(
        &[held.instance.address],
        |_| {},
        |config| with_route(config, "/slow", |route| route.bulkhead = most(1, 0)),
    );
    let mut slow = gateway.client();
    slow.say(get("/slow", ""));
    eventually("it is asked", || held.instance.seen().len() == 1);
    let answer = gateway.ask(&get("/slow/too", ""));
    assert!(answer.is_own() && answer.status == 503, "{answer:?}");
    assert!(answer.text().contains("the route is overloaded"), "{}", answer.text());
    assert_eq!(gateway.ask(&get("/now", "")).status, 200);
    let key = ("web".to_owned(), "/slow".to_owned());
    assert_eq!(gateway.gateway.guarded().routes[&key].in_flight, 1);
    held.go_on();
    assert_eq!(slow.answer().status, 200);
    eventually("its place is free", || gateway.gateway.guarded().routes[&key].in_flight == 0);
}

#[test]
fn a_client_that_leaves_while_it_waits_leaves_the_queue() {
    let held = Held::start();
    let gateway = Fixture::with(&[held.instance.address], |service| service.bulkhead = most(1, 9));
    let mut first = gateway.client();
    first.say(get("/first", ""));
    eventually("it is asked", || held.instance.seen().len() == 1);
    for how in ["closed", "reset", "given up"] {
        if how == "given up" {
            run(async {
                let send = connect(gateway.address).await;
                let (answer, stream) = send
                    .clone()
                    .ready()
                    .await
                    .unwrap()
                    .send_request(request("GET", "/"), true)
                    .unwrap();
                while state(&gateway).waiting == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                drop((answer, stream));
                while state(&gateway).waiting > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            continue;
        }
        let mut client = gateway.client();
        client.say(get("/left", "X-Request-Id: left\r\n"));
        eventually_waiting(&gateway, 1);
        if how == "reset" {
            reset(&client.socket);
        }
        drop(client);
        eventually_waiting(&gateway, 0);
    }
    eventually("it is remembered", || gateway.gateway.request("left").is_some());
    let record = gateway.gateway.request("left").unwrap();
    assert_eq!((record.status, record.outcome), (0, "client gone"));
    held.go_on();
    assert_eq!(first.answer().status, 200);
    eventually_empty(&gateway);
    assert_eq!(held.instance.targets(), ["/first"]);
}

/// Requests that take a while, and a client that has less time: it is told so at once, or when it is sure.
#[test]
fn whose_turn_would_come_too_late_does_not_wait_for_it() {
    let held = Held::start();
    let gateway = Fixture::with(&[held.instance.address], |service| service.bulkhead = most(1, 9));
    let mut first = gateway.client();
    first.say(get("/first", ""));
    eventually("it is asked", || held.instance.seen().len() == 1);
    // How long it takes isn't known yet.
    let answer = gateway.ask(&get("/", "X-Envoy-Expected-Rq-Timeout-Ms: 50\r\n"));
    assert_eq!((answer.status, answer.values("retry-after")), (503, vec!["1"]));
    thread::sleep(A_WHILE);
    held.go_on();
    assert_eq!(first.answer().status, 200);
    eventually_empty(&gateway);
    held.may.store(false, SeqCst);
    first.say(get("/second", ""));
    eventually("it is asked", || held.instance.seen().len() == 2);
    let hurried = "X-Envoy-Expected-Rq-Timeout-Ms: 200\r\nX-Request-Id: hurried\r\n";
    let answer = gateway.ask(&get("/", hurried));
    assert_eq!(answer.status, 503);
    eventually("it is remembered", || gateway.gateway.request("hurried").is_some());
    let record = gateway.gateway.request("hurried").unwrap();
    assert_eq!(record.outcome, "turned away: its turn would come too late");
    assert_eq!(record.waited_us, 0, "that was known from the beginning");
    held.go_on();
    assert_eq!(first.answer().status, 200);
}

#[test]
fn a_place_is_free_again_whatever_becomes_of_a_request() {
    type Script = fn(&mut Line);
    let scripts: [(&str, Script); 4] = [
        ("it is broken off", |_| {}),
        ("its answer is none", |line| line.say("nonsense\r\n\r\n")),
        ("its answer breaks off", |line| {
            line.say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx");
        }),
        ("it is not answered in time", |_| thread::sleep(A_WHILE * 2)),
    ];
    for (what, script) in scripts {
        let instance = Instance::start(move |line| {
            if line.request().is_some() {
                script(line);
            }
        });
        let gateway = Fixture::with(&[instance.address], |service| {
            service.bulkhead = most(1, 1);
            service.timeout_ms = 200;
        });
        for _ in 0..2 {
            let mut client = gateway.client();
            client.say(get("/", ""));
            let _ = client.answer_or_end("GET");
            eventually_empty(&gateway);
        }
        assert!(instance.seen().len() >= 2, "{what}");
    }
    // The client goes while it is answered.
    let held = Held::start();
    let gateway = Fixture::with(&[held.instance.address], |service| service.bulkhead = most(1, 1));
    let mut client = gateway.client();
    client.say(get("/", ""));
    eventually("it is asked", || held.instance.seen().len() == 1);
    drop(client);
    eventually_empty(&gateway);
}

/// A tunnel may last for days.
#[test]
fn a_tunnel_holds_no_place() {
    let switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n";
    let instance = Instance::echoes_after(switched);
    let gateway = Fixture::with(&[instance.address], |service| service.bulkhead = most(1, 0));
    let mut tunnels = Vec::new();
    for _ in 0..3 {
        let mut client = gateway.client();
        client.say(get("/", "Upgrade: x\r\nConnection: Upgrade\r\n"));
        assert_eq!(client.answer().status, 101);
        eventually_empty(&gateway);
        tunnels.push(client);
    }
    for client in &mut tunnels {
        client.say("more");
        assert_eq!(client.exactly(4).unwrap(), b"more");
    }
}

#[test]
fn a_limit_that_is_not_given_is_found() {
    let instance = Instance::start(|line| {
        while line.request().is_some() {
            thread::sleep(Duration::from_millis(20));
            line.say(FINE);
        }
    });
    let gateway = Fixture::with(&[instance.address], |service| {
        // In a standing queue the oldest wait as long as they can.
        service.timeout_ms = 60_000;
        let queue = Some(1_000);
        service.bulkhead = Some(Bulkhead { limit: Limit::Auto, queue, wait_ms: 60_000 });
    });
    assert_eq!((state(&gateway).limit, state(&gateway).auto), (20, true));
    let end = Instant::now() + PATIENCE;
    let more = || state(&gateway).limit > 30;
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let mut client = gateway.client();
                while !more() && Instant::now() < end {
                    client.say(get("/", ""));
                    assert_eq!(client.answer().status, 200);
                }
            });
        }
    });
    assert!(Instant::now() < end, "more is possible");
}

/// Events, downloads: what goes on after the head of an answer is no work that a limit could be found by.
#[test]
fn answers_that_go_on_for_long_hold_no_place_of_a_limit_that_is_found() {
    let instance = Instance::start(|line| {
        line.request();
        line.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
        // Till the gateway closes.
        line.some();
    });
    for (limit, expected) in [(Limit::Auto, 30), (Limit::Most(20), 20)] {
        let gateway = Fixture::with(&[instance.address], |service| {
            service.bulkhead = Some(Bulkhead { limit, queue: Some(0), wait_ms: 60_000 });
        });
        let mut clients: Vec<_> = (0..30).map(|_| gateway.client()).collect();
        let begun = clients.iter_mut().map(|client| {
            client.say(get("/", ""));
            client.exactly(12).is_some_and(|it| it == b"HTTP/1.1 200")
        });
        assert_eq!(begun.filter(|it| *it).count(), expected, "{limit:?}");
    }
}

/// The next one waits for its turn and not for a body as long as that of the one before.
#[test]
fn one_long_body_has_nobody_told_that_they_come_too_late() {
    let held = Held::start();
    let long = Instance::start(|line| {
        line.request();
        line.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
        thread::sleep(Duration::from_secs(3));
        line.say("k");
    });
    let gateway = Fixture::with(&[long.address], |service| service.bulkhead = most(1, 9));
    assert_eq!(gateway.ask(&get("/", "")).text(), "ok");
    gateway.change(|table| {
        table.services.get_mut("main").unwrap().backends[0].address = held.instance.address;
    });
    let (mut first, mut second) = (gateway.client(), gateway.client());
    first.say(get("/first", ""));
    eventually("it is asked", || held.instance.seen().len() == 1);
    second.say(get("/second", "X-Envoy-Expected-Rq-Timeout-Ms: 2500\r\n"));
    eventually_waiting(&gateway, 1);
    held.go_on();
    assert_eq!((first.answer().status, second.answer().status), (200, 200));
}

#[test]
fn a_table_changes_limits_and_keeps_who_is_inside() {
    let held = Held::start();
    let gateway = Fixture::with(&[held.instance.address], |service| service.bulkhead = most(1, 9));
    let mut clients: Vec<_> = (0..3).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.say(get("/", ""));
    }
    eventually_waiting(&gateway, 2);
    let mut table = (*gateway.config.table).clone();
    table.http.services.get_mut("main").unwrap().bulkhead = most(2, 9);
    gateway.gateway.set_table(Arc::new(table)).unwrap();
    eventually("one more is asked", || held.instance.seen().len() == 2);
    assert_eq!((state(&gateway).in_flight, state(&gateway).waiting), (2, 1));
    held.go_on();
    assert!(clients.iter_mut().all(|client| client.answer().status == 200));
    eventually_empty(&gateway);
}

#[test]
fn a_service_that_answers_nothing_is_asked_no_more_until_a_probe_succeeds() {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = well.clone();
    let instance = Instance::start(move |line| {
        while line.request().is_some() && is_well.load(SeqCst) {
            line.say(FINE);
        }
    });
    let gateway = Fixture::with(&[instance.address], |service| {
        service.retries = 0;
        service.breaker =
            Some(BreakerSpec { run: 5, rate_percent: None, open_ms: 60_000, open_ms_max: 60_000 });
    });
    let breaker = || gateway.gateway.guarded().breakers["main"];
    eventually("it opens", || {
        gateway.ask(&get("/", ""));
        breaker().is_some()
    });
    assert!(breaker().is_some_and(|it| it > Duration::from_secs(30)));
    well.store(true, SeqCst);
    let asked = instance.seen().len();
    for _ in 0..20 {
        let answer = gateway.ask(&get("/", "X-Request-Id: refused\r\n"));
        assert!(answer.is_own() && answer.status == 503, "{answer:?}");
        let [after] = answer.values("retry-after")[..] else { panic!("{answer:?}") };
        assert!((30..=66).contains(&after.parse::<u64>().unwrap()), "{after}");
    }
    assert_eq!(instance.seen().len(), asked, "nobody asks it");
    eventually("it is remembered", || gateway.gateway.request("refused").is_some());
    let record = gateway.gateway.request("refused").unwrap();
    assert_eq!(record.outcome, "turned away: the service's breaker is open");
    eventually("it is counted", || match met(&gateway)[..] {
        // More than that, where it opened while it was still being asked.
        [(Met::Breaker, count)] => count >= 20,
        _ => false,
    });
}

#[test]
fn the_probe_that_succeeds_closes_the_breaker_and_no_other_is_let_through_till_then() {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = well.clone();
    let instance = Instance::start(move |line| {
        while let Some(seen) = line.request() {
            if seen.target() == "/probe" {
                eventually("it may answer", || is_well.load(SeqCst));
                line.say(FINE);
            } else if is_well.load(SeqCst) {
                line.say(FINE);
            } else {
                return;
            }
        }
    });
    let gateway = Fixture::with(&[instance.address], |service| {
        service.retries = 0;
        service.breaker =
            Some(BreakerSpec { run: 5, rate_percent: None, open_ms: 4_000, open_ms_max: 60_000 });
    });
    let breaker = || gateway.gateway.guarded().breakers["main"];
    eventually("it opens", || {
        gateway.ask(&get("/", ""));
        breaker().is_some()
    });
    eventually("a probe is due", || breaker() == Some(Duration::ZERO));
    let mut probe = gateway.client();
    probe.say(get("/probe", ""));
    eventually("it is asked", || instance.targets().contains(&"/probe".to_owned()));
    assert_eq!(gateway.ask(&get("/", "")).status, 503, "one is enough");
    well.store(true, SeqCst);
    assert_eq!(probe.answer().status, 200);
    eventually("it closes", || breaker().is_none());
    assert_eq!(gateway.ask(&get("/", "")).status, 200);
}

/// Whoever comes may be the probe; who learns nothing for others leaves it to the next.
#[test]
fn a_probe_of_which_nothing_comes_is_given_back() {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = well.clone();
    let instance = Instance::start(move |line| {
        while let Some(head) = line.head() {
            if !head.contains("/probe") && !is_well.load(SeqCst) {
                return;
            }
            line.rest(head);
            if !is_well.load(SeqCst) {
                line.some();
                return;
            }
            line.say(FINE);
        }
    });
    let gateway = Fixture::with(&[instance.address], |service| {
        service.retries = 0;
        service.breaker =
            Some(BreakerSpec { run: 5, rate_percent: None, open_ms: 5_000, open_ms_max: 60_000 });
    });
    let breaker = || gateway.gateway.guarded().breakers["main"];
    let is_due = || breaker() == Some(Duration::ZERO);
    eventually("it opens", || {
        gateway.ask(&get("/", ""));
        breaker().is_some()
    });
    eventually("a probe is due", is_due);
    for _ in 0..3 {
        let hurried = gateway.ask(&get("/probe", "X-Envoy-Expected-Rq-Timeout-Ms: 100\r\n"));
        assert!(hurried.is_own() && hurried.status == 503, "{hurried:?}");
    }
    assert!(is_due() && instance.seen().is_empty(), "who is in a hurry is no probe");
    for (what, request) in [
        ("reset", "GET /probe HTTP/1.1\r\nHost: a\r\nX-Request-Id: reset\r\n\r\n"),
        (
            "bare",
            "POST /probe HTTP/1.1\r\nHost: a\r\nX-Request-Id: bare\r\nContent-Length: 9\r\n\r\n",
        ),
    ] {
        let mut client = gateway.client();
        client.say(request);
        eventually("it is the probe", || !is_due());
        reset(&client.socket);
        drop(client);
        eventually("it is remembered", || gateway.gateway.request(what).is_some());
        assert!(
            is_due(),
            "{what}: the next one is the probe, for how long it would be shut: {:?}",
            breaker()
        );
    }
    well.store(true, SeqCst);
    assert_eq!(gateway.ask(&get("/probe", "")).status, 200);
    eventually("it closes", || breaker().is_none());
}

/// What clients ask of it over HTTP/2 is turned away like everything else.
#[test]
fn streams_are_turned_away_one_by_one() {
    let held = Held::start();
    let gateway = Fixture::with(&[held.instance.address], |service| service.bulkhead = most(1, 0));
    run(async {
        let send = connect(gateway.address).await;
        let (first, _stream) =
            send.clone().ready().await.unwrap().send_request(request("GET", "/"), true).unwrap();
        while state(&gateway).in_flight == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let second =
            second::ask(&send, request("GET", "/"), &[], http::HeaderMap::new()).await.unwrap();
        assert_eq!((second.status, &second.fields["retry-after"]), (503, &"1".parse().unwrap()));
        held.go_on();
        assert_eq!(first.await.unwrap().status(), 200);
    });
}

/// Longer than nearly all took, while another instance is there: what may be done twice is tried there.
#[test]
fn a_try_that_takes_longer_than_nearly_all_is_given_up_for_another() {
    let stands = Arc::new(AtomicBool::new(false));
    let is_still = stands.clone();
    let one = Instance::start(move |line| {
        while line.request().is_some() && !is_still.load(SeqCst) {
            line.say(FINE);
        }
        // Silent from then on, till the gateway closes.
        line.some();
    });
    let other = Instance::says(FINE);
    let gateway = Fixture::with(&[one.address, other.address], |service| {
        service.timeout_ms = 2_000;
        service.try_timeout_auto = true;
    });
    for _ in 0..300 {
        assert_eq!(gateway.ask(&get("/", "")).status, 200);
    }
    stands.store(true, SeqCst);
    eventually("a try is given up", || {
        let answer = gateway.ask(&get("/", "X-Request-Id: slow\r\n"));
        eventually("it is remembered", || gateway.gateway.request("slow").is_some());
        let record = gateway.gateway.request("slow").unwrap();
        let outcomes: Vec<_> = record.tries.iter().map(|it| it.outcome).collect();
        answer.status == 200 && outcomes == ["no answer in time", "answered"]
    });
    // What may not be done twice has all the time there is.
    let mut posts = (0..2)
        .map(|_| gateway.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").status);
    assert!(posts.any(|status| status == 504));
}
