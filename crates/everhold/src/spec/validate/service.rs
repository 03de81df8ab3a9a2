//! A PostgreSQL service: who runs it, what confirms a commit, which settings it has.

use std::collections::{BTreeMap, BTreeSet};

use everhold_core::spec::parameters::{self, Refusal};
use everhold_core::spec::{
    self, DATABASE_NAMES_RESERVED, Durability, InstanceSpec, NodeSpec, OWNER_NAMES_RESERVED,
    POSTGRES_VERSIONS, PostgresSpec, Spread, SynchronousSpec, check_name_free,
};

use super::super::fault::{Code, Faults};
use super::super::raw::{Number, RawPostgres, Text};
use super::super::reader::{Part, Placed, nearest};
use super::{Known, bounded, duration, name_fault, names, word};

pub(super) fn postgres(
    name: &str,
    raw: &RawPostgres,
    nodes: &BTreeMap<String, NodeSpec>,
    known_nodes: &Known,
    faults: &mut Faults<'_>,
) -> PostgresSpec {
    let place = format!("[service.{name}]");
    let on = match &raw.nodes {
        Part::Is(list) => {
            if list.value.is_empty() {
                let fault =
                    faults.add(Code::Count, list.at, format!("`nodes` in {place} is empty"));
                fault.next = "name a node, or leave `nodes` out for all of them".into();
            }
            names("node", &place, &list.value, known_nodes, faults)
        }
        Part::Absent => known_nodes.iter().flatten().cloned().collect(),
        Part::Faulty => Vec::new(),
    };
    let synchronous = synchronous(&place, raw, &on, nodes, faults);
    PostgresSpec {
        version: version(&place, &raw.version, faults),
        database: own_name(
            "database",
            spec::DATABASE,
            &raw.database,
            &DATABASE_NAMES_RESERVED,
            faults,
        ),
        owner: own_name("owner", spec::OWNER, &raw.owner, &OWNER_NAMES_RESERVED, faults),
        synchronous,
        slow_after_ms: raw.switchover_when_slow.is().and_then(|raw| {
            let range = (spec::SLOW_AFTER_MS_MIN..=spec::SLOW_AFTER_MS_MAX, "5s to 1h");
            duration("switchover_when_slow", &place, raw, range, faults)
        }),
        scrub_every_ms: raw.scrub_every.is().and_then(|raw| {
            let range = (spec::SCRUB_EVERY_MS_MIN..=spec::SCRUB_EVERY_MS_MAX, "1s to 2160h");
            duration("scrub_every", &place, raw, range, faults)
        }),
        instances: instances(name, raw, &on, faults),
        parameters: settings(name, &raw.parameters, faults),
        backup: None,
        nodes: on,
    }
}

fn version(place: &str, raw: &Number, faults: &mut Faults<'_>) -> u32 {
    let Some(version) = raw.is() else { return spec::POSTGRES_VERSION };
    let known = POSTGRES_VERSIONS.into_iter().find(|&known| i64::from(known) == version.value);
    known.unwrap_or_else(|| {
        let all: Vec<String> = POSTGRES_VERSIONS.iter().map(u32::to_string).collect();
        let message = format!(
            "PostgreSQL {} (`version` in {place}) is not supported, {} is",
            version.value,
            all.join(" or ")
        );
        faults.add(Code::UnsupportedVersion, version.at, message);
        spec::POSTGRES_VERSION
    })
}

fn own_name(
    what: &str,
    default: &str,
    raw: &Text,
    reserved: &[&str],
    faults: &mut Faults<'_>,
) -> String {
    let Some(name) = raw.is() else { return default.to_owned() };
    if !name_fault(what, name, &[], faults)
        && let Err(why) = check_name_free(&name.value, reserved)
    {
        faults.add(Code::NameTaken, name.at, format!("{what} name `{}` {why}", name.value));
    }
    name.value.clone()
}

fn synchronous(
    place: &str,
    raw: &RawPostgres,
    on: &[String],
    nodes: &BTreeMap<String, NodeSpec>,
    faults: &mut Faults<'_>,
) -> SynchronousSpec {
    let durabilities = [("required", Durability::Required), ("preferred", Durability::Preferred)];
    let spreads = [("zone", Spread::Zone), ("region", Spread::Region)];
    let durability = word("synchronous.durability", place, &raw.durability, &durabilities, faults);
    let spread = word("synchronous.spread", place, &raw.spread, &spreads, faults);
    if let (Some(spread), Some(raw)) = (spread, raw.spread.is()) {
        spread_fault(place, spread, raw.at, on, nodes, faults);
    }
    SynchronousSpec {
        number: number(place, raw, on, faults),
        durability: durability.unwrap_or(spec::DURABILITY),
        spread,
    }
}

