//! One place that holds objects: a directory, or a bucket of an S3-compatible store.

mod directory;
mod s3;

use crate::RepositoryError;
use crate::seal::random;
use directory::Directory;
use everhold_core::spec::{Location, RepositorySpec};
use s3::S3;
use std::path::{Path, PathBuf};

/// How the names of objects begin that are put to try the place.
pub(crate) const PROBE: &str = "probe/";
/// A file with credentials is a few lines.
const CREDENTIALS_BYTES_MAX: u64 = 64 * 1024;

/// Where a place is and how to get in.
#[derive(Clone, Debug)]
pub struct PlaceConfig {
    /// As in the spec.
    pub name: String,
    pub location: Location,
    pub region: Option<String>,
    pub endpoint: Option<String>,
    pub credentials_file: Option<PathBuf>,
}

/// An object that a place lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub name: String,
    pub bytes: u64,
}

/// What to do with an object that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Keep,
    /// It is damaged.
    Replace,
}

/// A place, opened.
pub struct Place {
    name: String,
    kind: Kind,
}

enum Kind {
    Directory(Directory),
    S3(Box<S3>),
}

impl PlaceConfig {
    pub fn new(name: &str, spec: &RepositorySpec) -> PlaceConfig {
        PlaceConfig {
            name: name.to_string(),
            location: spec.url.clone(),
            region: spec.region.clone(),
            endpoint: spec.endpoint.clone(),
            credentials_file: spec.credentials_file.as_ref().map(PathBuf::from),
        }
    }
}

impl Place {
    pub fn open(config: &PlaceConfig) -> Result<Place, RepositoryError> {
        let kind = match &config.location {
            Location::Directory(path) => Kind::Directory(Directory::new(Path::new(path))),
            Location::S3 { bucket, prefix } => {
                Kind::S3(Box::new(S3::open(config, bucket, prefix)?))
            }
        };
        Ok(Place { name: config.name.clone(), kind })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes an empty place ready for a repository.
    pub fn prepare(&self) -> Result<(), RepositoryError> {
        match &self.kind {
            Kind::Directory(directory) => directory.prepare(),
            // A bucket is somebody else's to make.
            Kind::S3(_) => Ok(()),
        }
    }

    /// Whether nothing is there, not even what makes it ready.
    pub fn is_empty(&self) -> Result<bool, RepositoryError> {
        let objects = match &self.kind {
            Kind::Directory(directory) => directory.objects()?,
            Kind::S3(s3) => s3.list("")?,
        };
        // What a probe that was killed left.
        Ok(objects.iter().all(|it| it.name.starts_with(PROBE)))
    }

    /// Stores an object whole or not at all. False: there was one, and it was kept.
    pub fn put(
        &self,
        object: &str,
        content: &[u8],
        existing: Existing,
    ) -> Result<bool, RepositoryError> {
        match &self.kind {
            Kind::Directory(directory) => directory.put(object, content, existing),
            Kind::S3(s3) => s3.put(object, content, existing),
        }
    }

    /// The whole object; `None`: there is none.
    pub fn get(&self, object: &str) -> Result<Option<Vec<u8>>, RepositoryError> {
        match &self.kind {
            Kind::Directory(directory) => directory.get(object),
            Kind::S3(s3) => s3.get(object, None),
        }
    }

    /// A part of it; less than `len` bytes where it ends early.
    pub fn read(
        &self,
        object: &str,
        offset: u64,
        len: usize,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        match &self.kind {
            Kind::Directory(directory) => directory.read(object, offset, len),
            Kind::S3(s3) => s3.get(object, Some((offset, len))),
        }
    }

    /// All objects whose names begin so, by name.
    pub fn list(&self, prefix: &str) -> Result<Vec<Object>, RepositoryError> {
        let mut objects = match &self.kind {
            Kind::Directory(directory) => directory.list(prefix)?,
            Kind::S3(s3) => s3.list(prefix)?,
        };
        objects.sort();
        Ok(objects)
    }

    /// Removes it; it need not be there.
    pub fn delete(&self, object: &str) -> Result<(), RepositoryError> {
        match &self.kind {
            Kind::Directory(directory) => directory.delete(object),
            Kind::S3(s3) => s3.delete(object),
        }
    }

    /// Removes what killed processes had begun to put before that instant, in seconds since 1970.
    pub fn clear_unfinished(&self, before_s: u64) -> Result<usize, RepositoryError> {
        match &self.kind {
            Kind::Directory(directory) => directory.clear_unfinished(before_s),
            // A store shows nothing before it is whole.
            Kind::S3(_) => Ok(0),
        }
    }

    /// Proves that a second write of an object is refused: all that keeps an old primary from
    /// writing over a new one's log hangs on it.
    pub fn probe(&self) -> Result<(), RepositoryError> {
        let refused = |said: &str| RepositoryError::NoConditionalPut {
            place: self.name.clone(),
            said: said.to_string(),
        };
        let object = format!("{PROBE}{}", crate::key::hex(&random::<16>()?));
        let probed = || {
            if !self.put(&object, b"first", Existing::Keep)? {
                return Err(refused("a new object was refused"));
            }
            if self.put(&object, b"second", Existing::Keep)? {
                return Err(refused("it took the second"));
            }
            match self.get(&object)?.as_deref() {
                Some(b"first") => Ok(()),
                _ => Err(refused("the first is not what it has")),
            }
        };
        let result = probed();
        let removed = self.delete(&object);
        result.and(removed)
    }
}

/// `access_key_id` and `secret_access_key` of a file, also with `aws_` before them as Amazon's own.
fn credentials(path: &Path) -> Result<(String, String), RepositoryError> {
    let malformed = |said: &str| RepositoryError::Malformed {
        what: path.display().to_string(),
        said: said.to_string(),
    };
    let meta = std::fs::metadata(path).map_err(RepositoryError::file("read", path))?;
    if meta.len() > CREDENTIALS_BYTES_MAX {
        return Err(malformed("it is too long for a file of credentials"));
    }
    let text = std::fs::read_to_string(path).map_err(RepositoryError::file("read", path))?;
    let value = |key: &str| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            let name = name.trim();
            let value = value.trim().trim_matches('"');
            (name.strip_prefix("aws_").unwrap_or(name) == key).then(|| value.to_string())
        })
    };
    match (value("access_key_id"), value("secret_access_key")) {
        (Some(id), Some(secret)) => Ok((id, secret)),
        _ => Err(malformed("it lacks access_key_id = … or secret_access_key = …")),
    }
}
