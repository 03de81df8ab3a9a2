//! Libraries that make a machine worse while it runs: a slow disk, a clock that is set. They are
//! loaded into Everhold and PostgreSQL; etcd is a Go program, which asks the kernel itself: it
//! keeps its own disk and time.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The two libraries, and the files of one machine that switch them.
#[derive(Clone, Debug)]
pub struct Preload {
    libraries: String,
    slow: PathBuf,
    clock: PathBuf,
}

impl Preload {
    /// Compiles them into `dir`, where every user may pass, for the machine of that name.
    pub fn new(dir: &Path, name: &str) -> Preload {
        let libraries = [build(dir, "slow_fsync"), build(dir, "shift_clock")];
        let preload = Preload {
            libraries: libraries.join(":"),
            slow: dir.join(format!("{name}.slow")),
            clock: dir.join(format!("{name}.clock")),
        };
        preload.clock(0);
        preload
    }

    /// What a process on that machine begins with.
    pub fn environment(&self) -> Vec<(String, String)> {
        let shown = |path: &Path| path.display().to_string();
        vec![
            ("LD_PRELOAD".to_string(), self.libraries.clone()),
            ("SLOW_FSYNC_SWITCH".to_string(), shown(&self.slow)),
            ("SHIFT_CLOCK".to_string(), shown(&self.clock)),
        ]
    }

    /// Each fsync takes half a second longer, or doesn't any more.
    pub fn slow(&self, slow: bool) {
        if slow {
            fs::write(&self.slow, "").expect("switched on");
        } else {
            let _ = fs::remove_file(&self.slow);
        }
    }

    /// Sets the wall clock so many seconds beside the true one.
    pub fn clock(&self, seconds: i64) {
        let mut open = fs::OpenOptions::new();
        let file = open.write(true).create(true).truncate(false).open(&self.clock).expect("a file");
        // In place: it is mapped.
        std::os::unix::fs::FileExt::write_all_at(&file, &seconds.to_ne_bytes(), 0).expect("set");
        file.set_permissions(fs::Permissions::from_mode(0o644)).expect("permissions");
    }
}

fn build(dir: &Path, name: &str) -> String {
    let library = dir.join(format!("{name}.so"));
    if !library.exists() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/stack/{name}.c"));
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]).arg(&library).arg(source);
        let built = cc.arg("-ldl").status();
        assert!(built.is_ok_and(|status| status.success()), "cc builds {name}");
    }
    library.display().to_string()
}
