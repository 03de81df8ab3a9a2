//! What the archiver does: it finds what the archive lacks, and puts it there.

use super::mark::Marker;
use super::{Fault, Lead, Order, Shared, lock};
use crate::{backup, clock};
use everhold_adapters::postgres::{Flushed, PgError, WalFiles};
use everhold_core::ids::Lsn;
use everhold_core::term::Branch;
use everhold_repository::log::{PIECE_BYTES_MAX, Piece, cover, coverage, extents, missing};
use everhold_repository::{Log, Put, Repository, RepositoryError};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, spawn_blocking};

/// Pieces that are put at once: 64 MB in memory at most.
const IN_FLIGHT: usize = 4;
/// Between two tries to open the repositories: each costs a tenth of a second of a core.
const REOPEN: Duration = Duration::from_secs(3);
/// Between two rounds of gathering small pieces.
const GATHER: Duration = Duration::from_secs(60);

pub struct Shipper {
    order: Arc<Order>,
    state: Shared,
    archive: Option<Archive>,
    /// When it was last tried to open the repositories, or to see to what is in them.
    tended: Option<Instant>,
    /// A place lacks something that another one has, or does not answer.
    uneven: bool,
    tending: Option<JoinHandle<Tended>>,
    marker: Marker,
}

/// The open repositories, and what they hold of the leader's line.
struct Archive {
    repository: Arc<Repository>,
    /// In any place, and in as many as are asked for.
    shipped: Vec<Range<Lsn>>,
    archived: Vec<Range<Lsn>>,
    /// From here on the server has all of it.
    from: Lsn,
}

enum Tended {
    /// Places were opened anew and brought level.
    Level(Result<Opened, Fault>),
    Gathered(Result<usize, RepositoryError>),
}

/// Repositories as they were found.
struct Opened {
    repository: Repository,
    shipped: Vec<Range<Lsn>>,
    archived: Vec<Range<Lsn>>,
    /// Why a place is not among them.
    fault: Option<Fault>,
}

/// Why a piece was not put.
enum Failed {
    Read(PgError),
    Put(RepositoryError),
}

impl Shipper {
    pub fn new(order: Arc<Order>, state: Shared) -> Shipper {
        let (archive, tended, tending) = (None, None, None);
        let marker = Marker::default();
        Shipper { order, state, archive, tended, uneven: false, tending, marker }
    }

    /// Ships what there is, at most some pieces; true: there is more.
    /// The server was asked at `asked_ms`, in milliseconds since 1970.
    pub async fn round(&mut self, at: &Flushed, asked_ms: u64) -> bool {
        if self.archive.is_none() && !self.open(at).await {
            return false;
        }
        self.tend().await;
        let Some(archive) = &self.archive else { return false };
        let batch = batch(archive, &self.order.lead, at.lsn);
        let full = batch.len() == IN_FLIGHT;
        let well = if batch.is_empty() { true } else { self.put(at, batch).await };
        let reached = self.note(at);
        self.mark(at, asked_ms, reached).await;
        if well && !self.uneven && self.tending.is_none() {
            lock(&self.state).trouble = None;
        }
        full && well
    }

    /// Says what is wrong, since when it is.
    pub fn complain(&self, fault: Fault) {
        let mut state = lock(&self.state);
        // One trouble after the other is one to whoever waits for its end.
        let since = state.trouble.as_ref().map(|(since, _)| *since);
        if since.is_none() {
            tracing::warn!(service = self.order.service, why = fault.why, "not all is archived");
        }
        state.trouble = Some((since.unwrap_or_else(clock::now), fault));
    }

