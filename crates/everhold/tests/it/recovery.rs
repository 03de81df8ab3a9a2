//! A service put back to how it was: in the running cluster, and from nothing but its repository.

use crate::backups::{
    after_the_last_commit, first_backup, json, look, refused, stack, stack_of, vault,
};
use crate::stack::disk::Filling;
use crate::stack::load::Load;
use crate::stack::{NODES, PATIENCE, Stack, Wanted, signal};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

fn psql(stack: &Stack, sql: &str) -> String {
    stack.done(&["psql", "main", "--", "-XAt", "-c", sql]).trim().to_string()
}

fn archived(stack: &mut Stack) {
    let upto = psql(stack, "SELECT pg_current_wal_flush_lsn()");
    let upto = place(&upto);
    stack.wait("archived log", |status| {
        let log = status["services"]["main"]["backup"]["log_lsn"].as_str();
        log.is_some_and(|lsn| place(lsn) >= upto)
    });
}

fn place(lsn: &str) -> u64 {
    let (high, low) = lsn.split_once('/').unwrap_or(("0", "0"));
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
    (hex(high) << 32) + hex(low)
}

/// The piece of the log that ends last.
fn last_piece(vault: &Path) -> PathBuf {
    let within = |dir: PathBuf| {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|it| it.path()).collect::<Vec<_>>()
    };
    let branches = within(vault.join("main/log")).into_iter().flat_map(within);
    let ends = |path: &PathBuf| {
        let (range, _) = path.file_name()?.to_str()?.split_once('.')?;
        u64::from_str_radix(range.split_once('-')?.1, 16).ok()
    };
    branches.flat_map(within).filter(|it| ends(it).is_some()).max_by_key(ends).expect("a piece")
}

