//! Lists a service's backups.

use super::manifest::{self, Info, Standing};
use super::pack::{self, PackId};
use crate::RepositoryError;
use crate::repository::Repository;

#[derive(Debug, Default)]
pub struct Listed {
    /// By age, the oldest first.
    pub backups: Vec<Info>,
    /// Manifests that can't be read in any place, and why.
    pub unreadable: Vec<(String, RepositoryError)>,
}

/// All backups of a service, from the places that answer. How many of these have all of each is told
/// by what they list; whether it is whole, only [`super::verify`] reads.
pub fn list(repository: &Repository, service: &str) -> Result<Listed, RepositoryError> {
    let mut listed = Listed::default();
    let packs = repository.held(&pack::prefix(service))?;
    let has = |id: &PackId| packs.get(&id.object(service)).map_or(0, |held| held.copies);
    for (name, held) in repository.held(&manifest::object(service, ""))? {
        match manifest::read_with_packs(repository, &name) {
            Ok(Standing::Backup((info, needs))) => {
                let manifest_bytes = held.bytes / held.copies.max(1) as u64;
                let copies = needs.iter().map(has).chain([held.copies]).min().unwrap_or(0);
                listed.backups.push(info.stored(held.copies, copies, manifest_bytes));
            }
            // Dropped since, or given up before it was one.
            Ok(Standing::Gone { .. }) | Err(RepositoryError::Missing { .. }) => {}
            Err(error) => {
                let id = name.rsplit('/').next().unwrap_or(&name).to_string();
                listed.unreadable.push((id, error));
            }
        }
    }
    Ok(listed)
}
