//! The gateway over real sockets, in front of fakes and of PostgreSQL.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cancel;
mod cut;
mod fixture;
mod hold;
mod listeners;
mod postgres;
mod relay;
