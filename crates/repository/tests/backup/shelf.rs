//! A repository in two directories, and a directory of files to back up.

use everhold_core::backup::Kind;
use everhold_core::ids::Lsn;
use everhold_core::spec::Location;
use everhold_repository::backup::{
    self, About, Backup, Info, Plan, Progress, Prune, Pruned, Restore, Restored, Watch,
};
use everhold_repository::{Password, PlaceConfig, Repository, RepositoryError};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use tempfile::TempDir;

pub const SERVICE: &str = "main";
pub const PAGE: usize = 8192;
/// 2026-11-20 02:00.
pub const NOW: u64 = 1_795_140_000;

static NEVER: AtomicBool = AtomicBool::new(false);

pub fn quiet() -> Watch<'static> {
    Watch { progress: &|_: Progress| {}, stop: &NEVER }
}

pub struct Shelf {
    pub dir: PathBuf,
    /// Keeps the directory, if it is this one's to remove.
    _own: Option<TempDir>,
    /// Opened once: a password costs a tenth of a second.
    opened: OnceLock<Repository>,
}

impl Shelf {
    pub fn new() -> Shelf {
        let dir = tempfile::Builder::new().prefix("everhold-backup-").tempdir().unwrap();
        let shelf =
            Shelf { dir: dir.path().to_path_buf(), _own: Some(dir), opened: OnceLock::new() };
        let mut repository =
            Repository::create(&shelf.place("east"), &Password::new("e"), "shop").unwrap();
        repository.extend(&shelf.place("west"), &Password::new("w")).unwrap();
        shelf
    }

    /// Of another process.
    pub fn at(dir: &Path) -> Shelf {
        Shelf { dir: dir.to_path_buf(), _own: None, opened: OnceLock::new() }
    }

    pub fn place(&self, name: &str) -> PlaceConfig {
        PlaceConfig {
            name: name.to_string(),
            location: Location::Directory(self.dir.join(name).display().to_string()),
            region: None,
            endpoint: None,
            credentials_file: None,
        }
    }

    pub fn open(&self) -> &Repository {
        self.opened.get_or_init(|| self.open_places(&["east", "west"]))
    }

    pub fn open_places(&self, names: &[&str]) -> Repository {
        let place = |name: &&str| (self.place(name), Password::new(&name[..1]));
        let places: Vec<_> = names.iter().map(place).collect();
        Repository::open(&places, "shop").unwrap()
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn plan<'a>(&self, data: &'a Path, base: Option<&'a str>, began_s: u64) -> Plan<'a> {
        Plan {
            service: SERVICE,
            kind: if base.is_some() { Kind::Incremental } else { Kind::Full },
            base,
            data_dir: data,
            began_s,
            start: Lsn(0x100),
            checksums: false,
            allow_bad_pages: false,
            threads: 2,
            copies: 2,
        }
    }

    pub fn take(&self, base: Option<&str>, began_s: u64) -> Result<Info, RepositoryError> {
        let repository = self.open();
        let data = self.data();
        Backup::begin(repository, &self.plan(&data, base, began_s), &quiet())?
            .finish(about(began_s))
    }

    pub fn restore(&self, id: &str, to: &str) -> Result<Restored, RepositoryError> {
        let how = Restore { over: true, owner: None, threads: 2, files: &[], log: None };
        backup::restore(self.open(), SERVICE, id, &self.dir.join(to), &how, &quiet())
    }

    pub fn prune(&self, drop: &[String], now_s: u64) -> Pruned {
        let asked = Prune { service: SERVICE, drop, dead: &[], dry_run: false, now_s };
        backup::prune(self.open(), &asked, &quiet()).unwrap()
    }

    pub fn ids(&self) -> Vec<String> {
        let listed = backup::list(self.open(), SERVICE).unwrap();
        assert!(listed.unreadable.is_empty(), "{:?}", listed.unreadable);
        listed.backups.into_iter().map(|it| it.id).collect()
    }

    /// Every listed backup is whole in both places.
    pub fn check(&self) -> usize {
        self.check_but(|_| false)
    }

    /// The same after a kill, which may come between the two puts of a manifest: it is put where it
    /// lacks. All else of a backup is in both places before.
    pub fn check_killed(&self) -> usize {
        self.check_but(|harm| harm.object.contains("/backups/") && harm.copies == 2)
    }

    fn check_but(&self, mended: impl Fn(&backup::Harm) -> bool) -> usize {
        let repository = self.open();
        let ids = self.ids();
        for id in &ids {
            let verified = backup::verify(repository, SERVICE, id, 1, &quiet());
            let verified = verified.unwrap_or_else(|error| panic!("{id}: {error}"));
            let well = verified.harmed.iter().all(&mended) && verified.copies == 2;
            assert!(well, "{id}: {verified:?}");
        }
        ids.len()
    }

    /// All objects below a name, as files of both places.
    pub fn objects(&self, below: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for place in ["east", "west"] {
            let mut open = vec![self.dir.join(place).join(SERVICE).join(below)];
            while let Some(dir) = open.pop() {
                for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                    match entry.path().is_dir() {
                        true => open.push(entry.path()),
                        false => found.push(entry.path()),
                    }
                }
            }
        }
        found.sort();
        found
    }
}

