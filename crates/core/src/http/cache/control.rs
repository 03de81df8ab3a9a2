//! What `Cache-Control` says (RFC 9111 section 5.2, RFC 5861), and what `CDN-Cache-Control` says in its
//! place (RFC 9213).

/// The directives of a message. Times are in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Control {
    pub no_store: bool,
    pub no_cache: bool,
    pub private: bool,
    pub public: bool,
    pub must_revalidate: bool,
    /// The same of caches such as this one; that it may be shared it doesn't say.
    pub proxy_revalidate: bool,
    pub only_if_cached: bool,
    pub max_age: Option<u64>,
    pub s_maxage: Option<u64>,
    pub min_fresh: Option<u64>,
    /// Without a number: however stale.
    pub max_stale: Option<u64>,
    pub stale_while_revalidate: Option<u64>,
    pub stale_if_error: Option<u64>,
}

/// More than any answer lives, and small enough to be reckoned with: RFC 9111 section 1.2.2.
const SECONDS_MAX: u64 = 1 << 31;

impl Control {
    /// Adds what one line says. Of two that differ the stricter one counts, and what is no number is
    /// none: such an answer is stale.
    pub fn read(&mut self, line: &[u8]) {
        for (name, argument) in directives(line) {
            let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
            let seconds = || argument.and_then(seconds).unwrap_or(0);
            let least = |known: &mut Option<u64>| {
                *known = Some(known.map_or(seconds(), |it| it.min(seconds())));
            };
            match name.len() {
                6 if is("public") => self.public = true,
                // With names of fields, too: what they name would have to be told apart.
                7 if is("private") => self.private = true,
                7 if is("max-age") => least(&mut self.max_age),
                8 if is("no-store") => self.no_store = true,
                8 if is("no-cache") => self.no_cache = true,
                8 if is("s-maxage") => least(&mut self.s_maxage),
                9 if is("min-fresh") => self.min_fresh = self.min_fresh.max(Some(seconds())),
                9 if is("max-stale") => {
                    let most = argument.map_or(SECONDS_MAX, |_| seconds());
                    self.max_stale = Some(self.max_stale.map_or(most, |it| it.min(most)));
                }
                14 if is("only-if-cached") => self.only_if_cached = true,
                14 if is("stale-if-error") => least(&mut self.stale_if_error),
                15 if is("must-revalidate") => self.must_revalidate = true,
                16 if is("proxy-revalidate") => self.proxy_revalidate = true,
                22 if is("stale-while-revalidate") => least(&mut self.stale_while_revalidate),
                _ => {}
            }
        }
    }

    /// Adds a line that is for caches such as this one. `false`: it is no dictionary, and by RFC 9213
    /// section 2.1 none of it counts.
    pub fn read_targeted(&mut self, line: &[u8]) -> bool {
        let sound = !line.trim_ascii().is_empty() && directives(line).all(|(name, argument)| {
            let key =
                |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'*' | b'.');
            let counts = name.ends_with(b"age") || name.starts_with(b"stale-");
            !name.is_empty()
                && name.iter().all(key)
                && (!counts || argument.is_some_and(|it| it.iter().all(u8::is_ascii_digit)))
        });
        if sound {
            self.read(line);
        }
        sound
    }
}

/// Names and what is given to them, without quotes.
fn directives(line: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    let mut rest = line;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (mut quoted, mut escaped) = (false, false);
        let ends = |byte: &u8| {
            let comma = *byte == b',' && !quoted;
            quoted ^= *byte == b'"' && !escaped;
            escaped = quoted && *byte == b'\\' && !escaped;
            comma
        };
        let end = rest.iter().position(ends).unwrap_or(rest.len());
        let (one, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        let equals = one.iter().position(|byte| *byte == b'=');
        let name = &one[..equals.unwrap_or(one.len())];
        let argument = equals.map(|at| {
            let argument = one[at + 1..].trim_ascii();
            let inner = argument.strip_prefix(b"\"").and_then(|it| it.strip_suffix(b"\""));
            inner.unwrap_or(argument)
        });
        Some((name.trim_ascii(), argument))
    })
    .filter(|(name, argument)| !name.is_empty() || argument.is_some())
}

/// As RFC 9111 section 1.2.2 has them: too many are very many.
pub fn seconds(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| (sum * 10 + u64::from(digit - b'0')).min(SECONDS_MAX);
    Some(digits.iter().fold(0, add))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_read_strictly() {
        let plain = Control::default();
        let age = |max_age| Control { max_age: Some(max_age), ..plain };
        #[rustfmt::skip]
        let cases = [
            ("",                                    plain),
            (" , ,",                                plain),
            ("max-age=60",                          age(60)),
            ("MAX-AGE = 60",                        age(60)),
            ("max-age=\"60\"",                      age(60)),
            ("max-age=60, max-age=5",               age(5)),
            ("max-age",                             age(0)),
            ("max-age=-1",                          age(0)),
            ("max-age=1.5",                         age(0)),
            ("max-age=99999999999999999999999",     age(1 << 31)),
            ("x=\"a, no-store\", max-age=1",        age(1)),
            ("x=\"a,no-store,b\", max-age=1",       age(1)),
            ("x=\"\\\", no-store\", max-age=1",     age(1)),
            ("s-maxage=7",                          Control { s_maxage: Some(7), ..plain }),
            ("No-Store",                            Control { no_store: true, ..plain }),
            ("no-cache=\"Set-Cookie\"",             Control { no_cache: true, ..plain }),
            ("private=\"x, y\"",                    Control { private: true, ..plain }),
            ("public,must-revalidate",              Control { public: true, must_revalidate: true, ..plain }),
            ("proxy-revalidate",                    Control { proxy_revalidate: true, ..plain }),
            ("max-stale",                           Control { max_stale: Some(1 << 31), ..plain }),
            ("max-stale=x",                         Control { max_stale: Some(0), ..plain }),
            ("max-stale=9, max-stale",              Control { max_stale: Some(9), ..plain }),
            ("min-fresh=9, min-fresh=3",            Control { min_fresh: Some(9), ..plain }),
            ("only-if-cached",                      Control { only_if_cached: true, ..plain }),
            ("stale-while-revalidate=4, stale-if-error=5",
                Control { stale_while_revalidate: Some(4), stale_if_error: Some(5), ..plain }),
            ("no-stores, xno-store, no-store2",     plain),
        ];
        for (line, expected) in cases {
            let mut control = Control::default();
            control.read(line.as_bytes());
            assert_eq!(control, expected, "{line}");
        }
    }

    #[test]
    fn what_is_for_such_caches_is_a_dictionary_or_nothing() {
        #[rustfmt::skip]
        let cases = [
            ("max-age=60",              true),
            ("max-age=60, private",     true),
            ("no-store",                true),
            ("",                        false),
            ("  ",                      false),
            ("Max-Age=60",              false),
            ("max-age=abc",             false),
            ("max-age",                 false),
            ("max-age=60, =",           false),
            ("max age=60",              false),
        ];
        for (line, sound) in cases {
            let mut control = Control::default();
            assert_eq!(control.read_targeted(line.as_bytes()), sound, "{line:?}");
            assert!(sound || control == Control::default(), "{line:?} counts");
        }
    }
}
