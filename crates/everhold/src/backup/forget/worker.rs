//! The role `forget`: says which backups and which log may go and why the rest stays, and removes
//! them when it is told to. It may be killed at any moment.

use super::{Database, Done, Failed, Kept, LEVELS, Order, Plan, Said};
use crate::backup::prove::Budget;
use crate::backup::{code, open, told};
use crate::code::Code;
use crate::spec::record;
use crate::{clock, helper};
use anyhow::{Context, bail};
use everhold_core::backup::{Backup, keep};
use everhold_core::ids::Lsn;
use everhold_core::spec::{BackupSpec, Spec};
use everhold_repository::backup::{
    Info, Known, Leveled, Lines, Listed, Progress, Proofs, Prune, Watch, judged, level, lines,
    list_surely, proof_of, prune, read_proofs,
};
use everhold_repository::{Log, Repository};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A spec of dozens of services is a hundredth of it.
const ORDER_BYTES_MAX: u64 = 4 << 20;
const TELL_EVERY_MS: u64 = 250;
/// It says where it is at least so often.
const BEAT: Duration = Duration::from_secs(10);
/// Without a step in this time it falls silent: a place hangs. One listing of a million objects, or
/// reading all manifests, takes minutes.
const STUCK_MS: u64 = 30 * 60_000;
/// It makes places level for so long in one run: other services get their turn. Who asks is heard at
/// once.
const LEVEL_FOR: Duration = Duration::from_secs(600);

/// When it last got on, by [`clock::now`].
static STEP: AtomicU64 = AtomicU64::new(0);

/// Does what stdin orders and says so; what failed is said too, and is no error of this process.
pub fn run() -> anyhow::Result<()> {
    helper::stand_back();
    step();
    std::thread::spawn(beat);
    let failed =
        |it: Failed| Said::Failed { why: format!("{:#}", it.error), operator: it.operator };
    let said = forget().map_or_else(failed, Said::Done);
    helper::say(&said);
    Ok(())
}

fn step() {
    STEP.store(clock::now().0, Ordering::Relaxed);
}

/// Lets the caller know that it gets on, also where there is nothing to count.
fn beat() {
    while clock::now().0 < STEP.load(Ordering::Relaxed) + STUCK_MS {
        helper::say(&Said::Here);
        std::thread::sleep(BEAT);
    }
}

fn line() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().take(ORDER_BYTES_MAX).read_line(&mut text)?;
    if text.is_empty() {
        bail!("nobody waits for it any more");
    }
    Ok(text)
}

fn forget() -> Result<Done, Failed> {
    let order: Order = serde_json::from_str(&line()?).context("read the order")?;
    let spec = record::from_json(&order.spec)?;
    let wanted = declared(&spec, &order.service)?;
    let repository = open(&spec, &wanted.repositories)?;
    // What a place has that is away, or goes away meanwhile, is not known: before anything is
    // judged, and after all was read.
    repository.all_there().map_err(told)?;
    let listed = list_surely(&repository, &order.service, &mut Known::default()).map_err(told)?;
    legible(&listed, &order)?;
    step();
    let infos = &listed.backups;
    let proofs = read_proofs(&repository, &order.service, &Proofs::new()).map_err(told)?;
    let lines = lines(&repository, &order.service, infos).map_err(told)?;
    repository.all_there().map_err(told)?;
    let judged = judge(&listed, (&proofs, &lines), wanted, &order.drop)?;
    step();
    helper::say(&Said::Planned(plan(&repository, &order, &judged)?));
    if order.dry_run {
        return Ok(Done::default());
    }
    // The caller writes down what is about to happen, and then says so.
    line()?;
    let enough = Arc::new(AtomicBool::new(false));
    let told = enough.clone();
    std::thread::spawn(move || {
        while line().is_ok() {
            told.store(true, Ordering::Relaxed);
        }
        std::process::exit(1);
    });
    step();
    let mut done = remove(&repository, &order, &judged)?;
    // What was forgotten is told whatever comes of this.
    let leveled = make_level(&repository, &order.service, &enough);
    let leveled = leveled.unwrap_or_else(|error| Leveled {
        failed: Some(format!("{error:#}")),
        ..Leveled::default()
    });
    let Leveled { objects, left, lost, failed } = leveled;
    // What fails is tried again later.
    let left = if failed.is_none() { left } else { 0 };
    (done.copied, done.left, done.unlevel) = (objects, left, failed);
    if lost > 0 {
        tracing::warn!(service = order.service, lost, "objects that no repository has whole");
    }
    Ok(done)
}

