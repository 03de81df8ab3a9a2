//! The data plane: carries connections to where the route table says, and to nowhere else.
//!
//! It knows neither store nor agents: whoever runs it hands it tables ([`Gateway::set_table`]), and
//! between two tables it goes on with the last one. So traffic flows while control stalls.
//!
//! A thread per core, each with a runtime of its own. One task accepts and hands each connection to
//! the thread that has the fewest; from then on the connection belongs to that thread.
//! `session` takes it from its first packet to a backend (or lets it wait for one), `relay` carries
//! bytes until one side ends, `worker` is the thread, its table and the cutting of connections.

mod accept;
mod cancel;
mod door;
mod gateway;
pub mod http;
mod limits;
mod refusal;
mod relay;
mod session;
mod snapshot;
mod socket;
mod wire;
mod worker;

pub use door::Refused;
pub use gateway::{Config, Gateway, GatewayError};
pub use limits::Limits;
pub use snapshot::{Found, InstanceSnapshot, ListenerSnapshot, ListenerState, Snapshot};
