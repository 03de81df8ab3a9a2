//! Five times what instances can do: how much of their capacity is used, what those wait that are let
//! in, how long it takes after all instances stood still for 2 s, what second tries do for those that
//! one instance is slow with, and what protections cost where nothing is too much. Prints; asserts
//! nothing about time.
//!
//! `bench_overload [ROUNDS]`. The instance is a model: it works on [`SLOTS`] requests at once, each for
//! [`SERVICE`], and keeps the others waiting. Clients are an open loop that gives up after
//! [`PATIENCE`]. For the cost: wrk and nginx from the distribution.

use everhold_core::http::HttpTable;
use everhold_core::http::breaker::BreakerSpec;
use everhold_core::http::queue::{Bulkhead, Limit, Priority};
use everhold_core::http::route::{Backend, HttpListener, HttpRoute, HttpService};
use everhold_core::route::RouteTable;
use everhold_core::spec::{Balance, HealthSpec, Match, Version};
use everhold_gateway::{Config, Gateway};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::fs;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

const SLOTS: usize = 32;
const SERVICE: Duration = Duration::from_millis(50);
const TIMES: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections of clients at most; what would need more is lost.
const CONNECTIONS_MAX: usize = 8_000;
const WARM_S: usize = 5;
const MEASURED_S: usize = 15;
const STANDS_S: usize = 2;
const AFTER_S: usize = 6;
const TENTH: Duration = Duration::from_millis(100);
const WRK_S: u64 = 4;
/// What is asked of three instances, of which one is slow now and then.
const TAIL_PER_S: u64 = 400;
const TAIL_S: usize = 15;
const QUICK: Duration = Duration::from_millis(5);
const SLOW: Duration = Duration::from_millis(200);
const SLOW_ONE_IN: u64 = 20;

/// An answer: when it came, what it was, how long it took.
type Answer = (Instant, u16, Duration);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [serve, table] = arguments.as_slice()
        && serve == "--serve"
    {
        return serve_table(table);
    }
    let rounds: usize = arguments.first().and_then(|it| it.parse().ok()).unwrap_or(3);
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).expect("more files");
    let dir = tempfile::tempdir().expect("a directory");
    let capacity = SLOTS as f64 / SERVICE.as_secs_f64();
    println!(
        "{SLOTS} at once, {SERVICE:?} each: {capacity:.0}/s can be done, {:.0}/s are asked for",
        capacity * TIMES as f64
    );
    println!(
        "{:<14} {:>9} {:>12} {:>9} {:>9} {:>16}",
        "limit", "goodput", "worst 500 ms", "p50 ms", "p99 ms", "after 2 s, ms"
    );
    for _ in 0..rounds {
        for (name, limit) in [
            ("none", None),
            ("given", Some(Limit::Most(SLOTS as u32))),
            ("auto", Some(Limit::Auto)),
        ] {
            let bulkhead = limit.map(|limit| Bulkhead { limit, queue: None, wait_ms: 1_000 });
            overload(name, bulkhead, capacity, dir.path());
        }
    }
    println!(
        "\n{TAIL_PER_S}/s, {QUICK:?} each, but {SLOW:?} for one in {SLOW_ONE_IN} of one of three instances\n\
         {:<14} {:>9} {:>9} {:>9} {:>16}",
        "second tries", "p50 ms", "p99 ms", "p99.9 ms", "more requests"
    );
    for _ in 0..rounds {
        for (name, percentile) in [("none", None), ("p95", Some(95))] {
            tail(name, percentile, dir.path());
        }
    }
    cost(rounds, dir.path());
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

struct Model {
    slots: Semaphore,
    stands: AtomicBool,
}

async fn instance(listener: TcpListener, model: Arc<Model>) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let model = model.clone();
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            let mut head = Vec::new();
            loop {
                head.clear();
                while !head.ends_with(b"\r\n\r\n") {
                    match socket.read_buf(&mut head).await {
                        Ok(1..) => {}
                        Ok(0) | Err(_) => return,
                    }
                }
                let Ok(slot) = model.slots.acquire().await else { return };
                sleep(SERVICE).await;
                while model.stands.load(SeqCst) {
                    sleep(Duration::from_millis(1)).await;
                }
                drop(slot);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                if socket.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// One request; the connection, if it can be used again.
async fn ask(mut socket: TcpStream) -> Option<(TcpStream, u16)> {
    socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.ok()?;
    let mut seen = Vec::with_capacity(512);
    loop {
        if socket.read_buf(&mut seen).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&seen);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "))?;
        if body.len() >= length.parse().ok()? {
            return Some((socket, head.split(' ').nth(1)?.parse().ok()?));
        }
    }
}

