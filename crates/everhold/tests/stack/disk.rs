//! A small disk of its own for a node: a file system in a file, filled up and freed.
//!
//! Mounting takes root. What a test that was killed has left is found by the number of its process.

use crate::stack::{processes, signal};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What every stack's directory begins with, before the number of the process that made it.
pub const PREFIX: &str = "everhold-";
/// A disk: PostgreSQL's own files, and room for some WAL.
pub const MB: u64 = 256;
/// A full disk stays full: what is freed is taken again this often.
const REFILL: Duration = Duration::from_millis(20);

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// Mounts a new disk at `at`, its content in `image`.
pub fn mount(image: &Path, at: &Path, mb: u64) {
    File::create(image).and_then(|file| file.set_len(mb << 20)).expect("an image");
    fs::create_dir_all(at).expect("a mount point");
    let (image, at) = (image.display().to_string(), at.display().to_string());
    run("mkfs.ext4", &["-q", "-m", "0", "-E", "lazy_itable_init=1", &image]);
    run("mount", &["-o", "loop", &image, &at]);
}

/// Takes all the room there is, again and again, until it is dropped.
pub struct Filling {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    file: PathBuf,
}

impl Filling {
    /// Fills the disk of that directory.
    pub fn of(dir: &Path) -> Filling {
        let file = dir.join("filling");
        let stop = Arc::new(AtomicBool::new(false));
        let mut into = File::create(&file).expect("a file");
        take_all(&mut into);
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                take_all(&mut into);
                std::thread::sleep(REFILL);
            }
        });
        Filling { stop, thread: Some(thread), file }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.file);
    }
}

fn take_all(into: &mut File) {
    for size in [1 << 20, 4 << 10, 1] {
        let zeros = vec![0; size];
        while into.write_all(&zeros).is_ok() {}
    }
}

/// Ends whatever runs in or with the directory, unmounts what is mounted below it, removes it.
pub fn clear(dir: &Path, remove: bool) {
    let shown = dir.to_string_lossy().to_string();
    for _ in 0..20 {
        let mut left = processes(|pid| {
            let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            cwd.starts_with(dir) || String::from_utf8_lossy(&line).contains(&shown)
        });
        left.retain(|pid| *pid != std::process::id() as i32);
        if left.is_empty() {
            break;
        }
        signal("KILL", &left);
        std::thread::sleep(Duration::from_millis(50));
    }
    if remove {
        free_memory(dir);
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for at in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(at).starts_with(dir) {
            // Also where something still has a file open there.
            let _ = Command::new("umount").args(["-l", at]).status();
        }
    }
    if remove {
        let _ = fs::remove_dir_all(dir);
    }
}

/// Of servers that were killed and never start again: a kernel has room for few.
fn free_memory(dir: &Path) {
    let Ok(started) = fs::read_to_string(dir.join("postmaster.opts")) else {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
        return dirs.for_each(|entry| free_memory(&entry.path()));
    };
    let program = Path::new(started.split(' ').next().unwrap_or_default());
    let bin_dir = program.parent().unwrap_or(Path::new("/"));
    let owner = fs::metadata(dir).ok().map(|found| (found.uid(), found.gid()));
    if let Err(error) = everhold_adapters::postgres::free_memory(bin_dir, dir, owner) {
        eprintln!("shared memory of {} stays: {error}", dir.display());
    }
}

/// Clears what tests that were killed have left mounted.
pub fn sweep() {
    let base = std::env::temp_dir().join(PREFIX);
    let base = base.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for at in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let Some(rest) = at.strip_prefix(&*base) else { continue };
        let name = rest.split('/').next().unwrap_or_default();
        let pid = name.split('-').next().unwrap_or_default();
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            clear(Path::new(&format!("{base}{name}")), true);
        }
    }
}
