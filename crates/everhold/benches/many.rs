//! What an agent costs in a large cluster that idles: memory and processor time of each, over a
//! minute. Prints; asserts nothing.
//!
//! `cargo bench --bench many -- [NODES SERVICES [LINKS]]`; EVERHOLD_BIN names another build of the
//! program. On one machine there are one gateway and one API; with LINKS two of the agents are heard
//! by as many more as each agent is where every machine has both.

#[path = "../tests/stack/mod.rs"]
mod stack;

use rustls::ClientConfig;
use serde_json::{Value, json};
use stack::link::{self, Link};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Thirty servers are cloned on two cores.
const PATIENCE: Duration = Duration::from_secs(600);
/// Agents settle: the first clones are taken into their sets, checkpoints end.
const SETTLE: Duration = Duration::from_secs(20);
const OVER: Duration = Duration::from_secs(60);
/// Per node: the agent and the port to join at, and room for its instances.
const RANGE: u16 = 10;
/// /proc counts in these.
const TICKS_PER_SECOND: f64 = 100.0;
const LOAD: &str = "/proc/loadavg";

/// A cluster under `up`.
struct Many {
    dir: PathBuf,
    program: String,
    up: Option<Child>,
    nodes: usize,
    services: usize,
    base: u16,
}

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let number = |place: usize, default| numbers.get(place).copied().unwrap_or(default);
    let (nodes, services, links) = (number(0, 20), number(1, 10), number(2, 0));
    let mut many = Many::start(nodes, services);
    many.whole();
    // As many as a cluster of that size has gateways and APIs hear the last two agents.
    let heard = if links > 0 { nodes.saturating_sub(2)..nodes } else { 0..0 };
    let ears: Vec<Ears> = heard.map(|node| many.hear(node, links)).collect();
    std::thread::sleep(SETTLE);
    let agents = many.agents();
    let (quiet, heard): (Vec<i32>, Vec<i32>) = match (links, agents.as_slice()) {
        (1.., [quiet @ .., one, two]) => (quiet.to_vec(), vec![*one, *two]),
        _ => (agents, Vec::new()),
    };
    let up = many.up.as_ref().map(|up| up.id() as i32).into_iter().collect();
    let groups = [
        ("agents", quiet),
        ("agents with so many links", heard),
        ("gateway", many.pid("gateway").into_iter().collect()),
        ("supervisor and API", up),
    ];
    let began: Vec<Vec<u64>> =
        groups.iter().map(|(_, pids)| pids.iter().map(|pid| ticks(*pid)).collect()).collect();
    let from = Instant::now();
    std::thread::sleep(OVER);
    let seconds = from.elapsed().as_secs_f64();
    println!(
        "{nodes} nodes, {services} services, {links} links; load {}",
        read(LOAD.as_ref()).trim()
    );
    println!("| processes | | memory: median, worst | of a core: median, worst |");
    println!("| --- | --- | --- | --- |");
    for ((what, pids), began) in groups.iter().zip(&began).filter(|it| !it.1.is_empty()) {
        let share = |(pid, began): (&i32, &u64)| {
            ticks(*pid).saturating_sub(*began) as f64 / TICKS_PER_SECOND / seconds * 100.0
        };
        let (share, share_worst) = middle(pids.iter().zip(began).map(share).collect());
        let (memory, memory_worst) = middle(pids.iter().map(|pid| resident(*pid)).collect());
        println!(
            "| {what} | {} | {memory:.1} MB, {memory_worst:.1} MB | {share:.2} %, {share_worst:.2} % |",
            pids.len()
        );
    }
    let frames: usize = ears.iter().map(Ears::frames).sum();
    println!("frames heard on those links: {frames}");
}

/// Median and worst.
fn middle(mut all: Vec<f64>) -> (f64, f64) {
    all.sort_by(f64::total_cmp);
    let of = |value: Option<&f64>| value.copied().unwrap_or_default();
    (of(all.get(all.len() / 2)), of(all.last()))
}

/// Links to one agent as gateways and APIs have them, on a thread of their own.
struct Ears {
    frames: Arc<AtomicUsize>,
}

impl Ears {
    fn open(
        (node, addr): (String, String),
        every_ms: usize,
        tls: Arc<ClientConfig>,
        count: usize,
    ) -> Ears {
        let frames = Arc::new(AtomicUsize::new(0));
        let heard = frames.clone();
        std::thread::spawn(move || {
            stack::load::block_on(async {
                let link =
                    |_| listen(node.clone(), addr.clone(), every_ms, tls.clone(), heard.clone());
                let links: Vec<_> = (0..count).map(|nth| tokio::spawn(link(nth))).collect();
                for link in links {
                    let _ = link.await;
                }
            });
        });
        Ears { frames }
    }

    fn frames(&self) -> usize {
        self.frames.load(Ordering::Relaxed)
    }
}

async fn listen(
    node: String,
    addr: String,
    every_ms: usize,
    tls: Arc<ClientConfig>,
    heard: Arc<AtomicUsize>,
) -> std::io::Result<()> {
    let mut link = Link::open(&node, &addr, tls).await?;
    link.send(&json!({ "Hear": { "every_ms": every_ms } })).await?;
    let mut frame = Vec::new();
    loop {
        link.receive(&mut frame).await?;
        heard.fetch_add(1, Ordering::Relaxed);
    }
}

