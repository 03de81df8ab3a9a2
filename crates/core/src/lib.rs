//! What judges in Everhold: types, decisions, checks. No I/O, no clock, no randomness.

pub mod agent;
pub mod backup;
pub mod balance;
pub mod check;
pub mod decide;
pub mod defrag;
pub mod detector;
pub mod durable;
pub mod duty;
pub mod health;
pub mod ids;
pub mod journal;
pub mod kv;
pub mod members;
pub mod minder;
pub mod policy;
pub mod postgres;
pub mod records;
pub mod restore;
pub mod rollout;
pub mod route;
pub mod spec;
pub mod spread;
pub mod status;
pub mod term;
pub mod view;
