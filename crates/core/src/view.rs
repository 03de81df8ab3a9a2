//! All that the agent of one node knows about one PostgreSQL service: what decisions are made from,
//! and what the journal keeps of them.

use crate::detector::Detector;
use crate::durable::Durable;
use crate::ids::{Epoch, Lsn, Member, Time, Tli};
use crate::minder::Right;
use crate::policy::{self, Policy};
use crate::postgres::{BadPages, PgFacts, Process, Restored, Walsender};
use crate::status::{FastForward, Status, Summons};
use crate::term::{Branch, Report, Reports, Term};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A record of the store with its revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<T> {
    pub value: T,
    pub rev: u64,
    /// When this node first saw this revision.
    pub seen: Time,
}

/// Who campaigns, for which epoch. `beat` rises with each renewal, so that others see life in it
/// without trusting a clock of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CampaignRecord {
    pub epoch: Epoch,
    pub owner: String,
    pub beat: u64,
}

/// The leader's lease: renewed under guard of its term. Others wait for it to stand still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    pub epoch: Epoch,
    pub beat: u64,
}

/// The service's records as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreView {
    /// The store answered lately: writing makes sense.
    pub reachable: bool,
    /// Everything was read at least once.
    pub read: bool,
    pub epoch: Option<Record<Epoch>>,
    pub term: Option<Record<Term>>,
    pub campaign: Option<Record<CampaignRecord>>,
    pub lease: Option<Record<LeaseRecord>>,
    pub maintenance: bool,
    /// A record that this version can't read, and why. Nothing is decided over it.
    pub unreadable: Option<String>,
}

impl StoreView {
    /// The newest revision among the records.
    pub fn newest_rev(&self) -> u64 {
        let revs = [
            self.epoch.as_ref().map(|record| record.rev),
            self.term.as_ref().map(|record| record.rev),
            self.campaign.as_ref().map(|record| record.rev),
            self.lease.as_ref().map(|record| record.rev),
        ];
        revs.into_iter().flatten().max().unwrap_or_default()
    }
}

/// What is known of another node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    pub status: Option<Arc<Status>>,
    pub detector: Detector,
}

/// The last time the leader's PostgreSQL was asked directly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Which term's leader was asked.
    pub epoch: Epoch,
    pub asked: Option<Time>,
    pub failed: Option<Time>,
    pub answered: Option<Time>,
}

/// Why a campaign was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    LeaderFell,
    LeaderMissed,
    LeaderReplaced,
    NeverOpened,
    Switchover {
        to: Option<String>,
    },
    /// The operator accepts the loss of what the named sets alone may hold.
    Force {
        to: Option<String>,
    },
    /// The operator puts this node on an older state of the service and has the others follow: what
    /// was written since is given up.
    Restore {
        restored: Restored,
        /// Also if not everybody who may acknowledge can be reached: their leases are waited for.
        #[serde(default)]
        force: bool,
    },
}

/// A campaign of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Campaign {
    pub epoch: Epoch,
    pub cause: Cause,
    pub opened: Time,
    pub covered: Option<Time>,
    /// The revision of the term whose sets were last seen covered.
    #[serde(default)]
    pub fenced: Option<u64>,
    pub renewed: Time,
    pub beat: u64,
    pub summons: Summons,
    pub reports: Reports,
    pub fast_forward: Option<FastForward>,
}

