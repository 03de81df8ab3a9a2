//! Answers that are kept and given again, by RFC 9111: a cache that many clients share.
//!
//! `asked` and `keep` are request and answer as the cache looks at them; `keep` says whether an answer
//! is kept and for how long, `reuse` whether it is given, `part` how much of it. `control` and `date`
//! read what they say. `purge` is what is taken out over all gateways.

pub mod asked;
pub mod control;
pub mod date;
pub mod keep;
pub mod part;
pub mod purge;
pub mod reuse;

pub use asked::{Asked, is_like};
pub use control::Control;
pub use keep::{Life, Said, Why};
pub use part::{Marks, Part, part, weakly};
pub use reuse::Use;

use serde::{Deserialize, Serialize};

/// Of a gateway, where the spec says nothing: enough for what is asked for most, and little beside what
/// instances have.
pub const BYTES: u64 = 64 << 20;
/// What an answer may have in bytes, where the spec says nothing.
pub const OBJECT_BYTES: u64 = 1 << 20;
/// One answer never takes more of the memory than that part.
pub const OBJECT_PART: u64 = 64;

/// How the answers of a route are kept. An answer that says how long it lasts is kept for so long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheSpec {
    /// Of answers that don't say it; `None`: a tenth of the time since they changed, where they tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// How much longer they are given while they are asked for anew, and while that fails, where they
    /// don't say it themselves.
    #[serde(default)]
    pub stale_while_revalidate_ms: u64,
    #[serde(default)]
    pub stale_if_error_ms: u64,
    /// Larger ones are passed on and not kept.
    #[serde(default = "object_bytes")]
    pub object_bytes_max: u64,
    /// Request fields by which answers differ though they don't say it, in small letters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_headers: Vec<String>,
}

fn object_bytes() -> u64 {
    OBJECT_BYTES
}

impl Default for CacheSpec {
    fn default() -> CacheSpec {
        CacheSpec {
            ttl_ms: None,
            stale_while_revalidate_ms: 0,
            stale_if_error_ms: 0,
            object_bytes_max: OBJECT_BYTES,
            key_headers: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
