//! Backups of a running stack: made by schedule and by hand, listed, restored beside it.

use crate::stack::load::Load;
use crate::stack::{PATIENCE, Stack, Wanted, signal};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A stack with one repository, which is made.
pub fn stack() -> Stack {
    stack_of(Wanted::default())
}

pub fn stack_of(wanted: Wanted) -> Stack {
    let mut stack = Stack::new(wanted);
    let key = stack.dir().join("vault.key");
    fs::write(&key, "correct horse\n").expect("a key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
    let spec = format!(
        "{}[repository]\nvault = {{ url = \"file://{}\", key_file = \"{}\" }}\n\
         [service.main.backup]\nrepositories = [\"vault\"]\n",
        stack.spec(false),
        vault(&stack).display(),
        key.display()
    );
    fs::write(stack.spec_file(), spec).expect("the spec");
    stack.up();
    stack.whole();
    stack
}

pub fn vault(stack: &Stack) -> PathBuf {
    stack.dir().join("vault")
}

pub fn first_backup(stack: &mut Stack) {
    stack.done(&["repository", "init"]);
    stack.wait("first backup", |status| status["services"]["main"]["backup"]["newest"].is_string());
}

pub fn json(stack: &Stack, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.push("--json");
    serde_json::from_str(&stack.done(&all)).expect("JSON")
}

/// A command that is refused: what it says.
pub fn refused(stack: &Stack, arguments: &[&str]) -> String {
    let output = stack.command(arguments).output().expect("it runs");
    assert!(!output.status.success(), "{arguments:?} succeeds");
    String::from_utf8_lossy(&output.stderr).to_string()
}

fn restore(stack: &Stack, to: &Path, more: &[&str]) -> Value {
    let to = to.display().to_string();
    let mut arguments = vec!["restore", "main", "--to", &to];
    arguments.extend(more);
    json(stack, &arguments)
}

/// Restores and asks the server that stands there, which then stops.
pub fn look(stack: &Stack, to: &Path, more: &[&str], sql: &str) -> String {
    let dir = to.display().to_string();
    let mut arguments = vec!["restore", "main", "--run", "--to", &dir];
    arguments.extend(more);
    let mut command = stack.command(&arguments);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    assert!(line.contains("is restored in"), "{line}");
    let socket = format!("{dir}.run");
    let psql = Command::new("psql")
        .args(["-h", &socket, "-U", "everhold", "-XAt", "-c", sql, "app"])
        .output()
        .expect("psql runs");
    signal("INT", &[child.id() as i32]);
    assert!(child.wait().expect("it ends").success());
    let err = String::from_utf8_lossy(&psql.stderr);
    assert!(psql.status.success(), "{err}");
    String::from_utf8_lossy(&psql.stdout).trim().to_string()
}

/// A time after which nothing is committed, once the log is known to go on to it.
pub fn after_the_last_commit(stack: &mut Stack) -> String {
    let (leader, stack) = (stack.leader(), &*stack);
    let superuser = |sql: &str| crate::archive::as_superuser(stack, &leader, sql);
    std::thread::sleep(Duration::from_secs(1));
    let now = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SSZ') \
               || ' ' || (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
    let now = superuser(now).expect("a time");
    let (then, then_ms) = now.split_once(' ').expect("two");
    let then_ms: u64 = then_ms.parse().expect("a number");
    let until = Instant::now() + PATIENCE;
    let marked = || {
        let logs = fs::read_dir(vault(stack).join("main/log")).expect("listed").flatten();
        let marks =
            logs.flat_map(|log| fs::read_dir(log.path().join("marks")).into_iter().flatten());
        let names = marks.flatten().map(|mark| mark.file_name().into_string().expect("a name"));
        names.filter_map(|name| u64::from_str_radix(name.split('.').next()?, 16).ok()).max()
    };
    while marked() < Some(then_ms + 3_000) {
        assert!(Instant::now() < until, "no mark after {then_ms}: {:?}", marked());
        // Written, and no commit.
        superuser("CHECKPOINT");
        std::thread::sleep(Duration::from_millis(500));
    }
    then.to_string()
}

/// A point that has a name.
fn named(stack: &mut Stack, points: &str) {
    let (leader, status) = (stack.leader(), stack.status().expect("a status"));
    let stack = &*stack;
    let psql = |sql: &str| stack.done(&["psql", "main", "--", "-XAt", "-c", sql]);
    let before = &status["services"]["main"]["backup"]["newest"];
    let before = before.as_str().expect("a backup");
    let superuser = |sql: &str| crate::archive::as_superuser(stack, &leader, sql);
    let place = superuser("SELECT pg_create_restore_point('before')").expect("a place");
    psql("INSERT INTO point VALUES (3)");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(look(stack, &stack.dir().join("named"), &["--name", "before"], points), "1 2");
    assert_eq!(look(stack, &stack.dir().join("at"), &["--lsn", &place], points), "1 2");
    // Over what is there, and over nothing else.
    let other = stack.dir().join("other-data");
    fs::create_dir_all(&other).expect("made");
    fs::write(other.join("letter"), "dear").expect("written");
    let arguments = ["restore", "main", "--over", "--to", &other.display().to_string()];
    let error = refused(stack, &arguments);
    assert!(error.contains("E288") && error.contains("holds no database"), "{error}");
    fs::create_dir_all(other.join("global")).expect("made");
    fs::write(other.join("global/pg_control"), [7; 100]).expect("written");
    let error = refused(stack, &arguments);
    assert!(
        error.contains("E288") && error.contains("it holds database 506381209866536711"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(other.join("letter")).expect("read"), "dear");
    let over = ["--over", "--name", "before"];
    assert_eq!(look(stack, &stack.dir().join("latest"), &over, points), "1 2");
    // Behind a newer backup an older one is found by itself, unless one is named.
    let newer = json(stack, &["backup", "now", "main"]);
    let newer = newer["id"].as_str().expect("an id");
    let report = restore(stack, &stack.dir().join("found"), &["--name", "before"]);
    assert_eq!(report["backup"], before, "{report}");
    let to = stack.dir().join("vain").display().to_string();
    let by_newer = ["restore", "main", "--to", &to, "--name", "before", "--backup", newer];
    let error = refused(stack, &by_newer);
    assert!(error.contains("E287") && error.contains("without `--backup`"), "{error}");
    psql("DELETE FROM point WHERE at = 3");
    let by_backup = ["--name", "before", "--backup", before];
    assert_eq!(look(stack, &stack.dir().join("by-backup"), &by_backup, points), "1 2");
    // The name again: behind the newest backup it is that one, and twice behind it nobody's guess.
    superuser("SELECT pg_create_restore_point('before')").expect("a place");
    psql("INSERT INTO point VALUES (4)");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(look(stack, &stack.dir().join("again"), &["--name", "before"], points), "1 2");
    let report = restore(stack, &stack.dir().join("newer"), &["--name", "before"]);
    assert_eq!(report["backup"], newer, "{report}");
    superuser("SELECT pg_create_restore_point('before')").expect("a place");
    psql("DELETE FROM point WHERE at = 4");
    std::thread::sleep(Duration::from_secs(2));
    let to = stack.dir().join("two").display().to_string();
    let error = refused(stack, &["restore", "main", "--to", &to, "--name", "before"]);
    assert!(error.contains("E287 2 points have the name before"), "{error}");
    let (_, place) = error.split_once("`--lsn ").expect("a place");
    let (place, _) = place.split_once('`').expect("a place");
    assert_eq!(look(stack, &stack.dir().join("second"), &["--lsn", place], points), "1 2 4");
}

/// Runs a line that was printed with the kit, which it gets on stdin; what it prints, or says if it
/// is refused.
fn with_kit(stack: &Stack, line: &str, kit: &str) -> Result<String, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut command = stack.command(&words);
    command.env("EVERHOLD_DATA", "/nonexistent").env("EVERHOLD_POINTER", "/nonexistent");
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("it starts");
    child.stdin.take().expect("a pipe").write_all(kit.as_bytes()).expect("the kit");
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_string();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

/// With every password lost, and no cluster that could be asked: what is printed with the kit is
/// enough for a restore.
fn by_the_kit_alone(stack: &Stack, kit: &str, points: &str) {
    let output = stack.command(&["repository", "kit", "vault", "--print"]).output();
    let told = String::from_utf8_lossy(&output.expect("it runs").stderr).to_string();
    let line = |what: &str| {
        let begin = format!("everhold repository {what} ");
        let mut lines = told.lines().map(str::trim).filter(|line| line.starts_with(&begin));
        let line = lines.next().unwrap_or_else(|| panic!("no {what}: {told}"));
        let line = line.trim_start_matches("everhold ");
        line.split(" >").next().unwrap_or(line).to_string()
    };
    let (spec, add) = (line("spec"), line("add-password"));
    let key = stack.dir().join("vault.key");
    fs::remove_file(&key).expect("the key file goes");
    let to = stack.dir().join("locked").display().to_string();
    let record = stack.dir().join("of-kit.json");
    let by = record.display().to_string();
    fs::write(&record, with_kit(stack, &spec, kit).expect("the spec")).expect("a record");

    fs::write(&key, "another horse\n").expect("a key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
    let error = refused(stack, &["restore", "main", "--to", &to, "--spec", &by]);
    assert!(error.contains("E282"), "{error}");

    // A kit that is not this repository's adds nothing: beside it is one of another making, and one
    // with another master key.
    let (of, beside) = (vault(stack), stack.dir().join("beside-vault"));
    for name in ["keys", "unfinished"] {
        fs::create_dir_all(beside.join(name)).expect("a directory");
    }
    let add_beside =
        add.replace(&format!("file://{}", of.display()), &format!("file://{}", beside.display()));
    let identity = fs::read_to_string(of.join("everhold.json")).expect("an identity");
    let sealed = fs::read(of.join("sealed")).expect("a proof");
    let id = kit.split_whitespace().nth(2).expect("an id");
    let of_another = identity.replace(id, "0123456789abcdef");
    let of_another_key: Vec<u8> = sealed.iter().rev().copied().collect();
    let mistyped = kit.replace(id, "0123456789abcdef");
    for (identity, sealed, kit, code, said) in [
        (&of_another, &sealed, kit, "E283", id),
        (&identity, &of_another_key, kit, "E282", "another master key"),
        (&identity, &sealed, &mistyped, "E282", "copied wrongly"),
    ] {
        fs::write(beside.join("everhold.json"), identity).expect("an identity");
        fs::write(beside.join("sealed"), sealed).expect("a proof");
        let error = with_kit(stack, &add_beside, kit).expect_err("a wrong kit");
        assert!(error.contains(code) && error.contains(said), "{error}");
    }
    let added = fs::read_dir(beside.join("keys")).expect("keys").count();
    assert_eq!(added, 0, "nothing was added");

    with_kit(stack, &add, kit).expect("a new password");
    assert_eq!(look(stack, &stack.dir().join("by-kit"), &["--spec", &by], points), "1 2");
}

#[test]
fn a_database_is_backed_up_and_comes_back() {
    let mut stack = stack();
    let hold = stack.wait("no repository", |status| {
        status["services"]["main"]["backup"]["error"]
            .as_str()
            .is_some_and(|error| error.contains("E281"))
    });
    assert!(hold["services"]["main"]["backup"]["newest"].is_null());
    let made = json(&stack, &["repository", "init"]);
    assert!(made["kit"].as_str().is_some_and(|kit| kit.starts_with("everhold-kit-1 test ")));
    let again = json(&stack, &["repository", "init"]);
    assert!(again["kit"].is_null() && again["there"][0] == "vault", "{again}");
    let printed = json(&stack, &["repository", "kit", "vault", "--print"]);
    assert_eq!(printed["kit"], made["kit"]);

    // The first one is made by itself.
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    let status = stack
        .wait("first backup", |status| status["services"]["main"]["backup"]["newest"].is_string());
    let backup = &status["services"]["main"]["backup"];
    assert_eq!((&backup["count"], &backup["copies"]), (&1.into(), &1.into()), "{backup}");
    let leader = &status["services"]["main"]["leader"];
    assert_ne!(&backup["last"]["node"], leader, "a standby makes it");

    // And one by hand.
    let second = json(&stack, &["backup", "now", "main"]);
    let listed = json(&stack, &["backup", "list", "main"]);
    let ids: Vec<&Value> =
        listed["backups"].as_array().expect("a list").iter().map(|it| &it["id"]).collect();
    assert_eq!(ids.len(), 2, "{listed}");
    assert_eq!(ids[0], &second["id"]);
    assert_eq!(listed["backups"][0]["kind"], "incremental");
    let bytes = |at: usize, key: &str| listed["backups"][at][key].as_u64().expect("bytes");
    assert!(bytes(0, "bytes_added") < bytes(1, "bytes_added") / 2, "{listed}");

    // The second in which a backup ended began before it was whole.
    let ended = listed["backups"][0]["ended_at"].as_str().expect("a time").to_string();
    let report = restore(&stack, &stack.dir().join("whole-second"), &["--time", &ended]);
    assert!(report["backup_ended_at"].as_str() <= Some(&ended), "{report}");

    // A point between two writes of ours.
    let psql =
        |sql: &str| stack.done(&["psql", "main", "--", "-XAt", "-c", sql]).trim().to_string();
    psql("CREATE TABLE point (at int); INSERT INTO point VALUES (1)");
    std::thread::sleep(Duration::from_millis(1_100));
    let between = psql(
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')",
    );
    std::thread::sleep(Duration::from_millis(1_100));
    psql("INSERT INTO point VALUES (2)");
    let lost = load.finish().lost;
    assert_eq!(lost, 0);
    stack.wait("archived log", |status| {
        status["services"]["main"]["backup"]["rpo_ms"].as_u64() == Some(0)
    });
    let to = stack.dir().join("restored");
    let report = restore(&stack, &to, &[]);
    println!("{report}");
    let points = "SELECT string_agg(at::text, ' ' ORDER BY at) FROM point";
    assert_eq!(look(&stack, &stack.dir().join("latest"), &[], points), "1 2");
    assert_eq!(look(&stack, &stack.dir().join("then"), &["--time", &between], points), "1");
    let then = after_the_last_commit(&mut stack);
    assert_eq!(look(&stack, &stack.dir().join("idle"), &["--time", &then], points), "1 2");
    named(&mut stack, points);
    // By what the repository has of the spec, as where the machines are gone.
    stack.wait("a copy of the spec", |status| status["copies"]["spec_at"].is_string());
    let place = format!("file://{}", vault(&stack).display());
    let key = stack.dir().join("vault.key").display().to_string();
    let record = stack.dir().join("record.json");
    let text = stack.done(&["repository", "spec", &place, "--key-file", &key]);
    fs::write(&record, text).expect("a record");
    let by = record.display().to_string();
    assert_eq!(look(&stack, &stack.dir().join("by"), &["--spec", &by], points), "1 2");
    by_the_kit_alone(&stack, made["kit"].as_str().expect("a kit"), points);
    fs::write(&record, "{}").expect("a record");
    let nowhere = stack.dir().join("nowhere").display().to_string();
    let error = refused(&stack, &["restore", "main", "--to", &nowhere, "--spec", &by]);
    assert!(error.contains("E105") && error.contains("everhold repository spec"), "{error}");
    let error = refused(&stack, &["restore", "main", "--to", &to.display().to_string()]);
    assert!(error.contains("E288"), "{error}");
    let other = stack.dir().join("other").display().to_string();
    for (more, code) in [
        (["--backup", "20200101T000000Z-0000"], "E286"),
        (["--time", "2020-01-01T00:00:00Z"], "E286"),
        (["--time", "tomorrow"], "E287"),
        (["--lsn", "FFFF/0"], "E287"),
        (["--name", "never-named"], "E287"),
    ] {
        let mut arguments = vec!["restore", "main", "--to", &other];
        arguments.extend(more);
        let error = refused(&stack, &arguments);
        assert!(error.contains(code), "{more:?}: {error}");
    }
}
