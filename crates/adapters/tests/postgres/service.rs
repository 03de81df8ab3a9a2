//! A server from its bootstrap to acknowledged commits, and what is seen of it.

use crate::cluster::{Cluster, Node, OWNER_PASSWORD, REPLICATION_PASSWORD, execute, value};
use everhold_adapters::postgres::probe;
use everhold_core::postgres::{CLOSED, PgAction, PgOutcome, Process, StopMode};
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_cluster_is_made_replicates_and_acknowledges() {
    let cluster = Cluster::new();
    let score = |process: &str| format!("/proc/{process}/oom_score_adj");
    std::fs::write(score("self"), "300").unwrap();
    let a = cluster.leader("a").await;
    std::fs::write(score("self"), "0").unwrap();
    let b = cluster.standby("b", &a).await;

    // What the postmaster is to the kernel when memory is short, its backends are not.
    let pid_file = std::fs::read_to_string(a.config.data_dir.join("postmaster.pid")).unwrap();
    let backend = value(&a.admin().await, "SELECT pg_backend_pid()").await;
    let of = |pid: &str| std::fs::read_to_string(score(pid)).unwrap().trim().to_string();
    let scores = (of(pid_file.lines().next().unwrap()), of(&backend));
    assert_eq!(scores, ("300".to_string(), "0".to_string()));

    let facts = a.facts().await;
    assert_eq!((facts.process, facts.in_recovery), (Process::Running, Some(false)));
    assert_eq!((facts.tli, facts.sync_names.as_deref()), (2, Some(CLOSED)));
    assert_eq!((facts.slots, facts.source, facts.receiver), (vec![b.me.slot()], None, None));
    assert_eq!(facts.overrides, [] as [String; 0]);
    assert_eq!(facts.walsenders.len(), 1);
    assert_eq!(facts.walsenders[0].priority, 0);

    // Closed: nothing is acknowledged. Open: at once.
    let client = a.client().await;
    let create = client.simple_query("CREATE TABLE t (i int PRIMARY KEY)");
    assert!(tokio::time::timeout(Duration::from_millis(300), create).await.is_err());
    a.wait_for(1, &[&b]).await;
    execute(&client, "INSERT INTO t VALUES (1)").await;
    assert_eq!(a.facts().await.walsenders[0].priority, 1);
    assert_eq!(a.run(PgAction::Barrier { epoch: 2 }).await, PgOutcome::Done);
    assert_eq!(a.run(PgAction::Barrier { epoch: 3 }).await, PgOutcome::Done);
    let admin = a.admin().await;
    assert_eq!(value(&admin, "SELECT current_setting('data_checksums')").await, "on");

    // Evidence is there at once, and the standby comes to hold it.
    for _ in 0..3 {
        let PgOutcome::Evidence { end } = a.run(PgAction::Evidence).await else { panic!() };
        assert!(a.facts().await.lsn >= end);
        let begun = Instant::now();
        while a.facts().await.walsenders[0].flush < end {
            assert!(begun.elapsed().as_secs() < 5);
        }
    }

    let facts = b.facts().await;
    assert_eq!((facts.process, facts.in_recovery, facts.tli), (Process::Running, Some(true), 2));
    assert_eq!(facts.source, Some(b.source(&a)));
    assert_eq!(facts.replay_lag_ms, Some(0));
    assert!(facts.receiver.is_some_and(|receiver| receiver.streaming));
    assert_eq!(facts.sysid, a.facts().await.sysid);
    let read = b.client().await;
    assert_eq!(value(&read, "SELECT i FROM t").await, "1");

    let asked =
        probe("127.0.0.1", a.config.port, &a.config.replication_password_file, None, SECOND);
    asked.await.unwrap();
    let wrong =
        probe("127.0.0.1", a.config.port, &a.config.owner_password_file, None, SECOND).await;
    assert!(wrong.unwrap_err().to_string().contains("password authentication failed"));

    passwords_are_nowhere(&[&a, &b]);

    // A stop in order hands the shutdown checkpoint to the standby.
    a.stop(StopMode::Fast).await;
    let facts = a.facts().await;
    assert_eq!((facts.process, facts.pid), (Process::Down, None));
    assert_eq!(facts.sysid, b.facts().await.sysid);
    b.stop(StopMode::Immediate).await;
}

