//! What is broken on a node's disk: it says so and stands still, nothing is deleted, the others go on,
//! and it comes back when the next step that was named is done.

use crate::stack::disk::Filling;
use crate::stack::load::{Load, block_on, config, connect};
use crate::stack::{PATIENCE, Stack, Wanted, signal};
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longer than a leader may run on a lease or on evidence that nobody renews.
const DEADLINES: Duration = Duration::from_secs(7);

/// The stack with what is broken in it.
struct Bed {
    stack: Stack,
    load: Load,
}

impl Bed {
    fn new(wanted: Wanted) -> Bed {
        let mut stack = Stack::start(wanted);
        stack.whole();
        let load = Load::start(stack.write_port(), &stack.password());
        Bed { stack, load }
    }

    fn node(&self, node: &str, path: &str) -> PathBuf {
        self.stack.data().join(node).join(path)
    }

    /// A node that follows.
    fn standby(&mut self) -> &'static str {
        let leader = self.stack.leader();
        crate::stack::NODES.into_iter().rev().find(|node| *node != leader).expect("another node")
    }

    /// Ends the agent of a node; its supervisor starts it again.
    fn kill_agent(&self, node: &str) {
        signal("KILL", &self.stack.agent_pid(node).into_iter().collect::<Vec<_>>());
    }

    /// Everything acknowledged is there, and every node does its part.
    fn healed(mut self) {
        self.stack.whole();
        self.load.flows();
        assert_eq!(self.load.finish().lost, 0);
    }

    fn detail(&self, node: &str, what: &str) -> Value {
        let status = self.stack.status().expect("a status");
        status["services"]["main"]["instances"][node]["detail"][what].clone()
    }
}

fn has_hold(status: &Value, rule: &str) -> bool {
    status["holds"].as_array().is_some_and(|holds| holds.iter().any(|hold| hold["rule"] == rule))
}

fn truncate(path: &Path) -> Vec<u8> {
    let whole = fs::read(path).expect("it is there");
    fs::write(path, &whole[..whole.len() / 2]).expect("truncated");
    whole
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("it is there").ino()
}

/// WAL without growth: what a busy hour writes.
fn churn(stack: &Stack, rounds: u32) {
    block_on(async {
        let (client, _) = connect(&config(stack.write_port(), &stack.password())).await?;
        let table = "CREATE UNLOGGED TABLE IF NOT EXISTS round (n int)";
        client.batch_execute(table).await.map_err(|error| error.to_string())?;
        for _ in 0..rounds {
            let sql = "SELECT pg_logical_emit_message(true, 'test', repeat('x', 4194304))";
            client.batch_execute(sql).await.map_err(|error| error.to_string())?;
        }
        Ok::<(), String>(())
    })
    .expect("some WAL");
}

