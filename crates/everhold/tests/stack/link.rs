//! Links to agents as gateways and APIs have them.

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// One connection.
pub struct Link(TlsStream<TcpStream>);

/// Who dials with the API's certificate.
pub fn client(pki: &Path) -> Arc<ClientConfig> {
    let cert = |name| CertificateDer::from_pem_file(pki.join(name)).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(pki.join("api.key")).expect("a key");
    let mut roots = RootCertStore::empty();
    roots.add(cert("ca.pem")).expect("the authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().expect("protocols");
    let builder = builder.with_root_certificates(roots);
    Arc::new(builder.with_client_auth_cert(vec![cert("api.pem")], key).expect("a client"))
}

impl Link {
    pub async fn open(node: &str, addr: &str, tls: Arc<ClientConfig>) -> std::io::Result<Link> {
        let stream = TcpStream::connect(addr).await?;
        let name = ServerName::try_from(node.to_string()).map_err(std::io::Error::other)?;
        Ok(Link(TlsConnector::from(tls).connect(name, stream).await?))
    }

    pub async fn send(&mut self, frame: &Value) -> std::io::Result<()> {
        let text = frame.to_string();
        self.0.write_u32(text.len() as u32).await?;
        self.0.write_all(text.as_bytes()).await?;
        self.0.flush().await
    }

    /// The next frame, into `frame`.
    pub async fn receive(&mut self, frame: &mut Vec<u8>) -> std::io::Result<()> {
        let length = self.0.read_u32().await?;
        frame.resize(length as usize, 0);
        self.0.read_exact(frame).await.map(drop)
    }

    /// What the agent answers to a question.
    pub async fn ask(&mut self, question: &Value) -> std::io::Result<Value> {
        self.send(&json!({ "Ask": { "id": 1, "question": question } })).await?;
        let mut frame = Vec::new();
        loop {
            self.receive(&mut frame).await?;
            let told: Value = serde_json::from_slice(&frame)?;
            if let Some(answer) = told.get("Answer") {
                return Ok(answer["answer"].clone());
            }
        }
    }
}
