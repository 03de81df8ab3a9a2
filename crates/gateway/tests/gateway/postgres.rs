//! In front of PostgreSQL 15 and its own client.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use everhold_core::route::{Instance, ServiceFacts, Standby};
use everhold_gateway::Limits;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::fixture::{A_WHILE, Fixture, PATIENCE, eventually};

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A server of its own, in a directory of its own, that ends with its owner.
struct Server {
    name: &'static str,
    port: u16,
    directory: TempDir,
}

impl Server {
    fn start(name: &'static str) -> Server {
        let mut server = Server { name, port: 0, directory: tempfile::tempdir().unwrap() };
        if geteuid().is_root() {
            assert!(succeeds(Command::new("chown").arg("postgres").arg(server.directory.path())));
        }
        let data = server.data();
        let log = format!("{data}/log");
        let initialise = ["-D", &data, "-U", "app", "-A", "trust", "-N"];
        assert!(succeeds(&mut as_postgres("initdb", &initialise)));
        // A port that is free now may be somebody's a moment later.
        for _ in 0..5 {
            server.port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let options =
                format!("-p {} -c listen_addresses=127.0.0.1 -k '' -c fsync=off", server.port);
            let start = ["-D", &data, "-w", "-l", &log, "-o", &options, "start"];
            if succeeds(&mut as_postgres("pg_ctl", &start)) {
                return server;
            }
        }
        panic!("PostgreSQL does not start: {}", std::fs::read_to_string(log).unwrap_or_default());
    }

    fn data(&self) -> String {
        self.directory.path().join("data").display().to_string()
    }

    fn instance(&self) -> Instance {
        let address = ([127, 0, 0, 1], self.port).into();
        Instance { name: self.name.to_owned(), address }
    }

    fn standby(&self) -> Standby {
        Standby { instance: self.instance(), lag_ms: Some(0), readable: true }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if Path::new(&self.data()).join("postmaster.pid").exists() {
            let _ =
                as_postgres("pg_ctl", &["-D", &self.data(), "-m", "immediate", "stop"]).output();
        }
    }
}

/// PostgreSQL does not run as root.
fn as_postgres(program: &str, arguments: &[&str]) -> Command {
    let program = format!("{BIN}/{program}");
    let mut command = if geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", &program]);
        command
    } else {
        Command::new(program)
    };
    // A server that inherited the test's output would keep it open.
    command.args(arguments).stdin(Stdio::null());
    command
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

fn psql(port: u16, options: &str) -> Command {
    let mut command = Command::new(format!("{BIN}/psql"));
    let target =
        format!("host=127.0.0.1 port={port} user=app dbname=postgres connect_timeout=20 {options}");
    command.args(["-X", "-A", "-t", "-q", "-d", &target]);
    command
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn facts(primary: Option<&Server>, standbys: &[&Server]) -> ServiceFacts {
    let all = primary.iter().chain(standbys).map(|server| server.instance().address).collect();
    ServiceFacts {
        epoch: 1,
        primary: primary.map(Server::instance),
        standbys: standbys.iter().map(|server| server.standby()).collect(),
        all,
    }
}

#[test]
fn psql_waits_for_a_primary_and_does_not_notice() {
    let mut fixture = Fixture::start(Limits::default(), facts(None, &[]));
    let port = fixture.listener("write").bind.port();
    let client = psql(port, "")
        .args(["-c", "SELECT repeat('x', 1000000)"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it waits", || fixture.listener("write").waiting == 1);
    let a = Server::start("a");
    fixture.publish(facts(Some(&a), &[]));
    let (answer, _) = text(&client.wait_with_output().unwrap());
    assert_eq!(answer.len(), 1_000_000);
}

#[test]
fn psql_shows_why_it_gets_no_server() {
    let limits = Limits { wait_max: A_WHILE, ..Limits::default() };
    let fixture = Fixture::start(limits, facts(None, &[]));
    let port = fixture.listener("write").bind.port();
    for options in ["sslmode=disable", "sslmode=prefer"] {
        let output = psql(port, options).args(["-c", "SELECT 1"]).output().unwrap();
        let (_, error) = text(&output);
        assert!(error.contains("service \"main\" has had no server"), "{options}: {error}");
        assert!(error.contains("everhold status"), "{options}: {error}");
    }
}

#[test]
fn an_interrupt_cancels_the_query_on_whichever_standby_runs_it() {
    let (b, c) = (Server::start("b"), Server::start("c"));
    let fixture = Fixture::start(Limits::default(), facts(None, &[&b, &c]));
    let port = fixture.listener("read").bind.port();
    // Twice, so that both standbys have had the session.
    let mut sleepers = [sleeper(port), sleeper(port)];
    for (client, _) in &mut sleepers {
        thread::sleep(A_WHILE);
        let pid = Pid::from_child(client);
        kill_process(pid, Signal::INT).unwrap();
        eventually("the query has ended", || client.try_wait().unwrap().is_some());
        let mut error = String::new();
        client.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        assert!(error.contains("canceling statement due to user request"), "{error}");
    }
    let ports: Vec<&str> = sleepers.iter().map(|(_, port)| port.as_str()).collect();
    assert_ne!(ports[0], ports[1], "the sessions were on two servers");
}

/// A psql in a query that outlasts the test, and the port of the server it reached.
fn sleeper(port: u16) -> (Child, String) {
    let mut client = psql(port, "")
        .args(["-c", "SHOW port", "-c"])
        .arg(format!("SELECT pg_sleep({})", 10 * PATIENCE.as_secs()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reached = String::new();
    BufReader::new(client.stdout.as_mut().unwrap()).read_line(&mut reached).unwrap();
    (client, reached.trim().to_owned())
}
