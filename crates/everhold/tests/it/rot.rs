//! Bad pages on the disk of a running server: found, kept away from clients, and mended by a copy.

use crate::stack::load::{Load, block_on, config, connect};
use crate::stack::{NODES, Stack, Wanted, signal};
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const SCRUB: &str = "scrub_every = \"1s\"\n";

/// Runs SQL as the owner, on the leader.
fn sql(stack: &Stack, text: &str) -> Option<String> {
    let config = config(stack.write_port(), &stack.password());
    block_on(async {
        let (client, _) = connect(&config).await.expect("a session");
        let rows = client.query(text, &[]).await.expect(text);
        rows.first().and_then(|row| row.get::<_, Option<String>>(0))
    })
}

/// A table that nobody touches any more, and that no server has a better form of in memory than on
/// its disk; its file.
fn cold_table(stack: &mut Stack) -> String {
    let make =
        "CREATE TABLE cold AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 20000) n";
    sql(stack, make);
    sql(stack, "VACUUM FREEZE cold");
    let path = sql(stack, "SELECT pg_relation_filepath('cold')").expect("a path");
    written_out(stack);
    path
}

/// A checkpoint of the leader, which its standbys replay, then restartpoints of theirs.
fn written_out(stack: &mut Stack) {
    let leader = stack.leader();
    checkpoint(stack, &leader);
    stack.wait("standbys without lag", |status| {
        NODES.iter().all(|node| {
            let it = instance(status, node);
            it["health"] != "up" || it["lag_bytes"].as_u64() < Some(10_000)
        })
    });
    for node in NODES.into_iter().filter(|node| *node != leader) {
        checkpoint(stack, node);
    }
}

fn checkpoint(stack: &Stack, node: &str) {
    let socket = stack.data().join(node).join("main/run");
    let port = stack.postgres_port(node).to_string();
    let mut psql = Command::new("timeout");
    psql.args(["10", "psql", "-h", &socket.display().to_string(), "-p", &port]);
    psql.args(["-U", "everhold", "-qc", "CHECKPOINT", "postgres"]).stderr(Stdio::null());
    let _ = psql.status();
}

/// Flips a bit on the disk, in a page that no server has in memory.
fn rot(stack: &Stack, node: &str, path: &str, page: u64) -> PathBuf {
    let file = stack.data().join(node).join("main/pgdata").join(path);
    let open = OpenOptions::new().read(true).write(true).open(&file).expect("the file");
    let mut byte = [0];
    let at = page * 8192 + 5_000;
    open.read_exact_at(&mut byte, at).expect("read");
    open.write_all_at(&[byte[0] ^ 0x40], at).expect("written");
    open.sync_all().expect("on disk");
    file
}

fn instance<'a>(status: &'a Value, node: &str) -> &'a Value {
    &status["services"]["main"]["instances"][node]
}

