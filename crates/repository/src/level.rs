//! The same objects in all places: what one lacks is copied from another.

use crate::RepositoryError;
use crate::log::contested;
use crate::place::Existing;
use crate::repository::{Repository, at_once, is_shared};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Objects that are copied at once where a place lacks them: a slow one would never catch up.
const COPIERS: usize = 4;

impl Repository {
    /// Brings every object below `prefix` to the places that lack it, from one that has it whole; how
    /// many copies were made. What is damaged wherever it is goes along, and is found when it is read.
    pub fn level(&self, prefix: &str) -> Result<usize, RepositoryError> {
        let mut has = Vec::new();
        for place in self.all_places() {
            let names = place.list(prefix)?.into_iter().map(|object| object.name);
            has.push((place, names.collect::<BTreeSet<String>>()));
        }
        let all: BTreeSet<&String> = has.iter().flat_map(|(_, names)| names).collect();
        // Of which nobody can tell which content is right: no place gets it from another.
        let disputed: BTreeSet<String> = all.iter().filter_map(|name| contested(name)).collect();
        let uneven = |name: &&String| has.iter().any(|(_, names)| !names.contains(*name));
        let all: Vec<&String> = all
            .into_iter()
            .filter(|name| is_shared(name) && contested(name).is_none())
            .filter(|name| !disputed.contains(*name))
            .filter(uneven)
            .collect();
        let (next, copied) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || -> Result<(), RepositoryError> {
            while let Some(name) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (from, to): (Vec<_>, Vec<_>) =
                    has.iter().partition(|(_, names)| names.contains(*name));
                let mut found = None;
                for (place, _) in from {
                    let Some(sealed) = place.get(name)? else { continue };
                    if self.master().open(name, &sealed).is_some() {
                        found = Some(sealed);
                        break;
                    }
                    tracing::warn!(name, place = place.name(), "a damaged object");
                    found.get_or_insert(sealed);
                }
                // Taken away in between: it was not needed any more.
                let Some(sealed) = found else { continue };
                for (place, _) in to {
                    place.put(name, &sealed, Existing::Keep)?;
                    copied.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        };
        at_once(all.len().min(COPIERS), work)?;
        Ok(copied.into_inner())
    }
}
