//! Answers: their framing for each kind of client, interim ones, and what is no answer.

use super::fixture::{A_WHILE, FINE, Fixture, Instance, reset};
use std::thread::sleep;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// The instance closes after each answer, so that one without a length ends.
#[test]
fn each_client_gets_a_body_in_its_framing() {
    const LENGTH: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\nA: b\r\nContent-Length: 9\r\n\r\n";
    const END: &str = "HTTP/1.1 200 OK\r\n\r\nhello";
    const OLD: &str = "HTTP/1.0 200 OK\r\n\r\nhello";
    const TWICE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello";
    #[rustfmt::skip]
    let cases: &[(&str, &str, &str, &str)] = &[
        // Request line and fields, answer, then framing and connection of what the client gets.
        ("GET / HTTP/1.1\r\nHost: a\r\n",                       LENGTH,  "5",       ""),
        ("GET / HTTP/1.1\r\nHost: a\r\n",                       TWICE,   "5",       ""),
        ("GET / HTTP/1.1\r\nHost: a\r\n",                       CHUNKED, "chunked", ""),
        ("GET / HTTP/1.1\r\nHost: a\r\n",                       END,     "chunked", ""),
        ("GET / HTTP/1.1\r\nHost: a\r\n",                       OLD,     "chunked", ""),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n",  CHUNKED, "chunked", "close"),
        ("GET / HTTP/1.0\r\n",                                  LENGTH,  "5",       "close"),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n",        LENGTH,  "5",       "keep-alive"),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n",        CHUNKED, "",        "close"),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n",        END,     "",        "close"),
        ("GET / HTTP/1.0\r\n",                                  CHUNKED, "",        "close"),
    ];
    for (request, answer, framing, connection) in cases {
        let instance = Instance::says_and_closes(*answer);
        let gateway = Fixture::before(&instance);
        let mut client = gateway.client();
        client.say([request, "\r\n"].concat());
        let got = client.answer();
        let about = format!("{request:?} {answer:?}: {got:?}");
        assert!(got.whole && got.text() == "hello", "{about}");
        let given: String =
            ["content-length", "transfer-encoding"].map(|it| got.values(it).concat()).concat();
        assert_eq!(given, *framing, "{about}");
        assert_eq!(got.values("connection").concat(), *connection, "{about}");
        let trailers = if *answer == CHUNKED && *framing == "chunked" { "A: b\r\n" } else { "" };
        assert_eq!(got.trailers, trailers, "{about}");
        if *connection == "close" {
            assert!(client.ends(), "{about}");
        } else {
            client.say([request, "\r\n"].concat());
            assert_eq!(client.answer().text(), "hello", "it goes on: {about}");
        }
    }
}

#[test]
fn some_answers_have_no_body_whatever_they_say_of_one() {
    #[rustfmt::skip]
    let cases: &[(&str, &str, &str)] = &[
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",                        "5"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",               ""),
        ("HEAD", "HTTP/1.1 200 OK\r\n\r\n",                                             ""),
        ("GET",  "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"a\"\r\n\r\n", "5"),
        ("GET",  "HTTP/1.1 304 Not Modified\r\n\r\n",                                   ""),
        ("GET",  "HTTP/1.1 204 No Content\r\n\r\n",                                     ""),
        ("GET",  "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",                ""),
        ("GET",  "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",       ""),
        ("GET",  "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",                        "0"),
    ];
    for (method, answer, length) in cases {
        let instance = Instance::says(*answer);
        let gateway = Fixture::before(&instance);
        let mut client = gateway.client();
        for _ in 0..2 {
            client.say(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
            let got = client.answer_to(method);
            assert_eq!(
                got.values("content-length").concat(),
                *length,
                "{method} {answer:?}: {got:?}"
            );
            assert_eq!(got.values("transfer-encoding").len(), 0, "{method} {answer:?}: {got:?}");
            assert!(got.whole && got.body.is_empty(), "{method} {answer:?}: {got:?}");
        }
    }
}

