//! What an agent sees to beside writing its journal: damage is told, and its head stands elsewhere too.

use super::Journal;
use crate::clock;
use crate::link::{Hold, Report};
use crate::node_file::NodeFile;
use everhold_store::{Etcd, Store};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Between two looks at what is damaged.
const MENDED_EVERY: Duration = Duration::from_secs(2);
/// Between two mirrors of the journal's head.
const HEAD_EVERY: Duration = Duration::from_secs(5);

/// Says it while a chain of the journal that was read at the start is broken.
pub async fn watch(dir: PathBuf, report: watch::Sender<Arc<Report>>) {
    const RULE: &str = "journal-damaged";
    let mut since = None;
    loop {
        let of = dir.clone();
        let read = tokio::task::spawn_blocking(move || super::verify(&of)).await;
        let fault = read.unwrap_or(Ok(0)).err();
        let whole = fault.is_none();
        let hold = fault.map(|fault| Hold {
            service: None,
            rule: RULE.to_string(),
            why: format!("E204 the journal in {} is damaged: {fault}", dir.display()),
            unblocks:
                "restore the file from a copy, or move the directory away and end the agent, \
                       which begins a new one; entries are written meanwhile"
                    .to_string(),
            operator: true,
            since: since.get_or_insert_with(clock::wall).clone(),
            recheck_at: None,
            journal: None,
        });
        report.send_modify(|report| {
            let holds = &mut Arc::make_mut(report).holds;
            holds.retain(|hold| hold.rule != RULE);
            holds.extend(hold);
        });
        if whole {
            return;
        }
        tokio::time::sleep(MENDED_EVERY).await;
    }
}

/// The newest hash of the journal stands in the store too, where this node's disk can't change it.
pub async fn mirror_head(journal: Journal, store: Etcd, node: NodeFile) {
    let key = format!("/everhold/{}/journal/{}", node.cluster, node.name);
    let mut mirrored = String::new();
    loop {
        tokio::time::sleep(HEAD_EVERY).await;
        let head = journal.head();
        if head != mirrored {
            let txn = everhold_core::kv::Txn::new().put(&key, head.clone());
            if store.txn(&txn).await.is_ok() {
                mirrored = head;
            }
        }
    }
}
