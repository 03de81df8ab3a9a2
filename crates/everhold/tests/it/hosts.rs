//! Three machines with a cable each, end to end.

#[path = "../hosts/mod.rs"]
mod hosts;

use crate::stack::load::Load;
use hosts::{Hosts, Wanted};
use std::time::{Duration, Instant};

#[test]
fn a_machine_that_is_gone_is_missed_and_comes_back() {
    let mut hosts = Hosts::start(&Wanted::default());
    let status = hosts.status("b").expect("a status");
    assert_eq!(status["answered_by"], "b");
    println!("store leader {:?}", hosts.store_leader());
    let load = Load::on(hosts.target());
    std::thread::sleep(Duration::from_secs(3));
    let leader = hosts.leader("b");
    let from = Instant::now();
    hosts.kill(&leader);
    let before = load.acknowledged();
    while load.acknowledged() < before + 50 && from.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("outage {:?}", load.outage_since(from));
    hosts.revive(&leader);
    let other = if leader == "a" { "b" } else { "a" };
    hosts.wait(other, "whole cluster", hosts::is_whole);
    println!("whole after {:?}", from.elapsed());
    let seen = load.finish();
    assert_eq!(seen.lost, 0);
    println!("{} acknowledged", seen.acknowledged);
}
