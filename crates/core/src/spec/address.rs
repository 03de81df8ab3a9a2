//! Where a node is reached: an IP address, or a host name that each machine resolves for itself.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest host name of DNS.
const HOST_LENGTH_MAX: usize = 253;
/// The longest part of a host name between two dots.
const LABEL_LENGTH_MAX: usize = 63;

/// The address of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Address {
    Ip(IpAddr),
    /// In lower case, so that equal hosts are equal.
    Host(String),
}

impl Address {
    /// As URLs have it.
    pub fn with_port(&self, port: u16) -> String {
        match self {
            Address::Ip(ip) => SocketAddr::new(*ip, port).to_string(),
            Address::Host(host) => format!("{host}:{port}"),
        }
    }

    /// Whether something bound to `ip` on the machine at this address may meet what is bound to the
    /// address itself. A host name may be any address; only what is sure to meet counts.
    pub fn meets(&self, ip: IpAddr) -> bool {
        match self {
            Address::Ip(own) => ip.is_unspecified() || own.is_unspecified() || *own == ip,
            Address::Host(name) => ip.is_unspecified() || (name == "localhost" && ip.is_loopback()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(ip) => ip.fmt(f),
            Address::Host(name) => name.fmt(f),
        }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

impl TryFrom<String> for Address {
    type Error = String;
    fn try_from(text: String) -> Result<Address, String> {
        text.parse()
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return if ip.is_unspecified() || ip.is_multicast() {
                Err(format!("`{text}` is not the address of one machine"))
            } else {
                Ok(Address::Ip(ip))
            };
        }
        let label = |part: &str| {
            !part.is_empty()
                && part.len() <= LABEL_LENGTH_MAX
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        // A last part of digits only is a mistyped IPv4 address, not a name.
        let numeric = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let parts: Vec<&str> = text.split('.').collect();
        let named = parts.last().is_some_and(|part| !numeric(part));
        if named && text.len() <= HOST_LENGTH_MAX && parts.iter().all(|part| label(part)) {
            Ok(Address::Host(text.to_ascii_lowercase()))
        } else {
            Err(format!("`{text}` is neither an IP address nor a host name"))
        }
    }
}
