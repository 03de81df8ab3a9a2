//! Proves one backup: restores it beside the node's data, recovers it to an instant, and looks whether
//! what stands there is what it has to be. Part of the role `worker`.

mod budget;
pub mod sandbox;
mod witness;

use super::desk::Said;
use super::{away, open, told};
use crate::clock;
use crate::helper;
use anyhow::{Context, anyhow};
pub use budget::Budget;
use everhold_adapters::postgres::{Aside, PgError, Target, Wrong};
use everhold_core::backup::Proving;
use everhold_core::ids::{Lsn, Tli};
use everhold_core::spec::{BackupSpec, PostgresSpec, Spec};
use everhold_repository::backup::{
    Info, Progress, ProofRecord, Restore, THREADS, Verified, Watch, drop_proofs, lines, list,
    read_proofs, restore, verify,
};
use everhold_repository::{Repository, RepositoryError};
use sandbox::Sandbox;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use witness::{Course, Known, Witness};

/// Between two words on how far it is.
const TELL_EVERY_MS: u64 = 500;
const STOPPED_LOOK: Duration = Duration::from_millis(200);
/// Checks of a person.
const CHECKS_BYTES_MAX: u64 = 1 << 20;
const AMCHECK: &str = "amcheck";

/// What to prove.
pub struct Task {
    pub spec: Spec,
    pub service: String,
    pub node: String,
    /// The sandbox.
    pub dir: PathBuf,
    pub backup: String,
    pub why: Proving,
    /// Chooses the instant.
    pub random: u64,
    pub stop: Arc<AtomicBool>,
}

/// Why a proof ended before its end.
enum End {
    /// What is stored of the backup is wrong.
    Damaged(String),
    /// Something else is wrong with it.
    Failed(String),
    /// The machine, the network or a person kept it from being looked at.
    NotDone(anyhow::Error),
}

impl From<anyhow::Error> for End {
    fn from(error: anyhow::Error) -> End {
        End::NotDone(error)
    }
}

impl From<tokio::task::JoinError> for End {
    fn from(error: tokio::task::JoinError) -> End {
        End::NotDone(error.into())
    }
}

impl End {
    /// What a place that does not answer may hold whole is not judged.
    fn of_repository(error: RepositoryError, repository: &Repository) -> End {
        let of_data = match &error {
            RepositoryError::Damaged { .. }
            | RepositoryError::Missing { .. }
            | RepositoryError::NotArchived { .. }
            | RepositoryError::Malformed { .. }
            | RepositoryError::Conflict { .. }
            | RepositoryError::Differs { .. } => true,
            RepositoryError::File { .. }
            | RepositoryError::Remote { .. }
            | RepositoryError::NoConditionalPut { .. }
            | RepositoryError::NoRepository { .. }
            | RepositoryError::Taken { .. }
            | RepositoryError::Foreign { .. }
            | RepositoryError::Newer { .. }
            | RepositoryError::HalfCopied { .. }
            | RepositoryError::NoRoomForCopy { .. }
            | RepositoryError::OldPassword { .. }
            | RepositoryError::NotWhole { .. }
            | RepositoryError::WrongPassword { .. }
            | RepositoryError::WrongKit { .. }
            | RepositoryError::NoPassword { .. }
            | RepositoryError::DamagedPassword { .. }
            | RepositoryError::ManyPasswords { .. }
            | RepositoryError::LastPassword { .. }
            | RepositoryError::Unreachable { .. }
            | RepositoryError::FewCopies { .. }
            | RepositoryError::BadPages { .. }
            | RepositoryError::Tablespace { .. }
            | RepositoryError::Occupied { .. }
            | RepositoryError::GivenUp { .. }
            | RepositoryError::PlaceAbsent { .. }
            | RepositoryError::Stopped
            | RepositoryError::NoRandomness => false,
        };
        if !of_data {
            return End::NotDone(told(error));
        }
        if let Some(away) = away(repository) {
            return End::NotDone(anyhow!("E280 {error}; {away}"));
        }
        match error {
            RepositoryError::NotArchived { .. } => End::Failed(error.to_string()),
            error => End::Damaged(error.to_string()),
        }
    }

    /// What a look at every copy found; in words, if that is well.
    fn of_copies(verified: &Verified, repository: &Repository) -> Result<String, End> {
        if let Some(unreachable) = verified.unreachable.first() {
            let error = anyhow!("E280 not every copy could be read: {unreachable}");
            return Err(End::NotDone(error));
        }
        if let Some(harm) = verified.harmed.iter().find(|it| it.copies == 0) {
            let error = RepositoryError::Damaged { name: harm.object.clone() };
            return Err(End::of_repository(error, repository));
        }
        let healed = match verified.harmed.len() {
            0 => String::new(),
            count => format!(", {count} of them healed"),
        };
        Ok(format!("{} objects in every place{healed}", verified.objects))
    }

