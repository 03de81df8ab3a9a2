//! What changes from one revision of the spec to the next, and when each change is in force.
//!
//! Both sides are validated. A change that a running cluster cannot make without losing data or a
//! guarantee is refused here, with what to do instead.

mod http;
mod protect;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::parameters::{Context, context};
use super::{
    BackupSpec, GatewaySpec, InstanceSpec, ListenerSpec, Net, NodeSpec, PostgresSpec, Protocol,
    RepositorySpec, ServiceSpec, Spec, StoreSpec,
};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// As in the document: `service.main.parameters.work_mem`.
    pub path: String,
    /// Absent: not declared before, or PostgreSQL's own default.
    pub old: Option<String>,
    pub new: Option<String>,
    #[serde(flatten)]
    pub takes_effect: TakesEffect,
}

/// When a change is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "takes_effect", rename_all = "snake_case")]
pub enum TakesEffect {
    /// As soon as the agents and gateways have read the revision; no server notices.
    AtOnce,
    /// After a reload of PostgreSQL's configuration, which no client notices.
    Reload,
    /// After a restart of what uses it; of PostgreSQL one instance at a time, standbys first.
    Restart,
    /// Not on a running cluster.
    Refused { why: String },
}

use TakesEffect::{AtOnce, Reload, Restart};

/// Every difference between two revisions, in order of its path. `new` has been through
/// [`Spec::keep`] with `old`.
pub fn diff(old: &Spec, new: &Spec) -> Vec<Change> {
    let mut changes = Changes::default();
    changes.value("schema", &old.schema, &new.schema, AtOnce);
    let why = "every data directory carries the cluster's name; start a second cluster instead";
    changes.value("cluster", &old.cluster, &new.cluster, refused(why));
    changes.value("api.bind", &old.api.bind, &new.api.bind, Restart);
    changes.store(old.store.as_ref(), new.store.as_ref());
    changes.gateway(&old.gateway, &new.gateway);
    for (name, old, new) in both(&old.nodes, &new.nodes) {
        changes.node(&format!("node.{name}"), old, new);
    }
    for (name, old, new) in both(&old.services, &new.services) {
        changes.service(&format!("service.{name}"), old, new);
    }
    for (name, old, new) in both(&old.listeners, &new.listeners) {
        changes.listener(&format!("listener.{name}"), old, new);
    }
    for (name, old, new) in both(&old.routes, &new.routes) {
        changes.route(&format!("route.{name}"), old, new);
    }
    for (name, old, new) in both(&old.repositories, &new.repositories) {
        changes.repository(&format!("repository.{name}"), old, new);
    }
    changes.0.sort_by(|a, b| a.path.cmp(&b.path));
    changes.0
}

fn refused(why: &str) -> TakesEffect {
    TakesEffect::Refused { why: why.to_owned() }
}

/// The entries of both maps by name, each with what it was and what it is to be.
fn both<'a, V>(
    old: &'a BTreeMap<String, V>,
    new: &'a BTreeMap<String, V>,
) -> Vec<(&'a String, Option<&'a V>, Option<&'a V>)> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    names.into_iter().map(|name| (name, old.get(name), new.get(name))).collect()
}

#[derive(Default)]
struct Changes(Vec<Change>);

impl Changes {
    fn push(&mut self, path: &str, old: Option<String>, new: Option<String>, when: TakesEffect) {
        if old != new {
            self.0.push(Change { path: path.to_owned(), old, new, takes_effect: when });
        }
    }

    fn value(&mut self, path: &str, old: &impl ToString, new: &impl ToString, when: TakesEffect) {
        self.push(path, Some(old.to_string()), Some(new.to_string()), when);
    }

    fn store(&mut self, old: Option<&StoreSpec>, new: Option<&StoreSpec>) {
        let why = "what was agreed is in the store that the cluster began with; \
                   start a second cluster on the other one, and move the data";
        let etcd = |store: &StoreSpec| store.etcd.join(", ");
        self.push("store.etcd", old.map(etcd), new.map(etcd), refused(why));
        let files = |store: &StoreSpec| {
            store.tls.as_ref().map(|it| format!("{}, {}, {}", it.ca, it.cert, it.key))
        };
        let why = "every process was started with them; renew the files in their place instead";
        let (was, is) = (old.and_then(files), new.and_then(files));
        self.push("store.tls", was, is, refused(why));
    }

