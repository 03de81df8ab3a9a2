//! A thread that has too little time for all: whom it refuses, and that it ends with the flood.

use super::fixture::{Answer, Client, FINE, Fixture, Instance, client_from, eventually};
use everhold_core::http::degrade::{Cause, Degraded, Mode, Rule};
use everhold_core::http::queue::Priority;
use everhold_core::http::route::HttpRoute;
use everhold_core::spec::PathMatch;
use everhold_gateway::Config;
use everhold_gateway::http::{Met, ThreadState};
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// Connections of the flood: while each of them has its turn, others wait.
const CONNECTIONS: usize = 200;

fn routes(config: &mut Config) -> &mut Vec<HttpRoute> {
    &mut Arc::make_mut(&mut config.table).http.listeners.get_mut("web").unwrap().routes
}

/// The route of everything is followed by one of that path and class.
fn with_route(config: &mut Config, path: &str, change: impl FnOnce(&mut HttpRoute)) {
    let mut route = routes(config)[0].clone();
    route.name = path.to_owned();
    route.when.path = Some(PathMatch::Prefix(path.to_owned()));
    change(&mut route);
    routes(config).push(route);
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

fn state(gateway: &Fixture) -> ThreadState {
    gateway.gateway.threads()[0]
}

/// Asks for what no instance is there for, as often as it is taken, with heads that are work to read;
/// from an address of its own.
fn flood(gateway: &Fixture, ends: &AtomicBool) {
    let mut head = "GET / HTTP/1.1\r\nHost: elsewhere.org\r\n".to_owned();
    for field in 0..80 {
        head.push_str(&format!("X-Field-{field}: {}\r\n", "x".repeat(100)));
    }
    head.push_str("\r\n");
    let all = head.repeat(8).into_bytes();
    let mut lines: Vec<(Client, usize)> =
        (0..CONNECTIONS).map(|_| (client_from([127, 0, 0, 66], gateway.address), 0)).collect();
    for (client, _) in &lines {
        client.socket.set_nonblocking(true).unwrap();
    }
    let mut waste = vec![0; 64 << 10];
    while !ends.load(SeqCst) {
        let mut idle = true;
        for (client, at) in &mut lines {
            match client.socket.write(&all[*at..]) {
                Ok(count) => (*at, idle) = ((*at + count) % all.len(), false),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            while client.socket.read(&mut waste).is_ok_and(|count| count > 0) {
                idle = false;
            }
        }
        if idle {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Ends it however the test does.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn is_refused(answer: &Answer) -> bool {
    match answer.status {
        503 => {
            assert!(answer.text().contains("the gateway is overloaded"), "{}", answer.text());
            assert_eq!(answer.values("retry-after"), ["1"]);
            true
        }
        status => {
            assert_eq!(status, 200);
            false
        }
    }
}

#[test]
fn a_thread_without_time_refuses_what_is_less_important_until_it_has_time_again() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::set_up(
        &[instance.address],
        |_| {},
        |config| {
            routes(config)[1].priority = Priority::Critical;
            with_route(config, "/critical", |route| route.priority = Priority::Critical);
            with_route(config, "/low", |route| {
                route.priority = Priority::Low;
                let rule = Rule { when: vec![Cause::Cpu], enter_ms: 0, leave_ms: 100 };
                let modes = [(Mode::ReadOnly, rule)].into();
                route.degraded = Some(Degraded { modes, page: None });
            });
        },
    );
    assert_eq!(gateway.ask(&get("/low")).status, 200);
    assert_eq!(state(&gateway).refused, 0);
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Ends(&ends);
        scope.spawn(|| flood(&gateway, &ends));
        let mut low = gateway.client();
        eventually("it is refused", || {
            low.say(get("/low"));
            let refused = is_refused(&low.answer());
            low.say(get("/critical"));
            assert_eq!(low.answer().status, 200, "that is never refused");
            refused
        });
        assert!(state(&gateway).refused > 0);
        eventually("it is counted", || {
            let turned = gateway.gateway.sums().turned;
            turned.keys().any(|it| &*it.route == "/low" && it.met == Met::Cpu)
        });
        for _ in 0..5 {
            low.say(get("/critical"));
            assert_eq!(low.answer().status, 200, "that is never refused");
        }
        eventually("its route is degraded", || {
            low.say(get("/low"));
            let answer = low.answer();
            is_refused(&answer);
            answer.values("everhold-degraded") == ["read_only"]
        });
    });
    eventually("nothing is refused any more", || state(&gateway).refused == 0);
    assert_eq!(gateway.ask(&get("/low")).status, 200);
    eventually("and its route is as ever", || {
        gateway.ask(&get("/low")).values("everhold-degraded").is_empty()
    });
}

/// Those of the flood never got what they asked for.
#[test]
fn clients_that_are_known_are_refused_last() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    assert_eq!(gateway.ask(&get("/")).status, 200);
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Ends(&ends);
        scope.spawn(|| flood(&gateway, &ends));
        let mut share = 0;
        eventually("nearly all of the others are refused", || {
            let before = state(&gateway).refused;
            if is_refused(&gateway.ask(&get("/"))) {
                let after = state(&gateway).refused;
                assert!(before.max(after) >= 900, "while {before} to {after} of 1000 were");
            }
            share = share.max(state(&gateway).refused);
            share >= 900
        });
    });
}