    async fn open(&mut self, at: &Flushed) -> bool {
        if self.tended.is_some_and(|at| at.elapsed() < REOPEN) {
            return false;
        }
        self.tended = Some(Instant::now());
        let order = self.order.clone();
        let opened = match spawn_blocking(move || open(&order)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(fault)) => {
                self.complain(fault);
                return false;
            }
            Err(_) => return false,
        };
        let oldest = match oldest(&at.files, &self.order.lead, at.lsn).await {
            Ok(oldest) => oldest,
            Err(error) => {
                self.complain(unreadable(&error));
                return false;
            }
        };
        let Opened { repository, shipped, archived, fault } = opened;
        // What the archive no longer has since nothing needs it is not shipped again.
        let from = shipped.first().map_or(oldest, |first| first.start.max(oldest));
        lock(&self.state).gap = gap(&shipped, from);
        self.uneven = fault.is_some();
        fault.into_iter().for_each(|fault| self.complain(fault));
        self.archive = Some(Archive { repository: Arc::new(repository), shipped, archived, from });
        true
    }

    /// Puts the pieces, several at once; false: not all of them could be.
    async fn put(&mut self, at: &Flushed, batch: Vec<Piece>) -> bool {
        let Some(archive) = &mut self.archive else { return false };
        let (order, repository) = (self.order.clone(), archive.repository.clone());
        let files = at.files.clone();
        let put = spawn_blocking(move || put(&order, &repository, &files, &batch)).await;
        let Ok(put) = put else { return false };
        let mut faults = Vec::new();
        for (piece, result) in put {
            match result {
                Ok(put) => {
                    cover(&mut archive.shipped, piece.start..piece.end);
                    if put.copies >= self.order.copies {
                        cover(&mut archive.archived, piece.start..piece.end);
                    }
                    self.uneven |= !put.failed.is_empty();
                    faults.extend(put.failed.iter().map(|(name, error)| fault(name, error)));
                }
                Err(Failed::Put(error)) => faults.push(fault("", &error)),
                Err(Failed::Read(error)) => {
                    // Gone before it was archived: what there is goes on.
                    let oldest = oldest(&at.files, &self.order.lead, at.lsn).await;
                    match oldest {
                        Ok(oldest) if oldest > piece.start => {
                            archive.from = archive.from.max(oldest);
                            lock(&self.state).gap = gap(&archive.shipped, archive.from);
                        }
                        Ok(_) | Err(_) => faults.push(unreadable(&error)),
                    }
                }
            }
        }
        let well = faults.is_empty();
        faults.into_iter().take(1).for_each(|fault| self.complain(fault));
        well
    }

    /// Leaves a mark in the archive when one is due. Without it the log is as good: only what is
    /// proven of it is less.
    async fn mark(&mut self, at: &Flushed, asked_ms: u64, reached: Lsn) {
        let Some(archive) = &self.archive else { return };
        let Some(tip) = self.order.lead.line.last().map(Branch::id) else { return };
        let Some(mark) = self.marker.due(asked_ms, (tip, at.written), reached, clock::unix_ms())
        else {
            return;
        };
        let (order, repository) = (self.order.clone(), archive.repository.clone());
        let put = move || Log::new(&repository, &order.service, order.lead.sysid).put_mark(&mark);
        if let Ok(Err(error)) = spawn_blocking(put).await {
            tracing::warn!(error = crate::keeper::chain(&error), "no mark was left");
        }
    }

    /// Says how far it is.
    fn note(&self, at: &Flushed) -> Lsn {
        let Some(archive) = &self.archive else { return Lsn(0) };
        let next = missing(&archive.archived, archive.from, Lsn(u64::MAX));
        let reached = next.map_or(at.lsn, |hole| hole.start);
        let mut state = lock(&self.state);
        state.late.reached(reached);
        state.archived = Some(reached);
        reached
    }

    /// Opens places that were away and brings them level, or gathers small pieces; one at a time,
    /// beside the shipping.
    async fn tend(&mut self) {
        if let Some(task) = self.tending.take_if(|task| task.is_finished()) {
            match task.await {
                Ok(Tended::Level(Ok(opened))) => self.take(opened),
                Ok(Tended::Level(Err(fault))) => {
                    self.uneven = true;
                    self.complain(fault);
                }
                Ok(Tended::Gathered(Ok(_))) => {}
                Ok(Tended::Gathered(Err(error))) => {
                    tracing::warn!(error = crate::keeper::chain(&error), "pieces are not gathered");
                }
                Err(_) => self.uneven = true,
            }
        }
        let Some(archive) = &self.archive else { return };
        let every = if self.uneven { REOPEN } else { GATHER };
        let due = self.tended.is_none_or(|at| at.elapsed() >= every);
        if self.tending.is_some() || !due {
            return;
        }
        self.tended = Some(Instant::now());
        let (order, repository) = (self.order.clone(), archive.repository.clone());
        self.tending = Some(if self.uneven {
            // What fails from now on counts anew.
            self.uneven = false;
            spawn_blocking(move || Tended::Level(level(&order)))
        } else {
            spawn_blocking(move || {
                let log = Log::new(&repository, &order.service, order.lead.sysid);
                let thinned = log.thin_marks(clock::unix_ms());
                Tended::Gathered(thinned.and_then(|_| log.compact()))
            })
        });
    }

    fn take(&mut self, opened: Opened) {
        let Some(archive) = &mut self.archive else { return };
        archive.repository = Arc::new(opened.repository);
        opened.shipped.into_iter().for_each(|range| cover(&mut archive.shipped, range));
        opened.archived.into_iter().for_each(|range| cover(&mut archive.archived, range));
        if let Some(fault) = opened.fault {
            self.uneven = true;
            self.complain(fault);
        }
    }
}