    fn of_server(error: PgError) -> End {
        match error.is_of_data() {
            true => End::Failed(error.to_string()),
            false => End::NotDone(error.into()),
        }
    }

    /// With the word of who knows better.
    fn because(self, witness: &Witness) -> End {
        match self {
            End::Failed(why) => End::Failed(format!("{why}; {}", witness.word())),
            End::Damaged(why) => End::Damaged(why),
            End::NotDone(error) => End::NotDone(error),
        }
    }
}

/// What came out, as it stands in the repository now. An error: it could not be done, which says
/// nothing of the backup. Nothing is left of the sandbox either way.
pub async fn prove(task: &Task) -> anyhow::Result<ProofRecord> {
    let service = task.spec.postgres(&task.service).context("the service is not in the spec")?;
    let wanted = service.backup.as_ref().context("no backups of the service are declared")?;
    let (of, names) = (task.spec.clone(), wanted.repositories.clone());
    let repository = tokio::task::spawn_blocking(move || open(&of, &names)).await??;
    let repository = Arc::new(repository);
    let sandbox = Sandbox::make(&task.dir, service)?;
    let mut record = ProofRecord {
        backup: task.backup.clone(),
        why: task.why,
        node: task.node.clone(),
        began_s: clock::unix_s(),
        ended_s: 0,
        to_s: None,
        to_lsn: None,
        passed: Vec::new(),
        skipped: Vec::new(),
        failed: None,
        damaged: false,
        rto_ms: None,
        rpo_ms: None,
        bytes: 0,
    };
    let proof = Proof { task, service, wanted, repository: repository.clone(), sandbox };
    let ended = proof.attempt(&mut record).await;
    let dir = task.dir.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || sandbox::clear(&dir)).await? {
        // The agent does it.
        tracing::warn!(error = format!("{error:#}"), "the sandbox is not removed");
    }
    match ended {
        Ok(()) => {}
        Err(End::Failed(why)) => record.failed = Some(why),
        Err(End::Damaged(why)) => (record.failed, record.damaged) = (Some(why), true),
        Err(End::NotDone(error)) => return Err(error),
    }
    record.ended_s = clock::unix_s();
    let (name, put) = (task.service.clone(), record.clone());
    tokio::task::spawn_blocking(move || keep(&repository, &name, &put)).await??;
    Ok(record)
}

/// Puts what came out beside the backup, if that is still there.
fn keep(repository: &Repository, service: &str, record: &ProofRecord) -> anyhow::Result<()> {
    let listed = list(repository, service).map_err(told)?;
    let is_there = listed.backups.iter().any(|it| it.id == record.backup)
        || listed.unreadable.iter().any(|(id, _)| *id == record.backup);
    anyhow::ensure!(is_there, "E286 backup {} was dropped meanwhile", record.backup);
    record.put(repository, service).map_err(told)?;
    if repository.absent().is_empty()
        && let Err(error) = drop_proofs(repository, service, &listed)
    {
        tracing::warn!(%error, "old proofs stay");
    }
    Ok(())
}

struct Proof<'t> {
    task: &'t Task,
    service: &'t PostgresSpec,
    wanted: &'t BackupSpec,
    repository: Arc<Repository>,
    sandbox: Sandbox,
}

