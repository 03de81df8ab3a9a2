//! How much of an answer that is kept a client gets: RFC 9110 sections 13 and 14, of what RFC 9111
//! section 4.3.2 has a cache judge.

use super::asked::Asked;
use super::date;

/// What an answer is known by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// As it was said, with its quotes.
    pub etag: Option<Box<[u8]>>,
    pub last_modified: Option<i64>,
    pub date: Option<i64>,
}

/// How much of it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// The client has it: 304.
    Nothing,
    /// 206, with these bytes and those between them.
    Bytes {
        first: u64,
        last: u64,
    },
    /// 416: there is nothing of what was asked for.
    Beyond,
}

/// What of an answer of that length and status is given.
pub fn part(asked: &Asked<'_>, status: u16, marks: &Marks, length: u64, now_s: i64) -> Part {
    if status != 200 {
        return Part::Whole;
    }
    let has_it = match (asked.if_none_match, asked.if_modified_since) {
        (Some(b"*"), _) => true,
        (Some(tags), _) => marks.etag.as_deref().is_some_and(|etag| {
            let of = |tag: &[u8]| weakly(tag) == weakly(etag);
            split(tags).any(of)
        }),
        (None, Some(since)) => {
            let changed = marks.last_modified.or(marks.date);
            changed.zip(date::parse(since, now_s)).is_some_and(|(changed, since)| changed <= since)
        }
        (None, None) => false,
    };
    if has_it {
        return Part::Nothing;
    }
    match asked.range {
        Some(range) if asked.if_range.is_none_or(|it| is_that(it, marks, now_s)) => {
            bytes(range, length)
        }
        Some(_) | None => Part::Whole,
    }
}

/// Whether `If-Range` names exactly that one: RFC 9110 section 13.1.5.
fn is_that(named: &[u8], marks: &Marks, now_s: i64) -> bool {
    if named.ends_with(b"\"") {
        return !named.starts_with(b"W/") && marks.etag.as_deref() == Some(named);
    }
    // A date is of one version only if that had time to change: RFC 9110 section 8.8.2.2.
    let (Some(named), Some(changed), Some(at)) =
        (date::parse(named, now_s), marks.last_modified, marks.date)
    else {
        return false;
    };
    named == changed && changed < at
}

