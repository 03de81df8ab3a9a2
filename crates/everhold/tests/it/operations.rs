//! What operators do to a running cluster: drain, remove and add a node, roll out.

use crate::hosts::{self, Hosts};
use crate::stack::link::{self, Link};
use crate::stack::load::{Load, block_on};
use crate::stack::{NODES, PATIENCE, Stack, Wanted, is_whole, signal};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The pids of each node's agent and PostgreSQL.
fn pids(stack: &mut Stack) -> BTreeMap<&'static str, (Value, Value)> {
    let status = stack.whole();
    let of = |node: &'static str| {
        let instance = &status["services"]["main"]["instances"][node];
        (node, (status["nodes"][node]["agent_pid"].clone(), instance["pid"].clone()))
    };
    NODES.map(of).into()
}

#[test]
fn a_drained_node_leads_nothing_until_it_is_resumed() {
    let mut stack = Stack::start(Wanted::default());
    stack.whole();
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    let drained = stack.leader();
    let said = stack.done(&["node", "drain", &drained]);
    assert_eq!(said, format!("{drained} leads nothing and is not read from\n"));
    let status = stack.whole();
    let second = stack.leader();
    assert_ne!(second, drained);
    assert_eq!(status["nodes"][&drained]["duty"], "drained");
    assert_eq!(status["nodes"][&drained]["maintenance"], true);
    let read = |status: &Value| {
        let gateways = status["gateways"].as_object().expect("gateways");
        let gateway = gateways.values().next().expect("a gateway");
        gateway["listeners"]["read"]["to"].as_array().cloned().unwrap_or_default()
    };
    stack.wait("reads elsewhere", |status| {
        let to = read(status);
        to.len() == 1 && !to.contains(&json!(drained))
    });
    load.flows();

    // With the leader lost the other one takes over, though the drained one may hold as much.
    signal("KILL", &stack.node_pids(&second));
    load.flows();
    stack.whole();
    let third = stack.leader();
    assert!(third != drained, "{third} leads");

    // One after the other all but one can be drained: somebody has to lead.
    let (stays, goes) = match third == second {
        true => (NODES.into_iter().find(|n| *n != drained && *n != third), third.clone()),
        false => (NODES.into_iter().find(|n| *n == second), third.clone()),
    };
    stack.done(&["node", "drain", &goes]);
    let stays = stays.expect("a third node");
    let output = stack.command(&["node", "drain", stays]).output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("E307") && error.contains("no other active node"), "{error}");
    stack.wait("led by the last", |status| status["services"]["main"]["leader"] == stays);
    for node in [&drained, &goes] {
        stack.done(&["node", "resume", node]);
    }
    let status = stack.wait("all of it", |status| is_whole(status) && read(status).len() == 2);
    assert!(status["nodes"].as_object().expect("nodes").values().all(|n| n["duty"] == "active"));
    let seen = load.finish();
    assert_eq!(seen.lost, 0);
}

#[test]
fn a_rollout_starts_everything_anew_and_loses_nothing() {
    let mut stack = Stack::start(Wanted::default());
    let before = pids(&mut stack);
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    let (epoch, leader) = (stack.epoch(), stack.leader());
    assert_eq!(stack.done(&["rollout", "main"]), "done: 3 started anew\n");
    let after = pids(&mut stack);
    for node in NODES {
        assert_ne!(before[node].1, after[node].1, "{node}: another PostgreSQL");
    }
    assert_ne!(stack.leader(), leader);
    assert_eq!(stack.epoch(), epoch + 1, "one switchover");

    // Everhold itself: PostgreSQL doesn't notice.
    assert_eq!(stack.done(&["rollout"]), "done: 3 started anew\n");
    let last = pids(&mut stack);
    for node in NODES {
        assert_eq!(last[node].1, after[node].1, "{node}: the same PostgreSQL");
        assert_ne!(last[node].0, after[node].0, "{node}: another agent");
    }
    assert_eq!(stack.epoch(), epoch + 1, "no failover");
    let seen = load.finish();
    assert_eq!(seen.lost, 0);
}

