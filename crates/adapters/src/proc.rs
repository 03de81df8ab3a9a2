//! Processes of this machine, as /proc tells of them, and handles that stay with them.
//!
//! Nothing here looks at another file system, so that no stalled disk can hold it up.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The unit of times in /proc, on every architecture that Everhold is built for.
const TICKS_PER_SECOND: u64 = 100;
/// Processes of one tree that are looked at.
const TREE_MAX: usize = 1_024;

/// A live process, which keeps its identity when its number is used again.
#[derive(Debug)]
pub struct Handle {
    pub pid: i32,
    pub fd: OwnedFd,
}

impl Handle {
    pub fn open(pid: i32) -> Option<Handle> {
        // A number that was read from a file may be any.
        let known = (pid > 0).then(|| Pid::from_raw(pid)).flatten()?;
        let fd = pidfd_open(known, PidfdFlags::empty()).ok()?;
        Some(Handle { pid, fd })
    }

    /// A process that is gone already is no error.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.fd, signal) {
            tracing::debug!(pid = self.pid, %error, "signal not delivered");
        }
    }

    /// It has ended and let go of its files.
    pub fn ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Waits for its end, for at most so long.
    pub fn ends_within(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            // A pidfd is readable once its process has ended.
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// The end of a process, to be awaited.
pub struct End(AsyncFd<OwnedFd>);

impl End {
    pub fn of(process: &Handle) -> std::io::Result<End> {
        #[expect(
            deprecated,
            reason = "sound for an OwnedFd, which this owns; the successor is unsafe"
        )]
        AsyncFd::with_interest(process.fd.try_clone()?, Interest::READABLE).map(End)
    }

    /// Returns when it has ended. A child of this process may still be a zombie.
    pub async fn reached(&self) {
        // An error means that the runtime is shutting down.
        let _ = self.0.readable().await;
    }
}

/// Readable once the process has ended.
impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The numbers of all processes.
pub fn numbers() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Handles of the processes wanted. Opening one takes a number, so each is asked for twice: the number
/// may be another's by then.
pub fn handles(wanted: impl Fn(i32) -> bool) -> Vec<Handle> {
    let found = numbers().filter(|pid| wanted(*pid)).filter_map(Handle::open);
    found.filter(|process| wanted(process.pid)).collect()
}

/// What everybody may know of a process that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Living {
    pub parent: i32,
    /// The number of the process that began its session.
    pub session: i32,
    /// As [`started`].
    pub started: u64,
}

/// `None`: it is not there, or a zombie.
pub fn living(pid: i32) -> Option<Living> {
    let text = stat(pid)?;
    let dead = matches!(stat_field::<char>(&text, 3)?, 'Z' | 'X');
    let of = |field| stat_field(&text, field);
    let living = Living { parent: of(4)?, session: of(6)?, started: stat_field(&text, 22)? };
    (!dead).then_some(living)
}

/// When a process began, in ticks since boot.
pub fn started(pid: i32) -> Option<u64> {
    stat_field(&stat(pid)?, 22)
}

fn stat(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

/// A field of /proc/PID/stat, counted as proc(5) does.
fn stat_field<T: std::str::FromStr>(text: &str, field: usize) -> Option<T> {
    // The name stands in brackets and may hold anything; the last bracket ends it.
    text.rsplit_once(')')?.1.split_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

/// Whether a process was given that variable. One that writes over its environment doesn't show it.
pub fn was_given(pid: i32, name: &str, value: &str) -> bool {
    let wanted = format!("{name}={value}");
    let given = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    given.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
}

/// Which start of the machine this is: numbers of processes and their start times are of one boot.
pub fn boot() -> &'static str {
    static BOOT: LazyLock<String> = LazyLock::new(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_string()
    });
    &BOOT
}

/// What a process and all that descend from it use now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Had of the processor so far, also by children that have ended.
    pub cpu_ms: u64,
    /// In memory, what they share counted for each.
    pub memory_bytes: u64,
}

/// `None`: it has ended.
pub fn usage(pid: i32) -> Option<Usage> {
    let page = rustix::param::page_size() as u64;
    let mut usage = Usage::default();
    let (mut left, mut seen) = (vec![pid], BTreeSet::new());
    while let Some(next) = left.pop() {
        if seen.len() >= TREE_MAX || !seen.insert(next) {
            continue;
        }
        let Some(text) = stat(next) else { continue };
        let field = |field| stat_field::<i64>(&text, field).unwrap_or(0).max(0) as u64;
        let ticks = (14..=17).map(field).sum::<u64>();
        usage.cpu_ms += ticks * 1_000 / TICKS_PER_SECOND;
        usage.memory_bytes += field(24) * page;
        for task in fs::read_dir(format!("/proc/{next}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            left.extend(children.split_whitespace().filter_map(|it| it.parse::<i32>().ok()));
        }
    }
    started(pid).map(|_| usage)
}

/// What this machine has and what of it is taken, as counters that only rise where it is time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Of all cores together, since its start.
    pub busy_ms: u64,
    pub idle_ms: u64,
    pub memory_bytes: u64,
    /// That nothing could be had of at once.
    pub memory_bytes_used: u64,
}

