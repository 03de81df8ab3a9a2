//! Transactions per processor-second of the gateway and of HAProxy, in front of one PostgreSQL.
//!
//! `cargo run --release -p everhold-gateway --example bench_tcp [-- ROUNDS [SECONDS]]`
//!
//! Both proxies run with one thread, in processes of their own, and take turns under the same
//! `pgbench -S` (simple protocol, 16 clients), since a shared machine is faster in one minute than
//! in the next. The processor time is the proxy process's own, from /proc. Started as
//! `bench_tcp serve LISTEN BACKEND` it is the gateway.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use everhold_core::route::{Instance, ServiceFacts, build};
use everhold_core::spec::{ListenerSpec, PostgresListener, Protocol, Role};
use everhold_gateway::{Config, Gateway};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const POSTGRES_BIN: &str = "/usr/lib/postgresql/15/bin";
const HAPROXY: &str = "/usr/sbin/haproxy";
const SCALE: &str = "10";
const CLIENTS: &str = "16";
/// Clock ticks of /proc/PID/stat per second on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", listen, backend] => serve(listen.parse()?, backend.parse()?),
        [] => bench(5, 10),
        [rounds] => bench(rounds.parse()?, 10),
        [rounds, seconds] => bench(rounds.parse()?, seconds.parse()?),
        _ => Err("usage: bench_tcp [ROUNDS [SECONDS]]".into()),
    }
}

fn serve(listen: SocketAddr, backend: SocketAddr) -> Result<()> {
    let spec = ListenerSpec {
        bind: listen,
        protocol: Protocol::Postgres(PostgresListener {
            service: "main".to_owned(),
            role: Role::Primary,
            max_lag_ms: None,
        }),
    };
    let facts = ServiceFacts {
        epoch: 1,
        primary: Some(Instance { name: "a".to_owned(), address: backend }),
        standbys: Vec::new(),
        all: vec![backend],
    };
    let table = build(
        &BTreeMap::from([("write".to_owned(), spec)]),
        &BTreeMap::from([("main".to_owned(), facts)]),
        None,
    );
    let mut config = Config::new(Arc::new(table));
    config.threads = NonZeroUsize::MIN;
    let _gateway = Gateway::start(config)?;
    println!("ready");
    loop {
        std::thread::park();
    }
}

fn bench(rounds: usize, seconds: u32) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let postgres = Postgres::start(directory.path())?;
    let [gateway_port, haproxy_port] = [free_port()?, free_port()?];
    let gateway = start_gateway(gateway_port, postgres.port)?;
    let haproxy = start_haproxy(directory.path(), haproxy_port, postgres.port)?;

    let proxies = [("gateway", &gateway, gateway_port), ("haproxy", &haproxy, haproxy_port)];
    for (_, _, port) in proxies {
        pgbench(port, 2)?;
    }
    let mut sums = [Sum::default(); 2];
    println!("round  proxy     transactions/s  processor s  transactions/processor s");
    for round in 1..=rounds {
        // Each goes first in every second round.
        let order = if round % 2 == 1 { [0, 1] } else { [1, 0] };
        for index in order {
            let (name, process, port) = proxies[index];
            let before = processor_seconds(process.0.id())?;
            let transactions = pgbench(port, seconds)?;
            let used = processor_seconds(process.0.id())? - before;
            sums[index].transactions += transactions;
            sums[index].processor += used;
            println!(
                "{round:5}  {name:8}  {:14.0}  {used:11.2}  {:24.0}",
                transactions / f64::from(seconds),
                transactions / used,
            );
        }
    }
    let [ours, theirs] = sums.map(|sum| sum.transactions / sum.processor);
    println!("gateway {ours:.0}, haproxy {theirs:.0} transactions per processor-second");
    println!("ratio {:.3}", ours / theirs);
    Ok(())
}

#[derive(Clone, Copy, Default)]
struct Sum {
    transactions: f64,
    processor: f64,
}

/// A child process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Postgres {
    port: u16,
    data: String,
}

impl Postgres {
    fn start(directory: &Path) -> Result<Postgres> {
        let data = directory.join("data").display().to_string();
        fs::create_dir(&data)?;
        if rustix::process::geteuid().is_root() {
            run(Command::new("chown").arg("-R").arg("postgres").arg(directory))?;
        }
        run(&mut as_postgres("initdb", &["-D", &data, "-U", "postgres", "-A", "trust", "-N"]))?;
        let port = free_port()?;
        let options = format!("-p {port} -c listen_addresses=127.0.0.1 -k '' -c fsync=off");
        let log = format!("{data}/log");
        run(&mut as_postgres("pg_ctl", &["-D", &data, "-w", "-l", &log, "-o", &options, "start"]))?;
        let postgres = Postgres { port, data };
        let port = port.to_string();
        run(Command::new(format!("{POSTGRES_BIN}/pgbench")).args([
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "postgres",
            "-q",
            "-i",
            "-s",
            SCALE,
            "postgres",
        ]))?;
        Ok(postgres)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = run(&mut as_postgres("pg_ctl", &["-D", &self.data, "-m", "immediate", "stop"]));
    }
}

/// PostgreSQL does not run as root.
fn as_postgres(program: &str, arguments: &[&str]) -> Command {
    let program = format!("{POSTGRES_BIN}/{program}");
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", &program]);
        command
    } else {
        Command::new(program)
    };
    command.args(arguments);
    command
}

fn start_gateway(port: u16, backend: u16) -> Result<Process> {
    let child = Command::new(std::env::current_exe()?)
        .args(["serve", &format!("127.0.0.1:{port}"), &format!("127.0.0.1:{backend}")])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut process = Process(child);
    let output = process.0.stdout.take().ok_or("the gateway has no output")?;
    BufReader::new(output).read_line(&mut String::new())?;
    Ok(process)
}

fn start_haproxy(directory: &Path, port: u16, backend: u16) -> Result<Process> {
    let configuration = format!(
        "global\n  nbthread 1\n  maxconn 1000\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen write\n  bind 127.0.0.1:{port}\n  server a 127.0.0.1:{backend}\n"
    );
    let file = directory.join("haproxy.cfg");
    fs::write(&file, configuration)?;
    let process = Process(Command::new(HAPROXY).arg("-db").arg("-f").arg(file).spawn()?);
    let end = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > end {
            return Err("haproxy does not listen".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(process)
}

/// Runs pgbench and returns the number of transactions.
fn pgbench(port: u16, seconds: u32) -> Result<f64> {
    let (port, seconds) = (port.to_string(), seconds.to_string());
    let output = run(Command::new(format!("{POSTGRES_BIN}/pgbench")).args([
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-U",
        "postgres",
        "-n",
        "-S",
        "-M",
        "simple",
        "-c",
        CLIENTS,
        "-T",
        &seconds,
        "postgres",
    ]))?;
    let line = output
        .lines()
        .find_map(|line| line.strip_prefix("number of transactions actually processed: "))
        .ok_or("pgbench printed no number of transactions")?;
    Ok(line.parse()?)
}

/// The processor time, user and system, that a process has used.
fn processor_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; user and system time are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(") ").ok_or("unreadable /proc/PID/stat")?;
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<f64>)
        .sum::<std::result::Result<f64, _>>()?;
    Ok(ticks / TICKS_PER_SECOND)
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
        .into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
