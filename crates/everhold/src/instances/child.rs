//! The process of an instance and all that it starts: begun in a session and control groups of its
//! own, found again, ended without a rest.

use super::order::Order;
use super::place::Place;
use crate::code::Code;
use crate::spec::local::RunAs;
use anyhow::Context;
use everhold_adapters::cgroup::Cgroup;
use everhold_adapters::proc::{self, Handle};
use rustix::process::{Gid, Signal, Uid};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The variable by which everything that descends from an instance is known.
pub const TOKEN: &str = "EVERHOLD_RUN";
/// Whom an instance runs as if the spec doesn't say and Everhold is root: nobody's files are its.
const USER: &str = "nobody";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What was killed is gone by then, unless it waits for a disk.
const GONE_WITHIN: Duration = Duration::from_secs(10);
const ROUND: Duration = Duration::from_millis(250);
/// As a shell says that there is no such program.
const NOT_STARTED: u8 = 127;

/// A process, by what stays true of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// In ticks since boot.
    pub started: u64,
}

impl Process {
    pub fn of(pid: i32) -> Option<Process> {
        Some(Process { pid, started: proc::started(pid)? })
    }

    /// A handle of it, while it lives.
    pub fn alive(&self) -> Option<Handle> {
        // The handle first: what is asked afterwards is about the same process.
        let handle = Handle::open(self.pid)?;
        let same = proc::started(self.pid) == Some(self.started);
        (same && !handle.ended()).then_some(handle)
    }
}

/// Whom an instance runs as; `None`: as we do.
pub fn owner(order: &Order) -> anyhow::Result<Option<RunAs>> {
    let root = rustix::process::geteuid().is_root();
    let name = match &order.user {
        None if !root => return Ok(None),
        None => USER,
        Some(name) => name.as_str(),
    };
    let found = RunAs::of_user(name).with_context(|| format!("there is no user {name} here"))?;
    if found.is_other() && !root {
        anyhow::bail!("Everhold is not root, so nothing can run as {name}");
    }
    Ok(Some(found))
}

/// Starts the instance by way of this program in the role `launch`, which joins the groups and puts
/// off its rights before it becomes the command.
pub fn spawn(
    place: &Place,
    order: &Order,
    group: &Cgroup,
    token: &str,
) -> anyhow::Result<tokio::process::Child> {
    let ready = order.ready()?;
    let owner = owner(order)?;
    let directory = match &order.directory {
        Some(directory) => PathBuf::from(directory),
        None => {
            let work = place.work();
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&work)?;
            if let Some(owner) = &owner {
                chown(&work, Some(owner.uid), owner.gids.first().copied())?;
            }
            work
        }
    };
    let pipe = std::fs::OpenOptions::new().read(true).write(true).open(place.pipe())?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("everhold").arg("launch").arg("--directory").arg(&directory);
    for door in group.doors() {
        command.arg("--join").arg(door);
    }
    if let Some(owner) = owner.as_ref().filter(|owner| owner.is_other()) {
        command.arg("--uid").arg(owner.uid.to_string());
        for gid in &owner.gids {
            command.arg("--gid").arg(gid.to_string());
        }
    }
    command.arg("--").args(&ready.command);
    command.env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| OsString::from(PATH)));
    command.env("LANG", std::env::var_os("LANG").unwrap_or_else(|| OsString::from("C.UTF-8")));
    let home = match &owner {
        Some(owner) => owner.home.clone().map(OsString::from),
        None => std::env::var_os("HOME"),
    };
    command.envs(home.map(|home| ("HOME", home)));
    command.envs(&ready.env).env(TOKEN, token);
    command.stdin(Stdio::null()).stdout(pipe.try_clone()?).stderr(pipe);
    tokio::process::Command::from(command).spawn().context("start this program")
}

