//! Names of requests: what they are followed by through logs and traces.

use everhold_core::http::hash;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// As long as a name that a client gives may be.
const LENGTH_MAX: usize = 64;

/// What one request is known by: in the log, towards the instance and in the answer.
pub type RequestId = Short<LENGTH_MAX>;

/// A text of at most `N` bytes, in place; what is longer is cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Short<const N: usize> {
    bytes: [u8; N],
    length: u8,
}

impl<const N: usize> Default for Short<N> {
    fn default() -> Short<N> {
        Short { bytes: [0; N], length: 0 }
    }
}

impl<const N: usize> Short<N> {
    pub fn of(text: &[u8]) -> Short<N> {
        let mut short = Short::default();
        let length = text.len().min(N).min(usize::from(u8::MAX));
        short.bytes[..length].copy_from_slice(&text[..length]);
        short.length = length as u8;
        short
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl<const N: usize> fmt::Debug for Short<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(self.as_bytes()).fmt(f)
    }
}

/// Whether a client's name for its request is taken over.
pub fn is_id(text: &[u8]) -> bool {
    (1..=LENGTH_MAX).contains(&text.len())
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:+/=".contains(byte))
}

/// Whether it is a traceparent of version 00 of W3C Trace Context.
pub fn is_traceparent(text: &[u8]) -> bool {
    let hex = |range: std::ops::Range<usize>| {
        text[range.clone()].iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            && text[range].iter().any(|byte| *byte != b'0')
    };
    text.len() == 55
        && text.starts_with(b"00-")
        && text[35] == b'-'
        && text[52] == b'-'
        && hex(3..35)
        && hex(36..52)
        && text[53..].iter().all(u8::is_ascii_hexdigit)
}

/// Makes names, and is a thread's source of chance. Nothing secret hangs on it.
pub struct Ids(u64);

impl Ids {
    /// Begins where nobody knows.
    pub fn begin() -> Ids {
        let mut seed = [0; 8];
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut seed, flags) {
            Ok(8) => Ids(u64::from_ne_bytes(seed)),
            Ok(_) | Err(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Ids(now.as_nanos() as u64)
            }
        }
    }

    pub fn random(&mut self) -> u64 {
        hash::next(&mut self.0)
    }

    pub fn request(&mut self) -> RequestId {
        let mut id = RequestId::default();
        hex(self.random(), &mut id.bytes[..16]);
        id.length = 16;
        id
    }

    /// A new one, not sampled.
    pub fn traceparent(&mut self, out: &mut Vec<u8>) {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex(self.random() | 1, &mut text[3..19]);
        hex(self.random(), &mut text[19..35]);
        hex(self.random() | 1, &mut text[36..52]);
        out.extend_from_slice(&text);
    }
}

fn hex(number: u64, to: &mut [u8]) {
    for (index, byte) in to.iter_mut().rev().enumerate() {
        *byte = b"0123456789abcdef"[(number >> (4 * index) & 15) as usize];
    }
}
