//! What a gateway tells of requests and of its routes, over a socket that only its own user may open, to
//! the agent of its machine. A line comes, `request ID` or `routes`, and a line of JSON goes back.

use crate::clock;
use crate::own_socket::OwnSocket;
use crate::routes::Told;
use everhold_core::route::RouteTable;
use everhold_gateway::Gateway;
use everhold_gateway::http::{End, Record, id};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

/// For one question and its answer. They are taken one after the other.
const ASK_WITHIN: Duration = Duration::from_secs(1);
const QUESTION_BYTES_MAX: u64 = 128;
/// A record has at most eleven tries.
const RECORD_BYTES_MAX: u64 = 16 << 10;
/// A thousand routes and ten thousand instances are a tenth of it.
const ROUTES_BYTES_MAX: u64 = 8 << 20;
/// After an error of accept(2), such as too many open files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Answers at that path until the process ends.
pub fn serve(
    path: &Path,
    name: &str,
    gateway: Arc<Gateway>,
    tables: watch::Receiver<Arc<RouteTable>>,
) -> io::Result<()> {
    // Whoever had the path before is gone, or goes: it is taken over as a whole.
    let listener = OwnSocket::bind(path)?.open()?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let name = name.rsplit('.').next().unwrap_or(name).to_string();
    tokio::spawn(async move {
        loop {
            let Ok((socket, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            };
            let tell = |question: &str| match question.strip_prefix("request ") {
                Some(id) => gateway.request(id).map(|record| told(&name, &record)),
                None if question == "routes" => {
                    let table = tables.borrow().clone();
                    let told = Told::of(&name, &gateway, &table, clock::now());
                    serde_json::to_value(told).ok()
                }
                None => None,
            };
            if let Ok(Err(error)) = timeout(ASK_WITHIN, answer(socket, tell)).await {
                tracing::debug!(%error, "a question to this gateway");
            }
        }
    });
    Ok(())
}

async fn answer(mut socket: UnixStream, tell: impl Fn(&str) -> Option<Value>) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new((&mut socket).take(QUESTION_BYTES_MAX)).read_line(&mut line).await?;
    let told = tell(line.trim_end());
    socket.write_all(format!("{}\n", told.unwrap_or_default()).as_bytes()).await
}

/// Asks the gateway of this machine. `null`: it doesn't remember the request.
pub async fn ask(path: &Path, request: &str) -> Result<Value, String> {
    if !id::is_id(request.as_bytes()) {
        return Err("no request has such a name".to_string());
    }
    question(path, &format!("request {request}\n"), RECORD_BYTES_MAX).await
}

/// Asks the gateway of this machine what its routes do: [`Told`].
pub async fn ask_routes(path: &Path) -> Result<Value, String> {
    question(path, "routes\n", ROUTES_BYTES_MAX).await
}

async fn question(path: &Path, question: &str, bytes_max: u64) -> Result<Value, String> {
    let asked = async {
        let mut socket = UnixStream::connect(path).await?;
        socket.write_all(question.as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(socket.take(bytes_max)).read_line(&mut line).await?;
        Ok::<Value, io::Error>(serde_json::from_str(&line)?)
    };
    match timeout(ASK_WITHIN, asked).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(format!("the gateway can't be asked: {error}")),
        Err(_) => Err("the gateway does not answer".to_string()),
    }
}

fn told(gateway: &str, record: &Record) -> Value {
    let at = i64::try_from(record.at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let tries = record.tries.iter().map(|it| {
        json!({
            "instance": &*it.backend, "why": it.why, "after_us": it.after_us, "took_us": it.took_us,
            "ok": it.end == End::Answered, "outcome": it.outcome,
        })
    });
    json!({
        "id": text(record.id.as_bytes()), "at": format!("{:.3}", at.unwrap_or_default()),
        "gateway": gateway, "listener": &*record.listener, "client": record.peer,
        "method": record.method.name(), "host": text(record.host.as_bytes()),
        "path": text(record.path.as_bytes()), "route": &*record.route,
        "service": &*record.service, "tries": tries.collect::<Vec<_>>(),
        "status": record.status, "bytes_in": record.bytes_in, "bytes_out": record.bytes_out,
        "took_us": record.took_us, "waited_us": record.waited_us, "cache": record.cache,
        "outcome": record.outcome,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_gateway::Config;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_gateway_is_asked_over_a_socket_of_its_own_user() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("requests");
        let fault = ask(&path, "first").await.expect_err("nobody is there");
        assert!(fault.starts_with("the gateway can't be asked: "), "{fault}");
        let gateway = Gateway::start(Config::new(Arc::new(RouteTable::default())));
        let gateway = Arc::new(gateway.expect("a gateway"));
        // Also where another one had been.
        for _ in 0..2 {
            let tables = watch::channel(Arc::default()).1;
            serve(&path, "gateway.a", gateway.clone(), tables).expect("served");
        }
        let mode = std::fs::metadata(&path).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(ask(&path, "first").await, Ok(Value::Null));
        let told: Told =
            serde_json::from_value(ask_routes(&path).await.expect("told")).expect("read");
        assert_eq!((told.gateway.as_str(), told.pid), ("a", std::process::id()));
        let fault = ask(&path, "first\nrequest second").await.expect_err("two questions");
        assert_eq!(fault, "no request has such a name");
        // Who says nothing holds up nobody for long.
        let silent = UnixStream::connect(&path).await.expect("connected");
        let until = tokio::time::Instant::now() + Duration::from_secs(60);
        while ask(&path, "first").await.is_err() {
            assert!(tokio::time::Instant::now() < until);
        }
        drop(silent);
    }

    #[tokio::test]
    async fn what_is_found_comes_back_as_it_was_told() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let served = tokio::spawn(answer(there, |asked| Some(json!({ "asked": asked }))));
        let mut here = BufReader::new(here);
        here.write_all(b"request x-1\n").await.expect("written");
        let mut line = String::new();
        here.read_line(&mut line).await.expect("read");
        assert_eq!(line, "{\"asked\":\"request x-1\"}\n");
        served.await.expect("ended").expect("answered");
    }
}
