//! Routes while something behind them is not well: what they answer meanwhile, and that they come back.

use super::fixture::{Answer, FINE, Fixture, Instance, Line, eventually};
use super::second::{self, connect, request, run};
use everhold_core::http::breaker::BreakerSpec;
use everhold_core::http::cache::CacheSpec;
use everhold_core::http::degrade::{Cause, Degraded, Mode, Page, Rule};
use everhold_core::http::queue::{Bulkhead, Limit};
use everhold_core::http::route::{HttpRoute, HttpService};
use everhold_core::spec::{HealthSpec, PathMatch};
use everhold_gateway::Config;
use everhold_gateway::http::Met;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

fn modes(modes: &[(Mode, Cause)]) -> Option<Degraded> {
    let rule = |cause: Cause| Rule { when: vec![cause], enter_ms: 0, leave_ms: 300 };
    let page = Page {
        status: 200,
        content_type: "text/html; charset=utf-8".to_owned(),
        body: "<p>soon</p>".to_owned(),
    };
    let modes = modes.iter().map(|(mode, cause)| (*mode, rule(*cause))).collect();
    Some(Degraded { modes, page: Some(page) })
}

fn route(config: &mut Config) -> &mut HttpRoute {
    &mut Arc::make_mut(&mut config.table).http.listeners.get_mut("web").unwrap().routes[0]
}

/// Before an instance that is checked all the time.
fn checked(addresses: &[SocketAddr], change: impl FnOnce(&mut HttpRoute)) -> Fixture {
    let health = |service: &mut HttpService| {
        service.health = HealthSpec {
            path: Some("/healthz".to_owned()),
            interval_ms: 50,
            timeout_ms: 5_000,
            healthy_threshold: 1,
            unhealthy_threshold: 1,
            ..HealthSpec::default()
        };
    };
    Fixture::set_up(addresses, health, |config| change(route(config)))
}

/// Answers, and says to checks whether it is well.
fn patient(
    answer: impl Fn(&mut Line, &str) + Send + Sync + 'static,
) -> (Instance, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(true));
    let is_well = well.clone();
    let instance = Instance::start(move |line| {
        while let Some(seen) = line.request() {
            match seen.target() {
                "/healthz" if !is_well.load(SeqCst) => {
                    line.say("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
                }
                "/healthz" => line.say(FINE),
                target => answer(line, target),
            }
        }
    });
    (instance, well)
}

fn asked(instance: &Instance) -> usize {
    instance.targets().iter().filter(|it| *it != "/healthz").count()
}

fn degraded(answer: &Answer) -> String {
    answer.values("everhold-degraded").join("; ")
}

fn is_on(gateway: &Fixture, mode: Mode) -> Option<Cause> {
    let modes = &gateway.gateway.guarded().modes[&("web".to_owned(), "all".to_owned())];
    let state = modes.iter().find(|it| it.mode == mode).unwrap();
    state.on.map(|(cause, _)| cause)
}

fn outcome_of(gateway: &Fixture, id: &str) -> (&'static str, Option<Met>) {
    eventually("it is remembered", || gateway.gateway.request(id).is_some());
    let record = gateway.gateway.request(id).unwrap();
    (record.outcome, record.met)
}

