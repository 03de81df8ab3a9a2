//! Patroni on the same machines: etcd, Patroni and PostgreSQL on each of the three, HAProxy with
//! Patroni's own health checks on the clients' machine. Default timers; commits are synchronous, as
//! ours are.

use super::{CLIENT, Hosts, NAMES, PATIENCE, address};
use crate::stack::load::Target;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tokio_postgres::Config;

const PASSWORD: &str = "benchmark";
/// What `scripts/setup-patroni` leaves.
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/patroni/bin");

/// Three machines with Patroni instead of Everhold.
pub struct Patroni {
    pub hosts: Hosts,
}

/// Why there is no Patroni to stand beside, if there is none.
pub fn missing() -> Option<String> {
    let program = Path::new(PROGRAMS).join("patroni");
    let mut asked = as_postgres(&mut Command::new("setpriv"), &program);
    let there = asked.arg("--version").output().is_ok_and(|output| output.status.success());
    let haproxy = Command::new("haproxy").arg("-v").output().is_ok();
    if there && haproxy {
        return None;
    }
    Some(format!("{} or haproxy can't be run; scripts/setup-patroni", program.display()))
}

/// `setpriv` with what lets a program run as PostgreSQL's user.
fn as_postgres(setpriv: &mut Command, program: &Path) -> Command {
    let mut command = Command::new(setpriv.get_program());
    command.args(setpriv.get_args());
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
    command
}

impl Patroni {
    pub fn start() -> Patroni {
        let patroni = Patroni { hosts: Hosts::bare() };
        for host in NAMES {
            let dir = patroni.hosts.data(host);
            fs::create_dir(&dir).expect("a directory");
            fs::write(patroni.file(host), patroni.config(host)).expect("written");
            let chown = Command::new("chown").arg("-R").arg("postgres").arg(&dir).status();
            assert!(chown.is_ok_and(|status| status.success()), "chown");
        }
        NAMES.iter().for_each(|host| patroni.run(host));
        patroni.proxy();
        patroni.whole();
        let sql = format!("CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'");
        patroni.psql(&sql);
        patroni.psql("CREATE DATABASE app OWNER app");
        patroni
    }

    fn file(&self, host: &str) -> PathBuf {
        self.hosts.data(host).join("patroni.yml")
    }

    fn config(&self, host: &str) -> String {
        let (at, dir) = (address(host), self.hosts.data(host).display().to_string());
        let stores: Vec<String> = NAMES.iter().map(|n| format!("{}:2379", address(n))).collect();
        let stores = stores.join(", ");
        format!(
            "scope: shop\nname: {host}\n\
             restapi: {{listen: '{at}:8008', connect_address: '{at}:8008'}}\n\
             etcd3: {{hosts: [{stores}]}}\n\
             bootstrap:\n  \
               dcs:\n    ttl: 30\n    loop_wait: 10\n    retry_timeout: 10\n    \
                 maximum_lag_on_failover: 1048576\n    synchronous_mode: true\n    \
                 postgresql: {{use_pg_rewind: true, parameters: {{max_connections: 100}}}}\n  \
               initdb: [{{encoding: UTF8}}, data-checksums]\n\
             postgresql:\n  listen: '{at}:5432'\n  connect_address: '{at}:5432'\n  \
               data_dir: {dir}/pgdata\n  bin_dir: /usr/lib/postgresql/15/bin\n  \
               pgpass: {dir}/pgpass\n  \
               authentication:\n    \
                 superuser: {{username: postgres, password: {PASSWORD}}}\n    \
                 replication: {{username: replicator, password: {PASSWORD}}}\n    \
                 rewind: {{username: rewinder, password: {PASSWORD}}}\n  \
               parameters: {{unix_socket_directories: '{dir}'}}\n  \
               pg_hba: ['local all all trust', 'host all all all md5', 'host replication all all md5']\n"
        )
    }

