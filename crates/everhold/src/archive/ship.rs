//! What the archiver does: it finds what the archive lacks, cuts it into pieces, and hands them to
//! each place. The slowest place holds up nobody: what it has no room for it gets later from another.

use super::lane::{self, IN_FLIGHT, Parcel, Said, TASKS_MAX, Task};
use super::mark::Marker;
use super::{Fault, Lead, Order, Shared, lock};
use crate::clock;
use everhold_adapters::postgres::{Flushed, PgError, WalFiles};
use everhold_core::ids::Lsn;
use everhold_core::term::Branch;
use everhold_repository::log::{
    PIECE_BYTES_MAX, Piece, at_least, cover, coverage, extents, missing,
};
use everhold_repository::{Log, Repository, RepositoryError};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes that a place is handed and has not put yet; what is beyond it gets from another place.
const LANE_BYTES: u64 = 64 << 20;
/// The other places are waited for so long at the start: what they have needs no shipping.
const OPEN_WITHIN: Duration = Duration::from_secs(2);
/// A put that takes longer is shown.
const SLOW: Duration = Duration::from_secs(5);
/// Between two rounds of making a place level.
const LEVEL: Duration = Duration::from_secs(3);
/// Between two rounds of gathering small pieces.
const GATHER: Duration = Duration::from_secs(60);
/// Between two looks whether a backup begins after a hole.
const LOOK: Duration = Duration::from_secs(5);

pub struct Shipper {
    order: Arc<Order>,
    state: Shared,
    places: BTreeMap<String, Place>,
    said: UnboundedReceiver<(String, Said)>,
    /// When the first place was open.
    begun: Option<Instant>,
    /// From here on the server has all of it.
    from: Option<Lsn>,
    /// Why the WAL could not be read.
    unread: Option<Fault>,
    gathered: Instant,
    gathering: Option<JoinHandle<Result<usize, RepositoryError>>>,
    hole: Hole,
    marker: Marker,
    /// When the server was asked how far it is, in milliseconds since 1970.
    asked_ms: u64,
}

/// A place as far as it has answered.
struct Place {
    tasks: SyncSender<Task>,
    open: Option<Open>,
    /// It answered once, well or badly.
    tried: bool,
    /// Handed over and not answered, and since when.
    pending: Vec<(Piece, Instant)>,
    leveling: Option<Instant>,
    leveled: Option<Instant>,
    fault: Option<Fault>,
}

struct Open {
    repository: Arc<Repository>,
    /// What it has of the leader's line.
    has: Vec<Range<Lsn>>,
    /// Another's content stands in a piece's place: nothing is put there till that is gone.
    disputed: bool,
}

/// The newest part that is missing for good, and whether that still matters.
#[derive(Default)]
struct Hole {
    of: Option<(Lsn, Lsn)>,
    /// A backup begins behind it.
    closed: bool,
    looked: Option<Instant>,
    looking: Option<JoinHandle<Result<bool, RepositoryError>>>,
}

impl Shipper {
    pub fn new(order: Arc<Order>, state: Shared) -> std::io::Result<Shipper> {
        // As many answers as tasks were handed over, at most.
        let (tell, said) = unbounded_channel();
        let place = |name: &String| -> std::io::Result<(String, Place)> {
            let tasks = lane::start(order.clone(), name.clone(), tell.clone())?;
            Ok((name.clone(), Place::new(tasks)))
        };
        let places = order.places.keys().map(place).collect::<std::io::Result<_>>()?;
        Ok(Shipper {
            order,
            state,
            places,
            said,
            begun: None,
            from: None,
            unread: None,
            gathered: Instant::now(),
            gathering: None,
            hole: Hole::default(),
            marker: Marker::default(),
            asked_ms: 0,
        })
    }

    /// Hands out what there is, at most some pieces. The server was asked at `asked_ms`, in
    /// milliseconds since 1970.
    pub async fn round(&mut self, at: &Flushed, asked_ms: u64) {
        self.asked_ms = asked_ms;
        self.hear_all();
        self.tend().await;
        if self.is_ready() {
            self.ship(at).await;
        }
        self.note(at);
    }

