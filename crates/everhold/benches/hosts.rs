//! The table of outages on three machines, from clients on a fourth. Prints; asserts nothing about
//! time.
//!
//! `cargo bench --bench hosts [-- ROW …]`: only rows whose name contains one of the words.

#[path = "../tests/hosts/mod.rs"]
mod hosts;
#[path = "../tests/stack/mod.rs"]
mod stack;

use hosts::patroni::{self, Patroni};
use hosts::{CLIENT, Hosts, NAMES, Wanted, is_whole, signal};
use stack::load::Load;
use stack::table::{self, Figures, Row};
use std::time::{Duration, Instant};

const ROWS: [Row<Hosts>; 11] = [
    ("host killed, store's leader elsewhere, 10 runs", "median 1.2 s, worst 2 s", host_killed),
    ("host killed with the store's leader, 5 runs", "worst 3 s", host_killed_with_store),
    ("cable pulled for 30 s", "median 1.2 s, worst 2 s", cable_pulled),
    ("nothing gets out of the host for 30 s", "median 1.2 s, worst 2 s", nothing_out),
    ("nothing gets into the host for 30 s", "median 1.2 s, worst 2 s", nothing_in),
    ("two of three hosts lost", "recovery under 5 s when one returns", two_lost),
    ("store without quorum for 60 s", "gap 0.5 s, no failover", no_quorum),
    ("every pair cut in turn, 10 s each", "no needless failover", pairs_cut),
    ("clock set forward and back by an hour", "no failover, lost 0", clock_set),
    ("rolling restart of PostgreSQL, 5 runs", "0.3 s per switchover", rolling_restart),
    ("rolling upgrade of Everhold, 5 runs", "0.3 s, no failover", rolling_upgrade),
];

/// Beside ours, where Patroni is installed.
const PATRONI: [Row<Patroni>; 2] = [
    ("Patroni: host killed, 2 runs", "-", patroni_killed),
    ("Patroni: cable pulled for 60 s, 2 runs", "-", patroni_unplugged),
];

fn main() {
    table::print(&ROWS, |name| {
        let worse = name.starts_with("clock");
        Hosts::start(&Wanted { worse, ..Wanted::default() })
    });
    match patroni::missing() {
        None => table::more(&PATRONI, |_| Patroni::start()),
        Some(why) => eprintln!("no rows of Patroni: {why}"),
    }
}

/// A machine that is not the one named.
fn other(than: &str) -> &'static str {
    NAMES.into_iter().find(|name| *name != than).expect("another")
}

/// Waits until every machine is in its place, whoever is asked.
fn whole(hosts: &Hosts) -> String {
    for name in NAMES {
        hosts.wait(name, "whole cluster", is_whole);
    }
    hosts.leader("a")
}

/// Moves the service until its leader and the store's are on one machine, or are not.
fn arrange(hosts: &Hosts, together: bool) -> String {
    for _ in 0..10 {
        let leader = whole(hosts);
        let Some(store) = hosts.store_leader() else { continue };
        if (leader == store) == together {
            return leader;
        }
        let to = if together { store } else { other(&store).to_string() };
        hosts.done("a", &["switchover", "main", "--to", &to]);
    }
    panic!("the leaders can't be arranged");
}

/// Waits until writes flow again, and a little longer.
fn flow(load: &Load, from: Instant) {
    let before = load.acknowledged();
    while load.acknowledged() < before + 40 && from.elapsed() < Duration::from_secs(90) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(1_500));
}

fn killed(hosts: &mut Hosts, runs: usize, together: bool) -> Figures {
    let mut figures = Figures::default();
    for _ in 0..runs {
        let leader = arrange(hosts, together);
        let load = Load::on(hosts.target());
        std::thread::sleep(Duration::from_millis(1_500));
        let from = Instant::now();
        hosts.kill(&leader);
        flow(&load, from);
        figures.outages.push(load.outage_since(from - Duration::from_millis(50)));
        hosts.revive(&leader);
        whole(hosts);
        figures.lost += load.finish().lost;
    }
    figures
}

fn host_killed(hosts: &mut Hosts) -> Figures {
    killed(hosts, 10, false)
}

fn host_killed_with_store(hosts: &mut Hosts) -> Figures {
    killed(hosts, 5, true)
}

