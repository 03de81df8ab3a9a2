//! Why the store did not do what it was asked.

use std::time::Duration;

use everhold_core::kv::Invalid;

type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing was changed: it was a read, or it never reached the server.
    #[error("cannot {what}: {whom} does not answer")]
    Unavailable { what: &'static str, whom: String, source: Cause },
    /// It may have been done, or may still be done. Read again, and see [`crate::Store::txn`].
    #[error("cannot tell whether {whom} did this: {what}")]
    Unknown { what: &'static str, whom: String, source: Cause },
    /// The server said no; nothing was changed.
    #[error("{whom} refuses to {what}")]
    Refused { what: &'static str, whom: String, source: Cause },
    /// No state of the store could accept this, or a lease in it has ended; nothing was changed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The store lost its latest history or was replaced by another: what was agreed no longer is.
    #[error("{whom} went back from revision {seen} to {now}")]
    WentBack { whom: String, seen: u64, now: u64 },
    /// A key or value that is not Everhold's.
    #[error("{whom} holds something under {key} that is not text")]
    NotText { whom: String, key: String },
    #[error("cannot use the store's configuration: {why}")]
    Config { why: String, source: Option<Cause> },
}

/// The cause of an answer that did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
pub(crate) struct NoAnswer(pub Duration);
