//! What backups of a large database take of memory: `memory [GB]`.
//!
//! Files of 1 GB with holes, one random page in each block of 256 KB, so that each block is its own:
//! the index is as large as that of a full database. Peaks of resident memory of a process for each
//! step, at a half and at the whole, and what follows for each TB.
#![allow(clippy::unwrap_used, reason = "it ends where it fails")]

#[allow(dead_code, reason = "a part is for tests")]
#[path = "../tests/backup/shelf.rs"]
mod shelf;

use everhold_repository::backup::{self, Prune};
use everhold_repository::{Password, Repository};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const GB: u64 = 64;
const BLOCK: u64 = 256 << 10;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [step, place, data] = words.as_slice() {
        work(step, Path::new(place), Path::new(data));
        println!("{}", peak_kb());
        return;
    }
    let all = words.iter().find_map(|it| it.parse().ok()).unwrap_or(GB);
    let dir = tempfile::Builder::new().prefix("everhold-memory-").tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir_all(data.join("base/5")).unwrap();
    let mut dice = shelf::Dice(1);
    let mut before = BTreeMap::new();
    for (from, to) in [(0, all / 2), (all / 2, all)] {
        (from..to).for_each(|number| make_file(&data, number, &mut dice));
        let place = dir.path().join(format!("to-{to}"));
        fs::create_dir_all(&place).unwrap();
        for step in ["full", "incremental", "verify", "prune"] {
            let begun = Instant::now();
            // Each alone: what one has freed would hide what the next one takes.
            let mut command = Command::new(std::env::current_exe().unwrap());
            let output = command.arg(step).arg(&place).arg(&data).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let kb: u64 = text.trim().parse().unwrap();
            let more = before.insert(step, kb).map_or(String::new(), |was: u64| {
                format!(", {} MB more for each TB", kb.saturating_sub(was) / (to - from))
            });
            let (mb, s) = (kb as f64 / 1024.0, begun.elapsed().as_secs_f64());
            println!("{to:4} GB  {step:12} {mb:6.1} MB{more}, {s:.0} s");
        }
    }
}

fn make_file(data: &Path, number: u64, dice: &mut shelf::Dice) {
    let file = fs::File::create(data.join(format!("base/5/{}", 16_384 + number))).unwrap();
    file.set_len(1 << 30).unwrap();
    for block in 0..(1 << 30) / BLOCK {
        file.write_all_at(&dice.page(), block * BLOCK).unwrap();
    }
}

fn work(step: &str, place: &Path, data: &Path) {
    let shelf = shelf::Shelf::at(place);
    let repository = match step {
        "full" => Repository::create(&shelf.place("east"), &Password::new("e"), "shop").unwrap(),
        _ => shelf.open_places(&["east"]),
    };
    // The mark begins anew: a password takes 64 MB while it is tried.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let newest = || backup::list(&repository, "main").unwrap().backups.pop().unwrap().id;
    let take = |base: Option<&str>, at_s: u64| {
        let mut plan = shelf.plan(data, base, at_s);
        plan.copies = 1;
        let backup = backup::Backup::begin(&repository, &plan, &shelf::quiet()).unwrap();
        backup.finish(shelf::about(at_s)).unwrap();
    };
    match step {
        "full" => take(None, 1_000),
        "incremental" => {
            let file = fs::OpenOptions::new().write(true).open(data.join("base/5/16384")).unwrap();
            file.write_all_at(&[7; 8_192], 0).unwrap();
            take(Some(&newest()), 2_000);
        }
        "verify" => {
            let id = newest();
            let done = backup::verify(&repository, "main", &id, 2, &shelf::quiet()).unwrap();
            assert!(done.harmed.is_empty());
        }
        "prune" => {
            let oldest = backup::list(&repository, "main").unwrap().backups.remove(0).id;
            let now_s = 3_000;
            let asked =
                Prune { service: "main", drop: &[oldest], dead: &[], dry_run: false, now_s };
            backup::prune(&repository, &asked, &shelf::quiet()).unwrap();
        }
        other => panic!("{other}"),
    }
}

/// The most that this process has had in memory since the mark began, see proc(5).
fn peak_kb() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
