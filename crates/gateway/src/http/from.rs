//! Who is at the other end of a client's connection, and what of that instances are told.

use everhold_core::http::door::Client;
use everhold_core::http::hash::hash;
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};

/// What every request of a connection is told to the instance with: fields that end with CR LF.
pub struct From {
    pub fields: Vec<u8>,
    /// The hash of its address.
    pub peer: u64,
    pub ip: IpAddr,
    pub tls: bool,
    pub client: Client,
    /// It got what it asked for.
    pub served: Cell<bool>,
}

impl From {
    /// What is said of a client at that address.
    pub fn of(peer: SocketAddr, tls: bool) -> From {
        let (ip, proto) = (peer.ip().to_canonical(), if tls { "https" } else { "http" });
        let node = match ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("\"[{ip}]\""),
        };
        let fields = format!(
            "X-Forwarded-For: {ip}\r\nX-Forwarded-Proto: {proto}\r\n\
             Forwarded: for={node};proto={proto}\r\n"
        );
        From {
            fields: fields.into_bytes(),
            peer: hash(ip.to_string().as_bytes()),
            ip,
            tls,
            client: Client::of(ip),
            served: Cell::new(false),
        }
    }
}
