//! Frames of HTTP/2 that no library sends. Nothing of them reaches an instance as a request, or as
//! another one than was judged, and the gateway goes on serving.

use super::fixture::{A_WHILE, FINE, Fixture, Instance, eventually};
use super::links::frame;
use super::raw::{
    ACK, AUTHORITY, CONTINUATION, Came, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS,
    METHOD, PADDED, PATH, PING, POST, PRIORITY, PUSH_PROMISE, RST_STREAM, Raw, SCHEME, SETTINGS,
    WINDOW_UPDATE, block,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::sleep;

/// What stands in bodies, and is never to be a request.
const INNER: &str = "GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n";
const WINDOW: u32 = 65_535;

/// An instance that reads by the letter, behind a gateway.
fn set_up() -> (Instance, Fixture) {
    let instance = Instance::says(FINE);
    let gateway = Fixture::before(&instance);
    (instance, gateway)
}

fn is_fine(came: &Came) -> bool {
    matches!(came, Came::Answer { status: 200, body } if body == b"ok")
}

/// Another client is served as ever.
#[track_caller]
fn goes_on(gateway: &Fixture) {
    let came = Raw::connect(gateway.address, WINDOW).get(1);
    assert!(is_fine(&came), "{came:?}");
}

/// Fields, and pieces of a body.
type Case = (&'static [(&'static str, &'static str)], &'static [&'static str]);

/// Says a head, and its body in frames: at once, or the head alone would be passed on meanwhile, and
/// broken off.
fn ask(raw: &mut Raw, stream: u32, head: &[u8], body: &[&str]) -> Came {
    let ends = if body.is_empty() { END_STREAM } else { 0 };
    let mut all = frame(HEADERS, END_HEADERS | ends, stream, head);
    for (index, piece) in body.iter().enumerate() {
        let ends = if index + 1 == body.len() { END_STREAM } else { 0 };
        all.extend(frame(DATA, ends, stream, piece.as_bytes()));
    }
    raw.say(all);
    raw.until(stream)
}

/// Each is refused with its stream, and the connection goes on; or with its connection.
fn refused(what: &str, cases: &[Case]) {
    let (instance, gateway) = set_up();
    let (mut fine, mut wrong) = (1, Vec::new());
    for (fields, body) in cases {
        let mut raw = Raw::connect(gateway.address, WINDOW);
        let came = ask(&mut raw, 1, &block(*fields), body);
        if came == Came::End(Some(1)) {
            continue;
        }
        let next = raw.get(3);
        fine += usize::from(is_fine(&next));
        let is_refused = matches!(came, Came::Answer { status: 400 | 501, .. } | Came::Reset(1));
        if !is_refused || !is_fine(&next) {
            wrong.push(format!("{fields:?} {body:?}: {came:?}, then {next:?}"));
        }
    }
    goes_on(&gateway);
    assert!(wrong.is_empty(), "{what}: {wrong:#?}");
    assert_eq!(instance.targets(), vec!["/fine"; fine], "{what}");
    assert_eq!(instance.faults(), [] as [&str; 0], "{what}");
}

/// The pseudo fields of an upload, and those.
macro_rules! post {
    ($($field:expr),* $(,)?) => {
        &[METHOD, SCHEME, AUTHORITY, PATH, $($field),*]
    };
}

#[test]
fn a_length_and_its_data_agree() {
    refused(
        "length",
        &[
            (post![("content-length", "5")], &["hel"]),
            (post![("content-length", "5")], &["hel", ""]),
            (post![("content-length", "5")], &[]),
            (post![("content-length", "5")], &[""]),
            (post![("content-length", "0")], &["hello"]),
            (post![("content-length", "3")], &["hello"]),
            (post![("content-length", "3")], &["hel", "lo"]),
            (post![("content-length", "3")], &["abc", INNER]),
            (post![("content-length", "0")], &[INNER]),
            (post![("content-length", "5"), ("content-length", "6")], &["hello"]),
            (post![("content-length", "6"), ("content-length", "5")], &["hello"]),
            (post![("content-length", "5,5")], &["hello"]),
            (post![("content-length", "+5")], &["hello"]),
            (post![("content-length", "05")], &["hello"]),
            (post![("content-length", "")], &["hello"]),
            (post![("content-length", "five")], &["hello"]),
            (post![("content-length", "18446744073709551616")], &["hello"]),
        ],
    );
}

#[test]
fn fields_of_a_connection_are_none_of_a_stream() {
    refused(
        "connection",
        &[
            (post![("connection", "close")], &[INNER]),
            (post![("connection", "x"), ("x", "y")], &[]),
            (post![("transfer-encoding", "chunked")], &["0\r\n\r\n", INNER]),
            (post![("transfer-encoding", "chunked"), ("content-length", "5")], &["hello"]),
            (post![("transfer-encoding", "identity")], &[]),
            (post![("keep-alive", "timeout=5")], &[]),
            (post![("proxy-connection", "close")], &[]),
            (post![("upgrade", "h2c")], &[]),
            (post![("te", "gzip")], &[]),
            (post![("te", "trailers, gzip")], &[]),
        ],
    );
}

#[test]
fn names_and_values_are_what_http1_can_bear() {
    refused(
        "fields",
        &[
            (post![("X-Upper", "y")], &[]),
            (post![("Content-Length", "0")], &[INNER]),
            (post![("", "y")], &[]),
            (post![("x y", "z")], &[]),
            (post![("x:", "z")], &[]),
            (post![("x\r\ny", "z")], &[]),
            (post![("x\0", "z")], &[]),
            (post![("é", "z")], &[]),
            (post![("x", "y\r\nz: evil")], &[]),
            (post![("x", "y\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n")], &[]),
            (post![("x", "y\rz")], &[]),
            (post![("x", "y\nz")], &[]),
            (post![("x", "y\0z")], &[]),
            (post![("x", "\x7f")], &[]),
            // RFC 9113 section 8.2.1.
            (post![("x", " y")], &[]),
            (post![("x", "y ")], &[]),
            (post![("x", "\ty")], &[]),
            (post![("x", "y\t")], &[]),
            (post![("x", " ")], &[]),
            (post![("keep-alive ", "y")], &[]),
            (post![("content-length", " 5")], &["hello"]),
            (post![("te", "trailers ")], &[]),
        ],
    );
}

#[test]
fn what_is_asked_for_is_said_once_and_first() {
    refused(
        "pseudo fields",
        &[
            // Missing.
            (&[SCHEME, AUTHORITY, PATH], &[]),
            (&[METHOD, AUTHORITY, PATH], &[]),
            (&[METHOD, SCHEME, AUTHORITY], &[]),
            (&[METHOD, SCHEME, PATH], &[]),
            (&[], &[]),
            // Twice.
            (&[METHOD, METHOD, SCHEME, AUTHORITY, PATH], &[]),
            (&[METHOD, SCHEME, SCHEME, AUTHORITY, PATH], &[]),
            (&[METHOD, SCHEME, AUTHORITY, PATH, PATH], &[]),
            (&[METHOD, SCHEME, AUTHORITY, PATH, (":path", "/smuggled")], &[]),
            (&[METHOD, SCHEME, AUTHORITY, (":authority", "evil"), PATH], &[]),
            // After others, unknown, or of answers.
            (&[METHOD, SCHEME, AUTHORITY, ("x", "y"), PATH], &[]),
            (&[METHOD, SCHEME, PATH, ("x", "y"), AUTHORITY], &[]),
            (post![(":unknown", "y")], &[]),
            (post![(":status", "200")], &[]),
            (post![(":protocol", "websocket")], &[]),
            // What would be more than one word of a request line.
            (&[(":method", "GET /smuggled HTTP/1.1\r\nX:"), SCHEME, AUTHORITY, PATH], &[]),
            (&[(":method", "GET "), SCHEME, AUTHORITY, PATH], &[]),
            (&[(":method", ""), SCHEME, AUTHORITY, PATH], &[]),
            (&[METHOD, SCHEME, AUTHORITY, (":path", "/a HTTP/1.1\r\nX: y")], &[]),
            (&[METHOD, SCHEME, AUTHORITY, (":path", "/a b")], &[]),
            (&[METHOD, SCHEME, AUTHORITY, (":path", "/a\tb")], &[]),
            (&[METHOD, SCHEME, AUTHORITY, (":path", "/a\0")], &[]),
            (&[METHOD, SCHEME, AUTHORITY, (":path", "")], &[]),
            (&[METHOD, SCHEME, AUTHORITY, (":path", "a")], &[]),
            (&[METHOD, SCHEME, AUTHORITY, (":path", "*")], &[]),
            (&[METHOD, SCHEME, AUTHORITY, (":path", "?a")], &[]),
            (&[METHOD, SCHEME, AUTHORITY, (":path", "http://evil/smuggled")], &[]),
            (&[METHOD, SCHEME, AUTHORITY, (":path", "/a/../b")], &[]),
            (&[METHOD, SCHEME, AUTHORITY, (":path", "/é")], &[]),
            (&[METHOD, (":scheme", "h t"), AUTHORITY, PATH], &[]),
            (&[("x", "y"), METHOD, SCHEME, AUTHORITY, PATH], &[]),
            (&[(":method", "CONNECT"), AUTHORITY], &[]),
            (&[(":method", "CONNECT"), SCHEME, AUTHORITY, PATH], &[]),
            (&[(":method", "TRACE"), SCHEME, AUTHORITY, PATH], &[]),
        ],
    );
}

#[test]
fn who_is_asked_is_one() {
    refused(
        "authority",
        &[
            (post![("host", "evil")], &[]),
            (post![("host", "a"), ("host", "a")], &[]),
            (post![("host", "a"), ("host", "evil")], &[]),
            (&[METHOD, SCHEME, PATH, ("host", "a"), ("host", "evil")], &[]),
            (&[METHOD, SCHEME, PATH, ("host", "a\r\nx: y")], &[]),
            (&[METHOD, SCHEME, PATH, ("host", "a b")], &[]),
            (&[METHOD, SCHEME, PATH, ("host", "me@a")], &[]),
            (&[METHOD, SCHEME, (":authority", "me@a"), PATH], &[]),
            (&[METHOD, SCHEME, (":authority", "me:secret@a"), PATH], &[]),
            (&[METHOD, SCHEME, (":authority", "a@"), PATH], &[]),
            (&[METHOD, SCHEME, (":authority", "a b"), PATH], &[]),
            (&[METHOD, SCHEME, (":authority", "a/b"), PATH], &[]),
            (&[METHOD, SCHEME, (":authority", "a\r\nx: y"), PATH], &[]),
            (&[METHOD, SCHEME, (":authority", "a:b"), PATH], &[]),
            (&[METHOD, SCHEME, (":authority", ""), PATH], &[]),
        ],
    );
}

#[test]
fn what_is_well_formed_arrives_as_it_was_meant() {
    let (instance, gateway) = set_up();
    #[rustfmt::skip]
    let cases: &[(Case, &str, &str)] = &[
        ((post![], &[INNER]),                                        "Transfer-Encoding: chunked\r\n", INNER),
        ((post![("content-length", "5")], &["hel", "lo"]),           "content-length: 5\r\n", "hello"),
        ((post![("content-length", "5"), ("content-length", "5")], &["hello"]), "content-length: 5\r\n", "hello"),
        ((post![("content-length", "0")], &[]),                      "content-length: 0\r\n", ""),
        ((post![("te", "trailers"), ("host", "a")], &[]),            "", ""),
        ((post![("cookie", "a=b"), ("x", "y"), ("cookie", "c=d")], &[]), "x: y\r\ncookie: a=b; c=d\r\n", ""),
        ((post![("x", ""), ("x", "y\tz")], &[]),                     "x: \r\nx: y\tz\r\n", ""),
        // The fields of one hop by another name.
        ((post![("transfer_encoding", "chunked"), ("content_length", "5")], &[INNER]), "Transfer-Encoding: chunked\r\n", INNER),
    ];
    for ((fields, body), expected, data) in cases {
        let mut raw = Raw::connect(gateway.address, WINDOW);
        let came = ask(&mut raw, 1, &block(*fields), body);
        assert!(is_fine(&came), "{fields:?} {body:?}: {came:?}");
        let seen = instance.seen().pop().unwrap();
        let head = format!("POST /hostile HTTP/1.1\r\nHost: a\r\n{expected}");
        assert_eq!(seen.plain_of("2"), head, "{fields:?}");
        assert_eq!(seen.body, data.as_bytes(), "{fields:?}");
    }
    assert_eq!(instance.seen().len(), cases.len());
    assert_eq!(instance.faults(), [] as [&str; 0]);
}

/// What ends the connection of who says it, and nobody else's.
#[test]
fn frames_that_may_not_stand_there_end_a_connection() {
    let get = block(GET);
    let begins = |flags| frame(HEADERS, flags, 1, &get);
    let opened = begins(END_HEADERS);
    let long = vec![b'x'; (16 << 10) + 1];
    #[rustfmt::skip]
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("data of no stream",          frame(DATA, 0, 0, b"x")),
        ("data of an idle stream",     frame(DATA, 0, 5, b"x")),
        ("a head of no stream",        frame(HEADERS, END_HEADERS, 0, &get)),
        ("a head of an even stream",   frame(HEADERS, END_HEADERS, 2, &get)),
        ("a head of an older stream",  [frame(HEADERS, END_HEADERS | END_STREAM, 5, &get), frame(HEADERS, END_HEADERS, 3, &get)].concat()),
        ("a rest without a beginning", frame(CONTINUATION, END_HEADERS, 1, &get)),
        ("data within a head",         [begins(0), frame(DATA, 0, 1, b"x")].concat()),
        ("another within a head",      [begins(0), frame(HEADERS, END_HEADERS, 3, &get)].concat()),
        ("a ping within a head",       [begins(0), frame(PING, 0, 0, &[0; 8])].concat()),
        ("a rest of another head",     [begins(0), frame(CONTINUATION, END_HEADERS, 3, &get)].concat()),
        ("a rest after the end",       [begins(END_HEADERS), frame(CONTINUATION, END_HEADERS, 1, &get)].concat()),
        ("no name at index 0",         frame(HEADERS, END_HEADERS, 1, &[0x80])),
        ("no name at index 90",        frame(HEADERS, END_HEADERS, 1, &[0x80 | 90])),
        ("half a field",               frame(HEADERS, END_HEADERS, 1, &get[..get.len() - 2])),
        ("a number without an end",    frame(HEADERS, END_HEADERS, 1, &[0xff; 20])),
        ("a table of any size",        frame(HEADERS, END_HEADERS, 1, &[0x3f, 0xff, 0xff, 0xff, 0x07])),
        ("more padding than there is", [opened.clone(), frame(DATA, PADDED, 1, &[9, b'x'])].concat()),
        ("no window",                  frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a window too large",         frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("a window that is half",      frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
        ("a window of an idle stream", frame(WINDOW_UPDATE, 0, 5, &[0, 0, 0, 1])),
        ("a reset of an idle stream",  frame(RST_STREAM, 0, 5, &[0; 4])),
        ("a reset that is half",       [opened.clone(), frame(RST_STREAM, 0, 1, &[0; 3])].concat()),
        ("a reset of no stream",       frame(RST_STREAM, 0, 0, &[0; 4])),
        ("settings of a stream",       frame(SETTINGS, 0, 1, &[])),
        ("settings that are half",     frame(SETTINGS, 0, 0, &[0; 5])),
        ("settings that are agreed to, with some", frame(SETTINGS, ACK, 0, &[0; 6])),
        ("a window in settings that is none", frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])),
        ("frames that are too small",  frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])),
        ("a ping that is half",        frame(PING, 0, 0, &[0; 7])),
        ("a ping of a stream",         frame(PING, 0, 1, &[0; 8])),
        ("a promise",                  frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &get].concat())),
        ("an end of a stream",         frame(GOAWAY, 0, 1, &[0; 8])),
        ("a priority of no stream",    frame(PRIORITY, 0, 0, &[0; 5])),
        ("a frame that is too long",   [opened, frame(DATA, 0, 1, &long)].concat()),
    ];
    let (instance, gateway) = set_up();
    let mut wrong = Vec::new();
    for (what, frames) in &cases {
        let mut raw = Raw::connect(gateway.address, WINDOW);
        raw.say(frames);
        // It comes to be read only if nothing of that mattered.
        let came = raw.get(23);
        if !matches!(came, Came::End(_)) {
            wrong.push(format!("{what}: {came:?}"));
        }
    }
    goes_on(&gateway);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(instance.targets().iter().all(|it| it == "/fine"), "{:?}", instance.targets());
    assert_eq!(instance.faults(), [] as [&str; 0]);
}

