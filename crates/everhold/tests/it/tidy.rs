//! The house rules that a machine can hold: crate edges, core's few dependencies, file lengths,
//! words that don't belong here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which crate may know which (DESIGN: split by what they depend on).
const EDGES: [(&str, &[&str]); 7] = [
    ("core", &[]),
    ("store", &["core"]),
    ("adapters", &["core"]),
    ("gateway", &["core"]),
    ("repository", &["core"]),
    ("everhold", &["core", "store", "adapters", "gateway", "repository"]),
    ("sim", &["core", "store"]),
];
/// What judges cannot see a runtime, a clock or a socket.
const CORE_DEPENDENCIES: [&str; 3] = ["serde", "serde_json", "thiserror"];
/// Beyond this a file has more than one purpose.
const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The dependencies of a crate for its own code, not for its tests.
fn dependencies(name: &str) -> BTreeSet<String> {
    let path = root().join("crates").join(name).join("Cargo.toml");
    let manifest: toml_edit::DocumentMut =
        fs::read_to_string(path).expect("a manifest").parse().expect("TOML");
    let table = manifest["dependencies"].as_table().expect("dependencies");
    table.iter().map(|(name, _)| name.to_string()).collect()
}

#[test]
fn crates_know_only_whom_they_may() {
    let crates: BTreeSet<String> = fs::read_dir(root().join("crates"))
        .expect("crates")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().to_string())
        .collect();
    let declared: BTreeMap<&str, &[&str]> = EDGES.into_iter().collect();
    assert_eq!(crates, declared.keys().map(|name| name.to_string()).collect::<BTreeSet<_>>());
    for (name, allowed) in declared {
        for dependency in dependencies(name) {
            if let Some(other) = dependency.strip_prefix("everhold-") {
                assert!(allowed.contains(&other), "{name} must not depend on {other}");
            }
        }
    }
}

#[test]
fn core_depends_on_next_to_nothing() {
    for dependency in dependencies("core") {
        assert!(CORE_DEPENDENCIES.contains(&dependency.as_str()), "core must not use {dependency}");
    }
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join("crates")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn files_have_one_purpose_and_no_leftovers() {
    // Written apart, so that this file doesn't find itself.
    let banned: Vec<String> = [
        ("to", "do!("),
        ("unimple", "mented!("),
        ("FIX", "ME"),
        ("X", "XX"),
        ("#[ig", "nore]"),
        ("/wo", "rk/"),
        ("/ro", "ot/"),
    ]
    .map(|(a, b)| format!("{a}{b}"))
    .to_vec();
    let names = ["utils.rs", "common.rs", "helpers.rs", "manager.rs"];
    let mut faults = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).expect("readable");
        let shown = path.display();
        let lines = text.lines().count();
        if lines > LINES_MAX {
            faults.push(format!("{shown}: {lines} lines"));
        }
        for word in &banned {
            if text.contains(word.as_str()) {
                faults.push(format!("{shown}: contains {word}"));
            }
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_string();
        if names.contains(&name.as_str()) {
            faults.push(format!("{shown}: a name that says nothing"));
        }
        let first = text.lines().next().unwrap_or_default();
        let program = path.components().any(|part| part.as_os_str() == "src");
        if program && !first.starts_with("//!") {
            faults.push(format!("{shown}: doesn't begin with a sentence on what it is"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
