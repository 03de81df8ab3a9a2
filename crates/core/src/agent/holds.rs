//! What the controllers wait for: since when, and what the journal is told of it.
//!
//! A wait is journaled with its facts once it has stood for a moment, again when its reason becomes
//! another, and when it ends. What is told of it is what the journal has.

use super::{Agent, Command};
use crate::decide::Verdict;
use crate::ids::Time;
use crate::journal::Event;
use crate::policy;

/// A wait of one controller.
#[derive(Clone, Debug)]
pub struct Held {
    /// A hold, as it was decided last.
    pub verdict: Verdict,
    pub since: Time,
    /// Since when its reason is this one.
    stands: Time,
    /// Of the journal's entry: the reason, and whether it needs a person.
    noted: Option<(String, bool)>,
}

impl Agent {
    /// The waits that the journal knows of, by controller.
    pub fn holds(&self) -> impl Iterator<Item = (&'static str, &Held)> {
        self.holds.iter().filter(|(_, held)| held.noted.is_some()).map(|(name, held)| (*name, held))
    }

    /// Takes in what a controller says now. `routine`: what it does beside needs no entry, and ends
    /// no wait.
    pub(super) fn note_hold(
        &mut self,
        now: Time,
        controller: &'static str,
        verdict: &Verdict,
        routine: bool,
        out: &mut Vec<Command>,
    ) {
        let (rule, why, operator) = match verdict {
            Verdict::Hold { rule, why, operator, .. } => (rule, why, *operator),
            Verdict::Act { .. } if routine => return,
            Verdict::Act { .. } | Verdict::Steady => return self.release(now, controller, out),
        };
        if self.holds.get(controller).is_some_and(|held| held.verdict.rule() != rule.as_str()) {
            self.release(now, controller, out);
        }
        let anew = || Held { verdict: verdict.clone(), since: now, stands: now, noted: None };
        let held = self.holds.entry(controller).or_insert_with(anew);
        if held.reason() != Some((why, operator)) {
            held.stands = now;
        }
        if held.verdict != *verdict {
            held.verdict = verdict.clone();
        }
        let told = held.noted.as_ref().map(|(why, operator)| (why, *operator));
        if !self.journals || told == Some((why, operator)) {
            return;
        }
        if now.since(held.stands) >= policy::HOLD_MS {
            held.noted = Some((why.clone(), operator));
            let since = Some(held.since);
            out.push(self.decided(now, controller, verdict, since));
        }
    }

    fn release(&mut self, now: Time, controller: &'static str, out: &mut Vec<Command>) {
        let Some(held) = self.holds.remove(controller) else { return };
        if held.noted.is_some() {
            let event = Event::Released {
                controller: controller.to_string(),
                rule: held.verdict.rule().to_string(),
                held_ms: now.since(held.since),
            };
            out.push(Command::Journal { event: Box::new(event) });
        }
    }
}

impl Held {
    fn reason(&self) -> Option<(&String, bool)> {
        match &self.verdict {
            Verdict::Hold { why, operator, .. } => Some((why, *operator)),
            Verdict::Steady | Verdict::Act { .. } => None,
        }
    }
}
