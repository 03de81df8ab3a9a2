//! Certificates of listeners: files on this machine, read anew when they change. What can't be used
//! leaves the certificate that is in use where it is.

use everhold_core::http::HttpTable;
use everhold_core::spec::TlsFiles;
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Those of all listeners of a gateway.
#[derive(Clone, Default)]
pub struct Certificates(Arc<Mutex<BTreeMap<String, Entry>>>);

struct Entry {
    files: TlsFiles,
    /// `None`: they were not read yet.
    seen: Option<Stamps>,
    /// `None`: there was none yet that could be used.
    config: Option<Arc<ServerConfig>>,
}

/// Of both files: inode, size, and when it was changed.
type Stamps = [Option<(u64, u64, i64, i64)>; 2];

impl Certificates {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which listeners need one. What it is is read by [`Certificates::renew`].
    pub fn apply(&self, table: &HttpTable) {
        let mut all = self.all();
        all.retain(|name, entry| {
            table.listeners.get(name).is_some_and(|it| it.tls.as_ref() == Some(&entry.files))
        });
        for (name, listener) in &table.listeners {
            if let (Some(files), false) = (&listener.tls, all.contains_key(name)) {
                let entry = Entry { files: files.clone(), seen: None, config: None };
                all.insert(name.clone(), entry);
            }
        }
    }

    /// Reads those that have changed. Blocks for as long as the disk does, and keeps nobody else
    /// waiting meanwhile.
    pub fn renew(&self) {
        let known = |(name, it): (&String, &Entry)| (name.clone(), it.files.clone(), it.seen);
        let known: Vec<_> = self.all().iter().map(known).collect();
        for (listener, files, seen) in known {
            // Before the files: what changes meanwhile is read again.
            let found = stamps(&files);
            if seen == Some(found) {
                continue;
            }
            let loaded = load(&files);
            let mut all = self.all();
            let Some(entry) = all.get_mut(&listener).filter(|it| it.files == files) else {
                continue;
            };
            entry.seen = Some(found);
            match loaded {
                Ok(config) => {
                    tracing::info!(listener, certificate = files.cert, "certificate read");
                    entry.config = Some(Arc::new(config));
                }
                Err(trouble) => {
                    let kept = entry.config.is_some();
                    tracing::error!(listener, trouble, kept, "no certificate");
                }
            }
        }
    }

    /// `None`: the listener has no TLS. `Some(None)`: it has no certificate that could be used.
    pub fn of(&self, listener: &str) -> Option<Option<Arc<ServerConfig>>> {
        self.all().get(listener).map(|entry| entry.config.clone())
    }
}

fn stamps(files: &TlsFiles) -> Stamps {
    [&files.cert, &files.key].map(|path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    })
}

/// What a file says stays out of the text: it may be a key.
fn load(files: &TlsFiles) -> Result<ServerConfig, String> {
    let broken = |path: &str, why: rustls_pki_types::pem::Error| match why {
        rustls_pki_types::pem::Error::Io(error) => format!("{path}: {error}"),
        _ => format!("{path} is not in PEM form"),
    };
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|why| broken(&files.cert, why))?;
    if chain.is_empty() {
        return Err(format!("{} has no certificate", files.cert));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|why| broken(&files.key, why))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|it| it.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| format!("{} and {} don't go together: {error}", files.cert, files.key))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
