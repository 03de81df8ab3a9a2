//! Minutes of a cluster as text, and properties over random ones.

use super::*;

fn new() -> Node {
    Node { heard: None, is: Is::Here, found: Found::Nothing, unready: None }
}

/// A cluster whose coordinator looks each second and does what it is told.
struct World {
    watch: Watch,
    now_s: u64,
    /// Which agents speak.
    speak: BTreeMap<String, bool>,
    nodes: BTreeMap<String, Node>,
}

impl World {
    fn new(names: &str) -> World {
        let node = new();
        World {
            watch: Watch::default(),
            now_s: 1_000,
            speak: names.split_whitespace().map(|name| (name.to_owned(), true)).collect(),
            nodes: names.split_whitespace().map(|it| (it.to_owned(), node.clone())).collect(),
        }
    }

    /// One second; what is judged then.
    fn second(&mut self, looks: bool) -> BTreeMap<String, Verdict> {
        self.now_s += 1;
        let now = Time(self.now_s * 1_000);
        for (name, node) in &mut self.nodes {
            // Whoever is frozen takes nothing in.
            if looks && self.speak[name] {
                node.heard = Some(now);
            }
        }
        if !looks {
            return BTreeMap::new();
        }
        let verdicts = self.watch.look(&self.nodes, now);
        for (name, verdict) in &verdicts {
            let node = self.nodes.get_mut(name).expect("it is a node");
            match verdict {
                Verdict::Lose => node.is = Is::Lost,
                Verdict::Return => node.is = Is::Back,
                Verdict::Settle => node.is = Is::Here,
                Verdict::Stay | Verdict::Hold(_) => {}
            }
        }
        verdicts
    }
}

/// `events`: `SECOND:-b` b falls silent, `+b` speaks again, `b=well`, `b=unknown`, `b=nothing` as
/// gateways find it, `b~unready` what it runs is not all well, `b~ready` it is, `*d` the spec names d,
/// which says nothing yet, `freeze` and `wake` whoever looks. Expected: what changes, and when; not
/// that others leave at once when a node is back.
fn check(names: &str, events: &str, expected: &[&str]) {
    let mut world = World::new(names);
    let mut events: Vec<(u64, &str)> = events
        .split_whitespace()
        .map(|event| {
            let (at, what) = event.split_once(':').expect("SECOND:EVENT");
            (at.parse().expect("a second"), what)
        })
        .collect();
    events.reverse();
    let mut told = Vec::new();
    let mut last: BTreeMap<String, Verdict> = BTreeMap::new();
    let mut looks = true;
    for second in 0..400 {
        while let Some((_, what)) = events.pop_if(|(at, _)| *at <= second) {
            match (what, what.split_at(1), what.split_once('=')) {
                ("freeze", ..) => looks = false,
                ("wake", ..) => looks = true,
                (_, ("*", name), _) => {
                    world.nodes.insert(name.to_owned(), new());
                    world.speak.insert(name.to_owned(), false);
                }
                (_, ("-", name), _) => drop(world.speak.insert(name.to_owned(), false)),
                (_, ("+", name), _) => drop(world.speak.insert(name.to_owned(), true)),
                (_, _, Some((name, found))) => {
                    let found = match found {
                        "nothing" => Found::Nothing,
                        "unknown" => Found::Unknown,
                        _ => Found::Well { instance: format!("{name}.1"), gateway: "g".into() },
                    };
                    world.nodes.get_mut(name).expect("it is a node").found = found;
                }
                _ => {
                    let (name, is) = what.split_once('~').expect("an event");
                    let unready = (is == "unready").then(|| format!("{name}.1 fails"));
                    world.nodes.get_mut(name).expect("it is a node").unready = unready;
                }
            }
        }
        for (name, verdict) in world.second(looks) {
            let text = match &verdict {
                Verdict::Stay => None,
                Verdict::Lose => Some(format!("{second} {name} lost")),
                Verdict::Return => Some(format!("{second} {name} back")),
                Verdict::Settle if last.get(&name) == Some(&Verdict::Return) => None,
                Verdict::Settle => Some(format!("{second} {name} alone")),
                Verdict::Hold(why) => Some(format!("{second} {name} {why}")),
            };
            if last.get(&name) != Some(&verdict) {
                told.extend(text);
            }
            last.insert(name, verdict);
        }
    }
    assert_eq!(told, expected, "{names}, {events:?}");
}

