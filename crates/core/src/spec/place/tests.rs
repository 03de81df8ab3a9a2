//! Places as text, "a.1 a.2 b.1", and properties over random clusters and changes.

use super::super::*;
use std::collections::{BTreeMap, BTreeSet};

/// Nodes as NAME:ZONE (or NAME alone) with ten ports each, and one service of so many instances.
fn spec(nodes: &str, instances: u32) -> Spec {
    let mut spec = Spec::default_for_one_machine();
    spec.nodes.clear();
    spec.services.clear();
    for (index, node) in (0u16..).zip(nodes.split_whitespace()) {
        let (name, zone) = node.split_once(':').map_or((node, None), |(it, zone)| (it, Some(zone)));
        add_node(
            &mut spec,
            name,
            zone,
            PortRange { first: 2000 + index * 100, last: 2010 + index * 100 },
        );
    }
    spec.gateway.nodes = spec.nodes.keys().cloned().collect();
    spec.services.insert("api".into(), service(instances));
    spec.place();
    spec
}

fn add_node(spec: &mut Spec, name: &str, zone: Option<&str>, ports: PortRange) {
    let (address, zone) = (Address::Ip(ADDRESS), zone.map(str::to_owned));
    let node =
        NodeSpec { address, region: None, zone, ports, duty: Duty::Active, lost: None, back: None };
    spec.nodes.insert(name.to_owned(), node);
}

fn service(instances: u32) -> ServiceSpec {
    let source = Source::Run(RunSpec {
        instances,
        command: vec!["serve".into()],
        env: BTreeMap::new(),
        user: None,
        directory: None,
        stop: StopSpec { signal: StopSignal::Term, grace_ms: GRACE_MS },
        limits: LimitsSpec::default(),
        nodes: Vec::new(),
        placed: BTreeMap::new(),
        home: BTreeMap::new(),
    });
    ServiceSpec::Http(HttpSpec::of(source))
}

fn run<'s>(spec: &'s mut Spec, service: &str) -> &'s mut RunSpec {
    spec.run_mut(service).expect("it is run")
}

fn placed(spec: &Spec, service: &str) -> BTreeMap<String, Placed> {
    let http = spec.http(service).expect("it is HTTP");
    http.placed().map(|(id, it)| (id.clone(), it.clone())).collect()
}

fn show(spec: &Spec) -> String {
    placed(spec, "api").keys().cloned().collect::<Vec<_>>().join(" ")
}

#[test]
fn zones_first_then_nodes() {
    #[rustfmt::skip]
    let cases = [
        ("a b c",             3, "a.1 b.1 c.1"),
        ("a b c",             5, "a.1 a.2 b.1 b.2 c.1"),
        ("a",                 2, "a.1 a.2"),
        ("a b c",             0, ""),
        ("a:x b:x c:y",       2, "a.1 c.1"),
        ("a:x b:x c:y",       4, "a.1 b.1 c.1 c.2"),
        ("a:x b:x c:y d",     3, "a.1 c.1 d.1"),
        // Six ports each.
        ("a:x b:y",          14, "a.1 a.2 a.3 a.4 a.5 a.6 b.1 b.2 b.3 b.4 b.5 b.6"),
    ];
    for (nodes, instances, expected) in cases {
        assert_eq!(show(&spec(nodes, instances)), expected, "{nodes}, {instances}");
    }
    let full = spec("a:x b:y", 14);
    assert_eq!(full.unplaced(), Some(("api", 12)));
    assert_eq!(spec("a:x b:y", 12).unplaced(), None);
}

#[test]
fn other_services_fill_nodes_too() {
    let mut spec = spec("a b c", 0);
    let main = PostgresSpec::default_on(vec!["a".into(), "b".into()]);
    spec.services.insert("main".into(), ServiceSpec::Postgres(main));
    spec.assign_ports();
    run(&mut spec, "api").instances = 4;
    spec.place();
    assert_eq!(show(&spec), "a.1 b.1 c.1 c.2");
    let ports: Vec<u16> = placed(&spec, "api").values().map(|it| it.port).collect();
    assert_eq!(ports, [2001, 2101, 2200, 2201]);
}

