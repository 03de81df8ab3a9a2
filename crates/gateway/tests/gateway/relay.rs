//! Bytes between two connected sides.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use everhold_gateway::Limits;

use crate::fixture::{Fake, Fixture, Mode, ends, eventually, facts, name};

const MANY: usize = 24 * 1024 * 1024;

fn byte(position: usize) -> u8 {
    (position ^ (position >> 8) ^ (position >> 16)) as u8
}

#[test]
fn many_bytes_arrive_in_order_at_a_slow_reader_and_are_counted() {
    let a = Fake::start("a", Mode::Echo);
    let fixture = Fixture::start(Limits::default(), facts(5, Some(&a), &[]));
    let mut client = fixture.open("write");
    assert_eq!(name(&mut client), "a");
    let mut sender = client.try_clone().unwrap();
    let sending = thread::spawn(move || {
        let bytes: Vec<u8> = (0..MANY).map(byte).collect();
        sender.write_all(&bytes).unwrap();
    });
    // Slow at first, so that every buffer on the way fills up.
    thread::sleep(Duration::from_millis(300));
    let mut echoed = vec![0; MANY];
    client.read_exact(&mut echoed).unwrap();
    sending.join().unwrap();
    assert!(echoed.iter().enumerate().all(|(position, b)| *b == byte(position)));
    let listener = fixture.listener("write");
    assert_eq!(listener.bytes_in, (MANY + 8) as u64);
    assert_eq!(listener.bytes_out, (MANY + 2) as u64);
}

#[test]
fn a_client_that_ends_its_side_still_gets_the_answer() {
    let a = Fake::start("a", Mode::Echo);
    let fixture = Fixture::start(Limits::default(), facts(5, Some(&a), &[]));
    let mut client = fixture.open("write");
    assert_eq!(name(&mut client), "a");
    let question = vec![42; 1024 * 1024];
    let mut sender = client.try_clone().unwrap();
    let sending = {
        let question = question.clone();
        thread::spawn(move || {
            sender.write_all(&question).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        })
    };
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    sending.join().unwrap();
    assert!(answer == question);
    eventually("nothing is left of it", || fixture.listener("write").connections == 0);
}

#[test]
fn a_server_that_ends_takes_a_client_along_that_does_not_notice() {
    let a = Fake::start("a", Mode::Close);
    let fixture = Fixture::start(Limits::default(), facts(5, Some(&a), &[]));
    let mut client = fixture.open("write");
    assert_eq!(name(&mut client), "a");
    eventually("nothing is left of it", || fixture.listener("write").connections == 0);
    assert!(ends(&mut client));
}
