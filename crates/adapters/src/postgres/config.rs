//! What has to be known of a server to run it.

use super::error::PgError;
use super::files::{self, Owner};
use super::process::{self, Directory};
use crate::pki::CertPair;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

/// One PostgreSQL server on this node.
#[derive(Clone, Debug)]
pub struct PgConfig {
    pub node: String,
    /// With `postgres`, `initdb`, `pg_rewind`, ….
    pub bin_dir: PathBuf,
    /// No mount point: a clone is made next to it and takes its place by renaming.
    pub data_dir: PathBuf,
    /// For the socket and configuration files; made with mode 0700.
    pub run_dir: PathBuf,
    /// Where WAL that a rewind or a clone would destroy is kept.
    pub kept_dir: PathBuf,
    pub log_file: PathBuf,
    pub listen: IpAddr,
    pub port: u16,
    /// The user and group the server runs as; `None` is the agent's own, which must not be root.
    pub run_as: Owner,
    pub database: String,
    pub owner: String,
    pub owner_password_file: PathBuf,
    pub replication_password_file: PathBuf,
    /// What the server proves itself with, and its standbys, where they are on other machines: then
    /// nothing is spoken over the network but TLS.
    pub tls: Option<CertPair>,
    /// The operator's settings; those that Everhold forces have no effect and are reported.
    pub parameters: BTreeMap<String, String>,
}

/// Stands in a copy that was made from elsewhere than the leader, as the last file written: the epoch
/// it was made in, where its log ends, and its bytes.
pub const COPIED: &str = "everhold.copied";
/// Stands in a data directory that was restored: its name, and a sign that roles may have passwords
/// of another time until it was promoted.
pub const RESTORED: &str = "everhold.restored";

/// PostgreSQL's own limit for the path of a socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;

impl PgConfig {
    /// Makes the directories and resolves paths to what /proc will name them. Blocks briefly.
    pub(super) fn prepare(mut self) -> Result<PgConfig, PgError> {
        let me = rustix::process::geteuid().as_raw();
        if self.run_as.is_none() && me == 0 {
            return Err(PgError::refused("PostgreSQL doesn't run as root: name a user for it"));
        }
        files::private_dir(&self.run_dir, self.run_as)?;
        files::private_dir(&self.kept_dir, None)?;
        for path in [&self.data_dir, &self.log_file] {
            if let Some(parent) = path.parent() {
                let made = std::fs::create_dir_all(parent);
                made.map_err(PgError::file("make the directory", parent))?;
            }
        }
        self.bin_dir = process::resolved(&self.bin_dir)?;
        self.run_dir = process::resolved(&self.run_dir)?;
        let parent = self.data_dir.parent().unwrap_or(std::path::Path::new("/"));
        let name = self.data_dir.file_name().ok_or_else(|| {
            PgError::refused(format!("{} is no data directory", self.data_dir.display()))
        })?;
        self.data_dir = process::resolved(parent)?.join(name);
        let bytes = self.run_dir.as_os_str().len() + "/.s.PGSQL.".len() + 5;
        if bytes > SOCKET_PATH_BYTES_MAX {
            return Err(PgError::SocketPath { dir: self.run_dir, bytes });
        }
        Ok(self)
    }

    /// System users that may connect as the superuser over the socket, as peer authentication will
    /// name them: the agent's and the server's. Blocks for some milliseconds.
    pub(super) fn local_names(&self) -> Result<Vec<String>, PgError> {
        let me = rustix::process::geteuid().as_raw();
        let other = self.run_as.map(|(uid, _)| uid).filter(|uid| *uid != me);
        [Some(me), other].into_iter().flatten().map(user_name).collect()
    }

    pub(super) fn directory(&self) -> Directory {
        Directory {
            data_dir: self.data_dir.clone(),
            copies: vec![self.clone_dir(), self.bootstrap_dir()],
        }
    }

    /// Where a copy is made that is to take the place of the data directory.
    pub fn clone_dir(&self) -> PathBuf {
        files::beside(&self.data_dir, ".new")
    }

    /// Where a restore makes what is to take the place of the data directory.
    pub fn restored_dir(&self) -> PathBuf {
        files::beside(&self.data_dir, ".restored")
    }

    /// What was restored and is being removed.
    pub(super) fn dropped_dir(&self) -> PathBuf {
        files::beside(&self.data_dir, ".dropped")
    }

    pub(super) fn bootstrap_dir(&self) -> PathBuf {
        files::beside(&self.data_dir, ".bootstrap")
    }

    pub(super) fn pg_wal(&self) -> PathBuf {
        self.data_dir.join("pg_wal")
    }
}

fn user_name(uid: u32) -> Result<String, PgError> {
    let output = Command::new("id").args(["-un", &uid.to_string()]).output();
    let output = output.map_err(|error| PgError::Tool {
        tool: "id",
        status: error.to_string(),
        said: String::new(),
    })?;
    if !output.status.success() {
        return Err(PgError::refused(format!("user {uid} has no name on this machine")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}
