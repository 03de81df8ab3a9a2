//! Everhold keeps a stack up. This file only wires.

mod agent;
mod api;
mod apply;
mod archive;
mod backup;
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
mod installed;
mod journal;
mod keeper;
mod key_file;
mod layout;
mod link;
mod links;
mod log;
mod machine;
mod minder;
mod node_file;
mod nodes;
mod notify;
mod plain;
mod rollout;
mod scrub;
mod secrets;
mod spec;
mod spec_store;
mod status;
mod store;
mod supervisor;
mod troubles;
mod up;

fn main() -> std::process::ExitCode {
    cli::main()
}
