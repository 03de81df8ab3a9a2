//! What every store must do.

use std::time::{Duration, Instant};

use everhold_core::kv::{Change, Changes, Expect, Invalid, Kv, LEASE_TTL_MIN, Txn, TxnOutcome};
use everhold_store::{DEADLINE, Store, StoreError, Watch, WatchEvent};
use tokio::time::{sleep, timeout};

use crate::bed::Bed;

/// How much longer than its deadline a call may take on a busy machine.
const SLACK: Duration = Duration::from_secs(1);
/// Time enough on a busy machine, and too short for who waits for a time-out that is too long.
pub const SOON: Duration = Duration::from_secs(8);

pub async fn done(store: &impl Store, txn: Txn) -> u64 {
    match store.txn(&txn).await.unwrap() {
        TxnOutcome::Done { rev } => rev,
        TxnOutcome::Refused { current } => panic!("refused: {current:?}"),
    }
}

async fn shown(store: &impl Store, prefix: &str) -> String {
    show(&store.get_prefix(prefix).await.unwrap().kvs)
}

fn show(kvs: &[Kv]) -> String {
    kvs.iter().map(|kv| format!("{}={} ", kv.key, kv.value)).collect::<String>().trim().to_owned()
}

/// The next event that is news.
pub async fn next(watch: &mut Watch) -> WatchEvent {
    let news = async {
        loop {
            match watch.next().await.expect("the watch has ended") {
                WatchEvent::Progress | WatchEvent::Lost(_) => {}
                event => return event,
            }
        }
    };
    timeout(Duration::from_secs(20), news).await.expect("the watch tells nothing new")
}

async fn next_changes(watch: &mut Watch) -> Changes {
    match next(watch).await {
        WatchEvent::Changed(changes) => changes,
        other => panic!("expected changes, got {other:?}"),
    }
}

pub async fn revisions_rise_and_snapshots_agree(bed: &mut impl Bed) {
    let store = bed.store();
    let mut last = store.get_prefix("").await.unwrap().rev;
    for n in 0..10 {
        let rev =
            done(store, Txn::new().put(format!("r/{n}"), "x").put("other", n.to_string())).await;
        assert!(rev > last);
        last = rev;
    }
    let snapshot = store.get_prefix("r/").await.unwrap();
    assert_eq!((snapshot.rev, snapshot.kvs.len()), (last, 10));
    assert!(snapshot.kvs.windows(2).all(|w| w[0].rev < w[1].rev && w[0].key < w[1].key));
    assert_eq!(snapshot.get("r/9").unwrap().rev, last);
    assert_eq!(store.get_prefix("").await.unwrap().kvs.len(), 11);

    assert_eq!(done(store, Txn::new().delete("absent")).await, last, "nothing was written");
    let gone = done(store, Txn::new().delete("r/0")).await;
    let snapshot = store.get_prefix("r/").await.unwrap();
    assert!(gone > last && snapshot.rev == gone && snapshot.get("r/0").is_none());
    assert_eq!(store.health().await.unwrap().rev, gone);
}

pub async fn guards_hold_or_nothing_is_written(bed: &mut impl Bed) {
    let store = bed.store();
    let value = |value: &str| Expect::Value(value.to_owned());
    let rev = done(store, Txn::new().put("g/a", "1").put("g/b", "2")).await;
    #[rustfmt::skip]
    let refused = [
        (Expect::Absent, Expect::Rev(rev), Expect::Absent),
        (Expect::Rev(rev), Expect::Rev(rev - 1), Expect::Absent),
        (Expect::Rev(rev), value("1"), Expect::Absent),
        (Expect::Rev(rev), value("2"), Expect::Rev(rev)),
        (Expect::Rev(rev), value("2"), value("")),
        (Expect::Rev(0), value("2"), Expect::Absent),
    ];
    for (a, b, c) in refused {
        let what = format!("{a:?} {b:?} {c:?}");
        // Out of order and twice the same: the answer has each key once, in order.
        let txn = Txn::new().guard("g/c", c).guard("g/b", b).guard("g/a", a);
        let txn = txn.guard("g/a", Expect::Rev(rev)).put("g/a", "x").put("g/c", "x").delete("g/b");
        let TxnOutcome::Refused { current } = store.txn(&txn).await.unwrap() else {
            panic!("done despite {what}");
        };
        assert_eq!(show(&current), "g/a=1 g/b=2", "{what}");
        assert!(current.iter().all(|kv| kv.rev == rev), "{what}");
        let now = store.get_prefix("g/").await.unwrap();
        assert_eq!((show(&now.kvs), now.rev), ("g/a=1 g/b=2".to_owned(), rev), "{what}");
    }
    let txn = Txn::new().guard("g/a", Expect::Rev(rev)).guard("g/b", value("2"));
    let txn = txn.guard("g/c", Expect::Absent).put("g/a", "3").delete("g/b").put("g/c", "4");
    let next = done(store, txn).await;
    let now = store.get_prefix("g/").await.unwrap();
    assert_eq!((show(&now.kvs), now.rev), ("g/a=3 g/c=4".to_owned(), next));
    assert!(now.kvs.iter().all(|kv| kv.rev == next), "all at one revision");
}

