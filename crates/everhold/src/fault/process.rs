//! The processes of this machine, and which of them belong to a node.

use super::Target;
use everhold_adapters::proc::{self, Living};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How etcd is told where its data is.
const STORE_AT: &[u8] = b"--data-dir=";

/// A process as /proc shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub target: Target,
    pub parent: i32,
    /// The last part of the program's path.
    pub program: String,
    pub cwd: PathBuf,
    pub arguments: Vec<PathBuf>,
}

impl Process {
    /// A postmaster or a child of one: they all work in their data directory.
    pub fn is_postgres_in(&self, node_dir: &Path) -> bool {
        self.program == "postgres" && self.cwd.starts_with(node_dir)
    }

    /// An agent or minder of that node: Everhold itself, told of the node's directory.
    fn is_everhold_of(&self, node_dir: &Path) -> bool {
        let named = self.arguments.iter().any(|argument| argument.starts_with(node_dir));
        self.program == "everhold" && named
    }
}

/// The store's server, whose directory is below that one.
fn is_store_in(process: &Process, dir: &Path) -> bool {
    let is_below = |argument: &PathBuf| {
        let at = argument.as_os_str().as_bytes().strip_prefix(STORE_AT);
        at.is_some_and(|at| Path::new(OsStr::from_bytes(at)).starts_with(dir))
    };
    process.program == "etcd" && process.arguments.iter().any(is_below)
}

/// Everything of a whole data directory, with the store.
pub fn all_in(processes: &[Process], data: &Path) -> Vec<Target> {
    let store = processes.iter().filter(|process| is_store_in(process, data));
    let others = belonging(processes, data, None).into_iter();
    others.chain(store).map(|process| process.target).collect()
}

/// Everything of a node: the agent, what it keeps, what it runs (a clone, a rewind). Not those who
/// merely look on: a shell in its directory, or `tail` of its log.
pub fn belonging<'a>(
    processes: &'a [Process],
    node_dir: &Path,
    agent: Option<i32>,
) -> Vec<&'a Process> {
    let own = processes.iter().filter(|process| {
        Some(process.target.pid) == agent
            || process.is_postgres_in(node_dir)
            || process.is_everhold_of(node_dir)
    });
    let mut pids: BTreeSet<i32> = own.map(|process| process.target.pid).collect();
    // Children of children: until nobody new is found, at most once per process.
    for _ in 0..processes.len() {
        let before = pids.len();
        let children = processes.iter().filter(|process| pids.contains(&process.parent));
        let found: Vec<i32> = children.map(|process| process.target.pid).collect();
        pids.extend(found);
        if pids.len() == before {
            break;
        }
    }
    processes.iter().filter(|process| pids.contains(&process.target.pid)).collect()
}

/// All processes. One that ends meanwhile is left out.
pub fn snapshot() -> Vec<Process> {
    proc::numbers().filter_map(read).collect()
}

/// When the process began, if it is there and not dead already.
pub fn started(pid: i32) -> Option<u64> {
    proc::living(pid).map(|it| it.started)
}

fn read(pid: i32) -> Option<Process> {
    let Living { parent, started, .. } = proc::living(pid)?;
    let program = proc::program(pid)?.file_name()?.to_string_lossy().into_owned();
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments = line.split(|byte| *byte == 0).map(|it| PathBuf::from(OsStr::from_bytes(it)));
    Some(Process {
        target: Target { pid, started },
        parent,
        program,
        cwd: proc::works_in(pid).unwrap_or_default(),
        arguments: arguments.collect(),
    })
}