#[test]
fn a_standby_with_a_bad_page_is_kept_away_never_leads_and_is_copied_anew() {
    let mut stack = Stack::start(Wanted { service: SCRUB, ..Wanted::default() });
    stack.whole();
    let path = cold_table(&mut stack);
    stack.wait("a round of each node", |status| {
        NODES.iter().all(|n| instance(status, n)["detail"]["scrub"]["ended_s"].is_u64())
    });
    let leader = stack.leader();
    let bad = NODES.into_iter().find(|node| *node != leader).expect("a standby");
    let good = NODES.into_iter().find(|node| *node != leader && *node != bad).expect("another");
    let data = stack.data().join(bad).join("main/pgdata");
    let born = fs::metadata(&data).expect("there").ino();

    // With one of the two standbys gone the other is needed, and is not given up whatever it has.
    let gone = stack.machine_pids(good);
    signal("STOP", &gone);
    stack.wait("a set of one", |status| {
        status["services"]["main"]["synchronous"]["members"] == json!([bad])
    });
    rot(&stack, bad, &path, 3);
    let found = Load::start(stack.write_port(), &stack.password());
    let status = wait_found(&mut stack, bad);
    let shown = instance(&status, bad);
    assert_eq!(shown["in_route"], false, "{shown}");
    stack.wait("a read route without it", |status| {
        let gateways = status["gateways"].as_object().expect("gateways");
        let to = |gateway: &Value| gateway["listeners"]["read"]["to"] == json!([leader]);
        !gateways.is_empty() && gateways.values().all(to)
    });
    let listed = &shown["detail"]["scrub"]["bad"][0];
    assert_eq!((&listed["path"], &listed["page"]), (&json!(path), &json!(3)), "{listed}");
    assert_eq!(listed["relation"], "cold of app", "{listed}");
    let hold = stack.hold("bad-pages", &["E205", bad, "needed"]);
    assert_eq!(hold["needs_operator"], false, "{hold}");
    assert!(
        stack.done(&["journal", "--limit", "1000"]).contains("bad page: page 3 of cold of app")
    );
    found.flows();
    assert_eq!(fs::metadata(&data).expect("there").ino(), born, "still the same directory");

    // The leader is lost: the one without bad pages leads, if it can have what the other holds.
    signal("CONT", &gone);
    signal("KILL", &stack.node_pids(&leader));
    let status = stack.wait("another leader", |status| {
        let main = &status["services"]["main"];
        main["serving"] == true && main["leader"] != json!(leader)
    });
    assert_eq!(status["services"]["main"]["leader"], good, "the one without bad pages");
    found.flows();

    // Then it is not needed any more.
    let status = stack.wait("a copy without bad pages", |status| {
        let it = instance(status, bad);
        it["detail"]["bad_pages"] == 0 && it["in_route"] == true && it["state"] == "streaming"
    });
    assert!(instance(&status, bad)["detail"]["incarnation"].as_u64() > Some(1));
    assert_ne!(fs::metadata(&data).expect("there").ino(), born, "a new directory");
    stack.whole();
    assert_eq!(found.finish().lost, 0);
}

/// Until it is found; a standby is certain only after its leader's next checkpoints.
fn wait_found(stack: &mut Stack, node: &str) -> Value {
    for _ in 0..60 {
        let status = stack.status().unwrap_or_default();
        if instance(&status, node)["detail"]["bad_pages"] == 1 {
            return status;
        }
        let leader = stack.leader();
        checkpoint(stack, &leader);
        std::thread::sleep(Duration::from_secs(1));
    }
    stack.explain();
    panic!("{node}'s bad page was not found: {:#?}", stack.status());
}

#[test]
fn a_leader_with_a_bad_page_says_so_and_is_copied_anew_once_it_was_handed_over() {
    let mut stack = Stack::start(Wanted { service: SCRUB, ..Wanted::default() });
    stack.whole();
    let path = cold_table(&mut stack);
    let (leader, epoch) = (stack.leader(), stack.epoch());
    let rounds = |stack: &mut Stack, count: usize| {
        for _ in 0..count {
            let ended =
                |status: &Value| instance(status, &leader)["detail"]["scrub"]["ended_s"].as_u64();
            let before = stack.status().as_ref().and_then(ended);
            stack.wait("another round", |status| ended(status) > before);
        }
    };
    rounds(&mut stack, 1);

    // What the server holds better in memory, and will write, is not bad.
    sql(&stack, "UPDATE cold SET t = 'y' WHERE n = 1");
    let file = rot(&stack, &leader, &path, 0);
    let rotten = fs::read(&file).expect("read")[5_000];
    rounds(&mut stack, 3);
    let status = stack.status().expect("a status");
    assert_eq!(instance(&status, &leader)["detail"]["bad_pages"], 0);
    assert_ne!(fs::read(&file).expect("read")[5_000], rotten, "it was written again");

    rot(&stack, &leader, &path, 7);
    wait_found(&mut stack, &leader);
    let hold = stack.hold("bad-pages", &["E205", "cold of app"]);
    assert_eq!(hold["needs_operator"], true, "{hold}");
    assert!(hold["unblocks"].as_str().is_some_and(|it| it.contains("everhold switchover")));
    assert_eq!((stack.leader(), stack.epoch()), (leader.clone(), epoch), "never by itself");

    stack.done(&["switchover", "main"]);
    let status = stack.wait("a copy without bad pages", |status| {
        let it = instance(status, &leader);
        it["detail"]["bad_pages"] == 0 && it["in_route"] == true && it["role"] == "standby"
    });
    assert_eq!(instance(&status, &leader)["detail"]["incarnation"], 2);
    let refused = stack.command(&["switchover", "main", "--to", "nobody"]).output().expect("runs");
    assert!(!refused.status.success());
    stack.whole();
}
