//! HTTP services, listeners and routes.

use everhold_core::spec::{
    Affinity, Balance, HashKey, HttpSpec, PathMatch, Protocol, Source, StopSignal, Version, diff,
};

use super::*;

/// A database, what is served by one command, and who gets to it.
const WEB: &str = r#"[service.api]
kind = "http"
command = ["serve", "{port}"]
[listener]
web = { bind = "0.0.0.0:8080", protocol = "http" }
[route.api]
listener = "web"
service = "api"
"#;

fn spec(text: &str) -> everhold_core::spec::Spec {
    load(&format!("{HEAD}{text}"), "f").expect("valid")
}

#[test]
fn a_whole_service() {
    let text = r#"[service.api]
kind = "http"
instances = 2
nodes = ["c", "a"]
command = ["/opt/api/serve", "--port={port}", "{\"a\": {}}"]
env = { DATABASE_URL = "{dsn:main}", _x1 = "{instance} on {node}" }
user = "api"
directory = "/srv/api"
stop = { signal = "INT", grace = "1m" }
health = { path = "/healthz?deep=1", interval = "2s", timeout = "100ms", healthy_threshold = 1, unhealthy_threshold = 5, start_within = "3m", restart_after = "0s" }
balance = "consistent_hash"
hash = "header:X-Tenant"
affinity = { cookie = "Session" }
slow_start = "0s"
timeout = "5s"
try_timeout = "1s"
idle_timeout = "5m"
retries = 0
version = "2"
limits = { cpu = 0.5, memory = "256MiB" }
[service.old]
kind = "http"
addresses = ["10.0.9.1:8080", { address = "[::1]:81", zone = "eu-1", weight = 2 }, { address = "old.example.org:82" }]
[listener]
web = { bind = "0.0.0.0:8443", protocol = "http", tls = { cert = "/web.pem", key = "/web.key" }, trusted_proxies = ["10.0.0.0/8", "fd00::1"] }
plain = { bind = "0.0.0.0:8080", protocol = "http" }
write = { bind = "127.0.0.1:6432", protocol = "postgres", service = "main", role = "primary" }
[route.api]
listener = "web"
match = { host = "API.example.org", path_prefix = "/v1", methods = ["GET", "POST"], headers = { X-Canary = "yes" } }
service = "api"
timeout = "10s"
[route.wild]
listener = "web"
match = { host = "*.example.org", path = "/%C3%A4" }
service = "old"
[route.rest]
listener = "plain"
service = "old"
"#;
    let spec = spec(text);
    let api = spec.http("api").expect("api");
    let run = api.run().expect("it is run");
    assert_eq!(run.command[2], "{\"a\": {}}");
    assert_eq!(run.env["DATABASE_URL"], "{dsn:main}");
    assert_eq!((run.stop.signal, run.stop.grace_ms), (StopSignal::Int, 60_000));
    assert_eq!((run.limits.cpu_milli, run.limits.memory_bytes), (Some(500), Some(256 << 20)));
    assert_eq!((run.user.as_deref(), run.directory.as_deref()), (Some("api"), Some("/srv/api")));
    let placed: Vec<(&str, u16)> =
        run.placed.iter().map(|(id, it)| (id.as_str(), it.port)).collect();
    assert_eq!(placed, [("a.1", 15401), ("c.1", 15601)]);
    assert_eq!(api.balance, Balance::ConsistentHash(HashKey::Header("x-tenant".into())));
    assert_eq!(api.affinity, Some(Affinity::Cookie("Session".into())));
    assert_eq!((api.version, api.retries, api.slow_start_ms), (Version::Http2, 0, 0));
    assert_eq!((api.timeout_ms, api.try_timeout_ms), (5_000, Some(1_000)));
    assert_eq!(api.idle_timeout_ms, 300_000);
    assert_eq!((api.health.interval_ms, api.health.unhealthy_threshold), (2_000, 5));
    assert_eq!((api.health.start_within_ms, api.health.restart_after_ms), (180_000, 0));
    let Source::Addresses(old) = &spec.http("old").expect("old").source else {
        panic!("others run it")
    };
    let shown: Vec<String> = old
        .iter()
        .map(|it| format!("{} {} {:?} {}", it.address, it.port, it.zone, it.weight))
        .collect();
    assert_eq!(
        shown,
        ["10.0.9.1 8080 None 1", "::1 81 Some(\"eu-1\") 2", "old.example.org 82 None 1"]
    );
    let route = &spec.routes["api"];
    assert_eq!(route.when.host.as_deref(), Some("api.example.org"));
    assert_eq!(route.when.path, Some(PathMatch::Prefix("/v1".into())));
    assert_eq!(route.when.headers["x-canary"], "yes");
    assert_eq!(spec.routes["wild"].when.path, Some(PathMatch::Exact("/%C3%A4".into())));
    assert_eq!(spec.listeners["web"].tls().expect("tls").key, "/web.key");
    assert!(spec.listeners["plain"].tls().is_none());
    let Protocol::Http(web) = &spec.listeners["web"].protocol else { panic!("it is HTTP") };
    let known: Vec<String> = web.trusted_proxies.iter().map(|it| it.to_string()).collect();
    assert_eq!(known, ["10.0.0.0/8", "fd00::1"]);

    let record = record::to_json(&spec).expect("a record");
    assert!(record.starts_with("{\"version\":3,"), "{record}");
    assert_eq!(record::from_json(&record).expect("a spec"), spec);
}

