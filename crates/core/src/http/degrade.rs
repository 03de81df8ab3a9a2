//! How a route is served while something behind it, or the gateway itself, is not well.
//!
//! Each mode has a rule: what has to be wrong, for how long until it is on, and for how long all has to
//! be well until it is off again. A mode may hide what brought it about: while nobody asks a service, its
//! queue is empty. So one that is back soon after it had gone stays for twice as long each time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longer than most of what passes by itself.
pub const ENTER_MS: u64 = 1_000;
/// What has just come back may go again.
pub const LEAVE_MS: u64 = 10_000;
/// So many times as long as its rule says, a mode that comes again and again stays at most.
const LEAVE_TIMES_MAX: u64 = 16;
/// An answer that is older than this beyond its time is none.
pub const STALE_MS_MAX: u64 = 86_400_000;

/// In the order in which they are looked at: the first that has something to say to a request says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// What is kept is given, also where its time is over.
    Stale,
    /// One answer for all.
    Static,
    /// Its requests are refused, so that those of other routes are served.
    Shed,
    /// Requests that may change something are refused.
    ReadOnly,
}

impl Mode {
    pub const ALL: [Mode; 4] = [Mode::Stale, Mode::Static, Mode::Shed, Mode::ReadOnly];

    pub fn word(self) -> &'static str {
        match self {
            Mode::Stale => "stale",
            Mode::Static => "static",
            Mode::Shed => "shed",
            Mode::ReadOnly => "read_only",
        }
    }
}

/// What may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The service's breaker is open.
    Breaker,
    /// No instance of the service is healthy.
    Down,
    /// So many wait for the service, or the route, that some wait all the time or are turned away.
    Queue,
    /// The gateway has too little processor time.
    Cpu,
}

impl Cause {
    pub const ALL: [Cause; 4] = [Cause::Breaker, Cause::Down, Cause::Queue, Cause::Cpu];

    pub fn word(self) -> &'static str {
        match self {
            Cause::Breaker => "breaker",
            Cause::Down => "down",
            Cause::Queue => "queue",
            Cause::Cpu => "cpu",
        }
    }

    /// What is wrong, to whoever asks.
    pub fn says(self) -> &'static str {
        match self {
            Cause::Breaker => "the service's breaker is open",
            Cause::Down => "no instance of the service is healthy",
            Cause::Queue => "too many wait for the service",
            Cause::Cpu => "the gateway is short of cpu",
        }
    }
}

/// When a mode is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Any of these.
    pub when: Vec<Cause>,
    /// For so long.
    pub enter_ms: u64,
    /// Until none of them has been for so long.
    pub leave_ms: u64,
}

/// The answer of [`Mode::Static`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub status: u16,
    pub content_type: String,
    pub body: String,
}

/// The modes of a route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    pub modes: BTreeMap<Mode, Rule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<Page>,
}

/// What becomes of a request that is about to go on to an instance.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<'s> {
    GoesOn,
    Page(&'s Page),
    Refused(Mode, Cause),
}

impl Degraded {
    /// `is_safe`: it changes nothing, by its method. A page of success would tell others that it was done.
    pub fn judge(&self, on: On, is_safe: bool) -> Verdict<'_> {
        for mode in Mode::ALL {
            let Some(cause) = on.cause(mode) else { continue };
            match (mode, &self.page) {
                (Mode::Stale, _) => {}
                (Mode::Static, Some(page)) if is_safe || page.status >= 400 => {
                    return Verdict::Page(page);
                }
                (Mode::ReadOnly, _) if is_safe => {}
                (Mode::Static | Mode::Shed | Mode::ReadOnly, _) => {
                    return Verdict::Refused(mode, cause);
                }
            }
        }
        Verdict::GoesOn
    }

    /// Who is refused by that mode may come back after so long: it is not over before.
    pub fn again_after_s(&self, mode: Mode) -> u64 {
        self.modes.get(&mode).map_or(1, |rule| rule.leave_ms.div_ceil(1_000).max(1))
    }
}

/// The modes of a route that are on, and what for: a byte each, so that it fits into a word that all
/// threads see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct On([u8; Mode::ALL.len()]);

impl On {
    pub fn of(word: u32) -> On {
        On(word.to_le_bytes())
    }

    pub fn to_word(self) -> u32 {
        u32::from_le_bytes(self.0)
    }

