//! What gateways tell each other of their clients, so that a limit holds over all of them together: each
//! dials each other one, and hears from it what it admits, as it does.

use crate::link::{self, Tls};
use crate::machine;
use crate::plain::gateway::Trouble;
use crate::supervisor::GATEWAY;
use everhold_core::http::rate::word::LENGTH_MAX;
use everhold_core::spec::Spec;
use everhold_gateway::Gateway;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

/// What is admitted is told so often. What clients get beyond a limit meanwhile they pay back.
const TELL: Duration = Duration::from_millis(20);
/// Who has nothing to tell gives a sign of life.
const SIGN: Duration = Duration::from_millis(500);
/// Who gives none for so long is dialled anew.
const SILENCE: Duration = Duration::from_secs(3);
/// Between two tries to reach a gateway, or to open the port.
const AGAIN: Duration = Duration::from_millis(500);
/// Words that wait for a gateway that does not take them: it is told all anew then.
const WORDS_MAX: usize = 256;
/// More gateways than any cluster has.
const PEERS_MAX: usize = 256;
/// Connections that have not shown yet of whom they are. Anybody can make them, so that the oldest goes
/// where there are too many: a gateway shows its certificate in a few milliseconds.
const STRANGERS_MAX: usize = 64;

/// Bytes of a word.
const WORD_MAX: u32 = LENGTH_MAX as u32;

/// The rule of the hold while the port can't be opened.
const RULE: &str = "limits-port";

/// Tells and hears for as long as it is polled. `address`: where this gateway tells.
pub async fn run(
    me: String,
    address: String,
    tls: Tls,
    gateway: Arc<Gateway>,
    mut spec: watch::Receiver<Spec>,
    trouble: Trouble,
) {
    let mut duties = JoinSet::new();
    let mut peers: BTreeMap<String, (String, AbortHandle)> = BTreeMap::new();
    let mut tells: Option<AbortHandle> = None;
    loop {
        let wanted = others(&me, &spec.borrow_and_update());
        gateway.share_rates(!wanted.is_empty());
        peers.retain(|name, (at, task)| {
            let stays = wanted.get(name) == Some(at);
            if !stays {
                task.abort();
            }
            stays
        });
        for (name, at) in &wanted {
            if !peers.contains_key(name) {
                let task = hear(name.clone(), at.clone(), tls.clone(), gateway.clone());
                peers.insert(name.clone(), (at.clone(), duties.spawn(task)));
            }
        }
        match (&tells, wanted.is_empty()) {
            (None, false) => {
                let task = tell(address.clone(), tls.clone(), gateway.clone(), trouble.clone());
                tells = Some(duties.spawn(task));
            }
            (Some(task), true) => {
                task.abort();
                tells = None;
                trouble.note(RULE, None, "");
            }
            (None, true) | (Some(_), false) => {}
        }
        if spec.changed().await.is_err() {
            return;
        }
    }
}

/// The other gateways, and where they tell; none, while no limit wants it, or where one is for all.
fn others(me: &str, spec: &Spec) -> BTreeMap<String, String> {
    let limited = spec.routes.values().any(|route| route.rate_limit.is_some());
    if !limited || me == GATEWAY {
        return BTreeMap::new();
    }
    let others = spec.gateway.nodes.iter().filter_map(|name| {
        let node = spec.nodes.get(name)?;
        Some((machine::gateway_name(name), node.address.with_port(node.limits_port())))
    });
    others.filter(|(name, _)| name != me).collect()
}

/// Hears one gateway, for ever.
async fn hear(name: String, at: String, tls: Tls, gateway: Arc<Gateway>) {
    loop {
        if let Ok(mut stream) = link::connect(&name, &at, &tls).await {
            tracing::info!(gateway = %name, "hears what it admits");
            while let Ok(Ok(word)) = timeout(SILENCE, link::take(&mut stream, WORD_MAX)).await {
                if !word.is_empty()
                    && let Err(error) = gateway.absorb_rates(&word)
                {
                    tracing::debug!(gateway = %name, %error, "a word that is none");
                }
            }
        }
        sleep(AGAIN).await;
    }
}

