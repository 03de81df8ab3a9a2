//! An S3 server of the test's own, behind a line that can go silent: connections are accepted, and
//! nothing comes back; and that can be slow to take objects.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BUCKET: &str = "shop";
const KEY: &str = "everhold-test";
const SECRET: &str = "a-secret-of-tests";
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

pub struct Bucket {
    root: PathBuf,
    /// Of the line, as clients reach it.
    port: u16,
    behind: u16,
    silent: Arc<AtomicBool>,
    /// Each put takes so much longer, in milliseconds.
    slow_ms: Arc<AtomicU64>,
    running: Option<Child>,
}

impl Bucket {
    /// One with a bucket in a directory below `dir`.
    pub fn start(dir: &Path) -> Bucket {
        let root = dir.join("s3");
        fs::create_dir_all(root.join(BUCKET)).expect("a bucket");
        let text = format!("access_key_id = {KEY}\nsecret_access_key = {SECRET}\n");
        fs::write(dir.join("s3.credentials"), text).expect("credentials");
        let line = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = line.local_addr().expect("its address").port();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let behind = free.local_addr().expect("its address").port();
        drop(free);
        let silent = Arc::new(AtomicBool::new(false));
        let slow_ms = Arc::<AtomicU64>::default();
        let (is_silent, is_slow) = (silent.clone(), slow_ms.clone());
        std::thread::spawn(move || {
            for client in line.incoming().flatten() {
                let (silent, slow) = (is_silent.clone(), is_slow.clone());
                std::thread::spawn(move || carry(client, behind, &silent, &slow));
            }
        });
        let mut bucket = Bucket { root, port, behind, silent, slow_ms, running: None };
        bucket.begin();
        bucket
    }

    /// Starts the server on what it had.
    pub fn begin(&mut self) {
        let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin/s3s-fs");
        let child = Command::new(binary)
            .args(["--host", "127.0.0.1", "--port", &self.behind.to_string()])
            .args(["--access-key", KEY, "--secret-key", SECRET])
            .arg(&self.root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.running = Some(child.expect("s3s-fs, which scripts/setup-s3 builds"));
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.behind)).is_err() {
            assert!(began.elapsed() < PATIENCE, "s3s-fs does not listen");
            std::thread::sleep(LOOK);
        }
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            child.kill().expect("killed");
            child.wait().expect("it ends");
        }
    }

    pub fn silence(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    pub fn slow(&self, each: Duration) {
        self.slow_ms.store(each.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("s3://{BUCKET}/deep/down")
    }

    pub fn credentials(&self) -> PathBuf {
        self.root.with_file_name("s3.credentials")
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Carries bytes both ways, none while it is silent.
fn carry(client: TcpStream, port: u16, silent: &Arc<AtomicBool>, slow_ms: &Arc<AtomicU64>) {
    while silent.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return };
    let one_way = |mut from: TcpStream, mut to: TcpStream| {
        let (silent, slow_ms) = (silent.clone(), slow_ms.clone());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                while silent.load(Ordering::Relaxed) {
                    std::thread::sleep(LOOK);
                }
                if buffer.starts_with(b"PUT ") {
                    std::thread::sleep(Duration::from_millis(slow_ms.load(Ordering::Relaxed)));
                }
                if to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Both);
            let _ = from.shutdown(std::net::Shutdown::Both);
        })
    };
    let copy = |stream: &TcpStream| stream.try_clone().expect("a copy");
    let there = one_way(copy(&client), copy(&server));
    let _ = one_way(server, client).join();
    let _ = there.join();
}
