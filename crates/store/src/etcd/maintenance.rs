//! Upkeep of the store's servers: how large they are, what they complain of, defragmentation, and
//! copies of everything.

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Error};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::link::Kind;
use super::{Etcd, EtcdConfig, unsigned};
use crate::StoreError;

/// What one server says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub id: u64,
    /// The leader it knows; 0: none.
    pub leader: u64,
    /// Of its file.
    pub db_bytes: u64,
    /// Of that, what is not free space.
    pub used_bytes: u64,
}

impl Etcd {
    /// A client of one server alone, for calls that are about it.
    pub async fn only(&self, endpoint: &str, deadline: Duration) -> Result<Etcd, StoreError> {
        let tls = self.link.tls().cloned();
        Etcd::new(EtcdConfig { endpoints: vec![endpoint.to_owned()], tls, deadline }).await
    }

    /// What the server that is called says about itself. It answers without the others.
    pub async fn server(&self) -> Result<Server, StoreError> {
        let call = |mut client: etcd_client::Client| async move { client.status().await };
        let status = self.link.call("ask for its state", Kind::Read, call).await?;
        Ok(Server {
            id: status.header().map_or(0, |header| header.member_id()),
            leader: status.leader(),
            db_bytes: unsigned(status.db_size()),
            used_bytes: unsigned(status.raft_used_db_size()),
        })
    }

    /// Gives the free space of the server's file back. It applies nothing meanwhile.
    pub async fn defragment(&self) -> Result<(), StoreError> {
        let call = |mut client: etcd_client::Client| async move { client.defragment().await };
        self.link.call("defragment", Kind::Write, call).await.map(drop)
    }

    /// The members whose file has reached its quota: until that is disarmed nothing can be written.
    pub async fn without_space(&self) -> Result<Vec<u64>, StoreError> {
        let call = |mut client: etcd_client::Client| async move {
            client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await
        };
        let answer = self.link.call("ask for alarms", Kind::Read, call).await?;
        let full = answer.alarms().iter().filter(|it| it.alarm() == AlarmType::Nospace);
        Ok(full.map(etcd_client::AlarmMember::member_id).collect())
    }

    /// Ends the alarm of a member whose file has room again.
    pub async fn disarm(&self, member: u64) -> Result<(), StoreError> {
        let call = |mut client: etcd_client::Client| async move {
            let mut of = AlarmOptions::new();
            of.with_member(member);
            client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(of)).await
        };
        self.link.call("disarm an alarm", Kind::Write, call).await.map(drop)
    }

    /// Writes a copy of everything, as one server has it, to `to`: its file, then the SHA-256 of it.
    /// Nothing is retried, so what was written before an error is to be thrown away.
    pub async fn copy_to(&self, to: &mut (impl AsyncWrite + Unpin)) -> Result<(), StoreError> {
        const WHAT: &str = "copy the store";
        let whom = self.link.whom();
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Unavailable {
            what: WHAT,
            whom: whom.clone(),
            source,
        };
        let (generation, mut client) = self.link.client();
        let copied = async {
            let mut copy = client.snapshot().await?;
            while let Some(part) = copy.message().await? {
                to.write_all(part.blob()).await.map_err(Error::IoError)?;
            }
            to.flush().await.map_err(Error::IoError)
        };
        match tokio::time::timeout(self.link.deadline(), copied).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                self.link.replace(generation).await;
                Err(broken(error.into()))
            }
            Err(_) => {
                self.link.replace(generation).await;
                Err(broken(crate::error::NoAnswer(self.link.deadline()).into()))
            }
        }
    }
}
