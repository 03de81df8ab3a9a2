//! The point that a restore and a recovery are told to go to.

use crate::backup::restore::{Aim, Until};
use everhold_core::ids::Tli;
use serde::Serialize;

/// As it is named on the command line, and told to the API. Without any of it: the newest there is.
#[derive(Clone, Debug, clap::Args, Serialize)]
pub struct Point {
    /// The last commit at or before then, in RFC 3339, as in 2026-11-20T10:00:00Z
    #[arg(long, group = "until")]
    time: Option<String>,
    /// A place in the log, as in 0/5012A8
    #[arg(long, group = "until")]
    lsn: Option<String>,
    /// A point that pg_create_restore_point() named
    #[arg(long, group = "until")]
    name: Option<String>,
    /// On the history that ends with this timeline, also if it was given up
    #[arg(long, value_name = "N")]
    timeline: Option<Tli>,
    /// Begin with this backup; without it: the newest that serves
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
}

impl Point {
    pub fn aim(&self) -> Result<Aim, String> {
        let Point { time, lsn, name, timeline, backup } = self;
        let until = Until::parse(time.as_deref(), lsn.as_deref(), name.as_deref())?;
        Ok(Aim { until, timeline: *timeline, backup: backup.clone() })
    }

    /// As it was written, to be written again.
    pub fn flags(&self) -> String {
        let Point { time, lsn, name, timeline, backup } = self;
        let timeline = timeline.map(|tli| tli.to_string());
        let all = [
            ("time", time),
            ("lsn", lsn),
            ("name", name),
            ("timeline", &timeline),
            ("backup", backup),
        ];
        let flag = |(flag, value): (&str, &Option<String>)| {
            value.as_ref().map(|value| format!(" --{flag} '{value}'"))
        };
        all.into_iter().filter_map(flag).collect()
    }
}
