//! One of two repositories is lost and made anew: nothing is forgotten for that, and it is made level.

use crate::stack::{PATIENCE, Stack, Wanted};
use everhold_core::spec::Location;
use everhold_repository::{Password, PlaceConfig, Repository};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

const PASSWORD: &str = "correct horse";

/// A stack with two repositories, each of which has to hold everything, and two backups.
fn start() -> (Stack, [String; 2]) {
    let mut stack = Stack::new(Wanted::default());
    let mut places = String::new();
    for name in ["vault", "west"] {
        let key = stack.key_file(name);
        fs::write(&key, PASSWORD).expect("a key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
        let at = stack.dir().join(name);
        places += &format!(
            "{name} = {{ url = \"file://{}\", key_file = \"{}\" }}\n",
            at.display(),
            key.display()
        );
    }
    let spec = format!(
        "{}[repository]\n{places}[service.main.backup]\nrepositories = [\"vault\", \"west\"]\n\
         keep = {{ days = 0 }}\nfull = \"0 0 1 1 *\"\nincremental = \"0 0 1 1 *\"\n",
        stack.spec(false)
    );
    fs::write(stack.spec_file(), spec).expect("the spec");
    stack.up();
    stack.whole();
    json(&stack, &["repository", "init"]);
    stack.wait("a first backup", |status| backup(status)["count"] == 1);
    // A run beside a backup waits for it, and the next one for ten minutes.
    forgotten_since(&mut stack);
    let first = ids(&stack).remove(0);
    let made = json(&stack, &["backup", "now", "main", "--full"]);
    let second = made["id"].as_str().expect("an id").to_string();
    forgotten_since(&mut stack);
    (stack, [first, second])
}

/// Waits until the run after the newest backup is over.
fn forgotten_since(stack: &mut Stack) {
    let ended = listed(stack, "ended_at").remove(0);
    stack.wait("the run after it", |status| {
        backup(status)["forgotten"]["at"].as_str() >= ended.as_str()
            && backup(status)["forgetting"].is_null()
    });
}

fn json(stack: &Stack, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = arguments.iter().chain(&["--json"]).copied().collect();
    serde_json::from_str(&stack.done(&arguments)).expect("JSON")
}

fn backup(status: &Value) -> Value {
    status["services"]["main"]["backup"].clone()
}

/// Of all backups, the newest first, what `key` says.
fn listed(stack: &Stack, key: &str) -> Vec<Value> {
    let listed = json(stack, &["backup", "list", "main"]);
    listed["backups"].as_array().expect("a list").iter().map(|it| it[key].clone()).collect()
}

fn ids(stack: &Stack) -> Vec<String> {
    let ids = listed(stack, "id").into_iter();
    ids.map(|it| it.as_str().expect("an id").to_string()).collect()
}

fn refused(stack: &Stack, arguments: &[&str]) -> String {
    let output = stack.command(arguments).output().expect("it runs");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).to_string()
}

fn both(stack: &Stack) -> Repository {
    let place = |name: &str| PlaceConfig {
        name: name.to_string(),
        location: Location::Directory(stack.dir().join(name).display().to_string()),
        region: None,
        endpoint: None,
        credentials_file: None,
    };
    let places = ["vault", "west"].map(|name| (place(name), Password::new(PASSWORD)));
    Repository::open(&places, "test").expect("opened")
}

#[test]
fn nothing_is_forgotten_for_a_lost_place_and_it_is_made_level() {
    let (mut stack, [first, second]) = start();
    let (west, lost) = (stack.dir().join("west"), stack.dir().join("lost"));
    fs::rename(&west, &lost).expect("lost");

    // While it is away nothing is judged, so nothing is announced either.
    let said = refused(&stack, &["backup", "prune", "main", "--drop", &first]);
    assert!(said.contains("E280") && said.contains("west"), "{said}");
    stack.hold("retention", &["west"]);
    let journal = stack.done(&["journal", "-n", "200", "--service", "main"]);
    assert!(!journal.contains("forget 1 backups"), "{journal}");

    // Made anew, it has nothing of them: the other's are all there is.
    json(&stack, &["repository", "init", "west"]);
    assert_eq!(listed(&stack, "copies"), [1, 1]);
    let plan = json(&stack, &["backup", "prune", "main", "--dry-run"]);
    let goes = plan["databases"][0]["backups"].as_array().expect("a list").iter();
    assert!(goes.clone().count() == 2 && goes.clone().all(|it| it["goes"] == false), "{plan}");
    let all = ["backup", "prune", "main", "--drop", &first, "--drop", &second];
    assert!(refused(&stack, &all).contains("E290"));
    let run = json(&stack, &["backup", "prune", "main"]);
    assert!(run["copied"].as_u64() > Some(0) && run["left"] == 0, "{run}");
    assert_eq!(run["dropped"], 0, "{run}");
    // None had the copies that are asked for: a full one may be made meanwhile by schedule.
    let ours = ids(&stack).into_iter().filter(|it| *it <= second);
    assert_eq!(ours.collect::<Vec<_>>(), [second.clone(), first.clone()]);
    assert!(listed(&stack, "copies").iter().all(|copies| *copies == 2));
    let journal = stack.done(&["journal", "-n", "200", "--service", "main"]);
    assert!(journal.contains("copied to repositories that lacked them"), "{journal}");

    // Its machine died while one was made: it is waited for once, and then given up.
    let died = format!("{}dead", &second[..second.len() - 4]);
    let repository = both(&stack);
    repository.put(&format!("main/running/{died}"), b"main").expect("announced");
    let waits = json(&stack, &["backup", "prune", "main"]);
    let waits_for = |run: &Value| {
        run["waiting_for"].as_array().is_some_and(|it| it.contains(&died.as_str().into()))
    };
    assert!(waits_for(&waits), "{waits}");
    let until = Instant::now() + PATIENCE;
    while waits_for(&json(&stack, &["backup", "prune", "main"])) {
        assert!(Instant::now() < until, "nobody makes it");
        std::thread::sleep(Duration::from_secs(1));
    }

    // A manifest that no place has whole: an operator says what is to become of it.
    for place in ["vault", "west"] {
        fs::write(stack.dir().join(place).join("main/backups").join(&first), "x").expect("harmed");
    }
    let said = refused(&stack, &["backup", "prune", "main"]);
    assert!(said.contains("E285") && said.contains(&format!("--drop {first}")), "{said}");
    let hold = stack.hold("retention", &["can't be read"]);
    assert_eq!(hold["needs_operator"], true, "{hold}");
    let run = json(&stack, &["backup", "prune", "main", "--drop", &first]);
    assert_eq!((&run["dropped"], &run["error"]), (&1.into(), &Value::Null), "{run}");
    let left = ids(&stack);
    assert!(left.contains(&second) && !left.contains(&first), "{left:?}");
    let holds = stack.status().expect("a status")["holds"].clone();
    assert!(!holds.to_string().contains("retention"), "{holds}");
}