async fn offer(to: SocketAddr, per_ms: f64, until: Instant, answers: Arc<Mutex<Vec<Answer>>>) {
    let idle: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (begun, mut asked) = (Instant::now(), 0.0);
    while Instant::now() < until {
        sleep(Duration::from_millis(1)).await;
        while asked < begun.elapsed().as_secs_f64() * 1_000.0 * per_ms {
            asked += 1.0;
            let Ok(place) = room.clone().try_acquire_owned() else { continue };
            let (idle, answers) = (idle.clone(), answers.clone());
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
                    ask(socket).await
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

fn overload(name: &str, bulkhead: Option<Bulkhead>, capacity: f64, dir: &Path) {
    let model = Arc::new(Model { slots: Semaphore::new(SLOTS), stands: AtomicBool::new(false) });
    let listener = StdListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("an address");
    let (_ends_with_this, ended) = oneshot::channel::<()>();
    let served = model.clone();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let listener = TcpListener::from_std(listener).expect("a socket");
            tokio::select! {
                () = instance(listener, served) => {}
                _ = ended => {}
            }
        });
    });
    let gateway = Proxy::start(&[address], dir, |service| {
        (service.bulkhead, service.breaker) = (bulkhead, Some(BreakerSpec::default()));
    });
    let begun = Instant::now();
    let at = |seconds: usize| begun + Duration::from_secs(seconds as u64);
    let stands_from = WARM_S + MEASURED_S;
    let stands_to = stands_from + STANDS_S;
    let ends = stands_to + AFTER_S;
    let answers: Arc<Mutex<Vec<Answer>>> = Arc::default();
    let per_ms = capacity * TIMES as f64 / 1_000.0;
    let (to, until, told) = (gateway.address, at(ends), answers.clone());
    let clients = std::thread::spawn(move || runtime().block_on(offer(to, per_ms, until, told)));
    let sleep_till = |at: Instant| std::thread::sleep(at.saturating_duration_since(Instant::now()));
    sleep_till(at(stands_from));
    model.stands.store(true, SeqCst);
    sleep_till(at(stands_to));
    model.stands.store(false, SeqCst);
    let again = Instant::now();
    clients.join().expect("no panic");
    let answers = answers.lock().expect("no panic").clone();
    let good = |from: Instant, to: Instant| {
        let within = move |(at, status, _): &&Answer| *status == 200 && (from..to).contains(at);
        answers.iter().filter(within)
    };
    let share = |from: Instant, to: Instant| {
        good(from, to).count() as f64 / (capacity * (to - from).as_secs_f64())
    };
    let (from, to) = (at(WARM_S), at(stands_from));
    let halves = (0..(MEASURED_S * 10 - 5) as u32).map(|i| from + TENTH * i);
    let worst = halves.map(|from| share(from, from + TENTH * 5)).fold(f64::MAX, f64::min);
    let mut took: Vec<Duration> = good(from, to).map(|it| it.2).collect();
    took.sort();
    let percentile = |of: usize| took.get(took.len() * of / 100).map_or(0.0, ms);
    // Five tenths of a second in a row in which as much is done as can be, but for a tenth.
    let normal = (0..(AFTER_S * 10 - 5) as u32)
        .map(|i| again + TENTH * i)
        .find(|from| share(*from, *from + TENTH * 5) >= 0.9);
    let normal = normal.map_or("never".to_owned(), |it| format!("{:.0}", ms(&(it - again))));
    println!(
        "{name:<14} {:>8.1}% {:>11.1}% {:>9.0} {:>9.0} {normal:>16}",
        100.0 * share(from, to),
        100.0 * worst,
        percentile(50),
        percentile(99),
    );
}

fn ms(it: &Duration) -> f64 {
    it.as_secs_f64() * 1_000.0
}

