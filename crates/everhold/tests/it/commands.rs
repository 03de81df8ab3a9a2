//! The command line as a stranger meets it: exit codes, what goes where, and errors with a next step.

use crate::stack::{Stack, Wanted};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

struct Bed {
    dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Bed {
        Bed { dir: tempfile::tempdir().expect("a directory") }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_everhold"));
        command.args(arguments).env("EVERHOLD_DATA", self.data());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("it runs")
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    }

    /// What `up` leaves for commands, with an API at that address.
    fn point_at(&self, api: &str) {
        let token_file = self.data().join("secrets/api.token");
        for dir in ["run", "secrets"] {
            std::fs::create_dir_all(self.data().join(dir)).expect("made");
        }
        std::fs::write(&token_file, "geheim\n").expect("written");
        let context = json!({
            "cluster": "shop", "data": self.data(), "api": api, "token_file": token_file,
        });
        std::fs::write(self.data().join("run/context.json"), context.to_string()).expect("written");
    }

    /// An API that gives every request the same answer; what it was sent comes back when dropped
    /// into `heads`.
    fn answering(&self, status: &str, body: &str) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        self.point_at(&format!("http://{}", listener.local_addr().expect("bound")));
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        // It ends with the test's process.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or(0);
                let asked = String::from_utf8_lossy(&head[..read]).to_lowercase();
                assert!(asked.contains("authorization: bearer geheim"), "{asked}");
                let _ = stream.write_all(answer.as_bytes());
            }
        });
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).to_string()
}

/// Exit code, whether stdout is empty, and a part of stderr.
fn check(output: &Output, code: i32, silent: bool, said: &str) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    assert_eq!(out.is_empty(), silent, "{out}");
    assert!(err.contains(said), "{err}");
    assert!(!err.contains("panicked"), "{err}");
}

#[test]
fn a_bad_spec_is_told_in_full_and_nothing_is_made() {
    let bed = Bed::new();
    let spec = bed.file(
        "bad.toml",
        "schema = 1\ncluster = \"shop\"\n[service.main]\nkind = \"postgres\"\nversoin = 15\n\
         nodes = [\"a\", \"x\"]\nsynchronous = { number = 9 }\n",
    );
    let output = bed.run(&["check", &spec]);
    check(&output, 2, true, "bad.toml:5:1: E003");
    let told = text(&output.stderr);
    for part in ["E012", "did you mean `version`"] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let output = bed.run(&["check", &spec, "--json"]);
    check(&output, 2, false, "");
    let faults: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let codes: Vec<&str> = faults["faults"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|f| f["code"].as_str())
        .collect();
    assert!(codes.len() > 1 && codes.contains(&"E003"), "{codes:?}");
    // One line each, with place, code and next step.
    assert_eq!(told.lines().count(), codes.len(), "{told}");
    for (line, code) in told.lines().zip(codes) {
        assert!(line.starts_with(&format!("{spec}:")), "{line}");
        assert!(line.contains(&format!(": {code} ")) && line.contains("; next step: "), "{line}");
    }
    // Whatever stands in the document.
    let odd = "schema = 1\ncluster = \"shop\"\n\"a\\nb\" = 1\n";
    for (name, document) in [("odd.toml", odd.to_string()), ("torn.toml", format!("{odd}x = [\ny"))]
    {
        let spec = bed.file(name, &document);
        let faults = bed.run(&["check", &spec, "--json"]);
        let faults: Value = serde_json::from_slice(&faults.stdout).expect("JSON");
        let faults = faults["faults"].as_array().map_or(0, Vec::len);
        let told = text(&bed.run(&["check", &spec]).stderr);
        assert!(faults > 0 && told.lines().count() == faults, "{faults} faults: {told}");
    }
    for wrong in ["up --spec", "apply"] {
        // `apply` asks the cluster for the verdict; there is none.
        let mut words: Vec<&str> = wrong.split(' ').collect();
        words.push(&spec);
        let code = if wrong == "apply" { 1 } else { 2 };
        check(&bed.run(&words), code, true, "E");
    }
    check(&bed.run(&["check", "/nowhere.toml"]), 2, true, "E027");
    assert!(!bed.data().exists(), "nothing was made");
}

