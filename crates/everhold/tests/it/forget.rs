//! Old backups and their log are forgotten, by themselves and by hand, and never what is needed.

use crate::archive::checkpoint;
use crate::stack::{Stack, Wanted};
use everhold_core::ids::Lsn;
use everhold_core::spec::Location;
use everhold_repository::{Log, Password, PlaceConfig, Repository};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// A stack with one repository and a window of no days: the newest backup and the one before stay.
fn start() -> (Stack, Repository) {
    let mut stack = Stack::new(Wanted::default());
    let key = stack.key_file("vault");
    fs::write(&key, "correct horse\n").expect("a key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
    let vault = stack.dir().join("vault").display().to_string();
    let spec = format!(
        "{}[repository]\nvault = {{ url = \"file://{vault}\", key_file = \"{}\" }}\n\
         [service.main.backup]\nrepositories = [\"vault\"]\nkeep = {{ days = 0 }}\n\
         full = \"0 0 1 1 *\"\nincremental = \"0 0 1 1 *\"\n",
        stack.spec(false),
        key.display()
    );
    fs::write(stack.spec_file(), spec).expect("the spec");
    let place = PlaceConfig {
        name: "vault".to_string(),
        location: Location::Directory(vault),
        region: None,
        endpoint: None,
        credentials_file: None,
    };
    let repository = Repository::create(&place, &Password::new("correct horse"), "test");
    stack.up();
    stack.whole();
    stack.wait("a first backup", |status| status["services"]["main"]["backup"]["count"] == 1);
    (stack, repository.expect("a repository"))
}

fn json(stack: &Stack, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = arguments.iter().chain(&["--json"]).copied().collect();
    serde_json::from_str(&stack.done(&arguments)).expect("JSON")
}

/// More log than two segments, and then a full backup; its id.
fn another(stack: &mut Stack) -> String {
    let sql = "SELECT pg_logical_emit_message(true, 'test', repeat('x', 35000000))";
    stack.done(&["psql", "main", "--", "-XAt", "-c", sql]);
    // The leader's, and once it has come to the standbys, theirs.
    checkpoint(stack);
    std::thread::sleep(Duration::from_secs(1));
    checkpoint(stack);
    let made = json(stack, &["backup", "now", "main", "--full"]);
    made["id"].as_str().expect("an id").to_string()
}

fn ids(stack: &Stack) -> Vec<String> {
    let listed = json(stack, &["backup", "list", "main"]);
    let ids = listed["backups"].as_array().expect("a list").iter();
    ids.map(|it| it["id"].as_str().expect("an id").to_string()).collect()
}

/// Where the archived log begins.
fn log_start(repository: &Repository) -> Lsn {
    let name = repository.list("main/log/").expect("listed").into_keys().next().expect("a log");
    let sysid = name.split('/').nth(2).expect("its database").parse().expect("a number");
    let log = Log::new(repository, "main", sysid);
    log.pieces(1).expect("listed").iter().map(|it| it.start).min().expect("a piece")
}

#[test]
fn what_nothing_needs_goes_by_itself_and_the_rest_stays() {
    let (mut stack, repository) = start();
    let first = ids(&stack)[0].clone();
    let begin = log_start(&repository);
    let second = another(&mut stack);
    let third = another(&mut stack);
    // After the full backup, without being asked.
    stack.wait("two backups", |status| {
        status["services"]["main"]["backup"]["forgotten"]["dropped"] == 1
    });
    assert_eq!(ids(&stack), [third.clone(), second.clone()], "{first} is gone");
    let kept_from = log_start(&repository);
    let listed = json(&stack, &["backup", "list", "main"]);
    let start: Lsn = listed["backups"][1]["start"].as_str().expect("a place").parse().expect("it");
    assert!(begin < kept_from && kept_from <= start, "{begin} {kept_from} {start}");
    let journal = stack.done(&["journal", "-n", "200", "--service", "main"]);
    for words in [&format!("forget 1 backups ({first})"), "forgotten: 1 backups"] {
        assert!(journal.contains(words), "{words} not in {journal}");
    }

    // What would go, and what for the rest stays.
    let plan = json(&stack, &["backup", "prune", "main", "--dry-run"]);
    let backups = &plan["databases"][0]["backups"];
    let newest = (&backups[0]["id"], &backups[0]["kept_for"]);
    assert_eq!(
        newest,
        (&third.as_str().into(), &serde_json::json!(["window", "newest"])),
        "{plan}"
    );
    assert_eq!(backups[1]["kept_for"], serde_json::json!(["base"]), "{plan}");
    let plan = json(&stack, &["backup", "prune", "main", "--dry-run", "--drop", &second]);
    assert_eq!(plan["databases"][0]["backups"][1]["goes"], true, "{plan}");
    assert_eq!(ids(&stack).len(), 2, "a dry run removes nothing");

    // Nothing goes while the repository is away, and status says so.
    let (vault, away) = (stack.dir().join("vault"), stack.dir().join("away"));
    fs::rename(&vault, &away).expect("moved");
    let output = stack.command(&["backup", "prune", "main"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(!output.status.success() && said.contains("E28"), "{said}");
    stack.hold("retention", &["vault"]);
    fs::rename(&away, &vault).expect("back");
    assert_eq!(ids(&stack).len(), 2);

    // By hand: one that is named, never the last.
    let refused = |drop: &[&str]| {
        let mut command = stack.command(&["backup", "prune", "main"]);
        drop.iter().for_each(|id| drop_flag(&mut command, id));
        let output = command.output().expect("it runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).to_string()
    };
    assert!(refused(&["20200101T000000Z-0000"]).contains("E286"));
    assert!(refused(&[&second, &third]).contains("E290"));
    let pruned = json(&stack, &["backup", "prune", "main", "--drop", &second]);
    assert_eq!((&pruned["dropped"], &pruned["error"]), (&1.into(), &Value::Null), "{pruned}");
    assert!(pruned["log_pieces"].as_u64() > Some(0), "{pruned}");
    assert_eq!(ids(&stack), [third]);
    let status = stack.status().expect("a status");
    let held =
        status["holds"].as_array().expect("holds").iter().any(|it| it["rule"] == "retention");
    assert!(!held, "{}", status["holds"]);
    let to = stack.dir().join("restored").display().to_string();
    json(&stack, &["restore", "main", "--to", &to]);
}

fn drop_flag(command: &mut std::process::Command, id: &str) {
    command.args(["--drop", id]);
}
