//! Backups of one live server, ours and pgBackRest's in turn: wall and CPU seconds, and bytes.
//!
//! `formats [SCALE] [ROUNDS]`: pgbench's scale (80 is 1.2 GB) and how often all is done. Both
//! compress with zstd 3, encrypt, verify page checksums and use two processes; pgBackRest is told
//! not to wait for the log, and neither stores it. Each incremental one comes after 5 s of pgbench.
#![allow(clippy::unwrap_used, reason = "it ends where it fails")]

#[allow(dead_code, reason = "a part is for tests")]
#[path = "../tests/backup/server.rs"]
mod server;
#[allow(dead_code, reason = "a part is for tests")]
#[path = "../tests/backup/shelf.rs"]
mod shelf;

use everhold_repository::backup::{self, Plan, Restore};
use everhold_repository::{Password, Repository};
use server::{Server, owner, run};
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const SCALE: u32 = 80;
const ROUNDS: u32 = 3;

fn main() {
    let numbers = std::env::args().skip(1).filter_map(|it| it.parse().ok());
    let numbers: Vec<u32> = numbers.collect();
    let scale = numbers.first().copied().unwrap_or(SCALE);
    let server = Server::with(&[("shared_buffers", "512MB"), ("max_wal_size", "4GB")]);
    run(server.tool("pgbench").args(["-i", "-q", "-s", &scale.to_string()]));
    for round in 1..=numbers.get(1).copied().unwrap_or(ROUNDS) {
        println!("round {round}, load {}", load());
        let ours = Ours::new();
        let theirs = Theirs::new(&server);
        server.sql("CHECKPOINT");
        let full = ours.take(&server, None);
        theirs.iter().for_each(|it| it.take(&server, "full"));
        let transactions = pgbench(&server);
        println!("  {transactions} transactions");
        server.sql("CHECKPOINT");
        let next = ours.take(&server, Some(&full));
        theirs.iter().for_each(|it| it.take(&server, "incr"));
        ours.restore(&next);
        theirs.iter().for_each(|it| it.restore(&server));
    }
}

struct Ours {
    dir: tempfile::TempDir,
    repository: Repository,
}

impl Ours {
    fn new() -> Ours {
        let dir = tempfile::Builder::new().prefix("everhold-backup-").tempdir().unwrap();
        let place = shelf::Shelf::at(dir.path()).place("east");
        let repository = Repository::create(&place, &Password::new("e"), "shop").unwrap();
        Ours { dir, repository }
    }

    fn take(&self, server: &Server, base: Option<&str>) -> String {
        let what = if base.is_some() { "incremental" } else { "full" };
        let before = bytes(self.dir.path());
        let one_copy = |plan: &mut Plan<'_>| plan.copies = 1;
        let info =
            measure("everhold", what, || server.take(&self.repository, base, one_copy).unwrap());
        let added = bytes(self.dir.path()) - before;
        println!("added {added} of {} read", info.bytes_read);
        info.id
    }

    fn restore(&self, id: &str) {
        let dest = self.dir.path().join("dest");
        let how = Restore { over: false, owner: owner(), threads: 2, files: &[], log: None };
        let restored = measure("everhold", "restore", || {
            backup::restore(&self.repository, "main", id, &dest, &how, &shelf::quiet()).unwrap()
        });
        println!("written {}", restored.bytes_written);
    }
}

struct Theirs {
    dir: tempfile::TempDir,
}

impl Theirs {
    /// If it is installed.
    fn new(server: &Server) -> Option<Theirs> {
        let version = Command::new("pgbackrest").arg("version").output().ok()?;
        let dir = tempfile::Builder::new().prefix("everhold-backup-").tempdir().unwrap();
        println!("  beside {}", String::from_utf8_lossy(&version.stdout).trim());
        let at = |name: &str| dir.path().join(name).display().to_string();
        let conf = format!(
            "[global]\nrepo1-path={}\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass={}\n\
             compress-type=zst\nprocess-max=2\nstart-fast=y\narchive-check=n\n\
             log-level-console=warn\nlog-level-file=off\nlock-path={}\nspool-path={}\n\
             [main]\npg1-path={}\npg1-port={}\npg1-socket-path={}\n",
            at("repository"),
            "correct horse battery staple 0123456789".replace(' ', "-"),
            at("lock"),
            at("spool"),
            server.data.display(),
            server.port,
            server.data.parent().unwrap().display(),
        );
        fs::write(dir.path().join("conf"), conf).unwrap();
        let (uid, gid) = owner().unzip();
        for name in ["", "conf", "repository", "dest"] {
            let path = dir.path().join(name);
            if !path.exists() {
                fs::create_dir(&path).unwrap();
            }
            chown(&path, uid, gid).unwrap();
        }
        let theirs = Theirs { dir };
        run(theirs.tool(server).arg("stanza-create"));
        Some(theirs)
    }

    fn tool(&self, server: &Server) -> Command {
        let mut command = Command::new("pgbackrest");
        let like = server.tool("psql");
        for (name, value) in like.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        if let Some((uid, gid)) = owner() {
            use std::os::unix::process::CommandExt;
            command.uid(uid).gid(gid);
        }
        command.current_dir("/").arg("--config").arg(self.dir.path().join("conf"));
        command.args(["--stanza", "main"]);
        command
    }

    fn take(&self, server: &Server, kind: &str) {
        let before = bytes(self.dir.path());
        let what = if kind == "full" { "full" } else { "incremental" };
        let mut backup = self.tool(server);
        backup.args(["--type", kind, "backup"]);
        measure("pgBackRest", what, || run(&mut backup));
        println!("added {}", bytes(self.dir.path()) - before);
    }

    fn restore(&self, server: &Server) {
        let dest = self.dir.path().join("dest");
        let mut restore = self.tool(server);
        restore.arg("--pg1-path").arg(&dest).arg("restore");
        measure("pgBackRest", "restore", || run(&mut restore));
        println!("written {}", bytes(&dest));
    }
}

fn pgbench(server: &Server) -> String {
    let mut pgbench = server.tool("pgbench");
    pgbench.args(["-n", "-c", "4", "-T", "5"]).stderr(Stdio::null());
    let said = String::from_utf8(pgbench.output().unwrap().stdout).unwrap();
    let line =
        said.lines().find_map(|it| it.strip_prefix("number of transactions actually processed: "));
    line.unwrap_or("?").to_string()
}

/// Prints what it took; the rest of the line is the caller's.
fn measure<T>(who: &str, what: &str, work: impl FnOnce() -> T) -> T {
    let (begun, cpu) = (Instant::now(), cpu_s());
    let result = work();
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_s() - cpu);
    print!("  {who:<10} {what:<11} wall {wall:6.2} s  CPU {cpu:6.2} s  ");
    result
}

/// Of this process and the children it has waited for.
fn cpu_s() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks = fields.split_whitespace().skip(11).take(4).map(|it| it.parse::<f64>().unwrap());
    // A hundred a second on every Linux that runs here.
    ticks.sum::<f64>() / 100.0
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_string()
}

fn bytes(dir: &Path) -> u64 {
    let mut open: Vec<PathBuf> = vec![dir.to_path_buf()];
    let mut sum = 0;
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => open.push(entry.path()),
                Ok(meta) => sum += meta.size(),
                Err(_) => {}
            }
        }
    }
    sum
}
