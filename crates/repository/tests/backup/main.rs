//! Backups against a real PostgreSQL, and against directories that stand for one where only files
//! matter.

mod postgres;
mod server;
mod shelf;
