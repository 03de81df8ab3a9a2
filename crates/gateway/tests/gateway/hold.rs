//! Connections for which there is no backend yet.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use everhold_core::route::{Instance, ServiceFacts};
use everhold_gateway::{Limits, ListenerState};

use crate::fixture::{
    A_WHILE, BlackHole, Fake, Fixture, Mode, PATIENCE, SSL_REQUEST, STARTUP, echoes, ends,
    error_response, eventually, facts, name, stays_silent,
};

#[test]
fn a_connection_waits_until_a_table_names_a_primary() {
    let a = Fake::start("a", Mode::Echo);
    let mut fixture = Fixture::start(Limits::default(), facts(5, None, &[]));
    let mut client = fixture.open("write");
    eventually("it is counted as waiting", || fixture.listener("write").waiting == 1);
    assert_eq!(fixture.listener("write").state, ListenerState::Waiting);
    assert!(stays_silent(&mut client));

    fixture.publish(facts(6, Some(&a), &[]));
    assert_eq!(name(&mut client), "a");
    assert!(echoes(&mut client));
    let listener = fixture.listener("write");
    assert_eq!((listener.state, listener.waiting), (ListenerState::Open, 0));
    assert_eq!((listener.connections, listener.to), (1, vec!["a".to_owned()]));
    assert_eq!(a.first_packets.lock().unwrap()[..], [STARTUP.to_vec()]);
}

#[test]
fn a_primary_that_refuses_is_tried_again_without_a_new_table() {
    // Bound, so that nobody else takes the port, but it refuses until it listens.
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    let primary = Some(Instance { name: "a".to_owned(), address });
    let facts = ServiceFacts { epoch: 5, primary, standbys: Vec::new(), all: vec![address] };
    let fixture = Fixture::start(Limits::default(), facts);
    let mut clients: Vec<_> = (0..5).map(|_| fixture.open("write")).collect();
    eventually("all wait", || fixture.listener("write").waiting == 5);
    assert!(stays_silent(&mut clients[0]));

    rustix::net::listen(&socket, 16).unwrap();
    let _a = Fake::start_on("a", Mode::Echo, TcpListener::from(socket));
    for client in &mut clients {
        assert_eq!(name(client), "a");
    }
}

#[test]
fn a_connect_without_an_answer_is_given_up_when_the_table_changes() {
    let hole = BlackHole::open();
    let b = Fake::start("b", Mode::Echo);
    let primary = Some(Instance { name: "a".to_owned(), address: hole.address });
    let first = ServiceFacts { epoch: 5, primary, standbys: Vec::new(), all: Vec::new() };
    let limits = Limits { connect_max: 2 * PATIENCE, ..Limits::default() };
    let mut fixture = Fixture::start(limits, first);
    let mut client = fixture.open("write");
    assert!(stays_silent(&mut client));
    fixture.publish(facts(6, Some(&b), &[]));
    assert_eq!(name(&mut client), "b");
}

#[test]
fn a_connect_without_an_answer_is_bounded() {
    let hole = BlackHole::open();
    let primary = Some(Instance { name: "a".to_owned(), address: hole.address });
    let first = ServiceFacts { epoch: 5, primary, standbys: Vec::new(), all: Vec::new() };
    let limits = Limits { connect_max: A_WHILE, ..Limits::default() };
    let fixture = Fixture::start(limits, first);
    let _client = fixture.open("write");
    eventually("it gives up and waits", || fixture.listener("write").waiting == 1);
}

#[test]
fn a_connection_that_waited_too_long_is_told_why() {
    let limits = Limits { wait_max: A_WHILE, ..Limits::default() };
    let fixture = Fixture::start(limits, facts(5, None, &[]));
    let started = Instant::now();
    let mut client = fixture.open("write");
    // Unread when the gateway closes: must not turn the answer into a reset.
    client.write_all(&[0; 64 * 1024]).unwrap();
    let fields = error_response(&mut client);
    assert!(started.elapsed() >= A_WHILE);
    assert_eq!(fields[&'S'], "FATAL");
    assert_eq!(fields[&'C'], "57P03");
    assert!(fields[&'M'].contains("service \"main\""), "{fields:?}");
    assert!(fields[&'H'].contains("everhold status"), "{fields:?}");
    eventually("its place is free", || fixture.listener("write").waiting == 0);
}

