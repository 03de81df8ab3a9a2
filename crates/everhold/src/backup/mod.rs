//! Backups of services: their repositories, opened as the spec says.

pub mod desk;
pub mod restore;
pub mod shown;
pub mod tend;
pub mod worker;

use crate::code::Code;
use anyhow::{Context, anyhow, bail};
use everhold_core::backup::Kind;
use everhold_core::spec::{RepositorySpec, Spec};
use everhold_repository::backup::Info;
use everhold_repository::{Password, PlaceConfig, Repository, RepositoryError};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A password is a line.
const PASSWORD_BYTES_MAX: u64 = 64 * 1024;

/// Opens the repositories of these names; those that don't answer are told by `absent`.
pub fn open(spec: &Spec, names: &[String]) -> anyhow::Result<Repository> {
    let mut places = Vec::new();
    for name in names {
        places.push(place(spec, name)?);
    }
    Repository::open(&places, &spec.cluster).map_err(told)
}

/// One place and the password of this machine for it.
pub fn place(spec: &Spec, name: &str) -> anyhow::Result<(PlaceConfig, Password)> {
    let declared = || {
        anyhow!(
            "E012 no repository {name} is declared; next step: declare it under [repository] and `everhold apply`"
        )
    };
    let repository: &RepositorySpec = spec.repositories.get(name).with_context(declared)?;
    let password = password(Path::new(&repository.key_file))?;
    Ok((PlaceConfig::new(name, repository), password))
}

/// All backups of a service that its places hold, the oldest first.
pub fn list(repository: &Repository, service: &str) -> anyhow::Result<Vec<Info>> {
    let listed = everhold_repository::backup::list(repository, service).map_err(told)?;
    for (id, error) in listed.unreadable {
        tracing::warn!(service, backup = id, %error, "a backup can't be read");
    }
    Ok(listed.backups)
}

/// As the API shows it.
pub fn shown(info: &Info) -> Value {
    let about = &info.about;
    json!({
        "id": info.id, "kind": info.kind, "node": about.node, "base": info.base,
        "began_at": shown::time(about.began_s), "ended_at": shown::time(about.ended_s),
        "took_s": about.ended_s.saturating_sub(about.began_s),
        "start": about.start.to_string(), "stop": about.stop.to_string(), "timeline": about.tli,
        "files": info.files, "bytes": info.bytes, "bytes_read": info.bytes_read,
        "bytes_added": info.bytes_added, "bad_pages": info.bad_pages.len(),
        "copies": info.copies,
    })
}

pub fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Full => "full",
        Kind::Incremental => "incremental",
    }
}

/// The password in a file that nobody else may read.
pub fn password(path: &Path) -> anyhow::Result<Password> {
    let unusable =
        |why: String, next: &str| anyhow!("E282 {}: {why}; next step: {next}", path.display());
    let make = "make it on every machine alike: a long random line, mode 0600";
    let meta = std::fs::metadata(path).map_err(|error| unusable(error.to_string(), make))?;
    if meta.mode() & 0o077 != 0 {
        return Err(unusable("others may read it".to_string(), "`chmod 600` it"));
    }
    if !meta.is_file() || meta.len() > PASSWORD_BYTES_MAX {
        bail!(unusable("it is no file with a password".to_string(), make));
    }
    let text = std::fs::read_to_string(path);
    let password = Password::new(&text.map_err(|error| unusable(error.to_string(), make))?);
    match password.is_empty() {
        true => Err(unusable("it is empty".to_string(), make)),
        false => Ok(password),
    }
}

/// An error with its code and next step.
pub fn told(error: RepositoryError) -> anyhow::Error {
    let code = code(&error);
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    anyhow!("{} {text}; next step: {}", code.as_str(), code.next())
}

fn code(error: &RepositoryError) -> Code {
    match error {
        RepositoryError::File { .. }
        | RepositoryError::Remote { .. }
        | RepositoryError::Unreachable { .. }
        | RepositoryError::FewCopies { .. }
        | RepositoryError::PlaceAbsent { .. }
        | RepositoryError::NoRandomness => Code::RepositoryAway,
        RepositoryError::NoRepository { .. } => Code::RepositoryMissing,
        RepositoryError::WrongPassword { .. } | RepositoryError::LastPassword { .. } => {
            Code::RepositoryKey
        }
        RepositoryError::Taken { .. }
        | RepositoryError::Foreign { .. }
        | RepositoryError::Newer { .. } => Code::RepositoryForeign,
        RepositoryError::NoConditionalPut { .. } => Code::RepositoryUnfit,
        RepositoryError::NotArchived { .. } => Code::TargetUnknown,
        RepositoryError::Occupied { .. } => Code::RestoreTo,
        RepositoryError::BadPages { .. }
        | RepositoryError::Tablespace { .. }
        | RepositoryError::GivenUp { .. }
        | RepositoryError::Stopped => Code::BackupFailed,

        RepositoryError::Damaged { .. }
        | RepositoryError::Missing { .. }
        | RepositoryError::Conflict { .. }
        | RepositoryError::Differs { .. }
        | RepositoryError::Malformed { .. } => Code::RepositoryDamaged,
    }
}
