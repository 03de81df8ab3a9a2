//! Two directories as places: damage in one, conflicts, passwords, strangers.

use super::*;
use everhold_core::spec::Location;
use std::fs;
use std::path::Path;

fn place(dir: &Path, name: &str) -> PlaceConfig {
    let path = dir.join(name).display().to_string();
    PlaceConfig {
        name: name.to_string(),
        location: Location::Directory(path),
        region: None,
        endpoint: None,
        credentials_file: None,
    }
}

fn word(text: &str) -> Password {
    Password::new(text)
}

/// A repository in two places, `east` and `west`.
fn two(dir: &Path) -> Repository {
    let mut repository =
        Repository::create(&place(dir, "east"), &word("e"), "shop").expect("created");
    repository.extend(&place(dir, "west"), &word("w")).expect("extended");
    repository
}

fn open(dir: &Path) -> Repository {
    let places = [(place(dir, "east"), word("e")), (place(dir, "west"), word("w"))];
    Repository::open(&places, "shop").expect("opened")
}

#[test]
fn what_is_put_is_in_every_place_and_sealed() {
    let dir = tempfile::tempdir().expect("a directory");
    two(dir.path());
    let repository = open(dir.path());
    let secret = b"secret content, secret content".repeat(100);
    assert_eq!(repository.put("main/log/1", &secret).expect("put").copies, 2);
    assert_eq!(repository.get("main/log/1").expect("got"), secret);
    for name in ["east", "west"] {
        let stored = fs::read(dir.path().join(name).join("main/log/1")).expect("a file");
        assert!(!stored.windows(6).any(|it| it == b"secret") && stored.len() < 300);
    }
    let listed = repository.list("main/").expect("listed");
    assert_eq!(listed.into_iter().collect::<Vec<_>>(), [("main/log/1".to_string(), 2)]);
    assert_eq!(repository.list("main/log/2").expect("listed").len(), 0);
    // The same again is no conflict, another content is, and the first one stays.
    assert_eq!(repository.put("main/log/1", &secret).expect("put").copies, 2);
    let conflict = repository.put("main/log/1", b"other").expect_err("a conflict");
    assert!(matches!(conflict, RepositoryError::Conflict { .. }), "{conflict}");
    assert_eq!(repository.get("main/log/1").expect("got"), secret);
    repository.delete("main/log/1").expect("deleted");
    let gone = repository.get("main/log/1").expect_err("gone");
    assert!(matches!(gone, RepositoryError::Missing { .. }), "{gone}");
}

#[test]
fn damage_in_one_place_is_healed_from_the_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = two(dir.path());
    repository.put("a/1", b"content").expect("put");
    let file = |name: &str| dir.path().join(name).join("a/1");
    let whole = fs::read(file("east")).expect("a file");
    for bit in (0..whole.len() * 8).step_by(41) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(file("east"), &flipped).expect("damaged");
        assert_eq!(repository.get("a/1").expect("healed"), b"content");
        assert_eq!(fs::read(file("east")).expect("a file"), whole, "bit {bit}");
    }
    fs::remove_file(file("east")).expect("removed");
    assert_eq!(repository.get("a/1").expect("healed"), b"content");
    assert_eq!(fs::read(file("east")).expect("a file"), whole);
    // Put again over damage.
    fs::write(file("west"), b"short").expect("damaged");
    assert_eq!(repository.put("a/1", b"content").expect("put").copies, 2);
    // In both it is an error, never an empty answer.
    for name in ["east", "west"] {
        fs::write(file(name), &whole[..whole.len() - 1]).expect("damaged");
    }
    let lost = repository.get("a/1").expect_err("lost");
    assert!(matches!(lost, RepositoryError::Damaged { .. }), "{lost}");
}

#[test]
fn a_place_that_was_away_is_brought_level() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = two(dir.path());
    let away = dir.path().join("away");
    fs::rename(dir.path().join("west"), &away).expect("moved");
    let alone = open(dir.path());
    assert_eq!(alone.places().collect::<Vec<_>>(), ["east"]);
    assert!(matches!(&alone.absent()[0].1, RepositoryError::NoRepository { .. }), "not mounted");
    alone.put("a/1", b"one").expect("put");
    alone.put("a/2", b"two").expect("put");
    // An empty directory in its place is no repository either, and nothing is written there.
    fs::create_dir(dir.path().join("west")).expect("made");
    assert_eq!(open(dir.path()).places().count(), 1);
    fs::remove_dir(dir.path().join("west")).expect("removed");
    fs::rename(&away, dir.path().join("west")).expect("moved back");
    assert_eq!(repository.level("a/").expect("level"), 2);
    assert_eq!(repository.level("").expect("level"), 0, "keys stay where they are");
    assert!(repository.list("a/").expect("listed").values().all(|copies| *copies == 2));
}