#[test]
fn without_a_cluster_each_command_says_so_and_what_to_do() {
    let bed = Bed::new();
    let commands: [&[&str]; 9] = [
        &["status"],
        &["dsn", "main"],
        &["psql", "main", "-c", "select 1"],
        &["switchover", "main"],
        &["failover", "main", "--force"],
        &["maintenance", "main", "on"],
        &["fault", "heal"],
        &["journal", "--verify"],
        &["explain", "a-1"],
    ];
    for command in commands {
        check(&bed.run(command), 1, true, "E230 no running cluster found");
    }
    let output = bed.run(&["status", "--json"]);
    check(&output, 1, true, "");
    let error: Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!(error["error"]["code"], "E230");
    assert!(error["error"]["next"].as_str().is_some_and(|next| next.contains("everhold up")));

    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    bed.point_at(&format!("http://{free}"));
    check(&bed.run(&["status"]), 1, true, "E235 cannot reach the API of cluster shop");
    check(
        &bed.run(&["status"]),
        1,
        true,
        &format!("next step: `everhold up --data {}", bed.data().display()),
    );
    // The same cluster, found by the word that its `up` left, wherever that was told to leave it.
    let word = std::fs::read_to_string(bed.data().join("run/context.json")).expect("there");
    let pointer = bed.file("pointer.json", &word);
    let mut bare = bed.command(&["status"]);
    bare.env_remove("EVERHOLD_DATA").env("EVERHOLD_POINTER", &pointer);
    check(&bare.output().expect("it runs"), 1, true, "E235 cannot reach the API of cluster shop");
    std::fs::remove_file(&pointer).expect("removed");
    let gone = format!("E230 no running cluster found ({pointer} is not there)");
    check(&bare.output().expect("it runs"), 1, true, &gone);

    std::fs::remove_file(bed.data().join("secrets/api.token")).expect("removed");
    check(&bed.run(&["status"]), 1, true, "E236");
    std::fs::write(bed.data().join("run/context.json"), "{\"clu").expect("torn");
    check(&bed.run(&["status"]), 1, true, "E230");
}

#[test]
fn wrong_usage_is_two() {
    let bed = Bed::new();
    let wrong: [&[&str]; 8] = [
        &[],
        &["stauts"],
        &["dsn"],
        &["failover", "main"],
        &["maintenance", "main", "maybe"],
        &["fault"],
        &["fault", "kill-node"],
        &["journal", "--limit", "x"],
    ];
    for command in wrong {
        check(&bed.run(command), 2, true, "");
    }
}

