//! Connections in HTTP/2 to instances: how many, what ends with them, what is tried again.

use super::fixture::{A_WHILE, FINE, Instance, eventually};
use super::second::{self, Asked, Got, Sender, Server, Work, ask, before, connect, request, run};
use bytes::Bytes;
use everhold_core::spec::HealthSpec;
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, Response};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::Barrier;

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

async fn post(send: &Sender) -> Got {
    ask(send, request("POST", "/"), &["hel", "lo"], HeaderMap::new()).await.unwrap()
}

/// Answers once so many are there at the same time.
fn together(count: usize, streams_max: u32) -> Server {
    let all = Arc::new(Barrier::new(count));
    Server::start(streams_max, move |index, asked, respond| {
        let all = all.clone();
        Box::pin(async move {
            all.wait().await;
            second::echo(index, asked, respond).await
        })
    })
}

#[test]
fn requests_share_a_connection_up_to_what_the_instance_bears() {
    for (streams_max, connections) in [(100, 1), (20, 2), (7, 6), (1, 40)] {
        let server = together(40, streams_max);
        let gateway = before(&[server.address]);
        run(async {
            let send = connect(gateway.address).await;
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..40 {
                let send = send.clone();
                all.spawn(async move { post(&send).await });
            }
            for got in all.join_all().await {
                assert_eq!((got.status, got.body.as_slice()), (200, &b"hello"[..]));
            }
        });
        assert_eq!(server.connections.load(SeqCst), connections, "{streams_max} at once");
    }
}

/// Resets the streams of its first connection with that reason.
fn resets(reason: Reason, count: Arc<AtomicUsize>) -> Server {
    Server::start(100, move |_, _asked, mut respond| {
        count.fetch_add(1, SeqCst);
        Box::pin(async move {
            respond.send_reset(reason);
            Some(())
        })
    })
}

#[test]
fn a_refused_stream_is_tried_elsewhere_and_another_reset_only_if_that_does_no_harm() {
    for (reason, post_again) in [
        (Reason::REFUSED_STREAM, true),
        (Reason::INTERNAL_ERROR, false),
        (Reason::CANCEL, false),
        (Reason::NO_ERROR, false),
    ] {
        let count = Arc::new(AtomicUsize::new(0));
        let (bad, good) = (resets(reason, count.clone()), Server::start(100, second::echo));
        let gateway = before(&[bad.address, good.address]);
        for _ in 0..4 {
            assert_eq!(gateway.ask(GET).status, 200, "{reason:?}");
        }
        assert!(count.load(SeqCst) > 0, "{reason:?}: the balancer never chose it");
        for again in [true, false] {
            let (before, done) = (count.load(SeqCst), good.targets().len());
            let statuses: Vec<u16> = (0..4)
                .map(|_| match again {
                    true => gateway.ask(POST).status,
                    false => run(async { post(&connect(gateway.address).await).await.status }),
                })
                .collect();
            let refused = count.load(SeqCst) - before;
            let fine = if post_again { 4 } else { 4 - refused };
            assert_eq!(statuses.iter().filter(|it| **it == 200).count(), fine, "{reason:?}");
            assert_eq!(good.targets().len() - done, fine, "{reason:?}: nothing twice");
        }
    }
}

const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What came on a connection: kind, stream, payload.
pub fn read_frame(socket: &mut TcpStream) -> Option<(u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    socket.read_exact(&mut head).ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    socket.read_exact(&mut payload).ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// An instance that says frames: each connection is given to the script once both have agreed.
pub fn raw(script: impl Fn(usize, &mut TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let script = Arc::new(script);
    thread::spawn(move || {
        let begun = Arc::new(AtomicUsize::new(0));
        for socket in listener.incoming() {
            let (script, begun) = (script.clone(), begun.clone());
            thread::spawn(move || {
                let mut socket = socket.unwrap();
                let mut preface = [0; 24];
                if socket.read_exact(&mut preface).is_ok() {
                    socket.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
                    socket.write_all(&frame(SETTINGS, 1, 0, &[])).unwrap();
                    script(begun.fetch_add(1, SeqCst), &mut socket);
                }
            });
        }
    });
    address
}

/// The next request's stream.
pub fn next_stream(socket: &mut TcpStream) -> Option<u32> {
    loop {
        if let (HEADERS, stream, _) = read_frame(socket)? {
            return Some(stream);
        }
    }
}

/// `:status: 200` by the static table.
const STATUS_200: &[u8] = &[0x88];

/// That it is fine, without a body.
pub fn fine(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, STATUS_200)
}

/// That nothing beyond that stream is looked at.
fn go_away(last: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), 0_u32.to_be_bytes()].concat())
}

