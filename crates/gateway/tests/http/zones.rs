//! The own zone first, and all others when it fails.

use super::fixture::{Answer, FINE, Fixture, Instance, nobody};
use everhold_core::spec::Affinity;
use everhold_gateway::Config;
use std::net::SocketAddr;
use std::sync::Arc;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const ZONES: [&str; 3] = ["x", "y", "z"];

/// The gateway of that zone; each zone has one, and one instance.
fn gateway(here: &str, addresses: &[SocketAddr]) -> Fixture {
    let configure = |config: &mut Config| {
        let table = Arc::make_mut(&mut config.table);
        table.http.zone = Some(here.to_owned());
        table.http.gateways = ZONES.map(|zone| (zone.to_owned(), 1)).into();
    };
    Fixture::set_up(
        addresses,
        |service| {
            service.affinity = Some(Affinity::Cookie("at".to_owned()));
            for (backend, zone) in service.backends.iter_mut().zip(ZONES) {
                backend.zone = Some(zone.to_owned());
            }
        },
        configure,
    )
}

fn cookie(answer: &Answer) -> String {
    let set = answer.values("set-cookie").first().copied().unwrap_or_default();
    set.split(';').next().unwrap_or_default().to_owned()
}

#[test]
fn a_request_stays_in_its_zone_unless_that_fails() {
    let instances = ZONES.map(|_| Instance::says(FINE));
    let mut addresses = instances.each_ref().map(|it| it.address);
    let here = gateway("x", &addresses);
    (0..8).for_each(|_| assert_eq!(here.ask(GET).status, 200));
    assert_eq!(instances.each_ref().map(|it| it.seen().len()), [8, 0, 0]);

    addresses[0] = nobody();
    let alone = gateway("x", &addresses);
    (0..8).for_each(|_| assert_eq!(alone.ask(GET).status, 200));
}

#[test]
fn a_session_is_where_it_is_whichever_gateway_is_asked() {
    let instances = ZONES.map(|_| Instance::says(FINE));
    let addresses = instances.each_ref().map(|it| it.address);
    let begun = cookie(&gateway("y", &addresses).ask(GET));
    assert!(begun.starts_with("at="), "{begun:?}");
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {begun}\r\n\r\n");
    let elsewhere = gateway("x", &addresses);
    (0..4).for_each(|_| assert_eq!(cookie(&elsewhere.ask(&request)), ""));
    assert_eq!(instances.each_ref().map(|it| it.seen().len()), [0, 5, 0]);
}
