//! What a runner knows of its instance, on disk: for its agent, and for the next runner.

use super::child::Process;
use crate::disk;
use everhold_adapters::proc;
use everhold_core::records::{decode, encode};
use everhold_core::run::{Exit, RunState};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// By which everything that descends from the instance is known. Made once.
    pub token: String,
    /// Which start of the machine the process is of.
    pub boot: String,
    /// Nothing that descends from it began before, in ticks since that.
    pub since: u64,
    pub is: RunState,
    pub process: Option<Process>,
    /// When that began, in milliseconds since 1970.
    pub began_ms: u64,
    /// What it was started from.
    pub fingerprint: String,
    /// When that order was given.
    pub given_ms: u64,
    /// In a row, without a minute between.
    pub failures: u32,
    pub restarts: u64,
    pub last_exit: Option<Exit>,
    pub unenforced: Vec<String>,
}

impl State {
    /// Only without a file there is surely nothing that could be started a second time.
    pub fn read(path: &Path) -> io::Result<State> {
        let read = match std::fs::read_to_string(path) {
            Ok(text) => decode(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(error),
        };
        read.map_err(|error| io::Error::new(error.kind(), unread(path, &error)))
    }

    pub fn save(&self, path: &Path) -> io::Result<()> {
        disk::write_whole(path, &encode(self))
    }

    /// It is sure that nothing of it is left: it never began, or its runner ended it all.
    pub fn is_over(&self) -> bool {
        self.token.is_empty() || self.is == RunState::Stopped
    }

    /// The process, if it lives.
    pub fn alive(&self) -> Option<(Process, proc::Handle)> {
        let process = self.process.filter(|_| self.boot == proc::boot())?;
        Some((process, process.alive()?))
    }
}

fn unread(path: &Path, error: &io::Error) -> String {
    format!(
        "cannot read {}: {error}; if it stays so, end what runs of the instance and remove the file",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_the_same_one_only_in_the_same_start_of_the_machine() {
        let me = Process::of(std::process::id() as i32);
        let state = State { process: me, boot: proc::boot().to_string(), ..State::default() };
        assert!(state.alive().is_some());
        assert!(State { boot: "another".to_string(), ..state.clone() }.alive().is_none());
        let reused = me.map(|it| Process { started: it.started + 1, ..it });
        assert!(State { process: reused, ..state.clone() }.alive().is_none());
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        assert_eq!(State::read(&path).expect("none"), State::default());
        state.save(&path).expect("saved");
        assert_eq!(State::read(&path).expect("it"), state);
        for torn in ["", "{", "{\"version\":9,\"record\":{}}"] {
            std::fs::write(&path, torn).expect("written");
            assert!(State::read(&path).is_err(), "{torn}");
        }
    }
}