/// Tells whoever dials, for ever.
async fn tell(address: String, tls: Tls, gateway: Arc<Gateway>, trouble: Trouble) {
    let begun = Instant::now();
    let listener = loop {
        match TcpListener::bind(&address).await {
            Ok(listener) => break listener,
            // One that this gateway takes over from may have it for a moment.
            Err(_) if begun.elapsed() < SILENCE => sleep(AGAIN).await,
            Err(error) => {
                let fault = format!("E211 cannot listen on {address}: {error}");
                let unblocks =
                    "the port is free; until then limits count at each gateway by itself";
                trouble.note(RULE, Some(fault), unblocks);
                sleep(AGAIN).await;
            }
        }
    };
    trouble.note(RULE, None, "");
    let (words, _) = broadcast::channel(WORDS_MAX);
    let (mut peers, mut handshakes) = (JoinSet::new(), JoinSet::new());
    let mut strangers: VecDeque<AbortHandle> = VecDeque::new();
    let mut due = interval(TELL);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = due.tick() => {
                // Nobody may be there to hear it.
                if let Some(word) = gateway.tell_rates() {
                    let _ = words.send(Arc::new(word));
                }
            }
            Ok((socket, _)) = listener.accept() => {
                strangers.retain(|it| !it.is_finished());
                if strangers.len() >= STRANGERS_MAX
                    && let Some(oldest) = strangers.pop_front()
                {
                    oldest.abort();
                }
                let tls = tls.clone();
                strangers.push_back(handshakes.spawn(async move { link::accept(socket, &tls).await }));
            }
            Some(shaken) = handshakes.join_next() => {
                if let Ok(Some(stream)) = shaken && peers.len() < PEERS_MAX {
                    let (gateway, words) = (gateway.clone(), words.clone());
                    peers.spawn(async move { speak(stream, gateway, &words).await });
                }
            }
            Some(_) = peers.join_next() => {}
        }
    }
}

