//! Traffic as words, under limits, and what would have become of it.

use super::*;
use crate::http::queue::Limit;

const BEGIN_US: u64 = 1_700_000_000_000_000;

fn bulkhead(limit: u32, queue: u32) -> Option<Bulkhead> {
    Some(Bulkhead { limit: Limit::Most(limit), queue: Some(queue), wait_ms: 1_000 })
}

/// Words: `rate=N` per second, `burst=N`; `route=N+Q`, `service=N+Q`: so many places, and so many may
/// wait; `wait=MS`; `breaker`. Routes are r, the same of class low as l, and a free one f.
fn limits(words: &str) -> Limits {
    let mut rate = RateLimit { by: RateKey::ADDRESS, requests: 0, per_s: 1, burst: 1 };
    let (mut places, mut service, mut wait_ms) = (None, ServiceLimits::default(), 1_000);
    for word in words.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let of = || {
            let (limit, queue) = value.split_once('+').unwrap();
            bulkhead(limit.parse().unwrap(), queue.parse().unwrap())
        };
        match key {
            "rate" => rate.requests = value.parse().unwrap(),
            "burst" => rate.burst = value.parse().unwrap(),
            "by" => rate.by = RateKey::Header(value.to_string()),
            "route" => places = of(),
            "service" => service.places = of(),
            "wait" => wait_ms = value.parse().unwrap(),
            "breaker" => service.breaker = Some(BreakerSpec::default()),
            _ => panic!("{word}"),
        }
    }
    for it in places.iter_mut().chain(&mut service.places) {
        it.wait_ms = wait_ms;
    }
    let rate = (rate.requests > 0).then_some(rate);
    let route = RouteLimits {
        service: "s".to_string(),
        timeout_ms: 60_000,
        priority: Priority::Normal,
        rate,
        places,
    };
    let low = RouteLimits { priority: Priority::Low, ..route.clone() };
    let free = RouteLimits { service: "f".to_string(), timeout_ms: 60_000, ..Default::default() };
    let names = ["r", "l", "f"].map(str::to_string);
    Limits {
        routes: names.into_iter().zip([route, low, free]).collect(),
        services: [("s".to_string(), service), ("f".to_string(), ServiceLimits::default())].into(),
    }
}

const MARKS: [char; 5] = ['*', '/', '=', '!', '@'];

/// `MS: WORD ...`: who asks, by one letter, at which route, `r` if there is no other. Behind that
/// `*TIMES`, `/MS` it took, `=STATUS`, `!rule` if it was refused, `!kept`, `@gateway`.
fn traffic(script: &str) -> Vec<Recorded> {
    let (mut all, mut at_us) = (Vec::new(), BEGIN_US);
    for word in script.split_whitespace() {
        if let Some(ms) = word.strip_suffix(':') {
            at_us = BEGIN_US + ms.parse::<u64>().unwrap() * 1_000;
            continue;
        }
        let part = |mark: char| {
            let from = word.find(mark)? + 1;
            let rest = &word[from..];
            Some(&rest[..rest.find(MARKS).unwrap_or(rest.len())])
        };
        let number = |mark| part(mark).map(|it| it.parse::<u64>().unwrap());
        let names = &word[..word.find(MARKS).unwrap_or(word.len())];
        let fate = match part('!') {
            Some("kept") => Fate::Kept,
            Some(rule) => {
                Fate::Refused(Rule::ALL.into_iter().find(|it| it.name() == rule).unwrap())
            }
            None => Fate::LetIn {
                took_us: number('/').unwrap_or(100) * 1_000,
                tries: 1,
                status: number('=').unwrap_or(200) as u16,
            },
        };
        let one = Recorded {
            at_us,
            gateway: number('@').unwrap_or(0) as usize,
            client: [10, 0, 0, names.as_bytes()[0]].into(),
            route: names.get(1..).filter(|it| !it.is_empty()).unwrap_or("r").to_string(),
            waited_us: 0,
            fate,
        };
        all.extend(std::iter::repeat_n(one, number('*').unwrap_or(1) as usize));
    }
    all
}

