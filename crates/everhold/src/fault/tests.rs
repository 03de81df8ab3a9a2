//! Which processes a fault takes, and that it is undone whatever happens.

use super::*;
use std::process::{Child, Command, Stdio};

fn process(pid: i32, parent: i32, program: &str, cwd: &str, argument: &str) -> Process {
    Process {
        target: Target { pid, started: 1 },
        parent,
        program: program.to_string(),
        cwd: cwd.into(),
        arguments: vec![program.into(), argument.into()],
    }
}

#[test]
fn a_node_is_its_agent_its_servers_and_their_children_and_no_onlooker() {
    let processes = [
        process(1, 0, "init", "/", ""),
        process(10, 1, "everhold", "/", "/data/a/node.toml"),
        process(11, 10, "pg_rewind", "/", "/data/a/main/pgdata"),
        process(12, 1, "everhold", "/", "/data/a/main"),
        process(20, 1, "postgres", "/data/a/main/pgdata", ""),
        process(21, 20, "sh", "/tmp", ""),
        process(30, 1, "postgres", "/data/b/main/pgdata", ""),
        process(31, 1, "everhold", "/", "/data/b/node.toml"),
        process(40, 1, "bash", "/data/a", ""),
        process(41, 40, "tail", "/data/a", "/data/a/log"),
        process(42, 1, "postgres", "/data/ab/main/pgdata", ""),
        process(43, 1, "everhold", "/data/a", "status"),
    ];
    let found = belonging(&processes, Path::new("/data/a"), Some(10));
    let pids: Vec<i32> = found.iter().map(|process| process.target.pid).collect();
    assert_eq!(pids, [10, 11, 12, 20, 21]);
}

/// A child of this test, working in `dir`, ended whatever happens.
struct Sleeper(Child);

impl Sleeper {
    /// A copy of sleep(1) under the name of PostgreSQL's server.
    fn start(dir: &Path) -> Sleeper {
        let program = dir.join("postgres");
        std::fs::copy("/bin/sleep", &program).expect("a program");
        let mut command = Command::new(&program);
        command.arg("60").current_dir(dir).stdout(Stdio::null());
        Sleeper(command.spawn().expect("started"))
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }

    async fn reaches(&self, wanted: char) -> bool {
        for _ in 0..400 {
            let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
            let state = text.ok().and_then(|text| text.rsplit_once(") ")?.1.chars().next());
            if state == Some(wanted) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Bed {
    _dir: tempfile::TempDir,
    layout: Layout,
    sleeper: Sleeper,
}

async fn bed() -> Bed {
    let dir = tempfile::tempdir().expect("a directory");
    // Without symbolic links, as the kernel tells a working directory.
    let root = dir.path().canonicalize().expect("there");
    let layout = Layout::new(&root).expect("a layout");
    let data = layout.pgdata("a", "main");
    std::fs::create_dir_all(&data).expect("a data directory");
    let sleeper = Sleeper::start(&data);
    assert!(sleeper.reaches('S').await);
    Bed { _dir: dir, layout, sleeper }
}

async fn injector(layout: &Layout) -> Arc<Injector> {
    Injector::new(Arc::new(Supervised::start(Vec::new()).await), layout.clone())
}

#[tokio::test]
async fn a_frozen_node_is_woken_by_hand_by_time_and_by_the_next_supervisor() {
    let bed = bed().await;
    let faults = injector(&bed.layout).await;
    let frozen = faults.freeze_node("a", FREEZE).await.expect("frozen");
    assert!(bed.sleeper.reaches('T').await);
    assert_eq!(frozen.targets[0].pid, bed.sleeper.pid());
    assert_eq!(faults.active(), [frozen]);
    let again = faults.freeze_node("a", FREEZE).await;
    assert!(matches!(again, Err(FaultError::Already { .. })));
    assert_eq!(faults.heal().await.len(), 1);
    assert!(bed.sleeper.reaches('S').await);
    assert_eq!(faults.active(), []);

    faults.freeze_node("a", Duration::from_millis(100)).await.expect("frozen");
    assert!(bed.sleeper.reaches('T').await);
    assert!(bed.sleeper.reaches('S').await, "it wakes by itself");

    faults.freeze_node("a", FREEZE).await.expect("frozen");
    assert!(bed.sleeper.reaches('T').await);
    std::fs::write(record_path(&bed.layout, "a"), "{\"node\":").expect("torn");
    assert_eq!(heal_leftovers(&bed.layout), ["a"]);
    assert!(bed.sleeper.reaches('S').await);
    assert_eq!(heal_leftovers(&bed.layout), Vec::<String>::new());
}

#[tokio::test]
async fn killing_ends_what_belongs_to_the_node_and_names_what_is_not_there() {
    let bed = bed().await;
    let faults = injector(&bed.layout).await;
    let foreign = faults.kill_postgres("b", bed.sleeper.pid()).await;
    assert!(matches!(foreign, Err(FaultError::Gone { .. })));
    assert!(matches!(faults.kill_node("b").await, Err(FaultError::NothingRuns { .. })));
    assert!(bed.sleeper.reaches('S').await);
    faults.freeze_node("a", FREEZE).await.expect("frozen");
    assert_eq!(faults.kill_node("a").await.expect("killed"), 1);
    assert!(bed.sleeper.reaches('Z').await);
    assert_eq!(faults.active(), []);
}
