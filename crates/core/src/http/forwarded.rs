//! Whom a request is from where other proxies stand before the gateway.
//!
//! Each proxy says whom it got the request from: `X-Forwarded-For` (a list, to which each appends), or
//! `Forwarded` of RFC 7239 where there is no such field. What a known proxy says is believed, and so is
//! what it was told by another known one, from the nearest on; the first address that is none of a
//! known proxy is the client. What is said beyond that is the client's own, who may say anything.

use crate::spec::Net;
use std::net::{IpAddr, SocketAddr};

/// Known proxies one behind the other. More is a loop.
const PROXIES_MAX: usize = 32;

/// The fields that speak of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `X-Forwarded-For`.
    For,
    /// `X-Forwarded-Proto`.
    Proto,
    /// `X-Forwarded-Host`.
    Host,
    /// `X-Forwarded-Port`.
    Port,
    Forwarded,
}

/// What is said in a request's head.
#[derive(Debug, Default)]
pub struct Said<'h> {
    client: Vec<&'h [u8]>,
    forwarded: Vec<&'h [u8]>,
    proto: Option<&'h [u8]>,
    host: Option<&'h [u8]>,
    port: Option<&'h [u8]>,
}

/// What is believed of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Origin {
    /// The client, then the known proxies on its way here, the nearest last. Never empty.
    pub path: Vec<IpAddr>,
    /// Whether the client spoke TLS, if that is said.
    pub secure: Option<bool>,
    /// As it was said: nobody has looked at it.
    pub host: Option<Vec<u8>>,
    pub port: Option<u16>,
}

impl<'h> Said<'h> {
    /// One more line of the head, in its order.
    pub fn add(&mut self, field: Field, value: &'h [u8]) {
        match field {
            Field::For => self.client.push(value),
            Field::Forwarded => self.forwarded.push(value),
            Field::Proto => self.proto = Some(value),
            Field::Host => self.host = Some(value),
            Field::Port => self.port = Some(value),
        }
    }

    /// `peer` is who said it, one of those that are `known`.
    pub fn judge(&self, peer: IpAddr, known: &[Net]) -> Origin {
        let mut way = Way { known, path: vec![peer] };
        let (mut proto, mut host) = (self.proto.and_then(last), self.host.and_then(last));
        if !self.client.is_empty() {
            let all = self.client.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
            let all = all.map(<[u8]>::trim_ascii).filter(|it| !it.is_empty());
            for element in all {
                if !way.goes_on(address(element)) {
                    break;
                }
            }
            way.path.reverse();
            return self.origin(way, proto, host.map(<[u8]>::to_vec));
        }
        let elements: Vec<Element> =
            self.forwarded.iter().flat_map(|line| elements(line)).collect();
        let (mut said_proto, mut said_host) = (None, None);
        for element in elements.into_iter().rev() {
            let goes_on = way.goes_on(element.client.as_deref().and_then(address));
            (said_proto, said_host) = (element.proto, element.host);
            if !goes_on {
                break;
            }
        }
        way.path.reverse();
        proto = proto.or(said_proto.as_deref());
        let host = host.take().map(<[u8]>::to_vec).or(said_host);
        self.origin(way, proto, host)
    }

    fn origin(&self, way: Way<'_>, proto: Option<&[u8]>, host: Option<Vec<u8>>) -> Origin {
        let port = self.port.and_then(last).and_then(|it| std::str::from_utf8(it).ok());
        Origin {
            path: way.path,
            secure: proto.and_then(is_secure),
            host,
            port: port.and_then(|it| it.parse().ok()).filter(|it| *it > 0),
        }
    }
}

/// From the gateway back to the client.
struct Way<'k> {
    known: &'k [Net],
    path: Vec<IpAddr>,
}

impl Way<'_> {
    /// Takes in the next address on it; `false`: that was the last one. Of one that isn't said, or is
    /// no address, only the proxy is known that said so.
    fn goes_on(&mut self, address: Option<IpAddr>) -> bool {
        let Some(address) = address else { return false };
        self.path.push(address);
        self.path.len() <= PROXIES_MAX && self.known.iter().any(|net| net.contains(address))
    }
}

/// Of a list what the nearest proxy said.
fn last(value: &[u8]) -> Option<&[u8]> {
    value.rsplit(|byte| *byte == b',').next().map(<[u8]>::trim_ascii).filter(|it| !it.is_empty())
}

fn is_secure(proto: &[u8]) -> Option<bool> {
    let is = |other: &[u8]| proto.eq_ignore_ascii_case(other);
    match () {
        () if is(b"https") || is(b"wss") => Some(true),
        () if is(b"http") || is(b"ws") => Some(false),
        () => None,
    }
}

/// With or without a port; IPv6 with or without its brackets.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().ok().filter(|ip: &IpAddr| ip.is_ipv6() || bare.len() == text.len());
    let with_port = || text.parse().ok().map(|it: SocketAddr| it.ip());
    ip.or_else(with_port).map(|ip| ip.to_canonical())
}

