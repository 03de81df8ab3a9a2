//! Documents and what is reported about each: every fault, with its place.

mod http;
mod protect;

use everhold_core::spec::{CloneFrom, Durability, Role};

use super::*;

fn load(text: &str, filename: &str) -> Result<Spec, Vec<Fault>> {
    load_with(text, filename, StorePorts::default())
}

const HEAD: &str = "schema = 1\ncluster = \"shop\"\n[service.main]\nkind = \"postgres\"\n";

/// Compares the faults of a document, without file and next step.
fn check(text: &str, expected: &[&str]) {
    let faults = load(text, "f").err().unwrap_or_default();
    let lines: Vec<String> = faults
        .iter()
        .map(|it| {
            assert!(!it.next.is_empty(), "{it}");
            let place = it.line.zip(it.column).map_or("-".into(), |(l, c)| format!("{l}:{c}"));
            format!("{place} {} {}", it.code.as_str(), it.message)
        })
        .collect();
    assert_eq!(lines, expected, "of\n{text}");
}

/// The same below [`HEAD`], whose four lines count.
fn check_main(text: &str, expected: &[&str]) {
    check(&format!("{HEAD}{text}"), expected);
}

#[test]
fn the_least_document_is_the_default() {
    let spec = load(HEAD, "f").expect("valid");
    let default = Spec::default_for_one_machine();
    assert_eq!(spec, Spec { cluster: "shop".into(), ..default });
}

#[test]
fn a_whole_document() {
    let text = r#"
schema = 1
cluster = "shop"
[node]
a = { address = "10.0.1.1", region = "eu", zone = "eu-1", ports = "15400-15499" }
b = { address = "10.0.2.1", region = "eu", zone = "eu-2" }
c = { address = "db3.example.org", region = "eu", zone = "eu-3" }
[service.main]
kind = "postgres"
nodes = ["b", "a", "c"]
version = 15
database = "shop"
owner = "clerk"
synchronous = { number = 2, durability = "preferred", spread = "zone" }
instance.c = { priority = 10, failover = false }
parameters = { max_connections = 200, shared_buffers = "256MB", jit = false, random_page_cost = 1.1, auto_explain.log_min_duration = "1s" }
[service.ledger]
kind = "postgres"
nodes = ["a"]
[gateway]
nodes = ["a", "b"]
[listener]
write = { bind = "0.0.0.0:6432", protocol = "postgres", service = "main", role = "primary" }
read = { bind = "[::]:6433", protocol = "postgres", service = "main", role = "standby", max_lag = "250ms" }
[api]
bind = "[::1]:7071"
"#;
    let spec = load(text, "f").expect("valid");
    let main = spec.postgres("main").expect("main");
    assert_eq!(main.nodes, ["b", "a", "c"]);
    assert_eq!((main.database.as_str(), main.owner.as_str()), ("shop", "clerk"));
    assert_eq!((main.synchronous.number, main.synchronous.durability), (2, Durability::Preferred));
    assert_eq!((main.instances["c"].priority, main.instances["c"].failover), (10, false));
    let parameters: Vec<String> =
        main.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        parameters.join(" "),
        "auto_explain.log_min_duration=1s jit=off max_connections=200 random_page_cost=1.1 shared_buffers=256MB"
    );
    let ledger = spec.postgres("ledger").expect("ledger");
    assert_eq!((ledger.synchronous.number, ledger.instances["a"].port), (0, 15400));
    assert_eq!(main.instances["a"].port, 15401);
    assert_eq!(spec.gateway.nodes, ["a", "b"]);
    let listener = |name: &str| spec.listeners[name].postgres().expect("PostgreSQL's");
    assert_eq!(listener("read").max_lag_ms, Some(250));
    assert_eq!((listener("write").role, listener("write").max_lag_ms), (Role::Primary, None));
    assert_eq!(spec.api.bind.to_string(), "[::1]:7071");

    let json = record::to_json(&spec).expect("encodes");
    assert_eq!(record::from_json(&json).expect("decodes"), spec);
    let newer = json.replace("\"version\":1,", "\"version\":4,");
    assert!(matches!(record::from_json(&newer), Err(record::RecordError::Newer { found: 4 })));
    let torn = &json[..json.len() / 2];
    assert!(matches!(record::from_json(torn), Err(record::RecordError::Torn(_))));
}

#[test]
#[rustfmt::skip]
fn documents_that_are_not_read() {
    check("", &[
        "1:1 E006 `cluster` is missing at top level",
        "1:1 E006 `schema` is missing at top level",
        "1:1 E019 no service is declared",
    ]);
    check("schema = 1\ncluster = shop\n", &[
        "2:11 E001 not TOML: string values must be quoted, expected literal string",
    ]);
    check("schema = 1\ncluster = \"shop\n[service.main]\n", &[
        "2:16 E001 not TOML: invalid basic string, expected `\"`",
    ]);
    check("schema = 1\n[service.main\nkind = 1\n", &[
        "2:14 E001 not TOML: unclosed table, expected `]`",
    ]);
    check("schema = 2\ncluster = \"shop\"\n[service.main]\nkind = \"postgres\"\n", &[
        "1:10 E018 schema 2 is not known to this version, it knows 1",
    ]);
    check("schema = \"1\"\ncluster = 7\nservice = 3\n", &[
        "1:10 E005 `schema` at top level must be a whole number, not a string",
        "2:11 E005 `cluster` at top level must be a string, not an integer",
        "3:11 E005 `service` at top level must be a table, not an integer",
    ]);
    check("schema = 1\ncluster = \"shop\"\n[[service]]\nkind = \"postgres\"\n", &[
        "3:1 E005 `service` at top level must be a table, not an array of tables",
    ]);
    check("schema = 1\ncluster = \"shop\"\nnode = []\nlistener = \"x\"\ngateway = 1\napi = true\n[service.main]\nkind = \"postgres\"\nnodes = [\"x\"]\n", &[
        "3:8 E005 `node` at top level must be a table, not an array",
        "4:12 E005 `listener` at top level must be a table, not a string",
        "5:11 E005 `gateway` at top level must be a table, not an integer",
        "6:7 E005 `api` at top level must be a table, not a boolean",
    ]);
}

