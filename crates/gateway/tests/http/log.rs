//! The access log: what is in a line, what never is, and that it can be turned on and off.

use crate::fixture::{Fixture, Instance, eventually};
use serde_json::{Value, json};
use std::path::Path;

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_line_for_each_request_while_it_is_on_and_no_secrets() {
    let instance = Instance::says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let fixture = Fixture::before(&instance);
    let dir = tempfile::tempdir().unwrap();
    // Returns when it is written down, which is a moment after the client has its answer.
    let ask = |target: &str, id: &str| {
        let fields = "Authorization: Bearer s3cret\r\nCookie: a=s3cret\r\nX-Request-Id:";
        let request = format!("GET {target} HTTP/1.1\r\nHost: Shop\r\n{fields} {id}\r\n\r\n");
        let answer = fixture.ask(&request);
        eventually("it is written down", || fixture.gateway.request(id).is_some());
        answer
    };
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    assert_eq!(ask("/before", "before").status, 200);
    fixture.gateway.set_access_log(Some(&first)).unwrap();
    assert_eq!(ask("/%22a?token=s3cret", "one").status, 200);
    eventually("a line", || lines(&first).len() == 1);
    let line = &lines(&first)[0];
    let wanted = [
        ("request_id", json!("one")),
        ("client.address", json!("127.0.0.1")),
        ("listener", json!("web")),
        ("http.request.method", json!("GET")),
        ("server.address", json!("shop")),
        ("url.path", json!("/%22a")),
        ("http.route", json!("all")),
        ("service", json!("main")),
        ("backend", json!("i0")),
        ("tries", json!(1)),
        ("http.response.status_code", json!(200)),
        ("response_bytes", json!(2)),
    ];
    for (key, value) in wanted {
        assert_eq!(line[key], value, "{key}: {line}");
    }
    assert!(!line.to_string().contains("s3cret"), "{line}");

    // What was on its way is in the log it was of, the next one goes on elsewhere.
    assert_eq!(ask("/last", "last").status, 200);
    fixture.gateway.set_access_log(Some(&second)).unwrap();
    assert_eq!(ask("/next", "next").status, 200);
    eventually("the last line", || lines(&first).len() == 2);
    eventually("the next line", || lines(&second).len() == 1);
    assert_eq!(
        (&lines(&first)[1]["url.path"], &lines(&second)[0]["url.path"]),
        (&json!("/last"), &json!("/next"))
    );

    // One that can't be opened leaves the other in force.
    fixture.gateway.set_access_log(Some(&dir.path().join("none/log"))).unwrap_err();
    assert_eq!(ask("/still", "still").status, 200);
    eventually("the line", || lines(&second).len() == 2);
    fixture.gateway.set_access_log(None).unwrap();
    assert_eq!(ask("/off", "off").status, 200);
    fixture.gateway.set_access_log(Some(&second)).unwrap();
    assert_eq!(ask("/on", "on").status, 200);
    eventually("the line", || lines(&second).len() == 3);
    assert_eq!(lines(&second)[2]["url.path"], "/on");
    assert_eq!(fixture.gateway.sums().lines_lost, 0);
}

/// A disk that is full.
#[test]
fn lines_that_are_not_written_are_counted() {
    let instance = Instance::says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let fixture = Fixture::before(&instance);
    fixture.gateway.set_access_log(Some(Path::new("/dev/full"))).unwrap();
    for _ in 0..3 {
        assert_eq!(fixture.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
    }
    eventually("all are counted", || fixture.gateway.sums().lines_lost == 3);
    fixture.gateway.set_access_log(None).unwrap();
    assert_eq!(fixture.gateway.sums().lines_lost, 3);
}
