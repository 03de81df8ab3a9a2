//! Cases as lines. Facts: "EPOCH primary a|none, NAME:LAG|?[!]..." ("!" = not readable).

use super::*;
use crate::spec::{PostgresListener, Protocol};

fn address(name: &str) -> SocketAddr {
    let port = 15400 + u16::from(name.as_bytes()[0] - b'a');
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn instance(name: &str) -> Instance {
    Instance { name: name.to_owned(), address: address(name) }
}

fn specs() -> BTreeMap<String, ListenerSpec> {
    let spec = |port: u16, role| ListenerSpec {
        bind: SocketAddr::from(([127, 0, 0, 1], port)),
        protocol: Protocol::Postgres(PostgresListener {
            service: "main".to_owned(),
            role,
            max_lag_ms: (role == Role::Standby).then_some(1000),
        }),
    };
    BTreeMap::from([
        ("write".to_owned(), spec(6432, Role::Primary)),
        ("read".to_owned(), spec(6433, Role::Standby)),
    ])
}

fn lead<'s>(specs: &'s mut BTreeMap<String, ListenerSpec>, name: &str) -> &'s mut PostgresListener {
    match &mut specs.get_mut(name).unwrap().protocol {
        Protocol::Postgres(postgres) => postgres,
        Protocol::Http(_) => unreachable!("{name} is PostgreSQL's"),
    }
}

fn facts(line: &str) -> BTreeMap<String, ServiceFacts> {
    if line == "unknown" {
        return BTreeMap::new();
    }
    let mut words = line.split_whitespace();
    let epoch = words.next().unwrap().parse().unwrap();
    let primary = Some(words.next().unwrap()).filter(|name| *name != "none").map(instance);
    let standbys: Vec<Standby> = words
        .map(|word| {
            let (name, lag) = word.split_once(':').unwrap();
            Standby {
                instance: instance(name),
                lag_ms: lag.trim_end_matches('!').parse().ok(),
                readable: !lag.ends_with('!'),
            }
        })
        .collect();
    let all = ["c", "a", "b"].map(address).to_vec();
    BTreeMap::from([("main".to_owned(), ServiceFacts { epoch, primary, standbys, all })])
}

fn show(table: &RouteTable) -> String {
    let names = |listener: &str| {
        let route = &table.listeners[listener];
        let names: Vec<&str> = route.backends.iter().map(|b| b.name.as_str()).collect();
        format!("{}@{}[{}]", listener, route.epoch, names.join(" "))
    };
    format!("r{} {} {}", table.revision, names("write"), names("read"))
}

#[test]
fn a_table_follows_its_predecessor() {
    #[rustfmt::skip]
    let cases = [
        // facts after facts                             the last table
        (&["unknown"][..],                               "r1 write@0[] read@0[]"),
        (&["5 a b:10 c:20"],                             "r1 write@5[a] read@5[b c]"),
        (&["5 a c:20 b:10"],                             "r1 write@5[a] read@5[b c]"),
        (&["5 a b:1000 c:1001"],                         "r1 write@5[a] read@5[b]"),
        (&["5 a b:? c:20"],                              "r1 write@5[a] read@5[c]"),
        (&["5 a b:10! c:2000"],                          "r1 write@5[a] read@5[a]"),
        (&["5 none b:10"],                               "r1 write@5[] read@5[b]"),
        (&["5 a b:10 c:20", "5 a b:11 c:0"],             "r1 write@5[a] read@5[b c]"),
        (&["5 a b:10 c:20", "unknown"],                  "r1 write@5[a] read@5[b c]"),
        (&["5 a b:10", "5 none b:10"],                   "r2 write@5[] read@5[b]"),
        (&["5 a b:10", "6 none"],                        "r2 write@6[] read@6[]"),
        (&["5 a b:10", "6 none", "unknown"],             "r2 write@6[] read@6[]"),
        (&["5 a b:10", "6 none", "5 a b:10"],            "r2 write@6[] read@6[]"),
        (&["5 a b:10", "6 b c:5", "5 a b:10", "5 none"], "r2 write@6[b] read@6[c]"),
        (&["5 a b:10", "6 none", "6 b c:5"],             "r3 write@6[b] read@6[c]"),
    ];
    for (history, expected) in cases {
        let mut table = None;
        for line in history {
            table = Some(build(&specs(), &facts(line), table.as_ref()));
        }
        assert_eq!(show(&table.unwrap()), expected, "{history:?}");
    }
}

