//! The limiter before modelled instances, in virtual time: open-loop arrivals, its queue, and a server
//! that works on so many requests at once.

use super::*;
use crate::http::chance::Chance;
use crate::http::queue::{Priority, Queue, Room};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

const STEP_US: u64 = 100_000;

/// What is offered and by whom it is worked on, from a moment on.
#[derive(Clone, Copy)]
struct Model {
    slots: usize,
    service_us: u64,
    /// Exponential service times in place of equal ones.
    random: bool,
    arrivals_per_s: u64,
    frozen: bool,
    /// What comes after the head of an answer, and whether a place is held till then.
    body_us: u64,
    held: bool,
}

/// One step's worth.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    answers: u64,
    limit: u32,
    /// The longest of those that were let in, from its arrival on.
    longest_us: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick,
    Arrival,
    Done {
        arrived: u64,
        begun: u64,
    },
    /// So is the body.
    Over,
}

/// Runs the models, each from its second on, and says what each tenth of a second brought.
fn run(models: &[(u64, Model)], seconds: u64, seed: u64) -> Vec<Step> {
    let mut chance = Chance(seed);
    let mut exponential = move |mean: u64| {
        let unit = ((chance.next() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        (-unit.ln() * mean as f64) as u64 + 1
    };
    let mut limiter = Limiter::new(0);
    let mut queue: Queue<u64> = Queue::default();
    // At the server: those that wait there, and those that are worked on.
    let (mut backlog, mut working): (VecDeque<(u64, u64)>, usize) = (VecDeque::new(), 0);
    let mut events =
        BinaryHeap::from([Reverse((STEP_US, Event::Tick)), Reverse((0, Event::Arrival))]);
    let (mut steps, mut step, mut seen) = (Vec::new(), Step::default(), Seen::default());
    let mut in_flight = 0_u32;
    while let Some(Reverse((now, event))) = events.pop() {
        if now > seconds * 1_000_000 {
            break;
        }
        let model = models.iter().rev().find(|(from, _)| from * 1_000_000 <= now).unwrap().1;
        match event {
            Event::Arrival => {
                events.push(Reverse((
                    now + exponential(1_000_000 / model.arrivals_per_s),
                    Event::Arrival,
                )));
                if in_flight < limiter.limit() && queue.is_empty() {
                    in_flight += 1;
                    backlog.push_back((now, now));
                } else {
                    seen.full = true;
                    let places = limiter.limit();
                    let room = Room { most: places as usize, places, service_us: 0 };
                    let _ = queue.enter(Priority::Normal, now + 1_000_000, room, now, now);
                }
            }
            Event::Over => in_flight -= 1,
            Event::Done { arrived, begun } => {
                match model.held {
                    true => events.push(Reverse((now + model.body_us, Event::Over))),
                    false => in_flight -= 1,
                }
                working -= 1;
                step.answers += 1;
                step.longest_us = step.longest_us.max(now - arrived);
                seen.answers += 1;
                seen.sum_us += now - begun;
            }
            Event::Tick => {
                limiter.step(now / 1_000, Seen { in_flight, ..std::mem::take(&mut seen) });
                step.limit = limiter.limit();
                steps.push(std::mem::take(&mut step));
                events.push(Reverse((now + STEP_US, Event::Tick)));
            }
        }
        while in_flight < limiter.limit() {
            let Some((arrived, in_time)) = queue.next(now) else { break };
            if in_time.is_ok() {
                in_flight += 1;
                backlog.push_back((arrived, now));
            }
        }
        while !model.frozen && working < model.slots && !backlog.is_empty() {
            let (arrived, begun) = backlog.pop_front().unwrap();
            let took = if model.random { exponential(model.service_us) } else { model.service_us };
            working += 1;
            events.push(Reverse((now + took, Event::Done { arrived, begun })));
        }
    }
    steps
}

/// Of a span of seconds, by the capacity: all of it, and the worst half second.
fn goodput(steps: &[Step], from_s: f64, to_s: f64, model: Model) -> (f64, f64) {
    let capacity = model.slots as f64 * STEP_US as f64 / model.service_us as f64;
    let part = &steps[(from_s * 10.0) as usize..(to_s * 10.0) as usize];
    let of = |part: &[Step]| {
        part.iter().map(|it| it.answers).sum::<u64>() as f64 / (capacity * part.len() as f64)
    };
    (of(part), part.windows(5).map(of).fold(f64::MAX, f64::min))
}

/// Five times what it can do.
fn model(slots: usize, service_us: u64, random: bool) -> Model {
    let arrivals_per_s = 5 * slots as u64 * 1_000_000 / service_us;
    let (frozen, body_us, held) = (false, 0, false);
    Model { slots, service_us, random, arrivals_per_s, frozen, body_us, held }
}

#[test]
fn under_five_times_the_load_nearly_all_of_the_capacity_is_used_and_nobody_waits_for_long() {
    for (slots, service_us) in [(4, 20_000), (8, 50_000), (64, 50_000), (64, 5_000), (400, 100_000)]
    {
        for (random, seed) in [(false, 1), (true, 2), (true, 3)] {
            let model = model(slots, service_us, random);
            let steps = run(&[(0, model)], 60, seed);
            let what = format!("{slots} of {service_us} us, random {random}");
            let (all, worst) = goodput(&steps, 10.0, 60.0, model);
            assert!(all >= 0.95, "{what}: {all:.3} of the capacity");
            // Few places and service times by chance vary by themselves.
            let least = if random { 0.75 } else { 0.85 };
            assert!(worst >= least || random && slots < 64, "{what}: a dip to {worst:.3}");
            let limit = steps[100..].iter().map(|it| it.limit).max().unwrap();
            assert!(f64::from(limit) <= 2.5 * slots as f64 + 8.0, "{what}: {limit} at once");
        }
    }
}

#[test]
fn it_never_takes_its_own_queue_for_normal() {
    let model = model(64, 50_000, true);
    let steps = run(&[(0, model)], 600, 9);
    let mean =
        |part: &[Step]| part.iter().map(|it| f64::from(it.limit)).sum::<f64>() / part.len() as f64;
    let (early, late) = (mean(&steps[100..600]), mean(&steps[5_400..6_000]));
    assert!(late < 1.15 * early, "{early:.0} in the first minute, {late:.0} in the tenth");
}

#[test]
fn a_capacity_that_halves_is_followed_whichever_way_it_does() {
    let whole = model(64, 50_000, false);
    for half in [Model { slots: 32, ..whole }, Model { service_us: 100_000, ..whole }] {
        let steps = run(&[(0, whole), (20, half), (40, whole)], 60, 4);
        let (all, worst) = goodput(&steps, 23.0, 40.0, half);
        assert!(
            all >= 0.95 && worst >= 0.85,
            "{} of {}: {all} {worst}",
            half.slots,
            half.service_us
        );
        assert!(steps[230..400].iter().all(|it| it.limit <= half.slots as u32 * 2));
        let (all, worst) = goodput(&steps, 43.0, 60.0, whole);
        assert!(all >= 0.95 && worst >= 0.85, "back from {}: {all} {worst}", half.slots);
    }
}

#[test]
fn after_two_seconds_of_standing_still_it_is_as_before_within_one() {
    let whole = model(64, 50_000, false);
    let frozen = Model { frozen: true, ..whole };
    let steps = run(&[(0, whole), (10, frozen), (12, whole)], 20, 5);
    let (before, after) = (steps[99].limit, steps[125].limit);
    assert!(f64::from(after) > 0.7 * f64::from(before), "{before} before, {after} after");
    let (all, _) = goodput(&steps, 13.0, 20.0, whole);
    assert!(all >= 0.95, "{all}");
}

#[test]
fn what_is_not_asked_for_more_is_left_as_it_is_and_one_that_refuses_gets_less() {
    let mut limiter = Limiter::new(0);
    for step in 1..100 {
        let seen = Seen { answers: 50, sum_us: 500_000, in_flight: 5, ..Seen::default() };
        limiter.step(step * 100, seen);
    }
    assert_eq!(limiter.limit(), LIMIT_FIRST);
    for step in 100..140 {
        let seen =
            Seen { answers: 50, sum_us: 500_000, dropped: 50, full: true, ..Seen::default() };
        limiter.step(step * 100, seen);
    }
    assert!(limiter.limit() < LIMIT_FIRST / 2, "{}", limiter.limit());
}

/// Downloads and event streams: what is found by how long heads take is held for as long.
#[test]
fn long_bodies_take_no_places() {
    let free = Model { body_us: 60_000_000, ..model(64, 50_000, true) };
    let (all, _) = goodput(&run(&[(0, free)], 40, 7), 10.0, 40.0, free);
    assert!(all >= 0.95, "{all:.3} of the capacity");
    // Held till their ends they would be all that there is.
    let steps = run(&[(0, Model { held: true, ..free })], 40, 7);
    assert!(steps[10..].iter().all(|it| it.answers == 0 && it.limit == LIMIT_FIRST));
}

/// Between answers that take long there is silence; nobody stands still for that.
#[test]
fn who_takes_long_for_each_is_not_left_with_the_first_limit() {
    let model = model(100, 10_000_000, true);
    let steps = run(&[(0, model)], 400, 8);
    let (all, _) = goodput(&steps, 300.0, 400.0, model);
    // The first one is a fifth.
    assert!(all >= 0.5, "{all:.3} of the capacity, {} at once", steps[3_990].limit);
}

#[test]
fn one_that_answers_nothing_and_refuses_all_gets_less() {
    let mut limiter = Limiter::new(0);
    let mut now_ms = 0;
    let mut step = |limiter: &mut Limiter, seen: Seen| {
        now_ms += 100;
        limiter.step(now_ms, seen);
    };
    for _ in 0..10 {
        step(&mut limiter, Seen { answers: 50, sum_us: 500_000, ..Seen::default() });
    }
    let (base_us, first) = (limiter.base_us(), limiter.limit());
    // Refused at once, or given up after a while, also so few that a window takes its time.
    for (dropped, in_flight, steps) in [(50, 0, 10), (5, 20, 100), (1, 20, 200)] {
        let before = limiter.limit();
        for _ in 0..steps {
            step(&mut limiter, Seen { dropped, in_flight, full: true, ..Seen::default() });
        }
        assert!(limiter.limit() < before, "{dropped} each time: {} of {before}", limiter.limit());
    }
    assert_eq!(limiter.base_us(), base_us, "of latency nothing was learned");
    for _ in 0..200 {
        let seen = Seen { answers: 50, sum_us: 500_000, full: true, ..Seen::default() };
        step(&mut limiter, seen);
    }
    assert!(limiter.limit() > first, "{} when it is well again", limiter.limit());
}
