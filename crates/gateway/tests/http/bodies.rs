//! Bodies of requests: as they arrive, and where they end.

use super::fixture::{A_WHILE, FINE, Fixture, Instance, eventually};

#[test]
fn chunks_arrive_as_they_were_meant() {
    #[rustfmt::skip]
    let cases: &[(&str, &str, &str)] = &[
        ("0\r\n\r\n",                                        "",           ""),
        ("5\r\nhello\r\n0\r\n\r\n",                          "hello",      ""),
        ("0005\r\nhello\r\n000\r\n\r\n",                     "hello",      ""),
        ("a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",  "01234567890123456789", ""),
        ("5;a;b=c;d=\"e;\\\"\tf\"\r\nhello\r\n0;g\r\n\r\n",  "hello",      ""),
        ("2\r\n\r\n\r\n0\r\n\r\n",                           "\r\n",       ""),
        ("5\r\n0\r\n\r\n\r\n0\r\n\r\n",                      "0\r\n\r\n",  ""),
        ("1\r\nx\r\n0\r\nA: b\r\nc:d\r\n\r\n",               "x",          "A: b\r\nc: d\r\n"),
        // What says how a message is read, where it goes or who sent it stands before the body.
        ("1\r\nx\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\nHost: b\r\nA: b\r\n\r\n", "x", "A: b\r\n"),
        ("1\r\nx\r\n0\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Port: 1\r\nForwarded: for=b\r\nX-Request-Id: b\r\n\r\n", "x", ""),
        ("1\r\nx\r\n0\r\nAuthorization: b\r\nCookie: b\r\nSet-Cookie: b\r\nConnection: close\r\nUpgrade: b\r\nTrailer: b\r\n\r\n", "x", ""),
        ("1\r\nx\r\n0\r\nContent_Length: 9\r\nX_Forwarded_For: b\r\ntraceparent: b\r\nProxy-Connection: b\r\n\r\n", "x", ""),
    ];
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    for (body, expected, trailers) in cases {
        for piece in [1_000, 3, 1] {
            let mut client = gateway.client();
            client.say("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
            body.as_bytes().chunks(piece).for_each(|piece| client.say(piece));
            assert_eq!(client.answer().status, 200, "{body:?}");
            let seen = instance.seen().pop().unwrap();
            let got = (String::from_utf8(seen.body).unwrap(), seen.trailers);
            assert_eq!(got, ((*expected).to_owned(), (*trailers).to_owned()), "{body:?}");
        }
    }
    assert_eq!(instance.faults(), [] as [&str; 0]);
}

#[test]
fn a_flood_of_extensions_or_trailers_ends() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    let long = format!("1;{}", "a".repeat(1 << 20));
    let many = "1;abcdefgh\r\nx\r\n".repeat(10_000);
    let trailers = format!("0\r\nA: {}", "a".repeat(1 << 20));
    let fields = format!("0\r\n{}\r\n", "A: b\r\n".repeat(65));
    for flood in [long, many, trailers, fields] {
        let mut client = gateway.client();
        client.say("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.say(&flood);
        let answer = client.answer();
        assert!(answer.is_own() && answer.status == 400, "{answer:?}");
    }
    assert_eq!(instance.seen(), []);
}

/// What stands behind a body is the next request, and what stands in it never is.
#[test]
fn a_body_stays_one_whatever_becomes_of_its_request() {
    const INNER: &str = "GET /inner HTTP/1.1\r\nHost: a\r\n\r\n";
    const LAST: &str = "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let fine = Instance::says(FINE);
    let closes = Instance::start(|line| drop(line.request()));
    let garbage = Instance::says_and_closes("garbage\r\n\r\n");
    let early = Instance::start(|line| {
        if line.head().is_some() {
            line.say(FINE);
        }
    });
    let gateways = [
        ("fine", Fixture::before(&fine), &fine),
        ("closes", Fixture::before(&closes), &closes),
        ("garbage", Fixture::before(&garbage), &garbage),
        ("early", Fixture::before(&early), &early),
        ("nobody", Fixture::start(&[super::fixture::nobody()]), &fine),
        ("nowhere", Fixture::start(&[]), &fine),
    ];
    for (name, gateway, instance) in &gateways {
        for asked in ["GET /outer", "PUT /outer", "POST /outer", "OPTIONS *"] {
            for host in ["a", "elsewhere.org"] {
                let chunks = format!(
                    "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{INNER}\r\n0\r\n\r\n",
                    INNER.len()
                );
                let length = format!("Content-Length: {}\r\n\r\n{INNER}", INNER.len());
                for body in [chunks, length] {
                    // Once at once, once when the head was taken already.
                    for pause in [false, true] {
                        let about = format!("{name}: {asked} to {host}, {body:?}");
                        let mut client = gateway.client();
                        client.say(format!("{asked} HTTP/1.1\r\nHost: {host}\r\n"));
                        let (framing, rest) = body.split_at(body.find("\r\n\r\n").unwrap() + 4);
                        client.say(framing);
                        if pause {
                            std::thread::sleep(A_WHILE / 10);
                        }
                        client.say([rest, LAST].concat());
                        let first = client.answer();
                        let close = first.values("connection") == ["close"];
                        assert_eq!(
                            close,
                            client_ends_after(&mut client, close),
                            "{about}: {first:?}"
                        );
                    }
                }
            }
        }
        assert!(
            !instance.targets().contains(&"/inner".to_owned()),
            "{name}: a body became a request"
        );
    }
}

/// If the connection goes on, one more answer comes, that to the last request, and it closes.
fn client_ends_after(client: &mut super::fixture::Client, close: bool) -> bool {
    if !close {
        let last = client.answer();
        assert_eq!(last.values("connection"), ["close"], "the last request asks for it: {last:?}");
    }
    assert!(client.ends(), "an answer too many");
    close
}

/// Nothing of a request may be in another, whatever connections they share.
#[test]
fn requests_that_share_connections_do_not_mix() {
    let instance = Instance::start(|line| {
        while let Some(request) = line.request() {
            let body = format!("{} {}", request.target(), String::from_utf8_lossy(&request.body));
            line.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    });
    let gateway = Fixture::before(&instance);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut client = gateway.client();
                for round in 0..60 {
                    let body = format!("{thread}/{round}/").repeat(round * 40 % 997);
                    let head = format!("POST /{thread}/{round} HTTP/1.1\r\nHost: a\r\n");
                    match round % 4 {
                        0 => client
                            .say(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())),
                        1 => {
                            client.say(format!("{head}Transfer-Encoding: chunked\r\n\r\n"));
                            for chunk in body.as_bytes().chunks(1_000) {
                                client.say(format!("{:x}\r\n", chunk.len()));
                                client.say(chunk);
                                client.say("\r\n");
                            }
                            client.say("0\r\n\r\n");
                        }
                        2 => {
                            // Refused in its body; the connection ends with it.
                            client.say(format!(
                                "{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello!"
                            ));
                            assert_eq!(client.answer().status, 400);
                            client = gateway.client();
                            continue;
                        }
                        _ => {
                            // Gone in the middle of its body.
                            client.say(format!("{head}Content-Length: 100\r\n\r\nhello"));
                            client = gateway.client();
                            continue;
                        }
                    }
                    let answer = client.answer();
                    assert_eq!(answer.text(), format!("/{thread}/{round} {body}"));
                }
            });
        }
    });
    assert_eq!(instance.seen().len(), 8 * 30);
    assert_eq!(instance.faults(), [] as [&str; 0]);
}

/// A client that goes away in its body leaves no half request on a connection that is used again.
#[test]
fn a_body_that_breaks_off_takes_its_connection_with_it() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    for _ in 0..20 {
        let mut client = gateway.client();
        client.say("POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf");
        drop(client);
        let answer = gateway.ask("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(answer.status, 200);
    }
    eventually("all arrive", || instance.targets() == vec!["/next"; 20]);
    assert_eq!(instance.faults(), [] as [&str; 0]);
}
