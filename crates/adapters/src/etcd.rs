//! Everhold's own etcd member as a process: started in a session of its own, found again after a
//! restart of whoever started it, watched for its death, stopped.
//!
//! Dropping an [`Etcd`] leaves the process alone. It is found again by its command line in /proc
//! and not by a file with its pid: there is no moment at which a process runs that such a file
//! doesn't know of, and a stale pid can't be mistaken for it.

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use crate::pki::CertPair;

/// etcd's defaults. A single member has no rival, so shorter timers would gain nothing, and the
/// shortest lease (2 s) follows from them.
const HEARTBEAT_MS: u32 = 100;
const ELECTION_MS: u32 = 1000;
/// Revisions kept for watches that were cut off; a longer gap costs them a full read.
const HISTORY_REVISIONS: u32 = 10_000;
/// The store holds some megabytes.
pub const QUOTA_BYTES: u64 = 1 << 30;
/// Entries held in memory before etcd writes a snapshot; its default of 100,000 is for far larger
/// machines.
const SNAPSHOT_ENTRIES: u32 = 10_000;
/// The flags that only a member without data reads begin like this.
const BEGINNING: &str = "--initial-cluster";
/// Beyond this size the log moves to `etcd.log.1`, which is then replaced.
const LOG_BYTES_MAX: u64 = 4 << 20;
const LOG_LOOK_EVERY: Duration = Duration::from_secs(60);
/// A start replays at most [`SNAPSHOT_ENTRIES`]; what takes longer than this waits for a disk.
const READY_WITHIN: Duration = Duration::from_secs(30);
const READY_LOOK_EVERY: Duration = Duration::from_millis(20);
/// Given to a member that has to make way for one with other flags.
const REPLACE_GRACE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Name of the member, fixed once the data directory exists.
    pub name: String,
    /// Made with mode 0700 if absent. Holds `data/`, `etcd.log` and `etcd.log.1`.
    pub data_dir: PathBuf,
    pub client_addr: SocketAddr,
    pub peer_addr: SocketAddr,
    /// What an empty data directory begins with; later starts find it there.
    pub beginning: Beginning,
    /// Past this size of its file etcd only allows deletions; [`QUOTA_BYTES`] but in tests.
    pub quota_bytes: u64,
    /// Good for server and client, with both addresses among its hosts.
    pub certs: CertPair,
    /// The program; looked for in `PATH` if not given.
    pub binary: Option<PathBuf>,
}

/// How a member without data begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// As the only member of a new store.
    Alone,
    /// As one that the members of a store have added: these, by name and peer URL, itself among
    /// them.
    Added(Vec<(String, String)>),
}

#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    #[error("`{program}` is not installed; next step: apt-get install {package}")]
    NotInstalled { program: String, package: &'static str },
    #[error("{addr} is taken by another process, etcd needs it")]
    PortTaken { addr: SocketAddr, source: io::Error },
    #[error("cannot {what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {what} etcd (pid {pid})")]
    Process { what: &'static str, pid: i32, source: io::Error },
    #[error("etcd ended while it started ({status}); {} ends with:\n{tail}", log.display())]
    Ended { status: String, log: PathBuf, tail: String },
    #[error("etcd did not listen on {addr} within {within:?}; {} ends with:\n{tail}", log.display())]
    NotReady { addr: SocketAddr, within: Duration, log: PathBuf, tail: String },
}

/// A running etcd member.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    adopted: bool,
    log: PathBuf,
}

impl Etcd {
    /// Takes over the member that runs on this data directory with these flags, or starts it. One
    /// that runs with other flags is stopped first. Returns when it listens; whether it also
    /// answers is for the store's client to find out, which waits for it.
    pub async fn start(config: &EtcdConfig) -> Result<Etcd, EtcdError> {
        make_private_dir(&config.data_dir)?;
        let data_dir =
            config.data_dir.canonicalize().map_err(io_error("find", &config.data_dir))?;
        let log = data_dir.join("etcd.log");
        let arguments = arguments(config, &data_dir);

        if let Some((process, running)) = find_running(&data_dir)? {
            if lasting(&running).eq(lasting(&arguments)) {
                let etcd = Etcd { process, adopted: true, log };
                return etcd.ready(config.client_addr).await;
            }
            tracing::info!(pid = process.pid(), "etcd runs with other flags, restarting it");
            process.stop(REPLACE_GRACE).await?;
        }
        let binary = match &config.binary {
            Some(path) if path.is_file() => path.clone(),
            Some(path) => {
                let program = path.display().to_string();
                return Err(EtcdError::NotInstalled { program, package: "etcd-server" });
            }
            None => find_program("etcd", "etcd-server")?,
        };
        let setsid = find_program("setsid", "util-linux")?;
        for addr in [config.client_addr, config.peer_addr] {
            TcpListener::bind(addr).map_err(|source| EtcdError::PortTaken { addr, source })?;
        }
        bound_log(&log).map_err(io_error("rotate", &log))?;
        let process = spawn(&setsid, &binary, &arguments, &log)?;
        Etcd { process, adopted: false, log }.ready(config.client_addr).await
    }

