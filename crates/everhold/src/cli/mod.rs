//! The command line: what there is to say, and which exit code comes of it.
//!
//! Data goes to stdout, the rest to stderr. Exit 0 done, 1 failed, 2 wrong usage or spec.

mod acts;
mod backup;
mod cache;
mod client;
mod connect;
mod course;
mod drill;
mod failure;
mod follow;
mod instances;
mod journal;
mod losses;
mod manual;
mod operations;
mod output;
mod point;
mod recover;
mod rekey;
mod report;
mod repository;
mod requests;
mod restore;
mod routes;
mod spec;
mod status;
mod what_if;

use crate::backup::{cloner, forget, prepare, worker};
use crate::instances::{child, runner};
use crate::seat::Seat;
use crate::spec::StorePorts;
use crate::{
    agent, archive, context, gateway, install, installed, log, machine, minder, sample, scrub,
    store, up,
};
use clap::{Parser, Subcommand};
use client::Client;
use failure::Failure;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Keeps a stack up.
#[derive(Parser)]
#[command(name = "everhold", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The data directory; commands take the cluster started last without it
    #[arg(long, global = true, env = "EVERHOLD_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,
    /// The form of the log of what goes on until it is ended: `up`, `run`, and what they start
    #[arg(long, global = true, env = log::VARIABLE, value_enum, default_value = "text",
          value_name = "FORMAT")]
    log_format: log::Format,
}

/// What can be explained beside entries of the journal.
#[derive(Subcommand)]
enum Explained {
    /// Show which way an HTTP request went, and why
    Request { id: String },
}

