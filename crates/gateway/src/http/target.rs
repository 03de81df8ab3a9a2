//! What a request is for: its target, and the host it names.

use super::request::{Refusal, refuse};

/// Who is asked, where the target says it, and the target in origin form.
pub fn split<'t>(method: &str, target: &'t str) -> Result<(Option<&'t str>, &'t str), Refusal> {
    if !target.bytes().all(|byte| matches!(byte, b'!'..=b'~') && byte != b'#') {
        return refuse(400, "a character in the target that must be encoded");
    }
    match method {
        "CONNECT" => return refuse(501, "this is no forward proxy"),
        // It would show fields that the gateway and those before it have added.
        "TRACE" => return refuse(501, "TRACE is not served"),
        "OPTIONS" if target == "*" => return Ok((None, target)),
        _ => {}
    }
    if target.starts_with('/') {
        return Ok((None, target));
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return refuse(400, "a target that is no path");
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return refuse(400, "a target of another scheme");
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || path.starts_with('?') {
        return refuse(400, "a target without host or path");
    }
    let nothing = if method == "OPTIONS" { "*" } else { "/" };
    Ok((Some(authority), if path.is_empty() { nothing } else { path }))
}

/// The name in `NAME[:PORT]`; `None`: it is none.
pub fn host_name(host: &[u8]) -> Option<&[u8]> {
    let name_end = match host {
        [b'[', ..] => memchr::memchr(b']', host)? + 1,
        _ => memchr::memchr(b':', host).unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(name_end);
    let inner = name.strip_prefix(b"[").and_then(|it| it.strip_suffix(b"]"));
    let fits = match inner {
        Some(inner) => {
            !inner.is_empty()
                && inner.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'))
        }
        None => name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')),
    };
    let port_fits = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    (fits && port_fits).then_some(name)
}

/// Whether a segment of the path is `.` or `..`, encoded or not: a route would be chosen by another
/// path than the instance serves. Some take an encoded slash for one before they look for dots, and
/// some cut off what follows a semicolon.
pub fn has_dots(path: &[u8]) -> bool {
    let mut suspicious = memchr::memchr2_iter(b'.', b'%', path);
    if !suspicious.any(|at| {
        let before = at.checked_sub(1).map(|before| path[before]);
        path[at] == b'%' || matches!(before, None | Some(b'/' | b'\\'))
    }) {
        return false;
    }
    let mut dots = Some(0_u32);
    let mut rest = path;
    loop {
        let (byte, after) = match rest {
            [] => return matches!(dots, Some(1 | 2)),
            [b'%', high, low, after @ ..] => match [*high, low.to_ascii_lowercase()] {
                [b'2', b'e'] => (b'.', after),
                [b'2', b'f'] | [b'5', b'c'] => (b'/', after),
                [b'3', b'b'] => (b';', after),
                _ => (b'%', after),
            },
            [byte, after @ ..] => (*byte, after),
        };
        rest = after;
        match (byte, dots) {
            (b'/' | b'\\' | b';', Some(1 | 2)) => return true,
            (b'/' | b'\\', _) => dots = Some(0),
            (b'.', Some(before)) => dots = Some(before + 1),
            (_, _) => dots = None,
        }
    }
}
