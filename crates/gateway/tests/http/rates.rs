//! Rate limits through a real listener, and between gateways.

use super::fixture::{Client, FINE, Fixture, Instance, client_from};
use super::second::{connect, request, run};
use everhold_core::http::HttpTable;
use everhold_core::http::cache::CacheSpec;
use everhold_core::http::rate::word::Word;
use everhold_core::http::rate::{RateKey, RateLimit};
use everhold_core::spec::PathMatch;
use std::num::NonZeroUsize;
use std::thread;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Nobody gets one more in the time of a test.
fn limited(by: RateKey, burst: u32) -> impl Fn(&mut HttpTable) {
    move |table| {
        let route = &mut table.listeners.get_mut("web").unwrap().routes[0];
        let by = by.clone();
        route.rate_limit = Some(RateLimit { by, requests: 1, per_s: 3600, burst });
    }
}

fn gateway(instance: &Instance, by: RateKey, burst: u32) -> Fixture {
    let gateway = Fixture::before(instance);
    gateway.change(limited(by, burst));
    gateway
}

fn statuses(client: &mut Client, asked: &str, count: usize) -> Vec<u16> {
    let ask = |_| {
        client.say(asked);
        client.answer().status
    };
    (0..count).map(ask).collect()
}

#[test]
fn who_asks_too_often_is_told_so() {
    let instance = Instance::says(FINE);
    let gateway = gateway(&instance, RateKey::ADDRESS, 2);
    let mut client = gateway.client();
    for remaining in ["1", "0"] {
        client.say(GET);
        let answer = client.answer();
        assert_eq!(answer.status, 200);
        let [said] = answer.values("RateLimit")[..] else { panic!("{}", answer.head) };
        assert!(said.starts_with(&format!("\"all\";r={remaining};t=")), "{said}");
        assert!(answer.values("Retry-After").is_empty());
    }
    client.say(GET);
    let answer = client.answer();
    assert_eq!((answer.status, answer.is_own()), (429, true));
    assert!(answer.head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"));
    assert_eq!(answer.values("RateLimit-Policy"), ["\"all\";q=1;w=3600"]);
    assert!(answer.values("RateLimit")[0].starts_with("\"all\";r=0;t="));
    let wait: u64 = answer.values("Retry-After")[0].parse().unwrap();
    assert!((3500..=3600).contains(&wait), "{wait}");
    let state = gateway.gateway.limited()["all"];
    assert_eq!((state.clients, state.refused), (1, 1));
    // The connection goes on, and what is no request is told nothing of this.
    client.say("GET / HTTP/1.1\r\n\r\n");
    let answer = client.answer();
    assert_eq!(answer.status, 400);
    assert!(answer.values("RateLimit").is_empty());
    assert_eq!(instance.seen().len(), 2, "no instance heard of it");
    // Over HTTP/2 it is the same client.
    run(async {
        let mut send = connect(gateway.address).await.ready().await.unwrap();
        let (answer, _) = send.send_request(request("GET", "/"), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 429);
        assert!(answer.headers().contains_key("retry-after"));
    });
    // Another one is another one, and a table that leaves the limit as it is leaves the count.
    assert_eq!(
        statuses(&mut client_from([127, 0, 0, 2], gateway.address), GET, 3),
        [200, 200, 429]
    );
    gateway.change(|table| {
        limited(RateKey::ADDRESS, 2)(table);
        table.services.get_mut("main").unwrap().retries = 1;
    });
    assert_eq!(gateway.ask(GET).status, 429);
}

#[test]
fn each_key_has_its_own_count_and_who_has_none_its_address() {
    let instance = Instance::says(FINE);
    let asked = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let net = RateKey::ClientIp { v4_bits: 24, v6_bits: 48 };
    // Each asks twice, where one is allowed.
    #[rustfmt::skip]
    let cases: &[(RateKey, &[(&str, u16)])] = &[
        (RateKey::Header("x-key".to_owned()), &[("X-Key: a\r\n", 200), ("x-key: b\r\n", 200), ("X-Key: a\r\n", 429),
            ("", 200), ("Other: a\r\n", 429), ("X-Key: \r\n", 429),
            ("X-Key: c\r\nX-Key: a\r\n", 429)]),
        (RateKey::Cookie("who".to_owned()), &[("Cookie: a=b; who=1\r\n", 200), ("Cookie: who=2\r\n", 200),
            ("Cookie: who=1; a=c\r\n", 429), ("Cookie: a=1\r\n", 200), ("", 429),
            ("Cookie: who=3; who=1\r\n", 429), ("Cookie: who=3\r\nCookie: who=1\r\n", 429)]),
        (RateKey::Token, &[("Authorization: Bearer a\r\n", 200), ("Authorization: bearer a\r\n", 429),
            ("Authorization: Bearer b\r\n", 200), ("Authorization: Basic a\r\n", 200), ("Authorization: Basic b\r\n", 429),
            ("Authorization: Bearer c\r\nAuthorization: Bearer a\r\n", 429)]),
        (net, &[("", 200), ("X-Key: a\r\n", 429)]),
    ];
    for (by, requests) in cases {
        let gateway = gateway(&instance, by.clone(), 1);
        let mut client = gateway.client();
        for (fields, expected) in *requests {
            assert_eq!(statuses(&mut client, &asked(fields), 1), [*expected], "{by:?}: {fields:?}");
        }
        if let RateKey::ClientIp { .. } = by {
            let mut near = client_from([127, 0, 0, 99], gateway.address);
            assert_eq!(statuses(&mut near, GET, 1), [429]);
            let mut far = client_from([127, 0, 1, 1], gateway.address);
            assert_eq!(statuses(&mut far, GET, 1), [200]);
        }
    }
}

/// Made up anew with each request, a value would be no limit, and a table would be full of them.
#[test]
fn new_values_count_for_their_address() {
    let instance = Instance::says(FINE);
    let gateway = gateway(&instance, RateKey::Header("x-key".to_owned()), 2);
    let asked = |key: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX-Key: {key}\r\n\r\n");
    let mut client = gateway.client();
    let admitted: Vec<usize> =
        (0..200).filter(|key| statuses(&mut client, &asked(*key), 1) == [200]).collect();
    assert_eq!(admitted.len(), 32, "sixteen limits, of two each");
    // Those that were admitted are known.
    assert_eq!(statuses(&mut client, &asked(admitted[0]), 2), [200, 429]);
    assert_eq!(statuses(&mut client, GET, 3), [200, 200, 429]);
    let mut other = client_from([127, 0, 0, 2], gateway.address);
    assert_eq!(statuses(&mut other, &asked(1000), 3), [200, 200, 429]);
}

/// What is left to one client is nobody else's to read, also where one has the answer of another.
#[test]
fn answers_that_are_kept_say_what_is_left_to_who_gets_them() {
    let kept = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok";
    let instance = Instance::says(kept);
    let gateway = Fixture::before(&instance);
    gateway.change(|table| {
        limited(RateKey::ADDRESS, 3)(table);
        table.listeners.get_mut("web").unwrap().routes[0].cache = Some(CacheSpec::default());
    });
    let (mut one, mut other) = (gateway.client(), client_from([127, 0, 0, 2], gateway.address));
    let ask = |client: &mut Client, remaining: u32| {
        client.say(GET);
        let answer = client.answer();
        let [said] = answer.values("RateLimit")[..] else { panic!("{}", answer.head) };
        assert!(said.starts_with(&format!("\"all\";r={remaining};t=")), "{}", answer.head);
    };
    ask(&mut one, 2);
    ask(&mut one, 1);
    ask(&mut other, 2);
    assert_eq!(instance.seen().len(), 1);
}

#[test]
fn who_is_behind_a_trusted_proxy_counts_by_itself() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    gateway.change(|table| {
        limited(RateKey::ADDRESS, 1)(table);
        let listener = table.listeners.get_mut("web").unwrap();
        listener.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    });
    let from = |ip: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {ip}\r\n\r\n");
    let mut proxy = gateway.client();
    for (ip, expected) in [("192.0.2.1", 200), ("192.0.2.2", 200), ("192.0.2.1", 429)] {
        assert_eq!(statuses(&mut proxy, &from(ip), 1), [expected], "{ip}");
    }
}

