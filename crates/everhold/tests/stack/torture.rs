//! Random faults at random moments.

use crate::stack::load::Load;
use crate::stack::random::Random;
use crate::stack::{NODES, Stack, Wanted, signal};
use std::time::{Duration, Instant};

/// Shorter than what a standby is missed after.
const ALONE: Duration = Duration::from_millis(400);

/// What can be broken at random, healed, and written to meanwhile.
pub trait Torn {
    /// A whole one, of a kind that the seed decides.
    fn start(random: &mut Random) -> Self;
    fn load(&self) -> Load;
    /// Breaks something, or ends what was broken, and says what.
    fn fault(&mut self, random: &mut Random) -> String;
    /// Ends everything that was broken, and waits until it is whole.
    fn heal(&mut self);
}

/// Runs for so long, then heals everything and looks for what was lost.
pub fn run<T: Torn>(seconds: u64, seed: u64) {
    println!("torture: {seconds} s, seed {seed}");
    let mut random = Random::new(seed);
    let mut torn = T::start(&mut random);
    let load = torn.load();
    let began = Instant::now();
    let mut faults = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(200 + random.below(6_000)));
        let at = began.elapsed().as_secs_f64();
        println!("  {at:7.1} s: {}", torn.fault(&mut random));
        faults += 1;
    }
    let healing = Instant::now();
    torn.heal();
    let healed = healing.elapsed().as_secs_f64();
    let seen = load.finish();
    println!(
        "torture: {faults} faults, {} acknowledged, {} errors, longest gap {:.1} s, whole {healed:.1} s \
         after the last, lost {}",
        seen.acknowledged,
        seen.errors.len(),
        seen.outage.as_secs_f64(),
        seen.lost
    );
    assert_eq!(seen.lost, 0, "acknowledged rows are gone; seed {seed}");
}

impl Torn for Stack {
    fn start(random: &mut Random) -> Stack {
        let durability = *random.pick(&["required", "preferred"]);
        let mut stack = Stack::start(Wanted { durability, ..Wanted::default() });
        stack.whole();
        stack
    }

    fn load(&self) -> Load {
        Load::start(self.write_port(), &self.password())
    }

    fn fault(&mut self, random: &mut Random) -> String {
        fault(self, random)
    }

    fn heal(&mut self) {
        thaw(self);
        self.whole();
    }
}

/// Resumes whatever is frozen.
fn thaw(stack: &Stack) {
    let mut pids: Vec<i32> = NODES.iter().flat_map(|node| stack.node_pids(node)).collect();
    pids.extend(stack.etcd_pid());
    pids.extend(stack.agent_pid("gateway"));
    signal("CONT", &pids);
}

/// The leader is alone for a moment and then frozen; its standbys lose what was on its way to them,
/// and elect one of themselves. Whatever the leader acknowledged in that moment is lost.
pub fn isolate(stack: &mut Stack, meanwhile: impl FnOnce()) {
    let status = stack.status().unwrap_or_default();
    let Some(leader) = status["services"]["main"]["leader"].as_str() else { return };
    let others: Vec<i32> = NODES
        .iter()
        .filter(|node| **node != leader)
        .flat_map(|node| stack.postgres_pids(node))
        .collect();
    signal("STOP", &others);
    std::thread::sleep(ALONE);
    let machine = stack.machine_pids(leader);
    signal("STOP", &machine);
    signal("KILL", &others);
    meanwhile();
    signal("CONT", &machine);
}

fn fault(stack: &mut Stack, random: &mut Random) -> String {
    let node = *random.pick(&NODES);
    let some = |pid: Option<i32>| pid.into_iter().collect::<Vec<_>>();
    let (what, pids, kill) = match random.below(14) {
        0 | 1 => ("kill postmaster of", some(stack.postmaster(node)), true),
        2 | 3 => ("kill all of", stack.node_pids(node), true),
        4 => ("kill agent of", some(stack.agent_pid(node)), true),
        5 => ("freeze all of", stack.node_pids(node), false),
        6 => ("freeze postgres of", stack.postgres_pids(node), false),
        7 => ("freeze agent of", some(stack.agent_pid(node)), false),
        8 => ("freeze etcd, not", some(stack.etcd_pid()), false),
        9 => ("kill etcd, not", some(stack.etcd_pid()), true),
        10 => ("kill gateway, not", some(stack.agent_pid("gateway")), true),
        11 | 12 => {
            let pause = Duration::from_millis(2_000 + random.below(4_000));
            isolate(stack, || std::thread::sleep(pause));
            return "isolate the leader".to_string();
        }
        _ => {
            let _ = stack.command(&["switchover", "main"]).output();
            return "switchover".to_string();
        }
    };
    if kill {
        signal("KILL", &pids);
    } else {
        signal("STOP", &pids);
        std::thread::sleep(Duration::from_millis(100 + random.below(8_000)));
        signal("CONT", &pids);
    }
    format!("{what} {node}")
}
