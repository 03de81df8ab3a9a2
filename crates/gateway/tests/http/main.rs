//! HTTP over real sockets: raw bytes from clients through a gateway to instances that record what
//! they get.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod abuse;
mod bodies;
mod cache;
mod cache_of_one;
mod cache_together;
mod curl;
mod deadlines;
mod degraded;
mod fields;
mod fixture;
mod forwarded;
mod framing;
mod frozen;
mod gone;
mod grpc;
mod hedge;
mod hostile;
mod keep;
mod leave;
mod links;
mod loads;
mod log;
mod overload;
mod pairs;
mod pressure;
mod rates;
mod raw;
mod responses;
mod retries;
mod second;
mod strain;
mod upgrade;
mod zones;
