//! What `everhold up` runs when it is told nothing: the default, and a small HTTP service to try.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{
    ADDRESS, GRACE_MS, HealthSpec, HttpListener, HttpSpec, INSTANCES, LimitsSpec, ListenerSpec,
    Protocol, RouteSpec, RunSpec, ServiceSpec, Source, Spec, StopSignal, StopSpec,
};

/// The name of the sample, of its listener and of its route.
pub const SAMPLE: &str = "web";
/// Where it is asked: the port that people try things on.
pub const SAMPLE_BIND: SocketAddr = SocketAddr::new(ADDRESS, 8080);
/// Short, so that one that was killed is seen to be back.
const SLOW_START_MS: u64 = 1_000;

impl Spec {
    /// The default with the sample; `program` is Everhold itself, `user` whom it runs as there.
    pub fn tour(program: &str, user: Option<&str>) -> Spec {
        let mut spec = Spec::default_for_one_machine();
        let sample = HttpSpec {
            health: HealthSpec { path: Some("/healthz".into()), ..HealthSpec::default() },
            slow_start_ms: SLOW_START_MS,
            ..HttpSpec::of(Source::Run(sample(program, user)))
        };
        let sample = ServiceSpec::Http(sample);
        spec.services.insert(SAMPLE.into(), sample);
        let protocol = Protocol::Http(HttpListener::default());
        spec.listeners.insert(SAMPLE.into(), ListenerSpec { bind: SAMPLE_BIND, protocol });
        let route =
            RouteSpec { listener: SAMPLE.into(), service: SAMPLE.into(), ..RouteSpec::default() };
        spec.routes.insert(SAMPLE.into(), route);
        spec.place();
        spec
    }
}

fn sample(program: &str, user: Option<&str>) -> RunSpec {
    let command = [program, "sample", "--port", "{port}", "--name", "{instance}"];
    RunSpec {
        instances: INSTANCES,
        command: command.map(str::to_owned).to_vec(),
        env: BTreeMap::new(),
        user: user.map(str::to_owned),
        directory: None,
        stop: StopSpec { signal: StopSignal::Term, grace_ms: GRACE_MS },
        limits: LimitsSpec::default(),
        nodes: Vec::new(),
        placed: BTreeMap::new(),
        home: BTreeMap::new(),
    }
}
