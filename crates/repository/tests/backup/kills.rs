//! Killed at any moment: what is listed stays whole, and the next run goes on. Of backups, prunes and
//! restores; proofs that are killed are in the tests of the binary.

use crate::shelf::{Dice, NOW, SERVICE, Shelf, change_files, content, make_files, quiet};
use everhold_repository::backup::{MARKER, Prune, prune};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const KILLS: u64 = 50;
const DIR: &str = "EVERHOLD_TEST_DIR";
const TASK: &str = "EVERHOLD_TEST_TASK";

/// What the killed process does; nothing when run by itself.
#[test]
fn child() {
    let (Ok(dir), Ok(task)) = (std::env::var(DIR), std::env::var(TASK)) else { return };
    let shelf = Shelf::at(dir.as_ref());
    let words: Vec<&str> = task.split(' ').collect();
    let now_s = words[1].parse().unwrap();
    match words[0] {
        "backup" => drop(shelf.take(words.get(2).copied(), now_s).unwrap()),
        "prune" => {
            let drop: Vec<String> = words[2..].iter().map(|it| it.to_string()).collect();
            shelf.prune(&drop, now_s);
        }
        "restore" => drop(shelf.restore(words[2], "dest").unwrap()),
        other => panic!("{other}"),
    }
}

/// Runs a task, and kills it after so long. Whether it was killed.
fn killed(shelf: &Shelf, task: &str, after: Duration) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kills::child"])
        .env(DIR, &shelf.dir)
        .env(TASK, task)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(after);
    let _ = child.kill();
    let ended = child.wait().unwrap();
    assert!(ended.success() || ended.code().is_none(), "{task}: {ended}");
    !ended.success()
}

#[test]
fn fifty_kills() {
    let shelf = Shelf::new();
    let data = shelf.data();
    let mut dice = Dice(u64::from(std::process::id()) * 2_654_435_761 + 1);
    println!("dice {}", dice.0);
    make_files(&data, &mut dice);
    let kinds = ["backup", "prune", "restore"];
    let mut now_s = NOW;
    let first = shelf.take(None, now_s).unwrap().id;
    let begun = Instant::now();
    shelf.restore(&first, "dest").unwrap();
    // Two passwords are tried before anything else happens.
    let whole = begun.elapsed() * 2 + Duration::from_millis(300);
    let (mut kills, mut tries) = (0, 0);
    while kills < KILLS {
        tries += 1;
        assert!(tries < KILLS * 4, "{kills} kills in {tries} tries of {whole:?}");
        now_s += 3_600;
        let ids = shelf.ids();
        let some = |dice: &mut Dice| ids[dice.roll(ids.len() as u64) as usize].clone();
        // Each kind is killed as often.
        let kind = kinds[kills as usize % kinds.len()];
        let base = some(&mut dice);
        let id = (kind == "restore").then(|| base.clone());
        if kind == "backup" {
            change_files(&data, &mut dice);
        } else if kind == "prune" && ids.len() < 3 {
            shelf.take(Some(&base), now_s).unwrap();
            continue;
        }
        let task = format!("{kind} {now_s} {base}");
        let after = Duration::from_micros(dice.roll(whole.as_micros() as u64));
        let was_killed = killed(&shelf, &task, after);
        kills += u64::from(was_killed);
        assert!(shelf.check_killed() > 0, "after {task}");
        if let Some(id) = id {
            let dest = shelf.dir.join("dest");
            let startable = dest.join("global/pg_control").exists() && !dest.join(MARKER).exists();
            assert!(was_killed || startable, "{task}");
            shelf.restore(&id, "dest").unwrap();
            if startable {
                assert_eq!(shelf.restore(&id, "dest").unwrap().bytes_written, 8192);
            }
        }
        if dice.roll(8) == 0 {
            // The next runs go on.
            let base = shelf.ids().pop().unwrap();
            let id = shelf.take(Some(&base), now_s).unwrap().id;
            shelf.restore(&id, "dest").unwrap();
            assert!(content(&shelf.dir.join("dest")) == content(&data), "after {task}");
        }
    }
    // Nothing of the dead stays.
    let ids = shelf.ids();
    let drop = &ids[..ids.len() - 1];
    let asked =
        Prune { service: SERVICE, drop, dead: &[], dry_run: false, now_s: now_s + 30 * 86_400 };
    prune(shelf.open(), &asked, &quiet()).unwrap();
    assert_eq!(shelf.check(), 1);
    for left in ["running", "prune"] {
        assert_eq!(shelf.objects(left).len(), 0, "{left}");
    }
    prune(shelf.open(), &Prune { drop: &ids[ids.len() - 1..], ..asked }, &quiet()).unwrap();
    assert_eq!(shelf.objects("packs").len(), 0);
    let _ = fs::remove_dir_all(shelf.dir.join("dest"));
}
