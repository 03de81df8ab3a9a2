//! Measures an etcd member of its own over mutual TLS: one caller, one call after the other.
//!
//! `cargo run --release -p everhold-store --example bench_store [CALLS]`

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use everhold_adapters::etcd as process;
use everhold_adapters::pki::{Authority, Host, Usage};
use everhold_core::kv::{Expect, Txn, TxnOutcome};
use everhold_store::{DEADLINE, Etcd, EtcdConfig, Store, TlsFiles, WatchEvent};

const CALLS: u32 = 2000;
/// The size of a term record.
const VALUE_BYTES: usize = 500;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let calls = std::env::args().nth(1).map_or(Ok(CALLS), |calls| calls.parse())?;
    let dir = tempfile::tempdir()?;
    let authority = Authority::create(&dir.path().join("pki"))?;
    let loopback = [Host::Ip(Ipv4Addr::LOCALHOST.into())];
    let certs = authority.issue("bench", &loopback, Usage::Both)?;
    let tls = TlsFiles { ca: certs.ca.clone(), cert: certs.cert.clone(), key: certs.key.clone() };
    let member = process::EtcdConfig {
        name: "bench".to_owned(),
        data_dir: dir.path().join("etcd"),
        client_addr: free_addr()?,
        peer_addr: free_addr()?,
        beginning: process::Beginning::Alone,
        quota_bytes: process::QUOTA_BYTES,
        certs,
        binary: None,
    };
    let begun = Instant::now();
    let server = process::Etcd::start(&member).await?;
    let endpoints = vec![member.client_addr.to_string()];
    let store = Etcd::new(EtcdConfig { endpoints, tls: Some(tls), deadline: DEADLINE }).await?;
    store.health().await?;
    println!("{:<44}{:>8.2} ms", "start to first answer", ms(begun.elapsed()));

    let measured = measure(&store, calls).await;
    server.stop(Duration::from_secs(5)).await?;
    measured
}

async fn measure(store: &Etcd, calls: u32) -> Result<(), Box<dyn Error>> {
    let value = "x".repeat(VALUE_BYTES);
    let mut puts = vec![];
    for _ in 0..calls {
        let begun = Instant::now();
        store.txn(&Txn::new().put("put", &value)).await?;
        puts.push(begun.elapsed());
    }
    show("put", puts);

    let mut swaps = vec![];
    let mut rev = 0;
    for _ in 0..calls {
        let txn = Txn::new().guard("swap", Expect::Rev(rev)).guard("absent", Expect::Absent);
        let begun = Instant::now();
        match store.txn(&txn.put("swap", &value)).await? {
            TxnOutcome::Done { rev: now } => rev = now,
            TxnOutcome::Refused { current } => return Err(format!("refused: {current:?}").into()),
        }
        swaps.push(begun.elapsed());
    }
    show("compare-and-swap over two keys", swaps);

    let mut reads = vec![];
    for _ in 0..calls {
        let begun = Instant::now();
        store.get_prefix("swap").await?;
        reads.push(begun.elapsed());
    }
    show("linearizable read", reads);

    let mut watch = store.watch("watched", 0);
    watch.next().await;
    let mut deliveries = vec![];
    for _ in 0..calls {
        let begun = Instant::now();
        let put = async { store.txn(&Txn::new().put("watched", &value)).await.map(drop) };
        let told = async {
            while let Some(event) = watch.next().await {
                if let WatchEvent::Changed(_) = event {
                    return Some(begun.elapsed());
                }
            }
            None
        };
        let (put, told) = tokio::join!(put, told);
        put?;
        deliveries.push(told.ok_or("the watch ended")?);
    }
    show("watch delivery, from the call of the put", deliveries);

    let lease = store.lease_grant(Duration::from_secs(10)).await?;
    let mut renewals = vec![];
    for _ in 0..calls {
        let begun = Instant::now();
        store.lease_keep_alive(lease.id).await?;
        renewals.push(begun.elapsed());
    }
    show("lease renewal", renewals);
    Ok(())
}

fn show(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().map_or(0.0, ms);
    let calls = took.len();
    println!("{what:<44}{:>8.2} ms median {:>8.2} ms p99   ({calls} calls)", at(50), at(99));
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn free_addr() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
