//! The log in two directories: read over pieces and forks, gathered, dropped, written for PostgreSQL.

use super::*;
use crate::backup::Progress;
use crate::{Password, PlaceConfig};
use everhold_core::spec::Location;
use everhold_core::term::BranchId;
use std::sync::atomic::AtomicBool;

const SYSID: u64 = 7_000_000_000_000_000_001;
const SEGMENT: u64 = 1 << 20;

fn place(dir: &Path, name: &str) -> PlaceConfig {
    PlaceConfig {
        name: name.to_string(),
        location: Location::Directory(dir.join(name).display().to_string()),
        region: None,
        endpoint: None,
        credentials_file: None,
    }
}

fn repository(dir: &Path) -> Repository {
    let password = Password::new("p");
    let east = place(dir, "east");
    let mut repository = Repository::create(&east, &password, "shop").expect("created");
    repository.extend(&place(dir, "west"), &password).expect("extended");
    repository
}

fn quiet() -> Watch<'static> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    Watch { progress: &|_: Progress| {}, stop: &NEVER }
}

/// Timeline 1 up to 2.5 segments, then timeline 3.
fn line() -> Vec<Branch> {
    let fork = Lsn(SEGMENT * 5 / 2);
    vec![
        Branch { tli: 1, epoch: 0, parent: 0, fork: Lsn(0) },
        Branch { tli: 3, epoch: 2, parent: 1, fork },
    ]
}

/// What stands at each position of a branch: no two places look alike.
fn content(branch: BranchId, range: Range<u64>) -> Vec<u8> {
    range.map(|at| (at ^ at >> 8 ^ at >> 16) as u8 ^ (branch.epoch * 0x55) as u8).collect()
}

fn put(log: &Log<'_>, branch: &Branch, range: Range<u64>, epoch: Epoch) {
    let branch = branch.id();
    let bytes = content(branch, range.clone());
    let piece = Piece { branch, start: Lsn(range.start), end: Lsn(range.end), epoch };
    assert_eq!(log.put_piece(&piece, &bytes).expect("put").copies, 2);
}

fn expected(range: Range<u64>) -> Vec<u8> {
    let line = line();
    let fork = line[1].fork.0;
    let mut bytes = content(line[0].id(), range.start.min(fork)..range.end.min(fork));
    bytes.extend(content(line[1].id(), range.start.max(fork)..range.end.max(fork)));
    bytes
}

fn read(log: &Log<'_>, range: Range<u64>) -> Result<Vec<u8>, RepositoryError> {
    let mut all = Vec::new();
    log.read(&line(), Lsn(range.start)..Lsn(range.end), |at, bytes| {
        assert_eq!(at.0, range.start + all.len() as u64);
        all.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(all)
}

/// Both branches up to three and a half segments, with an old leader's tail beyond the fork.
fn filled<'r>(repository: &'r Repository) -> Log<'r> {
    let log = Log::new(repository, "main", SYSID);
    let (line, fork) = (line(), line()[1].fork.0);
    log.put_line(1, &line[..1]).expect("put");
    put(&log, &line[0], 0..SEGMENT, 1);
    put(&log, &line[0], SEGMENT..fork + 50_000, 1);
    log.put_line(2, &line).expect("put");
    put(&log, &line[0], fork - 1_000..fork, 2);
    put(&log, &line[1], fork..SEGMENT * 7 / 2, 2);
    log
}

#[test]
fn a_line_is_read_over_pieces_and_forks() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = repository(dir.path());
    let log = filled(&repository);
    assert_eq!(log.newest_line().expect("a line"), Some((2, line())));
    // Up to a timeline: what the first leader alone wrote of it was given up.
    let named = |tli| log.line_to(tli).expect("read");
    assert_eq!(named(line()[1].tli), Some(line()));
    assert_eq!(named(line()[0].tli), Some(line()[..1].to_vec()));
    assert_eq!(named(77), None);
    let end = SEGMENT * 7 / 2;
    assert_eq!(read(&log, 0..end).expect("read"), expected(0..end));
    assert_eq!(read(&log, 12_345..end - 7).expect("read"), expected(12_345..end - 7));
    let hole = read(&log, 0..end + 1).expect_err("not there");
    let RepositoryError::NotArchived { from, to } = hole else { panic!("{hole}") };
    assert_eq!((from.0, to.0), (end, end + 1));
    // One place lost a piece, the other has it.
    let piece = log.pieces(2).expect("listed")[0];
    let file = dir.path().join("east").join(log.name(&piece));
    fs::remove_file(&file).expect("removed");
    assert_eq!(log.pieces(2).expect("listed").len() + 1, log.pieces(1).expect("listed").len());
    assert_eq!(read(&log, 0..end).expect("read"), expected(0..end));
    assert!(file.exists(), "put back");
    // The same again is no conflict; other bytes under the same name are.
    let line = line();
    put(&log, &line[0], 0..SEGMENT, 1);
    let piece = Piece { branch: line[0].id(), start: Lsn(0), end: Lsn(SEGMENT), epoch: 1 };
    let other = log.put_piece(&piece, &vec![7; SEGMENT as usize]).expect_err("other bytes");
    assert!(matches!(other, RepositoryError::Conflict { .. }), "{other}");
    let short = log.put_piece(&piece, b"short").expect_err("too few");
    assert!(matches!(short, RepositoryError::Malformed { .. }), "{short}");
    // Another database of the same service has a log of its own.
    assert!(Log::new(&repository, "main", SYSID + 1).pieces(1).expect("listed").is_empty());
    assert_eq!(Log::new(&repository, "main", SYSID + 1).newest_line().expect("none"), None);
}

