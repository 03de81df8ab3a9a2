//! A store under test and the faults that can be done to it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use everhold_adapters::etcd as process;
use everhold_adapters::pki::{Authority, Host, Usage};
use everhold_store::{DEADLINE, Etcd, EtcdConfig, MemoryStore, Store, TlsFiles};
use rustix::process::{Pid, Signal, kill_process};

/// A server's first fsyncs may wait for all that was written to its disk before: what isn't about
/// deadlines waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

pub trait Bed {
    type Store: Store;
    fn store(&self) -> &Self::Store;
    /// One that gives up after [`DEADLINE`].
    async fn hasty(&self) -> Self::Store;
    fn freeze(&self);
    fn thaw(&self);
    /// Kills the server and starts it again on the same data and port.
    async fn restart(&mut self);
    async fn compact(&self, rev: u64);
}

pub struct MemoryBed(MemoryStore);

impl MemoryBed {
    pub fn new() -> Self {
        MemoryBed(MemoryStore::new())
    }
}

impl Bed for MemoryBed {
    type Store = MemoryStore;

    fn store(&self) -> &MemoryStore {
        &self.0
    }

    async fn hasty(&self) -> MemoryStore {
        self.0.clone()
    }

    fn freeze(&self) {
        self.0.stall(true);
    }

    fn thaw(&self) {
        self.0.stall(false);
    }

    async fn restart(&mut self) {
        self.0.restart_leases();
    }

    async fn compact(&self, rev: u64) {
        self.0.compact(rev);
    }
}

pub struct EtcdBed {
    pub member: process::EtcdConfig,
    store: Option<Etcd>,
    running: Option<process::Etcd>,
    authority: Authority,
    _dir: tempfile::TempDir,
}

impl EtcdBed {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("pki")).unwrap();
        let loopback = [Host::Ip(Ipv4Addr::LOCALHOST.into())];
        let member = process::EtcdConfig {
            name: "e".to_owned(),
            data_dir: dir.path().join("etcd"),
            client_addr: free_addr(),
            peer_addr: free_addr(),
            beginning: process::Beginning::Alone,
            quota_bytes: process::QUOTA_BYTES,
            certs: authority.issue("e", &loopback, Usage::Both).unwrap(),
            binary: None,
        };
        let mut bed = EtcdBed { member, store: None, running: None, authority, _dir: dir };
        bed.start().await;
        let endpoints = vec![bed.member.client_addr.to_string()];
        bed.store = Some(bed.client_within(PATIENCE, endpoints).await);
        bed
    }

    pub async fn client_within(&self, deadline: Duration, endpoints: Vec<String>) -> Etcd {
        Etcd::new(EtcdConfig { endpoints, tls: Some(self.tls()), deadline }).await.unwrap()
    }

    pub fn tls(&self) -> TlsFiles {
        let certs = self.authority.issue("client", &[], Usage::Client).unwrap();
        TlsFiles { ca: certs.ca, cert: certs.cert, key: certs.key }
    }

    pub async fn start(&mut self) {
        self.running = Some(process::Etcd::start(&self.member).await.unwrap());
    }

    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.running.as_mut().unwrap().wait_exit().await.unwrap();
        self.running = None;
    }

    pub fn data(&self) -> PathBuf {
        self.member.data_dir.join("data")
    }

    fn signal(&self, signal: Signal) {
        let pid = self.running.as_ref().and_then(|etcd| Pid::from_raw(etcd.pid()));
        kill_process(pid.unwrap(), signal).unwrap();
    }
}

impl Bed for EtcdBed {
    type Store = Etcd;

    fn store(&self) -> &Etcd {
        self.store.as_ref().unwrap()
    }

    async fn hasty(&self) -> Etcd {
        self.client_within(DEADLINE, vec![self.member.client_addr.to_string()]).await
    }

    fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    async fn restart(&mut self) {
        self.kill().await;
        self.start().await;
    }

    async fn compact(&self, rev: u64) {
        self.store().compact(rev).await.unwrap();
    }
}

impl Drop for EtcdBed {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.signal(Signal::KILL);
        }
    }
}

pub fn free_addr() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}
