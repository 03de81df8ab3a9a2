//! An entry of the journal: what was decided, from which facts, by which rule, before anything
//! happened; then its outcome.

use crate::decide::{CONTROLLERS, Verdict};
use crate::ids::{Epoch, Time};
use crate::view::View;
use serde::{Deserialize, Serialize};

/// The version of the rules: `explain` says so when an entry was decided by others.
pub const RULES: u32 = 3;

/// A decision with all it was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Which of [`CONTROLLERS`] decided.
    pub controller: String,
    pub rules: u32,
    pub epoch: Epoch,
    /// On the clock of the node.
    pub now: Time,
    /// Of a hold: since when it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    pub verdict: Verdict,
    pub view: Box<View>,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    Decided(Decision),
    /// How an action of a decision ended.
    Ended {
        action: String,
        ok: bool,
        text: String,
    },
    /// A hold that was journaled is over.
    Released {
        controller: String,
        rule: String,
        held_ms: u64,
    },
    /// An operator's act.
    Asked {
        who: String,
        what: String,
    },
    /// Something the agent itself went through: a start, a stop.
    Noted {
        text: String,
    },
}

impl Decision {
    /// Decides again from the recorded facts. Equal, or the entry was tampered with or made by other
    /// rules.
    pub fn replay(&self) -> Option<Verdict> {
        let (_, decide) = CONTROLLERS.iter().find(|(name, _)| *name == self.controller)?;
        Some(decide(&self.view, self.now))
    }
}
