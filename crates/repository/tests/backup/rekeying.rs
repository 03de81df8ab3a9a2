//! A repository copied into a new one with a master key of its own.

use crate::shelf::{Dice, NOW, SERVICE, Shelf, about, change_files, content, make_files, quiet};
use everhold_core::backup::{Kind, Proving};
use everhold_core::ids::Lsn;
use everhold_core::term::{Branch, BranchId};
use everhold_repository::backup::{self, Backup, Progress, ProofRecord, Prune, Restore, Watch};
use everhold_repository::copies::{self, What};
use everhold_repository::log::{Mark, Piece};
use everhold_repository::{Log, Password, Rekey, Rekeyed, Repository, RepositoryError};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ROOT: BranchId = BranchId { epoch: 1, tli: 1 };

fn piece(n: u64) -> Piece {
    Piece { branch: ROOT, start: Lsn(n * 8), end: Lsn(n * 8 + 8), epoch: 1 }
}

fn put_piece(repository: &Repository, n: u64) {
    Log::new(repository, SERVICE, 7).put_piece(&piece(n), &[n as u8; 8]).unwrap();
}

/// Three backups that share packs, log with all that belongs to it, a proof, spec and store.
fn filled() -> (Shelf, Vec<String>) {
    let shelf = Shelf::new();
    let mut dice = Dice(41);
    make_files(&shelf.data(), &mut dice);
    let mut ids = vec![shelf.take(None, NOW).unwrap().id];
    for n in 1..3 {
        fs::create_dir_all(shelf.dir.join(format!("was{n}"))).unwrap();
        change_files(&shelf.data(), &mut dice);
        ids.push(shelf.take(ids.last().map(String::as_str), NOW + n * 60).unwrap().id);
    }
    let repository = shelf.open();
    let log = Log::new(repository, SERVICE, 7);
    log.put_line(1, &[Branch { tli: 1, epoch: 1, parent: 0, fork: Lsn(0) }]).unwrap();
    (0..20).for_each(|n| put_piece(repository, n));
    log.put_mark(&Mark { at_ms: 5, archived_ms: 6, branch: ROOT, lsn: Lsn(80) }).unwrap();
    repository.put(&format!("{SERVICE}/log/7/dropped/{:016X}", 0), b"").unwrap();
    proof(&ids[0]).put(repository, SERVICE).unwrap();
    copies::put(repository, What::Spec, NOW, b"a spec").unwrap();
    copies::put(repository, What::Store, NOW, b"a store").unwrap();
    (shelf, ids)
}

fn proof(id: &str) -> ProofRecord {
    ProofRecord {
        backup: id.to_string(),
        why: Proving::Full,
        node: "a".to_string(),
        began_s: NOW,
        ended_s: NOW + 1,
        to_s: None,
        to_lsn: None,
        passed: Vec::new(),
        skipped: Vec::new(),
        failed: None,
        damaged: false,
        rto_ms: None,
        rpo_ms: None,
        bytes: 1,
    }
}

fn copy(shelf: &Shelf, without_damaged: bool) -> Result<Rekeyed, RepositoryError> {
    copy_with(shelf, without_damaged, &quiet())
}

fn copy_with(
    shelf: &Shelf,
    without_damaged: bool,
    watch: &Watch<'_>,
) -> Result<Rekeyed, RepositoryError> {
    let from = shelf.open_places(&["east"]);
    Rekey::begin(&from, &shelf.place("new"), &Password::new("n"))?.run(without_damaged, watch)
}

fn try_open(shelf: &Shelf, name: &str, password: &str) -> Result<Repository, RepositoryError> {
    Repository::open(&[(shelf.place(name), Password::new(password))], "shop")
}

fn restored(repository: &Repository, id: &str, to: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let how = Restore { over: true, owner: None, threads: 2, files: &[], log: None };
    backup::restore(repository, SERVICE, id, to, &how, &quiet()).unwrap();
    content(to)
}

fn read_log(repository: &Repository, pieces: u64) -> Vec<u8> {
    let log = Log::new(repository, SERVICE, 7);
    let (_, line) = log.newest_line().unwrap().unwrap();
    let mut all = Vec::new();
    let take = |_: Lsn, bytes: &[u8]| {
        all.extend_from_slice(bytes);
        Ok(())
    };
    log.read(&line, Lsn(0)..Lsn(pieces * 8), take).unwrap();
    all
}

/// All files of a place, with their content.
fn files(place: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    content(place)
}

fn is_shared(name: &str) -> bool {
    !["keys/", "everhold.json", "sealed", "copy.json"].iter().any(|own| name.starts_with(own))
}

