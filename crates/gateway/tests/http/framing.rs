//! Heads that are refused, and heads as they are forwarded.
//!
//! Behind each request that is refused stands another one: no instance may ever see it.

use super::fixture::{FINE, Fixture, Instance};
use super::second::{self, Server, before};

use Expect::{As, Fault, Refused};

#[derive(Debug, Clone, Copy)]
enum Expect {
    Refused(u16),
    /// What the instance gets, without what the gateway adds, and its body.
    As(&'static str, &'static str),
    /// Refused in the middle of its body: its head may have gone out, all of it never has.
    Fault,
}

/// After each.
const NEXT: &str = "GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n";

fn check(cases: &[(&str, Expect)]) {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    let (mut forwarded, mut wrong) = (0, Vec::new());
    for (request, expected) in cases {
        for piece in [usize::MAX, 1] {
            let about = format!("{request:?} in pieces of {piece}");
            let mut client = gateway.client();
            let next = if matches!(expected, As(..)) { "" } else { NEXT };
            for bytes in [*request, next].concat().as_bytes().chunks(piece.min(1 << 20)) {
                client.say(bytes);
            }
            let method = request.trim_start().split(' ').next().unwrap();
            let answer = client.answer_to(if matches!(expected, As(..)) { method } else { "" });
            let told = (answer.status, answer.text());
            match expected {
                Refused(_) | Fault => {
                    let status = if let Refused(status) = expected { *status } else { 400 };
                    let closed = answer.values("connection") == ["close"] && client.ends();
                    if answer.status != status || !answer.is_own() || !answer.whole || !closed {
                        wrong.push(format!("{about}: {told:?}, closed: {closed}"));
                    }
                }
                As(head, body) => {
                    let version = if request.contains(" HTTP/1.0\r\n") { "1.0" } else { "1.1" };
                    let got = instance.seen().pop().map(|it| (it.plain_of(version), it.body));
                    let wanted = Some(((*head).to_owned(), body.as_bytes().to_vec()));
                    if answer.status != 200 || got != wanted {
                        wrong.push(format!("{about}: {told:?}, {got:?}"));
                    }
                    forwarded += 1;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(instance.seen().len(), forwarded, "{:?}", instance.targets());
    assert!(!instance.targets().iter().any(|it| it.contains("smuggled")));
    assert_eq!(instance.faults(), [] as [&str; 0]);
}

#[test]
fn of_two_ways_to_say_where_a_body_ends_none_is_taken() {
    #[rustfmt::skip]
    check(&[
        // Both.
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\ntransfer-ENCODING: Chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        // Codings that somebody could take for none.
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",             Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",            Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",             Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",          Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0cchunked\r\n\r\n0\r\n\r\n",          Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",          Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\n chunked\r\n\r\n0\r\n\r\n",            Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",        Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",        Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n",            Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",             Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunkedx\r\n\r\n0\r\n\r\n",             Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",          Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n",          Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",             Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",    Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \r\n\r\n0\r\n\r\n",                     Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",                 Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",        Refused(501)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",    Refused(501)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: , chunked\r\n\r\n0\r\n\r\n",            Refused(501)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",     Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip, Chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",  Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-encoding: identity\r\n\r\n0\r\n\r\n", Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",              Refused(400)),
        ("POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        // Lengths that are none, or two.
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello",                          Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello",                          Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -0\r\n\r\n",                               Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\nhello",                         Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello",                         Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5,5\r\n\r\nhello",                         Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 6\r\n\r\nhello",                        Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5;\r\n\r\nhello",                          Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5.0\r\n\r\nhello",                         Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5e0\r\n\r\nhello",                         Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\nhellohello",                    Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 010\r\n\r\nhellohello",                    Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 00\r\n\r\n",                               Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: five\r\n\r\nhello",                        Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nhello",                             Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \"5\"\r\n\r\nhello",                       Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ５\r\n\r\nhello",                          Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000000000000000\r\n\r\nhello",        Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\nhello",        Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 00000000000000000005\r\n\r\nhello",        Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello",                          Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",      Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nhello",      Refused(400)),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\ncontent-length: 6\r\n\r\nhello",      Refused(400)),
        // What is one way only.
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
         As("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n", "hello")),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:  5 \t\r\n\r\nhello",
         As("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n", "hello")),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:5\r\n\r\nhello",
         As("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n", "hello")),
        ("POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
         As("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n", "hello")),
        ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding:\tcHuNkEd\t\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
         As("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n", "hello")),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
         As("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n", "hi")),
        // To a program behind CGI or WSGI these are the same names.
        ("POST / HTTP/1.1\r\nHost: a\r\nContent_Length: 30\r\nTransfer_Encoding: chunked\r\nContent-Length: 2\r\n\r\nhi",
         As("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n", "hi")),
    ]);
}

