//! Backups are proven: a good one passes, and whatever is wrong with one is found and named.

use crate::stack::{Stack, Wanted};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

const PASSWORD: &str = "correct horse";
/// A mark is left each ten seconds.
const MARKED: Duration = Duration::from_secs(60);

/// A stack with a repository, checks, and rows that they are about.
struct Bed {
    stack: Stack,
}

impl Bed {
    fn new() -> Bed {
        let mut stack = Stack::new(Wanted { repositories: &["vault"], ..Wanted::default() });
        let key = stack.key_file("vault");
        fs::write(&key, format!("{PASSWORD}\n")).expect("a key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
        let checks = stack.dir().join("checks.sql");
        let sql = "-- The books balance.\n\
             SELECT 'sum', sum(amount) FROM book HAVING sum(amount) <> 0;\n\
             SELECT id FROM book WHERE amount IS NULL;\n";
        fs::write(&checks, sql).expect("checks");
        let spec = format!(
            "{}prove = {{ schedule = \"0 4 1 1 *\", checks = \"{}\" }}\n",
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
        assert!(!output.status.success() && said.contains("E295"), "{said}");
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

    /// What the repository says of the backup's proof.
    fn proof(&self, id: &str) -> Value {
        let listed = self.json(&["backup", "list", "main"]);
        let mut backups = listed["backups"].as_array().into_iter().flatten();
        backups.find(|it| it["id"] == id).expect("it is listed")["proof"].clone()
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
        backup["proven_at"].is_string() && backup["rto_ms"].is_u64()
    });
    let backup = &status["services"]["main"]["backup"];
    assert_eq!(backup["failed"].as_array().map(Vec::len), Some(0), "{backup}");
    assert_eq!(backup["unproven"], 1, "the first one of all: {backup}");
}