#[test]
fn a_new_place_gets_what_some_other_has_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut repository = two(dir.path());
    repository.put("a/1", b"content").expect("put");
    let file = |name: &str| dir.path().join(name).join("a/1");
    let whole = fs::read(file("west")).expect("a file");
    fs::write(file("east"), b"short").expect("damaged");
    repository.extend(&place(dir.path(), "north"), &Password::new("n")).expect("extended");
    assert_eq!(repository.level("a/").expect("level"), 1);
    assert_eq!(fs::read(file("north")).expect("a file"), whole);
}

#[test]
fn passwords_come_and_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = two(dir.path());
    let east = |text: &str| Repository::open(&[(place(dir.path(), "east"), word(text))], "shop");
    let last = repository.remove_password("east", &word("e")).expect_err("the last one");
    assert!(matches!(last, RepositoryError::LastPassword { .. }), "{last}");
    repository.add_password("east", &word("new")).expect("added");
    repository.remove_password("east", &word("e")).expect("removed");
    let wrong = east("e").err().expect("taken away");
    assert!(matches!(wrong, RepositoryError::WrongPassword { .. }), "{wrong}");
    assert!(east("new").is_ok());
    let unknown = repository.remove_password("east", &word("x")).expect_err("unknown");
    assert!(matches!(unknown, RepositoryError::WrongPassword { .. }), "{unknown}");

    // With all passwords lost, the kit opens it.
    repository.put("a/1", b"content").expect("put");
    let kit = Kit::parse(&repository.kit().text()).expect("a kit");
    let restored = Repository::open_with_kit(&place(dir.path(), "west"), &kit).expect("opened");
    assert_eq!(restored.get("a/1").expect("got"), b"content");
    // And a new password that it lets in opens it as any other.
    restored.add_password("west", &word("from the kit")).expect("added");
    let west = [(place(dir.path(), "west"), word("from the kit"))];
    let again = Repository::open(&west, "shop").expect("opened");
    assert_eq!(again.get("a/1").expect("got"), b"content");
    let other = Repository::create(&place(dir.path(), "other"), &word("o"), "shop").expect("made");
    let wrong = disguised(&other, &repository);
    let refused = Repository::open_with_kit(&place(dir.path(), "west"), &wrong).err();
    let refused = refused.expect("another master key");
    assert!(matches!(refused, RepositoryError::WrongKit { .. }), "{refused}");
}

#[test]
fn a_password_that_is_damaged_keeps_no_other_from_opening() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = two(dir.path());
    repository.add_password("east", &word("new")).expect("added");
    let open = |text: &str| Repository::open(&[(place(dir.path(), "east"), word(text))], "shop");
    let keys = dir.path().join("east/keys");
    for damage in
        ["", "{}", "{\"memory_kib\":1,\"passes\":0,\"lanes\":0,\"salt\":\"\",\"master\":\"\"}"]
    {
        // The first and the last of all.
        fs::write(keys.join("0000000000000000.json"), damage).expect("written");
        fs::write(keys.join("zzzzzzzzzzzzzzzz.json"), damage).expect("written");
        assert!(open("e").is_ok() && open("new").is_ok(), "{damage}");
        let wrong = open("x").err().expect("no password").to_string();
        assert!(wrong.contains("keys/0000000000000000.json"), "{wrong}");
    }
    // It is no other password that would open.
    for name in ["0000000000000000.json", "zzzzzzzzzzzzzzzz.json"] {
        fs::write(keys.join(name), "{}").expect("written");
    }
    repository.remove_password("east", &word("e")).expect("removed");
    let last = repository.remove_password("east", &word("new")).expect_err("the last one");
    assert!(matches!(last, RepositoryError::LastPassword { .. }), "{last}");
}

#[test]
fn one_whose_making_was_killed_is_made_by_the_next_try_under_the_same_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let east = place(dir.path(), "east");
    let create = || Repository::create(&east, &word("e"), "shop");
    let file = |name: &str| dir.path().join("east").join(name);
    let keys = || fs::read_dir(file("keys")).expect("listed").count();
    let kit = create().expect("made").kit().text();
    // Before it says what it is, and before the id that it is to have.
    fs::remove_file(file(IDENTITY)).expect("removed");
    assert_eq!(create().expect("made").kit().text(), kit);
    fs::remove_file(file(IDENTITY)).expect("removed");
    fs::remove_file(file(SEALED)).expect("removed");
    let repository = create().expect("made");
    let key = |kit: &str| kit.split(' ').nth(3).map(str::to_string);
    assert_eq!((key(&repository.kit().text()), keys()), (key(&kit), 1));
    repository.put("a/1", b"content").expect("put");
    let opened = Repository::open(&[(east.clone(), word("e"))], "shop").expect("opened");
    assert_eq!(opened.get("a/1").expect("got"), b"content");
    let wrong = |error: RepositoryError| {
        assert!(matches!(error, RepositoryError::WrongPassword { .. }), "{error}");
    };

    // A further place, begun for this one and for another; and a password that was changed since.
    let mut repository = two(&dir.path().join("second"));
    let west = place(&dir.path().join("second"), "west");
    fs::remove_file(dir.path().join("second/west").join(IDENTITY)).expect("removed");
    wrong(repository.extend(&west, &word("x")).expect_err("another password"));
    let mut alone =
        Repository::open(&[(place(&dir.path().join("second"), "east"), word("e"))], "shop")
            .expect("opened");
    fs::remove_file(file(IDENTITY)).expect("removed");
    let foreign = alone.extend(&east, &word("e")).expect_err("another's");
    assert!(matches!(foreign, RepositoryError::Foreign { .. }), "{foreign}");
    assert!(!file(IDENTITY).exists());
    wrong(Repository::create(&east, &word("x"), "shop").err().expect("another password"));
    alone.extend(&west, &word("w")).expect("extended");
    assert_eq!(fs::read_dir(dir.path().join("second/west/keys")).expect("listed").count(), 1);
    alone.put("a/2", b"both").expect("put");
    assert_eq!(open(&dir.path().join("second")).get("a/2").expect("got"), b"both");
}