/// What may be said of a stream that is over, or after its head, ends that stream at most.
#[test]
fn nothing_becomes_a_second_request_of_a_stream() {
    let (instance, gateway) = set_up();
    let post = block(POST);
    let begins = frame(HEADERS, END_HEADERS, 1, &post);
    let smuggled = block(&[METHOD, SCHEME, AUTHORITY, (":path", "/smuggled")]);
    let all = END_HEADERS | END_STREAM;
    #[rustfmt::skip]
    let cases: &[(&str, Vec<u8>)] = &[
        ("a second head",       [begins.clone(), frame(HEADERS, all, 1, &smuggled)].concat()),
        ("after the end",       [frame(HEADERS, all, 1, &post), frame(HEADERS, all, 1, &smuggled)].concat()),
        ("data after the end",  [frame(HEADERS, all, 1, &post), frame(DATA, END_STREAM, 1, INNER.as_bytes())].concat()),
        ("a rest without end",  [begins.clone(), frame(HEADERS, END_HEADERS, 1, &block(&[("x", "y")]))].concat()),
        ("upper case after it", [begins.clone(), frame(HEADERS, all, 1, &block(&[("X", "y")]))].concat()),
        ("lines after it",      [begins.clone(), frame(HEADERS, all, 1, &block(&[("x", "y\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil")]))].concat()),
        ("a length after it",   [begins.clone(), frame(HEADERS, all, 1, &block(&[("content-length", "5")]))].concat()),
        ("its own end",         [begins.clone(), frame(DATA, 0, 1, b"0\r\n\r\n"), frame(DATA, END_STREAM, 1, INNER.as_bytes())].concat()),
        ("a reset",             [begins.clone(), frame(DATA, 0, 1, INNER.as_bytes()), frame(RST_STREAM, 0, 1, &[0; 4])].concat()),
        ("a reset, and more",   [begins, frame(RST_STREAM, 0, 1, &[0; 4]), frame(DATA, END_STREAM, 1, INNER.as_bytes())].concat()),
    ];
    for (what, frames) in cases {
        let mut raw = Raw::connect(gateway.address, WINDOW);
        raw.say(frames);
        let came = raw.get(3);
        assert!(is_fine(&came) || matches!(came, Came::End(_)), "{what}: {came:?}");
        goes_on(&gateway);
    }
    let seen = instance.seen();
    assert!(seen.iter().all(|it| ["/fine", "/hostile"].contains(&it.target())), "{seen:?}");
    assert!(seen.iter().all(|it| it.trailers.is_empty()), "{seen:?}");
    assert_eq!(instance.faults(), [] as [&str; 0]);
}

