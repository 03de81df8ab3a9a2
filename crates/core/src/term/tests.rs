//! The rules of cover, history and choice, as tables.
//!
//! Sets are written `a+1(bc)`: leader, k, members. A digit behind a letter is an incarnation other
//! than 1. Reports are `b@2:30`: node, epoch of the branch of its last record, end of its history.

use super::*;

fn members(text: &str) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::new();
    for letter in text.chars() {
        match letter.to_digit(10) {
            Some(incarnation) => {
                members.last_mut().expect("a letter first").incarnation = incarnation
            }
            None => members.push(Member::new(letter, 1)),
        }
    }
    members
}

fn set(text: &str) -> Set {
    let (leader, rest) = text.split_once('+').expect("LEADER+K(MEMBERS)");
    let (k, rest) = rest.split_once('(').expect("K(MEMBERS)");
    let names = rest.trim_end_matches(')');
    Set {
        leader: members(leader).remove(0),
        members: members(names).into_iter().collect(),
        k: k.parse().expect("k"),
    }
}

fn show(set: &Set) -> String {
    let name = |m: &Member| match m.incarnation {
        1 => m.node.clone(),
        other => format!("{}{other}", m.node),
    };
    let members: String = set.members.iter().map(name).collect();
    format!("{}+{}({members})", name(&set.leader), set.k)
}

fn sets(text: &str) -> Vec<Set> {
    text.split_whitespace().map(set).collect()
}

fn shown(sets: &[Set]) -> String {
    sets.iter().map(show).collect::<Vec<_>>().join(" ")
}

/// Two branches: epoch 1 on timeline 1, epoch 2 on timeline 2 from 20, epoch 3 on timeline 3 from
/// 15 of timeline 1.
fn branches() -> Vec<Branch> {
    let branch = |tli, epoch, parent, fork| Branch { tli, epoch, parent, fork: Lsn(fork) };
    vec![branch(1, 1, 0, 0), branch(2, 2, 1, 20), branch(3, 3, 1, 15)]
}

fn reports(text: &str) -> Reports {
    let each = text.split_whitespace().map(|report| {
        let (name, place) = report.split_once('@').unwrap_or((report, "1:10"));
        let (epoch, end) = place.split_once(':').expect("EPOCH:END");
        let member = members(name).remove(0);
        let epoch: Epoch = epoch.parse().expect("epoch");
        let last = BranchId { epoch, tli: epoch as Tli };
        let end = Lsn(end.parse().expect("end"));
        (member.node.clone(), Report { member, epoch: 9, sysid: 7, last, end })
    });
    each.collect()
}

fn term(inforce: &str, target: &str, branches: Vec<Branch>) -> Term {
    let target = set(target);
    let leader = target.leader.clone();
    Term { epoch: 3, leader, open: true, inforce: sets(inforce), target, branches, sysid: 7 }
}

#[test]
fn cover() {
    #[rustfmt::skip]
    let cases = [
        // set          reports    covered
        ("a+1(bc)",     "b c",     true),
        ("a+1(bc)",     "b",       false),
        ("a+1(bc)",     "",        false),
        ("a+1(bc)",     "d e",     false),
        ("a+2(bc)",     "b",       true),
        ("a+2(bc)",     "d",       false),
        ("a+2(bcd)",    "b c",     true),
        ("a+2(bcd)",    "b",       false),
        ("a+3(bcd)",    "d",       true),
        // The stopped leader has everything that was acknowledged in its term.
        ("a+1(bc)",     "a",       true),
        ("a+1(bc)",     "a2",      false),
        // Another incarnation is another node.
        ("a+1(bc)",     "b c2",    false),
        ("a+1(b2c)",    "b2 c",    true),
        ("a+1(b2c)",    "b c",     false),
        // Alone: the leader only. Closed: nobody, since nothing can be acknowledged.
        ("a+0()",       "b c",     false),
        ("a+0()",       "a",       true),
        ("a+0(bc)",     "b c",     false),
        ("a+1()",       "",        true),
        ("a+2(b)",      "",        true),
    ];
    for (of, by, expected) in cases {
        assert_eq!(covered(&set(of), &reports(by)), expected, "{of} by {by}");
    }
}