#[test]
#[rustfmt::skip]
fn keys() {
    check_main("synchronus = { number = 1 }\n", &[
        "5:1 E003 unknown key `synchronus` in [service.main]; did you mean `synchronous`?",
    ]);
    check_main("Nodes = [\"a\"]\nqqqqqq = 1\n", &[
        "5:1 E003 unknown key `Nodes` in [service.main]; did you mean `nodes`?",
        "6:1 E003 unknown key `qqqqqq` in [service.main]",
    ]);
    check_main("synchronous = { numbers = 1, durable = true }\n", &[
        "5:17 E003 unknown key `numbers` in [service.main.synchronous]; did you mean `number`?",
        "5:30 E003 unknown key `durable` in [service.main.synchronous]",
    ]);
    check_main("nodes = \"a\"\nversion = \"15\"\ndatabase = 1\nsynchronous = 2\ninstance = 1\nparameters = []\n", &[
        "5:9 E005 `nodes` in [service.main] must be a list of strings, not a string",
        "6:11 E005 `version` in [service.main] must be a whole number, not a string",
        "7:12 E005 `database` in [service.main] must be a string, not an integer",
        "8:15 E005 `synchronous` in [service.main] must be a table, not an integer",
        "9:12 E005 `instance` in [service.main] must be a table, not an integer",
        "10:14 E005 `parameters` in [service.main] must be a table, not an array",
    ]);
    check_main("nodes = [\"a\", 2, true]\n", &[
        "5:15 E005 `nodes` in [service.main] lists strings, not an integer",
        "5:18 E005 `nodes` in [service.main] lists strings, not a boolean",
    ]);
    check_main("instance.a = 1\ninstance.b = { priority = \"high\", failover = \"no\", weight = 1 }\n", &[
        "5:14 E005 `a` in [service.main.instance] must be a table, not an integer",
        "6:27 E005 `priority` in [service.main.instance.b] must be a whole number, not a string",
        "6:46 E005 `failover` in [service.main.instance.b] must be true or false, not a string",
        "6:52 E003 unknown key `weight` in [service.main.instance.b]",
    ]);
    check_main("[service.web]\nkind = \"redis\"\ninstances = 3\n[service.odd]\nkind = \"mysql\"\n[service.none]\n", &[
        "1:1 E019 no listener is declared, and 4 services have no default",
        "6:8 E004 kind \"redis\" of [service.web] is known but not supported by this version",
        "9:8 E007 `kind` in [service.odd] must be \"postgres\" or \"http\", not \"mysql\"",
        "10:10 E006 `kind` is missing in [service.none]",
    ]);
    check_main("version = 15\nversion = 15\nnodes = [\"a\", \"x\"]\n", &[
        "6:1 E002 `version` is given twice",
        "7:15 E012 no node `x` is declared (in [service.main])",
    ]);
    check_main("[service.main]\nkind = \"postgres\"\nverison = 15\n", &[
        "5:10 E002 `main` is given twice",
        "7:1 E003 unknown key `verison` in [service.main]; did you mean `version`?",
    ]);
    check_main("synchronous = { number = 1, number = 7 }\n[listener]\nx = 1\nx = 2\n[gateway]\nnode = []\n", &[
        "5:29 E002 `number` is given twice",
        "7:5 E005 `x` in [listener] must be a table, not an integer",
        "8:1 E002 `x` is given twice",
        "8:5 E005 `x` in [listener] must be a table, not an integer",
        "10:1 E003 unknown key `node` in [gateway]; did you mean `nodes`?",
    ]);
    check_main("[node]\na = { address = \"10.0.0.1\" }\na = { adress = \"10.0.0.2\" }\n\"a\" = 1\n", &[
        "7:1 E002 `a` is given twice",
        "7:1 E006 `address` is missing in [node.a]",
        "7:7 E003 unknown key `adress` in [node.a]; did you mean `address`?",
        "8:1 E002 `a` is given twice",
        "8:7 E005 `a` in [node] must be a table, not an integer",
    ]);
    check("schema = 1\ncluster = \"a\\nb\"\nclustr = 1\n[servic.main]\nkind = \"postgres\"\n", &[
        "1:1 E019 no service is declared",
        "2:11 E008 cluster name `a\\nb` holds `\\n`, a name is made of a-z, 0-9, _ and -",
        "3:1 E003 unknown key `clustr` at top level; did you mean `cluster`?",
        "4:2 E003 unknown key `servic` at top level; did you mean `service`?",
    ]);
}

