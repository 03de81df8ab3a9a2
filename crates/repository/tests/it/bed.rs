//! Places under test: a directory, and a bucket of an S3 server that can be killed.

use everhold_core::spec::Location;
use everhold_repository::{Place, PlaceConfig, RepositoryError};
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const BUCKET: &str = "shop";
pub const PREFIX: &str = "deep/down";
const KEY: &str = "everhold-test";
pub const SECRET: &str = "a-secret-that-no-text-may-hold";
const PATIENCE: Duration = Duration::from_secs(30);

/// s3s-fs with one bucket in a directory that vanishes with it.
pub struct Server {
    dir: TempDir,
    pub port: u16,
    running: Option<Child>,
}

impl Server {
    pub fn start() -> Server {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root").join(BUCKET)).unwrap();
        let mut server = Server { dir, port: free_port(), running: None };
        server.begin();
        server
    }

    /// Starts it on the same data and port.
    pub fn begin(&mut self) {
        let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin/s3s-fs");
        let child = Command::new(binary)
            .args(["--host", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--access-key", KEY, "--secret-key", SECRET])
            .arg(self.root())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.running = Some(child.expect("s3s-fs, which scripts/setup-s3 builds"));
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            assert!(began.elapsed() < PATIENCE, "s3s-fs does not listen");
            sleep(Duration::from_millis(20));
        }
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// What it keeps: a directory for each bucket.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Where it keeps an object of the place.
    pub fn file(&self, object: &str) -> PathBuf {
        self.root().join(BUCKET).join(PREFIX).join(object)
    }

    /// The place `west` in its bucket, asked for at that port.
    pub fn config(&self, port: u16) -> PlaceConfig {
        self.config_with(port, BUCKET, KEY, SECRET)
    }

    pub fn config_with(&self, port: u16, bucket: &str, key: &str, secret: &str) -> PlaceConfig {
        let file = self.dir.path().join(format!("credentials-{key}-{secret}"));
        let text =
            format!("[default]\naws_access_key_id = {key}\naws_secret_access_key={secret}\n");
        fs::write(&file, text).unwrap();
        PlaceConfig {
            name: "west".to_string(),
            location: Location::S3 { bucket: bucket.to_string(), prefix: PREFIX.to_string() },
            region: None,
            endpoint: Some(format!("http://127.0.0.1:{port}")),
            credentials_file: Some(file),
        }
    }

    pub fn place(&self) -> Place {
        Place::open(&self.config(self.port)).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The place `east`.
pub fn directory(path: &Path) -> PlaceConfig {
    PlaceConfig {
        name: "east".to_string(),
        location: Location::Directory(path.display().to_string()),
        region: None,
        endpoint: None,
        credentials_file: None,
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// The text of an error, which names the place and nothing that opens it.
#[track_caller]
pub fn told(error: &RepositoryError) -> String {
    let text = format!("{error} {error:?}");
    assert!(text.contains("west"), "{text}");
    for secret in [SECRET, "X-Amz", "Signature="] {
        assert!(!text.contains(secret), "{text}");
    }
    error.to_string()
}
