//! Nodes that are gone for good and data that no rewind can mend: a forced failover, and copies made
//! anew.

use crate::stack::load::{Load, block_on, config, connect};
use crate::stack::{NODES, Stack, Wanted, signal};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

/// Ends all of a node and takes its directory away, as when a machine is lost.
fn lose(stack: &Stack, node: &str) -> PathBuf {
    let dir = stack.data().join(node);
    let away = stack.dir().join(format!("{node}.lost"));
    fs::rename(&dir, &away).expect("taken away");
    // What has it as its working directory is seen under the new name.
    let mut pids = stack.pids_in(&away);
    pids.extend(stack.agent_pid(node));
    signal("KILL", &pids);
    away
}

/// Freezes the others and has the leader write what none of them gets, more than a socket holds. The
/// processes that were frozen come back.
fn tail(stack: &mut Stack, leader: &str, frozen: &[&str]) -> Vec<i32> {
    const BYTES: u64 = 12 << 20;
    let written = |status: &Value| {
        let place = status["services"]["main"]["instances"][leader]["detail"]["flush_lsn"].clone();
        let (high, low) = place.as_str()?.split_once('/')?;
        let part = |text| u64::from_str_radix(text, 16).ok();
        Some((part(high)? << 32) + part(low)?)
    };
    let pids: Vec<i32> = frozen.iter().flat_map(|node| stack.node_pids(node)).collect();
    signal("STOP", &pids);
    let before = stack.status().as_ref().and_then(written).expect("a place");
    let config = config(stack.write_port(), &stack.password());
    for _ in 0..4 {
        let config = config.clone();
        // Each waits for an acknowledgement until its leader is gone.
        std::thread::spawn(move || {
            block_on(async {
                let (client, _) = connect(&config).await?;
                let sql = "SELECT pg_logical_emit_message(true, 'test', repeat('x', 4194304))";
                client.batch_execute(sql).await.map_err(|error| error.to_string())
            })
        });
    }
    stack.wait("a long tail", |status| written(status) > Some(before + BYTES));
    pids
}

fn others(leader: &str) -> [&'static str; 2] {
    let mut others = NODES.into_iter().filter(|node| *node != leader);
    [others.next().expect("one"), others.next().expect("another")]
}

#[test]
fn with_two_of_three_nodes_gone_for_good_the_last_one_is_forced_to_lead() {
    let mut stack = Stack::start(Wanted { durability: "preferred", ..Wanted::default() });
    stack.whole();
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    let (leader, epoch) = (stack.leader(), stack.epoch());
    let [gone, left] = others(&leader);
    // Both at once: nobody was dropped from the set before.
    signal("STOP", &stack.node_pids(gone));
    lose(&stack, &leader);
    let away = lose(&stack, gone);
    stack.wait("a service that is down", |status| status["services"]["main"]["serving"] == false);

    // It says what may be lost, and wants to hear it again.
    let asked =
        stack.command(&["failover", "main", "--force", "--json"]).output().expect("it runs");
    assert_eq!(asked.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&asked.stderr).expect("JSON");
    let error = &error["error"];
    assert_eq!(error["code"], "E312", "{error}");
    let said = error["message"].as_str().expect("a message");
    assert!(said.contains("may be lost") && said.contains(&leader), "{said}");
    let token = error["token"].as_str().expect("a token").to_string();
    assert!(token.starts_with(&format!("{epoch}:{leader}.")), "{token}");
    let wrong = ["failover", "main", "--force", "--token", "1:none"];
    let refused = stack.command(&wrong).output().expect("it runs");
    assert_eq!(refused.status.code(), Some(1), "a token of something else");
    assert_eq!(stack.epoch(), epoch, "nothing was done yet");

    let forced = stack.done(&["failover", "main", "--force", "--token", &token, "--json"]);
    let forced: Value = serde_json::from_str(&forced).expect("JSON");
    assert_eq!(forced["leader"], left);
    load.flows();
    let status = stack.status().expect("a status");
    let last = &status["services"]["main"]["last_failover"];
    assert_eq!((&last["rule"], &last["to"]), (&json!("force"), &json!(left)), "{last}");
    assert_eq!(last["lost"]["acknowledged"], Value::Null, "nobody knows: {last}");
    assert!(stack.done(&["journal", "--limit", "200"]).contains("force, accepting"));

    // One of them is found again: its history is no longer anybody's, and it is made a copy.
    let place = stack.data().join(gone);
    let _ = fs::remove_dir_all(&place);
    fs::rename(away, place).expect("found");
    stack.wait("a standby", |status| {
        status["services"]["main"]["synchronous"]["members"] == json!([gone])
    });
    load.flows();
    // What only the lost leader acknowledged may be gone; that was accepted.
    load.finish();
}

