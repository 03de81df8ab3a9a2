//! A cluster for a drill: three nodes on this machine, made from a copy of a backup and its log.
//! What it does goes nowhere else: its repository is the copy.

use super::super::client::Client;
use super::super::course::{INTERRUPTED, LOOK, goes_on};
use super::super::failure::{Failure, say};
use super::super::recover::{self, Recovered};
use super::super::repository;
use crate::supervisor::STOP_WITHIN;
use crate::{backup, fault, secrets};
use everhold_adapters::postgres::Aside;
use everhold_core::spec::{Location, Spec};
use everhold_repository::backup::{Info, Progress, Watch};
use everhold_repository::{Password, PlaceConfig};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A restore of much data takes its time.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// In order: its supervisor bounds the end of the gateway and of the store, and of each node twice.
/// Then it is killed.
const ENDS_WITHIN: Duration = STOP_WITHIN.saturating_mul(3 + 2 * NODES.len() as u32);
const PORTS_OF_A_NODE: u16 = 10;
/// In the middle of the second page.
const FLIPPED_AT: u64 = 8_192 + 4_096;
const NODES: [&str; 3] = ["a", "b", "c"];

pub struct Scratch {
    pub dir: PathBuf,
    spec: Spec,
    service: String,
    up: Option<Child>,
}

impl Scratch {
    /// An empty directory for it.
    pub fn new(client: &Client, service: &str, at: Option<&Path>) -> Result<Scratch, Failure> {
        let spec = repository::spec(client)?;
        if spec.postgres(service).is_none_or(|it| it.backup.is_none()) {
            let text = format!("E286 no backups of {service} are declared");
            return Err(Failure::of_text(&text));
        }
        let dir = match at {
            Some(at) => std::path::absolute(at).map_err(|error| failed("find", at, &error))?,
            None => std::env::temp_dir().join(format!("everhold-drill-{}", std::process::id())),
        };
        let made = fs::DirBuilder::new().mode(0o711).create(&dir);
        made.map_err(|error| failed("make", &dir, &error))?;
        Ok(Scratch { dir, spec, service: service.to_string(), up: None })
    }

    /// Copies the newest backup with its log into a repository of its own.
    pub fn copy(&self) -> Result<(Info, u64), Failure> {
        let told = |error: anyhow::Error| Failure::of_text(&format!("{error:#}"));
        let service = self.spec.postgres(&self.service);
        let names = service.and_then(|it| it.backup.as_ref()).map(|it| it.repositories.clone());
        let from = backup::open(&self.spec, &names.unwrap_or_default()).map_err(told)?;
        let newest = backup::restore::latest(&from, &self.service).map_err(told)?;
        let path = self.dir.join("vault.key");
        let key = secrets::make_once(&path).and_then(|()| secrets::read(&path));
        let key = key.map_err(|error| failed("write", &path, &error))?;
        let vault = self.dir.join("vault").display().to_string();
        let config = PlaceConfig {
            name: "scratch".to_string(),
            location: Location::Directory(vault),
            region: None,
            endpoint: None,
            credentials_file: None,
        };
        let progress = |_: Progress| {};
        let watch = Watch { progress: &progress, stop: &INTERRUPTED };
        let password = Password::new(&key);
        let to = (&config, &password);
        everhold_repository::backup::copy(&from, &self.service, &newest, to, &watch)
            .map_err(backup::told)
            .map_err(told)
    }

    /// Starts it; it has no data then.
    pub fn start(&mut self) -> Result<Client, Failure> {
        let base = free_ports(NODES.len() as u16 * PORTS_OF_A_NODE + 6)?;
        let file = self.dir.join("everhold.toml");
        fs::write(&file, self.text(base)).map_err(|error| failed("write", &file, &error))?;
        let log = fs::File::create(self.dir.join("up.log"));
        let log = log.map_err(|error| failed("make", &self.dir, &error))?;
        let errors = log.try_clone().map_err(|error| failed("open", &self.dir, &error))?;
        let program = std::env::current_exe().unwrap_or_else(|_| "everhold".into());
        // It ends with the drill, however that ends.
        let mut up = Command::new("setpriv");
        // Ctrl-C in the terminal reaches the drill alone.
        up.process_group(0);
        up.args(["--pdeathsig", "INT"]).arg(program).arg("up").arg("--spec").arg(&file);
        up.arg("--data").arg(self.data()).arg("--store-port").arg((base + 33).to_string());
        up.env("EVERHOLD_POINTER", self.dir.join("up.json")).stdin(Stdio::null());
        up.stdout(log).stderr(errors);
        let child = up.spawn();
        self.up = Some(child.map_err(|error| failed("run", Path::new("everhold up"), &error))?);
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(client) = Client::find(Some(&self.data()), false)
                && client.get("/v1/status").is_ok()
            {
                return Ok(client);
            }
            self.alive(until)?;
            std::thread::sleep(LOOK);
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn pgdata(&self, node: &str) -> PathBuf {
        self.data().join(node).join(&self.service).join("pgdata")
    }

    fn text(&self, base: u16) -> String {
        let service = &self.service;
        let mut nodes = String::new();
        for (at, node) in NODES.iter().enumerate() {
            let from = base + at as u16 * PORTS_OF_A_NODE;
            let to = from + PORTS_OF_A_NODE - 1;
            nodes += &format!("{node} = {{ address = \"127.0.0.1\", ports = \"{from}-{to}\" }}\n");
        }
        let declared = self.spec.postgres(service);
        let (database, owner) = declared
            .map(|it| (it.database.clone(), it.owner.clone()))
            .unwrap_or_else(|| (service.clone(), service.clone()));
        let (dir, write) = (self.dir.display(), base + 30);
        format!(
            "schema = 1\ncluster = \"{}\"\n[node]\n{nodes}\
             [service.{service}]\nkind = \"postgres\"\nnodes = [\"a\", \"b\", \"c\"]\n\
             database = \"{database}\"\nowner = \"{owner}\"\n\
             scrub_every = \"5s\"\nparameters = {{ checkpoint_timeout = \"30s\" }}\n\
             [service.{service}.backup]\nrepositories = [\"scratch\"]\n\
             [repository]\nscratch = {{ url = \"file://{dir}/vault\", key_file = \"{dir}/vault.key\" }}\n\
             [listener]\nwrite = {{ bind = \"127.0.0.1:{write}\", protocol = \"postgres\", \
             service = \"{service}\", role = \"primary\" }}\n\
             [api]\nbind = \"127.0.0.1:{}\"\n",
            self.spec.cluster,
            base + 31
        )
    }

    /// Waits until a recovery has ended that was begun with that answer.
    pub fn recovered(&mut self, client: &Client, answer: &Value) -> Result<Recovered, Failure> {
        let (until, service) = (Instant::now() + PATIENCE, self.service.clone());
        recover::ended(client, &service, answer, &mut || self.alive(until))
    }

    /// Waits until its status is as wanted.
    pub fn wait(
        &mut self,
        client: &Client,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, Failure> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(status) = client.get("/v1/status")
                && wanted(&status)
            {
                return Ok(status);
            }
            self.alive(until).map_err(|failure| {
                let why =
                    failure.get("message").map_or_else(String::new, super::super::output::plain);
                Failure::plain(format!("no {what}: {why}"))
            })?;
            std::thread::sleep(LOOK);
        }
    }