#[test]
fn lines_end_one_way() {
    #[rustfmt::skip]
    check(&[
        ("GET / HTTP/1.1\nHost: a\n\n",                          Refused(400)),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n",                      Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n",                      Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n",                      Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",              Refused(400)),
        ("GET / HTTP/1.1\rHost: a\r\n\r\n",                      Refused(400)),
        ("GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",                  Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",                  Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",      Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n",     Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n",              As("GET / HTTP/1.1\r\nHost: a\r\nX: \r\n", "")),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n",                   Refused(400)),
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n",                   Refused(400)),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",                  Refused(400)),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",            Refused(400)),
        ("\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",              Refused(400)),
        ("\r\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",                Refused(400)),
        ("\r\n GET / HTTP/1.1\r\nHost: a\r\n\r\n",               Refused(400)),
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",                As("GET / HTTP/1.1\r\nHost: a\r\n", "")),
    ]);
}

#[test]
fn request_lines_have_three_words() {
    #[rustfmt::skip]
    check(&[
        ("GET /\r\n\r\n",                                        Refused(400)),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n",                   Refused(400)),
        ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n",                   Refused(400)),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",                   Refused(400)),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n",                   Refused(400)),
        ("GET / x HTTP/1.1\r\nHost: a\r\n\r\n",                  Refused(400)),
        ("GET HTTP/1.1\r\nHost: a\r\n\r\n",                      Refused(400)),
        ("/ HTTP/1.1\r\nHost: a\r\n\r\n",                        Refused(400)),
        ("GET / http/1.1\r\nHost: a\r\n\r\n",                    Refused(400)),
        ("GET / HTTP/1,1\r\nHost: a\r\n\r\n",                    Refused(400)),
        ("GET / HTTP/01.1\r\nHost: a\r\n\r\n",                   Refused(400)),
        ("GET / HTTP/1.10\r\nHost: a\r\n\r\n",                   Refused(400)),
        ("GET / HTTP/1\r\nHost: a\r\n\r\n",                      Refused(400)),
        ("GET / HTTP/0.9\r\nHost: a\r\n\r\n",                    Refused(505)),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n",                    Refused(505)),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n",                    Refused(505)),
        ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n",                    Refused(400)),
        ("G\0T / HTTP/1.1\r\nHost: a\r\n\r\n",                   Refused(400)),
        ("\"GET\" / HTTP/1.1\r\nHost: a\r\n\r\n",                Refused(400)),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",             Refused(501)),
        ("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",                Refused(501)),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",                  Refused(501)),
        // Methods are case-sensitive: another one, for the instance to judge.
        ("get / HTTP/1.1\r\nHost: a\r\n\r\n",                    As("get / HTTP/1.1\r\nHost: a\r\n", "")),
        ("PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n",               As("PROPFIND / HTTP/1.1\r\nHost: a\r\n", "")),
        ("OPTIONS /a HTTP/1.1\r\nHost: a\r\n\r\n",               As("OPTIONS /a HTTP/1.1\r\nHost: a\r\n", "")),
    ]);
}