#[test]
fn a_rollout_stops_at_the_first_doubt() {
    let mut stack = Stack::start(Wanted::default());
    stack.whole();
    let leader = stack.leader();
    let standby = NODES.into_iter().find(|node| *node != leader).expect("a standby");
    let frozen = stack.node_pids(standby);
    signal("STOP", &frozen);
    stack.wait("not heard", |status| status["nodes"][standby]["health"] == "down");
    let output = stack.command(&["rollout", "main"]).output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("E307") && error.contains("begin with a doubt"), "{error}");
    signal("CONT", &frozen);
    stack.whole();

    // A failover is none of its doing.
    stack.done(&["rollout", "main", "--no-wait"]);
    signal("KILL", &stack.postmaster(&leader).into_iter().collect::<Vec<_>>());
    let status = stack.wait("stopped", |status| status["rollout"]["state"]["is"] == "stopped");
    let why = status["rollout"]["state"]["why"].to_string();
    assert!(why.contains("failed over"), "{why}");
    let output = stack.command(&["rollout", "--stop"]).output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("E307") && error.contains("no rollout runs"), "{error}");
    stack.whole();
}

/// A coordinator asks until it sees the effect, and two may do so at a time.
#[test]
fn everhold_is_renewed_once_however_often_it_is_asked() {
    let mut stack = Stack::start(Wanted::default());
    let status = stack.whole();
    let (up, pid) = (stack.up_pid(), status["nodes"]["a"]["agent_pid"].as_i64().expect("a pid"));
    assert!(up.is_some());
    let ask = |pid: i64| json!({ "ask": "renew", "pid": pid, "who": "test" });
    let (tls, addr) =
        (link::client(&stack.data().join("pki")), format!("127.0.0.1:{}", stack.agent_port("a")));
    let renewals = |stack: &Stack| stack.said().matches("goes on as").count();
    // Meant for one that was before.
    let refused =
        block_on(async { Link::open("a", &addr, tls.clone()).await?.ask(&ask(pid + 1)).await });
    let refused = refused.expect("an answer").to_string();
    assert!(refused.contains(&format!("process {pid}, not {}", pid + 1)), "{refused}");
    assert_eq!(renewals(&stack), 0);
    // Asked by many for as long as it is there.
    block_on(async {
        let mut link = Link::open("a", &addr, tls.clone()).await.expect("the agent");
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && link.ask(&ask(pid)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert_eq!(stack.up_pid(), up, "the supervisor goes on");
    stack.wait("another agent", |status| {
        status["nodes"]["a"]["agent_pid"].as_i64().is_some_and(|now| now != pid)
    });
    stack.whole();
    assert_eq!(renewals(&stack), 1);
    // A signal that the supervisor has not yet taken hides those that follow; the journal doesn't.
    let journal = stack.done(&["journal", "--limit", "500"]);
    assert_eq!(journal.matches("a new start of Everhold").count(), 1, "{journal}");

    // The coordinator of an older version, which is all that is left of it, names no process.
    let pid = |status: &Value| status["nodes"]["a"]["agent_pid"].as_i64();
    let (before, ask) = (pid(&stack.whole()), json!({ "ask": "renew", "who": "test" }));
    let answer = block_on(async { Link::open("a", &addr, tls).await?.ask(&ask).await });
    let answer = answer.expect("an answer");
    assert!(answer.get("Ok").is_some(), "{answer}");
    stack.wait("another agent", |status| pid(status).is_some() && pid(status) != before);
    stack.whole();
}

#[test]
fn a_node_is_added_and_another_one_removed_while_clients_write() {
    let mut stack = Stack::start(Wanted::default());
    stack.whole();
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    fs::write(stack.spec_file(), stack.spec(true)).expect("the spec is written");
    let file = stack.spec_file().display().to_string();
    stack.done(&["apply", &file]);
    let members = |status: &Value| -> Vec<String> {
        let members = status["services"]["main"]["synchronous"]["members"].as_array().cloned();
        members.into_iter().flatten().filter_map(|m| m.as_str().map(String::from)).collect()
    };
    stack.wait("a fourth instance", |status| {
        status["services"]["main"]["instances"]["d"]["state"] == "streaming"
            && members(status).contains(&"d".to_string())
    });

    // The leader goes: it is handed over, left out, and forgotten; its data stays.
    let gone = stack.leader();
    let postgres = stack.postmaster(&gone).expect("its PostgreSQL runs");
    stack.done(&["node", "remove", &gone]);
    let status = stack.wait("whole without it", |status| {
        // The new leader's agent starts anew with the changed spec: for a moment nobody says so.
        let serves = status["services"]["main"]["serving"] == true;
        status["nodes"].get(&gone).is_none() && members(status).len() == 2 && serves
    });
    assert!(status["services"]["main"]["instances"].get(&gone).is_none());
    let until = Instant::now() + PATIENCE;
    while (stack.postmaster(&gone) == Some(postgres) || stack.agent_pid(&gone).is_some())
        && Instant::now() < until
    {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(stack.postmaster(&gone), None, "its PostgreSQL has stopped");
    assert_eq!(stack.agent_pid(&gone), None, "its agent has ended");
    assert!(stack.data().join(&gone).join("main/pgdata/PG_VERSION").exists(), "the data stays");
    load.flows();

    // What is left survives a loss as three do.
    let leader = stack.leader();
    signal("KILL", &stack.node_pids(&leader));
    load.flows();
    stack.wait("whole again", |status| members(status).len() == 2);
    let seen = load.finish();
    assert_eq!(seen.lost, 0);

    // Too few would be left.
    let leader = stack.leader();
    stack.done(&["node", "remove", &leader]);
    let left = stack.leader();
    let output = stack.command(&["node", "remove", &left]).output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("E307") && error.contains("synchronous standbys"), "{error}");
}

#[test]
fn a_machine_is_taken_out_of_many_and_everhold_is_renewed_on_the_others() {
    let program = env!("CARGO_BIN_EXE_everhold");
    let installed = Some(program.into());
    let mut hosts = Hosts::start(&hosts::Wanted { program: installed, ..hosts::Wanted::default() });
    let load = Load::on(hosts.target());
    load.flows();
    // The supervisors too become the program that is installed, PostgreSQL and the store run on.
    let postgres = |hosts: &Hosts| -> Vec<Value> {
        let status = hosts.wait("b", "whole cluster", hosts::is_whole);
        let instances = status["services"]["main"]["instances"].as_object().expect("instances");
        instances.values().map(|instance| instance["pid"].clone()).collect()
    };
    let store = |hosts: &Hosts| hosts::NAMES.map(|host| hosts.store_pid(host));
    let (before, stores) = (postgres(&hosts), store(&hosts));
    let said = hosts.done("b", &["rollout"]);
    assert_eq!(said, "done: 3 started anew\n");
    assert_eq!((postgres(&hosts), store(&hosts)), (before, stores));

    // What can't take over is refused, and all of it runs on.
    let broken = hosts.dir().join("broken");
    fs::write(&broken, "no program").expect("written");
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).expect("permissions");
    let before = postgres(&hosts);
    hosts::NAMES.iter().for_each(|host| hosts.install(host, &broken));
    let output = hosts.on("b", program).arg("rollout").output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("E261") && error.contains(".bin/everhold"), "{error}");
    hosts::NAMES.iter().for_each(|host| hosts.install(host, program.as_ref()));
    assert!(hosts::NAMES.iter().all(|host| hosts.runs(host)), "the supervisors run on");
    assert_eq!(postgres(&hosts), before);

    // Whoever refuses for longer than it takes to be heard of is a doubt.
    hosts::signal("KILL", &[hosts.run_pid("c")]);
    hosts.ended("c");
    let output = hosts.everhold("b", &["rollout"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("E261") && error.contains("c: no `everhold run`"), "{error}");
    hosts.run("c");
    hosts.wait("b", "whole cluster", hosts::is_whole);

    // Whoever keeps the store and leads both is the hardest to do without.
    let gone = hosts.leader("b");
    let other = hosts::NAMES.into_iter().find(|host| **host != gone).expect("another");
    hosts.done(other, &["node", "remove", &gone]);
    hosts.wait(other, "store and set without it", |status| {
        let voters = status["store"]["members"]["voters"].as_array().cloned().unwrap_or_default();
        let members = &status["services"]["main"]["synchronous"]["members"];
        !voters.contains(&json!(gone))
            && voters.len() == 1
            && members.as_array().is_some_and(|members| members.len() == 1)
    });
    let ended = hosts.ended(&gone);
    assert_eq!(ended.code(), Some(3), "a machine that was taken out is not started again");
    assert!(hosts.said(&gone).contains("E260"), "{}", hosts.said(&gone));
    assert_eq!(hosts.processes(&gone), [0; 0], "nothing runs there any more");
    assert!(hosts.data(&gone).join(&gone).join("main/pgdata/PG_VERSION").exists());
    load.flows();
    let file = hosts.node_file(&gone).display().to_string();
    let again = hosts.everhold(&gone, &["run", "--node-file", &file]);
    let error = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(error.contains("E260"), "nor when it is started again: {error}");
    let seen = load.finish();
    assert_eq!(seen.lost, 0);
}

/// A spec without the node, wherever it is named.
fn without(node: &str, spec: &mut Value) {
    match spec {
        Value::Object(all) => {
            all.remove(node);
            all.values_mut().for_each(|value| without(node, value));
        }
        Value::Array(all) => {
            all.retain(|value| value != node);
            all.iter_mut().for_each(|value| without(node, value));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The machine that was taken out dies before the others have taken its member out, which they do
/// only with its vote.
#[test]
fn a_machine_that_was_taken_out_votes_until_the_others_do_without_it() {
    let mut hosts = Hosts::start(&hosts::Wanted::default());
    if hosts.leader("a") == "c" {
        hosts.done("a", &["switchover", "main", "--to", "b"]);
        hosts.wait("a", "whole cluster", hosts::is_whole);
    }
    let etcdctl = |hosts: &Hosts, arguments: &[&str]| {
        let output = hosts.etcdctl("a", arguments);
        let told = String::from_utf8_lossy(&output.stdout).trim().to_string();
        output.status.success().then_some(told)
    };
    // Nobody coordinates, so nobody changes the members.
    let coordinator = "/everhold/shop/coordinator";
    let held = etcdctl(&hosts, &["get", coordinator, "-w", "json"]).expect("read");
    let held: Value = serde_json::from_str(&held).expect("JSON");
    let lease = held["kvs"][0]["lease"].as_i64().expect("a lease");
    etcdctl(&hosts, &["put", coordinator, "nobody"]).expect("written");
    etcdctl(&hosts, &["lease", "revoke", &format!("{lease:x}")]).expect("revoked");
    std::thread::sleep(Duration::from_secs(3));
    // Its supervisor is lost while the node goes.
    hosts::signal("STOP", &[hosts.run_pid("c")]);
    let key = "/everhold/shop/spec";
    let spec = etcdctl(&hosts, &["get", key, "--print-value-only"]).expect("read");
    let mut spec: Value = serde_json::from_str(&spec).expect("JSON");
    without("c", &mut spec);
    etcdctl(&hosts, &["put", key, &spec.to_string()]).expect("written");
    hosts::signal("KILL", &[hosts.run_pid("c")]);
    hosts.ended("c");

    let is_lean = |hosts: &Hosts| {
        let (run, store) = (hosts.run_pid("c"), hosts.store_pid("c"));
        let mut running = hosts.processes("c");
        running.retain(|pid| *pid != run && Some(*pid) != store);
        store.is_some() && running.is_empty()
    };
    let program = Path::new(env!("CARGO_BIN_EXE_everhold"));
    // Asked to end it does, and goes on at the next start, as after a crash.
    for crash in [false, true] {
        hosts.spawn("c", program);
        hosts.until("member of the store and nothing else", || is_lean(&hosts));
        std::thread::sleep(Duration::from_secs(2));
        assert!(hosts.runs("c") && is_lean(&hosts), "{}", hosts.said("c"));
        if crash {
            hosts.end("c");
        } else {
            hosts::signal("TERM", &[hosts.run_pid("c")]);
            assert!(hosts.ended("c").success(), "{}", hosts.said("c"));
            assert_eq!(hosts.processes("c"), [0; 0]);
        }
    }
    hosts.spawn("c", program);
    hosts.until("member of the store", || is_lean(&hosts));
    let frozen = hosts.store_pid("b").expect("a member");
    hosts::signal("STOP", &[frozen]);
    hosts.until("vote of the machine that goes", || {
        etcdctl(&hosts, &["put", "/everhold/shop/test", "agreed"]).is_some()
    });
    hosts::signal("CONT", &[frozen]);
    assert!(!hosts.said("c").contains("E260"), "not yet");

    etcdctl(&hosts, &["del", coordinator]).expect("somebody coordinates again");
    assert_eq!(hosts.ended("c").code(), Some(3), "{}", hosts.said("c"));
    assert!(hosts.said("c").contains("E260"), "{}", hosts.said("c"));
    assert_eq!(hosts.processes("c"), [0; 0]);
    let file = hosts.node_file("c").display().to_string();
    let again = hosts.everhold("c", &["run", "--node-file", &file]);
    let error = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(error.contains("E260"), "{error}");
    hosts.wait("a", "cluster of two", |status| {
        let main = &status["services"]["main"];
        main["serving"] == true && main["instances"].as_object().is_some_and(|all| all.len() == 2)
    });
}

#[test]
fn a_slow_leader_is_shown_and_replaced_where_that_is_wanted() {
    let wanted = hosts::Wanted { worse: true, ..hosts::Wanted::default() };
    let hosts = Hosts::start(&wanted);
    let load = Load::on(hosts.target());
    load.flows();
    let slow = hosts.leader("b");
    let epoch =
        |hosts: &Hosts| hosts.status("b").expect("a status")["services"]["main"]["epoch"].clone();
    let before = epoch(&hosts);
    hosts.slow_disk(&slow, true);
    let shown = hosts.wait("b", "hold", |status| {
        let mut holds = status["holds"].as_array().into_iter().flatten();
        holds.any(|hold| hold["rule"] == "slow")
    });
    assert_eq!(shown["services"]["main"]["leader"], slow.as_str(), "it goes on: {shown:#}");
    hosts.slow_disk(&slow, false);
    hosts.wait("b", "whole cluster", hosts::is_whole);
    assert_eq!(epoch(&hosts), before, "nobody wanted more than to see it");

    let spec = fs::read_to_string(hosts.spec_file()).expect("the spec");
    let spec = spec.replace("owner = ", "switchover_when_slow = \"6s\"\nowner = ");
    fs::write(hosts.spec_file(), spec).expect("written");
    hosts.done("b", &["apply", &hosts.spec_file().display().to_string()]);
    hosts.slow_disk(&slow, true);
    hosts.wait("b", "another leader", |status| {
        let main = &status["services"]["main"];
        main["serving"] == true && main["leader"] != slow.as_str()
    });
    let journal = hosts.done("b", &["journal", "--limit", "200"]);
    assert!(journal.contains("slow-leader"), "{journal}");
    hosts.slow_disk(&slow, false);
    hosts.wait("b", "whole cluster", hosts::is_whole);
    let seen = load.finish();
    assert_eq!(seen.lost, 0);
}