/// Of three requests on a connection the first was seen, as its GOAWAY says; the others may be done
/// anew, over another connection. The first one isn't answered: that was seen.
#[test]
fn what_a_goaway_leaves_out_is_done_again() {
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let address = raw(move |index, socket| {
        if index == 0 {
            let streams: Vec<u32> = (0..3).filter_map(|_| next_stream(socket)).collect();
            assert_eq!(streams, [1, 3, 5]);
            let _ = socket.write_all(&go_away(1));
            thread::sleep(A_WHILE);
            return;
        }
        while let Some(stream) = next_stream(socket) {
            tell.lock().unwrap().send(index).unwrap();
            let _ = socket.write_all(&fine(stream));
        }
    });
    let gateway = before(&[address]);
    let statuses = run(async {
        let send = connect(gateway.address).await;
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..3 {
            let send = send.clone();
            all.spawn(async move { post(&send).await.status });
        }
        all.join_all().await
    });
    let of = |status| statuses.iter().filter(|it| **it == status).count();
    assert_eq!((of(200), of(502)), (2, 1), "{statuses:?}");
    assert_eq!(told.try_iter().collect::<Vec<usize>>(), [1, 1]);
}

#[test]
fn a_client_that_goes_away_takes_its_request_with_it() {
    let (gone, there) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (tell_gone, tell_there) = (gone.clone(), there.clone());
    let server = Server::start(100, move |index, asked, mut respond| {
        let (gone, there) = (tell_gone.clone(), tell_there.clone());
        Box::pin(async move {
            if asked.uri().path() != "/slow" {
                return second::echo(index, asked, respond).await;
            }
            there.store(true, SeqCst);
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.ok()?;
            gone.store(reason == Reason::CANCEL, SeqCst);
            Some(())
        })
    });
    let gateway = before(&[server.address]);
    let begun = Instant::now();
    run(async {
        let send = connect(gateway.address).await;
        let (answer, stream) = send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(request("GET", "/slow"), true)
            .unwrap();
        while !there.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop((answer, stream));
        while !gone.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(8), "only the service's timeout ended it");
        // The others go on.
        assert_eq!(post(&send).await.status, 200);
    });
    assert_eq!(server.connections.load(SeqCst), 1);
}

/// Says and takes as much as it is let.
fn endless(
    _: usize,
    mut asked: Asked,
    mut respond: SendResponse<Bytes>,
    sent: Arc<AtomicUsize>,
) -> Work {
    Box::pin(async move {
        if asked.uri().path() == "/" {
            return second::echo(0, asked, respond).await;
        }
        if asked.uri().path() == "/deaf" {
            // What came is not said to be taken.
            while let Some(Ok(data)) = asked.body_mut().data().await {
                sent.fetch_add(data.len(), SeqCst);
            }
            return Some(());
        }
        let mut send = respond.send_response(Response::new(()), false).ok()?;
        loop {
            send.reserve_capacity(16 << 10);
            let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await?.ok()?;
            sent.fetch_add(room, SeqCst);
            send.send_data(Bytes::from(vec![b'x'; room]), false).ok()?;
        }
    })
}

#[test]
fn who_takes_nothing_is_sent_no_more_and_holds_nobody_back() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let server = Server::start(100, move |index, asked, respond| {
        endless(index, asked, respond, count.clone())
    });
    let gateway = before(&[server.address]);
    // More of them than one connection's window would have let through at the default.
    let mut slow: Vec<_> = (0..20).map(|_| gateway.client()).collect();
    slow.iter_mut().for_each(|it| it.say("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n"));
    let settled = || {
        let before = sent.load(SeqCst);
        thread::sleep(A_WHILE);
        before > 0 && sent.load(SeqCst) == before
    };
    eventually("it stops", settled);
    // Twenty windows, what the gateway holds, and what kernels hold of each client.
    assert!(sent.load(SeqCst) < 20 * (8 << 20), "{}", sent.load(SeqCst));
    assert_eq!(gateway.ask(POST).text(), "hello");
    assert_eq!(server.connections.load(SeqCst), 1);
    drop(slow);

    // And the other way.
    sent.store(0, SeqCst);
    let mut client = gateway.client();
    client.say("POST /deaf HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
    client.socket.set_write_timeout(Some(A_WHILE)).unwrap();
    let piece = vec![b'x'; 64 << 10];
    let took = (0..10_000).take_while(|_| client.socket.write_all(&piece).is_ok()).count();
    assert!(took < 500, "the client was let to send {took} pieces");
    assert!(sent.load(SeqCst) <= 65_535, "{} beyond the window", sent.load(SeqCst));
    assert_eq!(gateway.ask(POST).text(), "hello");
}

