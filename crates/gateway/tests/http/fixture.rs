//! A gateway, instances that do as a script says, and clients that say any bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use everhold_core::http::HttpTable;
use everhold_core::http::queue::Priority;
use everhold_core::http::route::{Backend, HttpListener, HttpRoute, HttpService};
use everhold_core::route::RouteTable;
use everhold_core::spec::{Balance, HealthSpec, Match, PathMatch, Version};
use everhold_gateway::{Config, Gateway, Limits};

/// Longer than anything here takes on a busy machine: reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for something to happen that must not happen.
pub const A_WHILE: Duration = Duration::from_millis(300);

/// What most instances answer.
pub const FINE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A request as an instance read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Request line and fields, each with its end, without the empty line.
    pub head: String,
    pub body: Vec<u8>,
    /// Fields after the body.
    pub trailers: String,
}

impl Seen {
    /// The values of a field, in order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        values(&self.head, name)
    }

    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    /// The head without what the gateway adds to each.
    pub fn plain(&self) -> String {
        self.plain_of("1.1")
    }

    /// The same of a request that a client sent in that version.
    pub fn plain_of(&self, version: &str) -> String {
        let added = [
            "traceparent: ",
            "X-Request-Id: ",
            "X-Forwarded-For: 127.0.0.1\r\n",
            "X-Forwarded-Proto: http\r\n",
            "Forwarded: for=127.0.0.1;proto=http\r\n",
            "X-Forwarded-Port: ",
            &format!("Via: {version} everhold\r\n"),
            "X-Envoy-Expected-Rq-Timeout-Ms: ",
        ];
        for added in added {
            assert_eq!(self.head.matches(added).count(), 1, "{added:?} once in {:?}", self.head);
        }
        // One without a name asks for none.
        let host = format!("X-Forwarded-Host: {}\r\n", self.values("host")[0]);
        assert_eq!(self.head.contains(&host), host.len() > "X-Forwarded-Host: \r\n".len());
        let lines = self.head.split_inclusive("\r\n").filter(|line| *line != host);
        lines.filter(|line| !added.iter().any(|added| line.starts_with(added))).collect()
    }
}

fn values<'h>(head: &'h str, name: &str) -> Vec<&'h str> {
    let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
    fields.filter(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

/// One connection of an instance.
pub struct Line {
    pub socket: TcpStream,
    /// How many came to this instance before it.
    pub index: usize,
    input: Vec<u8>,
    seen: Arc<Mutex<Vec<Seen>>>,
    faults: Arc<Mutex<Vec<String>>>,
}

impl Line {
    /// The next request, read by the letter: what doesn't parse is a fault.
    pub fn request(&mut self) -> Option<Seen> {
        let head = self.head()?;
        self.rest(head)
    }

    /// The rest of the request of that head.
    pub fn rest(&mut self, head: String) -> Option<Seen> {
        let request = self.body_of(head)?;
        self.seen.lock().unwrap().push(request.clone());
        Some(request)
    }

    /// The next head alone.
    pub fn head(&mut self) -> Option<String> {
        let Some(head) = self.until(b"\r\n\r\n") else {
            let left = String::from_utf8_lossy(&self.input).into_owned();
            if !left.is_empty() {
                self.fault(&format!("an end within a head: {left:?}"));
            }
            return None;
        };
        let head = String::from_utf8_lossy(&head[..head.len() - 2]).into_owned();
        let line = head.split("\r\n").next().unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let fields = head.split("\r\n").skip(1).filter(|it| !it.is_empty());
        let whole = words.len() == 3
            && words[2] == "HTTP/1.1"
            && fields.clone().all(|it| it.contains(": ") && !it.starts_with([' ', '\t', ':']))
            && values(&head, "host").len() == 1
            && values(&head, "content-length").len() + values(&head, "transfer-encoding").len() < 2
            && !head.replace("\r\n", "").contains(['\r', '\n', '\0']);
        if !whole {
            self.fault(&format!("a head that is none: {head:?}"));
        }
        Some(head)
    }

    fn body_of(&mut self, head: String) -> Option<Seen> {
        let (mut body, mut trailers) = (Vec::new(), String::new());
        if let [length] = values(&head, "content-length")[..] {
            body = self.exactly(length.parse().unwrap())?;
        } else if let [coding] = values(&head, "transfer-encoding")[..] {
            assert_eq!(coding, "chunked");
            loop {
                let line = String::from_utf8(self.until(b"\r\n")?).unwrap();
                let size = usize::from_str_radix(line.trim_end(), 16).expect("a chunk's size");
                if size == 0 {
                    break;
                }
                body.extend(self.exactly(size)?);
                assert_eq!(self.exactly(2)?, b"\r\n", "a chunk's end");
            }
            loop {
                let line = String::from_utf8(self.until(b"\r\n")?).unwrap();
                if line == "\r\n" {
                    break;
                }
                trailers.push_str(&line);
            }
        }
        Some(Seen { head, body, trailers })
    }

    pub fn say(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.socket.write_all(bytes.as_ref());
    }

    /// Makes the coming close a reset.
    pub fn reset(&self) {
        reset(&self.socket);
    }

    /// Bytes that are no request; empty at the end.
    pub fn some(&mut self) -> Vec<u8> {
        if self.input.is_empty() {
            self.more();
        }
        std::mem::take(&mut self.input)
    }

    pub fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.input.len() < count {
            self.more()?;
        }
        Some(self.input.drain(..count).collect())
    }

    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.input.windows(end.len()).position(|it| it == end) {
                return Some(self.input.drain(..at + end.len()).collect());
            }
            self.more()?;
        }
    }

    fn more(&mut self) -> Option<()> {
        let mut bytes = [0; 64 << 10];
        let count = self.socket.read(&mut bytes).ok().filter(|count| *count > 0)?;
        self.input.extend_from_slice(&bytes[..count]);
        Some(())
    }

    fn fault(&self, what: &str) {
        self.faults.lock().unwrap().push(what.to_owned());
    }
}