#[test]
fn all_of_it_comes_along_and_the_old_key_opens_nothing() {
    let (shelf, ids) = filled();
    let before = files(&shelf.dir.join("east"));
    let done = copy(&shelf, false).unwrap();
    assert!(done.whole && done.damaged.is_empty(), "{done:?}");
    assert!(files(&shelf.dir.join("east")) == before, "the old one is as it was");
    let (old, new) = (shelf.open_places(&["east"]), try_open(&shelf, "new", "n").unwrap());
    assert_ne!(old.identity().id, new.identity().id);
    let names = |it: &Repository| it.list("").unwrap().into_keys().filter(|it| is_shared(it));
    assert_eq!(names(&new).collect::<Vec<_>>(), names(&old).collect::<Vec<_>>());
    assert_eq!(names(&new).count(), done.objects);
    for id in &ids {
        let (one, other) = (shelf.dir.join("one"), shelf.dir.join("other"));
        assert!(restored(&old, id, &one) == restored(&new, id, &other), "{id}");
        assert_eq!(backup::verify(&new, SERVICE, id, 1, &quiet()).unwrap().copies, 1);
    }
    assert!(restored(&new, &ids[2], &shelf.dir.join("other")) == content(&shelf.data()));
    assert_eq!(read_log(&new, 20), read_log(&old, 20));
    for name in names(&old).filter(|it| !it.contains("/packs/") && !it.contains("/backups/")) {
        assert_eq!(new.get(&name).unwrap(), old.get(&name).unwrap(), "{name}");
    }
    assert_eq!(copies::newest(&new, What::Spec).unwrap().unwrap().1, b"a spec");

    // Neither password nor kit of the old one open it, nor does its key any object.
    let wrong = try_open(&shelf, "new", "e").err().unwrap();
    assert!(matches!(wrong, RepositoryError::WrongPassword { .. }), "{wrong}");
    let foreign = Repository::open_with_kit(&shelf.place("new"), &old.kit()).err().unwrap();
    assert!(matches!(foreign, RepositoryError::Foreign { .. }), "{foreign}");
    let all: Vec<String> = names(&new).collect();
    for name in &all {
        fs::copy(shelf.dir.join("new").join(name), shelf.dir.join("east").join(name)).unwrap();
    }
    for name in all.iter().filter(|name| !name.contains("/packs/")) {
        assert!(old.get(name).is_err(), "{name}");
    }
    let listed = backup::list(&old, SERVICE).unwrap();
    assert_eq!((listed.backups.len(), listed.unreadable.len()), (0, 3));
    for (name, old) in before.iter().filter(|(name, _)| name.contains("/packs/")) {
        let Some(old) = old else { continue };
        let new = fs::read(shelf.dir.join("new").join(name)).unwrap();
        assert_eq!(old.len(), new.len(), "each blob is where it was");
        let same = old.chunks(16).zip(new.chunks(16)).skip(1).filter(|(a, b)| a == b).count();
        assert_eq!(same, 0, "{name}: a part is as it was");
    }
}

#[test]
fn backups_go_on_in_the_copy_and_it_is_copied_again() {
    let (shelf, ids) = filled();
    copy(&shelf, false).unwrap();
    let new = try_open(&shelf, "new", "n").unwrap();
    let data = shelf.data();
    let take = |base: &str, at_s: u64| {
        let plan = backup::Plan { copies: 1, ..shelf.plan(&data, Some(base), at_s) };
        Backup::begin(&new, &plan, &quiet()).unwrap().finish(about(at_s)).unwrap()
    };
    // Whoever has the old key could make two pages that look equal: nothing is compared by it.
    let first = take(&ids[2], NOW + 600);
    assert_eq!((first.kind, first.base.clone()), (Kind::Full, None));
    assert_eq!(first.bytes_read, first.bytes);
    change_files(&data, &mut Dice(5));
    let second = take(&first.id, NOW + 660);
    assert_eq!((second.kind, second.base.as_deref()), (Kind::Incremental, Some(&*first.id)));
    assert!(second.bytes_added * 4 < first.bytes_added, "{second:?}");
    // Once more: of the hashes some are by the first key, some by the second.
    let third = shelf.place("third");
    let done = Rekey::begin(&new, &third, &Password::new("t")).unwrap().run(false, &quiet());
    assert!(done.unwrap().whole);
    let third = try_open(&shelf, "third", "t").unwrap();
    for id in ids.iter().chain([&first.id, &second.id]) {
        let (one, other) = (shelf.dir.join("one"), shelf.dir.join("other"));
        assert!(restored(&new, id, &one) == restored(&third, id, &other), "{id}");
    }
    assert!(restored(&third, &second.id, &shelf.dir.join("other")) == content(&data));
}