/// Nobody is at the other end any more, and no packet says so: the ping finds out.
#[test]
fn a_dead_connection_is_found() {
    let pings = Arc::new(AtomicUsize::new(0));
    let count = pings.clone();
    let address = raw(move |index, socket| {
        if index > 0 {
            while let Some(stream) = next_stream(socket) {
                let _ = socket.write_all(&fine(stream));
            }
            return;
        }
        while let Some((kind, ..)) = read_frame(socket) {
            count.fetch_add(usize::from(kind == PING), SeqCst);
        }
    });
    let gateway = second::before_with(&[address], |service| service.timeout_ms = 60_000);
    let begun = Instant::now();
    let mut client = gateway.client();
    client.socket.set_read_timeout(Some(Duration::from_secs(50))).unwrap();
    client.say(GET);
    assert_eq!(client.answer().status, 502, "it was seen, and there is nobody else");
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(10) && took < Duration::from_secs(40), "{took:?}");
    assert_eq!(pings.load(SeqCst), 1);
    assert_eq!(gateway.ask(GET).status, 200, "over another connection");
}

/// It owes an answer, and takes no more requests: nobody else would notice that it is gone.
#[test]
fn a_dead_connection_is_found_also_after_its_goaway() {
    let pings = Arc::new(AtomicUsize::new(0));
    let count = pings.clone();
    let (tell, told) = mpsc::channel();
    let address = raw(move |index, socket| {
        if index > 0 {
            while let Some(stream) = next_stream(socket) {
                let _ = socket.write_all(&fine(stream));
            }
            return;
        }
        let Some(stream) = next_stream(socket) else { return };
        let _ = socket.write_all(&go_away(stream));
        tell.send(()).unwrap();
        while let Some((kind, ..)) = read_frame(socket) {
            count.fetch_add(usize::from(kind == PING), SeqCst);
        }
    });
    let gateway = second::before_with(&[address], |service| service.timeout_ms = 600_000);
    let mut client = gateway.client();
    client.socket.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
    client.say(GET);
    told.recv().unwrap();
    assert_eq!(gateway.ask(POST).status, 200, "over another connection");
    assert_eq!(client.answer().status, 502, "it was seen, and there is nobody else");
    assert_eq!(pings.load(SeqCst), 1);
}

/// As with HTTP/1: who closes a connection that is idle may do so at this moment, and a request that was
/// lost with it can't be repeated.
#[test]
fn a_connection_that_rested_takes_nothing_that_must_not_be_repeated() {
    let count = Arc::new(AtomicUsize::new(0));
    let begun = count.clone();
    let address = raw(move |index, socket| {
        begun.fetch_add(1, SeqCst);
        // The first one answers once, and is closed by what comes next.
        let most = if index == 0 { 1 } else { usize::MAX };
        for _ in 0..most {
            let Some(stream) = next_stream(socket) else { return };
            let _ = socket.write_all(&fine(stream));
        }
        next_stream(socket);
    });
    let gateway = before(&[address]);
    assert_eq!(gateway.ask(GET).status, 200);
    thread::sleep(Duration::from_secs(1) + A_WHILE);
    assert_eq!((gateway.ask(POST).status, count.load(SeqCst)), (200, 2));
    // One that was used just now does.
    assert_eq!((gateway.ask(POST).status, count.load(SeqCst)), (200, 2));
}

/// Answers so many requests on its first connection, then nothing, and closes it at the word. `count`:
/// those that it answers on others.
fn falls_silent(most: usize, word: mpsc::Receiver<()>, count: Arc<AtomicUsize>) -> SocketAddr {
    let word = std::sync::Mutex::new(word);
    raw(move |index, socket| {
        if index == 0 {
            for _ in 0..most {
                let Some(stream) = next_stream(socket) else { return };
                let _ = socket.write_all(&fine(stream));
            }
            let _ = word.lock().unwrap().recv();
            return;
        }
        while let Some(stream) = next_stream(socket) {
            count.fetch_add(1, SeqCst);
            let _ = socket.write_all(&fine(stream));
        }
    })
}