    /// Why it is on; `None`: it isn't.
    pub fn cause(self, mode: Mode) -> Option<Cause> {
        usize::from(self.0[mode as usize]).checked_sub(1).and_then(|at| Cause::ALL.get(at)).copied()
    }

    pub fn set(&mut self, mode: Mode, cause: Option<Cause>) {
        self.0[mode as usize] = cause.map_or(0, |cause| cause as u8 + 1);
    }
}

/// Watches over one mode of one route.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    state: State,
    /// How long it stays from the time on when all is well.
    leave_ms: u64,
    left_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Off,
    /// Something is wrong since then.
    Ill {
        since_ms: u64,
    },
    On {
        since_ms: u64,
        well_since_ms: Option<u64>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Entered(Cause),
    Left,
}

impl Watch {
    /// Since when it is on.
    pub fn since_ms(&self) -> Option<u64> {
        match self.state {
            State::Off | State::Ill { .. } => None,
            State::On { since_ms, .. } => Some(since_ms),
        }
    }

    /// `wrong`: whether that is so, as of now.
    pub fn step(
        &mut self,
        now_ms: u64,
        rule: &Rule,
        wrong: impl Fn(Cause) -> bool,
    ) -> Option<Change> {
        let cause = rule.when.iter().copied().find(|cause| wrong(*cause));
        match (self.state, cause) {
            (State::Off, None) => {}
            (State::Ill { .. }, None) => self.state = State::Off,
            (State::Off, Some(cause)) if rule.enter_ms == 0 => {
                return Some(self.enter(now_ms, rule, cause));
            }
            (State::Off, Some(_)) => self.state = State::Ill { since_ms: now_ms },
            (State::Ill { since_ms }, Some(cause)) => {
                if now_ms.saturating_sub(since_ms) >= rule.enter_ms {
                    return Some(self.enter(now_ms, rule, cause));
                }
            }
            (State::On { since_ms, .. }, Some(_)) => {
                self.state = State::On { since_ms, well_since_ms: None };
            }
            (State::On { since_ms, well_since_ms }, None) => {
                let well_since = well_since_ms.unwrap_or(now_ms);
                self.state = State::On { since_ms, well_since_ms: Some(well_since) };
                if now_ms.saturating_sub(well_since) >= self.leave_ms {
                    (self.state, self.left_ms) = (State::Off, Some(now_ms));
                    return Some(Change::Left);
                }
            }
        }
        None
    }

