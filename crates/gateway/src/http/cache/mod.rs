//! Answers that are kept: looked for before an instance is picked, and kept as they pass.
//!
//! `store` has them, `stored` is one of them, `fill` one on its way, `give` gives one to a client,
//! `purge` takes some out. What may be kept and given is judged in core. This file is what a request has
//! to do with it:
//!
//! [`serve`] gives what is fresh, or lets one of several that miss the same go on to an instance while
//! the others wait. Before the answer of an instance goes out, [`answered`] says whether it is kept, and
//! whether it only says that the one that is kept is still so. Where nobody answers, [`instead`] gives
//! a stale one, if it may be given.

mod fill;
mod give;
mod purge;
mod store;
mod stored;
mod visit;

pub use fill::Fill;
pub use give::{Given, How, give};
pub use store::Store;
use stored::Count;
pub use visit::{Answered, Visit, answered, gave, instead, serve};

use everhold_core::http::HttpTable;
use everhold_core::http::cache::{BYTES, CacheSpec};
use std::sync::Arc;

/// What is kept by a gateway, for who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub answers: usize,
    /// With what each costs beside its own bytes.
    pub bytes: u64,
    pub bytes_max: u64,
}

/// How the answers of a route are kept.
pub struct Cached {
    pub spec: CacheSpec,
    pub store: Arc<Store>,
    pub count: Arc<Count>,
    /// What its keys begin with.
    prefix: Vec<u8>,
}

impl Cached {
    /// Two routes have nothing in common, and nothing outlives that a route leads elsewhere, or that its
    /// answers are told apart by other fields.
    pub fn new(spec: &CacheSpec, store: Arc<Store>, route: &str, service: &str) -> Cached {
        let mut prefix = Vec::new();
        let fields = spec.key_headers.iter().map(String::as_str);
        for part in [route, service].into_iter().chain(fields).chain([""]) {
            prefix.extend_from_slice(part.as_bytes());
            prefix.push(0);
        }
        let count = store.count_of(route);
        Cached { spec: spec.clone(), store, count, prefix }
    }
}

/// What a table wants kept in all, in bytes; 0: it has no route that keeps anything.
pub fn wanted(table: &HttpTable) -> u64 {
    let mut routes = table.listeners.values().flat_map(|it| &it.routes);
    match routes.any(|route| route.cache.is_some()) {
        true => table.cache_bytes.unwrap_or(BYTES),
        false => 0,
    }
}
