//! HTTP through the gateway with the clients that people have: curl, a browser, a WebSocket client.

use crate::stack::{Stack, Wanted, signal};
use crate::web::{Load, answered, port, spec, whole};
use rcgen::{CertificateParams, KeyPair};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

const PATIENCE: Duration = Duration::from_secs(60);

/// Of the listener with TLS.
fn safe_port(stack: &Stack) -> u16 {
    port(stack) + 1
}

/// A listener with TLS, in front of the same service.
fn safe(stack: &Stack) -> String {
    let (cert, key) = files(stack);
    format!(
        "[listener.safe]\nbind = \"127.0.0.1:{}\"\nprotocol = \"http\"\n\
         tls = {{ cert = \"{}\", key = \"{}\" }}\n\
         [route.safe]\nlistener = \"safe\"\nservice = \"web\"\n",
        safe_port(stack),
        cert.display(),
        key.display()
    )
}

fn files(stack: &Stack) -> (PathBuf, PathBuf) {
    (stack.dir().join("site.pem"), stack.dir().join("site.key"))
}

/// A certificate for `localhost` that is its own authority, in the place of what was there.
fn renew(stack: &Stack) -> Vec<u8> {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["localhost".to_string()]).expect("a name");
    let text = params.self_signed(&key).expect("a certificate").pem();
    let (cert_file, key_file) = files(stack);
    // As a tool for it does: each file as a whole, one after the other.
    for (path, text) in [(key_file, key.serialize_pem()), (cert_file, text.clone())] {
        let new = path.with_extension("new");
        fs::write(&new, text).expect("written");
        fs::rename(new, path).expect("renamed");
    }
    text.into_bytes()
}

/// What curl says of one request: version, code and body.
fn curl(stack: &Stack, trusted: &[&[u8]], more: &[&str], url: &str) -> Result<String, String> {
    let file = stack.dir().join("trusted.pem");
    fs::write(&file, trusted.concat()).expect("written");
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "-w", "%{http_version} %{http_code}", "--cacert"])
        .arg(&file)
        .args(more)
        .arg(url)
        .output()
        .expect("curl, which scripts/setup installs");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn curl_is_answered_in_each_version_also_while_the_certificate_is_renewed() {
    let mut stack = Stack::new(Wanted::default());
    let first = renew(&stack);
    let more = format!("version = \"2\"\n{}", safe(&stack));
    fs::write(stack.spec_file(), spec(&stack, &more)).expect("the spec is written");
    stack.up();
    whole(&mut stack);
    answered(port(&stack), &["a.1", "b.1", "c.1"]);
    let plain = format!("http://localhost:{}/", port(&stack));
    let safe = format!("https://localhost:{}/", safe_port(&stack));
    for (flag, url, version) in [
        ("--http1.1", &plain, "1.1"),
        ("--http2-prior-knowledge", &plain, "2"),
        ("--http1.1", &safe, "1.1"),
        ("--http2", &safe, "2"),
    ] {
        let said = curl(&stack, &[&first], &[flag], url).expect("answered");
        let of = ["a.1", "b.1", "c.1"].map(|name| format!("hello from {name}\n{version} 200"));
        assert!(of.contains(&said), "{flag} {url}: {said}");
    }

    // Instances are asked in HTTP/2: one that is killed fails no request.
    let load = Load::start(port(&stack), &["GET"]);
    let status = whole(&mut stack);
    let pid = status["services"]["web"]["instances"]["b.1"]["pid"].as_i64();
    signal("KILL", &[i32::try_from(pid.expect("a pid")).expect("a number")]);
    stack.wait("another process", |status| {
        let b = &status["services"]["web"]["instances"]["b.1"];
        b["state"] == "running" && b["pid"].as_i64() != pid
    });
    answered(port(&stack), &["b.1"]);
    load.well("kill -9 of an instance that is asked in HTTP/2");

    // At no moment is there no certificate, and the new one is there without being asked for.
    let second = renew(&stack);
    let until = Instant::now() + PATIENCE;
    while curl(&stack, &[&second], &[], &safe).is_err() {
        assert!(Instant::now() < until, "the new certificate is not taken up");
        curl(&stack, &[&first, &second], &[], &safe).expect("one of both");
    }
    let error = curl(&stack, &[&first], &[], &safe).expect_err("the old one is gone");
    assert!(error.contains("certificate"), "{error}");
    // Half of a pair, or nothing that is a certificate: what there is stays.
    fs::write(files(&stack).0, "no certificate\n").expect("written");
    std::thread::sleep(Duration::from_secs(3));
    curl(&stack, &[&second], &[], &safe).expect("the last good one");
}