    fn gateway(&mut self, old: &GatewaySpec, new: &GatewaySpec) {
        self.value("gateway.nodes", &old.nodes.join(", "), &new.nodes.join(", "), AtOnce);
        self.value("gateway.access_log", &old.access_log, &new.access_log, AtOnce);
        let cache = |of: &GatewaySpec| of.cache_bytes.map(|bytes| format!("{bytes} bytes"));
        self.push("gateway.cache", cache(old), cache(new), AtOnce);
    }

    fn node(&mut self, path: &str, old: Option<&NodeSpec>, new: Option<&NodeSpec>) {
        let address = |node: &NodeSpec| node.address.to_string();
        let (Some(old), Some(new)) = (old, new) else {
            let when = match new {
                Some(_) => AtOnce,
                None => refused(
                    "its instances have to leave their services first: \
                     `everhold node remove` takes it out, and its data stays",
                ),
            };
            return self.push(path, old.map(address), new.map(address), when);
        };
        let why = "instances and certificates are bound to it; add a node under another name";
        self.value(&format!("{path}.address"), &old.address, &new.address, refused(why));
        let why = "the agent and its instances keep their ports; add a node under another name";
        self.value(&format!("{path}.ports"), &old.ports, &new.ports, refused(why));
        self.push(&format!("{path}.region"), old.region.clone(), new.region.clone(), AtOnce);
        self.push(&format!("{path}.zone"), old.zone.clone(), new.zone.clone(), AtOnce);
    }

    fn service(&mut self, path: &str, old: Option<&ServiceSpec>, new: Option<&ServiceSpec>) {
        let kind = |service: &ServiceSpec| service.kind().to_owned();
        match (old, new) {
            (Some(ServiceSpec::Postgres(old)), Some(ServiceSpec::Postgres(new))) => {
                self.postgres(path, old, new);
            }
            (Some(ServiceSpec::Http(old)), Some(ServiceSpec::Http(new))) => {
                self.http(path, old, new)
            }
            (Some(old), Some(new)) => {
                let why = "another kind of thing is another service; declare it under another name";
                self.value(&format!("{path}.kind"), &old.kind(), &new.kind(), refused(why));
            }
            (None, new) => self.push(path, None, new.map(kind), AtOnce),
            // Nothing of it is data.
            (Some(ServiceSpec::Http(_)), None) => self.push(path, old.map(kind), None, AtOnce),
            (Some(ServiceSpec::Postgres(_)), None) => {
                let why = "removing a service would orphan its data; \
                           keep it declared, or stop the cluster and move the data away";
                self.push(path, old.map(kind), None, refused(why));
            }
        }
    }

    fn postgres(&mut self, path: &str, old: &PostgresSpec, new: &PostgresSpec) {
        let nodes = if old.nodes.iter().all(|node| new.nodes.contains(node)) {
            AtOnce
        } else {
            refused(
                "one instance is not removed from a running service by this version; \
                 `everhold node drain` takes its load, `everhold node remove` the whole node",
            )
        };
        self.value(&format!("{path}.nodes"), &old.nodes.join(", "), &new.nodes.join(", "), nodes);
        let why = "a major version is not changed in place; restore a dump into a new service";
        self.value(&format!("{path}.version"), &old.version, &new.version, refused(why));
        let why = "it is made once, at bootstrap; rename it in SQL, or create another service";
        self.value(&format!("{path}.database"), &old.database, &new.database, refused(why));
        self.value(&format!("{path}.owner"), &old.owner, &new.owner, refused(why));
        self.synchronous(&format!("{path}.synchronous"), old, new);
        let slow = |it: &PostgresSpec| it.slow_after_ms.map(|ms| format!("{ms}ms"));
        self.push(&format!("{path}.switchover_when_slow"), slow(old), slow(new), AtOnce);
        let scrub = |it: &PostgresSpec| it.scrub_every_ms.map(|ms| format!("{ms}ms"));
        self.push(&format!("{path}.scrub_every"), scrub(old), scrub(new), AtOnce);
        self.backup(&format!("{path}.backup"), old.backup.as_ref(), new.backup.as_ref());
        for (node, old, new) in both(&old.instances, &new.instances) {
            if let (Some(old), Some(new)) = (old, new) {
                self.instance(&format!("{path}.instance.{node}"), old, new);
            }
        }
        for (name, old, new) in both(&old.parameters, &new.parameters) {
            let when = match context(name) {
                Context::Reload => Reload,
                Context::Restart | Context::ReadOnly => Restart,
            };
            self.push(&format!("{path}.parameters.{name}"), old.cloned(), new.cloned(), when);
        }
    }

