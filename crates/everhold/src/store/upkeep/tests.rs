//! One real server: what is free is given back, and a full one writes again.

use super::*;
use crate::cluster::Cluster;
use crate::layout::Layout;
use crate::machine::coordinator::{self, Servers};
use crate::node_file::{NodeFile, StoreTls};
use everhold_adapters::etcd::{Beginning, Etcd as Server, EtcdConfig};
use everhold_adapters::pki::{Authority, CertPair, Host, Usage};
use everhold_core::spec::Spec;
use everhold_store::TlsFiles;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Instant;

/// One real server, and a client of it.
struct Bed {
    server: Server,
    store: Etcd,
    config: EtcdConfig,
    dir: tempfile::TempDir,
}

impl Bed {
    async fn new(quota_bytes: u64) -> Bed {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let free = || {
            let socket = TcpListener::bind(SocketAddr::new(local, 0)).expect("a port");
            socket.local_addr().expect("an address")
        };
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::create(&dir.path().join("pki")).expect("an authority");
        let certs = authority.issue("e", &[Host::Ip(local)], Usage::Both).expect("a certificate");
        let config = EtcdConfig {
            name: "e".to_string(),
            data_dir: dir.path().join("etcd"),
            client_addr: free(),
            peer_addr: free(),
            beginning: Beginning::Alone,
            quota_bytes,
            certs: certs.clone(),
            binary: None,
        };
        let server = Server::start(&config).await.expect("etcd starts");
        let store = Etcd::new(everhold_store::EtcdConfig {
            endpoints: vec![format!("https://{}", config.client_addr)],
            tls: Some(TlsFiles { ca: certs.ca, cert: certs.cert, key: certs.key }),
            deadline: Duration::from_secs(30),
        });
        Bed { server, store: store.await.expect("a client"), config, dir }
    }

    /// A cluster with this store and no nodes.
    async fn cluster(&self) -> Arc<Cluster> {
        let CertPair { ca, cert, key } = self.config.certs.clone();
        let own = NodeFile {
            name: "api".to_string(),
            cluster: "shop".to_string(),
            data: self.dir.path().to_path_buf(),
            store: vec![self.config.client_addr.to_string()],
            ca,
            cert,
            key,
            store_tls: StoreTls::Own,
        };
        let layout = Layout::new(self.dir.path()).expect("a layout");
        let spec = Spec { nodes: [].into(), ..Spec::default_for_one_machine() };
        let cluster = Cluster::connect(&own, None, &layout, spec, self.store.clone()).await;
        cluster.expect("a cluster")
    }

    async fn coordinated(&self) -> bool {
        let key = coordinator::key("shop");
        self.store.get_prefix(&key).await.expect("read").get(&key).is_some()
    }

    /// Writes so many megabytes over and over under one key, until a write is refused.
    async fn fill(&self, megabytes: usize) -> bool {
        let value = "x".repeat(1 << 20);
        for n in 0..megabytes {
            let txn = Txn::new().put("/everhold/shop/junk", format!("{n}{value}"));
            if let Err(error) = self.store.txn(&txn).await {
                assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
                return false;
            }
        }
        true
    }
}

