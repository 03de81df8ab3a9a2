//! `node.toml`: the little a process needs to find the rest: its name, the store, its certificate,
//! the data directory.

use crate::disk;
use anyhow::{Context, bail};
use everhold_core::spec::Spec;
use everhold_store::{EtcdConfig, TlsFiles};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFile {
    pub name: String,
    pub cluster: String,
    pub data: PathBuf,
    pub store: Vec<String>,
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub store_tls: StoreTls,
}

/// How the store's servers and their clients prove themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreTls {
    /// With the cluster's own certificates.
    #[default]
    Own,
    /// With these: the operator's etcd.
    Files(TlsFiles),
    /// In the clear: the operator's etcd on loopback.
    Clear,
}

impl StoreTls {
    pub fn of(spec: &Spec) -> StoreTls {
        let Some(store) = &spec.store else { return StoreTls::Own };
        store.tls.as_ref().map_or(StoreTls::Clear, |it| {
            StoreTls::Files(TlsFiles {
                ca: it.ca.clone().into(),
                cert: it.cert.clone().into(),
                key: it.key.clone().into(),
            })
        })
    }
}

/// Of one call to the store. A member whose leader was lost passes what it is told on to it, and
/// never says so: a call is made again after this, when the others have elected another leader (1
/// to 2 s after the loss). A disk that stalls for half a second is waited for.
const DEADLINE: Duration = Duration::from_millis(1_200);

impl NodeFile {
    pub fn read(path: &Path) -> anyhow::Result<NodeFile> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("E220 cannot read {shown}; next step: `everhold up` writes it")
        })?;
        let document: toml_edit::DocumentMut =
            text.parse().with_context(|| format!("E220 {shown} is not TOML"))?;
        let get = |key: &str| -> anyhow::Result<String> {
            let item = key.split('.').try_fold(document.as_item(), |item, part| item.get(part));
            let Some(value) = item.and_then(|item| item.as_str()) else {
                bail!("E220 {shown}: `{key}` is missing or not a string");
            };
            Ok(value.to_string())
        };
        let store_tls = match document.get("store_tls") {
            None => StoreTls::Own,
            Some(item) if item.as_str() == Some("clear") => StoreTls::Clear,
            Some(_) => StoreTls::Files(TlsFiles {
                ca: get("store_tls.ca")?.into(),
                cert: get("store_tls.cert")?.into(),
                key: get("store_tls.key")?.into(),
            }),
        };
        let store = document.get("store").and_then(|item| item.as_array());
        let store = store.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_string));
        Ok(NodeFile {
            name: get("name")?,
            cluster: get("cluster")?,
            data: get("data")?.into(),
            store: store.collect(),
            ca: get("tls.ca")?.into(),
            cert: get("tls.cert")?.into(),
            key: get("tls.key")?.into(),
            store_tls,
        })
    }

    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut document = toml_edit::DocumentMut::new();
        let text = |path: &Path| path.display().to_string();
        document["name"] = toml_edit::value(&self.name);
        document["cluster"] = toml_edit::value(&self.cluster);
        document["data"] = toml_edit::value(text(&self.data));
        document["store"] = toml_edit::value(self.store.iter().collect::<toml_edit::Array>());
        let files = |ca: &Path, cert: &Path, key: &Path| {
            let mut table = toml_edit::Table::new();
            for (name, path) in [("ca", ca), ("cert", cert), ("key", key)] {
                table[name] = toml_edit::value(text(path));
            }
            toml_edit::Item::Table(table)
        };
        match &self.store_tls {
            StoreTls::Own => {}
            StoreTls::Clear => document["store_tls"] = toml_edit::value("clear"),
            StoreTls::Files(it) => document["store_tls"] = files(&it.ca, &it.cert, &it.key),
        }
        document["tls"] = files(&self.ca, &self.cert, &self.key);
        let text = document.to_string();
        // On a full disk the file that is there serves.
        if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        disk::write_whole(path, &text)
    }

    fn tls_of_store(&self) -> Option<TlsFiles> {
        match &self.store_tls {
            StoreTls::Own => Some(TlsFiles {
                ca: self.ca.clone(),
                cert: self.cert.clone(),
                key: self.key.clone(),
            }),
            StoreTls::Files(files) => Some(files.clone()),
            StoreTls::Clear => None,
        }
    }

    pub fn store_config(&self) -> EtcdConfig {
        EtcdConfig { endpoints: self.store.clone(), tls: self.tls_of_store(), deadline: DEADLINE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("node.toml");
        let file = NodeFile {
            name: "a".into(),
            cluster: "shop".into(),
            data: "/srv/with \"quotes\"".into(),
            store: vec!["127.0.0.1:2379".into()],
            ca: "/ca.pem".into(),
            cert: "/a.pem".into(),
            key: "/a.key".into(),
            store_tls: StoreTls::Own,
        };
        let files = TlsFiles { ca: "/1".into(), cert: "/2".into(), key: "/3".into() };
        for store_tls in [StoreTls::Own, StoreTls::Clear, StoreTls::Files(files)] {
            let file = NodeFile { store_tls, ..file.clone() };
            file.write(&path).expect("written");
            assert_eq!(NodeFile::read(&path).expect("read"), file);
        }
    }
}
