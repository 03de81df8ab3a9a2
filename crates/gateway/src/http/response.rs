//! The head of a response: read strictly from an instance, or made here.

use super::body::{Framing, lines_are_whole};
use super::id::RequestId;
use super::request::{FIELDS_MAX, Method, Request, number, push, tokens};
use everhold_core::http::degrade::Page;
use http::header::{CONTENT_LENGTH, DATE};
use httparse::{Header, Status};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use std::mem::MaybeUninit;

/// What an instance answered.
pub struct Response {
    pub status: u16,
    /// Status line and end-to-end fields, without the empty line. Of the framing only a
    /// `Content-Length` that was understood.
    pub head: Vec<u8>,
    pub framing: Framing,
    /// The instance keeps the connection.
    pub keep_alive: bool,
    /// Whom the gateway's own next answer turns away may come back after so many seconds.
    pub again_after_s: Option<u64>,
    /// What the gateway adds to the answer, whoever gives it: fields that end with CR LF.
    pub added: Vec<u8>,
}

impl Default for Response {
    fn default() -> Response {
        Response {
            status: 0,
            head: Vec::new(),
            framing: Framing::None,
            keep_alive: false,
            again_after_s: None,
            added: Vec::new(),
        }
    }
}

/// The instance's answer is none; why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadResponse(pub &'static str);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Own,
    EndToEnd,
    Connection,
    ContentLength,
    TransferEncoding,
    Upgrade,
    Date,
    RequestId,
}

fn kind(name: &str) -> Kind {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        4 if is("date") => Kind::Date,
        7 if is("upgrade") => Kind::Upgrade,
        10 if is("connection") => Kind::Connection,
        10 if is("keep-alive") => Kind::Own,
        12 if is("x-request-id") => Kind::RequestId,
        14 if is("content-length") => Kind::ContentLength,
        16 if is("proxy-connection") => Kind::Own,
        17 if is("transfer-encoding") => Kind::TransferEncoding,
        _ => Kind::EndToEnd,
    }
}

