//! Machines that cannot run a spec, and what is said of them. Each test has a directory of its own
//! and looks at it before and after: nothing may have changed.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use everhold_core::spec::PortRange;
use tempfile::TempDir;

use super::*;

/// A machine on which everything is as it should be.
struct Machine {
    directory: TempDir,
    run_as: RunAs,
    search: Search,
    spec: Spec,
    store: StorePorts,
}

impl Machine {
    fn new() -> Machine {
        let directory = tempfile::Builder::new().prefix("eh").tempdir().expect("directory");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), mode).expect("mode");
        let bin = directory.path().join("bin");
        fs::create_dir(&bin).expect("bin");
        for name in programs::POSTGRES_PROGRAMS {
            program(
                &bin.join(name),
                &format!("{name} (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"),
            );
        }
        program(&bin.join("etcd"), "etcd Version: 3.4.23\nGit SHA: none");
        let search = Search {
            pg_bin: Some(bin.clone()),
            etcd: None,
            pg_root: directory.path().join("none"),
            path: bin.into_os_string(),
        };
        let run_as = RunAs {
            name: "us".into(),
            uid: rustix::process::geteuid().as_raw(),
            gids: vec![rustix::process::getegid().as_raw()],
            home: None,
        };
        let (spec, store) = spec_on_free_ports();
        Machine { directory, run_as, search, spec, store }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn faults(&self) -> Vec<String> {
        self.faults_in(&self.data())
    }

    /// The faults but taken ports, which other tests of this machine may hold for a moment.
    fn faults_in(&self, data: &Path) -> Vec<String> {
        let mut faults = self.all_faults_in(data);
        faults.retain(|fault| !fault.starts_with("E112"));
        faults
    }

    /// The faults, with the directory of the test shown as `TMP`.
    fn all_faults_in(&self, data: &Path) -> Vec<String> {
        let before = snapshot(self.directory.path());
        let layout = Layout::new(data).expect("layout");
        let local = Local::all(&self.spec, &layout, &self.run_as, &self.search, self.store);
        let faults = check_local(&self.spec, &local);
        assert_eq!(snapshot(self.directory.path()), before, "something was changed");
        let own = self.directory.path().display().to_string();
        let shown = |it: &Fault| {
            assert!(!it.next.is_empty() && it.line.is_none(), "{it}");
            format!("{} {}", it.code.as_str(), it.message.replace(&own, "TMP"))
        };
        faults.iter().map(shown).collect()
    }

    fn pgdata(&self, version: &str) -> PathBuf {
        let path = self.data().join("a/main/pgdata");
        fs::create_dir_all(&path).expect("pgdata");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("mode");
        write(&path.join("PG_VERSION"), version);
        write(&self.data().join("cluster.json"), r#"{"version":1,"cluster":"local"}"#);
        path
    }
}

fn program(path: &Path, says: &str) {
    write(path, &format!("#!/bin/sh\necho '{says}'\n"));
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("write");
}

/// Every path below, with its size and times.
fn snapshot(root: &Path) -> Vec<(PathBuf, u64, i64, i64)> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let it = fs::symlink_metadata(&path).expect("metadata");
        found.push((path.clone(), it.size(), it.mtime(), it.mtime_nsec()));
        if it.is_dir() {
            todo.extend(fs::read_dir(&path).expect("list").map(|it| it.expect("entry").path()));
        }
    }
    found.sort();
    found
}

/// The default spec, on ports that the system says are free.
fn spec_on_free_ports() -> (Spec, StorePorts) {
    let mut spec = Spec::default_for_one_machine();
    let listeners: Vec<TcpListener> =
        (0..8).map(|_| TcpListener::bind("127.0.0.1:0").expect("free port")).collect();
    let mut free = listeners.iter().map(|it| it.local_addr().expect("address").port());
    // The ports at the end of a range follow each other.
    let mut ends =
        listeners.iter().map(|it| it.local_addr().expect("address").port()).filter_map(|port| {
            (4..200).map(|by| port - by).find(|last| {
                (last - 3..=*last).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
            })
        });
    let mut next = || free.next().expect("enough");
    spec.api.bind.set_port(next());
    spec.listeners.values_mut().for_each(|it| it.bind.set_port(next()));
    for (name, node) in &mut spec.nodes {
        // Only the ends are used: the instance's port and Everhold's own.
        node.ports = PortRange { first: next(), last: ends.next().expect("enough") };
        let main = spec.services.get_mut("main").expect("main");
        let everhold_core::spec::ServiceSpec::Postgres(main) = main else {
            unreachable!("it is PostgreSQL")
        };
        main.instances.get_mut(name).expect("instance").port = node.ports.first;
    }
    (spec, StorePorts { client: next(), peer: next() })
}

