//! What a new table does to open connections.

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::Instant;

use everhold_gateway::Limits;

use crate::fixture::{
    A_WHILE, Fake, Fixture, Mode, echoes, ends, eventually, facts, name, stays_silent,
};

#[test]
fn sessions_with_the_old_primary_are_cut_and_new_ones_go_to_the_new() {
    let (a, b) = (Fake::start("a", Mode::Echo), Fake::start("b", Mode::Echo));
    let mut fixture = Fixture::start(Limits::default(), facts(5, Some(&a), &[]));
    let mut sessions: Vec<_> = (0..8).map(|_| fixture.open("write")).collect();
    for session in &mut sessions {
        assert_eq!(name(session), "a");
    }
    fixture.publish(facts(6, Some(&b), &[]));
    for session in &mut sessions {
        assert!(ends(session));
    }
    let mut next = fixture.open("write");
    assert_eq!(name(&mut next), "b");
    eventually("only the new one is left", || fixture.listener("write").connections == 1);
    let counted = fixture.listener("write");
    assert_eq!((counted.accepted, counted.cut, counted.refused), (9, 8, 0));
    assert_eq!(fixture.gateway.snapshot().backends.get("b"), Some(&1));
}

#[test]
fn a_higher_epoch_without_a_primary_cuts_too() {
    let a = Fake::start("a", Mode::Echo);
    let mut fixture = Fixture::start(Limits::default(), facts(5, Some(&a), &[]));
    let mut session = fixture.open("write");
    assert_eq!(name(&mut session), "a");
    fixture.publish(facts(6, None, &[]));
    assert!(ends(&mut session));
}

#[test]
fn a_frozen_primary_gets_nothing_more_of_a_cut_session() {
    let (a, b) = (Fake::start("a", Mode::Frozen), Fake::start("b", Mode::Echo));
    let mut fixture = Fixture::start(Limits::default(), facts(5, Some(&a), &[]));
    let mut session = fixture.open("write");
    // Until every buffer on the way is full.
    session.set_write_timeout(Some(A_WHILE)).unwrap();
    let mut sent = 0;
    while let Ok(written) = session.write(&[7; 64 * 1024]) {
        sent += written;
    }
    fixture.publish(facts(6, Some(&b), &[]));
    assert!(ends(&mut session));
    eventually("the gateway holds nothing of it", || fixture.listener("write").connections == 0);

    // It wakes up: it must see a reset, not the rest of the session and a polite end.
    let mut received = 0;
    let mut frozen = a.connections().remove(0);
    let mut buffer = vec![0; 64 * 1024];
    let end = loop {
        match frozen.read(&mut buffer) {
            Ok(0) => break None,
            Ok(read) => received += read,
            Err(error) => break Some(error.kind()),
        }
    };
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
    assert!(received < sent, "{received} of {sent} bytes arrived after the cut");
}

#[test]
fn sessions_stay_while_nobody_else_can_lead() {
    let a = Fake::start("a", Mode::Echo);
    let mut fixture = Fixture::start(Limits::default(), facts(5, Some(&a), &[]));
    let mut session = fixture.open("write");
    assert_eq!(name(&mut session), "a");
    // Not named for a moment at the same epoch; then the leader takes a higher one for itself.
    for (epoch, primary) in [(5, None), (5, Some(&a)), (7, Some(&a))] {
        fixture.publish(facts(epoch, primary, &[]));
        assert!(stays_silent(&mut session) && echoes(&mut session), "epoch {epoch}");
    }
}

#[test]
fn readers_are_spread_over_the_standbys() {
    let fakes = ["a", "b", "c"].map(|name| Fake::start(name, Mode::Echo));
    let [a, b, c] = &fakes;
    let fixture = Fixture::start(Limits::default(), facts(5, Some(a), &[b, c]));
    let open = || {
        let mut session = fixture.open("read");
        (name(&mut session), session)
    };
    let mut sessions: Vec<_> = (0..6).map(|_| open()).collect();
    sessions.sort_by(|one, other| one.0.cmp(&other.0));
    let names = |sessions: &[(String, _)]| sessions.iter().map(|s| s.0.clone()).collect::<String>();
    assert_eq!(names(&sessions), "bbbccc");
    // Two of c's end: the next two go there, whoever's turn it is.
    sessions.truncate(4);
    eventually("they are gone", || fixture.listener("read").connections == 4);
    let next: Vec<_> = (0..2).map(|_| open()).collect();
    assert_eq!(names(&next), "cc");
}

#[test]
fn a_reader_has_a_grace_when_its_standby_lags() {
    let fakes = ["a", "b", "c"].map(|name| Fake::start(name, Mode::Echo));
    let [a, b, c] = &fakes;
    let limits = Limits { lag_grace: 2 * A_WHILE, ..Limits::default() };
    let mut fixture = Fixture::start(limits, facts(5, Some(a), &[b]));
    let mut session = fixture.open("read");
    assert_eq!(name(&mut session), "b");

    // Away and back within the grace.
    fixture.publish(facts(5, Some(a), &[c]));
    assert!(echoes(&mut session));
    fixture.publish(facts(5, Some(a), &[b, c]));
    thread::sleep(3 * A_WHILE);
    assert!(echoes(&mut session), "it came back in time");

    // Away for good; further tables do not put the end off.
    fixture.publish(facts(5, Some(a), &[c]));
    assert!(echoes(&mut session));
    thread::sleep(A_WHILE);
    fixture.publish(facts(5, Some(a), &[]));
    let cut = Instant::now();
    assert!(ends(&mut session));
    assert!(cut.elapsed() < 2 * A_WHILE, "a further table put the end off");
}

#[test]
fn a_reader_of_a_deposed_primary_is_cut_at_once() {
    let (a, b) = (Fake::start("a", Mode::Echo), Fake::start("b", Mode::Echo));
    // A grace that would outlast the test.
    let limits = Limits { lag_grace: 100 * A_WHILE, ..Limits::default() };
    let mut fixture = Fixture::start(limits, facts(5, Some(&a), &[]));
    let mut session = fixture.open("read");
    assert_eq!(name(&mut session), "a", "the primary, since there is no standby");
    fixture.publish(facts(5, Some(&a), &[&b]));
    assert!(echoes(&mut session), "the primary is never too old");
    fixture.publish(facts(6, Some(&b), &[]));
    assert!(ends(&mut session));
}

/// A gateway that goes still cuts, and still places those that wait; it opens nothing any more.
#[test]
fn a_gateway_that_leaves_hears_of_every_table() {
    let (a, b) = (Fake::start("a", Mode::Echo), Fake::start("b", Mode::Echo));
    let mut fixture = Fixture::start(Limits::default(), facts(5, Some(&a), &[]));
    let (mut read, mut write) = (fixture.open("read"), fixture.open("write"));
    assert_eq!((name(&mut read), name(&mut write)), ("a".to_owned(), "a".to_owned()));
    fixture.publish(facts(6, None, &[]));
    assert!(ends(&mut write) && ends(&mut read));
    let mut waits = fixture.open("write");
    eventually("it waits", || fixture.listener("write").waiting == 1);
    fixture.gateway.leave();
    fixture.publish(facts(7, Some(&a), &[]));
    assert_eq!(name(&mut waits), "a");
    assert!(echoes(&mut waits));
    fixture.publish(facts(8, Some(&b), &[]));
    assert!(ends(&mut waits));
    eventually("nobody is left", || fixture.gateway.connections() == 0);
    assert!(fixture.gateway.sockets().unwrap().is_empty());
}
