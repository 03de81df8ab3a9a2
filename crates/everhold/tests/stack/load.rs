//! Four writers that insert numbered rows through an address and reconnect after each error.
//!
//! Acknowledged means COMMIT without a warning. The outage is the longest gap without one.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::SslMode;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

const WRITERS: u32 = 4;
/// A client gives up on a reply after this and connects anew.
const REPLY: Duration = Duration::from_secs(10);

/// Rows that were acknowledged, and when.
#[derive(Default)]
struct Told {
    acknowledged: Vec<(Instant, u32, i64)>,
    errors: Vec<(Instant, u32, String)>,
}

pub struct Load {
    stop: Arc<AtomicBool>,
    told: Arc<Mutex<Told>>,
    threads: Vec<JoinHandle<()>>,
    target: Target,
}

/// Whom the writers write to.
#[derive(Clone)]
pub struct Target {
    /// For one writer after the other.
    pub configs: Vec<Config>,
    /// The network namespace they are in; their own otherwise.
    pub space: Option<PathBuf>,
    /// A writer gives up on a reply after this and connects anew.
    pub reply: Duration,
}

impl Target {
    /// Runs something as a client on a thread of its own.
    fn spawn<T: Send + 'static, F: Future<Output = T>>(
        &self,
        run: impl FnOnce() -> F + Send + 'static,
    ) -> JoinHandle<T> {
        let space = self.space.clone();
        std::thread::spawn(move || {
            if let Some(space) = space {
                let space = std::fs::File::open(space).expect("the namespace");
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("moved into the namespace");
            }
            block_on(run())
        })
    }

    fn run<T: Send + 'static, F: Future<Output = T>>(
        &self,
        run: impl FnOnce() -> F + Send + 'static,
    ) -> T {
        self.spawn(run).join().expect("a client ends")
    }
}

/// What clients saw.
pub struct Seen {
    pub acknowledged: usize,
    /// Longest time without an acknowledgement.
    pub outage: Duration,
    pub errors: Vec<(Instant, u32, String)>,
    /// Acknowledged rows that are not there any more.
    pub lost: usize,
}

/// How to reach the database as its owner.
pub fn config(port: u16, password: &str) -> Config {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user("app").password(password).dbname("app");
    config.connect_timeout(Duration::from_secs(35));
    config
}

/// A connection, and whether the server warned on it. With TLS if the configuration requires it.
pub async fn connect(config: &Config) -> Result<(Client, Arc<AtomicBool>), String> {
    match config.get_ssl_mode() {
        SslMode::Require => {
            let tls = MakeRustlsConnect::new(any_server());
            let (client, connection) = config.connect(tls).await.map_err(|e| e.to_string())?;
            Ok((client, hear(connection)))
        }
        _ => {
            let (client, connection) = config.connect(NoTls).await.map_err(|e| e.to_string())?;
            Ok((client, hear(connection)))
        }
    }
}

/// As libpq's `sslmode=require`: encrypted, whoever it is.
fn any_server() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().expect("protocols");
    let believer = builder.dangerous().with_custom_certificate_verifier(Arc::new(Believer));
    believer.with_no_client_auth()
}

#[derive(Debug)]
struct Believer;

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = rustls::crypto::ring::default_provider();
        known.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether the server warns, from now on.
fn hear<S, T>(mut connection: Connection<S, T>) -> Arc<AtomicBool>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let warned = Arc::new(AtomicBool::new(false));
    let heard = warned.clone();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message
                && notice.severity() == "WARNING"
            {
                heard.store(true, Ordering::SeqCst);
            }
        }
    });
    warned
}

impl Load {
    /// Makes the table, if need be, and starts to write.
    pub fn start(port: u16, password: &str) -> Load {
        let configs = vec![config(port, password)];
        Load::on(Target { configs, space: None, reply: REPLY })
    }