#[test]
fn all_threads_count_together() {
    let instance = Instance::says(FINE);
    let threads = NonZeroUsize::new(4).unwrap();
    let gateway = Fixture::set_up(&[instance.address], |_| {}, |config| config.threads = threads);
    gateway.change(limited(RateKey::ADDRESS, 100));
    let admitted: usize = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..8).map(|_| scope.spawn(|| statuses(&mut gateway.client(), GET, 50))).collect();
        let all = clients.into_iter().flat_map(|it| it.join().unwrap());
        all.filter(|status| *status == 200).count()
    });
    assert_eq!(admitted, 100);
}

/// What one limit has to tell does not wait for those that have nothing to tell.
#[test]
fn what_idle_limits_do_not_need_is_left_to_others() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    gateway.change(|table| {
        let routes = &mut table.listeners.get_mut("web").unwrap().routes;
        let by = RateKey::Header("x-key".to_owned());
        let much = 1_000_000;
        routes[0].rate_limit = Some(RateLimit { by, requests: much, per_s: 1, burst: much });
        for index in 0..127 {
            let mut idle = routes[0].clone();
            idle.name = format!("idle{index}");
            idle.when.path = Some(PathMatch::Exact(format!("/{index}")));
            routes.push(idle);
        }
    });
    gateway.gateway.share_rates(true);
    let mut client = gateway.client();
    for key in 0..500 {
        let asked = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Key: {key}\r\n\r\n");
        assert_eq!(statuses(&mut client, &asked, 1), [200]);
    }
    let told = Word::read(&gateway.gateway.tell_rates().unwrap()).unwrap();
    let Word::Admitted(sections) = told else { panic!("{told:?}") };
    // Also what their address admitted of new values.
    assert_eq!(sections.iter().map(|it| it.1.len()).collect::<Vec<_>>(), [516]);
    assert_eq!(gateway.gateway.tell_rates(), None);
}

