//! Who is let in: what threads share of it. `everhold_core::http::door` decides.

use everhold_core::http::HttpTable;
use everhold_core::http::door::{Book, Client, Crowd, Nets, Why};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Clients that are remembered while they have no connection; each costs about 64 bytes.
const REMEMBERED_MAX: usize = 64 << 10;

pub struct Door {
    begun: Instant,
    rules: Mutex<BTreeMap<String, Arc<Rules>>>,
    book: Mutex<Book>,
    refused: [AtomicU64; 4],
}

/// Of one listener.
#[derive(Default, PartialEq, Eq)]
struct Rules {
    deny: Nets,
    /// Many clients are behind each of these: they have no bound of one, no strikes, and are always known.
    trusted: Nets,
    per_client_max: Option<u32>,
}

/// Connections that were not let in, by why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refused {
    pub denied: u64,
    pub struck: u64,
    pub too_many: u64,
    pub crowded: u64,
}

/// A connection that was let in, until it ends.
pub struct Guest {
    door: Arc<Door>,
    client: Client,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let now_ms = self.door.now_ms();
        lock(&self.door.book).leave(self.client, now_ms);
    }
}

impl Default for Door {
    fn default() -> Door {
        Door {
            begun: Instant::now(),
            rules: Mutex::default(),
            book: Mutex::new(Book::new(REMEMBERED_MAX)),
            refused: Default::default(),
        }
    }
}

impl Door {
    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// Whoever is in stays.
    pub fn apply(&self, table: &HttpTable) {
        let rules = table.listeners.iter().map(|(name, listener)| {
            let rules = Rules {
                deny: Nets::new(&listener.deny),
                trusted: Nets::new(&listener.trusted_proxies),
                per_client_max: listener.per_client_max,
            };
            (name.clone(), Arc::new(rules))
        });
        let rules = rules.collect();
        *lock(&self.rules) = rules;
    }

    /// Lets one in, at that listener, if so many are there already.
    pub fn enter(
        self: &Arc<Self>,
        listener: &str,
        ip: IpAddr,
        (all, all_max): (usize, usize),
    ) -> Option<Guest> {
        let rules = self.rules(listener);
        let client = Client::of(ip);
        let entered = match rules.deny.contain(ip) {
            true => Err(Why::Denied),
            false => {
                let (each_max, trusted) = (rules.per_client_max, rules.trusted.contain(ip));
                let crowd = Crowd { all, all_max, each_max, trusted };
                lock(&self.book).enter(client, crowd, self.now_ms())
            }
        };
        match entered {
            Ok(()) => Some(Guest { door: Arc::clone(self), client }),
            Err(why) => {
                self.refused[why as usize].fetch_add(1, Relaxed);
                None
            }
        }
    }

    /// It asked for something and got it.
    pub fn served(&self, client: Client) {
        lock(&self.book).served(client, self.now_ms());
    }

    /// It was, within the last hour.
    pub fn knows(&self, client: Client) -> bool {
        lock(&self.book).knows(client, self.now_ms())
    }

    /// One of its connections had to be stopped.
    pub fn strike(&self, listener: &str, ip: IpAddr) {
        if !self.rules(listener).trusted.contain(ip) {
            lock(&self.book).strike(Client::of(ip), self.now_ms());
        }
    }

    fn rules(&self, listener: &str) -> Arc<Rules> {
        lock(&self.rules).get(listener).cloned().unwrap_or_default()
    }

    pub fn refused(&self) -> Refused {
        let of = |why: Why| self.refused[why as usize].load(Relaxed);
        Refused {
            denied: of(Why::Denied),
            struck: of(Why::Struck),
            too_many: of(Why::TooMany),
            crowded: of(Why::Crowded),
        }
    }
}

/// Nothing that holds this lock can leave it half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
