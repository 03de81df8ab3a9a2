//! What judges in Everhold: types, decisions, checks. No I/O, no clock, no randomness.

pub mod balance;
pub mod durable;
pub mod ids;
pub mod kv;
pub mod postgres;
pub mod route;
pub mod spec;
pub mod term;
pub mod decide;
pub mod detector;
pub mod policy;
pub mod status;
pub mod view;
pub mod agent;
pub mod check;
pub mod journal;
pub mod minder;
pub mod records;
