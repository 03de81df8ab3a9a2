//! What keeps a session on its backend: a cookie that Everhold signs, or a header that names the
//! session.
//!
//! A cookie's value is the signature of service and backend, and nothing else: every gateway with the
//! cluster's secret makes and knows the same ones, before and after a restart, without keeping
//! anything; clients learn neither names nor addresses; and one can't be made up. It is as
//! good for somebody else, who ends up at the same backend: a cookie is no credential. It has no
//! expiry, since it ends with the browser's session or with the backend.
//!
//! A session named by a header goes where its hash falls, whatever load is there.

use super::hash::hash;
use super::ring::Ring;
use std::collections::BTreeMap;

/// Of a signature so many bytes are in a cookie: enough that nobody guesses one.
const BYTES: usize = 16;

/// In hexadecimal digits.
type Value = [u8; 2 * BYTES];

/// The cookies of one service's backends, made when the table changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cookies {
    values: Vec<Value>,
    backends: BTreeMap<Value, usize>,
}

/// Where a request goes by its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stick {
    /// To this backend; nothing is to be set.
    To(usize),
    /// Wherever it is balanced to, and the response sets the cookie of that.
    SetAnew,
    /// Wherever it is balanced to.
    Free,
}

impl Cookies {
    /// Of a service's backends in the table's order. `sign` is a keyed hash with a secret that all
    /// gateways have.
    pub fn new<'a>(
        service: &str,
        backends: impl IntoIterator<Item = &'a str>,
        sign: impl Fn(&[u8]) -> [u8; 32],
    ) -> Cookies {
        let value = |name: &str| {
            // Names have no zeros in them, so no two pairs are the same text.
            let text = [b"everhold affinity 1", service.as_bytes(), name.as_bytes()].join(&0);
            let signature = sign(&text);
            let digit = |half: u8| b"0123456789abcdef"[usize::from(half)];
            std::array::from_fn(|at| match (signature[at / 2], at % 2) {
                (byte, 0) => digit(byte >> 4),
                (byte, _) => digit(byte & 15),
            })
        };
        let values: Vec<Value> = backends.into_iter().map(value).collect();
        let backends = values.iter().enumerate().map(|(i, value)| (*value, i)).collect();
        Cookies { values, backends }
    }

    /// Of a backend; empty if there is no such.
    pub fn value(&self, backend: usize) -> &str {
        let value = self.values.get(backend).map_or(&[][..], |value| value);
        str::from_utf8(value).unwrap_or_default()
    }

    /// Where a request with that value of the cookie goes. One of a backend that is gone, or not
    /// `usable` (ascending) now, counts as none.
    pub fn stick(&self, value: Option<&[u8]>, usable: &[usize]) -> Stick {
        let known = value.and_then(|value| Value::try_from(value).ok());
        let backend = known.and_then(|value| self.backends.get(&value));
        match backend.filter(|backend| usable.binary_search(backend).is_ok()) {
            Some(backend) => Stick::To(*backend),
            None => Stick::SetAnew,
        }
    }
}

/// Where a request goes whose header names a session.
pub fn by_header(value: Option<&[u8]>, ring: &Ring, usable: &[usize]) -> Stick {
    let owner = value.and_then(|value| ring.owner(usable, hash(value)));
    owner.map_or(Stick::Free, Stick::To)
}

