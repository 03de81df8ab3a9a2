//! How agents, gateways and the API reach an agent: one TCP connection with mutual TLS, on which
//! the agent tells its report at once when it changes and as often as the dialler asked in its first
//! frame, and answers questions.
//!
//! Whoever wants to hear a node dials it, so a link that is dead in one direction is missed by
//! exactly the side that hears nothing. A frame is a length (32 bits, big endian) and JSON.

use crate::archive::Word;
use crate::backup::desk::Making;
use crate::backup::recovery::Recovery;
use crate::clock;
use crate::scrub;
use everhold_core::policy::HEARTBEAT_MS;
use everhold_core::run::Instance;
use everhold_core::status::Status;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A report of a hundred services is below 1 MB; a journal page too.
const FRAME_BYTES_MAX: u32 = 16 << 20;
/// A peer that says nothing for so long is dialled anew.
const SILENCE: Duration = Duration::from_secs(2);
/// What an agent judges by it hears ten times a second.
pub const JUDGE_EVERY: Duration = Duration::from_millis(HEARTBEAT_MS);
/// Nobody waits longer for a sign of life, so that [`SILENCE`] is several of them.
const EVERY_MAX: Duration = Duration::from_millis(500);
/// What each node of a cluster adds to that for those who hear all.
const SHARE: Duration = Duration::from_millis(20);
/// For the connection and its handshake.
const CONNECT: Duration = Duration::from_millis(800);
/// Certificates are renewed weeks before they end.
pub const RENEWED_WITHIN: Duration = Duration::from_secs(5);
const REDIAL: Duration = Duration::from_millis(50);
/// An answer may need an election of the store, or a checkpoint.
pub const ANSWER: Duration = Duration::from_secs(20);
/// Links an agent takes: 100 nodes, their gateways, and command lines.
const LINKS_MAX: u64 = 512;

/// What a node tells about itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub node: String,
    pub pid: u32,
    pub version: String,
    pub services: BTreeMap<String, Arc<Status>>,
    /// How the log of each service that it leads is archived.
    #[serde(default)]
    pub archives: BTreeMap<String, Word>,
    /// What it waits for.
    #[serde(default)]
    pub holds: Vec<Hold>,
    /// Store as this agent sees it: reachable, revision.
    pub store: Option<u64>,
    pub journal_head: String,
    /// Of each service, once one was begun.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub backups: BTreeMap<String, Making>,
    /// Of each service, once one was begun on this node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub recoveries: BTreeMap<String, Recovery>,
    /// How far each service's data was read for bad pages, and which there are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scrubs: BTreeMap<String, scrub::Word>,
    /// Of each HTTP service, what it runs of it, by instance.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub instances: BTreeMap<String, BTreeMap<String, Instance>>,
}

/// Something that a node waits for, in one of its services or as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub service: Option<String>,
    pub rule: String,
    pub why: String,
    /// What would end it.
    pub unblocks: String,
    /// Only a person ends it.
    pub operator: bool,
    /// On the node's wall clock, as the next one.
    pub since: String,
    /// When it is judged anew whatever becomes of it till then, where that is known.
    pub recheck_at: Option<String>,
    /// The entry of the node's journal about it.
    pub journal: Option<String>,
}

/// A question to an agent, and its answer: both JSON, read where they are needed.
type Answer = Result<serde_json::Value, String>;

#[derive(Serialize, Deserialize)]
enum Frame {
    /// How often the dialler wants to hear.
    Hear {
        every_ms: u64,
    },
    Report(Arc<Report>),
    Ask {
        id: u64,
        question: serde_json::Value,
    },
    Answer {
        id: u64,
        answer: Answer,
    },
}