/// What an instance says after its answer is the answer to nothing.
#[test]
fn what_an_instance_says_unasked_is_no_answer() {
    let answers = [
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil",
    ];
    for answer in answers {
        // Once with the answer, once a moment later.
        for later in [false, true] {
            let next = answer.rfind("HTTP/1.1 200 OK\r\nContent-Length: 4");
            let at = next.unwrap_or(answer.len() - 4);
            let instance = Instance::start(move |line| {
                if line.index > 0 {
                    line.request();
                    return line.say(FINE);
                }
                line.request();
                let (proper, more) = answer.split_at(at);
                if later {
                    line.say(proper);
                    sleep(A_WHILE / 3);
                    line.say(more);
                } else {
                    line.say(answer);
                }
                sleep(A_WHILE * 3);
            });
            let gateway = Fixture::before(&instance);
            let mut client = gateway.client();
            client.say(GET);
            client.answer();
            sleep(A_WHILE);
            client.say(GET);
            let second = client.answer();
            assert_eq!((second.status, second.text().as_str()), (200, "ok"), "{answer:?} {later}");
        }
    }
}

#[test]
fn what_is_no_answer_is_502() {
    #[rustfmt::skip]
    let cases: &[&str] = &[
        "garbage",
        "\n",
        "\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: y\rSet-Cookie: evil\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 2x0 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 100 Continue\r\nX: y",
        "HTTP/1.1 200 O",
        "",
    ];
    for answer in cases {
        let instance = Instance::says_and_closes(*answer);
        let gateway = Fixture::before(&instance);
        let mut client = gateway.client();
        client.say(GET);
        let got = client.answer();
        assert!(got.is_own() && got.status == 502, "{answer:?}: {got:?}");
        client.say(GET);
        assert_eq!(client.answer().status, 502, "{answer:?}: the client's connection goes on");
    }
    let endless = ["HTTP/1.1 200 OK\r\nX: ", &"y".repeat(17 << 10)].concat();
    let instance = Instance::says(endless);
    assert_eq!(Fixture::before(&instance).ask(GET).status, 502);
}

#[test]
fn a_body_that_breaks_off_is_seen_to() {
    #[rustfmt::skip]
    let cases: &[(&str, bool)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",                                   false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",                                   true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",                 false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",                     true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",            false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n",    false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!!0\r\n\r\n",          false),
        ("HTTP/1.1 200 OK\r\n\r\nhello",                                                        true),
    ];
    for (answer, resets) in cases {
        let resets = *resets;
        let instance = Instance::start(move |line| {
            line.request();
            line.say(answer);
            // What was said is read before the end.
            sleep(A_WHILE);
            if resets {
                line.reset();
            }
        });
        let gateway = Fixture::before(&instance);
        let mut client = gateway.client();
        client.say(GET);
        // What came at once may be judged before its head went out.
        let got = client.answer_or_end("GET");
        let passed = got.as_ref().is_some_and(|it| it.whole && !it.is_own());
        assert!(!passed, "{answer:?}, {resets}: {got:?}");
        assert_eq!(instance.seen().len(), 1, "what was begun is not tried again");
    }
}

/// What shows before anything of the answer has gone out is told.
#[test]
fn a_body_that_is_malformed_from_the_start_is_no_answer() {
    for body in ["zz\r\n", "-1\r\n", "1\r\nab\r\n0\r\n\r\n", "1\nb\n", "3;a=\"\r\n"] {
        let instance = Instance::says_and_closes(format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
        ));
        let gateway = Fixture::before(&instance);
        for _ in 0..2 {
            let answer = gateway.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(
                answer.status == 502 && answer.is_own() && answer.whole,
                "{body:?}: {answer:?}"
            );
        }
        assert_eq!(instance.seen().len(), 2, "{body:?}: it was asked once each");
    }
}