#[test]
#[rustfmt::skip]
fn names_and_references() {
    check_main("nodes = [\"a\", \"d\", \"a\"]\ndatabase = \"postgres\"\nowner = \"pg_boss\"\n", &[
        "5:15 E012 no node `d` is declared (in [service.main])",
        "5:20 E013 node `a` stands twice in [service.main]",
        "6:12 E009 database name `postgres` is taken by PostgreSQL or Everhold itself",
        "7:9 E009 owner name `pg_boss` starts with `pg_`, which PostgreSQL keeps for itself",
    ]);
    check_main("nodes = []\n", &[
        "5:9 E019 `nodes` in [service.main] is empty",
    ]);
    check_main("database = \"My App\"\nowner = \"\"\n", &[
        "5:12 E008 database name `My App` starts with `M`, a name starts with a letter a-z",
        "6:9 E008 owner name `` is empty",
    ]);
    check_main("instance.z = { priority = 1 }\ninstance.a = { priority = 1001, failover = false }\ninstance.b = { priority = -1 }\n", &[
        "5:10 E012 `z` is not a node of [service.main]",
        "6:27 E007 `priority` in [service.main.instance.a] must be from 0 to 1000, not 1001",
        "6:44 E025 `failover` in [service.main.instance.a] is false, but the first node of a service leads first",
        "7:27 E007 `priority` in [service.main.instance.b] must be from 0 to 1000, not -1",
    ]);
    check_main("[node]\nA = { address = \"10.0.0.1\" }\netcd = { address = \"10.0.0.2\" }\nx-1 = { address = \"10.0.0.3\" }\nx_1 = { address = \"10.0.0.4\" }\nd = { ports = \"15400-15499\" }\n", &[
        "6:1 E008 node name `A` starts with `A`, a name starts with a letter a-z",
        "7:1 E009 node name `etcd` is taken by Everhold itself",
        "9:1 E009 nodes `x-1` and `x_1` would share a replication slot",
        "10:1 E006 `address` is missing in [node.d]",
    ]);
    check_main("[node]\n", &[
        "5:2 E019 [node] is empty",
    ]);
    check_main("[node]\na = { address = \"10.0.0\", zone = \"EU\", ports = \"15499\" }\nb = { address = \"0.0.0.0\", ports = \"80-90\" }\nc = { address = \"\", ports = \"16000-15000\" }\nd = { address = \"h\", ports = \"15000-15005\" }\ne = { address = \"h:1\", ports = \"70000-70010\" }\n", &[
        "6:17 E011 address of node a: `10.0.0` is neither an IP address nor a host name",
        "6:34 E008 zone name `EU` starts with `E`, a name starts with a letter a-z",
        "6:48 E011 ports of node a: `15499` is not of the form FIRST-LAST",
        "7:17 E011 address of node b: `0.0.0.0` is not the address of one machine",
        "7:36 E011 ports of node b: `80-90` holds privileged ports, the first allowed is 1024",
        "8:17 E011 address of node c: `` is neither an IP address nor a host name",
        "8:29 E011 ports of node c: `16000-15000` ends before it starts",
        "9:30 E011 ports of node d: `15000-15005` holds fewer than 10 ports",
        "10:17 E011 address of node e: `h:1` is neither an IP address nor a host name",
        "10:32 E011 ports of node e: `70000` is not a port",
    ]);
    check_main("[service.journal]\nkind = \"postgres\"\n[service.9]\nkind = \"postgres\"\n", &[
        "1:1 E019 no listener is declared, and 3 services have no default",
        "5:10 E009 service name `journal` is taken by Everhold itself",
        "7:10 E008 service name `9` starts with `9`, a name starts with a letter a-z",
    ]);
    check_main("[gateway]\nnodes = [\"a\", \"bb\", \"a\"]\n", &[
        "6:15 E012 no node `bb` is declared (in [gateway])",
        "6:21 E013 node `a` stands twice in [gateway]",
    ]);
    check_main("[gateway]\naccess_log = \"yes\"\n", &[
        "6:14 E005 `access_log` in [gateway] must be true or false, not a string",
    ]);
    check_main("[gateway]\nnodes = []\n", &[
        "6:9 E019 `nodes` in [gateway] is empty",
    ]);
    check_main("[service.second]\nkind = \"postgres\"\n", &[
        "1:1 E019 no listener is declared, and 2 services have no default",
    ]);
}

