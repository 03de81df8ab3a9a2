//! A machine with instances that is cut off for long, end to end.

use crate::hosts::{self, Hosts, NAMES, Wanted};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

/// The spec of the machines with three instances of the sample behind a listener.
fn spec(hosts: &Hosts) -> String {
    use std::os::unix::fs::MetadataExt;
    let root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    let user = if root { "user = \"root\"\n" } else { "" };
    let program = env!("CARGO_BIN_EXE_everhold");
    let slow = slow_file(hosts);
    format!(
        "{}web = {{ bind = \"0.0.0.0:8080\", protocol = \"http\" }}\n\
         [route.web]\nlistener = \"web\"\nservice = \"web\"\n\
         [service.web]\nkind = \"http\"\n{user}slow_start = \"0s\"\n\
         command = [\"bash\", \"-c\", \"test -e {slow} && sleep 10; \
         exec {program} sample --address 0.0.0.0 --port {{port}} --name {{instance}}\"]\nhealth = {{ path = \"/healthz\" }}\n",
        hosts.spec(&Wanted::default())
    )
}

/// While there is such a file an instance takes long to start.
fn slow_file(hosts: &Hosts) -> String {
    format!("{}.slow", hosts.spec_file().display())
}

/// The instances that a status tells of, with their processes.
fn instances(status: &Value) -> BTreeMap<String, i64> {
    let all = status["services"]["web"]["instances"].as_object().into_iter().flatten();
    all.map(|(id, it)| (id.clone(), it["pid"].as_i64().unwrap_or_default())).collect()
}

/// All that are wanted run, `lost` is lost and nobody else; their processes.
fn whole(hosts: &Hosts, lost: Option<&str>) -> BTreeMap<String, i64> {
    let is_lost = |status: &Value, host: &str| !status["nodes"][host]["lost_since"].is_null();
    let status = hosts.wait("a", "three instances", |status| {
        status["services"]["web"]["health"] == "up"
            && instances(status).len() == 3
            && NAMES.iter().all(|host| is_lost(status, host) == (lost == Some(*host)))
    });
    instances(&status)
}

/// Waits until each of these has answered through one of the gateways: each prefers its own zone.
fn answered<'a>(hosts: &Hosts, through: &[&str], wanted: impl Iterator<Item = &'a String>) {
    let mut missing: BTreeSet<&String> = wanted.collect();
    let until = Instant::now() + hosts::PATIENCE;
    for host in through.iter().cycle() {
        if missing.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "the gateways of {through:?} find nothing of {missing:?}");
        let script = "exec 3<>/dev/tcp/127.0.0.1/8080; \
                      printf 'GET / HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n' >&3; \
                      timeout 5 cat <&3";
        let output = hosts.on(host, "bash").args(["-c", script]).output().expect("bash runs");
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        if answer.starts_with("HTTP/1.1 200 ") {
            missing.retain(|id| !answer.trim_end().ends_with(&format!(" {id}")));
        }
    }
}

fn lives(pid: i64) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn agent(hosts: &Hosts, host: &str) -> i32 {
    let is_agent = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"agent")
    };
    hosts.processes(host).into_iter().find(is_agent).expect("an agent")
}

/// `c` is cut off and runs on; when it is back, the agent of `b` is frozen, and its instance serves.
#[test]
fn others_stand_in_for_a_node_that_is_lost_and_not_for_one_whose_agent_is() {
    let hosts = Hosts::start(&Wanted::default());
    fs::write(hosts.spec_file(), spec(&hosts)).expect("the spec is written");
    hosts.done("a", &["apply", &hosts.spec_file().display().to_string()]);
    let first = whole(&hosts, None);
    assert_eq!(first.keys().collect::<Vec<_>>(), ["a.1", "b.1", "c.1"]);
    answered(&hosts, &NAMES, first.keys());

    let begun = Instant::now();
    hosts.cable("c", false);
    let second = whole(&hosts, Some("c"));
    println!("elsewhere after {:?}", begun.elapsed());
    assert_eq!(second.keys().collect::<Vec<_>>(), ["a.1", "a.2", "b.1"]);
    for id in ["a.1", "b.1"] {
        assert_eq!(second[id], first[id], "it went on");
    }
    answered(&hosts, &["a", "b"], second.keys());
    assert!(lives(first["c.1"]), "nobody could tell it");
    let hold = |status: &Value, words: &str| {
        let mut holds = status["holds"].as_array().into_iter().flatten();
        holds.any(|hold| hold["why"].as_str().is_some_and(|why| why.contains(words)))
    };
    hosts.wait("b", "hold", |status| hold(status, "c is lost, and others run its instances"));

    // Its agent hears that others run by now.
    let begun = Instant::now();
    hosts.cable("c", true);
    hosts.until("end of the old instance", || !lives(first["c.1"]));
    let status = hosts.status("a").expect("a status");
    assert!(status["nodes"]["c"]["lost_since"].is_string(), "it was not to end any later");
    fs::write(slow_file(&hosts), "").expect("written");
    let agent = agent(&hosts, "b");
    hosts::signal("STOP", &[agent]);
    hosts.wait("a", "hold", |status| hold(status, "instances stay with it: b.1 answers there"));
    hosts.wait("a", "return", |status| status["nodes"]["c"]["lost_since"].is_null());
    let back = begun.elapsed();
    println!("back after {back:?}");
    let status = hosts.wait("a", "stand-in", |status| {
        hold(status, "c is back, and others still stand in for its instances: c.1 of web: ")
    });
    assert_eq!(instances(&status)["a.2"], second["a.2"], "{:#}", status["services"]["web"]);
    assert!(lives(second["a.2"]));
    hosts::signal("CONT", &[agent]);
    let third = whole(&hosts, None);
    assert_eq!(third.keys().collect::<Vec<_>>(), ["a.1", "b.1", "c.1"]);
    for id in ["a.1", "b.1"] {
        assert_eq!(third[id], first[id], "it went on");
    }
    assert!(!lives(second["a.2"]));
    answered(&hosts, &NAMES, third.keys());
    hosts.wait("a", "no hold", |status| !hold(status, "b.1 answers") && !hold(status, "c is lost"));
    let journal = hosts.done("a", &["journal", "--service", "web", "--limit", "100"]);
    for words in [
        "c is lost: not heard for 30 s; c.1 ends; a.2 begins",
        "c is back; c.1 begins",
        "c is back, and what it runs is well; a.2 ends",
    ] {
        assert!(journal.contains(words), "{words}: {journal}");
    }
}
