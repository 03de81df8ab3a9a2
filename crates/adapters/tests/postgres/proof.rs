//! What a restored server is asked finds what is wrong.

use crate::cluster::{Cluster, Node, bin_dir, run_as, signal};
use everhold_adapters::postgres::{Aside, AsideConfig, Target, Wrong};
use everhold_core::postgres::PgAction;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// A node with an empty database, and how a server beside it is started on its data.
async fn bed(cluster: &Cluster) -> (Node, AsideConfig) {
    let node = cluster.node("a").await;
    node.run(PgAction::Bootstrap).await;
    let config = AsideConfig {
        bin_dir: bin_dir(),
        data_dir: node.config.data_dir.clone(),
        run_dir: cluster.dir.path().join("aside"),
        run_as: run_as(),
        tli: 1,
        throwaway: true,
    };
    (node, config)
}

#[tokio::test]
async fn rows_that_are_wrong_and_pages_that_nobody_reads_are_found() {
    let cluster = Cluster::new();
    let (_node, config) = bed(&cluster).await;
    let aside = Aside::recover(&config, &Target::End).await.unwrap();
    let databases = aside.databases().await.unwrap();
    assert!(databases.contains(&"app".to_string()), "{databases:?}");
    aside.rows("app", "CREATE TABLE t AS SELECT generate_series(1, 20000) n").await.unwrap();
    aside.rows("app", "ALTER TABLE t OWNER TO app").await.unwrap();
    aside.rows("app", "CREATE INDEX h ON t USING hash (n)").await.unwrap();

    // A person's checks: the first rows, and no rights beyond the owner's.
    let sql = "SELECT n, NULL FROM t ORDER BY n; SELECT n FROM t WHERE n < 0; \
        SELECT 1 FROM pg_catalog.pg_authid; SELECT 'not run'";
    let wrong = aside.check("app", "app", sql).await.unwrap();
    let [rows, denied] = &wrong[..] else { panic!("{wrong:?}") };
    let said: Vec<String> = (1..=5).map(|n| format!("{n}, NULL")).collect();
    assert_eq!(*rows, Wrong { statement: 1, said, rows: 20_000 });
    assert_eq!(denied.statement, 3);
    assert!(denied.said[0].contains("permission denied"), "{denied:?}");
    let sql = "INSERT INTO t VALUES (0)";
    let wrong = aside.check("app", "app", sql).await.unwrap();
    assert!(wrong[0].said[0].contains("read-only transaction"), "{wrong:?}");
    let wrong = aside.check("app", "app", "SELECT n FROM t WHERE n < 0").await.unwrap();
    assert_eq!(wrong, []);

    // amcheck reads no hash index.
    aside.rows("app", "CHECKPOINT").await.unwrap();
    let at = aside.rows("app", "SELECT pg_relation_filepath('h')").await.unwrap();
    let path = config.data_dir.join(at[0][0].as_deref().unwrap());
    let file = std::fs::OpenOptions::new().write(true).read(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 8_192 + 4_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 8_192 + 4_000).unwrap();
    assert_eq!(aside.amcheck("app").await.unwrap(), Vec::<String>::new());
    assert!(aside.has_checksums().await.unwrap());
    let wrong = aside.check_pages().await.unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(wrong.len() == 1 && wrong[0].contains(name), "{wrong:?}");
}

/// Signals the first child of that directory's postmaster whose title begins so. False: there is none
/// for so long.
fn on_sight(data_dir: &Path, title: &str, name: &str, within: Duration) -> bool {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let until = Instant::now() + within;
    while Instant::now() < until {
        let postmaster = read(format!("{}/postmaster.pid", data_dir.display()));
        let Some(pid) = postmaster.lines().next() else { continue };
        let children = read(format!("/proc/{pid}/task/{pid}/children"));
        let is_one = |pid: &&str| read(format!("/proc/{pid}/cmdline")).starts_with(title);
        if let Some(pid) = children.split_whitespace().find(is_one) {
            signal(pid.parse().unwrap(), name);
            return true;
        }
    }
    false
}

#[tokio::test]
async fn what_the_machine_does_to_a_recovery_says_nothing_of_the_data() {
    let cluster = Cluster::new();
    let (_node, config) = bed(&cluster).await;
    // Something to replay.
    let aside = Aside::recover(&config, &Target::End).await.unwrap();
    aside.rows("app", "CREATE TABLE t AS SELECT generate_series(1, 200000) n").await.unwrap();
    drop(aside);
    Aside::clear(&config.data_dir).unwrap();

    // As a machine that has no memory left does.
    let dir = config.data_dir.clone();
    let killed = std::thread::spawn(move || on_sight(&dir, "postgres: startup", "KILL", LONG));
    let error = Aside::recover(&config, &Target::End).await.map(|_| ()).unwrap_err();
    assert!(killed.join().unwrap());
    assert!(error.to_string().contains("by signal 9"), "{error}");
    assert!(!error.is_of_data(), "{error}");

    Aside::clear(&config.data_dir).unwrap();
    let dir = config.data_dir.clone();
    // Its answers are lost for a while, but for those that were quicker.
    let lost = std::thread::spawn(move || {
        let ends = |within| on_sight(&dir, "postgres: everhold", "TERM", within);
        let more = || (0..50).take_while(|_| ends(Duration::from_secs(1))).count();
        if ends(LONG) { 1 + more() } else { 0 }
    });
    std::fs::write(config.data_dir.join("standby.signal"), "").unwrap();
    let (server, _) = Aside::hold(&config, &Target::End).await.unwrap();
    let lost = lost.join().unwrap();
    assert!(lost >= 5, "only {lost} answers were lost");
    server.stop().await.unwrap();
}