/// Waits until a leader left a mark after now.
fn marked(stack: &Stack) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_millis();
    let until = Instant::now() + PATIENCE;
    let marks = |dir: &Path| -> Vec<PathBuf> {
        let logs = fs::read_dir(dir.join("main/log")).into_iter().flatten().flatten();
        let marks = logs.flat_map(|it| fs::read_dir(it.path().join("marks")).into_iter().flatten());
        marks.flatten().map(|it| it.path()).collect()
    };
    let is_new = |path: &PathBuf| {
        let name = path.file_stem().and_then(|it| it.to_str()).unwrap_or_default();
        u128::from_str_radix(name, 16).is_ok_and(|at| at > now)
    };
    while !marks(&vault(stack)).iter().any(is_new) {
        assert!(Instant::now() < until, "no marks");
        psql(stack, "SELECT pg_current_xact_id()");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Nothing is left of what a recovery made beside the data.
fn is_clean(stack: &Stack) {
    for node in NODES {
        for left in ["pgdata.restored", "pgdata.dropped", "rec"] {
            let left = stack.data().join(node).join("main").join(left);
            assert!(!left.exists(), "{} is left", left.display());
        }
    }
}

/// A drill of corruption takes two checkpoints, half a minute apart, and a copy.
const DRILL: Duration = Duration::from_secs(300);
/// Between what a time is to tell apart.
const BESIDE: Duration = Duration::from_millis(1_100);
const NOW: &str =
    "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')";
const TIMELINE: &str =
    "SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int";
const POINTS: &str = "SELECT string_agg(at::text, ' ' ORDER BY at) FROM point";

#[test]
fn a_running_service_goes_back_to_a_point() {
    let mut stack = stack();
    first_backup(&mut stack);
    psql(&stack, "CREATE TABLE point (at int); INSERT INTO point VALUES (1)");
    let named = "SELECT pg_create_restore_point('with-one')";
    let leader = stack.leader();
    crate::archive::as_superuser(&stack, &leader, named).expect("a place");
    std::thread::sleep(BESIDE);
    let between = psql(&stack, NOW);
    std::thread::sleep(BESIDE);
    psql(&stack, "INSERT INTO point VALUES (2)");
    archived(&mut stack);
    // Of the history that is going to be given up.
    json(&stack, &["backup", "now", "main"]);
    marked(&stack);
    let late = psql(&stack, NOW);
    let given_up = psql(&stack, TIMELINE);
    let epoch = stack.epoch();

    // Asked about twice, since all after the point is given up.
    let told = refused(&stack, &["recover", "main", "--time", &between, "--json"]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let token = told["error"]["token"].as_str().expect("a token").to_string();
    assert!(token.starts_with(&format!("{epoch}:")), "{told}");
    for (more, code) in [
        (["--name", "never", "--token", &format!("{epoch}:never")], "E287"),
        (["--lsn", "FFFF/0", "--token", &format!("{epoch}:FFFF/0")], "E287"),
        (["--lsn", "1/1", "--token", "3:latest"], "given up"),
        // The token is for a point, not for one backup among others.
        (
            ["--backup", "never-made", "--token", &format!("{epoch}:latest")],
            "from backup never-made",
        ),
        (["--timeline", "77", "--token", &format!("{epoch}:latest on timeline 77")], "E287"),
    ] {
        let mut arguments = vec!["recover", "main"];
        arguments.extend(more);
        let told = refused(&stack, &arguments);
        assert!(told.contains(code), "{more:?}: {told}");
    }
    assert_eq!(stack.epoch(), epoch, "nothing has changed");
    is_clean(&stack);
    assert_eq!(psql(&stack, POINTS), "1 2");

    let begun = Instant::now();
    let report = stack.dir().join("recovered").display().to_string();
    let with = ["--time", &between, "--token", &token, "--report", &report];
    let done = json(&stack, &[&["recover", "main"], &with[..]].concat());
    println!("in place after {} ms: {done}", begun.elapsed().as_millis());
    let kept = fs::read_to_string(format!("{report}.json")).expect("a report");
    let kept: Value = serde_json::from_str(&kept).expect("JSON");
    assert_eq!((&kept["steps"], &kept["rto_ms"]), (&done["steps"], &done["took_ms"]));
    let steps = done["steps"].as_array().expect("steps");
    assert!(steps.iter().all(|step| step["ok"] == true && step["journal"].is_string()), "{done}");
    let page = fs::read_to_string(format!("{report}.html")).expect("a page");
    assert!(page.contains("recovery of main") && page.contains("Passed."), "{page}");
    assert_eq!(psql(&stack, POINTS), "1");
    let beside = stack.dir().join("beside");
    assert_eq!(look(&stack, &beside, &[], POINTS), "1", "the newest backup is of no use");
    let status = stack.whole();
    assert_eq!(status["services"]["main"]["leader"], done["node"], "{status}");
    assert!(stack.epoch() > epoch);

    // What was given up is restored where it is named, and only there.
    let at = stack.dir().join("then").display().to_string();
    let told = refused(&stack, &["restore", "main", "--to", &at, "--time", &late]);
    assert!(told.contains("E287") && told.contains(&format!("--timeline {given_up}")), "{told}");
    let then = stack.dir().join("then");
    let named = ["--timeline", &given_up, "--time", &late];
    assert_eq!(look(&stack, &then, &named, POINTS), "1 2");

    // Passwords that are owed are given, also by an agent that has not promoted it.
    let leader = stack.leader();
    psql(&stack, "ALTER ROLE app PASSWORD 'of another cluster'");
    let marker = stack.data().join(&leader).join("main/pgdata/everhold.restored");
    signal("KILL", &stack.agent_pid(&leader).into_iter().collect::<Vec<_>>());
    fs::write(&marker, "some backup").expect("a marker");
    let until = Instant::now() + PATIENCE;
    while marker.exists() {
        assert!(Instant::now() < until, "the passwords stay those of another cluster");
        std::thread::sleep(Duration::from_millis(50));
    }
    stack.whole();

    // What was given up had been acknowledged, and nobody says it had not.
    let told = json(&stack, &["losses", "main"]);
    let tails = told["services"][0]["tails"].as_array().expect("tails");
    let lost = tails.iter().find(|tail| {
        let rows = tail["transactions"].as_array().into_iter().flatten();
        let mut rows = rows.flat_map(|it| it["rows"].as_array().into_iter().flatten());
        rows.any(|row| row["relation"] == "point of app" && row["row"]["at"] == 2)
    });
    let lost = lost.unwrap_or_else(|| panic!("a tail with the second point: {told}"));
    assert!(lost["acknowledged"].is_null(), "{lost}");
    assert_eq!(lost["recovered_epochs"].as_array().map(Vec::len), Some(1), "{lost}");
    let text = stack.done(&["losses", "main"]);
    assert!(text.contains("ACKNOWLEDGED, most of it") && !text.contains("none of it"), "{text}");

    // It is the service now: archived on, backed up, failed over, and put back once more.
    psql(&stack, "INSERT INTO point VALUES (3)");
    archived(&mut stack);
    json(&stack, &["backup", "now", "main"]);
    stack.done(&["switchover", "main"]);
    psql(&stack, "INSERT INTO point VALUES (4)");
    stack.whole();
    archived(&mut stack);
    let token = format!("{}:latest", stack.epoch());
    json(&stack, &["recover", "main", "--token", &token]);
    assert_eq!(psql(&stack, POINTS), "1 3 4");
    stack.whole();
    // To a time behind the last commit.
    let idle = after_the_last_commit(&mut stack);
    let token = format!("{}:{}+00", stack.epoch(), idle.replace('T', " ").replace('Z', ""));
    json(&stack, &["recover", "main", "--time", &idle, "--token", &token]);
    assert_eq!(psql(&stack, POINTS), "1 3 4");
    stack.whole();
    // To a name that lies before all backups but the first.
    let token = format!("{}:with-one", stack.epoch());
    json(&stack, &["recover", "main", "--name", "with-one", "--token", &token]);
    assert_eq!(psql(&stack, POINTS), "1");
    stack.whole();
    // And to what was given up first.
    let token = format!("{}:latest on timeline {given_up}", stack.epoch());
    json(&stack, &["recover", "main", "--timeline", &given_up, "--token", &token]);
    assert_eq!(psql(&stack, POINTS), "1 2");
    stack.whole();
}

/// A restorer of that node, stopped as soon as it writes.
fn stopped_restorer(stack: &Stack, node: &str) -> Vec<i32> {
    let made = stack.data().join(node).join("main/pgdata.restored/global");
    let file = stack.data().join(node).join("node.toml").display().to_string();
    let is_one = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.starts_with("everhold restorer") && line.contains(&file)
    };
    let until = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < until, "no restorer");
        let all = fs::read_dir("/proc").expect("/proc").flatten();
        let pids: Vec<i32> =
            all.filter_map(|it| it.file_name().to_str()?.parse().ok()).filter(is_one).collect();
        if !pids.is_empty() && made.exists() {
            signal("STOP", &pids);
            return pids;
        }
    }
}

