//! Who speaks HTTP/2: instances that do as a script says, and clients.

use super::fixture::PATIENCE;
use bytes::Bytes;
use everhold_core::http::route::HttpService;
use everhold_core::spec::Version;
use h2::server::SendResponse;
use h2::{RecvStream, client};
use http::{HeaderMap, Request, Response};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::fixture::Fixture;

pub type Asked = Request<RecvStream>;
type Script = dyn Fn(usize, Asked, SendResponse<Bytes>) -> Work + Send + Sync;
pub type Work = Pin<Box<dyn Future<Output = Option<()>> + Send>>;

/// An instance that ends with its owner.
pub struct Server {
    pub address: SocketAddr,
    /// Connections on which something was asked.
    pub connections: Arc<AtomicUsize>,
    /// Method and path of what it was asked, and the fields.
    pub asked: Arc<Mutex<Vec<(String, HeaderMap)>>>,
    /// It ends when this is dropped.
    _ends: oneshot::Sender<()>,
}

impl Server {
    /// Each request is given to the script, with the number of its connection.
    pub fn start(
        streams_max: u32,
        script: impl Fn(usize, Asked, SendResponse<Bytes>) -> Work + Send + Sync + 'static,
    ) -> Server {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (ends, ended) = oneshot::channel();
        let server = Server {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            asked: Arc::default(),
            _ends: ends,
        };
        let (connections, asked) = (server.connections.clone(), server.asked.clone());
        let script: Arc<Script> = Arc::new(script);
        thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.spawn(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((socket, _)) = listener.accept().await {
                    socket.set_nodelay(true).unwrap();
                    let (asked, script) = (asked.clone(), script.clone());
                    tokio::spawn(serve(socket, connections.clone(), streams_max, asked, script));
                }
            });
            runtime.block_on(ended)
        });
        server
    }

    pub fn targets(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(target, _)| target.clone()).collect()
    }
}

async fn serve(
    socket: TcpStream,
    connections: Arc<AtomicUsize>,
    streams_max: u32,
    asked: Arc<Mutex<Vec<(String, HeaderMap)>>>,
    script: Arc<Script>,
) {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(streams_max);
    let Ok(mut connection) = builder.handshake(socket).await else { return };
    let mut index = None;
    while let Some(Ok((request, respond))) = connection.accept().await {
        let index = *index.get_or_insert_with(|| connections.fetch_add(1, SeqCst));
        let target = format!("{} {}", request.method(), request.uri());
        asked.lock().unwrap().push((target, request.headers().clone()));
        tokio::spawn(script(index, request, respond));
    }
}

/// All of a body and what follows it.
pub async fn whole(body: &mut RecvStream) -> Result<(Vec<u8>, HeaderMap), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, body.trailers().await?.unwrap_or_default()))
}

/// Says what was said to it, with its fields after the body.
pub fn echo(_: usize, mut request: Asked, mut respond: SendResponse<Bytes>) -> Work {
    Box::pin(async move {
        let (body, trailers) = whole(request.body_mut()).await.ok()?;
        let mut send = respond.send_response(Response::new(()), false).ok()?;
        send.send_data(body.into(), trailers.is_empty()).ok()?;
        if !trailers.is_empty() {
            send.send_trailers(trailers).ok()?;
        }
        Some(())
    })
}

/// Through a gateway to instances that speak HTTP/2.
pub fn before(addresses: &[SocketAddr]) -> Fixture {
    before_with(addresses, |_| {})
}

pub fn before_with(addresses: &[SocketAddr], change: impl FnOnce(&mut HttpService)) -> Fixture {
    Fixture::with(addresses, |service| {
        service.version = Version::Http2;
        change(service);
    })
}

/// A response as a client got it.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
    pub interim: Vec<u16>,
}

pub type Sender = client::SendRequest<Bytes>;

/// Does something as a client of HTTP/2, in patience.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(PATIENCE, work).await.expect("it takes for ever") })
}

pub async fn connect(address: SocketAddr) -> Sender {
    let socket = TcpStream::connect(address).await.unwrap();
    let (send, connection) = client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    send
}

pub fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://a{path}")).body(()).unwrap()
}

/// Asks, and reads all of the answer. `body`: what is sent, in pieces; trailers end it if there are any.
pub async fn ask(
    send: &Sender,
    request: Request<()>,
    body: &[&'static str],
    trailers: HeaderMap,
) -> Result<Got, h2::Error> {
    let bare = body.is_empty() && trailers.is_empty();
    let (mut answer, mut stream) = send.clone().ready().await?.send_request(request, bare)?;
    for piece in body {
        // It may have been answered before its end.
        let _ = stream.send_data(Bytes::from_static(piece.as_bytes()), false);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    match (bare, trailers.is_empty()) {
        (true, _) => {}
        (false, true) => drop(stream.send_data(Bytes::new(), true)),
        (false, false) => drop(stream.send_trailers(trailers)),
    }
    let mut interim = Vec::new();
    let answer = std::future::poll_fn(|cx| {
        while let std::task::Poll::Ready(Some(Ok(one))) = answer.poll_informational(cx) {
            interim.push(one.status().as_u16());
        }
        Pin::new(&mut answer).poll(cx)
    });
    let (head, mut body) = answer.await?.into_parts();
    let (body, trailers) = whole(&mut body).await?;
    Ok(Got { status: head.status.as_u16(), fields: head.headers, body, trailers, interim })
}