/// What a leader remembers beside its records. Lost with the agent, and then found again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leading {
    /// The epoch whose barrier was acknowledged.
    pub barrier: Option<Epoch>,
    /// All walsenders were seen with these names, and the flush position was then this.
    pub observed: Option<(String, Lsn)>,
    /// A checkpoint that began after a session showed these names has ended: the checkpointer
    /// knows them too.
    pub checkpointed: Option<String>,
    /// When this agent first saw its server lead: no standby was missed before.
    #[serde(default)]
    pub began: Option<Time>,
    /// When each standby, by slot, was last seen to flush something, or to lack nothing.
    pub streamed: BTreeMap<String, Time>,
    /// Up to where it had flushed then. A row outlives its standby, but it does not move.
    #[serde(default)]
    pub flushed: BTreeMap<String, Lsn>,
    /// The newest record: written at, ending at.
    pub evidence: Option<(Time, Lsn)>,
    /// Since when each record took long to reach the leader's own disk.
    #[serde(default)]
    pub slow: Option<Time>,
    /// The newest record on that disk: ending at, there since.
    #[serde(default)]
    pub landed: Option<(Lsn, Time)>,
    /// By slot, the newest record a standby was seen to have: ending at, so much later.
    #[serde(default)]
    pub follows: BTreeMap<String, (Lsn, u64)>,
    /// When it last asked for a successor because it is slow.
    #[serde(default)]
    pub handed: Option<Time>,
    /// Those that were flushed here and prove nothing yet, oldest first.
    #[serde(default)]
    pub records: Vec<(Time, Lsn)>,
    /// The newest instant at which k acknowledgements were surely possible.
    pub proven: Option<Time>,
    /// The lease counts from here: before its last renewal was sent.
    pub leased: Option<Time>,
    pub lease_beat: u64,
    /// What the minder was told last.
    #[serde(default)]
    pub minded: Option<Right>,
}

/// How the operator's last request stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    pub cause: Cause,
    /// Of the term when it was asked: a later one ends the wish.
    pub epoch: Epoch,
    pub since: Time,
}

/// How to make the data directory good again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejoin {
    Rewind { fork: Lsn },
    Clone { fork: Option<Lsn> },
}

/// Failures of one action in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub times: u32,
    pub last: Time,
    pub text: String,
}

/// A rule of the protocol that a test can take away, to see that something else notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guard {
    /// n − k + 1 sealed members, not one less.
    Cover,
    /// The promise is on disk before anything else of the seal.
    DurablePromise,
    /// A report only after the proof that nothing is received any more.
    ParkedReport,
    /// A publish adds to the sets in force.
    OldSetsStay,
    /// A publish is guarded by epoch and revision of the term.
    PublishGuard,
    /// Only a node whose promise is the term's epoch promotes.
    PromoteGuard,
    /// Never follow a term below the promise.
    FollowGuard,
    /// Never follow a history that isn't one's own.
    HistoryCheck,
    /// A new incarnation before the first destructive byte.
    Incarnation,
    /// The envelope is recorded before the setting moves.
    Envelope,
    /// All walsenders are seen with the new setting before a change ends.
    Observed,
    /// k of the new set hold everything before a change ends.
    Flushed,
    /// A checkpoint proves that the checkpointer knows the names after having been alone.
    Checkpointed,
    /// A lingering second connection doesn't count.
    OneWalsender,
    /// The barrier is acknowledged before clients come.
    Barrier,
    /// A leader is sealed only when its PostgreSQL has stopped.
    StoppedLeader,
    /// Histories compare by epoch of the last record, then position.
    HistoryOrder,
    /// A campaign needs a covering set of nodes that miss the leader.
    PreVote,
    /// A healthy leader takes a higher epoch when followers were sealed above it.
    Regrant,
    /// A standby that is gone leaves the set.
    GoneLeaves,
    /// Nothing restored is put back before every set in force is covered.
    RestoreFence,
    /// A copy with bad pages leads only if nobody else can.
    SoundLeads,
    /// A copy with bad pages is replaced only where no set in force names it.
    NeededStays,
}

