//! What pg_controldata says of a data directory, whether its server runs or not.

use super::error::PgError;
use everhold_core::ids::Tli;
use std::collections::BTreeMap;

/// The control file, in pg_controldata's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    values: BTreeMap<String, String>,
}

impl Control {
    /// Reads what pg_controldata prints under LC_ALL=C.
    pub fn parse(text: &str) -> Control {
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Control {
            values: pairs.map(|(k, v)| (k.trim().to_string(), v.trim().to_string())).collect(),
        }
    }

    fn get(&self, name: &str) -> Result<&str, PgError> {
        self.values.get(name).map(String::as_str).ok_or_else(|| PgError::Answer {
            doing: "read the control file",
            said: format!("pg_controldata doesn't tell the {name}"),
        })
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<T, PgError> {
        let text = self.get(name)?;
        text.parse().map_err(|_| PgError::Answer {
            doing: "read the control file",
            said: format!("`{text}` is no {name}"),
        })
    }

    pub fn sysid(&self) -> Result<u64, PgError> {
        self.number("Database system identifier")
    }

    pub fn checkpoint_tli(&self) -> Result<Tli, PgError> {
        self.number("Latest checkpoint's TimeLineID")
    }

    /// The newest timeline it is known to have replayed a part of.
    pub fn newest_tli(&self) -> Result<Tli, PgError> {
        let replayed: Tli = self.number("Min recovery ending loc's timeline")?;
        Ok(self.checkpoint_tli()?.max(replayed))
    }

    pub fn segment_bytes(&self) -> Result<u64, PgError> {
        self.number("Bytes per WAL segment")
    }

    /// Its pages have checksums.
    pub fn checksums(&self) -> bool {
        self.get("Data page checksum version").is_ok_and(|version| version != "0")
    }

    /// The server was shut down in order: nothing has to be recovered.
    pub fn is_clean(&self) -> bool {
        let state = self.values.get("Database cluster state").map(String::as_str);
        matches!(state, Some("shut down" | "shut down in recovery"))
    }

    /// The limit its WAL was written under, for settings that a standby must not have lower.
    pub fn limit(&self, setting: &str) -> Option<u64> {
        let name = match setting {
            "max_prepared_transactions" => "max_prepared_xacts",
            "max_locks_per_transaction" => "max_locks_per_xact",
            other => other,
        };
        self.values.get(&format!("{name} setting"))?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_that_matter_are_found() {
        let control = Control::parse(
            "Database system identifier:           7574\n\
             Database cluster state:               shut down in recovery\n\
             Latest checkpoint's TimeLineID:       2\n\
             Min recovery ending loc's timeline:   3\n\
             max_prepared_xacts setting:           5\n\
             Time of latest checkpoint:            Fri 20 Nov 2026 06:00:00 AM UTC\n",
        );
        assert_eq!(control.sysid().unwrap(), 7574);
        assert_eq!(control.newest_tli().unwrap(), 3);
        assert_eq!(control.limit("max_prepared_transactions"), Some(5));
        assert!(control.is_clean());
        assert!(control.segment_bytes().is_err());
    }
}