/// Requests are on it again, but nothing was heard of it since it rested.
#[test]
fn a_connection_that_was_woken_is_not_proven_by_that() {
    let ((close, word), count) = (mpsc::channel(), Arc::new(AtomicUsize::new(0)));
    let gateway = before(&[falls_silent(1, word, count.clone())]);
    assert_eq!(gateway.ask(GET).status, 200);
    thread::sleep(Duration::from_secs(1) + A_WHILE);
    let mut gets: Vec<_> = (0..8).map(|_| gateway.client()).collect();
    gets.iter_mut().for_each(|it| it.say(GET));
    // So that they are on their way before it.
    thread::sleep(A_WHILE);
    assert_eq!(gateway.ask(POST).status, 200, "over another one");
    close.send(()).unwrap();
    // There is nobody else: what is held against the instance is not asked of it again.
    let statuses: Vec<u16> = gets.iter_mut().map(|it| it.answer().status).collect();
    assert_eq!(statuses, [200; 8]);
    assert_eq!(count.load(SeqCst), 9);
}

/// What ran out of time did not do so on a sound connection.
#[test]
fn a_request_that_was_left_without_a_word_proves_nothing() {
    let hurried = "GET / HTTP/1.1\r\nHost: a\r\nX-Envoy-Expected-Rq-Timeout-Ms: 100\r\n\r\n";
    // Of a connection that had rested, and of one on which something else is waited for.
    for rested in [true, false] {
        let ((_close, word), count) = (mpsc::channel(), Arc::new(AtomicUsize::new(0)));
        let gateway = before(&[falls_silent(usize::from(rested), word, count.clone())]);
        let mut first = gateway.client();
        first.say(GET);
        if rested {
            assert_eq!(first.answer().status, 200);
        }
        thread::sleep(Duration::from_secs(1) + A_WHILE);
        gateway.ask(hurried);
        assert_eq!(gateway.ask(POST).status, 200, "rested: {rested}");
        assert!(count.load(SeqCst) > 0);
    }
}

/// As servers of gRPC do when they were pinged too often, and others when too much was given up. What
/// was begun had nothing to do with it.
#[test]
fn an_instance_that_asks_for_calm_is_asked_over_another_connection() {
    const ENHANCE_YOUR_CALM: u32 = 11;
    let address = raw(move |index, socket| {
        if index == 0 {
            let last = (0..3).filter_map(|_| next_stream(socket)).max().unwrap();
            let why = [&last.to_be_bytes()[..], &ENHANCE_YOUR_CALM.to_be_bytes()].concat();
            let _ = socket.write_all(&frame(GOAWAY, 0, 0, &[&why[..], b"too_many_pings"].concat()));
            return thread::sleep(A_WHILE);
        }
        while let Some(stream) = next_stream(socket) {
            let _ = socket.write_all(&fine(stream));
        }
    });
    let gateway = before(&[address]);
    let mut gets: Vec<_> = (0..3).map(|_| gateway.client()).collect();
    gets.iter_mut().for_each(|it| it.say(GET));
    // There is nobody else: what is held against the instance is not asked of it again.
    let statuses: Vec<u16> = gets.iter_mut().map(|it| it.answer().status).collect();
    assert_eq!(statuses, [200; 3]);
}

/// One leaves the ping without an answer, and says something else before it falls silent. The other one
/// answers it, says something of its answer, and is silent again.
#[test]
fn a_question_stays_open_until_it_is_answered_and_is_put_again_then() {
    let dead = raw(|index, socket| {
        while let Some((kind, stream, _)) = read_frame(socket) {
            if kind == PING {
                let more = frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes());
                let _ = socket.write_all(&[&more[..], &more].concat());
            } else if kind == HEADERS && index > 0 {
                let _ = socket.write_all(&fine(stream));
            }
        }
    });
    let pings = Arc::new(AtomicUsize::new(0));
    let count = pings.clone();
    let slow = raw(move |_, socket| {
        let Some(stream) = next_stream(socket) else { return };
        while let Some((kind, _, payload)) = read_frame(socket) {
            if kind == PING {
                let _ = socket.write_all(&frame(PING, 1, 0, &payload));
                // An interim answer: 103.
                let early = frame(HEADERS, END_HEADERS, stream, b"\x08\x03103");
                let first = count.fetch_add(1, SeqCst) == 0;
                let _ = socket.write_all(&if first { early } else { fine(stream) });
            }
        }
    });
    let [dead, slow] = [dead, slow]
        .map(|address| second::before_with(&[address], |service| service.timeout_ms = 600_000));
    let mut clients = [dead.client(), slow.client()];
    for client in &mut clients {
        client.socket.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
        client.say(GET);
    }
    let statuses = clients.map(|mut client| client.answer().status);
    assert_eq!(statuses, [502, 200], "it was seen, and there is nobody else");
    assert_eq!(pings.load(SeqCst), 2);
    assert_eq!(dead.ask(POST).status, 200, "over another connection");
}