/// What is not said is what the manual says; and older versions refuse each thing that is new.
#[test]
fn the_least_of_each() {
    let spec = spec(WEB);
    let api = spec.http("api").expect("api");
    let run = api.run().expect("it is run");
    assert_eq!(run.placed.keys().collect::<Vec<_>>(), ["a.1", "b.1", "c.1"]);
    assert_eq!((run.stop.signal, run.stop.grace_ms), (StopSignal::Term, 10_000));
    assert_eq!((&api.balance, api.version), (&Balance::PeakEwma, Version::Http1));
    assert_eq!((api.timeout_ms, api.retries, api.slow_start_ms), (60_000, 2, 10_000));
    assert_eq!((api.idle_timeout_ms, api.hedge_percentile), (3_600_000, None));

    // A database has its listeners whatever stands beside it, if none are declared.
    let api = WEB.split_once("[listener]").expect("there").0;
    let alone = load(&format!("{HEAD}{api}"), "f").expect("valid");
    assert_eq!(alone.listeners, everhold_core::spec::Spec::default_listeners("main"));
    let no_database = HEAD.replace("main", "api").replace("\"postgres\"", "\"http\"");
    let http_only = load(&format!("{no_database}command = [\"x\"]\n"), "f").expect("valid");
    assert!(http_only.listeners.is_empty());

    // Records from before there was such a key.
    let record = record::to_json(&spec).expect("a record");
    let before = record.replace("\"idle_timeout_ms\":3600000,", "");
    assert!(before.len() < record.len(), "{record}");
    assert_eq!(record::from_json(&before).expect("a spec"), spec);

    let version = |spec: &everhold_core::spec::Spec| {
        let record = record::to_json(spec).expect("a record");
        assert_eq!(record::from_json(&record).expect("a spec"), *spec);
        record[..12].to_owned()
    };
    for part in ["services", "listeners", "routes"] {
        let mut one = load(HEAD, "f").expect("valid");
        assert_eq!(version(&one), "{\"version\":1");
        match part {
            "services" => one.services.extend(spec.services.clone()),
            "listeners" => one.listeners.extend(spec.listeners.clone()),
            _ => one.routes.extend(spec.routes.clone()),
        }
        assert_eq!(version(&one), "{\"version\":3", "{part}");
    }
}

/// Listeners are written as they were before there was HTTP.
#[test]
fn records_of_before() {
    let record = record::to_json(&load(HEAD, "f").expect("valid")).expect("a record");
    let listeners = r#""listeners":{"read":{"bind":"127.0.0.1:6433","protocol":"postgres","service":"main","role":"standby","max_lag_ms":1000},"write":{"bind":"127.0.0.1:6432","protocol":"postgres","service":"main","role":"primary"}}"#;
    assert!(record.contains(listeners), "{record}");
}

