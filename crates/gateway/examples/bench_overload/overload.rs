//! Five times what instances can do: how much of their capacity is used, what those wait that are let
//! in, how long it takes after all instances stood still for 2 s.
//!
//! The instance is a model: it works on [`SLOTS`] requests at once, each for [`SERVICE`], and keeps the
//! others waiting.

use super::clients::{Load, get, head, ms, percentile, serve};
use super::proxy::{Asked, Proxy};
use everhold_core::http::breaker::BreakerSpec;
use everhold_core::http::queue::{Bulkhead, Limit};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;

const SLOTS: usize = 32;
const SERVICE: Duration = Duration::from_millis(50);
const TIMES: u64 = 5;
const WARM_S: usize = 5;
const MEASURED_S: usize = 15;
const STANDS_S: usize = 2;
const AFTER_S: usize = 6;
const TENTH: Duration = Duration::from_millis(100);

pub fn run(rounds: usize, dir: &Path) {
    let capacity = SLOTS as f64 / SERVICE.as_secs_f64();
    println!(
        "{SLOTS} at once, {SERVICE:?} each: {capacity:.0}/s can be done, {:.0}/s are asked for",
        capacity * TIMES as f64
    );
    println!(
        "{:<14} {:>9} {:>12} {:>9} {:>9} {:>16}",
        "limit", "goodput", "worst 500 ms", "p50 ms", "p99 ms", "after 2 s, ms"
    );
    for _ in 0..rounds {
        let given = Limit::Most(SLOTS as u32);
        for (name, limit) in [("none", None), ("given", Some(given)), ("auto", Some(Limit::Auto))] {
            let bulkhead = limit.map(|limit| Bulkhead { limit, queue: None, wait_ms: 1_000 });
            overload(name, bulkhead, capacity, dir);
        }
        let maxconn = format!("maxconn {SLOTS}");
        haproxy(&maxconn, capacity, dir);
    }
}

struct Model {
    slots: Semaphore,
    stands: AtomicBool,
}

async fn instance(listener: TcpListener, model: Arc<Model>) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let model = model.clone();
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            while head(&mut socket).await.is_some() {
                let Ok(slot) = model.slots.acquire().await else { return };
                sleep(SERVICE).await;
                while model.stands.load(SeqCst) {
                    sleep(Duration::from_millis(1)).await;
                }
                drop(slot);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                if socket.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn overload(name: &str, bulkhead: Option<Bulkhead>, capacity: f64, dir: &Path) {
    measure(name, capacity, |instance| {
        let breaker = Some(BreakerSpec::default());
        let asked = Asked {
            prefix: "/",
            instances: vec![instance],
            bulkhead,
            breaker,
            hedge_percentile: None,
            haproxy: "",
        };
        Some(Proxy::everhold("everhold", &[asked], dir))
    });
}

fn haproxy(maxconn: &str, capacity: f64, dir: &Path) {
    measure("haproxy", capacity, |instance| {
        let asked = Asked {
            prefix: "/",
            instances: vec![instance],
            bulkhead: None,
            breaker: None,
            hedge_percentile: None,
            haproxy: maxconn,
        };
        Proxy::haproxy(&[asked], "timeout queue 1s", dir)
    });
}

fn measure(name: &str, capacity: f64, proxy: impl FnOnce(std::net::SocketAddr) -> Option<Proxy>) {
    let model = Arc::new(Model { slots: Semaphore::new(SLOTS), stands: AtomicBool::new(false) });
    let served = model.clone();
    let instance = serve(|listener| instance(listener, served));
    let Some(proxy) = proxy(instance.address) else { return };
    let stands_from = WARM_S + MEASURED_S;
    let stands_to = stands_from + STANDS_S;
    let ends = stands_to + AFTER_S;
    let lasts = Duration::from_secs(ends as u64);
    let load = Load::start(proxy.address, |_| get("/"), capacity * TIMES as f64, lasts);
    let begun = load.begun;
    let at = |seconds: usize| begun + Duration::from_secs(seconds as u64);
    let sleep_till = |at: Instant| std::thread::sleep(at.saturating_duration_since(Instant::now()));
    sleep_till(at(stands_from));
    model.stands.store(true, SeqCst);
    sleep_till(at(stands_to));
    model.stands.store(false, SeqCst);
    let again = Instant::now();
    let answers = load.end();
    let share = |from: Instant, to: Instant| {
        let within = answers.iter().filter(|it| it.1 == 200 && (from..to).contains(&it.0));
        within.count() as f64 / (capacity * (to - from).as_secs_f64())
    };
    let (from, to) = (at(WARM_S), at(stands_from));
    let halves = (0..(MEASURED_S * 10 - 5) as u32).map(|i| from + TENTH * i);
    let worst = halves.map(|from| share(from, from + TENTH * 5)).fold(f64::MAX, f64::min);
    // Five tenths of a second in a row in which as much is done as can be, but for a tenth.
    let normal = (0..(AFTER_S * 10 - 5) as u32)
        .map(|i| again + TENTH * i)
        .find(|from| share(*from, *from + TENTH * 5) >= 0.9);
    let normal = normal.map_or("never".to_owned(), |it| format!("{:.0}", ms(&(it - again))));
    println!(
        "{name:<14} {:>8.1}% {:>11.1}% {:>9.0} {:>9.0} {normal:>16}",
        100.0 * share(from, to),
        100.0 * worst,
        percentile(&answers, 50, (from, to)),
        percentile(&answers, 99, (from, to)),
    );
}