#[test]
fn who_is_silent_for_long_is_lost_and_who_speaks_for_long_is_back() {
    check("a b c", "", &[]);
    check("a b c", "10:-b", &["39 b lost"]);
    check("a b c", "10:-b 39:+b", &[]);
    check("a b c", "10:-b 100:+b", &["39 b lost", "160 b back"]);
    // It spoke for too short a time; a pause of some seconds is none.
    check("a b c", "10:-b 100:+b 150:-b 160:+b", &["39 b lost", "220 b back"]);
    check("a b c", "10:-b 100:+b 150:-b 154:+b", &["39 b lost", "160 b back"]);
    // Back for a minute at least.
    check("a b c", "10:-b 100:+b 161:-b", &["39 b lost", "160 b back", "221 b lost"]);
    // It was never heard.
    check("a b c", "0:-b 200:+b", &["30 b lost", "260 b back"]);
    // It was named later, and has as long as the others to say something.
    check("a b c", "100:*d 120:+d", &[]);
    check("a b c", "100:*d", &["130 d lost"]);
}

#[test]
fn an_agent_that_is_dead_takes_nothing_with_it() {
    let silent = "is not heard, and its instances stay with it";
    let serves = &*format!("39 b {silent}: b.1 answers there, as the gateway g finds");
    let unseen = &*format!("39 b {silent}: no gateway tells whether instances answer there");
    check("a b c", "10:-b 10:b=well", &[serves]);
    check("a b c", "10:-b 10:b=well 90:b=nothing", &[serves, "90 b lost"]);
    check("a b c", "10:-b 10:b=unknown", &[unseen]);
    check("a b c", "10:-b 10:b=unknown 90:b=nothing", &[unseen, "90 b lost"]);
    // Once lost it is back by its own words alone.
    check("a b c", "10:-b 60:b=well 100:+b", &["39 b lost", "160 b back"]);
}

#[test]
fn others_stand_in_until_what_is_back_is_well() {
    let back = ["39 b lost", "160 b back"];
    let waits = "161 b is back, and others still stand in for its instances: b.1 fails";
    let check = |more: &str, expected: &[&str]| {
        check("a b c", &format!("10:-b 100:+b {more}"), &[&back, expected].concat());
    };
    check("", &[]);
    check("100:b~unready 170:b~ready", &[waits, "170 b alone"]);
    check("100:b~unready", &[waits]);
    // It may be lost again before anybody has left, a minute later at least.
    check("100:b~unready 165:-b", &[waits, "221 b lost"]);
    check("100:b~unready 250:-b", &[waits, "279 b lost"]);
    check("100:b~unready 165:-b 190:b~ready 200:+b", &[waits, "190 b alone"]);
}

#[test]
fn only_a_minority_is_lost() {
    let silent = "is not heard, and its instances stay with it";
    let few = &*format!("{silent}: only a minority of the nodes may be lost");
    let alone = &*format!("{silent}: most nodes were not heard either");
    check("a b", "10:-b", &[&format!("39 b {alone}")]);
    check("a b c d", "10:-b 90:-c", &["39 b lost", &format!("119 c {alone}")]);
    check("a b c d e", "10:-b 20:-c", &["39 b lost", "49 c lost"]);
    // All of a minority can be silent, and one who is lost speaks again for a while.
    check(
        "a b c d e",
        "10:-b 20:-c 100:+b 110:-d 200:+c",
        &[
            "39 b lost",
            "49 c lost",
            &format!("139 d {few}"),
            "160 b back",
            "160 d lost",
            "260 c back",
        ],
    );
}

