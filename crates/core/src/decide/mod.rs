//! Decisions: pure functions of what is known and the instant. Each answers with one verdict.
//!
//! The controllers are a plain list, [`CONTROLLERS`]; the agent asks each of them each time.

#[cfg(test)]
mod bed;
pub mod campaign;
pub mod leader;
pub mod node;
pub(crate) mod put_back;
pub mod rejoin;
pub mod replace;
pub mod rot;
pub mod slow;
pub mod upkeep;

use crate::durable::Durable;
use crate::ids::{Epoch, Time};
use crate::postgres::PgAction;
use crate::term::Term;
use crate::view::{CampaignRecord, Cause, LeaseRecord, Rejoin, View};
use serde::{Deserialize, Serialize};

/// What a controller says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing to do.
    Steady,
    /// Something is to be waited for.
    Hold {
        rule: String,
        why: String,
        unblocks: String,
        operator: bool,
        /// When it is over, or another thing is decided, whatever becomes of it till then.
        #[serde(default)]
        until: Option<Time>,
    },
    Act {
        rule: String,
        why: String,
        actions: Vec<Action>,
    },
}

/// A change of the outside, with everything it needs in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Write the node's record and fsync it.
    Persist {
        durable: Box<Durable>,
        intent: Intent,
    },
    Pg {
        action: PgAction,
    },
    Store {
        write: Box<Write>,
    },
    /// Ask the PostgreSQL of the leader itself whether it answers.
    Probe {
        node: String,
    },
    /// Forget the campaign: it ended, here or elsewhere.
    EndCampaign,
    /// Begin sealing all nodes of a campaign that first sealed the leader.
    SummonAll,
    /// Let the node wanted stream what it lacks.
    FastForward {
        order: crate::status::FastForward,
    },
    /// Ask for a switchover, as the operator would.
    HandOver {
        to: Option<String>,
    },
    /// The operator's wish can't be fulfilled, or is.
    EndWish {
        refused: Option<String>,
    },
    /// Tell the minder until when PostgreSQL may run without news.
    Mind {
        epoch: Epoch,
        until: Time,
        k: u32,
        members: Vec<String>,
    },
}

/// What a new record of the node is written for, as far as memory must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    Plain,
    Promote(Epoch),
    Rejoin(Rejoin),
}

/// A guarded write to the store. Its guards are made in `store_txn`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    /// `epoch` := the campaign's, `campaign` := it. Guards: both unchanged, and the term whose leader
    /// is to be replaced, so that nobody campaigns against a leader it has not heard of yet.
    Open {
        epoch_rev: u64,
        campaign_rev: u64,
        term_rev: u64,
        record: CampaignRecord,
        cause: Cause,
    },
    /// Guards: the epoch is still the campaign's, the term still the one whose sets were covered.
    Publish {
        term: Term,
        term_rev: u64,
        guarded: bool,
    },
    /// A change of the leader's own term. Guard: the term.
    Lead {
        term: Term,
        term_rev: u64,
    },
    /// The running leader takes a higher epoch. Guards: the term, the epoch, which only rises, and
    /// the campaign, so that none is ended whose epoch was read and whose record was not yet.
    Regrant {
        term: Term,
        term_rev: u64,
        epoch_rev: u64,
        #[serde(default)]
        campaign_rev: u64,
    },
    /// Nothing is written: that it is done proves that the term was still this one after it was
    /// asked for.
    Confirm {
        term_rev: u64,
    },
    Renew {
        record: CampaignRecord,
        campaign_rev: u64,
    },
    GiveUp {
        campaign_rev: u64,
    },
    Lease {
        record: LeaseRecord,
        term_rev: u64,
    },
}

/// The names of all rules, in order: what a verdict can say, and what the simulator must have seen.
pub const RULES: [&str; 66] = [
    "bad-pages",
    "barrier",
    "bootstrap",
    "branch-learned",
    "campaign",
    "campaign-ended",
    "catch-up",
    "caught-up",
    "clone",
    "cover",
    "fast-forward",
    "follow",
    "force",
    "foreign-cluster",
    "frozen",
    "late-report",
    "leader-down",
    "leader-missed",
    "leader-replaced",
    "look",
    "make-way",
    "never-opened",
    "no-cover",
    "no-standby",
    "nobody-may-lead",
    "observe",
    "open",
    "park",
    "pre-vote",
    "promote",
    "publish",
    "put-back",
    "rank",
    "re-clone",
    "re-grant",
    "re-grant-kept",
    "redundancy",
    "rejoin",
    "rejoin-stop",
    "remains",
    "repair",
    "restart",
    "restore",
    "rewind",
    "rival",
    "seal",
    "seal-leader",
    "sealed",
    "set-change",
    "slow",
    "slow-leader",
    "spread",
    "stalled",
    "start",
    "starting",
    "store-gone",
    "store-lost",
    "store-unread",
    "superseded",
    "switchover",
    "switchover-refused",
    "unreadable-record",
    "upkeep",
    "wish-ended",
    "witness",
    "wrong-branch",
];