#[test]
fn a_machine_that_can() {
    let machine = Machine::new();
    assert_eq!(machine.faults(), [""; 0]);
    assert_eq!(machine.faults_in(&machine.directory.path().join("x/y/z")), [""; 0]);
    machine.pgdata("15\n");
    assert_eq!(machine.faults(), [""; 0]);
}

#[test]
fn programs_that_are_missing_or_others() {
    let mut machine = Machine::new();
    let bin = machine.directory.path().join("bin");
    fs::remove_file(bin.join("pg_rewind")).expect("remove");
    fs::set_permissions(bin.join("initdb"), fs::Permissions::from_mode(0o644)).expect("mode");
    program(&bin.join("etcd"), "etcd Version: 3.3.25");
    assert_eq!(
        machine.faults(),
        [
            "E109 PostgreSQL 15: initdb, pg_rewind not found in TMP/bin",
            "E110 TMP/bin/etcd is version 3.3.25, 3.4 or later is needed",
        ]
    );

    for name in programs::POSTGRES_PROGRAMS {
        program(&bin.join(name), "postgres (PostgreSQL) 16.2");
    }
    program(&bin.join("etcd"), "hello");
    assert_eq!(
        machine.faults(),
        [
            "E110 TMP/bin/postgres is version 16.2, the spec declares 15",
            "E110 TMP/bin/etcd does not tell its version, 3.4 or later is needed",
        ]
    );

    machine.search = Search {
        pg_bin: None,
        etcd: None,
        pg_root: machine.directory.path().join("none"),
        path: machine.directory.path().into(),
    };
    assert_eq!(
        machine.faults(),
        [
            "E109 PostgreSQL 15: postgres, initdb, pg_basebackup, pg_controldata, pg_rewind, pg_waldump \
         not found in TMP/none/15/bin",
            "E109 etcd not found in PATH",
        ]
    );
}

