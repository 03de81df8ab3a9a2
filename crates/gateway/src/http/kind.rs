//! What the fields of a request are to the gateway: its own, an instance's, or of one connection.

use everhold_core::http::cache::is_like;
use everhold_core::http::deadline;
use everhold_core::http::forwarded::Field;

/// What a field is to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of this connection alone, or what the gateway says itself.
    Own,
    EndToEnd,
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    Upgrade,
    Te,
    Expect,
    MaxForwards,
    TraceParent,
    TraceState,
    RequestId,
    GrpcTimeout,
    Expected,
    /// Whom it is from.
    Forwarding(Field),
}

/// To a program behind CGI or WSGI `_` is `-`: a name that only differs by it is nobody's to give.
pub fn kind(name: &str) -> Kind {
    match known(name) {
        Kind::EndToEnd => Kind::EndToEnd,
        _ if name.contains('_') => Kind::Own,
        kind => kind,
    }
}

fn known(name: &str) -> Kind {
    let is = |other: &str| is_like(name.as_bytes(), other);
    match name.len() {
        2 if is("te") => Kind::Te,
        4 if is("host") => Kind::Host,
        // An old CGI takes it for the environment's variable of that name.
        5 if is("proxy") => Kind::Own,
        6 if is("expect") => Kind::Expect,
        7 if is("upgrade") => Kind::Upgrade,
        9 if is("forwarded") => Kind::Forwarding(Field::Forwarded),
        10 if is("connection") => Kind::Connection,
        10 if is("keep-alive") => Kind::Own,
        10 if is("tracestate") => Kind::TraceState,
        11 if is("traceparent") => Kind::TraceParent,
        12 if is(deadline::GRPC) => Kind::GrpcTimeout,
        12 if is("max-forwards") => Kind::MaxForwards,
        12 if is("x-request-id") => Kind::RequestId,
        14 if is("content-length") => Kind::ContentLength,
        14 if is("http2-settings") => Kind::Own,
        15 if is("x-forwarded-for") => Kind::Forwarding(Field::For),
        16 if is("proxy-connection") => Kind::Own,
        16 if is("x-forwarded-host") => Kind::Forwarding(Field::Host),
        16 if is("x-forwarded-port") => Kind::Forwarding(Field::Port),
        17 if is("transfer-encoding") => Kind::TransferEncoding,
        17 if is("x-forwarded-proto") => Kind::Forwarding(Field::Proto),
        30 if is(deadline::EXPECTED) => Kind::Expected,
        13.. if name.get(..12).is_some_and(|it| is_like(it.as_bytes(), "x-forwarded-")) => {
            Kind::Own
        }
        _ => Kind::EndToEnd,
    }
}

/// Whether a field is neither read nor replaced by the gateway.
pub fn is_end_to_end(name: &str) -> bool {
    kind(name) == Kind::EndToEnd
}