    /// Hears the places for that long, or until there is more to ship and a place that is free.
    pub async fn rest(&mut self, at: &Flushed, most: Duration) {
        let until = tokio::time::Instant::now() + most;
        while let Ok(Some((name, said))) = tokio::time::timeout_at(until, self.said.recv()).await {
            self.hear(&name, said);
            self.hear_all();
            self.note(at);
            let reached = missing(&self.covered(), self.from.unwrap_or(at.lsn), at.lsn);
            if reached.is_some() && self.is_ready() && self.is_free() {
                return;
            }
        }
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

    fn hear_all(&mut self) {
        while let Ok((name, said)) = self.said.try_recv() {
            self.hear(&name, said);
        }
    }

    fn hear(&mut self, name: &str, said: Said) {
        // All places of a cluster are one repository, whichever answers first: what is sealed for
        // one is put into all.
        let first = self.open().next().map(|open| open.repository.clone());
        let Some(place) = self.places.get_mut(name) else { return };
        let lead = &self.order.lead;
        place.tried = true;
        match said {
            Said::Opened(repository, pieces) => {
                let found = repository.identity();
                place.fault = None;
                if let Some(first) = first.filter(|first| !repository.is_one_with(first)) {
                    let error = RepositoryError::Foreign {
                        place: name.to_string(),
                        found: found.id.clone(),
                        cluster: found.cluster.clone(),
                        expected: first.identity().id.clone(),
                    };
                    place.fault = Some(fault(name, &error));
                    return;
                }
                self.begun.get_or_insert_with(Instant::now);
                place.open =
                    Some(Open { repository, has: coverage(&pieces, &lead.line), disputed: false });
                // It may have older parts than those that were open.
                self.from = None;
            }
            Said::Unopened(error) => {
                place.open = None;
                place.fault = Some(fault(name, &error));
            }
            Said::Put(piece, result) => {
                place.pending.retain(|(pending, _)| *pending != piece);
                match (result, &mut place.open) {
                    (Ok(()), Some(open)) => {
                        cover(&mut open.has, piece.start..piece.end);
                        place.fault = None;
                    }
                    (Ok(()), None) => {}
                    // Its lane opens it anew when that is gone.
                    (Err(error @ RepositoryError::Conflict { .. }), Some(open)) => {
                        open.disputed = true;
                        place.fault = Some(fault(name, &error));
                    }
                    // Its lane opens it anew.
                    (Err(error), _) => {
                        (place.fault, place.open) = (Some(fault(name, &error)), None)
                    }
                }
            }
            Said::Back(Task::Put(parcel)) => {
                place.pending.retain(|(pending, _)| *pending != parcel.piece);
            }
            Said::Back(Task::Level(_)) => place.leveling = None,
            Said::Back(Task::Mark(_)) => {}
            Said::Leveled(result) => {
                place.leveling = None;
                match (result, &mut place.open) {
                    (Ok(pieces), Some(open)) => {
                        place.fault = None;
                        let has = coverage(&pieces, &lead.line).into_iter();
                        has.for_each(|range| cover(&mut open.has, range));
                    }
                    (Ok(_), None) => {}
                    // It may be the other place's.
                    (Err(error), _) => place.fault = Some(fault(name, &error)),
                }
            }
        }
    }

    fn open(&self) -> impl Iterator<Item = &Open> {
        self.places.values().filter_map(|place| place.open.as_ref())
    }

    /// What so many places have.
    fn held(&self, copies: usize) -> Vec<Range<Lsn>> {
        let all: Vec<&[Range<Lsn>]> = self.open().map(|open| open.has.as_slice()).collect();
        at_least(&all, copies)
    }

    /// What some place has, or is about to, from which others get it.
    fn covered(&self) -> Vec<Range<Lsn>> {
        let open = self.open().filter(|open| !open.disputed);
        let all: Vec<&[Range<Lsn>]> = open.map(|open| open.has.as_slice()).collect();
        let mut covered = at_least(&all, 1);
        let pending = self.places.values().flat_map(|place| &place.pending);
        pending.for_each(|(piece, _)| cover(&mut covered, piece.start..piece.end));
        covered
    }

    /// Some place is open, and the others have had their time to tell what they have.
    fn is_ready(&self) -> bool {
        self.begun.is_some_and(|begun| {
            begun.elapsed() >= OPEN_WITHIN || self.places.values().all(|place| place.tried)
        }) && self.open().next().is_some()
    }

    /// The fastest place sets the pace.
    fn is_free(&self) -> bool {
        let free = |place: &Place| place.is_open() && place.pending.is_empty();
        self.places.values().any(|place| free(place) && place.leveling.is_none())
    }

    async fn ship(&mut self, at: &Flushed) {
        let lead = self.order.lead.clone();
        if self.from.is_none() {
            match oldest(&at.files, &lead, at.lsn).await {
                // What the archive no longer has since nothing needs it is not shipped again.
                Ok(oldest) => {
                    let first = self.held(1).first().map(|first| first.start);
                    self.from = Some(first.map_or(oldest, |first| first.max(oldest)));
                }
                Err(error) => {
                    self.unread = Some(unreadable(&error));
                    return;
                }
            }
        }
        let Some(from) = self.from.filter(|_| self.is_free()) else { return };
        let batch = batch(self.covered(), from, &lead, at.lsn);
        if batch.is_empty() {
            return;
        }
        let Some(first) = self.open().next().map(|open| open.repository.clone()) else { return };
        let (files, order) = (at.files.clone(), self.order.clone());
        let made = spawn_blocking(move || parcels(&batch, &files, &order, &first));
        match made.await {
            Ok(Ok(parcels)) => {
                self.unread = None;
                parcels.iter().for_each(|parcel| self.hand_out(parcel));
            }
            Ok(Err(Unmade::Unsealed(error))) => self.unread = Some(unreadable(&error)),
            Ok(Err(Unmade::Unread(piece, error))) => {
                // Gone before it was archived: what there is goes on.
                match oldest(&at.files, &self.order.lead, at.lsn).await {
                    Ok(oldest) if oldest > piece.start => {
                        self.from = Some(from.max(oldest));
                    }
                    Ok(_) | Err(_) => self.unread = Some(unreadable(&error)),
                }
            }
            Err(_) => {}
        }
    }

    fn hand_out(&mut self, parcel: &Arc<Parcel>) {
        for place in self.places.values_mut().filter(|place| place.is_open()) {
            let handed: u64 = place.pending.iter().map(|(piece, _)| piece.bytes()).sum();
            let room =
                handed + parcel.piece.bytes() <= LANE_BYTES && place.pending.len() + 1 < TASKS_MAX;
            if room && place.tasks.try_send(Task::Put(parcel.clone())).is_ok() {
                place.pending.push((parcel.piece, Instant::now()));
            }
        }
    }

    /// Says how far it is and what is wrong.
    fn note(&mut self, at: &Flushed) {
        if let Some(from) = self.from {
            let next = missing(&self.held(self.order.copies), from, Lsn(u64::MAX));
            let reached = next.map_or(at.lsn, |hole| hole.start);
            let all_open = self.places.values().all(|place| place.open.is_some());
            let hole = gap(&self.held(1), from, all_open, self.hole.of);
            if self.hole.of != hole {
                self.hole = Hole { of: hole, ..Hole::default() };
            }
            let mut state = lock(&self.state);
            state.late.reached(reached);
            state.archived = Some(reached);
            // First it is looked whether it matters any more.
            state.gap = hole.filter(|_| self.hole.looked.is_some() && !self.hole.closed);
            drop(state);
            self.mark(at, reached);
        }
        let all = self.held(1);
        let fault = self.places.iter().find_map(|(name, place)| place.trouble(name, &all));
        match self.unread.clone().or(fault) {
            Some(fault) => self.complain(fault),
            None if self.is_ready() => lock(&self.state).trouble = None,
            None => {}
        }
    }

    /// Leaves a mark in each place when one is due. Without it the log is as good: only what is
    /// proven of it is less.
    fn mark(&mut self, at: &Flushed, reached: Lsn) {
        let Some(tip) = self.order.lead.line.last().map(Branch::id) else { return };
        let begun = (tip, at.written);
        if let Some(mark) = self.marker.due(self.asked_ms, begun, reached, clock::unix_ms()) {
            for place in self.places.values().filter(|place| place.is_open()) {
                let _ = place.tasks.try_send(Task::Mark(mark));
            }
        }
    }

    /// Makes level who lacks something, gathers small pieces, looks after a hole.
    async fn tend(&mut self) {
        self.look_after_hole().await;
        if let Some(task) = self.gathering.take_if(|task| task.is_finished())
            && let Ok(Err(error)) = task.await
        {
            tracing::warn!(error = crate::keeper::chain(&error), "pieces are not gathered");
        }
        let all = self.held(1);
        let lacks = |place: &Place| place.will_have().is_some_and(|has| lacks(&has, &all));
        let level = self.places.values().all(|place| place.is_open() && !lacks(place));
        if level {
            let due = self.gathering.is_none() && self.gathered.elapsed() >= GATHER;
            if due && let Some(repository) = Repository::join(self.open().map(|it| &*it.repository))
            {
                self.gathered = Instant::now();
                let order = self.order.clone();
                self.gathering = Some(spawn_blocking(move || {
                    let log = Log::new(&repository, &order.service, order.lead.sysid);
                    log.thin_marks(clock::unix_ms())?;
                    log.compact()
                }));
            }
            return;
        }
        let mut tasks = Vec::new();
        for (name, place) in &self.places {
            // A slow place always has something to put: what it lacks besides is copied meanwhile.
            let is_open = place.is_open() && place.leveling.is_none();
            let Some(open) = place.open.as_ref().filter(|_| is_open) else { continue };
            let rested = place.leveled.is_none_or(|at| at.elapsed() >= LEVEL);
            let other = self.places.iter().filter(|(other, _)| *other != name);
            // Who has most of what it lacks.
            let well = other.filter(|(_, place)| place.fault.is_none() && !place.is_slow());
            let other = well.filter_map(|(_, place)| place.open.as_ref());
            let other = other.max_by_key(|other| lacking(&open.has, &other.has));
            if rested
                && lacks(place)
                && let Some(other) = other
            {
                let both = [&*open.repository, &*other.repository];
                tasks.extend(Repository::join(both).map(|both| (name.clone(), Task::Level(both))));
            }
        }
        for (name, task) in tasks {
            let Some(place) = self.places.get_mut(&name) else { continue };
            if place.tasks.try_send(task).is_ok() {
                (place.leveling, place.leveled) = (Some(Instant::now()), Some(Instant::now()));
            }
        }
    }

    /// A backup that begins behind a hole ends it: from there on every point can be restored again.
    async fn look_after_hole(&mut self) {
        if let Some(task) = self.hole.looking.take_if(|task| task.is_finished()) {
            self.hole.closed = matches!(task.await, Ok(Ok(true)));
            self.hole.looked = Some(Instant::now());
        }
        let rested = self.hole.looked.is_none_or(|at| at.elapsed() >= LOOK);
        let Some((_, end)) = self.hole.of.filter(|_| rested && !self.hole.closed) else { return };
        if self.hole.looking.is_some() {
            return;
        }
        let Some(repository) = Repository::join(self.open().map(|it| &*it.repository)) else {
            return;
        };
        let order = self.order.clone();
        self.hole.looking = Some(spawn_blocking(move || {
            let listed = everhold_repository::backup::list(&repository, &order.service)?;
            Ok(listed.backups.iter().any(|info| {
                let good = info.copies >= order.copies && info.about.sysid == order.lead.sysid;
                good && info.about.start >= end
            }))
        }));
    }
}

impl Place {
    fn new(tasks: SyncSender<Task>) -> Place {
        Place {
            tasks,
            open: None,
            tried: false,
            pending: Vec::new(),
            leveling: None,
            leveled: None,
            fault: None,
        }
    }