#[test]
#[rustfmt::skip]
fn values() {
    check_main("version = 16\nsynchronous = { number = 3, durability = \"requierd\", spread = \"rack\" }\n", &[
        "5:11 E017 PostgreSQL 16 (`version` in [service.main]) is not supported, 15 is",
        "6:26 E015 `synchronous.number` in [service.main] is 3, above the number of standbys (2)",
        "6:42 E007 `synchronous.durability` in [service.main] must be \"required\" or \"preferred\", not \"requierd\"",
        "6:63 E007 `synchronous.spread` in [service.main] must be \"zone\" or \"region\", not \"rack\"",
    ]);
    check_main("nodes = [\"a\", \"b\"]\nsynchronous = { number = 2 }\n", &[
        "6:26 E015 `synchronous.number` in [service.main] is 2, above the number of standbys (1)",
    ]);
    check_main("nodes = [\"a\"]\nsynchronous.number = 1\n", &[
        "6:22 E015 `synchronous.number` in [service.main] is 1, above the number of standbys (0)",
    ]);
    check_main("synchronous.number = -1\n", &[
        "5:22 E007 `synchronous.number` in [service.main] must be from 0 to 99, not -1",
    ]);
    check_main("synchronous.spread = \"zone\"\n", &[
        "5:22 E016 `synchronous.spread` in [service.main] is \"zone\", but without a zone: a, b, c",
    ]);
    check_main("synchronous.spread = \"region\"\n[node]\na = { address = \"10.0.0.1\", region = \"eu\" }\nb = { address = \"10.0.0.2\", region = \"eu\" }\n", &[
        "5:22 E016 `synchronous.spread` in [service.main] is \"region\", but all nodes are in the same region",
    ]);
    check_main("[api]\nbind = \"0.0.0.0:7070\"\n", &[
        "6:8 E024 [api] bind 0.0.0.0:7070 is reachable from other machines, and its token unencrypted",
    ]);
    check_main("[api]\nbind = \"localhost:7070\"\n", &[
        "6:8 E011 bind of [api]: `localhost:7070` is not of the form IP:PORT",
    ]);
    check_main("[api]\nbind = \"127.0.0.1:0\"\n", &[
        "6:8 E011 bind of [api]: `127.0.0.1:0` cannot be listened on",
    ]);
    let listeners = "[listener]\n\
        a = { bind = \"127.0.0.1\", protocol = \"postgres\", service = \"mian\", role = \"leader\" }\n\
        b = { bind = \"127.0.0.1:6000\", protocol = \"postgres\", service = \"main\", role = \"primary\", max_lag = \"1s\" }\n\
        c = { bind = \"127.0.0.1:6001\", protocol = \"postgres\", service = \"main\", role = \"standby\", max_lag = \"1\" }\n\
        d = { bind = \"127.0.0.1:6002\", protocol = \"postgres\", service = \"main\", role = \"standby\", max_lag = \"0s\" }\n\
        e = { bind = \"127.0.0.1:6003\", protocol = \"postgres\", service = \"main\", role = \"standby\", max_lag = \"1 s\" }\n\
        f = { bind = \"127.0.0.1:6004\", protocol = \"tcp\", tls = { cert = \"x\" } }\n\
        g = { bind = \"127.0.0.1:6005\", protocol = \"postgresql\", service = \"main\", role = \"Primary\", tls = 1 }\n\
        h = { bind = 6006, max_lag = 1 }\n\
        i = { bind = \"127.0.0.1:6007\", protocol = \"postgres\", service = \"main\", role = \"standby\", max_lag = \"99999999999999999999s\" }\n\
        j = { bind = \"127.0.0.1:6008\", protocol = \"postgres\", service = \"main\", role = \"standby\", max_lag = \"99999999999999999h\" }\n\
        k = {}\n\
        L = \"x\"\n";
    check_main(listeners, &[
        "6:14 E011 bind of listener a: `127.0.0.1` is not of the form IP:PORT",
        "6:60 E012 no service `mian` is declared (in [listener.a]); did you mean `main`?",
        "6:75 E007 `role` in [listener.a] must be \"primary\" or \"standby\", not \"leader\"",
        "7:101 E026 `max_lag` in [listener.b] has no meaning with role \"primary\"",
        "8:101 E010 `max_lag` in [listener.c]: \"1\" has no unit (ms, s, m or h)",
        "9:101 E007 `max_lag` in [listener.d] must be from 1ms to 24h, not \"0s\"",
        "10:101 E010 `max_lag` in [listener.e]: \"1 s\" is not a whole number with a unit (ms, s, m or h)",
        "11:43 E004 protocol \"tcp\" of [listener.f] is known but not supported by this version",
        "12:43 E007 `protocol` in [listener.g] must be \"postgres\" or \"http\", not \"postgresql\"",
        "12:82 E007 `role` in [listener.g] must be \"primary\" or \"standby\", not \"Primary\"",
        "12:93 E004 `tls` in [listener.g] (TLS for clients of PostgreSQL) is known but not supported by this version",
        "13:1 E006 `protocol` is missing in [listener.h]",
        "13:1 E006 `role` is missing in [listener.h]",
        "13:1 E006 `service` is missing in [listener.h]",
        "13:14 E005 `bind` in [listener.h] must be a string, not an integer",
        "13:30 E005 `max_lag` in [listener.h] must be a string, not an integer",
        "14:101 E010 `max_lag` in [listener.i]: \"99999999999999999999s\" is not a duration",
        "15:101 E010 `max_lag` in [listener.j]: \"99999999999999999h\" is too long",
        "16:1 E006 `bind` is missing in [listener.k]",
        "16:1 E006 `protocol` is missing in [listener.k]",
        "16:1 E006 `role` is missing in [listener.k]",
        "16:1 E006 `service` is missing in [listener.k]",
        "17:1 E008 listener name `L` starts with `L`, a name starts with a letter a-z",
        "17:5 E005 `L` in [listener] must be a table, not a string",
    ]);
}