/// Each piece begins its time anew.
#[test]
fn an_answer_may_be_silent_for_as_long_as_its_service_says() {
    let instance = Instance::start(|line| {
        line.request();
        line.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..10 {
            sleep(A_WHILE);
            line.say("7\r\ndata: 1\r\n");
        }
        line.some();
    });
    let gateway = Fixture::with(&[instance.address], |service| service.idle_timeout_ms = 2_000);
    let answer = gateway.ask(GET);
    assert_eq!((answer.status, answer.text()), (200, "data: 1".repeat(10)));
    assert!(!answer.whole);
}

/// To a client that knows an end only by the end of the connection, a cut must not look like one.
#[test]
fn a_cut_is_no_end() {
    for request in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"] {
        let instance = Instance::says_and_closes(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        );
        let gateway = Fixture::before(&instance);
        let mut client = gateway.client();
        client.say(request);
        let mut all = Vec::new();
        let read = std::io::Read::read_to_end(&mut client.socket, &mut all);
        let kind = read.map_err(|error| error.kind());
        assert_eq!(
            kind,
            Err(std::io::ErrorKind::ConnectionReset),
            "{:?}",
            String::from_utf8_lossy(&all)
        );
    }
}

#[test]
fn interim_answers_come_as_they_are_said() {
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 9\r\nConnection: X\r\nX: y\r\n\r\n";
    let instance = Instance::start(|line| {
        while line.request().is_some() {
            line.say(HINTS);
            line.say(HINTS);
            line.say(FINE);
        }
    });
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    for _ in 0..2 {
        client.say(GET);
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
        assert_eq!(answer.interim, ["HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n"; 2]);
    }
    let old = gateway.ask("GET / HTTP/1.0\r\n\r\n");
    assert_eq!((old.status, old.interim.len()), (200, 0), "HTTP/1.0 knows none");
}

#[test]
fn whoever_waits_for_leave_to_send_gets_it() {
    let instance = Instance::start(|line| {
        while let Some(head) = line.head() {
            assert!(head.contains("Expect: 100-continue\r\n"));
            line.say("HTTP/1.1 100 Continue\r\n\r\n");
            assert_eq!(line.exactly(5).unwrap(), b"hello");
            line.say(FINE);
        }
    });
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    for _ in 0..2 {
        client
            .say("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(client.exactly(25).unwrap(), b"HTTP/1.1 100 Continue\r\n\r\n");
        client.say("hello");
        assert_eq!(client.answer().text(), "ok");
    }
    // And who does not is told so: the body may come or not, so the connection ends.
    let refuses = Instance::start(|line| {
        line.head();
        line.say("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n");
        line.some();
    });
    let gateway = Fixture::before(&refuses);
    let mut client = gateway.client();
    client.say("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.values("connection")), (417, vec!["close"]));
}

/// A client that waits for leave to send does as it should: it is the instance that does not go on.
#[test]
fn who_gives_no_leave_to_send_is_late() {
    const HEAD: &str = "HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n\r\n";
    let mute = Instance::start(|line| while line.head().is_some() {});
    let good = Instance::start(|line| {
        while let Some(head) = line.head() {
            line.say("HTTP/1.1 100 Continue\r\n\r\n");
            if line.rest(head).is_some() {
                line.say(FINE);
            }
        }
    });
    let gateway = Fixture::with(&[mute.address, good.address], |service| {
        service.try_timeout_ms = Some(300);
    });
    for _ in 0..4 {
        let mut client = gateway.client();
        client.say(format!("PUT / {HEAD}"));
        assert_eq!(client.exactly(25).unwrap(), b"HTTP/1.1 100 Continue\r\n\r\n");
        client.say("hello");
        assert_eq!(client.answer().text(), "ok", "it is asked of the other one");
    }
    let alone = |instance: &Instance| {
        Fixture::with(&[instance.address], |service| service.timeout_ms = 300)
    };
    for method in ["PUT", "POST"] {
        let answer = alone(&mute).ask(&format!("{method} / {HEAD}"));
        assert!(answer.is_own() && answer.status == 504, "{method}: {answer:?}");
    }
    // Whoever was given leave, has begun or speaks HTTP/1.0 is to go on.
    assert_eq!(alone(&good).ask(&format!("PUT / {HEAD}")).status, 408);
    assert_eq!(alone(&mute).ask(&format!("PUT / {HEAD}hel")).status, 408);
    assert_eq!(alone(&mute).ask(&format!("PUT / {}", HEAD.replace("1.1", "1.0"))).status, 408);
}

/// A client that takes nothing: what it has of an interim answer is not gone on with by another one.
#[test]
fn nothing_follows_half_an_interim_answer() {
    // More than all buffers between hold.
    const ASKED: usize = 100;
    let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "a".repeat(15_000));
    let hints = hint.repeat(16);
    let instance = Instance::start(move |line| {
        while line.request().is_some() {
            line.say(&hints);
            line.say(FINE);
        }
    });
    let gateway = Fixture::with(&[instance.address], |service| service.timeout_ms = 500);
    let mut client = gateway.client();
    client.say(GET.repeat(ASKED));
    let (mut before, mut now) = (0, 1);
    while before != now {
        // Longer than the service's time.
        sleep(A_WHILE * 6);
        (before, now) = (now, instance.seen().len());
    }
    let mut all = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.socket, &mut all);
    let all = String::from_utf8(all).unwrap();
    let served = all.matches("HTTP/1.1 200 ").count();
    assert!(served < ASKED, "all was taken: the test does not test it");
    let within = all.find("aHTTP/1.1").map(|at| &all[at - 10..all.len().min(at + 40)]);
    assert_eq!(within, None, "after {served} answers");
}

