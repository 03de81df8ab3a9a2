//! What overload, failing dependencies and hostile clients do to those who ask for what they should:
//! prints; asserts nothing about time.
//!
//! `bench_overload [ROUNDS] [ROW...]`, of the rows `overload`, `cost`, `dependency`, `tail`, `hostile` and `retries`.
//! HAProxy stands beside where it has the feature and is in `PATH`; for `cost` wrk and nginx have to be.

mod clients;
mod cost;
mod dependency;
mod hostile;
mod overload;
mod proxy;
mod retries;
mod tail;

use rustix::process::{Resource, getrlimit, setrlimit};
use std::path::Path;

/// Its name, and what prints it in so many rounds.
type Row = (&'static str, fn(usize, &Path));

const ROWS: [Row; 6] = [
    ("overload", overload::run),
    ("cost", cost::run),
    ("dependency", dependency::run),
    ("tail", tail::run),
    ("hostile", hostile::run),
    ("retries", retries::run),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [serve, table] = arguments.as_slice()
        && serve == "--serve"
    {
        return proxy::serve_table(table);
    }
    let rounds = arguments.iter().find_map(|it| it.parse().ok()).unwrap_or(3);
    let named: Vec<&String> = arguments.iter().filter(|it| it.parse::<usize>().is_err()).collect();
    let unknown = named.iter().find(|name| ROWS.iter().all(|row| row.0 != name.as_str()));
    assert!(unknown.is_none(), "no such row: {unknown:?}");
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).expect("more files");
    if !proxy::has_haproxy() {
        println!("no haproxy in PATH: its lines are left out");
    }
    let dir = tempfile::tempdir().expect("a directory");
    for (name, run) in ROWS {
        if named.is_empty() || named.iter().any(|it| *it == name) {
            run(rounds, dir.path());
        }
    }
}
