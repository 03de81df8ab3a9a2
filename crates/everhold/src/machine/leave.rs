//! The way of a machine out of its cluster: what runs there ends, the data stays, and its member of
//! the store goes when the others do without it.
//!
//! Until then they may need its vote: of two members both have to be there for the one to be taken
//! out. A `run` that is started again meanwhile goes on from here.

use super::member::Kept;
use super::url;
use crate::layout::Layout;
use crate::notify;
use crate::spec::StorePorts;
use crate::supervisor::{STOP_WITHIN, Signals, say};
use everhold_core::spec::NodeSpec;
use everhold_store::Etcd;
use std::time::Duration;

/// Between two looks at who keeps the store.
const LOOK: Duration = Duration::from_secs(1);

/// A machine whose node is none any more and whose processes have ended.
pub struct Leaving<'a> {
    pub me: &'a str,
    pub layout: &'a Layout,
    /// The node as it was.
    pub node: &'a NodeSpec,
    pub store: &'a Etcd,
}

impl Leaving<'_> {
    /// Keeps the member until the others do without it: then the machine is out for good, which is
    /// an error to whoever runs it. Asked to end before that, it goes on at the next start.
    pub async fn leave(self, member: Option<Kept>, signals: &mut Signals) -> anyhow::Result<()> {
        let out = match member {
            None => true,
            Some(member) => {
                let out = tokio::select! {
                    () = self.taken_out() => true,
                    () = signals.end() => false,
                };
                notify::stopping();
                match member.stop(STOP_WITHIN).await {
                    // One that was taken out doesn't start to be stopped.
                    Err(error) if out => tracing::info!(%error, "the store's member has ended"),
                    stopped => stopped?,
                }
                out
            }
        };
        say("· stopped; the data stays");
        if out { Err(self.removed()) } else { Ok(()) }
    }

    /// Returns when no member of the store is this machine's.
    async fn taken_out(&self) {
        if self.counts().await {
            say("· the store's member stays until the others have taken it out");
        }
        while self.counts().await {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The others count on this machine's member, or nobody can say.
    async fn counts(&self) -> bool {
        let peer = url(&self.node.address, StorePorts::default().peer);
        let members = self.store.members().await;
        members.map_or(true, |all| all.iter().any(|it| it.peer_urls.contains(&peer)))
    }

    fn removed(&self) -> anyhow::Error {
        anyhow::anyhow!(
            "E260 {} is no node of the cluster any more; its data is kept in {}; next step: delete \
             the data when nobody needs it, or move it and the node file away and `everhold join`",
            self.me,
            self.layout.root().display()
        )
    }
}