#[tokio::test]
async fn a_full_store_is_compacted_defragmented_and_disarmed() {
    let bed = Bed::new(24 << 20).await;
    assert!(!bed.fill(100).await, "the quota holds");
    let troubles = Troubles::default();
    let watching = tokio::spawn(watch(bed.store.clone(), troubles.clone()));
    while troubles.holds().is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(troubles.holds()[0]["rule"], "store-full");
    let full = tend("shop", &bed.store, bed.config.quota_bytes).await.expect("tended");
    assert!(!full, "it has room again");
    assert!(bed.fill(3).await, "writes go on");
    let until = Instant::now() + Duration::from_secs(60);
    while !troubles.holds().is_empty() {
        assert!(Instant::now() < until, "{:?}", troubles.holds());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    watching.abort();
    bed.server.stop(Duration::from_secs(5)).await.expect("stopped");
}

async fn until(what: &str, is: impl AsyncFn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is().await {
        assert!(Instant::now() < until, "no {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Whoever coordinates makes room. A full store lets nobody begin to coordinate, and has room again
/// all the same.
#[tokio::test]
async fn a_full_store_is_freed_with_a_coordinator_and_without() {
    let bed = Bed::new(24 << 20).await;
    let cluster = bed.cluster().await;
    let coordinate = || {
        let (cluster, store) = (cluster.clone(), bed.store.clone());
        tokio::spawn(coordinator::run(cluster, "up".to_string(), store, Some(Servers::Alone)))
    };
    let coordinates = coordinate();
    until("coordinator", async || bed.coordinated().await).await;
    assert!(!bed.fill(100).await, "the quota holds");
    until("room by the coordinator", async || bed.fill(1).await).await;
    coordinates.abort();
    until("end of the lease", async || !bed.coordinated().await).await;
    assert!(!bed.fill(100).await, "the quota holds");
    let coordinates = coordinate();
    until("room by nobody else", async || bed.fill(1).await).await;
    until("coordinator", async || bed.coordinated().await).await;
    coordinates.abort();
    bed.server.stop(Duration::from_secs(5)).await.expect("stopped");
}

/// Prints how long a server of 100 MB is held: what others wait for its answers meanwhile.
#[tokio::test]
async fn free_space_is_given_back_once_and_says_what_it_costs() {
    let bed = Bed::new(1 << 30).await;
    assert!(bed.fill(130).await);
    let rev = bed.store.get_prefix("/everhold/").await.expect("read").rev;
    tend("shop", &bed.store, bed.config.quota_bytes).await.expect("tended");
    let before = bed.store.server().await.expect("its state");
    assert!(before.db_bytes > 100 << 20, "{before:?}");
    // The file's size proves nothing here: the last writes reach it a moment later.
    let round = bed.store.get_prefix("/everhold/shop/defragmented").await.expect("read");
    assert!(round.kvs.is_empty(), "no round begins: all of it is in use");
    bed.store.compact(rev).await.expect("compacted");
    let reader = bed.store.only(&bed.store.nearest(), DEFRAGMENT).await.expect("a client");
    let reads = tokio::spawn(async move {
        let mut worst = Duration::ZERO;
        for _ in 0..400 {
            let from = Instant::now();
            reader.get_prefix("/everhold/shop/none").await.expect("read");
            worst = worst.max(from.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        worst
    });
    // What is free shows after the next writes.
    let until = Instant::now() + Duration::from_secs(30);
    while bed.store.server().await.expect("its state").used_bytes > 64 << 20 {
        assert!(Instant::now() < until, "compacted");
        bed.store.txn(&Txn::new().put("/everhold/shop/small", "x")).await.expect("written");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let from = Instant::now();
    tend("shop", &bed.store, bed.config.quota_bytes).await.expect("tended");
    let took = from.elapsed();
    let after = bed.store.server().await.expect("its state");
    assert!(after.db_bytes < 20 << 20, "{after:?}");
    let worst = reads.await.expect("reads");
    println!("{} MB: round {took:?}, longest read {worst:?}", before.db_bytes >> 20);
    // One round an hour, whoever coordinates.
    assert!(!begins("shop", &bed.store).await.expect("asked"));
    // A copy taken now is whole, and the next three stay.
    let layout = Layout::new(bed.dir.path()).expect("a layout");
    for _ in 0..4 {
        crate::store::copies::take(&bed.store, &layout.store_copies()).await.expect("copied");
    }
    let all = crate::store::copies::all(&layout.store_copies());
    assert_eq!(all.len(), 3);
    assert!(all[2].ends_with("00000004.db"), "{all:?}");
    all.iter().for_each(|path| crate::store::copies::check(path).expect("whole"));
    bed.server.stop(Duration::from_secs(5)).await.expect("stopped");
}
