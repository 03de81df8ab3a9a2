//! The binary as a whole, with the real PostgreSQL and etcd.

mod archive;
mod archive_stops;
mod backups;
mod certs;
mod clone;
mod commands;
mod damage;
mod external;
mod forget;
mod healing;
#[path = "../hosts/mod.rs"]
mod hosts;
mod install;
mod instances;
mod loss;
mod lost_node;
mod lost_place;
mod machines;
mod minder;
mod operations;
mod places;
mod plain;
mod proofs;
mod recovery;
mod rekey;
mod renewal;
mod replaced;
mod rot;
mod runner;
mod runner_faults;
#[path = "../stack/mod.rs"]
mod stack;
mod store;
mod tidy;
mod web;
mod web_cache;
mod web_clients;
