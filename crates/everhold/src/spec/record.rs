//! The spec as it stands in the store: JSON with a version of its own.

use everhold_core::spec::{RECORD_VERSION, RECORD_VERSION_PLAIN, Spec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a record of the store cannot be used.
#[derive(Debug, Error)]
pub enum RecordError {
    #[error(
        "E104 the spec in the store has version {found}, this Everhold reads up to {RECORD_VERSION}"
    )]
    Newer { found: u32 },
    #[error("E105 the spec in the store cannot be read")]
    Torn(#[from] serde_json::Error),
}

#[derive(Serialize)]
struct Written<'s> {
    version: u32,
    #[serde(flatten)]
    spec: &'s Spec,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The record of a spec.
pub fn to_json(spec: &Spec) -> Result<String, RecordError> {
    let plain = spec.repositories.is_empty();
    let version = if plain { RECORD_VERSION_PLAIN } else { RECORD_VERSION };
    Ok(serde_json::to_string(&Written { version, spec })?)
}

/// It has the first form, which every version reads.
pub fn is_plain(text: &str) -> bool {
    serde_json::from_str::<Version>(text).is_ok_and(|it| it.version <= RECORD_VERSION_PLAIN)
}

/// The spec of a record. The version is read first, since a newer record may have another shape.
pub fn from_json(text: &str) -> Result<Spec, RecordError> {
    let Version { version } = serde_json::from_str(text)?;
    if version > RECORD_VERSION {
        return Err(RecordError::Newer { found: version });
    }
    Ok(serde_json::from_str(text)?)
}
