//! The leader dies, a standby takes over, the old leader comes back.

use crate::cluster::{Cluster, Node, execute, line, signal, slots, value};
use everhold_adapters::postgres::KeptWal;
use everhold_core::ids::Lsn;
use everhold_core::postgres::{CLOSED, PgAction, PgOutcome, Process, StopMode};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_dead_leader_is_replaced_rewound_and_cloned() {
    let cluster = Cluster::new();
    let a = cluster.leader("a").await;
    let b = cluster.standby("b", &a).await;
    let c = cluster.standby("c", &a).await;
    a.wait_for(1, &[&b, &c]).await;
    let client = a.client().await;
    execute(&client, "CREATE TABLE t (i int, s text)").await;
    let load = load(&a, 3).await;
    tokio::time::sleep(Duration::from_millis(400)).await;

    // Sealed under load.
    let begun = Instant::now();
    let (b_end, b_tli) = b.seal().await;
    let seal_b = begun.elapsed();
    let begun = Instant::now();
    let (c_end, c_tli) = c.seal().await;
    println!("seal under load: {seal_b:?}, {:?}", begun.elapsed());
    assert_eq!((b_tli, c_tli), (2, 2));
    assert_eq!(b.facts().await.source, None);
    assert_eq!(b.facts().await.receiver, None);

    // What the old leader writes now is acknowledged by nobody, and diverges.
    let diverging = client.simple_query("INSERT INTO t VALUES (-1, 'lost')");
    assert!(tokio::time::timeout(Duration::from_millis(200), diverging).await.is_err());
    let acknowledged = load.iter().map(|(_, count)| count.load(ORDER)).sum::<u64>();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let later = load.iter().map(|(_, count)| count.load(ORDER)).sum::<u64>();
    assert_eq!(acknowledged, later, "acknowledged without a standby");

    let seen = a.kill_postmaster().await;
    assert!(seen < Duration::from_millis(50), "{seen:?}");
    let begun = Instant::now();
    a.stop(StopMode::Immediate).await;
    println!(
        "death seen after {seen:?} (kill(1) included), remains ended in {:?}",
        begun.elapsed()
    );
    assert_eq!(a.facts().await.process, Process::Down);
    load.into_iter().for_each(|(task, _)| task.abort());

    // A crashed leader starts as a standby and parks at the end of all it has.
    a.start(&line(&[1, 2]), None).await;
    let (a_end, a_tli) = a.park().await;
    assert_eq!(a_tli, 2);
    assert!(a_end > b_end.max(c_end));

    let (leader, other, end) = if b_end >= c_end { (&b, &c, b_end) } else { (&c, &b, c_end) };
    let begun = Instant::now();
    let promoted = leader.promote(5, 2, end, &[2, 3, 4], &[&a, other]).await;
    println!("promote {:?}", begun.elapsed());
    assert_eq!(promoted, PgOutcome::Promoted { tli: 5, parent: 2, fork: end });
    assert_eq!(leader.promote(5, 2, end, &[2, 3, 4], &[&a, other]).await, promoted);
    let facts = leader.facts().await;
    assert_eq!((facts.tli, facts.sync_names.as_deref()), (5, Some(CLOSED)));
    let begun = Instant::now();
    other.run(PgAction::SetSource { source: Some(other.source(leader)) }).await;
    leader.wait_for(1, &[other]).await;
    leader.run(PgAction::Barrier { epoch: 5 }).await;
    println!("follow, set and barrier {:?}", begun.elapsed());
    let admin = leader.admin().await;
    let rows: u64 = value(&admin, "SELECT count(*) FROM t").await.parse().unwrap();
    assert!(rows >= acknowledged, "{rows} of {acknowledged}");
    assert_eq!(value(&admin, "SELECT count(*) FROM t WHERE i = -1").await, "0");

    // The old leader comes back, and what it had is kept.
    leader.run(PgAction::Checkpoint).await;
    assert_eq!(leader.facts().await.checkpoint_tli, 5);
    a.stop(StopMode::Immediate).await;
    let rewind = PgAction::Rewind { source: a.source(leader), fork: end, epoch: 5 };
    let begun = Instant::now();
    let PgOutcome::Copied { bytes, of } = a.run(rewind).await else { panic!() };
    println!("rewind {:?}, {bytes} of {of} bytes", begun.elapsed());
    assert!(bytes > 0 && bytes < of);
    let kept = kept(&a, 5);
    assert_eq!((kept.tli, kept.fork, kept.note.as_deref()), (2, end, None));
    assert!(kept.end >= a_end && kept.end.0 <= a_end.0 + 8192, "{} {a_end}", kept.end);
    assert!(kept.commits >= 1 && !kept.segments.is_empty(), "{kept:?}");
    for name in &kept.segments {
        assert!(a.config.kept_dir.join("5").join(name).exists());
    }
    returns(&a, leader, rows).await;

    // A whole copy does the same, and frees what a killed server held of the kernel's few segments.
    let held = std::fs::metadata(&a.config.data_dir).unwrap().ino() as i32;
    a.kill_postmaster().await;
    a.stop(StopMode::Immediate).await;
    assert!(segments().contains(&held), "{held}");
    let clone = PgAction::Clone {
        source: a.source(leader),
        fork: None,
        epoch: 6,
        keep: false,
        bad_pages_too: false,
    };
    let PgOutcome::Copied { bytes, of } = a.run(clone).await else { panic!() };
    assert!(bytes > 0 && bytes == of);
    assert!(!segments().contains(&held), "{held}");
    returns(&a, leader, rows).await;
}

