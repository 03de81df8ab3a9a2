//! What gateways find, as text; the word in the store, in a store in memory.

use super::*;
use crate::cluster::{Agreed, Parts};
use crate::gateway::Presence;
use crate::layout::Layout;
use crate::link::Tls;
use crate::spec::{StorePorts, record};
use everhold_adapters::pki::{Authority, Usage};
use everhold_core::kv::Txn;
use everhold_core::lost_nodes::Why;
use everhold_core::spec::ServiceSpec;
use everhold_store::{MemoryStore, Store};
use std::sync::Arc;

/// Three nodes, with an instance of `api` on each.
fn spec() -> Spec {
    let text = "schema = 1\ncluster = \"shop\"\n[service.main]\nkind = \"postgres\"\n\
                [service.api]\nkind = \"http\"\ncommand = [\"x\"]\nhealth = { path = \"/\" }\n";
    crate::spec::load_with(text, "f", Default::default()).expect("valid")
}

/// `GATEWAY:INSTANCE=FOUND,…`; one that tells nothing of instances is `GATEWAY:-`.
fn word(gateways: &str) -> StoreWord {
    let gateways = gateways.split_whitespace().map(|text| {
        let (name, found) = text.split_once(':').expect("GATEWAY:…");
        let found = found.split(',').filter_map(|it| it.split_once('='));
        let found: BTreeMap<&str, Value> =
            found.map(|(id, is)| (id, json!({ "in_route": true, "is": is }))).collect();
        let snapshot = match text.ends_with('-') {
            true => json!({ "listeners": {} }),
            false => json!({ "services": { "api": found } }),
        };
        let presence = Presence { pid: 1, snapshot, ..Presence::default() };
        (name.to_string(), presence)
    });
    StoreWord { gateways: gateways.collect(), ..StoreWord::default() }
}

#[test]
fn what_gateways_find_of_a_node() {
    let check = |spec: &Spec, gateways: &str, expected: &str| {
        let found = match found("b", spec, &word(gateways)) {
            Found::Nothing => "nothing".to_string(),
            Found::Well { instance, gateway } => format!("{instance} by {gateway}"),
            Found::Unknown => "unknown".to_string(),
        };
        assert_eq!(found, expected, "{gateways}");
    };
    let all = spec();
    check(&all, "a:a.1=healthy,b.1=unhealthy", "nothing");
    check(&all, "a:b.1=unhealthy c:b.1=unhealthy", "nothing");
    // One is enough, and it may be on the very node.
    check(&all, "a:b.1=unhealthy c:b.1=healthy", "b.1 by c");
    check(&all, "a:b.1=unhealthy b:b.1=healthy", "b.1 by b");
    check(&all, "a:b.1=ejected", "b.1 by a");
    // It is in no table, as while it ends.
    check(&all, "a:a.1=healthy", "nothing");
    // Nobody looked, or nobody can tell.
    check(&all, "", "unknown");
    check(&all, "a:-", "unknown");
    check(&all, "a:- c:b.1=unhealthy", "nothing");
    check(&all, "a:b.1=unknown", "unknown");
    check(&all, "a:b.1=unknown c:b.1=unhealthy", "unknown");
    check(&all, "a:b.1=unknown c:b.1=healthy", "b.1 by c");
    check(&all, "a:b.1=newer", "unknown");
    // Out of use, or not there.
    check(&all.with_drained("api", "b.1", true), "a:a.1=healthy", "nothing");
    check(&all.with_drained("api", "b.1", true), "", "nothing");
    check(&all.scaled("api", 1).expect("fewer"), "", "nothing");
}

#[test]
fn stand_ins_wait_until_all_that_tell_find_it_well() {
    let check = |spec: &Spec, gateways: &str, expected: &str| {
        let found = unready("b", spec, &word(gateways)).unwrap_or_default();
        assert_eq!(found, expected, "{gateways}");
    };
    let all = spec();
    check(&all, "a:b.1=healthy", "");
    check(&all, "a:b.1=healthy c:b.1=healthy", "");
    check(&all, "a:- c:b.1=healthy", "");
    let by_a = |finds: &str| format!("b.1 of api: the gateway a {finds}");
    check(&all, "a:b.1=unhealthy c:b.1=healthy", &by_a("finds it unhealthy"));
    check(&all, "a:b.1=unknown", &by_a("has not checked it yet"));
    check(&all, "a:b.1=ejected", &by_a("has ejected it, since its requests fail"));
    // A table from before it began.
    check(&all, "a:a.1=healthy c:b.1=healthy", &by_a("does not name it yet"));
    check(&all, "a:b.1=left", &by_a("does not name it yet"));
    check(&all, "", "b.1 of api: no gateway tells how it is");
    check(&all, "a:-", "b.1 of api: no gateway tells how it is");
    check(&all.with_drained("api", "b.1", true), "a:a.1=healthy", "");
    check(&all.scaled("api", 1).expect("fewer"), "", "");
    // A program that may listen nowhere.
    let mut blind = all.clone();
    if let Some(ServiceSpec::Http(api)) = blind.services.get_mut("api") {
        api.health.path = None;
    }
    check(&blind, "a:b.1=unhealthy", "");
}

