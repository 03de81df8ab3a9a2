//! Where a point that has a name lies: looked for in the archived log, since that of a backup too new
//! or too old would be replayed in vain.

use super::shown::time;
use super::{away, told};
use anyhow::{anyhow, bail};
use everhold_adapters::postgres::{RestorePoint, RestorePoints};
use everhold_core::ids::Lsn;
use everhold_core::term::Branch;
use everhold_repository::Repository;
use everhold_repository::backup::Info;
use everhold_repository::log::Log;
use std::collections::BTreeMap;

/// Looks behind one backup after the other, the newest first: no part of a log is read twice.
pub struct Named<'n> {
    repository: &'n Repository,
    name: &'n str,
    say: &'n (dyn Fn(&str) + Sync),
    /// Of each database: from where on its log was looked through, and what is there.
    seen: BTreeMap<u64, (Lsn, Vec<RestorePoint>)>,
}

impl<'n> Named<'n> {
    pub fn new(
        repository: &'n Repository,
        name: &'n str,
        say: &'n (dyn Fn(&str) + Sync),
    ) -> Named<'n> {
        Named { repository, name, say, seen: BTreeMap::new() }
    }

    /// The point that can be reached from this backup, whose log goes to `end`; an error if there
    /// are several. What can't be read is an error too: the point may be there.
    pub fn behind(
        &mut self,
        backup: &Info,
        line: &[Branch],
        end: Lsn,
    ) -> anyhow::Result<Option<RestorePoint>> {
        let (about, name) = (&backup.about, self.name);
        let (from, seen) = self.seen.entry(about.sysid).or_insert((end, Vec::new()));
        // A backup starts where a record begins, so none lies on both sides.
        let to = end.min(*from);
        if about.start < to {
            (self.say)(&format!("looking for {name} in the log from {} to {to}", about.start));
            let mut points = RestorePoints::from(about.start, name, about.segment_bytes);
            let log = Log::new(self.repository, &about.service, about.sysid);
            let read = log.read(line, about.start..to, |_, bytes| {
                points.take(bytes);
                Ok(())
            });
            read.map_err(|error| {
                anyhow!("{:#}, or `--backup ID`, behind which {name} lies", told(error))
            })?;
            seen.splice(0..0, points.found());
            *from = about.start;
        }
        reached(seen, about.stop..end, name)
    }

    /// What is told while it was found behind no backup. `elsewhere`: of other histories, in words.
    pub fn nowhere(&self, elsewhere: &str) -> anyhow::Error {
        let begins = self.seen.values().map(|(from, _)| *from).min().unwrap_or_default();
        let before: Vec<String> =
            self.seen.values().flat_map(|(_, seen)| seen).map(place).collect();
        let name = self.name;
        let mut text = match before.as_slice() {
            [] => format!("E287 no point {name} lies in the log that there is, from {begins} on"),
            before => {
                format!("E287 {name} lies at {}, and no backup was whole before", before.join(", "))
            }
        };
        if let Some(away) = away(self.repository) {
            text += &format!("; {away}");
        }
        anyhow!("{text}{elsewhere}")
    }
}

fn place(point: &RestorePoint) -> String {
    let at_s = u64::try_from(point.at_s).unwrap_or(0);
    format!("{} of {}", point.at, time(at_s))
}

/// Of points in the order of the log, the one that can be reached.
fn reached(
    points: &[RestorePoint],
    within: std::ops::Range<Lsn>,
    name: &str,
) -> anyhow::Result<Option<RestorePoint>> {
    let within = |it: &&RestorePoint| within.start <= it.at && it.end <= within.end;
    let points: Vec<&RestorePoint> = points.iter().filter(within).collect();
    match points.as_slice() {
        [] => Ok(None),
        [point] => Ok(Some(**point)),
        [.., last] => {
            let all: Vec<String> = points.iter().map(|point| place(point)).collect();
            bail!(
                "E287 {} points have the name {name}: {}; next step: name one by its place, as in \
                 `--lsn {}`",
                points.len(),
                all.join(", "),
                last.at
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_point_is_meant_or_all_are_named() {
        let point = |at: u64| RestorePoint { at: Lsn(at), end: Lsn(at + 104), at_s: 0 };
        #[rustfmt::skip]
        let cases = [
            // points            whole at..end   expected
            (vec![],             100..1_000,     "none"),
            (vec![200],          100..1_000,     "0/C8"),
            (vec![100],          100..1_000,     "0/64"),
            // Before the backup was whole, and torn by the end of the log.
            (vec![99],           100..1_000,     "none"),
            (vec![900],          100..1_000,     "none"),
            (vec![896],          100..1_000,     "0/380"),
            (vec![10, 200],      100..1_000,     "0/C8"),
            (vec![200, 400],     100..1_000,     "E287 2 points have the name p: \
                0/C8 of 1970-01-01T00:00:00Z, 0/190 of 1970-01-01T00:00:00Z; next step: name one by \
                its place, as in `--lsn 0/190`"),
        ];
        for (points, within, expected) in cases {
            let points: Vec<RestorePoint> = points.into_iter().map(point).collect();
            let told = match reached(&points, Lsn(within.start)..Lsn(within.end), "p") {
                Ok(Some(point)) => point.at.to_string(),
                Ok(None) => "none".to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(told, expected, "{points:?}");
        }
    }
}