#[test]
fn two_that_make_it_at_once_make_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let east = place(dir.path(), "east");
    let kits: Vec<String> = std::thread::scope(|scope| {
        let make = || Repository::create(&east, &word("e"), "shop").map(|it| it.kit().text());
        let running: Vec<_> = (0..3).map(|_| scope.spawn(make)).collect();
        let ended = running.into_iter().map(|thread| thread.join().expect("it ended"));
        // One that comes when all is done is told so.
        ended.filter_map(Result::ok).collect()
    });
    assert!(!kits.is_empty() && kits.iter().all(|kit| *kit == kits[0]), "{kits:?}");
    assert_eq!(fs::read_dir(dir.path().join("east/keys")).expect("listed").count(), 1);
}

#[test]
fn one_more_password_than_are_tried_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = two(dir.path());
    let keys = dir.path().join("east/keys");
    let one = fs::read_dir(&keys).expect("listed").next().expect("one").expect("one").path();
    for n in 1..32 {
        fs::copy(&one, keys.join(format!("{n:016}.json"))).expect("copied");
    }
    let many = repository.add_password("east", &word("new")).expect_err("too many");
    assert!(matches!(many, RepositoryError::ManyPasswords { most: 32, .. }), "{many}");
    fs::remove_file(keys.join("0000000000000001.json")).expect("removed");
    repository.add_password("east", &word("new")).expect("added");
    let east = [(place(dir.path(), "east"), word("new"))];
    assert!(Repository::open(&east, "shop").is_ok());
}

#[test]
fn a_kit_opens_where_what_proves_it_is_damaged() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = two(dir.path());
    repository.put("cluster/spec/20260101T000000Z-0000", b"a spec").expect("put");
    let east = place(dir.path(), "east");
    fs::write(dir.path().join("east").join(SEALED), "damaged").expect("written");
    assert!(Repository::open_with_kit(&east, &repository.kit()).is_ok());
    // The kit of another one that says it is this one's.
    let other = Repository::create(&place(dir.path(), "other"), &word("o"), "shop").expect("made");
    let refused = Repository::open_with_kit(&east, &disguised(&other, &repository)).err();
    assert!(matches!(refused, Some(RepositoryError::WrongKit { .. })), "{refused:?}");
    // Nothing is left to prove it by.
    fs::remove_dir_all(dir.path().join("east/cluster")).expect("removed");
    let refused = Repository::open_with_kit(&east, &repository.kit()).err();
    assert!(matches!(refused, Some(RepositoryError::WrongKit { .. })), "{refused:?}");
}

/// The master key of one repository under the id of another.
fn disguised(one: &Repository, id_of: &Repository) -> Kit {
    let text = one.kit().text().replace(&one.identity().id, &id_of.identity().id);
    let body = &text[..text.len() - 9];
    let sum = blake3::hash(body.as_bytes()).to_hex();
    Kit::parse(&format!("{body} {}", &sum[..8])).expect("a kit")
}

#[test]
fn strangers_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let repository = two(dir.path());
    let other = place(dir.path(), "other");
    let theirs = Repository::create(&other, &word("o"), "shop").expect("created");
    let taken = Repository::create(&other, &word("o"), "shop").err().expect("taken");
    assert!(matches!(taken, RepositoryError::Taken { .. }), "{taken}");
    let foreign = Repository::open_with_kit(&other, &repository.kit()).err().expect("foreign");
    assert!(matches!(foreign, RepositoryError::Foreign { .. }), "{foreign}");
    let both = [(place(dir.path(), "east"), word("e")), (other.clone(), word("o"))];
    let opened = Repository::open(&both, "shop").expect("one of them");
    assert_eq!(opened.places().collect::<Vec<_>>(), ["east"]);
    assert!(matches!(opened.absent()[0].1, RepositoryError::Foreign { .. }));
    let cluster = Repository::open(&[(other.clone(), word("o"))], "bank").err().expect("foreign");
    assert!(cluster.to_string().contains("of cluster shop"), "{cluster}");
    drop(theirs);
    fs::write(dir.path().join("other").join(IDENTITY), "{\"format\": 3}").expect("written");
    let newer = Repository::open(&[(other, word("o"))], "shop").err().expect("newer");
    assert!(matches!(newer, RepositoryError::Newer { format: 3, .. }), "{newer}");
}
