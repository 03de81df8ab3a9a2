//! Machines under test: network namespaces with a cable each to one switch, everything that a
//! machine runs in its own, clients on a machine of theirs, and faults of cables and machines.
//!
//! Shared by the tests and the benchmarks. Nothing of the binary's own code is used here.
#![allow(dead_code)] // Each user needs another part of it.

pub mod patroni;
pub mod torture;

use crate::stack::load::Target;
use crate::stack::preload::Preload;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

/// A cluster that isn't ready, or not whole again, after this is broken.
pub const PATIENCE: Duration = Duration::from_secs(120);
pub const NAMES: [&str; 3] = ["a", "b", "c"];
/// The machine of the clients.
pub const CLIENT: &str = "x";
/// Nobody's hardware address: what is sent there is lost without a word.
const NOWHERE: &str = "02:00:00:00:00:ff";

/// How a cluster differs from the default one.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub durability: &'static str,
    /// Whether its machines' disks and clocks can be made worse.
    pub worse: bool,
    /// The version that is installed at first, where it isn't the one under test.
    pub program: Option<PathBuf>,
}

/// An older version that EVERHOLD_OLD names, to run beside the one under test.
pub fn older() -> Option<PathBuf> {
    std::env::var_os("EVERHOLD_OLD").map(PathBuf::from)
}

impl Default for Wanted {
    fn default() -> Self {
        Wanted { durability: "required", worse: false, program: None }
    }
}

/// Three machines, a switch and a client. Dropping it ends every process in them.
pub struct Hosts {
    dir: PathBuf,
    /// What the namespaces' names begin with.
    prefix: String,
    running: Vec<Option<Child>>,
    /// What makes the machines worse, in their order, if that is wanted.
    preloads: Vec<Preload>,
}

fn place(host: &str) -> usize {
    NAMES.iter().chain([&CLIENT]).position(|name| *name == host).expect("a host")
}

/// Its address.
pub fn address(host: &str) -> String {
    format!("10.77.0.{}", place(host) + 1)
}

fn hardware(host: &str) -> String {
    format!("02:00:00:00:00:{:02x}", place(host) + 1)
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip runs");
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {arguments}: {error}");
}

