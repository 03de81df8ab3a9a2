//! Lists a service's backups.

use super::manifest::{self, Info, Standing};
use crate::RepositoryError;
use crate::repository::Repository;

#[derive(Debug, Default)]
pub struct Listed {
    /// By age, the oldest first.
    pub backups: Vec<Info>,
    /// Manifests that can't be read in any place, and why.
    pub unreadable: Vec<(String, RepositoryError)>,
}

/// All backups of a service, from the places that answer.
pub fn list(repository: &Repository, service: &str) -> Result<Listed, RepositoryError> {
    let mut listed = Listed::default();
    for (name, held) in repository.held(&manifest::object(service, ""))? {
        match manifest::read_info(repository, &name) {
            Ok(Standing::Backup(info)) => {
                listed
                    .backups
                    .push(info.stored(held.copies, held.bytes / held.copies.max(1) as u64));
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
