//! Lines as they are read, and a log that a gateway wrote.

use super::*;
use crate::spec::{StorePorts, load_with};
use crate::web;
use everhold_core::http::what_if::{Limits, Replay, Told};
use everhold_core::route::RouteTable;
use everhold_core::spec::Spec;
use everhold_gateway::{Config, Gateway};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

fn line(second: u64, route: &str, more: &str) -> String {
    format!(
        "{{\"@timestamp\":\"2026-11-22T00:00:{second:02}.000Z\",\"client.address\":\"10.0.0.1\",\
         \"http.route\":\"{route}\",\"tries\":1,\"http.response.status_code\":200,\
         \"duration_us\":1000,\"outcome\":\"\"{more}}}\n"
    )
}

/// By their seconds and gateways.
fn check(files: &[(&str, String)], expected: &str, bad: &[&str]) -> Reading {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    for (name, text) in files {
        std::fs::write(path(name), text).expect("written");
    }
    let paths: Vec<PathBuf> = files.iter().map(|(name, _)| path(name)).collect();
    let mut came = Vec::new();
    let each = |it: &Recorded| came.push(format!("{}@{}", it.at_us / 1_000_000 % 60, it.gateway));
    let reading = read(&paths, each).expect("read");
    assert_eq!(came.join(" "), expected, "{files:?}");
    let within = format!("{}/", dir.path().display());
    let named: Vec<String> = reading.bad_named.iter().map(|it| it.replace(&within, "")).collect();
    assert_eq!((named.len(), reading.bad), (bad.len(), bad.len() as u64), "{named:?}");
    for (named, bad) in named.iter().zip(bad) {
        assert!(named.starts_with(bad), "{named}: {bad}");
    }
    reading
}

#[test]
fn logs_of_gateways_are_put_together_in_the_order_in_which_requests_came() {
    let lines = |seconds: &[u64]| seconds.iter().map(|it| line(*it, "r", "")).collect::<String>();
    check(
        &[("a.log", lines(&[5, 4])), ("a.log.2", lines(&[1])), ("a.log.1", lines(&[3, 2]))],
        "1@0 2@0 3@0 4@0 5@0",
        &[],
    );
    let reading = check(
        &[("a.log", lines(&[1, 4])), ("b.log", lines(&[2, 3]) + &line(9, "", ""))],
        "1@0 2@1 3@1 4@0",
        &[],
    );
    assert_eq!((reading.gateways, reading.requests, reading.routeless), (2, 4, 1));
    assert_eq!(reading.to_us.zip(reading.from_us).map(|(to, from)| to - from), Some(3_000_000));
}

#[test]
fn lines_that_are_no_records_are_named_and_passed_over() {
    let long = format!("{{\"x\":\"{}\"}}\n", "x".repeat(3 * LINE_BYTES_MAX as usize));
    let year = line(3, "r", "").replace("2026", "1926");
    let text = [
        &line(1, "r", ""),
        "torn{\"@timestamp\"\n",
        "\n",
        &long,
        "\u{0}\n",
        &line(2, "r", "").replace("T00", "at"),
        &year,
        "[]\n",
        &line(4, "r", ",\"waited_us\":-1"),
        &line(5, "r\\u0041", ",\"new\":[1]"),
        "{\"@timestamp\":\"2026",
    ];
    #[rustfmt::skip]
    let bad = [
        "a:2: no record: ", "a:4: longer than", "a:5: no record: ", "a:6: no time", "a:7: a time before",
        "a:8: no record: ", "a:9: no record: ", "a:11: no record: ",
    ];
    let reading = check(&[("a", text.concat())], "1@0 5@0", &bad);
    assert_eq!(reading.requests, 2);
    let none = read(&[PathBuf::from("/nowhere/access.log")], |_| {}).expect_err("not there");
    assert!(none.to_string().starts_with("cannot read the log /nowhere/access.log: "), "{none}");
}

const MORE: &str = "\
[route.limited]\nlistener = \"web\"\nservice = \"web\"\nmatch = { path = \"/limited\" }\n\
rate_limit = { per_minute = 1, burst = 2 }\n\
[route.full]\nlistener = \"web\"\nservice = \"web\"\nmatch = { path = \"/full\" }\n\
concurrency = { limit = 1, queue = 1, wait = \"1m\" }\n\
[route.late]\nlistener = \"web\"\nservice = \"web\"\nmatch = { path = \"/late\" }\n\
concurrency = { limit = 1, queue = 9, wait = \"0s\" }\n\
[route.kept]\nlistener = \"web\"\nservice = \"web\"\nmatch = { path = \"/kept\" }\n\
cache = { ttl = \"1h\" }\n\
[route.down]\nlistener = \"web\"\nservice = \"down\"\nmatch = { path = \"/down\" }\n\
[service.down]\nkind = \"http\"\nbreaker = { failures = 2 }\naddresses = [\"127.0.0.1:1\"]\n";