/// An instance that has heard enough answers and reads no more; the client reads the answer, though
/// it is still sending.
#[test]
fn an_early_answer_arrives() {
    let instance = Instance::start(|line| {
        line.head();
        line.say(
            "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig",
        );
    });
    let gateway = Fixture::before(&instance);
    for framing in
        ["Content-Length: 100000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5f5e100\r\n"]
    {
        let mut client = gateway.client();
        client.say(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}"));
        let mut writer = client.socket.try_clone().unwrap();
        let sends = std::thread::spawn(move || {
            let block = vec![b'x'; 64 << 10];
            let mut sent = 0;
            while sent < 100_000_000 && std::io::Write::write_all(&mut writer, &block).is_ok() {
                sent += block.len();
                // So that the answer is there before all of it is.
                sleep(std::time::Duration::from_millis(2));
            }
            sent
        });
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (413, "big"));
        assert_eq!(answer.values("connection"), ["close"]);
        reset(&client.socket);
        client.socket.shutdown(std::net::Shutdown::Both).unwrap_or_default();
        assert!(sends.join().unwrap() < 100_000_000, "it is not read to its end");
    }
}

/// Both directions at once: an instance that answers while it reads.
#[test]
fn an_echo_carries_both_ways_at_once() {
    let instance = Instance::start(|line| {
        line.head();
        line.say("HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n");
        let mut left = 3_000_000;
        while left > 0 {
            let some = line.some();
            if some.is_empty() {
                return;
            }
            left -= some.len();
            line.say(some);
        }
        line.some();
    });
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    let body: Vec<u8> = (0..3_000_000_u32).map(|it| (it % 251) as u8).collect();
    let mut writer = client.socket.try_clone().unwrap();
    let sent = body.clone();
    let sends = std::thread::spawn(move || {
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n";
        std::io::Write::write_all(&mut writer, head).unwrap();
        std::io::Write::write_all(&mut writer, &sent).unwrap();
    });
    let answer = client.answer();
    assert!(answer.whole && answer.body == body);
    sends.join().unwrap();
}
