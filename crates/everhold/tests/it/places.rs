//! Backups and log in a directory and a bucket: each goes on without the other, each is enough.

use crate::backups::look;
use crate::stack::bucket::Bucket;
use crate::stack::load::Load;
use crate::stack::{PATIENCE, Stack, Wanted};
use everhold_core::ids::Lsn;
use everhold_core::spec::Location;
use everhold_repository::log::coverage;
use everhold_repository::{Log, Password, PlaceConfig, Repository};
use serde_json::Value;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const PASSWORD: &str = "correct horse";

/// A stack that is backed up into the directory `vault` and the bucket `west`, which are made.
fn start() -> (Stack, Bucket) {
    let mut stack = Stack::new(Wanted { durability: "preferred", ..Wanted::default() });
    let bucket = Bucket::start(stack.dir());
    for name in ["vault", "west"] {
        let key = stack.key_file(name);
        fs::write(&key, PASSWORD).expect("a key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
    }
    fs::write(stack.spec_file(), spec(&stack, &bucket, &["vault", "west"])).expect("the spec");
    stack.up();
    stack.whole();
    // One alone is not made while the other is empty too.
    let output = stack.command(&["repository", "init", "west"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(!output.status.success() && said.contains("E281") && said.contains("vault"), "{said}");
    let made = json(&stack, &["repository", "init"]);
    assert_eq!(made["made"].as_array().map(Vec::len), Some(2), "{made}");
    (stack, bucket)
}

/// With all of these repositories for backups, each of which has to hold everything.
fn spec(stack: &Stack, bucket: &Bucket, used: &[&str]) -> String {
    format!(
        "{}[repository]\nvault = {{ url = \"file://{}\", key_file = \"{}\" }}\n\
         west = {{ url = \"{}\", endpoint = \"{}\", credentials_file = \"{}\", key_file = \"{}\" }}\n\
         [service.main.backup]\nrepositories = {used:?}\nkeep = {{ days = 0 }}\n\
         full = \"0 0 1 1 *\"\nincremental = \"0 0 1 1 *\"\n",
        stack.spec(false),
        stack.dir().join("vault").display(),
        stack.key_file("vault").display(),
        bucket.url(),
        bucket.endpoint(),
        bucket.credentials().display(),
        stack.key_file("west").display(),
    )
}

fn json(stack: &Stack, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = arguments.iter().chain(&["--json"]).copied().collect();
    serde_json::from_str(&stack.done(&arguments)).expect("JSON")
}

fn backup(status: &Value) -> Value {
    status["services"]["main"]["backup"].clone()
}

fn held(status: &Value, rule: &str) -> bool {
    status["holds"].as_array().is_some_and(|holds| holds.iter().any(|hold| hold["rule"] == rule))
}

/// One place by itself.
fn alone(stack: &Stack, bucket: &Bucket, name: &str) -> Repository {
    let directory = name == "vault";
    let location = match directory {
        true => Location::Directory(stack.dir().join("vault").display().to_string()),
        false => bucket.url().parse().expect("a place"),
    };
    let place = PlaceConfig {
        name: name.to_string(),
        location,
        region: None,
        endpoint: (!directory).then(|| bucket.endpoint()),
        credentials_file: (!directory).then(|| bucket.credentials()),
    };
    Repository::open(&[(place, Password::new(PASSWORD))], "test").expect("opened")
}

/// What a place by itself has of the log of the newest line.
fn covered(repository: &Repository) -> Vec<Range<Lsn>> {
    let name = repository.list("main/log/").expect("listed").into_keys().next().expect("a log");
    let sysid = name.split('/').nth(2).expect("its database").parse().expect("a number");
    let log = Log::new(repository, "main", sysid);
    let (_, line) = log.newest_line().expect("read").expect("a line");
    coverage(&log.pieces(1).expect("listed"), &line)
}

/// Up to where it has the log without a hole: of several that are put at once a later one may be
/// there first.
fn log_end(repository: &Repository) -> Lsn {
    covered(repository).first().expect("a log").end
}

/// Where the leader is now.
fn now(stack: &Stack) -> Lsn {
    let status = stack.status().expect("a status");
    let main = &status["services"]["main"];
    let leader = main["leader"].as_str().expect("a leader");
    let at = main["instances"][leader]["detail"]["flush_lsn"].as_str().expect("a place");
    at.parse().expect("a place")
}

fn reaches(repository: &Repository, to: Lsn) {
    let until = Instant::now() + PATIENCE;
    while log_end(repository) < to {
        assert!(Instant::now() < until, "{} of {to}", log_end(repository));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_place_that_is_silent_holds_up_no_other() {
    let (mut stack, bucket) = start();
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    stack.wait("a first backup", |status| backup(status)["count"] == 1);
    let vault = alone(&stack, &bucket, "vault");
    reaches(&vault, now(&stack));
    bucket.silence(true);
    let began = Instant::now();
    // The other has what is written meanwhile long before the first request is given up.
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(1_500));
        reaches(&vault, now(&stack));
    }
    eprintln!("four times level within {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(18), "{:?}", began.elapsed());
    // What both have is as old as the silence, and the place is named.
    stack.hold("log-archive", &["west"]);
    let behind = backup(&stack.status().expect("a status"))["rpo_ms"].as_u64().expect("an age");
    assert!(behind + 3_000 >= began.elapsed().as_millis() as u64, "{behind}");
    // A new leader's archiver finds it silent.
    let (leader, epoch) = (stack.leader(), stack.epoch());
    stack.done(&["switchover", "main"]);
    assert_ne!(stack.leader(), leader);
    assert!(stack.epoch() > epoch);
    let after = Instant::now();
    load.flows();
    reaches(&vault, now(&stack));
    eprintln!("after a switchover level within {:?}", after.elapsed());
    assert!(after.elapsed() < Duration::from_secs(18), "{:?}", after.elapsed());
    bucket.silence(false);
    stack.wait("an end of the hold", |status| !held(status, "log-archive"));
    assert!(!held(&stack.status().expect("a status"), "log-gap"));
    assert_eq!(load.finish().lost, 0);
    let last = now(&stack);
    for name in ["vault", "west"] {
        let place = alone(&stack, &bucket, name);
        reaches(&place, last);
        assert_eq!(covered(&place).len(), 1, "no hole: {:?}", covered(&place));
    }
}

#[test]
fn a_slow_place_gets_what_it_missed_while_more_is_written() {
    let (mut stack, mut bucket) = start();
    stack.wait("a first backup", |status| backup(status)["count"] == 1);
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    bucket.kill();
    stack.hold("log-archive", &["west"]);
    let missed = now(&stack);
    // From now on it always has something to put.
    bucket.slow(Duration::from_millis(700));
    bucket.begin();
    stack.wait("what it missed in both", |status| {
        let archived = backup(status)["log_lsn"].as_str().and_then(|it| it.parse::<Lsn>().ok());
        archived > Some(missed)
    });
    reaches(&alone(&stack, &bucket, "west"), missed);
    assert!(!held(&stack.status().expect("a status"), "log-gap"));
    assert_eq!(load.finish().lost, 0);
}

#[test]
fn each_of_two_places_is_enough() {
    let (mut stack, mut bucket) = start();
    stack.wait("a first backup", |status| backup(status)["count"] == 1);
    let psql = |stack: &Stack, sql: &str| {
        stack.done(&["psql", "main", "--", "-XAt", "-c", sql]).trim().to_string()
    };
    psql(&stack, "CREATE TABLE kept (n int)");

    // One is gone: no backup counts, and the log goes on in the other.
    bucket.kill();
    let output = stack.command(&["backup", "now", "main"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(!output.status.success() && said.contains("E280"), "{said}");
    psql(&stack, "INSERT INTO kept VALUES (1)");
    reaches(&alone(&stack, &bucket, "vault"), now(&stack));
    stack.hold("log-archive", &["west"]);
    bucket.begin();
    stack.wait("an end of the hold", |status| !held(status, "log-archive"));
    let made = json(&stack, &["backup", "now", "main"]);
    psql(&stack, "INSERT INTO kept VALUES (2)");
    // What status shows may be from the moment before.
    let sql = "SELECT pg_current_wal_flush_lsn()";
    let written = stack.done(&["psql", "main", "--", "-XAt", "-c", sql]);
    let written: Lsn = written.trim().parse().expect("a place");
    for name in ["vault", "west"] {
        let place = alone(&stack, &bucket, name);
        reaches(&place, written);
        assert_eq!(covered(&place).len(), 1, "no hole: {:?}", covered(&place));
    }
    stack.wait("archived log", |status| backup(status)["rpo_ms"] == 0);
    stack.wait("copies of spec and store", |status| {
        let copies = &status["copies"];
        let made = copies["spec_at"].is_string() && copies["store_at"].is_string();
        // In both: a place that was away gets them within a minute.
        made && copies["failing_since"].is_null()
    });

    // A restore from either, by a spec that knows of no other.
    for name in ["vault", "west"] {
        let file = stack.dir().join(format!("{name}.toml"));
        fs::write(&file, spec(&stack, &bucket, &[name])).expect("a spec");
        let to = stack.dir().join(format!("from-{name}"));
        restored(&stack, &to, &["--spec", &file.display().to_string()], &made["id"]);
    }
    // The spec from nothing but the place.
    let key = stack.key_file("west").display().to_string();
    let (endpoint, credentials) = (bucket.endpoint(), bucket.credentials().display().to_string());
    let vault = format!("file://{}", stack.dir().join("vault").display());
    let west = bucket.url();
    let of_west = ["--endpoint", &endpoint, "--credentials-file", &credentials];
    for (url, more) in [(&vault, &[][..]), (&west, &of_west[..])] {
        let mut command = stack.command(&["repository", "spec", url, "--key-file", &key]);
        let output = command.env("EVERHOLD_DATA", "/nonexistent").args(more).output();
        let output = output.expect("it runs");
        let spec: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(spec["cluster"], "test", "{spec}");
        assert!(spec["services"]["main"]["backup"]["repositories"].is_array(), "{spec}");
        let mut command =
            stack.command(&["repository", "spec", url, "--key-file", &key, "--store"]);
        let output = command.env("EVERHOLD_DATA", "/nonexistent").args(more).output();
        let content: Value =
            serde_json::from_slice(&output.expect("it runs").stdout).expect("JSON");
        let term = &content["keys"]["/everhold/test/service/main/term"];
        assert!(term.as_str().is_some_and(|term| term.contains("epoch")), "{content}");
    }

    // The bucket as the only one.
    fs::write(stack.spec_file(), spec(&stack, &bucket, &["west"])).expect("the spec");
    stack.done(&["apply", &stack.spec_file().display().to_string()]);
    fs::remove_dir_all(stack.dir().join("vault")).expect("removed");
    // Agents start their part anew.
    std::thread::sleep(Duration::from_secs(2));
    stack.whole();
    let only = json(&stack, &["backup", "now", "main", "--full"]);
    let listed = json(&stack, &["backup", "list", "main"]);
    assert_eq!(listed["backups"][0]["id"], only["id"], "{listed}");
    assert_eq!((&listed["copies_wanted"], &listed["backups"][0]["copies"]), (&1.into(), &1.into()));
    let drop = made["id"].as_str().expect("an id");
    let pruned = json(&stack, &["backup", "prune", "main", "--drop", drop]);
    assert_eq!(pruned["error"], Value::Null, "{pruned}");
    let listed = json(&stack, &["backup", "list", "main"]);
    let ids = listed["backups"].as_array().expect("a list").iter().map(|it| &it["id"]);
    assert!(!ids.clone().any(|id| *id == made["id"]) && ids.clone().any(|id| *id == only["id"]));
    stack.wait("archived log", |status| backup(status)["rpo_ms"] == 0);
    restored(&stack, &stack.dir().join("only"), &[], &only["id"]);
}

/// Restores, and reads what was written.
fn restored(stack: &Stack, to: &Path, more: &[&str], id: &Value) {
    let backup = id.as_str().expect("an id");
    let more: Vec<&str> = more.iter().chain(&["--backup", backup]).copied().collect();
    let rows = look(stack, to, &more, "SELECT string_agg(n::text, ' ' ORDER BY n) FROM kept");
    assert_eq!(rows, "1 2");
}