#[test]
fn what_came_since_is_caught_up_and_what_was_dropped_stays_away() {
    let (shelf, ids) = filled();
    copy(&shelf, false).unwrap();
    let again = copy(&shelf, false).unwrap();
    assert_eq!((again.objects, again.whole), (0, true), "nothing is left to do");
    // The copy is in use: one backup is dropped there.
    let new = try_open(&shelf, "new", "n").unwrap();
    let drop = [ids[1].clone()];
    let asked = Prune { service: SERVICE, drop: &drop, dead: &[], dry_run: false, now_s: NOW };
    backup::prune(&new, &asked, &quiet()).unwrap();
    // Its log gets a piece from the new archiver that the old one has too, and another.
    put_piece(&new, 20);
    (20..25).for_each(|n| put_piece(shelf.open(), n));
    change_files(&shelf.data(), &mut Dice(6));
    let late = shelf.take(Some(&ids[2]), NOW + 300).unwrap().id;
    assert!(copy(&shelf, false).unwrap().whole);
    let listed = backup::list(&new, SERVICE).unwrap();
    let listed: Vec<(&str, usize)> =
        listed.backups.iter().map(|it| (it.id.as_str(), it.copies)).collect();
    assert_eq!(listed, [(&*ids[0], 1), (&*ids[2], 1), (&*late, 1)]);
    assert_eq!(read_log(&new, 25), read_log(shelf.open(), 25));
    assert!(restored(&new, &late, &shelf.dir.join("one")) == content(&shelf.data()));
}

#[test]
fn a_pack_that_a_prune_takes_from_the_copy_is_not_relied_on() {
    let (shelf, ids) = filled();
    copy(&shelf, false).unwrap();
    let new = try_open(&shelf, "new", "n").unwrap();
    let pack = new.list("main/packs/").unwrap().into_keys().next().unwrap();
    let mark = format!("{SERVICE}/prune/20260101T000000Z-0000");
    new.put(&mark, format!("[\"{pack}\"]").as_bytes()).unwrap();
    let held = copy(&shelf, false).unwrap_err();
    assert!(matches!(held, RepositoryError::NotWhole { .. }), "{held}");
    // It took it, and is over.
    new.delete(&pack).unwrap();
    new.delete(&mark).unwrap();
    assert_eq!(copy(&shelf, false).unwrap().objects, 1);
    for id in &ids {
        assert_eq!(backup::verify(&new, SERVICE, id, 1, &quiet()).unwrap().copies, 1);
    }
}

#[test]
fn what_goes_and_comes_meanwhile_leaves_no_hole() {
    let (shelf, ids) = filled();
    let turns = std::sync::atomic::AtomicU64::new(0);
    let both = shelf.open();
    // At the first objects small pieces are gathered in one, and a backup is dropped with its packs.
    let progress = |_: Progress| {
        if turns.fetch_add(1, Ordering::Relaxed) == 0 {
            let whole = Piece { end: Lsn(160), ..piece(0) };
            let bytes: Vec<u8> = (0..20).flat_map(|n| [n as u8; 8]).collect();
            let log = Log::new(both, SERVICE, 7);
            log.put_piece(&whole, &bytes).unwrap();
            (0..20).for_each(|n| both.delete(&format!("main/log/7/{}", piece(n).name())).unwrap());
            shelf.prune(&ids[2..], NOW + 600);
        }
    };
    let never = AtomicBool::new(false);
    let done = copy_with(&shelf, false, &Watch { progress: &progress, stop: &never }).unwrap();
    assert!(done.whole && done.damaged.is_empty(), "{done:?}");
    let new = try_open(&shelf, "new", "n").unwrap();
    assert_eq!(read_log(&new, 20), read_log(both, 20));
    let listed = backup::list(&new, SERVICE).unwrap().backups;
    assert!(listed.iter().all(|it| it.copies == 1), "{listed:?}");
    assert!(ids[..2].iter().all(|id| listed.iter().any(|it| it.id == **id)));
}

