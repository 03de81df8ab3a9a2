//! One dependency is slow, or fails: what those see who ask for something else.

use super::clients::{Load, get, head, percentile, serve};
use super::proxy::{Asked, Proxy};
use everhold_core::http::breaker::BreakerSpec;
use everhold_core::http::queue::{Bulkhead, Limit};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::sleep;

const SERVICE: Duration = Duration::from_millis(5);
const SLOW: Duration = Duration::from_secs(5);
const OTHERS_PER_S: f64 = 400.0;
const DEPENDENCY_PER_S: f64 = 200.0;
const WARM: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(10);
const FINE: usize = 0;
const IS_SLOW: usize = 1;
const FAILS: usize = 2;

pub fn run(rounds: usize, dir: &Path) {
    println!(
        "\none dependency slow ({SLOW:?}) or failing (50 %), {DEPENDENCY_PER_S}/s of it; \
         others, {OTHERS_PER_S}/s: their p99"
    );
    println!(
        "{:<14} {:>9} {:>9} {:>7} {:>11} {:>7}",
        "proxy", "fine, ms", "slow, ms", "times", "failing, ms", "times"
    );
    let (mode, asked) = (Arc::new(AtomicUsize::new(FINE)), Arc::new(AtomicU64::new(0)));
    let others = serve(|listener| instance(listener, Arc::default(), Arc::default()));
    let (told, counted) = (mode.clone(), asked);
    let dependency = serve(|listener| instance(listener, told, counted));
    let plain = [("/other", others.address), ("/dependency", dependency.address)].map(
        |(prefix, instance)| Asked {
            prefix,
            instances: vec![instance],
            bulkhead: None,
            breaker: None,
            hedge_percentile: None,
            haproxy: "maxconn 50",
        },
    );
    let guarded = plain.clone().map(|it| Asked {
        bulkhead: Some(Bulkhead { limit: Limit::Auto, queue: None, wait_ms: 1_000 }),
        breaker: Some(BreakerSpec::default()),
        ..it
    });
    for _ in 0..rounds {
        measure(&Proxy::everhold("no limits", &plain, dir), &mode);
        measure(&Proxy::everhold("limits", &guarded, dir), &mode);
        if let Some(proxy) = Proxy::haproxy(&plain, "timeout queue 1s", dir) {
            measure(&proxy, &mode);
        }
    }
}

async fn instance(listener: TcpListener, mode: Arc<AtomicUsize>, asked: Arc<AtomicU64>) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let (mode, asked) = (mode.clone(), asked.clone());
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            while head(&mut socket).await.is_some() {
                let mode = mode.load(SeqCst);
                sleep(if mode == IS_SLOW { SLOW } else { SERVICE }).await;
                let fails = mode == FAILS && asked.fetch_add(1, SeqCst) % 2 == 0;
                let status = if fails { "500 Internal Server Error" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok");
                if socket.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn measure(proxy: &Proxy, mode: &AtomicUsize) {
    let p99 = [FINE, IS_SLOW, FAILS].map(|now| {
        mode.store(now, SeqCst);
        let lasts = WARM + MEASURED;
        let ill = Load::start(proxy.address, |_| get("/dependency"), DEPENDENCY_PER_S, lasts);
        let others = Load::start(proxy.address, |_| get("/other"), OTHERS_PER_S, lasts);
        let from = others.begun + WARM;
        ill.end();
        percentile(&others.end(), 99, (from, from + MEASURED))
    });
    let [fine, slow, failing] = p99;
    println!(
        "{:<14} {fine:>9.1} {slow:>9.1} {:>7.2} {failing:>11.1} {:>7.2}",
        proxy.name,
        slow / fine,
        failing / fine
    );
}
