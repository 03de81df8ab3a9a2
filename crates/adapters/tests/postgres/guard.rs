//! What must not happen: a false acknowledgement, a lost directory, a hang without words.

use crate::cluster::{Cluster, Node, execute, line, value};
use everhold_core::postgres::{CLOSED, PgAction, Source, StopMode};
use std::net::TcpListener;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_barrier_that_nobody_acknowledged_never_succeeds() {
    let cluster = Cluster::new();
    let a = cluster.leader("a").await;
    let barrier = PgAction::Barrier { epoch: 7 };
    let admin = a.admin().await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

    // Given up: the session goes on waiting, uncancelled, until the next attempt ends it.
    let given_up = a.pg.run(&a.me, &barrier);
    assert!(tokio::time::timeout(Duration::from_millis(300), given_up).await.is_err());
    assert_eq!(value(&admin, waiting).await, "1");
    let given_up = a.pg.run(&a.me, &barrier);
    assert!(tokio::time::timeout(Duration::from_millis(300), given_up).await.is_err());
    assert_eq!(value(&admin, waiting).await, "1");

    // Cancelled by somebody: success with a warning, which is none.
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let sql = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                   WHERE wait_event = 'SyncRep' ORDER BY backend_start DESC LIMIT 1";
        value(&admin, sql).await
    };
    let (said, _) = tokio::join!(a.fail(barrier.clone()), cancel);
    assert!(said.contains("not acknowledged"), "{said}");
    assert!(said.contains("canceling wait for synchronous replication"), "{said}");

    // Ended by somebody: an error.
    let end = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE wait_event = 'SyncRep'";
        value(&admin, sql).await
    };
    tokio::join!(a.fail(barrier.clone()), end);

    // The operator's defaults don't hide the warning or end the wait.
    let quiet = "ALTER ROLE everhold SET client_min_messages = error; \
                 ALTER ROLE everhold SET synchronous_commit = off";
    a.run(PgAction::SetSync { names: String::new() }).await;
    execute(&admin, quiet).await;
    a.run(PgAction::Barrier { epoch: 8 }).await;
    a.run(PgAction::SetSync { names: CLOSED.into() }).await;
    let waits = a.pg.run(&a.me, &barrier);
    assert!(tokio::time::timeout(Duration::from_millis(300), waits).await.is_err());
}

#[tokio::test]
async fn what_goes_wrong_is_said_and_leaves_the_data() {
    let cluster = Cluster::new();
    let a = cluster.leader("a").await;
    let b = cluster.standby("b", &a).await;
    let dead = Source { port: crate::cluster::free_port(), ..b.source(&a) };

    let clone = PgAction::Clone {
        source: dead.clone(),
        fork: None,
        epoch: 2,
        keep: false,
        bad_pages_too: false,
    };
    assert!(b.fail(clone.clone()).await.contains("is running"));
    let (end, _) = b.seal().await;
    b.stop(StopMode::Immediate).await;
    let said = b.fail(clone).await;
    assert!(said.contains("pg_basebackup") && said.contains("Connection refused"), "{said}");
    let rewind = PgAction::Rewind { source: dead, fork: end, epoch: 2 };
    let said = b.fail(rewind).await;
    assert!(said.contains("pg_rewind") && said.contains("Connection refused"), "{said}");
    b.start(&line(&[1, 2]), None).await;
    assert_eq!(b.park().await, (end, 2));
    assert!(b.fail(PgAction::Barrier { epoch: 1 }).await.contains("read-only"));
    b.stop(StopMode::Fast).await;

    // Another program has its port.
    let _taken = TcpListener::bind(("127.0.0.1", b.config.port)).unwrap();
    let start = PgAction::Start { line: line(&[1, 2]), source: None };
    let begun = Instant::now();
    let said = b.fail(start).await;
    assert!(said.contains("Address already in use"), "{said}");
    assert!(begun.elapsed().as_secs() < 5);
    assert!(b.fail(PgAction::Park).await.contains("Connection refused") || b.pg.pids().is_empty());

    // A leader isn't started as a standby over its head.
    let start = PgAction::Start { line: line(&[1, 2]), source: None };
    assert!(a.fail(start).await.contains("running as a primary"));
    assert!(a.fail(PgAction::Park).await.contains("is a primary"));

    // A socket path that PostgreSQL can't have.
    let mut config = cluster.config("c");
    config.run_dir = cluster.dir.path().join("x".repeat(100));
    let error = everhold_adapters::postgres::Postgres::open(config).await.err().unwrap();
    assert!(error.to_string().contains("at most 107"), "{error}");
}

#[tokio::test]
async fn a_bootstrap_that_was_given_up_is_made_again() {
    let cluster = Cluster::new();
    let a = cluster.node("a").await;
    let given_up = a.pg.run(&a.me, &PgAction::Bootstrap);
    assert!(tokio::time::timeout(Duration::from_millis(250), given_up).await.is_err());
    assert!(!a.config.data_dir.join("PG_VERSION").exists());
    a.run(PgAction::Bootstrap).await;
    a.start(&line(&[1]), None).await;
    // Started again, it is waited for; with another source, it gets that.
    let again = Node::open("a", a.config.clone()).await;
    again.start(&line(&[1]), Some(a.source(&a))).await;
    assert_eq!(again.facts().await.source, Some(a.source(&a)));
}