#[test]
#[rustfmt::skip]
fn settings() {
    check_main("parameters = { fsync = false, synchronous_commit = \"off\", wal_level = \"minimal\", max_wal_senders = 2 }\n", &[
        "5:24 E023 `fsync` in [service.main.parameters] must be on, not \"off\": an acknowledged commit must be on disk",
        "5:52 E023 `synchronous_commit` in [service.main.parameters] must be on or remote_apply, not \"off\": a commit must be on a standby's disk before it is acknowledged",
        "5:71 E023 `wal_level` in [service.main.parameters] must be replica or logical, not \"minimal\": standbys need the WAL whole",
        "5:100 E023 `max_wal_senders` in [service.main.parameters] must be 10 or more, not \"2\": every standby and every clone needs one",
    ]);
    check_main("[service.main.parameters]\nport = 5432\nprimary_conninfo = \"\"\nsynchronous_standby_names = \"*\"\nrecovery_target_time = \"now\"\nhot_standby = false\nserver_version = \"15\"\n", &[
        "6:1 E022 `port` in [service.main.parameters] is Everhold's: ports are given under [node]",
        "7:1 E022 `primary_conninfo` in [service.main.parameters] is Everhold's: whom a standby follows is decided by the epoch",
        "8:1 E022 `synchronous_standby_names` in [service.main.parameters] is Everhold's: agreed in the store; see `synchronous`",
        "9:1 E022 `recovery_target_time` in [service.main.parameters] is Everhold's: a standby that stops early can neither be promoted nor follow",
        "10:15 E023 `hot_standby` in [service.main.parameters] must be on, not \"off\": a standby must answer its agent and serve reads",
        "11:1 E022 `server_version` in [service.main.parameters] is only shown by PostgreSQL",
    ]);
    check_main("[service.main.parameters]\nshared_bufers = \"1GB\"\nshared_buffers = \"256MiB\"\nwork_mem = \"lots\"\njit = \"maybe\"\nmax_connections = 0\nzzzz = 1\nno_extension. = 1\n", &[
        "12:15 E001 not TOML: unquoted keys cannot be empty, expected letters, numbers, `-`, `_`",
    ]);
    check_main("[service.main.parameters]\nshared_bufers = \"1GB\"\nshared_buffers = \"256MiB\"\nwork_mem = \"lots\"\njit = \"maybe\"\nmax_connections = 0\nzzzz = 1\n\"a b.c\" = 1\n", &[
        "6:1 E020 PostgreSQL has no setting `shared_bufers` (in [service.main.parameters]); did you mean `shared_buffers`?",
        "7:18 E021 `shared_buffers` in [service.main.parameters] must be a whole number from 16 to 1073741823 (of 8kB), or with a unit: B, kB, MB, GB, TB, not \"256MiB\"",
        "8:12 E021 `work_mem` in [service.main.parameters] must be a whole number from 64 to 2147483647 (of kB), or with a unit: B, kB, MB, GB, TB, not \"lots\"",
        "9:7 E021 `jit` in [service.main.parameters] must be on or off, not \"maybe\"",
        "10:19 E021 `max_connections` in [service.main.parameters] must be a whole number from 1 to 262143, not \"0\"",
        "11:1 E020 PostgreSQL has no setting `zzzz` (in [service.main.parameters])",
        "12:1 E020 PostgreSQL has no setting `a b.c` (in [service.main.parameters])",
    ]);
    check_main("parameters.work_mem = \"1MB\"\nparameters.work_mem.x = 1\n", &[
        "6:12 E001 not TOML: cannot extend value of type string with a dotted key",
    ]);
    check_main("[service.main.parameters]\nwork_mem = [1]\nWork_Mem = 64\nwork_mam = { a = {} }\nlog_line_prefix = \"a\\nport = 1\"\nTimeZone = 1979-05-27\n", &[
        "6:12 E005 setting `work_mem` must be a string, a number or true or false, not an array",
        "8:18 E005 setting `work_mam.a` must be a string, a number or true or false, not an inline table",
        "9:19 E021 `log_line_prefix` in [service.main.parameters] must be text without line ends or other control characters, not \"a\\nport = 1\"",
        "10:12 E005 setting `TimeZone` must be a string, a number or true or false, not a datetime",
    ]);
    check_main("[service.main.parameters]\nwork_mem = 64\nWORK_MEM = 65\n", &[
        "7:1 E013 setting `work_mem` is given twice in [service.main.parameters]",
    ]);
}

