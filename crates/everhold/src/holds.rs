//! What one service of this node waits for, as the agent tells it: each with its entry of the journal.

use crate::clock;
use crate::journal::Journal;
use crate::link::Hold;
use everhold_core::agent::Agent;
use everhold_core::decide::Verdict;
use everhold_core::ids::Time;
use everhold_core::journal::Event;
use std::collections::BTreeMap;

/// What was noted of each controller's hold.
#[derive(Default)]
pub struct Notes {
    of: BTreeMap<String, Note>,
}

struct Note {
    journal: String,
    /// Instants of the agent's clock, and what people read for them. Written once: the two clocks
    /// drift, and what didn't change must not look as if it had.
    since: (Time, String),
    until: Option<(Time, String)>,
}

impl Notes {
    /// Hands an entry over, and keeps its id if it is about a hold.
    pub fn journaled(&mut self, journal: &Journal, service: &str, event: Event) {
        let held = match &event {
            Event::Decided(decision) => {
                decision.since.map(|since| (decision.controller.clone(), since))
            }
            Event::Released { .. } | Event::Ended { .. } | Event::Asked { .. } => None,
            Event::Noted { .. } => None,
        };
        let id = journal.append(service, event);
        let Some((controller, since)) = held else { return };
        let known = self.of.remove(&controller).filter(|note| note.since.0 == since);
        let note = match known {
            Some(note) => Note { journal: id, ..note },
            None => Note { journal: id, since: (since, clock::wall_at(since)), until: None },
        };
        self.of.insert(controller, note);
    }

    /// All that is waited for now.
    pub fn holds(&mut self, service: &str, agent: &Agent) -> Vec<Hold> {
        let told = agent.holds().filter_map(|(controller, held)| {
            let Verdict::Hold { rule, why, unblocks, operator, until } = &held.verdict else {
                return None;
            };
            let note = self.of.get_mut(controller).filter(|note| note.since.0 == held.since)?;
            if note.until.as_ref().map(|(at, _)| *at) != *until {
                note.until = until.map(|at| (at, clock::wall_at(at)));
            }
            Some(Hold {
                service: Some(service.to_string()),
                rule: rule.clone(),
                why: why.clone(),
                unblocks: unblocks.clone(),
                operator: *operator,
                since: note.since.1.clone(),
                recheck_at: note.until.as_ref().map(|(_, text)| text.clone()),
                journal: Some(note.journal.clone()),
            })
        });
        told.collect()
    }
}
