//! Opening, keeping and closing listeners.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use everhold_core::route::{RouteTable, build};
use everhold_core::spec::{ListenerSpec, Role};
use everhold_gateway::{Gateway, GatewayError, Limits};

use crate::fixture::{Fake, Mode, client, config, echoes, ends, facts, name, spec};

fn table(specs: &[(&str, ListenerSpec)], a: &Fake, previous: Option<&RouteTable>) -> RouteTable {
    let specs = specs.iter().map(|(name, spec)| ((*name).to_owned(), spec.clone())).collect();
    let services = BTreeMap::from([("main".to_owned(), facts(5, Some(a), &[]))]);
    build(&specs, &services, previous)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_port_that_is_taken_is_named_and_nothing_is_served() {
    let a = Fake::start("a", Mode::Echo);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (free, taken_port) = (free_port(), taken.local_addr().unwrap().port());
    let specs = [("first", spec(free, Role::Primary)), ("second", spec(taken_port, Role::Primary))];
    let error = Gateway::start(config(&table(&specs, &a, None), Limits::default())).err();
    let Some(GatewayError::Listen { listener, address, source }) = error else {
        panic!("{error:?}");
    };
    assert_eq!((listener.as_str(), address), ("second", taken.local_addr().unwrap()));
    assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
    assert!(TcpStream::connect(("127.0.0.1", free)).is_err(), "the first is not served either");
}

#[test]
fn two_gateways_never_share_a_port() {
    let a = Fake::start("a", Mode::Echo);
    let first = Gateway::start(config(
        &table(&[("w", spec(0, Role::Primary))], &a, None),
        Limits::default(),
    ))
    .unwrap();
    let port = first.snapshot().listeners["w"].bind.port();
    let second = table(&[("w", spec(port, Role::Primary))], &a, None);
    let error = Gateway::start(config(&second, Limits::default())).err();
    assert!(matches!(error, Some(GatewayError::Listen { .. })), "{error:?}");
}

#[test]
fn listeners_come_and_go_with_the_table_while_others_are_kept() {
    let a = Fake::start("a", Mode::Echo);
    let stays = ("stays", spec(0, Role::Primary));
    let goes = ("goes", spec(0, Role::Primary));
    let first = table(&[stays.clone(), goes], &a, None);
    let gateway = Gateway::start(config(&first, Limits::default())).unwrap();
    let before = gateway.snapshot();
    let [kept, closed] = ["stays", "goes"].map(|name| before.listeners[name].bind);
    let (mut on_kept, mut on_closed) = (client(kept), client(closed));
    for session in [&mut on_kept, &mut on_closed] {
        use std::io::Write;
        session.write_all(&crate::fixture::STARTUP).unwrap();
        assert_eq!(name(session), "a");
    }

    let second = table(&[stays, ("comes", spec(0, Role::Primary))], &a, Some(&first));
    gateway.set_table(Arc::new(second.clone())).unwrap();
    assert!(ends(&mut on_closed), "sessions of a listener that is gone are cut");
    assert!(echoes(&mut on_kept));
    let after = gateway.snapshot();
    assert_eq!(after.listeners["stays"].bind, kept);
    assert_eq!(after.table_revision, second.revision);
    client(after.listeners["comes"].bind);
    crate::fixture::eventually("its port is closed", || TcpStream::connect(closed).is_err());
}

#[test]
fn a_table_is_in_force_even_if_a_new_listener_cannot_be_opened() {
    let (a, b) = (Fake::start("a", Mode::Echo), Fake::start("b", Mode::Echo));
    let write = ("write", spec(0, Role::Primary));
    let first = table(std::slice::from_ref(&write), &a, None);
    let gateway = Gateway::start(config(&first, Limits::default())).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let second = table(&[write, ("new", spec(port, Role::Primary))], &b, Some(&first));
    assert!(gateway.set_table(Arc::new(second.clone())).is_err());
    assert_eq!(gateway.snapshot().listeners["write"].to, ["b"]);

    drop(taken);
    gateway.set_table(Arc::new(second)).unwrap();
    client(gateway.snapshot().listeners["new"].bind);
}

/// From one address to all of them and back: the old socket is in the way of the new one.
#[test]
fn a_listener_moves_to_all_addresses_and_back() {
    let a = Fake::start("a", Mode::Echo);
    let port = free_port();
    let at = |ip: [u8; 4]| {
        let spec = spec(port, Role::Primary);
        ListenerSpec { bind: (ip, port).into(), ..spec }
    };
    let mut last = table(&[("w", at([127, 0, 0, 1]))], &a, None);
    let gateway = Gateway::start(config(&last, Limits::default())).unwrap();
    for ip in [[0, 0, 0, 0], [127, 0, 0, 1]] {
        let next = table(&[("w", at(ip))], &a, Some(&last));
        gateway.set_table(Arc::new(next.clone())).unwrap();
        assert_eq!(gateway.snapshot().listeners["w"].bind, (ip, port).into());
        client(([127, 0, 0, 1], port).into());
        last = next;
    }
}

#[test]
fn a_renamed_listener_keeps_its_socket() {
    let a = Fake::start("a", Mode::Echo);
    let port = free_port();
    let first = table(&[("old", spec(port, Role::Primary))], &a, None);
    let gateway = Gateway::start(config(&first, Limits::default())).unwrap();
    let second = table(&[("new", spec(port, Role::Primary))], &a, Some(&first));
    gateway.set_table(Arc::new(second)).unwrap();
    use std::io::Write;
    let mut session = client(gateway.snapshot().listeners["new"].bind);
    session.write_all(&crate::fixture::STARTUP).unwrap();
    assert_eq!(name(&mut session), "a");
}

#[test]
fn a_port_that_is_taken_keeps_no_other_listener_from_its_own() {
    let a = Fake::start("a", Mode::Echo);
    let [from, other] = [free_port(), free_port()];
    let first = table(&[("moves", spec(from, Role::Primary))], &a, None);
    let gateway = Gateway::start(config(&first, Limits::default())).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = taken.local_addr().unwrap().port();
    let specs = [("moves", spec(to, Role::Primary)), ("new", spec(other, Role::Primary))];
    let second = Arc::new(table(&specs, &a, Some(&first)));
    assert!(gateway.set_table(second.clone()).is_err());
    let ports = || {
        let listeners = gateway.snapshot().listeners;
        ["moves", "new"].map(|name| listeners[name].bind.port())
    };
    assert_eq!(ports(), [from, other], "the one is where it was, the other is open");
    for port in [from, other] {
        client(([127, 0, 0, 1], port).into());
    }
    drop(taken);
    gateway.set_table(second).unwrap();
    assert_eq!(ports(), [to, other]);
    crate::fixture::eventually("its old port is closed", || {
        TcpStream::connect(("127.0.0.1", from)).is_err()
    });

    // Who succeeds it takes what there is, and opens the rest when it can.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let specs = [("moves", spec(to, Role::Primary)), ("more", spec(port, Role::Primary))];
    let third = table(&specs, &a, None);
    let sockets = gateway.sockets().unwrap();
    let next = Gateway::succeed(config(&third, Limits::default()), sockets).unwrap();
    gateway.leave();
    next.accept().unwrap();
    client(([127, 0, 0, 1], to).into());
    drop(taken);
    next.set_table(Arc::new(third)).unwrap();
    client(([127, 0, 0, 1], port).into());
}