    fn synchronous(&mut self, path: &str, old: &PostgresSpec, new: &PostgresSpec) {
        let (old, new) = (&old.synchronous, &new.synchronous);
        // The set moves one step at a time through an envelope; each step is a reload.
        self.value(&format!("{path}.number"), &old.number, &new.number, Reload);
        let text = |it: &dyn fmt::Debug| format!("{it:?}").to_lowercase();
        let (was, is) = (text(&old.durability), text(&new.durability));
        self.value(&format!("{path}.durability"), &was, &is, AtOnce);
        let (was, is) = (old.spread.map(|it| text(&it)), new.spread.map(|it| text(&it)));
        self.push(&format!("{path}.spread"), was, is, Reload);
    }

    fn instance(&mut self, path: &str, old: &InstanceSpec, new: &InstanceSpec) {
        self.value(&format!("{path}.priority"), &old.priority, &new.priority, AtOnce);
        self.value(&format!("{path}.failover"), &old.failover, &new.failover, AtOnce);
        self.value(&format!("{path}.port"), &old.port, &new.port, Restart);
    }

    fn backup(&mut self, path: &str, old: Option<&BackupSpec>, new: Option<&BackupSpec>) {
        let mut of = |key: &str, get: fn(&BackupSpec) -> String| {
            self.push(&format!("{path}.{key}"), old.map(get), new.map(get), AtOnce);
        };
        of("repositories", |it| it.repositories.join(", "));
        of("copies", |it| it.copies.to_string());
        of("full", |it| it.plan.full.to_string());
        of("incremental", |it| it.plan.incremental.to_string());
        of("prove.schedule", |it| it.prove.schedule.to_string());
        of("keep", |it| it.keep.to_string());
        of("clone_from", |it| it.clone_from.to_string());
        let checks = |it: Option<&BackupSpec>| it.and_then(|it| it.prove.checks.clone());
        self.push(&format!("{path}.prove.checks"), checks(old), checks(new), AtOnce);
    }

    fn repository(
        &mut self,
        path: &str,
        old: Option<&RepositorySpec>,
        new: Option<&RepositorySpec>,
    ) {
        let (Some(old), Some(new)) = (old, new) else {
            let url = |it: &RepositorySpec| it.url.to_string();
            return self.push(path, old.map(url), new.map(url), AtOnce);
        };
        let why = "its backups would be forgotten; declare the new place under another name";
        self.value(&format!("{path}.url"), &old.url, &new.url, refused(why));
        let mut of = |key: &str, get: fn(&RepositorySpec) -> Option<String>| {
            self.push(&format!("{path}.{key}"), get(old), get(new), AtOnce);
        };
        of("region", |it| it.region.clone());
        of("endpoint", |it| it.endpoint.clone());
        of("credentials_file", |it| it.credentials_file.clone());
        of("key_file", |it| Some(it.key_file.clone()));
    }

    fn listener(&mut self, path: &str, old: Option<&ListenerSpec>, new: Option<&ListenerSpec>) {
        let (Some(old), Some(new)) = (old, new) else {
            let bind = |listener: &ListenerSpec| listener.bind.to_string();
            return self.push(path, old.map(bind), new.map(bind), AtOnce);
        };
        self.value(&format!("{path}.bind"), &old.bind, &new.bind, AtOnce);
        let protocol = |it: &ListenerSpec| match it.protocol {
            Protocol::Postgres(_) => "postgres",
            Protocol::Http(_) => "http",
        };
        self.value(&format!("{path}.protocol"), &protocol(old), &protocol(new), AtOnce);
        let mut of = |key: &str, get: fn(&ListenerSpec) -> Option<String>| {
            self.push(&format!("{path}.{key}"), get(old), get(new), AtOnce);
        };
        of("service", |it| Some(it.postgres()?.service.clone()));
        of("role", |it| Some(format!("{:?}", it.postgres()?.role).to_lowercase()));
        of("max_lag", |it| Some(format!("{}ms", it.postgres()?.max_lag_ms?)));
        of("tls", |it| it.tls().map(|tls| format!("{}, {}", tls.cert, tls.key)));
        of("trusted_proxies", |it| nets(&it.http()?.trusted_proxies));
        of("deny", |it| nets(&it.http()?.deny));
        of("connections_per_client", |it| Some(it.http()?.connections_per_client?.to_string()));
    }
}

fn nets(nets: &[Net]) -> Option<String> {
    let nets: Vec<String> = nets.iter().map(Net::to_string).collect();
    Some(nets.join(", ")).filter(|nets| !nets.is_empty())
}