/// n − k + 1 is exact: it meets every acknowledging quorum, and one less misses one.
#[test]
fn cover_meets_every_quorum_and_not_more() {
    let names = ["b", "c", "d", "e"];
    for n in 1..=4_usize {
        for k in 1..=n as u32 {
            let all = set(&format!("a+{k}({})", names[..n].concat()));
            for sealed in 0..1_u32 << n {
                let here = |i: &usize| sealed >> i & 1 == 1;
                let text: Vec<&str> = (0..n).filter(here).map(|i| names[i]).collect();
                let reports = reports(&text.join(" "));
                // All k that never heard of the seal.
                let free = n as u32 - sealed.count_ones();
                assert_eq!(covered(&all, &reports), free < k, "{all} by {text:?}");
                assert_eq!(covered_but(1, &all, &reports), free <= k, "{all} by {text:?}");
            }
        }
    }
}

#[test]
fn who_would_cover() {
    #[rustfmt::skip]
    let cases = [
        ("a+1(bc)",            "b c",  ""),
        ("a+1(bc)",            "b",    "a+1(bc): a.1, or 1 of c.1"),
        ("a+1(bcd)",           "b",    "a+1(bcd): a.1, or 2 of c.1 d.1"),
        ("a+1(bc) b+1(c)",     "b",    "a+1(bc): a.1, or 1 of c.1"),
        ("a+1(bc) b+1(c)",     "a",    "b+1(c): b.1, or 1 of c.1"),
        ("a+1(bc) b+1(c)",     "a c",  ""),
        ("a+0()",              "b",    "a+0(): a.1"),
        ("a+1() b+2(c)",       "",     ""),
    ];
    for (inforce, by, expected) in cases {
        let said = first_uncovered(&sets(inforce), &reports(by))
            .map(|uncovered| format!("{}: {uncovered}", show(&uncovered.set)));
        assert_eq!(said.unwrap_or_default(), expected, "{inforce} by {by}");
    }
}

#[test]
fn envelopes() {
    #[rustfmt::skip]
    let cases = [
        // from       to           envelope
        ("a+1(bc)",   "a+1(b)",    "a+1(bc)"),
        ("a+1(b)",    "a+1(bc)",   "a+1(bc)"),
        ("a+2(bc)",   "a+1(c)",    "a+1(bc)"),
        ("a+1(bc)",   "a+2(bc)",   "a+1(bc)"),
        ("a+1(b)",    "a+1(c)",    "a+1(bc)"),
        ("a+1(b)",    "a+1(b2)",   "a+1(bb2)"),
        ("a+0()",     "a+1(b)",    "a+0(b)"),
        ("a+1(b)",    "a+0()",     "a+0(b)"),
        ("a+1()",     "a+1(b)",    "a+1(b)"),
    ];
    for (from, to, expected) in cases {
        assert_eq!(show(&set(from).envelope(&set(to))), expected, "{from} to {to}");
    }
}

/// Each mixture of two sets, k of one and members of the other, is within the envelope: whoever
/// covers the envelope covers the mixture.
#[test]
fn the_envelope_holds_every_mixture() {
    let all: Vec<Set> = ["b", "c", "d", "bc", "bd", "cd", "bcd"]
        .iter()
        .flat_map(|m| (1..=m.len()).map(move |k| set(&format!("a+{k}({m})"))))
        .collect();
    for from in &all {
        for to in &all {
            let union = from.members.union(&to.members).cloned().collect();
            let mixture = Set { members: union, k: from.k.min(to.k), ..to.clone() };
            let envelope = from.envelope(to);
            for sealed in ["", "b", "c", "d", "b c", "b d", "c d", "b c d"] {
                let reports = reports(sealed);
                let safe = [from, to, &mixture].iter().all(|set| covered(set, &reports));
                assert_eq!(covered(&envelope, &reports), safe, "{from} to {to} by {sealed}");
            }
        }
    }
}

#[test]
fn lines() {
    #[rustfmt::skip]
    let cases = [(1, "1"), (2, "1 2"), (3, "1 3"), (4, "")];
    for (tli, expected) in cases {
        let line = line_to(&branches(), tli);
        let shown: Vec<String> = line.iter().map(|branch| branch.tli.to_string()).collect();
        assert_eq!(shown.join(" "), expected, "to {tli}");
    }
    // A record that names itself or a later one as parent doesn't loop.
    let mut broken = branches();
    broken[0].parent = 2;
    broken[1].parent = 2;
    assert_eq!(line_to(&broken, 2).len(), 1);
}

