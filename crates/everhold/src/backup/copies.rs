//! The spec and the store's content go into the repositories too: the spec after each change, what
//! the store holds after each backup. With them and the databases a cluster is made anew from nothing
//! but a repository.

use super::shown::time;
use crate::clock;
use crate::cluster::Cluster;
use crate::spec::record;
use anyhow::Context;
use everhold_core::backup::Keep;
use everhold_core::spec::{BackupSpec, Spec};
use everhold_repository::copies::{self, PREFIX, What};
use everhold_repository::{Repository, RepositoryError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Between two looks whether there is something new.
const LOOK: Duration = Duration::from_secs(5);
/// After a try that failed, or that not all places took part in, if there is nothing newer.
const AGAIN: Duration = Duration::from_secs(60);
/// What fails for longer is shown.
const SHOWN_S: u64 = 120;
/// The version of the store's content as it is written here.
const VERSION: u32 = 1;

/// What is in the repositories, as it stands in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    pub spec_s: Option<u64>,
    pub store_s: Option<u64>,
    pub error: Option<String>,
    pub failing_s: Option<u64>,
}

/// The store's content: every key of the cluster and its value. Sealed before it leaves the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Content {
    pub version: u32,
    pub cluster: String,
    pub revision: u64,
    pub keys: BTreeMap<String, String>,
}

/// What of the cluster was copied last by this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    spec: String,
    /// The newest backup of each service.
    backups: BTreeMap<String, String>,
}

/// Tends the copies for as long as this node coordinates.
pub async fn tend(cluster: &Cluster) {
    let mut done = Seen::default();
    let mut failed: Option<(Seen, Instant)> = None;
    let mut told: Option<Copied> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let (spec, word) = (cluster.spec(), cluster.word());
        let Ok(text) = record::to_json(&spec) else { continue };
        if declared(&spec).next().is_none() || word.spec_rev == 0 {
            continue;
        }
        let newest = word.backups.iter();
        let newest = newest.filter_map(|(name, it)| Some((name.clone(), it.newest.clone()?)));
        let seen = Seen { spec: text, backups: newest.collect() };
        let waits = match &failed {
            None => seen == done,
            // A backup since then means that there are places now.
            Some((tried, at)) => *tried == seen && at.elapsed() < AGAIN,
        };
        if waits {
            continue;
        }
        let before = told.take().or(word.copied).unwrap_or_default();
        let (copied, error) = match copy(cluster, spec, &seen, &done).await {
            Ok((spec_s, store_s, error)) => {
                done = seen.clone();
                let store_s = store_s.or(before.store_s);
                (Copied { spec_s: Some(spec_s), store_s, ..Copied::default() }, error)
            }
            Err(error) => (Copied { error: None, ..before.clone() }, Some(error)),
        };
        let now_s = clock::unix_s();
        failed = error.is_some().then(|| (seen, Instant::now()));
        let failing_s = error.is_some().then(|| before.failing_s.unwrap_or(now_s));
        let long = failing_s.is_some_and(|since| now_s >= since + SHOWN_S);
        let error = error.filter(|_| long).map(|error| format!("{error:#}"));
        let copied = Copied { error, failing_s, ..copied };
        if let Err(error) = cluster.put_word("copied", &copied).await {
            tracing::debug!(%error, "what was copied is not written down");
        }
        told = Some(copied);
    }
}

/// The services' wishes for backups.
fn declared(spec: &Spec) -> impl Iterator<Item = &BackupSpec> {
    spec.databases().filter_map(|(_, postgres)| postgres.backup.as_ref())
}

/// When the newest of both are from, and what keeps them from being in all places.
type Made = (u64, Option<u64>, Option<anyhow::Error>);

async fn copy(cluster: &Cluster, spec: Spec, seen: &Seen, done: &Seen) -> anyhow::Result<Made> {
    let content = match seen.backups == done.backups {
        true => None,
        false => Some(cluster.content().await?),
    };
    let (text, opened) = (seen.spec.clone(), cluster.opened.clone());
    let work = move || -> anyhow::Result<Made> {
        let names: BTreeSet<String> =
            declared(&spec).flat_map(|it| it.repositories.iter().cloned()).collect();
        let names: Vec<String> = names.into_iter().collect();
        let repository = opened.open(&spec, &names)?;
        let now_s = clock::unix_s();
        let newest = copies::newest(&repository, What::Spec).map_err(super::told)?;
        let spec_s = match newest.filter(|(_, content)| content == text.as_bytes()) {
            Some((copy, _)) => copy.at_s,
            None => {
                copies::put(&repository, What::Spec, now_s, text.as_bytes())
                    .map_err(super::told)?;
                now_s
            }
        };
        let store_s = content.map(|it| put_content(&repository, &it, now_s)).transpose()?;
        let error = everywhere(&repository, &spec, now_s).err().map(super::told);
        Ok((spec_s, store_s, error))
    };
    tokio::task::spawn_blocking(work).await?
}