    fn alive(&mut self, until: Instant) -> Result<(), Failure> {
        goes_on()?;
        let ended = self.up.as_mut().and_then(|up| up.try_wait().ok().flatten());
        if let Some(status) = ended {
            let log = fs::read_to_string(self.dir.join("up.log")).unwrap_or_default();
            let last = log.lines().last().unwrap_or_default();
            return Err(Failure::plain(format!("the scratch cluster ended, {status}: {last}")));
        }
        match Instant::now() > until {
            true => Err(Failure::plain(format!("not within {} s", PATIENCE.as_secs()))),
            false => Ok(()),
        }
    }

    /// Flips a bit of a page of a node that doesn't lead, in a file that nobody uses.
    pub fn flip_a_bit(&self, leader: &str) -> Result<Flipped, Failure> {
        let node = NODES.into_iter().find(|node| *node != leader).unwrap_or(NODES[0]);
        let pgdata = self.pgdata(node);
        // Of the template of databases: nothing reads it, so only the disk has it.
        let path = pgdata.join("base/1/2609");
        let flip = || -> std::io::Result<u8> {
            let open = fs::OpenOptions::new().read(true).write(true).open(&path)?;
            let mut byte = [0];
            open.read_exact_at(&mut byte, FLIPPED_AT)?;
            open.write_all_at(&[byte[0] ^ 1], FLIPPED_AT)?;
            open.sync_all()?;
            Ok(byte[0])
        };
        let was = flip().map_err(|error| failed("change", &path, &error))?;
        Ok(Flipped { path, was })
    }

    /// Ends it and takes everything of it away.
    pub fn remove(&mut self) -> Result<(), Failure> {
        if let Some(mut up) = self.up.take() {
            if let Some(pid) = rustix::process::Pid::from_raw(up.id() as i32) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
            }
            let until = Instant::now() + ENDS_WITHIN;
            while up.try_wait().is_ok_and(|ended| ended.is_none()) {
                if Instant::now() > until {
                    say("it does not end in order");
                    let _ = up.kill();
                }
                std::thread::sleep(LOOK);
            }
            self.end_what_is_left()?;
        }
        fs::remove_dir_all(&self.dir).map_err(|error| failed("remove", &self.dir, &error))
    }
}

impl Scratch {
    /// What its supervisor could not end, as servers whose agent does not answer.
    fn end_what_is_left(&self) -> Result<(), Failure> {
        for pgdata in NODES.map(|node| self.pgdata(node)) {
            let ended = Aside::clear(&pgdata);
            ended.map_err(|error| failed("end what runs in", &pgdata, &error))?;
        }
        match fault::kill_all(&self.data()) {
            0 => Ok(()),
            left => Err(failed("end", &self.dir, &format!("{left} processes stay"))),
        }
    }
}

/// A bit that is not as it was written.
pub struct Flipped {
    pub path: PathBuf,
    was: u8,
}

impl Flipped {
    /// The byte is what it was.
    pub fn is_mended(&self) -> bool {
        let mut byte = [0];
        let read =
            fs::File::open(&self.path).and_then(|it| it.read_exact_at(&mut byte, FLIPPED_AT));
        read.is_ok() && byte[0] == self.was
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.dir.exists() {
            let _ = self.remove();
        }
    }
}

fn failed(doing: &str, path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::plain(format!("cannot {doing} {}: {error}", path.display()))
}

/// The first of so many consecutive ports that nobody listens on, below where Linux takes outgoing
/// ones from.
fn free_ports(count: u16) -> Result<u16, Failure> {
    let begin = 20_000 + (std::process::id() % 8_000) as u16;
    let free = |base: &u16| {
        (*base..*base + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
    };
    let found = (begin..31_000).step_by(usize::from(count)).find(free);
    found.ok_or_else(|| Failure::plain(format!("no {count} free ports in a row")))
}
