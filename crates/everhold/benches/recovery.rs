//! What recoveries take and backups cost, from the client's side. Prints; asserts nothing about time.
//!
//! `cargo bench --bench recovery [-- ROW …]`: only rows whose name contains one of the words.

#[path = "../tests/stack/mod.rs"]
mod stack;

use stack::load::Load;
use stack::table::{self, Figures, Row};
use stack::{NODES, Stack, Wanted, random, signal};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ROWS: [Row<Stack>; 4] = [
    ("all machines and disks lost, 10 runs", "RTO 30 s, RPO 1.5 s, 10 of 10", everything_lost),
    ("put back in place, 5 runs", "-", in_place),
    ("full backups under pgbench, 5 pairs", "costs at most 10 %", under_load),
    ("kill -9 of backup, prune, proof and restore, 50 times", "all goes on", kills),
];

/// Where the distribution has PostgreSQL's programs.
const BIN: &str = "/usr/lib/postgresql/15/bin";
const SCALE: &str = "20";
const SECONDS: &str = "15";

fn main() {
    table::print(&ROWS, |_| {
        let mut stack = Stack::new(Wanted { repositories: &["vault"], ..Wanted::default() });
        let mut key = fs::OpenOptions::new();
        let key = key.write(true).create_new(true).mode(0o600).open(stack.key_file("vault"));
        key.expect("a key file").write_all(b"a password\n").expect("written");
        stack.up();
        stack.whole();
        stack.done(&["repository", "init"]);
        stack.wait("first backup", |it| it["services"]["main"]["backup"]["newest"].is_string());
        stack
    });
}

/// Every machine with its disk goes at a random moment under load; new ones start, with the
/// repository alone. Outages are from their start to the first write through the gateway.
fn everything_lost(stack: &mut Stack) -> Figures {
    let mut figures = Figures::default();
    let mut missing = Vec::new();
    for _ in 0..10 {
        let load = Load::start(stack.write_port(), &stack.password());
        load.flows();
        std::thread::sleep(Duration::from_millis(3_000 + random::seed() % 4_000));
        let mut pids: Vec<i32> = NODES.iter().flat_map(|node| stack.machine_pids(node)).collect();
        pids.extend(stack.etcd_pid());
        pids.extend(stack.agent_pid("gateway"));
        pids.sort_unstable();
        // First, so that it starts nothing again.
        stack.kill_up();
        signal("KILL", &pids);
        let told = load.abandon();
        signal("KILL", &stack.pids_in(&stack.data()));
        let _ = fs::remove_dir_all(stack.data());

        let began = Instant::now();
        stack.begin();
        while !stack
            .command(&["recover", "main", "--json"])
            .output()
            .is_ok_and(|it| it.status.success())
        {
            std::thread::sleep(Duration::from_millis(100));
        }
        let again = Load::start(stack.write_port(), &stack.password());
        while again.acknowledged() == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        figures.outages.push(began.elapsed());
        again.finish();
        let rows = rows(stack);
        let last = told.last().expect("something acknowledged").0;
        let lost = told.iter().filter(|(_, writer, n)| !rows.contains(&(*writer as i64, *n)));
        let oldest = lost.map(|(at, ..)| *at).min();
        missing.push(oldest.map_or(Duration::ZERO, |at| last.duration_since(at)));
        eprintln!("back after {:?}, {:?} missing", figures.outages.last(), missing.last());
        stack.whole();
    }
    missing.sort();
    let within = missing.iter().filter(|it| **it <= Duration::from_millis(1_500)).count();
    figures.note = format!(
        "RPO median {:.3} s, worst {:.3} s, {within} of {} within 1.5 s",
        missing[missing.len() / 2].as_secs_f64(),
        missing[missing.len() - 1].as_secs_f64(),
        missing.len(),
    );
    figures
}

fn rows(stack: &Stack) -> std::collections::BTreeSet<(i64, i64)> {
    let sql = "SELECT writer, n FROM written";
    let told = stack.done(&["psql", "main", "--", "-XAt", "-F", " ", "-c", sql]);
    let row = |line: &str| {
        let (writer, n) = line.split_once(' ')?;
        Some((writer.parse().ok()?, n.parse().ok()?))
    };
    told.lines().filter_map(row).collect()
}

/// The running service goes back to the end of its log: how long nobody acknowledges.
fn in_place(stack: &mut Stack) -> Figures {
    let mut figures = Figures::default();
    for _ in 0..5 {
        stack.whole();
        let load = Load::start(stack.write_port(), &stack.password());
        load.flows();
        let from = Instant::now();
        let token = format!("{}:latest", stack.epoch());
        stack.done(&["recover", "main", "--token", &token]);
        load.flows();
        figures.outages.push(load.outage_since(from));
        let _ = load.abandon();
        std::thread::sleep(Duration::from_secs(3));
    }
    figures.note =
        "without a write; what was acknowledged since the restore began is given up".into();
    figures
}

