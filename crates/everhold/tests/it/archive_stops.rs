//! What stops the archive, while writes go on: a disk of the repository that is full, and another's
//! content in the place of a segment. It says so, spoils nothing, and goes on by itself when it can.

use crate::archive::{caught_up, held, line, log, newest, start, start_on, whole};
use crate::stack::disk::{self, Filling};
use crate::stack::load::Load;
use crate::stack::{PATIENCE, Stack, signal};
use everhold_core::ids::Lsn;
use everhold_repository::backup::{self, Progress, Watch};
use everhold_repository::log::{PIECE_BYTES_MAX, Piece};
use everhold_repository::{Log, Repository};
use serde_json::Value;
use std::fs;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Room for some backups of an empty database and its log, and soon full.
const VAULT_MB: u64 = 192;

fn backed_up(status: &Value) -> &Value {
    &status["services"]["main"]["backup"]
}

/// All that is listed is whole, and nothing else was left there.
fn is_sound(stack: &Stack, repository: &Repository) {
    let never = AtomicBool::new(false);
    let watch = Watch { progress: &|_: Progress| {}, stop: &never };
    let listed = backup::list(repository, "main").expect("listed");
    assert!(listed.unreadable.is_empty() && !listed.backups.is_empty(), "{:?}", listed.unreadable);
    for info in listed.backups {
        let verified = backup::verify(repository, "main", &info.id, 1, &watch).expect("verified");
        assert!(verified.harmed.is_empty(), "{}: {verified:?}", info.id);
    }
    for name in repository.list("main/log/").expect("listed").into_keys() {
        repository.get(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let unfinished = fs::read_dir(stack.dir().join("vault/unfinished")).expect("listed").flatten();
    let left: Vec<_> = unfinished.map(|it| it.file_name()).filter(|it| it != "filling").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_repository_whose_disk_is_full_misses_nothing_once_there_is_room() {
    let (mut stack, repository) = start_on(|stack| {
        disk::mount(&stack.dir().join("disk-vault"), &stack.dir().join("vault"), VAULT_MB);
    });
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    caught_up(&mut stack);
    let first = newest(&stack.status().expect("a status"));
    let filling = Filling::of(&stack.dir().join("vault/unfinished"));
    let hold = stack.hold("log-archive", &["vault", "No space left"]);
    let next = hold["unblocks"].as_str().unwrap_or_default();
    assert!(next.contains("make room") && hold["needs_operator"] == true, "{hold}");
    load.flows();
    let output = stack.command(&["backup", "now", "main", "--full"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(!output.status.success(), "it was made");
    // What is archived may end before it would begin.
    let why = ["No space left", "the log is not archived"].iter().any(|it| said.contains(it));
    assert!(why && said.contains("next step"), "{said}");
    is_sound(&stack, &repository);
    assert_eq!(newest(&stack.status().expect("a status")), first, "no other one is told of");
    load.flows();

    drop(filling);
    caught_up(&mut stack);
    stack.wait("an end of the hold", |status| !held(status, "log-archive"));
    whole(&log(&repository));
    stack.done(&["backup", "now", "main", "--full"]);
    is_sound(&stack, &repository);
    load.flows();
    assert_eq!(load.finish().lost, 0);
}

/// Puts another's content where the archiver is going to put a piece; `None`: it came first.
fn plant(stack: &mut Stack, repository: &Repository, log: &Log<'_>) -> Option<Piece> {
    caught_up(stack);
    let leader = stack.leader();
    let archiver = stack.role_pids("archive", &leader);
    signal("STOP", &archiver);
    let flushed = stack.done(&["psql", "main", "--", "-XAtc", "SELECT pg_current_wal_lsn()"]);
    let flushed: Lsn = flushed.trim().parse().expect("a place");
    // One that is behind ships whole pieces, which end where their size says.
    let start = Lsn((flushed.0 / PIECE_BYTES_MAX + 1) * PIECE_BYTES_MAX);
    let end = Lsn(start.0 + PIECE_BYTES_MAX);
    let fill = format!(
        "SELECT pg_logical_emit_message(true, 'test', repeat('x', {}))",
        end.0 - flushed.0 + (1 << 20)
    );
    stack.done(&["psql", "main", "--", "-XAtc", &fill]);
    let (branch, epoch) = (line(log).last().expect("a branch").id(), stack.epoch());
    let piece = Piece { branch, start, end, epoch };
    let put = log.put_piece(&piece, &vec![7; PIECE_BYTES_MAX as usize]);
    assert_eq!(put.expect("put").copies, repository.places().count());
    let same = stack.role_pids("archive", &leader) == archiver;
    signal("CONT", &archiver);
    if !same {
        let name = format!("{}{}", prefix(repository), piece.name());
        repository.delete(&name).expect("deleted");
        assert!(log.settle().expect("settled").is_empty());
    }
    same.then_some(piece)
}

/// How the names of the log's objects begin.
fn prefix(repository: &Repository) -> String {
    let objects = repository.list("main/log/").expect("listed");
    let first = objects.keys().next().expect("an object");
    first.split('/').take(3).map(|it| format!("{it}/")).collect()
}

#[test]
fn another_s_content_in_the_place_of_a_segment_stays_and_stops_the_archive() {
    let (mut stack, repository) = start();
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    caught_up(&mut stack);
    let log = log(&repository);
    let until = Instant::now() + PATIENCE;
    let piece = loop {
        if let Some(piece) = plant(&mut stack, &repository, &log) {
            break piece;
        }
        assert!(Instant::now() < until, "the archiver is replaced each time");
    };
    let file = stack.dir().join("vault").join(prefix(&repository)).join(piece.name());
    let theirs = fs::read(&file).expect("it is there");
    let told = |status: &Value| -> Lsn {
        let at = &backed_up(status)["log_lsn"];
        serde_json::from_value(at.clone()).unwrap_or(Lsn(u64::MAX))
    };
    for round in 0..2 {
        let words = ["vault", "another content"];
        let hold = stack.hold("log-archive", &words);
        let next = hold["unblocks"].as_str().unwrap_or_default();
        assert!(next.contains("take away") && hold["needs_operator"] == true, "{hold}");
        load.flows();
        assert_eq!(fs::read(&file).expect("it is there"), theirs, "left as it is");
        let status = stack.status().expect("a status");
        assert!(told(&status) <= piece.start, "not archived: {status}");
        assert!(!log.pieces(1).expect("listed").contains(&piece), "it counts nowhere");
        if round == 0 {
            // One that comes after it finds it as it is.
            let leader = stack.leader();
            let archiver = stack.role_pids("archive", &leader);
            signal("KILL", &archiver);
            let until = Instant::now() + PATIENCE;
            while [&archiver, &Vec::new()].contains(&&stack.role_pids("archive", &leader)) {
                assert!(Instant::now() < until, "no other archiver");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    fs::remove_file(&file).expect("taken away");
    stack.wait("an end of the hold", |status| !held(status, "log-archive"));
    caught_up(&mut stack);
    assert!(whole(&log).contains(&piece.end));
    assert!(log.contested().expect("listed").is_empty());
    assert!(!held(&stack.status().expect("a status"), "log-gap"));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(load.finish().lost, 0);
}
