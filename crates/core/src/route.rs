//! The route table: all that a gateway needs to know, as one immutable value.
//!
//! A table is built from the spec's PostgreSQL listeners and from what is known of the services, and is
//! swapped whole. Building it is where a gateway is protected from old news: the epoch of a route
//! never goes down, and not knowing is not the same as knowing that there is nobody.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::http::HttpTable;
use crate::ids::Epoch;
use crate::spec::{ListenerSpec, MAX_LAG_MS, PostgresListener, Role};

/// One process of a service, as a place to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub name: String,
    pub address: SocketAddr,
}

/// A standby as last heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    pub instance: Instance,
    /// `None`: unknown, because nothing fresh was heard. Never read as zero.
    pub lag_ms: Option<u64>,
    /// It streams from the primary of this epoch, with a fresh message from it.
    pub readable: bool,
}

/// What is known of a service. A service of which nothing is known has no facts at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFacts {
    pub epoch: Epoch,
    /// `None` says that there is no open primary at this epoch, not that it is unknown.
    pub primary: Option<Instance>,
    pub standbys: Vec<Standby>,
    /// Every instance, in whatever state.
    pub all: Vec<SocketAddr>,
}

/// The routes of one gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// Rises with each change of the content, and only then.
    pub revision: u64,
    pub listeners: BTreeMap<String, ListenerRoute>,
    #[serde(default, skip_serializing_if = "HttpTable::is_empty")]
    pub http: HttpTable,
}

impl RouteTable {
    /// The table with that for HTTP, and a revision of its own if that is another.
    pub fn with_http(self, http: HttpTable) -> RouteTable {
        let revision = self.revision + u64::from(self.http != http);
        RouteTable { revision, http, ..self }
    }

    /// Where its listeners are.
    pub fn binds(&self) -> impl Iterator<Item = SocketAddr> {
        let http = self.http.listeners.values().map(|it| it.bind);
        self.listeners.values().map(|it| it.bind).chain(http)
    }

    /// The table with what `other`, of the same gateway, knows of later epochs.
    pub fn at_least(mut self, other: &RouteTable) -> RouteTable {
        let mut later = false;
        for (name, route) in &mut self.listeners {
            let Some(known) = other.listeners.get(name).filter(|it| {
                it.service == route.service && it.role == route.role && it.epoch > route.epoch
            }) else {
                continue;
            };
            let (bind, max_lag_ms) = (route.bind, route.max_lag_ms);
            *route = ListenerRoute { bind, max_lag_ms, ..known.clone() };
            later = true;
        }
        self.revision = self.revision.max(other.revision) + u64::from(later);
        self
    }
}

/// Where the connections of one listener go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerRoute {
    pub bind: SocketAddr,
    pub service: String,
    pub role: Role,
    /// How far a standby may be behind. Unused for [`Role::Primary`].
    pub max_lag_ms: u64,
    /// The epoch of the facts that this route was built from; 0 if there were none yet.
    pub epoch: Epoch,
    /// New connections go to one of these; empty: they wait. By name.
    ///
    /// The lag that let a standby in is not part of it: it changes with every message, and a table
    /// that changed as often would wake every thread of the gateway for nothing.
    pub backends: Vec<Instance>,
    /// The open primary of the epoch, whether or not new connections go to it.
    pub primary: Option<SocketAddr>,
    /// Every instance of the service: who may hold the session that a cancel request names.
    pub all: Vec<SocketAddr>,
}

/// What a new table means for an open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Keep,
    /// Cut it unless a later table brings its backend back within the gateway's grace: a standby
    /// whose lag swings about the bound would otherwise lose its sessions at each swing.
    CutAfterGrace,
    Cut,
}

