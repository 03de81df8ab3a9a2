//! Prunes beside backups, step by step and at once.

use crate::shelf::{Dice, NOW, SERVICE, Shelf, about, change_files, content, make_files, quiet};
use everhold_core::backup::Kind;
use everhold_repository::RepositoryError;
use everhold_repository::backup::{self, Backup, GIVEN_UP_S, Progress, Prune, Watch};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

fn filled() -> Shelf {
    let shelf = Shelf::new();
    make_files(&shelf.data(), &mut Dice(17));
    shelf
}

#[test]
fn a_backup_under_way_loses_nothing() {
    let shelf = filled();
    let repository = shelf.open();
    let data = shelf.data();
    let first = shelf.take(None, NOW).unwrap().id;
    // Its base goes, and its own packs are nobody's yet.
    change_files(&data, &mut Dice(18));
    let plan = shelf.plan(&data, Some(&first), NOW + 60);
    let running = Backup::begin(repository, &plan, &quiet()).unwrap();
    let pruned = shelf.prune(&[first], NOW + 120);
    assert_eq!((pruned.packs, pruned.waiting_for), (0, vec![running.id().to_string()]));
    let id = running.finish(about(NOW + 60)).unwrap().id;
    assert_eq!(shelf.ids(), std::slice::from_ref(&id));
    shelf.check();
    assert!(shelf.prune(&[], NOW + 180).waiting_for.is_empty());
    shelf.check();
    shelf.restore(&id, "dest").unwrap();
    assert_eq!(content(&shelf.dir.join("dest")), content(&data));
}

#[test]
fn one_that_is_announced_between_mark_and_deletion() {
    // A prune has condemned what is about to be used, and goes on after the backup has begun.
    let shelf = filled();
    let repository = shelf.open();
    let data = shelf.data();
    let first = shelf.take(None, NOW).unwrap();
    let packs: Vec<String> = repository.list("main/packs/").unwrap().into_keys().collect();
    repository.put("main/prune/x", &serde_json::to_vec(&packs).unwrap()).unwrap();
    let second = shelf.take(Some(&first.id), NOW + 60).unwrap();
    assert!(second.bytes_added * 2 > first.bytes_added, "nothing condemned is used");
    for pack in packs {
        repository.delete(&pack).unwrap();
    }
    let verified = backup::verify(repository, SERVICE, &second.id, 1, &quiet()).unwrap();
    assert_eq!((verified.copies, verified.harmed.len()), (2, 0));
    // The next run ends what that one left.
    shelf.prune(&[first.id], NOW + 120);
    assert_eq!(shelf.objects("prune").len(), 0);
    shelf.check();
    shelf.restore(&second.id, "dest").unwrap();
    assert_eq!(content(&shelf.dir.join("dest")), content(&data));
}

#[test]
fn a_dead_one_is_given_up_and_a_slow_one_refused() {
    let shelf = filled();
    let repository = shelf.open();
    let data = shelf.data();
    let slow = Backup::begin(repository, &shelf.plan(&data, None, NOW), &quiet()).unwrap();
    let young = shelf.prune(&[], NOW + GIVEN_UP_S);
    assert_eq!(young.waiting_for, [slow.id()]);
    let old = shelf.prune(&[], NOW + GIVEN_UP_S + 1);
    assert!(old.waiting_for.is_empty() && old.packs > 0, "{old:?}");
    let id = slow.id().to_string();
    let refused = slow.finish(about(NOW)).unwrap_err();
    assert!(matches!(&refused, RepositoryError::GivenUp { id: it } if *it == id), "{refused}");
    assert_eq!(shelf.ids().len(), 0);
    // One that is known to be dead need not be old.
    let slow = Backup::begin(repository, &shelf.plan(&data, None, NOW), &quiet()).unwrap();
    let dead = [slow.id().to_string()];
    let asked = Prune { service: SERVICE, drop: &[], dead: &dead, dry_run: false, now_s: NOW + 1 };
    assert!(backup::prune(repository, &asked, &quiet()).unwrap().packs > 0);
    slow.finish(about(NOW)).unwrap_err();
    // Finished, and killed before it took its announcement back.
    let done = shelf.take(None, NOW + 60).unwrap().id;
    repository.put(&format!("main/running/{done}"), b"main").unwrap();
    let pruned = shelf.prune(&[], NOW + 61);
    assert_eq!((pruned.packs, pruned.waiting_for.len()), (0, 0));
    assert_eq!((shelf.check(), shelf.ids()), (1, vec![done]));
}