#[test]
fn a_client_that_asks_for_tls_is_told_why_too() {
    let limits = Limits { wait_max: A_WHILE, ..Limits::default() };
    let fixture = Fixture::start(limits, facts(5, None, &[]));
    let mut client = fixture.connect("write");
    client.write_all(&SSL_REQUEST).unwrap();
    let mut answer = [0];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"N");
    client.write_all(&STARTUP).unwrap();
    assert_eq!(error_response(&mut client)[&'C'], "57P03");
}

#[test]
fn one_more_than_may_wait_is_refused_and_told_why() {
    let limits = Limits { waiting_max: 2, ..Limits::default() };
    let a = Fake::start("a", Mode::Echo);
    let mut fixture = Fixture::start(limits, facts(5, None, &[]));
    let mut waiting: Vec<_> = (0..2).map(|_| fixture.open("write")).collect();
    eventually("both wait", || fixture.listener("write").waiting == 2);
    let fields: BTreeMap<char, String> = error_response(&mut fixture.open("write"));
    assert_eq!(fields[&'C'], "53300");
    assert!(fields[&'M'].contains("2 connections"), "{fields:?}");
    assert_eq!(fixture.listener("write").refused, 1);

    fixture.publish(facts(6, Some(&a), &[]));
    for client in &mut waiting {
        assert_eq!(name(client), "a");
    }
}

#[test]
fn a_flood_of_silent_clients_is_bounded() {
    let limits = Limits { waiting_max: 2, refusing_max: 1, ..Limits::default() };
    let a = Fake::start("a", Mode::Echo);
    let fixture = Fixture::start(limits, facts(5, Some(&a), &[]));
    let mut silent: Vec<_> = (0..3).map(|_| fixture.connect("write")).collect();
    assert!(ends(&mut fixture.connect("write")));
    for client in &mut silent {
        client.write_all(&STARTUP).unwrap();
        assert_eq!(name(client), "a", "those within the bound are served");
    }
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let limits = Limits { waiting_max: 1, ..Limits::default() };
    let fixture = Fixture::start(limits, facts(5, None, &[]));
    let client = fixture.open("write");
    eventually("it waits", || fixture.listener("write").waiting == 1);
    drop(client);
    eventually("its place is free", || fixture.listener("write").waiting == 0);
    let mut next = fixture.open("write");
    assert!(stays_silent(&mut next), "the next one waits instead of being refused");
}

#[test]
fn a_silent_client_does_not_hold_its_place() {
    let a = Fake::start("a", Mode::Echo);
    let limits = Limits { first_packet_max: A_WHILE, ..Limits::default() };
    let fixture = Fixture::start(limits, facts(5, Some(&a), &[]));
    let mut silent = fixture.connect("write");
    silent.write_all(&STARTUP[..7]).unwrap();
    assert!(ends(&mut silent));
    assert!(a.first_packets.lock().unwrap().is_empty());
    assert_eq!(name(&mut fixture.open("write")), "a", "others are served");
}

#[test]
fn what_a_waiting_client_sends_early_is_carried_untouched() {
    let a = Fake::start("a", Mode::Echo);
    let mut fixture = Fixture::start(Limits::default(), facts(5, None, &[]));
    let mut client = fixture.connect("write");
    let mut packet = 20_000_u32.to_be_bytes().to_vec();
    packet.extend_from_slice(&196_608_u32.to_be_bytes());
    packet.extend((8..20_000_u32).map(|byte| byte as u8));
    client.write_all(&packet).unwrap();
    eventually("it waits", || fixture.listener("write").waiting == 1);
    std::thread::sleep(Duration::from_millis(50));
    fixture.publish(facts(6, Some(&a), &[]));
    assert_eq!(name(&mut client), "a");
    let first = a.first_packets.lock().unwrap()[0].clone();
    let mut echoed = vec![0; packet.len() - first.len()];
    client.read_exact(&mut echoed).unwrap();
    assert!([first, echoed].concat() == packet);
}