#[derive(Subcommand)]
enum Command {
    /// Run everything on this machine, in the foreground
    Up {
        /// The spec; without one: PostgreSQL on three nodes behind one address
        #[arg(long)]
        spec: Option<PathBuf>,
        /// etcd's client port; its peers use the next one
        #[arg(long, default_value_t = everhold_core::spec::STORE_CLIENT_PORT,
              value_parser = clap::value_parser!(u16).range(1024..65535))]
        store_port: u16,
    },
    /// Make a cluster of many machines, and this its first
    Init {
        /// The spec, with all machines under [node]
        #[arg(long)]
        spec: PathBuf,
        /// Which of the spec's nodes this machine is
        #[arg(long)]
        node: String,
        /// Where to leave what this machine needs to find the rest
        #[arg(long, default_value = machine::NODE_FILE)]
        node_file: PathBuf,
    },
    /// Print what lets one machine join as a node
    Token {
        node: String,
        /// The node's earlier machine is gone for good, this one takes its place
        #[arg(long)]
        replace: bool,
    },
    /// Make this machine a node of a cluster
    Join {
        /// As `everhold token` prints it; `-` reads it from stdin
        #[arg(value_name = "TOKEN@HOST:PORT")]
        invitation: String,
        /// Where to leave what this machine needs to find the rest
        #[arg(long, default_value = machine::NODE_FILE)]
        node_file: PathBuf,
    },
    /// Put this program, its unit for systemd and its directories in their places
    Install(install::Options),
    /// Run this machine's part of its cluster, in the foreground
    Run {
        /// What `init` or `join` left
        #[arg(long, default_value = machine::NODE_FILE)]
        node_file: PathBuf,
    },
    /// Care for the embedded store
    #[command(subcommand)]
    Store(StoreCommand),
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
    /// Find every fault of a spec, on this machine, and change nothing
    Check {
        file: PathBuf,
        /// etcd's client port, as given to `up`
        #[arg(long, default_value_t = everhold_core::spec::STORE_CLIENT_PORT,
              value_parser = clap::value_parser!(u16).range(1024..65535))]
        store_port: u16,
    },
    /// Make a spec the running cluster's
    Apply {
        file: PathBuf,
        /// Only show what would change, and when each change takes effect
        #[arg(long)]
        dry_run: bool,
    },
    /// Show services, nodes, gateways, and what is waited for
    Status {
        /// Again each second
        #[arg(long)]
        watch: bool,
    },
    /// Print a libpq URL of a service, for psql, drivers and tools
    Dsn {
        service: String,
        /// Of the address for reads
        #[arg(long)]
        read: bool,
        /// The password in the URL instead of the file that holds it
        #[arg(long)]
        show_password: bool,
    },
    /// Run psql on a service: `everhold psql main -c 'select now()'`
    Psql {
        service: String,
        /// On the address for reads
        #[arg(long)]
        read: bool,
        /// For psql
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Hand a service over to another node, without loss
    Switchover {
        service: String,
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
    /// Force a new leader, accepting the loss of what the nodes that are gone alone hold
    Failover {
        service: String,
        /// A failover without loss happens by itself
        #[arg(long, required = true)]
        force: bool,
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// What the first answer gave: it names what may be lost
        #[arg(long)]
        token: Option<String>,
    },
    /// Switch automatic acts for a service off (`on`) or on again (`off`)
    Maintenance { service: String, switch: acts::Switch },
    /// Take a node's load, give it back, or take the node out
    #[command(subcommand)]
    Node(operations::Node),
    /// Start every instance of a service anew, or Everhold on every node, one at a time
    ///
    /// Standbys first, leaders last; it stops at the first doubt.
    Rollout {
        /// Without one: Everhold itself, by the program that is installed on each machine
        service: Option<String>,
        /// Stop the one that runs
        #[arg(long)]
        stop: bool,
        /// Don't wait until it is done
        #[arg(long)]
        no_wait: bool,
    },
    /// Show what the instances of an HTTP service say, from all nodes
    Logs {
        service: String,
        /// Without one: all
        instance: Option<String>,
        /// So many of the newest lines
        #[arg(long, short = 'n', default_value_t = 100)]
        limit: usize,
        /// Go on with each new line
        #[arg(long, short)]
        follow: bool,
    },
    /// Start an instance of an HTTP service anew, or all of them, one by one
    Restart {
        service: String,
        /// Without one: all, as `rollout` does
        instance: Option<String>,
    },
    /// Run more or fewer instances of an HTTP service
    Scale { service: String, instances: u32 },
    /// Take one instance of an HTTP service out of use, until `--undo`
    Drain {
        service: String,
        instance: String,
        /// Use it again
        #[arg(long, conflicts_with_all = ["force", "no_wait"])]
        undo: bool,
        /// Also if nobody else serves
        #[arg(long)]
        force: bool,
        /// Don't wait until its requests have ended
        #[arg(long)]
        no_wait: bool,
    },
    /// Wait until a service is well
    Wait {
        service: String,
        #[arg(long = "for", value_enum, default_value = "up")]
        wanted: instances::Wanted,
        #[arg(long, value_parser = instances::duration, default_value = "60s")]
        timeout: Duration,
    },
    /// Show what HTTP routes and their services do now, over all gateways
    Routes,
    /// Take answers that gateways keep out of all of them
    #[command(subcommand)]
    Cache(cache::Cache),
    /// Show what failovers lost: what old leaders' kept logs hold that no leader has
    Losses {
        /// Without one: of all
        service: Option<String>,
    },
    /// Make a backup, or show which there are
    #[command(subcommand)]
    Backup(backup::Command),
    /// Bring a service's database back as it was at some point, into a directory beside the cluster
    Restore(restore::Options),
    /// Put a service back to how it was, in its place: the other nodes follow
    Recover(recover::Options),
    /// Practise a recovery: what it takes, and whether it works
    #[command(subcommand)]
    Drill(drill::Command),
    /// Make and check the repositories of backups
    #[command(subcommand)]
    Repository(repository::Command),
    /// Break something on purpose
    #[command(subcommand)]
    Fault(acts::Fault),
    /// Show what was decided, asked and done
    Journal {
        /// So many of the newest entries
        #[arg(long, short = 'n', default_value_t = 30)]
        limit: usize,
        #[arg(long)]
        service: Option<String>,
        /// Go on with each new entry
        #[arg(long, short)]
        follow: bool,
        /// Check instead that nothing was changed or taken out
        #[arg(long, conflicts_with_all = ["follow", "service"])]
        verify: bool,
    },
    /// Show from which facts an entry of the journal was decided, and decide it again
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Explain {
        #[command(subcommand)]
        what: Option<Explained>,
        #[arg(required = true)]
        id: Option<String>,
    },
    /// Say what other limits would have made of recorded requests: who is let in, waits, is refused
    WhatIf(what_if::Options),
    /// Print what completes commands in a shell
    Completions { shell: clap_complete::Shell },
    /// Write the manual's pages into a directory
    #[command(hide = true)]
    Manual { into: PathBuf },
    /// Make one backup, started by an agent
    #[command(hide = true)]
    Worker(worker::Worker),
    /// Restore a service beside this node's data, started by an agent
    #[command(hide = true)]
    Restorer(prepare::Restorer),
    /// Make a copy of a service beside this node's data, started by an agent
    #[command(hide = true)]
    Cloner(Seat),
    /// Remove backups that nothing needs, ordered on stdin
    #[command(hide = true)]
    Forget,
    /// Say whether this version reads a copy of the spec, asked before it takes over
    #[command(hide = true)]
    Reads { copy: PathBuf },
    /// Watch over one postmaster, started by an agent
    #[command(hide = true)]
    Minder(minder::Seat),
    /// Serve HTTP, to try things on
    #[command(hide = true)]
    Sample(sample::Options),
    /// Keep one instance of an HTTP service running, started by an agent
    #[command(hide = true)]
    Runner(runner::Seat),
    /// Become the command of an instance, started by its runner
    #[command(hide = true)]
    Launch(child::Launch),
    /// Read the pages of one data directory, started by an agent
    #[command(hide = true)]
    Scrub(Seat),
    /// Read the kept logs of old leaders, started by an agent
    #[command(hide = true)]
    LossesOf(Seat),
    /// Archive the log of one leader, started by its agent
    #[command(hide = true)]
    Archive(archive::Seat),
}

#[derive(Subcommand)]
enum StoreCommand {
    /// Bring the store back from a copy, when no machine has its data any more
    Restore {
        /// The newest of this machine, if none is named
        copy: Option<PathBuf>,
        /// Its machine is gone for good; what it held can't be known
        #[arg(long, value_name = "NODE")]
        lost: Vec<String>,
        /// What `init` or `join` left; without it, the data directory of `everhold up`
        #[arg(long, default_value = machine::NODE_FILE)]
        node_file: PathBuf,
    },
}

/// Runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = cli.log_format;
    let done = match cli.command {
        Command::Minder(seat) => {
            if log == log::Format::Json {
                log::begin(log);
            }
            return minder::run(&seat);
        }
        Command::Launch(launch) => return child::launch(&launch),
        Command::Sample(options) => serve(log, sample::run(options)),
        Command::Runner(seat) => serve(log, runner::run(seat)),
        Command::Up { spec, store_port } => {
            let data = cli.data.unwrap_or_else(context::default_data);
            serve(log, up::run(up::Options { spec, data, store: ports(store_port) }))
        }
        Command::Init { spec, node, node_file } => {
            let data = cli.data.unwrap_or_else(context::default_data);
            serve(
                log,
                machine::init::init(machine::init::Options { spec, node, data, file: node_file }),
            )
        }
        Command::Join { invitation, node_file } => {
            let data = cli.data.unwrap_or_else(context::default_data);
            serve(
                log,
                machine::join::join(machine::join::Options { invitation, data, file: node_file }),
            )
        }
        Command::Install(options) => manual::install(&options),
        Command::Completions { shell } => manual::completions(shell),
        Command::Manual { into } => manual::pages(&into),
        Command::Store(StoreCommand::Restore { copy, lost, node_file }) => {
            let data = cli.data.unwrap_or_else(context::default_data);
            let options = store::restore::Options { copy, lost, file: node_file, data };
            serve(log, store::restore::restore(options))
        }
        Command::Forget => serve(log, async { forget::worker::run() }),
        Command::Worker(worker) => serve(log, worker::run(worker)),
        Command::Restorer(restorer) => serve(log, prepare::run(restorer)),
        Command::Cloner(seat) => serve(log, cloner::run(seat)),
        Command::Scrub(seat) => serve(log, scrub::run(seat)),
        Command::LossesOf(seat) => serve(log, crate::losses::run(seat)),
        Command::Restore(options) => restore::run(log, cli.data.as_deref(), cli.json, options),
        Command::Run { node_file } => serve(log, machine::run(&node_file)),
        Command::Archive(_) => serve(log, archive::run()),
        Command::Agent { node_file } => serve(log, agent::run(&node_file)),
        Command::Gateway { node_file, threads } => serve(log, gateway::run(&node_file, threads)),
        Command::Reads { copy } => installed::reads(&copy).map_err(|why| Failure::of_text(&why)),
        Command::Check { file, store_port } => {
            let data = cli.data.unwrap_or_else(context::default_data);
            spec::check(&file, &data, ports(store_port), cli.json)
        }
        Command::Repository(command) => repository::run(&command, cli.data.as_deref(), cli.json),
        command => {
            let client = Client::find(cli.data.as_deref(), cli.json);
            client.and_then(|client| ask(&client, command))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(cli.json),
    }
}

/// The commands that ask a running cluster.
fn ask(client: &Client, command: Command) -> Result<(), Failure> {
    match command {
        Command::Apply { file, dry_run } => spec::apply(client, &file, dry_run),
        Command::Status { watch } => status::status(client, watch),
        Command::Dsn { service, read, show_password } => {
            connect::dsn(client, &service, read, show_password)
        }
        Command::Psql { service, read, arguments } => {
            connect::psql(client, &service, read, &arguments)
        }
        Command::Token { node, replace } => acts::token(client, &node, replace),
        Command::Drill(command) => drill::run(client, &command),
        Command::Recover(options) => recover::run(client, &options),
        Command::Switchover { service, to } => acts::switchover(client, &service, to.as_deref()),
        Command::Failover { service, force: _, to, token } => {
            acts::failover(client, &service, to.as_deref(), token.as_deref())
        }
        Command::Maintenance { service, switch } => acts::maintenance(client, &service, switch),
        Command::Node(node) => operations::node(client, &node),
        Command::Rollout { service, stop, no_wait } => {
            operations::rollout(client, service.as_deref(), stop, no_wait)
        }
        Command::Logs { service, instance, limit, follow } => {
            instances::logs(client, &service, instance.as_deref(), limit, follow)
        }
        Command::Restart { service, instance } => {
            instances::restart(client, &service, instance.as_deref())
        }
        Command::Scale { service, instances } => instances::scale(client, &service, instances),
        Command::Drain { service, instance, undo, force, no_wait } => {
            instances::drain(client, &service, &instance, (undo, force, no_wait))
        }
        Command::Wait { service, wanted, timeout } => {
            instances::wait(client, &service, wanted, timeout)
        }
        Command::Routes => routes::routes(client),
        Command::Cache(command) => cache::run(client, &command),
        Command::Losses { service } => losses::losses(client, service.as_deref()),
        Command::Backup(command) => backup::run(client, &command),
        Command::Fault(fault) => acts::fault(client, &fault),
        Command::Journal { verify: true, .. } => journal::verify(client),
        Command::Journal { limit, service, follow, verify: false } => {
            journal::journal(client, limit, service.as_deref(), follow)
        }
        Command::Explain { what: Some(Explained::Request { id }), .. } => {
            requests::explain(client, &id)
        }
        Command::Explain { what: None, id } => journal::explain(client, &id.unwrap_or_default()),
        Command::WhatIf(options) => what_if::what_if(client, &options),
        Command::Up { .. }
        | Command::Init { .. }
        | Command::Join { .. }
        | Command::Run { .. }
        | Command::Store(_)
        | Command::Agent { .. }
        | Command::Gateway { .. }
        | Command::Check { .. }
        | Command::Install(_)
        | Command::Completions { .. }
        | Command::Manual { .. }
        | Command::Restore(_)
        | Command::Repository(_)
        | Command::Worker(_)
        | Command::Restorer(_)
        | Command::Cloner(_)
        | Command::Scrub(_)
        | Command::LossesOf(_)
        | Command::Forget
        | Command::Archive(_)
        | Command::Reads { .. }
        | Command::Runner(_)
        | Command::Sample(_)
        | Command::Launch(_)
        | Command::Minder(_) => Ok(()),
    }
}

fn ports(client: u16) -> StorePorts {
    StorePorts { client, peer: client + 1 }
}

/// Runs one of the roles that go on until they are ended.
fn serve(log: log::Format, role: impl Future<Output = anyhow::Result<()>>) -> Result<(), Failure> {
    log::begin(log);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::plain(format!("cannot start: {error}")))?;
    runtime.block_on(role).map_err(Failure::of_role)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_is_in_the_manual() {
        let manual =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/commands.md");
        let manual = std::fs::read_to_string(manual).expect("docs/commands.md");
        for command in Cli::command().get_subcommands().filter(|it| !it.is_hide_set()) {
            let name = command.get_name();
            assert!(manual.contains(&format!("\n## everhold {name}\n")), "{name}");
            for argument in command.get_arguments().filter_map(|it| it.get_long()) {
                assert!(manual.contains(&format!("--{argument}")), "{name} --{argument}");
            }
            for fault in command.get_subcommands() {
                assert!(manual.contains(&format!("{name} {}", fault.get_name())), "{name}");
            }
        }
    }

    #[test]
    fn what_follows_the_service_is_for_psql() {
        let check = |line: &str, read: bool, for_psql: &[&str]| {
            let words = ["everhold", "psql"].into_iter().chain(line.split(' '));
            let Ok(Cli { command: Command::Psql { read: is, arguments, .. }, .. }) =
                Cli::try_parse_from(words)
            else {
                panic!("{line}: not understood");
            };
            assert_eq!((is, arguments), (read, for_psql.iter().map(OsString::from).collect()));
        };
        check("main", false, &[]);
        check("main -c select", false, &["-c", "select"]);
        check("main --read -c select", true, &["-c", "select"]);
        check("--read main -XAt -c select", true, &["-XAt", "-c", "select"]);
        check("main -- --read --csv", false, &["--read", "--csv"]);
        check("main --csv -c select", false, &["--csv", "-c", "select"]);
    }
}