/// The next pieces to put: each of one branch, large ones ending at multiples of their size.
fn batch(archive: &Archive, lead: &Lead, end: Lsn) -> Vec<Piece> {
    let mut batch = Vec::new();
    let mut covered = archive.shipped.clone();
    while batch.len() < IN_FLIGHT
        && let Some(hole) = missing(&covered, archive.from, end)
        && let Some((branch, extent)) = extents(&lead.line).find(|(_, it)| it.contains(&hole.start))
    {
        let most = Lsn((hole.start.0 / PIECE_BYTES_MAX + 1) * PIECE_BYTES_MAX);
        let end = hole.end.min(extent.end).min(most);
        batch.push(Piece { branch: branch.id(), start: hole.start, end, epoch: lead.epoch });
        cover(&mut covered, hole.start..end);
    }
    batch
}

/// The newest hole before `from`, below which the server has nothing.
fn gap(shipped: &[Range<Lsn>], from: Lsn) -> Option<(Lsn, Lsn)> {
    let before = |range: &&Range<Lsn>| range.end < from;
    let last = shipped.iter().rfind(before)?;
    let next = shipped.iter().find(|range| range.start > last.end);
    Some((last.end, next.map_or(from, |next| next.start.min(from))))
}

async fn oldest(files: &WalFiles, lead: &Lead, end: Lsn) -> Result<Lsn, PgError> {
    let (files, line) = (files.clone(), lead.line.clone());
    let looked = spawn_blocking(move || files.oldest(&line, end)).await;
    looked.unwrap_or_else(|error| Err(PgError::Task { said: error.to_string() }))
}

fn put(
    order: &Order,
    repository: &Repository,
    files: &WalFiles,
    batch: &[Piece],
) -> Vec<(Piece, Result<Put, Failed>)> {
    let log = Log::new(repository, &order.service, order.lead.sysid);
    let one = |piece: &Piece| {
        let bytes = files.read(&order.lead.line, &(piece.start..piece.end));
        log.put_piece(piece, &bytes.map_err(Failed::Read)?).map_err(Failed::Put)
    };
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            batch.iter().map(|piece| (*piece, scope.spawn(move || one(piece)))).collect();
        let ended =
            asked.into_iter().filter_map(|(piece, thread)| Some((piece, thread.join().ok()?)));
        ended.collect()
    })
}

/// Opens what can be opened, says whose line it is, and looks at what is there.
fn open(order: &Order) -> Result<Opened, Fault> {
    let repository = unlock(order)?;
    look(order, repository)
}

/// The same, with all that another place has in each.
fn level(order: &Order) -> Result<Opened, Fault> {
    let repository = unlock(order)?;
    if repository.places().count() == order.places.len() {
        let prefix = Log::prefix(&order.service, order.lead.sysid);
        repository.level(&prefix).map_err(|error| fault("", &error))?;
    }
    look(order, repository)
}

