//! `everhold token` and `everhold join`: how a machine comes to belong to a cluster.
//!
//! A token names one node, works for one machine, and expires. It carries the fingerprint of the
//! cluster's authority, so that the machine knows whom it talks to before it says anything. It asks
//! twice: first what it would have to run, so that a machine that can't is refused before anything
//! has changed, then to be let in.

use super::init::{Joined, machine};
use super::{
    NODE_FILE, begin, certify, check, endpoints, finish, joined_key, node_file, spec_copy,
};
use crate::layout::Layout;
use crate::link::{receive, send};
use crate::node_file::{NodeFile, StoreTls};
use crate::secrets::hex;
use crate::spec::record;
use crate::supervisor::say;
use crate::{clock, disk, secrets, spec_store};
use anyhow::{Context as _, bail};
use everhold_adapters::pki::{Authority, CertPair};
use everhold_core::kv::{Expect, Txn, TxnOutcome};
use everhold_core::records::{decode, encode};
use everhold_core::spec::Spec;
use everhold_store::{Etcd, Store, StoreError};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What a token begins with: its version.
const TOKEN: &str = "eh1";
/// Of the authority's SHA-256 that a token carries: 128 bits.
const FINGERPRINT_BYTES: usize = 16;
/// Machines that knock at a time; strangers can reach this port.
const GUESTS_MAX: usize = 16;
/// For one conversation.
const TALK: Duration = Duration::from_secs(15);

/// A token as the store keeps it: not the secret, which only its bearer has.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Invitation {
    node: String,
    /// SHA-256 of the secret.
    hash: String,
    /// Ends with the token.
    lease: u64,
    /// The machine it let in.
    used_by: Option<String>,
    /// The node's earlier machine is gone for good; this one takes its place.
    replace: bool,
}