#[test]
#[rustfmt::skip]
fn ports() {
    check_main("[node]\na = { address = \"10.0.0.1\" }\nb = { address = \"10.0.0.1\" }\n", &[
        "7:1 E014 the range of node b (10.0.0.1:15400-15499) collides with the range of node a (10.0.0.1:15400-15499) (line 6)",
    ]);
    check_main("[node]\na = { address = \"10.0.0.1\", ports = \"15400-15499\" }\nb = { address = \"10.0.0.1\", ports = \"15450-15500\" }\nc = { address = \"10.0.0.2\", ports = \"15450-15500\" }\n", &[
        "7:37 E014 the range of node b (10.0.0.1:15450-15500) collides with the range of node a (10.0.0.1:15400-15499) (line 6)",
    ]);
    check_main("[node]\na = { address = \"10.0.0.1\", ports = \"15290-15310\" }\nb = { address = \"10.0.0.2\", ports = \"15290-15310\" }\n", &[
        "6:37 E014 the range of node a (10.0.0.1:15290-15310) collides with the store (10.0.0.1:15300)",
        "6:37 E014 the range of node a (10.0.0.1:15290-15310) collides with the store's peer port (10.0.0.1:15301)",
    ]);
    let listener = |binds: &[&str]| -> String {
        let lines: Vec<String> = binds
            .iter()
            .enumerate()
            .map(|(i, bind)| format!("l{i} = {{ bind = \"{bind}\", protocol = \"postgres\", service = \"main\", role = \"primary\" }}\n"))
            .collect();
        format!("[listener]\n{}", lines.concat())
    };
    check_main(&listener(&["127.0.0.1:6432", "127.0.0.1:6432", "0.0.0.0:6432", "10.0.0.1:6432"]), &[
        "7:15 E014 listener l1 (127.0.0.1:6432) collides with listener l0 (127.0.0.1:6432) (line 6)",
        "8:15 E014 listener l2 (0.0.0.0:6432) collides with listener l0 (127.0.0.1:6432) (line 6)",
        "8:15 E014 listener l2 (0.0.0.0:6432) collides with listener l1 (127.0.0.1:6432) (line 7)",
        "9:15 E014 listener l3 (10.0.0.1:6432) collides with listener l2 (0.0.0.0:6432) (line 8)",
    ]);
    check_main(&listener(&["127.0.0.1:7070", "127.0.0.1:15400", "0.0.0.0:15599", "127.0.0.1:15300", "[::]:15301", "10.0.0.1:15400"]), &[
        "6:15 E014 listener l0 (127.0.0.1:7070) collides with the API (127.0.0.1:7070)",
        "7:15 E014 listener l1 (127.0.0.1:15400) collides with the range of node a (127.0.0.1:15400-15499)",
        "8:15 E014 listener l2 (0.0.0.0:15599) collides with the range of node b (127.0.0.1:15500-15599)",
        "9:15 E014 listener l3 (127.0.0.1:15300) collides with the store (127.0.0.1:15300)",
        "10:15 E014 listener l4 ([::]:15301) collides with the store's peer port (127.0.0.1:15301)",
    ]);
    check_main("[api]\nbind = \"127.0.0.1:6433\"\n", &[
        "6:8 E014 the API (127.0.0.1:6433) collides with listener read (127.0.0.1:6433)",
    ]);
    let far = "[node]\na = { address = \"10.0.0.1\" }\nb = { address = \"10.0.0.2\", ports = \"16000-16099\" }\n[gateway]\nnodes = [\"b\"]\n";
    check_main(&format!("{far}{}", listener(&["0.0.0.0:15450", "10.0.0.1:16050"])), &[]);
    check_main(&format!("{far}{}", listener(&["0.0.0.0:16050", "10.0.0.2:16050"])), &[
        "11:15 E014 listener l0 (0.0.0.0:16050) collides with the range of node b (10.0.0.2:16000-16099) (line 7)",
        "12:15 E014 listener l1 (10.0.0.2:16050) collides with listener l0 (0.0.0.0:16050) (line 11)",
        "12:15 E014 listener l1 (10.0.0.2:16050) collides with the range of node b (10.0.0.2:16000-16099) (line 7)",
    ]);
    let mut many = "[node]\na = { address = \"10.0.0.1\", ports = \"15400-15409\" }\n".to_owned();
    for i in 0..9 {
        many += &format!("[service.s{i}]\nkind = \"postgres\"\n");
    }
    check_main(&format!("{many}{}", listener(&["10.0.0.1:6432"])), &[
        "6:37 E019 node a has 10 instances and an agent, but only the ports 15400-15409",
    ]);
}

#[test]
fn how_a_fault_is_shown() {
    let faults = load(&format!("{HEAD}synchronus = 1\n"), "everhold.toml").expect_err("faulty");
    assert_eq!(
        faults[0].to_string(),
        "everhold.toml:5:1: E003 unknown key `synchronus` in [service.main]; did you mean \
         `synchronous`?; next step: write `synchronous`, or take the key out"
    );
    assert_eq!(
        serde_json::to_string(&faults[0]).expect("encodes"),
        r#"{"code":"E003","file":"everhold.toml","line":5,"column":1,"message":"unknown key `synchronus` in [service.main]; did you mean `synchronous`?","next":"write `synchronous`, or take the key out"}"#
    );
}

#[test]
#[rustfmt::skip]
fn columns_count_characters() {
    check(&format!("{HEAD}database = \"äöü\" # é\nowner = \"é\" \n"), &[
        "5:12 E008 database name `äöü` starts with `ä`, a name starts with a letter a-z",
        "6:9 E008 owner name `é` starts with `é`, a name starts with a letter a-z",
    ]);
    check(&format!("{HEAD}parameters = {{ a.b = \"äöü\", portt = 1 }}\r\nx = 1\r\n"), &[
        "5:29 E020 PostgreSQL has no setting `portt` (in [service.main.parameters]); did you mean `port`?",
        "6:1 E003 unknown key `x` in [service.main]",
    ]);
}

/// Whatever is written, the answer is a spec or a list of faults, never a panic.
#[test]
fn torn_documents() {
    let whole = format!(
        "{HEAD}nodes = [\"a\"]\ninstance.a = {{ priority = 1 }}\nparameters = {{ a.b = 'ä' }}\n\
         [node]\na = {{ address = \"::1\" }}\n[listener]\nw = {{ bind = \"[::1]:1\" }}\n"
    );
    for end in (0..=whole.len()).filter(|&end| whole.is_char_boundary(end)) {
        for tail in ["", "\"", "}", "]", "=", "\n[node]\n", "\0", "a"] {
            if let Err(faults) = load(&format!("{}{tail}", &whole[..end]), "f") {
                assert!(faults.iter().all(|it| it.line.is_some_and(|line| line > 0)), "{faults:?}");
            }
        }
    }
}

