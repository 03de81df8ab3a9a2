//! A PostgreSQL server on this node: started, watched, questioned and changed, one action at a time.
//!
//! What an action has to guarantee is the failover protocol's to say; nothing here decides.

mod aside;
mod backup_mode;
mod config;
mod control;
mod copy;
mod error;
mod files;
mod functions;
mod history;
mod kept;
mod leader;
mod lifecycle;
pub mod lost;
mod memory;
mod observe;
mod postmaster;
mod probe;
mod process;
mod proof;
mod restore_point;
pub mod scrub;
mod session;
mod settings;
mod standby;
mod tool;
mod wal;

pub use aside::{Aside, AsideConfig, Held, LOG_ENDS, Target};
pub use backup_mode::{BackupEnds, BackupMode};
pub use config::{COPIED, PgConfig, RESTORED};
pub use copy::drop_restored;
pub use error::PgError;
pub use files::Owner;
pub use kept::KeptWal;
pub use leader::LogSlot;
pub use memory::free_memory;
pub use probe::probe;
pub use proof::Wrong;
pub use restore_point::{RestorePoint, RestorePoints};
pub use settings::{REPLICATION_ROLE, SUPERUSER};
pub use wal::{Flushed, WalFiles, WalSource};

use everhold_core::ids::Member;
use everhold_core::postgres::{PgAction, PgFacts, PgOutcome};
use leader::{Needed, Proven};
use observe::Look;
use postmaster::Watch;
use process::{Directory, Handle};
use rustix::process::Signal;
use session::{Session, Timeline};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

/// What all parts need of one server.
#[derive(Clone)]
struct Site {
    config: Arc<PgConfig>,
    /// System users that may be the superuser.
    local_names: Arc<[String]>,
    directory: Directory,
    watch: Watch,
    timeline: Timeline,
    proven: Proven,
    /// Up to where the owners of slots have the log; not known at first.
    needed: Needed,
    /// A rewind or a clone is under way.
    copying: Arc<AtomicBool>,
    /// Set in an action that nothing else may overlap.
    alone: Option<Arc<OwnedMutexGuard<()>>>,
}

impl Site {
    /// Has the postmaster read its files again, and tell its children.
    async fn reload(&self) -> Result<(), PgError> {
        match self.look_for_postmaster().await? {
            Some(postmaster) => {
                postmaster.signal(Signal::HUP);
                Ok(())
            }
            None => Err(PgError::refused("PostgreSQL isn't running")),
        }
    }

    /// Runs what may wait for a disk outside of the runtime. It goes on when the action is given up,
    /// so the next action waits for it.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PgError> + Send + 'static,
    ) -> Result<T, PgError> {
        let alone = self.alone.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(alone);
            result
        });
        let ended = ended.await;
        ended.map_err(|error| PgError::Task { said: error.to_string() })?
    }

    /// The postmaster under watch, or one that somebody else started.
    async fn look_for_postmaster(&self) -> Result<Option<Arc<Handle>>, PgError> {
        if let Some(known) = self.watch.alive() {
            return Ok(Some(known));
        }
        let directory = self.directory.clone();
        if let Some(found) = self.blocking(move || Ok(directory.postmaster())).await? {
            self.watch.adopt(found, None)?;
        }
        Ok(self.watch.alive())
    }
}

/// One server, running or not. Dropping it leaves the server as it is.
pub struct Postgres {
    site: Site,
    look: Mutex<Look>,
    acting: Arc<Mutex<()>>,
    evidence: Mutex<Option<Session>>,
}

impl Postgres {
    /// Makes the directories and adopts a server of the data directory that runs already.
    pub async fn open(config: PgConfig) -> Result<Postgres, PgError> {
        let prepared = tokio::task::spawn_blocking(move || {
            let config = config.prepare()?;
            let names = config.local_names()?;
            Ok::<_, PgError>((config, names))
        });
        let (config, names) =
            prepared.await.map_err(|error| PgError::Task { said: error.to_string() })??;
        let directory = config.directory();
        let site = Site {
            config: Arc::new(config),
            local_names: names.into(),
            directory,
            watch: Watch::new(),
            timeline: Timeline::default(),
            proven: Proven::default(),
            needed: Needed::default(),
            copying: Arc::default(),
            alone: None,
        };
        if site.look_for_postmaster().await?.is_some() {
            // Spec and certificate may have changed while no agent was there to say so.
            let config = site.config.clone();
            site.blocking(move || {
                settings::write_certificates(&config)?;
                settings::write_parameters(&config)
            })
            .await?;
            site.reload().await?;
        }
        Ok(Postgres {
            site,
            look: Mutex::default(),
            acting: Arc::default(),
            evidence: Mutex::default(),
        })
    }