    /// Pieces can be put there.
    fn is_open(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.disputed)
    }

    /// What it has, and what it was handed; `None`: it is not open.
    fn will_have(&self) -> Option<Vec<Range<Lsn>>> {
        let mut has = self.open.as_ref()?.has.clone();
        self.pending.iter().for_each(|(piece, _)| cover(&mut has, piece.start..piece.end));
        Some(has)
    }

    /// Since when it is waited for.
    fn waiting(&self) -> Option<Instant> {
        self.pending.iter().map(|(_, at)| *at).chain(self.leveling).min()
    }

    fn is_slow(&self) -> bool {
        self.waiting().is_some_and(|at| at.elapsed() >= SLOW)
    }

    /// Why it has not all that some place has.
    fn trouble(&self, name: &str, all: &[Range<Lsn>]) -> Option<Fault> {
        let waits = "the place answers; the others go on meanwhile, and it catches up by itself";
        let slow = self.waiting().filter(|at| at.elapsed() >= SLOW).map(|at| Fault {
            why: format!("repository {name} has not answered for {} s", at.elapsed().as_secs()),
            next: waits.to_string(),
            operator: false,
        });
        let behind = || {
            lacks(&self.will_have()?, all).then(|| Fault {
                why: format!("repository {name} lacks a part of the log, which is copied there"),
                next: waits.to_string(),
                operator: false,
            })
        };
        self.fault.clone().or(slow).or_else(behind)
    }
}