#[test]
#[rustfmt::skip]
fn services() {
    let check = |keys: &str, expected: &[&str]| {
        check_main(&format!("[service.api]\nkind = \"http\"\n{keys}"), expected);
    };
    check("instances = 1\n", &["5:10 E006 `command` is missing in [service.api]"]);
    check("command = []\nintances = 1\n", &[
        "7:11 E019 `command` in [service.api] is empty",
        "8:1 E003 unknown key `intances` in [service.api]; did you mean `instances`?",
    ]);
    check("command = [\"bin/serve\"]\ninstances = 201\nnodes = [\"d\"]\nuser = \"a b\"\ndirectory = \"srv\"\n", &[
        "7:12 E007 \"bin/serve\" in `command` of [service.api] is not a program",
        "8:13 E007 `instances` in [service.api] must be from 0 to 200, not 201",
        "9:10 E012 no node `d` is declared (in [service.api])",
        "10:8 E007 `user` in [service.api] must be the name of a user, not \"a b\"",
        "11:13 E007 `directory` in [service.api] must be an absolute path, not \"srv\"",
    ]);
    check("command = [\"x\", \"{prot}\", \"{dsn:mian}\", \"{dsn:api}\", \"{ port }\", \"{\"]\nenv = { 1A = \"x\", B = 1, C = \"{host}\" }\n", &[
        "7:17 E031 `{prot}` in [service.api] stands for nothing",
        "7:27 E012 no service `mian` is declared (in `{dsn:mian}` of [service.api]); did you mean `main`?",
        "7:41 E030 service `api` (in `{dsn:api}` of [service.api]) is of kind http, not postgres",
        "8:9 E007 `1A` in `env` of [service.api] is not the name of a variable",
        "8:23 E005 `B` in [service.api.env] must be a string, not an integer",
        "8:30 E031 `{host}` in [service.api] stands for nothing",
    ]);
    check("command = [\"x\"]\nstop = { signal = \"KILL\", grace = \"2h\" }\nlimits = { cpu = 0, memory = \"256MB\" }\nversion = \"3\"\n", &[
        "8:19 E007 `stop.signal` in [service.api] must be \"TERM\" or \"INT\" or \"QUIT\" or \"HUP\" or \"USR1\" or \"USR2\", not \"KILL\"",
        "8:35 E007 `stop.grace` in [service.api] must be from 0s to 1h, not \"2h\"",
        "9:18 E007 `limits.cpu` in [service.api] must be from 0.01 to 1024 cores, not 0",
        "9:30 E007 `limits.memory` in [service.api] must be from 1MiB to 1024TiB, not \"256MB\"",
        "10:11 E007 `version` in [service.api] must be \"1.1\" or \"2\", not \"3\"",
    ]);
    check("command = [\"x\"]\nhealth = { path = \"x\", interval = \"10ms\", timeout = \"2m\", healthy_threshold = 0, start_within = \"0s\", restart_after = \"2h\" }\nslow_start = \"1h\"\ntimeout = \"1s\"\ntry_timeout = \"2s\"\nretries = 11\nidle_timeout = \"100ms\"\n", &[
        "8:19 E007 `health.path` in [service.api] is not a path: \"x\"",
        "8:35 E007 `health.interval` in [service.api] must be from 100ms to 1h, not \"10ms\"",
        "8:53 E007 `health.timeout` in [service.api] must be from 10ms to 1m, not \"2m\"",
        "8:79 E007 `health.healthy_threshold` in [service.api] must be from 1 to 100, not 0",
        "8:97 E007 `health.start_within` in [service.api] must be from 1s to 1h, not \"0s\"",
        "8:119 E007 `health.restart_after` in [service.api] must be from 0s to 1h, not \"2h\"",
        "9:14 E007 `slow_start` in [service.api] must be from 0s to 10m, not \"1h\"",
        "11:15 E007 `try_timeout` in [service.api] is longer than all tries may take",
        "12:11 E007 `retries` in [service.api] must be from 0 to 10, not 11",
        "13:16 E007 `idle_timeout` in [service.api] must be from 1s to 24h, not \"100ms\"",
    ]);
    for text in ["p79", "p100", "p5", "95", "p9x", "p+9", "P95", "true", ""] {
        check(&format!("command = [\"x\"]\nhedge = \"{text}\"\n"), &[
            &format!("8:9 E007 `hedge` in [service.api] must be from \"p80\" to \"p99\", not \"{text}\""),
        ]);
    }
    check("command = [\"x\"]\nhedge = \"p95\"\nretries = 0\n", &[
        "8:9 E026 `hedge` in [service.api] has no meaning: `retries` allows no further try",
    ]);
    check("command = [\"x\"]\nhedge = \"p95\"\naffinity = { cookie = \"a\" }\n", &[
        "8:9 E026 `hedge` in [service.api] has no meaning: `affinity` keeps requests where they are",
    ]);
    check("command = [\"x\"]\nbalance = \"random\"\nhash = \"path\"\n", &[
        "8:11 E007 `balance` in [service.api] must be \"round_robin\" or \"weighted\" or \"least_requests\" or \"least_load\" or \"peak_ewma\" or \"consistent_hash\", not \"random\"",
    ]);
    check("command = [\"x\"]\nbalance = \"consistent_hash\"\n", &["8:11 E006 `hash` is missing in [service.api]"]);
    check("command = [\"x\"]\nbalance = \"consistent_hash\"\nhash = \"header:a b\"\naffinity = {}\n", &[
        "9:8 E007 `hash` in [service.api] names no part of a request: \"header:a b\"",
        "10:1 E019 `affinity` in [service.api] needs either `cookie` or `header`",
    ]);
    check("command = [\"x\"]\nhash = \"path\"\naffinity = { cookie = \"a;b\" }\n", &[
        "8:8 E026 `hash` in [service.api] has a meaning with balance \"consistent_hash\" only",
        "9:23 E007 `affinity.cookie` in [service.api] is not a name that HTTP allows: \"a;b\"",
    ]);
    check("command = [\"x\"]\ninstances = 3\nlimits = { cpu = 1 }\naddresses = [\"10.0.0.1\", \"h:0\", \"::1:80\", \"a:1\", \"a:1\", 7, { adress = \"x\", weight = 0 }]\n", &[
        "7:1 E026 `command` in [service.api] has no meaning beside `addresses`",
        "8:1 E026 `instances` in [service.api] has no meaning beside `addresses`",
        "9:1 E026 `limits` in [service.api] has no meaning beside `addresses`",
        "10:14 E011 `10.0.0.1` in `addresses` of [service.api] is not of the form HOST:PORT",
        "10:26 E011 `h:0` in `addresses` of [service.api] is not of the form HOST:PORT",
        "10:33 E011 `::1:80` in `addresses` of [service.api] is not of the form HOST:PORT",
        "10:50 E013 address `a:1` stands twice in [service.api]",
        "10:57 E005 `addresses` in [service.api] lists strings or tables, not an integer",
        "10:60 E006 `address` is missing in [service.api.addresses]",
        "10:62 E003 unknown key `adress` in [service.api.addresses]; did you mean `address`?",
        "10:85 E007 `weight` in [service.api] must be from 1 to 1000, not 0",
    ]);
    check("addresses = []\n", &["7:13 E019 `addresses` in [service.api] lists 0"]);
    check("command = [\"x\"]\ninstances = 40\n[node]\na = { address = \"10.0.0.1\", ports = \"15400-15420\" }\n", &[
        "5:10 E019 api has ports for 15 instances only",
    ]);
}

