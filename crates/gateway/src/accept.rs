//! Accepts connections and hands each to the thread that has the fewest.
//!
//! One task per listening socket, all on the first thread. The kernel could spread connections over
//! threads by SO_REUSEPORT, but by a hash: database connections are few and live long, so that one
//! thread would easily get most of them (and see `socket::listen` on what else it would hide).

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::worker::{Held, Shared};

/// Connections on their way to one thread. A full queue makes the acceptor wait, and the rest wait
/// in the kernel.
pub const ARRIVALS_MAX: usize = 1024;
/// After a failed accept (no descriptor, no memory): the queue in the kernel keeps its order, and a
/// loop that spun would keep others from giving back what is missing.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

/// A new connection, counted in the thread it goes to and among those that have no backend yet.
pub struct Arrival {
    pub listener: Arc<str>,
    pub socket: TcpStream,
    pub unplaced: Held,
    pub thread: Held,
}

/// Where arrivals can go.
#[derive(Clone)]
pub struct Thread {
    pub load: Arc<AtomicUsize>,
    pub arrivals: mpsc::Sender<Arrival>,
}

/// Accepts on one listening socket until it is aborted.
pub async fn run(
    socket: TcpListener,
    listener: Arc<str>,
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
        match socket.accept().await.and_then(|(accepted, _)| accepted.into_std()) {
            Ok(accepted) => {
                failing = false;
                hand_over(accepted, &listener, &shared, &threads).await;
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

async fn hand_over(socket: TcpStream, listener: &Arc<str>, shared: &Shared, threads: &[Thread]) {
    let bound = shared.limits.waiting_max.saturating_add(shared.limits.refusing_max);
    if shared.unplaced.load(Ordering::Relaxed) >= bound {
        return;
    }
    let Some(thread) = threads.iter().min_by_key(|t| t.load.load(Ordering::Relaxed)) else {
        return;
    };
    let arrival = Arrival {
        listener: Arc::clone(listener),
        socket,
        unplaced: Held::new(&shared.unplaced),
        thread: Held::new(&thread.load),
    };
    // It fails only when the gateway is being dropped.
    let _ = thread.arrivals.send(arrival).await;
}
