//! Dates as HTTP has them: RFC 9110 section 5.6.7, with the two forms that must still be understood.

const MONTHS: [&[u8]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

/// Seconds since 1970. `None`: it is no date. `now_s`: a year of two digits is not more than 50 years
/// after that.
pub fn parse(text: &[u8], now_s: i64) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let words: Vec<&str> = text.split_ascii_whitespace().take(7).collect();
    let (day, month, year, time) = match words[..] {
        // Sun, 06 Nov 1994 08:49:37 GMT
        [_, day, month, year, time, "GMT"] if year.len() == 4 => (day, month, number(year)?, time),
        // Sunday, 06-Nov-94 08:49:37 GMT
        [_, date, time, "GMT"] => {
            let mut parts = date.split('-');
            let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
            if year.len() != 2 || parts.next().is_some() {
                return None;
            }
            (day, month, century(number(year)?, now_s), time)
        }
        // Sun Nov  6 08:49:37 1994
        [_, month, day, time, year] if year.len() == 4 => (day, month, number(year)?, time),
        _ => return None,
    };
    let month = MONTHS.iter().position(|it| *it == month.as_bytes())? as i64 + 1;
    let mut parts = time.split(':').map(|part| (part.len() == 2).then(|| number(part))?);
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    let day = number(day)?;
    // A second may be one too many: it leaps.
    let sound = (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !sound || parts.next().is_some() {
        return None;
    }
    Some(days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

fn number(text: &str) -> Option<i64> {
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// The year that two digits mean.
fn century(year: i64, now_s: i64) -> i64 {
    let now = 1970 + now_s / 31_556_952;
    let this = now - now % 100 + year;
    if this > now + 50 { this - 100 } else { this }
}

/// Days since 1970, by Howard Hinnant's `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_three_forms() {
        #[rustfmt::skip]
        let cases = [
            ("Sun, 06 Nov 1994 08:49:37 GMT",   Some(784_111_777)),
            ("Sunday, 06-Nov-94 08:49:37 GMT",  Some(784_111_777)),
            ("Sun Nov  6 08:49:37 1994",        Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT",   Some(0)),
            ("Thu, 29 Feb 2024 00:00:00 GMT",   Some(1_709_164_800)),
            ("Sat, 21 Nov 2026 20:00:00 GMT",   Some(1_795_291_200)),
            ("Monday, 01-Jan-77 00:00:00 GMT",  Some(220_924_800)),
            ("Monday, 01-Jan-76 00:00:00 GMT",  Some(3_345_062_400)),
            ("0",                               None),
            ("-1",                              None),
            ("",                                None),
            ("Sun, 06 Nov 1994 08:49:37 UTC",   None),
            ("Sun, 06 Nov 1994 08:49 GMT",      None),
            ("Sun, 06 Nov 1994 24:00:00 GMT",   None),
            ("Sun, 00 Nov 1994 08:49:37 GMT",   None),
            ("Sun, 06 Nou 1994 08:49:37 GMT",   None),
            ("Sun, 06 Nov 94 08:49:37 GMT",     None),
            ("Sun, 06 Nov 1994 8:49:37 GMT",    None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text.as_bytes(), 1_795_291_200), expected, "{text}");
        }
    }
}