fn replay(words: &str, script: &str) -> Told {
    let mut replay = Replay::new(limits(words));
    traffic(script).iter().for_each(|it| replay.request(it));
    replay.end()
}

/// `route: 3 in, 1 waited, 2 rate_limit`; routes of which nothing was asked are left out.
fn text(told: &Told) -> String {
    let tally = |(name, it): (&String, &Tally)| {
        let mut words = vec![format!("{} in", it.admitted)];
        if it.kept > 0 {
            words.push(format!("{} kept", it.kept));
        }
        if it.waits.count() > 0 {
            words.push(format!("{} waited", it.waits.count()));
        }
        words.extend(it.refused.iter().map(|(rule, count)| format!("{count} {}", rule.name())));
        let refused: u64 = it.refused.values().sum();
        assert_eq!(it.requests, it.admitted + it.kept + refused, "{it:?}");
        format!("{name}: {}", words.join(", "))
    };
    told.tallies.iter().map(tally).collect::<Vec<_>>().join("; ")
}

fn check(words: &str, script: &str, expected: &str) {
    assert_eq!(text(&replay(words, script)), expected, "{words}: {script}");
}

#[test]
fn without_limits_all_are_let_in() {
    check("", "0: a*50 b*50!rate_limit c!queue_full", "r: 101 in");
    check("", "0: a!kept a", "r: 1 in, 1 kept");
}

#[test]
fn clients_are_held_to_a_rate_over_all_gateways() {
    check("rate=10 burst=2", "0: a*3 b 100: a b 150: a*2 200: a", "r: 6 in, 3 rate_limit");
    check("rate=10 burst=2", "0: a@0 a@1 a@2", "r: 2 in, 1 rate_limit");
    // What was refused then is asked for as well, and what the cache has counts as asked.
    check("rate=10 burst=2", "0: a*3!rate_limit", "r: 2 in, 1 rate_limit");
    check("rate=10 burst=2", "0: a*3!kept", "r: 0 in, 2 kept, 1 rate_limit");
    // Each route has its own.
    check("rate=10", "0: a al af*9", "f: 9 in; l: 1 in; r: 1 in");
    let told = replay("rate=10 by=x-user", "0: a*2 af");
    assert_eq!(
        (text(&told).as_str(), told.by_address.len()),
        ("f: 1 in; r: 1 in, 1 rate_limit", 1)
    );
}

#[test]
fn who_finds_no_place_waits_or_is_refused() {
    check("service=2+1", "0: a*4", "r: 3 in, 1 waited, 1 queue_full");
    check("service=2+1", "0: a*2 100: a*2", "r: 4 in");
    // The places of each gateway are its own.
    check("service=2+1", "0: a*4@0 a*4@1", "r: 6 in, 2 waited, 2 queue_full");
    check(
        "route=1+1",
        "0: a*3 al*3",
        "l: 2 in, 1 waited, 1 queue_full; r: 2 in, 1 waited, 1 queue_full",
    );
    // First the route's, then the service's: who gets none there frees the other.
    check("route=2+0 service=1+0", "0: a*2 100: a", "r: 2 in, 1 queue_full");
    check("route=2+0 service=1+1", "0: a*3 100: a", "r: 3 in, 2 waited, 1 queue_full");
    // Nothing is known of how long, till places were held.
    check("service=1+9 wait=50", "0: a*3", "r: 1 in, 2 too_late");
    check("service=1+9 wait=50", "0: a/10 20: a*9/10", "r: 7 in, 5 waited, 3 too_late");
    // Who is too late leaves room in the queue.
    check("service=1+1 wait=20", "0: a/100 b 50: c", "r: 1 in, 2 too_late");
    // Whose place was taken by one of a higher class.
    check("service=1+1", "0: a al b", "l: 0 in, 1 queue_full; r: 2 in, 1 waited");
}

#[test]
fn waits_are_as_long_as_others_took() {
    let told = replay("service=1+99", "0: a*11/10");
    let waits = &told.tallies["r"].waits;
    let within = |found: Option<u64>, ms: u64| {
        let found = found.unwrap();
        assert!((ms * 1_000..=ms * 1_260).contains(&found), "{ms}: {found}");
    };
    assert_eq!(waits.count(), 10);
    within(waits.percentile_us(50), 50);
    within(waits.percentile_us(99), 100);
}

