//! One of three instances is slow now and then: what second tries do for those who wait for it.

use super::clients::{Answer, Load, get, head, ms, serve};
use super::proxy::{Asked, Proxy};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::sleep;

const PER_S: f64 = 400.0;
const WARM: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(15);
const QUICK: Duration = Duration::from_millis(5);
const SLOW: Duration = Duration::from_millis(200);
const SLOW_ONE_IN: u64 = 20;

pub fn run(rounds: usize, dir: &Path) {
    println!(
        "\n{PER_S}/s, {QUICK:?} each, but {SLOW:?} for one in {SLOW_ONE_IN} of one of three instances\n\
         {:<14} {:>9} {:>9} {:>9} {:>16}",
        "second tries", "p50 ms", "p99 ms", "p99.9 ms", "more requests"
    );
    for _ in 0..rounds {
        for (name, percentile) in [("none", None), ("p95", Some(95))] {
            measure(name, percentile, dir);
        }
    }
}

/// Answers after [`QUICK`], or, if it is the one that is slow now and then, after [`SLOW`]; counts.
async fn instance(listener: TcpListener, is_slow: bool, got: Arc<AtomicU64>) {
    let mine = Arc::new(AtomicU64::new(0));
    while let Ok((mut socket, _)) = listener.accept().await {
        let (got, mine) = (got.clone(), mine.clone());
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            while head(&mut socket).await.is_some() {
                got.fetch_add(1, SeqCst);
                let number = mine.fetch_add(1, SeqCst);
                let slow = is_slow && number % SLOW_ONE_IN == SLOW_ONE_IN - 1;
                sleep(if slow { SLOW } else { QUICK }).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                if socket.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn measure(name: &'static str, hedge_percentile: Option<u32>, dir: &Path) {
    let got = Arc::new(AtomicU64::new(0));
    let served: Vec<_> = [true, false, false]
        .map(|is_slow| {
            let got = got.clone();
            serve(move |listener| instance(listener, is_slow, got))
        })
        .into();
    let asked = Asked {
        prefix: "/",
        instances: served.iter().map(|it| it.address).collect(),
        bulkhead: None,
        breaker: None,
        hedge_percentile,
        haproxy: "",
    };
    let gateway = Proxy::everhold(name, &[asked], dir);
    let load = Load::start(gateway.address, |_| get("/"), PER_S, WARM + MEASURED);
    let from = load.begun + WARM;
    let answers: Vec<Answer> = load.end();
    let measured = answers.iter().filter(|(at, status, _)| *status == 200 && *at >= from);
    let mut took: Vec<Duration> = measured.map(|it| it.2).collect();
    took.sort();
    let per_mille = |of: usize| took.get(took.len() * of / 1_000).map_or(f64::NAN, ms);
    let more = got.load(SeqCst) as f64 / answers.len().max(1) as f64 - 1.0;
    println!(
        "{name:<14} {:>9.1} {:>9.1} {:>9.1} {:>15.1}%",
        per_mille(500),
        per_mille(990),
        per_mille(999),
        100.0 * more,
    );
}
