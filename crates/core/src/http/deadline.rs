//! How long a client waits, as it says it and as it is passed on.
//!
//! gRPC has a field of its own. HTTP has none; the one that is read and written is Envoy's, as programs
//! know it by now.

use std::io::Write;
use std::time::Duration;

/// gRPC's: at most eight digits and a unit.
pub const GRPC: &str = "grpc-timeout";
/// Milliseconds until nobody waits for the head of the answer.
pub const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";
const DIGITS_MAX: usize = 8;

/// What one of them says; `None`: nothing that can be understood.
pub fn grpc(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    let count = number(digits, DIGITS_MAX)?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3_600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// The same of the other; 0 is for ever.
pub fn expected(text: &[u8]) -> Option<Duration> {
    // As many as are surely a number, and longer than anything runs.
    let count = number(text, 15)?;
    Some(if count == 0 { Duration::MAX } else { Duration::from_millis(count) })
}

fn number(digits: &[u8], most: usize) -> Option<u64> {
    let sound = (1..=most).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| sound)?;
    text.parse().ok()
}

/// Says what is left in gRPC's way, as exactly as it can be said: never more than it is.
pub fn push_grpc(out: &mut Vec<u8>, left: Duration) {
    let seconds = left.as_secs();
    let units = [
        (left.as_micros(), 'u'),
        (left.as_millis(), 'm'),
        (seconds.into(), 'S'),
        ((seconds / 60).into(), 'M'),
    ];
    let fits = |(count, _): &(u128, char)| *count < 10_u128.pow(DIGITS_MAX as u32);
    let (count, unit) = units.into_iter().find(fits).unwrap_or(((seconds / 3_600).into(), 'H'));
    // Into memory: it can't fail.
    let _ = write!(out, "{count}{unit}");
}

/// The same in the other's, where 0 would be for ever.
pub fn push_expected(out: &mut Vec<u8>, left: Duration) {
    let _ = write!(out, "{}", u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_says_is_read_strictly_and_said_again_as_what_is_left() {
        #[rustfmt::skip]
        let cases: &[(&str, Option<&str>)] = &[
            // Said, and the same again.
            ("1S",         Some("1000000u")),
            ("99999999u",  Some("99999999u")),
            ("100S",       Some("100000m")),
            ("250m",       Some("250000u")),
            ("1500n",      Some("1u")),
            ("0n",         Some("0u")),
            ("2M",         Some("120000m")),
            ("27H",        Some("97200000m")),
            ("28H",        Some("100800S")),
            ("99999999S",  Some("99999999S")),
            ("99999999M",  Some("99999999M")),
            ("99999999H",  Some("99999999H")),
            ("",           None),
            ("S",          None),
            ("1",          None),
            ("1s",         None),
            ("1SS",        None),
            ("+1S",        None),
            ("-1S",        None),
            (" 1S",        None),
            ("1 S",        None),
            ("1.5S",       None),
            ("100000000u", None),
            ("１S",        None),
        ];
        for (said, again) in cases {
            let mut out = Vec::new();
            let read = grpc(said.as_bytes());
            read.into_iter().for_each(|left| push_grpc(&mut out, left));
            assert_eq!(String::from_utf8(out).unwrap(), again.unwrap_or_default(), "{said:?}");
            assert_eq!(read.is_some(), again.is_some(), "{said:?}");
        }
        let expected_ms = |text: &str| expected(text.as_bytes()).map(|it| it.as_millis());
        assert_eq!(expected_ms("1500"), Some(1_500));
        assert_eq!(expected(b"0"), Some(Duration::MAX));
        assert_eq!(expected_ms("999999999999999"), Some(999_999_999_999_999));
        let mut out = Vec::new();
        push_expected(&mut out, Duration::from_micros(900));
        assert_eq!(out, b"1", "0 would be for ever");
        for none in ["", "+1", "1.5", "1ms", "0x1", "1000000000000000"] {
            assert_eq!(expected_ms(none), None, "{none:?}");
        }
        let mut out = Vec::new();
        push_expected(&mut out, Duration::from_micros(1_999));
        assert_eq!(out, b"1", "never more than it is");
    }
}