#[test]
fn what_is_placed_stays() {
    let check = |nodes: &str, count: u32, change: &dyn Fn(&mut Spec), expected: &str| {
        let old = spec(nodes, count);
        let mut new = old.clone();
        change(&mut new);
        new.keep(&old);
        assert_eq!(show(&new), expected, "{nodes}, {count}");
    };
    let count = |n: u32| move |spec: &mut Spec| run(spec, "api").instances = n;
    check("a b c", 3, &count(4), "a.1 a.2 b.1 c.1");
    check("a b c", 5, &count(3), "a.1 b.1 c.1");
    check("a:x b:x c:y", 4, &count(3), "a.1 b.1 c.1");
    check("a:x b:x c:y", 4, &count(1), "a.1");
    // A zone of its own takes its share, a node more takes what is more than even.
    let ports = PortRange { first: 3000, last: 3010 };
    check("a:x b:x", 4, &|s| add_node(s, "c", Some("y"), ports), "a.1 b.1 c.1 c.2");
    check("a b", 2, &|s| add_node(s, "c", None, ports), "a.1 b.1");
    check("a b", 4, &|s| add_node(s, "c", None, ports), "a.1 a.2 b.1 c.1");
    check("a b c", 3, &|s| run(s, "api").nodes = vec!["c".into(), "b".into()], "b.1 b.2 c.1");
    // Another service beside it moves nothing.
    check("a b c", 3, &|s| drop(s.services.insert("aa".into(), service(3))), "a.1 b.1 c.1");
}

#[test]
fn a_node_that_is_drained_or_leaves_gives_its_instances_away_and_takes_some_again() {
    let mut spec = spec("a b c", 3);
    spec.set_duty("b", Duty::Drained);
    assert_eq!(show(&spec), "a.1 a.2 c.1");
    spec.set_duty("a", Duty::Drained);
    assert_eq!(show(&spec), "c.1 c.2 c.3");
    // With nowhere to go they stay.
    spec.set_duty("c", Duty::Drained);
    assert_eq!(show(&spec), "a.1 b.1 c.1");
    spec.set_duty("c", Duty::Active);
    spec.set_duty("a", Duty::Active);
    spec.set_duty("b", Duty::Active);
    assert_eq!(show(&spec), "a.1 b.1 c.1");

    let without = spec.without("a").expect("it may go");
    assert_eq!(show(&without), "b.1 b.2 c.1");
    run(&mut spec, "api").nodes = vec!["a".into()];
    spec.place();
    assert_eq!(spec.without("a").expect_err("it may not"), "no other node may run api");
    run(&mut spec, "api").nodes.clear();
    run(&mut spec, "api").instances = 18;
    spec.place();
    let why = "api would be left with 12 instances";
    assert_eq!(spec.without("a").expect_err("it may not"), why);
}

fn lose(spec: &mut Spec, node: &str) {
    spec.set_lost(node, Some("2026-11-21T09:00:00Z".into()));
}

#[test]
fn others_stand_in_for_the_instances_of_a_lost_node() {
    // Lost in this order, and back in the same.
    let check = |nodes: &str, count: u32, lost: &str, expected: &[&str]| {
        let before = spec(nodes, count);
        let mut spec = before.clone();
        let mut found = Vec::new();
        for node in lost.split_whitespace() {
            lose(&mut spec, node);
            found.push(show(&spec));
        }
        for node in lost.split_whitespace() {
            spec.set_lost(node, None);
            found.push(show(&spec));
        }
        assert_eq!(found, expected, "{nodes}, {count}, {lost}");
        assert_eq!(spec, before, "{nodes}, {count}, {lost}");
    };
    check("a b c", 3, "b", &["a.1 a.2 c.1", "a.1 b.1 c.1"]);
    check("a b c", 5, "a", &["b.1 b.2 b.3 c.1 c.2", "a.1 a.2 b.1 b.2 c.1"]);
    check("a:x b:x c:y", 4, "b", &["a.1 a.2 c.1 c.2", "a.1 b.1 c.1 c.2"]);
    check("a:x b:x c:y", 4, "c", &["a.1 a.2 b.1 b.2", "a.1 b.1 c.1 c.2"]);
    // One that stands in is lost in its turn.
    check(
        "a b c d e",
        5,
        "b a",
        &[
            "a.1 a.2 c.1 d.1 e.1",
            "c.1 c.2 d.1 d.2 e.1",
            "b.1 c.1 c.2 d.1 e.1",
            "a.1 b.1 c.1 d.1 e.1",
        ],
    );
    // With nowhere to go they stay.
    check("a", 2, "a", &["a.1 a.2", "a.1 a.2"]);
    // Nothing is there to be moved.
    check("a b c", 1, "c", &["a.1", "a.1"]);
}

