//! A repository whose master key others may have is replaced by a copy under another one.

use crate::backups::{look, refused, stack, vault};
use crate::stack::Stack;
use crate::stack::load::Load;
use everhold_core::backup::Kind;
use everhold_core::spec::Location;
use everhold_repository::log::coverage;
use everhold_repository::{Log, Password, PlaceConfig, Repository};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn backup(status: &Value) -> Value {
    status["services"]["main"]["backup"].clone()
}

fn psql(stack: &Stack, sql: &str) -> String {
    stack.done(&["psql", "main", "--", "-XAt", "-c", sql]).trim().to_string()
}

#[test]
fn a_cluster_goes_over_to_a_copy_under_load() {
    let mut stack = stack();
    stack.done(&["repository", "init"]);
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    stack.wait("a first backup", |status| backup(status)["count"] == 1);
    psql(&stack, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)");
    let new = stack.dir().join("new");
    let key = stack.key_file("new").display().to_string();
    fs::write(&key, "another password").expect("a key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
    let url = format!("file://{}", new.display());
    let old_key = stack.key_file("vault").display().to_string();

    // The old password is none for the copy.
    let with_old = ["repository", "copy", "vault", "--to", &url, "--to-key-file", &old_key];
    let said = refused(&stack, &with_old);
    assert!(said.contains("E282") && said.contains("opens vault too"), "{said}");
    let copy = ["repository", "copy", "vault", "--to", &url, "--to-key-file", &key];
    let said = stack.done(&copy);
    assert!(said.contains("is whole"), "{said}");
    psql(&stack, "INSERT INTO kept VALUES (2)");

    // Over to it, and then what the old one got until then.
    let spec = fs::read_to_string(stack.spec_file()).expect("the spec");
    let declared = format!("[repository]\nnew = {{ url = \"{url}\", key_file = \"{key}\" }}\n");
    let spec = spec.replace("[repository]\n", &declared);
    let over = spec.replace("repositories = [\"vault\"]", "repositories = [\"new\"]");
    assert_ne!(spec, over);
    fs::write(stack.spec_file(), &over).expect("the spec");
    let file = stack.spec_file().display().to_string();
    stack.done(&["apply", &file]);
    psql(&stack, "INSERT INTO kept VALUES (3)");
    stack.wait("the log in the copy", |status| backup(status)["rpo_ms"].is_u64());
    let again = stack.done(&copy);
    assert!(again.contains("is whole"), "{again}");
    stack.done(&["backup", "now", "main"]);
    assert_eq!(load.finish().lost, 0);
    fs::rename(vault(&stack), stack.dir().join("gone")).expect("destroyed");
    stack.wait("all of it archived", |status| backup(status)["rpo_ms"] == 0);
    let held = |status: &Value| {
        let holds = status["holds"].as_array().cloned().unwrap_or_default();
        holds.iter().any(|hold| hold["rule"].as_str().is_some_and(|it| it.starts_with("log-")))
    };
    stack.wait("no hold", |status| !held(status));

    // No hole since the first backup, and it is listed, restored and proven from the copy alone.
    let place = PlaceConfig {
        name: "new".to_string(),
        location: Location::Directory(new.display().to_string()),
        region: None,
        endpoint: None,
        credentials_file: None,
    };
    let alone = Repository::open(&[(place, Password::new("another password"))], "test");
    let alone = alone.expect("opened");
    let listed = everhold_repository::backup::list(&alone, "main").expect("listed").backups;
    let first = &listed[0];
    assert!(listed.len() >= 2 && listed.iter().all(|it| it.copies == 1), "{listed:?}");
    let last = &listed[listed.len() - 1];
    assert!(last.kind == Kind::Full && last.base.is_none(), "{last:?}");
    let log = Log::new(&alone, "main", first.about.sysid);
    let (_, line) = log.newest_line().expect("read").expect("a line");
    let covered = coverage(&log.pieces(1).expect("listed"), &line);
    assert_eq!(covered.len(), 1, "{covered:?}");
    let sql = "SELECT count(*) FROM kept";
    let (one, other) = (stack.dir().join("one"), stack.dir().join("other"));
    assert_eq!(look(&stack, &one, &["--backup", &first.id], sql), "3");
    assert_eq!(look(&stack, &other, &[], sql), "3");
    for id in [&first.id, &last.id] {
        stack.done(&["backup", "prove", "main", id]);
    }
    let left: Vec<&str> = over.lines().filter(|it| !it.starts_with("vault = ")).collect();
    fs::write(stack.spec_file(), left.join("\n")).expect("the spec");
    stack.done(&["apply", &file]);
    stack.done(&["repository", "check"]);
}
