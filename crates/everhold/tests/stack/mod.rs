//! A whole stack under test: `everhold up` in a directory and on ports of its own, faults by signal
//! from outside, and clients that know nothing of Everhold but an address.
//!
//! Shared by the tests and the benchmarks. Nothing of the binary's own code is used here.
#![allow(dead_code)] // Each user needs another part of it.

pub mod bucket;
pub mod disk;
pub mod link;
pub mod load;
pub mod preload;
pub mod random;
pub mod table;
pub mod torture;

use preload::Preload;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A stack that isn't ready, or not whole again, after this is broken.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Ports per node: PostgreSQL and the agent, and a few to spare.
const RANGE: u16 = 10;

pub const NODES: [&str; 3] = ["a", "b", "c"];

/// How a stack differs from the default one.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub durability: &'static str,
    pub number: u32,
    /// Environment of `everhold up`, inherited by all it starts.
    pub environment: Vec<(String, String)>,
    /// More for the command line of `everhold up`.
    pub arguments: Vec<String>,
    /// Whether its disks and clock can be made worse.
    pub worse: bool,
    pub parameters: String,
    /// More keys of the service, each with its line end.
    pub service: &'static str,
    /// Nodes whose directory is a small disk of its own.
    pub disks: &'static [&'static str],
    /// How large.
    pub disk_mb: u64,
    /// `[store]`, if it is the operator's.
    pub store: String,
    /// Directories of the stack that are to be repositories.
    pub repositories: &'static [&'static str],
    /// Whether it runs from a program of its own, which can be renewed.
    pub installed: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Wanted {
            durability: "required",
            number: 1,
            environment: Vec::new(),
            arguments: Vec::new(),
            worse: false,
            parameters: String::new(),
            service: "",
            disks: &[],
            disk_mb: disk::MB,
            store: String::new(),
            repositories: &[],
            installed: false,
        }
    }
}

/// A running stack. Dropping it ends every process it started and removes its directory.
pub struct Stack {
    up: Option<Child>,
    dir: PathBuf,
    wanted: Wanted,
    base: u16,
    preload: Option<Preload>,
}

impl Stack {
    /// Runs a command of the stack's cluster that has to succeed; its output.
    pub fn done(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("it runs");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {err}");
        String::from_utf8_lossy(&output.stdout).to_string()
    }

    /// Starts a stack and waits until clients can write.
    pub fn start(wanted: Wanted) -> Stack {
        let mut stack = Stack::new(wanted);
        stack.up();
        stack
    }

    /// A stack that was not started yet.
    pub fn new(wanted: Wanted) -> Stack {
        disk::sweep();
        let dir = std::env::temp_dir().join(format!(
            "{}{}-{:x}",
            disk::PREFIX,
            std::process::id(),
            random::seed() & 0xff_ffff
        ));
        fs::create_dir(&dir).expect("a fresh directory");
        // PostgreSQL's user passes through.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).expect("permissions");
        let base = free_ports(4 * RANGE + 8);
        let preload = wanted.worse.then(|| Preload::new(&dir, "stack"));
        let stack = Stack { up: None, dir, wanted, base, preload };
        if stack.wanted.installed {
            stack.install(0);
        }
        fs::write(stack.spec_file(), stack.spec(false)).expect("the spec is written");
        for node in stack.wanted.disks {
            let image = stack.dir.join(format!("disk-{node}"));
            disk::mount(&image, &stack.data().join(node), stack.wanted.disk_mb);
        }
        stack
    }

    /// The stack's spec file.
    pub fn spec_file(&self) -> PathBuf {
        self.dir.join("everhold.toml")
    }

