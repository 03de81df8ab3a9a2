//! The links of one process: to the agents of those nodes whose word it needs, as the spec has them.

use crate::agent::host_and_port;
use crate::link::{self, Link, Report, Tls};
use everhold_core::spec::Spec;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Standing links by node. One that is dropped hangs up.
pub struct Links {
    tls: Tls,
    told: mpsc::Sender<(String, Arc<Report>)>,
    /// With the address each was dialled at.
    links: BTreeMap<String, (String, Link)>,
}

impl Links {
    pub fn new(tls: Tls, told: mpsc::Sender<(String, Arc<Report>)>) -> Links {
        Links { tls, told, links: BTreeMap::new() }
    }

    /// Dials who is new among the nodes that are `wanted`, and hangs up on who isn't any more.
    pub fn follow(&mut self, spec: &Spec, wanted: impl Fn(&str) -> bool) {
        let address = |name: &str| {
            let node = spec.nodes.get(name).filter(|_| wanted(name))?;
            Some(host_and_port(&node.address, node.agent_port()))
        };
        self.links.retain(|name, (at, _)| address(name).as_ref() == Some(at));
        for name in spec.nodes.keys() {
            let Some(at) = address(name).filter(|_| !self.links.contains_key(name)) else {
                continue;
            };
            let link = link::dial(name.clone(), at.clone(), self.tls.clone(), self.told.clone());
            self.links.insert(name.clone(), (at, link));
        }
    }

    pub fn get(&self, node: &str) -> Option<Link> {
        self.links.get(node).map(|(_, link)| link.clone())
    }

    pub fn nodes(&self) -> Vec<String> {
        self.links.keys().cloned().collect()
    }
}

/// The nodes whose agents an agent needs to hear: those it shares a service with.
pub fn shares_a_service(spec: &Spec, me: &str, node: &str) -> bool {
    let on = |nodes: &[String], name: &str| nodes.iter().any(|it| it == name);
    let mut services = spec.services.values().map(|service| service.nodes());
    me != node && services.any(|nodes| on(nodes, me) && on(nodes, node))
}