    /// Carries out an action. Those that change what the server is wait for each other; a barrier,
    /// evidence, a checkpoint and slots run beside. Dropping the future gives the action up where it
    /// is: programs it runs are killed, nothing is cancelled in the server, and it can be repeated.
    pub async fn run(&self, me: &Member, action: &PgAction) -> Result<PgOutcome, PgError> {
        match action {
            PgAction::Barrier { epoch } => leader::barrier(&self.site, *epoch).await,
            PgAction::Evidence => {
                leader::evidence(&self.site, &mut *self.evidence.lock().await).await
            }
            PgAction::Checkpoint => leader::checkpoint(&self.site).await,
            PgAction::Slots { names, needed } => {
                leader::slots(&self.site, &others(names, me), needed).await
            }
            PgAction::Observe => Ok(PgOutcome::Done),
            PgAction::Bootstrap
            | PgAction::Stop { .. }
            | PgAction::Start { .. }
            | PgAction::SetSource { .. }
            | PgAction::Park
            | PgAction::Trim { .. }
            | PgAction::Promote { .. }
            | PgAction::SetSync { .. }
            | PgAction::Rewind { .. }
            | PgAction::Clone { .. }
            | PgAction::PutBack { .. } => self.change(me, action).await,
        }
    }

    async fn change(&self, me: &Member, action: &PgAction) -> Result<PgOutcome, PgError> {
        let alone = Some(Arc::new(self.acting.clone().lock_owned().await));
        let site = &Site { alone, ..self.site.clone() };
        match action {
            PgAction::Bootstrap => lifecycle::bootstrap(site).await,
            PgAction::Stop { mode } => lifecycle::stop(site, *mode).await,
            PgAction::Start { line, source } => lifecycle::start(site, line, source.as_ref()).await,
            PgAction::SetSource { source } => standby::set_source(site, source.as_ref()).await,
            PgAction::Park => standby::park(site).await,
            PgAction::Trim { line } => lifecycle::trim(site, line).await,
            PgAction::Promote { branch, reserved, slots } => {
                standby::promote(site, branch, reserved, &others(slots, me)).await
            }
            PgAction::SetSync { names } => leader::set_sync(site, names).await,
            PgAction::Rewind { source, fork, epoch } => {
                copy::rewind(site, source, *fork, *epoch).await
            }
            PgAction::Clone { source, fork, epoch, keep, bad_pages_too } => {
                let old = copy::Old { fork: *fork, epoch: *epoch, keep: *keep };
                copy::clone(site, source, &me.slot(), old, *bad_pages_too).await
            }
            PgAction::PutBack { id, epoch } => copy::put_back(site, id, *epoch).await,
            PgAction::Barrier { .. }
            | PgAction::Evidence
            | PgAction::Checkpoint
            | PgAction::Slots { .. }
            | PgAction::Observe => Err(PgError::refused("this action changes nothing here")),
        }
    }

    /// One look at the server, in about a second at most. What can't be known stays unknown.
    pub async fn observe(&self, me: &Member) -> PgFacts {
        observe::observe(&self.site, &mut *self.look.lock().await, me).await
    }

    /// Sees to the slot that keeps WAL until it is archived. Runs beside everything else.
    pub async fn log_slot(&self, wanted: LogSlot) -> Result<(), PgError> {
        leader::log_slot(&self.site, wanted).await
    }

    /// Gives roles this cluster's passwords where a primary was restored and still has others. Whether
    /// there was anything to do. Runs beside everything else.
    pub async fn renew_roles(&self) -> Result<bool, PgError> {
        standby::renew_roles(&self.site).await
    }

    /// Removes what was restored beside the data directory; with `unfinished` only what never became
    /// whole. Runs beside everything else.
    pub async fn drop_restored(&self, unfinished: bool) -> Result<(), PgError> {
        let config = self.site.config.clone();
        self.site.blocking(move || copy::drop_restored(&config, unfinished)).await
    }

    /// Changes at once when the postmaster ends, for whatever reason.
    pub fn death(&self) -> watch::Receiver<u64> {
        self.site.watch.deaths()
    }

    /// All processes of the directory. Reads all of /proc: a few milliseconds.
    pub fn pids(&self) -> Vec<i32> {
        self.site.directory.pids()
    }
}

/// Slots of others: one of its own would hold back WAL that nobody will ever fetch.
fn others(names: &[String], me: &Member) -> Vec<String> {
    names.iter().filter(|name| **name != me.slot()).cloned().collect()
}