/// pgbench alone and beside one full backup after the other, in turns.
fn under_load(stack: &mut Stack) -> Figures {
    pgbench(stack, &["-i", "-q", "-s", SCALE]);
    stack.done(&["backup", "now", "main", "--full"]);
    let mut shares = Vec::new();
    for _ in 0..5 {
        let alone = pgbench(stack, &["-c", "8", "-j", "2", "-T", SECONDS]);
        let stop = AtomicBool::new(false);
        let (beside, made) = std::thread::scope(|scope| {
            let shared = &*stack;
            let made = scope.spawn(|| {
                let mut made = 0;
                while !stop.load(Ordering::Relaxed) {
                    shared.done(&["backup", "now", "main", "--full"]);
                    made += 1;
                }
                made
            });
            let beside = pgbench(shared, &["-c", "8", "-j", "2", "-T", SECONDS]);
            stop.store(true, Ordering::Relaxed);
            (beside, made.join().unwrap_or(0))
        });
        shares.push((beside / alone, alone, made));
    }
    shares.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (share, alone, made) = shares[shares.len() / 2];
    let note = format!(
        "median {:.1} % of {alone:.0} transactions/s lost beside {made} full backups in {SECONDS} s; \
         shares {:?}",
        (1.0 - share) * 100.0,
        shares.iter().map(|(share, ..)| (share * 1000.0).round() / 1000.0).collect::<Vec<_>>()
    );
    Figures { note, ..Figures::default() }
}

/// Whoever does the work is killed at a random moment of it, under writes; in the end everything works
/// and all that is listed is proven.
fn kills(stack: &mut Stack) -> Figures {
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    let mut random = random::Random::new(random::seed());
    let to = stack.dir().join("beside").display().to_string();
    let restore = ["restore", "main", "--over", "--to", &to];
    let tasks: [&[&str]; 5] = [
        &["backup", "now", "main", "--full"],
        &["backup", "now", "main"],
        &["backup", "prune", "main"],
        &["backup", "prove", "main"],
        &restore,
    ];
    let mut killed = [0; 5];
    while killed.iter().sum::<u32>() < 50 {
        let at = usize::try_from(random.below(5)).unwrap_or(0);
        let mut command = stack.command(tasks[at]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
        std::thread::sleep(Duration::from_millis(random.below(2_500)));
        let mut pids = helpers(stack);
        let alone = at == 4 && child.try_wait().is_ok_and(|ended| ended.is_none());
        pids.extend(i32::try_from(child.id()).ok().filter(|_| alone));
        killed[at] += u32::from(!pids.is_empty());
        signal("KILL", &pids);
        let _ = child.wait();
    }
    stack.done(&tasks[0].iter().copied().chain(["--json"]).collect::<Vec<_>>());
    stack.done(tasks[2]);
    stack.done(&restore);
    let listed = stack.done(&["backup", "list", "main", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let mut proven = 0;
    for backup in listed["backups"].as_array().expect("a list") {
        stack.done(&["backup", "prove", "main", backup["id"].as_str().expect("an id")]);
        proven += 1;
    }
    stack.whole();
    let note = format!(
        "killed: {} full, {} incremental, {} prunes, {} proofs, {} restores; then {proven} listed \
         backups, all proven",
        killed[0], killed[1], killed[2], killed[3], killed[4]
    );
    Figures { note, lost: load.finish().lost, ..Figures::default() }
}

/// Workers and forgetters of this stack.
fn helpers(stack: &mut Stack) -> Vec<i32> {
    let (dir, up) = (stack.dir().display().to_string(), stack.up_pid());
    let is_one = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|it| it.1.split(' ').nth(1)?.parse().ok());
        (line.starts_with("everhold worker") && line.contains(&dir))
            || (line.starts_with("everhold forget") && up.is_some() && parent == up)
    };
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    all.filter_map(|it| it.file_name().to_str()?.parse().ok()).filter(is_one).collect()
}

/// Transactions per second, if it says so.
fn pgbench(stack: &Stack, arguments: &[&str]) -> f64 {
    let mut command = Command::new(format!("{BIN}/pgbench"));
    command.args(["-h", "127.0.0.1", "-U", "app", "-p", &stack.write_port().to_string()]);
    command.args(arguments).arg("app").env("PGPASSWORD", stack.password());
    let output = command.output().expect("pgbench");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let tps =
        text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.unwrap_or(0.0)
}
