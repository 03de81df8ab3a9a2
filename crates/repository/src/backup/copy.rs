//! One backup with the log after it, copied to a place of its own: what a drill may do with as it
//! likes.

use super::manifest::{self, Manifest};
use super::{Info, Watch};
use crate::log::Log;
use crate::repository::Repository;
use crate::{Password, PlaceConfig, RepositoryError};

/// Makes an empty place one of the same repository, with one backup and the log from its start on,
/// and nothing else. Sealed bytes go as they are; what is damaged shows when it is restored. Returns
/// the bytes copied.
pub fn copy(
    from: &Repository,
    service: &str,
    id: &str,
    to: (&PlaceConfig, &Password),
    watch: &Watch<'_>,
) -> Result<(Info, u64), RepositoryError> {
    let manifest = Manifest::read(from, service, id)?;
    let alone = from.alone(to.0, to.1)?;
    let log = Log::new(from, service, manifest.info.about.sysid);
    let mut names = log.from(manifest.info.about.start)?;
    names.extend(manifest.packs.iter().map(|pack| pack.object(service)));
    // Last, as when it was made: without it there is no backup.
    names.push(manifest::object(service, id));
    let (mut bytes, total) = (0, names.len() as u64);
    for (done, name) in names.into_iter().enumerate() {
        watch.check()?;
        bytes += from.send(&name, &alone)?;
        (watch.progress)(super::Progress { done: done as u64 + 1, total });
    }
    Ok((manifest.info, bytes))
}
