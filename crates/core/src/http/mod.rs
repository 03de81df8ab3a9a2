//! HTTP services as a gateway sees them: which requests go where, to which backend, what counts as
//! healthy, what may be tried again.
//!
//! For a request: `route` finds the service, `cache` says which answers are kept and given again, `queue`
//! who waits for a place, `affinity` finds the backend of its session, else `zone` the zone and `balance`
//! one of its backends; `forwarded` is whom it is from, `deadline` how long
//! the client waits, `retry` says what becomes of a try that
//! failed. Beside that, now and then: `probe` and `outlier` judge each backend, `usable` makes of both who
//! gets traffic, and `zone` where it goes from here; `limit` finds how many requests a service bears at
//! once, `breaker` when it is asked no more, and `degrade` how a route is served meanwhile.
//!
//! Of clients: `door` says who is let in, `rate` how often each may ask, `pace` how slowly it may send
//! and take, `flood` what frames of HTTP/2 are too many, and `shed` who is refused while a thread is short
//! of time.
//!
//! `what_if` says of recorded requests what other limits would have made of them.
//!
//! All of it is plain data and arithmetic; time, randomness and the counts of the gateway's thread
//! are passed in. What is called for each request allocates nothing.

pub mod affinity;
pub mod balance;
pub mod breaker;
pub mod cache;
pub mod deadline;
pub mod degrade;
pub mod door;
pub mod ewma;
pub mod flood;
pub mod forwarded;
pub mod hash;
pub mod latency;
pub mod limit;
pub mod outlier;
pub mod pace;
pub mod probe;
pub mod pulse;
pub mod queue;
pub mod rate;
pub mod retry;
pub mod ring;
pub mod route;
pub mod shed;
pub mod usable;
pub mod what_if;
pub mod zone;

pub use route::HttpTable;

#[cfg(test)]
mod chance;
