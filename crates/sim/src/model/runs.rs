//! The named runs: the protocol as it is (A, B, C), and the protocol with a rule broken (N), which
//! must be found. Letters and numbers are those of section 4 of the failover protocol where it has
//! them.

use super::plan::{Bounds, Expect, Plan, Switch, Switches};
use Expect::{Safe, Violation};

/// Three nodes, k = 1, failover alone.
const N3: Bounds = Bounds {
    nodes: 3,
    standbys: 2,
    first_k: 1,
    k: 1,
    epochs: 3,
    records: 2,
    crashes: 2,
    cuts: 0,
    changes: 0,
    wipes: 0,
};
/// Four nodes, k = 2.
const N4: Bounds = Bounds { nodes: 4, standbys: 3, first_k: 2, k: 2, crashes: 0, ..N3 };
/// A re-grant of a term that isn't open, and what may follow it.
const REGRANT: Bounds = Bounds { epochs: 5, records: 1, crashes: 0, ..N3 };
/// With a change of the set.
const CHANGE: Bounds = Bounds { crashes: 1, changes: 1, ..N3 };
const CHANGE4: Bounds = Bounds { nodes: 4, standbys: 3, first_k: 2, k: 2, ..CHANGE };
/// Beginning with a leader alone.
const ALONE: Bounds = Bounds { standbys: 0, first_k: 0, ..CHANGE };
/// Deep: four epochs, three records.
const DEEP: Bounds = Bounds { epochs: 4, records: 3, crashes: 0, ..N3 };
const CUT: Bounds = Bounds { first_k: 2, cuts: 1, crashes: 0, changes: 1, ..N3 };

fn plan(
    name: &'static str,
    about: &'static str,
    expect: Expect,
    bounds: Bounds,
    switches: &[Switch],
) -> Plan {
    Plan { name, about, bounds, switches: Switches::of(switches), expect }
}

/// The protocol to its full bounds.
#[rustfmt::skip]
pub fn protocol() -> Vec<Plan> {
    use Switch::*;
    vec![
        plan("A1", "failover", Safe, Bounds { records: 3, crashes: 1, ..N3 }, &[]),
        plan("A2", "failover, 4 epochs", Safe, Bounds { epochs: 4, crashes: 1, ..N3 }, &[]),
        plan("A3", "failover, k 2", Safe, Bounds { k: 2, first_k: 2, ..N3 }, &[]),
        plan("A4", "failover, 4 nodes, k 2", Safe, N4, &[]),
        plan("A5", "failover, 4 nodes, k 1", Safe, Bounds { k: 1, first_k: 1, ..N4 }, &[]),
        plan("A6", "seal in two steps", Safe, Bounds { crashes: 1, ..N3 }, &[TwoStepSeal]),
        plan("A7", "fast-forward", Safe, Bounds { crashes: 1, ..N3 }, &[FastForward]),
        plan("A8", "re-grants, 5 epochs", Safe, REGRANT, &[]),
        plan("B1", "a change, also to alone", Safe, CHANGE, &[Alone]),
        plan("B2", "changes and a wipe", Safe,
            Bounds { wipes: 1, crashes: 0, cuts: 1, records: 1, changes: 2, ..CHANGE }, &[]),
        plan("B3", "grow from one standby", Safe, Bounds { standbys: 1, ..CHANGE }, &[]),
        plan("B4", "grow from alone", Safe, ALONE, &[Alone]),
        plan("B5", "any change, 4 nodes, k 2", Safe,
            Bounds { epochs: 2, ..CHANGE4 }, &[AnyChange, Alone]),
        plan("B6", "two changes, any", Safe,
            Bounds { changes: 2, epochs: 2, ..CHANGE }, &[AnyChange, Alone]),
        plan("B7", "any change, k 2", Safe,
            Bounds { k: 2, first_k: 2, crashes: 0, ..CHANGE }, &[AnyChange, Alone]),
        plan("C1", "two rises of k from alone", Safe,
            Bounds { changes: 2, epochs: 2, ..ALONE }, &[AnyChange, Alone]),
        plan("C2", "alone and back and alone and back", Safe,
            Bounds { changes: 3, epochs: 2, crashes: 0, ..ALONE }, &[Alone]),
        plan("C3", "re-grant from an old reading of the epoch", Safe,
            Bounds { crashes: 1, ..N3 }, &[RegrantFromOldEpoch]),
        plan("C4", "changes that begin anew", Safe,
            Bounds { changes: 3, epochs: 2, crashes: 0, ..CHANGE },
            &[AnyChange, Alone, ChangeAnew]),
        plan("C5", "changes that begin anew, 4 nodes", Safe,
            Bounds { first_k: 1, changes: 2, epochs: 2, records: 1, crashes: 0, ..CHANGE4 },
            &[AnyChange, ChangeAnew]),
        plan("N8b", "as N8, changes guarded by the epoch", Safe,
            CHANGE, &[SetsReadAtOpen, ChangesGuardEpoch]),
        plan("N9c", "as N9b, one member or k at a time", Safe,
            Bounds { epochs: 2, crashes: 0, ..CHANGE4 }, &[JointList, ChangeOfK, KeepK]),
        plan("N12b", "only removed rows observed, k stays", Safe, CHANGE, &[OnlyRemovedObserved]),
        plan("N15b", "as N15, but the promise rises on follow", Safe,
            CUT, &[NoHistoryCheck, SameIncarnation]),
        plan("N15c", "as N15, but a new incarnation on rewind", Safe,
            CUT, &[NoRaiseOnFollow, RewindBeforeOpen]),
        plan("Q9", "reads from open on", Safe, Bounds { records: 2, ..DEEP }, &[ReadsFromOpen]),
    ]
}

