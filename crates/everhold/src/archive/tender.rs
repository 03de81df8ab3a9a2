//! The agent's side of the archiver: one process while the agent leads, and what there is to say of it.

use super::{Lead, Order, Word};
use crate::journal::Journal;
use crate::link::{Hold, Report};
use crate::{clock, helper};
use everhold_core::ids::Time;
use everhold_core::journal::Event;
use everhold_core::spec::{PostgresSpec, RepositorySpec, Spec};
use everhold_core::term::Term;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Child;
use tokio::sync::watch;

/// What keeps it for longer is shown.
const PATIENCE_MS: u64 = 10_000;
/// One that says nothing for so long is frozen, and is replaced.
const DEAF: Duration = Duration::from_secs(10);
/// Between two starts of one that ends.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// One that ran for so long ends for a new reason.
const HEALTHY: Duration = Duration::from_secs(30);
/// A word is some hundred bytes.
const WORD_BYTES_MAX: u64 = 64 << 10;

/// What an archiver of a service is started with, whoever leads.
#[derive(Clone, Debug)]
pub struct Office {
    pub cluster: String,
    pub service: String,
    /// The directory of the service on this node.
    pub dir: PathBuf,
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub port: u16,
    pub places: BTreeMap<String, RepositorySpec>,
    pub copies: usize,
}

/// Sees to it that the log is archived while this node leads. Nothing here waits.
pub struct Tender {
    wanted: watch::Sender<Option<Lead>>,
    held: Arc<Mutex<Held>>,
    service: String,
    journal: Journal,
}

/// What is to be said of the archiver.
#[derive(Default)]
struct Held {
    /// Since when this leader's log is to be archived.
    since: Option<Time>,
    word: Option<Word>,
    /// By rule: what is shown, and since when.
    shown: BTreeMap<&'static str, Hold>,
}

impl Office {
    /// `None`: nobody asked for backups of it.
    pub fn of(spec: &Spec, service: &PostgresSpec, rest: Office) -> Option<Office> {
        let backup = service.backup.as_ref()?;
        let place = |name: &String| Some((name.clone(), spec.repositories.get(name)?.clone()));
        let places = backup.repositories.iter().filter_map(place).collect();
        Some(Office { places, copies: backup.copies as usize, ..rest })
    }
}

impl Tender {
    pub fn start(office: Office, journal: Journal, report: watch::Sender<Arc<Report>>) -> Tender {
        let (wanted, leads) = watch::channel(None);
        let held: Arc<Mutex<Held>> = Arc::default();
        let service = office.service.clone();
        tokio::spawn(Care { office, leads, held: held.clone(), report }.run());
        Tender { wanted, held, service, journal }
    }

    /// The term that this node leads, if it does.
    pub fn lead(&self, term: Option<&Term>) {
        self.wanted.send_if_modified(|known| {
            let same = match (known.as_ref(), term) {
                (Some(lead), Some(term)) => {
                    lead.epoch == term.epoch
                        && lead.sysid == term.sysid
                        && term.is_along(&lead.line)
                }
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if !same {
                let lead =
                    |term: &Term| Lead { sysid: term.sysid, epoch: term.epoch, line: term.line() };
                *known = term.map(lead);
            }
            !same
        });
    }

    /// What is waited for.
    pub fn holds(&self) -> Vec<Hold> {
        let mut held = lock(&self.held);
        let due = held.due(clock::now());
        for rule in [LATE, GAP] {
            let due = due.iter().find(|due| due.rule == rule);
            let note = |text: String| self.journal.append(&self.service, Event::Noted { text });
            match (due, held.shown.get_mut(rule)) {
                // The words may change with each try; it is one hold.
                (Some(due), Some(hold)) => {
                    let Due { rule: _, why, unblocks, operator } = due;
                    hold.why.clone_from(why);
                    hold.unblocks.clone_from(unblocks);
                    hold.operator = *operator;
                }
                (Some(due), None) => {
                    let hold = Hold {
                        service: Some(self.service.clone()),
                        rule: rule.to_string(),
                        why: due.why.clone(),
                        unblocks: due.unblocks.clone(),
                        operator: due.operator,
                        since: clock::wall(),
                        recheck_at: None,
                        journal: Some(note(format!("{rule}: {}", due.why))),
                    };
                    held.shown.insert(rule, hold);
                }
                (None, Some(_)) => {
                    held.shown.remove(rule);
                    note(format!("{rule}: over"));
                }
                (None, None) => {}
            }
        }
        held.shown.values().cloned().collect()
    }
}

const LATE: &str = "log-archive";
const GAP: &str = "log-gap";

/// A hold that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Due {
    rule: &'static str,
    why: String,
    unblocks: String,
    operator: bool,
}

