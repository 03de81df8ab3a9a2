//! The binary as a whole, with the real PostgreSQL and etcd.

mod commands;
mod damage;
mod healing;
#[path = "../hosts/mod.rs"]
mod hosts;
mod install;
mod loss;
mod machines;
mod minder;
#[path = "../stack/mod.rs"]
mod stack;
mod tidy;
