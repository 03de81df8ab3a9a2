//! What only a server on the other side of a network can do.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use everhold_core::kv::Txn;
use everhold_store::{Etcd, EtcdConfig, Store, StoreError, WatchEvent};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::bed::{Bed, EtcdBed, free_addr};
use crate::suite::{SOON, done, next, stall};

/// Longer than the pings' patience, so that the connection breaks meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_stall_is_no_different() {
    stall(&mut EtcdBed::new().await, Duration::from_secs(16)).await;
}

#[tokio::test]
async fn an_absent_server_leaves_no_doubt() {
    let mut bed = EtcdBed::new().await;
    let (store, patient) = (bed.hasty().await, bed.store().clone());
    done(&patient, Txn::new().put("a", "1")).await;
    bed.kill().await;
    // The first call may find the connection that has just died.
    let _ = store.txn(&Txn::new().put("a", "2")).await;
    let begun = Instant::now();
    let error = store.txn(&Txn::new().put("a", "3")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "it was never sent: {error:?}");
    assert!(begun.elapsed() < SOON);

    // A call made while it is away is done when it is back in time.
    let waiting = tokio::spawn({
        let patient = patient.clone();
        async move { patient.txn(&Txn::new().put("a", "4")).await }
    });
    sleep(Duration::from_millis(300)).await;
    bed.start().await;
    waiting.await.unwrap().unwrap();
    assert_eq!(patient.get_prefix("a").await.unwrap().kvs[0].value, "4");
}

#[tokio::test]
async fn another_endpoint_takes_over() {
    let bed = EtcdBed::new().await;
    let alive = format!("https://{}", bed.member.client_addr);
    let absent = free_addr().to_string();
    let store = bed.client_within(SOON, vec![absent, alive]).await;
    done(&store, Txn::new().put("a", "1")).await;
}

/// As a machine leaves it that is gone: no answer, no end.
#[tokio::test]
async fn a_silent_endpoint_is_left_after_one_call() {
    let bed = EtcdBed::new().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = [silent.local_addr().unwrap(), bed.member.client_addr];
    let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    let store = bed.client_within(SOON, endpoints.clone()).await;
    store.get_prefix("").await.expect("a read leaves time for the second");
    let store = bed.client_within(SOON, endpoints).await;
    let error = store.txn(&Txn::new().put("a", "1")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unknown { .. }), "{error:?}");
    done(&store, Txn::new().put("a", "1")).await;
}

#[tokio::test]
async fn a_silent_connection_is_left_after_one_call() {
    let bed = EtcdBed::new().await;
    let (proxy, silence) = silenceable_proxy(bed.member.client_addr).await;
    let store = bed.client_within(SOON, vec![proxy.to_string()]).await;
    let rev = done(&store, Txn::new().put("a", "1")).await;
    let mut watch = store.watch("a", rev + 1);
    let rev = done(&store, Txn::new().put("a", "2")).await;
    assert!(matches!(next(&mut watch).await, WatchEvent::Changed(changes) if changes.rev == rev));

    silence.send_modify(|connections| *connections += 1);
    let cut = Instant::now();
    assert!(store.get_prefix("a").await.is_err());
    let rev = done(&store, Txn::new().put("a", "3")).await;
    assert!(matches!(next(&mut watch).await, WatchEvent::Changed(changes) if changes.rev == rev));
    assert!(cut.elapsed() < SOON * 3, "{:?}", cut.elapsed());
}

/// Forwards connections until it is told to be silent on those that are open.
async fn silenceable_proxy(server: SocketAddr) -> (SocketAddr, watch::Sender<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let silence = watch::Sender::new(0);
    let silenced = silence.subscribe();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut silenced = silenced.clone();
            silenced.mark_unchanged();
            tokio::spawn(async move {
                let mut upstream = TcpStream::connect(server).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut upstream) => {}
                    _ = silenced.changed() => std::future::pending::<()>().await,
                }
            });
        }
    });
    (addr, silence)
}

#[tokio::test]
async fn a_stranger_is_kept_out() {
    let (bed, other) = (EtcdBed::new().await, EtcdBed::new().await);
    let endpoints = vec![bed.member.client_addr.to_string()];
    let deadline = Duration::from_millis(300);
    let mut tls = bed.tls();
    tls.cert = other.tls().cert;
    tls.key = other.tls().key;
    let forged = Etcd::new(EtcdConfig { endpoints: endpoints.clone(), tls: Some(tls), deadline });
    assert!(forged.await.unwrap().get_prefix("").await.is_err(), "a foreign client got in");
    let misled = Etcd::new(EtcdConfig { endpoints, tls: Some(other.tls()), deadline });
    assert!(misled.await.unwrap().get_prefix("").await.is_err(), "a foreign server was believed");
    bed.store().get_prefix("").await.unwrap();
}

#[tokio::test]
async fn a_store_that_went_back_is_not_followed() {
    let mut bed = EtcdBed::new().await;
    let store = bed.store().clone();
    let mut rev = 0;
    for n in 0..5 {
        rev = done(&store, Txn::new().put("a", n.to_string())).await;
    }
    let mut watch = store.watch("a", rev);
    assert!(matches!(next(&mut watch).await, WatchEvent::Changed(_)));
    bed.kill().await;
    std::fs::remove_dir_all(bed.data()).unwrap();
    bed.start().await;
    match next(&mut watch).await {
        WatchEvent::Ended(StoreError::WentBack { seen, now, .. }) => {
            assert_eq!((seen, now), (rev, 1));
        }
        other => panic!("{other:?}"),
    }
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_quiet_watch_shows_that_it_lives() {
    let bed = EtcdBed::new().await;
    let mut watch = bed.store().watch("a", 0);
    assert!(matches!(watch.next().await, Some(WatchEvent::Reset(_))));
    for _ in 0..2 {
        let event = timeout(Duration::from_secs(3), watch.next()).await.expect("silence");
        assert!(matches!(event, Some(WatchEvent::Progress)), "{event:?}");
    }
}
