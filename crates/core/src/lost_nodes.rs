//! Which nodes are lost: others run their instances of HTTP services until they are back.
//!
//! A node is lost when its agent was not heard for [`SILENT_MS`] while most nodes were, and no gateway
//! finds an instance there that is well: an agent that is dead takes nothing with it. It is back when
//! it was heard for [`HEARD_MS`] without a break, and runs its instances again; those that stand in for
//! them go once gateways find its own well. A node that was never heard since the spec names it is lost
//! as well: whoever wants three instances doesn't care on which machine nobody began yet.
//!
//! Whoever looks may have been frozen or cut off, and hears nobody then. Silence counts only from when
//! it looked without a break and heard most nodes.

use crate::ids::Time;
use std::collections::BTreeMap;
use std::fmt;

/// Far above what a new start of Everhold, or of a small machine, takes; people who wait for the
/// instance call it soon.
pub const SILENT_MS: u64 = 30_000;
/// A node that is heard for a while and goes again would move instances to and fro. Between two
/// changes of one node there is at least so much.
pub const HEARD_MS: u64 = 60_000;
/// A word so late is a break; agents of the largest cluster speak twice a second.
pub const BREAK_MS: u64 = 5_000;

/// A node as it is seen now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// When its agent was heard last.
    pub heard: Option<Time>,
    pub is: Is,
    pub found: Found,
    /// An instance of it that is not known to be well, in words: what those that stand in wait for.
    pub unready: Option<String>,
}

/// What the spec says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    Here,
    Lost,
    /// Its instances run, and beside them those that stood in.
    Back,
}

/// What gateways find of the instances that are placed on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There are none, or no gateway that tells finds one of them well.
    Nothing,
    /// A gateway finds one that answers.
    Well { instance: String, gateway: String },
    /// Nobody has looked, as far as is known.
    Unknown,
}

/// What is to become of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What it is.
    Stay,
    /// From now on it is lost.
    Lose,
    /// It is back, beside those that stand in for it.
    Return,
    /// Nobody stands in for it any more.
    Settle,
    /// It is not heard, and is not given up; or others stand in for it still.
    Hold(Why),
}

/// Why a node that isn't heard is not lost, or why others still stand in for one that is back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    CutOff,
    Serves { instance: String, gateway: String },
    NobodyLooks,
    TooMany,
    Unready(String),
}

impl fmt::Display for Why {
    /// What follows the name of the node.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let silent = "is not heard, and its instances stay with it";
        match self {
            Why::CutOff => write!(f, "{silent}: most nodes were not heard either"),
            Why::Serves { instance, gateway } => {
                write!(f, "{silent}: {instance} answers there, as the gateway {gateway} finds")
            }
            Why::NobodyLooks => {
                write!(f, "{silent}: no gateway tells whether instances answer there")
            }
            Why::TooMany => write!(f, "{silent}: only a minority of the nodes may be lost"),
            Why::Unready(what) => {
                write!(f, "is back, and others still stand in for its instances: {what}")
            }
        }
    }
}

impl Why {
    /// What ends it.
    pub fn unblocks(&self) -> &'static str {
        match self {
            Why::CutOff => "its agent is heard, or most nodes are for 30 s",
            Why::Serves { .. } | Why::NobodyLooks => {
                "its agent is heard, or all gateways that tell find none of its instances well"
            }
            Why::TooMany => "its agent is heard, another node is back, or a lost one is removed",
            Why::Unready(_) => "all gateways that tell find its instances well, or it is drained",
        }
    }
}

/// What whoever judges remembers between two looks. It begins with nothing.
#[derive(Debug, Default)]
pub struct Watch {
    /// Since when it looks without a break.
    begun: Time,
    looked: Option<Time>,
    /// Since when it hears most nodes.
    most: Time,
    nodes: BTreeMap<String, Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Since when there is such a node.
    named: Time,
    lost: bool,
    /// Since when it is heard without a break.
    heard: Option<Time>,
    /// When it came back.
    back: Option<Time>,
}

impl Watch {
    /// Judges all nodes of the spec. To be asked each second or so.
    pub fn look(&mut self, nodes: &BTreeMap<String, Node>, now: Time) -> BTreeMap<String, Verdict> {
        self.learn(nodes, now);
        let mut verdicts: BTreeMap<String, Verdict> =
            nodes.iter().map(|(name, node)| (name.clone(), self.of(name, node, now))).collect();
        let is = |name: &String, verdict: Verdict| verdicts.get(name) == Some(&verdict);
        let stays_lost =
            |(name, node): &(&String, &Node)| node.is == Is::Lost && !is(name, Verdict::Return);
        let lost = nodes.iter().filter(stays_lost).count();
        let room = (nodes.len().saturating_sub(1) / 2).saturating_sub(lost);
        // Who is silent for longest first.
        let goes = nodes.iter().filter(|(name, _)| is(name, Verdict::Lose));
        let mut goes: Vec<_> = goes.map(|(name, node)| (node.heard, name)).collect();
        goes.sort();
        let too_many = goes.into_iter().skip(room).map(|(_, name)| name.clone());
        for name in too_many.collect::<Vec<_>>() {
            verdicts.insert(name, Verdict::Hold(Why::TooMany));
        }
        verdicts
    }

    fn learn(&mut self, nodes: &BTreeMap<String, Node>, now: Time) {
        if self.looked.is_none_or(|at| now.since(at) > BREAK_MS) {
            *self = Watch { begun: now, most: now, ..Watch::default() };
        }
        self.looked = Some(now);
        let hears = |node: &Node| node.heard.is_some_and(|at| now.since(at) <= BREAK_MS);
        if nodes.values().filter(|node| hears(node)).count() * 2 <= nodes.len() {
            self.most = now;
        }
        self.nodes.retain(|name, _| nodes.contains_key(name));
        for (name, node) in nodes {
            let known = self.nodes.entry(name.clone());
            let known = known.or_insert_with(|| Known { named: now, ..Known::default() });
            known.heard = hears(node).then(|| known.heard.unwrap_or(now));
            let lost = node.is == Is::Lost;
            if known.lost && !lost {
                known.back = Some(now);
            }
            known.lost = lost;
        }
    }

    fn of(&self, name: &str, node: &Node, now: Time) -> Verdict {
        let Some(known) = self.nodes.get(name) else { return Verdict::Stay };
        let for_ms = |since: Option<Time>, ms: u64| since.is_some_and(|at| now.since(at) >= ms);
        let stay = match (node.is, &node.unready) {
            (Is::Lost, _) if for_ms(known.heard, HEARD_MS) => return Verdict::Return,
            (Is::Lost, _) => return Verdict::Stay,
            (Is::Back, None) => return Verdict::Settle,
            (Is::Back, Some(what)) => Verdict::Hold(Why::Unready(what.clone())),
            (Is::Here, _) => Verdict::Stay,
        };
        let last = node.heard.unwrap_or_default().max(self.begun).max(known.named);
        let fresh = known.back.is_some() && !for_ms(known.back, HEARD_MS);
        if !for_ms(Some(last), SILENT_MS) || fresh {
            return stay;
        }
        if !for_ms(Some(last.max(self.most)), SILENT_MS) {
            return Verdict::Hold(Why::CutOff);
        }
        match &node.found {
            Found::Nothing => Verdict::Lose,
            Found::Well { instance, gateway } => {
                let (instance, gateway) = (instance.clone(), gateway.clone());
                Verdict::Hold(Why::Serves { instance, gateway })
            }
            Found::Unknown => Verdict::Hold(Why::NobodyLooks),
        }
    }
}

#[cfg(test)]
mod tests;
