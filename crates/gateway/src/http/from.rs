//! Who is at the other end of a client's connection, and what of that instances are told.

use super::request::push;
use super::target::host_name;
use super::world::{Listener, Seat, World};
use everhold_core::http::door::{Client, TELL_SERVED_EVERY_MS};
use everhold_core::http::forwarded::Origin;
use everhold_core::http::hash::hash;
use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// What every request of a connection is told to the instance with.
pub struct From {
    /// Fields that end with CR LF.
    pub fields: Vec<u8>,
    /// The hash of its address.
    pub peer: u64,
    pub ip: IpAddr,
    pub tls: bool,
    pub client: Client,
    /// When the door was told last that it got what it asked for.
    told: Cell<Option<Instant>>,
    /// Of the listener.
    port: u16,
    /// The listener that trusts it, as of a table.
    trusted: RefCell<(u64, Option<Rc<Listener>>)>,
}

impl From {
    /// What is said of a client at that address, and of the port that it came to.
    pub fn of(peer: SocketAddr, tls: bool, port: u16) -> From {
        let ip = peer.ip().to_canonical();
        let mut fields = Vec::new();
        way(&mut fields, &[ip], tls, tls);
        push(&mut fields, b"X-Forwarded-Port", port.to_string().as_bytes());
        let trusted = RefCell::default();
        let (client, told) = (Client::of(ip), Cell::new(None));
        From { fields, peer: hash_of(ip), ip, tls, client, told, port, trusted }
    }

    /// It got what it asked for, once at least.
    pub fn was_served(&self) -> bool {
        self.told.get().is_some()
    }

    /// It got what it asked for: whether the door is to be told of it, again after a while.
    pub fn served(&self, now: Instant) -> bool {
        let again = Duration::from_millis(TELL_SERVED_EVERY_MS);
        let due = self.told.get().is_none_or(|at| now.saturating_duration_since(at) >= again);
        if due {
            self.told.set(Some(now));
        }
        due
    }

    /// The listener, if what this client says of whom a request is from is believed there.
    pub(super) fn trusted(&self, seat: &mut Seat, world: &World) -> Option<Rc<Listener>> {
        let mut trusted = self.trusted.borrow_mut();
        if trusted.0 != world.generation() {
            let trusts = |it: &&Rc<Listener>| it.trusted.iter().any(|net| net.contains(self.ip));
            *trusted = (world.generation(), seat.listener(world).filter(trusts).cloned());
        }
        trusted.1.clone()
    }

    /// What is said of a request that came by way of this client. `host` is the one it asks for.
    pub fn tell(&self, head: &mut Vec<u8>, origin: &Origin, host: &[u8]) {
        let tls = origin.secure.unwrap_or(self.tls);
        way(head, &origin.path, tls, self.tls);
        let said =
            origin.host.as_deref().filter(|it| host_name(it).is_some_and(|it| !it.is_empty()));
        let port_said = said.map(|it| &it[host_name(it).map_or(it.len(), <[u8]>::len)..]);
        let port_said = port_said.and_then(|it| std::str::from_utf8(it.strip_prefix(b":")?).ok());
        // To a proxy that says so little the port is that of the protocol.
        let usual = if tls { 443 } else { 80 };
        let silent = origin.secure.is_none() && said.is_none();
        let port = origin.port.or_else(|| port_said?.parse().ok());
        let port = port.unwrap_or(if silent { self.port } else { usual });
        push(head, b"X-Forwarded-Port", port.to_string().as_bytes());
        let host = said.unwrap_or(host);
        if !host.is_empty() {
            push(head, b"X-Forwarded-Host", host);
        }
    }
}

/// As keys of addresses are shared out.
pub fn hash_of(ip: IpAddr) -> u64 {
    hash(ip.to_string().as_bytes())
}

/// The client and the proxies behind which it is, which it came to by TLS or not, and the last of them
/// to here.
fn way(head: &mut Vec<u8>, path: &[IpAddr], first: bool, last: bool) {
    let proto = |tls: bool| if tls { "https" } else { "http" };
    // Writing to memory can't fail.
    head.extend_from_slice(b"X-Forwarded-For: ");
    for (at, ip) in path.iter().enumerate() {
        let _ = write!(head, "{}{ip}", if at > 0 { ", " } else { "" });
    }
    let _ = write!(head, "\r\nX-Forwarded-Proto: {}\r\nForwarded: ", proto(first));
    for (at, ip) in path.iter().enumerate() {
        let comma = if at > 0 { ", " } else { "" };
        let _ = match ip {
            IpAddr::V4(ip) => write!(head, "{comma}for={ip}"),
            IpAddr::V6(ip) => write!(head, "{comma}for=\"[{ip}]\""),
        };
        if at == 0 || at + 1 == path.len() {
            let _ = write!(head, ";proto={}", proto(if at == 0 { first } else { last }));
        }
    }
    head.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_served_for_long_stays_known() {
        let from = From::of(([10, 0, 0, 1], 1).into(), false, 80);
        let begun = Instant::now();
        let told = |seconds: u64| from.served(begun + Duration::from_secs(seconds));
        #[rustfmt::skip]
        let cases = [(0, true), (1, false), (599, false), (600, true), (601, false), (1199, false), (5000, true)];
        for (seconds, expected) in cases {
            assert_eq!(told(seconds), expected, "after {seconds} s");
        }
    }
}
