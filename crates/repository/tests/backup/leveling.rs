//! A place that is lost and made anew gets the older backups from the other.

use crate::shelf::{Dice, NOW, SERVICE, Shelf, change_files, content, make_files, quiet};
use everhold_core::ids::Lsn;
use everhold_core::term::{Branch, BranchId};
use everhold_repository::backup::{self, Known, Leveled, Progress, Watch};
use everhold_repository::log::Piece;
use everhold_repository::{Log, Password, Repository};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

/// Two backups with log and a proof, and a west that was lost and made anew since.
fn half() -> (Shelf, Repository) {
    let shelf = Shelf::new();
    let data = shelf.data();
    make_files(&data, &mut Dice(27));
    let first = shelf.take(None, NOW).unwrap().id;
    change_files(&data, &mut Dice(28));
    shelf.take(Some(&first), NOW + 60).unwrap();
    let log = Log::new(shelf.open(), SERVICE, 7);
    log.put_line(1, &[Branch { tli: 1, epoch: 1, parent: 0, fork: Lsn(0) }]).unwrap();
    let branch = BranchId { epoch: 1, tli: 1 };
    log.put_piece(&Piece { branch, start: Lsn(0), end: Lsn(4), epoch: 1 }, b"text").unwrap();
    fs::remove_dir_all(shelf.dir.join("west")).unwrap();
    let mut repository = shelf.open_places(&["east"]);
    repository.extend(&shelf.place("west"), &Password::new("w")).unwrap();
    (shelf, repository)
}

fn copies(repository: &Repository) -> Vec<usize> {
    let listed = backup::list(repository, SERVICE).unwrap().backups;
    listed.iter().map(|it| it.copies).collect()
}

#[test]
fn no_manifest_comes_before_what_it_needs() {
    let (shelf, _) = half();
    let repository = shelf.open_places(&["west", "east"]);
    assert_eq!(copies(&repository), [1, 1]);
    assert!(!shelf.dir.join("west/main/backups").exists(), "it was only read");
    // Half of it is copied: nothing is listed in west alone.
    let stop = AtomicBool::new(false);
    let progress = |_: Progress| stop.store(true, Ordering::Relaxed);
    let watch = Watch { progress: &progress, stop: &stop };
    backup::level(&repository, SERVICE, &watch).unwrap();
    assert_eq!(copies(&shelf.open_places(&["west"])), [0; 0]);
}

#[test]
fn one_that_can_not_be_copied_keeps_no_other_from_it() {
    let (shelf, repository) = half();
    let all = repository.list("main/").unwrap().len();
    let pack = repository.list("main/packs/").unwrap().into_keys().next_back().unwrap();
    // Nothing takes the place of a directory.
    let taken = shelf.dir.join("west").join(&pack);
    fs::create_dir_all(&taken).unwrap();
    let leveled = backup::level(&repository, SERVICE, &quiet()).unwrap();
    assert!(leveled.failed.is_some_and(|why| why.starts_with(&pack)));
    // A manifest comes after all that it needs: none of what lacks that one.
    let west = shelf.open_places(&["west"]);
    let whole = backup::list(&west, SERVICE).unwrap().backups;
    assert!(whole.iter().all(|it| it.copies == 1), "{whole:?}");
    let blocked = 2 - whole.len();
    assert!(blocked > 0);
    assert_eq!((leveled.objects, leveled.left, leveled.lost), (all - 1 - blocked, blocked, 0));
    fs::remove_dir(&taken).unwrap();
    let leveled = backup::level(&repository, SERVICE, &quiet()).unwrap();
    assert_eq!(leveled, Leveled { objects: 1 + blocked, ..Leveled::default() });
    assert_eq!(copies(&repository), [2, 2]);
}

