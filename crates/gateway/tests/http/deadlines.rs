//! How long clients wait, and what instances are told of it.

use super::fixture::{A_WHILE, FINE, Fixture, Instance, Seen, eventually};
use super::second::{self, Server, ask, before, connect, request, run};
use http::HeaderMap;
use std::thread::sleep;

const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";
const GRPC: &str = "grpc-timeout";

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

/// Milliseconds until nobody waits for the head of the answer, and microseconds until nobody does for
/// all of it.
fn told(seen: &Seen) -> (u64, Option<u64>) {
    let [expected] = seen.values(EXPECTED)[..] else { panic!("{seen:?}") };
    let grpc = match seen.values(GRPC)[..] {
        [] => None,
        [one] => Some(one.strip_suffix('u').unwrap().parse().unwrap()),
        _ => panic!("{seen:?}"),
    };
    (expected.parse().unwrap(), grpc)
}

#[test]
fn what_a_client_says_bounds_what_an_instance_is_told() {
    #[rustfmt::skip]
    let cases: &[(&str, u64, Option<u64>)] = &[
        // The service's own.
        ("",                                                             10_000, None),
        ("X-Envoy-Expected-Rq-Timeout-Ms: 7000\r\n",                      7_000, None),
        ("X-Envoy-Expected-Rq-Timeout-Ms: 70000\r\n",                    10_000, None),
        ("X-Envoy-Expected-Rq-Timeout-Ms: 0\r\n",                        10_000, None),
        ("grpc-timeout: 5S\r\n",                                          5_000, Some(5_000_000)),
        // A call may go on after its answer has begun.
        ("Grpc-Timeout: 1M\r\n",                                         10_000, Some(60_000_000)),
        ("grpc-timeout: 9S\r\ngrpc-timeout: 8000m\r\n",                   8_000, Some(8_000_000)),
        ("grpc-timeout: 9S\r\nx-envoy-expected-rq-timeout-ms: 6000\r\n",  6_000, Some(9_000_000)),
        ("Connection: grpc-timeout\r\ngrpc-timeout: 5S\r\n",              5_000, Some(5_000_000)),
        ("grpc_timeout: 5S\r\nx_envoy_expected_rq_timeout_ms: 5\r\n",    10_000, None),
    ];
    let (instance, server) = (Instance::says(FINE), Server::start(100, second::echo));
    let (first, second) = (Fixture::before(&instance), before(&[server.address]));
    for (fields, expected, grpc) in cases {
        // As it came from the wire to the instance nearly nothing of it is gone.
        let is_near = |told: u64, most: u64| told <= most && told > most / 2;
        assert_eq!(first.ask(&get(fields)).status, 200, "{fields:?}");
        let (expected_told, grpc_told) = told(&instance.seen().pop().unwrap());
        assert!(is_near(expected_told, *expected), "{fields:?}: {expected_told}");
        assert_eq!(grpc_told.is_some(), grpc.is_some(), "{fields:?}");
        assert!(grpc_told.is_none_or(|told| is_near(told, grpc.unwrap())), "{grpc_told:?}");

        assert_eq!(second.ask(&get(fields)).status, 200, "{fields:?}");
        let asked = server.asked.lock().unwrap().pop().unwrap().1;
        let ms = asked[EXPECTED].to_str().unwrap().parse().unwrap();
        assert!(is_near(ms, *expected), "{fields:?}: {ms}");
        assert_eq!(asked.get_all(GRPC).iter().count(), usize::from(grpc.is_some()), "{fields:?}");
    }
}

#[test]
fn what_a_client_of_http2_says_is_passed_on_as_well() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    let call = |timeout: &str| {
        let mut call = request("POST", "/shop.Cart/Add");
        call.headers_mut().insert(GRPC, timeout.parse().unwrap());
        run(async {
            let send = connect(gateway.address).await;
            ask(&send, call, &["hi"], HeaderMap::new()).await.unwrap().status
        })
    };
    assert_eq!(call("5S"), 200);
    let (expected, grpc) = told(&instance.seen().pop().unwrap());
    assert!(expected <= 5_000 && grpc.unwrap() <= 5_000_000, "{expected} {grpc:?}");
    assert_eq!(call("5s"), 400);
    assert_eq!(call("0n"), 504);
    assert_eq!(instance.seen().len(), 1);
}