/// Services reach each other through listeners, each at the gateway of its own machine.
#[test]
fn listeners_that_services_name() {
    let nodes = "[node]\na = { address = \"10.0.0.1\" }\nb = { address = \"10.0.0.2\" }\n\
                 c = { address = \"10.0.0.3\" }\n[gateway]\nnodes = [\"a\", \"b\"]\n";
    let more = "write = { bind = \"127.0.0.1:6432\", protocol = \"postgres\", \
                service = \"main\", role = \"primary\" }\n[route.api]";
    let document = |nodes: &str, url: &str, keys: &str| {
        let web = WEB.replace("\"{port}\"]", &format!("\"{{url:{url}}}\"]\n{keys}"));
        format!("{HEAD}{}{nodes}", web.replace("[route.api]", more))
    };
    let away = document(nodes, "web", "");
    check(&away, &["5:10 E026 `{url:web}` in [service.api]: node c runs no gateway"]);
    // One that is at a known address is reached from everywhere.
    check(&away.replace("0.0.0.0:8080", "10.0.0.1:8080"), &[]);
    check(&document(nodes, "web", "nodes = [\"b\"]"), &[]);
    check(&document("", "web", ""), &[]);
    check(
        &document("", "write", ""),
        &["7:21 E030 listener `write` (in `{url:write}` of [service.api]) is of kind postgres, \
           not http"],
    );
    check(
        &document("", "wbe", ""),
        &["7:21 E012 no listener `wbe` is declared (in `{url:wbe}` of [service.api]); did you \
           mean `web`?"],
    );
}