impl Hosts {
    /// Machines with cables and nothing on them.
    pub fn bare() -> Hosts {
        remove_leftovers();
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let nth = MADE.fetch_add(1, Ordering::SeqCst);
        let prefix = format!("eh{}-{nth}", std::process::id());
        let dir = format!("everhold-hosts-{}-{nth}", std::process::id());
        let dir = std::env::temp_dir().join(dir);
        fs::create_dir(&dir).expect("a fresh directory");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).expect("permissions");
        let running = (0..3).map(|_| None).collect();
        let hosts = Hosts { dir, prefix, running, preloads: Vec::new() };
        let switch = hosts.space("s");
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add br0 type bridge"));
        ip(&format!("-n {switch} link set br0 up"));
        for host in NAMES.iter().chain([&CLIENT]) {
            let space = hosts.space(host);
            ip(&format!("netns add {space}"));
            let (mac, at) = (hardware(host), address(host));
            ip(&format!(
                "-n {switch} link add name p{host} type veth peer name eth0 address {mac} netns {space}"
            ));
            ip(&format!("-n {switch} link set dev p{host} master br0 up"));
            ip(&format!("-n {space} addr add {at}/24 dev eth0"));
            ip(&format!("-n {space} link set lo up"));
            ip(&format!("-n {space} link set eth0 up"));
        }
        for from in NAMES.iter().chain([&CLIENT]) {
            for to in NAMES.iter().chain([&CLIENT]).filter(|to| *to != from) {
                hosts.way(from, to, true);
            }
        }
        hosts
    }

    /// A cluster on them, from `init` and two `join`s, with clients that can write.
    pub fn start(wanted: &Wanted) -> Hosts {
        let mut hosts = Hosts::bare();
        if wanted.worse {
            hosts.preloads = NAMES.iter().map(|name| Preload::new(&hosts.dir, name)).collect();
        }
        for host in NAMES {
            wanted.program.iter().for_each(|program| hosts.install(host, program));
        }
        fs::write(hosts.spec_file(), hosts.spec(wanted)).expect("the spec is written");
        let spec = hosts.spec_file().display().to_string();
        let file = hosts.node_file("a").display().to_string();
        hosts.done("a", &["init", "--node", "a", "--spec", &spec, "--node-file", &file]);
        hosts.run("a");
        for host in ["b", "c"] {
            hosts.join(host, "a");
            hosts.run(host);
        }
        hosts.wait("c", "a cluster whose nodes are all healthy", is_whole);
        hosts
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn spec_file(&self) -> PathBuf {
        self.dir.join("everhold.toml")
    }

    pub fn node_file(&self, host: &str) -> PathBuf {
        self.dir.join(format!("{host}.toml"))
    }

    pub fn data(&self, host: &str) -> PathBuf {
        self.dir.join(host)
    }

    pub fn spec(&self, wanted: &Wanted) -> String {
        let nodes: String = NAMES
            .iter()
            .map(|name| {
                format!("{name} = {{ address = \"{}\", zone = \"z-{name}\" }}\n", address(name))
            })
            .collect();
        format!(
            "schema = 1\ncluster = \"shop\"\n[node]\n{nodes}\
             [service.main]\nkind = \"postgres\"\nnodes = [\"a\", \"b\", \"c\"]\n\
             database = \"app\"\nowner = \"app\"\n\
             synchronous = {{ number = 1, durability = \"{}\" }}\n\
             [listener]\n\
             write = {{ bind = \"0.0.0.0:6432\", protocol = \"postgres\", service = \"main\", role = \"primary\" }}\n\
             read = {{ bind = \"0.0.0.0:6433\", protocol = \"postgres\", service = \"main\", role = \"standby\", max_lag = \"1s\" }}\n",
            wanted.durability
        )
    }

    fn space(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    /// A program on one of the machines.
    pub fn on(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(host), program]);
        command.env("EVERHOLD_POINTER", self.dir.join(format!("{host}.json")));
        command.env("EVERHOLD_DATA", self.data(host)).stdin(Stdio::null());
        command
    }

    fn installed(&self, host: &str) -> PathBuf {
        self.dir.join(format!("{host}.bin")).join("everhold")
    }

    /// The binary of a machine: what was installed there, or else the one under test.
    fn program(&self, host: &str) -> PathBuf {
        let installed = self.installed(host);
        if installed.exists() { installed } else { env!("CARGO_BIN_EXE_everhold").into() }
    }

    /// Puts a version in the place of the one that is there, as a package does. What runs, runs on.
    pub fn install(&self, host: &str, program: &Path) {
        let (installed, fresh) = (self.installed(host), self.installed(host).with_extension("new"));
        fs::create_dir_all(installed.parent().expect("a directory")).expect("a directory");
        fs::copy(program, &fresh).expect("copied");
        fs::rename(&fresh, &installed).expect("installed");
    }

    /// One machine goes on as what is installed there, as a rollout makes it.
    pub fn renew(&self, host: &str) {
        signal("HUP", &[self.run_pid(host)]);
        self.until("processes of the version installed", || self.is_renewed(host));
    }

    /// Its supervisor, agent and gateway are what is installed there.
    pub fn is_renewed(&self, host: &str) -> bool {
        let roles = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let role = line.split(|byte| *byte == 0).nth(1).unwrap_or_default().to_vec();
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let ours = [&b"run"[..], b"agent", b"gateway"].contains(&role.as_slice());
            ours.then_some(exe == self.installed(host))
        };
        let found: Vec<bool> = self.processes(host).iter().filter_map(roles).collect();
        found.len() == 3 && found.iter().all(|is| *is)
    }

    /// The binary on one of the machines.
    pub fn everhold(&self, host: &str, arguments: &[&str]) -> Output {
        let mut command = self.on(host, &self.program(host).display().to_string());
        command.args(arguments).output().expect("everhold runs")
    }

    /// The same, and it must succeed.
    pub fn done(&self, host: &str, arguments: &[&str]) -> String {
        let output = self.everhold(host, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "on {host}: everhold {arguments:?}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What `everhold token` prints for `host`: TOKEN@HOST:PORT.
    pub fn token(&self, host: &str, by: &str) -> String {
        let line = self.done(by, &["token", host]);
        line.trim().strip_prefix("everhold join ").expect("a command to run").to_string()
    }

    /// The same for another machine in the place of `host`.
    pub fn token_replacing(&self, host: &str, by: &str) -> String {
        let line = self.done(by, &["token", host, "--replace"]);
        line.trim().strip_prefix("everhold join ").expect("a command to run").to_string()
    }

    pub fn join(&self, host: &str, by: &str) {
        let token = self.token(host, by);
        let file = self.node_file(host).display().to_string();
        self.done(host, &["join", &token, "--node-file", &file]);
    }

    /// Starts everything on a machine (again), and waits until it answers.
    pub fn run(&mut self, host: &str) {
        self.spawn(host, &self.program(host));
        let until = Instant::now() + PATIENCE;
        while self.status(host).is_none() {
            assert!(Instant::now() < until, "{host} does not run: {}", self.tail(host));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts it from this binary.
    pub fn spawn(&mut self, host: &str, program: &Path) {
        let log = self.dir.join(format!("{host}.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let mut command = self.on(host, &program.display().to_string());
        command.arg("run").arg("--node-file").arg(self.node_file(host));
        command.envs(self.preloads.get(place(host)).into_iter().flat_map(Preload::environment));
        command.stderr(log.try_clone().expect("a log")).stdout(log);
        self.running[place(host)] = Some(command.spawn().expect("everhold starts"));
    }

    /// Its `run`.
    pub fn run_pid(&self, host: &str) -> i32 {
        self.running[place(host)].as_ref().expect("it was started").id() as i32
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, is: impl Fn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is() {
            if Instant::now() > until {
                NAMES.iter().for_each(|name| eprintln!("--- {name}\n{}", self.tail(name)));
                panic!("no {what} within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether its `run` does.
    pub fn runs(&mut self, host: &str) -> bool {
        let child = self.running[place(host)].as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// `everhold status --json` as a machine answers it.
    pub fn status(&self, host: &str) -> Option<Value> {
        let output = self.everhold(host, &["status", "--json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Waits until `host` tells a status as wanted.
    pub fn wait(&self, host: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < until {
            if let Some(status) = self.status(host) {
                if wanted(&status) {
                    return status;
                }
                last = Some(status);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        NAMES.iter().for_each(|name| eprintln!("--- {name}\n{}", self.tail(name)));
        panic!("no {what} within {PATIENCE:?}, says {host}: {last:#?}");
    }

    pub fn leader(&self, by: &str) -> String {
        let status =
            self.wait(by, "leader", |status| status["services"]["main"]["serving"] == true);
        status["services"]["main"]["leader"].as_str().expect("a leader").to_string()
    }

    pub fn epoch(&self, by: &str) -> u64 {
        let status = self.wait(by, "epoch", |status| status["services"]["main"]["epoch"].is_u64());
        status["services"]["main"]["epoch"].as_u64().expect("an epoch")
    }

    /// The password of the database's owner.
    pub fn password(&self) -> String {
        let path = self.data("a").join("secrets/main.owner");
        fs::read_to_string(path).expect("the owner's password").trim().to_string()
    }

    /// How `everhold run` on a machine ended by itself.
    pub fn ended(&mut self, host: &str) -> ExitStatus {
        let mut child = self.running[place(host)].take().expect("it was started");
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("it is waited for") {
                return status;
            }
            assert!(Instant::now() < until, "{host} does not end: {}", self.tail(host));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What it said.
    pub fn said(&self, host: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{host}.log"))).unwrap_or_default()
    }

    fn tail(&self, host: &str) -> String {
        let mut all = String::new();
        for file in [format!("{host}.log"), format!("{host}/{host}/log")] {
            let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(15).collect();
            all.extend(lines.iter().rev().map(|line| format!("{line}\n")));
        }
        all
    }

    /// Opens or cuts the way from one machine to another, in this direction only and silently.
    pub fn way(&self, from: &str, to: &str, open: bool) {
        let mac = if open { hardware(to) } else { NOWHERE.to_string() };
        let (space, at) = (self.space(from), address(to));
        ip(&format!("-n {space} neigh replace {at} lladdr {mac} dev eth0 nud permanent"));
    }

    /// Pulls or plugs the machine's cable.
    pub fn cable(&self, host: &str, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        ip(&format!("-n {} link set dev p{host} {state}", self.space("s")));
        if plugged {
            // The kernel forgets neighbours of a link that was down.
            for other in NAMES.iter().chain([&CLIENT]).filter(|other| **other != host) {
                self.way(host, other, true);
            }
        }
    }

    /// Sets a machine's wall clock so many seconds beside the true one.
    pub fn clock(&self, host: &str, seconds: i64) {
        self.preloads[place(host)].clock(seconds);
    }

    /// Makes a machine's disk slow, or quick again.
    pub fn slow_disk(&self, host: &str, slow: bool) {
        self.preloads[place(host)].slow(slow);
    }

    /// Every process on a machine.
    pub fn processes(&self, host: &str) -> Vec<i32> {
        let output = Command::new("ip").args(["netns", "pids", &self.space(host)]).output();
        let output = output.expect("ip runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }

    /// As pulling the plug does: nothing is heard of it any more. Its disk stays.
    pub fn kill(&mut self, host: &str) {
        ip(&format!("-n {} link set dev p{host} down", self.space("s")));
        self.end(host);
    }

    /// Ends every process on a machine.
    pub fn end(&mut self, host: &str) {
        loop {
            let pids = self.processes(host);
            if pids.is_empty() {
                break;
            }
            signal("KILL", &pids);
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(mut child) = self.running.get_mut(place(host)).and_then(Option::take) {
            let _ = child.wait();
        }
        // One that is dying is nobody's any more, and has its ports still.
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Switches a killed machine on.
    pub fn revive(&mut self, host: &str) {
        self.cable(host, true);
        self.run(host);
    }

    /// The machine's member of the store.
    pub fn store_pid(&self, host: &str) -> Option<i32> {
        let etcd = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let program = line.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
            String::from_utf8_lossy(&program).ends_with("etcd")
        };
        self.processes(host).into_iter().find(|pid| etcd(pid))
    }

    /// `etcdctl` as the machine's member of the store answers it.
    pub fn etcdctl(&self, host: &str, arguments: &[&str]) -> Output {
        let certs = self.data(host).join("pki");
        let mut command = self.on(host, "etcdctl");
        let url = format!("https://{}:15300", address(host));
        command.env("ETCDCTL_API", "3").args(["--endpoints", &url]);
        let (cert, key) = (format!("etcd.{host}.pem"), format!("etcd.{host}.key"));
        for (flag, file) in [("--cacert", "ca.pem"), ("--cert", &cert), ("--key", &key)] {
            command.arg(flag).arg(certs.join(file));
        }
        command.args(arguments).output().expect("etcdctl runs")
    }

    /// The machine on which the store's leader runs.
    pub fn store_leader(&self) -> Option<String> {
        let find = |host: &&'static str| {
            let output = self.etcdctl(host, &["endpoint", "status", "-w", "json"]);
            let told: Value = serde_json::from_slice(&output.stdout).ok()?;
            let status = &told[0]["Status"];
            let leads = status["leader"] == status["header"]["member_id"];
            leads.then(|| (*host).to_string())
        };
        NAMES.iter().find_map(find)
    }

    /// Clients on a machine of their own, each with all gateways and another one first. A gateway
    /// that is silent is left after a second, as `connect_timeout` and `tcp_user_timeout` do.
    pub fn target(&self) -> Target {
        let config = |first: usize| {
            let mut config = Config::new();
            config.user("app").password(self.password()).dbname("app");
            config.connect_timeout(Duration::from_secs(1)).ssl_mode(SslMode::Require);
            for place in 0..NAMES.len() {
                config.host(address(NAMES[(first + place) % NAMES.len()])).port(6432);
            }
            config
        };
        Target { configs: (0..NAMES.len()).map(config).collect(), ..self.clients() }
    }

    /// The machine of the clients, and nobody whom they speak to.
    fn clients(&self) -> Target {
        let space = Some(Path::new("/run/netns").join(self.space(CLIENT)));
        Target { configs: Vec::new(), space, reply: Duration::from_secs(4) }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in NAMES.iter().chain([&CLIENT]) {
            self.end(host);
        }
        for host in NAMES.iter().chain([&CLIENT, &"s"]) {
            let _ = Command::new("ip").args(["netns", "del", &self.space(host)]).status();
        }
        if std::env::var_os("EVERHOLD_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Takes away what a run that was killed left: machines whose number is no process any more.
fn remove_leftovers() {
    let spaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in spaces.filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix("eh").and_then(|rest| rest.split('-').next());
        let Some(pid) = pid.and_then(|pid| pid.parse::<i32>().ok()) else { continue };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        let pids = Command::new("ip").args(["netns", "pids", &name]).output();
        let text = pids.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
        let pids: Vec<i32> =
            text.unwrap_or_default().lines().filter_map(|it| it.trim().parse().ok()).collect();
        signal("KILL", &pids);
        let _ = Command::new("ip").args(["netns", "del", &name]).status();
    }
}

/// All nodes in their places, and the set complete.
pub fn is_whole(status: &Value) -> bool {
    let main = &status["services"]["main"];
    let instances = main["instances"].as_object();
    let voters = status["store"]["members"]["voters"].as_array();
    voters.is_some_and(|voters| voters.len() == 3)
        && main["serving"] == true
        && main["synchronous"]["members"].as_array().is_some_and(|members| members.len() == 2)
        && instances.is_some_and(|all| all.values().all(|i| i["health"] == "up"))
}

/// Sends a signal by name; processes that are gone are no error.
pub fn signal(name: &str, pids: &[i32]) {
    if pids.is_empty() {
        return;
    }
    let pids = pids.iter().map(i32::to_string);
    let mut kill = Command::new("kill");
    let _ = kill.arg(format!("-{name}")).args(pids).stderr(Stdio::null()).status();
}
