//! A real server in a directory that vanishes with it.

use everhold_core::backup::Kind;
use everhold_core::ids::Lsn;
use everhold_repository::backup::{About, Backup, Info, Plan};
use everhold_repository::{Repository, RepositoryError};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

pub struct Server {
    pub dir: TempDir,
    pub data: PathBuf,
    pub port: u16,
    running: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop("immediate");
    }
}

impl Server {
    /// A new cluster with checksums, which archives its log.
    pub fn new() -> Server {
        Server::with(&[("shared_buffers", "16MB"), ("fsync", "off")])
    }

    pub fn with(settings: &[(&str, &str)]) -> Server {
        let mut server = Server::empty();
        let data = server.data.display().to_string();
        run(server.tool("initdb").args(["-k", "-A", "trust", "-U", "postgres", "-D", &data]));
        let archive = server.dir.path().join("archive");
        make_dir(&archive);
        server.set("archive_mode", "on");
        server.set("archive_command", &format!("cp %p {}/%f", archive.display()));
        settings.iter().for_each(|(name, value)| server.set(name, value));
        server.start();
        server
    }

    /// Room for one.
    pub fn empty() -> Server {
        let dir = tempfile::Builder::new().prefix("everhold-backup-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let home = dir.path().join("home");
        make_dir(&home);
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        Server { data: home.join("data"), dir, port, running: None }
    }

    pub fn archive(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    pub fn set(&self, name: &str, value: &str) {
        let path = self.data.join("postgresql.conf");
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        writeln!(file, "{name} = '{value}'").unwrap();
    }

    /// A tool of PostgreSQL, as the user who may run it.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(bin_dir().join(name));
        command.current_dir("/").stdin(Stdio::null());
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        if let Some((uid, gid)) = owner() {
            command.uid(uid).gid(gid);
        }
        command
    }

    pub fn start(&mut self) {
        let home = self.data.parent().unwrap();
        let log = home.join("log");
        let log = std::fs::File::create(&log).unwrap();
        let mut postgres = self.tool("postgres");
        postgres.arg("-D").arg(&self.data).args(["-p", &self.port.to_string()]);
        postgres.arg("-c").arg(format!("unix_socket_directories={}", home.display()));
        postgres.stdout(Stdio::null()).stderr(log);
        self.running = Some(postgres.spawn().unwrap());
        let begun = Instant::now();
        while self.ask("SELECT NOT pg_is_in_recovery()") != Some("t".to_string()) {
            let ended = self.running.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && begun.elapsed().as_secs() < 120, "{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.with_file_name("log")).unwrap_or_default()
    }

    pub fn stop(&mut self, mode: &str) {
        if let Some(mut running) = self.running.take() {
            let mut stop = self.tool("pg_ctl");
            stop.arg("-D").arg(&self.data).args(["stop", "-m", mode]).stdout(Stdio::null());
            let _ = stop.status();
            let _ = running.wait();
        }
    }

    pub fn ask(&self, sql: &str) -> Option<String> {
        let output = self.tool("psql").args(["-XAtqc", sql]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| text.trim().to_string())
    }

    pub fn sql(&self, sql: &str) -> String {
        self.ask(sql).unwrap_or_else(|| panic!("{sql}: {}", self.log()))
    }

    /// Balances that every transaction of pgbench keeps equal, and how many there were.
    pub fn balances(&self) -> String {
        self.sql(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts) || ' ' || \
             (SELECT sum(tbalance) FROM pgbench_tellers) || ' ' || \
             (SELECT sum(bbalance) FROM pgbench_branches) || ' ' || \
             (SELECT coalesce(sum(delta), 0) FROM pgbench_history) || ' ' || \
             (SELECT count(*) FROM pgbench_history)",
        )
    }

    pub fn load(&self, seconds: u32) -> Child {
        let mut pgbench = self.tool("pgbench");
        pgbench.args(["-n", "-c", "4", "-T", &seconds.to_string()]);
        pgbench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// A backup of the running server.
    pub fn take(
        &self,
        repository: &Repository,
        base: Option<&str>,
        change: impl FnOnce(&mut Plan<'_>),
    ) -> Result<Info, RepositoryError> {
        let mut session = self.session();
        let began_s = now_s();
        let start = session.ask("SELECT pg_backup_start('test', true)");
        let start: Lsn = start.parse().unwrap();
        let mut plan = Plan {
            service: "main",
            kind: if base.is_some() { Kind::Incremental } else { Kind::Full },
            base,
            data_dir: &self.data,
            began_s,
            start,
            checksums: true,
            allow_bad_pages: false,
            threads: 2,
            copies: 2,
        };
        change(&mut plan);
        let backup = Backup::begin(repository, &plan, &super::shelf::quiet())?;
        let said = session.ask(
            "SELECT lsn || ' ' || encode(convert_to(labelfile, 'UTF8'), 'base64') \
             FROM pg_backup_stop()",
        );
        // Base64 comes in lines; the session joins them.
        let (stop, label) = said.split_once(' ').unwrap();
        let label = self.sql(&format!("SELECT convert_from(decode('{label}', 'base64'), 'UTF8')"));
        backup.finish(About {
            cluster: "shop".to_string(),
            service: "main".to_string(),
            node: "a".to_string(),
            pg_version: self.sql("SHOW server_version"),
            segment_bytes: 16 << 20,
            sysid: self.sql("SELECT system_identifier FROM pg_control_system()").parse().unwrap(),
            began_s,
            ended_s: now_s(),
            start,
            stop: stop.parse().unwrap(),
            tli: 1,
            line: Vec::new(),
            backup_label: format!("{label}\n"),
            tablespace_map: None,
        })
    }

    fn session(&self) -> Session {
        let mut psql = self.tool("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1"]);
        let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Session { child, answers }
    }
}

/// One connection: backup mode ends with it.
struct Session {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Session {
    fn ask(&mut self, sql: &str) -> String {
        let asked = self.child.stdin.as_mut().unwrap();
        writeln!(asked, "{sql};\n\\echo done").unwrap();
        let mut answer = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the session ended: {sql}");
            match line.trim() {
                "done" => return answer,
                line => answer.push_str(line),
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(
        output.status.success(),
        "{command:?}: {said}{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn make_dir(path: &Path) {
    std::fs::create_dir(path).unwrap();
    let (uid, gid) = owner().unzip();
    chown(path, uid, gid).unwrap();
}

/// The newest PostgreSQL here.
fn bin_dir() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib/postgresql").unwrap();
    found.map(|entry| entry.unwrap().path().join("bin")).max().unwrap()
}

/// PostgreSQL doesn't run as root.
pub fn owner() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let id = |flag: &str| {
        let output = Command::new("id").args([flag, "postgres"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    };
    Some((id("-u"), id("-g")))
}
