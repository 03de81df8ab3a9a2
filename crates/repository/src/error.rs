//! What can go wrong with a repository.

use everhold_core::ids::Lsn;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Errors name the place by its name in the spec.
#[derive(Debug, Error)]
pub enum RepositoryError {
    #[error("cannot {what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{place} did not {what}: {said}")]
    Remote { place: String, what: String, said: String },
    #[error("{place} can't tell a second write of an object from the first: {said}")]
    NoConditionalPut { place: String, said: String },
    #[error("{place} holds no repository of Everhold")]
    NoRepository { place: String },
    #[error("{place} holds a repository already: {id} of cluster {cluster}")]
    Taken { place: String, id: String, cluster: String },
    #[error("{place} holds a copy of a repository that is not whole yet")]
    HalfCopied { place: String },
    #[error("{place} can't take a copy: {said}")]
    NoRoomForCopy { place: String, said: String },
    #[error("the new password opens {place} too")]
    OldPassword { place: String },
    #[error("the copy is not whole: {said}")]
    NotWhole { said: String },
    #[error("{place} holds repository {found} of cluster {cluster}, not {expected}")]
    Foreign { place: String, found: String, cluster: String, expected: String },
    #[error("{place} was written by a newer version (format {format})")]
    Newer { place: String, format: u32 },
    #[error("the password does not open {place}")]
    WrongPassword { place: String },
    #[error(
        "the kit does not open {place}: it has another master key, or what proves it is damaged"
    )]
    WrongKit { place: String },
    #[error("there is no password for {place}: {said}")]
    NoPassword { place: String, said: String },
    #[error("the password opens {place} by none that is readable, and one is damaged: {said}")]
    DamagedPassword { place: String, said: String },
    #[error("{place} has {most} passwords already")]
    ManyPasswords { place: String, most: usize },
    #[error("{place} has no other password; it would never open again")]
    LastPassword { place: String },
    #[error("{name} is damaged in every place that has it")]
    Damaged { name: String },
    #[error("{name} is in none of the places that answer")]
    Missing { name: String },
    #[error("{name} is there with another content: two have written it")]
    Conflict { name: String },
    #[error("the log has a hole: {from} to {to} was never archived, or was dropped")]
    NotArchived { from: Lsn, to: Lsn },
    #[error("no place answers: {said}")]
    Unreachable { said: String },
    #[error("{what} is not readable: {said}")]
    Malformed { what: String, said: String },
    #[error("{name} reached {copies} of {wanted} places: {said}")]
    FewCopies { name: String, copies: usize, wanted: usize, said: String },
    #[error("{pages} pages of {count} files fail their checksums, first {first}")]
    BadPages { pages: usize, count: usize, first: String },
    #[error("{path} is a tablespace outside the data directory, which is not supported")]
    Tablespace { path: PathBuf },
    #[error("{path} has to be empty or a stopped server's: {said}")]
    Occupied { path: PathBuf, said: String },
    #[error("{path} is not what was backed up, though all it was read from is whole")]
    Differs { path: String },
    #[error("backup {id} took so long that it was given up, and what it stored may be gone")]
    GivenUp { id: String },
    #[error("{place} does not answer; without it what is still needed is not known: {said}")]
    PlaceAbsent { place: String, said: String },
    #[error("stopped as asked")]
    Stopped,
    #[error("the system gives no randomness")]
    NoRandomness,
}

impl RepositoryError {
    /// Turns an error of the file system into one that says what was tried on which file.
    pub(crate) fn file(
        what: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> RepositoryError {
        let path = path.to_path_buf();
        move |source| RepositoryError::File { what, path, source }
    }
}
