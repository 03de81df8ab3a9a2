//! A gateway that is succeeded by another: nobody is refused, and nobody is cut off.

use super::fixture::{FINE, Fixture, Instance, Line, eventually};
use super::second::{self, ask, connect, request};
use everhold_gateway::Gateway;
use http::HeaderMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// The one that takes over its sockets.
fn successor(fixture: &Fixture) -> Gateway {
    let sockets = fixture.gateway.sockets().unwrap();
    Gateway::succeed(fixture.config.clone(), sockets).unwrap()
}

#[test]
fn an_idle_connection_is_answered_once_more() {
    let instance = Instance::says(FINE);
    let fixture = Fixture::before(&instance);
    let (mut client, mut untried) = (fixture.client(), fixture.client());
    client.say(GET);
    assert_eq!(client.answer().values("connection"), [""; 0]);
    eventually("both are there", || fixture.gateway.connections() == 2);

    let next = successor(&fixture);
    fixture.gateway.pause();
    next.accept().unwrap();
    fixture.gateway.leave();
    // To close them would meet what they are about to say.
    assert!(client.stays_silent() && untried.stays_silent());
    for client in [&mut client, &mut untried] {
        client.say(GET);
        let answer = client.answer();
        assert_eq!((answer.status, answer.values("connection")), (200, vec!["close"]));
        assert!(client.ends());
    }
    drop((client, untried));
    eventually("nobody is left", || fixture.gateway.connections() == 0);

    let mut client = fixture.client();
    for _ in 0..2 {
        client.say(GET);
        assert_eq!(client.answer().values("connection"), [""; 0], "the next one keeps it");
    }
    assert_eq!((fixture.gateway.connections(), next.connections()), (0, 1));
}

/// Whoever came while nobody accepted is on the one queue that both have.
#[test]
fn connections_that_wait_in_the_kernel_are_not_lost() {
    let instance = Instance::says(FINE);
    let fixture = Fixture::before(&instance);
    let next = successor(&fixture);
    fixture.gateway.pause();
    // An accept that was under way takes one more.
    let mut first = fixture.client();
    first.say(GET);
    let mut clients: Vec<_> = (0..50).map(|_| fixture.client()).collect();
    clients.iter_mut().for_each(|client| client.say(GET));
    fixture.gateway.leave();
    next.accept().unwrap();
    for client in clients.iter_mut().chain([&mut first]) {
        assert_eq!(client.answer().status, 200);
    }
    assert!(next.connections() >= 50);
}

#[test]
fn a_successor_that_dies_before_it_is_ready_changes_nothing() {
    let instance = Instance::says(FINE);
    let fixture = Fixture::before(&instance);
    let mut client = fixture.client();
    for dies_late in [false, true] {
        let next = successor(&fixture);
        if dies_late {
            fixture.gateway.pause();
        }
        let mut waiting = fixture.client();
        waiting.say(GET);
        drop(next);
        fixture.gateway.accept().unwrap();
        assert_eq!(waiting.answer().status, 200);
        client.say(GET);
        assert_eq!(client.answer().values("connection"), [""; 0]);
    }
}

/// Listeners that the two don't have in common are opened, or end with the old one.
#[test]
fn a_successor_has_the_listeners_of_its_own_table() {
    let instance = Instance::says(FINE);
    let (old, other) = (Fixture::before(&instance), Fixture::before(&instance));
    let config = other.config.clone();
    drop(other.gateway);
    let next = Gateway::succeed(config, old.gateway.sockets().unwrap()).unwrap();
    next.accept().unwrap();
    old.gateway.leave();
    assert_eq!(next.snapshot().listeners["web"].bind, other.address);
    eventually("nobody listens there", || std::net::TcpStream::connect(old.address).is_err());
}

#[test]
fn a_tunnel_stays_until_it_ends() {
    let instance = Instance::echoes_after(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    );
    let fixture = Fixture::before(&instance);
    let mut client = fixture.client();
    client.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
    assert_eq!(client.answer().status, 101);
    fixture.gateway.leave();
    for _ in 0..100 {
        client.say("there and back");
        assert_eq!(client.exactly(14).unwrap(), b"there and back");
    }
    assert_eq!(fixture.gateway.connections(), 1);
    drop(client);
    eventually("it ended", || fixture.gateway.connections() == 0);
}