/// Cuts the primary's machine off for 30 s, and says how long after that it took its place.
fn cut_off(hosts: &mut Hosts, cut: impl Fn(&Hosts, &str), mend: impl Fn(&Hosts, &str)) -> Figures {
    let mut figures = Figures::default();
    let mut back = Vec::new();
    for _ in 0..3 {
        let leader = arrange(hosts, false);
        let load = Load::on(hosts.target());
        std::thread::sleep(Duration::from_millis(1_500));
        let from = Instant::now();
        cut(hosts, &leader);
        flow(&load, from);
        figures.outages.push(load.outage_since(from - Duration::from_millis(50)));
        std::thread::sleep(Duration::from_secs(30).saturating_sub(from.elapsed()));
        mend(hosts, &leader);
        let mended = Instant::now();
        whole(hosts);
        back.push(mended.elapsed().as_secs_f64());
        figures.lost += load.finish().lost;
    }
    figures.note = format!(
        "back in its place after {:.1} s at most",
        back.iter().fold(0.0, |a: f64, b| a.max(*b))
    );
    figures
}

fn everybody(hosts: &Hosts, host: &str, out: bool, into: bool, open: bool) {
    for peer in NAMES.iter().chain([&CLIENT]).filter(|peer| **peer != host) {
        if out {
            hosts.way(host, peer, open);
        }
        if into {
            hosts.way(peer, host, open);
        }
    }
}

fn cable_pulled(hosts: &mut Hosts) -> Figures {
    cut_off(hosts, |hosts, host| hosts.cable(host, false), |hosts, host| hosts.cable(host, true))
}

fn nothing_out(hosts: &mut Hosts) -> Figures {
    cut_off(
        hosts,
        |hosts, host| everybody(hosts, host, true, false, false),
        |hosts, host| everybody(hosts, host, true, false, true),
    )
}

fn nothing_in(hosts: &mut Hosts) -> Figures {
    cut_off(
        hosts,
        |hosts, host| everybody(hosts, host, false, true, false),
        |hosts, host| everybody(hosts, host, false, true, true),
    )
}

/// Writes stop (the policy is `required`); the figure is from the return of one machine.
fn two_lost(hosts: &mut Hosts) -> Figures {
    let mut figures = Figures::default();
    for _ in 0..3 {
        let leader = whole(hosts);
        let load = Load::on(hosts.target());
        std::thread::sleep(Duration::from_millis(1_500));
        let others: Vec<&str> = NAMES.into_iter().filter(|name| *name != leader).collect();
        hosts.kill(others[0]);
        hosts.kill(&leader);
        std::thread::sleep(Duration::from_secs(5));
        let from = Instant::now();
        hosts.revive(&leader);
        flow(&load, from);
        figures.outages.push(load.outage_since(from));
        hosts.revive(others[0]);
        whole(hosts);
        figures.lost += load.finish().lost;
    }
    figures
}

fn no_quorum(hosts: &mut Hosts) -> Figures {
    let leader = whole(hosts);
    let epoch = hosts.epoch("a");
    let load = Load::on(hosts.target());
    std::thread::sleep(Duration::from_millis(1_500));
    let from = Instant::now();
    // Killed ones would be started again at once.
    let frozen: Vec<i32> = NAMES[1..].iter().filter_map(|name| hosts.store_pid(name)).collect();
    signal("STOP", &frozen);
    std::thread::sleep(Duration::from_secs(60));
    signal("CONT", &frozen);
    std::thread::sleep(Duration::from_secs(30));
    let outage = load.outage_since(from);
    whole(hosts);
    let now = hosts.epoch("a");
    let note =
        format!("{} members frozen, leader {leader}, epoch {epoch} then {now}", frozen.len());
    Figures { outages: vec![outage], lost: load.finish().lost, note }
}

fn pairs_cut(hosts: &mut Hosts) -> Figures {
    let mut figures = Figures::default();
    let mut failovers = 0;
    for (one, two) in [("a", "b"), ("b", "c"), ("a", "c")] {
        whole(hosts);
        let before = hosts.epoch(one);
        let load = Load::on(hosts.target());
        std::thread::sleep(Duration::from_millis(1_500));
        let from = Instant::now();
        for (x, y) in [(one, two), (two, one)] {
            hosts.way(x, y, false);
        }
        std::thread::sleep(Duration::from_secs(10));
        for (x, y) in [(one, two), (two, one)] {
            hosts.way(x, y, true);
        }
        std::thread::sleep(Duration::from_secs(3));
        figures.outages.push(load.outage_since(from));
        whole(hosts);
        failovers += hosts.epoch(one) - before;
        figures.lost += load.finish().lost;
    }
    figures.note = format!("{failovers} failovers");
    figures
}