#[test]
fn targets_are_paths_that_mean_one_thing() {
    #[rustfmt::skip]
    check(&[
        ("GET a HTTP/1.1\r\nHost: a\r\n\r\n",                    Refused(400)),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n",                    Refused(400)),
        ("GET ?a HTTP/1.1\r\nHost: a\r\n\r\n",                   Refused(400)),
        ("GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",                 Refused(400)),
        ("GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",                  Refused(400)),
        ("GET /é HTTP/1.1\r\nHost: a\r\n\r\n",                   Refused(400)),
        ("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",                Refused(400)),
        ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",                  Refused(400)),
        ("GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n",                Refused(400)),
        ("GET /\t HTTP/1.1\r\nHost: a\r\n\r\n",                  Refused(400)),
        ("GET /. HTTP/1.1\r\nHost: a\r\n\r\n",                   Refused(400)),
        ("GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n",              Refused(400)),
        ("GET /a/.. HTTP/1.1\r\nHost: a\r\n\r\n",                Refused(400)),
        ("GET /a/./b HTTP/1.1\r\nHost: a\r\n\r\n",               Refused(400)),
        ("GET /a/%2e%2E/b HTTP/1.1\r\nHost: a\r\n\r\n",          Refused(400)),
        ("GET /a/.%2e/b HTTP/1.1\r\nHost: a\r\n\r\n",            Refused(400)),
        ("GET /a/%2e HTTP/1.1\r\nHost: a\r\n\r\n",               Refused(400)),
        ("GET /a/..\\b HTTP/1.1\r\nHost: a\r\n\r\n",             Refused(400)),
        ("GET /a\\..\\b HTTP/1.1\r\nHost: a\r\n\r\n",            Refused(400)),
        // Some take an encoded slash for one before they look for dots, some cut parameters off.
        ("GET /a/..%2fb HTTP/1.1\r\nHost: a\r\n\r\n",            Refused(400)),
        ("GET /a%2F../b HTTP/1.1\r\nHost: a\r\n\r\n",            Refused(400)),
        ("GET /a/%2e%2e%2Fb HTTP/1.1\r\nHost: a\r\n\r\n",        Refused(400)),
        ("GET /a/..%5cb HTTP/1.1\r\nHost: a\r\n\r\n",            Refused(400)),
        ("GET /a/..;/b HTTP/1.1\r\nHost: a\r\n\r\n",             Refused(400)),
        ("GET /a/..;x=y/b HTTP/1.1\r\nHost: a\r\n\r\n",          Refused(400)),
        ("GET /a/%2e%2e%3bx/b HTTP/1.1\r\nHost: a\r\n\r\n",      Refused(400)),
        ("GET http://a/../b HTTP/1.1\r\nHost: a\r\n\r\n",        Refused(400)),
        ("GET http:///b HTTP/1.1\r\nHost: a\r\n\r\n",            Refused(400)),
        ("GET http://u@a/b HTTP/1.1\r\nHost: a\r\n\r\n",         Refused(400)),
        ("GET ftp://a/b HTTP/1.1\r\nHost: a\r\n\r\n",            Refused(400)),
        ("GET http://a/b HTTP/1.1\r\n\r\n",                      Refused(400)),
        ("GET http://a/b HTTP/1.1\r\nHost: a b\r\n\r\n",         Refused(400)),
        ("GET http://a/b HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Refused(400)),
        ("GET /a/...;/.b/..c/d..%2f HTTP/1.1\r\nHost: a\r\n\r\n", As("GET /a/...;/.b/..c/d..%2f HTTP/1.1\r\nHost: a\r\n", "")),
        ("GET /a?b=/../%2e%2e HTTP/1.1\r\nHost: a\r\n\r\n",      As("GET /a?b=/../%2e%2e HTTP/1.1\r\nHost: a\r\n", "")),
        ("GET //evil.org/b HTTP/1.1\r\nHost: a\r\n\r\n",         As("GET //evil.org/b HTTP/1.1\r\nHost: a\r\n", "")),
        ("GET /a//b%20%c3%a9%00 HTTP/1.1\r\nHost: a\r\n\r\n",    As("GET /a//b%20%c3%a9%00 HTTP/1.1\r\nHost: a\r\n", "")),
        ("GET http://b:80/c?d HTTP/1.1\r\nHost: a\r\n\r\n",      As("GET /c?d HTTP/1.1\r\nHost: b:80\r\n", "")),
        ("GET HTTP://b HTTP/1.1\r\nHost: a\r\n\r\n",             As("GET / HTTP/1.1\r\nHost: b\r\n", "")),
        ("GET http://b/http://c/ HTTP/1.1\r\nHost: b\r\n\r\n",   As("GET /http://c/ HTTP/1.1\r\nHost: b\r\n", "")),
    ]);
}

#[test]
fn there_is_one_host() {
    #[rustfmt::skip]
    check(&[
        ("GET / HTTP/1.1\r\n\r\n",                               Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",         Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",         Refused(400)),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",         Refused(400)),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n",                   Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",                 Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n",                  Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",                  Refused(400)),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",                  Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n",              Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a:x\r\n\r\n",                  Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a:123456\r\n\r\n",             Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a?b\r\n\r\n",                  Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a#b\r\n\r\n",                  Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a%00b\r\n\r\n",                Refused(400)),
        ("GET / HTTP/1.1\r\nHost: é\r\n\r\n",                    Refused(400)),
        ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",                 Refused(400)),
        ("GET / HTTP/1.1\r\nHost: []\r\n\r\n",                   Refused(400)),
        ("GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n",               Refused(400)),
        ("GET / HTTP/1.1\r\nHost: http://a\r\n\r\n",             Refused(400)),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",             As("GET / HTTP/1.1\r\nHost: [::1]:80\r\n", "")),
        ("GET / HTTP/1.1\r\nHost: A.b:80\r\n\r\n",               As("GET / HTTP/1.1\r\nHost: A.b:80\r\n", "")),
        ("GET / HTTP/1.1\r\nX: y\r\nHOST:a\r\n\r\n",             As("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n", "")),
        ("GET / HTTP/1.0\r\n\r\n",                               As("GET / HTTP/1.1\r\nHost: \r\n", "")),
    ]);
}

#[test]
fn fields_are_names_and_text() {
    #[rustfmt::skip]
    check(&[
        ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",               Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n",             Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n",          Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX : z\r\n\r\n",           Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX(y): z\r\n\r\n",         Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\0: z\r\n\r\n",          Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\x0b: z\r\n\r\n",        Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nÉ: z\r\n\r\n",            Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",           Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\x01\r\n\r\n",        Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\x08z\r\n\r\n",       Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\x7f\r\n\r\n",        Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: \x1b[2J\r\n\r\n",      Refused(400)),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\tz é \r\nx:y\r\n\r\n", As("GET / HTTP/1.1\r\nHost: a\r\nX: y\tz é\r\nx: y\r\n", "")),
        ("GET / HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~: z\r\n\r\n", As("GET / HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~: z\r\n", "")),
    ]);
}

#[test]
fn heads_have_a_size() {
    let fields = |count: usize| "X: y\r\n".repeat(count);
    let path = |length: usize| "a".repeat(length);
    // 100 fields with Host, then one more.
    let hundred = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(99));
    let more = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(100));
    let around = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".len();
    let whole = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", path((16 << 10) - around));
    let longer = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", path((16 << 10) - around + 1));
    let longest = format!("GET /{}", path(64 << 10));
    let field = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", path(64 << 10));
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    assert_eq!(gateway.ask(&hundred).status, 200);
    assert_eq!(instance.seen()[0].values("x").len(), 99);
    assert_eq!(gateway.ask(&whole).status, 200);
    let blank = format!("\r\nGET /{}", path(64 << 10));
    for (request, status) in
        [(more, 431), (longer, 431), (field, 431), (longest, 414), (blank, 414)]
    {
        let answer = gateway.ask(&(request + NEXT));
        assert!(answer.is_own() && answer.status == status, "{answer:?}");
    }
    assert_eq!(instance.seen().len(), 2);
}