fn invitation_key(cluster: &str, id: &str) -> String {
    format!("/everhold/{cluster}/token/{id}")
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(&Sha256::digest(certificate)[..FINGERPRINT_BYTES])
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    #[error("{node} has joined already; if its machine is gone for good, replace it")]
    HasJoined { node: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot make a token: {0}")]
    Local(String),
}

/// Makes a token for one node.
pub async fn invite(
    store: &impl Store,
    layout: &Layout,
    cluster: &str,
    node: &str,
    lasts: Duration,
    replace: bool,
) -> Result<String, InviteError> {
    let local = |error: &dyn std::fmt::Display| InviteError::Local(error.to_string());
    let joined = joined_key(cluster, node);
    if !replace && store.get_prefix(&joined).await?.get(&joined).is_some() {
        return Err(InviteError::HasJoined { node: node.to_string() });
    }
    let ca = layout.pki().join("ca.pem");
    let ca = CertificateDer::from_pem_file(&ca).map_err(|e| local(&e))?;
    let (id, secret) =
        (secrets::fresh().map_err(|e| local(&e))?, secrets::fresh().map_err(|e| local(&e))?);
    let id = &id[..16];
    let lease = store.lease_grant(lasts).await?.id;
    let hash = sha256(secret.as_bytes());
    let invitation = Invitation { node: node.to_string(), hash, lease, used_by: None, replace };
    let key = invitation_key(cluster, id);
    let txn = Txn::new().guard(&key, Expect::Absent).put_leased(&key, encode(&invitation), lease);
    match store.txn(&txn).await? {
        TxnOutcome::Done { .. } => Ok(format!("{TOKEN}-{}-{id}-{secret}", fingerprint(&ca))),
        TxnOutcome::Refused { .. } => Err(local(&"try again")),
    }
}

/// What a machine says.
#[derive(Serialize, Deserialize)]
struct Knock {
    id: String,
    secret: String,
    machine: String,
    /// Else it only looks.
    join: bool,
}

/// What it is told.
#[derive(Serialize, Deserialize)]
enum Reply {
    Welcome(Box<Welcome>),
    Refused(String),
}

#[derive(Serialize, Deserialize)]
struct Welcome {
    cluster: String,
    node: String,
    spec: String,
    /// For who joins, not for who looks.
    keys: Option<Keys>,
}

#[derive(Serialize, Deserialize)]
struct Keys {
    ca: String,
    ca_key: String,
    secret: String,
}

/// What a machine lets others in with.
#[derive(Clone)]
pub struct Host {
    pub cluster: String,
    pub layout: Layout,
    pub store: Etcd,
}

/// Listens for machines that want to join, until the process ends.
pub async fn serve(at: SocketAddr, certs: CertPair, host: Host) -> anyhow::Result<()> {
    acceptor(&certs)?;
    let listener = TcpListener::bind(at).await.with_context(|| {
        format!(
            "E211 cannot listen on {at} for machines that join; next step: end the process that \
             has this port"
        )
    })?;
    tokio::spawn(async move {
        let free = Arc::new(Semaphore::new(GUESTS_MAX));
        loop {
            let Ok(permit) = free.clone().acquire_owned().await else { return };
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (certs, host) = (certs.clone(), host.clone());
            tokio::spawn(async move {
                let talked = tokio::time::timeout(TALK, talk(&certs, stream, &host)).await;
                if !matches!(talked, Ok(Ok(()))) {
                    tracing::debug!(%from, "a machine that knocked left");
                }
                drop(permit);
            });
        }
    });
    Ok(())
}

/// With the certificate as it is now.
fn acceptor(certs: &CertPair) -> anyhow::Result<TlsAcceptor> {
    let chain = vec![
        CertificateDer::from_pem_file(&certs.cert)?,
        // With the authority's own certificate, whose fingerprint the token carries.
        CertificateDer::from_pem_file(&certs.ca)?,
    ];
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(&certs.key)?)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn talk(certs: &CertPair, stream: TcpStream, host: &Host) -> anyhow::Result<()> {
    let mut stream = acceptor(certs)?.accept(stream).await?;
    while let Some(knock) = receive::<Knock>(&mut stream).await {
        let reply = match admit(&knock, host).await {
            Ok(welcome) => Reply::Welcome(Box::new(welcome)),
            Err(error) => Reply::Refused(format!("{error:#}")),
        };
        send(&mut stream, &reply).await?;
    }
    Ok(())
}

async fn admit(knock: &Knock, host: &Host) -> anyhow::Result<Welcome> {
    let Host { cluster, store, layout, .. } = host;
    let unknown = "E246 the token is unknown, used or expired; next step: `everhold token NODE` makes \
                   a new one";
    let key = invitation_key(cluster, &knock.id);
    let known = store.get_prefix(&key).await?;
    let Some(kv) = known.get(&key) else { bail!(unknown) };
    let invitation: Invitation = decode(&kv.value).map_err(|why| anyhow::anyhow!("{why}"))?;
    let used = invitation.used_by.as_ref().is_some_and(|by| *by != knock.machine);
    if used || sha256(knock.secret.as_bytes()) != invitation.hash {
        bail!(unknown);
    }
    let spec_key = spec_store::key(cluster);
    let text = store.get_prefix(&spec_key).await?;
    let text = text.get(&spec_key).context("the store holds no spec")?.value.clone();
    let node = invitation.node.clone();
    if !record::from_json(&text)?.nodes.contains_key(&node) {
        bail!("E221 {node} is not a node of the spec any more; next step: add it and apply");
    }
    let joined = joined_key(cluster, &node);
    let before = store.get_prefix(&joined).await?;
    let before = before.get(&joined);
    let same = before.and_then(|kv| decode::<Joined>(&kv.value).ok());
    let same = same.is_some_and(|record| record.machine == knock.machine);
    if before.is_some() && !same && !invitation.replace {
        bail!(
            "E247 another machine has joined as {node}; next step: if it is gone for good, \
             `everhold token {node} --replace`"
        );
    }
    let welcome = |keys| Welcome { cluster: cluster.clone(), node: node.clone(), spec: text, keys };
    if !knock.join {
        return Ok(welcome(None));
    }
    let authority = Authority::load(&layout.pki())?;
    let keys = Keys {
        ca: authority.cert_pem().to_string(),
        ca_key: authority.key_pem(),
        secret: secrets::read(&layout.cluster_secret())?,
    };
    let record = Joined { at: clock::wall(), machine: knock.machine.clone() };
    let used = Invitation { used_by: Some(knock.machine.clone()), ..invitation };
    let txn = Txn::new()
        .guard(&key, Expect::Rev(kv.rev))
        .guard(&joined, before.map_or(Expect::Absent, |kv| Expect::Rev(kv.rev)))
        .put_leased(&key, encode(&used), used.lease)
        .put(&joined, encode(&record));
    match store.txn(&txn).await? {
        TxnOutcome::Done { .. } => Ok(welcome(Some(keys))),
        TxnOutcome::Refused { .. } => bail!(unknown),
    }
}

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// `TOKEN@HOST:PORT`, or `-`: the first line of stdin, so that it stands in no list of processes.
    pub invitation: String,
    pub data: PathBuf,
    pub file: PathBuf,
}

struct Token<'a> {
    fingerprint: &'a str,
    id: &'a str,
    secret: &'a str,
    host: &'a str,
    port: u16,
}

fn parse(text: &str) -> Option<Token<'_>> {
    let (token, at) = text.trim().split_once('@')?;
    let mut parts = token.split('-');
    if parts.next()? != TOKEN {
        return None;
    }
    let (fingerprint, id, secret) = (parts.next()?, parts.next()?, parts.next()?);
    let hexadecimal = |it: &str| !it.is_empty() && it.chars().all(|c| c.is_ascii_hexdigit());
    let whole = fingerprint.len() == FINGERPRINT_BYTES * 2
        && [fingerprint, id, secret].into_iter().all(hexadecimal)
        && parts.next().is_none();
    let (host, port) = at.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    whole.then_some(Token { fingerprint, id, secret, host, port: port.parse().ok()? })
}

