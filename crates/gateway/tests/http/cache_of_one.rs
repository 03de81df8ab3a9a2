//! What the request of one brings about is not taken for what all get.

use super::cache::{get, keeping, says};
use super::fixture::Instance;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// It is older than it is fresh as it comes, and good where nobody answers.
const STALE: &str = "Cache-Control: max-age=10, stale-if-error=600|Age: 60|ETag: \"a\"";

fn status(line: &str, fields: &str) -> String {
    says(fields, "").replace("200 OK", line)
}

/// What is kept is asked for anew by one, and given to the others while the service fails.
#[test]
fn an_answer_that_is_not_kept_takes_away_what_it_speaks_of() {
    const NOT: &str = "Cache-Control: no-store";
    #[rustfmt::skip]
    let cases: Vec<(&str, String, bool)> = vec![
        // What the one says, what it is answered, whether the others get what was there.
        ("Authorization: Basic eDp5",  says("Cache-Control: max-age=60", "x"),                           true),
        ("Authorization: Basic eDp5",  status("404 No", "Cache-Control: max-age=60"),                    true),
        ("Cookie: session=1",          says("Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT", "x"),        true),
        ("Origin: https://e",          says("Cache-Control: max-age=60|Access-Control-Allow-Origin: https://e", "x"), true),
        ("",                           status("400 Bad", NOT),                                           true),
        ("",                           status("401 Who", NOT),                                           true),
        ("",                           status("403 No", "Cache-Control: private|Set-Cookie: a=b"),       true),
        ("",                           status("429 Often", ""),                                          true),
        ("",                           status("431 Large", ""),                                          true),
        ("Authorization: Basic eDp5",  "HTTP/1.1 304 Same\r\nCache-Control: max-age=60\r\n\r\n".into(), true),
        ("",                           "HTTP/1.1 304 Same\r\nCache-Control: no-store\r\n\r\n".into(),  false),
        ("",                           says(NOT, "x"),                                                   false),
        ("",                           says("Cache-Control: max-age=60, private", "x"),                  false),
        ("",                           says("Cache-Control: max-age=60|Set-Cookie: a=b", "x"),           false),
        ("",                           says("Cache-Control: max-age=60|Vary: *", "x"),                   false),
        ("",                           status("404 No", NOT),                                            false),
        ("Range: bytes=0-1",           status("410 Gone", NOT),                                          false),
    ];
    for (fields, answer, kept) in cases {
        let (count, said) = (AtomicUsize::new(0), answer.clone());
        let instance = Instance::start(move |line| {
            while line.request().is_some() {
                match count.fetch_add(1, SeqCst) {
                    0 => line.say(says(STALE, "kept")),
                    1 => line.say(&said),
                    _ => line.say(status("503 Busy", "")),
                }
            }
        });
        let gateway = keeping(&[instance.address]);
        assert_eq!(gateway.ask(&get("/", "")).text(), "kept");
        gateway.ask(&get("/", fields));
        assert_eq!(instance.seen().len(), 2);
        let expected = if kept { (200, "kept") } else { (503, "") };
        let other = gateway.ask(&get("/", ""));
        assert_eq!((other.status, &*other.text()), expected, "{fields:?} {answer:?}");
    }
}

/// An instance that has `first`, and says that to who asks whether it is so still.
fn still(first: &'static str, same: &'static str) -> Instance {
    let count = AtomicUsize::new(0);
    Instance::start(move |line| {
        while let Some(seen) = line.request() {
            match (count.fetch_add(1, SeqCst), &seen.values("if-none-match")[..]) {
                (0, _) => line.say(says(STALE, first)),
                (_, []) => line.say(says("Cache-Control: max-age=60|ETag: \"b\"", "new")),
                (_, _) => line.say(same),
            }
        }
    })
}

#[test]
fn what_is_said_to_one_with_a_304_reaches_it_and_nobody_else() {
    let same = "HTTP/1.1 304 Same\r\nETag: \"a\"\r\nSet-Cookie: session=1\r\n\r\n";
    let instance = still("first", same);
    let gateway = keeping(&[instance.address]);
    gateway.ask(&get("/", ""));
    let one = gateway.ask(&get("/", ""));
    assert_eq!((&*one.text(), one.values("set-cookie")), ("first", vec!["session=1"]));
    let other = gateway.ask(&get("/", ""));
    assert_eq!((&*other.text(), other.values("set-cookie")), ("new", vec![]));
}

/// Then it says nothing of the one that is kept.
#[test]
fn a_304_of_another_one_is_none() {
    let instance = still("first", "HTTP/1.1 304 Same\r\nETag: \"b\"\r\n\r\n");
    let gateway = keeping(&[instance.address]);
    gateway.ask(&get("/", ""));
    let answer = gateway.ask(&get("/", "Range: bytes=0-1"));
    assert_eq!((answer.status, &*answer.text()), (200, "new"));
    assert_eq!(gateway.ask(&get("/", "")).text(), "new");
    let seen = instance.seen();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[2].values("range"), ["bytes=0-1"], "as it was asked for");
}

#[test]
fn no_condition_of_a_client_stands_beside_the_gateways_own() {
    let instance = still("first", "HTTP/1.1 304 Same\r\nETag: \"a\"\r\n\r\n");
    let gateway = keeping(&[instance.address]);
    gateway.ask(&get("/", ""));
    gateway.ask(&get("/", "if_none_match: \"z\"|If_Modified_Since: now|If-None-Match: \"z\""));
    let second = &instance.seen()[1];
    assert_eq!(second.values("if-none-match"), ["\"a\""]);
    for name in ["if_none_match", "if_modified_since"] {
        assert!(second.values(name).is_empty(), "{:?}", second.head);
    }
}
