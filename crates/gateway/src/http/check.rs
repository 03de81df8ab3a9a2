//! One active check of one instance.

use crate::socket;
use everhold_core::spec::{HealthSpec, Version};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// An answer's first line is looked at; it is not longer than this.
const LINE_MAX: usize = 256;

/// Whether it takes a connection, and answers the path with a success or a redirection where there is
/// one to ask for.
pub async fn is_well(address: SocketAddr, health: &HealthSpec, version: Version) -> bool {
    let asked = async {
        let mut socket = socket::connect(address).await.ok()?;
        let Some(path) = &health.path else {
            return Some(true);
        };
        let status = match version {
            Version::Http1 => {
                let request = format!(
                    "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: everhold\r\n\
                     Connection: close\r\n\r\n"
                );
                socket.write_all(request.as_bytes()).await.ok()?;
                let mut line = Vec::with_capacity(LINE_MAX);
                while line.len() < LINE_MAX && !line.contains(&b'\n') {
                    if socket.read_buf(&mut line).await.ok()? == 0 {
                        break;
                    }
                }
                let mut words = line.split(|byte| *byte == b' ');
                words.next().filter(|it| it.starts_with(b"HTTP/1."))?;
                std::str::from_utf8(words.next()?.get(..3)?).ok()?.parse().ok()?
            }
            Version::Http2 => {
                let (mut send, connection) = h2::client::handshake(socket).await.ok()?;
                let request = http::Request::get(format!("http://{address}{path}"));
                let request = request.header("user-agent", "everhold").body(()).ok()?;
                let (answer, _) = send.send_request(request, true).ok()?;
                tokio::select! {
                    answer = answer => answer.ok()?.status().as_u16(),
                    _ = connection => return None,
                }
            }
        };
        Some((200..400).contains(&status))
    };
    matches!(timeout(Duration::from_millis(health.timeout_ms), asked).await, Ok(Some(true)))
}
