//! What an instance is to be run as: written by its agent, read by its runner at each start. No
//! password stands in it, only where each one is.

use super::place::Place;
use crate::layout::Layout;
use crate::node_file::NodeFile;
use crate::{agent, disk, dsn, secrets};
use anyhow::Context;
use everhold_core::records::{decode, encode};
use everhold_core::spec::{
    HttpListener, LimitsSpec, ListenerSpec, Protocol, Role, RunSpec, Spec, StopSpec,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub cluster: String,
    pub service: String,
    pub instance: String,
    pub node: String,
    pub port: u16,
    /// With its words still in it, as the next one.
    pub command: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub directory: Option<String>,
    pub stop: StopSpec,
    #[serde(default)]
    pub limits: LimitsSpec,
    /// Of each service that `{dsn:SERVICE}` names.
    #[serde(default)]
    pub dsns: BTreeMap<String, Dsn>,
    /// Of each listener that `{url:LISTENER}` names.
    #[serde(default)]
    pub urls: BTreeMap<String, String>,
    /// Of all that takes a new process: a hash that nobody makes without the cluster's secret, since
    /// passwords go into it.
    pub fingerprint: String,
    /// When the agent gave it, in milliseconds since 1970: each start on purpose is another order.
    #[serde(default)]
    pub given_ms: u64,
}

/// How the instance reaches a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dsn {
    pub url: String,
    pub password_file: PathBuf,
}

/// What a start needs, with everything in it. Never written anywhere.
pub struct Ready {
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
}

/// Where an instance is run.
pub struct Site<'a> {
    pub node: &'a NodeFile,
    pub layout: &'a Layout,
    pub spec: &'a Spec,
}

impl Order {
    /// What the spec says of an instance of this node.
    pub fn of(
        site: &Site<'_>,
        service: &str,
        run: &RunSpec,
        instance: &str,
    ) -> anyhow::Result<Order> {
        let Site { node, layout, spec } = site;
        let placed = run.placed.get(instance).context("the instance is not in the spec")?;
        let ca = Place::new(layout, &node.name, service, instance).authority();
        let mut dsns = BTreeMap::new();
        for name in named(run, "dsn:") {
            let of = spec.postgres(name).with_context(|| format!("{name} is no database"))?;
            let ca = ca.display().to_string();
            let url = dsn::url(spec, name, of, Role::Primary, None, &ca);
            let url = url.with_context(|| format!("no listener leads to {name}"))?;
            let password_file = agent::owner_password(layout, name);
            dsns.insert(name.to_string(), Dsn { url, password_file });
        }
        let mut urls = BTreeMap::new();
        for name in named_listeners(run) {
            let listener = spec.listeners.get(name);
            let listener = listener.with_context(|| format!("{name} is no listener"))?;
            urls.insert(name.to_string(), url(listener));
        }
        let mut order = Order {
            cluster: spec.cluster.clone(),
            service: service.to_string(),
            instance: instance.to_string(),
            node: node.name.clone(),
            port: placed.port,
            command: run.command.clone(),
            env: run.env.clone(),
            user: run.user.clone(),
            directory: run.directory.clone(),
            stop: run.stop.clone(),
            limits: run.limits,
            dsns,
            urls,
            fingerprint: String::new(),
            given_ms: 0,
        };
        let secret = secrets::read(&layout.cluster_secret()).context("read the secret")?;
        let ready = order.ready()?;
        let of = (&ready.command, &ready.env, &order.user, &order.directory, order.limits);
        order.fingerprint = secrets::derived(&secret, &serde_json::to_string(&of)?)?;
        Ok(order)
    }