#[test]
fn a_full_disk_holds_a_standby_and_moves_a_leader() {
    let mut bed = Bed::new(Wanted { disks: &["a", "c"], ..Wanted::default() });
    assert_eq!(bed.stack.leader(), "a", "the first node of the spec");

    // The standby: the service goes on without it.
    let (agent, data) = (bed.stack.agent_pid("c"), bed.node("c", "main/pgdata"));
    let (born, record) = (inode(&data), bed.node("c", "main/record.json"));
    let journals = fs::read_dir(bed.node("c", "journal")).expect("a journal").count();
    let filling = Filling::of(&bed.stack.data().join("c"));
    let told = |hold: &Value| {
        let why = hold["why"].as_str().unwrap_or_default();
        // Running, it has no room for more WAL; or it ended, or one of its files was not written.
        why.starts_with("c: ") && (why.contains("is full") || why.contains("No space left"))
    };
    bed.stack.wait("a hold of c", |status| {
        status["holds"].as_array().is_some_and(|holds| holds.iter().any(told))
    });
    churn(&bed.stack, 8);
    bed.stack.wait("a set without c", |status| {
        status["services"]["main"]["synchronous"]["members"] == serde_json::json!(["b"])
    });
    bed.load.flows();

    // A promise that can't be written is not given.
    let promised = fs::read_to_string(&record).expect("a record");
    let output = bed.stack.command(&["switchover", "main", "--to", "b"]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bed.load.flows();
    bed.stack.hold("any", &["c: ", "failed", "No space left"]);
    assert_eq!(fs::read_to_string(&record).expect("a record"), promised, "as it was");
    let before: Value = serde_json::from_str(&promised).expect("JSON");
    assert_eq!(bed.detail("c", "promise"), before["record"]["promise"], "what it says it promised");

    // Space comes back, and so does the node, by itself.
    assert_eq!(bed.stack.agent_pid("c"), agent, "the agent lived through it");
    drop(filling);
    bed.stack.whole();
    assert_eq!(inode(&data), born, "the same data directory");
    assert!(fs::read_dir(bed.node("c", "journal")).expect("a journal").count() >= journals);
    let output = bed.stack.command(&["journal", "--verify"]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

    // The leader: another one takes over, and loses nothing.
    let output = bed.stack.command(&["switchover", "main", "--to", "c"]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bed.stack.whole();
    let filling = Filling::of(&bed.stack.data().join("c"));
    bed.stack.wait("another leader", |status| {
        let main = &status["services"]["main"];
        main["serving"] == true && main["leader"] != "c"
    });
    bed.load.flows();
    assert!(data.join("PG_VERSION").exists(), "nothing was deleted");
    drop(filling);
    bed.healed();
}

#[test]
fn a_torn_record_or_journal_or_certificate_holds_one_node() {
    let mut bed = Bed::new(Wanted::default());
    let node = bed.standby();
    let server = bed.stack.postmaster(node);

    // The record of what it promised.
    let record = bed.node(node, "main/record.json");
    let whole = truncate(&record);
    let torn = fs::read(&record).expect("there");
    bed.kill_agent(node);
    let hold = bed.stack.hold("cannot-keep", &["E201", "record.json", "next step: restore it"]);
    assert_eq!(hold["needs_operator"], true);
    bed.load.flows();
    assert_eq!(fs::read(&record).expect("there"), torn, "left as it is");
    assert_eq!(bed.stack.postmaster(node), server, "PostgreSQL runs on");
    fs::write(&record, whole).expect("restored");
    bed.stack.whole();

    // Or moved away with the data, as the next step says: cloned anew.
    truncate(&record);
    bed.kill_agent(node);
    bed.stack.hold("cannot-keep", &["E201"]);
    signal("KILL", &bed.stack.postgres_pids(node));
    fs::rename(bed.node(node, "main/pgdata"), bed.node(node, "main/pgdata.away")).expect("moved");
    fs::rename(&record, bed.node(node, "main/record.away")).expect("moved");
    bed.stack.whole();
    assert!(bed.node(node, "main/pgdata.away/PG_VERSION").exists());

    // A line of the journal that a crash cut off is nothing; garbage in it is told.
    let journal = bed.node(node, "journal/journal-00000001.jsonl");
    let mut file = OpenOptions::new().append(true).open(&journal).expect("a journal");
    file.write_all(b"{\"id\":\"torn").expect("torn");
    bed.kill_agent(node);
    let verified = |bed: &Bed| {
        let output = bed.stack.command(&["journal", "--verify"]).output().expect("it runs");
        output.status.success()
    };
    let patiently = |bed: &Bed| {
        (0..600).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            verified(bed)
        })
    };
    bed.stack.whole();
    assert!(patiently(&bed), "a torn last line breaks no chain");
    assert!(!has_hold(&bed.stack.status().expect("a status"), "journal-damaged"));
    let mut text = fs::read(&journal).expect("a journal");
    let end = text.iter().position(|byte| *byte == b'\n').expect("a line");
    text.splice(end + 1..end + 1, *b"\xff\xfe no line\n");
    fs::write(&journal, &text).expect("garbage");
    bed.kill_agent(node);
    bed.stack.hold("journal-damaged", &["E204", "can't be read"]);
    assert!(!verified(&bed));
    assert_eq!(fs::read(&journal).expect("a journal"), text, "left as it is");
    bed.stack.whole();
    fs::rename(bed.node(node, "journal"), bed.node(node, "journal.away")).expect("moved");
    bed.kill_agent(node);
    bed.stack.wait("no hold", |status| !has_hold(status, "journal-damaged"));
    assert!(patiently(&bed), "a new chain");

    // The certificate of its agent.
    let pki = bed.stack.data().join("pki");
    let cert = pki.join(format!("{node}.pem"));
    let whole = truncate(&cert);
    bed.kill_agent(node);
    let words = ["E210", &format!("{node}.pem"), "next step: restore it"];
    bed.stack.hold("process-fails", &words);
    bed.load.flows();
    fs::write(&cert, whole).expect("restored");
    bed.stack.whole();
    bed.stack.wait("no hold", |status| !has_hold(status, "process-fails"));

    // Its key, and then a new start of everything: the others come up.
    let key = pki.join(format!("{node}.key"));
    truncate(&key);
    bed.kill_agent(node);
    bed.stack.hold("process-fails", &["E210", &format!("{node}.key")]);
    bed.stack.kill_up();
    bed.stack.up();
    bed.stack.hold("process-fails", &["E210", &format!("{node}.key")]);
    bed.load.flows();
    fs::rename(&key, pki.join("away.key")).expect("moved");
    fs::rename(&cert, pki.join("away.pem")).expect("moved");
    bed.stack.kill_up();
    bed.stack.up();
    bed.stack.whole();

    // The store's own.
    let cert = pki.join("etcd.pem");
    let whole = truncate(&cert);
    signal("KILL", &bed.stack.etcd_pid().into_iter().collect::<Vec<_>>());
    bed.stack.hold("process-fails", &["etcd", "E210", "etcd.pem"]);
    bed.load.flows();
    fs::write(&cert, whole).expect("restored");
    bed.stack.wait("a store", |status| status["store"]["health"] == "up");
    bed.healed();
}

#[test]
fn a_postgresql_that_does_not_start_holds_with_its_own_words() {
    let mut bed = Bed::new(Wanted::default());
    let node = bed.standby();
    let data = bed.node(node, "main/pgdata");
    let (born, incarnation) = (inode(&data), bed.detail(node, "incarnation"));
    let kill = |bed: &Bed| {
        signal("KILL", &bed.stack.postmaster(node).into_iter().collect::<Vec<_>>());
    };

    // A setting that it doesn't understand.
    let settings = data.join("postgresql.auto.conf");
    let whole = fs::read(&settings).expect("there");
    fs::write(&settings, "work_mem = = 'none'\n").expect("broken");
    kill(&bed);
    bed.stack.hold("start", &[&format!("{node}: "), "syntax error", "postgresql.auto.conf"]);
    bed.load.flows();
    fs::write(&settings, whole).expect("mended");
    bed.stack.whole();

    // A control file that can't be read.
    let control = data.join("global/pg_control");
    // A running server writes it whole again.
    signal("STOP", &bed.stack.postgres_pids(node));
    let whole = fs::read(&control).expect("there");
    fs::write(&control, &whole[..100]).expect("truncated");
    kill(&bed);
    bed.stack.hold("start", &["pg_control"]);
    bed.load.flows();
    fs::write(&control, whole).expect("mended");
    bed.stack.whole();

    // A stranger has its port.
    let port = bed.stack.postgres_port(node);
    kill(&bed);
    let stranger = (0..10_000).find_map(|_| {
        signal("KILL", &bed.stack.postmaster(node).into_iter().collect::<Vec<_>>());
        TcpListener::bind(("127.0.0.1", port)).ok()
    });
    let stranger = stranger.expect("the port between two starts");
    bed.stack.hold("start", &["could not bind", "Address already in use"]);
    bed.load.flows();
    // Less and less often: half a minute of tries every tenth of a second would be 300.
    let failed = |bed: &Bed| {
        let path = bed.node(node, "main/postgres.log");
        fs::read_to_string(path).expect("a log").matches("could not bind").count()
    };
    let before = failed(&bed);
    std::thread::sleep(Duration::from_secs(5));
    assert!(failed(&bed) - before <= 10, "no hot loop");
    drop(stranger);
    bed.stack.whole();
    assert_eq!(inode(&data), born, "the same data directory");
    assert_eq!(bed.detail(node, "incarnation"), incarnation, "no copy was made");
    bed.healed();
}

#[test]
fn what_a_newer_version_wrote_is_left_alone_and_postgresql_runs_on() {
    let mut bed = Bed::new(Wanted::default());
    let (leader, epoch) = (bed.stack.leader(), bed.stack.epoch());
    let server = bed.stack.postmaster(&leader);

    // In the store.
    let key = "/everhold/test/service/main/term";
    let old = bed.stack.etcdctl(&["get", "--print-value-only", key]);
    let newer = r#"{"version":99,"record":{"unheard":"of"}}"#;
    bed.stack.etcdctl(&["put", key, newer]);
    let hold = bed.stack.hold("unreadable-record", &["term", "newer version"]);
    assert_eq!(hold["needs_operator"], true);
    for node in crate::stack::NODES {
        bed.stack.hold("unreadable-record", &[&format!("{node}: "), "newer version"]);
    }
    std::thread::sleep(DEADLINES);
    bed.load.flows();
    assert_eq!(bed.stack.etcdctl(&["get", "--print-value-only", key]), newer, "not overwritten");
    assert_eq!(bed.stack.postmaster(&leader), server, "it runs on");
    bed.stack.etcdctl(&["put", key, &old]);
    bed.stack.whole();
    bed.stack.wait("no hold", |status| !has_hold(status, "unreadable-record"));

    // The spec: who starts again knows what it knew before.
    let key = "/everhold/test/spec";
    let old = bed.stack.etcdctl(&["get", "--print-value-only", key]);
    let spec = old.replacen("\"version\":1", "\"version\":99", 1);
    bed.stack.etcdctl(&["put", key, &spec]);
    bed.stack.hold("unreadable-record", &["spec", "E104"]);
    let standby = crate::stack::NODES.into_iter().find(|node| *node != leader).expect("a standby");
    let pid = |status: &Value| status["nodes"][standby]["agent_pid"].as_u64();
    let before = pid(&bed.stack.whole());
    bed.kill_agent(standby);
    bed.stack.wait("agent that started again", |status| {
        status["nodes"][standby]["health"] == "up" && pid(status) != before
    });
    bed.stack.whole();
    let output = bed.stack.command(&["node", "drain", standby]).output().expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("E104 the spec") && error.contains("next step"), "{error}");
    bed.load.flows();
    assert_eq!(bed.stack.etcdctl(&["get", "--print-value-only", key]), spec, "not overwritten");
    bed.stack.etcdctl(&["put", key, &old]);
    bed.stack.wait("no hold", |status| !has_hold(status, "unreadable-record"));

    // On the disk of the leader.
    let record = bed.node(&leader, "main/record.json");
    let old = fs::read(&record).expect("a record");
    fs::write(&record, newer).expect("written");
    bed.kill_agent(&leader);
    let words = ["E201", "newer version", "next step: run the version that wrote it"];
    bed.stack.hold("cannot-keep", &words);
    std::thread::sleep(DEADLINES);
    bed.load.flows();
    assert_eq!(fs::read_to_string(&record).expect("a record"), newer, "left as it is");
    assert_eq!(bed.stack.postmaster(&leader), server, "it runs on");
    fs::write(&record, old).expect("restored");
    bed.stack.whole();
    assert_eq!(bed.stack.leader(), leader);
    assert!(bed.stack.epoch() >= epoch);
    bed.healed();
}

