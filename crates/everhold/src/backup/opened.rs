//! Repositories that stay open: each opening costs a tenth of a second of a core and 64 MiB a place.

use super::{declared, open};
use everhold_core::spec::{RepositorySpec, Spec};
use everhold_repository::Repository;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Sets of repositories; there are as many as ways in which services combine them.
const SETS_MAX: usize = 16;

/// Those of this process.
#[derive(Clone, Default)]
pub struct Opened(Arc<Mutex<Sets>>);

/// By the names of the repositories.
type Sets = BTreeMap<Vec<String>, (Ground, Arc<Repository>)>;

/// What they were opened by.
#[derive(Clone, PartialEq, Eq)]
struct Ground {
    cluster: String,
    places: Vec<RepositorySpec>,
    /// Of the files with passwords and credentials: inode, size, and when it was changed.
    files: Vec<Option<(u64, u64, i64, i64)>>,
}

impl Opened {
    /// The repositories of these names, as they were opened last: if nothing they rest on has changed
    /// since and all of them are there. It blocks.
    pub fn open(&self, spec: &Spec, names: &[String]) -> anyhow::Result<Arc<Repository>> {
        let mut names = names.to_vec();
        names.sort();
        let ground = Ground::of(spec, &names)?;
        let known = self.all().get(&names).cloned();
        if let Some((_, repository)) = known.filter(|(known, _)| *known == ground)
            && repository.absent().is_empty()
            && repository.all_there().is_ok()
        {
            return Ok(repository);
        }
        let repository = Arc::new(open(spec, &names)?);
        let mut all = self.all();
        if all.len() >= SETS_MAX {
            all.clear();
        }
        all.insert(names, (ground, repository.clone()));
        Ok(repository)
    }

    fn all(&self) -> MutexGuard<'_, Sets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ground {
    fn of(spec: &Spec, names: &[String]) -> anyhow::Result<Ground> {
        let places = names.iter().map(|name| declared(spec, name).cloned());
        let places = places.collect::<anyhow::Result<Vec<_>>>()?;
        let files = |it: &RepositorySpec| [Some(it.key_file.clone()), it.credentials_file.clone()];
        let state = |path: String| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
        };
        let files = places.iter().flat_map(files).flatten().map(state).collect();
        Ok(Ground { cluster: spec.cluster.clone(), places, files })
    }
}