    /// Fills in what the words stand for. In the environment a URL has its password; arguments are
    /// everybody's to read, so there it has none.
    pub fn ready(&self) -> anyhow::Result<Ready> {
        let mut dsns = BTreeMap::new();
        for (name, Dsn { url, password_file }) in &self.dsns {
            let password = secrets::read(password_file)
                .with_context(|| format!("read {}", password_file.display()))?;
            dsns.insert(name.as_str(), dsn::with_password(url, &password));
        }
        let port = self.port.to_string();
        let plain = |word: &str| match word {
            "port" => Some(port.clone()),
            "instance" => Some(self.instance.clone()),
            "node" => Some(self.node.clone()),
            _ => self.urls.get(word.strip_prefix("url:")?).cloned(),
        };
        let bare = |word: &str| {
            plain(word).or_else(|| Some(self.dsns.get(word.strip_prefix("dsn:")?)?.url.clone()))
        };
        let whole =
            |word: &str| plain(word).or_else(|| dsns.get(word.strip_prefix("dsn:")?).cloned());
        let env = self.env.iter().map(|(name, text)| (name.clone(), fill(text, whole)));
        Ok(Ready {
            command: self.command.iter().map(|text| fill(text, bare)).collect(),
            env: env.collect(),
        })
    }

    pub fn read(path: &Path) -> anyhow::Result<Order> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        decode(&text).with_context(|| format!("read {}", path.display()))
    }

    /// Writes it, and beside it the authority by which a database is known: the instance's user
    /// may not read the cluster's own copy.
    pub fn write(&self, place: &Place, authority: &Path) -> anyhow::Result<()> {
        place.make()?;
        if !self.dsns.is_empty() {
            let text = std::fs::read_to_string(authority)
                .with_context(|| format!("read {}", authority.display()))?;
            let copy = place.authority();
            disk::write_whole(&copy, &text)?;
            std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o644))?;
        }
        disk::write_whole(&place.order(), &encode(self))
            .with_context(|| format!("write {}", place.order().display()))
    }
}

/// What a service names in braces, behind `kind`.
fn named<'r>(run: &'r RunSpec, kind: &'static str) -> impl Iterator<Item = &'r str> {
    let texts = run.command.iter().chain(run.env.values());
    texts.flat_map(|text| words(text)).filter_map(move |it| it.strip_prefix(kind))
}

/// The listeners that `{url:LISTENER}` names.
pub fn named_listeners(run: &RunSpec) -> impl Iterator<Item = &str> {
    named(run, "url:")
}

/// Where an instance finds a listener: each node's gateway is on its own machine.
fn url(listener: &ListenerSpec) -> String {
    let ip = match listener.bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let scheme = match &listener.protocol {
        Protocol::Http(HttpListener { tls: Some(_), .. }) => "https",
        Protocol::Http(_) | Protocol::Postgres(_) => "http",
    };
    format!("{scheme}://{}", SocketAddr::new(ip, listener.bind.port()))
}

/// What stands between braces.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|rest| rest.split_once('}').map(|(word, _)| word))
}

