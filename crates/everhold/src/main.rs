//! Everhold keeps a stack up. This file only wires.

mod agent;
mod api;
mod apply;
mod children;
mod cli;
mod clock;
mod cluster;
mod code;
mod context;
mod disk;
mod dsn;
mod explain;
mod facts;
mod failovers;
mod fault;
mod force;
mod gateway;
mod holds;
mod install;
mod journal;
mod keeper;
mod layout;
mod link;
mod machine;
mod minder;
mod node_file;
mod notify;
mod secrets;
mod spec;
mod spec_store;
mod status;
mod supervisor;
mod troubles;
mod up;

fn main() -> std::process::ExitCode {
    cli::main()
}
