//! Telling a client why it gets no backend.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wire::{self, Opening};

/// How long telling may take: the client has everything at hand.
const TELL_MAX: Duration = Duration::from_secs(1);
/// A client asks for GSSAPI, then for TLS, then opens its session.
const PACKETS_MAX: usize = 3;

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It waited as long as it may.
    NoBackend { waited: Duration },
    /// As many as may wait are waiting.
    TooMany { waiting_max: usize },
}

/// Sends an ErrorResponse and closes. `first` is what the client has sent so far.
///
/// A client that asks for encryption is told "no" first: since CVE-2024-10977 libpq does not show
/// an error that comes in place of the answer, and no secret follows in the clear, because the
/// error is sent before a password could be asked for.
pub async fn refuse(client: TcpStream, first: Vec<u8>, service: &str, refusal: Refusal) {
    // A client that does not listen is closed all the same.
    let _ = tokio::time::timeout(TELL_MAX, tell(client, first, service, refusal)).await;
}

async fn tell(
    mut client: TcpStream,
    mut first: Vec<u8>,
    service: &str,
    refusal: Refusal,
) -> std::io::Result<()> {
    for _ in 0..PACKETS_MAX {
        while first.len() < wire::HEAD {
            if client.read_buf(&mut first).await? == 0 {
                return Ok(());
            }
        }
        let Some(head) = first.first_chunk::<{ wire::HEAD }>() else { return Ok(()) };
        if wire::opening(*head) != Opening::Encryption {
            break;
        }
        client.write_all(b"N").await?;
        first.clear();
    }
    client.write_all(&packet(service, refusal)).await?;
    // Closing with unread bytes resets the connection. A Linux client that has seen the end before
    // still reads the message; others throw it away at a reset, so the bytes are read.
    client.shutdown().await?;
    let mut rest = [0; 1024];
    while client.read(&mut rest).await? > 0 {}
    Ok(())
}

fn packet(service: &str, refusal: Refusal) -> Vec<u8> {
    match refusal {
        Refusal::NoBackend { waited } => wire::fatal(
            // cannot_connect_now: clients and pools know it as "try again".
            "57P03",
            &format!(
                "service \"{service}\" has had no server for this connection for {} ms",
                waited.as_millis()
            ),
            "Run `everhold status`: it names what the service waits for. Then connect again.",
        ),
        Refusal::TooMany { waiting_max } => wire::fatal(
            // too_many_connections
            "53300",
            &format!(
                "{waiting_max} connections are already waiting for a server of service \
                 \"{service}\""
            ),
            "Run `everhold status`: it names what the service waits for. Connect again later, or \
             with fewer connections.",
        ),
    }
}