const SECOND: Duration = Duration::from_secs(1);

fn passwords_are_nowhere(nodes: &[&Node]) {
    for node in nodes {
        let pids = node.pg.pids();
        assert!(pids.len() > 3, "{pids:?}");
        let mut texts = vec![node.log()];
        for pid in pids {
            for what in ["cmdline", "environ"] {
                let bytes = std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
                texts.push(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        for secret in [OWNER_PASSWORD, REPLICATION_PASSWORD, "pass:word", "repli:cation"] {
            assert!(texts.iter().all(|text| !text.contains(secret)), "{secret} on {}", node.me);
        }
    }
}

#[tokio::test]
async fn a_running_server_is_adopted_as_it_is() {
    let cluster = Cluster::new();
    let a = cluster.leader("a").await;
    let pid = a.postmaster().await;
    let again = Node::open("a", a.config.clone()).await;
    assert_eq!(again.postmaster().await, pid);
    assert_eq!(again.facts().await.in_recovery, Some(false));
    again.run(PgAction::Evidence).await;
    assert_eq!(again.run(PgAction::Bootstrap).await, {
        let sysid = a.facts().await.sysid.unwrap();
        PgOutcome::Bootstrapped { sysid }
    });

    // The postmaster leads a session of its own: no signal to the agent's reaches it.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!(fields[3], pid.to_string());

    // Both see its death.
    let mut deaths = [a.pg.death(), again.pg.death()];
    crate::cluster::signal(pid, "KILL");
    for death in &mut deaths {
        tokio::time::timeout(SECOND, death.changed()).await.unwrap().unwrap();
    }
    again.stop(StopMode::Immediate).await;
}

#[tokio::test]
async fn settings_that_weaken_a_guarantee_are_undone_or_told() {
    let cluster = Cluster::new();
    let mut config = cluster.config("a");
    config.parameters.insert("restart_after_crash".into(), "on".into());
    config.parameters.insert("work_mem".into(), "5MB".into());
    config.parameters.insert("max_connections".into(), "20".into());
    config.parameters.insert("log_line_prefix".into(), "it's \\ %p ".into());
    let a = Node::open("a", config).await;
    a.run(PgAction::Bootstrap).await;
    a.start(&crate::cluster::line(&[1]), None).await;
    let (end, _) = a.park().await;
    a.promote(2, 1, end, &[], &[]).await;
    a.run(PgAction::SetSync { names: String::new() }).await;
    let admin = a.admin().await;
    assert_eq!(value(&admin, "SHOW work_mem").await, "5MB");
    assert_eq!(value(&admin, "SHOW log_line_prefix").await, "it's \\ %p ");
    for sql in [
        "ALTER SYSTEM SET fsync = off",
        "ALTER SYSTEM SET work_mem = '6MB'",
        "ALTER SYSTEM SET synchronous_standby_names = 'x'",
        "ALTER ROLE app SET synchronous_commit = off",
        "ALTER DATABASE app SET synchronous_commit = local",
        "ALTER ROLE app SET work_mem = '7MB'",
        "SELECT pg_reload_conf()",
    ] {
        execute(&admin, sql).await;
    }
    let again = Node::open("a", a.config.clone()).await;
    let begun = Instant::now();
    let facts = loop {
        let facts = again.facts().await;
        if facts.sync_names.as_deref() == Some("x") || begun.elapsed().as_secs() > 5 {
            break facts;
        }
    };
    assert_eq!(facts.sync_names.as_deref(), Some("x"));
    assert_eq!(
        facts.overrides,
        [
            "parameters: restart_after_crash = on has no effect, Everhold sets it",
            "ALTER SYSTEM: fsync is Everhold's",
            "ALTER SYSTEM: synchronous_standby_names is Everhold's",
            "ALTER DATABASE app: synchronous_commit=local",
            "ALTER ROLE app: synchronous_commit=off",
        ]
    );
    // The next word of the agent undoes what stands in its way, and nothing else.
    a.run(PgAction::SetSync { names: CLOSED.into() }).await;
    assert_eq!(a.facts().await.sync_names.as_deref(), Some(CLOSED));
    let admin = a.admin().await;
    assert_eq!(value(&admin, "SHOW fsync").await, "on");
    assert_eq!(value(&admin, "SHOW work_mem").await, "6MB");

    // Clients that take all they can don't keep the agent out.
    let mut clients = Vec::new();
    let mut to = tokio_postgres::Config::new();
    to.host("127.0.0.1").port(a.config.port).user("app").dbname("app").password(OWNER_PASSWORD);
    while let Ok((client, connection)) = to.connect(tokio_postgres::NoTls).await {
        tokio::spawn(connection);
        clients.push(client);
        assert!(clients.len() < 20);
    }
    assert!(!clients.is_empty());
    let mut lowered = a.config.clone();
    lowered.parameters.insert("max_connections".into(), "15".into());
    let late = Node::open("a", lowered).await;
    let said = "parameters: max_connections = 15 has no effect, its WAL was written under 20";
    assert_eq!(late.facts().await.overrides.last().map(String::as_str), Some(said));
    assert_eq!(late.facts().await.in_recovery, Some(false));
    late.run(PgAction::SetSync { names: String::new() }).await;
    late.run(PgAction::Barrier { epoch: 1 }).await;
    late.run(PgAction::Evidence).await;
}

#[tokio::test]
async fn functions_with_settings_of_their_own_are_told_from_every_database() {
    let cluster = Cluster::new();
    let a = cluster.leader("a").await;
    a.run(PgAction::SetSync { names: String::new() }).await;
    let admin = a.admin().await;
    let function = |name: &str, setting: &str| {
        format!("CREATE FUNCTION {name} RETURNS int LANGUAGE sql {setting} AS 'SELECT 1'")
    };
    for sql in [
        "CREATE DATABASE other",
        "CREATE DATABASE shut ALLOW_CONNECTIONS false",
        "CREATE SCHEMA \"a b\"",
        &function("f(a int, b text)", ""),
        &function("g()", "SET work_mem = '7MB' SET synchronous_commit = on"),
        "ALTER FUNCTION f SET synchronous_commit = off",
        "ALTER FUNCTION f SET search_path = public",
        "CREATE PROCEDURE \"a b\".p() LANGUAGE sql SET zero_damaged_pages = on AS 'SELECT 1'",
    ] {
        execute(&admin, sql).await;
    }
    let mut to = tokio_postgres::Config::new();
    to.host_path(&a.config.run_dir).port(a.config.port).user("everhold").dbname("other");
    let other = crate::cluster::connect(&to).await;
    execute(&other, &function("h()", "SET synchronous_commit = local")).await;

    let wanted = [
        "ALTER FUNCTION public.f(integer,text) in app: synchronous_commit=off",
        "ALTER PROCEDURE \"a b\".p() in app: zero_damaged_pages=on",
        "ALTER FUNCTION public.h() in other: synchronous_commit=local",
    ];
    let again = Node::open("a", a.config.clone()).await;
    let begun = Instant::now();
    while again.facts().await.overrides != wanted {
        let is = again.facts().await.overrides;
        assert!(begun.elapsed().as_secs() < 90, "{is:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The next look of one that has looked before sees what was undone.
    for (client, sql) in [
        (&admin, "ALTER FUNCTION f RESET synchronous_commit"),
        (&admin, "DROP PROCEDURE \"a b\".p"),
        (&other, "DROP FUNCTION h"),
    ] {
        execute(client, sql).await;
    }
    let begun = Instant::now();
    while !again.facts().await.overrides.is_empty() {
        let is = again.facts().await.overrides;
        assert!(begun.elapsed().as_secs() < 90, "{is:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