#[test]
fn what_changes_while_a_node_is_lost_moves_nothing_to_and_fro() {
    let mut spec = spec("a b c", 5);
    let before = placed(&spec, "api");
    lose(&mut spec, "a");
    assert_eq!(show(&spec), "b.1 b.2 b.3 c.1 c.2");
    let ports = placed(&spec, "api");
    // One more: a stand-in has become the one that was wanted.
    let more = spec.scaled("api", 6).expect("there is room");
    assert_eq!(show(&more), "b.1 b.2 b.3 c.1 c.2 c.3");
    assert!(ports.iter().all(|it| placed(&more, "api").get(it.0) == Some(it.1)));
    let mut back = more.clone();
    back.set_lost("a", None);
    assert_eq!(show(&back), "a.1 a.2 b.1 b.2 c.1 c.2");
    let fewer = spec.scaled("api", 4).expect("there is room");
    assert_eq!(show(&fewer), "b.1 b.3 c.1 c.2");
    // Its machine is gone for good.
    let without = spec.without("a").expect("it may go");
    assert_eq!(placed(&without, "api"), ports);
    assert_eq!(without.http("api").and_then(HttpSpec::run).map(|run| run.home.len()), Some(0));
    let mut drained = spec.clone();
    drained.set_duty("a", Duty::Drained);
    assert_eq!(placed(&drained, "api"), ports);
    // A document says nothing of it.
    let mut new = spec.clone();
    new.nodes.values_mut().for_each(|node| node.lost = None);
    let run = run(&mut new, "api");
    (run.placed, run.home) = (BTreeMap::new(), BTreeMap::new());
    new.keep(&spec);
    assert_eq!(new, spec);
    // What is new on the lost node takes no port of those who come back.
    let mut beside = spec.clone();
    let main = PostgresSpec::default_on(vec!["a".into()]);
    beside.services.insert("main".into(), ServiceSpec::Postgres(main));
    beside.keep(&spec);
    beside.set_lost("a", None);
    assert_eq!(placed(&beside, "api"), before);
    // A service that is new begins beside it; its own part of the lost node waits.
    new.services.insert("web".into(), service(3));
    new.place();
    assert_eq!(placed(&new, "web").into_keys().collect::<Vec<_>>(), ["b.1", "c.1", "c.2"]);
    assert_eq!(placed(&new, "api"), ports);
    new.set_lost("a", None);
    assert_eq!(placed(&new, "web").into_keys().collect::<Vec<_>>(), ["a.1", "b.1", "c.1"]);
}

/// `-b` is lost, `~b` is back, `+b` is found well; what is placed then.
fn events(spec: &mut Spec, events: &str) -> Vec<String> {
    let show = |event: &str| {
        let (what, node) = event.split_at(1);
        match what {
            "-" => lose(spec, node),
            "~" => spec.set_back(node, "2026-11-21T10:00:00Z".into()),
            _ => spec.set_lost(node, None),
        }
        show(spec)
    };
    events.split_whitespace().map(show).collect()
}