#[test]
#[rustfmt::skip]
fn listeners_and_routes() {
    let check = |text: &str, expected: &[&str]| {
        check_main(&format!("[service.api]\nkind = \"http\"\ncommand = [\"x\"]\n{text}"), expected);
    };
    check("[listener]\nweb = { bind = \"0.0.0.0:80\", protocol = \"http\", service = \"api\", role = \"primary\", tls = { cert = \"c\" } }\npg = { bind = \"0.0.0.0:81\", protocol = \"postgres\", service = \"api\", role = \"primary\", tls = {} }\n", &[
        "9:1 E019 listener web has no route",
        "9:59 E026 `service` in [listener.web] has no meaning with protocol \"http\"",
        "9:73 E026 `role` in [listener.web] has no meaning with protocol \"http\"",
        "9:84 E006 `key` is missing in [listener.web.tls]",
        "9:99 E007 `cert` in [listener.web] tls must be an absolute path, not \"c\"",
        "10:62 E030 service `api` (in [listener.pg]) is of kind http, not postgres",
        "10:87 E004 `tls` in [listener.pg] (TLS for clients of PostgreSQL) is known but not supported by this version",
    ]);
    check("[listener]\nweb = { bind = \"0.0.0.0:80\", protocol = \"http\", trusted_proxies = [\"10.0.0.0/33\", \"lb.org\", \"10.1.0.0/8\", 1] }\npg = { bind = \"0.0.0.0:81\", protocol = \"postgres\", service = \"main\", role = \"primary\", trusted_proxies = [] }\n", &[
        "9:1 E019 listener web has no route",
        "9:68 E007 \"10.0.0.0/33\" of `trusted_proxies` in [listener.web] has to have 0 to 32 behind the slash",
        "9:83 E007 \"lb.org\" of `trusted_proxies` in [listener.web] is no address and no range such as 10.0.0.0/8",
        "9:93 E007 \"10.1.0.0/8\" of `trusted_proxies` in [listener.web] begins within a range: 10.0.0.0/8 is the whole of it",
        "9:107 E005 `trusted_proxies` in [listener.web] lists strings, not an integer",
        "10:106 E026 `trusted_proxies` in [listener.pg] has no meaning with protocol \"postgres\"",
    ]);
    let head = "[listener]\nweb = { bind = \"0.0.0.0:80\", protocol = \"http\" }\npg = { bind = \"0.0.0.0:81\", protocol = \"postgres\", service = \"main\", role = \"primary\" }\n";
    let routes = |text: &str, expected: &[&str]| {
        check(&format!("{head}[route]\n{text}"), expected);
    };
    routes("a = {}\nb = { listener = \"wbe\", service = \"main\" }\nc = { listener = \"pg\", service = \"apx\" }\nD = { listener = \"web\", service = \"api\", timeout = \"0s\", mach = {} }\n", &[
        "12:1 E006 `listener` is missing in [route.a]",
        "12:1 E006 `service` is missing in [route.a]",
        "13:18 E012 no listener `wbe` is declared (in [route.b]); did you mean `web`?",
        "13:35 E030 service `main` (in [route.b]) is of kind postgres, not http",
        "14:18 E030 listener `pg` (in [route.c]) is of kind postgres, not http",
        "14:34 E012 no service `apx` is declared (in [route.c]); did you mean `api`?",
        "15:1 E008 route name `D` starts with `D`, a name starts with a letter a-z",
        "15:52 E007 `timeout` in [route.D] must be from 1ms to 24h, not \"0s\"",
        "15:58 E003 unknown key `mach` in [route.D]; did you mean `match`?",
    ]);
    let when = |text: &str, expected: &[&str]| {
        routes(&format!("a.listener = \"web\"\na.service = \"api\"\na.match = {text}\n"), expected);
    };
    when("{ host = \"a.example.org:80\", path = \"v1\", path_prefix = \"/a?b\" }", &[
        "14:20 E007 `match.host` in [route.a] is not a host: \"a.example.org:80\"",
        "14:47 E007 `match.path` in [route.a] is not a path: \"v1\"",
        "14:67 E007 `match.path_prefix` in [route.a] is not a path: \"/a?b\"",
        "14:67 E026 `match.path_prefix` in [route.a] has no meaning beside `path`",
    ]);
    for host in ["", "*", "*.", "a.*.org", "[::1]", "*.10.0.0.1"] {
        when(&format!("{{ host = \"{host}\" }}"), &[
            &format!("14:20 E007 `match.host` in [route.a] is not a host: \"{host}\""),
        ]);
    }
    when("{ methods = [\"GET\", \"GET\", \"get\", \"A B\"], headers = { \"a b\" = \"x\", c = \" y\", X = \"1\", x = \"2\", z = 1 } }", &[
        "14:31 E013 method `GET` stands twice in [route.a]",
        "14:38 E007 no client asks with the method `get` ([route.a])",
        "14:45 E007 a method in [route.a] is not a name that HTTP allows: \"A B\"",
        "14:65 E007 a header in [route.a] is not a name that HTTP allows: \"a b\"",
        "14:82 E007 header `c` in [route.a] never has the value \" y\"",
        "14:97 E013 header `x` stands twice in [route.a]",
        "14:110 E005 `z` in [route.a.match.headers] must be a string, not an integer",
    ]);
    when("{ methods = [] }", &["14:23 E019 `match.methods` in [route.a] is empty"]);
    let same = "listener = \"web\", service = \"api\", match = { host = \"a.org\", path_prefix = \"/v1\" }";
    routes(&format!("a = {{ {same} }}\nb = {{ {} }}\nc = {{ {} }}\n", same.replace("/v1", "/v2"), same.replace("a.org", "A.org")), &[
        "14:1 E032 routes a (line 12) and c can match the same request, neither more closely",
    ]);
}

