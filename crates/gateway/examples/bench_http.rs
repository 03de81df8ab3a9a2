//! The HTTP gateway beside HAProxy and nginx: requests per processor-second of the proxy, p99 at 60 %
//! of what the slowest can do, memory of idle connections, and how long the gateway's p99 is not what
//! it was after one of three instances was killed. Prints; asserts nothing about time.
//!
//! Everhold runs three times: logging as the peers do, which is not at all, with its access log, and
//! keeping answers, so that nearly all that is asked of it is there. Records, metrics, ids and ejection
//! are always on.
//!
//! `bench_http [ROUNDS]`. One thread each; wrk and h2load from the distribution; three instances, which
//! are an nginx of their own. All of it on loopback.

use everhold_core::http::HttpTable;
use everhold_core::http::cache::CacheSpec;
use everhold_core::http::queue::Priority;
use everhold_core::http::route::{Backend, HttpListener, HttpRoute, HttpService};
use everhold_core::route::RouteTable;
use everhold_core::spec::{Balance, HealthSpec, Match, Version};
use everhold_gateway::{Config, Gateway};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const CONNECTIONS: &str = "64";
const SECONDS: u64 = 5;
const IDLE: usize = 10_000;
/// An instance that is back is checked, used, and has its full share.
const RECOVERS_WITHIN: Duration = Duration::from_secs(5);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [serve, table] if serve == "--serve" => return serve_table(table, None),
        [serve, table, log] if serve == "--serve" => return serve_table(table, Some(log)),
        _ => {}
    }
    let rounds: usize = arguments.first().and_then(|it| it.parse().ok()).unwrap_or(5);
    let dir = tempfile::tempdir().expect("a directory");
    let stage = Stage::new(dir.path());
    println!(
        "{}, {}; wrk -t1 -c{CONNECTIONS}, {SECONDS} s a run, {rounds} rounds in turn",
        first_line("haproxy", &["-v"]),
        first_line("nginx", &["-v"])
    );
    for (what, path) in [("small", "/"), ("10 kB", "/big")] {
        let mut rows: Vec<Vec<(f64, f64)>> = vec![Vec::new(); stage.proxies.len()];
        for _ in 0..rounds {
            for (proxy, row) in stage.proxies.iter().zip(&mut rows) {
                row.push(proxy.wrk(path));
            }
        }
        table(&format!("HTTP/1.1, {what}"), &stage, &rows);
    }
    let mut rows: Vec<Vec<(f64, f64)>> = vec![Vec::new(); stage.proxies.len()];
    for _ in 0..rounds {
        for (proxy, row) in stage.proxies.iter().zip(&mut rows) {
            row.push(proxy.h2load());
        }
    }
    table("HTTP/2 in the clear, small, 8 connections of 8 streams", &stage, &rows);
    latency(&stage, rounds, dir.path());
    idle(&stage);
    drop(stage);
    after_a_kill(dir.path());
}

struct Proxy {
    name: &'static str,
    /// For HTTP/1.1, and for HTTP/2 in the clear.
    ports: [u16; 2],
    child: Child,
    /// Whose processor time counts.
    pid: u32,
}

struct Stage {
    proxies: Vec<Proxy>,
    _instances: Ended,
}

/// A process that ends with this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let _ = child.wait();
}

fn port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address").port()
}