#[test]
fn damage_is_named_and_no_copy_is_whole_with_it_unasked() {
    let (shelf, ids) = filled();
    let of = |name: &str| shelf.dir.join("east").join(name);
    // A pack that only the newest backup needs, and a piece of the log.
    let last = shelf.take(None, NOW + 900).unwrap().id;
    let needs = |id: &str| {
        let without: Vec<String> = shelf.open().list("main/packs/").unwrap().into_keys().collect();
        let verified = backup::verify(shelf.open(), SERVICE, id, 1, &quiet()).unwrap();
        (without, verified.objects)
    };
    let (packs, _) = needs(&last);
    let old: Vec<String> = packs
        .iter()
        .filter(|name| fs::metadata(of(name)).unwrap().modified().is_ok())
        .cloned()
        .collect();
    let newest = old.iter().max_by_key(|name| fs::metadata(of(name)).unwrap().modified().unwrap());
    let newest = newest.unwrap().clone();
    let log = format!("main/log/7/{}", piece(3).name());
    for name in [&newest, &log] {
        let mut bytes = fs::read(of(name)).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(of(name), bytes).unwrap();
    }
    let done = copy(&shelf, false).unwrap();
    let manifest = format!("main/backups/{last}");
    let expected = [manifest, log.clone(), newest.clone()];
    assert_eq!(done.damaged.iter().cloned().collect::<Vec<_>>(), expected);
    assert!(!done.whole);
    let half = try_open(&shelf, "new", "n").err().unwrap();
    assert!(matches!(half, RepositoryError::HalfCopied { .. }), "{half}");
    assert!(fs::read_dir(shelf.dir.join("new/main/backups")).unwrap().count() == 3);
    // Accepted, all the rest is whole.
    let done = copy(&shelf, true).unwrap();
    assert_eq!((done.whole, done.objects, done.damaged.len()), (true, 0, 3));
    let new = try_open(&shelf, "new", "n").unwrap();
    for id in &ids {
        assert_eq!(backup::verify(&new, SERVICE, id, 1, &quiet()).unwrap().copies, 1);
    }
    // Healed since, it comes along.
    fs::copy(shelf.dir.join("west").join(&newest), of(&newest)).unwrap();
    fs::copy(shelf.dir.join("west").join(&log), of(&log)).unwrap();
    let done = copy(&shelf, false).unwrap();
    assert_eq!((done.objects, done.damaged.len()), (3, 0));
    assert_eq!(backup::verify(&new, SERVICE, &last, 1, &quiet()).unwrap().copies, 1);
}

#[test]
fn what_two_have_written_comes_along_when_nobody_disputes_it_any_more() {
    let (shelf, _) = filled();
    let log = Log::new(shelf.open(), SERVICE, 7);
    log.contest(&piece(5)).unwrap();
    assert!(!copy(&shelf, false).unwrap().whole);
    let of = |repository: &Repository| repository.list("main/log/7/").unwrap();
    let half = files(&shelf.dir.join("new/main/log/7"));
    let name = piece(5).name();
    assert!(!half.keys().any(|it| it.contains(&name)), "{:?}", half.keys());
    shelf.open().delete(&format!("main/log/7/{name}")).unwrap();
    assert!(log.settle().unwrap().is_empty());
    put_piece(shelf.open(), 5);
    assert!(copy(&shelf, false).unwrap().whole);
    let new = try_open(&shelf, "new", "n").unwrap();
    assert!(of(&new).keys().eq(of(shelf.open()).keys()));
    assert_eq!(read_log(&new, 20).len(), 20 * 8);
}

#[test]
fn only_an_empty_place_or_its_own_copy_is_written_to() {
    let (shelf, _) = filled();
    let from = shelf.open_places(&["east"]);
    let begin = |from: &Repository, name: &str, password: &str| {
        Rekey::begin(from, &shelf.place(name), &Password::new(password)).map(drop)
    };
    let refused = |result: Result<(), RepositoryError>| result.unwrap_err();
    // A password of the old one, also one that was added.
    from.add_password("east", &Password::new("added")).unwrap();
    for password in ["e", "added"] {
        let error = refused(begin(&from, "new", password));
        assert!(matches!(error, RepositoryError::OldPassword { .. }), "{error}");
        assert!(!shelf.dir.join("new").exists());
    }
    // Itself, another place of it, another repository.
    drop(Repository::create(&shelf.place("other"), &Password::new("o"), "shop").unwrap());
    for name in ["east", "west", "other"] {
        let before = files(&shelf.dir.join(name));
        let error = refused(begin(&from, name, "n"));
        assert!(matches!(error, RepositoryError::Taken { .. }), "{name}: {error}");
        assert!(files(&shelf.dir.join(name)) == before, "{name}");
    }
    // A directory with something in it, and one in the old repository.
    fs::create_dir(shelf.dir.join("full")).unwrap();
    fs::write(shelf.dir.join("full/letter"), "x").unwrap();
    for name in ["full", "east/main/inside"] {
        let error = refused(begin(&from, name, "n"));
        assert!(matches!(error, RepositoryError::NoRoomForCopy { .. }), "{name}: {error}");
        assert!(!shelf.dir.join(name).join("copy.json").exists(), "{name}");
    }
    assert!(!shelf.dir.join("full/unfinished").exists());
    fs::remove_dir_all(shelf.dir.join("east/main/inside")).unwrap();
    // A copy that is begun: nobody opens it, makes a repository of it, or copies another there.
    begin(&from, "new", "n").unwrap();
    let half = |error: RepositoryError| {
        assert!(matches!(error, RepositoryError::HalfCopied { .. }), "{error}");
    };
    half(try_open(&shelf, "new", "n").err().unwrap());
    half(Repository::create(&shelf.place("new"), &Password::new("n"), "shop").err().unwrap());
    let other = try_open(&shelf, "other", "o").unwrap();
    let error = refused(begin(&other, "new", "n"));
    assert!(matches!(error, RepositoryError::Foreign { .. }), "{error}");
    let error = refused(begin(&from, "new", "x"));
    assert!(matches!(error, RepositoryError::WrongPassword { .. }), "{error}");
    let bank = Repository::create(&shelf.place("bank"), &Password::new("b"), "bank").unwrap();
    let error = refused(begin(&bank, "new", "n"));
    assert!(matches!(error, RepositoryError::Foreign { .. }), "{error}");
    begin(&from, "new", "n").unwrap();
}