    /// Its spec, with a fourth node or without.
    pub fn spec(&self, more: bool) -> String {
        let Wanted { durability, number, parameters, service, store, .. } = &self.wanted;
        let first = self.write_port() + 8;
        let range_of_d = format!("{first}-{}", first + RANGE - 1);
        let (d, nodes) = match more {
            true => (
                format!("d = {{ address = \"127.0.0.1\", ports = \"{range_of_d}\" }}\n"),
                "\"a\", \"b\", \"c\", \"d\"",
            ),
            false => (String::new(), "\"a\", \"b\", \"c\""),
        };
        let range =
            |i: u16| format!("{}-{}", self.base + i * RANGE, self.base + i * RANGE + RANGE - 1);
        format!(
            "schema = 1\ncluster = \"test\"\n\
             [node]\n\
             a = {{ address = \"127.0.0.1\", ports = \"{}\" }}\n\
             b = {{ address = \"127.0.0.1\", ports = \"{}\" }}\n\
             c = {{ address = \"127.0.0.1\", ports = \"{}\" }}\n\
             {d}[service.main]\nkind = \"postgres\"\nnodes = [{nodes}]\n\
             database = \"app\"\nowner = \"app\"\n\
             synchronous = {{ number = {number}, durability = \"{durability}\" }}\n\
             parameters = {{ {parameters} }}\n{service}\
             [listener]\n\
             write = {{ bind = \"127.0.0.1:{}\", protocol = \"postgres\", service = \"main\", role = \"primary\" }}\n\
             read = {{ bind = \"127.0.0.1:{}\", protocol = \"postgres\", service = \"main\", role = \"standby\", max_lag = \"1s\" }}\n\
             [api]\nbind = \"127.0.0.1:{}\"\n{store}{}",
            range(0),
            range(1),
            range(2),
            self.write_port(),
            self.read_port(),
            self.api_port(),
            self.repositories()
        )
    }

    fn repositories(&self) -> String {
        let Wanted { repositories, .. } = &self.wanted;
        if repositories.is_empty() {
            return String::new();
        }
        let place = |name: &&str| {
            let (at, key) = (self.dir.join(name), self.key_file(name));
            let (at, key) = (at.display(), key.display());
            format!("{name} = {{ url = \"file://{at}\", key_file = \"{key}\" }}\n")
        };
        let places: String = repositories.iter().map(place).collect();
        format!("[repository]\n{places}[service.main.backup]\nrepositories = {repositories:?}\n")
    }

    /// Where a repository's password stands.
    pub fn key_file(&self, repository: &str) -> PathBuf {
        self.dir.join(format!("{repository}.key"))
    }

    /// What makes its disks and clock worse.
    pub fn preload(&self) -> &Preload {
        self.preload.as_ref().expect("a stack that can be made worse")
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn write_port(&self) -> u16 {
        self.base + 3 * RANGE
    }

    pub fn read_port(&self) -> u16 {
        self.base + 3 * RANGE + 1
    }

    pub fn api_port(&self) -> u16 {
        self.base + 3 * RANGE + 2
    }

    pub fn postgres_port(&self, node: &str) -> u16 {
        let place = NODES.iter().position(|name| *name == node).expect("a node") as u16;
        self.base + place * RANGE
    }

    /// Where the agent of a node answers load balancers.
    pub fn health_port(&self, node: &str) -> u16 {
        self.postgres_port(node) + RANGE - 3
    }

    /// Where its agent is dialled.
    pub fn agent_port(&self, node: &str) -> u16 {
        self.postgres_port(node) + RANGE - 1
    }

    /// What `everhold up` said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(self.dir.join("up.log")).unwrap_or_default()
    }

    /// Where the gateway tells its metrics.
    pub fn gateway_port(&self) -> u16 {
        self.postgres_port(NODES[0]) + RANGE - 4
    }

    /// The password of the database's owner.
    pub fn password(&self) -> String {
        let path = self.data().join("secrets/main.owner");
        fs::read_to_string(path).expect("the owner's password").trim().to_string()
    }