/// `None`: the kernel doesn't say.
pub fn machine() -> Option<Machine> {
    machine_of(&fs::read_to_string("/proc/stat").ok()?, &fs::read_to_string("/proc/meminfo").ok()?)
}

fn machine_of(stat: &str, memory: &str) -> Option<Machine> {
    // user nice system idle iowait irq softirq steal; guests are counted in the first two.
    let times: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .take(8)
        .filter_map(|it| it.parse().ok())
        .collect();
    let ms = |ticks: u64| ticks * 1_000 / TICKS_PER_SECOND;
    let idle: u64 = times.get(3..5)?.iter().sum();
    let bytes = |key: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    let has = bytes("MemTotal:")?;
    Some(Machine {
        busy_ms: ms(times.iter().sum::<u64>() - idle),
        idle_ms: ms(idle),
        memory_bytes: has,
        memory_bytes_used: has.saturating_sub(bytes("MemAvailable:")?),
    })
}

/// The program that a process runs, under the name it was started by: an upgrade replaces that of a
/// running one. A zombie has none any more.
pub fn program(pid: i32) -> Option<PathBuf> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let text = exe.to_string_lossy();
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text)))
}

/// The directory that a process works in.
pub fn works_in(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_machine_is_read_as_the_kernel_writes_it() {
        let stat = "cpu  100 20 30 400 50 6 7 8 90 10\ncpu0 1 2 3 4\n";
        let memory = "MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:   400 kB\n";
        let machine = machine_of(stat, memory).expect("read");
        assert_eq!((machine.busy_ms, machine.idle_ms), (1_710, 4_500));
        assert_eq!((machine.memory_bytes, machine.memory_bytes_used), (1_024_000, 614_400));
        assert!(machine_of("", memory).is_none() && machine_of(stat, "").is_none());
        let real = super::machine().expect("this machine");
        assert!(real.memory_bytes_used < real.memory_bytes && real.idle_ms > 0, "{real:?}");
    }

    #[test]
    fn a_process_is_found_by_what_it_is_and_known_when_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("600").current_dir(dir.path()).spawn().unwrap();
        let pid = child.id() as i32;
        let place = fs::canonicalize(dir.path()).unwrap();
        let there = |pid: i32| works_in(pid).is_some_and(|cwd| cwd == place);
        let until = Instant::now() + Duration::from_secs(30);
        let is_sleep = || program(pid).is_some_and(|program| program.ends_with("sleep"));
        while !(is_sleep() && there(pid)) {
            assert!(Instant::now() < until, "{:?} in {:?}", program(pid), works_in(pid));
        }
        let found = handles(there);
        assert_eq!(found.iter().map(|it| it.pid).collect::<Vec<_>>(), [pid]);
        assert_eq!(living(pid).map(|it| it.started), started(pid));
        assert!(started(pid).is_some() && !found[0].ended());
        found[0].signal(Signal::KILL);
        assert!(found[0].ends_within(Duration::from_secs(30)));
        // A zombie until it is waited for: neither program nor directory.
        assert_eq!((program(pid), living(pid), handles(there).len()), (None, None, 0));
        child.wait().unwrap();
        assert_eq!(started(pid), None);
        found[0].signal(Signal::KILL);
        assert!(Handle::open(-1).is_none() && started(-1).is_none());
    }

    #[test]
    fn a_process_is_known_by_what_it_was_given_and_with_what_descends_from_it() {
        // Nobody else's on this machine, whom this would end.
        let mark = format!("test-{}", std::process::id());
        let mut child = Command::new("sh");
        child.args(["-c", "sleep 600 & sleep 601 & wait"]).env("MARK", &mark);
        let mut child = child.spawn().unwrap();
        let pid = child.id() as i32;
        let marked = || handles(|pid| was_given(pid, "MARK", &mark));
        let until = Instant::now() + Duration::from_secs(30);
        while marked().len() < 3 {
            assert!(Instant::now() < until, "{:?}", marked());
            std::thread::sleep(Duration::from_millis(5));
        }
        let (it, me) = (living(pid).unwrap(), std::process::id() as i32);
        assert_eq!((it.parent, Some(it.session)), (me, living(me).map(|me| me.session)));
        let (all, one) = (usage(pid).unwrap(), usage(marked()[1].pid).unwrap());
        assert!(all.memory_bytes > one.memory_bytes && one.memory_bytes > 0, "{all:?} {one:?}");
        assert!(!was_given(pid, "MARK", "test-") && usage(-1).is_none() && !boot().is_empty());
        marked().iter().for_each(|it| it.signal(Signal::KILL));
        child.wait().unwrap();
    }

    #[test]
    fn fields_are_counted_behind_the_name() {
        let text = "7 (a) b) S 1 70 71 0 -1 0 0 0 0 0 11 12 13 14 20 0 1 0 900 8192 55";
        assert_eq!(stat_field::<i32>(text, 6), Some(71));
        assert_eq!(stat_field::<u64>(text, 22), Some(900));
        assert_eq!(stat_field::<u64>(text, 24), Some(55));
        assert_eq!(stat_field::<u64>(text, 99), None);
    }
}