#[test]
fn a_piece_that_two_have_written_counts_nowhere() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = repository(dir.path());
    let log = filled(&repository);
    let all = log.pieces(1).expect("listed");
    // Said in one place, of the log that all are read from.
    let east = [(place(dir.path(), "east"), Password::new("p"))];
    let east = Repository::open(&east, "shop").expect("opened");
    Log::new(&east, "main", SYSID).contest(&all[0]).expect("said");
    assert_eq!(log.pieces(1).expect("listed"), all[1..]);
    let hole = read(&log, 0..SEGMENT).expect_err("nobody can tell");
    assert!(matches!(hole, RepositoryError::NotArchived { .. }), "{hole}");
    assert_eq!(log.contested().expect("listed"), BTreeSet::from([all[0]]));
    assert_eq!(repository.level("main/").expect("level"), 0, "it is of one place");
    // Neither is it given on to a place that is new.
    let west = dir.path().join("west").join(log.name(&all[0]));
    fs::remove_file(&west).expect("removed");
    assert_eq!(repository.level("main/").expect("level"), 0, "which is right nobody can tell");
    // Its content was taken away: what the other place has is right.
    let of_east = Log::new(&east, "main", SYSID);
    assert_eq!(of_east.settle().expect("looked"), BTreeSet::from([all[0]]), "it is there still");
    fs::rename(dir.path().join("east").join(log.name(&all[0])), &west).expect("moved");
    assert!(of_east.settle().expect("settled").is_empty());
    assert_eq!(log.pieces(1).expect("listed"), all);
    assert_eq!(repository.level("main/").expect("level"), 1);
    assert_eq!(read(&log, 0..SEGMENT).expect("read"), expected(0..SEGMENT));
}

#[test]
fn segments_are_as_postgresql_reads_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = repository(dir.path());
    let log = filled(&repository);
    let into = dir.path().join("pg_wal");
    fs::create_dir(&into).expect("made");
    let (from, to) = (Lsn(SEGMENT + 300), Lsn(SEGMENT * 7 / 2 - 11));
    fs::write(into.join("000000010000000000000001"), "what was there").expect("written");
    let written = log.segments(&line(), from..to, SEGMENT, &into).expect("written");
    let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().to_string();
    let names: Vec<String> = written.files.iter().map(name).collect();
    // The third segment has the fork in it: it is the new timeline's, with the old one's bytes.
    let expect =
        ["000000010000000000000001", "000000030000000000000002", "000000030000000000000003"];
    assert_eq!((written.tli, names), (3, expect.map(String::from).to_vec()));
    let mut all = Vec::new();
    for file in &written.files {
        let bytes = fs::read(file).expect("read");
        assert_eq!(bytes.len() as u64, SEGMENT);
        all.extend(bytes);
    }
    let has = (to.0 - SEGMENT) as usize;
    assert!(all[..has] == expected(SEGMENT..to.0) && all[has..].iter().all(|byte| *byte == 0));
    let history = fs::read_to_string(into.join("00000003.history")).expect("a history");
    assert_eq!(history, format!("1\t{}\tepoch 2\n", line()[1].fork));
    assert!(!into.join("00000001.history").exists());

    // Up to the fork there is nothing of the new timeline.
    let before = dir.path().join("before");
    fs::create_dir(&before).expect("made");
    let fork = line()[1].fork;
    let written = log.segments(&line(), Lsn(0)..fork, SEGMENT, &before).expect("written");
    assert_eq!((written.tli, written.files.len()), (1, 3));
    assert_eq!(name(&written.files[2]), "000000010000000000000002");
    assert!(!before.join("00000003.history").exists());
    let beyond = log.segments(&line(), fork..Lsn(SEGMENT * 4), SEGMENT, &before);
    assert!(matches!(beyond, Err(RepositoryError::NotArchived { .. })), "{beyond:?}");
    // The second file number of the second four gigabytes.
    let far = Lsn((1 << 32) + SEGMENT);
    put(&log, &line()[0], far.0..far.0 + 5, 1);
    let written = log.segments(&line()[..1], far..Lsn(far.0 + 5), SEGMENT, &before);
    assert_eq!(name(&written.expect("written").files[0]), "000000010000000100000001");
}

