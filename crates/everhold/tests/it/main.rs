//! The binary as a whole, with the real PostgreSQL and etcd.

mod commands;
mod healing;
mod tidy;
mod minder;
#[path = "../stack/mod.rs"]
mod stack;
#[path = "../stack/torture.rs"]
mod torture;
