//! A cluster of three agents that aren't there: real links, real HTTP, scripted answers.

use crate::agent::{Ask, owner_password};
use crate::api::{Api, accept, router};
use crate::children::Supervised;
use crate::cluster::{Agreed, Cluster, Parts};
use crate::fault::Injector;
use crate::gateway::{Presence, presence_prefix};
use crate::journal::Journal;
use crate::layout::Layout;
use crate::link::{self, Hold, Question, Report, Tls};
use crate::spec::{StorePorts, record};
use crate::{agent, clock, disk, dsn, secrets, spec_store};
use everhold_adapters::pki::{Authority, CertPair, Host, Usage};
use everhold_core::agent::{Agent, Identity};
use everhold_core::decide::CONTROLLERS;
use everhold_core::durable::Durable;
use everhold_core::ids::Time;
use everhold_core::journal::{Decision, Event, RULES};
use everhold_core::kv::Txn;
use everhold_core::records::{Keys, encode};
use everhold_core::spec::{PortRange, ServiceSpec, Spec};
use everhold_core::status::{State, Status};
use everhold_core::term::{Set, Term};
use everhold_store::{MemoryStore, Store};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer over HTTP.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: serde_json::Value,
}

impl Reply {
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

/// What the scripted agents share.
#[derive(Default)]
struct Script {
    epoch: u64,
    asked: BTreeMap<String, Vec<String>>,
    refusals: BTreeMap<String, String>,
    /// What the gateway of a node tells of routes.
    routes: BTreeMap<String, serde_json::Value>,
}

/// Ends an agent, with all its connections, when it is dropped.
type Life = oneshot::Sender<()>;

pub struct Bed {
    pub store: MemoryStore,
    pub spec: Spec,
    api: SocketAddr,
    script: Arc<Mutex<Script>>,
    lives: Mutex<BTreeMap<String, Life>>,
    _dir: tempfile::TempDir,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bed {
    pub async fn start() -> Bed {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path()).expect("a layout");
        let spec = spec();
        secrets::private_dir(&layout.secrets()).expect("made");
        disk::write_whole(&owner_password(&layout, "main"), "geheim").expect("written");
        dsn::write_passfiles(&layout, &spec).expect("written");
        write_journal(&layout, &spec);
        let store = filled_store(&spec).await;

        let authority = Authority::open(&layout.pki()).expect("an authority");
        let script = Arc::new(Mutex::new(Script { epoch: 1, ..Script::default() }));
        let lives = start_nodes(&authority, &spec, &script);
        let pair = authority.issue("api", &[], Usage::Client).expect("a certificate");
        let cluster = Cluster::start(Parts {
            name: spec.cluster.clone(),
            here: None,
            layout: layout.clone(),
            spec: spec.clone(),
            store: Agreed::Memory(store.clone()),
            store_ports: StorePorts::default(),
            tls: tls(&pair),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let api = listener.local_addr().expect("bound");
        let supervised = Arc::new(Supervised::start(Vec::new()).await);
        let faults = Some(Injector::new(supervised, layout.clone()));
        let shared = Arc::new(Api { cluster: cluster.clone(), token: TOKEN.to_string(), faults });
        tokio::spawn(accept(listener, router(shared)));
        let lives = Mutex::new(lives);
        let bed = Bed { store, spec, api, script, lives, _dir: dir };
        bed.until("everybody is heard and the store was read", async || {
            let all = ["a", "b", "c"].iter().all(|node| cluster.hears(node));
            let word = cluster.word();
            all && word.spec_rev > 0 && word.last_failover.contains_key("main")
        })
        .await;
        bed
    }

    /// A request with the token and everything else right.
    pub async fn send(&self, method: &str, path: &str, body: &str) -> Reply {
        self.send_bytes(method, path, body.as_bytes()).await
    }

    pub async fn send_bytes(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        let length = format!("content-length: {}", body.len());
        let mut request = head(method, path, &length).into_bytes();
        request.extend_from_slice(body);
        self.exchange(request).await
    }

    pub async fn send_chunked(&self, path: &str, chunks: &str) -> Reply {
        let head = head("POST", path, "transfer-encoding: chunked");
        self.exchange(format!("{head}{chunks}0\r\n\r\n").into_bytes()).await
    }

    /// Sends bytes as they are and reads what comes until the connection ends.
    pub async fn exchange(&self, request: Vec<u8>) -> Reply {
        reply(&self.exchange_text(request).await)
    }

    /// Two requests in one piece, the second of which may be none.
    pub async fn exchange_twice(&self, one: &str, other: &str) -> (Reply, Reply) {
        let text = self.exchange_text([one, other].concat().into_bytes()).await;
        let (first, second) =
            text.split_once("}HTTP/1.1 ").unwrap_or_else(|| panic!("one answer: {text:?}"));
        (reply(&format!("{first}}}")), reply(&format!("HTTP/1.1 {second}")))
    }

    async fn exchange_text(&self, request: Vec<u8>) -> String {
        let mut stream = TcpStream::connect(self.api).await.expect("connected");
        let (mut read, mut write) = stream.split();
        let mut answer = Vec::new();
        // The answer may come before everything was sent, and the rest is refused then.
        let _ = tokio::join!(write.write_all(&request), async {
            let mut piece = [0; 65536];
            while let Ok(count @ 1..) = read.read(&mut piece).await {
                answer.extend_from_slice(&piece[..count]);
            }
        });
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, so: impl AsyncFn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !so().await {
            assert!(Instant::now() < until, "in vain: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What a node's agent was asked.
    pub fn asked(&self, node: &str) -> Vec<String> {
        lock(&self.script).asked.get(node).cloned().unwrap_or_default()
    }

    /// The node's agent refuses everything.
    pub fn refuse(&self, node: &str, why: &str) {
        lock(&self.script).refusals.insert(node.to_string(), why.to_string());
    }

    /// What the gateway of the node tells of routes.
    pub fn route(&self, node: &str, told: serde_json::Value) {
        lock(&self.script).routes.insert(node.to_string(), told);
    }

    /// The node's agent is gone.
    pub async fn silence(&self, node: &str) {
        lock(&self.lives).remove(node).expect("it was there");
        // It counts as there until it was missed for a second.
        tokio::time::sleep(Duration::from_millis(1_300)).await;
    }

    /// The head of a journal as the store has it.
    pub async fn mirror(&self, node: &str, head: &str) {
        let key = format!("/everhold/local/journal/{node}");
        self.store.txn(&Txn::new().put(key, head)).await.expect("written");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    /// The bed's spec as a document, with a line more for the service.
    pub fn toml(&self, more: &str) -> String {
        let mut text = "schema = 1\ncluster = \"local\"\n[node]\n".to_string();
        for (name, node) in &self.spec.nodes {
            let (first, last) = (node.ports.first, node.ports.last);
            text +=
                &format!("{name} = {{ address = \"127.0.0.1\", ports = \"{first}-{last}\" }}\n");
        }
        text += &format!("[service.main]\nkind = \"postgres\"\n{more}\n[listener]\n");
        for (name, role) in [("write", "primary"), ("read", "standby")] {
            let bind = self.spec.listeners[name].bind;
            text += &format!(
                "{name} = {{ bind = \"{bind}\", protocol = \"postgres\", service = \"main\", \
                 role = \"{role}\" }}\n"
            );
        }
        text
    }
}

fn reply(text: &str) -> Reply {
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    let body = serde_json::from_str(body).unwrap_or_default();
    Reply { status: status.unwrap_or_else(|| panic!("no answer: {text:?}")), body }
}

fn head(method: &str, path: &str, more: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n\
         everhold-user: tester\r\nconnection: close\r\n{more}\r\n\r\n"
    )
}

/// The default, with agents where ports are free.
fn spec() -> Spec {
    let mut spec = Spec::default_for_one_machine();
    // Held at once, so that they differ.
    let held: Vec<std::net::TcpListener> = spec
        .nodes
        .values_mut()
        .map(|node| {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            let last = listener.local_addr().expect("bound").port();
            node.ports = PortRange { first: last - 9, last };
            listener
        })
        .collect();
    drop(held);
    for service in spec.services.values_mut() {
        let ServiceSpec::Postgres(service) = service else { continue };
        service.instances.values_mut().for_each(|instance| instance.port = 0);
    }
    spec.assign_ports();
    spec
}

async fn filled_store(spec: &Spec) -> MemoryStore {
    let store = MemoryStore::new();
    let keys = Keys::new(&spec.cluster, "main");
    let member = |node: &str| everhold_core::ids::Member::new(node, 0);
    let set = Set { leader: member("a"), members: [member("b"), member("c")].into(), k: 1 };
    let term = Term {
        epoch: 1,
        leader: member("a"),
        open: true,
        inforce: vec![set.clone()],
        target: set,
        branches: Vec::new(),
        sysid: 1,
    };
    let listener = serde_json::json!({
        "bind": "127.0.0.1:6432", "state": "open", "connections": 0, "waiting": 0, "to": ["a"],
    });
    let snapshot = serde_json::json!({ "table_revision": 1, "listeners": { "write": listener } });
    let presence = Presence { pid: 1, snapshot, ..Presence::default() };
    let txn = Txn::new()
        .put(spec_store::key(&spec.cluster), record::to_json(spec).expect("a record"))
        .put(format!("{}term", keys.prefix), encode(&term))
        .put(format!("{}gateway", presence_prefix(&spec.cluster)), encode(&presence));
    store.txn(&txn).await.expect("written");
    store
}

/// Two entries of node a: a note and a decision.
fn write_journal(layout: &Layout, spec: &Spec) {
    let dir = layout.node("a").join("journal");
    let journal = Journal::open(&dir, "a", &spec.cluster).expect("opened");
    journal.append("", Event::Noted { text: "began".to_string() });
    let service = spec.postgres("main").expect("there");
    let identity = Identity {
        cluster: spec.cluster.clone(),
        service: "main".to_string(),
        node: "a".to_string(),
        host: "127.0.0.1".to_string(),
        port: 1,
    };
    let now = clock::now();
    let view = Agent::new(identity, agent::policy(spec, service), Durable::default(), now).view;
    let (name, decide) = CONTROLLERS[0];
    let verdict = decide(&view, now);
    journal.append(
        "main",
        Event::Decided(Decision {
            controller: name.to_string(),
            rules: RULES,
            epoch: 0,
            now,
            since: Some(Time(now.0 - 100)),
            verdict,
            view: Box::new(view),
        }),
    );
    for _ in 0..400 {
        if crate::journal::newest(&dir, 10).len() == 2 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the journal was not written");
}

fn tls(pair: &CertPair) -> Tls {
    Tls::load(&pair.ca, &pair.cert, &pair.key).expect("certificates")
}

fn start_nodes(
    authority: &Authority,
    spec: &Spec,
    script: &Arc<Mutex<Script>>,
) -> BTreeMap<String, Life> {
    let hosts =
        |name: &str| [Host::Dns(name.to_string()), Host::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST))];
    let senders: BTreeMap<String, watch::Sender<Arc<Report>>> = spec
        .nodes
        .keys()
        .map(|name| (name.clone(), watch::Sender::new(report(name, (name == "a").then_some(1)))))
        .collect();
    let start = |(name, node): (&String, &everhold_core::spec::NodeSpec)| {
        let pair = authority.issue(name, &hosts(name), Usage::Both).expect("a certificate");
        let tls = tls(&pair);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, node.agent_port()));
        let (questions, asked) = mpsc::channel(16);
        let reports = senders[name].subscribe();
        let answering = answer(name.clone(), asked, script.clone(), senders.clone());
        let (life, ended) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                link::serve(address, tls, reports, questions).await.expect("a free port");
                tokio::spawn(answering);
                let _ = ended.await;
            });
        });
        (name.clone(), life)
    };
    spec.nodes.iter().map(start).collect()
}

