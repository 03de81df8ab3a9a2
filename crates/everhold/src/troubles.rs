//! What a supervisor sees that agents don't tell, each a hold of `status`: processes that end again
//! and again, and what is wrong with the store.
//!
//! An agent whose certificate is torn can tell nobody of it. Who starts it reads its last words.

use crate::store::Problem;
use crate::{clock, log};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One that ended once may have been killed; one that ends again doesn't start.
const TIMES_MIN: u32 = 2;
/// Last words are in here.
const TAIL_BYTES: u64 = 4 << 10;

/// What is wrong now, by the name of the process.
#[derive(Clone, Default)]
pub struct Troubles(Arc<Mutex<BTreeMap<String, Trouble>>>);

struct Trouble {
    since: String,
    times: u32,
    said: String,
    /// Not of a process.
    problem: Option<Problem>,
}

impl Troubles {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It ended while it started, with these words.
    pub fn note(&self, name: &str, said: String) {
        let mut all = self.all();
        let trouble = all.entry(name.to_string()).or_insert_with(|| Trouble {
            since: clock::wall(),
            times: 0,
            said: String::new(),
            problem: None,
        });
        trouble.times += 1;
        trouble.said = said;
    }

    /// Shows the problem until it is cleared.
    pub fn hold(&self, problem: Problem, why: String) {
        let mut all = self.all();
        let since = all.get(problem.name).map_or_else(clock::wall, |known| known.since.clone());
        let trouble = Trouble { since, times: 1, said: why, problem: Some(problem) };
        all.insert(problem.name.to_string(), trouble);
    }

    /// It runs, or is over.
    pub fn clear(&self, name: &str) {
        self.all().remove(name);
    }

    /// As `status` tells them.
    pub fn holds(&self) -> Vec<Value> {
        let all = self.all();
        let lasting = |(_, it): &(&String, &Trouble)| it.problem.is_some() || it.times >= TIMES_MIN;
        let lasting = all.iter().filter(lasting);
        let hold = |(name, trouble): (&String, &Trouble)| {
            let Trouble { since, times, said, problem } = trouble;
            let (rule, why, unblocks) = match problem {
                Some(problem) => (problem.name, said.clone(), problem.unblocks),
                None => (
                    "process-fails",
                    format!("{name} was started {times} times and did not stay: {said}"),
                    "what its words name; it is started again by itself",
                ),
            };
            json!({
                "service": null, "rule": rule, "why": why,
                "since": since, "recheck_at": null, "evidence": [], "unblocks": unblocks,
                "needs_operator": true, "journal": null,
            })
        };
        lasting.map(hold).collect()
    }
}

/// The last line of a log.
pub fn last_words(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(end.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => {
            let last = text.lines().rev().find(|line| !line.trim().is_empty());
            log::message(last.unwrap_or("nothing"))
        }
        Err(error) => format!("(its log {} can't be read: {error})", log.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_again_and_again_is_told_with_its_last_words() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        std::fs::write(&log, "one\nE210 cannot use b.pem\n\n").expect("written");
        let troubles = Troubles::default();
        troubles.note("b", last_words(&log));
        assert!(troubles.holds().is_empty(), "once is not again");
        troubles.note("b", last_words(&log));
        let holds = troubles.holds();
        let why = holds[0]["why"].as_str().expect("a reason");
        assert_eq!(why, "b was started 2 times and did not stay: E210 cannot use b.pem");
        troubles.clear("b");
        assert!(troubles.holds().is_empty());
        std::fs::write(&log, "{\"log.level\":\"error\",\"message\":\"E210 torn\"}\n")
            .expect("written");
        assert_eq!(last_words(&log), "E210 torn");
        assert!(last_words(&dir.path().join("gone")).contains("can't be read"));
    }
}