/// For those that route and show what all nodes say: changes come at once anyway, and in a cluster of
/// a hundred nodes the gateways and APIs would cost each agent more than its own work.
pub fn show_every(nodes: usize) -> Duration {
    SHARE.saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX)).clamp(JUDGE_EVERY, EVERY_MAX)
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(
        "E210 cannot use {path}: {why}; next step: restore it from a copy, or, if it is not the \
         authority's, move the certificate and its key away and start `everhold up` again, which \
         makes new ones"
    )]
    Certificate { path: String, why: String },
    #[error(
        "E211 cannot listen on {addr}: {source}; next step: end the process that has this port"
    )]
    Listen { addr: SocketAddr, source: std::io::Error },
    #[error("{node} is not connected")]
    NotConnected { node: String },
    #[error("{node} did not answer in time")]
    NoAnswer { node: String },
    #[error("{0}")]
    Refused(String),
}

/// Both sides of TLS, with the cluster's authority only. Files that are renewed are read again
/// within [`RENEWED_WITHIN`], for connections that begin after that.
#[derive(Clone)]
pub struct Tls {
    current: Arc<Mutex<Sides>>,
}

#[derive(Clone)]
struct Sides {
    acceptor: TlsAcceptor,
    client: Arc<ClientConfig>,
}

impl Tls {
    /// Reads the files now, and again whenever they have changed.
    pub fn follow(ca: &Path, cert: &Path, key: &Path) -> Result<Tls, LinkError> {
        let seen = modified(cert);
        let tls = Tls::load(ca, cert, key)?;
        let (weak, files) = (Arc::downgrade(&tls.current), [ca, cert, key].map(Path::to_path_buf));
        tokio::spawn(async move {
            let mut seen = seen;
            loop {
                tokio::time::sleep(RENEWED_WITHIN).await;
                let Some(current) = weak.upgrade() else { return };
                let now = modified(&files[1]);
                if now == seen {
                    continue;
                }
                match Tls::load(&files[0], &files[1], &files[2]) {
                    Ok(new) => {
                        tracing::info!(certificate = %files[1].display(), "renewed");
                        *lock(&current) = lock(&new.current).clone();
                        seen = now;
                    }
                    Err(error) => tracing::warn!(%error, "the old certificate stays"),
                }
            }
        });
        Ok(tls)
    }

    /// To prove oneself with towards a server of the cluster.
    pub fn client(&self) -> Arc<ClientConfig> {
        lock(&self.current).client.clone()
    }

    fn acceptor(&self) -> TlsAcceptor {
        lock(&self.current).acceptor.clone()
    }

    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Tls, LinkError> {
        let wrong = |path: &Path| {
            let path = path.display().to_string();
            move |why: String| LinkError::Certificate { path, why }
        };
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(ca).map_err(|e| wrong(ca)(e.to_string()))?;
        roots.add(authority).map_err(|e| wrong(ca)(e.to_string()))?;
        let roots = Arc::new(roots);
        let chain = CertificateDer::from_pem_file(cert).map_err(|e| wrong(cert)(e.to_string()))?;
        let key_der = || PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key)(e.to_string()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| wrong(ca)(e.to_string()))?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| wrong(cert)(e.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![chain.clone()], key_der()?)
            .map_err(|e| wrong(cert)(e.to_string()))?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| wrong(cert)(e.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![chain], key_der()?)
            .map_err(|e| wrong(cert)(e.to_string()))?;
        let sides =
            Sides { acceptor: TlsAcceptor::from(Arc::new(server)), client: Arc::new(client) };
        Ok(Tls { current: Arc::new(Mutex::new(sides)) })
    }
}

fn lock(sides: &Mutex<Sides>) -> MutexGuard<'_, Sides> {
    sides.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When the file was changed last.
pub fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// A question that came in, to be answered.
pub struct Question {
    pub body: serde_json::Value,
    pub answer: oneshot::Sender<Answer>,
}

