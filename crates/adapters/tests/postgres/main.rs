//! The PostgreSQL adapter against real servers.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cluster;
mod failover;
mod faults;
mod guard;
mod proof;
mod service;