#[test]
fn directories_of_others() {
    let machine = Machine::new();
    let data = machine.data();
    write(&data, "");
    assert_eq!(machine.faults(), ["E102 TMP/data is not a directory"]);
    assert_eq!(machine.faults_in(&data.join("below")), ["E102 TMP/data is not a directory"]);
    fs::remove_file(&data).expect("remove");
    symlink("nowhere", &data).expect("link");
    assert_eq!(machine.faults(), ["E102 TMP/data is a link that leads nowhere"]);
    fs::remove_file(&data).expect("remove");

    fs::create_dir_all(data.join("etcd")).expect("etcd");
    fs::create_dir_all(data.join("a")).expect("node");
    assert_eq!(machine.faults(), [""; 0]);
    for name in ["letters", "music", "photos", "work"] {
        write(&data.join(name), "");
    }
    assert_eq!(
        machine.faults(),
        ["E102 TMP/data holds files that are not Everhold's: letters, music, photos and 1 more",]
    );

    let record = data.join("cluster.json");
    #[rustfmt::skip]
    let cases = [
        (r#"{"version":1,"cluster":"shop"}"#, "E103 TMP/data holds the data of cluster `shop`, not of `local`"),
        (r#"{"version":2,"name":"local"}"#, "E104 TMP/data/cluster.json has version 2, this Everhold reads up to 1"),
        (r#"{"version":1,"cluster":"lo"#, "E105 TMP/data/cluster.json cannot be read: EOF while parsing a string at line 1 column 26"),
        ("", "E105 TMP/data/cluster.json cannot be read: EOF while parsing a value at line 1 column 0"),
        (r#"{"version":1}"#, "E105 TMP/data/cluster.json cannot be read: missing field `cluster` at line 1 column 13"),
    ];
    for (text, expected) in cases {
        write(&record, text);
        assert_eq!(machine.faults(), [expected]);
    }
}

#[test]
fn data_of_another_version_owner_or_mode() {
    let mut machine = Machine::new();
    let pgdata = machine.pgdata("14\n");
    fs::set_permissions(&pgdata, fs::Permissions::from_mode(0o755)).expect("mode");
    assert_eq!(
        machine.faults(),
        [
            "E106 TMP/data/a/main/pgdata was made by PostgreSQL 14, the spec declares 15",
            "E108 TMP/data/a/main/pgdata has mode 0755, PostgreSQL accepts 0700 and 0750",
        ]
    );
    machine.pgdata("x\n");
    let us = machine.run_as.uid;
    machine.run_as = RunAs { name: "them".into(), uid: 12345, gids: vec![12345], home: None };
    assert_eq!(
        machine.faults(),
        [
            "E105 TMP/data/a/main/pgdata/PG_VERSION holds `x`, not a version".to_owned(),
            format!("E108 TMP/data/a/main/pgdata belongs to user {us}, PostgreSQL runs as them"),
        ]
    );
}

#[test]
fn directories_that_postgres_cannot_reach() {
    let mut machine = Machine::new();
    let home = machine.directory.path().join("home");
    fs::create_dir(&home).expect("home");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("mode");
    assert_eq!(machine.faults_in(&home.join("data")), [""; 0]);
    machine.run_as = RunAs { name: "them".into(), uid: 12345, gids: vec![12345], home: None };
    assert_eq!(
        machine.faults_in(&home.join("data")),
        [
            "E107 PostgreSQL runs as user them, who may not enter TMP/home on the way to TMP/home/data",
        ]
    );
    symlink(&home, machine.directory.path().join("link")).expect("link");
    assert_eq!(
        machine.faults_in(&machine.directory.path().join("link/data")),
        [
            "E107 PostgreSQL runs as user them, who may not enter TMP/home on the way to TMP/link/data",
        ]
    );
    fs::set_permissions(&home, fs::Permissions::from_mode(0o711)).expect("mode");
    assert_eq!(machine.faults_in(&home.join("data")), [""; 0]);
}

#[test]
fn directories_that_cannot_be_written() {
    let machine = Machine::new();
    // A file system that nobody can write to, root included.
    assert_eq!(machine.faults_in(Path::new("/proc/everhold")).len(), 1);
    let fault = &machine.faults_in(Path::new("/proc/everhold"))[0];
    assert!(fault.starts_with("E101 the data directory /proc/everhold cannot be made"), "{fault}");
    if rustix::process::geteuid().is_root() {
        return; // Modes do not bind root.
    }
    fs::create_dir(machine.data()).expect("data");
    fs::set_permissions(machine.data(), fs::Permissions::from_mode(0o500)).expect("mode");
    let faults = machine.faults();
    assert!(
        faults[0].starts_with("E101 the data directory TMP/data is not writable"),
        "{faults:?}"
    );
}

#[test]
fn sockets_with_long_paths() {
    let machine = Machine::new();
    let faults = machine.faults_in(&machine.directory.path().join("x".repeat(100)));
    assert_eq!(faults.len(), 1);
    assert!(faults[0].starts_with("E111 the socket path TMP/xxx"), "{faults:?}");
    assert!(faults[0].ends_with("bytes, the system allows 107"), "{faults:?}");
}

#[test]
fn ports_of_others() {
    let mut machine = Machine::new();
    let (pid, name) = (std::process::id(), fs::read_to_string("/proc/self/comm").expect("comm"));
    let name = name.trim();
    let held: Vec<TcpListener> = ["127.0.0.1:0", "0.0.0.0:0", "127.0.0.1:0"]
        .iter()
        .map(|at| TcpListener::bind(at).expect("free port"))
        .collect();
    let port = |index: usize| held[index].local_addr().expect("address").port();
    machine.spec.api.bind.set_port(port(0));
    machine.spec.listeners.get_mut("write").expect("write").bind.set_port(port(1));
    machine.store.peer = port(2);
    let far = "192.0.2.1:7000".parse().expect("address");
    machine.spec.listeners.get_mut("read").expect("read").bind = far;
    let faults = machine.all_faults_in(&machine.data());
    assert_eq!(
        faults,
        [
            format!("E112 127.0.0.1:{} for the API is taken by {name} (pid {pid})", port(0)),
            "E113 192.0.2.1 for listener read is no address of this machine".into(),
            format!("E112 127.0.0.1:{} for listener write is taken by {name} (pid {pid})", port(1)),
            format!(
                "E112 127.0.0.1:{} for the store's peer port is taken by {name} (pid {pid})",
                port(2)
            ),
        ]
    );
    // What works in the data directory is what the next start takes over: here, this very test.
    let working = std::env::current_dir().expect("directory");
    let layout = Layout::new(&working).expect("layout");
    let local = Local::all(&machine.spec, &layout, &machine.run_as, &machine.search, machine.store);
    let codes: Vec<Code> = check_local(&machine.spec, &local).iter().map(|it| it.code).collect();
    assert!(!codes.contains(&Code::PortTaken), "{codes:?}");
}

/// The real programs, which `make test` installs.
#[test]
fn programs_of_this_machine() {
    let search = Search::from_env();
    assert!(search.postgres(15).is_ok_and(|it| it.join("pg_rewind").exists()));
    assert!(search.etcd().is_ok_and(|it| it.exists()));
    assert!(!RunAs::discover().expect("user").name.is_empty());
}

/// A service of one instance on node a, at a port of the test.
fn with_http(machine: &mut Machine, port: u16, command: &str, user: Option<&str>) {
    let text = format!(
        "schema = 1\ncluster = \"local\"\n[service.main]\nkind = \"postgres\"\n\
         [service.api]\nkind = \"http\"\ninstances = 1\ncommand = [\"{command}\"]\n"
    );
    let spec = crate::spec::load_with(&text, "f", StorePorts::default()).expect("valid");
    let mut api = spec.services["api"].clone();
    if let everhold_core::spec::ServiceSpec::Http(http) = &mut api
        && let everhold_core::spec::Source::Run(run) = &mut http.source
    {
        run.user = user.map(str::to_owned);
        run.placed.values_mut().for_each(|it| it.port = port);
    }
    machine.spec.services.insert("api".into(), api);
}

#[test]
fn http_services_need_a_program_and_a_user() {
    let mut machine = Machine::new();
    let bin = machine.directory.path().join("bin");
    program(&bin.join("serve"), "");
    write(&bin.join("text"), "");
    let absolute = bin.join("serve").display().to_string();
    let mut check = |command: &str, user: Option<&str>, expected: &[&str]| {
        with_http(&mut machine, 1, command, user);
        machine.spec.nodes.get_mut("a").expect("a").ports.first = 1;
        let mut faults = machine.faults();
        faults.retain(|fault| !fault.starts_with("E115"));
        assert_eq!(faults, expected, "{command} {user:?}");
    };
    check("serve", None, &[]);
    check(&absolute, None, &[]);
    check("{instance}", None, &[]);
    check("text", None, &["E109 text of service api is no program here"]);
    check("/none/serve", None, &["E109 /none/serve of service api is no program here"]);
    let none = "E114 there is no user no-such-user, whom service api is to run as";
    check("serve", Some("no-such-user"), &[none]);
    let us = RunAs::discover().expect("a user");
    if !rustix::process::geteuid().is_root() {
        check("serve", Some(&us.name), &[]);
        let why = "E114 service api is to run as root, which only root could do";
        check("serve", Some("root"), &[why]);
    }
}

#[test]
fn an_instance_that_runs_already_is_in_nobodys_way() {
    let mut machine = Machine::new();
    program(&machine.directory.path().join("bin/serve"), "");
    let held = TcpListener::bind("127.0.0.1:0").expect("free port");
    let port = held.local_addr().expect("address").port();
    with_http(&mut machine, port, "serve", None);
    let pid = std::process::id();
    let taken = |machine: &Machine| {
        let faults = machine.all_faults_in(&machine.data());
        faults.into_iter().find(|fault| fault.contains("a.1 of api"))
    };
    let by = taken(&machine).expect("a fault");
    assert!(by.ends_with(&format!("(pid {pid})")), "{by}");

    // One that works elsewhere, below a runner that was told of our data directory.
    fs::create_dir(machine.data()).expect("data");
    let mut runner = std::process::Command::new("sh");
    runner.args(["-c", "exec 3<&0 </dev/null; sleep 60 & exec 3<&-; wait", "runner"]);
    runner.arg(machine.data()).current_dir("/").stdin(std::os::fd::OwnedFd::from(held));
    std::os::unix::process::CommandExt::process_group(&mut runner, 0);
    let spawned = runner.spawn();
    // It holds the socket as long as it could start another.
    drop(runner);
    let mut runner = spawned.expect("sh");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let holds = |pid: u32| fs::read_link(format!("/proc/{pid}/fd/3")).is_ok();
    let children = format!("/proc/{0}/task/{0}/children", runner.id());
    let child = || fs::read_to_string(&children).ok()?.trim().parse::<u32>().ok();
    while holds(runner.id()) || !child().is_some_and(holds) {
        assert!(std::time::Instant::now() < until, "it does not start");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let found = taken(&machine);
    let group = rustix::process::Pid::from_child(&runner);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).expect("killed");
    runner.wait().expect("ended");
    assert_eq!(found, None);
}
