//! A server that doesn't answer, and processes that outlive it.

use crate::cluster::{Cluster, line, signal, value};
use everhold_adapters::postgres::probe;
use everhold_core::postgres::{PgAction, Process, StopMode};
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_frozen_server_is_seen_and_stopped() {
    let cluster = Cluster::new();
    let a = cluster.leader("a").await;
    assert_eq!(a.facts().await.in_recovery, Some(false));
    let pids = a.pg.pids();
    pids.iter().for_each(|pid| signal(*pid, "STOP"));
    for _ in 0..2 {
        let begun = Instant::now();
        let facts = a.facts().await;
        assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
        assert_eq!((facts.process, facts.pid), (Process::Running, Some(facts.pid.unwrap())));
        assert_eq!((facts.in_recovery, facts.sync_names), (None, None));
    }
    let password = &a.config.replication_password_file;
    let asked = probe("127.0.0.1", a.config.port, password, None, Duration::from_millis(300)).await;
    assert!(asked.unwrap_err().to_string().contains("no answer within 300 ms"));

    // Thawed, it answers again.
    pids.iter().for_each(|pid| signal(*pid, "CONT"));
    assert_eq!(a.facts().await.in_recovery, Some(false));

    a.pg.pids().iter().for_each(|pid| signal(*pid, "STOP"));
    let begun = Instant::now();
    a.stop(StopMode::Immediate).await;
    println!("frozen server ended in {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    a.start(&line(&[1, 2]), None).await;
    a.park().await;
}

#[tokio::test]
async fn processes_that_outlive_the_postmaster_are_ended() {
    let cluster = Cluster::new();
    let a = cluster.leader("a").await;
    a.run(PgAction::SetSync { names: String::new() }).await;
    let client = a.admin().await;
    let backend: i32 = value(&client, "SELECT pg_backend_pid()").await.parse().unwrap();
    // A backend that can't notice anything.
    signal(backend, "STOP");
    a.kill_postmaster().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(a.facts().await.process, Process::Remains);
    assert_eq!(a.pg.pids(), [backend]);
    let start = PgAction::Start { line: line(&[1, 2]), source: None };
    assert!(a.fail(start.clone()).await.contains(&backend.to_string()));
    // A shell in the directory is nobody's.
    let mut shell = std::process::Command::new("sleep")
        .arg("60")
        .current_dir(&a.config.data_dir)
        .spawn()
        .unwrap();
    a.stop(StopMode::Immediate).await;
    assert!(shell.try_wait().unwrap().is_none());
    shell.kill().unwrap();
    shell.wait().unwrap();
    assert_eq!(a.facts().await.process, Process::Down);
    a.run(start).await;
    a.stop(StopMode::Fast).await;
}