#[test]
fn files_that_are_not_read() {
    let directory = tempfile::tempdir().expect("directory");
    let check = |name: &str, bytes: Option<&[u8]>, expected: &str| {
        let path = directory.path().join(name);
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).expect("write");
        }
        let faults = load_file(&path, StorePorts::default()).expect_err("faulty");
        assert_eq!(
            (faults.len(), faults[0].code, faults[0].message.as_str()),
            (1, Code::Unreadable, expected)
        );
    };
    check("none", None, "cannot read the spec: No such file or directory (os error 2)");
    check("", None, "cannot read the spec: it is not a regular file");
    check("x", Some(b"a = \"\xff\""), "cannot read the spec: it is not UTF-8 text (byte 5)");
    check(
        "y",
        Some(&vec![b'#'; (1 << 20) + 1]),
        "cannot read the spec: it is larger than 1048576 bytes",
    );
}

#[test]
fn the_manual_is_right() {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/spec.md");
    let manual = std::fs::read_to_string(manual).expect("docs/spec.md");
    let blocks = manual.split("```toml\n").skip(1);
    let blocks = blocks.map(|block| block.split_once("```").expect("end of block").0);
    let [service, inside, route, degraded, default] = blocks.collect::<Vec<_>>()[..] else {
        panic!("five blocks")
    };
    let tour = Spec::tour("/usr/bin/everhold", None);
    assert_eq!(load(default, "spec.md").expect("valid"), tour);
    let listener = "[listener]\nweb = { bind = \"0.0.0.0:8080\", protocol = \"http\" }\n";
    let route = format!("{route}cache = {{}}\n{degraded}");
    load(&format!("{HEAD}{service}{listener}{route}"), "spec.md").expect("valid");
    let billing = "[service.billing]\nkind = \"http\"\naddresses = [\"10.0.0.1:80\"]\n";
    load(&format!("{HEAD}{inside}{billing}"), "spec.md").expect("valid");
    for (name, _) in everhold_core::spec::parameters::rules() {
        let named = manual.contains(&format!("`{name}`")) || name.starts_with("recovery_target_");
        assert!(named, "{name} is not in docs/spec.md");
    }
    for name in everhold_core::spec::NODE_NAMES_RESERVED
        .iter()
        .chain(&everhold_core::spec::SERVICE_NAMES_RESERVED)
    {
        assert!(manual.contains(&format!("`{name}`")), "{name} is not in docs/spec.md");
    }
}

#[test]
fn an_etcd_that_is_there() {
    let tls = "ca = \"/ca.pem\"\ncert = \"/cert.pem\"\nkey = \"/key.pem\"\n";
    let store = |text: &str| {
        let spec = load(&format!("{HEAD}[store]\n{text}"), "f").expect("valid");
        assert!(spec.store_node().is_none() && spec.store_nodes().next().is_none());
        spec.store.expect("a store")
    };
    let secure = store(&format!("etcd = [\"https://10.0.0.1:2379\", \"https://db:2379\"]\n{tls}"));
    assert_eq!(secure.etcd, ["https://10.0.0.1:2379", "https://db:2379"]);
    assert_eq!(secure.tls.expect("files").key, "/key.pem");
    assert!(store("etcd = [\"http://[::1]:2379\", \"http://localhost:2380\"]\n").tls.is_none());
    check_main("[store]\n", &["5:2 E006 `etcd` is missing in [store]"]);
    check_main(
        "[store]\netcd = []\nuser = \"x\"\n",
        &["6:8 E019 `etcd` in [store] names 0 endpoints", "7:1 E003 unknown key `user` in [store]"],
    );
    check_main(
        "[store]\netcd = [\"10.0.0.1:2379\", \"https://a:b\", \"ftp://a:1\"]\n",
        &[
            "6:9 E011 `10.0.0.1:2379` in [store] is not of the form https://HOST:PORT",
            "6:26 E011 `https://a:b` in [store] is not of the form https://HOST:PORT",
            "6:41 E011 `ftp://a:1` in [store] is not of the form https://HOST:PORT",
        ],
    );
    check_main(
        "[store]\netcd = [\"https://a:1\", \"https://a:1\", \"http://127.0.0.1:1\"]\nca = \"ca.pem\"\nkey = \"/k\"\n",
        &[
            "5:2 E006 `cert` is missing in [store]",
            "6:24 E013 `https://a:1` stands twice in [store]",
            "6:39 E011 `etcd` in [store] mixes http and https",
            "7:6 E007 `ca` in [store] must be an absolute path, not \"ca.pem\"",
        ],
    );
    check_main(
        "[store]\netcd = [\"http://10.0.0.1:2379\"]\nca = \"/ca.pem\"\n",
        &[
            "6:9 E028 http://10.0.0.1:2379 in [store] crosses the network in the clear, and all that is agreed with it",
            "7:6 E026 `ca` in [store] has no meaning with http",
        ],
    );
}

