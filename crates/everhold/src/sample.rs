//! The role `sample`: a small HTTP service to try things on, which says who answers.

use anyhow::Context;
use axum::Router;
use axum::routing::get;
use std::net::IpAddr;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

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
    let service = Router::new()
        .route("/healthz", get(async || "ok\n"))
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
