//! HTTP: what clients ask for is carried to instances of services.
//!
//! `serve` is a client's connection, `request` and `response` are heads read strictly, `kind` what a
//! field is, `from` whom a request is from, `rates` how often it may ask, `target` what is asked for,
//! `body` says where bodies end, `exchange` is one request and its answer, `flow` carries bodies, `world`
//! is what a thread knows, `live` what all threads know of instances, `judge` who checks them and says
//! who is used. `cache` is answers that are kept. `admit` lets requests in, through the `gate` of route
//! and service and past the service's breaker, its `switch`; `degrade` answers in their place while a route
//! is degraded; `guards` has all of these, and the `latency` of services. `strain` is whom a thread refuses
//! that is short of time. `tries` is one try at one instance, `hedge` two at once. `ledger` counts requests
//! and remembers the last, `sample` some of the last hour,
//! `access` writes the access log.
//! HTTP/2: `streams` is a client's connection, `meter` looks at its frames, `link` is one to an instance,
//! `stream` one stream of either,
//! `heads` are heads in its form.

mod access;
mod admit;
mod backend;
pub mod body;
mod buf;
mod cache;
mod check;
mod degrade;
mod exchange;
mod flow;
mod from;
#[cfg(test)]
mod fuzz;
mod gate;
mod guards;
mod heads;
mod hedge;
pub mod id;
mod io;
mod judge;
mod kind;
mod latency;
mod ledger;
mod link;
mod live;
mod meter;
mod rates;
pub mod request;
pub mod response;
mod sample;
mod serve;
mod strain;
mod stream;
mod streams;
mod switch;
mod target;
mod timer;
mod tls;
mod trailers;
mod tries;
mod tunnel;
mod world;

pub(crate) use access::open as open_log;
pub use cache::Kept;
pub use degrade::ModeState;
pub use gate::GateState;
pub use guards::Guarded;
pub use id::RequestId;
pub(crate) use judge::run as judge;
pub use ledger::{
    BOUNDS_S, End, Hedge, Histogram, Ledger, Met, Of, Record, Series, Sums, Tries, Try, Turned,
};
pub(crate) use live::Shared;
pub use live::{Judged, Loads, Verdict};
pub use rates::Limited;
pub use strain::ThreadState;
pub(crate) use world::World;

use crate::accept::Arrival;
use crate::snapshot::Counters;
use crate::socket;
use buf::Buf;
use io::Io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use streams::Begun;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// A connection that is open, as its listener counts it.
pub(crate) struct Open(pub Arc<Counters>);

impl Open {
    fn new(counters: Arc<Counters>) -> Open {
        counters.accepted.fetch_add(1, Ordering::Relaxed);
        counters.connections.fetch_add(1, Ordering::Relaxed);
        Open(counters)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client has to come to an agreement on TLS within this.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Begins to serve a connection on the current thread.
pub(crate) fn start(world: &Rc<World>, counters: Arc<Counters>, arrival: Arrival) {
    let world = Rc::clone(world);
    tokio::task::spawn_local(async move {
        let Arrival {
            listener,
            socket,
            peer,
            counted: _counted,
            thread: _thread,
            guest: _guest,
            ..
        } = arrival;
        let open = Open::new(counters);
        let tuned = TcpStream::from_std(socket).and_then(|it| socket::tune(&it).map(|()| it));
        let socket = match tuned {
            Ok(socket) => socket,
            Err(error) => {
                return tracing::debug!(%listener, %error, "a connection ended before it began");
            }
        };
        let Some(config) = world.shared.certificates.of(&listener) else {
            return serve::serve(Io::Plain(socket), peer, (listener, &open), world).await;
        };
        // Without a certificate there is nothing that could be said.
        let Some(config) = config else { return };
        let handshake = TlsAcceptor::from(config).accept(socket);
        let Ok(Ok(stream)) = timeout(HANDSHAKE_WITHIN, handshake).await else { return };
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = Io::Tls(Box::new(stream));
        match http2 {
            true => {
                let begun = Begun { io, buf: Buf::default() };
                streams::serve(begun, peer, (listener, &open), world).await;
            }
            false => serve::serve(io, peer, (listener, &open), world).await,
        }
    });
}
