//! Repositories on what they are made for: a real S3 server, and lines that break.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bed;
mod faults;
mod proxy;
mod s3;
mod suite;
