//! Files as they are, change, vanish and rot.

use crate::shelf::{
    Dice, NOW, PAGE, SERVICE, Shelf, about, change_files, content, make_files, quiet,
};
use everhold_core::backup::Kind;
use everhold_repository::RepositoryError;
use everhold_repository::backup::{self, Backup, Progress, Restore, Watch};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Backups upon backups of what changes, dropped in any order: each that is left restores to what
/// its files were, into an empty directory and over what another left.
#[test]
fn every_backup_is_whole_by_itself() {
    let shelf = Shelf::new();
    let mut dice = Dice(7);
    make_files(&shelf.data(), &mut dice);
    let mut kept: BTreeMap<String, BTreeMap<String, Option<Vec<u8>>>> = BTreeMap::new();
    for round in 0..40 {
        let now_s = NOW + round * 60;
        let ids: Vec<String> = kept.keys().cloned().collect();
        let base = ids.get(ids.len().saturating_sub(1 + dice.roll(2) as usize));
        let repository = shelf.open();
        let data = shelf.data();
        let mut plan = shelf.plan(&data, base.map(String::as_str), now_s);
        if dice.roll(4) == 0 {
            plan.kind = Kind::Full;
        }
        let taken =
            Backup::begin(repository, &plan, &quiet()).unwrap().finish(about(now_s)).unwrap();
        kept.insert(taken.id, content(&data));
        change_files(&data, &mut dice);
        if dice.roll(3) == 0 {
            let ids: Vec<String> = kept.keys().cloned().collect();
            let drop = ids[dice.roll(ids.len() as u64) as usize].clone();
            kept.remove(&drop);
            assert_eq!(shelf.prune(&[drop], now_s).waiting_for, [] as [&str; 0]);
        }
    }
    assert!(kept.len() > 15);
    assert_eq!(shelf.check(), kept.len());
    for (id, expected) in &kept {
        shelf.restore(id, "over").unwrap();
        assert!(content(&shelf.dir.join("over")) == *expected, "{id} over another");
    }
    let (id, expected) = kept.first_key_value().unwrap();
    let restored = shelf.restore(id, "fresh").unwrap();
    assert!(content(&shelf.dir.join("fresh")) == *expected, "{id}");
    assert_eq!(restored.bytes_written, restored.info.bytes);
    let again = shelf.restore(id, "fresh").unwrap();
    assert_eq!(again.bytes_written, PAGE as u64, "all but pg_control was there");
    // With the last one everything goes but the word that it is gone.
    let all: Vec<String> = kept.into_keys().collect();
    shelf.prune(&all, NOW + 1);
    assert_eq!(shelf.objects("packs").len(), 0);
    assert_eq!(shelf.ids().len(), 0);
    shelf.prune(&[], NOW + 8 * 86_400);
    assert_eq!(shelf.objects("").len(), 0);
}