/// An instance that ends with its owner.
pub struct Instance {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    faults: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    ends: Arc<AtomicBool>,
}

impl Instance {
    /// Each connection is given to the script, and closed after it.
    pub fn start(script: impl Fn(&mut Line) + Send + Sync + 'static) -> Instance {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let instance = Instance {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            faults: Arc::default(),
            connections: Arc::default(),
            ends: Arc::default(),
        };
        let (seen, faults) = (Arc::clone(&instance.seen), Arc::clone(&instance.faults));
        let (connections, ends) = (Arc::clone(&instance.connections), Arc::clone(&instance.ends));
        let script = Arc::new(script);
        thread::spawn(move || {
            for (index, socket) in listener.incoming().enumerate() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let socket = socket.unwrap();
                socket.set_nodelay(true).unwrap();
                connections.lock().unwrap().push(socket.try_clone().unwrap());
                let (seen, faults) = (Arc::clone(&seen), Arc::clone(&faults));
                let (connections, script) = (Arc::clone(&connections), Arc::clone(&script));
                thread::spawn(move || {
                    let mut line = Line { socket, index, input: Vec::new(), seen, faults };
                    script(&mut line);
                    // What is left is the last handle to it, so that the close is one.
                    let peer = line.socket.peer_addr().ok();
                    connections.lock().unwrap().retain(|it| it.peer_addr().ok() != peer);
                });
            }
        });
        instance
    }

    /// Answers each request with the same bytes.
    pub fn says(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Instance {
        Instance::start(move |line| {
            while line.request().is_some() {
                line.say(&answer);
            }
        })
    }

    /// Answers each request with the same bytes, then closes.
    pub fn says_and_closes(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Instance {
        Instance::start(move |line| {
            if line.request().is_some() {
                line.say(&answer);
            }
        })
    }

    /// Answers the first request with those bytes, and says back what comes then.
    pub fn echoes_after(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Instance {
        Instance::start(move |line| {
            line.request();
            line.say(&answer);
            loop {
                let some = line.some();
                if some.is_empty() {
                    return;
                }
                line.say(some);
            }
        })
    }

    /// The whole requests it got, in the order in which they ended.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn targets(&self) -> Vec<String> {
        self.seen().iter().map(|it| it.target().to_owned()).collect()
    }

    /// Bytes it got that were no request.
    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        let _ = TcpStream::connect(self.address);
    }
}

