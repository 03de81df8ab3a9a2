//! Answers that are kept: what is given again, to whom, and what never is.

use super::fixture::{Answer, Fixture, Instance, Line, eventually, reset};
use super::second::{Server, ask, connect, request, run};
use everhold_core::http::HttpTable;
use everhold_core::http::cache::CacheSpec;
use everhold_core::http::cache::purge::{Of, What};
use everhold_core::http::route::{Backend, HttpService};
use everhold_core::route::RouteTable;
use everhold_core::spec::{Affinity, Match, Net, PathMatch, Version};
use http::HeaderMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

pub fn keeping(addresses: &[SocketAddr]) -> Fixture {
    keeping_with(addresses, CacheSpec::default(), None)
}

pub fn keeping_with(addresses: &[SocketAddr], spec: CacheSpec, bytes: Option<u64>) -> Fixture {
    let keep = |http: &mut HttpTable| {
        http.cache_bytes = bytes;
        http.listeners.values_mut().flat_map(|it| &mut it.routes).for_each(|route| {
            route.cache = Some(spec.clone());
        });
    };
    set_up(addresses, |service| service.retries = 0, keep)
}

/// With a table that is changed before it is in force.
pub fn set_up(
    addresses: &[SocketAddr],
    change: impl FnOnce(&mut HttpService),
    keep: impl FnOnce(&mut HttpTable),
) -> Fixture {
    Fixture::set_up(addresses, change, |config| {
        let mut http = config.table.http.clone();
        keep(&mut http);
        config.table = Arc::new(RouteTable::default().with_http(http));
    })
}

/// Its routes keep answers as they are said to last.
pub fn keeps(http: &mut HttpTable) {
    http.listeners.values_mut().flat_map(|it| &mut it.routes).for_each(|route| {
        route.cache = Some(CacheSpec::default());
    });
}