async fn answer(
    node: String,
    mut asked: mpsc::Receiver<Question>,
    script: Arc<Mutex<Script>>,
    reports: BTreeMap<String, watch::Sender<Arc<Report>>>,
) {
    while let Some(question) = asked.recv().await {
        let ask: Ask = serde_json::from_value(question.body).expect("a question");
        let mut script = lock(&script);
        let log = script.asked.entry(node.clone()).or_default();
        let moved_to = match ask {
            Ask::Switchover { to, who, .. } => {
                log.push(format!("switchover to {} by {who}", to.as_deref().unwrap_or("any")));
                Some(to.unwrap_or_else(|| "c".to_string()))
            }
            Ask::Force { to, who, .. } => {
                log.push(format!("force to {} by {who}", to.as_deref().unwrap_or("any")));
                Some(to.unwrap_or_else(|| node.clone()))
            }
            Ask::Note { what, .. } => {
                log.push(what);
                None
            }
            Ask::Journal { .. } => {
                let _ = question.answer.send(Ok(serde_json::json!([])));
                continue;
            }
            Ask::Verify => {
                let _ = question.answer.send(Ok(serde_json::json!({ "entries": 0 })));
                continue;
            }
            Ask::Routes => {
                let told = script.routes.get(&node).cloned();
                let _ = question.answer.send(told.ok_or_else(|| "it has no gateway".to_string()));
                continue;
            }
            other => panic!("{node} is asked {other:?}"),
        };
        if let (Some(why), Some(_)) = (script.refusals.get(&node), &moved_to) {
            let _ = question.answer.send(Err(why.clone()));
            continue;
        }
        if let Some(to) = moved_to {
            script.epoch += 1;
            for (name, sender) in &reports {
                sender.send_replace(report(name, (*name == to).then_some(script.epoch)));
            }
        }
        let _ = question.answer.send(Ok(serde_json::json!({ "journal": format!("{node}-9") })));
    }
}

