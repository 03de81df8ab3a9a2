//! HTTP/1 and HTTP/2 on both sides: the same comes of each request.

use super::fixture::{Fixture, Instance};
use super::second::{Asked, Server, Work, ask, before, connect, request, run, whole};
use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Response};

const OK: &str = "HTTP/1.1 200 OK\r\n";

/// What an instance answers to a path, in HTTP/1.
fn first() -> Instance {
    Instance::start(|line| {
        while let Some(head) = line.head() {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            if path == "/continue" {
                line.say("HTTP/1.1 100 Continue\r\n\r\n");
            }
            let Some(seen) = line.rest(head) else { return };
            let body = String::from_utf8(seen.body).unwrap();
            match path.as_str() {
                "/none" => line.say("HTTP/1.1 204 No Content\r\n\r\n"),
                "/same" => line.say("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"),
                "/head" => line.say(format!("{OK}Content-Length: 7\r\n\r\n")),
                "/hints" => line.say(format!(
                    "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n{OK}Content-Length: 2\r\n\r\nok"
                )),
                "/trailers" => line.say(format!(
                    "{OK}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\nSum: 7\r\n\r\n",
                    body.len()
                )),
                _ => line.say(format!("{OK}Content-Length: {}\r\n\r\n{body}", body.len())),
            }
        }
    })
}

/// The same in HTTP/2.
fn second(_: usize, mut asked: Asked, mut respond: SendResponse<Bytes>) -> Work {
    Box::pin(async move {
        let path = asked.uri().path().to_owned();
        let of = |status: u16| Response::builder().status(status);
        if path == "/continue" {
            respond.send_informational(of(100).body(()).unwrap()).ok()?;
        }
        let (body, _) = whole(asked.body_mut()).await.ok()?;
        match path.as_str() {
            "/none" => drop(respond.send_response(of(204).body(()).unwrap(), true)),
            "/same" => {
                drop(respond.send_response(of(304).header("etag", "\"x\"").body(()).unwrap(), true))
            }
            "/head" => {
                let answer = of(200).header("content-length", 7).body(()).unwrap();
                drop(respond.send_response(answer, true));
            }
            "/trailers" => {
                let mut send = respond.send_response(Response::new(()), false).ok()?;
                send.send_data(body.into(), false).ok()?;
                let mut trailers = HeaderMap::new();
                trailers.insert("sum", "7".parse().unwrap());
                // What says how a message is trusted may not stand there.
                trailers.insert("authorization", "me".parse().unwrap());
                send.send_trailers(trailers).ok()?;
            }
            path => {
                if path == "/hints" {
                    let hints = of(103).header("link", "</x>").body(()).unwrap();
                    respond.send_informational(hints).ok()?;
                }
                let body = if path == "/hints" { b"ok".to_vec() } else { body };
                let answer = of(200).header("content-length", body.len()).body(()).unwrap();
                let mut send = respond.send_response(answer, false).ok()?;
                send.send_data(body.into(), true).ok()?;
            }
        }
        Some(())
    })
}

/// Method, path, body in pieces; status, body, interim answers, the value of `sum` after the body.
type Case =
    (&'static str, &'static str, &'static [&'static str], u16, &'static str, &'static [u16]);

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("GET",  "/",         &[],                  200, "",           &[]),
    ("POST", "/",         &["hello"],           200, "hello",      &[]),
    ("PUT",  "/",         &["he", "l", "lo"],   200, "hello",      &[]),
    ("POST", "/",         &[""],                200, "",           &[]),
    ("HEAD", "/head",     &[],                  200, "",           &[]),
    ("GET",  "/none",     &[],                  204, "",           &[]),
    ("GET",  "/same",     &[],                  304, "",           &[]),
    ("GET",  "/hints",    &[],                  200, "ok",         &[103]),
    ("POST", "/trailers", &["hello", " there"], 200, "hello there", &[]),
    ("POST", "/continue", &["hello"],           200, "hello",      &[100]),
];

