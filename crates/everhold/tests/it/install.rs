//! `everhold install` into a root directory of its own, and the unit that it installs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const UNIT: &str = "usr/lib/systemd/system/everhold.service";

fn install(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everhold"));
    command.arg("install").arg("--root").arg(root).args(arguments);
    command.output().expect("everhold runs")
}

fn done(root: &Path, arguments: &[&str]) -> String {
    let output = install(root, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Every file and directory below, with mode and content.
fn all(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let (mut found, mut open) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(dir) = open.pop() {
        for path in fs::read_dir(dir).expect("a directory").flatten().map(|entry| entry.path()) {
            let mode = fs::metadata(&path).expect("there").permissions().mode() & 0o7777;
            let content = if path.is_dir() { Vec::new() } else { fs::read(&path).expect("read") };
            if path.is_dir() {
                open.push(path.clone());
            }
            found.insert(path.strip_prefix(root).expect("below").to_path_buf(), (mode, content));
        }
    }
    found
}

#[test]
fn installed_twice_is_installed_once_and_taken_away_without_the_data() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    let told = done(root, &["--dry-run"]);
    assert!(told.contains("usr/bin/everhold (755)"), "{told}");
    assert!(all(root).is_empty(), "a dry run changes nothing");

    done(root, &[]);
    let first = all(root);
    let mode = |path: &str| first.get(Path::new(path)).unwrap_or_else(|| panic!("{path}")).0;
    assert_eq!(mode("usr/bin/everhold"), 0o755);
    assert_eq!(mode(UNIT), 0o644);
    assert_eq!(mode("etc/everhold"), 0o750);
    assert_eq!(mode("var/lib/everhold"), 0o711);
    let version = Command::new(root.join("usr/bin/everhold")).arg("--version").output();
    assert!(version.expect("what was installed runs").status.success());

    let told = done(root, &[]);
    assert!(told.lines().all(|line| line.starts_with("done already")), "{told}");
    assert_eq!(all(root), first);

    fs::write(root.join("usr/bin/everhold"), "an older one").expect("written");
    done(root, &[]);
    assert_eq!(all(root), first, "another version is replaced");

    fs::write(root.join("etc/everhold/node.toml"), "name = \"a\"").expect("written");
    fs::write(root.join("var/lib/everhold/cluster.json"), "{}").expect("written");
    done(root, &["--uninstall"]);
    let left = all(root);
    assert!(
        !left.contains_key(Path::new("usr/bin/everhold")) && !left.contains_key(Path::new(UNIT))
    );
    assert!(left.contains_key(Path::new("etc/everhold/node.toml")));
    assert!(left.contains_key(Path::new("var/lib/everhold/cluster.json")));
    done(root, &["--uninstall"]);
}

#[test]
fn another_prefix_is_in_the_unit_too() {
    let dir = tempfile::tempdir().expect("a directory");
    done(dir.path(), &["--prefix", "/opt/everhold"]);
    let unit = dir.path().join("opt/everhold/lib/systemd/system/everhold.service");
    let unit = fs::read_to_string(unit).expect("the unit");
    assert!(unit.contains("\nExecStart=/opt/everhold/bin/everhold run\n"), "{unit}");
}

#[test]
fn what_may_not_be_installed_changes_nothing() {
    let refused = |output: Output, code: &str| {
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with(code) && error.contains("; next step: "), "{code}: {error}");
    };
    for owned in ["/usr/bin/everhold", "/lib/systemd/system/everhold.service"] {
        let dir = tempfile::tempdir().expect("a directory");
        let dpkg = dir.path().join("var/lib/dpkg");
        fs::create_dir_all(dpkg.join("info")).expect("made");
        let list = format!("/.\n{owned}\n");
        fs::write(dpkg.join("info/everhold.list"), list).expect("written");
        let status = "Package: everhold\nStatus: install ok installed\nVersion: 1\n\
                      Architecture: all\nMaintainer: x\nDescription: x\n";
        fs::write(dpkg.join("status"), status).expect("written");
        let before = all(dir.path());
        let output = install(dir.path(), &[]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("package everhold"));
        refused(output, "E272");
        refused(install(dir.path(), &["--uninstall"]), "E272");
        assert_eq!(all(dir.path()), before);
        done(dir.path(), &["--prefix", "/usr/local"]);
    }
    let dir = tempfile::tempdir().expect("a directory");
    refused(install(dir.path(), &["--prefix", "usr"]), "E274");
    fs::write(dir.path().join("etc"), "no directory").expect("written");
    refused(install(dir.path(), &[]), "E274");
    assert_eq!(all(dir.path()).len(), 1, "nothing but that file");

    // On this machine itself: nobody but root, and only where systemd starts what is installed.
    let mut command = Command::new(env!("CARGO_BIN_EXE_everhold"));
    command.arg("install").args(["--prefix", "/nowhere"]);
    if rustix::process::geteuid().is_root() {
        // Its own user may not pass to where it was built.
        let copy = dir.path().join("everhold");
        fs::copy(env!("CARGO_BIN_EXE_everhold"), &copy).expect("copied");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        command = Command::new(copy);
        command.arg("install").args(["--prefix", "/nowhere"]).uid(65_534).gid(65_534);
        let mut bare = Command::new(env!("CARGO_BIN_EXE_everhold"));
        bare.args(["install", "--prefix", "/nowhere"]).env("PATH", "/nowhere");
        refused(bare.output().expect("everhold runs"), "E271");
    }
    refused(command.output().expect("everhold runs"), "E270");
    assert!(!Path::new("/nowhere").exists());
}

/// Every key of the unit is one that systemd knows, as far as systemd is here to ask.
#[test]
fn the_unit_is_what_systemd_understands() {
    let dir = tempfile::tempdir().expect("a directory");
    let unit = include_str!("../../../../deploy/everhold.service");
    // The program that it starts has to be there.
    let unit = unit.replace("/usr/bin/everhold", env!("CARGO_BIN_EXE_everhold"));
    let keys = ["KillMode=process", "Type=notify", "OOMPolicy=continue", "TasksMax=infinity"];
    for key in keys.into_iter().chain(["Delegate=yes"]) {
        assert!(unit.lines().any(|line| line == key), "{key}");
    }
    let hidden = unit.lines().any(|line| line.starts_with("ProtectControlGroups="));
    assert!(!hidden, "control groups that can't be written hold nobody to a limit");
    let file = dir.path().join("everhold.service");
    let verify = |text: &str| -> Option<String> {
        fs::write(&file, text).expect("written");
        let mut analyze = Command::new("systemd-analyze");
        let output = analyze.args(["verify", "--man=no"]).arg(&file).output().ok()?;
        Some(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let Some(said) = verify(&unit) else {
        return eprintln!(
            "systemd does not check the unit: systemd-analyze is not on this machine"
        );
    };
    assert!(!said.contains("everhold.service"), "{said}");
    let said = verify(&unit.replace("KillMode=", "KilMode=")).expect("it is here");
    assert!(said.contains("KilMode"), "a key that is not known is seen: {said}");
}