#[test]
fn changes() {
    let before = spec(WEB);
    let check = |from: &str, to: &str, expected: &[&str]| {
        let mut after = spec(&WEB.replace(from, to));
        after.keep(&before);
        let changes = diff(&before, &after).into_iter();
        let shown = changes.map(|it| {
            let json = serde_json::to_value(&it).expect("encodes");
            let text = |side: &Option<String>| side.clone().unwrap_or("-".into());
            let when = json["takes_effect"].as_str().expect("a word").to_owned();
            format!("{}: {} -> {}, {when}", it.path, text(&it.old), text(&it.new))
        });
        assert_eq!(shown.collect::<Vec<_>>(), expected, "{from} -> {to}");
    };
    check("x", "x", &[]);
    let more = |text: &str| format!("kind = \"http\"\n{text}");
    check(
        "kind = \"http\"\n",
        &more(
            "instances = 4\nenv = { A = \"1\" }\nuser = \"root\"\nlimits = { cpu = 0.25, memory = \"1MiB\" }\n",
        ),
        &[
            "service.api.env.A: - -> 1, restart",
            "service.api.instances: 3 -> 4, at_once",
            "service.api.limits.cpu: - -> 0.250, restart",
            "service.api.limits.memory: - -> 1048576 bytes, restart",
            "service.api.user: - -> root, restart",
        ],
    );
    check(
        "[listener]\n",
        "[gateway]\naccess_log = true\n[listener]\n",
        &["gateway.access_log: false -> true, at_once"],
    );
    check("serve", "served", &["service.api.command: serve {port} -> served {port}, restart"]);
    check(
        "\"serve\", \"{port}\"",
        "\"serve {port}\"",
        &["service.api.command: serve {port} -> \"serve {port}\", restart"],
    );
    check(
        "kind = \"http\"\n",
        &more(
            "balance = \"consistent_hash\"\nhash = \"cookie:a\"\nhealth = { path = \"/\", start_within = \"2m\" }\nretries = 1\nversion = \"2\"\naffinity.header = \"T\"\n",
        ),
        &[
            "service.api.affinity: - -> header t, at_once",
            "service.api.balance: peak_ewma -> consistent_hash, at_once",
            "service.api.hash: - -> cookie:a, at_once",
            "service.api.health.path: - -> /, at_once",
            "service.api.health.start_within: 60000ms -> 120000ms, at_once",
            "service.api.retries: 2 -> 1, at_once",
            "service.api.version: 1.1 -> 2, at_once",
        ],
    );
    check(
        "kind = \"http\"\n",
        &more("hedge = \"p90\"\n"),
        &["service.api.hedge: - -> p90, at_once"],
    );
    check(
        "service = \"api\"\n",
        "service = \"api\"\nmatch = { path = \"/x\", methods = [\"GET\"], headers = { A = \"b\" } }\ntimeout = \"1s\"\n",
        &[
            "route.api.match.headers: - -> a: b, at_once",
            "route.api.match.methods: - -> GET, at_once",
            "route.api.match.path: - -> /x, at_once",
            "route.api.timeout: - -> 1000ms, at_once",
        ],
    );
    check(
        "command = [\"serve\", \"{port}\"]",
        "addresses = [\"10.0.0.1:80\", { address = \"10.0.0.2:80\", zone = \"x\", weight = 3 }]",
        &[
            "service.api.addresses: - -> 10.0.0.1:80, 10.0.0.2:80 in x × 3, at_once",
            "service.api.command: serve {port} -> -, at_once",
            "service.api.instances: 3 -> -, at_once",
            "service.api.stop.grace: 10000ms -> -, at_once",
            "service.api.stop.signal: TERM -> -, at_once",
        ],
    );
    // Nothing of it is data: it may go. A name is not given to another kind of thing.
    let mut after = load(HEAD, "f").expect("valid");
    after.keep(&before);
    let gone: Vec<String> = diff(&before, &after).into_iter().map(|it| it.path).collect();
    assert_eq!(
        gone,
        ["listener.read", "listener.web", "listener.write", "route.api", "service.api"]
    );
    let refused = |old: &everhold_core::spec::Spec, new: &everhold_core::spec::Spec| {
        let all = diff(old, new).into_iter();
        let refused = all.filter(|it| {
            matches!(it.takes_effect, everhold_core::spec::TakesEffect::Refused { .. })
        });
        refused.map(|it| it.path).collect::<Vec<_>>()
    };
    assert_eq!(refused(&before, &after), [""; 0]);
    let mut other = before.clone();
    let api: HttpSpec = before.http("api").expect("api").clone();
    other.services.insert("main".into(), everhold_core::spec::ServiceSpec::Http(api));
    assert_eq!(refused(&before, &other), ["service.main.kind"]);
}