#[test]
fn options_of_all_go_to_where_the_host_leads() {
    let instance = Instance::says(FINE);
    // It is of no path: all that a host has is where the prefix `/` leads.
    let gateway = Fixture::before(&instance);
    let server = Server::start(100, second::echo);
    let other = before(&[server.address]);
    for asked in ["*", "http://a"] {
        for gateway in [&gateway, &other] {
            let answer = gateway.ask(&format!("OPTIONS {asked} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert!(answer.status == 200, "{answer:?}");
        }
    }
    assert_eq!(instance.targets(), ["*", "*"]);
    assert_eq!(server.targets(), ["OPTIONS http://a*", "OPTIONS http://a*"]);
    let last = gateway.ask("OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n");
    assert_eq!(last.status, 204);
    let answer = gateway.ask("OPTIONS * HTTP/1.1\r\nHost: elsewhere.org\r\n\r\n");
    assert!(answer.is_own() && answer.status == 503, "{answer:?}");
    assert_eq!(instance.seen().len(), 2);
}

#[test]
fn bodies_that_are_none() {
    const HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let bodies = [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "\t5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5h\r\nhello\r\n0\r\n\r\n",
        "0_5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "5;\r\nhello\r\n0\r\n\r\n",
        "5;;a\r\nhello\r\n0\r\n\r\n",
        "5;a=\r\nhello\r\n0\r\n\r\n",
        "5;a=\"b\r\nhello\r\n0\r\n\r\n",
        "5;a b\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;a\0\r\nhello\r\n0\r\n\r\n",
        "10000000000000000\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\n\rX",
        "5\r\nhello\r\n0\r\nA: b\n\r\n",
        "5\r\nhello\r\n0\r\nA : b\r\n\r\n",
        "5\r\nhello\r\n0\r\n A: b\r\n\r\n",
        "5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n",
        "5\r\nhello\r\n0\r\nA: \0\r\n\r\n",
        "5\r\nhello\r\n0\r\nA\r\n\r\n",
    ];
    let requests: Vec<String> = bodies.iter().map(|body| [HEAD, *body].concat()).collect();
    let cases: Vec<_> = requests.iter().map(|it| (it.as_str(), Fault)).collect();
    check(&cases);
}