/// A tag as If-None-Match compares it.
pub fn weakly(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The tags of a list. A comma may stand in one.
fn split(tags: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    tags.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
    .map(<[u8]>::trim_ascii)
}

/// Of several ranges all is given, as everybody may; what is no range is not asked for.
fn bytes(range: &[u8], length: u64) -> Part {
    let text = std::str::from_utf8(range).unwrap_or_default();
    let Some((unit, set)) = text.split_once('=') else { return Part::Whole };
    let Some((first, last)) = set.trim().split_once('-') else { return Part::Whole };
    let number = |digits: &str| {
        let sound = !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit());
        sound.then(|| digits.parse().unwrap_or(u64::MAX))
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Part::Whole;
    }
    let end = length.saturating_sub(1);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if last < first => Part::Whole,
        (Some(first), _) if last.is_empty() || number(last).is_some() => match first < length {
            true => Part::Bytes { first, last: number(last).unwrap_or(end).min(end) },
            false => Part::Beyond,
        },
        (None, Some(count)) if first.is_empty() => match count > 0 && length > 0 {
            true => Part::Bytes { first: length.saturating_sub(count), last: end },
            false => Part::Beyond,
        },
        _ => Part::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields<'a> = &'a [(&'a str, &'a str)];

    fn check(fields: Fields<'_>, marks: &Marks, expected: Part) {
        let asked = Asked::of(fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())));
        assert_eq!(part(&asked, 200, marks, 10, 1_795_291_200), expected, "{fields:?}");
    }

    #[test]
    fn a_client_gets_what_it_does_not_have() {
        const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        const NEW: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
        let marks = |etag: &str| Marks {
            etag: Some(etag.as_bytes().into()),
            last_modified: Some(784_111_777),
            date: Some(784_111_900),
        };
        let (strong, weak) = (marks("\"a\""), marks("W/\"a\""));
        let unsure = Marks { date: strong.last_modified, ..strong.clone() };
        let none = Marks::default();
        let bytes = |first, last| Part::Bytes { first, last };
        #[rustfmt::skip]
        let cases: &[(Fields<'_>, &Marks, Part)] = &[
            (&[],                                                           &strong, Part::Whole),
            (&[("If-None-Match", "\"a\"")],                                 &strong, Part::Nothing),
            (&[("If-None-Match", "W/\"a\"")],                               &strong, Part::Nothing),
            (&[("If-None-Match", "\"a\"")],                                 &weak,   Part::Nothing),
            (&[("If-None-Match", "\"b\", \"a\"")],                          &strong, Part::Nothing),
            (&[("If-None-Match", "\"b,\", \"c\"")],                         &strong, Part::Whole),
            (&[("If-None-Match", "a")],                                     &strong, Part::Whole),
            (&[("If-None-Match", "*")],                                     &none,   Part::Nothing),
            (&[("If-None-Match", "\"b\""), ("If-Modified-Since", NEW)],     &strong, Part::Whole),
            (&[("If-Modified-Since", OLD)],                                 &strong, Part::Nothing),
            (&[("If-Modified-Since", NEW)],                                 &strong, Part::Nothing),
            (&[("If-Modified-Since", "Sun, 06 Nov 1994 08:49:36 GMT")],     &strong, Part::Whole),
            (&[("If-Modified-Since", "nonsense")],                          &strong, Part::Whole),
            (&[("If-Modified-Since", NEW)],                                 &none,   Part::Whole),
            (&[("Range", "bytes=0-3")],                                     &strong, bytes(0, 3)),
            (&[("Range", "bytes=4-")],                                      &strong, bytes(4, 9)),
            (&[("Range", "bytes=-4")],                                      &strong, bytes(6, 9)),
            (&[("Range", "bytes=-40")],                                     &strong, bytes(0, 9)),
            (&[("Range", "bytes=8-99")],                                    &strong, bytes(8, 9)),
            (&[("Range", "bytes=9-99999999999999999999")],                  &strong, bytes(9, 9)),
            (&[("Range", "bytes=10-")],                                     &strong, Part::Beyond),
            (&[("Range", "bytes=-0")],                                      &strong, Part::Beyond),
            (&[("Range", "bytes=3-2")],                                     &strong, Part::Whole),
            (&[("Range", "bytes=0-1,4-5")],                                 &strong, Part::Whole),
            (&[("Range", "bytes=+1-2")],                                    &strong, Part::Whole),
            (&[("Range", "bytes=-")],                                       &strong, Part::Whole),
            (&[("Range", "lines=0-1")],                                     &strong, Part::Whole),
            (&[("Range", "bytes")],                                         &strong, Part::Whole),
            (&[("Range", "bytes=0-3"), ("If-Range", "\"a\"")],              &strong, bytes(0, 3)),
            (&[("Range", "bytes=0-3"), ("If-Range", "\"b\"")],              &strong, Part::Whole),
            (&[("Range", "bytes=0-3"), ("If-Range", "W/\"a\"")],            &weak,   Part::Whole),
            (&[("Range", "bytes=0-3"), ("If-Range", OLD)],                  &strong, bytes(0, 3)),
            (&[("Range", "bytes=0-3"), ("If-Range", NEW)],                  &strong, Part::Whole),
            (&[("Range", "bytes=0-3"), ("If-Range", OLD)],                  &unsure, Part::Whole),
            (&[("Range", "bytes=0-3"), ("If-None-Match", "\"a\"")],         &strong, Part::Nothing),
        ];
        for (fields, marks, expected) in cases {
            check(fields, marks, *expected);
        }
        let asked = Asked { range: Some(b"bytes=0-3"), ..Asked::default() };
        assert_eq!(part(&asked, 404, &strong, 10, 0), Part::Whole, "a part of what isn't there");
    }
}