impl Proof<'_> {
    async fn attempt(&self, record: &mut ProofRecord) -> Result<(), End> {
        step("look for its log");
        let checks = self.checks()?;
        let (backup, course) = self.plan().await?;
        record.to_s = Some(course.witness.at_ms / 1_000);
        record.to_lsn = Some(course.witness.lsn);
        record.rpo_ms = course.witness.rpo_ms;
        let mut passed = |what: String| record.passed.push(what);
        if self.repository.places().count() > 1 {
            step("read every copy");
            passed(self.verify(&backup).await?);
        }

        step("restore");
        let begun = Instant::now();
        let log = course.end.0.saturating_sub(backup.about.start.0);
        self.sandbox.room(backup.bytes + log)?;
        let budget = Arc::new(Budget::begin());
        let tli = self.restore(&backup, &course, budget.clone()).await?;
        step("recover");
        let config = self.sandbox.on(tli);
        let server = self.unless_stopped(Aside::recover(&config, &Target::End)).await?;
        self.unless_stopped(server.write()).await?;
        let took = begun.elapsed().saturating_sub(budget.slept());
        record.rto_ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        record.bytes = backup.bytes;
        passed("it starts and takes writes".to_string());

        let recovered = server.recovered_to().map_err(End::of_server)?;
        if let Some(wrong) = course.witness.judge(recovered) {
            return Err(End::Failed(wrong));
        }
        passed(format!("the newest commit is there: {}", course.witness.word()));

        step(AMCHECK);
        if self.unless_stopped(server.offers(AMCHECK)).await? {
            for database in self.unless_stopped(server.databases()).await? {
                let wrong = self.unless_stopped(server.amcheck(&database)).await?;
                if !wrong.is_empty() {
                    let wrong = wrong.join("; ");
                    return Err(End::Failed(format!("amcheck of database {database}: {wrong}")));
                }
                passed(format!("amcheck of database {database}"));
            }
        } else {
            let package = "amcheck: PostgreSQL's contrib package is not installed on this node";
            record.skipped.push(package.to_string());
        }
        if let Some(checks) = checks {
            step("checks");
            let (database, owner) = (&self.service.database, &self.service.owner);
            let wrong = self.unless_stopped(server.check(database, owner, &checks)).await?;
            if !wrong.is_empty() {
                return Err(End::Failed(of_checks(&wrong)));
            }
            record.passed.push(format!("checks of {}", self.checks_file().unwrap_or_default()));
        }
        step("page checksums");
        if self.unless_stopped(server.has_checksums()).await? {
            let wrong = self.unless_stopped(server.check_pages()).await?;
            if !wrong.is_empty() {
                return Err(End::Failed(format!("page checksums: {}", wrong.join("; "))));
            }
            record.passed.push("page checksums".to_string());
        } else {
            record.skipped.push("page checksums: the database has none".to_string());
        }
        Ok(())
    }

    fn checks_file(&self) -> Option<&str> {
        self.wanted.prove.checks.as_deref()
    }

    /// The checks of a person, which are read before anything is done.
    fn checks(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = self.checks_file() else { return Ok(None) };
        let read = || -> std::io::Result<String> {
            if std::fs::metadata(path)?.len() > CHECKS_BYTES_MAX {
                return Err(std::io::Error::other("it is larger than 1 MB"));
            }
            std::fs::read_to_string(path)
        };
        let read = read().map_err(|error| {
            anyhow!("E292 cannot read {path}: {error}; next step: mend what prove.checks names")
        });
        read.map(Some)
    }

    async fn plan(&self) -> Result<(Info, Course), End> {
        let (repository, service) = (self.repository.clone(), self.task.service.clone());
        let (id, random) = (self.task.backup.clone(), self.task.random);
        let (keep, copies) = (self.wanted.keep.clone(), self.wanted.copies as usize);
        let plan = move || {
            let of = |error| End::of_repository(error, &repository);
            let listed = list(&repository, &service).map_err(of)?;
            if let Some((_, error)) =
                listed.unreadable.into_iter().find(|(unreadable, _)| *unreadable == id)
            {
                return Err(of(error));
            }
            let none = || anyhow!("E286 no backup {id} of {service}");
            let backup = listed.backups.iter().find(|it| it.id == id).ok_or_else(none)?;
            let proofs = read_proofs(&repository, &service, &Default::default()).map_err(of)?;
            let (backups, now_s) = (&listed.backups, clock::unix_s());
            let lines = lines(&repository, &service, backups).map_err(of)?;
            let (proofs, lines) = (&proofs, &lines);
            let known = Known { backups, proofs, lines, keep: &keep, copies, now_s };
            let course = witness::choose(&repository, &service, backup, &known, random)?;
            Ok((backup.clone(), course))
        };
        tokio::task::spawn_blocking(plan).await?
    }

    /// Reads each object of it in all places: what the restore reads is one copy of each.
    async fn verify(&self, backup: &Info) -> Result<String, End> {
        let (repository, service) = (self.repository.clone(), self.task.service.clone());
        let (id, stop) = (backup.id.clone(), self.task.stop.clone());
        let verify = move || {
            let budget = Budget::begin();
            let progress = |read: Progress| budget.keep(read.done);
            let watch = Watch { progress: &progress, stop: &stop };
            let verified = verify(&repository, &service, &id, THREADS, &watch);
            let verified = verified.map_err(|error| End::of_repository(error, &repository))?;
            End::of_copies(&verified, &repository)
        };
        tokio::task::spawn_blocking(verify).await?
    }

    async fn restore(
        &self,
        backup: &Info,
        course: &Course,
        budget: Arc<Budget>,
    ) -> Result<Tli, End> {
        let (repository, service) = (self.repository.clone(), self.task.service.clone());
        let (id, stop) = (backup.id.clone(), self.task.stop.clone());
        let (line, end): (_, Lsn) = (course.line.clone(), course.end);
        let server = self.sandbox.server.clone();
        let work = move || {
            let last_told = AtomicU64::new(0);
            let progress = |progress: Progress| {
                tell(&last_told, progress);
                budget.keep(progress.done);
            };
            let how = Restore {
                over: false,
                owner: server.run_as,
                threads: THREADS,
                files: &[("recovery.signal", b"")],
                log: Some((&line, end)),
            };
            let watch = Watch { progress: &progress, stop: &stop };
            let restored = restore(&repository, &service, &id, &server.data_dir, &how, &watch);
            restored.map_err(|error| End::of_repository(error, &repository)).map(|it| it.tli)
        };
        tokio::task::spawn_blocking(work).await?
    }

    /// What the server is asked, for as long as the agent wants to know.
    async fn unless_stopped<T>(
        &self,
        asked: impl Future<Output = Result<T, PgError>>,
    ) -> Result<T, End> {
        let stopped = async {
            while !self.task.stop.load(Ordering::Relaxed) {
                tokio::time::sleep(STOPPED_LOOK).await;
            }
        };
        tokio::select! {
            done = asked => done.map_err(End::of_server),
            () = stopped => Err(End::NotDone(anyhow!("it was stopped"))),
        }
    }
}