fn spec(bind: u16, instance: u16, more: &str) -> Spec {
    let text = format!(
        "schema = 1\ncluster = \"shop\"\n[service.main]\nkind = \"postgres\"\n[listener.web]\n\
         bind = \"127.0.0.1:{bind}\"\nprotocol = \"http\"\n[service.web]\nkind = \"http\"\n\
         addresses = [\"127.0.0.1:{instance}\"]\n{more}"
    );
    let loaded = load_with(&text, "f", StorePorts::default());
    loaded.unwrap_or_else(|faults| panic!("{faults:?}"))
}

/// Answers `/full` and `/late` when it may.
fn instance(may: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let may = may.clone();
            thread::spawn(move || {
                let mut socket = BufReader::new(socket);
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if !matches!(socket.read_line(&mut head), Ok(1..)) {
                            return;
                        }
                    }
                    let held = head.starts_with("GET /full") || head.starts_with("GET /late");
                    let until = Instant::now() + PATIENCE;
                    while held && !may.load(SeqCst) && Instant::now() < until {
                        thread::sleep(Duration::from_millis(1));
                    }
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    if socket.get_mut().write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// The status of an answer.
fn ask(port: u16, path: &str) -> u16 {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    answer.split(' ').nth(1).and_then(|it| it.parse().ok()).expect("a status")
}

fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What a gateway writes down is read as what it was, and replayed under the same limits it is the same
/// again.
#[test]
fn what_a_gateway_did_is_read_from_its_log() {
    let may = Arc::new(AtomicBool::new(false));
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        free.local_addr().expect("an address").port()
    };
    let instance = instance(may.clone());
    let spec = |more: &str| spec(port, instance, more);
    let in_force = spec(MORE);
    let http = web::table(&in_force, &web::Told::new(), "a", |address, port| {
        address.with_port(port).parse().ok()
    });
    let table = RouteTable::default().with_http(http);
    let gateway = Gateway::start(Config::new(Arc::new(table))).expect("a gateway");
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("access.log");
    gateway.set_access_log(Some(&log)).expect("a log");

    let limited: Vec<u16> = (0..5).map(|_| ask(port, "/limited")).collect();
    assert_eq!(limited, [200, 200, 429, 429, 429]);
    assert_eq!([ask(port, "/kept"), ask(port, "/kept")], [200, 200]);
    let waiting = |route: &str| {
        let routes = gateway.guarded().routes;
        routes[&("web".to_string(), route.to_string())]
    };
    let first = ["/full", "/late"].map(|path| thread::spawn(move || ask(port, path)));
    eventually("both are in", || waiting("full").in_flight + waiting("late").in_flight == 2);
    let second = thread::spawn(move || ask(port, "/full"));
    eventually("one waits", || waiting("full").waiting == 1);
    assert_eq!([ask(port, "/full"), ask(port, "/late")], [503, 503]);
    may.store(true, SeqCst);
    for it in first.into_iter().chain([second]) {
        assert_eq!(it.join().expect("no panic"), 200);
    }
    let mut down = 0;
    eventually("the breaker is open", || {
        down += 1;
        ask(port, "/down");
        gateway.guarded().breakers.get("down").is_some_and(Option::is_some)
    });
    assert_eq!(ask(port, "/down"), 503);
    let paths = [log];
    let whole = 5 + 2 + 5 + down + 1;
    let mut all = Vec::new();
    eventually("it is written", || {
        all.clear();
        read(&paths, |it| all.push(it.clone())).is_ok() && all.len() == whole
    });

    let mut recorded = Told::default();
    all.iter().for_each(|it| recorded.record(it));
    let counts = |told: &Told, route: &str| {
        let it = &told.tallies[route];
        let refused = Rule::ALL.map(|rule| it.refused_by(rule));
        (it.admitted, it.kept, it.waits.count(), refused)
    };
    let down = down as u64;
    assert_eq!(counts(&recorded, "limited"), (2, 0, 0, [3, 0, 0, 0, 0]));
    assert_eq!(counts(&recorded, "kept"), (1, 1, 0, [0; 5]));
    assert_eq!(counts(&recorded, "full"), (2, 0, 1, [0, 1, 0, 0, 0]));
    assert_eq!(counts(&recorded, "late"), (1, 0, 0, [0, 0, 1, 0, 0]));
    let (tried, .., refused) = counts(&recorded, "down");
    assert_eq!((tried + refused[3], refused[3] > 0), (down + 1, true));

    let replayed = |spec: &Spec| {
        let mut replay = Replay::new(Limits::of(spec));
        all.iter().for_each(|it| replay.request(it));
        replay.end()
    };
    let again = replayed(&in_force);
    for route in ["limited", "kept", "full", "late"] {
        assert_eq!(counts(&again, route), counts(&recorded, route), "{route}");
    }
    let other =
        replayed(&spec(&MORE.replace("burst = 2", "burst = 4").replace("queue = 1", "queue = 0")));
    assert_eq!(counts(&other, "limited"), (4, 0, 0, [1, 0, 0, 0, 0]));
    assert_eq!(counts(&other, "full"), (1, 0, 0, [0, 2, 0, 0, 0]));
}
