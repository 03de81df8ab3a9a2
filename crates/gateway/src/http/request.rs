//! The head of a request, read strictly and rewritten for the instance that gets it.
//!
//! By RFC 9110 and 9112. Whatever two parsers could read differently is refused: the instance behind
//! must never see another request than the one that was judged here. What is forwarded is the
//! *canonical* head: a request line in origin form, one `Host`, end-to-end fields as they were, and what
//! the gateway adds. Fields that belong to one connection are not in it, and of the framing only a
//! `Content-Length` that was understood.

use super::body::{Framing, lines_are_whole};
use super::from::{From, hash_of};
use super::heads::bears_trailers;
use super::id::{Ids, RequestId, is_id, is_traceparent};
use super::kind::{Kind, kind};
use super::target::{self, has_dots, host_name};
use everhold_core::http::affinity::cookies;
use everhold_core::http::deadline;
use everhold_core::http::forwarded::Said;
use everhold_core::http::hash::hash;
use everhold_core::spec::{HashKey, Net};
use http::header::COOKIE;
use httparse::{Header, Status};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

/// More fields than any browser or client sends.
pub const FIELDS_MAX: usize = 100;

/// Why a request is not served, and what is said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub why: &'static str,
}

pub const fn refuse<T>(status: u16, why: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, why })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Other,
}

impl Method {
    pub fn of(name: &[u8]) -> Method {
        match name {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"DELETE" => Method::Delete,
            b"OPTIONS" => Method::Options,
            b"PATCH" => Method::Patch,
            _ => Method::Other,
        }
    }

    /// As metrics and logs call it: `_OTHER` is OpenTelemetry's word.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
            Method::Patch => "PATCH",
            Method::Other => "_OTHER",
        }
    }

    /// By RFC 9110 section 9.2.2: twice is as good as once.
    pub fn is_idempotent(self) -> bool {
        match self {
            Method::Get | Method::Head | Method::Put | Method::Delete | Method::Options => true,
            Method::Post | Method::Patch | Method::Other => false,
        }
    }
}

/// One request, judged. Its memory is used again for the next one of its connection.
#[derive(Clone)]
pub struct Request {
    pub method: Method,
    /// The canonical head, without the empty line.
    pub head: Vec<u8>,
    /// Within `head`.
    method_end: usize,
    path_end: usize,
    target_end: usize,
    /// Where what is said of one try alone begins.
    pub end: usize,
    /// In small letters, without a port.
    pub host: String,
    pub framing: Framing,
    /// The client speaks HTTP/1.0: no chunks, no interim responses.
    pub old: bool,
    pub keep_alive: bool,
    /// It asks for another protocol.
    pub upgrade: bool,
    /// It waits for leave to send its body: RFC 9110 section 10.1.1.
    pub expects: bool,
    /// It goes no further: RFC 9110 section 7.6.2.
    pub is_last: bool,
    /// It bears fields after the answer's body.
    pub trailers: bool,
    /// How long the client waits, for the whole answer of gRPC and for the head of any other, if it says
    /// so.
    pub grpc_timeout: Option<Duration>,
    pub expected: Option<Duration>,
    /// Where host stands in `head`.
    host_at: Range<usize>,
    /// The client, and whether it spoke TLS, where a proxy before the gateway is believed in that.
    pub client: Option<IpAddr>,
    pub secure: Option<bool>,
    /// The hash of the client's address.
    peer: u64,
    pub id: RequestId,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            method: Method::Other,
            head: Vec::new(),
            method_end: 0,
            path_end: 0,
            target_end: 0,
            end: 0,
            host: String::new(),
            framing: Framing::None,
            old: false,
            keep_alive: false,
            upgrade: false,
            expects: false,
            is_last: false,
            trailers: false,
            grpc_timeout: None,
            expected: None,
            host_at: 0..0,
            client: None,
            secure: None,
            peer: 0,
            id: RequestId::default(),
        }
    }
}