#[test]
fn who_wrote_the_last_record() {
    #[rustfmt::skip]
    let cases = [
        // line to, end, timeline
        (1, 0, 1), (1, 30, 1),
        (2, 0, 1), (2, 19, 1), (2, 20, 1), (2, 21, 2),
        (3, 15, 1), (3, 16, 3),
    ];
    for (tip, end, expected) in cases {
        let line = line_to(&branches(), tip);
        let wrote = last_written(&line, Lsn(end)).map(|branch| branch.tli);
        assert_eq!(wrote, Some(expected), "{end} on the line to {tip}");
    }
    assert_eq!(last_written(&[], Lsn(5)), None);
}

#[test]
fn which_histories_are_a_part() {
    #[rustfmt::skip]
    let cases = [
        // epoch, tli, end, line to, part of it
        (1, 1, 10, 2, true), (1, 1, 20, 2, true), (1, 1, 21, 2, false),
        (1, 1, 15, 3, true), (1, 1, 16, 3, false),
        (2, 2, 25, 2, true), (2, 2, 25, 3, false), (3, 3, 16, 3, true),
        // The same number, reserved by another epoch.
        (4, 2, 25, 2, false),
        (1, 1, 99, 1, true),
        (1, 1, 10, 4, false),
    ];
    for (epoch, tli, end, tip, expected) in cases {
        let line = line_to(&branches(), tip);
        let is = lies_on(BranchId { epoch, tli }, Lsn(end), &line);
        assert_eq!(is, expected, "{end} of epoch {epoch} on the line to {tip}");
    }
}

#[test]
fn choices() {
    #[rustfmt::skip]
    let cases = [
        // reports               preferences    wanted  choice
        ("b@1:10 c@1:20",        "",            "",     "c"),
        ("b@1:20 c@1:20",        "",            "",     "b"),
        ("b@1:20 c@1:20",        "c=5",         "",     "c"),
        // The newer branch holds what was acknowledged last, however short it is.
        ("b@1:90 c@2:30",        "",            "",     "c"),
        ("b@1:90 c@2:30",        "b=5",         "",     "c"),
        ("b@2:30 c@2:31",        "b=5",         "",     "c"),
        // Wanted: at once if nothing is missing, else after streaming the rest.
        ("b@1:20 c@1:20",        "",            "c",    "c"),
        ("b@1:20 c@1:10",        "",            "c",    "c from b"),
        ("b@1:20 c@1:10",        "",            "d",    "b"),
        ("b@1:20 c@1:10",        "c=never",     "c",    "b"),
        // Nobody leads who may not.
        ("b@1:20 c@1:10",        "b=never",     "",     "c from b"),
        ("b@1:20 c@1:20",        "b=never",     "",     "c"),
        ("b@1:20",               "b=never",     "",     "nobody"),
        ("",                     "",            "",     "nobody"),
    ];
    for (told, preferences, wanted, expected) in cases {
        let preferences: BTreeMap<String, Preference> = preferences
            .split_whitespace()
            .map(|one| {
                let (node, value) = one.split_once('=').expect("NODE=PRIORITY");
                let failover = value != "never";
                let priority = value.parse().unwrap_or(0);
                (node.to_string(), Preference { priority, failover })
            })
            .collect();
        let all = reports(told);
        let choice = choose(&all, &preferences, Some(wanted).filter(|name| !name.is_empty()));
        let said = match choice {
            Choice::Lead(leader) => leader.member.node.clone(),
            Choice::FastForward { node, from } => {
                format!("{} from {}", node.member.node, from.member.node)
            }
            Choice::Nobody => "nobody".to_string(),
        };
        assert_eq!(said, expected, "{told} {preferences:?} {wanted}");
    }
}

#[test]
fn how_many_must_acknowledge() {
    #[rustfmt::skip]
    let cases = [
        // wanted, floor, members, k
        (1, 0, 2, 1), (1, 0, 0, 0), (2, 0, 1, 1),
        (1, 1, 0, 1), (2, 1, 1, 1), (2, 1, 0, 2), (2, 2, 1, 2), (1, 2, 1, 2), (0, 0, 3, 0),
    ];
    for (wanted, floor, members, expected) in cases {
        let redundancy = Redundancy { wanted, floor };
        assert_eq!(redundancy.k_for(members), expected, "{redundancy:?} with {members}");
    }
}

