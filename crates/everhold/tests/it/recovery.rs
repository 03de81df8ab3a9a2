//! A service put back to how it was: in the running cluster, and from nothing but its repository.

use crate::backups::{json, refused, stack};
use crate::stack::load::Load;
use crate::stack::{NODES, Stack};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

fn psql(stack: &Stack, sql: &str) -> String {
    stack.done(&["psql", "main", "--", "-XAt", "-c", sql]).trim().to_string()
}

fn archived(stack: &mut Stack) {
    let upto = psql(stack, "SELECT pg_current_wal_flush_lsn()");
    let upto = place(&upto);
    stack.wait("archived log", |status| {
        let log = status["services"]["main"]["backup"]["log_lsn"].as_str();
        log.is_some_and(|lsn| place(lsn) >= upto)
    });
}

fn place(lsn: &str) -> u64 {
    let (high, low) = lsn.split_once('/').unwrap_or(("0", "0"));
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
    (hex(high) << 32) + hex(low)
}

fn first_backup(stack: &mut Stack) {
    stack.done(&["repository", "init"]);
    stack.wait("first backup", |status| status["services"]["main"]["backup"]["newest"].is_string());
}

/// Between what a time is to tell apart.
const BESIDE: Duration = Duration::from_millis(1_100);
const NOW: &str =
    "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')";
const POINTS: &str = "SELECT string_agg(at::text, ' ' ORDER BY at) FROM point";

#[test]
fn a_running_service_goes_back_to_a_point() {
    let mut stack = stack();
    first_backup(&mut stack);
    psql(&stack, "CREATE TABLE point (at int); INSERT INTO point VALUES (1)");
    std::thread::sleep(BESIDE);
    let between = psql(&stack, NOW);
    std::thread::sleep(BESIDE);
    psql(&stack, "INSERT INTO point VALUES (2)");
    archived(&mut stack);
    let epoch = stack.epoch();

    // Asked about twice, since all after the point is given up.
    let told = refused(&stack, &["recover", "main", "--time", &between, "--json"]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let token = told["error"]["token"].as_str().expect("a token").to_string();
    assert!(token.starts_with(&format!("{epoch}:")), "{told}");
    for (more, code) in [
        (["--name", "never", "--token", &format!("{epoch}:never")], "E287"),
        (["--lsn", "FFFF/0", "--token", &format!("{epoch}:FFFF/0")], "E287"),
        (["--lsn", "1/1", "--token", "3:latest"], "given up"),
    ] {
        let mut arguments = vec!["recover", "main"];
        arguments.extend(more);
        let told = refused(&stack, &arguments);
        assert!(told.contains(code), "{more:?}: {told}");
    }
    assert_eq!(stack.epoch(), epoch, "nothing has changed");
    assert_eq!(psql(&stack, POINTS), "1 2");

    let begun = Instant::now();
    let done = json(&stack, &["recover", "main", "--time", &between, "--token", &token]);
    println!("in place after {} ms: {done}", begun.elapsed().as_millis());
    assert_eq!(psql(&stack, POINTS), "1");
    let status = stack.whole();
    assert_eq!(status["services"]["main"]["leader"], done["node"], "{status}");
    assert!(stack.epoch() > epoch);

    // It is the service now: archived on, backed up, failed over, and put back once more.
    psql(&stack, "INSERT INTO point VALUES (3)");
    archived(&mut stack);
    json(&stack, &["backup", "now", "main"]);
    stack.done(&["switchover", "main"]);
    psql(&stack, "INSERT INTO point VALUES (4)");
    stack.whole();
    archived(&mut stack);
    let token = format!("{}:latest", stack.epoch());
    json(&stack, &["recover", "main", "--token", &token]);
    assert_eq!(psql(&stack, POINTS), "1 3 4");
    stack.whole();
}

#[test]
fn a_service_comes_back_from_nothing_but_its_repository() {
    let mut stack = stack();
    first_backup(&mut stack);
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    psql(&stack, "CREATE TABLE point (at int); INSERT INTO point VALUES (7)");
    let epoch = stack.epoch();
    let lost = load.finish().lost;
    assert_eq!(lost, 0);
    archived(&mut stack);
    stack.interrupt();
    fs::remove_dir_all(stack.data()).expect("the data goes");

    stack.begin();
    let held = |status: &Value| {
        let holds = status["holds"].as_array().into_iter().flatten();
        let mut why = holds.filter_map(|hold| hold["why"].as_str());
        why.any(|why| why.contains("E293"))
    };
    stack.wait("no second, empty database", held);
    let begun = Instant::now();
    let done = json(&stack, &["recover", "main"]);
    println!("from nothing after {} ms: {done}", begun.elapsed().as_millis());
    assert_eq!(psql(&stack, POINTS), "7");
    stack.whole();
    assert!(stack.epoch() > epoch, "above all that was written");
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(load.finish().lost, 0);
    // Its log goes on in the same repository.
    archived(&mut stack);
    json(&stack, &["backup", "now", "main"]);
    let to = stack.dir().join("beside").display().to_string();
    json(&stack, &["restore", "main", "--to", &to]);

    // The store is still there, and nobody of those it names has data any more.
    let epoch = stack.epoch();
    stack.interrupt();
    for node in NODES {
        fs::remove_dir_all(stack.data().join(node)).expect("its data goes");
    }
    stack.begin();
    stack.wait("agents", |status| {
        let instances = status["services"]["main"]["instances"].as_object();
        instances.is_some_and(|all| all.values().all(|it| it["state"] == "empty"))
    });
    let token = format!("{epoch}:latest:force");
    json(&stack, &["recover", "main", "--force", "--token", &token]);
    assert_eq!(psql(&stack, POINTS), "7");
    stack.whole();
}

#[test]
fn plans_are_practised_and_measured() {
    let mut stack = stack();
    first_backup(&mut stack);
    let epoch = stack.epoch();
    let run = |stack: &Stack, plan: &str, more: &[&str]| -> Value {
        let file = stack.dir().join(plan).display().to_string();
        let mut arguments = vec!["drill", "run", plan, "main", "--report", &file];
        arguments.extend(more);
        let told = json(stack, &arguments);
        let kept = fs::read_to_string(format!("{file}.json")).expect("a report");
        assert_eq!(serde_json::from_str::<Value>(&kept).expect("JSON"), told);
        let page = fs::read_to_string(format!("{file}.html")).expect("a page");
        assert!(page.contains(plan) && page.contains("Passed."), "{page}");
        println!(
            "{plan}: RTO {} ms, RPO {}, lost {}",
            told["rto_ms"], told["rpo_ms"], told["lost"]
        );
        told
    };
    // It begins as region-loss does.
    let scratch = stack.dir().join("scratch");
    let at = scratch.display().to_string();
    let told = run(&stack, "operator-mistake", &["--scratch", &at]);
    let steps = told["steps"].as_array().expect("steps");
    assert!(steps.iter().all(|step| step["ok"] == true && step["journal"].is_string()), "{told}");
    assert_eq!(told["lost"], 0);
    assert!(!scratch.exists(), "nothing of it is left");
    assert_eq!(stack.epoch(), epoch, "the cluster itself did not notice");

    let told = run(&stack, "node-loss", &["--real", "main"]);
    assert_eq!(told["lost"], 0);
    assert!(stack.epoch() > epoch);
    let told = refused(&stack, &["drill", "run", "region-loss", "--real", "main"]);
    assert!(told.contains("E307") && told.contains("everhold recover"), "{told}");
    stack.whole();
}