#[test]
fn data_that_can_not_be_rewound_is_copied_anew() {
    let mut stack = Stack::start(Wanted::default());
    stack.whole();
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    let leader = stack.leader();
    let followers = others(&leader);
    let data = stack.data().join(&leader).join("main/pgdata");
    let born = fs::metadata(&data).expect("there").ino();
    // pg_rewind looks into every directory; PostgreSQL doesn't mind this one.
    fs::DirBuilder::new().mode(0o700).create(data.join("base/strange")).expect("made");

    // A tail that nobody else has.
    let frozen = tail(&mut stack, &leader, &followers);
    signal("KILL", &stack.node_pids(&leader));
    signal("CONT", &frozen);
    load.flows();
    let epoch = stack.epoch();
    let status = stack.whole();
    assert_ne!(stack.leader(), leader);
    let detail = &status["services"]["main"]["instances"][&leader]["detail"];
    assert_eq!(detail["incarnation"], 2, "another incarnation: {detail}");
    let journal = stack.done(&["journal", "--limit", "1000"]);
    assert!(
        journal.contains("rewind failed") && journal.contains("clone"),
        "a rewind, then a copy"
    );
    assert_ne!(fs::metadata(&data).expect("there").ino(), born, "a new directory");
    let kept = stack.data().join(&leader).join(format!("main/diverged/{epoch}/summary.json"));
    let kept: Value = serde_json::from_slice(&fs::read(kept).expect("kept")).expect("JSON");
    assert!(kept["bytes"].as_u64() > Some(0), "the tail was kept: {kept}");
    assert_eq!(load.finish().lost, 0);
}

/// Rows of one transaction, far more than are listed.
const MANY: u64 = 200_000;

/// The most memory that the process ever had.
fn peak_kb(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
    peak.expect("a size")
}

