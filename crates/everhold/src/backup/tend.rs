//! Backups as the coordinator has them made, kept and forgotten; `core/src/backup` decides.

use super::desk::Making;
use super::proving::{self, Held};
use super::shown::{Summary, makings};
use super::{MENDED, held};
use crate::agent::Ask;
use crate::cluster::{Cluster, Reports, StoreWord};
use crate::{clock, nodes};
use anyhow::bail;
use everhold_core::backup::schedule::{self, Failed, Next, Place};
use everhold_core::ids::Lsn;
use everhold_core::spec::{BackupSpec, Spec};
use everhold_repository::backup;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// What the repositories hold is read again after this, and when a backup has ended.
const READ_EVERY: Duration = Duration::from_secs(600);
/// After a try that failed.
const READ_AGAIN: Duration = Duration::from_secs(30);
/// What a place had that is away counts for so long: it mostly comes back, and no backup is made in a
/// hurry for one that only can't be seen.
const AWAY: Duration = Duration::from_secs(3_600);

/// What is known of a service's backups.
#[derive(Default)]
struct Known {
    /// `None`: not read yet. What is due is not known then.
    held: Option<Held>,
    /// When all places were there.
    whole: Option<Instant>,
    listed: backup::Known,
    read: Option<Instant>,
    /// The end of a backup that the list knows of.
    of: Option<u64>,
    said: Option<String>,
    told: Option<Summary>,
}

impl Known {
    /// Takes in what was read.
    fn learn(&mut self, held: Held, all_there: bool) -> &Held {
        if all_there {
            self.whole = Some(Instant::now());
        }
        let lately = self.whole.is_some_and(|at| at.elapsed() < AWAY);
        let held = match self.held.take().filter(|_| !all_there && lately) {
            Some(before) => held.beside(before),
            None => held,
        };
        self.held.insert(held)
    }
}

