//! `node.toml`: the little a process needs to find the rest: its name, the store, its certificate,
//! the data directory.

use crate::disk;
use anyhow::{Context, bail};
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
        })
    }

    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut document = toml_edit::DocumentMut::new();
        let text = |path: &Path| path.display().to_string();
        document["name"] = toml_edit::value(&self.name);
        document["cluster"] = toml_edit::value(&self.cluster);
        document["data"] = toml_edit::value(text(&self.data));
        document["store"] = toml_edit::value(self.store.iter().collect::<toml_edit::Array>());
        let mut tls = toml_edit::Table::new();
        tls["ca"] = toml_edit::value(text(&self.ca));
        tls["cert"] = toml_edit::value(text(&self.cert));
        tls["key"] = toml_edit::value(text(&self.key));
        document["tls"] = toml_edit::Item::Table(tls);
        let text = document.to_string();
        // On a full disk the file that is there serves.
        if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        disk::write_whole(path, &text)
    }

    pub fn store_config(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: self.store.clone(),
            tls: TlsFiles { ca: self.ca.clone(), cert: self.cert.clone(), key: self.key.clone() },
            deadline: DEADLINE,
        }
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
        };
        file.write(&path).expect("written");
        assert_eq!(NodeFile::read(&path).expect("read"), file);
    }
}
