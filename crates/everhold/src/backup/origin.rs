//! Whether a service without data is a new one. What its repositories hold would be shadowed by a
//! second, empty database; the operator says which is meant.

use super::{list, open_places, told};
use everhold_core::spec::{RepositorySpec, Spec};
use everhold_repository::RepositoryError;
use std::collections::BTreeMap;

/// A service, and where its backups would be.
#[derive(Clone)]
pub struct Origin {
    cluster: String,
    service: String,
    places: BTreeMap<String, RepositorySpec>,
}

impl Origin {
    pub fn new(spec: &Spec, service: &str) -> Origin {
        let backup = spec.postgres(service).and_then(|it| it.backup.as_ref());
        let names = backup.map(|it| it.repositories.as_slice()).unwrap_or_default();
        let places = names
            .iter()
            .filter_map(|name| Some((name.clone(), spec.repositories.get(name)?.clone())));
        Origin {
            cluster: spec.cluster.clone(),
            service: service.to_string(),
            places: places.collect(),
        }
    }

    /// An error unless each repository is known to hold nothing of the service.
    pub async fn require_nothing_held(self) -> Result<(), String> {
        let looked = tokio::task::spawn_blocking(move || self.look()).await;
        looked.map_err(|error| error.to_string())?
    }

    fn look(&self) -> Result<(), String> {
        for (name, place) in &self.places {
            let alone = BTreeMap::from([(name.clone(), place.clone())]);
            let repository = match open_places(&alone, &self.cluster) {
                Ok(repository) => repository,
                // Nobody made one there yet.
                Err(RepositoryError::NoRepository { .. }) => continue,
                Err(error) => return Err(format!("{:#}", told(error))),
            };
            let held = list(&repository, &self.service).map_err(|error| format!("{error:#}"))?;
            if let Some(newest) = held.last() {
                let (service, ended) = (&self.service, super::shown::time(newest.about.ended_s));
                return Err(format!(
                    "E293 {name} holds backups of {service}, the newest of {ended}; next step: \
                     `everhold recover {service}` brings it back; for a new, empty database take \
                     [service.{service}.backup] out of the spec until it has begun"
                ));
            }
        }
        Ok(())
    }
}
