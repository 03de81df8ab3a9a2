//! The binary as a whole, with the real PostgreSQL and etcd.

mod archive;
mod backups;
mod certs;
mod commands;
mod damage;
mod external;
mod healing;
#[path = "../hosts/mod.rs"]
mod hosts;
mod install;
mod loss;
mod machines;
mod minder;
mod operations;
mod plain;
mod proofs;
mod replaced;
#[path = "../stack/mod.rs"]
mod stack;
mod store;
mod tidy;