impl Response {
    /// Reads the head at the beginning of `input`, the answer to a request of that method. `Ok(None)`:
    /// it isn't whole yet.
    pub fn read(
        &mut self,
        input: &[u8],
        method: Method,
        id: &RequestId,
    ) -> Result<Option<usize>, BadResponse> {
        let mut space = [const { MaybeUninit::<Header<'_>>::uninit() }; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let length = match config.parse_response_with_uninit_headers(&mut parsed, input, &mut space)
        {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return Ok(None),
            Err(_) => return Err(BadResponse("its head is malformed")),
        };
        if !input.starts_with(b"HTTP/") || !lines_are_whole(&input[..length]) {
            return Err(BadResponse("its head is malformed"));
        }
        let (Some(version), Some(status)) = (parsed.version, parsed.code) else {
            return Err(BadResponse("its head is malformed"));
        };
        if status < 100 {
            return Err(BadResponse("its status is none"));
        }
        let fields = &*parsed.headers;
        let mut kinds = [Kind::EndToEnd; FIELDS_MAX];
        let (mut lengths, mut codings, mut chunked) = (None, 0_usize, false);
        let (mut close, mut keep, mut nominates) = (false, false, false);
        for (field, kind_of) in fields.iter().zip(&mut kinds) {
            *kind_of = kind(field.name);
            match *kind_of {
                Kind::Own | Kind::EndToEnd | Kind::Upgrade | Kind::Date | Kind::RequestId => {}
                Kind::ContentLength => {
                    let length = number(field.value).map_err(|it| BadResponse(it.why))?;
                    if lengths.replace(length).is_some_and(|before| before != length) {
                        return Err(BadResponse("it gives two lengths"));
                    }
                }
                Kind::TransferEncoding => {
                    codings += 1;
                    chunked = field.value.eq_ignore_ascii_case(b"chunked");
                }
                Kind::Connection => {
                    for token in tokens(field.value) {
                        match () {
                            () if token.eq_ignore_ascii_case(b"close") => close = true,
                            () if token.eq_ignore_ascii_case(b"keep-alive") => keep = true,
                            () if token.eq_ignore_ascii_case(b"upgrade") => {}
                            () => nominates = true,
                        }
                    }
                }
            }
        }
        let bodyless = bodyless_by(method, status);
        self.framing = match (codings, lengths) {
            (1.., Some(_)) => return Err(BadResponse("it gives both a length and a coding")),
            (1, None) if chunked && version == 1 => Framing::Chunked,
            (1.., None) => return Err(BadResponse("it has a coding other than chunked")),
            _ if bodyless => Framing::None,
            (0, Some(length)) => Framing::Length(length),
            (0, None) => Framing::End,
        };
        if bodyless {
            self.framing = Framing::None;
        }
        // What has no body and speaks of one may send it: to the next request it would be the answer.
        let speaks_of_body = codings > 0 || lengths.is_some_and(|length| length > 0);
        let dubious = matches!(status, 100..=199 | 204) && speaks_of_body;
        self.status = status;
        self.keep_alive = !close
            && !dubious
            && (version == 1 || keep)
            && self.framing != Framing::End
            && status != 101;

        self.begin(status, parsed.reason.unwrap_or_default(), length);
        let (mut has_length, mut has_date) = (false, false);
        for (field, kind) in fields.iter().zip(&kinds) {
            let passes = match kind {
                Kind::EndToEnd | Kind::Date => {
                    !nominates || !is_nominated(fields, &kinds, field.name)
                }
                Kind::ContentLength => {
                    !std::mem::replace(&mut has_length, true) && !matches!(status, 100..=199 | 204)
                }
                Kind::Upgrade => status == 101,
                Kind::Own | Kind::Connection | Kind::TransferEncoding | Kind::RequestId => false,
            };
            if passes {
                has_date |= *kind == Kind::Date;
                push(&mut self.head, field.name.as_bytes(), field.value);
            }
        }
        if status >= 200 {
            self.finish(id, has_date);
        }
        Ok(Some(length))
    }

    /// Takes over what an instance answers in HTTP/2; `over`: nothing follows. What is not of HTTP/2
    /// was refused with its frame.
    pub fn take(
        &mut self,
        parts: &http::response::Parts,
        over: bool,
        method: Method,
        id: &RequestId,
    ) -> Result<(), BadResponse> {
        let status = parts.status.as_u16();
        if status == 101 {
            return Err(BadResponse("it changes the protocol in HTTP/2"));
        }
        // Of several that are alike one is enough; that they are was seen to with the frame.
        let length = parts.headers.get(CONTENT_LENGTH).map(|it| number(it.as_bytes())).transpose();
        let length = length.map_err(|it| BadResponse(it.why))?;
        let bodyless = bodyless_by(method, status);
        self.framing = match length {
            _ if over || bodyless => Framing::None,
            Some(length) => Framing::Length(length),
            None => Framing::End,
        };
        (self.status, self.keep_alive) = (status, true);
        self.begin(status, parts.status.canonical_reason().unwrap_or_default(), 512);
        for (name, value) in &parts.headers {
            let passes = match kind(name.as_str()) {
                Kind::EndToEnd | Kind::Date => true,
                Kind::Own
                | Kind::Connection
                | Kind::ContentLength
                | Kind::TransferEncoding
                | Kind::Upgrade
                | Kind::RequestId => false,
            };
            if passes {
                push(&mut self.head, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        // However often it was said. To a HEAD, or with a 304, it speaks of what isn't sent.
        let length = match (length, over && !bodyless) {
            (None, true) => Some(0),
            (length, _) => length.filter(|_| !matches!(status, 100..=199 | 204)),
        };
        if let Some(length) = length {
            push(&mut self.head, b"content-length", length.to_string().as_bytes());
        }
        if status >= 200 {
            self.finish(id, parts.headers.contains_key(DATE));
        }
        Ok(())
    }

    /// Starts the canonical head.
    fn begin(&mut self, status: u16, reason: &str, length: usize) {
        self.head.clear();
        self.head.reserve(length + 128);
        self.head.extend_from_slice(b"HTTP/1.1 ");
        push_status(&mut self.head, status);
        self.head.push(b' ');
        self.head.extend_from_slice(reason.as_bytes());
        self.head.extend_from_slice(b"\r\n");
    }

    /// By RFC 9110 section 6.6.1 who passes on an answer without a date gives it one.
    fn finish(&mut self, id: &RequestId, has_date: bool) {
        if !has_date
            && let Ok(now) = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now())
        {
            push(&mut self.head, b"Date", now.as_bytes());
        }
        push(&mut self.head, b"X-Request-Id", id.as_bytes());
    }

    /// An answer of the gateway's own, with its body: what is wrong, and the name of the request. 204:
    /// nothing is, and there is none. Who speaks gRPC gets no body, and the same in its own words.
    pub fn own(&mut self, status: u16, why: &str, asked: &Request) -> Vec<u8> {
        if asked.is_grpc() && status != 204 {
            self.own_grpc(status, why, &asked.id);
            return Vec::new();
        }
        let id = &asked.id;
        let id_text = String::from_utf8_lossy(id.as_bytes());
        let body =
            format!("{{\"error\":\"{why}\",\"status\":{status},\"request\":\"{id_text}\"}}\n");
        self.begin_own(status, reason(status));
        if status == 204 {
            self.finish(id, false);
            return Vec::new();
        }
        push(&mut self.head, b"Content-Type", b"application/json");
        push(&mut self.head, b"Content-Length", body.len().to_string().as_bytes());
        push(&mut self.head, b"Cache-Control", b"no-store");
        self.finish(id, false);
        body.into_bytes()
    }

    /// The same with what the user wants to be said. gRPC has no pages.
    pub fn page(&mut self, page: &Page, asked: &Request) -> Vec<u8> {
        if asked.is_grpc() {
            self.own_grpc(503, "degraded", &asked.id);
            return Vec::new();
        }
        self.begin_own(page.status, reason(page.status));
        push(&mut self.head, b"Content-Type", page.content_type.as_bytes());
        push(&mut self.head, b"Content-Length", page.body.len().to_string().as_bytes());
        push(&mut self.head, b"Cache-Control", b"no-store");
        self.finish(&asked.id, false);
        page.body.clone().into_bytes()
    }

    /// Trailers alone, as gRPC calls an answer that is over with its head. In HTTP it is a success.
    fn own_grpc(&mut self, status: u16, why: &str, id: &RequestId) {
        self.begin_own(200, "OK");
        push(&mut self.head, b"Content-Type", b"application/grpc");
        push(&mut self.head, b"Content-Length", b"0");
        push(&mut self.head, b"grpc-status", grpc_status(status).to_string().as_bytes());
        // Printable ASCII without a percent sign stands for itself.
        push(&mut self.head, b"grpc-message", why.as_bytes());
        self.finish(id, false);
    }

    fn begin_own(&mut self, status: u16, reason: &str) {
        (self.status, self.keep_alive) = (status, true);
        self.begin(status, reason, 256);
        if let Some(seconds) = self.again_after_s.take() {
            push(&mut self.head, b"Retry-After", seconds.to_string().as_bytes());
        }
    }
}

/// Whether no body follows, whatever the fields say.
fn bodyless_by(method: Method, status: u16) -> bool {
    method == Method::Head || matches!(status, 100..=199 | 204 | 304)
}

fn push_status(head: &mut Vec<u8>, status: u16) {
    let digit = |value: u16| b'0' + (value % 10) as u8;
    head.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status)]);
}

fn is_nominated(fields: &[Header<'_>], kinds: &[Kind], name: &str) -> bool {
    let connections = fields.iter().zip(kinds).filter(|(_, kind)| **kind == Kind::Connection);
    connections
        .flat_map(|(field, _)| tokens(field.value))
        .any(|token| token.eq_ignore_ascii_case(name.as_bytes()))
}

/// What gRPC calls a status, as Envoy says it, and where something is too much by the name it has for that.
fn grpc_status(status: u16) -> u8 {
    match status {
        // INTERNAL
        400 => 13,
        // UNIMPLEMENTED
        404 => 12,
        // RESOURCE_EXHAUSTED
        413 | 429 | 431 => 8,
        // UNAVAILABLE
        502 | 503 => 14,
        // DEADLINE_EXCEEDED
        504 => 4,
        // UNKNOWN
        _ => 2,
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}
