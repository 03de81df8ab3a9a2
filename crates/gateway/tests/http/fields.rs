//! Fields of one hop stay on it, and what the gateway says of a request is its own.

use super::fixture::{FINE, Fixture, Instance, Seen};
use super::second::{self, Server, ask, before, connect, request, run};
use http::HeaderMap;

/// What the instance gets for a request with these fields beside `Host: a`.
fn seen(gateway: &Fixture, instance: &Instance, version: &str, fields: &str) -> Seen {
    let request = format!("GET / {version}\r\nHost: a\r\n{fields}\r\n");
    assert_eq!(gateway.ask(&request).status, 200, "{fields:?}");
    instance.seen().pop().unwrap()
}

#[test]
fn fields_of_one_hop_stay_on_it() {
    #[rustfmt::skip]
    let cases: &[(&str, &str)] = &[
        ("Connection: close\r\n",                                          ""),
        ("Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n",            ""),
        ("Keep-Alive: 1\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n", ""),
        ("Connection: X-One, x-two\r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\n", "X-Three: 3\r\n"),
        ("X-One: 1\r\nConnection: ,,\tx-one ,\r\nConnection: X-TWO\r\nX-Two: 2\r\n", ""),
        ("Connection: X\r\nX-One: 1\r\n",                                  "X-One: 1\r\n"),
        // What a request is cannot be taken out of it.
        ("Connection: Host, Content-Length, X-Forwarded-For, X-Request-Id, Via, Forwarded, traceparent\r\nContent-Length: 0\r\n", "Content-Length: 0\r\n"),
        // Nor can anybody be named as its sender.
        ("X-Forwarded-For: 1.2.3.4\r\nX-FORWARDED-FOR: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\n", ""),
        ("X-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Prefix: /b\r\nX-Forwarded-Ssl: on\r\n", ""),
        ("X_Forwarded_For: 1.2.3.4\r\nX-Forwarded_For: 1.2.3.4\r\nX_Request_Id: b\r\nConnection_: a\r\n", "Connection_: a\r\n"),
        ("Proxy: http://evil\r\n",                                         ""),
        ("X-Forwarded: b\r\nX-Forwardedfor: b\r\n",                        "X-Forwarded: b\r\nX-Forwardedfor: b\r\n"),
        // No protocol is changed by halves, and none to HTTP/2.
        ("Upgrade: websocket\r\n",                                         ""),
        ("Connection: Upgrade\r\n",                                        ""),
        ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n", ""),
        ("Connection: Upgrade\r\nUpgrade: websocket, H2C\r\n",             ""),
        ("Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",  ""),
        ("Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n",                   ""),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi", "Content-Length: 2\r\n"),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n", "Upgrade: websocket\r\nContent-Length: 0\r\nConnection: Upgrade\r\n"),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n",                  "Upgrade: websocket\r\nConnection: Upgrade\r\n"),
        // These are the instance's.
        ("Expect: 100-continue\r\nTrailer: A\r\nCookie: b\r\nAuthorization: c\r\nX-Real-Ip: d\r\n", "Expect: 100-continue\r\nTrailer: A\r\nCookie: b\r\nAuthorization: c\r\nX-Real-Ip: d\r\n"),
        ("Via: 1.0 b\r\n",                                                 "Via: 1.0 b\r\n"),
    ];
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    for (fields, expected) in cases {
        let seen = seen(&gateway, &instance, "HTTP/1.1", fields);
        let expected = format!("GET / HTTP/1.1\r\nHost: a\r\n{expected}");
        assert_eq!(seen.plain(), expected, "{fields:?}");
    }
    let old =
        seen(&gateway, &instance, "HTTP/1.0", "Connection: Upgrade\r\nUpgrade: websocket\r\n");
    assert_eq!(old.plain_of("1.0"), "GET / HTTP/1.1\r\nHost: a\r\n");
    assert_eq!(instance.faults(), [] as [&str; 0]);
}

#[test]
fn a_request_has_one_name_and_one_trace() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const OTHER: &str = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    let long = "a".repeat(65);
    let ids =
        [("a-1_b.c:+/=", true), ("", false), ("a b", false), ("a\"b", false), (&*long, false)];
    for (id, kept) in ids {
        let answer =
            gateway.ask(&format!("GET / HTTP/1.1\r\nHost: a\r\nx-request-id: {id}\r\n\r\n"));
        let seen = instance.seen().pop().unwrap();
        let given = seen.values("x-request-id");
        assert_eq!(given.len(), 1);
        assert_eq!(given[0] == id, kept, "{id:?}");
        assert_eq!(answer.values("x-request-id"), given, "the client is told the same");
    }
    let bad = [
        TRACE.to_uppercase(),
        TRACE.replace("00-0a", "ff-0a"),
        TRACE.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
        TRACE.replace("b7ad6b7169203331", &"0".repeat(16)),
        format!("{TRACE}-1"),
        TRACE[1..].to_owned(),
        format!("{TRACE}\r\ntraceparent: {OTHER}"),
        format!("{TRACE}\r\ntraceparent: {TRACE}"),
        format!("{TRACE}\r\ntraceparent: {TRACE}\r\ntraceparent: {OTHER}"),
    ];
    for trace in bad {
        let fields = format!("traceparent: {trace}\r\ntracestate: a=b\r\n");
        let seen = seen(&gateway, &instance, "HTTP/1.1", &fields);
        let traces = seen.values("traceparent");
        assert!(traces.len() == 1 && traces[0].len() == 55, "{trace:?}: {traces:?}");
        assert!(traces[0] != TRACE && traces[0] != OTHER, "{trace:?}");
        assert_eq!(seen.values("tracestate"), [] as [&str; 0], "it is of another trace: {trace:?}");
    }
    let fields = format!("tracestate: a=b\r\ntraceparent: {TRACE}\r\n");
    let seen = seen(&gateway, &instance, "HTTP/1.1", &fields);
    assert_eq!((seen.values("traceparent"), seen.values("tracestate")), (vec![TRACE], vec!["a=b"]));
}