#[test]
fn pieces_are_gathered_whatever_interrupts_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = repository(dir.path());
    let log = Log::new(&repository, "main", SYSID);
    let branch = &line()[0];
    for at in 0..70 {
        put(&log, branch, at * 100..at * 100 + 100, 1);
    }
    let end = 7_000;
    // Cut off before the small ones went: both are there, and both are read.
    let whole = Piece { branch: branch.id(), start: Lsn(0), end: Lsn(end), epoch: 1 };
    log.put_piece(&whole, &content(branch.id(), 0..end)).expect("put");
    assert_eq!(log.pieces(2).expect("listed").len(), 71);
    assert_eq!(read(&log, 0..end).expect("read"), expected(0..end));
    assert_eq!(log.compact().expect("compacted"), 70);
    assert_eq!(log.pieces(2).expect("listed"), [whole]);
    for at in 0..70 {
        put(&log, branch, end + at * 100..end + at * 100 + 100, 1);
    }
    // The large one is short in one place: what it would replace stays.
    let west = dir.path().join("west");
    let away = dir.path().join("away");
    fs::rename(&west, &away).expect("moved");
    assert!(log.compact().is_err(), "what it has is not known");
    assert!(!west.exists(), "nothing is made where a place is not");
    fs::rename(&away, &west).expect("back");
    assert_eq!(log.compact().expect("compacted"), 71);
    assert_eq!(log.pieces(2).expect("listed").len(), 1);
    assert_eq!(log.compact().expect("compacted"), 0);
    assert_eq!(read(&log, 0..2 * end).expect("read"), expected(0..2 * end));
}

#[test]
fn what_is_dropped_takes_its_line_along() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = repository(dir.path());
    let log = filled(&repository);
    let needed = |from: u64| keep::Log { from: Some(Lsn(from)), pieces: Vec::new() };
    // A place that is away would bring back what went.
    let (west, away) = (dir.path().join("west"), dir.path().join("away"));
    fs::rename(&west, &away).expect("away");
    let places = ["east", "west"].map(|name| (place(dir.path(), name), Password::new("p")));
    let half = Repository::open(&places, "shop").expect("opened");
    let half = Log::new(&half, "main", SYSID);
    let refused = half.drop_before(&needed(SEGMENT * 9), SEGMENT, &quiet()).expect_err("away");
    assert!(matches!(refused, RepositoryError::PlaceAbsent { .. }), "{refused}");
    assert_eq!(half.pieces(1).expect("listed").len(), 4);
    fs::rename(&away, &west).expect("back");
    assert_eq!(
        log.drop_before(&keep::Log::default(), SEGMENT, &quiet()).expect("dropped").pieces,
        0
    );
    assert_eq!(log.dropped_before().expect("read"), Lsn(0));
    assert_eq!(
        log.drop_before(&needed(SEGMENT * 3 / 2), SEGMENT, &quiet()).expect("dropped").pieces,
        1
    );
    assert_eq!(log.dropped_before().expect("read"), Lsn(SEGMENT * 3 / 2));
    let rest = SEGMENT..SEGMENT * 7 / 2;
    assert_eq!(read(&log, rest.clone()).expect("read"), expected(rest));
    assert_eq!(log.epochs().expect("listed").len(), 2);
    assert_eq!(
        log.drop_before(&needed(SEGMENT * 3), SEGMENT, &quiet()).expect("dropped").pieces,
        2
    );
    assert_eq!(log.epochs().expect("listed").into_iter().collect::<Vec<_>>(), [2]);
    // More is kept from now on; what went is gone all the same.
    log.drop_before(&needed(SEGMENT * 2), SEGMENT, &quiet()).expect("dropped");
    assert_eq!(log.dropped_before().expect("read"), Lsn(SEGMENT * 3));
    // A backup under way may begin with what no other needs.
    repository.put("main/running/x", b"main").expect("put");
    let waits = log.drop_before(&needed(SEGMENT * 9), SEGMENT, &quiet()).expect("waits");
    assert_eq!((waits.pieces, waits.waiting_for), (0, vec!["x".to_string()]));
    repository.delete("main/running/x").expect("deleted");
    // The newest line stays, whatever goes.
    assert_eq!(
        log.drop_before(&needed(SEGMENT * 9), SEGMENT, &quiet()).expect("dropped").pieces,
        1
    );
    assert_eq!(log.newest_line().expect("a line"), Some((2, line())));
}

#[test]
fn who_lists_while_pieces_are_gathered_sees_no_hole() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = repository(dir.path());
    let log = Log::new(&repository, "main", SYSID);
    let branch = &line()[0];
    // More than one read of a directory gives.
    for at in 0..1_200 {
        put(&log, branch, at * 8..at * 8 + 8, 1);
    }
    let whole = Lsn(0)..Lsn(1_200 * 8);
    std::thread::scope(|scope| {
        let gathering = scope.spawn(|| log.compact().expect("gathered"));
        while !gathering.is_finished() {
            let seen = coverage(&log.pieces(1).expect("listed"), &line()[..1]);
            assert_eq!(seen, std::slice::from_ref(&whole), "a hole that is none");
        }
    });
    assert!(log.pieces(2).expect("listed").len() < 200);
}