/// They are taken to last as long as half of those that were not refused.
#[test]
fn what_was_refused_is_asked_for_as_well() {
    check("service=1+9 wait=50", "0: a/40 50: a!queue_full a", "r: 3 in, 1 waited");
    let refused = "0: a/90 100: a!queue_full a";
    check("service=1+9 wait=50", refused, "r: 2 in, 1 too_late");
    assert_eq!(replay("service=1+9 wait=50", refused).estimated, 1);
}

#[test]
fn a_service_that_does_not_answer_is_asked_no_more() {
    let down = "0: a*15/1=503 1100: a*9/1=503 1300: a*9/1=503";
    check("breaker", down, "r: 24 in, 9 breaker");
    check("", down, "r: 33 in");
    // Each gateway finds it by itself, and one answer says that it works.
    check("breaker", &format!("{down} a*9/1=503@1"), "r: 33 in, 9 breaker");
    check("breaker", "0: a*15/1=503 1100: a*9/1=503 a/2 1300: a*9/1=503", "r: 34 in");
    // One probe that fails, one that does not.
    check(
        "breaker",
        &format!("{down} 2300: a*3/1=503 5000: a*2/1 5200: a*3"),
        "r: 29 in, 12 breaker",
    );
    // What was refused by it would have come to what the last one came to.
    let refused = "0: a*15/1=503 1100: a*9/1=503 1300: a*9!breaker";
    check("breaker", refused, "r: 24 in, 9 breaker");
}

/// Many of them at once are told in turn, without a stack that grows.
#[test]
fn a_breaker_that_opens_refuses_all_that_wait() {
    let words = "route=1+100000 wait=60000 breaker";
    let told = replay(words, "0: a*15/1=503 1000: a*9/1=503 b*50000/300=503 c*9000!queue_full");
    let tally = &told.tallies["r"];
    assert!(tally.refused_by(Rule::Breaker) > 50_000, "{}", text(&told));
}

#[test]
fn what_cannot_be_replayed_is_said() {
    let told = replay("", "0: ax a 500: a 100: a");
    assert_eq!((text(&told).as_str(), told.unrouted, told.late), ("r: 3 in", 1, 1));
    let mut told = Told::default();
    for it in traffic("0: a a!kept b*3!rate_limit c!other") {
        told.record(&it);
    }
    assert_eq!(text(&told), "r: 1 in, 1 kept, 3 rate_limit, 1 other");
    let client = |letter: u8| IpAddr::from([10, 0, 0, letter]);
    let worst = &told.tallies["r"].worst;
    assert_eq!(worst.first(9), [(client(b'b'), 3), (client(b'c'), 1)]);
    assert_eq!((worst.of(client(b'b')), worst.of(client(b'a'))), (3, 0));
}

/// A record of a year that is not yet, and one that never ends.
#[test]
fn the_strangest_records_end_too() {
    let mut all = traffic("0: a 100: a");
    all[1].at_us = u64::MAX;
    all[0].fate = Fate::LetIn { took_us: u64::MAX, tries: u32::MAX, status: 500 };
    let mut replay = Replay::new(limits("rate=1 service=1+1 route=1+1 breaker"));
    all.iter().for_each(|it| replay.request(it));
    assert_eq!(text(&replay.end()), "r: 2 in");
}

#[test]
fn a_limit_that_finds_itself_is_found() {
    let mut limits = limits("");
    let auto = Bulkhead { limit: Limit::Auto, queue: None, wait_ms: 1_000 };
    limits.services.insert("s".to_string(), ServiceLimits { places: Some(auto), breaker: None });
    let mut replay = Replay::new(limits);
    // 30 at once all the time, where 20 places are the first: there is no delay, so it grows.
    let script: String = (0..100).map(|i| format!("{}: a*30/99 ", i * 100)).collect();
    traffic(&script).iter().for_each(|it| replay.request(it));
    let told = replay.end();
    let tally = &told.tallies["r"];
    assert!(tally.admitted > 2_950 && tally.waits.count() < 500, "{}", text(&told));
}