#[test]
fn a_listener_that_leads_elsewhere_starts_anew() {
    let table = build(&specs(), &facts("5 a b:10"), None);
    let mut moved = specs();
    lead(&mut moved, "write").service = "other".to_owned();
    lead(&mut moved, "read").role = Role::Primary;
    let next = build(&moved, &BTreeMap::new(), Some(&table));
    assert_eq!(show(&next), "r2 write@0[] read@0[]");
}

#[test]
fn a_new_bind_address_alone_is_a_change_that_keeps_the_backends() {
    let table = build(&specs(), &facts("5 a b:10"), None);
    let mut moved = specs();
    moved.get_mut("write").unwrap().bind.set_port(7432);
    let next = build(&moved, &BTreeMap::new(), Some(&table));
    assert_eq!(show(&next), "r2 write@5[a] read@5[b]");
    assert_eq!(next.listeners["write"].bind.port(), 7432);
}

#[test]
fn every_instance_is_known_for_cancel_requests() {
    let table = build(&specs(), &facts("5 a"), None);
    assert_eq!(table.listeners["read"].all, ["a", "b", "c"].map(address));
}

#[test]
fn a_connection_outlives_its_route_only_where_that_is_safe() {
    use Fate::{Cut, CutAfterGrace, Keep};
    #[rustfmt::skip]
    let cases = [
        // listener, backend, old facts, new facts,           fate
        ("write", "a", "5 a b:10",      "5 a b:10 c:1",       Keep),
        ("write", "a", "5 a b:10",      "6 b a:10",           Cut),
        ("write", "a", "5 a b:10",      "6 none",             Cut),
        ("write", "a", "5 a b:10",      "5 none b:10",        Keep),
        ("write", "a", "5 a b:10",      "5 b",                Cut),
        ("write", "a", "5 none b:10",   "6 none b:10",        Cut),
        // The leader re-granted itself a higher epoch: it never stopped leading.
        ("write", "a", "5 a b:10",      "7 a b:10",           Keep),
        ("read",  "b", "5 a b:10 c:10", "5 a b:5000 c:10",    CutAfterGrace),
        ("read",  "b", "5 a b:10 c:10", "5 a b:? c:10",       CutAfterGrace),
        ("read",  "b", "5 a b:10 c:10", "6 c b:10",           Keep),
        // It became the primary of the new epoch: what it shows is what was acknowledged.
        ("read",  "b", "5 a b:10 c:10", "6 b c:10",           Keep),
        ("read",  "c", "5 a b:10 c:10", "6 b a:10",           Cut),
        ("read",  "a", "5 a",           "5 a b:10",           Keep),
        ("read",  "a", "5 a",           "6 b",                Cut),
        ("read",  "a", "5 a",           "6 none",             Cut),
    ];
    for (listener, backend, old, new, expected) in cases {
        let old_table = build(&specs(), &facts(old), None);
        let new_table = build(&specs(), &facts(new), Some(&old_table));
        let verdict = fate(
            &old_table.listeners[listener],
            new_table.listeners.get(listener),
            address(backend),
        );
        assert_eq!(verdict, expected, "{listener} to {backend}: {old} -> {new}");
    }
    let table = build(&specs(), &facts("5 a"), None);
    assert_eq!(fate(&table.listeners["write"], None, address("a")), Cut, "the listener is gone");
}

/// What two processes of one gateway know: of each route the later epoch counts, in the place that the
/// new one's spec says.
#[test]
fn a_table_is_at_least_as_late_as_another() {
    let check = |mine: &str, others: &str, expected: &str| {
        let mine = build(&specs(), &facts(mine), None);
        let mut other = build(&specs(), &facts(others), None);
        other.revision = 7;
        let route = other.listeners.get_mut("write").unwrap();
        route.bind = SocketAddr::from(([127, 0, 0, 1], 1));
        let binds = |it: &RouteTable| it.listeners["write"].bind;
        let after = mine.clone().at_least(&other);
        let epoch = after.listeners["write"].epoch;
        assert_eq!(binds(&after), binds(&mine));
        let names: Vec<&str> =
            after.listeners["write"].backends.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(format!("{} {epoch} {}", after.revision, names.join(" ")), expected);
    };
    check("5 a", "6 b", "8 6 b");
    check("6 a", "5 b", "7 6 a");
    check("6 a", "6 b", "7 6 a");
    check("5 a", "6 none", "8 6 ");
    check("unknown", "6 b", "8 6 b");
}