#[test]
fn a_recovery_that_is_cut_short_changes_nothing() {
    let mut stack = stack_of(Wanted { disks: &["c"], disk_mb: 2_048, ..Wanted::default() });
    first_backup(&mut stack);
    psql(&stack, "CREATE TABLE point (at int); INSERT INTO point VALUES (1)");
    archived(&mut stack);
    let epoch = stack.epoch();
    let token = format!("{epoch}:latest");
    let arguments = ["recover", "main", "--node", "c", "--token", &token];
    // In the middle of it something breaks; what the command says.
    let cut = |stack: &Stack, breaks: &dyn Fn(), mends: &dyn Fn()| -> String {
        let child = stack.command(&arguments).stderr(Stdio::piped()).spawn().expect("it runs");
        let restorer = stopped_restorer(stack, "c");
        breaks();
        signal("CONT", &restorer);
        let output = child.wait_with_output().expect("it ends");
        mends();
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        println!("{said}");
        assert!(!output.status.success(), "{said}");
        said
    };

    // Its disk is full.
    let disk = stack.data().join("c");
    let filling = std::cell::RefCell::new(None);
    let breaks = || *filling.borrow_mut() = Some(Filling::of(&disk));
    let said = cut(&stack, &breaks, &|| drop(filling.borrow_mut().take()));
    assert!(said.contains("E288") && said.contains("No space left"), "{said}");
    stack.whole();
    is_clean(&stack);

    // The repository goes away.
    let (there, away) = (vault(&stack), stack.dir().join("away"));
    let said = cut(&stack, &|| fs::rename(&there, &away).expect("away"), &|| {
        fs::rename(&away, &there).expect("back");
    });
    assert!(said.contains("E280") && said.contains("away"), "{said}");
    is_clean(&stack);

    // There is no room from the beginning: a server goes on there.
    let large = disk.join("large");
    let mb = {
        let free = rustix::fs::statvfs(&disk).expect("a disk");
        ((free.f_bavail * free.f_frsize) >> 20) - 500
    };
    let made = std::process::Command::new("fallocate")
        .args(["-l", &format!("{mb}M"), &large.display().to_string()])
        .status();
    assert!(made.expect("it runs").success());
    let said = refused(&stack, &arguments);
    assert!(said.contains("E288") && said.contains("stay free"), "{said}");
    fs::remove_file(&large).expect("removed");
    is_clean(&stack);

    assert_eq!(stack.epoch(), epoch, "the service did not notice");
    assert_eq!(psql(&stack, POINTS), "1");
    json(&stack, &arguments);
    assert_eq!(psql(&stack, POINTS), "1");
    stack.whole();
}