/// An answer with those fields, each of them ended.
pub fn says(fields: &str, body: &str) -> String {
    let ends: String =
        fields.split('|').filter(|it| !it.is_empty()).map(|it| format!("{it}\r\n")).collect();
    format!("HTTP/1.1 200 OK\r\n{ends}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// Answers each request with those fields and its number.
pub fn counting(fields: &'static str) -> Instance {
    let count = AtomicUsize::new(0);
    Instance::start(move |line| {
        while line.request().is_some() {
            line.say(says(fields, &format!("answer {}", count.fetch_add(1, SeqCst))));
        }
    })
}

pub fn get(path: &str, fields: &str) -> String {
    let ends: String =
        fields.split('|').filter(|it| !it.is_empty()).map(|it| format!("{it}\r\n")).collect();
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n{ends}\r\n")
}

#[track_caller]
fn status(answer: &Answer) -> &str {
    match answer.values("cache-status")[..] {
        [one] => one,
        _ => panic!("one Cache-Status in {:?}", answer.head),
    }
}

#[test]
fn what_is_fresh_is_given_again() {
    let instance = counting("Cache-Control: max-age=60|ETag: \"a\"|X-Request-Id: mine|Age: 3");
    let gateway = keeping(&[instance.address]);
    let first = gateway.ask(&get("/x?q", ""));
    assert_eq!(
        (first.text(), status(&first)),
        ("answer 0".into(), "everhold; fwd=uri-miss; stored")
    );
    let mut client = gateway.client();
    for _ in 0..3 {
        client.say(get("/x?q", "X-Request-Id: other"));
        let again = client.answer();
        assert_eq!((again.status, again.text()), (200, "answer 0".into()));
        assert!(status(&again).starts_with("everhold; hit; ttl=5"), "{:?}", again.head);
        let age: u64 = again.values("age")[0].parse().unwrap();
        assert!((3..60).contains(&age), "{age}");
        assert_eq!(again.values("x-request-id"), ["other"]);
        for once in ["etag", "date", "age", "content-length", "cache-control"] {
            assert_eq!(again.values(once).len(), 1, "{once}");
        }
    }
    client.say("HEAD /x?q HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = client.answer_to("HEAD");
    assert_eq!((head.status, head.values("content-length")), (200, vec!["8"]));
    // In an older form, and with its end.
    let mut old = gateway.client();
    old.say("GET /x?q HTTP/1.0\r\nHost: a\r\n\r\n");
    assert_eq!(old.answer().text(), "answer 0");
    assert!(old.ends());
    assert_eq!(instance.seen().len(), 1);
    // Whatever differs is another one.
    for (index, asked) in [
        get("/x", ""),
        get("/x?Q", ""),
        get("/X?q", ""),
        get("/x?q", "").replace("Host: a", "Host: A"),
        get("/x?q", "").replace("Host: a", "Host: a:80"),
        get("/x?q", "").replace("Host: a", "Host: b"),
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(gateway.ask(asked).text(), format!("answer {}", index + 1), "{asked}");
    }
    let counted = |word: &str| {
        let sums = gateway.gateway.sums().cached;
        sums.iter().find(|((_, it), _)| *it == word).map_or(0, |(_, count)| *count)
    };
    // A request is counted when it is over.
    eventually("all are counted", || counted("miss") == 7 && counted("hit") == 5);
    let record = gateway.gateway.request("other").unwrap();
    assert_eq!((record.cache, record.tries.count(), record.bytes_out), ("hit", 0, 8));
    let kept = gateway.gateway.kept().unwrap();
    assert_eq!(kept.answers, 7);
}

#[test]
fn what_is_of_one_alone_is_never_given_to_another() {
    const KEPT: &str = "Cache-Control: max-age=60";
    let chunks = |fields: &str| {
        format!(
            "HTTP/1.1 200 OK\r\n{fields}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n"
        )
    };
    #[rustfmt::skip]
    let cases: Vec<(&str, String)> = vec![
        // What the request says, what is answered.
        ("",                            says("Cache-Control: max-age=60, private", "x")),
        ("",                            says("Cache-Control: max-age=60, no-store", "x")),
        ("",                            says("", "x")),
        ("",                            says("Cache-Control: max-age=60|Set-Cookie: session=1", "x")),
        ("",                            says("Cache-Control: max-age=60|Vary: *", "x")),
        ("",                            says("Cache-Control: max-age=60|Vary: TE", "x")),
        ("Authorization: Basic eDp5",   says(KEPT, "x")),
        ("Authorization: Basic eDp5",   says("Cache-Control: max-age=60, proxy-revalidate", "x")),
        ("Cookie: session=1",           says("Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT", "x")),
        ("Cache-Control: no-store",     says(KEPT, "x")),
        ("Origin: https://e",           says("Cache-Control: max-age=60|Access-Control-Allow-Origin: https://e", "x")),
        ("Range: bytes=0-0",            says(KEPT, "x").replace("200 OK", "206 Partial Content")),
        ("Range: bytes=9-",             says(KEPT, "x").replace("200 OK", "416 Nothing")),
        ("If-None-Match: \"a\"",        says(KEPT, "x").replace("200 OK", "412 No")),
        ("",                            says(KEPT, "x").replace("200 OK", "400 Bad")),
        ("",                            says(KEPT, "x").replace("200 OK", "503 Busy")),
        ("Content-Length: 1",           says(KEPT, "x")),
        ("",                            chunks(KEPT)),
    ];
    for (fields, answer) in cases {
        let said = answer.clone();
        let instance = Instance::says(said);
        let gateway = keeping(&[instance.address]);
        let body = if fields.starts_with("Content-Length") { "b" } else { "" };
        gateway.ask(&(get("/", fields) + body));
        let other = gateway.ask(&get("/", ""));
        assert_eq!(instance.seen().len(), 2, "{fields:?} {answer:?} then {:?}", other.head);
    }
    // By the end of the connection it can't be told from one that is cut.
    let instance =
        Instance::says_and_closes("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n\r\nok");
    let gateway = keeping(&[instance.address]);
    gateway.ask(&get("/", ""));
    gateway.ask(&get("/", ""));
    assert_eq!(instance.seen().len(), 2);
}

/// Who asks first must not choose what all others get.
#[test]
fn nothing_that_is_not_in_the_key_gets_into_what_is_kept() {
    let instance = Instance::start(|line: &mut Line| {
        while let Some(seen) = line.request() {
            let line_and_fields = seen.head.to_ascii_lowercase();
            let is_evil = ["evil", "-proto: https", "-port: 6666"];
            let is_evil = is_evil.iter().any(|it| line_and_fields.contains(it));
            line.say(says("Cache-Control: max-age=60", if is_evil { "evil" } else { "fine" }));
        }
    });
    let tricks = [
        "X-Forwarded-Host: evil.org",
        "X_Forwarded_Host: evil.org",
        "Forwarded: host=evil.org",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Port: 6666",
        "X-Forwarded-Scheme: evil",
        "X-HTTP-Method-Override: evil",
        "X_HTTP_Method_Override: evil",
        "X-HTTP-Method: evil",
        "X-Method-Override: evil",
        "X-Original-URL: /evil",
        "X-Rewrite-URL: /evil",
        "X-Host: evil.org",
        "Connection: x-evil|X-Evil: evil",
        "Proxy: evil",
    ];
    // Also of one that is believed in some of it.
    for known in ["10.0.0.0/8", "127.0.0.0/8"] {
        let gateway = before_known(&instance, known);
        for (index, trick) in tricks.iter().enumerate() {
            let path = format!("/{index}");
            let first = gateway.ask(&get(&path, trick)).text();
            assert!(known != "127.0.0.0/8" || index > 0 || first == "evil", "it is told");
            assert_eq!(gateway.ask(&get(&path, "")).text(), "fine", "{trick} from {known}");
        }
    }
}

/// It keeps answers, and knows these as proxies.
fn before_known(instance: &Instance, known: &str) -> Fixture {
    let known: Net = known.parse().unwrap();
    set_up(
        &[instance.address],
        |_| {},
        |http| {
            keeps(http);
            http.listeners.get_mut("web").unwrap().trusted_proxies = vec![known];
        },
    )
}

/// A known proxy in front of several sites of which the gateway sees one host.
#[test]
fn each_site_behind_a_known_proxy_has_its_own() {
    let instance = counting("Cache-Control: max-age=60");
    let gateway = before_known(&instance, "127.0.0.0/8");
    let ask = |host: &str| gateway.ask(&get("/", &format!("X-Forwarded-Host: {host}"))).text();
    for _ in 0..2 {
        assert_eq!(["one", "two"].map(ask), ["answer 0", "answer 1"]);
    }
    // What changes one says nothing of the other.
    gateway.ask("POST / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Host: one\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(["one", "two"].map(ask), ["answer 3", "answer 1"]);
}

#[test]
fn a_variant_is_given_to_who_asks_for_that_one() {
    let instance = Instance::start(|line: &mut Line| {
        while let Some(seen) = line.request() {
            let said = |name: &str| seen.values(name).join("+");
            let body = format!("{}/{}", said("accept-language"), said("x-key"));
            let vary = if seen.target() == "/two" && said("accept-language") == "de" {
                "Vary: Accept-Language|Vary: X-Key"
            } else {
                "Vary: Accept-Language"
            };
            line.say(says(&format!("Cache-Control: max-age=60|{vary}"), &body));
        }
    });
    let gateway = keeping(&[instance.address]);
    let ask = |path: &str, fields: &str| gateway.ask(&get(path, fields)).text();
    for _ in 0..2 {
        assert_eq!(ask("/", "Accept-Language: en"), "en/");
        assert_eq!(ask("/", "Accept-Language: de"), "de/");
        assert_eq!(ask("/", ""), "/");
        assert_eq!(ask("/", "Accept-Language: "), "/");
        assert_eq!(ask("/", "Accept-Language: d|Accept-Language: e"), "d+e/");
    }
    assert_eq!(instance.seen().len(), 5, "each of them once");
    for _ in 0..2 {
        assert_eq!(ask("/two", "Accept-Language: en|X-Key: 1"), "en/1");
        assert_eq!(ask("/two", "Accept-Language: de|X-Key: 1"), "de/1");
        assert_eq!(ask("/two", "Accept-Language: de|X-Key: 2"), "de/2");
    }
    // Also by what the spec adds.
    let spec = CacheSpec { key_headers: vec!["x-key".to_owned()], ..CacheSpec::default() };
    let gateway = keeping_with(&[instance.address], spec, None);
    for key in ["1", "2", "1"] {
        let answer = gateway.ask(&get("/", &format!("X-Key: {key}")));
        assert_eq!(answer.text(), format!("/{key}"));
    }
}

#[test]
fn what_was_kept_before_a_field_counted_is_not_given() {
    let instance = Instance::start(|line: &mut Line| {
        while let Some(seen) = line.request() {
            line.say(says("Cache-Control: max-age=60", &seen.values("x-key").concat()));
        }
    });
    let gateway = keeping(&[instance.address]);
    let ask = |key: &str| gateway.ask(&get("/", &format!("X-Key: {key}"))).text();
    assert_eq!(["1", "2"].map(ask), ["1", "1"]);
    gateway.change(|http| {
        let routes = http.listeners.values_mut().flat_map(|it| &mut it.routes);
        let key_headers = vec!["x-key".to_owned()];
        let spec = CacheSpec { key_headers, ..CacheSpec::default() };
        routes.for_each(|route| route.cache = Some(spec.clone()));
    });
    eventually("each has its own", || ask("2") == "2");
    assert_eq!(ask("1"), "1");
}

#[test]
fn what_did_not_come_whole_is_not_kept() {
    let heads = [
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 9\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ];
    for head in heads {
        let count = AtomicUsize::new(0);
        let instance = Instance::start(move |line| {
            let Some(_) = line.request() else { return };
            match count.fetch_add(1, SeqCst) {
                0 => line.say(head),
                _ => line.say(says("Cache-Control: max-age=60", "all of it")),
            }
        });
        let gateway = keeping(&[instance.address]);
        assert!(!gateway.ask(&get("/", "")).whole);
        assert_eq!(gateway.ask(&get("/", "")).text(), "all of it");
        assert_eq!(gateway.ask(&get("/", "")).text(), "all of it");
        assert_eq!(instance.seen().len(), 2);
    }
}

/// Nor does anybody wait for the next one.
#[test]
fn what_is_too_large_or_has_trailers_passes_and_is_not_kept() {
    let large = "x".repeat(300_000);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    let trailers = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n\
                    2\r\nok\r\n0\r\nX: y\r\n\r\n";
    for (answer, body) in [
        (says("Cache-Control: max-age=60", &large), &*large),
        (chunked, &*large),
        (trailers.to_owned(), "ok"),
    ] {
        let instance = Instance::says(answer);
        let spec = CacheSpec { object_bytes_max: 200_000, ..CacheSpec::default() };
        let gateway = keeping_with(&[instance.address], spec, None);
        for id in ["first", "second"] {
            let answer = gateway.ask(&get("/", &format!("X-Request-Id: {id}")));
            assert!(answer.text() == body, "all of it");
        }
        assert_eq!(instance.seen().len(), 2);
        eventually("it is remembered", || gateway.gateway.request("second").is_some());
        assert_eq!(gateway.gateway.request("second").unwrap().cache, "pass");
    }
}

#[test]
fn memory_has_its_bound() {
    let body = "x".repeat(10_000);
    let instance = Instance::says(says("Cache-Control: max-age=60", &body));
    let gateway = keeping_with(&[instance.address], CacheSpec::default(), Some(1 << 20));
    let mut client = gateway.client();
    for index in 0..500 {
        client.say(get(&format!("/{index}"), ""));
        assert_eq!(client.answer().body.len(), 10_000);
        let kept = gateway.gateway.kept().unwrap();
        assert!(kept.bytes <= kept.bytes_max, "{kept:?}");
    }
    let kept = gateway.gateway.kept().unwrap();
    assert!(kept.bytes > kept.bytes_max / 2, "{kept:?}");
    assert_eq!(kept.bytes_max, 1 << 20);
}

#[test]
fn parts_of_what_is_kept_are_given_as_they_are_asked_for() {
    let instance = Instance::says(says(
        "Cache-Control: max-age=60|ETag: \"a\"|Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT|Content-Type: x/y",
        "0123456789",
    ));
    let gateway = keeping(&[instance.address]);
    gateway.ask(&get("/", ""));
    #[rustfmt::skip]
    let cases = [
        ("If-None-Match: \"a\"",                                304, "",           ""),
        ("If-None-Match: \"b\"",                                200, "0123456789", ""),
        ("If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT",    304, "",           ""),
        ("Range: bytes=2-4",                                    206, "234",        "bytes 2-4/10"),
        ("Range: bytes=-2",                                     206, "89",         "bytes 8-9/10"),
        ("Range: bytes=2-4|If-Range: \"a\"",                    206, "234",        "bytes 2-4/10"),
        ("Range: bytes=2-4|If-Range: \"b\"",                    200, "0123456789", ""),
        ("Range: bytes=10-",                                    416, "",           "bytes */10"),
        ("Range: bytes=0-1,3-4",                                200, "0123456789", ""),
    ];
    let mut client = gateway.client();
    for (fields, status, text, range) in cases {
        client.say(get("/", fields));
        let answer = client.answer();
        assert_eq!((answer.status, &*answer.text()), (status, text), "{fields}");
        assert_eq!(answer.values("content-range").concat(), range, "{fields}");
        let kind = if matches!(status, 200 | 206) { vec!["x/y"] } else { vec![] };
        assert_eq!(answer.values("content-type"), kind, "{fields}");
        assert_eq!(answer.values("etag").len(), usize::from(status != 416), "{fields}");
    }
    client.say("HEAD / HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1\r\n\r\n");
    assert_eq!(client.answer_to("HEAD").status, 200, "a part is of GET alone");
    assert_eq!(instance.seen().len(), 1);
}

#[test]
fn what_is_kept_is_taken_out_by_path_prefix_and_tag() {
    let instance =
        counting("Cache-Control: max-age=60|Surrogate-Key: one two|Cache-Tag: three, four");
    let gateway = keeping(&[instance.address]);
    let asked = |path: &str| {
        let before = instance.seen().len();
        gateway.ask(&get(path, ""));
        instance.seen().len() > before
    };
    let paths = ["/a/b", "/a/b?q", "/a/c", "/d"];
    let of = |of| What { of, ..What::ALL };
    let host = |host: &str, what: What| What { host: Some(host.to_owned()), ..what };
    let route = |route: &str, what: What| What { route: Some(route.to_owned()), ..what };
    let prefix = |path: &str| of(Of::Prefix(path.to_owned()));
    let tag = |tag: &str| of(Of::Tag(tag.to_owned()));
    #[rustfmt::skip]
    let cases = [
        (host("a", of(Of::Path("/a/b".to_owned()))),                [true, true, false, false]),
        (prefix("/a"),                                              [true, true, true, false]),
        (host("b", prefix("/")),                                    [false; 4]),
        (tag("two"),                                                [true; 4]),
        (tag("four"),                                               [true; 4]),
        (tag("five"),                                               [false; 4]),
        (route("all", prefix("/a/c")),                                [false, false, true, false]),
        (route("other", What::ALL),                                 [false; 4]),
        (host("a", What::ALL),                                      [true; 4]),
        (What::ALL,                                                 [true; 4]),
    ];
    assert_eq!(paths.map(asked), [true; 4]);
    for (what, expected) in cases {
        gateway.gateway.purge(what.clone());
        assert_eq!(paths.map(asked), expected, "{what:?}");
        assert_eq!(paths.map(asked), [false; 4], "after {what:?}");
    }
}

#[test]
fn what_is_kept_is_counted_by_route() {
    let instance = counting("Cache-Control: max-age=60");
    let gateway = keeping(&[instance.address]);
    let kept = || gateway.gateway.kept_by_route().get("all").copied().unwrap_or_default();
    assert_eq!(kept(), (0, 0));
    ["/a", "/b", "/a"].iter().for_each(|path| drop(gateway.ask(&get(path, ""))));
    eventually("it is counted", || kept().0 == 2);
    let bytes = kept().1;
    assert!(bytes > 100 && gateway.gateway.kept().unwrap().bytes > bytes, "{bytes}");
    gateway.gateway.purge(What::ALL);
    eventually("it is gone", || kept() == (0, 0));
}

#[test]
fn what_is_changed_is_asked_for_again() {
    let count = AtomicUsize::new(0);
    let instance = Instance::start(move |line| {
        while let Some(seen) = line.request() {
            let index = count.fetch_add(1, SeqCst);
            let changed = match seen.target() {
                "/fails" => "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_owned(),
                "/moves" => {
                    "HTTP/1.1 201 Made\r\nLocation: http://a/x\r\nContent-Length: 0\r\n\r\n"
                        .to_owned()
                }
                "/else" => "HTTP/1.1 201 Made\r\nLocation: http://b/x\r\nContent-Length: 0\r\n\r\n"
                    .to_owned(),
                _ => says("Cache-Control: max-age=60|Vary: Accept", &index.to_string()),
            };
            line.say(changed);
        }
    });
    let gateway = keeping(&[instance.address]);
    let change = |method: &str, path: &str| {
        gateway.ask(&format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
    };
    let asked = || {
        let before = instance.seen().len();
        gateway.ask(&get("/x", ""));
        instance.seen().len() > before
    };
    asked();
    #[rustfmt::skip]
    let cases = [
        ("POST",    "/x",     true),
        ("PUT",     "/x",     true),
        ("DELETE",  "/x",     true),
        ("PATCH",   "/x",     true),
        ("PURGE",   "/x",     true),
        ("OPTIONS", "/x",     false),
        ("POST",    "/y",     false),
        ("POST",    "/x?q",   false),
        ("POST",    "/fails", false),
        ("POST",    "/moves", true),
        ("POST",    "/else",  false),
    ];
    for (method, path, expected) in cases {
        change(method, path);
        assert_eq!(asked(), expected, "{method} {path}");
        assert!(!asked(), "after {method} {path}");
    }
}

#[test]
fn what_keeps_a_session_is_not_kept() {
    let instance = counting("Cache-Control: max-age=60");
    let sticks = |service: &mut HttpService| {
        service.affinity = Some(Affinity::Cookie("where".to_owned()));
    };
    let gateway = set_up(&[instance.address], sticks, keeps);
    assert_eq!(gateway.ask(&get("/", "")).values("set-cookie").len(), 1);
    let hit = gateway.ask(&get("/", ""));
    assert_eq!(hit.text(), "answer 0");
    assert!(hit.values("set-cookie").is_empty(), "{:?}", hit.head);
}

#[test]
fn only_what_is_kept_is_given_to_who_wants_no_other() {
    let instance = counting("Cache-Control: max-age=60");
    let gateway = keeping(&[instance.address]);
    let only = get("/", "Cache-Control: only-if-cached");
    assert_eq!(gateway.ask(&only).status, 504);
    gateway.ask(&get("/", ""));
    assert_eq!(gateway.ask(&only).text(), "answer 0");
    assert_eq!(instance.seen().len(), 1);
}

#[test]
fn clients_of_http2_get_what_is_kept() {
    let large = "0123456789".repeat(30_000);
    let instance = Instance::says(says("Cache-Control: max-age=60|ETag: \"a\"", &large));
    let gateway = keeping(&[instance.address]);
    gateway.ask(&get("/x", ""));
    let address = gateway.address;
    run(async {
        let send = connect(address).await;
        for _ in 0..3 {
            let got = ask(&send, request("GET", "/x"), &[], HeaderMap::new()).await.unwrap();
            assert_eq!((got.status, got.body.len()), (200, large.len()));
            assert!(got.body == large.as_bytes(), "as it was");
            let said = got.fields["cache-status"].to_str().unwrap();
            assert!(said.starts_with("everhold; hit"), "{said}");
        }
        let got = ask(&send, request("HEAD", "/x"), &[], HeaderMap::new()).await.unwrap();
        assert_eq!((got.status, got.body.len()), (200, 0));
        let mut part = request("GET", "/x");
        part.headers_mut().insert("range", "bytes=5-7".parse().unwrap());
        let got = ask(&send, part, &[], HeaderMap::new()).await.unwrap();
        assert_eq!((got.status, got.body), (206, b"567".to_vec()));
        // What it brings others get, too.
        ask(&send, request("GET", "/y"), &[], HeaderMap::new()).await.unwrap();
    });
    assert!(status(&gateway.ask(&get("/y", ""))).starts_with("everhold; hit"));
    assert_eq!(instance.targets(), ["/x", "/y"]);
}

/// Also while it is on its way.
#[test]
fn what_is_changed_meanwhile_is_not_kept() {
    for purged in [false, true] {
        let (asked, may) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (asked_, may_) = (asked.clone(), may.clone());
        let instance = Instance::start(move |line| {
            while let Some(seen) = line.request() {
                if seen.target() == "/slow" && asked_.fetch_add(1, SeqCst) == 0 {
                    eventually("leave to answer", || may_.load(SeqCst) > 0);
                }
                line.say(says("Cache-Control: max-age=60", "x"));
            }
        });
        let gateway = keeping(&[instance.address]);
        let mut client = gateway.client();
        client.say(get("/slow", ""));
        eventually("asked", || asked.load(SeqCst) == 1);
        match purged {
            true => gateway.gateway.purge(What { of: Of::Path("/slow".to_owned()), ..What::ALL }),
            false => {
                let post = "POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
                assert_eq!(gateway.ask(post).status, 200);
            }
        }
        may.store(1, SeqCst);
        assert_eq!(client.answer().status, 200);
        let again = gateway.ask(&get("/slow", ""));
        assert!(status(&again).contains("fwd=uri-miss"), "purged: {purged}: {:?}", again.head);
        assert!(status(&gateway.ask(&get("/slow", ""))).contains("hit"));
        reset(&client.socket);
    }
}

/// Two routes may lead the same path to different services: one must not answer for the other.
#[test]
fn a_route_keeps_for_itself() {
    let (instance, other) = (counting("Cache-Control: max-age=60"), Instance::says(FRESH));
    let canary = |http: &mut HttpTable| {
        keeps(http);
        let at = Backend { name: "o".to_owned(), address: other.address, zone: None, weight: 1 };
        http.services.get_mut("nowhere").unwrap().backends = vec![at];
        let route = http.listeners.values_mut().flat_map(|it| &mut it.routes).last().unwrap();
        let headers = [("x-canary".to_owned(), "1".to_owned())].into();
        let path = Some(PathMatch::Prefix("/".to_owned()));
        route.when = Match { path, headers, ..Match::default() };
    };
    let gateway = set_up(&[instance.address], |_| {}, canary);
    for _ in 0..2 {
        assert_eq!(gateway.ask(&get("/", "X-Canary: 1")).text(), "other");
        assert_eq!(gateway.ask(&get("/", "")).text(), "answer 0");
    }
    assert_eq!((instance.seen().len(), other.seen().len()), (1, 1));
}

const FRESH: &str =
    "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 5\r\n\r\nother";

#[test]
fn what_an_instance_of_http2_says_is_kept() {
    let server = Server::start(10, |_, _, mut respond| {
        Box::pin(async move {
            let head = http::Response::builder().header("cache-control", "max-age=60");
            let mut send = respond.send_response(head.body(()).ok()?, false).ok()?;
            send.send_data("without a length".into(), true).ok()
        })
    });
    let speaks = |service: &mut HttpService| service.version = Version::Http2;
    let gateway = set_up(&[server.address], speaks, keeps);
    assert_eq!(gateway.ask(&get("/", "")).text(), "without a length");
    let hit = gateway.ask(&get("/", ""));
    assert_eq!((&*hit.text(), hit.values("content-length")), ("without a length", vec!["16"]));
    assert_eq!(server.targets().len(), 1);
}
