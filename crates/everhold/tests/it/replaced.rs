//! Machines and disks that are gone for good, certificates that are renewed or have ended, and
//! machines that are not who they seem.

use crate::certs;
use crate::hosts::{self, Hosts, NAMES, Wanted, signal};
use crate::stack::load::Load;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn wait_for_writes(load: &Load) {
    let (before, from) = (load.acknowledged(), Instant::now());
    while load.acknowledged() < before + 50 {
        assert!(from.elapsed() < hosts::PATIENCE, "no write was acknowledged");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_for(what: &str, is: impl Fn() -> bool) {
    let from = Instant::now();
    while !is() {
        assert!(from.elapsed() < hosts::PATIENCE, "no {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A command that is refused: with this code and a next step.
fn refused(hosts: &Hosts, on: &str, arguments: &[&str], code: &str) {
    // One that runs was not refused.
    let mut command = hosts.on(on, "timeout");
    let output = command.args(["60", env!("CARGO_BIN_EXE_everhold")]).args(arguments).output();
    let output = output.expect("timeout runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} was taken");
    assert!(error.contains(code) && error.contains("next step"), "{arguments:?}: {error}");
}

/// There is a hold of that rule whose reason has the word.
fn held(status: &Value, rule: &str, word: &str) -> bool {
    let holds = status["holds"].as_array().cloned().unwrap_or_default();
    holds.iter().any(|hold| {
        hold["rule"] == rule
            && hold["why"].as_str().is_some_and(|why| why.contains(word))
            && hold["unblocks"].as_str().is_some_and(|next| !next.is_empty())
    })
}

fn etcdctl(hosts: &Hosts, arguments: &[&str]) -> String {
    let output = hosts.etcdctl("a", arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_machine_that_is_gone_for_good_is_replaced() {
    let mut hosts = Hosts::start(&Wanted::default());
    let load = Load::on(hosts.target());
    hosts.done("a", &["switchover", "main", "--to", "b"]);
    hosts.wait("a", "whole cluster", hosts::is_whole);
    hosts.kill("b");
    let (data, file) = (hosts.data("b"), hosts.node_file("b"));
    let (old_data, old_file) = (hosts.dir().join("b.old"), hosts.dir().join("b.old.toml"));
    fs::rename(&data, &old_data).expect("the disk is taken out");
    fs::rename(&file, &old_file).expect("the disk is taken out");
    wait_for_writes(&load);
    refused(&hosts, "a", &["token", "b"], "E307");
    let token = hosts.token_replacing("b", "a");
    hosts.cable("b", true);
    let path = file.display().to_string();
    hosts.done("b", &["join", &token, "--node-file", &path]);
    // A machine without the programs that it has to run says so, and nothing has changed.
    let mut bare = hosts.on("b", "env");
    bare.args(["PATH=/nowhere", env!("CARGO_BIN_EXE_everhold"), "run", "--node-file", &path]);
    let output = bare.output().expect("everhold runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("E109") && error.contains("next step"), "{error}");
    hosts.run("b");
    hosts.wait("a", "whole cluster", hosts::is_whole);
    hosts.wait("b", "whole cluster", hosts::is_whole);
    wait_for_writes(&load);
    // It counts: with it alone the others' leader goes on.
    let leader = hosts.leader("a");
    let standby = NAMES.into_iter().find(|n| *n != leader && *n != "b").expect("another");
    hosts.kill(standby);
    wait_for_writes(&load);
    hosts.revive(standby);
    hosts.wait("a", "whole cluster", hosts::is_whole);
    assert_eq!(load.finish().lost, 0);
    // The disk that was thought gone turns up.
    hosts.kill("b");
    hosts.cable("b", true);
    fs::rename(&data, hosts.dir().join("b.new")).expect("set aside");
    fs::rename(&old_data, &data).expect("the old disk");
    refused(&hosts, "b", &["run", "--node-file", &old_file.display().to_string()], "E247");
}

#[test]
fn a_server_of_the_store_that_lost_its_disk_comes_back_by_itself() {
    let hosts = Hosts::start(&Wanted::default());
    let load = Load::on(hosts.target());
    let ids = || etcdctl(&hosts, &["member", "list"]);
    let of_c = |list: String| list.lines().find(|it| it.contains(", c,")).map(str::to_string);
    let before = of_c(ids()).expect("c is a member");
    let pid = hosts.store_pid("c").expect("a server");
    signal("STOP", &[pid]);
    fs::remove_dir_all(hosts.data("c").join("etcd/data")).expect("removed");
    let from = Instant::now();
    signal("KILL", &[pid]);
    wait_for("new member", || {
        of_c(ids()).is_some_and(|now| now != before && now.ends_with("false"))
    });
    assert!(hosts.data("c").join("etcd/data/member/wal").is_dir());
    hosts.wait("a", "whole cluster", hosts::is_whole);
    assert!(load.outage_since(from) < Duration::from_secs(1), "clients noticed nothing");
    assert_eq!(load.finish().lost, 0);
}

/// The processes of a machine whose certificates are renewed, and where PostgreSQL and etcd show
/// theirs.
fn pairs(host: &str) -> [String; 4] {
    [host.to_string(), format!("etcd.{host}"), format!("gateway.{host}"), format!("api.{host}")]
}

/// The serial number of the certificate that is served there.
fn served(hosts: &Hosts, host: &str, port: u16, starttls: bool) -> Option<String> {
    let mut command = hosts.on("x", "openssl");
    command.args(["s_client", "-connect", &format!("{}:{port}", hosts::address(host))]);
    if starttls {
        command.args(["-starttls", "postgres"]);
    }
    let shown = command.stdin(Stdio::null()).output().expect("openssl runs").stdout;
    let text = String::from_utf8_lossy(&shown).into_owned();
    let begins = text.find("-----BEGIN CERTIFICATE")?;
    let path = hosts.dir().join(format!("served-{host}-{port}"));
    fs::write(&path, &text[begins..]).ok()?;
    Some(certs::serial(&path))
}

#[test]
fn renewed_certificates_are_served_and_no_client_notices() {
    let hosts = Hosts::start(&Wanted::default());
    let load = Load::on(hosts.target());
    std::thread::sleep(Duration::from_secs(1));
    let from = Instant::now();
    let mut old = Vec::new();
    for host in NAMES {
        for name in pairs(host) {
            let cert = hosts.data(host).join(format!("pki/{name}.pem"));
            certs::replace(&hosts.data(host).join("pki"), &name, &hosts::address(host), -80, 10);
            old.push((cert.clone(), certs::serial(&cert)));
        }
    }
    for (cert, serial) in &old {
        wait_for(&format!("renewal of {}", cert.display()), || certs::serial(cert) != *serial);
    }
    for host in NAMES {
        for (name, port, starttls) in
            [(host.to_string(), 15_400, true), (format!("etcd.{host}"), 15_300, false)]
        {
            let cert = hosts.data(host).join(format!("pki/{name}.pem"));
            let wanted = Some(certs::serial(&cert));
            wait_for(&format!("new certificate on {host}:{port}"), || {
                served(&hosts, host, port, starttls) == wanted
            });
        }
    }
    hosts.wait("a", "whole cluster", hosts::is_whole);
    std::thread::sleep(Duration::from_secs(2));
    let outage = load.outage_since(from);
    println!("longest gap between writes: {outage:?}");
    assert!(outage < Duration::from_millis(500), "{outage:?}");
    assert_eq!(load.finish().lost, 0);
}

#[test]
fn certificates_that_ended_put_one_node_out_and_no_other() {
    let mut hosts = Hosts::start(&Wanted::default());
    let load = Load::on(hosts.target());
    if hosts.leader("a") == "c" {
        hosts.done("a", &["switchover", "main", "--to", "b"]);
    }
    let (epoch, from) =
        (hosts.status("a").expect("a status")["services"]["main"]["epoch"].clone(), Instant::now());
    let pki = hosts.data("c").join("pki");
    let readable = |mode: u32| {
        for name in pairs("c") {
            let key = pki.join(format!("{name}.key"));
            fs::set_permissions(key, fs::Permissions::from_mode(mode)).expect("permissions");
        }
    };
    // A key that others can read is not certified again.
    readable(0o644);
    for name in pairs("c") {
        certs::replace(&pki, &name, &hosts::address("c"), -90, -1);
    }
    hosts.wait("a", "hold about c's certificate", |status| {
        held(status, "certificate-ended", "certificate of c")
            && status["nodes"]["c"]["health"] == "down"
    });
    hosts.wait("c", "hold about its own certificate", |status| {
        held(status, "certificate-ended", "pki/") && held(status, "certificate-not-renewed", "E210")
    });
    wait_for_writes(&load);
    let status = hosts.status("a").expect("a status");
    assert_eq!(status["services"]["main"]["epoch"], epoch, "nobody failed over");
    assert!(load.outage_since(from) < Duration::from_secs(2), "clients noticed nothing");
    readable(0o600);
    let over = |status: &Value| hosts::is_whole(status) && !held(status, "certificate-ended", "");
    hosts.wait("a", "whole cluster", over);
    hosts.wait("c", "whole cluster", over);
    // What ended while the machine was off is renewed at its start.
    hosts.kill("c");
    for name in pairs("c") {
        certs::replace(&pki, &name, &hosts::address("c"), -90, -1);
    }
    hosts.revive("c");
    hosts.wait("a", "whole cluster", over);
    assert_eq!(load.finish().lost, 0);
}

#[test]
fn who_is_not_who_it_seems_is_named() {
    let mut hosts = Hosts::start(&Wanted::default());
    let load = Load::on(hosts.target());
    if hosts.leader("a") == "c" {
        hosts.done("a", &["switchover", "main", "--to", "b"]);
    }
    // A node of another cluster of the same name, at the address of c.
    let token = hosts.token_replacing("c", "a");
    hosts.kill("c");
    hosts.cable("c", true);
    let (data, spec) = (hosts.dir().join("other"), hosts.dir().join("other.toml"));
    let file = hosts.dir().join("other-c.toml");
    let text = format!(
        "schema = 1\ncluster = \"shop\"\n[node]\nc = {{ address = \"{}\" }}\n\
         [service.main]\nkind = \"postgres\"\n",
        hosts::address("c")
    );
    fs::write(&spec, text).expect("written");
    let of = |path: &Path| path.display().to_string();
    let (data, spec, file) = (of(&data), of(&spec), of(&file));
    let foreign = ["--data", &data, "--node-file", &file];
    hosts.done("c", &[&["init", "--node", "c", "--spec", &spec], &foreign[..]].concat());
    let mut other = hosts.on("c", env!("CARGO_BIN_EXE_everhold"));
    other.env("EVERHOLD_POINTER", hosts.dir().join("other.json"));
    let mut other = other.args(["run", "--node-file", &file]).spawn().expect("it runs");
    let status = hosts.wait("a", "hold about the foreign node", |status| {
        held(status, "foreign-node", "another cluster")
    });
    assert!(held(&status, "foreign-node", &format!("{}:15499", hosts::address("c"))));
    wait_for_writes(&load);
    // The token of this cluster, given where the other one runs.
    let (secret, _) = token.split_once('@').expect("TOKEN@HOST");
    let wrong = format!("{secret}@{}:15498", hosts::address("c"));
    let nowhere = hosts.dir().join("nowhere");
    let (to, at) = (of(&nowhere), of(&hosts.dir().join("nowhere.toml")));
    refused(&hosts, "x", &["join", &wrong, "--data", &to, "--node-file", &at], "E249");
    assert!(!nowhere.exists(), "nothing was made");
    // Its certificate in the place of the right one.
    hosts.end("c");
    let _ = other.wait();
    let right = hosts.data("c").join("pki/c.pem");
    let kept = fs::read(&right).expect("read");
    fs::copy(hosts.dir().join("other/pki/c.pem"), &right).expect("copied");
    let own = of(&hosts.node_file("c"));
    refused(&hosts, "c", &["run", "--node-file", &own], "E210");
    fs::write(&right, kept).expect("put back");
    // Somebody else runs as c, with a copy of its data.
    let running =
        "{\"version\":1,\"record\":{\"owner\":\"x\",\"data\":\"/copy\",\"since\":\"today\"}}";
    etcdctl(&hosts, &["put", "/everhold/shop/run/c", running]);
    refused(&hosts, "c", &["run", "--node-file", &own], "E255");
    etcdctl(&hosts, &["del", "/everhold/shop/run/c"]);
    hosts.revive("c");
    hosts.wait("a", "whole cluster", |status| {
        hosts::is_whole(status) && !held(status, "foreign-node", "")
    });
    // The same while both run: it is shown on the machine that finds another in its place.
    etcdctl(&hosts, &["put", "/everhold/shop/run/c", running]);
    hosts.wait("c", "hold about two machines", |status| held(status, "two-machines", "/copy"));
    etcdctl(&hosts, &["del", "/everhold/shop/run/c"]);
    hosts.wait("c", "end of it", |status| !held(status, "two-machines", ""));
    // Another machine has joined as c, and c hears of it while it runs.
    let key = "/everhold/shop/node/c";
    let joined = etcdctl(&hosts, &["get", "--print-value-only", key]);
    let mut other: Value = serde_json::from_str(&joined).expect("a record");
    other["record"]["machine"] = "another".into();
    etcdctl(&hosts, &["put", key, &other.to_string()]);
    assert!(!hosts.ended("c").success(), "it says why it ends");
    let said = hosts.said("c");
    assert!(said.trim_end().lines().any(|it| it.contains("E247")), "{said}");
    hosts.until("end of all that ran there", || hosts.processes("c").is_empty());
    refused(&hosts, "c", &["run", "--node-file", &own], "E247");
    wait_for_writes(&load);
    etcdctl(&hosts, &["put", key, joined.trim_end()]);
    hosts.run("c");
    hosts.wait("a", "whole cluster", hosts::is_whole);
    assert_eq!(load.finish().lost, 0);
}