/// What is wrong by the checks of a person.
fn of_checks(wrong: &[Wrong]) -> String {
    let one = |it: &Wrong| {
        let rows = match it.rows {
            0 => String::new(),
            1 => "1 row: ".to_string(),
            rows => format!("{rows} rows: "),
        };
        format!("check {}: {rows}{}", it.statement, it.said.join("; "))
    };
    wrong.iter().map(one).collect::<Vec<_>>().join(". ")
}

fn step(what: &str) {
    helper::say(&Said::Step { what: what.to_string() });
}

fn tell(last_told: &AtomicU64, progress: Progress) {
    let now = clock::now().0;
    let before = last_told.load(Ordering::Relaxed);
    let swapped = (Ordering::Relaxed, Ordering::Relaxed);
    if now >= before + TELL_EVERY_MS
        && last_told.compare_exchange(before, now, swapped.0, swapped.1).is_ok()
    {
        helper::say(&Said::Progress { done_bytes: progress.done, of_bytes: progress.total });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::spec::Location;
    use everhold_repository::backup::Harm;
    use everhold_repository::{Password, PlaceConfig};
    use std::fs;

    #[test]
    fn nothing_is_damaged_that_a_place_which_is_away_may_have() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| PlaceConfig {
            name: name.to_string(),
            location: Location::Directory(dir.path().join(name).display().to_string()),
            region: None,
            endpoint: None,
            credentials_file: None,
        };
        let password = || Password::new("p");
        let mut repository = Repository::create(&at("near"), &password(), "shop").expect("made");
        repository.extend(&at("far"), &password()).expect("made");
        let both = [(at("near"), password()), (at("far"), password())];
        let repository = Repository::open(&both, "shop").expect("opened");
        let harm = |copies| Harm { object: "o".to_string(), places: vec![], copies };
        let found = |harmed: Vec<Harm>, unreachable: &[&str]| Verified {
            objects: 3,
            copies: 0,
            harmed,
            unreachable: unreachable.iter().map(|it| it.to_string()).collect(),
        };
        let (far, away) = (dir.path().join("far"), dir.path().join("away"));
        // Healed or lost, what was said of a place, whether it is there afterwards.
        #[rustfmt::skip]
        let cases = [
            (vec![],        vec![],               true,  "3 objects in every place"),
            (vec![harm(2)], vec![],               true,  "3 objects in every place, 1 of them healed"),
            (vec![harm(0)], vec![],               true,  "damaged"),
            (vec![harm(0)], vec![],               false, "not done E280"),
            (vec![],        vec!["far: silence"], true,  "not done E280"),
            (vec![harm(1)], vec!["far: silence"], true,  "not done E280"),
            // It answers again, and nobody looked there.
            (vec![harm(0)], vec!["far: silence"], true,  "not done E280"),
        ];
        for (harmed, unreachable, there, expected) in cases {
            if !there {
                fs::rename(&far, &away).expect("away");
            }
            let end = match End::of_copies(&found(harmed, &unreachable), &repository) {
                Ok(well) => well,
                Err(End::Damaged(_)) => "damaged".to_string(),
                Err(End::Failed(_)) => "failed".to_string(),
                Err(End::NotDone(error)) => format!("not done {}", &error.to_string()[..4]),
            };
            assert_eq!(end, expected);
            if !there {
                fs::rename(&away, &far).expect("back");
            }
        }
    }
}
