//! The command line.

use crate::{agent, context, gateway, spec, up};
use clap::{Parser, Subcommand};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Keeps a stack up.
#[derive(Parser)]
#[command(name = "everhold", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything on this machine, in the foreground
    Up {
        /// The spec; without one: PostgreSQL on three nodes behind one address
        #[arg(long)]
        spec: Option<PathBuf>,
        #[arg(long, env = "EVERHOLD_DATA")]
        data: Option<PathBuf>,
        /// etcd's client port; its peers use the next one
        #[arg(long, default_value_t = everhold_core::spec::STORE_CLIENT_PORT)]
        store_port: u16,
    },
    /// Run one node's agent
    Agent {
        #[arg(long)]
        node_file: PathBuf,
    },
    /// Run a gateway
    Gateway {
        #[arg(long)]
        node_file: PathBuf,
        #[arg(long)]
        threads: Option<NonZeroUsize>,
    },
}

/// Runs the command. Exit 0 done, 1 failed, 2 wrong usage or spec.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match cli.command {
            Command::Up { spec, data, store_port } => {
                let data = data.unwrap_or_else(context::default_data);
                let store = spec::StorePorts { client: store_port, peer: store_port + 1 };
                up::run(up::Options { spec, data, store }).await
            }
            Command::Agent { node_file } => agent::run(&node_file).await,
            Command::Gateway { node_file, threads } => gateway::run(&node_file, threads).await,
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<up::Faults>() => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
