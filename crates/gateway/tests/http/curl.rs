//! A real client: curl.

use super::fixture::{Fixture, Instance};
use std::io::Write;
use std::process::{Command, Stdio};

/// Status, body and all that it said of the exchange.
fn curl(args: &[&str], url: &str, input: &[u8]) -> (u16, Vec<u8>, String) {
    let mut child = Command::new("curl")
        .args(["--silent", "--show-error", "--verbose", "--max-time", "20"])
        .args(["--noproxy", "*", "--write-out", "%{stderr}status=%{http_code}\n"])
        .args(args)
        .arg(url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl is installed: scripts/setup curl");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let gives = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    gives.join().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let status = said.rsplit_once("status=").unwrap().1.trim().parse().unwrap();
    (status, output.stdout, said)
}

#[test]
fn curl_is_served() {
    // Sends back what it got, in chunks.
    let instance = Instance::start(|line| {
        while let Some(head) = line.head() {
            let expects = head.contains("Expect: 100-continue");
            if expects {
                line.say("HTTP/1.1 100 Continue\r\n\r\n");
            }
            let Some(request) = line.rest(head) else { return };
            let method = request.head.split(' ').next().unwrap();
            if method == "HEAD" {
                line.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
                continue;
            }
            let body =
                [format!("{method} {} ", request.target()).as_bytes(), &request.body].concat();
            line.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            for chunk in body.chunks(50_000) {
                line.say(format!("{:x}\r\n", chunk.len()));
                line.say(chunk);
                line.say("\r\n");
            }
            line.say("0\r\n\r\n");
        }
    });
    let gateway = Fixture::before(&instance);
    let url = |path: &str| format!("http://{}{path}", gateway.address);
    let big = vec![b'x'; 3 << 20];
    let put_big = [b"PUT /f ".as_slice(), &big].concat();
    let post_big = [b"POST /f ".as_slice(), &big].concat();

    assert_eq!(curl(&[], &url("/a"), b"").1, b"GET /a ");
    assert_eq!(curl(&["--http1.0"], &url("/a"), b"").1, b"GET /a ");
    assert_eq!(curl(&["--head"], &url("/a"), b"").0, 200);
    assert_eq!(curl(&["--data", "b=c"], &url("/a"), b"").1, b"POST /a b=c");
    assert_eq!(curl(&["--upload-file", "-"], &url("/f"), &big).1, put_big, "in chunks");
    let expect = ["--header", "Expect: 100-continue", "--data-binary", "@-"];
    let (_, body, said) = curl(&expect, &url("/f"), &big);
    assert_eq!(body, post_big);
    assert!(said.contains("< HTTP/1.1 100 Continue"), "{said}");
    let old = ["--http1.0", "--data-binary", "@-"];
    assert_eq!(curl(&old, &url("/f"), &big).1, post_big);

    // As it is, it is refused; else curl takes the dots out.
    assert_eq!(curl(&["--path-as-is"], &url("/a/../b"), b"").0, 400);
    assert_eq!(curl(&[], &url("/a/../b"), b"").1, b"GET /b ");
    assert_eq!(curl(&["--request", "TRACE"], &url("/"), b"").0, 501);
    assert_eq!(curl(&["--header", "Host: elsewhere.org"], &url("/"), b"").0, 503);
    let upgrade = ["--http2"];
    assert_eq!(curl(&upgrade, &url("/a"), b"").1, b"GET /a ", "it stays with HTTP/1.1");

    // One connection for all of it.
    let next = url("/2");
    let (_, body, said) = curl(&["--data", "x", &next], &url("/3"), b"");
    assert_eq!(String::from_utf8_lossy(&body), "POST /2 xPOST /3 x");
    assert!(said.contains("Re-using existing") || said.contains("Reusing existing"), "{said}");
    assert_eq!(instance.faults(), [] as [&str; 0]);
}