#[test]
fn a_session_stays_with_its_instance_when_the_gateway_is_killed() {
    let mut stack = Stack::new(Wanted::default());
    let more = "affinity = { cookie = \"place\" }\n";
    fs::write(stack.spec_file(), spec(&stack, more)).expect("the spec is written");
    stack.up();
    whole(&mut stack);
    answered(port(&stack), &["a.1", "b.1", "c.1"]);
    let url = format!("http://localhost:{}/", port(&stack));
    let jars: Vec<String> = (0..6)
        .map(|number| stack.dir().join(format!("jar{number}")).display().to_string())
        .collect();
    let ask = |stack: &Stack, jar: &String| {
        let answer = curl(stack, &[], &["-b", jar, "-c", jar, "--retry", "3"], &url);
        answer.expect("answered")
    };
    let first: Vec<String> = jars.iter().map(|jar| ask(&stack, jar)).collect();
    let gateway = stack.agent_pid("gateway").expect("a gateway");
    signal("KILL", &[gateway]);
    // While it has not checked all of them, a session may be elsewhere.
    stack.wait("a gateway that has checked all", |status| {
        let told = &status["gateways"]["gateway"];
        let web = told["services"]["web"].as_object();
        told["pid"].as_i64().is_some_and(|pid| pid != i64::from(gateway))
            && web.is_some_and(|all| all.len() == 3 && all.values().all(|it| it["is"] == "healthy"))
    });
    for _ in 0..3 {
        for (jar, first) in jars.iter().zip(&first) {
            assert_eq!(ask(&stack, jar), *first);
        }
    }
}

/// A page that asks for more, speaks over a WebSocket and writes down what it saw. It is loaded when
/// `/end` is answered, which is when all has been said.
const PAGE: &str = "<!doctype html><body><pre id=seen></pre><script>
const seen = [], show = () => document.getElementById('seen').textContent = seen.join('\\n');
(async () => {
  const kinds = new Set();
  for (let i = 0; i < 20; i++) {
    const answer = await fetch('/item/' + i, { method: i % 2 ? 'POST' : 'GET', body: i % 2 ? 'x'.repeat(70000) : undefined });
    kinds.add(answer.status + ' ' + await answer.text());
  }
  seen.push('items ' + [...kinds].sort().join(','));
  const of = performance.getEntriesByType('resource').filter(it => it.name.includes('/item/'));
  seen.push('protocol ' + of[0].nextHopProtocol);
  const socket = new WebSocket('wss://' + location.host + '/chat');
  socket.onopen = () => socket.send('1');
  socket.onmessage = async (said) => {
    seen.push('heard ' + said.data);
    if (said.data === 'echo 3') { socket.close(); show(); await fetch('/said'); }
    else socket.send(String(Number(said.data.slice(5)) + 1));
  };
  socket.onerror = () => { seen.push('socket failed'); show(); fetch('/said'); };
})().catch(error => { seen.push('failed ' + error); show(); fetch('/said'); });
</script><img src='/end'></body>";

/// What instances of the page share: who waits for the end, and who says that all was said.
type End = (Sender<()>, Arc<Mutex<Receiver<()>>>);