#[test]
fn a_restore_is_private_and_goes_nowhere_else() {
    let shelf = Shelf::new();
    make_files(&shelf.data(), &mut Dice(3));
    let id = shelf.take(None, NOW).unwrap().id;
    let dest = shelf.dir.join("dest");
    fs::create_dir_all(&dest).unwrap();
    fs::write(dest.join("mine"), "precious").unwrap();
    let how = Restore { over: false, owner: Some((1234, 1235)), threads: 1, files: &[], log: None };
    let restore =
        |dest: &std::path::Path| backup::restore(shelf.open(), SERVICE, &id, dest, &how, &quiet());
    let refused = restore(&dest).unwrap_err();
    assert!(matches!(refused, RepositoryError::Occupied { .. }), "{refused}");
    assert_eq!(fs::read_dir(&dest).unwrap().count(), 1, "nothing was touched");
    // Links lead out of the directory: what is behind them stays.
    let outside = shelf.dir.join("outside");
    fs::create_dir_all(outside.join("deep")).unwrap();
    fs::write(outside.join("deep/file"), "precious").unwrap();
    std::os::unix::fs::symlink(&outside, dest.join("link")).unwrap();
    std::os::unix::fs::symlink(&outside, dest.join("base")).unwrap();
    std::os::unix::fs::symlink(outside.join("deep/file"), dest.join("PG_VERSION")).unwrap();
    shelf.restore(&id, "dest").unwrap();
    assert_eq!(fs::read_to_string(outside.join("deep/file")).unwrap(), "precious");
    assert_eq!(content(&dest), content(&shelf.data()));
    // A server that runs in it is noticed.
    fs::write(dest.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
    shelf.restore(&id, "dest").unwrap();
    let mut server =
        std::process::Command::new("sleep").arg("60").current_dir(&dest).spawn().unwrap();
    fs::write(dest.join("postmaster.pid"), format!("{}\n", server.id())).unwrap();
    let refused = shelf.restore(&id, "dest").unwrap_err();
    assert!(refused.to_string().contains(&server.id().to_string()), "{refused}");
    server.kill().unwrap();
    server.wait().unwrap();
    if let Some((uid, gid)) = crate::server::owner() {
        use std::os::unix::fs::MetadataExt;
        let how = Restore { owner: Some((uid, gid)), ..how };
        let fresh = shelf.dir.join("fresh");
        backup::restore(shelf.open(), SERVICE, &id, &fresh, &how, &quiet()).unwrap();
        let mut open = vec![fresh];
        while let Some(path) = open.pop() {
            let meta = fs::symlink_metadata(&path).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (uid, gid), "{path:?}");
            let mode = meta.permissions().mode() & 0o7777;
            assert_eq!(mode, if meta.is_dir() { 0o700 } else { 0o600 }, "{path:?}");
            if meta.is_dir() {
                open.extend(fs::read_dir(path).unwrap().map(|it| it.unwrap().path()));
            }
        }
    }
}

#[test]
fn an_incremental_one_trusts_what_nobody_can_set() {
    let shelf = Shelf::new();
    make_files(&shelf.data(), &mut Dice(9));
    let now_s = crate::server::now_s();
    // Files are as old as the base, to the second: any of them may have changed behind it.
    let base = shelf.take(None, now_s).unwrap();
    let next = shelf.take(Some(&base.id), now_s + 1_000).unwrap();
    assert_eq!(next.bytes_read, next.bytes);
    let third = shelf.take(Some(&next.id), now_s + 2_000).unwrap();
    assert_eq!(third.bytes_read, PAGE as u64, "pg_control, and nothing else");
    // Another content of the same size and age.
    let path = shelf.data().join("base/5/20");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut content = fs::read(&path).unwrap();
    content[100 * PAGE] ^= 1;
    fs::write(&path, &content).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_modified(modified).unwrap();
    let fourth = shelf.take(Some(&third.id), now_s + 3_000).unwrap();
    assert_eq!(fourth.bytes_read, (content.len() + PAGE) as u64);
    shelf.restore(&fourth.id, "dest").unwrap();
    assert_eq!(
        crate::shelf::content(&shelf.dir.join("dest")),
        crate::shelf::content(&shelf.data())
    );
}

/// Does something once, when the first bytes are read.
fn once(act: impl Fn() + Sync) -> impl Fn(Progress) + Sync {
    let done = AtomicBool::new(false);
    move |_| {
        if !done.swap(true, Ordering::Relaxed) {
            act();
        }
    }
}

