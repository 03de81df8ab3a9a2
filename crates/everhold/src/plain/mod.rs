//! What everybody may read, in plain HTTP: health paths for load balancers, metrics for Prometheus.
//!
//! It has a thread of its own, so that a flood of questions doesn't hold up who decides, and a port
//! that can't be opened holds up nothing: it is told, and tried again.

pub mod agent;
pub mod gateway;
mod health;
mod metric;
mod page;
mod process;

use crate::api::{self, ApiError, Code};
use axum::Router;
use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use page::Page;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;

/// Between two tries to open the port.
const AGAIN: Duration = Duration::from_secs(2);
/// Certificates of one machine: `up` has one for each node, and a few.
const CERTIFICATES_MAX: usize = 100;

/// What is being answered when the port is given up is answered within this.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// The listening socket, for who takes it over; empty until it is opened.
type Socket = Arc<Mutex<Option<std::net::TcpListener>>>;

/// Serves on a thread of its own, on the socket if there is one, until that `ends`. `told` hears why
/// the port, `HOST:PORT`, can't be opened, and `None` when it is.
fn serve(
    address: String,
    socket: Socket,
    router: Router,
    told: impl Fn(Option<String>) + Send + 'static,
    ends: impl Future<Output = ()> + Send + 'static,
) {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(async {
                tokio::select! {
                    () = listen(&address, &socket, router, told) => {}
                    () = ends => {
                        drop(socket.lock().unwrap_or_else(PoisonError::into_inner).take());
                        tokio::time::sleep(ENDS_WITHIN).await;
                    }
                }
            }),
            Err(error) => told(Some(format!("E212 cannot serve {address}: {error}"))),
        }
    };
    if let Err(error) = std::thread::Builder::new().name("plain".into()).spawn(run) {
        tracing::error!(%error, "no thread for health paths and metrics");
    }
}

async fn listen(address: &str, socket: &Socket, router: Router, told: impl Fn(Option<String>)) {
    loop {
        match open(address, socket).await {
            Ok(listener) => {
                told(None);
                return api::accept(listener, router).await;
            }
            Err(error) => told(Some(format!("E212 cannot listen on {address}: {error}"))),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn open(address: &str, socket: &Socket) -> io::Result<TcpListener> {
    let known = socket.lock().unwrap_or_else(PoisonError::into_inner).take();
    let known = match known {
        Some(known) => known,
        None => TcpListener::bind(address).await?.into_std()?,
    };
    let listener = TcpListener::from_std(known.try_clone()?)?;
    *socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    Ok(listener)
}

/// The three methods that are answered.
fn is_read(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS].contains(method)
}

fn wrong_method(method: &Method, path: &str) -> Response {
    let text = format!("{path} does not take {method}");
    let error = ApiError::new(Code::WrongMethod, text).next("GET, HEAD or OPTIONS");
    let mut answer = error.into_response();
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    answer
}

/// A code, and the body if it is asked for: balancers read the code alone.
fn answer(method: &Method, code: StatusCode, kind: &'static str, body: String) -> Response {
    let body = if *method == Method::GET { Body::from(body) } else { Body::empty() };
    (code, [(CONTENT_TYPE, kind)], body).into_response()
}

fn tell_metrics(method: &Method, page: Page) -> Response {
    answer(method, StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page.text())
}

/// When each certificate of this machine ends.
fn certificates(page: &mut Page, beside: &Path) {
    let dir = beside.parent().unwrap_or(Path::new("."));
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let certificates = files.filter(|path| path.extension().is_some_and(|it| it == "pem"));
    for path in certificates.take(CERTIFICATES_MAX) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let ends = everhold_adapters::pki::ends(&path).ok();
        let since_1970 = ends.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        if let Some(at) = since_1970 {
            page.put(&metric::CERTIFICATE_EXPIRY, &[("certificate", &name)], at.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_and_tried_again() {
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = taken.local_addr().expect("bound");
        let (sender, told) = mpsc::channel();
        let router = Router::new();
        let told_of = move |fault| sender.send(fault).unwrap_or_default();
        let (stays, ends) = tokio::sync::oneshot::channel::<()>();
        let ends = async { drop(ends.await) };
        serve(address.to_string(), Socket::default(), router, told_of, ends);
        let wait = Duration::from_secs(20);
        let fault = told.recv_timeout(wait).expect("told").expect("a fault");
        assert!(fault.starts_with(&format!("E212 cannot listen on {address}: ")), "{fault}");
        drop(taken);
        while told.recv_timeout(wait).expect("told").is_some() {}
        let seen = tokio::net::TcpStream::connect(address).await;
        assert!(seen.is_ok(), "{seen:?}");
        drop(stays);
        let until = tokio::time::Instant::now() + wait;
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            assert!(tokio::time::Instant::now() < until, "it is given up");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