/// Serves the node's report and takes questions, until dropped.
pub async fn serve(
    addr: SocketAddr,
    tls: Tls,
    reports: watch::Receiver<Arc<Report>>,
    questions: mpsc::Sender<Question>,
) -> Result<(), LinkError> {
    let listener =
        TcpListener::bind(addr).await.map_err(|source| LinkError::Listen { addr, source })?;
    let open = Arc::new(AtomicU64::new(0));
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(REDIAL).await;
                continue;
            };
            if open.load(Ordering::Relaxed) >= LINKS_MAX {
                continue;
            }
            open.fetch_add(1, Ordering::Relaxed);
            let (tls, reports, questions) = (tls.clone(), reports.clone(), questions.clone());
            let open = open.clone();
            tokio::spawn(async move {
                if let Some(stream) = accept(stream, &tls).await {
                    let (read, write) = tokio::io::split(stream);
                    speak(read, write, reports, questions).await;
                }
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    Ok(())
}

/// The other side of [`connect`]; `None`: they did not come to an agreement.
pub async fn accept(
    stream: TcpStream,
    tls: &Tls,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    tokio::time::timeout(CONNECT, tls.acceptor().accept(stream)).await.ok()?.ok()
}

async fn speak(
    mut read: impl AsyncRead + Unpin + Send + 'static,
    mut write: impl AsyncWrite + Unpin + Send + 'static,
    mut reports: watch::Receiver<Arc<Report>>,
    questions: mpsc::Sender<Question>,
) {
    let (answers, mut answered) = mpsc::channel::<(u64, Answer)>(64);
    let (hear, mut beats) = watch::channel(JUDGE_EVERY);
    let listen = async move {
        while let Ok(bytes) = take(&mut read, FRAME_BYTES_MAX).await {
            let Ok(frame) = serde_json::from_slice(&bytes) else { continue };
            let (id, question) = match frame {
                Frame::Ask { id, question } => (id, question),
                Frame::Hear { every_ms } => {
                    let every = Duration::from_millis(every_ms);
                    hear.send_replace(every.clamp(JUDGE_EVERY, EVERY_MAX));
                    continue;
                }
                Frame::Report(_) | Frame::Answer { .. } => return,
            };
            let (answer, told) = oneshot::channel();
            let question = Question { body: question, answer };
            if questions.send(question).await.is_err() {
                return;
            }
            let answers = answers.clone();
            tokio::spawn(async move {
                let answer = told.await.unwrap_or_else(|_| Err("the agent is stopping".into()));
                let _ = answers.send((id, answer)).await;
            });
        }
    };
    let tell = async move {
        let beat = |every| {
            let mut beat = tokio::time::interval(every);
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            beat
        };
        let mut due = beat(JUDGE_EVERY);
        // Most of what is told is what was told before.
        let mut last: Option<(Arc<Report>, Vec<u8>)> = None;
        loop {
            let frame = tokio::select! {
                _ = due.tick() => Frame::Report(reports.borrow_and_update().clone()),
                Ok(()) = beats.changed() => {
                    due = beat(*beats.borrow_and_update());
                    continue;
                }
                changed = reports.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    Frame::Report(reports.borrow_and_update().clone())
                }
                Some((id, answer)) = answered.recv() => Frame::Answer { id, answer },
            };
            // A peer that doesn't take it in a heartbeat's time is dropped, not buffered for.
            let known = last.take().filter(
                |(told, _)| matches!(&frame, Frame::Report(report) if Arc::ptr_eq(told, report)),
            );
            let bytes = match known {
                Some((_, bytes)) => bytes,
                None => match encode(&frame) {
                    Ok(bytes) => bytes,
                    Err(_) => return,
                },
            };
            let sent = tokio::time::timeout(SILENCE, flush(&mut write, &bytes)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
            if let Frame::Report(report) = frame {
                last = Some((report, bytes));
            }
        }
    };
    tokio::select! {
        () = listen => {}
        () = tell => {}
    }
}

/// Why a node is not believed, or does not believe us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its certificate is of another cluster.
    Foreign,
    /// Its certificate has ended, or has not begun.
    Ended,
    /// Another node of this cluster answers at its address.
    AnotherNode,
    /// It says that our certificate has ended.
    OurEnded,
    /// It does not believe our certificate.
    OurForeign,
}

