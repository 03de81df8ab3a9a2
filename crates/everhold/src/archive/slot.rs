//! The slot on each member that keeps WAL until it is archived: whoever leads next can go on where
//! the archive ends.

use super::Word;
use crate::link::Report;
use everhold_adapters::postgres::{LogSlot, Postgres};
use everhold_core::ids::{Epoch, Lsn};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Between two moves of the slot: some segments at most are kept for longer than needed.
const EVERY: Duration = Duration::from_secs(2);

/// The newest word of each service's archiver, whichever node it is on.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<BTreeMap<String, Word>>>);

impl Heard {
    /// Takes in what a node reports, this one or another.
    pub fn hear(&self, report: &Report) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (service, word) in &report.archives {
            if heard.get(service).is_none_or(|known| known.epoch <= word.epoch) {
                heard.insert(service.clone(), word.clone());
            }
        }
    }

    /// Up to where the leader of `epoch` has archived. What an older one says holds on its own line,
    /// which may not be this one.
    fn archived(&self, service: &str, epoch: Epoch) -> Option<Lsn> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(service).filter(|word| word.epoch == epoch)?.archived
    }
}

/// Sees to the slot as long as the agent runs; without backups there is none, and nothing to see to
/// once it is gone.
pub async fn tend_slot(
    service: String,
    backup: bool,
    postgres: Arc<Postgres>,
    heard: Heard,
    reports: watch::Receiver<Arc<Report>>,
) {
    loop {
        let report = reports.borrow().clone();
        heard.hear(&report);
        let wanted = match (backup, report.services.get(&service)) {
            (false, _) => LogSlot::Gone,
            (true, status) => LogSlot::Kept {
                archived: status.and_then(|status| heard.archived(&service, status.term)),
            },
        };
        match postgres.log_slot(wanted).await {
            Ok(()) if !backup => return,
            Ok(()) => {}
            // It isn't running: the next one comes soon.
            Err(error) => tracing::debug!(service, %error, "the log's slot is not seen to"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_of_the_present_leader_moves_the_slot() {
        let heard = Heard::default();
        let hear = |epoch, archived: Option<u64>| {
            let word = Word {
                epoch,
                archived: archived.map(Lsn),
                behind_ms: None,
                gap: None,
                trouble: None,
            };
            let archives = BTreeMap::from([("main".to_string(), word)]);
            heard.hear(&Report { archives, ..Report::default() });
        };
        let check = |epoch, expected: Option<u64>| {
            assert_eq!(heard.archived("main", epoch), expected.map(Lsn), "epoch {epoch}");
        };
        check(1, None);
        hear(1, Some(300));
        check(1, Some(300));
        // Beyond the fork of the next one, maybe.
        check(2, None);
        hear(2, Some(200));
        check(2, Some(200));
        // A late word of the old one.
        hear(1, Some(400));
        check(2, Some(200));
        check(1, None);
        assert_eq!(heard.archived("other", 2), None);
    }
}