pub async fn impossible_transactions_are_named(bed: &mut impl Bed) {
    let store = bed.store();
    let invalid = async |txn: Txn| match store.txn(&txn).await {
        Err(StoreError::Invalid(invalid)) => invalid,
        other => panic!("{other:?}"),
    };
    let twice = Txn::new().put("a", "1").put("a", "2");
    assert_eq!(invalid(twice).await, Invalid::WrittenTwice { key: "a".to_owned() });
    assert_eq!(invalid(Txn::new().put("", "1")).await, Invalid::EmptyKey);
    let leased = Txn::new().put("a", "1").put_leased("b", "1", 4711);
    assert_eq!(invalid(leased.clone()).await, Invalid::NoLease { lease: 4711 });
    let guarded = leased.guard("a", Expect::Rev(9));
    assert_eq!(store.txn(&guarded).await.unwrap(), TxnOutcome::Refused { current: vec![] });
    assert_eq!(shown(store, "").await, "");
}

pub async fn leases_take_their_keys_along(bed: &mut impl Bed) {
    let store = bed.store();
    let short = store.lease_grant(Duration::from_millis(500)).await.unwrap();
    assert_eq!(short.ttl, LEASE_TTL_MIN);
    let kept = store.lease_grant(Duration::from_millis(2100)).await.unwrap();
    assert_eq!(kept.ttl, Duration::from_secs(3));
    let txn = Txn::new().put_leased("l/short", "", short.id).put_leased("l/short2", "", short.id);
    let rev = done(store, txn.put_leased("l/kept", "", kept.id)).await;
    let txn = Txn::new().put_leased("l/freed", "", short.id);
    done(store, txn).await;
    done(store, Txn::new().put("l/freed", "kept")).await;

    let mut watch = store.watch("l/short", rev + 1);
    let begun = Instant::now();
    let ended = loop {
        let renewed = store.lease_keep_alive(kept.id).await.unwrap();
        assert_eq!(renewed, Some(kept.ttl));
        if let Ok(event) = timeout(Duration::from_millis(500), next_changes(&mut watch)).await {
            break event;
        }
    };
    // etcd looks for leases that are over twice a second.
    let after = begun.elapsed();
    assert!(after > LEASE_TTL_MIN - SLACK && after < LEASE_TTL_MIN + SLACK * 2, "{after:?}");
    let deleted = |key: &str| Change::Deleted { key: key.to_owned() };
    let mut changes = ended.changes;
    changes.sort_by(|a, b| a.key().cmp(b.key()));
    assert_eq!(changes, vec![deleted("l/short"), deleted("l/short2")], "at one revision");
    assert_eq!(shown(store, "l/").await, "l/freed=kept l/kept=");
    assert_eq!(store.lease_keep_alive(short.id).await.unwrap(), None);

    store.lease_revoke(kept.id).await.unwrap();
    assert_eq!(shown(store, "l/").await, "l/freed=kept");
    assert_eq!(store.lease_keep_alive(kept.id).await.unwrap(), None);
    store.lease_revoke(kept.id).await.expect("one that has ended is no error");
}

/// The store is restarted while one task writes and another watches.
pub async fn watches_miss_and_repeat_nothing(bed: &mut impl Bed) {
    let store = bed.store().clone();
    let start = done(&store, Txn::new().put("w/0", "begin")).await;
    let mut watch = store.watch("w/", start + 1);
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            let mut unknown = 0;
            for n in 1..=300 {
                let (key, value) = (format!("w/{}", n % 7), n.to_string());
                let txn = Txn::new().put(key, value).put(format!("other/{}", n % 7), "x");
                let txn = if n % 10 == 0 { Txn::new().delete(format!("w/{}", n % 7)) } else { txn };
                match store.txn(&txn).await {
                    Ok(_) => {}
                    Err(StoreError::Unknown { .. }) => unknown += 1,
                    Err(other) => panic!("{other}"),
                }
                sleep(Duration::from_millis(5)).await;
            }
            unknown
        }
    });
    for _ in 0..3 {
        sleep(Duration::from_millis(300)).await;
        bed.restart().await;
    }
    let unknown = writer.await.unwrap();
    assert!(unknown <= 3, "{unknown} outcomes unknown, one for each restart at most");
    let end = done(&store, Txn::new().put("w/0", "end")).await;

    // A watch that begins afterwards meets no fault; the other must have told the same.
    let mut expected = vec![];
    let mut calm = store.watch("w/", start + 1);
    while expected.last().is_none_or(|last: &Changes| last.rev < end) {
        expected.push(next_changes(&mut calm).await);
    }
    assert!(expected.len() > 200, "{}", expected.len());
    for changes in expected {
        assert_eq!(next_changes(&mut watch).await, changes);
    }
}

