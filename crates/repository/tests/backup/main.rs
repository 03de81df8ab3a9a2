//! Backups against a real PostgreSQL, and against directories that stand for one where only files
//! matter.

mod files;
mod kills;
mod postgres;
mod pruning;
mod server;
mod shelf;
