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
mod gateways_word;
mod helper;
mod holds;
mod hung;
mod install;
mod installed;
mod instances;
mod journal;
mod keeper;
mod key_file;
mod layout;
mod link;
mod links;
mod log;
mod losses;
mod lost_nodes;
mod machine;
mod minder;
mod names;
mod node_file;
mod nodes;
mod notify;
mod own_socket;
mod plain;
mod requests;
mod rollout;
mod routes;
mod sample;
mod scrub;
mod seat;
mod secrets;
mod spec;
mod spec_store;
mod status;
mod store;
mod supervisor;
mod troubles;
mod up;
mod web;
mod what_if;

fn main() -> std::process::ExitCode {
    cli::main()
}