/// Keys of the kernel's shared memory; PostgreSQL's are numbers of inodes.
fn segments() -> Vec<i32> {
    let text = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let keys = text.lines().skip(1).map(|line| line.split_whitespace().next().unwrap());
    keys.map(|key| key.parse().unwrap()).collect()
}

async fn returns(node: &Node, leader: &Node, rows: u64) {
    node.start(&line(&[1, 2, 5]), Some(node.source(leader))).await;
    leader.await_streaming(node).await;
    let facts = leader.facts().await;
    let begun = Instant::now();
    while node.facts().await.lsn < facts.lsn {
        assert!(begun.elapsed().as_secs() < 10, "{:?}", node.facts().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(node.facts().await.tli, 5);
    let admin = node.admin().await;
    assert_eq!(value(&admin, "SELECT count(*) FROM t").await, rows.to_string());
}

fn kept(node: &Node, epoch: u64) -> KeptWal {
    let path = node.config.kept_dir.join(epoch.to_string()).join("summary.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Whoever asked for the start may decide again: it would wait for ever.
#[tokio::test]
async fn a_copy_whose_leader_went_is_seen_to_start() {
    let cluster = Cluster::new();
    let a = cluster.leader("a").await;
    let b = cluster.node("b").await;
    a.run(slots(&[&b])).await;
    let source = b.source(&a);
    let clone = PgAction::Clone {
        source: source.clone(),
        fork: None,
        epoch: 1,
        keep: false,
        bad_pages_too: false,
    };
    b.run(clone).await;
    // As after a rewind: what makes it consistent is its leader's.
    for file in std::fs::read_dir(b.pg_wal()).unwrap().map(Result::unwrap) {
        if file.file_type().unwrap().is_file() {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    a.stop(StopMode::Immediate).await;
    b.run(PgAction::Start { line: line(&[1, 2]), source: Some(source) }).await;
    assert_eq!(b.facts().await.process, Process::Starting);
    b.stop(StopMode::Immediate).await;
    assert_eq!(b.facts().await.process, Process::Down);
}

const ORDER: std::sync::atomic::Ordering = std::sync::atomic::Ordering::SeqCst;
type Writer = (tokio::task::JoinHandle<()>, std::sync::Arc<std::sync::atomic::AtomicU64>);

/// Writers that count what was acknowledged.
async fn load(node: &Node, writers: usize) -> Vec<Writer> {
    let mut load = Vec::new();
    for _ in 0..writers {
        let client = node.client().await;
        let count = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counted = count.clone();
        let task = tokio::spawn(async move {
            let insert = "INSERT INTO t VALUES (1, repeat('x', 3000))";
            while client.simple_query(insert).await.is_ok() {
                counted.fetch_add(1, ORDER);
            }
        });
        load.push((task, count));
    }
    load
}

#[tokio::test]
async fn a_seal_ends_what_holds_up_replay() {
    let cluster = Cluster::new();
    let a = cluster.leader("a").await;
    let b = cluster.standby("b", &a).await;
    a.wait_for(1, &[&b]).await;
    let writer = a.client().await;
    execute(&writer, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i").await;
    let PgOutcome::Evidence { end } = a.run(PgAction::Evidence).await else { panic!() };
    while b.facts().await.lsn < end {}

    // A long query on the standby conflicts with a vacuum.
    let reader = b.client().await;
    let sql = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t";
    assert_eq!(value(&reader, sql).await, "1000");
    let query = tokio::spawn(async move { reader.simple_query("SELECT pg_sleep(600)").await });
    for sql in ["DELETE FROM t", "VACUUM t", "INSERT INTO t VALUES (1)"] {
        execute(&writer, sql).await;
    }
    let admin = b.admin().await;
    let stuck = "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'";
    let begun = Instant::now();
    while !value(&admin, stuck).await.starts_with("RecoveryConflict") {
        assert!(begun.elapsed().as_secs() < 5, "{}", value(&admin, stuck).await);
    }
    let behind = b.facts().await;
    let received = behind.receiver.clone().map(|receiver| receiver.flushed).unwrap_or_default();
    assert!(behind.lsn < received, "{behind:?}");
    assert!(behind.replay_lag_ms > Some(0), "{behind:?}");
    let begun = Instant::now();
    let (end, _) = b.seal().await;
    let took = begun.elapsed();
    println!("seal in a conflict: {took:?}");
    assert!(took < Duration::from_millis(900), "{took:?}");
    assert!(end >= received);
    assert!(query.await.unwrap().is_err());

    // So does a pause, which nobody waits for.
    b.follow(&a).await;
    execute(&b.admin().await, "SELECT pg_wal_replay_pause()").await;
    execute(&writer, "INSERT INTO t SELECT generate_series(1, 1000)").await;
    let flushed = b.facts().await.receiver.unwrap().flushed;
    let (end, _) = b.seal().await;
    assert!(end >= flushed);

    // Nothing to prove while it may receive.
    b.run(PgAction::SetSource { source: Some(b.source(&a)) }).await;
    assert!(b.fail(PgAction::Park).await.contains("has a source"));
}

#[tokio::test]
async fn timelines_of_others_lead_nobody_astray() {
    let cluster = Cluster::new();
    let a = cluster.leader("a").await;
    let b = cluster.standby("b", &a).await;
    let c = cluster.standby("c", &a).await;
    a.wait_for(1, &[&b, &c]).await;
    let client = a.client().await;
    execute(&client, "CREATE TABLE t (i int)").await;
    let (c_end, _) = c.seal().await;
    execute(&client, "INSERT INTO t SELECT generate_series(1, 100)").await;
    execute(&a.admin().await, "SELECT pg_switch_wal()").await;
    execute(&client, "INSERT INTO t VALUES (0)").await;
    let (b_end, _) = b.seal().await;
    a.stop(StopMode::Immediate).await;
    assert!(c_end < b_end);

    // b promoted to 3; c learns of that branch, which begins beyond all that c has.
    let checkpointer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    signal(value(&b.admin().await, checkpointer).await.parse().unwrap(), "STOP");
    b.promote(3, 2, b_end, &[2], &[]).await;
    std::fs::copy(b.pg_wal().join("00000003.history"), c.pg_wal().join("00000003.history"))
        .unwrap();
    b.stop(StopMode::Immediate).await;
    let trim = PgAction::Trim { line: line(&[1, 2]) };
    assert_eq!(c.run(trim.clone()).await, PgOutcome::Trimmed { restarted: true });
    assert_eq!(c.run(trim).await, PgOutcome::Trimmed { restarted: false });
    assert_eq!(c.park().await, (c_end, 2));
    signal(value(&c.admin().await, checkpointer).await.parse().unwrap(), "STOP");
    let promoted = c.promote(4, 2, c_end, &[2, 3], &[&b]).await;
    assert_eq!(promoted, PgOutcome::Promoted { tli: 4, parent: 2, fork: c_end });

    // It crashes before its first checkpoint, and comes back on its own branch.
    assert_eq!(c.facts().await.checkpoint_tli, 2);
    let admin = c.admin().await;
    execute(&admin, "SET synchronous_commit = local; INSERT INTO t VALUES (4)").await;
    let end = c.facts().await.lsn;
    c.stop(StopMode::Immediate).await;
    std::fs::remove_file(c.pg_wal().join("00000003.history")).unwrap();
    c.start(&line(&[1, 2, 4]), None).await;
    let (parked, tli) = c.park().await;
    assert_eq!(tli, 4);
    assert!(parked >= end, "{parked} {end}");

    // b has a branch 3 of its own, which c knows only as a reserved number. It was promoted after
    // its last checkpoint, which pg_rewind can't cope with: that is noticed before anything is lost.
    let promoted = c.promote(5, 4, parked, &[2, 3, 4], &[&b]).await;
    assert_eq!(promoted, PgOutcome::Promoted { tli: 5, parent: 4, fork: parked });
    // A follower asks for each number in between.
    assert!(c.pg_wal().join("00000003.history").exists());
    c.run(PgAction::Checkpoint).await;
    let rewind = PgAction::Rewind { source: b.source(&c), fork: c_end, epoch: 5 };
    assert!(b.fail(rewind).await.contains("clone it"));
    b.run(PgAction::Clone {
        source: b.source(&c),
        fork: Some(c_end),
        epoch: 5,
        keep: false,
        bad_pages_too: false,
    })
    .await;
    let kept = kept(&b, 5);
    assert_eq!((kept.tli, kept.fork, kept.commits), (3, c_end, 2), "{kept:?}");
    assert!(kept.end > b_end && kept.segments.len() == 3, "{kept:?}");
    b.start(&line(&[1, 2, 4, 5]), Some(b.source(&c))).await;
    c.await_streaming(&b).await;
    let begun = Instant::now();
    while b.facts().await.tli != 5 {
        assert!(begun.elapsed().as_secs() < 10, "{:?}", b.facts().await);
    }
    assert_ne!(b.facts().await.lsn, Lsn(0));
}

#[tokio::test]
async fn what_was_restored_gets_its_passwords_sooner_or_later() {
    let cluster = Cluster::new();
    let a = cluster.leader("a").await;
    a.run(PgAction::SetSync { names: String::new() }).await;
    assert!(!a.pg.renew_roles().await.unwrap(), "nothing is owed");
    let admin = a.admin().await;
    execute(&admin, "ALTER ROLE app PASSWORD 'of another cluster'").await;
    let marker = a.config.data_dir.join("everhold.restored");
    std::fs::write(&marker, "a backup").unwrap();
    // A first try that fails leaves it owed.
    let (file, away) = (&a.config.owner_password_file, cluster.dir.path().join("away"));
    std::fs::rename(file, &away).unwrap();
    a.pg.renew_roles().await.unwrap_err();
    assert!(marker.exists());
    std::fs::rename(&away, file).unwrap();
    assert!(a.pg.renew_roles().await.unwrap());
    assert!(!marker.exists());
    a.client().await;
}

/// Who is behind can be told to take the rest from another standby, or to follow it: the log that it
/// lacks is there, whatever was checkpointed meanwhile.
#[tokio::test]
async fn a_standby_keeps_the_log_that_another_one_lacks() {
    let cluster = Cluster::new();
    let a = cluster.leader("a").await;
    let b = cluster.standby("b", &a).await;
    let c = cluster.standby("c", &a).await;
    a.wait_for(1, &[&b, &c]).await;
    let client = a.client().await;
    execute(&client, "CREATE TABLE t (i int)").await;
    // Of d nobody has heard for long.
    let both =
        PgAction::Slots { names: vec![c.me.slot(), "d_1".to_string()], needed: BTreeMap::new() };
    b.run(both).await;
    let (c_end, _) = c.seal().await;
    for _ in 0..4 {
        execute(&client, "INSERT INTO t SELECT generate_series(1, 20000)").await;
        execute(&a.admin().await, "SELECT pg_switch_wal()").await;
        execute(&a.admin().await, "CHECKPOINT").await;
        b.await_replay(a.facts().await.lsn).await;
        b.run(PgAction::Checkpoint).await;
        b.run(PgAction::Slots {
            names: vec![c.me.slot(), "d_1".to_string()],
            needed: BTreeMap::from([(c.me.slot(), c_end)]),
        })
        .await;
    }
    let admin = b.admin().await;
    let held = async |slot: &str| -> Lsn {
        let sql = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name =";
        value(&admin, &format!("{sql} '{slot}'")).await.parse().unwrap()
    };
    assert!(held(&c.me.slot()).await <= c_end && held("d_1").await > c_end);
    c.run(PgAction::SetSource { source: Some(c.source(&b)) }).await;
    c.await_replay(b.facts().await.lsn).await;
}

/// A server that is as young as can be looks for new timelines while a number is taken out of use.
#[tokio::test]
async fn a_number_out_of_use_is_adopted_by_nobody() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    for node in [&a, &b] {
        node.run(PgAction::Bootstrap).await;
        node.start(&line(&[1]), None).await;
    }
    let (end, _) = a.park().await;
    a.promote(3, 1, end, &[2], &[]).await;
    let placeholder = a.pg_wal().join("00000002.history");
    let there = b.pg_wal().join("00000002.history");
    std::fs::copy(&placeholder, &there).expect("copied");
    if let Some((uid, gid)) = b.config.run_as {
        std::os::unix::fs::chown(&there, Some(uid), Some(gid)).expect("given away");
    }
    let seen = "new timeline 2 forked off current database system timeline 1 before current";
    let begun = Instant::now();
    while !b.log().contains(seen) {
        assert!(!b.log().contains("new target timeline is 2"), "{}", b.log());
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", b.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // So what it promotes to comes from where it was.
    let (end, tli) = b.park().await;
    assert_eq!(tli, 1);
    let promoted = b.promote(3, 1, end, &[2], &[]).await;
    assert_eq!(promoted, PgOutcome::Promoted { tli: 3, parent: 1, fork: end });
    b.stop(StopMode::Immediate).await;
    b.start(&line(&[1, 3]), None).await;
}
