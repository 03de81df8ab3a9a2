//! `[repository]` and `[service.NAME.backup]`: where backups go and what is asked of them.

use std::collections::BTreeMap;

use everhold_core::backup::schedule::Plan;
use everhold_core::backup::{Cron, Keep, keep};
use everhold_core::spec::{self, BackupSpec, CloneFrom, Location, ProveSpec, RepositorySpec};

use super::super::fault::{Code, Faults};
use super::super::raw::{Named, RawBackup, RawPostgres, RawRepository, Text};
use super::super::reader::Part;
use super::store::endpoint;
use super::{Known, absolute, bounded, count, name_fault, names, word};

pub(super) fn repositories(
    raw: &Named<RawRepository>,
    faults: &mut Faults<'_>,
) -> BTreeMap<String, RepositorySpec> {
    let Part::Is(list) = raw else { return BTreeMap::new() };
    count("repositories", &list.value, spec::REPOSITORIES_MAX, faults);
    let mut repositories: BTreeMap<String, RepositorySpec> = BTreeMap::new();
    for (name, raw) in &list.value {
        name_fault("repository", name, &[], faults);
        let Some(raw) = raw else { continue };
        let Some(repository) = repository(&name.value, raw, faults) else { continue };
        let same =
            |it: &&RepositorySpec| it.url == repository.url && it.endpoint == repository.endpoint;
        if repositories.values().any(|it| same(&it)) {
            let message = format!("another repository lies at {} too", repository.url);
            faults.add(Code::Repeated, name.at, message).next =
                "two copies in one place are one; give it a place of its own".into();
        }
        repositories.insert(name.value.clone(), repository);
    }
    repositories
}

fn repository(name: &str, raw: &RawRepository, faults: &mut Faults<'_>) -> Option<RepositorySpec> {
    let place = format!("[repository] {name}");
    let url = raw.url.is().and_then(|url| match url.value.parse::<Location>() {
        Ok(location) => Some(location),
        Err(why) => {
            let shown = url.value.escape_debug();
            let message = format!("`url` of {place} is \"{shown}\": {why}");
            faults.add(Code::BadAddress, url.at, message).next =
                "write \"file:///var/backups/everhold\" or \"s3://bucket/prefix\"".into();
            None
        }
    });
    let remote = matches!(url, Some(Location::S3 { .. }));
    let local = matches!(url, Some(Location::Directory(_)));
    let of_s3 = [("endpoint", &raw.endpoint), ("credentials_file", &raw.credentials_file)];
    for (key, text) in of_s3.into_iter().filter(|_| local) {
        if let Some(text) = text.is() {
            let message = format!("`{key}` of {place} has no meaning for a directory");
            faults.add(Code::NotApplicable, text.at, message);
        }
    }
    if let (true, Part::Absent, Some(url)) = (remote, &raw.credentials_file, raw.url.is()) {
        let message = format!("`credentials_file` is missing in {place}");
        faults.add(Code::Missing, url.at, message).next =
            "add credentials_file = \"/etc/everhold/s3\", a file on every machine".into();
    }
    if let Some(region) = raw.region.is() {
        name_fault("region", region, &[], faults);
    }
    let endpoint = raw.endpoint.is().filter(|_| remote);
    if let Some(url) = endpoint {
        self::endpoint(url, &place, "who stores what with it", faults);
    }
    Some(RepositorySpec {
        url: url?,
        region: raw.region.is().map(|it| it.value.clone()),
        endpoint: endpoint.map(|it| it.value.clone()),
        credentials_file: absolute("credentials_file", &place, &raw.credentials_file, faults),
        key_file: absolute("key_file", &place, &raw.key_file, faults)?,
    })
}

/// What a service asks for, if it asks.
pub(super) fn of_service(
    service: &str,
    raw: &RawPostgres,
    known: &Known,
    faults: &mut Faults<'_>,
) -> Option<BackupSpec> {
    let raw = raw.backup.is()?;
    let place = format!("[service.{service}.backup]");
    let repositories = match raw.repositories.is() {
        Some(list) => names("repository", &place, &list.value, known, faults),
        None => Vec::new(),
    };
    if raw.repositories.is().is_some_and(|list| list.value.is_empty()) {
        let message = format!("`repositories` in {place} is empty");
        faults.add(Code::Count, raw.at, message).next =
            "name a repository, or take the table out".into();
    }
    let sources = [("leader", CloneFrom::Leader), ("repository", CloneFrom::Repository)];
    Some(BackupSpec {
        clone_from: word("clone_from", &place, &raw.clone_from, &sources, faults)
            .unwrap_or_default(),
        copies: copies(&place, raw, &repositories, faults),
        repositories,
        plan: Plan {
            full: schedule("full", &place, &raw.full, spec::FULL, faults)?,
            incremental: schedule(
                "incremental",
                &place,
                &raw.incremental,
                spec::INCREMENTAL,
                faults,
            )?,
        },
        keep: kept(&place, raw, faults),
        prove: ProveSpec {
            schedule: schedule("prove.schedule", &place, &raw.prove_schedule, spec::PROVE, faults)?,
            checks: absolute("prove.checks", &place, &raw.prove_checks, faults),
        },
    })
}

/// All of them unless it is said: a copy that is missing is to be seen.
fn copies(place: &str, raw: &RawBackup, named: &[String], faults: &mut Faults<'_>) -> u32 {
    let all = u32::try_from(named.len()).unwrap_or(u32::MAX);
    let Some(written) = raw.copies.is() else { return all };
    match u32::try_from(written.value) {
        Ok(copies) if (1..=all.max(1)).contains(&copies) => return copies,
        Ok(_) | Err(_) => {}
    }
    let message = format!(
        "`copies` in {place} must be from 1 to the number of repositories ({all}), not {}",
        written.value
    );
    faults.add(Code::OutOfRange, written.at, message);
    all
}

fn schedule(
    key: &str,
    place: &str,
    raw: &Text,
    default: &str,
    faults: &mut Faults<'_>,
) -> Option<Cron> {
    let Some(written) = raw.is() else { return default.parse().ok() };
    match written.value.parse() {
        Ok(cron) => Some(cron),
        Err(why) => {
            faults.add(Code::BadSchedule, written.at, format!("`{key}` in {place}: {why}"));
            None
        }
    }
}

fn kept(place: &str, raw: &RawBackup, faults: &mut Faults<'_>) -> Keep {
    let mut kept = Keep::default();
    for (key, number) in &raw.keep {
        let field = match *key {
            "days" => &mut kept.days,
            "hourly" => &mut kept.hourly,
            "daily" => &mut kept.daily,
            "weekly" => &mut kept.weekly,
            "monthly" => &mut kept.monthly,
            _ => &mut kept.yearly,
        };
        let most = keep::COUNT_MAX;
        *field = bounded(&format!("keep.{key}"), place, number, 0..=most, *field, faults);
    }
    kept
}