/// Everything, for one service on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct View {
    pub me: String,
    pub host: String,
    pub port: u16,
    pub policy: Policy,
    pub durable: Durable,
    pub pg: PgFacts,
    /// When a query was last answered, or the process was last seen not running.
    pub pg_alive: Time,
    /// Proven quiet: end of its history and timeline.
    pub parked: Option<(Lsn, Tli)>,
    /// The line whose foreign history files were removed since the server last had a source.
    pub trimmed: Option<Vec<Branch>>,
    /// The epoch this process is promoting for. After a restart of the agent it isn't repeated.
    pub promoting: Option<Epoch>,
    /// When the slots of a standby were last made and advanced.
    pub slots_kept: Option<Time>,
    /// The highest timeline its server was ever seen on by this agent. One that went astray stays taken
    /// when the server is stopped for it.
    #[serde(default)]
    pub seen_tli: Tli,
    /// It was promoted to something else than was published: it must not lead.
    pub misbranched: bool,
    pub rejoin: Option<Rejoin>,
    /// The restored directory that this process put in place.
    #[serde(default)]
    pub put_back: Option<String>,
    /// This standby was asked to start anew. Forgotten with the server, done or not.
    #[serde(default)]
    pub restart: bool,
    /// What the scrubber found, in whatever incarnation.
    #[serde(default)]
    pub rot: Option<BadPages>,
    /// The term of this revision was still the newest after this node had parked to be copied.
    #[serde(default)]
    pub confirmed: Option<u64>,
    pub store: StoreView,
    pub peers: BTreeMap<String, Peer>,
    pub probe: Probe,
    pub campaign: Option<Campaign>,
    /// Since when there has been a reason to campaign.
    pub reason: Option<(Cause, Time)>,
    /// A campaign that found no cover: not before this.
    pub campaign_pause: Option<Time>,
    pub leading: Leading,
    pub wish: Option<Wish>,
    pub failures: BTreeMap<String, Failure>,
    /// When this agent began, or last woke from being frozen itself.
    pub awake: Time,
    pub without: Option<Guard>,
}