    /// Whether a member has begun in this directory.
    pub fn has_data(data_dir: &Path) -> bool {
        data_dir.join("data/member/wal").is_dir()
    }

    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Whether it was running already.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Returns as soon as the process is dead, with how it ended if it was started here. Keeps the
    /// log within its bound meanwhile. Can be dropped and called again.
    pub async fn wait_exit(&mut self) -> Result<Option<ExitStatus>, EtcdError> {
        loop {
            if let Ok(ended) = timeout(LOG_LOOK_EVERY, self.process.wait_exit()).await {
                return ended;
            }
            if let Err(error) = bound_log(&self.log) {
                tracing::warn!(%error, log = %self.log.display(), "cannot rotate the log of etcd");
            }
        }
    }

    /// Asks it to stop and kills it if it hasn't after `grace`. It is gone when this returns.
    pub async fn stop(self, grace: Duration) -> Result<(), EtcdError> {
        self.process.stop(grace).await
    }

    async fn ready(mut self, addr: SocketAddr) -> Result<Etcd, EtcdError> {
        let until = Instant::now() + READY_WITHIN;
        loop {
            if let Ok(ended) = timeout(READY_LOOK_EVERY, self.process.wait_exit()).await {
                let status = match ended? {
                    Some(status) => status.to_string(),
                    None => "unknown status".to_owned(),
                };
                let tail = log_tail(&self.log);
                return Err(EtcdError::Ended { status, log: self.log, tail });
            }
            let connected = timeout(Duration::from_secs(1), TcpStream::connect(addr)).await;
            if matches!(connected, Ok(Ok(_))) {
                return Ok(self);
            }
            if Instant::now() >= until {
                let (tail, log) = (log_tail(&self.log), self.log.clone());
                self.stop(Duration::ZERO).await?;
                return Err(EtcdError::NotReady { addr, within: READY_WITHIN, log, tail });
            }
        }
    }
}

/// A process by its pidfd, which can't come to mean another process.
#[derive(Debug)]
struct Process {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    /// Only of a process started here: whose end has to be collected.
    child: Option<Child>,
}

impl Process {
    fn open(pid: Pid, child: Option<Child>) -> io::Result<Self> {
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd upholds what it asks")]
        let pidfd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        Ok(Process { pid, pidfd, child })
    }

    fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    async fn wait_exit(&mut self) -> Result<Option<ExitStatus>, EtcdError> {
        let pid = self.pid();
        let failed = |source| EtcdError::Process { what: "wait for", pid, source };
        // A pidfd is readable once its process is dead, and stays so.
        let _dead = self.pidfd.readable().await.map_err(failed)?;
        match &mut self.child {
            Some(child) => child.wait().await.map(Some).map_err(failed),
            None => Ok(None),
        }
    }

    async fn stop(mut self, grace: Duration) -> Result<(), EtcdError> {
        if !grace.is_zero() {
            self.signal(Signal::TERM)?;
            // A frozen process takes no other signal but KILL.
            self.signal(Signal::CONT)?;
            if let Ok(ended) = timeout(grace, self.wait_exit()).await {
                return ended.map(drop);
            }
        }
        self.signal(Signal::KILL)?;
        self.wait_exit().await.map(drop)
    }

    fn signal(&self, signal: Signal) -> Result<(), EtcdError> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(EtcdError::Process { what: "signal", pid: self.pid(), source: e.into() }),
        }
    }
}

