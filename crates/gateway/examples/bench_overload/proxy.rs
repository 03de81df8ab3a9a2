//! The gateway, and HAProxy, each as a process of its own with one thread.

use everhold_core::http::HttpTable;
use everhold_core::http::breaker::BreakerSpec;
use everhold_core::http::queue::Bulkhead;
use everhold_core::http::route::{Backend, HttpListener, HttpRoute, HttpService};
use everhold_core::route::RouteTable;
use everhold_core::spec::{Balance, HealthSpec, Match, PathMatch, Version};
use everhold_gateway::{Config, Gateway};
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const WRK_S: u64 = 4;

/// What is asked for below a path, and who answers.
#[derive(Clone)]
pub struct Asked<'a> {
    pub prefix: &'a str,
    pub instances: Vec<SocketAddr>,
    pub bulkhead: Option<Bulkhead>,
    pub breaker: Option<BreakerSpec>,
    pub hedge_percentile: Option<u32>,
    /// For HAProxy: its servers and their default.
    pub haproxy: &'a str,
}

pub struct Proxy {
    pub name: &'static str,
    pub address: SocketAddr,
    child: Ended,
}

/// A process that ends with this.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

pub fn port() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address")
}

pub fn has_haproxy() -> bool {
    let version = Command::new("haproxy").arg("-v").stdout(Stdio::null()).status();
    version.is_ok_and(|it| it.success())
}

impl Proxy {
    pub fn everhold(name: &'static str, all: &[Asked<'_>], dir: &Path) -> Proxy {
        let bind = port();
        let route = |(i, it): (usize, &Asked<'_>)| HttpRoute {
            name: format!("r{i}"),
            when: Match {
                path: Some(PathMatch::Prefix(it.prefix.to_string())),
                ..Match::default()
            },
            service: format!("s{i}"),
            ..HttpRoute::default()
        };
        let service = |(i, it): (usize, &Asked<'_>)| (format!("s{i}"), service(it));
        let listener = HttpListener {
            bind,
            tls: None,
            deny: Vec::new(),
            per_client_max: None,
            trusted_proxies: Vec::new(),
            routes: all.iter().enumerate().map(route).collect(),
        };
        let http = HttpTable {
            listeners: [("web".to_string(), listener)].into(),
            services: all.iter().enumerate().map(service).collect(),
            ..HttpTable::default()
        };
        let file = dir.join(format!("table-{}.json", bind.port()));
        let text = serde_json::to_string(&RouteTable::default().with_http(http)).expect("JSON");
        fs::write(&file, text).expect("written");
        let program = std::env::current_exe().expect("this program");
        let child = Command::new(program).arg("--serve").arg(&file).spawn().expect("the gateway");
        Proxy { name, address: bind, child: Ended(child) }.there()
    }

    /// `None`: there is none. `defaults`: of its section of that name.
    pub fn haproxy(all: &[Asked<'_>], defaults: &str, dir: &Path) -> Option<Proxy> {
        if !has_haproxy() {
            return None;
        }
        let bind = port();
        let mut text = format!(
            "global\n nbthread 1\n maxconn 15000\n no strict-limits\ndefaults\n mode http\n timeout connect 1s\n \
             timeout client 60s\n timeout server 60s\n timeout http-request 10s\n {defaults}\n\
             frontend f\n bind {bind}\n"
        );
        for (i, it) in all.iter().enumerate() {
            text += &format!(" use_backend s{i} if {{ path_beg {} }}\n", it.prefix);
        }
        for (i, it) in all.iter().enumerate() {
            text += &format!("backend s{i}\n");
            for (n, instance) in it.instances.iter().enumerate() {
                text += &format!(" server i{n} {instance} {}\n", it.haproxy);
            }
        }
        let file = dir.join(format!("haproxy-{}.cfg", bind.port()));
        fs::write(&file, text).expect("written");
        let mut command = Command::new("haproxy");
        // In the foreground, and quiet: what its servers do is meant.
        let child = command.arg("-db").arg("-q").arg("-f").arg(file).stderr(Stdio::null()).spawn();
        let child = Ended(child.expect("haproxy"));
        Some(Proxy { name: "haproxy", address: bind, child }.there())
    }

    fn there(self) -> Proxy {
        for _ in 0..200 {
            if TcpStream::connect(self.address).is_ok() {
                return self;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{} does not listen", self.name);
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

    pub fn resident_mb(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.0.id()));
        let status = status.expect("its status");
        let line = status.lines().find(|it| it.starts_with("VmRSS")).expect("a size");
        let kb = line.split_whitespace().nth(1).and_then(|it| it.parse::<f64>().ok());
        kb.expect("a number") / 1_024.0
    }

    /// Requests per processor-second.
    pub fn wrk(&self) -> f64 {
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

fn service(it: &Asked<'_>) -> HttpService {
    let backends = it.instances.iter().map(|address| Backend {
        name: address.to_string(),
        address: *address,
        zone: None,
        weight: 1,
    });
    HttpService {
        balance: Balance::RoundRobin,
        version: Version::Http1,
        affinity: None,
        health: HealthSpec { interval_ms: 3_600_000, ..HealthSpec::default() },
        slow_start_ms: 0,
        timeout_ms: 60_000,
        try_timeout_ms: None,
        try_timeout_auto: false,
        hedge_percentile: it.hedge_percentile,
        idle_timeout_ms: 3_600_000,
        retries: 2,
        bulkhead: it.bulkhead.clone(),
        breaker: it.breaker.clone(),
        backends: backends.collect(),
    }
}

pub fn serve_table(file: &str) {
    let text = fs::read_to_string(file).expect("a table");
    let table = serde_json::from_str(&text).expect("a table");
    let config = Config { threads: NonZeroUsize::MIN, ..Config::new(Arc::new(table)) };
    let _gateway = Gateway::start(config).expect("a gateway");
    loop {
        std::thread::park();
    }
}