/// Puts the store's content if it says more than the newest there; when that is from.
fn put_content(repository: &Repository, content: &Content, now_s: u64) -> anyhow::Result<u64> {
    let newest = copies::newest(repository, What::Store).map_err(super::told)?;
    let known = newest.and_then(|(copy, text)| {
        let known: Content = serde_json::from_slice(&text).ok()?;
        Some((copy.at_s, known))
    });
    if let Some((at_s, _)) = known.filter(|(_, known)| known.says_as_much(content)) {
        return Ok(at_s);
    }
    let text = serde_json::to_vec(content)?;
    copies::put(repository, What::Store, now_s, &text).map_err(super::told)?;
    Ok(now_s)
}

/// Brings all copies to all places, and removes what no service's rules keep.
fn everywhere(repository: &Repository, spec: &Spec, now_s: u64) -> Result<(), RepositoryError> {
    let keeps: Vec<Keep> = declared(spec).map(|it| it.keep.clone()).collect();
    // An error while a place is away: so it is tried until all have everything.
    for what in [What::Spec, What::Store] {
        copies::forget(repository, what, &keeps, now_s)?;
    }
    repository.level(PREFIX).map(drop)
}

/// The newest spec of a repository, and since when it holds.
pub fn newest_spec(repository: &Repository) -> anyhow::Result<(String, u64)> {
    let newest = copies::newest(repository, What::Spec).map_err(super::told)?;
    let (copy, content) = newest.context(
        "E286 the repository has no copy of a spec; next step: the operator's own copy of it",
    )?;
    Ok((String::from_utf8(content).context("E285 the copy of the spec is no text")?, copy.at_s))
}

/// The newest content of the store that a repository has.
pub fn newest_content(repository: &Repository) -> anyhow::Result<Option<Content>> {
    let newest = copies::newest(repository, What::Store).map_err(super::told)?;
    let Some((_, content)) = newest else { return Ok(None) };
    let content: Content = serde_json::from_slice(&content).context("read the store's content")?;
    anyhow::ensure!(
        content.version <= VERSION,
        "E104 the store's content was written by a newer version; next step: use that version"
    );
    Ok(Some(content))
}

impl Content {
    pub fn new(cluster: &str, revision: u64, keys: BTreeMap<String, String>) -> Content {
        Content { version: VERSION, cluster: cluster.to_string(), revision, keys }
    }

    /// Whether it holds the same but for what each backup changes: word of backups, and the heads of
    /// journals.
    fn says_as_much(&self, other: &Content) -> bool {
        let prefix = format!("/everhold/{}/", self.cluster);
        let counts = |(key, _): &(&String, &String)| {
            let name = key.strip_prefix(&prefix).unwrap_or(key);
            let of_service = name.starts_with("service/");
            let told = of_service && (name.ends_with("/backups") || name.ends_with("/forgotten"));
            !(told || name == "copied" || name.starts_with("journal/"))
        };
        let same = self.version == other.version && self.cluster == other.cluster;
        same && self.keys.iter().filter(counts).eq(other.keys.iter().filter(counts))
    }
}

impl Copied {
    /// As `status` shows it.
    pub fn shown(&self) -> Value {
        json!({
            "spec_at": self.spec_s.map(time), "store_at": self.store_s.map(time),
            "failing_since": self.failing_s.map(time), "error": self.error,
        })
    }

    /// While it fails for long.
    pub fn hold(&self) -> Option<Value> {
        let why = self.error.as_ref()?;
        Some(json!({
            "service": null, "rule": "cluster-copies",
            "why": format!("the spec or the store is not copied into all repositories: {why}"),
            "since": self.failing_s.map(time), "recheck_at": null, "evidence": [],
            "unblocks": "all repositories that backups name; it is tried each minute",
            "needs_operator": false, "journal": null,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_backup_changes_is_no_reason_for_a_new_copy() {
        let content = |change: &str| {
            let keys = ["spec", "service/main/term", "service/main/backups", "journal/a", "copied"];
            let value = |name: &str| if name == change { "new" } else { "old" };
            let keys = keys.map(|it| (format!("/everhold/shop/{it}"), value(it).to_string()));
            Content::new("shop", change.len() as u64, BTreeMap::from(keys))
        };
        let old = content("");
        for (change, same) in [
            ("spec", false),
            ("service/main/term", false),
            ("service/main/backups", true),
            ("journal/a", true),
            ("copied", true),
        ] {
            assert_eq!(old.says_as_much(&content(change)), same, "{change}");
        }
        let mut less = content("");
        less.keys.remove("/everhold/shop/service/main/term");
        assert!(!old.says_as_much(&less) && !less.says_as_much(&old));
    }
}
