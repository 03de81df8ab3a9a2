//! The binary as a whole, with the real PostgreSQL and etcd.

mod archive;
mod backups;
mod certs;
mod commands;
mod damage;
mod external;
mod forget;
mod healing;
#[path = "../hosts/mod.rs"]
mod hosts;
mod install;
mod loss;
mod machines;
mod minder;
mod operations;
mod places;
mod plain;
mod proofs;
mod recovery;
mod replaced;
mod rot;
#[path = "../stack/mod.rs"]
mod stack;
mod store;
mod tidy;
