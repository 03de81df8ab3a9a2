//! The store as a thing that has to be cared for: upkeep of its servers, copies on every machine's
//! disk, and the way back from such a copy.

pub mod copies;
pub mod identity;
pub mod restore;
pub mod upkeep;

use crate::layout::Layout;
use crate::troubles::Troubles;
use everhold_store::Etcd;

/// Something that can be wrong with the store, as `status` shows it.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub name: &'static str,
    /// What ends it.
    pub unblocks: &'static str,
}

/// What every machine does for the store, until the process ends.
pub fn care(cluster: &str, store: &Etcd, layout: &Layout, troubles: &Troubles) {
    let (cluster, store, troubles) = (cluster.to_string(), store.clone(), troubles.clone());
    tokio::spawn(copies::keep(cluster, store.clone(), layout.clone(), troubles.clone()));
    tokio::spawn(upkeep::watch(store, troubles));
}
