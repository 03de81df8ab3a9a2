//! Who takes slowly slows down who gives: the gateway holds little of what lies between.

use super::fixture::{A_WHILE, Client, FINE, Fixture, Instance, PATIENCE, eventually};
use super::second::{connect, request, run};
use bytes::Bytes;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::Instant;

const BLOCK: usize = 64 << 10;
/// More than the kernel's buffers of four sockets take, and the tests that run beside this one.
const HELD_MAX: u64 = 256 << 20;
const ALL: u64 = 1 << 30;

/// Gives until all is given or nobody takes; counts what was taken.
fn give(mut to: impl Write, all: u64, given: &AtomicU64) {
    let block = [b'x'; BLOCK];
    let mut left = all;
    while left > 0 {
        let count = left.min(BLOCK as u64);
        let Ok(written) = to.write(&block[..count as usize]) else { return };
        left -= written as u64;
        given.fetch_add(written as u64, Ordering::SeqCst);
    }
}

/// Once it has stopped rising.
fn settled(given: &AtomicU64) -> u64 {
    let begun = Instant::now();
    loop {
        let before = given.load(Ordering::SeqCst);
        sleep(A_WHILE * 2);
        let now = given.load(Ordering::SeqCst);
        assert!(begun.elapsed() < PATIENCE, "it rises on and on: {now} bytes");
        if now == before && now > 0 {
            return now;
        }
    }
}

/// Resident memory of this process, of which the gateway is a part.
fn memory() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn read_all(client: &mut Client, all: u64) {
    let mut left = all;
    let mut block = vec![0; BLOCK];
    while left > 0 {
        let count = client.socket.read(&mut block).unwrap() as u64;
        assert!(count > 0 && count <= left, "{left} bytes are missing");
        left -= count;
    }
}

#[test]
fn a_client_that_does_not_read_stops_the_instance() {
    for chunked in [false, true] {
        let given = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&given);
        let instance = Instance::start(move |line| {
            line.request();
            if chunked {
                // One chunk as long as all of it.
                line.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40000000\r\n");
            } else {
                line.say("HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n");
            }
            give(&line.socket, ALL, &count);
            line.say("\r\n0\r\n\r\n");
        });
        let gateway = Fixture::before(&instance);
        let mut client = gateway.client();
        let before = memory();
        client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let held = settled(&given);
        assert!(held < HELD_MAX, "{held} bytes went out that nobody reads");
        let grown = memory().saturating_sub(before);
        assert!(grown < HELD_MAX, "{grown} bytes of memory more");
        if !chunked {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\nDate: Sat, 21 Nov 2026 06:00:00 GMT\r\nX-Request-Id: 0123456789abcdef\r\n\r\n";
            assert!(client.exactly(head.len()).unwrap().ends_with(b"\r\n\r\n"));
            let taken = client.drain() as u64;
            read_all(&mut client, ALL - taken);
            assert_eq!(given.load(Ordering::SeqCst), ALL, "and then all of it arrives");
        }
    }
}

#[test]
fn an_instance_that_does_not_read_stops_the_client() {
    for head in
        ["Content-Length: 1073741824\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n40000000\r\n"]
    {
        let reads = Arc::new(AtomicU64::new(0));
        let may_read = Arc::clone(&reads);
        let instance = Instance::start(move |line| {
            line.head();
            eventually("it may read", || may_read.load(Ordering::SeqCst) > 0);
            let mut block = vec![0; BLOCK];
            let mut count = 0;
            while count < 100 << 20 {
                match line.socket.read(&mut block) {
                    Ok(some @ 1..) => count += some,
                    _ => return,
                }
            }
            may_read.store(2, Ordering::SeqCst);
            line.say(FINE);
        });
        let gateway = Fixture::with(&[instance.address], |service| service.timeout_ms = 60_000);
        let mut client = gateway.client();
        let given = Arc::new(AtomicU64::new(0));
        let before = memory();
        client.say(format!("POST / HTTP/1.1\r\nHost: a\r\n{head}"));
        let (writer, count) = (client.socket.try_clone().unwrap(), Arc::clone(&given));
        let gives = thread::spawn(move || give(writer, ALL, &count));
        let held = settled(&given);
        assert!(held < HELD_MAX, "{held} bytes were taken that nobody reads");
        let grown = memory().saturating_sub(before);
        assert!(grown < HELD_MAX, "{grown} bytes of memory more");
        reads.store(1, Ordering::SeqCst);
        assert_eq!(client.answer().status, 200, "and then it goes on");
        assert_eq!(reads.load(Ordering::SeqCst), 2);
        client.socket.shutdown(std::net::Shutdown::Both).unwrap_or_default();
        gives.join().unwrap();
    }
}

/// Uploads of one client that instances don't take leave room for those that they do.
#[test]
fn streams_that_stand_still_do_not_stop_others_of_their_connection() {
    let instance = Instance::start(|line| {
        while let Some(head) = line.head() {
            if head.contains(" /still ") {
                // Till the test is over.
                sleep(PATIENCE * 2);
            } else if line.rest(head).is_some() {
                line.say(FINE);
            }
        }
    });
    let gateway = Fixture::with(&[instance.address], |service| service.timeout_ms = 600_000);
    run(async {
        let send = connect(gateway.address).await;
        // More than what lies between takes.
        let all = Bytes::from(vec![b'x'; 32 << 20]);
        let mut still = Vec::new();
        for _ in 0..20 {
            let ready = send.clone().ready().await.unwrap();
            let (answer, mut stream) =
                { ready }.send_request(request("POST", "/still"), false).unwrap();
            stream.send_data(all.clone(), true).unwrap();
            still.push((answer, stream));
        }
        tokio::time::sleep(A_WHILE * 3).await;
        for _ in 0..5 {
            let ready = send.clone().ready().await.unwrap();
            let (answer, mut stream) = { ready }.send_request(request("POST", "/"), false).unwrap();
            stream.send_data(all.slice(..4 << 20), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 200);
        }
    });
    assert!(instance.seen().iter().all(|it| it.body.len() == 4 << 20));
}

/// As many clients as may be; the next one waits its turn, and others' sockets are left to them.
#[test]
fn a_client_too_many_waits_until_another_has_gone() {
    let good = Instance::says(FINE);
    let gateway = Fixture::set_up(&[good.address], |_| {}, |config| config.limits.http_max = 1);
    let mut first = gateway.client();
    first.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(first.answer().status, 200);
    let mut second = gateway.client();
    second.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    sleep(A_WHILE);
    assert_eq!(good.seen().len(), 1);
    drop(first);
    assert_eq!(second.answer().status, 200);
}