#[test]
fn who_hears_nobody_judges_nobody() {
    let alone = "is not heard, and its instances stay with it: most nodes were not heard either";
    // Cut off for a while; then b is heard a little later than c.
    check(
        "a b c",
        "10:-b 10:-c 60:+c 80:+b",
        &[&format!("39 b {alone}"), &format!("39 c {alone}")],
    );
    check(
        "a b c",
        "10:-b 10:-c 60:+c",
        &[&format!("39 b {alone}"), &format!("39 c {alone}"), "89 b lost"],
    );
    // Frozen: what was said meanwhile was not heard.
    check("a b c", "10:-b 30:freeze 90:wake", &["120 b lost"]);
    check("a b c", "10:-b 30:freeze 90:wake 110:+b", &[]);
    check("a b c", "10:-b 100:+b 110:freeze 165:wake", &["39 b lost", "225 b back"]);
}

/// splitmix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// Nodes come and go, their instances too, and whoever looks is frozen now and then.
#[test]
fn any_hour_of_any_cluster() {
    let all = ["a", "b", "c", "d", "e", "f", "g"];
    let (mut lost, mut back) = (0, 0);
    for seed in 0..200 {
        let mut chance = Chance(seed);
        let count = 1 + chance.below(7) as usize;
        let mut world = World::new(&all[..count].join(" "));
        let mut changed: BTreeMap<String, u64> = BTreeMap::new();
        let mut silent_s: BTreeMap<String, u64> = BTreeMap::new();
        let mut frozen_s = 0;
        for second in 0..3_600 {
            let name = all[chance.below(count as u64) as usize];
            match chance.below(200) {
                0..=2 => drop(world.speak.insert(name.to_owned(), false)),
                3..=6 => drop(world.speak.insert(name.to_owned(), true)),
                7 => {
                    let found = match chance.below(4) {
                        0 => Found::Well { instance: "x.1".into(), gateway: "g".into() },
                        1 => Found::Unknown,
                        _ => Found::Nothing,
                    };
                    world.nodes.get_mut(name).expect("it is a node").found = found;
                }
                8 if chance.below(5) == 0 => frozen_s = chance.below(90),
                9..=12 => {
                    let unready = (chance.below(2) == 0).then(String::new);
                    world.nodes.get_mut(name).expect("it is a node").unready = unready;
                }
                _ => {}
            }
            frozen_s = u64::saturating_sub(frozen_s, 1);
            for (name, speaks) in &world.speak {
                let since = silent_s.entry(name.clone()).or_default();
                *since = if *speaks { 0 } else { *since + 1 };
            }
            let verdicts = world.second(frozen_s == 0);
            let when = format!("seed {seed}, second {second}");
            let gone = world.nodes.values().filter(|node| node.is == Is::Lost).count();
            assert!(gone * 2 < count || gone == 0, "{when}: {gone} of {count}");
            for (name, verdict) in verdicts {
                let node = &world.nodes[&name];
                match verdict {
                    Verdict::Stay | Verdict::Hold(_) => continue,
                    Verdict::Settle => {
                        assert_eq!(node.unready, None, "{when}: {name} is not well");
                        continue;
                    }
                    Verdict::Lose => {
                        lost += 1;
                        assert!(silent_s[&name] >= SILENT_MS / 1_000, "{when}: {name} spoke");
                        assert_eq!(node.found, Found::Nothing, "{when}: {name} serves");
                        let most = world.speak.values().filter(|speaks| **speaks).count();
                        // Whoever fell silent just now was heard a moment ago.
                        let late = silent_s.values().filter(|s| (1..=5).contains(*s)).count();
                        assert!((most + late) * 2 > count, "{when}: few are heard");
                    }
                    Verdict::Return => {
                        back += 1;
                        assert!(silent_s[&name] <= BREAK_MS / 1_000, "{when}: {name} is silent");
                    }
                }
                let before = changed.insert(name.clone(), second);
                if let Some(before) = before {
                    // Whoever woke has forgotten when it came back.
                    let least = if verdict == Verdict::Lose { SILENT_MS } else { HEARD_MS };
                    assert!(second - before >= least / 1_000, "{when}: {name} to and fro");
                }
            }
        }
    }
    assert!(lost > 500 && back > 300, "{lost} lost, {back} back: the test sees nothing");
}
