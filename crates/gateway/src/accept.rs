//! Accepts connections and hands each to the thread that has the fewest.
//!
//! One task per listening socket, all on the first thread. The kernel could spread connections over
//! threads by SO_REUSEPORT, but by a hash: database connections are few and live long, so that one
//! thread would easily get most of them (and see `socket::listen` on what else it would hide).

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::door::Guest;
use crate::socket;
use crate::worker::{Held, Shared};

/// Connections on their way to one thread. A full queue makes the acceptor wait, and the rest wait
/// in the kernel.
pub const ARRIVALS_MAX: usize = 1024;
/// After a failed accept (no descriptor, no memory): the queue in the kernel keeps its order, and a
/// loop that spun would keep others from giving back what is missing.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);
/// Between two looks whether a client of HTTP has gone.
const PAUSE_WHEN_FULL: Duration = Duration::from_millis(10);

/// A new connection, counted in the thread it goes to and among those that have no backend yet.
pub struct Arrival {
    pub listener: Arc<str>,
    pub protocol: Protocol,
    pub socket: TcpStream,
    pub peer: SocketAddr,
    /// Of PostgreSQL until it has a backend, of HTTP until it ends.
    pub counted: Held,
    pub thread: Held,
    /// Of HTTP.
    pub guest: Option<Guest>,
}

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Postgres,
    Http,
}

/// Where arrivals can go.
#[derive(Clone)]
pub struct Thread {
    pub load: Arc<AtomicUsize>,
    pub arrivals: mpsc::Sender<Arrival>,
}

/// Accepts on one listening socket until `ends` is dropped on the other side. What was accepted till
/// then is handed over all the same: nobody else will.
pub async fn run(
    (socket, mut ends): (TcpListener, oneshot::Receiver<()>),
    (listener, protocol): (Arc<str>, Protocol),
    shared: Arc<Shared>,
    threads: Arc<[Thread]>,
) {
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(%listener, %error, "cannot wait for connections");
            return;
        }
    };
    let mut failing = false;
    loop {
        // Taken out of this thread's runtime again: another thread may get it.
        let accepted = tokio::select! {
            biased;
            _ = &mut ends => return,
            accepted = async {
                // The next ones wait in the kernel, as with HAProxy, and take no file of anybody's.
                while protocol == Protocol::Http && shared.is_full() {
                    tokio::time::sleep(PAUSE_WHEN_FULL).await;
                }
                socket.accept().await
            } => accepted,
        };
        match accepted.and_then(|(it, peer)| Ok((it.into_std()?, peer))) {
            Ok(accepted) => {
                failing = false;
                let guest = match protocol {
                    Protocol::Postgres => None,
                    Protocol::Http => {
                        let crowd = (shared.served.load(Ordering::Relaxed), shared.limits.http_max);
                        let Some(guest) = shared.http.door.enter(&listener, accepted.1.ip(), crowd)
                        else {
                            // Nothing is left of it here, not even in the kernel.
                            socket::reset_on_close(&accepted.0);
                            continue;
                        };
                        Some(guest)
                    }
                };
                hand_over(accepted, (&listener, protocol), guest, &shared, &threads).await;
            }
            // The client gave up while it was queued: nothing to do with the next one.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !failing {
                    tracing::error!(%listener, %error, "cannot accept connections");
                }
                failing = true;
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
        }
    }
}

async fn hand_over(
    (socket, peer): (TcpStream, SocketAddr),
    (listener, protocol): (&Arc<str>, Protocol),
    guest: Option<Guest>,
    shared: &Shared,
    threads: &[Thread],
) {
    let counted = match protocol {
        Protocol::Http => Held::new(&shared.served),
        Protocol::Postgres => {
            let bound = shared.limits.waiting_max.saturating_add(shared.limits.refusing_max);
            if shared.unplaced.load(Ordering::Relaxed) >= bound {
                return;
            }
            Held::new(&shared.unplaced)
        }
    };
    let Some(thread) = threads.iter().min_by_key(|t| t.load.load(Ordering::Relaxed)) else {
        return;
    };
    let arrival = Arrival {
        listener: Arc::clone(listener),
        protocol,
        socket,
        peer,
        counted,
        thread: Held::new(&thread.load),
        guest,
    };
    // It fails only when the gateway is being dropped.
    let _ = thread.arrivals.send(arrival).await;
}
