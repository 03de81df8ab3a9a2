//! Random faults of machines, their cables, clocks, disks and processes; up to two at a time.

use super::{CLIENT, Hosts, NAMES, Wanted, is_whole, signal};
use crate::stack::load::Load;
use crate::stack::random::Random;
use crate::stack::torture::Torn;
use std::time::{Duration, Instant};

/// A third one would leave nobody to go on.
const AT_ONCE: usize = 2;

/// Something broken that is to be mended.
enum Broken {
    Host(&'static str),
    Cable(&'static str),
    Ways(Vec<(&'static str, &'static str)>),
    Frozen(Vec<i32>),
    Clock(&'static str),
    Disk(&'static str),
}

/// Machines that are torn, and what is broken of them.
pub struct Torment {
    hosts: Hosts,
    broken: Vec<(Instant, String, Broken)>,
}

impl Torn for Torment {
    fn start(random: &mut Random) -> Torment {
        let durability = *random.pick(&["required", "preferred"]);
        println!("  durability {durability}");
        let hosts = Hosts::start(&Wanted { durability, worse: true, ..Wanted::default() });
        Torment { hosts, broken: Vec::new() }
    }

    fn load(&self) -> Load {
        Load::on(self.hosts.target())
    }

    fn fault(&mut self, random: &mut Random) -> String {
        if let Some(host) = self.restart() {
            return format!("`run` started again on {host}");
        }
        let now = Instant::now();
        let due = self.broken.iter().position(|(until, ..)| *until <= now);
        if let Some(place) = due.or((self.broken.len() >= AT_ONCE).then_some(0)) {
            let (_, what, broken) = self.broken.remove(place);
            self.mend(&broken);
            return format!("{what}: mended");
        }
        let host = *random.pick(&NAMES);
        let lasts = Duration::from_millis(500 + random.below(20_000));
        let (what, broken) = self.break_one(host, random);
        if let Some(broken) = broken {
            self.broken.push((now + lasts, what.clone(), broken));
        }
        what
    }

    fn heal(&mut self) {
        for (_, _, broken) in std::mem::take(&mut self.broken) {
            self.mend(&broken);
        }
        while self.restart().is_some() {}
        for host in NAMES {
            self.hosts.wait(host, "whole cluster", is_whole);
        }
    }
}

impl Torment {
    /// Starts a machine's `run` again that was killed alone, as systemd does.
    fn restart(&mut self) -> Option<&'static str> {
        let killed = |host| {
            self.broken.iter().any(|it| matches!(it.2, Broken::Host(killed) if killed == host))
        };
        let up: Vec<_> = NAMES.into_iter().filter(|host| !killed(*host)).collect();
        let host = up.into_iter().find(|host| !self.hosts.runs(host))?;
        self.hosts.run(host);
        Some(host)
    }

    fn break_one(&mut self, host: &'static str, random: &mut Random) -> (String, Option<Broken>) {
        let other = *random.pick(&NAMES.map(|name| if name == host { CLIENT } else { name }));
        let everybody = NAMES.iter().chain([&CLIENT]).copied().filter(|name| *name != host);
        let hosts = &mut self.hosts;
        match random.below(14) {
            0 | 1 => {
                hosts.kill(host);
                (format!("host {host} killed"), Some(Broken::Host(host)))
            }
            2 => {
                hosts.cable(host, false);
                (format!("cable of {host} pulled"), Some(Broken::Cable(host)))
            }
            3 => {
                let ways: Vec<_> = everybody.map(|to| (host, to)).collect();
                (format!("nothing gets out of {host}"), Some(cut(hosts, ways)))
            }
            4 => {
                let ways: Vec<_> = everybody.map(|from| (from, host)).collect();
                (format!("nothing gets into {host}"), Some(cut(hosts, ways)))
            }
            5 => {
                let ways = vec![(host, other), (other, host)];
                (format!("{host} and {other} cut off from each other"), Some(cut(hosts, ways)))
            }
            6 => (format!("no way from {host} to {other}"), Some(cut(hosts, vec![(host, other)]))),
            7 => (format!("all of {host} frozen"), Some(freeze(hosts.processes(host)))),
            8 => {
                let members = NAMES.iter().filter_map(|name| hosts.store_pid(name));
                let two = members.take(2).collect();
                ("two members of the store frozen".to_string(), Some(freeze(two)))
            }
            9 => {
                let pids: Vec<i32> = hosts.store_pid(host).into_iter().collect();
                signal("KILL", &pids);
                (format!("member of the store on {host} killed"), None)
            }
            10 => {
                let pids = hosts.processes(host);
                let pid = if pids.is_empty() { Vec::new() } else { vec![*random.pick(&pids)] };
                signal("KILL", &pid);
                (format!("a process on {host} killed"), None)
            }
            11 | 12 => {
                let seconds = *random.pick(&[3_600, -3_600]);
                hosts.clock(host, seconds);
                (format!("clock of {host} set by {seconds} s"), Some(Broken::Clock(host)))
            }
            _ => {
                hosts.slow_disk(host, true);
                (format!("disk of {host} slow"), Some(Broken::Disk(host)))
            }
        }
    }

    fn mend(&mut self, broken: &Broken) {
        let hosts = &mut self.hosts;
        match broken {
            // Another fault may have killed it again, and been mended.
            Broken::Host(host) if hosts.runs(host) => hosts.cable(host, true),
            Broken::Host(host) => hosts.revive(host),
            Broken::Cable(host) => hosts.cable(host, true),
            Broken::Ways(ways) => ways.iter().for_each(|(from, to)| hosts.way(from, to, true)),
            Broken::Frozen(pids) => signal("CONT", pids),
            Broken::Clock(host) => hosts.clock(host, 0),
            Broken::Disk(host) => hosts.slow_disk(host, false),
        }
    }
}

fn cut(hosts: &Hosts, ways: Vec<(&'static str, &'static str)>) -> Broken {
    ways.iter().for_each(|(from, to)| hosts.way(from, to, false));
    Broken::Ways(ways)
}

fn freeze(pids: Vec<i32>) -> Broken {
    signal("STOP", &pids);
    Broken::Frozen(pids)
}