/// The values of a cookie in a `Cookie` header.
pub fn cookies<'a>(header: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
    header.split(|byte| *byte == b';').filter_map(move |pair| {
        let (found, value) = pair.split_at_checked(pair.iter().position(|byte| *byte == b'=')?)?;
        (found.trim_ascii() == name.as_bytes()).then(|| value[1..].trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No signature, but it depends on key and text as one does.
    fn sign(key: u8) -> impl Fn(&[u8]) -> [u8; 32] {
        move |text| {
            let word = |i: usize| hash(&[&[key, i as u8], text].concat()).to_le_bytes();
            std::array::from_fn(|at| word(at / 8)[at % 8])
        }
    }

    #[test]
    fn a_cookie_leads_back_to_its_backend_at_every_gateway() {
        let names = ["a.1", "b.1", "c.1"];
        let cookies = Cookies::new("api", names, sign(1));
        let elsewhere = Cookies::new("api", names, sign(1));
        // The table changed: a.1 is gone, b.1 has another index.
        let later = Cookies::new("api", ["b.1", "c.1", "d.1"], sign(1));
        let other_service = Cookies::new("web", names, sign(1));
        let other_secret = Cookies::new("api", names, sign(2));
        let all = [0, 1, 2];
        let a = cookies.value(0).as_bytes();
        let b = cookies.value(1).as_bytes();
        type Case<'a> = (&'a Cookies, Option<&'a [u8]>, &'a [usize], Stick);
        #[rustfmt::skip]
        let cases: &[Case<'_>] = &[
            (&cookies,       Some(b),           &all,    Stick::To(1)),
            (&elsewhere,     Some(b),           &all,    Stick::To(1)),
            (&later,         Some(b),           &all,    Stick::To(0)),
            (&later,         Some(a),           &all,    Stick::SetAnew),
            (&cookies,       Some(b),           &[0, 2], Stick::SetAnew),
            (&cookies,       Some(b),           &[],     Stick::SetAnew),
            (&cookies,       None,              &all,    Stick::SetAnew),
            (&cookies,       Some(b""),         &all,    Stick::SetAnew),
            (&cookies,       Some(b"b.1"),      &all,    Stick::SetAnew),
            (&cookies,       Some(&b[1..]),     &all,    Stick::SetAnew),
            (&cookies,       Some(&[0xFF; 32]), &all,    Stick::SetAnew),
            (&other_service, Some(b),           &all,    Stick::SetAnew),
            (&other_secret,  Some(b),           &all,    Stick::SetAnew),
        ];
        for (cookies, value, usable, expected) in cases {
            assert_eq!(cookies.stick(*value, usable), *expected, "{value:?} of {usable:?}");
        }
        assert_eq!(cookies.value(1).len(), 32);
        assert!(cookies.value(1).bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(!cookies.value(1).contains("b.1"));
        assert_eq!(cookies.value(3), "");
    }

    #[test]
    fn a_header_leads_to_the_same_backend_while_that_is_usable() {
        let ring = Ring::new([("a.1", 1), ("b.1", 1), ("c.1", 1)]);
        let mut moved = 0;
        for session in 0..1_000 {
            let value = format!("session {session}");
            let stick = |usable: &[usize]| by_header(Some(value.as_bytes()), &ring, usable);
            let Stick::To(owner) = stick(&[0, 1, 2]) else { panic!("{value} goes nowhere") };
            let rest: Vec<usize> = (0..3).filter(|i| *i != owner).collect();
            assert!(matches!(stick(&rest), Stick::To(other) if other != owner));
            assert_eq!(stick(&[owner]), Stick::To(owner));
            moved += usize::from(stick(&[0, 1]) != Stick::To(owner));
        }
        assert!((250..420).contains(&moved), "{moved}: a third was at the third");
        assert_eq!(by_header(None, &ring, &[0]), Stick::Free);
        assert_eq!(by_header(Some(b"x"), &ring, &[]), Stick::Free);
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        #[rustfmt::skip]
        let cases: &[(&str, Option<&str>)] = &[
            ("s=1",                   Some("1")),
            ("a=b; s=1; c=d",         Some("1")),
            ("a=b;s=1",               Some("1")),
            ("s=1; s=2",              Some("1")),
            ("s=a=b",                 Some("a=b")),
            ("s=",                    Some("")),
            ("xs=1; sx=2; S=3",       None),
            ("s",                     None),
            ("a=s=1",                 None),
            ("",                      None),
            (";;=;",                  None),
        ];
        for (header, expected) in cases {
            let found = cookies(header.as_bytes(), "s").next();
            assert_eq!(found, expected.map(str::as_bytes), "{header}");
        }
    }
}