/// The same within smaller bounds, for every day.
#[rustfmt::skip]
pub fn quick() -> Vec<Plan> {
    use Switch::*;
    let small = Bounds { records: 1, ..CHANGE };
    let calm = Bounds { crashes: 0, ..small };
    let short = Bounds { epochs: 2, ..small };
    let cut = Bounds { records: 1, ..CUT };
    vec![
        plan("a1", "failover", Safe, Bounds { crashes: 1, ..N3 }, &[]),
        plan("a2", "failover, 3 records", Safe, Bounds { records: 3, crashes: 0, ..N3 }, &[]),
        plan("a3", "failover, k 2", Safe, Bounds { records: 1, k: 2, first_k: 2, ..N3 }, &[]),
        plan("a4", "failover, 4 nodes, k 2", Safe, Bounds { records: 1, ..N4 }, &[]),
        plan("a6", "seal in two steps", Safe, Bounds { records: 1, ..N3 }, &[TwoStepSeal]),
        plan("a7", "fast-forward", Safe, Bounds { crashes: 0, ..N3 }, &[FastForward]),
        plan("a8", "re-grants, 5 epochs", Safe, REGRANT, &[]),
        plan("b1", "a change, also to alone", Safe, calm, &[Alone]),
        plan("b2", "changes and a wipe", Safe,
            Bounds { wipes: 1, crashes: 0, cuts: 1, changes: 2, ..short }, &[]),
        plan("b4", "grow from alone", Safe, Bounds { standbys: 0, first_k: 0, ..calm }, &[Alone]),
        plan("b5", "any change, 4 nodes, k 2", Safe,
            Bounds { nodes: 4, standbys: 3, first_k: 2, k: 2, crashes: 0, ..short },
            &[AnyChange, Alone]),
        plan("b6", "two changes, any", Safe, Bounds { changes: 2, ..short }, &[AnyChange, Alone]),
        plan("b7", "any change, k 2", Safe, Bounds { first_k: 2, k: 2, ..calm },
            &[AnyChange, Alone]),
        plan("c1", "two rises of k from alone", Safe,
            Bounds { changes: 2, standbys: 0, first_k: 0, ..short }, &[AnyChange, Alone]),
        plan("c4", "changes that begin anew", Safe,
            Bounds { changes: 3, crashes: 0, ..short }, &[AnyChange, Alone, ChangeAnew]),
        plan("c3", "re-grant from an old reading of the epoch", Safe,
            Bounds { records: 1, crashes: 1, ..N3 }, &[RegrantFromOldEpoch]),
        plan("n8b", "as N8, changes guarded by the epoch", Safe, calm,
            &[SetsReadAtOpen, ChangesGuardEpoch]),
        plan("n9c", "as N9b, one member or k at a time", Safe,
            Bounds { nodes: 4, standbys: 3, first_k: 2, k: 2, crashes: 0, ..short },
            &[JointList, ChangeOfK, KeepK]),
        plan("n12b", "only removed rows observed, k stays", Safe, calm, &[OnlyRemovedObserved]),
        plan("n15b", "as N15, but the promise rises on follow", Safe, cut,
            &[NoHistoryCheck, SameIncarnation]),
        plan("n15c", "as N15, but a new incarnation on rewind", Safe, cut,
            &[NoRaiseOnFollow, RewindBeforeOpen]),
    ]
}