impl View {
    /// True unless a test has taken the rule away.
    pub fn has(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    pub fn member(&self) -> Member {
        self.durable.member(&self.me)
    }

    pub fn term(&self) -> Option<&Term> {
        self.store.term.as_ref().map(|record| &record.value)
    }

    /// The term, if this node in this incarnation leads it.
    pub fn my_term(&self) -> Option<&Term> {
        self.term().filter(|term| self.is_me(&term.leader))
    }

    /// It is this node in this incarnation.
    pub fn is_me(&self, member: &Member) -> bool {
        member.node == self.me && member.incarnation == self.durable.incarnation
    }

    /// The term, if this node leads it and was granted it: what a leader acts on.
    pub fn led_term(&self) -> Option<&Term> {
        self.my_term().filter(|term| {
            self.durable.promise == term.epoch
                && self.durable.grant.is_some_and(|grant| grant.epoch == term.epoch)
                && self.is_primary()
        })
    }

    pub fn is_primary(&self) -> bool {
        self.pg.process == Process::Running && self.pg.in_recovery == Some(false)
    }

    pub fn is_standby(&self) -> bool {
        self.pg.process == Process::Running && self.pg.in_recovery == Some(true)
    }

    /// The bad pages of this node's present data, if there are any.
    pub fn bad_pages(&self) -> Option<&BadPages> {
        self.rot.as_ref().filter(|bad| bad.incarnation == self.durable.incarnation && bad.pages > 0)
    }

    /// The copy is known to have bad pages, by the last word of its own agent.
    pub fn is_rotten(&self, member: &Member) -> bool {
        if self.is_me(member) {
            return self.bad_pages().is_some();
        }
        let told = self.peers.get(&member.node).and_then(|peer| peer.status.as_deref());
        told.is_some_and(|status| status.member == *member && status.bad_pages > 0)
    }

    /// Whom a leader may hand over to: allowed to lead, and its pages are as they were written.
    pub fn may_take_over(&self, member: &Member) -> bool {
        let fit = self.policy.preferences.get(&member.node).is_none_or(|p| p.failover);
        fit && !(self.is_rotten(member) && self.has(Guard::SoundLeads))
    }

    /// The newest status of a node heard from lately.
    pub fn fresh(&self, node: &str, now: Time) -> Option<&Status> {
        let peer = self.peers.get(node)?;
        let heard = peer.detector.last()?;
        (now.since(heard) <= policy::FRESH_MS).then_some(peer.status.as_deref()).flatten()
    }

    /// The status of the term's leader, if it is fresh and of the same incarnation.
    pub fn leader_status(&self, now: Time) -> Option<&Status> {
        let term = self.term()?;
        self.fresh(&term.leader.node, now).filter(|status| status.member == term.leader)
    }

    /// This node's place in history, if it is sealed. `None`: something could still arrive.
    pub fn report(&self) -> Option<Report> {
        let stopped = self.is_standby() || !self.has(Guard::StoppedLeader);
        let quiet = self.pg.source.is_none() || !self.has(Guard::ParkedReport);
        let (end, _) = match self.parked {
            Some(parked) => parked,
            None if self.is_standby() && !self.has(Guard::ParkedReport) => {
                (self.pg.lsn, self.pg.tli)
            }
            None if self.is_primary() && !self.has(Guard::StoppedLeader) => {
                (self.pg.lsn, self.pg.tli)
            }
            None => return None,
        };
        if !stopped || !quiet || self.durable.data != crate::durable::Data::Ok {
            return None;
        }
        // On a branch that the record doesn't know, its last record would be told wrongly.
        if self.unknown_branch().is_some() {
            return None;
        }
        Some(Report {
            member: self.member(),
            epoch: self.durable.promise,
            sysid: self.durable.sysid?,
            last: self.durable.last_record(end)?,
            end,
        })
    }

    /// The timeline it is parked on, if the node's own record doesn't name it: it streamed on
    /// through a promotion of its source.
    pub fn unknown_branch(&self) -> Option<Tli> {
        let (_, tli) = self.parked?;
        (!self.durable.line.iter().any(|branch| branch.tli == tli)).then_some(tli)
    }

    /// The highest epoch anybody is known to have promised or opened.
    pub fn highest_promise(&self) -> Epoch {
        let told = self.peers.values().filter_map(|p| p.status.as_ref()).map(|s| s.promise);
        told.chain([self.durable.promise]).max().unwrap_or(0)
    }

    /// The highest timeline anybody of this cluster is known to be on, published or not.
    pub fn highest_timeline(&self) -> Tli {
        let told = self.peers.values().filter_map(|p| p.status.as_ref());
        let same = told.filter(|status| status.sysid == self.durable.sysid);
        same.map(|s| s.tli.max(s.seen_tli)).max().unwrap_or(0).max(self.seen_tli)
    }

    pub fn store_epoch(&self) -> Epoch {
        self.store.epoch.as_ref().map_or(0, |record| record.value)
    }

    /// A campaign that somebody else runs and whose record still moves.
    pub fn rival(&self, now: Time) -> Option<&CampaignRecord> {
        let record = self.store.campaign.as_ref()?;
        let alive = now.since(record.seen) < policy::CAMPAIGN_TTL_MS;
        (alive && record.value.owner != self.me).then_some(&record.value)
    }

    /// The row of a member that acknowledges for it: streaming, and not a lingering second one.
    pub fn walsender(&self, member: &Member) -> Option<&Walsender> {
        self.pg.walsenders.iter().find(|row| {
            row.streaming
                && (row.owns_slot || !self.has(Guard::OneWalsender))
                && member.has_slot(&row.name)
        })
    }

    /// When the action may be tried again after failures; `None`: now.
    pub fn retry_at(&self, action: &str, now: Time) -> Option<(Time, &Failure)> {
        let failure = self.failures.get(action)?;
        let wait = policy::RETRY_MS << failure.times.saturating_sub(1).min(10);
        let at = failure.last.plus(wait.min(policy::RETRY_MS_MAX));
        (at > now).then_some((at, failure))
    }

    /// Nodes of the service other than this one.
    pub fn others(&self) -> impl Iterator<Item = &str> {
        self.policy.nodes.iter().map(String::as_str).filter(|node| *node != self.me)
    }
}