#[test]
fn stand_ins_run_on_beside_instances_that_are_back() {
    let check = |nodes: &str, count: u32, what: &str, expected: &[&str]| {
        let before = spec(nodes, count);
        let mut spec = before.clone();
        assert_eq!(events(&mut spec, what), expected, "{nodes}, {count}, {what}");
        assert_eq!(spec, before, "{nodes}, {count}, {what}");
    };
    let both = "a.1 a.2 b.1 c.1";
    check("a b c", 3, "-b ~b +b", &["a.1 a.2 c.1", both, "a.1 b.1 c.1"]);
    check("a b c", 1, "-a ~a +a", &["b.1", "a.1 b.1", "a.1"]);
    // Lost anew before it answered; the stand-in has gone on.
    check("a b c", 3, "-b ~b -b ~b +b", &["a.1 a.2 c.1", both, "a.1 a.2 c.1", both, "a.1 b.1 c.1"]);
    // Another one is lost meanwhile, and the one of the first stands for it no less.
    check(
        "a b c d",
        4,
        "-b ~b -c +b ~c +c",
        &[
            "a.1 a.2 c.1 d.1",
            "a.1 a.2 b.1 c.1 d.1",
            "a.1 a.2 b.1 d.1 d.2",
            "a.1 a.2 b.1 d.1",
            "a.1 a.2 b.1 c.1 d.1",
            "a.1 b.1 c.1 d.1",
        ],
    );
    // Whoever stood in is lost itself.
    check("a b c d", 1, "-a ~a -b +a +b", &["b.1", "a.1 b.1", "a.1 c.1", "a.1", "a.1"]);
    // On the only node where it may run it never runs twice.
    let mut alone = spec("a b c", 0);
    run(&mut alone, "api").nodes = vec!["b".into()];
    let mut alone = alone.scaled("api", 1).expect("there is room");
    assert_eq!(events(&mut alone, "-b ~b -b ~b +b"), ["b.1"; 5]);
    // An apply or another number in between.
    let mut spec = spec("a b c", 3);
    events(&mut spec, "-b ~b");
    let mut applied = spec.clone();
    applied.nodes.values_mut().for_each(|node| (node.lost, node.back) = (None, None));
    applied.keep(&spec);
    assert_eq!(applied, spec);
    let mut more = spec.scaled("api", 4).expect("there is room");
    assert_eq!(show(&more), "a.1 a.2 b.1 c.1 c.2");
    assert_eq!(events(&mut more, "+b"), ["a.1 a.2 b.1 c.1"]);
    let without = spec.without("b").expect("it may go");
    assert_eq!(show(&without), "a.1 a.2 c.1");
}

#[test]
fn an_instance_out_of_use_is_so_when_its_node_is_back() {
    let mut spec = spec("a b c", 3).with_drained("api", "b.1", true);
    lose(&mut spec, "b");
    assert_eq!(show(&spec), "a.1 a.2 c.1");
    spec.set_lost("b", None);
    assert_eq!(spec.http("api").map(|http| http.drained.clone()), Some(["b.1".into()].into()));
}

#[test]
fn a_loss_that_leaves_too_few_ports_is_no_fault_of_the_spec() {
    let mut spec = spec("a:x b:y c:z", 15);
    lose(&mut spec, "b");
    // Six ports each.
    assert_eq!(placed(&spec, "api").len(), 12);
    assert_eq!(spec.http("api").and_then(HttpSpec::run).map(RunSpec::missing), Some(3));
    assert_eq!(spec.unplaced(), None);
    assert!(spec.scaled("api", 18).is_ok(), "there is room when it is back");
    assert!(spec.scaled("api", 19).is_err());
}

/// Of a random cluster any nodes are lost and come back in any order.
#[test]
fn any_losses_of_any_cluster() {
    let mut moved = 0;
    for seed in 0..500 {
        let mut chance = Chance(seed);
        let before = random(&mut chance);
        let nodes: Vec<String> = before.nodes.keys().cloned().collect();
        let mut spec = before.clone();
        for step in 0..12 {
            let old = spec.clone();
            let node = &nodes[chance.below(nodes.len() as u64) as usize];
            let is_back = spec.nodes[node].back.is_some();
            let (is_lost, settled) = (spec.is_lost(node), is_back && chance.below(2) == 0);
            match (is_lost, settled) {
                (true, _) if chance.below(2) == 0 => spec.set_back(node, "then".into()),
                (true, _) | (_, true) => spec.set_lost(node, None),
                _ => lose(&mut spec, node),
            }
            let when = format!("seed {seed}, step {step}, {node}");
            moved += usize::from(spec.services != old.services);
            for name in ["api", "web"] {
                stands(&before, &spec, name, &when);
                if !is_lost && !settled {
                    let mut stay = placed(&old, name);
                    stay.retain(|_, place| !spec.is_lost(&place.node));
                    let now = placed(&spec, name);
                    assert!(stay.iter().all(|it| now.get(it.0) == Some(it.1)), "{when}");
                }
            }
            ports_are_one_s_own(&spec, &when);
            let mut again = spec.clone();
            again.keep(&spec);
            assert_eq!(again, spec, "{when}");
        }
        nodes.iter().for_each(|node| spec.set_lost(node, None));
        assert_eq!(spec, before, "seed {seed}");
    }
    assert!(moved > 1_000, "{moved}");
}