impl Refusal {
    fn of(error: &std::io::Error) -> Option<Refusal> {
        use rustls::AlertDescription as Alert;
        use rustls::CertificateError as Fault;
        use rustls::Error;
        match error.get_ref()?.downcast_ref::<Error>()? {
            Error::InvalidCertificate(fault) => match fault {
                Fault::UnknownIssuer | Fault::BadSignature => Some(Refusal::Foreign),
                Fault::Expired
                | Fault::ExpiredContext { .. }
                | Fault::NotValidYet
                | Fault::NotValidYetContext { .. } => Some(Refusal::Ended),
                Fault::NotValidForName | Fault::NotValidForNameContext { .. } => {
                    Some(Refusal::AnotherNode)
                }
                _ => None,
            },
            Error::AlertReceived(Alert::CertificateExpired) => Some(Refusal::OurEnded),
            Error::AlertReceived(
                Alert::UnknownCA
                | Alert::DecryptError
                | Alert::BadCertificate
                | Alert::CertificateUnknown,
            ) => Some(Refusal::OurForeign),
            _ => None,
        }
    }
}

/// A standing link to one agent.
#[derive(Clone)]
pub struct Link {
    pub node: String,
    pub addr: String,
    refused: Arc<Mutex<Option<(Refusal, String)>>>,
    asks: mpsc::Sender<(serde_json::Value, oneshot::Sender<Answer>)>,
    heard: Arc<AtomicU64>,
}

/// Dials the node and hands on what it says, for as long as the link is kept: changes at once, and
/// `every` so often.
pub fn dial(
    node: String,
    addr: String,
    every: Duration,
    tls: Tls,
    reports: mpsc::Sender<(String, Arc<Report>)>,
) -> Link {
    let (asks, mut asked) = mpsc::channel(64);
    let heard = Arc::new(AtomicU64::new(0));
    let refused = Arc::new(Mutex::new(None));
    let link = Link {
        node: node.clone(),
        addr: addr.clone(),
        refused: refused.clone(),
        asks,
        heard: heard.clone(),
    };
    let hear = Frame::Hear { every_ms: u64::try_from(every.as_millis()).unwrap_or(HEARTBEAT_MS) };
    tokio::spawn(async move {
        loop {
            let ended = match connect(&node, &addr, &tls).await {
                Ok(mut stream) => match send(&mut stream, &hear).await {
                    Ok(()) => converse(&node, stream, &reports, &mut asked, &heard).await,
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            note(&refused, ended.err().as_ref().and_then(Refusal::of));
            heard.store(0, Ordering::Relaxed);
            while let Ok((_, answer)) = asked.try_recv() {
                let _: Result<(), Answer> = answer.send(Err(format!("{node} is not connected")));
            }
            if reports.is_closed() || asked.is_closed() {
                return;
            }
            tokio::time::sleep(REDIAL).await;
        }
    });
    link
}

impl Link {
    /// Since the last report, in milliseconds; `None` while there is no connection.
    pub fn silent_ms(&self) -> Option<u64> {
        let heard = self.heard.load(Ordering::Relaxed);
        (heard > 0).then(|| clock::now().0.saturating_sub(heard))
    }

    /// Why the node is not heard, if a certificate is the reason, and since when.
    pub fn refusal(&self) -> Option<(Refusal, String)> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        refused.filter(|_| self.silent_ms().is_none())
    }

    pub async fn ask(&self, question: serde_json::Value) -> Result<serde_json::Value, LinkError> {
        let node = || self.node.clone();
        if self.silent_ms().is_none_or(|ms| ms > 1_000) {
            return Err(LinkError::NotConnected { node: node() });
        }
        let (answer, told) = oneshot::channel();
        let sent = self.asks.send((question, answer)).await;
        sent.map_err(|_| LinkError::NotConnected { node: node() })?;
        match tokio::time::timeout(ANSWER, told).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(why))) => Err(LinkError::Refused(why)),
            Ok(Err(_)) | Err(_) => Err(LinkError::NoAnswer { node: node() }),
        }
    }
}

pub type Stream = tokio_rustls::client::TlsStream<TcpStream>;

/// What was refused before and is refused again was so all the time.
fn note(refused: &Mutex<Option<(Refusal, String)>>, now: Option<Refusal>) {
    let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
    match (&*refused, now) {
        (Some((known, _)), Some(now)) if *known == now => {}
        (_, now) => *refused = now.map(|refusal| (refusal, clock::wall())),
    }
}