impl Stage {
    fn new(dir: &Path) -> Stage {
        fs::write(dir.join("big"), "x".repeat(10_000)).expect("written");
        let instances = [port(), port(), port()];
        let servers: String = instances
            .iter()
            .map(|port| {
                format!(
                    "server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"hello, world\\n\"; }} \
                     location /big {{ }} }}\n"
                )
            })
            .collect();
        let instances_child = nginx(
            dir,
            "instances",
            &format!(
                "keepalive_timeout 600s; root {}; open_file_cache max=10;\n{servers}",
                dir.display()
            ),
        );
        let mut proxies = Vec::new();

        let ports = [port(), port()];
        let servers: String = (1..)
            .zip(instances)
            .map(|(i, port)| format!("  server s{i} 127.0.0.1:{port}\n"))
            .collect();
        let text = format!(
            "global\n  maxconn 9950\n  nbthread 1\ndefaults\n  mode http\n  timeout client 600s\n  \
             timeout server 60s\n  timeout connect 1s\n  timeout http-keep-alive 600s\n  \
             option forwardfor\n  http-reuse always\n  unique-id-format %[uuid]\n  \
             unique-id-header X-Request-Id\nfrontend f\n  bind 127.0.0.1:{}\n  \
             bind 127.0.0.1:{} proto h2\n  default_backend b\nbackend b\n  balance roundrobin\n{servers}",
            ports[0], ports[1]
        );
        fs::write(dir.join("haproxy.cfg"), text).expect("written");
        let child = quiet("haproxy").arg("-db").arg("-f").arg(dir.join("haproxy.cfg")).spawn();
        let child = child.expect("haproxy");
        proxies.push(Proxy { name: "haproxy", ports, pid: child.id(), child });

        let ports = [port(), port()];
        let servers: String =
            instances.iter().map(|port| format!("server 127.0.0.1:{port}; ")).collect();
        let server = |listen: String| {
            format!(
                "server {{ listen {listen}; http2_max_requests 100000000; location / {{ \
                 proxy_pass http://b; proxy_http_version 1.1; \
                 proxy_set_header Connection \"\"; proxy_set_header Host $host; \
                 proxy_set_header X-Forwarded-For $remote_addr; \
                 proxy_set_header X-Request-Id $request_id; }} }}\n"
            )
        };
        let child = nginx(
            dir,
            "nginx",
            &format!(
                "keepalive_timeout 600s; upstream b {{ {servers} keepalive 128; \
                 keepalive_requests 100000000; }}\n{}{}",
                server(format!("127.0.0.1:{}", ports[0])),
                server(format!("127.0.0.1:{} http2", ports[1]))
            ),
        );
        std::thread::sleep(Duration::from_millis(500));
        let worker = Command::new("pgrep").args(["-P", &child.id().to_string()]).output();
        let worker = String::from_utf8(worker.expect("pgrep").stdout).expect("text");
        let pid = worker.lines().next().and_then(|it| it.parse().ok()).expect("nginx's worker");
        proxies.push(Proxy { name: "nginx", ports, pid, child });

        proxies.push(everhold(dir, &instances, None, None));
        proxies.push(everhold(dir, &instances, Some("access.log"), None));
        let keeps = CacheSpec { ttl_ms: Some(60_000), ..CacheSpec::default() };
        proxies.push(everhold(dir, &instances, None, Some(keeps)));
        for proxy in &proxies {
            proxy.await_there();
        }
        Stage { proxies, _instances: Ended(instances_child) }
    }
}

/// The gateway as a process of its own.
fn everhold(dir: &Path, instances: &[u16], log: Option<&str>, cache: Option<CacheSpec>) -> Proxy {
    let name = match (log, &cache) {
        (Some(_), _) => "with log",
        (None, Some(_)) => "hits",
        (None, None) => "everhold",
    };
    let ports = [port(), port()];
    let file = dir.join(format!("table-{}.json", ports[0]));
    let text = serde_json::to_string(&route_table(ports, instances, cache)).expect("JSON");
    fs::write(&file, text).expect("written");
    let child = Command::new(std::env::current_exe().expect("this program"))
        .arg("--serve")
        .arg(&file)
        .args(log.map(|log| dir.join(log)))
        .spawn()
        .expect("the gateway");
    Proxy { name, ports, pid: child.id(), child }
}