/// Processor time of a process so far.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default().to_string();
    let fields: Vec<&str> = after.split_whitespace().collect();
    let number = |i: usize| fields.get(i).and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
    number(11) + number(12)
}

/// Its memory, in MB.
fn resident(pid: i32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kb: f64 = line.trim().trim_end_matches(" kB").parse().unwrap_or_default();
    kb / 1_000.0
}

impl Many {
    fn start(nodes: usize, services: usize) -> Many {
        let name = format!("{}many-{}", stack::disk::PREFIX, std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).expect("a fresh directory");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        fs::set_permissions(&dir, mode).expect("permissions");
        let base = stack::free_ports(nodes as u16 * RANGE + services as u16 + 3);
        let built = env!("CARGO_BIN_EXE_everhold").to_string();
        let program = std::env::var("EVERHOLD_BIN").unwrap_or(built);
        let mut many = Many { dir, program, up: None, nodes, services, base };
        let spec = many.dir.join("everhold.toml");
        fs::write(&spec, many.spec()).expect("the spec is written");
        let log = File::create(many.dir.join("up.log")).expect("a log");
        let mut up = many.everhold();
        up.arg("up").arg("--spec").arg(spec);
        up.args(["--store-port", &(many.first_after_nodes() + 1).to_string()]);
        up.stdout(log.try_clone().expect("a log")).stderr(log);
        many.up = Some(up.spawn().expect("everhold starts"));
        many
    }

    fn everhold(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("EVERHOLD_POINTER", self.dir.join("up.json")).stdin(Stdio::null());
        command.arg("--data").arg(self.dir.join("data"));
        command
    }

    /// The API's port; the store's two and the listeners' come after it.
    fn first_after_nodes(&self) -> u16 {
        self.base + self.nodes as u16 * RANGE
    }

    fn spec(&self) -> String {
        let mut text = "schema = 1\ncluster = \"many\"\n[node]\n".to_string();
        for node in 0..self.nodes {
            let first = self.base + node as u16 * RANGE;
            let range = format!("{first}-{}", first + RANGE - 1);
            let _ = writeln!(text, "n{node} = {{ address = \"127.0.0.1\", ports = \"{range}\" }}");
        }
        let after = self.first_after_nodes();
        for service in 0..self.services {
            let of = |place: usize| format!("\"n{}\"", (service * 2 + place) % self.nodes);
            let _ = writeln!(
                text,
                "[service.s{service}]\nkind = \"postgres\"\nnodes = [{}, {}, {}]\n\
                 parameters = {{ shared_buffers = \"16MB\", max_connections = 20 }}",
                of(0),
                of(1),
                of(2)
            );
        }
        text += "[listener]\n";
        for service in 0..self.services {
            let port = after + 3 + service as u16;
            let _ = writeln!(
                text,
                "w{service} = {{ bind = \"127.0.0.1:{port}\", protocol = \"postgres\", \
                 service = \"s{service}\", role = \"primary\" }}"
            );
        }
        text + &format!("[api]\nbind = \"127.0.0.1:{after}\"\n")
    }

    /// Waits until every instance of every service is in its place.
    fn whole(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let output = self.everhold().args(["status", "--json"]).output();
            let told = output.expect("everhold runs").stdout;
            let status: Value = serde_json::from_slice(&told).unwrap_or_default();
            let services: Vec<&Value> =
                status["services"].as_object().into_iter().flat_map(|all| all.values()).collect();
            let whole = |service: &&&Value| {
                let members = service["synchronous"]["members"].as_array().map_or(0, Vec::len);
                service["serving"] == true && members == 2
            };
            let done = services.iter().filter(whole).count();
            if done == self.services {
                return;
            }
            assert!(Instant::now() < until, "{done} of {} services are whole", self.services);
            let up = self.up.as_mut().expect("up");
            let ended = up.try_wait().expect("a child");
            assert!(ended.is_none(), "{}", read(&self.dir.join("up.log")));
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn pid(&self, name: &str) -> Option<i32> {
        read(&self.dir.join("data").join(name).join("process.pid")).trim().parse().ok()
    }

    fn agents(&self) -> Vec<i32> {
        (0..self.nodes).filter_map(|node| self.pid(&format!("n{node}"))).collect()
    }

    /// So many links to the agent of a node, with the API's certificate.
    fn hear(&self, node: usize, links: usize) -> Ears {
        let tls = link::client(&self.dir.join("data/pki"));
        let port = self.base + node as u16 * RANGE + RANGE - 1;
        let at = (format!("n{node}"), format!("127.0.0.1:{port}"));
        // As a gateway of a cluster of that size asks.
        Ears::open(at, (self.nodes * 20).clamp(100, 500), tls, links)
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

impl Drop for Many {
    fn drop(&mut self) {
        if let Some(mut up) = self.up.take() {
            let _ = up.kill();
            let _ = up.wait();
        }
        stack::disk::clear(&self.dir, std::env::var_os("EVERHOLD_KEEP").is_none());
    }
}
