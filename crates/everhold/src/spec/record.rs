//! The spec as it stands in the store: JSON with a version of its own.

use super::{Code, Fault};
use everhold_core::spec::{RECORD_VERSION, RECORD_VERSION_BACKUPS, RECORD_VERSION_PLAIN, Spec};
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

impl RecordError {
    /// The same of a file that was given.
    pub(super) fn fault(&self, file: &str) -> Fault {
        match self {
            RecordError::Newer { found } => {
                let message = format!(
                    "the record of a spec has version {found}, this Everhold reads up to \
                     {RECORD_VERSION}"
                );
                Fault::of_file(Code::NewerRecord, file, message)
            }
            RecordError::Torn(error) => {
                let message = format!("this is no record of a spec: {error}");
                Fault::of_file(Code::TornRecord, file, message)
                    .next("give the spec in TOML, or all that `everhold repository spec` printed")
            }
        }
    }
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
    Ok(serde_json::to_string(&Written { version: version(spec), spec })?)
}

/// The first version that knows all that is in it.
fn version(spec: &Spec) -> u32 {
    let http = spec.http_services().next().is_some()
        || spec.listeners.values().any(|listener| listener.postgres().is_none())
        || !spec.routes.is_empty();
    match http {
        true => RECORD_VERSION,
        false if spec.repositories.is_empty() => RECORD_VERSION_PLAIN,
        false => RECORD_VERSION_BACKUPS,
    }
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

/// The spec of a record as `repository spec` prints it: alone, or with `--json` under `spec`.
pub(super) fn from_printed(text: &str) -> Result<Spec, RecordError> {
    let mut value: serde_json::Value = serde_json::from_str(text)?;
    if let Some(inner) = value.get_mut("spec") {
        value = inner.take();
    }
    from_json(&value.to_string())
}
