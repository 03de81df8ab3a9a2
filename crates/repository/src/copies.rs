//! What a cluster is beside its databases: its spec after each change, and what its store held.
//!
//! ```text
//! cluster/spec/TIME-RANDOM     cluster/store/TIME-RANDOM
//! ```

use crate::backup::{new_id, time_of};
use crate::{Put, Repository, RepositoryError};
use everhold_core::backup::keep::{self, Keep};
use everhold_core::backup::{Backup, Kind, Proof};
use everhold_core::ids::Lsn;

/// How the names of all of them begin.
pub const PREFIX: &str = "cluster/";

/// Of what there is a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Spec,
    Store,
}

/// A copy as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    pub name: String,
    /// Seconds since 1970, by the clock of the machine that made it.
    pub at_s: u64,
    /// Places that hold it.
    pub copies: usize,
}

impl What {
    fn prefix(self) -> String {
        let what = match self {
            What::Spec => "spec",
            What::Store => "store",
        };
        format!("{PREFIX}{what}/")
    }
}

/// Puts a new one into every place.
pub fn put(
    repository: &Repository,
    what: What,
    at_s: u64,
    content: &[u8],
) -> Result<Put, RepositoryError> {
    repository.put(&format!("{}{}", what.prefix(), new_id(at_s)?), content)
}

/// All of them in the places that answer, the oldest first.
pub fn all(repository: &Repository, what: What) -> Result<Vec<Copy>, RepositoryError> {
    let prefix = what.prefix();
    let copy = |(name, held): (String, crate::repository::Held)| {
        let at_s = time_of(name.strip_prefix(&prefix)?)?;
        Some(Copy { name, at_s, copies: held.copies })
    };
    Ok(repository.held(&prefix)?.into_iter().filter_map(copy).collect())
}

/// The newest one that can be read, and since when it holds. An older one in its stead only if the
/// newer ones are damaged in every place.
pub fn newest(
    repository: &Repository,
    what: What,
) -> Result<Option<(Copy, Vec<u8>)>, RepositoryError> {
    let mut damaged = None;
    for copy in all(repository, what)?.into_iter().rev() {
        match repository.get(&copy.name) {
            Ok(content) => return Ok(Some((copy, content))),
            // Gone since it was listed.
            Err(RepositoryError::Missing { .. }) => {}
            Err(error @ RepositoryError::Damaged { .. }) => {
                tracing::warn!(%error, "an older copy is read instead");
                damaged = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    damaged.map_or(Ok(None), Err)
}

/// Removes what none of these keeps; how many went. Refused while a place is away, whose copies
/// would come back with it.
pub fn forget(
    repository: &Repository,
    what: What,
    keeps: &[Keep],
    now_s: u64,
) -> Result<usize, RepositoryError> {
    repository.all_there()?;
    let all = all(repository, what)?;
    // Each is whole by itself, as a backup is.
    let backup = |copy: &Copy| Backup {
        id: copy.name.clone(),
        kind: Kind::Full,
        began_s: copy.at_s,
        ended_s: copy.at_s,
        start: Lsn(0),
        stop: Lsn(0),
        tli: 0,
        good: true,
        proof: Proof::Unproven,
    };
    let backups: Vec<Backup> = all.iter().map(backup).collect();
    let kept: Vec<_> = keeps.iter().map(|keep| keep::judge(&backups, keep, now_s)).collect();
    let stays = |copy: &&Copy| {
        kept.is_empty()
            || kept.iter().any(|kept| kept.get(&copy.name).is_none_or(|why| !why.is_empty()))
    };
    let gone: Vec<&Copy> = all.iter().filter(|copy| !stays(copy)).collect();
    gone.iter().try_for_each(|copy| repository.delete(&copy.name))?;
    Ok(gone.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Password, PlaceConfig};
    use everhold_core::spec::Location;

    const DAY_S: u64 = 86_400;
    const NOW: u64 = 20_777 * DAY_S;

    #[test]
    fn the_newest_is_read_and_old_ones_go_by_the_rules() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = |name: &str| PlaceConfig {
            name: name.to_string(),
            location: Location::Directory(dir.path().join(name).display().to_string()),
            region: None,
            endpoint: None,
            credentials_file: None,
        };
        let password = Password::new("p");
        let mut repository = Repository::create(&place("east"), &password, "shop").expect("made");
        repository.extend(&place("west"), &password).expect("made");
        assert_eq!(newest(&repository, What::Spec).expect("read"), None);
        for ago in [40, 20, 9, 3, 1] {
            let text = format!("spec of {ago} days ago");
            let at_s = NOW - ago * DAY_S;
            assert_eq!(put(&repository, What::Spec, at_s, text.as_bytes()).expect("put").copies, 2);
        }
        put(&repository, What::Store, NOW, b"store").expect("put");
        let read = |repository: &Repository| {
            let (copy, content) = newest(repository, What::Spec).expect("read").expect("one");
            ((NOW - copy.at_s) / DAY_S, String::from_utf8(content).expect("text"))
        };
        assert_eq!(read(&repository), (1, "spec of 1 days ago".to_string()));

        // Of the last days, the one that held when they began, and what either rule keeps.
        let keep = |days, monthly| Keep { days, monthly, ..Keep::default() };
        assert_eq!(forget(&repository, What::Spec, &[], NOW).expect("none"), 0);
        let went = forget(&repository, What::Spec, &[keep(2, 0), keep(0, 2)], NOW).expect("went");
        assert_eq!(went, 1);
        let left: Vec<u64> = all(&repository, What::Spec)
            .expect("listed")
            .iter()
            .map(|copy| (NOW - copy.at_s) / DAY_S)
            .collect();
        assert_eq!(left, [20, 9, 3, 1], "October's last, the base of the window, and the window");
        assert_eq!(all(&repository, What::Store).expect("listed").len(), 1);

        // Damaged in one place: from the other. In both: the one before.
        let name = all(&repository, What::Spec).expect("listed").pop().expect("one").name;
        let harm = |place: &str| {
            std::fs::write(dir.path().join(place).join(&name), b"not sealed").expect("written");
        };
        harm("east");
        assert_eq!(read(&repository).0, 1);
        harm("east");
        harm("west");
        assert_eq!(read(&repository), (3, "spec of 3 days ago".to_string()));
    }
}
