//! The postmaster as a process: started in a session of its own, adopted, watched.

use super::config::PgConfig;
use super::error::PgError;
use super::process::Handle;
use super::{settings, tool};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::sync::watch;

/// The log is cut at this size; one older part is kept beside it.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// How much of the log is read to say why a server did not start.
const LOG_TAIL_BYTES: u64 = 16 << 10;

/// The postmaster under watch.
#[derive(Clone)]
pub struct Watch {
    current: Arc<Mutex<Option<Arc<Handle>>>>,
    deaths: watch::Sender<u64>,
    /// How long the log was when the newest postmaster began.
    log_from: Arc<AtomicU64>,
}

impl Watch {
    pub fn new() -> Watch {
        Watch { current: Arc::default(), deaths: watch::Sender::new(0), log_from: Arc::default() }
    }

    /// Where in the log the words of the newest postmaster begin.
    pub fn log_from(&self) -> u64 {
        self.log_from.load(Ordering::Relaxed)
    }

    /// Changes whenever a postmaster under watch has ended.
    pub fn deaths(&self) -> watch::Receiver<u64> {
        self.deaths.subscribe()
    }

    /// The postmaster, while it lives.
    pub fn alive(&self) -> Option<Arc<Handle>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        current.filter(|handle| !handle.ended())
    }

    /// Watches a postmaster: a child of this process, which is reaped, or another's.
    pub fn adopt(&self, handle: Handle, child: Option<Child>) -> Result<(), PgError> {
        let failed = |error: io::Error| PgError::Task { said: format!("watch: {error}") };
        let fd = handle.fd.try_clone().map_err(failed)?;
        #[expect(
            deprecated,
            reason = "sound for an OwnedFd, which this owns; the successor is unsafe"
        )]
        let end = AsyncFd::with_interest(fd, Interest::READABLE).map_err(failed)?;
        let pid = handle.pid;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(handle));
        tokio::spawn(self.clone().await_end(pid, end, child));
        Ok(())
    }

    async fn await_end(self, pid: i32, end: AsyncFd<OwnedFd>, child: Option<Child>) {
        // An error means that the runtime is shutting down.
        if end.readable().await.is_err() {
            return;
        }
        {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if current.as_ref().is_some_and(|handle| handle.pid == pid) {
                *current = None;
            }
        }
        self.deaths.send_modify(|count| *count += 1);
        if let Some(mut child) = child {
            let status = child.wait().await.map(|status| status.to_string());
            tracing::info!(pid, status = ?status, "postmaster ended");
        }
    }
}

/// Starts the server with nothing that ties it to this process: a session and a log file of its
/// own. The agent may die at any moment without the server noticing.
pub async fn spawn(config: &PgConfig, watch: &Watch) -> Result<(), PgError> {
    let control = tool::control(config).await?;
    let mut command = tool::command(config, "postgres", &["setsid"]);
    command.arg("-D").arg(&config.data_dir);
    // What protects the postmaster where memory is short is not for its backends.
    command.env("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj");
    for (name, value) in settings::forced(config, Some(&control)) {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    let log = open_log(&config.log_file)?;
    watch.log_from.store(log_bytes(&config.log_file), Ordering::Relaxed);
    let errors = log.try_clone().map_err(PgError::file("open", &config.log_file))?;
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    let not_run = |said: String| PgError::DidNotStart { said };
    let child = command.spawn().map_err(|error| not_run(error.to_string()))?;
    let pid = child.id().map(|pid| pid as i32).ok_or_else(|| not_run("no process".into()))?;
    // A child that isn't waited for keeps its number, so the handle is of this very process.
    let handle = Handle::open(pid).ok_or_else(|| not_run("no process".into()))?;
    watch.adopt(handle, Some(child))
}

fn open_log(path: &Path) -> Result<File, PgError> {
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    opened.map_err(PgError::file("open", path))
}

pub fn log_bytes(path: &Path) -> u64 {
    fs::metadata(path).map(|found| found.len()).unwrap_or(0)
}

/// What was logged since it had `from` bytes: the errors in it, if any.
pub fn logged_since(path: &Path, from: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        let from = if from > end { 0 } else { from };
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(LOG_TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => tool::tail(&text),
        Err(error) => format!("(its log can't be read: {error})"),
    }
}

/// Moves a log that has grown too long aside. The server keeps its open file, so that the content is
/// copied and the file cut; what is written in between is lost. Blocks.
pub fn bound_log(path: &Path) -> Result<(), PgError> {
    if log_bytes(path) <= LOG_BYTES_MAX {
        return Ok(());
    }
    let attempt = || -> io::Result<()> {
        let mut old = File::open(path)?;
        let mut kept = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(super::files::beside(path, ".1"))?;
        let length = old.metadata()?.len();
        old.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
        io::copy(&mut old.take(LOG_BYTES_MAX), &mut kept)?;
        kept.flush()?;
        OpenOptions::new().write(true).open(path)?.set_len(0)
    };
    attempt().map_err(PgError::file("shorten", path))
}