/// Also to those that find out whether the service is back, for without them it never would be.
#[test]
fn a_static_answer_stands_in_for_a_service_until_that_is_back() {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = well.clone();
    let instance = Instance::start(move |line| {
        while line.request().is_some() && is_well.load(SeqCst) {
            line.say(FINE);
        }
    });
    let gateway = Fixture::set_up(
        &[instance.address],
        |service| {
            service.retries = 0;
            let (open_ms, open_ms_max) = (100, 100);
            service.breaker =
                Some(BreakerSpec { run: 5, rate_percent: None, open_ms, open_ms_max });
        },
        |config| route(config).degraded = modes(&[(Mode::Static, Cause::Breaker)]),
    );
    let mut first = gateway.ask(&get("/", ""));
    assert_eq!((first.status, degraded(&first)), (502, String::new()));
    eventually("it is degraded", || {
        first = gateway.ask(&get("/", "X-Request-Id: first\r\n"));
        first.status == 200
    });
    assert_eq!((first.text().as_str(), degraded(&first).as_str()), ("<p>soon</p>", "static"));
    assert_eq!(first.values("content-type"), ["text/html; charset=utf-8"]);
    assert_eq!(first.values("cache-control"), ["no-store"]);
    let outcome = outcome_of(&gateway, "first");
    assert_eq!(outcome, ("degraded: the route's static answer", Some(Met::Degraded)));
    assert_eq!(is_on(&gateway, Mode::Static), Some(Cause::Breaker));
    let before = asked(&instance);
    let mut count = 0;
    eventually("it is asked now and then whether it is back", || {
        let answer = gateway.ask(&get("/", ""));
        count += 1;
        assert_eq!((answer.status, answer.text().as_str()), (200, "<p>soon</p>"));
        asked(&instance) >= before + 3
    });
    assert!(count > asked(&instance) - before, "and by the others not at all");
    // What was not done is not said to be.
    let mut post = gateway.ask(POST);
    eventually("it is no probe", || {
        post = gateway.ask(POST);
        post.text().contains("nothing can be changed here for now: the service's breaker is open")
    });
    assert!(post.is_own() && post.status == 503, "{post:?}");
    assert_eq!(post.values("retry-after"), ["1"]);
    assert_eq!(gateway.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
    well.store(true, SeqCst);
    eventually("it is as ever", || {
        let answer = gateway.ask(&get("/", ""));
        answer.text() == "ok" && degraded(&answer).is_empty()
    });
    assert_eq!(is_on(&gateway, Mode::Static), None);
    assert_eq!(gateway.ask(POST).text(), "ok");
}

#[test]
fn what_is_read_only_takes_no_changes() {
    let (instance, well) = patient(|line, _| line.say(FINE));
    let gateway = checked(&[instance.address], |route| {
        route.degraded = modes(&[(Mode::ReadOnly, Cause::Down)]);
    });
    assert_eq!(gateway.ask(POST).text(), "ok");
    well.store(false, SeqCst);
    eventually("it is degraded", || degraded(&gateway.ask(&get("/", ""))) == "read_only");
    let before = asked(&instance);
    let answer = gateway.ask(&get("/", ""));
    assert_eq!((answer.text().as_str(), degraded(&answer).as_str()), ("ok", "read_only"));
    for method in ["POST", "PUT", "DELETE", "PATCH", "OTHER"] {
        let fields = format!("Host: a\r\nX-Request-Id: {method}\r\nContent-Length: 0\r\n");
        let answer = gateway.ask(&format!("{method} / HTTP/1.1\r\n{fields}\r\n"));
        assert!(answer.is_own() && answer.status == 503, "{answer:?}");
        assert_eq!(
            (answer.values("retry-after"), degraded(&answer)),
            (vec!["1"], "read_only".into())
        );
        let why = "this is read-only for now: no instance of the service is healthy";
        assert!(answer.text().contains(why), "{}", answer.text());
        let outcome = outcome_of(&gateway, method);
        assert_eq!(outcome, ("degraded: the route is read-only", Some(Met::Degraded)));
    }
    assert_eq!(asked(&instance), before + 1);
    // The same as streams.
    run(async {
        let send = connect(gateway.address).await;
        let ask = |method| {
            let send = send.clone();
            async move {
                second::ask(&send, request(method, "/"), &[], http::HeaderMap::new()).await.unwrap()
            }
        };
        let (read, change) = (ask("GET").await, ask("POST").await);
        assert_eq!((read.status, change.status), (200, 503));
        assert!([read, change].iter().all(|it| it.fields["everhold-degraded"] == "read_only"));
    });
    well.store(true, SeqCst);
    eventually("it is as ever", || {
        let answer = gateway.ask(POST);
        answer.text() == "ok" && degraded(&answer).is_empty()
    });
}

/// What may be kept is given, and asked for anew behind that; it says for itself whether it is so.
#[test]
fn what_is_kept_is_given_though_it_is_stale() {
    let count = AtomicUsize::new(0);
    let (instance, well) = patient(move |line, target| {
        let control = if target == "/long" { "max-age=600" } else { "max-age=0" };
        let control = if target == "/strict" { "max-age=0, must-revalidate" } else { control };
        let body = format!("answer {}", count.fetch_add(1, SeqCst));
        let length = body.len();
        line.say(format!(
            "HTTP/1.1 200 OK\r\nCache-Control: {control}\r\nETag: \"{body}\"\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        ));
    });
    let gateway = checked(&[instance.address], |route| {
        route.cache = Some(CacheSpec::default());
        route.degraded = modes(&[(Mode::Stale, Cause::Down)]);
    });
    for path in ["/", "/strict"] {
        let first = gateway.ask(&get(path, "")).text();
        assert_ne!(gateway.ask(&get(path, "")).text(), first, "it is asked for each time");
    }
    well.store(false, SeqCst);
    eventually("it is degraded", || degraded(&gateway.ask(&get("/other", ""))) == "stale");
    let answer = gateway.ask(&get("/", "Cache-Control: no-cache\r\n"));
    assert_eq!((answer.status, degraded(&answer).as_str()), (200, "stale"));
    let [status] = answer.values("cache-status")[..] else { panic!("{answer:?}") };
    assert!(status.starts_with("everhold; hit; detail=degraded; ttl="), "{status}");
    eventually("it is asked for behind that", || {
        let again = gateway.ask(&get("/", ""));
        assert!(again.head.contains("detail=degraded") && degraded(&again) == "stale", "{again:?}");
        again.text() != answer.text()
    });
    let strict = gateway.ask(&get("/strict", ""));
    assert!(!strict.head.contains("detail=degraded"), "it rules that out: {strict:?}");
    // That it was kept then is not what it is.
    assert_eq!(degraded(&gateway.ask(&get("/long", ""))), "stale");
    assert_eq!(degraded(&gateway.ask(&get("/long", ""))), "stale", "once");
    well.store(true, SeqCst);
    eventually("it is as ever", || {
        let answer = gateway.ask(&get("/", ""));
        degraded(&answer).is_empty() && !answer.head.contains("detail=degraded")
    });
    let kept = gateway.ask(&get("/long", ""));
    assert!(kept.head.contains("everhold; hit; ttl=") && degraded(&kept).is_empty(), "{kept:?}");
}

#[test]
fn what_is_shed_leaves_the_service_to_others() {
    let may = Arc::new(AtomicBool::new(false));
    let leave = may.clone();
    let instance = Instance::start(move |line| {
        while line.request().is_some() {
            eventually("it may answer", || leave.load(SeqCst));
            line.say(FINE);
        }
    });
    let gateway = Fixture::set_up(
        &[instance.address],
        |service| {
            let limit = Limit::Most(1);
            service.bulkhead = Some(Bulkhead { limit, queue: Some(0), wait_ms: 60_000 });
        },
        |config| {
            let mut low = route(config).clone();
            low.name = "low".to_owned();
            low.when.path = Some(PathMatch::Prefix("/low".to_owned()));
            low.degraded = modes(&[(Mode::Shed, Cause::Queue)]);
            let table = Arc::make_mut(&mut config.table);
            table.http.listeners.get_mut("web").unwrap().routes.push(low);
        },
    );
    let mut first = gateway.client();
    first.say(get("/", ""));
    eventually("it is asked", || instance.seen().len() == 1);
    thread::scope(|scope| {
        let crowd = scope.spawn(|| {
            while !may.load(SeqCst) {
                assert!(degraded(&gateway.ask(&get("/", ""))).is_empty());
            }
        });
        let mut shed = None;
        eventually("it is degraded", || {
            let answer = gateway.ask(&get("/low", "X-Request-Id: low\r\n"));
            assert_eq!(answer.status, 503);
            shed = Some(answer).filter(|answer| degraded(answer) == "shed");
            shed.is_some()
        });
        let why = "this is not served for now: too many wait for the service";
        assert!(shed.unwrap().text().contains(why));
        eventually("it is remembered", || {
            outcome_of(&gateway, "low") == ("degraded: the route is shed", Some(Met::Degraded))
        });
        may.store(true, SeqCst);
        crowd.join().unwrap();
    });
    assert_eq!(first.answer().status, 200);
    eventually("it is as ever", || {
        let answer = gateway.ask(&get("/low", ""));
        answer.status == 200 && degraded(&answer).is_empty()
    });
}

/// What the table says of it stays; who leads it elsewhere begins anew.
#[test]
fn a_table_that_changes_nothing_of_it_leaves_a_mode_on() {
    let (instance, well) = patient(|line, _| line.say(FINE));
    let gateway = checked(&[instance.address], |route| {
        route.degraded = modes(&[(Mode::ReadOnly, Cause::Down)]);
    });
    well.store(false, SeqCst);
    eventually("it is degraded", || degraded(&gateway.ask(&get("/", ""))) == "read_only");
    gateway.change(|table| table.cache_bytes = Some(1 << 20));
    assert_eq!(is_on(&gateway, Mode::ReadOnly), Some(Cause::Down));
    assert_eq!(gateway.ask(POST).status, 503);
    gateway.change(|table| {
        table.listeners.get_mut("web").unwrap().routes[0].degraded = None;
    });
    eventually("it is as ever", || gateway.ask(POST).text() == "ok");
}
