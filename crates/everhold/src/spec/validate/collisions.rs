//! Two things cannot listen at one place: ranges of nodes, listeners, the API, the store.
//!
//! Whether two addresses meet depends on the machine: `0.0.0.0` on the gateways' machines meets the
//! ranges of the nodes there and of no others.

use everhold_core::spec::{Address, PortRange, Spec};

use super::super::fault::{Code, Faults};
use super::super::raw::RawSpec;
use super::super::reader::Part;
use super::StorePorts;

/// Something that listens.
struct Place<'s> {
    what: String,
    /// May be the unspecified address.
    address: Address,
    ports: PortRange,
    /// The machines it is on, by their nodes' addresses.
    machines: Vec<&'s Address>,
    /// Where it is declared; `None` for a default.
    at: Option<usize>,
}

/// Reports every pair that collides, at the one that was declared later.
pub(super) fn check(spec: &Spec, raw: &RawSpec, store: StorePorts, faults: &mut Faults<'_>) {
    let places = places(spec, raw, store);
    for (index, one) in places.iter().enumerate() {
        for other in &places[index + 1..] {
            if one.collides(other) {
                report(one, other, faults);
            }
        }
    }
    for (name, node) in &spec.nodes {
        let services = spec.databases().filter(|(_, it)| it.nodes.contains(name)).count();
        if services > node.ports.instances_max() {
            let message = format!(
                "node {name} has {services} instances and an agent, but only the ports {}",
                node.ports
            );
            faults.add(Code::Count, node_place(raw, name).unwrap_or(0), message).next =
                "give the node a larger range of ports".into();
        }
    }
}

fn report(one: &Place<'_>, other: &Place<'_>, faults: &mut Faults<'_>) {
    let (first, second) = if one.at > other.at { (other, one) } else { (one, other) };
    let line = first.at.map(|at| format!(" ({})", faults.line(at))).unwrap_or_default();
    let message = format!("{} collides with {}{line}", second.shown(), first.shown());
    faults.add(Code::PortCollision, second.at.unwrap_or(0), message);
}

impl Place<'_> {
    fn collides(&self, other: &Place<'_>) -> bool {
        let same_machine =
            self.machines.iter().any(|one| other.machines.iter().any(|two| meet(one, two)));
        same_machine && self.ports.overlaps(other.ports) && meet(&self.address, &other.address)
    }

    fn shown(&self) -> String {
        let at = match &self.address {
            Address::Ip(ip) if ip.is_ipv6() => format!("[{ip}]"),
            address => address.to_string(),
        };
        if self.ports.first == self.ports.last {
            format!("{} ({at}:{})", self.what, self.ports.first)
        } else {
            format!("{} ({at}:{})", self.what, self.ports)
        }
    }
}

fn meet(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Ip(ip), address) | (address, Address::Ip(ip)) => address.meets(*ip),
        (Address::Host(one), Address::Host(other)) => one == other,
    }
}

fn places<'s>(spec: &'s Spec, raw: &RawSpec, store: StorePorts) -> Vec<Place<'s>> {
    let mut places = Vec::new();
    for (name, node) in &spec.nodes {
        places.push(Place {
            what: format!("the range of node {name}"),
            address: node.address.clone(),
            ports: node.ports,
            machines: vec![&node.address],
            at: node_place(raw, name),
        });
    }
    let single = |port| PortRange { first: port, last: port };
    let gateways: Vec<&Address> = spec
        .gateway
        .nodes
        .iter()
        .filter_map(|name| spec.nodes.get(name))
        .map(|it| &it.address)
        .collect();
    for (name, listener) in &spec.listeners {
        places.push(Place {
            what: format!("listener {name}"),
            address: Address::Ip(listener.bind.ip()),
            ports: single(listener.bind.port()),
            machines: gateways.clone(),
            at: listener_place(raw, name),
        });
    }
    places.push(Place {
        what: "the API".into(),
        address: Address::Ip(spec.api.bind.ip()),
        ports: single(spec.api.bind.port()),
        machines: spec.nodes.values().map(|node| &node.address).collect(),
        at: raw.api_bind.is().map(|bind| bind.at),
    });
    if let Some((_, node)) = spec.store_node() {
        for (what, port) in [("the store", store.client), ("the store's peer port", store.peer)] {
            places.push(Place {
                what: what.into(),
                address: node.address.clone(),
                ports: single(port),
                machines: vec![&node.address],
                at: None,
            });
        }
    }
    places
}

/// Where a node's ports are declared, or else the node.
fn node_place(raw: &RawSpec, name: &str) -> Option<usize> {
    let Part::Is(nodes) = &raw.nodes else { return None };
    let (_, node) = nodes.value.iter().find(|(node, _)| node.value == name)?;
    node.as_ref().map(|node| node.ports.is().map_or(node.at, |ports| ports.at))
}

fn listener_place(raw: &RawSpec, name: &str) -> Option<usize> {
    let Part::Is(listeners) = &raw.listeners else { return None };
    let (name, listener) = listeners.value.iter().find(|(listener, _)| listener.value == name)?;
    let bind = listener.as_ref().and_then(|listener| listener.bind.is());
    Some(bind.map_or(name.at, |bind| bind.at))
}
