//! Clients that go away while they wait.

use super::fixture::{FINE, Fixture, Instance, eventually, reset};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Answers nothing below `/slow`, and counts the connections that end there.
fn slow() -> (Instance, Arc<AtomicUsize>) {
    let left = Arc::new(AtomicUsize::new(0));
    let count = left.clone();
    let instance = Instance::start(move |line| {
        while let Some(seen) = line.request() {
            if seen.target() == "/slow" {
                let ended = line.some().is_empty();
                count.fetch_add(usize::from(ended), SeqCst);
                return;
            }
            line.say(FINE);
        }
    });
    (instance, left)
}

const SLOW: &str = "GET /slow HTTP/1.1\r\nHost: a\r\nX-Request-Id: slow\r\n\r\n";

#[test]
fn a_client_that_goes_away_takes_its_request_with_it() {
    for how in ["closed", "reset", "closed its side", "closed behind another request"] {
        let (instance, left) = slow();
        let gateway = Fixture::before(&instance);
        let begun = Instant::now();
        let mut client = gateway.client();
        client.say(SLOW);
        eventually("it is asked", || instance.seen().len() == 1);
        match how {
            "reset" => reset(&client.socket),
            "closed its side" => client.socket.shutdown(Shutdown::Write).unwrap(),
            "closed behind another request" => client.say("GET /next HTTP/1.1\r\nHost: a\r\n\r\n"),
            _ => {}
        }
        let kept = (how == "closed its side").then_some(client);
        eventually(how, || left.load(SeqCst) == 1);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(8), "{how}: {took:?}, which is the service's timeout");
        drop(kept);
        eventually("it is remembered", || gateway.gateway.request("slow").is_some());
        let record = gateway.gateway.request("slow").unwrap();
        assert_eq!((record.status, record.outcome), (0, "client gone"), "{how}");
        // That says nothing of the instance.
        assert_eq!(gateway.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
        assert_eq!(record.tries.count(), 1);
        assert!(instance.targets().iter().all(|it| it != "/next"), "{how}");
    }
}

/// What a client says while it waits is its next request.
#[test]
fn requests_that_come_early_are_kept() {
    let instance = Instance::start(|line| {
        while let Some(seen) = line.request() {
            sleep(Duration::from_millis(50));
            let body = seen.target().to_owned();
            line.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    });
    let gateway = Fixture::before(&instance);
    let mut client = gateway.client();
    let request =
        |index: usize| format!("GET /{index} HTTP/1.1\r\nHost: a\r\nX: {:>900}\r\n\r\n", "x");
    // More than a buffer holds.
    for index in 0..40 {
        client.say(request(index));
        sleep(Duration::from_millis(2));
    }
    for index in 0..40 {
        assert_eq!(client.answer().text(), format!("/{index}"));
    }
}
