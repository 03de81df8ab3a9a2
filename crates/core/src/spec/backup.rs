//! Where backups go, and what a service asks of them.

use crate::backup::schedule::Plan;
use crate::backup::{Cron, Keep};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// When a full backup begins: at night in Europe, before the day in America ends.
pub const FULL: &str = "0 2 * * *";
/// When an incremental one begins: a restore has at most an hour of log to replay.
pub const INCREMENTAL: &str = "0 * * * *";
/// When backups are proven: after the night's full one.
pub const PROVE: &str = "0 4 * * *";
/// The most repositories of one cluster.
pub const REPOSITORIES_MAX: usize = 16;

/// A place for backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositorySpec {
    pub url: Location,
    /// The failure domain it is in, and what requests to S3 are signed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Of an S3-compatible store; `None`: Amazon's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// A file on each machine with `access_key_id = …` and `secret_access_key = …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<String>,
    /// A file on each machine with the password.
    pub key_file: String,
}

/// Where a repository lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Location {
    /// A directory that every machine mounts, by its absolute path.
    Directory(String),
    S3 {
        bucket: String,
        /// Without slashes around it; empty: the whole bucket.
        prefix: String,
    },
}

/// What is asked of a service's backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSpec {
    pub repositories: Vec<String>,
    /// A backup counts when so many of them hold it.
    pub copies: u32,
    #[serde(flatten)]
    pub plan: Plan,
    pub keep: Keep,
    pub prove: ProveSpec,
    /// What a standby's copy is made from.
    #[serde(default, skip_serializing_if = "CloneFrom::is_leader")]
    pub clone_from: CloneFrom,
}

/// Where the files of a new copy come from; what they lack of the log comes from the leader.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloneFrom {
    #[default]
    Leader,
    /// The newest backup, as long as one serves.
    Repository,
}

impl CloneFrom {
    fn is_leader(&self) -> bool {
        *self == CloneFrom::Leader
    }
}

impl fmt::Display for CloneFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CloneFrom::Leader => "leader",
            CloneFrom::Repository => "repository",
        })
    }
}

/// How backups are proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProveSpec {
    pub schedule: Cron,
    /// A file on each machine with SQL; each statement's rows are what is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<String>,
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Location, String> {
        if let Some(path) = text.strip_prefix("file://") {
            let strange = path.split('/').skip(1).any(|part| matches!(part, "" | "." | ".."));
            return match path.strip_prefix('/') {
                Some(_) if !strange && !path.contains(char::is_control) => {
                    Ok(Location::Directory(path.to_string()))
                }
                _ => Err("a directory is written file:///PATH, without `.`, `..` and `//`".into()),
            };
        }
        let Some(rest) = text.strip_prefix("s3://") else {
            return Err("it is neither file:///PATH nor s3://BUCKET/PREFIX".into());
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let of_bucket = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(of_bucket) {
            return Err("a bucket has 3 to 63 letters a-z, digits, `.` or `-`".into());
        }
        let prefix = prefix.trim_end_matches('/');
        let of_prefix = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let part = |part: &str| {
            !matches!(part, "" | "." | "..") && part.chars().all(of_prefix) && part.len() <= 100
        };
        if !prefix.is_empty() && !prefix.split('/').all(part) {
            return Err("a prefix has letters, digits, `-`, `_`, `.` between its slashes".into());
        }
        Ok(Location::S3 { bucket: bucket.to_string(), prefix: prefix.to_string() })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Directory(path) => write!(f, "file://{path}"),
            Location::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Location::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl TryFrom<String> for Location {
    type Error = String;

    fn try_from(text: String) -> Result<Location, String> {
        text.parse()
    }
}

impl From<Location> for String {
    fn from(location: Location) -> String {
        location.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_repository_may_lie() {
        #[rustfmt::skip]
        let cases = [
            ("file:///var/backups",      Ok("file:///var/backups")),
            ("s3://shop-backups/eu",     Ok("s3://shop-backups/eu")),
            ("s3://shop-backups/eu/1/",  Ok("s3://shop-backups/eu/1")),
            ("s3://shop-backups",        Ok("s3://shop-backups")),
            ("s3://shop-backups/",       Ok("s3://shop-backups")),
            ("file://var/backups",       Err("file:///PATH")),
            ("file:///",                 Err("file:///PATH")),
            ("file:///a/../b",           Err("file:///PATH")),
            ("file:///a//b",             Err("file:///PATH")),
            ("/var/backups",             Err("neither")),
            ("gs://shop",                Err("neither")),
            ("s3://Shop",                Err("a bucket has")),
            ("s3://ab",                  Err("a bucket has")),
            ("s3://abc/a//b",            Err("a prefix has")),
            ("s3://abc/../b",            Err("a prefix has")),
        ];
        for (text, expected) in cases {
            match (text.parse::<Location>(), expected) {
                (Ok(location), Ok(shown)) => assert_eq!(location.to_string(), shown),
                (Err(why), Err(part)) => assert!(why.contains(part), "{text}: {why}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }
}
