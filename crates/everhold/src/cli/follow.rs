//! What was asked for, watched until it has ended.

use super::client::Client;
use super::failure::{Failure, say};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// An agent that started anew has ended what it was doing, and doesn't tell of it.
pub const LOST: Duration = Duration::from_secs(30);

/// What a status says of it.
pub enum Seen<T> {
    /// It goes on; in words, if there is something to say.
    Doing(Option<String>),
    Ended(T),
    /// Nobody knows of it: not yet, or not any more.
    Unknown,
}

/// Looks again and again until it has ended; says each new thing that is done. `lost`: what to say
/// when nobody knows of it any more.
pub fn follow<T>(
    client: &Client,
    lost: impl FnOnce() -> Failure,
    mut look: impl FnMut(&Value) -> Result<Seen<T>, Failure>,
) -> Result<T, Failure> {
    let mut said = String::new();
    let mut heard = Instant::now();
    loop {
        let seen = match client.get("/v1/status") {
            Ok(status) => look(&status)?,
            Err(failure) if heard.elapsed() > LOST => return Err(failure),
            Err(_) => Seen::Unknown,
        };
        match seen {
            Seen::Ended(end) => return Ok(end),
            Seen::Unknown if heard.elapsed() > LOST => return Err(lost()),
            Seen::Unknown => {}
            Seen::Doing(what) => {
                heard = Instant::now();
                if let Some(what) = what.filter(|what| *what != said) {
                    say(&what);
                    said = what;
                }
            }
        }
        std::thread::sleep(LOOK);
    }
}
