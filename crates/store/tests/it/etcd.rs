//! What only a server on the other side of a network can do.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use everhold_core::kv::{Change, Changes, Txn};
use everhold_store::{Etcd, EtcdConfig, Store, StoreError, Watch, WatchEvent};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
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

/// Two looks, on a busy machine.
const HOME_WITHIN: Duration = Duration::from_secs(15);

/// Every change arrives once and in order, and nobody is told that anything was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_endpoint_that_is_back_is_called_again() {
    let bed = EtcdBed::new().await;
    let (home, live) = (free_addr(), bed.member.client_addr);
    let endpoints = vec![home.to_string(), live.to_string()];
    let store = bed.client_within(SOON, endpoints).await;
    let start = done(&store, Txn::new().put("h", "begin")).await;
    assert_eq!(store.nearest(), live.to_string());
    let mut watch = store.watch("h", start + 1);

    let forwarder = Forwarder::start(home, live).await;
    let write = async {
        let (begun, mut more) = (Instant::now(), 50);
        while more > 0 {
            assert!(begun.elapsed() < HOME_WITHIN, "it stays away");
            more -= u32::from(store.nearest() == home.to_string());
            done(&store, Txn::new().put("h", "x")).await;
            sleep(Duration::from_millis(5)).await;
        }
        done(&store, Txn::new().put("h", "end")).await
    };
    let (end, told) = tokio::join!(write, undisturbed(&mut watch, "end"));
    let told_by_a_calm_one = undisturbed(&mut bed.store().watch("h", start + 1), "end").await;
    assert_eq!(told, told_by_a_calm_one);
    assert!(told.len() > 50 && told.last().is_some_and(|last| last.rev == end));

    // The watch is there too, and both move on when it goes again.
    drop(forwarder);
    let lost = async { while !matches!(watch.next().await, Some(WatchEvent::Lost(_))) {} };
    timeout(SOON, lost).await.expect("the watch came along");
    let _ = store.txn(&Txn::new().put("h", "in doubt")).await;
    done(&store, Txn::new().put("h", "last")).await;
    assert_eq!(store.nearest(), live.to_string());
    while !matches!(next(&mut watch).await, WatchEvent::Changed(it) if is(&it, "last")) {}
}

#[tokio::test]
async fn an_endpoint_that_has_become_the_first_is_called() {
    let bed = EtcdBed::new().await;
    let (old, new) = (bed.member.client_addr, free_addr());
    let store = bed.client_within(SOON, vec![old.to_string()]).await;
    store.get_prefix("").await.unwrap();
    store.set_endpoints(vec![new.to_string(), old.to_string()]);
    let absent = timeout(Duration::from_secs(7), comes_to(&store, new)).await;
    assert!(absent.is_err(), "it was called before it answered");
    let _forwarder = Forwarder::start(new, old).await;
    timeout(HOME_WITHIN, comes_to(&store, new)).await.expect("it is called");
}

/// A call that fails away from home may lead the next ones there, and a watch is none of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_comes_home_though_calls_did_before() {
    let bed = EtcdBed::new().await;
    let (home, away, live) = (free_addr(), free_addr(), bed.member.client_addr);
    let forwarder = Forwarder::start(away, live).await;
    let store = bed.client_within(SOON, vec![home.to_string(), away.to_string()]).await;
    let rev = done(&store, Txn::new().put("h", "1")).await;
    let mut watch = store.watch("h", rev + 1);
    done(&store, Txn::new().put("h", "2")).await;
    assert_eq!(undisturbed(&mut watch, "2").await.len(), 1);

    // The read gives up after half of its time, the watch would after more than all of that.
    bed.freeze();
    let _home = Forwarder::start(home, live).await;
    let read = tokio::spawn({
        let store = store.clone();
        async move { store.get_prefix("h").await }
    });
    timeout(SOON, comes_to(&store, home)).await.expect("the read asks the other");
    bed.thaw();
    read.await.unwrap().unwrap();

    sleep(HOME_WITHIN).await;
    drop(forwarder);
    sleep(Duration::from_millis(500)).await;
    done(&store, Txn::new().put("h", "3")).await;
    assert_eq!(undisturbed(&mut watch, "3").await.len(), 1);
}

async fn comes_to(store: &Etcd, endpoint: SocketAddr) {
    while store.nearest() != endpoint.to_string() {
        sleep(Duration::from_millis(50)).await;
    }
}

/// All changes up to the one to `value`, of a watch that loses and misses nothing.
async fn undisturbed(watch: &mut Watch, value: &str) -> Vec<Changes> {
    let mut told = vec![];
    let tell = async {
        while !told.last().is_some_and(|last| is(last, value)) {
            match watch.next().await {
                Some(WatchEvent::Changed(changes)) => told.push(changes),
                Some(WatchEvent::Progress) => {}
                other => panic!("{other:?} after {:?}", told.last()),
            }
        }
    };
    timeout(HOME_WITHIN * 2, tell).await.expect("the watch tells all");
    told
}

fn is(changes: &Changes, value: &str) -> bool {
    matches!(&changes.changes[..], [Change::Put(kv)] if kv.value == value)
}

/// Carries connections to a server; dropping it ends them all.
struct Forwarder(JoinHandle<()>);

impl Forwarder {
    async fn start(at: SocketAddr, server: SocketAddr) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        Forwarder(tokio::spawn(async move {
            let mut carried = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                carried.spawn(async move {
                    let mut upstream = TcpStream::connect(server).await.unwrap();
                    copy_bidirectional(&mut client, &mut upstream).await
                });
            }
        }))
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.0.abort();
    }
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
