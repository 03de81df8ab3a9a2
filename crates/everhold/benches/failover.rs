//! The table of outages, from the client's side. Prints; asserts nothing about time.
//!
//! `cargo bench --bench failover [-- ROW …]`: only rows whose name contains one of the words.

#[path = "../tests/stack/mod.rs"]
mod stack;

use stack::load::{Load, block_on, config, connect};
use stack::table::{self, Figures, Row};
use stack::{Stack, Wanted, signal};
use std::time::{Duration, Instant};

const ROWS: [Row<Stack>; 12] = [
    ("kill-postmaster, 20 runs", "median 0.15 s, worst 0.5 s", kill_postmaster),
    ("kill-postmaster during a long query", "worst 1 s", kill_during_query),
    ("kill-node, 10 runs", "median 1.2 s, worst 2 s", kill_node),
    ("freeze-node 20 s, 5 runs", "median 1.2 s, worst 2 s; streams within 20 s", freeze_node),
    ("freeze-postgres, 3 runs", "worst 3 s", freeze_postgres),
    ("switchover, 10 runs", "worst 0.3 s, one error per connection", switchover),
    ("etcd frozen 60 s, and 60 s after", "no failover, gap 0.5 s", freeze_etcd),
    ("agent killed", "no failover, gap 0.5 s", kill_agent),
    ("gateway killed", "no failover, gap 1 s", kill_gateway),
    ("slow disk and busy cores, 10 min", "no failover", slow_disk),
    ("all nodes killed, 6 orders", "lost 0", all_killed),
    ("standby, then primary lost", "writes flow again (preferred), lost 0", two_losses),
];

fn main() {
    table::print(&ROWS, |name| {
        let durability = if name.starts_with("standby, then") { "preferred" } else { "required" };
        let worse = name.starts_with("slow disk");
        let mut stack = Stack::start(Wanted { durability, worse, ..Wanted::default() });
        stack.whole();
        stack
    });
}

/// Repeats a fault under load; each time waits until the stack is whole again.
fn repeat(stack: &mut Stack, runs: usize, mut fault: impl FnMut(&mut Stack, usize)) -> Figures {
    let mut figures = Figures::default();
    let mut errors = 0;
    for run in 0..runs {
        stack.whole();
        let load = Load::start(stack.write_port(), &stack.password());
        std::thread::sleep(Duration::from_millis(1_500));
        let from = Instant::now();
        fault(stack, run);
        let before = load.acknowledged();
        while load.acknowledged() < before + 40 && from.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(1_500));
        figures.outages.push(load.outage_since(from - Duration::from_millis(50)));
        errors = errors.max(load.errors_since(from));
        figures.lost += load.finish().lost;
    }
    figures.note = format!("{errors} errors per connection");
    figures
}

fn kill_postmaster(stack: &mut Stack) -> Figures {
    repeat(stack, 20, |stack, _| {
        let leader = stack.leader();
        signal("KILL", &stack.postmaster(&leader).into_iter().collect::<Vec<_>>());
    })
}

fn kill_during_query(stack: &mut Stack) -> Figures {
    let (port, password) = (stack.read_port(), stack.password());
    repeat(stack, 5, move |stack, _| {
        let to = config(port, &password);
        std::thread::spawn(move || {
            block_on(async {
                if let Ok((client, _)) = connect(&to).await {
                    let sql = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM written; \
                               SELECT pg_sleep(600)";
                    let _ = client.batch_execute(sql).await;
                }
            });
        });
        std::thread::sleep(Duration::from_millis(500));
        let leader = stack.leader();
        signal("KILL", &stack.postmaster(&leader).into_iter().collect::<Vec<_>>());
    })
}

fn kill_node(stack: &mut Stack) -> Figures {
    repeat(stack, 10, |stack, _| {
        let leader = stack.leader();
        signal("KILL", &stack.node_pids(&leader));
    })
}

fn freeze_node(stack: &mut Stack) -> Figures {
    let mut back = Vec::new();
    let mut figures = repeat(stack, 5, |stack, _| {
        let leader = stack.leader();
        let pids = stack.node_pids(&leader);
        signal("STOP", &pids);
        let began = Instant::now();
        // The writers go on meanwhile; the node is resumed from a thread of its own.
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(20));
            signal("CONT", &pids);
        });
        back.push((leader, began));
    });
    std::thread::sleep(Duration::from_secs(20));
    let began = Instant::now();
    stack.whole();
    figures.note +=
        &format!("; whole again {:.1} s after the last resume", began.elapsed().as_secs_f64());
    figures
}