impl Request {
    /// Reads the head at the beginning of `input`. `Ok(None)`: it isn't whole yet. Otherwise how long
    /// it is. `trusted`: the proxies that are believed, if who sent it is one of them.
    pub fn read(
        &mut self,
        input: &[u8],
        (from, trusted): (&From, &[Net]),
        ids: &mut Ids,
    ) -> Result<Option<usize>, Refusal> {
        let mut space = [const { MaybeUninit::<Header<'_>>::uninit() }; FIELDS_MAX];
        let mut parsed = httparse::Request::new(&mut []);
        // Of what can't be read nothing is known, least of all from the request before it.
        (self.method, self.framing) = (Method::Other, Framing::None);
        (self.trailers, self.expects, self.is_last) = (false, false, false);
        (self.grpc_timeout, self.expected) = (None, None);
        let length = match parsed.parse_with_uninit_headers(input, &mut space) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return refuse(431, "too many fields"),
            Err(httparse::Error::Version) => return other_version(input),
            Err(_) => return refuse(400, "the head is malformed"),
        };
        // At most one empty line before it is borne, as section 2.2 asks for.
        let begin = if input.starts_with(b"\r\n") { 2 } else { 0 };
        if matches!(input.get(begin), Some(b'\r' | b'\n')) || !lines_are_whole(&input[..length]) {
            return refuse(400, "a line that ends without both CR and LF");
        }
        let (Some(method), Some(target), Some(version)) =
            (parsed.method, parsed.path, parsed.version)
        else {
            return refuse(400, "the head is malformed");
        };
        self.old = version == 0;
        self.method = Method::of(method.as_bytes());
        let (authority, target) = target::split(method, target)?;
        let fields = &*parsed.headers;

        let mut kinds = [Kind::EndToEnd; FIELDS_MAX];
        let (mut host, mut lengths, mut codings, mut unread) = (None, None, 0_usize, None);
        let (mut close, mut keep, mut wants_upgrade, mut nominates) = (false, false, false, false);
        let (mut upgrade, mut http2, mut traces, mut traced, mut id) =
            (false, false, 0, false, None);
        let mut said = Said::default();
        for (field, kind_of) in fields.iter().zip(&mut kinds) {
            *kind_of = kind(field.name);
            match *kind_of {
                Kind::EndToEnd | Kind::Own | Kind::TraceState | Kind::MaxForwards => {}
                Kind::Host => {
                    if host.replace(field.value).is_some() {
                        return refuse(400, "more than one Host");
                    }
                }
                Kind::ContentLength => {
                    if lengths.replace(number(field.value)?).is_some() {
                        return refuse(400, "more than one Content-Length");
                    }
                }
                Kind::TransferEncoding => {
                    codings += 1;
                    if !field.value.eq_ignore_ascii_case(b"chunked") {
                        unread = Some(unread_coding(field.value));
                    }
                }
                Kind::Te => self.trailers |= bears_trailers(field.value),
                Kind::Expect => self.expects |= is_continue(field.value),
                Kind::Connection => {
                    for token in tokens(field.value) {
                        match () {
                            () if token.eq_ignore_ascii_case(b"close") => close = true,
                            () if token.eq_ignore_ascii_case(b"keep-alive") => keep = true,
                            () if token.eq_ignore_ascii_case(b"upgrade") => wants_upgrade = true,
                            () => nominates = true,
                        }
                    }
                }
                // To HTTP/2 in the clear no instance may be talked over.
                Kind::Upgrade => {
                    upgrade = true;
                    http2 |= tokens(field.value).any(is_http);
                }
                Kind::TraceParent => {
                    traces += 1;
                    traced = traces == 1 && is_traceparent(field.value);
                }
                Kind::RequestId => id = is_id(field.value).then_some(field.value),
                Kind::GrpcTimeout => least(&mut self.grpc_timeout, deadline::grpc(field.value))?,
                Kind::Expected => least(&mut self.expected, deadline::expected(field.value))?,
                Kind::Forwarding(it) if !trusted.is_empty() => said.add(it, field.value),
                Kind::Forwarding(_) => {}
            }
        }
        self.framing = match (lengths, codings, unread) {
            (None, 0, _) => Framing::None,
            (Some(length), 0, _) => Framing::Length(length),
            (Some(_), _, _) => return refuse(400, "both Content-Length and Transfer-Encoding"),
            (None, 2.., _) => return refuse(400, "more than one transfer coding"),
            (None, 1, _) if self.old => return refuse(400, "chunks in HTTP/1.0"),
            (None, 1, Some(refusal)) => return Err(refusal),
            (None, 1, None) => Framing::Chunked,
        };
        if host.is_some_and(|host| host_name(host).is_none()) {
            return refuse(400, "a malformed Host");
        }
        let host = match (authority, host) {
            (_, None) if !self.old => return refuse(400, "no Host"),
            (Some(authority), _) => authority.as_bytes(),
            (None, host) => host.unwrap_or_default(),
        };
        self.keep_alive = !close && (!self.old || keep);
        self.expects &= !self.old;
        // A body would be between the two protocols.
        let bare = matches!(self.framing, Framing::None | Framing::Length(0));
        self.upgrade = upgrade && !http2 && wants_upgrade && !self.old && bare;
        self.id = id.map_or_else(|| ids.request(), RequestId::of);

        self.begin(length, method, target, host)?;
        for (field, kind) in fields.iter().zip(&kinds) {
            let passes = match kind {
                Kind::EndToEnd | Kind::Expect => {
                    !nominates || !is_nominated(fields, &kinds, field.name)
                }
                Kind::ContentLength => true,
                Kind::MaxForwards => self.goes_on(field.value)?,
                Kind::Upgrade => self.upgrade,
                Kind::TraceParent | Kind::TraceState => traced,
                Kind::Own
                | Kind::Host
                | Kind::Connection
                | Kind::TransferEncoding
                | Kind::Te
                | Kind::RequestId
                | Kind::GrpcTimeout
                | Kind::Expected
                | Kind::Forwarding(_) => false,
            };
            if passes {
                push(&mut self.head, field.name.as_bytes(), field.value);
            }
        }
        if self.upgrade {
            self.head.extend_from_slice(b"Connection: Upgrade\r\n");
        }
        let via: &[u8] = if self.old { b"Via: 1.0 everhold\r\n" } else { b"Via: 1.1 everhold\r\n" };
        self.came(&said, from, trusted);
        self.finish(via, traced, ids);
        Ok(Some(length))
    }

    /// Takes over what a stream of HTTP/2 asks. What is not of HTTP/2 was refused with its frame.
    pub fn take(
        &mut self,
        parts: &http::request::Parts,
        over: bool,
        (from, trusted): (&From, &[Net]),
        ids: &mut Ids,
    ) -> Result<(), Refusal> {
        // Of what can't be taken nothing is known, least of all from the request before it.
        (self.method, self.framing) = (Method::Other, Framing::None);
        (self.trailers, self.expects, self.is_last) = (false, false, false);
        (self.grpc_timeout, self.expected) = (None, None);
        (self.old, self.keep_alive, self.upgrade) = (false, true, false);
        let (mut host, mut length, mut id) = (None, None, None);
        let (mut traces, mut traced, mut crumbs) = (0, false, Vec::new());
        // Cookies come in crumbs, and browsers have many of them.
        let cookies = parts.headers.get_all(COOKIE).iter().count();
        if parts.headers.len() - cookies > FIELDS_MAX {
            return refuse(431, "too many fields");
        }
        let mut said = Said::default();
        for (name, value) in &parts.headers {
            let value = value.as_bytes();
            // By RFC 9113 section 8.2.1 none of its own is: on its way it would be lost.
            if value.trim_ascii().len() < value.len() {
                return refuse(400, "a value that begins or ends with a space");
            }
            match kind(name.as_str()) {
                Kind::EndToEnd if name == COOKIE => crumbs.push(value),
                Kind::EndToEnd | Kind::Own | Kind::TraceState | Kind::MaxForwards => {}
                Kind::Connection | Kind::TransferEncoding | Kind::Upgrade => {}
                Kind::Te => self.trailers |= bears_trailers(value),
                Kind::Expect => self.expects |= is_continue(value),
                Kind::Host => {
                    if host.replace(value).is_some() {
                        return refuse(400, "more than one Host");
                    }
                }
                // Of several that are alike one is enough; that they are was seen to with the frame.
                Kind::ContentLength => length = Some(number(value)?),
                Kind::TraceParent => {
                    traces += 1;
                    traced = traces == 1 && is_traceparent(value);
                }
                Kind::RequestId => id = id.or(is_id(value).then_some(value)),
                Kind::GrpcTimeout => least(&mut self.grpc_timeout, deadline::grpc(value))?,
                Kind::Expected => least(&mut self.expected, deadline::expected(value))?,
                Kind::Forwarding(it) if !trusted.is_empty() => said.add(it, value),
                Kind::Forwarding(_) => {}
            }
        }
        let host = match (parts.uri.authority(), host) {
            (Some(authority), Some(host)) if authority.as_str().as_bytes() != host => {
                return refuse(400, "a Host that is not the authority");
            }
            (Some(authority), _) => authority.as_str().as_bytes(),
            (None, Some(host)) => host,
            (None, None) => return refuse(400, "no authority"),
        };
        let method = parts.method.as_str();
        let target = parts.uri.path_and_query().map_or("/", |it| it.as_str());
        let (_, target) = target::split(method, target)?;
        self.framing = match (over, length) {
            (true, _) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::End,
        };
        self.method = Method::of(method.as_bytes());
        self.id = id.map_or_else(|| ids.request(), RequestId::of);
        self.begin(512, method, target, host)?;
        for (name, value) in &parts.headers {
            let passes = match kind(name.as_str()) {
                Kind::EndToEnd => name != COOKIE,
                Kind::Expect => true,
                Kind::MaxForwards => self.goes_on(value.as_bytes())?,
                Kind::TraceParent | Kind::TraceState => traced,
                Kind::Own
                | Kind::Host
                | Kind::Connection
                | Kind::ContentLength
                | Kind::TransferEncoding
                | Kind::Upgrade
                | Kind::Te
                | Kind::RequestId
                | Kind::GrpcTimeout
                | Kind::Expected
                | Kind::Forwarding(_) => false,
            };
            if passes {
                push(&mut self.head, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        // However often it was said.
        if let Some(length) = length {
            push(&mut self.head, b"content-length", length.to_string().as_bytes());
        }
        // Its crumbs are one line in HTTP/1: RFC 9113 section 8.2.3.
        if !crumbs.is_empty() {
            push(&mut self.head, b"cookie", &crumbs.join(&b"; "[..]));
        }
        self.came(&said, from, trusted);
        self.finish(b"Via: 2 everhold\r\n", traced, ids);
        Ok(())
    }

    /// Counts the gateways that an OPTIONS may still pass; says whether the field passes as it is.
    fn goes_on(&mut self, most: &[u8]) -> Result<bool, Refusal> {
        if self.method != Method::Options {
            return Ok(true);
        }
        match number(most).ok() {
            None => return refuse(400, "a Max-Forwards that is no number"),
            Some(0) => self.is_last = true,
            Some(most) => push(&mut self.head, b"Max-Forwards", (most - 1).to_string().as_bytes()),
        }
        Ok(false)
    }

    /// Starts the canonical head.
    fn begin(
        &mut self,
        length: usize,
        method: &str,
        target: &str,
        host: &[u8],
    ) -> Result<(), Refusal> {
        self.head.clear();
        self.head.reserve(length + 512);
        self.head.extend_from_slice(method.as_bytes());
        self.method_end = self.head.len();
        self.head.push(b' ');
        self.head.extend_from_slice(target.as_bytes());
        self.target_end = self.head.len();
        self.path_end = match memchr::memchr(b'?', target.as_bytes()) {
            Some(at) => self.method_end + 1 + at,
            None => self.target_end,
        };
        if has_dots(self.path()) {
            return refuse(400, "a path with dot segments");
        }
        self.head.extend_from_slice(b" HTTP/1.1\r\nHost: ");
        self.host_at = self.head.len()..self.head.len() + host.len();
        self.head.extend_from_slice(host);
        self.head.extend_from_slice(b"\r\n");
        self.host.clear();
        let Some(name) = host_name(host) else { return refuse(400, "a malformed Host") };
        // The same name as a route has it.
        let name = name.strip_suffix(b".").unwrap_or(name);
        self.host.extend(name.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        Ok(())
    }

    /// Says whom it is from.
    fn came(&mut self, said: &Said<'_>, from: &From, trusted: &[Net]) {
        (self.peer, self.client, self.secure) = (from.peer, None, None);
        if !trusted.is_empty() {
            let origin = said.judge(from.ip, trusted);
            let client = origin.path.first().copied().unwrap_or(from.ip);
            let host = self.head[self.host_at.clone()].to_vec();
            from.tell(&mut self.head, &origin, &host);
            (self.peer, self.client, self.secure) = (hash_of(client), Some(client), origin.secure);
            return;
        }
        self.head.extend_from_slice(&from.fields);
        if !self.host_at.is_empty() {
            self.head.extend_from_slice(b"X-Forwarded-Host: ");
            self.head.extend_from_within(self.host_at.clone());
            self.head.extend_from_slice(b"\r\n");
        }
    }

    /// What else the gateway adds. `via` says in which version it came.
    fn finish(&mut self, via: &[u8], traced: bool, ids: &mut Ids) {
        if !traced {
            self.head.extend_from_slice(b"traceparent: ");
            ids.traceparent(&mut self.head);
            self.head.extend_from_slice(b"\r\n");
        }
        push(&mut self.head, b"X-Request-Id", self.id.as_bytes());
        self.head.extend_from_slice(via);
        self.end = self.head.len();
    }

    /// How long the client waits for the head of an answer, if it says so.
    pub fn patience(&self) -> Option<Duration> {
        self.grpc_timeout.into_iter().chain(self.expected).min()
    }

    /// Says in the head how long the next try may take to its answer's head, and what is left of the
    /// client's time after `spent`. A time for the whole of a call is never made up: it would end one
    /// that is meant to go on.
    pub fn give(&mut self, left: Duration, spent: Duration) {
        self.head.truncate(self.end);
        self.head.extend_from_slice(b"X-Envoy-Expected-Rq-Timeout-Ms: ");
        deadline::push_expected(&mut self.head, left);
        if let Some(timeout) = self.grpc_timeout {
            self.head.extend_from_slice(b"\r\ngrpc-timeout: ");
            deadline::push_grpc(&mut self.head, timeout.saturating_sub(spent));
        }
        self.head.extend_from_slice(b"\r\n");
    }

    pub fn method_name(&self) -> &[u8] {
        &self.head[..self.method_end]
    }

    /// It can't be taken, and what stands here is of the one before it.
    pub fn forget(&mut self) {
        self.head.clear();
        self.head.push(b' ');
        self.host.clear();
        (self.client, self.secure) = (None, None);
        (self.method_end, self.path_end, self.target_end) = (0, 1, 1);
        self.keep_alive = false;
    }

    /// Without the query.
    pub fn path(&self) -> &[u8] {
        &self.head[self.method_end + 1..self.path_end]
    }

    pub fn target(&self) -> &[u8] {
        &self.head[self.method_end + 1..self.target_end]
    }

    /// What it is shared out by; `None`: it has no such thing.
    pub fn key(&self, by: &HashKey) -> Option<u64> {
        Some(match by {
            HashKey::ClientIp => self.peer,
            HashKey::Path => hash(self.path()),
            HashKey::Header(name) => hash(self.value(name)?),
            HashKey::Cookie(name) => hash(self.cookie(name)?),
        })
    }

    /// Whether it is a call of gRPC. That of browsers is not: it is answered in other ways.
    pub fn is_grpc(&self) -> bool {
        const GRPC: &[u8] = b"application/grpc";
        let kind = self.value("content-type").unwrap_or_default();
        let (name, rest) = kind.split_at(kind.len().min(GRPC.len()));
        name.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';'))
    }

    /// The value of a cookie.
    pub fn cookie(&self, name: &str) -> Option<&[u8]> {
        self.cookies(name).next()
    }

    /// The values of all cookies of that name.
    pub fn cookies(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.values("cookie").flat_map(move |it| cookies(it, name))
    }

    /// All fields of that name, given in small letters.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        lines(&self.head)
            .filter(move |(it, _)| it.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// The first field of that name, given in small letters.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        value(&self.head, name)
    }
}

/// One more field of a canonical head.
pub fn push(head: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    head.extend_from_slice(name);
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

/// The first field of that name in a canonical head.
pub fn value<'h>(head: &'h [u8], name: &str) -> Option<&'h [u8]> {
    lines(head).find(|(it, _)| it.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
}

/// The fields of a canonical head.
pub fn lines(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let first = memchr::memchr(b'\n', head).map_or(head.len(), |at| at + 1);
    let mut rest = &head[first..];
    std::iter::from_fn(move || {
        let end = memchr::memchr(b'\n', rest)?;
        let line = &rest[..end.saturating_sub(1)];
        rest = &rest[end + 1..];
        let colon = memchr::memchr(b':', line)?;
        Some((&line[..colon], line[colon + 1..].trim_ascii_start()))
    })
}

fn is_nominated(fields: &[Header<'_>], kinds: &[Kind], name: &str) -> bool {
    let connections = fields.iter().zip(kinds).filter(|(_, kind)| **kind == Kind::Connection);
    connections
        .flat_map(|(field, _)| tokens(field.value))
        .any(|token| token.eq_ignore_ascii_case(name.as_bytes()))
}

/// What is said to a request line that ends with no version that is spoken here: nothing, before all
/// of it is there.
fn other_version(input: &[u8]) -> Result<Option<usize>, Refusal> {
    let line = input.strip_prefix(b"\r\n").unwrap_or(input);
    let Some(end) = memchr::memchr(b'\n', line) else { return Ok(None) };
    let mut words = line[..end].strip_suffix(b"\r").unwrap_or_default().split(|byte| *byte == b' ');
    let version = words.nth(2).and_then(|it| it.strip_prefix(b"HTTP/"));
    match (version, words.next()) {
        (Some([b'0'..=b'9', b'.', b'0'..=b'9']), None) => refuse(505, "not HTTP/1.0 or HTTP/1.1"),
        _ => refuse(400, "the head is malformed"),
    }
}

/// Of several times the shortest counts.
fn least(known: &mut Option<Duration>, said: Option<Duration>) -> Result<(), Refusal> {
    let Some(said) = said else { return refuse(400, "a timeout that is none") };
    *known = Some(known.map_or(said, |known| known.min(said)));
    Ok(())
}

/// What is said of a transfer coding that isn't `chunked` alone: by RFC 9112 sections 6.3 and 7.1 nobody
/// can say where the body ends if that isn't the last one, and it may not be there twice.
fn unread_coding(value: &[u8]) -> Refusal {
    let is_chunked = |token: &[u8]| token.eq_ignore_ascii_case(b"chunked");
    let (status, why) = match tokens(value).filter(|it| is_chunked(it)).count() {
        _ if !tokens(value).last().is_some_and(is_chunked) => {
            (400, "a transfer coding that does not end")
        }
        0 | 1 => (501, "a transfer coding beside chunked"),
        _ => (400, "chunks within chunks"),
    };
    Refusal { status, why }
}

fn is_continue(expected: &[u8]) -> bool {
    expected.eq_ignore_ascii_case(b"100-continue")
}

/// Whether it is a protocol over which no instance may be talked to by an upgrade: HTTP/2 in the clear
/// would carry requests that nobody judges.
fn is_http(protocol: &[u8]) -> bool {
    let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
    [&b"h2c"[..], b"h2", b"http"].iter().any(|it| name.eq_ignore_ascii_case(it))
}

/// The elements of a list.
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// A length: digits and nothing else. With a zero before them it is octal to some.
pub fn number(value: &[u8]) -> Result<u64, Refusal> {
    let digits = value.iter().all(u8::is_ascii_digit) && !matches!(value, [b'0', _, ..]);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    match text.and_then(|text| text.parse().ok()) {
        Some(length) => Ok(length),
        None => refuse(400, "a Content-Length that is no number"),
    }
}