/// A controller: its name and its decision.
pub type Controller = (&'static str, fn(&View, Time) -> Verdict);

/// All of them, in the order they are asked.
pub const CONTROLLERS: [Controller; 4] = [
    ("node", node::decide),
    ("leader", leader::decide),
    ("campaign", campaign::decide),
    ("upkeep", upkeep::decide),
];

impl Verdict {
    pub fn hold(rule: &str, why: impl Into<String>, unblocks: impl Into<String>) -> Verdict {
        Verdict::Hold {
            rule: rule.to_string(),
            why: why.into(),
            unblocks: unblocks.into(),
            operator: false,
            until: None,
        }
    }

    /// A hold that only a person ends.
    pub fn hold_for_operator(
        rule: &str,
        why: impl Into<String>,
        unblocks: impl Into<String>,
    ) -> Verdict {
        Verdict::Hold {
            rule: rule.to_string(),
            why: why.into(),
            unblocks: unblocks.into(),
            operator: true,
            until: None,
        }
    }

    /// A hold that is judged anew at that instant, if it is yet to come.
    #[must_use]
    pub fn until(mut self, at: Time, now: Time) -> Verdict {
        if let Verdict::Hold { until, .. } = &mut self {
            *until = (at > now).then_some(at);
        }
        self
    }

    /// The same hold for another reason.
    #[must_use]
    pub fn because(mut self, reason: impl FnOnce(&str) -> String) -> Verdict {
        if let Verdict::Hold { why, .. } = &mut self {
            *why = reason(why);
        }
        self
    }

    pub fn act(rule: &str, why: impl Into<String>, action: Action) -> Verdict {
        Verdict::Act { rule: rule.to_string(), why: why.into(), actions: vec![action] }
    }

    pub fn pg(rule: &str, why: impl Into<String>, action: PgAction) -> Verdict {
        Verdict::act(rule, why, Action::Pg { action })
    }

    pub fn persist(
        rule: &str,
        why: impl Into<String>,
        durable: Durable,
        intent: Intent,
    ) -> Verdict {
        Verdict::act(rule, why, Action::Persist { durable: Box::new(durable), intent })
    }

    pub fn store(rule: &str, why: impl Into<String>, write: Write) -> Verdict {
        Verdict::act(rule, why, Action::Store { write: Box::new(write) })
    }

    pub fn rule(&self) -> &str {
        match self {
            Verdict::Steady => "steady",
            Verdict::Hold { rule, .. } | Verdict::Act { rule, .. } => rule,
        }
    }
}

impl Action {
    /// The key under which its failures are counted.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Persist { .. } => "persist",
            Action::Pg { action } => pg_name(action),
            Action::Store { .. } => "store",
            Action::Probe { .. } => "probe",
            Action::EndCampaign => "end-campaign",
            Action::SummonAll => "summon-all",
            Action::FastForward { .. } => "fast-forward",
            Action::HandOver { .. } => "hand-over",
            Action::EndWish { .. } => "end-wish",
            Action::Mind { .. } => "mind",
        }
    }
}

/// The name of a step on the local server.
pub fn pg_name(action: &PgAction) -> &'static str {
    match action {
        PgAction::Bootstrap => "bootstrap",
        PgAction::Stop { .. } => "stop",
        PgAction::Start { .. } => "start",
        PgAction::SetSource { .. } => "set-source",
        PgAction::Park => "park",
        PgAction::Trim { .. } => "trim",
        PgAction::Promote { .. } => "promote",
        PgAction::SetSync { .. } => "set-sync",
        PgAction::Barrier { .. } => "barrier",
        PgAction::Evidence => "evidence",
        PgAction::Checkpoint => "checkpoint",
        PgAction::Slots { .. } => "slots",
        PgAction::Rewind { .. } => "rewind",
        PgAction::Clone { .. } => "clone",
        PgAction::PutBack { .. } => "put-back",
        PgAction::Observe => "observe",
    }
}

/// Waits for the next try of an action that failed; `None`: try now.
pub(crate) fn backing_off(view: &View, now: Time, action: &str, rule: &str) -> Option<Verdict> {
    let (at, failure) = view.retry_at(action, now)?;
    let why = format!("{action} failed {} times: {}", failure.times, failure.text);
    Some(Verdict::hold(rule, why, "the next try").until(at, now))
}
