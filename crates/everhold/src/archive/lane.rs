//! One place of the log, at its own pace: a thread that opens it, puts what it is handed, and copies
//! what it lacks from another place. It waits for nobody, and nobody waits for it.

use super::Order;
use crate::backup;
use everhold_repository::log::{Mark, Piece};
use everhold_repository::{Log, Repository, RepositoryError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// Pieces that are put at once.
pub const IN_FLIGHT: usize = 4;
/// Tasks that are handed over and not done yet: pieces as [`super::ship`] bounds them, and two more.
pub const TASKS_MAX: usize = 64;
/// Between two tries to open it: each costs a tenth of a second of a core.
const REOPEN: Duration = Duration::from_secs(3);

/// A piece and its bytes, the same for every place.
pub struct Parcel {
    pub piece: Piece,
    pub bytes: Vec<u8>,
}

pub enum Task {
    Put(Arc<Parcel>),
    /// Leave word of how far the log is.
    Mark(Mark),
    /// Copy what only one of the two has: this place and another, as one repository.
    Level(Repository),
    /// Open it anew: something was wrong with it.
    Reopen,
}

/// What a lane says of its place.
pub enum Said {
    /// It is open and has these pieces.
    Opened(Arc<Repository>, Vec<Piece>),
    Unopened(RepositoryError),
    Put(Piece, Result<(), RepositoryError>),
    Leveled(Result<Vec<Piece>, RepositoryError>),
}

/// Starts the thread of a place; it ends when `tasks` is dropped.
pub fn start(
    order: Arc<Order>,
    name: String,
    said: UnboundedSender<(String, Said)>,
) -> std::io::Result<SyncSender<Task>> {
    let (tasks, todo) = sync_channel(TASKS_MAX);
    let lane = Lane { order, name: name.clone(), said };
    thread::Builder::new().name(name).spawn(move || lane.run(&todo))?;
    Ok(tasks)
}

struct Lane {
    order: Arc<Order>,
    name: String,
    said: UnboundedSender<(String, Said)>,
}

impl Lane {
    fn say(&self, said: Said) -> bool {
        self.said.send((self.name.clone(), said)).is_ok()
    }

    fn run(&self, todo: &Receiver<Task>) {
        loop {
            let opened = self.open().and_then(|it| {
                let pieces = self.log(&it).pieces(1)?;
                Ok((Arc::new(it), pieces))
            });
            let (repository, pieces) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    if !self.say(Said::Unopened(error)) {
                        return;
                    }
                    thread::sleep(REOPEN);
                    continue;
                }
            };
            if !self.say(Said::Opened(repository.clone(), pieces)) || !self.work(&repository, todo)
            {
                return;
            }
        }
    }

    fn log<'r>(&self, repository: &'r Repository) -> Log<'r> {
        Log::new(repository, &self.order.service, self.order.lead.sysid)
    }

    /// Opens it, and says whose line it is before the first piece.
    fn open(&self) -> Result<Repository, RepositoryError> {
        let place = self.order.places.get(&self.name).cloned();
        let places = BTreeMap::from_iter(place.map(|place| (self.name.clone(), place)));
        let repository = backup::open_places(&places, &self.order.cluster)?;
        let lead = &self.order.lead;
        self.log(&repository).put_line(lead.epoch, &lead.line)?;
        Ok(repository)
    }

    /// Does tasks; true: it is to be opened anew.
    fn work(&self, repository: &Repository, todo: &Receiver<Task>) -> bool {
        let mut next = None;
        loop {
            let Some(task) = next.take().or_else(|| todo.recv().ok()) else { return false };
            let mut parcels = match task {
                Task::Put(parcel) => vec![parcel],
                Task::Level(both) => {
                    let prefix = Log::prefix(&self.order.service, self.order.lead.sysid);
                    let level = both.level(&prefix);
                    let pieces = level.and_then(|_| self.log(repository).pieces(1));
                    if !self.say(Said::Leveled(pieces)) {
                        return false;
                    }
                    continue;
                }
                Task::Mark(mark) => {
                    if let Err(error) = self.log(repository).put_mark(&mark) {
                        tracing::warn!(error = crate::keeper::chain(&error), "no mark was left");
                    }
                    continue;
                }
                Task::Reopen => return true,
            };
            while parcels.len() < IN_FLIGHT
                && let Ok(task) = todo.try_recv()
            {
                match task {
                    Task::Put(parcel) => parcels.push(parcel),
                    Task::Level(_) | Task::Mark(_) | Task::Reopen => {
                        next = Some(task);
                        break;
                    }
                }
            }
            let log = self.log(repository);
            let one = |parcel: &Parcel| log.put_piece(&parcel.piece, &parcel.bytes).map(drop);
            let told = thread::scope(|scope| {
                let running = parcels.iter().map(|parcel| {
                    let thread = scope.spawn(|| one(parcel));
                    (parcel.piece, thread)
                });
                let running: Vec<_> = running.collect();
                running.into_iter().all(|(piece, thread)| {
                    let lost = |_| Err(RepositoryError::Stopped);
                    self.say(Said::Put(piece, thread.join().unwrap_or_else(lost)))
                })
            });
            if !told {
                return false;
            }
        }
    }
}
