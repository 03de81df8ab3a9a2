//! The gateway's bounds, each with its reason.

use crate::socket;
use std::time::Duration;

/// Bounds of one gateway process.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections that are not yet with a backend: waiting for one, or still to say what they
    /// want. The next one is refused.
    pub waiting_max: usize,
    /// Above that, connections that are being told why they are refused; the next one is closed
    /// without a word.
    pub refusing_max: usize,
    /// Connections of HTTP clients; the next ones wait until one ends.
    pub http_max: usize,
    /// How long a connection waits for a backend before it is refused.
    pub wait_max: Duration,
    /// How long a client may take over its first packet.
    pub first_packet_max: Duration,
    /// How long one attempt to connect to a backend may take.
    pub connect_max: Duration,
    /// The pause between two attempts on a backend that did not answer the last one.
    pub retry_every: Duration,
    /// How long a session stays with a standby that left the route without a change of epoch.
    pub lag_grace: Duration,
}

/// Ten thousand clients that all come back at once after a failover; each costs a socket and about
/// a kilobyte while it waits.
const WAITING_MAX: usize = 10_000;
/// Telling takes a place too, but only for a moment.
const REFUSING_MAX: usize = 1_000;
/// Far above any failover, and what clients and pools commonly take as their own limit.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// A client that is silent for this long is not slow, it holds a place on purpose or by mistake.
const FIRST_PACKET_MAX: Duration = Duration::from_secs(10);
/// A backend is a LAN or a region away; the first lost SYN is sent again after one second.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Well below a failover (50 to 150 ms), so that a primary restarted in place is found at once;
/// there is one prober per thread and backend, so it costs next to nothing.
const RETRY_EVERY: Duration = Duration::from_millis(20);
/// A replay stall of a checkpoint or a conflict passes within this; a reader is not served data
/// older than the declared lag by more than this.
const LAG_GRACE: Duration = Duration::from_secs(2);

impl Default for Limits {
    fn default() -> Self {
        Limits {
            waiting_max: WAITING_MAX,
            refusing_max: REFUSING_MAX,
            http_max: socket::allow_many() / 4 * 3,
            wait_max: WAIT_MAX,
            first_packet_max: FIRST_PACKET_MAX,
            connect_max: CONNECT_MAX,
            retry_every: RETRY_EVERY,
            lag_grace: LAG_GRACE,
        }
    }
}
