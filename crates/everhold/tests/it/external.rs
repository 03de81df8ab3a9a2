//! A cluster on an etcd that is already there: Debian's, with TLS and without.

use crate::certs;
use crate::hosts::{self, CLIENT, Hosts};
use crate::stack::load::Load;
use crate::stack::{Stack, Wanted};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// An operator's etcd with one server.
struct Operators {
    process: Child,
    dir: PathBuf,
    url: String,
    secure: bool,
}

impl Operators {
    /// Starts it by `command`, which runs a program somewhere.
    fn start(
        dir: &Path,
        address: &str,
        port: u16,
        secure: bool,
        mut command: Command,
    ) -> Operators {
        let dir = dir.to_path_buf();
        fs::create_dir_all(&dir).expect("made");
        let scheme = if secure { "https" } else { "http" };
        let url = format!("{scheme}://{address}:{port}");
        let peer = format!("http://127.0.0.1:{}", port + 1);
        let log = fs::File::create(dir.join("log")).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        command.arg("--data-dir").arg(dir.join("data"));
        for (flag, url) in [
            ("--listen-client-urls", &url),
            ("--advertise-client-urls", &url),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
        ] {
            command.args([flag, url]);
        }
        command.arg(format!("--initial-cluster=default={peer}"));
        if secure {
            let pki = dir.join("pki");
            certs::make(&pki, address);
            command.arg("--client-cert-auth");
            for (flag, file) in [
                ("--trusted-ca-file", "ca.pem"),
                ("--cert-file", "server.pem"),
                ("--key-file", "key.pem"),
            ] {
                command.arg(flag).arg(pki.join(file));
            }
        }
        Operators { process: command.spawn().expect("etcd starts"), dir, url, secure }
    }

    fn table(&self) -> String {
        let mut table = format!("[store]\netcd = [\"{}\"]\n", self.url);
        if self.secure {
            for (key, file) in [("ca", "ca.pem"), ("cert", "client.pem"), ("key", "key.pem")] {
                table += &format!("{key} = \"{}\"\n", self.dir.join("pki").join(file).display());
            }
        }
        table
    }

    /// etcdctl without TLS.
    fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url]).args(arguments);
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let output = command.output().expect("etcdctl runs");
            if output.status.success() {
                return String::from_utf8_lossy(&output.stdout).into_owned();
            }
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(Instant::now() < until, "{error}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Operators {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn refused(output: &Output, code: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it was taken");
    assert!(error.contains(code) && error.contains("next step"), "{error}");
}

fn local(name: &str) -> (tempfile::TempDir, u16) {
    let dir = tempfile::Builder::new().prefix(name).tempdir().expect("a directory");
    (dir, crate::stack::free_ports(2))
}

#[test]
fn up_uses_an_etcd_that_is_there_and_nobody_elses_records() {
    let (dir, port) = local("etcd-clear");
    let etcd =
        Operators::start(dir.path(), "127.0.0.1", port, false, Command::new("/usr/bin/etcd"));
    etcd.ctl(&["put", "/everhold/test/service/main/term", "somebody's"]);
    let wanted = || Wanted { store: etcd.table(), ..Wanted::default() };
    let mut stack = Stack::new(wanted());
    let output = stack.up_output();
    refused(&output, "E245");
    assert_eq!(etcd.ctl(&["get", "--prefix", "/", "--keys-only"]).split_whitespace().count(), 1);
    etcd.ctl(&["del", "--prefix", "/everhold/test/"]);
    stack.up();
    let status = stack.status().expect("a status");
    assert_eq!(
        (&status["store"]["kind"], &status["store"]["health"]),
        (&"etcd".into(), &"up".into())
    );
    assert_eq!(status["store"]["snapshot_ms_ago"], Value::Null);
    assert!(!stack.data().join("etcd").exists(), "none is run");
    let load = Load::start(stack.write_port(), &stack.password());
    stack.wait("a whole cluster", crate::stack::is_whole);
    let output = stack.command(&["switchover", "main"]).output().expect("everhold runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Another cluster of the same name, and this one without its store.
    let other = Stack::new(wanted());
    let before = etcd.ctl(&["get", "/everhold/test/identity"]);
    refused(&other.up_output(), "E245");
    assert_eq!(etcd.ctl(&["get", "/everhold/test/identity"]), before);
    let spec = stack.dir().join("embedded.toml");
    let text = fs::read_to_string(stack.dir().join("everhold.toml")).expect("the spec");
    fs::write(&spec, text.split("[store]").next().expect("the rest")).expect("written");
    let path = spec.display().to_string();
    refused(&stack.command(&["apply", &path]).output().expect("everhold runs"), "E315");
    stack.wait("a whole cluster", crate::stack::is_whole);
    assert_eq!(load.finish().lost, 0);
    stack.interrupt();
    refused(&stack.command(&["up", "--spec", &path]).output().expect("everhold runs"), "E234");
    stack.up();
}

#[test]
fn machines_use_an_etcd_with_tls() {
    let mut hosts = Hosts::bare();
    let (address, dir) = (hosts::address(CLIENT), hosts.dir().join("operators"));
    let etcd = Operators::start(&dir, &address, 2379, true, hosts.on(CLIENT, "/usr/bin/etcd"));
    let spec = hosts.spec_file().display().to_string();
    let file = hosts.node_file("a").display().to_string();
    let wanted = hosts.spec(&hosts::Wanted::default());
    // Proven by certificates of another authority.
    let wrong = dir.join("wrong");
    certs::make(&wrong, &address);
    let misled = etcd.table().replace("operators/pki", "operators/wrong");
    fs::write(hosts.spec_file(), format!("{wanted}{misled}")).expect("written");
    let init = ["init", "--node", "a", "--spec", &spec, "--node-file", &file];
    refused(&hosts.everhold("a", &init), "E254");
    fs::write(hosts.spec_file(), format!("{wanted}{}", etcd.table())).expect("written");
    hosts.done("a", &init);
    hosts.run("a");
    for host in ["b", "c"] {
        hosts.join(host, "a");
        hosts.run(host);
    }
    let whole = |status: &Value| {
        let main = &status["services"]["main"];
        status["store"]["health"] == "up"
            && status["coordinator"].is_string()
            && main["synchronous"]["members"].as_array().is_some_and(|all| all.len() == 2)
            && main["health"] == "up"
    };
    let status = hosts.wait("c", "whole cluster", whole);
    assert_eq!(status["store"]["kind"], "etcd");
    let load = Load::on(hosts.target());
    std::thread::sleep(Duration::from_secs(1));
    let leader = hosts.leader("a");
    hosts.kill(&leader);
    let (before, from) = (load.acknowledged(), Instant::now());
    while load.acknowledged() < before + 50 {
        assert!(from.elapsed() < hosts::PATIENCE, "no write was acknowledged");
        std::thread::sleep(Duration::from_millis(10));
    }
    hosts.revive(&leader);
    hosts.wait(&leader, "whole cluster", whole);
    assert!(hosts::NAMES.iter().all(|host| hosts.store_pid(host).is_none()), "none is run");
    assert_eq!(load.finish().lost, 0);
}