#[test]
fn a_service_comes_back_from_nothing_but_its_repository() {
    let mut stack = stack();
    first_backup(&mut stack);
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    psql(&stack, "CREATE TABLE point (at int); INSERT INTO point VALUES (7)");
    let epoch = stack.epoch();
    let lost = load.finish().lost;
    assert_eq!(lost, 0);
    archived(&mut stack);
    let password = stack.password();
    stack.interrupt();
    fs::remove_dir_all(stack.data()).expect("the data goes");

    stack.begin();
    let held = |status: &Value| {
        let holds = status["holds"].as_array().into_iter().flatten();
        let mut why = holds.filter_map(|hold| hold["why"].as_str());
        why.any(|why| why.contains("E293"))
    };
    stack.wait("no second, empty database", held);
    let begun = Instant::now();
    let output = stack.command(&["recover", "main"]).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    println!("from nothing after {} ms", begun.elapsed().as_millis());
    assert_eq!(psql(&stack, POINTS), "7");
    // The secret that passwords follow from is gone with the machines.
    assert_ne!(stack.password(), password);
    assert!(told.contains("everhold dsn main"), "{told}");
    stack.whole();
    assert!(stack.epoch() > epoch, "above all that was written");
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(load.finish().lost, 0);
    // Its log goes on in the same repository.
    archived(&mut stack);
    json(&stack, &["backup", "now", "main"]);
    let to = stack.dir().join("beside").display().to_string();
    json(&stack, &["restore", "main", "--to", &to]);

    // The store is still there, and nobody of those it names has data any more.
    let epoch = stack.epoch();
    stack.interrupt();
    for node in NODES {
        fs::remove_dir_all(stack.data().join(node)).expect("its data goes");
    }
    stack.begin();
    stack.wait("agents", |status| {
        let instances = status["services"]["main"]["instances"].as_object();
        instances.is_some_and(|all| all.values().all(|it| it["state"] == "empty"))
    });
    let token = format!("{epoch}:latest:force");
    json(&stack, &["recover", "main", "--force", "--token", &token]);
    assert_eq!(psql(&stack, POINTS), "7");
    stack.whole();
}

#[test]
fn plans_are_practised_and_measured() {
    let mut stack = stack();
    first_backup(&mut stack);
    let epoch = stack.epoch();
    let run = |stack: &Stack, plan: &str, more: &[&str]| -> Value {
        let file = stack.dir().join(plan).display().to_string();
        let mut arguments = vec!["drill", "run", plan, "main", "--report", &file];
        arguments.extend(more);
        let told = json(stack, &arguments);
        let kept = fs::read_to_string(format!("{file}.json")).expect("a report");
        assert_eq!(serde_json::from_str::<Value>(&kept).expect("JSON"), told);
        let page = fs::read_to_string(format!("{file}.html")).expect("a page");
        assert!(page.contains(plan) && page.contains("Passed."), "{page}");
        println!(
            "{plan}: RTO {} ms, RPO {}, lost {}",
            told["rto_ms"], told["rpo_ms"], told["lost"]
        );
        told
    };
    // It begins as region-loss does.
    let scratch = stack.dir().join("scratch");
    let at = scratch.display().to_string();
    let told = run(&stack, "operator-mistake", &["--scratch", &at]);
    let steps = told["steps"].as_array().expect("steps");
    assert!(steps.iter().all(|step| step["ok"] == true && step["journal"].is_string()), "{told}");
    assert_eq!(told["lost"], 0);
    assert!(!scratch.exists(), "nothing of it is left");
    assert_eq!(stack.epoch(), epoch, "the cluster itself did not notice");

    // A table that one left which was killed is not in the way.
    psql(&stack, "CREATE TABLE everhold_drill (other text)");
    let told = run(&stack, "node-loss", &["--real", "main"]);
    assert_eq!(told["lost"], 0);
    let table = "SELECT to_regclass('everhold_drill') IS NULL";
    assert_eq!(psql(&stack, table), "t");
    assert!(stack.epoch() > epoch);
    let told = refused(&stack, &["drill", "run", "region-loss", "--real", "main"]);
    assert!(told.contains("E307") && told.contains("everhold recover"), "{told}");
    stack.whole();

    archived(&mut stack);
    let told = run(&stack, "region-loss", &["--scratch", &at]);
    assert!(told["rto_ms"].is_u64() && told["rpo_ms"].is_u64(), "{told}");

    // The last of the log that was archived is gone: what comes back is not all that was promised.
    psql(&stack, "CREATE TABLE late ()");
    archived(&mut stack);
    fs::remove_file(last_piece(&vault(&stack))).expect("removed");
    let file = stack.dir().join("lacks").display().to_string();
    let arguments = ["drill", "run", "region-loss", "--scratch", &at, "--report", &file];
    let told = refused(&stack, &arguments);
    assert!(told.contains("commits are lost"), "{told}");
    let kept = fs::read_to_string(format!("{file}.json")).expect("a report");
    let kept: Value = serde_json::from_str(&kept).expect("JSON");
    assert!(kept["failed"].as_str().is_some_and(|it| it.contains("commits are lost")), "{kept}");
    let failed = kept["steps"].as_array().into_iter().flatten().filter(|it| it["ok"] == false);
    assert_eq!(failed.count(), 1, "{kept}");
    assert!(!scratch.exists(), "nothing of it is left");
}