    fn enter(&mut self, now_ms: u64, rule: &Rule, cause: Cause) -> Change {
        let for_ms = self.left_ms.map(|left_ms| now_ms.saturating_sub(left_ms));
        let most = rule.leave_ms.saturating_mul(LEAVE_TIMES_MAX);
        self.leave_ms = match for_ms.is_some_and(|it| it <= self.leave_ms + rule.enter_ms) {
            true => self.leave_ms.saturating_mul(2).min(most),
            false => rule.leave_ms,
        };
        self.state = State::On { since_ms: now_ms, well_since_ms: None };
        Change::Entered(cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(when: &[Cause]) -> Rule {
        Rule { when: when.to_vec(), enter_ms: 1_000, leave_ms: 5_000 }
    }

    /// Looks each 100 ms. Words, each from its `MS:` on: what is wrong, `-` for nothing. What came of it:
    /// `CAUSE at MS` and `off at MS`.
    fn check(script: &str, expected: &str) {
        let rule = rule(&[Cause::Breaker, Cause::Queue]);
        let parts: Vec<(u64, Vec<&str>)> = script
            .split(';')
            .map(|part| {
                let (ms, words) = part.split_once(':').unwrap();
                (ms.trim().parse().unwrap(), words.split_whitespace().collect())
            })
            .collect();
        let end_ms = parts.last().unwrap().0;
        let (mut watch, mut told) = (Watch::default(), Vec::new());
        for now_ms in (0..=end_ms).step_by(100) {
            let (_, words) = parts.iter().rev().find(|(from_ms, _)| *from_ms <= now_ms).unwrap();
            let change = watch.step(now_ms, &rule, |cause| words.contains(&cause.word()));
            match change {
                None => {}
                Some(Change::Entered(cause)) => told.push(format!("{} at {now_ms}", cause.word())),
                Some(Change::Left) => told.push(format!("off at {now_ms}")),
            }
            let on = told.last().is_some_and(|it| !it.starts_with("off"));
            assert_eq!(watch.since_ms().is_some(), on, "{script}");
        }
        assert_eq!(told.join(", "), expected, "{script}");
    }

    #[test]
    fn a_mode_comes_after_a_while_and_goes_after_another() {
        check("0: -; 60000: -", "");
        check("0: breaker; 900: -; 60000: -", "");
        check("0: breaker; 1100: -; 60000: -", "breaker at 1000, off at 6100");
        // What is wrong may change meanwhile.
        check("0: breaker; 500: queue; 1100: -; 60000: -", "queue at 1000, off at 6100");
        check("0: breaker; 2000: queue; 60000: -; 65000: -", "breaker at 1000, off at 65000");
        // What is not in its rule is not its own.
        check("0: cpu down; 60000: -", "");
        // All of the time, before and after.
        check("0: queue; 900: -; 1000: queue; 1900: -; 9000: -", "");
        check("0: queue; 1100: -; 6000: queue; 6100: -; 20000: -", "queue at 1000, off at 11100");
    }

    #[test]
    fn what_comes_again_soon_stays_for_longer() {
        let ill = |from_ms: u64| format!("{from_ms}: queue; {}: -;", from_ms + 1_100);
        check(
            &format!("0: -; {} {} {} 99000: -", ill(0), ill(6_200), ill(17_400)),
            "queue at 1000, off at 6100, queue at 7200, off at 17300, queue at 18400, off at 38500",
        );
        // And no longer than it was away.
        check(
            &format!("0: -; {} {} {} 99000: -", ill(0), ill(6_200), ill(40_000)),
            "queue at 1000, off at 6100, queue at 7200, off at 17300, queue at 41000, off at 46100",
        );
        let mut watch = Watch::default();
        let mut now_ms = 0;
        for _ in 0..20 {
            while watch.since_ms().is_none() {
                watch.step(now_ms, &rule(&[Cause::Queue]), |_| true);
                now_ms += 100;
            }
            while watch.since_ms().is_some() {
                watch.step(now_ms, &rule(&[Cause::Queue]), |_| false);
                now_ms += 100;
            }
        }
        assert_eq!(watch.leave_ms, 5_000 * LEAVE_TIMES_MAX);
    }

    #[test]
    fn the_first_mode_that_has_something_to_say_says_it() {
        let page = |status| Page { status, content_type: "text/plain".into(), body: "x".into() };
        let on = |modes: &[Mode]| {
            let mut on = On::default();
            modes.iter().for_each(|mode| on.set(*mode, Some(Cause::Queue)));
            On::of(on.to_word())
        };
        use Mode::{ReadOnly, Shed, Stale, Static};
        let (fine, sorry) = (page(200), page(503));
        let refused = |mode| Verdict::Refused(mode, Cause::Queue);
        #[rustfmt::skip]
        let cases: [(&[Mode], &Page, bool, Verdict<'_>); 11] = [
            // Modes that are on, the page, whether the request is safe, what becomes of it.
            (&[],                   &fine,  false, Verdict::GoesOn),
            (&[Stale],              &fine,  false, Verdict::GoesOn),
            (&[ReadOnly],           &fine,  true,  Verdict::GoesOn),
            (&[ReadOnly],           &fine,  false, refused(ReadOnly)),
            (&[Stale, ReadOnly],    &fine,  false, refused(ReadOnly)),
            (&[Shed],               &fine,  true,  refused(Shed)),
            (&[Shed, ReadOnly],     &fine,  false, refused(Shed)),
            (&[Static, Shed],       &fine,  true,  Verdict::Page(&fine)),
            (&[Static],             &fine,  false, refused(Static)),
            (&[Static],             &sorry, false, Verdict::Page(&sorry)),
            (&[Static, ReadOnly],   &sorry, true,  Verdict::Page(&sorry)),
        ];
        for (modes, page, is_safe, expected) in cases {
            let spec = Degraded { modes: BTreeMap::new(), page: Some(page.clone()) };
            assert_eq!(spec.judge(on(modes), is_safe), expected, "{modes:?} {page:?} {is_safe}");
        }
        for (cause, mode) in Cause::ALL.into_iter().zip(Mode::ALL) {
            let mut on = On::default();
            on.set(mode, Some(cause));
            assert_eq!(
                Mode::ALL.map(|it| on.cause(it)),
                Mode::ALL.map(|it| (it == mode).then_some(cause))
            );
        }
    }
}
