//! An exhaustive check of the failover protocol within bounds, over core's own functions.
//!
//! The state is that of the store, the nodes, their walsenders and what clients were told. Every
//! order of steps is explored, breadth first. Cover, choice, publication, history, the envelope,
//! the names and the leader's end of a change are core's real code; what a server, a disk or a
//! network does is the model's. Time isn't in it: whoever may act may act at any later time.

mod acknowledge;
mod campaign;
mod invariants;
mod leading;
mod names;
pub mod plan;
mod primary;
mod real;
pub mod runs;
pub mod search;
mod standby;
pub mod state;
mod steps;
#[cfg(test)]
mod tests;