#[test]
fn what_a_failover_lost_is_told_by_row() {
    let mut stack = Stack::start(Wanted::default());
    stack.whole();
    let config = config(stack.write_port(), &stack.password());
    let run = |sql: &'static str| {
        let config = config.clone();
        block_on(async move {
            let (client, _) = connect(&config).await.expect("a session");
            client.batch_execute(sql).await.expect(sql);
        });
    };
    run("CREATE TABLE things (id int PRIMARY KEY, name text, ok bool, at timestamptz, gone int, \
         amount numeric(12,3), u uuid, j jsonb, note varchar(20), n bigint); \
         ALTER TABLE things DROP COLUMN gone; CREATE TABLE many (n int); \
         INSERT INTO things VALUES (1, 'kept', true), (2, 'kept too', false), (3, 'third', null)");
    let leader = stack.leader();
    let quiet = stack.done(&["losses", "main"]);
    assert!(quiet.contains("no node keeps a log"), "{quiet}");
    // Its next change of each page writes the page as a whole.
    let socket = stack.data().join(&leader).join("main/run").display().to_string();
    let port = stack.postgres_port(&leader).to_string();
    let mut psql = std::process::Command::new("psql");
    psql.args(["-h", &socket, "-p", &port, "-U", "everhold", "-qc", "CHECKPOINT", "postgres"]);
    assert!(psql.status().expect("psql").success());

    let frozen = tail(&mut stack, &leader, &others(&leader));
    let changes = [
        "INSERT INTO things VALUES (10, 'ten', true, '2026-11-20 10:00:00.5+00', -1234.5, \
         '0b7e3f8a-1111-2222-3333-444455556666', \
         '{\"a\": [1, 2.50, null], \"b\": {\"c\": \"d\"}, \"e\": true}', 'short', 9007199254740993)",
        "UPDATE things SET name = 'changed' WHERE id = 1",
        "DELETE FROM things WHERE id = 2",
        "INSERT INTO things (id, name) SELECT n, repeat('y', 3000) FROM generate_series(20, 22) n",
        "BEGIN; INSERT INTO things (id) VALUES (30); SAVEPOINT s; \
         UPDATE things SET ok = false WHERE id = 30; RELEASE s; COMMIT",
        "INSERT INTO many SELECT n FROM generate_series(1, 200000) n",
    ];
    for sql in changes {
        let config = config.clone();
        // Each waits for an acknowledgement that never comes.
        std::thread::spawn(move || {
            block_on(async {
                let (client, _) = connect(&config).await?;
                client.batch_execute(sql).await.map_err(|error| error.to_string())
            })
        });
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    // The last one is long.
    std::thread::sleep(std::time::Duration::from_secs(4));
    signal("KILL", &stack.node_pids(&leader));
    signal("CONT", &frozen);
    stack.wait("another leader", |status| {
        let main = &status["services"]["main"];
        main["serving"] == true && main["leader"] != json!(leader)
    });
    stack.whole();

    let told: Value = serde_json::from_str(&stack.done(&["losses", "--json"])).expect("JSON");
    let tails = told["services"][0]["tails"].as_array().expect("tails");
    let [tail] = tails.as_slice() else { panic!("one tail: {told}") };
    assert_eq!((&tail["node"], &tail["acknowledged"]), (&json!(leader), &json!(0)));
    assert!(tail["bytes"].as_u64() > Some(12 << 20) && tail["note"].is_null(), "{}", tail["note"]);
    let transactions = tail["transactions"].as_array().expect("transactions");
    assert_eq!(Some(transactions.len() as u64), tail["commits"].as_u64(), "each is told");
    let of_things = transactions.iter().flat_map(|it| it["rows"].as_array().expect("rows"));
    let rows: Vec<&Value> = of_things.filter(|it| it["relation"] == "things of app").collect();
    let shown: Vec<String> = rows
        .iter()
        .map(|it| format!("{} {}", it["act"].as_str().unwrap_or("?"), it["row"]["id"]))
        .collect();
    assert_eq!(
        shown,
        [
            "insert 10",
            "update 1",
            "delete 2",
            "insert 20",
            "insert 21",
            "insert 22",
            "insert 30",
            "update 30"
        ]
    );
    assert_eq!(
        rows[0]["row"],
        json!({
            "id": 10, "name": "ten", "ok": true, "at": "2026-11-20 10:00:00.5+00",
            "amount": "-1234.500", "u": "0b7e3f8a-1111-2222-3333-444455556666",
            "j": { "a": [1, 2.5, null], "b": { "c": "d" }, "e": true }, "note": "short",
            "n": 9_007_199_254_740_993_u64,
        })
    );
    assert_eq!((&rows[1]["row"]["name"], &rows[1]["row"]["ok"]), (&json!("changed"), &json!(true)));
    assert_eq!(rows[2]["row"]["name"], "kept too");
    let long = rows[3]["row"]["name"].as_str().expect("a text");
    assert!(long.starts_with("yyy") && long.ends_with("(3000 bytes)"), "{long}");
    assert_eq!(rows[7]["row"]["ok"], false);
    // Beyond what is listed all is counted, and none of it stays with the agent.
    let many = tail["unlisted"].as_u64().unwrap_or(0);
    assert!((MANY - 1_000..MANY).contains(&many), "{many}");
    let counted = transactions.iter().find_map(|it| it["counts"]["many of app"][0].as_u64());
    assert_eq!(counted, Some(MANY));
    let pid = stack.agent_pid(&leader).expect("an agent");
    let before = peak_kb(pid);
    (0..3).for_each(|_| drop(stack.done(&["losses", "--json"])));
    let grown = peak_kb(pid).saturating_sub(before);
    assert!(grown < 12 << 10, "the agent grew by {grown} kB");
    let text = stack.done(&["losses", "main"]);
    assert!(text.contains("none of it was acknowledged") && text.contains("1 inserted"), "{text}");
    let unknown = stack.command(&["losses", "nothing"]).output().expect("it runs");
    assert_eq!(unknown.status.code(), Some(1));
}

#[test]
fn a_witness_that_has_to_be_copied_over_is_kept() {
    let mut stack = Stack::start(Wanted::default());
    stack.whole();
    let load = Load::start(stack.write_port(), &stack.password());
    let leader = stack.leader();
    let [next, gone] = others(&leader);
    lose(&stack, gone);
    stack.wait("a set of one", |status| {
        status["services"]["main"]["synchronous"]["members"] == json!([next])
    });
    load.flows();

    // The leader gets a tail, and the only other node leads without it: it can't open, since the
    // old leader can't follow it, and may not be rewound, since it is still a witness.
    let frozen = tail(&mut stack, &leader, &[next]);
    signal("KILL", &stack.postmaster(&leader).into_iter().collect::<Vec<_>>());
    signal("CONT", &frozen);
    let data = stack.data().join(&leader).join("main");
    let born = fs::metadata(data.join("pgdata")).expect("there").ino();
    stack.wait("the other leader, with the old one following", |status| {
        let main = &status["services"]["main"];
        main["serving"] == true
            && main["leader"] == next
            && main["synchronous"]["members"] == json!([leader])
    });
    load.flows();
    let entries = fs::read_dir(&data).expect("there").flatten();
    let kept: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains("pgdata.kept-"))
        .collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(fs::metadata(&kept[0]).expect("there").ino(), born, "the very directory");
    assert!(kept[0].join("PG_VERSION").exists());
    assert_eq!(load.finish().lost, 0);
}