/// Connects to who has a certificate of that name.
pub async fn connect(node: &str, addr: &str, tls: &Tls) -> std::io::Result<Stream> {
    let name = ServerName::try_from(node.to_string()).map_err(std::io::Error::other)?;
    let dialled = async {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(tls.client()).connect(name, stream).await
    };
    tokio::time::timeout(CONNECT, dialled).await?
}

async fn converse(
    node: &str,
    stream: Stream,
    reports: &mpsc::Sender<(String, Arc<Report>)>,
    asked: &mut mpsc::Receiver<(serde_json::Value, oneshot::Sender<Answer>)>,
    heard: &AtomicU64,
) -> std::io::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    // Frames are read whole by a task of their own: a read that is dropped halfway loses its place.
    let (frames, mut frame) = mpsc::channel(64);
    let of = node.to_string();
    let reader = tokio::spawn(async move {
        let mut last: Option<(Vec<u8>, Arc<Report>)> = None;
        let mut passed_over = false;
        while let Ok(taken) = tokio::time::timeout(SILENCE, take(&mut read, FRAME_BYTES_MAX)).await
        {
            let frame = match (taken, &last) {
                (Err(error), _) => {
                    let _ = frames.send(Err(error)).await;
                    return;
                }
                (Ok(bytes), Some((known, report))) if *known == bytes => {
                    Frame::Report(report.clone())
                }
                (Ok(bytes), _) => match serde_json::from_slice(&bytes) {
                    Ok(Frame::Report(report)) => {
                        last = Some((bytes, Arc::clone(&report)));
                        Frame::Report(report)
                    }
                    Ok(other) => other,
                    // A newer version may say more than this one knows.
                    Err(error) => {
                        if !std::mem::replace(&mut passed_over, true) {
                            tracing::warn!(of, %error, "frames are not understood");
                        }
                        continue;
                    }
                },
            };
            if frames.send(Ok(frame)).await.is_err() {
                return;
            }
        }
    });
    let mut waiting: BTreeMap<u64, oneshot::Sender<Answer>> = BTreeMap::new();
    let mut next = 0;
    loop {
        tokio::select! {
            frame = frame.recv() => match frame {
                Some(Ok(Frame::Report(report))) if report.node == node => {
                    heard.store(clock::now().0, Ordering::Relaxed);
                    if reports.send((node.to_string(), report)).await.is_err() {
                        break;
                    }
                }
                Some(Ok(Frame::Answer { id, answer })) => {
                    if let Some(to) = waiting.remove(&id) {
                        let _ = to.send(answer);
                    }
                }
                Some(Ok(Frame::Report(_) | Frame::Ask { .. } | Frame::Hear { .. })) | None => break,
                // Whether our certificate is believed is only said here.
                Some(Err(error)) => {
                    reader.abort();
                    return Err(error);
                }
            },
            question = asked.recv() => {
                let Some((question, answer)) = question else { break };
                next += 1;
                waiting.insert(next, answer);
                waiting.retain(|_, to| !to.is_closed());
                let frame = Frame::Ask { id: next, question };
                let sent = tokio::time::timeout(SILENCE, send(&mut write, &frame)).await;
                if !matches!(sent, Ok(Ok(()))) {
                    break;
                }
            }
        }
    }
    reader.abort();
    Ok(())
}

/// Writes one frame.
pub async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    frame: &impl Serialize,
) -> std::io::Result<()> {
    flush(to, &encode(frame)?).await
}

fn encode(frame: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, frame)?;
    let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}

async fn flush(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// Reads one frame; `None` when there is none that can be understood.
pub async fn receive<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> Option<T> {
    serde_json::from_slice(&take(from, FRAME_BYTES_MAX).await.ok()?).ok()
}

/// Reads one frame of at most so many bytes as it is.
pub async fn take(from: &mut (impl AsyncRead + Unpin), bytes_max: u32) -> std::io::Result<Vec<u8>> {
    let length = from.read_u32().await?;
    if length > bytes_max {
        return Err(std::io::Error::other("the frame is too large"));
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
