//! The role `forget`: says which backups and which log may go and why the rest stays, and removes
//! them when it is told to. It may be killed at any moment.

use super::{Database, Done, Kept, Order, Plan, Said};
use crate::backup::{list, open, told};
use crate::clock;
use crate::spec::record;
use anyhow::{Context, bail};
use everhold_core::backup::keep;
use everhold_core::ids::Lsn;
use everhold_core::spec::{BackupSpec, Spec};
use everhold_repository::backup::{
    Info, Progress, Proofs, Prune, Watch, judged, proof_of, prune, read_proofs,
};
use everhold_repository::{Log, Repository};
use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A spec of dozens of services is a hundredth of it.
const ORDER_BYTES_MAX: u64 = 4 << 20;
const TELL_EVERY_MS: u64 = 250;
/// Behind everything else that wants the processor.
const NICE: i32 = 19;

/// Does what stdin orders and says so; what failed is said too, and is no error of this process.
pub fn run() -> anyhow::Result<()> {
    let _ = rustix::process::nice(NICE);
    let said = forget().map_or_else(|error| Said::Failed { why: format!("{error:#}") }, Said::Done);
    say(&said);
    Ok(())
}

fn say(said: &Said) {
    let mut out = std::io::stdout().lock();
    // Nobody listens to one whose caller is gone.
    let _ = serde_json::to_writer(&mut out, said).map(|()| out.write_all(b"\n"));
    let _ = out.flush();
}

fn line() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().take(ORDER_BYTES_MAX).read_line(&mut text)?;
    if text.is_empty() {
        bail!("nobody waits for it any more");
    }
    Ok(text)
}

fn forget() -> anyhow::Result<Done> {
    let order: Order = serde_json::from_str(&line()?).context("read the order")?;
    let spec = record::from_json(&order.spec)?;
    let wanted = declared(&spec, &order.service)?;
    let repository = open(&spec, &wanted.repositories)?;
    let infos = list(&repository, &order.service)?;
    let proofs = read_proofs(&repository, &order.service, &Proofs::new()).map_err(told)?;
    let judged = judge(&infos, &proofs, wanted, &order.drop)?;
    say(&Said::Planned(plan(&repository, &order, &judged)?));
    if order.dry_run {
        return Ok(Done::default());
    }
    // The caller writes down what is about to happen, and then says so.
    line()?;
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(1);
    });
    remove(&repository, &order, &judged)
}

fn declared<'s>(spec: &'s Spec, service: &str) -> anyhow::Result<&'s BackupSpec> {
    let service = spec.postgres(service).context("the service is not in the spec")?;
    service.backup.as_ref().context("no backups of the service are declared")
}

/// What becomes of the backups and the log of one database.
struct Judged {
    sysid: u64,
    segment_bytes: u64,
    backups: Vec<Kept>,
    log: keep::Log,
}

/// A service that was made anew has had several databases; each is judged by itself.
fn judge(
    infos: &[Info],
    proofs: &Proofs,
    spec: &BackupSpec,
    drop: &[String],
) -> anyhow::Result<Vec<Judged>> {
    if let Some(id) = drop.iter().find(|id| infos.iter().all(|info| info.id != **id)) {
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
    let good = |it: &&Info| it.copies >= spec.copies as usize;
    let one = |(sysid, infos): (u64, Vec<&Info>)| {
        let named = |info: &Info| drop.contains(&info.id);
        let stay = infos.iter().filter(|info| !named(info));
        let copies = spec.copies as usize;
        let stay = stay.map(|it| it.backup(copies, judged(proof_of(proofs, &it.id))));
        let stay: Vec<_> = stay.collect();
        let kept = keep::judge(&stay, &spec.keep, now_s);
        let log = match stay.is_empty() {
            // The last backup of an old database was named: its log is worth nothing without one.
            true => keep::Log { from: Some(Lsn(u64::MAX)), pieces: Vec::new() },
            false => keep::log(&stay, &kept),
        };
        // Never the last one that is left.
        if newest == Some(sysid) && infos.iter().any(good) && !stay.iter().any(|it| it.good) {
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

fn ids(judged: &[Judged]) -> Vec<String> {
    judged.iter().flat_map(Judged::gone).map(|it| it.id.clone()).collect()
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
    let mut plan = Plan { databases, packs: None, bytes: None, waiting_for: Vec::new() };
    if order.dry_run {
        // Every manifest is read for it, which the run itself does anyway.
        let drop = ids(judged);
        let would = Prune { dry_run: true, ..asked(order, &drop) };
        let would = prune(repository, &would, &quiet()).map_err(told)?;
        (plan.packs, plan.bytes) = (Some(would.packs), Some(would.bytes));
        plan.waiting_for = would.waiting_for;
    }
    Ok(plan)
}

fn asked<'a>(order: &'a Order, drop: &'a [String]) -> Prune<'a> {
    Prune { service: &order.service, drop, dead: &[], dry_run: false, now_s: clock::unix_s() }
}

fn quiet() -> Watch<'static> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    Watch { progress: &|_: Progress| {}, stop: &NEVER }
}

/// Backups first: a backup without its log would look restorable.
fn remove(repository: &Repository, order: &Order, judged: &[Judged]) -> anyhow::Result<Done> {
    let drop = ids(judged);
    let pruned = watched("packs", |watch| prune(repository, &asked(order, &drop), watch))?;
    let mut done = Done {
        dropped: pruned.dropped,
        packs: pruned.packs,
        bytes: pruned.bytes,
        log_pieces: 0,
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
    let progress = |Progress { done, total }: Progress| {
        let (now, before) = (clock::now().0, last.load(Ordering::Relaxed));
        let swap = || last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed);
        if now >= before + TELL_EVERY_MS && swap().is_ok() {
            say(&Said::Progress { what: what.to_string(), done, of: total });
        }
    };
    run(&Watch { progress: &progress, stop: quiet().stop }).map_err(told)
}
