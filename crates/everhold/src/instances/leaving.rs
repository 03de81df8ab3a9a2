//! What gateways tell while instances of this node go: what is on its way to them ends before they are
//! asked to.

use crate::gateway::{Presence, presence_prefix};
use crate::link::Report;
use everhold_core::records::decode;
use everhold_core::run::RunState;
use everhold_store::{Etcd, Store};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// A store that is slower tells nothing.
const READ_WITHIN: Duration = Duration::from_secs(1);

/// The gateways' words; empty while nothing goes, or the store says nothing.
pub type Gateways = BTreeMap<String, Presence>;

/// Reads them for as long as an instance goes, until nobody wants to know.
pub async fn follow(
    cluster: String,
    store: Etcd,
    report: watch::Receiver<Arc<Report>>,
    told: watch::Sender<Gateways>,
) {
    let prefix = presence_prefix(&cluster);
    while !told.is_closed() {
        tokio::time::sleep(LOOK).await;
        let goes = report.borrow().instances.values().flat_map(BTreeMap::values).any(|it| {
            // Also while it ends: nothing is lost by looking.
            it.state == RunState::Stopping
        });
        let gateways = if goes { read(&store, &prefix).await } else { Gateways::new() };
        told.send_replace(gateways);
    }
}

async fn read(store: &Etcd, prefix: &str) -> Gateways {
    let Ok(Ok(snapshot)) = timeout(READ_WITHIN, store.get_prefix(prefix)).await else {
        return Gateways::new();
    };
    let told = snapshot.kvs.into_iter();
    told.filter_map(|kv| Some((kv.key, decode(&kv.value).ok()?))).collect()
}
