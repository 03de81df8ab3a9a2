//! A gateway that was stopped itself, with its machine or by a signal.

use super::fixture::A_WHILE;
use super::links::{PING, fine, frame, next_stream, raw, read_frame};
use super::second;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread::sleep;
use std::time::Duration;

/// Where its instance is.
const INSTANCE: &str = "EVERHOLD_TEST_INSTANCE";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// No test, but what the one below stops: a gateway in a process of its own, till its input ends.
#[test]
fn gateway_of_its_own() {
    let Ok(instance) = std::env::var(INSTANCE) else { return };
    let gateway = second::before_with(&[instance.parse().unwrap()], |service| {
        service.timeout_ms = 600_000;
    });
    println!("\nat {}", gateway.address);
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

struct Frozen(Child);

impl Frozen {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In its own time nothing was silent: what it asked for may still be on its way.
#[test]
fn who_was_frozen_takes_nobody_else_for_dead() {
    let ((asked, was_asked), (awake, is_awake)) = (mpsc::channel(), mpsc::channel());
    let is_awake = Mutex::new(is_awake);
    let address = raw(move |_, socket| {
        let Some(stream) = next_stream(socket) else { return };
        while let Some((kind, _, payload)) = read_frame(socket) {
            if kind == PING {
                asked.send(()).unwrap();
                is_awake.lock().unwrap().recv().unwrap();
                let _ = socket.write_all(&frame(PING, 1, 0, &payload));
                let _ = socket.write_all(&fine(stream));
            }
        }
    });
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "frozen::gateway_of_its_own", "--nocapture"])
        .env(INSTANCE, address.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let child = Frozen(child);
    let at =
        lines.map_while(Result::ok).find_map(|line| line.strip_prefix("at ").map(String::from));
    let mut client = TcpStream::connect(at.unwrap()).unwrap();
    client.write_all(GET.as_bytes()).unwrap();
    was_asked.recv().unwrap();
    child.signal(Signal::STOP);
    // Longer than an answer to a ping is waited for.
    sleep(Duration::from_secs(7));
    child.signal(Signal::CONT);
    // So that it has looked before the answer comes.
    sleep(A_WHILE);
    awake.send(()).unwrap();
    let mut status = [0; 12];
    client.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
}
