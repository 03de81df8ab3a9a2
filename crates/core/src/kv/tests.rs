//! The rules of the in-memory store. What etcd and it must agree on is in the store crate's suite.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use super::{Change, Changes, Expect, Invalid, Memory, Txn, TxnOutcome};

const S: Duration = Duration::from_secs(1);

fn done(memory: &mut Memory, txn: Txn) -> u64 {
    match memory.apply(&txn) {
        Ok(TxnOutcome::Done { rev }) => rev,
        other => panic!("expected done, got {other:?}"),
    }
}

fn keys(memory: &Memory, prefix: &str) -> String {
    let kvs = memory.range(prefix).kvs;
    let shown: Vec<String> =
        kvs.iter().map(|kv| format!("{}={}@{}", kv.key, kv.value, kv.rev)).collect();
    shown.join(" ")
}

#[test]
fn guards() {
    #[rustfmt::skip]
    let cases = [
        (Expect::Absent, Expect::Absent, "refused a=1@2"),
        (Expect::Rev(2), Expect::Absent, "done 3"),
        (Expect::Rev(1), Expect::Absent, "refused a=1@2"),
        (Expect::Rev(2), Expect::Rev(0), "done 3"),
        (Expect::Rev(2), Expect::Rev(2), "refused a=1@2"),
        (Expect::Value("1".into()), Expect::Absent, "done 3"),
        (Expect::Value("2".into()), Expect::Absent, "refused a=1@2"),
        (Expect::Rev(2), Expect::Value("".into()), "refused a=1@2"),
    ];
    for (on_a, on_b, expected) in cases {
        let mut memory = Memory::new();
        done(&mut memory, Txn::new().put("a", "1"));
        let what = format!("{on_a:?} {on_b:?}");
        let txn = Txn::new().guard("a", on_a).guard("b", on_b).put("b", "x").delete("a");
        let said = match memory.apply(&txn).unwrap() {
            TxnOutcome::Done { rev } => format!("done {rev}"),
            TxnOutcome::Refused { current } => {
                assert_eq!(keys(&memory, ""), "a=1@2", "a refused transaction wrote: {what}");
                let kvs = current.iter().map(|kv| format!(" {}={}@{}", kv.key, kv.value, kv.rev));
                format!("refused{}", kvs.collect::<String>())
            }
        };
        assert_eq!(said, expected, "{what}");
    }
}

#[test]
fn nothing_changed_is_no_revision() {
    let mut memory = Memory::new();
    assert_eq!(done(&mut memory, Txn::new().delete("absent")), 1);
    assert_eq!(done(&mut memory, Txn::new().guard("absent", Expect::Absent)), 1);
    assert_eq!(memory.changes_since("", 1), Ok(vec![]));
}

#[test]
fn impossible_transactions() {
    let mut memory = Memory::new();
    let twice = Txn::new().put("a", "1").delete("a");
    assert_eq!(memory.apply(&twice), Err(Invalid::WrittenTwice { key: "a".into() }));
    assert_eq!(memory.apply(&Txn::new().put("", "1")), Err(Invalid::EmptyKey));
    let leased = Txn::new().put_leased("a", "1", 7);
    assert_eq!(memory.apply(&leased), Err(Invalid::NoLease { lease: 7 }));
    let refused = leased.guard("a", Expect::Rev(9));
    assert_eq!(memory.apply(&refused), Ok(TxnOutcome::Refused { current: vec![] }));
    assert_eq!(memory.rev(), 1);
}

#[test]
fn range_is_by_prefix() {
    let mut memory = Memory::new();
    done(&mut memory, Txn::new().put("a/1", "x").put("a/2", "y").put("a0", "z").put("b", "w"));
    assert_eq!(keys(&memory, "a/"), "a/1=x@2 a/2=y@2");
    assert_eq!(keys(&memory, ""), "a/1=x@2 a/2=y@2 a0=z@2 b=w@2");
    assert_eq!(keys(&memory, "c"), "");
}

#[test]
fn history_and_compaction() {
    let mut memory = Memory::new();
    done(&mut memory, Txn::new().put("a/1", "x").put("b", "y"));
    done(&mut memory, Txn::new().put("b", "z"));
    done(&mut memory, Txn::new().delete("a/1"));
    let gone = Changes { rev: 4, changes: vec![Change::Deleted { key: "a/1".into() }] };
    assert_eq!(memory.changes_since("a/", 3), Ok(vec![gone.clone()]));
    assert_eq!(memory.changes_since("a/", 1).map(|c| c.len()), Ok(2));
    memory.compact(3);
    assert_eq!(memory.changes_since("a/", 3).map_err(|c| c.rev), Err(3));
    assert_eq!(memory.changes_since("a/", 4), Ok(vec![gone]));
    assert_eq!(memory.changes_since("a/", 5), Ok(vec![]));
    memory.compact(99);
    assert_eq!(memory.changes_since("a/", 4).map_err(|c| c.rev), Err(4));
    assert_eq!(keys(&memory, ""), "b=z@3");
}

#[test]
fn history_is_bounded() {
    let mut memory = Memory::new();
    for n in 0..10_001 {
        done(&mut memory, Txn::new().put("a", n.to_string()));
    }
    assert_eq!(memory.changes_since("a", 2).map_err(|c| c.rev), Err(2));
    assert_eq!(memory.changes_since("a", 3).map(|c| c.len()), Ok(10_000));
}

#[test]
fn leases() {
    let mut memory = Memory::new();
    let short = memory.grant(S / 2, S * 10);
    let long = memory.grant(S * 2 + S / 4, S * 10);
    assert_eq!((short.ttl, long.ttl), (S * 2, S * 3));
    let (a, b) = (short.id, long.id);
    let txn = Txn::new().put_leased("a", "1", a).put_leased("b", "1", b).put_leased("c", "1", a);
    done(&mut memory, txn);
    done(&mut memory, Txn::new().put("c", "2"));

    assert_eq!(memory.next_expiry(), Some(S * 12));
    assert!(memory.expire(S * 12 - S / 1000).is_empty());
    assert_eq!(memory.keep_alive(b, S * 11), Some(S * 3));
    assert_eq!(memory.expire(S * 12), vec![a]);
    assert_eq!(keys(&memory, ""), "b=1@2 c=2@3");
    assert_eq!(memory.keep_alive(a, S * 12), None);

    memory.restart_leases(S * 13);
    assert!(memory.expire(S * 15).is_empty());
    assert_eq!(memory.keep_alive(b, S * 16), None, "too late");
    assert_eq!((keys(&memory, "").as_str(), memory.rev()), ("c=2@3", 5));
    assert!(!memory.revoke(b));
    assert_eq!(memory.next_expiry(), None);
}
