//! Requests per processor-second of the gateway, with all protections and with none, where nothing is too
//! much.

use super::proxy::{Asked, Ended, Proxy, local, port};
use everhold_core::http::breaker::BreakerSpec;
use everhold_core::http::queue::{Bulkhead, Limit};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub fn run(rounds: usize, dir: &Path) {
    let ports: Vec<u16> = (0..3).map(|_| port().port()).collect();
    let servers = ports.iter().map(|port| {
        format!("server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"hello\"; }} }}\n")
    });
    let text = format!(
        "worker_processes 1; daemon off; pid {dir}/pid; error_log {dir}/error.log;\n\
         events {{ worker_connections 4000; }}\nhttp {{ access_log off; keepalive_timeout 600s;\n\
         keepalive_requests 100000000; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; \
         fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n{}}}\n",
        servers.collect::<String>(),
        dir = dir.display()
    );
    fs::write(dir.join("nginx.conf"), text).expect("written");
    let nginx = Command::new("nginx").arg("-c").arg(dir.join("nginx.conf")).spawn();
    let _instances = Ended(nginx.expect("nginx"));
    std::thread::sleep(Duration::from_millis(500));
    let instances: Vec<SocketAddr> = ports.iter().map(|port| local(*port)).collect();
    let auto = Bulkhead { limit: Limit::Auto, queue: None, wait_ms: 1_000 };
    let plain = Asked {
        prefix: "/",
        instances,
        bulkhead: None,
        breaker: None,
        hedge_percentile: None,
        haproxy: "",
    };
    let breaker = Some(BreakerSpec::default());
    let hedge_percentile = Some(95);
    let guarded = Asked { bulkhead: Some(auto), breaker, hedge_percentile, ..plain.clone() };
    let off = Proxy::everhold("off", &[plain], dir);
    let on = Proxy::everhold("on", &[guarded], dir);
    let rows: Vec<(f64, f64)> = (0..rounds).map(|_| (off.wrk(), on.wrk())).collect();
    let median = |mut of: Vec<f64>| {
        of.sort_by(f64::total_cmp);
        of[of.len() / 2]
    };
    let off = median(rows.iter().map(|it| it.0).collect());
    let on = median(rows.iter().map(|it| it.1).collect());
    println!(
        "\nrequests per processor-second: {off:.0} with none, {on:.0} with all: {:.2}",
        on / off
    );
}
