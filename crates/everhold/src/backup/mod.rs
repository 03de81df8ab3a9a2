//! Backups of services: their repositories, opened as the spec says.

pub mod cloner;
pub mod copies;
pub mod desk;
pub mod forget;
mod named;
pub mod opened;
pub mod origin;
pub mod prepare;
pub mod prove;
pub mod proving;
pub mod recovery;
pub mod restore;
pub mod room;
pub mod shown;
pub mod tend;
pub mod worker;

use crate::code::Code;
use crate::key_file::{self, KeyFileError};
use anyhow::{Context, anyhow};
use everhold_core::backup::{Kind, Proving};
use everhold_core::spec::{RepositorySpec, Spec};
use everhold_repository::backup::{
    Info, Known, Listed, ProofRecord, Proofs, lines, list_surely, read_proofs,
};
use everhold_repository::{Password, PlaceConfig, Repository, RepositoryError};
use proving::Held;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Opens the repositories of these names; those that don't answer, or whose password this machine
/// lacks, are told by `absent`.
pub fn open(spec: &Spec, names: &[String]) -> anyhow::Result<Repository> {
    let mut places = BTreeMap::new();
    for name in names {
        places.insert(name.clone(), declared(spec, name)?.clone());
    }
    open_places(&places, &spec.cluster).map_err(told)
}

/// The same, of places by name.
pub fn open_places(
    places: &BTreeMap<String, RepositorySpec>,
    cluster: &str,
) -> Result<Repository, RepositoryError> {
    let config = |(name, spec): (&String, &RepositorySpec)| {
        let password = key_file::read(Path::new(&spec.key_file));
        (PlaceConfig::new(name, spec), password.map_err(|error| error.to_string()))
    };
    let places: Vec<_> = places.iter().map(config).collect();
    Repository::open_those(places.iter().map(|(config, it)| (config, it.clone())), cluster)
}

/// A place that does not answer, in words: what is found nowhere else it may have. One may have gone
/// away since it was opened, and looks empty then.
pub fn away(repository: &Repository) -> Option<String> {
    match repository.all_there() {
        Ok(()) => None,
        Err(RepositoryError::PlaceAbsent { place, said }) => {
            Some(format!("{place}, which may have it, is away: {said}"))
        }
        Err(error) => Some(error.to_string()),
    }
}

/// The repository of that name in the spec.
pub fn declared<'s>(spec: &'s Spec, name: &str) -> anyhow::Result<&'s RepositorySpec> {
    spec.repositories.get(name).with_context(|| {
        format!("E012 no repository {name} is declared; next step: declare it and `everhold apply`")
    })
}

/// One place and the password of this machine for it.
pub fn place(spec: &Spec, name: &str) -> anyhow::Result<(PlaceConfig, Password)> {
    let repository = declared(spec, name)?;
    let password = key_file::read(Path::new(&repository.key_file)).map_err(KeyFileError::told)?;
    Ok((PlaceConfig::new(name, repository), password))
}

/// All backups of a service that its places hold, the oldest first.
pub fn list(repository: &Repository, service: &str) -> anyhow::Result<Vec<Info>> {
    let listed = everhold_repository::backup::list(repository, service).map_err(told)?;
    Ok(legible(service, listed))
}

fn legible(service: &str, listed: Listed) -> Vec<Info> {
    for (id, error) in listed.unreadable {
        tracing::warn!(service, backup = id, %error, "a backup can't be read");
    }
    listed.backups
}

/// The same, with what was proven of them; an error if a place that is open does not answer. What is
/// known is not read again.
pub fn held(
    repository: &Repository,
    service: &str,
    known: &mut Known,
    proofs: &Proofs,
) -> anyhow::Result<Held> {
    let listed = list_surely(repository, service, known).map_err(told)?;
    let infos = legible(service, listed);
    let proofs = read_proofs(repository, service, proofs).map_err(told)?;
    let lines = lines(repository, service, &infos).map_err(told)?;
    Ok(Held { infos, proofs, lines })
}

/// As the API shows it.
pub fn shown(info: &Info, proof: Option<&ProofRecord>) -> Value {
    let about = &info.about;
    json!({
        "id": info.id, "kind": info.kind, "node": about.node, "base": info.base,
        "began_at": shown::time(about.began_s), "ended_at": shown::time(about.ended_s),
        "took_s": about.ended_s.saturating_sub(about.began_s),
        "start": about.start.to_string(), "stop": about.stop.to_string(), "timeline": about.tli,
        "files": info.files, "bytes": info.bytes, "bytes_read": info.bytes_read,
        "bytes_added": info.bytes_added, "bad_pages": info.bad_pages.len(),
        "copies": info.copies, "proof": proof.map(shown_proof),
    })
}

fn shown_proof(proof: &ProofRecord) -> Value {
    json!({
        "at": shown::time(proof.ended_s), "node": proof.node, "why": proof.why,
        "took_s": proof.ended_s.saturating_sub(proof.began_s),
        "to": proof.to_s.map(shown::time), "to_lsn": proof.to_lsn,
        "rto_ms": proof.rto_ms, "rpo_ms": proof.rpo_ms, "bytes": proof.bytes,
        "passed": proof.passed, "skipped": proof.skipped, "failed": proof.failed,
    })
}

pub fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Full => "full",
        Kind::Incremental => "incremental",
    }
}

pub fn why(why: Proving) -> &'static str {
    match why {
        Proving::Full => "full",
        Proving::Newest => "newest",
        Proving::Older => "older",
        Proving::Asked => "asked",
    }
}

/// What ends it when bad pages are in the way of backups. What is archived of the log goes on.
pub const MENDED: &str = "`everhold switchover SERVICE` to a copy without bad pages; where there is \
    none, `everhold recover SERVICE` makes them again from the last backup and the log";

/// An error with its code and next step.
pub fn told(error: RepositoryError) -> anyhow::Error {
    let code = code(&error);
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    let next = match error {
        RepositoryError::BadPages { .. } => MENDED,
        _ => code.next(),
    };
    anyhow!("{} {text}; next step: {next}", code.as_str())
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
        RepositoryError::WrongPassword { .. }
        | RepositoryError::WrongKit { .. }
        | RepositoryError::NoPassword { .. }
        | RepositoryError::DamagedPassword { .. }
        | RepositoryError::ManyPasswords { .. }
        | RepositoryError::OldPassword { .. }
        | RepositoryError::LastPassword { .. } => Code::RepositoryKey,
        RepositoryError::Taken { .. }
        | RepositoryError::Foreign { .. }
        | RepositoryError::NoRoomForCopy { .. }
        | RepositoryError::Newer { .. } => Code::RepositoryForeign,
        RepositoryError::HalfCopied { .. } | RepositoryError::NotWhole { .. } => Code::CopyNotWhole,
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