/// Builds the table that follows `previous`.
///
/// - No facts of a service: its listeners keep what they had, so that a gateway cut off from
///   store and agents goes on.
/// - Facts of a lower epoch than the previous table's are old news and change nothing.
/// - Facts that name no primary, at the previous epoch or above, empty the primary's route.
pub fn build(
    listeners: &BTreeMap<String, ListenerSpec>,
    services: &BTreeMap<String, ServiceFacts>,
    previous: Option<&RouteTable>,
) -> RouteTable {
    let listeners: BTreeMap<String, ListenerRoute> = listeners
        .iter()
        .filter_map(|(name, listener)| Some((name, listener.bind, listener.postgres()?)))
        .map(|(name, bind, spec)| {
            // What led to another service or another role says nothing about this one.
            let before = previous
                .and_then(|table| table.listeners.get(name))
                .filter(|route| route.service == spec.service && route.role == spec.role);
            (name.clone(), build_route(bind, spec, services.get(&spec.service), before))
        })
        .collect();
    match previous {
        Some(table) if table.listeners == listeners => table.clone(),
        Some(RouteTable { revision, http, .. }) => {
            RouteTable { revision: revision + 1, listeners, http: http.clone() }
        }
        None => RouteTable { revision: 1, listeners, http: HttpTable::default() },
    }
}

/// What becomes of a connection of a listener to `backend`, when `new` follows `old`.
///
/// A higher epoch, or another primary, means that whoever is not named any more may already be
/// fenced: its sessions are cut at once. Within an epoch nobody else can lead, so that a primary
/// that is merely not named keeps its sessions until somebody is. A listener that is gone, or now
/// leads to another service, takes its sessions along.
pub fn fate(old: &ListenerRoute, new: Option<&ListenerRoute>, backend: SocketAddr) -> Fate {
    let Some(new) = new.filter(|new| new.service == old.service && new.role == old.role) else {
        return Fate::Cut;
    };
    let named = new.backends.iter().any(|instance| instance.address == backend);
    if named || (new.role == Role::Standby && new.primary == Some(backend)) {
        return Fate::Keep;
    }
    if new.epoch > old.epoch {
        return Fate::Cut;
    }
    match new.role {
        Role::Primary if new.backends.is_empty() => Fate::Keep,
        Role::Primary => Fate::Cut,
        Role::Standby => Fate::CutAfterGrace,
    }
}

fn build_route(
    bind: SocketAddr,
    spec: &PostgresListener,
    facts: Option<&ServiceFacts>,
    before: Option<&ListenerRoute>,
) -> ListenerRoute {
    let route = |epoch, backends, primary, all| ListenerRoute {
        bind,
        service: spec.service.clone(),
        role: spec.role,
        max_lag_ms: max_lag_ms(spec),
        epoch,
        backends,
        primary,
        all,
    };
    let known_epoch = before.map_or(0, |route| route.epoch);
    match (facts.filter(|facts| facts.epoch >= known_epoch), before) {
        (Some(facts), _) => {
            let primary = facts.primary.as_ref().map(|instance| instance.address);
            // Sorted, so that the order in which agents report cannot make two tables differ.
            let mut all = facts.all.clone();
            all.sort_unstable();
            all.dedup();
            route(facts.epoch, backends(spec, facts), primary, all)
        }
        (None, Some(old)) => route(old.epoch, old.backends.clone(), old.primary, old.all.clone()),
        (None, None) => route(0, Vec::new(), None, Vec::new()),
    }
}

fn backends(spec: &PostgresListener, facts: &ServiceFacts) -> Vec<Instance> {
    let primary = || facts.primary.iter().cloned().collect();
    match spec.role {
        Role::Primary => primary(),
        Role::Standby => {
            let mut near: Vec<Instance> = facts
                .standbys
                .iter()
                .filter(|s| s.readable && s.lag_ms.is_some_and(|lag| lag <= max_lag_ms(spec)))
                .map(|s| s.instance.clone())
                .collect();
            near.sort_by(|a, b| a.name.cmp(&b.name));
            if near.is_empty() { primary() } else { near }
        }
    }
}

fn max_lag_ms(spec: &PostgresListener) -> u64 {
    spec.max_lag_ms.unwrap_or(MAX_LAG_MS)
}

#[cfg(test)]
mod tests;
