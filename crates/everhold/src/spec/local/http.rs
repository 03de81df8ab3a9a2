//! What instances of HTTP services need of this machine: a program, and a user to run it as.

use std::collections::BTreeMap;

use everhold_core::spec::{RunSpec, Spec};

use super::super::fault::{Code, Fault};
use super::{Local, RunAs};

/// The instances of this machine: node, id, service and port.
pub(super) fn instances<'s>(
    spec: &'s Spec,
    local: &Local<'_>,
) -> Vec<(&'s str, &'s str, &'s str, u16)> {
    let placed = spec.http_services().flat_map(|(name, http)| {
        http.placed().map(move |(id, it)| (it.node.as_str(), id.as_str(), name.as_str(), it.port))
    });
    placed.filter(|(node, ..)| local.nodes.iter().any(|it| it == node)).collect()
}

pub(super) fn check(spec: &Spec, local: &Local<'_>, faults: &mut Vec<Fault>) {
    let here: BTreeMap<&str, &RunSpec> = instances(spec, local)
        .into_iter()
        .filter_map(|(_, _, service, _)| Some((service, spec.http(service)?.run()?)))
        .collect();
    for (service, run) in here {
        program(service, run, local, faults);
        user(service, run, faults);
    }
}

fn program(service: &str, run: &RunSpec, local: &Local<'_>, faults: &mut Vec<Fault>) {
    // What it is with words filled in, each instance finds out.
    let Some(program) = run.command.first().filter(|it| !it.contains('{')) else { return };
    if local.search.program(program).is_none() {
        let message = format!("{program} of service {service} is no program here");
        let next = "install it, make it executable, or keep the service off this node with `nodes`";
        faults.push(Fault::of_machine(Code::MissingProgram, message).next(next));
    }
}

fn user(service: &str, run: &RunSpec, faults: &mut Vec<Fault>) {
    let Some(name) = &run.user else { return };
    let (message, next) = match RunAs::of_user(name) {
        None => (
            format!("there is no user {name}, whom service {service} is to run as"),
            format!("create it (`useradd --system {name}`), or declare another `user`"),
        ),
        Some(user) if user.is_other() && !rustix::process::geteuid().is_root() => (
            format!("service {service} is to run as {name}, which only root could do"),
            "run Everhold as root, or take `user` out".to_owned(),
        ),
        Some(_) => return,
    };
    faults.push(Fault::of_machine(Code::NoUser, message).next(next));
}
