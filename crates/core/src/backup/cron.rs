//! When something is due: a schedule in cron's five fields, in UTC.
//!
//! Minute, hour, day of the month, month, day of the week, each `*`, a number, a range, a list, or
//! any of them with a step; names for months and days, and `@hourly` to `@yearly`. As in cron(8), a
//! day is meant if either of its two fields says so, where neither begins with `*`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Seconds of a day.
const DAY_S: u64 = 86_400;
/// The 29th of February of one weekday is up to 40 years away (over a century that is no leap year).
const DAYS_AHEAD_MAX: u64 = 41 * 366;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A schedule, as it was written and as sets of numbers: bit n is n.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cron {
    text: String,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both fields of the day have to agree.
    both: bool,
}

impl Cron {
    /// The first instant after `unix_s` that it names, in seconds since 1970. `None`: it never comes
    /// (the 30th of February).
    pub fn next_after(&self, unix_s: u64) -> Option<u64> {
        let from = (unix_s / 60 + 1) * 60;
        let today = from / DAY_S;
        for day in today..today + DAYS_AHEAD_MAX {
            if !self.has_day(day) {
                continue;
            }
            let first = if day == today { from % DAY_S / 60 } else { 0 };
            if let Some(minute) = (first..24 * 60).find(|at| self.has_minute(*at)) {
                return Some(day * DAY_S + minute * 60);
            }
        }
        None
    }

    /// The last instant at or before `unix_s` that it names. `None`: none since 1970, or for longer
    /// than [`Cron::next_after`] looks ahead.
    pub fn last_before(&self, unix_s: u64) -> Option<u64> {
        let today = unix_s / DAY_S;
        for day in (today.saturating_sub(DAYS_AHEAD_MAX)..=today).rev() {
            if !self.has_day(day) {
                continue;
            }
            let last = if day == today { unix_s % DAY_S / 60 } else { 24 * 60 - 1 };
            if let Some(minute) = (0..=last).rev().find(|at| self.has_minute(*at)) {
                return Some(day * DAY_S + minute * 60);
            }
        }
        None
    }

    fn has_minute(&self, of_day: u64) -> bool {
        self.hours & (1 << (of_day / 60)) != 0 && self.minutes & (1 << (of_day % 60)) != 0
    }

    fn has_day(&self, day: u64) -> bool {
        let (_, month, of_month) = date(day);
        // 1970 began on a Thursday.
        let weekday = (day + 4) % 7;
        let named = self.days & (1 << of_month) != 0;
        let on_weekday = self.weekdays & (1 << weekday) != 0;
        let meant = if self.both { named && on_weekday } else { named || on_weekday };
        self.months & (1 << month) != 0 && meant
    }
}

/// Year, month (from 1) and day of the month (from 1) of a day since 1970, in the Gregorian calendar.
/// After Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
pub(super) fn date(day: u64) -> (u64, u64, u64) {
    // Years begin in March here, so that a leap day is the last of its year.
    let days = day + 719_468;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (days / 146_097 * 400 + year + u64::from(month <= 2), month, of_month)
}

impl FromStr for Cron {
    type Err = String;

    fn from_str(text: &str) -> Result<Cron, String> {
        let written = match text.trim() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            other => other,
        };
        let fields: Vec<&str> = written.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!(
                "a schedule has five fields (minute hour day month weekday), this one has {}",
                fields.len()
            ));
        };
        let read = field(weekdays, "weekday", 0..=7, &DAYS, 0)?;
        let cron = Cron {
            text: text.trim().to_string(),
            minutes: field(minutes, "minute", 0..=59, &[], 0)?,
            hours: field(hours, "hour", 0..=23, &[], 0)?,
            days: field(days, "day", 1..=31, &[], 0)?,
            months: field(months, "month", 1..=12, &MONTHS, 1)?,
            // Sunday is 0 and 7.
            weekdays: (read | read >> 7) & 0x7f,
            both: days.starts_with('*') || weekdays.starts_with('*'),
        };
        match cron.next_after(0) {
            Some(_) => Ok(cron),
            None => Err("no day is ever meant by it".to_string()),
        }
    }
}

