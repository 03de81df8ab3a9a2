//! `[store]`: an etcd that is there already.

use std::net::IpAddr;

use everhold_core::spec::{Address, StoreSpec, StoreTls};

use super::super::fault::{Code, Faults};
use super::super::raw::{RawStore, Text};
use super::super::reader::{Part, Placed};
use super::absolute;

/// More are no use: a store has seven members at most.
const ENDPOINTS_MAX: usize = 7;

/// `None` where Everhold runs its own, or nothing usable was written.
pub(super) fn store(raw: &Part<RawStore>, faults: &mut Faults<'_>) -> Option<StoreSpec> {
    let raw = raw.is()?;
    let list = raw.etcd.is()?;
    if list.value.is_empty() || list.value.len() > ENDPOINTS_MAX {
        let message = format!("`etcd` in [store] names {} endpoints", list.value.len());
        faults.add(Code::Count, list.at, message).next =
            format!("name 1 to {ENDPOINTS_MAX}, or leave [store] out: Everhold runs its own");
        return None;
    }
    let mut etcd: Vec<String> = Vec::new();
    let mut secure = None;
    for url in &list.value {
        let lost = "all that is agreed with it";
        let Some(is_secure) = endpoint(url, "[store]", lost, faults) else { continue };
        if *secure.get_or_insert(is_secure) != is_secure {
            let message = "`etcd` in [store] mixes http and https".to_owned();
            faults.add(Code::BadAddress, url.at, message);
        }
        if etcd.contains(&url.value) {
            let message = format!("`{}` stands twice in [store]", url.value);
            faults.add(Code::Repeated, url.at, message);
        }
        etcd.push(url.value.clone());
    }
    let tls = tls(raw, secure?, faults);
    Some(StoreSpec { etcd, tls })
}

/// Whether the URL is https; `None`: it is none that can be used. `lost`: what others would read.
pub(super) fn endpoint(
    url: &Placed<String>,
    place: &str,
    lost: &str,
    faults: &mut Faults<'_>,
) -> Option<bool> {
    let parts = url.value.split_once("://").and_then(|(scheme, rest)| {
        let secure = match scheme {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let (host, port) = rest.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(host);
        let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
        Some((secure, host.parse::<Address>().ok()?, port))
    });
    let Some((secure, host, _)) = parts else {
        let shown = url.value.escape_debug();
        let message = format!("`{shown}` in {place} is not of the form https://HOST:PORT");
        faults.add(Code::BadAddress, url.at, message).next =
            "write a URL, as in \"https://10.0.1.1:2379\"".into();
        return None;
    };
    let here = match &host {
        Address::Ip(ip) => ip.is_loopback(),
        Address::Host(name) => {
            name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
    };
    if !secure && !here {
        let message =
            format!("{} in {place} crosses the network in the clear, and {lost}", url.value);
        faults.add(Code::StoreExposed, url.at, message);
    }
    Some(secure)
}

fn tls(raw: &RawStore, secure: bool, faults: &mut Faults<'_>) -> Option<StoreTls> {
    let mut file = |key: &str, text: &Text| match text {
        Part::Absent if secure => {
            let message = format!("`{key}` is missing in [store]");
            faults.add(Code::Missing, raw.at, message).next =
                format!("add {key} = \"/etc/everhold/etcd-{key}.pem\", a file on every machine");
            None
        }
        Part::Absent | Part::Faulty => None,
        Part::Is(path) if !secure => {
            let message = format!("`{key}` in [store] has no meaning with http");
            faults.add(Code::NotApplicable, path.at, message);
            None
        }
        Part::Is(_) => absolute(key, "[store]", text, faults),
    };
    let (ca, cert, key) = (file("ca", &raw.ca), file("cert", &raw.cert), file("key", &raw.key));
    Some(StoreTls { ca: ca?, cert: cert?, key: key? })
}
