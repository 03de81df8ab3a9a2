//! Control groups: what holds a process and its children to a share of the machine, and knows all of
//! them. Version 1 and version 2, as cgroups(7) has them; a machine may mount both.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// All groups of Everhold are below this one.
const PARENT: &str = "everhold";
/// Over which a share of the processor is counted, in microseconds: the kernel's own default.
const PERIOD_US: u64 = 100_000;

/// What one instance may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a core.
    pub cpu_milli: Option<u64>,
    pub memory_bytes: Option<u64>,
}

/// The group of one instance: a directory for each hierarchy that it is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    dirs: Vec<PathBuf>,
}

/// A hierarchy: where Everhold's groups are in it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchy {
    One { base: PathBuf },
    Two { base: PathBuf },
}

impl Cgroup {
    /// Makes the group and sets its limits. What this machine can't do is answered in words: an
    /// instance without its limits is better than none.
    pub fn make(name: &str, limits: &Limits) -> (Cgroup, Vec<String>) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let (mut group, mut unenforced) = (Cgroup::default(), Vec::new());
        let wanted =
            [("cpu", limits.cpu_milli.is_some()), ("memory", limits.memory_bytes.is_some())];
        for (controller, limited) in wanted {
            let made = match hierarchy(&mounts, &own, controller) {
                Some(hierarchy) => group.join(&hierarchy, name, controller, limits),
                None => Err(io::Error::other("the kernel has no such control group")),
            };
            if let (Err(error), true) = (made, limited) {
                unenforced.push(format!("{controller}: {error}"));
            }
        }
        (group, unenforced)
    }

    fn join(
        &mut self,
        hierarchy: &Hierarchy,
        name: &str,
        controller: &str,
        limits: &Limits,
    ) -> io::Result<()> {
        let (base, is_two) = match hierarchy {
            Hierarchy::One { base } => (base, false),
            Hierarchy::Two { base } => (base, true),
        };
        let parent = base.join(PARENT);
        let dir = parent.join(name);
        fs::create_dir_all(&dir).map_err(|error| said(&dir, &error))?;
        if is_two {
            for above in [base, &parent] {
                write(&above.join("cgroup.subtree_control"), &format!("+{controller}"))?;
            }
        }
        for (file, value) in settings(is_two, controller, limits) {
            write(&dir.join(file), &value)?;
        }
        if !self.dirs.contains(&dir) {
            self.dirs.push(dir);
        }
        Ok(())
    }

    /// The group of that name, as far as it is there.
    pub fn find(name: &str) -> Cgroup {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut dirs: Vec<PathBuf> = ["cpu", "memory"]
            .iter()
            .filter_map(|controller| match hierarchy(&mounts, &own, controller)? {
                Hierarchy::One { base } | Hierarchy::Two { base } => Some(base),
            })
            .map(|base| base.join(PARENT).join(name))
            .filter(|dir| dir.is_dir())
            .collect();
        dirs.dedup();
        Cgroup { dirs }
    }

    /// The files to which a process writes its number to join.
    pub fn doors(&self) -> impl Iterator<Item = PathBuf> {
        self.dirs.iter().map(|dir| dir.join("cgroup.procs"))
    }

    /// Whether that process is in it, or in a group that was made below it. Asked of the process, so
    /// that the answer is about who has that number now.
    pub fn has(&self, pid: i32) -> bool {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        self.dirs.iter().filter_map(|dir| dir.file_name()).any(|name| is_in(&groups, name.as_ref()))
    }

    /// How often the kernel ended a process for want of memory.
    pub fn memory_kills(&self) -> u64 {
        let files = self
            .dirs
            .iter()
            .flat_map(|dir| ["memory.oom_control", "memory.events"].map(|file| dir.join(file)));
        let texts = files.filter_map(|file| fs::read_to_string(file).ok());
        let counts = texts.filter_map(|text| {
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
        });
        counts.sum()
    }

    /// Takes the group away, once nobody is in it. Another try does no harm.
    pub fn remove(&self) {
        for dir in &self.dirs {
            // Refused while somebody is in it.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Whether one of the groups that a process is in, as /proc/PID/cgroup has them, is of that name.
fn is_in(groups: &str, name: &Path) -> bool {
    let named = Path::new(PARENT).join(name);
    let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| Path::new(path).ancestors()).any(|group| group.ends_with(&named))
}

/// Files of the group and what is written to them.
fn settings(is_two: bool, controller: &str, limits: &Limits) -> Vec<(&'static str, String)> {
    let quota = limits.cpu_milli.map(|milli| milli * PERIOD_US / 1_000);
    match (controller, is_two) {
        ("cpu", true) => {
            let quota = quota.map_or("max".to_string(), |quota| quota.to_string());
            vec![("cpu.max", format!("{quota} {PERIOD_US}"))]
        }
        ("cpu", false) => {
            let quota = quota.map_or("-1".to_string(), |quota| quota.to_string());
            vec![("cpu.cfs_period_us", PERIOD_US.to_string()), ("cpu.cfs_quota_us", quota)]
        }
        (_, true) => {
            let bytes = limits.memory_bytes.map_or("max".to_string(), |bytes| bytes.to_string());
            // Ended together: half of an instance serves nobody.
            vec![("memory.max", bytes), ("memory.oom.group", "1".to_string())]
        }
        (_, false) => {
            let bytes = limits.memory_bytes.map_or("-1".to_string(), |bytes| bytes.to_string());
            vec![("memory.limit_in_bytes", bytes)]
        }
    }
}

/// Where the groups of a controller are made. In version 1 below the group of this process, which
/// somebody may have set limits to. In version 2 a group with processes has no groups with
/// controllers below it, so theirs are at the root of what is mounted: below the group of a systemd
/// unit they would keep systemd from starting that unit anew while instances live.
fn hierarchy(mounts: &str, own: &str, controller: &str) -> Option<Hierarchy> {
    let has = |list: &str| list.split(',').any(|it| it == controller);
    for line in mounts.lines() {
        let (mount, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        if (kind.next(), kind.nth(1).is_some_and(has)) != (Some("cgroup"), true) {
            continue;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let mine = own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            parts.next().filter(|list| has(list))?;
            parts.next()
        })?;
        let below = Path::new(mine).strip_prefix(root).unwrap_or(Path::new(""));
        return Some(Hierarchy::One { base: Path::new(at).join(below) });
    }
    let two = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let at = PathBuf::from(two.split(' ').nth(4)?);
    let known = fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default();
    let has = known.split_whitespace().any(|it| it == controller);
    has.then_some(Hierarchy::Two { base: at })
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    fs::write(file, value).map_err(|error| said(file, &error))
}

fn said(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "40 30 0:30 / /sys/fs/cgroup/cpu rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct\n\
        41 30 0:31 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        42 30 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn groups_are_made_below_ones_own() {
        let own = "4:memory:/box/of/mine\n2:cpuacct,cpu:/\n0::/\n";
        let base = |controller| match hierarchy(V1, own, controller) {
            Some(Hierarchy::One { base }) => base,
            other => panic!("{other:?}"),
        };
        assert_eq!(base("cpu"), Path::new("/sys/fs/cgroup/cpu"));
        assert_eq!(base("memory"), Path::new("/sys/fs/cgroup/memory/of/mine"));
        assert_eq!(hierarchy(V1, own, "nothing"), None);
        assert_eq!(hierarchy("", "", "cpu"), None);
    }

    #[test]
    fn a_process_says_itself_what_it_is_in() {
        let check = |groups: &str, expected: bool| {
            assert_eq!(is_in(groups, Path::new("api.a.1.t0")), expected, "{groups}");
        };
        check("4:memory:/box/everhold/api.a.1.t0\n2:cpu:/\n", true);
        check("0::/everhold/api.a.1.t0/of/its/own\n", true);
        check("0::/everhold/api.a.1.t01\n", false);
        check("0::/api.a.1.t0\n", false);
        check("", false);
    }

    #[test]
    fn limits_in_the_words_of_both_versions() {
        let check = |is_two, controller, limits: (Option<u64>, Option<u64>), expected: &str| {
            let limits = Limits { cpu_milli: limits.0, memory_bytes: limits.1 };
            let set = settings(is_two, controller, &limits);
            let set: Vec<String> = set.iter().map(|(file, it)| format!("{file}={it}")).collect();
            assert_eq!(set.join(" "), expected);
        };
        let some = (Some(500), Some(1 << 20));
        check(true, "cpu", some, "cpu.max=50000 100000");
        check(true, "cpu", (None, None), "cpu.max=max 100000");
        check(false, "cpu", some, "cpu.cfs_period_us=100000 cpu.cfs_quota_us=50000");
        check(true, "memory", some, "memory.max=1048576 memory.oom.group=1");
        check(false, "memory", some, "memory.limit_in_bytes=1048576");
        check(false, "memory", (None, None), "memory.limit_in_bytes=-1");
    }
}