/// What a backup needs that can't be read is not known: nothing goes before it is given up by name.
fn legible(listed: &Listed, order: &Order) -> Result<(), Failed> {
    let Some((id, error)) = listed.unreadable.iter().find(|(id, _)| !order.drop.contains(id))
    else {
        return Ok(());
    };
    // Anything else is the place's, and passes.
    let damaged = code(error) == Code::RepositoryDamaged;
    let error = anyhow::anyhow!(
        "{} backup {id} can't be read, and what it needs is not known: {error}; next step: {}",
        code(error).as_str(),
        match damaged {
            true => format!(
                "an older copy of its repository, or `everhold backup prune {} --drop {id}`, which \
                 gives it up",
                order.service
            ),
            false => code(error).next().to_string(),
        }
    );
    Err(Failed { error, operator: damaged })
}

/// Copies what some place lacks: one that is new, or was lost and made anew, has the older backups
/// from here.
fn make_level(
    repository: &Repository,
    service: &str,
    enough: &AtomicBool,
) -> anyhow::Result<Leveled> {
    let (budget, until) = (Budget::begin(), Instant::now() + LEVEL_FOR);
    watched(LEVELS, |watch| {
        let progress = |progress: Progress| {
            enough.fetch_or(Instant::now() >= until, Ordering::Relaxed);
            budget.keep(progress.done);
            (watch.progress)(progress);
        };
        level(repository, service, &Watch { progress: &progress, stop: enough })
    })
}

fn declared<'s>(spec: &'s Spec, service: &str) -> anyhow::Result<&'s BackupSpec> {
    let service = spec.postgres(service).context("the service is not in the spec")?;
    service.backup.as_ref().context("no backups of the service are declared")
}

/// What becomes of the backups and the log of one database.
#[derive(Debug)]
struct Judged {
    sysid: u64,
    segment_bytes: u64,
    backups: Vec<Kept>,
    log: keep::Log,
}

/// A service that was made anew has had several databases; each is judged by itself.
///
/// By two standards: with as many copies as are wanted, and with one. Whatever lacks copies is made
/// level, and must be there for it.
fn judge(
    listed: &Listed,
    (proofs, lines): (&Proofs, &Lines),
    spec: &BackupSpec,
    drop: &[String],
) -> anyhow::Result<Vec<Judged>> {
    let infos = &listed.backups;
    let is_there = |id: &&String| {
        let mut unreadable = listed.unreadable.iter().map(|(id, _)| id);
        infos.iter().any(|info| info.id == **id) || unreadable.any(|it| it == *id)
    };
    if let Some(id) = drop.iter().find(|id| !is_there(id)) {
        bail!(
            "E286 there is no backup {id}; next step: `everhold backup list` shows what there is"
        );
    }
    let now_s = clock::unix_s();
    let newest = infos.iter().max_by_key(|it| it.about.ended_s).map(|it| it.about.sysid);
    let mut databases: BTreeMap<u64, Vec<&Info>> = BTreeMap::new();
    for info in infos {
        databases.entry(info.about.sysid).or_default().push(info);
    }
    let seen =
        |it: &Info, copies: usize| it.backup(copies, judged(proof_of(proofs, &it.id)), lines);
    let one = |(sysid, infos): (u64, Vec<&Info>)| {
        let stay = || infos.iter().filter(|info| !drop.contains(&info.id));
        let by = |copies: usize| -> Vec<Backup> { stay().map(|it| seen(it, copies)).collect() };
        let standards = [by(spec.copies as usize), by(1)];
        let kept = keep::judge_by(&standards, &spec.keep, now_s);
        let log = match stay().count() == 0 && newest != Some(sysid) {
            // The last backup of an old database was named: its log is worth nothing without one.
            true => keep::Log { from: Some(Lsn(u64::MAX)), pieces: Vec::new() },
            false => keep::log(&standards[0], &kept),
        };
        // Never the last one that is left, however few copies there are of it.
        let last_of = |is: fn(&Backup) -> bool| {
            infos.iter().any(|it| is(&seen(it, 1))) && !standards[1].iter().any(is)
        };
        if newest == Some(sysid) && (last_of(|it| it.good) || last_of(Backup::is_sound)) {
            bail!(
                "E290 nothing would be left to restore from; next step: make a new backup with \
                 `everhold backup now`, then name this one again"
            );
        }
        let backups = infos.iter().map(|info| Kept {
            id: info.id.clone(),
            kind: info.kind,
            ended_s: info.about.ended_s,
            why: kept.get(&info.id).cloned().unwrap_or_default(),
        });
        // Restored by whole segments: the largest that any of them had.
        let segment_bytes = infos.iter().map(|info| info.about.segment_bytes).max().unwrap_or(0);
        Ok(Judged { sysid, segment_bytes, backups: backups.collect(), log })
    };
    databases.into_iter().map(one).collect()
}