fn quiet(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn nginx(dir: &Path, name: &str, text: &str) -> Child {
    nginx_of(dir, name, "worker_processes 1;", text)
}

fn nginx_of(dir: &Path, name: &str, processes: &str, text: &str) -> Child {
    let file = dir.join(format!("{name}.conf"));
    let own = dir.join(name);
    fs::create_dir_all(&own).expect("a directory");
    let text = format!(
        "{processes} daemon off; pid {own}/pid; error_log {own}/error.log;\n\
         events {{ worker_connections 15000; }}\nhttp {{ access_log off; default_type text/plain; \
         keepalive_requests 100000000; client_body_temp_path {own}/b; proxy_temp_path {own}/p; \
         fastcgi_temp_path {own}/f; uwsgi_temp_path {own}/u; scgi_temp_path {own}/s;\n{text}}}\n",
        own = own.display()
    );
    fs::write(&file, text).expect("written");
    quiet("nginx").arg("-c").arg(&file).spawn().expect("nginx")
}

fn route_table(ports: [u16; 2], instances: &[u16], cache: Option<CacheSpec>) -> RouteTable {
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let listener = |port| HttpListener {
        bind: at(port),
        tls: None,
        deny: Vec::new(),
        per_client_max: None,
        trusted_proxies: Vec::new(),
        routes: vec![HttpRoute {
            name: "all".to_string(),
            when: Match::default(),
            service: "web".to_string(),
            timeout_ms: None,
            bulkhead: None,
            priority: Priority::Normal,
            cache: cache.clone(),
            rate_limit: None,
            body_rate_min: None,
            degraded: None,
        }],
    };
    let backends = instances.iter().map(|port| Backend {
        name: format!("a.{port}"),
        address: at(*port),
        zone: None,
        weight: 1,
    });
    let service = HttpService {
        balance: Balance::RoundRobin,
        version: Version::Http1,
        affinity: None,
        health: HealthSpec::default(),
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
    let http = HttpTable {
        listeners: [("one", ports[0]), ("two", ports[1])]
            .map(|(name, port)| (name.to_string(), listener(port)))
            .into(),
        services: BTreeMap::from([("web".to_string(), service)]),
        ..HttpTable::default()
    };
    RouteTable::default().with_http(http)
}

fn serve_table(file: &str, log: Option<&String>) {
    let text = fs::read_to_string(file).expect("a table");
    let table = serde_json::from_str(&text).expect("a table");
    let config = Config { threads: NonZeroUsize::MIN, ..Config::new(Arc::new(table)) };
    let gateway = Gateway::start(config).expect("a gateway");
    gateway.set_access_log(log.map(Path::new)).expect("a log");
    loop {
        std::thread::park();
    }
}

impl Proxy {
    fn await_there(&self) {
        for _ in 0..100 {
            if TcpStream::connect(("127.0.0.1", self.ports[0])).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{} does not listen", self.name);
    }

    /// Processor time so far, in seconds.
    fn spent(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("its stat");
        let rest = stat.rsplit_once(')').expect("a name").1;
        let field = |i: usize| rest.split_whitespace().nth(i).and_then(|it| it.parse::<f64>().ok());
        (field(11).expect("utime") + field(12).expect("stime"))
            / rustix::param::clock_ticks_per_second() as f64
    }

    fn resident_kb(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("its status");
        let line = status.lines().find(|it| it.starts_with("VmRSS")).expect("a size");
        line.split_whitespace().nth(1).and_then(|it| it.parse().ok()).expect("a number")
    }

    /// Requests per processor-second, and per second.
    fn wrk(&self, path: &str) -> (f64, f64) {
        let before = self.spent();
        let output = Command::new("wrk")
            .args(["-t1", "-c", CONNECTIONS, "-d", &format!("{SECONDS}s")])
            .arg(format!("http://127.0.0.1:{}{path}", self.ports[0]))
            .output()
            .expect("wrk");
        let spent = self.spent() - before;
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            !text.contains("Non-2xx") && !text.contains("Socket errors"),
            "{}: {text}",
            self.name
        );
        let line = text.lines().find(|it| it.contains("requests in")).expect("a sum");
        let requests: f64 =
            line.split_whitespace().next().and_then(|it| it.parse().ok()).expect("a number");
        (requests / spent, requests / SECONDS as f64)
    }

    /// HTTP/1.1 on 32 connections, so many requests a second on each; see [`answers`].
    fn paced(&self, each: u64, seconds: u64, dir: &Path) -> Child {
        let log = dir.join("latencies");
        let _ = fs::remove_file(&log);
        Command::new("h2load")
            .args(["--h1", "-c32", "-m1", "-D", &seconds.to_string(), "--rps", &each.to_string()])
            .arg(format!("--log-file={}", log.display()))
            .arg(format!("http://127.0.0.1:{}/", self.ports[0]))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("h2load")
    }

    fn h2load(&self) -> (f64, f64) {
        let before = self.spent();
        let output = Command::new("h2load")
            .args(["-c8", "-m8", "-D", &SECONDS.to_string()])
            .arg(format!("http://127.0.0.1:{}/", self.ports[1]))
            .output()
            .expect("h2load");
        let spent = self.spent() - before;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find(|it| it.starts_with("requests:")).unwrap_or_else(|| {
            panic!("{}: {text}{}", self.name, String::from_utf8_lossy(&output.stderr))
        });
        let of = |word: &str| {
            let before = line.split(word).next().unwrap_or_default();
            before
                .split_whitespace()
                .last()
                .and_then(|it| it.parse::<f64>().ok())
                .expect("a number")
        };
        assert_eq!((of(" failed"), of(" errored")), (0.0, 0.0), "{}: {line}", self.name);
        (of(" succeeded") / spent, of(" succeeded") / SECONDS as f64)
    }
}

/// One answer, as h2load wrote it down.
struct Answer {
    at_us: u64,
    status: u16,
    took_us: f64,
}

fn answers(dir: &Path) -> Vec<Answer> {
    let text = fs::read_to_string(dir.join("latencies")).expect("its log");
    let answer = |line: &str| {
        let mut words = line.split('\t');
        let at_us = words.next()?.parse().ok()?;
        let status = words.next()?.parse().unwrap_or(0);
        Some(Answer { at_us, status, took_us: words.next()?.parse().ok()? })
    };
    text.lines().filter_map(answer).collect()
}

fn p99(mut took: Vec<f64>) -> f64 {
    took.sort_by(f64::total_cmp);
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

/// Ten tenths of a second within one and a half of the worst of the two seconds before count as normal.
fn after_a_kill(dir: &Path) {
    const TENTH_US: u64 = 100_000;
    const EACH: u64 = 200;
    let ports = [port(), port(), port()];
    let start = |port: &u16| {
        let server =
            format!("server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"hello\"; }} }}");
        // One process, so that one kill takes all of it.
        let text = format!("keepalive_timeout 600s;\n{server}");
        Ended(nginx_of(dir, &format!("killed-{port}"), "master_process off;", &text))
    };
    let mut instances: Vec<Ended> = ports.iter().map(start).collect();
    std::thread::sleep(Duration::from_millis(500));
    let gateway = everhold(dir, &ports, None, None);
    gateway.await_there();
    println!("\nafter kill -9 of one of three instances, at {} requests/s:", EACH * 32);
    for _ in 0..3 {
        let asked = gateway.paced(EACH, 8, dir);
        std::thread::sleep(Duration::from_secs(4));
        instances[0].0.kill().expect("killed");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
        let killed_us = now.as_micros() as u64;
        asked.wait_with_output().expect("h2load");
        let answers = answers(dir);
        let tenth = |from_us: u64| {
            let within = |it: &&Answer| (from_us..from_us + TENTH_US).contains(&it.at_us);
            p99(answers.iter().filter(within).map(|it| it.took_us).collect())
        };
        let before = (1..=20).map(|i| tenth(killed_us - i * TENTH_US)).fold(0.0, f64::max);
        let after: Vec<f64> = (0..30).map(|i| tenth(killed_us + i * TENTH_US)).collect();
        let normal = after.windows(10).position(|it| it.iter().all(|it| *it <= before * 1.5));
        let failed = answers.iter().filter(|it| it.status != 200).count();
        println!(
            "  p99 normal again after {} ms ({:.1} ms before, {:.1} ms at worst), {failed} of {} failed",
            normal.map_or("more than 2000".to_string(), |it| (it * 100).to_string()),
            before / 1_000.0,
            after.iter().copied().fold(0.0, f64::max) / 1_000.0,
            answers.len(),
        );
        instances[0] = start(&ports[0]);
        std::thread::sleep(RECOVERS_WITHIN);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn table(what: &str, stage: &Stage, rows: &[Vec<(f64, f64)>]) {
    println!(
        "\n{what}: requests per processor-second of the proxy (median), requests/s, ratio to the better peer of the round"
    );
    for (proxy, row) in stage.proxies.iter().zip(rows) {
        let ratio = |round: usize| row[round].0 / rows[0][round].0.max(rows[1][round].0);
        println!(
            "  {:<9} {:>8.0} {:>8.0}   {:.2}",
            proxy.name,
            median(row.iter().map(|it| it.0).collect()),
            median(row.iter().map(|it| it.1).collect()),
            median((0..row.len()).map(ratio).collect()),
        );
    }
}

/// p99 while as much is asked of each as 60 % of what the slowest can do.
fn latency(stage: &Stage, rounds: usize, dir: &Path) {
    let capacity = stage.proxies.iter().map(|it| it.wrk("/").1).fold(f64::MAX, f64::min);
    let each = (capacity * 0.6 / 32.0) as u64;
    println!("\np99 at {} requests/s (60 %), 32 connections, ms:", each * 32);
    let mut rows = vec![Vec::new(); stage.proxies.len()];
    for _ in 0..rounds {
        for (proxy, row) in stage.proxies.iter().zip(&mut rows) {
            let asked = proxy.paced(each, SECONDS, dir);
            let output = asked.wait_with_output().expect("h2load");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            row.push(p99(answers(dir).iter().map(|it| it.took_us).collect()) / 1_000.0);
        }
    }
    for (proxy, row) in stage.proxies.iter().zip(rows) {
        println!("  {:<9} median {:.2}, all {row:.2?}", proxy.name, median(row.clone()));
    }
}

fn idle(stage: &Stage) {
    println!("\nkB for each of {IDLE} idle connections that have asked once (HAProxy: 9900):");
    for proxy in &stage.proxies {
        // It counts two files for each, and may have 20,000 here.
        let idle = if proxy.name == "haproxy" { 9_900 } else { IDLE };
        let before = proxy.resident_kb();
        let mut open = Vec::new();
        for _ in 0..idle {
            let mut socket = TcpStream::connect(("127.0.0.1", proxy.ports[0])).expect("connected");
            socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("asked");
            let mut answer = [0; 1_024];
            assert!(socket.read(&mut answer).expect("answered") > 0);
            open.push(socket);
        }
        let kb = proxy.resident_kb().saturating_sub(before) as f64 / idle as f64;
        println!("  {:<9} {kb:.1}", proxy.name);
    }
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or_default().split(" 20").next().unwrap_or_default().to_string()
}