/// Bytes of `other` that `has` lacks.
fn lacking(has: &[Range<Lsn>], other: &[Range<Lsn>]) -> u64 {
    let one = |range: &Range<Lsn>| {
        let mut left = 0;
        let mut at = range.start;
        while let Some(hole) = missing(has, at, range.end) {
            left += hole.end.0 - hole.start.0;
            at = hole.end;
        }
        left
    };
    other.iter().map(one).sum()
}

fn lacks(has: &[Range<Lsn>], all: &[Range<Lsn>]) -> bool {
    lacking(has, all) > 0
}

/// The next pieces to put: each of one branch, large ones ending at multiples of their size.
fn batch(mut covered: Vec<Range<Lsn>>, from: Lsn, lead: &Lead, end: Lsn) -> Vec<Piece> {
    let mut batch = Vec::new();
    while batch.len() < IN_FLIGHT
        && let Some(hole) = missing(&covered, from, end)
        && let Some((branch, extent)) = extents(&lead.line).find(|(_, it)| it.contains(&hole.start))
    {
        let most = Lsn((hole.start.0 / PIECE_BYTES_MAX + 1) * PIECE_BYTES_MAX);
        let end = hole.end.min(extent.end).min(most);
        batch.push(Piece { branch: branch.id(), start: hole.start, end, epoch: lead.epoch });
        cover(&mut covered, hole.start..end);
    }
    batch
}