/// As many as are wanted, on nodes that are there; those that were there before are where they were.
fn stands(before: &Spec, spec: &Spec, name: &str, when: &str) {
    let run = spec.http(name).and_then(HttpSpec::run).expect("it is run");
    let wanted = run.instances as usize;
    let home = placed(before, name);
    let back = home.values().filter(|it| spec.nodes[&it.node].back.is_some()).count();
    assert!((wanted..=wanted + back).contains(&run.placed.len()), "{when}");
    if spec.nodes.values().all(|node| node.lost.is_some()) {
        return assert_eq!(run.placed, home, "{when}: nowhere to go");
    }
    assert!(run.placed.values().all(|place| !spec.is_lost(&place.node)), "{when}");
    let stay = home.iter().filter(|(_, place)| !spec.is_lost(&place.node));
    stay.for_each(|(id, place)| assert_eq!(run.placed.get(id), Some(place), "{when}"));
}

fn ports_are_one_s_own(spec: &Spec, when: &str) {
    let mut ports = BTreeSet::new();
    for (_, main) in spec.databases() {
        ports.extend(main.instances.iter().map(|(node, it)| (node.clone(), it.port)));
    }
    for (_, http) in spec.http_services() {
        let places: BTreeMap<_, _> =
            http.placed().chain(http.run().into_iter().flat_map(|it| &it.home)).collect();
        for (id, place) in places {
            assert!(ports.insert((place.node.clone(), place.port)), "{when}: {id}");
        }
    }
}

