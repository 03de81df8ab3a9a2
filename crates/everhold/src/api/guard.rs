//! What every request passes first: the host it was meant for, the token, a bound in time.

use super::{ApiError, Code, Shared};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::time::Duration;

/// A forced failover waits for the old leader's lease to end; everything else is far quicker.
const DONE_WITHIN: Duration = Duration::from_secs(40);
/// What is told without a token: that it runs, and how to talk to it.
const OPEN: [&str; 2] = ["/healthz", "/openapi.json"];

pub async fn guard(State(api): State<Shared>, request: Request, next: Next) -> Response {
    if let Err(error) = admit(&api.token, &request) {
        return error.into_response();
    }
    let path = request.uri().path().to_string();
    match tokio::time::timeout(DONE_WITHIN, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let text = format!("{path} took longer than {} s", DONE_WITHIN.as_secs());
            ApiError::new(Code::NotInTime, text).into_response()
        }
    }
}

fn admit(token: &str, request: &Request) -> Result<(), ApiError> {
    let host = request.headers().get(HOST).and_then(|value| value.to_str().ok());
    // A page of another site can make a browser send requests here under a name that it has
    // pointed at this address; the browser then tells that name.
    for name in [host, request.uri().authority().map(|authority| authority.as_str())] {
        if name.is_some_and(|name| !is_loopback(name)) {
            let text = format!("this API is not served as {}", name.unwrap_or_default());
            return Err(ApiError::new(Code::ForeignHost, text));
        }
    }
    if host.is_none() {
        return Err(ApiError::new(Code::ForeignHost, "the request names no host"));
    }
    let open = OPEN.contains(&request.uri().path()) && request.method() == "GET";
    let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' '));
    let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match given {
        _ if open => Ok(()),
        Some((_, given)) if !token.is_empty() && equal(given.trim(), token) => Ok(()),
        Some(_) => Err(ApiError::new(Code::NoToken, "the token is not the one of this cluster")),
        None => Err(ApiError::new(Code::NoToken, "the request carries no bearer token")),
    }
}

/// Takes as long whatever differs: the time of an answer must not tell a token byte by byte.
fn equal(given: &str, wanted: &str) -> bool {
    let (given, wanted) = (given.as_bytes(), wanted.as_bytes());
    let differs = wanted
        .iter()
        .enumerate()
        .fold(0_u8, |differs, (at, byte)| differs | (byte ^ given.get(at).copied().unwrap_or(0)));
    std::hint::black_box(differs) == 0 && given.len() == wanted.len()
}

/// `localhost`, 127.0.0.0/8 or `[::1]`, with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(name, _)| name),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_by_any_of_its_names_and_nothing_else() {
        for host in ["localhost", "LocalHost:7070", "127.0.0.1:7070", "127.8.0.1", "[::1]:7070"] {
            assert!(is_loopback(host), "{host}");
        }
        let others = ["evil.example:7070", "localhost.evil.example", "10.0.0.1:7070", "", ":7070"];
        for host in others.into_iter().chain(["[fe80::1]:7070", "127.0.0.1.evil.example"]) {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn tokens_are_equal_in_full_or_not_at_all() {
        assert!(equal("abc", "abc"));
        for given in ["", "ab", "abd", "abcd", "ABC", "abc\0"] {
            assert!(!equal(given, "abc"), "{given:?}");
        }
    }
}
