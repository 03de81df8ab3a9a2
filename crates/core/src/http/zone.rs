//! The own zone first: how much of a gateway's traffic stays near, and where the rest goes.
//!
//! Envoy's rule of zone aware routing. A zone's part of the traffic is its part of the gateways; its
//! capacity is its part of the usable weight. While the capacity covers the part, all stays near. Else
//! only as much as it covers stays, and the rest goes to zones that have more capacity than traffic of
//! their own, as much as they have over. So no backend gets more than it would if there were no zones.
//!
//! It is computed when table or health change, not for each request. A consistent hash knows no zones:
//! a key goes to the same backend from wherever it is asked.

use super::hash::below;
use std::collections::BTreeMap;

/// A usable backend, where it is and what it weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    pub backend: usize,
    pub zone: Option<&'a str>,
    pub weight: u32,
}

/// Backends among which one is picked, and how much of the traffic goes to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// Of a million requests.
    pub share: u32,
    /// Ascending.
    pub backends: Vec<usize>,
}

/// So many requests are shared out.
const WHOLE: u32 = 1_000_000;

/// Where the traffic of a gateway in zone `here` goes, the own zone first; shares add up to
/// [`WHOLE`]. Empty if nothing is usable.
///
/// `gateways` is how many of them each zone has, this one among them. `usable` is ascending.
pub fn tiers(
    here: Option<&str>,
    gateways: &BTreeMap<&str, u32>,
    usable: &[Place<'_>],
) -> Vec<Tier> {
    let Some(here) = here.filter(|_| !usable.is_empty()) else {
        let all = Tier { share: WHOLE, backends: usable.iter().map(|p| p.backend).collect() };
        return if usable.is_empty() { Vec::new() } else { vec![all] };
    };
    // This gateway is there, whatever it was told.
    let count = |zone: &str| {
        let declared = gateways.get(zone).copied().unwrap_or(0);
        f64::from(if zone == here { declared.max(1) } else { declared })
    };
    let others = gateways.keys().filter(|zone| **zone != here);
    let senders: f64 = count(here) + others.map(|zone| count(zone)).sum::<f64>();
    let total: f64 = usable.iter().map(weight).sum();
    let mut zones: BTreeMap<Option<&str>, (f64, Vec<usize>)> = BTreeMap::new();
    for place in usable {
        let (capacity, backends) = zones.entry(place.zone).or_default();
        *capacity += weight(place) / total;
        backends.push(place.backend);
    }
    let (near, near_backends) = zones.remove(&Some(here)).unwrap_or_default();
    let kept = (near * senders / count(here)).min(1.0);
    let over =
        |zone: Option<&str>, capacity: f64| (capacity - zone.map_or(0.0, count) / senders).max(0.0);
    // Parts and capacities both add up to one: where the own zone lacks, others have that much over.
    let spare: f64 = zones.iter().map(|(zone, (capacity, _))| over(*zone, *capacity)).sum();
    let share = |part: f64| (part * f64::from(WHOLE)).round() as u32;
    let mut tiers = vec![Tier { share: share(kept), backends: near_backends }];
    for (zone, (capacity, backends)) in zones {
        let part = (1.0 - kept) * over(zone, capacity) / spare.max(f64::MIN_POSITIVE);
        tiers.push(Tier { share: share(part), backends });
    }
    tiers.retain(|tier| tier.share > 0 && !tier.backends.is_empty());
    let rounded: u32 = tiers.iter().map(|tier| tier.share).sum();
    if let Some(most) = tiers.iter_mut().max_by_key(|tier| tier.share) {
        most.share = most.share + WHOLE - rounded;
    }
    tiers
}

fn weight(place: &Place<'_>) -> f64 {
    f64::from(place.weight.max(1))
}

/// The tier of one request.
pub fn choose(tiers: &[Tier], random: u64) -> Option<&Tier> {
    let mut at = below(WHOLE as usize, random) as u32;
    tiers.iter().find(|tier| match at.checked_sub(tier.share) {
        Some(rest) => {
            at = rest;
            false
        }
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::chance::Chance;

    /// Gateways as ZONE:COUNT, backends as ZONE or ZONE*WEIGHT, `-` for no zone; tiers as
    /// PERCENT:INDICES.
    fn check(here: &str, gateways: &str, usable: &str, expected: &str) {
        let pairs = gateways.split_whitespace().filter_map(|pair| pair.split_once(':'));
        let gateways = pairs.map(|(zone, n)| (zone, n.parse().unwrap())).collect();
        let zone = |name: &'static str| Some(name).filter(|name| *name != "-");
        let usable: Vec<&'static str> = usable.to_string().leak().split_whitespace().collect();
        let places: Vec<Place<'_>> = usable
            .iter()
            .map(|word| word.split_once('*').unwrap_or((word, "1")))
            .enumerate()
            .map(|(backend, (name, weight))| Place {
                backend,
                zone: zone(name),
                weight: weight.parse().unwrap(),
            })
            .collect();
        let tiers = tiers(zone(here.to_string().leak()), &gateways, &places);
        let text: Vec<String> = tiers
            .iter()
            .map(|tier| {
                let digits: String = tier.backends.iter().map(|i| i.to_string()).collect();
                format!("{}:{digits}", (f64::from(tier.share) / 10_000.0).round())
            })
            .collect();
        assert_eq!(text.join(" "), expected, "in {here} of {gateways:?}: {usable:?}");
    }

    #[test]
    fn all_stays_near_while_the_zone_bears_its_part() {
        // One of each in each zone.
        check("x", "x:1 y:1 z:1", "x y z", "100:0");
        check("x", "x:1 y:1 z:1", "x y", "100:0");
        check("x", "x:1 y:1 z:1", "x", "100:0");
        // The own one is gone: the others have as much over.
        check("x", "x:1 y:1 z:1", "y z", "50:0 50:1");
        check("x", "x:1 y:1 z:1", "y z z", "100:12");
        // Two zones have gateways: what they can't bear goes to the third.
        check("x", "x:1 y:1", "x y z", "67:0 33:2");
        check("y", "x:1 y:1", "x y z", "67:1 33:2");
        // The only gateway: nobody gets more for being near.
        check("x", "x:1", "x y z", "33:0 33:1 33:2");
        check("x", "", "x y y y", "25:0 75:123");
        check("x", "y:1", "y", "100:0");
        // By weight; without a zone, nobody is near.
        check("x", "x:1 y:1", "x*1 y*3", "50:0 50:1");
        check("x", "x:1 y:1", "x*3 y*1", "100:0");
        check("-", "x:1 y:1", "x y -", "100:012");
        check("x", "x:1 y:1", "- -", "100:01");
        check("x", "x:1", "", "");
    }

    #[test]
    fn no_backend_gets_more_than_without_zones() {
        let mut chance = Chance(4);
        let names = ["x", "y", "z"];
        for round in 0..5_000 {
            let usable: Vec<Place<'_>> = (0..1 + chance.below(8))
                .map(|backend| Place {
                    backend,
                    zone: Some(*chance.one_of(&names)),
                    weight: 1 + chance.below(3) as u32,
                })
                .collect();
            let gateways: BTreeMap<&str, u32> =
                names.iter().map(|zone| (*zone, chance.below(4) as u32)).collect();
            let senders: u32 = gateways.values().sum();
            let mut got = BTreeMap::new();
            for (here, n) in gateways.iter().filter(|(_, n)| **n > 0) {
                let tiers = tiers(Some(here), &gateways, &usable);
                assert_eq!(tiers.iter().map(|tier| tier.share).sum::<u32>(), WHOLE);
                for tier in &tiers {
                    let zone = usable[tier.backends[0]].zone;
                    *got.entry(zone).or_insert(0.0) +=
                        f64::from(tier.share * n) / f64::from(WHOLE * senders);
                }
            }
            let total: f64 = usable.iter().map(weight).sum();
            for (zone, share) in got {
                let capacity: f64 =
                    usable.iter().filter(|p| p.zone == zone).map(|p| weight(p) / total).sum();
                assert!(share < capacity + 1e-5, "round {round}: {zone:?} {share} of {capacity}");
            }
        }
    }

    #[test]
    fn requests_are_shared_out_as_the_tiers_say() {
        let tier = |share, backend| Tier { share, backends: vec![backend] };
        let tiers = [tier(700_000, 0), tier(200_000, 1), tier(100_000, 2)];
        let mut chance = Chance(6);
        let mut chosen = [0_u32; 3];
        for _ in 0..100_000 {
            chosen[choose(&tiers, chance.next()).unwrap().backends[0]] += 1;
        }
        assert!(chosen[0].abs_diff(70_000) < 1_000 && chosen[1].abs_diff(20_000) < 1_000);
        assert_eq!(choose(&tiers, 0), Some(&tiers[0]));
        assert_eq!(choose(&tiers, u64::MAX), Some(&tiers[2]));
        assert_eq!(choose(&[], 7), None);
    }
}