#[test]
fn publications() {
    #[rustfmt::skip]
    let cases = [
        // in force      reports                 chosen  k  in force then         parent fork
        ("a+1(bc)",      "b@1:10 c@1:10",        "b",    1, "a+1(bc) b+1(c)",     1, 10),
        ("a+1(bc)",      "b@1:10 c@1:5",         "b",    2, "a+1(bc) b+1(c)",     1, 10),
        // Further than the fork, or on another branch: not a follower as it is.
        ("a+1(bc)",      "b@2:22 c@1:21",        "b",    1, "a+1(bc) b+1()",      2, 22),
        ("a+1(bc)",      "b@2:22 c@1:20",        "b",    1, "a+1(bc) b+1(c)",     2, 22),
        ("a+1(bc)",      "b@3:16 c@2:22 d@1:15", "b",    2, "a+1(bc) b+1(d)",     3, 16),
        // Each set that was in force stays.
        ("a+1(bc) b+1()", "b2@1:10 a@1:10",      "a",    1, "a+1(bc) b+1() a+1(b2)", 1, 10),
    ];
    for (inforce, told, chosen, wanted, expected, parent, fork) in cases {
        let old = term(inforce, inforce.split_whitespace().last().unwrap(), branches());
        let all = reports(told);
        let redundancy = Redundancy { wanted, floor: 1 };
        let next = published(Some(&old), 9, &all[chosen], &all, redundancy, &Domains::default());
        let what = format!("{inforce} {told}");
        assert_eq!(shown(&next.inforce), expected, "{what}");
        assert_eq!(next.target, *next.current(), "{what}");
        assert_eq!(
            (next.epoch, next.open, next.leader.node.as_str()),
            (9, false, chosen),
            "{what}"
        );
        assert_eq!(next.branches[..3], branches(), "{what}");
        let new = Branch { tli: 4, epoch: 9, parent, fork: Lsn(fork) };
        assert_eq!(next.branch(), Some(&new), "{what}");
    }
}

#[test]
fn the_first_publication() {
    let all = reports("a@0:0");
    let first = Report { last: BranchId { epoch: 0, tli: 1 }, ..all["a"].clone() };
    let next =
        published(None, 1, &first, &all, Redundancy { wanted: 1, floor: 1 }, &Domains::default());
    assert_eq!(shown(&next.inforce), "a+1()");
    assert!(next.target.is_closed() && !next.open);
    assert!(next.is_along(&next.line()) && !next.is_along(&next.line()[1..]));
    let tlis: Vec<Tli> = next.line().iter().map(|branch| branch.tli).collect();
    assert_eq!(tlis, [1, 2]);
}

#[test]
fn changes_of_the_leaders_own_term() {
    #[rustfmt::skip]
    let cases = [
        // in force           to          in force while changing   in force then
        ("a+1(bc)",           "a+1(b)",   "a+1(bc)",                "a+1(b)"),
        ("a+2(bc)",           "a+1(c)",   "a+1(bc)",                "a+1(c)"),
        // Not open yet: the older sets stay until it is.
        ("b+1(c) a+1(bc)",    "a+2(bcd)", "b+1(c) a+1(bcd)",        "a+2(bcd)"),
    ];
    for (inforce, to, during, then) in cases {
        let own = inforce.split_whitespace().last().unwrap();
        let open = !inforce.contains(' ');
        let old = Term { open, ..term(inforce, own, branches()) };
        let begun = change_begun(&old, &set(to));
        assert_eq!(shown(&begun.inforce), during, "{inforce} to {to}");
        assert_eq!((show(&begun.target), begun.open), (to.to_string(), open), "{inforce} to {to}");
        assert!(begun.is_changing(), "{inforce} to {to}");
        let ended = settled(&begun);
        assert_eq!(shown(&ended.inforce), then, "{inforce} to {to}");
        assert!(ended.open && !ended.is_changing(), "{inforce} to {to}");
        let higher = regranted(&begun, 12);
        assert_eq!(higher, Term { epoch: 12, ..begun }, "a re-grant changes the epoch alone");
    }
}

#[test]
fn names_in_force() {
    let term = term("a+1(bc2) d+1(e)", "d+1(e)", branches());
    let named: Vec<&str> =
        ["a", "b", "c", "d", "e", "f"].into_iter().filter(|n| term.names(n)).collect();
    assert_eq!(named, ["a", "b", "c", "d", "e"]);
}
