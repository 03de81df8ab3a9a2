//! Fields after a body: those that may stand there are passed on.

use super::kind::is_end_to_end;
use super::request::push;
use everhold_core::http::cache::is_like;

/// Each that doesn't say how a message is read, routed or trusted: RFC 9110 section 6.5.1.
pub fn each(lines: &[u8], mut then: impl FnMut(&str, &[u8])) {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let whole = [lines, b"\r\n"].concat();
    if let Ok(httparse::Status::Complete((_, fields))) =
        httparse::parse_headers(&whole, &mut fields)
    {
        for field in fields.iter().filter(|field| may_trail(field.name)) {
            then(field.name, field.value);
        }
    }
}

/// The same, as lines.
pub fn append(out: &mut Vec<u8>, lines: &[u8]) {
    if lines.is_empty() {
        return;
    }
    each(lines, |name, value| push(out, name.as_bytes(), value));
}

const NEVER: [&str; 13] = [
    "authorization",
    "cache-control",
    "content-encoding",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "set-cookie",
    "trailer",
];

fn may_trail(name: &str) -> bool {
    is_end_to_end(name) && !NEVER.iter().any(|never| is_like(name.as_bytes(), never))
}
