//! The PostgreSQL adapter against real servers.

mod cluster;
mod failover;
mod faults;
mod guard;
mod service;