/// Every machine's clock in turn: an hour ahead, an hour behind, right again; 5 s each.
fn clock_set(hosts: &mut Hosts) -> Figures {
    let mut figures = Figures::default();
    whole(hosts);
    let epoch = hosts.epoch("a");
    for host in NAMES {
        let load = Load::on(hosts.target());
        std::thread::sleep(Duration::from_millis(1_500));
        let from = Instant::now();
        for seconds in [3_600, -3_600, 0] {
            hosts.clock(host, seconds);
            std::thread::sleep(Duration::from_secs(5));
        }
        figures.outages.push(load.outage_since(from));
        whole(hosts);
        figures.lost += load.finish().lost;
    }
    figures.note = format!("{} failovers; etcd's own clocks stay", hosts.epoch("a") - epoch);
    figures
}

/// A fault of the leader's machine, and what ends it once writes flow and so much time has passed.
fn beside(
    patroni: &mut Patroni,
    lasts: Duration,
    fault: impl Fn(&mut Patroni, &str),
    end: impl Fn(&mut Patroni, &str),
) -> Figures {
    let mut figures = Figures::default();
    for _ in 0..2 {
        let leader = patroni.whole();
        let load = Load::on(patroni.target());
        std::thread::sleep(Duration::from_millis(1_500));
        let from = Instant::now();
        fault(patroni, &leader);
        flow(&load, from);
        figures.outages.push(load.outage_since(from - Duration::from_millis(50)));
        std::thread::sleep(lasts.saturating_sub(from.elapsed()));
        end(patroni, &leader);
        patroni.whole();
        figures.lost += load.finish().lost;
    }
    figures
}

fn patroni_killed(patroni: &mut Patroni) -> Figures {
    let revive = |patroni: &mut Patroni, host: &str| {
        patroni.hosts.cable(host, true);
        patroni.run(host);
    };
    beside(patroni, Duration::ZERO, |patroni, host| patroni.hosts.kill(host), revive)
}

fn patroni_unplugged(patroni: &mut Patroni) -> Figures {
    let cable =
        |plugged| move |patroni: &mut Patroni, host: &str| patroni.hosts.cable(host, plugged);
    beside(patroni, Duration::from_secs(60), cable(false), cable(true))
}

/// Every PostgreSQL starts anew: standbys, then the leader by way of a switchover.
fn rolling_restart(hosts: &mut Hosts) -> Figures {
    rolled_out(hosts, &["rollout", "main"], 1)
}

/// Everhold starts anew on all machines, as the program that is installed: here the same one.
fn rolling_upgrade(hosts: &mut Hosts) -> Figures {
    rolled_out(hosts, &["rollout"], 0)
}

fn rolled_out(hosts: &mut Hosts, command: &[&str], switchovers: u64) -> Figures {
    let mut figures = Figures::default();
    let mut took = Vec::new();
    for _ in 0..5 {
        whole(hosts);
        let epoch = hosts.wait("b", "status", |_| true)["services"]["main"]["epoch"].as_u64();
        let load = Load::on(hosts.target());
        std::thread::sleep(Duration::from_millis(1_500));
        let from = Instant::now();
        hosts.done("b", command);
        took.push(from.elapsed().as_secs_f64());
        std::thread::sleep(Duration::from_millis(1_500));
        figures.outages.push(load.outage_since(from));
        whole(hosts);
        let after = hosts.wait("b", "status", |_| true)["services"]["main"]["epoch"].as_u64();
        if after != epoch.map(|epoch| epoch + switchovers) {
            figures.note = "MORE THAN ITS OWN CHANGES OF LEADER; ".to_string();
        }
        figures.lost += load.finish().lost;
    }
    let longest = took.iter().fold(0.0, |a: f64, b| a.max(*b));
    figures.note += &format!("{longest:.1} s for all machines at most");
    figures
}