/// Makes this machine the node that the token names.
pub async fn join(options: Options) -> anyhow::Result<()> {
    let mut invitation = options.invitation;
    if invitation == "-" {
        invitation.clear();
        std::io::stdin().read_line(&mut invitation).context("read the token")?;
    }
    let token = parse(&invitation).context(
        "E248 this is not TOKEN@HOST:PORT as `everhold token` prints it; next step: copy the whole \
         line",
    )?;
    let layout = Layout::new(&options.data)?;
    let mut stream = reach(&token).await?;
    // Not kept before it is known that the machine will do: looking changes nothing.
    let place = layout.supervisor().join("machine");
    let known = secrets::read(&place).ok();
    let mut knock = Knock {
        id: token.id.to_string(),
        secret: token.secret.to_string(),
        machine: known.unwrap_or_default(),
        join: false,
    };
    let welcome = ask(&mut stream, &knock).await?;
    let spec: Spec = record::from_json(&welcome.spec)?;
    let (cluster, me) = (welcome.cluster.clone(), welcome.node.clone());
    let own = spec.nodes.get(&me).context("the node is in the spec")?;
    if !layout.cluster_record().exists() {
        check(&spec, &layout, &me)?;
    }
    let _lock = begin(&layout, &cluster, &options.file)?;
    say(format_args!("· cluster {cluster}, node {me}, data in {}", layout.root().display()));
    knock.machine = machine(&layout)?;
    knock.join = true;
    let keys = ask(&mut stream, &knock).await?.keys.context("the cluster's keys")?;
    let authority = Authority::import(&layout.pki(), &keys.ca, &keys.ca_key)?;
    secrets::private_dir(&layout.secrets())?;
    disk::write_whole(&layout.cluster_secret(), &keys.secret)?;
    secrets::make_all(&layout, &spec).context("make the secrets")?;
    let certs = certify(&authority, &me, own)?;
    disk::write_whole(&spec_copy(&layout), &welcome.spec)?;
    let blank = NodeFile {
        name: me.clone(),
        cluster: cluster.clone(),
        data: layout.root().to_path_buf(),
        store: Vec::new(),
        ca: PathBuf::new(),
        cert: PathBuf::new(),
        key: PathBuf::new(),
        store_tls: StoreTls::of(&spec),
    };
    let node = node_file(&me, &blank, &certs.agent, &endpoints(&spec, &me));
    finish(&node, &options.file)?;
    say(format_args!("· node file {}", options.file.display()));
    println!("joined {cluster} as {me}");
    let named = match options.file == Path::new(NODE_FILE) {
        true => String::new(),
        false => format!(" --node-file {}", options.file.display()),
    };
    say(format_args!("Next: `everhold run{named}` (or `systemctl enable --now everhold`)"));
    Ok(())
}

type Stream = tokio_rustls::client::TlsStream<TcpStream>;

async fn reach(token: &Token<'_>) -> anyhow::Result<Stream> {
    let provider = Arc::new(default_provider());
    let verifier = Pinned { fingerprint: token.fingerprint.to_string() };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let name = ServerName::try_from(token.host.to_string())?;
    let at = format!("{}:{}", token.host, token.port);
    let reached = async {
        let stream = TcpStream::connect((token.host, token.port)).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    match tokio::time::timeout(TALK, reached).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => bail!(
            "E249 cannot talk to the cluster at {at}: {error}; next step: see that `everhold run` \
             runs there, and that the token is of that cluster"
        ),
        Err(_) => {
            bail!("E249 nobody answers at {at}; next step: see that `everhold run` runs there")
        }
    }
}

async fn ask(stream: &mut Stream, knock: &Knock) -> anyhow::Result<Welcome> {
    let talked = async {
        send(stream, knock).await.ok()?;
        receive::<Reply>(stream).await
    };
    match tokio::time::timeout(TALK, talked).await {
        Ok(Some(Reply::Welcome(welcome))) => Ok(*welcome),
        Ok(Some(Reply::Refused(why))) => bail!(why),
        Ok(None) | Err(_) => bail!("E249 the cluster ended the conversation; next step: try again"),
    }
}

/// Believes a server whose authority has the fingerprint that the token carries, and no other.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let foreign = || rustls::Error::General("it is of another cluster than the token".into());
        let authority = intermediates.iter().find(|it| fingerprint(it) == self.fingerprint);
        let mut roots = RootCertStore::empty();
        roots.add(authority.ok_or_else(foreign)?.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::new(default_provider()))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_tokens_are_taken() {
        let whole = format!("eh1-{}-0a1b-ff00@10.0.0.1:15498", "ab".repeat(16));
        let token = parse(&whole).expect("whole");
        assert_eq!(
            (token.id, token.secret, token.host, token.port),
            ("0a1b", "ff00", "10.0.0.1", 15498)
        );
        let six = whole.replace("10.0.0.1", "[fd00::1]");
        assert_eq!(parse(&six).expect("whole").host, "fd00::1");
        for bad in [
            "",
            "eh1",
            "eh1-ab-0a-ff@10.0.0.1:1",
            &whole[..whole.len() - 6],
            &whole.replace("eh1", "eh2"),
            &whole.replace("ff00", "xyz"),
            &whole.replace("-ff00", ""),
            &whole.replace(":15498", ":99999"),
            &whole.replace("ff00", "ff00-1"),
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
