//! More or fewer instances of an HTTP service, or one out of use, as a change of the spec.

use super::http::INSTANCES_MAX;
use super::{ServiceSpec, Source, Spec};

impl Spec {
    /// The spec with so many instances of the service, placed; or why that can't be.
    pub fn scaled(&self, service: &str, instances: u32) -> Result<Spec, String> {
        if instances > INSTANCES_MAX {
            return Err(format!("{instances} instances; there can be {INSTANCES_MAX} at most"));
        }
        let mut spec = self.clone();
        let run = match spec.services.get_mut(service) {
            Some(ServiceSpec::Http(http)) => match &mut http.source {
                Source::Run(run) => run,
                Source::Addresses(_) => return Err(format!("others run {service}")),
            },
            Some(ServiceSpec::Postgres(_)) => {
                return Err(format!("{service} has an instance on each of its nodes"));
            }
            None => return Err(format!("there is no service {service}")),
        };
        run.instances = instances;
        spec.place_beside(&self.http_ports());
        match spec.unplaced() {
            Some((name, count)) => Err(format!("there are ports for {count} instances of {name}")),
            None => Ok(spec),
        }
    }

    /// The spec with one instance of an HTTP service out of use, or in use again.
    pub fn with_drained(&self, service: &str, instance: &str, drained: bool) -> Spec {
        let mut spec = self.clone();
        if let Some(ServiceSpec::Http(http)) = spec.services.get_mut(service) {
            match drained {
                true => http.drained.insert(instance.to_owned()),
                false => http.drained.remove(instance),
            };
            http.forget_drained();
        }
        spec
    }
}