fn report(node: &str, serving: Option<u64>) -> Arc<Report> {
    let hold = Hold {
        service: Some("main".to_string()),
        rule: "redundancy".to_string(),
        why: "1 of 2 standbys".to_string(),
        unblocks: "the others stream again".to_string(),
        operator: false,
        since: "2026-11-20T09:58:31.000Z".to_string(),
        recheck_at: None,
        journal: Some(format!("{node}-1")),
    };
    let status = Status {
        member: everhold_core::ids::Member::new(node, 0),
        host: "127.0.0.1".to_string(),
        port: 15400,
        pid: Some(i32::MAX),
        state: if serving.is_some() { State::Open } else { State::Streaming },
        data: everhold_core::durable::Data::Ok,
        promise: 1,
        sysid: Some(1),
        term: 1,
        report: None,
        misses: None,
        fell: None,
        primary: serving.map(|_| 1),
        serving,
        checkpoint: 1,
        lsn: everhold_core::ids::Lsn(0x100),
        tli: 1,
        seen_tli: 0,
        streaming: serving.is_none(),
        lag_ms: Some(0),
        call: None,
        overrides: Vec::new(),
        full: false,
        bad_pages: 0,
        log_from: None,
    };
    Arc::new(Report {
        node: node.to_string(),
        pid: 1,
        version: "0".to_string(),
        services: BTreeMap::from([("main".to_string(), Arc::new(status))]),
        holds: serving.map(|_| hold).into_iter().collect(),
        journal_head: format!("{node}-2 0"),
        ..Report::default()
    })
}