fn freeze_postgres(stack: &mut Stack) -> Figures {
    repeat(stack, 3, |stack, _| {
        let leader = stack.leader();
        signal("STOP", &stack.postgres_pids(&leader));
    })
}

fn switchover(stack: &mut Stack) -> Figures {
    repeat(stack, 10, |stack, _| {
        let asked = stack.command(&["switchover", "main"]).output().expect("it runs");
        if !asked.status.success() {
            eprintln!("switchover: {}", String::from_utf8_lossy(&asked.stderr));
        }
    })
}

fn freeze_etcd(stack: &mut Stack) -> Figures {
    let epoch = stack.epoch();
    let load = Load::start(stack.write_port(), &stack.password());
    std::thread::sleep(Duration::from_secs(1));
    let from = Instant::now();
    let etcd: Vec<i32> = stack.etcd_pid().into_iter().collect();
    signal("STOP", &etcd);
    std::thread::sleep(Duration::from_secs(60));
    signal("CONT", &etcd);
    std::thread::sleep(Duration::from_secs(60));
    let outages = vec![load.outage_since(from)];
    let lost = load.finish().lost;
    let note = if stack.epoch() == epoch { "no failover" } else { "FAILED OVER" };
    Figures { outages, lost, note: note.to_string() }
}

fn slow_disk(stack: &mut Stack) -> Figures {
    let epoch = stack.epoch();
    let load = Load::start(stack.write_port(), &stack.password());
    stack.preload().slow(true);
    let busy = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let spin = || {
        let busy = busy.clone();
        std::thread::spawn(move || while busy.load(std::sync::atomic::Ordering::Relaxed) {})
    };
    let spinning = [spin(), spin()];
    let from = Instant::now();
    std::thread::sleep(Duration::from_secs(600));
    let outages = vec![load.outage_since(from)];
    busy.store(false, std::sync::atomic::Ordering::Relaxed);
    for thread in spinning {
        thread.join().expect("it ends");
    }
    stack.preload().slow(false);
    let lost = load.finish().lost;
    let note = if stack.epoch() == epoch { "no failover" } else { "FAILED OVER" };
    Figures { outages, lost, note: note.to_string() }
}

fn kill_one(stack: &mut Stack, name: impl Fn(&mut Stack) -> String) -> Figures {
    let epoch = stack.epoch();
    let mut figures = repeat(stack, 5, |stack, _| {
        let name = name(stack);
        signal("KILL", &stack.agent_pid(&name).into_iter().collect::<Vec<_>>());
        std::thread::sleep(Duration::from_secs(3));
    });
    figures.note += if stack.epoch() == epoch { "; no failover" } else { "; FAILED OVER" };
    figures
}

fn kill_agent(stack: &mut Stack) -> Figures {
    kill_one(stack, Stack::leader)
}

fn kill_gateway(stack: &mut Stack) -> Figures {
    kill_one(stack, |_| "gateway".to_string())
}

/// Everything dies node by node, in every order; the newest acknowledged history must lead.
fn all_killed(stack: &mut Stack) -> Figures {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    repeat(stack, orders.len(), |stack, run| {
        for place in orders[run] {
            signal("KILL", &stack.node_pids(stack::NODES[place]));
            std::thread::sleep(Duration::from_millis(150));
        }
    })
}

fn two_losses(stack: &mut Stack) -> Figures {
    let load = Load::start(stack.write_port(), &stack.password());
    std::thread::sleep(Duration::from_secs(1));
    let leader = stack.leader();
    let standby = stack::NODES.iter().find(|n| **n != leader).expect("another").to_string();
    // Frozen, so that nothing brings them back before the end.
    let first = stack.node_pids(&standby);
    signal("STOP", &first);
    std::thread::sleep(Duration::from_secs(5));
    let from = Instant::now();
    let second = stack.node_pids(&leader);
    signal("STOP", &second);
    let before = load.acknowledged();
    while load.acknowledged() < before + 40 && from.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let outages = vec![load.outage_since(from)];
    signal("CONT", &first);
    signal("CONT", &second);
    stack.whole();
    Figures { outages, lost: load.finish().lost, note: "one node left".to_string() }
}
