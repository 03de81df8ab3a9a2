//! What one run of the check explores: its bounds, what may happen in it, which rules are broken.

/// How far a run goes. Everything within the bounds is explored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// 3 or 4.
    pub nodes: usize,
    /// Members of the first synchronous set: nodes 1 to this.
    pub standbys: usize,
    /// k of the first set.
    pub first_k: u8,
    /// k that campaigns want.
    pub k: u8,
    /// The highest epoch.
    pub epochs: u8,
    /// A primary writes while its log is shorter.
    pub records: u8,
    pub crashes: u8,
    pub cuts: u8,
    pub changes: u8,
    pub wipes: u8,
}

/// A departure from the plain protocol: something more that may happen, or a rule not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    // What may happen.
    /// The promise and the report of a seal are two steps.
    TwoStepSeal,
    /// A sealed node streams from a better one and reports again.
    FastForward,
    /// The last member may leave: the leader acknowledges alone.
    Alone,
    /// k may change by itself.
    ChangeOfK,
    /// From any set and k to any other in one change.
    AnyChange,
    /// A change under way may begin anew, when a member that it waits for isn't wanted any more.
    ChangeAnew,
    /// Changes that shrink the set don't lower k.
    KeepK,
    /// The leader's changes are also guarded by the store's epoch.
    ChangesGuardEpoch,
    /// A re-grant is computed from an old reading of the epoch.
    RegrantFromOldEpoch,
    /// A rewind doesn't wait for the term to be open.
    RewindBeforeOpen,
    /// Records count as acknowledged once they were readable on an open leader.
    ReadsFromOpen,

    // Rules not kept.
    CoverOffByOne,
    NoSeal,
    VolatilePromise,
    EarlyReport,
    PublishDropsOldSets,
    PromoteDropsOldSets,
    RegrantDropsOldSets,
    PublishUnguarded,
    SetsReadAtOpen,
    StoreOnly,
    NamesOnly,
    JointList,
    NothingObserved,
    OnlyRemovedObserved,
    OnlyMembersObserved,
    NoFlush,
    CheckpointerUnproven,
    /// The place to be flushed up to is read before the checkpointer is proven.
    FlushPlaceBeforeProof,
    /// A proof of the checkpointer by the same names counts again after other names.
    OldProof,
    /// k rises again before all walsenders left the form of the last rise.
    RaiseUnfinished,
    SameIncarnation,
    NameWithoutIncarnation,
    JoinsBeforeStreaming,
    SwapInOneStep,
    NoHistoryCheck,
    NoRaiseOnFollow,
    FollowBelowPromise,
    ChooseByLsn,
    ChooseByTimeline,
    SecondWalsender,
    NoBarrier,
    ReadsBeforeOpen,
    RunningLeaderSealed,
    PromoteAnyway,
    TimelineNumbersOnly,
    /// A fast-forward doesn't record whose branches it received.
    FastForwardKeepsLine,
}

/// A set of switches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches(u64);

impl Switches {
    pub fn of(list: &[Switch]) -> Self {
        Switches(list.iter().fold(0, |all, switch| all | 1 << *switch as u64))
    }

    pub fn has(self, switch: Switch) -> bool {
        self.0 >> switch as u64 & 1 == 1
    }
}

/// What is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Safe,
    /// A negative control: a check that doesn't fail here is worth nothing.
    Violation,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// As in section 4 of the failover protocol.
    pub name: &'static str,
    pub about: &'static str,
    pub bounds: Bounds,
    pub switches: Switches,
    pub expect: Expect,
}

impl Plan {
    pub fn has(&self, switch: Switch) -> bool {
        self.switches.has(switch)
    }

    /// What a node recorded of branches beyond its last record matters to a broken rule.
    pub fn keeps_lines(&self) -> bool {
        self.has(Switch::ChooseByTimeline)
            || self.has(Switch::TimelineNumbersOnly)
            || self.has(Switch::FastForwardKeepsLine)
    }
}