#[test]
fn errors_of_the_api_come_through_and_other_servers_are_told_from_it() {
    let bed = Bed::new();
    bed.answering(
        "409 Conflict",
        r#"{"error":{"code":"E307","message":"a is busy","next":"wait"}}"#,
    );
    check(&bed.run(&["switchover", "main"]), 1, true, "E307 a is busy; next step: wait");
    let json = text(&bed.run(&["switchover", "main", "--json"]).stderr);
    assert_eq!(
        serde_json::from_str::<Value>(&json).expect("JSON")["error"]["message"],
        "a is busy"
    );
    let faults = r#"{"error":{"code":"E314","message":"1 fault","next":"correct it","faults":
        [{"code":"E003","file":"everhold.toml","line":2,"column":1,"message":"no such key","next":"x"}]}}"#;
    bed.answering("422 Unprocessable Entity", faults);
    let spec = bed.file("mine.toml", "schema = 1\n");
    check(&bed.run(&["apply", &spec]), 2, true, "mine.toml:2:1: E003 no such key; next step: x");
    let token =
        r#"{"error":{"code":"E312","message":"may be lost","next":"-","token":"7:a.1+1of(b.1)"}}"#;
    bed.answering("409 Conflict", token);
    let wanted =
        "may be lost; next step: everhold failover main --force --to b --token '7:a.1+1of(b.1)'";
    check(&bed.run(&["failover", "main", "--force", "--to", "b"]), 1, true, wanted);
    for (status, body) in [("200 OK", "<html>"), ("404 Not Found", "{}"), ("302 Found", "")] {
        bed.answering(status, body);
        check(&bed.run(&["status"]), 1, true, "E237");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let bed = Bed::new();
    let entry = json!({ "id": "a-1", "at": "2026-01-01T00:00:00Z", "text": "x".repeat(1000) });
    let entries: Vec<&Value> = std::iter::repeat_n(&entry, 2_000).collect();
    bed.answering("200 OK", &json!({ "entries": entries }).to_string());
    for json in [false, true] {
        let mut command = bed.command(&["journal"]);
        if json {
            command.arg("--json");
        }
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        // One byte is read, then nobody reads any more.
        let mut out = child.stdout.take().expect("a pipe");
        out.read_exact(&mut [0]).expect("something");
        drop(out);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn status_is_laid_out_for_people() {
    let bed = Bed::new();
    bed.answering("200 OK", include_str!("../../src/api/tests/status.json"));
    let output = bed.run(&["status"]);
    check(&output, 0, false, "");
    let expected = "\
cluster shop  degraded  2026-11-20T10:00:00.123Z
store   etcd up, revision 8123, copied 41.0 s ago

service main (postgres)  degraded, led by b, epoch 7
  a commit is acknowledged when the leader and 1 of (a) hold it; NO further node may be lost
  node  role     state      health  lag        in route  port   pid
  a     standby  streaming  up      0 B, 0 ms  yes       15400  5120
  last failover: from a to b at 2026-11-20T09:58:31.004Z, epoch 7, rule leader-down, outage 92 ms  \
(everhold explain b-118)

node  health  address   zone  agent pid  heard
a     up      10.0.1.1  eu-1  4711       40 ms ago

gateway gateway  up
  write  0.0.0.0:6432  open  to b  12 connections  0 waiting

holds   main redundancy: 1 of 2 standbys streaming, since 2026-11-20T09:58:31Z
        ends with: wait for c (rewinding, 40 %)  (everhold explain b-121)
";
    assert_eq!(text(&output.stdout), expected);
}

/// Runs a command on the stack and gives what it printed.
fn told(stack: &Stack, arguments: &[&str]) -> String {
    let output = stack.command(arguments).output().expect("it runs");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {out}{err}");
    out.trim_end().to_string()
}

fn psql(url: &str, query: &str) -> String {
    let output = Command::new("psql").args([url, "-XAtc", query]).output().expect("psql");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim_end().to_string()
}

fn json_of(stack: &Stack, arguments: &[&str]) -> Value {
    serde_json::from_str(&told(stack, arguments)).expect("JSON")
}

#[test]
fn an_operator_s_hour_with_a_real_cluster() {
    let mut stack = Stack::start(Wanted::default());
    stack.whole();

    // Addresses that work as they are printed.
    assert_eq!(psql(&told(&stack, &["dsn", "main"]), "select 1"), "1");
    assert_eq!(psql(&told(&stack, &["dsn", "main", "--show-password"]), "select 2"), "2");
    let read = psql(&told(&stack, &["dsn", "main", "--read"]), "select pg_is_in_recovery()");
    assert_eq!(read, "t");
    assert_eq!(told(&stack, &["psql", "main", "-XAt", "-c", "select current_user"]), "app");

    // Twice, so that the first one has left nothing behind.
    for _ in 0..2 {
        let (before, epoch) = (stack.leader(), stack.epoch());
        let moved = json_of(&stack, &["switchover", "main", "--json"]);
        assert_ne!(moved["leader"], before.as_str());
        assert!(moved["epoch"].as_u64() > Some(epoch), "{moved}");
        assert!(moved["outage_ms"].is_u64(), "{moved}");
        let status = stack.whole();
        let last = &status["services"]["main"]["last_failover"];
        assert_eq!((&last["kind"], &last["to"]), (&json!("switchover"), &moved["leader"]));
    }
    let leader = stack.leader();
    let same = stack.command(&["switchover", "main", "--to", &leader]).output().expect("it runs");
    check(&same, 1, true, "leads main already");

    // Its word to commands stands where it was told to, and leads them here.
    let mut bare = stack.command(&["status", "--json"]);
    let found = bare.env_remove("EVERHOLD_DATA").output().expect("it runs");
    let found: Value = serde_json::from_slice(&found.stdout).expect("JSON");
    assert_eq!(found["cluster"], "test");
    let word = std::fs::read_to_string(stack.dir().join("up.json")).expect("the pointer");
    assert!(word.contains(&stack.data().display().to_string()), "{word}");

    // A killed server heals, and the journal says why.
    let epoch = stack.epoch();
    told(&stack, &["fault", "kill-postgres", "main"]);
    let status = stack.wait("a failover", |status| {
        status["services"]["main"]["last_failover"]["epoch"].as_u64() > Some(epoch)
    });
    let last = status["services"]["main"]["last_failover"].clone();
    assert_eq!((&last["kind"], &last["rule"]), (&json!("failover"), &json!("leader-down")));
    let why = told(&stack, &["explain", last["journal"].as_str().expect("an entry")]);
    assert!(why.contains("the same verdict"), "{why}");
    stack.whole();

    // A frozen standby keeps nobody up at night, and a second fault is refused meanwhile.
    let leader = stack.leader();
    let standby = if leader == "a" { "b" } else { "a" };
    told(&stack, &["fault", "freeze-node", standby, "--for", "60s"]);
    stack.wait("it is missed", |status| status["nodes"][standby]["health"] == "down");
    let output = stack.command(&["fault", "kill-node", &leader]).output().expect("it runs");
    check(&output, 1, true, "E313");
    assert!(told(&stack, &["fault", "list"]).contains("is frozen since"));

    // What is missing meanwhile is waited for, and the journal says since when and why.
    let redundancy = |status: &Value| {
        let holds = status["holds"].as_array().cloned().unwrap_or_default();
        holds.into_iter().find(|hold| hold["rule"] == "redundancy")
    };
    let status = stack.wait("a hold", |status| redundancy(status).is_some());
    let hold = redundancy(&status).expect("there");
    let since = hold["since"].as_str().expect("a time").to_string();
    let id = hold["journal"].as_str().expect("an entry").to_string();
    assert!(id.starts_with(&format!("{leader}-")), "{hold}");
    let why = told(&stack, &["explain", &id]);
    for part in ["redundancy: holds", "it ends with: the others stream again", "the same verdict"] {
        assert!(why.contains(part), "{part} is not in {why}");
    }
    // Other things are journaled, and it stays the same hold.
    told(&stack, &["maintenance", "main", "on"]);
    told(&stack, &["maintenance", "main", "off"]);
    let again = stack.wait("the same hold", |status| redundancy(status).is_some());
    let again = redundancy(&again).expect("there");
    assert_eq!((&again["since"], &again["journal"]), (&json!(since), &json!(id)));
    assert!(again["recheck_at"].is_null(), "{again}");

    told(&stack, &["fault", "heal"]);
    stack.whole();
    stack.wait("no such hold", |status| redundancy(status).is_none());
    let over = told(&stack, &["journal", "--limit", "200"]);
    assert!(over.contains("redundancy: waits no more, after"), "{over}");
    assert_eq!(stack.leader(), leader);

    // Asked twice, done once.
    let asked = stack.command(&["failover", "main", "--force", "--json"]).output().expect("runs");
    check(&asked, 1, true, "E312");
    let error: Value = serde_json::from_slice(&asked.stderr).expect("JSON");
    let token = error["error"]["token"].as_str().expect("a token").to_string();
    told(&stack, &["failover", "main", "--force", "--token", &token]);
    stack.whole();

    told(&stack, &["maintenance", "main", "on"]);
    assert_eq!(json_of(&stack, &["status", "--json"])["services"]["main"]["maintenance"], true);
    told(&stack, &["maintenance", "main", "off"]);

    // The spec: compared, applied, and the second time there is nothing to do.
    let file = stack.dir().join("everhold.toml");
    let text = std::fs::read_to_string(&file).expect("there");
    let changed = text.replace("parameters = {  }", "parameters = { work_mem = \"8MB\" }");
    assert_ne!(text, changed);
    let new = stack.dir().join("new.toml");
    std::fs::write(&new, changed).expect("written");
    apply(&stack, &new, &["--dry-run"], false, 1);
    apply(&stack, &new, &[], true, 1);
    apply(&stack, &new, &[], false, 0);

    let verified = json_of(&stack, &["journal", "--verify", "--json"]);
    assert_eq!(verified["ok"], true, "{verified}");
    let journal = told(&stack, &["journal", "--limit", "500"]);
    for part in ["switchover to the best standby", "fault: freeze node", "maintenance on", "apply:"]
    {
        assert!(journal.contains(part), "{part} is not in the journal");
    }
    let secret = stack.password();
    assert!(!journal.contains(&secret));
}

fn apply(stack: &Stack, file: &Path, more: &[&str], applied: bool, changes: usize) {
    let file = file.display().to_string();
    let words: Vec<&str> =
        ["apply", &file, "--json"].into_iter().chain(more.iter().copied()).collect();
    let answer = json_of(stack, &words);
    assert_eq!(answer["applied"], applied, "{answer}");
    assert_eq!(answer["changes"].as_array().map(Vec::len), Some(changes), "{answer}");
}