/// Puts in what the words stand for; braces around anything else stay as they are.
fn fill(text: &str, meaning: impl Fn(&str) -> Option<String>) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let (before, after) = rest.split_at(at);
        filled.push_str(before);
        let word = after[1..].split_once('}').map(|(word, _)| word);
        match word.and_then(|word| Some((word, meaning(word)?))) {
            Some((word, meaning)) => {
                filled.push_str(&meaning);
                rest = &after[word.len() + 2..];
            }
            None => {
                filled.push('{');
                rest = &after[1..];
            }
        }
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::spec::{Placed, StopSignal, TlsFiles};

    #[test]
    fn words_are_filled_in_and_other_braces_stay() {
        let meaning = |word: &str| match word {
            "port" => Some("15410".to_string()),
            "odd" => Some("{port}".to_string()),
            _ => None,
        };
        let check = |text: &str, expected: &str| assert_eq!(fill(text, meaning), expected);
        check("--port={port}", "--port=15410");
        check("{port}{port}", "1541015410");
        check("{\"a\": {port}, \"b\": {}}", "{\"a\": 15410, \"b\": {}}");
        check("{odd} {none} {", "{port} {none} {");
        assert_eq!(words("{a} b {dsn:main}{").collect::<Vec<_>>(), ["a", "dsn:main"]);
    }

    #[test]
    fn passwords_are_in_the_environment_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path()).expect("a layout");
        let mut spec = Spec::default_for_one_machine();
        secrets::private_dir(&layout.secrets()).expect("made");
        secrets::make_all(&layout, &spec).expect("made");
        let password = secrets::read(&agent::owner_password(&layout, "main")).expect("a password");
        let file = |name: &str| dir.path().join(name);
        let node = NodeFile {
            name: "a".to_string(),
            cluster: "local".to_string(),
            data: dir.path().to_path_buf(),
            store: Vec::new(),
            ca: file("ca"),
            cert: file("cert"),
            key: file("key"),
            store_tls: crate::node_file::StoreTls::Own,
        };
        let mut run = RunSpec {
            instances: 1,
            command: ["serve", "{port}", "{dsn:main}"].map(String::from).to_vec(),
            env: [("URL".to_string(), "{dsn:main}".to_string())].into(),
            user: None,
            directory: None,
            stop: StopSpec { signal: StopSignal::Term, grace_ms: 1 },
            limits: LimitsSpec::default(),
            nodes: Vec::new(),
            placed: [("a.1".to_string(), Placed { node: "a".to_string(), port: 15410 })].into(),
            home: BTreeMap::new(),
        };
        let of = |spec: &Spec, run: &RunSpec| {
            let site = Site { node: &node, layout: &layout, spec };
            Order::of(&site, "api", run, "a.1").expect("an order")
        };
        let order = of(&spec, &run);
        let ready = order.ready().expect("ready");
        assert_eq!(ready.command[..2], ["serve", "15410"]);
        assert!(ready.command[2].starts_with("postgresql://app@127.0.0.1:6432/app?"));
        assert!(ready.env["URL"].starts_with(&format!("postgresql://app:{password}@127.0.0.1:")));
        assert!(!encode(&order).contains(&password), "{order:?}");

        // What takes a new process has another fingerprint, the rest has not.
        run.stop.grace_ms = 2;
        assert_eq!(of(&spec, &run).fingerprint, order.fingerprint);
        spec.listeners.get_mut("write").expect("there").bind =
            "127.0.0.1:6500".parse().expect("it");
        assert_ne!(of(&spec, &run).fingerprint, order.fingerprint);
        let spec = Spec::default_for_one_machine();
        disk::write_whole(&agent::owner_password(&layout, "main"), "another").expect("written");
        assert_ne!(of(&spec, &run).fingerprint, order.fingerprint);
        // A listener of its own machine, by name.
        let mut spec = spec;
        let mut listens = |bind: &str, tls: bool| {
            let file = || "/x".to_string();
            let tls = tls.then(|| TlsFiles { cert: file(), key: file() });
            let protocol = Protocol::Http(HttpListener { tls, ..HttpListener::default() });
            let bind = bind.parse().expect("an address");
            spec.listeners.insert("inside".to_string(), ListenerSpec { bind, protocol });
            run.env = [("API".to_string(), "{url:inside}/x".to_string())].into();
            of(&spec, &run).ready().expect("ready").env["API"].clone()
        };
        assert_eq!(listens("0.0.0.0:7010", false), "http://127.0.0.1:7010/x");
        assert_eq!(listens("[::]:7010", true), "https://[::1]:7010/x");
        assert_eq!(listens("10.0.0.9:80", false), "http://10.0.0.9:80/x");
        run.env = [("API".to_string(), "{url:outside}".to_string())].into();
        let site = Site { node: &node, layout: &layout, spec: &spec };
        assert!(Order::of(&site, "api", &run, "a.1").is_err());
        run.env.clear();
        run.command = vec!["serve".to_string(), "{dsn:cache}".to_string()];
        let site = Site { node: &node, layout: &layout, spec: &spec };
        assert!(Order::of(&site, "api", &run, "a.1").is_err());
    }
}