pub fn about(at_s: u64) -> About {
    About {
        cluster: "shop".to_string(),
        service: SERVICE.to_string(),
        node: "a".to_string(),
        pg_version: "15.14".to_string(),
        segment_bytes: 16 << 20,
        sysid: 7,
        began_s: at_s,
        ended_s: at_s + 1,
        start: Lsn(0x100),
        stop: Lsn(0x200),
        tli: 1,
        line: Vec::new(),
        backup_label: "START WAL LOCATION: 0/100\n".to_string(),
        tablespace_map: None,
    }
}

/// Numbers that look random and are the same in each run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        // xorshift64*, Vigna 2016.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % below
    }

    pub fn page(&mut self) -> Vec<u8> {
        let word = self.roll(1 << 40);
        let mut page: Vec<u8> =
            (0..PAGE as u64 / 8).flat_map(|n| (word + n).to_le_bytes()).collect();
        (0..64).for_each(|_| page[self.roll(PAGE as u64) as usize] = self.roll(256) as u8);
        page
    }
}

/// Files as a data directory has them: small ones, one of many blocks, one of more than a leaf.
pub fn make_files(data: &Path, dice: &mut Dice) {
    for dir in ["global", "base/1", "base/5", "pg_wal/archive_status", "pg_xact"] {
        fs::create_dir_all(data.join(dir)).unwrap();
    }
    fs::write(data.join("PG_VERSION"), "15\n").unwrap();
    fs::write(data.join("global/pg_control"), dice.page()).unwrap();
    fs::write(data.join("base/1/empty"), "").unwrap();
    fs::write(data.join("base/1/odd"), vec![7; 3 * PAGE + 100]).unwrap();
    fs::write(data.join("pg_wal/000000010000000000000001"), "not backed up").unwrap();
    for (name, pages) in
        [("base/1/10", 3), ("base/1/11", 40), ("base/5/20", 700), ("base/5/21", 2100)]
    {
        let content: Vec<u8> = (0..pages).flat_map(|_| dice.page()).collect();
        fs::write(data.join(name), content).unwrap();
    }
}

/// Changes pages here and there; grows, cuts, adds and removes files.
pub fn change_files(data: &Path, dice: &mut Dice) {
    for name in ["base/1/11", "base/5/20", "base/5/21", "global/pg_control"] {
        let mut content = fs::read(data.join(name)).unwrap();
        for _ in 0..1 + dice.roll(30) {
            let at = dice.roll((content.len() / PAGE) as u64) as usize * PAGE;
            if dice.roll(3) == 0 {
                content[at..at + PAGE].copy_from_slice(&dice.page());
            } else {
                content[at + dice.roll(PAGE as u64) as usize] ^= 0x55;
            }
        }
        if name != "global/pg_control" && dice.roll(2) == 0 {
            content.extend(dice.page());
        }
        if name == "base/5/20" && dice.roll(3) == 0 {
            content.truncate(content.len() - PAGE * (1 + dice.roll(40) as usize));
        }
        fs::write(data.join(name), content).unwrap();
    }
    fs::write(data.join("base/1/odd"), vec![8; dice.roll(5 * PAGE as u64) as usize]).unwrap();
    fs::write(data.join(format!("base/1/n{}", dice.roll(5))), dice.page()).unwrap();
    let _ = fs::remove_file(data.join(format!("base/1/n{}", dice.roll(5))));
}

/// What a restore of a directory has to bring: files with their content, and directories.
pub fn content(data: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![data.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(data).unwrap().display().to_string();
            if path.is_dir() {
                found.insert(name, None);
                open.push(path);
            } else if !(name.starts_with("pg_wal/") || name == "backup_label") {
                found.insert(name, Some(fs::read(&path).unwrap()));
            }
        }
    }
    found
}