#[test]
fn nothing_goes_because_something_is_not_known() {
    let shelf = filled();
    let first = shelf.take(None, NOW).unwrap().id;
    let second = shelf.take(Some(&first), NOW + 60).unwrap().id;
    let packs = shelf.objects("packs");
    let prune = |drop: &[String], repository: &everhold_repository::Repository| {
        let now_s = NOW + 120;
        backup::prune(
            repository,
            &Prune { service: SERVICE, drop, dead: &[], dry_run: false, now_s },
            &quiet(),
        )
    };
    // A manifest that is damaged in both places.
    let manifests = shelf.objects("backups");
    let damaged: Vec<_> = manifests.iter().filter(|it| it.ends_with(&first)).collect();
    for manifest in &damaged {
        let mut content = fs::read(manifest).unwrap();
        content[60] ^= 1;
        fs::write(manifest, content).unwrap();
    }
    let refused = prune(&[], shelf.open()).unwrap_err();
    assert!(matches!(refused, RepositoryError::Damaged { .. }), "{refused}");
    let listed = backup::list(shelf.open(), SERVICE).unwrap();
    assert_eq!((listed.backups.len(), listed.unreadable.len()), (1, 1));
    assert_eq!(listed.unreadable[0].0, first);
    // A place that is not there.
    fs::rename(shelf.dir.join("west"), shelf.dir.join("away")).unwrap();
    let refused = prune(std::slice::from_ref(&first), shelf.open()).unwrap_err();
    assert!(matches!(refused, RepositoryError::PlaceAbsent { .. }), "{refused}");
    fs::rename(shelf.dir.join("away"), shelf.dir.join("west")).unwrap();
    assert_eq!(shelf.objects("packs"), packs);
    // Dropped by its name it holds up nothing.
    let unknown = prune(&["20260101T000000Z-0000".to_string()], shelf.open()).unwrap_err();
    assert!(matches!(unknown, RepositoryError::Missing { .. }), "{unknown}");
    prune(&[first], shelf.open()).unwrap();
    assert_eq!((shelf.check(), shelf.ids()), (1, vec![second]));
}

#[test]
fn a_dry_run_says_what_a_run_does() {
    let shelf = filled();
    let first = shelf.take(None, NOW).unwrap().id;
    change_files(&shelf.data(), &mut Dice(19));
    shelf.take(None, NOW + 60).unwrap();
    let before = shelf.objects("");
    let drop = [first];
    let asked = Prune { service: SERVICE, drop: &drop, dead: &[], dry_run: true, now_s: NOW + 120 };
    let would = backup::prune(shelf.open(), &asked, &quiet()).unwrap();
    assert_eq!(shelf.objects(""), before);
    assert!(would.packs > 0 && would.bytes > 0);
    assert_eq!(shelf.prune(&drop, NOW + 120), would);
}

#[test]
fn packs_do_not_stay_for_the_little_that_is_needed_of_them() {
    let shelf = filled();
    let data = shelf.data();
    let first = shelf.take(None, NOW).unwrap().id;
    // Small files stay, the large ones go.
    for name in ["base/5/20", "base/5/21"] {
        fs::remove_file(data.join(name)).unwrap();
    }
    let last = shelf.take(Some(&first), NOW + 1000).unwrap().id;
    let repository = shelf.open();
    let full = |now_s| {
        let mut plan = shelf.plan(&data, Some(&last), now_s);
        plan.kind = Kind::Full;
        Backup::begin(repository, &plan, &quiet()).unwrap().finish(about(now_s)).unwrap()
    };
    let kept = full(NOW + 2000);
    assert!(kept.bytes_added > 20 << 10, "what little was needed is stored anew: {kept:?}");
    let others: Vec<String> = shelf.ids().into_iter().filter(|id| *id != kept.id).collect();
    assert!(others.contains(&first));
    let before = shelf.objects("packs").len();
    shelf.prune(&others, NOW + 3000);
    assert!(shelf.objects("packs").len() < before);
    shelf.check();
    shelf.restore(&kept.id, "dest").unwrap();
    assert_eq!(content(&shelf.dir.join("dest")), content(&data));
    let packs = repository.list("main/packs/").unwrap().len();
    assert!(packs <= 6, "{packs}");
}

#[test]
fn a_dropped_backup_does_not_come_back() {
    // By whoever read it in one place to put it back in the other.
    let shelf = filled();
    let first = shelf.take(None, NOW).unwrap().id;
    let second = shelf.take(Some(&first), NOW + 60).unwrap().id;
    shelf.prune(std::slice::from_ref(&first), NOW + 120);
    let repository = shelf.open();
    assert_eq!(repository.level("main/").unwrap(), 0);
    let taken = |it: &&std::path::PathBuf| it.ends_with(&first);
    assert_eq!(shelf.objects("backups").iter().filter(taken).count(), 2, "its names are taken");
    assert_eq!(shelf.ids(), [second]);
    let gone = shelf.restore(&first, "dest").unwrap_err();
    assert!(matches!(gone, RepositoryError::Missing { .. }), "{gone}");
    assert!(!shelf.dir.join("dest").exists());
}