#[test]
fn gateways_count_together() {
    let instance = Instance::says(FINE);
    let start = || gateway(&instance, RateKey::ADDRESS, 3);
    let (one, two) = (start(), start());
    // There is nobody to tell.
    assert_eq!(statuses(&mut one.client(), GET, 1), [200]);
    assert_eq!(one.gateway.tell_rates(), None);
    one.gateway.share_rates(true);
    assert_eq!(statuses(&mut one.client(), GET, 1), [200]);
    let word = one.gateway.tell_rates().unwrap();
    assert!(one.gateway.tell_rates().is_none(), "it was told");
    two.gateway.absorb_rates(&word).unwrap();
    assert_eq!(statuses(&mut two.client(), GET, 3), [200, 200, 429]);
    // One that begins takes over what is owed; of a client that it doesn't know it knows nothing.
    let three = start();
    for word in two.gateway.rate_debts() {
        three.gateway.absorb_rates(&word).unwrap();
    }
    assert_eq!(statuses(&mut three.client(), GET, 1), [429]);
    let mut other = client_from([127, 0, 0, 2], three.address);
    assert_eq!(statuses(&mut other, GET, 1), [200]);
    // Gateways of another cluster have other hashes.
    let secret = |config: &mut everhold_gateway::Config| config.secret = [7; 32];
    let foreign = Fixture::set_up(&[instance.address], |_| {}, secret);
    foreign.change(limited(RateKey::ADDRESS, 3));
    foreign.gateway.absorb_rates(&two.gateway.rate_debts()[0]).unwrap();
    assert_eq!(statuses(&mut foreign.client(), GET, 1), [200]);
    for bad in
        [&b""[..], b"\x01", b"\x01\x01\x01\x00", b"\x09\x01\x00\x00", &word[..word.len() - 1]]
    {
        assert!(two.gateway.absorb_rates(bad).is_err());
    }
}