/// Tells one gateway: what clients owe first, then what comes.
async fn speak(
    mut to: impl AsyncWrite + Unpin,
    gateway: Arc<Gateway>,
    words: &broadcast::Sender<Arc<Vec<u8>>>,
) {
    // What is admitted from here on comes as a word, all before it is owed.
    let mut words = words.subscribe();
    for word in gateway.rate_debts() {
        if !matches!(timeout(SILENCE, write(&mut to, &word)).await, Ok(Ok(()))) {
            return;
        }
    }
    loop {
        let word = match timeout(SIGN, words.recv()).await {
            Ok(Ok(word)) => word,
            // It dials again, and hears what clients owe.
            Ok(Err(RecvError::Lagged(_) | RecvError::Closed)) => return,
            Err(_) => Arc::default(),
        };
        if !matches!(timeout(SILENCE, write(&mut to, &word)).await, Ok(Ok(()))) {
            return;
        }
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), word: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(word.len()).map_err(std::io::Error::other)?;
    let mut frame = Vec::with_capacity(word.len() + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(word);
    to.write_all(&frame).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web;
    use everhold_adapters::pki::{Authority, Host, Usage};
    use everhold_core::route::RouteTable;
    use everhold_core::spec::Address;
    use everhold_gateway::Config;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::thread;
    use tokio::task::JoinHandle;

    /// So long is waited for what comes by itself.
    const WITHIN: Duration = Duration::from_secs(60);

    struct Peer {
        gateway: Arc<Gateway>,
        _spec: watch::Sender<Spec>,
        runs: JoinHandle<()>,
    }

    impl Peer {
        fn start(name: &str, limits: [u16; 2], authority: &Authority) -> Peer {
            let range = |limits: u16| format!("{}-{}", limits - 5, limits + 4);
            let text = format!(
                "schema = 1\ncluster = \"shop\"\n[node]\n\
                 a = {{ address = \"127.0.0.1\", ports = \"{}\" }}\n\
                 b = {{ address = \"127.0.0.1\", ports = \"{}\" }}\n\
                 [service.api]\nkind = \"http\"\naddresses = [\"127.0.0.1:1\"]\nretries = 0\n\
                 [listener]\nweb = {{ bind = \"127.0.0.1:8080\", protocol = \"http\" }}\n\
                 [route.api]\nlistener = \"web\"\nservice = \"api\"\n\
                 rate_limit = {{ per_hour = 5, burst = 5 }}\n",
                range(limits[0]),
                range(limits[1])
            );
            let spec = crate::spec::load_with(&text, "test", Default::default()).expect("a spec");
            let resolve = |address: &Address, port| {
                let Address::Ip(ip) = address else { return None };
                Some(SocketAddr::new(*ip, port))
            };
            let mut http = web::table(&spec, &web::Told::new(), name, resolve);
            for listener in http.listeners.values_mut() {
                listener.bind.set_port(0);
            }
            let table = Arc::new(RouteTable::default().with_http(http));
            let gateway = Arc::new(Gateway::start(Config::new(table)).expect("a gateway"));
            let me = machine::gateway_name(name);
            let pair = authority.issue(&me, &[Host::Dns(me.clone())], Usage::Both);
            let pair = pair.expect("a certificate");
            let tls = Tls::load(&pair.ca, &pair.cert, &pair.key).expect("read");
            let address = spec.nodes[name].address.with_port(spec.nodes[name].limits_port());
            let (_spec, known) = watch::channel(spec);
            let runs = run(me, address, tls, gateway.clone(), known, Trouble::default());
            Peer { gateway, _spec, runs: tokio::spawn(runs) }
        }

        /// The status that a request is answered with.
        fn ask(&self) -> String {
            let at = self.gateway.snapshot().listeners["web"].bind;
            let mut client = TcpStream::connect(at).expect("connected");
            let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            client.write_all(request.as_bytes()).expect("sent");
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("an answer");
            answer.split(' ').nth(1).expect("a status").to_string()
        }

        /// It has heard of a debt of more than one request, and refuses before it has admitted five itself.
        async fn refuses_for_the_other(&self) {
            let until = Instant::now() + WITHIN;
            while self.gateway.rate_debts().is_empty() {
                assert!(Instant::now() < until, "it heard nothing");
                sleep(TELL).await;
            }
            // What was admitted there may come in several words.
            let mut admitted = 0;
            while self.ask() != "429" {
                admitted += 1;
                assert!(admitted <= 3, "it counts by itself");
                sleep(TELL).await;
            }
        }
    }

    fn free_port() -> u16 {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        socket.local_addr().expect("bound").port()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_one_admits_counts_at_the_other_and_at_one_that_begins() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::create(&dir.path().join("pki")).expect("an authority");
        let limits = [free_port(), free_port()];
        let a = Peer::start("a", limits, &authority);
        let b = Peer::start("b", limits, &authority);
        for _ in 0..5 {
            assert_eq!(a.ask(), "502");
        }
        assert_eq!(a.ask(), "429");
        // It is one client, wherever it asks.
        b.refuses_for_the_other().await;
        // Its own count is gone with it.
        b.runs.abort();
        drop(b);
        let b = Peer::start("b", limits, &authority);
        b.refuses_for_the_other().await;
    }

    /// Whoever can reach the port can connect to it.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_shows_no_certificate_takes_no_place_of_a_gateway() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::create(&dir.path().join("pki")).expect("an authority");
        let limits = [free_port(), free_port()];
        let a = Peer::start("a", limits, &authority);
        for _ in 0..5 {
            assert_eq!(a.ask(), "502");
        }
        let over = Arc::new(AtomicBool::new(false));
        let ends = over.clone();
        let crowd = thread::spawn(move || {
            let mut silent = VecDeque::new();
            while !ends.load(Relaxed) {
                silent.extend(TcpStream::connect(("127.0.0.1", limits[0])).ok());
                // As many as it takes, and new ones in the place of those that are ended.
                silent.drain(..silent.len().saturating_sub(2 * PEERS_MAX));
                thread::sleep(Duration::from_millis(1));
            }
        });
        let b = Peer::start("b", limits, &authority);
        b.refuses_for_the_other().await;
        over.store(true, Relaxed);
        crowd.join().expect("it ended");
    }
}