const DIR: &str = "EVERHOLD_TEST_REKEY";
const KILLS: usize = 15;

/// What the killed process does; nothing when run by itself.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    copy(&Shelf::at(dir.as_ref()), false).unwrap();
}

#[test]
fn killed_at_any_moment_it_goes_on() {
    let (shelf, mut ids) = filled();
    let run = |after: Option<Duration>| {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rekeying::child"])
            .env(DIR, &shelf.dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        if let Some(after) = after {
            std::thread::sleep(after);
            let _ = child.kill();
        }
        let ended = child.wait().unwrap();
        assert!(ended.success() || ended.code().is_none(), "{ended}");
        ended.success()
    };
    let mut dice = Dice(u64::from(std::process::id()) * 2_654_435_761 + 1);
    println!("dice {}", dice.0);
    let began = Instant::now();
    assert!(run(None));
    let whole = began.elapsed();
    let (mut kills, mut known, mut halves) = (0, 0, 0);
    fs::remove_dir_all(shelf.dir.join("new")).unwrap();
    while kills < KILLS {
        if run(Some(Duration::from_micros(dice.roll(whole.as_micros() as u64)))) {
            // All over again.
            fs::remove_dir_all(shelf.dir.join("new")).unwrap();
            known = 0;
            continue;
        }
        kills += 1;
        let there = shelf.dir.join("new");
        if !there.join("copy.json").exists() {
            continue;
        }
        // Every backup that is there is whole. To look, the copy is called a repository for a moment.
        if !there.join("everhold.json").exists() && there.join("sealed").exists() {
            let half = try_open(&shelf, "new", "n").err().unwrap();
            assert!(matches!(half, RepositoryError::HalfCopied { .. }), "{half}");
            let word = fs::read(there.join("copy.json")).unwrap();
            let word: serde_json::Value = serde_json::from_slice(&word).unwrap();
            fs::write(there.join("everhold.json"), word["identity"].to_string()).unwrap();
            let new = try_open(&shelf, "new", "n").unwrap();
            let listed = backup::list(&new, SERVICE).unwrap();
            assert!(listed.unreadable.is_empty());
            assert!(listed.backups.iter().all(|it| it.copies == 1), "{:?}", listed.backups);
            halves += listed.backups.len();
            fs::remove_file(there.join("everhold.json")).unwrap();
        }
        // What was copied stays.
        let objects = files(&there);
        let objects = objects.keys().filter(|it| it.starts_with("main/")).count();
        assert!(objects >= known, "{objects} of {known}");
        known = objects;
        if dice.roll(4) == 0 {
            change_files(&shelf.data(), &mut dice);
            let at_s = NOW + 3_600 + 60 * kills as u64;
            ids.push(shelf.take(ids.last().map(String::as_str), at_s).unwrap().id);
        }
    }
    println!("{halves} backups were seen in copies that were not whole");
    assert!(run(None));
    let new = try_open(&shelf, "new", "n").unwrap();
    for id in &ids {
        let (one, other) = (shelf.dir.join("one"), shelf.dir.join("other"));
        assert!(restored(shelf.open(), id, &one) == restored(&new, id, &other), "{id}");
    }
    assert_eq!(read_log(&new, 20), read_log(shelf.open(), 20));
}
