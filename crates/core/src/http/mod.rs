//! HTTP services as a gateway sees them: which requests go where, to which backend, what counts as
//! healthy, what may be tried again.
//!
//! For a request: `route` finds the service, `affinity` the backend of its session, else `zone` the
//! zone and `balance` one of its backends; `deadline` is how long the client waits, `retry` says what
//! becomes of a try that failed; `cache` which answers are kept and given again. Beside that, now and then: `probe` and `outlier` judge each backend, `usable` makes of both who gets
//! traffic, and `zone` where it goes from here.
//!
//! All of it is plain data and arithmetic; time, randomness and the counts of the gateway's thread
//! are passed in. What is called for each request allocates nothing.

pub mod affinity;
pub mod balance;
pub mod cache;
pub mod deadline;
pub mod ewma;
pub mod hash;
pub mod outlier;
pub mod probe;
pub mod pulse;
pub mod retry;
pub mod ring;
pub mod route;
pub mod usable;
pub mod zone;

pub use route::HttpTable;

#[cfg(test)]
mod chance;