pub async fn watches_from_compacted_revisions_start_anew(bed: &mut impl Bed) {
    let store = bed.store().clone();
    let first = done(&store, Txn::new().put("c/a", "1").put("c/b", "1")).await;
    let deleted = done(&store, Txn::new().delete("c/a")).await;
    bed.compact(deleted).await;

    for from_rev in [0, first, deleted] {
        let mut watch = store.watch("c/", from_rev);
        match next(&mut watch).await {
            WatchEvent::Reset(snapshot) => {
                assert!(snapshot.rev >= deleted);
                assert_eq!(show(&snapshot.kvs), "c/b=1", "from {from_rev}");
            }
            other => panic!("from {from_rev}: {other:?}"),
        }
        let rev = done(&store, Txn::new().put("c/c", from_rev.to_string())).await;
        assert_eq!(next_changes(&mut watch).await.rev, rev);
        done(&store, Txn::new().delete("c/c")).await;
    }
    // Nothing is missing from the next revision on.
    let mut watch = store.watch("c/", deleted + 1);
    assert_eq!(next_changes(&mut watch).await.rev, deleted + 1);
}

pub async fn a_stalled_server_hangs_nobody(bed: &mut impl Bed) {
    stall(bed, Duration::from_secs(5)).await;
}

pub async fn stall(bed: &mut impl Bed, length: Duration) {
    let (store, hasty) = (bed.store().clone(), bed.hasty().await);
    let rev = done(&store, Txn::new().put("s/a", "1")).await;
    let lease = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let mut watch = hasty.watch("s/", rev + 1);
    // The stream stands before the server freezes.
    done(&store, Txn::new().put("s/b", "1")).await;
    next_changes(&mut watch).await;

    bed.freeze();
    let frozen = Instant::now();
    let write = Txn::new().guard("s/a", Expect::Rev(rev)).put("s/a", "2");
    let in_time =
        async |what: &str, call: &mut (dyn Future<Output = StoreError> + Send + Unpin)| {
            let begun = Instant::now();
            let error =
                timeout(DEADLINE + SLACK, call).await.unwrap_or_else(|_| panic!("{what} hangs"));
            assert!(begun.elapsed() + SLACK > DEADLINE, "{what} gave up early");
            error
        };
    let unknown =
        in_time("txn", &mut Box::pin(async { hasty.txn(&write).await.unwrap_err() })).await;
    assert!(matches!(unknown, StoreError::Unknown { .. }), "{unknown:?}");
    let read =
        in_time("read", &mut Box::pin(async { hasty.get_prefix("s/").await.unwrap_err() })).await;
    assert!(matches!(read, StoreError::Unavailable { .. }), "{read:?}");
    let lost = timeout(DEADLINE * 2, async {
        loop {
            if let Some(WatchEvent::Lost(error)) = watch.next().await {
                break error;
            }
        }
    });
    lost.await.expect("the watch says that it is lost");
    while frozen.elapsed() < length {
        // Callers don't stop calling.
        assert!(hasty.lease_keep_alive(lease.id).await.is_err());
    }

    bed.thaw();
    let thawed = Instant::now();
    let snapshot = store.get_prefix("s/").await.unwrap();
    let after = thawed.elapsed();
    assert!(after < SOON, "the first answer took {after:?}");
    // Whether it was done or not, a write on the revision just read settles it.
    let again = snapshot.get("s/a").unwrap();
    let txn = Txn::new().guard("s/a", Expect::Rev(again.rev)).put("s/a", "3");
    if let TxnOutcome::Refused { current } = store.txn(&txn).await.unwrap() {
        assert_eq!(show(&current), "s/a=2", "only the unknown write can have come between");
        done(&store, Txn::new().guard("s/a", Expect::Rev(current[0].rev)).put("s/a", "3")).await;
    }
    assert_eq!(store.lease_keep_alive(lease.id).await.unwrap(), Some(lease.ttl));
    loop {
        let changes = next_changes(&mut watch).await;
        if matches!(&changes.changes[..], [Change::Put(kv)] if kv.value == "3") {
            break;
        }
    }
    let after = thawed.elapsed();
    assert!(after < SOON, "the watch took {after:?}");
}

pub async fn increments_by_eight_lose_nothing(bed: &mut impl Bed) {
    const EACH: u64 = 25;
    let store = bed.store().clone();
    done(&store, Txn::new().put("n", "0")).await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut kv = store.get_prefix("n").await.unwrap().kvs.remove(0);
                let mut done = 0;
                while done < EACH {
                    let value = kv.value.parse::<u64>().unwrap() + 1;
                    let txn =
                        Txn::new().guard("n", Expect::Rev(kv.rev)).put("n", value.to_string());
                    kv = match store.txn(&txn).await.unwrap() {
                        TxnOutcome::Done { rev } => {
                            done += 1;
                            Kv { key: kv.key, value: value.to_string(), rev }
                        }
                        TxnOutcome::Refused { mut current } => current.remove(0),
                    };
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(shown(&store, "n").await, format!("n={}", 8 * EACH));
}