/// Negative controls: each breaks one rule and must be found.
#[rustfmt::skip]
pub fn negative() -> Vec<Plan> {
    use Switch::*;
    vec![
        plan("N1", "cover off by one", Violation, N3, &[CoverOffByOne]),
        plan("N1b", "cover off by one, 4 nodes, k 2", Violation, N4, &[CoverOffByOne]),
        plan("N2", "no seal, no promise at promotion", Violation, N3, &[NoSeal, PromoteAnyway]),
        plan("N3", "promise not durable", Violation, N3, &[VolatilePromise]),
        plan("N4", "report before the receiver stopped", Violation, N3, &[EarlyReport]),
        plan("N5", "old sets dropped at publish", Violation, N3, &[PublishDropsOldSets]),
        plan("N6", "old sets dropped at promote", Violation, N3, &[PromoteDropsOldSets]),
        plan("N6b", "old sets dropped at re-grant", Violation, REGRANT, &[RegrantDropsOldSets]),
        plan("N7", "publish not guarded by the epoch", Violation, N3, &[PublishUnguarded]),
        plan("N8", "sets read at open", Violation,
            Bounds { crashes: 0, ..CHANGE }, &[SetsReadAtOpen]),
        plan("N9", "change: store first, new set only", Violation, CHANGE, &[StoreOnly]),
        plan("N9b", "change: both sets instead of the envelope", Violation,
            Bounds { k: 2, first_k: 2, ..CHANGE }, &[JointList, AnyChange]),
        plan("N10", "change: names first", Violation,
            Bounds { standbys: 1, ..CHANGE }, &[NamesOnly]),
        plan("N12", "walsenders not observed", Violation, CHANGE, &[NothingObserved]),
        plan("N12c", "only removed rows observed, k rises", Violation,
            Bounds { first_k: 1, epochs: 2, crashes: 0, ..CHANGE4 },
            &[OnlyRemovedObserved, ChangeOfK]),
        plan("N12d", "only kept rows observed", Violation, CHANGE, &[OnlyMembersObserved]),
        plan("N13", "flush by the new set not awaited", Violation, CHANGE, &[NoFlush]),
        plan("N14", "a wiped node keeps its membership", Violation,
            Bounds { wipes: 1, ..N3 }, &[SameIncarnation]),
        plan("N14b", "application_name without incarnation", Violation,
            Bounds { wipes: 1, crashes: 0, ..CHANGE },
            &[NameWithoutIncarnation, JoinsBeforeStreaming, SwapInOneStep]),
        plan("N14c", "new incarnation swapped for the old", Violation,
            Bounds { wipes: 1, crashes: 0, cuts: 1, ..CHANGE },
            &[SwapInOneStep]),
        plan("N15", "rewind towards an older leader", Violation, CUT,
            &[NoHistoryCheck, SameIncarnation, NoRaiseOnFollow]),
        plan("N16", "follow a term below the promise", Violation, N3, &[FollowBelowPromise]),
        plan("N17", "choose by position only", Violation,
            Bounds { records: 3, ..N3 }, &[ChooseByLsn]),
        plan("N18", "choose by followed timeline", Violation,
            Bounds { records: 3, ..N3 }, &[ChooseByTimeline]),
        plan("N19", "two walsenders of one standby", Violation,
            Bounds { cuts: 1, ..N4 }, &[SecondWalsender]),
        plan("N20", "open without a record of the branch", Violation,
            Bounds { records: 1, ..DEEP }, &[NoBarrier, ReadsFromOpen]),
        plan("N20b", "reads before the open", Violation,
            Bounds { records: 1, ..DEEP }, &[ReadsBeforeOpen]),
        plan("N21", "leader sealed while running", Violation, N3, &[RunningLeaderSealed]),
        plan("N22", "checkpointer not proven", Violation, ALONE, &[CheckpointerUnproven]),
        plan("N22b", "flush place read before the proof", Violation,
            Bounds { crashes: 0, ..ALONE }, &[FlushPlaceBeforeProof]),
        plan("N22c", "an old proof of the checkpointer counts", Violation,
            Bounds { changes: 3, epochs: 2, records: 1, crashes: 0, ..ALONE }, &[OldProof, Alone]),
        plan("N23", "branches by timeline number only", Violation, N3, &[TimelineNumbersOnly]),
        plan("N24", "promote although sealed later", Violation, N3, &[PromoteAnyway]),
        plan("N25", "k rises twice, the first rise still visible", Violation,
            Bounds { changes: 2, epochs: 2, crashes: 0, ..ALONE }, &[AnyChange, RaiseUnfinished]),
        plan("N26", "fast-forward doesn't record the line", Violation,
            Bounds { epochs: 4, crashes: 0, ..N3 }, &[FastForward, FastForwardKeepsLine]),
    ]
}

/// Beyond the protocol's own bounds: minutes each.
#[rustfmt::skip]
pub fn deep() -> Vec<Plan> {
    use Switch::*;
    vec![
        plan("D1", "failover, 4 nodes, k 2, a crash", Safe, Bounds { crashes: 1, ..N4 }, &[]),
        plan("D2", "failover, 4 epochs, 3 records", Safe, DEEP, &[]),
        plan("D3", "any change, 4 nodes, k 2, 3 epochs", Safe,
            Bounds { records: 1, crashes: 0, ..CHANGE4 }, &[AnyChange, Alone]),
        plan("D4", "reads from open on, 4 epochs, 3 records", Safe, DEEP, &[ReadsFromOpen]),
    ]
}
