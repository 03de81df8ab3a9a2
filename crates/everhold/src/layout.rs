//! Where everything stands in the data directory. Nobody else builds such a path.
//!
//! ```text
//! DATA/cluster.json               whose directory this is; the first file written
//! DATA/etcd, pki, secrets         the embedded store, certificates, passwords
//! DATA/store                      copies of the store
//! DATA/run/                       what a supervisor keeps
//! DATA/gateway/requests           the socket on which its gateway tells what became of requests
//! DATA/gateway/handover           the one on which it hands its listening sockets to its successor
//! DATA/gateway/draining           marks of those that were succeeded and still have clients
//! DATA/NODE/                      what one agent keeps
//! DATA/NODE/SERVICE/INSTANCE      an instance of an HTTP service: see `instances/place.rs`
//! DATA/NODE/SERVICE/pgdata        the instance's PostgreSQL data directory
//! DATA/NODE/SERVICE/run           its socket
//! DATA/NODE/SERVICE/pgdata.*      one that is being made, or that was kept: .new, .restored, .kept-EPOCH
//! DATA/NODE/SERVICE/box           a backup, while it is proven
//! DATA/NODE/SERVICE/rec           the socket of a server that recovers before it is put in place
//! DATA/NODE/SERVICE/diverged      WAL that no other node has, kept after a failover
//! ```

use crate::supervisor::GATEWAY;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Of a gateway's socket beside its node file.
pub const HANDOVER: &str = "handover";

/// The version of `cluster.json`; a newer one is refused.
pub const CLUSTER_RECORD_VERSION: u32 = 1;

/// `cluster.json`: whose data directory it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    pub version: u32,
    pub cluster: String,
}

impl ClusterRecord {
    pub fn of(cluster: &str) -> ClusterRecord {
        ClusterRecord { version: CLUSTER_RECORD_VERSION, cluster: cluster.to_owned() }
    }
}

/// The paths below one data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The directory need not exist. A relative path is taken from the working directory, once.
    pub fn new(root: impl AsRef<Path>) -> std::io::Result<Layout> {
        Ok(Layout { root: std::path::absolute(root)? })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn cluster_record(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    pub fn etcd(&self) -> PathBuf {
        self.root.join("etcd")
    }

    /// Copies of the store, for when all its servers have lost theirs.
    pub fn store_copies(&self) -> PathBuf {
        self.root.join("store")
    }

    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// What a supervisor keeps: its lock, where its API is, its copy of the spec.
    pub fn supervisor(&self) -> PathBuf {
        self.root.join("run")
    }

    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// What all machines of the cluster, and nobody else, know.
    pub fn cluster_secret(&self) -> PathBuf {
        self.secrets().join("cluster")
    }

    pub fn api_token(&self) -> PathBuf {
        self.secrets().join("api.token")
    }

    pub fn requests(&self) -> PathBuf {
        self.node(GATEWAY).join("requests")
    }

    /// Where a gateway is asked for its listening sockets.
    pub fn handover(&self) -> PathBuf {
        self.node(GATEWAY).join(HANDOVER)
    }

    pub fn node(&self, node: &str) -> PathBuf {
        self.root.join(node)
    }

    pub fn service(&self, node: &str, service: &str) -> PathBuf {
        self.node(node).join(service)
    }

    pub fn pgdata(&self, node: &str, service: &str) -> PathBuf {
        self.service(node, service).join("pgdata")
    }

    pub fn run(&self, node: &str, service: &str) -> PathBuf {
        self.service(node, service).join("run")
    }

    /// The socket PostgreSQL makes in [`Layout::run`].
    pub fn socket(&self, node: &str, service: &str, port: u16) -> PathBuf {
        self.run(node, service).join(format!(".s.PGSQL.{port}"))
    }

    /// As short as [`Layout::run`]: a socket is made in it.
    pub fn sandbox(&self, node: &str, service: &str) -> PathBuf {
        self.service(node, service).join("box")
    }

    /// As short as [`Layout::run`] too.
    pub fn recovering(&self, node: &str, service: &str) -> PathBuf {
        self.service(node, service).join("rec")
    }

    pub fn diverged(&self, node: &str, service: &str) -> PathBuf {
        self.service(node, service).join("diverged")
    }
}