/// Requests that are given up as soon as they are made, by the thousand.
#[test]
fn a_flood_of_resets_ends_a_connection() {
    let (instance, gateway) = set_up();
    let get = block(GET);
    let mut raw = Raw::connect(gateway.address, WINDOW);
    let resets: Vec<u8> = (0..10_000)
        .flat_map(|index| {
            let stream = 2 * index + 1;
            let begins = frame(HEADERS, END_HEADERS | END_STREAM, stream, &get);
            [begins, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        })
        .collect();
    raw.say(resets);
    let came = raw.get(30_001);
    assert!(matches!(came, Came::End(None | Some(11))), "{came:?}");
    goes_on(&gateway);
    assert_eq!(instance.faults(), [] as [&str; 0]);
}

/// A head in pieces without end: of nothing, of little, and of more than is taken.
#[test]
fn a_flood_of_continuations_ends_a_connection() {
    let field = block(&[("x", "y")]);
    let large = block(&[("x", &*"y".repeat(16_000))]);
    for piece in [Vec::new(), field, large] {
        // Of its own each: after the third one nobody would be let in from here.
        let (instance, gateway) = set_up();
        let mut raw = Raw::connect(gateway.address, WINDOW);
        raw.say(frame(HEADERS, END_STREAM, 1, &block(POST)));
        let flood = frame(CONTINUATION, 0, 1, &piece);
        for _ in 0..200 {
            raw.say(flood.repeat(50));
        }
        raw.say(frame(CONTINUATION, END_HEADERS, 1, &[]));
        let came = raw.get(3);
        assert!(matches!(came, Came::End(_)), "{} bytes each: {came:?}", piece.len());
        goes_on(&gateway);
        assert!(instance.targets().iter().all(|it| it == "/fine"));
        assert_eq!(instance.faults(), [] as [&str; 0]);
    }
}

/// A client that takes nothing holds up neither others nor its own later streams, and gets all of it
/// once it takes it.
#[test]
fn a_window_of_nothing_stops_one_client() {
    const LENGTH: usize = 200_000;
    let begun = Arc::new(AtomicUsize::new(0));
    let count = begun.clone();
    let instance = Instance::start(move |line| {
        while let Some(asked) = line.request() {
            if asked.target() == "/fine" {
                line.say(FINE);
                continue;
            }
            count.fetch_add(1, SeqCst);
            line.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
            line.say("x".repeat(LENGTH));
        }
    });
    let gateway = Fixture::before(&instance);
    let mut raw = Raw::connect(gateway.address, 0);
    for index in 0..100 {
        raw.say(frame(HEADERS, END_HEADERS | END_STREAM, 2 * index + 1, &block(POST)));
    }
    eventually("all are asked", || begun.load(SeqCst) == 100);
    sleep(A_WHILE);
    goes_on(&gateway);
    // Now the last of them is taken.
    let window = (LENGTH as u32).to_be_bytes();
    raw.say([frame(WINDOW_UPDATE, 0, 0, &window), frame(WINDOW_UPDATE, 0, 199, &window)].concat());
    let came = raw.until(199);
    let Came::Answer { status: 200, body } = came else { panic!("{came:?}") };
    assert_eq!(body.len(), LENGTH);
    assert_eq!(instance.faults(), [] as [&str; 0]);
}
