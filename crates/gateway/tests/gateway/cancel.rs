//! Cancel requests.

use std::io::Write;

use everhold_gateway::Limits;

use crate::fixture::{A_WHILE, Fake, Fixture, Mode, ends, eventually, facts};

fn cancel_request() -> Vec<u8> {
    [16_u32, 80_877_102, 4711, 0xC0FF_EE00].map(u32::to_be_bytes).concat()
}

#[test]
fn a_cancel_request_reaches_every_instance_and_then_the_client_is_let_go() {
    let fakes = ["a", "b", "c"].map(|name| Fake::start(name, Mode::Echo));
    let [a, b, c] = &fakes;
    let fixture = Fixture::start(Limits::default(), facts(5, Some(a), &[b, c]));
    for (round, listener) in [(1, "read"), (2, "write")] {
        let mut client = fixture.connect(listener);
        // In two pieces, as a network may deliver it.
        let request = cancel_request();
        client.write_all(&request[..9]).unwrap();
        std::thread::sleep(A_WHILE / 10);
        client.write_all(&request[9..]).unwrap();
        assert!(ends(&mut client));
        for fake in &fakes {
            let seen = fake.first_packets.lock().unwrap();
            assert_eq!(seen.len(), round, "{listener}: {}", fake.name);
            assert_eq!(seen[round - 1], request, "{listener}: {}", fake.name);
        }
    }
}

#[test]
fn a_frozen_instance_does_not_hold_up_a_cancel_request() {
    let (a, b) = (Fake::start("a", Mode::Frozen), Fake::start("b", Mode::Echo));
    let fixture = Fixture::start(Limits::default(), facts(5, Some(&a), &[&b]));
    let mut client = fixture.connect("read");
    client.write_all(&cancel_request()).unwrap();
    eventually("b has it", || !b.first_packets.lock().unwrap().is_empty());
    assert!(ends(&mut client));
}
