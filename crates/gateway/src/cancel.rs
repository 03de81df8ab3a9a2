//! Cancel requests.
//!
//! A cancel request is a connection of its own that names a server process and its secret key, not
//! an instance. It is sent to every instance of the service: the one that has the process cancels
//! the query, the others find no such key and ignore it. So no keys need to be learned from
//! sessions, and it is right when it arrives at another gateway than the session, after a restart
//! of the gateway, and for a session under TLS, whose key could not be read in passing.
//! Not covered: a request that is itself encrypted (libpq 17 and later with its newer functions).
//! It passes like any session to the backend that the listener would choose now; on a listener with
//! several standbys that may be the wrong one.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::socket;

/// A server answers a cancel request by closing; one that takes longer does not answer at all.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Sends a request to all instances and waits, for a bounded time, until each has acted on it:
/// clients take the close of their connection for "done".
pub async fn send(request: Vec<u8>, instances: Vec<SocketAddr>) {
    let mut tasks = JoinSet::new();
    for instance in instances {
        let request = request.clone();
        tasks.spawn(async move {
            let _ = tokio::time::timeout(ANSWER_MAX, send_to(instance, &request)).await;
        });
    }
    while tasks.join_next().await.is_some() {}
}

async fn send_to(instance: SocketAddr, request: &[u8]) -> std::io::Result<()> {
    let mut stream = socket::connect(instance).await?;
    stream.write_all(request).await?;
    let mut answer = [0; 64];
    while stream.read(&mut answer).await? > 0 {}
    Ok(())
}
