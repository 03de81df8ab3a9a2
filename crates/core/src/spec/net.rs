//! Addresses that belong together: one, or all that begin with the same bits.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Net {
    first: IpAddr,
    bits: u8,
}

impl Net {
    /// `ip` in its canonical form: of IPv4 in the dress of IPv6 it is never true.
    pub fn contains(&self, ip: IpAddr) -> bool {
        masked(ip, self.bits) == Some(self.first)
    }

    /// The first and the last of it.
    pub fn ends(&self) -> (IpAddr, IpAddr) {
        let bits = u32::from(self.bits);
        let last = match self.first {
            IpAddr::V4(ip) => {
                let rest = u32::MAX.checked_shr(bits).unwrap_or(0);
                IpAddr::V4((ip.to_bits() | rest).into())
            }
            IpAddr::V6(ip) => {
                let rest = u128::MAX.checked_shr(bits).unwrap_or(0);
                IpAddr::V6((ip.to_bits() | rest).into())
            }
        };
        (self.first, last)
    }
}

/// An address without the bits behind the first so many; `None`: it has fewer.
pub fn masked(ip: IpAddr, bits: u8) -> Option<IpAddr> {
    let bits = u32::from(bits);
    match ip {
        IpAddr::V4(ip) => {
            let rest = u32::BITS.checked_sub(bits)?;
            let mask = u32::MAX.checked_shl(rest).unwrap_or(0);
            Some(IpAddr::V4((ip.to_bits() & mask).into()))
        }
        IpAddr::V6(ip) => {
            let rest = u128::BITS.checked_sub(bits)?;
            let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
            Some(IpAddr::V6((ip.to_bits() & mask).into()))
        }
    }
}

fn bits_of(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Net {
    /// What is wrong with it, for a sentence that names it.
    type Err = String;

    fn from_str(text: &str) -> Result<Net, String> {
        let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let Ok(ip) = ip.parse::<IpAddr>() else {
            return Err("is no address and no range such as 10.0.0.0/8".to_string());
        };
        if ip.to_canonical() != ip {
            return Err(format!("is IPv4: write it as {}", ip.to_canonical()));
        }
        let most = bits_of(ip);
        let digits = |it: &str| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit());
        let bits = match bits {
            None => Some(most),
            Some(bits) => bits.parse().ok().filter(|count| digits(bits) && *count <= most),
        };
        let Some(bits) = bits else {
            return Err(format!("has to have 0 to {most} behind the slash"));
        };
        match masked(ip, bits) {
            Some(first) if first != ip => {
                Err(format!("begins within a range: {first}/{bits} is the whole of it"))
            }
            Some(_) | None => Ok(Net { first: ip, bits }),
        }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits == bits_of(self.first) {
            true => self.first.fmt(f),
            false => write!(f, "{}/{}", self.first, self.bits),
        }
    }
}

impl From<Net> for String {
    fn from(net: Net) -> String {
        net.to_string()
    }
}

impl TryFrom<String> for Net {
    type Error = String;

    fn try_from(text: String) -> Result<Net, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_belongs_to_it() {
        let check = |net: &str, within: &[&str], beyond: &[&str]| {
            let net: Net = net.parse().expect(net);
            let has = |ip: &&str| net.contains(ip.parse().expect(ip));
            assert!(within.iter().all(has), "{net}: {within:?}");
            assert!(!beyond.iter().any(has), "{net}: {beyond:?}");
            assert_eq!(net.to_string().parse(), Ok(net));
        };
        check("10.0.0.0/8", &["10.0.0.0", "10.255.255.255"], &["11.0.0.0", "9.9.9.9", "::a00:1"]);
        check("10.1.2.3", &["10.1.2.3"], &["10.1.2.2"]);
        check("10.1.2.0/31", &["10.1.2.0", "10.1.2.1"], &["10.1.2.2"]);
        check("0.0.0.0/0", &["0.0.0.0", "255.255.255.255"], &["::1", "::"]);
        check("::/0", &["::1", "ffff::"], &["0.0.0.0"]);
        check("fd00::/8", &["fd00::1", "fdff::"], &["fe00::", "10.0.0.1"]);
        check("::1", &["::1"], &["::2"]);
    }

    #[test]
    fn what_is_none_says_why() {
        let check = |text: &str, why: &str| assert_eq!(text.parse::<Net>(), Err(why.to_string()));
        for text in ["", "/8", "10.0.0", "10.0.0.0.0/8", "lb.example.org", " 10.0.0.0/8", "[::1]"] {
            check(text, "is no address and no range such as 10.0.0.0/8");
        }
        for text in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "10.0.0.0/300"] {
            check(text, "has to have 0 to 32 behind the slash");
        }
        check("fd00::/129", "has to have 0 to 128 behind the slash");
        check("10.1.2.3/8", "begins within a range: 10.0.0.0/8 is the whole of it");
        check("::ffff:10.0.0.1", "is IPv4: write it as 10.0.0.1");
    }
}
