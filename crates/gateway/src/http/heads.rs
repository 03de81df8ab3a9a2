//! Heads between the canonical form and that of HTTP/2.

use super::request::{self, Request, tokens};
use bytes::Bytes;
use http::header::{CONNECTION, HOST, TE, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use std::net::SocketAddr;

/// Each request has its own, which is not worth a place in the tables of HPACK.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The fields of a canonical head but for those that are skipped. They share one copy of it.
pub fn fields(head: &[u8], skip: impl Fn(&[u8]) -> bool) -> HeaderMap {
    let shared = Bytes::copy_from_slice(head);
    // No more than there are: a small piece of memory is had for much less than a large one.
    let mut fields = HeaderMap::with_capacity(memchr::memchr_iter(b'\n', head).count());
    for (name, value) in request::lines(&shared).filter(|(name, _)| !skip(name)) {
        let Ok(mut value) = HeaderValue::from_maybe_shared(shared.slice_ref(value)) else {
            continue;
        };
        if name.eq_ignore_ascii_case(REQUEST_ID.as_str().as_bytes()) {
            value.set_sensitive(true);
            fields.append(REQUEST_ID, value);
        } else if let Ok(name) = HeaderName::from_bytes(name) {
            fields.append(name, value);
        }
    }
    fields
}

/// A request as it goes to the instance at that address. An upgrade is not asked for: in HTTP/2 there
/// is none.
pub fn request(request: &Request, to: SocketAddr) -> Result<http::Request<()>, http::Error> {
    let mut asked = http::Request::new(());
    *asked.method_mut() = http::Method::from_bytes(request.method_name())?;
    let authority = request::value(&request.head, "host").unwrap_or_default();
    let to = to.to_string();
    // HTTP/1.0 may leave it out.
    let authority = if authority.is_empty() { to.as_bytes() } else { authority };
    *asked.uri_mut() = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(request.target())
        .build()?;
    let of_connection = |name: &[u8]| {
        let is = |it: &HeaderName| name.eq_ignore_ascii_case(it.as_str().as_bytes());
        [HOST, CONNECTION, UPGRADE].iter().any(is)
    };
    *asked.headers_mut() = fields(&request.head, of_connection);
    if request.trailers {
        asked.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    }
    Ok(asked)
}

/// An answer as it goes to the client.
pub fn response(status: u16, head: &[u8]) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    *response.headers_mut() = fields(head, |_| false);
    response
}

/// Whether fields after the body are borne, as `TE` says.
pub fn bears_trailers(te: &[u8]) -> bool {
    tokens(te).any(|token| token.eq_ignore_ascii_case(b"trailers"))
}