/// As a client of HTTP/1 sees it; the body with a length, or in chunks.
fn by_first(gateway: &Fixture, case: &Case, chunks: bool) {
    let (method, path, pieces, status, text, interim) = case;
    let mut client = gateway.client();
    let framing = match (pieces.is_empty(), chunks) {
        (true, _) => String::new(),
        (false, true) => "Transfer-Encoding: chunked\r\n".to_owned(),
        (false, false) => format!("Content-Length: {}\r\n", pieces.concat().len()),
    };
    let expect = if *path == "/continue" { "Expect: 100-continue\r\n" } else { "" };
    client.say(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{expect}{framing}\r\n"));
    for piece in pieces.iter().filter(|it| !it.is_empty()) {
        match chunks {
            true => client.say(format!("{:x}\r\n{piece}\r\n", piece.len())),
            false => client.say(piece),
        }
    }
    if chunks && !pieces.is_empty() {
        client.say("0\r\n\r\n");
    }
    let answer = client.answer_to(method);
    let seen: Vec<u16> =
        answer.interim.iter().map(|it| it.split(' ').nth(1).unwrap().parse().unwrap()).collect();
    assert_eq!((answer.status, answer.text().as_str()), (*status, *text), "{case:?}");
    assert!(answer.whole, "{case:?}");
    assert_eq!(seen, *interim, "{case:?}");
    let sum = if *path == "/trailers" { "sum: 7\r\n" } else { "" };
    assert_eq!(answer.trailers.to_lowercase(), sum, "{case:?}");
    match *path {
        "/head" => assert_eq!(answer.values("content-length"), ["7"]),
        "/none" => assert_eq!(answer.values("content-length"), [""; 0]),
        "/same" => assert_eq!(answer.values("etag"), ["\"x\""]),
        _ => {}
    }
    // Nothing was left over: the next one is answered.
    client.say("POST /again HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nfoo");
    assert_eq!(client.answer().text(), "foo", "after {case:?}");
}

/// As one of HTTP/2 sees it.
fn by_second(gateway: &Fixture, case: &Case) {
    let (method, path, pieces, status, text, interim) = case;
    let got = run(async {
        let send = connect(gateway.address).await;
        ask(&send, request(method, path), pieces, HeaderMap::new()).await.unwrap()
    });
    assert_eq!(got.status, *status, "{case:?}");
    assert_eq!(String::from_utf8_lossy(&got.body), *text, "{case:?}");
    assert_eq!(got.interim, *interim, "{case:?}");
    let trailers = if *path == "/trailers" { 1 } else { 0 };
    assert_eq!(got.trailers.len(), trailers, "{case:?}");
    if *path == "/head" {
        assert_eq!(got.fields["content-length"], "7");
    }
}

#[test]
fn first_to_first() {
    let instance = first();
    let gateway = Fixture::before(&instance);
    for case in CASES {
        by_first(&gateway, case, false);
        by_first(&gateway, case, true);
    }
    assert_eq!(instance.faults(), [""; 0]);
}

#[test]
fn second_to_first() {
    let instance = first();
    let gateway = Fixture::before(&instance);
    CASES.iter().for_each(|case| by_second(&gateway, case));
    assert_eq!(instance.faults(), [""; 0]);
}

#[test]
fn first_to_second() {
    let server = Server::start(100, second);
    let gateway = before(&[server.address]);
    for case in CASES {
        by_first(&gateway, case, false);
        by_first(&gateway, case, true);
    }
}

#[test]
fn second_to_second() {
    let server = Server::start(100, second);
    let gateway = before(&[server.address]);
    CASES.iter().for_each(|case| by_second(&gateway, case));
}

/// A call of gRPC and one in which both sides go on talking.
#[test]
fn grpc_calls_get_through() {
    let server = Server::start(100, |_, mut asked, mut respond| {
        Box::pin(async move {
            assert_eq!(asked.headers()["te"], "trailers");
            let answer = Response::builder().header("content-type", "application/grpc");
            let mut send = respond.send_response(answer.body(()).unwrap(), false).ok()?;
            while let Some(Ok(message)) = asked.body_mut().data().await {
                asked.body_mut().flow_control().release_capacity(message.len()).ok()?;
                send.send_data(message, false).ok()?;
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            send.send_trailers(trailers).ok()
        })
    });
    let gateway = before(&[server.address]);
    let call = || {
        let mut call = request("POST", "/shop.Cart/Add");
        call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        call.headers_mut().insert("te", "trailers".parse().unwrap());
        call
    };
    run(async {
        let send = connect(gateway.address).await;
        let got = ask(&send, call(), &["\0\0\0\0\x02ab"], HeaderMap::new()).await.unwrap();
        assert_eq!((got.status, got.body.as_slice()), (200, &b"\0\0\0\0\x02ab"[..]));
        assert_eq!(got.trailers["grpc-status"], "0");

        let (answer, mut up) =
            send.clone().ready().await.unwrap().send_request(call(), false).unwrap();
        let mut down = answer.await.unwrap().into_body();
        for message in ["one", "two", "three"] {
            up.send_data(Bytes::from_static(message.as_bytes()), false).unwrap();
            let echo = down.data().await.unwrap().unwrap();
            assert_eq!(echo, message, "an answer before the request is over");
        }
        up.send_data(Bytes::new(), true).unwrap();
        let (_, trailers) = whole(&mut down).await.unwrap();
        assert_eq!(trailers["grpc-status"], "0");
    });
}