/// An address at which nobody listens.
pub fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A gateway of one listener, of which `/` leads to one service.
pub struct Fixture {
    pub gateway: Gateway,
    pub config: Config,
    pub address: SocketAddr,
}

impl Fixture {
    pub fn start(addresses: &[SocketAddr]) -> Fixture {
        Fixture::with(addresses, |_| {})
    }

    pub fn before(instance: &Instance) -> Fixture {
        Fixture::start(&[instance.address])
    }

    pub fn with(addresses: &[SocketAddr], change: impl FnOnce(&mut HttpService)) -> Fixture {
        Fixture::set_up(addresses, change, |_| {})
    }

    pub fn set_up(
        addresses: &[SocketAddr],
        change: impl FnOnce(&mut HttpService),
        configure: impl FnOnce(&mut Config),
    ) -> Fixture {
        let backends = addresses.iter().enumerate().map(|(index, address)| Backend {
            name: format!("i{index}"),
            address: *address,
            zone: None,
            weight: 1,
        });
        let mut service = HttpService {
            balance: Balance::RoundRobin,
            version: Version::Http1,
            affinity: None,
            // Not in the time of a test.
            health: HealthSpec { interval_ms: 3_600_000, ..HealthSpec::default() },
            slow_start_ms: 0,
            timeout_ms: 10_000,
            try_timeout_ms: None,
            try_timeout_auto: false,
            hedge_percentile: None,
            idle_timeout_ms: 3_600_000,
            retries: 2,
            bulkhead: None,
            breaker: None,
            backends: backends.collect(),
        };
        change(&mut service);
        let when = Match { path: Some(PathMatch::Prefix("/".to_owned())), ..Match::default() };
        let elsewhere = Match { host: Some("elsewhere.org".to_owned()), ..Match::default() };
        let nowhere = HttpService { backends: Vec::new(), ..service.clone() };
        let route = |name: &str, when, service: &str| HttpRoute {
            name: name.to_owned(),
            when,
            service: service.to_owned(),
            timeout_ms: None,
            bulkhead: None,
            priority: Priority::Normal,
            cache: None,
            rate_limit: None,
            body_rate_min: None,
            degraded: None,
        };
        let bind = nobody();
        let routes = vec![route("all", when, "main"), route("no", elsewhere, "nowhere")];
        let mut http = HttpTable::default();
        let listener = HttpListener {
            bind,
            tls: None,
            deny: Vec::new(),
            per_client_max: None,
            trusted_proxies: Vec::new(),
            routes,
        };
        http.listeners.insert("web".to_owned(), listener);
        http.services.insert("main".to_owned(), service);
        http.services.insert("nowhere".to_owned(), nowhere);
        let mut config = Config::new(Arc::new(RouteTable::default().with_http(http)));
        // One: so that connections to instances are shared.
        config.threads = NonZeroUsize::MIN;
        config.limits = Limits::default();
        configure(&mut config);
        Fixture { gateway: Gateway::start(config.clone()).unwrap(), config, address: bind }
    }

    pub fn client(&self) -> Client {
        Client::of(TcpStream::connect(self.address).unwrap())
    }

    /// Puts another table in force.
    pub fn change(&self, change: impl FnOnce(&mut HttpTable)) {
        let mut http = self.config.table.http.clone();
        change(&mut http);
        let table = RouteTable { revision: 1, ..RouteTable::default() };
        self.gateway.set_table(Arc::new(table.with_http(http))).unwrap();
    }

    /// One request on a connection of its own, and its answer.
    pub fn ask(&self, request: &str) -> Answer {
        let mut client = self.client();
        client.say(request);
        client.answer_to(request.split(' ').next().unwrap())
    }
}

/// A response as a client read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Heads that came before it.
    pub interim: Vec<String>,
    pub head: String,
    pub body: Vec<u8>,
    pub trailers: String,
    /// It ended as its framing says.
    pub whole: bool,
}