#[test]
fn all_comes_back_in_turns() {
    let (shelf, repository) = half();
    let objects = repository.list("main/").unwrap();
    assert!(objects.values().all(|copies| *copies == 1));
    assert_eq!(copies(&repository), [1, 1]);
    // Stopped after the first object: the next run goes on from there.
    let stop = AtomicBool::new(false);
    let progress = |_: Progress| stop.store(true, Ordering::Relaxed);
    let watch = Watch { progress: &progress, stop: &stop };
    let leveled = backup::level(&repository, SERVICE, &watch).unwrap();
    let all = objects.len();
    assert_eq!(leveled, Leveled { objects: 1, left: all - 1, ..Leveled::default() });
    let leveled = backup::level(&repository, SERVICE, &quiet()).unwrap();
    assert_eq!(leveled, Leveled { objects: all - 1, ..Leveled::default() });
    assert_eq!(copies(&repository), [2, 2]);
    assert!(repository.list("main/").unwrap().values().all(|copies| *copies == 2));
    assert_eq!(
        backup::level(&repository, SERVICE, &quiet()).unwrap(),
        Leveled::default(),
        "nothing is left to do"
    );
    // East goes: west is enough.
    fs::remove_dir_all(shelf.dir.join("east")).unwrap();
    let west = shelf.open_places(&["west"]);
    let id = backup::list(&west, SERVICE).unwrap().backups.pop().unwrap().id;
    let how = backup::Restore { over: true, owner: None, threads: 2, files: &[], log: None };
    backup::restore(&west, SERVICE, &id, &shelf.dir.join("dest"), &how, &quiet()).unwrap();
    assert_eq!(content(&shelf.dir.join("dest")), content(&shelf.data()));
    assert_eq!(Log::new(&west, SERVICE, 7).pieces(1).unwrap().len(), 1);
}

#[test]
fn what_is_damaged_is_not_copied_and_an_absent_place_refuses() {
    let (shelf, repository) = half();
    let pack = shelf.objects("packs").remove(0);
    let mut bytes = fs::read(&pack).unwrap();
    bytes[100] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let leveled = backup::level(&repository, SERVICE, &quiet()).unwrap();
    assert_eq!((leveled.lost, leveled.left), (1, 0));
    let name = pack.strip_prefix(shelf.dir.join("east")).unwrap();
    assert!(!shelf.dir.join("west").join(name).exists(), "damage does not spread");
    fs::rename(shelf.dir.join("west"), shelf.dir.join("away")).unwrap();
    assert!(backup::level(&repository, SERVICE, &quiet()).is_err());
    assert!(!shelf.dir.join("west").exists());
}

#[test]
fn what_is_known_is_not_read_again_and_what_changed_is() {
    let shelf = Shelf::new();
    make_files(&shelf.data(), &mut Dice(29));
    let first = shelf.take(None, NOW).unwrap().id;
    let second = shelf.take(Some(&first), NOW + 60).unwrap().id;
    let repository = shelf.open();
    let mut known = Known::default();
    let mut listed = || {
        let listed = backup::list_surely(repository, SERVICE, &mut known).unwrap();
        let backups = listed.backups.iter().map(|it| format!("{}:{}", it.id, it.copies));
        (backups.collect::<Vec<_>>().join(" "), listed.unreadable.len())
    };
    let both = format!("{first}:2 {second}:2");
    assert_eq!(listed(), (both.clone(), 0));
    // Of the same size: who reads it again finds it damaged.
    let manifests = shelf.objects("backups");
    let of_first: Vec<_> =
        manifests.iter().filter(|it| it.display().to_string().contains(&first)).collect();
    let sound = fs::read(of_first[0]).unwrap();
    let bad: Vec<u8> = sound.iter().map(|byte| byte ^ 1).collect();
    of_first.iter().for_each(|it| fs::write(it, &bad).unwrap());
    assert_eq!(listed(), (both, 0), "not read again");
    assert_eq!(backup::list(repository, SERVICE).unwrap().unreadable.len(), 1);
    of_first.iter().for_each(|it| fs::write(it, &sound).unwrap());
    let third = shelf.take(Some(&second), NOW + 120).unwrap().id;
    assert_eq!(listed(), (format!("{first}:2 {second}:2 {third}:2"), 0));
    shelf.prune(std::slice::from_ref(&second), NOW + 180);
    assert_eq!(listed(), (format!("{first}:2 {third}:2"), 0));
    // A pack that all rest on is gone in one place.
    let pack = shelf.objects("packs").remove(0);
    fs::rename(&pack, shelf.dir.join("pack")).unwrap();
    assert!(listed().0.contains(":1"), "one copy is left");
    fs::rename(shelf.dir.join("pack"), &pack).unwrap();
    fs::rename(shelf.dir.join("west/main"), shelf.dir.join("west/gone")).unwrap();
    assert_eq!(listed(), (format!("{first}:1 {third}:1"), 0));
}
