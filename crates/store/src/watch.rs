//! What a watch tells, and the handle it is read from.

use everhold_core::kv::{Changes, Snapshot};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::StoreError;

/// Events not yet taken. A watcher that doesn't take them holds back its stream from the server,
/// nobody else.
const EVENTS_MAX: usize = 256;

#[derive(Debug)]
pub enum WatchEvent {
    /// All changes of one revision. Revisions rise; none is left out or told twice.
    Changed(Changes),
    /// Forget what is known and take this: the watch just began without a revision, or changes
    /// that were missed have been compacted away. Later changes follow.
    Reset(Snapshot),
    /// The connection lives though nothing changes: at least each 2 s, and first thing after
    /// [`WatchEvent::Lost`]. It does not say that all changes so far have been told.
    Progress,
    /// The connection is gone, what is known grows stale; the watch goes on trying by itself.
    Lost(StoreError),
    /// The watch ended for good, because going on would hide what happened. The last event.
    Ended(StoreError),
}

/// A running watch; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<WatchEvent>,
    task: JoinHandle<()>,
}

impl Watch {
    /// The next event; `None` after [`WatchEvent::Ended`]. Can be dropped and called again.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.events.recv().await
    }

    pub(crate) fn spawn<F: Future<Output = ()> + Send + 'static>(
        run: impl FnOnce(mpsc::Sender<WatchEvent>) -> F,
    ) -> Self {
        let (tx, events) = mpsc::channel(EVENTS_MAX);
        Watch { events, task: tokio::spawn(run(tx)) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
