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

/// With two versions, where EVERHOLD_OLD names an older one.
const OLD: [Row<Hosts>; 2] = [
    ("two versions side by side, leader lost, 20 runs", "failovers as ever", two_versions),
    ("two versions, a spec that one can't read, 2 runs", "failovers as ever", newer_spec),
];

const NEW: &str = env!("CARGO_BIN_EXE_everhold");

fn main() {
    let started = |name: &str| {
        let worse = name.starts_with("clock");
        let program = hosts::older().filter(|_| name.contains("upgrade") || name.contains("two v"));
        Hosts::start(&Wanted { worse, program, ..Wanted::default() })
    };
    table::print(&ROWS, started);
    match hosts::older() {
        Some(_) => table::more(&OLD, started),
        None => eprintln!("no rows of two versions: EVERHOLD_OLD names no older one"),
    }
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
        let outage = lose_leader(hosts, together, &mut figures.lost, Hosts::kill);
        figures.outages.push(outage);
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

/// Everhold starts anew on all machines, as the program that is installed: the same one, or, with
/// EVERHOLD_OLD, from that one to this and back.
fn rolling_upgrade(hosts: &mut Hosts) -> Figures {
    let Some(old) = hosts::older() else { return rolled_out(hosts, &["rollout"], 0) };
    let (mut up, mut back) = (Rolled::default(), Rolled::default());
    for _ in 0..5 {
        for (program, rolled) in [(NEW.as_ref(), &mut up), (old.as_path(), &mut back)] {
            NAMES.iter().for_each(|host| hosts.install(host, program));
            roll_out(hosts, &["rollout"], 0, rolled);
            assert!(NAMES.iter().all(|host| hosts.is_renewed(host)), "all of one version");
        }
    }
    let (gap, lost) = (back.figures.outages.iter().max().copied(), back.figures.lost);
    let back = back.figures().note;
    let mut figures = up.figures();
    let gap = gap.unwrap_or_default().as_secs_f64();
    figures.note += &format!("; back to the older version: worst {gap:.3} s, lost {lost}, {back}");
    figures
}

/// What rollouts were like so far.
#[derive(Default)]
struct Rolled {
    figures: Figures,
    longest: Duration,
}

impl Rolled {
    fn figures(self) -> Figures {
        let Rolled { mut figures, longest } = self;
        figures.note += &format!("{:.1} s for all machines at most", longest.as_secs_f64());
        figures
    }
}

fn rolled_out(hosts: &mut Hosts, command: &[&str], switchovers: u64) -> Figures {
    let mut rolled = Rolled::default();
    for _ in 0..5 {
        roll_out(hosts, command, switchovers, &mut rolled);
    }
    rolled.figures()
}

fn roll_out(hosts: &mut Hosts, command: &[&str], switchovers: u64, rolled: &mut Rolled) {
    let figures = &mut rolled.figures;
    whole(hosts);
    let epoch = hosts.epoch("b");
    let load = Load::on(hosts.target());
    std::thread::sleep(Duration::from_millis(1_500));
    let from = Instant::now();
    hosts.done("b", command);
    let took = from.elapsed();
    rolled.longest = rolled.longest.max(took);
    std::thread::sleep(Duration::from_millis(1_500));
    let outage = load.outage_since(from);
    eprintln!("everhold {command:?}: {took:.1?}, worst gap {outage:.3?}");
    figures.outages.push(outage);
    whole(hosts);
    if hosts.epoch("b") != epoch + switchovers {
        figures.note = "MORE THAN ITS OWN CHANGES OF LEADER; ".to_string();
    }
    figures.lost += load.finish().lost;
}

/// One machine of this version beside two older ones, and two beside one.
fn two_versions(hosts: &mut Hosts) -> Figures {
    let mut figures = Figures::default();
    for new in ["b", "c"] {
        whole(hosts);
        hosts.install(new, NEW.as_ref());
        hosts.renew(new);
        let (mut servers, mut machines) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            servers.push(lose_leader(hosts, false, &mut figures.lost, kill_server));
            machines.push(lose_leader(hosts, false, &mut figures.lost, Hosts::kill));
        }
        for (what, outages) in [("server", &mut servers), ("machine", &mut machines)] {
            outages.sort();
            let median = outages[outages.len() / 2].as_secs_f64();
            let worst = outages[outages.len() - 1].as_secs_f64();
            let of = if new == "b" { "1 new" } else { "2 new" };
            figures.note +=
                &format!("{of}, {what} killed: median {median:.3} s, worst {worst:.3} s; ");
        }
        figures.outages.extend(servers);
        figures.outages.extend(machines);
    }
    figures
}

