//! A connection that changes its protocol, as WebSockets do.

use super::fixture::{FINE, Fixture, Instance};
use std::net::Shutdown;

const ASKS: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCHES: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An instance may only change to what was asked for.
#[test]
fn a_protocol_that_was_not_asked_for_is_no_answer() {
    #[rustfmt::skip]
    let cases: &[(&str, &str, u16)] = &[
        // asked, said
        ("websocket",        "Upgrade: websocket\r\n",                       101),
        ("websocket, x/2",   "Upgrade: X/2\r\n",                             101),
        ("websocket",        "Upgrade: x/2\r\n",                             502),
        ("websocket",        "Upgrade: websocket, x/2\r\n",                  502),
        ("websocket",        "Upgrade: websocket\r\nUpgrade: x/2\r\n",      502),
        ("websocket",        "",                                             502),
    ];
    for (asked, said, status) in cases {
        let instance = Instance::says(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{said}\r\n"
        ));
        let answer = Fixture::before(&instance).ask(&format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {asked}\r\n\r\n"
        ));
        assert_eq!(answer.status, *status, "{asked}: {said:?}");
    }
}

/// One frame with that text, masked as a client's has to be.
fn frame(text: &str, masked: bool) -> Vec<u8> {
    let mut frame = vec![0x81, u8::from(masked) << 7 | u8::try_from(text.len()).unwrap()];
    let mask = if masked { *b"mask" } else { [0; 4] };
    frame.extend(&mask[..if masked { 4 } else { 0 }]);
    frame.extend(text.bytes().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Answers each frame with its text backwards, the close with a close.
fn chat() -> Instance {
    Instance::start(|line| {
        let request = line.request().unwrap();
        assert_eq!(request.values("upgrade"), ["websocket"]);
        assert_eq!(request.values("connection"), ["Upgrade"]);
        // The first frame right behind the head.
        line.say([SWITCHES.as_bytes(), &frame("hello", false)].concat());
        while let Some(head) = line.exactly(2) {
            let Some(rest) = line.exactly(4 + usize::from(head[1] & 0x7f)) else { return };
            let (mask, text) = rest.split_at(4);
            let plain = text.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
            let plain: String = plain.map(char::from).collect();
            let text: String = plain.chars().rev().collect();
            line.say(frame(&text, false));
        }
        line.say("bye");
    })
}

#[test]
fn frames_go_both_ways_and_each_side_may_end_first() {
    let instance = chat();
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    // Whoever can't wait is not punished.
    client.say([ASKS.as_bytes(), &frame("abc", true)].concat());
    let answer = client.answer();
    assert_eq!(answer.status, 101);
    assert_eq!(answer.values("upgrade"), ["websocket"]);
    assert_eq!(answer.values("connection"), ["Upgrade"]);
    assert_eq!(answer.values("sec-websocket-accept"), ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]);
    assert_eq!(client.exactly(7).unwrap(), frame("hello", false));
    assert_eq!(client.exactly(5).unwrap(), frame("cba", false));
    for index in 0..1_000 {
        let text = format!("{index:04}");
        client.say(frame(&text, true));
        let back: String = text.chars().rev().collect();
        assert_eq!(client.exactly(6).unwrap(), frame(&back, false));
    }
    assert!(client.stays_silent());
    client.socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.exactly(3).unwrap(), b"bye", "its end was passed on, the other side goes on");
    assert!(client.ends());
}

#[test]
fn bytes_in_a_tunnel_are_no_requests() {
    let instance = Instance::echoes_after(SWITCHES);
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    client.say(ASKS);
    assert_eq!(client.answer().status, 101);
    let bytes =
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n\0\xff\r\n";
    for _ in 0..100 {
        client.say(bytes);
    }
    assert_eq!(client.exactly(bytes.len() * 100).unwrap(), bytes.repeat(100));
    assert_eq!(instance.seen().len(), 1);
}

/// As `docker attach` and `kubectl exec` ask.
#[test]
fn a_body_of_no_length_is_in_nobodys_way() {
    const ASKS: &str =
        "POST /attach HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n";
    let instance = Instance::echoes_after(
        "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
    );
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    client.say(format!("{ASKS}Content-Length: 0\r\n\r\nhello"));
    assert_eq!(client.answer().status, 101);
    assert_eq!(client.exactly(5).unwrap(), b"hello");
    let seen = instance.seen().pop().unwrap();
    assert_eq!((seen.values("upgrade"), seen.body.len()), (vec!["tcp"], 0));
    // One that has something between its head and the other protocol asks for none.
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    let bodies = ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"];
    for body in bodies {
        assert_eq!(gateway.ask(&[ASKS, body].concat()).status, 200);
        assert_eq!(instance.seen().pop().unwrap().values("upgrade"), [] as [&str; 0]);
    }
}

/// An instance that wants to stay with HTTP does.
#[test]
fn an_upgrade_that_is_not_taken_changes_nothing() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    for _ in 0..3 {
        client.say(ASKS);
        assert_eq!(client.answer().text(), "ok");
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer().text(), "ok");
    }
}

/// Two sides that believe in different protocols would smuggle.
#[test]
fn an_upgrade_that_nobody_asked_for_is_502() {
    let asks = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ];
    for ask in asks {
        let instance = Instance::says(SWITCHES);
        let answer = Fixture::before(&instance).ask(ask);
        assert!(answer.is_own() && answer.status == 502, "{ask:?}: {answer:?}");
    }
}