#[test]
fn what_happens_to_files_meanwhile() {
    let shelf = Shelf::new();
    let data = shelf.data();
    make_files(&data, &mut Dice(5));
    let repository = shelf.open();
    let mut plan = shelf.plan(&data, None, NOW);
    // One after the other, so that what is to vanish was not read before.
    plan.threads = 1;
    let stop = AtomicBool::new(false);
    let before = content(&data);
    // The log brings what was removed or cut away, or takes it again.
    let act = once(|| {
        fs::remove_file(data.join("base/5/21")).unwrap();
        let file = fs::OpenOptions::new().write(true).open(data.join("base/5/20")).unwrap();
        file.set_len(100 * PAGE as u64).unwrap();
    });
    let watch = Watch { progress: &act, stop: &stop };
    let taken = Backup::begin(repository, &plan, &watch).unwrap().finish(about(NOW)).unwrap();
    shelf.restore(&taken.id, "dest").unwrap();
    let mut expected = before;
    expected.remove("base/5/21");
    let cut = expected.get_mut("base/5/20").unwrap().as_mut().unwrap();
    cut[100 * PAGE..].fill(0);
    assert_eq!(content(&shelf.dir.join("dest")), expected);

    // What can't be read fails the backup.
    let act = once(|| {
        fs::remove_file(data.join("base/5/20")).unwrap();
        fs::create_dir(data.join("base/5/20")).unwrap();
    });
    let failed = Backup::begin(repository, &plan, &Watch { progress: &act, stop: &stop });
    let failed = failed.err().unwrap();
    assert!(matches!(failed, RepositoryError::File { what: "read", .. }), "{failed}");

    let act = once(|| stop.store(true, Ordering::Relaxed));
    let stopped = Backup::begin(repository, &plan, &Watch { progress: &act, stop: &stop });
    assert!(matches!(stopped.err().unwrap(), RepositoryError::Stopped));
    // Neither is a backup, nor under way.
    assert_eq!(shelf.ids(), [taken.id]);
    assert_eq!(shelf.objects("running").len(), 0);
    assert_eq!(shelf.prune(&[], NOW).waiting_for.len(), 0);
    shelf.check();
}

/// One bit at a time, anywhere in any object: noticed where there is one copy, healed where there
/// are two, and no wrong byte ever comes back.
#[test]
fn no_flipped_bit_passes() {
    let shelf = Shelf::new();
    let mut dice = Dice(11);
    make_files(&shelf.data(), &mut dice);
    let first = shelf.take(None, NOW).unwrap().id;
    change_files(&shelf.data(), &mut dice);
    let second = shelf.take(Some(&first), NOW + 60).unwrap().id;
    let expected = content(&shelf.data());
    let objects = shelf.objects("");
    let east: Vec<_> = objects.iter().filter(|it| it.starts_with(shelf.dir.join("east"))).collect();
    let alone = shelf.open_places(&["east"]);
    for round in 0..300 {
        let object = east[round % east.len()];
        let sound = fs::read(object).unwrap();
        let mut flipped = sound.clone();
        let bit = match round % 3 {
            // The heads, where keys and lengths are.
            0 => dice.roll(60 * 8),
            _ => dice.roll(sound.len() as u64 * 8),
        } as usize;
        flipped[bit / 8] ^= 1 << (bit % 8);
        if round % 7 == 0 {
            flipped.truncate(bit / 8);
        }
        fs::write(object, &flipped).unwrap();
        let mut noticed = 0;
        for id in [&first, &second] {
            let verified = backup::verify(&alone, SERVICE, id, 1, &quiet());
            noticed += usize::from(
                verified.is_err_and(|_| true) || {
                    backup::verify(&alone, SERVICE, id, 1, &quiet()).is_ok_and(|it| it.copies == 0)
                },
            );
        }
        assert!(noticed > 0, "{object:?} bit {bit}");
        if round % 10 == 0 {
            let dest = shelf.dir.join("dest");
            let how = Restore { over: true, owner: None, threads: 1, files: &[], log: None };
            let restored = backup::restore(&alone, SERVICE, &second, &dest, &how, &quiet());
            assert!(restored.is_err() || content(&dest) == expected, "{object:?} bit {bit}");
            assert_eq!(restored.is_ok(), !dest.join(backup::MARKER).exists());
        }
        // With the other place: a restore, a list or a verification puts it back.
        match round % 2 {
            0 => {
                let damaged = backup::verify(shelf.open(), SERVICE, &second, 1, &quiet()).unwrap();
                assert_eq!(damaged.copies, 2);
                backup::verify(shelf.open(), SERVICE, &first, 1, &quiet()).unwrap();
                assert_eq!(fs::read(object).unwrap(), sound, "{object:?} bit {bit}");
            }
            _ => {
                shelf.restore(&second, "healed").unwrap();
                assert!(content(&shelf.dir.join("healed")) == expected, "{object:?} bit {bit}");
                fs::write(object, &sound).unwrap();
            }
        }
    }
    // A restore by itself puts back what it has read: all that lies only there.
    for object in east.iter().filter(|it| it.to_string_lossy().contains("packs")) {
        let mut content = fs::read(object).unwrap();
        content[50] ^= 4;
        fs::write(object, content).unwrap();
    }
    fs::remove_dir_all(shelf.dir.join("healed")).unwrap();
    shelf.restore(&second, "healed").unwrap();
    shelf.restore(&first, "first").unwrap();
    for object in east.iter().filter(|it| it.to_string_lossy().contains("packs")) {
        let other =
            shelf.dir.join("west").join(object.strip_prefix(shelf.dir.join("east")).unwrap());
        assert_eq!(fs::read(object).unwrap(), fs::read(other).unwrap(), "{object:?}");
    }
}

