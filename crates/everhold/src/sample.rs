//! The role `sample`: a small HTTP service to try things on, which says who answers.

use anyhow::Context;
use axum::Router;
use axum::extract::Path;
use axum::routing::{any, get};
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// `/wait/MS` waits no longer.
const WAIT_MS_MAX: u64 = 60_000;

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    #[arg(long)]
    port: u16,
    /// Who answers
    #[arg(long, default_value = "sample")]
    name: String,
    #[arg(long, env = "GREETING", default_value = "hello from")]
    greeting: String,
}

/// Serves until SIGTERM or SIGINT; requests under way are finished.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let Options { address, port, name, greeting } = options;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind((address, port)).await;
    let listener = listener.with_context(|| format!("listen on {address}:{port}"))?;
    println!("{name} serves on {address}:{port}");
    let text = format!("{greeting} {name}\n");
    let wait = {
        let text = text.clone();
        async move |Path(ms): Path<u64>| {
            tokio::time::sleep(Duration::from_millis(ms.min(WAIT_MS_MAX))).await;
            text
        }
    };
    let service = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/wait/{ms}", any(wait))
        .fallback(move || std::future::ready(text.clone()));
    let end = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    axum::serve(listener, service).with_graceful_shutdown(end).await?;
    println!("{name} ends");
    Ok(())
}