fn unlock(order: &Order) -> Result<Repository, Fault> {
    backup::open_places(&order.places, &order.cluster).map_err(|error| {
        let only = order.places.keys().next().filter(|_| order.places.len() == 1);
        fault(only.map_or("", String::as_str), &error)
    })
}

fn look(order: &Order, repository: Repository) -> Result<Opened, Fault> {
    let Lead { sysid, epoch, line } = &order.lead;
    let looked = || {
        let log = Log::new(&repository, &order.service, *sysid);
        log.put_line(*epoch, line)?;
        let of = |copies| Ok(coverage(&log.pieces(copies)?, line));
        Ok((of(1)?, of(order.copies)?))
    };
    let (shipped, archived) = looked().map_err(|error: RepositoryError| fault("", &error))?;
    let fault = repository.absent().first().map(|(name, error)| fault(name, error));
    Ok(Opened { repository, shipped, archived, fault })
}

/// An error of a place, or of all of them.
fn fault(place: &str, error: &RepositoryError) -> Fault {
    let (next, operator) = match error {
        RepositoryError::NoRepository { place } => (
            format!("mount what holds it, or make one with `everhold repository init {place}`"),
            true,
        ),
        RepositoryError::WrongPassword { place } => {
            (format!("put the password of {place} into its key_file"), true)
        }
        RepositoryError::NoPassword { .. } => {
            ("mend the file; it is read again".to_string(), true)
        }
        RepositoryError::Foreign { place, .. } | RepositoryError::Taken { place, .. } => {
            (format!("give {place} a url of its own in the spec"), true)
        }
        RepositoryError::NoConditionalPut { place, .. } => {
            (format!("use a store that refuses a second write for {place}"), true)
        }
        RepositoryError::Newer { .. } => ("run the version that wrote it".to_string(), true),
        RepositoryError::Conflict { .. } | RepositoryError::Damaged { .. } => {
            ("see who else writes there; nothing is overwritten".to_string(), true)
        }
        RepositoryError::File { .. }
        | RepositoryError::Remote { .. }
        | RepositoryError::LastPassword { .. }
        | RepositoryError::Missing { .. }
        | RepositoryError::NotArchived { .. }
        | RepositoryError::Unreachable { .. }
        | RepositoryError::Malformed { .. }
        // The rest is of backups, not of the log.
        | RepositoryError::FewCopies { .. }
        | RepositoryError::PlaceAbsent { .. }
        | RepositoryError::BadPages { .. }
        | RepositoryError::Tablespace { .. }
        | RepositoryError::Occupied { .. }
        | RepositoryError::Differs { .. }
        | RepositoryError::GivenUp { .. }
        | RepositoryError::Stopped
        | RepositoryError::NoRandomness => {
            ("the place answers again; it is tried all the time".to_string(), false)
        }
    };
    let said = crate::keeper::chain(error);
    let why = if place.is_empty() { said } else { format!("repository {place}: {said}") };
    Fault { why, next, operator }
}

fn unreadable(error: &PgError) -> Fault {
    Fault {
        why: format!("the WAL can't be read: {}", crate::keeper::chain(error)),
        next: "the disk answers again; it is tried all the time".to_string(),
        operator: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shipped, from where on the server has all, and the gap.
    type Case<'c> = (&'c [(u64, u64)], u64, Option<(u64, u64)>);

    #[test]
    fn the_newest_hole_that_can_not_be_filled_is_a_gap() {
        #[rustfmt::skip]
        let cases: [Case<'_>; 6] = [
            (&[],                        100, None),
            (&[(0, 100)],                100, None),
            (&[(0, 150)],                100, None),
            (&[(0, 50)],                 100, Some((50, 100))),
            (&[(0, 50), (80, 150)],      100, Some((50, 80))),
            (&[(0, 20), (30, 50), (120, 150)], 100, Some((50, 100))),
        ];
        for (shipped, from, expected) in cases {
            let ranges: Vec<_> = shipped.iter().map(|(a, b)| Lsn(*a)..Lsn(*b)).collect();
            let expected = expected.map(|(a, b)| (Lsn(a), Lsn(b)));
            assert_eq!(gap(&ranges, Lsn(from)), expected, "{shipped:?} {from}");
        }
    }
}