/// A spec of a newer form, given to the one machine that knows it: the others say so, go on by what
/// they know, write nothing over it, and read it once they are of that version.
fn newer_spec(hosts: &mut Hosts) -> Figures {
    let mut figures = Figures::default();
    whole(hosts);
    hosts.install("a", NEW.as_ref());
    hosts.renew("a");
    whole(hosts);
    let spec = hosts.spec(&Wanted::default())
        + "[repository.vault]\nurl = \"file:///var/backups/everhold\"\n\
           key_file = \"/etc/everhold/vault.key\"\n\
           [service.main.backup]\nrepositories = [\"vault\"]\n";
    std::fs::write(hosts.spec_file(), spec).expect("written");
    hosts.done("a", &["apply", &hosts.spec_file().display().to_string()]);
    let refused = |status: &serde_json::Value| status["holds"].to_string().contains("E104");
    let record = |hosts: &Hosts| {
        let key = "/everhold/shop/spec";
        String::from_utf8(hosts.etcdctl("a", &["get", key, "--print-value-only"]).stdout)
    };
    let written = record(hosts).expect("text");
    for host in ["b", "c"] {
        let held = hosts.wait(host, "hold", refused);
        eprintln!("{host}: {}", held["holds"]);
    }
    let output = hosts.everhold("b", &["node", "drain", "c"]);
    eprintln!("drain: {}", String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "an older version changed what it can't read");
    for _ in 0..2 {
        let outage = lose_leader(hosts, false, &mut figures.lost, kill_server);
        figures.outages.push(outage);
    }
    assert_eq!(record(hosts).expect("text"), written, "it was written over");
    NAMES.iter().for_each(|host| hosts.install(host, NEW.as_ref()));
    hosts.done("b", &["rollout"]);
    for host in NAMES {
        hosts.wait(host, "cluster without holds", |status| is_whole(status) && !refused(status));
    }
    assert_eq!(record(hosts).expect("text"), written, "it was written over");
    // Nobody goes back to what can't read it.
    let old = hosts::older().expect("an older version");
    NAMES.iter().for_each(|host| hosts.install(host, &old));
    let output = hosts.on("b", NEW).arg("rollout").output().expect("it runs");
    eprintln!("back: {}", String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success() && NAMES.iter().all(|host| hosts.runs(host)), "still there");
    whole(hosts);
    figures
}

fn kill_server(hosts: &mut Hosts, leader: &str) {
    let main = &hosts.wait("a", "status", |_| true)["services"]["main"];
    let pid = main["instances"][leader]["pid"].as_i64().expect("a server");
    signal("KILL", &[pid as i32]);
}

/// The outage when the leader's server or machine is lost.
fn lose_leader(
    hosts: &mut Hosts,
    with_store: bool,
    lost: &mut usize,
    fault: impl FnOnce(&mut Hosts, &str),
) -> Duration {
    let leader = arrange(hosts, with_store);
    let load = Load::on(hosts.target());
    std::thread::sleep(Duration::from_millis(1_500));
    let from = Instant::now();
    fault(hosts, &leader);
    flow(&load, from);
    let outage = load.outage_since(from - Duration::from_millis(50));
    eprintln!("{leader} lost: {outage:.3?}");
    if hosts.processes(&leader).is_empty() {
        hosts.revive(&leader);
    }
    whole(hosts);
    *lost += load.finish().lost;
    outage
}
