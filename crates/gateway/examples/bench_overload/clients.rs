//! Clients: an open loop, which asks on whatever comes of it, and gives up after [`PATIENCE`].

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

pub const PATIENCE: Duration = Duration::from_secs(2);
/// Connections at most; what would need more is lost.
const CONNECTIONS_MAX: usize = 8_000;

/// An answer: when it came, what it was, how long it took.
pub type Answer = (Instant, u16, Duration);

pub fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

/// What listens for as long as this lives.
pub struct Served {
    pub address: SocketAddr,
    _ends: oneshot::Sender<()>,
}

/// On a thread of its own.
pub fn serve<F: Future<Output = ()>>(
    what: impl FnOnce(TcpListener) -> F + Send + 'static,
) -> Served {
    let listener = StdListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("an address");
    let (ends, ended) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let listener = TcpListener::from_std(listener).expect("a socket");
            tokio::select! {
                () = what(listener) => {}
                _ = ended => {}
            }
        });
    });
    Served { address, _ends: ends }
}

/// The head of the next request.
pub async fn head(socket: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    loop {
        if socket.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
        if head.windows(4).any(|it| it == b"\r\n\r\n") {
            return Some(String::from_utf8_lossy(&head).into_owned());
        }
    }
}

/// One request; the connection, if it can be used again.
async fn ask(mut socket: TcpStream, request: &str) -> Option<(TcpStream, u16)> {
    socket.write_all(request.as_bytes()).await.ok()?;
    let mut seen = Vec::with_capacity(512);
    loop {
        if socket.read_buf(&mut seen).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&seen);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let mut fields = head.lines().filter_map(|line| line.split_once(": "));
        let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        if body.len() >= length.map_or(0, |(_, it)| it.parse().unwrap_or(0)) {
            return Some((socket, head.split(' ').nth(1)?.parse().ok()?));
        }
    }
}

/// `request`: that of each number.
async fn offer(
    to: SocketAddr,
    request: impl Fn(u64) -> String,
    per_ms: f64,
    until: Instant,
    answers: Arc<Mutex<Vec<Answer>>>,
) {
    let idle: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (begun, mut asked) = (Instant::now(), 0);
    while Instant::now() < until {
        sleep(Duration::from_millis(1)).await;
        while (asked as f64) < begun.elapsed().as_secs_f64() * 1_000.0 * per_ms {
            asked += 1;
            let Ok(place) = room.clone().try_acquire_owned() else { continue };
            let (idle, answers, request) = (idle.clone(), answers.clone(), request(asked));
            tokio::spawn(async move {
                let _place = place;
                let at = Instant::now();
                let known = idle.lock().expect("no panic").pop();
                let answer = timeout(PATIENCE, async {
                    let socket = match known {
                        Some(socket) => socket,
                        None => TcpStream::connect(to).await.ok()?,
                    };
                    let _ = socket.set_nodelay(true);
                    ask(socket, &request).await
                });
                if let Ok(Some((socket, status))) = answer.await {
                    let answer = (Instant::now(), status, at.elapsed());
                    answers.lock().expect("no panic").push(answer);
                    idle.lock().expect("no panic").push(socket);
                }
            });
        }
    }
}

/// Clients on a thread of their own, with what they were answered.
pub struct Load {
    pub begun: Instant,
    answers: Arc<Mutex<Vec<Answer>>>,
    clients: JoinHandle<()>,
}

impl Load {
    pub fn start(
        to: SocketAddr,
        request: impl Fn(u64) -> String + Send + 'static,
        per_s: f64,
        lasts: Duration,
    ) -> Load {
        let (begun, answers) = (Instant::now(), Arc::<Mutex<Vec<Answer>>>::default());
        let (told, until) = (answers.clone(), begun + lasts);
        let clients = std::thread::spawn(move || {
            runtime().block_on(offer(to, request, per_s / 1_000.0, until, told));
        });
        Load { begun, answers, clients }
    }

    pub fn end(self) -> Vec<Answer> {
        self.clients.join().expect("no panic");
        let answers = self.answers.lock().expect("no panic");
        answers.clone()
    }
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Of those that were answered with 200 in that time, in milliseconds.
pub fn percentile(answers: &[Answer], of: usize, (from, to): (Instant, Instant)) -> f64 {
    let within = answers.iter().filter(|it| it.1 == 200 && (from..to).contains(&it.0));
    let mut took: Vec<Duration> = within.map(|it| it.2).collect();
    took.sort();
    took.get(took.len() * of / 100).map_or(f64::NAN, ms)
}

pub fn ms(it: &Duration) -> f64 {
    it.as_secs_f64() * 1_000.0
}
