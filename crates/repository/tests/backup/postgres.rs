//! A server's backups, taken under load, restored and started.

use crate::server::{Server, owner, run};
use crate::shelf::{SERVICE, Shelf, content, quiet};
use everhold_repository::RepositoryError;
use everhold_repository::backup::{self, Restore};
use std::fs;
use std::path::Path;

/// Restores a backup into a server's place, with the archive to recover from.
fn restored(shelf: &Shelf, id: &str, archive: &Path, over: Option<Server>) -> Server {
    let server = over.unwrap_or_else(Server::empty);
    let command =
        format!("restore_command = 'cp {}/%f %p'\narchive_mode = off\n", archive.display());
    let files = [("recovery.signal", &b""[..]), ("postgresql.auto.conf", command.as_bytes())];
    let over = server.data.exists();
    let how = Restore { over, owner: owner(), threads: 2, files: &files, log: None };
    backup::restore(shelf.open(), SERVICE, id, &server.data, &how, &quiet()).unwrap();
    assert!(!server.data.join(backup::MARKER).exists());
    server
}

/// What was restored starts, keeps the invariant of pgbench, and is sound to its last page.
fn prove(mut server: Server) -> (u64, Server) {
    server.start();
    let balances = server.balances();
    let parts: Vec<&str> = balances.split(' ').collect();
    assert!(parts[..4].iter().all(|it| *it == parts[0]), "{balances}");
    run(server.tool("pg_amcheck").args(["--install-missing", "--heapallindexed", "postgres"]));
    server.stop("fast");
    let data = server.data.display().to_string();
    run(server.tool("pg_checksums").args(["--check", "-D", &data]));
    (parts[4].parse().unwrap(), server)
}

#[test]
fn backups_under_load_come_back() {
    let shelf = Shelf::new();
    let mut server = Server::new();
    run(server.tool("pgbench").args(["-i", "-q", "-s", "5"]));
    let repository = shelf.open();
    let mut load = server.load(600);
    std::thread::sleep(std::time::Duration::from_secs(1));
    let full = server.take(repository, None, |_| {}).unwrap();
    assert_eq!(full.bytes_read, full.bytes, "a full one reads every byte");
    assert!(full.bytes_added * 5 < full.bytes && full.copies == 2, "{full:?}");
    let before: u64 = server.sql("SELECT count(*) FROM pgbench_history").parse().unwrap();
    let next = server.take(repository, Some(&full.id), |_| {}).unwrap();
    let third = server.take(repository, Some(&next.id), |_| {}).unwrap();
    load.kill().unwrap();
    load.wait().unwrap();
    assert!(third.bytes_added * 4 < full.bytes_added, "{} {}", third.bytes_added, full.bytes_added);
    let listed = backup::list(repository, SERVICE).unwrap();
    assert_eq!(listed.backups, [full.clone(), next.clone(), third.clone()]);
    server.sql("SELECT pg_switch_wal()");
    let last: u64 = server.sql("SELECT count(*) FROM pgbench_history").parse().unwrap();
    server.stop("fast");
    assert_eq!(shelf.check(), 3);

    let fresh = restored(&shelf, &third.id, &server.archive(), None);
    let over = restored(&shelf, &full.id, &server.archive(), None);
    let (rows, over) = prove(over);
    assert!(rows >= before, "{rows} of {before}");
    // What the recovered server made of it is gone over; both ways lead to the same files.
    let over = restored(&shelf, &third.id, &server.archive(), Some(over));
    assert_eq!(content(&fresh.data), content(&over.data));
    assert!(!fresh.data.join("postmaster.pid").exists());
    let (rows, _) = prove(fresh);
    assert_eq!(rows, last);

    // Any one may go alone.
    let pruned = shelf.prune(&[full.id, next.id], crate::server::now_s());
    assert!(pruned.waiting_for.is_empty(), "{pruned:?}");
    assert_eq!(shelf.check(), 1);
    let (rows, _) = prove(restored(&shelf, &third.id, &server.archive(), None));
    assert_eq!(rows, last);
}

#[test]
fn an_incremental_one_reads_what_was_touched() {
    let shelf = Shelf::new();
    let mut server = Server::new();
    run(server.tool("pgbench").args(["-i", "-q", "-s", "2"]));
    server.sql("CREATE UNLOGGED TABLE lost AS SELECT generate_series(1, 10000)");
    server.sql("CHECKPOINT");
    let repository = shelf.open();
    // Files have to be older than the base by the margin.
    std::thread::sleep(std::time::Duration::from_secs(11));
    let full = server.take(repository, None, |_| {}).unwrap();
    server.sql("UPDATE pgbench_branches SET bbalance = bbalance");
    let next = server.take(repository, Some(&full.id), |_| {}).unwrap();
    assert!(next.bytes_read * 4 < next.bytes, "read {} of {}", next.bytes_read, next.bytes);
    let again = server.take(repository, Some(&full.id), |plan| {
        plan.kind = everhold_core::backup::Kind::Full;
    });
    let again = again.unwrap();
    assert_eq!(again.bytes_read, again.bytes);
    assert!(again.bytes_added < 1 << 20, "a full one adds what differs: {}", again.bytes_added);
    server.sql("SELECT pg_switch_wal()");
    server.stop("fast");
    let (rows, mut other) = prove(restored(&shelf, &next.id, &server.archive(), None));
    assert_eq!(rows, 0);
    other.start();
    assert_eq!(other.sql("SELECT count(*) FROM lost"), "0", "unlogged tables come back empty");
    assert_eq!(other.sql("SELECT count(*) FROM pgbench_accounts"), "200000");
}

#[test]
fn a_damaged_page_is_found() {
    let shelf = Shelf::new();
    let mut server = Server::new();
    run(server.tool("pgbench").args(["-i", "-q", "-s", "1"]));
    let path = server.sql("SELECT pg_relation_filepath('pgbench_accounts')");
    server.stop("fast");
    let file = server.data.join(&path);
    let mut content = fs::read(&file).unwrap();
    content[3 * 8192 + 4000] ^= 1;
    fs::write(&file, content).unwrap();
    server.start();
    let repository = shelf.open();
    let refused = server.take(repository, None, |_| {}).unwrap_err();
    let expected = format!("first {path} page 3");
    assert!(refused.to_string().contains(&expected), "{refused}");
    assert!(matches!(refused, RepositoryError::BadPages { pages: 1, count: 1, .. }));
    assert_eq!(shelf.ids(), [] as [&str; 0]);
    let taken = server.take(repository, None, |plan| plan.allow_bad_pages = true).unwrap();
    assert_eq!(taken.bad_pages.len(), 1);
    assert_eq!((taken.bad_pages[0].path.as_str(), taken.bad_pages[0].page), (path.as_str(), 3));
}
