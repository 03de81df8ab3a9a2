//! A repository in a directory and a bucket at once.

use super::bed::{Server, directory, told};
use super::proxy::{Fault, Proxy};
use everhold_repository::backup::{Progress, Watch};
use everhold_repository::{Existing, Password, PlaceConfig, Rekey, Repository, RepositoryError};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn password() -> Password {
    Password::new("p")
}

/// Made in the first place, then in the second.
fn made(first: &PlaceConfig, second: &PlaceConfig) -> Repository {
    let mut repository = Repository::create(first, &password(), "shop").unwrap();
    repository.extend(second, &password()).unwrap();
    repository
}

/// Both orders: damage is found where it is looked for first.
fn both_orders(test: impl Fn(&mut Server, &Path, Repository)) {
    for bucket_first in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::start();
        let (east, west) = (directory(&dir.path().join("east")), server.config(server.port));
        let repository = if bucket_first { made(&west, &east) } else { made(&east, &west) };
        test(&mut server, &dir.path().join("east"), repository);
    }
}

#[test]
fn damage_in_one_is_healed_from_the_other() {
    both_orders(|server, east, repository| {
        let content = b"content, content, content".repeat(1000);
        let name = "main/log/1";
        assert_eq!(repository.put(name, &content).unwrap().copies, 2);
        let mut files = [server.file(name), east.join(name)];
        if repository.places().next() == Some("east") {
            files.reverse();
        }
        let [first, second] = files;
        let damages: [fn(&mut Vec<u8>); 3] =
            [|it| it[100] ^= 1, |it| it.truncate(50), |it| it.clear()];
        for damage in damages {
            // Whoever reads puts right what he finds on the way.
            let whole = fs::read(&first).unwrap();
            assert!(fs::read(&second).unwrap() == whole && !whole.starts_with(b"content"));
            let mut damaged = whole.clone();
            damage(&mut damaged);
            fs::write(&first, &damaged).unwrap();
            assert!(repository.get(name).unwrap() == content);
            assert!(fs::read(&first).unwrap() == whole);
            // Whoever writes looks at both.
            fs::write(&second, &damaged).unwrap();
            assert_eq!(repository.put(name, &content).unwrap().copies, 2);
            fs::remove_file(&first).unwrap();
            assert!(repository.get(name).unwrap() == content);
        }
        let conflict = repository.put(name, b"other").unwrap_err();
        assert!(matches!(conflict, RepositoryError::Conflict { .. }), "{conflict}");
    });
}

#[test]
fn what_can_be_read_is_given_where_it_can_not_be_healed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start();
    let proxy = Proxy::start(server.port, server.root(), &[], Fault::None);
    let repository = made(&server.config(proxy.port), &directory(&dir.path().join("east")));
    assert_eq!(repository.put("a/1", b"content").unwrap().copies, 2);
    fs::remove_file(server.file("a/1")).unwrap();
    let denied = Fault::Answer(403, "<Code>AccessDenied</Code>");
    proxy.next(&[Fault::None, denied]);
    assert_eq!(repository.get("a/1").unwrap(), b"content");
    assert!(!server.file("a/1").exists());
    assert_eq!(repository.get("a/1").unwrap(), b"content");
    assert!(server.file("a/1").exists());
}

#[test]
fn a_server_that_was_gone_is_brought_level() {
    both_orders(|server, east, repository| {
        assert_eq!(repository.put("a/1", b"one").unwrap().copies, 2);
        server.kill();
        let put = repository.put("a/2", b"two").unwrap();
        assert_eq!((put.copies, put.failed.len()), (1, 1));
        assert_eq!(put.failed[0].0, "west");
        assert!(told(&put.failed[0].1).contains("west did not store an object"));
        assert_eq!(repository.get("a/2").unwrap(), b"two");
        told(&repository.list("").unwrap_err());
        told(&repository.level("").unwrap_err());
        let places = [(directory(east), password()), (server.config(server.port), password())];
        let alone = Repository::open(&places, "shop").unwrap();
        assert_eq!(alone.places().collect::<Vec<_>>(), ["east"]);
        told(&alone.absent()[0].1);

        server.begin();
        assert_eq!(repository.level("").unwrap(), 1);
        assert_eq!(repository.level("").unwrap(), 0);
        assert_eq!(server.place().list("a/").unwrap().len(), 2);
        fs::remove_dir_all(east.join("a")).unwrap();
        assert_eq!(repository.level("a/").unwrap(), 2);
        assert_eq!(repository.get("a/1").unwrap(), b"one");
        let both = Repository::open(&places, "shop").unwrap();
        assert_eq!(both.places().count(), 2);
    });
}

#[test]
fn a_server_killed_in_the_middle_of_a_put_loses_nothing_that_counted() {
    let mut server = Server::start();
    let place = server.place();
    for round in 0..5 {
        let content = vec![round; 4_000_000];
        let counted = std::thread::scope(|scope| {
            let putting = scope.spawn(|| {
                let put = |n: &i32| place.put(&format!("{round}/{n}"), &content, Existing::Keep);
                (0..200).take_while(|n| put(n).is_ok()).count()
            });
            std::thread::sleep(std::time::Duration::from_millis(40 + 30 * u64::from(round)));
            server.kill();
            putting.join().unwrap()
        });
        assert!(counted < 200, "killed when all was done");
        server.begin();
        for n in 0..counted {
            assert!(place.get(&format!("{round}/{n}")).unwrap().unwrap() == content);
        }
        // What was under way is there whole or not at all, and is put again.
        let next = format!("{round}/{counted}");
        place.put(&next, &content, Existing::Keep).unwrap();
        assert!(place.get(&next).unwrap().unwrap() == content);
    }
}

#[test]
fn a_directory_is_copied_into_a_bucket_under_another_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start();
    let east = directory(&dir.path().join("east"));
    let from = Repository::create(&east, &password(), "shop").unwrap();
    for n in 0..40 {
        assert_eq!(from.put(&format!("main/log/7/lines/{n}"), b"content").unwrap().copies, 1);
    }
    let (west, new) = (server.config(server.port), Password::new("another"));
    let watch = Watch { progress: &|_| {}, stop: &AtomicBool::new(false) };
    // The server goes away in the middle, and the next run goes on.
    let half = Rekey::begin(&from, &west, &new).unwrap();
    let stop = AtomicBool::new(false);
    let progress = |it: Progress| {
        stop.store(it.done * 2 > it.total, Ordering::Relaxed);
    };
    let stopped = half.run(false, &Watch { progress: &progress, stop: &stop }).unwrap_err();
    assert!(matches!(stopped, RepositoryError::Stopped), "{stopped}");
    server.kill();
    told(&Rekey::begin(&from, &west, &new).err().unwrap());
    server.begin();
    let error = Repository::open(&[(west.clone(), new.clone())], "shop").err().unwrap();
    assert!(matches!(error, RepositoryError::HalfCopied { .. }), "{error}");
    let done = Rekey::begin(&from, &west, &new).unwrap().run(false, &watch).unwrap();
    assert!(done.whole && (1..40).contains(&done.objects), "{done:?}");
    let copy = Repository::open(&[(west.clone(), new.clone())], "shop").unwrap();
    assert_eq!(copy.list("main/").unwrap().len(), 40);
    assert_eq!(copy.get("main/log/7/lines/39").unwrap(), b"content");
    let old = Repository::open(&[(west, password())], "shop").err().unwrap();
    assert!(matches!(old, RepositoryError::WrongPassword { .. }), "{old}");
}
