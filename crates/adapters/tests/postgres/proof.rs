//! What a restored server is asked finds what is wrong.

use crate::cluster::{Cluster, bin_dir, run_as};
use everhold_adapters::postgres::{Aside, AsideConfig, Target, Wrong};
use everhold_core::postgres::PgAction;
use std::os::unix::fs::FileExt;

#[tokio::test]
async fn rows_that_are_wrong_and_pages_that_nobody_reads_are_found() {
    let cluster = Cluster::new();
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