/// The whole command line after the program. No secret stands in it, only paths.
fn arguments(config: &EtcdConfig, data_dir: &Path) -> Vec<OsString> {
    let (client, peer) = (config.client_addr, config.peer_addr);
    let certs = &config.certs;
    let path = |flag: &str, path: &Path| {
        let mut argument = OsString::from(flag);
        argument.push(path);
        argument
    };
    let (members, state) = match &config.beginning {
        Beginning::Alone => (format!("{}=https://{peer}", config.name), "new"),
        Beginning::Added(members) => {
            let members: Vec<String> =
                members.iter().map(|(name, url)| format!("{name}={url}")).collect();
            (members.join(","), "existing")
        }
    };
    let mut arguments = vec![
        data_dir_argument(data_dir),
        path("--trusted-ca-file=", &certs.ca),
        path("--cert-file=", &certs.cert),
        path("--key-file=", &certs.key),
        path("--peer-trusted-ca-file=", &certs.ca),
        path("--peer-cert-file=", &certs.cert),
        path("--peer-key-file=", &certs.key),
    ];
    let plain = [
        format!("--name={}", config.name),
        format!("--listen-client-urls=https://{client}"),
        format!("--advertise-client-urls=https://{client}"),
        format!("--listen-peer-urls=https://{peer}"),
        format!("--initial-advertise-peer-urls=https://{peer}"),
        format!("{BEGINNING}={members}"),
        format!("{BEGINNING}-state={state}"),
        "--client-cert-auth=true".to_owned(),
        "--peer-client-cert-auth=true".to_owned(),
        format!("--heartbeat-interval={HEARTBEAT_MS}"),
        format!("--election-timeout={ELECTION_MS}"),
        "--auto-compaction-mode=revision".to_owned(),
        format!("--auto-compaction-retention={HISTORY_REVISIONS}"),
        format!("--quota-backend-bytes={}", config.quota_bytes),
        format!("--snapshot-count={SNAPSHOT_ENTRIES}"),
        "--logger=zap".to_owned(),
        "--log-outputs=stderr".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    arguments.extend(plain.map(OsString::from));
    arguments
}

/// The flags that mean something after the first start too.
fn lasting(arguments: &[OsString]) -> impl Iterator<Item = &OsString> {
    arguments.iter().filter(|it| !it.as_encoded_bytes().starts_with(BEGINNING.as_bytes()))
}

fn data_dir_argument(data_dir: &Path) -> OsString {
    let mut argument = OsString::from("--data-dir=");
    argument.push(data_dir.join("data"));
    argument
}

fn spawn(
    setsid: &Path,
    binary: &Path,
    arguments: &[OsString],
    log: &Path,
) -> Result<Process, EtcdError> {
    let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(log);
    let out = open().map_err(io_error("open", log))?;
    let err = out.try_clone().map_err(io_error("open", log))?;
    // setsid replaces itself with etcd, so the pid stays. etcd refuses to start when a variable of
    // its own says the same as a flag, hence the empty environment; 3.4 wants one on arm64.
    let child = Command::new(setsid)
        .arg(binary)
        .args(arguments)
        .env_clear()
        .env("ETCD_UNSUPPORTED_ARCH", "arm64")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(io_error("start", binary))?;
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let gone = || io::Error::other("it has no pid");
    let opened = pid.ok_or_else(gone).and_then(|pid| Process::open(pid, Some(child)));
    opened.map_err(io_error("watch", binary))
}

/// Finds the etcd of this user on `data_dir`, and its flags.
fn find_running(data_dir: &Path) -> Result<Option<(Process, Vec<OsString>)>, EtcdError> {
    let proc = Path::new("/proc");
    let wanted = data_dir_argument(data_dir);
    for entry in fs::read_dir(proc).map_err(io_error("list", proc))?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|_| flags_of(&entry.path(), &wanted).is_some()) else {
            continue;
        };
        let Ok(process) = Process::open(pid, None) else { continue };
        // Looked at again now that the pid can't come to mean another process.
        if let Some(flags) = flags_of(&entry.path(), &wanted) {
            return Ok(Some((process, flags)));
        }
    }
    Ok(None)
}

/// The flags of the process in the directory `proc_pid`, if it is an etcd of this user that has
/// `wanted` among them.
fn flags_of(proc_pid: &Path, wanted: &OsString) -> Option<Vec<OsString>> {
    if fs::metadata(proc_pid).ok()?.uid() != geteuid().as_raw() {
        return None;
    }
    let line = fs::read(proc_pid.join("cmdline")).ok()?;
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    let line: Vec<OsString> =
        line.split(|b| *b == 0).map(|a| OsStringExt::from_vec(a.to_vec())).collect();
    // Between fork and exec the program is still the second word, after setsid.
    let program = line.iter().take(2).position(|a| Path::new(a).ends_with("etcd"))?;
    let flags = line[program + 1..].to_vec();
    flags.contains(wanted).then_some(flags)
}

fn find_program(program: &str, package: &'static str) -> Result<PathBuf, EtcdError> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| EtcdError::NotInstalled { program: program.to_owned(), package })
}

fn make_private_dir(dir: &Path) -> Result<(), EtcdError> {
    DirBuilder::new().mode(0o700).recursive(true).create(dir).map_err(io_error("create", dir))?;
    let only_ours = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(dir, only_ours).map_err(io_error("restrict", dir))
}

/// Copies a log that has grown too large aside and empties it under its writer, who appends. Lines
/// written between the two steps are lost.
fn bound_log(log: &Path) -> io::Result<()> {
    let bytes = match fs::metadata(log) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) => return Err(e),
    };
    if bytes > LOG_BYTES_MAX {
        fs::copy(log, log.with_extension("log.1"))?;
        OpenOptions::new().write(true).open(log)?.set_len(0)?;
    }
    Ok(())
}

/// The last lines, for an error message.
fn log_tail(log: &Path) -> String {
    const LINES: usize = 4;
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EtcdError {
    let path = path.to_owned();
    move |source| EtcdError::Io { what, path, source }
}
