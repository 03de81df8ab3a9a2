//! Answers that are kept, purged from the command line, also while a gateway is frozen; and routes as
//! they are at the moment.

use crate::stack::{Stack, Wanted, signal};
use crate::web;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

/// What `Cache-Status` says of an answer.
fn cached(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let line = answer.lines().find(|it| it.to_ascii_lowercase().starts_with("cache-status:"));
    line.unwrap_or_else(|| panic!("no word of the cache: {answer}")).to_string()
}

fn is_kept(port: u16, path: &str) -> bool {
    cached(port, path).contains("; hit;")
}

#[test]
fn what_is_purged_is_asked_for_anew() {
    let mut stack = Stack::new(Wanted::default());
    let keeps =
        "[route.web]\ncache = { ttl = \"1h\" }\nrate_limit = { per_hour = 1000, burst = 1000 }\n";
    let spec = web::spec(&stack, "").replace("[route.web]\n", keeps);
    fs::write(stack.spec_file(), spec).expect("the spec is written");
    stack.up();
    web::whole(&mut stack);
    let port = web::port(&stack);
    let paths = ["/a", "/a/b?c", "/d"];
    let kept = || paths.map(|path| is_kept(port, path));
    kept();
    assert_eq!(kept(), [true; 3]);
    for (arguments, expected) in [
        (&["web", "--path", "/a"][..], [false, true, true]),
        (&["--path", "/a/b", "--path", "/d"], [true, false, false]),
        (&["--prefix", "/a", "--host", "x"], [false, false, true]),
        (&["web", "--all"], [false; 3]),
        (&["--tag", "nothing"], [true; 3]),
    ] {
        let said = stack.done(&[&["cache", "purge"], arguments].concat());
        assert!(said.starts_with("purged by gateway in "), "{said}");
        assert_eq!(kept(), expected, "{arguments:?}");
        assert_eq!(kept(), [true; 3], "{arguments:?}");
    }
    let journal = stack.done(&["journal"]);
    assert!(journal.contains("purge: path /a of route web"), "{journal}");
    let none = stack.command(&["cache", "purge", "web"]).output().expect("it runs");
    assert_eq!(none.status.code(), Some(2), "{none:?}");

    let routes: Value =
        serde_json::from_str(&stack.done(&["routes", "--json"])).expect("an answer");
    let (route, service) = (&routes["routes"]["web"], &routes["services"]["web"]);
    assert_eq!(route["cache"]["answers"], 3, "{routes}");
    assert!(route["cache"]["hits"].as_u64() > Some(9) && route["requests_per_s"].is_f64());
    assert_eq!(route["rate_limit"]["clients"], 1, "{routes}");
    assert_eq!(service["instances"].as_object().map(|it| it.len()), Some(3), "{routes}");
    let table = stack.done(&["routes"]);
    assert!(table.contains("3 answers, ") && table.contains("3 of 3 fit"), "{table}");

    // Who can't be heard has not purged; when it is back it has.
    let gateway = stack.agent_pid("gateway").expect("it runs");
    signal("STOP", &[gateway]);
    let missed = stack.command(&["cache", "purge", "--all"]).output().expect("it runs");
    signal("CONT", &[gateway]);
    let said = String::from_utf8_lossy(&missed.stderr);
    assert_eq!(missed.status.code(), Some(1), "{said}");
    assert!(said.starts_with("E309 ") && said.contains("not done by gateway"), "{said}");
    stack.done(&["cache", "purge", "--tag", "nothing"]);
    assert_eq!(kept(), [false; 3]);
    assert_eq!(kept(), [true; 3]);
}
