//! The default spec, ports that stay, PostgreSQL's settings, and the difference between revisions.

use super::parameters::{Refusal, check as check_parameter, names};
use super::*;

#[test]
fn without_a_document() {
    let spec = Spec::default_for_one_machine();
    let main = spec.postgres("main").expect("main");
    let ports: Vec<u16> = spec.nodes.keys().filter_map(|n| main.port(n)).collect();
    let agents: Vec<u16> = spec.nodes.values().map(NodeSpec::agent_port).collect();
    assert_eq!(main.nodes, ["a", "b", "c"]);
    assert_eq!(ports, [15400, 15500, 15600]);
    assert_eq!(agents, [15499, 15599, 15699]);
    assert_eq!(spec.store_node().map(|(name, _)| name), Some("a"));
    let text = serde_json::to_string(&spec).expect("encodes");
    assert_eq!(serde_json::from_str::<Spec>(&text).expect("decodes"), spec);
}

#[test]
fn a_new_service_moves_no_port() {
    let old = Spec::default_for_one_machine();
    let mut new = old.clone();
    let first = ServiceSpec::Postgres(PostgresSpec::default_on(vec!["a".into(), "b".into()]));
    new.services.insert("first".into(), first);
    let port = |spec: &Spec, service: &str, node: &str| spec.postgres(service)?.port(node);
    let mut fresh = new.clone();
    let ServiceSpec::Postgres(main) = fresh.services.get_mut("main").expect("main") else {
        unreachable!("it is PostgreSQL")
    };
    main.instances.values_mut().for_each(|it| it.port = ports::UNASSIGNED);
    fresh.assign_ports();
    assert_eq!((port(&fresh, "first", "a"), port(&fresh, "main", "a")), (Some(15400), Some(15401)));

    fresh.keep(&old);
    assert_eq!((port(&fresh, "first", "a"), port(&fresh, "main", "a")), (Some(15401), Some(15400)));
    assert_eq!(port(&fresh, "main", "c"), Some(15600));
    assert_eq!(show(&diff(&old, &fresh)), ["service.first: - -> postgres, at once"]);
}

#[test]
fn names_and_addresses() {
    #[rustfmt::skip]
    let cases = [
        ("main", ""), ("a", ""), ("a-1_b", ""),
        ("", "is empty"),
        ("Main", "starts with `M`, a name starts with a letter a-z"),
        ("1a", "starts with `1`, a name starts with a letter a-z"),
        ("a.b", "holds `.`, a name is made of a-z, 0-9, _ and -"),
        ("a\n", "holds `\\n`, a name is made of a-z, 0-9, _ and -"),
        ("abcdefghijklmnopqrstuvwxyz0123456", "is 33 bytes long, 31 are allowed"),
    ];
    for (name, expected) in cases {
        assert_eq!(check_name(name).err().unwrap_or_default(), expected, "{name}");
    }
    #[rustfmt::skip]
    let cases = [
        ("10.0.0.1", true), ("::1", true), ("db-1.example.org", true), ("localhost", true),
        ("", false), ("10.0.0", false), ("10.0.0.256", false), ("0.0.0.0", false), ("224.0.0.1", false),
        ("a b", false), ("-a", false), ("a..b", false), ("10.0.0.1:80", false),
    ];
    for (text, expected) in cases {
        assert_eq!(text.parse::<Address>().is_ok(), expected, "{text}");
    }
}

