//! A watch on etcd that outlives connections, restarts and compactions.

use std::time::Duration;

use etcd_client::{Event, EventType, WatchOptions, WatchResponse};
use everhold_core::kv::{Change, Changes};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{ANSWER_BYTES_MAX, Etcd, signed, unsigned};
use crate::error::NoAnswer;
use crate::{Store, StoreError, WatchEvent};

/// After this silence the server is asked for a sign of life.
const SILENCE_MAX: Duration = Duration::from_secs(1);
const RETRY_AFTER: Duration = Duration::from_millis(50);

const WHAT: &str = "watch";

pub(super) async fn run(etcd: Etcd, prefix: String, from_rev: u64, tx: mpsc::Sender<WatchEvent>) {
    let seen = from_rev.saturating_sub(1);
    let mut watcher = Watcher { etcd, prefix, next_rev: from_rev, seen, tx, lost: false };
    // Fails only when nobody listens any more.
    let _closed = watcher.run().await;
}

struct Watcher {
    etcd: Etcd,
    prefix: String,
    /// The first revision not yet told; 0 if everything has to be read first.
    next_rev: u64,
    /// The latest revision the store is known to have reached.
    seen: u64,
    tx: mpsc::Sender<WatchEvent>,
    lost: bool,
}

enum Stop {
    /// A better connection is there; nothing is wrong with this one.
    Moved,
    Broken(StoreError),
    Compacted,
    Ended(StoreError),
}

/// The receiver is gone.
struct Closed;

impl Watcher {
    async fn run(&mut self) -> Result<(), Closed> {
        loop {
            let stop = if self.next_rev == 0 { self.reset().await? } else { None };
            let stop = match stop {
                Some(stop) => stop,
                None => self.follow().await?,
            };
            match stop {
                Stop::Moved => {}
                Stop::Compacted => self.next_rev = 0,
                Stop::Broken(error) => {
                    if !self.lost {
                        self.lost = true;
                        self.tell(WatchEvent::Lost(error)).await?;
                    }
                    sleep(RETRY_AFTER).await;
                }
                Stop::Ended(error) => return self.tell(WatchEvent::Ended(error)).await,
            }
        }
    }

    async fn reset(&mut self) -> Result<Option<Stop>, Closed> {
        let snapshot = match self.etcd.get_prefix(&self.prefix).await {
            Ok(snapshot) => snapshot,
            Err(error @ StoreError::NotText { .. }) => return Ok(Some(Stop::Ended(error))),
            Err(error) => return Ok(Some(Stop::Broken(error))),
        };
        if snapshot.rev < self.seen {
            return Ok(Some(Stop::Ended(self.went_back(snapshot.rev))));
        }
        self.seen = snapshot.rev;
        self.next_rev = snapshot.rev + 1;
        self.lost = false;
        self.tell(WatchEvent::Reset(snapshot)).await?;
        Ok(None)
    }

    /// Opens one stream and tells what comes until it stops.
    async fn follow(&mut self) -> Result<Stop, Closed> {
        let link = &self.etcd.link;
        let (deadline, whom) = (link.deadline(), link.whom());
        let (generation, client) = link.client();
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| {
            Stop::Broken(StoreError::Unavailable { what: WHAT, whom: whom.clone(), source })
        };
        // etcd 3.4 drops a deletion from the history when its revision is the one compacted to.
        // Asking for one revision more makes that a compaction like any other.
        let start = self.next_rev.saturating_sub(1).max(1);
        let options = WatchOptions::new().with_prefix().with_start_revision(signed(start));
        let mut watch = client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        let opened = timeout(deadline, watch.watch(self.prefix.as_str(), Some(options))).await;
        let mut stream = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                link.replace(generation).await;
                return Ok(broken(error.into()));
            }
            Err(_) => {
                link.replace(generation).await;
                return Ok(broken(NoAnswer(deadline).into()));
            }
        };
        let mut asked = false;
        loop {
            let patience = if asked { deadline } else { SILENCE_MAX };
            let message = tokio::select! {
                message = timeout(patience, stream.message()) => message,
                () = self.etcd.link.came_home(generation) => return Ok(Stop::Moved),
            };
            let response = match message {
                Ok(Ok(Some(response))) => response,
                Ok(Ok(None)) => return Ok(broken("the server closed the stream".into())),
                Ok(Err(error)) => return Ok(broken(error.into())),
                Err(_) if asked => {
                    self.etcd.link.replace(generation).await;
                    return Ok(broken(NoAnswer(deadline).into()));
                }
                Err(_) => {
                    asked = true;
                    if let Err(error) = stream.request_progress().await {
                        return Ok(broken(error.into()));
                    }
                    continue;
                }
            };
            asked = false;
            if let Some(stop) = self.take(&response).await? {
                return Ok(stop);
            }
        }
    }

    async fn take(&mut self, response: &WatchResponse) -> Result<Option<Stop>, Closed> {
        if response.canceled() {
            if response.compact_revision() > 0 {
                return Ok(Some(Stop::Compacted));
            }
            return Ok(Some(Stop::Broken(StoreError::Unavailable {
                what: WHAT,
                whom: self.etcd.link.whom(),
                source: response.cancel_reason().into(),
            })));
        }
        if response.created()
            && let Some(stop) = self.check_history(response).await
        {
            return Ok(Some(stop));
        }
        let changed = match self.changes(response.events()) {
            Ok(changed) => changed,
            Err(error) => return Ok(Some(Stop::Ended(error))),
        };
        // The revision of a progress answer is not trusted: before 3.4.25 it could be ahead of
        // changes that were still to be told.
        if changed.is_empty() {
            self.tell(WatchEvent::Progress).await?;
        }
        self.lost = false;
        for changes in changed {
            self.seen = changes.rev;
            self.next_rev = changes.rev + 1;
            self.tell(WatchEvent::Changed(changes)).await?;
        }
        Ok(None)
    }

    /// A watch from a revision that the store has lost would wait in silence for it to come again.
    async fn check_history(&self, response: &WatchResponse) -> Option<Stop> {
        let rev = unsigned(response.header().map_or(0, |header| header.revision()));
        if rev >= self.seen {
            return None;
        }
        // A member may lag behind; a read goes through all of them.
        match self.etcd.get_prefix(&self.prefix).await {
            Ok(snapshot) if snapshot.rev < self.seen => {
                Some(Stop::Ended(self.went_back(snapshot.rev)))
            }
            Ok(_) => None,
            Err(error) => Some(Stop::Broken(error)),
        }
    }

    /// The new events by revision. One answer holds whole revisions, in order.
    fn changes(&self, events: &[Event]) -> Result<Vec<Changes>, StoreError> {
        let mut changed: Vec<Changes> = vec![];
        for event in events {
            let Some(kv) = event.kv() else { continue };
            let kv = self.etcd.kv(kv)?;
            if kv.rev < self.next_rev {
                continue;
            }
            let rev = kv.rev;
            let change = match event.event_type() {
                EventType::Put => Change::Put(kv),
                EventType::Delete => Change::Deleted { key: kv.key },
            };
            match changed.last_mut() {
                Some(last) if last.rev == rev => last.changes.push(change),
                Some(_) | None => changed.push(Changes { rev, changes: vec![change] }),
            }
        }
        Ok(changed)
    }

    fn went_back(&self, now: u64) -> StoreError {
        StoreError::WentBack { whom: self.etcd.link.whom(), seen: self.seen, now }
    }

    async fn tell(&self, event: WatchEvent) -> Result<(), Closed> {
        self.tx.send(event).await.map_err(|_| Closed)
    }
}
