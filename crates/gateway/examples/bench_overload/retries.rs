//! Instances that break off instead of answering: how many tries that adds, and whether anything is sent
//! twice that must not be.

use super::clients::{Load, get, head, serve};
use super::proxy::{Asked, Proxy};
use everhold_core::http::hash::mix;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

const PER_S: f64 = 500.0;
const LASTS: Duration = Duration::from_secs(12);
const PERCENT: [u64; 3] = [10, 50, 100];
/// Beside HAProxy's, which has no budget.
const HAPROXY: &str = "retries 2\n option redispatch\n retry-on conn-failure empty-response";

/// What instances saw: the tries of each request, by its number, that of POST apart.
type Tries = Arc<Mutex<[BTreeMap<u64, u64>; 2]>>;

pub fn run(rounds: usize, dir: &Path) {
    println!(
        "\ninstances that break off, {PER_S}/s, of which a quarter POST: retries for each request"
    );
    println!(
        "{:<14} {:>9} {:>9} {:>12} {:>12}",
        "proxy", "breaking", "added", "POST twice", "requests"
    );
    for _ in 0..rounds {
        for percent in PERCENT {
            measure(percent, |all| Some(Proxy::everhold("everhold", all, dir)));
            measure(percent, |all| Proxy::haproxy(all, HAPROXY, dir));
        }
    }
}

async fn instance(listener: TcpListener, percent: u64, chance: Arc<AtomicU64>, tries: Tries) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let (chance, tries) = (chance.clone(), tries.clone());
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            while let Some(head) = head(&mut socket).await {
                let number = head.split(['/', ' ']).nth(2).and_then(|it| it.parse().ok());
                // Checks of health have none.
                if let Some(number) = number {
                    let of = usize::from(head.starts_with("POST "));
                    *tries.lock().expect("no panic")[of].entry(number).or_default() += 1;
                    if mix(chance.fetch_add(1, SeqCst)) % 100 < percent {
                        return;
                    }
                }
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                if socket.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn measure(percent: u64, proxy: impl FnOnce(&[Asked<'_>]) -> Option<Proxy>) {
    let (tries, chance) = (Tries::default(), Arc::<AtomicU64>::default());
    let instances: Vec<_> = (0..3)
        .map(|_| {
            let (tries, chance) = (tries.clone(), chance.clone());
            serve(move |listener| instance(listener, percent, chance, tries))
        })
        .collect();
    let asked = Asked {
        prefix: "/",
        instances: instances.iter().map(|it| it.address).collect(),
        bulkhead: None,
        // It would hide what is asked about.
        breaker: None,
        hedge_percentile: None,
        haproxy: "",
    };
    let Some(proxy) = proxy(&[asked]) else { return };
    let request = |number: u64| match number % 4 {
        0 => format!("POST /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"),
        _ => get(&format!("/{number}")),
    };
    Load::start(proxy.address, request, PER_S, LASTS).end();
    let tries = tries.lock().expect("no panic");
    let requests = tries.iter().map(BTreeMap::len).sum::<usize>();
    let all: u64 = tries.iter().flat_map(BTreeMap::values).sum();
    let twice = tries[1].values().filter(|it| **it > 1).count();
    println!(
        "{:<14} {:>8}% {:>8.1}% {twice:>12} {requests:>12}",
        proxy.name,
        percent,
        100.0 * (all as f64 / requests.max(1) as f64 - 1.0)
    );
}