/// One hop, as `Forwarded` has it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Element {
    /// Anything at all.
    said: bool,
    client: Option<Vec<u8>>,
    proto: Option<Vec<u8>>,
    host: Option<Vec<u8>>,
}

/// The hops of one line. One that can't be read says nothing, and neither does what is behind it in
/// the line: a quote that somebody left open makes it another's.
fn elements(line: &[u8]) -> Vec<Element> {
    let (mut all, mut rest) = (vec![Element::default()], line);
    loop {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|byte| b"=;,".contains(byte));
        let Some(element) = all.last_mut() else { return all };
        match end.map(|end| (rest[end], end)) {
            Some((b'=', end)) => {
                let name = &rest[..end];
                let Some((value, left)) = value(&rest[end + 1..]) else {
                    all.push(Element::default());
                    return all;
                };
                let known = match () {
                    () if name.eq_ignore_ascii_case(b"for") => Some(&mut element.client),
                    () if name.eq_ignore_ascii_case(b"proto") => Some(&mut element.proto),
                    () if name.eq_ignore_ascii_case(b"host") => Some(&mut element.host),
                    () => None,
                };
                if let Some(known) = known {
                    *known = Some(value);
                }
                element.said = true;
                rest = left.trim_ascii_start();
            }
            // An element may be empty, and so may a pair.
            Some((_, end)) if rest[..end].trim_ascii().is_empty() => rest = &rest[end..],
            None if rest.is_empty() => {}
            Some(_) | None => {
                all.push(Element::default());
                return all;
            }
        }
        match rest.split_first() {
            Some((b',', left)) => {
                // An empty one is none.
                if all.last() != Some(&Element::default()) {
                    all.push(Element::default());
                }
                rest = left;
            }
            Some((b';', left)) => rest = left,
            Some(_) => {
                all.push(Element::default());
                return all;
            }
            None => break,
        }
    }
    if all.last() == Some(&Element::default()) {
        all.pop();
    }
    all
}

