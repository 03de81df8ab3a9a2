//! Which process listens where on a node.
//!
//! Everhold itself takes ports from the last of its node's range downwards: the agent's links, where
//! machines join, health paths and metrics of the agent, metrics of the gateway, what it tells others. Instances take ports from the first upwards, in order of their service's
//! name, and keep what they have when others come or go.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{NodeSpec, ServiceSpec, Spec};

/// Before a port is assigned. No service can listen there, so a forgotten assignment shows.
pub(super) const UNASSIGNED: u16 = 0;
/// Ports below are the privileged ones of the system.
const PORT_MIN: u16 = 1024;
/// The least size of a range: the agent, an instance, and room for a few services to come.
const LENGTH_MIN: u16 = 10;

/// Ports at the end of each range that are Everhold's own.
const OWN: u16 = 5;

/// Ports of one node, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    pub fn overlaps(&self, other: PortRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// How many instances fit beside Everhold's own ports.
    pub fn instances_max(&self) -> usize {
        usize::from((self.last - self.first + 1).saturating_sub(OWN))
    }

    /// The same range further up. The caller knows that it stays below 65536.
    pub(super) fn shifted(self, by: u16) -> PortRange {
        PortRange { first: self.first + by, last: self.last + by }
    }
}

impl NodeSpec {
    /// Where the node's agent listens for other agents and gateways.
    pub fn agent_port(&self) -> u16 {
        self.ports.last
    }

    /// Where a machine that wants to join knocks.
    pub fn join_port(&self) -> u16 {
        self.ports.last - 1
    }

    /// Where the node's agent answers load balancers, and tells its metrics.
    pub fn health_port(&self) -> u16 {
        self.ports.last - 2
    }

    /// Where the node's gateway tells its metrics.
    pub fn gateway_port(&self) -> u16 {
        self.ports.last - 3
    }

    /// Where the node's gateway tells the others what it admits.
    pub fn limits_port(&self) -> u16 {
        self.ports.last - 4
    }

    /// The port of the instance at `index`, counted from zero; `None` when the range is full.
    pub fn instance_port(&self, index: usize) -> Option<u16> {
        let port =
            u16::try_from(index).ok().and_then(|index| self.ports.first.checked_add(index))?;
        self.may_use(port).then_some(port)
    }

    pub(super) fn may_use(&self, port: u16) -> bool {
        self.ports.contains(port) && port <= self.ports.last - OWN
    }
}

impl Spec {
    /// Gives each PostgreSQL instance without a port the first free one of its node.
    ///
    /// An instance stays without one only if its node's range is full ([`Spec::portless`]).
    pub fn assign_ports(&mut self) {
        for (name, node) in &self.nodes {
            let databases = self.databases().filter_map(|(_, service)| service.port(name));
            let held = self.http_services().flat_map(|(_, http)| http.held());
            let held = held.filter(|it| it.node == *name).map(|it| it.port);
            let mut taken: BTreeSet<u16> = databases.chain(held).collect();
            for service in self.services.values_mut() {
                let ServiceSpec::Postgres(postgres) = service else { continue };
                let Some(instance) = postgres.instances.get_mut(name) else { continue };
                if instance.port != UNASSIGNED {
                    continue;
                }
                let free = (0..node.ports.instances_max())
                    .filter_map(|index| node.instance_port(index))
                    .find(|port| !taken.contains(port));
                if let Some(port) = free {
                    instance.port = port;
                    taken.insert(port);
                }
            }
        }
    }

    /// A PostgreSQL instance that got no port, as service and node: those that run on the node have all.
    pub fn portless(&self) -> Option<(&str, &str)> {
        self.databases().find_map(|(name, service)| {
            let mut all = service.instances.iter();
            let (node, _) = all.find(|(_, it)| it.port == UNASSIGNED)?;
            Some((name.as_str(), node.as_str()))
        })
    }

    /// Takes over what a document doesn't say from the spec in force: the duties of nodes, who of them is
    /// lost, and the places of instances that run already, so that a new service never moves another one.
    /// To be called before a new revision is compared or stored.
    pub fn keep(&mut self, old: &Spec) {
        for (name, node) in &mut self.nodes {
            node.duty = old.duty(name);
            let was = old.nodes.get(name);
            node.lost = was.and_then(|it| it.lost.clone());
            node.back = was.and_then(|it| it.back.clone());
        }
        for (name, service) in &mut self.services {
            let ServiceSpec::Postgres(postgres) = service else { continue };
            for (node, instance) in &mut postgres.instances {
                let kept = old.postgres(name).and_then(|service| service.port(node));
                let usable =
                    |port: &u16| self.nodes.get(node).is_some_and(|node| node.may_use(*port));
                instance.port = kept.filter(usable).unwrap_or(UNASSIGNED);
            }
        }
        let before = self.keep_placed(old);
        self.assign_ports();
        self.place_beside(&before);
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> String {
        range.to_string()
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;
    fn try_from(text: String) -> Result<PortRange, String> {
        text.parse()
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<PortRange, String> {
        let (first, last) = text
            .split_once('-')
            .ok_or_else(|| format!("`{text}` is not of the form FIRST-LAST"))?;
        let port = |part: &str| {
            part.trim().parse::<u16>().map_err(|_| format!("`{}` is not a port", part.trim()))
        };
        let range = PortRange { first: port(first)?, last: port(last)? };
        if range.first > range.last {
            return Err(format!("`{text}` ends before it starts"));
        }
        if range.first < PORT_MIN {
            return Err(format!(
                "`{text}` holds privileged ports, the first allowed is {PORT_MIN}"
            ));
        }
        if range.last - range.first + 1 < LENGTH_MIN {
            return Err(format!("`{text}` holds fewer than {LENGTH_MIN} ports"));
        }
        Ok(range)
    }
}