#[test]
fn a_port_that_may_still_be_in_use_is_taken_last() {
    let old = spec("a", 6);
    let mut new = old.clone();
    run(&mut new, "api").instances = 4;
    new.services.insert("web".into(), service(2));
    new.keep(&old);
    let ports = |spec: &Spec, name: &str| -> Vec<u16> {
        placed(spec, name).values().map(|it| it.port).collect()
    };
    // There is no other.
    assert_eq!(ports(&new, "web"), [2004, 2005]);
    let old = spec("a", 4);
    let mut new = old.clone();
    run(&mut new, "api").instances = 3;
    new.services.insert("web".into(), service(2));
    new.keep(&old);
    assert_eq!(ports(&new, "web"), [2004, 2005]);
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

#[test]
fn any_cluster_through_any_changes() {
    for seed in 0..300 {
        let mut chance = Chance(seed);
        let mut old = random(&mut chance);
        holds(&old, seed);
        for step in 0..12 {
            let mut new = old.clone();
            change(&mut new, &mut chance);
            new.keep(&old.clone());
            holds(&new, seed);
            for name in ["api", "web"] {
                moves_no_more_than_needed(&old, &new, name, &format!("seed {seed}, step {step}"));
            }
            let mut again = new.clone();
            again.keep(&new);
            assert_eq!(again, new, "seed {seed}, step {step}");
            old = new;
        }
    }
}

fn random(chance: &mut Chance) -> Spec {
    let mut spec = spec("", 0);
    for index in 0..1 + chance.below(7) {
        let zone = ["x", "y", "z"].get(chance.below(4) as usize).copied();
        let first = 2000 + index as u16 * 100;
        add_node(&mut spec, &format!("n{index}"), zone, PortRange { first, last: first + 40 });
    }
    let nodes: Vec<String> = spec.nodes.keys().take(3).cloned().collect();
    spec.services.insert("main".into(), ServiceSpec::Postgres(PostgresSpec::default_on(nodes)));
    for name in ["api", "web"] {
        spec.services.insert(name.into(), service(chance.below(12) as u32));
    }
    spec.assign_ports();
    spec.place();
    spec
}

fn change(spec: &mut Spec, chance: &mut Chance) {
    let nodes: Vec<String> = spec.nodes.keys().cloned().collect();
    let node = &nodes[chance.below(nodes.len() as u64) as usize];
    let service = ["api", "web"][chance.below(2) as usize];
    match chance.below(5) {
        0 => run(spec, service).instances = chance.below(12) as u32,
        1 => {
            let name = format!("n{}", 10 + chance.below(4));
            let zone = ["x", "y", "z"].get(chance.below(4) as usize).copied();
            if !spec.nodes.contains_key(&name) {
                add_node(spec, &name, zone, PortRange { first: 5000, last: 5040 });
            }
        }
        2 => {
            let duty = [Duty::Active, Duty::Drained, Duty::Leaving][chance.below(3) as usize];
            spec.set_duty(node, duty);
        }
        3 => {
            let some = nodes.iter().filter(|_| chance.below(2) == 0).cloned().collect();
            run(spec, service).nodes = some;
        }
        _ => {
            if let Ok(without) = spec.without(node) {
                *spec = without;
            }
        }
    }
}

/// The count is right, every place may be used by it alone, zones and their nodes are even.
fn holds(spec: &Spec, seed: u64) {
    let mut ports = BTreeSet::new();
    for (_, main) in spec.databases() {
        ports.extend(main.instances.iter().map(|(node, it)| (node.clone(), it.port)));
    }
    for name in ["api", "web"] {
        let run = spec.http(name).and_then(HttpSpec::run).expect("it is run");
        assert_eq!(run.placed.len(), run.instances as usize, "seed {seed}");
        let hosts = spec.hosts(run);
        let mut of_node: BTreeMap<&String, usize> = hosts.keys().map(|node| (node, 0)).collect();
        for (id, place) in &run.placed {
            assert!(hosts[&place.node].may_use(place.port), "seed {seed}");
            assert!(super::number(id, &place.node).is_some_and(|n| n > 0), "seed {seed}: {id}");
            assert!(ports.insert((place.node.clone(), place.port)), "seed {seed}: {id}");
            *of_node.get_mut(&place.node).expect("it is a host") += 1;
        }
        let mut of_zone: BTreeMap<Option<&String>, usize> = BTreeMap::new();
        for (node, count) in &of_node {
            *of_zone.entry(hosts[*node].zone.as_ref()).or_default() += count;
        }
        let even = |counts: &mut dyn Iterator<Item = usize>| {
            let counts: Vec<usize> = counts.collect();
            counts.iter().max().copied() <= counts.iter().min().map(|least| least + 1)
        };
        assert!(even(&mut of_zone.values().copied()), "seed {seed}: {of_zone:?}");
        for zone in of_zone.keys() {
            let of = of_node.iter().filter(|(node, _)| hosts[**node].zone.as_ref() == *zone);
            assert!(even(&mut of.map(|(_, count)| *count)), "seed {seed}: {of_node:?}");
        }
    }
}

/// Of those that may stay no more leave a zone, or a node, than have to.
fn moves_no_more_than_needed(old: &Spec, new: &Spec, name: &str, when: &str) {
    let run = new.http(name).and_then(HttpSpec::run).expect("it is run");
    let hosts = new.hosts(run);
    let mut may = placed(old, name);
    may.retain(|_, place| hosts.contains_key(&place.node));
    let count = |places: &BTreeMap<String, Placed>, nodes: &BTreeSet<&String>| {
        places.values().filter(|it| nodes.contains(&it.node)).count()
    };
    let mut zones: BTreeMap<Option<&String>, BTreeSet<&String>> = BTreeMap::new();
    for (node, spec) in &hosts {
        zones.entry(spec.zone.as_ref()).or_default().insert(node);
    }
    let left = zones.values().map(|it| count(&may, it).saturating_sub(count(&run.placed, it)));
    let least = surplus(zones.values().map(|it| count(&may, it)).collect(), run.placed.len());
    assert_eq!(left.sum::<usize>(), least, "{when}: zones");

    let nodes = |it: &BTreeSet<&String>| {
        it.iter().map(|node| count(&may, &[*node].into())).collect::<Vec<usize>>()
    };
    let gone = may.iter().filter(|(id, place)| run.placed.get(*id) != Some(place)).count();
    let most = zones.values().map(|it| surplus(nodes(it), count(&run.placed, it)));
    let most: usize = most.sum();
    assert!(gone <= most, "{when}: {gone} moved, {most} had to");
}

/// How many have to leave so that the rest is spread evenly with `total` in all.
fn surplus(mut counts: Vec<usize>, total: usize) -> usize {
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let share = |index: usize| (total + counts.len() - 1 - index) / counts.len();
    counts.iter().enumerate().map(|(index, count)| count.saturating_sub(share(index))).sum()
}