#[test]
fn settings_of_postgres() {
    let check = |name: &str, value: &str, expected: &str| {
        let got = match check_parameter(name, value) {
            Ok(name) => name,
            Err(Refusal::Unknown) => "unknown".into(),
            Err(Refusal::ReadOnly) => "read only".into(),
            Err(Refusal::Value { wants }) => format!("wants {wants}"),
            Err(Refusal::Ours { .. }) => "ours".into(),
            Err(Refusal::Weakens { allowed, .. }) => format!("weakens, allowed: {allowed}"),
        };
        assert_eq!(got, expected, "{name} = {value}");
    };
    #[rustfmt::skip]
    let cases = [
        ("work_mem", "64MB", "work_mem"),
        ("WORK_MEM", "65536", "work_mem"),
        ("timezone", "UTC", "TimeZone"),
        ("shared_buffers", "1.5GB", "shared_buffers"),
        ("shared_buffers", "16", "shared_buffers"),
        ("shared_buffers", "15", "wants a whole number from 16 to 1073741823 (of 8kB), or with a unit: B, kB, MB, GB, TB"),
        ("shared_buffers", "256MiB", "wants a whole number from 16 to 1073741823 (of 8kB), or with a unit: B, kB, MB, GB, TB"),
        ("shared_buffers", "", "wants a whole number from 16 to 1073741823 (of 8kB), or with a unit: B, kB, MB, GB, TB"),
        ("checkpoint_timeout", "5min", "checkpoint_timeout"),
        ("checkpoint_timeout", "5 s", "wants a whole number from 30 to 86400 (of s), or with a unit: us, ms, s, min, h, d"),
        ("random_page_cost", "1.1", "random_page_cost"),
        ("random_page_cost", "1e0", "random_page_cost"),
        ("max_connections", "1e", "wants a whole number from 1 to 262143"),
        ("max_connections", "many", "wants a whole number from 1 to 262143"),
        ("max_connections", "10", "weakens, allowed: 20 or more"),
        ("max_connections", "200", "max_connections"),
        ("jit", "off", "jit"),
        ("jit", "perhaps", "wants on or off"),
        ("wal_level", "logical", "wal_level"),
        ("wal_level", "minimal", "weakens, allowed: replica or logical"),
        ("wal_level", "all", "wants one of minimal, replica, logical"),
        ("fsync", "yes", "fsync"),
        ("fsync", "off", "weakens, allowed: on"),
        ("synchronous_commit", "remote_apply", "synchronous_commit"),
        ("synchronous_commit", "local", "weakens, allowed: on or remote_apply"),
        ("synchronous_commit", "true", "synchronous_commit"),
        ("synchronous_commit", "0", "weakens, allowed: on or remote_apply"),
        ("port", "5432", "ours"),
        ("recovery_target_time", "", "ours"),
        ("server_version", "16", "read only"),
        ("work_men", "1MB", "unknown"),
        ("pg_stat_statements.max", "1000", "pg_stat_statements.max"),
        ("a..b", "1", "unknown"),
        ("log_line_prefix", "%m\nport = 1", "wants text without line ends or other control characters"),
    ];
    for (name, value, expected) in cases {
        check(name, value, expected);
    }
    assert_eq!(names().count(), 354);
}

#[test]
fn every_rule_is_about_a_setting_that_exists() {
    let mut last = "";
    for (name, _) in parameters::rules() {
        assert!(names().any(|known| known == name), "{name}");
        assert!(last < name, "{name} is not in order");
        last = name;
    }
}

