//! Backups against a real PostgreSQL, and against directories that stand for one where only files
//! matter.
#![allow(clippy::unwrap_used)]

mod files;
mod kills;
mod leveling;
mod postgres;
mod pruning;
mod rekeying;
mod server;
mod shelf;
