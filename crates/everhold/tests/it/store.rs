//! The store of three machines: its copies, and the way back from one when all its data is gone.

use crate::hosts::{self, Hosts, NAMES, Wanted, signal};
use crate::stack::Stack;
use crate::stack::load::Load;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The newest copy that a machine has, once it has one.
fn copy(hosts: &Hosts, host: &str) -> PathBuf {
    newest(&hosts.data(host))
}

fn newest(data: &Path) -> PathBuf {
    let until = Instant::now() + hosts::PATIENCE;
    loop {
        let found = fs::read_dir(data.join("store")).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
        found.retain(|path| path.extension().is_some_and(|it| it == "db"));
        found.sort();
        if let Some(newest) = found.pop() {
            return newest;
        }
        assert!(Instant::now() < until, "{} has no copy of the store", data.display());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A copy that is older than what follows.
fn old_copy(hosts: &Hosts) -> String {
    let old = hosts.dir().join("old.db");
    fs::copy(copy(hosts, "a"), &old).expect("copied");
    old.display().to_string()
}

/// Takes the data of all servers of the store away.
fn lose(hosts: &Hosts) {
    let servers: Vec<i32> = NAMES.iter().filter_map(|host| hosts.store_pid(host)).collect();
    signal("STOP", &servers);
    for host in NAMES {
        fs::remove_dir_all(hosts.data(host).join("etcd/data")).expect("removed");
    }
    signal("KILL", &servers);
}

fn restore(hosts: &Hosts, host: &str, copy: &str) -> Result<String, String> {
    let file = hosts.node_file(host).display().to_string();
    let output = hosts.everhold(host, &["store", "restore", copy, "--node-file", &file]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stderr)),
        false => Err(text(&output.stderr)),
    }
}

fn whole_store(status: &Value) -> bool {
    status["store"]["health"] == "up"
        && status["store"]["members"]["voters"].as_array().is_some_and(|all| all.len() == 3)
        && hosts::is_whole(status)
}

fn wait_for_writes(load: &Load) {
    let (before, from) = (load.acknowledged(), Instant::now());
    while load.acknowledged() < before + 50 {
        assert!(from.elapsed() < hosts::PATIENCE, "no write was acknowledged");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_store_that_lost_everything_comes_back_while_clients_write() {
    let mut hosts = Hosts::start(&Wanted::default());
    hosts.wait("a", "whole store", whole_store);
    hosts.wait("a", "copy", |status| status["store"]["snapshot_ms_ago"].is_u64());
    let old = old_copy(&hosts);
    let error = restore(&hosts, "a", &old).expect_err("nothing is lost");
    assert!(error.contains("E252"), "{error}");
    let load = Load::on(hosts.target());
    // What the copy knows of leader, epoch and incarnations is outdated by this.
    hosts.done("a", &["switchover", "main", "--to", "b"]);
    hosts.wait("a", "whole cluster", hosts::is_whole);
    hosts.kill("b");
    wait_for_writes(&load);
    hosts.revive("b");
    let status = hosts.wait("a", "whole cluster", hosts::is_whole);
    let (epoch, leader) = (status["services"]["main"]["epoch"].clone(), hosts.leader("a"));

    lose(&hosts);
    std::thread::sleep(Duration::from_secs(2));
    wait_for_writes(&load);
    let torn = hosts.dir().join("torn.db");
    let bytes = fs::read(&old).expect("read");
    fs::write(&torn, &bytes[..bytes.len() - 100]).expect("written");
    let error = restore(&hosts, "a", &torn.display().to_string()).expect_err("it is torn");
    assert!(error.contains("E251"), "{error}");
    let from = Instant::now();
    let said = restore(&hosts, "a", &old).expect("restored");
    assert!(said.contains(&format!("{leader} leads epoch {epoch} and goes on")), "{said}");
    let status = hosts.wait("c", "whole store", whole_store);
    assert_eq!(status["services"]["main"]["epoch"], epoch, "nobody had to fail over");
    assert_eq!(status["store"]["health"], "up");
    assert!(load.outage_since(from) < Duration::from_secs(1), "clients noticed nothing");
    // It is a store like any other: a failover works.
    hosts.kill(&leader);
    wait_for_writes(&load);
    hosts.revive(&leader);
    hosts.wait("a", "whole store", whole_store);
    assert_eq!(load.finish().lost, 0);
}

#[test]
fn a_cluster_that_was_switched_off_comes_back_from_an_old_copy() {
    let mut hosts = Hosts::start(&Wanted::default());
    hosts.wait("a", "whole store", whole_store);
    let old = old_copy(&hosts);
    let load = Load::on(hosts.target());
    let first = hosts.leader("a");
    let other = NAMES.into_iter().find(|name| *name != first).expect("another");
    hosts.kill(&first);
    wait_for_writes(&load);
    hosts.revive(&first);
    hosts.wait("a", "whole cluster", hosts::is_whole);
    wait_for_writes(&load);
    let led = hosts.leader("a");
    assert_ne!(led, first);
    NAMES.into_iter().for_each(|host| hosts.kill(host));
    for host in NAMES {
        fs::remove_dir_all(hosts.data(host).join("etcd/data")).expect("removed");
    }
    // Who led last is off: nobody can say what it holds.
    for host in NAMES.into_iter().filter(|host| *host != led) {
        hosts.revive(host);
    }
    let site = if led == other { first.as_str() } else { other };
    let error = restore(&hosts, site, &old).expect_err("one is off");
    assert!(error.contains("E253") && error.contains(&led), "{error}");
    assert!(!Path::new(&hosts.data(site)).join("etcd/data").exists(), "nothing was changed");
    hosts.revive(&led);
    let said = restore(&hosts, site, &old).expect("restored");
    assert!(said.contains(&format!("{led} led last")), "{said}");
    wait_for_writes(&load);
    hosts.wait(site, "whole store", whole_store);
    assert_eq!(load.finish().lost, 0);
}

#[test]
fn one_machine_comes_back_from_its_copy() {
    let mut stack = Stack::start(crate::stack::Wanted::default());
    let load = Load::start(stack.write_port(), &stack.password());
    stack.whole();
    let copy = newest(&stack.data());
    let leader = stack.leader();
    let to = if leader == "b" { "c" } else { "b" };
    let output = stack.command(&["switchover", "main", "--to", to]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stack.whole();
    load.flows();
    let path = copy.display().to_string();
    let nowhere = stack.dir().join("none.toml").display().to_string();
    let restore = |stack: &Stack| {
        let command = ["store", "restore", &path, "--node-file", &nowhere];
        let output = stack.command(&command).output().expect("it runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, said) = restore(&stack);
    assert!(!done && said.contains("E231"), "{said}");
    stack.interrupt();
    fs::remove_dir_all(stack.data().join("etcd/data")).expect("removed");
    let (done, said) = restore(&stack);
    assert!(done && said.contains(&format!("{to} led last")), "{said}");
    stack.up();
    stack.whole();
    load.flows();
    assert_eq!(load.finish().lost, 0);
    // The first was of all that was kept: the copy may have lacked some.
    let said = stack.done(&["cache", "purge", "--tag", "nothing"]);
    assert!(said.contains("(purge 2)"), "{said}");
}