#[test]
fn changes() {
    let pg = |spec: &mut Spec, change: &dyn Fn(&mut PostgresSpec)| {
        let ServiceSpec::Postgres(main) = spec.services.get_mut("main").expect("main") else {
            unreachable!("it is PostgreSQL")
        };
        change(main);
    };
    let set = |name: &'static str, value: &'static str| {
        move |it: &mut PostgresSpec| drop(it.parameters.insert(name.into(), value.into()))
    };
    let check = |change: &dyn Fn(&mut Spec), expected: &[&str]| {
        let old = Spec::default_for_one_machine();
        let mut new = old.clone();
        change(&mut new);
        assert_eq!(show(&diff(&old, &new)), expected);
    };
    check(&|_| {}, &[]);
    check(
        &|s| pg(s, &set("work_mem", "8MB")),
        &["service.main.parameters.work_mem: - -> 8MB, reload"],
    );
    check(
        &|s| pg(s, &set("max_connections", "300")),
        &["service.main.parameters.max_connections: - -> 300, restart"],
    );
    check(
        &|s| pg(s, &set("pg_stat_statements.max", "300")),
        &["service.main.parameters.pg_stat_statements.max: - -> 300, restart"],
    );
    check(
        &|s| pg(s, &|it| it.synchronous.number = 2),
        &["service.main.synchronous.number: 1 -> 2, reload"],
    );
    check(
        &|s| pg(s, &|it| it.synchronous.durability = Durability::Preferred),
        &["service.main.synchronous.durability: required -> preferred, at once"],
    );
    check(
        &|s| pg(s, &|it| it.nodes.rotate_left(1)),
        &["service.main.nodes: a, b, c -> b, c, a, at once"],
    );
    check(
        &|s| pg(s, &|it| drop(it.nodes.pop())),
        &[
            "service.main.nodes: a, b, c -> a, b, refused: one instance is not removed from a running service by this version; `everhold node drain` takes its load, `everhold node remove` the whole node",
        ],
    );
    check(
        &|s| pg(s, &|it| it.version = 16),
        &[
            "service.main.version: 15 -> 16, refused: a major version is not changed in place; restore a dump into a new service",
        ],
    );
    check(
        &|s| s.cluster = "shop".into(),
        &[
            "cluster: local -> shop, refused: every data directory carries the cluster's name; start a second cluster instead",
        ],
    );
    check(
        &|s| drop(s.nodes.remove("c")),
        &[
            "node.c: 127.0.0.1 -> -, refused: its instances have to leave their services first: `everhold node remove` takes it out, and its data stays",
        ],
    );
    check(
        &|s| {
            let Protocol::Postgres(read) = &mut s.listeners.get_mut("read").expect("read").protocol
            else {
                unreachable!("it is PostgreSQL's")
            };
            read.max_lag_ms = Some(50);
        },
        &["listener.read.max_lag: 1000ms -> 50ms, at once"],
    );
    check(&|s| drop(s.listeners.remove("read")), &["listener.read: 127.0.0.1:6433 -> -, at once"]);
    check(&|s| s.api.bind.set_port(7071), &["api.bind: 127.0.0.1:7070 -> 127.0.0.1:7071, restart"]);
}

fn show(changes: &[Change]) -> Vec<String> {
    let text = |it: &Option<String>| it.clone().unwrap_or("-".into());
    let when = |it: &TakesEffect| match it {
        TakesEffect::AtOnce => "at once".into(),
        TakesEffect::Reload => "reload".into(),
        TakesEffect::Restart => "restart".into(),
        TakesEffect::Refused { why } => format!("refused: {why}"),
    };
    let line = |c: &Change| {
        format!("{}: {} -> {}, {}", c.path, text(&c.old), text(&c.new), when(&c.takes_effect))
    };
    changes.iter().map(line).collect()
}

#[test]
fn a_running_cluster_keeps_its_store() {
    let old = Spec::default_for_one_machine();
    let tls = StoreTls { ca: "/ca".into(), cert: "/c".into(), key: "/k".into() };
    let store = StoreSpec { etcd: vec!["https://db:2379".into()], tls: Some(tls) };
    let new = Spec { store: Some(store.clone()), ..old.clone() };
    let refused = |old: &Spec, new: &Spec| -> Vec<String> {
        let all = diff(old, new).into_iter();
        let refused = all.filter(|it| matches!(it.takes_effect, TakesEffect::Refused { .. }));
        refused.map(|it| it.path).collect()
    };
    assert_eq!(refused(&old, &new), ["store.etcd", "store.tls"]);
    assert_eq!(refused(&new, &old), ["store.etcd", "store.tls"]);
    let mut other = new.clone();
    other.store = Some(StoreSpec { etcd: vec!["https://db2:2379".into()], ..store });
    assert_eq!(refused(&new, &other), ["store.etcd"]);
    assert!(diff(&new, &new).is_empty());
}

#[test]
fn requests_may_be_on_their_way_for_as_long_as_a_route_allows() {
    let mut spec = Spec::tour("/everhold", None);
    let mut check = |service: u64, route: Option<u64>, expected: u64| {
        let Some(ServiceSpec::Http(web)) = spec.services.get_mut("web") else {
            unreachable!("it is the sample")
        };
        web.timeout_ms = service;
        spec.routes.get_mut("web").expect("its route").timeout_ms = route;
        assert_eq!(spec.drain_ms("web"), expected, "{service} {route:?}");
    };
    check(60_000, None, 60_000);
    check(60_000, Some(90_000), 90_000);
    check(60_000, Some(1_000), 60_000);
    check(24 * DRAIN_MAX_MS, None, DRAIN_MAX_MS);
    assert_eq!(spec.drain_ms("none"), 0);
}