/// The newest hole before `from`, below which the server has nothing. What a place has that is away
/// may be just what the others lack: till then it is as it was.
fn gap(
    shipped: &[Range<Lsn>],
    from: Lsn,
    all_open: bool,
    known: Option<(Lsn, Lsn)>,
) -> Option<(Lsn, Lsn)> {
    if !all_open {
        return known;
    }
    let before = |range: &&Range<Lsn>| range.end < from;
    let last = shipped.iter().rfind(before)?;
    let next = shipped.iter().find(|range| range.start > last.end);
    Some((last.end, next.map_or(from, |next| next.start.min(from))))
}

/// Why a piece could not be made.
enum Unmade {
    Unread(Piece, PgError),
    Unsealed(RepositoryError),
}

/// Reads pieces and seals them once for all places, several at once.
fn parcels(
    batch: &[Piece],
    files: &WalFiles,
    order: &Order,
    repository: &Repository,
) -> Result<Vec<Arc<Parcel>>, Unmade> {
    let one = |piece: Piece| {
        let bytes = files.read(&order.lead.line, &(piece.start..piece.end));
        let bytes = bytes.map_err(|error| Unmade::Unread(piece, error))?;
        let log = Log::new(repository, &order.service, order.lead.sysid);
        let sealed = log.seal_piece(&piece, &bytes).map_err(Unmade::Unsealed)?;
        Ok(Arc::new(Parcel { piece, sealed }))
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = batch.iter().map(|piece| scope.spawn(move || one(*piece))).collect();
        let ended = running.into_iter().map(|thread| thread.join());
        let ended = ended.map(|it| it.unwrap_or(Err(Unmade::Unsealed(RepositoryError::Stopped))));
        // In order, so that the first that is gone is the one that counts.
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}

async fn oldest(files: &WalFiles, lead: &Lead, end: Lsn) -> Result<Lsn, PgError> {
    let (files, line) = (files.clone(), lead.line.clone());
    let looked = spawn_blocking(move || files.oldest(&line, end)).await;
    looked.unwrap_or_else(|error| Err(PgError::Task { said: error.to_string() }))
}

/// An error of a place.
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
        RepositoryError::HalfCopied { place } => (
            format!("run the `everhold repository copy` that fills {place} again: it goes on"),
            true,
        ),
        RepositoryError::NoConditionalPut { place, .. } => {
            (format!("use a store that refuses a second write for {place}"), true)
        }
        RepositoryError::Newer { .. } => ("run the version that wrote it".to_string(), true),
        RepositoryError::Conflict { .. } => (
            "see who else writes there, and take away what is not this service's: nothing is \
             overwritten, and nothing more is put there until then"
                .to_string(),
            true,
        ),
        RepositoryError::Damaged { .. } => {
            ("see who else writes there; nothing is overwritten".to_string(), true)
        }
        RepositoryError::File { source, .. } if is_full(source) => (
            "make room there, or keep less: what is missing is put by itself then; meanwhile the \
             leader keeps it, up to max_slot_wal_keep_size"
                .to_string(),
            true,
        ),
        RepositoryError::File { .. }
        | RepositoryError::Remote { .. }
        | RepositoryError::DamagedPassword { .. }
        | RepositoryError::ManyPasswords { .. }
        | RepositoryError::LastPassword { .. }
        | RepositoryError::OldPassword { .. }
        | RepositoryError::NoRoomForCopy { .. }
        | RepositoryError::NotWhole { .. }
        | RepositoryError::WrongKit { .. }
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
    Fault { why: format!("repository {place}: {said}"), next, operator }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn unreadable(error: &dyn std::error::Error) -> Fault {
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
            assert_eq!(gap(&ranges, Lsn(from), true, None), expected, "{shipped:?} {from}");
            // A place is away: nothing new is said, and what was said stays.
            for known in [None, Some((Lsn(1), Lsn(2)))] {
                assert_eq!(gap(&ranges, Lsn(from), false, known), known, "{shipped:?} {from}");
            }
        }
    }
}