/// The arguments of the role `launch`.
#[derive(clap::Args, Clone, Debug)]
pub struct Launch {
    #[arg(long)]
    directory: PathBuf,
    /// Files that take the number of who joins
    #[arg(long)]
    join: Vec<PathBuf>,
    #[arg(long)]
    uid: Option<u32>,
    /// The user's own first
    #[arg(long)]
    gid: Vec<u32>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command. Returns only on failure.
pub fn launch(launch: &Launch) -> ExitCode {
    let failed = |what: &str, error: &std::io::Error| {
        let next = Code::NotLaunched.next();
        eprintln!("everhold: E268 cannot {what}: {error}; next step: {next}");
        ExitCode::from(NOT_STARTED)
    };
    if let Err(error) = rustix::process::setsid() {
        return failed("begin a session", &error.into());
    }
    if let Err(error) = be_ordinary(Path::new("/proc/self/oom_score_adj")) {
        return failed("be like others when memory is short", &error);
    }
    for door in &launch.join {
        if let Err(error) = std::fs::write(door, std::process::id().to_string()) {
            return failed(&format!("join {}", door.display()), &error);
        }
    }
    if let Some(uid) = launch.uid
        && let Err(error) = become_user(uid, &launch.gid)
    {
        return failed(&format!("become user {uid}"), &error);
    }
    // As the user: what that one may not enter is no place for it.
    if let Err(error) = std::env::set_current_dir(&launch.directory) {
        return failed(&format!("work in {}", launch.directory.display()), &error);
    }
    let [program, arguments @ ..] = launch.command.as_slice() else {
        return ExitCode::from(NOT_STARTED);
    };
    let error = Command::new(program).args(arguments).exec();
    failed(&format!("start {}", program.display()), &error)
}

/// What protects Everhold where memory is short is not for what it runs.
fn be_ordinary(score: &Path) -> std::io::Result<()> {
    match std::fs::read_to_string(score)?.starts_with('-') {
        true => std::fs::write(score, "0"),
        false => Ok(()),
    }
}

/// This process has one thread, so what holds for a thread holds for all of it.
fn become_user(uid: u32, gids: &[u32]) -> std::io::Result<()> {
    let groups: Vec<Gid> = gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    if let Some(gid) = groups.first() {
        rustix::thread::set_thread_res_gid(*gid, *gid, *gid)?;
    }
    let uid = Uid::from_raw(uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// What belongs to an instance, however it came off: by its token, its session, its groups.
pub struct Family<'a> {
    pub token: &'a str,
    /// No process that was given the token began before, in ticks since boot.
    pub since: u64,
    /// The process that began its session.
    pub first: Option<Process>,
    pub group: &'a Cgroup,
}

impl Family<'_> {
    fn members(&self) -> Vec<Handle> {
        // Only while it is there, dead or alive, is its number surely that of its session: one that its
        // parent has waited for may have been another's since.
        let session = self.first.filter(|first| proc::started(first.pid) == Some(first.started));
        let me = std::process::id().cast_signed();
        // The environment is asked for last, and of as few as can be: that waits for who is starved.
        proc::handles(|pid| {
            let Some(living) = proc::living(pid).filter(|_| pid != me) else { return false };
            session.is_some_and(|first| living.session == first.pid)
                || self.group.has(pid)
                || (living.started >= self.since && proc::was_given(pid, TOKEN, self.token))
        })
    }

    /// Ends all of it and proves it gone; answers how many are left. Blocks.
    pub fn end(&self) -> usize {
        let until = Instant::now() + GONE_WITHIN;
        loop {
            let left = self.members();
            if left.is_empty() || Instant::now() > until {
                return left.len();
            }
            left.iter().for_each(|process| process.signal(Signal::KILL));
            let round = Instant::now() + ROUND;
            for process in &left {
                process.ends_within(round.saturating_duration_since(Instant::now()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_is_put_off_and_nothing_else_is_changed() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (before, after) in [("-900\n", "0"), ("0\n", "0\n"), ("300\n", "300\n")] {
            std::fs::write(file.path(), before).expect("written");
            be_ordinary(file.path()).expect("done");
            assert_eq!(std::fs::read_to_string(file.path()).expect("read"), after);
        }
    }
}
