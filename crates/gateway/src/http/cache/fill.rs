//! An answer on its way to a client of which a copy is kept, if all of it comes.

use super::store::{Fate, Key, Leader, Store};
use super::stored::Draft;
use std::sync::Arc;
use tokio::time::Instant;

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
        let fits = length <= self.bytes_max;
        if fits && self.has_room(length) {
            self.bytes.extend_from_slice(data);
            return true;
        }
        // For the next one there may be memory, but too large it is, too.
        self.stop(!fits);
        false
    }

    /// Takes memory for that length, and of it no more than is reserved.
    fn has_room(&mut self, length: usize) -> bool {
        let reserved = self.reserved.bytes;
        if length <= reserved {
            return true;
        }
        let most = (reserved * 2).max(PIECE).min(self.bytes_max).max(length);
        let fits = self.reserved.takes(most - reserved);
        if fits {
            self.bytes.reserve_exact(most - self.bytes.len());
        }
        fits
    }

    /// Nobody waits for it any more, nor, if it `passes`, for the next one.
    fn stop(&mut self, passes: bool) {
        if passes {
            let store = &self.reserved.store;
            store.pass(&self.key, true, store.ms(Instant::now()));
        }
        if let Some(leader) = self.leader.take() {
            leader.ends(Fate::Alone);
        }
    }

    /// Somebody waits for it beside its client.
    pub fn is_followed(&self) -> bool {
        self.leader.as_ref().is_some_and(Leader::is_followed)
    }

    /// It is not kept, whatever comes.
    pub fn give_up(mut self) {
        self.stop(true);
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

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::http::cache::{Life, Said};

    #[test]
    fn no_more_memory_is_taken_than_is_reserved() {
        let store = Store::new(64 << 20);
        let said = Said::of(200, std::iter::empty(), 0);
        let head = (&said, &b"HTTP/1.1 200 OK\r\n"[..]);
        let names = (&store.count_of("r"), "a", &b"/"[..]);
        let draft = Draft::new(head, Life::default(), names, (store.asked(), 0));
        let mut fill = Fill::new(&store, (draft, 100_000), Default::default(), None);
        for _ in 0..100 {
            assert!(fill.add(&[b'x'; 1_000]));
            let (taken, reserved) = (fill.bytes.capacity(), fill.reserved.bytes);
            assert!(taken <= reserved && reserved <= 100_000, "{taken} of {reserved}");
        }
        assert!(!fill.add(b"x"));
    }
}