    /// Starts everything on a machine (again).
    pub fn run(&self, host: &str) {
        let (at, dir) = (address(host), self.hosts.data(host));
        let members: Vec<String> =
            NAMES.iter().map(|name| format!("{name}=http://{}:2380", address(name))).collect();
        let mut etcd = self.hosts.on(host, "etcd");
        etcd.args(["--name", host, "--initial-cluster", &members.join(",")]);
        etcd.arg("--data-dir").arg(dir.join("etcd"));
        for flag in ["--listen-client-urls", "--advertise-client-urls"] {
            etcd.args([flag, &format!("http://{at}:2379")]);
        }
        for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
            etcd.args([flag, &format!("http://{at}:2380")]);
        }
        self.spawn(etcd, host, "etcd");
        let program = Path::new(PROGRAMS).join("patroni");
        let mut patroni = as_postgres(&mut self.hosts.on(host, "setpriv"), &program);
        patroni.arg(self.file(host)).current_dir(&dir);
        self.spawn(patroni, host, "patroni");
    }

    /// HAProxy as Patroni's documentation has it.
    fn proxy(&self) {
        let servers: String = NAMES
            .iter()
            .map(|name| {
                let at = address(name);
                format!("  server {name} {at}:5432 maxconn 100 check port 8008\n")
            })
            .collect();
        let text = format!(
            "global\n  maxconn 100\n\
             defaults\n  mode tcp\n  retries 2\n  timeout client 30m\n  timeout connect 4s\n  \
               timeout server 30m\n  timeout check 5s\n\
             listen postgres\n  bind 127.0.0.1:5000\n  option httpchk OPTIONS /primary\n  \
               http-check expect status 200\n  \
               default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions\n{servers}"
        );
        let file = self.hosts.dir().join("haproxy.cfg");
        fs::write(&file, text).expect("written");
        let mut haproxy = self.hosts.on(CLIENT, "haproxy");
        haproxy.arg("-db").arg("-f").arg(file);
        self.spawn(haproxy, CLIENT, "haproxy");
    }

    fn spawn(&self, mut command: Command, host: &str, what: &str) {
        let log = self.hosts.dir().join(format!("{host}.{what}.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
        command.stderr(log.try_clone().expect("a log")).stdout(log).stdin(Stdio::null());
        let mut child = command.spawn().expect("it starts");
        std::thread::spawn(move || child.wait());
    }

    /// The members as Patroni lists them, asked on any machine that answers.
    fn members(&self) -> Option<Vec<Value>> {
        let ask = |host: &&str| -> Option<Vec<Value>> {
            let url = format!("http://{}:8008/cluster", address(host));
            let mut curl = self.hosts.on(CLIENT, "curl");
            let output = curl.args(["--silent", "--max-time", "2", &url]).output().ok()?;
            let told: Value = serde_json::from_slice(&output.stdout).ok()?;
            told["members"].as_array().cloned()
        };
        NAMES.iter().find_map(ask)
    }

    /// Waits until one leads and two follow; the leader.
    pub fn whole(&self) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let members = self.members().unwrap_or_default();
            let leader = members.iter().find(|it| it["role"] == "leader");
            let follow = |it: &&Value| it["state"] == "streaming" && it["role"] != "leader";
            let synchronous = members.iter().any(|it| it["role"] == "sync_standby");
            if let Some(leader) = leader
                && synchronous
                && members.iter().filter(follow).count() == 2
                && self.psql("SELECT 1").status.success()
            {
                return leader["name"].as_str().unwrap_or_default().to_string();
            }
            assert!(Instant::now() < until, "Patroni is not whole: {members:#?}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    fn psql(&self, sql: &str) -> Output {
        let mut psql = self.hosts.on(CLIENT, "psql");
        psql.env("PGPASSWORD", PASSWORD).env("PGCONNECT_TIMEOUT", "3");
        psql.args(["-h", "127.0.0.1", "-p", "5000", "-U", "postgres", "-c", sql, "postgres"]);
        psql.output().expect("psql runs")
    }

    /// Clients of HAProxy.
    pub fn target(&self) -> Target {
        let mut config = Config::new();
        config.host("127.0.0.1").port(5000).user("app").password(PASSWORD).dbname("app");
        config.connect_timeout(Duration::from_secs(1));
        Target { configs: vec![config], ..self.hosts.clients() }
    }
}
