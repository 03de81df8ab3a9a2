//! The links of one process: to the agents of those nodes whose word it needs, as the spec has them.

use crate::agent::host_and_port;
use crate::link::{self, Link, Report, Tls};
use everhold_core::spec::Spec;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
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

    /// Dials who is new among the nodes that are `wanted`, to hear them `every` so often, and hangs
    /// up on who isn't any more.
    pub fn follow(&mut self, spec: &Spec, every: Duration, wanted: impl Fn(&str) -> bool) {
        let address = |name: &str| {
            let node = spec.nodes.get(name).filter(|_| wanted(name))?;
            Some(host_and_port(&node.address, node.agent_port()))
        };
        self.links.retain(|name, (at, _)| address(name).as_ref() == Some(at));
        for name in spec.nodes.keys() {
            let Some(at) = address(name).filter(|_| !self.links.contains_key(name)) else {
                continue;
            };
            let (tls, told) = (self.tls.clone(), self.told.clone());
            let link = link::dial(name.clone(), at.clone(), every, tls, told);
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
    let mut services = spec.databases().map(|(_, service)| &service.nodes);
    me != node && services.any(|nodes| on(nodes, me) && on(nodes, node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{StorePorts, load_with};

    #[test]
    fn an_agent_judges_with_those_it_shares_a_service_with() {
        let range = |i: usize| format!("{}-{}", 16_000 + i * 100, 16_099 + i * 100);
        let node = |(i, name)| {
            format!("{name} = {{ address = \"127.0.0.1\", ports = \"{}\" }}\n", range(i))
        };
        let nodes: String = ["a", "b", "c", "d", "e"].into_iter().enumerate().map(node).collect();
        let text = format!(
            "schema = 1\ncluster = \"shop\"\n[node]\n{nodes}\
             [service.one]\nkind = \"postgres\"\nnodes = [\"a\", \"b\", \"c\"]\n\
             [service.two]\nkind = \"postgres\"\nnodes = [\"c\", \"d\"]\n\
             [listener]\n\
             w = {{ bind = \"127.0.0.1:6432\", protocol = \"postgres\", service = \"one\", role = \"primary\" }}\n"
        );
        let spec = load_with(&text, "test", StorePorts::default()).expect("a spec");
        let check = |me: &str, expected: &str| {
            let found: Vec<String> = {
                let others = spec.nodes.keys().filter(|it| shares_a_service(&spec, me, it));
                others.cloned().collect()
            };
            assert_eq!(found.join(" "), expected, "{me}");
        };
        check("a", "b c");
        check("c", "a b d");
        check("d", "c");
        check("e", "");
    }
}