impl Judged {
    fn gone(&self) -> impl Iterator<Item = &Kept> {
        self.backups.iter().filter(|it| it.why.is_empty())
    }
}

/// What goes: by the rules and by name, of which some can't be read.
fn ids(judged: &[Judged], order: &Order) -> Vec<String> {
    let gone = judged.iter().flat_map(Judged::gone).map(|it| &it.id);
    let ids: BTreeSet<&String> = gone.chain(&order.drop).collect();
    ids.into_iter().cloned().collect()
}

fn plan(repository: &Repository, order: &Order, judged: &[Judged]) -> anyhow::Result<Plan> {
    let mut databases = Vec::new();
    for Judged { sysid, segment_bytes, backups, log } in judged {
        let archive = Log::new(repository, &order.service, *sysid);
        let (pieces, bytes) = archive.unneeded(log, *segment_bytes).map_err(told)?;
        databases.push(Database {
            sysid: *sysid,
            backups: backups.clone(),
            log_from: log.from.filter(|from| from.0 < u64::MAX),
            log_pieces: pieces,
            log_bytes: bytes,
        });
    }
    let gone = ids(judged, order);
    let mut plan = Plan { databases, gone, packs: None, bytes: None, waiting_for: Vec::new() };
    if order.dry_run {
        // Every manifest is read for it, which the run itself does anyway.
        let drop = ids(judged, order);
        let would = Prune { dry_run: true, ..asked(order, &drop) };
        let would = prune(repository, &would, &quiet()).map_err(told)?;
        (plan.packs, plan.bytes) = (Some(would.packs), Some(would.bytes));
        plan.waiting_for = would.waiting_for;
    }
    Ok(plan)
}

fn asked<'a>(order: &'a Order, drop: &'a [String]) -> Prune<'a> {
    let (service, dead) = (&order.service, &order.dead);
    Prune { service, drop, dead, dry_run: false, now_s: clock::unix_s() }
}

fn quiet() -> Watch<'static> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    Watch { progress: &|_: Progress| {}, stop: &NEVER }
}

/// Backups first: a backup without its log would look restorable.
fn remove(repository: &Repository, order: &Order, judged: &[Judged]) -> anyhow::Result<Done> {
    let drop = ids(judged, order);
    let pruned = watched("packs", |watch| prune(repository, &asked(order, &drop), watch))?;
    let mut done = Done {
        dropped: pruned.dropped,
        packs: pruned.packs,
        bytes: pruned.bytes,
        log_pieces: 0,
        copied: 0,
        left: 0,
        unlevel: None,
        waiting_for: pruned.waiting_for,
    };
    // One under way may begin with log that nothing needs yet.
    for Judged { sysid, segment_bytes, log, .. } in judged {
        if !done.waiting_for.is_empty() {
            break;
        }
        let archive = Log::new(repository, &order.service, *sysid);
        let dropped = watched("log", |watch| archive.drop_before(log, *segment_bytes, watch))?;
        done.log_pieces += dropped.pieces;
        done.waiting_for = dropped.waiting_for;
    }
    Ok(done)
}

/// Says how far it is, now and then.
fn watched<T>(
    what: &str,
    run: impl FnOnce(&Watch<'_>) -> Result<T, everhold_repository::RepositoryError>,
) -> anyhow::Result<T> {
    let last = AtomicU64::new(0);
    step();
    let progress = |Progress { done, total }: Progress| {
        step();
        let (now, before) = (clock::now().0, last.load(Ordering::Relaxed));
        let swap = || last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed);
        if now >= before + TELL_EVERY_MS && swap().is_ok() {
            helper::say(&Said::Progress { what: what.to_string(), done, of: total });
        }
    };
    run(&Watch { progress: &progress, stop: quiet().stop }).map_err(told)
}