#[test]
fn what_can_not_be_compared_is_stored_anew() {
    let shelf = Shelf::new();
    let mut dice = Dice(13);
    make_files(&shelf.data(), &mut dice);
    let first = shelf.take(None, NOW).unwrap();
    // All packs are lost, and one of the two places is empty of them.
    for object in shelf.objects("packs") {
        fs::remove_file(object).unwrap();
    }
    let second = shelf.take(Some(&first.id), NOW + 60).unwrap();
    assert!(second.bytes_added * 2 > first.bytes_added, "{second:?}");
    let verified = backup::verify(shelf.open(), SERVICE, &second.id, 1, &quiet()).unwrap();
    assert_eq!(verified.copies, 2);
    // Lost in one place only: it is brought there, and not stored again.
    for object in shelf.objects("packs").iter().filter(|it| it.starts_with(shelf.dir.join("west")))
    {
        fs::remove_file(object).unwrap();
    }
    let third = shelf.take(Some(&second.id), NOW + 120).unwrap();
    assert!(third.bytes_added * 10 < second.bytes_added, "{third:?}");
    let (read, never) = (AtomicU64::new(0), AtomicBool::new(false));
    let progress = |it: Progress| read.store(it.done, Ordering::Relaxed);
    let watch = Watch { progress: &progress, stop: &never };
    let verified = backup::verify(shelf.open(), SERVICE, &third.id, 1, &watch).unwrap();
    assert_eq!((verified.copies, verified.harmed.len()), (2, 0));
    // It tells of all that it reads, of what the backup shares with older ones too.
    let read = read.into_inner();
    assert!(read > second.bytes_added * 3 / 2, "{read} of {}", second.bytes_added);
    // A place that is full or gone: the backup doesn't count with fewer copies than asked.
    let repository = shelf.open();
    fs::remove_dir_all(shelf.dir.join("west")).unwrap();
    fs::write(shelf.dir.join("west"), "no directory").unwrap();
    let data = shelf.data();
    change_files(&data, &mut dice);
    let mut plan = shelf.plan(&data, Some(&third.id), NOW + 180);
    let few = Backup::begin(repository, &plan, &quiet()).err().unwrap();
    assert!(matches!(few, RepositoryError::FewCopies { copies: 1, wanted: 2, .. }), "{few}");
    plan.copies = 1;
    let one = Backup::begin(repository, &plan, &quiet()).unwrap().finish(about(NOW + 180)).unwrap();
    assert_eq!(one.copies, 1);
}
