//! The members of the store itself: who they are, and how one comes and goes.

use etcd_client::MemberAddOptions;

use super::link::Kind;
use super::{Etcd, link};
use crate::StoreError;

/// One server of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    /// Empty until it has started for the first time.
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
    /// It copies and does not vote yet.
    pub learner: bool,
}

impl Etcd {
    /// All members, as one of them knows them.
    pub async fn members(&self) -> Result<Vec<Member>, StoreError> {
        let call = |mut client: etcd_client::Client| async move { client.member_list().await };
        let answer = self.link.call("list the members", Kind::Read, call).await?;
        let member = |it: &etcd_client::Member| Member {
            id: it.id(),
            name: it.name().to_owned(),
            peer_urls: it.peer_urls().to_vec(),
            client_urls: it.client_urls().to_vec(),
            learner: it.is_learner(),
        };
        Ok(answer.members().iter().map(member).collect())
    }

    /// Adds a member that copies everything before it votes.
    pub async fn add_learner(&self, peer_url: &str) -> Result<(), StoreError> {
        let call = |mut client: etcd_client::Client| async move {
            let learner = MemberAddOptions::new().with_is_learner();
            client.member_add([peer_url], Some(learner)).await
        };
        self.link.call("add a member", Kind::Write, call).await.map(drop)
    }

    /// Lets a learner vote. Refused until it has copied nearly everything.
    pub async fn promote(&self, id: u64) -> Result<(), StoreError> {
        let call = |mut client: etcd_client::Client| async move { client.member_promote(id).await };
        self.link.call("let a member vote", Kind::Write, call).await.map(drop)
    }

    /// Takes a member out for good: its data may not be used again.
    pub async fn remove_member(&self, id: u64) -> Result<(), StoreError> {
        let call = |mut client: etcd_client::Client| async move { client.member_remove(id).await };
        match self.link.call("remove a member", Kind::Write, call).await {
            Err(StoreError::Refused { source, .. }) if link::is_not_found(&*source) => Ok(()),
            answer => answer.map(drop),
        }
    }
}