/// An instance of the page; its port.
fn instance(end: &End) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let end = end.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let end = end.clone();
            // A client may leave when it likes.
            std::thread::spawn(move || drop(serve(stream, &end)));
        }
    });
    port
}

fn serve(stream: TcpStream, (said, all_said): &End) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let field = |name: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            let mut lines = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
            lines.next().map(|(_, value)| value)
        };
        if let Some(key) = field("sec-websocket-key") {
            let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
            write!(
                stream,
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
                 connection: upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n"
            )?;
            return echo(WebSocket::from_raw_socket(stream, Role::Server, None));
        }
        let length = field("content-length").map_or(Ok(0), str::parse);
        let mut body = vec![0; length.map_err(std::io::Error::other)?];
        reader.read_exact(&mut body)?;
        let text = match head.split(' ').nth(1).unwrap_or_default() {
            "/" => PAGE.to_string(),
            "/said" => {
                said.send(()).map_err(std::io::Error::other)?;
                String::new()
            }
            "/end" => {
                let all_said = all_said.lock().expect("not poisoned");
                // A page that says nothing is looked at as it is.
                let _ = all_said.recv_timeout(Duration::from_secs(30));
                String::new()
            }
            path if path.starts_with("/item/") => body.len().to_string(),
            _ => String::new(),
        };
        let kind = if text.starts_with('<') { "text/html" } else { "text/plain" };
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        )?;
    }
}

/// Until the other end closes it.
fn echo(mut socket: WebSocket<TcpStream>) -> std::io::Result<()> {
    while let Ok(Message::Text(text)) = socket.read() {
        let answer = Message::text(format!("echo {text}"));
        socket.send(answer).map_err(std::io::Error::other)?;
    }
    Ok(())
}

/// What a browser makes of a page.
fn browse(dir: &Path, url: &str) -> String {
    let output = Command::new("timeout")
        .args([
            "100",
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-quic",
        ])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--ignore-certificate-errors", "--dump-dom"])
        .arg(format!("--user-data-dir={}", dir.display()))
        .arg(url)
        .env("HOME", dir)
        .output()
        .expect("chromium, which scripts/setup installs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_browser_and_a_websocket_client_are_at_home() {
    let mut stack = Stack::new(Wanted::default());
    renew(&stack);
    let (said, all_said) = channel();
    let end = (said, Arc::new(Mutex::new(all_said)));
    let ports = [instance(&end), instance(&end)];
    let text = spec(&stack, "");
    let (before, _) = text.split_once("[service.web]").expect("the service");
    let text = format!(
        "{before}[service.web]\nkind = \"http\"\nslow_start = \"0s\"\nbalance = \"round_robin\"\n\
         addresses = [\"127.0.0.1:{}\", \"127.0.0.1:{}\"]\n{}",
        ports[0],
        ports[1],
        safe(&stack)
    );
    fs::write(stack.spec_file(), text).expect("the spec is written");
    stack.up();
    whole(&mut stack);
    let profile = stack.dir().join("browser");
    fs::create_dir(&profile).expect("a directory");
    let page = browse(&profile, &format!("https://localhost:{}/", safe_port(&stack)));
    let (_, seen) = page.split_once("<pre id=\"seen\">").expect("the page");
    let (seen, _) = seen.split_once("</pre>").expect("the page");
    let wanted = ["items 200 0,200 70000", "protocol h2", "heard echo 1", "heard echo 2"];
    let wanted = [&wanted[..], &["heard echo 3"]].concat();
    assert_eq!(seen.lines().collect::<Vec<_>>(), wanted, "{page}");

    // A client of its own, in the clear.
    let url = format!("ws://127.0.0.1:{}/chat", port(&stack));
    let (mut socket, _) = tungstenite::connect(url).expect("a WebSocket");
    let long = "x".repeat(300_000);
    for text in ["hi", &long] {
        socket.send(Message::text(text)).expect("said");
        let heard = socket.read().expect("heard").into_text().expect("text");
        assert_eq!(heard.as_str(), format!("echo {text}"));
    }
}