    /// The same to any target.
    pub fn on(target: Target) -> Load {
        let config = target.configs[0].clone();
        let first = target.run(move || async move { first_number(&config).await });
        let (stop, told) =
            (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Told::default())));
        let threads = (0..WRITERS)
            .map(|writer| {
                let config = target.configs[writer as usize % target.configs.len()].clone();
                let (stop, told, reply) = (stop.clone(), told.clone(), target.reply);
                target.spawn(move || async move {
                    write(writer, first, &config, reply, &stop, &told).await;
                })
            })
            .collect();
        Load { stop, told, threads, target }
    }

    /// The longest gap between acknowledgements since `from`, up to now.
    pub fn outage_since(&self, from: Instant) -> Duration {
        let told = self.told.lock().expect("unpoisoned");
        let mut times: Vec<Instant> =
            told.acknowledged.iter().map(|(at, ..)| *at).filter(|at| *at >= from).collect();
        times.push(from);
        times.push(Instant::now());
        longest_gap(times)
    }

    /// Errors per connection since `from`: the most that one writer saw.
    pub fn errors_since(&self, from: Instant) -> usize {
        let told = self.told.lock().expect("unpoisoned");
        let of =
            |writer| told.errors.iter().filter(|(at, w, _)| *w == writer && *at >= from).count();
        (0..WRITERS).map(of).max().unwrap_or(0)
    }

    /// Waits until writes flow again after what was done before.
    pub fn flows(&self) {
        let before = self.acknowledged();
        for _ in 0..1_800 {
            if self.acknowledged() > before + 20 {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let told = self.told.lock().expect("unpoisoned");
        panic!("no write was acknowledged in 90 s; the last errors: {:?}", {
            told.errors.iter().rev().take(4).map(|(_, _, error)| error).collect::<Vec<_>>()
        });
    }

    /// The first column of a statement's first row, by a client of its own.
    pub fn ask(&self, sql: &'static str) -> String {
        let config = self.target.configs[0].clone();
        self.target.run(move || async move {
            let (client, _) = connect(&config).await.expect("a connection");
            client.query_one(sql, &[]).await.expect("a row").get(0)
        })
    }

    pub fn acknowledged(&self) -> usize {
        self.told.lock().expect("unpoisoned").acknowledged.len()
    }

    /// What was acknowledged, and when, where nobody is left to read it from.
    pub fn abandon(self) -> Vec<(Instant, u32, i64)> {
        self.stop.store(true, Ordering::SeqCst);
        std::mem::take(&mut self.told.lock().expect("unpoisoned").acknowledged)
    }

    /// Ends the writers and looks for every acknowledged row.
    pub fn finish(self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a writer ends");
        }
        let told = std::mem::take(&mut *self.told.lock().expect("unpoisoned"));
        let config = self.target.configs[0].clone();
        let there = self.target.run(move || async move { rows(&config).await });
        let lost: Vec<_> = told
            .acknowledged
            .iter()
            .filter(|(_, w, n)| !there.contains(&(*w as i32, *n)))
            .collect();
        for (at, writer, n) in lost.iter().take(5) {
            eprintln!("LOST: writer {writer} row {n}, acknowledged {:?} ago", at.elapsed());
        }
        Seen {
            acknowledged: told.acknowledged.len(),
            outage: longest_gap(told.acknowledged.iter().map(|(at, ..)| *at).collect()),
            lost: lost.len(),
            errors: told.errors,
        }
    }
}

fn longest_gap(mut times: Vec<Instant>) -> Duration {
    times.sort();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// Makes the table, if need be. Numbers of earlier runs are not used again.
async fn first_number(config: &Config) -> i64 {
    let (client, _) = connect(config).await.expect("a connection");
    let table =
        "CREATE TABLE IF NOT EXISTS written (writer int, n bigint, primary key (writer, n))";
    client.batch_execute(table).await.expect("the table");
    let row = client.query_one("SELECT coalesce(max(n), 0) FROM written", &[]).await;
    row.expect("the last number").get::<_, i64>(0) + 1
}

async fn rows(config: &Config) -> BTreeSet<(i32, i64)> {
    let mut tries = 0;
    loop {
        tries += 1;
        let read = async {
            let (client, _) = connect(config).await?;
            client.query("SELECT writer, n FROM written", &[]).await.map_err(|e| e.to_string())
        };
        match read.await {
            Ok(rows) => return rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
            Err(error) if tries > 10 => panic!("the rows can't be read: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(300)).await,
        }
    }
}

async fn write(
    writer: u32,
    first: i64,
    config: &Config,
    reply: Duration,
    stop: &AtomicBool,
    told: &Mutex<Told>,
) {
    let mut n = first;
    let mut connected: Option<(Client, Arc<AtomicBool>)> = None;
    while !stop.load(Ordering::SeqCst) {
        let result = match &connected {
            None => match connect(config).await {
                Ok(new) => {
                    connected = Some(new);
                    continue;
                }
                Err(error) => Err(error),
            },
            Some((client, warned)) => {
                let sql = format!("INSERT INTO written VALUES ({writer}, {n})");
                match tokio::time::timeout(reply, client.batch_execute(&sql)).await {
                    Ok(Ok(())) if !warned.swap(false, Ordering::SeqCst) => Ok(()),
                    Ok(Ok(())) => Err("acknowledged with a warning".to_string()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("no reply in time".to_string()),
                }
            }
        };
        {
            let mut told = told.lock().expect("unpoisoned");
            match result {
                Ok(()) => told.acknowledged.push((Instant::now(), writer, n)),
                Err(error) => {
                    told.errors.push((Instant::now(), writer, error));
                    connected = None;
                }
            }
        }
        n += 1;
        if connected.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}