#[test]
fn a_drill_of_corruption_sees_it_found_and_the_copy_made_anew() {
    let mut stack = stack();
    first_backup(&mut stack);
    let scratch = stack.dir().join("scratch");
    let file = stack.dir().join("corruption").display().to_string();
    let at = scratch.display().to_string();
    let arguments =
        ["drill", "run", "corruption", "main", "--scratch", &at, "--report", &file, "--json"];
    let mut command = stack.command(&arguments);
    command.current_dir(stack.dir()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("it runs");
    let pid = child.id() as i32;
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output().expect("it ends")));

    // Whose data stands there, while the scratch cluster does.
    let node = |node: &str| scratch.join("data").join(node);
    let born = |name: &str| fs::metadata(node(name).join("main/pgdata")).map(|it| it.ino()).ok();
    let journal = |name: &str| {
        let files = fs::read_dir(node(name).join("journal")).into_iter().flatten().flatten();
        files.filter_map(|it| fs::read_to_string(it.path()).ok()).collect::<String>()
    };
    let (until, mut found) = (Instant::now() + DRILL, None);
    let mut copied_anew = false;
    let output = loop {
        if let Ok(output) = end.recv_timeout(Duration::from_millis(50)) {
            break output;
        }
        if Instant::now() > until {
            signal("TERM", &[pid]);
        }
        found = found.or_else(|| {
            let name = NODES.into_iter().find(|name| journal(name).contains("bad page: "))?;
            Some((name, born(name)))
        });
        copied_anew |=
            found.is_some_and(|(name, then)| born(name).is_some_and(|it| Some(it) != then));
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    println!("corruption: RTO {} ms, lost {}, found {found:?}", told["rto_ms"], told["lost"]);
    assert_eq!(told["lost"], 0, "{told}");
    assert!(told["rto_ms"].as_u64().is_some_and(|ms| ms > 0), "{told}");
    let steps = told["steps"].as_array().expect("steps");
    assert!(steps.iter().all(|step| step["ok"] == true), "{told}");
    assert!(found.is_some() && copied_anew, "read from the disk, and a new directory: {said}");
    assert!(!scratch.exists(), "nothing of it is left");
}

#[test]
fn a_drill_that_is_interrupted_leaves_nothing_behind() {
    let mut stack = stack();
    first_backup(&mut stack);
    let start = |arguments: &[&str]| {
        let mut command = stack.command(arguments);
        command.current_dir(stack.dir()).stderr(Stdio::piped()).spawn().expect("it runs")
    };
    let ends = |child: std::process::Child| {
        signal("TERM", &[child.id() as i32]);
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        println!("{said}");
        assert!(!output.status.success() && said.contains("interrupted"), "{said}");
    };
    let soon = |what: &str, is_so: &dyn Fn() -> bool| {
        let until = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < until, "no {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    // On the cluster itself: its table.
    let child = start(&["drill", "run", "node-loss", "--real", "main"]);
    let table = "SELECT to_regclass('everhold_drill') IS NOT NULL";
    soon("table", &|| psql(&stack, table) == "t");
    ends(child);
    assert_eq!(psql(&stack, table), "f");

    // A scratch cluster, one agent of which can't be asked to end.
    let scratch = stack.dir().join("scratch");
    let child =
        start(&["drill", "run", "region-loss", "--scratch", &scratch.display().to_string()]);
    let pgdata = scratch.join("data/a/main/pgdata/postmaster.pid");
    soon("restored server", &|| pgdata.exists());
    let pid = fs::read_to_string(scratch.join("data/a/process.pid")).expect("a pid");
    signal("STOP", &[pid.trim().parse().expect("a pid")]);
    ends(child);
    assert!(!scratch.exists());
    assert_eq!(stack.pids_in(&scratch), [] as [i32; 0]);
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let named = all.filter(|it| {
        let line = fs::read(it.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*scratch.to_string_lossy())
    });
    assert_eq!(named.count(), 0);
}
