//! From the spec and what agents say of instances to what a gateway needs to know of HTTP. Pure.

use everhold_core::http::HttpTable;
use everhold_core::http::route::{Backend, HttpListener, HttpRoute, HttpService};
use everhold_core::route::RouteTable;
use everhold_core::run::{Instance, RunState};
use everhold_core::spec::{Address, HttpSpec, Protocol, ServiceSpec, Source, Spec};
use everhold_gateway::http::Loads;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// What a node tells of its instances: by service and the instance's id.
pub type Services = BTreeMap<String, BTreeMap<String, Instance>>;
/// What the nodes tell, by node.
pub type Told = BTreeMap<String, Services>;

/// Whether a node's words lead to the same table: what its instances use changes all the time.
pub fn same(one: &Services, other: &Services) -> bool {
    fn seen(services: &Services) -> impl Iterator<Item = (&str, &str, u16, RunState)> {
        services.iter().flat_map(|(service, all)| {
            all.iter().map(move |(id, it)| (service.as_str(), id.as_str(), it.port, it.state))
        })
    }
    seen(one).eq(seen(other))
}

/// The part of the table for HTTP, of the gateway on `here`. `resolve`: an address and a port.
///
/// Who is placed is in it, unless it is drained or says that it ends: whether it answers is for the
/// gateway's own checks to say, and holds while agents are silent. A drained node has only those left
/// that may run nowhere else.
pub fn table(
    spec: &Spec,
    told: &Told,
    here: &str,
    resolve: impl Fn(&Address, u16) -> Option<SocketAddr>,
) -> HttpTable {
    let listeners = spec.listeners.iter().filter_map(|(name, listener)| {
        let Protocol::Http(http) = &listener.protocol else { return None };
        let routes = spec.routes.iter().filter(|(_, route)| route.listener == *name);
        let routes = routes.map(|(route_name, route)| HttpRoute::of(route_name, route));
        let listener = HttpListener {
            bind: listener.bind,
            tls: http.tls.clone(),
            deny: http.deny.clone(),
            per_client_max: http.connections_per_client,
            trusted_proxies: http.trusted_proxies.clone(),
            routes: routes.collect(),
        };
        Some((name.clone(), listener))
    });
    let services = spec.services.iter().filter_map(|(name, service)| {
        let ServiceSpec::Http(http) = service else { return None };
        Some((name.clone(), service_of(name, http, spec, told, &resolve)))
    });
    let mut gateways = BTreeMap::new();
    // Those of a node that is lost carry nothing.
    let nodes = spec.gateway.nodes.iter().filter_map(|node| spec.nodes.get(node));
    for zone in nodes.filter(|it| it.lost.is_none()).filter_map(|it| it.zone.clone()) {
        *gateways.entry(zone).or_default() += 1;
    }
    HttpTable {
        listeners: listeners.collect(),
        services: services.collect(),
        zone: spec.nodes.get(here).and_then(|node| node.zone.clone()),
        gateways,
        cache_bytes: spec.gateway.cache_bytes,
    }
}

/// The addresses that an earlier table has for hosts with names.
pub fn known<'s>(spec: &'s Spec, last: &RouteTable) -> BTreeMap<&'s str, IpAddr> {
    let mut known = BTreeMap::new();
    let mut learn = |address: Option<&'s Address>, at: SocketAddr| {
        if let Some(Address::Host(host)) = address {
            known.insert(host.as_str(), at.ip());
        }
    };
    let of_node = |node: &str| spec.nodes.get(node).map(|it| &it.address);
    for instance in last.listeners.values().flat_map(|it| &it.backends) {
        learn(of_node(&instance.name), instance.address);
    }
    for (name, service) in &last.http.services {
        let Some(ServiceSpec::Http(http)) = spec.services.get(name) else { continue };
        for backend in &service.backends {
            let address = match &http.source {
                Source::Run(run) => run.placed.get(&backend.name).and_then(|it| of_node(&it.node)),
                Source::Addresses(all) => {
                    all.iter().find(|it| it.name() == backend.name).map(|it| &it.address)
                }
            };
            learn(address, backend.address);
        }
    }
    known
}

/// How busy instances are, as their nodes tell it.
pub fn loads(told: &Told) -> Loads {
    let mut loads = Loads::new();
    for (service, instances) in told.values().flatten() {
        let of = instances.iter().filter_map(|(id, it)| Some((id.clone(), it.load?)));
        loads.entry(service.clone()).or_default().extend(of);
    }
    loads
}

fn service_of(
    name: &str,
    http: &HttpSpec,
    spec: &Spec,
    told: &Told,
    resolve: impl Fn(&Address, u16) -> Option<SocketAddr>,
) -> HttpService {
    let ends = |node: &str, id: &str| {
        let state = told.get(node).and_then(|it| it.get(name)?.get(id)).map(|it| it.state);
        matches!(state, Some(RunState::Stopping | RunState::Stopped))
    };
    let backends = match &http.source {
        Source::Run(run) => {
            let stays = run
                .placed
                .iter()
                .filter(|(id, it)| !ends(&it.node, id) && !http.drained.contains(*id));
            let backend = |(id, placed): (&String, &everhold_core::spec::Placed)| {
                let node = spec.nodes.get(&placed.node)?;
                let address = resolve(&node.address, placed.port)?;
                Some(Backend { name: id.clone(), address, zone: node.zone.clone(), weight: 1 })
            };
            stays.filter_map(backend).collect()
        }
        Source::Addresses(all) => {
            let backend = |it: &everhold_core::spec::BackendSpec| {
                let address = resolve(&it.address, it.port)?;
                let name = it.name();
                Some(Backend { name, address, zone: it.zone.clone(), weight: it.weight })
            };
            {
                let backends = all.iter().filter_map(backend);
                backends.filter(|it| !http.drained.contains(&it.name)).collect()
            }
        }
    };
    HttpService {
        balance: http.balance.clone(),
        version: http.version,
        affinity: http.affinity.clone(),
        health: http.health.clone(),
        slow_start_ms: http.slow_start_ms,
        timeout_ms: http.timeout_ms,
        try_timeout_ms: http.try_timeout_ms,
        try_timeout_auto: http.try_timeout_auto,
        hedge_percentile: http.hedge_percentile,
        idle_timeout_ms: http.idle_timeout_ms,
        retries: http.retries,
        bulkhead: http.concurrency.clone(),
        breaker: http.breaker.clone(),
        backends,
    }
}
