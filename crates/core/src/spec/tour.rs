//! What `everhold up` runs when it is told nothing: the default, and a small HTTP service to try.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{
    ADDRESS, Balance, GRACE_MS, HealthSpec, HttpListener, HttpSpec, IDLE_TIMEOUT_MS, INSTANCES,
    LimitsSpec, ListenerSpec, Match, Protocol, RETRIES, RouteSpec, RunSpec, ServiceSpec, Source,
    Spec, StopSignal, StopSpec, TIMEOUT_MS, Version,
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
        let sample = ServiceSpec::Http(HttpSpec {
            source: Source::Run(sample(program, user)),
            balance: Balance::default(),
            version: Version::default(),
            affinity: None,
            health: HealthSpec { path: Some("/healthz".into()), ..HealthSpec::default() },
            slow_start_ms: SLOW_START_MS,
            timeout_ms: TIMEOUT_MS,
            try_timeout_ms: None,
            idle_timeout_ms: IDLE_TIMEOUT_MS,
            retries: RETRIES,
            drained: Default::default(),
        });
        spec.services.insert(SAMPLE.into(), sample);
        let protocol = Protocol::Http(HttpListener { tls: None, trusted_proxies: Vec::new() });
        spec.listeners.insert(SAMPLE.into(), ListenerSpec { bind: SAMPLE_BIND, protocol });
        let route = RouteSpec {
            listener: SAMPLE.into(),
            when: Match::default(),
            service: SAMPLE.into(),
            timeout_ms: None,
        };
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