/// Tends the backups of every service for as long as this node coordinates.
pub async fn tend(cluster: &Cluster) {
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    loop {
        let spec = cluster.spec();
        for (name, postgres) in spec.databases() {
            let Some(backup) = &postgres.backup else { continue };
            let known = known.entry(name.clone()).or_default();
            match one(cluster, &spec, name, backup, known).await {
                Ok(()) => known.said = None,
                Err(error) => {
                    let text = format!("{error:#}");
                    if known.said.as_ref() != Some(&text) {
                        tracing::warn!(service = name, error = text, "backups wait");
                        known.said = Some(text);
                    }
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn one(
    cluster: &Cluster,
    spec: &Spec,
    service: &str,
    backup: &BackupSpec,
    known: &mut Known,
) -> anyhow::Result<()> {
    let (reports, word, now) = (cluster.reports(), cluster.word(), clock::now().0);
    let makings: Vec<&Making> = makings(&reports, service).map(|(_, making)| making).collect();
    let ended = |it: &&Making| {
        let at = [it.ended.as_ref().map(|it| it.at_s), it.proved.as_ref().map(|it| it.at_s)];
        at.into_iter().flatten().max()
    };
    let ended = makings.iter().filter_map(ended).max();
    let well = known.told.as_ref().is_some_and(|told| told.error.is_none());
    let every = if well { READ_EVERY } else { READ_AGAIN };
    let stale = known.read.is_none_or(|at| at.elapsed() >= every) || known.of != ended;
    if stale {
        // Also a try that fails is not repeated at once.
        (known.read, known.of) = (Some(Instant::now()), ended);
        let (spec, name) = (spec.clone(), service.to_string());
        let names = backup.repositories.clone();
        let before = known.held.as_ref().map(|it| it.proofs.clone()).unwrap_or_default();
        let (opened, mut listed) = (cluster.opened.clone(), std::mem::take(&mut known.listed));
        let read = move || -> anyhow::Result<_> {
            let repository = opened.open(&spec, &names)?;
            let held = held(&repository, &name, &mut listed, &before)?;
            Ok((held, listed, repository.absent().is_empty()))
        };
        let read = tokio::task::spawn_blocking(read).await?;
        let summary = match &read {
            Ok((held, listed, all_there)) => {
                known.listed = listed.clone();
                let held = known.learn(held.clone(), *all_there);
                Summary::new(held, backup, clock::unix_s())
            }
            Err(error) => Summary { error: Some(format!("{error:#}")), ..Summary::default() },
        };
        if known.told.as_ref() != Some(&summary) {
            cluster.put_backups(service, &summary).await?;
            known.told = Some(summary);
        }
        read?;
    }
    let Some(held) = &known.held else { return Ok(()) };
    let backups = &held.backups(backup.copies as usize);
    let running = makings.iter().any(|it| it.running.is_some());
    let places = places(service, spec, &reports, &word, now);
    let failed = failed(&makings);
    let (hole, now_s) = (hole(&reports, service), clock::unix_s());
    let next = schedule::next(&backup.plan, backups, hole, running, failed, &places, now_s);
    match &next {
        Next::Rest { .. } | Next::Wait { .. } => {
            let (of, with, now_s) = ((held, &**backups), (&*makings, &places), clock::unix_s());
            if proving::tend(cluster, service, backup, of, with, now_s).await? {
                tokio::time::sleep(LOOK).await;
            }
            if let (Next::Wait { .. }, Some(why)) = (&next, unsound(service, &reports, &places)) {
                bail!("E289 {why}; next step: {MENDED}");
            }
        }
        Next::Begin { kind, node } => {
            let who = "the schedule of backups".to_string();
            let ask = Ask::BackUp { service: service.to_string(), kind: *kind, who };
            cluster.ask(node, &ask).await?;
            // It shows in the node's next report.
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// The node that makes one of the service now.
pub fn making<'r>(reports: &'r Reports, service: &str) -> Option<&'r String> {
    makings(reports, service).find(|(_, it)| it.running.is_some()).map(|(node, _)| node)
}

/// Where the newest hole of the log ends, as the archiver of the newest leader tells.
fn hole(reports: &Reports, service: &str) -> Option<Lsn> {
    let words = reports.values().filter_map(|(report, _)| report.archives.get(service));
    words.max_by_key(|word| word.epoch).and_then(|word| word.gap).map(|(_, end)| end)
}

/// Failures since the last backup that was made.
fn failed(makings: &[&Making]) -> Failed {
    let ended = || makings.iter().filter_map(|it| it.ended.as_ref());
    let made = ended().filter(|it| it.result.is_ok()).map(|it| it.at_s).max();
    let since = ended().filter(|it| it.result.is_err() && Some(it.at_s) > made);
    let times = since.clone().map(|it| it.failures).sum();
    Failed { times, last_s: since.map(|it| it.at_s).max().unwrap_or(0) }
}

/// Who could make a backup now.
pub fn places(
    service: &str,
    spec: &Spec,
    reports: &Reports,
    word: &StoreWord,
    now_ms: u64,
) -> BTreeMap<String, Place> {
    let Some(declared) = spec.postgres(service) else { return BTreeMap::new() };
    let term = word.terms.get(service);
    let place = |node: &String| {
        let status = nodes::fresh(reports, node, now_ms)?.services.get(service)?;
        let leads = status.serving.is_some();
        let synchronous = term.is_some_and(|term| term.target.members.contains(&status.member));
        let busy = reports.get(node)?.0.backups.get(service).is_some_and(|it| it.proving.is_some());
        // What is bad there would be refused, page by page.
        let sound = status.bad_pages == 0;
        let able = (leads || status.streaming) && spec.duty(node).is_active() && !busy && sound;
        Some((node.clone(), Place { leads, synchronous, able }))
    };
    declared.nodes.iter().filter_map(place).collect()
}

/// Why nobody can make one, where that is since what is there would be refused.
pub fn unsound(
    service: &str,
    reports: &Reports,
    places: &BTreeMap<String, Place>,
) -> Option<String> {
    let bad = |node: &&String| {
        let (report, _) = reports.get(*node)?;
        Some(report.services.get(service)?.bad_pages > 0)
    };
    bad_everywhere(service, places.keys().filter(|it| bad(it) == Some(true)), places)
}

fn bad_everywhere<'n>(
    service: &str,
    bad: impl Iterator<Item = &'n String>,
    places: &BTreeMap<String, Place>,
) -> Option<String> {
    let bad: Vec<&str> = bad.map(String::as_str).collect();
    let none = !bad.is_empty() && !places.values().any(|it| it.able);
    none.then(|| {
        format!("no backup of {service} can be made: bad pages (E205) on {}", bad.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_repository::backup::Info;

    /// Backups as `ID:COPIES`.
    fn held(text: &str) -> Held {
        let info = |word: &str| {
            let (id, copies) = word.split_once(':').expect("a word");
            let copies = copies.parse().expect("a number");
            Info { id: id.to_string(), manifests: copies, copies, ..Info::default() }
        };
        Held { infos: text.split_whitespace().map(info).collect(), ..Held::default() }
    }

    #[test]
    fn what_a_place_had_counts_for_a_while_when_it_is_away() {
        let long_ago = Instant::now().checked_sub(AWAY).expect("up for an hour");
        #[rustfmt::skip]
        let cases = [
            // known,      all there,   read,          all there, what counts
            ("a:2 b:2",    None,        "a:1 b:1",     false,     "a:2 b:2"),
            ("a:1",        None,        "",            false,     "a:1"),
            ("b:2",        None,        "a:1 b:1 c:1", false,     "a:1 b:2 c:1"),
            // Back, or not for long enough.
            ("a:2 b:2",    None,        "a:1",         true,      "a:1"),
            ("a:2 b:2",    Some(long_ago), "a:1",      false,     "a:1"),
        ];
        for (before, whole, read, all_there, expected) in cases {
            let mut known = Known::default();
            known.learn(held(before), true);
            known.whole = whole.or(known.whole);
            let got = known.learn(held(read), all_there).infos.iter();
            let got: Vec<String> = got.map(|it| format!("{}:{}", it.id, it.copies)).collect();
            assert_eq!(got.join(" "), expected, "{before} {read}");
        }
        let mut new = Known::default();
        assert_eq!(new.learn(held("a:1"), false).infos[0].copies, 1, "nothing else is known");
    }

    #[test]
    fn bad_pages_everywhere_are_told() {
        #[rustfmt::skip]
        let cases = [
            // node:bad pages:able   expected
            ("a:0:yes b:1:no",       None),
            ("a:0:no b:0:no",        None),
            ("a:2:no",               Some("a")),
            ("a:2:no b:0:no c:1:no", Some("a, c")),
        ];
        for (text, expected) in cases {
            let (mut bad, mut places) = (Vec::new(), BTreeMap::new());
            for word in text.split_whitespace() {
                let [node, pages, able] = word.split(':').collect::<Vec<_>>()[..] else { panic!() };
                bad.extend((pages != "0").then(|| node.to_string()));
                let place = Place { leads: false, synchronous: false, able: able == "yes" };
                places.insert(node.to_string(), place);
            }
            let told = bad_everywhere("main", bad.iter(), &places);
            let on = told.as_deref().and_then(|it| it.rsplit_once(" on ")).map(|(_, on)| on);
            assert_eq!(on, expected, "{text}");
        }
    }
}