/// RFC 9110 section 7.6.3: the version in which it came, whatever it goes on in.
#[test]
fn an_instance_is_told_in_which_version_a_request_came() {
    let (instance, server) = (Instance::says(FINE), Server::start(100, second::echo));
    let (first, second) = (Fixture::before(&instance), before(&[server.address]));
    for version in ["1.0", "1.1", "2"] {
        for gateway in [&first, &second] {
            let status = match version {
                "2" => run(async {
                    let send = connect(gateway.address).await;
                    ask(&send, request("GET", "/"), &[], HeaderMap::new()).await.unwrap().status
                }),
                _ => gateway.ask(&format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n")).status,
            };
            assert_eq!(status, 200);
        }
        let expected = format!("{version} everhold");
        assert_eq!(instance.seen().pop().unwrap().values("via"), [&expected]);
        let asked = server.asked.lock().unwrap();
        assert_eq!(asked.last().unwrap().1["via"], expected);
    }
}

/// A name with a dot at its end is the same name.
#[test]
fn a_route_is_found_by_the_name_whatever_its_spelling() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    let spellings = ["elsewhere.org", "ELSEWHERE.org:80", "elsewhere.org.", "elsewhere.org.:8080"];
    for host in spellings {
        let answer = gateway.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(answer.status, 503, "{host}: it leads to a service without instances");
        let target = gateway.ask(&format!("GET http://{host}/ HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(target.status, 503, "{host} as target");
    }
    assert_eq!(gateway.ask("GET / HTTP/1.1\r\nHost: elsewhere.org..\r\n\r\n").status, 200);
}

#[test]
fn fields_of_answers_stay_on_their_hop_too() {
    let instance = Instance::says(
        "HTTP/1.1 200 OK\r\nConnection: X-One\r\nX-One: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: close\r\nUpgrade: h2c\r\nX-Two: 2\r\nX-Request-Id: b\r\n\
         Set-Cookie: a=b\r\nset-cookie: c=d\r\nDATE: then\r\nContent-Length: 2\r\n\r\nok",
    );
    let gateway = Fixture::before(&instance);
    let answer = gateway.ask("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\n\r\n");
    let expected = "HTTP/1.1 200 OK\r\nX-Two: 2\r\nSet-Cookie: a=b\r\nset-cookie: c=d\r\n\
                    DATE: then\r\nContent-Length: 2\r\nX-Request-Id: mine\r\n";
    assert_eq!(answer.head, expected);
}

/// RFC 9110 section 6.6.1: what the gateway says itself, and what it passes on without one.
#[test]
fn each_answer_has_a_date() {
    let is_date = |date: &str| {
        let (day, rest) = date.split_once(", ").unwrap();
        assert!(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"].contains(&day), "{date}");
        assert!(rest.len() == "21 Nov 2026 06:00:00 GMT".len() && rest.ends_with(" GMT"), "{date}");
    };
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let nominates =
        "HTTP/1.1 200 OK\r\nConnection: date\r\nDate: then\r\nContent-Length: 2\r\n\r\nok";
    let without = [[HINTS.as_bytes(), FINE].concat(), nominates.as_bytes().to_vec()];
    let instances = without.map(Instance::says);
    let server = Server::start(100, second::echo);
    let gateways = [
        (Fixture::start(&[]), 503),
        (Fixture::before(&instances[0]), 200),
        (Fixture::before(&instances[1]), 200),
        (before(&[server.address]), 200),
    ];
    for (gateway, status) in gateways {
        let answer = gateway.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(answer.status, status);
        let [date] = answer.values("date")[..] else { panic!("{answer:?}") };
        is_date(date);
        assert!(answer.interim.iter().all(|it| !it.contains("Date")), "{answer:?}");
    }
}

/// RFC 9110 section 7.6.2.
#[test]
fn an_options_request_goes_as_far_as_it_may() {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    let ask = |method: &str, most: &str| {
        gateway.ask(&format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {most}\r\n\r\n"))
    };
    let seen = || {
        let last = instance.seen().pop().unwrap();
        (instance.seen().len(), last.values("max-forwards").join(","))
    };
    assert_eq!(ask("OPTIONS", "7").status, 200);
    assert_eq!(seen(), (1, "6".to_owned()));
    assert_eq!(ask("GET", "0").status, 200);
    assert_eq!(seen(), (2, "0".to_owned()), "only OPTIONS and TRACE count");
    let last = ask("OPTIONS", "0");
    assert_eq!((last.status, last.values("content-length").len()), (204, 0));
    assert_eq!(ask("OPTIONS", "+1").status, 400);
    assert_eq!(seen().0, 2);
}