/// Answers after [`QUICK`], or, if it is the one that is slow now and then, after [`SLOW`]; counts.
async fn now_and_then(listener: TcpListener, is_slow: bool, got: Arc<AtomicU64>) {
    let mine = Arc::new(AtomicU64::new(0));
    while let Ok((mut socket, _)) = listener.accept().await {
        let (got, mine) = (got.clone(), mine.clone());
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            let mut head = Vec::new();
            loop {
                head.clear();
                while !head.ends_with(b"\r\n\r\n") {
                    match socket.read_buf(&mut head).await {
                        Ok(1..) => {}
                        Ok(0) | Err(_) => return,
                    }
                }
                got.fetch_add(1, SeqCst);
                let number = mine.fetch_add(1, SeqCst);
                let slow = is_slow && number % SLOW_ONE_IN == SLOW_ONE_IN - 1;
                sleep(if slow { SLOW } else { QUICK }).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                if socket.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// What clients wait for where one of three instances is slow now and then.
fn tail(name: &str, percentile: Option<u32>, dir: &Path) {
    let got = Arc::new(AtomicU64::new(0));
    let listeners: Vec<StdListener> =
        (0..3).map(|_| StdListener::bind("127.0.0.1:0").expect("a port")).collect();
    let address = |it: &StdListener| it.local_addr().expect("an address");
    let addresses: Vec<SocketAddr> = listeners.iter().map(address).collect();
    let (_ends_with_this, ended) = oneshot::channel::<()>();
    let counts = got.clone();
    std::thread::spawn(move || {
        runtime().block_on(async {
            for (index, listener) in listeners.into_iter().enumerate() {
                listener.set_nonblocking(true).expect("a socket");
                let listener = TcpListener::from_std(listener).expect("a socket");
                tokio::spawn(now_and_then(listener, index == 0, counts.clone()));
            }
            let _ = ended.await;
        });
    });
    let gateway = Proxy::start(&addresses, dir, |service| service.hedge_percentile = percentile);
    let begun = Instant::now();
    let until = begun + Duration::from_secs((WARM_S + TAIL_S) as u64);
    let answers: Arc<Mutex<Vec<Answer>>> = Arc::default();
    let (to, told) = (gateway.address, answers.clone());
    let per_ms = TAIL_PER_S as f64 / 1_000.0;
    let clients = std::thread::spawn(move || runtime().block_on(offer(to, per_ms, until, told)));
    clients.join().expect("no panic");
    let answers = answers.lock().expect("no panic").clone();
    let from = begun + Duration::from_secs(WARM_S as u64);
    let measured = answers.iter().filter(|(at, status, _)| *status == 200 && *at >= from);
    let mut took: Vec<Duration> = measured.map(|it| it.2).collect();
    took.sort();
    let per_mille = |of: usize| took.get(took.len() * of / 1_000).map_or(0.0, ms);
    let more = got.load(SeqCst) as f64 / answers.len().max(1) as f64 - 1.0;
    println!(
        "{name:<14} {:>9.1} {:>9.1} {:>9.1} {:>15.1}%",
        per_mille(500),
        per_mille(990),
        per_mille(999),
        100.0 * more,
    );
}

/// Requests per processor-second of the gateway, with all protections and with none.
fn cost(rounds: usize, dir: &Path) {
    let ports: Vec<u16> = (0..3).map(|_| port().port()).collect();
    let servers = ports.iter().map(|port| {
        format!("server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"hello\"; }} }}\n")
    });
    let text = format!(
        "worker_processes 1; daemon off; pid {dir}/pid; error_log {dir}/error.log;\n\
         events {{ worker_connections 4000; }}\nhttp {{ access_log off; keepalive_timeout 600s;\n\
         keepalive_requests 100000000; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; \
         fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n{}}}\n",
        servers.collect::<String>(),
        dir = dir.display()
    );
    fs::write(dir.join("nginx.conf"), text).expect("written");
    let nginx = Command::new("nginx").arg("-c").arg(dir.join("nginx.conf")).spawn();
    let _instances = Ended(nginx.expect("nginx"));
    std::thread::sleep(Duration::from_millis(500));
    let instances: Vec<SocketAddr> = ports.iter().map(|port| local(*port)).collect();
    let auto = Bulkhead { limit: Limit::Auto, queue: None, wait_ms: 1_000 };
    let off = Proxy::start(&instances, dir, |_| {});
    let on = Proxy::start(&instances, dir, |service| {
        (service.bulkhead, service.breaker) = (Some(auto), Some(BreakerSpec::default()));
        service.hedge_percentile = Some(95);
    });
    let rows: Vec<(f64, f64)> = (0..rounds).map(|_| (off.wrk(), on.wrk())).collect();
    let median = |mut of: Vec<f64>| {
        of.sort_by(f64::total_cmp);
        of[of.len() / 2]
    };
    let off = median(rows.iter().map(|it| it.0).collect());
    let on = median(rows.iter().map(|it| it.1).collect());
    println!(
        "\nrequests per processor-second: {off:.0} with none, {on:.0} with all: {:.2}",
        on / off
    );
}

/// The gateway as a process of its own.
struct Proxy {
    address: SocketAddr,
    child: Ended,
}

/// A process that ends with this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn port() -> SocketAddr {
    let socket = StdListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address")
}

impl Proxy {
    fn start(instances: &[SocketAddr], dir: &Path, change: impl FnOnce(&mut HttpService)) -> Proxy {
        let bind = port();
        let route = HttpRoute {
            name: "all".to_string(),
            when: Match::default(),
            service: "web".to_string(),
            timeout_ms: None,
            bulkhead: None,
            priority: Priority::Normal,
            ..HttpRoute::default()
        };
        let backends = instances.iter().map(|address| Backend {
            name: address.to_string(),
            address: *address,
            zone: None,
            weight: 1,
        });
        let mut service = HttpService {
            balance: Balance::RoundRobin,
            version: Version::Http1,
            affinity: None,
            health: HealthSpec { interval_ms: 3_600_000, ..HealthSpec::default() },
            slow_start_ms: 0,
            timeout_ms: 60_000,
            try_timeout_ms: None,
            try_timeout_auto: false,
            hedge_percentile: None,
            idle_timeout_ms: 3_600_000,
            retries: 2,
            bulkhead: None,
            breaker: None,
            backends: backends.collect(),
        };
        change(&mut service);
        let listener = HttpListener {
            bind,
            tls: None,
            deny: Vec::new(),
            per_client_max: None,
            trusted_proxies: Vec::new(),
            routes: vec![route],
        };
        let http = HttpTable {
            listeners: [("web".to_string(), listener)].into(),
            services: [("web".to_string(), service)].into(),
            ..HttpTable::default()
        };
        let file = dir.join(format!("table-{}.json", bind.port()));
        let text = serde_json::to_string(&RouteTable::default().with_http(http)).expect("JSON");
        fs::write(&file, text).expect("written");
        let program = std::env::current_exe().expect("this program");
        let child = Command::new(program).arg("--serve").arg(&file).spawn().expect("the gateway");
        let child = Ended(child);
        for _ in 0..200 {
            if std::net::TcpStream::connect(bind).is_ok() {
                return Proxy { address: bind, child };
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the gateway does not listen");
    }

    /// Processor time so far, in seconds.
    fn spent(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.0.id()));
        let stat = stat.expect("its stat");
        let rest = stat.rsplit_once(')').expect("a name").1;
        let field = |i: usize| rest.split_whitespace().nth(i).and_then(|it| it.parse::<f64>().ok());
        (field(11).expect("utime") + field(12).expect("stime"))
            / rustix::param::clock_ticks_per_second() as f64
    }

    /// Requests per processor-second.
    fn wrk(&self) -> f64 {
        let before = self.spent();
        let output = Command::new("wrk")
            .args(["-t1", "-c64", "-d", &format!("{WRK_S}s")])
            .arg(format!("http://{}/", self.address))
            .stdin(Stdio::null())
            .output()
            .expect("wrk");
        let spent = self.spent() - before;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find(|it| it.contains("requests in")).expect("a sum");
        let requests = line.split_whitespace().next().and_then(|it| it.parse::<f64>().ok());
        requests.expect("a number") / spent
    }
}

fn serve_table(file: &str) {
    let text = fs::read_to_string(file).expect("a table");
    let table = serde_json::from_str(&text).expect("a table");
    let config = Config { threads: NonZeroUsize::MIN, ..Config::new(Arc::new(table)) };
    let _gateway = Gateway::start(config).expect("a gateway");
    loop {
        std::thread::park();
    }
}