    /// The command line of the binary, for this stack.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(match self.wanted.installed {
            true => self.program(),
            false => PathBuf::from(env!("CARGO_BIN_EXE_everhold")),
        });
        command.args(arguments).env("EVERHOLD_DATA", self.data());
        // The cluster that commands find without being told stays the one it was.
        command.env("EVERHOLD_POINTER", self.dir.join("up.json"));
        command
    }

    /// Where the program is that it runs from, if that is its own.
    pub fn program(&self) -> PathBuf {
        self.dir.join("everhold")
    }

    /// Installs a program that does the same and is another one, larger by so many bytes.
    pub fn install(&self, more: usize) {
        let new = self.dir.join("everhold.new");
        fs::copy(env!("CARGO_BIN_EXE_everhold"), &new).expect("copied");
        let mut file = fs::OpenOptions::new().append(true).open(&new).expect("opened");
        file.write_all(&vec![0; more]).expect("written");
        fs::rename(new, self.program()).expect("installed");
    }

    /// Starts `everhold up` (again) and waits until it serves.
    pub fn up(&mut self) {
        self.begin();
        self.wait("a leader that serves", |status| status["services"]["main"]["serving"] == true);
    }

    /// Only starts it.
    pub fn begin(&mut self) {
        let log = self.dir.join("up.log");
        let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let spec = self.spec_file();
        let store_port = (self.base + 3 * RANGE + 3).to_string();
        let mut command = self.command(&["up", "--store-port", &store_port, "--spec"]);
        command.arg(spec).args(&self.wanted.arguments).envs(self.wanted.environment.clone());
        command.envs(self.preload.iter().flat_map(Preload::environment));
        command.stdin(Stdio::null()).stderr(log.try_clone().expect("a log")).stdout(log);
        self.up = Some(command.spawn().expect("everhold starts"));
    }

    /// An `everhold up` that is refused, to its end.
    pub fn up_output(&self) -> std::process::Output {
        let mut command = self.command(&["up", "--spec"]);
        command.arg(self.spec_file()).output().expect("everhold runs")
    }

    /// The supervisor itself, while it runs.
    pub fn up_pid(&mut self) -> Option<i32> {
        let up = self.up.as_mut()?;
        matches!(up.try_wait(), Ok(None)).then(|| up.id() as i32)
    }

    /// Ends `up` as Ctrl-C does, and waits.
    pub fn interrupt(&mut self) {
        if let Some(mut up) = self.up.take() {
            signal("INT", &[up.id() as i32]);
            up.wait().expect("everhold ends");
        }
    }

    /// `kill -9` of the supervisor alone.
    pub fn kill_up(&mut self) {
        if let Some(mut up) = self.up.take() {
            up.kill().expect("killed");
            up.wait().expect("everhold ends");
        }
    }

    /// `everhold status --json`, over HTTP. `None`: no answer.
    pub fn status(&self) -> Option<Value> {
        let token = fs::read_to_string(self.data().join("secrets/api.token")).ok()?;
        let url = format!("http://127.0.0.1:{}/v1/status", self.api_port());
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(2)))
            .build()
            .into();
        let request = agent.get(&url).header("Authorization", format!("Bearer {}", token.trim()));
        request.call().ok()?.body_mut().read_json().ok()
    }

    /// Waits until the status is as wanted.
    pub fn wait(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < until {
            if let Some(status) = self.status() {
                if wanted(&status) {
                    return status;
                }
                last = Some(status);
            }
            if let Some(up) = &mut self.up
                && let Ok(Some(ended)) = up.try_wait()
            {
                self.explain();
                panic!("everhold up ended with {ended} while waiting for {what}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.explain();
        panic!("no {what} within {PATIENCE:?}; the status: {last:#?}");
    }

    /// Waits until all three nodes do their part.
    pub fn whole(&mut self) -> Value {
        self.wait("stack with three healthy nodes", is_whole)
    }

    /// Waits for a hold of that rule, or of any, whose reason has all these words in it.
    pub fn hold(&mut self, rule: &str, words: &[&str]) -> Value {
        let of = |status: &Value| {
            let holds = status["holds"].as_array()?;
            let said = |hold: &Value| hold["why"].as_str().unwrap_or_default().to_string();
            let of_rule = |hold: &Value| rule == "any" || hold["rule"] == rule;
            let wanted = |h: &&Value| of_rule(h) && words.iter().all(|word| said(h).contains(word));
            holds.iter().find(wanted).cloned()
        };
        let status = self.wait(&format!("hold {rule} with {words:?}"), |s| of(s).is_some());
        of(&status).expect("it was there")
    }

    pub fn leader(&mut self) -> String {
        let status = self.wait("leader", |status| status["services"]["main"]["serving"] == true);
        status["services"]["main"]["leader"].as_str().expect("a leader").to_string()
    }

    pub fn epoch(&mut self) -> u64 {
        let status = self.wait("epoch", |status| status["services"]["main"]["epoch"].is_u64());
        status["services"]["main"]["epoch"].as_u64().expect("an epoch")
    }

    /// The postmaster of a node.
    pub fn postmaster(&self, node: &str) -> Option<i32> {
        let path = self.data().join(node).join("main/pgdata/postmaster.pid");
        fs::read_to_string(path).ok()?.lines().next()?.trim().parse().ok()
    }

    /// Every process of the node's PostgreSQL.
    pub fn postgres_pids(&self, node: &str) -> Vec<i32> {
        self.pids_in(&self.data().join(node).join("main/pgdata"))
    }

    /// Processes that run below that directory.
    pub fn pids_in(&self, dir: &Path) -> Vec<i32> {
        processes(|pid| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
        })
    }

    /// The agent of a node, or the gateway.
    pub fn agent_pid(&self, name: &str) -> Option<i32> {
        let file = self.data().join(name).join("node.toml");
        let mine = processes(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            let role = words.nth(1).unwrap_or_default();
            (role == b"agent" || role == b"gateway")
                && words.any(|word| word == file.as_os_str().as_encoded_bytes())
        });
        mine.first().copied()
    }

    pub fn etcd_pid(&self) -> Option<i32> {
        let dir = self.data().join("etcd");
        let mine = processes(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let text = String::from_utf8_lossy(&line).replace('\0', " ");
            text.contains("etcd")
                && text.contains(&*dir.to_string_lossy())
                && !text.contains("everhold")
                || text.split(' ').next().is_some_and(|p| p.ends_with("/etcd"))
                    && text.contains(&*dir.to_string_lossy())
        });
        mine.first().copied()
    }

    /// What the store's own tool says.
    pub fn etcdctl(&self, arguments: &[&str]) -> String {
        let pki = self.data().join("pki");
        let file = |flag: &str, name: &str| format!("--{flag}={}", pki.join(name).display());
        let endpoint = format!("--endpoints=https://127.0.0.1:{}", self.base + 3 * RANGE + 3);
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args([endpoint, file("cacert", "ca.pem"), file("cert", "api.pem")])
            .arg(file("key", "api.key"))
            .args(arguments)
            .output()
            .expect("etcdctl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_string()
    }

    /// Agent and PostgreSQL together: what dies with a machine.
    pub fn node_pids(&self, node: &str) -> Vec<i32> {
        let mut pids = self.postgres_pids(node);
        pids.extend(self.agent_pid(node));
        pids
    }

    /// The same with the minders, which outlive both, and the archiver: what freezes with a machine.
    pub fn machine_pids(&self, node: &str) -> Vec<i32> {
        let mut pids = self.role_pids("minder", node);
        pids.extend(self.role_pids("archive", node));
        pids.extend(self.node_pids(node));
        pids
    }

    /// Everhold's own processes of that role for the service of a node.
    pub fn role_pids(&self, role: &str, node: &str) -> Vec<i32> {
        let dir = self.data().join(node).join("main");
        processes(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            words.nth(1) == Some(role.as_bytes())
                && words.any(|word| word == dir.as_os_str().as_encoded_bytes())
        })
    }

    /// What helps to understand a failure.
    pub fn explain(&self) {
        let keep = std::env::var_os("EVERHOLD_KEEP").is_some();
        for name in ["up.log", "data/a/log", "data/b/log", "data/c/log", "data/gateway/log"] {
            let text = fs::read_to_string(self.dir.join(name)).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(12).collect();
            eprintln!("--- {name}");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        if keep {
            eprintln!("kept: {}", self.dir.display());
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Some(mut up) = self.up.take() {
            let _ = up.kill();
            let _ = up.wait();
        }
        // Whatever runs in or with this directory was started by this stack.
        disk::clear(&self.dir, std::env::var_os("EVERHOLD_KEEP").is_none());
    }
}

/// All three nodes in their places, and the set complete.
pub fn is_whole(status: &Value) -> bool {
    let main = &status["services"]["main"];
    let instances = main["instances"].as_object();
    main["serving"] == true
        && main["synchronous"]["members"].as_array().is_some_and(|members| members.len() == 2)
        && instances.is_some_and(|all| all.values().all(|i| i["health"] == "up"))
}

/// Sends a signal by name; processes that are gone are no error.
pub fn signal(name: &str, pids: &[i32]) {
    if pids.is_empty() {
        return;
    }
    let _ = Command::new("kill")
        .arg(format!("-{name}"))
        .args(pids.iter().map(i32::to_string))
        .stderr(Stdio::null())
        .status();
}

fn processes(wanted: impl Fn(i32) -> bool) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| wanted(*pid)).collect()
}

/// The first of so many consecutive ports that nobody listens on, below where Linux takes outgoing
/// ones from. None is given twice: whom it is for may not listen yet.
pub fn free_ports(count: u16) -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut tried = BTreeSet::new();
    loop {
        let base = 16_000 + (random::seed() % 14_000) as u16;
        assert!(tried.len() < 1_000, "no {count} free ports in a row");
        tried.insert(base);
        let free = |port| !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (base..base + count).all(free) {
            given.extend(base..base + count);
            return base;
        }
    }
}