/// It was away for longer than the leader keeps log for anybody.
#[test]
fn a_standby_whose_log_is_gone_is_copied_anew() {
    let kept = "max_slot_wal_keep_size = \"48MB\", max_wal_size = \"48MB\"".to_string();
    let mut bed = Bed::new(Wanted { parameters: kept, ..Wanted::default() });
    let (standby, leader) = (bed.standby(), bed.stack.leader());
    let before = bed.detail(standby, "incarnation").as_u64().expect("a number");
    // With its connections, for which the leader's checkpointer doesn't wait longer than it has to.
    bed.stack.done(&["fault", "freeze-node", standby, "--for", "300s"]);
    let log = bed.node(&leader, "main/pgdata/pg_wal");
    let segments = || -> Vec<String> {
        let names = fs::read_dir(&log).expect("the log").flatten();
        let names = names.filter_map(|it| it.file_name().into_string().ok());
        names.filter(|name| name.len() == 24).collect()
    };
    let then = segments();
    let from = Instant::now();
    while segments().iter().any(|name| then.contains(name)) {
        assert!(from.elapsed() < PATIENCE, "the leader keeps its log: {:?}", segments());
        let sql = "SELECT count(pg_logical_emit_message(false, '', repeat('x', 1000000))) \
                   FROM generate_series(1, 20)";
        bed.stack.done(&["psql", "main", "--", "-XAt", "-c", sql]);
    }
    bed.stack.done(&["fault", "heal"]);
    bed.stack.wait("new copy", |status| {
        let detail = &status["services"]["main"]["instances"][standby]["detail"];
        detail["incarnation"].as_u64().is_some_and(|now| now > before)
    });
    let told = bed.stack.done(&["journal", "--limit", "200"]);
    assert!(told.contains("and the leader only from"), "{told}");
    bed.healed();
}