/// Answers that HTTP/2 does not allow, or that would be read in two ways in HTTP/1.
#[test]
fn what_is_no_answer_is_not_passed_on() {
    // HPACK, literal and never indexed: names and values of less than 127 bytes.
    let field = |name: &str, value: &str| {
        let (n, v) = (name.len() as u8, value.len() as u8);
        [&[0x10, n][..], name.as_bytes(), &[v], value.as_bytes()].concat()
    };
    #[rustfmt::skip]
    let cases: &[(&str, &str)] = &[
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("content-length", "5"),
        ("content-length", "+0"),
        ("x-split", "a\r\nEvil: 1"),
        ("X-Capital", "a"),
        ("x y", "a"),
        (":status", "200"),
    ];
    for (name, value) in cases {
        let block = [STATUS_200, &field(name, value)].concat();
        let address = raw(move |_, socket| {
            while let Some(stream) = next_stream(socket) {
                let _ = socket.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
            }
        });
        let gateway = before(&[address]);
        let answer = gateway.ask(GET);
        assert_eq!(answer.status, 502, "{name}: {value}: {answer:?}");
        assert!(answer.is_own());
    }
    // Two lengths that differ, and nothing after them.
    let lengths =
        [STATUS_200, &field("content-length", "0"), &field("content-length", "7")].concat();
    let address = raw(move |_, socket| {
        while let Some(stream) = next_stream(socket) {
            let _ = socket.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &lengths));
        }
    });
    assert_eq!(before(&[address]).ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").status, 502);
    // A body that is not as long as it says: who was told the length sees that it isn't all.
    let server = Server::start(100, |_, _, mut respond| {
        Box::pin(async move {
            let answer = Response::builder().header("content-length", 10).body(()).unwrap();
            let mut send = respond.send_response(answer, false).ok()?;
            send.send_data(Bytes::from_static(b"short"), true).ok()
        })
    });
    assert!(!before(&[server.address]).ask(GET).whole);
}

#[test]
fn only_what_http2_can_say_is_asked() {
    let server = Server::start(100, second::echo);
    let gateway = before(&[server.address]);
    let ask = |request: &str| gateway.ask(request).status;
    // There is no upgrade: the request is served without.
    let upgrade =
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(ask(upgrade), 200);
    assert_eq!(ask("GET /old HTTP/1.0\r\n\r\n"), 200);
    let fields = "TE: trailers\r\nConnection: te, x-mine\r\nX-Mine: 1\r\nX-Forwarded-For: 9.9.9.9\r\n\
                  Keep-Alive: 1\r\nProxy-Connection: x\r\nX_Forwarded_For: 8.8.8.8\r\n";
    assert_eq!(ask(&format!("GET /fields HTTP/1.1\r\nHost: A.org:8080\r\n{fields}\r\n")), 200);
    let asked = server.asked.lock().unwrap().clone();
    let [ws, old, all] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(ws.0, "GET http://a/ws");
    assert!(!ws.1.contains_key("upgrade") && !ws.1.contains_key("connection"));
    assert_eq!(old.0, format!("GET http://{}/old", server.address));
    assert_eq!(all.0, "GET http://A.org:8080/fields");
    let mut names: Vec<&str> = all.1.keys().map(|it| it.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "forwarded",
        "te",
        "traceparent",
        "via",
        "x-envoy-expected-rq-timeout-ms",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-request-id",
    ];
    assert_eq!(names, expected);
    assert_eq!(all.1["x-forwarded-for"], "127.0.0.1");
    // Characters that some take for others.
    assert_eq!(ask("GET /<a> HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
}

#[test]
fn who_speaks_no_http2_is_not_asked() {
    let (first, second) = (Instance::says(FINE), Server::start(100, second::echo));
    let health = HealthSpec { path: Some("/".into()), interval_ms: 100, ..HealthSpec::default() };
    let gateway = second::before_with(&[first.address, second.address], |service| {
        service.health = health;
    });
    // What found nobody to speak to may be asked elsewhere.
    assert!((0..4).all(|_| gateway.ask(POST).status == 200));
    let used = || {
        let judged = gateway.gateway.judged();
        // The judge may not have come to say anything.
        judged.get("main").map(|it| ["i0", "i1"].map(|name| it.backends[name].used))
    };
    eventually("the check finds out", || used() == Some([false, true]));
    assert!(second.targets().iter().any(|it| it.starts_with("GET")), "it is checked in HTTP/2");
    let never = first.seen().iter().all(|it| it.head.starts_with("PRI") || it.head == "SM\r\n");
    assert!(never, "{:?}", first.seen());
}