impl Answer {
    pub fn values(&self, name: &str) -> Vec<&str> {
        values(&self.head, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The gateway says it itself.
    pub fn is_own(&self) -> bool {
        self.text().starts_with("{\"error\":")
    }
}

/// A client that says what bytes it likes.
pub struct Client {
    pub socket: TcpStream,
    input: Vec<u8>,
    was_reset: bool,
}

/// One that has that address.
pub fn client_from(ip: [u8; 4], to: SocketAddr) -> Client {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((ip, 0))).unwrap();
    connect(&socket, &to).unwrap();
    Client::of(socket.into())
}

impl Client {
    pub fn of(socket: TcpStream) -> Client {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { socket, input: Vec::new(), was_reset: false }
    }

    /// A gateway that has refused the beginning may not take the rest.
    pub fn say(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.socket.write_all(bytes.as_ref());
    }

    pub fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    #[track_caller]
    pub fn answer_to(&mut self, method: &str) -> Answer {
        self.answer_or_end(method).expect("an answer")
    }

    pub fn answer_or_end(&mut self, method: &str) -> Option<Answer> {
        let mut interim = Vec::new();
        let (head, status) = loop {
            let head = self.until(b"\r\n\r\n")?;
            let head = String::from_utf8(head[..head.len() - 2].to_vec()).unwrap();
            let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
            match status {
                101 | 200.. => break (head, status),
                _ => interim.push(head),
            }
        };
        let mut answer = Answer {
            status,
            interim,
            head,
            body: Vec::new(),
            trailers: String::new(),
            whole: true,
        };
        if method != "HEAD" && !matches!(status, 101 | 204 | 304) {
            answer.whole = self.body(&mut answer).is_some();
        }
        Some(answer)
    }

    fn body(&mut self, answer: &mut Answer) -> Option<()> {
        let head = answer.head.clone();
        if let [length] = values(&head, "content-length")[..] {
            let length: usize = length.parse().unwrap();
            while self.input.len() < length {
                if self.more().is_none() {
                    answer.body = std::mem::take(&mut self.input);
                    return None;
                }
            }
            answer.body = self.input.drain(..length).collect();
        } else if values(&head, "transfer-encoding") == ["chunked"] {
            loop {
                let line = String::from_utf8(self.until(b"\r\n")?).unwrap();
                let size = usize::from_str_radix(line.trim_end(), 16).expect("a chunk's size");
                if size == 0 {
                    break;
                }
                while self.input.len() < size + 2 {
                    self.more()?;
                }
                answer.body.extend(self.input.drain(..size));
                assert_eq!(self.input.drain(..2).collect::<Vec<u8>>(), b"\r\n");
            }
            loop {
                let line = String::from_utf8(self.until(b"\r\n")?).unwrap();
                if line == "\r\n" {
                    break;
                }
                answer.trailers.push_str(&line);
            }
        } else {
            while self.more().is_some() {}
            answer.body = std::mem::take(&mut self.input);
            return (!self.was_reset).then_some(());
        }
        Some(())
    }

    /// Whether the gateway ends the connection without another byte.
    pub fn ends(&mut self) -> bool {
        self.input.is_empty() && self.more().is_none()
    }

    pub fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.input.len() < count {
            self.more()?;
        }
        Some(self.input.drain(..count).collect())
    }

    /// Drops what was read and not looked at; how much that was.
    pub fn drain(&mut self) -> usize {
        std::mem::take(&mut self.input).len()
    }

    /// Whether nothing comes, and no end, for [`A_WHILE`].
    pub fn stays_silent(&mut self) -> bool {
        self.socket.set_read_timeout(Some(A_WHILE)).unwrap();
        let read = self.socket.read(&mut [0]);
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        self.input.is_empty() && matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.input.windows(end.len()).position(|it| it == end) {
                return Some(self.input.drain(..at + end.len()).collect());
            }
            self.more()?;
        }
    }

    /// `None`: the end.
    fn more(&mut self) -> Option<()> {
        let mut bytes = [0; 64 << 10];
        match self.socket.read(&mut bytes) {
            Ok(0) => None,
            Ok(count) => {
                self.input.extend_from_slice(&bytes[..count]);
                Some(())
            }
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::WouldBlock, "nothing for {PATIENCE:?}");
                self.was_reset = true;
                None
            }
        }
    }
}

/// Makes the coming close a reset.
pub fn reset(socket: &TcpStream) {
    rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO)).unwrap();
}

#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
