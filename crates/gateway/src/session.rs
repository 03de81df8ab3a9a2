//! A connection from its first packet until it is with a backend.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::accept::Arrival;
use crate::cancel;
use crate::refusal::{Refusal, refuse};
use crate::snapshot::Counters;
use crate::socket;
use crate::wire::{self, Opening};
use crate::worker::{Choice, Worker};

/// Room for an ordinary first packet; it grows up to what PostgreSQL takes.
const FIRST_PACKET_USUAL: usize = 512;

/// Begins to serve a connection on the current thread.
pub fn start(worker: &Arc<Worker>, arrival: Arrival) {
    let worker = Arc::clone(worker);
    tokio::spawn(async move {
        let Arrival { listener, socket, counted, thread, .. } = arrival;
        let client = match TcpStream::from_std(socket).and_then(|c| socket::tune(&c).map(|()| c)) {
            Ok(client) => client,
            Err(error) => {
                tracing::debug!(%listener, %error, "a connection ended before it began");
                return;
            }
        };
        worker.counters(&listener).accepted.fetch_add(1, Ordering::Relaxed);
        place(&worker, &listener, client).await;
        drop((counted, thread));
    });
}

async fn place(worker: &Arc<Worker>, listener: &str, mut client: TcpStream) {
    let limits = &worker.shared.limits;
    let mut first = Vec::with_capacity(FIRST_PACKET_USUAL);
    let greeting = read_at_least(&mut client, &mut first, wire::HEAD);
    if !matches!(timeout(limits.first_packet_max, greeting).await, Ok(Ok(()))) {
        return;
    }
    let Some(head) = first.first_chunk::<{ wire::HEAD }>() else { return };
    if let Opening::Cancel { length } = wire::opening(*head) {
        let rest = read_at_least(&mut client, &mut first, length);
        if matches!(timeout(limits.first_packet_max, rest).await, Ok(Ok(()))) {
            first.truncate(length);
            let instances = worker.route(listener, |route| route.all.clone()).unwrap_or_default();
            cancel::send(first, instances).await;
        }
        return;
    }
    let wait = find_backend(worker, listener, client, first);
    if let Err((client, first, refusal)) = wait.await {
        worker.counters(listener).refused.fetch_add(1, Ordering::Relaxed);
        let service = worker.route(listener, |route| route.service.clone()).unwrap_or_default();
        refuse(client, first, &service, refusal).await;
    }
}

/// Ends with the connection placed, or gone; or with the client back and why it is refused.
async fn find_backend(
    worker: &Arc<Worker>,
    listener: &str,
    mut client: TcpStream,
    mut first: Vec<u8>,
) -> Result<(), (TcpStream, Vec<u8>, Refusal)> {
    let wait_max = worker.shared.limits.wait_max;
    let deadline = Instant::now() + wait_max;
    loop {
        let found = next_backend(worker, listener, &mut client, &mut first);
        let (choice, backend) = match timeout_at(deadline, found).await {
            Ok(Found::Backend(choice, backend)) => (choice, backend),
            Ok(Found::ClientGone) => return Ok(()),
            Ok(Found::TooMany) => {
                let waiting_max = worker.shared.limits.waiting_max;
                return Err((client, first, Refusal::TooMany { waiting_max }));
            }
            Err(_) => return Err((client, first, Refusal::NoBackend { waited: wait_max })),
        };
        match worker.start_relay(listener, choice, client, backend, first) {
            Ok(()) => return Ok(()),
            Err(back) => (client, first) = back,
        }
    }
}

enum Found {
    Backend(Choice, TcpStream),
    ClientGone,
    TooMany,
}

/// Chooses and connects until it succeeds; waits for a change whenever there is nobody to choose.
async fn next_backend(
    worker: &Arc<Worker>,
    listener: &str,
    client: &mut TcpStream,
    first: &mut Vec<u8>,
) -> Found {
    let mut waiting = None;
    loop {
        // Before looking, so that a change between the look and the wait is not missed.
        let changed = worker.changed.notified();
        if let Some(choice) = worker.choose(listener) {
            tokio::select! {
                backend = connect(worker, listener, choice.backend) => match backend {
                    Some(backend) => return Found::Backend(choice, backend),
                    None => continue,
                },
                () = client_gone(client, first) => return Found::ClientGone,
            }
        }
        if waiting.is_none() {
            let unplaced = worker.shared.unplaced.load(Ordering::Relaxed);
            if unplaced > worker.shared.limits.waiting_max {
                return Found::TooMany;
            }
            waiting = Some(Waiting::begin(worker.counters(listener)));
        }
        tokio::select! {
            () = changed => {}
            () = client_gone(client, first) => return Found::ClientGone,
        }
    }
}

/// Connects to a backend, as long as the table in force leads there.
async fn connect(worker: &Arc<Worker>, listener: &str, backend: SocketAddr) -> Option<TcpStream> {
    let attempt = timeout(worker.shared.limits.connect_max, socket::connect(backend));
    tokio::pin!(attempt);
    loop {
        let changed = worker.changed.notified();
        if !worker.still_routed(listener, backend) {
            return None;
        }
        tokio::select! {
            result = &mut attempt => match result {
                Ok(Ok(stream)) => return Some(stream),
                Ok(Err(_)) | Err(_) => {
                    worker.suspect(backend);
                    return None;
                }
            },
            () = changed => {}
        }
    }
}

async fn read_at_least(
    client: &mut TcpStream,
    first: &mut Vec<u8>,
    length: usize,
) -> io::Result<()> {
    while first.len() < length {
        if client.read_buf(first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Returns when the client has closed or broken its connection. What it sends until then is kept,
/// up to what it may send before a server has answered.
async fn client_gone(client: &mut TcpStream, first: &mut Vec<u8>) {
    while first.len() < wire::FIRST_PACKET_MAX {
        if !matches!(client.read_buf(first).await, Ok(1..)) {
            return;
        }
    }
    std::future::pending().await
}

/// A connection in the count of those that wait.
struct Waiting(Arc<Counters>);

impl Waiting {
    fn begin(counters: Arc<Counters>) -> Self {
        counters.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(counters)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
