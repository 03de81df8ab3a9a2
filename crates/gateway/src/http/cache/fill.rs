//! An answer on its way to a client of which a copy is kept, if all of it comes.

use super::store::{Fate, Key, Leader, Store};
use super::stored::Draft;
use std::sync::Arc;

/// What is taken of the memory at once.
const PIECE: usize = 16 << 10;

pub struct Fill {
    pub draft: Draft,
    pub key: Key,
    /// The head of the request that it answers.
    pub request: Vec<u8>,
    bytes: Vec<u8>,
    bytes_max: usize,
    reserved: Reserved,
    leader: Option<Leader>,
}

/// What it may take of the memory.
struct Reserved {
    store: Arc<Store>,
    bytes: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.store.release(self.bytes as u64);
    }
}

impl Fill {
    pub fn new(
        store: &Arc<Store>,
        (draft, bytes_max): (Draft, usize),
        (key, request): (Key, Vec<u8>),
        mut leader: Option<Leader>,
    ) -> Fill {
        leader.iter_mut().for_each(Leader::comes);
        let reserved = Reserved { store: store.clone(), bytes: 0 };
        Fill { draft, key, request, bytes: Vec::new(), bytes_max, reserved, leader }
    }

    /// One more piece; `false`: that is too much.
    pub fn add(&mut self, data: &[u8]) -> bool {
        let length = self.bytes.len() + data.len();
        let more = length.saturating_sub(self.reserved.bytes).max(PIECE);
        let fits = length <= self.bytes_max
            && (length <= self.reserved.bytes || self.reserved.takes(more));
        if fits {
            self.bytes.extend_from_slice(data);
        } else if let Some(leader) = self.leader.take() {
            leader.ends(Fate::Alone);
        }
        fits
    }

    /// Somebody waits for it beside its client.
    pub fn is_followed(&self) -> bool {
        self.leader.as_ref().is_some_and(Leader::is_followed)
    }

    /// It is not kept, whatever comes.
    pub fn give_up(self) {
        if let Some(leader) = self.leader {
            leader.ends(Fate::Alone);
        }
    }

    /// All of it came.
    pub fn keep(self) {
        let Fill { draft, mut key, request, mut bytes, reserved, leader, .. } = self;
        // What is kept is counted by its length.
        bytes.shrink_to_fit();
        let vary = draft.vary.clone();
        let stored = Arc::new(draft.with(bytes.into()));
        reserved.store.keep(&mut key, &request, &vary, stored);
        if let Some(leader) = leader {
            leader.ends(Fate::Kept);
        }
    }
}

impl Reserved {
    fn takes(&mut self, more: usize) -> bool {
        let fits = self.store.reserve(more as u64);
        self.bytes += if fits { more } else { 0 };
        fits
    }
}
