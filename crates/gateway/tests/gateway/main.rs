//! The gateway over real sockets, in front of fakes and of PostgreSQL.

mod cancel;
mod cut;
mod fixture;
mod hold;
mod listeners;
mod postgres;
mod relay;