impl Held {
    fn due(&self, now: Time) -> Vec<Due> {
        let Some(since) = self.since else { return Vec::new() };
        let mut due = Vec::new();
        let word = self.word.as_ref();
        let late =
            |why: String, unblocks: String, operator| Due { rule: LATE, why, unblocks, operator };
        let trouble = word.and_then(|word| word.trouble.as_ref());
        if let Some(trouble) = trouble.filter(|it| it.for_ms >= PATIENCE_MS) {
            let why = format!("the log is not archived everywhere: {}", trouble.why);
            due.push(late(why, trouble.next.clone(), trouble.operator));
        } else if word.is_none() && now.since(since) >= PATIENCE_MS {
            let why = "the log is not archived: its archiver says nothing".to_string();
            due.push(late(
                why,
                "it is started again all the time; its words are in the agent's log".to_string(),
                false,
            ));
        } else if word.and_then(|word| word.behind_ms).is_some_and(|ms| ms >= PATIENCE_MS) {
            let why = "the log is not archived as fast as it is written".to_string();
            due.push(late(
                why,
                "fewer writes, or a faster way to the repositories".to_string(),
                false,
            ));
        }
        if let Some((from, to)) = word.and_then(|word| word.gap) {
            due.push(Due {
                rule: GAP,
                why: format!(
                    "the archived log has a hole: {from} to {to} was gone before it was archived"
                ),
                unblocks: "a full backup made after it; none older reaches beyond it".to_string(),
                operator: false,
            });
        }
        due
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the archiver, hears it, ends it.
struct Care {
    office: Office,
    leads: watch::Receiver<Option<Lead>>,
    held: Arc<Mutex<Held>>,
    report: watch::Sender<Arc<Report>>,
}

impl Care {
    async fn run(mut self) {
        let mut backoff = BACKOFF;
        loop {
            let lead = self.leads.borrow_and_update().clone();
            let Some(lead) = lead else {
                {
                    let mut held = lock(&self.held);
                    (held.since, held.word) = (None, None);
                }
                self.tell(None);
                if self.leads.changed().await.is_err() {
                    return;
                }
                continue;
            };
            lock(&self.held).since.get_or_insert_with(clock::now);
            let began = tokio::time::Instant::now();
            match self.spawn() {
                Ok(mut child) => {
                    self.hear(&mut child, &lead).await;
                    // Frozen or not; one that has ended is no error.
                    let _ = child.kill().await;
                }
                Err(error) => tracing::error!(%error, "cannot start the archiver"),
            }
            match self.leads.has_changed() {
                Err(_) => return,
                Ok(true) => backoff = BACKOFF,
                Ok(false) => {
                    if began.elapsed() >= HEALTHY {
                        backoff = BACKOFF;
                    }
                    tracing::warn!(
                        service = self.office.service,
                        "the archiver ended; it is started again"
                    );
                    tokio::select! {
                        () = tokio::time::sleep(backoff) => {}
                        changed = self.leads.changed() => if changed.is_err() { return },
                    }
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        helper::command("archive").arg("--dir").arg(&self.office.dir).spawn()
    }

    /// Gives it the order, and hears it until it ends, is silent for too long, or is to do another's.
    async fn hear(&mut self, child: &mut Child, lead: &Lead) {
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return;
        };
        // Paths, names and numbers.
        let mut order = serde_json::to_string(&self.order(lead)).expect("plain data");
        order.push('\n');
        if stdin.write_all(order.as_bytes()).await.is_err() {
            return;
        }
        let mut out = BufReader::new(stdout);
        let mut text = Vec::new();
        loop {
            text.clear();
            let mut bounded = (&mut out).take(WORD_BYTES_MAX);
            tokio::select! {
                read = tokio::time::timeout(DEAF, bounded.read_until(b'\n', &mut text)) => {
                    let Ok(Ok(1..)) = read else {
                        lock(&self.held).word = None;
                        return;
                    };
                    let Ok(word) = serde_json::from_slice::<Word>(&text) else { return };
                    lock(&self.held).word = Some(word.clone());
                    self.tell(Some(word));
                }
                _ = self.leads.changed() => {
                    // A changed value is seen as new again by who looks next.
                    self.leads.mark_changed();
                    return;
                }
            }
        }
    }

    fn order(&self, lead: &Lead) -> Order {
        let Office { cluster, service, dir: _, data_dir, run_dir, port, places, copies } =
            self.office.clone();
        Order { cluster, service, data_dir, run_dir, port, places, copies, lead: lead.clone() }
    }

    /// Goes with the next heartbeat.
    fn tell(&self, word: Option<Word>) {
        self.report.send_if_modified(|report| {
            if report.archives.get(&self.office.service) != word.as_ref() {
                let archives = &mut Arc::make_mut(report).archives;
                match word {
                    Some(word) => archives.insert(self.office.service.clone(), word),
                    None => archives.remove(&self.office.service),
                };
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::Trouble;
    use super::*;
    use everhold_core::ids::Lsn;

    #[test]
    fn what_is_shown() {
        let trouble = |for_ms| {
            let why = "away".to_string();
            Some(Trouble { why, next: "mount it".to_string(), operator: true, for_ms })
        };
        let word = |behind_ms, trouble, gap| {
            Some(Word { epoch: 1, archived: Some(Lsn(5)), behind_ms, gap, trouble })
        };
        let gap = Some((Lsn(1), Lsn(2)));
        #[rustfmt::skip]
        let cases = [
            // since, word                                      shown
            (None,        word(Some(99_999), trouble(99_999), gap), vec![]),
            (Some(1_000), None,                                 vec![(LATE, "says nothing")]),
            (Some(5_000), None,                                 vec![]),
            (Some(1_000), word(Some(0), None, None),            vec![]),
            (Some(1_000), word(Some(9_000), trouble(9_000), None), vec![]),
            (Some(1_000), word(Some(0), trouble(10_000), None), vec![(LATE, "away")]),
            (Some(1_000), word(Some(10_000), None, None),       vec![(LATE, "as fast as")]),
            (Some(1_000), word(Some(10_000), trouble(10_000), gap), vec![(LATE, "away"), (GAP, "0/1 to 0/2")]),
        ];
        for (since, word, expected) in cases {
            let held = Held { since: since.map(Time), word: word.clone(), shown: BTreeMap::new() };
            let due = held.due(Time(12_000));
            assert_eq!(due.len(), expected.len(), "{word:?}: {due:?}");
            for (due, (rule, why)) in due.iter().zip(expected) {
                assert!(due.rule == rule && due.why.contains(why), "{due:?}");
            }
        }
    }
}
