//! Between a place and its server: a line that breaks, and a store that behaves worse.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::Duration;

/// What is done to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The line is cut in the middle of the body; the server hears of the first half.
    CutRequest,
    /// The server's answer is lost, whole or from its middle on.
    LoseAnswer,
    CutAnswer,
    /// The answer comes in two parts, with a pause between.
    Slow,
    /// Answered without the server.
    Answer(u16, &'static str),
    /// A bit of the body is another one.
    Flip,
    /// A server that doesn't look at the condition of a put.
    Forget,
    /// Somebody between takes the condition of a put away.
    Strip,
}

pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    acceptor: Option<thread::JoinHandle<()>>,
}

struct Shared {
    server: u16,
    root: PathBuf,
    /// For one request each, then `rest`.
    faults: Mutex<VecDeque<Fault>>,
    rest: Fault,
    /// The methods of all requests.
    seen: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl Proxy {
    pub fn start(server: u16, root: PathBuf, faults: &[Fault], rest: Fault) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server,
            root,
            faults: Mutex::new(faults.iter().copied().collect()),
            rest,
            seen: Mutex::new(Vec::new()),
            over: AtomicBool::new(false),
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for stream in listener.incoming() {
                    if shared.over.load(Ordering::SeqCst) {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || shared.carry(stream.unwrap()));
                }
            }
        });
        Proxy { port, shared, acceptor: Some(acceptor) }
    }

    /// Does these to the next requests.
    pub fn next(&self, faults: &[Fault]) {
        self.shared.faults.lock().unwrap().extend(faults);
    }

    /// The methods of all requests since the last call.
    pub fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    /// One request and its answer; then the line is closed. That either end breaks it is no error.
    fn carry(&self, mut client: TcpStream) -> io::Result<()> {
        let (head, mut body) = request(&mut client)?;
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let fault = self.faults.lock().unwrap().pop_front().unwrap_or(self.rest);
        self.seen.lock().unwrap().push(method.to_string());
        let mut head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        match fault {
            Fault::Answer(status, text) => {
                let length = text.len();
                let answer = format!(
                    "HTTP/1.1 {status} Told\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
                );
                return client.write_all(answer.as_bytes());
            }
            Fault::Flip => body.iter_mut().take(1).for_each(|byte| *byte ^= 1),
            Fault::Forget if method == "PUT" => {
                let path = target.split('?').next().unwrap_or("").trim_start_matches('/');
                let _ = fs::remove_file(self.root.join(path));
            }
            Fault::Strip => head = without(&head, "if-none-match"),
            Fault::None
            | Fault::CutRequest
            | Fault::LoseAnswer
            | Fault::CutAnswer
            | Fault::Slow
            | Fault::Forget => {}
        }
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, self.server))?;
        server.write_all(head.as_bytes())?;
        if fault == Fault::CutRequest {
            return server.write_all(&body[..body.len() / 2]);
        }
        server.write_all(&body)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        let half = answer.len() / 2;
        match fault {
            Fault::LoseAnswer => Ok(()),
            Fault::CutAnswer => client.write_all(&answer[..half]),
            Fault::Slow => {
                client.write_all(&answer[..half])?;
                sleep(Duration::from_secs(2));
                client.write_all(&answer[half..])
            }
            Fault::None
            | Fault::CutRequest
            | Fault::Answer(..)
            | Fault::Flip
            | Fault::Forget
            | Fault::Strip => client.write_all(&answer),
        }
    }
}

/// The head of a request with its empty line, and its body.
fn request(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut read = Vec::new();
    let mut part = [0; 65536];
    loop {
        let got = client.read(&mut part)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read.extend_from_slice(&part[..got]);
        let Some(end) = read.windows(4).take(65536).position(|it| it == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&read[..end + 4]).to_string();
        let lower = head.to_lowercase();
        let length = lower
            .split_once("content-length:")
            .map_or(0, |(_, rest)| rest.split("\r\n").next().unwrap_or("").trim().parse().unwrap());
        if read.len() - end - 4 >= length {
            return Ok((head, read.split_off(end + 4)));
        }
    }
}

fn without(head: &str, name: &str) -> String {
    let lines = head.split_inclusive("\r\n");
    lines.filter(|line| !line.to_lowercase().starts_with(name)).collect()
}
