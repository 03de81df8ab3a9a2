//! Backups are proven: a good one passes, and whatever is wrong with one is found and named.

use crate::plain::ask;
use crate::stack::random::Random;
use crate::stack::{Stack, Wanted, signal};
use everhold_core::ids::Lsn;
use everhold_core::spec::{Location, RepositorySpec};
use everhold_repository::backup::{self, Progress, Watch};
use everhold_repository::{Password, PlaceConfig, Repository};
use serde_json::Value;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

const PASSWORD: &str = "correct horse";
/// Proofs that are killed.
const KILLS: usize = 5;
/// A mark is left each ten seconds.
const MARKED: Duration = Duration::from_secs(60);

/// A stack with a repository, checks, and rows that they are about.
struct Bed {
    stack: Stack,
}

impl Bed {
    fn new() -> Bed {
        Bed::of(&["vault"])
    }

    fn of(repositories: &'static [&'static str]) -> Bed {
        let mut stack = Stack::new(Wanted { repositories, ..Wanted::default() });
        for key in repositories.iter().map(|name| stack.key_file(name)) {
            fs::write(&key, format!("{PASSWORD}\n")).expect("a key");
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
        }
        let checks = stack.dir().join("checks.sql");
        let sql = "-- The books balance.\n\
             SELECT 'sum', sum(amount) FROM book HAVING sum(amount) <> 0;\n\
             SELECT id FROM book WHERE amount IS NULL;\n";
        fs::write(&checks, sql).expect("checks");
        let spec = format!(
            "{}full = \"0 4 1 1 *\"\nincremental = \"0 4 1 1 *\"\n\
             prove = {{ schedule = \"0 4 1 1 *\", checks = \"{}\" }}\n",
            stack.spec(false),
            checks.display()
        );
        fs::write(stack.spec_file(), spec).expect("the spec");
        stack.up();
        stack.whole();
        stack.done(&["repository", "init"]);
        let bed = Bed { stack };
        bed.psql(
            "CREATE TABLE book (id int PRIMARY KEY, amount int); \
             INSERT INTO book SELECT n, CASE WHEN n % 2 = 0 THEN 1 ELSE -1 END \
             FROM generate_series(1, 10000) n",
        );
        bed
    }

    fn psql(&self, sql: &str) -> String {
        let arguments = ["psql", "main", "--", "-XAt", "-v", "ON_ERROR_STOP=1", "-c", sql];
        self.stack.done(&arguments).trim().to_string()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        serde_json::from_str(&self.stack.done(&all)).expect("JSON")
    }

    fn vault(&self) -> PathBuf {
        self.stack.dir().join("vault")
    }

    /// A backup made now; its id. The first one by schedule ends first.
    fn back_up(&mut self, arguments: &[&str]) -> String {
        self.stack.wait("the first backup", |status| {
            let backup = &status["services"]["main"]["backup"];
            backup["newest"].is_string() && backup["running"].is_null()
        });
        let mut all = vec!["backup", "now", "main"];
        all.extend(arguments);
        self.json(&all)["id"].as_str().expect("an id").to_string()
    }

    /// Waits until the leader left a mark after all that was written so far.
    fn marked(&self) {
        let since = self.marks();
        self.psql("INSERT INTO book VALUES (-1, 0); DELETE FROM book WHERE id = -1");
        let until = Instant::now() + MARKED;
        // One may have been on its way.
        while self.marks() < since + 2 {
            assert!(Instant::now() < until, "no marks");
            self.psql("SELECT pg_current_xact_id()");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn marks(&self) -> usize {
        files(&self.vault()).iter().filter(|it| it.to_string_lossy().contains("/marks/")).count()
    }

    fn prove(&self, id: &str) -> Output {
        self.stack.command(&["backup", "prove", "main", id]).output().expect("it runs")
    }

    /// A proof that fails; what it says.
    fn fails(&self, id: &str) -> String {
        let output = self.prove(id);
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        println!("{said}");
        assert!(!output.status.success() && said.contains("E291"), "{said}");
        let proof = self.proof(id);
        assert!(proof["failed"].is_string(), "{proof}");
        self.is_clean();
        said
    }

    fn passes(&self, id: &str) -> Value {
        let output = self.prove(id);
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        assert!(output.status.success(), "{said}");
        let proof = self.proof(id);
        assert!(proof["failed"].is_null(), "{proof}");
        self.is_clean();
        proof
    }

    /// Begins a proof; where. What was there before may not be over for its node.
    fn begin_proof(&self, id: &str) -> String {
        let until = Instant::now() + crate::stack::PATIENCE;
        loop {
            let mut command = self.stack.command(&["backup", "prove", "main", id, "--no-wait"]);
            let output = command.arg("--json").output().expect("it runs");
            if output.status.success() {
                let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
                return answer["node"].as_str().expect("a node").to_string();
            }
            assert!(Instant::now() < until, "{}", String::from_utf8_lossy(&output.stderr));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the repository says of the backup's proof.
    fn proof(&self, id: &str) -> Value {
        let listed = self.json(&["backup", "list", "main"]);
        let mut backups = listed["backups"].as_array().into_iter().flatten();
        backups.find(|it| it["id"] == id).expect("it is listed")["proof"].clone()
    }

    /// Where the backup starts or stops.
    fn lsn(&self, id: &str, which: &str) -> u64 {
        let listed = self.json(&["backup", "list", "main"]);
        let mut backups = listed["backups"].as_array().into_iter().flatten();
        let backup = backups.find(|it| it["id"] == id).expect("it is listed");
        backup[which].as_str().expect("a place").parse::<Lsn>().expect("a place").0
    }

    fn archived(&self) -> u64 {
        let status = self.stack.status().expect("a status");
        let at = &status["services"]["main"]["backup"]["log_lsn"];
        serde_json::from_value::<Lsn>(at.clone()).expect("a place").0
    }

    /// The pieces of the log, by place.
    fn pieces(&self) -> Vec<(PathBuf, Range<u64>)> {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let piece = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.to_string();
            let (range, _) = name.split_once('.')?;
            let (start, end) = range.split_once('-')?;
            let range = hex(start)?..hex(end)?;
            path.to_str()?.contains("/log/").then_some((path, range))
        };
        let mut pieces: Vec<_> = files(&self.vault()).into_iter().filter_map(piece).collect();
        pieces.sort_by_key(|(_, range)| range.start);
        pieces
    }

    /// As whoever has its password sees it.
    fn repository(&self) -> Repository {
        let at = Location::Directory(self.vault().display().to_string());
        let spec = RepositorySpec {
            url: at,
            region: None,
            endpoint: None,
            credentials_file: None,
            key_file: String::new(),
        };
        let config = PlaceConfig::new("vault", &spec);
        let password = Password::new(PASSWORD);
        Repository::open(&[(config, password)], "test").expect("it opens")
    }

    /// Nothing of a sandbox is left.
    fn is_clean(&self) {
        for node in crate::stack::NODES {
            let left = self.stack.data().join(node).join("main/box");
            assert!(!left.exists(), "{} is left", left.display());
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut open = vec![dir.to_path_buf()];
    let mut found = Vec::new();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn a_good_backup_is_proven() {
    let mut bed = Bed::new();
    let first = bed.back_up(&["--full"]);
    bed.psql("UPDATE book SET amount = amount * 2");
    bed.marked();
    let second = bed.back_up(&[]);
    bed.marked();
    // To its end, and to somewhere before the next one.
    for id in [&second, &first] {
        let proof = bed.passes(id);
        println!("{proof:#}");
        let passed = proof["passed"].to_string();
        for what in ["takes writes", "the newest commit", "database app", "checks of", "page check"]
        {
            assert!(passed.contains(what), "{what}: {passed}");
        }
        assert!(proof["rto_ms"].as_u64().is_some_and(|ms| ms > 100), "{proof}");
        assert_eq!(proof["skipped"].as_array().map(Vec::len), Some(0), "{proof}");
    }
    let proof = bed.proof(&second);
    assert!(proof["rpo_ms"].as_u64().is_some_and(|ms| ms < 60_000), "{proof}");
    let status = bed.stack.wait("proofs in the status", |status| {
        let backup = &status["services"]["main"]["backup"];
        // The first one of all was not looked at.
        backup["proven_at"].is_string() && backup["rto_ms"].is_u64() && backup["unproven"] == 1
    });
    let backup = &status["services"]["main"]["backup"];
    assert_eq!(backup["failed"].as_array().map(Vec::len), Some(0), "{backup}");
}

#[test]
fn what_is_damaged_in_one_place_is_healed_from_the_other() {
    let mut bed = Bed::of(&["vault", "far"]);
    let id = bed.back_up(&["--full"]);
    let packs =
        files(&bed.vault()).into_iter().filter(|it| it.to_string_lossy().contains("/packs/"));
    let pack = packs.max_by_key(|it| fs::metadata(it).expect("a pack").len()).expect("a pack");
    let whole = fs::read(&pack).expect("a pack");
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(&pack, &flipped).expect("flipped");
    let proof = bed.passes(&id);
    let passed = proof["passed"].to_string();
    assert!(passed.contains("objects in every place, 1 of them healed"), "{passed}");
    assert!(fs::read(&pack).expect("a pack") == whole, "it is as it was");

    // The same, and the place that has it whole is away: nothing is said of the backup.
    fs::write(&pack, &flipped).expect("flipped");
    let (far, away) = (bed.stack.dir().join("far"), bed.stack.dir().join("away"));
    fs::rename(&far, &away).expect("away");
    let said = String::from_utf8_lossy(&bed.prove(&id).stderr).to_string();
    assert!(said.contains("E280") || said.contains("E281"), "{said}");
    fs::rename(&away, &far).expect("back");
    assert!(bed.proof(&id)["failed"].is_null());
}

#[test]
fn whatever_is_wrong_fails_the_proof_and_is_named() {
    let mut bed = Bed::new();
    let bad = bed.back_up(&["--full"]);

    // A bit of what the backup needs, in its only place.
    let packs =
        || files(&bed.vault()).into_iter().filter(|it| it.to_string_lossy().contains("/packs/"));
    let pack = packs().max_by_key(|it| fs::metadata(it).expect("a pack").len()).expect("a pack");
    let whole = fs::read(&pack).expect("a pack");
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(&pack, &flipped).expect("flipped");
    let said = bed.fails(&bad);
    assert!(said.contains("is damaged in every place"), "{said}");
    // What is made next rests on none of it.
    let first = bed.back_up(&[]);
    bed.passes(&first);
    fs::write(&pack, &whole).expect("as it was");
    bed.passes(&bad);
    bed.psql("INSERT INTO book SELECT n, 0 FROM generate_series(20000, 40000) n");
    bed.marked();

    // A piece of the log is gone: the next one says nothing of it.
    let stop = bed.lsn(&first, "stop");
    let pieces: Vec<(PathBuf, Range<u64>)> =
        bed.pieces().into_iter().filter(|(_, range)| range.end > stop).collect();
    assert!(pieces.len() > 1, "{pieces:?}");
    let aside = bed.stack.dir().join("piece");
    fs::rename(&pieces[0].0, &aside).expect("away");
    let said = bed.fails(&first);
    assert!(said.contains("the log has a hole"), "{said}");
    fs::rename(&aside, &pieces[0].0).expect("as it was");

    // An older commit: from some place on the log is what nobody ever wrote, sealed with the key.
    // The server starts without a word.
    let repository = bed.repository();
    let cut = stop + (bed.archived() - stop) / 2;
    let mut kept = Vec::new();
    for (path, range) in bed.pieces().into_iter().filter(|(_, range)| range.end > cut) {
        let name = path.strip_prefix(bed.vault()).expect("below it").display().to_string();
        kept.push((path.clone(), fs::read(&path).expect("a piece")));
        let mut bytes = repository.get(&name).expect("it opens");
        let from = cut.saturating_sub(range.start) as usize;
        bytes[from..].fill(0);
        repository.delete(&name).expect("deleted");
        repository.put(&name, &bytes).expect("put");
    }
    let said = bed.fails(&first);
    assert!(said.contains("the recovery ended at") && said.contains("bytes of the log"), "{said}");
    for (path, bytes) in kept {
        fs::write(path, bytes).expect("as it was");
    }
    bed.passes(&first);

    // A row is gone, and the books no longer balance.
    bed.psql("DELETE FROM book WHERE id = 2");
    let second = bed.back_up(&[]);
    let said = bed.fails(&second);
    assert!(said.contains("check 1: 1 row: sum, -1"), "{said}");
    bed.psql("INSERT INTO book VALUES (2, 1)");

    // Rows that an index does not have.
    bed.psql(
        "CREATE FUNCTION changes(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'; \
         CREATE INDEX wrong ON book (changes(id)); \
         CREATE OR REPLACE FUNCTION changes(int) RETURNS int IMMUTABLE LANGUAGE sql \
         AS 'SELECT $1 + 1'",
    );
    let third = bed.back_up(&[]);
    let said = bed.fails(&third);
    assert!(said.contains("amcheck of database app") && said.contains("wrong"), "{said}");

    // What failed is told to everybody.
    let status = bed.stack.wait("failed proofs in the status", |status| {
        status["services"]["main"]["backup"]["failed"].as_array().is_some_and(|it| it.len() == 2)
    });
    let backup = &status["services"]["main"]["backup"];
    assert_eq!(backup["failed"][0], third.as_str(), "{backup}");
    assert_eq!(backup["newest"], first.as_str(), "what failed is no base: {backup}");
    let (_, page) = ask(bed.stack.health_port("a"), "GET", "/metrics").expect("a page");
    assert!(page.contains("everhold_backup_failed{") && page.contains("} 2\n"), "{page}");
}

#[test]
fn what_could_not_be_looked_at_has_not_failed_and_nothing_is_left_of_it() {
    let mut bed = Bed::new();
    let id = bed.back_up(&["--full"]);

    // The worker is killed, alone and with its agent, at different moments.
    for (round, with_agent) in [(0, false), (1, true), (2, false), (3, true)] {
        let answer = bed.json(&["backup", "prove", "main", &id, "--no-wait"]);
        let node = answer["node"].as_str().expect("a node").to_string();
        let sandbox = bed.stack.data().join(&node).join("main/box");
        let file = ["data", "data/global/pg_control", "postgres.log", "data/postmaster.pid"][round];
        let until = Instant::now() + crate::stack::PATIENCE;
        while !sandbox.join(file).exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut pids = workers(&bed.stack);
        assert!(!pids.is_empty(), "it runs");
        if with_agent {
            pids.extend(bed.stack.agent_pid(&node));
        }
        signal("KILL", &pids);
        let until = Instant::now() + crate::stack::PATIENCE;
        while sandbox.exists() {
            assert!(Instant::now() < until, "{} stays", sandbox.display());
            std::thread::sleep(Duration::from_millis(50));
        }
        bed.stack.whole();
        assert_eq!(bed.proof(&id), Value::Null, "nothing is said of the backup");
        if !with_agent {
            let status = bed.stack.wait("word of it", |status| {
                let backup = &status["services"]["main"]["backup"];
                backup["proving"].is_null() && backup["last_proof"]["not_done"].is_string()
            });
            println!("{}", status["services"]["main"]["backup"]["last_proof"]);
        }
    }

    // The repository is away; the checks are.
    let (vault, away) = (bed.vault(), bed.stack.dir().join("away"));
    fs::rename(&vault, &away).expect("away");
    let said = String::from_utf8_lossy(&bed.prove(&id).stderr).to_string();
    assert!(said.contains("E281"), "{said}");
    fs::rename(&away, &vault).expect("back");
    let checks = bed.stack.dir().join("checks.sql");
    fs::rename(&checks, &away).expect("away");
    let said = String::from_utf8_lossy(&bed.prove(&id).stderr).to_string();
    assert!(said.contains("E292") && said.contains("checks.sql"), "{said}");
    fs::rename(&away, &checks).expect("back");
    assert_eq!(bed.proof(&id), Value::Null, "nothing is said of the backup");
    let said = String::from_utf8_lossy(&bed.prove("20200101T000000Z-0000").stderr).to_string();
    assert!(said.contains("E286"), "{said}");
    bed.is_clean();

    // By schedule, without anybody.
    let spec = fs::read_to_string(bed.stack.spec_file()).expect("the spec");
    let each_minute = bed.stack.dir().join("each-minute.toml");
    fs::write(
        &each_minute,
        spec.replace("prove = { schedule = \"0 4 1 1 *\"", "prove = { schedule = \"* * * * *\""),
    )
    .expect("a spec");
    bed.stack.done(&["apply", &each_minute.display().to_string()]);
    let until = Instant::now() + 4 * crate::stack::PATIENCE;
    while !bed.proof(&id)["rto_ms"].is_u64() {
        assert!(Instant::now() < until, "no proof by schedule");
        std::thread::sleep(Duration::from_secs(2));
    }
    let proof = bed.proof(&id);
    assert!(proof["why"] == "full" || proof["why"] == "older", "{proof}");
}

/// With those of the repository's own tests, of backups, prunes and restores, that is all kinds.
#[test]
fn proofs_killed_at_random_moments_leave_all_as_it_was() {
    let seed = crate::stack::random::seed();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let mut bed = Bed::new();
    let id = bed.back_up(&["--full"]);
    let began = Instant::now();
    bed.passes(&id);
    let whole = began.elapsed();
    let repository = bed.repository();
    let never = AtomicBool::new(false);
    let watch = Watch { progress: &|_: Progress| {}, stop: &never };
    let (mut kills, mut tries) = (0, 0);
    while kills < KILLS {
        tries += 1;
        assert!(tries < KILLS * 4, "{kills} kills in {tries} tries of {whole:?}");
        let node = bed.begin_proof(&id);
        std::thread::sleep(Duration::from_micros(random.below(whole.as_micros() as u64)));
        let mut pids = workers(&bed.stack);
        kills += usize::from(!pids.is_empty());
        if random.below(3) == 0 {
            pids.extend(bed.stack.agent_pid(&node));
        }
        signal("KILL", &pids);
        bed.stack.wait("an end of it", |status| {
            status["services"]["main"]["backup"]["proving"].is_null()
        });
        let sandbox = bed.stack.data().join(&node).join("main/box");
        let until = Instant::now() + crate::stack::PATIENCE;
        while sandbox.exists() || !workers(&bed.stack).is_empty() {
            assert!(Instant::now() < until, "{} stays", sandbox.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        bed.stack.whole();
        let proof = bed.proof(&id);
        assert!(proof["rto_ms"].is_u64() && proof["failed"].is_null(), "{proof}");
        let verified = backup::verify(&repository, "main", &id, 1, &watch).expect("verified");
        assert!(verified.harmed.is_empty(), "{verified:?}");
    }
    bed.passes(&id);
}

/// Workers of this stack that prove something.
fn workers(stack: &Stack) -> Vec<i32> {
    let dir = stack.dir().display().to_string();
    let is_one = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.starts_with("everhold worker") && line.contains(&dir) && line.contains("--prove")
    };
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    all.filter_map(|it| it.file_name().to_str()?.parse().ok()).filter(is_one).collect()
}
