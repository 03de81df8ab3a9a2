//! Losses that heal by themselves, seen from a client's side.

use crate::stack::load::{Load, block_on, config, connect};
use crate::stack::{NODES, Stack, Wanted, signal, torture};
use std::time::Duration;

/// Seconds of random faults in the suite; `make torture` runs longer.
const TORTURE_SECONDS: u64 = 45;

#[test]
fn each_way_to_lose_a_primary_heals_and_loses_nothing() {
    let mut stack = Stack::start(Wanted::default());
    stack.whole();
    let load = Load::start(stack.write_port(), &stack.password());
    std::thread::sleep(Duration::from_millis(500));
    let epoch = stack.epoch();

    let leader = stack.leader();
    signal("KILL", &stack.postmaster(&leader).into_iter().collect::<Vec<_>>());
    load.flows();
    stack.whole();

    let leader = stack.leader();
    signal("KILL", &stack.node_pids(&leader));
    load.flows();
    stack.whole();

    let leader = stack.leader();
    let frozen = stack.machine_pids(&leader);
    let config = config(stack.write_port(), &stack.password());
    block_on(async {
        let (session, _) = connect(&config).await.expect("a session");
        signal("STOP", &frozen);
        load.flows();
        // The old leader can't end it, and would answer from the past when it wakes.
        for _ in 0..600 {
            if session.is_closed() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("a session with the frozen leader was not cut in 60 s");
    });
    signal("CONT", &frozen);
    stack.whole();
    assert_ne!(stack.leader(), leader, "the frozen node has not taken over again");
    assert!(stack.epoch() >= epoch + 3, "each loss was a failover");

    let seen = load.finish();
    assert_eq!(seen.lost, 0);
    assert!(seen.acknowledged > 100);
}

#[test]
fn what_a_leader_could_acknowledge_alone_is_acknowledged_by_nobody() {
    let mut stack = Stack::start(Wanted::default());
    stack.whole();
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    let leader = stack.leader();
    torture::isolate(&mut stack, || {
        load.flows();
    });
    stack.whole();
    assert_ne!(stack.leader(), leader);
    assert_eq!(load.finish().lost, 0);
}

#[test]
fn everything_stopped_or_killed_comes_back_with_its_data() {
    let mut stack = Stack::start(Wanted::default());
    stack.whole();
    let load = Load::start(stack.write_port(), &stack.password());
    std::thread::sleep(Duration::from_secs(1));
    for node in NODES {
        signal("KILL", &stack.node_pids(node));
    }
    load.flows();
    assert_eq!(load.finish().lost, 0);

    let load = Load::start(stack.write_port(), &stack.password());
    std::thread::sleep(Duration::from_millis(500));
    stack.kill_up();
    load.flows();
    stack.up();
    load.flows();
    let seen = load.finish();
    assert_eq!(seen.lost, 0);

    stack.interrupt();
    for node in NODES {
        assert!(stack.postgres_pids(node).is_empty(), "{node} was stopped");
    }
    stack.up();
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    assert_eq!(load.finish().lost, 0);
}

#[test]
fn a_store_that_is_gone_stops_nothing() {
    let mut stack = Stack::start(Wanted::default());
    stack.whole();
    let epoch = stack.epoch();
    let load = Load::start(stack.write_port(), &stack.password());
    let etcd: Vec<i32> = stack.etcd_pid().into_iter().collect();
    assert!(!etcd.is_empty());
    signal("STOP", &etcd);
    std::thread::sleep(Duration::from_secs(15));
    load.flows();
    signal("CONT", &etcd);
    std::thread::sleep(Duration::from_secs(5));
    load.flows();
    assert_eq!(stack.epoch(), epoch, "no failover");
    assert_eq!(load.finish().lost, 0);
}

#[test]
fn random_faults_lose_nothing() {
    torture::run::<Stack>(TORTURE_SECONDS, 20_261_120);
}