/// A token or a quoted string, and what follows it.
fn value(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|byte| b";, \t".contains(byte)).unwrap_or(text.len());
        let token = &text[..end];
        return (!token.is_empty()).then(|| (token.to_vec(), &text[end..]));
    };
    let (mut value, mut bytes) = (Vec::new(), quoted.iter().enumerate());
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some((value, &quoted[at + 1..])),
            b'\\' => value.push(*bytes.next()?.1),
            byte => value.push(*byte),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a head, and what comes of them: the path, and `proto`, `host`, `port` where they are
    /// known. The peer is 10.0.0.9; known are 10.0.0.0/8 and fd00::/8.
    fn check(head: &str, expected: &str) {
        let mut said = Said::default();
        for line in head.split('\n') {
            let Some((name, value)) = line.split_once(": ") else { continue };
            let field = match name {
                "for" => Field::For,
                "proto" => Field::Proto,
                "host" => Field::Host,
                "port" => Field::Port,
                _ => Field::Forwarded,
            };
            said.add(field, value.as_bytes());
        }
        let known = ["10.0.0.0/8", "fd00::/8"].map(|it| it.parse().expect(it));
        let origin = said.judge("10.0.0.9".parse().expect("an address"), &known);
        let path: Vec<String> = origin.path.iter().map(IpAddr::to_string).collect();
        let mut found = path.join(" ");
        if let Some(secure) = origin.secure {
            found += if secure { " https" } else { " http" };
        }
        if let Some(host) = origin.host {
            found += &format!(" {}", String::from_utf8_lossy(&host));
        }
        if let Some(port) = origin.port {
            found += &format!(" {port}");
        }
        assert_eq!(found, expected, "{head}");
    }

    #[test]
    #[rustfmt::skip]
    fn the_client_is_the_last_one_that_is_no_known_proxy() {
        check("", "10.0.0.9");
        check("for: 1.2.3.4", "1.2.3.4 10.0.0.9");
        check("for: 1.2.3.4, 10.0.0.1", "1.2.3.4 10.0.0.1 10.0.0.9");
        check("for: 1.2.3.4, 10.0.0.1, fd00::1", "1.2.3.4 10.0.0.1 fd00::1 10.0.0.9");
        // What a client says of itself is behind it.
        check("for: 6.6.6.6, 1.2.3.4", "1.2.3.4 10.0.0.9");
        check("for: 6.6.6.6, 10.0.0.1, 1.2.3.4, 10.0.0.2", "1.2.3.4 10.0.0.2 10.0.0.9");
        check("for: 6.6.6.6\nfor: 1.2.3.4\nfor: 10.0.0.2", "1.2.3.4 10.0.0.2 10.0.0.9");
        // Somebody within.
        check("for: 10.0.0.3, 10.0.0.2", "10.0.0.3 10.0.0.2 10.0.0.9");
        check("for: ,1.2.3.4 ,\t, 10.0.0.1 ,", "1.2.3.4 10.0.0.1 10.0.0.9");
        check("for: 1.2.3.4:5678", "1.2.3.4 10.0.0.9");
        check("for: [2001:db8::1]:443, [fd00::1], fd00::2", "2001:db8::1 fd00::1 fd00::2 10.0.0.9");
        check("for: ::ffff:1.2.3.4, ::ffff:10.0.0.1", "1.2.3.4 10.0.0.1 10.0.0.9");
    }

    #[test]
    #[rustfmt::skip]
    fn what_is_no_address_is_the_end_of_it() {
        for no in ["unknown", "_hidden", "a.example.org", "1.2.3", "1.2.3.4.5", "[1.2.3.4]", "[::1", "1.2.3.4 5.6.7.8", "\"1.2.3.4\"", "fe80::1%eth0", "\u{e9}"] {
            check(&format!("for: {no}"), "10.0.0.9");
            check(&format!("for: 6.6.6.6, {no}, 10.0.0.1"), "10.0.0.1 10.0.0.9");
        }
        let many = ["10.0.0.1"; 100].join(", ");
        check(&format!("for: 6.6.6.6, {many}"), &[["10.0.0.1"; PROXIES_MAX].join(" "), "10.0.0.9".to_string()].join(" "));
    }

    #[test]
    #[rustfmt::skip]
    fn protocol_host_and_port_are_what_the_nearest_proxy_says() {
        check("proto: https", "10.0.0.9 https");
        check("for: 1.2.3.4\nproto: HTTPS\nhost: a.org\nport: 8443", "1.2.3.4 10.0.0.9 https a.org 8443");
        check("proto: https, http\nhost: evil, a.org\nport: 1, 2", "10.0.0.9 http a.org 2");
        check("proto: https\nproto: http", "10.0.0.9 http");
        check("proto: wss", "10.0.0.9 https");
        check("proto: ftp\nport: 0", "10.0.0.9");
        check("proto: \nhost: \nport: 65536", "10.0.0.9");
    }

    #[test]
    #[rustfmt::skip]
    fn forwarded_is_read_where_nothing_else_is_said() {
        check("f: for=1.2.3.4", "1.2.3.4 10.0.0.9");
        check("f: for=1.2.3.4;proto=https;by=10.0.0.1;host=a.org", "1.2.3.4 10.0.0.9 https a.org");
        check("f: For=\"[2001:db8::1]:47011\" ; Proto=http, for=10.0.0.1", "2001:db8::1 10.0.0.1 10.0.0.9 http");
        check("f: for=6.6.6.6;proto=https, for=1.2.3.4;proto=http, for=10.0.0.1;proto=https", "1.2.3.4 10.0.0.1 10.0.0.9 http");
        check("f: for=6.6.6.6\nf: for=1.2.3.4\nf: for=10.0.0.2", "1.2.3.4 10.0.0.2 10.0.0.9");
        check("f: for=\"1.2.3.4:80\"", "1.2.3.4 10.0.0.9");
        check("f: for=\"\\1.2.3.4\";host=\"a\\\".org\"", "1.2.3.4 10.0.0.9 a\".org");
        check("f: , for=1.2.3.4 ,, for=10.0.0.1 ;;", "1.2.3.4 10.0.0.1 10.0.0.9");
        // It is not said: whoever says so is known, and how it was asked.
        for no in ["for=unknown", "for=_hidden", "for=\"_gazonk\"", "by=10.0.0.1", "for=2001:db8::1x"] {
            check(&format!("f: for=6.6.6.6, {no};proto=https, for=10.0.0.1"), "10.0.0.1 10.0.0.9 https");
        }
        // Older proxies write the one and pass the other.
        check("for: 1.2.3.4\nf: for=6.6.6.6;proto=https;host=evil", "1.2.3.4 10.0.0.9");
        check("f: for=1.2.3.4;proto=https\nproto: http", "1.2.3.4 10.0.0.9 http");
    }

    #[test]
    #[rustfmt::skip]
    fn nobody_makes_another_s_word_his_own() {
        // A quote that the client left open, and what the proxy appended.
        for client in ["for=\"6.6.6.6", "for=6.6.6.6;x=\"", "for=6.6.6.6;x=\"\\", "\"", "for=\"a\\\""] {
            check(&format!("f: {client}, for=1.2.3.4"), "10.0.0.9");
            check(&format!("f: {client}, for=\"1.2.3.4\""), "10.0.0.9");
            check(&format!("f: {client}\nf: for=1.2.3.4"), "1.2.3.4 10.0.0.9");
        }
        for no in ["for", "for =1.2.3.4", "for= 1.2.3.4", "for=1.2.3.4 x", "for=\"1.2.3.4\"x", "=1.2.3.4", "for==1.2.3.4", "for=", "for;"] {
            check(&format!("f: for=6.6.6.6, {no}"), "10.0.0.9");
        }
    }
}