/// Backups, drops and prunes at once, with pauses in the middle of backups: whatever is listed is
/// whole all the time.
#[test]
fn all_at_once() {
    let shelf = filled();
    let over = AtomicBool::new(false);
    let done = Mutex::new(Vec::new());
    let never = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in [21, 22] {
            let (shelf, done, over, never) = (&shelf, &done, &over, &never);
            scope.spawn(move || {
                let mut dice = Dice(seed);
                let repository = shelf.open();
                let data = shelf.dir.join(format!("data{seed}"));
                make_files(&data, &mut dice);
                for round in 0..25 {
                    change_files(&data, &mut dice);
                    let ids: Vec<String> = done.lock().unwrap().clone();
                    let base = ids.get(dice.roll(ids.len() as u64 + 1) as usize);
                    let plan = shelf.plan(&data, base.map(String::as_str), NOW + round);
                    let pause = std::time::Duration::from_millis(dice.roll(3));
                    let slow = |_: Progress| std::thread::sleep(pause);
                    let watch = Watch { progress: &slow, stop: never };
                    match Backup::begin(repository, &plan, &watch) {
                        Ok(backup) => {
                            let id = backup.finish(about(NOW + round)).unwrap().id;
                            done.lock().unwrap().push(id);
                        }
                        // Its base was dropped before it was read.
                        Err(RepositoryError::Missing { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                over.store(true, Ordering::Relaxed);
            });
        }
        for seed in [23, 24] {
            let (shelf, done, over) = (&shelf, &done, &over);
            scope.spawn(move || {
                let mut dice = Dice(seed);
                while !over.load(Ordering::Relaxed) {
                    let drop = {
                        let mut done = done.lock().unwrap();
                        match done.len() as u64 {
                            0..4 => None,
                            count => Some(done.remove(dice.roll(count) as usize)),
                        }
                    };
                    shelf.prune(drop.as_slice(), NOW + 100);
                }
            });
        }
    });
    let mut left = done.into_inner().unwrap();
    left.sort();
    assert_eq!(shelf.ids(), left);
    shelf.check();
    for id in left {
        shelf.restore(&id, "dest").unwrap();
    }
    shelf.prune(&[], NOW + 200);
    shelf.check();
}

#[test]
fn copies_are_counted_over_all_that_a_backup_needs() {
    let shelf = filled();
    let first = shelf.take(None, NOW).unwrap().id;
    change_files(&shelf.data(), &mut Dice(19));
    let second = shelf.take(Some(&first), NOW + 60).unwrap().id;
    let copies = || -> Vec<usize> {
        let listed = backup::list(shelf.open(), SERVICE).unwrap().backups;
        assert!(listed.iter().all(|it| it.manifests == 2), "{listed:?}");
        listed.iter().map(|it| it.copies).collect()
    };
    assert_eq!(copies(), [2, 2]);
    // One that both need.
    let packs = shelf.objects("packs");
    let oldest = |path: &&std::path::PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    let pack = packs.iter().min_by_key(oldest).unwrap().clone();
    fs::remove_file(&pack).unwrap();
    assert_eq!(copies()[0], 1, "{first}");
    // The next backup that stands on it brings it back.
    shelf.take(Some(&second), NOW + 120).unwrap();
    let verified = backup::verify(shelf.open(), SERVICE, &first, 1, &quiet()).unwrap();
    assert_eq!(verified.copies, 2);
    assert_eq!(copies(), [2, 2, 2]);
}

#[test]
fn what_killed_processes_began_to_put_goes_after_a_day() {
    let shelf = Shelf::new();
    make_files(&shelf.data(), &mut Dice(31));
    shelf.take(None, NOW).unwrap();
    let left = |name: &str, age_s: u64| {
        let path = shelf.dir.join("east/unfinished").join(name);
        fs::write(&path, "half").unwrap();
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(NOW - age_s);
        fs::File::open(&path).unwrap().set_modified(at).unwrap();
        path
    };
    let (old, young) = (left("old", 86_401), left("young", 86_399));
    shelf.prune(&[], NOW);
    assert!(!old.exists() && young.exists());
    assert_eq!(shelf.check(), 1);
}