#[test]
fn backups() {
    let vault = "[repository]\nvault = { url = \"file:///backups\", key_file = \"/vault.key\" }\n";
    let west = "west = { url = \"s3://shop/eu/\", endpoint = \"https://s3.example.org:9000\", region = \"us\", credentials_file = \"/s3\", key_file = \"/west.key\" }\n";
    let text =
        format!("{HEAD}[service.main.backup]\nrepositories = [\"vault\", \"west\"]\n{vault}{west}");
    let spec = load(&text, "f").expect("valid");
    let backup = spec.postgres("main").and_then(|it| it.backup.clone()).expect("backups");
    assert_eq!((backup.copies, backup.keep.to_string().as_str()), (2, "30 days"));
    assert_eq!(backup.plan.full.to_string(), "0 2 * * *");
    assert_eq!(spec.repositories["west"].url.to_string(), "s3://shop/eu");
    let record = record::to_json(&spec).expect("a record");
    assert!(record.starts_with("{\"version\":2,"), "{record}");
    assert_eq!(record::from_json(&record).expect("a spec"), spec);
    assert!(
        record::to_json(&load(HEAD, "f").expect("valid"))
            .expect("a record")
            .contains("\"version\":1,")
    );

    let some = "copies = 1\nfull = \"0 3 * * sun\"\nkeep = { days = 7, weekly = 8 }\nprove = { schedule = \"@weekly\", checks = \"/checks.sql\" }\nclone_from = \"repository\"\n";
    let text = format!("{HEAD}[service.main.backup]\nrepositories = [\"vault\"]\n{some}{vault}");
    let other = load(&text, "f").expect("valid");
    let backup = other.postgres("main").and_then(|it| it.backup.clone()).expect("backups");
    assert_eq!(backup.keep.to_string(), "7 days, 8 weekly");
    assert_eq!(backup.prove.checks.as_deref(), Some("/checks.sql"));
    assert_eq!(backup.clone_from, CloneFrom::Repository);
    let changed: Vec<String> =
        everhold_core::spec::diff(&spec, &other).into_iter().map(|change| change.path).collect();
    let below =
        ["clone_from", "copies", "full", "keep", "prove.checks", "prove.schedule", "repositories"];
    let mut expected: Vec<String> =
        below.iter().map(|key| format!("service.main.backup.{key}")).collect();
    expected.insert(0, "repository.west".to_string());
    assert_eq!(changed, expected);

    check_main(
        "[service.main.backup]\nrepositories = []\ncopies = 2\nfull = \"never\"\nkeep = { days = -1 }\nprove = { checks = \"a.sql\" }\n",
        &[
            "5:15 E019 `repositories` in [service.main.backup] is empty",
            "7:10 E007 `copies` in [service.main.backup] must be from 1 to the number of repositories (0), not 2",
            "8:8 E029 `full` in [service.main.backup]: a schedule has five fields (minute hour day month weekday), this one has 1",
        ],
    );
    check_main(
        &format!(
            "[service.main.backup]\nrepositories = [\"west\"]\nkeep = {{ days = -1, weeks = 1 }}\nprove = {{ checks = \"a.sql\" }}\n{vault}"
        ),
        &[
            "6:17 E012 no repository `west` is declared (in [service.main.backup])",
            "7:17 E007 `keep.days` in [service.main.backup] must be from 0 to 3660, not -1",
            "7:21 E003 unknown key `weeks` in [service.main.backup.keep]; did you mean `weekly`?",
            "8:20 E007 `prove.checks` in [service.main.backup] must be an absolute path, not \"a.sql\"",
        ],
    );
    check_main(
        "[repository]\na = { url = \"ftp://x\" }\nb = { url = \"s3://shop\", endpoint = \"http://10.0.0.1:9000\", key_file = \"/k\" }\nc = { url = \"file:///x\", credentials_file = \"/s\", key_file = \"k\" }\nd = { url = \"file:///y\", key_file = \"/k\" }\ne = { url = \"file:///y\", key_file = \"/k\" }\n",
        &[
            "6:1 E006 `key_file` is missing in [repository.a]",
            "6:13 E011 `url` of [repository] a is \"ftp://x\": it is neither file:///PATH nor s3://BUCKET/PREFIX",
            "7:13 E006 `credentials_file` is missing in [repository] b",
            "7:37 E028 http://10.0.0.1:9000 in [repository] b crosses the network in the clear, and who stores what with it",
            "8:45 E026 `credentials_file` of [repository] c has no meaning for a directory",
            "8:62 E007 `key_file` in [repository] c must be an absolute path, not \"k\"",
            "10:1 E013 another repository lies at file:///y too",
        ],
    );
}

#[test]
fn a_spec_or_what_a_repository_printed_of_one() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("f");
    let read = |text: &str| {
        std::fs::write(&path, text).expect("write");
        load_file_or_record(&path)
    };
    let spec = load(HEAD, "f").expect("valid");
    let record = record::to_json(&spec).expect("a record");
    let value: serde_json::Value = serde_json::from_str(&record).expect("JSON");
    let pretty = serde_json::to_string_pretty(&value).expect("text");
    let dated = serde_json::json!({ "since": "2026-11-20T10:00:00Z", "spec": value }).to_string();
    for text in [HEAD, &record, &format!("\n{pretty}\n"), &dated] {
        assert_eq!(read(text), Ok(spec.clone()), "of\n{text}");
    }
    let newer = record.replacen(r#""version":"#, r#""version":9"#, 1);
    let cut = &record[..record.len() / 2];
    #[rustfmt::skip]
    let cases = [
        (newer.as_str(), Code::NewerRecord, "this Everhold reads up to"),
        (cut, Code::TornRecord, "no record of a spec: EOF"),
        (r#"{"since": "now"}"#, Code::TornRecord, "missing field `version`"),
        ("[1, 2]", Code::Syntax, "not TOML"),
        ("no spec at all", Code::Syntax, "not TOML"),
    ];
    for (text, code, said) in cases {
        let faults = read(text).expect_err("faulty");
        assert_eq!((faults.len(), faults[0].code), (1, code), "{faults:?}");
        assert!(faults[0].message.contains(said), "{faults:?}");
        assert_eq!(faults[0].file.as_deref(), path.to_str());
    }
}