/// An instance that answers when it is told to.
fn on_word() -> (Instance, std::sync::mpsc::Sender<()>) {
    let (word, words) = channel();
    let words: Mutex<Receiver<()>> = Mutex::new(words);
    let script = move |line: &mut Line| {
        while line.request().is_some() {
            if words.lock().unwrap().recv().is_ok() {
                line.say(FINE);
            }
        }
    };
    (Instance::start(script), word)
}

/// Requests on their way end as they began, whatever their answer is told.
#[test]
fn a_request_on_its_way_is_answered() {
    let (instance, word) = on_word();
    let fixture = Fixture::before(&instance);
    let mut client = fixture.client();
    client.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    eventually("it is there", || !instance.seen().is_empty());
    fixture.gateway.leave();
    word.send(()).unwrap();
    assert_eq!(client.answer().text(), "ok");
}

/// Streams that are open end as they began; others are sent elsewhere without having been seen.
#[test]
fn streams_end_as_they_began() {
    let (instance, word) = on_word();
    let fixture = Fixture::before(&instance);
    let address = fixture.address;
    let ((begun, is_begun), (send_asked, asked)) = (channel(), channel());
    let client = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = tokio::net::TcpStream::connect(address).await.unwrap();
            let (mut send, connection) = h2::client::handshake(socket).await.unwrap();
            let ends = tokio::spawn(connection);
            let mut asked = 1;
            let ask = || http::Request::get("http://a/").body(()).unwrap();
            let (first, _) = send.send_request(ask(), true).unwrap();
            begun.send(()).unwrap();
            let mut answer = first.await.unwrap();
            // It is told to go; what it begins till it hears that is answered.
            let refused = loop {
                assert_eq!(answer.status(), 200);
                assert_eq!(answer.body_mut().data().await.unwrap().unwrap(), "ok");
                send = match send.ready().await {
                    Ok(send) => send,
                    Err(error) => break error,
                };
                let begun = send.send_request(ask(), true).map(|(next, _)| next);
                answer = match begun {
                    Ok(next) => next.await.unwrap(),
                    Err(error) => break error,
                };
                asked += 1;
            };
            assert!(refused.is_go_away() || refused.is_io(), "{refused}");
            assert_eq!(refused.reason().unwrap_or(h2::Reason::NO_ERROR), h2::Reason::NO_ERROR);
            send_asked.send(asked).unwrap();
            let _ = ends.await.unwrap();
        });
    });
    is_begun.recv().unwrap();
    eventually("it is there", || !instance.seen().is_empty());
    fixture.gateway.leave();
    // More than are asked for until it is told.
    (0..1_000_000).for_each(|_| word.send(()).unwrap());
    client.join().unwrap();
    assert_eq!(instance.seen().len(), asked.recv().unwrap());
    eventually("nobody is left", || fixture.gateway.connections() == 0);
}

/// All in one moment would come back in one; till it is told a client goes on being served.
#[test]
fn clients_of_http2_are_told_one_after_the_other() {
    const CLIENTS: usize = 20;
    let instance = Instance::says(FINE);
    let fixture = Fixture::before(&instance);
    let leaving = Arc::new(AtomicBool::new(false));
    let mut served = second::run(async {
        let mut all = tokio::task::JoinSet::new();
        let begun = Arc::new(tokio::sync::Barrier::new(CLIENTS + 1));
        for _ in 0..CLIENTS {
            let (send, begun) = (connect(fixture.address).await, begun.clone());
            let leaving = leaving.clone();
            all.spawn(async move {
                let one = || ask(&send, request("GET", "/"), &[], HeaderMap::new());
                assert_eq!(one().await.unwrap().status, 200);
                begun.wait().await;
                let mut served = 0;
                while let Ok(got) = one().await {
                    assert_eq!(got.status, 200);
                    served += usize::from(leaving.load(SeqCst));
                }
                served
            });
        }
        begun.wait().await;
        fixture.gateway.leave();
        leaving.store(true, SeqCst);
        all.join_all().await
    });
    served.sort_unstable();
    assert!(served[CLIENTS - 1] >= 50, "{served:?}: the last one was told as soon as the first");
    eventually("nobody is left", || fixture.gateway.connections() == 0);
}