#[test]
fn a_timeout_that_is_none_is_refused() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    for value in ["", "5", "5s", "S", "-1S", "123456789m", "1S, 2S"] {
        let answer = gateway.ask(&get(&format!("grpc-timeout: {value}\r\n")));
        assert!(answer.is_own() && answer.status == 400, "{value:?}: {answer:?}");
    }
    for value in ["", "1.5", "5s", "-1", "1, 2"] {
        let answer = gateway.ask(&get(&format!("{EXPECTED}: {value}\r\n")));
        assert!(answer.is_own() && answer.status == 400, "{value:?}: {answer:?}");
    }
    assert_eq!(instance.seen(), []);
}

/// Takes requests and answers none.
fn mute() -> Instance {
    Instance::start(|line| while line.request().is_some() {})
}

#[test]
fn nobody_waits_longer_than_the_client() {
    let instance = mute();
    // Longer than a client of these tests has patience.
    let gateway = Fixture::with(&[instance.address], |service| service.timeout_ms = 600_000);
    for fields in ["grpc-timeout: 100m\r\n", "x-envoy-expected-rq-timeout-ms: 100\r\n"] {
        let answer = gateway.ask(&get(fields));
        assert!(answer.is_own() && answer.status == 504, "{answer:?}");
    }
    // Who has no time left is not asked for.
    let before = instance.seen().len();
    assert_eq!(gateway.ask(&get("grpc-timeout: 0m\r\n")).status, 504);
    assert_eq!(instance.seen().len(), before);
}

#[test]
fn a_further_try_is_told_what_is_left() {
    let (silent, good) = (mute(), Instance::says(FINE));
    let gateway = Fixture::with(&[silent.address, good.address], |service| {
        service.timeout_ms = 600_000;
        service.try_timeout_ms = Some(1_000);
    });
    while silent.seen().is_empty() {
        assert_eq!(gateway.ask(&get("grpc-timeout: 60S\r\n")).status, 200);
    }
    let (first, second) = (silent.seen().pop().unwrap(), good.seen().pop().unwrap());
    assert_eq!(first.values("x-request-id"), second.values("x-request-id"));
    let (first, second) = (told(&first), told(&second));
    assert!(first.0 <= 1_000 && second.0 <= 1_000, "the time of one try: {first:?} {second:?}");
    assert!(first.1.unwrap() >= second.1.unwrap() + 900_000, "{first:?} {second:?}");
}

fn ejected(gateway: &Fixture) -> usize {
    let judged = gateway.gateway.judged();
    judged.values().flat_map(|it| it.backends.values()).filter(|it| it.ejected).count()
}

/// Anybody could have all instances taken out.
#[test]
fn a_client_in_a_hurry_says_nothing_of_an_instance() {
    let instances = [mute(), mute(), mute()];
    let addresses: Vec<_> = instances.iter().map(|it| it.address).collect();
    let gateway = Fixture::with(&addresses, |service| service.timeout_ms = 600_000);
    let ask = |fields: &str| assert_eq!(gateway.ask(&get(fields)).status, 504);
    (0..30).for_each(|_| ask("grpc-timeout: 20m\r\n"));
    // As long as the judge takes to hear of it.
    sleep(A_WHILE);
    assert_eq!(ejected(&gateway), 0);
}

/// As an instance does that passes on what it was told: a little less than the service gives.
#[test]
fn an_instance_that_hangs_goes_although_clients_say_how_long_they_wait() {
    let (silent, good) = (mute(), Instance::says(FINE));
    let gateway = Fixture::with(&[silent.address, good.address], |service| {
        service.timeout_ms = 300;
    });
    eventually("it is ejected", || {
        gateway.ask(&get(&format!("{EXPECTED}: 270\r\n")));
        ejected(&gateway) == 1
    });
}

/// Its own time is what an instance is measured by.
#[test]
fn an_instance_that_is_late_by_its_services_time_is_left_alone() {
    let (silent, good) = (mute(), Instance::says(FINE));
    let gateway = Fixture::with(&[silent.address, good.address], |service| {
        service.try_timeout_ms = Some(250);
        service.retries = 1;
    });
    (0..12).for_each(|_| assert_eq!(gateway.ask(&get("grpc-timeout: 5S\r\n")).status, 200));
    eventually("it is ejected", || ejected(&gateway) == 1);
}
