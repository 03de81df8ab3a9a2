//! A whole cluster from one seed: the agents' own code, driven by simulated PostgreSQL, store,
//! network, disks and clocks, with faults at random moments and invariants at each step.

mod clients;
mod declared;
pub mod faults;
mod invariants;
pub mod model;
mod network;
mod queue;
mod random;
mod replication;
mod restores;
mod rot;
mod scripts;
mod server;
mod steps;
mod store;
mod wal;
mod world;

use everhold_core::view::Guard;
use std::collections::BTreeMap;
pub use world::Options;

/// What came of a seed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub seed: u64,
    /// The first invariant that did not hold, and when.
    pub violation: Option<String>,
    pub faults: usize,
    pub acknowledged: u64,
    pub campaigns: u64,
    pub events: u64,
    /// Acknowledged records that an operator gave up by force.
    pub lost_by_force: u64,
    /// Milliseconds without an acknowledgement after a fault that stood alone, by its kind.
    pub outages: Vec<(&'static str, u64)>,
    /// Rules of decisions, and how often each became the verdict.
    pub fired: BTreeMap<String, u64>,
}

/// Runs one seed to its end or to the first violation.
pub fn run(options: Options) -> Outcome {
    let seed = options.seed;
    let mut world = world::World::new(options);
    world.run();
    if world.ghost.violation.is_none()
        && let Some(why) = world.unhealthy()
    {
        let state = world.describe();
        world.violated(format!("not healthy at the end: {why}{state}"));
    }
    if let Err(what) = world.store.check_memory() {
        world.violated(what);
    }
    world.tally();
    Outcome {
        seed,
        violation: world.ghost.violation.take(),
        faults: world.plan.faults.len(),
        acknowledged: world.clients.acked,
        campaigns: world.ghost.campaigns,
        events: world.events,
        lost_by_force: world.ghost.lost,
        outages: std::mem::take(&mut world.clients.outages),
        fired: std::mem::take(&mut world.ghost.fired),
    }
}

/// Every guard, so that a run without each can be made.
pub const GUARDS: [Guard; 23] = [
    Guard::Cover,
    Guard::DurablePromise,
    Guard::ParkedReport,
    Guard::OldSetsStay,
    Guard::PublishGuard,
    Guard::PromoteGuard,
    Guard::FollowGuard,
    Guard::HistoryCheck,
    Guard::Incarnation,
    Guard::Envelope,
    Guard::Observed,
    Guard::Flushed,
    Guard::Checkpointed,
    Guard::OneWalsender,
    Guard::Barrier,
    Guard::StoppedLeader,
    Guard::HistoryOrder,
    Guard::PreVote,
    Guard::Regrant,
    Guard::GoneLeaves,
    Guard::RestoreFence,
    Guard::SoundLeads,
    Guard::NeededStays,
];
