//! What only this machine can say about a spec: programs, directories, users, ports.
//!
//! Looks and never touches: no file is created, no port is listened on, nothing is started but
//! `--version` of the programs that are to run. What other machines lack, their own agents report.

mod data;
mod http;
mod programs;
mod run_as;
mod sockets;

use std::net::{SocketAddr, ToSocketAddrs};

use everhold_core::spec::{Address, Spec};

use super::fault::{Code, Fault};
use super::validate::StorePorts;
use crate::layout::Layout;

pub use programs::Search;
pub use run_as::RunAs;

/// The longest path of a socket (`sun_path` of Linux, with its final zero).
const SOCKET_PATH_MAX: usize = 107;

/// What of a spec is to run on this machine, and how.
#[derive(Debug, Clone)]
pub struct Local<'a> {
    pub layout: &'a Layout,
    /// Whom PostgreSQL runs as.
    pub run_as: &'a RunAs,
    pub search: &'a Search,
    /// The nodes of this machine.
    pub nodes: Vec<String>,
    /// Whether a gateway runs here.
    pub gateway: bool,
    /// The embedded store's ports, if its member runs here.
    pub store: Option<StorePorts>,
}

impl<'a> Local<'a> {
    /// Everything on this machine, as `everhold up` runs it.
    pub fn all(
        spec: &Spec,
        layout: &'a Layout,
        run_as: &'a RunAs,
        search: &'a Search,
        store: StorePorts,
    ) -> Local<'a> {
        let nodes = spec.nodes.keys().cloned().collect();
        let own = spec.store.is_none().then_some(store);
        Local { layout, run_as, search, nodes, gateway: true, store: own }
    }
}

/// Every fault of this machine, for a spec that is valid.
pub fn check_local(spec: &Spec, local: &Local<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    data::check(spec, local, &mut faults);
    local.search.check(spec, local, &mut faults);
    http::check(spec, local, &mut faults);
    socket_paths(spec, local, &mut faults);
    ports(spec, local, &mut faults);
    faults
}

/// The PostgreSQL instances of this machine: node, service and port.
fn instances<'s>(spec: &'s Spec, local: &Local<'_>) -> Vec<(&'s str, &'s str, u16)> {
    let mut found = Vec::new();
    for (name, service) in spec.databases() {
        for node in service.nodes.iter().filter(|node| local.nodes.contains(node)) {
            if let Some(port) = service.port(node) {
                found.push((node.as_str(), name.as_str(), port));
            }
        }
    }
    found
}

fn socket_paths(spec: &Spec, local: &Local<'_>, faults: &mut Vec<Fault>) {
    let postgres = instances(spec, local).into_iter();
    let postgres = postgres.map(|(node, service, port)| local.layout.socket(node, service, port));
    // They differ only in names; the longest says it all.
    let paths = postgres.chain([local.layout.handover().with_extension("new")]);
    let Some(path) = paths.max_by_key(|path| path.as_os_str().len()) else { return };
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_MAX {
        let message = format!(
            "the socket path {} has {bytes} bytes, the system allows {SOCKET_PATH_MAX}",
            path.display()
        );
        let next = format!(
            "choose a data directory whose path is shorter by {} bytes or more with --data",
            bytes - SOCKET_PATH_MAX
        );
        faults.push(Fault::of_machine(Code::SocketPath, message).next(next));
    }
}

fn ports(spec: &Spec, local: &Local<'_>, faults: &mut Vec<Fault>) {
    let holders = sockets::Holders::new(local.layout.root());
    for (what, flag, address) in addresses(spec, local, faults) {
        let fault = match sockets::try_bind(address) {
            Ok(()) => continue,
            Err(error) => sockets::fault(&what, address, error, &holders),
        };
        if let Some(fault) = fault {
            let fault = match (fault.code, flag) {
                (Code::PortTaken, Some(flag)) => {
                    fault.next(format!("end the other program, or choose another port with {flag}"))
                }
                _ => fault,
            };
            faults.push(fault);
        }
    }
}

/// Everything that is to be listened on here: what it is, how it is changed if not in the spec,
/// and where.
fn addresses(
    spec: &Spec,
    local: &Local<'_>,
    faults: &mut Vec<Fault>,
) -> Vec<(String, Option<&'static str>, SocketAddr)> {
    let mut found = vec![("the API".to_owned(), None, spec.api.bind)];
    if local.gateway {
        let listeners = spec.listeners.iter();
        found.extend(listeners.map(|(name, it)| (format!("listener {name}"), None, it.bind)));
    }
    for name in &local.nodes {
        let Some(node) = spec.nodes.get(name) else { continue };
        let of_node = |port| resolve(name, &node.address, port);
        match of_node(node.agent_port()) {
            Ok(address) => found.push((format!("the agent of node {name}"), None, address)),
            Err(fault) => {
                faults.push(fault);
                continue;
            }
        }
        if let Ok(address) = of_node(node.health_port()) {
            found.push((format!("health paths of node {name}"), None, address));
        }
        // Of several nodes on one machine the first has the gateway's.
        if let (true, Ok(address)) =
            (local.gateway && local.nodes.first() == Some(name), of_node(node.gateway_port()))
        {
            found.push(("metrics of the gateway".to_owned(), None, address));
        }
        for (on, id, service, port) in http::instances(spec, local) {
            if let (true, Ok(address)) = (on == name, of_node(port)) {
                found.push((format!("{id} of {service}"), None, address));
            }
        }
        for (on, service, port) in instances(spec, local) {
            if let (true, Ok(address)) = (on == name, of_node(port)) {
                found.push((format!("the instance of {service} on node {name}"), None, address));
            }
        }
    }
    let member = local.nodes.first().and_then(|name| Some((name, spec.nodes.get(name)?)));
    if let (Some(store), Some((name, node))) = (local.store, member) {
        for (what, port) in [("the store", store.client), ("the store's peer port", store.peer)] {
            // A node that does not resolve was reported above.
            if let Ok(address) = resolve(name, &node.address, port) {
                found.push((what.to_owned(), Some("--store-port"), address));
            }
        }
    }
    found
}

fn resolve(node: &str, address: &Address, port: u16) -> Result<SocketAddr, Fault> {
    let why = match address {
        Address::Ip(ip) => return Ok(SocketAddr::new(*ip, port)),
        Address::Host(host) => match (host.as_str(), port).to_socket_addrs() {
            Ok(mut all) => match all.next() {
                Some(address) => return Ok(address),
                None => "it has no address".to_owned(),
            },
            Err(error) => error.to_string(),
        },
    };
    let message = format!("the address {address} of node {node} does not resolve: {why}");
    Err(Fault::of_machine(Code::NotOurAddress, message)
        .next("correct the name, add it to /etc/hosts, or give an IP address"))
}

#[cfg(test)]
mod tests;
