//! A request as the cache looks at it.

use super::control::Control;

/// Fields by which programs take a request for another one than its line says. None of them is part of
/// what an answer is kept under, so that one of them could put its answer in the place of another's.
const OVERRIDES: [&str; 8] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-original-host",
    "x-original-uri",
    "x-rewrite-url",
    "x-host",
];

/// What of a request decides about an answer that is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked<'h> {
    pub control: Control,
    pub authorized: bool,
    /// It says who asks, maybe.
    pub cookie: bool,
    /// Of the site that asks, by a browser.
    pub origin: bool,
    /// It asks for something that a cache does not judge, or for another thing than it is kept under.
    pub odd: bool,
    pub if_none_match: Option<&'h [u8]>,
    pub if_modified_since: Option<&'h [u8]>,
    pub range: Option<&'h [u8]>,
    pub if_range: Option<&'h [u8]>,
}

impl<'h> Asked<'h> {
    pub fn of(fields: impl Iterator<Item = (&'h [u8], &'h [u8])>) -> Asked<'h> {
        let mut asked = Asked::default();
        let (mut pragma, mut controlled) = (false, false);
        for (name, value) in fields {
            let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
            // Of what may stand there once.
            let mut once = |place: &mut Option<&'h [u8]>| {
                asked.odd |= place.replace(value).is_some();
            };
            match name.len() {
                5 if is("range") => once(&mut asked.range),
                6 if is("cookie") => asked.cookie = true,
                6 if is("origin") => asked.origin = true,
                6 if is("pragma") => pragma |= value.eq_ignore_ascii_case(b"no-cache"),
                8 if is("if-match") => asked.odd = true,
                8 if is("if-range") => once(&mut asked.if_range),
                13 if is("authorization") => asked.authorized = true,
                13 if is("cache-control") => {
                    controlled = true;
                    asked.control.read(value);
                }
                13 if is("if-none-match") => once(&mut asked.if_none_match),
                17 if is("if-modified-since") => once(&mut asked.if_modified_since),
                19 if is("if-unmodified-since") => asked.odd = true,
                6.. if name[0].eq_ignore_ascii_case(&b'x') => {
                    asked.odd |= OVERRIDES.iter().any(|it| is_like(name, it));
                }
                _ => {}
            }
        }
        asked.control.no_cache |= pragma && !controlled;
        asked
    }

    /// It may get less than all there is.
    pub fn is_conditional(&self) -> bool {
        self.if_none_match.is_some() || self.if_modified_since.is_some() || self.range.is_some()
    }
}

/// Whether a name is that one, in small letters, or could be taken for it: to a program behind CGI or WSGI
/// `_` is `-`.
pub fn is_like(name: &[u8], other: &str) -> bool {
    let alike = |(a, b): (&u8, u8)| a.eq_ignore_ascii_case(&b) || (*a == b'_' && b == b'-');
    name.len() == other.len() && name.iter().zip(other.bytes()).all(alike)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields<'a> = &'a [(&'a str, &'a str)];

    #[test]
    fn requests_are_odd_where_their_answer_is_not_what_they_are_called() {
        #[rustfmt::skip]
        let cases: &[(Fields<'_>, bool, bool)] = &[
            // Fields, odd, no-cache.
            (&[],                                                       false, false),
            (&[("Accept", "*/*"), ("X-One", "1")],                      false, false),
            (&[("X-HTTP-Method-Override", "DELETE")],                   true,  false),
            (&[("x_http_method_override", "DELETE")],                   true,  false),
            (&[("X-Original-URL", "/admin")],                           true,  false),
            (&[("X-Rewrite-Url", "/admin")],                            true,  false),
            (&[("X-Host", "evil")],                                     true,  false),
            (&[("If-Match", "\"a\"")],                                  true,  false),
            (&[("If-Unmodified-Since", "x")],                           true,  false),
            (&[("If-None-Match", "\"a\"")],                             false, false),
            (&[("If-None-Match", "\"a\""), ("if-none-match", "\"b\"")], true,  false),
            (&[("Range", "bytes=0-1"), ("Range", "bytes=2-3")],         true,  false),
            (&[("Pragma", "no-cache")],                                 false, true),
            (&[("Pragma", "no-cache"), ("Cache-Control", "max-age=1")], false, false),
            (&[("Cache-Control", "no-cache")],                          false, true),
        ];
        for (fields, odd, no_cache) in cases {
            let asked = Asked::of(fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())));
            assert_eq!((asked.odd, asked.control.no_cache), (*odd, *no_cache), "{fields:?}");
        }
    }
}
