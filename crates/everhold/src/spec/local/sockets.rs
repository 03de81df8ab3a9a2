//! Whether a port is free, and who has it if not.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};

use super::super::fault::{Code, Fault};

/// The state of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";
/// More generations lie between an instance and its runner in no sane service.
const ANCESTORS_MAX: usize = 8;

/// Binds for a moment without listening, so that no client can notice.
pub(super) fn try_bind(address: SocketAddr) -> Result<(), Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    // As the servers do: a connection that is fading away is no obstacle, a listener is.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)
}

/// The fault of a port that cannot be bound; `None` if one of our own processes of this data
/// directory has it, which the next start takes over.
pub(super) fn fault(
    what: &str,
    address: SocketAddr,
    error: Errno,
    holders: &Holders,
) -> Option<Fault> {
    let fault = |code, message| Some(Fault::of_machine(code, message));
    match error {
        Errno::ADDRINUSE => {
            let holder = holders.of(address);
            if holder.as_ref().is_some_and(|holder| holder.ours) {
                return None;
            }
            let by = match holder {
                Some(holder) => format!("{} (pid {})", holder.name, holder.pid),
                None => "a process of another user".into(),
            };
            fault(Code::PortTaken, format!("{address} for {what} is taken by {by}"))
        }
        Errno::ADDRNOTAVAIL => {
            let message = format!("{} for {what} is no address of this machine", address.ip());
            fault(Code::NotOurAddress, message)
        }
        Errno::ACCESS | Errno::PERM => fault(
            Code::PortForbidden,
            format!("{address} for {what} is not permitted to this user"),
        ),
        other => fault(Code::PortTaken, format!("{address} for {what} cannot be bound: {other}")),
    }
}

/// A process that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub pid: u32,
    pub name: String,
    /// Whether it works in our data directory, or was told of it; or somebody it descends from was.
    pub ours: bool,
}

/// Finds out who listens where; reads `/proc` only when asked.
pub(super) struct Holders {
    data: PathBuf,
}

impl Holders {
    pub fn new(data: &Path) -> Holders {
        Holders { data: fs::canonicalize(data).unwrap_or_else(|_| data.to_owned()) }
    }

    fn of(&self, address: SocketAddr) -> Option<Holder> {
        let inodes = inodes(address);
        let processes = fs::read_dir("/proc").ok()?;
        let pids =
            processes.flatten().filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok());
        let holds = |pid: &u32| {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            open.filter_map(|fd| fs::read_link(fd.path()).ok())
                .any(|target| inodes.contains(&*target.to_string_lossy()))
        };
        let pid = pids.filter(holds).min()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let works_here = fs::read_link(format!("/proc/{pid}/cwd"))
            .is_ok_and(|directory| directory.starts_with(&self.data));
        let mut line = std::iter::successors(Some(pid), |pid| parent(*pid)).take(ANCESTORS_MAX);
        let ours = works_here || line.any(|pid| self.is_told(pid));
        Some(Holder { pid, name: name.trim().to_owned(), ours })
    }

    fn is_told(&self, pid: u32) -> bool {
        let told = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let told = String::from_utf8_lossy(&told).into_owned();
        told.split('\0')
            // Of `--data-dir=PATH` the path.
            .map(|word| word.rsplit('=').next().unwrap_or(word))
            .any(|word| Path::new(word).starts_with(&self.data))
    }
}

/// Who started a process; `None`: the system did.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok().filter(|pid| *pid > 1)
}

/// The sockets that listen at an address, as `/proc/PID/fd` links to them.
fn inodes(address: SocketAddr) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = fs::read_to_string(file).unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(&LISTEN), Some(inode)) =
                (fields.get(1), fields.get(3), fields.get(9))
            else {
                continue;
            };
            let Some(other) = parse(local) else { continue };
            let meets = other.ip() == address.ip()
                || other.ip().is_unspecified()
                || address.ip().is_unspecified();
            if other.port() == address.port() && meets {
                found.insert(format!("socket:[{inode}]"));
            }
        }
    }
    found
}

/// An address as the kernel prints it: words of four bytes in the machine's own order.
fn parse(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = if ip.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let mut bytes = [0; 16];
        for (index, four) in bytes.chunks_exact_mut(4).enumerate() {
            four.copy_from_slice(&word(index * 8)?);
        }
        IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
    };
    Some(SocketAddr::new(ip, port))
}