fn number(place: &str, raw: &RawPostgres, on: &[String], faults: &mut Faults<'_>) -> u32 {
    let standbys = u32::try_from(on.len().saturating_sub(1)).unwrap_or(u32::MAX);
    // A single node has no standby to wait for; declared, one would be a fault.
    let default = spec::SYNCHRONOUS_NUMBER.min(standbys);
    let most = u32::try_from(spec::NODES_MAX).unwrap_or(u32::MAX) - 1;
    let number = bounded("synchronous.number", place, &raw.number, 0..=most, default, faults);
    if let (Some(raw), true, false) =
        (raw.number.is(), number > standbys, raw.nodes == Part::Faulty)
    {
        let message = format!(
            "`synchronous.number` in {place} is {number}, above the number of standbys ({standbys})"
        );
        faults.add(Code::TooFewStandbys, raw.at, message).next =
            format!("set it to {standbys} or less, or add nodes to {place}");
        return default;
    }
    number
}

fn spread_fault(
    place: &str,
    spread: Spread,
    at: usize,
    on: &[String],
    nodes: &BTreeMap<String, NodeSpec>,
    faults: &mut Faults<'_>,
) {
    let (key, of): (_, fn(&NodeSpec) -> Option<&String>) = match spread {
        Spread::Zone => ("zone", |node| node.zone.as_ref()),
        Spread::Region => ("region", |node| node.region.as_ref()),
    };
    let declared = || on.iter().filter_map(|name| nodes.get_key_value(name));
    let without: Vec<&str> =
        declared().filter(|(_, node)| of(node).is_none()).map(|(name, _)| name.as_str()).collect();
    let different: BTreeSet<&String> = declared().filter_map(|(_, node)| of(node)).collect();
    let why = if !without.is_empty() {
        format!("without a {key}: {}", without.join(", "))
    } else if different.len() < 2 {
        format!("all nodes are in the same {key}")
    } else {
        return;
    };
    let message = format!("`synchronous.spread` in {place} is \"{key}\", but {why}");
    faults.add(Code::CannotSpread, at, message);
}

fn instances(
    service: &str,
    raw: &RawPostgres,
    on: &[String],
    faults: &mut Faults<'_>,
) -> BTreeMap<String, InstanceSpec> {
    let mut instances: BTreeMap<String, InstanceSpec> =
        on.iter().map(|node| (node.clone(), InstanceSpec::default())).collect();
    for (name, written) in &raw.instances {
        if !on.contains(&name.value) {
            if raw.nodes != Part::Faulty {
                let shown = name.value.escape_debug();
                let message = format!("`{shown}` is not a node of [service.{service}]");
                faults.add(Code::UnknownReference, name.at, message).next =
                    format!("add it to `nodes`, or name one of {}", on.join(", "));
            }
            continue;
        }
        let (Some(written), Some(instance)) = (written, instances.get_mut(&name.value)) else {
            continue;
        };
        let place = format!("[service.{service}.instance.{}]", name.value);
        instance.priority = bounded(
            "priority",
            &place,
            &written.priority,
            0..=spec::PRIORITY_MAX,
            spec::PRIORITY,
            faults,
        );
        instance.failover = written.failover.is().map_or(spec::FAILOVER, |it| it.value);
        let first = on.first() == Some(&name.value);
        if let (true, Part::Is(Placed { value: false, at })) = (first, &written.failover) {
            let message = format!(
                "`failover` in {place} is false, but the first node of a service leads first"
            );
            faults.add(Code::NoCandidate, *at, message).next =
                "turn it on, or put another node first in `nodes`".into();
        }
    }
    instances
}

fn settings(
    service: &str,
    raw: &[(Placed<String>, Placed<String>)],
    faults: &mut Faults<'_>,
) -> BTreeMap<String, String> {
    let place = format!("[service.{service}.parameters]");
    let mut settings: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in raw {
        match parameters::check(&name.value, &value.value) {
            Ok(known) => {
                if settings.insert(known.clone(), value.value.clone()).is_some() {
                    let message = format!("setting `{known}` is given twice in {place}");
                    faults.add(Code::Repeated, name.at, message);
                }
            }
            Err(refusal) => refused(name, value, &place, refusal, faults),
        }
    }
    settings
}

fn refused(
    name: &Placed<String>,
    value: &Placed<String>,
    place: &str,
    refusal: Refusal,
    faults: &mut Faults<'_>,
) {
    let (setting, given) = (name.value.escape_debug(), value.value.escape_debug());
    let (code, at, message) = match refusal {
        Refusal::Unknown => {
            let near = nearest(&name.value, parameters::names());
            let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            let message = format!("PostgreSQL has no setting `{setting}` (in {place}){hint}");
            (Code::UnknownSetting, name.at, message)
        }
        Refusal::ReadOnly => (
            Code::OurSetting,
            name.at,
            format!("`{setting}` in {place} is only shown by PostgreSQL"),
        ),
        Refusal::Value { wants } => {
            let message = format!("`{setting}` in {place} must be {wants}, not \"{given}\"");
            (Code::BadSetting, value.at, message)
        }
        Refusal::Ours { why } => {
            (Code::OurSetting, name.at, format!("`{setting}` in {place} is Everhold's: {why}"))
        }
        Refusal::Weakens { allowed, why } => {
            let message =
                format!("`{setting}` in {place} must be {allowed}, not \"{given}\": {why}");
            (Code::WeakSetting, value.at, message)
        }
    };
    faults.add(code, at, message);
}