#[test]
fn who_is_not_heard_is_asked_after() {
    let reports: Reports = [("a", 99_000), ("b", 94_000)]
        .map(|(it, at)| (it.to_string(), (Arc::default(), at)))
        .into();
    let mut spec = spec();
    spec.set_lost("c", Some("then".to_string()));
    let nodes = look(&spec, &reports, &word("a:a.1=healthy,b.1=healthy"), 100_000);
    let node =
        |heard: Option<u64>, is, found| Node { heard: heard.map(Time), is, found, unready: None };
    let well = Found::Well { instance: "b.1".to_string(), gateway: "a".to_string() };
    assert_eq!(nodes["a"], node(Some(99_000), Is::Here, Found::Unknown));
    assert_eq!(nodes["b"], node(Some(94_000), Is::Here, well));
    assert_eq!(nodes["c"], node(None, Is::Lost, Found::Nothing));
    spec.set_back("c", "then".to_string());
    let nodes = look(&spec, &reports, &word("a:c.1=unhealthy"), 100_000);
    assert_eq!(nodes["c"].is, Is::Back);
    let unready = "c.1 of api: the gateway a finds it unhealthy";
    assert_eq!(nodes["c"].unready.as_deref(), Some(unready));
}

/// A store with the spec in it, and who coordinates.
async fn cluster(dir: &tempfile::TempDir, store: &MemoryStore, spec: &Spec) -> Arc<Cluster> {
    let authority = Authority::create(&dir.path().join("pki")).expect("an authority");
    let pair = authority.issue("api", &[], Usage::Client).expect("a certificate");
    let text = record::to_json(spec).expect("a record");
    let txn = Txn::new().put("/everhold/shop/spec", text).put("/everhold/shop/coordinator", "a");
    store.txn(&txn).await.expect("written");
    Cluster::start(Parts {
        name: "shop".to_string(),
        here: None,
        layout: Layout::new(dir.path()).expect("a layout"),
        spec: spec.clone(),
        store: Agreed::Memory(store.clone()),
        store_ports: StorePorts::default(),
        tls: Tls::follow(&pair.ca, &pair.cert, &pair.key).expect("usable"),
    })
}

async fn stored(store: &MemoryStore) -> (Spec, u64) {
    let all = store.get_prefix("/everhold/shop/").await.expect("read");
    let text = &all.get("/everhold/shop/spec").expect("a spec").value;
    let rev = all.get("/everhold/shop/coordinator").expect("a coordinator").rev;
    (record::from_json(text).expect("readable"), rev)
}

#[tokio::test]
async fn only_the_coordinator_says_it_and_only_of_the_spec_that_it_judged() {
    let (dir, store) = (tempfile::tempdir().expect("a directory"), MemoryStore::default());
    let spec = spec();
    let cluster = cluster(&dir, &store, &spec).await;
    let (_, rev) = stored(&store).await;
    let lose = [("b".to_string(), Verdict::Lose)].into();
    let said = async |expect: Expect, old: &Spec| {
        let ours = ("/everhold/shop/coordinator".to_string(), expect);
        carry_out(&cluster, &ours, old, &lose).await.expect("the store answers")
    };
    assert!(!said(Expect::Rev(rev + 1), &spec).await, "another one coordinates");
    assert!(!said(Expect::Absent, &spec).await, "another one coordinates");
    let other = spec.scaled("api", 4).expect("there is room");
    assert!(!said(Expect::Rev(rev), &other).await, "another spec was judged");
    assert_eq!(stored(&store).await.0, spec);

    assert!(said(Expect::Rev(rev), &spec).await);
    let lost = stored(&store).await.0;
    assert!(lost.is_lost("b"));
    let ids: Vec<&String> = lost.http("api").expect("HTTP").placed().map(|(id, _)| id).collect();
    assert_eq!(ids, ["a.1", "a.2", "c.1"]);
    assert_eq!(cluster.spec(), lost, "it is known here at once");
    assert_eq!(
        moves(&spec, &lost),
        [("api".to_string(), "b.1 ends; a.2 begins".to_string())].into()
    );
    assert!(!said(Expect::Rev(rev), &spec).await, "it was said");

    // Its own begins before the other one ends.
    let mut spec = lost;
    for (verdict, told) in [(Verdict::Return, "b.1 begins"), (Verdict::Settle, "a.2 ends")] {
        let ours = ("/everhold/shop/coordinator".to_string(), Expect::Rev(rev));
        let verdicts = [("b".to_string(), verdict)].into();
        assert!(carry_out(&cluster, &ours, &spec, &verdicts).await.expect("the store answers"));
        let old = std::mem::replace(&mut spec, stored(&store).await.0);
        assert_eq!(moves(&old, &spec), [("api".to_string(), told.to_string())].into());
    }
    assert_eq!(spec, self::spec());
}

#[test]
fn status_says_who_is_lost_and_who_is_not_given_up() {
    let mut spec = spec();
    spec.set_lost("b", Some("then".to_string()));
    let verdicts = [("c".to_string(), Verdict::Hold(Why::TooMany))].into();
    let known = held(&verdicts, &[]);
    let later = held(&verdicts, &[Held { since: "before".to_string(), ..known[0].clone() }]);
    assert_eq!(later[0].since, "before");
    let shown = holds(&spec, &later);
    let of = |index: usize, key: &str| shown[index][key].as_str().unwrap_or_default().to_string();
    assert_eq!(of(0, "why"), "b is lost, and others run its instances");
    assert_eq!(of(0, "since"), "then");
    let why =
        "c is not heard, and its instances stay with it: only a minority of the nodes may be lost";
    assert_eq!(of(1, "why"), why);
    let unblocks = "its agent is heard, another node is back, or a lost one is removed";
    assert_eq!(of(1, "unblocks"), unblocks);
    // 95 or 96 on a node.
    let mut many = self::spec().scaled("api", 200).expect("there is room");
    many.set_lost("b", Some("then".to_string()));
    let shown = holds(&many, &[]);
    let why = shown[0]["why"].as_str().expect("a text");
    assert_eq!(why, "b is lost, and others run its instances; there are no ports for 12 of api");
}
