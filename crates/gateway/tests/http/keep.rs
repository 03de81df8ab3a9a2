//! Clients' connections: requests one after the other, and how they end.

use super::fixture::{A_WHILE, FINE, Fixture, Instance, PATIENCE, eventually};
use std::net::Shutdown;
use std::thread::sleep;
use std::time::Instant;

/// Answers with the target.
fn echo() -> Instance {
    Instance::start(|line| {
        while let Some(request) = line.request() {
            let target = request.target();
            line.say(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}",
                target.len()
            ));
        }
    })
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let instance = echo();
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    let mut all = String::new();
    for index in 0..200 {
        all += &match index % 4 {
            0 => format!("GET /{index} HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => format!("POST /{index} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
            2 => format!(
                "PUT /{index} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            ),
            // The empty line that some old clients put after a body.
            _ => format!("\r\nDELETE /{index} HTTP/1.1\r\nHost: a\r\n\r\n"),
        };
    }
    client.say(&all);
    for index in 0..200 {
        assert_eq!(client.answer().text(), format!("/{index}"));
    }
    let expected: Vec<String> = (0..200).map(|index| format!("/{index}")).collect();
    assert_eq!(instance.targets(), expected);
    assert!(client.stays_silent());
}

/// What comes before a bad request is answered as ever, what comes after it is nobody's.
#[test]
fn an_error_ends_what_is_pipelined_behind_it() {
    let instance = echo();
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    client.say(
        "HEAD /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost : a\r\n\r\n\
         GET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(client.answer_to("HEAD").status, 200);
    let answer = client.answer();
    // With its body: it is not an answer to HEAD.
    assert!(answer.status == 400 && answer.whole && answer.is_own(), "{answer:?}");
    assert!(client.ends());
    assert_eq!(instance.targets(), ["/1"]);
}

/// An answer of the gateway's own ends nothing if the next request can be found.
#[test]
fn a_request_that_leads_nowhere_does_not_end_the_connection() {
    let instance = echo();
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    for index in 0..3 {
        client.say("GET / HTTP/1.1\r\nHost: elsewhere.org\r\n\r\n");
        assert_eq!(client.answer().status, 503);
        client.say("HEAD / HTTP/1.1\r\nHost: elsewhere.org\r\n\r\n");
        assert_eq!(client.answer_to("HEAD").status, 503);
        client.say(format!("GET /{index} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.answer().text(), format!("/{index}"));
    }
}

#[test]
fn connections_end_when_they_are_told_to() {
    let instance = echo();
    let gateway = Fixture::before(&instance);
    #[rustfmt::skip]
    let cases: &[(&str, bool)] = &[
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n",                                       false),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",                  true),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n\r\n",               true),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n",      true),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n", true),
        ("GET / HTTP/1.0\r\n\r\n",                                                  true),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",                        false),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive, close\r\n\r\n",                 true),
    ];
    for (request, ends) in cases {
        let mut client = gateway.client();
        client.say(request);
        let answer = client.answer();
        assert_eq!(answer.values("connection") == ["close"], *ends, "{request:?}: {answer:?}");
        assert_eq!(
            if *ends { client.ends() } else { !client.stays_silent() },
            *ends,
            "{request:?}"
        );
    }
}

/// A client that says all it has to say and then closes its side still gets its answers.
#[test]
fn half_a_close_loses_no_answer() {
    let instance = Instance::start(|line| {
        while line.request().is_some() {
            sleep(A_WHILE / 3);
            line.say(FINE);
        }
    });
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    client.say("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTT");
    client.socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!((client.answer().status, client.answer().status), (200, 200));
    assert!(client.ends());
    assert_eq!(instance.targets(), ["/1", "/2"]);
}

/// A close while it still sends would be a reset, and take the answer with it.
#[test]
fn whoever_is_refused_while_sending_reads_why() {
    let instance = echo();
    let gateway = Fixture::before(&instance);
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\nContent-Length: 1\r\n\r\n";
    for _ in 0..20 {
        let mut client = gateway.client();
        client.say(head);
        for _ in 0..20 {
            client.say([b'x'; 10_000]);
        }
        sleep(A_WHILE / 10);
        let answer = client.answer();
        assert!(answer.status == 400 && answer.whole, "{answer:?}");
        assert!(client.ends());
    }
    assert_eq!(instance.seen(), []);
}

/// Whoever does not stop sending is cut off.
#[test]
fn whoever_is_refused_and_never_stops_is_cut_off() {
    let instance = echo();
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    client.say("garbage\r\n\r\n");
    let begun = Instant::now();
    while std::io::Write::write_all(&mut client.socket, &[b'x'; 10_000]).is_ok() {
        assert!(begun.elapsed() < PATIENCE, "it reads on and on");
    }
}

#[test]
fn a_head_that_never_ends_is_given_up() {
    let instance = echo();
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    let begun = Instant::now();
    client.say("GET / HTTP/1.1\r\nHost: a\r\n");
    let mut writer = client.socket.try_clone().unwrap();
    std::thread::spawn(move || {
        while std::io::Write::write_all(&mut writer, b"X: y\r\n").is_ok() {
            sleep(A_WHILE);
        }
    });
    let answer = client.answer();
    assert!(answer.status == 408 && answer.is_own(), "{answer:?}");
    assert!(begun.elapsed().as_secs() >= 9, "{:?}", begun.elapsed());
    assert!(client.ends());
}

/// A byte is the beginning of a head, also if that could be one of HTTP/2.
#[test]
fn what_may_become_http2_has_no_longer_than_any_other_head() {
    let instance = echo();
    let gateway = Fixture::before(&instance);
    let clients = ["P", "PRI *", "PUT"].map(|beginning| {
        let mut client = gateway.client();
        client.say(beginning);
        client
    });
    for mut client in clients {
        // Sooner than this client loses patience.
        let answer = client.answer();
        assert!(answer.status == 408 && answer.is_own(), "{answer:?}");
        assert!(client.ends());
    }
}

/// A client can ask about what it was refused, which has nothing of what it asked before.
#[test]
fn what_is_refused_is_remembered() {
    let good = Instance::says(FINE);
    let gateway = Fixture::before(&good);
    let mut client = gateway.client();
    client.say("GET /before HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    client.say("GET / HTTP/1.1\r\nHost : a\r\n\r\n");
    let refused = client.answer();
    let id = refused.values("x-request-id").first().copied().unwrap_or_default().to_owned();
    eventually("it is remembered", || gateway.gateway.request(&id).is_some());
    let record = gateway.gateway.request(&id).unwrap();
    assert_eq!(
        (record.status, record.path.as_bytes(), record.host.as_bytes()),
        (400, &b""[..], &b""[..])
    );
}