/// The numbers of one field as bits. A name stands for its place in `names`, counted from `first`.
fn field(
    text: &str,
    what: &str,
    within: std::ops::RangeInclusive<u64>,
    names: &[&str],
    first: u64,
) -> Result<u64, String> {
    let number = |word: &str| -> Result<u64, String> {
        let named = names.iter().position(|name| word.eq_ignore_ascii_case(name));
        let number = match named {
            Some(place) => Some(first + place as u64),
            None if word.bytes().all(|byte| byte.is_ascii_digit()) => word.parse().ok(),
            None => None,
        };
        number.filter(|number| within.contains(number)).ok_or_else(|| {
            let shown = word.escape_debug();
            format!("`{shown}` is not a {what} ({} to {})", within.start(), within.end())
        })
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                let step: u64 = step.parse().ok().filter(|step| *step > 0).ok_or_else(|| {
                    format!("`{}` is not a step of a {what}", step.escape_debug())
                })?;
                (range, step)
            }
            None => (part, 1),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (*within.start(), *within.end()),
            Some((from, to)) => (number(from)?, number(to)?),
            None if part.contains('/') => (number(range)?, *within.end()),
            None => (number(range)?, number(range)?),
        };
        if from > to {
            return Err(format!("`{}` is a {what} range that ends before it begins", range));
        }
        bits |= (from..=to)
            .step_by(usize::try_from(step).unwrap_or(usize::MAX))
            .fold(0, |bits, n| bits | 1 << n);
    }
    Ok(bits)
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Cron {
    type Error = String;

    fn try_from(text: String) -> Result<Cron, String> {
        text.parse()
    }
}

impl From<Cron> for String {
    fn from(cron: Cron) -> String {
        cron.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds of 2026-11-20 00:00, a Friday.
    const DAY: u64 = 20_777 * DAY_S;

    #[test]
    fn the_next_instant() {
        let at =
            |days: u64, hour: u64, minute: u64| DAY + days * DAY_S + hour * 3_600 + minute * 60;
        #[rustfmt::skip]
        let cases = [
            // schedule          after                 next
            ("0 2 * * *",        at(0, 0, 0),          at(0, 2, 0)),
            ("0 2 * * *",        at(0, 2, 0),          at(1, 2, 0)),
            ("0 2 * * *",        at(0, 1, 59) + 59,    at(0, 2, 0)),
            ("0 * * * *",        at(0, 23, 0),         at(1, 0, 0)),
            ("*/15 8-17 * * 1-5", at(0, 17, 45),       at(3, 8, 0)),
            ("@weekly",          at(0, 0, 0),          at(2, 0, 0)),
            ("0 0 * * 7",        at(0, 0, 0),          at(2, 0, 0)),
            ("0 0 * * Sun",      at(0, 0, 0),          at(2, 0, 0)),
            ("5,10-12/2 * * * *", at(0, 0, 5),         at(0, 0, 10)),
            ("5,10-12/2 * * * *", at(0, 0, 10),        at(0, 0, 12)),
            ("50/5 * * * *",     at(0, 0, 50),         at(0, 0, 55)),
            // The first of the month, or a Monday.
            ("0 0 1 * mon",      at(0, 0, 0),          at(3, 0, 0)),
            ("0 0 1 * mon",      at(10, 0, 0),         at(11, 0, 0)),
            // A step of `*` restricts too: both have to agree.
            ("0 0 */2 * mon",    at(0, 0, 0),          at(3, 0, 0)),
            ("0 0 1 dec *",      at(0, 0, 0),          at(11, 0, 0)),
            ("0 0 31 * *",       at(0, 0, 0),          at(41, 0, 0)),
            // 2028 is the next leap year.
            ("0 0 29 2 *",       at(0, 0, 0),          at(466, 0, 0)),
        ];
        for (text, after, next) in cases {
            let cron: Cron = text.parse().expect(text);
            assert_eq!(cron.next_after(after), Some(next), "{text} after {after}");
            assert_eq!(cron.last_before(next + 59), Some(next), "{text} before {next}");
            let before = cron.last_before(next - 1).expect("named before");
            assert!(before <= after && cron.next_after(before) == Some(next), "{text}: {before}");
        }
    }

    #[test]
    fn what_is_no_schedule() {
        #[rustfmt::skip]
        let cases = [
            ("", "five fields"),
            ("0 2 * *", "this one has 4"),
            ("60 * * * *", "`60` is not a minute (0 to 59)"),
            ("* 24 * * *", "`24` is not a hour"),
            ("* * 0 * *", "`0` is not a day (1 to 31)"),
            ("* * * foo *", "`foo` is not a month"),
            ("* * * * 8", "`8` is not a weekday"),
            ("*/0 * * * *", "`0` is not a step"),
            ("9-5 * * * *", "ends before it begins"),
            ("-5 * * * *", "`` is not a minute"),
            ("+5 * * * *", "`+5` is not a minute"),
            ("99999999999999999999 * * * *", "is not a minute"),
            ("0 0 30 2 *", "no day is ever meant"),
        ];
        for (text, why) in cases {
            let said = text.parse::<Cron>().expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn it_is_written_as_it_was() {
        let cron: Cron = serde_json::from_str("\"0 2 * * mon-fri\"").expect("a schedule");
        assert_eq!(serde_json::to_string(&cron).expect("text"), "\"0 2 * * mon-fri\"");
        assert!(serde_json::from_str::<Cron>("\"never\"").is_err());
    }
}
