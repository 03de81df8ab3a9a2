//! Fake backends, clients and tables.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use everhold_core::route::{Instance, RouteTable, ServiceFacts, Standby, build};
use everhold_core::spec::{ListenerSpec, PostgresListener, Protocol, Role};
use everhold_gateway::{Config, Gateway, Limits, ListenerSnapshot};

/// Longer than anything here takes on a busy machine: reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for something to happen that must not happen.
pub const A_WHILE: Duration = Duration::from_millis(300);

/// A startup packet without parameters.
pub const STARTUP: [u8; 8] = [0, 0, 0, 8, 0, 3, 0, 0];
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What a fake does with a connection after its first packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Says its name and a newline, then sends back what it gets.
    Echo,
    /// Never reads again, like a stopped process.
    Frozen,
    /// Says its name, then closes.
    Close,
}

/// A backend that ends with its owner.
pub struct Fake {
    pub name: &'static str,
    pub address: SocketAddr,
    /// The first packet of each connection, as far as it came in one piece.
    pub first_packets: Arc<Mutex<Vec<Vec<u8>>>>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    ends: Arc<AtomicBool>,
}

impl Fake {
    pub fn start(name: &'static str, mode: Mode) -> Fake {
        Self::start_on(name, mode, TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub fn start_on(name: &'static str, mode: Mode, listener: TcpListener) -> Fake {
        let fake = Fake {
            name,
            address: listener.local_addr().unwrap(),
            first_packets: Arc::default(),
            connections: Arc::default(),
            ends: Arc::default(),
        };
        let (first_packets, connections) =
            (Arc::clone(&fake.first_packets), Arc::clone(&fake.connections));
        let ends = Arc::clone(&fake.ends);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                connections.lock().unwrap().push(stream.try_clone().unwrap());
                let first_packets = Arc::clone(&first_packets);
                thread::spawn(move || serve(stream, name, mode, &first_packets));
            }
        });
        fake
    }

    /// The backend's side of its connections.
    pub fn connections(&self) -> Vec<TcpStream> {
        self.connections.lock().unwrap().iter().map(|c| c.try_clone().unwrap()).collect()
    }

    pub fn instance(&self) -> Instance {
        Instance { name: self.name.to_owned(), address: self.address }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: TcpStream, name: &str, mode: Mode, first_packets: &Mutex<Vec<Vec<u8>>>) {
    let mut buffer = vec![0; 64 * 1024];
    let Ok(read @ 1..) = stream.read(&mut buffer) else { return };
    first_packets.lock().unwrap().push(buffer[..read].to_vec());
    if mode == Mode::Frozen {
        return;
    }
    if buffer[4..read].starts_with(&80_877_102_u32.to_be_bytes()) {
        let _ = stream.shutdown(Shutdown::Both);
        return;
    }
    if stream.write_all(format!("{name}\n").as_bytes()).is_err() {
        return;
    }
    if mode == Mode::Echo {
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// An address of which connects get no answer: its queue is full, so that the kernel drops them.
pub struct BlackHole {
    pub address: SocketAddr,
    _listener: std::os::fd::OwnedFd,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    pub fn open() -> BlackHole {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listen(&listener, 0).unwrap();
        let address = SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, A_WHILE) {
            queued.push(stream);
        }
        BlackHole { address, _listener: listener, _queued: queued }
    }
}

/// A gateway with a write and a read listener on ports of the kernel's choice, and its tables.
pub struct Fixture {
    pub gateway: Gateway,
    specs: BTreeMap<String, ListenerSpec>,
    table: RouteTable,
}

/// What the agents would say of the service.
pub fn facts(epoch: u64, primary: Option<&Fake>, standbys: &[&Fake]) -> ServiceFacts {
    let standby =
        |fake: &&Fake| Standby { instance: fake.instance(), lag_ms: Some(0), readable: true };
    let all = primary.iter().chain(standbys).map(|fake| fake.address).collect();
    ServiceFacts {
        epoch,
        primary: primary.map(Fake::instance),
        standbys: standbys.iter().map(standby).collect(),
        all,
    }
}

pub fn spec(port: u16, role: Role) -> ListenerSpec {
    ListenerSpec {
        bind: SocketAddr::from(([127, 0, 0, 1], port)),
        protocol: Protocol::Postgres(PostgresListener {
            service: "main".to_owned(),
            role,
            max_lag_ms: None,
        }),
    }
}

pub fn config(table: &RouteTable, limits: Limits) -> Config {
    let mut config = Config::new(Arc::new(table.clone()));
    config.threads = NonZeroUsize::new(2).unwrap();
    config.limits = limits;
    config
}

impl Fixture {
    pub fn start(limits: Limits, facts: ServiceFacts) -> Fixture {
        let specs = BTreeMap::from([
            ("write".to_owned(), spec(0, Role::Primary)),
            ("read".to_owned(), spec(0, Role::Standby)),
        ]);
        let table = build(&specs, &BTreeMap::from([("main".to_owned(), facts)]), None);
        let gateway = Gateway::start(config(&table, limits)).unwrap();
        Fixture { gateway, specs, table }
    }

    pub fn publish(&mut self, facts: ServiceFacts) {
        let services = BTreeMap::from([("main".to_owned(), facts)]);
        self.table = build(&self.specs, &services, Some(&self.table));
        self.gateway.set_table(Arc::new(self.table.clone())).unwrap();
    }

    pub fn listener(&self, name: &str) -> ListenerSnapshot {
        self.gateway.snapshot().listeners[name].clone()
    }

    /// A client that has sent nothing yet.
    pub fn connect(&self, listener: &str) -> TcpStream {
        client(self.listener(listener).bind)
    }

    /// A client that has sent its startup packet.
    pub fn open(&self, listener: &str) -> TcpStream {
        let mut client = self.connect(listener);
        client.write_all(&STARTUP).unwrap();
        client
    }
}

pub fn client(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// The name that a fake says first.
pub fn name(client: &mut TcpStream) -> String {
    let mut said = Vec::new();
    let mut byte = [0];
    loop {
        client.read_exact(&mut byte).expect("a backend says its name");
        if byte == *b"\n" {
            return String::from_utf8(said).unwrap();
        }
        said.push(byte[0]);
    }
}

/// Whether a session still carries bytes there and back.
pub fn echoes(client: &mut TcpStream) -> bool {
    let mut answer = [0; 4];
    client.write_all(b"ping").is_ok()
        && client.read_exact(&mut answer).is_ok()
        && answer == *b"ping"
}

/// Whether a connection ends, by a close or a reset, within [`PATIENCE`].
pub fn ends(client: &mut TcpStream) -> bool {
    let mut rest = vec![0; 64 * 1024];
    loop {
        match client.read(&mut rest) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// Whether nothing comes, and no end, for [`A_WHILE`].
pub fn stays_silent(client: &mut TcpStream) -> bool {
    client.set_read_timeout(Some(A_WHILE)).unwrap();
    let silent =
        matches!(client.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    silent
}

/// Reads an ErrorResponse to the end of the connection; returns its fields by their letters.
pub fn error_response(client: &mut TcpStream) -> BTreeMap<char, String> {
    let mut packet = Vec::new();
    client.read_to_end(&mut packet).unwrap();
    assert_eq!(packet[0], b'E', "{packet:?}");
    let length = u32::from_be_bytes(packet[1..5].try_into().unwrap()) as usize;
    assert_eq!(packet.len(), length + 1, "one message and nothing else");
    packet[5..]
        .split(|byte| *byte == 0)
        .filter(|field| !field.is_empty())
        .map(|field| (char::from(field[0]), String::from_utf8(field[1..].to_vec()).unwrap()))
        .collect()
}

#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
